//! The configuration and what was compiled of it: which rules hold for a change, at its place in the WAL.
//!
//! Comes in: the configuration rows as read at the start, then their changes. Goes out: rules, a plan for each table, the
//! rows by which lanes are reached, notices for the log. Always holds: a lane keeps its number.

use std::collections::HashMap;

use crate::{
    error::Result,
    route::{
        plan::Plan,
        rules::{LaneKey, Rules},
        tables::{Cell, ConfigRow, StreamRow, Table, Tables},
        types::TypeCatalog,
    },
    wal::{
        change::{Change, Op, Relation},
        pgoutput::{Column, Tuple},
        snapshot::Snapshot,
    },
};

/// The configuration and what was compiled of it.
#[derive(Debug)]
pub struct Router {
    pub tables: Tables,
    pub rules: Rules,
    pub types: TypeCatalog,
    pub lane_keys: Vec<LaneKey>,
    /// The rows that each lane was last reached by: where they are gone, what is in the lane still has to get there.
    pub lane_rows: Vec<Option<(ConfigRow, StreamRow)>>,
    pub is_stale: bool,
    pub generation: u64,
    pub reported: HashMap<i32, String>,
    pub reported_streams: Vec<String>,
    pub notices: Vec<String>,
    /// Changes of the configuration that are in it already are passed over.
    pub snapshot: Option<Snapshot>,
}

impl Router {
    /// With the configuration as read at the start, not compiled yet.
    pub fn new(tables: Tables, types: TypeCatalog) -> Router {
        Router {
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
        }
    }

    pub fn compile(&mut self) {
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

    pub fn plan(&mut self, relation: &Relation) -> Plan {
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
    pub fn configure<'c>(
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
