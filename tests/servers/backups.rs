//! Backups as docs/backup.md has them: what pg_dump, pg_basebackup and a restore to a point in time bring along, that nothing is
//! published, called or confirmed by what was restored, and how it becomes a database that works.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::os::unix::fs::PermissionsExt;

use futures_util::StreamExt as _;
use serde_json::json;
use support::{
    DEADLINE, Nats, Postgres, Walhook, eventually,
    feed::Feed,
    http::Http,
    rows::{ended_well, exactly, insert, linked_on},
    walhook::{Builder, Finished},
};

/// A folder that the user of the servers may write into, too.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// A verb against a restored database.
fn on(pg: &Postgres, verb: &str) -> Builder {
    Walhook::command(verb).env("DATABASE_URL", pg.conninfo())
}

fn succeeds(pg: &Postgres, verb: &str, arguments: &[&str]) -> Finished {
    let done = on(pg, verb).args(arguments.iter().copied()).finish();
    assert_eq!(done.code, Some(0), "{verb}: {}", done.stderr);
    done
}

/// What a restored database has of walhook's, by tables that say it.
const CARRIED: &str = "SELECT string_agg(line, ' ' ORDER BY line) FROM (
    SELECT 'webhooks ' || count(*) AS line FROM rule_webhooks
    UNION ALL SELECT 'links ' || count(*) FROM rule_webhook_links
    UNION ALL SELECT 'streams ' || count(*) FROM rule_nats_streams
    UNION ALL SELECT 'servers ' || string_agg(nats_url, ',') FROM rule_nats_config WHERE config_name = 'default'
    UNION ALL SELECT 'history ' || count(*) FROM rule_nats_publish_history
    UNION ALL SELECT 'dead_letters ' || count(*) FROM rule_nats_dead_letters
    UNION ALL SELECT 'checkpoints ' || count(*) FROM rule_nats_checkpoints WHERE stream_name <> ''
    UNION ALL SELECT 'rules ' || count(*) FROM walhook.rule_cdc_rule_versions
    UNION ALL SELECT 'identity ' || database_id FROM rule_cdc_identity
    UNION ALL SELECT 'publications ' || string_agg(pubname, ',' ORDER BY pubname) FROM pg_publication) lines";

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";

/// Everything that a restored database is asked to do is refused with exit code 3; nothing is published or called.
/// `backfill` writes into its own database alone, and refuses what PostgreSQL itself tells from the original.
async fn refuses_all(pg: &Postgres, nats: &Nats, receiver: &Http, is_files: bool) {
    let last = async || {
        let mut stream = nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
        stream.info().await.unwrap().state.last_sequence
    };
    let (stored, called) = (last().await, receiver.count());
    pg.psql("INSERT INTO t SELECT i, 'of the copy' FROM generate_series(5000, 5009) i");
    for (verb, arguments) in [
        ("run", &[][..]),
        ("deliver", &["--allow-network", "127.0.0.1"]),
        ("replay", &["--from", "0/1", "--create-stream", "REPLAY"]),
        ("backfill", &["--table", "t"]),
        ("seek", &["--stream", "WEBHOOKS", "--consumer", "worker", "--from", "0/1"]),
    ] {
        if verb == "backfill" && is_files {
            continue;
        }
        let mut process = on(pg, verb).args(arguments.iter().copied()).start();
        let code = process.wait(DEADLINE);
        assert_eq!(code, 3, "{verb}: {}", process.log());
        assert!(process.log().contains("walhook adopt"), "{verb}: {}", process.log());
    }
    assert_eq!((last().await, receiver.count()), (stored, called));
}

/// An original whose webhook leads to `receiver`, with a history, a checkpoint and a dead letter.
async fn original(receiver: &Http, conf: &str) -> (Feed, Walhook) {
    let pg = Postgres::builder().version("17").tools().fresh().conf(conf).start().await;
    let feed = linked_on(pg, Nats::start().await);
    feed.pg.psql(&format!("UPDATE rule_webhooks SET url = '{}'", receiver.url("/")));
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql("INSERT INTO rule_nats_dead_letters (event_id, reason) VALUES ('x', 'too large')");
    let walhook = feed.run();
    insert(&feed.pg, 0, 50);
    feed.confirmed().await;
    eventually("a checkpoint and the history", async || {
        let all = "SELECT (SELECT count(*) FROM rule_nats_checkpoints WHERE stream_name <> ''), \
                          (SELECT count(*) FROM rule_nats_publish_history)";
        (feed.pg.psql(all) == "1|50").then_some(())
    })
    .await;
    (feed, walhook)
}

/// The original's run goes on for more than ten seconds: it counts on in NATS.
async fn counts_on(feed: &Feed) {
    let count = || -> i64 { feed.pg.psql("SELECT max(beat) FROM walhook.rule_cdc_runs").parse().unwrap() };
    let before = count();
    let store = feed.nats.jetstream().await.get_key_value("walhook_walhook").await.unwrap();
    eventually("the run to count on", async || {
        let mark: serde_json::Value = serde_json::from_slice(&store.get("run").await.ok()??).unwrap();
        (mark["beat"].as_i64().unwrap() > before).then_some(())
    })
    .await;
}

/// The page's way for a staging system: `adopt`, a stream of its own, `setup`, `run`.
async fn becomes_staging(pg: &Postgres, nats: &Nats) {
    succeeds(pg, "adopt", &["--yes"]);
    pg.psql(
        "UPDATE rule_nats_config SET stream_name = 'STAGING', subject_prefix = 'staging' WHERE config_name = 'default'",
    );
    pg.psql("SELECT rule_webhook_enable_nats(1, 'staging.w', 'nats')");
    pg.psql("DELETE FROM rule_nats_streams");
    succeeds(pg, "setup", &[]);
    let mut walhook = on(pg, "run").start();
    pg.psql("INSERT INTO t SELECT i, 'staged' FROM generate_series(6000, 6019) i");
    eventually("the rows of the copy in its own stream", async || {
        let mut stream = nats.jetstream().await.get_stream("STAGING").await.ok()?;
        (stream.info().await.ok()?.state.messages == 20).then_some(())
    })
    .await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_dump_carries_all_but_roles_slot_and_events_and_does_nothing_until_it_is_adopted() {
    let receiver = Http::ok();
    let (feed, mut walhook) = original(&receiver, "").await;
    let folder = open_folder();
    let dump = folder.path().join("dump").display().to_string();
    feed.pg.tool("pg_dump", &["-Fc", "-f", &dump, "postgres"]);
    let roles = folder.path().join("roles").display().to_string();
    feed.pg.tool("pg_dumpall", &["--roles-only", "-f", &roles]);
    let copy = Postgres::builder().version("17").tools().fresh().start().await;
    copy.tool("psql", &["-Xq", "-f", &roles, "postgres"]);
    copy.tool("pg_restore", &["--exit-on-error", "-d", "postgres", &dump]);
    assert_eq!(copy.psql(CARRIED), feed.pg.psql(CARRIED));
    assert_eq!((copy.psql(SLOTS), feed.pg.psql(SLOTS)), ("0".to_owned(), "1".to_owned()));
    refuses_all(&copy, &feed.nats, &receiver, false).await;
    succeeds(&copy, "setup", &[]);
    refuses_all_again(&copy);
    becomes_staging(&copy, &feed.nats).await;
    insert(&feed.pg, 50, 100);
    exactly(&feed, 100).await;
    ended_well(&mut walhook);
}

/// A slot alone changes nothing.
fn refuses_all_again(pg: &Postgres) {
    for verb in ["run", "deliver"] {
        let mut process = on(pg, verb).start();
        assert_eq!(process.wait(DEADLINE), 3, "{verb}: {}", process.log());
    }
}

#[tokio::test]
async fn a_base_backup_leaves_the_slot_out_and_does_nothing_until_it_is_adopted() {
    let receiver = Http::ok();
    let (feed, mut walhook) = original(&receiver, "").await;
    let folder = open_folder();
    let data = folder.path().join("data");
    feed.pg.tool("pg_basebackup", &["-c", "fast", "-D", &data.display().to_string()]);
    let carried = feed.pg.psql(CARRIED);
    counts_on(&feed).await;
    insert(&feed.pg, 50, 100);
    feed.confirmed().await;
    ended_well(&mut walhook);
    let copy = Postgres::builder().version("17").tools().copy_of(&data).start().await;
    assert_eq!(copy.psql(CARRIED), carried);
    assert_eq!(copy.psql(SLOTS), "0");
    assert_eq!(copy.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'walhook%'"), "4");
    // Without a slot there is nothing to publish from; with one it is a copy.
    let refused = on(&copy, "run").finish();
    assert_ne!(refused.code, Some(0), "{}", refused.stderr);
    succeeds(&copy, "setup", &[]);
    refuses_all(&copy, &feed.nats, &receiver, true).await;
    becomes_staging(&copy, &feed.nats).await;
    let mut walhook = feed.run();
    insert(&feed.pg, 100, 150);
    exactly(&feed, 150).await;
    ended_well(&mut walhook);
}

/// The original answers for itself: its mark in the bucket may be as old as the copy.
#[tokio::test]
async fn a_base_backup_is_known_as_a_copy_at_once_while_the_original_runs() {
    let receiver = Http::ok();
    let (feed, mut walhook) = original(&receiver, "").await;
    let folder = open_folder();
    let data = folder.path().join("data");
    feed.pg.tool("pg_basebackup", &["-c", "fast", "-D", &data.display().to_string()]);
    let copy = Postgres::builder().version("17").tools().copy_of(&data).start().await;
    succeeds(&copy, "setup", &[]);
    refuses_all(&copy, &feed.nats, &receiver, true).await;
    // The original goes on, and its worker joins at once.
    let mut worker = feed.command("deliver").args(["--allow-network", "127.0.0.1"]).start();
    insert(&feed.pg, 50, 100);
    feed.confirmed().await;
    receiver.received(100).await;
    ended_well(&mut worker);
    ended_well(&mut walhook);
}

/// Core NATS stores nothing, and there is no JetStream to ask: the original answers all the same.
#[tokio::test]
async fn a_copy_publishes_nothing_to_core_nats_while_the_original_runs() {
    let nats = Nats::builder().config("jetstream: disabled").start().await;
    let pg = Postgres::builder().version("17").tools().fresh().start().await;
    let feed = linked_on(pg, nats);
    feed.pg.psql("UPDATE rule_nats_config SET jetstream_enabled = false");
    let client = feed.nats.client().await;
    let mut heard = client.subscribe("webhooks.>").await.unwrap();
    client.flush().await.unwrap();
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 1);
    heard.next().await.unwrap();
    let folder = open_folder();
    let data = folder.path().join("data");
    feed.pg.tool("pg_basebackup", &["-c", "fast", "-D", &data.display().to_string()]);
    let copy = Postgres::builder().version("17").tools().copy_of(&data).start().await;
    succeeds(&copy, "setup", &[]);
    copy.psql("INSERT INTO t SELECT i, 'of the copy' FROM generate_series(5000, 5009) i");
    let mut refused = on(&copy, "run").start();
    assert_eq!(refused.wait(DEADLINE), 3, "{}", refused.log());
    assert!(refused.log().contains("walhook adopt"), "{}", refused.log());
    insert(&feed.pg, 1, 2);
    let message = heard.next().await.unwrap();
    let id = serde_json::from_slice::<serde_json::Value>(&message.payload).unwrap()["data"]["id"].clone();
    assert_eq!(id, 1);
    ended_well(&mut walhook);
}

/// A backup that is started as it is has no timeline of its own. Its WAL goes on to where the stream's last event was committed, and
/// further, but there is no such commit.
#[tokio::test]
async fn a_backup_that_takes_the_originals_place_and_lacks_events_of_the_stream_is_refused() {
    let receiver = Http::ok();
    let (mut feed, mut walhook) = original(&receiver, "").await;
    let folder = open_folder();
    let data = folder.path().join("data");
    feed.pg.tool("pg_basebackup", &["-c", "fast", "-D", &data.display().to_string()]);
    // Behind all that setup will write into the copy's WAL. A segment without anything in it is not left.
    feed.pg.psql("SELECT pg_logical_emit_message(false, 'test', 'x')");
    feed.pg.psql("SELECT pg_switch_wal()");
    insert(&feed.pg, 50, 3000);
    exactly(&feed, 3000).await;
    walhook.kill9();
    feed.pg.stop();
    // As where walhook may not write the bucket.
    feed.nats.jetstream().await.get_key_value("walhook_walhook").await.unwrap().purge("run").await.unwrap();
    let nats_before = feed.last_sequence("WEBHOOKS").await;
    feed.pg = Postgres::builder().version("17").tools().copy_of(&data).start().await;
    // Before anything is written there: the stream is ahead of the WAL.
    let mut worker = feed.command("deliver").args(["--allow-network", "127.0.0.1"]).start();
    worker.logged("the stream has events from behind").await;
    let called = receiver.count();
    assert!(called <= 50, "{called}");
    ended_well(&mut worker);
    succeeds(&feed.pg, "setup", &[]);
    feed.pg.psql("SELECT pg_switch_wal()");
    insert(&feed.pg, 50, 9000);
    let mut refused = feed.run();
    assert_eq!(refused.wait(DEADLINE), 3, "{}", refused.log());
    assert!(refused.log().contains("PostgreSQL's WAL has no such commit there"), "{}", refused.log());
    assert_eq!(feed.last_sequence("WEBHOOKS").await, nats_before);
}

#[tokio::test]
async fn a_restore_to_an_earlier_point_goes_on_as_another_source_in_another_stream() {
    let receiver = Http::ok();
    let archive = open_folder();
    let conf = format!("archive_mode = on\narchive_command = 'cp %p {}/%f'", archive.path().display());
    let (mut feed, mut walhook) = original(&receiver, &conf).await;
    let folder = open_folder();
    let data = folder.path().join("data");
    feed.pg.tool("pg_basebackup", &["-c", "fast", "-D", &data.display().to_string()]);
    insert(&feed.pg, 50, 100);
    let target = feed.pg.psql("SELECT pg_current_wal_lsn()");
    // These are stored, and undone by the restore.
    insert(&feed.pg, 100, 150);
    exactly(&feed, 150).await;
    feed.pg.psql("SELECT pg_switch_wal()");
    ended_well(&mut walhook);
    feed.pg.stop();
    let store = feed.nats.jetstream().await.get_key_value("walhook_walhook").await.unwrap();
    let mark = store.get("run").await.unwrap().unwrap();
    std::fs::write(data.join("recovery.signal"), "").unwrap();
    let conf = format!(
        "archive_mode = off\nrestore_command = 'cp {}/%f %p'\nrecovery_target_lsn = '{target}'\nrecovery_target_action = promote",
        archive.path().display()
    );
    let restored = Postgres::builder().version("17").tools().copy_of(&data).conf(&conf).start().await;
    eventually("the end of the recovery", async || (restored.psql("SELECT pg_is_in_recovery()") == "f").then_some(()))
        .await;
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "100");
    feed.pg = restored;
    succeeds(&feed.pg, "setup", &[]);
    // The original may have counted on for the last time before the point of the restore: only the timeline tells then.
    let mut as_before: serde_json::Value = serde_json::from_slice(&mark).unwrap();
    as_before["beat"] = 1.into();
    store.put("run", as_before.to_string().into()).await.unwrap();
    let mut worker = feed.command("deliver").args(["--allow-network", "127.0.0.1"]).start();
    worker.logged("PostgreSQL is on timeline 2 now").await;
    ended_well(&mut worker);
    assert_eq!(receiver.count(), 0);
    as_before["beat"] = 1_000_000.into();
    store.put("run", as_before.to_string().into()).await.unwrap();
    refuses_all(&feed.pg, &feed.nats, &receiver, true).await;
    // The database is right. --same alone does not make the stream's end true.
    succeeds(&feed.pg, "adopt", &["--same", "--yes"]);
    let mut refused = feed.run();
    assert_eq!(refused.wait(DEADLINE), 3, "{}", refused.log());
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 150);
    feed.pg.psql("SELECT rule_nats_stream_create('SECOND', ARRAY['second.>'])");
    feed.pg.psql(
        "UPDATE rule_nats_config SET stream_name = 'SECOND', subject_prefix = 'second' WHERE config_name = 'default'",
    );
    feed.pg.psql("SELECT rule_webhook_enable_nats(1, 'second.w', 'nats')");
    let mut walhook = feed.streamer().args(["--source", "second"]).start();
    walhook.logged("slot taken").await;
    let done = feed.command("backfill").args(["--table", "t", "--source", "second"]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    feed.pg.psql("INSERT INTO t VALUES (7000, 'after')");
    feed.confirmed().await;
    ended_well(&mut walhook);
    // The rows that the database has, and the copy's own: those of `refuses_all`, which the slot saw, and the one after.
    let mut ids: Vec<i64> = feed.messages_of("SECOND").await.iter().map(|m| m.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.pop(), Some(7000));
    ids.sort_unstable();
    ids.dedup();
    let expected: Vec<i64> = (0..100).chain(5000..5010).collect();
    assert_eq!(ids, expected);
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 150);
}

/// A stream as `nats stream backup` keeps it: what the server said of it, and its files.
struct Snapshot {
    of: serde_json::Value,
    chunks: Vec<bytes::Bytes>,
}

async fn ask(client: &async_nats::Client, subject: String, request: &serde_json::Value) -> serde_json::Value {
    let answer = client.request(subject.clone(), request.to_string().into()).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{subject}: {answer}");
    answer
}

/// As `nats stream backup` does it.
async fn stream_backup(nats: &Nats, stream: &str) -> Snapshot {
    let client = nats.client().await;
    let inbox = client.new_inbox();
    let mut deliveries = client.subscribe(inbox.clone()).await.unwrap();
    let of = ask(&client, format!("$JS.API.STREAM.SNAPSHOT.{stream}"), &json!({ "deliver_subject": inbox })).await;
    let mut chunks = Vec::new();
    while let Some(chunk) = deliveries.next().await {
        if chunk.payload.is_empty() {
            break;
        }
        if let Some(reply) = chunk.reply {
            client.publish(reply, bytes::Bytes::new()).await.unwrap();
        }
        chunks.push(chunk.payload);
    }
    Snapshot { of, chunks }
}

/// As `nats stream restore` does it.
async fn stream_restore(nats: &Nats, stream: &str, snapshot: &Snapshot) {
    let client = nats.client().await;
    let request = json!({ "config": snapshot.of["config"], "state": snapshot.of["state"] });
    let begun = ask(&client, format!("$JS.API.STREAM.RESTORE.{stream}"), &request).await;
    let to = begun["deliver_subject"].as_str().unwrap().to_owned();
    for chunk in &snapshot.chunks {
        client.request(to.clone(), chunk.clone()).await.unwrap();
    }
    let done = client.request(to, bytes::Bytes::new()).await.unwrap();
    let done: serde_json::Value = serde_json::from_slice(&done.payload).unwrap();
    assert!(done["error"].is_null(), "{done}");
}

/// Removes the stream and brings it back as it was in the backup; walhook is stopped meanwhile.
async fn replaced_by(feed: &Feed, snapshot: &Snapshot) {
    feed.nats.jetstream().await.delete_stream("WEBHOOKS").await.unwrap();
    stream_restore(&feed.nats, "WEBHOOKS", snapshot).await;
}

/// A walhook with these options is refused before it publishes: the server says that the stream is a new one. The statement of its log
/// says that this is known.
async fn refused_and_accepted(feed: &Feed, mut refused: Walhook) {
    let stored = feed.last_sequence("WEBHOOKS").await;
    assert_eq!(refused.wait(DEADLINE), 3, "{}", refused.log());
    let log = refused.log();
    assert!(log.contains("it was made anew since"), "{log}");
    assert_eq!(feed.last_sequence("WEBHOOKS").await, stored, "nothing is published");
    let statement = &log[log.find("DELETE FROM").unwrap_or_else(|| panic!("{log}"))..];
    feed.pg.psql(statement.split(';').next().unwrap());
}

#[tokio::test]
async fn a_restored_stream_that_has_every_event_is_gone_on_with_also_on_another_server() {
    for version in ["2.10", "2.15"] {
        let mut feed = linked_on(Postgres::set_up().await, Nats::builder().version(version).start().await);
        let mut walhook = feed.run();
        insert(&feed.pg, 0, 100);
        feed.confirmed().await;
        ended_well(&mut walhook);
        let snapshot = stream_backup(&feed.nats, "WEBHOOKS").await;
        replaced_by(&feed, &snapshot).await;
        // A 2.10 leaves the stream the time when it was made.
        if version == "2.15" {
            refused_and_accepted(&feed, feed.run()).await;
        }
        let mut walhook = feed.run();
        insert(&feed.pg, 100, 150);
        exactly(&feed, 150).await;
        ended_well(&mut walhook);

        let snapshot = stream_backup(&feed.nats, "WEBHOOKS").await;
        let other = Nats::builder().version(version).start().await;
        stream_restore(&other, "WEBHOOKS", &snapshot).await;
        feed.pg.psql(&format!("SELECT rule_nats_configure('default', '{}')", other.url()));
        feed.nats = other;
        let mut walhook = feed.run();
        insert(&feed.pg, 150, 200);
        exactly(&feed, 200).await;
        ended_well(&mut walhook);
        let history = "SELECT count(*), count(DISTINCT sequence_number), max(sequence_number) FROM rule_nats_publish_history WHERE success";
        assert_eq!(feed.pg.psql(history), "200|200|200");
    }
}

#[tokio::test]
async fn a_restored_stream_that_lacks_events_is_filled_from_the_slot_where_confirming_was_delayed() {
    let feed = linked_on(Postgres::set_up().await, Nats::start().await);
    let run = || feed.streamer().env("WALHOOK_CONFIRM_DELAY_SECONDS", "3600").start();
    let mut walhook = run();
    insert(&feed.pg, 0, 100);
    exactly_stored(&feed, 100).await;
    // While walhook publishes: the backup is the stream as of one of its messages.
    let inserting = std::thread::spawn({
        let conninfo = feed.pg.conninfo();
        move || {
            support::runtime().block_on(async {
                let (client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                for id in 100..300 {
                    client.execute("INSERT INTO t VALUES ($1, 'x')", &[&id]).await.unwrap();
                }
            });
        }
    });
    let snapshot = stream_backup(&feed.nats, "WEBHOOKS").await;
    inserting.join().unwrap();
    exactly_stored(&feed, 300).await;
    ended_well(&mut walhook);
    replaced_by(&feed, &snapshot).await;
    let kept = feed.last_sequence("WEBHOOKS").await;
    assert!((100..=300).contains(&kept), "{kept}");
    refused_and_accepted(&feed, run()).await;
    let mut walhook = run();
    exactly_stored(&feed, 300).await;
    insert(&feed.pg, 300, 350);
    exactly_stored(&feed, 350).await;
    ended_well(&mut walhook);
}

/// Rows `0..count` are in the stream, each once and in order; nothing need be confirmed.
async fn exactly_stored(feed: &Feed, count: i64) {
    let all = feed.stored(u64::try_from(count).unwrap()).await;
    let ids: Vec<i64> = all.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (0..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_restored_stream_that_lacks_confirmed_events_is_refused_until_the_loss_is_accepted() {
    let feed = linked_on(Postgres::set_up().await, Nats::start().await);
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 100);
    feed.confirmed().await;
    // A worker of somebody's, which has taken 40.
    let consumer = json!({ "stream_name": "WEBHOOKS", "config": { "durable_name": "theirs", "ack_policy": "all" } });
    let client = feed.nats.client().await;
    ask(&client, "$JS.API.CONSUMER.DURABLE.CREATE.WEBHOOKS.theirs".to_owned(), &consumer).await;
    let took = async |count: usize| {
        let consumer: async_nats::jetstream::consumer::PullConsumer =
            feed.nats.jetstream().await.get_consumer_from_stream("theirs", "WEBHOOKS").await.unwrap();
        let mut messages = consumer.fetch().max_messages(count).messages().await.unwrap();
        let mut sequences = Vec::new();
        while let Some(message) = messages.next().await {
            let message = message.unwrap();
            sequences.push(message.info().unwrap().stream_sequence);
            message.double_ack().await.unwrap();
        }
        sequences
    };
    assert_eq!(took(40).await.last(), Some(&40));
    let snapshot = stream_backup(&feed.nats, "WEBHOOKS").await;
    insert(&feed.pg, 100, 130);
    exactly(&feed, 130).await;
    assert_eq!(took(30).await.last(), Some(&70));
    eventually("a checkpoint at the end", async || {
        let at = feed.pg.psql("SELECT sequence FROM rule_nats_checkpoints WHERE stream_name <> ''");
        (at == "130").then_some(())
    })
    .await;
    ended_well(&mut walhook);
    replaced_by(&feed, &snapshot).await;

    refused_and_accepted(&feed, feed.run()).await;
    // Which events are missing, the history knows.
    let lost = "SELECT count(*), min(sequence_number), max(sequence_number) FROM rule_nats_publish_history WHERE sequence_number > 100";
    assert_eq!(feed.pg.psql(lost), "30|101|130");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1000, 'after')");
    feed.confirmed().await;
    let ids: Vec<i64> = feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (0..100).chain([1000]).collect::<Vec<_>>());
    // The worker stands where it stood at the backup.
    assert_eq!(took(1).await, [41]);
    // Rows that a table still has are sent again as rows of a snapshot.
    let done = feed.command("backfill").args(["--table", "t"]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    feed.confirmed().await;
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 101 + 131);
    ended_well(&mut walhook);
}
