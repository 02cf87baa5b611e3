//! `rule_nats_consumer_stats` shows what JetStream counts, beside what workers report, and costs delivery nothing.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;

use async_nats::jetstream::{AckKind, consumer::pull};
use futures_util::StreamExt;
use support::{Nats, Postgres, Walhook, eventually, feed::Feed};

/// `walhook run` that asks ten times a second, or never.
fn run(feed: &Feed, folder: &tempfile::TempDir, interval_ms: u32) -> Walhook {
    let file = folder.path().join("walhook.toml");
    let settings = format!("consumer_stats_interval_ms = {interval_ms}\nstatus_interval_ms = 50");
    std::fs::write(&file, settings).unwrap();
    feed.streamer().arg("--config").arg(file).start()
}

/// All but the consumer that walhook makes for the RFC's workers.
const ROWS: &str = "SELECT string_agg(format('%s %s %s: %s %s %s %s %s %s', stream_name, consumer_name, ack_policy, \
    max_deliver, messages_delivered, messages_acknowledged, messages_pending, messages_redelivered, active), '; ' \
    ORDER BY stream_name, consumer_name) FROM rule_nats_consumer_stats WHERE consumer_name <> 'webhook-worker-1'";

async fn shows(feed: &Feed, rows: &str) {
    eventually(rows, async || (feed.pg.psql(ROWS) == rows).then_some(())).await;
}

#[tokio::test]
async fn durable_consumers_are_counted_as_jetstream_counts_them_until_they_are_gone() {
    let feed = Feed::start().await;
    let folder = tempfile::tempdir().unwrap();
    let webhook = feed.webhook("w");
    let mut walhook = run(&feed, &folder, 100);
    for _ in 0..5 {
        feed.pg.psql(&format!("SELECT rule_webhook_call_unified({webhook}, '{{}}')"));
    }
    feed.stored(5).await;
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    let config =
        |name: &str| pull::Config { durable_name: Some(name.to_owned()), max_deliver: 7, ..pull::Config::default() };
    let worker = stream.create_consumer(config("worker")).await.unwrap();
    stream.create_consumer(pull::Config::default()).await.unwrap();
    let mut messages = worker.fetch().max_messages(3).messages().await.unwrap();
    let mut taken = Vec::new();
    while let Some(message) = messages.next().await {
        taken.push(message.unwrap());
    }
    taken[0].ack().await.unwrap();
    taken[1].ack_with(AckKind::Nak(None)).await.unwrap();
    // The one that was refused comes again when JetStream gets to it, before or behind the others.
    loop {
        let mut more = worker.fetch().max_messages(1).messages().await.unwrap();
        let message = more.next().await.unwrap().unwrap();
        if message.info().unwrap().delivered == 2 {
            break;
        }
    }
    let mut worker = worker;
    let info = worker.info().await.unwrap();
    let (delivered, pending) = (info.delivered.consumer_sequence, info.num_pending + info.num_ack_pending as u64);
    assert_eq!((info.ack_floor.consumer_sequence, pending, info.num_redelivered), (1, 4, 1));
    // The ephemeral one is nobody's.
    let counted = format!("WEBHOOKS worker explicit: 7 {delivered} 1 4 1");
    shows(&feed, &format!("{counted} t")).await;
    assert_eq!(feed.pg.psql("SELECT last_active_at > now() - interval '1 minute' FROM rule_nats_consumer_stats WHERE consumer_name = 'worker'"), "t");

    // A worker's own average stays; the counts are JetStream's, as soon as they change.
    let report = |name: &str| {
        feed.pg.psql(&format!("SELECT rule_nats_consumer_update_stats('WEBHOOKS', '{name}', 99, 98, 97, 12.5)"));
    };
    report("worker");
    report("elsewhere");
    shows(&feed, &format!("WEBHOOKS elsewhere :  99 98 97 0 t; {counted} t")).await;
    let average =
        feed.pg.psql("SELECT avg_processing_time_ms FROM rule_nats_consumer_stats WHERE consumer_name = 'worker'");
    assert_eq!(average, "12.50");

    stream.delete_consumer("worker").await.unwrap();
    shows(&feed, &format!("WEBHOOKS elsewhere :  99 98 97 0 t; {counted} f")).await;
    // More than one page of them.
    for index in 0..300 {
        stream.create_consumer(config(&format!("many{index}"))).await.unwrap();
    }
    let many = "SELECT count(*) FROM rule_nats_consumer_stats WHERE consumer_name LIKE 'many%' AND active";
    eventually("300 consumers", async || (feed.pg.psql(many) == "300").then_some(())).await;
    assert!(!walhook.log().contains("WARN"), "{}", walhook.log());
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_user_who_may_not_list_consumers_gets_one_warning_and_delivers_all_the_same() {
    let config = "authorization { users: [ { user: u, password: p, permissions: { publish: { deny: \"$JS.API.CONSUMER.>\" } } } ] }";
    let feed = Feed::on(Postgres::set_up().await, Nats::builder().config(config).start().await);
    let folder = tempfile::tempdir().unwrap();
    let webhook = feed.webhook("w");
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = 'nats://u:p@127.0.0.1:{}'", feed.nats.port()));
    let mut walhook = run(&feed, &folder, 100);
    walhook.logged("CONSUMER.LIST.WEBHOOKS").await;
    let asked = tokio::time::Instant::now();
    while asked.elapsed() < Duration::from_millis(500) {
        feed.pg.psql(&format!("SELECT rule_webhook_call_unified({webhook}, '{{}}')"));
    }
    feed.confirmed().await;
    let log = walhook.log();
    assert_eq!(log.matches("rule_nats_consumer_stats stays as it is").count(), 1, "{log}");
    assert_eq!(walhook.terminate(), 0, "{log}");
}

#[tokio::test]
async fn a_table_of_consumers_that_is_locked_or_gone_holds_up_neither_events_nor_dead_letters() {
    let feed = Feed::start().await;
    let folder = tempfile::tempdir().unwrap();
    let webhook = feed.webhook("w");
    let lock = feed.pg.client().await;
    lock.batch_execute("BEGIN; LOCK rule_nats_consumer_stats").await.unwrap();
    let mut walhook = run(&feed, &folder, 100);
    walhook.logged("rule_nats_consumer_stats").await;
    feed.pg.psql(&format!("SELECT rule_webhook_call_unified({webhook}, '{{}}')"));
    feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (99, '{}')");
    feed.confirmed().await;
    lock.batch_execute("ROLLBACK; DROP TABLE rule_nats_consumer_stats").await.unwrap();
    feed.pg.psql(&format!("SELECT rule_webhook_call_unified({webhook}, '{{}}')"));
    feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (99, '{}')");
    walhook.logged("does not exist").await;
    feed.confirmed().await;
    assert_eq!(
        (feed.messages().await.len(), feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters")),
        (2, "2".to_owned())
    );
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn of_two_streams_of_one_name_the_default_configurations_is_shown_and_that_is_said() {
    let feed = Feed::start().await;
    let other = Nats::start().await;
    let folder = tempfile::tempdir().unwrap();
    feed.webhook("w");
    feed.pg.psql(&format!("SELECT rule_nats_configure('other', '{}', p_stream_name => 'WEBHOOKS')", other.url()));
    let mut walhook = run(&feed, &folder, 100);
    walhook.logged("two NATS configurations have a stream").await;
    for (nats, name) in [(&other, "there"), (&feed.nats, "here")] {
        let stream = nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
        let config = pull::Config { durable_name: Some(name.to_owned()), ..pull::Config::default() };
        stream.create_consumer(config).await.unwrap();
    }
    shows(&feed, "WEBHOOKS here explicit: -1 0 0 0 0 t").await;
    let log = walhook.log();
    assert_eq!(log.matches("shows the consumers of \"default\"'s and not of \"other\"'s").count(), 1, "{log}");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}
