//! The lanes' connections: opened, driven, and opened again after whatever went wrong.
//!
//! For each configuration: its connections ([`connection`]). For each lane of the streamer: make its stream what the row
//! says, read the stream's tail, open the lane behind it ([`open`]); then move bytes out and acks in. One remedy for
//! every failure: close the lane, let the answers settle, read the tail, go on after it from the window. A configuration
//! that cannot be reached keeps its own lanes waiting, and the slot; the lanes of others flow.

mod claim_check;
mod connection;
mod driver;
mod inquiry;
pub mod open;
mod servers;

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    consumers::Source,
    faults::{self, Point},
    rules::Found,
    state_store::{Checkpoint, Fork},
};
use crate::{
    calendar::POSTGRES_EPOCH_US,
    commands::{
        backoff::Backoff,
        identity::{self, Runs},
    },
    config::Config,
    error::{Error, Kind, Result},
    flow::{
        delay::{Due, Retained, sequence_of},
        event_id::EventPosition,
        lane::{Lane, Ordering, Tail, Timestamps},
        streamer::{LaneSettings, Streamer},
    },
    nats::{
        control::{Control, NoJetStream},
        handshake, streams, tail,
    },
    postgres,
    route::{
        payload::write_timestamp,
        tables::{ConfigRow, ServerAlias},
    },
    wal::lsn::Lsn,
};
use connection::Group;
use driver::{Driver, Phase};
use open::{Known, Opened, TailTrust};

/// How long answers that are under way may take to come in before the tail is read without them.
const SETTLE: Duration = Duration::from_secs(1);

/// How much longer than an answer may take a lane may stand still before others do not wait for it any more.
const AWAY: Duration = Duration::from_secs(5);

/// All lanes' connections.
pub struct Lanes {
    drivers: Vec<Driver>,
    groups: Vec<Group>,
    identity: Identity,
    /// The process's own settings.
    config: Config,
    ack_timeout: Duration,
    /// What is acknowledged stays in the slot for a while.
    delays_confirming: bool,
    /// What the server had written when the session began: no tail of ours is beyond it and what came since.
    server_wal: Lsn,
    /// Where earlier runs saw the streams stand.
    checkpoints: Vec<Checkpoint>,
    generation: u64,
    /// A lane was opened or gave something up.
    is_notable: bool,
    /// How often no answer came in time, and how often a publishing connection was lost.
    timeouts: u64,
    losses: u64,
    /// The steady clock's zero.
    began: Instant,
    /// See [`Lanes::find_siblings`].
    siblings: Vec<(usize, Vec<usize>)>,
    /// See [`Lanes::alias`].
    alias: Option<(ServerAlias, Found, String)>,
    /// Pairs of addresses that were found to lead to one server in this session, and how many of them were written.
    met: Vec<ServerAlias>,
    met_written: usize,
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

impl Lanes {
    /// No connection yet; the first [`Lanes::poll`] begins.
    pub fn new(identity: Identity, config: &Config, server_wal: Lsn, checkpoints: Vec<Checkpoint>) -> Lanes {
        Lanes {
            drivers: Vec::new(),
            groups: Vec::new(),
            identity,
            config: config.clone(),
            ack_timeout: config.ack_timeout,
            delays_confirming: !config.confirm_delay.is_zero(),
            server_wal,
            checkpoints,
            generation: 0,
            is_notable: false,
            timeouts: 0,
            losses: 0,
            began: Instant::now(),
            siblings: Vec::new(),
            alias: None,
            met: Vec::new(),
            met_written: 0,
        }
    }

    /// Sends, takes answers, mends. Ready when a lane was opened or gave something up, and, if `eager`, whenever an
    /// answer came. Cancel-safe: all state is in `self`.
    ///
    /// # Errors
    /// What nobody but the operator can mend: a stream that cannot be trusted, a newer run, no permission.
    pub fn poll(&mut self, cx: &mut Context<'_>, streamer: &mut Streamer, eager: bool) -> Poll<Result<()>> {
        self.follow(streamer)?;
        streamer.set_time(Timestamps {
            wall: postgres::now(),
            steady: u64::try_from(self.began.elapsed().as_micros()).expect("some hundred thousand years"),
        });
        let patience = self.ack_timeout + AWAY;
        for (index, driver) in self.drivers.iter_mut().enumerate() {
            let lane = streamer.lane_mut(index);
            lane.set_away(driver.stands_still(lane) >= patience);
        }
        self.give_turns(streamer);
        for group in &mut self.groups {
            group.in_line = group.lanes.iter().map(|&index| self.drivers[index].in_line).sum();
        }
        for at in 0..self.groups.len() {
            // What was begun has to be polled once, to wake us.
            while self.poll_group(cx, at, streamer, eager)? {}
        }
        #[cfg(feature = "otlp")]
        for index in 0..streamer.lane_count() {
            let lane = streamer.lane_mut(index);
            for traced in lane.take_traced() {
                crate::commands::otlp::acknowledged(&traced, &self.identity.source, lane.stream());
            }
        }
        if std::mem::take(&mut self.is_notable) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// The connection for the JetStream API of a lane's servers, while there is one.
    pub fn control(&self, index: usize) -> Option<&Control> {
        let group = self.drivers.get(index)?.group?;
        self.groups[group].control.as_ref()
    }

    /// The connections for the JetStream API that there are at present, by configuration.
    pub fn controls(&self) -> HashMap<i32, Control> {
        let groups = self.groups.iter().filter(|group| group.in_use);
        groups.filter_map(|group| Some((group.row.config_id, group.control.clone()?))).collect()
    }

    /// Connections to the buckets of configurations that publish to core NATS, by configuration.
    pub fn witnesses(&self) -> HashMap<i32, Control> {
        let groups = self.groups.iter().filter(|group| group.in_use && group.is_core);
        groups.filter_map(|group| Some((group.row.config_id, group.inquiry.witness().cloned()?))).collect()
    }

    /// Connections to the accounts that events go to, once it is known that no other run streams there.
    pub fn answering(&self) -> Vec<Control> {
        let groups = self.groups.iter().filter(|group| group.in_use && group.is_asked);
        groups.filter_map(|group| group.control.as_ref().or(group.inquiry.connection()).cloned()).collect()
    }

    /// The streams that events go to, by configuration.
    pub fn wanted_streams(&self, streamer: &Streamer) -> HashMap<i32, Vec<String>> {
        let mut streams: HashMap<i32, Vec<String>> = HashMap::new();
        for group in self.groups.iter().filter(|group| !group.is_core) {
            let wanted = group.lanes.iter().filter(|&&index| self.drivers[index].is_wanted);
            let names = wanted.map(|&index| streamer.lane(index).stream().to_owned());
            streams.entry(group.row.config_id).or_default().extend(names);
        }
        streams
    }

    /// How often such connections were made: when it changes, there are others.
    pub fn connected_times(&self) -> u64 {
        self.groups.iter().map(|group| group.connected_times).sum()
    }

    /// Where the streams stand, as far as acks have told, and what they have to keep once that is confirmed which is `due`.
    pub fn checkpoints(&self, streamer: &Streamer, due: Option<&Due>) -> Vec<Checkpoint> {
        let drivers = self.drivers.iter().enumerate();
        let stands = drivers.filter_map(|(index, driver)| {
            let stands = driver.stands(streamer.lane(index))?;
            let due = due.and_then(|due| due.kept.get(index)).map_or(0, sequence_of);
            Some(Checkpoint { retained_through: stands.retained_through.map(|kept| kept.max(due)), ..stands })
        });
        stands.collect()
    }

    /// Asks the streams whether they have still what is due to be confirmed: a server that is dead does not say that it has lost
    /// something. `None` while some of them cannot be asked.
    pub fn ask(&self, streamer: &Streamer, due: &Due) -> Option<impl Future<Output = Result<bool>> + use<>> {
        let ask = |&index: &usize| {
            let control = self.control(index).filter(|control| control.is_connected())?.clone();
            let (lane, driver) = (streamer.lane(index), &self.drivers[index]);
            let (created_ns, is_retired) = (driver.created_ns, matches!(driver.phase, Phase::Absent));
            (lane.is_open() || is_retired).then(|| (control, lane.stream().to_owned(), created_ns, due.kept[index]))
        };
        let asks = due.news.iter().map(ask).collect::<Option<Vec<_>>>()?;
        let source = self.identity.source.clone();
        Some(async move {
            for (control, stream, created_ns, kept) in asks {
                match keeps(&control, &stream, created_ns, kept, &source).await {
                    Ok(None) => {}
                    Ok(Some(lost)) => return Err(Error::unavailable(lost)),
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
        for group in self.groups.iter().filter(|group| group.in_use) {
            let lanes = || group.lanes.iter().map(|&index| (&self.drivers[index], streamer.lane(index)));
            let is_up = lanes().all(|(driver, _)| driver.is_on_line() || matches!(driver.phase, Phase::Absent));
            let holds_slot = lanes().any(|(driver, lane)| !driver.is_on_line() && !lane.is_empty());
            let server = group.links.iter().find_map(|link| link.publisher()).filter(|_| is_up);
            let connection = serde_json::json!({
                "server": server.map(|publisher| publisher.target()),
                "connected": is_up,
                "connected_since": group.since.filter(|_| is_up).map(timestamp),
                "last_error": group.logged.text().or_else(|| lanes().find_map(|(driver, _)| driver.logged.text())),
                "finding": group.logged.name().or_else(|| lanes().find_map(|(driver, _)| driver.logged.name())),
                "given_up": group.given_up,
                "holds_slot": holds_slot,
                // Between two attempts a stream that refuses is open for a moment.
                "refuses": lanes().any(|(driver, lane)| driver.logged.name().is_some() && !lane.is_empty()),
                "falls_back": lanes().filter_map(|(driver, _)| driver.falls_back.as_ref()).collect::<Vec<_>>(),
            });
            // A configuration that was switched between JetStream and core NATS has two; the one that is down tells more.
            let entry = connections.entry(group.row.config_name.clone()).or_insert_with(|| connection.clone());
            if !is_up {
                *entry = connection;
            }
        }
        connections
    }

    /// The same for the status, with what changes all the time: how many events are not settled.
    pub fn report(&self, streamer: &Streamer) -> serde_json::Value {
        let mut connections = self.connections(streamer);
        for group in self.groups.iter().filter(|group| group.in_use) {
            let Some(connection) = connections.get_mut(&group.row.config_name) else { continue };
            let unsettled: usize = group.lanes.iter().map(|&index| streamer.lane(index).len()).sum();
            let counted = connection["unsettled"].as_u64().unwrap_or(0);
            connection["unsettled"] = (counted + unsettled as u64).into();
        }
        connections.into()
    }

    /// What went wrong with publishing, by JetStream's code or a word, and how often.
    pub fn publish_errors(&self) -> BTreeMap<String, u64> {
        let mut errors =
            BTreeMap::from([("timeout".to_owned(), self.timeouts), ("connection".to_owned(), self.losses)]);
        for (code, count) in self.drivers.iter().flat_map(|driver| &driver.refusals) {
            let code = if *code == connection::NO_RESPONDERS { "no_responders".to_owned() } else { code.to_string() };
            *errors.entry(code).or_default() += count;
        }
        errors
    }

    /// The streams that rows lead to, with a connection to ask about them: those of the configuration "default" first,
    /// then by the order of the configurations.
    pub fn sources(&self, streamer: &Streamer) -> Vec<Source> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|group| (group.row.config_name != "default", group.row.config_id));
        let sources = groups.into_iter().filter_map(|group| Some((group, group.control.as_ref()?)));
        let sources = sources.flat_map(|(group, control)| {
            let lanes = group.lanes.iter().filter(|&&index| self.drivers[index].is_wanted);
            lanes.map(move |&index| Source {
                config_name: group.row.config_name.clone(),
                stream: streamer.lane(index).stream().to_owned(),
                control: control.clone(),
            })
        });
        sources.collect()
    }

    /// Whether events wait for a stream that takes none of them.
    pub fn has_trouble(&self, streamer: &Streamer) -> bool {
        let is_stuck = |driver: &Driver| driver.backoff.failures > 0 || !driver.is_on_line();
        let mut drivers = self.drivers.iter().enumerate();
        drivers.any(|(index, driver)| is_stuck(driver) && !streamer.lane(index).is_empty())
    }

    /// Lanes that hold something and are not open, by their streams' names.
    pub fn closed<'s>(&self, streamer: &'s Streamer) -> impl Iterator<Item = &'s str> {
        let lanes = (0..self.drivers.len()).map(|index| streamer.lane(index));
        lanes.filter(|lane| !lane.is_open() && !lane.is_empty()).map(Lane::stream)
    }

    /// New lanes get a driver; lanes whose rows have changed are opened anew.
    fn follow(&mut self, streamer: &mut Streamer) -> Result<()> {
        if self.generation == streamer.generation() {
            return Ok(());
        }
        faults::reach(Point::Reload)?;
        self.generation = streamer.generation();
        for index in 0..streamer.lane_count() {
            let settings = streamer.lane_settings(index);
            if index == self.drivers.len() {
                let servers = &streamer.lane_key(index).servers;
                let known = settings.as_ref().and_then(|LaneSettings { config, stream, .. }| {
                    let aliases = &streamer.tables().aliases;
                    open::checkpoint_of(&self.checkpoints, aliases, config, &stream.stream_name, servers)
                });
                let known = known.cloned();
                self.drivers.push(Driver::new(servers, known));
            }
            let driver = &mut self.drivers[index];
            driver.is_wanted = streamer.lane_is_wanted(index);
            let Some(settings) = settings else { continue };
            let is_at_rest = matches!(driver.phase, Phase::Absent) && streamer.lane(index).is_at_rest();
            let is_known = driver.settings.is_some() && !matches!(driver.phase, Phase::Absent);
            let is_as_known = driver
                .settings
                .as_ref()
                .is_some_and(|known| known.config.says_the_same(&settings.config) && known.stream == settings.stream);
            if !driver.is_wanted && ((is_known && is_as_known) || is_at_rest) {
                // Rows that are gone leave the lane to drain as it is, by the newest way into its server. They may have come
                // and gone in one moment, though, and left something in it.
                if let Some(known) = &mut driver.settings {
                    known.is_current = settings.is_current;
                }
                continue;
            }
            let at = self.group_of(index, &settings.config, streamer);
            let driver = &mut self.drivers[index];
            let stream_changed = driver.settings.as_ref().is_none_or(|known| known.stream != settings.stream);
            driver.settings = Some(settings);
            if matches!(driver.phase, Phase::Absent) {
                driver.wait(Duration::ZERO);
                self.groups[at].in_use = true;
            } else if stream_changed {
                driver.logged.forget();
                driver.backoff = Backoff::default();
                streamer.lane_mut(index).close();
                match driver.phase {
                    Phase::Running => driver.phase = Phase::Settling(Box::pin(sleep(SETTLE))),
                    Phase::Settling(_) => {}
                    Phase::Absent | Phase::Waiting(_) | Phase::Opening(_) => driver.wait(Duration::ZERO),
                }
            }
        }
        self.find_siblings(streamer);
        Ok(())
    }

    /// The group of a lane, which follows the row `config` from here on.
    fn group_of(&mut self, index: usize, config: &ConfigRow, streamer: &mut Streamer) -> usize {
        let is_core = streamer.lane(index).ordering() == Ordering::Core;
        let servers = &streamer.lane_key(index).servers;
        let is_its = |group: &Group| {
            group.row.config_id == config.config_id && group.is_core == is_core && group.servers == *servers
        };
        let at = self.groups.iter().position(is_its).unwrap_or_else(|| {
            let overrides = self.config.overrides_of(&config.config_name);
            self.groups.push(Group::new(config.clone(), servers.clone(), is_core, overrides));
            self.groups.len() - 1
        });
        let group = &mut self.groups[at];
        if !group.row.says_the_same(config) {
            group.replace(config.clone());
            for &index in &group.lanes {
                let (driver, lane) = (&mut self.drivers[index], streamer.lane_mut(index));
                lane.close();
                driver.logged.forget();
                driver.backoff = Backoff::default();
                if !matches!(driver.phase, Phase::Absent) {
                    driver.wait(Duration::ZERO);
                }
            }
        } else if group.row.revision != config.revision {
            group.row.revision = config.revision;
            if group.given_up {
                group.logged.forget();
                group.revive();
            }
        }
        if self.drivers[index].group.is_none() {
            self.groups[at].add(index, streamer);
            self.drivers[index].group = Some(at);
        }
        at
    }

    /// One round of a configuration. Returns whether something was begun that has to be polled.
    fn poll_group(&mut self, cx: &mut Context<'_>, at: usize, streamer: &mut Streamer, eager: bool) -> Result<bool> {
        self.rest(at, streamer);
        let mut moved = match self.groups[at].poll_connect(cx, streamer) {
            Ok(connected) => connected,
            Err(error) => {
                let error = self.explain_old_servers(at, streamer, error).context(self.groups[at].name(streamer));
                self.endure(error, |lanes, error| lanes.groups[at].failed(error))?;
                self.doubt_servers(at, streamer);
                // Lanes of core NATS may have waited for it.
                self.is_notable = true;
                true
            }
        };
        moved |= self.poll_inquiry(cx, at)?;
        for lane in 0..self.groups[at].lanes.len() {
            moved |= self.poll_opening(cx, at, self.groups[at].lanes[lane], streamer)?;
            moved |= self.poll_claim_check(cx, at, self.groups[at].lanes[lane], streamer)?;
        }
        // Before anything is sent: rows may have changed since.
        if !self.has_its_turn(at, streamer) {
            for &index in &self.groups[at].lanes {
                if matches!(self.drivers[index].phase, Phase::Running) {
                    streamer.lane_mut(index).close();
                    self.drivers[index].phase = Phase::Settling(Box::pin(sleep(SETTLE)));
                    moved = true;
                }
            }
            streamer.reject()?;
        }
        for link in 0..self.groups[at].links.len() {
            let Group { links, is_core, .. } = &mut self.groups[at];
            match links[link].exchange(cx, *is_core, streamer, &mut self.drivers) {
                Ok(again) => moved |= again,
                Err(error) => {
                    self.lost(at, link, streamer, error)?;
                    moved = true;
                }
            }
            for lane in 0..self.groups[at].links[link].lanes.len() {
                let index = self.groups[at].links[link].lanes[lane];
                if self.drivers[index].is_on_line() {
                    moved |= self.look_after(cx, at, link, index, streamer, eager)?;
                }
            }
        }
        Ok(moved)
    }

    /// A lane that is to be opened. Returns whether it has come further.
    fn poll_opening(&mut self, cx: &mut Context<'_>, at: usize, index: usize, streamer: &mut Streamer) -> Result<bool> {
        let is_waiting = matches!(self.drivers[index].phase, Phase::Waiting(_));
        if is_waiting && (!self.has_its_turn(at, streamer) || self.other_half_is_on_line(at)) {
            return Ok(false);
        }
        let is_core = self.groups[at].is_core;
        let is_held =
            is_waiting && if is_core { !self.may_open_core(at) } else { self.waits_for_twin(index, streamer) };
        let driver = &mut self.drivers[index];
        match &mut driver.phase {
            Phase::Absent | Phase::Running | Phase::Settling(_) => Ok(false),
            Phase::Waiting(_) if !driver.is_wanted && streamer.lane(index).is_at_rest() => {
                self.retire(at, index, streamer);
                Ok(false)
            }
            Phase::Waiting(until) => {
                let group = &self.groups[at];
                let Some(publisher) = group.links[group.link_of(index)].publisher() else { return Ok(false) };
                let info = publisher.info();
                let max_payload = info.max_payload;
                let (version, knows_batches) = (info.version.clone(), info.at_least(2, 12, 1));
                let shares_syncs = info.at_least(2, 15, 0);
                if is_held || (!group.is_core && group.control.is_none()) || until.as_mut().poll(cx).is_pending() {
                    return Ok(false);
                }
                let lane = streamer.lane(index);
                driver.known = driver.stands(lane).or(driver.known.take());
                match (&group.control, &driver.settings) {
                    (Some(control), Some(settings)) if !group.is_core => {
                        let known = Known {
                            config_name: settings.config.config_name.clone(),
                            created_ns: driver.known.as_ref().map(|known| known.created_ns),
                            server_wal: streamer.known_wal().max(self.server_wal),
                            listing: lane.listing(),
                            place: driver.known.as_ref().map(|known| (known.sequence, known.created_ns)),
                            max_payload,
                            version,
                            knows_batches,
                            shares_syncs,
                            batch_max: driver.batch_max,
                        };
                        let mut settings = settings.clone();
                        lane.mode_to_open().write(&mut settings.stream);
                        let opening = open::open(control.clone(), settings, self.identity.clone(), known);
                        driver.phase = Phase::Opening(Box::pin(opening));
                    }
                    _ => self.open_core(at, index, streamer, max_payload)?,
                }
                Ok(true)
            }
            Phase::Opening(opening) => match opening.as_mut().poll(cx).map(|opened| {
                let opened = opened?;
                self.meet(index, opened.created_ns, streamer).map(|()| opened)
            }) {
                Poll::Pending => Ok(false),
                // What the other half, or another lane, has sent meanwhile may not be in this tail.
                Poll::Ready(Ok(_)) if self.other_half_is_on_line(at) || self.waits_for_twin(index, streamer) => {
                    self.drivers[index].wait(Duration::ZERO);
                    Ok(true)
                }
                Poll::Ready(Ok(opened)) => self.opened(at, index, streamer, opened).map(|()| true),
                Poll::Ready(Err(error)) => {
                    streamer.lane_mut(index).close();
                    streamer.reject()?;
                    let error = error.context(format!("stream {:?}", streamer.lane(index).stream()));
                    let is_elsewhere = error.cause_as::<NoJetStream>().is_some();
                    let error = if is_elsewhere { self.explain_old_servers(at, streamer, error) } else { error };
                    self.endure(error, |lanes, error| {
                        let driver = &mut lanes.drivers[index];
                        driver.tell(error);
                        let wait = driver.backoff.next();
                        driver.wait(wait);
                        if error.is_retryable() {
                            // A new one reads files and certificates anew.
                            lanes.groups[at].control = None;
                        }
                    })?;
                    if is_elsewhere {
                        // A JetStream domain that was wrong is as an address that was.
                        self.doubt_servers(at, streamer);
                    }
                    Ok(true)
                }
            },
        }
    }

    /// The other half of a configuration that was switched between JetStream and core NATS. On one server core NATS may
    /// lead into the same streams, whose order wants no other writer: so one of them publishes at a time. Core NATS does not
    /// tell whether two addresses are one server, so they count as one.
    fn other_half(&self, at: usize) -> impl Iterator<Item = &Group> {
        let here = &self.groups[at];
        let is_its = |there: &&Group| there.is_core != here.is_core && there.row.config_id == here.row.config_id;
        self.groups.iter().filter(is_its)
    }

    fn other_half_is_on_line(&self, at: usize) -> bool {
        let mut others = self.other_half(at).flat_map(|other| &other.lanes);
        others.any(|&index| self.drivers[index].is_on_line())
    }

    /// Whether something is left in a group from before a switch. What an address has left that the same server had before is as
    /// what comes by its newer one.
    fn has_left(&self, group: &Group, streamer: &Streamer) -> bool {
        let is_same = |other: &&Group| other.is_core == group.is_core && self.are_one_server(group, other);
        let is_continued = |index: usize| {
            let mut others = self.groups.iter().filter(is_same).flat_map(|other| &other.lanes);
            let stream = streamer.lane(index).stream();
            others.any(|&other| self.drivers[other].is_wanted && streamer.lane(other).stream() == stream)
        };
        let is_left = |&index: &usize| {
            !self.drivers[index].is_wanted && !streamer.lane(index).is_at_rest() && !is_continued(index)
        };
        group.lanes.iter().any(is_left)
    }

    /// Whether it is this half's turn: first comes what is left from before the switch.
    fn has_its_turn(&self, at: usize, streamer: &Streamer) -> bool {
        // What the other half has sent may still be on its way into the stream.
        let is_under_way = |&index: &usize| self.drivers[index].is_on_line() && streamer.lane(index).awaits_answers();
        let mut others = self.other_half(at).flat_map(|other| &other.lanes);
        if others.any(is_under_way) {
            return false;
        }
        let here = &self.groups[at];
        let is_half = |group: &&Group| group.is_core == here.is_core && group.row.config_id == here.row.config_id;
        let mut halves = self.groups.iter().filter(is_half);
        !self.other_half(at).any(|other| self.has_left(other, streamer))
            || (!here.is_core && halves.any(|half| self.has_left(half, streamer)))
    }

    /// There is no tail to go on from: all that is in line is sent.
    fn open_core(&mut self, at: usize, index: usize, streamer: &mut Streamer, max_payload: usize) -> Result<()> {
        let lane = streamer.lane_mut(index);
        let subjects = vec![">".to_owned()];
        let (listing, listed) = (lane.listing(), Vec::new());
        lane.open(&Tail { last_sequence: 0, ours: None, listing, listed, subjects, max_payload, batch_max: 1 })?;
        let publisher = self.groups[at].links[0].publisher();
        tracing::info!(
            config = self.groups[at].row.config_name,
            server = publisher.map(|publisher| publisher.target()),
            nats = publisher.map(|publisher| publisher.info().version.as_str()),
            unsettled = lane.len(),
            "core NATS opened"
        );
        self.drivers[index].reached_core = true;
        self.drivers[index].phase = Phase::Running;
        self.is_notable = true;
        streamer.reject()
    }

    fn opened(&mut self, at: usize, index: usize, streamer: &mut Streamer, mut opened: Opened) -> Result<()> {
        if let Some((position, _)) = opened.tail.ours {
            streamer.expect_end(index, position)?;
        }
        let driver = &mut self.drivers[index];
        let lane = streamer.lane_mut(index);
        if let Some(known) = &driver.known {
            match open::trusted(&self.identity.source, known, opened.created_ns, &opened.tail) {
                // Removed since (purged, expired): the checkpoint knows what was there.
                Ok(TailTrust::Whole) => {
                    let is_newer = |(ours, _): &(EventPosition, u64)| known.position.is_at_or_before(ours);
                    if !opened.tail.ours.as_ref().is_some_and(is_newer) {
                        opened.tail.ours = Some((known.position, known.sequence));
                    }
                }
                Ok(TailTrust::SetBack) => opened.warnings.push(format!(
                    "it had taken message {} and ends at {} now: it has lost messages that it had acknowledged. They are younger than \
                     confirm_delay_seconds, so walhook reads them from the slot and publishes them again",
                    known.sequence, opened.tail.last_sequence
                )),
                Err(error) if opened.is_in_memory => {
                    opened.warnings.push(error.to_string());
                    lane.forget_last_stored();
                }
                Err(error) => return Err(error),
            }
        }
        driver.set_falls_back(opened.falls_back.take());
        for warning in opened.warnings {
            tracing::warn!(stream = lane.stream(), "{warning}");
        }
        if self.delays_confirming && lane.retained_through().is_none() {
            // What earlier runs have confirmed, or may have.
            let kept = driver.known.as_ref().and_then(|known| known.retained_through);
            lane.set_retained_through(kept.unwrap_or(opened.tail.ours.map_or(0, |(_, sequence)| sequence)));
        }
        let group = &mut self.groups[at];
        group.connected_times += u64::from(group.asked());
        let publisher = group.links[group.link_of(index)].publisher();
        lane.set_server_limit(publisher.map_or(0, |publisher| publisher.info().max_payload));
        lane.open(&opened.tail)?;
        tracing::info!(
            stream = lane.stream(),
            server = publisher.map(|publisher| publisher.target()),
            nats = publisher.map(|publisher| publisher.info().version.as_str()),
            last_sequence = opened.tail.last_sequence,
            tail = opened.tail.ours.map(|(position, _)| position.id(&self.identity.source)),
            unsettled = lane.len(),
            "stream opened"
        );
        driver.created_ns = opened.created_ns;
        driver.known = driver.stands(lane);
        driver.phase = Phase::Running;
        self.is_notable = true;
        streamer.reject()
    }

    /// A lane on its connection, after bytes and answers were moved. Returns whether something was begun.
    fn look_after(
        &mut self,
        cx: &mut Context<'_>,
        at: usize,
        link: usize,
        index: usize,
        streamer: &mut Streamer,
        eager: bool,
    ) -> Result<bool> {
        let (group, driver) = (&mut self.groups[at], &mut self.drivers[index]);
        if std::mem::take(&mut driver.answered) {
            self.is_notable |= eager;
            driver.backoff.failures = 0;
            driver.logged.forget();
            group.backoff.failures = 0;
            group.logged.forget();
        }
        let Phase::Settling(until) = &mut driver.phase else {
            return self.look_after_running(at, link, index, streamer);
        };
        // What is refused while it settles is seen in the tail.
        driver.trouble = None;
        let is_due = until.as_mut().poll(cx).is_ready();
        streamer.reject()?;
        let lane = streamer.lane(index);
        if !is_due && (lane.awaits_answers() || !lane.is_between_messages()) {
            return Ok(false);
        }
        if !lane.is_between_messages() {
            // Cut off within a message, a connection is of no more use.
            let error = Error::unavailable(format!("publish to {:?}: the server takes no more bytes", lane.stream()));
            self.lost(at, link, streamer, error)?;
            return Ok(true);
        }
        // The other half may have waited for this.
        self.is_notable = true;
        // At once the first time; a stream that goes on refusing is not to be hammered.
        let first = driver.backoff.failures == 0;
        let wait = driver.backoff.next();
        driver.wait(if first { Duration::ZERO } else { wait });
        Ok(true)
    }

    fn look_after_running(&mut self, at: usize, link: usize, index: usize, streamer: &mut Streamer) -> Result<bool> {
        let group = &self.groups[at];
        let lane = streamer.lane(index);
        // The messages that come next are in another mode, for which the stream's tail has to be read again; or another lane into the
        // same stream comes first.
        let yields = !lane.awaits_answers() && !self.comes_first(index, streamer);
        let driver = &mut self.drivers[index];
        if (!lane.is_open() || yields) && driver.trouble.is_none() {
            streamer.lane_mut(index).close();
            driver.phase = Phase::Settling(Box::pin(sleep(SETTLE)));
            return Ok(true);
        }
        // Its stream may still be asked for the history. Opened again, the lane reads the stream's end anew: the other half of its
        // configuration may publish meanwhile.
        if !driver.is_wanted && lane.is_at_rest() && lane.is_between_messages() {
            streamer.lane_mut(index).close();
            self.retire(at, index, streamer);
            return Ok(false);
        }
        let is_overdue = driver.trouble.is_none() && driver.is_overdue(lane, self.ack_timeout);
        let error = match driver.trouble.take() {
            Some(error) => error,
            None if !is_overdue => return Ok(false),
            None => {
                self.timeouts += 1;
                let link_state = &group.links[link];
                let attempted = format!("no answer from {:?} for {} ms", lane.stream(), self.ack_timeout.as_millis());
                let error = match link_state.forbidden() {
                    Some(text) => handshake::refusal(text).context(attempted),
                    None => Error::unavailable(attempted)
                        .hint("check JetStream's health; a publish that the account may not make also goes unanswered"),
                };
                // Unless others are answered on it, the connection may be dead without knowing it.
                if link_state.lanes.len() == 1 || !link_state.has_received(self.ack_timeout) {
                    self.lost(at, link, streamer, error)?;
                    return Ok(true);
                }
                error
            }
        };
        streamer.lane_mut(index).close();
        streamer.reject()?;
        self.is_notable = true;
        self.endure(error, |lanes, error| {
            let driver = &mut lanes.drivers[index];
            driver.tell(error);
            driver.phase = Phase::Settling(Box::pin(sleep(SETTLE)));
        })?;
        Ok(true)
    }

    /// Nothing leads to a lane any more, and nothing is in it.
    fn retire(&mut self, at: usize, index: usize, streamer: &Streamer) {
        self.drivers[index].phase = Phase::Absent;
        // Others may have waited for it.
        self.is_notable = true;
        self.rest(at, streamer);
    }

    /// With the last of its lanes a group ends its connections, unless one of their streams has to be asked for what it has: before
    /// more is confirmed, or for the sequences of rows of the history.
    fn rest(&mut self, at: usize, streamer: &Streamer) {
        let group = &mut self.groups[at];
        let is_at_rest = |&index: &usize| {
            let is_absent = matches!(self.drivers[index].phase, Phase::Absent);
            is_absent && streamer.lane(index).is_settled() && !streamer.is_to_be_asked(index)
        };
        if group.in_use && group.lanes.iter().all(is_at_rest) {
            group.in_use = false;
            group.disconnect();
        }
    }

    /// A publishing connection is of no more use: all its lanes are opened anew.
    fn lost(&mut self, at: usize, link: usize, streamer: &mut Streamer, error: Error) -> Result<()> {
        self.losses += 1;
        self.groups[at].links[link].judge(streamer);
        for &index in &self.groups[at].links[link].lanes {
            let driver = &mut self.drivers[index];
            if !matches!(driver.phase, Phase::Absent) {
                streamer.lane_mut(index).close();
                driver.wait(Duration::ZERO);
            }
        }
        streamer.reject()?;
        let error = error.context(self.groups[at].name(streamer));
        self.endure(error, |lanes, error| lanes.groups[at].lost(link, error))
    }

    /// Goes on with `remedy` after what time or a change of the rows may mend.
    fn endure(&mut self, error: Error, remedy: impl FnOnce(&mut Lanes, &Error)) -> Result<()> {
        let is_endured = match error.kind() {
            // A row that makes no sense is its own configuration's problem; the others flow.
            Kind::Unavailable | Kind::Config | Kind::Protocol => true,
            // Who is refused everywhere has nothing to wait for.
            Kind::Permission => self.groups.iter().filter(|group| group.in_use).count() > 1,
            _ => false,
        };
        if !is_endured {
            return Err(error);
        }
        remedy(self, &error);
        Ok(())
    }
}

/// ISO 8601 of a number of seconds since 1970.
fn timestamp(seconds: u64) -> String {
    let mut text = String::new();
    write_timestamp(i64::try_from(seconds).unwrap_or(i64::MAX / 2_000_000) * 1_000_000 - POSTGRES_EPOCH_US, &mut text);
    text
}

/// Whether the stream has this event still where it was, or what shows that it has not. What somebody has deleted since is not lost;
/// another message in its place is: the server has forgotten it, and somebody else has written there.
async fn keeps(
    control: &Control,
    stream: &str,
    created_ns: i64,
    kept: Retained,
    source: &str,
) -> Result<Option<String>> {
    let state = streams::state(control, stream).await?;
    let Some((position, sequence)) = kept.filter(|(_, sequence)| *sequence >= state.first_sequence) else {
        return Ok((state.created_ns != created_ns).then(|| format!("stream {stream:?} was made anew")));
    };
    if state.created_ns != created_ns || state.last_sequence < sequence {
        let last = state.last_sequence;
        return Ok(Some(format!("stream {stream:?} had acknowledged message {sequence} and ends at {last} now")));
    }
    let there = tail::message(control, stream, sequence).await?;
    let is_another = there.is_some_and(|there| open::position_of(&there, source) != Some(position));
    Ok(is_another
        .then(|| format!("stream {stream:?} had acknowledged message {sequence} and has another one there now")))
}
