//! The line `growth`: whether a backlog ten times as long takes ten times as long, and no more memory.

use serde_json::json;

use crate::{
    backlog::{self, Shape},
    drain::{self, Drained},
    goals::{Goal, grouped},
    machine::servers,
    report::{Part, Table},
    settings::Settings,
};

/// The rows of a transaction.
const SIZE: u64 = 1_000;
/// As linear as figures of one machine get.
const LINEAR: f64 = 0.9;
/// Pages that come with time, not with rows.
const FLAT: f64 = 1.25;

/// Backlogs of growing length.
pub async fn measure(settings: &Settings) -> Part {
    let feed = servers().await;
    backlog::prepare(&feed, "bench");
    let mut drained: Vec<Drained> = Vec::new();
    for rows in &settings.growth {
        eprintln!("  {rows} rows");
        backlog::fill(&feed, Shape::Of(SIZE), *rows).await;
        drained.push(drain::rounds(&feed, *rows, settings.rounds).await);
    }
    let mut table =
        Table::new(["rows", "seconds", "rows/s while running", "walhook's CPU per event, µs", "peak RSS, MiB"]);
    for drained in &drained {
        table.row([
            grouped(drained.count as f64),
            format!("{:.2}", drained.elapsed.as_secs_f64()),
            grouped(drained.running_rate()),
            format!("{:.2}", drained.us_each(drained.own)),
            format!("{:.1}", drained.rss_mib()),
        ]);
    }
    let mut goals = Vec::new();
    if let [first, .., last] = &drained[..] {
        let lengths = format!("{} rows to {}", grouped(last.count as f64), grouped(first.count as f64));
        let rate = last.running_rate() / first.running_rate();
        goals.push(Goal::at_least(format!("{lengths}, rows/s"), LINEAR, rate, "×"));
        goals.push(Goal::at_most(format!("{lengths}, peak RSS"), FLAT, last.rss_mib() / first.rss_mib(), "×"));
    }
    Part {
        title: "By the length of the backlog".to_owned(),
        text: "Transactions of 1,000 rows, without history. The rate is taken from the first event that was seen stored to the last, so \
               that the start does not count more in a short backlog."
            .to_owned(),
        table: Some(table),
        goals,
        json: drained.iter().map(|drained| json!({"walhook": drained.json(), "running_per_s": drained.running_rate()})).collect(),
        pictures: Vec::new(),
    }
}
