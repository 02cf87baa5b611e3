//! `walhook deliver` and sealed payloads: receivers get what was sealed, and nothing is given up because a key comes later.

#![allow(clippy::unwrap_used)]

use crate::support;

use serde_json::json;
use support::{
    Nats, Postgres, eventually,
    feed::Feed,
    http::{Http, Reply, Request},
    last_mile::{LastMile, QUICK},
    sealed::KeyFolder,
};

/// A mile whose streamer seals with these keys.
async fn sealing(keys: &KeyFolder) -> LastMile {
    let feed = Feed::on(Postgres::set_up().await, Nats::builder().config("max_payload: 64KB").start().await);
    let streamer = keys.with(feed.streamer()).start();
    LastMile::with(feed, streamer)
}

fn shown(request: &Request) -> (String, String, String, String) {
    let header = |name: &str| request.header(name).to_owned();
    (
        header("content-type"),
        header("walhook-type"),
        header("walhook-old-key"),
        String::from_utf8(request.body.clone()).unwrap(),
    )
}

#[tokio::test]
async fn receivers_get_of_a_sealed_webhook_what_they_get_of_one_that_is_not() {
    let keys = KeyFolder::new(&["k.1"]);
    let mile = sealing(&keys).await;
    mile.sql("CREATE TABLE t (id int, tag text, note text, PRIMARY KEY (id, tag))");
    let mut pairs = Vec::new();
    for format in ["webhook", "data", "debezium", "cloudevents", "cloudevents_binary"] {
        let pair = ["open", "sealed"].map(|kind| {
            let receiver = Http::ok();
            let id = mile.webhook(&format!("{kind}_{format}"), &receiver.url("/"));
            mile.sql(&format!(
                "UPDATE rule_webhooks SET payload_format = '{format}', on_error = 'object_store', delivery_order = 'strict' WHERE webhook_id = {id}; \
                 SELECT rule_webhook_link_table({id}, 't')"
            ));
            receiver
        });
        pairs.push((format, pair));
    }
    mile.sql("UPDATE rule_webhooks SET seal_key = 'k' WHERE webhook_name LIKE 'sealed%'");
    mile.sql("INSERT INTO t VALUES (1, 'ä')");
    mile.sql("UPDATE t SET tag = 'b'");
    mile.sql("UPDATE t SET note = repeat('kanari', 20000)");
    mile.sql("DELETE FROM t");
    let mut worker = keys.with(mile.worker()).start();
    for (format, [open, sealed]) in &pairs {
        open.received(4).await;
        sealed.received(4).await;
        let (open, sealed) = (open.requests(), sealed.requests());
        for (one, other) in open.iter().zip(&sealed) {
            let (mut one, mut other) = (shown(one), shown(other));
            // What differs is the webhook itself.
            for body in [&mut one.3, &mut other.3] {
                let mut value: serde_json::Value = serde_json::from_str(body).unwrap();
                for key in ["id", "webhook_id", "webhook_name", "webhook_url"] {
                    if *format == "webhook" || (*format == "cloudevents" && key == "id") {
                        value[key].take();
                    }
                }
                *body = value.to_string();
            }
            assert_eq!(one, other, "{format}");
        }
        assert_eq!(open.len(), 4);
        assert_eq!(sealed[1].header("walhook-old-key"), "{\"id\":1,\"tag\":\"\\u00e4\"}");
    }
    // What is recorded of the calls is as it was in the stream.
    let recorded = "SELECT count(*) FILTER (WHERE payload ? '$base64'), count(*) FILTER (WHERE payload ? 'object'), count(*) \
                    FROM rule_webhook_calls c JOIN rule_webhooks USING (webhook_id) WHERE seal_key IS NOT NULL";
    mile.eventually(recorded, "15|5|20").await;
    assert_eq!(
        mile.sql("SELECT count(*) FROM rule_webhook_calls JOIN rule_webhooks USING (webhook_id) WHERE seal_key IS NOT NULL AND payload::text LIKE '%kanari%'"),
        "0"
    );
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn an_event_whose_key_the_worker_does_not_have_waits_for_it_and_burns_no_attempt() {
    let keys = KeyFolder::new(&["k.1"]);
    let mile = sealing(&keys).await;
    let receiver = Http::ok();
    let id = mile.webhook("w", &receiver.url("/"));
    mile.sql("UPDATE rule_webhooks SET seal_key = 'k', max_retries = 0");
    mile.publish(id, "{\"n\": 1}");
    let other = KeyFolder::new(&["k.0"]);
    let mut worker = other.with(mile.worker()).args(["--config", &mile.settings(QUICK)]).start();
    let waits = "events of webhook \"w\" wait: it is sealed with the key k.1, which the folder of seal_keys_dir";
    eventually("the worker to say so", async || worker.log().replace('\\', "").contains(waits).then_some(())).await;
    assert!(worker.log().contains("put the file k.1 there"), "{}", worker.log());
    assert_eq!((receiver.count(), mile.sql("SELECT count(*) FROM rule_nats_dead_letters")), (0, "0".to_owned()));
    // The key of the rotation comes to the worker, and the event is called.
    other.add("k.1");
    receiver.received(1).await;
    mile.eventually("SELECT status || ' ' || retry_count FROM rule_webhook_calls", "success 0").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn what_no_key_opens_fails_as_a_call_does_and_becomes_a_dead_letter_that_can_be_sent_again() {
    let keys = KeyFolder::new(&["k.1"]);
    let mile = sealing(&keys).await;
    let receiver = Http::ok();
    let id = mile.webhook("w", &receiver.url("/"));
    mile.sql("UPDATE rule_webhooks SET seal_key = 'k', max_retries = 2");
    let wrong = KeyFolder::new(&[]);
    wrong.write("k.1", &"00".repeat(32));
    let mut worker = wrong.with(mile.worker()).args(["--config", &mile.settings(QUICK)]).start();
    mile.publish(id, "{\"n\": 1}");
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "1").await;
    assert_eq!(
        mile.sql("SELECT count(*), max(retry_count), bool_and(error_message LIKE '%open the sealed payload: the key k.1 does not open it: the file has another key%') FROM rule_webhook_calls"),
        "1|2|t"
    );
    assert_eq!(receiver.count(), 0);
    wrong.add("k.1");
    // The worker reads its keys again at most once a second, and the attempts of this webhook are over sooner.
    eventually("the event to be called", async || {
        mile.sql("SELECT rule_nats_dead_letters_retry('-infinity')");
        (receiver.count() > 0).then_some(())
    })
    .await;
    assert_eq!(receiver.requests()[0].json(), json!({ "n": 1 }));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn what_somebody_without_the_key_puts_into_the_stream_is_not_called() {
    let keys = KeyFolder::new(&["k.1"]);
    let mile = sealing(&keys).await;
    let receiver = Http::ok();
    let id = mile.webhook("w", &receiver.url("/"));
    mile.sql("UPDATE rule_webhooks SET seal_key = 'k', max_retries = 0");
    mile.sql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>']); UPDATE rule_nats_streams SET ordering = 'shared'");
    mile.publish(id, "{\"n\": 1}");
    support::rows::taken(&mile.feed, 1).await;
    let jetstream = mile.feed.nats.jetstream().await;
    let stream = jetstream.get_stream("WEBHOOKS").await.unwrap();
    let original = stream.get_raw_message(1).await.unwrap();
    let first_id = original.headers.get("Nats-Msg-Id").unwrap().as_str().to_owned();
    // The sealed body of one event under the id of another, and with another header.
    let forge = |id: String, seal: Option<String>| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        headers.insert(
            "Walhook-Sealed",
            seal.unwrap_or_else(|| original.headers.get("Walhook-Sealed").unwrap().as_str().to_owned()),
        );
        (headers, original.payload.clone())
    };
    let other_id = first_id.replace("-0-1", "-1-1");
    assert_ne!(other_id, first_id);
    let third_id = first_id.replace("-0-1", "-2-1");
    for (headers, payload) in [
        forge(other_id.clone(), None),
        forge(third_id.clone(), Some(format!("v1 k.1 {third_id}"))),
        forge(first_id.replace("-0-1", "-3-1"), Some("v2 k.1 x".to_owned())),
    ] {
        jetstream.publish_with_headers("webhooks.w", headers, payload).await.unwrap().await.unwrap();
    }
    let mut worker = keys.with(mile.worker()).args(["--config", &mile.settings(QUICK)]).start();
    receiver.received(1).await;
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "3").await;
    let reasons = mile.sql("SELECT string_agg(reason, '; ' ORDER BY dead_letter_id) FROM rule_nats_dead_letters");
    for part in ["sealed for another event", "does not open it", "this walhook reads v1 only"] {
        assert!(reasons.contains(part), "{reasons}");
    }
    assert_eq!(receiver.count(), 1);
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn the_order_of_keys_and_batches_holds_for_what_is_sealed() {
    let keys = KeyFolder::new(&["k.1"]);
    let mile = sealing(&keys).await;
    let receiver = Http::ok();
    let by_key = mile.webhook("by_key", &receiver.url("/"));
    let batched = Http::ok();
    let in_batches = mile.webhook("in_batches", &batched.url("/"));
    mile.sql(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, n int); UPDATE rule_webhooks SET seal_key = 'k'; \
         UPDATE rule_webhooks SET delivery_order = 'key', order_key = 'data:id' WHERE webhook_id = {by_key}; \
         UPDATE rule_webhooks SET batch_max_events = 10, batch_max_wait_ms = 200 WHERE webhook_id = {in_batches}; \
         SELECT rule_webhook_link_table({by_key}, 't'), rule_webhook_link_table({in_batches}, 't')"
    ));
    // The first call of key 1 fails; its events, also those after its key has changed, wait for it, and those of key 2 do not.
    receiver.script(|index, request| {
        let is_first = index == 0 && request.json()["id"] == 1;
        if is_first { Reply::status(500) } else { Reply::status(200) }
    });
    mile.sql("INSERT INTO t VALUES (1, 1)");
    mile.sql("UPDATE t SET n = 2");
    mile.sql("UPDATE t SET id = 3, n = 3");
    mile.sql("UPDATE t SET n = 4");
    mile.sql("INSERT INTO t VALUES (2, 5)");
    let mut worker = keys.with(mile.worker()).args(["--config", &mile.settings(QUICK)]).start();
    receiver.received(6).await;
    let calls: Vec<_> = receiver.requests().iter().map(|request| request.json()["n"].as_i64().unwrap()).collect();
    let of_one: Vec<_> = calls.iter().copied().filter(|n| *n < 5).collect();
    assert_eq!(of_one, [1, 1, 2, 3, 4], "{calls:?}");
    eventually("all events in batches", async || {
        let all: usize = batched.requests().iter().map(|request| request.json().as_array().unwrap().len()).sum();
        (all == 5).then_some(())
    })
    .await;
    let event = &batched.requests()[0].json()[0];
    assert!(event.to_string().contains("\"n\":1"), "{event}");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}
