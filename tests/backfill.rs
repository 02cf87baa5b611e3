//! Backfills: the rows that a table has come as events of op `snapshot`, each in its place among live changes.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};
use support::{eventually, feed::Feed, walhook::Finished};

/// Webhook 1 in mode nats, `webhooks.w`.
async fn feed() -> Feed {
    let feed = Feed::start().await;
    feed.webhook("w");
    feed
}

fn backfill(feed: &Feed, arguments: &[&str], code: i32) -> Finished {
    let finished = feed.command("backfill").args(arguments).finish();
    assert_eq!(finished.code, Some(code), "{arguments:?}: {finished:?}");
    finished
}

/// The table as its events leave it: what a consumer that keeps the newest of each key has.
async fn folded(feed: &Feed) -> BTreeMap<i64, Value> {
    let mut rows = BTreeMap::new();
    for message in feed.messages().await {
        let id = message.data()["id"].as_i64().unwrap();
        match message.payload["event"]["op"].as_str().unwrap() {
            "delete" => drop(rows.remove(&id)),
            // The old key, where it was another.
            "update" if message.payload["event"]["old"]["id"].is_number() => {
                rows.remove(&message.payload["event"]["old"]["id"].as_i64().unwrap());
                rows.insert(id, message.data().clone());
            }
            _ => drop(rows.insert(id, message.data().clone())),
        }
    }
    rows
}

/// The table itself.
fn table(feed: &Feed) -> BTreeMap<i64, Value> {
    let rows = feed.pg.psql("SELECT coalesce(json_agg(t), '[]') FROM t");
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    rows.into_iter().map(|row| (row["id"].as_i64().unwrap(), row)).collect()
}

#[tokio::test]
async fn rows_from_before_the_link_come_once_as_inserts_would_have_brought_them() {
    let feed = feed().await;
    feed.pg.psql(
        "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TYPE pair AS (a int, b text);
         CREATE TABLE t (id int PRIMARY KEY, flag bool, c char(5), amount numeric(10,2), big bigint, at timestamptz, span interval,
                         doc jsonb, raw bytea, words text[], ip inet, m mood, p pair, twice int GENERATED ALWAYS AS (id * 2) STORED);
         ALTER TABLE t ADD COLUMN gone int; ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ADD COLUMN \"odd \"\"name\" float8;",
    );
    let rows = "(1, true, 'ab', 9.90, 9007199254740993, '2026-11-25 10:00+01', '1 day 2 hours', '{\"a\": [1, null]}', '\\x00ff',
                 '{x,\"y z\",NULL}', '10.0.0.1', 'sad', '(1,\"b c\")', 0.1),
                (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, ROW(NULL, NULL)::pair, NULL),
                (3, false, E'ä\\\\', 0, -1, 'infinity', '-3 mons', '\"\\u00e4\"', '', '{}', '::1/64', 'glad', NULL, 'NaN')";
    let columns = "(id, flag, c, amount, big, at, span, doc, raw, words, ip, m, p, \"odd \"\"name\")";
    feed.pg.psql(&format!("INSERT INTO t {columns} VALUES {rows}"));
    feed.pg.psql("INSERT INTO t (id, words) SELECT 4, array_agg(md5(i::text)) FROM generate_series(1, 5000) i");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let mut walhook = feed.run();
    let told = backfill(&feed, &["--table", "t"], 0).stdout;
    assert!(told.contains("is done: 4 rows"), "{told}");
    feed.confirmed().await;

    // The same rows again, live.
    feed.pg.psql("CREATE TABLE kept AS TABLE t; DELETE FROM t");
    feed.pg.psql(&format!("INSERT INTO t {columns} SELECT id, flag, c, amount, big, at, span, doc, raw, words, ip, m, p, \"odd \"\"name\" FROM kept ORDER BY id"));
    feed.confirmed().await;
    let messages = feed.messages().await;
    assert_eq!(messages.len(), 12);
    for (sent, live) in messages[..4].iter().zip(&messages[8..]) {
        assert_eq!(sent.data(), live.data());
        assert_eq!((sent.header("Walhook-Op"), live.header("Walhook-Op")), ("snapshot", "insert"));
        assert_eq!(
            (&sent.payload["type"], &sent.payload["event"]["op"]),
            (&json!("public.t.snapshot"), &json!("snapshot"))
        );
    }
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_cdc_backfill_rows"), "0");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_backfill_goes_to_the_links_it_is_for_by_their_filters_columns_subjects_and_formats() {
    let feed = feed().await;
    feed.webhook("other");
    feed.pg.psql(
        "UPDATE rule_webhooks SET payload_format = 'debezium' WHERE webhook_id = 2;
         CREATE SCHEMA shop; CREATE TABLE shop.t (a int, b text, note text, PRIMARY KEY (b, a));
         INSERT INTO shop.t SELECT i % 7, chr(97 + i / 7), 'n' || i FROM generate_series(0, 20) i;
         SELECT rule_webhook_link_table(1, 'shop.t', '{delete}', p_subject_template => 'webhooks.{table}.{op}.{b}',
                                        p_columns => '{a,b}', p_filter => '{\"b\": \"b\"}');
         SELECT rule_webhook_link_table(2, 'shop.t')",
    );
    let _walhook = feed.run();
    backfill(&feed, &["--table", "shop.t", "--webhook", "w", "--chunk-rows", "4"], 0);
    feed.confirmed().await;
    let messages = feed.messages().await;
    let data: Vec<_> = messages.iter().map(|message| message.data().clone()).collect();
    assert_eq!(data, (0..7).map(|a| json!({ "a": a, "b": "b" })).collect::<Vec<_>>(), "in the order of the key");
    assert!(messages.iter().all(|message| message.subject == "webhooks.t.snapshot.b"));

    backfill(&feed, &["--link", "2", "--readers", "3", "--chunk-rows", "2"], 0);
    feed.confirmed().await;
    let messages = feed.messages().await.split_off(7);
    let mut notes: Vec<_> = messages.iter().map(|message| message.payload["after"]["note"].clone()).collect();
    notes.sort_by_key(|note| note.as_str().unwrap()[1..].parse::<i32>().unwrap());
    assert_eq!(notes, (0..21).map(|i| json!(format!("n{i}"))).collect::<Vec<_>>());
    for message in &messages {
        assert_eq!(
            (&message.payload["op"], &message.payload["source"]["snapshot"]),
            (&json!("r"), &json!("incremental"))
        );
        assert_eq!(message.payload["before"], Value::Null);
    }
    let rows = feed
        .pg
        .psql("SELECT string_agg(concat_ws(' ', status, rows_sent, rows_waiting), ', ') FROM rule_cdc_backfills");
    assert_eq!(rows, "done 21 0, done 21 0");
}

#[tokio::test]
async fn of_each_key_the_last_event_is_its_newest_state_while_others_write_and_all_are_killed() {
    let feed = Arc::new(feed().await);
    feed.pg.psql(
        "CREATE TABLE t (id int PRIMARY KEY, version int NOT NULL);
         INSERT INTO t SELECT i, 0 FROM generate_series(1, 3000) i;
         SELECT rule_webhook_link_table(1, 't', p_include_old => true)",
    );
    let mut walhook = feed.run();
    walhook.logged("slot taken").await;

    // Writers that update, delete, insert, move keys, lock and roll back, all over the table.
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (feed, stop) = (Arc::clone(&feed), Arc::clone(&stop));
            tokio::spawn(async move {
                let client = feed.pg.client().await;
                let mut round = writer;
                while !stop.load(Ordering::Relaxed) {
                    round += 3;
                    let (id, other) = (round * 7919 % 3000 + 1, round * 104_729 % 3000 + 1);
                    let statement = match round % 7 {
                        0 => format!("DELETE FROM t WHERE id = {id}"),
                        1 => format!(
                            "INSERT INTO t VALUES ({id}, {round}) ON CONFLICT (id) DO UPDATE SET version = {round}"
                        ),
                        2 => format!(
                            "BEGIN; UPDATE t SET version = -1 WHERE id = {id}; SELECT pg_sleep(0.005); ROLLBACK"
                        ),
                        3 => format!(
                            "BEGIN; UPDATE t SET version = {round} WHERE id = {id}; SELECT pg_sleep(0.005); COMMIT"
                        ),
                        4 => format!("UPDATE t SET id = {} WHERE id = {id}", 10_000 + round),
                        _ => format!("UPDATE t SET version = {round} WHERE id IN ({id}, {other})"),
                    };
                    // Two that lock in another order than each other may meet in a deadlock of their own.
                    if client.batch_execute(&statement).await.is_err() {
                        client.batch_execute("ROLLBACK").await.unwrap();
                    }
                }
            })
        })
        .collect();

    // Killed twice in its midst, and walhook itself once.
    let arguments = ["--table", "t", "--chunk-rows", "150", "--rate", "1500", "--readers", "2"];
    for upto in [500, 1500] {
        let mut killed = feed.command("backfill").args(arguments).start();
        eventually(&format!("{upto} rows to be sent"), async || {
            let sent = feed.pg.psql("SELECT coalesce(max(rows_sent), 0) FROM rule_cdc_backfills");
            (sent.parse::<i64>().unwrap() >= upto).then_some(())
        })
        .await;
        killed.kill9();
        if upto == 500 {
            walhook.kill9();
            walhook = feed.run();
        }
    }
    let told = backfill(&feed, &arguments, 0).stdout;
    assert!(told.contains("backfill 1 of t is not done yet: going on with it") && told.contains("is done"), "{told}");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    feed.confirmed().await;

    let (folded, table) = (folded(&feed).await, table(&feed));
    let differing: Vec<_> = table.iter().filter(|(id, row)| folded.get(id) != Some(row)).take(5).collect();
    assert!(differing.is_empty(), "of {} rows: {differing:?}", table.len());
    assert_eq!(folded.len(), table.len(), "and none that is not there");
    // Not because the writers had reached every row, nor because none was in the way.
    let messages = feed.messages().await;
    let count = |op: &str| messages.iter().filter(|message| message.header("Walhook-Op") == op).count();
    assert!(count("snapshot") > 1000 && count("update") > 50 && count("delete") > 5, "{} updates", count("update"));
    let ids: std::collections::HashSet<_> = messages.iter().map(|message| message.header("Nats-Msg-Id")).collect();
    assert_eq!(ids.len(), messages.len(), "each event once");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn rows_that_others_have_locked_are_not_waited_for_and_come_when_they_are_free() {
    let feed = feed().await;
    feed.pg.psql(
        "CREATE TABLE t (id int PRIMARY KEY, version int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i;
         SELECT rule_webhook_link_table(1, 't')",
    );
    let _walhook = feed.run();
    let mut other = feed.pg.client().await;
    let held = other.transaction().await.unwrap();
    held.batch_execute("UPDATE t SET version = 1 WHERE id IN (4, 5); DELETE FROM t WHERE id = 6").await.unwrap();
    let mut backfill = feed.command("backfill").args(["--table", "t", "--chunk-rows", "3"]).start();
    eventually("all rows but three to be sent", async || {
        let progress = "SELECT concat_ws(' ', rows_sent, rows_waiting, status) FROM rule_cdc_backfills";
        (feed.pg.psql(progress) == "7 3 running").then_some(())
    })
    .await;
    held.commit().await.unwrap();
    assert_eq!(backfill.wait(support::DEADLINE), 0, "{}", backfill.log());
    feed.confirmed().await;
    assert_eq!(folded(&feed).await, table(&feed));
    assert_eq!(
        feed.pg.psql("SELECT rows_sent, status FROM rule_cdc_backfills"),
        "9|done",
        "the deleted one is not waited for"
    );
}

#[tokio::test]
async fn a_backfill_that_cannot_be_is_refused_with_what_it_wants() {
    let feed = feed().await;
    feed.pg.psql(
        "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE bare (id int); CREATE TABLE unlinked (id int PRIMARY KEY);
         SELECT rule_webhook_link_table(1, 't'), rule_webhook_link_table(1, 'bare', '{insert}');
         INSERT INTO t SELECT i, 'n' FROM generate_series(1, 10) i",
    );
    let refused = |arguments: &[&str], words: &[&str]| {
        let told = backfill(&feed, arguments, 2).stderr;
        for word in words {
            assert!(told.contains(word), "{arguments:?}: no {word:?} in {told}");
        }
    };
    refused(&[], &["--link"]);
    refused(&["--table", "nothing"], &["no such table"]);
    refused(&["--table", "unlinked"], &["no webhook is linked", "rule_webhook_link_table"]);
    feed.pg.psql("SELECT rule_webhook_disable_nats(1)");
    refused(
        &["--table", "t", "--webhook", "w"],
        &["no webhook 'w' is linked to it and publishes to NATS", "rule_webhook_enable_nats"],
    );
    feed.pg.psql("SELECT rule_webhook_enable_nats(1, NULL, 'nats')");
    refused(&["--table", "bare"], &["no primary key", "ADD PRIMARY KEY"]);
    refused(&["--table", "t", "--webhook", "nobody"], &["nobody", "not found"]);
    refused(&["--link", "99"], &["no such link"]);
    refused(&["--table", "t", "--chunk-rows", "0"], &["chunk-rows"]);
    feed.pg.psql("CREATE ROLE clerk LOGIN IN ROLE walhook_operator");
    let clerk = feed.streamer_conninfo().replace("walhook_streamer", "clerk");
    let as_clerk = || feed.command("backfill").args(["--table", "t"]).env("DATABASE_URL", &clerk).finish();
    let told = as_clerk();
    assert!(told.code == Some(4) && told.stderr.contains("GRANT SELECT, UPDATE ON"), "{told:?}");
    feed.pg.psql("GRANT SELECT, UPDATE ON t TO clerk");
    let told = as_clerk();
    assert_eq!(told.code, Some(0), "{told:?}");

    // A snapshot that is older than the locks would send what is not so any more.
    let old = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT rule_cdc_backfill_chunk(1)";
    let error = feed.pg.try_psql(old).unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("repeatable read"), "{error:?}");

    // What it was begun with is gone: it says so, and can be ended.
    let id = feed.pg.psql("SELECT rule_cdc_backfill_start('t')");
    feed.pg.psql("SELECT rule_webhook_unlink_table(1, 't')");
    let error = feed.pg.try_psql(&format!("SELECT rule_cdc_backfill_chunk({id})")).unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("its links are gone"), "{error:?}");
    assert_eq!(feed.pg.psql(&format!("SELECT rule_cdc_backfill_cancel({id}), rule_cdc_backfill_cancel({id})")), "t|f");
    assert_eq!(feed.pg.psql(&format!("SELECT rule_cdc_backfill_chunk({id}) IS NULL")), "t");
}
