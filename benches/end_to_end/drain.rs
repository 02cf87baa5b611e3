//! The two who drain a backlog.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::{
    backlog::{copy_slot, drop_slot},
    support::{
        feed::Feed,
        folder::Folder,
        process::{Process, User},
    },
    usage::{self, Watch},
};

/// How long a drain may take before something is wrong.
const DEADLINE: Duration = Duration::from_secs(900);
/// How often its end, and how far it has come, is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// The stream of the default configuration.
pub const STREAM: &str = "WEBHOOKS";

/// What a drain took.
#[derive(Clone)]
pub struct Drained {
    /// Rows, or the events that were made of them.
    pub count: u64,
    /// From the start of the process to the last of them.
    pub elapsed: Duration,
    /// CPU of the process itself.
    pub own: Duration,
    /// CPU of its walsender.
    pub walsender: Duration,
    /// CPU of nats-server.
    pub nats: Duration,
    /// Peak memory of the process, in KiB.
    pub peak_rss_kib: u64,
    /// How many the stream had, and when since the start; of walhook alone.
    pub progress: Vec<(Duration, u64)>,
}

impl Drained {
    /// Per second, with the start of the process.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    /// Per second from the first that was seen stored, so without the start of the process.
    pub fn running_rate(&self) -> f64 {
        let first = self.progress.iter().find(|(_, stored)| *stored > 0);
        let (at, stored) = first.copied().unwrap_or_default();
        if stored == self.count {
            self.rate()
        } else {
            (self.count - stored) as f64 / (self.elapsed - at).as_secs_f64()
        }
    }

    /// How many times as fast it was as `other`.
    pub fn faster_than(&self, other: &Drained) -> f64 {
        self.rate() / other.rate()
    }

    /// Of one of its CPU figures.
    pub fn us_each(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.count as f64
    }

    /// Peak.
    pub fn rss_mib(&self) -> f64 {
        self.peak_rss_kib as f64 / 1024.0
    }

    /// All of it but the progress.
    pub fn json(&self) -> Value {
        json!({
            "count": self.count,
            "seconds": self.elapsed.as_secs_f64(),
            "per_s": self.rate(),
            "cpu_us_each": {
                "own": self.us_each(self.own),
                "walsender": self.us_each(self.walsender),
                "nats_server": self.us_each(self.nats),
            },
            "peak_rss_kib": self.peak_rss_kib,
        })
    }
}

/// The one in the middle, by time.
pub fn median(mut rounds: Vec<Drained>) -> Drained {
    rounds.sort_by_key(|drained| drained.elapsed);
    rounds.swap_remove(rounds.len() / 2)
}

/// `pg_recvlogical` to `/dev/null`, by TCP, with the publications and the protocol that walhook asks for, and with `more` of pgoutput's
/// options.
pub async fn by_recvlogical(feed: &Feed, rows: u64, more: &[&str]) -> Drained {
    copy_slot(feed, "recvlogical");
    // Anything behind the backlog ends it; this also flushes what asynchronous commits have left.
    let end = feed.pg.psql("SELECT pg_logical_emit_message(true, 'bench', 'end')");
    let folder = Folder::new("bench", User::Ourselves);
    let mut command = User::Ourselves.command(recvlogical(feed));
    command.args(["--dbname", &feed.pg.conninfo(), "--slot", "recvlogical", "--start", "--no-loop"]);
    command.args(["--file", "/dev/null", "--endpos", &end]);
    command.args(["--option", "proto_version=1", "--option", "publication_names=walhook_inserts,walhook_changes"]);
    command.args(more.iter().flat_map(|option| ["--option", option]));
    let client = feed.pg.client().await;
    let begin = Instant::now();
    let mut process = Process::start("pg_recvlogical", command, &folder.path().join("log"));
    let own = Watch::new(process.pid());
    let walsender = Watch::new(walsender_of(&client, "recvlogical").await);
    let status = loop {
        if let Some(status) = process.exited() {
            break status;
        }
        assert!(begin.elapsed() < DEADLINE, "pg_recvlogical does not get to the end");
        tokio::time::sleep(LOOK).await;
    };
    let elapsed = begin.elapsed();
    assert!(status.success(), "pg_recvlogical failed: {}", process.log());
    drop_slot(feed, "recvlogical");
    Drained {
        count: rows,
        elapsed,
        own: own.cpu(),
        walsender: walsender.cpu(),
        nats: Duration::ZERO,
        peak_rss_kib: 0,
        progress: Vec::new(),
    }
}

/// `walhook run` into a file stream, strictly ordered; done when the stream has all events and the history what it keeps.
pub async fn by_walhook(feed: &Feed, events: u64, history: &str) -> Drained {
    feed.pg.psql(&format!("TRUNCATE rule_nats_publish_history; UPDATE rule_nats_config SET history = '{history}'"));
    // The change of the row comes down the slot as well, behind the backlog; what is read at the start holds for it. walhook keeps the
    // rules of a place in the WAL, the history's setting too: without this an earlier drain's would hold.
    feed.pg.psql("TRUNCATE walhook.rule_cdc_rule_sources, walhook.rule_cdc_rule_versions, rule_cdc_rule_amendments");
    copy_slot(feed, "walhook");
    empty_stream(feed).await;
    let client = feed.pg.client().await;
    let end: String = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    let mut stored = Stored::of(feed).await;
    let nats_before = usage::cpu(feed.nats.pid()).unwrap();
    let mut progress = Vec::new();
    // A second, as is usual, would be the unit in which drains end.
    let folder = Folder::new("bench", User::Ourselves);
    let settings = folder.path().join("walhook.toml");
    std::fs::write(&settings, "status_interval_ms = 50\n").unwrap();
    let begin = Instant::now();
    let mut walhook = feed.streamer().arg("--config").arg(settings).start();
    let walsender = walsender_of(&client, "walhook").await;
    let elapsed = loop {
        tokio::time::sleep(LOOK).await;
        let last = stored.last_sequence().await;
        progress.push((begin.elapsed(), last));
        if last >= events && (history == "off" || confirmed(&client, &end).await) {
            break begin.elapsed();
        }
        assert!(begin.elapsed() < DEADLINE, "walhook does not get to the end; it says:\n{}", walhook.log());
        assert!(walhook.exited().is_none(), "walhook ended; it says:\n{}", walhook.log());
    };
    let drained = Drained {
        count: events,
        elapsed,
        own: usage::cpu(walhook.pid()).unwrap(),
        walsender: usage::cpu(walsender).unwrap(),
        nats: usage::cpu_since(feed.nats.pid(), nats_before),
        peak_rss_kib: usage::peak_rss_kib(walhook.pid()),
        progress,
    };
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert_eq!(feed.last_sequence(STREAM).await, events, "every event once");
    let kept: u64 = feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history").parse().unwrap();
    assert_eq!(kept, if history == "full" { events } else { 0 }, "rows of the history with history = '{history}'");
    drained
}

/// The median of so many drains without history.
pub async fn rounds(feed: &Feed, events: u64, rounds: usize) -> Drained {
    let mut all = Vec::new();
    for _ in 0..rounds {
        all.push(by_walhook(feed, events, "off").await);
    }
    median(all)
}

/// The payload of the stream's first message.
pub async fn sample(feed: &Feed) -> Vec<u8> {
    let stream = feed.nats.jetstream().await.get_stream(STREAM).await.unwrap();
    stream.get_raw_message(1).await.unwrap().payload.to_vec()
}

/// As if there had been no run before.
pub async fn empty_stream(feed: &Feed) {
    let _ = feed.nats.jetstream().await.delete_stream(STREAM).await;
    feed.pg.psql("DELETE FROM rule_nats_checkpoints");
}

/// How far the stream has come, by one connection that costs nats-server little while it works.
pub struct Stored {
    jetstream: jetstream::Context,
    stream: Option<jetstream::stream::Stream>,
}

impl Stored {
    /// Of the default stream, which need not exist yet.
    pub async fn of(feed: &Feed) -> Stored {
        Stored { jetstream: feed.nats.jetstream().await, stream: None }
    }

    /// How many messages it has taken.
    pub async fn last_sequence(&mut self) -> u64 {
        if self.stream.is_none() {
            self.stream = self.jetstream.get_stream(STREAM).await.ok();
        }
        let Some(stream) = &mut self.stream else { return 0 };
        stream.info().await.map_or(0, |info| info.state.last_sequence)
    }
}

/// Whether PostgreSQL may forget all up to `end`: in a full history that waits for its rows.
async fn confirmed(client: &Client, end: &str) -> bool {
    let sql = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = 'walhook'";
    client.query_one(sql, &[&end]).await.unwrap().get(0)
}

async fn walsender_of(client: &Client, slot: &str) -> u32 {
    let sql = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let pid: Option<i32> = client.query_one(&sql, &[]).await.unwrap().get(0);
        if let Some(pid) = pid {
            return pid.try_into().unwrap();
        }
        assert!(Instant::now() < end, "nobody has taken slot {slot}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Beside the server, or, where that comes without clients, Debian's.
fn recvlogical(feed: &Feed) -> PathBuf {
    let beside = feed.pg.bin_dir().join("pg_recvlogical");
    if beside.exists() {
        return beside;
    }
    crate::support::services::postgres("default").join("pg_recvlogical")
}
