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
//! Knows no socket and no clock, so tests and the simulator drive it directly.

use std::collections::{HashMap, VecDeque};

use super::{
    event_id::EventPosition,
    history::{Batch, Book, History, Origin, Outcome},
    lane::{Condemned, Head, Lane, Moment, Noted, Ordering},
    window::Window,
};
use crate::{
    error::{Error, Result},
    route::{
        chunk::{Chunk, Part},
        headers,
        payload::{self, Body, TransactionText},
        plan::{EventColumns, Linked, Plan},
        rules::{Keep, LaneKey, OnError, Rules, Webhook},
        subject,
        tables::{Cell, ConfigRow, StreamRow, Table, Tables},
        types::TypeCatalog,
    },
    wal::{
        change::{Assembler, Change, Op, Position, Step},
        frame::Frame,
        lsn::Lsn,
        pgoutput::{Column, Tuple},
        snapshot::Snapshot,
    },
};

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
/// Longest message id of a caller's own that is taken, in bytes.
const MESSAGE_ID_MAX: usize = 512;

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

/// An event that cannot be published and waits for its row in `rule_nats_dead_letters`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the row's columns; sql/ explains them")]
pub struct DeadLetter {
    pub event_id: String,
    pub webhook_id: i32,
    pub webhook_name: Option<String>,
    pub subject: String,
    pub headers: String,
    pub payload: Vec<u8>,
    pub reason: String,
    pub commit_lsn: Lsn,
    number: u64,
    position: EventPosition,
    noted: Option<Noted>,
}

/// Why an event of a webhook with `on_error = halt` cannot be published: the cause of the error that says so, by which
/// it is told from others.
#[derive(Debug)]
pub struct Halted(String);

impl std::fmt::Display for Halted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Halted {}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Row operations received.
    pub changes: u64,
    /// Events made of them.
    pub events: u64,
    /// Events that the stream had already.
    pub skipped: u64,
    /// Events that became dead letters.
    pub dead_letters: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Streamer {
    assembler: Assembler,
    plans: Vec<Option<Plan>>,
    /// The chunk of a backfill whose rows are arriving.
    chunk: Option<Chunk>,
    router: Router,
    out: Outlet,
    /// A keepalive's position that may be confirmed once all is settled, if nothing comes before.
    idle_upto: Option<Lsn>,
    awaits_types: bool,
}

/// The configuration and what was compiled of it.
#[derive(Debug)]
struct Router {
    tables: Tables,
    rules: Rules,
    types: TypeCatalog,
    lane_keys: Vec<LaneKey>,
    /// The rows that each lane was last reached by: where they are gone, what is in the lane still has to get there.
    lane_rows: Vec<Option<(ConfigRow, StreamRow)>>,
    is_stale: bool,
    generation: u64,
    reported: HashMap<i32, String>,
    reported_streams: Vec<String>,
    notices: Vec<String>,
    /// Changes of the configuration that are in it already are passed over.
    snapshot: Option<Snapshot>,
}

/// Where events go.
#[derive(Debug)]
struct Outlet {
    source: String,
    epoch: u64,
    inbox: String,
    limits: Limits,
    lanes: Vec<Lane>,
    window: Window,
    dead_letters: VecDeque<DeadLetter>,
    /// Of dead letters that are durable.
    history: History,
    transaction: TransactionText,
    counts: Counts,
    // Working space, kept from event to event.
    id: Vec<u8>,
    subject: Vec<u8>,
    scratch: Vec<u8>,
    origin: Origin,
}

impl Streamer {
    /// A streamer for the feed `source`, published by run `epoch`, with the configuration as read at the start.
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
            router: Router {
                tables,
                rules: Rules::default(),
                types,
                lane_keys: Vec::new(),
                lane_rows: Vec::new(),
                is_stale: true,
                generation: 0,
                reported: HashMap::new(),
                reported_streams: Vec::new(),
                notices: Vec::new(),
                snapshot: None,
            },
            out: Outlet {
                source: source.to_owned(),
                epoch,
                inbox: inbox.to_owned(),
                limits,
                lanes: Vec::new(),
                window: Window::new(confirmed),
                dead_letters: VecDeque::new(),
                history: History::new(limits.history_bytes),
                transaction: TransactionText::default(),
                counts: Counts::default(),
                id: Vec::new(),
                subject: Vec::new(),
                scratch: Vec::new(),
                origin: Origin::default(),
            },
            idle_upto: None,
            awaits_types: false,
        };
        streamer.refresh();
        streamer
    }

    /// The name of the database, for payloads that tell it.
    pub fn set_database(&mut self, name: &str) {
        name.clone_into(&mut self.out.transaction.database);
    }

    /// What comes again from before the start is routed by the rules as they were read, which `snapshot` shows, and not
    /// by those of its time: changes of the rules that were read already are passed over. So rules that were mended since
    /// reach back to an event that stopped an earlier run.
    pub fn keep_rules_as_read(&mut self, snapshot: Snapshot) {
        self.router.snapshot = Some(snapshot);
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
            Step::Begin => {
                self.idle_upto = None;
                self.chunk = None;
                let begun = self.assembler.transaction().expect("it has just begun");
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
                self.out.window.commit(end_lsn);
                self.refresh();
            }
        }
        Ok(Received::Nothing)
    }

    fn change(&mut self, change: &Change<'_>) -> Result<()> {
        self.refresh();
        self.out.counts.changes += 1;
        let relation = self.assembler.relation(change.relation);
        let plan = self.plans[change.relation].get_or_insert_with(|| self.router.plan(relation));
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
            Plan::Backfill(columns) => {
                match change.new.filter(|_| change.op == Op::Insert).and_then(|row| columns.of(row)) {
                    Some(Part::Head(text)) => self.begin_chunk(text),
                    Some(Part::Row(bytes)) => self.chunk_row(bytes, change),
                    None => Ok(()),
                }
            }
        }
    }

    /// Compiles the rules anew where rows have changed, and opens places for new lanes.
    fn refresh(&mut self) {
        if !self.router.is_stale {
            return;
        }
        self.router.compile();
        self.forget_plans();
        for index in self.out.lanes.len()..self.router.lane_keys.len() {
            let key = &self.router.lane_keys[index];
            let rows = self.router.lane_rows[index].as_ref();
            let shared = rows.is_some_and(|(_, row)| row.ordering.as_deref() == Some("shared"));
            let ordering = match &key.stream {
                None => Ordering::Core,
                Some(_) if shared => Ordering::Shared,
                Some(_) => Ordering::Strict,
            };
            let inbox = format!("{}.{}", self.out.inbox, self.out.lanes.len());
            let lane = Lane::new(key.stream.as_deref().unwrap_or("(core NATS)"), ordering, &inbox);
            self.out.lanes.push(lane.with_history_room(self.out.limits.history_bytes));
        }
        self.out.hold_back();
    }

    /// Whether there is room for what the next message may bring.
    pub fn has_room(&self) -> bool {
        let Limits { window_events, window_bytes, .. } = self.out.limits;
        !self.awaits_types
            && self.out.dead_letters.len() < DEAD_LETTERS_WAITING_MAX
            && self.out.history.lets_pass()
            && self
                .out
                .lanes
                .iter()
                .all(|lane| lane.len() < window_events && lane.bytes() < window_bytes && lane.history_lets_pass())
    }

    /// Whether so much room has come back that reading is worth while again: a window that was full and is opened for
    /// every ack would be filled a message at a time.
    pub fn has_ample_room(&self) -> bool {
        let Limits { window_events, window_bytes, .. } = self.out.limits;
        self.has_room()
            && self
                .out
                .lanes
                .iter()
                .all(|lane| lane.len() <= window_events / 4 * 3 && lane.bytes() <= window_bytes / 4 * 3)
    }

    /// Whether the catalog of types has to be read again before more can be taken.
    pub fn awaits_types(&self) -> bool {
        self.awaits_types
    }

    /// The catalog of types, read again.
    pub fn set_types(&mut self, types: TypeCatalog) {
        self.router.types = types;
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
    pub fn set_time(&mut self, now: Moment) {
        for lane in &mut self.out.lanes {
            lane.set_time(now);
        }
    }

    /// A lane, to be sent from and answered to.
    pub fn lane_mut(&mut self, index: usize) -> &mut Lane {
        &mut self.out.lanes[index]
    }

    /// The rows that say how to reach a lane's stream; when they are gone, as they last were.
    pub fn lane_settings(&self, index: usize) -> Option<(ConfigRow, StreamRow)> {
        self.router.lane_rows[index].clone()
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

    /// Makes dead letters of the events that the lanes gave up. To be called when a lane was opened or refused
    /// something; until then nothing behind such an event is sent or confirmed.
    ///
    /// # Errors
    /// A webhook among theirs has `on_error = halt`.
    pub fn condemn(&mut self) -> Result<()> {
        for index in 0..self.out.lanes.len() {
            for condemned in self.out.lanes[index].take_condemned() {
                self.out.condemn(&self.router.rules, condemned)?;
            }
        }
        Ok(())
    }

    /// Dead letters that wait to be written, the oldest first.
    pub fn dead_letters(&self) -> impl ExactSizeIterator<Item = &DeadLetter> {
        self.out.dead_letters.iter()
    }

    /// The row of this dead letter is durable.
    pub fn buried(&mut self, event_id: &str) {
        while let Some(index) = self.out.dead_letters.iter().position(|letter| letter.event_id == event_id) {
            let letter = self.out.dead_letters.remove(index).expect("just found");
            if let Some(Noted { note, keep, data }) = &letter.noted {
                let outcome = Outcome::Failed { reason: &letter.reason };
                let data = &letter.payload[data.clone()];
                self.out.history.push(letter.number, &letter.position, note, data, *keep, outcome);
            }
        }
        self.out.hold_back();
        self.settle();
    }

    /// Rows for the publish history, to be written; of each book one batch at a time. To be given back to
    /// [`Streamer::recorded`] once they are durable. Rows whose sequence has to be looked up come only from lanes whose
    /// stream `can_be_asked`.
    pub fn take_history(&mut self, can_be_asked: impl Fn(usize) -> bool) -> Vec<(Book, Batch)> {
        let lanes = self.out.lanes.iter_mut().enumerate();
        let of_lanes = lanes.filter_map(|(index, lane)| {
            let history = lane.history();
            let batch = (!history.asks() || can_be_asked(index)).then(|| history.take())??;
            Some((Book::Lane(index), batch))
        });
        let mut batches: Vec<_> = of_lanes.collect();
        batches.extend(self.out.history.take().map(|batch| (Book::DeadLetters, batch)));
        batches
    }

    /// The rows of this batch are durable, or will never be and are given up.
    pub fn recorded(&mut self, book: Book, batch: Batch) {
        match book {
            Book::Lane(index) => self.out.lanes[index].history().recorded(batch),
            Book::DeadLetters => self.out.history.recorded(batch),
        }
        self.settle();
    }

    /// Says whether the history's table takes no rows at present. Then delivery goes on without: rows that there is no
    /// room for are left out, and hold the confirmation until the slot is read again ([`Streamer::owes_history`]).
    pub fn set_history_stuck(&mut self, is_stuck: bool) {
        self.out.history.set_stuck(is_stuck);
        for lane in &mut self.out.lanes {
            lane.history().set_stuck(is_stuck);
        }
    }

    /// Whether rows of the history were left out, and all others are durable: it is time to read the slot again.
    pub fn owes_history(&mut self) -> bool {
        let unkept = |history: &mut History| history.unkept().is_some();
        unkept(&mut self.out.history) || self.out.lanes.iter_mut().any(|lane| unkept(lane.history()))
    }

    /// Moves `confirmed` as far as what is settled allows.
    pub fn settle(&mut self) {
        let oldest = self.out.oldest();
        self.out.window.settle(oldest);
        if let Some(upto) = self.idle_upto
            && self.is_drained()
        {
            self.out.window.idle(upto);
            self.idle_upto = None;
        }
    }

    /// Whether all that was received whole is settled and no transaction is open.
    pub fn is_drained(&self) -> bool {
        self.assembler.transaction().is_none()
            && self.out.window.is_settled()
            && self.out.oldest() == self.out.window.next()
    }

    /// Whether every event made so far is settled, be its transaction complete or not.
    pub fn has_nothing_in_flight(&self) -> bool {
        self.out.oldest() == self.out.window.next()
    }

    /// What PostgreSQL may forget.
    pub fn confirmed(&self) -> Lsn {
        self.out.window.confirmed()
    }

    /// What has arrived.
    pub fn received(&self) -> Lsn {
        self.out.window.received()
    }

    /// How far PostgreSQL's WAL reaches, as far as it has told: what has arrived, and the commit of the transaction
    /// whose rows are arriving, which lies ahead of them.
    pub fn known_wal(&self) -> Lsn {
        let open = self.assembler.transaction().map(|transaction| transaction.commit_lsn);
        self.received().max(open.unwrap_or(Lsn::ZERO))
    }

    /// Counters since the start.
    pub fn counts(&self) -> Counts {
        self.out.counts
    }

    /// What the log should tell, once.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.router.notices)
    }
}

impl Router {
    fn compile(&mut self) {
        self.rules = Rules::compile(&self.tables, &mut self.lane_keys);
        self.lane_rows.resize_with(self.lane_keys.len(), || None);
        for index in 0..self.lane_keys.len() {
            if let Some(rows) = self.rules.rows_of(&self.lane_keys[index], &self.tables) {
                self.lane_rows[index] = Some(rows);
            }
        }
        self.is_stale = false;
        self.generation += 1;
        let mut reported = HashMap::new();
        for (webhook, problem) in self.rules.problems().filter(|(webhook, _)| webhook.publishes) {
            if self.reported.get(&webhook.id).map(String::as_str) != Some(problem) {
                self.notices.push(format!("webhook {} {:?} is set aside: {problem}", webhook.id, webhook.name));
            }
            reported.insert(webhook.id, problem.to_owned());
        }
        self.reported = reported;
        let stream_problems: Vec<_> = self.rules.stream_problems().map(str::to_owned).collect();
        let news = stream_problems.iter().filter(|problem| !self.reported_streams.contains(problem));
        self.notices.extend(news.cloned());
        self.reported_streams = stream_problems;
    }

    fn plan(&mut self, relation: &crate::wal::change::Relation) -> Plan {
        let plan = Plan::new(relation, &self.rules, &self.types, &mut self.notices);
        let table = format!("{}.{}", relation.schema, relation.name);
        match &plan {
            Plan::Unlinked => self.notices.push(format!(
                "table {table} is in the publication, but no link names it: its changes are passed over (was it \
                 renamed? see rule_webhook_links)"
            )),
            Plan::Linked(linked) => {
                for problem in linked.targets.iter().filter_map(|target| target.problem.as_deref()) {
                    self.notices.push(format!("table {table}: {problem}"));
                }
            }
            Plan::Events(_) | Plan::Configuration(_) | Plan::Backfill(_) => {}
        }
        plan
    }

    /// A configuration row changed: it takes effect from here on.
    fn configure<'c>(
        &mut self,
        table: Table,
        change: &Change<'_>,
        columns: impl Iterator<Item = &'c str> + Clone,
    ) -> Result<()> {
        if self.snapshot.as_ref().is_some_and(|snapshot| snapshot.shows(change.xid)) {
            return Ok(());
        }
        let key_of = |tuple: Tuple<'_>| {
            columns.clone().zip(tuple.iter()).find_map(|(name, value)| match value {
                Column::Text(text) if name == table.key() => Some(String::from_utf8_lossy(text).into_owned()),
                _ => None,
            })
        };
        // Before the new row, for an update may have changed the key itself.
        if let Some(key) = change.old.and_then(|old| key_of(old.tuple()))
            && (change.op == Op::Delete || change.new.and_then(key_of).is_some_and(|new| new != key))
        {
            self.tables.remove(table, &key)?;
        }
        if let Some(new) = change.new {
            let row: Vec<_> = columns
                .zip(new.iter())
                .map(|(name, value)| {
                    let cell = match value {
                        Column::Null => Cell::Null,
                        Column::Unchanged => Cell::Unchanged,
                        // The session's encoding is UTF-8; a database in SQL_ASCII may hold other bytes.
                        Column::Text(text) | Column::Binary(text) => {
                            Cell::Text(std::str::from_utf8(text).unwrap_or("\u{FFFD}"))
                        }
                    };
                    (name, cell)
                })
                .collect();
            self.tables.put(table, row.into_iter())?;
        }
        if change.op == Op::Truncate {
            self.tables.clear(table);
        }
        self.is_stale = true;
        Ok(())
    }
}

impl Outlet {
    /// A change of a linked table, for all its links or `only` some.
    fn row(&mut self, rules: &Rules, table: &Linked, change: &Change<'_>, only: Option<&[i32]>) -> Result<()> {
        for target in &table.targets {
            if only.is_some_and(|links| !links.contains(&target.link)) {
                continue;
            }
            if !target.wants(change, &table.columns, &mut self.scratch) {
                continue;
            }
            let body = Body::Row { table, target, change };
            self.subject.clear();
            let missing =
                target.subject.write(change.op, change.new.or(change.old.map(|old| old.tuple())), &mut self.subject);
            let problem = match (&target.problem, missing) {
                (Some(problem), _) => Some(problem.clone()),
                (None, Err(column)) => {
                    Some(format!("its subject needs column {column:?}, which is null, empty or not in the WAL"))
                }
                (None, Ok(())) if target.lane.is_some() => None,
                (None, Ok(())) => subject::invalid(&self.subject).map(|why| format!("its subject is invalid: {why}")),
            };
            let lane = target.lane.or_else(|| rules.lane(target.webhook, &self.subject));
            self.event(rules, target.webhook, body, change, lane, None, problem)?;
        }
        Ok(())
    }

    /// A row of `rule_webhook_events`. It was accepted in the caller's transaction, so it is published even if its
    /// webhook has been switched off since.
    fn call(&mut self, rules: &Rules, columns: &EventColumns, row: Tuple<'_>, position: Position) -> Result<()> {
        let cell = |index: usize| match row.iter().nth(index) {
            Some(Column::Text(text)) => Some(text),
            _ => None,
        };
        let webhook_id = cell(columns.webhook_id).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let webhook = webhook_id.and_then(|id| rules.webhook(id));
        let own_subject = columns.subject.and_then(cell).filter(|subject| !subject.is_empty());
        let message_id = columns.message_id.and_then(cell).filter(|id| !id.is_empty());
        let own =
            columns.headers.and_then(cell).and_then(|own| serde_json::from_slice::<serde_json::Map<_, _>>(own).ok());
        let own = own.as_ref();
        let body = Body::Call { columns, row, own };
        // A dead letter that is published again says what happened in the first place.
        let is_again = columns.body.and_then(cell).is_some();
        let first_op = own.filter(|_| is_again).and_then(|own| Op::parse(own.get("Walhook-Op")?.as_str()?));
        self.subject.clear();
        let mut problem = None;
        if let Some(index) = webhook {
            let webhook = &rules.webhooks[index];
            self.subject.extend_from_slice(own_subject.unwrap_or(webhook.subject.as_bytes()));
            problem = webhook
                .problem
                .clone()
                .or_else(|| subject::invalid(&self.subject).map(|why| format!("its subject is invalid: {why}")));
        } else {
            problem = problem.or_else(|| Some("its webhook does not exist (any more)".to_owned()));
        }
        if let Some(id) = message_id
            && (id.len() > MESSAGE_ID_MAX || id.iter().any(|&byte| byte < b' ' || byte == 0x7F))
        {
            problem.get_or_insert_with(|| {
                format!("its message_id is longer than {MESSAGE_ID_MAX} bytes or has control characters")
            });
        }
        let of = match webhook.map(|index| rules.webhooks[index].format.is_cloudevent()) {
            _ if is_again => headers::Of::Again,
            Some(true) => headers::Of::CloudEvent,
            _ => headers::Of::Message,
        };
        if let Some(why) = own.and_then(|own| headers::invalid(own, of)) {
            problem.get_or_insert_with(|| format!("its own headers cannot be sent: {why}"));
        }
        let lane = webhook.and_then(|index| rules.lane(index, &self.subject));
        let op = first_op.unwrap_or(Op::Insert);
        let change = Change { position, xid: 0, op, relation: 0, new: Some(row), old: None };
        match webhook {
            Some(webhook) => self.event(rules, webhook, body, &change, lane, message_id, problem),
            None => {
                let payload = cell(columns.payload).unwrap_or_default().to_vec();
                let position = event_position(position, webhook_id.unwrap_or(0));
                let id = position.id(&self.source);
                let head = Head { subject: b"", id: id.as_bytes(), message_id, op: op.as_str(), epoch: self.epoch };
                let mut block = Vec::new();
                head.write_ids(&mut block);
                head.write_origin(&mut block);
                if let Some(own) = own {
                    headers::write_again(own, &mut block);
                }
                let condemned = Condemned {
                    number: self.window.count_event(),
                    position,
                    subject: String::new(),
                    headers: headers::to_json(&block),
                    payload,
                    reason: problem.expect("set above"),
                    // It has no webhook that a row could name.
                    noted: None,
                };
                self.condemn(rules, condemned)
            }
        }
    }

    /// One change for one webhook: into its lane, or among the dead letters.
    #[allow(clippy::too_many_arguments, reason = "what an event is made of; a struct would only name them twice")]
    fn event(
        &mut self,
        rules: &Rules,
        webhook: usize,
        body: Body<'_>,
        change: &Change<'_>,
        lane: Option<usize>,
        message_id: Option<&[u8]>,
        problem: Option<String>,
    ) -> Result<()> {
        let webhook = &rules.webhooks[webhook];
        let position = event_position(change.position, webhook.id);
        self.counts.events += 1;
        self.id.clear();
        self.id.extend_from_slice(&self.transaction.id_prefix);
        self.id.extend_from_slice(itoa::Buffer::new().format(position.ordinal).as_bytes());
        self.id.push(b'-');
        self.id.extend_from_slice(itoa::Buffer::new().format(webhook.id).as_bytes());
        let lane = match (problem, lane) {
            (None, Some(lane)) => lane,
            (problem, _) => {
                let reason = problem.unwrap_or_else(|| {
                    let subject = String::from_utf8_lossy(&self.subject);
                    format!("no stream of its NATS configuration takes the subject {subject:?}")
                });
                let condemned = self.impossible(webhook, body, change, message_id, reason);
                return self.condemn(rules, condemned);
            }
        };
        let is_stored = self.lanes[lane].has(&position)?;
        if is_stored {
            self.counts.skipped += 1;
            if !matches!(webhook.keep, Keep::Everything(_)) {
                return Ok(());
            }
        }
        let (source, transaction) = (&self.source, &self.transaction);
        let lane = &mut self.lanes[lane];
        let head = Head { subject: &self.subject, id: &self.id, message_id, op: change.op.as_str(), epoch: self.epoch };
        let mut draft =
            lane.draft(head, |out| payload::write_headers(body, webhook, source, transaction, &self.id, out));
        let data = payload::write(body, webhook, source, transaction, &self.id, lane.buffer());
        if webhook.keep != Keep::Nothing {
            self.origin.fill(body, webhook);
            let note = self.origin.note(body, webhook, &self.id, &self.subject, message_id);
            lane.note(&mut draft, data, webhook.keep, &note);
        }
        let number = self.window.count_event();
        if is_stored {
            lane.skip(draft, number, position);
            return Ok(());
        }
        match lane.commit(draft, number, position) {
            Ok(()) => Ok(()),
            Err(condemned) => self.condemn(rules, *condemned),
        }
    }

    /// An event that no lane can take.
    fn impossible(
        &mut self,
        webhook: &Webhook,
        body: Body<'_>,
        change: &Change<'_>,
        message_id: Option<&[u8]>,
        reason: String,
    ) -> Condemned {
        let (source, transaction) = (&self.source, &self.transaction);
        let head = Head { subject: &self.subject, id: &self.id, message_id, op: change.op.as_str(), epoch: self.epoch };
        let mut block = Vec::new();
        head.write_ids(&mut block);
        head.write_origin(&mut block);
        payload::write_headers(body, webhook, source, transaction, &self.id, &mut block);
        let mut payload = Vec::new();
        let data = payload::write(body, webhook, source, transaction, &self.id, &mut payload);
        let noted = match webhook.keep {
            Keep::Nothing => None,
            Keep::Failures(keep) | Keep::Everything(keep) => {
                let mut note = Vec::new();
                self.origin.fill(body, webhook);
                self.origin.note(body, webhook, &self.id, &self.subject, message_id).write(None, &mut note);
                Some(Noted { note, keep, data })
            }
        };
        Condemned {
            number: self.window.count_event(),
            position: event_position(change.position, webhook.id),
            subject: String::from_utf8_lossy(&self.subject).into_owned(),
            headers: headers::to_json(&block),
            payload,
            reason,
            noted,
        }
    }

    fn condemn(&mut self, rules: &Rules, condemned: Condemned) -> Result<()> {
        let Condemned { number, position, subject, headers, payload, reason, noted } = condemned;
        let webhook = rules.webhook(position.webhook_id).map(|index| &rules.webhooks[index]);
        let event_id = position.id(&self.source);
        if let Some(webhook) = webhook.filter(|webhook| webhook.on_error == OnError::Halt) {
            return Err(Error::config(format!(
                "publish event {event_id} of webhook {} {:?} to {subject:?}",
                webhook.id, webhook.name
            ))
            .caused_by(Halted(reason))
            .hint("the webhook has on_error = 'halt'; mend its configuration, or set on_error = 'dead_letter'"));
        }
        self.counts.dead_letters += 1;
        let letter = DeadLetter {
            event_id,
            webhook_id: position.webhook_id,
            webhook_name: webhook.map(|webhook| webhook.name.clone()),
            subject,
            headers,
            payload,
            reason,
            commit_lsn: position.commit_lsn,
            number,
            position,
            noted,
        };
        let at = self.dead_letters.partition_point(|other| other.number < number);
        self.dead_letters.insert(at, letter);
        self.hold_back();
        Ok(())
    }

    /// What comes after a dead letter must not reach a stream before the letter is durable: after a crash the
    /// stream's tail would say that it was dealt with.
    fn hold_back(&mut self) {
        let limit = self.dead_letters.front().map(|letter| letter.number);
        for lane in &mut self.lanes {
            lane.hold_from(limit);
        }
    }

    /// The number of the oldest event that is not settled, or of the next one.
    fn oldest(&self) -> u64 {
        let waiting = self.dead_letters.front().map(|letter| letter.number);
        let lanes = self.lanes.iter().filter_map(Lane::oldest);
        lanes.chain(waiting).chain(self.history.oldest()).min().unwrap_or_else(|| self.window.next())
    }
}

fn event_position(position: Position, webhook_id: i32) -> EventPosition {
    EventPosition {
        commit_lsn: position.commit_lsn,
        commit_time: position.commit_time,
        ordinal: position.ordinal,
        webhook_id,
    }
}

mod backfill;
#[cfg(test)]
mod tests;
