//! The two who drain a backlog.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use tokio_postgres::Client;

use crate::{
    backlog::copy_slot,
    support::{
        feed::Feed,
        folder::Folder,
        process::{Process, User},
    },
    usage::{self, Watch},
};

/// How long a drain may take before something is wrong.
const DEADLINE: Duration = Duration::from_secs(600);
/// The stream of the default configuration.
const STREAM: &str = "WEBHOOKS";

/// What a drain took.
#[derive(Clone)]
pub struct Drained {
    /// From the start of the process to the last row.
    pub elapsed: Duration,
    /// CPU of the process itself.
    pub own: Duration,
    /// CPU of its walsender.
    pub walsender: Duration,
    /// CPU of nats-server.
    pub nats: Duration,
    /// Peak memory of the process, in KiB.
    pub peak_rss_kib: u64,
}

/// `pg_recvlogical` to `/dev/null`, by TCP, with the publications and the protocol that walhook asks for.
pub async fn by_recvlogical(feed: &Feed) -> Drained {
    copy_slot(feed, "recvlogical");
    // Anything behind the backlog ends it; this also flushes what asynchronous commits have left.
    let end = feed.pg.psql("SELECT pg_logical_emit_message(true, 'bench', 'end')");
    let folder = Folder::new("bench", User::Ourselves);
    let mut command = User::Ourselves.command(recvlogical(feed));
    command.args(["--dbname", &feed.pg.conninfo(), "--slot", "recvlogical", "--start", "--no-loop"]);
    command.args(["--file", "/dev/null", "--endpos", &end]);
    command.args(["--option", "proto_version=1", "--option", "publication_names=walhook_inserts,walhook_changes"]);
    let client = feed.pg.client().await;
    let begin = Instant::now();
    let mut process = Process::start("pg_recvlogical", command, &folder.path().join("log"));
    let own = Watch::new(process.pid());
    let walsender = Watch::new(walsender_of(&client, "recvlogical").await);
    let status = process.wait(DEADLINE).expect("pg_recvlogical ends at --endpos");
    let elapsed = begin.elapsed();
    assert!(status.success(), "pg_recvlogical failed: {}", process.log());
    let drained =
        Drained { elapsed, own: own.cpu(), walsender: walsender.cpu(), nats: Duration::ZERO, peak_rss_kib: 0 };
    feed.pg.psql("SELECT pg_drop_replication_slot('recvlogical')");
    drained
}

/// `walhook run` into a file stream, strictly ordered; done when the stream has all rows and the history what it keeps.
pub async fn by_walhook(feed: &Feed, rows: u64, history: &str) -> Drained {
    feed.pg.psql(&format!("TRUNCATE rule_nats_publish_history; UPDATE rule_nats_config SET history = '{history}'"));
    // The change of the row comes down the slot as well, behind the backlog; what is read at the start holds for it.
    copy_slot(feed, "walhook");
    empty_stream(feed).await;
    let client = feed.pg.client().await;
    let end: String = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    let nats_before = usage::cpu(feed.nats.pid()).unwrap();
    let begin = Instant::now();
    let mut walhook = feed.run();
    let walsender = walsender_of(&client, "walhook").await;
    let elapsed = loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if feed_last_sequence(feed).await >= rows && (history == "off" || confirmed(&client, &end).await) {
            break begin.elapsed();
        }
        assert!(begin.elapsed() < DEADLINE, "walhook does not get to the end; it says:\n{}", walhook.log());
        assert!(walhook.exited().is_none(), "walhook ended; it says:\n{}", walhook.log());
    };
    let drained = Drained {
        elapsed,
        own: usage::cpu(walhook.pid()).unwrap(),
        walsender: usage::cpu(walsender).unwrap(),
        nats: usage::cpu(feed.nats.pid()).unwrap() - nats_before,
        peak_rss_kib: usage::peak_rss_kib(walhook.pid()),
    };
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert_eq!(feed_last_sequence(feed).await, rows, "every row once");
    drained
}

/// The payload of the stream's first message.
pub async fn sample(feed: &Feed) -> Vec<u8> {
    let jetstream = jetstream::new(feed.nats.client().await);
    jetstream.get_stream(STREAM).await.unwrap().get_raw_message(1).await.unwrap().payload.to_vec()
}

/// As if there had been no run before.
pub async fn empty_stream(feed: &Feed) {
    let jetstream = jetstream::new(feed.nats.client().await);
    let _ = jetstream.delete_stream(STREAM).await;
    feed.pg.psql("DELETE FROM rule_nats_checkpoints");
}

async fn feed_last_sequence(feed: &Feed) -> u64 {
    feed.last_sequence(STREAM).await
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
