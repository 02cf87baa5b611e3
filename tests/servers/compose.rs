//! compose.yaml's own files against real servers, without containers.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{fs, path::Path};

use support::feed::Feed;

#[tokio::test]
async fn the_example_of_compose_can_be_repeated_and_a_row_of_its_table_becomes_a_message() {
    let feed = Feed::start().await;
    let sql = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/compose/example.sql")).unwrap();
    // `\set` is psql's; its name of the server is known to containers alone.
    let sql = sql.replace("\\set ON_ERROR_STOP on\n", "").replace("nats://nats:4222", &feed.nats.url());
    feed.pg.psql(&sql);
    feed.pg.psql(&sql);
    feed.pg.psql("INSERT INTO orders (item) VALUES ('tea')");
    let mut walhook = feed.run();
    let messages = feed.stored(1).await;
    assert_eq!(messages[0].subject, "webhooks.orders.insert");
    assert_eq!(messages[0].data()["item"], "tea");
    // The healthcheck of `run`, by the role that it has there.
    let check = || feed.command("status").env("DATABASE_URL", feed.streamer_conninfo()).arg("--check").finish();
    // It is asked again and again there, too: what walhook has last said of itself may be older than the message.
    support::eventually("the healthcheck to succeed", async || (check().code == Some(0)).then_some(())).await;
    assert_eq!(walhook.terminate(), 0);
    let check = check();
    assert_ne!(check.code, Some(0), "{check:?}");
}
