//! What is too large for a message: its payload in the object store, a claim check in its place.

#![allow(clippy::unwrap_used)]

use crate::support;

use serde_json::{Value, json};
use support::{
    Nats, Postgres, eventually,
    feed::{Feed, Message},
    http::Http,
    last_mile::LastMile,
};
use tokio::io::AsyncReadExt;

/// A feed whose table `t` is linked to webhook 1, `webhooks.w`, which wants the object store, on a server that takes 64 KB.
async fn linked(config: &str) -> Feed {
    let nats = Nats::builder().config(&format!("max_payload: 64KB\n{config}")).start().await;
    let feed = Feed::on(Postgres::set_up().await, nats);
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'object_store'");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql("ALTER TABLE t REPLICA IDENTITY FULL");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    feed
}

/// `INSERT` of a row whose note has so many characters.
fn insert(feed: &Feed, id: i64, length: usize) {
    feed.pg.psql(&format!("INSERT INTO t VALUES ({id}, repeat('ä', {length}))"));
}

/// The object that a claim check names, by NATS's own client.
async fn object(feed: &Feed, message: &Message) -> Vec<u8> {
    let (bucket, name) = message.header("Walhook-Object").split_once('/').unwrap();
    let store = feed.nats.jetstream().await.get_object_store(bucket).await.unwrap();
    let mut bytes = Vec::new();
    store.get(name).await.unwrap().read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// The event that a message stands for: itself, or what its claim check names, verified.
async fn event(feed: &Feed, message: &Message) -> Value {
    if message.header("Walhook-Object").is_empty() {
        return message.payload.clone();
    }
    let bytes = object(feed, message).await;
    let sha256: String =
        ring::digest::digest(&ring::digest::SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let (bucket, name) = message.header("Walhook-Object").split_once('/').unwrap();
    assert_eq!(name, message.header("Nats-Msg-Id"), "a function of the event, so that it is put twice in one place");
    let claim = json!({ "bucket": bucket, "name": name, "sha256": sha256, "bytes": bytes.len() });
    assert_eq!(message.payload, json!({ "object": claim }));
    assert_eq!(message.header("Walhook-Object-SHA256"), sha256);
    serde_json::from_slice(&bytes).unwrap()
}

async fn count(feed: &Feed, bucket: &str) -> (u64, usize) {
    let stream = feed.nats.jetstream().await.get_stream(format!("OBJ_{bucket}")).await.unwrap();
    let info = stream.info_builder().subjects("$O.*.M.>").fetch().await.unwrap();
    let objects = futures_util::StreamExt::count(info).await;
    (stream.cached_info().state.messages, objects)
}

#[tokio::test]
async fn an_oversize_event_is_a_claim_check_in_its_place_and_fetched_back_as_it_would_have_been() {
    let feed = linked("").await;
    feed.pg.psql("UPDATE rule_nats_config SET history_payload = 'full'");
    let mut walhook = feed.run();
    insert(&feed, 1, 10);
    insert(&feed, 2, 300_000);
    insert(&feed, 3, 10);
    // Several in a row, and in a transaction.
    feed.pg.psql("BEGIN; UPDATE t SET note = note || 'x'; DELETE FROM t WHERE id = 2; COMMIT");
    insert(&feed, 4, 0);
    feed.confirmed().await;
    let messages = feed.messages().await;
    let mut seen = Vec::new();
    for message in &messages {
        let event = event(&feed, message).await;
        assert_eq!(event["id"], message.header("Nats-Msg-Id"));
        assert_eq!(message.header("Walhook-Op"), event["event"]["op"]);
        assert_eq!(message.subject, "webhooks.w");
        let length = event["data"]["note"].as_str().unwrap().chars().count();
        let is_claim = !message.header("Walhook-Object").is_empty();
        seen.push(format!("{} {} {length} {is_claim}", event["event"]["op"].as_str().unwrap(), event["data"]["id"]));
    }
    let expected = [
        "insert 1 10 false",
        "insert 2 300000 true",
        "insert 3 10 false",
        "update 1 11 false",
        "update 2 300001 true",
        "update 3 11 false",
        "delete 2 300001 true",
        "insert 4 0 false",
    ];
    assert_eq!(seen, expected);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    // A row in the history as any other, which has what was published.
    let history = "SELECT count(*), count(DISTINCT sequence_number), count(*) FILTER (WHERE payload ? 'object') \
                   FROM rule_nats_publish_history WHERE success";
    assert_eq!(feed.pg.psql(history), "8|8|3");
    let (_, objects) = count(&feed, "walhook_objects").await;
    assert_eq!(objects, 3);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn twenty_megabytes_go_through_a_small_window_and_into_a_bucket_of_the_rows_own_name_and_age() {
    let feed = Feed::start().await;
    feed.pg.psql("UPDATE rule_nats_config SET object_bucket = 'large-ones'");
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'], p_max_age_seconds => 3600)");
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'object_store', payload_format = 'data'");
    feed.pg.psql("UPDATE rule_nats_config SET history_payload = 'hash'");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let mut walhook = feed.run();
    feed.pg.psql(
        "INSERT INTO t VALUES (1, 'a'), (2, repeat('x', 20000000)), (3, 'b'), (4, repeat('y', 2000000)), (5, 'c')",
    );
    feed.confirmed().await;
    let messages = feed.messages().await;
    assert_eq!(messages.len(), 5);
    for (message, length) in messages.iter().zip([1, 20_000_000, 1, 2_000_000, 1]) {
        let event = event(&feed, message).await;
        assert_eq!(event["note"].as_str().unwrap().len(), length);
    }
    assert!(messages[1].header("Walhook-Object").starts_with("large-ones/"));
    let stream = feed.nats.jetstream().await.get_stream("OBJ_large-ones").await.unwrap();
    assert_eq!(stream.cached_info().config.max_age.as_secs(), 3600, "as long as the messages that name them");
    let recorded = "SELECT payload->'object'->'bytes' FROM rule_nats_publish_history WHERE sequence_number = 2";
    assert_eq!(feed.pg.psql(recorded), "20000018", "a claim check says what a hash would");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn killed_at_any_time_it_neither_loses_nor_doubles_nor_leaves_anything_in_the_bucket() {
    let feed = linked("").await;
    for id in 0..24 {
        insert(&feed, id, if id % 3 == 1 { 200_000 + usize::try_from(id).unwrap() } else { 5 });
    }
    // Each time it has come a little further, in the midst of one thing or another.
    for round in 0..8u64 {
        let mut walhook = feed.run();
        let jetstream = feed.nats.jetstream().await;
        eventually("some progress", async || {
            let stored = match jetstream.get_stream("OBJ_walhook_objects").await {
                Ok(stream) => stream.cached_info().state.last_sequence,
                Err(_) => 0,
            };
            (stored > round * 9).then_some(())
        })
        .await;
        walhook.kill9();
    }
    let mut walhook = feed.run();
    feed.confirmed().await;
    let messages = feed.messages().await;
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 24);
    for (id, message) in messages.iter().enumerate() {
        let event = event(&feed, message).await;
        let length = event["data"]["note"].as_str().unwrap().chars().count();
        assert_eq!(
            (event["data"]["id"].as_u64(), length),
            (Some(id as u64), if id % 3 == 1 { 200_000 + id } else { 5 })
        );
        assert_eq!(message.header("Walhook-Object").is_empty(), id % 3 != 1);
    }
    // 8 objects: an entry each, and chunks of 64 KB for 400 KB.
    let (messages, objects) = count(&feed, "walhook_objects").await;
    assert_eq!(objects, 8);
    assert!(messages <= 8 * (1 + 7), "{messages} messages: chunks of attempts that were cut off are left");
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn without_the_right_to_an_object_store_it_is_a_dead_letter_that_says_so_and_goes_there_once_there_is_one() {
    let users = |denied: &str| {
        format!(
            "max_payload: 64KB\nauthorization {{ users: [ {{ user: w, password: p, permissions: {{ publish: {{ \
             deny: [ {denied} ] }} }} }} ] }}"
        )
    };
    let nats = Nats::builder().config(&users("\"$JS.API.STREAM.CREATE.OBJ_walhook_objects\"")).start().await;
    let port = nats.port();
    let mut feed = Feed::on(Postgres::set_up().await, nats);
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', 'nats://w:p@127.0.0.1:{port}')"));
    feed.webhook("w");
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'object_store'");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let mut walhook = feed.run();
    for (id, length) in [(1, 5), (2, 100_000), (3, 5)] {
        insert(&feed, id, length);
    }
    feed.confirmed().await;
    let reason = feed.pg.psql("SELECT reason FROM rule_nats_dead_letters");
    for words in ["max_payload", "cannot be put into an object store", "$JS.API.STREAM.CREATE.OBJ_walhook_objects"] {
        assert!(reason.contains(words), "{words}: {reason}");
    }
    assert!(walhook.log().contains("dead letter"), "loudly");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());

    feed.nats.stop();
    feed.nats.set_config(&users("\"nothing\""));
    feed.nats.restart().await;
    let mut walhook = feed.run();
    assert_eq!(feed.command("dead-letters").args(["retry", "--all"]).finish().code, Some(0));
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT count(*) FILTER (WHERE status = 'dead') FROM rule_nats_dead_letters"), "0");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_letter_of_before_is_retried_into_the_object_store() {
    let feed = linked("").await;
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'dead_letter'");
    let mut walhook = feed.run();
    insert(&feed, 1, 100_000);
    insert(&feed, 2, 5);
    feed.confirmed().await;
    let was = feed.pg.psql("SELECT convert_from(payload, 'UTF8') FROM rule_nats_dead_letters");
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'object_store'");
    assert_eq!(feed.command("dead-letters").args(["retry", "--all"]).finish().code, Some(0));
    feed.confirmed().await;
    let messages = feed.messages().await;
    assert_eq!(messages.len(), 2);
    assert_eq!(object(&feed, &messages[1]).await, was.as_bytes(), "byte for byte");
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "1", "no new one");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_full_bucket_is_waited_for_and_one_that_is_too_small_is_not() {
    let feed = linked("").await;
    let jetstream = feed.nats.jetstream().await;
    let bucket = async_nats::jetstream::object_store::Config {
        bucket: "walhook_objects".to_owned(),
        max_bytes: 600_000,
        ..Default::default()
    };
    let store = jetstream.create_object_store(bucket).await.unwrap();
    let name = "filler".to_owned();
    let filler =
        async_nats::jetstream::object_store::ObjectMetadata { name, chunk_size: Some(50_000), ..Default::default() };
    store.put(filler, &mut &vec![7u8; 500_000][..]).await.unwrap();
    let mut walhook = feed.run();
    insert(&feed, 1, 100_000);
    insert(&feed, 2, 5);
    walhook.logged("later events of the stream wait").await;
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 0);
    store.delete("filler").await.unwrap();
    insert(&feed, 3, 400_000);
    insert(&feed, 4, 5);
    feed.confirmed().await;
    let mut ids = Vec::new();
    for message in feed.messages().await {
        ids.push(event(&feed, &message).await["data"]["id"].as_i64().unwrap());
    }
    assert_eq!(ids, [1, 2, 4]);
    let reason = feed.pg.psql("SELECT reason FROM rule_nats_dead_letters");
    assert!(reason.contains("the bucket takes 600000 bytes in all"), "{reason}");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_stream_that_takes_less_than_its_server_gets_claim_checks_too_and_core_nats_has_no_object_store() {
    let feed = linked("").await;
    let mut walhook = feed.run();
    insert(&feed, 1, 5);
    feed.confirmed().await;
    // Behind walhook's back, so that the stream is the one to refuse.
    let jetstream = feed.nats.jetstream().await;
    let mut config = jetstream.get_stream("WEBHOOKS").await.unwrap().cached_info().config.clone();
    config.max_message_size = 5000;
    jetstream.update_stream(&config).await.unwrap();
    feed.pg.psql("INSERT INTO t VALUES (2, repeat('x', 10000)), (3, 'y'), (4, repeat('z', 10000))");
    insert(&feed, 5, 5);
    feed.confirmed().await;
    let messages = feed.messages().await;
    let mut seen = Vec::new();
    for message in &messages {
        seen.push((event(&feed, message).await["data"]["id"].as_i64(), !message.header("Walhook-Object").is_empty()));
    }
    assert_eq!(seen, [(1, false), (2, true), (3, false), (4, true), (5, false)].map(|(id, claim)| (Some(id), claim)));

    feed.pg.psql("UPDATE rule_nats_config SET jetstream_enabled = false");
    insert(&feed, 6, 100_000);
    feed.confirmed().await;
    let reason = feed.pg.psql("SELECT reason FROM rule_nats_dead_letters");
    assert!(reason.contains("core NATS has no object store"), "{reason}");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_worker_calls_with_the_whole_payload_and_gives_up_what_is_gone_or_too_large() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET on_error = 'object_store', max_retries = 1");
    let settings = mile.settings("[deliver]\nmax_object_bytes = 3000000\n");
    let text = |length: usize| {
        format!("SELECT rule_webhook_publish_nats({id}, jsonb_build_object('s', repeat('x', {length})))")
    };
    mile.sql(&text(2_000_000));
    mile.publish(id, r#"{"s": "small"}"#);
    mile.feed.stored(2).await;
    let mut worker = mile.worker().args(["--config", &settings]).start();
    let requests = http.received(2).await;
    let mut lengths: Vec<_> = requests.iter().map(|request| request.json()["s"].as_str().unwrap().len()).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, [5, 2_000_000]);
    // What was recorded is the claim check.
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "2").await;
    assert_eq!(mile.sql("SELECT count(*) FROM rule_webhook_calls WHERE payload ? 'object'"), "1");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());

    mile.sql(&text(2_000_000));
    mile.sql(&text(4_000_000));
    let messages = mile.feed.stored(4).await;
    let name = messages[2].header("Nats-Msg-Id");
    let store = mile.feed.nats.jetstream().await.get_object_store("walhook_objects").await.unwrap();
    store.delete(name).await.unwrap();
    let mut worker = mile.worker().args(["--config", &settings]).start();
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "2").await;
    let reasons = mile.sql("SELECT string_agg(reason, ';') FROM rule_nats_dead_letters");
    assert!(reasons.contains("it is not there") && reasons.contains("max_object_bytes is 3000000"), "{reasons}");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 2);
}
