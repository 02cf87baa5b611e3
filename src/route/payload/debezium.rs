//! Debezium's envelope, as its JSON converter writes it without schemas (Debezium manual, PostgreSQL connector, "Data
//! change events"; the fields and their order are those of version 3).
//!
//! Where it differs, it says less, never something else: the time is the commit's throughout, since walhook's clock is
//! no part of an event; a large value that the WAL does not have is left out and named in `source.unchanged`, where
//! Debezium puts a text that stands for it; there are no tombstones, for a stream compacts by subject, not by key.

use super::{Body, TransactionText, op, write_data, write_number, write_old, write_unchanged};
use crate::{
    route::value::write_json_str,
    wal::{change::Op, lsn::Lsn},
};

/// Appends the envelope.
pub fn write(body: Body<'_>, source: &str, transaction: &TransactionText, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"before\":");
    match body {
        Body::Row { table, target, change } => match change.old {
            Some(old) => write_old(table, target, old, out),
            None => out.extend_from_slice(b"null"),
        },
        Body::Call { .. } | Body::Emitted(_) | Body::Columns { .. } => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"after\":");
    match body {
        Body::Row { change, .. } if change.new.is_none() => out.extend_from_slice(b"null"),
        _ => drop(write_data(body, out)),
    }
    write_source(body, source, transaction, out);
    out.extend_from_slice(b",\"transaction\":null,\"op\":\"");
    out.push(match op(body) {
        Op::Insert => b'c',
        Op::Update => b'u',
        Op::Delete => b'd',
        Op::Truncate => b't',
        Op::Snapshot => b'r',
        // A logical message: readers of rows pass over it.
        Op::Columns => b'm',
    });
    out.push(b'"');
    write_times(transaction, out);
    out.push(b'}');
}

/// `,"source":{…}`: the fields by which a reader of Debezium's tells databases, tables and positions.
fn write_source(body: Body<'_>, source: &str, transaction: &TransactionText, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"source\":{\"version\":\"");
    out.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
    // Readers tell by it how to read the positions below, and these are what they are to that connector.
    out.extend_from_slice(b"\",\"connector\":\"postgresql\",\"name\":");
    write_json_str(source, out);
    out.extend_from_slice(b",\"ts_ms\":");
    write_number(transaction.timestamp_us.div_euclid(1000), out);
    // What that connector says of rows that it sends beside the live ones.
    let snapshot: &[u8] = if op(body) == Op::Snapshot { b"incremental" } else { b"false" };
    out.extend_from_slice(b",\"snapshot\":\"");
    out.extend_from_slice(snapshot);
    out.extend_from_slice(b"\",\"db\":");
    write_json_str(&transaction.database, out);
    // A text that holds JSON, to be compared element by element: it rises in the order of the stream.
    out.extend_from_slice(b",\"sequence\":\"[\\\"");
    write_lsn(transaction.commit_lsn, out);
    out.extend_from_slice(b"\\\",\\\"");
    write_lsn(transaction.row_lsn, out);
    out.extend_from_slice(b"\\\"]\",\"ts_us\":");
    write_number(transaction.timestamp_us, out);
    out.extend_from_slice(b",\"ts_ns\":");
    write_number(transaction.timestamp_us.saturating_mul(1000), out);
    out.extend_from_slice(b",\"schema\":");
    match body {
        Body::Row { table, .. } => out.extend_from_slice(&table.schema),
        Body::Call { .. } => out.extend_from_slice(b"\"public\""),
        // As Debezium has it of a logical message.
        Body::Emitted(_) | Body::Columns { .. } => out.extend_from_slice(b"\"\""),
    }
    out.extend_from_slice(b",\"table\":");
    match body {
        Body::Row { table, .. } => out.extend_from_slice(&table.table),
        Body::Call { .. } => out.extend_from_slice(b"\"rule_webhook_events\""),
        Body::Emitted(_) | Body::Columns { .. } => out.extend_from_slice(b"\"\""),
    }
    out.extend_from_slice(b",\"txId\":");
    write_number(transaction.xid.into(), out);
    out.extend_from_slice(b",\"lsn\":");
    write_lsn(transaction.row_lsn, out);
    out.extend_from_slice(b",\"xmin\":null");
    if let Body::Row { table, target, change } = body {
        write_unchanged(table, target, change, out);
    }
    out.push(b'}');
}

/// The commit's time in the three units that there are of it.
fn write_times(transaction: &TransactionText, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"ts_ms\":");
    write_number(transaction.timestamp_us.div_euclid(1000), out);
    out.extend_from_slice(b",\"ts_us\":");
    write_number(transaction.timestamp_us, out);
    out.extend_from_slice(b",\"ts_ns\":");
    write_number(transaction.timestamp_us.saturating_mul(1000), out);
}

fn write_lsn(lsn: Lsn, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(lsn.0).as_bytes());
}
