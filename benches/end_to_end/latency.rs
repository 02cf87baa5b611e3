//! How long a row takes from its COMMIT to a consumer of the stream, when there is no backlog.
//!
//! One thread commits a row at a time at a steady rate and notes when each COMMIT has returned; another is an ordered
//! consumer of the stream, which gets what is stored. A figure may be below zero: PostgreSQL shows a commit to the
//! walsender before it answers the client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, consumer::DeliverPolicy, consumer::push::OrderedConfig};
use futures_util::StreamExt;
use serde::Deserialize;

use crate::{drain, support::feed::Feed, usage};

/// What was measured at one rate.
pub struct Latency {
    /// Rows per second asked for.
    pub rate: u64,
    /// Rows per second reached.
    pub reached: f64,
    /// Of each row, in µs, in order of size.
    pub micros: Vec<i64>,
    /// walhook's CPU per row, in µs.
    pub own_us: f64,
}

impl Latency {
    /// The value that so many per cent do not exceed, in ms.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        self.micros[(self.micros.len() - 1) * percent / 100] as f64 / 1000.0
    }
}

#[derive(Deserialize)]
struct Event {
    data: Row,
}

#[derive(Deserialize)]
struct Row {
    id: usize,
}

const NOT_YET: i64 = i64::MIN;

/// Writes at `rate` for so many seconds, after one to warm up.
pub async fn measure(feed: &Feed, rate: u64, seconds: u64) -> Latency {
    feed.pg.psql("TRUNCATE bench");
    drain::empty_stream(feed).await;
    feed.pg.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'walhook'");
    feed.pg.psql("SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')");
    let mut walhook = feed.run();
    walhook.logged("stream opened").await;

    let warm_up = usize::try_from(rate).unwrap();
    let rows = warm_up + usize::try_from(rate * seconds).unwrap();
    let epoch = Instant::now();
    let committed: Arc<Vec<AtomicI64>> = Arc::new((0..rows).map(|_| AtomicI64::new(NOT_YET)).collect());
    let arrived: Arc<Vec<AtomicI64>> = Arc::new((0..rows).map(|_| AtomicI64::new(NOT_YET)).collect());

    let jetstream = jetstream::new(feed.nats.client().await);
    let stream = jetstream.get_stream("WEBHOOKS").await.unwrap();
    let consumer = OrderedConfig {
        deliver_subject: feed.nats.client().await.new_inbox(),
        deliver_policy: DeliverPolicy::All,
        ..Default::default()
    };
    let mut messages = stream.create_consumer(consumer).await.unwrap().messages().await.unwrap();
    let cpu_before = usage::cpu(walhook.pid()).unwrap();

    let writing = {
        let (committed, conninfo) = (Arc::clone(&committed), feed.pg.conninfo());
        std::thread::spawn(move || crate::support::runtime().block_on(write(&conninfo, rate, epoch, &committed)))
    };
    let mut count = 0;
    while count < rows {
        let message = messages.next().await.unwrap().unwrap();
        let at = micros(epoch);
        let event: Event = serde_json::from_slice(&message.payload).unwrap();
        arrived[event.data.id].store(at, Ordering::Relaxed);
        count += 1;
    }
    let took: Duration = writing.join().unwrap();
    let own = usage::cpu(walhook.pid()).unwrap() - cpu_before;
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());

    let mut micros: Vec<i64> = (warm_up..rows)
        .map(|row| arrived[row].load(Ordering::Relaxed) - committed[row].load(Ordering::Relaxed))
        .collect();
    micros.sort_unstable();
    Latency { rate, reached: rows as f64 / took.as_secs_f64(), micros, own_us: own.as_secs_f64() * 1e6 / rows as f64 }
}

/// Commits a row for every place, on time; a row that is late does not delay those after it.
async fn write(conninfo: &str, rate: u64, epoch: Instant, committed: &[AtomicI64]) -> Duration {
    let (client, connection) = tokio_postgres::connect(conninfo, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let insert = client
        .prepare("INSERT INTO bench VALUES ($1, jsonb_build_object('order', $1::bigint, 'note', repeat('x', 270)))")
        .await
        .unwrap();
    let begin = Instant::now();
    for (row, place) in committed.iter().enumerate() {
        let due = begin + Duration::from_secs(1) * u32::try_from(row).unwrap() / u32::try_from(rate).unwrap();
        // Finer than the runtime's timer, which counts whole milliseconds.
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        client.execute(&insert, &[&i64::try_from(row).unwrap()]).await.unwrap();
        place.store(micros(epoch), Ordering::Relaxed);
    }
    begin.elapsed()
}

fn micros(epoch: Instant) -> i64 {
    i64::try_from(epoch.elapsed().as_micros()).unwrap()
}
