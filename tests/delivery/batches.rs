//! `batch_max_events`: several events in one request, each with an outcome of its own.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Duration};

use super::support::{
    eventually,
    http::{Http, Reply, Request},
    last_mile::{LastMile, QUICK},
};

/// The `n` of each event of a request.
fn numbers(request: &Request) -> Vec<i64> {
    request.json().as_array().unwrap().iter().map(|event| event["n"].as_i64().unwrap()).collect()
}

/// How often each `{"n": …}` came.
fn times(requests: &[Request]) -> BTreeMap<i64, usize> {
    let mut times = BTreeMap::new();
    for n in requests.iter().flat_map(numbers) {
        *times.entry(n).or_default() += 1;
    }
    times
}

fn enqueue(mile: &LastMile, webhook: i32, from: u32, to: u32) {
    mile.sql(&format!(
        "SELECT count(rule_webhook_enqueue({webhook}, jsonb_build_object('n', n))) FROM generate_series({from}, {to}) n"
    ));
}

#[tokio::test]
async fn events_and_calls_come_as_signed_arrays_and_each_has_its_row_in_the_history() {
    let http = Http::ok();
    let mile = LastMile::start().await;
    let id = mile.webhook("w", &http.url("/"));
    mile.sql(&format!("SELECT rule_webhook_secret_set({id}, 'signing', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')"));
    mile.sql("UPDATE rule_webhooks SET batch_max_events = 10, batch_max_wait_ms = 200");
    mile.publish_many(id, 45);
    enqueue(&mile, id, 46, 90);
    let settings = mile.settings(QUICK);
    let mut workers =
        [&[][..], &["--queue"]].map(|flags: &[&str]| mile.worker().args(["--config", &settings]).args(flags).start());
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "90").await;
    let requests = http.requests();
    assert_eq!(times(&requests), (1..=90).map(|n| (n, 1)).collect());
    assert!(requests.len() <= 20, "{} requests", requests.len());
    for request in &requests {
        let count = numbers(request).len();
        assert!(count <= 10 && request.header("walhook-batch") == count.to_string(), "{count}");
        assert!(request.header("webhook-id").starts_with("batch-"), "{request:?}");
        assert_eq!(request.header("walhook-type"), "webhook.call");
        let mut headers = hyper::HeaderMap::new();
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            headers.insert(name, request.header(name).parse().unwrap());
        }
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        standardwebhooks::Webhook::new(secret).unwrap().verify(&request.body, &headers).unwrap();
    }
    let rows = "SELECT count(*), count(DISTINCT call_id), max(attempt_number), max(response_status) FROM rule_webhook_call_history";
    assert_eq!(mile.sql(rows), "90|90|1|200");
    assert_eq!(mile.sql("SELECT sum((payload ->> 'n')::int) FROM rule_webhook_calls"), (90 * 91 / 2).to_string());
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
}

#[tokio::test]
async fn a_body_has_at_most_so_many_bytes_unless_one_event_has_more() {
    let http = Http::ok();
    let mile = LastMile::start().await;
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET batch_max_events = 10, batch_max_wait_ms = 200, batch_max_bytes = 1024");
    let payload = "jsonb_build_object('n', n, 'pad', repeat('x', CASE n WHEN 10 THEN 3000 ELSE 300 END))";
    mile.sql(&format!("SELECT count(rule_webhook_publish_nats({id}, {payload})) FROM generate_series(1, 20) n"));
    let mut worker = mile.worker().start();
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "20").await;
    let requests = http.requests();
    assert!(requests.iter().any(|request| numbers(request).len() > 1));
    for request in &requests {
        assert!(request.body.len() <= 1024 || numbers(request) == [10], "{} bytes", request.body.len());
    }
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn an_event_that_its_receiver_refuses_is_found_by_halves_and_costs_the_others_nothing() {
    let http = Http::start(|_, request| {
        let is_bad = numbers(request).iter().any(|n| n % 100 == 7);
        Reply::status(if is_bad { 422 } else { 200 })
    });
    let mile = LastMile::start().await;
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET batch_max_events = 20, batch_max_wait_ms = 200, max_retries = 3");
    mile.publish_many(id, 20);
    enqueue(&mile, id, 101, 120);
    let settings = mile.settings(QUICK);
    let mut workers =
        [&[][..], &["--queue"]].map(|flags: &[&str]| mile.worker().args(["--config", &settings]).args(flags).start());
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "38").await;
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "2").await;
    let letters = "SELECT string_agg(origin || ': ' || reason, '; ' ORDER BY origin) FROM rule_nats_dead_letters";
    assert_eq!(
        mile.sql(letters),
        "deliver: 4 attempts, then: HTTP status 422; queue: 4 attempts, then: HTTP status 422"
    );
    let failed =
        "SELECT string_agg(payload ->> 'n', ' ' ORDER BY call_id) FROM rule_webhook_calls WHERE status = 'failed'";
    assert!(["7 107", "107 7"].contains(&mile.sql(failed).as_str()));
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    let requests = http.requests();
    for bad in [7, 107] {
        let last = requests.iter().rev().map(numbers).find(|numbers| numbers.contains(&bad)).unwrap();
        assert_eq!(last, [bad], "by a call in which it was alone");
    }
    // The first call failed for all, the second found the one: no attempt more.
    let most = "SELECT max(retry_count) FROM rule_webhook_calls WHERE status = 'success'";
    assert_eq!(mile.sql(most), "1");
}

#[tokio::test]
async fn a_receiver_that_is_away_gets_whole_batches_later_and_kills_lose_nothing() {
    let http = Http::start(|number, _| Reply::status(if number < 6 { 503 } else { 200 }));
    let mile = LastMile::start().await;
    let id = mile.webhook("w", &http.url("/"));
    // A full batch waits for nothing, so the wait is only for a machine on which events come one by one.
    mile.sql(
        "UPDATE rule_webhooks SET batch_max_events = 10, batch_max_wait_ms = 2000, max_retries = 10, max_in_flight = 1",
    );
    mile.publish_many(id, 10);
    let settings = mile.settings(QUICK);
    let start = || mile.worker().args(["--config", &settings]).start();
    let mut worker = start();
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "10").await;
    assert_eq!(mile.sql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    assert!(http.requests().iter().take(6).all(|request| numbers(request).len() > 1), "a batch is not split for it");
    http.script(|_, _| Reply::slow(Duration::from_millis(50)));
    mile.sql("UPDATE rule_webhooks SET max_in_flight = NULL");
    mile.publish_many(id, 300);
    let before = http.count();
    for round in 1..=3 {
        http.received(before + round * 4).await;
        worker.kill9();
        worker = start();
    }
    eventually("all", async || (times(&http.requests()[before..]).len() == 300).then_some(())).await;
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status <> 'success'", "0").await;
    mile.eventually("SELECT count(*) FROM rule_webhook_calls", "310").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}
