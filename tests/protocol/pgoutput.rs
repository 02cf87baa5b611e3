//! The decoder, against what real walsenders sent (tests/golden) and against anything at all.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use bytes::BufMut;
use proptest::{prelude::*, sample::Index};
use walhook::wal::{
    cursor::{DecodeError, Fault},
    frame::{Frame, StandbyStatus},
    lsn::Lsn,
    pgoutput::{Aborted, Column, Dialect, LogicalMessage, Message, OldTuple, ReplicaIdentity},
};

// ---------------------------------------------------------------------------------------------------------- captured

/// One file of tests/golden.
struct Golden {
    path: PathBuf,
    name: String,
    frames: Vec<Vec<u8>>,
    /// As the name says: `pg16-v4-parallel-text`.
    dialect: Dialect,
}

fn golden() -> Vec<Golden> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "bin"));
    paths.sort();
    assert!(paths.len() >= 8, "the golden files are there");
    paths.into_iter().map(read_golden).collect()
}

fn read_golden(path: PathBuf) -> Golden {
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let version = name.split('-').find_map(|part| part.strip_prefix('v')).unwrap().parse().unwrap();
    let dialect = Dialect { version, in_stream: false, parallel: name.contains("-parallel-") };
    let bytes = fs::read(&path).unwrap();
    let (mut rest, mut frames) = (bytes.as_slice(), Vec::new());
    while let Some((length, after)) = rest.split_first_chunk() {
        let (frame, after) = after.split_at(usize::try_from(u32::from_be_bytes(*length)).unwrap());
        frames.push(frame.to_vec());
        rest = after;
    }
    assert!(rest.is_empty(), "{name} ends in the middle of a length");
    Golden { path, name, frames, dialect }
}

/// Every message of a file with the dialect in force when it came.
fn messages(golden: &Golden) -> Vec<(&[u8], Dialect)> {
    let mut dialect = golden.dialect;
    let mut messages = Vec::new();
    for frame in &golden.frames {
        let Frame::XLogData { data, .. } = Frame::parse(frame).unwrap() else { continue };
        messages.push((data, dialect));
        let message = Message::parse(data, dialect).unwrap();
        follow(&mut dialect, &message);
    }
    messages
}

fn follow(dialect: &mut Dialect, message: &Message<'_>) {
    match message {
        Message::StreamStart { .. } => dialect.in_stream = true,
        Message::StreamStop => dialect.in_stream = false,
        _ => {}
    }
}

#[test]
fn what_real_servers_sent_reads_as_written_down_beside_it() {
    for golden in golden() {
        let mut dialect = golden.dialect;
        let mut text = String::new();
        for frame in &golden.frames {
            let frame = Frame::parse(frame).unwrap();
            writeln!(text, "{frame:?}").unwrap();
            if let Frame::XLogData { data, .. } = frame {
                let message = Message::parse(data, dialect).unwrap_or_else(|e| panic!("{}: {e}", golden.name));
                writeln!(text, "    {message:?}").unwrap();
                follow(&mut dialect, &message);
            }
        }
        let path = golden.path.with_extension("txt");
        if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
            fs::write(&path, &text).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap();
        for (number, (got, expected)) in text.lines().zip(expected.lines()).enumerate() {
            assert_eq!(got, expected, "{}, line {}", golden.name, number + 1);
        }
        assert_eq!(text.lines().count(), expected.lines().count(), "{}", golden.name);
    }
}

#[test]
fn the_captures_hold_every_kind_of_message_and_column() {
    let (mut kinds, mut columns, mut identities) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut both_old_rows = [false; 2];
    for golden in golden() {
        for (data, dialect) in messages(&golden) {
            kinds.insert(char::from(data[0]));
            let message = Message::parse(data, dialect).unwrap();
            for column in tuples(&message).into_iter().flat_map(|tuple| tuple.iter()) {
                columns.insert(match column {
                    Column::Null => 'n',
                    Column::Unchanged => 'u',
                    Column::Text(_) => 't',
                    Column::Binary(_) => 'b',
                });
            }
            match message {
                Message::Relation(relation) => drop(identities.insert(format!("{:?}", relation.identity))),
                Message::Update { old: Some(old), .. } => {
                    both_old_rows[usize::from(matches!(old, OldTuple::Full(_)))] = true
                }
                _ => {}
            }
        }
    }
    assert_eq!(kinds.into_iter().collect::<String>(), "ABCDEIKMOPRSTUYbcpr");
    assert_eq!(columns.into_iter().collect::<String>(), "bntu");
    assert_eq!(identities.into_iter().collect::<Vec<_>>(), ["Default", "Full", "Index", "Nothing"]);
    assert_eq!(both_old_rows, [true, true]);
}

fn tuples<'a>(message: &Message<'a>) -> Vec<walhook::wal::pgoutput::Tuple<'a>> {
    match message {
        Message::Insert { new, .. } => vec![*new],
        Message::Update { old, new, .. } => old.iter().map(|old| old.tuple()).chain([*new]).collect(),
        Message::Delete { old, .. } => vec![old.tuple()],
        _ => Vec::new(),
    }
}

#[test]
fn each_captured_message_cut_short_or_made_longer_is_an_error() {
    for golden in golden() {
        for (data, dialect) in messages(&golden) {
            for length in 0..data.len() {
                let error = Message::parse(&data[..length], dialect).unwrap_err();
                assert!(matches!(error.fault, Fault::Short { .. } | Fault::Unterminated), "{error}");
                assert!(error.offset <= length, "{error}");
            }
            let longer = [data, b"\0"].concat();
            let error = Message::parse(&longer, dialect).unwrap_err();
            assert_eq!((error.fault, error.offset), (Fault::Left(1), data.len()));
        }
        for frame in &golden.frames {
            let header = if frame[0] == b'w' { 25 } else { frame.len() };
            for length in 0..header {
                assert!(Frame::parse(&frame[..length]).is_err());
            }
        }
    }
}

// --------------------------------------------------------------------------------------------------- encode ∘ decode

/// A message that owns what it says, and the bytes the manual gives it; written apart from the decoder.
#[derive(Debug, Clone)]
enum Spoken {
    Begin {
        lsn: u64,
        time: i64,
        xid: u32,
    },
    Commit {
        lsn: u64,
        end: u64,
        time: i64,
    },
    Origin {
        lsn: u64,
        name: String,
    },
    Relation {
        xid: u32,
        id: u32,
        namespace: String,
        name: String,
        identity: usize,
        columns: Vec<(bool, String, u32, i32)>,
    },
    Type {
        xid: u32,
        id: u32,
        namespace: String,
        name: String,
    },
    Insert {
        xid: u32,
        relation: u32,
        new: Row,
    },
    Update {
        xid: u32,
        relation: u32,
        old: Option<(bool, Row)>,
        new: Row,
    },
    Delete {
        xid: u32,
        relation: u32,
        old: (bool, Row),
    },
    Truncate {
        xid: u32,
        relations: Vec<u32>,
        cascade: bool,
        restart: bool,
    },
    Logical {
        xid: u32,
        transactional: bool,
        lsn: u64,
        prefix: String,
        content: Vec<u8>,
    },
    StreamStart {
        xid: u32,
        first: bool,
    },
    StreamStop,
    StreamCommit {
        xid: u32,
        lsn: u64,
        end: u64,
        time: i64,
    },
    StreamAbort {
        xid: u32,
        subxid: u32,
        lsn: u64,
        time: i64,
    },
    BeginPrepare {
        lsn: u64,
        end: u64,
        time: i64,
        xid: u32,
        gid: String,
    },
    Prepare {
        streamed: bool,
        lsn: u64,
        end: u64,
        time: i64,
        xid: u32,
        gid: String,
    },
    CommitPrepared {
        lsn: u64,
        end: u64,
        time: i64,
        xid: u32,
        gid: String,
    },
    RollbackPrepared {
        lsn: u64,
        end: u64,
        time: i64,
        at: i64,
        xid: u32,
        gid: String,
    },
}

type Row = Vec<Value>;

#[derive(Debug, Clone)]
enum Value {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

const IDENTITIES: [(u8, ReplicaIdentity); 4] = [
    (b'd', ReplicaIdentity::Default),
    (b'n', ReplicaIdentity::Nothing),
    (b'f', ReplicaIdentity::Full),
    (b'i', ReplicaIdentity::Index),
];

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_row(out: &mut Vec<u8>, kind: u8, row: &Row) {
    out.put_u8(kind);
    out.put_u16(row.len().try_into().unwrap());
    for value in row {
        let (kind, bytes) = match value {
            Value::Null => (b'n', None),
            Value::Unchanged => (b'u', None),
            Value::Text(bytes) => (b't', Some(bytes)),
            Value::Binary(bytes) => (b'b', Some(bytes)),
        };
        out.put_u8(kind);
        if let Some(bytes) = bytes {
            out.put_i32(bytes.len().try_into().unwrap());
            out.put_slice(bytes);
        }
    }
}

impl Spoken {
    fn encode(&self, dialect: Dialect) -> Vec<u8> {
        let mut bytes = Vec::new();
        let out = &mut bytes;
        let head = |out: &mut Vec<u8>, kind: u8, xid: u32| {
            out.put_u8(kind);
            if dialect.in_stream {
                out.put_u32(xid);
            }
        };
        let tail = |out: &mut Vec<u8>, lsn: u64, end: u64, time: i64, xid: u32, gid: &str| {
            out.put_u64(lsn);
            out.put_u64(end);
            out.put_i64(time);
            out.put_u32(xid);
            put_string(out, gid);
        };
        match self {
            Spoken::Begin { lsn, time, xid } => {
                out.put_u8(b'B');
                out.put_u64(*lsn);
                out.put_i64(*time);
                out.put_u32(*xid);
            }
            Spoken::Commit { lsn, end, time } => {
                out.put_slice(b"C\0");
                out.put_u64(*lsn);
                out.put_u64(*end);
                out.put_i64(*time);
            }
            Spoken::Origin { lsn, name } => {
                out.put_u8(b'O');
                out.put_u64(*lsn);
                put_string(out, name);
            }
            Spoken::Relation { xid, id, namespace, name, identity, columns } => {
                head(out, b'R', *xid);
                out.put_u32(*id);
                put_string(out, namespace);
                put_string(out, name);
                out.put_u8(IDENTITIES[*identity].0);
                out.put_u16(columns.len().try_into().unwrap());
                for (key, name, type_oid, type_modifier) in columns {
                    out.put_u8(u8::from(*key));
                    put_string(out, name);
                    out.put_u32(*type_oid);
                    out.put_i32(*type_modifier);
                }
            }
            Spoken::Type { xid, id, namespace, name } => {
                head(out, b'Y', *xid);
                out.put_u32(*id);
                put_string(out, namespace);
                put_string(out, name);
            }
            Spoken::Insert { xid, relation, new } => {
                head(out, b'I', *xid);
                out.put_u32(*relation);
                put_row(out, b'N', new);
            }
            Spoken::Update { xid, relation, old, new } => {
                head(out, b'U', *xid);
                out.put_u32(*relation);
                if let Some((full, old)) = old {
                    put_row(out, if *full { b'O' } else { b'K' }, old);
                }
                put_row(out, b'N', new);
            }
            Spoken::Delete { xid, relation, old: (full, old) } => {
                head(out, b'D', *xid);
                out.put_u32(*relation);
                put_row(out, if *full { b'O' } else { b'K' }, old);
            }
            Spoken::Truncate { xid, relations, cascade, restart } => {
                head(out, b'T', *xid);
                out.put_u32(relations.len().try_into().unwrap());
                out.put_u8(u8::from(*cascade) | u8::from(*restart) << 1);
                relations.iter().for_each(|relation| out.put_u32(*relation));
            }
            Spoken::Logical { xid, transactional, lsn, prefix, content } => {
                head(out, b'M', *xid);
                out.put_u8(u8::from(*transactional));
                out.put_u64(*lsn);
                put_string(out, prefix);
                out.put_u32(content.len().try_into().unwrap());
                out.put_slice(content);
            }
            Spoken::StreamStart { xid, first } => {
                out.put_u8(b'S');
                out.put_u32(*xid);
                out.put_u8(u8::from(*first));
            }
            Spoken::StreamStop => out.put_u8(b'E'),
            Spoken::StreamCommit { xid, lsn, end, time } => {
                out.put_u8(b'c');
                out.put_u32(*xid);
                out.put_u8(0);
                out.put_u64(*lsn);
                out.put_u64(*end);
                out.put_i64(*time);
            }
            Spoken::StreamAbort { xid, subxid, lsn, time } => {
                out.put_u8(b'A');
                out.put_u32(*xid);
                out.put_u32(*subxid);
                if dialect.parallel {
                    out.put_u64(*lsn);
                    out.put_i64(*time);
                }
            }
            Spoken::BeginPrepare { lsn, end, time, xid, gid } => {
                out.put_u8(b'b');
                tail(out, *lsn, *end, *time, *xid, gid);
            }
            Spoken::Prepare { streamed, lsn, end, time, xid, gid } => {
                out.put_slice(if *streamed { b"p\0" } else { b"P\0" });
                tail(out, *lsn, *end, *time, *xid, gid);
            }
            Spoken::CommitPrepared { lsn, end, time, xid, gid } => {
                out.put_slice(b"K\0");
                tail(out, *lsn, *end, *time, *xid, gid);
            }
            Spoken::RollbackPrepared { lsn, end, time, at, xid, gid } => {
                out.put_slice(b"r\0");
                out.put_u64(*lsn);
                out.put_u64(*end);
                out.put_i64(*time);
                out.put_i64(*at);
                out.put_u32(*xid);
                put_string(out, gid);
            }
        }
        bytes
    }
}

/// The decoded message with all its strings copied out.
fn hear(message: &Message<'_>) -> Spoken {
    let row = |tuple: walhook::wal::pgoutput::Tuple<'_>| -> Row {
        let mut columns = tuple.iter();
        let mut row = Vec::new();
        loop {
            assert_eq!(columns.len() + row.len(), tuple.len());
            row.push(match columns.next() {
                Some(Column::Null) => Value::Null,
                Some(Column::Unchanged) => Value::Unchanged,
                Some(Column::Text(bytes)) => Value::Text(bytes.to_vec()),
                Some(Column::Binary(bytes)) => Value::Binary(bytes.to_vec()),
                None => break row,
            });
        }
    };
    let old_row = |old: &OldTuple<'_>| (matches!(old, OldTuple::Full(_)), row(old.tuple()));
    let own = |xid: &Option<u32>| xid.unwrap_or(0);
    match message {
        Message::Begin { final_lsn, commit_time, xid } => {
            Spoken::Begin { lsn: final_lsn.0, time: *commit_time, xid: *xid }
        }
        Message::Commit { commit_lsn, end_lsn, commit_time } => {
            Spoken::Commit { lsn: commit_lsn.0, end: end_lsn.0, time: *commit_time }
        }
        Message::Origin { commit_lsn, name } => Spoken::Origin { lsn: commit_lsn.0, name: (*name).into() },
        Message::Relation(relation) => Spoken::Relation {
            xid: own(&relation.xid),
            id: relation.id,
            namespace: relation.namespace.into(),
            name: relation.name.into(),
            identity: IDENTITIES.iter().position(|(_, identity)| *identity == relation.identity).unwrap(),
            columns: relation.columns.iter().map(|c| (c.is_key, c.name.into(), c.type_oid, c.type_modifier)).collect(),
        },
        Message::Type { xid, id, namespace, name } => {
            Spoken::Type { xid: own(xid), id: *id, namespace: (*namespace).into(), name: (*name).into() }
        }
        Message::Insert { xid, relation, new } => Spoken::Insert { xid: own(xid), relation: *relation, new: row(*new) },
        Message::Update { xid, relation, old, new } => {
            Spoken::Update { xid: own(xid), relation: *relation, old: old.as_ref().map(old_row), new: row(*new) }
        }
        Message::Delete { xid, relation, old } => {
            Spoken::Delete { xid: own(xid), relation: *relation, old: old_row(old) }
        }
        Message::Truncate { xid, relations, cascade, restart_identity } => {
            assert_eq!(relations.len(), relations.iter().len());
            Spoken::Truncate {
                xid: own(xid),
                relations: relations.iter().collect(),
                cascade: *cascade,
                restart: *restart_identity,
            }
        }
        Message::Logical(LogicalMessage { xid, transactional, lsn, prefix, content }) => Spoken::Logical {
            xid: own(xid),
            transactional: *transactional,
            lsn: lsn.0,
            prefix: (*prefix).into(),
            content: content.to_vec(),
        },
        Message::StreamStart { xid, first_segment } => Spoken::StreamStart { xid: *xid, first: *first_segment },
        Message::StreamStop => Spoken::StreamStop,
        Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time } => {
            Spoken::StreamCommit { xid: *xid, lsn: commit_lsn.0, end: end_lsn.0, time: *commit_time }
        }
        Message::StreamAbort { xid, subxid, aborted } => {
            let aborted = aborted.unwrap_or(Aborted { lsn: Lsn::ZERO, time: 0 });
            Spoken::StreamAbort { xid: *xid, subxid: *subxid, lsn: aborted.lsn.0, time: aborted.time }
        }
        Message::BeginPrepare { prepare_lsn, end_lsn, prepare_time, xid, gid } => Spoken::BeginPrepare {
            lsn: prepare_lsn.0,
            end: end_lsn.0,
            time: *prepare_time,
            xid: *xid,
            gid: (*gid).into(),
        },
        Message::Prepare(p) | Message::StreamPrepare(p) => Spoken::Prepare {
            streamed: matches!(message, Message::StreamPrepare(_)),
            lsn: p.prepare_lsn.0,
            end: p.end_lsn.0,
            time: p.prepare_time,
            xid: p.xid,
            gid: p.gid.into(),
        },
        Message::CommitPrepared { commit_lsn, end_lsn, commit_time, xid, gid } => Spoken::CommitPrepared {
            lsn: commit_lsn.0,
            end: end_lsn.0,
            time: *commit_time,
            xid: *xid,
            gid: (*gid).into(),
        },
        Message::RollbackPrepared { prepare_end_lsn, rollback_end_lsn, prepare_time, rollback_time, xid, gid } => {
            Spoken::RollbackPrepared {
                lsn: prepare_end_lsn.0,
                end: rollback_end_lsn.0,
                time: *prepare_time,
                at: *rollback_time,
                xid: *xid,
                gid: (*gid).into(),
            }
        }
    }
}

fn a_string() -> impl Strategy<Value = String> {
    "[^\0]{0,12}"
}

fn an_lsn() -> impl Strategy<Value = u64> {
    1..=u64::MAX
}

fn a_row() -> impl Strategy<Value = Row> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..20);
    prop::collection::vec(
        prop_oneof![
            Just(Value::Null),
            Just(Value::Unchanged),
            bytes().prop_map(Value::Text),
            bytes().prop_map(Value::Binary),
        ],
        0..6,
    )
}

fn a_message() -> impl Strategy<Value = Spoken> {
    let id = any::<u32>;
    let time = any::<i64>;
    let a_column = (any::<bool>(), a_string(), id(), any::<i32>());
    let an_old_row = || (any::<bool>(), a_row());
    prop_oneof![
        (an_lsn(), time(), id()).prop_map(|(lsn, time, xid)| Spoken::Begin { lsn, time, xid }),
        (an_lsn(), an_lsn(), time()).prop_map(|(lsn, end, time)| Spoken::Commit { lsn, end, time }),
        (any::<u64>(), a_string()).prop_map(|(lsn, name)| Spoken::Origin { lsn, name }),
        (id(), id(), a_string(), a_string(), 0..IDENTITIES.len(), prop::collection::vec(a_column, 0..6)).prop_map(
            |(xid, id, namespace, name, identity, columns)| {
                Spoken::Relation { xid, id, namespace, name, identity, columns }
            }
        ),
        (id(), id(), a_string(), a_string()).prop_map(|(xid, id, namespace, name)| Spoken::Type {
            xid,
            id,
            namespace,
            name
        }),
        (id(), id(), a_row()).prop_map(|(xid, relation, new)| Spoken::Insert { xid, relation, new }),
        (id(), id(), prop::option::of(an_old_row()), a_row()).prop_map(|(xid, relation, old, new)| Spoken::Update {
            xid,
            relation,
            old,
            new
        }),
        (id(), id(), an_old_row()).prop_map(|(xid, relation, old)| Spoken::Delete { xid, relation, old }),
        (id(), prop::collection::vec(id(), 0..5), any::<bool>(), any::<bool>())
            .prop_map(|(xid, relations, cascade, restart)| Spoken::Truncate { xid, relations, cascade, restart }),
        (id(), any::<bool>(), any::<u64>(), a_string(), prop::collection::vec(any::<u8>(), 0..30)).prop_map(
            |(xid, transactional, lsn, prefix, content)| Spoken::Logical { xid, transactional, lsn, prefix, content }
        ),
        (id(), any::<bool>()).prop_map(|(xid, first)| Spoken::StreamStart { xid, first }),
        Just(Spoken::StreamStop),
        (id(), an_lsn(), an_lsn(), time()).prop_map(|(xid, lsn, end, time)| Spoken::StreamCommit {
            xid,
            lsn,
            end,
            time
        }),
        (id(), id(), any::<u64>(), time()).prop_map(|(xid, subxid, lsn, time)| Spoken::StreamAbort {
            xid,
            subxid,
            lsn,
            time
        }),
        (an_lsn(), an_lsn(), time(), id(), a_string()).prop_map(|(lsn, end, time, xid, gid)| Spoken::BeginPrepare {
            lsn,
            end,
            time,
            xid,
            gid
        }),
        (any::<bool>(), an_lsn(), an_lsn(), time(), id(), a_string())
            .prop_map(|(streamed, lsn, end, time, xid, gid)| Spoken::Prepare { streamed, lsn, end, time, xid, gid }),
        (an_lsn(), an_lsn(), time(), id(), a_string()).prop_map(|(lsn, end, time, xid, gid)| Spoken::CommitPrepared {
            lsn,
            end,
            time,
            xid,
            gid
        }),
        (an_lsn(), an_lsn(), time(), time(), id(), a_string())
            .prop_map(|(lsn, end, time, at, xid, gid)| { Spoken::RollbackPrepared { lsn, end, time, at, xid, gid } }),
    ]
}

/// Parses, walks all there is to walk, and holds that no byte of an accepted message went unseen: said again, the
/// message has the same bytes.
fn account_for(data: &[u8], dialect: Dialect) -> Result<Spoken, DecodeError> {
    let message = Message::parse(data, dialect).inspect_err(|error| {
        assert!(error.offset <= data.len(), "{error}");
        assert!(!error.to_string().is_empty());
    })?;
    assert!(!format!("{message:?}").is_empty());
    let spoken = hear(&message);
    // A name in other bytes than UTF-8 is written out as text (wal/name.rs), from which they cannot be told.
    if !format!("{message:?}").contains('\u{FFFD}') {
        assert_eq!(spoken.encode(dialect), data, "{message:?}");
    }
    Ok(spoken)
}

fn any_dialect() -> impl Strategy<Value = Dialect> {
    (1..=4u8, any::<bool>(), any::<bool>()).prop_map(|(version, in_stream, parallel)| Dialect {
        version,
        in_stream,
        parallel: parallel && version == 4,
    })
}

proptest! {
    #[test]
    fn a_message_written_by_the_manual_reads_as_it_was_meant(spoken in a_message(), in_stream: bool, parallel: bool) {
        let dialect = Dialect { version: 4, in_stream, parallel };
        let bytes = spoken.encode(dialect);
        let heard = account_for(&bytes, dialect).unwrap();
        // What the dialect leaves out is heard as zero; all the rest must be the same, and so are the bytes.
        if in_stream && parallel {
            prop_assert_eq!(format!("{heard:?}"), format!("{spoken:?}"));
        }
        for length in 0..bytes.len() {
            prop_assert!(Message::parse(&bytes[..length], dialect).is_err());
        }
    }

    #[test]
    fn any_bytes_give_a_message_or_an_error(data in prop::collection::vec(any::<u8>(), 0..200), dialect in any_dialect()) {
        let _ = account_for(&data, dialect);
        let _ = Frame::parse(&data);
        let _ = StandbyStatus::parse(&data);
    }

    #[test]
    fn a_frame_reads_as_it_was_meant(start: u64, end: u64, sent_at: i64, reply_requested: bool, data: Vec<u8>) {
        let mut bytes = vec![b'w'];
        bytes.put_u64(start);
        bytes.put_u64(end);
        bytes.put_i64(sent_at);
        bytes.put_slice(&data);
        prop_assert_eq!(Frame::parse(&bytes), Ok(Frame::XLogData { start: Lsn(start), end: Lsn(end), sent_at, data: &data }));

        let mut bytes = vec![b'k'];
        bytes.put_u64(end);
        bytes.put_i64(sent_at);
        bytes.put_u8(u8::from(reply_requested));
        prop_assert_eq!(Frame::parse(&bytes), Ok(Frame::Keepalive { end: Lsn(end), sent_at, reply_requested }));
        for length in 0..bytes.len() {
            prop_assert!(Frame::parse(&bytes[..length]).is_err());
        }
        bytes.push(0);
        prop_assert_eq!(Frame::parse(&bytes).unwrap_err().fault, Fault::Left(1));
    }

    #[test]
    fn a_standby_status_reads_as_it_was_written(written: u64, flushed: u64, applied: u64, sent_at: i64, reply_requested: bool) {
        let (written, flushed, applied) = (Lsn(written), Lsn(flushed), Lsn(applied));
        let status = StandbyStatus { written, flushed, applied, sent_at, reply_requested };
        let mut bytes = Vec::new();
        status.write(&mut bytes);
        prop_assert_eq!(bytes.len(), StandbyStatus::SIZE);
        prop_assert_eq!(StandbyStatus::parse(&bytes), Ok(status));
        for length in 0..bytes.len() {
            prop_assert!(StandbyStatus::parse(&bytes[..length]).is_err());
        }
    }
}

/// What happens to a message on its way.
#[derive(Debug, Clone)]
enum Harm {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, u8),
    Remove(Index),
    Append(Vec<u8>),
    /// A length, count or LSN gone wild.
    Overwrite(Index, u32),
}

fn harm() -> impl Strategy<Value = Harm> {
    let place = any::<Index>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Harm::Flip(at, byte)),
        place().prop_map(Harm::Cut),
        (place(), any::<u8>()).prop_map(|(at, byte)| Harm::Insert(at, byte)),
        place().prop_map(Harm::Remove),
        prop::collection::vec(any::<u8>(), 1..10).prop_map(Harm::Append),
        (place(), prop_oneof![Just(0), Just(u32::MAX), Just(1 << 31), Just((1 << 31) - 1), 0..64u32])
            .prop_map(|(at, number)| Harm::Overwrite(at, number)),
    ]
}

fn do_harm(data: &mut Vec<u8>, harm: &Harm) {
    let length = data.len();
    match harm {
        Harm::Append(bytes) => data.extend_from_slice(bytes),
        Harm::Insert(at, byte) => data.insert(at.index(length + 1), *byte),
        _ if length == 0 => {}
        Harm::Flip(at, byte) => data[at.index(length)] ^= byte,
        Harm::Cut(at) => data.truncate(at.index(length)),
        Harm::Remove(at) => drop(data.remove(at.index(length))),
        Harm::Overwrite(at, number) => {
            let from = at.index(length);
            for (place, byte) in data[from..].iter_mut().zip(number.to_be_bytes()) {
                *place = byte;
            }
        }
    }
}

#[test]
fn a_harmed_message_gives_an_error_or_a_message_with_every_byte_accounted_for() {
    let golden = golden();
    let messages: Vec<_> = golden.iter().flat_map(messages).collect();
    let case = (any::<Index>(), prop::collection::vec(harm(), 1..4), any_dialect(), any::<bool>());
    let config = ProptestConfig { cases: 20_000, ..ProptestConfig::default() };
    proptest!(config, |((which, harms, other, own) in case)| {
        let (data, dialect) = which.get(&messages);
        let mut data = data.to_vec();
        harms.iter().for_each(|harm| do_harm(&mut data, harm));
        let _ = account_for(&data, if own { *dialect } else { other });
    });
}
