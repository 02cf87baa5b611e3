//! What applications do, at random and by several connections at once: rows of all kinds and sizes, rollbacks, DDL and
//! configuration between them.
//!
//! In: a database set up by [`prepare`], a seed. Out: nothing but what is committed; who asks for that asks the WAL. A
//! connection that breaks is made again, a statement that fails is forgotten.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use fastrand::Rng;
use futures_util::SinkExt;
use tokio_postgres::{Client, Error, NoTls};

use super::support::{self, Postgres};

/// The streams, and the tables that are published into each; calls go to the first.
pub const STREAMS: [(&str, &[&str]); 2] =
    [("CHAOS_A", &["public.plain", "public.whole", "public.rule_webhook_events"]), ("CHAOS_B", &["public.wide"])];

/// The tables, with columns that stay.
pub const TABLES: [&str; 3] = ["plain", "whole", "wide"];

/// What a row says that must never be seen.
pub const ROLLED_BACK: &str = "rolled back";

/// The tables, their webhooks and streams, and the slot of the oracle; `window_s` is the duplicate window.
pub fn prepare(pg: &Postgres, nats_url: &str, window_s: u32) {
    pg.psql(&format!("SELECT rule_nats_configure('default', '{nats_url}')"));
    for (stream, subject) in [("CHAOS_A", "chaos.a"), ("CHAOS_B", "chaos.b")] {
        pg.psql(&format!("SELECT rule_nats_stream_create('{stream}', ARRAY['{subject}.>'])"));
    }
    pg.psql(&format!("UPDATE rule_nats_streams SET duplicate_window_seconds = {window_s}"));
    pg.psql(
        "CREATE TABLE plain (id bigint PRIMARY KEY, n bigint, note text, big text);
         CREATE TABLE whole (LIKE plain INCLUDING ALL);
         CREATE TABLE wide (LIKE plain INCLUDING ALL);
         CREATE TABLE unlinked (id bigint);
         ALTER TABLE whole REPLICA IDENTITY FULL;
         ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
         ALTER TABLE wide ALTER big SET STORAGE EXTERNAL",
    );
    for (webhook, (table, subject)) in TABLES.iter().zip(["chaos.a.plain", "chaos.a.whole", "chaos.b.wide"]).enumerate()
    {
        let id = webhook + 1;
        pg.psql(&format!(
            "SELECT rule_webhook_register('{table}', 'https://example.com/{table}');
             SELECT rule_webhook_enable_nats({id}, '{subject}', 'nats')"
        ));
        pg.psql(&format!(
            "SELECT rule_webhook_link_table({id}, '{table}', '{{insert,update,delete,truncate}}', p_include_old => true)"
        ));
    }
    pg.psql("SELECT pg_create_logical_replication_slot('oracle', 'test_decoding')");
}

/// The running workload; dropping it stops it.
pub struct Workload {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Workload {
    /// `workers` connections at once; the first also does what needs a table to itself.
    pub fn start(conninfo: &str, seed: u64, workers: u64) -> Workload {
        let stop = Arc::new(AtomicBool::new(false));
        let workers = (0..workers)
            .map(|number| {
                let (stop, conninfo) = (Arc::clone(&stop), conninfo.to_owned());
                let rng = Rng::with_seed(seed.wrapping_mul(1000) + number);
                let worker = Worker { rng, number, next: 0, columns: 0 };
                std::thread::spawn(move || support::runtime().block_on(worker.run(&conninfo, &stop)))
            })
            .collect();
        Workload { stop, workers }
    }

    /// Waits until everybody has ended what they are at.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.join().unwrap();
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed); // who panics need not wait for the servers that were killed
    }
}

struct Worker {
    rng: Rng,
    number: u64,
    /// Keys are this worker's own up to here.
    next: u64,
    /// How many columns `plain` has been given.
    columns: u32,
}

impl Worker {
    async fn run(mut self, conninfo: &str, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            if let Ok((client, connection)) = tokio_postgres::connect(conninfo, NoTls).await {
                tokio::spawn(connection);
                let _ = client.batch_execute("SET lock_timeout = '2s'").await;
                while !stop.load(Ordering::Relaxed) && !client.is_closed() {
                    let _ = self.transaction(&client).await;
                    let _ = client.batch_execute("ROLLBACK").await; // a warning where nothing is open
                    tokio::time::sleep(Duration::from_millis(self.rng.u64(0..100))).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Keys that nobody has.
    fn keys(&mut self, count: u64) -> (u64, u64) {
        let first = self.number * 1_000_000 + self.next;
        self.next += count;
        (first, first + count - 1)
    }

    /// Some existing rows, of anybody.
    fn some(&mut self) -> String {
        let most = self.rng.u32(1..8);
        format!("id IN (SELECT id FROM {{table}} WHERE id % 7 = {} ORDER BY n LIMIT {most})", self.rng.u32(0..7))
    }

    async fn transaction(&mut self, client: &Client) -> Result<(), Error> {
        let table = TABLES[self.rng.usize(0..TABLES.len())];
        let kind = self.rng.u32(0..100);
        if self.number == 0 && kind < 12 {
            return self.alone(client).await;
        }
        match kind {
            20..30 => self.copy(client, table).await,
            30..38 => {
                let (first, last) = self.keys(6);
                let rows = |from: u64, upto: u64, note: &str| {
                    format!("INSERT INTO {table} SELECT i, i, '{note}', NULL FROM generate_series({from}, {upto}) i;")
                };
                let sql = [
                    "BEGIN;".to_owned(),
                    rows(first, first + 1, "before the savepoint"),
                    "SAVEPOINT a;".to_owned(),
                    rows(first + 2, first + 3, ROLLED_BACK),
                    "ROLLBACK TO a;".to_owned(),
                    rows(first + 2, last, "after the savepoint"),
                    "COMMIT".to_owned(),
                ];
                client.batch_execute(&sql.concat()).await
            }
            38..43 => {
                let (first, last) = self.keys(5);
                client
                    .batch_execute(&format!(
                        "BEGIN; INSERT INTO {table} SELECT i, 0, '{ROLLED_BACK}', NULL FROM generate_series({first}, {last}) i; ROLLBACK"
                    ))
                    .await
            }
            43..46 => client.batch_execute("INSERT INTO unlinked SELECT generate_series(1, 300)").await,
            46..52 => {
                let n = self.rng.u32(..);
                client.batch_execute(&format!("SELECT rule_webhook_publish_nats(1, '{{\"n\": {n}}}')")).await
            }
            _ => {
                // Several statements in one transaction, over several tables.
                let mut sql = String::from("BEGIN;");
                for _ in 0..self.rng.u32(1..4) {
                    let table = TABLES[self.rng.usize(0..TABLES.len())];
                    sql += &self.statement(table);
                    sql += ";";
                }
                client.batch_execute(&(sql + "COMMIT")).await
            }
        }
    }

    fn statement(&mut self, table: &str) -> String {
        let big = "(SELECT string_agg(md5(i::text || random()), '') FROM generate_series(1, 120) i)";
        let some = self.some().replace("{table}", table);
        match self.rng.u32(0..12) {
            0..4 => {
                let (key, n) = (self.keys(1).0, self.rng.i64(..));
                let note = ["", "plain", "it''s", "line\nbreak \\ \"quoted\"", "ünï → ✓"][self.rng.usize(0..5)];
                let big = if self.rng.u32(0..4) == 0 { big } else { "NULL" };
                format!("INSERT INTO {table} (id, n, note, big) VALUES ({key}, {}, '{note}', {big})", n >> 12)
            }
            4 | 5 => {
                let count = self.rng.u64(2..25);
                let (first, last) = self.keys(count);
                format!("INSERT INTO {table} (id, n) SELECT i, -i FROM generate_series({first}, {last}) i")
            }
            6 | 7 => format!("UPDATE {table} SET n = n + 1, note = 'touched' WHERE {some}"),
            8 => format!("UPDATE {table} SET big = {big} WHERE {some}"),
            9 => format!("UPDATE {table} SET id = id + 500000 WHERE id % 1000000 < 500000 AND {some}"),
            10 => format!("UPDATE {table} SET note = NULL WHERE {some}"),
            _ => format!("DELETE FROM {table} WHERE {some}"),
        }
    }

    async fn copy(&mut self, client: &Client, table: &str) -> Result<(), Error> {
        let count = self.rng.u64(1..80);
        let (first, last) = self.keys(count);
        let mut sink = pin!(client.copy_in(&format!("COPY {table} (id, n, note) FROM STDIN")).await?);
        let rows: String = (first..=last).map(|id| format!("{id}\t{}\tcopied\n", id % 13)).collect();
        sink.send(bytes::Bytes::from(rows)).await?;
        sink.close().await
    }

    /// DDL, configuration, TRUNCATE, and transactions that are larger than a window.
    async fn alone(&mut self, client: &Client) -> Result<(), Error> {
        let (first, last) = self.keys(10);
        let rows = format!("INSERT INTO plain (id, n) SELECT i, i FROM generate_series({first}, {}) i", first + 4);
        let more = format!("INSERT INTO plain (id, n) SELECT i, i FROM generate_series({}, {last}) i", first + 5);
        let column = self.columns;
        let sql = match self.rng.u32(0..9) {
            0 => {
                self.columns += 1;
                format!(
                    "BEGIN; {rows}; ALTER TABLE plain ADD COLUMN IF NOT EXISTS c{} bigint DEFAULT 7; {more}; COMMIT",
                    column + 1
                )
            }
            1 => format!("BEGIN; {rows}; ALTER TABLE plain DROP COLUMN IF EXISTS c{column}; {more}; COMMIT"),
            2 => format!("{rows}; ALTER TABLE plain RENAME COLUMN c{column} TO d{column}_{first}; {more}"),
            3 => "TRUNCATE plain, wide".to_owned(),
            4 => "TRUNCATE whole".to_owned(),
            5 => {
                let subject = self.rng.u32(0..4);
                format!(
                    "BEGIN; {rows}; UPDATE rule_webhooks SET nats_subject = 'chaos.a.plain.{subject}' WHERE webhook_id = 1; {more}; COMMIT"
                )
            }
            6 => format!(
                "SELECT rule_webhook_link_table(2, 'whole', '{{insert,update,delete,truncate}}', 'chaos.a.{{table}}.{{op}}', p_include_old => true);
                 UPDATE rule_webhooks SET description = 'changed {first}' WHERE webhook_id = 3"
            ),
            7 => format!(
                "INSERT INTO rule_webhooks (webhook_name, url, publish_mode, nats_enabled, nats_subject)
                 VALUES ('new {first}', 'https://example.com', 'nats', true, 'chaos.b.new')"
            ),
            _ => {
                let count = self.rng.u64(500..2500);
                let (first, last) = self.keys(count);
                format!(
                    "INSERT INTO wide (id, n, note) SELECT i, i, repeat('x', 150) FROM generate_series({first}, {last}) i"
                )
            }
        };
        client.batch_execute(&sql).await
    }
}
