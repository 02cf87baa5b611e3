//! The last mile: what is in the stream is called, as the webhook's row says, whatever the receiver does.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::json;
use support::{Walhook, feed::Feed, http::Http};

/// A webhook at this URL, and the id it has.
fn webhook(feed: &Feed, name: &str, url: &str) -> i32 {
    let id = feed.pg.psql(&format!("SELECT rule_webhook_register('{name}', '{url}')"));
    feed.pg.psql(&format!("SELECT rule_webhook_enable_nats({id}, NULL, 'nats')"));
    id.parse().unwrap()
}

/// `walhook deliver` by the role that the migrations made for it, allowed to call this machine.
fn worker(feed: &Feed) -> support::walhook::Builder {
    let conninfo = format!("host=127.0.0.1 port={} dbname=postgres user=walhook_worker", feed.pg.port());
    feed.command("deliver").env("DATABASE_URL", conninfo).args(["--allow-network", "127.0.0.1"])
}

fn publish(feed: &Feed, webhook: i32, payload: &str) {
    feed.pg.psql(&format!("SELECT rule_webhook_publish_nats({webhook}, '{payload}')"));
}

#[tokio::test]
async fn an_event_is_called_once_and_its_call_is_recorded() {
    let feed = Feed::start().await;
    let http = Http::ok();
    let id = webhook(&feed, "orders", &http.url("/hooks?a=b"));
    let _streamer = feed.run();
    publish(&feed, id, r#"{"id": 1, "price": 9.90}"#);
    let mut worker: Walhook = worker(&feed).start();
    let request = http.received(1).await.remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/hooks?a=b"));
    assert_eq!(request.json(), json!({"id": 1, "price": 9.90}));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 1);
    let row = feed.pg.psql("SELECT status, response_status, retry_count, payload->>'price' FROM rule_webhook_calls");
    assert_eq!(row, "success|200|0|9.90");
    assert_eq!(feed.pg.psql("SELECT attempt_number, response_status FROM rule_webhook_call_history"), "1|200");
}
