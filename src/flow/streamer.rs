//! The one stateful heart: WAL stream in, messages for the lanes out, acks back, a confirmed LSN at the end.
//!
//! Comes in: CopyData payloads, one by one, and what the lanes' streams answer. Goes out: bytes in the lanes, dead
//! letters, the status for PostgreSQL, notices for the log. Always holds:
//!
//! 1. `confirmed ≤ received`, and both only grow.
//! 2. `confirmed` is the end of a commit before which every event is settled (stored, or durable as a dead letter), or
//!    a keepalive's position while nothing is unsettled and no transaction is open.
//! 3. An event is settled or in a lane or among the dead letters; none is dropped.
//!
//! How events are made is in `encoder`, which rules hold in `router`, dead letters in `dead_letters`, rows of the history in
//! `records`, what may be confirmed in `confirming`.
//!
//! Knows no socket and no clock, so tests and the simulator drive it directly.

mod backfill;
mod confirming;
mod dead_letters;
mod emitted;
mod encoder;
mod ends;
mod records;
mod router;
mod rule_log;

use std::time::Duration;

use super::{
    delay::Delay,
    lane::{Batches, Doubt, Lane, Mode, Ordering, Timestamps},
};
use crate::{
    error::{Error, Result},
    route::{
        chunk::Chunk,
        chunk_row::Part,
        emitted::EmitKeys,
        plan::Plan,
        rules::{LaneKey, Webhook},
        seal::SealKeys,
        tables::{ServerAlias, Table, Tables},
        types::TypeCatalog,
    },
    wal::{
        change::{Assembler, Change, Op, Step},
        frame::Frame,
        lsn::Lsn,
    },
};
use confirming::rewritten;
pub use dead_letters::{DeadLetter, Halted, Obstacle};
use encoder::EventEncoder;
use ends::StreamEnds;
use router::Router;
pub use router::{Amendment, LaneSettings, RulesRead};
pub use rule_log::{RuleChange, RuleCommit};

/// How much may be unsettled before reading stops.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Events per lane.
    pub window_events: usize,
    /// Bytes per lane, of whole messages.
    pub window_bytes: usize,
    /// Bytes per lane, of rows of the history that are not durable yet.
    pub history_bytes: usize,
}

/// Dead letters that wait for their row, before reading stops.
const DEAD_LETTERS_WAITING_MAX: usize = 1000;

/// What a received message asks of the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Nothing.
    Nothing,
    /// The server wants a status at once.
    ReplyRequested,
    /// A table has columns of types that the catalog lacks: read it and call [`Streamer::set_types`].
    UnknownTypes,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Row operations received, by [`Op::index`].
    pub changes: [u64; Op::COUNT],
    /// Events made of them.
    pub events: u64,
    /// Events that the stream had already.
    pub skipped: u64,
    /// Events that became dead letters, by [`Obstacle`].
    pub dead_letters: [u64; Obstacle::ALL.len()],
    /// Logical messages received with the prefix of `rule_webhook_emit`.
    pub emitted: u64,
    /// How many of them were none of the function's, and were ignored.
    pub emitted_refused: u64,
}

/// Of one webhook, since the session began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WebhookCounts {
    /// Events made for it.
    pub events: u64,
    /// How many of them became dead letters.
    pub dead: u64,
    /// When the last one was committed, in µs since 2000-01-01.
    pub last: i64,
}

/// See the module.
#[derive(Debug)]
pub struct Streamer {
    assembler: Assembler,
    plans: Vec<Option<Plan>>,
    /// The chunk of a backfill whose rows are arriving.
    chunk: Option<Chunk>,
    router: Router,
    out: EventEncoder,
    /// A keepalive's position that may be confirmed once all is settled, if nothing comes before.
    idle_upto: Option<Lsn>,
    delay: Delay,
    ends: StreamEnds,
    now: Timestamps,
    awaits_types: bool,
    /// See [`Streamer::doubt`].
    doubts: Vec<Doubt>,
    /// By which messages of `rule_webhook_emit` are recognized.
    emit_keys: EmitKeys,
    /// The slot sends logical messages.
    reads_messages: bool,
}

impl Streamer {
    /// A streamer for the feed `source`, published by run `epoch`, with the configuration as it was at `confirmed`.
    /// Replies to messages come below the subject `inbox`. PostgreSQL has confirmed up to `confirmed`.
    pub fn new(
        source: &str,
        epoch: u64,
        inbox: &str,
        limits: Limits,
        tables: Tables,
        types: TypeCatalog,
        confirmed: Lsn,
    ) -> Streamer {
        let mut streamer = Streamer {
            assembler: Assembler::default(),
            plans: Vec::new(),
            chunk: None,
            router: Router::new(tables, types),
            out: EventEncoder::new(source, epoch, inbox, limits, confirmed),
            idle_upto: None,
            delay: Delay::new(Duration::ZERO, confirmed),
            ends: StreamEnds::new(confirmed),
            now: Timestamps::default(),
            awaits_types: false,
            doubts: Vec::new(),
            emit_keys: EmitKeys::default(),
            reads_messages: false,
        };
        streamer.refresh();
        streamer
    }

    /// What is settled is confirmed only so much later.
    #[must_use]
    pub fn with_confirm_delay(mut self, delay: Duration) -> Streamer {
        self.delay = Delay::new(delay, self.confirmed());
        self
    }

    /// The name of the database, for payloads that tell it.
    pub fn set_database(&mut self, name: &str) {
        name.clone_into(&mut self.out.transaction.database);
    }

    /// The keys with which payloads are sealed from here on.
    pub fn set_seal_keys(&mut self, keys: SealKeys) {
        self.router.tables.seal_keys = keys;
        self.router.is_stale = true;
    }

    /// The newest configuration rows, as a statement read them: they say how to reach a stream and what its limits are, and
    /// never where an event goes. `compares`: once the WAL has been read up to where they were read, following it must have led
    /// to the same rows; where it has not, they are in force from there on.
    pub fn set_newest_rules(&mut self, read: RulesRead, compares: bool) {
        self.router.set_newest(read, compares);
    }

    /// Rules that operators put in force at events, in the order of these.
    pub fn set_amendments(&mut self, amendments: Vec<Amendment>) {
        let confirmed = self.confirmed();
        for amendment in &amendments {
            self.doubt((amendment.commit_lsn, amendment.ordinal), amendment.rules.upto);
        }
        self.router.set_amendments(amendments, confirmed);
    }

    /// Events from `from` on, a commit and an ordinal, up to those that commit at `upto` may have been published by other rules in an
    /// earlier session.
    pub fn doubt(&mut self, from: (Lsn, u64), upto: Lsn) {
        if upto >= self.confirmed() {
            self.doubts.push(Doubt { from, upto });
            self.set_doubts();
        }
    }

    fn set_doubts(&mut self) {
        let confirmed = self.confirmed();
        self.doubts.retain(|doubt| doubt.upto >= confirmed);
        for lane in &mut self.out.lanes {
            lane.set_doubts(&self.doubts, confirmed);
        }
    }

    /// Transactions that changed rules and whose versions are not durable yet, the oldest first. Nothing behind them is
    /// confirmed before [`Streamer::rules_written`].
    pub fn rule_commits(&self) -> impl ExactSizeIterator<Item = &RuleCommit> {
        self.router.log.waiting()
    }

    /// The versions up to and with this commit are durable.
    pub fn rules_written(&mut self, number: u64) {
        self.router.log.written(number);
        self.settle();
    }

    /// Takes one CopyData payload.
    ///
    /// # Errors
    /// Bytes that do not follow the protocol; an event that cannot be published for a webhook with `on_error = halt`;
    /// a stream whose history is not this database's.
    pub fn receive(&mut self, copy_data: &[u8]) -> Result<Received> {
        let frame = Frame::parse(copy_data).map_err(|error| {
            Error::protocol(format!("read the WAL stream after {}", self.out.window.received())).caused_by(error)
        })?;
        match frame {
            Frame::Keepalive { end, reply_requested, .. } => {
                if self.assembler.transaction().is_none() {
                    self.ends.pass(end).map_err(|missing| rewritten(&self.out.lanes, missing))?;
                    self.compare_rules(end);
                    self.idle_upto = Some(end);
                    self.settle();
                }
                Ok(if reply_requested { Received::ReplyRequested } else { Received::Nothing })
            }
            Frame::XLogData { start, data, .. } => {
                self.out.window.receive(start);
                self.message(data, start)
            }
        }
    }

    fn message(&mut self, data: &[u8], at: Lsn) -> Result<Received> {
        self.out.transaction.row_lsn = at;
        match self.assembler.take(data, at)? {
            Step::Nothing => {}
            Step::Message(message) => self.message_emitted(&message)?,
            Step::Type { oid, schema, name } => self.router.types.declare(oid, schema.is_empty(), &name.text()),
            Step::Begin => {
                self.idle_upto = None;
                self.chunk = None;
                let begun = self.assembler.transaction().expect("it has just begun");
                let (commit_lsn, commit_time) = (begun.commit_lsn, begun.commit_time);
                self.ends.begin(commit_lsn, commit_time).map_err(|missing| rewritten(&self.out.lanes, missing))?;
                self.router.begin(begun.commit_lsn);
                self.out.transaction.render(&self.out.source, begun.commit_lsn, begun.commit_time, begun.xid);
            }
            Step::Relation(index) => {
                self.plans.resize_with(self.assembler.relation_count(), || None);
                self.plans[index] = None;
                let relation = self.assembler.relation(index);
                if relation.columns.iter().any(|column| self.router.types.class(column.type_oid).is_none()) {
                    self.awaits_types = true;
                    return Ok(Received::UnknownTypes);
                }
            }
            Step::Change(change) => self.change(&change)?,
            Step::Truncate(changes) => {
                for change in &changes {
                    self.change(change)?;
                }
            }
            Step::Commit { end_lsn } => {
                self.compare_rules(end_lsn);
                self.out.window.commit(end_lsn);
                self.out.lanes.iter_mut().for_each(Lane::end_transaction);
            }
        }
        Ok(Received::Nothing)
    }

    /// Between two transactions, the first of which ends at `upto`: rules that it changed, or that turn out to have changed
    /// unseen, wait for their versions to be durable.
    fn compare_rules(&mut self, upto: Lsn) {
        self.router.compare(upto);
        if self.router.log.has_open() {
            // Versions count for all positions behind them; a transaction's own record lies before its end.
            self.router.log.commit(self.out.window.count_event(), Lsn(upto.0.saturating_sub(1)));
        }
    }

    fn change(&mut self, change: &Change<'_>) -> Result<()> {
        if self.router.awaits_amendment() {
            self.router.amend_at(change.position);
        }
        self.out.counts.changes[change.op.index()] += 1;
        let relation = self.assembler.relation(change.relation);
        // Rules are compiled when a row needs them, not for each of the rows that change them.
        if self.router.is_stale && Table::named(&relation.schema, &relation.name).is_none() {
            self.refresh();
        }
        let relation = self.assembler.relation(change.relation);
        let plan = self.plans[change.relation]
            .get_or_insert_with(|| self.router.plan(relation, self.assembler.partitions(change.relation)));
        match plan {
            Plan::Unlinked => Ok(()),
            Plan::Configuration(table) => {
                let columns = relation.columns.iter().map(|column| column.name.as_str());
                self.router.configure(*table, change, columns).map_err(|error| {
                    error.context(format!("follow the configuration at {}", change.position.commit_lsn))
                })
            }
            Plan::Events(columns) => match (change.op, change.new) {
                (Op::Insert, Some(row)) => self.out.call(&self.router.rules, columns, row, change.position),
                // Trimming and mending of the event table are not events.
                _ => Ok(()),
            },
            Plan::Linked(table) => self.out.row(&self.router.rules, table, change, None),
            Plan::EmitKeys(columns) => {
                self.emit_keys.follow(*columns, change);
                self.ask_for_messages()
            }
            Plan::Backfill(columns) => {
                match change.new.filter(|_| change.op == Op::Insert).and_then(|row| columns.of(row)) {
                    Some(Part::Head(text)) => {
                        self.begin_chunk(text);
                        Ok(())
                    }
                    Some(Part::Row(bytes)) => self.chunk_row(bytes, change),
                    None => Ok(()),
                }
            }
        }
    }

    /// Follows changes of rules that no row has needed yet. To be called when all there is was read: within a transaction that
    /// changes many rules it does nothing.
    pub fn follow_rules(&mut self) {
        if self.assembler.transaction().is_none() {
            self.refresh();
        }
    }

    /// After [`Streamer::set_newest_rules`]. Between transactions all rules are compiled again. Within one only the settings by which
    /// streams are reached are renewed: a full window may stop the reading until a stream can be reached with them.
    pub fn follow_newest_rules(&mut self) {
        if self.assembler.transaction().is_none() {
            self.refresh();
        } else {
            self.router.update_settings();
        }
    }

    /// Compiles the rules again where rows have changed, and makes queues for new streams.
    fn refresh(&mut self) {
        if !self.router.is_stale {
            return;
        }
        let before: Vec<i32> = self.router.rules.webhooks.iter().map(|webhook| webhook.id).collect();
        self.router.compile();
        self.out.follow_webhooks(&before, &self.router.rules);
        self.forget_plans();
        let keys = self.router.lane_keys.iter().zip(&self.router.lane_settings);
        for (index, (key, settings)) in keys.enumerate() {
            let row = settings.as_ref().map(|settings| &settings.stream).filter(|_| key.stream.is_some());
            let mode = row.map_or(Mode { ordering: Ordering::Core, batches: Batches::None }, Mode::of);
            if index == self.out.lanes.len() {
                let inbox = format!("{}.{index}", self.out.inbox);
                let lane = Lane::new(key.stream.as_deref().unwrap_or("(core NATS)"), mode.ordering, &inbox);
                let mut lane = lane.with_history_room(self.out.limits.history_bytes);
                lane.set_doubts(&self.doubts, self.out.window.confirmed());
                self.out.lanes.push(lane);
            }
            self.out.lanes[index].set_mode(mode, self.out.limits.window_bytes);
        }
        for index in 0..self.out.lanes.len() {
            // The rest of the transaction goes elsewhere, and what is there may have to wait until this is sent.
            if !self.lane_is_wanted(index) {
                self.out.lanes[index].end_transaction();
            }
        }
        self.out.hold_back();
    }

    /// Whether there is room for what the next message may bring. A lane that is away is not waited for while others
    /// flow: what it has no room for is left out ([`Streamer::left_out`]).
    pub fn has_room(&self) -> bool {
        let Limits { window_events, window_bytes, .. } = self.out.limits;
        self.has_room_within(window_events, window_bytes)
    }

    /// Whether so much room has come back that reading is worth while again: a window that was full and is opened for
    /// every ack would be filled a message at a time.
    pub fn has_ample_room(&self) -> bool {
        let Limits { window_events, window_bytes, .. } = self.out.limits;
        self.has_room() && self.has_room_within(window_events / 4 * 3 + 1, window_bytes / 4 * 3 + 1)
    }

    fn has_room_within(&self, events: usize, bytes: usize) -> bool {
        !self.awaits_types
            && self.out.dead_letters.len() < DEAD_LETTERS_WAITING_MAX
            && self.out.history.lets_pass()
            && self.out.lanes.iter().all(|lane| {
                lane.history_lets_pass() && (lane.has_room(events, bytes) || (lane.is_away() && self.out.others_flow()))
            })
    }

    /// Whether the catalog of types has to be read again before more can be taken.
    pub fn awaits_types(&self) -> bool {
        self.awaits_types
    }

    /// When the oldest event that no stream has acknowledged was committed, or else the transaction whose rows are arriving; in µs
    /// since 2000-01-01.
    pub fn oldest_commit_time(&self) -> Option<i64> {
        let waiting = self.out.lanes.iter().filter_map(Lane::oldest_commit_time).min();
        waiting.or_else(|| self.assembler.transaction().map(|transaction| transaction.commit_time))
    }

    /// The id of the transaction whose rows are arriving.
    pub fn open_transaction(&self) -> Option<u32> {
        self.assembler.transaction().map(|transaction| transaction.xid)
    }

    /// The catalog of types, read again.
    pub fn set_types(&mut self, types: TypeCatalog) {
        let before = std::mem::replace(&mut self.router.types, types);
        self.router.types.remember(before);
        self.awaits_types = false;
        self.forget_plans();
    }

    fn forget_plans(&mut self) {
        self.plans.fill_with(|| None);
        if let Some(chunk) = &mut self.chunk {
            chunk.forget_plan();
        }
    }

    /// How many lanes there are; it only grows.
    pub fn lane_count(&self) -> usize {
        self.out.lanes.len()
    }

    /// A lane.
    pub fn lane(&self, index: usize) -> &Lane {
        &self.out.lanes[index]
    }

    /// What time it is, for what happens in the lanes from here on.
    pub fn set_time(&mut self, now: Timestamps) {
        self.now = now;
        for lane in &mut self.out.lanes {
            lane.set_time(now);
        }
    }

    /// A lane, to be sent from and answered to.
    pub fn lane_mut(&mut self, index: usize) -> &mut Lane {
        &mut self.out.lanes[index]
    }

    /// How to reach a lane's stream; when its rows are gone, as it was reached last.
    pub fn lane_settings(&self, index: usize) -> Option<LaneSettings> {
        self.router.lane_settings[index].clone()
    }

    /// What a lane leads to, by the rules of its events.
    pub fn lane_key(&self, index: usize) -> &LaneKey {
        &self.router.lane_keys[index]
    }

    /// The servers that the newest row of a configuration names, if there is one.
    pub(in crate::flow) fn newest_servers(&self, config_id: i32) -> Option<String> {
        self.router.newest_servers(config_id)
    }

    /// The alias by which events of a configuration that have come down the slot, and named `servers`, go to `alias_of`.
    pub fn alias(&self, config_id: i32, servers: &str, alias_of: &str) -> ServerAlias {
        self.router.alias(config_id, servers, alias_of, self.known_wal())
    }

    /// Two addresses of a configuration were seen to lead to one server.
    pub(in crate::flow) fn note_one_server(&mut self, config_id: i32, addresses: [String; 2]) {
        self.router.note_one_server(config_id, addresses);
        self.follow_rules();
    }

    /// Whether the rows as they are now lead to this lane.
    pub fn lane_is_wanted(&self, index: usize) -> bool {
        self.router.rules.rows_of(&self.router.lane_keys[index], &self.router.tables).is_some()
    }

    /// The subject below which a lane's answers come.
    pub fn lane_inbox(&self, index: usize) -> String {
        format!("{}.{index}", self.out.inbox)
    }

    /// Counts the compilations of the rules: when it changes, lane settings may have.
    pub fn generation(&self) -> u64 {
        self.router.generation
    }

    /// The configuration as it is at this place in the WAL.
    pub fn tables(&self) -> &Tables {
        &self.router.tables
    }

    /// What was left out, and could be taken now: it is time to read the slot again from what is confirmed.
    pub fn left_out(&mut self) -> Option<String> {
        let came_back = |lane: &&Lane| lane.leaves_out() && lane.is_open() && lane.in_flight().is_none();
        if let Some(lane) = self.out.lanes.iter().find(came_back) {
            return Some(format!(
                "stream {:?} can be reached again, and events for it were passed over meanwhile",
                lane.stream()
            ));
        }
        let mut histories = self.out.lanes.iter_mut().map(Lane::history).chain(std::iter::once(&mut self.out.history));
        histories.any(|history| history.unwritten().is_some()).then(|| {
            "rule_nats_publish_history takes rows again, and rows for it were passed over meanwhile".to_owned()
        })
    }

    /// Counters since the start.
    pub fn counts(&self) -> Counts {
        self.out.counts
    }

    /// The webhooks of the rules in force, in the order of their ids, and what was counted of each.
    pub fn webhooks(&self) -> (&[Webhook], &[WebhookCounts]) {
        (&self.router.rules.webhooks, &self.out.webhook_counts)
    }

    /// The commit and the ordinal of the last event that was counted for its webhook.
    pub fn counted(&self) -> (Lsn, u64) {
        self.out.counted
    }

    /// Events up to there come again, and were counted for their webhooks in an earlier session.
    pub fn set_counted(&mut self, upto: (Lsn, u64)) {
        (self.out.counted, self.out.counted_before) = (upto, upto);
    }

    /// What the log should tell, once.
    pub fn take_notices(&mut self) -> Vec<String> {
        let mut notices = std::mem::take(&mut self.router.notices);
        notices.append(&mut self.out.notices);
        notices
    }
}

#[cfg(test)]
mod tests;
