//! The SQL of the user's guide runs as it stands, and what it says of the messages is so.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::fs;

use support::feed::Feed;

/// The ```sql blocks of a page.
fn blocks(page: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("{}/{page}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    text.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_guide_runs_from_top_to_bottom_and_says_what_arrives() {
    let feed = Feed::start().await;
    let mut walhook = feed.run();
    for block in blocks("docs/guide.md") {
        feed.pg.psql(&block.replace("nats://localhost:4222", &feed.nats.url()));
    }
    feed.confirmed().await;
    let messages = feed.messages().await;
    let seen: Vec<_> = messages.iter().map(|message| format!("{} {}", message.sequence, message.subject)).collect();
    let expected = [
        "webhooks.orders.insert", // 1
        "webhooks.orders.update",
        "webhooks.orders.delete",
        "webhooks.orders", // the calls
        "webhooks.orders",
        "webhooks.orders.Ada%20%26%20Co%2E.insert",
        "webhooks.orders.Ada%20%26%20Co%2E.update", // of three, one is for the second webhook too
        "webhooks.orders.Ada%20%26%20Co%2E.update",
        "webhooks.paid",
        "webhooks.orders.Ada%20%26%20Co%2E.update",
        "webhooks.orders.insert", // 11: a large value …
        "webhooks.orders.update", // … and not again
        "webhooks.orders.insert", // the formats
        "webhooks.orders.insert",
        "webhooks.orders.insert",
        "webhooks.orders.insert",
        "webhooks.orders.insert",
        "webhooks.orders",        // a call with a header
        "webhooks.orders.insert", // 19: the configuration changes between two rows
        "webhooks.orders.insert",
        "webhooks.orders.insert", // a dead letter, mended
        "webhooks.orders",        // 22: the call that is waited for
    ];
    // The backfill: every row that the guide has left in the table.
    let rows: usize = feed.pg.psql("SELECT count(*) FROM orders").parse().unwrap();
    let expected = [&expected[..], &vec!["webhooks.orders.snapshot"; rows]].concat();
    let expected: Vec<_> = expected.iter().enumerate().map(|(at, subject)| format!("{} {subject}", at + 1)).collect();
    assert_eq!(seen, expected);
    assert_eq!(messages[8].data()["amount"], 6.0);
    assert_eq!(messages[8].payload["event"]["old"]["status"], "new");
    assert_eq!(messages[11].payload["event"]["unchanged"][0], "doc");
    assert_eq!(messages[12].payload["id"], 10);
    assert_eq!(messages[13].payload["op"], "c");
    assert_eq!(messages[14].payload["specversion"], "1.0");
    assert_eq!(
        (messages[15].header("ce-type"), messages[15].payload["id"].as_i64()),
        ("public.orders.insert", Some(13))
    );
    assert_eq!(messages[16].payload["headers"], serde_json::json!({"Content-Type": "application/json"}));
    assert_eq!((messages[17].header("X-Team"), messages[17].header("Trace-Id")), ("billing", "4bf92f35"));
    assert_eq!(messages[18].payload["event"]["op"], "insert");
    assert_eq!(messages[19].payload["id"], 21);
    assert_eq!(messages[20].data()["id"], 31);
    let letters = "SELECT string_agg(status, ' ' ORDER BY dead_letter_id) FROM rule_nats_dead_letters";
    assert_eq!(feed.pg.psql(letters), "dropped retried");
    let history =
        "SELECT count(*) FILTER (WHERE success), count(*) FILTER (WHERE NOT success) FROM rule_nats_publish_history";
    assert_eq!(feed.pg.psql(history), format!("{}|2", 22 + rows));
    assert_eq!(feed.pg.psql("SELECT rows_sent FROM rule_cdc_backfills"), rows.to_string());
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}
