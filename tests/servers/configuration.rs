//! Configuration takes effect at the commit that made it, at the exact row, without a restart; a bad row is set aside
//! alone.

#![allow(clippy::unwrap_used)]

use crate::support;

use support::{Nats, Postgres, UNCHECKED, eventually, feed::Feed, feed::Message};

/// A feed whose table `t` is linked to webhook `first` (id 1, subject `webhooks.first`), and walhook running on it.
async fn running() -> (Feed, support::Walhook) {
    let feed = Feed::start().await;
    let id = feed.webhook("first");
    assert_eq!(id, 1);
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, kind text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let mut walhook = feed.run();
    walhook.logged("stream opened").await;
    (feed, walhook)
}

/// Row `from`; in one transaction a row, the change and a row; then another row: four rows, the change in their midst.
fn around(feed: &Feed, from: u32, change: &str) {
    let row = |offset: u32| {
        let id = from + offset;
        let kind = if id.is_multiple_of(2) { "even" } else { "odd" };
        format!("INSERT INTO t VALUES ({id}, '{kind}')")
    };
    feed.pg.psql(&row(0));
    feed.pg.psql(&format!("BEGIN; {}; {change}; {}; COMMIT", row(1), row(2)));
    feed.pg.psql(&row(3));
}

/// Subject and row id of each message.
fn seen(messages: &[Message]) -> Vec<(&str, i64)> {
    messages.iter().map(|message| (message.subject.as_str(), message.data()["id"].as_i64().unwrap())).collect()
}

/// Waits until all that is committed is confirmed; then what is not in the stream never comes.
async fn settled(feed: &Feed) -> Vec<Message> {
    feed.confirmed().await;
    feed.messages().await
}

#[tokio::test]
async fn a_link_takes_effect_at_the_row_after_it_and_ends_at_the_row_before_its_end() {
    let (feed, mut walhook) = running().await;
    feed.pg.psql("DELETE FROM rule_webhook_links");
    around(&feed, 0, "SELECT rule_webhook_link_table(1, 't')");
    around(&feed, 10, "SELECT rule_webhook_unlink_table(1, 't')");
    around(&feed, 20, "SELECT rule_webhook_link_table(1, 't', ARRAY['insert'])");
    around(&feed, 30, "DELETE FROM rule_webhook_links");
    around(&feed, 40, "SELECT rule_webhook_link_table('first', 't')");
    around(&feed, 50, "TRUNCATE rule_webhook_links");
    around(&feed, 60, "SELECT rule_webhook_link_table(1, 't')");
    around(&feed, 70, "UPDATE rule_webhook_links SET enabled = false");
    let ids: Vec<_> = seen(&settled(&feed).await).into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, [2, 3, 10, 11, 22, 23, 30, 31, 42, 43, 50, 51, 62, 63, 70, 71]);
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_subject_changes_between_two_rows_of_one_transaction() {
    let (feed, mut walhook) = running().await;
    around(&feed, 0, "UPDATE rule_webhooks SET nats_subject = 'webhooks.second'");
    around(&feed, 10, "UPDATE rule_webhook_links SET subject_template = 'webhooks.{kind}.{op}'");
    around(&feed, 20, "UPDATE rule_webhook_links SET subject_template = NULL");
    around(&feed, 30, "UPDATE rule_webhooks SET nats_subject = NULL, webhook_name = 'it''s new'");
    let messages = settled(&feed).await;
    let (first, second) = ("webhooks.first", "webhooks.second");
    assert_eq!(
        seen(&messages),
        [
            (first, 0),
            (first, 1),
            (second, 2),
            (second, 3),
            (second, 10),
            (second, 11),
            ("webhooks.even.insert", 12),
            ("webhooks.odd.insert", 13),
            ("webhooks.even.insert", 20),
            ("webhooks.odd.insert", 21),
            (second, 22),
            (second, 23),
            (second, 30),
            (second, 31),
            ("webhooks.it%27s%20new", 32),
            ("webhooks.it%27s%20new", 33),
        ]
    );
    let names: Vec<_> =
        messages[12..].iter().map(|message| message.payload["webhook_name"].as_str().unwrap()).collect();
    assert_eq!(names, ["first", "first", "it's new", "it's new"]);
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn every_switch_of_a_webhook_turns_it_off_and_on_at_the_exact_row() {
    let (feed, mut walhook) = running().await;
    let mut expected = Vec::new();
    let mut from = 0;
    for (off, on) in [
        ("enabled = false", "enabled = true"),
        ("nats_enabled = false", "nats_enabled = true"),
        ("publish_mode = 'queue'", "publish_mode = 'both'"),
    ] {
        around(&feed, from, &format!("UPDATE rule_webhooks SET {off} WHERE webhook_id = 1"));
        around(&feed, from + 10, &format!("UPDATE rule_webhooks SET {on} WHERE webhook_id = 1"));
        expected.extend([from, from + 1, from + 12, from + 13].map(i64::from));
        from += 20;
    }
    let ids: Vec<_> = seen(&settled(&feed).await).into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, expected);
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_filter_and_a_list_of_columns_take_effect_at_the_exact_row() {
    let (feed, mut walhook) = running().await;
    around(&feed, 0, r#"UPDATE rule_webhook_links SET filter = '{"kind": "even"}'"#);
    around(&feed, 10, "UPDATE rule_webhook_links SET filter = NULL, columns = '{id}'");
    around(&feed, 20, "UPDATE rule_webhook_links SET columns = NULL");
    let messages = settled(&feed).await;
    let ids: Vec<_> = seen(&messages).into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, [0, 1, 2, 10, 12, 13, 20, 21, 22, 23]);
    let with_kind: Vec<_> = messages.iter().map(|message| message.data().get("kind").is_some()).collect();
    assert_eq!(with_kind, [true, true, true, true, false, false, false, false, true, true]);
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_new_webhook_and_its_link_in_one_transaction_begin_at_the_next_row() {
    let (feed, mut walhook) = running().await;
    around(
        &feed,
        0,
        "INSERT INTO rule_webhooks (webhook_id, webhook_name, url, nats_enabled, publish_mode) \
             VALUES (7, 'seventh', 'https://example.com', true, 'nats'); SELECT rule_webhook_link_table(7, 't')",
    );
    around(&feed, 10, "DELETE FROM rule_webhooks WHERE webhook_id = 1");
    let messages = settled(&feed).await;
    let (first, seventh) = ("webhooks.first", "webhooks.seventh");
    assert_eq!(
        seen(&messages),
        [
            (first, 0),
            (first, 1),
            (first, 2),
            (seventh, 2),
            (first, 3),
            (seventh, 3),
            (first, 10),
            (seventh, 10),
            (first, 11),
            (seventh, 11),
            (seventh, 12),
            (seventh, 13),
        ],
        "in the order of rows, and for one row in the order of webhooks"
    );
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_change_that_is_rolled_back_has_no_effect() {
    let (feed, mut walhook) = running().await;
    feed.pg.psql("BEGIN; UPDATE rule_webhooks SET nats_subject = 'webhooks.never'; INSERT INTO t VALUES (1); ROLLBACK");
    feed.pg.psql(
        "BEGIN; INSERT INTO t VALUES (2); SAVEPOINT s; TRUNCATE rule_webhook_links; INSERT INTO t VALUES (3); \
         ROLLBACK TO s; INSERT INTO t VALUES (4); COMMIT",
    );
    assert_eq!(seen(&settled(&feed).await), [("webhooks.first", 2), ("webhooks.first", 4)]);
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_new_stream_row_is_made_into_a_stream_and_takes_events_from_the_exact_row() {
    let (feed, mut walhook) = running().await;
    around(
        &feed,
        0,
        "SELECT rule_nats_stream_create('EVENTS', ARRAY['events.>']); \
         UPDATE rule_webhooks SET nats_subject = 'events.t'",
    );
    around(&feed, 10, "UPDATE rule_webhooks SET nats_subject = 'webhooks.first'");
    feed.confirmed().await;
    let default = feed.messages().await;
    let first = "webhooks.first";
    assert_eq!(seen(&default), [(first, 0), (first, 1), (first, 12), (first, 13)]);
    let events = feed.messages_of("EVENTS").await;
    assert_eq!(seen(&events), [2, 3, 10, 11].map(|id| ("events.t", id)));
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_stream_row_that_gains_a_subject_has_jetstream_take_it() {
    let (feed, mut walhook) = running().await;
    feed.pg.psql("SELECT rule_nats_stream_create('EVENTS', ARRAY['events.a'])");
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'events.a'");
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.pg.psql("UPDATE rule_nats_streams SET subjects = '{events.a,events.b}'");
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'events.b'");
    feed.pg.psql("INSERT INTO t VALUES (2)");
    feed.confirmed().await;
    assert_eq!(seen(&feed.messages_of("EVENTS").await), [("events.a", 1), ("events.b", 2)]);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_stream_row_that_wants_what_another_stream_has_gets_none_of_it_and_says_so() {
    let (feed, mut walhook) = running().await;
    // Rows from before the database checked them.
    feed.pg.psql("ALTER TABLE rule_nats_streams DISABLE TRIGGER USER");
    around(
        &feed,
        0,
        "INSERT INTO rule_nats_streams (config_id, stream_name, subjects) \
             VALUES (1, 'GREEDY', '{webhooks.first,audit.>,a b}'), (1, 'BAD.NAME', '{x}'), (1, 'EMPTY', '{}'); \
         UPDATE rule_webhook_links SET subject_template = 'audit.{op}'",
    );
    around(&feed, 10, "UPDATE rule_webhook_links SET subject_template = NULL");
    feed.confirmed().await;
    assert_eq!(seen(&feed.messages().await), [0, 1, 12, 13].map(|id| ("webhooks.first", id)));
    assert_eq!(seen(&feed.messages_of("GREEDY").await), [2, 3, 10, 11].map(|id| ("audit.insert", id)));
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    let log = walhook.log();
    for once in [
        "does not take \"webhooks.first\": \"webhooks.>\" goes to stream \"WEBHOOKS\"",
        "does not take \"a b\"",
        "\"BAD.NAME\" of NATS configuration \"default\" is set aside",
        "\"EMPTY\" of NATS configuration \"default\" is set aside",
    ] {
        assert_eq!(log.matches(once).count(), 1, "{once:?} in\n{log}");
    }
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn another_nats_configuration_takes_over_at_the_exact_row() {
    let (feed, mut walhook) = running().await;
    let other = Nats::start().await;
    around(
        &feed,
        0,
        &format!(
            "SELECT rule_nats_configure('other', '{}', p_stream_name => 'WEBHOOKS'); \
             UPDATE rule_webhooks SET nats_config_id = (SELECT config_id FROM rule_nats_config WHERE config_name = 'other')",
            other.url()
        ),
    );
    feed.confirmed().await;
    assert_eq!(seen(&feed.messages().await), [("webhooks.first", 0), ("webhooks.first", 1)]);
    let Feed { pg, nats } = feed;
    let there = Feed { pg, nats: other };
    assert_eq!(seen(&there.messages().await), [("webhooks.first", 2), ("webhooks.first", 3)]);
    // The row of a configuration in use moves to another server, and nothing is lost on the way.
    let third = Nats::start().await;
    there.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{}' WHERE config_name = 'other'", third.url()));
    there.pg.psql("INSERT INTO t VALUES (10)");
    there.confirmed().await;
    let Feed { pg, .. } = there;
    let there = Feed { pg, nats: third };
    assert_eq!(seen(&there.messages().await), [("webhooks.first", 10)]);
    assert_eq!(walhook.terminate(), 0);
    drop(nats);
}

#[tokio::test]
async fn a_bad_webhook_is_set_aside_alone_and_flows_again_once_it_is_mended() {
    let (feed, mut walhook) = running().await;
    let bad = feed.webhook("second");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({bad}, 't')"));
    let unusable = format!("UPDATE rule_webhooks SET nats_subject = 'webhooks.*' WHERE webhook_id = {bad}");
    let refused = feed.pg.try_psql(&unusable).unwrap_err().to_string();
    assert!(refused.contains("db error"), "{refused}");
    around(&feed, 0, &format!("{UNCHECKED}; {unusable}"));
    around(&feed, 10, &format!("UPDATE rule_webhooks SET nats_subject = 'webhooks.good' WHERE webhook_id = {bad}"));
    let messages = settled(&feed).await;
    let of = |webhook: i32| {
        let mine = messages.iter().filter(|message| message.payload["webhook_id"] == webhook);
        mine.map(|message| message.data()["id"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(of(1), [0, 1, 2, 3, 10, 11, 12, 13], "the other webhook never stops");
    assert_eq!(of(bad), [0, 1, 12, 13]);
    let letters = feed.pg.psql(
        "SELECT webhook_name, convert_from(payload, 'UTF8')::jsonb -> 'data' ->> 'id', reason LIKE '%wildcard%' \
         FROM rule_nats_dead_letters ORDER BY dead_letter_id",
    );
    assert_eq!(letters, "second|2|t\nsecond|3|t\nsecond|10|t\nsecond|11|t");
    let log = walhook.log();
    assert_eq!(log.matches("is set aside").count(), 1, "said once, not for every row:\n{log}");
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_configuration_that_is_disabled_sets_its_webhooks_aside_until_it_is_enabled() {
    let (feed, mut walhook) = running().await;
    around(&feed, 0, "UPDATE rule_nats_config SET enabled = false");
    around(&feed, 10, "UPDATE rule_nats_config SET enabled = true");
    assert_eq!(seen(&settled(&feed).await), [0, 1, 12, 13].map(|id| ("webhooks.first", id)));
    let reasons = feed.pg.psql("SELECT count(*), count(DISTINCT reason), max(reason) FROM rule_nats_dead_letters");
    assert_eq!(reasons, "4|1|NATS configuration \"default\" is not enabled");
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_walhook_that_starts_later_reads_the_rules_as_they_are_and_follows_those_after() {
    let (feed, mut walhook) = running().await;
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.confirmed().await;
    walhook.kill9();
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'webhooks.second'");
    feed.pg.psql("INSERT INTO t VALUES (2)");
    let mut walhook = feed.run();
    feed.stored(2).await;
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'webhooks.third'");
    feed.pg.psql("INSERT INTO t VALUES (3)");
    let messages = eventually("three messages", async || {
        let messages = feed.messages().await;
        (messages.len() == 3).then_some(messages)
    })
    .await;
    assert_eq!(seen(&messages), [("webhooks.first", 1), ("webhooks.second", 2), ("webhooks.third", 3)]);
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_stream_row_that_came_and_went_while_walhook_was_away_still_gets_its_events() {
    let (feed, mut walhook) = running().await;
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0);
    // In one transaction, so that no pause between two messages lets anybody look.
    feed.pg.psql(
        "BEGIN; SELECT rule_nats_stream_create('EVENTS', ARRAY['events.>']); \
         UPDATE rule_webhooks SET nats_subject = 'events.t'; INSERT INTO t VALUES (1); \
         UPDATE rule_webhooks SET nats_subject = 'webhooks.first'; DELETE FROM rule_nats_streams; COMMIT",
    );
    feed.pg.psql("INSERT INTO t VALUES (2)");
    let mut walhook = feed.run();
    assert_eq!(seen(&settled(&feed).await), [("webhooks.first", 2)]);
    assert_eq!(seen(&feed.messages_of("EVENTS").await), [("events.t", 1)]);
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn ten_thousand_rules_changed_in_one_transaction_hold_up_neither_rows_nor_the_connection() {
    const RULES: u32 = 10_000;
    // A quarter of the default: a debug build beside other tests takes its time, and rules that cost by the square of their number
    // take minutes.
    let pg = Postgres::builder().conf("wal_sender_timeout = '15s'").set_up().start().await;
    let feed = Feed::on(pg, Nats::start().await);
    feed.webhook("first");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, kind text); SELECT rule_webhook_link_table(1, 't')");
    let mut walhook = feed.run();
    walhook.logged("stream opened").await;
    // Rules that come, change and go, with rows before, among and behind them.
    let others = format!("SELECT i FROM generate_series(2, {RULES}) i");
    let make = format!(
        "INSERT INTO rule_webhooks (webhook_id, webhook_name, url, nats_enabled, nats_subject, publish_mode)
             SELECT i, 'w' || i, 'https://example.com', true, 'webhooks.w' || i, 'nats' FROM ({others}) o;
         INSERT INTO t VALUES (1);
         INSERT INTO rule_webhook_links (webhook_id, table_schema, table_name) SELECT i, 'public', 'other' || i FROM ({others}) o"
    );
    let change =
        "UPDATE rule_webhooks SET nats_subject = nats_subject || '.x' WHERE webhook_id > 1; INSERT INTO t VALUES (2);
                  UPDATE rule_webhook_links SET include_old = true WHERE webhook_id > 1";
    let end = "DELETE FROM rule_webhook_links WHERE webhook_id > 1; INSERT INTO t VALUES (3); DELETE FROM rule_webhooks WHERE webhook_id > 1";
    for (step, id) in [(make.as_str(), 10), (change, 20), (end, 30)] {
        let began = std::time::Instant::now();
        feed.pg.psql(&format!("BEGIN; {step}; COMMIT"));
        let committed = began.elapsed();
        feed.pg.psql(&format!("INSERT INTO t VALUES ({id})"));
        feed.confirmed().await;
        println!("{RULES} rules and as many links: committed in {committed:?}, confirmed in {:?}", began.elapsed());
    }
    let ids: Vec<_> = seen(&feed.messages().await).into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, [1, 10, 2, 20, 3, 30]);
    assert_eq!(walhook.log().matches("slot taken").count(), 1, "one session: {}", walhook.log());
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}
