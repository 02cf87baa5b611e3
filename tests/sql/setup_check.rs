//! The check of the whole set-up, and settings of role and database that would harm: what is wrong is named at the start, while
//! walhook runs and in `walhook status`, and its remedy works; what can be done in spite of it is done.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{
    Nats, Postgres, eventually,
    feed::Feed,
    http::Http,
    walhook::{Finished, Walhook},
};

/// Table `t` linked to webhook 1.
async fn linked_on(pg: Postgres) -> Feed {
    let feed = Feed::on(pg, Nats::start().await);
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text); SELECT rule_webhook_link_table(1, 't')");
    feed
}

async fn linked() -> Feed {
    linked_on(Postgres::set_up().await).await
}

/// `walhook run` ends by itself, with this code and these words.
fn refuses(feed: &Feed, code: i32, words: &[&str]) {
    let mut walhook = feed.run();
    assert_eq!(walhook.wait(Duration::from_secs(30)), code, "{}", walhook.log());
    for word in words {
        assert!(walhook.log().contains(word), "{word:?} is not in {}", walhook.log());
    }
}

fn status(feed: &Feed) -> (Finished, Value) {
    let finished = feed.command("status").arg("--json").finish();
    let value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    (finished, value)
}

/// Runs the remedies of this finding, statement by statement.
fn mend(feed: &Feed, name: &str) {
    let remedies = feed.pg.psql(&format!("SELECT remedy FROM rule_cdc_check() WHERE name = '{name}'"));
    assert!(!remedies.is_empty(), "no {name} in {}", feed.pg.psql("SELECT * FROM rule_cdc_check()"));
    for statement in remedies.split_inclusive(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        feed.pg.psql(statement);
    }
}

async fn ids(feed: &Feed, count: u64) -> Vec<i64> {
    feed.stored(count).await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn a_slot_for_two_phases_is_refused_at_the_start_and_by_setup_and_its_remedy_loses_nothing() {
    let feed = linked().await;
    feed.pg.psql("SELECT pg_drop_replication_slot('walhook')");
    feed.pg.psql("SELECT pg_create_logical_replication_slot('walhook', 'pgoutput', false, true)");
    feed.pg.psql("INSERT INTO t VALUES (1)");
    refuses(&feed, 2, &["two_phase", "pg_copy_logical_replication_slot('walhook', 'walhook_tmp')"]);
    let setup = feed.command("setup").finish();
    assert_eq!(setup.code, Some(2), "{setup:?}");
    assert!(setup.stderr.contains("two_phase"), "{setup:?}");
    mend(&feed, "slot_two_phase");
    let mut walhook = feed.run();
    assert_eq!(ids(&feed, 1).await, [1]);
    feed.pg.psql("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'two'");
    feed.pg.psql("COMMIT PREPARED 'two'");
    assert_eq!(ids(&feed, 2).await, [1, 2]);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn what_is_altered_while_it_runs_is_logged_once_and_in_the_status_until_its_remedy_is_run() {
    let feed = linked_on(Postgres::builder().version("15").set_up().start().await).await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    assert_eq!(ids(&feed, 1).await, [1]);
    eventually("the status to be well", async || (status(&feed).0.code == Some(0)).then_some(())).await;
    feed.pg.psql("ALTER PUBLICATION walhook_changes DROP TABLE t");
    feed.pg.psql("ALTER PUBLICATION walhook_changes ADD TABLE t WHERE (id > 10)");
    walhook.logged("row filter on table public.t").await;
    let (finished, told) = status(&feed);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert_eq!(told["findings"][0]["name"], "publication_row_filter");
    let text = feed.command("status").finish().stdout;
    assert!(
        text.contains("wrong         publication \"walhook_changes\" has a row filter on table public.t"),
        "{text}"
    );
    feed.pg.psql("ALTER TABLE t RENAME TO u");
    walhook.logged("there is no table public.t (any more): it may be public.u now").await;
    // The second finding came in a later round: the first one was not written again.
    assert_eq!(
        walhook.log().matches("row filter on table public.t: rows outside it are not published. Hint").count(),
        1,
        "{}",
        walhook.log()
    );
    mend(&feed, "table_missing");
    mend(&feed, "publication_row_filter");
    walhook.logged("resolved: link 1 of webhook \"w\" to public.t").await;
    feed.pg.psql("INSERT INTO u VALUES (2)");
    assert_eq!(ids(&feed, 2).await, [1, 2]);
    assert_eq!(status(&feed).0.code, Some(0));
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn row_level_security_on_walhooks_own_tables_ends_it_with_the_code_for_permission_and_the_remedy() {
    let feed = linked().await;
    feed.pg.psql("ALTER TABLE rule_webhooks ENABLE ROW LEVEL SECURITY");
    refuses(&feed, 4, &["row-level security", "ALTER TABLE public.rule_webhooks DISABLE ROW LEVEL SECURITY;"]);
    feed.pg.psql("INSERT INTO t VALUES (1)");
    mend(&feed, "row_security");
    let mut walhook = feed.run();
    assert_eq!(ids(&feed, 1).await, [1]);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    // Rows of a table that is backfilled: all or none.
    feed.pg.psql("ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (id < 0)");
    feed.pg.psql(
        "CREATE ROLE filler LOGIN; GRANT walhook_operator, walhook_streamer TO filler; GRANT SELECT ON t TO filler",
    );
    let conninfo = feed.pg.conninfo().replace("user=postgres", "user=filler");
    let finished = feed.command("backfill").args(["--table", "t"]).env("DATABASE_URL", conninfo).finish();
    assert_eq!(finished.code, Some(4), "{finished:?}");
}

#[tokio::test]
async fn a_walhook_that_commits_wait_for_says_so_and_stops_no_commit() {
    let feed = linked().await;
    feed.pg.psql("ALTER SYSTEM SET synchronous_standby_names = '*'");
    feed.pg.psql("SELECT pg_reload_conf()");
    let mut walhook = feed.run();
    walhook.logged("takes walhook for a standby").await;
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.pg.psql("SELECT rule_webhook_publish_nats(1, '{\"id\": 2}')");
    assert_eq!(ids(&feed, 2).await, [1, 2]);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let mut walhook = feed.run();
    eventually("the finding", async || {
        (feed.pg.psql("SELECT count(*) FROM rule_cdc_check() WHERE name = 'walsender_sync'") == "1").then_some(())
    })
    .await;
    mend(&feed, "walsender_sync");
    walhook.logged("resolved: walsender of replication slot").await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_lock_on_walhooks_own_tables_is_waited_for_whatever_the_roles_lock_timeout() {
    let feed = linked().await;
    feed.pg.psql(
        "ALTER ROLE walhook_streamer SET lock_timeout = 1; ALTER ROLE walhook_streamer SET statement_timeout = 1",
    );
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    assert_eq!(ids(&feed, 1).await, [1]);
    for table in ["rule_nats_checkpoints", "rule_nats_publish_history", "rule_cdc_status"] {
        let holder = feed.pg.client().await;
        holder.batch_execute(&format!("BEGIN; LOCK TABLE {table}")).await.unwrap();
        feed.pg.psql("INSERT INTO t SELECT max(id) + 1 FROM t");
        eventually(&format!("walhook to wait for {table}"), async || {
            // Rows of the history go into a partition of it.
            let waits = format!(
                "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation IN \
                 (SELECT '{table}'::regclass UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = '{table}'::regclass)"
            );
            (feed.pg.psql(&waits) == "t").then_some(())
        })
        .await;
        holder.batch_execute("COMMIT").await.unwrap();
    }
    assert_eq!(ids(&feed, 4).await, [1, 2, 3, 4]);
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history"), "4");
    assert!(
        !walhook.log().contains("55P03") && !walhook.log().contains("rule_nats_publish_history refused"),
        "{}",
        walhook.log()
    );
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_role_that_may_only_read_gets_the_reason_and_goes_on_once_it_may_write() {
    let feed = linked().await;
    feed.pg.psql("ALTER ROLE walhook_streamer SET default_transaction_read_only = on");
    let mut walhook = feed.run();
    walhook.logged("ALTER ROLE … RESET default_transaction_read_only").await;
    feed.pg.psql("ALTER ROLE walhook_streamer RESET default_transaction_read_only; INSERT INTO t VALUES (1)");
    assert_eq!(ids(&feed, 1).await, [1]);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_slot_that_nobody_used_for_too_long_is_called_by_that_name() {
    let pg = Postgres::builder().version("18").conf("idle_replication_slot_timeout = 1s").set_up().start().await;
    let feed = linked_on(pg).await;
    eventually("the slot to be invalidated", async || {
        feed.pg.psql("CHECKPOINT");
        (feed.pg.psql("SELECT invalidation_reason FROM pg_replication_slots") == "idle_timeout").then_some(())
    })
    .await;
    refuses(&feed, 3, &["slot \"walhook\" is lost", "idle_replication_slot_timeout (1s)"]);
    assert_eq!(status(&feed).0.code, Some(3));
    feed.pg.psql("ALTER SYSTEM SET idle_replication_slot_timeout = 0");
    feed.pg.psql("SELECT pg_reload_conf()");
    mend(&feed, "slot_lost");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    assert_eq!(ids(&feed, 1).await, [1]);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// In the way of every statement that names no schema.
const PLANTED: &str = "CREATE SCHEMA evil; \
    CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT pg_catalog.now() + interval ''1 year'''; \
    CREATE FUNCTION evil.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT ''evil'''; \
    CREATE FUNCTION evil.to_regclass(text) RETURNS regclass LANGUAGE sql AS 'SELECT NULL::regclass'; \
    CREATE FUNCTION evil.current_database() RETURNS name LANGUAGE sql AS 'SELECT ''evil''::name'; \
    CREATE TABLE evil.rule_webhooks (nothing int)";

/// What a role's or database's owner may have set, for reasons that are not walhook's.
const HOSTILE: [(&str, &str); 26] = [
    ("search_path", "evil, pg_catalog, public"),
    ("row_security", "on"),
    ("synchronous_commit", "remote_apply"),
    ("standard_conforming_strings", "off"),
    ("lock_timeout", "1"),
    ("statement_timeout", "20"),
    ("idle_in_transaction_session_timeout", "20"),
    ("idle_session_timeout", "20"),
    ("default_transaction_isolation", "serializable"),
    ("client_encoding", "LATIN1"),
    ("datestyle", "German"),
    ("intervalstyle", "postgres_verbose"),
    ("timezone", "Asia/Tokyo"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("array_nulls", "off"),
    ("quote_all_identifiers", "on"),
    ("session_replication_role", "replica"),
    ("transform_null_equals", "on"),
    ("default_transaction_deferrable", "on"),
    ("client_min_messages", "debug5"),
    ("backslash_quote", "off"),
    ("xmloption", "document"),
    ("work_mem", "64kB"),
    ("plpgsql.extra_errors", "all"),
    ("plpgsql.extra_warnings", "all"),
];

#[tokio::test]
async fn settings_of_role_and_database_change_nothing_of_what_setup_run_deliver_backfill_and_replay_do() {
    let pg = Postgres::start().await;
    pg.psql(PLANTED);
    pg.psql("CREATE ROLE ours LOGIN SUPERUSER REPLICATION");
    for (name, value) in HOSTILE {
        let quoted = if name == "search_path" { value.to_owned() } else { format!("'{value}'") };
        // The harness's own role is spared.
        pg.psql(&format!("ALTER ROLE postgres IN DATABASE postgres SET {name} TO DEFAULT"));
        let spared = pg.psql(&format!("SELECT reset_val FROM pg_settings WHERE lower(name) = lower('{name}')"));
        let spared = if name == "search_path" { "public".to_owned() } else { format!("'{spared}'") };
        pg.psql(&format!("ALTER ROLE postgres IN DATABASE postgres SET {name} = {spared}"));
        pg.psql(&format!("ALTER ROLE ours SET {name} = {quoted}; ALTER DATABASE postgres SET {name} = {quoted}"));
    }
    let ours = pg.conninfo().replace("user=postgres", "user=ours");
    let nats = Nats::start().await;
    let setup = Walhook::command("setup").env("DATABASE_URL", &ours).finish();
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let feed = Feed { pg, nats };
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', '{}')", feed.nats.url()));
    let http = Http::ok();
    feed.webhook("w");
    feed.pg.psql(&format!("UPDATE rule_webhooks SET url = '{}'", http.url("/")));
    feed.pg.psql(
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz, long interval, raw bytea, odd float8, many text[], named text); \
         INSERT INTO t VALUES (1, '2026-11-29 12:00:00+00', '1 year 2 days 03:04:05', '\\x00ff5c', 0.1, '{NULL,a}', 'é\\');  \
         SELECT rule_webhook_link_table(1, 't')",
    );
    let command = |verb: &str| feed.command(verb).env("DATABASE_URL", &ours);
    let mut walhook = command("run").start();
    feed.confirmed().await;
    feed.pg.psql("SELECT rule_cdc_anchor_create()");
    feed.pg.psql("INSERT INTO t SELECT 2, at, long, raw, odd, many, named FROM t");
    feed.stored(1).await;
    let backfill = command("backfill").args(["--table", "t"]).finish();
    assert_eq!(backfill.code, Some(0), "{backfill:?}");
    let messages = feed.stored(3).await;
    let values = |message: &support::feed::Message| {
        let mut data = message.data().clone();
        data.as_object_mut().unwrap().remove("id");
        data
    };
    let wanted = json!({
        "at": "2026-11-29T12:00:00+00:00", "long": "P1Y2DT3H4M5S", "raw": messages[0].data()["raw"], "odd": 0.1,
        "many": [null, "a"], "named": "é\\",
    });
    for message in &messages {
        assert_eq!(values(message), wanted, "{message:?}");
    }
    let from = messages[0].payload["event"]["lsn"].as_str().unwrap();
    let replay = command("replay").args(["--create-stream", "REPLAY", "--via", "wal", "--from", from]).finish();
    assert_eq!(replay.code, Some(0), "{replay:?}");
    let replayed = feed.messages_of("REPLAY").await;
    assert_eq!(values(&replayed[0]), wanted, "{replayed:?}");
    let mut worker = command("deliver").args(["--allow-network", "127.0.0.1"]).start();
    http.received(3).await;
    eventually("calls to be recorded", async || {
        (feed.pg.psql("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'") == "3").then_some(())
    })
    .await;
    let (_, told) = status(&feed);
    assert_eq!(told["findings"], json!([]));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    // No connection of walhook's was ended by a time-out.
    for code in ["57P05", "25P03", "57014", "55P03", "40001"] {
        assert!(!walhook.log().contains(code), "{}", walhook.log());
    }
}

#[tokio::test]
async fn a_server_without_logical_wal_gets_the_statement_that_helps() {
    let pg = Postgres::builder().conf("wal_level = replica").start().await;
    let setup = || Walhook::command("setup").env("DATABASE_URL", pg.conninfo()).finish();
    let refused = setup();
    assert_ne!(refused.code, Some(0));
    let statement = "ALTER SYSTEM SET wal_level = logical;";
    assert!(refused.stderr.contains(statement), "{}", refused.stderr);
    assert_eq!(
        pg.psql("SELECT name FROM rule_cdc_check() WHERE remedy LIKE 'ALTER SYSTEM SET wal_level%'"),
        "wal_level"
    );
    pg.psql(statement);
    pg.restart().await;
    let done = setup();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(pg.psql("SELECT name FROM rule_cdc_check()"), "");
}
