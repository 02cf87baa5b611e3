//! What applications do, at random and by several connections at once: rows of all kinds and sizes, rollbacks, DDL and
//! configuration between them, and somebody who changes rules all the time.
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
    time::{Duration, Instant},
};

use fastrand::Rng;
use futures_util::SinkExt;
use tokio_postgres::{Client, Error, NoTls};

use super::support::{
    self, Postgres,
    oracle::{Place, Places},
};

/// The configuration that leads to the second server; `default` leads to the first.
pub const SECOND: &str = "second";

/// The configuration that leads now to one server and now to the other, into JetStream or past it.
pub const ROVING: &str = "roving";

/// The streams: which configuration, which server, the name, and what its subjects begin with.
pub const STREAMS: [(&str, usize, &str, &str); 5] = [
    ("default", 0, "CHAOS_A", "chaos.a."),
    ("default", 0, "CHAOS_B", "chaos.b."),
    (SECOND, 1, "CHAOS_A", "chaos."),
    (ROVING, 0, "CHAOS_C", "chaos.c."),
    (ROVING, 1, "CHAOS_C", "chaos.c."),
];

/// The same for the oracle, which knows servers by their ports.
pub fn places(servers: Vec<u16>) -> Places {
    let place = |(config, server, name, prefix): (&'static str, usize, &str, &str)| Place {
        config,
        server,
        name: name.to_owned(),
        prefix: prefix.to_owned(),
    };
    Places { servers, streams: STREAMS.into_iter().map(place).collect() }
}

/// The tables, with columns that stay. Webhooks 1 to 3 are theirs: these move, and get everything. Webhooks 4 to 6 are theirs
/// too, and anything in them and their links changes, also whether they are there at all. So are the last ones, of [`ROVING`].
pub const TABLES: [&str; 3] = ["plain", "whole", "wide"];

/// What a row says that must never be seen.
pub const ROLLED_BACK: &str = "rolled back";

/// The slot of the oracle, the tables, their webhooks and streams; `window_s` is the duplicate window.
pub fn prepare(pg: &Postgres, nats_urls: [&str; 2], window_s: u32) {
    // First, so that it has all rows of the configuration.
    pg.psql("SELECT pg_create_logical_replication_slot('oracle', 'test_decoding')");
    for (config, url) in [("default", nats_urls[0]), (SECOND, nats_urls[1]), (ROVING, nats_urls[0])] {
        pg.psql(&format!("SELECT rule_nats_configure('{config}', '{url}')"));
    }
    pg.psql(&format!(
        "SELECT rule_nats_stream_create('CHAOS_A', ARRAY['chaos.a.>']);
         SELECT rule_nats_stream_create('CHAOS_B', ARRAY['chaos.b.>']);
         SELECT rule_nats_stream_create('CHAOS_A', ARRAY['chaos.a.>', 'chaos.b.>'], '{SECOND}');
         SELECT rule_nats_stream_create('CHAOS_C', ARRAY['chaos.c.>'], '{ROVING}');
         UPDATE rule_nats_streams SET discard_policy = 'new', duplicate_window_seconds = {window_s}"
    ));
    pg.psql(
        "CREATE TABLE plain (id bigint PRIMARY KEY, n bigint, note text, big text);
         CREATE TABLE whole (LIKE plain INCLUDING ALL);
         CREATE TABLE wide (LIKE plain INCLUDING ALL);
         CREATE TABLE unlinked (id bigint);
         ALTER TABLE whole REPLICA IDENTITY FULL;
         ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
         ALTER TABLE wide ALTER big SET STORAGE EXTERNAL",
    );
    let subjects = ["a.plain", "a.whole", "b.wide", "a.four", "b.five", "a.six", "c.seven", "c.eight"];
    for (id, (table, subject)) in (1..).zip(TABLES.iter().cycle().zip(subjects)) {
        let config = [SECOND, ROVING, "default"][if id == 6 { 0 } else { usize::from(id < FIRST_ROVING) + 1 }];
        pg.psql(&format!(
            "SELECT rule_webhook_register('{table}{id}', 'https://example.com/{table}');
             SELECT rule_webhook_enable_nats({id}, 'chaos.{subject}', 'nats', '{config}')"
        ));
        pg.psql(&link(id, table));
    }
    // An outbox, whose webhook no other is like.
    pg.psql(
        "CREATE TABLE outbox (id bigint PRIMARY KEY, payload jsonb NOT NULL);
         SELECT rule_webhook_emit_enable();
         SELECT rule_webhook_enable_nats(rule_webhook_register('outbox', 'https://example.com/outbox'), 'chaos.a.outbox', 'nats', 'default');
         UPDATE rule_webhooks SET payload_format = 'data' WHERE webhook_name = 'outbox';
         SELECT rule_webhook_link_table('outbox', 'outbox', '{insert}', p_payload_column => 'payload', p_message_id_column => 'id')",
    );
}

fn link(webhook: usize, table: &str) -> String {
    format!(
        "SELECT rule_webhook_link_table({webhook}, '{table}', '{{insert,update,delete,truncate}}', p_include_old => true)"
    )
}

/// The webhooks of [`ROVING`] begin here.
const FIRST_ROVING: usize = 7;

/// How many webhooks there are.
const WEBHOOKS: usize = 8;

/// A webhook's table.
fn table_of(webhook: usize) -> &'static str {
    TABLES[(webhook - 1) % TABLES.len()]
}

/// Has the rows of [`ROVING`] lead to both servers, and an event for each: what has never reached a server goes to the newest
/// one, as documented.
pub fn reach(pg: &Postgres, nats_urls: [&str; 2]) {
    for (number, url) in nats_urls.into_iter().rev().enumerate() {
        pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{url}' WHERE config_name = '{ROVING}'"));
        pg.psql(&format!("INSERT INTO plain (id, n) VALUES ({}, 1)", 400_000 + number));
    }
}

/// The running workload; dropping it stops it.
pub struct Workload {
    stop: Arc<AtomicBool>,
    /// Everybody does little, so that a busy machine keeps up.
    pub calm: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Workload {
    /// `workers` connections at once; the first also does what needs a table to itself, and one more changes rules. `shares`:
    /// whether a stream may be shared for a while, which is safe only as long as it remembers all ids. `urls`: where the servers
    /// are, and how the configurations name them.
    pub fn start(pg: &Postgres, urls: [[String; 2]; 2], seed: u64, workers: u64, shares: bool) -> Workload {
        let (stop, calm) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let workers = (0..workers)
            .chain([RULES])
            .map(|number| {
                let (calm, stop, conninfo) = (Arc::clone(&calm), Arc::clone(&stop), pg.conninfo());
                let [nats_urls, addresses] = urls.clone();
                let rng = Rng::with_seed(seed.wrapping_mul(1000) + number);
                let worker =
                    Worker { rng, number, next: 0, columns: 0, nats_urls, addresses, shares, full_until: None };
                std::thread::spawn(move || support::runtime().block_on(worker.run(&conninfo, &stop, &calm)))
            })
            .collect();
        Workload { stop, calm, workers }
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

/// Who changes rules.
const RULES: u64 = 9;

struct Worker {
    rng: Rng,
    number: u64,
    /// Keys are this worker's own up to here.
    next: u64,
    /// How many columns `plain` has been given.
    columns: u32,
    nats_urls: [String; 2],
    /// As the configurations name the servers.
    addresses: [String; 2],
    shares: bool,
    /// Until when some stream may have no room.
    full_until: Option<Instant>,
}

impl Worker {
    async fn run(mut self, conninfo: &str, stop: &AtomicBool, calm: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) || self.full_until.is_some() {
            if let Ok((client, connection)) = tokio_postgres::connect(conninfo, NoTls).await {
                tokio::spawn(connection);
                let _ = client.batch_execute("SET lock_timeout = '2s'").await;
                while (!stop.load(Ordering::Relaxed) || self.full_until.is_some()) && !client.is_closed() {
                    let _ = match self.number {
                        RULES => self.rules(&client).await,
                        _ => self.transaction(&client).await,
                    };
                    let _ = client.batch_execute("ROLLBACK").await; // a warning where nothing is open
                    let most = if calm.load(Ordering::Relaxed) { 3000 } else { 100 };
                    tokio::time::sleep(Duration::from_millis(self.rng.u64(0..most))).await;
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
            52..58 => {
                let (first, last) = self.keys(4);
                client
                    .batch_execute(&format!(
                        "BEGIN; INSERT INTO outbox SELECT i, jsonb_build_object('n', i) FROM generate_series({first}, {last}) i; \
                         UPDATE outbox SET payload = '{{}}'; DELETE FROM outbox; COMMIT"
                    ))
                    .await
            }
            46..52 => {
                let n = self.rng.u32(..);
                let call = if self.rng.bool() { "rule_webhook_publish_nats" } else { "rule_webhook_emit" };
                client.batch_execute(&format!("SELECT {call}(1, '{{\"n\": {n}}}')")).await
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
                let (stream, subject) = (self.stream(), self.rng.u32(0..4));
                format!(
                    "BEGIN; {rows}; UPDATE rule_webhooks SET nats_subject = 'chaos.{stream}.plain.{subject}' WHERE webhook_id = 1; {more}; COMMIT"
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

    /// Which part of the subjects.
    fn stream(&mut self) -> char {
        if self.rng.bool() { 'a' } else { 'b' }
    }

    /// Changes rules, in a transaction of their own or amid rows, which may be rolled back.
    async fn rules(&mut self, client: &Client) -> Result<(), Error> {
        if self.full_until.is_some_and(|until| until < Instant::now()) {
            client.batch_execute("UPDATE rule_nats_streams SET max_messages = 1000000").await?;
            self.full_until = None;
        }
        let mut sql = String::new();
        for _ in 0..self.rng.u32(1..3) {
            sql += &self.rule().await;
            sql += ";";
        }
        let mut rows = || {
            let count = self.rng.u64(1..4);
            let (first, last) = self.keys(count);
            let table = TABLES[self.rng.usize(0..TABLES.len())];
            format!("INSERT INTO {table} (id, n, note) SELECT i, i, 'touched' FROM generate_series({first}, {last}) i;")
        };
        let (before, after) = (rows(), rows());
        let sql = match self.rng.u32(0..6) {
            0..3 => format!("BEGIN; {sql} COMMIT"),
            3 => format!("BEGIN; {before} {sql} {after} COMMIT"),
            4 => format!("BEGIN; {before} SAVEPOINT a; {sql} ROLLBACK TO a; {after} COMMIT"),
            _ => format!("{sql} BEGIN; {before} {after} COMMIT"),
        };
        client.batch_execute(&sql).await
    }

    /// One change of one row.
    async fn rule(&mut self) -> String {
        let (moving, any) = (self.rng.usize(4..=WEBHOOKS), self.rng.usize(1..=WEBHOOKS));
        let (settled, stream_row) = (self.rng.usize(1..FIRST_ROVING), self.rng.usize(0..STREAMS.len()));
        let (config, server, name, _) = STREAMS[stream_row];
        let addresses = self.addresses.clone();
        let of_stream = |set: &str| {
            format!(
                "UPDATE rule_nats_streams s SET {set} FROM rule_nats_config c \
                 WHERE c.config_id = s.config_id AND c.config_name = '{config}' AND s.stream_name = '{name}'"
            )
        };
        let of_link = |set: String| format!("UPDATE rule_webhook_links SET {set} WHERE webhook_id = {moving}");
        let mut one_of = |values: &[&'static str]| values[self.rng.usize(0..values.len())];
        match one_of(&[
            "move",
            "move",
            "move",
            "config",
            "config",
            "enabled",
            "enabled",
            "link",
            "link",
            "format",
            "mode",
            "mode",
            "full",
            "server",
            "address",
            "jetstream",
            "elsewhere",
            "unlink",
            "relink",
            "delete",
            "make",
            "make",
            "nats",
        ]) {
            "move" => {
                let stream = one_of(if any < FIRST_ROVING { &["a", "b"] } else { &["c"] });
                let end = one_of(&["x", "y", "z"]);
                format!("UPDATE rule_webhooks SET nats_subject = 'chaos.{stream}.{end}' WHERE webhook_id = {any}")
            }
            "config" => {
                let (config, stream) = (one_of(&["default", SECOND]), one_of(&["a", "b"]));
                format!(
                    "UPDATE rule_webhooks SET nats_subject = 'chaos.{stream}.moved', nats_config_id = \
                     (SELECT config_id FROM rule_nats_config WHERE config_name = '{config}') WHERE webhook_id = {settled}"
                )
            }
            "enabled" => {
                let enabled = one_of(&["true", "true", "false"]);
                format!("UPDATE rule_webhooks SET enabled = {enabled} WHERE webhook_id = {moving}")
            }
            "format" => {
                let format = one_of(&["webhook", "data", "cloudevents", "cloudevents_binary"]);
                format!("UPDATE rule_webhooks SET payload_format = '{format}' WHERE webhook_id = {moving}")
            }
            "link" => of_link(match one_of(&["operations", "columns", "filter", "template", "enabled"]) {
                // Of a row that was deleted the WAL has the key alone, and a filter would have nothing to look at.
                "operations" => {
                    let operations = one_of(&["insert", "update,delete", "insert,update,delete,truncate", "truncate"]);
                    format!("operations = '{{{operations}}}', filter = NULL")
                }
                "filter" => {
                    let note = one_of(&["touched", "copied"]);
                    format!("operations = '{{insert,update}}', filter = '{{\"note\": \"{note}\"}}'")
                }
                "columns" => format!("columns = {}", one_of(&["NULL", "'{id,n}'", "'{id,note,big}'"])),
                "template" => {
                    let roving = ["NULL", "'chaos.c.{table}.{op}'", "'chaos.c.{op}'"];
                    let others = ["NULL", "'chaos.b.{table}.{op}'", "'chaos.a.{op}'"];
                    format!("subject_template = {}", one_of(if moving < FIRST_ROVING { &others } else { &roving }))
                }
                _ => format!("enabled = {}", one_of(&["true", "true", "false"])),
            }),
            "mode" => of_stream(match one_of(&["transactions", "durability", "ordering"]) {
                "transactions" => one_of(&["transactions = 'atomic'", "transactions = 'streamed'"]),
                "ordering" if self.shares => one_of(&["ordering = 'strict'", "ordering = 'shared'"]),
                _ => one_of(&["durability = 'fsync'", "durability = 'default'"]),
            }),
            // The same server by another name.
            "address" => {
                let hosts = one_of(&["127.0.0.1 localhost", "localhost 127.0.0.1"]).split_once(' ').unwrap();
                format!(
                    "UPDATE rule_nats_config SET nats_url = replace(nats_url, '{}', '{}') WHERE config_name = '{config}'",
                    hosts.0, hosts.1
                )
            }
            "jetstream" => {
                let enabled = one_of(&["true", "true", "false"]);
                format!("UPDATE rule_nats_config SET jetstream_enabled = {enabled} WHERE config_name = '{ROVING}'")
            }
            // A truly different server.
            "elsewhere" => {
                let address = &addresses[usize::from(one_of(&["", "b"]) == "b")];
                format!("UPDATE rule_nats_config SET nats_url = '{address}' WHERE config_name = '{ROVING}'")
            }
            "unlink" => format!("DELETE FROM rule_webhook_links WHERE webhook_id = {moving}"),
            "delete" => format!("DELETE FROM rule_webhooks WHERE webhook_id = {moving}"),
            // Whatever is missing.
            "relink" | "make" => {
                let mut sql = Vec::new();
                for id in 4..=WEBHOOKS {
                    let (table, stream) = (table_of(id), if id < FIRST_ROVING { "a" } else { "c" });
                    let config = if id < FIRST_ROVING { one_of(&["default", SECOND]) } else { ROVING };
                    sql.push(format!(
                        "INSERT INTO rule_webhooks (webhook_id, webhook_name, url, publish_mode, nats_enabled, nats_subject, nats_config_id) \
                         SELECT {id}, '{table}{id}', 'https://example.com/again', 'nats', true, 'chaos.{stream}.again', config_id \
                         FROM rule_nats_config WHERE config_name = '{config}' ON CONFLICT DO NOTHING;
                         INSERT INTO rule_webhook_links (webhook_id, table_schema, table_name, operations, include_old) \
                         VALUES ({id}, 'public', '{table}', '{{insert,update,delete,truncate}}', true) ON CONFLICT DO NOTHING"
                    ));
                }
                // Some are on again, too.
                sql.push(
                    "UPDATE rule_webhooks SET enabled = true, nats_enabled = true, publish_mode = 'nats' \
                     WHERE webhook_id >= 4 AND NOT (enabled AND nats_enabled AND publish_mode <> 'queue')"
                        .to_owned(),
                );
                sql.join(";")
            }
            "nats" => {
                let set = one_of(&[
                    "nats_enabled = false",
                    "nats_enabled = true",
                    "publish_mode = 'queue'",
                    "publish_mode = 'nats'",
                    "publish_mode = 'both'",
                ]);
                format!("UPDATE rule_webhooks SET {set} WHERE webhook_id = {moving}")
            }
            "server" => format!(
                "UPDATE rule_nats_config SET reconnect_delay_ms = {} WHERE config_name = '{config}'",
                one_of(&["200", "500", "1000"])
            ),
            _ if config == ROVING => "SELECT 1".to_owned(),
            _ => {
                // A little more than it holds: what comes next fills it, until somebody gives it room.
                let Some(holds) = messages_of(&self.nats_urls[server], name).await else {
                    return "SELECT 1".to_owned();
                };
                self.full_until = Some(Instant::now() + Duration::from_millis(self.rng.u64(200..2000)));
                of_stream(&format!("max_messages = {}", holds + self.rng.u64(1..30)))
            }
        }
    }
}

/// None while the server is away.
async fn messages_of(url: &str, stream: &str) -> Option<u64> {
    let asked = async {
        let jetstream = async_nats::jetstream::new(async_nats::connect(url).await.ok()?);
        Some(jetstream.get_stream(stream).await.ok()?.cached_info().state.messages)
    };
    tokio::time::timeout(Duration::from_secs(1), asked).await.ok()?
}
