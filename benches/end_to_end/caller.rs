//! What a call of a webhook costs its caller: the RFC's load test, with and without walhook beside it.
//!
//! The loop runs in the server, so neither network nor driver is in the figures: once as the RFC has it, all calls in one
//! transaction, and once with a commit for each. Beside the three modes stands a bare INSERT of the same row, which no
//! function can be cheaper than.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use crate::{support::feed::Feed, usage};

/// Rounds, of which the median is shown.
const ROUNDS: usize = 3;

/// The name of what is not a mode.
pub const BARE: &str = "bare INSERT";

/// One kind of call.
pub struct Cost {
    /// `queue`, `nats`, `both`, or [`BARE`].
    pub mode: String,
    /// All calls in one transaction, walhook not running.
    pub alone: PerCall,
    /// The same while it runs.
    pub beside: PerCall,
    /// A transaction for each call, walhook not running.
    pub commits_alone: PerCall,
    /// The same while it runs.
    pub commits_beside: PerCall,
}

/// In µs.
#[derive(Clone, Copy)]
pub struct PerCall {
    /// From begin to end.
    pub elapsed: f64,
    /// CPU of the server process that ran it.
    pub cpu: f64,
}

/// Measures so many calls in each of `modes`, and the bare INSERT.
pub async fn measure(feed: &Feed, modes: &[String], calls: u32) -> Vec<Cost> {
    feed.pg.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'walhook'");
    feed.pg.psql("SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')");
    let webhook = feed.webhook("caller");
    let (client, connection) = tokio_postgres::connect(&feed.pg.conninfo(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let caller = Caller { feed, client, webhook, calls };
    let mut costs = Vec::new();
    for mode in modes.iter().map(String::as_str).chain([BARE]) {
        let (alone, commits_alone) = (caller.run(mode, false).await, caller.run(mode, true).await);
        let mut walhook = feed.run();
        feed.confirmed().await;
        let (beside, commits_beside) = (caller.run(mode, false).await, caller.run(mode, true).await);
        feed.confirmed().await;
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
        costs.push(Cost { mode: mode.to_owned(), alone, beside, commits_alone, commits_beside });
    }
    costs
}

struct Caller<'f> {
    feed: &'f Feed,
    client: Client,
    webhook: i32,
    calls: u32,
}

impl Caller<'_> {
    async fn run(&self, mode: &str, commits: bool) -> PerCall {
        let webhook = self.webhook;
        let payload = "jsonb_build_object('id', i, 'data', 'test')";
        let call = if mode == BARE {
            format!(
                "INSERT INTO rule_webhook_events (webhook_id, payload, subject) \
                 VALUES ({webhook}, {payload}, 'webhooks.caller')"
            )
        } else {
            self.feed.pg.psql(&format!("SELECT rule_webhook_enable_nats({webhook}, NULL, '{mode}')"));
            format!("PERFORM rule_webhook_call_unified({webhook}, {payload})")
        };
        let commit = if commits { "COMMIT;" } else { "" };
        let looped = |calls| format!("DO $$ BEGIN FOR i IN 1..{calls} LOOP {call}; {commit} END LOOP; END $$");
        self.client.batch_execute(&looped(self.calls / 10)).await.unwrap(); // warms up
        let pid: i32 = self.client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let pid = u32::try_from(pid).unwrap();
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let (begin, before) = (Instant::now(), usage::cpu(pid).unwrap());
            self.client.batch_execute(&looped(self.calls)).await.unwrap();
            let per_call = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(self.calls);
            let elapsed = per_call(begin.elapsed());
            rounds.push(PerCall { elapsed, cpu: per_call(usage::cpu(pid).unwrap() - before) });
        }
        rounds.sort_by(|a, b| a.elapsed.total_cmp(&b.elapsed));
        rounds[ROUNDS / 2]
    }
}
