//! The backlog: rows in the WAL that no slot has passed yet.
//!
//! One slot is made before the rows are written; every drain works on a copy of it, so a backlog can be drained many
//! times.

use std::fmt;

use crate::support::feed::Feed;

/// The slot that is never read from.
const ORIGIN: &str = "origin";

/// How the rows are cut into transactions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Of that many rows each.
    Of(u64),
    /// All in one.
    One,
}

impl Shape {
    /// `1`, `1000`, `all`.
    pub fn named(name: &str) -> Shape {
        match name {
            "all" => Shape::One,
            rows => Shape::Of(rows.parse().expect("a number of rows, or all")),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Of(rows) => write!(f, "{rows}-row transactions"),
            Shape::One => f.write_str("one transaction"),
        }
    }
}

/// About 300 bytes as text.
const ROW: &str = "i, jsonb_build_object('order', i, 'customer', md5(i::text), 'status', 'paid', 'total', i * 0.01, \
    'note', 'left with the neighbour on the second floor', 'address', '{\"street\": \"Unter den Linden 77\", \
    \"postcode\": \"10117\", \"city\": \"Berlin\", \"country\": \"DE\"}'::jsonb, 'items', \
    '[{\"sku\": \"A-1001\", \"count\": 2}, {\"sku\": \"B-2002\", \"count\": 1}]'::jsonb)";

/// The table and its webhook; its inserts are published, nothing else.
pub fn prepare(feed: &Feed) {
    let webhook = feed.webhook("bench");
    feed.pg.psql("CREATE TABLE bench (id bigint PRIMARY KEY, doc jsonb NOT NULL)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'bench', ARRAY['insert'])"));
}

/// Writes `rows` rows behind a slot.
pub fn fill(feed: &Feed, shape: Shape, rows: u64) {
    feed.pg.psql("TRUNCATE bench");
    feed.pg.psql(&format!("SELECT pg_create_logical_replication_slot('{ORIGIN}', 'pgoutput')"));
    let insert =
        |from: &str, upto: &str| format!("INSERT INTO bench SELECT {ROW} FROM generate_series({from}, {upto}) i");
    let looped = |each: &str, statement: &str| {
        format!("DO $$ BEGIN SET synchronous_commit = off; {each} LOOP {statement}; COMMIT; END LOOP; END $$")
    };
    let sql = match shape {
        Shape::One => insert("1", &rows.to_string()),
        // A VALUES list costs PostgreSQL less to set up, and there are a million of these.
        Shape::Of(1) => looped(&format!("FOR i IN 1..{rows}"), &format!("INSERT INTO bench VALUES ({ROW})")),
        Shape::Of(size) => {
            looped(&format!("FOR start IN 1..{rows} BY {size}"), &insert("start", &format!("start + {size} - 1")))
        }
    };
    feed.pg.psql(&sql);
    // Out of the way of what is measured: dirty pages, and WAL that is not flushed yet.
    feed.pg.psql("CHECKPOINT");
}

/// A fresh slot that stands before the backlog.
pub fn copy_slot(feed: &Feed, name: &str) {
    feed.pg.psql(&format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}'"
    ));
    feed.pg.psql(&format!("SELECT pg_copy_logical_replication_slot('{ORIGIN}', '{name}')"));
}

/// Lets the WAL go.
pub fn forget(feed: &Feed) {
    feed.pg.psql(&format!("SELECT pg_drop_replication_slot('{ORIGIN}')"));
}
