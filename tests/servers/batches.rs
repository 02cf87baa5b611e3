//! Atomic batches: a transaction is in the stream whole or not at all (`transactions = 'atomic'`), many of them share one sync of
//! the disk (`durability = 'fsync'`), and what becomes of that where it cannot be.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use support::{
    Nats, Postgres, Walhook, eventually,
    feed::{Feed, Message},
};

/// A feed whose table `t` is linked to a webhook, and whose stream has this in its row.
async fn feed_with(nats: Nats, settings: &str) -> Feed {
    let feed = Feed::on(Postgres::set_up().await, nats);
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'], p_max_age_seconds => 0)");
    feed.pg.psql(&format!("UPDATE rule_nats_streams SET {settings}"));
    let id = feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id serial PRIMARY KEY, of int, size int, note text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({id}, 't')"));
    feed
}

async fn atomic() -> Feed {
    feed_with(Nats::start().await, "transactions = 'atomic'").await
}

/// A transaction of so many rows, each of which knows how many there are.
fn rows(of: i64, size: i64) -> String {
    format!("INSERT INTO t (of, size, note) SELECT {of}, {size}, repeat('x', 50) FROM generate_series(1, {size})")
}

/// Shortly: for each batch how many messages it has, and for each message outside of one the number 1; with marks.
fn shape(messages: &[Message]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut gathered: Option<(&str, u64, String)> = None;
    for message in messages {
        let mark = match message.header("Walhook-Transaction") {
            "begin" => "<",
            "end" => ">",
            _ => "",
        };
        let id = message.header("Nats-Batch-Id");
        if id.is_empty() {
            parts.push(format!("1{mark}"));
            continue;
        }
        let nth: u64 = message.header("Nats-Batch-Sequence").parse().unwrap();
        let (known, count, marks) = gathered.get_or_insert((id, 0, String::new()));
        assert_eq!((*known, *count + 1), (id, nth), "a batch is not cut, nor mixed with others");
        *count = nth;
        marks.push_str(mark);
        if message.header("Nats-Batch-Commit") == "1" {
            parts.push(format!("{count}{marks}"));
            gathered = None;
        }
    }
    assert_eq!(gathered, None, "a batch without its end");
    parts.join(" ")
}

/// The answer of the stream's API. (The client library knows not all of a stream's configuration.)
async fn ask(feed: &Feed, what: &str, request: &Value) -> Value {
    let client = feed.nats.client().await;
    let subject = format!("$JS.API.STREAM.{what}.WEBHOOKS");
    let answer = client.request(subject, request.to_string().into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{answer}");
    answer
}

async fn config(feed: &Feed) -> Value {
    ask(feed, "INFO", &json!({})).await["config"].take()
}

/// Each transaction's rows stand together, all of them; how many each has.
fn whole(messages: &[Message]) -> BTreeMap<i64, i64> {
    let mut counts = BTreeMap::new();
    let mut last = None;
    for message in messages {
        let number = |column: &str| message.data()[column].as_i64().unwrap();
        let (of, size) = (number("of"), number("size"));
        assert!(last == Some(of) || !counts.contains_key(&of), "transaction {of} is interrupted");
        last = Some(of);
        counts.entry(of).or_insert((0, size)).0 += 1;
    }
    for (of, (count, size)) in &counts {
        assert_eq!(count, size, "of transaction {of}");
    }
    counts.into_iter().map(|(of, (count, _))| (of, count)).collect()
}

/// Whether the stream's last message is the last one of its batch, or in none.
async fn ends_whole(feed: &Feed) -> bool {
    let Ok(mut stream) = feed.nats.jetstream().await.get_stream("WEBHOOKS").await else { return true };
    let last = stream.info().await.unwrap().state.last_sequence;
    let Ok(message) = stream.get_raw_message(last).await else { return last == 0 };
    message.headers.get("Nats-Batch-Id").is_none() || message.headers.get("Nats-Batch-Commit").is_some()
}

#[tokio::test]
async fn a_transaction_is_one_batch_and_a_larger_one_is_marked_at_both_ends() {
    let feed = atomic().await;
    let mut walhook = feed.run();
    for (of, size) in [(1, 1), (2, 3), (3, 1000), (4, 2500), (5, 2)] {
        feed.pg.psql(&rows(of, size));
    }
    feed.pg.psql(
        "BEGIN; INSERT INTO t (of, size) VALUES (6, 2); SAVEPOINT a; INSERT INTO t (of) VALUES (7); \
                  ROLLBACK TO a; INSERT INTO t (of, size) VALUES (6, 2); COMMIT",
    );
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let messages = feed.messages().await;
    assert_eq!(shape(&messages), "1 3 1000 1000< 1000 500> 2 2");
    assert_eq!(whole(&messages).len(), 6);
    let history = "SELECT count(*) FROM rule_nats_publish_history h WHERE success AND stream_name = 'WEBHOOKS'";
    assert_eq!(feed.pg.psql(&format!("{history} AND sequence_number IS NOT NULL")), messages.len().to_string());
    assert!(!walhook.log().contains("WARN"), "{}", walhook.log());
}

#[tokio::test]
async fn whatever_is_killed_in_the_midst_of_batches_each_transaction_is_stored_whole_once_or_not_at_all() {
    let feed = atomic().await;
    let mut wanted = BTreeMap::new();
    let mut walhook = feed.run();
    for round in 0..9 {
        let before = feed.last_sequence("WEBHOOKS").await;
        for (of, size) in (3 * round..).zip([900, 2, 300]) {
            feed.pg.psql(&rows(of, size));
            wanted.insert(of, size);
        }
        eventually("some of it", async || (feed.last_sequence("WEBHOOKS").await > before).then_some(())).await;
        if round % 3 == 2 {
            feed.nats.kill9();
            feed.nats.restart().await;
        } else {
            walhook.kill9();
            // What of a batch was on its way is gone with the connection; what the server had whole it is storing.
            eventually("a whole batch at the stream's end", async || ends_whole(&feed).await.then_some(())).await;
            walhook = feed.run();
        }
    }
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let messages = feed.messages().await;
    assert_eq!(whole(&messages), wanted);
    assert_eq!(feed.last_sequence("WEBHOOKS").await, messages.len() as u64, "nothing was stored and removed");
    shape(&messages);
}

#[tokio::test]
async fn a_server_without_batches_gets_single_messages_and_it_is_logged_once() {
    let feed = feed_with(Nats::builder().version("2.10").start().await, "transactions = 'atomic'").await;
    let mut walhook = feed.run();
    feed.pg.psql(&rows(1, 3));
    feed.confirmed().await;
    // It is opened anew, and finds the same.
    feed.nats.restart().await;
    feed.pg.psql(&rows(2, 1));
    feed.confirmed().await;
    assert_eq!(shape(&feed.messages().await), "1< 1 1> 1");
    let told = "transactions = 'atomic' does not hold, events are published one by one: nats-server 2.10";
    assert_eq!(walhook.log().matches(told).count(), 1, "{}", walhook.log());
    eventually("the status to tell", async || {
        let report = feed.pg.psql("SELECT rule_nats_health_check('default') ->> 'falls_back'");
        report.contains(told).then_some(())
    })
    .await;
    let status = feed.command("status").finish();
    assert!(status.stdout.contains(told), "{}", status.stdout);
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn batches_are_taken_up_and_left_off_as_the_row_says_while_it_runs() {
    let feed = feed_with(Nats::start().await, "transactions = 'streamed'").await;
    let mut walhook = feed.run();
    for (of, transactions) in [(1, "streamed"), (2, "atomic"), (3, "streamed")] {
        feed.pg.psql(&format!("UPDATE rule_nats_streams SET transactions = '{transactions}'"));
        feed.pg.psql(&rows(of, 2));
        feed.confirmed().await;
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let messages = feed.messages().await;
    assert_eq!(shape(&messages), "1 1 2 1 1");
    assert_eq!(config(&feed).await["allow_atomic"], true, "it is never forbidden");
}

#[tokio::test]
async fn an_event_too_large_for_the_stream_is_a_dead_letter_and_the_rest_of_its_transaction_one_batch() {
    let nats = Nats::builder().config("max_payload: 64KB").start().await;
    let feed = feed_with(nats, "transactions = 'atomic'").await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t (of, size, note) VALUES (1, 2, ''), (1, 2, repeat('x', 70000)), (1, 2, '')");
    feed.confirmed().await;
    assert_eq!(shape(&feed.messages().await), "2");
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters WHERE reason LIKE '%max_payload%'"), "1");
    // The stream's own limit, lowered under way: the server tells of the whole batch.
    let mut config = config(&feed).await;
    config["max_msg_size"] = json!(2000);
    ask(&feed, "UPDATE", &config).await;
    feed.pg.psql("INSERT INTO t (of, size, note) VALUES (2, 2, ''), (2, 2, repeat('x', 3000)), (2, 2, '')");
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let messages = feed.messages().await;
    assert_eq!(shape(&messages), "2 2");
    assert_eq!(whole(&messages), BTreeMap::from([(1, 2), (2, 2)]));
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "2");
}

/// walhook asks again before it gives up an event by a limit that it has read long ago.
#[tokio::test]
async fn a_streams_own_limit_that_is_raised_under_way_holds_for_the_next_event() {
    let feed = feed_with(Nats::start().await, "transactions = 'atomic'").await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t (of, size, note) VALUES (1, 1, '')");
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let mut config = config(&feed).await;
    config["max_msg_size"] = json!(2000);
    ask(&feed, "UPDATE", &config).await;
    walhook = feed.run();
    feed.pg.psql("INSERT INTO t (of, size, note) VALUES (1, 1, '')");
    feed.confirmed().await;
    config["max_msg_size"] = json!(6000);
    ask(&feed, "UPDATE", &config).await;
    // The limit counts as known for one second; the clock is PostgreSQL's, which this test waits for.
    feed.pg.psql("SELECT pg_sleep(1.1)");
    feed.pg.psql("INSERT INTO t (of, size, note) VALUES (2, 2, repeat('x', 4000)), (2, 2, '')");
    feed.pg.psql("INSERT INTO t (of, size, note) VALUES (3, 1, repeat('x', 9000))");
    feed.pg.psql("INSERT INTO t (of, size, note) VALUES (4, 1, '')");
    feed.confirmed().await;
    assert_eq!(feed.messages().await.len(), 5);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters WHERE reason LIKE '%takes 6000 %'"), "1");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn message_ids_of_the_callers_own_work_in_batches_and_a_known_one_makes_single_messages_of_its_transaction() {
    let feed = atomic().await;
    let mut walhook = feed.run();
    let call = |id: &str, of: i64| format!("SELECT rule_webhook_publish_nats(1, '{{\"of\": {of}}}', '{id}')");
    let call = |calls: &[(&str, i64)]| {
        let calls: Vec<_> = calls.iter().map(|(id, of)| call(id, *of)).collect();
        feed.pg.psql(&format!("BEGIN; {}; COMMIT", calls.join("; ")));
    };
    call(&[("a", 1), ("b", 1)]);
    call(&[("c", 2), ("a", 2), ("d", 2)]);
    call(&[("e", 3), ("f", 3)]);
    call(&[("g", 4), ("g", 4)]);
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let messages = feed.messages().await;
    let ids: Vec<_> = messages.iter().map(|message| message.header("Walhook-Message-Id")).collect();
    assert_eq!(ids, ["a", "b", "c", "d", "e", "f", "g"], "{}", walhook.log());
    assert_eq!(shape(&messages), "2 1< 1> 2 1<", "{}", walhook.log());
    assert!(walhook.log().contains("goes message by message and is not atomic"), "{}", walhook.log());
}

#[tokio::test]
async fn another_writer_between_batches_has_the_next_one_refused_and_sent_again() {
    let feed = atomic().await;
    let mut walhook = feed.run();
    let client = feed.nats.client().await;
    let mut wanted = BTreeMap::new();
    for of in 1..=10 {
        feed.pg.psql(&rows(of, 100));
        wanted.insert(of, 100);
        feed.confirmed().await;
        client
            .publish("webhooks.stranger", json!({ "data": { "of": -of, "size": 1 } }).to_string().into())
            .await
            .unwrap();
        client.flush().await.unwrap();
    }
    feed.pg.psql(&rows(11, 2));
    wanted.insert(11, 2);
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let mut counts = whole(&feed.messages().await);
    counts.retain(|of, _| *of > 0);
    assert_eq!(counts, wanted);
    assert!(walhook.log().contains("another last sequence than expected"), "{}", walhook.log());
}

#[tokio::test]
async fn a_transaction_for_two_streams_is_a_batch_in_each() {
    let feed = atomic().await;
    feed.pg.psql("SELECT rule_nats_stream_create('AUDIT', ARRAY['audit.>'], p_max_age_seconds => 0)");
    feed.pg.psql("UPDATE rule_nats_streams SET transactions = 'atomic'");
    feed.pg.psql(
        "SELECT rule_webhook_register('audit', 'https://example.com/audit');
         SELECT rule_webhook_enable_nats(2, 'audit.t', 'nats');
         SELECT rule_webhook_link_table(2, 't')",
    );
    let mut walhook = feed.run();
    feed.pg.psql(&rows(1, 4));
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert_eq!(shape(&feed.messages().await), "4");
    assert_eq!(shape(&feed.messages_of("AUDIT").await), "4");
}

#[tokio::test]
async fn sigterm_within_a_transaction_whose_end_is_far_does_not_wait_for_it() {
    let feed = atomic().await;
    let mut walhook: Walhook = feed.run();
    feed.pg.psql(&rows(1, 1));
    feed.confirmed().await;
    // More than a window in each of some pieces, so that it is stopped while one is held.
    feed.pg.psql(&rows(2, 50_000));
    eventually("some of it", async || (feed.last_sequence("WEBHOOKS").await > 3000).then_some(())).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert!(walhook.log().contains("all acknowledged"), "{}", walhook.log());
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    let begin = stream.get_raw_message(2).await.unwrap();
    assert_eq!(begin.headers.get("Walhook-Transaction").map(|mark| mark.as_str()), Some("begin"));
    assert_eq!((feed.last_sequence("WEBHOOKS").await - 1) % 1000, 0, "whole batches only");
}

/// One that syncs its disk before each answer.
async fn durable() -> Feed {
    let nats = Nats::builder().config("jetstream { store_dir: \"store\", sync_interval: always }").start().await;
    feed_with(nats, "durability = 'fsync'").await
}

/// So many transactions of one row, as fast as they can be committed.
fn single_rows(from: i64, to: i64) -> String {
    format!(
        "DO $$ BEGIN FOR i IN {from}..{to} LOOP INSERT INTO t (of, size, note) VALUES (i, 1, ''); COMMIT; END LOOP; END $$"
    )
}

#[tokio::test]
async fn transactions_that_wait_share_batches_and_when_it_is_quiet_each_goes_by_itself() {
    let feed = durable().await;
    let mut walhook = feed.run();
    for of in 1..=3 {
        feed.pg.psql(&rows(of, 1));
        feed.confirmed().await;
    }
    feed.pg.psql(&rows(4, 5));
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert_eq!(shape(&feed.messages().await), "1 1 1 5");
    assert!(!walhook.log().contains("WARN"), "{}", walhook.log());
    // A backlog, with some that are larger, and one that no batch can hold.
    feed.pg.psql(&single_rows(5, 1500));
    for (of, size) in [(1501, 400), (1502, 700), (1503, 2100), (1504, 3)] {
        feed.pg.psql(&rows(of, size));
    }
    let mut walhook = feed.run();
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let messages = feed.messages().await;
    assert_eq!(whole(&messages).len(), 1504);
    let shape = shape(&messages);
    let parts = shape.split(' ').count();
    assert!(parts < 100, "{parts}: {shape}");
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 3 + 5 + 1496 + 400 + 700 + 2100 + 3);
}

#[tokio::test]
async fn a_server_killed_while_it_gathers_batches_has_whole_transactions_once_and_in_order() {
    let feed = durable().await;
    let mut walhook = feed.run();
    let mut upto = 0;
    for _ in 0..5 {
        feed.pg.psql(&single_rows(upto + 1, upto + 400));
        feed.pg.psql(&rows(upto + 401, 50));
        upto += 401;
        let before = feed.last_sequence("WEBHOOKS").await;
        eventually("some of it", async || (feed.last_sequence("WEBHOOKS").await >= before).then_some(())).await;
        feed.nats.kill9();
        feed.nats.restart().await;
    }
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let messages = feed.messages().await;
    let whole = whole(&messages);
    assert!(whole.keys().copied().eq(1..=upto), "{whole:?}");
    assert!(messages.is_sorted_by_key(|message| message.data()["id"].as_i64()));
}

#[tokio::test]
async fn a_server_that_syncs_each_message_of_a_batch_gets_single_messages_and_it_is_logged() {
    let feed = feed_with(Nats::builder().version("2.10").start().await, "durability = 'fsync'").await;
    let mut walhook = feed.run();
    feed.pg.psql(&rows(1, 1));
    feed.pg.psql(&rows(2, 1));
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert_eq!(shape(&feed.messages().await), "1 1");
    let told = "durability = 'fsync' gains nothing: nats-server 2.10";
    assert_eq!(walhook.log().matches(told).count(), 1, "{}", walhook.log());
}
