//! The table and the JSON.

use std::{fmt, fs, path::PathBuf, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    bare::Published,
    caller::{Cost, PerCall},
    drain::Drained,
    latency::Latency,
    support::feed::Feed,
};

/// One backlog, drained by all three.
#[derive(Clone)]
pub struct Line {
    /// How it was cut.
    pub shape: String,
    /// Its rows.
    pub rows: u64,
    /// `pg_recvlogical`.
    pub recvlogical: Drained,
    /// walhook, without history.
    pub walhook: Drained,
    /// walhook with a full history, until its rows are in.
    pub with_history: Drained,
    /// The same messages, from no database.
    pub bare: Published,
}

impl Line {
    fn rate(&self, elapsed: Duration) -> f64 {
        self.rows as f64 / elapsed.as_secs_f64()
    }

    fn per_event_us(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.rows as f64
    }

    fn ratio(&self) -> f64 {
        self.recvlogical.elapsed.as_secs_f64() / self.walhook.elapsed.as_secs_f64()
    }

    fn to_bare(&self) -> f64 {
        self.bare.elapsed.as_secs_f64() / self.walhook.elapsed.as_secs_f64()
    }
}

/// The round whose ratio is the median.
pub fn median(mut rounds: Vec<Line>) -> Line {
    rounds.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
    rounds.swap_remove(rounds.len() / 2)
}

/// All that was measured.
pub struct Report {
    /// The backlogs.
    pub lines: Vec<Line>,
    /// The rates.
    pub latencies: Vec<Latency>,
    /// The calls.
    pub costs: Vec<Cost>,
    machine: String,
    postgres: String,
    nats: String,
    rounds: u64,
    rows: u64,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(feed: &Feed, rows: u64, rounds: u64) -> Report {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1)).unwrap_or("?");
        let count = std::thread::available_parallelism().map_or(0, usize::from);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or("?");
        let nats = Command::new(crate::support::services::nats(&crate::support::services::nats_version()))
            .arg("--version")
            .output()
            .unwrap();
        Report {
            lines: Vec::new(),
            latencies: Vec::new(),
            costs: Vec::new(),
            machine: format!("{count} × {model}; load at the start {load}"),
            postgres: feed.pg.psql("SHOW server_version"),
            nats: String::from_utf8_lossy(&nats.stdout).trim().to_owned(),
            rounds,
            rows,
        }
    }

    /// Writes the JSON and says where.
    pub fn write(&self) -> PathBuf {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("end_to_end.json");
        fs::write(&path, serde_json::to_string_pretty(&self.json()).unwrap()).unwrap();
        path
    }

    fn json(&self) -> Value {
        let lines: Vec<Value> = self
            .lines
            .iter()
            .map(|line| {
                let Line { recvlogical, walhook, with_history, bare, .. } = line;
                json!({
                    "shape": line.shape,
                    "rows": line.rows,
                    "pg_recvlogical": {
                        "rows_per_s": line.rate(recvlogical.elapsed),
                        "cpu_s": {"walsender": recvlogical.walsender.as_secs_f64(), "own": recvlogical.own.as_secs_f64()},
                    },
                    "walhook": {
                        "rows_per_s": line.rate(walhook.elapsed),
                        "cpu_s": {
                            "walsender": walhook.walsender.as_secs_f64(),
                            "own": walhook.own.as_secs_f64(),
                            "nats_server": walhook.nats.as_secs_f64(),
                        },
                        "peak_rss_kib": walhook.peak_rss_kib,
                    },
                    "walhook_with_history": {
                        "rows_per_s": line.rate(with_history.elapsed),
                        "cpu_s": {"own": with_history.own.as_secs_f64()},
                        "peak_rss_kib": with_history.peak_rss_kib,
                    },
                    "bare_publisher": {
                        "messages_per_s": line.rate(bare.elapsed),
                        "cpu_s": {"own": bare.own.as_secs_f64(), "nats_server": bare.nats.as_secs_f64()},
                    },
                    "walhook_to_pg_recvlogical": line.ratio(),
                    "walhook_to_bare_publisher": line.to_bare(),
                })
            })
            .collect();
        let latencies: Vec<Value> = self
            .latencies
            .iter()
            .map(|latency| {
                json!({
                    "rows_per_s": latency.rate,
                    "reached_rows_per_s": latency.reached,
                    "p50_ms": latency.percentile_ms(50),
                    "p90_ms": latency.percentile_ms(90),
                    "p99_ms": latency.percentile_ms(99),
                    "max_ms": latency.percentile_ms(100),
                    "walhook_cpu_us_per_row": latency.own_us,
                })
            })
            .collect();
        let costs: Vec<Value> = self
            .costs
            .iter()
            .map(|cost| {
                let us = |per_call: PerCall| json!({"elapsed_us": per_call.elapsed, "cpu_us": per_call.cpu});
                json!({
                    "mode": cost.mode,
                    "one_transaction": {"alone": us(cost.alone), "beside_walhook": us(cost.beside)},
                    "commit_each": {"alone": us(cost.commits_alone), "beside_walhook": us(cost.commits_beside)},
                })
            })
            .collect();
        json!({
            "machine": self.machine,
            "postgres": self.postgres,
            "nats_server": self.nats,
            "rounds": self.rounds,
            "backlogs": lines,
            "commit_to_consumer": latencies,
            "calls": costs,
        })
    }
}

/// Markdown.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; PostgreSQL {}; {}", self.machine, self.postgres, self.nats)?;
        if !self.lines.is_empty() {
            writeln!(
                f,
                "\nBacklog of {} rows, {} round(s). CPU in µs per event (user + system).\n",
                self.rows, self.rounds
            )?;
            writeln!(
                f,
                "| backlog | pg_recvlogical, rows/s | walhook, rows/s | ratio | of a bare publisher's | walsender beside \
                 pg_recvlogical + pg_recvlogical | walsender + walhook + nats-server | bare publisher + nats-server | \
                 walhook's peak RSS, MiB |"
            )?;
            writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        }
        for line in &self.lines {
            let Line { recvlogical, walhook, bare, .. } = line;
            let us = |cpu| format!("{:.2}", line.per_event_us(cpu));
            writeln!(
                f,
                "| {} | {:.0} | {:.0} | **{:.2}** | {:.2} ({:.0}/s) | {} + {} | {} + **{}** + {} | {} + {} | {:.1} |",
                line.shape,
                line.rate(recvlogical.elapsed),
                line.rate(walhook.elapsed),
                line.ratio(),
                line.to_bare(),
                line.rate(bare.elapsed),
                us(recvlogical.walsender),
                us(recvlogical.own),
                us(walhook.walsender),
                us(walhook.own),
                us(walhook.nats),
                us(bare.own),
                us(bare.nats),
                walhook.peak_rss_kib as f64 / 1024.0,
            )?;
        }
        if !self.lines.is_empty() {
            writeln!(f, "\nWith history `full`, until every event's row is in.\n")?;
            writeln!(f, "| backlog | rows/s | of history off | walhook's CPU, µs per event | peak RSS, MiB |")?;
            writeln!(f, "|---|---|---|---|---|")?;
        }
        for line in &self.lines {
            let Line { walhook, with_history, .. } = line;
            writeln!(
                f,
                "| {} | {:.0} | {:.2} | {:.2} | {:.1} |",
                line.shape,
                line.rate(with_history.elapsed),
                walhook.elapsed.as_secs_f64() / with_history.elapsed.as_secs_f64(),
                line.per_event_us(with_history.own),
                with_history.peak_rss_kib as f64 / 1024.0,
            )?;
        }
        if !self.latencies.is_empty() {
            writeln!(f, "\nCommit to consumer, ms.\n\n| rows/s | p50 | p90 | p99 | max | walhook's CPU, µs per row |")?;
            writeln!(f, "|---|---|---|---|---|---|")?;
        }
        for latency in &self.latencies {
            let ms = |percent| format!("{:.2}", latency.percentile_ms(percent));
            writeln!(
                f,
                "| {} (reached {:.0}) | {} | {} | {} | {} | {:.0} |",
                latency.rate,
                latency.reached,
                ms(50),
                ms(90),
                ms(99),
                ms(100),
                latency.own_us
            )?;
        }
        if !self.costs.is_empty() {
            writeln!(
                f,
                "\nWhat a call costs its caller, µs (CPU of its server process).\n\n| mode | in one transaction, walhook \
                 not running | running | a commit each, walhook not running | running |"
            )?;
            writeln!(f, "|---|---|---|---|---|")?;
        }
        for cost in &self.costs {
            let us = |per_call: PerCall| format!("{:.0} ({:.0})", per_call.elapsed, per_call.cpu);
            let [alone, beside] = [cost.alone, cost.beside].map(us);
            let [commits_alone, commits_beside] = [cost.commits_alone, cost.commits_beside].map(us);
            writeln!(f, "| {} | {alone} | {beside} | {commits_alone} | {commits_beside} |", cost.mode)?;
        }
        Ok(())
    }
}
