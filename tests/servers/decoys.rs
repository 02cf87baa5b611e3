//! A stream in another JetStream domain that takes the same subjects and refuses what it gets: its refusals name no domain.

#![allow(clippy::unwrap_used)]

use async_nats::jetstream;

use super::nats_configurations::{holds, hub_and_leaf};
use crate::support::{
    Postgres,
    rows::{ended_well, insert, linked_on},
};

#[tokio::test]
async fn refusals_of_a_stream_in_another_domain_lose_and_double_nothing() {
    // It has a message of its own, another name, or no room.
    for decoy in [
        jetstream::stream::Config { name: "WEBHOOKS".to_owned(), ..Default::default() },
        jetstream::stream::Config { name: "DECOY".to_owned(), ..Default::default() },
        jetstream::stream::Config {
            name: "WEBHOOKS".to_owned(),
            max_messages: 1,
            discard: jetstream::stream::DiscardPolicy::New,
            ..Default::default()
        },
    ] {
        let (hub, leaf, _port) = hub_and_leaf().await;
        let feed = linked_on(Postgres::set_up().await, leaf);
        let decoy = jetstream::stream::Config { subjects: vec!["webhooks.>".to_owned()], ..decoy };
        let of_leaf = feed.nats.jetstream().await;
        of_leaf.create_stream(decoy).await.unwrap();
        of_leaf.publish("webhooks.other", "{}".into()).await.unwrap().await.unwrap();
        feed.pg.psql("UPDATE rule_nats_config SET jetstream_domain = 'hub'");
        let mut walhook = feed.run();
        insert(&feed.pg, 0, 60);
        holds(&hub, "WEBHOOKS", 0..60).await;
        feed.confirmed().await;
        ended_well(&mut walhook);
    }
}
