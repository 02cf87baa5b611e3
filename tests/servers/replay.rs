//! Going back in a stream: what was published since an LSN or a time is published again elsewhere, or a consumer is set to it.

#![allow(clippy::unwrap_used)]

use crate::support;

use async_nats::jetstream::{self, consumer::PullConsumer};
use futures_util::StreamExt;
use serde_json::{Value, json};
use support::{DEADLINE, eventually, feed::Feed, walhook::Finished};

/// Table `t` linked to webhook 1, and `u` to webhook 2; rows 1 to `rows` of `t` published, a transaction each.
async fn fed(rows: u32) -> (Feed, support::Walhook) {
    let feed = Feed::start().await;
    feed.webhook("w");
    feed.webhook("v");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE u (id int PRIMARY KEY)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't'), rule_webhook_link_table(2, 'u')");
    let walhook = feed.run();
    for id in 1..=rows {
        feed.pg.psql(&format!("INSERT INTO t VALUES ({id})"));
    }
    feed.stored(rows.into()).await;
    (feed, walhook)
}

fn walhook(feed: &Feed, verb: &str, arguments: &[&str], code: i32) -> Finished {
    let finished = feed.command(verb).args(arguments).finish();
    assert_eq!(finished.code, Some(code), "{verb} {arguments:?}: {finished:?}");
    finished
}

fn replay(feed: &Feed, arguments: &[&str]) -> Finished {
    walhook(feed, "replay", &[&["--create-stream", "REPLAY"], arguments].concat(), 0)
}

fn lsn_of(message: &support::feed::Message) -> &str {
    message.payload["event"]["lsn"].as_str().unwrap()
}

fn time_of(message: &support::feed::Message) -> &str {
    message.payload["event"]["commit_time"].as_str().unwrap()
}

async fn ids(feed: &Feed, stream: &str) -> Vec<i64> {
    feed.messages_of(stream).await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn what_was_published_since_an_lsn_or_a_time_comes_again_in_its_order_under_the_prefix() {
    let (feed, mut streamer) = fed(9).await;
    let messages = feed.messages().await;

    let told = replay(&feed, &["--from", lsn_of(&messages[3]), "--to", lsn_of(&messages[6])]);
    assert!(told.stdout.contains("4 events"), "{}", told.stdout);
    let again = feed.messages_of("REPLAY").await;
    assert_eq!(ids(&feed, "REPLAY").await, [4, 5, 6, 7]);
    for (copy, first) in again.iter().zip(&messages[3..]) {
        assert_eq!(copy.payload, first.payload, "byte for byte the same");
        assert_eq!(copy.subject, "replay.1.webhooks.w");
        assert_eq!(copy.header("Nats-Msg-Id"), format!("replay.1:{}", first.header("Nats-Msg-Id")));
        assert_eq!(copy.header("Walhook-Op"), "insert");
        assert_eq!(copy.header("Walhook-Replay-Of"), first.header("Nats-Msg-Id"));
        assert_eq!(copy.header("Nats-Expected-Last-Sequence"), "", "of another stream");
    }

    // By time: the very microsecond of a commit belongs to it, at both ends.
    replay(&feed, &["--from", time_of(&messages[7]), "--subject-prefix", "replay.again"]);
    replay(&feed, &["--from", "1h", "--to", time_of(&messages[1])]);
    assert_eq!(ids(&feed, "REPLAY").await, [4, 5, 6, 7, 8, 9, 1, 2], "no window has swallowed any");
    assert_eq!(feed.messages_of("REPLAY").await[4].subject, "replay.again.webhooks.w");

    let rows = "SELECT string_agg(concat_ws(' ', replay_id, status, events_sent, target_stream), ', ' ORDER BY replay_id) \
                FROM rule_cdc_replays";
    assert_eq!(feed.pg.psql(rows), "1 done 4 REPLAY, 2 done 2 REPLAY, 3 done 2 REPLAY");
    let span = "SELECT concat_ws(' ', first_lsn, last_lsn) FROM rule_cdc_replays WHERE replay_id = 1";
    assert_eq!(feed.pg.psql(span), format!("{} {}", lsn_of(&messages[3]), lsn_of(&messages[6])));

    // The feed itself has noticed nothing.
    feed.pg.psql("INSERT INTO t VALUES (10)");
    feed.confirmed().await;
    assert_eq!(ids(&feed, "WEBHOOKS").await, (1..=10).collect::<Vec<_>>());
    assert_eq!(streamer.terminate(), 0, "{}", streamer.log());
}

#[tokio::test]
async fn events_are_chosen_by_webhook_and_by_table_and_a_dry_run_only_counts_them() {
    let (feed, _streamer) = fed(3).await;
    feed.pg.psql("SELECT rule_webhook_link_table(2, 't')");
    feed.pg.psql("INSERT INTO u VALUES (20); INSERT INTO t VALUES (4)");
    feed.stored(6).await;
    let messages = feed.messages().await;

    let told = walhook(&feed, "replay", &["--from", "0/0", "--dry-run", "--webhook", "w"], 0).stdout;
    for word in ["default/WEBHOOKS: 4 events", &format!("from {} (message 1)", lsn_of(&messages[0])), "(message 5)"] {
        assert!(told.contains(word), "no {word:?} in {told}");
    }
    assert_eq!(feed.last_sequence("REPLAY").await, 0);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_cdc_replays"), "0");

    replay(&feed, &["--from", "0/0", "--webhook", "v"]);
    assert_eq!(ids(&feed, "REPLAY").await, [20, 4]);
    replay(&feed, &["--from", "0/0", "--webhook", "v", "--table", "u"]);
    assert_eq!(ids(&feed, "REPLAY").await[2..], [20]);
    // A webhook that is gone has its number still.
    feed.pg.psql("SELECT rule_webhook_delete(2)");
    replay(&feed, &["--from", "0/0", "--webhook", "2", "--table", "public.t"]);
    assert_eq!(ids(&feed, "REPLAY").await[3..], [4]);

    // A bare row names its table by a header; a bare call names none: that is not guessed at, and logged.
    feed.pg.psql("UPDATE rule_webhooks SET payload_format = 'data' WHERE webhook_id = 1; INSERT INTO t VALUES (5)");
    feed.pg.psql("SELECT rule_webhook_publish_nats(1, '{\"id\": 6}')");
    feed.stored(8).await;
    let told = replay(&feed, &["--from", "0/0", "--webhook", "w", "--table", "t"]);
    assert!(told.stderr.contains("1 messages do not tell their table"), "{}", told.stderr);
    assert_eq!(feed.last_sequence("REPLAY").await, 9);
}

#[tokio::test]
async fn what_cannot_be_replayed_is_refused_with_what_could_be() {
    let (feed, _streamer) = fed(6).await;
    let messages = feed.messages().await;
    let first = lsn_of(&messages[0]).to_owned();
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let told = walhook(&feed, "replay", arguments, code).stderr;
        for word in words {
            assert!(told.contains(word), "{arguments:?}: no {word:?} in {told}");
        }
    };
    refused(&["--from", "FFFF/0"], 2, &["it is in the future", "the WAL ends at 0/"]);
    refused(&["--from", "2100-01-01"], 2, &["it is in the future"]);
    refused(&["--from", "noon or so"], 2, &["noon or so", "0/16B3748"]);
    refused(&["--from", &first, "--to", "0/1"], 2, &["lies before --from"]);
    refused(&["--from", "0/0", "--webhook", "nobody"], 2, &["nobody", "number"]);
    refused(&["--from", "0/0"], 2, &["no stream takes these subjects", "--create-stream", "nats stream add"]);
    refused(&["--from", "0/0", "--subject-prefix", "webhooks.again"], 2, &["strict order", "WEBHOOKS"]);
    refused(&["--from", "0/0", "--subject-prefix", "a..b"], 2, &["a..b"]);
    refused(&["--from", "0/0", "--via", "wal"], 2, &["has no anchor", "rule_cdc_anchor_create(", "walhook backfill"]);
    refused(&["--from", "0/0", "--via", "table", "--to", "0/1"], 2, &["no --to"]);
    refused(&["--from", "0/0", "--via", "rumour"], 2, &["use one of stream, wal, table"]);
    refused(&["--resume", "99"], 2, &["replay 99"]);
    refused(&[], 2, &["--from"]);

    // What was dropped from the stream, and what is left of it, to the LSN.
    let jetstream = jetstream::new(feed.nats.client().await);
    let stream = jetstream.get_stream("WEBHOOKS").await.unwrap();
    stream.purge().sequence(4).await.unwrap();
    let kept = lsn_of(&messages[3]);
    refused(&["--from", &first], 2, &["up to 3 are gone", kept, &format!("--from {kept}"), "backfill"]);
    refused(
        &["--from", time_of(&messages[2])],
        2,
        &[kept, "via wal", "has no anchor", "via table", "no --table is named"],
    );
    replay(&feed, &["--from", kept]);
    assert_eq!(ids(&feed, "REPLAY").await, [4, 5, 6]);
    stream.purge().await.unwrap();
    refused(&["--from", kept], 2, &["nothing of this feed"]);
    refused(&["--from", kept, "--stream", "NONE"], 2, &["no such stream"]);
}

#[tokio::test]
async fn what_a_stream_drops_while_it_is_read_ends_the_replay_and_the_streamers_role_may_run_it() {
    let (feed, _streamer) = fed(1).await;
    feed.pg.psql("INSERT INTO t SELECT generate_series(2, 3000)");
    feed.stored(3000).await;
    let arguments = ["--from", "0/0", "--rate", "100", "--create-stream", "REPLAY", "--stream", "WEBHOOKS"];
    let mut replay = feed.command("replay").env("DATABASE_URL", feed.streamer_conninfo()).args(arguments).start();
    eventually("the replay to be on its way", async || (feed.last_sequence("REPLAY").await > 5).then_some(())).await;
    // What was read ahead is sent; this takes all behind it but the last.
    let jetstream = jetstream::new(feed.nats.client().await);
    jetstream.get_stream("WEBHOOKS").await.unwrap().purge().sequence(3000).await.unwrap();
    replay.kill9();
    // What comes after its end is not its matter, and what it has sent may go.
    feed.pg.psql("INSERT INTO t VALUES (3001)");
    feed.stored(3001).await;
    let resumed = eventually("the replay to be resumed", async || {
        let resume = ["--resume", "1", "--rate", "100000"];
        let finished = feed.command("replay").env("DATABASE_URL", feed.streamer_conninfo()).args(resume).finish();
        (!finished.stderr.contains("runs already")).then_some(finished)
    })
    .await;
    assert_eq!(resumed.code, Some(2), "{resumed:?}");
    let (removed, upto) = ("its limits have removed messages", "to 2999 before they could be read");
    assert!(resumed.stderr.contains(removed) && resumed.stderr.contains(upto), "{}", resumed.stderr);
    assert_eq!(feed.pg.psql("SELECT status FROM rule_cdc_replays"), "failed");
}

#[tokio::test]
async fn one_replay_runs_at_a_time_and_a_killed_one_goes_on_where_it_was() {
    let (feed, _streamer) = fed(1).await;
    feed.pg.psql("INSERT INTO t SELECT generate_series(2, 400)");
    feed.stored(400).await;
    let slow = ["--from", "0/0", "--rate", "60", "--create-stream", "REPLAY"];
    let mut first = feed.command("replay").args(slow).start();
    eventually("the replay to note that it is on its way", async || {
        (feed.pg.psql("SELECT count(*) FROM rule_cdc_replays WHERE events_sent > 30") == "1").then_some(())
    })
    .await;
    let second = walhook(&feed, "replay", &["--from", "0/0"], 2);
    assert!(second.stderr.contains("replay 1 since") && second.stderr.contains("runs already"), "{}", second.stderr);

    first.kill9();
    let status = "SELECT status FROM rule_cdc_replays WHERE replay_id = 1";
    assert_eq!(feed.pg.psql(status), "running", "it could not tell");
    // The server may take a moment to notice that the first one's connection is gone.
    let resumed = eventually("the killed replay to be resumed", async || {
        let finished = feed.command("replay").args(["--resume", "1", "--rate", "100000"]).finish();
        (finished.code == Some(0)).then_some(finished)
    })
    .await;
    assert!(resumed.stderr.contains("replay 1 was killed"), "{}", resumed.stderr);
    assert_eq!(feed.pg.psql(status), "done");
    assert_eq!(ids(&feed, "REPLAY").await, (1..=400).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(feed.pg.psql("SELECT events_sent >= 400 FROM rule_cdc_replays"), "t");

    // One that is told to stop says so itself.
    let mut third = feed.command("replay").args(slow).start();
    eventually("the third replay to begin", async || {
        (feed.pg.psql("SELECT count(*) FROM rule_cdc_replays WHERE replay_id = 2 AND events_sent > 0") == "1")
            .then_some(())
    })
    .await;
    assert_eq!(third.terminate(), 0, "{}", third.log());
    assert!(third.log().contains("walhook replay --resume 2"), "{}", third.log());
    assert_eq!(feed.pg.psql("SELECT status FROM rule_cdc_replays WHERE replay_id = 2"), "interrupted");
    let done = walhook(&feed, "replay", &["--resume", "1"], 2);
    assert!(done.stderr.contains("it is done"), "{}", done.stderr);
}

async fn fetched(consumer: &PullConsumer, count: usize) -> Vec<i64> {
    let mut messages = consumer.fetch().max_messages(count).expires(DEADLINE).messages().await.unwrap();
    let mut ids = Vec::new();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let payload: Value = serde_json::from_slice(&message.payload).unwrap();
        ids.push(payload["data"]["id"].as_i64().unwrap());
        message.double_ack().await.unwrap();
    }
    ids
}

#[tokio::test]
async fn a_durable_consumer_is_set_to_a_point_with_all_its_settings() {
    let (feed, _streamer) = fed(6).await;
    let messages = feed.messages().await;
    let jetstream = jetstream::new(feed.nats.client().await);
    let stream = jetstream.get_stream("WEBHOOKS").await.unwrap();
    let settings = jetstream::consumer::pull::Config {
        durable_name: Some("worker".to_owned()),
        max_deliver: 7,
        filter_subject: "webhooks.w".to_owned(),
        ..Default::default()
    };
    let consumer: PullConsumer = stream.create_consumer(settings).await.unwrap();
    assert_eq!(fetched(&consumer, 6).await, [1, 2, 3, 4, 5, 6]);

    let to = |from: &str, more: &[&str], code: i32| {
        let arguments = [&["--stream", "WEBHOOKS", "--consumer", "worker", "--from", from], more].concat();
        walhook(&feed, "seek", &arguments, code)
    };
    let told = to(lsn_of(&messages[3]), &[], 0).stdout;
    assert!(told.contains("is set to message 4") && told.contains(lsn_of(&messages[3])), "{told}");
    let mut consumer: PullConsumer = stream.get_consumer("worker").await.unwrap();
    let config = consumer.info().await.unwrap().config.clone();
    assert_eq!((config.max_deliver, config.filter_subject.as_str()), (7, "webhooks.w"));
    assert_eq!(fetched(&consumer, 3).await, [4, 5, 6]);
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 6, "nothing is published again");

    // While a worker holds a message it is left alone, unless forced.
    to(lsn_of(&messages[4]), &[], 0);
    let consumer: PullConsumer = stream.get_consumer("worker").await.unwrap();
    let mut held = consumer.fetch().max_messages(1).messages().await.unwrap();
    held.next().await.unwrap().unwrap();
    let told = to("0/0", &[], 2).stderr;
    assert!(told.contains("1 messages are delivered and not acknowledged") && told.contains("--force"), "{told}");
    to("0/0", &["--force"], 0);
    let consumer: PullConsumer = stream.get_consumer("worker").await.unwrap();
    assert_eq!(fetched(&consumer, 6).await, [1, 2, 3, 4, 5, 6]);

    // One that is not there is made; behind the last event it waits for the next.
    let now = feed.pg.psql("SELECT pg_current_wal_insert_lsn()");
    walhook(&feed, "seek", &["--stream", "WEBHOOKS", "--consumer", "new", "--from", &now], 0);
    feed.pg.psql("INSERT INTO t VALUES (7)");
    let consumer: PullConsumer = stream.get_consumer("new").await.unwrap();
    assert_eq!(fetched(&consumer, 1).await, [7]);

    for (stream, consumer, words) in [("NONE", "worker", "NONE"), ("WEBHOOKS", "a.b", "no name")] {
        let told = walhook(&feed, "seek", &["--stream", stream, "--consumer", consumer, "--from", "0/0"], 2).stderr;
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(json!(feed.last_sequence("WEBHOOKS").await), json!(7));
}

/// So many messages of somebody else.
async fn of_others(feed: &Feed, count: u64) {
    let client = feed.nats.client().await;
    let before = feed.last_sequence("WEBHOOKS").await;
    for sent in 1..=count {
        client.publish("webhooks.others", "{\"data\": {}}".into()).await.unwrap();
        // The server drops what it cannot queue.
        if sent % 1000 == 0 || sent == count {
            eventually("messages of others", async || {
                (feed.last_sequence("WEBHOOKS").await >= before + sent).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_point_among_thousands_of_messages_of_others_is_found_however_many_there_are() {
    let feed = Feed::start().await;
    feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't'), rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql("UPDATE rule_nats_streams SET ordering = 'shared'");
    let _streamer = feed.run();
    let mut lsns = Vec::new();
    for id in 1..=4 {
        feed.pg.psql(&format!("INSERT INTO t VALUES ({id})"));
        feed.confirmed().await;
        lsns.push(feed.pg.psql("SELECT pg_current_wal_lsn()"));
        of_others(&feed, if id == 4 { 300 } else { 5500 }).await;
    }
    // A hole among them as well.
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    for sequence in 6000..6100 {
        stream.delete_message(sequence).await.unwrap();
    }
    let mut expected = Vec::new();
    for (point, more) in [("0/0", vec![1, 2, 3, 4]), (&lsns[0], vec![2, 3, 4]), (&lsns[2], vec![4])] {
        replay(&feed, &["--from", point, "--via", "stream"]);
        expected.extend(more);
        assert_eq!(ids(&feed, "REPLAY").await, expected);
    }
    let told = walhook(&feed, "seek", &["--stream", "WEBHOOKS", "--consumer", "w", "--from", &lsns[1]], 0).stdout;
    assert!(told.contains("to message 11003"), "{told}");
}
