//! Who may hold walhook up: a role that may only connect takes every lock and name that it can, and nothing waits for it; what
//! walhook waits for is named, with a statement that ends it.

#![allow(clippy::unwrap_used)]

use crate::support::{Nats, Postgres, Walhook, eventually, feed::Feed, rows};

/// A session of a role that may only connect, with this name.
async fn stranger(pg: &Postgres, name: &str) -> tokio_postgres::Client {
    let mut config: tokio_postgres::Config = pg.conninfo().parse().unwrap();
    config.user("stranger").application_name(name);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn a_role_that_may_only_connect_holds_nothing_up_by_locks_and_names() {
    let pg = Postgres::builder().conf("max_locks_per_transaction = 256").start().await;
    pg.psql("CREATE ROLE stranger LOGIN");
    let mut held = Vec::new();
    for name in
        ["walhook", "walhook setup", "walhook setup (waiting)", "walhook run of walhook", "walhook replay of walhook"]
    {
        held.push(stranger(&pg, name).await);
    }
    // The locks that walhook 0.1 took have numbers that anybody can compute.
    held[0]
        .batch_execute(
            "SELECT pg_advisory_lock(7763486874), pg_advisory_lock(hashtextextended('walhook: links', 0)), \
                    pg_advisory_lock(hashtextextended('walhook: run walhook', 0)), \
                    pg_advisory_lock(hashtextextended('walhook: replay walhook', 0))",
        )
        .await
        .unwrap();
    let feed = Feed::on(pg, Nats::start().await);
    // What PostgreSQL lets a stranger lock of walhook's tables: nothing.
    let tables = feed.pg.psql(
        "SELECT oid::regclass FROM pg_class WHERE relnamespace IN ('public'::regnamespace, to_regnamespace('walhook')) AND relkind IN ('r', 'p', 'v')",
    );
    for table in tables.lines() {
        let locked = held[1].batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS SHARE MODE")).await;
        assert_eq!(locked.unwrap_err().code().map(tokio_postgres::error::SqlState::code), Some("42501"), "{table}");
        held[1].batch_execute("ROLLBACK").await.unwrap();
    }
    rows::link(&feed);
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    let first = feed.stored(1).await;
    // Another run takes over, and a replay has its turn.
    walhook.kill9();
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (2)");
    feed.stored(2).await;
    let from = first[0].payload["event"]["lsn"].as_str().unwrap();
    let replay = feed
        .command("replay")
        .env("DATABASE_URL", feed.streamer_conninfo())
        .args(["--create-stream", "REPLAY", "--from", from])
        .finish();
    assert_eq!(replay.code, Some(0), "{}", replay.stderr);
    assert_eq!(feed.messages_of("REPLAY").await.len(), 2);
    feed.pg.psql("SELECT rule_webhook_unlink_table(1, 't'), rule_cdc_publication_tidy()");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    for session in &held {
        session.batch_execute("SELECT 1").await.expect("no session of others is ended");
    }
    let uninstall = feed.command("uninstall").arg("--yes").finish();
    assert_eq!(uninstall.code, Some(0), "{}", uninstall.stderr);
}

#[tokio::test]
async fn a_session_of_a_role_that_walhook_may_not_end_is_named_and_the_statement_ends_it() {
    let feed = rows::linked_on(Postgres::set_up().await, Nats::start().await);
    let left_behind = feed.pg.client().await;
    left_behind.batch_execute("SET application_name = 'walhook run of walhook'").await.unwrap();
    let process: i32 = left_behind.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    feed.pg.psql("INSERT INTO t VALUES (1)");
    let mut walhook = feed.run();
    let statement = format!("SELECT pg_terminate_backend({process})");
    walhook.logged(&format!("as a superuser: {statement}")).await;
    assert!(walhook.log().contains(&format!("process {process} of role \"postgres\"")), "{}", walhook.log());
    assert!(feed.messages().await.is_empty(), "the session could still write");
    feed.pg.psql(&statement);
    feed.stored(1).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_setup_waits_for_another_one_names_it_and_the_statement_ends_one_that_was_left_behind() {
    let pg = Postgres::start().await;
    let left_behind = pg.client().await;
    left_behind.batch_execute("SET application_name = 'walhook setup'").await.unwrap();
    let process: i32 = left_behind.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let mut setup = Walhook::command("setup").env("DATABASE_URL", pg.conninfo()).start();
    let statement = format!("SELECT pg_terminate_backend({process})");
    setup.logged(&statement).await;
    assert!(setup.log().contains(&format!("process {process} of role \"postgres\"")), "{}", setup.log());
    assert_eq!(pg.psql("SELECT to_regclass('public.rule_webhooks') IS NULL"), "t", "{}", setup.log());
    pg.psql(&statement);
    assert_eq!(setup.wait(crate::support::DEADLINE), 0, "{}", setup.log());
}

#[tokio::test]
async fn five_setups_at_once_take_turns() {
    let pg = Postgres::start().await;
    let mut all: Vec<_> =
        (0..5).map(|_| Walhook::command("setup").env("DATABASE_URL", pg.conninfo()).start()).collect();
    for setup in &mut all {
        assert_eq!(setup.wait(crate::support::DEADLINE), 0, "{}", setup.log());
    }
    eventually("their sessions to be gone", async || {
        (pg.psql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'walhook setup%'") == "0")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_setup_that_waits_for_transactions_of_others_names_them_and_goes_on_at_their_end() {
    let pg = Postgres::start().await;
    let open = pg.client().await;
    open.batch_execute("SET application_name = 'forgotten'; BEGIN; CREATE TEMPORARY TABLE anything ()").await.unwrap();
    let process: i32 = open.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let mut setup = Walhook::command("setup").env("DATABASE_URL", pg.conninfo()).start();
    setup.logged(&format!("process {process} of role \"postgres\", application \"forgotten\"")).await;
    let statement = format!("SELECT pg_terminate_backend({process})");
    assert!(setup.log().contains(&statement), "{}", setup.log());
    // One that is prepared has no process to end.
    let prepared = pg.client().await;
    prepared.batch_execute("BEGIN; CREATE TABLE anything (); PREPARE TRANSACTION 'left'").await.unwrap();
    pg.psql(&statement);
    setup.logged("a prepared transaction (SELECT * FROM pg_prepared_xacts)").await;
    pg.psql("ROLLBACK PREPARED 'left'");
    assert_eq!(setup.wait(crate::support::DEADLINE), 0, "{}", setup.log());
    assert!(setup.log().contains("setup is complete"), "{}", setup.log());
}

#[tokio::test]
async fn a_run_that_waits_for_a_lock_on_its_own_tables_names_who_holds_it() {
    let feed = rows::linked_on(Postgres::set_up().await, Nats::start().await);
    feed.pg.psql("INSERT INTO t VALUES (1)");
    for table in ["rule_webhooks", "rule_nats_checkpoints"] {
        let holder = feed.pg.client().await;
        holder.batch_execute(&format!("SET application_name = 'night job'; BEGIN; LOCK TABLE {table}")).await.unwrap();
        let process: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let mut walhook = feed.run();
        walhook.logged(&format!("process {process} of role \"postgres\", application \"night job\"")).await;
        let statement = format!("SELECT pg_terminate_backend({process})");
        assert!(walhook.log().contains(&statement), "{table}: {}", walhook.log());
        feed.pg.psql(&statement);
        feed.stored(1).await;
        walhook.logged("slot taken").await;
        assert_eq!(walhook.terminate(), 0, "{table}: {}", walhook.log());
    }
}
