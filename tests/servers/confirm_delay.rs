//! A NATS that forgets what it acknowledged last, against a slot that still has it.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use support::{Nats, Walhook, eventually, feed::Feed};

/// A feed whose table `t` is linked to a webhook.
async fn linked() -> Feed {
    let feed = Feed::start().await;
    let id = feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({id}, 't')"));
    feed
}

fn run(feed: &Feed, seconds: u32) -> Walhook {
    feed.streamer().args(["--confirm-delay-seconds", &seconds.to_string()]).start()
}

fn insert(feed: &Feed, from: u64, to: u64) {
    for id in (from..to).step_by(10) {
        feed.pg.psql(&format!("INSERT INTO t SELECT generate_series({id}, {})", id + 9));
    }
}

/// Rows `0..count` are in the stream: each once, in order, and nothing else.
async fn exactly(feed: &Feed, count: u64) {
    let messages = feed.stored(count).await;
    let ids: Vec<_> = messages.iter().map(|message| message.data()["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (0..count).collect::<Vec<_>>());
    assert_eq!(feed.last_sequence("WEBHOOKS").await, count, "nothing was stored and removed");
}

/// The checkpoint's row knows of so many messages.
async fn known(feed: &Feed, sequence: u64) {
    let asked = format!("SELECT count(*) FROM rule_nats_checkpoints WHERE sequence = {sequence} AND stream_name <> ''");
    eventually(&format!("message {sequence} in the checkpoint"), async || (feed.pg.psql(&asked) == "1").then_some(()))
        .await;
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// What is in the stream so far is on the disk, whatever comes.
async fn synced(feed: &Feed, backup: &Path) {
    feed.nats.stop();
    copy(&feed.nats.store_dir(), backup);
    feed.nats.restart().await;
}

/// nats-server dies as in a power cut that takes what it had not synced: its folder is what it was.
async fn forgets(feed: &Feed, backup: &Path) {
    feed.nats.kill9();
    copy(backup, &feed.nats.store_dir());
    feed.nats.restart().await;
}

/// Messages of another writer, as a strict stream should not have them.
async fn others(feed: &Feed, count: u64) {
    let jetstream = feed.nats.jetstream().await;
    for _ in 0..count {
        jetstream.publish("webhooks.other", r#"{"data":{}}"#.into()).await.unwrap().await.unwrap();
    }
}

/// Rows `0..all` are in the stream, of which those before `first` are on the disk, whatever comes: [`forgets`] goes back to them.
async fn half_synced(feed: &Feed, backup: &Path, first: u64, all: u64) {
    insert(feed, 0, first);
    exactly(feed, first).await;
    synced(feed, backup).await;
    insert(feed, first, all);
    exactly(feed, all).await;
}

#[tokio::test]
async fn a_stream_that_forgets_what_the_slot_still_has_is_filled_again_loudly_and_nothing_is_lost_or_doubled() {
    let feed = linked().await;
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("store");
    let mut walhook = run(&feed, 3600);
    half_synced(&feed, &backup, 100, 200).await;

    // Under a walhook that goes on running …
    forgets(&feed, &backup).await;
    walhook.logged("what it has lost the slot still has").await;
    insert(&feed, 200, 300);
    exactly(&feed, 300).await;
    known(&feed, 300).await;
    let began = Instant::now();
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert!(began.elapsed() < Duration::from_secs(1800), "a shutdown does not wait for the delay");

    // … and beside one that was away.
    forgets(&feed, &backup).await;
    let mut walhook = run(&feed, 3600);
    walhook.logged("it had taken message 300 and ends at 100 now").await;
    exactly(&feed, 300).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());

    // All of it is in the history, once.
    let history = "SELECT count(*), count(DISTINCT sequence_number) FROM rule_nats_publish_history WHERE success";
    assert_eq!(feed.pg.psql(history), "300|300");
}

#[tokio::test]
async fn a_shutdown_of_postgresql_does_not_wait_for_the_delay() {
    let feed = linked().await;
    let mut walhook = run(&feed, 3600);
    insert(&feed, 0, 50);
    exactly(&feed, 50).await;
    // A shutdown waits for our confirmation, and the test's `stop` not for ever. What ends the session first, the insistence
    // of PostgreSQL or a statement of ours that it breaks off, is a matter of chance.
    feed.pg.stop();
    feed.pg.restart().await;
    insert(&feed, 50, 100);
    exactly(&feed, 100).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn after_the_delay_a_commit_is_confirmed_and_a_stream_that_forgets_it_then_is_not_trusted() {
    let feed = linked().await;
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("store");
    let mut walhook = run(&feed, 1);
    insert(&feed, 0, 50);
    feed.confirmed().await;
    synced(&feed, &backup).await;
    insert(&feed, 50, 100);
    feed.confirmed().await;
    // An idle slot moves on as well.
    feed.pg.psql("CREATE TABLE unlinked AS SELECT generate_series(1, 1000)");
    feed.confirmed().await;
    let kept = "SELECT kept_sequence FROM rule_nats_checkpoints WHERE stream_name <> ''";
    assert_eq!(feed.pg.psql(kept), "100", "nothing is confirmed that the checkpoint does not ask of the stream");

    forgets(&feed, &backup).await;
    assert_eq!(walhook.wait(Duration::from_secs(60)), 3, "{}", walhook.log());
    let mut walhook = run(&feed, 1);
    assert_eq!(walhook.wait(Duration::from_secs(60)), 3, "{}", walhook.log());
    assert!(walhook.log().contains("it ends at message 50 now"), "{}", walhook.log());
}

#[tokio::test]
async fn another_writers_message_in_the_place_of_one_that_was_forgotten_does_not_pass_for_it() {
    let feed = linked().await;
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql("UPDATE rule_nats_streams SET ordering = 'shared'");
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("store");
    let mut walhook = run(&feed, 5);
    half_synced(&feed, &backup, 50, 60).await;
    walhook.pause();
    forgets(&feed, &backup).await;
    others(&feed, 20).await;
    walhook.resume();
    walhook.logged("has another one in its place now").await;
    feed.stored(80).await;
    let mut ids: Vec<_> = feed.messages().await.iter().filter_map(|message| message.data()["id"].as_u64()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..60).collect::<Vec<_>>());
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// Rows `0..count` are among `messages` in the stream, each once and in order.
async fn each_once(feed: &Feed, count: u64, messages: u64) {
    feed.stored(messages).await;
    let ids: Vec<_> = feed.messages().await.iter().filter_map(|message| message.data()["id"].as_u64()).collect();
    assert_eq!(ids, (0..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_strict_stream_that_forgets_and_takes_others_messages_in_that_place_is_filled_again() {
    let feed = linked().await;
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("store");
    let mut walhook = run(&feed, 3600);
    half_synced(&feed, &backup, 50, 60).await;
    known(&feed, 60).await;

    // Under a walhook that goes on running …
    walhook.pause();
    forgets(&feed, &backup).await;
    others(&feed, 20).await;
    walhook.resume();
    walhook.logged("has another one in its place now; what it has lost the slot still has").await;
    each_once(&feed, 60, 80).await;
    synced(&feed, &backup).await;
    insert(&feed, 60, 70);
    feed.stored(90).await;
    known(&feed, 90).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());

    // … and beside one that was away.
    forgets(&feed, &backup).await;
    others(&feed, 20).await;
    let mut walhook = run(&feed, 3600);
    walhook.logged("it had taken message 90 and has another one in its place now").await;
    each_once(&feed, 70, 110).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn without_a_delay_others_messages_in_the_place_of_forgotten_ones_do_not_hide_the_loss() {
    let feed = linked().await;
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("store");
    let mut walhook = feed.streamer().start();
    half_synced(&feed, &backup, 50, 60).await;
    known(&feed, 60).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    forgets(&feed, &backup).await;
    others(&feed, 20).await;
    let check = feed.command("check").env("DATABASE_URL", feed.streamer_conninfo()).finish();
    assert!(check.stdout.contains("it has another message in its"), "{check:?}");
    let mut walhook = feed.streamer().start();
    assert_eq!(walhook.wait(Duration::from_secs(60)), 3, "{}", walhook.log());
    assert!(walhook.log().contains("it has another message in its place"), "{}", walhook.log());
}

/// A stream to which nothing leads any more has to keep what is not confirmed yet, and is asked for it.
#[tokio::test]
async fn a_stream_to_which_nothing_leads_any_more_holds_up_no_confirmation() {
    let feed = linked().await;
    let elsewhere = Nats::start().await;
    let away = [
        "UPDATE rule_nats_config SET jetstream_enabled = false".to_owned(),
        format!("UPDATE rule_nats_config SET nats_url = '{}', jetstream_enabled = true", elsewhere.url()),
        "INSERT INTO rule_nats_streams (config_id, stream_name, subjects, enabled) VALUES (1, 'WEBHOOKS', '{webhooks.>}', false);
         UPDATE rule_webhooks SET enabled = false"
            .to_owned(),
    ];
    let mut count = 0;
    for sql in away {
        let mut walhook = run(&feed, 3);
        insert(&feed, count, count + 10);
        count += 10;
        eventually("the rows in a stream", async || {
            let stored = "SELECT count(*) FROM rule_nats_publish_history WHERE success";
            (feed.pg.psql(stored) == count.to_string()).then_some(())
        })
        .await;
        feed.pg.psql(&sql);
        feed.confirmed().await;
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    }
}

/// The same where a later run finds the stream so.
#[tokio::test]
async fn a_run_that_begins_before_its_stream_was_left_holds_up_no_confirmation() {
    let feed = linked().await;
    let mut walhook = run(&feed, 3600);
    insert(&feed, 0, 10);
    exactly(&feed, 10).await;
    feed.pg.psql("UPDATE rule_nats_config SET jetstream_enabled = false");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let mut walhook = run(&feed, 1);
    feed.confirmed().await;
    exactly(&feed, 10).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}
