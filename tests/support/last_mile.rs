//! A feed with a running streamer, and workers that deliver from it.

use std::collections::BTreeMap;

use super::{Walhook, eventually, feed::Feed, folder::Folder, http::Request, process::User, walhook::Builder};

/// Settings of a worker that takes over soon what another has left, and sees new calls of the queue at once.
pub const QUICK: &str = "[deliver]\nack_wait_ms = 1000\nqueue_poll_ms = 20\n";

/// How often each `{"n": …}` came.
pub fn times(requests: &[Request]) -> BTreeMap<i64, usize> {
    let mut times = BTreeMap::new();
    for request in requests {
        *times.entry(request.json()["n"].as_i64().unwrap()).or_default() += 1;
    }
    times
}

/// Servers, streamer, and the worker's settings.
pub struct LastMile {
    /// The servers.
    pub feed: Feed,
    /// `walhook run`
    pub streamer: Walhook,
    folder: Folder,
}

impl LastMile {
    /// All of it, started.
    pub async fn start() -> LastMile {
        Self::on(Feed::start().await)
    }

    /// The same on servers that are there.
    pub fn on(feed: Feed) -> LastMile {
        let streamer = feed.run();
        Self::with(feed, streamer)
    }

    /// The same with a streamer that runs already.
    pub fn with(feed: Feed, streamer: Walhook) -> LastMile {
        LastMile { feed, streamer, folder: Folder::new("deliver", User::Ourselves) }
    }

    /// Runs SQL.
    pub fn sql(&self, text: &str) -> String {
        self.feed.pg.psql(text)
    }

    /// A webhook in mode `nats` at this URL, tried again soon; returns its id.
    pub fn webhook(&self, name: &str, url: &str) -> i32 {
        let id = self.sql(&format!("SELECT rule_webhook_register('{name}', '{url}')"));
        self.sql(&format!("SELECT rule_webhook_enable_nats({id}, NULL, 'nats')"));
        self.sql(&format!("UPDATE rule_webhooks SET retry_delay_ms = 20 WHERE webhook_id = {id}"));
        id.parse().unwrap()
    }

    /// `walhook deliver` by the role that the migrations made for it, allowed to call this machine.
    pub fn worker(&self) -> Builder {
        self.outsider().args(["--allow-network", "127.0.0.1"])
    }

    /// One that may call what is outside only.
    pub fn outsider(&self) -> Builder {
        let conninfo = format!("host=127.0.0.1 port={} dbname=postgres user=walhook_worker", self.feed.pg.port());
        self.feed.command("deliver").env("DATABASE_URL", conninfo)
    }

    /// One that knows NATS and nothing else.
    pub fn without_database(&self) -> Builder {
        Walhook::command("deliver")
            .args(["--no-database", "--allow-network", "127.0.0.1", "--nats-url"])
            .arg(self.feed.nats.url())
    }

    /// A folder of its own, for files that settings name.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The path of a settings file with this text.
    pub fn settings(&self, text: &str) -> String {
        let path = self.folder.path().join(format!("{:016x}.toml", fastrand::u64(..)));
        User::Ourselves.write(&path, text);
        path.to_str().unwrap().to_owned()
    }

    /// An event with this payload.
    pub fn publish(&self, webhook: i32, payload: &str) {
        self.sql(&format!("SELECT rule_webhook_publish_nats({webhook}, '{payload}')"));
    }

    /// Events `{"n": 1}` to `{"n": count}`.
    pub fn publish_many(&self, webhook: i32, count: usize) {
        self.sql(&format!(
            "SELECT count(rule_webhook_publish_nats({webhook}, jsonb_build_object('n', n))) FROM generate_series(1, {count}) n"
        ));
    }

    /// Waits until this query answers so.
    pub async fn eventually(&self, query: &str, answer: &str) {
        eventually(&format!("{answer:?} from {query}"), async || (self.sql(query) == answer).then_some(())).await;
    }
}
