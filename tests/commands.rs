//! The command line: setup, status, version, and what each exits with.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;

use serde_json::Value;
use support::{Postgres, Walhook, feed::Feed};

fn command(pg: &Postgres, verb: &str) -> support::walhook::Builder {
    Walhook::command(verb).env("DATABASE_URL", pg.conninfo())
}

#[tokio::test]
async fn setup_can_be_repeated_and_changes_nothing_the_second_time() {
    let pg = Postgres::start().await;
    let schema = || {
        pg.psql(
            "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace), \
                    (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace), \
                    (SELECT string_agg(pubname || ' ' || tablename, ', ' ORDER BY 1) FROM pg_publication_tables), \
                    (SELECT string_agg(slot_name || ' ' || confirmed_flush_lsn, ', ') FROM pg_replication_slots)",
        )
    };
    for round in 0..2 {
        let done = command(&pg, "setup").finish();
        assert_eq!(done.code, Some(0), "round {round}: {}", done.stderr);
    }
    let after_two = schema();
    let done = command(&pg, "setup").finish();
    assert_eq!((done.code, schema()), (Some(0), after_two));
    let dropped = pg.psql("SELECT rule_cdc_slot_drop()");
    assert_eq!(dropped, "t");
}

#[tokio::test]
async fn two_setups_at_once_do_not_trip_over_each_other() {
    let pg = Postgres::start().await;
    let mut both = [command(&pg, "setup").start(), command(&pg, "setup").start()];
    for walhook in &mut both {
        assert_eq!(walhook.wait(support::DEADLINE), 0, "{}", walhook.log());
    }
}

#[tokio::test]
async fn setup_prints_sql_that_a_dba_can_run_instead() {
    let pg = Postgres::start().await;
    let printed = Walhook::command("setup").args(["--print", "--slot", "feed", "--publication", "feed"]).finish();
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    let mut psql = std::process::Command::new("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &pg.conninfo()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut psql.stdin.take().unwrap(), printed.stdout.as_bytes()).unwrap();
    let ended = psql.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(pg.psql("SELECT slot_name, plugin FROM rule_cdc_slots"), "feed|pgoutput");
    assert_eq!(
        pg.psql("SELECT string_agg(pubname, ' ' ORDER BY pubname) FROM pg_publication"),
        "feed_changes feed_inserts"
    );
}

#[tokio::test]
async fn status_tells_slot_streams_webhooks_and_dead_letters() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders')"));
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO orders VALUES (1)");
    feed.stored(1).await;
    feed.confirmed().await;
    let running: Value = serde_json::from_str(&feed.command("status").arg("--json").finish().stdout).unwrap();
    assert_eq!(running["slot"]["active"], true);
    support::eventually("the status to show the stream while walhook runs", async || {
        feed.command("status").finish().stdout.contains("WEBHOOKS (default): sequence 1").then_some(())
    })
    .await;
    assert_eq!(running["webhooks"]["publishing"], 1);
    assert_eq!(running["webhooks"]["linked_tables"], 1);
    assert_eq!(running["dead_letters"]["dead"], 0);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let stopped = feed.command("status").finish();
    assert_eq!(stopped.code, Some(0));
    for expected in ["held by nobody", "WEBHOOKS (default): sequence 1", "1 publish to NATS", "dead letters  0"] {
        assert!(stopped.stdout.contains(expected), "{expected} is not in\n{}", stopped.stdout);
    }
    // The application asks the database, and is told that nobody is running.
    let report: Value = serde_json::from_str(&feed.pg.psql("SELECT rule_nats_health_check()")).unwrap();
    assert_eq!((&report["running"], &report["connected"]), (&false.into(), &false.into()));
}

#[tokio::test]
async fn a_running_walhook_answers_health_checks_through_the_database() {
    let feed = Feed::start().await;
    feed.webhook("orders");
    let _walhook = feed.run();
    let report: Value = support::eventually("rule_nats_health_check to say connected", async || {
        let report: Value = serde_json::from_str(&feed.pg.psql("SELECT rule_nats_health_check()")).unwrap();
        (report["connected"] == true).then_some(report)
    })
    .await;
    assert_eq!(report["success"], true);
    assert!(report["server"].as_str().unwrap().ends_with(&feed.nats.port().to_string()), "{report}");
    assert_eq!(report["epoch"], 1);
}

#[test]
fn version_and_mistakes_need_no_server() {
    let version = Walhook::command("version").finish();
    assert_eq!(
        (version.code, version.stdout.as_str()),
        (Some(0), concat!("walhook ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    let check = |arguments: &[&str], expected: &str| {
        let done = Walhook::command("run").args(arguments).env("PGUSER", "app").finish();
        assert_eq!(done.code, Some(2), "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains(expected), "{arguments:?}: {}", done.stderr);
    };
    check(&["--slot", "Not A Slot"], "Not A Slot");
    check(&["--config", "/nowhere.toml"], "/nowhere.toml");
    check(&["--no-such-flag"], "--no-such-flag");
    check(&["--log", "walhook=sometimes"], "sometimes");
}

#[tokio::test]
async fn logs_are_json_where_asked_for() {
    let pg = Postgres::start().await;
    let done = command(&pg, "setup").args(["--log-format", "json"]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    for line in done.stderr.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn a_reader_who_has_seen_enough_is_no_error() {
    let mut setup = std::process::Command::new(env!("CARGO_BIN_EXE_walhook"))
        .args(["setup", "--print"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(setup.stdout.take()); // as `| head` does
    let ended = setup.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));
}
