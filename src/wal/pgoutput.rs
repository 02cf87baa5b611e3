//! pgoutput's messages, protocol version 1 to 4 (manual, section 55.9 "Logical Replication Message Formats").
//!
//! In: the data of one XLogData frame, and the [`Dialect`] in force. Out: one [`Message`] that borrows from it.
//! What always holds of a message: every byte of the input was accounted for, every length checked, every string ends; so walking a [`Tuple`] afterwards cannot fail. Nothing is allocated, whatever lengths the bytes announce.
//!
//! A byte the manual does not list is an error, never skipped: guessing would lose or double changes. Whether messages
//! come in an order that makes sense, which columns a relation has and what a value means is not known here. All times
//! are microseconds since 2000-01-01 00:00 UTC.

use std::{fmt, iter::FusedIterator};

use super::{
    cursor::{Cursor, DecodeError, Fault},
    lsn::Lsn,
    name::Name,
};

/// What the layout of a message depends on besides its own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// `proto_version` as given to START_REPLICATION: 1 to 4.
    pub version: u8,
    /// Between [`Message::StreamStart`] and [`Message::StreamStop`]: changes then carry their transaction id.
    pub in_stream: bool,
    /// `streaming 'parallel'` was asked for (version 4): an abort then carries its LSN and time.
    pub parallel: bool,
}

impl Dialect {
    /// Version 1: whole committed transactions only.
    pub const V1: Dialect = Dialect { version: 1, in_stream: false, parallel: false };
}

/// One message of pgoutput.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A committed transaction begins.
    Begin {
        /// The LSN of its commit record.
        final_lsn: Lsn,
        /// When it was committed.
        commit_time: i64,
        /// Its transaction id.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// The LSN of its commit record: [`Message::Begin`]'s `final_lsn`.
        commit_lsn: Lsn,
        /// The end of that record: the position to confirm once the transaction is safe.
        end_lsn: Lsn,
        /// When it was committed.
        commit_time: i64,
    },
    /// The transaction was replicated to this server from elsewhere.
    Origin {
        /// The LSN of its commit over there.
        commit_lsn: Lsn,
        /// The name of the origin.
        name: Name<'a>,
    },
    /// The shape of a table, sent before its first change and after each change of shape.
    Relation(Relation<'a>),
    /// The name of a type that is not built in, sent before the relation with such a column.
    Type {
        /// In a stream, the transaction.
        xid: Option<u32>,
        /// Its OID.
        id: u32,
        /// Its schema; "" means `pg_catalog`.
        namespace: Name<'a>,
        /// Its name.
        name: Name<'a>,
    },
    /// A new row.
    Insert {
        /// In a stream, the transaction.
        xid: Option<u32>,
        /// The table's OID.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// In a stream, the transaction.
        xid: Option<u32>,
        /// The table's OID.
        relation: u32,
        /// What it was, as far as the replica identity tells; `None` when the identity has not changed.
        old: Option<OldTuple<'a>>,
        /// What it is.
        new: Tuple<'a>,
    },
    /// A row that is no more.
    Delete {
        /// In a stream, the transaction.
        xid: Option<u32>,
        /// The table's OID.
        relation: u32,
        /// What it was, as far as the replica identity tells.
        old: OldTuple<'a>,
    },
    /// Tables that are empty now.
    Truncate {
        /// In a stream, the transaction.
        xid: Option<u32>,
        /// The tables' OIDs.
        relations: RelationIds<'a>,
        /// TRUNCATE … CASCADE; the tables it reached are listed.
        cascade: bool,
        /// TRUNCATE … RESTART IDENTITY.
        restart_identity: bool,
    },
    /// What `pg_logical_emit_message` said.
    Logical(LogicalMessage<'a>),
    /// A piece of a transaction that is still open begins (version 2).
    StreamStart {
        /// The transaction.
        xid: u32,
        /// Its first piece.
        first_segment: bool,
    },
    /// The piece ends.
    StreamStop,
    /// A transaction that was streamed is committed.
    StreamCommit {
        /// The transaction.
        xid: u32,
        /// The LSN of its commit record.
        commit_lsn: Lsn,
        /// The end of that record.
        end_lsn: Lsn,
        /// When it was committed.
        commit_time: i64,
    },
    /// A transaction that was streamed, or a part of it, is rolled back.
    StreamAbort {
        /// The transaction.
        xid: u32,
        /// The part: the same as `xid` when it is the whole.
        subxid: u32,
        /// Where and when, if the dialect is parallel.
        aborted: Option<Aborted>,
    },
    /// A prepared transaction begins (version 3).
    BeginPrepare {
        /// The LSN of its PREPARE.
        prepare_lsn: Lsn,
        /// The end of the prepared transaction.
        end_lsn: Lsn,
        /// When it was prepared.
        prepare_time: i64,
        /// Its transaction id.
        xid: u32,
        /// Its name.
        gid: &'a str,
    },
    /// It ends, prepared and not yet committed.
    Prepare(Prepare<'a>),
    /// COMMIT PREPARED.
    CommitPrepared {
        /// The LSN of the commit.
        commit_lsn: Lsn,
        /// The end of the commit.
        end_lsn: Lsn,
        /// When it was committed.
        commit_time: i64,
        /// Its transaction id.
        xid: u32,
        /// Its name.
        gid: &'a str,
    },
    /// ROLLBACK PREPARED.
    RollbackPrepared {
        /// The end of the prepared transaction.
        prepare_end_lsn: Lsn,
        /// The end of the rollback.
        rollback_end_lsn: Lsn,
        /// When it was prepared.
        prepare_time: i64,
        /// When it was rolled back.
        rollback_time: i64,
        /// Its transaction id.
        xid: u32,
        /// Its name.
        gid: &'a str,
    },
    /// A transaction that was streamed is prepared.
    StreamPrepare(Prepare<'a>),
}

/// Where and when a streamed transaction was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aborted {
    /// The LSN of the abort.
    pub lsn: Lsn,
    /// Its time.
    pub time: i64,
}

/// PREPARE TRANSACTION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepare<'a> {
    /// The LSN of the PREPARE.
    pub prepare_lsn: Lsn,
    /// The end of the prepared transaction.
    pub end_lsn: Lsn,
    /// When it was prepared.
    pub prepare_time: i64,
    /// Its transaction id.
    pub xid: u32,
    /// Its name.
    pub gid: &'a str,
}

/// The shape of a table at this point of the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    /// In a stream, the transaction.
    pub xid: Option<u32>,
    /// Its OID.
    pub id: u32,
    /// Its schema; "" means `pg_catalog`.
    pub namespace: Name<'a>,
    /// Its name.
    pub name: Name<'a>,
    /// What UPDATE and DELETE tell of the old row.
    pub identity: ReplicaIdentity,
    /// The published columns, in the order of the tuples.
    pub columns: ColumnDefs<'a>,
}

/// `pg_class.relreplident`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// `d`: the primary key.
    Default,
    /// `n`: none.
    Nothing,
    /// `f`: the whole row.
    Full,
    /// `i`: the columns of one unique index.
    Index,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnDef<'a> {
    /// Part of the replica identity; with [`ReplicaIdentity::Full`] every column is.
    pub is_key: bool,
    /// Its name.
    pub name: Name<'a>,
    /// The OID of its type.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`; −1 for none.
    pub type_modifier: i32,
}

/// What `pg_logical_emit_message` said.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// In a stream, the transaction.
    pub xid: Option<u32>,
    /// Part of its transaction; otherwise it came at once, and comes again after a restart.
    pub transactional: bool,
    /// Where in the WAL it stands.
    pub lsn: Lsn,
    /// Who it is for.
    pub prefix: Name<'a>,
    /// What it says: any bytes.
    pub content: &'a [u8],
}

/// The old row of an UPDATE or DELETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// `K`: only the columns of the replica identity; the others are [`Column::Null`] and mean nothing.
    Key(Tuple<'a>),
    /// `O`: all columns, of a table with REPLICA IDENTITY FULL.
    Full(Tuple<'a>),
}

/// A row: checked as a whole when the message was parsed, read column by column without copies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    /// Some column is [`Column::Unchanged`].
    has_unchanged: bool,
    body: &'a [u8],
}

/// One value of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Column<'a> {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the UPDATE left as it was and that is not in the WAL. It is not NULL.
    Unchanged,
    /// The value as its type's output function writes it.
    Text(&'a [u8]),
    /// The value as its type's send function writes it, if `binary` was asked for and the type has one.
    Binary(&'a [u8]),
}

impl<'a> Message<'a> {
    /// Reads one message.
    ///
    /// # Errors
    /// When the bytes are not exactly one message of this dialect.
    #[inline]
    pub fn parse(data: &'a [u8], dialect: Dialect) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new("pgoutput message", data);
        let message = Self::read(&mut cursor, dialect)?;
        cursor.finish()?;
        Ok(message)
    }

    #[inline]
    fn read(cursor: &mut Cursor<'a>, dialect: Dialect) -> Result<Self, DecodeError> {
        let (kind, name, since) = cursor.choice("kind", |kind| known(kind).map(|(name, since)| (kind, name, since)))?;
        cursor.rename(name);
        if dialect.version < since {
            return Err(cursor.error("kind", 0, Fault::NotInVersion { asked: dialect.version, needed: since }));
        }
        Ok(match kind {
            b'I' => Message::Insert {
                xid: streamed_xid(cursor, dialect)?,
                relation: cursor.u32("relation")?,
                new: new_tuple(cursor)?,
            },
            b'U' => {
                let xid = streamed_xid(cursor, dialect)?;
                let relation = cursor.u32("relation")?;
                let kind = cursor.choice("row's kind", |kind| matches!(kind, b'N' | b'K' | b'O').then_some(kind))?;
                let (old, new) = match kind {
                    b'N' => (None, tuple(cursor, "new row's column")?),
                    b'K' => (Some(OldTuple::Key(tuple(cursor, "old key's column")?)), new_tuple(cursor)?),
                    _ => (Some(OldTuple::Full(tuple(cursor, "old row's column")?)), new_tuple(cursor)?),
                };
                Message::Update { xid, relation, old, new }
            }
            b'D' => {
                let xid = streamed_xid(cursor, dialect)?;
                let relation = cursor.u32("relation")?;
                let old = match cursor.choice("row's kind", |kind| matches!(kind, b'K' | b'O').then_some(kind))? {
                    b'K' => OldTuple::Key(tuple(cursor, "old key's column")?),
                    _ => OldTuple::Full(tuple(cursor, "old row's column")?),
                };
                Message::Delete { xid, relation, old }
            }
            b'B' => Message::Begin {
                final_lsn: cursor.lsn_set("final LSN")?,
                commit_time: cursor.i64("commit time")?,
                xid: cursor.u32("transaction id")?,
            },
            b'C' => {
                no_flags(cursor)?;
                Message::Commit {
                    commit_lsn: cursor.lsn_set("commit LSN")?,
                    end_lsn: cursor.lsn_set("end LSN")?,
                    commit_time: cursor.i64("commit time")?,
                }
            }
            b'R' => Message::Relation(relation(cursor, dialect)?),
            b'Y' => Message::Type {
                xid: streamed_xid(cursor, dialect)?,
                id: cursor.u32("type")?,
                namespace: cursor.name("namespace")?,
                name: cursor.name("name")?,
            },
            b'T' => truncate(cursor, dialect)?,
            b'M' => Message::Logical(logical(cursor, dialect)?),
            b'O' => Message::Origin { commit_lsn: cursor.lsn("commit LSN")?, name: cursor.name("name")? },
            kind => Self::read_later(kind, cursor, dialect)?,
        })
    }

    /// The kinds that later versions have: transactions in pieces while they are open, and prepared ones.
    fn read_later(kind: u8, cursor: &mut Cursor<'a>, dialect: Dialect) -> Result<Self, DecodeError> {
        Ok(match kind {
            b'S' => Message::StreamStart {
                xid: cursor.u32("transaction id")?,
                first_segment: cursor.flag("first segment")?,
            },
            b'E' => Message::StreamStop,
            b'c' => {
                let xid = cursor.u32("transaction id")?;
                no_flags(cursor)?;
                Message::StreamCommit {
                    xid,
                    commit_lsn: cursor.lsn_set("commit LSN")?,
                    end_lsn: cursor.lsn_set("end LSN")?,
                    commit_time: cursor.i64("commit time")?,
                }
            }
            b'A' => Message::StreamAbort {
                xid: cursor.u32("transaction id")?,
                subxid: cursor.u32("subtransaction id")?,
                aborted: match dialect.parallel && dialect.version >= 4 {
                    true => Some(Aborted { lsn: cursor.lsn("abort LSN")?, time: cursor.i64("abort time")? }),
                    false => None,
                },
            },
            b'b' => Message::BeginPrepare {
                prepare_lsn: cursor.lsn_set("prepare LSN")?,
                end_lsn: cursor.lsn_set("end LSN")?,
                prepare_time: cursor.i64("prepare time")?,
                xid: cursor.u32("transaction id")?,
                gid: cursor.cstr("name")?,
            },
            b'P' => Message::Prepare(prepare(cursor)?),
            b'p' => Message::StreamPrepare(prepare(cursor)?),
            b'K' => {
                no_flags(cursor)?;
                Message::CommitPrepared {
                    commit_lsn: cursor.lsn_set("commit LSN")?,
                    end_lsn: cursor.lsn_set("end LSN")?,
                    commit_time: cursor.i64("commit time")?,
                    xid: cursor.u32("transaction id")?,
                    gid: cursor.cstr("name")?,
                }
            }
            b'r' => {
                no_flags(cursor)?;
                Message::RollbackPrepared {
                    prepare_end_lsn: cursor.lsn_set("prepare's end LSN")?,
                    rollback_end_lsn: cursor.lsn_set("rollback's end LSN")?,
                    prepare_time: cursor.i64("prepare time")?,
                    rollback_time: cursor.i64("rollback time")?,
                    xid: cursor.u32("transaction id")?,
                    gid: cursor.cstr("name")?,
                }
            }
            kind => return Err(cursor.error("kind", 0, Fault::Unknown(kind))),
        })
    }
}

/// The manual's name for a kind of message, and the first protocol version that has it.
#[inline]
fn known(kind: u8) -> Option<(&'static str, u8)> {
    Some(match kind {
        b'B' => ("Begin", 1),
        b'C' => ("Commit", 1),
        b'O' => ("Origin", 1),
        b'R' => ("Relation", 1),
        b'Y' => ("Type", 1),
        b'I' => ("Insert", 1),
        b'U' => ("Update", 1),
        b'D' => ("Delete", 1),
        b'T' => ("Truncate", 1),
        b'M' => ("Message", 1),
        b'S' => ("Stream Start", 2),
        b'E' => ("Stream Stop", 2),
        b'c' => ("Stream Commit", 2),
        b'A' => ("Stream Abort", 2),
        b'b' => ("Begin Prepare", 3),
        b'P' => ("Prepare", 3),
        b'K' => ("Commit Prepared", 3),
        b'r' => ("Rollback Prepared", 3),
        b'p' => ("Stream Prepare", 3),
        _ => return None,
    })
}

#[inline]
fn streamed_xid(cursor: &mut Cursor<'_>, dialect: Dialect) -> Result<Option<u32>, DecodeError> {
    match dialect.in_stream {
        true => cursor.u32("transaction id").map(Some),
        false => Ok(None),
    }
}

/// The flags of the ends of transactions: the manual calls them unused, and PostgreSQL refuses any but zero.
#[inline]
fn no_flags(cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
    cursor.choice("flags", |flags| (flags == 0).then_some(()))
}

#[inline]
fn new_tuple<'a>(cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
    cursor.choice("row's kind", |kind| (kind == b'N').then_some(()))?;
    tuple(cursor, "new row's column")
}

/// TupleData: checks each column, keeps only where they are.
#[inline]
fn tuple<'a>(cursor: &mut Cursor<'a>, field: &'static str) -> Result<Tuple<'a>, DecodeError> {
    let count = cursor.u16("number of columns")?;
    let mut has_unchanged = false;
    let body = cursor.spanned(|cursor| {
        for index in 0..count {
            has_unchanged |= column(cursor, field).map_err(|error| error.of_item(u32::from(index)))?;
        }
        Ok(())
    })?;
    Ok(Tuple { count, has_unchanged, body })
}

/// Returns whether it is an unchanged one.
#[inline]
fn column(cursor: &mut Cursor<'_>, field: &'static str) -> Result<bool, DecodeError> {
    let kind = cursor.choice(field, |kind| matches!(kind, b't' | b'b' | b'n' | b'u').then_some(kind))?;
    if matches!(kind, b't' | b'b') {
        let length = cursor.count(field)?;
        cursor.bytes(field, length)?;
    }
    Ok(kind == b'u')
}

fn relation<'a>(cursor: &mut Cursor<'a>, dialect: Dialect) -> Result<Relation<'a>, DecodeError> {
    let xid = streamed_xid(cursor, dialect)?;
    let id = cursor.u32("relation")?;
    let namespace = cursor.name("namespace")?;
    let name = cursor.name("name")?;
    let identity = cursor.choice("replica identity", |byte| match byte {
        b'd' => Some(ReplicaIdentity::Default),
        b'n' => Some(ReplicaIdentity::Nothing),
        b'f' => Some(ReplicaIdentity::Full),
        b'i' => Some(ReplicaIdentity::Index),
        _ => None,
    })?;
    let count = cursor.u16("number of columns")?;
    let body = cursor.spanned(|cursor| {
        for index in 0..count {
            column_def(cursor).map_err(|error| error.of_item(u32::from(index)))?;
        }
        Ok(())
    })?;
    Ok(Relation { xid, id, namespace, name, identity, columns: ColumnDefs { count, body } })
}

fn column_def<'a>(cursor: &mut Cursor<'a>) -> Result<ColumnDef<'a>, DecodeError> {
    Ok(ColumnDef {
        is_key: cursor.flag("column's flags")?,
        name: cursor.name("column's name")?,
        type_oid: cursor.u32("column's type")?,
        type_modifier: cursor.i32("column's type modifier")?,
    })
}

fn truncate<'a>(cursor: &mut Cursor<'a>, dialect: Dialect) -> Result<Message<'a>, DecodeError> {
    let xid = streamed_xid(cursor, dialect)?;
    let count = cursor.count("number of relations")?;
    let options = cursor.choice("options", |options| (options <= 3).then_some(options))?;
    let ids = cursor.bytes("relations", count.saturating_mul(4))?;
    Ok(Message::Truncate {
        xid,
        relations: RelationIds { ids: ids.as_chunks().0 },
        cascade: options & 1 != 0,
        restart_identity: options & 2 != 0,
    })
}

fn logical<'a>(cursor: &mut Cursor<'a>, dialect: Dialect) -> Result<LogicalMessage<'a>, DecodeError> {
    let xid = streamed_xid(cursor, dialect)?;
    let transactional = cursor.flag("flags")?;
    let lsn = cursor.lsn("LSN")?;
    // Anybody may write one, with any bytes where the database's encoding is SQL_ASCII.
    let prefix = cursor.name("prefix")?;
    let length = cursor.count("length")?;
    let content = cursor.bytes("content", length)?;
    Ok(LogicalMessage { xid, transactional, lsn, prefix, content })
}

fn prepare<'a>(cursor: &mut Cursor<'a>) -> Result<Prepare<'a>, DecodeError> {
    no_flags(cursor)?;
    Ok(Prepare {
        prepare_lsn: cursor.lsn_set("prepare LSN")?,
        end_lsn: cursor.lsn_set("end LSN")?,
        prepare_time: cursor.i64("prepare time")?,
        xid: cursor.u32("transaction id")?,
        gid: cursor.cstr("name")?,
    })
}

impl<'a> OldTuple<'a> {
    /// The row, whichever kind it is.
    #[inline]
    pub fn tuple(self) -> Tuple<'a> {
        match self {
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => tuple,
        }
    }
}

impl<'a> Tuple<'a> {
    /// Reads a row that stands by itself.
    ///
    /// # Errors
    /// When the bytes are not exactly one row.
    pub fn parse(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new("row of a backfill", data);
        let row = tuple(&mut cursor, "row's column")?;
        cursor.finish()?;
        Ok(row)
    }

    /// Number of columns.
    #[inline]
    pub fn len(self) -> usize {
        usize::from(self.count)
    }

    /// Whether some column is [`Column::Unchanged`].
    #[inline]
    pub fn has_unchanged(self) -> bool {
        self.has_unchanged
    }

    /// A row without columns, which PostgreSQL allows.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.count == 0
    }

    /// The values, in the order of the relation's columns.
    #[inline]
    pub fn iter(self) -> Columns<'a> {
        Columns { left: self.count, rest: self.body }
    }
}

impl<'a> IntoIterator for Tuple<'a> {
    type Item = Column<'a>;
    type IntoIter = Columns<'a>;

    #[inline]
    fn into_iter(self) -> Columns<'a> {
        self.iter()
    }
}

/// Walks a [`Tuple`].
#[derive(Debug, Clone)]
pub struct Columns<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Columns<'a> {
    #[inline]
    fn value(&mut self) -> &'a [u8] {
        let (length, rest) = self.rest.split_first_chunk().expect("the tuple was checked when parsed");
        let length = usize::try_from(u32::from_be_bytes(*length)).expect("a length fits the address space");
        let (value, rest) = rest.split_at(length);
        self.rest = rest;
        value
    }
}

impl<'a> Iterator for Columns<'a> {
    type Item = Column<'a>;

    #[inline]
    fn next(&mut self) -> Option<Column<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (kind, rest) = self.rest.split_first().expect("the tuple was checked when parsed");
        self.rest = rest;
        Some(match kind {
            b't' => Column::Text(self.value()),
            b'b' => Column::Binary(self.value()),
            b'u' => Column::Unchanged,
            _ => Column::Null,
        })
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Columns<'_> {}
impl FusedIterator for Columns<'_> {}

/// The columns of a [`Relation`], checked when it was parsed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ColumnDefs<'a> {
    count: u16,
    body: &'a [u8],
}

impl<'a> ColumnDefs<'a> {
    /// Number of columns.
    pub fn len(self) -> usize {
        usize::from(self.count)
    }

    /// A table without published columns.
    pub fn is_empty(self) -> bool {
        self.count == 0
    }

    /// The columns, in the order of the tuples.
    pub fn iter(self) -> impl ExactSizeIterator<Item = ColumnDef<'a>> + Clone {
        let mut cursor = Cursor::new("Relation", self.body);
        (0..self.count).map(move |_| column_def(&mut cursor).expect("the relation was checked when parsed"))
    }
}

/// The tables of a TRUNCATE.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RelationIds<'a> {
    ids: &'a [[u8; 4]],
}

impl<'a> RelationIds<'a> {
    /// Number of tables.
    pub fn len(self) -> usize {
        self.ids.len()
    }

    /// No tables.
    pub fn is_empty(self) -> bool {
        self.ids.is_empty()
    }

    /// Their OIDs.
    pub fn iter(self) -> impl ExactSizeIterator<Item = u32> + Clone + 'a {
        self.ids.iter().map(|id| u32::from_be_bytes(*id))
    }
}

// Debug shows what the bytes mean, in one line, so that a golden file can be read.

impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Column::Null => f.write_str("Null"),
            Column::Unchanged => f.write_str("Unchanged"),
            Column::Text(text) => write!(f, "Text(\"{}\")", text.escape_ascii()),
            Column::Binary(bytes) => write!(f, "Binary(\"{}\")", bytes.escape_ascii()),
        }
    }
}

impl fmt::Debug for ColumnDefs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for RelationIds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for LogicalMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalMessage")
            .field("xid", &self.xid)
            .field("transactional", &self.transactional)
            .field("lsn", &self.lsn)
            .field("prefix", &self.prefix)
            .field("content", &format_args!("\"{}\"", self.content.escape_ascii()))
            .finish()
    }
}

#[cfg(test)]
mod tests;
