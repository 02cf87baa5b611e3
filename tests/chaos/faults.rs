//! What goes wrong, and how it is mended again. Each fault ends with every server, walhook and network as they should be.

use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;

use super::{
    run::{self, World},
    support::{NetworkFault, Postgres, Proxy, Walhook, eventually, walhook::Builder},
};

/// Every kind, by the name that the report has.
pub const KINDS: [(&str, Fault); 30] = [
    ("walhook killed", Fault::WalhookKilled),
    ("walhook killed again and again", Fault::WalhookKilledOften),
    ("walhook terminated", Fault::WalhookTerminated),
    ("walhook frozen", Fault::WalhookFrozen),
    ("second walhook takes over", Fault::TakeOver),
    ("second walhook takes over a frozen one", Fault::TakeOverFrozen),
    ("PostgreSQL killed", Fault::PostgresKilled),
    ("PostgreSQL killed right after a confirmation", Fault::SlotGoesBack { checkpoints: false, with_walhook: false }),
    (
        "PostgreSQL killed after checkpoint and confirmation, and walhook",
        Fault::SlotGoesBack { checkpoints: true, with_walhook: true },
    ),
    ("failover to a standby", Fault::FailedOver),
    ("a copy of the database runs beside it", Fault::Copied),
    ("PostgreSQL restarted", Fault::PostgresRestarted),
    ("PostgreSQL frozen", Fault::PostgresFrozen),
    ("walhook's backends terminated", Fault::BackendsTerminated),
    ("NATS killed", Fault::NatsKilled),
    ("the second NATS killed", Fault::SecondNatsKilled),
    ("NATS restarted", Fault::NatsRestarted),
    ("NATS frozen", Fault::NatsFrozen),
    ("everything killed", Fault::AllKilled),
    ("PostgreSQL's network cut", Fault::Cut(Side::Postgres)),
    ("NATS's network cut", Fault::Cut(Side::Nats)),
    ("PostgreSQL's network reset", Fault::Reset(Side::Postgres)),
    ("NATS's network reset", Fault::Reset(Side::Nats)),
    ("PostgreSQL's network half-open", Fault::Network(Side::Postgres, NetworkFault::Held)),
    ("NATS's network half-open", Fault::Network(Side::Nats, NetworkFault::Held)),
    ("PostgreSQL's answers lost", Fault::Network(Side::Postgres, NetworkFault::Mute)),
    ("NATS's answers lost", Fault::Network(Side::Nats, NetworkFault::Mute)),
    ("PostgreSQL's network slow", Fault::Network(Side::Postgres, SLOW)),
    ("NATS's network slow", Fault::Network(Side::Nats, SLOW)),
    ("both networks byte by byte", Fault::ByteByByte),
];

const SLOW: NetworkFault = NetworkFault::Sliced(1400, Duration::from_millis(2));

/// Which network.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    Postgres,
    Nats,
}

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    WalhookKilled,
    WalhookKilledOften,
    WalhookTerminated,
    WalhookFrozen,
    TakeOver,
    TakeOverFrozen,
    PostgresKilled,
    SlotGoesBack { checkpoints: bool, with_walhook: bool },
    FailedOver,
    Copied,
    PostgresRestarted,
    PostgresFrozen,
    BackendsTerminated,
    NatsKilled,
    SecondNatsKilled,
    NatsRestarted,
    NatsFrozen,
    AllKilled,
    Cut(Side),
    Reset(Side),
    Network(Side, NetworkFault),
    ByteByByte,
}

impl Fault {
    /// Does it, lets it last for a while, and mends it.
    pub async fn happen(self, world: &mut World, rng: &mut Rng) {
        let a_while = Duration::from_millis(rng.u64(50..2500));
        let pause = tokio::time::sleep(a_while);
        match self {
            Fault::WalhookKilled => {
                world.walhook.kill9();
                pause.await;
                world.walhook = world.start();
            }
            Fault::WalhookKilledOften => {
                for _ in 0..4 {
                    tokio::time::sleep(Duration::from_millis(rng.u64(20..800))).await;
                    world.walhook.kill9();
                    world.walhook = world.start();
                }
            }
            Fault::WalhookTerminated => {
                let code = world.walhook.terminate();
                world.expect(code == 0, || format!("exit code {code} after SIGTERM"));
                world.walhook = world.start();
            }
            Fault::WalhookFrozen => {
                world.walhook.pause();
                pause.await;
                world.walhook.resume();
            }
            Fault::TakeOver => {
                let mut second = world.start();
                pause.await;
                std::mem::swap(&mut world.walhook, &mut second);
                second.kill9();
            }
            Fault::TakeOverFrozen => {
                // Past wal_sender_timeout, so that the slot is free.
                world.walhook.pause();
                let mut second = world.start();
                tokio::time::sleep(super::run::WAL_SENDER_TIMEOUT + a_while).await;
                world.walhook.resume();
                pause.await;
                std::mem::swap(&mut world.walhook, &mut second);
                // The first one may have gone on before the second had the slot; either way one of them goes.
                let code = second.exited().map(|status| status.code());
                world.expect(code.is_none_or(|code| code == Some(5)), || format!("{code:?} of a frozen one"));
                second.kill9();
            }
            Fault::PostgresKilled => {
                world.feed.pg.kill9();
                pause.await;
                world.feed.pg.restart().await;
            }
            Fault::SlotGoesBack { checkpoints, with_walhook } => {
                if checkpoints {
                    world.feed.pg.psql("CHECKPOINT");
                }
                // A few confirmations that are nowhere but in the memory of PostgreSQL.
                let (mut before, mut seen) = (world.confirmed(), 0);
                for _ in 0..300 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    let confirmed = world.confirmed();
                    seen += u32::from(confirmed > before);
                    before = confirmed;
                    if seen > 2 {
                        break;
                    }
                }
                world.feed.pg.kill9();
                if with_walhook {
                    world.walhook.kill9();
                } else {
                    pause.await;
                }
                world.feed.pg.restart().await;
                // Where walhook is not connected yet.
                if world.confirmed() < before {
                    world.effects.push("the slot went back");
                }
                if with_walhook {
                    world.walhook = world.start();
                }
            }
            Fault::FailedOver => {
                // As a standby that has all of the WAL: crash recovery, then another timeline.
                let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
                let before = world.feed.pg.psql(timeline);
                world.feed.pg.kill9();
                world.feed.pg.restart_as_standby().await;
                pause.await;
                world.feed.pg.psql("SELECT pg_promote()");
                eventually("the standby to be the primary", async || {
                    (world.feed.pg.psql("SELECT pg_is_in_recovery()") == "f").then_some(())
                })
                .await;
                world.feed.pg.psql("CHECKPOINT");
                if world.feed.pg.psql(timeline) != before {
                    world.effects.push("a new timeline began");
                }
            }
            Fault::Copied => copied(world).await,
            Fault::PostgresRestarted => {
                world.feed.pg.restart().await;
            }
            Fault::PostgresFrozen => {
                world.feed.pg.pause();
                pause.await;
                world.feed.pg.resume();
            }
            Fault::BackendsTerminated => {
                let all =
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'walhook%'";
                world.feed.pg.psql(all);
            }
            Fault::NatsKilled => {
                world.feed.nats.kill9();
                pause.await;
                world.feed.nats.restart().await;
            }
            Fault::SecondNatsKilled => {
                world.second.kill9();
                pause.await;
                world.second.restart().await;
            }
            Fault::NatsRestarted => world.feed.nats.restart().await,
            Fault::NatsFrozen => {
                world.feed.nats.pause();
                pause.await;
                world.feed.nats.resume();
            }
            Fault::AllKilled => {
                world.walhook.kill9();
                world.feed.nats.kill9();
                world.feed.pg.kill9();
                world.walhook = world.start();
                world.feed.pg.restart().await;
                world.feed.nats.restart().await;
            }
            Fault::Cut(side) => {
                for _ in 0..rng.u32(1..5) {
                    world.proxy(side).cut();
                    tokio::time::sleep(Duration::from_millis(rng.u64(1..300))).await;
                }
            }
            Fault::Reset(side) => world.proxy(side).reset(),
            Fault::Network(side, network_fault) => {
                world.proxy(side).set(network_fault);
                // Now and then longer than an acknowledgement is waited for.
                tokio::time::sleep(a_while * rng.u32(1..3)).await;
                world.proxy(side).set(NetworkFault::Fair);
            }
            Fault::ByteByByte => {
                for side in [Side::Postgres, Side::Nats] {
                    world.proxy(side).set(NetworkFault::Sliced(1, Duration::ZERO));
                }
                pause.await;
                for side in [Side::Postgres, Side::Nats] {
                    world.proxy(side).set(NetworkFault::Fair);
                }
            }
        }
    }
}

/// A copy of the database as a copied disk brings it, with slots and identity: refused while it is one, and a database of its
/// own once it was adopted.
async fn copied(world: &mut World) {
    world.copies += 1;
    let number = world.copies;
    let pg = &world.feed.pg;
    pg.stop();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let made = std::process::Command::new("cp").arg("-a").arg(pg.data_dir()).arg(&data).status().unwrap();
    assert!(made.success());
    pg.restart().await;
    // Another run of the original, which the copy does not know.
    world.walhook.kill9();
    world.walhook = world.start();
    let newest = "SELECT run_id FROM walhook.rule_cdc_runs ORDER BY epoch DESC LIMIT 1";
    let before = world.feed.pg.psql(newest);
    eventually("the mark of the new run", async || {
        let run = world.feed.pg.psql(newest);
        let store = world.feed.nats.jetstream().await.get_key_value("walhook_walhook").await.ok()?;
        let mark: serde_json::Value = serde_json::from_slice(&store.get("run").await.ok()??).ok()?;
        (run != before && mark["run_id"] == run.as_str()).then_some(())
    })
    .await;
    let version = world.feed.pg.major().to_string();
    let copy = Postgres::builder().version(&version).copy_of(&data).start().await;
    let command = |verb: &str, user: &str| -> Builder {
        let conninfo = format!("host=127.0.0.1 port={} dbname=postgres user={user}", copy.port());
        Walhook::command(verb).env("DATABASE_URL", conninfo)
    };
    // Its WAL may go further than all that the streams hold.
    copy.psql("INSERT INTO plain (id, n) SELECT 90000000 + i, i FROM generate_series(1, 50) i");
    copy.psql("SELECT pg_switch_wal()");
    copy.psql("INSERT INTO plain (id, n) SELECT 90000100 + i, i FROM generate_series(1, 50) i");
    let mut refused = command("run", "walhook_streamer").start();
    let code = refused.wait(REFUSED);
    let log = refused.log();
    world.expect(code == 3 && log.contains("walhook adopt"), || format!("a copy ended with exit code {code}: {log}"));
    if code == 3 {
        world.effects.push("a copy was refused");
    }
    let adopted = command("adopt", "postgres").arg("--yes").finish();
    world.expect(adopted.code == Some(0), || format!("a copy could not be adopted: {}", adopted.stderr));
    copy.psql(&format!(
        "DELETE FROM rule_webhooks; DELETE FROM rule_nats_streams;
         UPDATE rule_nats_config SET stream_name = 'COPY_{number}_' || config_name, subject_prefix = 'copy_{number}_' || config_name;
         SELECT rule_webhook_register('copy', 'https://example.com/copy');
         SELECT rule_webhook_enable_nats(currval('rule_webhooks_webhook_id_seq')::int, 'copy_{number}_default.w', 'nats');
         SELECT rule_webhook_link_table('copy', 'plain')"
    ));
    let done = command("setup", "postgres").finish();
    world.expect(done.code == Some(0), || format!("a copy could not be set up: {}", done.stderr));
    let mut own = command("run", "walhook_streamer").start();
    let rows: Vec<i64> = (90_001_000..90_001_020).collect();
    copy.psql(&format!("INSERT INTO plain (id, n) SELECT i, i FROM generate_series({}, {}) i", rows[0], rows[19]));
    let stream = format!("COPY_{number}_default");
    eventually("the copy's own events", async || {
        (run::stored(&world.feed.nats, &stream).await.len() >= rows.len() || own.exited().is_some()).then_some(())
    })
    .await;
    let stored: Vec<i64> = run::stored(&world.feed.nats, &stream)
        .await
        .iter()
        .filter_map(|message| message.data()["id"].as_i64())
        .collect();
    world.expect(stored == rows, || format!("a copy's own stream has {stored:?}: {}", own.log()));
    let code = own.terminate();
    world.expect(code == 0, || format!("exit code {code} of a copy: {}", own.log()));
    if stored == rows {
        world.effects.push("an adopted copy had a stream of its own");
    }
}

/// How long a walhook that has to end by itself may take.
const REFUSED: Duration = Duration::from_secs(40);

impl World {
    fn proxy(&self, side: Side) -> &Proxy {
        match side {
            Side::Postgres => &self.postgres_proxy,
            Side::Nats => &self.nats_proxy,
        }
    }

    /// Nothing of walhook's is left stopped when a test fails.
    pub fn wake(&mut self) {
        self.walhook.signal(Signal::CONT);
    }
}
