//! PostgreSQL that fails over to a standby, or is set back: what the standby has goes on, what it lacks stops walhook.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;

use support::{
    Nats, Postgres, Proxy, Walhook, eventually,
    feed::Feed,
    rows::{ended_well, exactly, insert, linked_on, taken},
};

/// A feed that walhook reaches through a proxy: after a failover its address leads to another server.
struct Site {
    feed: Feed,
    address: Proxy,
}

impl Site {
    async fn start(pg: Postgres) -> Site {
        let feed = linked_on(pg, Nats::start().await);
        let address = Proxy::before(feed.pg.port());
        Site { feed, address }
    }

    fn run(&self) -> Walhook {
        let port = self.address.port();
        let conninfo = format!("host=127.0.0.1 port={port} dbname=postgres user=walhook_streamer connect_timeout=3");
        self.feed.command("run").env("DATABASE_URL", conninfo).start()
    }

    /// From here on `pg` is the database; the former one is dead.
    fn fail_over_to(&mut self, pg: Postgres) {
        self.feed.pg.kill9();
        self.address.lead_to(pg.port());
        self.feed.pg = pg;
    }

    /// What was stored stays all there is, and walhook ends with the code for distrust and these words.
    async fn ends_in_distrust(&self, mut walhook: Walhook, words: &[&str]) {
        let stored = self.feed.last_sequence("WEBHOOKS").await;
        assert_eq!(walhook.wait(Duration::from_secs(40)), 3, "{}", walhook.log());
        let log = walhook.log();
        for word in words {
            assert!(log.lines().last().unwrap().contains(word), "no {word:?} in {log}");
        }
        assert_eq!(self.feed.last_sequence("WEBHOOKS").await, stored, "nothing is published");
    }
}

/// A copy as an administrator makes it, while the server is down for a moment; `pg_basebackup` leaves slots out, a copied
/// disk does not.
async fn copy(pg: &Postgres, standby_of: Option<u16>, with_slots: bool) -> Postgres {
    pg.stop();
    let copy = tempfile::tempdir().unwrap();
    let data = copy.path().join("data");
    let copied = std::process::Command::new("cp").arg("-a").arg(pg.data_dir()).arg(&data).status().unwrap();
    assert!(copied.success());
    if !with_slots {
        for slot in std::fs::read_dir(data.join("pg_replslot")).unwrap() {
            std::fs::remove_dir_all(slot.unwrap().path()).unwrap();
        }
    }
    let version = std::fs::read_to_string(data.join("PG_VERSION")).unwrap();
    pg.restart().await;
    let builder = Postgres::builder().version(version.trim()).copy_of(&data);
    match standby_of {
        None => builder.start().await,
        Some(primary) => {
            let conf = format!(
                "primary_conninfo = 'host=127.0.0.1 port={primary} user=postgres dbname=postgres'\n\
                 primary_slot_name = 'standby'\nhot_standby_feedback = on\n\
                 wal_receiver_status_interval = 1s\nwal_retrieve_retry_interval = 200ms\n{}",
                if version.trim() >= "17" { "sync_replication_slots = on" } else { "" }
            );
            builder.conf(&conf).standby().start().await
        }
    }
}

async fn promote(standby: &Postgres) {
    assert_eq!(standby.psql("SELECT pg_promote()"), "t");
    eventually("the standby to be the primary", async || {
        (standby.psql("SELECT pg_is_in_recovery()") == "f").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_standby_with_a_synced_slot_goes_on_where_the_primary_ended() {
    let mut site = Site::start(Postgres::builder().version("17").start().await).await;
    site.feed.pg.psql("SELECT pg_create_physical_replication_slot('standby', true)");
    let standby = copy(&site.feed.pg, Some(site.feed.pg.port()), false).await;
    // What the standby does not have yet is not sent to us either.
    site.feed.pg.psql("ALTER SYSTEM SET synchronized_standby_slots = 'standby'");
    site.feed.pg.psql("SELECT pg_reload_conf()");
    let mut walhook = site.run();
    insert(&site.feed.pg, 0, 300);
    site.feed.confirmed().await;
    eventually("the slot on the standby to be synced", async || {
        let synced = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = 'walhook'";
        (standby.psql(synced) == "t").then_some(())
    })
    .await;
    insert(&site.feed.pg, 300, 400);
    // Rows that the stream has and the standby's slot has not seen confirmed: they come again.
    taken(&site.feed, 400).await;
    site.feed.pg.kill9();
    promote(&standby).await;
    site.fail_over_to(standby);
    insert(&site.feed.pg, 400, 600);
    exactly(&site.feed, 600).await;
    ended_well(&mut walhook);
}

/// The address leads to the standby before that is promoted: on some versions it decodes nothing, on others its slot is not for us.
#[tokio::test]
async fn a_standby_that_is_not_promoted_yet_is_waited_for() {
    for version in ["default", "17"] {
        let mut site = Site::start(Postgres::builder().version(version).start().await).await;
        insert(&site.feed.pg, 0, 100);
        let mut walhook = site.run();
        site.feed.confirmed().await;
        site.feed.pg.psql("SELECT pg_create_physical_replication_slot('standby', true)");
        let standby = copy(&site.feed.pg, Some(site.feed.pg.port()), true).await;
        insert(&site.feed.pg, 100, 200);
        site.feed.confirmed().await;
        let written = site.feed.pg.psql("SELECT pg_current_wal_lsn()");
        eventually("the standby to have all", async || {
            (standby.psql(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")) == "t").then_some(())
        })
        .await;
        site.fail_over_to(standby);
        walhook.logged("the server is a standby").await;
        // One that starts now waits as well.
        let mut second = site.run();
        second.logged("the server is a standby").await;
        second.kill9();
        promote(&site.feed.pg).await;
        insert(&site.feed.pg, 200, 300);
        exactly(&site.feed, 300).await;
        ended_well(&mut walhook);
    }
}

#[tokio::test]
async fn a_standby_that_lags_behind_the_stream_ends_walhook_with_the_code_for_distrust() {
    let mut site = Site::start(Postgres::start().await).await;
    insert(&site.feed.pg, 0, 100);
    let mut first = site.run();
    site.feed.confirmed().await;
    ended_well(&mut first);
    site.feed.pg.psql("SELECT pg_create_physical_replication_slot('standby', true)");
    let standby = copy(&site.feed.pg, Some(site.feed.pg.port()), true).await;
    standby.stop();
    let mut walhook = site.run();
    insert(&site.feed.pg, 100, 300);
    site.feed.confirmed().await;
    site.feed.pg.kill9();
    // It was down when these were committed, and now there is nobody to send them.
    standby.restart().await;
    promote(&standby).await;
    site.fail_over_to(standby);
    assert!(walhook.exited().is_none_or(|status| status.code() == Some(3)));
    site.ends_in_distrust(walhook, &["WEBHOOKS", "message 300", "timeline that PostgreSQL left"]).await;
}

#[tokio::test]
async fn a_promoted_standby_that_lagged_and_has_written_more_since_is_not_trusted_either() {
    let mut site = Site::start(Postgres::start().await).await;
    let mut walhook = site.run();
    insert(&site.feed.pg, 0, 100);
    site.feed.confirmed().await;
    site.feed.pg.psql("SELECT pg_create_physical_replication_slot('standby', true)");
    let standby = copy(&site.feed.pg, Some(site.feed.pg.port()), true).await;
    standby.stop();
    insert(&site.feed.pg, 100, 300);
    site.feed.confirmed().await;
    ended_well(&mut walhook);
    site.feed.pg.kill9();
    standby.restart().await;
    promote(&standby).await;
    // Its own WAL has grown past the stream's tail, with rows that the stream must not be thought to have.
    insert(&standby, 1000, 1100);
    standby.psql("SELECT pg_switch_wal()");
    insert(&standby, 1100, 1200);
    site.fail_over_to(standby);
    site.ends_in_distrust(site.run(), &["WEBHOOKS", "timeline"]).await;
}

#[tokio::test]
async fn a_database_that_was_restored_to_an_earlier_point_ends_walhook_with_the_code_for_distrust() {
    let mut site = Site::start(Postgres::start().await).await;
    let mut walhook = site.run();
    insert(&site.feed.pg, 0, 100);
    site.feed.confirmed().await;
    let restored = copy(&site.feed.pg, None, true).await;
    insert(&site.feed.pg, 100, 300);
    site.feed.confirmed().await;
    ended_well(&mut walhook);
    site.fail_over_to(restored);
    site.ends_in_distrust(site.run(), &["WEBHOOKS", "beyond PostgreSQL's WAL"]).await;
}

#[tokio::test]
async fn a_slot_that_was_dropped_and_made_again_goes_on_with_what_is_committed_since() {
    let site = Site::start(Postgres::start().await).await;
    let mut walhook = site.run();
    insert(&site.feed.pg, 0, 100);
    site.feed.confirmed().await;
    ended_well(&mut walhook);
    site.feed.pg.psql("SELECT pg_drop_replication_slot('walhook')");
    let mut without = site.run();
    assert_ne!(without.wait(Duration::from_secs(30)), 0, "it makes none by itself");
    // Whoever makes a slot says that what comes before it is not wanted.
    let setup = site.feed.command("setup").finish();
    assert_eq!(setup.code, Some(0), "{}", setup.stderr);
    let mut walhook = site.run();
    insert(&site.feed.pg, 100, 200);
    exactly(&site.feed, 200).await;
    ended_well(&mut walhook);
}
