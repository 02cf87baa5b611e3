//! The line `idle`: what walhook costs while nothing happens.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{backlog, drain, goals::Goal, machine::servers, report::Part, settings::Settings, usage};

/// Until what follows a start is done: the first checkpoint, and the threads that tokio keeps for ten seconds after they have
/// resolved a name, whose account would go with them.
const SETTLE: Duration = Duration::from_secs(12);

/// A linked table, one event, and then silence.
pub async fn measure(settings: &Settings) -> Part {
    let feed = servers().await;
    backlog::prepare(&feed, "bench");
    drain::empty_stream(&feed).await;
    let mut walhook = feed.run();
    feed.pg.psql(&format!("INSERT INTO bench SELECT {} FROM generate_series(1, 1) i", backlog::ROW));
    feed.confirmed().await;
    tokio::time::sleep(SETTLE).await;

    let pid = walhook.pid();
    let (begin, cpu, sleeps) = (Instant::now(), usage::cpu_of_threads(pid), usage::sleeps(pid));
    tokio::time::sleep(Duration::from_secs(settings.quick(10, 60))).await;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = 100.0 * usage::cpu_of_threads(pid).saturating_sub(cpu).as_secs_f64() / seconds;
    let wakes = usage::sleeps(pid).saturating_sub(sleeps) as f64 / seconds;
    let rss = usage::peak_rss_kib(pid) as f64 / 1024.0;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    Part {
        title: "Idle".to_owned(),
        text: format!(
            "One linked table, one event published, and then nothing for {seconds:.0} s: CPU by the scheduler's account, and how often \
             one of walhook's threads had gone to sleep and so was woken."
        ),
        table: None,
        goals: vec![
            Goal::at_most("idle, CPU of a core", 0.1, cpu, "%"),
            Goal::at_most("idle, wake-ups", 10.0, wakes, "/s"),
            Goal::stated("idle, peak RSS", rss, "MiB"),
        ],
        json: json!({"seconds": seconds, "cpu_percent": cpu, "wake_ups_per_s": wakes, "peak_rss_mib": rss}),
        pictures: Vec::new(),
    }
}
