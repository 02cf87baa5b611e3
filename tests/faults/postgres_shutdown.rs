//! PostgreSQL's fast shutdown: walhook publishes and confirms the rest before the walsender goes, though its SQL connections went first;
//! and what it cannot confirm holds no shutdown up.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    thread::JoinHandle,
};

use support::{
    Nats, Postgres, eventually,
    feed::Feed,
    rows::{ended_well, exactly, insert, linked_on, taken},
};

/// Rows of table `t` as fast as they go, one transaction each, until the server ends the connection.
struct Load {
    committed: Arc<AtomicI64>,
    writer: JoinHandle<()>,
}

impl Load {
    fn start(pg: &Postgres, from: i64) -> Load {
        let committed = Arc::new(AtomicI64::new(from));
        let (conninfo, count) = (pg.conninfo(), Arc::clone(&committed));
        let writing = async move {
            let (client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            loop {
                let next = count.load(Ordering::SeqCst);
                let inserted = client.batch_execute(&format!("INSERT INTO t VALUES ({next}, repeat('x', 100))")).await;
                if inserted.is_err() {
                    return;
                }
                count.store(next + 1, Ordering::SeqCst);
            }
        };
        Load { committed, writer: std::thread::spawn(|| support::runtime().block_on(writing)) }
    }

    /// Waits for so many rows.
    async fn has_committed(&self, upto: i64) {
        eventually("the load to go on", async || (self.committed.load(Ordering::SeqCst) >= upto).then_some(())).await;
    }
}

/// Holds locks so that a statement of walhook's own SQL connection is under way, and stays so. The lock goes with the server.
async fn statement_under_way(feed: &Feed) -> tokio_postgres::Client {
    let holder = feed.pg.client().await;
    holder.batch_execute("BEGIN; LOCK TABLE rule_cdc_status, rule_nats_checkpoints").await.unwrap();
    eventually("a statement of walhook's to wait for the lock", async || {
        let waits = "SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                     WHERE NOT l.granted AND a.usename = 'walhook_streamer'";
        (feed.pg.psql(waits) == "t").then_some(())
    })
    .await;
    holder
}

/// How many changes of rows the slot would send again.
fn left_to_send(pg: &Postgres) -> String {
    pg.psql(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('walhook', NULL, NULL, 'proto_version', '1', \
             'publication_names', 'walhook_inserts,walhook_changes') WHERE chr(get_byte(data, 0)) IN ('I', 'U', 'D', 'T')",
    )
}

/// Each row that was committed is in the stream, once and in order.
async fn each_once(feed: &Feed) {
    let rows = feed.pg.psql("SELECT count(*) FROM t").parse().unwrap();
    exactly(feed, rows).await;
}

#[tokio::test]
async fn a_fast_shutdown_under_load_leaves_nothing_in_the_slot_though_sql_goes_first() {
    // Before 17 PostgreSQL itself forgets at a shutdown what was confirmed last.
    for version in ["17", "18"] {
        let feed = linked_on(Postgres::builder().version(version).set_up().start().await, Nats::start().await);
        feed.pg.psql("UPDATE rule_nats_config SET history = 'off'");
        // Another server behind the same settings takes connections all the time: that says nothing of the first one.
        let other = Postgres::start().await;
        let [port, second] = [feed.pg.port(), other.port()];
        let conninfo = format!("host=127.0.0.1,127.0.0.1 port={port},{second} dbname=postgres user=walhook_streamer");
        let mut walhook = feed.command("run").env("DATABASE_URL", conninfo).start();
        insert(&feed.pg, 0, 50);
        taken(&feed, 50).await;
        let _holder = statement_under_way(&feed).await;
        let load = Load::start(&feed.pg, 50);
        load.has_committed(500).await;
        feed.pg.stop();
        load.writer.join().unwrap();
        // The session ended by that, and not with its SQL connection.
        eventually("the end of the stream in walhook's log", async || {
            walhook.log().contains("the server ended the stream").then_some(())
        })
        .await;
        // Before it can read the slot again.
        walhook.kill9();
        feed.pg.restart().await;
        assert_eq!(left_to_send(&feed.pg), "0", "PostgreSQL {version}: {}", walhook.log());
        let mut walhook = feed.run();
        each_once(&feed).await;
        ended_well(&mut walhook);
    }
}

#[tokio::test]
async fn rows_of_the_history_that_a_shutdown_cuts_off_are_written_after_it_and_nothing_is_stored_twice() {
    for version in ["14", "18"] {
        let feed = linked_on(Postgres::builder().version(version).set_up().start().await, Nats::start().await);
        let mut walhook = feed.run();
        insert(&feed.pg, 0, 50);
        taken(&feed, 50).await;
        let load = Load::start(&feed.pg, 50);
        load.has_committed(500).await;
        feed.pg.stop();
        load.writer.join().unwrap();
        feed.pg.restart().await;
        each_once(&feed).await;
        let rows = feed.pg.psql("SELECT count(*) FROM t");
        let history = "SELECT count(*), count(DISTINCT sequence_number) FROM rule_nats_publish_history WHERE success";
        assert_eq!(feed.pg.psql(history), format!("{rows}|{rows}"), "PostgreSQL {version}");
        ended_well(&mut walhook);
    }
}

#[tokio::test]
async fn a_shutdown_is_not_held_up_by_a_full_window_and_a_stream_that_takes_nothing() {
    let feed = linked_on(Postgres::set_up().await, Nats::start().await);
    let mut walhook = feed.streamer().env("WALHOOK_WINDOW_EVENTS", "20").start();
    insert(&feed.pg, 0, 50);
    taken(&feed, 50).await;
    feed.nats.kill9();
    insert(&feed.pg, 50, 500);
    // It reads nothing then, not even that the server asks for an answer; `stop` fails if the server waits for it.
    feed.pg.stop();
    walhook.logged("PostgreSQL is shutting down; unconfirmed events will be sent again when it is back").await;
    feed.nats.restart().await;
    feed.pg.restart().await;
    exactly(&feed, 500).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn an_sql_connection_that_is_ended_while_the_server_goes_on_begins_a_new_session() {
    let feed = linked_on(Postgres::set_up().await, Nats::start().await);
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 50);
    taken(&feed, 50).await;
    for round in 1..4 {
        // Of the walsender nothing is ended.
        let ended = feed.pg.psql(
            "SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity \
             WHERE usename = 'walhook_streamer' AND backend_type = 'client backend'",
        );
        assert_eq!(ended, "t");
        insert(&feed.pg, round * 50, (round + 1) * 50);
        eventually("the next session", async || {
            (walhook.log().matches("slot taken").count() > usize::try_from(round).unwrap()).then_some(())
        })
        .await;
        assert!(!walhook.log().contains("PostgreSQL is shutting down"), "{}", walhook.log());
    }
    exactly(&feed, 200).await;
    ended_well(&mut walhook);
}
