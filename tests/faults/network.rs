//! Networks that are cut, half-open, slow or lose what is answered: rows arrive once and in order all the same.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::{Duration, Instant};

use support::{
    Nats, NetworkFault, Postgres, Proxy, Walhook, eventually,
    feed::Feed,
    rows::{ended_well, exactly, insert, linked_on, taken, whole},
};

/// A feed, and the networks between walhook and its servers.
struct Net {
    feed: Feed,
    postgres: Proxy,
    nats: Proxy,
    settings: tempfile::TempDir,
}

impl Net {
    async fn start() -> Net {
        Net::on(Postgres::set_up().await, Nats::start().await)
    }

    fn on(pg: Postgres, nats: Nats) -> Net {
        let feed = linked_on(pg, nats);
        feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
        let (postgres, nats) = (Proxy::before(feed.pg.port()), Proxy::before(feed.nats.port()));
        feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = 'nats://127.0.0.1:{}'", nats.port()));
        let settings = tempfile::tempdir().unwrap();
        std::fs::write(settings.path().join("walhook.toml"), "ack_timeout_ms = 1000\n").unwrap();
        Net { feed, postgres, nats, settings }
    }

    fn run(&self) -> Walhook {
        let conninfo = format!(
            "host=127.0.0.1 port={} dbname=postgres user=walhook_streamer connect_timeout=3",
            self.postgres.port()
        );
        let file = self.settings.path().join("walhook.toml");
        self.feed.command("run").arg("--config").arg(file).env("DATABASE_URL", conninfo).start()
    }

    /// Commits that row, and tells where the WAL is after it.
    fn committed_at(&self, row: i64) -> String {
        insert(&self.feed.pg, row, row + 1);
        self.feed.pg.psql("SELECT pg_current_wal_insert_lsn()")
    }

    fn is_unconfirmed(&self, upto: &str) -> bool {
        let asked =
            format!("SELECT confirmed_flush_lsn < '{upto}' FROM pg_replication_slots WHERE slot_name = 'walhook'");
        self.feed.pg.psql(&asked) == "t"
    }
}

/// Lets time pass: no condition tells that nothing happens.
async fn for_a_while(time: Duration) {
    let since = Instant::now();
    eventually("time to pass", async || (since.elapsed() >= time).then_some(())).await;
}

#[tokio::test]
async fn a_network_that_is_cut_again_and_again_loses_and_doubles_nothing() {
    let net = Net::start().await;
    let mut walhook = net.run();
    for round in 0..8 {
        insert(&net.feed.pg, round * 100, (round + 1) * 100);
        let proxy = if round % 2 == 0 { &net.nats } else { &net.postgres };
        if round % 4 < 2 { proxy.cut() } else { proxy.reset() }
    }
    exactly(&net.feed, 800).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_half_open_network_to_nats_is_noticed_and_its_messages_are_stored_once() {
    let net = Net::start().await;
    let mut walhook = net.run();
    insert(&net.feed.pg, 0, 100);
    taken(&net.feed, 100).await;
    net.nats.set(NetworkFault::Held);
    let first = net.committed_at(100);
    insert(&net.feed.pg, 101, 200);
    walhook.logged("no answer from").await;
    for_a_while(Duration::from_millis(300)).await;
    assert!(net.is_unconfirmed(&first), "nothing is confirmed that no stream has");
    net.nats.set(NetworkFault::Fair);
    exactly(&net.feed, 200).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn acks_lost_after_messages_were_stored_double_nothing_beyond_the_duplicate_window_either() {
    let net = Net::start().await;
    net.feed.pg.psql("UPDATE rule_nats_streams SET duplicate_window_seconds = 1");
    let mut walhook = net.run();
    insert(&net.feed.pg, 0, 100);
    net.feed.confirmed().await;
    net.nats.set(NetworkFault::Mute);
    let first = net.committed_at(100);
    insert(&net.feed.pg, 101, 200);
    // Stored, and nobody has told us.
    taken(&net.feed, 200).await;
    for_a_while(Duration::from_secs(2)).await;
    assert!(net.is_unconfirmed(&first), "nothing is confirmed that was not acknowledged");
    net.nats.set(NetworkFault::Fair);
    insert(&net.feed.pg, 200, 300);
    exactly(&net.feed, 300).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_network_that_passes_single_bytes_costs_time_only() {
    let net = Net::start().await;
    for proxy in [&net.postgres, &net.nats] {
        proxy.set(NetworkFault::Sliced(1, Duration::ZERO));
    }
    let mut walhook = net.run();
    insert(&net.feed.pg, 0, 200);
    exactly(&net.feed, 200).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_slow_network_to_either_server_holds_up_and_loses_nothing() {
    let net = Net::on(Postgres::builder().conf("wal_sender_timeout = 2s").set_up().start().await, Nats::start().await);
    let mut walhook = net.run();
    insert(&net.feed.pg, 0, 10);
    taken(&net.feed, 10).await;
    let walsender = net.feed.pg.psql("SELECT active_pid FROM pg_replication_slots");
    for proxy in [&net.nats, &net.postgres] {
        proxy.set(NetworkFault::Sliced(1000, Duration::from_millis(3)));
    }
    insert(&net.feed.pg, 10, 1500);
    exactly(&net.feed, 1500).await;
    assert_eq!(
        net.feed.pg.psql("SELECT active_pid FROM pg_replication_slots"),
        walsender,
        "it was never taken for dead"
    );
    ended_well(&mut walhook);
}

#[tokio::test]
async fn answers_of_postgresql_that_are_lost_are_asked_for_anew() {
    let net = Net::start().await;
    let mut walhook = net.run();
    insert(&net.feed.pg, 0, 100);
    taken(&net.feed, 100).await;
    // Its connections miss what is committed now, and are cut.
    net.postgres.set(NetworkFault::Mute);
    insert(&net.feed.pg, 100, 200);
    for_a_while(Duration::from_millis(500)).await;
    net.postgres.set(NetworkFault::Fair);
    insert(&net.feed.pg, 200, 300);
    exactly(&net.feed, 300).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_half_open_network_to_postgresql_is_waited_for_or_given_up_and_tried_anew() {
    let net = Net::start().await;
    let mut walhook = net.run();
    insert(&net.feed.pg, 0, 100);
    taken(&net.feed, 100).await;
    net.postgres.set(NetworkFault::Held);
    insert(&net.feed.pg, 100, 200);
    if whole() {
        // Longer than a server may be silent.
        let silent = Instant::now();
        while !walhook.log().contains("although walhook asked for an answer") {
            assert!(silent.elapsed() < Duration::from_secs(120), "{}", walhook.log());
            for_a_while(Duration::from_millis(500)).await;
        }
    } else {
        for_a_while(Duration::from_millis(500)).await;
    }
    net.postgres.set(NetworkFault::Fair);
    exactly(&net.feed, 200).await;
    ended_well(&mut walhook);
}

/// The order in which walhook makes its connections to PostgreSQL.
const SESSION: u64 = 0;
// 1 is the slot's, 2 looks for replays that SQL asks for.
const HISTORY: u64 = 3;

#[tokio::test]
async fn a_half_open_connection_of_the_history_alone_is_given_up_and_its_rows_are_written_by_another() {
    let net = Net::start().await;
    let mut walhook = net.run();
    insert(&net.feed.pg, 0, 100);
    net.feed.confirmed().await;
    net.postgres.strand(HISTORY);
    let first = net.committed_at(100);
    insert(&net.feed.pg, 101, 200);
    taken(&net.feed, 200).await;
    assert!(net.is_unconfirmed(&first), "the history does not have it");
    exactly(&net.feed, 200).await;
    assert!(walhook.log().contains("an answer was lost"), "{}", walhook.log());
    let told = "SELECT count(*), count(DISTINCT event_id) FROM rule_nats_publish_history WHERE success";
    assert_eq!(net.feed.pg.psql(told), "200|200");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_half_open_connection_of_statements_alone_is_given_up_and_the_session_begins_anew() {
    let net = Net::start().await;
    let mut walhook = net.run();
    insert(&net.feed.pg, 0, 100);
    net.feed.confirmed().await;
    net.postgres.strand(SESSION);
    // A dead letter, which is a row by that connection before anything behind it is confirmed.
    net.feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (77, '{}')");
    insert(&net.feed.pg, 100, 200);
    exactly(&net.feed, 200).await;
    assert!(walhook.log().contains("an answer was lost"), "{}", walhook.log());
    assert_eq!(walhook.log().matches("slot taken").count(), 2, "{}", walhook.log());
    assert_eq!(net.feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "1");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_statement_that_waits_for_a_lock_is_waited_for_by_its_connection() {
    let net = Net::start().await;
    let mut walhook = net.run();
    insert(&net.feed.pg, 0, 100);
    net.feed.confirmed().await;
    let locks = net.feed.pg.client().await;
    locks.batch_execute("BEGIN; LOCK TABLE rule_nats_publish_history, rule_nats_dead_letters").await.unwrap();
    net.feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (77, '{}')");
    insert(&net.feed.pg, 100, 200);
    // Longer than it takes to give up a connection that passes nothing on.
    for_a_while(Duration::from_secs(13)).await;
    assert!(walhook.exited().is_none() && !walhook.log().contains("an answer was lost"), "{}", walhook.log());
    locks.batch_execute("COMMIT").await.unwrap();
    exactly(&net.feed, 200).await;
    assert_eq!(walhook.log().matches("slot taken").count(), 1, "{}", walhook.log());
    ended_well(&mut walhook);
}
