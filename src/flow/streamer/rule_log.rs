//! Changes of the configuration rows, from the WAL until their versions are durable.
//!
//! Comes in: the changed rows of a transaction, and its commit. Goes out: one [`RuleCommit`] for each transaction that changed
//! rows, to be written by the edge. Always holds: nothing behind such a commit is confirmed before its versions are durable,
//! so a later session can load the rules as they were at any position that PostgreSQL may go back to.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    route::tables::{RowText, Table},
    wal::lsn::Lsn,
};

/// A row of a configuration table after a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleChange {
    /// The table.
    pub table: Table,
    /// The row's key.
    pub id: i32,
    /// `None`: the transaction deleted it.
    pub row: Option<RowText>,
    /// The WAL did not repeat large columns that did not change: they are as in the version before.
    pub is_partial: bool,
}

/// A committed transaction that changed rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleCommit {
    /// Its number among the events: what comes after it is confirmed after it.
    pub number: u64,
    /// Where its commit record starts.
    pub commit_lsn: Lsn,
    /// The rows, each once.
    pub changes: Vec<RuleChange>,
    /// `changes` are all rows there are, and versions for later positions that an earlier session wrote are void.
    pub replaces: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct RuleLog {
    open: BTreeMap<(Table, i32), RuleChange>,
    /// The open transaction replaces all rows.
    replaces: bool,
    waiting: VecDeque<RuleCommit>,
}

impl RuleLog {
    /// A row was inserted or updated in the open transaction.
    pub fn put(&mut self, table: Table, id: i32, mut row: RowText, mut is_partial: bool) {
        if is_partial
            && let Some(RuleChange { row: Some(before), is_partial: was_partial, .. }) = self.open.get(&(table, id))
        {
            let mut whole = before.clone();
            whole.extend(row);
            row = whole;
            is_partial = *was_partial;
        }
        self.open.insert((table, id), RuleChange { table, id, row: Some(row), is_partial });
    }

    /// A row was deleted in the open transaction.
    pub fn delete(&mut self, table: Table, id: i32) {
        self.open.insert((table, id), RuleChange { table, id, row: None, is_partial: false });
    }

    /// The open transaction puts these rows in the place of all that there are; `gone` are deleted.
    pub fn replace(&mut self, gone: impl Iterator<Item = (Table, i32)>, rows: BTreeMap<(Table, i32), RowText>) {
        self.replaces = true;
        gone.for_each(|(table, id)| self.delete(table, id));
        rows.into_iter().for_each(|((table, id), row)| self.put(table, id, row, false));
    }

    /// Makes `rows` follow the changes of the open transaction.
    pub fn apply(self, rows: &mut BTreeMap<(Table, i32), RowText>) {
        for (key, change) in self.open {
            match change.row {
                None => drop(rows.remove(&key)),
                Some(row) if change.is_partial => rows.entry(key).or_default().extend(row),
                Some(row) => drop(rows.insert(key, row)),
            }
        }
    }

    /// Whether the open transaction changed rules.
    pub fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The open transaction is complete.
    pub fn commit(&mut self, number: u64, commit_lsn: Lsn) {
        let changes = std::mem::take(&mut self.open).into_values().collect();
        let replaces = std::mem::take(&mut self.replaces);
        self.waiting.push_back(RuleCommit { number, commit_lsn, changes, replaces });
    }

    /// Commits whose versions are not durable yet, the oldest first.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &RuleCommit> {
        self.waiting.iter()
    }

    /// The number of the oldest of them.
    pub fn oldest(&self) -> Option<u64> {
        self.waiting.front().map(|commit| commit.number)
    }

    /// The versions up to and with commit `number` are durable.
    pub fn written(&mut self, number: u64) {
        while self.waiting.front().is_some_and(|commit| commit.number <= number) {
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[(&str, &str)]) -> RowText {
        columns.iter().map(|(column, value)| (*column, Some(*value))).collect()
    }

    #[test]
    fn a_row_that_changes_twice_in_a_transaction_has_one_version() {
        let mut log = RuleLog::default();
        log.put(Table::Webhooks, 1, row(&[("a", "1"), ("b", "1")]), false);
        log.put(Table::Webhooks, 1, row(&[("a", "2")]), true);
        log.put(Table::Webhooks, 2, row(&[("a", "3")]), true);
        log.delete(Table::Links, 5);
        assert!(log.has_open());
        log.commit(7, Lsn(70));
        let commit = log.waiting().next().cloned().unwrap_or_else(|| unreachable!("it was committed"));
        assert_eq!((commit.number, commit.commit_lsn, log.oldest()), (7, Lsn(70), Some(7)));
        let of = |table, id| commit.changes.iter().find(|change| (change.table, change.id) == (table, id)).cloned();
        let whole =
            RuleChange { table: Table::Webhooks, id: 1, row: Some(row(&[("a", "2"), ("b", "1")])), is_partial: false };
        assert_eq!(of(Table::Webhooks, 1), Some(whole));
        assert!(of(Table::Webhooks, 2).is_some_and(|change| change.is_partial));
        assert!(of(Table::Links, 5).is_some_and(|change| change.row.is_none()));
        log.written(6);
        assert_eq!(log.oldest(), Some(7));
        log.written(7);
        assert_eq!((log.oldest(), log.has_open()), (None, false));
    }
}
