//! How fast `walhook deliver` calls a webhook that answers at once, with and without failures, with and without a record;
//! and how long an event that is in the stream takes to its receiver when there is no backlog.
//!
//! Starts its own servers and a receiver that does nothing but count, all on this machine; prints a table. No figure is
//! judged here. The events are published by the bench itself, so the streamer is no part of it.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `EVENTS` | events of each backlog | 20,000 |
//! | `RATES` | events/s of the latency runs, with commas | `100,1000` |
//! | `SECONDS` | of each latency run | 10 |
//! | `QUICK=1` | 5,000 events and 3 seconds | |

#![allow(clippy::unwrap_used, clippy::cast_precision_loss)] // a bench fails loudly; its figures fit into a float

#[path = "../../tests/support/mod.rs"]
mod support;
#[allow(dead_code)] // the other bench uses more of it
#[path = "../end_to_end/usage.rs"]
mod usage;

mod receiver;

use std::time::{Duration, Instant};

use async_nats::jetstream;
use receiver::Receiver;
use support::{Walhook, feed::Feed};

fn main() {
    support::runtime().block_on(run());
}

async fn run() {
    let is_quick = std::env::var("QUICK").is_ok_and(|value| !value.is_empty() && value != "0");
    let events = number("EVENTS", if is_quick { 5_000 } else { 20_000 });
    let feed = Feed::start().await;
    let jetstream = feed.nats.jetstream().await;
    let stream = jetstream::stream::Config {
        name: "WEBHOOKS".to_owned(),
        subjects: vec!["webhooks.>".to_owned()],
        ..jetstream::stream::Config::default()
    };
    jetstream.create_stream(stream).await.unwrap();

    println!("{events} events of 300 bytes, one webhook, one worker, 64 calls at a time\n");
    println!("| record | failures | deliveries/s | attempts | worker's CPU per delivery, µs |");
    println!("|---|---|---|---|---|");
    for (record, every) in [("off", 0), ("off", 100), ("full", 0), ("full", 100)] {
        let receiver = Receiver::start(every);
        let webhook = prepare(&feed, &receiver);
        publish(&jetstream, &webhook, 0..events, |_| {}).await;
        let mut worker = worker(&feed, record);
        let began = receiver.arrived(1).await;
        let last = receiver.arrived(events).await;
        let cpu = usage::cpu(worker.pid()).unwrap();
        let rate = events as f64 / (last - began).as_secs_f64();
        let failures = if every == 0 { "none".to_owned() } else { format!("1 in {every}") };
        let cpu_us = cpu.as_secs_f64() * 1e6 / events as f64;
        println!("| {record} | {failures} | {rate:.0} | {} | {cpu_us:.0} |", receiver.attempts());
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }

    println!("\n| record | events/s | stored to received, ms: p50 | p99 |");
    println!("|---|---|---|---|");
    for record in ["off", "full"] {
        for rate in std::env::var("RATES").unwrap_or_else(|_| "100,1000".to_owned()).split(',') {
            let rate: usize = rate.parse().unwrap();
            let count = rate * number("SECONDS", if is_quick { 3 } else { 10 });
            let receiver = Receiver::start(0);
            let webhook = prepare(&feed, &receiver);
            let mut worker = worker(&feed, record);
            worker.logged("consumer ready").await;
            let began = Instant::now();
            let mut stored = Vec::with_capacity(count);
            for n in 0..count {
                let due = began + Duration::from_secs(1) * u32::try_from(n).unwrap() / u32::try_from(rate).unwrap();
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                publish(&jetstream, &webhook, n..n + 1, |at| stored.push(at)).await;
            }
            receiver.arrived(count).await;
            let mut micros: Vec<u128> =
                (0..count).map(|n| receiver.first(n).saturating_duration_since(stored[n]).as_micros()).collect();
            micros.sort_unstable();
            let percentile = |percent: usize| micros[(count - 1) * percent / 100] as f64 / 1000.0;
            println!("| {record} | {rate} | {:.2} | {:.2} |", percentile(50), percentile(99));
            assert_eq!(worker.terminate(), 0, "{}", worker.log());
        }
    }
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// A webhook of its own for every run, and with it a consumer that has seen nothing.
fn prepare(feed: &Feed, receiver: &Receiver) -> String {
    feed.pg.psql("UPDATE rule_webhooks SET enabled = false; TRUNCATE rule_webhook_calls CASCADE");
    let name = format!("bench{}", fastrand::u32(..));
    let id = feed.pg.psql(&format!("SELECT rule_webhook_register('{name}', '{}')", receiver.url()));
    feed.pg.psql(&format!("SELECT rule_webhook_enable_nats({id}, 'webhooks.{name}', 'nats')"));
    feed.pg.psql(&format!("UPDATE rule_webhooks SET retry_delay_ms = 50, max_retries = 10 WHERE webhook_id = {id}"));
    format!("{id} {name}")
}

fn worker(feed: &Feed, record: &str) -> Walhook {
    let conninfo = format!("host=127.0.0.1 port={} dbname=postgres user=walhook_worker", feed.pg.port());
    feed.command("deliver")
        .env("DATABASE_URL", conninfo)
        .args(["--allow-network", "127.0.0.1", "--record", record])
        .start()
}

async fn publish(
    jetstream: &jetstream::Context,
    webhook: &str,
    numbers: std::ops::Range<usize>,
    mut stored: impl FnMut(Instant),
) {
    let (id, name) = webhook.split_once(' ').unwrap();
    let numbers: Vec<usize> = numbers.collect();
    for some in numbers.chunks(500) {
        let mut acks = Vec::new();
        for n in some {
            let payload = format!(r#"{{"webhook_id":{id},"data":{{"n":{n},"note":"{}"}}}}"#, "x".repeat(260));
            acks.push(jetstream.publish(format!("webhooks.{name}"), payload.into()).await.unwrap());
        }
        for ack in acks {
            ack.await.unwrap();
            stored(Instant::now());
        }
    }
}
