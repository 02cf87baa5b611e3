//! The line `publishers`: three ways to publish to JetStream, pipelined, each message with an id and an expected sequence and each
//! acknowledged: async-nats's JetStream publish, its plain publish with acks to a subscription of one's own, and ours.

use std::{collections::VecDeque, time::Duration};

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;

use crate::{
    bare::{self, Meter, Published},
    goals::{figure, grouped},
    machine::servers,
    report::{Part, Table},
    settings::Settings,
    support::feed::Feed,
};

const STREAM: &str = "PUBLISHED";
const SUBJECT: &str = "published.bench";
/// Of a payload, in bytes: an event of a row of 300.
const BYTES: usize = 650;

/// The three.
pub async fn measure(settings: &Settings) -> Part {
    let feed = servers().await;
    let messages = settings.rows;
    let payload = Bytes::from(vec![b'x'; BYTES]);
    let ways = [
        ("async-nats, JetStream publish", by_jetstream(&feed, &payload, messages).await),
        ("async-nats, plain publish, acks by a subscription", by_client(&feed, &payload, messages).await),
        ("walhook's own connection", bare::publish(&feed, &payload, messages).await),
    ];
    let mut table = Table::new(["publisher", "messages/s", "publisher's CPU, µs each", "nats-server's"]);
    let mut figures = Vec::new();
    for (way, published) in ways {
        let us = |cpu: Duration| cpu.as_secs_f64() * 1e6 / messages as f64;
        let rate = messages as f64 / published.elapsed.as_secs_f64();
        table.row([way.to_owned(), grouped(rate), figure(us(published.own)), figure(us(published.nats))]);
        figures.push(json!({ "way": way, "per_s": rate, "own_us": us(published.own), "nats_us": us(published.nats) }));
    }
    Part {
        title: "Three ways to publish".to_owned(),
        text: format!(
            "{} messages of {BYTES} bytes from one thread, at most {} without their ack, each with its id and the sequence it expects.",
            grouped(messages as f64),
            grouped(bare::WINDOW as f64)
        ),
        table: Some(table),
        goals: Vec::new(),
        json: figures.into(),
        pictures: Vec::new(),
    }
}

async fn by_jetstream(feed: &Feed, payload: &Bytes, messages: u64) -> Published {
    let jetstream = stream(feed).await;
    let meter = Meter::start(feed);
    let mut waiting = VecDeque::new();
    for number in 0..messages {
        if waiting.len() == bare::WINDOW {
            let ack: jetstream::context::PublishAckFuture = waiting.pop_front().unwrap();
            ack.await.unwrap();
        }
        let publish = jetstream::message::PublishMessage::build()
            .payload(payload.clone())
            .message_id(format!("bench-{number:016x}"))
            .expected_stream(STREAM)
            .expected_last_sequence(number);
        waiting.push_back(jetstream.send_publish(SUBJECT, publish).await.unwrap());
    }
    for ack in waiting {
        ack.await.unwrap();
    }
    let published = meter.stop();
    jetstream.delete_stream(STREAM).await.unwrap();
    published
}

async fn by_client(feed: &Feed, payload: &Bytes, messages: u64) -> Published {
    let jetstream = stream(feed).await;
    let client = feed.nats.client().await;
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(format!("{inbox}.*")).await.unwrap();
    let meter = Meter::start(feed);
    let (mut made, mut acked) = (0, 0);
    while acked < messages {
        while made < messages && made - acked < bare::WINDOW as u64 {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("bench-{made:016x}"));
            headers.insert("Nats-Expected-Stream", STREAM);
            headers.insert("Nats-Expected-Last-Sequence", made.to_string());
            let reply = format!("{inbox}.{made}");
            client.publish_with_reply_and_headers(SUBJECT, reply, headers, payload.clone()).await.unwrap();
            made += 1;
        }
        let ack = acks.next().await.unwrap();
        assert!(!ack.payload.windows(7).any(|part| part == b"\"error\""), "{ack:?}");
        acked += 1;
    }
    let published = meter.stop();
    jetstream.delete_stream(STREAM).await.unwrap();
    published
}

/// A new stream of the kind that walhook makes.
async fn stream(feed: &Feed) -> jetstream::Context {
    let jetstream = jetstream::new(feed.nats.client().await);
    jetstream.create_stream(bare::stream_config(STREAM, "published.>")).await.unwrap();
    jetstream
}
