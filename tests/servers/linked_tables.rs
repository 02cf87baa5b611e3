//! Links to tables of every shape: what arrives of partitions, what to do where the replica identity is wanting, and that
//! `rule_webhook_links_check` says what then happens.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use support::feed::{Feed, Message};

const ALL: &str = "ARRAY['insert', 'update', 'delete', 'truncate']";

/// A feed with webhook 1, `webhooks.w`, its stream in a row, and what `sql` makes.
async fn with(sql: &str) -> Feed {
    let feed = Feed::start().await;
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql(sql);
    feed
}

/// Type and data of each message.
fn told(messages: &[Message]) -> Value {
    messages.iter().map(|message| json!([message.payload["type"], message.data()])).collect()
}

/// Two levels of partitions, the lower of which has its columns in another order.
const PARTED: &str = "CREATE TABLE t (id int, day date, region text, PRIMARY KEY (id, day, region)) PARTITION BY RANGE (day); \
    CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM ('2026-01-01') TO ('2026-02-01') PARTITION BY LIST (region); \
    CREATE TABLE t_1_eu PARTITION OF t_1 FOR VALUES IN ('eu'); \
    CREATE TABLE t_1_us (region text NOT NULL, id int NOT NULL, day date NOT NULL, PRIMARY KEY (id, day, region)); \
    ALTER TABLE t_1 ATTACH PARTITION t_1_us FOR VALUES IN ('us'); \
    CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')";

fn row(id: i32, day: &str, region: &str) -> Value {
    json!({"id": id, "day": day, "region": region})
}

/// PostgreSQL 14 notices partitions that come and go only when a publication changes; see docs/tables.md.
pub const NOTICED_BY_14: &str = "ALTER PUBLICATION walhook_changes SET (publish_via_partition_root = true)";

#[tokio::test]
async fn a_linked_root_speaks_for_partitions_of_any_depth_that_come_and_go() {
    let feed = with(PARTED).await;
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(1, 't', {ALL})"));
    let messages = feed
        .after(&[
            "INSERT INTO t VALUES (1, '2026-01-10', 'eu'), (2, '2026-01-10', 'us'), (3, '2026-02-10', 'eu')",
            "UPDATE t SET region = 'us' WHERE id = 1",
            "UPDATE t SET day = '2026-02-11' WHERE id = 2",
            "DELETE FROM t WHERE id = 3",
            // A partition that leaves speaks no more; one that comes brings none of what it has.
            &format!(
                "ALTER TABLE t DETACH PARTITION t_2; {NOTICED_BY_14}; INSERT INTO t_2 VALUES (4, '2026-02-12', 'eu')"
            ),
            &format!(
                "ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01'); {NOTICED_BY_14}"
            ),
            "INSERT INTO t_2 VALUES (5, '2026-02-13', 'eu')",
            "DELETE FROM t WHERE id = 4",
            "TRUNCATE t",
        ])
        .await;
    assert_eq!(
        told(&messages),
        json!([
            ["public.t.insert", row(1, "2026-01-10", "eu")],
            ["public.t.insert", row(2, "2026-01-10", "us")],
            ["public.t.insert", row(3, "2026-02-10", "eu")],
            ["public.t.delete", row(1, "2026-01-10", "eu")],
            ["public.t.insert", row(1, "2026-01-10", "us")],
            ["public.t.delete", row(2, "2026-01-10", "us")],
            ["public.t.insert", row(2, "2026-02-11", "us")],
            ["public.t.delete", row(3, "2026-02-10", "eu")],
            ["public.t.insert", row(5, "2026-02-13", "eu")],
            ["public.t.delete", row(4, "2026-02-12", "eu")],
            ["public.t.truncate", {}],
        ])
    );
}

#[tokio::test]
async fn a_linked_leaf_speaks_for_itself_alone_whatever_table_is_named() {
    let feed = with(PARTED).await;
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(1, 't_1_us', {ALL})"));
    let messages = feed.after(&[
            "INSERT INTO t VALUES (1, '2026-01-10', 'eu'), (2, '2026-01-10', 'us'), (3, '2026-02-10', 'eu')",
            "INSERT INTO t_1_us (id, day, region) VALUES (4, '2026-01-11', 'us')",
            "UPDATE t SET region = 'us' WHERE id = 1",
            "UPDATE t_1 SET region = 'eu' WHERE id = 2",
            "ALTER TABLE t_1 DETACH PARTITION t_1_us; INSERT INTO t_1_us (id, day, region) VALUES (5, '2026-09-09', 'x')",
            "DELETE FROM t_1_us WHERE id = 5",
            "ALTER TABLE t_1 ATTACH PARTITION t_1_us FOR VALUES IN ('us')",
            "TRUNCATE t",
        ],
    )
    .await;
    assert_eq!(
        told(&messages),
        json!([
            ["public.t_1_us.insert", row(2, "2026-01-10", "us")],
            ["public.t_1_us.insert", row(4, "2026-01-11", "us")],
            ["public.t_1_us.insert", row(1, "2026-01-10", "us")],
            ["public.t_1_us.delete", row(2, "2026-01-10", "us")],
            ["public.t_1_us.insert", row(5, "2026-09-09", "x")],
            ["public.t_1_us.delete", row(5, "2026-09-09", "x")],
            ["public.t_1_us.truncate", {}],
        ])
    );
}

#[tokio::test]
async fn a_truncated_partition_of_a_linked_root_is_no_event() {
    let feed = with(PARTED).await;
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(1, 't', {ALL})"));
    let messages =
        feed.after(&["INSERT INTO t VALUES (1, '2026-02-10', 'eu')", "TRUNCATE t_2", "TRUNCATE t_1, t"]).await;
    let types: Vec<_> = messages.iter().map(|message| message.payload["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["public.t.insert", "public.t.truncate"]);
}

#[tokio::test]
async fn what_linking_refuses_for_want_of_an_identity_works_after_the_statement_that_it_names() {
    let feed = with(
        "CREATE TABLE bare (id int, note text); CREATE TABLE keyed (id int PRIMARY KEY, note text); \
         CREATE TABLE off (id int PRIMARY KEY); ALTER TABLE off REPLICA IDENTITY NOTHING; \
         CREATE TABLE p (id int, note text) PARTITION BY LIST (id); CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1)",
    )
    .await;
    for (link, statement) in [
        ("1, 'bare'", "ALTER TABLE public.bare REPLICA IDENTITY FULL;"),
        ("1, 'keyed', p_when_changed => '{note}'", "ALTER TABLE public.keyed REPLICA IDENTITY FULL;"),
        ("1, 'off'", "ALTER TABLE public.off REPLICA IDENTITY DEFAULT;"),
        ("1, 'p'", "ALTER TABLE public.p_1 REPLICA IDENTITY FULL;"),
    ] {
        let link = format!("SELECT rule_webhook_link_table({link})");
        let error = feed.pg.try_psql(&link).unwrap_err();
        let hint = error.as_db_error().unwrap().hint().unwrap().to_owned();
        assert!(hint.starts_with(statement), "{hint}");
        feed.pg.psql(statement);
        feed.pg.psql(&link);
    }
    let messages = feed.after(&[
            "INSERT INTO bare VALUES (1, 'a'); UPDATE bare SET note = 'b'; DELETE FROM bare",
            "INSERT INTO keyed VALUES (1, 'a'); UPDATE keyed SET note = 'a'; UPDATE keyed SET note = 'b'; DELETE FROM keyed",
            "INSERT INTO off VALUES (1); UPDATE off SET id = 2; DELETE FROM off",
            "INSERT INTO p VALUES (1, 'a'); UPDATE p SET note = 'b'; DELETE FROM p",
        ],
    )
    .await;
    let mut types: BTreeMap<&str, usize> = BTreeMap::new();
    for message in &messages {
        *types.entry(message.payload["type"].as_str().unwrap()).or_default() += 1;
    }
    let expected = ["bare", "keyed", "off", "p"].into_iter().flat_map(|table| {
        ["delete", "insert", "update"].into_iter().map(move |op| (format!("public.{table}.{op}"), 1))
    });
    let types: Vec<_> = types.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect();
    assert_eq!(types, expected.collect::<Vec<_>>());
}

/// Ten links, made well and then broken or not, and what each is said to do.
const LINKS: [(&str, &str, &str); 10] = [
    // options of the link, what breaks it, and a part of what the check must say; nothing: it is fine
    ("", "", ""),
    ("p_subject_template => 'webhooks.{table}.{op}.{note}'", "", ""),
    ("p_columns => '{id,note}'", "ALTER TABLE t3 DROP COLUMN note CASCADE", "note: columns names 'note'"),
    ("p_include_old => true", "", "note: the payload will have only id"),
    (
        "",
        "UPDATE rule_webhooks SET nats_subject = 'elsewhere.x' WHERE webhook_id = 5",
        "no stream of NATS config 'default' takes elsewhere.x",
    ),
    ("", "UPDATE rule_webhooks SET enabled = false WHERE webhook_id = 6", "the webhook is disabled"),
    ("", "SELECT rule_webhook_disable_nats(7)", "the webhook does not publish to NATS"),
    (
        "p_filter => '{\"note\": \"a\"}', p_operations => '{insert}'",
        "ALTER TABLE t8 DROP COLUMN note",
        "filter names 'note'",
    ),
    ("", "ALTER PUBLICATION walhook_changes DROP TABLE t9", "the table is not in publication walhook_changes"),
    ("", "UPDATE rule_webhook_links SET enabled = false WHERE webhook_id = 10", "the link is disabled"),
];

#[tokio::test]
async fn the_check_of_links_says_what_then_happens() {
    let feed = with("").await;
    for (index, (options, _, _)) in LINKS.iter().enumerate() {
        let id = index + 1;
        if id > 1 {
            assert_eq!(feed.webhook(&format!("w{id}")), i32::try_from(id).unwrap());
        }
        feed.pg.psql(&format!("CREATE TABLE t{id} (id int PRIMARY KEY, note text)"));
        if options.contains("{note}") {
            feed.pg.psql(&format!("ALTER TABLE t{id} REPLICA IDENTITY FULL"));
        }
        let options = if options.is_empty() { String::new() } else { format!(", {options}") };
        feed.pg.psql(&format!("SELECT rule_webhook_link_table({id}, 't{id}'{options})"));
    }
    for (_, spoil, _) in LINKS.iter().filter(|(_, spoil, _)| !spoil.is_empty()) {
        feed.pg.psql(spoil);
    }
    let said = feed.pg.psql("SELECT row_to_json(c) FROM rule_webhook_links_check() c ORDER BY webhook_id");
    let said: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(said.len(), LINKS.len());
    for (said, (_, _, why)) in said.iter().zip(LINKS) {
        let problems = said["problems"].as_array().unwrap();
        let as_expected = match why {
            "" => problems.is_empty(),
            why => problems.len() == 1 && problems[0].as_str().unwrap().starts_with(why),
        };
        assert!(as_expected, "{why}: {said}");
        assert_eq!(said["ok"], why.is_empty() || why.starts_with("note: "), "{said}");
    }

    let mut walhook = feed.run();
    for id in 1..=LINKS.len() {
        let has_note = !LINKS[id - 1].1.contains("DROP COLUMN");
        let note = if has_note { ", 'a'" } else { "" };
        feed.pg.psql(&format!("INSERT INTO t{id} VALUES (1{note})"));
        if !LINKS[id - 1].0.contains("{insert}") {
            feed.pg.psql(&format!("UPDATE t{id} SET id = 2; DELETE FROM t{id}"));
        }
    }
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let messages = feed.messages().await;
    for said in &said {
        let webhook = &said["webhook_id"];
        let mut seen: Vec<_> = messages.iter().filter(|message| message.payload["webhook_id"] == *webhook).collect();
        let dead = feed.pg.psql(&format!("SELECT count(*) FROM rule_nats_dead_letters WHERE webhook_id = {webhook}"));
        if said["ok"] == true {
            // Each operation once, to one of the subjects that were named, and nothing fails.
            assert_eq!((seen.len(), dead.as_str()), (3, "0"), "{said}");
            assert_eq!(said["streams"], json!(["WEBHOOKS"]), "{said}");
            let patterns: Vec<String> = serde_json::from_value(said["subjects"].clone()).unwrap();
            seen.retain(|message| {
                !patterns
                    .iter()
                    .any(|pattern| walhook::route::subject::matches(pattern.as_bytes(), message.subject.as_bytes()))
            });
            assert!(seen.is_empty(), "{seen:?} for {said}");
        } else {
            assert_eq!(seen.len(), 0, "{said}");
            // What should go out and cannot is kept; what nobody wants, or PostgreSQL does not send, is not.
            let why = said["problems"][0].as_str().unwrap();
            let expected = match () {
                () if why.starts_with("no stream") => "3",
                () if why.starts_with("filter") => "1",
                () => "0",
            };
            assert_eq!(dead, expected, "{said}");
        }
    }
}
