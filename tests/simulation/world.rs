//! All together: one seed, one history. Our side is driven as `commands/run` does it: the streamer and the driver are the crate's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write as _,
    time::Duration,
};

use fastrand::Rng;
use walhook::{
    error::Kind,
    flow::{
        delay::Due,
        driver::{
            Driver, Settings, StreamId, Timing,
            trust::{Checkpoint, Fork, RunIdentity},
        },
        event_id::EventPosition,
        history::{Batch, HistorySource, Place},
        lane::{BATCH_MAX, Batches, Timestamps},
        streamer::{DeadLetter, Halted, Limits, Received, RuleChange, RuleCommit, Streamer},
    },
    route::{
        tables::{RowText, Table, Tables},
        types::{Scalar, TypeCatalog, TypeKind},
    },
    wal::lsn::Lsn,
};

use super::{
    configuration::Row,
    jetstream::{Answer, JetStream},
    oracle::{Oracle, SOURCE, View},
    postgres::{NEW_TYPE, Op, Postgres, Walsender},
    publishing::{EPOCHS_OF_A_TIMELINE, Models, Publishing, Stop},
    swarm::{Bug, Swarm, happens},
};

/// Events that one message can make: each webhook for each truncated table.
const EVENTS_A_MESSAGE: usize = 12;
/// Bytes of the largest message.
const MESSAGE_MAX: usize = 6000;
/// How long things may take, in steps; a step is a microsecond to the driver.
const TIMING: Timing = Timing {
    ack_timeout: Duration::from_micros(60),
    settle: Duration::from_micros(20),
    away: Duration::from_secs(3600),
    worked: Duration::from_micros(100),
    retry: (Duration::from_micros(2), Duration::from_micros(16)),
    reconnect: (Duration::from_micros(2), Duration::from_micros(2)),
};
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
    /// A run that has lost the slot and does not know it.
    older: Option<Publishing>,
    fork: Option<Fork>,
    fenced: u64,
    runs: u64,
    shared: HashSet<String>,
    /// Streams whose row wants batches, which the server takes.
    atomic: HashSet<String>,
    knows_new_type: bool,
    /// `rule_cdc_rule_versions`: the first version, the position from which it is complete, and what is behind it.
    first_rules: Option<(Rows, u64)>,
    rule_versions: Vec<(u64, Vec<RuleChange>)>,
    history_is_locked: bool,
    /// `rule_nats_checkpoints`, by their streams: where the WAL ended when each was written.
    checkpoints: HashMap<String, Vec<(u64, Checkpoint)>>,
    /// Streams that some run found with events of which nobody knows whether they were confirmed. What it says of them in its
    /// checkpoint, that the stream has to keep them all, the next runs believe.
    unsure: BTreeSet<String>,
    pub log: Option<String>,
}

/// A run of walhook, gone without a word when it crashes.
#[derive(Debug)]
struct Run {
    publishing: Publishing,
    view: View,
    walsender: Walsender,
    is_paused: bool,
    burial: Option<(Vec<DeadLetter>, bool)>,
    /// Rows of the history under way, and whether they are in.
    recording: Option<(Vec<(HistorySource, Batch)>, bool)>,
    /// The checkpoints under way, and whether they are in.
    checkpointing: Option<(Due, bool)>,
    /// With the bug: rows that are on their way.
    sent_off: Vec<(Vec<u8>, usize)>,
    rules_sent_off: Vec<RuleCommit>,
    /// Versions of rules are in up to the commit of this number.
    rules_kept: Option<u64>,
    last_keepalive: u64,
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
        if bug == Bug::RetireInTurn {
            swarm.configs = 2;
            swarm.configuration = swarm.configuration.max(200);
            swarm.cut = swarm.cut.max(30);
            (swarm.confirm_delay, swarm.halt) = (CONFIRM_DELAY, 0);
        }
        if bug == Bug::KeepDeletedRules {
            swarm.configuration = swarm.configuration.max(300);
            swarm.crash_us = swarm.crash_us.max(30);
            swarm.steps = 600;
        }
        if bug == Bug::IgnoreNewerRun {
            (swarm.linger, swarm.crash_us) = (1000, swarm.crash_us.max(20));
        }
        if bug == Bug::IgnoreFork {
            (swarm.fail_over, swarm.halt, swarm.linger) = (10, 0, 1000);
            swarm.crash_us = swarm.crash_us.max(20);
        }
        if bug == Bug::TrustRecreated {
            (swarm.recreate, swarm.confirm_delay) = (10, 0);
        }
        if bug == Bug::GiveUpForGood {
            (swarm.max_attempts, swarm.crash_nats) = (1, swarm.crash_nats.max(20));
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
            older: None,
            fork: None,
            fenced: 0,
            runs: 0,
            knows_new_type: false,
            first_rules: None,
            rule_versions: Vec::new(),
            history_is_locked: false,
            checkpoints: HashMap::new(),
            unsure: BTreeSet::new(),
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
        if self.older.is_some() && self.rng.u8(..4) == 0 {
            self.drive_older()?;
        }
        match self.rng.u8(..21) {
            0 if self.rng.bool() => self.postgres.other_activity(&mut self.rng),
            0..=1 if self.postgres.transactions.len() < 80 => self.postgres.commit_random(&mut self.rng, &self.swarm),
            2..=7 => self.pump(10)?,
            8..=12 => self.drive(false)?,
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
        let run = self.run.as_mut().expect("it was started");
        run.publishing.streamer.set_time(now);
        if let Some(older) = &mut self.older {
            older.streamer.set_time(now);
        }
    }

    fn faults(&mut self) {
        let World { rng, swarm, .. } = self;
        if happens(rng, swarm.crash_us) {
            if happens(rng, swarm.linger) {
                self.lose_slot();
            } else {
                self.crash("we crash");
            }
        } else if self.older.is_some() && rng.u8(..100) == 0 {
            self.end_older();
        } else if swarm.fail_over > 0
            && happens(rng, swarm.fail_over)
            && self.fork.is_none()
            && !self.postgres.has_amendments()
        {
            self.fail_over();
        } else if happens(rng, swarm.recreate) && swarm.confirm_delay == 0 {
            let key = self.jetstream.recreate(rng);
            self.say(|| format!("{key} is made anew"));
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
            linger: 0,
            recreate: 0,
            fail_over: 0,
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
        self.end_older();
        // Who was given up is tried again.
        self.postgres.touch_configs(&mut self.rng);
        for _ in 0..4000 {
            self.tick();
            self.pump(50)?;
            self.drive(true)?;
            for _ in 0..4 {
                self.jetstream.process(&mut self.rng, &self.swarm, self.bug, &self.postgres, self.now)?;
            }
            self.job()?;
            self.record()?;
            self.report()?;
            self.check()?;
            if let Some(run) = &self.run
                && run.walsender.is_idle(&self.postgres)
                && run.publishing.streamer.is_drained()
                && self.postgres.confirmed == self.postgres.wal_end
            {
                return self.oracle.reads_history(&self.jetstream);
            }
        }
        let bug = self.bug;
        let lanes = self.run.iter().flat_map(|run| {
            let streamer = &run.publishing.streamer;
            (0..streamer.lane_count()).map(move |index| {
                let (lane, is_wanted) = (streamer.lane(index), streamer.lane_is_wanted(index));
                let (oldest, front, is_open) = (lane.oldest(), lane.front(), lane.is_open());
                let key = run.publishing.key_of(StreamId(index), bug);
                format!("{key}: open {is_open}, wanted {is_wanted}, oldest {oldest:?}, front {front:?}")
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
        let checkpoints = self.checkpoints.iter().filter_map(|(key, written)| Some((key, &written.last()?.1)));
        let driver = Driver::new(Settings {
            run: RunIdentity { source: SOURCE.to_owned(), epoch, fork: self.fork, is_upgraded: false },
            timing: TIMING,
            delays_confirming: self.swarm.confirm_delay > 0,
            server_wal: Lsn(self.postgres.wal_end),
            checkpoints: checkpoints.clone().map(|(_, known)| known.clone()).collect(),
            seed: epoch,
        });
        #[cfg(feature = "fault-points")]
        let driver = driver.with_flaw(self.bug.flaw());
        self.run = Some(Run {
            publishing: Publishing::new(streamer, driver, epoch, checkpoints),
            view: View::new(&self.postgres),
            walsender: self.postgres.start_replication(),
            is_paused: false,
            burial: None,
            recording: None,
            checkpointing: None,
            sent_off: Vec::new(),
            rules_sent_off: Vec::new(),
            rules_kept: None,
            last_keepalive: 0,
        });
    }

    /// The run's way to the streams, and the models.
    fn publishing(&mut self) -> Option<(&mut Publishing, Models<'_>)> {
        let World { rng, swarm, bug, jetstream, postgres, oracle, now, run, .. } = self;
        let models = Models { rng, swarm, bug: *bug, jetstream, postgres, oracle, now: *now };
        Some((&mut run.as_mut()?.publishing, models))
    }

    /// The run is cut off from PostgreSQL and does not know it: it goes on publishing, while the next one takes the slot.
    fn lose_slot(&mut self) {
        self.end_older();
        self.say(|| "we are cut off from PostgreSQL".to_owned());
        self.older = self.run.take().map(|run| run.publishing);
    }

    fn end_older(&mut self) {
        let World { rng, swarm, bug, jetstream, postgres, oracle, now, older, .. } = self;
        let mut models = Models { rng, swarm, bug: *bug, jetstream, postgres, oracle, now: *now };
        if let Some(older) = older.take() {
            older.leave(&mut models);
        }
    }

    /// Lets the run do what it can that has lost the slot.
    fn drive_older(&mut self) -> Result<(), String> {
        let World { rng, swarm, bug, jetstream, postgres, oracle, now, older, .. } = self;
        let mut models = Models { rng, swarm, bug: *bug, jetstream, postgres, oracle, now: *now };
        let Some(older) = older else { return Ok(()) };
        let outcome = older.drive(&mut models, false);
        self.unsure.append(&mut older.unsure);
        for line in std::mem::take(&mut older.log) {
            self.say(|| line);
        }
        let error = match outcome {
            Ok(()) => return Ok(()),
            Err(Stop::Ends(error)) => error,
            Err(Stop::Wrong(what)) => return Err(what),
        };
        self.say(|| format!("the older run ends: {error:?}"));
        self.fenced += u64::from(error.kind() == Kind::Fenced);
        let is_halted = error.cause_as::<Halted>().is_some();
        let is_changed = self.jetstream.has_forgotten || self.fork.is_some();
        match error.kind() {
            Kind::Fenced => {}
            Kind::Config if is_halted => {}
            Kind::Untrusted | Kind::Unavailable if is_changed => {}
            _ => return Err(format!("the older run stops: {error:?}")),
        }
        self.end_older();
        Ok(())
    }

    /// A standby is promoted. What the database noted behind the fork is gone with it.
    fn fail_over(&mut self) {
        self.say(|| "PostgreSQL fails over".to_owned());
        if happens(&mut self.rng, self.swarm.linger) {
            self.lose_slot();
        } else {
            self.crash("we lose the slot");
        }
        let at = self.postgres.fail_over(&mut self.rng);
        self.runs += EPOCHS_OF_A_TIMELINE;
        self.fork = Some(Fork { at: Lsn(at), first_epoch: self.runs + 1 });
        self.oracle.lost_history = Some((at, 2_000_000));
        self.rule_versions.retain(|(since, _)| *since < at);
        for written in self.checkpoints.values_mut() {
            written.retain(|(wal_end, _)| *wal_end <= at);
        }
        self.say(|| format!("the timeline was left at {at}"));
    }

    /// The operator decides which events of the streams are valid, and accepts what they have lost.
    fn put_streams_right(&mut self) -> bool {
        let oracle = &self.oracle;
        let deleted = self.jetstream.delete(|event| oracle.is_of_lost_history(event));
        for (key, written) in &mut self.checkpoints {
            let stream = self.jetstream.stream(key);
            let is_whole =
                |known: &Checkpoint| known.created_ns == stream.created_ns && known.sequence <= stream.last_sequence;
            written.retain(|(_, known)| is_whole(known));
        }
        deleted > 0
    }

    /// Lets the driver do what it can, or some of it.
    fn drive(&mut self, all: bool) -> Result<(), String> {
        let Some((publishing, mut models)) = self.publishing() else { return Ok(()) };
        let outcome = publishing.drive(&mut models, all);
        let mut unsure = std::mem::take(&mut publishing.unsure);
        for line in std::mem::take(&mut publishing.log) {
            self.say(|| line);
        }
        self.unsure.append(&mut unsure);
        match outcome {
            Ok(()) => Ok(()),
            Err(Stop::Ends(error)) => self.ends(&error),
            Err(Stop::Wrong(what)) => Err(what),
        }
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
        if let Some((publishing, mut models)) = self.publishing() {
            publishing.leave(&mut models);
        }
        self.run = None;
    }

    /// walhook ends with an error: only where that is right.
    fn ends(&mut self, error: &walhook::error::Error) -> Result<(), String> {
        self.say(|| format!("{error:?}"));
        let names = |key: &String| {
            key.split_once('/').is_some_and(|(_, name)| error.to_string().contains(&format!("{name:?}")))
        };
        let is_unsure = self.unsure.iter().any(names);
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
                self.end_older();
            }
            Kind::Untrusted if self.fork.is_some() && self.put_streams_right() => {}
            Kind::Untrusted if self.jetstream.has_forgotten && (self.swarm.confirm_delay == 0 || is_unsure) => {
                self.put_streams_right();
            }
            // The stream was set back, and the slot has what it lost: the next run goes on from there.
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
            let has_room = if run.is_paused {
                run.publishing.streamer.has_ample_room()
            } else {
                run.publishing.streamer.has_room()
            };
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
            match run.publishing.streamer.receive(&frame) {
                Ok(Received::ReplyRequested) => self.report()?,
                Ok(_) => {}
                Err(error) => return self.ends(&error),
            }
        }
        if let Some(run) = &mut self.run {
            run.publishing.streamer.follow_rules();
        }
        Ok(())
    }

    /// The status for PostgreSQL.
    fn report(&mut self) -> Result<(), String> {
        let Some(run) = &mut self.run else { return Ok(()) };
        run.publishing.streamer.settle();
        let mut confirmed = run.publishing.streamer.confirmed().0;
        match self.bug {
            Bug::ConfirmOnReceipt => confirmed = run.publishing.streamer.received().0,
            // The end of a commit, and its record once more.
            Bug::ConfirmPastCommit => confirmed += 48,
            Bug::ConfirmKeepalives => confirmed = confirmed.max(run.last_keepalive),
            _ => {}
        }
        self.oracle.confirms(&mut run.view, confirmed, &self.postgres, &self.jetstream)?;
        self.postgres.confirmed = self.postgres.confirmed.max(confirmed);
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
                    run.publishing.streamer.dead_letter_written(&letter.event_id);
                }
            }
            None if run.publishing.streamer.awaits_types() => {
                self.knows_new_type = true;
                let types = self.types();
                self.run.as_mut().expect("it runs").publishing.streamer.set_types(types);
            }
            None if self.keep_rules() || self.checkpoint()? => {}
            None if self.rng.u8(..12) == 0 => self.write_checkpoints(None),
            None if run_has_trouble(&self.run) && self.rng.u8(..4) == 0 => {
                let read = self.postgres.read_rules();
                let streamer = &mut self.run.as_mut().expect("it runs").publishing.streamer;
                streamer.set_newest_rules(read, false);
                streamer.follow_newest_rules();
            }
            None => {
                let Some(run) = &mut self.run else { return Ok(()) };
                let most = self.rng.usize(1..10);
                let letters: Vec<_> = run.publishing.streamer.dead_letters().take(most).cloned().collect();
                if !letters.is_empty() {
                    if self.bug == Bug::BuryOnSend {
                        letters.iter().for_each(|letter| run.publishing.streamer.dead_letter_written(&letter.event_id));
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
            run.publishing.streamer.rules_written(number);
            return true;
        }
        let most = self.rng.usize(1..4);
        let commits: Vec<_> = run.publishing.streamer.rule_commits().take(most).cloned().collect();
        let Some(last) = commits.last() else { return false };
        run.rules_kept = Some(last.number);
        if self.bug == Bug::RulesOnSend {
            run.publishing.streamer.rules_written(last.number);
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

    /// What is due is asked for, then written, then confirmed. Returns whether there was something to do.
    fn checkpoint(&mut self) -> Result<bool, String> {
        let Some(run) = &mut self.run else { return Ok(false) };
        match run.checkpointing.take() {
            Some((due, false)) => {
                self.write_checkpoints(Some(&due));
                self.run.as_mut().expect("it runs").checkpointing = Some((due, true));
            }
            Some((due, true)) => run.publishing.streamer.checkpointed(due),
            None => {
                let Some(due) = run.publishing.streamer.due() else { return Ok(false) };
                if self.bug != Bug::ConfirmUnasked {
                    let can_be_asked = |lane| run.publishing.can_be_asked(lane, &self.jetstream);
                    let publishing = &run.publishing;
                    let asked = publishing.driver.retentions(&publishing.streamer, &due, can_be_asked);
                    let Some(asked) = asked else { return Ok(false) };
                    for (lane, retention) in asked.into_iter().filter(|(lane, _)| !run.publishing.is_core(*lane)) {
                        let stream = self.jetstream.stream(&run.publishing.key_of(lane, Bug::None));
                        let looked = retention.look_at(stream.created_ns, 1, stream.last_sequence);
                        let judged = looked.and_then(|sequence| {
                            let at = stream.messages.iter().find(|message| Some(message.sequence) == sequence);
                            let position = |id: &String| EventPosition::parse(id, SOURCE);
                            retention.judge(at.map(|message| message.event.as_ref().and_then(position)))
                        });
                        if let Err(error) = judged {
                            return self.ends(&error).map(|()| true);
                        }
                    }
                }
                run.checkpointing = Some((due, false));
            }
        }
        Ok(true)
    }

    /// Where the streams stand becomes durable.
    fn write_checkpoints(&mut self, due: Option<&Due>) {
        let Some(run) = &self.run else { return };
        let publishing = &run.publishing;
        for checkpoint in publishing.driver.checkpoints(&publishing.streamer, due) {
            let key = format!("{}/{}", if checkpoint.config_name == "default" { 1 } else { 2 }, checkpoint.stream);
            let written = self.checkpoints.entry(key).or_default();
            if written.last().is_none_or(|(_, last)| *last != checkpoint) {
                written.push((self.postgres.wal_end, checkpoint));
            }
        }
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
                run.publishing.streamer.set_history_stuck(self.swarm.lock_history > 0 && self.rng.bool());
                let away = self.rng.u64(..);
                for index in 0..run.publishing.streamer.lane_count() {
                    let lane = run.publishing.streamer.lane_mut(index);
                    lane.set_away(self.swarm.away > 0 && lane.front().is_some() && away >> index & 1 == 1);
                }
                let rows = run.publishing.streamer.take_history(|_| true);
                if let Some(what) = run.publishing.streamer.left_out() {
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
            rows.into_iter().for_each(|(book, batch)| run.publishing.streamer.recorded(book, batch));
            return Ok(());
        }
        let mut rows = rows;
        for (book, batch) in &mut rows {
            if let HistorySource::Lane(index) = book
                && !run.publishing.is_core(StreamId(*index))
            {
                let stream = self.jetstream.stream(&run.publishing.key_of(StreamId(*index), Bug::None));
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
            rows.into_iter().for_each(|(book, batch)| run.publishing.streamer.recorded(book, batch));
            return Ok(());
        }
        run.recording = Some((rows, true));
        Ok(())
    }

    /// What must hold after every step.
    fn check(&mut self) -> Result<(), String> {
        self.oracle.looks(&self.jetstream)?;
        if self.swarm.window_bytes >= 1 << 20 {
            self.oracle.finds_transactions_whole(&self.jetstream, &self.postgres, &self.atomic)?;
        }
        let Some(run) = &mut self.run else { return Ok(()) };
        let (confirmed, received) = (run.publishing.streamer.confirmed(), run.publishing.streamer.received());
        if confirmed > received {
            return Err(format!("{confirmed} is confirmed, {received} received"));
        }
        self.oracle.confirms(
            &mut run.view,
            confirmed.0.max(self.postgres.confirmed),
            &self.postgres,
            &self.jetstream,
        )?;
        for index in 0..run.publishing.streamer.lane_count() {
            let lane = run.publishing.streamer.lane(index);
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
            ("runs", self.runs % 1_000_000),
            ("fenced", self.fenced),
            ("failed over", u64::from(self.fork.is_some())),
            ("transactions", self.postgres.transactions.len() as u64),
            ("forgotten", self.jetstream.forgotten.len() as u64),
            ("forgotten and filled again", self.oracle.filled_again(&self.jetstream)),
            ("to core NATS", self.jetstream.core_published.len() as u64),
            ("objects", self.jetstream.objects.len() as u64),
            ("schemas", self.jetstream.schemas.len() as u64),
        ])
    }
}

/// Whether events wait for a stream that takes none of them.
fn run_has_trouble(run: &Option<Run>) -> bool {
    run.as_ref().is_some_and(|run| run.publishing.driver.has_trouble(&run.publishing.streamer))
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
