//! The connections of one configuration: made, kept few, given up where its row says so.
//!
//! In: the row, the lanes that share its connections, and how attempts to connect ended. Out: which connections to make and when,
//! and which to close. Always: at most `max_connections` sockets, one of them for JetStream's API; and one attempt at a time.

use std::time::Duration;

use super::{
    Action, ConnectionId, Driver, Flaw, GroupId, Moment, Report, StreamId, Task, Timing, Violation, backoff::Backoff,
    other_runs::OtherRuns,
};
use crate::{
    error::{Error, Kind, Result},
    flow::streamer::Streamer,
    route::tables::ConfigRow,
};

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its version.
    pub version: String,
    /// The largest message it takes, headers and body, in bytes.
    pub max_payload: usize,
    /// It has atomic batches that we can use: before 2.12.1 it refuses message ids in them, before 2.12.0 it stores each message
    /// by itself and says nothing.
    pub knows_batches: bool,
    /// It syncs a batch as a whole; before 2.15.0 each of its messages.
    pub shares_syncs: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Group {
    pub row: ConfigRow,
    /// The servers that the rules of its lanes' events name.
    pub servers: String,
    /// Core NATS: no stream; its connection for JetStream's API is there only to ask for other runs.
    pub is_core: bool,
    /// Its lanes by their numbers.
    pub lanes: Vec<StreamId>,
    pub links: Vec<Link>,
    /// It has its connection for JetStream's API.
    pub has_api: bool,
    /// Other runs of this database, or of a copy, were asked for on its account, and none streams: this run answers there.
    pub is_asked: bool,
    /// How often that connection was made, and how often others were asked for by it.
    pub connected_times: u64,
    pub other_runs: OtherRuns,
    /// Some lane of it is wanted or not empty.
    pub in_use: bool,
    /// An attempt to connect is under way.
    pub attempts: bool,
    /// No attempt before then.
    pause: Option<Moment>,
    pub backoff: Backoff,
    failures: u32,
    pub given_up: bool,
    /// A failure of it was reported, and not that all is well again.
    pub is_reported: bool,
}

/// A publishing connection and the lanes that share it.
#[derive(Debug, Default)]
pub struct Link {
    pub lanes: Vec<StreamId>,
    /// Its server, while the connection stands.
    pub server: Option<ServerFacts>,
    /// Which of the lanes writes next; the same until its message is whole.
    pub turn: usize,
    /// What was written ends within a message.
    pub is_within: bool,
    since: Moment,
    /// When something last came from the server.
    pub last_received: Option<Moment>,
    /// An answer has come.
    pub worked: bool,
    /// What its user may not do, as the server said it last.
    pub forbidden: Option<Forbidden>,
    /// The server has closed the connection over some message: so many are sent one at a time, so that the next close names the
    /// message.
    pub careful: usize,
}

/// A refusal that is kept, for the errors of several lanes may have to repeat it.
#[derive(Debug)]
pub struct Forbidden {
    kind: Kind,
    text: String,
    hint: Option<String>,
}

impl Forbidden {
    fn of(error: &Error) -> Forbidden {
        Forbidden { kind: error.kind(), text: error.reason(), hint: error.remedy().map(str::to_owned) }
    }

    pub fn error(&self) -> Error {
        let error = Error::new(self.kind, self.text.clone());
        match &self.hint {
            Some(hint) => error.hint(hint.clone()),
            None => error,
        }
    }
}

impl Group {
    pub fn new(row: ConfigRow, servers: String, is_core: bool, timing: &Timing) -> Group {
        Group {
            backoff: backoff_of(&row, timing),
            row,
            servers,
            is_core,
            lanes: Vec::new(),
            links: Vec::new(),
            has_api: false,
            is_asked: false,
            connected_times: 0,
            other_runs: OtherRuns::new(timing),
            in_use: false,
            attempts: false,
            pause: None,
            failures: 0,
            given_up: false,
            is_reported: false,
        }
    }

    /// No other run streams. Returns whether that was not known.
    pub fn asked(&mut self) -> bool {
        !std::mem::replace(&mut self.is_asked, true)
    }

    /// Which link a lane is on.
    pub fn link_of(&self, lane: StreamId) -> usize {
        self.links.iter().position(|link| link.lanes.contains(&lane)).expect("every lane has its place")
    }

    fn place(&mut self, lane: StreamId) -> usize {
        // A number that makes no sense is reported when the row is resolved for an attempt.
        let most = usize::try_from(self.row.max_connections.unwrap_or(10)).unwrap_or(1);
        let most = if self.is_core { 1 } else { most.saturating_sub(1).max(1) };
        if self.links.len() < most {
            self.links.push(Link::default());
        }
        let least = (0..self.links.len()).min_by_key(|&at| self.links[at].lanes.len()).expect("one at least");
        self.links[least].lanes.push(lane);
        least
    }

    fn is_whole(&self) -> bool {
        self.has_api && self.links.iter().all(|link| link.server.is_some())
    }

    /// Whether an attempt to connect has failed since the last one that did not.
    pub fn cannot_be_reached(&self) -> bool {
        self.failures > 0 || self.given_up
    }

    pub fn wakes_at(&self) -> Option<Moment> {
        self.pause.into_iter().chain(self.other_runs.wakes_at()).min()
    }

    /// What it is called in errors: by its streams.
    pub fn name(&self, streamer: &Streamer) -> String {
        let streams: Vec<_> = self.lanes.iter().map(|lane| format!("{:?}", streamer.lane(lane.0).stream())).collect();
        match (self.is_core, streams.len()) {
            (true, _) => "core NATS".to_owned(),
            (false, 1) => format!("stream {}", streams[0]),
            (false, _) => format!("streams {}", streams.join(", ")),
        }
    }
}

impl Link {
    /// Whether the server has said something within that time.
    pub fn has_received(&self, now: Moment, within: Duration) -> bool {
        self.last_received.is_some_and(|last| now.since(last) < within)
    }
}

fn backoff_of(row: &ConfigRow, timing: &Timing) -> Backoff {
    let (default, least) = timing.reconnect;
    let millis = row.reconnect_delay_ms.and_then(|millis| u64::try_from(millis).ok());
    Backoff::new(millis.map_or(default, Duration::from_millis).max(least), timing.retry.1)
}

impl Driver {
    /// The row has changed: all connections are to be made again.
    pub(super) fn replace_row(&mut self, id: GroupId, row: ConfigRow) {
        let timing = self.settings.timing;
        let group = &mut self.groups[id.0];
        group.backoff = backoff_of(&row, &timing);
        group.row = row;
        self.disconnect(id);
        let group = &mut self.groups[id.0];
        group.links.clear();
        for at in 0..group.lanes.len() {
            group.place(group.lanes[at]);
        }
        // It may be another account.
        group.other_runs = OtherRuns::new(&timing);
        group.is_asked = false;
        self.revive(id);
        self.group_well(id);
    }

    /// Tries again where it was given up.
    pub(super) fn revive(&mut self, id: GroupId) {
        let has_flaw = self.has(Flaw::GiveUpForGood);
        let group = &mut self.groups[id.0];
        group.given_up &= has_flaw;
        group.failures = 0;
        group.pause = None;
    }

    /// Closes all connections of a group and drops what was under way on them.
    pub(super) fn disconnect(&mut self, id: GroupId) {
        let group = &mut self.groups[id.0];
        group.has_api = false;
        let attempted = std::mem::take(&mut group.attempts);
        for link in &mut group.links {
            link.server = None;
        }
        if attempted {
            self.actions.push_back(Action::Abandon(Task::Connect(id)));
        }
        self.forget_runs(id);
        self.actions.push_back(Action::Disconnect(id));
    }

    /// A new lane takes the place with the fewest others.
    pub(super) fn add_stream(&mut self, id: GroupId, lane: StreamId) {
        let group = &mut self.groups[id.0];
        group.lanes.push(lane);
        let link = group.place(lane);
        if group.links[link].server.is_some() {
            self.actions.push_back(Action::Subscribe(ConnectionId { group: id, link }, lane));
        }
    }

    /// Begins an attempt to connect what is missing, where it is time. Returns whether it did.
    pub(super) fn connect(&mut self, id: GroupId) -> bool {
        let group = &mut self.groups[id.0];
        let is_paused = group.pause.is_some_and(|until| self.now < until);
        if !group.in_use || group.given_up || group.attempts || is_paused || group.is_whole() {
            return false;
        }
        group.pause = None;
        group.attempts = true;
        let missing = group.links.iter().enumerate().filter(|(_, link)| link.server.is_none());
        let missing = missing.map(|(at, link)| (ConnectionId { group: id, link: at }, link.lanes.clone()));
        let action = Action::Connect { group: id, wants_api: !group.has_api, connections: missing.collect() };
        self.actions.push_back(action);
        true
    }

    pub(super) fn connected(
        &mut self,
        id: GroupId,
        has_api: bool,
        connections: Vec<(ConnectionId, ServerFacts, Vec<StreamId>)>,
    ) {
        let group = &mut self.groups[id.0];
        if !std::mem::take(&mut group.attempts) {
            return;
        }
        group.failures = 0;
        if has_api {
            group.has_api = true;
            if !group.is_core {
                group.connected_times += 1;
            }
        }
        for (connection, server, subscribed) in connections {
            let link = &mut group.links[connection.link];
            // Lanes have come and gone since the attempt began.
            for lane in link.lanes.iter().filter(|lane| !subscribed.contains(lane)) {
                self.actions.push_back(Action::Subscribe(connection, *lane));
            }
            let (lanes, careful) = (std::mem::take(&mut link.lanes), link.careful);
            *link = Link { lanes, server: Some(server), since: self.now, careful, ..Link::default() };
        }
    }

    /// An attempt failed: the next one after a pause, unless there were as many as the row allows.
    pub(super) fn not_connected(&mut self, id: GroupId, error: Error, streamer: &Streamer) -> Result<()> {
        if !std::mem::take(&mut self.groups[id.0].attempts) {
            return Ok(());
        }
        let error = self.explain_old_servers(id, streamer, error).context(self.groups[id.0].name(streamer));
        if !self.goes_on_after(&error) {
            return Err(error);
        }
        self.groups[id.0].failures += 1;
        self.retry_connecting(id, error, false);
        self.doubt_servers(id, streamer);
        // Lanes of core NATS may have waited for it.
        self.is_notable = true;
        Ok(())
    }

    /// A publishing connection is of no more use: all its lanes are opened again.
    pub(super) fn lost(
        &mut self,
        connection: ConnectionId,
        error: Error,
        violation: Option<&Violation>,
        streamer: &mut Streamer,
    ) -> Result<()> {
        self.losses += 1;
        let ConnectionId { group: id, link } = connection;
        if let Some(violation) = violation {
            self.look_for_violator(connection, violation, streamer);
        }
        for lane in self.groups[id.0].links[link].lanes.clone() {
            if !self.lanes[lane.0].is_absent() {
                streamer.lane_mut(lane.0).close();
                self.wait(lane, Duration::ZERO);
            }
        }
        streamer.reject()?;
        let error = error.context(self.groups[id.0].name(streamer));
        if !self.goes_on_after(&error) {
            return Err(error);
        }
        let (now, worked_for) = (self.now, self.settings.timing.worked);
        let group = &mut self.groups[id.0];
        let link = &mut group.links[link];
        let worked = link.worked || (link.server.is_some() && now.since(link.since) >= worked_for);
        link.server = None;
        if worked {
            group.backoff.reset();
        }
        if group.is_core && std::mem::take(&mut group.has_api) {
            self.actions.push_back(Action::CloseApi(id));
            self.forget_runs(id);
        }
        self.actions.push_back(Action::Close(connection));
        self.retry_connecting(id, error, worked);
        Ok(())
    }

    fn retry_connecting(&mut self, id: GroupId, error: Error, at_once: bool) {
        let group = &mut self.groups[id.0];
        group.is_reported = true;
        let most = group.row.max_reconnect_attempts.and_then(|most| u32::try_from(most).ok());
        let given_up = most.is_some_and(|most| group.failures >= most).then_some(group.failures);
        if given_up.is_some() {
            group.given_up = true;
            let attempted = std::mem::take(&mut group.attempts);
            let had_api = !group.is_core && std::mem::take(&mut group.has_api);
            if attempted {
                self.actions.push_back(Action::Abandon(Task::Connect(id)));
            }
            if had_api {
                self.actions.push_back(Action::CloseApi(id));
            }
        } else if !group.attempts {
            group.pause = (!at_once).then(|| self.now.after(group.backoff.next(self.chance.draw())));
        }
        self.report(Report::GroupFailed { group: id, error, given_up });
    }

    /// The server has closed the connection over a message. That message is given up where it was the only one under way; from
    /// here on one goes at a time, until as many went well as were in line.
    fn look_for_violator(&mut self, connection: ConnectionId, violation: &Violation, streamer: &mut Streamer) {
        let link = &mut self.groups[connection.group.0].links[connection.link];
        let under_way: Vec<_> = link.lanes.iter().filter(|lane| streamer.lane(lane.0).has_begun()).collect();
        if let ([lane], true) = (&under_way[..], link.careful > 0) {
            let reason = format!("the server closes the connection over it: {}", violation.text);
            streamer.lane_mut(lane.0).reject_first(reason, violation.is_size);
        }
        let in_line: usize = link.lanes.iter().map(|lane| streamer.lane(lane.0).len()).sum();
        link.careful = link.careful.max(in_line).max(1);
    }

    /// The connection's user may not do something. With one lane on it that is what the lane does; with several, which of them it
    /// is about shows in what gets no answer.
    pub(super) fn forbidden(
        &mut self,
        connection: ConnectionId,
        refusal: Error,
        target: &str,
        streamer: &mut Streamer,
    ) -> Result<bool> {
        let link = &mut self.groups[connection.group.0].links[connection.link];
        if let [_] = link.lanes[..] {
            self.lost(connection, refusal.context(format!("publish at {target}")), None, streamer)?;
            return Ok(true);
        }
        link.forbidden = Some(Forbidden::of(&refusal));
        Ok(false)
    }

    /// The server takes larger or only smaller messages: the lanes are opened again, by the new limit.
    pub(super) fn limit_changed(&mut self, connection: ConnectionId, limit: usize, streamer: &Streamer) {
        let link = &mut self.groups[connection.group.0].links[connection.link];
        if let Some(server) = &mut link.server {
            server.max_payload = limit;
        }
        for lane in &link.lanes {
            let text = format!(
                "stream {:?}: the server takes messages of at most {limit} bytes from now on (max_payload)",
                streamer.lane(lane.0).stream()
            );
            self.lanes[lane.0].trouble.get_or_insert_with(|| Error::unavailable(text));
        }
    }
}
