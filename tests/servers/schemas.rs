//! Links of whole schemas: a table is published from its first row on, beside other sessions, and by no other than its own commit.

#![allow(clippy::unwrap_used)]

use crate::support;

use support::{Nats, Postgres, feed::Feed};

async fn linked(version: &str) -> Feed {
    let feed = Feed::on(Postgres::builder().version(version).set_up().start().await, Nats::start().await);
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("CREATE SCHEMA shop; CREATE TABLE shop.a (id int PRIMARY KEY); INSERT INTO shop.a VALUES (0)");
    feed.pg.psql("SELECT rule_webhook_link_schema('w', 'shop', '{not_%}', p_subject_template => 'webhooks.{table}')");
    feed
}

async fn seen(feed: &Feed) -> Vec<String> {
    let messages = feed.messages().await;
    let seen = messages.iter().map(|message| {
        format!(
            "{} {} {}",
            message.subject.trim_start_matches("webhooks."),
            message.payload["event"]["op"].as_str().unwrap(),
            message.data()["id"]
        )
    });
    seen.collect()
}

#[tokio::test]
async fn a_table_that_is_created_is_published_from_its_first_row_on() {
    for version in ["14", "18"] {
        let feed = linked(version).await;
        let mut walhook = feed.run();
        feed.pg.psql("INSERT INTO shop.a VALUES (1)");
        feed.pg.psql("BEGIN; CREATE TABLE shop.b (id int PRIMARY KEY); INSERT INTO shop.b VALUES (2); COMMIT");
        feed.pg.psql("CREATE TABLE shop.not_this (id int PRIMARY KEY); INSERT INTO shop.not_this VALUES (3)");
        feed.pg
            .psql("BEGIN; CREATE TABLE shop.never (id int PRIMARY KEY); INSERT INTO shop.never VALUES (4); ROLLBACK");
        // By a role that knows nothing of walhook.
        feed.pg.psql("CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA shop TO app");
        feed.pg.psql(
            "SET ROLE app; CREATE TABLE shop.c (id int PRIMARY KEY) PARTITION BY RANGE (id); \
             CREATE TABLE shop.c_1 PARTITION OF shop.c FOR VALUES FROM (0) TO (100); INSERT INTO shop.c VALUES (5); UPDATE shop.c SET id = 6",
        );
        // Two at once, of which one waits for the other.
        let (first, second) = (feed.pg.client().await, feed.pg.client().await);
        first
            .batch_execute("BEGIN; CREATE TABLE shop.d (id int PRIMARY KEY); INSERT INTO shop.d VALUES (7)")
            .await
            .unwrap();
        let waits = tokio::spawn(async move {
            second
                .batch_execute("CREATE TABLE shop.e (id int PRIMARY KEY); INSERT INTO shop.e VALUES (8)")
                .await
                .unwrap();
        });
        first.batch_execute("COMMIT").await.unwrap();
        waits.await.unwrap();
        // Under another name, elsewhere and here again, dropped and made again.
        feed.pg.psql("ALTER TABLE shop.b RENAME TO bb; INSERT INTO shop.bb VALUES (9)");
        feed.pg.psql("ALTER TABLE shop.bb SET SCHEMA public; INSERT INTO bb VALUES (10)");
        feed.pg.psql("ALTER TABLE bb SET SCHEMA shop; DELETE FROM shop.bb WHERE id = 10");
        feed.pg.psql("DROP TABLE shop.a; CREATE TABLE shop.a (id int PRIMARY KEY); INSERT INTO shop.a VALUES (11)");
        feed.confirmed().await;
        assert_eq!(
            seen(&feed).await,
            [
                "a insert 1",
                "b insert 2",
                "c insert 5",
                "c update 6",
                "d insert 7",
                "e insert 8",
                "bb insert 9",
                "bb delete 10",
                "a insert 11"
            ],
            "{version}"
        );
        assert_eq!(feed.pg.psql("SELECT name FROM rule_cdc_check() WHERE name LIKE 'schema%'"), "");
        assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
        feed.pg.psql("SELECT rule_webhook_unlink_schema('w', 'shop')");
        feed.pg.psql("INSERT INTO shop.a VALUES (12)");
        feed.confirmed().await;
        assert_eq!(feed.messages().await.len(), 9);
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    }
}

#[tokio::test]
async fn without_the_event_trigger_the_check_names_what_is_missing_and_its_statement_links_it() {
    let feed = linked("18").await;
    feed.pg.psql("DROP EVENT TRIGGER walhook_schema_links");
    feed.pg.psql("CREATE TABLE shop.b (id int PRIMARY KEY); CREATE TABLE shop.nokey (id int)");
    let mut walhook = feed.run();
    feed.confirmed().await;
    let remedies = feed
        .pg
        .psql("SELECT remedy FROM rule_cdc_check() WHERE name LIKE 'schema%' ORDER BY name DESC, object, problem");
    let expected = [
        "SELECT public.rule_cdc_schema_trigger();",
        "SELECT * FROM public.rule_cdc_schema_link_tables(1);",
        "ALTER TABLE shop.nokey REPLICA IDENTITY FULL; SELECT * FROM public.rule_cdc_schema_link_tables(1);",
    ];
    assert_eq!(remedies.lines().collect::<Vec<_>>(), expected);
    for remedy in remedies.lines() {
        feed.pg.psql(remedy);
    }
    feed.pg.psql("INSERT INTO shop.b VALUES (1); INSERT INTO shop.nokey VALUES (2)");
    feed.confirmed().await;
    assert_eq!(seen(&feed).await, ["b insert 1", "nokey insert 2"]);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_cdc_check() WHERE name LIKE 'schema%'"), "0");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_dump_keeps_the_links_of_schemas_and_a_restored_database_follows_new_tables() {
    let pg = Postgres::builder().version("17").tools().set_up().start().await;
    let feed = Feed::on(pg, Nats::start().await);
    feed.webhook("w");
    feed.pg.psql("CREATE SCHEMA shop; CREATE TABLE shop.a (id int PRIMARY KEY, email text)");
    feed.pg.psql("SELECT rule_webhook_link_schema('w', 'shop'); SELECT rule_webhook_link_table('w', 'shop.a', p_mask => '{\"email\": \"drop\"}')");
    let conninfo = feed.pg.conninfo();
    let dump = feed.pg.tool("pg_dump", &["--dbname", &conninfo]);
    feed.pg.psql("CREATE DATABASE restored");
    let file = feed.pg.socket_dir().join("dump.sql");
    std::fs::write(&file, dump).unwrap();
    let restored = conninfo.replace("dbname=postgres", "dbname=restored");
    feed.pg.tool(
        "psql",
        &[
            "--no-psqlrc",
            "--set",
            "ON_ERROR_STOP=1",
            "--quiet",
            "--dbname",
            &restored,
            "--file",
            file.to_str().unwrap(),
        ],
    );
    feed.pg.psql_in("restored", "CREATE TABLE shop.b (id int PRIMARY KEY)");
    let links = "SELECT string_agg(concat_ws(' ', table_name, mask, mask_columns, schema_link_id), ', ' ORDER BY table_name) FROM rule_webhook_links";
    assert_eq!(feed.pg.psql_in("restored", links), "a {\"email\": \"drop\"} {id,email} 1, b 1");
}
