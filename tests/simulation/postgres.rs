//! The model of PostgreSQL: committed transactions, a slot, and a walsender that writes real pgoutput.
//!
//! Rows have LSNs before those of transactions committed earlier, as interleaved ones do; several share one. The slot's
//! confirmed position is on disk only when a checkpoint says so: a crash goes back to there.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use fastrand::Rng;
use walhook::{
    flow::{event_id::EventPosition, streamer::RulesRead},
    wal::{lsn::Lsn, snapshot::Snapshot},
};

use super::{
    configuration::{Access, Configuration, Route, Row},
    swarm::{Bug, Swarm, happens},
};

#[derive(Debug, Clone)]
pub enum Op {
    /// insert, update, delete; `note` is the row's text.
    Change {
        table: usize,
        op: &'static str,
        id: u32,
        note: String,
        huge: bool,
    },
    Truncate {
        tables: Vec<usize>,
    },
    Call {
        webhook: i32,
        message_id: Option<String>,
        note: String,
        huge: bool,
    },
    Configure(Row),
}

#[derive(Debug)]
pub struct Transaction {
    pub commit_lsn: u64,
    pub end_lsn: u64,
    pub commit_time: i64,
    xid: u32,
    /// With the LSN of each, and the shape that its table had.
    pub ops: Vec<(u64, u32, Op)>,
    /// For each operation the rules in force.
    pub rules: Vec<Rc<Configuration>>,
}

/// Rules that the operator put in force at an event.
#[derive(Debug)]
struct Amendment {
    commit_lsn: u64,
    ordinal: u64,
    rules: Rc<Configuration>,
    /// Transactions before this one are in them.
    made_at: usize,
    /// Where the WAL ended.
    made_at_lsn: u64,
}

#[derive(Debug)]
pub struct Postgres {
    pub transactions: Vec<Transaction>,
    pub configuration: Configuration,
    amendments: Vec<Amendment>,
    /// How often each table's shape has changed.
    shapes: Vec<u32>,
    pub wal_end: u64,
    pub confirmed: u64,
    durable_confirmed: u64,
    /// Counts the times that a standby was promoted, from 1.
    timeline: i64,
    next_row: u32,
    /// How often the link of a webhook and a table was deleted.
    links_deleted: HashMap<i32, i32>,
}

/// A walsender.
#[derive(Debug)]
pub struct Walsender {
    next: usize,
    start: u64,
    described: HashMap<u32, u32>,
    queue: VecDeque<(Vec<u8>, Mark)>,
    sent_upto: u64,
}

/// What a frame means to the oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Nothing,
    Keepalive(u64),
    /// Operation of transaction.
    Op(usize, usize),
    Commit(usize),
}

const EVENTS: u32 = 50;
const FIRST_XID: u32 = 700;
/// How the model writes a value that is not in the WAL, for it did not change.
const UNCHANGED: &str = "\0unchanged";
/// A type that the catalog does not know until it is read again.
pub const NEW_TYPE: u32 = 20_000;

impl Postgres {
    pub fn new(rng: &mut Rng, swarm: &Swarm) -> Postgres {
        let mut configuration = Configuration { history: swarm.history, ..Configuration::default() };
        for config in 1..=swarm.configs {
            configuration.apply(&Row::Config(config, true, swarm.history, access_of(swarm, 0)));
        }
        for id in 0..swarm.streams {
            let stream = super::configuration::Stream {
                config: 1,
                name: format!("S{id}"),
                // Every other one, by seed.
                shared: rng.u8(..3) == 0,
                enabled: true,
                batches: swarm.batches[id],
            };
            let number = i32::try_from(id).unwrap() + 1;
            for config in 2..=swarm.configs {
                let other = super::configuration::Stream { config, ..stream.clone() };
                configuration.apply(&Row::Stream(10 * config + number, Some(other)));
            }
            configuration.apply(&Row::Stream(number, Some(stream)));
        }
        let mut postgres = Postgres {
            transactions: Vec::new(),
            configuration,
            amendments: Vec::new(),
            shapes: vec![0; swarm.tables],
            wal_end: 1000,
            confirmed: 1000,
            durable_confirmed: 1000,
            timeline: 1,
            next_row: 1,
            links_deleted: HashMap::new(),
        };
        for _ in 0..rng.usize(1..6) {
            let row = postgres.change_of_webhooks(rng, swarm);
            postgres.configuration.apply(&row);
            let row = postgres.change_of_links(rng, swarm);
            postgres.configuration.apply(&row);
        }
        postgres
    }

    fn change_of_webhooks(&mut self, rng: &mut Rng, swarm: &Swarm) -> Row {
        let id = rng.i32(1..=4);
        let subject = match rng.u8(..20) {
            0 => "nowhere.x".to_owned(),
            1 => "S0.with space".to_owned(),
            _ => format!("S{}.w{id}", rng.usize(..swarm.streams)),
        };
        let webhook = super::configuration::Webhook {
            enabled: rng.u8(..6) > 0,
            subject,
            halt: happens(rng, swarm.halt),
            claims: id % 2 == 0,
            config: if swarm.configs > 1 { rng.i32(1..=swarm.configs) } else { 1 },
        };
        Row::Webhook(id, Some(webhook).filter(|_| rng.u8(..10) > 0))
    }

    fn change_of_links(&mut self, rng: &mut Rng, swarm: &Swarm) -> Row {
        let (webhook, table) = (rng.i32(1..=4), rng.usize(..swarm.tables));
        let operations = ["insert", "update", "delete", "truncate"].into_iter().filter(|_| rng.u8(..4) > 0).collect();
        let link = super::configuration::Link { webhook, table, operations, enabled: rng.u8(..8) > 0 };
        // UNIQUE(webhook_id, table); a link that is made again after it was deleted has another id.
        let pair = webhook * 10 + i32::try_from(table).unwrap();
        let generation = self.links_deleted.entry(pair).or_default();
        let id = pair + 1000 * *generation;
        let is_there = rng.u8(..10) > 0;
        *generation += i32::from(!is_there && swarm.configs > 1);
        Row::Link(id, Some(link).filter(|_| is_there))
    }

    fn change_of_streams(&mut self, rng: &mut Rng, swarm: &Swarm) -> Row {
        let ids: Vec<i32> = self.configuration.streams.keys().copied().collect();
        let id = ids[rng.usize(..ids.len())];
        let mut stream = self.configuration.streams[&id].clone();
        stream.enabled = rng.u8(..6) > 0;
        if swarm.flips {
            stream.shared = rng.bool();
            stream.batches = ["", "atomic", "fsync"][rng.usize(..3)];
        }
        Row::Stream(id, Some(stream))
    }

    pub fn commit_random(&mut self, rng: &mut Rng, swarm: &Swarm) {
        let count = match rng.u8(..10) {
            0 => 0,
            1 => rng.usize(1..40),
            _ => rng.usize(1..5),
        };
        let mut ops = Vec::new();
        for _ in 0..count {
            if happens(rng, swarm.ddl) {
                let table = rng.usize(..swarm.tables);
                self.shapes[table] += 1;
            }
            ops.push(self.random_op(rng, swarm));
        }
        self.commit(rng, ops);
    }

    fn random_op(&mut self, rng: &mut Rng, swarm: &Swarm) -> Op {
        if happens(rng, swarm.configuration) {
            if swarm.configs > 1 && rng.u8(..6) == 0 {
                let config = rng.i32(1..=swarm.configs);
                let access = access_of(swarm, rng.u32(..3));
                return Op::Configure(Row::Config(config, rng.u8(..3) > 0, swarm.history, access));
            }
            let row = match rng.u8(..8) {
                0 => self.change_of_streams(rng, swarm),
                1..=3 => self.change_of_links(rng, swarm),
                _ => self.change_of_webhooks(rng, swarm),
            };
            return Op::Configure(row);
        }
        let huge = happens(rng, swarm.huge_rows);
        let length = match huge {
            true => 3000,
            false if happens(rng, swarm.big_rows) => 1000,
            false => rng.usize(..60),
        };
        let id = self.next_row;
        self.next_row += 1;
        let note = format!("row{id}{}", "x".repeat(length));
        match rng.u8(..20) {
            0 => {
                let last = rng.usize(..swarm.tables);
                Op::Truncate { tables: (0..=last).filter(|&table| table == last || rng.bool()).collect() }
            }
            1..=4 => {
                let message_id = happens(rng, swarm.own_message_ids).then(|| format!("own-{}", rng.u8(..4)));
                Op::Call { webhook: rng.i32(1..=5), message_id, note, huge }
            }
            other => {
                let op = ["insert", "insert", "update", "delete"][usize::from(other % 4)];
                // The key of a deleted row has no note.
                let huge = huge && op != "delete";
                Op::Change { table: rng.usize(..swarm.tables), op, id, note, huge }
            }
        }
    }

    pub fn commit(&mut self, rng: &mut Rng, ops: Vec<Op>) {
        let mut rules = Vec::new();
        let mut in_force = Rc::new(self.configuration.clone());
        let mut lsn = self.wal_end;
        let mut placed = Vec::new();
        for op in ops {
            rules.push(Rc::clone(&in_force));
            if let Op::Configure(row) = &op {
                self.configuration.apply(row);
                in_force = Rc::new(self.configuration.clone());
            }
            // Several rows of a COPY stand at one LSN.
            lsn += u64::from(rng.bool()) * 8 * rng.u64(1..20);
            let shape = match &op {
                Op::Change { table, .. } => self.shapes[*table],
                _ => 0,
            };
            placed.push((lsn, shape, op));
        }
        let commit_lsn = lsn + 8 * rng.u64(0..4) + 8;
        let end_lsn = commit_lsn + 48;
        let index = self.transactions.len();
        self.transactions.push(Transaction {
            commit_lsn,
            end_lsn,
            commit_time: 1_000_000 * self.timeline + i64::try_from(index).unwrap(),
            xid: FIRST_XID + u32::try_from(index).unwrap(),
            ops: placed,
            rules,
        });
        self.wal_end = end_lsn;
    }

    /// Where a change stands in the WAL; others of a COPY stand there too.
    pub fn row_lsn(&self, commit_lsn: u64, ordinal: u64) -> Option<u64> {
        let transaction = self.transactions.iter().find(|transaction| transaction.commit_lsn == commit_lsn)?;
        let mut places = transaction.ops.iter().flat_map(|(lsn, _, op)| std::iter::repeat_n(*lsn, ordinals_of(op)));
        places.nth(usize::try_from(ordinal).ok()?)
    }

    /// Whether this event was committed in a history that a failover has left.
    pub fn is_of_lost_history(&self, position: &EventPosition) -> bool {
        let is_it = |transaction: &Transaction| {
            (transaction.commit_lsn, transaction.commit_time) == (position.commit_lsn.0, position.commit_time)
        };
        !self.transactions.iter().any(is_it)
    }

    /// WAL of tables that are not published.
    pub fn other_activity(&mut self, rng: &mut Rng) {
        self.wal_end += 8 * rng.u64(1..100);
    }

    pub fn checkpoint(&mut self) {
        self.durable_confirmed = self.confirmed;
    }

    /// Where the slot goes back to in a crash.
    pub fn durable_confirmed(&self) -> u64 {
        self.durable_confirmed
    }

    pub fn crash(&mut self) {
        self.confirmed = self.durable_confirmed;
    }

    /// Every NATS configuration's row is written again, with something in it changed.
    pub fn touch_configs(&mut self, rng: &mut Rng) {
        let history = self.configuration.history;
        let touched = self.configuration.configs.iter().map(|(id, (jetstream, access))| {
            // Unlike any before: while a full window keeps the WAL from being read, a row that is as it was says nothing.
            let access = Access { touched: access.touched + 100, ..*access };
            Op::Configure(Row::Config(*id, *jetstream, history, access))
        });
        let ops = touched.collect();
        self.commit(rng, ops);
    }

    /// Whether the transaction that commits there writes the row of a NATS configuration or of a stream.
    pub fn changes_ways(&self, commit_lsn: u64) -> bool {
        let of_it = self.transactions.iter().find(|transaction| transaction.commit_lsn == commit_lsn);
        let is_switch = |(_, _, op): &(u64, u32, Op)| matches!(op, Op::Configure(Row::Config(..) | Row::Stream(..)));
        of_it.is_some_and(|transaction| transaction.ops.iter().any(is_switch))
    }

    /// Whether an operator has put rules in force at an event.
    pub fn has_amendments(&self) -> bool {
        !self.amendments.is_empty()
    }

    /// A standby is promoted that lacks some of the last transactions: where the timeline was left. What is on disk of the slot it has.
    pub fn fail_over(&mut self, rng: &mut Rng) -> u64 {
        let first = self.transactions.partition_point(|transaction| transaction.end_lsn <= self.durable_confirmed);
        let kept = rng.usize(first..=self.transactions.len());
        if let Some(rules) = self.transactions[kept..].iter().find_map(|lost| lost.rules.first()) {
            self.configuration = Configuration::clone(rules);
        }
        // UNIQUE(webhook_id, table): the links that are there again are changed, none is made beside them.
        for (id, link) in &self.configuration.links {
            let pair = link.webhook * 10 + i32::try_from(link.table).unwrap();
            self.links_deleted.insert(pair, (id - pair) / 1000);
        }
        self.transactions.truncate(kept);
        let at = self.transactions.last().map_or(0, |last| last.end_lsn).max(self.durable_confirmed);
        self.wal_end = at;
        self.confirmed = self.durable_confirmed;
        self.timeline += 1;
        at
    }

    /// What a read of the configuration sees now: everything.
    pub fn read_rules(&self) -> RulesRead {
        self.rules_read(&self.configuration, self.transactions.len(), self.wal_end)
    }

    fn rules_read(&self, rules: &Configuration, transactions: usize, upto: u64) -> RulesRead {
        let next = FIRST_XID + u32::try_from(transactions).unwrap();
        let snapshot: Snapshot = format!("{next}:{next}:").parse().unwrap();
        RulesRead { tables: rules.tables(), rows: rules.text(), snapshot, upto: Lsn(upto) }
    }

    /// The operator puts the rules as they are now in force at an event.
    pub fn amend(&mut self, commit_lsn: u64, ordinal: u64) {
        self.amendments.push(Amendment {
            commit_lsn,
            ordinal,
            rules: Rc::new(self.configuration.clone()),
            made_at: self.transactions.len(),
            made_at_lsn: self.wal_end,
        });
    }

    /// The amendments that a session which begins at the confirmed position needs.
    pub fn amendments(&self) -> Vec<walhook::flow::streamer::Amendment> {
        let needed = self.amendments.iter().filter(|amendment| amendment.made_at_lsn > self.confirmed);
        needed
            .map(|amendment| walhook::flow::streamer::Amendment {
                commit_lsn: Lsn(amendment.commit_lsn),
                ordinal: amendment.ordinal,
                rules: self.rules_read(&amendment.rules, amendment.made_at, amendment.made_at_lsn),
            })
            .collect()
    }

    /// The rules in force at a change: those of its commit, unless an amendment is in their place.
    pub fn rules_at(&self, index: usize, number: usize, ordinal: u64) -> Rc<Configuration> {
        match self.amendment_at(index, ordinal) {
            Some(amendment) => Rc::clone(&amendment.rules),
            None => Rc::clone(&self.transactions[index].rules[number]),
        }
    }

    /// Whether an amendment is in the place of the rules of this change's commit.
    pub fn is_amended(&self, index: usize, ordinal: u64) -> bool {
        self.amendment_at(index, ordinal).is_some()
    }

    /// The position of each event that there may be for a webhook, from the confirmed position up to this one.
    pub fn positions_upto(&self, last: &EventPosition) -> Vec<EventPosition> {
        let from = self.transactions.partition_point(|transaction| transaction.commit_lsn < self.confirmed);
        let webhooks = self.configuration.webhooks.keys().copied().max().unwrap_or(0);
        let transactions = self.transactions[from..].iter();
        let positions = transactions.flat_map(|transaction| {
            let ordinals = transaction.ops.iter().map(|(_, _, op)| ordinals_of(op) as u64).sum();
            (0..ordinals).flat_map(move |ordinal| {
                (0..=webhooks).map(move |webhook_id| EventPosition {
                    commit_lsn: Lsn(transaction.commit_lsn),
                    commit_time: transaction.commit_time,
                    ordinal,
                    webhook_id,
                })
            })
        });
        positions.take_while(|position| position.is_at_or_before(last)).collect()
    }

    fn amendment_at(&self, index: usize, ordinal: u64) -> Option<&Amendment> {
        let here = (self.transactions[index].commit_lsn, ordinal);
        let is_in_force =
            |amendment: &&Amendment| (amendment.commit_lsn, amendment.ordinal) <= here && index < amendment.made_at;
        // The last one that was made.
        self.amendments.iter().rfind(is_in_force)
    }

    /// A walsender for the slot, from where it stands.
    pub fn start_replication(&self) -> Walsender {
        let start = self.confirmed;
        let next = self.transactions.partition_point(|transaction| transaction.commit_lsn < start);
        Walsender { next, start, described: HashMap::new(), queue: VecDeque::new(), sent_upto: start }
    }
}

fn access_of(swarm: &Swarm, touched: u32) -> Access {
    let Swarm { max_connections, max_attempts, .. } = *swarm;
    Access { max_connections, max_attempts, touched }
}

/// Whether an operation says what the row's text is; some updates leave a large one as it was.
pub fn tells_note(op: &str, id: u32) -> bool {
    op != "update" || !id.is_multiple_of(4)
}

/// How many ordinals an operation takes: TRUNCATE one for each table.
pub fn ordinals_of(op: &Op) -> usize {
    if let Op::Truncate { tables } = op { tables.len() } else { 1 }
}

/// The routes of an operation, for each table that it touches (TRUNCATE: several, each with its own ordinal).
pub fn routes_of(configuration: &Configuration, op: &Op) -> Vec<Vec<Route>> {
    match op {
        Op::Change { table, op, .. } => vec![configuration.row(*table, op)],
        Op::Truncate { tables } => tables.iter().map(|table| configuration.row(*table, "truncate")).collect(),
        Op::Call { webhook, .. } => vec![vec![configuration.call(*webhook)]],
        Op::Configure(_) => vec![vec![]],
    }
}

impl Walsender {
    /// The next CopyData payload, if there is WAL to send.
    pub fn next(&mut self, postgres: &Postgres, rng: &mut Rng, swarm: &Swarm, bug: Bug) -> Option<(Vec<u8>, Mark)> {
        if self.queue.is_empty() && self.next < postgres.transactions.len() {
            if happens(rng, swarm.keepalives) {
                let most = postgres.transactions[self.next].commit_lsn;
                let end = rng.u64(self.sent_upto..=most);
                self.sent_upto = end;
                return Some((keepalive(end, rng.bool()), Mark::Keepalive(end)));
            }
            self.encode(postgres, rng, swarm, bug);
        }
        if let Some(frame) = self.queue.pop_front() {
            return Some(frame);
        }
        (self.sent_upto < postgres.wal_end).then(|| {
            self.sent_upto = postgres.wal_end;
            (keepalive(postgres.wal_end, false), Mark::Keepalive(postgres.wal_end))
        })
    }

    /// Whether all is sent.
    pub fn is_idle(&self, postgres: &Postgres) -> bool {
        self.queue.is_empty() && self.next == postgres.transactions.len() && self.sent_upto == postgres.wal_end
    }

    fn push(&mut self, at: u64, data: &[u8], mark: Mark) {
        let mut frame = vec![b'w'];
        frame.extend(at.to_be_bytes());
        frame.extend(at.to_be_bytes());
        frame.extend(0u64.to_be_bytes());
        frame.extend_from_slice(data);
        self.queue.push_back((frame, mark));
    }

    fn encode(&mut self, postgres: &Postgres, rng: &mut Rng, swarm: &Swarm, bug: Bug) {
        let index = self.next;
        self.next += 1;
        let transaction = &postgres.transactions[index];
        assert!(transaction.commit_lsn >= self.start);
        let Transaction { commit_lsn, end_lsn, commit_time, xid, ops, .. } = transaction;
        self.sent_upto = self.sent_upto.max(*end_lsn);
        let mut begin = vec![b'B'];
        begin.extend(commit_lsn.to_be_bytes());
        begin.extend(commit_time.to_be_bytes());
        begin.extend(xid.to_be_bytes());
        self.push(ops.first().map_or(*commit_lsn, |(lsn, ..)| *lsn), &begin, Mark::Nothing);
        for (number, (lsn, shape, op)) in ops.iter().enumerate() {
            if happens(rng, swarm.keepalives / 4) {
                self.queue.push_back((keepalive(*commit_lsn, rng.bool()), Mark::Keepalive(*commit_lsn)));
            }
            let data = match op {
                Op::Change { table, op, id, note, .. } => {
                    let oid = self.describe_table(*table, *shape, *lsn);
                    let note = match tells_note(op, *id) {
                        true => Some(note.clone()),
                        // As one reads it who knows text and null only.
                        false if bug == Bug::NullForUnchanged => None,
                        false => Some(UNCHANGED.to_owned()),
                    };
                    let mut columns = vec![Some(id.to_string()), note];
                    columns.resize(2 + usize::try_from(shape % 3).unwrap(), Some("1".to_owned()));
                    let mut key = vec![None; columns.len()];
                    key[0] = Some(id.to_string());
                    match *op {
                        "insert" => message(b'I', oid, &[(b'N', &columns)]),
                        "update" if id % 3 == 0 => message(b'U', oid, &[(b'K', &key), (b'N', &columns)]),
                        "update" => message(b'U', oid, &[(b'N', &columns)]),
                        _ => message(b'D', oid, &[(b'K', &key)]),
                    }
                }
                Op::Truncate { tables } => {
                    let mut data = vec![b'T'];
                    data.extend(u32::try_from(tables.len()).unwrap().to_be_bytes());
                    data.push(0);
                    for table in tables {
                        let shape = *self.described.get(&(100 + u32::try_from(*table).unwrap())).unwrap_or(&0);
                        data.extend(self.describe_table(*table, shape, *lsn).to_be_bytes());
                    }
                    data
                }
                Op::Call { webhook, message_id, note, .. } => {
                    let columns = ["event_id", "webhook_id", "payload", "subject", "message_id"];
                    self.describe(EVENTS, "rule_webhook_events", &columns, 0, *lsn);
                    let payload = format!("{{\"note\":\"{note}\"}}");
                    let row =
                        [Some(number.to_string()), Some(webhook.to_string()), Some(payload), None, message_id.clone()];
                    message(b'I', EVENTS, &[(b'N', &row)])
                }
                Op::Configure(row) => {
                    let (table, columns) = row.table();
                    let oid = 60 + u32::try_from(columns.len()).unwrap();
                    self.describe(oid, table.name(), columns, 0, *lsn);
                    let kind = if row.is_delete() { (b'D', b'K') } else { (b"IU"[rng.usize(..2)], b'N') };
                    message(kind.0, oid, &[(kind.1, &row.cells())])
                }
            };
            self.push(*lsn, &data, Mark::Op(index, number));
        }
        let mut commit = vec![b'C', 0];
        commit.extend(commit_lsn.to_be_bytes());
        commit.extend(end_lsn.to_be_bytes());
        commit.extend(commit_time.to_be_bytes());
        self.push(*commit_lsn, &commit, Mark::Commit(index));
    }

    fn describe_table(&mut self, table: usize, shape: u32, at: u64) -> u32 {
        let oid = 100 + u32::try_from(table).unwrap();
        let mut columns = vec!["id", "note"];
        columns.extend(["c", "d"].iter().take(usize::try_from(shape % 3).unwrap()));
        self.describe(oid, &format!("t{table}"), &columns, shape, at);
        oid
    }

    /// A Relation message, if this shape was not told on this connection.
    fn describe(&mut self, oid: u32, name: &str, columns: &[&str], shape: u32, at: u64) {
        if self.described.insert(oid, shape) == Some(shape) {
            return;
        }
        let mut data = vec![b'R'];
        data.extend(oid.to_be_bytes());
        data.extend_from_slice(b"public\0");
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(b"\0d");
        data.extend(u16::try_from(columns.len()).unwrap().to_be_bytes());
        for (index, column) in columns.iter().enumerate() {
            data.push(u8::from(index == 0));
            data.extend_from_slice(column.as_bytes());
            data.push(0);
            let of_type = match *column {
                "id" => 23u32,
                "payload" => 3802,
                "d" => NEW_TYPE,
                _ => 25,
            };
            data.extend(of_type.to_be_bytes());
            data.extend((-1i32).to_be_bytes());
        }
        self.push(at, &data, Mark::Nothing);
    }
}

fn message(kind: u8, oid: u32, tuples: &[(u8, &[Option<String>])]) -> Vec<u8> {
    let mut data = vec![kind];
    data.extend(oid.to_be_bytes());
    for (mark, tuple) in tuples {
        data.push(*mark);
        data.extend(u16::try_from(tuple.len()).unwrap().to_be_bytes());
        for column in *tuple {
            match column {
                None => data.push(b'n'),
                Some(text) if text == UNCHANGED => data.push(b'u'),
                Some(text) => {
                    data.push(b't');
                    data.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                    data.extend_from_slice(text.as_bytes());
                }
            }
        }
    }
    data
}

fn keepalive(end: u64, reply_requested: bool) -> Vec<u8> {
    let mut frame = vec![b'k'];
    frame.extend(end.to_be_bytes());
    frame.extend(0u64.to_be_bytes());
    frame.push(u8::from(reply_requested));
    frame
}
