//! Messages become changes: the relations seen on this connection, the transaction that is open, and the position
//! of each row operation in it.
//!
//! Comes in: pgoutput messages of protocol version 1, that is, whole committed transactions one after another.
//! Goes out: [`Step`]s. Always holds: a change has a position that is the same in every replay, because the ordinal
//! counts *every* Insert, Update, Delete and Truncate since Begin, before any filter of ours, and the logical messages that
//! are events. Knows nothing of webhooks.

use std::collections::HashMap;

use super::{
    lsn::Lsn,
    name::Name,
    pgoutput::{self, Dialect, LogicalMessage, Message, OldTuple, ReplicaIdentity, Tuple},
};
use crate::error::{Error, Result};

/// Where a change stands in the history of the database: the same on every replay of the same WAL.
///
/// A row's own LSN is not unique (COPY and multi-row INSERT put several rows at one), and not monotonic in commit
/// order; commit LSN and ordinal are both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Where the commit record starts.
    pub commit_lsn: Lsn,
    /// When it was committed, in µs since 2000-01-01. It tells two transactions apart that reuse an LSN after a
    /// failover that lost some, or a restore to an earlier point.
    pub commit_time: i64,
    /// Row operations, and messages that are events, of this transaction before this one.
    pub ordinal: u64,
}

/// The open transaction.
#[derive(Debug, Clone, Copy)]
pub struct Transaction {
    /// Where its commit record starts.
    pub commit_lsn: Lsn,
    /// µs since 2000-01-01.
    pub commit_time: i64,
    /// Its id.
    pub xid: u32,
    ordinal: u64,
}

impl Transaction {
    fn next(&mut self) -> Position {
        let position = Position { commit_lsn: self.commit_lsn, commit_time: self.commit_time, ordinal: self.ordinal };
        self.ordinal += 1;
        position
    }
}

/// A table as the WAL stream last described it.
#[derive(Debug, Clone)]
pub struct Relation {
    /// The table's OID.
    pub id: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What its old rows consist of.
    pub identity: ReplicaIdentity,
    /// Its columns in the order of the tuples.
    pub columns: Vec<RelationColumn>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Its name.
    pub name: String,
    /// Its type's OID.
    pub type_oid: u32,
    /// Whether it is part of the replica identity.
    pub is_key: bool,
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A new row.
    Insert,
    /// A row changed.
    Update,
    /// A row went.
    Delete,
    /// All rows went.
    Truncate,
    /// A row as it was, sent by a backfill.
    Snapshot,
    /// No row: the columns of the table.
    Columns,
}

impl Op {
    /// All that happen to rows.
    pub const ALL: [Op; 5] = [Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Snapshot];
    /// How many there are.
    pub const COUNT: usize = Op::ALL.len();

    /// Its place in [`Op::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The word for it in subjects, payloads and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Snapshot => "snapshot",
            Op::Columns => "columns",
        }
    }

    /// The operation of that word.
    pub fn parse(word: &str) -> Option<Op> {
        Op::ALL.into_iter().chain([Op::Columns]).find(|op| op.as_str() == word)
    }
}

/// One row operation of a committed transaction, borrowed from the read buffer.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// Its place in history.
    pub position: Position,
    /// The transaction's id.
    pub xid: u32,
    /// What happened.
    pub op: Op,
    /// Which table: an index for [`Assembler::relation`].
    pub relation: usize,
    /// The row after (insert, update).
    pub new: Option<Tuple<'a>>,
    /// The row before, or its key (update and delete, where the replica identity gives it).
    pub old: Option<OldTuple<'a>>,
}

/// What a message amounts to.
#[derive(Debug)]
pub enum Step<'a> {
    /// Nothing of interest: origins, logical messages outside of transactions.
    Nothing,
    /// A logical message of the open transaction. It has no position unless [`Assembler::place`] gives it one.
    Message(LogicalMessage<'a>),
    /// What a type was called when the tables described next were as they are described. Of a domain it is the type below.
    Type {
        /// Its OID.
        oid: u32,
        /// Its schema; empty for `pg_catalog`.
        schema: Name<'a>,
        /// Its name.
        name: Name<'a>,
    },
    /// A transaction begins.
    Begin,
    /// A table was described for the first time, or again after DDL or a reconnect; the index is for
    /// [`Assembler::relation`].
    Relation(usize),
    /// A row operation.
    Change(Change<'a>),
    /// TRUNCATE: an operation per table; they share the statement but each has an ordinal.
    Truncate(Vec<Change<'a>>),
    /// The transaction is complete; `end_lsn` is where a restart goes on with the next one.
    Commit {
        /// The end of the commit record.
        end_lsn: Lsn,
    },
}

/// The relations and the open transaction of one replication connection.
#[derive(Debug, Default)]
pub struct Assembler {
    relations: Vec<Relation>,
    by_id: HashMap<u32, usize>,
    /// The last one asked for: rows of a table come in runs.
    last: Option<(u32, usize)>,
    transaction: Option<Transaction>,
    /// The two tables described last, while nothing but types has come since. Before the first change of a partition that is sent as
    /// one of a partitioned table, pgoutput describes that table and then the partition (`maybe_send_schema` in pgoutput.c).
    described: (Option<usize>, Option<usize>),
    /// Partitions, and the partitioned table as whose changes theirs come.
    roots: HashMap<usize, usize>,
}

impl Assembler {
    /// The open transaction.
    pub fn transaction(&self) -> Option<&Transaction> {
        self.transaction.as_ref()
    }

    /// The table with this index, from [`Step::Relation`] or [`Change::relation`].
    pub fn relation(&self, index: usize) -> &Relation {
        &self.relations[index]
    }

    /// The partitions whose changes come as those of this table, as far as they have had changes on this connection.
    pub fn partitions(&self, root: usize) -> impl Iterator<Item = &Relation> {
        self.roots.iter().filter(move |(_, its)| **its == root).map(|(partition, _)| &self.relations[*partition])
    }

    /// How many tables were described on this connection.
    pub fn relation_count(&self) -> usize {
        self.relations.len()
    }

    /// Takes the next message, found at `at` in the WAL.
    ///
    /// # Errors
    /// Bytes that are no message, or a message that does not belong here (a change outside a transaction, a table
    /// never described).
    pub fn take<'a>(&mut self, data: &'a [u8], at: Lsn) -> Result<Step<'a>> {
        let message = Message::parse(data, Dialect::V1).map_err(|error| {
            Error::protocol(format!("decode the pgoutput message at {at}")).caused_by(error).hint(
                "PostgreSQL, or a proxy in between, sent a message that pgoutput protocol version 1 does not define",
            )
        })?;
        match message {
            Message::Begin { final_lsn, commit_time, xid } => {
                self.described = (None, None);
                if self.transaction.is_some() {
                    return Err(unexpected("Begin inside a transaction", at));
                }
                self.transaction = Some(Transaction { commit_lsn: final_lsn, commit_time, xid, ordinal: 0 });
                Ok(Step::Begin)
            }
            Message::Commit { commit_lsn, end_lsn, .. } => {
                let open = self.transaction.take().ok_or_else(|| unexpected("Commit without Begin", at))?;
                if open.commit_lsn != commit_lsn || end_lsn < commit_lsn {
                    return Err(unexpected("Commit of another transaction than the one begun", at));
                }
                Ok(Step::Commit { end_lsn })
            }
            Message::Relation(relation) => Ok(Step::Relation(self.describe(&relation))),
            Message::Insert { relation, new, .. } => self.change(at, relation, Op::Insert, Some(new), None),
            Message::Update { relation, old, new, .. } => self.change(at, relation, Op::Update, Some(new), old),
            Message::Delete { relation, old, .. } => self.change(at, relation, Op::Delete, None, Some(old)),
            Message::Truncate { relations, .. } => {
                self.described = (None, None);
                let changes = relations.iter().map(|id| self.position(at, id, Op::Truncate, None, None));
                Ok(Step::Truncate(changes.collect::<Result<_>>()?))
            }
            Message::Type { id, namespace, name, .. } => Ok(Step::Type { oid: id, schema: namespace, name }),
            Message::Logical(message) if message.transactional && self.transaction.is_some() => {
                Ok(Step::Message(message))
            }
            Message::Origin { .. } | Message::Logical(_) => Ok(Step::Nothing),
            // Asked for with neither streaming nor two-phase, so these cannot come.
            _ => Err(unexpected("a message of streamed or prepared transactions, which were not asked for", at)),
        }
    }

    fn describe(&mut self, described: &pgoutput::Relation<'_>) -> usize {
        let relation = Relation {
            id: described.id,
            // pgoutput writes pg_catalog as an empty string (manual, "Logical Replication Message Formats").
            schema: if described.namespace.is_empty() { "pg_catalog".to_owned() } else { described.namespace.into() },
            name: described.name.into(),
            identity: described.identity,
            columns: described
                .columns
                .iter()
                .map(|column| RelationColumn {
                    name: column.name.into(),
                    type_oid: column.type_oid,
                    is_key: column.is_key,
                })
                .collect(),
        };
        let index = match self.by_id.get(&relation.id) {
            Some(&index) => {
                self.relations[index] = relation;
                index
            }
            None => {
                let index = self.relations.len();
                self.by_id.insert(relation.id, index);
                self.relations.push(relation);
                index
            }
        };
        // It may have been attached or detached since; the next change says so.
        self.roots.remove(&index);
        self.described = (self.described.1, Some(index));
        index
    }

    #[inline]
    fn change<'a>(
        &mut self,
        at: Lsn,
        relation: u32,
        op: Op,
        new: Option<Tuple<'a>>,
        old: Option<OldTuple<'a>>,
    ) -> Result<Step<'a>> {
        let step = self.position(at, relation, op, new, old).map(Step::Change);
        if self.described.1.is_some() {
            self.note_partition(relation);
        }
        step
    }

    /// The first change behind the description of a table is one of table `id`.
    #[cold]
    fn note_partition(&mut self, id: u32) {
        if let (Some(root), Some(partition)) = std::mem::take(&mut self.described)
            && self.by_id.get(&id) == Some(&root)
            && partition != root
        {
            self.roots.insert(partition, root);
        }
    }

    fn position<'a>(
        &mut self,
        at: Lsn,
        id: u32,
        op: Op,
        new: Option<Tuple<'a>>,
        old: Option<OldTuple<'a>>,
    ) -> Result<Change<'a>> {
        let relation = self.index_of(id).ok_or_else(|| unexpected("a change of a table never described", at))?;
        let columns = self.relations[relation].columns.len();
        let fits = |tuple: Tuple<'_>| tuple.len() == columns;
        if !new.is_none_or(fits) || !old.is_none_or(|old| fits(old.tuple())) {
            return Err(unexpected("a row with another number of columns than its table", at));
        }
        let open = self.transaction.as_mut().ok_or_else(|| unexpected("a change outside a transaction", at))?;
        Ok(Change { position: open.next(), xid: open.xid, op, relation, new, old })
    }

    /// The next position in the open transaction. A logical message gets one only if it is an event: so those of others, which a
    /// session may not have asked for, change no position of a row.
    pub fn place(&mut self) -> Option<Position> {
        self.transaction.as_mut().map(Transaction::next)
    }

    fn index_of(&mut self, id: u32) -> Option<usize> {
        if let Some((last, index)) = self.last
            && last == id
        {
            return Some(index);
        }
        let index = *self.by_id.get(&id)?;
        self.last = Some((id, index));
        Some(index)
    }
}

fn unexpected(what: &str, at: Lsn) -> Error {
    Error::protocol(format!("follow the WAL stream at {at}: {what}"))
        .hint("restart walhook; if the error comes again, do not drop the slot, and report the error")
}
