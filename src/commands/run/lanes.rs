//! The lanes' connections: what the driver decides ([`crate::flow::driver`]), done on real servers.
//!
//! In: the driver's actions, and what sockets, servers and the clock give. Out: events for the driver. Decides nothing but in which
//! order sockets are looked at. What takes its time is a task ([`tasks`]), bytes are moved in [`exchange`], what is asked before a
//! lane is opened is in [`open`]; log lines and the last failures for the status are in [`reports`].

mod exchange;
pub mod open;
mod reports;
mod tasks;

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    consumers::Source,
    faults::{self, Point},
};
use crate::{
    calendar::POSTGRES_EPOCH_US,
    commands::{
        backoff::BACKOFF,
        identity::{self, Runs},
    },
    config::Config,
    error::{Error, Result},
    flow::{
        delay::Due,
        driver::{
            Action, ConnectionId, Driver, Event, GroupId, Moment, Question, Report, Settings, StreamId, Timing,
            Violation,
            trust::{Checkpoint, Fork, Retention, RunIdentity},
        },
        lane::{Lane, Timestamps},
        streamer::Streamer,
    },
    nats::{control::Control, publish::Publisher, streams, tail},
    postgres,
    route::{payload::write_timestamp, tables::ServerAlias},
    wal::lsn::Lsn,
};
use exchange::Ended;
use reports::Reports;
use tasks::{Connected, Outcome, Work};

/// All lanes' connections.
pub struct Lanes {
    driver: Driver,
    /// By the driver's groups.
    groups: Vec<Connections>,
    /// By lane: the connection by which its stream is asked before it is opened.
    asking: Vec<Option<Control>>,
    works: Vec<Work>,
    /// When the driver is to be asked again.
    timer: Option<(Moment, Pin<Box<Sleep>>)>,
    reports: Reports,
    identity: Identity,
    /// The process's own settings.
    config: Config,
    /// The steady clock's zero.
    began: Instant,
}

/// The connections of one group.
#[derive(Default)]
struct Connections {
    /// For JetStream's API.
    api: Option<Control>,
    publishers: Vec<Option<Publisher>>,
    /// When the last connection was made, in seconds since 1970.
    since: Option<u64>,
}

/// What tells a message of ours, and of this run.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The name of the feed.
    pub source: String,
    /// The database.
    pub database: identity::Identity,
    /// This run, among those that the database knows.
    pub run_id: String,
    /// The runs that the database knew before this one.
    pub runs: Arc<Runs>,
    /// To note there what cannot be noted in NATS.
    pub postgres: postgres::Settings,
    /// The count of this run.
    pub epoch: u64,
    /// Where PostgreSQL's history parted from another one.
    pub fork: Option<Fork>,
}

impl Identity {
    /// What the driver knows of it.
    pub fn run(&self) -> RunIdentity {
        let Identity { source, epoch, fork, database, .. } = self;
        RunIdentity { source: source.clone(), epoch: *epoch, fork: *fork, is_upgraded: database.is_upgraded }
    }
}

impl Lanes {
    /// No connection yet; the first [`Lanes::poll`] begins.
    pub fn new(identity: Identity, config: &Config, server_wal: Lsn, checkpoints: Vec<Checkpoint>) -> Lanes {
        let driver = Driver::new(Settings {
            run: identity.run(),
            timing: Timing::with(config.ack_timeout, BACKOFF),
            delays_confirming: !config.confirm_delay.is_zero(),
            server_wal,
            checkpoints,
            seed: fastrand::u64(..),
        });
        Lanes {
            driver,
            groups: Vec::new(),
            asking: Vec::new(),
            works: Vec::new(),
            timer: None,
            reports: Reports::default(),
            identity,
            config: config.clone(),
            began: Instant::now(),
        }
    }

    /// Sends, takes answers, and does what the driver decides. Ready when a lane was opened or gave something up, and, if `eager`,
    /// whenever an answer came. Cancel-safe: all state is in `self`.
    ///
    /// # Errors
    /// What only the operator can end: a stream that cannot be trusted, a newer run, no permission.
    pub fn poll(&mut self, cx: &mut Context<'_>, streamer: &mut Streamer, eager: bool) -> Poll<Result<()>> {
        if self.driver.is_behind(streamer) {
            faults::reach(Point::Reload)?;
        }
        let micros = u64::try_from(self.began.elapsed().as_micros()).expect("some hundred thousand years");
        let now = Moment(micros);
        streamer.set_time(Timestamps { wall: postgres::now(), steady: micros });
        self.handle(now, Event::Round, streamer)?;
        // What was begun has to be polled once, to wake us.
        while self.poll_groups(cx, now, streamer, eager)? {}
        #[cfg(feature = "otlp")]
        for index in 0..streamer.lane_count() {
            let lane = streamer.lane_mut(index);
            for traced in lane.take_traced() {
                crate::commands::otlp::acknowledged(&traced, &self.identity.source, lane.stream());
            }
        }
        if self.driver.take_notable() {
            return Poll::Ready(Ok(()));
        }
        self.poll_timer(cx);
        Poll::Pending
    }

    /// One round of all groups. Returns whether there is more to do at once.
    fn poll_groups(&mut self, cx: &mut Context<'_>, now: Moment, streamer: &mut Streamer, eager: bool) -> Result<bool> {
        let mut moved = false;
        for group in (0..self.driver.group_count()).map(GroupId) {
            moved |= self.handle(now, Event::Turn(group), streamer)?;
            for connection in self.driver.connections(group) {
                moved |= self.exchange(cx, now, connection, streamer)?;
                moved |= self.handle(now, Event::Exchanged { connection, eager }, streamer)?;
            }
        }
        Ok(moved | self.poll_works(cx, now, streamer)?)
    }

    /// Gives the driver an event, and does what it says. Returns whether it is worth while to look at all again.
    fn handle(&mut self, now: Moment, event: Event, streamer: &mut Streamer) -> Result<bool> {
        let moved = self.driver.handle(now, event, streamer)?;
        self.execute(streamer);
        Ok(moved)
    }

    fn execute(&mut self, streamer: &Streamer) {
        while let Some(action) = self.driver.next_action() {
            match action {
                Action::Connect { group, wants_api, connections } => {
                    let missing = connections.into_iter().map(|(connection, lanes)| {
                        let inboxes = lanes.iter().map(|&lane| exchange::inbox(lane, streamer)).collect();
                        (connection, lanes, inboxes)
                    });
                    let row = self.driver.row(group).clone();
                    let overrides = self.config.overrides_of(&row.config_name);
                    self.begin(tasks::connect(group, row, overrides, wants_api, missing.collect()));
                }
                Action::Disconnect(group) => {
                    let Connections { api, publishers, .. } = self.connections_mut(group);
                    *api = None;
                    publishers.clear();
                }
                Action::CloseApi(group) => self.connections_mut(group).api = None,
                Action::Close(connection) => {
                    if let Some(publisher) = self.publisher_mut(connection) {
                        *publisher = None;
                    }
                }
                Action::Subscribe(connection, lane) => {
                    if let Some(Some(publisher)) = self.publisher_mut(connection) {
                        publisher.subscribe(&exchange::inbox(lane, streamer));
                    }
                }
                Action::AskRuns(group) => {
                    if let Some(control) = self.connections_mut(group).api.clone() {
                        self.begin(tasks::ask_runs(group, control, self.identity.clone()));
                    }
                }
                Action::Ask(lane, question) => self.ask_stream(lane, *question),
                Action::Store(lane, number) => self.store(lane, number, streamer),
                Action::StoreSchema(lane, nth) => self.store_schema(lane, nth, streamer),
                Action::Abandon(task) => self.works.retain(|work| work.task != task),
                Action::Report(report) => self.tell(report, streamer),
            }
        }
    }

    fn begin(&mut self, work: Work) {
        self.works.retain(|other| other.task != work.task);
        self.works.push(work);
    }

    fn ask_stream(&mut self, lane: StreamId, question: Question) {
        if matches!(question, Question::OtherRuns) {
            let group = self.driver.group_of_stream(lane);
            let control = group.and_then(|group| self.connections_mut(group).api.clone());
            if self.asking.len() <= lane.0 {
                self.asking.resize_with(lane.0 + 1, || None);
            }
            self.asking[lane.0] = control;
        }
        // All questions of an opening go by one connection, whatever becomes of it for others.
        if let Some(control) = self.asking.get_mut(lane.0).and_then(Option::take) {
            self.begin(tasks::ask(lane, question, control, self.identity.clone()));
        }
    }

    fn store(&mut self, lane: StreamId, number: u64, streamer: &Streamer) {
        let Some(group) = self.driver.group_of_stream(lane) else { return };
        let Some(control) = self.connections_mut(group).api.clone() else { return };
        let row = self.driver.row(group);
        if let Some(work) = tasks::store(lane, number, row, control, &self.identity, streamer) {
            self.begin(work);
        }
    }

    fn store_schema(&mut self, lane: StreamId, nth: u64, streamer: &Streamer) {
        let Some(group) = self.driver.group_of_stream(lane) else { return };
        let Some(control) = self.connections_mut(group).api.clone() else { return };
        let row = self.driver.row(group);
        if let Some(work) = tasks::store_schema(lane, nth, row, control, &self.identity, streamer) {
            self.begin(work);
        }
    }

    fn tell(&mut self, report: Report, streamer: &Streamer) {
        let publisher = match &report {
            Report::Opened { connection, .. } | Report::CoreOpened(_, connection) => Some(*connection),
            _ => None,
        };
        let publisher = publisher.and_then(|at| self.groups.get(at.group.0)?.publishers.get(at.link)?.as_ref());
        self.reports.take(report, &self.driver, streamer, &self.identity.source, publisher);
    }

    fn connections_mut(&mut self, group: GroupId) -> &mut Connections {
        if self.groups.len() <= group.0 {
            self.groups.resize_with(group.0 + 1, Connections::default);
        }
        &mut self.groups[group.0]
    }

    fn publisher_mut(&mut self, connection: ConnectionId) -> Option<&mut Option<Publisher>> {
        self.groups.get_mut(connection.group.0)?.publishers.get_mut(connection.link)
    }

    /// Tasks that have ended become events. Returns whether some have.
    fn poll_works(&mut self, cx: &mut Context<'_>, now: Moment, streamer: &mut Streamer) -> Result<bool> {
        let (mut moved, mut at) = (false, 0);
        while let Some(work) = self.works.get_mut(at) {
            let Poll::Ready(outcome) = work.future.as_mut().poll(cx) else {
                at += 1;
                continue;
            };
            drop(self.works.swap_remove(at));
            let event = self.event_of(outcome);
            self.handle(now, event, streamer)?;
            // Others may have been begun or abandoned by it.
            (moved, at) = (true, 0);
        }
        Ok(moved)
    }

    fn event_of(&mut self, outcome: Outcome) -> Event {
        match outcome {
            Outcome::Event(event) => {
                if let Event::Stored { lane, outcome: Ok(_), .. } = &event {
                    self.reports.stored(*lane);
                }
                event
            }
            Outcome::Replied(lane, control, event) => {
                self.asking[lane.0] = Some(control);
                event
            }
            Outcome::Connected(group, Err(error)) => Event::NotConnected(group, error),
            Outcome::Connected(group, Ok(Connected { control, publishers, warnings })) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                let has_api = control.is_some();
                let here = self.connections_mut(group);
                here.since = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
                here.api = control.or(here.api.take());
                let mut connections = Vec::new();
                for (connection, publisher, lanes) in publishers {
                    if here.publishers.len() <= connection.link {
                        here.publishers.resize_with(connection.link + 1, || None);
                    }
                    connections.push((connection, tasks::facts(&publisher), lanes));
                    here.publishers[connection.link] = Some(publisher);
                }
                Event::Connected { group, has_api, connections }
            }
        }
    }

    /// Moves bytes on a connection that stands. Returns whether there is more to do at once.
    fn exchange(
        &mut self,
        cx: &mut Context<'_>,
        now: Moment,
        connection: ConnectionId,
        streamer: &mut Streamer,
    ) -> Result<bool> {
        let publishers = self.groups.get_mut(connection.group.0).map(|group| &mut group.publishers);
        let publisher = publishers.and_then(|publishers| publishers.get_mut(connection.link)?.as_mut());
        let Some(publisher) = publisher else { return Ok(false) };
        match exchange::exchange(cx, now, &mut self.driver, connection, publisher, streamer) {
            Ok(again) => {
                self.execute(streamer);
                Ok(again)
            }
            Err(Ended::Run(error)) => Err(error),
            Err(Ended::Lost(error)) => {
                let violation = publisher.violation();
                let violation =
                    violation.map(|violation| Violation { is_size: violation.is_size, text: violation.text.clone() });
                self.handle(now, Event::Lost { connection, error, violation }, streamer)?;
                Ok(true)
            }
        }
    }

    /// Has us woken when the driver is to be asked again.
    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        let Some(at) = self.driver.wakes_at() else {
            self.timer = None;
            return;
        };
        if self.timer.as_ref().is_none_or(|(due, _)| *due != at) {
            self.timer = Some((at, Box::pin(sleep_until(self.began + Duration::from_micros(at.0)))));
        }
        if let Some((_, sleep)) = &mut self.timer
            && sleep.as_mut().poll(cx).is_ready()
        {
            self.timer = None;
            cx.waker().wake_by_ref();
        }
    }

    /// The connection for the JetStream API of a lane's servers, while there is one.
    pub fn control(&self, index: usize) -> Option<&Control> {
        self.control_of(self.driver.group_of_stream(StreamId(index))?)
    }

    fn control_of(&self, group: GroupId) -> Option<&Control> {
        self.api(group).filter(|_| !self.driver.is_core(group))
    }

    fn api(&self, group: GroupId) -> Option<&Control> {
        self.groups.get(group.0)?.api.as_ref()
    }

    /// The connections for the JetStream API that there are at present, by configuration.
    pub fn controls(&self) -> HashMap<i32, Control> {
        let controls = self.driver.groups().filter_map(|group| Some((group, self.control_of(group)?)));
        controls.map(|(group, control)| (self.driver.row(group).config_id, control.clone())).collect()
    }

    /// Connections to the buckets of configurations that publish to core NATS, by configuration.
    pub fn witnesses(&self) -> HashMap<i32, Control> {
        let groups = self.driver.groups().filter(|&group| self.driver.has_bucket(group));
        groups.filter_map(|group| Some((self.driver.row(group).config_id, self.api(group)?.clone()))).collect()
    }

    /// Connections to the accounts that events go to, once it is known that no other run streams there.
    pub fn answering(&self) -> Vec<Control> {
        let groups = self.driver.groups().filter(|&group| self.driver.answers_others(group));
        groups.filter_map(|group| self.api(group).cloned()).collect()
    }

    /// The streams that rows lead to, of a group.
    fn streams<'s>(&self, group: GroupId, streamer: &'s Streamer) -> impl Iterator<Item = &'s str> {
        let wanted = self.driver.lanes(group).iter().filter(|&&lane| self.driver.is_wanted(lane));
        wanted.map(|lane| streamer.lane(lane.0).stream())
    }

    /// The streams that events go to, by configuration.
    pub fn wanted_streams(&self, streamer: &Streamer) -> HashMap<i32, Vec<String>> {
        let mut streams: HashMap<i32, Vec<String>> = HashMap::new();
        for group in (0..self.driver.group_count()).map(GroupId).filter(|&group| !self.driver.is_core(group)) {
            let names = self.streams(group, streamer).map(str::to_owned);
            streams.entry(self.driver.row(group).config_id).or_default().extend(names);
        }
        streams
    }

    /// What decides, to be asked.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Asks the streams whether they have still what is due to be confirmed. `None` while some of them cannot be asked.
    pub fn ask(&self, streamer: &Streamer, due: &Due) -> Option<impl Future<Output = Result<bool>> + use<>> {
        let control = |lane: StreamId| self.control(lane.0).filter(|control| control.is_connected());
        let retentions = self.driver.retentions(streamer, due, |lane| control(lane).is_some())?;
        let asks = retentions.into_iter().map(|(lane, retention)| Some((control(lane)?.clone(), retention)));
        let asks = asks.collect::<Option<Vec<_>>>()?;
        let source = self.identity.source.clone();
        Some(async move {
            for (control, retention) in asks {
                match keeps(&control, &retention, &source).await {
                    Ok(Ok(())) => {}
                    Ok(Err(lost)) => return Err(lost),
                    Err(error) => {
                        tracing::debug!("before what is due is confirmed: {error}");
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        })
    }

    /// For each configuration: where it is connected and since when, or why not, and whether the slot waits for it.
    pub fn connections(&self, streamer: &Streamer) -> serde_json::Map<String, serde_json::Value> {
        let mut connections = serde_json::Map::new();
        for group in self.driver.groups() {
            let lanes = self.driver.lanes(group);
            let state = self.driver.group_state(group, streamer);
            let here = self.groups.get(group.0);
            let publishers = here.map_or(&[][..], |here| &here.publishers);
            let server = publishers.iter().find_map(Option::as_ref).filter(|_| state.is_up);
            let (name, text) = self.reports.of_group(group);
            let of_lanes = || lanes.iter().map(|&lane| self.reports.of_lane(lane));
            let refuses =
                |lane: &StreamId| self.reports.of_lane(*lane).0.is_some() && !streamer.lane(lane.0).is_empty();
            let connection = serde_json::json!({
                "server": server.map(Publisher::target),
                "connected": state.is_up,
                "connected_since": here.and_then(|here| here.since).filter(|_| state.is_up).map(timestamp),
                "last_error": text.or_else(|| of_lanes().find_map(|(_, text)| text)),
                "finding": name.or_else(|| of_lanes().find_map(|(name, _)| name)),
                "given_up": state.given_up,
                "holds_slot": state.holds_slot,
                // Between two attempts a stream that refuses is open for a moment.
                "refuses": lanes.iter().any(refuses),
                "falls_back": lanes.iter().filter_map(|&lane| self.driver.falls_back(lane)).collect::<Vec<_>>(),
            });
            // A configuration that was switched between JetStream and core NATS has two; the one that is down tells more.
            let name = self.driver.row(group).config_name.clone();
            let entry = connections.entry(name).or_insert_with(|| connection.clone());
            if !state.is_up {
                *entry = connection;
            }
        }
        connections
    }

    /// The same for the status, with what changes all the time: how many events are not settled.
    pub fn report(&self, streamer: &Streamer) -> serde_json::Value {
        let mut connections = self.connections(streamer);
        for group in self.driver.groups() {
            let Some(connection) = connections.get_mut(&self.driver.row(group).config_name) else { continue };
            let unsettled: usize = self.driver.lanes(group).iter().map(|lane| streamer.lane(lane.0).len()).sum();
            let counted = connection["unsettled"].as_u64().unwrap_or(0);
            connection["unsettled"] = (counted + unsettled as u64).into();
        }
        connections.into()
    }

    /// The streams that rows lead to, with a connection to ask about them: those of the configuration "default" first,
    /// then by the order of the configurations.
    pub fn sources(&self, streamer: &Streamer) -> Vec<Source> {
        let mut groups: Vec<_> = (0..self.driver.group_count()).map(GroupId).collect();
        groups.sort_by_key(|&group| {
            let row = self.driver.row(group);
            (row.config_name != "default", row.config_id)
        });
        let sources = groups.into_iter().filter_map(|group| Some((group, self.control_of(group)?)));
        let sources = sources.flat_map(|(group, control)| {
            self.streams(group, streamer).map(move |stream| Source {
                config_name: self.driver.row(group).config_name.clone(),
                stream: stream.to_owned(),
                control: control.clone(),
            })
        });
        sources.collect()
    }

    /// The next pair of addresses that were found to lead to one server, to be written for later sessions.
    pub fn take_met(&mut self) -> Option<ServerAlias> {
        self.driver.take_met()
    }

    /// Lanes that hold something and are not open, by their streams' names.
    pub fn closed<'s>(&self, streamer: &'s Streamer) -> impl Iterator<Item = &'s str> {
        let lanes = (0..streamer.lane_count()).map(|index| streamer.lane(index));
        lanes.filter(|lane| !lane.is_open() && !lane.is_empty()).map(Lane::stream)
    }
}

/// ISO 8601 of a number of seconds since 1970.
fn timestamp(seconds: u64) -> String {
    let mut text = String::new();
    write_timestamp(i64::try_from(seconds).unwrap_or(i64::MAX / 2_000_000) * 1_000_000 - POSTGRES_EPOCH_US, &mut text);
    text
}

/// Whether the stream has this event still where it was, or the error that shows that it has not; the outer one where it cannot be
/// asked.
async fn keeps(control: &Control, retention: &Retention, source: &str) -> Result<Result<(), Error>> {
    let state = streams::state(control, &retention.stream).await?;
    match retention.look_at(state.created_ns, state.first_sequence, state.last_sequence) {
        Err(lost) => Ok(Err(lost)),
        Ok(None) => Ok(Ok(())),
        Ok(Some(sequence)) => {
            let there = tail::message(control, &retention.stream, sequence).await?;
            Ok(retention.judge(there.map(|there| open::position_of(&there, source))))
        }
    }
}
