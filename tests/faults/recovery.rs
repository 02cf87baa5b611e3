//! Whatever dies, stops or stalls: every committed row arrives once, in order, and the slot never runs ahead.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::{
    Nats, Postgres, Walhook, eventually,
    feed::Feed,
    rows::{exactly, taken},
};

/// A feed whose table `t` is linked to a webhook.
async fn linked() -> Feed {
    linked_on(Postgres::set_up().await, Nats::start().await)
}

fn linked_on(pg: Postgres, nats: Nats) -> Feed {
    let feed = Feed::on(pg, nats);
    let id = feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({id}, 't')"));
    feed
}

/// Rows `from..to`, in transactions of some rows each, for recovery has to cope with both edges.
fn insert(feed: &Feed, from: i64, to: i64) {
    let mut at = from;
    let mut size = 1;
    while at < to {
        let end = to.min(at + size);
        feed.pg.psql(&format!("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({at}, {}) i", end - 1));
        at = end;
        size = size * 3 % 101 + 1;
    }
}

/// The same; returns a place in the WAL before the last row, for [`received`].
fn insert_to_be_received(feed: &Feed, from: i64, to: i64) -> String {
    insert(feed, from, to - 1);
    let before_last = feed.pg.psql("SELECT pg_current_wal_lsn()");
    insert(feed, to - 1, to);
    before_last
}

/// Waits until walhook has read more than that.
async fn received(feed: &Feed, before_last: &str) {
    eventually("the rows to be received", async || {
        let asked = format!("SELECT write_lsn > '{before_last}' FROM pg_stat_replication");
        (feed.pg.psql(&asked) == "t").then_some(())
    })
    .await;
}

async fn ids(feed: &Feed) -> Vec<i64> {
    feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect()
}

fn ended_well(walhook: &mut Walhook) {
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// What a peak of memory was, in KiB.
fn peak_rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn postgresql_killed_and_restarted_sends_confirmed_rows_again_and_none_is_doubled() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 0, 300);
    feed.confirmed().await;
    let before = feed.pg.psql("SELECT confirmed_flush_lsn FROM pg_replication_slots");
    // Nothing has written a checkpoint since the slot was made, so the slot's position on disk is an old one.
    feed.pg.kill9();
    feed.pg.restart().await;
    let rewound = feed.pg.psql(&format!(
        "SELECT confirmed_flush_lsn < '{before}' OR active FROM pg_replication_slots WHERE slot_name = 'walhook'"
    ));
    assert_eq!(rewound, "t", "the crash takes the slot back");
    insert(&feed, 300, 400);
    exactly(&feed, 400).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn postgresql_killed_in_the_midst_of_a_backlog_loses_and_doubles_nothing() {
    let feed = linked().await;
    insert(&feed, 0, 5000);
    let mut walhook = feed.run();
    for part in [500, 2000] {
        taken(&feed, part).await;
        feed.pg.kill9();
        feed.pg.restart().await;
    }
    insert(&feed, 5000, 5100);
    exactly(&feed, 5100).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn postgresql_stopped_for_a_while_is_waited_for() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 0, 100);
    taken(&feed, 100).await;
    feed.pg.stop();
    walhook.logged("retry_in_ms").await;
    feed.pg.restart().await;
    insert(&feed, 100, 200);
    exactly(&feed, 200).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_walsender_that_is_terminated_is_replaced() {
    let feed = linked().await;
    let mut walhook = feed.run();
    for round in 0..5 {
        insert(&feed, round * 200, (round + 1) * 200);
        eventually("a walsender to terminate", async || {
            let terminated = feed
                .pg
                .psql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL");
            (terminated == "t").then_some(())
        })
        .await;
    }
    exactly(&feed, 1000).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn every_other_connection_of_walhook_terminated_too_is_made_again() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 0, 100);
    taken(&feed, 100).await;
    feed.pg.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'walhook%'");
    insert(&feed, 100, 150);
    // An event that needs the SQL connection.
    feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (99, '{}')");
    insert(&feed, 150, 200);
    exactly(&feed, 200).await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "1");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn nats_killed_and_restarted_under_load_loses_and_doubles_nothing() {
    let feed = Arc::new(linked().await);
    let mut walhook = feed.run();
    let load = tokio::task::spawn_blocking({
        let feed = Arc::clone(&feed);
        move || insert(&feed, 0, 3000)
    });
    for round in 1..=4 {
        taken(&feed, round * 300).await;
        feed.nats.kill9();
        feed.nats.restart().await;
    }
    load.await.unwrap();
    exactly(&feed, 3000).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn nats_that_is_down_at_the_start_is_waited_for_and_the_log_says_so_once() {
    let feed = linked().await;
    feed.nats.stop();
    let mut walhook = feed.run();
    let last = insert_to_be_received(&feed, 0, 100);
    walhook.logged("WEBHOOKS").await;
    received(&feed, &last).await;
    let ahead = feed.pg.psql("SELECT confirmed_flush_lsn >= pg_current_wal_lsn() FROM pg_replication_slots");
    assert_eq!(ahead, "f", "nothing is confirmed that no stream has");
    feed.nats.restart().await;
    exactly(&feed, 100).await;
    let log = walhook.log();
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn an_outage_longer_than_the_duplicate_window_with_a_kill_in_it_doubles_nothing() {
    let feed = linked().await;
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql("UPDATE rule_nats_streams SET duplicate_window_seconds = 1");
    let mut walhook = feed.run();
    insert(&feed, 0, 2000);
    taken(&feed, 700).await;
    feed.nats.kill9();
    walhook.kill9();
    insert(&feed, 2000, 2100);
    let down = Instant::now();
    eventually("the duplicate window to pass", async || (down.elapsed() > Duration::from_secs(2)).then_some(())).await;
    feed.nats.restart().await;
    let mut walhook = feed.run();
    exactly(&feed, 2100).await;
    let window =
        feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap().cached_info().config.duplicate_window;
    assert_eq!(window, Duration::from_secs(1), "the ids were forgotten; the order kept us");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_second_walhook_waits_says_so_once_and_takes_over() {
    let feed = linked().await;
    let mut first = feed.run();
    insert(&feed, 0, 100);
    taken(&feed, 100).await;
    let mut second = feed.run();
    second.logged("waiting to take over").await;
    insert(&feed, 100, 1000);
    first.kill9();
    let killed = Instant::now();
    second.logged("slot taken").await;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    insert(&feed, 1000, 1100);
    exactly(&feed, 1100).await;
    let log = second.log();
    assert_eq!(log.matches("waiting to take over").count(), 1, "{log}");
    assert_eq!(feed.pg.psql("SELECT epoch FROM rule_nats_checkpoints WHERE stream_name = ''"), "2");
    ended_well(&mut second);
}

#[tokio::test]
async fn a_walhook_that_waits_for_the_slot_ends_at_once_when_told_to() {
    let feed = linked().await;
    let mut first = feed.run();
    first.logged("slot taken").await;
    let mut second = feed.run();
    second.logged("waiting to take over").await;
    ended_well(&mut second);
    ended_well(&mut first);
}

#[tokio::test]
async fn a_walhook_that_was_frozen_while_another_took_over_publishes_nothing_more() {
    let pg = Postgres::builder().conf("wal_sender_timeout = 2s").set_up().start().await;
    let feed = linked_on(pg, Nats::start().await);
    let mut frozen = feed.run();
    insert(&feed, 0, 200);
    taken(&feed, 200).await;
    // Rows that it has received but not published when it freezes.
    feed.nats.pause();
    let last = insert_to_be_received(&feed, 200, 400);
    received(&feed, &last).await;
    frozen.pause();
    feed.nats.resume();
    let mut second = feed.run();
    second.logged("slot taken").await;
    insert(&feed, 400, 600);
    feed.confirmed().await;
    frozen.resume();
    insert(&feed, 600, 800);
    // It is either told by the stream that a newer run publishes, or waits for the slot.
    let left = eventually("the frozen one to see what happened", async || match frozen.exited() {
        Some(status) => Some(status.code()),
        None => frozen.log().contains("waiting to take over").then_some(None),
    })
    .await;
    assert!(left.is_none_or(|code| code == 5), "{left:?}\n{}", frozen.log());
    exactly(&feed, 800).await;
    let epochs: Vec<_> =
        feed.messages().await.iter().map(|message| message.header("Walhook-Epoch").to_owned()).collect();
    assert!(epochs.is_sorted(), "{epochs:?}");
    ended_well(&mut second);
}

#[tokio::test]
async fn sigterm_under_load_drains_and_what_is_confirmed_is_stored() {
    let feed = linked().await;
    insert(&feed, 0, 4000);
    let mut walhook = feed.run();
    taken(&feed, 300).await;
    let asked = Instant::now();
    ended_well(&mut walhook);
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(25), "{took:?}");
    let stored = ids(&feed).await;
    assert_eq!(stored, (0..i64::try_from(stored.len()).unwrap()).collect::<Vec<_>>());
    let left: usize = feed
        .pg
        .psql(
            "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('walhook', NULL, NULL, 'proto_version', '1', \
                 'publication_names', 'walhook_inserts,walhook_changes') WHERE get_byte(data, 0) = ascii('I')",
        )
        .parse()
        .unwrap();
    assert!(stored.len() + left >= 4000, "{} rows are stored and {left} are unconfirmed", stored.len());
    let mut walhook = feed.run();
    exactly(&feed, 4000).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_shutdown_waits_for_acks_that_are_late_and_a_second_signal_does_not() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 0, 100);
    feed.confirmed().await;
    feed.nats.pause();
    let last = insert_to_be_received(&feed, 100, 200);
    received(&feed, &last).await;
    walhook.signal(Signal::TERM);
    walhook.logged("stopping").await;
    assert!(walhook.exited().is_none());
    walhook.signal(Signal::TERM);
    assert_eq!(walhook.wait(Duration::from_secs(5)), 1);
    // The next one is patient.
    let mut walhook = feed.run();
    received(&feed, &last).await;
    walhook.signal(Signal::TERM);
    walhook.logged("stopping").await;
    feed.nats.resume();
    assert_eq!(walhook.wait(Duration::from_secs(25)), 0, "{}", walhook.log());
    let mut walhook = feed.run();
    exactly(&feed, 200).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_shutdown_before_postgresql_or_nats_can_be_reached_is_immediate() {
    let feed = linked().await;
    feed.pg.stop();
    let mut walhook = feed.run();
    walhook.logged("retry_in_ms").await;
    ended_well(&mut walhook);
    feed.pg.restart().await;
    feed.nats.stop();
    let mut walhook = feed.run();
    walhook.logged("WARN").await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_huge_transaction_before_a_stalled_stream_keeps_the_connection_and_little_memory() {
    let pg = Postgres::builder().conf("wal_sender_timeout = 2s").set_up().start().await;
    let feed = linked_on(pg, Nats::start().await);
    let mut walhook = feed.run();
    walhook.logged("stream opened").await;
    let walsender = feed.pg.psql("SELECT active_pid FROM pg_replication_slots");
    // The rows of its history would take longer than the test.
    feed.pg.psql("UPDATE rule_nats_config SET history = 'off'");
    feed.pg.psql("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(0, 199999) i");
    taken(&feed, 1000).await;
    feed.nats.pause();
    let stalled = Instant::now();
    eventually("more than two timeouts to pass", async || (stalled.elapsed() > Duration::from_secs(5)).then_some(()))
        .await;
    feed.nats.resume();
    taken(&feed, 200_000).await;
    feed.confirmed().await;
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    for sequence in (1..=200_000).step_by(997) {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let payload: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(payload["data"]["id"], sequence - 1);
    }
    assert_eq!(feed.pg.psql("SELECT active_pid FROM pg_replication_slots"), walsender, "{}", walhook.log());
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 200_000);
    let peak = peak_rss_kib(walhook.pid());
    assert!(peak < 100 * 1024, "{peak} KiB");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_quiet_linked_table_beside_busy_ones_does_not_hold_the_slot_back() {
    let feed = linked().await;
    feed.pg.psql("CREATE TABLE busy (id int)");
    let mut walhook = feed.run();
    for _ in 0..3 {
        feed.pg.psql("INSERT INTO busy SELECT generate_series(1, 10000)");
        feed.confirmed().await;
    }
    insert(&feed, 0, 1);
    feed.pg.psql("INSERT INTO busy SELECT generate_series(1, 10000)");
    exactly(&feed, 1).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_stream_that_was_purged_is_gone_on_with_and_nothing_comes_twice() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 0, 100);
    feed.confirmed().await;
    ended_well(&mut walhook);
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    stream.purge().await.unwrap();
    // The crash takes the slot back, so the old rows come again, and no tail tells that the stream had them.
    feed.pg.kill9();
    feed.pg.restart().await;
    let mut walhook = feed.run();
    insert(&feed, 100, 200);
    feed.confirmed().await;
    assert_eq!(ids(&feed).await, (100..200).collect::<Vec<_>>());
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 200);
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_stream_that_was_deleted_ends_walhook_with_the_code_for_distrust_until_somebody_accepts_it() {
    let feed = linked().await;
    let jetstream = feed.nats.jetstream().await;
    for is_running in [false, true] {
        let mut walhook = feed.run();
        insert(&feed, 0, 100);
        feed.confirmed().await;
        if is_running {
            // The checkpoint is written a moment after the slot has moved.
            let written = "SELECT count(*) FROM rule_nats_checkpoints WHERE stream_name = 'WEBHOOKS'";
            eventually("the checkpoint", async || (feed.pg.psql(written) == "1").then_some(())).await;
            jetstream.delete_stream("WEBHOOKS").await.unwrap();
            feed.pg.psql("INSERT INTO t VALUES (1000)");
        } else {
            ended_well(&mut walhook);
            jetstream.delete_stream("WEBHOOKS").await.unwrap();
            walhook = feed.run();
        }
        assert_eq!(walhook.wait(Duration::from_secs(30)), 3, "{}", walhook.log());
        let log = walhook.log();
        let last = log.lines().last().unwrap();
        for word in ["WEBHOOKS", "message 100", "made anew"] {
            assert!(last.contains(word), "no {word:?} in {last}");
        }
        // The statement that it prints forgets this stream for this source and these servers, and nothing else.
        let printed = &last[last.find("DELETE FROM rule_nats_checkpoints").unwrap()..];
        let statement = &printed[..=printed.find(';').unwrap()];
        let others = "SELECT count(*) FROM rule_nats_checkpoints WHERE stream_name = 'WEBHOOKS'";
        feed.pg.psql(
            "INSERT INTO rule_nats_checkpoints (source, config_name, stream_name, servers, epoch) \
             SELECT s, config_name, stream_name, v, 1 FROM rule_nats_checkpoints, \
                    LATERAL (VALUES ('other', servers), (source, 'nats://old:4222')) o (s, v) WHERE source = 'walhook' AND stream_name = 'WEBHOOKS'",
        );
        assert_eq!(feed.pg.psql(others), "3");
        feed.pg.psql(statement);
        assert_eq!(feed.pg.psql(others), "2");
        feed.pg.psql("DELETE FROM rule_nats_checkpoints WHERE source = 'other' OR servers = 'nats://old:4222'");
        feed.pg.psql("TRUNCATE t");
    }
    let mut walhook = feed.run();
    feed.confirmed().await;
    assert_eq!(ids(&feed).await, [1000]);
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_stream_that_was_set_back_ends_walhook_with_the_code_for_distrust() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 0, 100);
    feed.confirmed().await;
    ended_well(&mut walhook);
    feed.nats.stop();
    let backup = tempfile::tempdir().unwrap();
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy(&feed.nats.store_dir(), &backup.path().join("store"));
    feed.nats.restart().await;
    let mut walhook = feed.run();
    insert(&feed, 100, 200);
    feed.confirmed().await;
    ended_well(&mut walhook);
    feed.nats.stop();
    copy(&backup.path().join("store"), &feed.nats.store_dir());
    feed.nats.restart().await;
    let mut walhook = feed.run();
    assert_eq!(walhook.wait(Duration::from_secs(30)), 3, "{}", walhook.log());
    let log = walhook.log();
    assert!(log.lines().last().unwrap().contains("it ends at message 100 now"), "{log}");
}

#[tokio::test]
async fn a_stream_in_memory_that_was_lost_with_its_server_is_begun_anew_with_a_warning() {
    let feed = linked().await;
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql("UPDATE rule_nats_streams SET storage_type = 'memory'");
    let mut walhook = feed.run();
    insert(&feed, 0, 100);
    feed.confirmed().await;
    feed.nats.kill9();
    feed.nats.restart().await;
    insert(&feed, 100, 200);
    feed.confirmed().await;
    assert_eq!(ids(&feed).await, (100..200).collect::<Vec<_>>());
    assert!(walhook.log().contains("made anew"), "{}", walhook.log());
    ended_well(&mut walhook);
}
