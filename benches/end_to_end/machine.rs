//! The servers that a line is measured on, and what is to be said of the machine they run on.

use std::{fs, process::Command};

use crate::support::{Nats, Postgres, feed::Feed, services};

/// For PostgreSQL, so that nothing but the work measured runs in the background.
pub const POSTGRES: &str = "
shared_buffers = 256MB
autovacuum = off
checkpoint_timeout = 1h
max_wal_size = 20GB
max_locks_per_transaction = 256
";
/// For nats-server: above the largest row that is sent.
const NATS: &str = "max_payload: 4MB";

/// Servers of a line's own, so that it does not matter which lines ran before.
pub async fn servers() -> Feed {
    Feed::on(Postgres::builder().conf(POSTGRES).start().await, Nats::builder().config(NATS).start().await)
}

/// What the figures were taken on.
pub struct Machine {
    /// How many of which processor.
    pub processors: String,
    /// The kernel's average over a minute, before anything was started.
    pub load: String,
    /// By their own words.
    pub postgres: String,
    /// By its own words.
    pub nats: String,
    /// The state of this repository; empty outside one.
    pub commit: String,
    /// Today.
    pub date: String,
}

impl Machine {
    /// This one, now.
    pub fn here() -> Machine {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1)).unwrap_or("?");
        let count = std::thread::available_parallelism().map_or(0, usize::from);
        let postgres = services::postgres(&services::postgres_version()).join("postgres");
        let nats = services::nats(&services::nats_version());
        Machine {
            processors: format!("{count} × {model}"),
            load: load(),
            postgres: said(Command::new(postgres).arg("--version")),
            nats: said(Command::new(nats).arg("--version")),
            commit: said(Command::new("git").args(["describe", "--always", "--dirty"])),
            date: said(Command::new("date").arg("-I")),
        }
    }
}

/// The kernel's average over the last minute.
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("?").to_owned()
}

fn said(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    output.map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
