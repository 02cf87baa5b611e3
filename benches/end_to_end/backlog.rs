//! The backlog: rows in the WAL that no slot has passed yet.
//!
//! One slot is made before the rows are written; every drain works on a copy of it, so a backlog can be drained many
//! times.

use std::{fmt, str::FromStr};

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

impl FromStr for Shape {
    type Err = &'static str;

    /// `1`, `1000`, `all`.
    fn from_str(name: &str) -> Result<Shape, Self::Err> {
        match name.parse() {
            Ok(rows) if rows > 0 => Ok(Shape::Of(rows)),
            _ if name == "all" => Ok(Shape::One),
            _ => Err("a shape is how many rows a transaction has, or all"),
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
pub const ROW: &str = "i, jsonb_build_object('order', i, 'customer', md5(i::text), 'status', 'paid', 'total', i * 0.01, \
    'note', 'left with the neighbour on the second floor', 'address', '{\"street\": \"Unter den Linden 77\", \
    \"postcode\": \"10117\", \"city\": \"Berlin\", \"country\": \"DE\"}'::jsonb, 'items', \
    '[{\"sku\": \"A-1001\", \"count\": 2}, {\"sku\": \"B-2002\", \"count\": 1}]'::jsonb)";

/// A table of such rows and a webhook of the same name; its inserts are published, nothing else.
pub fn prepare(feed: &Feed, name: &str) {
    let webhook = feed.webhook(name);
    feed.pg.psql(&format!("CREATE TABLE {name} (id bigint PRIMARY KEY, doc jsonb NOT NULL)"));
    link(feed, webhook, name);
}

/// Publishes the inserts of `table` for `webhook`.
pub fn link(feed: &Feed, webhook: i32, table: &str) {
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, '{table}', ARRAY['insert'])"));
}

/// Writes `rows` rows into table `bench` behind a slot.
pub async fn fill(feed: &Feed, shape: Shape, rows: u64) {
    let insert =
        |from: &str, upto: &str| format!("INSERT INTO bench SELECT {ROW} FROM generate_series({from}, {upto}) i");
    let sql = match shape {
        Shape::One => insert("1", &rows.to_string()),
        // A VALUES list costs PostgreSQL less to set up, and there are a million of these.
        Shape::Of(1) => looped(&format!("i IN 1..{rows}"), &format!("INSERT INTO bench VALUES ({ROW})")),
        Shape::Of(size) => looped(
            &format!("start IN 1..{rows} BY {size}"),
            &insert("start", &format!("least(start + {size} - 1, {rows})")),
        ),
    };
    feed.pg.psql("TRUNCATE bench");
    write(feed, &sql).await;
}

/// A transaction for every turn of `FOR range`.
pub fn looped(range: &str, statement: &str) -> String {
    format!("DO $$ BEGIN SET synchronous_commit = off; FOR {range} LOOP {statement}; COMMIT; END LOOP; END $$")
}

/// Runs `sql` behind the slot that the drains begin at.
pub async fn write(feed: &Feed, sql: &str) {
    forget(feed);
    feed.pg.psql(&format!("SELECT pg_create_logical_replication_slot('{ORIGIN}', 'pgoutput')"));
    // Awaited rather than blocked on, for it takes long, and a Ctrl-C should not.
    feed.pg.client().await.batch_execute(sql).await.unwrap();
    // Out of the way of what is measured: dirty pages, and WAL that is not flushed yet.
    feed.pg.psql("CHECKPOINT");
}

/// A fresh slot that stands before the backlog.
pub fn copy_slot(feed: &Feed, name: &str) {
    drop_slot(feed, name);
    feed.pg.psql(&format!("SELECT pg_copy_logical_replication_slot('{ORIGIN}', '{name}')"));
}

/// A fresh slot that stands before what is written from now on.
pub fn new_slot(feed: &Feed, name: &str) {
    drop_slot(feed, name);
    feed.pg.psql(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"));
}

/// Lets the WAL go.
pub fn forget(feed: &Feed) {
    drop_slot(feed, ORIGIN);
}

/// No error where there is none.
pub fn drop_slot(feed: &Feed, name: &str) {
    feed.pg.psql(&format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}'"
    ));
}
