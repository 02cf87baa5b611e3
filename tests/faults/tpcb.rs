//! TPC-B over linked tables while walhook is killed: a reader that applies the events in the order of the stream has exactly the
//! tables, in several layouts of tables and streams.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::Value;

use crate::support::{Nats, Postgres, feed::Feed, feed::Message};

const BRANCHES: i32 = 2;
const TELLERS: i32 = 20;
const ACCOUNTS: i32 = 1000;
const CLIENTS: usize = 4;
const TRANSACTIONS: usize = 120;

/// Tables as `pgbench -i` makes them, of whom `accounts` may be partitioned.
fn tables(accounts: &str) -> String {
    format!(
        "CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88)); \
         CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84)); \
         CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22)); \
         {accounts}"
    )
}

const PLAIN: &str = "CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84))";
const PARTITIONED: &str = "CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84)) PARTITION BY RANGE (aid); \
     CREATE TABLE pgbench_accounts_1 PARTITION OF pgbench_accounts FOR VALUES FROM (MINVALUE) TO (333); \
     CREATE TABLE pgbench_accounts_2 PARTITION OF pgbench_accounts FOR VALUES FROM (333) TO (777); \
     CREATE TABLE pgbench_accounts_3 PARTITION OF pgbench_accounts DEFAULT";

fn fill(feed: &Feed) {
    feed.pg.psql(&format!(
        "INSERT INTO pgbench_branches SELECT i, 0, NULL FROM generate_series(1, {BRANCHES}) i; \
         INSERT INTO pgbench_tellers SELECT i, (i - 1) / 10 + 1, 0, NULL FROM generate_series(1, {TELLERS}) i; \
         INSERT INTO pgbench_accounts SELECT i, (i - 1) % {BRANCHES} + 1, 0, '' FROM generate_series(1, {ACCOUNTS}) i"
    ));
}

/// One client of `pgbench -b tpcb-like`, with a transaction rolled back, and one that moves an account to another key (and
/// partition), now and then.
async fn client(feed: &Feed, seed: u64) {
    let client = feed.pg.client().await;
    let mut random = fastrand::Rng::with_seed(seed);
    for number in 0..TRANSACTIONS {
        let (aid, tid) = (random.i32(1..=ACCOUNTS), random.i32(1..=TELLERS));
        let (bid, delta) = (random.i32(1..=BRANCHES), random.i32(-5000..=5000));
        let end = if number % 10 == 9 { "ROLLBACK" } else { "COMMIT" };
        client
            .batch_execute(&format!(
                "BEGIN; UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {aid}; \
                 SELECT abalance FROM pgbench_accounts WHERE aid = {aid}; \
                 UPDATE pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {tid}; \
                 UPDATE pgbench_branches SET bbalance = bbalance + {delta} WHERE bid = {bid}; \
                 INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES ({tid}, {bid}, {aid}, {delta}, CURRENT_TIMESTAMP); {end}"
            ))
            .await
            .unwrap();
        if number % 40 == 7 {
            let moved = i64::try_from(seed).unwrap() * 100_000 + i64::try_from(number).unwrap();
            client
                .batch_execute(&format!(
                    "DELETE FROM pgbench_accounts WHERE aid = (SELECT max(aid) FROM pgbench_accounts WHERE aid > {ACCOUNTS}); \
                     INSERT INTO pgbench_accounts VALUES (-{moved}, 1, 0, ''); \
                     UPDATE pgbench_accounts SET aid = 1000000 - aid WHERE aid = -{moved}"
                ))
                .await
                .unwrap();
        }
    }
}

/// TPC-B by several clients, walhook killed three times meanwhile.
async fn work_and_kill(feed: &Feed) {
    let mut walhook = feed.run();
    let work = join_all((1..=CLIENTS).map(|seed| client(feed, u64::try_from(seed).unwrap())));
    let kills = async {
        for rows in [40, 160, 320] {
            crate::support::eventually("rows of the history", async || {
                let reached = feed.pg.psql(&format!("SELECT count(*) >= {rows} FROM pgbench_history"));
                (reached == "t").then_some(())
            })
            .await;
            walhook.kill9();
            walhook = feed.run();
        }
    };
    tokio::join!(work, kills);
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// A row without what types alone change (trailing blanks, times).
fn row(value: &Value) -> Value {
    let mut row = value.clone();
    let fields = row.as_object_mut().unwrap();
    fields.remove("filler");
    fields.remove("mtime");
    row
}

/// Rows by table, each with how often it is there (the history has no key).
type Tables = BTreeMap<String, BTreeMap<String, i64>>;

fn of_the_database(feed: &Feed) -> Tables {
    ["accounts", "branches", "history", "tellers"]
        .into_iter()
        .map(|name| {
            let rows = feed.pg.psql(&format!("SELECT to_jsonb(t) FROM pgbench_{name} t"));
            let mut counted = BTreeMap::new();
            for line in rows.lines() {
                *counted.entry(row(&serde_json::from_str(line).unwrap()).to_string()).or_default() += 1;
            }
            (name.to_owned(), counted)
        })
        .collect()
}

/// What became of a row.
struct Change {
    table: String,
    op: String,
    /// The key of the old row, where it differs from that of the new one or there is no new one.
    old: Option<Value>,
    new: Option<Value>,
}

/// The tables that a reader has who applies the changes in their order.
fn folded(changes: impl Iterator<Item = Change>) -> Tables {
    let mut keyed: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    let mut tables = Tables::new();
    for change in changes {
        let name = change.table.rsplit_once('_').unwrap().1.to_owned();
        if name == "history" {
            assert_eq!(change.op, "insert");
            *tables.entry(name).or_default().entry(row(&change.new.unwrap()).to_string()).or_default() += 1;
            continue;
        }
        let key = |value: &Value| {
            let column = match name.as_str() {
                "accounts" => "aid",
                "branches" => "bid",
                _ => "tid",
            };
            value[column].to_string()
        };
        let rows = keyed.entry(name.clone()).or_default();
        if let Some(old) = &change.old {
            assert!(rows.remove(&key(old)).is_some(), "{name}: a {} of a row that is not there: {old}", change.op);
        }
        if let Some(new) = &change.new {
            let before = rows.insert(key(new), row(new));
            let was_there = before.is_some() || change.old.is_some();
            assert_eq!(was_there, change.op == "update", "{name}: a {} of {new}", change.op);
        }
    }
    for (name, rows) in keyed {
        let counted = tables.entry(name).or_default();
        for row in rows.values() {
            *counted.entry(row.to_string()).or_default() += 1;
        }
    }
    tables
}

fn assert_equal(feed: &Feed, folded: &Tables) {
    for (name, rows) in of_the_database(feed) {
        let theirs = folded.get(&name).cloned().unwrap_or_default();
        let lost: Vec<_> = rows.iter().filter(|(row, count)| theirs.get(*row) != Some(count)).take(3).collect();
        let odd: Vec<_> = theirs.iter().filter(|(row, count)| rows.get(*row) != Some(count)).take(3).collect();
        assert!(lost.is_empty() && odd.is_empty(), "{name}: in the table {lost:?}, from the stream {odd:?}");
        assert!(!rows.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn tpc_b_over_plain_tables_in_one_stream_folds_to_exactly_the_tables() {
    let feed = Feed::on(Postgres::builder().version("14").set_up().start().await, Nats::start().await);
    feed.webhook("bench");
    feed.pg.psql(&tables(PLAIN));
    for name in ["accounts", "branches", "history", "tellers"] {
        let operations = if name == "history" { "'{insert}'" } else { "'{insert,update,delete}'" };
        feed.pg.psql(&format!("SELECT rule_webhook_link_table('bench', 'pgbench_{name}', {operations})"));
    }
    fill(&feed);
    work_and_kill(&feed).await;
    let messages = feed.messages().await;
    let changes = messages.iter().map(|message| {
        let event = &message.payload["event"];
        let op = event["op"].as_str().unwrap().to_owned();
        let old_key = message.headers.get("Walhook-Old-Key").map(|key| serde_json::from_str::<Value>(key).unwrap());
        let data = message.data().clone();
        Change {
            table: event["table"].as_str().unwrap().to_owned(),
            old: old_key.or_else(|| (op == "delete").then(|| data.clone())),
            new: (op != "delete").then_some(data),
            op,
        }
    });
    assert_equal(&feed, &folded(changes));
}

#[tokio::test]
async fn tpc_b_over_partitions_in_a_stream_for_each_table_folds_to_exactly_the_tables() {
    let feed = Feed::on(Postgres::builder().version("18").set_up().start().await, Nats::start().await);
    feed.pg.psql(&tables(PARTITIONED));
    for name in ["accounts", "branches", "history", "tellers"] {
        let stream = name.to_uppercase();
        feed.webhook(name);
        feed.pg.psql(&format!("SELECT rule_nats_stream_create('{stream}', ARRAY['bench.{name}.>'])"));
        feed.pg.psql(&format!(
            "UPDATE rule_webhooks SET payload_format = 'debezium' WHERE webhook_name = '{name}'; \
             UPDATE rule_nats_streams SET transactions = 'atomic' WHERE stream_name = '{stream}'; \
             ALTER TABLE pgbench_{name} REPLICA IDENTITY FULL"
        ));
        if name == "accounts" {
            feed.pg.psql(
                "ALTER TABLE pgbench_accounts_1 REPLICA IDENTITY FULL; ALTER TABLE pgbench_accounts_2 REPLICA IDENTITY FULL; \
                 ALTER TABLE pgbench_accounts_3 REPLICA IDENTITY FULL",
            );
        }
        feed.pg.psql(&format!(
            "SELECT rule_webhook_link_table('{name}', 'pgbench_{name}', '{{insert,update,delete}}', 'bench.{name}.{{op}}')"
        ));
    }
    fill(&feed);
    work_and_kill(&feed).await;
    let mut messages: Vec<Message> = Vec::new();
    for stream in ["ACCOUNTS", "BRANCHES", "HISTORY", "TELLERS"] {
        messages.extend(feed.messages_of(stream).await);
    }
    let changes = messages.iter().map(|message| {
        let payload = &message.payload;
        let op = match payload["op"].as_str().unwrap() {
            "c" => "insert",
            "u" => "update",
            _ => "delete",
        };
        Change {
            table: payload["source"]["table"].as_str().unwrap().to_owned(),
            op: op.to_owned(),
            old: Some(payload["before"].clone()).filter(|before| !before.is_null()),
            new: Some(payload["after"].clone()).filter(|after| !after.is_null()),
        }
    });
    assert_equal(&feed, &folded(changes));
}
