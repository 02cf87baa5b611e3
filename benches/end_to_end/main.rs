//! What walhook does, how fast, and what it costs: beside `pg_recvlogical`, which only reads, and beside a bare publisher,
//! which only writes.
//!
//! Starts its own servers, and measures all in one run on one machine, since only ratios within a run mean much. Prints a
//! table of goals and figures and a table for each line, and writes them, JSON and pictures to `target/bench/`. A goal that
//! is missed fails nothing; a line that breaks fails the run at its end. Settings by the environment:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `ONLY` | which lines, by name, with commas: `ONLY=history,idle` | all |
//! | `QUICK=1` | a tenth of the rows, and shorter runs | |
//! | `ROWS` | rows of a backlog | 1,000,000 |
//! | `ROUNDS` | drains of each backlog; the one in the middle is shown | 1 |
//! | `SHAPES` | how backlogs are cut: rows of a transaction, or `all`, with commas | `1,1000,all` |
//! | `RATES` | rows/s of the latency runs, with commas | `100,1000` |
//! | `MODES` | modes of the calls, with commas | `queue,nats,both` |
//! | `CALLS` | calls of each of them | 10,000 |
//! | `GROWTH` | rows of the backlogs that grow, with commas | `100000,1000000,10000000` |

#![allow(clippy::unwrap_used, clippy::cast_precision_loss)] // a bench fails loudly; its figures fit into a float

#[path = "../../tests/support/mod.rs"]
mod support;

mod backlog;
mod bare;
mod caller;
mod drain;
mod durable;
mod goals;
mod growth;
mod idle;
mod large;
mod latency;
mod machine;
mod payloads;
mod picture;
mod protocols;
mod publishers;
mod report;
mod settings;
mod shapes;
mod start;
mod usage;
mod webhooks;

use std::{panic::AssertUnwindSafe, pin::Pin, process::ExitCode};

use futures_util::FutureExt;
use report::{Part, Report};
use settings::Settings;
use tokio::signal::unix::{SignalKind, signal};

type Measuring<'s> = Pin<Box<dyn Future<Output = Part> + 's>>;

/// A line is measured by itself, on servers of its own.
struct Line {
    name: &'static str,
    measure: fn(&Settings) -> Measuring<'_>,
}

/// In the order of the table.
const LINES: [Line; 14] = [
    Line { name: "backlog", measure: |settings| Box::pin(shapes::backlog(settings)) },
    Line { name: "history", measure: |settings| Box::pin(shapes::history(settings)) },
    Line { name: "large", measure: |settings| Box::pin(large::measure(settings)) },
    Line { name: "latency", measure: |settings| Box::pin(latency::measure(settings)) },
    Line { name: "webhooks", measure: |settings| Box::pin(webhooks::webhooks(settings)) },
    Line { name: "fanout", measure: |settings| Box::pin(webhooks::fanout(settings)) },
    Line { name: "payloads", measure: |settings| Box::pin(payloads::measure(settings)) },
    Line { name: "publishers", measure: |settings| Box::pin(publishers::measure(settings)) },
    Line { name: "protocols", measure: |settings| Box::pin(protocols::measure(settings)) },
    Line { name: "durable", measure: |settings| Box::pin(durable::measure(settings)) },
    Line { name: "idle", measure: |settings| Box::pin(idle::measure(settings)) },
    Line { name: "start", measure: |settings| Box::pin(start::measure(settings)) },
    Line { name: "growth", measure: |settings| Box::pin(growth::measure(settings)) },
    Line { name: "calls", measure: |settings| Box::pin(caller::measure(settings)) },
];

fn main() -> ExitCode {
    let asked = Settings::read().and_then(|settings| chosen(&settings).map(|lines| (settings, lines)));
    let (settings, lines) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::from(2);
        }
    };
    let finished = support::runtime().block_on(async {
        tokio::select! {
            biased;
            () = told_to_stop() => None,
            report = run(&settings, &lines) => Some(report),
        }
    });
    // Whatever was running has ended by now: its values are gone, and it with them.
    match finished {
        Some(report) if report.is_incomplete() => ExitCode::FAILURE,
        Some(_) => ExitCode::SUCCESS,
        None => {
            eprintln!("bench: stopped; nothing is left running");
            ExitCode::from(130)
        }
    }
}

fn chosen(settings: &Settings) -> Result<Vec<&'static Line>, String> {
    let names: Vec<&str> = LINES.iter().map(|line| line.name).collect();
    if let Some(unknown) = settings.only.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("ONLY={unknown}: there is no such line; there are {}", names.join(", ")));
    }
    let is_chosen = |line: &&Line| settings.only.is_empty() || settings.only.iter().any(|name| name == line.name);
    Ok(LINES.iter().filter(is_chosen).collect())
}

/// The lines one by one. One that breaks does not take the figures of the others with it.
async fn run(settings: &Settings, lines: &[&Line]) -> Report {
    let mut report = Report::new(&settings.typed);
    for (index, line) in lines.iter().enumerate() {
        eprintln!("{} ({} of {})", line.name, index + 1, lines.len());
        let part = AssertUnwindSafe((line.measure)(settings)).catch_unwind().await;
        report.add(line.name, part.ok());
        report.write();
    }
    println!("{report}");
    println!("written to {}", report.write().display());
    report
}

async fn told_to_stop() {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    // What threads would say of servers that vanish under them.
    std::panic::set_hook(Box::new(|_| ()));
}
