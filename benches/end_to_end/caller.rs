//! The line `calls`: what a call of a webhook costs its caller: the RFC's load test, with and without walhook beside it.
//!
//! The loop runs in the server, so neither network nor driver is in the figures: once as the RFC has it, all calls in one
//! transaction, and once with a commit for each. Beside the three modes stands a bare INSERT of the same row, which no
//! function can be cheaper than, and an INSERT into a linked table beside one into a table without links: a link costs the
//! writer nothing, since it makes no trigger.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_postgres::{Client, NoTls};

use crate::{
    backlog,
    goals::{Goal, grouped},
    machine::servers,
    report::{Part, Table},
    settings::Settings,
    support::feed::Feed,
    usage,
};

/// Rounds, of which the median is shown.
const ROUNDS: usize = 3;

/// The names of what is not a mode.
const BARE: &str = "bare INSERT";
const LINKED: &str = "a row of a linked table";
const UNLINKED: &str = "a row of another table";
/// A call, or a row, may cost so many µs of the caller's server process.
const MOST: f64 = 15.0;

/// One kind of call.
struct Cost {
    /// `queue`, `nats`, `both`, or one of the inserts.
    mode: String,
    /// All calls in one transaction, walhook not running.
    alone: PerCall,
    /// The same while it runs.
    beside: PerCall,
    /// A transaction for each call, walhook not running.
    commits_alone: PerCall,
    /// The same while it runs.
    commits_beside: PerCall,
}

/// In µs.
#[derive(Clone, Copy)]
struct PerCall {
    /// From begin to end.
    elapsed: f64,
    /// CPU of the server process that ran it.
    cpu: f64,
}

/// Measures calls in each of the modes, and the bare INSERT.
pub async fn measure(settings: &Settings) -> Part {
    let feed = servers().await;
    backlog::new_slot(&feed, "walhook");
    let webhook = feed.webhook("caller");
    feed.pg.psql("CREATE SEQUENCE numbers CACHE 1000");
    for table in ["linked", "unlinked"] {
        feed.pg.psql(&format!("CREATE TABLE {table} (id bigint PRIMARY KEY, doc jsonb NOT NULL)"));
    }
    backlog::link(&feed, webhook, "linked");
    let (client, connection) = tokio_postgres::connect(&feed.pg.conninfo(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let caller = Caller { feed: &feed, client, webhook, calls: settings.calls };
    let mut costs = Vec::new();
    for mode in settings.modes.iter().map(String::as_str).chain([BARE, LINKED, UNLINKED]) {
        eprintln!("  {mode}");
        let (alone, commits_alone) = (caller.run(mode, false).await, caller.run(mode, true).await);
        let mut walhook = feed.run();
        feed.confirmed().await;
        let (beside, commits_beside) = (caller.run(mode, false).await, caller.run(mode, true).await);
        feed.confirmed().await;
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
        costs.push(Cost { mode: mode.to_owned(), alone, beside, commits_alone, commits_beside });
    }

    let mut table = Table::new([
        "mode",
        "in one transaction, walhook not running",
        "running",
        "a commit each, walhook not running",
        "running",
    ]);
    let mut goals = Vec::new();
    for cost in &costs {
        let cell = |per_call: PerCall| format!("{:.0} ({:.0})", per_call.elapsed, per_call.cpu);
        let Cost { mode, alone, beside, commits_alone, commits_beside } = cost;
        table.row([mode.clone(), cell(*alone), cell(*beside), cell(*commits_alone), cell(*commits_beside)]);
        let is_mode = settings.modes.contains(mode);
        let what = if is_mode { format!("a call, mode {mode}") } else { mode.clone() };
        let what = format!("{what}, CPU of its server process");
        goals.push(match mode.as_str() {
            "nats" | LINKED => Goal::at_most(what, MOST, beside.cpu, "µs"),
            _ => Goal::stated(what, beside.cpu, "µs"),
        });
    }
    let us = |per_call: PerCall| json!({"elapsed_us": per_call.elapsed, "cpu_us": per_call.cpu});
    Part {
        title: "What a call costs its caller".to_owned(),
        text: format!(
            "The RFC's load test: {} calls of `rule_webhook_call_unified` in a DO block, once in one transaction and once with a commit for \
             each; the median of {ROUNDS} rounds, in µs per call, in parentheses the CPU of the server process that ran them.",
            grouped(f64::from(settings.calls))
        ),
        table: Some(table),
        goals,
        json: costs
            .iter()
            .map(|cost| {
                json!({
                    "mode": cost.mode,
                    "one_transaction": {"alone": us(cost.alone), "beside_walhook": us(cost.beside)},
                    "commit_each": {"alone": us(cost.commits_alone), "beside_walhook": us(cost.commits_beside)},
                })
            })
            .collect(),
        pictures: Vec::new(),
    }
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
        let call = match mode {
            BARE => format!(
                "INSERT INTO rule_webhook_events (webhook_id, payload, subject) \
                 VALUES ({webhook}, {payload}, 'webhooks.caller')"
            ),
            LINKED | UNLINKED => {
                let table = if mode == LINKED { "linked" } else { "unlinked" };
                self.feed.pg.psql(&format!("TRUNCATE {table}"));
                format!("INSERT INTO {table} VALUES (nextval('numbers'), {payload})")
            }
            _ => {
                self.feed.pg.psql(&format!("SELECT rule_webhook_enable_nats({webhook}, NULL, '{mode}')"));
                format!("PERFORM rule_webhook_call_unified({webhook}, {payload})")
            }
        };
        let commit = if commits { "COMMIT;" } else { "" };
        let looped = |calls| format!("DO $$ BEGIN FOR i IN 1..{calls} LOOP {call}; {commit} END LOOP; END $$");
        self.client.batch_execute(&looped((self.calls / 10).max(1))).await.unwrap(); // warms up
        let pid: i32 = self.client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let pid = u32::try_from(pid).unwrap();
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let (begin, before) = (Instant::now(), usage::cpu(pid).unwrap());
            self.client.batch_execute(&looped(self.calls)).await.unwrap();
            let per_call = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(self.calls);
            let elapsed = per_call(begin.elapsed());
            rounds.push(PerCall { elapsed, cpu: per_call(usage::cpu_since(pid, before)) });
        }
        rounds.sort_by(|a, b| a.elapsed.total_cmp(&b.elapsed));
        rounds[ROUNDS / 2]
    }
}
