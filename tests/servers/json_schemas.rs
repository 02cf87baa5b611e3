//! JSON Schemas for consumers: each row is valid by the schema that its header names, and the schema is in the bucket before.

#![allow(clippy::unwrap_used)]

use crate::{
    support,
    values::{self, Sample},
};

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_nats::jetstream;
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use support::{
    Nats, Postgres, eventually,
    feed::{Feed, Message},
    folder::Folder,
    process::User,
    walhook::Finished,
};

const BUCKET: &str = "schemas_walhook";
const FAR: Duration = Duration::from_secs(60);

async fn fed(feed: Feed) -> Feed {
    feed.pg.psql("UPDATE rule_nats_config SET publish_schemas = true");
    feed.webhook("w");
    feed
}

async fn bucket_of(feed: &Feed, name: &str) -> BTreeMap<String, Value> {
    let Ok(store) = feed.nats.jetstream().await.get_key_value(name).await else { return BTreeMap::new() };
    let keys: Vec<String> = store.keys().await.unwrap().try_collect().await.unwrap();
    let mut entries = BTreeMap::new();
    for key in keys {
        let text = store.get(&key).await.unwrap().unwrap();
        entries.insert(key, serde_json::from_slice(&text).unwrap());
    }
    entries
}

fn schema_of(message: &Message) -> &str {
    message.header("Walhook-Schema")
}

/// What of a payload the schema describes, in whichever format.
fn rows(payload: &Value) -> Vec<&Value> {
    let places = ["/data", "/event/old", "/event/old_key", "/before", "/after"];
    let found: Vec<_> = places.iter().filter_map(|place| payload.pointer(place)).collect();
    let is_envelope = payload.get("event").is_some() || payload.get("source").is_some();
    if is_envelope { found.into_iter().filter(|row| !row.is_null()).collect() } else { vec![payload] }
}

/// Panics where a row is not valid by its schema. Returns how many rows there were.
fn validate(messages: &[Message], schemas: &BTreeMap<String, Value>) -> usize {
    let validators: BTreeMap<_, _> =
        schemas.iter().map(|(key, schema)| (key.as_str(), jsonschema::validator_for(schema).unwrap())).collect();
    let mut count = 0;
    for message in messages {
        let validator = validators.get(schema_of(message)).unwrap_or_else(|| panic!("no schema for {message:?}"));
        for row in rows(&message.payload) {
            if let Err(error) = validator.validate(row) {
                panic!("{error} at {}: {row} by {}", error.instance_path(), schemas[schema_of(message)]);
            }
            count += 1;
        }
    }
    count
}

#[tokio::test]
async fn every_row_of_every_type_is_valid_by_the_schema_that_it_names() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).set_up().start().await;
        let feed = fed(Feed::on(pg, Nats::start().await)).await;
        feed.webhook("d");
        feed.pg
            .psql("UPDATE rule_webhooks SET payload_format = CASE webhook_id WHEN 1 THEN 'data' ELSE 'debezium' END");
        feed.pg.psql(values::SETUP);
        // What no reader of these tests can parse, though it is JSON.
        let is_read = |sample: &&Sample| !["ud800", "1e999999"].iter().any(|part| sample.value.contains(part));
        let samples: Vec<&Sample> =
            [values::BUILT_IN, values::ARRAYS, values::USER_TYPES].into_iter().flatten().filter(is_read).collect();
        let mut sent: Vec<(String, String)> =
            samples.iter().map(|sample| (sample.type_name.to_owned(), values::cast(sample))).collect();
        let elements = values::BUILT_IN.iter().filter(is_read).filter(|sample| values::has_array(sample));
        let array =
            |sample: &Sample| (format!("{}[]", sample.type_name), format!("ARRAY[{}, NULL]", values::cast(sample)));
        sent.extend(elements.map(array));
        let types: BTreeSet<&String> = sent.iter().map(|(type_name, _)| type_name).collect();
        let column = |type_name: &String| format!("c{}", types.iter().position(|other| *other == type_name).unwrap());
        let columns: Vec<_> = types.iter().map(|type_name| format!("{} {type_name}", column(type_name))).collect();
        feed.pg.psql(&format!("CREATE TABLE t (id int PRIMARY KEY, {})", columns.join(", ")));
        feed.pg.psql("SELECT rule_webhook_link_table(w, 't') FROM generate_series(1, 2) w");
        let insert = |(id, (type_name, value)): (usize, &(String, String))| {
            format!("INSERT INTO t (id, {}) SELECT {id}, {value};", column(type_name))
        };
        let inserts: Vec<String> = (1..).zip(&sent).map(insert).collect();
        feed.pg.psql(&inserts.concat());
        feed.pg.psql("UPDATE t SET id = -1 WHERE id = 1; DELETE FROM t WHERE id = 2");

        let messages = feed.after(&[]).await;
        assert_eq!(messages.len(), 2 * (sent.len() + 2), "PostgreSQL {version}");
        let schemas = bucket_of(&feed, BUCKET).await;
        assert_eq!(schemas.len(), 1, "PostgreSQL {version}");
        assert!(validate(&messages, &schemas) >= messages.len());
        // And the schema says something: no type but json takes what is no value of its own.
        let schema = schemas.values().next().unwrap();
        let validator = jsonschema::validator_for(schema).unwrap();
        for type_name in &types {
            let is_any = ["json", "jsonb", "document"].contains(&type_name.trim_end_matches("[]"));
            let wrong = if type_name.ends_with("[]") { json!([{ "no": 1 }]) } else { json!({ "no": 1 }) };
            assert_eq!(validator.is_valid(&json!({ column(type_name): wrong })), is_any, "{type_name}");
        }
        assert!(!validator.is_valid(&json!({ "unknown": 1 })));
    }
}

#[tokio::test]
async fn a_schema_has_the_names_and_masks_of_its_link_and_only_rows_name_one() {
    let feed = fed(Feed::start().await).await;
    let key = Folder::new("mask", User::Ourselves);
    User::Ourselves.write(&key.path().join("key"), "a key of many bytes, for tests");
    for webhook in ["plain", "some", "outbox"] {
        feed.webhook(webhook);
    }
    feed.pg.psql(
        "CREATE TABLE people (id int PRIMARY KEY, email text, ssn text, card text, note text, city text, doubled int GENERATED ALWAYS \
         AS (id * 2) STORED); ALTER TABLE people REPLICA IDENTITY FULL; CREATE TABLE box (id int PRIMARY KEY, body jsonb)",
    );
    feed.pg.psql(
        r#"SELECT rule_webhook_link_table(1, 'people', p_include_old => true, p_rename => '{"city": "town"}',
               p_mask => '{"email": "hash", "ssn": "drop", "card": "last4", "note": "null"}');
           SELECT rule_webhook_link_table(2, 'people', ARRAY['insert', 'update', 'delete', 'truncate']);
           SELECT rule_webhook_link_table(3, 'people', p_columns => '{id,note}');
           UPDATE rule_webhooks SET payload_format = 'data' WHERE webhook_id = 4;
           SELECT rule_webhook_link_table(4, 'box', ARRAY['insert'], p_payload_column => 'body')"#,
    );
    feed.pg.psql("SELECT rule_webhook_emit_enable()");
    let mut walhook = feed.streamer().env("WALHOOK_MASK_KEY_FILE", key.path().join("key")).start();
    let row = |id: i32| format!("INSERT INTO people VALUES ({id}, 'a@b', '1', '4111 1111 1111 1234', 'n', NULL)");
    feed.pg.psql(&row(1));
    feed.pg.psql("UPDATE people SET city = 'x', email = NULL; DELETE FROM people");
    feed.stored(9).await;
    // A column that came after the mask does not leave by that link.
    feed.pg.psql(&format!("ALTER TABLE people ADD later timestamptz; {}", row(2)));
    feed.stored(12).await;
    feed.pg.psql("TRUNCATE people; INSERT INTO box VALUES (1, '{\"a\": 1}')");
    feed.pg.psql("SELECT rule_webhook_call_unified(1, '{\"b\": 1}'); SELECT rule_webhook_emit('w', '{\"c\": 1}')");
    let messages = feed.stored(16).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());

    let (named, without) = messages.split_at(12);
    assert!(without.iter().all(|message| schema_of(message).is_empty()), "{without:?}");
    let schemas = bucket_of(&feed, BUCKET).await;
    assert_eq!(schemas.len(), 4, "{:?}", schemas.keys());
    assert!(validate(named, &schemas) > named.len());
    for message in named.iter().filter(|message| message.header("Walhook-Op") == "insert") {
        let columns = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let schema = &schemas[schema_of(message)];
        assert_eq!(columns(&schema["properties"]), columns(message.data()), "{}", message.subject);
    }
    let of = |subject: &str| -> Vec<&str> {
        let its = named.iter().filter(|message| message.subject == format!("webhooks.{subject}"));
        its.map(schema_of).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let [masked] = of("w")[..] else { panic!("{named:?}") };
    assert_eq!((of("plain").len(), of("some").len()), (2, 1));
    let masked = jsonschema::validator_for(&schemas[masked]).unwrap();
    for (row, is_valid) in [
        (json!({ "email": "a".repeat(64), "card": "****1234", "note": null, "town": "x" }), true),
        (json!({ "email": "a@b" }), false),
        (json!({ "card": "4111 1111 1111 1234" }), false),
        (json!({ "note": "n" }), false),
        (json!({ "ssn": "1" }), false),
        (json!({ "city": "x" }), false),
        (json!({ "later": null }), false),
    ] {
        assert_eq!(masked.is_valid(&row), is_valid, "{row}");
    }
}

/// Rows 1, 2, 3 … in their order, each with the schema that its columns have.
async fn in_order(feed: &Feed, count: u64) -> Vec<Message> {
    let messages = feed.stored(count).await;
    let ids: Vec<_> = messages.iter().map(|message| message.data()["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (1..=count).collect::<Vec<_>>());
    let schemas = bucket_of(feed, BUCKET).await;
    validate(&messages, &schemas);
    for message in &messages {
        let schema = &schemas[schema_of(message)]["properties"];
        let columns: Vec<_> = message.data().as_object().unwrap().keys().collect();
        assert_eq!(columns, schema.as_object().unwrap().keys().collect::<Vec<_>>(), "{message:?}");
    }
    messages
}

#[tokio::test]
async fn a_schema_is_in_the_bucket_before_its_first_row_also_through_kills() {
    for transactions in ["streamed", "atomic"] {
        let feed = fed(Feed::start().await).await;
        feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
        feed.pg.psql(&format!("UPDATE rule_nats_streams SET transactions = '{transactions}'"));
        feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, a text)");
        feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
        feed.pg.psql("SELECT rule_cdc_anchor_create()");
        // What is stored then names what is in the bucket.
        let killed = async |fault: &str, sql: &str, stored_at_most: usize| {
            let mut walhook = feed.streamer().env("WALHOOK_FAULTS", fault).start();
            feed.pg.psql(sql);
            eventually(fault, async || walhook.exited()).await;
            let messages = feed.messages().await;
            assert!(messages.len() <= stored_at_most, "{transactions}, {fault}: {messages:?}");
            validate(&messages, &bucket_of(&feed, BUCKET).await);
        };
        killed("SchemaUnstored=abort@1", "INSERT INTO t VALUES (1)", 0).await;
        assert_eq!(bucket_of(&feed, BUCKET).await.len(), 0);
        killed("SchemaStored=abort@1", "INSERT INTO t VALUES (2)", 0).await;
        assert_eq!(bucket_of(&feed, BUCKET).await.len(), 1);
        // It is durable, walhook does not know, and tries again.
        let mut walhook = feed.streamer().env("WALHOOK_FAULTS", "SchemaStored=error@1").start();
        in_order(&feed, 2).await;
        // Within a transaction, and between two.
        feed.pg.psql("BEGIN; INSERT INTO t VALUES (3); ALTER TABLE t ADD b int; INSERT INTO t VALUES (4); COMMIT");
        feed.pg.psql("ALTER TABLE t ALTER b TYPE bigint; INSERT INTO t VALUES (5)");
        feed.pg.psql("ALTER TABLE t DROP a; INSERT INTO t VALUES (6)");
        in_order(&feed, 6).await;
        feed.confirmed().await;
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
        // While walhook is down, and killed between the new schema and its first row.
        feed.pg.psql("ALTER TABLE t RENAME b TO c");
        killed("SchemaUnstored=abort@1", "INSERT INTO t VALUES (7)", 6).await;
        killed("SchemaStored=abort@1", "SELECT 1", 6).await;
        assert_eq!(bucket_of(&feed, BUCKET).await.len(), 5);
        let mut walhook = feed.run();
        in_order(&feed, 7).await;
        feed.confirmed().await;
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
        // The same within a transaction, which goes whole in a batch.
        let at_most = if transactions == "atomic" { 7 } else { 8 };
        let changed = "BEGIN; INSERT INTO t VALUES (8); ALTER TABLE t ADD d text; INSERT INTO t VALUES (9); COMMIT";
        killed("SchemaUnstored=abort@2", changed, at_most).await;
        killed("SchemaStored=abort@1", "SELECT 1", at_most).await;
        let mut walhook = feed.run();
        // Back to columns that were there before: the same version.
        feed.pg.psql("ALTER TABLE t DROP d; INSERT INTO t VALUES (10)");
        let messages = in_order(&feed, 10).await;
        assert_eq!(schema_of(&messages[9]), schema_of(&messages[6]));
        assert_eq!(bucket_of(&feed, BUCKET).await.len(), 6);

        // The same rows, decoded again, have the same versions; the schemas are made again where they are lost.
        feed.nats.jetstream().await.delete_key_value(BUCKET).await.unwrap();
        let from = messages[0].payload["event"]["lsn"].as_str().unwrap();
        let arguments = ["--create-stream", "REPLAY", "--via", "wal", "--from", from];
        let done = feed.command("replay").args(arguments).finish();
        assert_eq!(done.code, Some(0), "{done:?}");
        let again = feed.messages_of("REPLAY").await;
        let versions = |messages: &[Message]| messages.iter().map(schema_of).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(versions(&again), versions(&messages));
        validate(&again, &bucket_of(&feed, BUCKET).await);
        // So does a backfill.
        feed.pg.psql("SELECT rule_webhook_link_table(1, 't', p_columns => '{id}')");
        let done = feed.command("backfill").args(["--table", "t"]).finish();
        assert_eq!(done.code, Some(0), "{done:?}");
        feed.pg.psql("INSERT INTO t VALUES (11)");
        let messages = feed.stored(21).await;
        let new = versions(&messages[10..]).into_iter().collect::<BTreeSet<_>>();
        assert_eq!(new.len(), 1, "{new:?}");
        validate(&messages[10..], &bucket_of(&feed, BUCKET).await);
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    }
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_holds_its_events_back_and_the_log_says_what_to_do() {
    let feed = fed(Feed::start().await).await;
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY); SELECT rule_webhook_link_table(1, 't')");
    let jetstream = feed.nats.jetstream().await;
    let mut kv = jetstream::kv::Config { bucket: BUCKET.to_owned(), max_age: FAR, ..jetstream::kv::Config::default() };
    jetstream.create_key_value(kv.clone()).await.unwrap();
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    walhook.logged("its entries expire").await;
    walhook.logged("UPDATE rule_nats_config SET publish_schemas = false WHERE config_id = 1").await;
    let found = feed.command("check").arg("--json").finish();
    assert!(found.stdout.contains("consumer_schemas") && found.stdout.contains("its entries expire"), "{found:?}");
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 0);
    // Somebody else's.
    jetstream.delete_key_value(BUCKET).await.unwrap();
    kv.max_age = Duration::ZERO;
    let store = jetstream.create_key_value(kv).await.unwrap();
    store.put("theirs", "1".into()).await.unwrap();
    walhook.logged("nothing in it says that it is walhook's").await;
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 0);
    // Made for walhook by somebody, and empty.
    jetstream.delete_key_value(BUCKET).await.unwrap();
    jetstream
        .create_key_value(jetstream::kv::Config { bucket: BUCKET.to_owned(), ..jetstream::kv::Config::default() })
        .await
        .unwrap();
    feed.pg.psql("INSERT INTO t VALUES (2)");
    let messages = in_order_ids(&feed, 2).await;
    let mut schemas = bucket_of(&feed, BUCKET).await;
    assert_eq!(schemas.remove("walhook").unwrap()["source"], "walhook");
    validate(&messages, &schemas);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());

    // An entry that was changed, and one that was deleted.
    let store = jetstream.get_key_value(BUCKET).await.unwrap();
    store.put(schema_of(&messages[0]), "{}".into()).await.unwrap();
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (3)");
    walhook.logged("has other content").await;
    store.delete(schema_of(&messages[0])).await.unwrap();
    in_order_ids(&feed, 3).await;
    assert_eq!(bucket_of(&feed, BUCKET).await[schema_of(&messages[0])], schemas[schema_of(&messages[0])]);

    // Without a bucket that can be used, events flow once nobody wants schemas any more, those from before too.
    jetstream.delete_key_value(BUCKET).await.unwrap();
    let taken = jetstream::stream::Config {
        name: format!("KV_{BUCKET}"),
        subjects: vec!["elsewhere".to_owned()],
        ..jetstream::stream::Config::default()
    };
    jetstream.create_stream(taken).await.unwrap();
    feed.pg.psql("ALTER TABLE t ADD a int; INSERT INTO t VALUES (4)");
    walhook.logged("its stream is no bucket").await;
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 3);
    feed.pg.psql("UPDATE rule_nats_config SET publish_schemas = false; INSERT INTO t VALUES (5)");
    let messages = in_order_ids(&feed, 5).await;
    assert!(!schema_of(&messages[3]).is_empty() && schema_of(&messages[4]).is_empty(), "{messages:?}");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

async fn in_order_ids(feed: &Feed, count: u64) -> Vec<Message> {
    let messages = feed.stored(count).await;
    let ids: Vec<_> = messages.iter().map(|message| message.data()["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (1..=count).collect::<Vec<_>>());
    messages
}

#[tokio::test]
async fn another_database_with_the_same_source_has_a_bucket_of_its_own() {
    let feed = fed(Feed::start().await).await;
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY); SELECT rule_webhook_link_table(1, 't')");
    let jetstream = feed.nats.jetstream().await;
    let theirs = json!({ "name": format!("KV_{BUCKET}"), "subjects": [format!("$KV.{BUCKET}.>")],
        "metadata": { "walhook.source.walhook": "another database" } });
    let made =
        feed.nats.client().await.request(format!("$JS.API.STREAM.CREATE.KV_{BUCKET}"), theirs.to_string().into()).await;
    assert!(made.unwrap().payload.windows(9).any(|part| part == b"\"created\""));
    let messages = feed.after(&["INSERT INTO t VALUES (1)"]).await;
    let names: Vec<String> = jetstream.stream_names().try_collect().await.unwrap();
    let own =
        names.iter().find_map(|name| name.strip_prefix("KV_").filter(|name| name.starts_with("schemas_walhook_")));
    validate(&messages, &bucket_of(&feed, own.unwrap()).await);
    let mut untouched = jetstream.get_stream(format!("KV_{BUCKET}")).await.unwrap();
    assert_eq!(untouched.info().await.unwrap().state.messages, 0);
    // What is removed is this database's.
    let done = feed.command("uninstall").args(["--nats", "--yes"]).finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    let left: Vec<String> = jetstream.stream_names().try_collect().await.unwrap();
    assert_eq!(left, [format!("KV_{BUCKET}")]);
}

#[tokio::test]
async fn without_the_right_walhook_ends_and_names_it_and_core_nats_is_refused_in_sql() {
    let nats = Nats::builder().config(
        "authorization { users: [ { user: all, password: p }, { user: few, password: p, \
         permissions: { publish: { deny: [\"$KV.schemas_walhook.>\"] } } } ] }",
    );
    let nats = nats.start().await;
    let url = |user: &str| format!("nats://{user}:p@127.0.0.1:{}", nats.port());
    let pg = Postgres::start().await;
    let done = support::Walhook::command("setup").env("DATABASE_URL", pg.conninfo()).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    pg.psql(&format!("SELECT rule_nats_configure('default', '{}')", url("few")));
    let (core, hint) = pg.refused("UPDATE rule_nats_config SET jetstream_enabled = false, publish_schemas = true");
    assert!(
        core.contains("publish_schemas needs JetStream")
            && hint.contains("SET publish_schemas = false WHERE config_id = 1")
    );
    pg.psql("UPDATE rule_nats_config SET publish_schemas = true");
    let (core, _) = pg.refused("UPDATE rule_nats_config SET jetstream_enabled = false");
    assert!(core.contains("publish_schemas"));
    pg.psql(
        "SELECT rule_webhook_register('w', 'https://example.com/w'); SELECT rule_webhook_enable_nats(1, NULL, 'nats')",
    );
    pg.psql("CREATE TABLE t (id int PRIMARY KEY); SELECT rule_webhook_link_table(1, 't'); INSERT INTO t VALUES (1)");
    let run = || support::Walhook::run().env("DATABASE_URL", pg.conninfo()).start();
    let mut walhook = run();
    assert_eq!(walhook.wait(FAR), 4, "{}", walhook.log());
    assert!(walhook.log().contains("$KV.schemas_walhook.public.t."), "{}", walhook.log());
    let found = support::Walhook::command("check").env("DATABASE_URL", pg.conninfo()).finish();
    assert!(found.code == Some(4) && found.stdout.contains("$KV.schemas_walhook.>"), "{found:?}");
    // The other way that the error names.
    pg.psql("UPDATE rule_nats_config SET publish_schemas = false WHERE config_id = 1");
    let mut walhook = run();
    let all = async_nats::ConnectOptions::with_user_and_password("all".to_owned(), "p".to_owned());
    let jetstream = jetstream::new(all.connect(nats.url()).await.unwrap());
    eventually("the row to be stored", async || {
        let mut stream = jetstream.get_stream("WEBHOOKS").await.ok()?;
        (stream.info().await.ok()?.state.messages == 1).then_some(())
    })
    .await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

fn schema(feed: &Feed, arguments: &[&str], code: i32) -> Finished {
    let done = feed.command("schema").args(arguments).finish();
    assert_eq!(done.code, Some(code), "{arguments:?}: {done:?}");
    done
}

#[tokio::test]
async fn the_verb_shows_what_consumers_get_now_and_got_before() {
    let feed = fed(Feed::start().await).await;
    let quoted = "\"we.ird \"\"t\"";
    let long = "ä".repeat(31);
    let hostile = format!("id int PRIMARY KEY, \"a\"\"b\\\" text, U&\"\\0001\\2028\" int, \"{long}\" numeric");
    feed.pg.psql(&format!(
        "CREATE TABLE {quoted} ({hostile}); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)"
    ));
    feed.pg.psql("CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10)");
    // Nothing is linked, and nothing is published: the columns as they are.
    let bare = schema(&feed, &[quoted], 0).stdout;
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(1, '{quoted}'), rule_webhook_link_table(1, 'p')"));
    assert_eq!(schema(&feed, &[quoted], 0).stdout, bare);
    let listed = schema(&feed, &[quoted, "--versions"], 0).stdout;
    assert!(
        listed.contains("not in the bucket yet") && listed.contains("4 columns") && listed.contains("now: w"),
        "{listed}"
    );
    let insert = format!("INSERT INTO {quoted} VALUES (1, 'x', 2, 'NaN'); INSERT INTO p VALUES (1)");
    let messages = feed.after(&[&insert]).await;
    let schemas = bucket_of(&feed, BUCKET).await;
    validate(&messages, &schemas);
    let names: Vec<_> = messages.iter().map(|message| schema_of(message).rsplit_once('.').unwrap()).collect();
    assert_eq!((names[0].0, names[1].0), ("public.we=2Eird=20=22t", "public.p"));
    let printed: Value = serde_json::from_str(&bare).unwrap();
    assert_eq!(printed, schemas[schema_of(&messages[0])]);
    let first = names[0].1;
    assert_eq!(
        serde_json::from_str::<Value>(&schema(&feed, &[quoted, "--version", first], 0).stdout).unwrap(),
        printed
    );
    assert_eq!(schema(&feed, &[quoted, "--diff", first], 0).stdout, "no difference\n");

    feed.pg.psql(&format!("ALTER TABLE {quoted} DROP \"{long}\", ADD later date; ALTER TABLE {quoted} ALTER \"a\"\"b\\\" TYPE uuid USING NULL"));
    let diff = schema(&feed, &[quoted, "--diff", first], 0).stdout;
    let lines: Vec<_> = diff.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(lines, [format!("- \"{long}\"").as_str(), "+ \"later\"", "~ \"a\\\"b\\\\\""], "{diff}");
    let json: Value = serde_json::from_str(&schema(&feed, &[quoted, "--diff", first, "--json"], 0).stdout).unwrap();
    assert_eq!(json["added"]["later"]["description"], "date");
    feed.after(&[&format!("INSERT INTO {quoted} VALUES (2)")]).await;
    let listed = schema(&feed, &[quoted, "--versions", "--json"], 0).stdout;
    let versions: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((versions.len(), &versions[0]["version"], &versions[0]["webhooks"]), (2, &json!(first), &json!([])));
    assert_eq!((&versions[1]["webhooks"], &versions[1]["bucket"]), (&json!(["w"]), &json!(BUCKET)));

    // Links that differ.
    feed.webhook("v");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(2, '{quoted}', p_columns => '{{id}}')"));
    let refused = schema(&feed, &[quoted], 2).stderr;
    assert!(refused.contains("choose one by --webhook, of \"w\", \"v\""), "{refused}");
    let narrow: Value = serde_json::from_str(&schema(&feed, &[quoted, "--webhook", "v"], 0).stdout).unwrap();
    assert_eq!(narrow["properties"].as_object().unwrap().len(), 1);
    for (arguments, reason) in [
        (&["nothing"][..], "there is no such table"),
        (&["p_1"], "walhook schema public.p"),
        (&[quoted, "--webhook", "V"], "did you mean"),
        (&[quoted, "--webhook", "w", "--version", "0123456789abcdef"], "--versions lists them"),
    ] {
        let refused = schema(&feed, arguments, 2).stderr;
        assert!(refused.contains(reason), "{arguments:?}: {refused}");
    }
}
