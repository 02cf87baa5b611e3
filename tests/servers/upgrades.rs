//! Upgrades as docs/upgrade.md has them: of walhook under load, of PostgreSQL by pg_upgrade and by a dump, of nats-server on the same
//! files, and to another slot, source or nats-server. Every committed row arrives once and in order, whatever is upgraded.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use support::{
    Nats, Postgres, eventually,
    feed::Feed,
    rows::{ended_well, exactly, insert, link, linked_on},
};

/// What an earlier version made: `0_1`, or `0_2`, the last one whose objects are all in public.
fn schema_of(version: &str) -> String {
    let path = format!("{}/tests/sql/fixtures/walhook_{version}.sql", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// Between two transactions of an application: so many come together that the streams can be read in the end.
const PACE: Duration = Duration::from_millis(10);

/// An application that writes all the time: each transaction has a row of table `t`, and a call of webhook 2.
struct Application {
    stopped: Arc<AtomicBool>,
    done: Arc<AtomicI64>,
    task: std::thread::JoinHandle<()>,
}

impl Application {
    /// Every statement of it has to succeed.
    fn start(pg: &Postgres) -> Application {
        let (stopped, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let (conninfo, stop, count) = (pg.conninfo(), Arc::clone(&stopped), Arc::clone(&done));
        let writing = async move {
            let (client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            while !stop.load(Ordering::SeqCst) {
                let next = count.load(Ordering::SeqCst);
                let transaction = format!(
                    "BEGIN; INSERT INTO t VALUES ({next}, repeat('x', 100)); \
                     SELECT rule_webhook_publish_nats(2, '{{\"id\": {next}}}'); COMMIT"
                );
                client.batch_execute(&transaction).await.unwrap();
                count.store(next + 1, Ordering::SeqCst);
                tokio::time::sleep(PACE).await;
            }
        };
        Application { stopped, done, task: std::thread::spawn(|| support::runtime().block_on(writing)) }
    }

    /// Waits for twenty more transactions.
    async fn goes_on(&self) {
        let upto = self.done.load(Ordering::SeqCst) + 20;
        eventually("the application to go on", async || (self.done.load(Ordering::SeqCst) >= upto).then_some(())).await;
    }

    /// Ends it; how many transactions there were.
    fn stop(self) -> i64 {
        self.stopped.store(true, Ordering::SeqCst);
        self.task.join().unwrap();
        self.done.load(Ordering::SeqCst)
    }
}

/// A database that an earlier version has set up, with a slot of that time.
async fn made_by(version: &str) -> Feed {
    let feed = Feed { pg: Postgres::start().await, nats: Nats::start().await };
    feed.pg.psql(&schema_of(version));
    feed.pg.psql("SELECT rule_cdc_publication_create()");
    feed.pg.psql("SELECT rule_cdc_slot_create()");
    two_webhooks(&feed);
    feed
}

/// Webhook 1 for table `t`, and webhook 2 for calls.
fn two_webhooks(feed: &Feed) {
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', '{}')", feed.nats.url()));
    link(feed);
    feed.webhook("calls");
}

/// Everything is confirmed, and each of the transactions made its two events, once, in order; the history has each event once.
async fn each_once(feed: &Feed, transactions: i64) {
    feed.confirmed().await;
    let messages = feed.messages().await;
    for subject in ["webhooks.w", "webhooks.calls"] {
        let of = messages.iter().filter(|message| message.subject == subject);
        let ids: Vec<i64> = of.map(|message| message.data()["id"].as_i64().unwrap()).collect();
        assert_eq!(ids, (0..transactions).collect::<Vec<_>>(), "{subject}");
    }
    assert_eq!(feed.last_sequence("WEBHOOKS").await, u64::try_from(2 * transactions).unwrap());
    let history = "SELECT count(*), count(DISTINCT event_id), count(DISTINCT sequence_number) FROM rule_nats_publish_history WHERE success";
    let all = 2 * transactions;
    assert_eq!(feed.pg.psql(history), format!("{all}|{all}|{all}"));
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
}

/// The files of sql/ by their numbers, as setup applies them.
fn steps() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/sql");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<String> =
        names.filter_map(|name| Some(name.strip_suffix(".sql")?.split_once('_')?.0.to_owned())).collect();
    steps.sort();
    assert_eq!(steps.remove(0), "004", "what setup looks at first");
    steps
}

#[tokio::test]
async fn a_setup_that_is_killed_in_any_step_goes_on_from_there_while_the_application_writes() {
    killed_in_every_step("0_1").await;
}

#[tokio::test]
async fn a_setup_that_moves_objects_out_of_public_is_killed_in_any_step_and_no_call_fails() {
    killed_in_every_step("0_2").await;
}

async fn killed_in_every_step(version: &str) {
    let feed = made_by(version).await;
    let has_record = version != "0_1";
    let application = Application::start(&feed.pg);
    application.goes_on().await;
    for step in steps() {
        // What records this step waits for a lock; 005 makes the table of records.
        let holder = feed.pg.client().await;
        if step == "007" && !has_record {
            // As after a setup that was killed between the two: there is the table of records.
            let first = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/005_webhooks.sql"));
            feed.pg.psql(&first.unwrap());
        }
        if step == "005" && !has_record {
            holder.batch_execute("BEGIN; LOCK TABLE schema_migrations").await.unwrap();
        } else {
            feed.pg.psql(&format!(
                "CREATE OR REPLACE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS \
                     'BEGIN IF NEW.version = ''{step}'' THEN PERFORM pg_catalog.pg_advisory_xact_lock(4711); END IF; RETURN NEW; END'; \
                 DROP TRIGGER IF EXISTS hold ON rule_cdc_migrations; \
                 CREATE TRIGGER hold BEFORE INSERT ON rule_cdc_migrations FOR EACH ROW EXECUTE FUNCTION public.hold()"
            ));
            holder.batch_execute("SELECT pg_advisory_lock(4711)").await.unwrap();
        }
        let mut setup = feed.command("setup").start();
        setup.logged("retry_in_ms").await;
        assert!(setup.log().contains(&format!("migration=\"{step}_")), "{step}: {}", setup.log());
        setup.kill9();
        application.goes_on().await;
        let done =
            "SELECT string_agg(version, ' ' ORDER BY version) FROM rule_cdc_migrations WHERE version NOT LIKE '0.1/%'";
        if step != "005" || has_record {
            let done = feed.pg.psql(done);
            // Of a version that has had this step the last one is missing.
            let newest = steps().pop().unwrap();
            let missing = if has_record { &newest } else { &step };
            assert!(!done.contains(missing.as_str()), "{step}: {done}");
        }
        // Neither publishes by a schema that is half of this and half of that.
        for verb in ["run", "deliver"] {
            let refused = feed.command(verb).finish();
            assert_eq!(refused.code, Some(2), "{step}, {verb}: {}", refused.stderr);
            assert!(refused.stderr.contains("run walhook setup with this walhook"), "{step}: {}", refused.stderr);
        }
    }
    feed.pg.psql("DROP TRIGGER hold ON rule_cdc_migrations; DROP FUNCTION public.hold()");
    let done = feed.command("setup").finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let mut walhook = feed.run();
    walhook.logged("slot taken").await;
    application.goes_on().await;
    let transactions = application.stop();
    each_once(&feed, transactions).await;
    ended_well(&mut walhook);
}

/// From each step on, all steps are applied to a database that lacks their records.
async fn every_step_is_applied(version: &str) {
    let feed = Feed::on(Postgres::builder().version(version).set_up().start().await, Nats::start().await);
    two_webhooks(&feed);
    let mut walhook = feed.run();
    let application = Application::start(&feed.pg);
    application.goes_on().await;
    for step in steps() {
        feed.pg.psql(&format!("DELETE FROM rule_cdc_migrations WHERE version >= '{step}'"));
        let done = feed.command("setup").finish();
        assert_eq!(done.code, Some(0), "PostgreSQL {version}, {step}: {}", done.stderr);
        application.goes_on().await;
    }
    let transactions = application.stop();
    each_once(&feed, transactions).await;
    assert!(!walhook.log().contains("ERROR"), "{}", walhook.log());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn every_step_of_the_schema_is_applied_while_walhook_streams_and_the_application_writes() {
    every_step_is_applied("18").await;
}

#[tokio::test]
async fn every_step_of_the_schema_is_applied_on_postgresql_14_while_walhook_streams_and_the_application_writes() {
    every_step_is_applied("14").await;
}

/// The files of `old`, as they are after a clean shutdown, become those of a newer server; both keep their settings.
async fn pg_upgrade(old: &Postgres, new: &Postgres) {
    assert!(old.data_dir().join("postmaster.pid").metadata().is_err(), "the old server is stopped");
    new.stop();
    let [from, into] = [old, new].map(|pg| pg.data_dir().display().to_string());
    let [before, after] = [old, new].map(|pg| pg.bin_dir().display().to_string());
    let said = new.tool("pg_upgrade", &["-b", &before, "-B", &after, "-d", &from, "-D", &into, "-U", "postgres"]);
    assert!(said.contains("Upgrade Complete"), "{said}");
    new.restart().await;
}

/// A cluster without data, as initdb of the newer version makes it for one of an older version.
async fn empty_cluster(version: &str) -> Postgres {
    let initdb: &[&str] = if version == "18" { &["--no-data-checksums"] } else { &[] };
    Postgres::builder().version(version).tools().initdb(initdb).start().await
}

#[tokio::test]
async fn pg_upgrade_from_14_needs_a_new_slot_and_loses_and_repeats_nothing() {
    let mut feed = linked_on(Postgres::builder().version("14").tools().fresh().start().await, Nats::start().await);
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 200);
    // 1. The writers have stopped; nothing waits.
    feed.confirmed().await;
    ended_well(&mut walhook);
    // 2.
    assert_eq!(feed.pg.psql("SELECT rule_cdc_slot_drop()"), "t");
    let new = empty_cluster("18").await;
    feed.pg.stop();
    pg_upgrade(&feed.pg, &new).await;
    feed.pg = new;
    // 3. and 4. Before them nothing is published.
    let refused = feed.run().wait(support::DEADLINE);
    assert_eq!(refused, 3);
    let done = feed.command("setup").finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let done = feed.command("adopt").args(["--same", "--yes"]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    // 5.
    let mut walhook = feed.run();
    insert(&feed.pg, 200, 400);
    exactly(&feed, 400).await;
    ended_well(&mut walhook);
}

/// PostgreSQL goes first: its walsender waits until walhook has confirmed all WAL. Then pg_upgrade finds that the slot has it all.
async fn consumes_all(feed: &Feed, new: &Postgres) {
    let mut walhook = feed.run();
    feed.confirmed().await;
    feed.pg.stop();
    ended_well(&mut walhook);
    new.stop();
    let [from, into] = [&feed.pg, new].map(|pg| pg.data_dir().display().to_string());
    let [before, after] = [&feed.pg, new].map(|pg| pg.bin_dir().display().to_string());
    let arguments = ["--check", "-b", &before, "-B", &after, "-d", &from, "-D", &into, "-U", "postgres"];
    let said = new.try_tool("pg_upgrade", &arguments);
    assert!(said.status.success(), "{}\n{}", String::from_utf8_lossy(&said.stdout), walhook.log());
}

#[tokio::test]
async fn pg_upgrade_from_17_takes_the_slot_along_and_loses_and_repeats_nothing() {
    let mut feed = linked_on(Postgres::builder().version("17").tools().fresh().start().await, Nats::start().await);
    insert(&feed.pg, 0, 200);
    let new = empty_cluster("18").await;
    consumes_all(&feed, &new).await;
    pg_upgrade(&feed.pg, &new).await;
    feed.pg = new;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook'"), "1");
    insert(&feed.pg, 200, 300);
    assert_eq!(feed.run().wait(support::DEADLINE), 3);
    let done = feed.command("adopt").args(["--same", "--yes"]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let mut walhook = feed.run();
    insert(&feed.pg, 300, 400);
    exactly(&feed, 400).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn nats_server_is_upgraded_on_the_same_files_while_walhook_streams() {
    let mut feed = linked_on(Postgres::set_up().await, Nats::builder().version("2.10").start().await);
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 200);
    feed.confirmed().await;
    feed.nats.set_version("2.15");
    insert(&feed.pg, 200, 250);
    feed.nats.restart().await;
    insert(&feed.pg, 250, 400);
    exactly(&feed, 400).await;
    assert!(feed.nats.client().await.server_info().version.starts_with("2.15"));
    // What the newer server can do is used without a restart of walhook.
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql("UPDATE rule_nats_streams SET transactions = 'atomic'");
    insert(&feed.pg, 400, 600);
    exactly(&feed, 600).await;
    assert!(
        feed.messages().await.iter().any(|message| !message.header("Nats-Batch-Id").is_empty()),
        "{}",
        walhook.log()
    );
    ended_well(&mut walhook);
}

/// A dump of database `postgres` with its roles goes into an empty server, as docs/upgrade.md has it.
fn dump_and_restore(old: &Postgres, new: &Postgres) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    // By the user who runs the servers.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    new.tool(
        "pg_dumpall",
        &[
            "--roles-only",
            "--port",
            &old.port().to_string(),
            "--host",
            &old.socket_dir().display().to_string(),
            "-f",
            &path("roles"),
        ],
    );
    new.tool("psql", &["-Xq", "-f", &path("roles"), "postgres"]);
    new.tool(
        "pg_dump",
        &[
            "-Fc",
            "--port",
            &old.port().to_string(),
            "--host",
            &old.socket_dir().display().to_string(),
            "-f",
            &path("dump"),
            "postgres",
        ],
    );
    new.tool("pg_restore", &["--exit-on-error", "-d", "postgres", &path("dump")]);
}

#[tokio::test]
async fn a_dump_goes_on_in_the_same_stream_if_the_new_server_begins_behind_the_old_ones_wal() {
    let mut feed = linked_on(Postgres::builder().version("14").tools().fresh().start().await, Nats::start().await);
    feed.pg.psql("SELECT pg_switch_wal()");
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 200);
    feed.confirmed().await;
    ended_well(&mut walhook);
    let segment = feed.pg.psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 16 * 1024 * 1024)");
    let new = Postgres::builder().version("18").tools().fresh().start().await;
    new.stop();
    new.tool("pg_resetwal", &["-l", &segment, &new.data_dir().display().to_string()]);
    new.restart().await;
    dump_and_restore(&feed.pg, &new);
    feed.pg.stop();
    feed.pg = new;
    assert_eq!(feed.run().wait(support::DEADLINE), 3, "before walhook adopt --same");
    for (verb, arguments) in [("setup", &[][..]), ("adopt", &["--same", "--yes"])] {
        let done = feed.command(verb).args(arguments.iter().copied()).finish();
        assert_eq!(done.code, Some(0), "{verb}: {}", done.stderr);
    }
    let mut walhook = feed.run();
    insert(&feed.pg, 200, 400);
    exactly(&feed, 400).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_dump_on_a_server_whose_wal_ends_before_the_stream_needs_another_source() {
    let mut feed = linked_on(Postgres::builder().version("17").tools().fresh().start().await, Nats::start().await);
    for _ in 0..3 {
        feed.pg.psql("SELECT pg_switch_wal()");
        feed.pg.psql("CREATE TABLE filler AS SELECT 1; DROP TABLE filler");
    }
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 50);
    feed.confirmed().await;
    ended_well(&mut walhook);
    let new = Postgres::builder().version("18").tools().fresh().start().await;
    dump_and_restore(&feed.pg, &new);
    feed.pg.stop();
    feed.pg = new;
    for (verb, arguments) in [("setup", &[][..]), ("adopt", &["--same", "--yes"])] {
        let done = feed.command(verb).args(arguments.iter().copied()).finish();
        assert_eq!(done.code, Some(0), "{verb}: {}", done.stderr);
    }
    let mut walhook = feed.run();
    assert_eq!(walhook.wait(support::DEADLINE), 3, "{}", walhook.log());
    let log = walhook.log();
    assert!(log.lines().last().unwrap().contains("start with another source"), "{log}");
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 50, "nothing is published");
    another_source(&feed, 50, &[]).await;
}

/// Events of source `second` go on behind those of source `walhook`, which has stored `before` rows, in the same stream.
async fn another_source(feed: &Feed, before: i64, slot: &[&str]) {
    let run = || feed.streamer().args(["--source", "second"]).args(slot.iter().copied()).start();
    let mut walhook = run();
    insert(&feed.pg, before, before + 100);
    eventually("events of the second source", async || {
        (feed.last_sequence("WEBHOOKS").await > u64::try_from(before).unwrap()).then_some(())
    })
    .await;
    walhook.kill9();
    let mut walhook = run();
    insert(&feed.pg, before + 100, before + 200);
    let all = before + 200;
    eventually("all events", async || {
        (feed.last_sequence("WEBHOOKS").await >= u64::try_from(all).unwrap()).then_some(())
    })
    .await;
    ended_well(&mut walhook);
    let messages = feed.messages().await;
    let ids: Vec<i64> = messages.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (0..all).collect::<Vec<_>>());
    let of_second = messages.iter().filter(|message| message.header("Nats-Msg-Id").starts_with("second-"));
    assert_eq!(of_second.count(), 200);
}

#[tokio::test]
async fn another_slot_of_the_same_source_goes_on_in_the_same_stream() {
    let feed = linked_on(Postgres::set_up().await, Nats::start().await);
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 200);
    feed.confirmed().await;
    ended_well(&mut walhook);
    let done = feed.command("setup").args(["--slot", "shop"]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let mut walhook = feed.streamer().args(["--slot", "shop", "--source", "walhook"]).start();
    walhook.logged("slot taken").await;
    feed.pg.psql("SELECT rule_cdc_slot_drop('walhook')");
    insert(&feed.pg, 200, 400);
    eventually("400 events", async || (feed.last_sequence("WEBHOOKS").await >= 400).then_some(())).await;
    ended_well(&mut walhook);
    let ids: Vec<i64> = feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (0..400).collect::<Vec<_>>());
    assert_eq!(feed.pg.psql("SELECT string_agg(slot_name, ' ') FROM pg_replication_slots"), "shop");
    // A start with the old slot's name is refused: there is none, and none is made in silence.
    let refused = feed.streamer().finish();
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
}

#[tokio::test]
async fn another_source_of_the_same_database_goes_on_in_the_same_stream() {
    let feed = linked_on(Postgres::set_up().await, Nats::start().await);
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 50);
    feed.confirmed().await;
    ended_well(&mut walhook);
    let done = feed.command("setup").args(["--slot", "second"]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(feed.pg.psql("SELECT rule_cdc_slot_drop('walhook')"), "t");
    another_source(&feed, 50, &["--slot", "second"]).await;
}

#[tokio::test]
async fn a_server_that_stands_behind_the_old_address_is_taken_once_the_checkpoints_are_deleted() {
    let second = Nats::start().await;
    let feed = linked_on(Postgres::set_up().await, Nats::start().await);
    let address = support::Proxy::before(feed.nats.port());
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', 'nats://127.0.0.1:{}')", address.port()));
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 50);
    feed.confirmed().await;
    eventually("a checkpoint", async || {
        (feed.pg.psql("SELECT count(*) FROM rule_nats_checkpoints WHERE stream_name <> ''") == "1").then_some(())
    })
    .await;
    ended_well(&mut walhook);
    address.lead_to(second.port());
    // walhook cannot know that this is meant.
    let mut refused = feed.run();
    insert(&feed.pg, 50, 60);
    assert_eq!(refused.wait(support::DEADLINE), 3, "{}", refused.log());
    feed.pg.psql("DELETE FROM rule_nats_checkpoints WHERE config_name = 'default' AND stream_name <> ''");
    let mut walhook = feed.run();
    insert(&feed.pg, 60, 100);
    feed.confirmed().await;
    ended_well(&mut walhook);
    let there = Feed { pg: feed.pg, nats: second };
    let ids: Vec<i64> = there.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (50..100).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs the binary of version 0.2: scripts/upgrade-from b334ef4 builds it and runs this test"]
async fn the_binary_of_0_2_streams_on_through_an_upgrade_and_is_refused_at_its_next_start() {
    let old = std::env::var("WALHOOK_BEFORE").expect("WALHOOK_BEFORE: the path of the binary of version 0.2");
    let feed = Feed { pg: Postgres::start().await, nats: Nats::start().await };
    let done = feed.command("setup").binary(&old).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    two_webhooks(&feed);
    feed.pg.psql("SELECT rule_cdc_anchor_create('2 seconds')");
    let mut walhook = feed.streamer().binary(&old).start();
    let application = Application::start(&feed.pg);
    application.goes_on().await;
    // The old one is not stopped, though docs/upgrade.md says so.
    let done = feed.command("setup").finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(feed.pg.psql("SELECT to_regclass('walhook.rule_cdc_rule_versions') IS NOT NULL"), "t");
    // It writes by the old names: a version of the rules, the position of the anchor, the count of its run.
    feed.pg.psql("SELECT rule_webhook_update(2, p_timeout_ms => 6000)");
    for (what, query) in [
        (
            "a version of the rules",
            "SELECT count(*) > 0 FROM walhook.rule_cdc_rule_versions WHERE row_data::jsonb ->> 'timeout_ms' = '6000'",
        ),
        (
            "a count",
            "SELECT count(*) > 0 FROM walhook.rule_cdc_runs WHERE updated_at > (SELECT applied_at FROM rule_cdc_migrations WHERE version = '028')",
        ),
        (
            "a place of the anchor",
            "SELECT count(*) > 0 FROM walhook.rule_cdc_anchor_places WHERE seen_at > (SELECT applied_at FROM rule_cdc_migrations WHERE version = '028')",
        ),
    ] {
        eventually(what, async || (feed.pg.psql(query) == "t").then_some(())).await;
    }
    application.goes_on().await;
    assert!(!walhook.log().contains("ERROR"), "{}", walhook.log());
    ended_well(&mut walhook);
    // A second start of it is refused, and what it left is sent by the new one.
    application.goes_on().await;
    let mut refused = feed.streamer().binary(&old).start();
    assert_eq!(refused.wait(support::DEADLINE), 2, "{}", refused.log());
    assert!(refused.log().contains("this walhook is the older one"), "{}", refused.log());
    let refused = feed.command("setup").binary(&old).finish();
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let mut walhook = feed.run();
    walhook.logged("slot taken").await;
    // The old names go while all of them work.
    let done = feed.command("setup").finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(feed.pg.psql("SELECT to_regclass('public.rule_cdc_rule_versions') IS NULL"), "t");
    application.goes_on().await;
    let transactions = application.stop();
    each_once(&feed, transactions).await;
    assert!(!walhook.log().contains("ERROR"), "{}", walhook.log());
    ended_well(&mut walhook);
}

#[tokio::test]
#[ignore = "needs the binary of version 0.1: scripts/upgrade-from builds it and runs this test"]
async fn the_binary_of_0_1_streams_before_and_during_an_upgrade_and_is_refused_afterwards() {
    let old = std::env::var("WALHOOK_BEFORE").expect("WALHOOK_BEFORE: the path of the binary of version 0.1");
    let feed = Feed { pg: Postgres::start().await, nats: Nats::start().await };
    let done = feed.command("setup").binary(&old).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    two_webhooks(&feed);
    let mut walhook = feed.streamer().binary(&old).start();
    let application = Application::start(&feed.pg);
    application.goes_on().await;
    // The old one is not stopped, though docs/upgrade.md says so. It ends with code 2, or stops so, once it writes a checkpoint.
    let done = feed.command("setup").finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    application.goes_on().await;
    walhook.signal(rustix::process::Signal::TERM);
    assert_eq!(walhook.wait(support::DEADLINE), 2, "{}", walhook.log());
    let mut walhook = feed.run();
    walhook.logged("slot taken").await;
    application.goes_on().await;
    ended_well(&mut walhook);
    // Back: it is refused before it publishes, and nothing is lost by the attempt.
    let stored = feed.last_sequence("WEBHOOKS").await;
    application.goes_on().await;
    let mut back = feed.streamer().binary(&old).start();
    assert_eq!(back.wait(support::DEADLINE), 2, "{}", back.log());
    assert!(back.log().contains("raise the epoch in rule_nats_checkpoints: there is no unique"), "{}", back.log());
    assert_eq!(feed.last_sequence("WEBHOOKS").await, stored);
    let mut walhook = feed.run();
    application.goes_on().await;
    let transactions = application.stop();
    each_once(&feed, transactions).await;
    ended_well(&mut walhook);
}
