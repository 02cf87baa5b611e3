//! The smoke on whatever versions the environment names: a committed row becomes an acknowledged message.

#![allow(clippy::unwrap_used)]

use crate::support;

use serde_json::{Value, json};
use support::{eventually, feed::Feed};

#[tokio::test]
async fn committed_rows_arrive_once_in_order_and_rolled_back_ones_never() {
    let feed = Feed::start().await;
    let orders = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY, status text, amount numeric(10,2), doc jsonb)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({orders}, 'orders')"));
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO orders VALUES (1, 'new', 9.90, '{\"a\": [1, 2]}')");
    feed.pg.psql("INSERT INTO orders SELECT i, 'bulk', i, NULL FROM generate_series(2, 4) i");
    feed.pg.psql("BEGIN; INSERT INTO orders VALUES (99, 'phantom', 0, NULL); ROLLBACK");
    feed.pg.psql("BEGIN; UPDATE orders SET status = 'paid' WHERE id = 1; DELETE FROM orders WHERE id = 2; COMMIT");
    let messages = feed.stored(6).await;
    let seen: Vec<_> = messages
        .iter()
        .map(|message| (message.header("Walhook-Op").to_owned(), message.data()["id"].as_i64().unwrap()))
        .collect();
    let expected = [("insert", 1), ("insert", 2), ("insert", 3), ("insert", 4), ("update", 1), ("delete", 2)];
    assert_eq!(seen, expected.map(|(op, id)| (op.to_owned(), id)));
    let first = &messages[0];
    assert_eq!(first.subject, "webhooks.orders");
    assert_eq!(first.data(), &json!({"id": 1, "status": "new", "amount": 9.90, "doc": {"a": [1, 2]}}));
    assert_eq!(first.payload["webhook_url"], "https://example.com/orders");
    assert_eq!(first.payload["id"], first.header("Nats-Msg-Id"));
    assert_eq!(first.payload["type"], "public.orders.insert");
    assert_eq!(messages[5].data(), &json!({"id": 2}));
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert_eq!(feed.pg.psql("SELECT active FROM pg_replication_slots"), "f");
}

#[tokio::test]
async fn a_call_through_sql_arrives_with_its_own_message_id() {
    let feed = Feed::start().await;
    let slack = feed.webhook("slack");
    let mut walhook = feed.run();
    feed.pg.psql(&format!("SELECT rule_webhook_publish_nats({slack}, '{{\"text\": \"hello\"}}', 'my-id')"));
    feed.pg.psql(&format!("SELECT rule_webhook_publish_nats({slack}, '{{\"text\": \"again\"}}', 'my-id')"));
    feed.pg.psql(&format!("SELECT rule_webhook_call_unified({slack}, '{{\"text\": \"bye\"}}')"));
    let messages = feed.stored(2).await;
    let texts: Vec<_> = messages.iter().map(|message| message.data()["text"].clone()).collect();
    assert_eq!(texts, ["hello", "bye"], "the second one is the caller's own duplicate");
    let ids = ["Nats-Msg-Id", "Walhook-Message-Id"].map(|name| messages[0].header(name).to_owned());
    assert_eq!(ids, [format!("walhook:{slack}:my-id"), "my-id".to_owned()]);
    assert_eq!(messages[0].header("Walhook-Id"), messages[0].payload["id"]);
    feed.confirmed().await;
    let status = |event: i32| -> Value {
        serde_json::from_str(&feed.pg.psql(&format!("SELECT rule_nats_event_status({event})"))).unwrap()
    };
    eventually("the history", async || (status(3)["status"] == "published").then_some(())).await;
    assert_eq!((&status(1)["status"], &status(1)["sequence"]), (&"published".into(), &1.into()));
    let second = status(2);
    assert_eq!((&second["status"], &second["duplicate_of"]), (&"duplicate".into(), &1.into()), "{second}");
    assert!(second.get("sequence").is_none(), "{second}");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// JetStream's duplicate window is that of a stream, whatever the subject.
#[tokio::test]
async fn one_message_id_for_two_webhooks_is_two_events_with_a_sequence_each() {
    let feed = Feed::start().await;
    let webhooks = [feed.webhook("one"), feed.webhook("two")];
    let mut walhook = feed.run();
    for webhook in webhooks {
        feed.pg.psql(&format!("SELECT rule_webhook_publish_nats({webhook}, '{{\"of\": {webhook}}}', 'order-17')"));
    }
    let messages = feed.stored(2).await;
    assert_eq!(
        messages.iter().map(|message| message.data()["of"].clone()).collect::<Vec<_>>(),
        webhooks.map(Value::from)
    );
    assert!(messages.iter().all(|message| message.header("Walhook-Message-Id") == "order-17"));
    feed.confirmed().await;
    for event in 1..=2 {
        let status = format!("SELECT rule_nats_event_status({event})");
        eventually("the history", async || feed.pg.psql(&status).contains("published").then_some(())).await;
        let status: Value = serde_json::from_str(&feed.pg.psql(&status)).unwrap();
        assert_eq!((&status["status"], &status["sequence"]), (&"published".into(), &event.into()), "{status}");
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn kill_9_and_restart_lose_and_double_nothing() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("items");
    feed.pg.psql("CREATE TABLE items (id int PRIMARY KEY, note text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'items')"));
    let mut next = 0;
    for round in 0..5 {
        let mut walhook = feed.run();
        for size in [1, 50, 700] {
            feed.pg.psql(&format!(
                "INSERT INTO items SELECT i, repeat('x', 200) FROM generate_series({next}, {}) i",
                next + size - 1
            ));
            next += size;
        }
        feed.stored(u64::try_from(next - 600 + round * 97).unwrap()).await;
        walhook.kill9();
    }
    let mut walhook = feed.run();
    let messages = feed.stored(u64::try_from(next).unwrap()).await;
    let ids: Vec<_> = messages.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (0..i64::from(next)).collect::<Vec<_>>());
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert_eq!(feed.messages().await.len(), messages.len(), "nothing came after the last one");
}
