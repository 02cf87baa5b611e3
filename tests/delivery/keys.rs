//! `delivery_order = 'key'`: the calls of each key come one after the other, those of other keys go on, over all workers and through kills.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use super::support::{
    eventually,
    http::{Http, Reply, Request},
    last_mile::LastMile,
};

const QUICK: &str = "[deliver]\nack_wait_ms = 1000\nqueue_poll_ms = 20\nmax_in_flight_per_webhook = 8\n";

fn key_and_n(request: &Request) -> (i64, i64) {
    let json = request.json();
    (json["k"].as_i64().unwrap(), json["n"].as_i64().unwrap())
}

/// A webhook whose calls are in the order of the field `k`.
fn webhook(mile: &LastMile, url: &str) -> i32 {
    let id = mile.webhook("w", url);
    mile.sql("UPDATE rule_webhooks SET delivery_order = 'key', order_key = 'data:k', timeout_ms = 1000");
    id
}

/// Events `from` to `to`, spread over `keys` keys.
fn publish(mile: &LastMile, webhook: i32, from: usize, to: usize, keys: usize) {
    mile.sql(&format!(
        "SELECT count(rule_webhook_publish_nats({webhook}, jsonb_build_object('k', n % {keys}, 'n', n))) \
         FROM generate_series({from}, {to}) n"
    ));
}

/// The first time that each event of a key came, in their order.
fn firsts(requests: &[Request]) -> BTreeMap<i64, Vec<i64>> {
    let (mut firsts, mut seen) = (BTreeMap::<i64, Vec<i64>>::new(), BTreeSet::new());
    for (key, n) in requests.iter().map(key_and_n) {
        if seen.insert(n) {
            firsts.entry(key).or_default().push(n);
        }
    }
    firsts
}

/// No event came before an earlier one of its key had come.
fn is_ordered(requests: &[Request]) {
    for (key, numbers) in firsts(requests) {
        assert!(numbers.is_sorted(), "key {key}: {numbers:?}");
    }
}

#[tokio::test]
async fn a_failing_event_holds_back_its_key_alone_until_it_succeeds_or_is_dead() {
    let mile = LastMile::start().await;
    let refused = Mutex::new(0);
    // The first event of key 1 never succeeds, that of key 2 does the third time.
    let http = Http::start(move |_, request| match key_and_n(request) {
        (_, 1) => Reply::status(500),
        (_, 2) => {
            let mut refused = refused.lock().unwrap();
            *refused += 1;
            Reply::status(if *refused < 3 { 500 } else { 200 })
        }
        _ => Reply::slow(Duration::from_millis(5)),
    });
    let id = webhook(&mile, &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 3, retry_delay_ms = 300, retry_backoff_multiplier = 1");
    publish(&mile, id, 1, 60, 4);
    let settings = mile.settings(QUICK);
    let mut workers = [(); 2].map(|()| mile.worker().args(["--config", &settings]).start());
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "59").await;
    mile.eventually("SELECT reason FROM rule_nats_dead_letters", "4 attempts, then: HTTP status 500").await;
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    let requests = http.requests();
    is_ordered(&requests);
    let place = |wanted: (i64, i64), last: bool| {
        let mut places = requests.iter().enumerate().filter(|(_, it)| key_and_n(it) == wanted).map(|(place, _)| place);
        if last { places.next_back().unwrap() } else { places.next().unwrap() }
    };
    // All attempts of an event come before the next of its key; other keys were done by then.
    assert!(place((1, 1), true) < place((1, 5), false) && place((2, 2), true) < place((2, 6), false));
    assert!(place((0, 60), true) < place((1, 5), false), "key 0 went on");
    assert!(http.busiest() > 1, "keys side by side");
    assert_eq!(mile.sql("SELECT count(*) FROM walhook.rule_webhook_order_holders"), "0", "given back");
    let attempts = "SELECT max(attempt_number), count(*) FROM rule_webhook_call_history h JOIN rule_webhook_calls c USING (call_id) \
                    WHERE c.payload ->> 'n' = '1'";
    assert_eq!(mile.sql(attempts), "4|4");
}

#[tokio::test]
async fn the_order_holds_through_kills_and_stops_of_the_worker_that_calls() {
    let mile = LastMile::start().await;
    let http = Http::start(|number, _| match number % 7 {
        3 => Reply::status(503),
        _ => Reply::slow(Duration::from_millis(20)),
    });
    let id = webhook(&mile, &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 10");
    publish(&mile, id, 1, 400, 10);
    let settings = mile.settings(QUICK);
    let start = || mile.worker().args(["--config", &settings]).start();
    let mut workers = vec![start(), start()];
    let holder = "SELECT worker FROM walhook.rule_webhook_order_holders WHERE held_until > now()";
    let pid_of = |holder: &str| holder.split('-').next().unwrap().parse::<u32>().unwrap();
    http.received(60).await;
    let first = mile.sql(holder);
    let index = workers.iter().position(|worker| worker.pid() == pid_of(&first)).unwrap();
    workers[index].kill9();
    eventually("another worker", async || {
        let now = mile.sql(holder);
        (!now.is_empty() && now != first).then_some(())
    })
    .await;
    let before = http.count();
    http.received(before + 60).await;
    // A worker that stands still beyond its time gives back what it has when it goes on.
    let second = mile.sql(holder);
    let index = workers.iter().position(|worker| worker.pid() == pid_of(&second)).unwrap();
    workers[index].pause();
    workers.push(start());
    eventually("a third worker", async || {
        let now = mile.sql(holder);
        (!now.is_empty() && now != second).then_some(())
    })
    .await;
    workers[index].resume();
    eventually("all", async || (firsts(&http.requests()).values().map(Vec::len).sum::<usize>() == 400).then_some(()))
        .await;
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "400").await;
    is_ordered(&http.requests());
    assert_eq!(mile.sql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    workers.retain_mut(|worker| worker.exited().is_none());
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
}

#[tokio::test]
async fn calls_of_the_queue_keep_the_order_of_their_keys_over_several_workers() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, request| match key_and_n(request) {
        (1, 1) => Reply::status(500),
        _ => Reply::slow(Duration::from_millis(5)),
    });
    let id = webhook(&mile, &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 3");
    mile.sql(&format!(
        "SELECT count(rule_webhook_enqueue({id}, jsonb_build_object('k', n % 5, 'n', n))) FROM generate_series(1, 100) n"
    ));
    let settings = mile.settings(QUICK);
    let mut workers = [(); 2].map(|()| mile.worker().args(["--queue", "--config", &settings]).start());
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "99").await;
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "1").await;
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    let requests = http.requests();
    is_ordered(&requests);
    let last = requests.iter().rposition(|it| key_and_n(it) == (1, 1)).unwrap();
    let next = requests.iter().position(|it| key_and_n(it) == (1, 6)).unwrap();
    assert!(last < next, "{last} {next}");
    assert!(http.busiest() > 1);
}

#[tokio::test]
async fn a_webhook_changes_to_the_order_of_keys_and_back_while_it_is_called() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::slow(Duration::from_millis(5)));
    let id = mile.webhook("w", &http.url("/"));
    let settings = mile.settings(QUICK);
    let mut worker = mile.worker().args(["--config", &settings]).start();
    publish(&mile, id, 1, 50, 5);
    http.received(10).await;
    mile.sql("UPDATE rule_webhooks SET delivery_order = 'key', order_key = 'data:k'");
    mile.eventually("SELECT count(*) FROM walhook.rule_webhook_order_holders", "1").await;
    publish(&mile, id, 51, 150, 5);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "150").await;
    let later: Vec<Request> = http.requests().into_iter().filter(|request| key_and_n(request).1 > 50).collect();
    is_ordered(&later);
    // While it is disabled, nobody has its events; then they come in their order.
    http.script(|_, _| Reply::slow(Duration::from_millis(100)));
    publish(&mile, id, 151, 200, 5);
    http.received(155).await;
    mile.sql("UPDATE rule_webhooks SET enabled = false");
    worker.logged("the webhook is not called at present").await;
    http.script(|_, _| Reply::status(200));
    mile.sql("UPDATE rule_webhooks SET enabled = true");
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "200").await;
    is_ordered(&http.requests().into_iter().filter(|request| key_and_n(request).1 > 50).collect::<Vec<_>>());
    mile.sql("UPDATE rule_webhooks SET delivery_order = 'any'");
    publish(&mile, id, 201, 250, 5);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "250").await;
    assert_eq!(http.count(), 250, "each once");
    let mut outsider = mile.without_database().start();
    mile.sql("UPDATE rule_webhooks SET delivery_order = 'key'");
    outsider.logged("workers agree through the database on who calls it").await;
    for worker in [&mut worker, &mut outsider] {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
}
