//! Outbox tables: the body of a message is a column, byte for byte, and other columns are its subject, its id and its headers.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use support::{Nats, Postgres, eventually, feed::Feed};
use tokio::io::AsyncReadExt;

/// A message of the stream, with its body as it is.
#[derive(Debug, Clone)]
struct Raw {
    subject: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Raw {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

async fn raw(feed: &Feed) -> Vec<Raw> {
    raw_of(feed, "WEBHOOKS").await
}

async fn raw_of(feed: &Feed, stream: &str) -> Vec<Raw> {
    let mut stream = feed.nats.jetstream().await.get_stream(stream).await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    let mut messages = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let headers = message.headers.iter().map(|(name, values)| (name.to_string(), values[0].as_str().to_owned()));
        messages.push(Raw {
            subject: message.subject.to_string(),
            headers: headers.collect(),
            body: message.payload.to_vec(),
        });
    }
    messages
}

/// Debezium's outbox table, linked to webhook 1, and a stream for its events.
const OUTBOX: &str = "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype varchar(255) NOT NULL, \
    aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb); \
    SELECT rule_webhook_link_outbox('w', 'outbox')";

/// A feed with webhook 1, whose format is `data`, its stream in a row, and what `sql` makes.
async fn with(sql: &str) -> Feed {
    on(Feed::start().await, sql)
}

fn on(feed: Feed, sql: &str) -> Feed {
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>', 'outbox.event.>'])");
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("UPDATE rule_webhooks SET payload_format = 'data'");
    // Bodies that need not be JSON go into the history as well.
    feed.pg.psql("UPDATE rule_nats_config SET history_payload = 'full'");
    feed.pg.psql(sql);
    feed
}

async fn run_to_the_end(feed: &Feed) {
    let mut walhook = feed.run();
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn debeziums_outbox_table_works_by_one_call_and_only_inserts_are_published() {
    let feed = with(OUTBOX).await;
    feed.pg.psql(
        "INSERT INTO outbox VALUES ('0e8dd9b2-0000-4000-8000-000000000001', 'order', '17', 'OrderCreated', '{\"id\": 17}')",
    );
    feed.pg.psql("UPDATE outbox SET payload = '{}'; DELETE FROM outbox");
    // Inserted and deleted at once; a name that is no token; a rollback.
    feed.pg.psql(
        "BEGIN; INSERT INTO outbox VALUES ('0e8dd9b2-0000-4000-8000-000000000002', 'a b.c', 'ä', 'Gone', '[1, null]'); \
         DELETE FROM outbox; COMMIT",
    );
    feed.pg.psql("BEGIN; INSERT INTO outbox VALUES (DEFAULT, 'order', '1', 'Never', '{}'); ROLLBACK; TRUNCATE outbox");
    run_to_the_end(&feed).await;
    let messages = raw(&feed).await;
    let seen: Vec<_> = messages.iter().map(|message| (message.subject.as_str(), message.text())).collect();
    assert_eq!(seen, [("outbox.event.order", "{\"id\": 17}"), ("outbox.event.a%20b%2Ec", "[1, null]")]);
    let shown = |message: &Raw| {
        let names = ["id", "eventType", "aggregateType", "aggregateId", "Content-Type", "Walhook-Type", "Walhook-Op"];
        names.map(|name| message.header(name).to_owned())
    };
    assert_eq!(
        shown(&messages[0]),
        [
            "0e8dd9b2-0000-4000-8000-000000000001",
            "OrderCreated",
            "order",
            "17",
            "application/json",
            "public.outbox.insert",
            "insert"
        ]
    );
    assert_eq!(messages[1].header("aggregateId"), "ä");
    for message in &messages {
        assert_eq!(message.header("Walhook-Message-Id"), message.header("id"));
        assert_eq!(message.header("Walhook-Headers"), "aggregateId aggregateType eventType id");
        assert!(message.header("Nats-Msg-Id").starts_with("walhook-"), "{message:?}");
        assert_eq!(message.header("Walhook-Id"), "", "the id is that of the event");
    }
    // What explain shows is what was published, and the check finds nothing to say but that the payload may be NULL.
    feed.pg.psql(
        "INSERT INTO outbox VALUES ('0e8dd9b2-0000-4000-8000-000000000003', 'order', '17', 'Shown', '{\"a\": 1}')",
    );
    let explained = feed.command("explain").args(["outbox", "--json"]).finish();
    let explained: Value = serde_json::from_str(&explained.stdout).unwrap();
    let link = &explained["links"][0];
    assert_eq!(link["payload_column"], "payload");
    let insert = &link["operations"][0];
    assert_eq!((&insert["subject"], &insert["payload"]), (&json!("outbox.event.order"), &json!({"a": 1})));
    assert_eq!(insert["headers"]["eventType"], "Shown");
    assert_eq!(link["operations"][1]["published"], false);
    let problems = feed.pg.psql("SELECT ok, problems FROM rule_webhook_links_check()");
    assert!(problems.starts_with("t|{\"note: its message is the column 'payload'"), "{problems}");
    feed.pg.psql("ALTER TABLE public.outbox ALTER COLUMN payload SET NOT NULL");
    assert_eq!(feed.pg.psql("SELECT ok, problems FROM rule_webhook_links_check()"), "t|{}");
}

/// Bodies of each type: the column's type, the value as SQL, and the bytes that arrive.
fn bodies() -> Vec<(&'static str, String, Vec<u8>, &'static str)> {
    let all: Vec<u8> = (0..=255).collect();
    let hex: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
    let (json, text, bytes) = ("application/json", "text/plain; charset=utf-8", "application/octet-stream");
    let odd = "{ \"b\" :1.50,\n\t\"a\":\"\\u0000 \\\"\", \"b\": 2 }";
    vec![
        ("json", format!("'{odd}'"), odd.into(), json),
        ("json", "'null'".to_owned(), "null".into(), json),
        ("jsonb", "'{ \"b\" :1.50, \"a\":\"ä\" }'".to_owned(), "{\"a\": \"ä\", \"b\": 1.50}".into(), json),
        (
            "text",
            "E' a \"b\"\\r\\nNats-Msg-Id: x\\t\\\\ €'".to_owned(),
            " a \"b\"\r\nNats-Msg-Id: x\t\\ €".into(),
            text,
        ),
        ("text", "''".to_owned(), Vec::new(), text),
        ("varchar(9)", "'{\"a\":1}'".to_owned(), "{\"a\":1}".into(), text),
        ("bytea", format!("'\\x{hex}'"), all.clone(), bytes),
        ("bytea", "''".to_owned(), Vec::new(), bytes),
        ("blob", "'\\xff00'".to_owned(), vec![0xFF, 0], bytes),
        ("text", "repeat('x', 300000)".to_owned(), vec![b'x'; 300_000], text),
    ]
}

#[tokio::test]
async fn a_body_of_any_type_arrives_byte_for_byte_and_is_kept_in_the_history_as_json() {
    let feed = with("CREATE DOMAIN bytes AS bytea; CREATE DOMAIN blob AS bytes").await;
    let bodies = bodies();
    for (index, (kind, value, ..)) in bodies.iter().enumerate() {
        feed.pg.psql(&format!(
            "CREATE TABLE t{index} (id int PRIMARY KEY, kind text, body {kind} NOT NULL); \
             SELECT rule_webhook_link_table(1, 't{index}', '{{insert}}', 'webhooks.{{kind}}', p_payload_column => 'body', \
                                            p_message_id_column => 'id', p_headers_columns => '{{\"Kind\": \"kind\"}}'); \
             INSERT INTO t{index} VALUES ({index}, 'k{index}', {value})"
        ));
    }
    // Settings of role and database do not matter.
    feed.pg.psql("ALTER ROLE walhook_streamer SET bytea_output = 'escape'");
    run_to_the_end(&feed).await;
    let messages = raw(&feed).await;
    assert_eq!(messages.len(), bodies.len());
    for (index, (message, (kind, _, body, content_type))) in messages.iter().zip(&bodies).enumerate() {
        assert_eq!(message.body, *body, "{kind}");
        let shown = ["Content-Type", "Kind", "Walhook-Message-Id"].map(|name| message.header(name).to_owned());
        assert_eq!(shown, [(*content_type).to_owned(), format!("k{index}"), index.to_string()], "{kind}");
        assert_eq!(message.subject, format!("webhooks.k{index}"));
    }
    let kept = feed.pg.psql("SELECT payload FROM rule_nats_publish_history ORDER BY publish_id LIMIT 9");
    let kept: Vec<&str> = kept.lines().collect();
    assert_eq!(
        kept[1..6],
        ["null", "{\"a\": \"ä\", \"b\": 1.50}", "\" a \\\"b\\\"\\r\\nNats-Msg-Id: x\\t\\\\ €\"", "\"\"", "{\"a\": 1}"]
    );
    assert!(kept[0].contains("unstorable") && kept[6].contains("$base64"), "{kept:?}");
    assert_eq!(kept[8], "{\"$base64\": \"/wA=\"}");
    assert_eq!(feed.pg.psql("SELECT count(*), bool_and(success) FROM rule_nats_publish_history"), "10|t");
    assert_eq!(feed.pg.psql("SELECT history_lost FROM rule_cdc_status"), "0");
}

#[tokio::test]
async fn rows_and_webhooks_that_share_an_id_are_messages_of_their_own() {
    let feed = with(
        "CREATE TABLE t (n int PRIMARY KEY, id text, note text); \
         SELECT rule_webhook_register('second', 'https://example.com/2'), rule_webhook_enable_nats(2, 'webhooks.w', 'nats'); \
         UPDATE rule_webhooks SET payload_format = 'data'; \
         SELECT rule_webhook_link_table(w, 't', '{insert}', p_payload_column => 'note', p_message_id_column => 'id') \
         FROM unnest('{1,2}'::int[]) w",
    )
    .await;
    feed.pg.psql("INSERT INTO t VALUES (1, 'same', 'a'), (2, 'same', 'b'), (3, NULL, 'c'), (4, '', 'd')");
    feed.pg.psql("INSERT INTO t VALUES (5, 'same', 'e')");
    run_to_the_end(&feed).await;
    let messages = raw(&feed).await;
    let seen: Vec<_> = messages.iter().map(|m| format!("{}:{}", m.text(), m.header("Walhook-Message-Id"))).collect();
    assert_eq!(
        seen,
        ["a:same", "a:same", "b:same", "b:same", "c:", "c:", "d:", "d:", "e:same", "e:same"].map(str::to_owned)
    );
    let statuses = "SELECT count(*), count(DISTINCT message_id), count(DISTINCT sequence_number), bool_and(message_id = event_id) \
                    FROM rule_nats_publish_history WHERE success";
    assert_eq!(feed.pg.psql(statuses), "10|10|10|t");
}

#[tokio::test]
async fn a_row_that_can_be_no_message_is_a_dead_letter_alone_and_what_was_kept_of_it_is_sent_as_it_is() {
    let feed = with(
        "CREATE TABLE t (n int PRIMARY KEY, topic text, id text, tenant text, body bytea); \
         SELECT rule_webhook_link_table(1, 't', '{insert}', 'webhooks.{topic}', p_payload_column => 'body', \
             p_message_id_column => 'id', p_headers_columns => '{\"Tenant\": \"tenant\", \"Content-Type\": \"topic\"}')",
    )
    .await;
    feed.pg.psql("UPDATE rule_webhooks SET nats_headers = '{\"tenant\": \"of all\", \"X-Team\": \"t\"}'");
    let bad = [
        ("'x', 'i', 't', NULL", "its payload, column \"body\", is NULL"),
        ("'x', E'a\\nb', 't', 'b'", "its message id, column \"id\""),
        ("'x', repeat('i', 513), 't', 'b'", "its message id, column \"id\""),
        ("'x', 'i', E'a\\r\\nNats-Msg-Id: forged', 'b'", "its header \"Tenant\", column \"tenant\""),
        ("'x', 'i', repeat('t', 9000), 'b'", "its headers have 90"),
        ("NULL, 'i', 't', 'b'", "its subject needs column \"topic\""),
        ("'a.*', 'i', E'\\x01', 'b'", "its header \"Tenant\""),
    ];
    for (index, (values, _)) in bad.iter().enumerate() {
        feed.pg.psql(&format!("INSERT INTO t VALUES ({index}, {values})"));
    }
    feed.pg.psql("INSERT INTO t VALUES (100, 'good', 'i', NULL, '\\xff')");
    // A subject that no stream takes: the letter has body and headers.
    feed.pg.psql("UPDATE rule_webhook_links SET subject_template = 'nowhere.{topic}'");
    feed.pg.psql("INSERT INTO t VALUES (101, 'lost', 'mine', 'acme', '\\x00ff')");
    feed.pg.psql("UPDATE rule_webhook_links SET subject_template = 'webhooks.{topic}'");
    let mut walhook = feed.run();
    feed.confirmed().await;
    let reasons = feed.pg.psql("SELECT reason FROM rule_nats_dead_letters ORDER BY dead_letter_id");
    let reasons: Vec<_> = reasons.lines().collect();
    assert_eq!(reasons.len(), bad.len() + 1, "{reasons:#?}");
    for (reason, (values, expected)) in reasons.iter().zip(bad) {
        assert!(reason.starts_with(expected), "{values}: {reason}");
    }
    let forged = "SELECT count(*) FROM rule_nats_dead_letters WHERE headers ->> 'Nats-Msg-Id' <> event_id";
    assert_eq!(feed.pg.psql(forged), "0", "no value becomes a header of another name");
    let messages = raw(&feed).await;
    assert_eq!(messages.len(), 1);
    // What the webhook's headers say stands in where the row says nothing.
    let shown = ["tenant", "Tenant", "X-Team", "Content-Type"].map(|name| messages[0].header(name).to_owned());
    assert_eq!((shown, &messages[0].body), (["of all", "", "t", "good"].map(str::to_owned), &vec![0xFF]));

    feed.pg.psql("SELECT rule_nats_dead_letter_retry(dead_letter_id, 'webhooks.again') FROM rule_nats_dead_letters WHERE subject LIKE 'nowhere.%'");
    feed.confirmed().await;
    let again = raw(&feed).await.remove(1);
    assert_eq!((again.subject.as_str(), &again.body), ("webhooks.again", &vec![0, 0xFF]));
    let shown = ["Tenant", "Content-Type", "Walhook-Message-Id", "Walhook-Headers", "Walhook-Type"]
        .map(|name| again.header(name).to_owned());
    assert_eq!(shown, ["acme", "lost", "mine", "Content-Type Tenant", "public.t.insert"]);
    assert!(
        !again.header("Walhook-Retry-Of").is_empty() && again.header("Walhook-Retry-Of") != again.header("Nats-Msg-Id")
    );
    eventually("the retry in the history", async || {
        let rows =
            "SELECT count(*) FROM rule_nats_publish_history WHERE success AND payload = '{\"$base64\": \"AP8=\"}'";
        (feed.pg.psql(rows) == "1").then_some(())
    })
    .await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn columns_that_are_dropped_renamed_or_changed_amid_a_run_are_named_and_each_row_follows_the_link_of_its_commit()
{
    let feed = with(
        "CREATE TABLE t (n int PRIMARY KEY, body text, other text); \
         SELECT rule_webhook_link_table(1, 't', '{insert}', p_payload_column => 'body', p_headers_columns => '{\"N\": \"n\"}')",
    )
    .await;
    let problem = || feed.pg.psql("SELECT ok, array_to_string(problems, ';') FROM rule_webhook_links_check()");
    let check = |expected: &str| {
        let said = problem();
        assert!(said.contains(expected) && said.starts_with('f'), "{expected}: {said}");
    };
    feed.pg.psql("INSERT INTO t VALUES (1, 'one', 'x')");
    feed.pg.psql("ALTER TABLE t RENAME body TO text");
    check("payload_column names 'body', which the table has not. The columns are n, text, other");
    feed.pg.psql("INSERT INTO t VALUES (2, 'two', 'x')");
    // Linked by its new name: from this commit on.
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't', '{insert}', p_payload_column => 'text', p_headers_columns => '{\"N\": \"n\"}')");
    feed.pg.psql("INSERT INTO t VALUES (3, 'three', 'x')");
    feed.pg.psql("ALTER TABLE t ALTER COLUMN text TYPE int USING 0");
    check("payload_column names 'text', whose type is integer");
    feed.pg.psql("INSERT INTO t VALUES (4, 4, 'x')");
    feed.pg.psql("ALTER TABLE t ALTER COLUMN text TYPE bytea USING ''");
    feed.pg.psql("INSERT INTO t VALUES (5, '\\x35', 'x')");
    feed.pg.psql("UPDATE rule_webhooks SET payload_format = 'webhook'");
    check("UPDATE public.rule_webhooks SET payload_format = 'data' WHERE webhook_id = 1;");
    feed.pg.psql("INSERT INTO t VALUES (6, '\\x36', 'x')");
    feed.pg.psql("UPDATE public.rule_webhooks SET payload_format = 'data' WHERE webhook_id = 1");
    feed.pg.psql("INSERT INTO t VALUES (7, '\\x37', 'x')");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't', '{insert}', p_payload_column => 'other')");
    feed.pg.psql("INSERT INTO t VALUES (8, '\\x38', 'eight')");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't', '{insert}')");
    feed.pg.psql("INSERT INTO t VALUES (9, NULL, 'nine')");
    run_to_the_end(&feed).await;
    let messages = raw(&feed).await;
    let seen: Vec<_> = messages.iter().map(|message| format!("{}{}", message.header("N"), message.text())).collect();
    let expected = ["1one", "3three", "55", "77", "eight", "{\"n\":9,\"text\":null,\"other\":\"nine\"}"];
    assert_eq!(seen, expected.map(str::to_owned));
    let letters = "SELECT convert_from(payload, 'UTF8'), reason FROM rule_nats_dead_letters ORDER BY dead_letter_id";
    let letters = feed.pg.psql(letters);
    let letters: Vec<_> = letters.lines().collect();
    assert_eq!(letters.len(), 3, "{letters:#?}");
    for (letter, (payload, reason)) in letters.iter().zip([
        ("{\"n\":2,\"text\":\"two\",\"other\":\"x\"}|", "payload_column: \"body\" is not a column of public.t"),
        ("{\"n\":4,\"text\":4,\"other\":\"x\"}|", "is not of type json, jsonb, text, varchar or bytea"),
        ("6|", "which needs payload_format data"),
    ]) {
        assert!(letter.starts_with(payload) && letter.contains(reason), "{letter}");
    }
}

#[tokio::test]
async fn kills_at_any_moment_lose_and_double_no_row_of_an_outbox_that_is_deleted_at_once() {
    let feed = with(OUTBOX).await;
    feed.pg.psql("ALTER TABLE outbox ALTER COLUMN payload SET NOT NULL");
    let rows = 40;
    for round in 0..6 {
        let mut walhook = feed.run();
        let first = round * rows;
        feed.pg.psql(&format!(
            "DO $$ BEGIN FOR n IN {first} .. {first} + {rows} - 1 LOOP \
                 INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', n, 'E', to_jsonb(n)); \
                 IF n % 7 = 0 THEN DELETE FROM outbox; COMMIT; END IF; \
             END LOOP; DELETE FROM outbox; END $$"
        ));
        let wanted = u64::try_from(first).unwrap() + 1 + 6 * u64::try_from(round).unwrap();
        eventually("some of them in the stream", async || {
            (feed.last_sequence("WEBHOOKS").await >= wanted).then_some(())
        })
        .await;
        walhook.kill9();
    }
    run_to_the_end(&feed).await;
    let seen: Vec<i64> = raw(&feed).await.iter().map(|message| message.text().parse().unwrap()).collect();
    assert_eq!(seen, (0..6 * rows).collect::<Vec<i64>>());
    assert_eq!(feed.pg.psql("SELECT count(*) FROM outbox"), "0");
}

#[tokio::test]
async fn a_large_body_goes_into_the_object_store_and_rows_from_before_the_link_are_sent_by_a_backfill() {
    let nats = Nats::builder().config("max_payload: 64KB").start().await;
    let feed = on(
        Feed::on(Postgres::set_up().await, nats),
        "CREATE TABLE t (n int PRIMARY KEY, body bytea NOT NULL); \
         UPDATE rule_webhooks SET on_error = 'object_store'; \
         INSERT INTO t VALUES (1, '\\x0102'), (2, decode(repeat('ff00', 100000), 'hex')); \
         SELECT rule_webhook_link_table(1, 't', '{insert}', p_payload_column => 'body', p_message_id_column => 'n')",
    );
    let mut walhook = feed.run();
    let done = feed.command("backfill").args(["--table", "t"]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    feed.pg.psql("INSERT INTO t VALUES (3, decode(repeat('00ff', 100000), 'hex'))");
    feed.confirmed().await;
    let messages = raw(&feed).await;
    let ids: Vec<_> =
        messages.iter().map(|m| format!("{} {}", m.header("Walhook-Message-Id"), m.header("Walhook-Op"))).collect();
    assert_eq!(ids, ["1 snapshot", "2 snapshot", "3 insert"]);
    assert_eq!(messages[0].body, [1, 2]);
    for (message, pair) in messages[1..].iter().zip([[0xFF, 0], [0, 0xFF]]) {
        let (bucket, name) = message.header("Walhook-Object").split_once('/').unwrap();
        let store = feed.nats.jetstream().await.get_object_store(bucket).await.unwrap();
        let mut bytes = Vec::new();
        store.get(name).await.unwrap().read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, pair.repeat(100_000));
    }
    // A backfill of a link that would make dead letters is refused before its first row.
    feed.pg.psql("UPDATE rule_webhooks SET payload_format = 'webhook'");
    let refused = feed.pg.try_psql("SELECT rule_cdc_backfill_start('t')").unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert!(refused.message().contains("payload_format data"), "{refused:?}");
    assert!(refused.hint().unwrap().contains("SET payload_format = 'data' WHERE webhook_id = 1;"), "{refused:?}");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn rows_that_are_long_deleted_come_again_from_the_stream_and_from_the_wal_byte_for_byte() {
    let feed = with(
        "CREATE TABLE t (n int PRIMARY KEY, body bytea NOT NULL); \
         SELECT rule_webhook_link_table(1, 't', '{insert}', p_payload_column => 'body', p_message_id_column => 'n', \
                                        p_headers_columns => '{\"N\": \"n\"}')",
    )
    .await;
    let mut walhook = feed.run();
    feed.confirmed().await;
    feed.pg.psql("SELECT rule_cdc_anchor_create()");
    let from = feed.pg.psql("SELECT pg_current_wal_insert_lsn()");
    feed.pg.psql("INSERT INTO t VALUES (1, '\\x00ff'), (2, '\\x6e6f206a736f6e'); DELETE FROM t");
    // By the rules of its commit, also for a replay.
    feed.pg.psql("SELECT rule_webhook_unlink_table(1, 't')");
    feed.confirmed().await;
    let first = raw(&feed).await;
    assert_eq!(first.len(), 2);
    for (via, prefix) in [("stream", "replay.1"), ("wal", "replay.2")] {
        let replay = ["--from", &from, "--via", via, "--create-stream", "REPLAY", "--table", "t"];
        let done = feed.command("replay").args(replay).finish();
        assert_eq!(done.code, Some(0), "{via}: {done:?}");
        let again = raw_of(&feed, "REPLAY").await;
        let again = &again[again.len() - 2..];
        for (again, first) in again.iter().zip(&first) {
            assert_eq!((&again.subject, &again.body), (&format!("{prefix}.{}", first.subject), &first.body), "{via}");
            assert_eq!(again.header("Walhook-Replay-Of"), first.header("Nats-Msg-Id"));
            for name in ["N", "Content-Type", "Walhook-Message-Id", "Walhook-Headers", "Walhook-Type", "Walhook-Op"] {
                assert_eq!(again.header(name), first.header(name), "{via}: {name}");
            }
        }
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}
