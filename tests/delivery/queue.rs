//! `walhook deliver --queue`: calls of the queue in PostgreSQL are made as events of a stream are, by however many workers.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, time::Duration};

use super::support::{
    Walhook, eventually,
    http::{Http, Reply},
    last_mile::{LastMile, QUICK, times},
    walhook::Builder,
};

/// A webhook in mode `queue`, tried again soon.
fn webhook(mile: &LastMile, name: &str, url: &str) -> i32 {
    let id = mile.sql(&format!("SELECT rule_webhook_register('{name}', '{url}')"));
    mile.sql(&format!("UPDATE rule_webhooks SET retry_delay_ms = 20 WHERE webhook_id = {id}"));
    id.parse().unwrap()
}

fn enqueue(mile: &LastMile, webhook: i32, count: usize) {
    mile.sql(&format!(
        "SELECT count(rule_webhook_call_unified({webhook}, jsonb_build_object('n', n))) FROM generate_series(1, {count}) n"
    ));
}

fn worker(mile: &LastMile) -> Builder {
    mile.worker().args(["--queue", "--config", &mile.settings(QUICK)])
}

#[tokio::test]
async fn a_call_of_the_queue_is_made_once_and_its_row_says_so() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    let id = webhook(&mile, "w", &http.url("/hook"));
    mile.sql("UPDATE rule_webhooks SET method = 'PUT', headers = '{\"X-A\": \"b\"}'");
    mile.sql(&format!("SELECT rule_webhook_secret_set({id}, 'signing', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')"));
    let call = mile.sql(&format!("SELECT rule_webhook_enqueue({id}, '{{\"price\": 9.90}}')"));
    mile.sql(&format!("SELECT rule_webhook_enqueue({id}, '{{}}', NULL, now() + interval '1 day')"));
    let mut worker = worker(&mile).start();
    let request = http.received(1).await.remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/hook"));
    assert_eq!(String::from_utf8_lossy(&request.body), r#"{"price": 9.90}"#);
    assert_eq!(["x-a", "walhook-type", "walhook-op"].map(|name| request.header(name)), ["b", "webhook.call", "insert"]);
    let webhook_id = request.header("webhook-id");
    assert!(webhook_id.starts_with("walhook-call-") && webhook_id.ends_with(&format!("-{call}")), "{webhook_id}");
    assert!(request.header("webhook-signature").starts_with("v1,"));
    mile.eventually(&format!("SELECT status FROM rule_webhook_calls WHERE call_id = {call}"), "success").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    let row = "SELECT response_status, retry_count, claimed_by IS NULL, claimed_until IS NULL, completed_at >= started_at \
               FROM rule_webhook_calls";
    assert_eq!(mile.sql(&format!("{row} WHERE call_id = {call}")), "200|0|t|t|t");
    assert_eq!(
        mile.sql("SELECT call_id, attempt_number, response_status FROM rule_webhook_call_history"),
        format!("{call}|1|200")
    );
    assert_eq!(mile.sql("SELECT count(*) FROM rule_webhook_calls WHERE status = 'pending'"), "1", "that of tomorrow");
    assert_eq!(http.count(), 1);
}

#[tokio::test]
async fn several_workers_and_those_of_others_share_the_queue_and_each_call_is_made_once() {
    const THEIRS: &str = "WITH next AS (SELECT call_id FROM rule_webhook_calls WHERE status = 'pending' AND scheduled_at <= now() \
            ORDER BY scheduled_at LIMIT 3 FOR UPDATE SKIP LOCKED) \
        UPDATE rule_webhook_calls c SET status = 'success', response_body = 'theirs' FROM next WHERE c.call_id = next.call_id";
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::slow(Duration::from_millis(5)));
    let id = webhook(&mile, "w", &http.url("/"));
    let mut workers = [worker(&mile).start(), worker(&mile).start()];
    for worker in &mut workers {
        worker.logged("taking calls from the queue").await;
    }
    mile.sql("UPDATE rule_webhooks SET max_in_flight = 8");
    enqueue(&mile, id, 600);
    eventually("an empty queue", async || {
        mile.sql(THEIRS);
        (mile.sql("SELECT count(*) FROM rule_webhook_calls WHERE status <> 'success'") == "0").then_some(())
    })
    .await;
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    let (ours, theirs) =
        (times(&http.requests()), mile.sql("SELECT count(*) FROM rule_webhook_calls WHERE response_body = 'theirs'"));
    assert!(ours.values().all(|times| *times == 1));
    assert_eq!(ours.len() + theirs.parse::<usize>().unwrap(), 600);
    assert!(!ours.is_empty() && theirs != "0", "{} and {theirs}", ours.len());
    let recorded = "SELECT count(*), count(DISTINCT call_id) FROM rule_webhook_call_history";
    assert_eq!(mile.sql(recorded), format!("{0}|{0}", ours.len()));
    assert!(http.busiest() <= 8, "{}", http.busiest());
}

#[tokio::test]
async fn a_failed_call_is_retried_then_dead_and_again_in_the_queue_on_demand_under_the_same_id() {
    let mile = LastMile::start().await;
    let http = Http::start(|number, _| Reply::status(if number < 4 { 503 } else { 200 }));
    let id = webhook(&mile, "w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 2");
    let mut worker = worker(&mile).start();
    enqueue(&mile, id, 1);
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "1").await;
    assert_eq!(http.count(), 3);
    assert_eq!(mile.sql("SELECT status, retry_count, response_status FROM rule_webhook_calls"), "failed|2|503");
    let letter =
        "SELECT status, origin, webhook_name, reason, convert_from(payload, 'UTF8') FROM rule_nats_dead_letters";
    assert_eq!(mile.sql(letter), "dead|queue|w|3 attempts, then: HTTP status 503|{\"n\": 1}");
    assert_eq!(
        mile.sql("SELECT array_agg(attempt_number ORDER BY attempt_number) FROM rule_webhook_call_history"),
        "{1,2,3}"
    );
    let done = mile.feed.command("dead-letters").args(["retry", "--since", "1h"]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.contains("dead letter 1 is in the queue again as call 2"), "{}", done.stdout);
    mile.eventually("SELECT status, retry_count FROM rule_webhook_calls WHERE call_id = 2", "success|1").await;
    assert_eq!(mile.sql("SELECT status, retried_call, retried_as FROM rule_nats_dead_letters"), "retried|2|");
    let ids: BTreeSet<String> = http.requests().iter().map(|request| request.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 1, "the receiver knows the call: {ids:?}");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    // By SQL, of one webhook; a time before which there is nothing retries nothing.
    mile.sql("UPDATE rule_nats_dead_letters SET status = 'dead'");
    assert_eq!(mile.sql("SELECT rule_nats_dead_letters_retry(now() + interval '1 hour', 'w')"), "0");
    assert_eq!(mile.sql("SELECT rule_nats_dead_letters_retry(now() - interval '1 hour', 'w')"), "1");
    assert_eq!(mile.sql("SELECT count(*) FROM rule_webhook_calls WHERE status = 'pending'"), "1");
}

#[tokio::test]
async fn workers_that_are_killed_in_mid_flight_lose_nothing() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::slow(Duration::from_millis(20)));
    let id = webhook(&mile, "w", &http.url("/"));
    enqueue(&mile, id, 300);
    for round in 1..=3 {
        let mut worker = worker(&mile).start();
        http.received(round * 60).await;
        worker.kill9();
    }
    assert_ne!(
        mile.sql("SELECT count(*) FROM rule_webhook_calls WHERE status = 'processing'"),
        "0",
        "nobody was killed in mid-flight"
    );
    let mut worker = worker(&mile).start();
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "300").await;
    assert_eq!(times(&http.requests()).len(), 300);
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    let doubled = "SELECT count(*) FROM (SELECT 1 FROM rule_webhook_call_history GROUP BY call_id, attempt_number, started_at \
                   HAVING count(*) > 1) d";
    assert_eq!(mile.sql(doubled), "0");
}

/// Calls that succeed, fail once or fail for good, by a worker that aborts, fails or stalls at a fault point.
#[tokio::test]
async fn a_worker_that_aborts_fails_or_stalls_at_any_step_loses_nothing_and_repeats_only_calls_it_had() {
    const CALLS: i64 = 10;
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::status(200));
    let id = webhook(&mile, "w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 1");
    let settings = mile.settings("[deliver]\nack_wait_ms = 500\nqueue_poll_ms = 20\nmax_in_flight_per_webhook = 3\n");
    let worker = || mile.worker().args(["--queue", "--config", &settings]);
    let unfinished = "SELECT count(*) FROM rule_webhook_calls WHERE status NOT IN ('success', 'failed')";
    let points = ["QueueTaken", "QueueUncalled", "QueueCalled", "QueueUnwritten", "QueueWritten"];
    let points = points.into_iter().flat_map(|point| [1, 3].map(|hit| (point, hit)));
    let cases = points.flat_map(|at| ["abort", "error", "delay"].map(|action| (at, action)));
    for (case, ((point, hit), action)) in (0i64..).zip(cases) {
        let name = format!("{point}={action}@{hit}");
        let first = case * CALLS;
        let seen = std::sync::Mutex::new(BTreeSet::new());
        http.script(move |_, request| {
            let n = request.json()["n"].as_i64().unwrap();
            let is_first = seen.lock().unwrap().insert(n);
            Reply::status(if n == first || n == first + 1 && is_first { 500 } else { 200 })
        });
        mile.sql(&format!(
            "SELECT count(rule_webhook_enqueue({id}, jsonb_build_object('n', n))) \
             FROM generate_series({first}, {first} + {CALLS} - 1) n"
        ));
        let mut faulty = worker().env("WALHOOK_FAULTS", &name).start();
        let had = "SELECT coalesce(string_agg(payload ->> 'n', ' '), '') FROM rule_webhook_calls \
                   WHERE status = 'processing' AND claimed_until IS NOT NULL";
        let mut had_then = String::new();
        let mut workers = Vec::new();
        if action == "abort" {
            eventually(&name, async || faulty.exited().map(drop)).await;
            had_then = mile.sql(had);
            workers.push(worker().start());
        }
        mile.eventually(unfinished, "0").await;
        assert!(faulty.log().contains("fault point"), "{name}: {}", faulty.log());
        if action != "abort" {
            workers.push(faulty);
        }
        for worker in &mut workers {
            assert_eq!(worker.terminate(), 0, "{name}: {}", worker.log());
        }
        let had_then: BTreeSet<i64> = had_then.split_whitespace().map(|n| n.parse().unwrap()).collect();
        let times = times(&http.requests());
        for n in first..first + CALLS {
            let count = times.get(&n).copied().unwrap_or(0);
            let needed = if n <= first + 1 { 2 } else { 1 };
            let most = match action {
                "abort" => needed + usize::from(had_then.contains(&n)),
                // The fault hits one call at most.
                _ => needed + 1,
            };
            assert!((needed..=most).contains(&count), "{name}: {} times {n}, had {had_then:?}", count);
        }
        let doubled: usize = times.range(first..).map(|(n, count)| count - if *n <= first + 1 { 2 } else { 1 }).sum();
        assert!(action == "abort" || doubled <= 1, "{name}: {doubled}");
        let rows = "SELECT count(*) FILTER (WHERE c.status = 'failed'), count(*) FILTER (WHERE c.status = 'success') \
                    FROM rule_webhook_calls c";
        let of_case = format!("WHERE (c.payload ->> 'n')::bigint BETWEEN {first} AND {first} + {CALLS} - 1");
        assert_eq!(mile.sql(&format!("{rows} {of_case}")), format!("1|{}", CALLS - 1), "{name}");
        let letters = format!(
            "SELECT count(*) FROM rule_nats_dead_letters c \
             WHERE convert_from(c.payload, 'UTF8')::jsonb ->> 'n' = '{first}' AND status = 'dead'"
        );
        assert_eq!(mile.sql(&letters), "1", "{name}");
        assert_eq!(mile.sql("SELECT count(*) FROM rule_nats_dead_letters"), (case + 1).to_string(), "{name}");
    }
    let recorded = "SELECT count(*) FROM (SELECT 1 FROM rule_webhook_call_history GROUP BY call_id, attempt_number, started_at \
                    HAVING count(*) > 1) d";
    assert_eq!(mile.sql(recorded), "0", "a row for each attempt");
}

#[tokio::test]
async fn strict_calls_are_made_one_at_a_time_in_their_order_by_two_workers() {
    let mile = LastMile::start().await;
    let http = Http::start(|number, _| Reply::status(if number < 2 { 500 } else { 200 }));
    let id = webhook(&mile, "w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET delivery_order = 'strict'");
    enqueue(&mile, id, 30);
    let mut workers = [worker(&mile).start(), worker(&mile).start()];
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "30").await;
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    let order: Vec<i64> = http.requests().iter().map(|request| request.json()["n"].as_i64().unwrap()).collect();
    assert_eq!(order, [1, 1].into_iter().chain(1..=30).collect::<Vec<_>>());
    assert_eq!(http.busiest(), 1);
}

#[tokio::test]
async fn retry_after_410_and_disabled_webhooks_hold_for_every_worker_of_the_queue() {
    let mile = LastMile::start().await;
    let (busy, gone, here) = (
        Http::start(|_, _| Reply::with(429, "Retry-After", "3600")),
        Http::start(|_, _| Reply::status(410)),
        Http::ok(),
    );
    let w = webhook(&mile, "w", &busy.url("/"));
    enqueue(&mile, w, 1);
    let mut workers = vec![worker(&mile).start()];
    mile.eventually("SELECT paused_until > now() + interval '3000 seconds' FROM walhook.rule_webhook_limits", "t")
        .await;
    // One that starts later knows it, too.
    let probe = webhook(&mile, "probe", &here.url("/"));
    enqueue(&mile, w, 50);
    workers.push(worker(&mile).start());
    workers[1].logged("taking calls from the queue").await;
    enqueue(&mile, probe, 50);
    here.received(50).await;
    assert_eq!(busy.count(), 1);
    // Another URL has asked for no pause; 410 ends it, and nothing is called until somebody says where to go on.
    mile.sql(&format!("UPDATE rule_webhooks SET url = '{}', max_in_flight = 1 WHERE webhook_id = {w}", gone.url("/")));
    mile.eventually(&format!("SELECT disabled_at IS NOT NULL FROM rule_webhooks WHERE webhook_id = {w}"), "t").await;
    mile.sql(&format!(
        "UPDATE rule_webhooks SET url = '{}', max_in_flight = NULL, enabled = true WHERE webhook_id = {w}",
        here.url("/w")
    ));
    let left = "SELECT count(*) FROM rule_webhook_calls WHERE status IN ('pending', 'processing')";
    mile.eventually(left, "0").await;
    let dead = mile.sql("SELECT count(*) FROM rule_nats_dead_letters").parse::<usize>().unwrap();
    assert!(dead >= 1 && dead == gone.count(), "{dead} {}", gone.count());
    assert_eq!(busy.count(), 1);
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
}

#[tokio::test]
async fn sigterm_gives_back_what_does_not_end_and_a_database_that_restarts_is_waited_for() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, request| if request.path == "/hang" { Reply::Hang } else { Reply::status(200) });
    let (hang, fine) = (webhook(&mile, "hang", &http.url("/hang")), webhook(&mile, "fine", &http.url("/fine")));
    mile.sql("UPDATE rule_webhooks SET timeout_ms = 60000");
    enqueue(&mile, hang, 1);
    let settings = mile.settings(&format!("shutdown_timeout_ms = 100\n{QUICK}"));
    let mut stopping = mile.worker().args(["--queue", "--config", &settings]).start();
    http.received(1).await;
    assert_eq!(stopping.terminate(), 0, "{}", stopping.log());
    let row = "SELECT status, retry_count, claimed_by, claimed_until FROM rule_webhook_calls";
    assert_eq!(mile.sql(row), "pending|0||", "{}", stopping.log());
    mile.sql("UPDATE rule_webhooks SET enabled = false WHERE webhook_name = 'hang'");
    let mut worker = worker(&mile).start();
    worker.logged("taking calls from the queue").await;
    mile.feed.pg.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'walhook_worker'");
    enqueue(&mile, fine, 20);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "20").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 21);
}

#[tokio::test]
async fn the_queue_needs_no_nats_and_flags_that_contradict_it_are_refused() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    let id = webhook(&mile, "w", &http.url("/"));
    mile.sql("UPDATE rule_nats_config SET nats_url = 'nats://127.0.0.1:9'");
    enqueue(&mile, id, 1);
    let mut worker = worker(&mile).start();
    http.received(1).await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    for flags in [&["--no-database"][..], &["--record", "off"], &["--deliver-from", "new"]] {
        let done = Walhook::command("deliver").arg("--queue").args(flags).finish();
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains("--queue") && done.stderr.contains(flags[0]), "{}", done.stderr);
    }
}
