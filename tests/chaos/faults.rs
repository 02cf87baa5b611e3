//! What goes wrong, and how it is mended again. Each fault ends with every server, walhook and network as they should be.

use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;

use super::{
    run::World,
    support::{Proxy, Weather},
};

/// Every kind, by the name that the report has.
pub const KINDS: [(&str, Fault); 26] = [
    ("walhook killed", Fault::WalhookKilled),
    ("walhook killed again and again", Fault::WalhookKilledOften),
    ("walhook terminated", Fault::WalhookTerminated),
    ("walhook frozen", Fault::WalhookFrozen),
    ("second walhook takes over", Fault::TakeOver),
    ("second walhook takes over a frozen one", Fault::TakeOverFrozen),
    ("PostgreSQL killed", Fault::PostgresKilled),
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
    ("PostgreSQL's network half-open", Fault::Weather(Side::Postgres, Weather::Held)),
    ("NATS's network half-open", Fault::Weather(Side::Nats, Weather::Held)),
    ("PostgreSQL's answers lost", Fault::Weather(Side::Postgres, Weather::Mute)),
    ("NATS's answers lost", Fault::Weather(Side::Nats, Weather::Mute)),
    ("PostgreSQL's network slow", Fault::Weather(Side::Postgres, SLOW)),
    ("NATS's network slow", Fault::Weather(Side::Nats, SLOW)),
    ("both networks byte by byte", Fault::ByteByByte),
];

const SLOW: Weather = Weather::Sliced(1400, Duration::from_millis(2));

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
    Weather(Side, Weather),
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
            Fault::Weather(side, weather) => {
                world.proxy(side).set(weather);
                // Now and then longer than an acknowledgement is waited for.
                tokio::time::sleep(a_while * rng.u32(1..3)).await;
                world.proxy(side).set(Weather::Fair);
            }
            Fault::ByteByByte => {
                for side in [Side::Postgres, Side::Nats] {
                    world.proxy(side).set(Weather::Sliced(1, Duration::ZERO));
                }
                pause.await;
                for side in [Side::Postgres, Side::Nats] {
                    world.proxy(side).set(Weather::Fair);
                }
            }
        }
    }
}

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
