//! RFC-0007 as it shows itself to a user: its Examples 1 to 5, its integration test and its migration path, word for word
//! as far as SQL goes, with the sidecar behind them and subscribers of core NATS in front.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::collections::BTreeSet;

use async_nats::Subscriber;
use futures_util::{StreamExt, future::join_all};
use serde_json::{Value, json};
use support::{Walhook, eventually, feed::Feed};
use tokio_postgres::NoTls;

const EXAMPLE_1: &str = r#"
-- 1. Configure NATS connection
SELECT rule_nats_configure(
    'default',
    'nats://nats-server:4222',
    'none',
    true -- Enable JetStream
);

-- 2. Initialize NATS connection pool (Rust function)
SELECT rule_nats_init('default');

-- 3. Create JetStream stream
SELECT rule_nats_stream_create(
    'WEBHOOKS',
    ARRAY['webhooks.*', 'events.*'],
    'default',
    'limits',
    604800 -- 7 days retention
);

-- 4. Register webhook with NATS enabled
SELECT rule_webhook_register(
    'slack_alerts',
    'https://hooks.slack.com/services/XXX',
    'POST',
    '{"Content-Type": "application/json"}'::JSONB
);

-- 5. Enable NATS for webhook
SELECT rule_webhook_enable_nats(
    1, -- webhook_id
    'webhooks.slack', -- subject
    'nats', -- publish to NATS only
    'default'
);

-- 6. Publish event
SELECT rule_webhook_call_unified(
    1,
    '{"text": "Alert: System error detected!"}'::JSONB
);
"#;

const EXAMPLE_2: &str = r#"
-- Enable NATS for webhook
SELECT rule_webhook_enable_nats(
    1, -- webhook_id
    'events.order.created', -- subject
    'nats'
);

-- Publish event (will be received by ALL subscribers)
SELECT rule_webhook_call_unified(
    1,
    '{
        "order_id": 12345,
        "customer_id": 678,
        "amount": 999.99
    }'::JSONB
);
"#;

const EXAMPLE_3: &str = r"
-- Publish 100 events - distributed across 3 workers
DO $$
BEGIN
    FOR i IN 1..100 LOOP
        PERFORM rule_webhook_call_unified(
            1,
            jsonb_build_object('order_id', i, 'amount', i * 10)
        );
    END LOOP;
END $$;
";

const EXAMPLE_4: &str = r#"
-- Use BOTH PostgreSQL queue AND NATS for redundancy
SELECT rule_webhook_enable_nats(
    1,
    'webhooks.critical',
    'both' -- Queue + NATS
);

-- This will:
-- 1. Enqueue to rule_webhook_calls (for PG-based workers)
-- 2. Publish to NATS (for NATS-based workers)
SELECT rule_webhook_call_unified(
    1,
    '{"critical": true, "message": "Payment failed"}'::JSONB
);
"#;

const EXAMPLE_5: &str = "
-- View NATS publish summary
SELECT * FROM nats_publish_summary;

-- Recent failures
SELECT * FROM nats_recent_failures;

-- Performance stats
SELECT * FROM nats_performance_stats;

-- Detailed stats for specific webhook
SELECT rule_nats_stats(1, 24); -- Last 24 hours

-- Overall stats
SELECT rule_nats_stats(NULL, 168); -- Last 7 days, all webhooks
";

/// The payload's `data` of the next message.
async fn next(subscriber: &mut Subscriber) -> (String, Value) {
    let message = tokio::time::timeout(support::DEADLINE, subscriber.next()).await.expect("a message").unwrap();
    let payload: Value = serde_json::from_slice(&message.payload).unwrap();
    (message.subject.to_string(), payload["data"].clone())
}

async fn subscribe(feed: &Feed, subject: &str, queue: Option<&str>) -> Subscriber {
    let client = feed.nats.client().await;
    let subscriber = match queue {
        Some(queue) => client.queue_subscribe(subject.to_owned(), queue.to_owned()).await.unwrap(),
        None => client.subscribe(subject.to_owned()).await.unwrap(),
    };
    client.flush().await.unwrap(); // the server knows of it
    subscriber
}

/// A feed with walhook running, after Examples 1 to 4. What the subscribers of the examples get is checked on the way.
async fn examples_1_to_4() -> (Feed, Walhook) {
    let feed = Feed::start().await;
    let walhook = feed.run();
    eventually("rule_nats_init to see the connection", async || {
        (feed.pg.psql("SELECT rule_nats_init('default') ->> 'success'") == "true").then_some(())
    })
    .await;

    let mut slack = subscribe(&feed, "webhooks.slack", None).await;
    feed.pg.psql(&EXAMPLE_1.replace("nats://nats-server:4222", &feed.nats.url()));
    assert_eq!(next(&mut slack).await.1, json!({"text": "Alert: System error detected!"}));

    let mut services = Vec::new();
    for _ in ["Email Service", "Analytics", "Audit Log"] {
        services.push(subscribe(&feed, "events.order.created", None).await);
    }
    let mut workers = Vec::new();
    for _ in 1..=3 {
        workers.push(subscribe(&feed, "events.order.*", Some("webhook-workers")).await);
    }
    feed.pg.psql(EXAMPLE_2);
    let order = json!({"order_id": 12345, "customer_id": 678, "amount": 999.99});
    for service in &mut services {
        assert_eq!(next(service).await, ("events.order.created".to_owned(), order.clone()), "all of them get it");
    }
    feed.pg.psql(EXAMPLE_3);
    feed.confirmed().await;
    for service in &mut services {
        for id in 1..=100 {
            assert_eq!(next(service).await.1["order_id"], id, "in order");
        }
    }
    // Each of the 101 goes to one of the group.
    let mut workers = futures_util::stream::select_all(workers);
    let mut ids = Vec::new();
    for _ in 0..101 {
        let message = tokio::time::timeout(support::DEADLINE, workers.next()).await.expect("a message").unwrap();
        let payload: Value = serde_json::from_slice(&message.payload).unwrap();
        ids.push(payload["data"]["order_id"].as_i64().unwrap());
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=100).chain([12345]).collect::<Vec<_>>());

    let mut critical = subscribe(&feed, "webhooks.critical", None).await;
    feed.pg.psql(EXAMPLE_4);
    let failed = json!({"critical": true, "message": "Payment failed"});
    assert_eq!(next(&mut critical).await.1, failed);
    let queued = feed.pg.psql("SELECT status, payload FROM rule_webhook_calls");
    let (status, payload) = queued.split_once('|').unwrap();
    assert_eq!((status, serde_json::from_str::<Value>(payload).unwrap()), ("pending", failed));

    feed.confirmed().await;
    assert_eq!(feed.messages().await.len(), 103, "and all of it is in the stream");
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    (feed, walhook)
}

#[tokio::test]
async fn examples_1_to_5_do_what_the_rfc_says() {
    let (feed, mut walhook) = examples_1_to_4().await;
    // Its patterns take one token each: for events.order.created the stream was told to take it, and nothing else.
    assert_eq!(
        feed.pg.psql("SELECT subjects FROM rule_nats_streams"),
        "{webhooks.*,events.*,events.order.created}",
        "nothing is widened in silence"
    );
    feed.pg.psql(EXAMPLE_5);
    assert_eq!(
        feed.pg.psql("SELECT webhook_id, webhook_name, subject, publish_mode FROM nats_publish_summary"),
        "1|slack_alerts|webhooks.critical|both"
    );
    assert_eq!(feed.pg.psql("SELECT count(*) FROM nats_recent_failures"), "0");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn the_figures_of_example_5_count_what_examples_1_to_4_published() {
    let (feed, mut walhook) = examples_1_to_4().await;
    let total = "SELECT rule_nats_stats(1, 24) ->> 'total_published'";
    eventually("the history of 103 events", async || (feed.pg.psql(total) == "103").then_some(())).await;
    let figures = "total_published, successful, failed, success_rate_pct, avg_latency_ms IS NOT NULL, last_published_at IS NOT NULL";
    let summary = feed.pg.psql(&format!("SELECT {figures} FROM nats_publish_summary"));
    assert_eq!(summary, "103|103|0|100.00|t|t");
    assert_eq!(
        feed.pg.psql("SELECT subject, message_count FROM nats_performance_stats ORDER BY subject"),
        "events.order.created|101\nwebhooks.critical|1\nwebhooks.slack|1"
    );
    let stats: Value = serde_json::from_str(&feed.pg.psql("SELECT rule_nats_stats(NULL, 168)")).unwrap();
    for (key, expected) in [
        ("total_published", 103),
        ("successful", 103),
        ("failed", 0),
        ("unique_subjects", 3),
        ("time_range_hours", 168),
    ] {
        assert_eq!(stats[key], expected, "{key} in {stats}");
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// The RFC's integration test. Its five statements are one transaction there; nothing is published before a commit, so here
/// each is one of its own.
#[tokio::test]
async fn the_rfcs_integration_test_passes_with_the_sidecar_behind_it() {
    let feed = Feed::start().await;
    feed.pg.psql("SELECT rule_webhook_register('first', 'https://example.com')");
    let mut walhook = feed.run();
    let is_true = |sql: &str| assert_eq!(feed.pg.psql(&format!("SELECT {sql}")), "t", "{sql}");
    // On the server of the configuration that is there already, as it is printed.
    is_true(&format!("rule_nats_configure('test', '{}', 'none', true)", feed.nats.url()));
    is_true("rule_webhook_enable_nats(1, 'test.subject', 'nats', 'test')");
    is_true("(rule_webhook_call_unified(1, '{\"test\": true}'::jsonb)->>'success')::boolean");
    let stored = eventually("the event in the stream", async || feed.messages_of("TEST").await.pop()).await;
    assert_eq!((stored.subject.as_str(), stored.data()), ("test.subject", &json!({"test": true})));
    let recorded = "SELECT EXISTS(SELECT 1 FROM rule_nats_publish_history WHERE webhook_id = 1)";
    eventually("the event in the history", async || (feed.pg.psql(recorded) == "t").then_some(())).await;
    is_true("(rule_nats_stats(1, 1)->>'total_published')::int > 0");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// The migration path, while calls are made: what each call was answered is what has become of it.
#[tokio::test]
async fn mode_flips_under_load_lose_and_double_nothing() {
    const WRITERS: usize = 3;
    let feed = Feed::start().await;
    let webhook = feed.webhook("flip");
    feed.pg.psql(&format!("SELECT rule_webhook_disable_nats({webhook})"));
    let mut walhook = feed.run();
    walhook.logged("stream opened").await;

    let conninfo = feed.pg.conninfo();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writers = join_all((0..WRITERS).map(|writer| {
        let (conninfo, stopped) = (conninfo.clone(), stopped.clone());
        async move {
            let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.unwrap();
            tokio::spawn(connection);
            let call = "SELECT answer ? 'queue', answer ? 'nats' FROM rule_webhook_call_unified($1, jsonb_build_object('call', $2::text)) answer";
            let call = client.prepare(call).await.unwrap();
            let (mut queued, mut published) = (BTreeSet::new(), BTreeSet::new());
            for number in 0.. {
                if *stopped.borrow() {
                    break;
                }
                let name = format!("{writer}-{number}");
                let answer = client.query_one(&call, &[&webhook, &name]).await.unwrap();
                assert!(answer.get(0) || answer.get(1), "a call goes somewhere");
                if answer.get(0) {
                    queued.insert(name.clone());
                }
                if answer.get(1) {
                    published.insert(name);
                }
            }
            (queued, published)
        }
    }));
    let flips = async {
        let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.unwrap();
        tokio::spawn(connection);
        let calls = "SELECT (SELECT count(*) FROM rule_webhook_calls) + (SELECT count(*) FROM rule_webhook_events)";
        for round in 0..5 {
            for change in [
                "SELECT rule_webhook_enable_nats($1, NULL, 'both')",
                "UPDATE rule_webhooks SET publish_mode = 'nats' WHERE nats_enabled = true AND publish_mode = 'both' AND webhook_id = $1",
                "SELECT rule_webhook_enable_nats($1, NULL, 'both')",
                "SELECT rule_webhook_disable_nats($1)",
            ] {
                client.execute(change, &[&webhook]).await.unwrap();
                // Some calls in each mode.
                let before: i64 = client.query_one(calls, &[]).await.unwrap().get(0);
                eventually(&format!("calls after {change}, round {round}"), async || {
                    let now: i64 = client.query_one(calls, &[]).await.unwrap().get(0);
                    (now > before + 20).then_some(())
                })
                .await;
            }
        }
        stop.send(true).unwrap();
    };
    let (answers, ()) = tokio::join!(writers, flips);
    let queued: BTreeSet<_> = answers.iter().flat_map(|(queued, _)| queued.clone()).collect();
    let published: BTreeSet<_> = answers.iter().flat_map(|(_, published)| published.clone()).collect();
    assert!(queued.difference(&published).next().is_some() && published.difference(&queued).next().is_some());
    assert!(queued.intersection(&published).next().is_some(), "each mode had calls");

    let rows = feed.pg.psql("SELECT payload ->> 'call' FROM rule_webhook_calls");
    assert_eq!(rows.lines().count(), queued.len(), "each once in the queue");
    assert_eq!(rows.lines().map(str::to_owned).collect::<BTreeSet<_>>(), queued);
    feed.confirmed().await;
    let messages = feed.messages().await;
    assert_eq!(messages.len(), published.len(), "each once in the stream");
    assert_eq!(
        messages.iter().map(|message| message.data()["call"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>(),
        published
    );
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}
