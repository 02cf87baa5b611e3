//! The exit code of `walhook check` is that of `walhook run`, for each condition that ends `run` at its start; and what of the
//! streams' ends, limits and properties `walhook check` finds.

#![allow(clippy::unwrap_used)]

use crate::{
    check::{Checked, ROOM, run_remedy, sound},
    support::{
        self, eventually,
        feed::Feed,
        walhook::{Builder, Walhook},
    },
};

use async_nats::HeaderMap;
use serde_json::{Value, json};

/// A condition that ends `walhook run` at its start.
struct Condition {
    /// The finding that says so.
    code: &'static str,
    exit_code: i32,
    /// Statements that make it, one by one.
    make: &'static [&'static str],
    /// The same that end it.
    end: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// Afterwards `walhook setup` is run.
    sets_up: bool,
}

const fn condition(
    code: &'static str,
    exit_code: i32,
    make: &'static [&'static str],
    end: &'static [&'static str],
) -> Condition {
    Condition { code, exit_code, make, end, environment: &[], sets_up: false }
}

const fn setting(
    code: &'static str,
    exit_code: i32,
    environment: &'static [(&'static str, &'static str)],
) -> Condition {
    Condition { environment, ..condition(code, exit_code, &[], &[]) }
}

const fn set_up(code: &'static str, exit_code: i32, make: &'static [&'static str]) -> Condition {
    Condition { sets_up: true, ..condition(code, exit_code, make, &[]) }
}

const CONDITIONS: &[Condition] = &[
    set_up("schema_version", 2, &["DELETE FROM rule_cdc_migrations WHERE version = '014'"]),
    condition(
        "identity",
        3,
        &["UPDATE rule_cdc_identity SET system_identifier = '1'"],
        &["UPDATE rule_cdc_identity SET system_identifier = (SELECT s.system_identifier FROM pg_control_system() s)"],
    ),
    set_up("slot_missing", 2, &["SELECT pg_drop_replication_slot('walhook')"]),
    condition(
        "slot_not_ours",
        2,
        &[
            "SELECT pg_drop_replication_slot('walhook')",
            "SELECT FROM pg_create_logical_replication_slot('walhook', 'test_decoding')",
        ],
        &[
            "SELECT pg_drop_replication_slot('walhook')",
            "SELECT FROM pg_create_logical_replication_slot('walhook', 'pgoutput')",
        ],
    ),
    set_up("publication_own_table", 2, &["ALTER PUBLICATION walhook_changes DROP TABLE rule_webhooks"]),
    condition(
        "row_security",
        4,
        &["ALTER TABLE rule_webhooks ENABLE ROW LEVEL SECURITY"],
        &["ALTER TABLE rule_webhooks DISABLE ROW LEVEL SECURITY"],
    ),
    condition(
        "privileges",
        4,
        &["REVOKE UPDATE ON rule_nats_checkpoints FROM walhook_streamer"],
        &["GRANT UPDATE ON rule_nats_checkpoints TO walhook_streamer"],
    ),
    condition(
        "role_replication",
        4,
        &["ALTER ROLE walhook_streamer NOREPLICATION"],
        &["ALTER ROLE walhook_streamer REPLICATION"],
    ),
    condition(
        "checkpoints",
        3,
        &["UPDATE rule_nats_checkpoints SET system_identifier = '1' WHERE stream_name <> ''"],
        &[
            "UPDATE rule_nats_checkpoints SET system_identifier = (SELECT s.system_identifier::text FROM pg_control_system() s) WHERE stream_name <> ''",
        ],
    ),
    condition(
        "checkpoints",
        2,
        &["UPDATE rule_nats_checkpoints SET epoch = -5 - epoch WHERE stream_name = ''"],
        &["UPDATE rule_nats_checkpoints SET epoch = 100 WHERE stream_name = ''"],
    ),
    condition(
        "database_copy",
        3,
        &["CREATE TABLE runs AS TABLE walhook.rule_cdc_runs", "DELETE FROM walhook.rule_cdc_runs"],
        &["INSERT INTO walhook.rule_cdc_runs TABLE runs", "DROP TABLE runs"],
    ),
    setting("http", 2, &[("WALHOOK_HTTP", "0.0.0.0:9")]),
    setting("postgres_connection", 4, &[("PGUSER", "nobody")]),
    setting("postgres_connection", 2, &[("PGDATABASE", "nowhere")]),
];

/// A verb as the role that `run` has.
fn verb(feed: &Feed, verb: &str, environment: &[(&str, &str)]) -> Builder {
    let is_set = |name: &str| environment.iter().any(|(set, _)| *set == name);
    let mut builder = Walhook::command(verb).env("PGHOST", "127.0.0.1").env("PGPORT", feed.pg.port().to_string());
    for (name, value) in [("PGUSER", "walhook_streamer"), ("PGDATABASE", "postgres")] {
        if !is_set(name) {
            builder = builder.env(name, value);
        }
    }
    environment.iter().fold(builder, |builder, (name, value)| builder.env(*name, *value))
}

fn checked(feed: &Feed, environment: &[(&str, &str)]) -> Checked {
    Checked::by(verb(feed, "check", environment).args(ROOM))
}

/// Both end with this code, and the check for this reason.
fn agree(feed: &Feed, code: &str, exit_code: i32, environment: &[(&str, &str)]) -> Checked {
    let checked = checked(feed, environment);
    assert_eq!(checked.code(), exit_code, "check: {code}: {:#?}", checked.findings);
    assert!(
        checked.findings.iter().any(|found| found["code"] == code && found["exit_code"] == exit_code),
        "{checked:#?}"
    );
    let mut walhook = verb(feed, "run", environment).start();
    assert_eq!(walhook.wait(support::DEADLINE), exit_code, "run: {code}: {}", walhook.log());
    checked
}

/// A feed that has published something.
async fn published() -> Feed {
    let feed = sound("default").await;
    publishes(&feed, 1).await;
    feed
}

/// Publishes row `id`.
async fn publishes(feed: &Feed, id: i32) {
    let mut walhook = feed.run();
    feed.pg.psql(&format!("INSERT INTO t VALUES ({id})"));
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn check_ends_as_run_does_for_each_condition_that_ends_run_at_its_start() {
    let feed = published().await;
    let client = feed.pg.client().await;
    let all = async |statements: &[&str]| {
        for statement in statements {
            client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
    };
    for (id, condition) in (2..).zip(CONDITIONS) {
        all(condition.make).await;
        agree(&feed, condition.code, condition.exit_code, condition.environment);
        all(condition.end).await;
        if condition.sets_up {
            let done = feed.command("setup").finish();
            assert_eq!(done.code, Some(0), "{}: {done:?}", condition.code);
        }
        let checked = checked(&feed, &[]);
        assert_eq!(checked.code(), 0, "after {}: {:#?}", condition.code, checked.findings);
        publishes(&feed, id).await;
    }
    // A publication that was made again is not there for what was committed before.
    all(&["DROP PUBLICATION walhook_changes"]).await;
    let found = agree(&feed, "publication_missing", 2, &[]);
    run_remedy(&feed, found.one("publication_missing")).await;
    let found = agree(&feed, "publication_newer", 2, &[]);
    run_remedy(&feed, found.one("publication_newer")).await;
    assert_eq!(checked(&feed, &[]).code(), 0);
    publishes(&feed, 100).await;
    // The slot is lost.
    all(&["ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()"]).await;
    eventually("the slot to be lost", async || {
        let write = "SELECT pg_logical_emit_message(false, 'x', repeat('y', 20000000)), pg_switch_wal()";
        all(&[write, "CHECKPOINT"]).await;
        (feed.pg.psql("SELECT wal_status FROM pg_replication_slots") == "lost").then_some(())
    })
    .await;
    agree(&feed, "slot_lost", 3, &[]);
}

/// What waits in `run` is no end: the check says 1, and `run` goes on by itself.
#[tokio::test]
async fn where_run_waits_check_says_that_a_server_is_away() {
    let feed = published().await;
    feed.nats.stop();
    assert_eq!(checked(&feed, &[]).code(), 1);
    feed.pg.psql("ALTER DATABASE postgres SET default_transaction_read_only = on");
    let found = checked(&feed, &[]);
    assert!(found.has("read_only") && found.code() == 1, "{found:#?}");
    let mut walhook = feed.run();
    walhook.logged("read-only").await;
    feed.nats.restart().await;
    let writer = feed.pg.client().await;
    for statement in
        ["SET default_transaction_read_only = off", "ALTER DATABASE postgres RESET default_transaction_read_only"]
    {
        writer.batch_execute(statement).await.unwrap();
    }
    feed.pg.psql("INSERT INTO t VALUES (2)");
    feed.stored(2).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert_eq!(checked(&feed, &[]).code(), 0);
}

/// Publishes a copy of the stream's last message with other headers.
async fn forge(feed: &Feed, id: impl Fn(&str) -> String, epoch: &str) {
    let last = feed.messages().await.pop().unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in &last.headers {
        let value = match name.as_str() {
            "Nats-Msg-Id" | "Walhook-Id" => id(value),
            "Walhook-Epoch" => epoch.to_owned(),
            _ => value.clone(),
        };
        if name != "Nats-Expected-Last-Sequence" {
            headers.insert(name.as_str(), value.as_str());
        }
    }
    headers.insert("Walhook-Epoch", epoch);
    let jetstream = feed.nats.jetstream().await;
    jetstream.publish_with_headers(last.subject, headers, "{}".into()).await.unwrap().await.unwrap();
}

async fn take_out_last(feed: &Feed) {
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    stream.delete_message(feed.last_sequence("WEBHOOKS").await).await.unwrap();
}

/// Asks JetStream, which agrees.
async fn api(feed: &Feed, subject: &str, request: &Value) -> Value {
    let client = feed.nats.client().await;
    let answer =
        client.request(format!("$JS.API.STREAM.{subject}.WEBHOOKS"), request.to_string().into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{subject}: {answer}");
    answer
}

/// The stream's configuration with another owner, or with none.
fn owned_by(config: &Value, owner: Option<&str>) -> Value {
    let mut config = config.clone();
    config["metadata"] = owner.map_or_else(|| json!({}), |owner| json!({ "walhook.source.walhook": owner }));
    config
}

#[tokio::test]
async fn a_stream_that_does_not_end_where_the_events_end_is_found_before_run_ends_with_it() {
    let feed = published().await;
    assert_eq!(checked(&feed, &[]).code(), 0);

    // Of a later run, of another source, and of another history: whose position lies beyond the WAL.
    forge(&feed, |id| format!("{id}9"), "999999").await;
    let found = agree(&feed, "stream_tail", 5, &[]);
    assert!(found.text("stream_tail").contains("Run 999999"), "{found:#?}");
    take_out_last(&feed).await;
    forge(&feed, |id| id.replace("walhook-0000", "walhook-0fff"), "1").await;
    let found = agree(&feed, "stream_tail", 3, &[]);
    assert!(found.text("stream_tail").contains("beyond PostgreSQL's WAL"), "{found:#?}");
    take_out_last(&feed).await;

    // A copy of the database that has gone on publishing there: its stream is not known here, and nobody's.
    let config = api(&feed, "INFO", &json!({})).await["config"].clone();
    api(&feed, "UPDATE", &owned_by(&config, None)).await;
    feed.pg.psql("CREATE TABLE saved AS SELECT * FROM rule_nats_checkpoints WHERE stream_name <> ''");
    feed.pg.psql("DELETE FROM rule_nats_checkpoints WHERE stream_name <> ''");
    let found = agree(&feed, "stream_tail", 3, &[]);
    assert!(found.text("stream_tail").contains("its metadata names no database"), "{found:#?}");
    feed.pg.psql("INSERT INTO rule_nats_checkpoints SELECT * FROM saved");
    api(&feed, "UPDATE", &config).await;
    assert_eq!(checked(&feed, &[]).code(), 0);

    // Made anew, and set back: the remedy is a statement.
    api(&feed, "DELETE", &json!({})).await;
    api(&feed, "CREATE", &config).await;
    let found = agree(&feed, "stream_lost", 3, &[]);
    assert!(found.text("stream_lost").contains("made anew"), "{found:#?}");
    let remedy = found.remedy("stream_lost");
    let statement = &remedy[remedy.find("DELETE FROM rule_nats_checkpoints").unwrap()..].trim_end_matches([';', '.']);
    assert_eq!(feed.pg.psql(&format!("WITH d AS ({statement} RETURNING 1) SELECT count(*) FROM d")), "1");
    assert_eq!(checked(&feed, &[]).code(), 0);
    publishes(&feed, 2).await;
    feed.pg.psql("UPDATE rule_nats_checkpoints SET sequence = sequence + 5 WHERE stream_name <> ''");
    let found = agree(&feed, "stream_lost", 3, &[]);
    assert!(found.text("stream_lost").contains("had taken message"), "{found:#?}");
    feed.pg.psql("UPDATE rule_nats_checkpoints SET sequence = sequence - 5 WHERE stream_name <> ''");

    // Of another database, also where no webhook publishes by it: `run` looks at the streams of each configuration.
    feed.pg.psql("UPDATE rule_webhooks SET nats_enabled = false");
    api(&feed, "UPDATE", &owned_by(&config, Some("somebodyelse"))).await;
    agree(&feed, "stream_owner", 3, &[]);
    api(&feed, "UPDATE", &config).await;
    assert_eq!(checked(&feed, &[]).code(), 0);
}

#[tokio::test]
async fn another_writer_in_a_strict_stream_is_found_and_with_too_many_run_does_not_start() {
    let feed = published().await;
    let jetstream = feed.nats.jetstream().await;
    jetstream.publish("webhooks.strange", "{}".into()).await.unwrap().await.unwrap();
    let found = checked(&feed, &[]);
    assert!(found.text("stream_writers").contains("\"webhooks.strange\"") && found.code() == 0, "{found:#?}");
    run_remedy(&feed, found.one("stream_writers")).await;
    let found = checked(&feed, &[]);
    assert!(!found.has("stream_writers") && found.code() == 0, "{found:#?}");
    // Beyond what a start reads backwards.
    feed.pg.psql("UPDATE rule_nats_streams SET ordering = 'strict'");
    let client = feed.nats.client().await;
    let count = walhook::nats::tail::STRICT_STEPS_MAX + 100;
    for _ in 0..count {
        client.publish("webhooks.strange", "{}".into()).await.unwrap();
    }
    client.flush().await.unwrap();
    eventually("all of them in the stream", async || (feed.last_sequence("WEBHOOKS").await > count).then_some(()))
        .await;
    let found = agree(&feed, "stream_tail", 3, &[]);
    let remedy = found.remedy("stream_tail");
    feed.pg.psql(remedy[remedy.find("UPDATE rule_nats_streams").unwrap()..].trim_end_matches('.'));
    assert_eq!(checked(&feed, &[]).code(), 0);
    publishes(&feed, 2).await;
}

/// Rows as no function of walhook writes them, and what else is wrong with one link: each is found under its code.
#[tokio::test]
async fn each_trouble_of_a_link_and_of_a_stream_row_has_its_code() {
    let feed = sound("default").await;
    let client = feed.pg.client().await;
    // From before the database checked its rows.
    client
        .batch_execute(
            "DO $$ DECLARE c record; BEGIN FOR c IN SELECT conrelid::regclass AS t, conname FROM pg_constraint \
                 WHERE contype = 'c' AND conrelid IN ('rule_webhook_links'::regclass, 'rule_nats_streams'::regclass) \
             LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.t, c.conname); END LOOP; END $$; \
             CREATE TABLE links AS TABLE rule_webhook_links; SET session_replication_role = replica",
        )
        .await
        .unwrap();
    let again = "UPDATE rule_webhook_links l SET table_schema = s.table_schema, table_name = s.table_name, operations = s.operations, \
                     subject_template = s.subject_template, columns = s.columns, filter = s.filter, when_changed = s.when_changed, \
                     include_old = s.include_old, payload_column = NULL, headers_columns = NULL, mask = NULL, mask_columns = NULL, rename = NULL \
                 FROM links s WHERE s.link_id = l.link_id";
    let link = |change: &str| format!("UPDATE rule_webhook_links SET {change}");
    let cases = [
        ("column_missing", link("when_changed = '{gone}'"), again),
        ("columns_missing", link("columns = '{id,gone}'"), again),
        ("columns_empty", link("columns = '{}'"), again),
        ("filter_kind", link("filter = '[]'"), again),
        ("when_changed_empty", link("when_changed = '{}'"), again),
        ("template_braces", link("subject_template = 'webhooks.{id'"), again),
        ("template_subject", link("subject_template = 'webhooks..{id}'"), again),
        ("identity_when_changed", link("when_changed = '{note}'"), again),
        ("identity_filter", link("filter = '{\"note\": \"x\"}'"), again),
        ("identity_old", link("include_old = true"), again),
        ("operations", link("operations = '{insert,gone}'"), again),
        ("message_settings", link("payload_column = 'note'"), again),
        ("message_settings", link("headers_columns = '{\"A\": \"note\"}'"), again),
        ("message_format", link("payload_column = 'note', operations = '{insert}'"), again),
        ("message_column", link("payload_column = 'id', operations = '{insert}'"), again),
        ("message_nullable", link("payload_column = 'note', operations = '{insert}'"), again),
        ("mask_refused", link("mask = '[]'"), again),
        ("mask_broken", link("mask = '{\"note\": \"drop\"}', mask_columns = '{note,id}'"), again),
        ("mask_new_column", link("mask = '{\"note\": \"drop\"}', mask_columns = '{note}'"), again),
        ("rename_refused", link("rename = '{\"note\": \"id\"}'"), again),
        ("rename_missing", link("rename = '{\"gone\": \"x\"}'"), again),
        ("table_unfit", link("table_schema = 'pg_catalog', table_name = 'pg_class'"), again),
        (
            "table_published_twice",
            "ALTER PUBLICATION walhook_inserts ADD TABLE t".to_owned(),
            "ALTER PUBLICATION walhook_inserts DROP TABLE t",
        ),
        (
            "stream_rows",
            "INSERT INTO rule_nats_streams (stream_name, subjects) VALUES ('A', '{webhooks.a}')".to_owned(),
            "DELETE FROM rule_nats_streams",
        ),
        (
            "stream_partial",
            "INSERT INTO rule_nats_streams (stream_name, subjects) VALUES ('WEBHOOKS', '{webhooks.a.7.>}'); \
             UPDATE rule_webhook_links SET subject_template = 'webhooks.a.{id}.{op}'"
                .to_owned(),
            "DELETE FROM rule_nats_streams; UPDATE rule_webhook_links SET subject_template = NULL",
        ),
        (
            "stream_row_impossible",
            "INSERT INTO rule_nats_streams (stream_name, subjects, retention_policy) VALUES ('WEBHOOKS', '{webhooks.>}', 'gone')"
                .to_owned(),
            "DELETE FROM rule_nats_streams",
        ),
    ];
    let mut unseen = Vec::new();
    for (code, make, end) in &cases {
        client.batch_execute(make).await.unwrap_or_else(|error| panic!("{make}: {error:?}"));
        let found = checked(&feed, &[]);
        if !found.has(code) || found.code() != 0 {
            unseen.push((*code, found.findings));
        }
        client.batch_execute(end).await.unwrap_or_else(|error| panic!("{end}: {error:?}"));
    }
    assert!(unseen.is_empty(), "{unseen:#?}");
    let found = checked(&feed, &[]);
    let codes: Vec<_> = found.findings.iter().map(|found| found["code"].as_str().unwrap()).collect();
    assert!(cases.iter().all(|(code, ..)| !codes.contains(code)), "in the end: {codes:?}");

    // What a stream that is there may have: an ack that means little, and one that means nothing.
    let made = |change: Value| {
        let mut config = json!({ "name": "WEBHOOKS", "subjects": ["webhooks.>"] });
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        config
    };
    for (code, severity, change) in [
        ("stream_properties", "warning", json!({ "storage": "memory" })),
        ("stream_unusable", "error", json!({ "no_ack": true, "storage": "file" })),
        ("stream_replicas", "note", json!({ "storage": "file" })),
    ] {
        api(&feed, "CREATE", &made(change)).await;
        let found = checked(&feed, &[]);
        assert_eq!((found.one(code)["severity"].as_str(), found.code()), (Some(severity), 0), "{found:#?}");
        api(&feed, "DELETE", &json!({})).await;
    }
}
