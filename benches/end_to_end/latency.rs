//! The line `latency`: how long a row takes from its COMMIT to a consumer of the stream.
//!
//! One thread commits a row at a time at a steady rate and notes when each COMMIT has returned; another is an ordered
//! consumer of the stream, which gets what is stored. A figure may be below zero: PostgreSQL shows a commit to the
//! walsender before it answers the client.
//!
//! Beside a backlog: events leave in the order of commits, so what is committed behind a backlog waits for all of it, as it
//! must; that figure is the length of the backlog. What a busy other table costs shows beside a steady load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::{consumer::DeliverPolicy, consumer::push::OrderedConfig};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;

use crate::{
    backlog::{self, ROW},
    drain,
    goals::{Goal, figure, grouped},
    machine::servers,
    picture::{self, Axis, Mark, Panel, Tone},
    report::{Part, Table},
    settings::Settings,
    support::feed::Feed,
    usage,
};

/// The goals of the issue, in ms.
const P50: f64 = 0.4;
const P99: f64 = 1.0;
/// Rows/s of the other table's steady load, in transactions of …
const LOAD: u64 = 10_000;
/// … so many.
const LOAD_SIZE: u64 = 1_000;
/// A message that takes longer than this does not come.
const DEADLINE: Duration = Duration::from_secs(120);
const NOT_YET: i64 = i64::MIN;

/// What else walhook has to do meanwhile.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    /// So many rows of another table that were committed before.
    Backlog(u64),
    /// Transactions of another table.
    Load,
}

impl Beside {
    fn name(self) -> String {
        match self {
            Beside::Nothing => String::new(),
            Beside::Backlog(rows) => format!(" behind a backlog of {} rows of another table", grouped(rows as f64)),
            Beside::Load => format!(" beside {} rows/s of another table", grouped(LOAD as f64)),
        }
    }
}

/// What was measured at one rate.
struct Latency {
    /// Rows per second asked for.
    rate: u64,
    beside: Beside,
    /// Rows per second reached.
    reached: f64,
    /// Of each row, in µs, in order of size.
    micros: Vec<i64>,
    /// walhook's CPU per row, in µs.
    own_us: f64,
}

impl Latency {
    /// The value that so many per cent do not exceed, in ms.
    fn percentile_ms(&self, percent: usize) -> f64 {
        self.micros[(self.micros.len() - 1) * percent / 100] as f64 / 1000.0
    }

    fn name(&self) -> String {
        format!("{} rows/s{}", grouped(self.rate as f64), self.beside.name())
    }
}

/// At each rate; the last rate also behind a backlog and beside a load.
pub async fn measure(settings: &Settings) -> Part {
    let feed = servers().await;
    backlog::prepare(&feed, "bench");
    backlog::prepare(&feed, "bulk");
    let seconds = settings.quick(5, 20);
    let busy = settings.rates.iter().max();
    let busy = busy.map(|rate| [(*rate, Beside::Backlog(settings.rows)), (*rate, Beside::Load)]);
    let mut latencies = Vec::new();
    for (rate, beside) in settings.rates.iter().map(|rate| (*rate, Beside::Nothing)).chain(busy.into_iter().flatten()) {
        eprintln!("  {rate} rows/s{}", beside.name());
        latencies.push(run(&feed, rate, seconds, beside).await);
    }

    let mut table =
        Table::new(["rows/s", "reached", "p50, ms", "p90, ms", "p99, ms", "max, ms", "walhook's CPU per row, µs"]);
    let mut goals = Vec::new();
    for latency in &latencies {
        let [p50, p99] = [50, 99].map(|percent| latency.percentile_ms(percent));
        let name = latency.name();
        if let Beside::Nothing = latency.beside {
            goals.push(Goal::at_most(format!("commit → consumer at {name}, p50"), P50, p50, "ms"));
            goals.push(Goal::at_most(format!("commit → consumer at {name}, p99"), P99, p99, "ms"));
        } else {
            goals.push(Goal::stated(format!("commit → consumer at {name}, p50"), p50, "ms"));
            goals.push(Goal::stated(format!("commit → consumer at {name}, p99"), p99, "ms"));
        }
        table.row([
            name,
            grouped(latency.reached),
            figure(p50),
            figure(latency.percentile_ms(90)),
            figure(p99),
            figure(latency.percentile_ms(100)),
            figure(latency.own_us),
        ]);
    }
    Part {
        title: "From commit to consumer".to_owned(),
        text: format!(
            "Single-row transactions at a steady rate for {seconds} s, from the return of COMMIT to an ordered consumer of the stream, \
             with a full history. Events leave in the order of commits: a row that is committed behind a backlog waits for all of it, so \
             the figures there are the time that the backlog takes. The steady load beside comes in transactions of {} rows; \
             a machine that does not keep up with it shows a backlog there as well. CPU is all that walhook used, for the rows of both tables, by the timed rows.",
            grouped(LOAD_SIZE as f64)
        ),
        table: Some(table),
        goals,
        json: latencies.iter().map(json).collect(),
        pictures: vec![("latency.svg", histograms(&latencies))],
    }
}

fn json(latency: &Latency) -> serde_json::Value {
    json!({
        "rows_per_s": latency.rate,
        "what": latency.name(),
        "reached_rows_per_s": latency.reached,
        "p50_ms": latency.percentile_ms(50),
        "p90_ms": latency.percentile_ms(90),
        "p99_ms": latency.percentile_ms(99),
        "max_ms": latency.percentile_ms(100),
        "walhook_cpu_us_per_row": latency.own_us,
    })
}

#[derive(Deserialize)]
struct Event {
    data: Row,
}

#[derive(Deserialize)]
struct Row {
    id: usize,
}

/// Writes at `rate` for so many seconds, after one to warm up.
async fn run(feed: &Feed, rate: u64, seconds: u64, beside: Beside) -> Latency {
    feed.pg.psql("TRUNCATE bench, bulk, rule_nats_publish_history");
    drain::empty_stream(feed).await;
    backlog::new_slot(feed, "walhook");
    if let Beside::Backlog(rows) = beside {
        let sql = format!("INSERT INTO bulk SELECT {ROW} FROM generate_series(1, {rows}) i");
        feed.pg.client().await.batch_execute(&sql).await.unwrap();
    }
    let mut walhook = feed.run();
    walhook.logged("stream opened").await;

    let second = usize::try_from(rate).unwrap();
    let rows = second + second * usize::try_from(seconds).unwrap();
    // What is behind a backlog has no need to warm up, and leaving out the first would leave out the longest.
    let first = if let Beside::Backlog(_) = beside { 0 } else { second };
    let epoch = Instant::now();
    let committed: Arc<Vec<AtomicI64>> = Arc::new((0..rows).map(|_| AtomicI64::new(NOT_YET)).collect());
    let mut arrived = vec![NOT_YET; rows];

    let stream = feed.nats.jetstream().await.get_stream(drain::STREAM).await.unwrap();
    let consumer = OrderedConfig {
        deliver_subject: feed.nats.client().await.new_inbox(),
        deliver_policy: DeliverPolicy::All,
        filter_subject: "webhooks.bench".to_owned(),
        ..Default::default()
    };
    let mut messages = stream.create_consumer(consumer).await.unwrap().messages().await.unwrap();
    let cpu_before = usage::cpu(walhook.pid()).unwrap();

    let loading = Arc::new(AtomicBool::new(true));
    let load = matches!(beside, Beside::Load).then(|| {
        let (loading, conninfo) = (Arc::clone(&loading), feed.pg.conninfo());
        std::thread::spawn(move || crate::support::runtime().block_on(load(&conninfo, &loading)))
    });
    let writing = {
        let (committed, conninfo) = (Arc::clone(&committed), feed.pg.conninfo());
        std::thread::spawn(move || {
            let took = crate::support::runtime().block_on(write(&conninfo, rate, epoch, &committed));
            loading.store(false, Ordering::Relaxed);
            took
        })
    };
    for _ in 0..rows {
        let next = tokio::time::timeout(DEADLINE, messages.next()).await;
        let message = next.unwrap_or_else(|_| panic!("no message; walhook says:\n{}", walhook.log())).unwrap().unwrap();
        let at = micros(epoch);
        let event: Event = serde_json::from_slice(&message.payload).unwrap();
        arrived[event.data.id] = at;
    }
    let took: Duration = writing.join().unwrap();
    let own = usage::cpu_since(walhook.pid(), cpu_before);
    if let Some(load) = load {
        load.join().unwrap();
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());

    let mut micros: Vec<i64> = (first..rows).map(|row| arrived[row] - committed[row].load(Ordering::Relaxed)).collect();
    micros.sort_unstable();
    let own_us = own.as_secs_f64() * 1e6 / rows as f64;
    Latency { rate, beside, reached: rows as f64 / took.as_secs_f64(), micros, own_us }
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
        wait_for(begin, row, rate);
        client.execute(&insert, &[&i64::try_from(row).unwrap()]).await.unwrap();
        place.store(micros(epoch), Ordering::Relaxed);
    }
    begin.elapsed()
}

/// Commits transactions of another table, on time, until it is told to stop.
async fn load(conninfo: &str, loading: &AtomicBool) {
    let (client, connection) = tokio_postgres::connect(conninfo, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let insert =
        format!("INSERT INTO bulk SELECT {ROW} FROM generate_series($1::bigint, $1::bigint + {LOAD_SIZE} - 1) i");
    let insert = client.prepare(&insert).await.unwrap();
    let begin = Instant::now();
    for transaction in 0.. {
        wait_for(begin, transaction, LOAD / LOAD_SIZE);
        if !loading.load(Ordering::Relaxed) {
            return;
        }
        let first = i64::try_from(transaction).unwrap() * i64::try_from(LOAD_SIZE).unwrap();
        client.execute(&insert, &[&first]).await.unwrap();
    }
}

/// Until the moment of the number-th, so many a second since `begin`.
fn wait_for(begin: Instant, number: usize, rate: u64) {
    let due = begin + Duration::from_secs(1) * u32::try_from(number).unwrap() / u32::try_from(rate).unwrap();
    // Finer than the runtime's timer, which counts whole milliseconds.
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
}

fn micros(epoch: Instant) -> i64 {
    i64::try_from(epoch.elapsed().as_micros()).unwrap()
}

/// Where the picture begins, in ms; what is faster stands in the first bar.
const LEAST_MS: f64 = 0.05;
/// Bars for a factor of ten.
const BARS: f64 = 12.0;

fn histograms(latencies: &[Latency]) -> String {
    let panels: Vec<Panel> = latencies.iter().map(histogram).collect();
    picture::draw("From commit to consumer: how many rows took how long", &panels)
}

fn histogram(latency: &Latency) -> Panel {
    let ms = |micros: &i64| (*micros as f64 / 1000.0).max(LEAST_MS);
    let longest = latency.micros.last().map_or(LEAST_MS, ms);
    let upto = 10_f64.powf(longest.log10().ceil()).max(10.0);
    let mut bars: Vec<f64> = Vec::new();
    for taken in latency.micros.iter().map(ms) {
        // Not below zero, since nothing is below the least.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bar = ((taken / LEAST_MS).log10() * BARS) as usize;
        bars.resize(bars.len().max(bar + 1), 0.0);
        bars[bar] += 100.0 / latency.micros.len() as f64;
    }
    let edge = |bar: usize| LEAST_MS * 10_f64.powf(bar as f64 / BARS);
    let highest = bars.iter().copied().fold(1.0, f64::max);
    let mut marks: Vec<Mark> =
        bars.iter().enumerate().map(|(bar, height)| Mark::Bar(edge(bar), edge(bar + 1), *height)).collect();
    let [p50, p99] = [50, 99].map(|percent| latency.percentile_ms(percent));
    marks.push(Mark::Rule(Tone::Third, p50));
    marks.push(Mark::Rule(Tone::Second, p99));
    Panel {
        title: latency.name(),
        legend: vec![
            (Tone::Third, true, format!("half of the rows within {} ms", figure(p50))),
            (Tone::Second, true, format!("99 of 100 within {} ms", figure(p99))),
        ],
        x: Axis { label: "right: milliseconds", from: LEAST_MS, upto, is_log: true },
        y: Axis { label: "% of the rows", from: 0.0, upto: highest * 1.05, is_log: false },
        marks,
    }
}
