//! The lines `backlog` and `history`: the same rows, cut into transactions in three ways.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    backlog::{self, Shape},
    bare::{self, Published},
    drain::{self, Drained},
    goals::{Goal, grouped},
    machine::servers,
    picture::{self, Axis, Mark, Panel, Tone},
    report::{Part, Table},
    settings::Settings,
};

/// A backlog, drained by all three.
struct Compared {
    shape: Shape,
    /// `pg_recvlogical`.
    recvlogical: Drained,
    /// walhook, without history.
    walhook: Drained,
    /// The same messages, from no database.
    bare: Published,
}

impl Compared {
    fn to_recvlogical(&self) -> f64 {
        self.walhook.faster_than(&self.recvlogical)
    }

    fn to_bare(&self) -> f64 {
        self.bare.elapsed.as_secs_f64() / self.walhook.elapsed.as_secs_f64()
    }

    fn bare_rate(&self) -> f64 {
        self.walhook.count as f64 / self.bare.elapsed.as_secs_f64()
    }
}

/// Beside `pg_recvlogical` and a bare publisher.
pub async fn backlog(settings: &Settings) -> Part {
    let feed = servers().await;
    backlog::prepare(&feed, "bench");
    let rows = settings.rows;
    let mut compared = Vec::new();
    for shape in &settings.shapes {
        eprintln!("  {shape}: writing");
        backlog::fill(&feed, *shape, rows).await;
        let mut rounds = Vec::new();
        for round in 1..=settings.rounds {
            eprintln!("  {shape}: draining, round {round} of {}", settings.rounds);
            let recvlogical = drain::by_recvlogical(&feed, rows, &[]).await;
            let walhook = drain::by_walhook(&feed, rows, "off").await;
            let bare = bare::publish(&feed, &drain::sample(&feed).await, rows).await;
            rounds.push(Compared { shape: *shape, recvlogical, walhook, bare });
        }
        rounds.sort_by(|a, b| a.to_recvlogical().total_cmp(&b.to_recvlogical()));
        compared.push(rounds.swap_remove(rounds.len() / 2));
    }

    let mut table = Table::new([
        "backlog",
        "pg_recvlogical, rows/s",
        "walhook, rows/s",
        "ratio",
        "bare publisher, messages/s",
        "ratio",
        "µs: walsender + pg_recvlogical",
        "µs: walsender + walhook + nats-server",
        "µs: bare publisher + nats-server",
        "walhook's peak RSS, MiB",
    ]);
    for line in &compared {
        let Compared { shape, recvlogical, walhook, bare } = line;
        let us = |cpu: Duration| format!("{:.2}", walhook.us_each(cpu));
        table.row([
            shape.to_string(),
            grouped(recvlogical.rate()),
            grouped(walhook.rate()),
            format!("**{:.2}**", line.to_recvlogical()),
            grouped(line.bare_rate()),
            format!("**{:.2}**", line.to_bare()),
            format!("{} + {}", us(recvlogical.walsender), us(recvlogical.own)),
            format!("{} + **{}** + {}", us(walhook.walsender), us(walhook.own), us(walhook.nats)),
            format!("{} + {}", us(bare.own), us(bare.nats)),
            format!("{:.1}", walhook.rss_mib()),
        ]);
    }
    let text = format!(
        "{} rows of about 300 bytes of jsonb, drained by `pg_recvlogical` to /dev/null (TCP, text, `proto_version=1`), by `walhook run` \
         into a file-storage stream (strict ordering, ids, no history), and the same messages by a bare publisher with no database. \
         Times are from the start of the process; CPU (user and system) is per row. Of {} round(s) the one with the median ratio.",
        grouped(rows as f64),
        settings.rounds
    );
    Part {
        title: "A backlog, beside pg_recvlogical and a bare publisher".to_owned(),
        text,
        table: Some(table),
        goals: goals(&compared),
        json: compared.iter().map(json).collect(),
        pictures: vec![("throughput.svg", throughput(&compared, rows))],
    }
}

fn goals(compared: &[Compared]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for line in compared {
        let (least, us) = match line.shape {
            Shape::Of(1) => (2.0, 1.5),
            Shape::Of(_) => (1.1, 1.0),
            Shape::One => (0.95, 1.0),
        };
        let (shape, walhook) = (line.shape, &line.walhook);
        goals.push(Goal::at_least(format!("{shape}, to `pg_recvlogical`'s rows/s"), least, line.to_recvlogical(), "×"));
        goals.push(Goal::at_least(format!("{shape}, to a bare publisher's messages/s"), 0.8, line.to_bare(), "×"));
        goals.push(Goal::at_most(format!("{shape}, walhook's CPU per event"), us, walhook.us_each(walhook.own), "µs"));
        goals.push(Goal::at_most(format!("{shape}, walhook's peak RSS"), 32.0, walhook.rss_mib(), "MiB"));
        goals.push(Goal::stated(format!("{shape}, walhook's throughput"), walhook.rate(), "rows/s"));
    }
    goals
}

fn json(line: &Compared) -> Value {
    let Compared { shape, recvlogical, walhook, bare } = line;
    json!({
        "shape": shape.to_string(),
        "pg_recvlogical": recvlogical.json(),
        "walhook": walhook.json(),
        "bare_publisher": {
            "per_s": line.bare_rate(),
            "cpu_us_each": {"own": walhook.us_each(bare.own), "nats_server": walhook.us_each(bare.nats)},
        },
        "to_pg_recvlogical": line.to_recvlogical(),
        "to_bare_publisher": line.to_bare(),
        "stored_over_time": progress(walhook),
    })
}

/// Seconds and how many were stored by then, some hundred of them.
fn progress(walhook: &Drained) -> Vec<(f64, u64)> {
    let every = (walhook.progress.len() / 200).max(1);
    walhook.progress.iter().step_by(every).map(|(at, stored)| (at.as_secs_f64(), *stored)).collect()
}

fn throughput(compared: &[Compared], rows: u64) -> String {
    let upto = compared.iter().flat_map(|line| [line.walhook.rate(), line.recvlogical.rate(), line.bare_rate()]);
    let steps: Vec<_> = compared.iter().map(|line| over_time(&line.walhook)).collect();
    let upto = upto.chain(steps.iter().flatten().map(|(_, rate)| *rate)).fold(1.0, f64::max) * 1.05;
    let panels: Vec<Panel> = compared
        .iter()
        .zip(steps)
        .map(|(line, steps)| {
            let Compared { recvlogical, walhook, bare, .. } = line;
            let longest = walhook.elapsed.max(recvlogical.elapsed).max(bare.elapsed);
            Panel {
                title: line.shape.to_string(),
                legend: vec![
                    (Tone::Main, false, format!("walhook {}/s", grouped(walhook.rate()))),
                    (Tone::Second, true, format!("pg_recvlogical {}/s", grouped(recvlogical.rate()))),
                    (Tone::Third, true, format!("bare publisher {}/s", grouped(line.bare_rate()))),
                ],
                x: Axis { label: "right: seconds", from: 0.0, upto: longest.as_secs_f64(), is_log: false },
                y: Axis { label: "rows/s", from: 0.0, upto, is_log: false },
                marks: vec![
                    Mark::Steps(steps),
                    Mark::Level(Tone::Second, recvlogical.elapsed.as_secs_f64(), recvlogical.rate()),
                    Mark::Level(Tone::Third, bare.elapsed.as_secs_f64(), line.bare_rate()),
                ],
            }
        })
        .collect();
    picture::draw(
        &format!("Draining {} rows: throughput over time; lines end where the work did", grouped(rows as f64)),
        &panels,
    )
}

/// Seconds and the rate from there on, over stretches of about a tenth of a second.
fn over_time(walhook: &Drained) -> Vec<(f64, f64)> {
    let stretch = (walhook.elapsed / 80).max(Duration::from_millis(50)).min(Duration::from_millis(500));
    let mut steps = Vec::new();
    let (mut since, mut had) = (Duration::ZERO, 0);
    for (at, stored) in &walhook.progress {
        if *at - since >= stretch || *at == walhook.elapsed {
            steps.push((since.as_secs_f64(), (stored - had) as f64 / (*at - since).as_secs_f64()));
            (since, had) = (*at, *stored);
        }
    }
    steps.push((since.as_secs_f64(), 0.0));
    steps
}

/// With and without history.
pub async fn history(settings: &Settings) -> Part {
    let feed = servers().await;
    backlog::prepare(&feed, "bench");
    let mut table = Table::new([
        "backlog",
        "history off, rows/s",
        "full, rows/s",
        "ratio",
        "walhook's CPU, µs per event: off",
        "full",
        "peak RSS, MiB: off",
        "full",
    ]);
    let (mut goals, mut figures) = (Vec::new(), Vec::new());
    for shape in &settings.shapes {
        eprintln!("  {shape}: writing");
        backlog::fill(&feed, *shape, settings.rows).await;
        let mut rounds = Vec::new();
        for round in 1..=settings.rounds {
            eprintln!("  {shape}: draining, round {round} of {}", settings.rounds);
            let off = drain::by_walhook(&feed, settings.rows, "off").await;
            rounds.push((off, drain::by_walhook(&feed, settings.rows, "full").await));
        }
        rounds.sort_by(|(off_a, full_a), (off_b, full_b)| {
            full_a.faster_than(off_a).total_cmp(&full_b.faster_than(off_b))
        });
        let (off, full) = rounds.swap_remove(rounds.len() / 2);
        let ratio = full.faster_than(&off);
        goals.push(Goal::at_least(format!("{shape}, history `full` to `off`"), 0.8, ratio, "×"));
        table.row([
            shape.to_string(),
            grouped(off.rate()),
            grouped(full.rate()),
            format!("**{ratio:.2}**"),
            format!("{:.2}", off.us_each(off.own)),
            format!("{:.2}", full.us_each(full.own)),
            format!("{:.1}", off.rss_mib()),
            format!("{:.1}", full.rss_mib()),
        ]);
        figures.push(json!({"shape": shape.to_string(), "off": off.json(), "full": full.json(), "ratio": ratio}));
    }
    Part {
        title: "With a full history".to_owned(),
        text: format!(
            "The same {} rows. With `history = 'full'` a drain ends when every event's row is durable and the slot confirmed.",
            grouped(settings.rows as f64)
        ),
        table: Some(table),
        goals,
        json: figures.into(),
        pictures: Vec::new(),
    }
}
