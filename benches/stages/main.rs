//! What each stage of a change's way costs by itself, with no server and no socket.
//!
//! Time varies with the machine; the number of instructions does not. So it runs itself once more under `valgrind
//! --tool=callgrind`, where that is installed, with N and with 2 N rows, and the difference is what N rows cost. Allocations
//! are judged by `tests/allocations.rs`.
//!
//! | stage | from | to |
//! |---|---|---|
//! | decode | a CopyData payload | the columns of a change |
//! | event | the same | a message in its lane, sent, acknowledged, its commit confirmed; without and with history |
//! | window | a message's head and body | the same end |
//!
//! `ROWS` is N, 20,000 by default. `PROFILE=STAGE`, or a part of its name, shows instead which functions the instructions of that
//! stage are in (`make profile`).

#![allow(clippy::unwrap_used, clippy::cast_precision_loss)] // a bench fails loudly; its figures fit into a float

mod feed;

use std::{
    hint::black_box,
    process::Command,
    time::{Duration, Instant},
};

use feed::{Answers, Frames, Sink, WINDOW};
use walhook::{
    flow::{
        event_id::EventPosition,
        lane::{Head, Lane, Ordering},
    },
    wal::{
        change::{Assembler, Step},
        frame::Frame,
        lsn::Lsn,
    },
};

/// The rows to make beforehand, and how many of them to take; returns what the taking took.
type Run = fn(u64, u64) -> Duration;

const STAGES: &[(&str, Run)] = &[
    ("decode, 1-row transactions", |made, rows| decode(&Frames::of(made, 1), rows)),
    ("decode, 1000-row transactions", |made, rows| decode(&Frames::of(made, 1000), rows)),
    ("event, 1-row transactions", |made, rows| event(&Frames::of(made, 1), rows, Sink::new("off"))),
    ("event, 1000-row transactions", |made, rows| event(&Frames::of(made, 1000), rows, Sink::new("off"))),
    ("event that is a column, 1000-row transactions", |made, rows| {
        event(&Frames::of(made, 1000), rows, Sink::of_column("off"))
    }),
    ("event, 1000-row transactions, history full", |made, rows| {
        event(&Frames::of(made, 1000), rows, Sink::new("full"))
    }),
    ("window", |_, rows| window(rows)),
];

/// Rounds of which the quickest counts.
const ROUNDS: u32 = 5;

fn main() {
    let rows: u64 = std::env::var("ROWS").map_or(20_000, |text| text.parse().expect("ROWS is a number"));
    // As called below, under valgrind.
    if let (Ok(stage), Ok(taken)) = (std::env::var("STAGE"), std::env::var("TAKEN")) {
        let (_, run) = STAGES.iter().find(|(name, _)| *name == stage).expect("a stage by its name");
        run(2 * rows, taken.parse().expect("TAKEN is a number"));
        return;
    }
    if let Ok(stage) = std::env::var("PROFILE") {
        let (name, _) =
            STAGES.iter().find(|(name, _)| name.contains(&stage)).expect("PROFILE is a stage, or a part of its name");
        return profile(name, rows);
    }
    println!("| stage | ns per row | instructions per row |\n|---|---|---|");
    for &(name, run) in STAGES {
        let quickest = (0..ROUNDS).map(|_| run(rows, rows)).min().unwrap_or_default();
        let instructions =
            instructions(name, rows).map_or_else(|| "no valgrind".to_owned(), |count| format!("{count:.0}"));
        println!("| {name} | {:.0} | {instructions} |", quickest.as_secs_f64() * 1e9 / rows as f64);
    }
}

/// Prints the functions in which most of a stage's instructions are, their callees not counted. Needs valgrind.
fn profile(stage: &str, rows: u64) {
    let file = std::env::temp_dir().join(format!("walhook-stage.{}", std::process::id()));
    // Without what makes the rows.
    let toggles = ["decode", "event", "window"].map(|name| format!("--toggle-collect=stages::{name}*"));
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .args(toggles)
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(std::env::current_exe().unwrap())
        .envs([("STAGE", stage), ("ROWS", &rows.to_string()), ("TAKEN", &rows.to_string())])
        .output()
        .expect("valgrind is installed");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let table = Command::new("callgrind_annotate")
        .args(["--auto=no", "--threshold=100"])
        .arg(&file)
        .output()
        .expect("callgrind_annotate is installed beside valgrind");
    let _ = std::fs::remove_file(&file);
    let mut functions = std::collections::HashMap::<String, u64>::new();
    for line in String::from_utf8_lossy(&table.stdout).lines() {
        // `1,234 (5.6%)  file:function [program]`; a function is there once for each file that was inlined into it.
        let Some((count, place)) = line.trim().split_once(" (").filter(|_| !line.ends_with("TOTALS")) else { continue };
        let (Ok(count), Some((_, place))) = (count.replace(',', "").parse::<u64>(), place.split_once(")  ")) else {
            continue;
        };
        let name = place.split_once(':').map_or(place, |(_, name)| name).split(" [").next().unwrap_or(place);
        *functions.entry(name.to_owned()).or_default() += count;
    }
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let all: u64 = functions.iter().map(|(_, count)| count).sum();
    println!("{stage}: {} instructions per row\n", all / rows);
    println!("| function | instructions per row | of all |\n|---|---|---|");
    for (name, count) in functions.iter().take(40) {
        let part = *count as f64 / all as f64 * 100.0;
        println!("| `{name}` | {} | {part:.1} % |", count / rows);
    }
}

/// What twice as many rows cost more, for each of them.
fn instructions(stage: &str, rows: u64) -> Option<f64> {
    let count = |taken: u64| -> Option<f64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().unwrap())
            .envs([("STAGE", stage), ("ROWS", &rows.to_string()), ("TAKEN", &taken.to_string())])
            .output()
            .ok()?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        told.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
    };
    Some((count(2 * rows)? - count(rows)?) / rows as f64)
}

#[inline(never)]
fn decode(frames: &Frames, rows: u64) -> Duration {
    let mut assembler = Assembler::default();
    let begin = Instant::now();
    let mut seen = 0;
    for frame in frames.iter() {
        let Frame::XLogData { start, data, .. } = Frame::parse(frame).unwrap() else { unreachable!() };
        if let Step::Change(change) = assembler.take(data, start).unwrap() {
            for column in change.new.unwrap().iter() {
                black_box(column);
            }
            seen += 1;
            if seen == rows {
                break;
            }
        }
    }
    begin.elapsed()
}

#[inline(never)]
fn event(frames: &Frames, rows: u64, mut sink: Sink) -> Duration {
    let begin = Instant::now();
    for frame in frames.iter() {
        sink.take(frame);
        if sink.made() == rows {
            break;
        }
    }
    sink.store();
    let elapsed = begin.elapsed();
    assert_eq!(sink.stored(), rows, "every event is stored");
    elapsed
}

/// A lane by itself, filled and acknowledged in turn.
#[inline(never)]
fn window(rows: u64) -> Duration {
    let mut lane = Lane::new("WEBHOOKS", Ordering::Strict, "_INBOX.stages");
    let mut answers = Answers::default();
    lane.open(&feed::empty_tail()).unwrap();
    let begin = Instant::now();
    for number in 0..rows {
        let position = EventPosition { commit_lsn: Lsn(number), commit_time: 0, ordinal: 0, webhook_id: 1 };
        let head = Head { subject: b"webhooks.bench", id: b"src-1", message_id: None, op: "insert", epoch: 1 };
        let draft = lane.draft(head, |_| ());
        lane.buffer().extend_from_slice(b"{}");
        lane.commit(draft, number, position).unwrap();
        if lane.len() == WINDOW {
            answers.store_all(&mut lane);
        }
    }
    answers.store_all(&mut lane);
    begin.elapsed()
}
