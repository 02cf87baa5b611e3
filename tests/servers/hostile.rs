//! Surroundings that mean harm, or that nobody thought of: rights that go, objects that swallow rows, streams that others edit, odd
//! transactions and names. What is committed arrives once, or walhook says what is in the way and loses nothing.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{Nats, Postgres, Walhook, eventually, feed::Feed};

/// How long a walhook that has to end by itself may take.
const ENDS: Duration = Duration::from_secs(40);

/// A feed with the linked table `t`.
async fn linked() -> Feed {
    on(Postgres::set_up().await, Nats::start().await)
}

fn on(pg: Postgres, nats: Nats) -> Feed {
    let feed = Feed::on(pg, nats);
    feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, a text); SELECT rule_webhook_link_table(1, 't')");
    feed
}

fn insert(feed: &Feed, from: i32, to: i32) {
    feed.pg.psql(&format!("INSERT INTO t SELECT i, 'x' FROM generate_series({from}, {to}) i"));
}

async fn ids(feed: &Feed) -> Vec<i64> {
    feed.messages().await.iter().filter_map(|message| message.data()["id"].as_i64()).collect()
}

fn ended_well(walhook: &mut Walhook) {
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// Changes the stream's configuration as somebody else would.
async fn edit(feed: &Feed, change: impl Fn(&mut Value)) {
    let jetstream = feed.nats.jetstream().await;
    let mut info: Value = jetstream.request("STREAM.INFO.WEBHOOKS", &json!({})).await.unwrap();
    change(&mut info["config"]);
    let answer: Value = jetstream.request("STREAM.UPDATE.WEBHOOKS", &info["config"]).await.unwrap();
    assert!(answer["error"].is_null(), "{answer}");
}

#[tokio::test]
async fn a_trigger_or_a_rule_that_swallows_dead_letters_loses_no_event() {
    for swallow in [
        "CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER gone BEFORE INSERT ON rule_nats_dead_letters FOR EACH ROW EXECUTE FUNCTION gone()",
        "CREATE RULE gone AS ON INSERT TO rule_nats_dead_letters DO INSTEAD NOTHING",
    ] {
        let feed = linked().await;
        feed.pg.psql(swallow);
        feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'nowhere.at.all'");
        let before = feed.pg.psql("SELECT pg_current_wal_lsn()");
        insert(&feed, 1, 3);
        let mut walhook = feed.run();
        assert_eq!(walhook.wait(ENDS), 2, "{}", walhook.log());
        assert!(
            walhook.log().contains("a trigger or a rule on rule_nats_dead_letters drops rows"),
            "{}",
            walhook.log()
        );
        let confirmed =
            format!("SELECT confirmed_flush_lsn <= '{before}' FROM pg_replication_slots WHERE slot_name = 'walhook'");
        assert_eq!(feed.pg.psql(&confirmed), "t", "nothing that was lost is confirmed");
        feed.pg.psql(
            "DROP TRIGGER IF EXISTS gone ON rule_nats_dead_letters; DROP RULE IF EXISTS gone ON rule_nats_dead_letters",
        );
        let mut walhook = feed.run();
        feed.confirmed().await;
        assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "3");
        ended_well(&mut walhook);
    }
}

#[tokio::test]
async fn a_trigger_that_swallows_versions_of_the_rules_ends_walhook_before_it_confirms_anything_behind_them() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 1, 1);
    feed.confirmed().await;
    feed.pg.psql(
        "CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER gone BEFORE INSERT ON walhook.rule_cdc_rule_versions FOR EACH ROW EXECUTE FUNCTION gone()",
    );
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'webhooks.two'");
    insert(&feed, 2, 2);
    assert_ne!(walhook.wait(ENDS), 0, "{}", walhook.log());
    assert!(
        walhook.log().contains("A trigger or a rule on walhook.rule_cdc_rule_versions drops rows"),
        "{}",
        walhook.log()
    );
    feed.pg.psql("DROP TRIGGER gone ON walhook.rule_cdc_rule_versions");
    let mut walhook = feed.run();
    feed.confirmed().await;
    let subjects: Vec<_> = feed.messages().await.into_iter().map(|message| message.subject).collect();
    assert_eq!(subjects, ["webhooks.w", "webhooks.two"]);
    ended_well(&mut walhook);
}

#[tokio::test]
async fn rights_that_are_revoked_amid_a_run_are_named_and_what_was_committed_comes_once_they_are_back() {
    for (revoke, grant) in [
        (
            "REVOKE ALL ON rule_nats_dead_letters FROM walhook_streamer",
            "GRANT SELECT, INSERT, UPDATE ON rule_nats_dead_letters TO walhook_streamer",
        ),
        ("REVOKE ALL ON rule_webhooks FROM walhook_streamer", "GRANT SELECT ON rule_webhooks TO walhook_streamer"),
        (
            "REVOKE ALL ON rule_nats_checkpoints FROM walhook_streamer",
            "GRANT SELECT, INSERT, UPDATE ON rule_nats_checkpoints TO walhook_streamer",
        ),
        ("ALTER ROLE walhook_streamer NOREPLICATION", "ALTER ROLE walhook_streamer REPLICATION"),
        ("ALTER ROLE walhook_streamer NOLOGIN", "ALTER ROLE walhook_streamer LOGIN"),
        ("ALTER ROLE walhook_streamer CONNECTION LIMIT 0", "ALTER ROLE walhook_streamer CONNECTION LIMIT -1"),
        (
            "REVOKE ALL ON SCHEMA public FROM PUBLIC, walhook_streamer",
            "GRANT USAGE ON SCHEMA public TO PUBLIC, walhook_streamer",
        ),
    ] {
        let feed = linked().await;
        let mut walhook = feed.run();
        insert(&feed, 1, 10);
        feed.confirmed().await;
        feed.pg.psql(revoke);
        // One event for the stream and one that becomes a dead letter.
        insert(&feed, 11, 20);
        feed.pg.psql("INSERT INTO t VALUES (21, repeat('x', 2000000))");
        feed.pg.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'walhook_streamer'");
        let is_waited_for = revoke.contains("LIMIT");
        if is_waited_for {
            walhook.logged("too many connections").await;
        } else {
            assert_eq!(walhook.wait(ENDS), 4, "{revoke}: {}", walhook.log());
            let log = walhook.log();
            assert!(log.lines().last().unwrap().contains("Hint"), "{revoke}: {log}");
        }
        feed.pg.psql(grant);
        if !is_waited_for {
            walhook = feed.run();
        }
        feed.confirmed().await;
        assert_eq!(ids(&feed).await, (1..=20).collect::<Vec<_>>(), "{revoke}");
        assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "1", "{revoke}");
        ended_well(&mut walhook);
    }
}

#[tokio::test]
async fn a_database_that_allows_no_connections_for_a_while_is_waited_for_and_named() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 1, 10);
    feed.confirmed().await;
    feed.pg.psql("CREATE DATABASE other");
    feed.pg.psql_in("other", "ALTER DATABASE postgres ALLOW_CONNECTIONS false");
    feed.pg
        .psql_in("other", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'walhook_streamer'");
    walhook.logged("ALLOW_CONNECTIONS true").await;
    feed.pg.psql_in("other", "ALTER DATABASE postgres ALLOW_CONNECTIONS true");
    insert(&feed, 11, 20);
    feed.confirmed().await;
    assert_eq!(ids(&feed).await, (1..=20).collect::<Vec<_>>());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_stream_that_others_edit_amid_a_run_takes_each_event_once_after_it_is_set_right() {
    for version in ["2.10", "2.15"] {
        let feed = on(Postgres::set_up().await, Nats::builder().version(version).start().await);
        let mut walhook = feed.run();
        insert(&feed, 1, 10);
        feed.confirmed().await;
        let mut next = 11;
        for (field, bad, good) in [
            // No message is acknowledged.
            ("no_ack", json!(true), json!(false)),
            // One message of each subject, and no other until that is gone.
            ("max_msgs_per_subject", json!(1), json!(-1)),
            // Stored under another subject.
            ("subject_transform", json!({ "src": "webhooks.w", "dest": "elsewhere.w" }), Value::Null),
            ("republish", json!({ "src": "webhooks.>", "dest": "again.>" }), Value::Null),
            ("allow_rollup_hdrs", json!(true), json!(false)),
            ("compression", json!("s2"), json!("none")),
            ("duplicate_window", json!(100_000_000), json!(120_000_000_000_i64)),
        ] {
            let per_subject = field == "max_msgs_per_subject";
            edit(&feed, |config| {
                config[field] = bad.clone();
                if per_subject {
                    config["discard"] = "new".into();
                    config["discard_new_per_subject"] = true.into();
                }
            })
            .await;
            insert(&feed, next, next + 9);
            if field == "no_ack" || per_subject {
                walhook.logged("WARN").await;
            } else {
                feed.confirmed().await;
            }
            edit(&feed, |config| {
                config[field] = good.clone();
                if per_subject {
                    config["discard"] = "old".into();
                    config["discard_new_per_subject"] = false.into();
                }
            })
            .await;
            next += 10;
            insert(&feed, next, next + 9);
            next += 10;
            feed.confirmed().await;
            assert_eq!(
                feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"),
                "0",
                "{version}: {field}: {}",
                walhook.log()
            );
        }
        let stored = ids(&feed).await;
        // The limit by subject may have removed those of before it, as the edit asked for; all others are there once and in order.
        let wanted: Vec<i64> = (1..i64::from(next)).collect();
        assert!(wanted.ends_with(&stored) && stored[0] <= 30, "{version}: {stored:?}: {}", walhook.log());
        ended_well(&mut walhook);
    }
}

#[tokio::test]
async fn rows_that_were_replicated_prepared_or_logged_beside_messages_of_others_arrive_once_in_order() {
    let feed =
        on(Postgres::builder().conf("max_prepared_transactions = 5").set_up().start().await, Nats::start().await);
    let mut walhook = feed.run();
    // As an apply worker writes them: with an origin.
    feed.pg.psql(
        "SELECT pg_replication_origin_create('elsewhere'); SELECT pg_replication_origin_session_setup('elsewhere'); \
         INSERT INTO t VALUES (1, 'x'); SELECT pg_replication_origin_session_reset()",
    );
    // Logical messages of others, in and out of transactions, with a prefix of ours and bytes of any kind.
    feed.pg.psql(
        "SELECT pg_logical_emit_message(false, 'walhook', '\\x00ff'::bytea), pg_logical_emit_message(true, '', repeat('x', 3000000))",
    );
    // A change of the rules that is prepared takes effect where it is committed.
    feed.pg.psql("BEGIN; UPDATE rule_webhooks SET nats_subject = 'webhooks.two'; INSERT INTO t VALUES (3, 'x'); PREPARE TRANSACTION 'p'");
    insert(&feed, 2, 2);
    feed.confirmed().await;
    feed.pg.psql("COMMIT PREPARED 'p'");
    insert(&feed, 4, 4);
    feed.pg.psql("BEGIN; INSERT INTO t VALUES (99, 'x'); PREPARE TRANSACTION 'q'");
    feed.pg.psql("ROLLBACK PREPARED 'q'");
    feed.confirmed().await;
    let told: Vec<_> =
        feed.messages().await.iter().map(|m| (m.data()["id"].as_i64().unwrap(), m.subject.clone())).collect();
    let told: Vec<_> = told.iter().map(|(id, subject)| (*id, subject.as_str())).collect();
    // Row 3 was written before the commit that changed its rules, in the same transaction but behind the change.
    assert_eq!(told, [(1, "webhooks.w"), (2, "webhooks.w"), (3, "webhooks.two"), (4, "webhooks.two")]);
    ended_well(&mut walhook);
}

#[tokio::test]
async fn configuration_tables_that_are_truncated_or_altered_amid_a_run_lose_nothing_of_before() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 1, 10);
    feed.confirmed().await;
    feed.pg.psql("ALTER TABLE rule_webhooks ADD COLUMN owner_team text DEFAULT 'x', ADD COLUMN \"Odd \"\"name\" int");
    insert(&feed, 11, 20);
    feed.pg.psql("ALTER TABLE rule_webhooks DROP COLUMN owner_team");
    insert(&feed, 21, 30);
    feed.pg.psql("TRUNCATE rule_webhooks CASCADE");
    feed.pg.psql("INSERT INTO t VALUES (31, 'nobody wants it')");
    feed.webhook("again");
    feed.pg.psql("SELECT rule_webhook_link_table(2, 't')");
    insert(&feed, 32, 40);
    feed.confirmed().await;
    let wanted: Vec<i64> = (1..=30).chain(32..=40).collect();
    assert_eq!(ids(&feed).await, wanted, "{}", walhook.log());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn names_of_database_roles_and_columns_may_be_anything_that_postgresql_takes() {
    let pg = Postgres::start().await;
    let name = "Ünï \"'%s{op}\\ \t$JS.API.>";
    let quoted = format!("\"{}\"", name.replace('"', "\"\""));
    pg.psql(&format!("CREATE DATABASE {quoted}"));
    pg.psql(&format!("CREATE ROLE {quoted} SUPERUSER LOGIN REPLICATION"));
    let value = name.replace('\\', "\\\\").replace('\'', "\\'");
    let conninfo = format!("host=127.0.0.1 port={} dbname='{value}' user='{value}'", pg.port());
    let nats = Nats::start().await;
    let command = |verb: &str| Walhook::command(verb).env("DATABASE_URL", &conninfo);
    let setup = command("setup").finish();
    assert_eq!(setup.code, Some(0), "{setup:?}");
    pg.psql_in(name, &format!("SELECT rule_nats_configure('default', '{}'), rule_webhook_register('w', 'https://x.example'), rule_webhook_enable_nats(1, NULL, 'nats')", nats.url()));
    pg.psql_in(
        name,
        &format!("CREATE SCHEMA {quoted}; CREATE TABLE {quoted}.{quoted} ({quoted} int PRIMARY KEY, \"k\" text, \"ctid2\" int[]); \
                  SELECT rule_webhook_link_table(1, '{}.{}')", quoted.replace('\'', "''"), quoted.replace('\'', "''")),
    );
    let mut walhook = command("run").start();
    pg.psql_in(name, &format!("INSERT INTO {quoted}.{quoted} VALUES (1, 'a', '{{1}}')"));
    let feed = Feed { pg, nats };
    let messages = feed.stored(1).await;
    assert_eq!(messages[0].data()[name], 1);
    for words in
        [&["status"][..], &["status", "--json"], &["explain", &format!("{quoted}.{quoted}")], &["dead-letters", "list"]]
    {
        let done = command(words[0]).args(&words[1..]).finish();
        assert!(done.code == Some(0), "{words:?}: {done:?}");
        assert!(!done.stdout.contains('\t'), "{words:?}: {done:?}");
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn values_of_any_size_in_configuration_rows_are_refused_or_survived() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 1, 5);
    feed.confirmed().await;
    for statement in [
        "INSERT INTO rule_webhooks (webhook_name, url, nats_enabled, publish_mode) VALUES (repeat('n', 3000000), 'https://x.example', true, 'nats')",
        "UPDATE rule_webhooks SET description = repeat('d', 30000000)",
        "UPDATE rule_webhooks SET tags = ARRAY(SELECT 'tag' || i FROM generate_series(1, 200000) i)",
        "UPDATE rule_webhooks SET headers = (SELECT jsonb_object_agg('X-' || i, repeat('v', 100)) FROM generate_series(1, 20000) i)",
        "UPDATE rule_webhooks SET url = 'https://x.example/' || repeat('u', 3000000)",
        "UPDATE rule_webhook_links SET filter = ('{\"a\":' || repeat('[', 5000) || repeat(']', 5000) || '}')::jsonb",
        "UPDATE rule_webhook_links SET columns = ARRAY(SELECT 'c' || i FROM generate_series(1, 100000) i)",
        "UPDATE rule_nats_config SET subject_prefix = repeat('p', 1000000)",
        "UPDATE rule_nats_streams SET subjects = ARRAY(SELECT 's' || i || '.>' FROM generate_series(1, 100000) i)",
        "SELECT rule_webhook_publish_nats(1, '{}', repeat('m', 1000000))",
        "SELECT rule_webhook_publish_nats(1, '{}', headers => (SELECT jsonb_object_agg('X-' || i, repeat('v', 1000)) FROM generate_series(1, 5000) i))",
    ] {
        let before = feed.pg.psql("SELECT to_jsonb(l) FROM rule_webhook_links l");
        match feed.pg.try_psql(statement) {
            Ok(_) => {}
            Err(error) => {
                // The message does not hold the value, and says what is too much.
                let error = error.as_db_error().unwrap();
                assert!(
                    error.message().len() < 4000 && error.code().code() != "XX000",
                    "{statement}: {}",
                    error.message().len()
                );
                continue;
            }
        }
        insert(&feed, 6, 6);
        eventually(&format!("an event or a letter after {statement}"), async || {
            (feed.pg.psql("SELECT confirmed_flush_lsn > pg_current_wal_lsn() - 1000 FROM pg_replication_slots WHERE slot_name = 'walhook'") == "t").then_some(())
        })
        .await;
        feed.pg.psql("DELETE FROM t WHERE id = 6; UPDATE rule_webhooks SET description = NULL, tags = '{}', headers = '{}', url = 'https://x.example'");
        feed.pg.psql(&format!("UPDATE rule_webhook_links l SET filter = r.filter, columns = r.columns FROM jsonb_populate_record(NULL::rule_webhook_links, $${before}$$) r WHERE l.link_id = r.link_id"));
    }
    insert(&feed, 100, 101);
    feed.confirmed().await;
    let stored = ids(&feed).await;
    assert!(stored.ends_with(&[100, 101]), "{stored:?}: {}", walhook.log());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn json_with_nul_and_control_characters_arrives_and_is_recorded_by_a_worker() {
    let feed = linked().await;
    let http = support::http::Http::ok();
    feed.pg.psql(&format!("UPDATE rule_webhooks SET url = '{}'", http.url("/")));
    feed.pg.psql("CREATE TABLE j (id int PRIMARY KEY, doc json); SELECT rule_webhook_link_table(1, 'j')");
    let mut walhook = feed.run();
    let conninfo = format!("host=127.0.0.1 port={} dbname=postgres user=walhook_worker", feed.pg.port());
    let mut worker =
        feed.command("deliver").env("DATABASE_URL", conninfo).args(["--allow-network", "127.0.0.1"]).start();
    feed.pg.psql(r#"INSERT INTO j VALUES (1, '{"a\u0000b": "\u0000\u0001\ud83d\ude00 \u001b[31m"}')"#);
    feed.pg.psql("INSERT INTO t VALUES (2, E'\\x01\\x1b[31m\\u2028\\u202e\\r\\n')");
    let requests = http.received(2).await;
    let data: Vec<Value> = requests.iter().map(|request| request.json()).collect();
    assert!(data.iter().any(|data| data["a"] == "\u{1}\u{1b}[31m\u{2028}\u{202e}\r\n"), "{data:?}");
    eventually("two recorded calls", async || {
        (feed.pg.psql("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'") == "2").then_some(())
    })
    .await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    ended_well(&mut walhook);
    assert!(!worker.log().contains('\u{1b}') && !walhook.log().contains('\u{1b}'));
}

#[tokio::test]
async fn what_only_the_newest_postgresql_has_is_published_or_refused_by_name() {
    let feed = on(Postgres::builder().version("18").set_up().start().await, Nats::start().await);
    feed.pg.psql(
        "CREATE EXTENSION IF NOT EXISTS btree_gist; \
         CREATE TABLE v (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL, c int GENERATED ALWAYS AS (a * 3) STORED); \
         CREATE TABLE p (id int, span int4range, a int, CONSTRAINT p_pkey PRIMARY KEY (id, span WITHOUT OVERLAPS))",
    );
    feed.pg.psql("SELECT rule_webhook_link_table(1, 'v')");
    let linked = feed.pg.try_psql("SELECT rule_webhook_link_table(1, 'p')");
    let is_linked = match &linked {
        Ok(_) => true,
        Err(error) => {
            assert!(error.as_db_error().unwrap().hint().is_some(), "{error:?}");
            false
        }
    };
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO v (id, a) VALUES (1, 1); UPDATE v SET a = 2; DELETE FROM v");
    feed.pg.psql("INSERT INTO p VALUES (1, '[1,5)', 1); UPDATE p SET a = 2; DELETE FROM p");
    feed.confirmed().await;
    let messages = feed.messages().await;
    assert_eq!(messages.len(), if is_linked { 6 } else { 3 }, "{messages:?}");
    assert_eq!(messages[1].data()["a"], 2);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn few_file_descriptors_closed_standard_streams_and_no_environment_end_nothing_in_silence() {
    let feed = linked().await;
    let run = |shell: &str| {
        std::process::Command::new("sh")
            .args([
                "-c",
                &format!("{shell} exec \"$0\" run {}", if shell.contains("ulimit") { "" } else { "2>&- <&- >&-" }),
                env!("CARGO_BIN_EXE_walhook"),
            ])
            .env_clear()
            .env("DATABASE_URL", feed.streamer_conninfo())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    insert(&feed, 1, 10);
    let mut closed = run("");
    feed.confirmed().await;
    closed.kill().unwrap();
    closed.wait().unwrap();
    assert_eq!(ids(&feed).await, (1..=10).collect::<Vec<_>>());
    insert(&feed, 11, 20);
    let few = run("ulimit -n 8;");
    let mut few = few;
    eventually("an end or a confirmation with few descriptors", async || {
        let is_done = few.try_wait().unwrap().is_some();
        let confirmed = feed.pg.psql(
            "SELECT confirmed_flush_lsn >= pg_current_wal_lsn() FROM pg_replication_slots WHERE slot_name = 'walhook'",
        ) == "t";
        (is_done
            || confirmed
            || feed.pg.psql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'walhook_streamer'") != "-1")
            .then_some(())
    })
    .await;
    let _ = few.kill();
    let output = few.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!log.contains("panicked"), "{log}");
    let mut walhook = feed.run();
    feed.confirmed().await;
    assert_eq!(ids(&feed).await, (1..=20).collect::<Vec<_>>());
    ended_well(&mut walhook);
}
