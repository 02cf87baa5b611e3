//! Transactions far larger than any window, before a NATS that is slow: memory stays small and the server is answered.
//!
//! In `make test` they are some ten thousand rows and some ten megabytes; in `make chaos` a million and a gigabyte.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::{Duration, Instant};

use support::{
    Nats, NetworkFault, Postgres, Proxy, Walhook,
    feed::Feed,
    rows::{ended_well, linked_on, taken, whole},
};

/// How long the whole may take on a busy machine.
const DONE: Duration = Duration::from_secs(1800);

async fn start() -> (Feed, Proxy, Walhook, String) {
    let feed =
        linked_on(Postgres::builder().conf("wal_sender_timeout = 5s").set_up().start().await, Nats::start().await);
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    // Room for all of it; the history's copy of a gigabyte is not what is tested.
    feed.pg.psql("UPDATE rule_nats_streams SET max_bytes = -1, max_messages = -1");
    feed.pg.psql("UPDATE rule_nats_config SET history = 'failures'");
    let proxy = Proxy::before(feed.nats.port());
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = 'nats://127.0.0.1:{}'", proxy.port()));
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (0)");
    taken(&feed, 1).await;
    walhook.logged("stream opened").await;
    let walsender = feed.pg.psql("SELECT active_pid FROM pg_replication_slots");
    (feed, proxy, walhook, walsender)
}

/// One transaction of rows `1..=rows` of `bytes` each.
async fn check(rows: u64, bytes: u64, slow: NetworkFault, slow_for: Duration) {
    let (feed, proxy, mut walhook, walsender) = start().await;
    let note = format!(
        "(SELECT left(string_agg(md5(i::text || n), ''), {bytes}) FROM generate_series(1, {}) n)",
        bytes / 32 + 1
    );
    proxy.set(slow);
    feed.pg.psql(&format!("INSERT INTO t SELECT i, {note} FROM generate_series(1, {rows}) i"));
    let since = Instant::now();
    let mut most = 0;
    let mut last = 0;
    while last < rows + 1 {
        if since.elapsed() > slow_for {
            proxy.set(NetworkFault::Fair);
        }
        assert!(since.elapsed() < DONE && walhook.exited().is_none(), "{last} stored\n{}", walhook.log());
        last = feed.last_sequence("WEBHOOKS").await;
        most = most.max(rss_kib(walhook.pid()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    feed.confirmed().await;
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    for sequence in (1..=rows + 1).step_by(usize::try_from(rows / 200 + 1).unwrap()) {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let payload: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(payload["data"]["id"], sequence - 1);
    }
    assert_eq!(feed.last_sequence("WEBHOOKS").await, rows + 1, "each once");
    assert_eq!(
        feed.pg.psql("SELECT active_pid FROM pg_replication_slots"),
        walsender,
        "never taken for dead\n{}",
        walhook.log()
    );
    eprintln!("{rows} rows of {bytes} bytes: {} s, {most} KiB", since.elapsed().as_secs());
    assert!(most < 100 * 1024, "{most} KiB");
    ended_well(&mut walhook);
}

/// What it holds now, in KiB.
fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_transaction_of_a_million_rows_before_a_slow_nats_takes_little_memory_and_keeps_the_connection() {
    let slow = NetworkFault::Sliced(16 * 1024, Duration::from_millis(20));
    let (rows, slow_for) = if whole() { (1_000_000, 60) } else { (30_000, 7) };
    check(rows, 64, slow, Duration::from_secs(slow_for)).await;
}

#[tokio::test]
async fn a_transaction_of_a_gigabyte_before_a_slow_nats_takes_little_memory_and_keeps_the_connection() {
    let slow = NetworkFault::Sliced(64 * 1024, Duration::from_millis(20));
    let (rows, slow_for) = if whole() { (5_000, 60) } else { (150, 7) };
    check(rows, 200_000, slow, Duration::from_secs(slow_for)).await;
}

/// A value far larger than NATS takes, and the same from a call: each is a dead letter, whole, at the price of twice its size.
#[tokio::test]
async fn one_value_of_many_megabytes_costs_at_most_twice_its_size_besides_the_window() {
    const MIB: u64 = 64;
    let feed = linked_on(Postgres::set_up().await, Nats::start().await);
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (0, 'small')");
    feed.confirmed().await;
    let before = rss_kib(walhook.pid());
    let text = format!("(SELECT string_agg(md5(n::text), '') FROM generate_series(1, {}) n)", MIB * 1024 * 1024 / 32);
    feed.pg.psql(&format!("INSERT INTO t VALUES (1, {text})"));
    feed.confirmed().await;
    feed.pg.psql(&format!(
        "INSERT INTO t VALUES (2, 'small'); SELECT rule_webhook_publish_nats(1, jsonb_build_object('text', {text}))"
    ));
    feed.confirmed().await;
    feed.pg.psql("INSERT INTO t VALUES (3, 'small')");
    feed.confirmed().await;
    let most = rss_kib(walhook.pid());
    eprintln!("{MIB} MiB: {before} KiB before, {most} KiB at most");
    let letters = "SELECT string_agg((length(payload) >> 20)::text || ' ' || (convert_from(payload, 'UTF8')::jsonb ? 'data'), ',')
        FROM rule_nats_dead_letters";
    assert_eq!(feed.pg.psql(letters), "64 true,64 true");
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 3);
    // A window is 8 MiB.
    assert!(most <= (2 * MIB + 8 + 32) * 1024, "{most} KiB");
    ended_well(&mut walhook);
}
