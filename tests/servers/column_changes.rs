//! Events of changed columns: each in its place among the rows, once, and without a name that its link leaves out.

#![allow(clippy::unwrap_used)]

use crate::{shards, support};

use serde_json::{Value, json};
use support::{
    Nats, Postgres, Walhook,
    feed::{Feed, Message},
    rows::{ended_well, linked_on},
};

/// A feed with table `t`, linked to webhook 1, `w`, which asks for the events.
fn asked_on(pg: Postgres, nats: Nats) -> Feed {
    let feed = linked_on(pg, nats);
    feed.pg.psql("SELECT rule_webhook_emit_enable()");
    ask(&feed);
    feed
}

fn ask(feed: &Feed) {
    feed.pg.psql("UPDATE rule_webhooks SET publish_column_changes = true");
}

async fn asked() -> Feed {
    asked_on(Postgres::set_up().await, Nats::start().await)
}

/// What a message is: the number of a row, or what became of which columns.
fn what(message: &Message) -> String {
    let data = message.data();
    if message.header("Walhook-Op") != "columns" {
        return data["id"].to_string();
    }
    let names = |sign: &str, names: &Value| -> Vec<String> {
        names.as_array().unwrap().iter().map(|name| format!("{sign}{}", name.as_str().unwrap())).collect()
    };
    let pairs = data["renamed"].as_object().unwrap().iter();
    let renamed = pairs.map(|(before, now)| format!("{before}>{}", now.as_str().unwrap()));
    let changed = data["changed"].as_object().unwrap().keys().map(|name| format!("~{name}"));
    let all = names("+", &data["added"]).into_iter().chain(names("-", &data["removed"])).chain(renamed).chain(changed);
    all.collect::<Vec<_>>().join(" ")
}

async fn story(feed: &Feed, stream: &str) -> Vec<String> {
    feed.messages_of(stream).await.iter().map(what).collect()
}

#[tokio::test]
async fn an_event_of_changed_columns_has_its_place_among_the_rows() {
    for version in ["14", "18"] {
        let feed = asked_on(Postgres::builder().version(version).set_up().start().await, Nats::start().await);
        // While walhook does not run, in one transaction, and taken back in whole and in part.
        feed.pg.psql("INSERT INTO t VALUES (1)");
        feed.pg.psql(
            "BEGIN; INSERT INTO t VALUES (2); ALTER TABLE t ADD a int; INSERT INTO t VALUES (3); ALTER TABLE t RENAME note TO text; \
             SAVEPOINT s; ALTER TABLE t ADD never int; ROLLBACK TO s; INSERT INTO t VALUES (4); COMMIT",
        );
        feed.pg.psql("BEGIN; ALTER TABLE t ADD never int; ROLLBACK");
        let mut walhook = feed.run();
        feed.confirmed().await;
        feed.pg.psql(
            "INSERT INTO t VALUES (5); ALTER TABLE t ALTER a TYPE bigint, ADD b text[]; INSERT INTO t VALUES (6)",
        );
        feed.confirmed().await;
        ended_well(&mut walhook);
        feed.pg.psql("INSERT INTO t VALUES (7); ALTER TABLE t DROP a; INSERT INTO t VALUES (8)");
        let messages = feed.after(&[]).await;
        let expected = ["1", "2", "+a", "3", "note>text", "4", "5", "+b ~a", "6", "7", "-a", "8"];
        assert_eq!(messages.iter().map(what).collect::<Vec<_>>(), expected, "PostgreSQL {version}");

        let first = &messages[2];
        assert_eq!(
            (first.subject.as_str(), first.payload["type"].as_str()),
            ("webhooks.w.columns", Some("public.t.columns"))
        );
        let event = &first.payload["event"];
        assert_eq!((event["op"].as_str(), event["table"].as_str()), (Some("columns"), Some("public.t")), "{first:?}");
        assert!(event["emit_lsn"].is_string() && event.get("triggered_by").is_none(), "{first:?}");
        assert!(first.header("Nats-Msg-Id").ends_with("-1-1"), "its ordinal is between those of the rows: {first:?}");
        assert_eq!(
            *messages[7].data(),
            json!({
                "schema": "public", "table": "t",
                "columns": [
                    {"name": "id", "type": "integer", "key": true}, {"name": "text", "type": "text"},
                    {"name": "a", "type": "bigint"}, {"name": "b", "type": "text[]"}
                ],
                "added": ["b"], "removed": [], "renamed": {}, "changed": {"a": {"type": "integer"}}
            })
        );
        // The same again from the WAL, and nothing from a table that is not linked or does not change.
        feed.pg.psql("CREATE TABLE u (id int); ALTER TABLE u ADD a int; ALTER TABLE t ALTER text SET STORAGE EXTERNAL");
        assert_eq!(feed.after(&[]).await.len(), expected.len(), "PostgreSQL {version}");

        // Another name, once the link has it; another table of that name, whose columns are the same by their names.
        feed.pg.psql("ALTER TABLE t RENAME TO t2; UPDATE rule_webhook_links SET table_name = 't2'");
        feed.pg.psql("DROP TABLE t2; CREATE TABLE t2 (fresh int, text text, id bigint PRIMARY KEY)");
        feed.pg.psql("SELECT rule_webhook_link_table('w', 't2'); INSERT INTO t2 (id) VALUES (9)");
        let messages = feed.after(&[]).await.split_off(expected.len());
        assert_eq!(messages.iter().map(what).collect::<Vec<_>>(), ["", "+fresh -b ~id", "9"], "PostgreSQL {version}");
        assert_eq!(messages[0].payload["type"], "public.t2.columns");
        assert_eq!(messages[0].data()["previous"], json!({"schema": "public", "table": "t"}));
    }
}

#[tokio::test]
async fn each_event_comes_once_and_in_order_whatever_dies() {
    let feed = asked().await;
    let mut expected = Vec::new();
    let mut walhook = feed.run();
    for number in 0..60 {
        feed.pg.psql(&format!("INSERT INTO t (id) VALUES ({number}); ALTER TABLE t ADD c{number} int"));
        expected.extend([number.to_string(), format!("+c{number}")]);
        if number % 9 == 8 {
            if number % 2 == 0 {
                feed.pg.kill9();
                feed.pg.restart().await;
            }
            walhook.kill9();
            walhook = feed.run();
        }
    }
    feed.confirmed().await;
    assert_eq!(story(&feed, "WEBHOOKS").await, expected);
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 120, "nothing was stored and removed");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn each_format_says_that_it_is_no_row() {
    let feed = asked().await;
    for format in ["data", "debezium", "cloudevents", "cloudevents_binary"] {
        feed.pg.psql(&format!("UPDATE rule_webhooks SET payload_format = '{format}'; ALTER TABLE t ADD {format} int"));
    }
    let messages = feed.after(&[]).await;
    let [data, debezium, cloud, binary] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(data.header("Walhook-Type"), "public.t.columns");
    assert_eq!(data.payload["added"], json!(["data"]));
    // A sink of rows passes over it.
    assert_eq!((debezium.payload["op"].as_str(), debezium.payload["source"]["table"].as_str()), (Some("m"), Some("")));
    assert_eq!(debezium.payload["after"]["added"], json!(["debezium"]));
    assert_eq!((&cloud.payload["type"], &cloud.payload["subject"]), (&json!("public.t.columns"), &json!("public.t")));
    assert_eq!(cloud.payload["data"]["added"], json!(["cloudevents"]));
    assert_eq!((binary.header("ce-type"), binary.header("ce-subject")), ("public.t.columns", "public.t"));
    assert_eq!(binary.payload["added"], json!(["cloudevents_binary"]));
}

#[tokio::test]
async fn a_link_shows_its_own_columns_only_and_what_changes_of_the_link() {
    let feed = Feed::start().await;
    for webhook in ["all", "some", "masked"] {
        feed.webhook(webhook);
    }
    feed.pg.psql(
        r#"SELECT rule_webhook_emit_enable();
           CREATE TABLE people (id int PRIMARY KEY, mail text, canary text, note text);
           SELECT rule_webhook_link_table('all', 'people', p_subject_template => 'webhooks.{table}.all.{op}.{id}');
           SELECT rule_webhook_link_table('some', 'people', p_columns => '{id,mail}');
           SELECT rule_webhook_link_table('masked', 'people', p_rename => '{"mail": "email"}', p_mask => '{"canary": "drop", "note": "last4"}')"#,
    );
    ask(&feed);
    feed.pg.psql("ALTER TABLE people ADD canary_2 text");
    feed.pg.psql("ALTER TABLE people ALTER note TYPE varchar(80), ALTER mail TYPE varchar(80)");
    // Columns and mask in one call: in between the link would show the one without the other.
    feed.pg.psql(r#"SELECT rule_webhook_link_table('some', 'people', p_columns => '{id,mail,canary_2}', p_mask => '{"canary_2": "drop"}')"#);
    feed.pg.psql(r#"SELECT rule_webhook_link_table('some', 'people', p_columns => '{id,mail}', p_mask => '{}')"#);
    feed.pg.psql(r#"SELECT rule_webhook_link_table('some', 'people', p_columns => '{id,mail,note}', p_mask => '{"note": "null"}')"#);
    feed.pg.psql(r#"UPDATE rule_webhook_links SET rename = '{"mail": "post"}' WHERE webhook_id = 3"#);
    // Of a mask that does not fit any more nothing leaves, until it fits again.
    feed.pg.psql("ALTER TABLE people RENAME canary TO canary_3; ALTER TABLE people DROP note");
    feed.pg.psql(
        r#"UPDATE rule_webhook_links SET mask = '{"canary_2": "drop", "canary_3": "drop"}' WHERE webhook_id = 3"#,
    );
    feed.pg.psql(r#"UPDATE rule_webhook_links SET mask = NULL WHERE webhook_id = 2"#);
    let messages = feed.after(&[]).await;
    let of = |subject: &str| -> Vec<String> {
        messages.iter().filter(|message| message.subject == subject).map(what).collect()
    };
    assert_eq!(of("webhooks.people.all.columns._"), ["+canary_2", "~mail ~note", "canary>canary_3", "-note"]);
    assert_eq!(of("webhooks.some.columns"), ["~mail", "+note", "-note"]);
    assert_eq!(of("webhooks.masked.columns"), ["~email", "email>post", "-note"]);
    assert_eq!(messages.len(), 10);
    for message in messages.iter().filter(|message| !message.subject.contains("all")) {
        assert!(!format!("{message:?}").contains("canary"), "{message:?}");
        // Nor does it say what type a masked column has.
        assert!(
            !message.data()["columns"].to_string().contains(r#""mask":"last4","name":"note","type""#),
            "{message:?}"
        );
    }
}

#[tokio::test]
async fn the_event_is_in_the_shard_of_its_link() {
    let feed = asked().await;
    shards::set_up(&feed, "b");
    let mut running: Vec<Walhook> = ["main", "b"].map(|shard| shards::run(&feed, shard)).into();
    shards::begun(&feed, &["main", "b"]).await;
    feed.pg.psql("INSERT INTO t VALUES (1); ALTER TABLE t ADD a int");
    feed.pg.psql("SELECT rule_cdc_shard_move('b', ARRAY['t']::regclass[])");
    feed.pg.psql("BEGIN; INSERT INTO t VALUES (2); ALTER TABLE t ADD b int; INSERT INTO t VALUES (3); COMMIT");
    shards::confirmed(&feed, &["main", "b"]).await;
    assert_eq!(story(&feed, "WEBHOOKS").await, ["1", "+a"]);
    assert_eq!(story(&feed, "WEBHOOKS_b").await, ["2", "+b", "3"]);
    assert_eq!(feed.messages_of("WEBHOOKS_b").await[1].subject, "_shard.b.webhooks.w.columns");
    running.iter_mut().for_each(ended_well);
}

#[tokio::test]
async fn what_nobody_asks_for_is_not_there() {
    let feed = linked_on(Postgres::set_up().await, Nats::start().await);
    feed.pg.psql("SELECT rule_webhook_emit_enable()");
    let before = feed.pg.psql("SELECT count(*) FROM pg_event_trigger");
    assert_eq!(before, "0", "no event trigger");
    let first = feed.after(&["ALTER TABLE t ADD a int", "INSERT INTO t VALUES (1)"]).await;
    assert_eq!(first.iter().map(what).collect::<Vec<_>>(), ["1"]);
    // And no longer when it asks for it no longer, whose link is off, or whose webhook.
    ask(&feed);
    feed.pg.psql("ALTER TABLE t ADD b int; UPDATE rule_webhook_links SET enabled = false; ALTER TABLE t ADD c int");
    feed.pg.psql("UPDATE rule_webhook_links SET enabled = true; UPDATE rule_webhooks SET enabled = false; ALTER TABLE t ADD d int");
    feed.pg.psql("UPDATE rule_webhooks SET enabled = true; UPDATE rule_webhooks SET publish_column_changes = false; ALTER TABLE t ADD e int");
    assert_eq!(feed.pg.psql("SELECT count(*) FROM walhook.rule_cdc_link_columns"), "0");
    // From when it asks again: it knows what there is now.
    ask(&feed);
    feed.pg.psql("ALTER TABLE t ADD f int; SELECT rule_webhook_unlink_table(1, 't'); ALTER TABLE t ADD g int");
    assert_eq!(feed.after(&[]).await.iter().map(what).collect::<Vec<_>>(), ["1", "+b", "+c", "+d", "+f"]);
}

#[tokio::test]
async fn a_restored_dump_knows_what_consumers_know() {
    let feed = asked_on(Postgres::builder().version("17").tools().start().await, Nats::start().await);
    // The numbers of the columns differ in the copy: it lacks the one that was dropped.
    feed.pg.psql("ALTER TABLE t ADD gone int; ALTER TABLE t DROP gone; ALTER TABLE t ADD kept int");
    feed.pg.psql("CREATE DATABASE copy");
    let conninfo = feed.pg.conninfo();
    let file = feed.pg.socket_dir().join("dump.sql");
    std::fs::write(&file, feed.pg.tool("pg_dump", &["--dbname", &conninfo])).unwrap();
    let copy = conninfo.replace("dbname=postgres", "dbname=copy");
    let file = file.to_str().unwrap();
    feed.pg.tool("psql", &["--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--quiet", "--dbname", &copy, "--file", file]);
    let findings = "SELECT string_agg(name, ' ') FROM walhook.rule_cdc_check_columns()";
    assert_eq!(feed.pg.psql_in("copy", findings), "");
    feed.pg.psql_in("copy", "SELECT pg_create_logical_replication_slot('copy', 'test_decoding')");
    feed.pg.psql_in("copy", "ALTER TABLE t ALTER kept TYPE bigint");
    let seen = "SELECT substring(data FROM '\"changed.*') FROM pg_logical_slot_peek_changes('copy', NULL, NULL) WHERE data LIKE 'message%'";
    let seen = feed.pg.psql_in("copy", seen);
    assert!(seen.starts_with(r#""changed": {"kept": {"type": "integer"}}"#), "{seen}");
    assert!(seen.contains(r#""removed": []"#) && !seen.contains("gone"), "{seen}");
}

/// The payloads of the events that a database has written since the last look, by a slot of its own.
fn written(pg: &Postgres, database: &str) -> Vec<Value> {
    let asked = "SELECT substring(data FROM '\"columns_of\": [0-9]+}(.*)') FROM pg_logical_slot_get_changes('spy', NULL, NULL) \
                 WHERE data LIKE 'message%'";
    pg.psql_in(database, asked).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn without_the_event_trigger_a_call_in_the_transaction_emits_the_same_event() {
    for version in ["14", "18"] {
        // As on a managed server: who sets walhook up is no superuser.
        let pg = Postgres::builder().version(version).start().await;
        pg.psql(
            "CREATE ROLE dba LOGIN CREATEROLE REPLICATION; CREATE ROLE migrations LOGIN; GRANT migrations TO dba; \
             CREATE ROLE walhook_streamer LOGIN REPLICATION",
        );
        pg.psql("CREATE DATABASE managed OWNER dba");
        let conninfo = |role: &str| format!("host=127.0.0.1 port={} dbname=managed user={role}", pg.port());
        let done = Walhook::command("setup").env("DATABASE_URL", conninfo("dba")).finish();
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        pg.psql_in("managed", "SELECT pg_create_logical_replication_slot('spy', 'test_decoding')");
        let dba = connect(&conninfo("dba")).await;
        let asked = "SELECT rule_webhook_register('w', 'https://example.com'), rule_webhook_emit_enable();
             SELECT rule_webhook_enable_nats(1, NULL, 'nats'); CREATE TABLE t (id int PRIMARY KEY);
             SELECT rule_webhook_link_table('w', 't'); ALTER TABLE t OWNER TO migrations;
             GRANT EXECUTE ON FUNCTION rule_cdc_column_changes_emit TO migrations;
             UPDATE rule_webhooks SET publish_column_changes = true";
        pg.psql_in("managed", "GRANT CREATE ON SCHEMA public TO migrations");
        dba.batch_execute(asked).await.unwrap();
        let findings = "SELECT string_agg(name, ' ') FROM walhook.rule_cdc_check_columns()";
        assert!(pg.psql_in("managed", findings).contains("column_changes_trigger_missing"), "PostgreSQL {version}");
        let migrations = connect(&conninfo("migrations")).await;
        migrations
            .batch_execute("BEGIN; ALTER TABLE t ADD a int; SELECT rule_cdc_column_changes_emit(); COMMIT")
            .await
            .unwrap();
        let by_call = written(&pg, "managed");
        // A superuser makes the event trigger, and the call finds nothing left to do.
        pg.psql_in("managed", "SELECT rule_cdc_column_changes_trigger()");
        assert!(!pg.psql_in("managed", findings).contains("column_change"), "PostgreSQL {version}");
        migrations.batch_execute("ALTER TABLE t DROP a; SELECT rule_cdc_column_changes_emit()").await.unwrap();
        migrations.batch_execute("ALTER TABLE t ADD a int").await.unwrap();
        let by_trigger = written(&pg, "managed");
        assert_eq!(by_trigger.len(), 2, "PostgreSQL {version}: {by_trigger:?}");
        assert_eq!(by_call, by_trigger[1..], "PostgreSQL {version}");
    }
}

async fn connect(conninfo: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(conninfo, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn a_table_that_is_altered_while_somebody_changes_its_link_is_altered_and_the_event_comes_later() {
    let feed = asked().await;
    let operator = feed.pg.client().await;
    operator.batch_execute("BEGIN; UPDATE rule_webhook_links SET rename = '{\"note\": \"text\"}'").await.unwrap();
    // It waits for that transaction for two seconds, and goes on.
    feed.pg.psql("ALTER TABLE t ADD a int");
    operator.batch_execute("COMMIT").await.unwrap();
    let finding = "SELECT problem || ' ' || remedy FROM rule_cdc_check() WHERE name = 'column_change_missed'";
    let found = feed.pg.psql(finding);
    assert!(found.contains("no event has said so"), "{found}");
    feed.pg.psql(found.split_once("SELECT").map(|(_, rest)| format!("SELECT{rest}")).unwrap().as_str());
    assert_eq!(feed.pg.psql(finding), "");
    assert_eq!(feed.after(&[]).await.iter().map(what).collect::<Vec<_>>(), ["note>text", "+a"]);
}
