//! The formats for readers that have one already (Debezium, CloudEvents), and the headers of the messages themselves.

#![allow(clippy::unwrap_used)]

use crate::support;

use serde_json::{Value, json};
use support::feed::{Feed, Message};

/// A feed with webhook 1, `webhooks.w`, and what `sql` makes.
async fn with(sql: &str) -> Feed {
    let feed = Feed::start().await;
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql(sql);
    feed
}

/// The names of the headers that are neither JetStream's nor ours.
fn own(message: &Message) -> Vec<&str> {
    let names = message.headers.keys().map(String::as_str);
    let mut names: Vec<_> = names.filter(|name| !name.starts_with("Nats-") && !name.starts_with("Walhook-")).collect();
    names.sort_unstable();
    names
}

const ALL: &str = "ARRAY['insert', 'update', 'delete', 'truncate']";

// --------------------------------------------------------------------------------------------------------------- Debezium

#[tokio::test]
async fn the_format_debezium_is_its_envelope() {
    let feed = with(
        "CREATE TABLE t (id int PRIMARY KEY, note text); ALTER TABLE t REPLICA IDENTITY FULL; \
         UPDATE rule_webhooks SET payload_format = 'debezium'",
    )
    .await;
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(1, 't', {ALL})"));
    let xid = feed.pg.psql("INSERT INTO t VALUES (1, 'a') RETURNING xmin::text");
    let messages = feed.after(&["UPDATE t SET note = 'b'", "DELETE FROM t", "TRUNCATE t"]).await;
    let envelope: Value = messages
        .iter()
        .map(|message| json!([message.payload["op"], message.payload["before"], message.payload["after"]]))
        .collect();
    let (a, b) = (json!({"id": 1, "note": "a"}), json!({"id": 1, "note": "b"}));
    assert_eq!(envelope, json!([["c", null, a], ["u", a, b], ["d", b, null], ["t", null, null]]));

    // All keys of the envelope and its source, and what each tells.
    let mut first = messages[0].payload.clone();
    let source = first["source"].take();
    let mut times = Vec::new();
    for place in [&source, &first] {
        let of = |key: &str| place[key].as_i64().unwrap();
        assert_eq!((of("ts_us").div_euclid(1000), of("ts_us") * 1000), (of("ts_ms"), of("ts_ns")), "{place}");
        times.push(of("ts_us"));
    }
    assert_eq!(times[0], times[1]);
    let age = feed.pg.psql(&format!("SELECT now() - to_timestamp({} / 1e6) < interval '1 minute'", times[0]));
    assert_eq!(age, "t");
    let lsn = source["lsn"].as_u64().unwrap();
    let sequence: Vec<String> = serde_json::from_str(source["sequence"].as_str().unwrap()).unwrap();
    assert_eq!(sequence[1], lsn.to_string());
    assert!(sequence[0].parse::<u64>().unwrap() >= lsn, "the commit comes after its rows: {sequence:?}");
    let us = times[0];
    assert_eq!(
        source,
        json!({
            "version": env!("CARGO_PKG_VERSION"), "connector": "postgresql", "name": "walhook", "db": "postgres",
            "ts_ms": us / 1000, "ts_us": us, "ts_ns": us * 1000, "snapshot": "false", "sequence": source["sequence"],
            "schema": "public", "table": "t", "txId": xid.parse::<u32>().unwrap(), "lsn": lsn, "xmin": null,
        })
    );
    assert_eq!(
        first,
        json!({
            "before": null, "after": a, "source": null, "transaction": null, "op": "c",
            "ts_ms": us / 1000, "ts_us": us, "ts_ns": us * 1000,
        })
    );
    assert_eq!(own(&messages[0]), [""; 0]);
}

#[tokio::test]
async fn the_positions_of_a_debezium_envelope_rise_in_the_order_of_the_stream() {
    let feed = with("CREATE TABLE t (id int PRIMARY KEY); UPDATE rule_webhooks SET payload_format = 'debezium'").await;
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let other = feed.pg.client().await;
    other.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    feed.pg.psql("INSERT INTO t VALUES (2)");
    feed.pg.psql("BEGIN; INSERT INTO t VALUES (3); INSERT INTO t VALUES (4); COMMIT");
    other.batch_execute("INSERT INTO t VALUES (5); COMMIT").await.unwrap();
    let messages = feed.after(&[]).await;
    let ids: Vec<_> = messages.iter().map(|message| message.payload["after"]["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, [2, 3, 4, 1, 5]);
    let positions = messages.iter().map(|message| {
        let sequence: Vec<String> =
            serde_json::from_str(message.payload["source"]["sequence"].as_str().unwrap()).unwrap();
        sequence.into_iter().map(|lsn| lsn.parse::<u64>().unwrap()).collect::<Vec<_>>()
    });
    let positions: Vec<_> = positions.collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
}

#[tokio::test]
async fn a_large_value_that_debezium_would_replace_is_left_out_and_named() {
    let feed = with(
        "CREATE TABLE t (id int PRIMARY KEY, n int, doc text); ALTER TABLE t ALTER doc SET STORAGE EXTERNAL; \
         UPDATE rule_webhooks SET payload_format = 'debezium'",
    )
    .await;
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let messages = feed.after(&["INSERT INTO t VALUES (1, 1, repeat('d', 9000))", "UPDATE t SET n = 2"]).await;
    assert_eq!(messages[0].payload["source"].get("unchanged"), None);
    assert_eq!(messages[1].payload["after"], json!({"id": 1, "n": 2}));
    assert_eq!(messages[1].payload["source"]["unchanged"], json!(["doc"]));
}

// ------------------------------------------------------------------------------------------------------------- CloudEvents

#[tokio::test]
async fn the_format_cloudevents_is_structured_json_and_its_header_says_so() {
    let feed =
        with("CREATE TABLE t (id int PRIMARY KEY); UPDATE rule_webhooks SET payload_format = 'cloudevents'").await;
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let messages = feed.after(&["INSERT INTO t VALUES (1)"]).await;
    assert_eq!(own(&messages[0]), ["Content-Type"]);
    assert_eq!(messages[0].header("Content-Type"), "application/cloudevents+json");
    let mut payload = messages[0].payload.clone();
    assert_eq!(payload["id"].take(), messages[0].header("Nats-Msg-Id"));
    assert!(payload["time"].take().as_str().unwrap().ends_with('Z'));
    assert_eq!(
        payload,
        json!({
            "specversion": "1.0", "id": null, "source": "/walhook/walhook", "type": "public.t.insert", "time": null,
            "subject": "public.t", "datacontenttype": "application/json", "data": {"id": 1},
        })
    );
}

#[tokio::test]
async fn the_format_cloudevents_binary_is_the_data_with_its_attributes_as_headers() {
    let feed = with(
        r#"CREATE SCHEMA "Euro €"; CREATE TABLE "Euro €"."a ""%b" (id int PRIMARY KEY);
           UPDATE rule_webhooks SET payload_format = 'cloudevents_binary'"#,
    )
    .await;
    feed.pg.psql(r#"SELECT rule_webhook_link_table(1, '"Euro €"."a ""%b"')"#);
    let messages = feed
        .after(&[
            r#"INSERT INTO "Euro €"."a ""%b" VALUES (1)"#,
            r#"DELETE FROM "Euro €"."a ""%b""#,
            r#"SELECT rule_webhook_publish_nats(1, '[1, 2]', message_id => 'mine')"#,
        ])
        .await;
    let attributes = |message: &Message| -> Value {
        let mut named = own(message).into_iter().map(|name| (name.to_owned(), json!(message.header(name))));
        Value::Object(named.by_ref().collect())
    };
    let expected = |id: &str, time: &str, kind: &str, subject: &str| {
        json!({
            "Content-Type": "application/json", "ce-datacontenttype": "application/json", "ce-specversion": "1.0",
            "ce-id": id, "ce-source": "/walhook/walhook", "ce-time": time, "ce-type": kind, "ce-subject": subject,
        })
    };
    let table = "Euro%20%E2%82%AC.a%20%22%25b";
    for (message, id, kind, subject, body) in [
        (&messages[0], "Nats-Msg-Id", &*format!("{table}.insert"), table, json!({"id": 1})),
        (&messages[1], "Nats-Msg-Id", &*format!("{table}.delete"), table, json!({"id": 1})),
        (&messages[2], "Walhook-Id", "webhook.call", "public.rule_webhook_events", json!([1, 2])),
    ] {
        assert_eq!(message.payload, body);
        let time = message.header("ce-time");
        let known = feed.pg.psql(&format!("SELECT now() - '{time}'::timestamptz < interval '1 minute'"));
        assert_eq!((known.as_str(), time.ends_with('Z')), ("t", true), "{time}");
        assert_eq!(attributes(message), expected(message.header(id), time, kind, subject));
    }
}

#[tokio::test]
async fn the_operation_and_a_key_changed_by_an_update_are_in_every_format() {
    let feed = with(r#"CREATE TABLE "t ä" (id int, name text, note text, PRIMARY KEY (id, name))"#).await;
    feed.pg.psql(r#"SELECT rule_webhook_link_table(1, '"t ä"')"#);
    let formats = ["webhook", "data", "debezium", "cloudevents", "cloudevents_binary"];
    let statements: Vec<String> = formats
        .iter()
        .flat_map(|format| {
            [
                format!("UPDATE rule_webhooks SET payload_format = '{format}'"),
                r#"INSERT INTO "t ä" VALUES (1, 'ü "', 'x')"#.to_owned(),
                r#"UPDATE "t ä" SET note = 'y'"#.to_owned(),
                r#"UPDATE "t ä" SET id = 2"#.to_owned(),
                r#"DELETE FROM "t ä""#.to_owned(),
            ]
        })
        .collect();
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    let messages = feed.after(&statements).await;
    let old_key = r#"{"id":1,"name":"\u00fc \""}"#;
    for (messages, format) in messages.chunks(4).zip(formats) {
        let ops: Vec<_> = messages.iter().map(|message| message.header("Walhook-Op")).collect();
        assert_eq!(ops, ["insert", "update", "update", "delete"], "{format}");
        let old_keys: Vec<_> = messages.iter().map(|message| message.header("Walhook-Old-Key")).collect();
        assert_eq!(old_keys, ["", "", old_key, ""], "{format}");
        let types: Vec<_> = messages.iter().map(|message| message.header("Walhook-Type")).collect();
        let table = "public.t%20%C3%A4";
        match format {
            "data" | "debezium" => {
                assert_eq!(types[0], format!("{table}.insert"), "{format}");
                assert_eq!(types[3], format!("{table}.delete"), "{format}");
            }
            _ => assert_eq!(types, [""; 4], "{format} has it in another place"),
        }
    }
    assert_eq!(messages[2].payload["event"]["old_key"], json!({"id": 1, "name": "ü \""}));
    assert!(messages[1].payload["event"].get("old_key").is_none());
    // With include_old it is the old row, as far as there is one.
    feed.pg.psql(
        r#"UPDATE rule_webhooks SET payload_format = 'webhook'; UPDATE rule_webhook_links SET include_old = true"#,
    );
    let messages = feed.after(&[r#"INSERT INTO "t ä" VALUES (3, 'a', 'x')"#, r#"UPDATE "t ä" SET id = 4"#]).await;
    let event = &messages.last().unwrap().payload["event"];
    assert_eq!((&event["old"], event.get("old_key")), (&json!({"id": 3, "name": "a"}), None));
}

// ------------------------------------------------------------------------------------------------------- message headers

#[tokio::test]
async fn a_webhooks_own_headers_are_on_each_of_its_messages_from_their_commit_on() {
    let feed = with("CREATE TABLE t (id int PRIMARY KEY)").await;
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let messages = feed.after(&[
            "INSERT INTO t VALUES (1)",
            r#"UPDATE rule_webhooks SET nats_headers = '{"X-Team": "billing", "Zusatz": "ä, ö"}'"#,
            "INSERT INTO t VALUES (2)",
            "SELECT rule_webhook_publish_nats(1, '{}')",
            r#"SELECT rule_webhook_publish_nats(1, '{}', headers => '{"x-team": "sales", "Trace": "7", "Cookie": "c"}')"#,
            "UPDATE rule_webhooks SET nats_headers = NULL, payload_format = 'data'",
            r#"SELECT rule_webhook_publish_nats(1, '{}', headers => '{"Trace": "8"}')"#,
        ],
    )
    .await;
    let shown: Vec<Vec<(&str, &str)>> = messages
        .iter()
        .map(|message| own(message).into_iter().map(|name| (name, message.header(name))).collect())
        .collect();
    let team = [("X-Team", "billing"), ("Zusatz", "ä, ö")];
    assert_eq!(shown[0], []);
    assert_eq!((&shown[1][..], &shown[2][..]), (&team[..], &team[..]));
    assert_eq!(shown[3], [("Trace", "7"), ("Zusatz", "ä, ö"), ("x-team", "sales")], "and no credential");
    assert_eq!(shown[4], [("Trace", "8")]);
    // They are no business of the call that a worker makes; an event's own are.
    assert_eq!(messages[1].payload["headers"], json!({}));
    assert_eq!(messages[3].payload["headers"], json!({"x-team": "sales", "Trace": "7"}));
}

#[tokio::test]
async fn a_dead_letter_keeps_the_headers_that_its_message_would_have_had() {
    let feed = with("CREATE TABLE t (id int PRIMARY KEY, note text)").await;
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    feed.pg.psql(r#"UPDATE rule_webhooks SET nats_headers = '{"X-Team": "billing"}'"#);
    let large = "repeat('x', 2000000)";
    feed.after(&[
        &format!("INSERT INTO t VALUES (1, {large})"),
        "UPDATE rule_webhooks SET nats_subject = 'elsewhere.x', payload_format = 'cloudevents_binary'",
        "UPDATE t SET note = ''",
        "UPDATE rule_webhooks SET payload_format = 'webhook'",
        r#"SELECT rule_webhook_publish_nats(1, '{}', 'mine', '{"Trace": "7"}')"#,
        r#"INSERT INTO rule_webhook_events (webhook_id, payload, headers) VALUES (77, '{}', '{"Trace": "8"}')"#,
    ])
    .await;
    let rows =
        feed.pg.psql("SELECT json_build_array(event_id, headers) FROM rule_nats_dead_letters ORDER BY dead_letter_id");
    let rows: Vec<Value> = rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    let mut headers: Vec<Value> = rows.iter().map(|row| row[1].clone()).collect();
    let mut ids: Vec<&Value> = rows.iter().map(|row| &row[0]).collect();
    // Judged when the lane opens, so it comes after those that no lane takes.
    ids.sort_by_key(|id| id.as_str());
    headers.sort_by_key(|headers| headers.get("Walhook-Id").unwrap_or(&headers["Nats-Msg-Id"]).to_string());
    assert!(headers[1]["ce-time"].take().is_string());
    assert_eq!(
        json!(headers),
        json!([
            {"Nats-Msg-Id": ids[0], "Walhook-Op": "insert", "Walhook-Epoch": "1", "X-Team": "billing"},
            {
                "Nats-Msg-Id": ids[1], "Walhook-Op": "update", "Walhook-Epoch": "1", "X-Team": "billing",
                "Content-Type": "application/json", "ce-specversion": "1.0", "ce-datacontenttype": "application/json",
                "ce-id": ids[1], "ce-source": "/walhook/walhook", "ce-type": "public.t.update", "ce-time": null,
                "ce-subject": "public.t",
            },
            {
                "Nats-Msg-Id": "walhook:1:mine", "Walhook-Message-Id": "mine", "Walhook-Id": ids[2], "Walhook-Op": "insert", "Walhook-Epoch": "1",
                "X-Team": "billing", "Trace": "7",
            },
            {"Nats-Msg-Id": ids[3], "Walhook-Op": "insert", "Walhook-Epoch": "1", "Trace": "8"},
        ])
    );
}
