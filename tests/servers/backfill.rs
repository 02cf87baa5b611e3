//! Backfills: the rows that a table has come as events of op `snapshot`, each in its place among live changes.

#![allow(clippy::unwrap_used)]

use crate::support;

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
    refused(&["--table", "bare"], &["no primary key", "Give public.bare a primary key"]);
    refused(&["--table", "t", "--webhook", "nobody"], &["nobody", "not found"]);
    refused(&["--link", "99"], &["no such link"]);
    refused(&["--table", "t", "--chunk-rows", "0"], &["chunk-rows"]);
    feed.pg.psql("CREATE ROLE clerk LOGIN IN ROLE walhook_operator");
    let replay_requests = feed.streamer_conninfo().replace("walhook_streamer", "clerk");
    let as_replay_requests =
        || feed.command("backfill").args(["--table", "t"]).env("DATABASE_URL", &replay_requests).finish();
    let told = as_replay_requests();
    assert!(told.code == Some(4) && told.stderr.contains("GRANT SELECT, UPDATE ON"), "{told:?}");
    feed.pg.psql("GRANT SELECT, UPDATE ON t TO clerk");
    let told = as_replay_requests();
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

/// Every word in the migrations that an identifier could be, and that a column may be called.
fn words_of_our_sql() -> Vec<String> {
    let mut words = std::collections::BTreeSet::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "sql") {
            continue;
        }
        let is_whole = path.ends_with("011_replay.sql");
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let code = line.split("--").next().unwrap_or_default();
            let name = |byte: char| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == '_';
            // Of the files that never look into a table of a user's, what looks like an alias, a parameter or a variable.
            let wanted = |word: &&str| is_whole || word.len() <= 3 || word.starts_with("v_") || word.starts_with("p_");
            words.extend(code.split(|byte| !name(byte)).filter(wanted).map(str::to_owned));
        }
    }
    let system = ["ctid", "tableoid", "xmin", "xmax", "cmin", "cmax", "oid"];
    words.retain(|word| !word.is_empty() && word.len() < 64 && !system.contains(&word.as_str()));
    for known in ["k", "t", "l", "n", "o", "held", "sent", "later", "v_keys", "p_rows", "format", "row_data"] {
        assert!(words.contains(known), "{known} is not found any more");
    }
    words.into_iter().collect()
}

#[tokio::test]
async fn no_name_of_a_users_column_meets_one_of_ours() {
    let feed = feed().await;
    let words = words_of_our_sql();
    let columns: Vec<_> = words.iter().map(|word| format!("{word:?} int")).collect();
    // As columns beside each other, and a table and a schema of such names.
    feed.pg.psql(&format!(
        "CREATE SCHEMA held; CREATE TABLE held.t ({}, PRIMARY KEY (k, t)); INSERT INTO held.t SELECT {} FROM generate_series(1, 7) g;
         SELECT rule_webhook_link_table(1, 'held.t')",
        columns.join(", "),
        (0..columns.len()).map(|column| format!("g + {column}")).collect::<Vec<_>>().join(", ")
    ));
    let _walhook = feed.run();
    backfill(&feed, &["--table", "held.t", "--chunk-rows", "3", "--readers", "2"], 0);
    feed.confirmed().await;
    let messages = feed.messages().await;
    let mut rows: Vec<_> = messages.iter().map(|message| message.data()["k"].as_i64().unwrap()).collect();
    rows.sort_unstable();
    let first = i64::try_from(words.iter().position(|word| word == "k").unwrap()).unwrap();
    assert_eq!(rows, (1..=7).map(|g| g + first).collect::<Vec<_>>());
    let row = messages.iter().find(|message| message.data()["k"] == json!(first + 1)).unwrap().data();
    let expected = words.iter().enumerate().map(|(column, word)| (word.clone(), json!(column + 1)));
    assert_eq!(*row, Value::Object(expected.collect()));

    // As the key, one after the other.
    feed.pg.psql(
        "CREATE TABLE named (first int PRIMARY KEY, rest text); INSERT INTO named SELECT i, 'n' FROM generate_series(1, 12) i;
         SELECT rule_webhook_link_table(1, 'named')",
    );
    let client = feed.pg.client().await;
    let mut before = "first".to_owned();
    let mut wrong = Vec::new();
    let like_ours =
        |word: &&String| word.len() <= 3 || ["held", "sent", "later", "names", "types"].contains(&word.as_str());
    for word in words.iter().filter(like_ours) {
        if *word != before {
            client.batch_execute(&format!("ALTER TABLE named RENAME {before:?} TO {word:?}")).await.unwrap();
        }
        before.clone_from(word);
        let id: i64 = client.query_one("SELECT rule_cdc_backfill_start('named', NULL, 2)", &[]).await.unwrap().get(0);
        let (mut sent, mut chunks) = (0, 0);
        while let Some(rows) = client
            .query_one("SELECT rule_cdc_backfill_chunk($1, 5)", &[&id])
            .await
            .unwrap_or_else(|error| panic!("{word}: {error:?}"))
            .get::<_, Option<i64>>(0)
        {
            (sent, chunks) = (sent + rows, chunks + 1);
            assert!(chunks < 20, "{word}: no end");
        }
        if sent != 12 {
            wrong.push(format!("{word}: {sent} of 12 rows"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[tokio::test]
async fn keys_of_any_type_are_read_in_their_own_order_each_row_once() {
    let feed = feed().await;
    // What a session writes by its own settings is read by others.
    feed.pg.psql(
        "ALTER DATABASE postgres SET DateStyle = 'SQL, DMY'; ALTER DATABASE postgres SET IntervalStyle = 'sql_standard';
         ALTER DATABASE postgres SET TimeZone = 'Asia/Kolkata'; ALTER DATABASE postgres SET extra_float_digits = -15;
         ALTER DATABASE postgres SET bytea_output = 'escape'",
    );
    feed.pg.psql(
        "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad');
         CREATE TYPE pair AS (a int, b text); CREATE DOMAIN code AS char(3) CHECK (VALUE ~ '^[a-z]'); CREATE DOMAIN codes AS code",
    );
    let keys = [
        ("char(4)", "'ab' || chr(97 + i)"),
        ("bit(5)", "i::bit(5)"),
        ("varchar(4)", "chr(97 + i)"),
        ("ext.citext", "CASE i % 2 WHEN 0 THEN chr(97 + i) ELSE chr(65 + i) END"),
        ("codes", "('a' || chr(97 + i) || 'z')::codes"),
        ("mood[]", "array_fill((enum_range(NULL::mood))[1 + i % 3], ARRAY[1 + i])"),
        ("pair", "ROW(i % 4, 'x,\"' || i)::pair"),
        ("int4range", "int4range(i, 2 * i + 3)"),
        ("date", "date '2026-01-02' + i * 40"),
        ("timestamptz", "timestamptz '2026-01-02 03:04+00' + i * interval '40 days'"),
        ("interval", "interval '1 mon -1 day' * (i - 5) + interval '1.5 s'"),
        ("float8", "sqrt(i + 1)"),
        ("bytea", "decode('5c' || lpad(i::text, 2, '0'), 'hex')"),
        ("numeric(10,3)", "(i - 5) / 7.0"),
        ("text COLLATE \"C\"", "E'\\\\$1''%s' || CASE i % 2 WHEN 0 THEN chr(97 + i) ELSE chr(65 + i) END"),
        ("uuid", "md5(i::text)::uuid"),
    ];
    for (number, (key, value)) in keys.iter().enumerate() {
        feed.pg.psql(&format!(
            "CREATE TABLE key_{number} (k {key} PRIMARY KEY, n int); INSERT INTO key_{number} SELECT {value}, i FROM generate_series(0, 12) i;
             CREATE TABLE keys_{number} (a int, k {key}, b ext.citext, n int, PRIMARY KEY (a, k, b));
             INSERT INTO keys_{number} SELECT i % 3, {value}, CASE i % 2 WHEN 0 THEN 'x' ELSE 'Y' END, i FROM generate_series(0, 12) i;
             SELECT rule_webhook_link_table(1, 'key_{number}'), rule_webhook_link_table(1, 'keys_{number}')"
        ));
    }
    let _walhook = feed.run();
    for number in 0..keys.len() {
        for table in [format!("key_{number}"), format!("keys_{number}")] {
            for readers in ["1", "2"] {
                backfill(&feed, &["--table", &table, "--chunk-rows", "2", "--readers", readers], 0);
            }
        }
    }
    feed.confirmed().await;
    let mut sent: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for message in feed.messages().await {
        let table = message.payload["event"]["table"].as_str().unwrap().to_owned();
        sent.entry(table).or_default().push(message.data()["n"].as_i64().unwrap());
    }
    for (number, (key, _)) in keys.iter().enumerate() {
        for table in [format!("public.key_{number}"), format!("public.keys_{number}")] {
            let rows = sent.get_mut(&table).unwrap();
            rows.sort_unstable();
            assert_eq!(*rows, (0..26).map(|row| row / 2).collect::<Vec<_>>(), "{table} with key {key}");
        }
    }
}

#[tokio::test]
async fn rows_of_children_are_not_those_of_their_parent_but_partitions_are() {
    let feed = feed().await;
    feed.pg.psql(
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
         INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2);
         CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10);
         CREATE TABLE high PARTITION OF parts FOR VALUES FROM (10) TO (20); INSERT INTO parts VALUES (3), (13);
         SELECT rule_webhook_link_table(1, 'parent'), rule_webhook_link_table(1, 'parts')",
    );
    let _walhook = feed.run();
    backfill(&feed, &["--table", "parent"], 0);
    backfill(&feed, &["--table", "parts"], 0);
    feed.confirmed().await;
    let ids: Vec<_> = feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, [1, 3, 13]);
}

/// `walhook backfill` as that role, refused with code 4 and these words.
fn refused_as(feed: &Feed, role: &str, table: &str, words: &[&str]) -> String {
    let conninfo = feed.streamer_conninfo().replace("walhook_streamer", role);
    let finished = feed.command("backfill").args(["--table", table]).env("DATABASE_URL", &conninfo).finish();
    assert_eq!(finished.code, Some(4), "{table} as {role}: {finished:?}");
    for word in words {
        assert!(finished.stderr.contains(word), "{table} as {role}: no {word:?} in {}", finished.stderr);
    }
    finished.stderr
}

#[tokio::test]
async fn a_table_whose_policy_hides_rows_is_sent_whole_or_refused() {
    let feed = feed().await;
    feed.pg.psql(
        "CREATE ROLE owner LOGIN IN ROLE walhook_operator; CREATE ROLE clerk LOGIN IN ROLE walhook_operator; GRANT CREATE ON SCHEMA public TO owner;
         CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO owner; INSERT INTO t SELECT generate_series(1, 10);
         SELECT rule_webhook_link_table(1, 't'); GRANT SELECT, UPDATE ON t TO clerk;
         ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY half ON t USING (id % 2 = 0)",
    );
    let _walhook = feed.run();
    refused_as(&feed, "clerk", "t", &["row-level security", "ALTER ROLE clerk BYPASSRLS;"]);
    let as_role = |role: &str| {
        let conninfo = feed.streamer_conninfo().replace("walhook_streamer", role);
        let finished = feed.command("backfill").args(["--table", "t"]).env("DATABASE_URL", &conninfo).finish();
        assert!(finished.code == Some(0) && finished.stdout.contains("is done: 10 rows"), "as {role}: {finished:?}");
    };
    as_role("owner");
    feed.pg.psql("ALTER TABLE t FORCE ROW LEVEL SECURITY");
    refused_as(&feed, "owner", "t", &["row-level security", "ALTER ROLE owner BYPASSRLS;"]);
    feed.pg.psql("ALTER ROLE clerk BYPASSRLS");
    as_role("clerk");
    as_role("postgres");
    // One that begins before the policy does not lose the rows behind it.
    feed.pg.psql("ALTER ROLE clerk NOBYPASSRLS; ALTER TABLE t DISABLE ROW LEVEL SECURITY");
    let id = feed.pg.psql("SET ROLE clerk; SELECT rule_cdc_backfill_start('t'); SELECT rule_cdc_backfill_chunk(4, 3)");
    assert_eq!(id, "4\n3");
    feed.pg.psql("ALTER TABLE t ENABLE ROW LEVEL SECURITY");
    let error = feed.pg.try_psql("SET ROLE clerk; SELECT rule_cdc_backfill_chunk(4, 3)").unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501", "{error:?}");
}

#[tokio::test]
async fn code_of_a_tables_owner_never_runs_with_the_rights_of_who_sends_its_rows() {
    let feed = feed().await;
    feed.pg.psql(
        "CREATE ROLE owner LOGIN; GRANT CREATE ON SCHEMA public TO owner; CREATE ROLE clerk LOGIN IN ROLE walhook_operator;
         CREATE TABLE seen (who text, what text); GRANT INSERT ON seen TO PUBLIC",
    );
    // What runs says who runs it, whatever it is called as; in functions that claim to be immutable, which planning runs.
    feed.pg.psql(
        "SET ROLE owner;
         CREATE FUNCTION public.note(what text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS
             $$ BEGIN INSERT INTO public.seen VALUES (current_user, what); RETURN true; END $$;
         CREATE FUNCTION public.trap(what text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
             $$ DECLARE x int; BEGIN SELECT 1 INTO x WHERE public.note(what); RETURN x; END $$;
         CREATE DOMAIN checked AS int CHECK (public.trap('domain') = 1);
         CREATE TYPE nested AS (x checked); CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE FUNCTION public.to_mood(t text) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS
             $$ BEGIN PERFORM public.note('cast'); RETURN 'ok'; END $$;
         CREATE CAST (text AS mood) WITH FUNCTION public.to_mood(text) AS IMPLICIT;
         CREATE TABLE of_domain (id checked PRIMARY KEY, m checked, CONSTRAINT c CHECK (public.trap('check') = 1));
         CREATE TABLE of_cast (m mood PRIMARY KEY);
         CREATE TABLE of_policy (id int PRIMARY KEY); ALTER TABLE of_policy ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON of_policy USING (public.note('policy'));
         CREATE TABLE of_index (id int PRIMARY KEY); CREATE INDEX ON of_index ((id + public.trap('index')));
         CREATE TABLE of_predicate (id int PRIMARY KEY); CREATE INDEX ON of_predicate (id) WHERE public.trap('predicate') = 1;
         CREATE TABLE of_statistics (id int PRIMARY KEY); CREATE STATISTICS s ON (id + public.trap('statistics')) FROM of_statistics;
         CREATE TABLE of_partition (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE part PARTITION OF of_partition FOR VALUES FROM (0) TO (100); CREATE INDEX ON part ((id + public.trap('partition')));
         CREATE TABLE of_nested (id nested PRIMARY KEY);
         CREATE TABLE of_default (id int PRIMARY KEY, d int DEFAULT public.trap('default'),
             g int GENERATED ALWAYS AS (id + public.trap('generated')) STORED);
         CREATE TABLE of_rule (id int PRIMARY KEY); CREATE RULE r AS ON UPDATE TO of_rule DO ALSO SELECT public.note('rule');
         CREATE FUNCTION public.fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.note('trigger'); RETURN NULL; END $$;
         CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON of_rule FOR EACH STATEMENT EXECUTE FUNCTION public.fire()",
    );
    let harmless = ["of_domain", "of_cast", "of_policy", "of_default", "of_rule"];
    let refused = ["of_index", "of_predicate", "of_statistics", "of_partition", "of_nested"];
    for table in harmless.into_iter().chain(refused) {
        let column = if table == "of_cast" { "m" } else { "id" };
        let value = match table {
            "of_cast" => "unnest(enum_range(NULL::mood))".to_owned(),
            "of_nested" => "ROW(i)::nested FROM generate_series(1, 2) i".to_owned(),
            _ => "generate_series(1, 2)".to_owned(),
        };
        feed.pg.psql(&format!(
            "SET ROLE owner; INSERT INTO {table} ({column}) SELECT {value}; RESET ROLE; SELECT rule_webhook_link_table(1, '{table}', '{{insert}}');
             GRANT SELECT, UPDATE ON {table} TO clerk"
        ));
    }
    feed.pg.psql("TRUNCATE seen");
    let _walhook = feed.run();
    for table in harmless {
        let told = backfill(&feed, &["--table", table, "--chunk-rows", "1", "--readers", "2"], 0).stdout;
        assert!(told.contains("is done: 2 rows"), "{table}: {told}");
    }
    let traps = "SELECT string_agg(DISTINCT concat_ws(' ', who, what), ', ') FROM seen";
    assert_eq!(feed.pg.psql(traps), "", "by the superuser");
    for table in refused {
        for role in ["postgres", "clerk"] {
            let told = refused_as(&feed, role, table, &["of role owner", "would run with the rights of"]);
            assert!(told.contains(" OWNER TO postgres;"), "{told}");
        }
    }
    assert_eq!(feed.pg.psql(traps), "", "by those who were refused");

    // Not because the trap is none.
    feed.pg.psql("SELECT FROM of_index");
    assert_eq!(feed.pg.psql(traps), "postgres index");

    // The remedy works, and what a superuser answers for may run.
    let told = refused_as(&feed, "postgres", "of_index", &["ALTER ROUTINE"]);
    let remedy = told.split("a superuser run: ").nth(1).unwrap().split_inclusive(';').next().unwrap();
    feed.pg.psql(remedy);
    let told = backfill(&feed, &["--table", "of_index"], 0).stdout;
    assert!(told.contains("is done: 2 rows"), "{told}");
    // The owner may run its own code.
    feed.pg.psql("ALTER ROUTINE trap(text) OWNER TO owner; GRANT walhook_operator TO owner");
    let conninfo = feed.streamer_conninfo().replace("walhook_streamer", "owner");
    let finished = feed.command("backfill").args(["--table", "of_predicate"]).env("DATABASE_URL", &conninfo).finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

#[tokio::test]
async fn a_backfill_into_dead_letters_is_refused_before_its_first_row_with_the_statement_that_mends_it() {
    let feed = feed().await;
    feed.pg.psql(
        "CREATE TABLE t (id int PRIMARY KEY, kind text); INSERT INTO t SELECT i, 'k' FROM generate_series(1, 20) i;
         SELECT rule_nats_stream_create('EVENTS', ARRAY['events.insert', 'events.update', 'events.delete']);
         SELECT rule_webhook_link_table(1, 't', p_subject_template => 'events.{op}')",
    );
    let _walhook = feed.run();
    // Every refusal names what is wrong and a statement; that one is run, and the next thing is wrong, or nothing.
    let mended = |words: &str| {
        let told = backfill(&feed, &["--table", "t"], 2).stderr;
        assert!(told.contains("would become dead letters") && told.contains(words), "no {words:?} in {told}");
        let remedy = ["UPDATE rule_", "SELECT rule_"].iter().find_map(|begin| told.find(begin)).unwrap();
        let remedy = &told[remedy..=remedy + told[remedy..].find(';').unwrap()];
        feed.pg.psql(remedy);
    };
    mended("takes events.snapshot, the subject of its rows for webhook 'w'");
    feed.pg.psql("UPDATE rule_nats_config SET enabled = false");
    mended("NATS config 'default' of webhook 'w' is disabled");
    let told = backfill(&feed, &["--table", "t"], 0).stdout;
    assert!(told.contains("is done: 20 rows") && told.contains("all its rows are delivered"), "{told}");

    // Where there is no row of a stream, a stream of its own.
    feed.pg.psql(
        "DELETE FROM rule_nats_streams; SELECT rule_webhook_link_table(1, 't', p_subject_template => 'own.{op}')",
    );
    mended("takes own.snapshot");
    backfill(&feed, &["--table", "t"], 0);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    feed.pg.psql("ALTER TABLE t RENAME kind TO sort; SELECT rule_webhook_link_table(1, 't', '{insert}', p_subject_template => 'webhooks.{sort}');
                  ALTER TABLE t RENAME sort TO kind");
    let told = backfill(&feed, &["--table", "t"], 2).stderr;
    assert!(told.contains("the subject template names 'sort', which the table does not have"), "{told}");
}

#[tokio::test]
async fn a_backfill_counts_what_did_not_arrive_and_its_exit_code_says_so() {
    let feed = feed().await;
    feed.pg.psql(
        "CREATE TABLE t (id int PRIMARY KEY, kind text); INSERT INTO t SELECT i, CASE WHEN i > 3 THEN 'k' END FROM generate_series(1, 20) i;
         SELECT rule_webhook_link_table(1, 't', '{insert}', p_subject_template => 'webhooks.{kind}')",
    );
    let mut walhook = feed.run();
    let told = backfill(&feed, &["--table", "t"], 2);
    assert!(told.stdout.contains("is done: 20 rows"), "{told:?}");
    for word in ["3 events of its rows did not arrive", "walhook dead-letters list", "walhook dead-letters retry"] {
        assert!(told.stderr.contains(word), "no {word:?} in {told:?}");
    }
    // A live one is none of a backfill's, nor are those of an earlier one.
    feed.pg.psql("INSERT INTO t VALUES (21, NULL)");
    feed.confirmed().await;
    feed.pg.psql("DELETE FROM t WHERE kind IS NULL");
    backfill(&feed, &["--table", "t"], 0);
    assert_eq!(
        feed.pg.psql("SELECT string_agg(concat_ws(' ', rows_sent, events_failed), ', ' ORDER BY backfill_id) FROM rule_cdc_backfills"),
        "20 3, 17 0"
    );
    // Nobody streams: it does not wait for what may never be.
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let told = backfill(&feed, &["--table", "t"], 0).stdout;
    assert!(told.contains("nobody streams from slot"), "{told}");
    let told = backfill(&feed, &["--table", "t", "--no-wait"], 0).stdout;
    assert!(told.contains("is done") && !told.contains("nobody streams"), "{told}");
}

#[tokio::test]
async fn rows_that_no_backfill_wrote_are_passed_over_reported_and_end_nothing() {
    let feed = feed().await;
    feed.pg.psql(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 3); SELECT rule_webhook_link_table(1, 't')",
    );
    // As a superuser or an older walhook could write it.
    feed.pg.psql("ALTER TABLE rule_cdc_backfill_rows DROP CONSTRAINT valid_chunk");
    let mut walhook = feed.run();
    walhook.logged("slot taken").await;
    let head = |columns: &str| {
        format!(r#"{{"backfill": 1, "schema": "public", "table": "t", "links": [1], "columns": [{columns}]}}"#)
    };
    let id = r#"{"name": "id", "type": 23, "key": true}"#;
    for rows in [
        "(chunk) VALUES ('1')".to_owned(),
        "(chunk) VALUES ('{}'), (NULL), ('\"x\"'), ('{\"schema\": 1}')".to_owned(),
        r"(row_data) VALUES ('\x0001740000000131'), ('\x00'), ('')".to_owned(),
        format!(
            r"(chunk, row_data) VALUES ('{}', NULL), (NULL, '\xffff'), (NULL, '\x00016e6e'), (NULL, '\x0001620000000131')",
            head(id)
        ),
        format!("(chunk, row_data) VALUES ('{}', NULL), (NULL, '\\x0000')", head("")),
        format!(
            "(chunk, row_data) VALUES ('{}', NULL), (NULL, '\\x0001740000000131')",
            head(r#"{"name": "id", "type": 4000000000, "key": true}"#)
        ),
        format!(
            "(chunk, row_data) VALUES ('{}', NULL), (NULL, '\\x0001740000000131')",
            head(id).replace("\"t\"", "\"rule_webhooks\"")
        ),
    ] {
        feed.pg.psql(&format!(
            "BEGIN; INSERT INTO rule_cdc_backfill_rows {rows}; DELETE FROM rule_cdc_backfill_rows; COMMIT"
        ));
    }
    feed.pg.psql("UPDATE rule_cdc_backfill_rows SET chunk = '1'; TRUNCATE rule_cdc_backfill_rows");
    let told = backfill(&feed, &["--table", "t"], 0).stdout;
    assert!(told.contains("all its rows are delivered"), "{told}");
    let log = walhook.log();
    for words in ["its head cannot be read", "their chunk has no head", "a row in rule_cdc_backfill_rows at"] {
        assert!(log.contains(words), "no {words:?} in {log}");
    }
    assert_eq!(log.matches("slot taken").count(), 1, "the session went on: {log}");
    // What was written like a row of a chunk is one.
    let ids: Vec<_> = feed.messages().await.iter().map(|message| message.data()["id"].clone()).collect();
    assert_eq!(ids, [json!("1"), json!("1"), json!(1), json!(2), json!(3)]);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn an_anchor_setting_moves_no_slot_but_our_own() {
    let feed = feed().await;
    feed.pg.psql("CREATE TABLE other (id int)");
    feed.pg.psql("SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')");
    let setting = |anchor: &str| {
        format!(
            "INSERT INTO walhook.rule_cdc_anchor_settings (slot_name, anchor_name, keep, keep_bytes) VALUES ('walhook', '{anchor}', '1 s', 1)"
        )
    };
    let error = feed.pg.try_psql(&setting("theirs")).unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("valid_anchor_name"), "{error:?}");
    // Nor by its name alone: one of another plugin is somebody else's. walhook goes on, and says so.
    feed.pg.psql("SELECT pg_create_logical_replication_slot('walhook_anchor', 'test_decoding')");
    feed.pg.psql(&setting("walhook_anchor"));
    let before =
        feed.pg.psql("SELECT slot_name, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name <> 'walhook'");
    let mut walhook = feed.run();
    walhook.logged("walhook did not create it (plugin test_decoding").await;
    // Left by an earlier version: setup removes it.
    feed.pg.psql(&format!("ALTER TABLE walhook.rule_cdc_anchor_settings DROP CONSTRAINT valid_anchor_name; DELETE FROM walhook.rule_cdc_anchor_settings; {}", setting("theirs")));
    let error = feed.pg.try_psql("SELECT rule_cdc_anchor_move()").unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("walhook did not create it"), "{error:?}");
    assert_eq!(feed.pg.psql("SELECT rule_cdc_anchor_drop()"), "t");
    feed.pg.psql(&setting("theirs"));
    assert_eq!(feed.command("setup").finish().code, Some(0));
    assert_eq!(feed.pg.psql("SELECT count(*) FROM walhook.rule_cdc_anchor_settings"), "0");
    let now =
        feed.pg.psql("SELECT slot_name, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name <> 'walhook'");
    assert_eq!(now, before);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}
