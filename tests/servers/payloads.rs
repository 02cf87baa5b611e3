//! What an event looks like: for each operation, replica identity and format.

#![allow(clippy::unwrap_used)]

use crate::support;

use serde_json::{Value, json};
use support::{Nats, Postgres, feed::Feed, feed::Message};

/// A feed with webhook 1, `webhooks.w`, and what `sql` makes.
async fn with(sql: &str) -> Feed {
    let feed = Feed::start().await;
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql(sql);
    feed
}

/// Operation, data and the old row of each message; null where there is none.
fn told(messages: &[Message]) -> Value {
    let one =
        |message: &Message| json!([message.payload["event"]["op"], message.data(), message.payload["event"]["old"]]);
    messages.iter().map(one).collect()
}

const ALL: &str = "ARRAY['insert', 'update', 'delete', 'truncate']";

#[tokio::test]
async fn the_default_payload_has_these_keys_and_no_others() {
    let feed = with("CREATE TABLE t (id int PRIMARY KEY, note text)").await;
    let xid = feed.pg.psql("SELECT rule_webhook_link_table(1, 't'); SELECT pg_current_xact_id()::xid::text");
    let messages = feed.after(&["INSERT INTO t VALUES (1, NULL)"]).await;
    let mut payload = messages[0].payload.clone();
    let event = payload["event"].as_object_mut().unwrap();
    let lsn = event.remove("lsn").unwrap();
    let commit_time = event.remove("commit_time").unwrap();
    let seen = event.remove("xid").unwrap().as_i64().unwrap();
    assert!(seen >= xid.lines().last().unwrap().parse::<i64>().unwrap(), "{seen} {xid}");
    let id = payload["id"].take();
    let timestamp = payload["timestamp"].take();
    assert_eq!(
        payload,
        json!({
            "id": null, "type": "public.t.insert", "timestamp": null,
            "webhook_id": 1, "webhook_name": "w", "webhook_url": "https://example.com/w", "method": "POST",
            "headers": {}, "data": {"id": 1, "note": null},
            "event": {"op": "insert", "table": "public.t"},
        })
    );
    assert_eq!(commit_time, timestamp);
    let known = feed.pg.psql(&format!(
        "SELECT '{}'::pg_lsn < pg_current_wal_lsn(), now() - '{}'::timestamptz < interval '1 minute'",
        lsn.as_str().unwrap(),
        timestamp.as_str().unwrap()
    ));
    assert_eq!(known, "t|t");
    // The id is the position: source, commit LSN, commit time, ordinal, webhook.
    let parts: Vec<_> = id.as_str().unwrap().split('-').collect();
    assert_eq!((parts[0], parts[3], parts[4], parts.len()), ("walhook", "0", "1", 5));
    assert_eq!(messages[0].header("Nats-Msg-Id"), id);
    assert_eq!(messages[0].header("Nats-Expected-Stream"), "WEBHOOKS");
    assert_eq!(messages[0].header("Walhook-Op"), "insert");
}

#[tokio::test]
async fn with_the_default_identity_an_old_row_is_its_key_and_only_where_that_changed() {
    let feed = with("CREATE TABLE t (id int PRIMARY KEY, note text)").await;
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(1, 't', {ALL}, p_include_old => true)"));
    let messages = feed
        .after(&[
            "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
            "UPDATE t SET note = 'A' WHERE id = 1",
            "UPDATE t SET id = 10 WHERE id = 1",
            "DELETE FROM t WHERE id = 2",
            "TRUNCATE t",
        ])
        .await;
    assert_eq!(
        told(&messages),
        json!([
            ["insert", {"id": 1, "note": "a"}, null],
            ["insert", {"id": 2, "note": "b"}, null],
            ["update", {"id": 1, "note": "A"}, null],
            ["update", {"id": 10, "note": "A"}, {"id": 1}],
            ["delete", {"id": 2}, null],
            ["truncate", {}, null],
        ])
    );
    assert!(messages.iter().all(|message| message.subject == "webhooks.w"));
}

#[tokio::test]
async fn with_the_full_identity_an_old_row_is_whole_if_the_link_asks_for_it() {
    let feed = with("CREATE TABLE t (id int PRIMARY KEY, note text); ALTER TABLE t REPLICA IDENTITY FULL").await;
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(1, 't', {ALL}, p_include_old => true)"));
    let silent = feed.webhook("silent");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({silent}, 't')"));
    let messages = feed
        .after(&["INSERT INTO t VALUES (1, NULL)", "UPDATE t SET note = 'A', id = 2", "DELETE FROM t", "TRUNCATE t"])
        .await;
    let of = |webhook: i32| -> Vec<Message> {
        messages.iter().filter(|message| message.payload["webhook_id"] == webhook).cloned().collect()
    };
    assert_eq!(
        told(&of(1)),
        json!([
            ["insert", {"id": 1, "note": null}, null],
            ["update", {"id": 2, "note": "A"}, {"id": 1, "note": null}],
            ["delete", {"id": 2, "note": "A"}, null],
            ["truncate", {}, null],
        ])
    );
    assert_eq!(
        told(&of(silent)),
        json!([
            ["insert", {"id": 1, "note": null}, null],
            ["update", {"id": 2, "note": "A"}, null],
            ["delete", {"id": 2, "note": "A"}, null],
        ])
    );
}

#[tokio::test]
async fn with_an_index_as_identity_the_old_row_is_what_the_index_holds() {
    let feed = with(
        "CREATE TABLE t (a int NOT NULL, b text NOT NULL, c text); CREATE UNIQUE INDEX t_ab ON t (b, a); \
         ALTER TABLE t REPLICA IDENTITY USING INDEX t_ab",
    )
    .await;
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't', p_include_old => true)");
    let messages =
        feed.after(&["INSERT INTO t VALUES (1, 'x', 'y')", "UPDATE t SET b = 'z', c = 'q'", "DELETE FROM t"]).await;
    assert_eq!(
        told(&messages),
        json!([
            ["insert", {"a": 1, "b": "x", "c": "y"}, null],
            ["update", {"a": 1, "b": "z", "c": "q"}, {"a": 1, "b": "x"}],
            ["delete", {"a": 1, "b": "z"}, null],
        ])
    );
}

#[tokio::test]
async fn a_large_value_that_an_update_did_not_touch_is_named_or_taken_from_the_old_row_and_never_null() {
    let feed = with(
        "CREATE TABLE t (id int PRIMARY KEY, n int, doc text, note text); \
         ALTER TABLE t ALTER doc SET STORAGE EXTERNAL, ALTER note SET STORAGE EXTERNAL",
    )
    .await;
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let narrow = feed.webhook("narrow");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({narrow}, 't', p_columns => '{{id,n,note}}')"));
    let messages = feed
        .after(&[
            "INSERT INTO t VALUES (1, 1, repeat('d', 9000), repeat('n', 9000))",
            "UPDATE t SET n = 2",
            "UPDATE t SET n = 3, note = NULL",
            "ALTER TABLE t REPLICA IDENTITY FULL",
            "UPDATE t SET n = 4",
        ])
        .await;
    let shown: Vec<_> = messages
        .iter()
        .map(|message| {
            let data = message.data();
            let length = |name: &str| match data.get(name) {
                None => "absent".to_owned(),
                Some(Value::Null) => "null".to_owned(),
                Some(value) => value.as_str().unwrap().len().to_string(),
            };
            let unchanged = message.payload["event"]["unchanged"].clone();
            (data["n"].as_i64().unwrap(), length("doc"), length("note"), unchanged)
        })
        .collect();
    let expect = |n: i64, doc: &str, note: &str, unchanged: Value| (n, doc.to_owned(), note.to_owned(), unchanged);
    assert_eq!(
        shown,
        [
            expect(1, "9000", "9000", Value::Null),
            expect(1, "absent", "9000", Value::Null),
            expect(2, "absent", "absent", json!(["doc", "note"])),
            expect(2, "absent", "absent", json!(["note"])),
            expect(3, "absent", "null", json!(["doc"])),
            expect(3, "absent", "null", Value::Null),
            expect(4, "9000", "null", Value::Null),
            expect(4, "absent", "null", Value::Null),
        ]
    );
}

#[tokio::test]
async fn a_filter_and_when_changed_let_through_what_they_say() {
    let feed = with(
        "CREATE TABLE t (id int PRIMARY KEY, status text, n numeric, doc jsonb); ALTER TABLE t REPLICA IDENTITY FULL",
    )
    .await;
    feed.pg.psql(r#"SELECT rule_webhook_link_table(1, 't', p_filter => '{"status": "paid", "doc": {"tags": ["a"]}}')"#);
    let changed = feed.webhook("changed");
    feed.pg.psql(&format!(
        "SELECT rule_webhook_link_table({changed}, 't', ARRAY['update'], p_when_changed => '{{status,doc}}')"
    ));
    let messages = feed
        .after(&[
            r#"INSERT INTO t VALUES (1, 'new', 1, '{"tags": ["a", "b"]}')"#,
            "UPDATE t SET status = 'paid'",
            "UPDATE t SET n = 2",
            "UPDATE t SET status = 'paid'",
            r#"UPDATE t SET doc = '{"tags": ["b"]}'"#,
            "UPDATE t SET status = NULL",
            "DELETE FROM t",
            r#"INSERT INTO t VALUES (2, 'paid', 1, '{"tags": ["b", "a"], "more": 1}')"#,
            "DELETE FROM t",
        ])
        .await;
    let of = |webhook: i32| -> Vec<_> {
        let mine = messages.iter().filter(|message| message.payload["webhook_id"] == webhook);
        mine.map(|message| json!([message.header("Walhook-Op"), message.data()["status"], message.data()["n"]]))
            .collect()
    };
    assert_eq!(
        json!(of(1)),
        json!([
            ["update", "paid", 1],
            ["update", "paid", 2],
            ["update", "paid", 2],
            ["insert", "paid", 1],
            ["delete", "paid", 1]
        ])
    );
    assert_eq!(json!(of(changed)), json!([["update", "paid", 1], ["update", "paid", 2], ["update", null, 2]]));
}

#[tokio::test]
async fn subjects_are_made_of_the_row_and_what_no_token_may_hold_is_encoded() {
    let feed =
        with(r#"CREATE SCHEMA "my.shop"; CREATE TABLE "my.shop"."or ders" (id int PRIMARY KEY, "a b" text)"#).await;
    feed.pg.psql(
        r#"SELECT rule_webhook_link_table(1, '"my.shop"."or ders"', p_subject_template => 'webhooks.{schema}.{table}.{op}.{a b}', p_operations => ARRAY['insert', 'update'])"#,
    );
    let messages = feed
        .after(&[
            r#"INSERT INTO "my.shop"."or ders" VALUES (1, 'plain_-9')"#,
            r#"INSERT INTO "my.shop"."or ders" VALUES (2, 'a.b c*>ä%')"#,
            r#"INSERT INTO "my.shop"."or ders" VALUES (3, NULL), (4, '')"#,
            r#"UPDATE "my.shop"."or ders" SET "a b" = E'line\nbreak' WHERE id = 1"#,
        ])
        .await;
    let subjects: Vec<_> = messages.iter().map(|message| message.subject.as_str()).collect();
    assert_eq!(
        subjects,
        [
            "webhooks.my%2Eshop.or%20ders.insert.plain_-9",
            "webhooks.my%2Eshop.or%20ders.insert.a%2Eb%20c%2A%3E%C3%A4%25",
            "webhooks.my%2Eshop.or%20ders.update.line%0Abreak",
        ]
    );
    assert_eq!(messages[0].payload["type"], "my.shop.or ders.insert");
    let letters = feed.pg.psql("SELECT reason FROM rule_nats_dead_letters ORDER BY dead_letter_id");
    let why = "its subject needs column \"a b\", which is null, empty or not in the WAL";
    assert_eq!(letters, format!("{why}\n{why}"));
}

#[tokio::test]
async fn a_partitioned_table_speaks_with_one_voice() {
    let feed = with(
        "CREATE TABLE t (id int, region text, n int, PRIMARY KEY (id, region)) PARTITION BY LIST (region); \
         CREATE TABLE t_eu PARTITION OF t FOR VALUES IN ('eu'); \
         CREATE TABLE t_us (n int, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region)); \
         ALTER TABLE t ATTACH PARTITION t_us FOR VALUES IN ('us')",
    )
    .await;
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let messages = feed
        .after(&[
            "INSERT INTO t VALUES (1, 'eu', 1), (2, 'us', 2)",
            "UPDATE t SET n = 3 WHERE id = 2",
            "UPDATE t SET region = 'us' WHERE id = 1",
            "INSERT INTO t_us (id, region, n) VALUES (4, 'us', 4)",
            "CREATE TABLE t_asia PARTITION OF t FOR VALUES IN ('asia'); INSERT INTO t VALUES (5, 'asia', 5)",
        ])
        .await;
    assert!(messages.iter().all(|message| message.payload["event"]["table"] == "public.t"));
    assert_eq!(
        told(&messages),
        json!([
            ["insert", {"id": 1, "region": "eu", "n": 1}, null],
            ["insert", {"id": 2, "region": "us", "n": 2}, null],
            ["update", {"id": 2, "region": "us", "n": 3}, null],
            ["delete", {"id": 1, "region": "eu"}, null],
            ["insert", {"id": 1, "region": "us", "n": 1}, null],
            ["insert", {"id": 4, "region": "us", "n": 4}, null],
            ["insert", {"id": 5, "region": "asia", "n": 5}, null],
        ])
    );
}

#[tokio::test]
async fn one_truncate_of_several_tables_is_an_event_for_each() {
    let feed = with("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)").await;
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(1, 'a', {ALL}), rule_webhook_link_table(1, 'b', {ALL})"));
    let messages = feed.after(&["TRUNCATE a, b"]).await;
    let mut types: Vec<_> = messages.iter().map(|message| message.payload["type"].as_str().unwrap()).collect();
    types.sort_unstable();
    assert_eq!(types, ["public.a.truncate", "public.b.truncate"]);
    assert_ne!(messages[0].payload["id"], messages[1].payload["id"]);
}

#[tokio::test]
async fn a_call_carries_its_payload_headers_and_caller_and_no_credential() {
    let feed = with(
        r#"UPDATE rule_webhooks SET method = 'PUT', headers = '{"Content-Type": "application/json", "Authorization": "Bearer abc", "X-Api-Key": "abc", "X-N": 5}'"#,
    )
    .await;
    let call = r#"INSERT INTO rule_webhook_events (webhook_id, payload, headers, rule_execution_id, subject, triggered_by)
                  VALUES (1, '{"n": 12345678901234567890, "list": [1, null]}', '{"X-Own": "own", "Cookie": "c", "X-N": "6"}', 77, 'webhooks.own', 'alice')"#;
    let messages = feed.after(&[call, "UPDATE rule_webhooks SET expose_credentials = true", call]).await;
    let mut expected = json!({"Content-Type": "application/json", "X-N": "6", "X-Own": "own"});
    assert_eq!(messages[0].payload["headers"], expected);
    expected["Authorization"] = json!("Bearer abc");
    expected["X-Api-Key"] = json!("abc");
    expected["Cookie"] = json!("c");
    assert_eq!(messages[1].payload["headers"], expected);
    for message in &messages {
        assert_eq!(message.subject, "webhooks.own");
        assert_eq!(message.payload["type"], "webhook.call");
        assert_eq!(message.payload["method"], "PUT");
        assert_eq!(message.data().to_string(), r#"{"list":[1,null],"n":12345678901234567890}"#);
        let event = &message.payload["event"];
        assert_eq!(event["triggered_by"], "alice");
        assert_eq!(event["rule_execution_id"], 77);
        assert_eq!(event["table"], "public.rule_webhook_events");
        assert!(event["event_id"].is_i64(), "{event}");
    }
}

#[tokio::test]
async fn the_format_data_is_the_bare_row_or_payload() {
    let feed =
        with("CREATE TABLE t (id int PRIMARY KEY, note text); UPDATE rule_webhooks SET payload_format = 'data'").await;
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(1, 't', {ALL})"));
    let messages = feed
        .after(&[
            "INSERT INTO t VALUES (1, 'a')",
            "UPDATE t SET note = 'b'",
            "DELETE FROM t",
            "TRUNCATE t",
            "SELECT rule_webhook_publish_nats(1, '[1, {\"a\": null}]')",
        ])
        .await;
    let payloads: Value = messages.iter().map(|message| message.payload.clone()).collect();
    assert_eq!(payloads, json!([{"id": 1, "note": "a"}, {"id": 1, "note": "b"}, {"id": 1}, {}, [1, {"a": null}]]));
}

#[tokio::test]
async fn two_databases_feed_two_streams_of_one_server_under_their_own_names() {
    let first = with("CREATE TABLE t (id int PRIMARY KEY)").await;
    let second = Feed::on(Postgres::set_up().await, Nats::start().await);
    second.webhook("w");
    second.pg.psql("CREATE TABLE t (id int PRIMARY KEY)");
    second.pg.psql(&format!("SELECT rule_nats_configure('default', '{}')", first.nats.url()));
    second.pg.psql("UPDATE rule_nats_config SET stream_name = 'SECOND', subject_prefix = 'second'");
    second.pg.psql("SELECT rule_webhook_enable_nats(1, 'second.w', 'nats')");
    let mut running = Vec::new();
    for (feed, source) in [(&first, "shop-1"), (&second, "shop-2")] {
        feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
        feed.pg.psql("INSERT INTO t SELECT generate_series(1, 100)");
        running.push(feed.command("run").args(["--source", source]).start());
    }
    for (feed, stream, source) in [(&first, "WEBHOOKS", "shop-1-"), (&second, "SECOND", "shop-2-")] {
        feed.confirmed().await;
        let messages = first.messages_of(stream).await;
        let ids: Vec<_> = messages.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
        assert_eq!(ids, (1..=100).collect::<Vec<_>>());
        assert!(messages.iter().all(|message| message.header("Nats-Msg-Id").starts_with(source)));
    }
    for mut walhook in running {
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    }
}
