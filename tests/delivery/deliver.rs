//! The last mile: what is in the stream is called, as the webhook's row says, by however many workers.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{self, consumer::pull};
use futures_util::StreamExt;
use serde_json::json;
use support::{
    Nats, UNCHECKED, Walhook, eventually,
    http::{Http, Reply, Request},
    last_mile::{LastMile, times},
};

const QUICK: &str = "[deliver]\nack_wait_ms = 1000\n";

/// The first line of a worker's log with this text.
async fn line(worker: &mut Walhook, text: &str) -> String {
    worker.logged(text).await;
    worker.log().lines().find(|line| line.contains(text)).unwrap().to_owned()
}

/// Waits until the log has so many lines with this text.
async fn said(worker: &Walhook, text: &str, count: usize) {
    eventually(text, async || (worker.log().matches(text).count() >= count).then_some(())).await;
}

/// Whether somebody else's code takes the signature for good.
fn verifies(request: &Request, secret: &str) -> bool {
    let mut headers = hyper::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, request.header(name).parse().unwrap());
    }
    standardwebhooks::Webhook::new(secret).unwrap().verify(&request.body, &headers).is_ok()
}

#[tokio::test]
async fn an_event_is_called_once_as_its_row_says_and_recorded() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    let id = mile.webhook("orders", &http.url("/hooks?a=b"));
    mile.sql(
        "UPDATE rule_webhooks SET method = 'PUT', \
         headers = '{\"Authorization\": \"Bearer t\", \"X-Number\": 7, \"Host\": \"evil\", \"Content-Type\": \"text/x\"}'",
    );
    mile.publish(id, r#"{"id": 1, "price": 9.90}"#);
    let mut worker = mile.worker().start();
    let request = http.received(1).await.remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/hooks?a=b"));
    assert_eq!(request.json(), json!({"id": 1, "price": 9.90}));
    let shown = ["authorization", "x-number", "content-type", "walhook-type"].map(|name| request.header(name));
    assert_eq!(shown, ["Bearer t", "7", "text/x", "webhook.call"]);
    assert_eq!(request.header("host"), format!("127.0.0.1:{}", http.port()));
    assert_eq!(request.header("webhook-signature"), "", "nobody has asked for one");
    assert_eq!(request.header("webhook-id"), mile.feed.messages().await[0].header("Nats-Msg-Id"));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 1);
    let row = "SELECT status, response_status, retry_count, payload->>'price', event_id = '";
    let row = format!("{row}{}' FROM rule_webhook_calls", request.header("webhook-id"));
    assert_eq!(mile.sql(&row), "success|200|0|9.90|t");
    assert_eq!(mile.sql("SELECT attempt_number, response_status FROM rule_webhook_call_history"), "1|200");
}

#[tokio::test]
async fn rows_of_a_linked_table_arrive_and_those_of_other_webhooks_on_the_same_subject_do_not() {
    let mile = LastMile::start().await;
    let (ours, theirs) = (Http::ok(), Http::ok());
    mile.webhook("ours", &ours.url("/"));
    mile.webhook("theirs", &theirs.url("/"));
    mile.sql("UPDATE rule_webhooks SET request_body = 'message' WHERE webhook_name = 'theirs'");
    mile.sql("CREATE TABLE a (n int PRIMARY KEY); CREATE TABLE b (n int PRIMARY KEY)");
    for (webhook, table) in [("ours", "a"), ("theirs", "b")] {
        mile.sql(&format!(
            "SELECT rule_webhook_link_table('{webhook}', '{table}', p_subject_template => 'webhooks.shared.{{op}}')"
        ));
    }
    let mut worker = mile.worker().start();
    mile.sql("INSERT INTO a SELECT generate_series(1, 3); INSERT INTO b SELECT generate_series(4, 5)");
    mile.sql("DELETE FROM a WHERE n = 1");
    let (ours, theirs) = (ours.received(4).await, theirs.received(2).await);
    assert_eq!(times(&ours), [(1, 2), (2, 1), (3, 1)].into());
    assert_eq!(theirs.iter().map(|r| r.json()["data"]["n"].as_i64().unwrap()).collect::<BTreeSet<_>>(), [4, 5].into());
    assert!(ours.iter().any(|request| request.header("walhook-type") == "public.a.delete"));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn an_event_of_changed_columns_is_called_in_its_place_like_any_other() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    mile.webhook("w", &http.url("/"));
    mile.sql(
        "CREATE TABLE t (n int PRIMARY KEY); SELECT rule_webhook_link_table('w', 't'), rule_webhook_emit_enable()",
    );
    mile.sql("UPDATE rule_webhooks SET publish_column_changes = true, delivery_order = 'strict'");
    let mut worker = mile.worker().start();
    for statement in ["INSERT INTO t VALUES (1)", "ALTER TABLE t ADD a int", "INSERT INTO t VALUES (2)"] {
        mile.sql(statement);
    }
    let requests = http.received(3).await;
    let kinds: Vec<_> =
        requests.iter().map(|request| (request.header("walhook-type"), request.header("walhook-op"))).collect();
    assert_eq!(kinds, [("public.t.insert", "insert"), ("public.t.columns", "columns"), ("public.t.insert", "insert")]);
    assert_eq!(requests[1].json()["added"], json!(["a"]));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn a_receiver_can_tell_an_insert_from_a_delete_in_every_format() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    let id = mile.webhook("w", &http.url("/"));
    mile.sql(
        "CREATE TABLE t (n int PRIMARY KEY); \
         UPDATE rule_webhooks SET delivery_order = 'strict', headers = '{\"Walhook-Op\": \"forged\"}'",
    );
    mile.sql(&format!("SELECT rule_webhook_link_table({id}, 't')"));
    let mut worker = mile.worker().start();
    for (round, format) in ["webhook", "data", "debezium", "cloudevents", "cloudevents_binary"].iter().enumerate() {
        mile.sql(&format!("UPDATE rule_webhooks SET payload_format = '{format}'"));
        for statement in ["INSERT INTO t VALUES (1)", "UPDATE t SET n = 2", "DELETE FROM t"] {
            mile.sql(statement);
        }
        let requests = http.received(3 * (round + 1)).await.split_off(3 * round);
        for (request, op) in requests.iter().zip(["insert", "update", "delete"]) {
            let told = ["walhook-type", "walhook-op", "walhook-old-key"].map(|name| request.header(name));
            let old_key = if op == "update" { r#"{"n":1}"# } else { "" };
            assert_eq!(told, [&*format!("public.t.{op}"), op, old_key], "{format}");
        }
        if *format == "cloudevents_binary" {
            let names = ["ce-type", "ce-subject", "ce-specversion", "content-type"];
            let attributes = names.map(|name| requests[2].header(name));
            assert_eq!(attributes, ["public.t.delete", "public.t", "1.0", "application/json"]);
            assert_eq!(requests[2].header("ce-id"), requests[2].header("webhook-id"));
        }
    }
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn with_every_tenth_answer_a_failure_all_arrive_and_every_attempt_is_recorded() {
    let mile = LastMile::start().await;
    let http = Http::start(|number, _| Reply::status(if number % 10 == 9 { 503 } else { 200 }));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 10");
    mile.publish_many(id, 1000);
    let mut worker = mile.worker().start();
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "1000").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    let requests = http.requests();
    assert_eq!(times(&requests).len(), 1000);
    let failures = requests.len() / 10;
    assert_eq!(requests.len(), 1000 + failures, "an attempt for each event and one more for each failure");
    let recorded = "SELECT count(*), count(*) FILTER (WHERE response_status = 503), count(DISTINCT call_id) \
                    FROM rule_webhook_call_history";
    assert_eq!(mile.sql(recorded), format!("{}|{failures}|1000", requests.len()));
    let retries = "SELECT sum(retry_count) FROM rule_webhook_calls";
    assert_eq!(mile.sql(retries), failures.to_string());
    assert_eq!(mile.sql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
}

#[tokio::test]
async fn two_workers_share_the_events_and_each_is_called_once() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::slow(Duration::from_millis(5)));
    let id = mile.webhook("w", &http.url("/"));
    let mut workers = [mile.worker().start(), mile.worker().start()];
    for worker in &mut workers {
        worker.logged("delivering").await;
    }
    mile.publish_many(id, 2000);
    http.received(2000).await;
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
        assert!(worker.log().contains("so far delivered="), "one did nothing: {}", worker.log());
    }
    let times = times(&http.requests());
    assert_eq!(times.len(), 2000);
    assert!(times.values().all(|times| *times == 1));
    assert_eq!(mile.sql("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'"), "2000");
}

#[tokio::test]
async fn a_worker_that_is_killed_in_mid_flight_loses_nothing() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::slow(Duration::from_millis(20)));
    let id = mile.webhook("w", &http.url("/"));
    mile.publish_many(id, 400);
    let quick = mile.settings(QUICK);
    for round in 1..=3 {
        let mut worker = mile.worker().args(["--config", &quick]).start();
        http.received(round * 80).await;
        worker.kill9();
    }
    let mut worker = mile.worker().args(["--config", &quick]).start();
    eventually("all events", async || (times(&http.requests()).len() == 400).then_some(())).await;
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "400").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    let doubled = "SELECT count(*) FROM (SELECT 1 FROM rule_webhook_call_history GROUP BY call_id, attempt_number \
                   HAVING count(*) > 1) d";
    assert_eq!(mile.sql(doubled), "0");
}

#[tokio::test]
async fn a_slow_webhook_does_not_hold_up_a_fast_one() {
    let mile = LastMile::start().await;
    let (slow, fast) = (Http::start(|_, _| Reply::Hang), Http::ok());
    let (slow_id, fast_id) = (mile.webhook("slow", &slow.url("/")), mile.webhook("fast", &fast.url("/")));
    mile.sql("UPDATE rule_webhooks SET timeout_ms = 60000");
    mile.publish_many(slow_id, 1000);
    let settings = mile.settings("shutdown_timeout_ms = 100\n[deliver]\nmax_in_flight_per_webhook = 16\n");
    let mut worker = mile.worker().args(["--config", &settings]).start();
    slow.received(16).await;
    mile.publish_many(fast_id, 1000);
    fast.received(1000).await;
    assert_eq!(slow.count(), 16, "no more than may be in flight");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn a_strictly_ordered_webhook_is_called_one_by_one_in_commit_order_whatever_fails() {
    let mile = LastMile::start().await;
    let http = Http::start(|number, _| Reply::status(if number % 7 < 2 { 500 } else { 200 }));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET delivery_order = 'strict', max_retries = 10, retry_delay_ms = 1");
    let mut workers = [mile.worker().start(), mile.worker().start()];
    mile.publish_many(id, 40);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "40").await;
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    let mut order: Vec<_> = http.requests().iter().map(|request| request.json()["n"].as_i64().unwrap()).collect();
    order.dedup();
    assert_eq!(order, (1..=40).collect::<Vec<_>>());
    assert_eq!(http.busiest(), 1);
}

/// The recipe of docs/deliver.md.
#[tokio::test]
async fn with_a_strict_webhook_for_each_shard_the_order_of_each_key_holds_and_keys_do_not_wait_for_each_other() {
    let mile = LastMile::start().await;
    // Every third request fails, and those of customer 3 get no answer until the other shard is through.
    let others_are_through = Arc::new(AtomicBool::new(false));
    let through = Arc::clone(&others_are_through);
    let http =
        Http::start(move |number, request| match request.json()["customer"] == 3 && !through.load(Ordering::Relaxed) {
            true => Reply::Hang,
            false => Reply::status(if number % 3 == 0 { 503 } else { 200 }),
        });
    mile.sql(
        "CREATE TABLE o (id int PRIMARY KEY, customer int, n int, shard int); \
         CREATE FUNCTION o_shard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.shard := NEW.customer % 2; RETURN NEW; END $$; \
         CREATE TRIGGER o_shard BEFORE INSERT OR UPDATE ON o FOR EACH ROW EXECUTE FUNCTION o_shard(); \
         ALTER TABLE o REPLICA IDENTITY FULL",
    );
    for shard in 0..2 {
        let id = mile.webhook(&format!("o{shard}"), &http.url("/"));
        mile.sql(&format!("SELECT rule_webhook_link_table({id}, 'o', p_filter => '{{\"shard\": {shard}}}')"));
    }
    mile.sql(
        "UPDATE rule_webhooks SET delivery_order = 'strict', max_retries = 10, retry_delay_ms = 5, timeout_ms = 2500",
    );
    let mut workers = [mile.worker().start(), mile.worker().start()];
    mile.sql("INSERT INTO o SELECT customer, customer, 0 FROM generate_series(0, 5) customer");
    for n in 1..=5 {
        mile.sql(&format!("UPDATE o SET n = {n}"));
    }
    mile.sql("DELETE FROM o");
    let arrived = |shard: i32| {
        format!(
            "SELECT count(*) FROM rule_webhook_calls JOIN rule_webhooks USING (webhook_id) \
                 WHERE status = 'success' AND webhook_name = 'o{shard}'"
        )
    };
    mile.eventually(&arrived(0), "21").await;
    assert_ne!(mile.sql(&arrived(1)), "21", "customer 3 is held");
    others_are_through.store(true, Ordering::Relaxed);
    mile.eventually(&arrived(1), "21").await;
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    let mut by_customer: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for request in http.requests() {
        let op = request.header("walhook-type").replace("public.o.", "");
        let seen = by_customer.entry(request.json()["customer"].as_i64().unwrap()).or_default();
        seen.push(format!("{op} {}", request.json()["n"]));
    }
    for (customer, mut seen) in by_customer {
        seen.dedup();
        let order = ["insert 0", "update 1", "update 2", "update 3", "update 4", "update 5", "delete 5"];
        assert_eq!(seen, order, "of customer {customer}");
    }
}

#[tokio::test]
async fn a_dead_letter_that_is_retried_is_called_each_time_within_the_streams_duplicate_window() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::status(500));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 1");
    let mut worker = mile.worker().start();
    mile.publish(id, r#"{"n": 1}"#);
    let retry = async |letters: i32| {
        mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", &letters.to_string()).await;
        let done = mile.feed.command("dead-letters").args(["retry", "--all"]).finish();
        assert!(done.code == Some(0) && done.stdout.contains("will be published again"), "{done:?}");
    };
    // It fails again, and is a letter again.
    retry(1).await;
    retry(2).await;
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "3").await;
    http.script(|_, _| Reply::status(200));
    retry(3).await;
    let requests = http.received(7).await;
    let first = mile.sql("SELECT event_id FROM rule_nats_dead_letters ORDER BY dead_letter_id LIMIT 1");
    assert!(
        requests.iter().all(|request| request.header("webhook-id") == first),
        "receivers know the event by its first id"
    );
    mile.eventually(
        "SELECT status, response_status FROM rule_webhook_calls ORDER BY call_id DESC LIMIT 1",
        "success|200",
    )
    .await;
    // Its row in the history may come after the call.
    let status = "SELECT s::text LIKE '%published%' AND s::text LIKE '%\"sequence\": 4%' \
                  FROM (SELECT rule_nats_event_status(max(event_id)) AS s FROM rule_webhook_events) t";
    mile.eventually(status, "t").await;
    assert_eq!(mile.sql("SELECT string_agg(status, ' ') FROM rule_nats_dead_letters"), "retried retried retried");
    // Each failure is a letter of its own that says who gave up; the first has the id of the event in the stream.
    let told = "SELECT count(DISTINCT event_id), string_agg(DISTINCT origin, ' ') FROM rule_nats_dead_letters";
    assert_eq!(mile.sql(told), "3|deliver");
    let listed = mile.feed.command("dead-letters").args(["list", "--status", "all"]).finish().stdout;
    assert_eq!(listed.matches(" deliver ").count(), 3, "{listed}");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 7, "two attempts for each of three, and one that succeeds");
}

#[tokio::test]
async fn a_letter_that_was_retried_or_dropped_stays_so_when_its_message_comes_again() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::status(500));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 0");
    let mut worker = mile.worker().start();
    let stored = |letters: i32| {
        let mile = &mile;
        async move { mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", &letters.to_string()).await }
    };
    for n in 1..=3 {
        mile.publish(id, &format!(r#"{{"n": {n}}}"#));
        stored(n).await;
    }
    mile.sql("SELECT rule_nats_dead_letter_drop(2)");
    mile.sql("SELECT rule_nats_dead_letter_retry(3)");
    // The retry fails as well: that is a letter of its own.
    stored(4).await;
    let statuses = "SELECT string_agg(status, ' ' ORDER BY dead_letter_id) FROM rule_nats_dead_letters";
    assert_eq!(mile.sql(statuses), "dead dropped retried dead");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    // All four messages again, by a consumer that is made anew.
    let jetstream = mile.feed.nats.jetstream().await;
    let stream = jetstream.get_stream("WEBHOOKS").await.unwrap();
    stream.delete_consumer(&format!("walhook-deliver-{id}")).await.unwrap();
    http.script(|_, _| Reply::status(501));
    let mut worker = mile.worker().start();
    let newer = "SELECT string_agg(dead_letter_id::text, ' ' ORDER BY dead_letter_id) FROM rule_nats_dead_letters \
                 WHERE reason LIKE '%501%'";
    mile.eventually(newer, "1 4").await;
    http.received(8).await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(mile.sql(statuses), "dead dropped retried dead");
}

#[tokio::test]
async fn a_webhook_disabled_while_a_retry_is_due_keeps_its_attempts_and_is_not_delivered_in_vain() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::status(500));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 2, retry_delay_ms = 2500, retry_backoff_multiplier = 1");
    let mut worker = mile.worker().start();
    mile.publish(id, r#"{"n": 1}"#);
    http.received(1).await;
    mile.sql("UPDATE rule_webhooks SET enabled = false");
    let jetstream = mile.feed.nats.jetstream().await;
    let consumer = async || {
        let stream = jetstream.get_stream("WEBHOOKS").await.ok()?;
        let info = stream.consumer_info("walhook-deliver-1").await.ok()?;
        Some((info.delivered.consumer_sequence, info.num_waiting))
    };
    // The retry comes while a request for messages still stands, and no other request follows.
    let deliveries = eventually("no request for messages", async || {
        consumer().await.filter(|(delivered, waiting)| *delivered >= 2 && *waiting == 0)
    })
    .await
    .0;
    // One, unless the retry was faster than the news.
    let calls = u64::try_from(http.count()).unwrap();
    assert!(deliveries <= calls + 2, "{deliveries} deliveries of one event for {calls} calls");
    mile.sql("UPDATE rule_webhooks SET enabled = true, retry_delay_ms = 1");
    http.received(3).await;
    mile.eventually("SELECT reason FROM rule_nats_dead_letters", "3 attempts, then: HTTP status 500").await;
    let attempts = "SELECT string_agg(attempt_number::text, ' ' ORDER BY history_id) FROM rule_webhook_call_history";
    assert_eq!(mile.sql(attempts), "1 2 3", "attempts are calls");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 3);
}

#[tokio::test]
async fn failed_calls_are_logged_with_what_one_needs_to_find_them_and_a_flood_of_them_is_bounded() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::status(503));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 1");
    let mut worker = mile.worker().start();
    mile.publish(id, r#"{"n": 1}"#);
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "1").await;
    let event = mile.sql("SELECT event_id FROM rule_nats_dead_letters");
    for words in ["call failed", "dead letter: 2 attempts, then: HTTP status 503"] {
        let logged = line(&mut worker, words).await;
        let attempt = if words == "call failed" { "attempt=1" } else { "attempt=2" };
        for word in ["WARN", "webhook=\"w\"", &event, "status=503", attempt] {
            assert!(logged.contains(word), "no {word} in {logged}");
        }
    }
    mile.publish_many(id, 500);
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "501").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    let lines =
        worker.log().lines().filter(|line| line.contains("call failed") || line.contains("dead letter")).count();
    // Five in each ten seconds of an hour, if it takes that long.
    assert!(lines < 501 && worker.log().contains("dead_letters=501"), "{lines} lines: {}", worker.log());
}

#[tokio::test]
async fn a_login_in_a_url_is_in_the_call_and_nowhere_else() {
    let mile = LastMile::start().await;
    let http = Http::start(|number, request| match number {
        0 => Reply::with(302, "Location", &format!("http://ada:canary@elsewhere{}", request.path)),
        _ => Reply::status(500),
    });
    let url = http.url("/hook?token=canary&n=1").replace("http://", "http://ada:canary@");
    let (id, dead) = (mile.webhook("w", &url), mile.webhook("dead", &url));
    mile.webhook("scheme", "https://ada:canary@example.com/");
    mile.sql(&format!(
        "{UNCHECKED}; UPDATE rule_webhooks SET url = replace(url, 'https', 'ftp') WHERE webhook_name = 'scheme'"
    ));
    mile.sql(&format!("UPDATE rule_webhooks SET nats_subject = 'nowhere.x' WHERE webhook_id = {dead}"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 1, request_body = 'message'; CREATE TABLE t (n int PRIMARY KEY)");
    mile.sql(&format!("SELECT rule_webhook_link_table({id}, 't'), rule_webhook_link_table({dead}, 't')"));
    let mut worker = mile.worker().args(["--log", "debug"]).start();
    let mut bare = mile.without_database().args(["--group", "bare", "--log", "debug"]).start();
    bare.logged("it has credentials in its headers or its url").await;
    mile.sql("INSERT INTO t VALUES (1)");
    mile.publish(id, r#"{"n": 2}"#);
    mile.publish(3, r#"{"n": 3}"#);
    // Both of one webhook and one of each of the others, given up.
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "4").await;
    for request in http.requests() {
        assert_eq!(request.path, "/hook?token=canary&n=1");
        assert_eq!(request.header("authorization"), "Basic YWRhOmNhbmFyeQ==");
    }
    mile.feed.confirmed().await;
    let status = mile.feed.command("status").args(["--json"]).finish();
    let letters = mile.feed.command("dead-letters").args(["list", "--json"]).finish();
    let mut shown = vec![
        ("status", format!("{status:?}")),
        ("dead letters", format!("{letters:?}")),
        ("worker's log", worker.log()),
        ("log of a worker without a database", bare.log()),
        ("streamer's log", mile.streamer.log()),
    ];
    for table in [
        "rule_nats_publish_history",
        "rule_webhook_calls",
        "rule_webhook_call_history",
        "rule_webhook_events",
        "rule_cdc_status",
        "(SELECT *, convert_from(payload, 'UTF8') FROM rule_nats_dead_letters)",
        "rule_webhook_list()",
    ] {
        shown.push((table, mile.sql(&format!("SELECT row_to_json(t) FROM {table} t"))));
    }
    let jetstream = mile.feed.nats.jetstream().await;
    for name in ["WEBHOOKS", "KV_walhook_walhook"] {
        let mut stream = jetstream.get_stream(name).await.unwrap();
        let last = stream.info().await.unwrap().state.last_sequence;
        let mut text = String::new();
        for sequence in 1..=last {
            if let Ok(message) = stream.get_raw_message(sequence).await {
                text.push_str(&format!("{:?} {}\n", message.headers, String::from_utf8_lossy(&message.payload)));
            }
        }
        shown.push((name, text));
    }
    for (place, text) in shown {
        assert!(!text.is_empty() && !text.contains("canary"), "{place}: {text}");
        assert!(!text.contains("YWRhOmNhbmFyeQ"), "{place}: {text}");
    }
    for worker in [&mut worker, &mut bare] {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
}

/// One consumer takes each subject of a workqueue stream, and what it acknowledges is deleted.
#[tokio::test]
async fn two_webhooks_on_one_subject_of_a_workqueue_stream_get_their_own_events_and_the_remedy_is_logged() {
    let mile = LastMile::start().await;
    mile.sql("SELECT rule_nats_stream_create('Q', ARRAY['q.>'], 'default', 'workqueue')");
    let (one, two) = (Http::ok(), Http::start(|number, _| Reply::status(if number == 0 { 500 } else { 200 })));
    let (first, second) = (mile.webhook("one", &one.url("/1")), mile.webhook("two", &two.url("/2")));
    mile.sql("UPDATE rule_webhooks SET nats_subject = 'q.s'");
    let mut worker = mile.worker().start();
    let refused = line(&mut worker, "cannot have a consumer of its own").await;
    for _ in 0..20 {
        mile.publish(first, r#"{"n": 1}"#);
        mile.publish(second, r#"{"n": 2}"#);
    }
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "40").await;
    assert_eq!(times(&one.requests()), [(1, 20)].into());
    assert_eq!(times(&two.requests()), [(2, 21)].into(), "one of them twice");
    let of_each =
        "SELECT string_agg(n, ' ') FROM (SELECT count(*)::text n FROM rule_webhook_calls GROUP BY webhook_id) c";
    assert_eq!(mile.sql(of_each), "20 20");
    // The remedy is a statement that does it, whichever of the two came second.
    assert!(refused.contains("\\\"Q\\\"") || refused.contains("\"Q\""), "{refused}");
    let statement = refused.split("SELECT ").nth(1).unwrap().split(", or").next().unwrap();
    mile.sql(&format!("SELECT {statement}"));
    said(&worker, "consumer ready", 2).await;
    mile.publish(first, r#"{"n": 1}"#);
    mile.publish(second, r#"{"n": 2}"#);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "42").await;
    eventually("an empty stream", async || {
        let mut stream = mile.feed.nats.jetstream().await.get_stream("Q").await.ok()?;
        (stream.info().await.ok()?.state.messages == 0).then_some(())
    })
    .await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!((one.count(), two.count()), (21, 22));
}

#[tokio::test]
async fn on_a_workqueue_stream_the_event_of_a_webhook_that_cannot_be_called_now_waits_and_is_called_later() {
    let mile = LastMile::start().await;
    mile.sql("SELECT rule_nats_stream_create('Q', ARRAY['q.>'], 'default', 'workqueue')");
    let (one, two) = (Http::ok(), Http::ok());
    let (first, second) = (mile.webhook("one", &one.url("/")), mile.webhook("two", &two.url("/")));
    // The second one's subjects are wider than the first one's.
    mile.sql("UPDATE rule_webhooks SET nats_subject = 'q.s'; CREATE TABLE t (n int PRIMARY KEY)");
    mile.sql(&format!("SELECT rule_webhook_link_table({second}, 't', p_subject_template => 'q.{{op}}')"));
    let mut worker = mile.worker().args(["--webhook", "one"]).start();
    worker.logged("consumer ready").await;
    mile.publish(second, r#"{"n": 2}"#);
    mile.sql("INSERT INTO t VALUES (3)");
    mile.publish(first, r#"{"n": 1}"#);
    let waits = line(&mut worker, "is not among those that this worker calls").await;
    assert!(waits.contains("two") && waits.contains("rule_webhook_enable_nats"), "{waits}");
    one.received(1).await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    let mut stream = mile.feed.nats.jetstream().await.get_stream("Q").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 2, "nothing of the second one's is deleted");
    assert_eq!((one.count(), two.count()), (1, 0));
    // Without that consumer its own takes them.
    stream.delete_consumer("walhook-deliver-1").await.unwrap();
    let mut worker = mile.worker().args(["--webhook", "two"]).start();
    let requests = two.received(2).await;
    assert_eq!(times(&requests), [(2, 1), (3, 1)].into());
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn two_webhooks_on_one_subject_of_an_interest_stream_have_a_consumer_each() {
    let mile = LastMile::start().await;
    mile.sql("SELECT rule_nats_stream_create('I', ARRAY['i.>'], 'default', 'interest')");
    let (one, two) = (Http::ok(), Http::ok());
    let (first, second) = (mile.webhook("one", &one.url("/")), mile.webhook("two", &two.url("/")));
    mile.sql("UPDATE rule_webhooks SET nats_subject = 'i.s'");
    let mut worker = mile.worker().start();
    said(&worker, "consumer ready", 2).await;
    for _ in 0..10 {
        mile.publish(first, r#"{"n": 1}"#);
        mile.publish(second, r#"{"n": 2}"#);
    }
    assert_eq!(times(&one.received(10).await), [(1, 10)].into());
    assert_eq!(times(&two.received(10).await), [(2, 10)].into());
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_not_called_and_events_wait_for_another_url() {
    let mile = LastMile::start().await;
    let (gone, here) = (Http::start(|_, _| Reply::status(410)), Http::ok());
    let id = mile.webhook("w", &gone.url("/"));
    let mut worker = mile.worker().start();
    mile.publish(id, r#"{"n": 1}"#);
    mile.eventually("SELECT disabled_at IS NOT NULL FROM rule_webhooks", "t").await;
    assert_eq!(gone.count(), 1, "410 is not tried again");
    let letter = mile.sql("SELECT reason FROM rule_nats_dead_letters");
    assert!(letter.contains("410"), "{letter}");
    assert_eq!(mile.sql("SELECT status, response_status FROM rule_webhook_calls"), "failed|410");
    // The application's calls go on, and other consumers have their events: nothing waits but the calls of this receiver.
    mile.publish(id, r#"{"n": 2}"#);
    let finding = mile.sql("SELECT name, remedy FROM rule_cdc_check() WHERE name = 'webhook_not_called'");
    assert!(finding.contains(&format!("rule_webhook_update({id}, p_enabled => true)")), "{finding}");
    eventually("the second event to be in the stream", async || {
        (mile.feed.messages_of("WEBHOOKS").await.len() == 2).then_some(())
    })
    .await;
    // Until somebody says where to go on.
    mile.sql(&format!("SELECT rule_webhook_update({id}, p_url => '{}')", here.url("/")));
    let requests = here.received(1).await;
    assert_eq!(requests[0].json(), json!({"n": 2}));
    assert_eq!(mile.sql("SELECT enabled, disabled_at, disabled_reason FROM rule_webhooks"), "t||");
    assert_eq!(gone.count(), 1);
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn retry_after_is_waited_for_by_all_events_of_the_webhook() {
    let mile = LastMile::start().await;
    let http = Http::start(|number, _| match number {
        0 => Reply::with(429, "Retry-After", "2"),
        _ => Reply::status(200),
    });
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_in_flight = 1");
    let mut worker = mile.worker().start();
    mile.publish_many(id, 5);
    let requests = http.received(6).await;
    let waited = requests[1].at - requests[0].at;
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
    assert_eq!(times(&requests), [(1, 2), (2, 1), (3, 1), (4, 1), (5, 1)].into());
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

/// Where nats-server can pause a consumer, from 2.11 on.
#[tokio::test]
async fn retry_after_holds_back_all_workers_of_the_group_and_another_url_ends_it() {
    let mile = LastMile::start().await;
    let (busy, other) = (Http::start(|_, _| Reply::with(429, "Retry-After", "3600")), Http::ok());
    let id = mile.webhook("w", &busy.url("/"));
    let client = mile.feed.nats.client().await;
    let version = client.server_info().version;
    if version.starts_with("2.10.") {
        eprintln!("SKIPPED: nats-server {version} cannot pause a consumer");
        return;
    }
    let is_paused = async || {
        let info = client.request("$JS.API.CONSUMER.INFO.WEBHOOKS.walhook-deliver-1", "".into()).await.ok()?;
        let info: serde_json::Value = serde_json::from_slice(&info.payload).ok()?;
        Some(info["paused"] == true)
    };
    let mut workers = [mile.worker().start(), mile.worker().start()];
    for worker in &mut workers {
        worker.logged("delivering").await;
    }
    mile.publish(id, r#"{"n": 0}"#);
    eventually("a pause", async || is_paused().await?.then_some(())).await;
    // The worker that was not told, and one that starts later, call no more than the one that was.
    let mut third = mile.worker().start();
    third.logged("delivering").await;
    mile.publish_many(id, 100);
    mile.feed.stored(101).await;
    assert_eq!(busy.count(), 1);
    mile.sql(&format!("UPDATE rule_webhooks SET url = '{}'", other.url("/")));
    other.received(100).await;
    assert!(!is_paused().await.unwrap());
    for worker in workers.iter_mut().chain([&mut third]) {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    assert_eq!(busy.count(), 1);
}

#[tokio::test]
async fn requests_are_signed_and_a_secret_can_be_rotated_while_events_flow() {
    const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const NEW: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    let mile = LastMile::start().await;
    let http = Http::ok();
    let id = mile.webhook("w", &http.url("/"));
    mile.sql(&format!(
        "SELECT rule_webhook_secret_set({id}, 'signing', '{OLD}'), rule_webhook_secret_set({id}, 'other', 'x')"
    ));
    let mut worker = mile.worker().start();
    // How many secrets sign: each statement is followed by events until a request shows it.
    let signed_by = async |secrets: &[&str]| {
        eventually(&format!("{} signatures", secrets.len()), async || {
            mile.publish(id, r#"{"a": "ü"}"#);
            let before = http.count();
            let request = http.received(before.max(1)).await.pop().unwrap();
            (request.header("webhook-signature").split(' ').count() == secrets.len()
                && secrets.iter().all(|secret| verifies(&request, secret)))
            .then_some(())
        })
        .await;
    };
    signed_by(&[OLD]).await;
    mile.sql(&format!("SELECT rule_webhook_secret_set({id}, 'signing_new', '{NEW}')"));
    signed_by(&[OLD, NEW]).await;
    mile.sql(&format!("SELECT rule_webhook_secret_delete({id}, 'signing')"));
    signed_by(&[NEW]).await;
    assert!(http.requests().iter().all(|request| verifies(request, OLD) || verifies(request, NEW)));
    assert!(!verifies(&http.requests().pop().unwrap(), OLD));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert!(!worker.log().contains("whsec_"), "{}", worker.log());
}

#[tokio::test]
async fn sigterm_lets_calls_end_and_gives_back_what_does_not() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, request| match request.path.as_str() {
        "/slow" => Reply::slow(Duration::from_millis(700)),
        _ => Reply::Hang,
    });
    let (slow, hangs) = (mile.webhook("slow", &http.url("/slow")), mile.webhook("hangs", &http.url("/hangs")));
    mile.sql("UPDATE rule_webhooks SET timeout_ms = 60000");
    mile.publish(slow, r#"{"n": 1}"#);
    mile.publish(hangs, r#"{"n": 2}"#);
    let mut worker = mile.worker().args(["--config", &mile.settings("shutdown_timeout_ms = 3000")]).start();
    http.received(2).await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(mile.sql("SELECT payload, status FROM rule_webhook_calls"), r#"{"n": 1}|success"#);
    // The default `ack_wait` is 30 s: that it comes at once shows that it was given back.
    http.script(|_, _| Reply::status(200));
    let mut worker = mile.worker().start();
    let requests = http.received(3).await;
    assert_eq!(requests[2].path, "/hangs");
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "2").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 3);
}

#[tokio::test]
async fn a_worker_without_a_database_follows_the_bucket_live() {
    let mile = LastMile::start().await;
    let (first, second, signed) = (Http::ok(), Http::ok(), Http::ok());
    let id = mile.webhook("plain", &first.url("/"));
    let mut worker = mile.without_database().start();
    mile.publish(id, r#"{"n": 1}"#);
    first.received(1).await;
    mile.sql(&format!("UPDATE rule_webhooks SET url = '{}'", second.url("/")));
    let mut n = 1;
    eventually("a call at the new url", async || {
        n += 1;
        mile.publish(id, &format!(r#"{{"n": {n}}}"#));
        tokio::time::sleep(Duration::from_millis(50)).await;
        (second.count() > 0).then_some(())
    })
    .await;
    eventually("all calls", async || (first.count() + second.count() == n).then_some(())).await;
    // One that it could only call wrongly is left to others, and said so.
    let other: i32 =
        mile.sql(&format!("SELECT rule_webhook_register('signed', '{}')", signed.url("/"))).parse().unwrap();
    mile.sql(&format!("SELECT rule_webhook_secret_set({other}, 'signing', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')"));
    mile.sql(&format!("SELECT rule_webhook_enable_nats({other}, NULL, 'nats')"));
    mile.publish(other, "{}");
    worker.logged("left to workers with a database").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(signed.count(), 0);
    let mut worker = mile.worker().start();
    signed.received(1).await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn the_bucket_holds_every_webhook_and_no_secret() {
    let mile = LastMile::start().await;
    let id = mile.webhook("w", "https://example.com/");
    mile.sql("UPDATE rule_webhooks SET headers = '{\"X-Plain\": \"p\", \"Authorization\": \"Bearer hunter2\"}'");
    mile.sql(&format!("SELECT rule_webhook_secret_set({id}, 'signing', 'hunter2')"));
    let jetstream = mile.feed.nats.jetstream().await;
    let entry = async || {
        let store = jetstream.get_key_value("walhook_walhook").await.ok()?;
        let value = store.get(format!("webhook.{id}")).await.ok()??;
        Some(String::from_utf8(value.to_vec()).unwrap())
    };
    let text = eventually("the webhook in the bucket", async || {
        entry().await.filter(|text| text.contains("Authorization") && text.contains("\"signed\":true"))
    })
    .await;
    assert!(text.contains("X-Plain") && !text.contains("hunter2"), "{text}");
    mile.sql(&format!("SELECT rule_webhook_delete({id})"));
    eventually("the webhook to leave the bucket", async || entry().await.is_none().then_some(())).await;
}

#[tokio::test]
async fn a_start_writes_only_what_the_bucket_lacks() {
    let feed = support::feed::Feed::start().await;
    let jetstream = feed.nats.jetstream().await;
    let revision = async |id: i32| {
        let store = jetstream.get_key_value("walhook_walhook").await.ok()?;
        Some(store.entry(format!("webhook.{id}")).await.ok()??.revision)
    };
    let first = feed.webhook("first");
    let mut walhook = feed.run();
    let before = eventually("the first webhook in the bucket", async || revision(first).await).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let second = feed.webhook("second");
    let _walhook = feed.run();
    // It comes behind the first, so that has been looked at by then.
    eventually("the second webhook in the bucket", async || revision(second).await).await;
    assert_eq!(revision(first).await, Some(before));
}

#[tokio::test]
async fn what_is_given_up_is_a_dead_letter_in_the_database_and_in_a_stream_that_takes_it() {
    let mile = LastMile::start().await;
    let jetstream = mile.feed.nats.jetstream().await;
    let dead = jetstream::stream::Config {
        name: "DEAD".to_owned(),
        subjects: vec!["dlq.>".to_owned()],
        ..jetstream::stream::Config::default()
    };
    jetstream.create_stream(dead).await.unwrap();
    let http = Http::start(|_, _| Reply::Answer {
        status: 500,
        headers: Vec::new(),
        body: b"what\0ever".to_vec(),
        after: Duration::ZERO,
    });
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 2");
    let mut worker = mile.worker().start();
    mile.publish(id, r#"{"n": 1}"#);
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "1").await;
    assert_eq!(http.count(), 3);
    let letter = mile.sql(
        "SELECT webhook_name, subject, reason, convert_from(payload, 'UTF8')::jsonb->'data'->>'n', commit_lsn IS NOT NULL \
         FROM rule_nats_dead_letters",
    );
    assert_eq!(letter, "w|webhooks.w|3 attempts, then: HTTP status 500|1|t");
    let call = "SELECT status, retry_count, error_message, response_body FROM rule_webhook_calls";
    assert_eq!(mile.sql(call), "failed|2|HTTP status 500|what\u{fffd}ever");
    eventually("the dead letter in its stream", async || (mile.feed.last_sequence("DEAD").await == 1).then_some(()))
        .await;
    let stored = mile.feed.messages_of("DEAD").await.remove(0);
    assert_eq!((stored.subject.as_str(), stored.data()), ("dlq.webhooks.w", &json!({"n": 1})));
    assert_eq!(stored.header("Walhook-Reason"), "3 attempts, then: HTTP status 500");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    // The streamer's stream was left alone.
    assert_eq!(mile.feed.messages().await.len(), 1);
}

#[tokio::test]
async fn events_of_a_disabled_webhook_wait_and_those_of_a_deleted_one_become_dead_letters() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::Hang);
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_in_flight = 1, timeout_ms = 300, max_retries = 10, retry_delay_ms = 1000");
    mile.publish_many(id, 3);
    let mut worker = mile.worker().start();
    http.received(1).await;
    mile.sql("UPDATE rule_webhooks SET enabled = false");
    mile.eventually("SELECT count(*) > 0 FROM rule_webhook_calls WHERE status = 'retrying'", "t").await;
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "0").await;
    let called = http.count();
    mile.sql("UPDATE rule_webhooks SET enabled = true");
    http.received(called + 1).await;
    mile.sql(&format!("SELECT rule_webhook_delete({id})"));
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters WHERE reason LIKE '%deleted%'", "3").await;
    // Nothing of it is left behind.
    let jetstream = mile.feed.nats.jetstream().await;
    eventually("the consumer to go", async || {
        let stream = jetstream.get_stream("WEBHOOKS").await.ok()?;
        stream.consumer_info(format!("walhook-deliver-{id}")).await.is_err().then_some(())
    })
    .await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn what_is_in_a_stream_is_still_called_after_the_webhook_has_moved_to_another_stream() {
    let mile = LastMile::start().await;
    let http = Http::start(|number, _| Reply::status(if number < 3 { 503 } else { 200 }));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("SELECT rule_nats_stream_create('OTHER', ARRAY['other.>'])");
    let mut worker = mile.worker().start();
    mile.publish(id, r#"{"n": 1}"#);
    http.received(1).await;
    mile.sql(&format!("UPDATE rule_webhooks SET nats_subject = 'other.w' WHERE webhook_id = {id}"));
    mile.publish(id, r#"{"n": 2}"#);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "2").await;
    assert_eq!(mile.feed.last_sequence("WEBHOOKS").await, 1);
    assert_eq!(mile.feed.last_sequence("OTHER").await, 1);
    assert_eq!(worker.terminate(), 0, "{}", worker.log());

    // And by a worker that has not seen it move.
    mile.publish(id, r#"{"n": 3}"#);
    eventually("the third event", async || (mile.feed.last_sequence("OTHER").await == 2).then_some(())).await;
    mile.sql(&format!("UPDATE rule_webhooks SET nats_subject = NULL WHERE webhook_id = {id}"));
    let mut worker = mile.worker().start();
    mile.publish(id, r#"{"n": 4}"#);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "4").await;
    assert_eq!(mile.feed.last_sequence("OTHER").await, 2);
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn a_webhook_that_moves_to_another_nats_configuration_is_called_by_the_workers_there() {
    let mile = LastMile::start().await;
    let elsewhere = Nats::start().await;
    let http = Http::start(|number, _| Reply::status(if number < 3 { 503 } else { 200 }));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql(&format!("SELECT rule_nats_configure('second', '{}')", elsewhere.url()));
    let settings = mile.settings("nats_config = \"second\"\n");
    let mut here = mile.worker().start();
    let mut there = mile.worker().args(["--config", &settings]).start();
    mile.publish(id, r#"{"n": 1}"#);
    http.received(1).await;
    mile.sql(&format!(
        "UPDATE rule_webhooks SET nats_config_id = (SELECT config_id FROM rule_nats_config WHERE config_name = 'second') \
         WHERE webhook_id = {id}"
    ));
    mile.publish(id, r#"{"n": 2}"#);
    // What was published here before is called by those here, not lost and not a dead letter.
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "2").await;
    assert_eq!(mile.sql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    assert_eq!(mile.feed.last_sequence("WEBHOOKS").await, 1, "the second went elsewhere");
    for worker in [&mut here, &mut there] {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
}

#[tokio::test]
async fn the_consumer_that_the_rfcs_workers_expect_is_there_and_gets_their_subject() {
    let mile = LastMile::start().await;
    mile.sql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.*'])");
    let id = mile.webhook("slack", "https://example.com/");
    mile.publish(id, r#"{"text": "hello"}"#);
    let jetstream = mile.feed.nats.jetstream().await;
    let consumer = eventually("the consumer", async || {
        let stream = jetstream.get_stream("WEBHOOKS").await.ok()?;
        stream.get_consumer::<pull::Config>("webhook-worker-1").await.ok()
    })
    .await;
    let mut messages = consumer.messages().await.unwrap();
    let message = messages.next().await.unwrap().unwrap();
    let payload: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!(message.subject.as_str(), "webhooks.slack");
    assert_eq!(payload["webhook_url"], "https://example.com/");
    assert_eq!(payload["data"], json!({"text": "hello"}));
    message.ack().await.unwrap();
    // A worker that refuses a message at once, as the RFC's does, does not get it for ever.
    mile.publish(id, r#"{"text": "refused"}"#);
    mile.publish(id, r#"{"text": "next"}"#);
    let mut refused = 0;
    while refused < 1000 {
        let message = messages.next().await.unwrap().unwrap();
        let payload: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        match payload["data"]["text"] == "refused" {
            true => {
                refused += 1;
                message.ack_with(jetstream::AckKind::Nak(None)).await.unwrap();
            }
            false => message.ack().await.unwrap(),
        }
    }
    eventually("an end", async || {
        let info = consumer.get_info().await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    let config = consumer.get_info().await.unwrap().config;
    assert_eq!((config.max_deliver, config.backoff.len()), (1000, 4));
    // Others can be asked for, or none.
    mile.sql("UPDATE rule_nats_streams SET consumers = '{mine,yours}'");
    eventually("the named consumers", async || {
        let stream = jetstream.get_stream("WEBHOOKS").await.ok()?;
        let names: BTreeSet<String> = stream.consumer_names().map(Result::unwrap).collect().await;
        ["mine", "yours"].iter().all(|name| names.contains(*name)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_trace_goes_from_a_row_a_call_or_the_session_into_the_message_and_the_request() {
    let mut mile = LastMile::start().await;
    let http = Http::ok();
    let rows = mile.webhook("rows", &http.url("/rows"));
    let bare = mile.webhook("bare", &http.url("/bare"));
    mile.sql(&format!("UPDATE rule_webhooks SET payload_format = 'data' WHERE webhook_id = {bare}"));
    mile.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, trace text DEFAULT current_setting('walhook.traceparent', true)); \
         CREATE TABLE plain (id int PRIMARY KEY)",
    );
    for id in [rows, bare] {
        mile.sql(&format!("SELECT rule_webhook_link_table({id}, 'orders', p_trace_column => 'trace')"));
    }
    let trace = |n: u8| format!("00-4bf92f3577b34da6a3ce929d0e0e47{n:02x}-00f067aa0ba902b7-01");
    let set = |value: &str| format!("SET walhook.traceparent = '{value}'");
    let call = |n: u8, headers: &str| {
        format!("SELECT rule_webhook_publish_nats({rows}, '{{\"id\": {n}}}', headers => {headers})")
    };
    mile.sql(&format!("INSERT INTO orders VALUES (1, '{}')", trace(1)));
    mile.sql(&format!("{}; INSERT INTO orders VALUES (2)", set(&trace(2))));
    mile.sql(&call(3, &format!("'{{\"Traceparent\": \"{}\", \"tracestate\": \"a=b\"}}'", trace(3))));
    mile.sql(&format!("{}; {}", set(&trace(4)), call(4, "'{\"X-A\": \"b\"}'")));
    // The call's own wins over the session's.
    mile.sql(&format!("{}; {}", set(&trace(9)), call(5, &format!("'{{\"traceparent\": \"{}\"}}'", trace(5)))));
    // What is none fails nothing, and goes nowhere.
    mile.sql("INSERT INTO orders VALUES (6, 'forged'), (7, ''), (8, NULL)");
    mile.sql(&call(9, r#"'{"traceparent": "a\\nb", "tracestate": "a=b", "X-A": "b"}'"#));
    mile.sql(&format!("{}; {}", set("00-none"), call(10, "NULL")));
    mile.sql(&format!(
        "INSERT INTO rule_webhook_events (webhook_id, payload, subject, headers) \
         SELECT {rows}, '{{\"id\": 11}}', nats_subject, '{{\"traceparent\": \"forged\", \"X-A\": \"b\"}}' FROM rule_webhooks WHERE webhook_id = {rows}"
    ));
    let mut worker = mile.worker().start();
    let requests = http.received(16).await;
    let expected = |n: i64| if n <= 5 { trace(u8::try_from(n).unwrap()) } else { String::new() };
    let mut seen = BTreeSet::new();
    for request in &requests {
        let n = request.json()["id"].as_i64().unwrap();
        assert_eq!(request.header("traceparent"), expected(n), "{n} {}", request.path);
        assert_eq!(request.header("tracestate"), if n == 3 { "a=b" } else { "" }, "{n}");
        seen.insert((request.path.clone(), n));
    }
    assert_eq!(seen.len(), 16, "{seen:?}");
    for message in mile.feed.messages().await {
        let n = message.data()["id"].as_i64().or_else(|| message.payload["id"].as_i64()).unwrap();
        let header = [message.header("traceparent"), message.header("Traceparent")].concat();
        assert_eq!(header, expected(n), "{n}");
    }
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(mile.sql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    // Once for each webhook, however many there are.
    assert_eq!(
        mile.streamer.log().matches("which is not valid (W3C Trace Context)").count(),
        2,
        "{}",
        mile.streamer.log()
    );
    // A link names a column that there is, and loses it at its own commit.
    let refused =
        mile.feed.pg.try_psql(&format!("SELECT rule_webhook_link_table({rows}, 'plain', p_trace_column => 'trace')"));
    let refused = refused.unwrap_err();
    let hint = refused.as_db_error().unwrap().hint().unwrap().to_owned();
    let (remedy, _) = hint.split_once(';').unwrap();
    mile.sql(remedy);
    mile.sql(&format!("SELECT rule_webhook_link_table({rows}, 'plain', p_trace_column => 'trace')"));
    mile.sql(&format!("{}; INSERT INTO plain VALUES (12)", set(&trace(12))));
    mile.sql(&format!(
        "SELECT rule_webhook_link_table({rows}, 'plain'); {}; INSERT INTO plain VALUES (13)",
        set(&trace(13))
    ));
    assert_eq!(mile.streamer.terminate(), 0, "{}", mile.streamer.log());
    mile.streamer = mile.feed.run();
    mile.feed.confirmed().await;
    let messages = mile.feed.messages().await;
    let last: Vec<_> =
        messages[messages.len() - 2..].iter().map(|message| message.header("traceparent").to_owned()).collect();
    assert_eq!(last, [trace(12), String::new()]);
}
