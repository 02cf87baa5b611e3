//! Messages of `rule_webhook_emit`: events without a row, in their places among the rows, and nothing that others forge.

#![allow(clippy::unwrap_used)]

use crate::support;

use base64::{Engine, engine::general_purpose::STANDARD};
use support::{
    Nats, Postgres, Walhook, eventually,
    feed::{Feed, Message},
    rows::{ended_well, linked_on},
};

/// A feed with table `t`, linked to webhook 1, `w`.
async fn linked(version: Option<&str>) -> Feed {
    let mut builder = Postgres::builder().conf("max_prepared_transactions = 5");
    if let Some(version) = version {
        builder = builder.version(version);
    }
    linked_on(builder.start().await, Nats::start().await)
}

async fn enabled() -> Feed {
    let feed = linked(None).await;
    feed.pg.psql("SELECT rule_webhook_emit_enable()");
    feed
}

/// The number in each message, in the order of the stream.
async fn numbers(feed: &Feed) -> Vec<i64> {
    feed.messages().await.iter().map(number).collect()
}

fn number(message: &Message) -> i64 {
    let data = message.data();
    data["id"].as_i64().unwrap_or_else(|| data["n"].as_i64().unwrap())
}

fn emit(feed: &Feed, number: i64) -> String {
    feed.pg.psql(&format!("SELECT rule_webhook_emit('w', '{{\"n\": {number}}}')"))
}

/// How many lines of the log name a message that is ignored.
fn ignored(walhook: &Walhook) -> usize {
    walhook.log().matches("is ignored").count()
}

#[tokio::test]
async fn a_message_has_its_place_among_the_rows_of_its_transaction_and_no_row_of_its_own() {
    for version in ["14", "18"] {
        let feed = linked(Some(version)).await;
        let mut walhook = feed.run();
        // Enabled while it runs, without messages so far.
        assert_eq!(feed.pg.psql("SELECT rule_webhook_emit_enable()"), "t");
        let lsns = feed.pg.psql(
            "BEGIN; INSERT INTO t VALUES (1, 'x'); SELECT rule_webhook_emit(1, '{\"n\": 2}'); INSERT INTO t VALUES (3, 'x'); \
             SELECT rule_webhook_emit('w', '{\"n\": 4, \"text\": \"ü\"}', message_id => 'mine', headers => '{\"X-Team\": \"a\"}', \
                 triggered_by => 'alice', rule_execution_id => 42, subject_tokens => ARRAY['a b', '.']); COMMIT",
        );
        let lsns: Vec<_> = lsns.lines().collect();
        // What is rolled back is published by nobody, be it all or a part.
        feed.pg.psql("BEGIN; SELECT rule_webhook_emit(1, '{\"n\": -1}'); ROLLBACK");
        feed.pg.psql(
            "BEGIN; SELECT rule_webhook_emit(1, '{\"n\": 5}'); SAVEPOINT a; SELECT rule_webhook_emit(1, '{\"n\": -1}'); \
             INSERT INTO t VALUES (-1); ROLLBACK TO a; SAVEPOINT b; SELECT rule_webhook_emit(1, '{\"n\": 6}'); RELEASE b; COMMIT",
        );
        // In the order of the commits: a prepared transaction commits later.
        feed.pg.psql("BEGIN; SELECT rule_webhook_emit(1, '{\"n\": 8}'); PREPARE TRANSACTION 'p'");
        feed.pg.psql("BEGIN; SELECT rule_webhook_emit(1, '{\"n\": -1}'); PREPARE TRANSACTION 'q'");
        emit(&feed, 7);
        feed.pg.psql("COMMIT PREPARED 'p'");
        feed.pg.psql("ROLLBACK PREPARED 'q'");
        feed.confirmed().await;
        let messages = feed.messages().await;
        assert_eq!(messages.iter().map(number).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>(), "{version}");
        let [_, second, _, fourth, ..] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!((second.subject.as_str(), fourth.subject.as_str()), ("webhooks.w", "webhooks.w.a%20b.%2E"));
        let event = &second.payload["event"];
        assert_eq!((event["emit_lsn"].as_str(), event["table"].is_null()), (Some(lsns[0]), true), "{second:?}");
        assert_eq!((event["op"].as_str(), second.payload["type"].as_str()), (Some("insert"), Some("webhook.call")));
        assert_eq!((event["triggered_by"].as_str(), second.header("Walhook-Op")), (Some("postgres"), "insert"));
        assert!(second.header("Nats-Msg-Id").ends_with("-1-1"), "its ordinal is between those of the rows: {second:?}");
        assert_eq!(fourth.payload["data"]["text"], "ü");
        assert_eq!((fourth.header("X-Team"), fourth.header("Walhook-Message-Id")), ("a", "mine"));
        let event = &fourth.payload["event"];
        assert_eq!((event["triggered_by"].as_str(), event["rule_execution_id"].as_i64()), (Some("alice"), Some(42)));
        assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_webhook_events"), "0", "{version}");
        // By its LSN, and by waiting for it.
        for (lsn, sequence) in [(lsns[0], 2), (lsns[1], 4)] {
            let status = feed.pg.psql(&format!("CALL rule_webhook_emit_wait('{lsn}')"));
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            assert_eq!((status["status"].as_str(), status["sequence"].as_i64()), (Some("published"), Some(sequence)));
            assert_eq!((status["lsn"].as_str(), status["stream"].as_str()), (Some(lsn), Some("WEBHOOKS")), "{status}");
        }
        assert_eq!(
            feed.pg.psql("SELECT DISTINCT publishes_messages FROM rule_cdc_status"),
            "t",
            "a walhook of before would be refused"
        );
        assert_eq!(ignored(&walhook), 0);
        ended_well(&mut walhook);
    }
}

/// The whole content of the last message of ours, read as an intruder could who may decode the WAL.
fn content(feed: &Feed) -> String {
    feed.pg.psql(
        "SELECT encode(convert_to(substring(data from 'content:(.*)$'), 'UTF8'), 'hex') \
         FROM pg_logical_slot_peek_changes('spy', NULL, NULL) WHERE data LIKE 'message:%' ORDER BY lsn DESC LIMIT 1",
    )
}

#[tokio::test]
async fn a_message_that_the_function_did_not_write_is_ignored_changes_no_id_and_stops_nothing() {
    let feed = enabled().await;
    feed.pg.psql("SELECT pg_create_logical_replication_slot('spy', 'test_decoding')");
    feed.pg.psql("CREATE ROLE intruder LOGIN");
    let mut walhook = feed.run();
    emit(&feed, 1);
    let seen = content(&feed);
    let text = String::from_utf8(hex(&seen)).unwrap();
    let changed = text.replace("\"n\": 1", "\"n\": 9");
    assert_ne!(text, changed);
    let forge = |transactional: bool, content: &str| {
        format!("SELECT pg_logical_emit_message({transactional}, 'walhook.emit', decode('{content}', 'hex'));")
    };
    let of = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let forged = [
        forge(true, ""),
        forge(true, "00ff"),
        forge(true, &seen),
        forge(true, &of(&changed)),
        forge(true, &of(&text.replace(" 1 1 ", " 77 1 "))),
        forge(false, &seen),
        "SELECT pg_logical_emit_message(true, 'walhook', 'x'), pg_logical_emit_message(true, 'walhook.emit2', 'x');"
            .to_owned(),
    ];
    let client = feed.pg.client().await;
    client.batch_execute("GRANT ALL ON t TO intruder; SET ROLE intruder").await.unwrap();
    client
        .batch_execute(&format!(
            "BEGIN; INSERT INTO t VALUES (2); {} INSERT INTO t VALUES (3); COMMIT; {}",
            forged.concat(),
            forged.concat()
        ))
        .await
        .unwrap();
    // In the transaction of a true one, too.
    client
        .batch_execute(&format!(
            "RESET ROLE; BEGIN; {} SELECT rule_webhook_emit(1, '{{\"n\": 4}}'); COMMIT",
            forged.concat()
        ))
        .await
        .unwrap();
    feed.confirmed().await;
    let messages = feed.messages().await;
    assert_eq!(messages.iter().map(number).collect::<Vec<_>>(), [1, 2, 3, 4], "{}", walhook.log());
    let ordinals: Vec<_> =
        messages.iter().map(|message| message.header("Nats-Msg-Id").rsplit('-').nth(1).unwrap().to_owned()).collect();
    assert_eq!(ordinals, ["0", "0", "1", "0"], "forged messages count for nothing");
    assert_eq!(ignored(&walhook), 1, "one line, whatever their number: {}", walhook.log());
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    ended_well(&mut walhook);
}

fn hex(digits: &str) -> Vec<u8> {
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A message signed with a key of the table, as somebody could make it who has stolen one.
async fn forge_with_key(feed: &Feed, key_id: i32, number: i64) {
    let client = feed.pg.client().await;
    client.batch_execute("BEGIN").await.unwrap();
    let row = client
        .query_one("SELECT inner_key, pg_current_xact_id()::text FROM rule_cdc_emit_keys WHERE key_id = $1", &[&key_id])
        .await
        .unwrap();
    let key: Vec<u8> = row.get::<_, Vec<u8>>(0).iter().map(|byte| byte ^ 0x36).collect();
    let signed = format!("1 {} {key_id} 1 2 {{}}{{\"n\": {number}}}", row.get::<_, &str>(1));
    let signature = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key), signed.as_bytes());
    let content = [STANDARD.encode(signature).as_bytes(), signed.as_bytes()].concat();
    client.query("SELECT pg_logical_emit_message(true, 'walhook.emit', $1::bytea)", &[&content]).await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test]
async fn keys_change_while_messages_wait_and_a_retired_one_is_good_for_what_came_before() {
    let feed = enabled().await;
    let code = |error: tokio_postgres::Error| error.code().unwrap().code().to_owned();
    // While walhook is away.
    emit(&feed, 1);
    forge_with_key(&feed, 1, 2).await;
    assert_eq!(feed.pg.psql("SELECT rule_webhook_emit_rotate_key()"), "2");
    emit(&feed, 3);
    // Who has used a key holds it until the end of his transaction, also of a prepared one.
    let (open, old) = (feed.pg.client().await, feed.pg.client().await);
    open.batch_execute("BEGIN; SELECT rule_webhook_emit(1, '{\"n\": 4}')").await.unwrap();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t").await.unwrap();
    let refused = feed.pg.try_psql("SELECT rule_webhook_emit_retire_keys()").unwrap_err();
    let said = refused.as_db_error().unwrap();
    assert!(said.message().contains("not over: process") && said.hint().unwrap().contains("again"), "{said}");
    assert_eq!(code(refused), "55P03");
    open.batch_execute("PREPARE TRANSACTION 'p'").await.unwrap();
    let refused = feed.pg.try_psql("SELECT rule_webhook_emit_retire_keys()").unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("a prepared transaction"), "{refused:?}");
    open.batch_execute("COMMIT PREPARED 'p'").await.unwrap();
    assert_eq!(feed.pg.psql("SELECT rule_webhook_emit_retire_keys()"), "1");
    // Not by key 1, as its old snapshot has it; key 2 is in it as well, so that nothing fails.
    old.batch_execute("SELECT rule_webhook_emit(1, '{\"n\": 5}'); COMMIT").await.unwrap();
    forge_with_key(&feed, 1, -1).await;
    emit(&feed, 6);
    let mut walhook = feed.run();
    feed.confirmed().await;
    assert_eq!(numbers(&feed).await, [1, 2, 3, 4, 5, 6], "{}", walhook.log());
    assert_eq!(ignored(&walhook), 1, "{}", walhook.log());
    assert!(walhook.log().contains("key 1 was retired"), "{}", walhook.log());
    // While it runs: a snapshot in which the retired key is the newest one fails, to be tried again.
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t").await.unwrap();
    feed.pg.psql("SELECT rule_webhook_emit_rotate_key()");
    emit(&feed, 7);
    assert_eq!(feed.pg.psql("SELECT rule_webhook_emit_retire_keys()"), "1");
    assert_eq!(code(old.batch_execute("SELECT rule_webhook_emit(1, '{\"n\": -1}')").await.unwrap_err()), "40001");
    old.batch_execute(
        "ROLLBACK; BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT rule_webhook_emit(1, '{\"n\": 8}'); COMMIT",
    )
    .await
    .unwrap();
    forge_with_key(&feed, 2, -1).await;
    feed.confirmed().await;
    assert_eq!(numbers(&feed).await, [1, 2, 3, 4, 5, 6, 7, 8]);
    // Everything comes again after a crash of PostgreSQL, and keys of now decide about messages of then.
    walhook.kill9();
    feed.pg.kill9();
    feed.pg.restart().await;
    walhook = feed.run();
    emit(&feed, 9);
    feed.confirmed().await;
    assert_eq!(numbers(&feed).await, (1..=9).collect::<Vec<_>>(), "{}", walhook.log());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_webhook_that_moves_while_messages_wait_has_each_by_the_rules_of_its_commit() {
    let feed = enabled().await;
    feed.pg.psql("SELECT rule_nats_stream_create('B', ARRAY['b.>'], 'default', 'limits')");
    let mut walhook = feed.run();
    emit(&feed, 1);
    feed.confirmed().await;
    walhook.terminate();
    emit(&feed, 2);
    let open = feed.pg.client().await;
    open.batch_execute("BEGIN; SELECT rule_webhook_emit(1, '{\"n\": 4}', subject_tokens => '{x}')").await.unwrap();
    feed.pg.psql(
        "UPDATE rule_webhooks SET nats_subject = 'b.w', payload_format = 'data', nats_headers = '{\"X-New\": \"1\"}'",
    );
    let moved = emit(&feed, 3);
    open.batch_execute("COMMIT").await.unwrap();
    // Accepted is accepted; and of a webhook that is gone it is a dead letter.
    open.batch_execute("BEGIN; SELECT rule_webhook_emit(1, '{\"n\": 5}')").await.unwrap();
    feed.pg.psql("SELECT rule_webhook_update(1, p_enabled => false)");
    open.batch_execute("COMMIT").await.unwrap();
    assert!(feed.pg.try_psql("SELECT rule_webhook_emit(1, '{}')").is_err());
    feed.pg.psql("SELECT rule_webhook_update(1, p_enabled => true)");
    open.batch_execute("BEGIN; SELECT rule_webhook_emit(1, '{\"n\": 6}')").await.unwrap();
    feed.pg.psql("UPDATE rule_webhooks SET payload_format = 'cloudevents_binary'");
    open.batch_execute("COMMIT; BEGIN; SELECT rule_webhook_emit(1, '{\"n\": 7}')").await.unwrap();
    feed.pg.psql("UPDATE rule_webhooks SET payload_format = 'debezium'");
    open.batch_execute("COMMIT; BEGIN; SELECT rule_webhook_emit(1, '{\"n\": 8}', headers => '{\"A\": \"b\"}')")
        .await
        .unwrap();
    feed.pg.psql("DELETE FROM rule_webhooks");
    open.batch_execute("COMMIT").await.unwrap();
    let mut walhook = feed.run();
    feed.confirmed().await;
    assert_eq!(numbers(&feed).await, [1, 2]);
    let stream = feed.nats.jetstream().await.get_stream("B").await.unwrap();
    let mut sent = Vec::new();
    for sequence in 1..=stream.cached_info().state.messages {
        let message = stream.get_raw_message(sequence).await.unwrap();
        assert_eq!(message.headers.get("X-New").unwrap().as_str(), "1");
        sent.push((message.subject.to_string(), String::from_utf8(message.payload.to_vec()).unwrap()));
        if sequence == 4 {
            assert_eq!(message.headers.get("ce-type").unwrap().as_str(), "webhook.call");
            assert!(message.headers.get("ce-subject").is_none());
        }
    }
    let sent: Vec<_> = sent.iter().map(|(subject, body)| (subject.as_str(), body.as_str())).collect();
    let [(_, debezium)] = &sent[4..] else { panic!("{sent:?}: {}", walhook.log()) };
    assert_eq!(
        sent[..4],
        [("b.w", "{\"n\": 3}"), ("b.w.x", "{\"n\": 4}"), ("b.w", "{\"n\": 5}"), ("b.w", "{\"n\": 6}")]
    );
    let debezium: serde_json::Value = serde_json::from_str(debezium).unwrap();
    assert_eq!((debezium["after"]["n"].as_i64(), debezium["source"]["table"].as_str()), (Some(7), Some("")));
    assert_eq!(
        feed.pg.psql(
            "SELECT reason, webhook_id, convert_from(payload, 'UTF8'), headers ->> 'A' FROM rule_nats_dead_letters"
        ),
        "its webhook does not exist|1|{\"n\": 8}|b"
    );
    let _ = moved;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_large_message_is_a_claim_check_or_a_dead_letter_and_is_published_again_from_there() {
    let nats = Nats::builder().config("max_payload: 64KB").start().await;
    let feed = linked_on(Postgres::set_up().await, nats);
    feed.pg.psql("SELECT rule_webhook_emit_enable()");
    let mut walhook = feed.run();
    let large = "SELECT rule_webhook_emit(1, jsonb_build_object('n', 1, 'x', repeat('ä', 2000000)))";
    let letter = feed.pg.psql(large);
    feed.confirmed().await;
    let status = feed.pg.psql(&format!("SELECT rule_webhook_emit_status('{letter}')"));
    assert!(status.contains("\"failed\"") && status.contains("max_payload"), "{status}");
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'object_store'");
    let claim = feed.pg.psql(large);
    emit(&feed, 2);
    feed.confirmed().await;
    let messages = feed.messages().await;
    assert_eq!(messages.len(), 2, "{}", walhook.log());
    let (bucket, name) = messages[0].header("Walhook-Object").split_once('/').unwrap();
    let store = feed.nats.jetstream().await.get_object_store(bucket).await.unwrap();
    assert!(store.info(name).await.unwrap().size > 4_000_000);
    assert!(feed.pg.psql(&format!("SELECT rule_webhook_emit_status('{claim}')")).contains("\"published\""));
    feed.pg.psql("SELECT rule_nats_dead_letter_retry(1)");
    feed.confirmed().await;
    assert_eq!(feed.messages().await.len(), 3, "a dead letter goes the way of all: {}", walhook.log());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn kills_and_crashes_lose_and_double_no_message() {
    let feed = linked(None).await;
    let mut walhook = feed.run();
    let mut next = 0;
    let mut some = |feed: &Feed| {
        for _ in 0..5 {
            feed.pg.psql(&format!(
                "BEGIN; SELECT rule_webhook_emit(1, jsonb_build_object('n', {})); INSERT INTO t VALUES ({}); \
                 SELECT rule_webhook_emit(1, jsonb_build_object('n', n)) FROM generate_series({}, {}) n; COMMIT",
                next,
                next + 1,
                next + 2,
                next + 40
            ));
            next += 41;
        }
        next
    };
    feed.pg.psql("INSERT INTO t VALUES (-1); SELECT rule_webhook_emit_enable()");
    for how in ["kill", "walsender", "crash", "kill", "terminate", "nats", "crash"] {
        some(&feed);
        match how {
            "kill" => {
                walhook.kill9();
                walhook = feed.run();
            }
            "terminate" => {
                ended_well(&mut walhook);
                walhook = feed.run();
            }
            "walsender" => {
                feed.pg.psql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
            }
            "nats" => {
                feed.nats.kill9();
                feed.nats.restart().await;
            }
            _ => {
                feed.pg.kill9();
                feed.pg.restart().await;
            }
        }
    }
    let count = some(&feed);
    feed.confirmed().await;
    assert_eq!(numbers(&feed).await, (-1..count).collect::<Vec<_>>(), "{}", walhook.log());
    let history = feed.pg.psql("SELECT count(*), count(DISTINCT event_id), count(DISTINCT webhook_event_id), bool_and(success) FROM rule_nats_publish_history");
    let rows = count / 41;
    assert_eq!(history, format!("{0}|{0}|{1}|t", count + 1, count - rows));
    ended_well(&mut walhook);
}

#[tokio::test]
async fn messages_come_again_from_the_wal() {
    let feed = linked(None).await;
    let mut walhook = feed.run();
    feed.confirmed().await;
    feed.pg.psql("SELECT rule_cdc_anchor_create(); SELECT rule_webhook_emit_enable()");
    feed.pg.psql("INSERT INTO t VALUES (1)");
    let from = feed.pg.psql("SELECT pg_current_wal_insert_lsn()");
    emit(&feed, 2);
    feed.pg.psql("INSERT INTO t VALUES (3); SELECT rule_webhook_emit_rotate_key(), rule_webhook_emit_retire_keys()");
    emit(&feed, 4);
    let messages = feed.stored(4).await;
    let done = feed.command("replay").args(["--create-stream", "REPLAY", "--via", "wal", "--from", &from]).finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    let again = feed.messages_of("REPLAY").await;
    assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [2, 3, 4], "{done:?}");
    for (copy, first) in again.iter().zip(&messages[1..]) {
        assert_eq!(copy.payload, first.payload);
    }
    ended_well(&mut walhook);
}

#[tokio::test]
async fn who_cannot_emit_learns_why_and_what_to_do() {
    let feed = enabled().await;
    let refused = |sql: &str, code: &str, words: [&str; 2]| {
        let error = feed.pg.try_psql(sql).unwrap_err();
        let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
        assert_eq!(error.code().code(), code, "{sql}: {error:?}");
        let said = (error.message(), error.hint().unwrap_or_default());
        assert!(said.0.contains(words[0]) && said.1.contains(words[1]), "{sql}: {said:?}");
    };
    let call = "SELECT rule_webhook_emit(1, '{}')";
    refused(&format!("BEGIN READ ONLY; {call}"), "25006", ["read-only", "BEGIN READ WRITE"]);
    // A role of the applications may call it, and may not read the keys.
    feed.pg.psql("SET ROLE walhook_application; SELECT rule_webhook_emit(1, '{\"n\": 1}')");
    refused(
        "SET ROLE walhook_application; SELECT inner_key FROM rule_cdc_emit_keys",
        "42501",
        ["permission denied", ""],
    );
    refused("SET ROLE walhook_application; SELECT rule_webhook_emit_rotate_key()", "42501", ["permission denied", ""]);
    refused("SET ROLE walhook_operator; SELECT inner_key FROM rule_cdc_emit_keys", "42501", ["permission denied", ""]);
    feed.pg.psql("CREATE ROLE nobody_of_ours");
    refused(&format!("SET ROLE nobody_of_ours; {call}"), "42501", ["permission denied", ""]);
    refused(
        "SELECT rule_webhook_emit(1, to_jsonb(repeat('\\u0001', 1)) #> NULL)",
        "22004",
        ["payload is NULL", "null"],
    );
    feed.pg.psql("SELECT rule_cdc_slot_drop()");
    feed.pg.psql("ALTER SYSTEM SET wal_level = replica");
    feed.pg.restart().await;
    refused(call, "55000", ["wal_level is replica", "wal_level = logical"]);
    feed.pg.psql("ALTER SYSTEM RESET wal_level");
    feed.pg.restart_as_standby().await;
    refused(call, "25006", ["read-only", "primary"]);
    eventually("a status on a standby", async || {
        feed.pg.psql("SELECT rule_webhook_emit_status('0/1') ->> 'status'").contains("enqueued").then_some(())
    })
    .await;
}
