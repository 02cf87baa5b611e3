//! The configuration and what was compiled of it: which rules hold for a change, at its place in the WAL.
//!
//! Comes in: the rows as they were at the confirmed position, then their changes from the WAL, and amendments. Goes out: rules,
//! a plan for each table, the settings by which each lane reaches its stream, notices for the log, and the changes that have
//! to be durable before anything behind them is confirmed ([`RuleLog`]). Always holds: a lane keeps its number, and the rules
//! are a function of the WAL and the amendments alone, the same in every session.
//!
//! Beside these rows the router keeps the newest ones known. They never decide where an event goes; they say how to reach the
//! place: credentials, and the limits of a stream.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
};

use super::rule_log::RuleLog;
use crate::{
    error::Result,
    route::{
        plan::Plan,
        rules::{LaneKey, Rules},
        streams::streams_of_all,
        tables::{Cell, ConfigRow, RowText, ServerAlias, StreamRow, Table, Tables},
        types::TypeCatalog,
    },
    wal::{
        change::{Change, Op, Position, Relation},
        lsn::Lsn,
        name::readable,
        pgoutput::{Column, Tuple},
        snapshot::Snapshot,
    },
};

/// The rows of all configuration tables as one statement read them.
#[derive(Debug, Clone)]
pub struct RulesRead {
    /// The rows.
    pub tables: Tables,
    /// The same as text, by their keys.
    pub rows: BTreeMap<(Table, i32), RowText>,
    /// Which transactions the statement saw.
    pub snapshot: Snapshot,
    /// All transactions that it saw had committed before this position.
    pub upto: Lsn,
}

/// Rules that an operator put in force at an event that could not be published by the rules of its own commit.
#[derive(Debug, Clone)]
pub struct Amendment {
    /// The commit of the first event to which they apply.
    pub commit_lsn: Lsn,
    /// That event's ordinal.
    pub ordinal: u64,
    /// The rules, as they were when the operator asked for it.
    pub rules: RulesRead,
}

/// How a lane reaches its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSettings {
    /// Where the server is, as the rules of the lane say; how to get into it, as the newest row says.
    pub config: ConfigRow,
    /// The stream as the newest row wants it.
    pub stream: StreamRow,
    /// Whether there is such a newest row. Otherwise an existing stream is left as it is.
    pub is_current: bool,
    /// Whether events wait for their schemas, as the newest row says.
    pub awaits_schemas: bool,
}

/// The configuration and what was compiled of it.
#[derive(Debug)]
pub struct Router {
    /// The rows in force at this place in the WAL.
    pub tables: Tables,
    pub rules: Rules,
    pub types: TypeCatalog,
    pub lane_keys: Vec<LaneKey>,
    /// How each lane was last reached: where its rows are gone, what is in the lane still has to get there.
    pub lane_settings: Vec<Option<LaneSettings>>,
    pub is_stale: bool,
    pub generation: u64,
    pub reported: HashMap<i32, String>,
    pub reported_streams: Vec<String>,
    pub notices: Vec<String>,
    /// Changes whose versions have to become durable.
    pub log: RuleLog,
    /// The newest rows known.
    newest: Tables,
    /// What [`Router::newest`] was read with: changes that the statement saw are in it.
    newest_snapshot: Option<Snapshot>,
    /// The newest rows as text, until the WAL has been read up to where they were.
    to_compare: Option<RulesRead>,
    /// What the last amendment saw: changes of rows that it saw are passed over.
    amended: Option<Snapshot>,
    /// Amendments to come, in the order of their events.
    amendments: VecDeque<Amendment>,
    /// The position before which the newest rows were read.
    newest_upto: Lsn,
    /// Addresses of a configuration that were seen to lead to one server.
    one_server: Vec<(i32, [String; 2])>,
}

impl Router {
    /// With the configuration as it was at the confirmed position, not compiled yet.
    pub fn new(tables: Tables, types: TypeCatalog) -> Router {
        Router {
            newest: tables.clone(),
            tables,
            rules: Rules::default(),
            types,
            lane_keys: Vec::new(),
            lane_settings: Vec::new(),
            is_stale: true,
            generation: 0,
            reported: HashMap::new(),
            reported_streams: Vec::new(),
            notices: Vec::new(),
            log: RuleLog::default(),
            newest_snapshot: None,
            to_compare: None,
            amended: None,
            amendments: VecDeque::new(),
            newest_upto: Lsn::ZERO,
            one_server: Vec::new(),
        }
    }

    /// The servers that the newest row of a configuration names, if there is one.
    pub fn newest_servers(&self, config_id: i32) -> Option<String> {
        self.newest.configs.get(&config_id).map(|row| self.newest.servers_of(row))
    }

    /// The alias by which events of a configuration go to `alias_of` in place of `servers`. `upto`: the WAL was read up to there.
    pub fn alias(&self, config_id: i32, servers: &str, alias_of: &str, upto: Lsn) -> ServerAlias {
        // A change of the row behind both positions is not known yet, and what comes behind it goes where it says.
        let until_lsn = self.newest_upto.max(Lsn(upto.0 + 1));
        ServerAlias { config_id, servers: servers.to_owned(), alias_of: alias_of.to_owned(), until_lsn }
    }

    /// Both addresses of a configuration lead to one server: the newest row has the limits of streams also for lanes by the other one.
    pub fn note_one_server(&mut self, config_id: i32, addresses: [String; 2]) {
        self.one_server.push((config_id, addresses));
        self.is_stale = true;
    }

    /// A transaction begins that commits at `commit_lsn`: aliases that end before it do not count any more.
    pub fn begin(&mut self, commit_lsn: Lsn) {
        let aliases = &mut self.tables.aliases;
        if aliases.iter().any(|alias| alias.until_lsn <= commit_lsn) {
            aliases.retain(|alias| commit_lsn < alias.until_lsn);
            self.is_stale = true;
        }
    }

    /// The newest rows, as a statement read them. `compares`: once the WAL has been read up to there, it must have led to the
    /// same rows.
    pub fn set_newest(&mut self, read: RulesRead, compares: bool) {
        let before = std::mem::replace(&mut self.newest, read.tables.clone());
        for (id, row) in self.newest.configs.iter_mut() {
            if let Some(known) = before.configs.get(id) {
                row.revision = known.revision + u64::from(!known.says_the_same(row));
            }
        }
        self.newest.overridden.clone_from(&self.tables.overridden);
        self.newest.shard.clone_from(&self.tables.shard);
        self.newest_snapshot = Some(read.snapshot.clone());
        self.newest_upto = read.upto;
        if compares || self.to_compare.is_some() {
            self.to_compare = Some(read);
        }
        self.is_stale = true;
    }

    /// Amendments in any order. One supersedes those that were made before it and begin at its event or behind it: it is in force
    /// there as well. Of those before `confirmed` only what they saw still matters.
    pub fn set_amendments(&mut self, mut amendments: Vec<Amendment>, confirmed: Lsn) {
        amendments.sort_by_key(|amendment| (amendment.rules.upto, Reverse((amendment.commit_lsn, amendment.ordinal))));
        let mut in_force: Vec<Amendment> = Vec::new();
        for amendment in amendments {
            let begins = |known: &Amendment| (known.commit_lsn, known.ordinal);
            in_force.retain(|known| begins(known) < begins(&amendment));
            in_force.push(amendment);
        }
        for amendment in in_force {
            if amendment.commit_lsn < confirmed {
                self.amended = Some(amendment.rules.snapshot);
            } else {
                self.amendments.push_back(amendment);
            }
        }
    }

    /// Whether an amendment begins with the event at `position`, and if so takes it.
    pub fn amend_at(&mut self, position: Position) {
        let here = (position.commit_lsn, position.ordinal);
        while self.amendments.front().is_some_and(|next| (next.commit_lsn, next.ordinal) <= here) {
            let Some(amendment) = self.amendments.pop_front() else { return };
            self.notices.push(format!(
                "the rules of {} are in force from {}-{} on, by an amendment",
                amendment.rules.upto, amendment.commit_lsn, amendment.ordinal
            ));
            self.replace(amendment.rules);
        }
    }

    /// Whether some amendment is still to come.
    pub fn awaits_amendment(&self) -> bool {
        !self.amendments.is_empty()
    }

    /// All rows are as `read` from here on.
    fn replace(&mut self, read: RulesRead) {
        let known =
            Table::ALL.into_iter().flat_map(|table| self.tables.ids(table).into_iter().map(move |id| (table, id)));
        let gone: Vec<_> = known.filter(|key| !read.rows.contains_key(key)).collect();
        self.log.replace(gone.into_iter(), read.rows);
        let Tables { overridden, aliases, is_for_replay, mask_key, seal_keys, shard, .. } =
            std::mem::take(&mut self.tables);
        self.tables = Tables { overridden, aliases, mask_key, seal_keys, shard, ..read.tables };
        if is_for_replay {
            self.tables.adapt_to_replay();
        }
        self.amended = Some(read.snapshot);
        self.is_stale = true;
    }

    /// The WAL was read up to `upto`, between two transactions. From where the newest rows were read on, both must agree: else
    /// a change of a row never came down the slot (the slot was made again, or moved by hand), and the newest rows are taken.
    pub fn compare(&mut self, upto: Lsn) {
        if self.to_compare.as_ref().is_none_or(|read| read.upto > upto) || self.awaits_amendment() {
            return;
        }
        let Some(read) = self.to_compare.take() else { return };
        if self.tables.say_the_same(&self.newest) {
            return;
        }
        self.notices.push(format!(
            "the configuration tables differ from what their changes in the WAL up to {upto} amount to: a change was never seen, \
             as after a slot was made again or moved by hand; the rules of the tables are in force from here on"
        ));
        self.replace(RulesRead { tables: self.newest.clone(), ..read });
    }

    pub fn compile(&mut self) {
        self.rules = Rules::compile(&self.tables, &mut self.lane_keys);
        self.lane_settings.resize_with(self.lane_keys.len(), || None);
        self.is_stale = false;
        self.update_settings();
        self.report_problems();
    }

    /// How each lane reaches its stream, by the newest rows.
    pub fn update_settings(&mut self) {
        let newest_streams = streams_of_all(&self.newest);
        for (key, settings) in self.lane_keys.iter().zip(&mut self.lane_settings) {
            let rows = self.rules.rows_of(key, &self.tables);
            let rows = rows.or_else(|| settings.as_ref().map(|known| (known.config.clone(), known.stream.clone())));
            let Some((config, stream)) = rows else { continue };
            let newest = self.newest.configs.get(&key.config_id);
            let servers = newest.map(|newest| self.newest.servers_of(newest)).unwrap_or_default();
            let is_one_server = |(id, pair): &(i32, [String; 2])| {
                *id == key.config_id && pair.contains(&servers) && pair.contains(&key.servers)
            };
            let leads_there = servers == key.servers || self.one_server.iter().any(is_one_server);
            let newest_stream = newest.filter(|_| leads_there).and_then(|_| {
                let (rows, _) = newest_streams.get(&key.config_id)?;
                rows.iter().find(|row| Some(&row.stream_name) == key.stream.as_ref())
            });
            // Order and batches are the lane's own.
            let stream_now = newest_stream.map(|newest| StreamRow {
                ordering: stream.ordering.clone(),
                transactions: stream.transactions.clone(),
                durability: stream.durability.clone(),
                ..newest.clone()
            });
            let awaits_schemas = newest.is_some_and(|newest| newest.publish_schemas == Some(true));
            let newest = newest.filter(|_| servers == key.servers);
            *settings = Some(LaneSettings {
                config: newest.map_or_else(|| config.clone(), |newest| config.with_access_of(newest)),
                is_current: stream_now.is_some(),
                awaits_schemas,
                stream: stream_now.unwrap_or(stream),
            });
        }
        self.generation += 1;
    }

    fn report_problems(&mut self) {
        let mut reported = HashMap::new();
        let (set_aside, without_key) = (self.rules.problems(), self.rules.without_seal_key());
        let problems = set_aside.map(|(webhook, problem)| (webhook, format!("is set aside: {problem}")));
        let without_key =
            without_key.map(|(webhook, problem)| (webhook, format!("cannot seal, so its events wait: {problem}")));
        for (webhook, problem) in without_key.chain(problems).filter(|(webhook, _)| webhook.publishes) {
            if self.reported.get(&webhook.id) != Some(&problem) {
                self.notices.push(format!("webhook {} {:?} {problem}", webhook.id, webhook.name));
            }
            reported.insert(webhook.id, problem);
        }
        self.reported = reported;
        let stream_problems: Vec<_> = self.rules.stream_problems().map(str::to_owned).collect();
        let news = stream_problems.iter().filter(|problem| !self.reported_streams.contains(problem));
        self.notices.extend(news.cloned());
        self.reported_streams = stream_problems;
    }

    pub fn plan<'r>(&mut self, relation: &Relation, partitions: impl Iterator<Item = &'r Relation>) -> Plan {
        let partitions: Vec<_> = partitions.map(|it| (it.schema.as_str(), it.name.as_str())).collect();
        let plan = Plan::new(relation, &partitions, &self.rules, &self.types, &mut self.notices);
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
            Plan::Events(_) | Plan::Configuration(_) | Plan::Backfill(_) | Plan::EmitKeys(_) => {}
        }
        plan
    }

    /// A configuration row changed: it takes effect from here on.
    pub fn configure<'c>(
        &mut self,
        table: Table,
        change: &Change<'_>,
        columns: impl Iterator<Item = &'c str> + Clone,
    ) -> Result<()> {
        let is_seen = |snapshot: &Option<Snapshot>| snapshot.as_ref().is_some_and(|seen| seen.shows(change.xid));
        if !is_seen(&self.newest_snapshot) {
            let mut news = RuleLog::default();
            follow(&mut self.newest, &mut news, table, change, columns.clone())?;
            if let Some(read) = &mut self.to_compare {
                news.apply(&mut read.rows);
            }
        }
        if !is_seen(&self.amended) {
            follow(&mut self.tables, &mut self.log, table, change, columns)?;
        }
        self.is_stale = true;
        Ok(())
    }
}

/// Makes `tables` follow a change, and notes what became of the row in `log`.
fn follow<'c>(
    tables: &mut Tables,
    log: &mut RuleLog,
    table: Table,
    change: &Change<'_>,
    columns: impl Iterator<Item = &'c str> + Clone,
) -> Result<()> {
    let key_of = |tuple: Tuple<'_>| {
        columns.clone().zip(tuple.iter()).find_map(|(name, value)| match value {
            Column::Text(text) if name == table.key() => Some(readable(text).into_owned()),
            _ => None,
        })
    };
    // Before the new row, for an update may have changed the key itself.
    if let Some(key) = change.old.and_then(|old| key_of(old.tuple()))
        && (change.op == Op::Delete || change.new.and_then(key_of).is_some_and(|new| new != key))
    {
        tables.remove(table, &key)?;
        if let Ok(id) = key.parse() {
            log.delete(table, id);
        }
    }
    if let Some(new) = change.new {
        // The session's encoding is UTF-8; a database in SQL_ASCII may hold other bytes.
        let texts: Vec<_> = new
            .iter()
            .map(|value| match value {
                Column::Null => Ok(Cell::Null),
                Column::Unchanged => Ok(Cell::Unchanged),
                Column::Text(text) | Column::Binary(text) => Err(readable(text)),
            })
            .collect();
        let cells = texts.iter().map(|text| text.as_ref().map_or_else(|text| Cell::Text(text), |cell| *cell));
        let row: Vec<(&str, Cell<'_>)> = columns.clone().zip(cells).collect();
        if let Some(Ok(id)) = key_of(new).map(|key| key.parse()) {
            let is_partial = row.iter().any(|(_, cell)| matches!(cell, Cell::Unchanged));
            let text = row.iter().filter_map(|&(name, cell)| match cell {
                Cell::Null => Some((name, None)),
                Cell::Text(text) => Some((name, Some(text))),
                Cell::Unchanged => None,
            });
            log.put(table, id, text.collect(), is_partial);
        }
        tables.put(table, row.into_iter())?;
    }
    if change.op == Op::Truncate {
        tables.ids(table).into_iter().for_each(|id| log.delete(table, id));
        tables.clear(table);
    }
    Ok(())
}
