//! The driver of the crate on model servers: what `commands/run/lanes` does on real ones. Decides nothing but when what is under
//! way ends, and how many bytes a socket takes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use fastrand::Rng;
use walhook::{
    error::{Error, Result},
    flow::{
        driver::{
            Action, Answer, ConnectionId, Driver, Event, GroupId, Meaning, Moment, Question, Reply, Report, RunsAnswer,
            ServerFacts, StreamFacts, StreamId, Task,
            trust::{Checkpoint, LastOfOurs, Stranger, StreamEnd},
        },
        event_id::EventPosition,
        lane::{Listing, claim_check::Claim},
        streamer::Streamer,
    },
};

use super::{
    configuration::core_of,
    jetstream::{self, JetStream, Message},
    oracle::{Oracle, SOURCE},
    postgres::Postgres,
    swarm::{Bug, Swarm},
};

/// The models, as one run of walhook meets them.
pub struct Models<'w> {
    pub rng: &'w mut Rng,
    pub swarm: &'w Swarm,
    pub bug: Bug,
    pub jetstream: &'w mut JetStream,
    pub postgres: &'w Postgres,
    pub oracle: &'w mut Oracle,
    pub now: u64,
}

/// Runs of the timeline after a failover have greater numbers.
pub const EPOCHS_OF_A_TIMELINE: u64 = 1_000_000;

/// A run's way to the streams.
#[derive(Debug)]
pub struct Publishing {
    pub streamer: Streamer,
    pub driver: Driver,
    pub epoch: u64,
    sockets: BTreeMap<ConnectionId, usize>,
    apis: BTreeSet<GroupId>,
    works: Vec<Work>,
    /// The end of its stream that a lane was shown last, as it really was.
    shown: HashMap<StreamId, StreamEnd>,
    /// Lanes that had stored something in their stream, as far as they knew, when they were shown that.
    had_stored: HashSet<StreamId>,
    /// When each stream was created, as the run has seen it or its checkpoint says.
    created: HashMap<String, i64>,
    /// Streams that have a checkpoint.
    noted: HashSet<String>,
    /// Streams of which it is known up to where the slot has all.
    retained: HashSet<String>,
    /// Streams that have events of earlier runs, while no checkpoint says up to where the slot has all: what they may have confirmed
    /// nobody knows.
    pub unsure: BTreeSet<String>,
    /// With the bug: what each lane was shown first.
    first_ends: HashMap<StreamId, StreamEnd>,
    pub log: Vec<String>,
}

#[derive(Debug)]
enum Work {
    Connect {
        group: GroupId,
        wants_api: bool,
        connections: Vec<(ConnectionId, Vec<StreamId>)>,
    },
    AskRuns(GroupId),
    Ask(StreamId, Question),
    /// The answer is on its way.
    Replied(StreamId, Result<Reply>),
    /// Whether the object is stored.
    Store(StreamId, u64, bool),
    /// Whether the schema is stored.
    StoreSchema(StreamId, u64, bool),
}

impl Work {
    fn task(&self) -> Task {
        match self {
            Work::Connect { group, .. } => Task::Connect(*group),
            Work::AskRuns(group) => Task::AskRuns(*group),
            Work::Ask(stream, _) | Work::Replied(stream, _) => Task::Ask(*stream),
            Work::Store(stream, ..) => Task::Store(*stream),
            Work::StoreSchema(stream, ..) => Task::StoreSchema(*stream),
        }
    }
}

/// What a run ends with: an error of its own, or something that must not be.
#[derive(Debug)]
pub enum Stop {
    Ends(Error),
    Wrong(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Ends(error)
    }
}

fn away() -> Error {
    Error::unavailable("the model's server is down")
}

impl Publishing {
    pub fn new<'c>(
        streamer: Streamer,
        driver: Driver,
        epoch: u64,
        checkpoints: impl Iterator<Item = (&'c String, &'c Checkpoint)> + Clone,
    ) -> Publishing {
        let retained = checkpoints.clone().filter(|(_, known)| known.retained_through.is_some());
        Publishing {
            retained: retained.map(|(key, _)| key.clone()).collect(),
            noted: checkpoints.clone().map(|(key, _)| key.clone()).collect(),
            created: checkpoints.map(|(key, known)| (key.clone(), known.created_ns)).collect(),
            unsure: BTreeSet::new(),
            streamer,
            driver,
            epoch,
            sockets: BTreeMap::new(),
            apis: BTreeSet::new(),
            works: Vec::new(),
            shown: HashMap::new(),
            had_stored: HashSet::new(),
            first_ends: HashMap::new(),
            log: Vec::new(),
        }
    }

    pub fn is_core(&self, stream: StreamId) -> bool {
        self.streamer.lane_key(stream.0).stream.is_none()
    }

    /// The server of a lane, which is its configuration's.
    pub fn server_of(&self, stream: StreamId, bug: Bug) -> i32 {
        if bug == Bug::OneServer { 1 } else { self.streamer.lane_key(stream.0).config_id }
    }

    /// Where a lane leads, as the models call it.
    pub fn key_of(&self, stream: StreamId, bug: Bug) -> String {
        let server = self.server_of(stream, bug);
        match &self.streamer.lane_key(stream.0).stream {
            Some(name) => format!("{server}/{name}"),
            None => core_of(server),
        }
    }

    /// Whether a lane's stream can be asked now, as far as its connection goes.
    pub fn can_be_asked(&self, stream: StreamId, jetstream: &JetStream) -> bool {
        let group = self.driver.group_of_stream(stream).filter(|group| self.apis.contains(group));
        group.is_some() && !jetstream.down.contains(&self.server_of(stream, Bug::None))
    }

    /// The run is gone.
    pub fn leave(&self, models: &mut Models<'_>) {
        for &socket in self.sockets.values() {
            models.jetstream.leave(socket, models.rng, models.swarm);
        }
    }

    /// Lets the driver do what it can; with `all` everything, otherwise something by chance.
    pub fn drive(&mut self, models: &mut Models<'_>, all: bool) -> Result<(), Stop> {
        if models.bug == Bug::IgnoreHolds {
            (0..self.streamer.lane_count()).for_each(|lane| self.streamer.lane_mut(lane).hold_from(None));
        }
        self.handle(Event::Round, models)?;
        let groups = self.driver.group_count();
        if groups == 0 {
            return Ok(());
        }
        let chosen = if all { 0..groups } else { models.rng.usize(..groups)..groups };
        for group in chosen.map(GroupId) {
            self.handle(Event::Turn(group), models)?;
            for _ in 0..if all { self.works.len() } else { models.rng.usize(..3) } {
                self.work(models)?;
            }
            for connection in self.driver.connections(group) {
                if !all && models.rng.u8(..3) == 0 {
                    continue;
                }
                if let Some(socket) = self.sockets.get(&connection).copied()
                    && self.exchange(connection, socket, models)?.is_err()
                {
                    let violation = models.jetstream.violation(socket);
                    let error = Error::unavailable("the model's connection is lost");
                    self.handle(Event::Lost { connection, error, violation }, models)?;
                }
                self.handle(Event::Exchanged { connection, eager: false }, models)?;
            }
            if !all && models.rng.bool() {
                break;
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event, models: &mut Models<'_>) -> Result<(), Stop> {
        self.driver.handle(Moment(models.now), event, &mut self.streamer)?;
        while let Some(action) = self.driver.next_action() {
            self.execute(action, models)?;
        }
        Ok(())
    }

    fn execute(&mut self, action: Action, models: &mut Models<'_>) -> Result<(), Stop> {
        match action {
            Action::Connect { group, wants_api, connections } => {
                self.works.push(Work::Connect { group, wants_api, connections });
            }
            Action::AskRuns(group) => self.works.push(Work::AskRuns(group)),
            Action::Ask(stream, question) => self.works.push(Work::Ask(stream, *question)),
            Action::Store(stream, number) => self.works.push(Work::Store(stream, number, false)),
            Action::StoreSchema(stream, nth) => self.works.push(Work::StoreSchema(stream, nth, false)),
            Action::Abandon(task) => self.works.retain(|work| work.task() != task),
            Action::Disconnect(group) => {
                self.apis.remove(&group);
                let of_group: Vec<_> = self.sockets.keys().filter(|at| at.group == group).copied().collect();
                of_group.into_iter().for_each(|connection| self.close(connection, models));
            }
            Action::CloseApi(group) => drop(self.apis.remove(&group)),
            Action::Close(connection) => self.close(connection, models),
            Action::Subscribe(connection, stream) => {
                models.jetstream.subscribe(self.sockets[&connection], self.streamer.lane_inbox(stream.0));
            }
            Action::Report(report) => self.report(report, models)?,
        }
        Ok(())
    }

    fn close(&mut self, connection: ConnectionId, models: &mut Models<'_>) {
        if let Some(socket) = self.sockets.remove(&connection) {
            models.jetstream.leave(socket, models.rng, models.swarm);
        }
    }

    /// What must hold whenever a lane is opened, by what its stream really was like.
    fn report(&mut self, report: Report, models: &mut Models<'_>) -> Result<(), Stop> {
        self.log.push(format!("run {}: {report:?}", self.epoch));
        let Report::Opened { lane, .. } = report else { return Ok(()) };
        let (end, key, epoch) = (self.shown[&lane], self.key_of(lane, Bug::None), self.epoch);
        if let Some(ours) = end.ours {
            if ours.epoch > epoch {
                return Err(Stop::Wrong(format!("run {epoch} goes on in {key} behind run {}", ours.epoch)));
            }
            // A run of the old timeline goes on behind its own events: it does not know of the new one.
            if epoch > EPOCHS_OF_A_TIMELINE && models.postgres.is_of_lost_history(&ours.position) {
                let position = ours.position;
                return Err(Stop::Wrong(format!("run {epoch} goes on in {key} behind {position:?}, which never was")));
            }
        }
        if let Some(created) = self.created.insert(key.clone(), end.created_ns)
            && created != end.created_ns
            && self.had_stored.contains(&lane)
        {
            return Err(Stop::Wrong(format!("run {epoch} goes on in {key}, which is not the stream that it knew")));
        }
        if self.retained.insert(key.clone()) && end.ours.is_some() {
            self.unsure.insert(key);
        }
        Ok(())
    }

    /// Ends something that is under way, by chance.
    fn work(&mut self, models: &mut Models<'_>) -> Result<(), Stop> {
        if self.works.is_empty() {
            return Ok(());
        }
        let work = self.works.swap_remove(models.rng.usize(..self.works.len()));
        let server_of = |group: GroupId| {
            if models.bug == Bug::OneServer { 1 } else { self.driver.row(group).config_id }
        };
        match work {
            Work::Connect { group, wants_api, connections } => {
                let server = server_of(group);
                if models.jetstream.down.contains(&server) {
                    return self.handle(Event::NotConnected(group, away()), models);
                }
                let facts = ServerFacts {
                    version: "2.15.0".to_owned(),
                    max_payload: models.jetstream.max_payload,
                    knows_batches: true,
                    shares_syncs: true,
                };
                let is_core = self.driver.is_core(group);
                let mut made = Vec::new();
                for (connection, streams) in connections {
                    let inboxes = streams.iter().map(|stream| self.streamer.lane_inbox(stream.0)).collect();
                    let socket = models.jetstream.connect(server, is_core, inboxes).expect("it is up");
                    self.sockets.insert(connection, socket);
                    made.push((connection, facts.clone(), streams));
                }
                if wants_api {
                    self.apis.insert(group);
                }
                self.handle(Event::Connected { group, has_api: wants_api, connections: made }, models)
            }
            Work::AskRuns(group) => {
                let is_down = models.jetstream.down.contains(&server_of(group));
                let answer = if is_down { RunsAnswer::Away(away()) } else { RunsAnswer::None(true) };
                self.handle(Event::RunsAsked(group, answer), models)
            }
            Work::Ask(lane, question) => {
                let is_down = models.jetstream.down.contains(&self.server_of(lane, models.bug));
                let reply = if is_down { Err(away()) } else { Ok(self.answer(lane, &question, models)) };
                self.works.push(Work::Replied(lane, reply));
                Ok(())
            }
            Work::Replied(lane, reply) => self.handle(Event::Replied { lane, reply, no_jetstream: false }, models),
            Work::Store(lane, number, is_stored) => self.store(lane, number, is_stored, models),
            Work::StoreSchema(lane, nth, is_stored) => self.store_schema(lane, nth, is_stored, models),
        }
    }

    /// A claim check's payload goes into the object store, and then the run learns of it.
    fn store(&mut self, lane: StreamId, number: u64, is_stored: bool, models: &mut Models<'_>) -> Result<(), Stop> {
        let claim_check = self.streamer.lane(lane.0).claim_check().filter(|claim_check| claim_check.number == number);
        let Some(claim_check) = claim_check else { return Ok(()) };
        let name = claim_check.position.id(SOURCE);
        let outcome = if models.jetstream.down.contains(&self.server_of(lane, Bug::None)) {
            Err(away())
        } else if is_stored || models.bug == Bug::ClaimOnSend {
            Ok(Claim { bucket: "o".to_owned(), name, sha256: "0".repeat(64) })
        } else if models.rng.u8(..30) == 0 {
            models.oracle.cannot_be_claimed(name);
            Err(Error::config("it refuses"))
        } else {
            models.jetstream.objects.insert(format!("o/{name}"), claim_check.payload.to_vec());
            self.works.push(Work::Store(lane, number, true));
            return Ok(());
        };
        self.handle(Event::Stored { lane, number, outcome }, models)
    }

    /// A schema goes into its bucket, and then the run learns of it.
    fn store_schema(&mut self, lane: StreamId, nth: u64, is_stored: bool, models: &mut Models<'_>) -> Result<(), Stop> {
        let schema = self.streamer.lane(lane.0).schema_to_store().filter(|(number, _)| *number == nth);
        let Some((_, schema)) = schema else { return Ok(()) };
        let server = self.server_of(lane, Bug::None);
        let outcome = if models.jetstream.down.contains(&server) {
            Err(away())
        } else if is_stored || models.bug == Bug::SchemaOnSend {
            Ok(())
        } else if models.rng.u8(..30) == 0 {
            Err(Error::config("it refuses"))
        } else {
            models.jetstream.schemas.insert((server, schema.key.clone()));
            self.works.push(Work::StoreSchema(lane, nth, true));
            return Ok(());
        };
        self.handle(Event::SchemaStored { lane, nth, outcome }, models)
    }

    /// What the server says of a lane's stream.
    fn answer(&mut self, lane: StreamId, question: &Question, models: &mut Models<'_>) -> Reply {
        let key = self.key_of(lane, models.bug);
        match question {
            Question::OtherRuns | Question::IsNoted { .. } => Reply::Done,
            Question::Ensure { .. } | Question::LookUp { .. } => {
                let is_small = models.jetstream.max_msg_size < models.jetstream.max_payload;
                let stream = models.jetstream.stream(&key);
                Reply::Stream(Box::new(StreamFacts {
                    created_ns: stream.created_ns,
                    subjects: vec![format!("{}.>", stream.name)],
                    max_msg_size: is_small.then_some(models.jetstream.max_msg_size),
                    is_in_memory: false,
                    allows_batches: models.jetstream.batch_max > 1,
                    is_unclaimed: !stream.is_claimed,
                    warnings: Vec::new(),
                }))
            }
            Question::Claim { .. } => {
                models.jetstream.claim(&key);
                Reply::Claimed(Vec::new())
            }
            Question::End { place, .. } => Reply::End(self.end(lane, &key, *place, models)),
            Question::List { listing, .. } => Reply::Listed(self.list(lane, &key, *listing, models)),
        }
    }

    fn end(&mut self, lane: StreamId, key: &str, place: Option<(u64, i64)>, models: &Models<'_>) -> StreamEnd {
        let stream = models.jetstream.stream(key);
        let at_place = |message: &&Message| place == Some((message.sequence, stream.created_ns));
        let stranger = stream.messages.iter().find(at_place).filter(|message| message.event.is_none());
        let event_of = |message: &Message| EventPosition::parse(message.core_event.as_ref()?, SOURCE);
        let last_of = |takes_core: bool| {
            let of = |message: &Message| {
                let core = || message.core_event.clone().filter(|_| takes_core);
                let position = EventPosition::parse(&message.event.clone().or_else(core)?, SOURCE)?;
                Some(LastOfOurs { position, sequence: message.sequence, epoch: message.epoch })
            };
            stream.messages.iter().rev().find_map(of)
        };
        let mut end = StreamEnd {
            last_sequence: stream.last_sequence,
            first_sequence: 1,
            created_ns: stream.created_ns,
            ours: last_of(false),
            stranger: stranger.map(|message| event_of(message).map_or(Stranger::Foreign, Stranger::OfCore)),
        };
        self.shown.insert(lane, end);
        if self.streamer.lane(lane.0).last_stored().is_some() || self.noted.contains(key) {
            self.had_stored.insert(lane);
        }
        match models.bug {
            Bug::IgnoreTail => end.ours = None,
            Bug::CoreAsOurs => (end.ours, end.stranger) = (last_of(true), None),
            Bug::BlindRetry => {
                let first = self.first_ends.entry(lane).or_insert(end);
                if let (Some((position, sequence)), epoch) = (self.streamer.lane(lane.0).last_stored(), self.epoch) {
                    first.last_sequence = sequence;
                    first.ours = Some(LastOfOurs { position, sequence, epoch });
                }
                end = *first;
            }
            _ => {}
        }
        end
    }

    fn list(&self, lane: StreamId, key: &str, listing: Listing, models: &Models<'_>) -> Vec<EventPosition> {
        if models.bug == Bug::TrustAmended && matches!(listing, Listing::Since(_)) {
            let last = self.shown[&lane].ours.map(|ours| ours.position);
            return last.map(|last| models.postgres.positions_upto(&last)).unwrap_or_default();
        }
        let listed = models.jetstream.stream(key).messages.iter().filter_map(|message| {
            let position = EventPosition::parse(message.event.as_ref()?, SOURCE)?;
            let is_wanted = match listing {
                Listing::Behind(behind) => message.sequence > behind,
                Listing::Since(since) => position.commit_lsn >= since,
            };
            is_wanted.then_some(position)
        });
        listed.collect()
    }

    /// Bytes out, answers in. The inner error: the connection is lost.
    fn exchange(
        &mut self,
        connection: ConnectionId,
        socket: usize,
        models: &mut Models<'_>,
    ) -> Result<Result<(), ()>, Stop> {
        let (mut writes, write_max) = (models.rng.usize(1..5), models.swarm.write_max);
        let sent = self.driver.send(connection, &mut self.streamer, |bytes, _| {
            if writes == 0 {
                return Ok(None);
            }
            writes -= 1;
            let count = models.rng.usize(1..=write_max).min(bytes.len());
            models.jetstream.write(socket, &bytes[..count]).ok_or_else(away)?;
            Ok(Some(count))
        });
        let Ok(sent) = sent else { return Ok(Err(())) };
        for _ in 0..sent.pings {
            if models.jetstream.write(socket, b"PING\r\n").is_none() {
                return Ok(Err(()));
            }
        }
        if sent.pings > 0 && models.bug == Bug::SettleCoreOnSend {
            self.handle(Event::Pong(connection), models)?;
        }
        for _ in 0..models.rng.usize(..10) {
            let (inbox, token, answer) = match models.jetstream.read(socket) {
                Ok(Some(answer)) => answer,
                Ok(None) => break,
                Err(()) => return Ok(Err(())),
            };
            self.driver.received(connection);
            let answer = match answer {
                jetstream::Answer::Pong => {
                    self.handle(Event::Pong(connection), models)?;
                    continue;
                }
                other => answer_of(other, models.jetstream.batch_max),
            };
            let lanes = (0..self.streamer.lane_count()).map(StreamId);
            let lane = lanes.into_iter().find(|lane| self.streamer.lane_inbox(lane.0) == inbox);
            if let Some(lane) = lane {
                self.driver.answer(connection, lane, &token, answer, &mut self.streamer);
            }
        }
        if let Some(limit) = models.jetstream.changed_limit(socket) {
            self.handle(Event::LimitChanged(connection, limit), models)?;
        }
        Ok(Ok(()))
    }
}

fn answer_of(answer: jetstream::Answer, batch_max: usize) -> Answer {
    let (code, meaning, description) = match answer {
        jetstream::Answer::Stored { sequence, duplicate } => return Answer::Stored { sequence, duplicate },
        jetstream::Answer::NoResponders | jetstream::Answer::Pong => return Answer::NoResponders,
        jetstream::Answer::Refused(code @ (10071 | 10164)) => (code, Meaning::Place, String::new()),
        jetstream::Answer::Refused(10201) => (10201, Meaning::OneByOne, String::new()),
        jetstream::Answer::Refused(10199) => (10199, Meaning::SmallerBatches, format!("at most {batch_max}")),
        jetstream::Answer::Refused(10054) => (10054, Meaning::TooLarge, "too large".to_owned()),
        jetstream::Answer::Refused(code) => (code, Meaning::Wait, "not now".to_owned()),
    };
    Answer::Refused { code, meaning, finding: None, description }
}
