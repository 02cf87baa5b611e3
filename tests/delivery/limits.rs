//! `max_in_flight` and `rate_limit_per_second` hold over all workers, whichever way the events come, and through kills.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::support::{
    eventually,
    http::{Http, Reply, Request},
    last_mile::{LastMile, QUICK},
};

fn numbers(requests: &[Request]) -> BTreeSet<i64> {
    requests.iter().map(|request| request.json()["n"].as_i64().unwrap()).collect()
}

/// A webhook with events in its stream and calls in the queue.
async fn both(url: &str, count: usize) -> (LastMile, String) {
    let mile = LastMile::start().await;
    let id = mile.webhook("w", url);
    mile.publish_many(id, count);
    mile.sql(&format!(
        "SELECT count(rule_webhook_enqueue({id}, jsonb_build_object('n', {count} + n))) FROM generate_series(1, {count}) n"
    ));
    let settings = mile.settings(QUICK);
    (mile, settings)
}

#[tokio::test]
async fn max_in_flight_is_shared_by_all_workers_and_what_a_killed_one_held_comes_back() {
    let http = Http::start(|_, _| Reply::slow(Duration::from_millis(30)));
    let (mile, settings) = both(&http.url("/"), 150).await;
    mile.sql("UPDATE rule_webhooks SET max_in_flight = 3, timeout_ms = 1000");
    let start = |flags: &[&str]| mile.worker().args(["--config", &settings]).args(flags).start();
    let mut workers = vec![start(&[]), start(&[]), start(&["--queue"])];
    // Each has its share: there are as many workers as calls.
    mile.eventually("SELECT count(*) FILTER (WHERE calls > 0) FROM walhook.rule_webhook_limit_holders", "3").await;
    http.received(60).await;
    workers[0].kill9();
    workers[0] = start(&[]);
    http.received(120).await;
    workers[2].kill9();
    workers[2] = start(&["--queue"]);
    eventually("all", async || (numbers(&http.requests()).len() == 300).then_some(())).await;
    assert!(http.busiest() <= 3, "{}", http.busiest());
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    let held =
        "SELECT count(*) FROM walhook.rule_webhook_limit_holders WHERE held_until > now() + interval '12 seconds'";
    assert_eq!(mile.sql(held), "0");
}

#[tokio::test]
async fn what_a_stopped_worker_held_goes_to_others_and_it_goes_on_within_the_limit() {
    let http = Http::start(|_, _| Reply::slow(Duration::from_millis(100)));
    let (mile, settings) = both(&http.url("/"), 60).await;
    mile.sql("UPDATE rule_webhooks SET max_in_flight = 2, timeout_ms = 1000, max_retries = 10");
    // More than the other one calls until the stopped one's time is over.
    mile.sql("SELECT count(rule_webhook_enqueue(1, jsonb_build_object('n', n))) FROM generate_series(121, 400) n");
    let start = |flags: &[&str]| mile.worker().args(["--config", &settings]).args(flags).start();
    let (mut stopped, mut other) = (start(&[]), start(&["--queue"]));
    let slots = "SELECT string_agg(calls::text, ' ') FROM walhook.rule_webhook_limit_holders";
    mile.eventually(slots, "1 1").await;
    http.received(10).await;
    // In the middle of its calls: its connections stay open, and its time runs out.
    stopped.pause();
    mile.eventually(slots, "2").await;
    stopped.resume();
    mile.eventually(slots, "1 1").await;
    eventually("all", async || (numbers(&http.requests()).len() == 400).then_some(())).await;
    assert!(http.busiest() <= 2, "{}", http.busiest());
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "400").await;
    for worker in [&mut stopped, &mut other] {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
}

#[tokio::test]
async fn more_workers_than_slots_starve_no_event_and_another_limit_holds_at_once() {
    let http = Http::start(|_, _| Reply::slow(Duration::from_millis(10)));
    let (mile, settings) = both(&http.url("/"), 60).await;
    mile.sql("UPDATE rule_webhooks SET max_in_flight = 1, timeout_ms = 1000");
    let mut workers: Vec<_> = [&[][..], &[], &["--queue"], &["--queue"]]
        .iter()
        .map(|flags: &&[&str]| mile.worker().args(["--config", &settings]).args(*flags).start())
        .collect();
    http.received(40).await;
    assert_eq!(http.busiest(), 1);
    mile.sql("UPDATE rule_webhooks SET max_in_flight = 5");
    eventually("all", async || (numbers(&http.requests()).len() == 120).then_some(())).await;
    assert!(http.busiest() <= 5, "{}", http.busiest());
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    assert_eq!(mile.sql("SELECT count(*) FROM walhook.rule_webhook_limit_holders"), "0", "given back at the end");
    let attempts = "SELECT max(attempt_number) FROM rule_webhook_call_history";
    assert_eq!(mile.sql(attempts), "1", "waiting is no attempt");
}

#[tokio::test]
async fn a_rate_holds_over_all_workers_and_a_killed_one_only_wastes_starts() {
    const RATE: f64 = 40.0;
    let http = Http::ok();
    let (mile, settings) = both(&http.url("/"), 60).await;
    mile.sql(&format!("UPDATE rule_webhooks SET rate_limit_per_second = {RATE}"));
    let start = |flags: &[&str]| mile.worker().args(["--config", &settings]).args(flags).start();
    let began = Instant::now();
    let mut workers = vec![start(&[]), start(&[]), start(&["--queue"])];
    http.received(40).await;
    workers[1].kill9();
    workers[1] = start(&[]);
    eventually("all", async || (numbers(&http.requests()).len() == 120).then_some(())).await;
    // No call begins before its own start, and no two have the same, whatever the machine is busy with.
    let requests = http.requests();
    for (number, request) in requests.iter().enumerate() {
        #[allow(clippy::cast_precision_loss)]
        let at_least = Duration::from_secs_f64(number as f64 / RATE);
        assert!(request.at - began >= at_least, "request {number} after {:?}", request.at - began);
    }
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
}

#[tokio::test]
async fn a_worker_without_a_database_leaves_webhooks_with_a_rate_to_others() {
    let http = Http::ok();
    let mile = LastMile::start().await;
    let (limited, free) = (mile.webhook("limited", &http.url("/limited")), mile.webhook("free", &http.url("/free")));
    mile.sql(&format!("UPDATE rule_webhooks SET rate_limit_per_second = 0.5 WHERE webhook_id = {limited}"));
    mile.publish(limited, r#"{"n": 1}"#);
    mile.publish(free, r#"{"n": 2}"#);
    let mut worker = mile.without_database().start();
    worker.logged("workers share its rate_limit_per_second through the database").await;
    assert_eq!(http.received(1).await[0].path, "/free");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 1);
}
