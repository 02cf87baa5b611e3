//! All together: one seed, one history. Our side is driven as `commands/run` does it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    time::Duration,
};

use fastrand::Rng;
use walhook::{
    error::Kind,
    flow::{
        delay::{Due, sequence_of},
        event_id::EventPosition,
        history::{Batch, HistorySource, Place},
        lane::{BATCH_MAX, Batches, Listing, Ordering, Refusal, Tail, Timestamps, claim_check::Claim},
        streamer::{DeadLetter, Halted, Limits, Received, RuleChange, RuleCommit, Streamer},
    },
    route::{
        tables::{RowText, Table, Tables},
        types::{Scalar, TypeCatalog, TypeKind},
    },
    wal::lsn::Lsn,
};

use super::{
    configuration::{Row, core_of},
    jetstream::{Answer, JetStream},
    oracle::{Oracle, SOURCE, View},
    postgres::{NEW_TYPE, Op, Postgres, Walsender},
    swarm::{Bug, Swarm, happens},
};

/// Events that one message can make: each webhook for each truncated table.
const EVENTS_A_MESSAGE: usize = 12;
/// Bytes of the largest message.
const MESSAGE_MAX: usize = 6000;
const ACK_TIMEOUT: u64 = 60;
const SETTLE: u64 = 20;
const BACKOFF_MAX: u64 = 16;
/// After so many steps a message is on disk, where confirming is delayed for longer.
const SYNC_INTERVAL: u64 = 40;
const CONFIRM_DELAY: u64 = 42;

/// Configuration rows as text, by table and key.
type Rows = BTreeMap<(Table, i32), RowText>;

#[derive(Debug)]
pub struct World {
    rng: Rng,
    swarm: Swarm,
    bug: Bug,
    now: u64,
    postgres: Postgres,
    jetstream: JetStream,
    oracle: Oracle,
    run: Option<Run>,
    runs: u64,
    shared: HashSet<String>,
    /// Streams whose row wants batches, which the server takes.
    atomic: HashSet<String>,
    knows_new_type: bool,
    /// `rule_cdc_rule_versions`: the first version, the position from which it is complete, and what is behind it.
    first_rules: Option<(Rows, u64)>,
    rule_versions: Vec<(u64, Vec<RuleChange>)>,
    history_is_locked: bool,
    /// By stream: the sequence that was seen, and the one behind which the slot has all.
    checkpoints: HashMap<String, (u64, Option<u64>)>,
    /// Earlier runs have published into a stream and left no checkpoint of it: what they may have confirmed nobody knows.
    is_unsure: bool,
    pub log: Option<String>,
}

/// A run of walhook, gone without a word when it crashes.
#[derive(Debug)]
struct Run {
    streamer: Streamer,
    view: View,
    walsender: Walsender,
    inbox: String,
    drivers: Vec<Driver>,
    generation: u64,
    server_wal: u64,
    is_paused: bool,
    burial: Option<(Vec<DeadLetter>, bool)>,
    /// Rows of the history under way, and whether they are in.
    recording: Option<(Vec<(HistorySource, Batch)>, bool)>,
    /// Of each lane the claim check under way, and whether it is stored.
    storing: HashMap<usize, (u64, bool)>,
    /// The checkpoints under way, and whether they are in.
    checkpointing: Option<(Due, bool)>,
    /// With the bug: rows that are on their way.
    sent_off: Vec<(Vec<u8>, usize)>,
    rules_sent_off: Vec<RuleCommit>,
    /// Versions of rules are in up to the commit of this number.
    rules_kept: Option<u64>,
    last_keepalive: u64,
}

#[derive(Debug)]
struct Driver {
    phase: Phase,
    failures: u32,
    waiting: Option<(u64, u64)>,
    first_tail: Option<Tail>,
}

#[derive(Debug)]
enum Phase {
    Opening { since: u64, tail: Option<Tail>, connection: Option<Link> },
    Running(Link),
    Settling(Link, u64),
}

#[derive(Debug, Clone, Copy)]
struct Link {
    connection: usize,
    is_between: bool,
}

impl World {
    pub fn new(seed: u64, bug: Bug) -> World {
        let mut rng = Rng::with_seed(seed);
        let mut swarm = Swarm::new(&mut rng);
        if seed.is_multiple_of(3) {
            swarm.confirm_delay = CONFIRM_DELAY;
            // Rare otherwise, and what this is about.
            swarm.crash_nats = swarm.crash_nats.max(10);
            swarm.forget = 500;
        }
        if bug == Bug::ReuseTornConnection {
            // Rare otherwise, and what this is about.
            swarm.write_max = 200;
            swarm.steps = 600;
            swarm.window_events = swarm.window_events.max(20);
            swarm.refuse = 1000;
        }
        if bug == Bug::SettleCoreOnSend {
            swarm.configs = 2;
            swarm.configuration = swarm.configuration.max(100);
            swarm.cut = swarm.cut.max(30);
            swarm.crash_nats = swarm.crash_nats.max(10);
        }
        if bug == Bug::KeepIdleLaneOpen {
            swarm.configs = 2;
            swarm.configuration = swarm.configuration.max(300);
            swarm.window_events = swarm.window_events.max(20);
            swarm.window_bytes = 1 << 20;
            swarm.steps = 600;
            (swarm.streams, swarm.flips, swarm.halt) = (1, false, 0);
        }
        if bug == Bug::KeepDeletedRules {
            swarm.configuration = swarm.configuration.max(300);
            swarm.crash_us = swarm.crash_us.max(30);
            swarm.steps = 600;
        }
        if matches!(bug, Bug::TrustAmended | Bug::KeepVoidRules) || seed % 5 == 1 {
            // Amendments are rare otherwise.
            swarm.halt = 1000;
            swarm.huge_rows = swarm.huge_rows.max(50);
            swarm.max_msg_size = 2900;
            swarm.configuration = swarm.configuration.max(200);
            swarm.steps = 600;
        }
        let postgres = Postgres::new(&mut rng, &swarm);
        let shared = postgres.configuration.streams.values().filter(|row| row.shared).map(|row| row.key());
        let batched = postgres.configuration.streams.values().filter(|row| !row.batches.is_empty());
        let atomic: HashSet<_> = batched.filter(|_| swarm.batch_max > 1).map(|row| row.key()).collect();
        let (shared, atomic) = match swarm.flips {
            true => (HashSet::new(), HashSet::new()),
            false => (shared.collect(), atomic),
        };
        let flips = swarm.flips;
        World {
            shared,
            atomic,
            jetstream: JetStream::new(&swarm),
            rng,
            swarm,
            bug,
            now: 0,
            postgres,
            oracle: Oracle::new(seed.is_multiple_of(3), flips),
            run: None,
            runs: 0,
            knows_new_type: false,
            first_rules: None,
            rule_versions: Vec::new(),
            history_is_locked: false,
            checkpoints: HashMap::new(),
            is_unsure: false,
            log: None,
        }
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            let _ = writeln!(log, "{now}: {}", what());
        }
    }

    /// How many steps it has lived through.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Lives through the seed's history.
    ///
    /// # Errors
    /// What did not hold.
    pub fn live(&mut self) -> Result<(), String> {
        let swarm = format!("{:?}", self.swarm);
        self.say(|| swarm);
        for _ in 0..self.swarm.steps {
            self.step()?;
            self.faults();
        }
        self.calm_down()
    }

    fn step(&mut self) -> Result<(), String> {
        self.tick();
        match self.rng.u8(..21) {
            0 if self.rng.bool() => self.postgres.other_activity(&mut self.rng),
            0..=1 if self.postgres.transactions.len() < 80 => self.postgres.commit_random(&mut self.rng, &self.swarm),
            2..=7 => self.pump(10)?,
            8..=12 => {
                let lanes = self.run.as_ref().map_or(0, |run| run.drivers.len());
                if lanes > 0 {
                    self.drive(self.rng.clone().usize(..lanes))?;
                    self.rng.bool();
                }
            }
            13..=15 => {
                self.jetstream.process(&mut self.rng, &self.swarm, self.bug, &self.postgres, self.now)?;
            }
            16 => self.report()?,
            17 => self.job()?,
            18 if !self.history_is_locked => self.record()?,
            18 => self.postgres.checkpoint(),
            19 if self.rng.bool() => self.postgres.checkpoint(),
            19 if self.swarm.confirm_delay == 0 => self.jetstream.sync(),
            _ => {}
        }
        self.check()
    }

    fn tick(&mut self) {
        self.now += 1;
        if self.run.is_none() {
            self.start();
        }
        let now = Timestamps { wall: 0, steady: self.now };
        self.run.as_mut().expect("it was started").streamer.set_time(now);
    }

    fn faults(&mut self) {
        let World { rng, swarm, .. } = self;
        if happens(rng, swarm.crash_us) {
            self.crash("we crash");
        } else if happens(rng, swarm.crash_postgres) {
            self.postgres.crash();
            self.crash("PostgreSQL crashes");
        } else if happens(rng, swarm.crash_nats) {
            let mut servers: HashSet<i32> = (1..=self.swarm.configs).collect();
            if self.swarm.configs > 1 && self.rng.bool() {
                servers.remove(&self.rng.i32(1..=2));
            }
            self.say(|| format!("NATS crashes: {servers:?}"));
            self.jetstream.crash(&servers);
            if happens(&mut self.rng, self.swarm.forget) {
                let interval = (self.swarm.confirm_delay > 0).then_some(SYNC_INTERVAL);
                self.jetstream.forget(&mut self.rng, self.now, interval);
                let ends: Vec<_> = self.jetstream.streams.iter().map(|stream| stream.last_sequence).collect();
                self.say(|| format!("and forgets: the streams end at {ends:?}"));
            }
            if happens(&mut self.rng, self.swarm.change_max_payload * 10) {
                self.jetstream.max_payload = if self.rng.bool() { 2900 } else { 1 << 20 };
            }
        } else if !self.jetstream.down.is_empty()
            && self.rng.u8(..if self.swarm.confirm_delay > 0 { 50 } else { 8 }) == 0
        {
            self.jetstream.down.clear();
        } else if happens(&mut self.rng, self.swarm.cut) {
            self.jetstream.cut(&mut self.rng);
        } else if self.jetstream.refusing.is_some() && self.rng.u8(..6) == 0 {
            self.jetstream.refusing = None;
        } else if happens(&mut self.rng, self.swarm.refuse / 10) {
            let answers = [Answer::Refused(429), Answer::Refused(10077), Answer::NoResponders];
            self.jetstream.refusing = Some(answers[self.rng.usize(..answers.len())]);
        } else if happens(&mut self.rng, self.swarm.lock_history) {
            self.history_is_locked = !self.history_is_locked;
            let is_locked = self.history_is_locked;
            self.say(|| format!("the history is locked: {is_locked}"));
        } else if happens(&mut self.rng, self.swarm.foreign) && !self.shared.is_empty() {
            let index = self.rng.usize(..self.jetstream.streams.len());
            if self.shared.contains(&self.jetstream.streams[index].key) {
                self.jetstream.foreign(index, self.now);
            }
        }
    }

    /// No more faults: all must be published and confirmed before long.
    fn calm_down(&mut self) -> Result<(), String> {
        self.say(|| "calm".to_owned());
        let quiet = Swarm {
            crash_us: 0,
            crash_postgres: 0,
            crash_nats: 0,
            cut: 0,
            lose_ack: 0,
            refuse: 0,
            swallow: 0,
            too_large: 0,
            foreign: 0,
            lock_history: 0,
            away: 0,
            ..Swarm::new(&mut Rng::with_seed(0))
        };
        let Swarm { window_events, window_bytes, history_bytes, dedup_window, expected_before_dedup, .. } = self.swarm;
        let Swarm { batches, batch_max, batch_timeout, flips, configs, .. } = self.swarm;
        self.swarm = Swarm {
            confirm_delay: self.swarm.confirm_delay,
            window_events,
            window_bytes,
            history_bytes,
            dedup_window,
            expected_before_dedup,
            write_max: 100_000,
            batches,
            batch_max,
            batch_timeout,
            flips,
            configs,
            ..quiet
        };
        self.history_is_locked = false;
        self.jetstream.down.clear();
        self.jetstream.refusing = None;
        for _ in 0..4000 {
            self.tick();
            self.pump(50)?;
            for index in 0..self.run.as_ref().map_or(0, |run| run.drivers.len()) {
                self.drive(index)?;
            }
            for _ in 0..4 {
                self.jetstream.process(&mut self.rng, &self.swarm, self.bug, &self.postgres, self.now)?;
            }
            self.job()?;
            self.record()?;
            self.report()?;
            self.check()?;
            if let Some(run) = &self.run
                && run.walsender.is_idle(&self.postgres)
                && run.streamer.is_drained()
                && self.postgres.confirmed == self.postgres.wal_end
            {
                return self.oracle.reads_history(&self.jetstream);
            }
        }
        let lanes = self.run.iter().flat_map(|run| {
            run.drivers.iter().enumerate().map(|(index, driver)| {
                let (lane, is_wanted) = (run.streamer.lane(index), run.streamer.lane_is_wanted(index));
                let (oldest, front, key) = (lane.oldest(), lane.front(), run.key_of(index, self.bug));
                format!("{key}: {driver:?}, wanted {is_wanted}, oldest {oldest:?}, front {front:?}")
            })
        });
        Err(format!(
            "it does not come to rest: slot {} of {}: {:?}",
            self.postgres.confirmed,
            self.postgres.wal_end,
            lanes.collect::<Vec<_>>()
        ))
    }

    fn start(&mut self) {
        self.runs += 1;
        self.is_unsure = false;
        let epoch = self.runs;
        self.say(|| format!("run {epoch} starts"));
        let inbox = format!("_INBOX.{epoch}");
        let limits = Limits {
            window_events: self.swarm.window_events,
            window_bytes: self.swarm.window_bytes,
            history_bytes: self.swarm.history_bytes,
        };
        let (tables, confirmed) = (self.rules_as_of_confirmed(), Lsn(self.postgres.confirmed));
        let streamer = Streamer::new(SOURCE, epoch, &inbox, limits, tables, self.types(), confirmed);
        let mut streamer = streamer.with_confirm_delay(Duration::from_micros(self.swarm.confirm_delay));
        streamer.set_newest_rules(self.postgres.read_rules(), true);
        streamer.set_amendments(self.postgres.amendments());
        self.run = Some(Run {
            streamer,
            view: View::new(&self.postgres),
            walsender: self.postgres.start_replication(),
            inbox,
            drivers: Vec::new(),
            generation: 0,
            server_wal: self.postgres.wal_end,
            is_paused: false,
            burial: None,
            recording: None,
            storing: HashMap::new(),
            checkpointing: None,
            sent_off: Vec::new(),
            rules_sent_off: Vec::new(),
            rules_kept: None,
            last_keepalive: 0,
        });
        self.follow();
    }

    /// As the store of a session reads them.
    fn rules_as_of_confirmed(&mut self) -> Tables {
        let confirmed = self.postgres.confirmed;
        let read = self.postgres.read_rules();
        let (first, complete_from) = self.first_rules.get_or_insert((read.rows, confirmed));
        if self.bug == Bug::RulesAsOfNow {
            return read.tables;
        }
        assert!(confirmed >= *complete_from, "versions as of {confirmed} are gone: they begin at {complete_from}");
        let mut rows = first.clone();
        for (_, changes) in self.rule_versions.iter().filter(|(since, _)| *since < confirmed) {
            put_versions(&mut rows, changes);
        }
        let mut tables = Tables::default();
        for ((table, _), row) in &rows {
            tables.put_text(*table, row).unwrap();
        }
        tables
    }

    /// Versions that no position needs to which the slot can go back are deleted.
    fn prune_rules(&mut self) {
        let horizon = match self.bug {
            Bug::PruneAtConfirmed => self.postgres.confirmed,
            _ => self.postgres.durable_confirmed(),
        };
        let Some((first, complete_from)) = &mut self.first_rules else { return };
        let kept = self.rule_versions.iter().position(|(since, _)| *since >= horizon);
        for (_, changes) in self.rule_versions.drain(..kept.unwrap_or(self.rule_versions.len())) {
            put_versions(first, &changes);
        }
        *complete_from = horizon.max(*complete_from);
    }

    fn types(&self) -> TypeCatalog {
        let mut types = TypeCatalog::new();
        if self.knows_new_type {
            types.insert(NEW_TYPE, TypeKind::Scalar(Scalar::Text));
        }
        types
    }

    fn crash(&mut self, why: &str) {
        self.say(|| why.to_owned());
        let Some(run) = self.run.take() else { return };
        for driver in run.drivers {
            let link = match driver.phase {
                Phase::Running(link) | Phase::Settling(link, _) | Phase::Opening { connection: Some(link), .. } => link,
                _ => continue,
            };
            self.jetstream.leave(link.connection, &mut self.rng, &self.swarm);
        }
    }

    /// walhook ends with an error: only where that is right.
    fn ends(&mut self, error: &walhook::error::Error) -> Result<(), String> {
        self.say(|| format!("{error:?}"));
        match error.kind() {
            Kind::Config if error.cause_as::<Halted>().is_some() => {
                let rows = self.postgres.configuration.webhooks.clone();
                // The operator says that it shall go on, from the event at which it stopped.
                let ops = rows.into_iter().map(|(id, row)| {
                    Op::Configure(Row::Webhook(id, Some(super::configuration::Webhook { halt: false, ..row })))
                });
                let ops = ops.collect();
                self.postgres.commit(&mut self.rng, ops);
                let text = error.to_string();
                let id = text.split(' ').find_map(super::oracle::position).ok_or("the error names no event")?;
                self.postgres.amend(id.0, id.1);
            }
            Kind::Untrusted if self.jetstream.has_forgotten && (self.swarm.confirm_delay == 0 || self.is_unsure) => {}
            // The stream was set back, and the slot has what it lost.
            Kind::Unavailable if self.jetstream.has_forgotten && self.swarm.confirm_delay > 0 => {}
            _ => return Err(format!("walhook stops: {error:?}")),
        }
        self.crash("the run ends");
        Ok(())
    }

    /// Takes frames while there is room.
    fn pump(&mut self, most: usize) -> Result<(), String> {
        for _ in 0..self.rng.usize(1..=most) {
            let Some(run) = &mut self.run else { return Ok(()) };
            let has_room = if run.is_paused { run.streamer.has_ample_room() } else { run.streamer.has_room() };
            run.is_paused = !has_room;
            if run.is_paused {
                break;
            }
            let Some((frame, mark)) = run.walsender.next(&self.postgres, &mut self.rng, &self.swarm, self.bug) else {
                break;
            };
            if let super::postgres::Mark::Keepalive(end) = mark {
                run.last_keepalive = end;
            }
            self.oracle.receives(&mut run.view, mark, &self.postgres);
            match run.streamer.receive(&frame) {
                Ok(Received::ReplyRequested) => self.report()?,
                Ok(_) => {}
                Err(error) => return self.ends(&error),
            }
        }
        if let Some(run) = &mut self.run {
            run.streamer.follow_rules();
        }
        self.follow();
        Ok(())
    }

    /// New lanes get a driver; lanes whose rows have changed are opened anew.
    fn follow(&mut self) {
        let Some(run) = &mut self.run else { return };
        if run.generation == run.streamer.generation() {
            return;
        }
        run.generation = run.streamer.generation();
        for index in run.drivers.len()..run.streamer.lane_count() {
            run.drivers.push(Driver {
                phase: Phase::Opening { since: self.now, tail: None, connection: None },
                failures: 0,
                waiting: None,
                first_tail: None,
            });
            let settings = run.streamer.lane_settings(index).expect("a lane comes from its rows");
            match &run.streamer.lane_key(index).stream {
                Some(name) => assert_eq!(settings.stream.stream_name, *name),
                None => assert_eq!(run.streamer.lane(index).ordering(), Ordering::Core),
            }
        }
    }

    /// Lets one lane's driver do what it can.
    fn drive(&mut self, index: usize) -> Result<(), String> {
        let Some(run) = &mut self.run else { return Ok(()) };
        if self.bug == Bug::IgnoreHolds {
            run.streamer.lane_mut(index).hold_from(None);
        }
        let has_its_turn = self.bug == Bug::BothWaysAtOnce || run.has_its_turn(index);
        let at_rest = |lane: usize| !run.streamer.lane_is_wanted(lane) && run.streamer.lane(lane).is_at_rest();
        let keeps_open = self.bug == Bug::KeepIdleLaneOpen;
        let waits_for_other = self.bug != Bug::BothWaysAtOnce
            && run.other_half(index).any(|other| run.is_on_line(other) && !(keeps_open && at_rest(other)));
        let is_at_rest = at_rest(index);
        let driver = &mut run.drivers[index];
        match &mut driver.phase {
            Phase::Opening { since, .. } if self.now < *since => Ok(()),
            Phase::Opening { tail: None, .. } if is_at_rest || !has_its_turn || waits_for_other => Ok(()),
            Phase::Opening { tail: None, .. } => self.read_tail(index),
            // What the other half has sent meanwhile may not be in this tail.
            Phase::Opening { tail, .. } if waits_for_other => {
                *tail = None;
                Ok(())
            }
            Phase::Opening { .. } => self.open(index),
            Phase::Running(link) if !run.streamer.lane(index).is_open() || !has_its_turn => {
                run.streamer.lane_mut(index).close();
                driver.phase = Phase::Settling(*link, self.now + SETTLE);
                Ok(())
            }
            // Nothing leads there any more.
            Phase::Running(link) if is_at_rest && link.is_between && !keeps_open => {
                let connection = link.connection;
                driver.phase = Phase::Opening { since: self.now, tail: None, connection: None };
                run.streamer.lane_mut(index).close();
                self.jetstream.leave(connection, &mut self.rng, &self.swarm);
                Ok(())
            }
            Phase::Running(_) => {
                let outcome = self.exchange(index)?;
                let Some(run) = &mut self.run else { return Ok(()) };
                let driver = &mut run.drivers[index];
                match outcome {
                    Err(()) => self.failed(index),
                    Ok(true) => {
                        run.streamer.lane_mut(index).close();
                        let Phase::Running(link) = driver.phase else { unreachable!("matched above") };
                        driver.phase = Phase::Settling(link, self.now + SETTLE);
                        Ok(())
                    }
                    Ok(false) => {
                        let lane = run.streamer.lane(index);
                        let oldest = lane.front().filter(|_| lane.awaits_answers());
                        match (oldest, driver.waiting) {
                            (Some(oldest), Some((waiting, since))) if oldest == waiting => {
                                if self.now - since > ACK_TIMEOUT {
                                    return self.failed(index);
                                }
                            }
                            (oldest, _) => driver.waiting = oldest.map(|oldest| (oldest, self.now)),
                        }
                        Ok(())
                    }
                }
            }
            Phase::Settling(..) => {
                let outcome = self.exchange(index)?;
                let Some(run) = &mut self.run else { return Ok(()) };
                let driver = &mut run.drivers[index];
                let Phase::Settling(link, until) = driver.phase else { unreachable!("matched above") };
                if outcome.is_err() {
                    return self.failed(index);
                }
                if run.streamer.lane(index).awaits_answers() && self.now < until {
                    return Ok(());
                }
                let reusable = link.is_between || self.bug == Bug::ReuseTornConnection;
                if !reusable {
                    self.jetstream.leave(link.connection, &mut self.rng, &self.swarm);
                }
                driver.failures += 1;
                let wait = if driver.failures == 1 { 0 } else { BACKOFF_MAX.min(1 << driver.failures.min(10)) };
                driver.waiting = None;
                let connection = reusable.then_some(Link { is_between: true, ..link });
                driver.phase = Phase::Opening { since: self.now + wait, tail: None, connection };
                Ok(())
            }
        }
    }

    fn read_tail(&mut self, index: usize) -> Result<(), String> {
        let Some(run) = &mut self.run else { return Ok(()) };
        if self.jetstream.down.contains(&run.server_of(index, self.bug)) {
            return self.failed(index);
        }
        if run.is_core(index) {
            let (subjects, max_payload) = (vec![">".to_owned()], self.jetstream.max_payload);
            let (listing, listed) = (run.streamer.lane(index).listing(), Vec::new());
            let read = Tail { last_sequence: 0, ours: None, listing, listed, subjects, max_payload, batch_max: 1 };
            if let Phase::Opening { tail, .. } = &mut run.drivers[index].phase {
                *tail = Some(read);
            }
            return Ok(());
        }
        let name = run.streamer.lane(index).stream().to_owned();
        let stream = self.jetstream.stream(&run.key_of(index, self.bug));
        let event_of = |message: &super::jetstream::Message| match self.bug {
            Bug::CoreAsOurs => message.event.clone().or_else(|| message.core_event.clone()),
            _ => message.event.clone(),
        };
        let ours = stream
            .messages
            .iter()
            .rev()
            .find_map(|message| Some((EventPosition::parse(&event_of(message)?, SOURCE)?, message.sequence)));
        if let Some((position, _)) = &ours {
            let known = run.streamer.known_wal().0.max(run.server_wal);
            if position.commit_lsn.0 > known {
                return Err(format!("{position:?} is taken for one beyond the WAL, which ends at {known}"));
            }
        }
        let mut tail = Tail {
            last_sequence: stream.last_sequence,
            ours,
            listing: run.streamer.lane(index).listing(),
            listed: {
                let listing = run.streamer.lane(index).listing();
                let listed = stream.messages.iter().filter_map(|message| {
                    let position = EventPosition::parse(message.event.as_ref()?, SOURCE)?;
                    let is_wanted = match listing? {
                        Listing::Behind(behind) => message.sequence > behind,
                        Listing::Since(since) => position.commit_lsn >= since,
                    };
                    is_wanted.then_some(position)
                });
                listed.collect()
            },
            subjects: vec![format!("{name}.>")],
            max_payload: self.jetstream.max_payload.min(self.jetstream.max_msg_size),
            batch_max: self.jetstream.batch_max,
        };
        let driver = &mut run.drivers[index];
        match self.bug {
            Bug::IgnoreTail => tail.ours = None,
            Bug::BlindRetry => {
                let first = driver.first_tail.get_or_insert_with(|| tail.clone());
                if let Some((position, sequence)) = run.streamer.lane(index).last_stored() {
                    first.last_sequence = sequence;
                    first.ours = Some((position, sequence));
                }
                tail = first.clone();
            }
            Bug::TrustAmended if matches!(run.streamer.lane(index).listing(), Some(Listing::Since(_))) => {
                let behind = tail.ours.map(|(position, _)| position);
                tail.listed = behind.map(|last| self.postgres.positions_upto(&last)).unwrap_or_default();
            }
            _ => {}
        }
        if let Phase::Opening { tail: read, .. } = &mut driver.phase {
            *read = Some(tail);
        }
        Ok(())
    }

    fn open(&mut self, index: usize) -> Result<(), String> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let inbox = format!("{}.{index}", run.inbox);
        assert_eq!(inbox, run.streamer.lane_inbox(index));
        let (server, is_core) = (run.server_of(index, self.bug), run.is_core(index));
        let key = run.key_of(index, self.bug);
        let driver = &mut run.drivers[index];
        let Phase::Opening { tail, connection, .. } = &mut driver.phase else { unreachable!("the caller looked") };
        let tail = tail.take().expect("the caller looked");
        let fresh = || Some(Link { connection: self.jetstream.connect(server, is_core, &inbox)?, is_between: true });
        let Some(link) = connection.take().or_else(fresh) else { return self.failed(index) };
        driver.phase = Phase::Running(link);
        driver.waiting = None;
        if let Some((position, _)) = tail.ours
            && let Err(error) = run.streamer.expect_end(index, position)
        {
            return self.ends(&error);
        }
        let lane = run.streamer.lane_mut(index);
        let known = self.checkpoints.get(&key);
        if let Some((seen, kept)) = known.filter(|_| self.bug != Bug::TrustAnyTail)
            && tail.last_sequence < *seen
            && !tail.loses_nothing(*kept)
        {
            let what = format!("{} ends at {} and had {seen}", lane.stream(), tail.last_sequence);
            return self.ends(&walhook::error::Error::untrusted(what));
        }
        if self.bug == Bug::TrustAnyTail {
            lane.forget_last_stored();
        }
        if self.swarm.confirm_delay > 0 && lane.retained_through().is_none() && !is_core {
            let kept = known.and_then(|(_, kept)| *kept);
            self.is_unsure |= kept.is_none() && tail.ours.is_some();
            lane.set_retained_through(kept.unwrap_or(tail.ours.map_or(0, |(_, sequence)| sequence)));
        }
        let opened = lane.open(&tail);
        let text = format!("lane {index} opens behind {tail:?}: {opened:?}");
        let outcome = opened.and_then(|()| run.streamer.reject());
        self.say(|| text);
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => self.ends(&error),
        }
    }

    fn failed(&mut self, index: usize) -> Result<(), String> {
        self.say(|| format!("lane {index} fails"));
        let Some(run) = &mut self.run else { return Ok(()) };
        run.streamer.lane_mut(index).close();
        let driver = &mut run.drivers[index];
        if let Phase::Running(link) | Phase::Settling(link, _) | Phase::Opening { connection: Some(link), .. } =
            driver.phase
        {
            self.jetstream.leave(link.connection, &mut self.rng, &self.swarm);
        }
        driver.failures += 1;
        driver.waiting = None;
        let wait = BACKOFF_MAX.min(1 << driver.failures.min(10));
        driver.phase = Phase::Opening { since: self.now + wait, tail: None, connection: None };
        Ok(())
    }

    /// Bytes out, answers in. `Ok(true)`: something was refused; `Err`: the connection is lost.
    fn exchange(&mut self, index: usize) -> Result<Result<bool, ()>, String> {
        let Some(run) = &mut self.run else { return Ok(Ok(false)) };
        let driver = &mut run.drivers[index];
        let (Phase::Running(link) | Phase::Settling(link, _)) = &mut driver.phase else { return Ok(Ok(false)) };
        let lane = run.streamer.lane_mut(index);
        for _ in 0..self.rng.usize(1..5) {
            let bytes = lane.unsent();
            if bytes.is_empty() {
                break;
            }
            let count = self.rng.usize(1..=self.swarm.write_max).min(bytes.len());
            if self.jetstream.write(link.connection, &bytes[..count]).is_none() {
                return Ok(Err(()));
            }
            lane.mark_sent(count);
            link.is_between = lane.is_between_messages();
        }
        if lane.ordering() == Ordering::Core && link.is_between && lane.wants_ping() {
            if self.jetstream.write(link.connection, b"PING\r\n").is_none() {
                return Ok(Err(()));
            }
            lane.pinged();
            if self.bug == Bug::SettleCoreOnSend {
                lane.ponged();
            }
        }
        let mut refused = false;
        for _ in 0..self.rng.usize(..10) {
            let (token, answer) = match self.jetstream.read(link.connection) {
                Ok(Some(answer)) => answer,
                Ok(None) => break,
                Err(()) => return Ok(Err(())),
            };
            let lane = run.streamer.lane_mut(index);
            let refusal = match answer {
                Answer::Stored { sequence, duplicate } => match lane.acked(&token, sequence, duplicate) {
                    Ok(()) => {
                        driver.failures = 0;
                        continue;
                    }
                    Err(refusal) => refusal,
                },
                Answer::Pong => {
                    lane.ponged();
                    driver.failures = 0;
                    continue;
                }
                Answer::Refused(10071 | 10164) => Refusal::WrongSequence,
                Answer::Refused(10201) => Refusal::DuplicateInBatch,
                Answer::Refused(10054) => Refusal::TooLarge("message size exceeds maximum allowed".to_owned()),
                Answer::Refused(code) => Refusal::NotNow(code.to_string()),
                Answer::NoResponders => Refusal::NotNow("no responders".to_owned()),
            };
            refused |= lane.refused(&token, &refusal) || refusal == Refusal::WrongSequence;
        }
        // As late as the edge might.
        let outcome = run.streamer.reject();
        if let Err(error) = outcome {
            self.ends(&error)?;
        }
        Ok(Ok(refused))
    }

    /// The status for PostgreSQL.
    fn report(&mut self) -> Result<(), String> {
        let Some(run) = &mut self.run else { return Ok(()) };
        run.streamer.settle();
        let mut confirmed = run.streamer.confirmed().0;
        match self.bug {
            Bug::ConfirmOnReceipt => confirmed = run.streamer.received().0,
            // The end of a commit, and its record once more.
            Bug::ConfirmPastCommit => confirmed += 48,
            Bug::ConfirmKeepalives => confirmed = confirmed.max(run.last_keepalive),
            _ => {}
        }
        self.oracle.confirms(&mut run.view, confirmed, &self.postgres, &self.jetstream)?;
        self.postgres.confirmed = self.postgres.confirmed.max(confirmed);
        self.follow();
        Ok(())
    }

    /// The SQL connection: types, dead letters.
    fn job(&mut self) -> Result<(), String> {
        let Some(run) = &mut self.run else { return Ok(()) };
        match run.burial.take() {
            Some((letters, false)) => {
                for letter in &letters {
                    self.oracle.writes_dead_letter(&letter.event_id, &letter.reason, &self.jetstream)?;
                }
                run.burial = Some((letters, true));
            }
            Some((letters, true)) => {
                for letter in letters {
                    run.streamer.dead_letter_written(&letter.event_id);
                }
            }
            None if run.streamer.awaits_types() => {
                self.knows_new_type = true;
                let types = self.types();
                self.run.as_mut().expect("it runs").streamer.set_types(types);
            }
            None if self.store()? || self.keep_rules() || self.checkpoint()? => {}
            None => {
                let Some(run) = &mut self.run else { return Ok(()) };
                let most = self.rng.usize(1..10);
                let letters: Vec<_> = run.streamer.dead_letters().take(most).cloned().collect();
                if !letters.is_empty() {
                    if self.bug == Bug::BuryOnSend {
                        letters.iter().for_each(|letter| run.streamer.dead_letter_written(&letter.event_id));
                    }
                    run.burial = Some((letters, false));
                }
            }
        }
        Ok(())
    }

    /// Versions of rules are written, then known to be. Returns whether there were some.
    fn keep_rules(&mut self) -> bool {
        if self.rng.u8(..20) == 0 {
            self.prune_rules();
        }
        let Some(run) = &mut self.run else { return false };
        if let Some(number) = run.rules_kept.take() {
            run.streamer.rules_written(number);
            return true;
        }
        let most = self.rng.usize(1..4);
        let commits: Vec<_> = run.streamer.rule_commits().take(most).cloned().collect();
        let Some(last) = commits.last() else { return false };
        run.rules_kept = Some(last.number);
        if self.bug == Bug::RulesOnSend {
            run.streamer.rules_written(last.number);
            run.rules_kept = None;
            run.rules_sent_off = commits;
            return true;
        }
        self.write_rules(commits);
        true
    }

    fn write_rules(&mut self, commits: Vec<RuleCommit>) {
        for RuleCommit { commit_lsn, mut changes, replaces, .. } in commits {
            if replaces && self.bug != Bug::KeepVoidRules {
                self.rule_versions.retain(|(since, _)| *since < commit_lsn.0);
            }
            if self.bug == Bug::KeepDeletedRules {
                changes.retain(|change| change.row.is_some());
            }
            let is_known = |(since, _): &(u64, _)| *since == commit_lsn.0;
            if !self.rule_versions.iter().any(is_known) {
                self.rule_versions.push((commit_lsn.0, changes));
            }
        }
    }

    /// A claim check goes into the object store. Returns whether there was one.
    fn store(&mut self) -> Result<bool, String> {
        let Some(run) = &mut self.run else { return Ok(false) };
        let waits = |&index: &usize| run.streamer.lane(index).claim_check().is_some();
        let waiting: Vec<_> = (0..run.streamer.lane_count()).filter(waits).collect();
        let waiting: Vec<_> = waiting
            .into_iter()
            .filter(|&index| !self.jetstream.down.contains(&run.server_of(index, Bug::None)))
            .collect();
        if waiting.is_empty() {
            return Ok(false);
        }
        let index = waiting[self.rng.usize(..waiting.len())];
        let lane = run.streamer.lane_mut(index);
        let claim_check = lane.claim_check().expect("just seen");
        let (number, name) = (claim_check.number, claim_check.position.id(SOURCE));
        let claim = Claim { bucket: "o".to_owned(), name, sha256: "0".repeat(64) };
        let object = format!("o/{}", claim.name);
        match run.storing.remove(&index).filter(|(storing, _)| *storing == number) {
            Some((_, true)) => lane.claim(number, &claim),
            _ if self.bug == Bug::ClaimOnSend => lane.claim(number, &claim),
            _ if self.rng.u8(..30) == 0 => {
                lane.give_up(number, "it refuses");
                self.oracle.cannot_be_claimed(claim.name);
                if let Err(error) = run.streamer.reject() {
                    self.ends(&error)?;
                }
            }
            _ => {
                self.jetstream.objects.insert(object, claim_check.payload.to_vec());
                run.storing.insert(index, (number, true));
            }
        }
        Ok(true)
    }

    /// What is due is asked for, then written, then confirmed. Returns whether there was something to do.
    fn checkpoint(&mut self) -> Result<bool, String> {
        let Some(run) = &mut self.run else { return Ok(false) };
        match run.checkpointing.take() {
            Some((due, false)) => {
                for (index, sequence) in
                    due.kept.iter().map(sequence_of).enumerate().filter(|(_, sequence)| *sequence > 0)
                {
                    let lane = run.streamer.lane(index);
                    let seen = lane.last_stored().map_or(0, |(_, sequence)| sequence);
                    let kept = lane.retained_through().max(Some(sequence));
                    self.checkpoints.insert(run.key_of(index, Bug::None), (seen, kept));
                }
                run.checkpointing = Some((due, true));
            }
            Some((due, true)) => run.streamer.checkpointed(due),
            None => {
                let Some(due) = run.streamer.due() else { return Ok(false) };
                if self.bug != Bug::ConfirmUnasked {
                    for &index in &due.news {
                        let lane = run.streamer.lane(index);
                        if run.is_core(index) {
                            continue;
                        }
                        // Also of a stream to which nothing leads any more.
                        let is_retired =
                            !run.streamer.lane_is_wanted(index) && lane.is_empty() && !run.is_on_line(index);
                        let is_asked = lane.is_open() || (is_retired && self.bug != Bug::LeaveRetiredUnasked);
                        if self.jetstream.down.contains(&run.server_of(index, Bug::None)) || !is_asked {
                            return Ok(false);
                        }
                        let messages = &self.jetstream.stream(&run.key_of(index, Bug::None)).messages;
                        let is_its = |(position, sequence): (EventPosition, u64)| {
                            let at = messages.iter().find(|message| message.sequence == sequence);
                            at.is_some_and(|message| message.event.as_deref() == Some(&position.id(SOURCE)))
                        };
                        if due.kept[index].is_some_and(|kept| !is_its(kept)) {
                            let what = format!("{} has lost something", lane.stream());
                            return self.ends(&walhook::error::Error::unavailable(what)).map(|()| true);
                        }
                    }
                }
                run.checkpointing = Some((due, false));
            }
        }
        Ok(true)
    }

    /// The back history writer: rows of the history.
    fn record(&mut self) -> Result<(), String> {
        let Some(run) = &mut self.run else { return Ok(()) };
        for (bytes, rows) in std::mem::take(&mut run.sent_off) {
            self.oracle.records(&bytes, rows);
        }
        let rules = std::mem::take(&mut run.rules_sent_off);
        self.write_rules(rules);
        let Some(run) = &mut self.run else { return Ok(()) };
        let (rows, is_written) = match run.recording.take() {
            Some(recording) => recording,
            None => {
                // Whether the patience of the edge has run out is a matter of chance here.
                run.streamer.set_history_stuck(self.swarm.lock_history > 0 && self.rng.bool());
                let away = self.rng.u64(..);
                for index in 0..run.streamer.lane_count() {
                    let lane = run.streamer.lane_mut(index);
                    lane.set_away(self.swarm.away > 0 && lane.front().is_some() && away >> index & 1 == 1);
                }
                let rows = run.streamer.take_history(|_| true);
                if let Some(what) = run.streamer.left_out() {
                    self.crash(&what);
                    return Ok(());
                }
                if rows.is_empty() {
                    return Ok(());
                }
                (rows, false)
            }
        };
        if is_written {
            rows.into_iter().for_each(|(book, batch)| run.streamer.recorded(book, batch));
            return Ok(());
        }
        let mut rows = rows;
        for (book, batch) in &mut rows {
            if let HistorySource::Lane(index) = book
                && !run.is_core(*index)
            {
                let stream = self.jetstream.stream(&run.key_of(*index, Bug::None));
                let place_of = |position: &EventPosition| {
                    stream.events.get(&position.id(SOURCE)).map_or(Place::Unknown, |at| Place::At(*at))
                };
                let places: Vec<_> = batch.unlocated().map(|(position, _)| place_of(position)).collect();
                batch.locate(&places);
            }
            if self.bug == Bug::RecordOnSend {
                run.sent_off.push((batch.bytes().to_vec(), batch.len()));
            } else {
                self.oracle.records(batch.bytes(), batch.len());
            }
        }
        if self.bug == Bug::RecordOnSend {
            rows.into_iter().for_each(|(book, batch)| run.streamer.recorded(book, batch));
            return Ok(());
        }
        run.recording = Some((rows, true));
        Ok(())
    }

    /// What must hold after every step.
    fn check(&mut self) -> Result<(), String> {
        self.oracle.looks(&self.jetstream)?;
        if self.swarm.window_bytes >= 1 << 20 {
            self.oracle.finds_transactions_whole(&self.jetstream, &self.atomic)?;
        }
        let Some(run) = &mut self.run else { return Ok(()) };
        let (confirmed, received) = (run.streamer.confirmed(), run.streamer.received());
        if confirmed > received {
            return Err(format!("{confirmed} is confirmed, {received} received"));
        }
        self.oracle.confirms(
            &mut run.view,
            confirmed.0.max(self.postgres.confirmed),
            &self.postgres,
            &self.jetstream,
        )?;
        for index in 0..run.streamer.lane_count() {
            let lane = run.streamer.lane(index);
            // A transaction that waits for its end may take as many as a batch.
            let held = if lane.batches() == Batches::None && !self.swarm.flips { 0 } else { BATCH_MAX };
            if lane.len() > self.swarm.window_events.max(held) + EVENTS_A_MESSAGE
                || lane.bytes() > self.swarm.window_bytes + EVENTS_A_MESSAGE * MESSAGE_MAX
            {
                return Err(format!("lane {index} holds {} events, {} bytes", lane.len(), lane.bytes()));
            }
        }
        Ok(())
    }

    /// What a passed seed has seen, to know that the simulation is not idle.
    pub fn tally(&self) -> HashMap<&'static str, u64> {
        let stored = self.jetstream.streams.iter().map(|stream| stream.events.len() as u64).sum();
        HashMap::from([
            ("stored", stored),
            ("dead letters", self.oracle.dead_letters.len() as u64),
            ("runs", self.runs),
            ("transactions", self.postgres.transactions.len() as u64),
            ("forgotten", self.jetstream.forgotten.len() as u64),
            ("forgotten and filled again", self.oracle.filled_again(&self.jetstream)),
            ("to core NATS", self.jetstream.core_published.len() as u64),
            ("objects", self.jetstream.objects.len() as u64),
        ])
    }
}

impl Run {
    fn is_core(&self, index: usize) -> bool {
        self.streamer.lane_key(index).stream.is_none()
    }

    /// The server of a lane, which is its configuration's.
    fn server_of(&self, index: usize, bug: Bug) -> i32 {
        if bug == Bug::OneServer { 1 } else { self.streamer.lane_key(index).config_id }
    }

    /// Where a lane leads, as the models call it.
    fn key_of(&self, index: usize, bug: Bug) -> String {
        let server = self.server_of(index, bug);
        match &self.streamer.lane_key(index).stream {
            Some(name) => format!("{server}/{name}"),
            None => core_of(server),
        }
    }

    fn is_on_line(&self, index: usize) -> bool {
        match self.drivers[index].phase {
            Phase::Opening { .. } => false,
            Phase::Running(_) | Phase::Settling(..) => true,
        }
    }

    /// The lanes of the same configuration into JetStream, where this one leads to core NATS, or the other way round.
    fn other_half(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        let (config, is_core) = (self.streamer.lane_key(index).config_id, self.is_core(index));
        let lanes = 0..self.drivers.len();
        lanes.filter(move |&other| self.streamer.lane_key(other).config_id == config && self.is_core(other) != is_core)
    }

    /// As `commands/run/lanes` has it: first comes what is left from before the switch.
    fn has_its_turn(&self, index: usize) -> bool {
        let is_left = |other: usize| !self.streamer.lane_is_wanted(other) && !self.streamer.lane(other).is_at_rest();
        let is_under_way = |other: usize| self.is_on_line(other) && self.streamer.lane(other).awaits_answers();
        let (config, is_core) = (self.streamer.lane_key(index).config_id, self.is_core(index));
        let mut here = (0..self.drivers.len())
            .filter(|&other| self.streamer.lane_key(other).config_id == config && self.is_core(other) == is_core);
        !self.other_half(index).any(is_under_way)
            && (!self.other_half(index).any(is_left) || (here.any(is_left) && !is_core))
    }
}

fn put_versions(rows: &mut Rows, changes: &[RuleChange]) {
    for RuleChange { table, id, row, is_partial } in changes {
        match row {
            None => drop(rows.remove(&(*table, *id))),
            Some(row) if *is_partial => rows.entry((*table, *id)).or_default().extend(row.clone()),
            Some(row) => drop(rows.insert((*table, *id), row.clone())),
        }
    }
}
