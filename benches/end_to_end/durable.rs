//! What it costs to be safe against power cuts: a server that syncs its disk before each ack, once with single messages and once
//! with `durability = 'fsync'`; and a stream of three copies on three servers.
//!
//! Backlogs of 1-row transactions, drained as the others are. All share one disk, and its time to sync decides.

use std::{fmt, fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::{
    backlog::{self, Shape},
    drain,
    support::{Nats, Postgres, eventually, feed::Feed, port::Port},
};

/// What the goals are: how many times single messages, and how many events a second.
const GOAL: (f64, f64) = (10.0, 50_000.0);
/// Single messages are so much slower that a part of the rows says as much.
const SINGLE_PART: u64 = 20;

/// A drained backlog.
struct Drained {
    rows: u64,
    elapsed: Duration,
}

impl Drained {
    fn rate(&self) -> f64 {
        self.rows as f64 / self.elapsed.as_secs_f64()
    }
}

/// See the module.
pub struct Durable {
    single: Drained,
    grouped: Drained,
    copied: Drained,
}

/// Measures all three.
pub async fn measure(postgres: &str, rows: u64) -> Durable {
    let always = "jetstream { store_dir: \"store\", sync_interval: always }";
    let feed = feed(postgres, Nats::builder().config(always).start().await, "durability = 'default'").await;
    let single = drain(&feed, (rows / SINGLE_PART).max(1000)).await;
    feed.pg.psql("UPDATE rule_nats_streams SET durability = 'fsync'");
    let grouped = drain(&feed, rows).await;
    drop(feed);
    let mut servers = cluster().await;
    let urls = servers.iter().map(Nats::url).collect::<Vec<_>>().join(",");
    let feed = self::feed(postgres, servers.remove(0), "replicas = 3").await;
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{urls}'"));
    let copied = drain(&feed, rows).await;
    Durable { single, grouped, copied }
}

async fn feed(postgres: &str, nats: Nats, settings: &str) -> Feed {
    let feed = Feed::on(Postgres::builder().conf(postgres).start().await, nats);
    backlog::prepare(&feed);
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql(&format!("UPDATE rule_nats_streams SET {settings}"));
    feed
}

async fn drain(feed: &Feed, rows: u64) -> Drained {
    backlog::fill(feed, Shape::Of(1), rows);
    let elapsed = drain::by_walhook(feed, rows, "off").await.elapsed;
    backlog::forget(feed);
    Drained { rows, elapsed }
}

/// Three servers that know their leader.
async fn cluster() -> Vec<Nats> {
    let routes = [(); 3].map(|()| Port::take());
    let urls = routes.each_ref().map(|port| format!("nats://127.0.0.1:{}", port.number())).join(", ");
    let mut servers = Vec::new();
    for (number, port) in routes.iter().enumerate() {
        let listen = format!("127.0.0.1:{}", port.number());
        let config = format!("server_name: n{number}\ncluster {{ name: C, listen: \"{listen}\", routes: [ {urls} ] }}");
        servers.push(Nats::builder().config(&config).start().await);
    }
    eventually("every server to know the cluster's leader", async || {
        servers.iter().all(|server| server.log().contains("metadata leader")).then_some(())
    })
    .await;
    servers
}

impl Durable {
    fn ratio(&self) -> f64 {
        self.grouped.rate() / self.single.rate()
    }

    /// Writes the JSON and says where.
    pub fn write(&self) -> PathBuf {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("durable.json");
        let drained = |drained: &Drained| -> Value { json!({ "rows": drained.rows, "events_per_s": drained.rate() }) };
        let json = json!({
            "sync_always": { "single": drained(&self.single), "fsync": drained(&self.grouped), "ratio": self.ratio() },
            "goal": { "ratio": GOAL.0, "events_per_s": GOAL.1 },
            "three_copies": drained(&self.copied),
        });
        fs::write(&path, serde_json::to_string_pretty(&json).unwrap()).unwrap();
        path
    }
}

/// Markdown.
impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Safe against power cuts, 1-row transactions.\n\n| what | events/s | goal |\n|---|---|---|")?;
        writeln!(f, "| `sync_interval: always`, single messages | {:.0} | |", self.single.rate())?;
        writeln!(
            f,
            "| the same, `durability = 'fsync'` | {:.0}, **{:.1} ×** | ≥ {:.0}, ≥ {:.0} × |",
            self.grouped.rate(),
            self.ratio(),
            GOAL.1,
            GOAL.0
        )?;
        writeln!(f, "| three copies on three servers | {:.0} | stated |", self.copied.rate())
    }
}
