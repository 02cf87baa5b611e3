//! What walhook does with a backlog, beside `pg_recvlogical`, which only reads it, and beside a bare publisher, which
//! only writes it; how long a committed row takes to a consumer when there is none; and what a call costs its caller.
//!
//! Starts its own servers, measures all in one run on one machine, since only ratios within a run mean much; prints a
//! table and writes `target/bench/end_to_end.json`. No figure is judged here. Settings by the environment:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `ROWS` | rows of each backlog | 1,000,000 |
//! | `QUICK=1` | a tenth of that, and shorter latency runs | |
//! | `ROUNDS` | drains of each backlog; the round with the median ratio is shown | 1 |
//! | `SHAPES` | which backlogs: `1`, `1000`, `all`, with commas; empty for none | `1,1000,all` |
//! | `RATES` | rows/s of the latency runs, with commas; empty for none | `100,1000` |
//! | `MODES` | modes of the calls, with commas; empty for none | `queue,nats,both` |
//! | `CALLS` | calls of each of them | 10,000 |
//! | `DURABLE` | rows of the backlogs that are safe against power cuts; 0 for none | 200,000, `QUICK` 50,000 |

#![allow(clippy::unwrap_used, clippy::cast_precision_loss)] // a bench fails loudly; its figures fit into a float

#[path = "../../tests/support/mod.rs"]
mod support;

mod backlog;
mod bare;
mod caller;
mod drain;
mod durable;
mod latency;
mod report;
mod usage;

use backlog::Shape;
use report::{Line, Report};
use support::{Nats, Postgres, feed::Feed};

/// For PostgreSQL, so that nothing but the work measured runs in the background.
const POSTGRES: &str = "
shared_buffers = 256MB
autovacuum = off
checkpoint_timeout = 1h
max_wal_size = 20GB
";

fn main() {
    let runtime = support::runtime();
    runtime.block_on(run());
}

async fn run() {
    let quick = std::env::var_os("QUICK").is_some_and(|value| !value.is_empty() && value != "0");
    let rows = number("ROWS").unwrap_or(if quick { 100_000 } else { 1_000_000 });
    let rounds = number("ROUNDS").unwrap_or(1).max(1);
    let feed = Feed::on(Postgres::builder().conf(POSTGRES).start().await, Nats::start().await);
    backlog::prepare(&feed);

    let mut report = Report::new(&feed, rows, rounds);
    for shape in list("SHAPES", "1,1000,all").iter().map(|name| Shape::named(name)) {
        eprintln!("{rows} rows, {shape}: writing");
        backlog::fill(&feed, shape, rows);
        let mut lines = Vec::new();
        for round in 1..=rounds {
            eprintln!("{rows} rows, {shape}: draining, round {round} of {rounds}");
            let recvlogical = drain::by_recvlogical(&feed).await;
            let walhook = drain::by_walhook(&feed, rows, "off").await;
            let with_history = drain::by_walhook(&feed, rows, "full").await;
            let bare = bare::publish(&feed, &drain::sample(&feed).await, rows).await;
            lines.push(Line { shape: shape.to_string(), rows, recvlogical, walhook, with_history, bare });
        }
        report.lines.push(report::median(lines));
        backlog::forget(&feed);
    }
    for rate in list("RATES", "100,1000").iter().map(|rate| rate.parse().unwrap()) {
        eprintln!("commit to consumer at {rate} rows/s");
        report.latencies.push(latency::measure(&feed, rate, if quick { 3 } else { 15 }).await);
    }
    let modes = list("MODES", "queue,nats,both");
    if !modes.is_empty() {
        eprintln!("what a call costs its caller");
        let calls = number("CALLS").unwrap_or(10_000);
        report.costs = caller::measure(&feed, &modes, u32::try_from(calls).unwrap()).await;
    }
    let durable = number("DURABLE").unwrap_or(if quick { 50_000 } else { 200_000 });
    if durable > 0 {
        eprintln!("{durable} rows, safe against power cuts");
        let durable = durable::measure(POSTGRES, durable).await;
        println!("{durable}\nwritten to {}", durable.write().display());
    }
    println!("{report}");
    println!("written to {}", report.write().display());
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn list(name: &str, default: &str) -> Vec<String> {
    let text = std::env::var(name).unwrap_or_else(|_| default.to_owned());
    text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}
