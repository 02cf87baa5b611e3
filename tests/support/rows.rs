//! A feed with one linked table, `t`, whose rows are numbered: what arrives can be told by its numbers.

use super::{Nats, Postgres, Walhook, eventually, feed::Feed};

/// Servers set up, and table `t` linked to a webhook.
pub fn linked_on(pg: Postgres, nats: Nats) -> Feed {
    let feed = Feed::on(pg, nats);
    link(&feed);
    feed
}

/// Makes table `t` and links it.
pub fn link(feed: &Feed) {
    let id = feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({id}, 't')"));
}

/// Rows `from..to`, in transactions of some rows each, for recovery has to cope with both edges.
pub fn insert(pg: &Postgres, from: i64, to: i64) {
    let (mut at, mut size) = (from, 1);
    while at < to {
        let end = to.min(at + size);
        pg.psql(&format!("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({at}, {}) i", end - 1));
        at = end;
        size = size * 3 % 101 + 1;
    }
}

/// Waits until the stream has taken that many; they are not looked at.
pub async fn taken(feed: &Feed, count: u64) {
    eventually(&format!("{count} messages in the stream"), async || {
        (feed.last_sequence("WEBHOOKS").await >= count).then_some(())
    })
    .await;
}

/// Waits until everything is confirmed; then rows `0..count` are in the stream: each once, in order, and nothing else.
pub async fn exactly(feed: &Feed, count: i64) {
    feed.confirmed().await;
    let ids: Vec<i64> = feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (0..count).collect::<Vec<_>>());
    assert_eq!(feed.last_sequence("WEBHOOKS").await, u64::try_from(count).unwrap(), "nothing was stored and removed");
}

/// It drains and goes.
pub fn ended_well(walhook: &mut Walhook) {
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// Slow faults run whole only where this is asked for (`make chaos`).
pub fn whole() -> bool {
    std::env::var_os("WALHOOK_CHAOS").is_some()
}
