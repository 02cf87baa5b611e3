//! The publish history: a row for every event, each once, complete, and never in delivery's way.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::support;

use futures_util::StreamExt;
use support::{Nats, Postgres, Walhook, eventually, feed::Feed};

/// A linked table `items` and its webhook 1; the history keeps payloads, which distinguish rows here.
async fn linked() -> Feed {
    linked_on(Postgres::set_up().await).await
}

async fn linked_on(pg: Postgres) -> Feed {
    let feed = Feed::on(pg, Nats::start().await);
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', '{}')", feed.nats.url()));
    feed.pg.psql("UPDATE rule_nats_config SET history_payload = 'full'");
    feed.pg.psql(
        "SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>']);
         CREATE TABLE items (id bigint PRIMARY KEY, note text)",
    );
    feed.webhook("items");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 'items')");
    feed
}

fn insert(feed: &Feed, from: i64, upto: i64) {
    feed.pg.psql(&format!("INSERT INTO items SELECT i, 'note ' || i FROM generate_series({from}, {}) i", upto - 1));
}

/// Everything is confirmed, and each of the rows `0..count` is in the stream once and in the history once, at the sequence
/// that the history tells.
async fn all_are_recorded(feed: &Feed, count: i64) {
    feed.confirmed().await;
    let messages = feed.messages().await;
    let stored: Vec<_> = messages.iter().map(|m| format!("{} {}", m.header("Nats-Msg-Id"), m.sequence)).collect();
    let told = feed
        .pg
        .psql("SELECT event_id || ' ' || sequence_number FROM rule_nats_publish_history ORDER BY sequence_number");
    assert_eq!(told.lines().collect::<Vec<_>>(), stored);
    let rows = feed
        .pg
        .psql("SELECT count(*), count(DISTINCT payload -> 'id'), bool_and(success) FROM rule_nats_publish_history");
    assert_eq!(rows, format!("{count}|{count}|t"));
}

fn ended_well(walhook: &mut Walhook) {
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// The answer of `rule_nats_wait`.
fn outcome(feed: &Feed, event: &str) -> serde_json::Value {
    serde_json::from_str(&feed.pg.psql(&format!("CALL rule_nats_wait({event}, '20 seconds')"))).unwrap()
}

#[tokio::test]
async fn a_call_is_recorded_with_every_column_and_its_status_is_known() {
    let feed = linked().await;
    let mut walhook = feed.run();
    let event = feed.pg.psql(
        "SELECT rule_webhook_publish_nats(1, '{\"a\": \"x\\\\y\"}', 'mine', '{\"Trace\": \"t\", \"Authorization\": \"no\"}', 42, 'alice') ->> 'event_id'",
    );
    let told = outcome(&feed, &event);
    assert_eq!((told["status"].as_str(), told["stream"].as_str()), (Some("published"), Some("WEBHOOKS")), "{told}");
    assert_eq!((told["sequence"].as_u64(), told["message_id"].as_str()), (Some(1), Some("mine")), "{told}");
    assert!(told["latency_ms"].as_f64().is_some_and(|ms| ms > 0.0) && told["published_at"].is_string(), "{told}");
    let row = feed.pg.psql(
        "SELECT webhook_id, subject, payload, headers, message_id, sequence_number, success, error_message IS NULL,
                latency_ms > 0, triggered_by, rule_execution_id, webhook_event_id, stream_name,
                published_at BETWEEN now() - interval '1 minute' AND now(), expires_at > now() + interval '6 days',
                event_id LIKE 'walhook-%-0-1'
         FROM rule_nats_publish_history",
    );
    let expected =
        format!(r#"1|webhooks.items|{{"a": "x\\y"}}|{{"Trace": "t"}}|mine|1|t|t|t|alice|42|{event}|WEBHOOKS|t|t|t"#);
    assert_eq!(row, expected, "and no credential");

    // Nobody named: the database user. A row of a table: the table.
    feed.pg.psql("SELECT rule_webhook_call_unified(1, '[1]')");
    insert(&feed, 0, 1);
    feed.confirmed().await;
    let rows = feed.pg.psql(
        "SELECT triggered_by, payload FROM rule_nats_publish_history WHERE message_id <> 'mine' ORDER BY publish_id",
    );
    assert_eq!(rows, "postgres|[1]\npublic.items.insert|{\"id\": 0, \"note\": \"note 0\"}");
    let stats = feed.pg.psql("SELECT s ->> 'total_published', s ->> 'success_rate_pct', (s ->> 'p99_latency_ms')::numeric > 0 FROM rule_nats_stats(1, 1) s");
    assert_eq!(stats, "3|100.00|t");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn an_event_that_cannot_be_published_is_recorded_as_a_failure_with_its_reason() {
    let feed = linked().await;
    let mut walhook = feed.run();
    let elsewhere = "UPDATE rule_webhooks SET nats_subject = 'nowhere.at.all' WHERE webhook_id = 1";
    feed.pg.psql(elsewhere);
    let event = feed.pg.psql("SELECT rule_webhook_publish_nats(1, '{\"n\": 1}', NULL, NULL, 7) ->> 'event_id'");
    let told = outcome(&feed, &event);
    assert_eq!(told["status"], "failed", "{told}");
    assert!(told["error"].as_str().unwrap().contains("nowhere.at.all"), "{told}");
    // Too large is found out in the lane.
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'webhooks.items' WHERE webhook_id = 1");
    insert(&feed, 0, 1);
    let large = feed.pg.psql("SELECT rule_webhook_publish_nats(1, to_jsonb(repeat('x', 2000000))) ->> 'event_id'");
    let told = outcome(&feed, &large);
    assert!(told["error"].as_str().unwrap().contains("max_payload"), "{told}");
    // One of more than 1 MiB is kept once, in the dead letter.
    let kept = "SELECT length(payload) > 2000000 FROM rule_nats_dead_letters ORDER BY dead_letter_id DESC LIMIT 1";
    assert_eq!(feed.pg.psql(kept), "t");
    let rows = "SELECT success, payload ? 'sha256' AND (payload ->> 'bytes')::int > 2000000, rule_execution_id, sequence_number IS NULL, latency_ms IS NULL, stream_name
                FROM rule_nats_publish_history ORDER BY publish_id";
    assert_eq!(feed.pg.psql(rows), "f|f|7|t|t|\nt|f||f|f|WEBHOOKS\nf|t||t|t|WEBHOOKS");
    assert_eq!(feed.pg.psql("SELECT failed, success_rate_pct FROM nats_publish_summary"), "2|33.33");
    assert_eq!(feed.pg.psql("SELECT count(*) FROM nats_recent_failures WHERE error_message IS NOT NULL"), "2");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_configuration_says_how_much_is_kept_and_may_change_it_while_rows_flow() {
    let feed = linked().await;
    let mut walhook = feed.run();
    let keep = |history: &str, payload: &str| {
        feed.pg.psql(&format!("UPDATE rule_nats_config SET history = '{history}', history_payload = '{payload}'"));
    };
    let fail = || feed.pg.psql("SELECT rule_webhook_publish_nats(1, to_jsonb(repeat('x', 2000000)))");
    insert(&feed, 0, 1);
    keep("full", "hash");
    insert(&feed, 1, 2);
    keep("full", "none");
    insert(&feed, 2, 3);
    keep("full", "reference");
    insert(&feed, 3, 4);
    keep("failures", "hash");
    insert(&feed, 4, 5);
    fail();
    keep("off", "full");
    insert(&feed, 5, 6);
    fail();
    feed.stored(6).await;
    feed.confirmed().await;
    let rows =
        feed.pg.psql("SELECT success, left(payload::text, 60) FROM rule_nats_publish_history ORDER BY publish_id");
    let lines: Vec<_> = rows.lines().collect();
    assert_eq!((lines.len(), lines[0]), (5, r#"t|{"id": 0, "note": "note 0"}"#), "{rows}");
    assert_eq!((lines[2], lines[3]), ("t|null", "t|null"), "{rows}");
    assert!(lines[4].starts_with(r#"f|{"bytes": 2000002, "sha256": "#), "{rows}");
    // The digest is of the data as it was published.
    let digest = feed.pg.psql("SELECT payload FROM rule_nats_publish_history ORDER BY publish_id OFFSET 1 LIMIT 1");
    let expected = feed
        .pg
        .psql(r#"SELECT jsonb_build_object('bytes', 24, 'sha256', encode(sha256('{"id":1,"note":"note 1"}'), 'hex'))"#);
    assert_eq!(digest, expected);
    ended_well(&mut walhook);
}

#[tokio::test]
async fn kill_9_at_any_time_leaves_each_event_in_the_history_once() {
    let feed = linked().await;
    let mut from = 0;
    for round in 0..6i64 {
        let mut walhook = feed.run();
        for _ in 0..20 {
            insert(&feed, from, from + 50);
            from += 50;
        }
        // At another place each time: some rows are stored and not told, some told and not confirmed.
        let stored = u64::try_from(round * 1000 + 100 + 150 * round).unwrap();
        eventually("some rows to be stored", async || (feed.last_sequence("WEBHOOKS").await >= stored).then_some(()))
            .await;
        walhook.kill9();
    }
    let mut walhook = feed.run();
    all_are_recorded(&feed, from).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_stored_event_without_a_row_is_recorded_after_a_restart_with_its_sequence() {
    let feed = linked().await;
    let holder = feed.pg.client().await;
    holder.batch_execute("BEGIN; LOCK TABLE rule_nats_publish_history IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut walhook = feed.run();
    feed.confirmed().await;
    insert(&feed, 0, 700);
    feed.stored(700).await;
    walhook.kill9();
    // Holes in the stream and strangers behind it do not lead it astray.
    let jetstream = async_nats::jetstream::new(feed.nats.client().await);
    let stream = jetstream.get_stream("WEBHOOKS").await.unwrap();
    stream.delete_message(1).await.unwrap();
    stream.delete_message(300).await.unwrap();
    jetstream.publish("webhooks.stranger", "{}".into()).await.unwrap().await.unwrap();
    holder.batch_execute("ROLLBACK").await.unwrap();
    let mut walhook = feed.run();
    insert(&feed, 700, 800);
    feed.confirmed().await;
    let rows =
        "SELECT count(*), count(DISTINCT event_id), bool_and(success), count(*) FILTER (WHERE sequence_number IS NULL),
                       count(*) FILTER (WHERE sequence_number = (payload ->> 'id')::int + 1),
                       count(*) FILTER (WHERE sequence_number = (payload ->> 'id')::int + 2)
                FROM rule_nats_publish_history";
    assert_eq!(feed.pg.psql(rows), "800|800|t|2|698|100");
    let removed = "SELECT payload -> 'id' FROM rule_nats_publish_history WHERE sequence_number IS NULL ORDER BY 1";
    assert_eq!(feed.pg.psql(removed), "0\n299", "stored, and removed since");
    ended_well(&mut walhook);
}

/// Whoever holds a lock on the history, so that events are stored and not told.
async fn lock(feed: &Feed) -> tokio_postgres::Client {
    let holder = feed.pg.client().await;
    holder.batch_execute("BEGIN; LOCK TABLE rule_nats_publish_history IN ACCESS EXCLUSIVE MODE").await.unwrap();
    holder
}

/// On which messages of the stream are asked for.
const LOOK_UP: &str = "$JS.API.STREAM.MSG.GET.WEBHOOKS";

/// Counts the look-ups from here on.
async fn watch(feed: &Feed) -> (async_nats::Client, async_nats::Subscriber) {
    let client = feed.nats.client().await;
    let subscriber = client.subscribe(LOOK_UP).await.unwrap();
    client.flush().await.unwrap();
    (client, subscriber)
}

/// How many came until now.
async fn counted((client, mut subscriber): (async_nats::Client, async_nats::Subscriber)) -> usize {
    client.publish(LOOK_UP, "end".into()).await.unwrap();
    let mut count = 0;
    while subscriber.next().await.unwrap().payload != "end" {
        count += 1;
    }
    count
}

#[tokio::test]
async fn a_dead_letter_between_stored_events_is_recorded_as_a_failure_and_each_event_with_its_own_sequence() {
    let feed = linked().await;
    let holder = lock(&feed).await;
    let mut walhook = feed.run();
    insert(&feed, 0, 100);
    feed.stored(100).await;
    // As many messages as events: counting places would give the letters a sequence.
    let jetstream = feed.nats.jetstream().await;
    for _ in 0..2 {
        jetstream.publish("webhooks.stranger", "{}".into()).await.unwrap().await.unwrap();
    }
    let large = || feed.pg.psql("SELECT rule_webhook_publish_nats(1, to_jsonb(repeat('x', 2000000))) ->> 'event_id'");
    let (dead, lost) = (large(), large());
    let letters = "SELECT count(*) FROM rule_nats_dead_letters";
    eventually("the dead letters", async || (feed.pg.psql(letters) == "2").then_some(())).await;
    // Alone, so that nothing behind it is stored in its place.
    insert(&feed, 100, 101);
    feed.stored(103).await;
    insert(&feed, 101, 200);
    feed.stored(202).await;
    walhook.kill9();
    // Nobody knows of the second one any more.
    feed.pg.psql("DELETE FROM rule_nats_dead_letters WHERE dead_letter_id = (SELECT max(dead_letter_id) FROM rule_nats_dead_letters)");
    holder.batch_execute("ROLLBACK").await.unwrap();
    let mut walhook = feed.run();
    feed.confirmed().await;
    let rows = "SELECT count(*), count(*) FILTER (WHERE success), count(*) FILTER (WHERE success AND sequence_number =
                       (payload ->> 'id')::int + CASE WHEN (payload ->> 'id')::int < 100 THEN 1 ELSE 3 END),
                       count(sequence_number)
                FROM rule_nats_publish_history";
    assert_eq!(feed.pg.psql(rows), "202|200|200|200");
    let (dead, lost) = (outcome(&feed, &dead), outcome(&feed, &lost));
    assert_eq!((dead["status"].as_str(), lost["status"].as_str()), (Some("failed"), Some("unknown")), "{dead} {lost}");
    assert!(dead["error"].as_str().unwrap().contains("max_payload"), "{dead}");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn sequences_of_a_backlog_are_looked_up_with_about_one_request_for_each_event() {
    const EVENTS: usize = 4000;
    let feed = linked().await;
    let holder = lock(&feed).await;
    let mut walhook = feed.run();
    feed.confirmed().await;
    insert(&feed, 0, 4000);
    feed.stored(4000).await;
    walhook.kill9();
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    for sequence in (5..4000).step_by(10) {
        stream.delete_message(sequence).await.unwrap();
    }
    feed.pg.psql("UPDATE rule_webhooks SET enabled = false");
    holder.batch_execute("ROLLBACK").await.unwrap();
    let watch = watch(&feed).await;
    let mut walhook = feed.run();
    feed.confirmed().await;
    let asked = counted(watch).await;
    assert!(asked <= EVENTS * 5 / 4, "{asked} requests for {EVENTS} events");
    let rows =
        "SELECT count(*), bool_and(success), count(*) FILTER (WHERE sequence_number = (payload ->> 'id')::int + 1),
                       count(*) FILTER (WHERE sequence_number IS NULL AND (payload ->> 'id')::int % 10 = 4)
                FROM rule_nats_publish_history";
    assert_eq!(feed.pg.psql(rows), "4000|t|3600|400");
    assert!(!walhook.log().contains("reading them again"), "{}", walhook.log());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn an_event_purged_before_it_was_recorded_has_no_sequence_rather_than_a_wrong_one() {
    let feed = linked().await;
    let holder = lock(&feed).await;
    let mut walhook = feed.run();
    feed.confirmed().await;
    insert(&feed, 0, 1000);
    feed.stored(1000).await;
    walhook.kill9();
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    stream.purge().keep(600).await.unwrap();
    holder.batch_execute("ROLLBACK").await.unwrap();
    let watch = watch(&feed).await;
    let mut walhook = feed.run();
    feed.confirmed().await;
    let asked = counted(watch).await;
    assert!(asked <= 1250, "{asked} requests for 1000 events");
    let rows = "SELECT count(*), bool_and(success), count(sequence_number),
                       count(*) FILTER (WHERE sequence_number = (payload ->> 'id')::int + 1)
                FROM rule_nats_publish_history";
    assert_eq!(feed.pg.psql(rows), "1000|t|600|600");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn thousands_of_messages_of_others_hide_no_sequence() {
    let feed = linked().await;
    feed.pg.psql("UPDATE rule_nats_streams SET ordering = 'shared'");
    let holder = lock(&feed).await;
    let mut walhook = feed.run();
    let strangers = async || {
        let client = feed.nats.client().await;
        for _ in 0..6000 {
            client.publish("webhooks.stranger", "{}".into()).await.unwrap();
        }
        client.flush().await.unwrap();
    };
    insert(&feed, 0, 100);
    feed.stored(100).await;
    strangers().await;
    feed.stored(6100).await;
    insert(&feed, 100, 200);
    feed.stored(6200).await;
    walhook.kill9();
    holder.batch_execute("ROLLBACK").await.unwrap();
    let mut walhook = feed.run();
    feed.confirmed().await;
    let rows = "SELECT count(*), bool_and(success), count(*) FILTER (WHERE sequence_number =
                       (payload ->> 'id')::int + CASE WHEN (payload ->> 'id')::int < 100 THEN 1 ELSE 6001 END)
                FROM rule_nats_publish_history";
    assert_eq!(feed.pg.psql(rows), "200|t|200");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn what_core_nats_brought_into_the_stream_hides_no_sequence() {
    let feed = linked().await;
    let mut walhook = feed.run();
    feed.confirmed().await;
    let through_jetstream =
        |enabled: bool| feed.pg.psql(&format!("UPDATE rule_nats_config SET jetstream_enabled = {enabled}"));
    let (blocks, per_block, others) = (3, 100, 700);
    insert(&feed, 0, 1);
    feed.stored(1).await;
    through_jetstream(false);
    insert(&feed, 10_000, 10_000 + others);
    feed.stored(1 + 700).await;
    through_jetstream(true);
    insert(&feed, 1, 2);
    feed.confirmed().await;
    let holder = lock(&feed).await;
    // On the same subject between and behind them: what core NATS brings counts as a stranger's.
    let client = feed.nats.client().await;
    let mut stored = 702;
    for block in 0..blocks {
        insert(&feed, 2 + block * per_block, 2 + (block + 1) * per_block);
        stored += 100;
        feed.stored(stored).await;
        for _ in 0..others {
            client.publish("webhooks.items", "{}".into()).await.unwrap();
        }
        client.flush().await.unwrap();
        stored += 700;
        feed.stored(stored).await;
    }
    walhook.kill9();
    holder.batch_execute("ROLLBACK").await.unwrap();
    let watch = watch(&feed).await;
    let mut walhook = feed.run();
    feed.confirmed().await;
    let asked = counted(watch).await;
    let rows = "SELECT count(*), bool_and(success), count(sequence_number)
                FROM rule_nats_publish_history WHERE (payload ->> 'id')::int < 10000";
    assert_eq!(feed.pg.psql(rows), "302|t|302", "{}", walhook.log());
    let told = feed.pg.psql(
        "SELECT event_id || ' ' || sequence_number FROM rule_nats_publish_history
         WHERE (payload ->> 'id')::int < 10000 ORDER BY sequence_number",
    );
    let messages = feed.messages().await;
    let stored = messages.iter().filter(|message| message.headers.contains_key("Nats-Expected-Stream"));
    let stored: Vec<_> = stored.map(|m| format!("{} {}", m.header("Nats-Msg-Id"), m.sequence)).collect();
    assert_eq!(told.lines().collect::<Vec<_>>(), stored);
    // Messages of others are read a few times each, not for each event.
    assert!(asked <= 4 * messages.len(), "{asked} requests among {} messages", messages.len());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn behind_a_locked_history_events_flow_on_and_only_the_confirmation_waits() {
    let feed = linked().await;
    // Little room, so that rows have to be left out and read again.
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("walhook.toml");
    std::fs::write(&settings, "window_bytes = 65536\n").unwrap();
    let mut walhook = feed.streamer().arg("--config").arg(&settings).start();
    insert(&feed, 0, 10);
    feed.confirmed().await;
    let confirmed = || feed.pg.psql("SELECT confirmed_flush_lsn FROM pg_replication_slots");
    let before = confirmed();
    let holder = feed.pg.client().await;
    holder.batch_execute("BEGIN; LOCK TABLE rule_nats_publish_history IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for batch in 0..30 {
        insert(&feed, 10 + batch * 100, 110 + batch * 100);
    }
    feed.stored(3010).await;
    // Dead letters are delivery's own business and go on too.
    feed.pg.psql("SELECT rule_webhook_publish_nats(1, to_jsonb(repeat('x', 2000000)))");
    eventually("the dead letter", async || {
        (feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters") == "1").then_some(())
    })
    .await;
    insert(&feed, 3010, 3020);
    feed.stored(3020).await;
    assert_eq!(feed.pg.psql(&format!("SELECT '{}'::pg_lsn - '{before}'::pg_lsn < 100000", confirmed())), "t");
    holder.batch_execute("ROLLBACK").await.unwrap();
    feed.confirmed().await;
    let rows = "SELECT count(*), count(DISTINCT payload -> 'id'), count(*) FILTER (WHERE NOT success),
                       count(*) FILTER (WHERE success AND sequence_number = (payload ->> 'id')::int + 1)
                FROM rule_nats_publish_history";
    assert_eq!(feed.pg.psql(rows), "3021|3020|1|3020");
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 3020, "nothing was sent twice");
    assert!(walhook.log().contains("reading them again from"), "{}", walhook.log());
    ended_well(&mut walhook);
}

/// The other half of a configuration begins when the messages of the first are settled, and waits for no row of the history.
#[tokio::test]
async fn a_switch_of_jetstream_waits_for_no_locked_history() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 0, 10);
    feed.confirmed().await;
    let holder = lock(&feed).await;
    let mut count = 10;
    for (round, enabled) in [false, true, false, true].into_iter().enumerate() {
        // Some before the switch, so that its half is not idle.
        insert(&feed, count, count + 10);
        feed.pg.psql(&format!("UPDATE rule_nats_config SET jetstream_enabled = {enabled}"));
        insert(&feed, count + 10, count + 20);
        count += 20;
        // The stream takes what goes to core NATS as well.
        feed.stored(u64::try_from(count).unwrap()).await;
        assert_eq!(feed.last_sequence("WEBHOOKS").await, u64::try_from(count).unwrap(), "round {round}");
    }
    holder.batch_execute("ROLLBACK").await.unwrap();
    feed.confirmed().await;
    let ids: BTreeSet<i64> =
        feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (0..count).collect(), "{}", walhook.log());
    let rows = "SELECT count(*), count(DISTINCT payload -> 'id'), count(*) FILTER (WHERE success) FROM rule_nats_publish_history";
    assert_eq!(feed.pg.psql(rows), "90|90|90");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_history_that_refuses_rows_costs_them_loudly_and_holds_up_nothing() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed, 0, 5);
    feed.confirmed().await;
    let lost = || feed.pg.psql("SELECT history_lost FROM rule_cdc_status");
    let told = async |count: &str| {
        eventually(&format!("{count} rows reported as lost"), async || (lost() == count).then_some(())).await;
    };
    // One row in a batch.
    feed.pg.psql("ALTER TABLE rule_nats_publish_history ADD CONSTRAINT mine CHECK (payload ->> 'note' <> 'note 7')");
    insert(&feed, 5, 10);
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history"), "9");
    walhook.logged("refused 1 rows").await;
    walhook.logged("\"mine\"").await;
    // JSON that jsonb cannot hold is told as far as it can be.
    feed.pg.psql("CREATE TABLE raw (id int PRIMARY KEY, doc json); SELECT rule_webhook_link_table(1, 'raw')");
    feed.pg.psql(r#"INSERT INTO raw VALUES (1, '{"a": "\u0000"}')"#);
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT success FROM rule_nats_publish_history WHERE payload ? 'unstorable'"), "t");
    // All of them.
    feed.pg.psql("ALTER TABLE rule_nats_publish_history RENAME TO elsewhere");
    insert(&feed, 10, 15);
    feed.confirmed().await;
    walhook.logged("does not exist").await;
    feed.pg.psql("ALTER TABLE elsewhere RENAME TO rule_nats_publish_history");
    insert(&feed, 15, 20);
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history"), "15");
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 21);
    told("6").await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_webhook_deleted_before_its_row_is_written_costs_that_row_alone() {
    let feed = linked().await;
    feed.webhook("other");
    let mut walhook = feed.run();
    let holder = feed.pg.client().await;
    holder.batch_execute("BEGIN; LOCK TABLE rule_nats_publish_history IN EXCLUSIVE MODE").await.unwrap();
    feed.pg.psql("SELECT rule_webhook_publish_nats(2, '{}')");
    insert(&feed, 0, 10);
    feed.stored(11).await;
    holder.batch_execute("DELETE FROM rule_webhooks WHERE webhook_id = 2; COMMIT").await.unwrap();
    feed.confirmed().await;
    assert_eq!(
        feed.pg.psql("SELECT count(*), count(*) FILTER (WHERE webhook_id = 1) FROM rule_nats_publish_history"),
        "10|10"
    );
    walhook.logged("refused 1 rows").await;
    walhook.logged("webhook 2 does not exist any more").await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn rows_that_have_expired_are_deleted_and_the_others_stay() {
    let feed = linked().await;
    feed.pg.psql(
        "INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, expires_at)
         SELECT 1, 's', '{}', true, now() - interval '1 second' * (i - 100) FROM generate_series(1, 12000) i",
    );
    let mut walhook = feed.run();
    eventually("expired rows to go", async || {
        (feed.pg.psql("SELECT count(*) < 110 FROM rule_nats_publish_history") == "t").then_some(())
    })
    .await;
    assert_eq!(
        feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history WHERE expires_at < now() - interval '60 seconds'"),
        "0"
    );
    ended_well(&mut walhook);
}

/// The partitions of today and tomorrow cannot be made: their names are taken.
const TAKEN: &str = "DO $$ BEGIN FOR i IN 0..1 LOOP EXECUTE format('CREATE TABLE rule_nats_publish_history_%s ()',
    to_char(now() AT TIME ZONE 'UTC' + i * interval '1 day', 'YYYYMMDD')); END LOOP; END $$";

/// What is said of the history by the tables that its rows are in: its own, and a partition.
const PLACES: &str = "SELECT count(*) FILTER (WHERE tableoid = 'rule_nats_publish_history'::regclass),
    count(*) FILTER (WHERE tableoid <> 'rule_nats_publish_history'::regclass) FROM rule_nats_publish_history";

#[tokio::test]
async fn rows_of_the_layout_before_are_read_by_the_same_name_and_no_event_has_a_second_row_in_a_partition() {
    for version in ["14", "18"] {
        let feed = linked_on(Postgres::builder().version(version).set_up().start().await).await;
        // As 0.2.0 wrote them: into the table itself.
        feed.pg.psql(TAKEN);
        let mut from = 0;
        for round in 0..6i64 {
            if round == 3 {
                feed.pg.psql(&TAKEN.replace("CREATE TABLE", "DROP TABLE").replace("%s ()", "%s"));
            }
            let mut walhook = feed.run();
            if round < 3 {
                walhook.logged("cannot make the partition").await;
            }
            for _ in 0..20 {
                insert(&feed, from, from + 50);
                from += 50;
            }
            // At another place each time: what is in the history is not confirmed yet.
            let written = from - 900 + 120 * round;
            eventually("some rows to be written", async || {
                let count = feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history");
                (count.parse::<i64>().unwrap() >= written).then_some(())
            })
            .await;
            walhook.kill9();
        }
        let mut walhook = feed.run();
        all_are_recorded(&feed, from).await;
        let places = feed.pg.psql(PLACES);
        let (own, of_partitions) = places.split_once('|').unwrap();
        let (own, of_partitions): (i64, i64) = (own.parse().unwrap(), of_partitions.parse().unwrap());
        assert!(own >= 2000 && of_partitions >= 2000, "PostgreSQL {version}: {places}");
        // Where there is no row in the table itself any more, what a killed run has written is known by the partitions.
        ended_well(&mut walhook);
        feed.pg.psql("DELETE FROM ONLY rule_nats_publish_history");
        for _ in 0..3 {
            let mut walhook = feed.run();
            let before = feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history").parse::<i64>().unwrap();
            insert(&feed, from, from + 1000);
            from += 1000;
            eventually("some rows to be written", async || {
                let count = feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history");
                (count.parse::<i64>().unwrap() > before).then_some(())
            })
            .await;
            walhook.kill9();
        }
        let mut walhook = feed.run();
        feed.confirmed().await;
        let rows =
            "SELECT count(*), count(DISTINCT event_id), count(DISTINCT sequence_number) FROM rule_nats_publish_history";
        let expected = from - own;
        assert_eq!(feed.pg.psql(rows), format!("{expected}|{expected}|{expected}"), "PostgreSQL {version}");
        ended_well(&mut walhook);
    }
}

#[tokio::test]
async fn a_partition_that_has_expired_is_dropped_and_one_that_somebody_reads_later() {
    let feed = linked().await;
    for (days, expires) in [(9, "-1 day"), (10, "-2 days"), (11, "1 day")] {
        feed.pg.psql(&format!("SELECT walhook.rule_nats_history_make(now() - interval '{days} days')"));
        let name = feed.pg.psql("SELECT partition FROM rule_nats_history_partitions() ORDER BY day LIMIT 1");
        feed.pg.psql(&format!(
            "INSERT INTO {name} (webhook_id, subject, payload, success, expires_at) \
             SELECT 1, 's', '{{}}', true, now() + interval '{expires}' FROM generate_series(1, 1000)"
        ));
    }
    let old = "SELECT string_agg((current_date - to_date(day, 'YYYYMMDD'))::text, ' ' ORDER BY day) FROM rule_nats_history_partitions()
               WHERE day < to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')";
    assert_eq!(feed.pg.psql(old), "11 10 9");
    // A long report reads one of them, and all of them.
    let reader = feed.pg.client().await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM rule_nats_publish_history").await.unwrap();
    let mut walhook = feed.run();
    walhook.logged("cannot drop the expired partition").await;
    insert(&feed, 0, 100);
    // Neither publishing nor the history waits for the reader.
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history"), "3100");
    reader.batch_execute("COMMIT").await.unwrap();
    ended_well(&mut walhook);
    let mut walhook = feed.run();
    eventually("expired partitions to be dropped", async || (feed.pg.psql(old) == "11").then_some(())).await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history"), "1100");
    assert!(walhook.log().contains("dropped a partition"), "{}", walhook.log());
    ended_well(&mut walhook);
}
