//! What leaves the database: masked values are nowhere outside their table, whatever changes there, and names are those of the link.

#![allow(clippy::unwrap_used)]

use crate::{http, support};

use std::fs;

use crate::linked_tables::NOTICED_BY_14;
use ring::hmac;
use serde_json::{Value, json};
use support::{
    Nats, Postgres, Walhook,
    canary::{CANARY, quiet, search, search_tables},
    feed::Feed,
    folder::Folder,
    http::Http,
    last_mile::LastMile,
    process::User,
    walhook::Builder,
};

const KEY: &str = "a key of many bytes, for tests";
/// A file with the key, which nobody else may read.
struct KeyFile(Folder);

impl KeyFile {
    fn new(content: &str) -> KeyFile {
        let folder = Folder::new("mask", User::Ourselves);
        User::Ourselves.write(&folder.path().join("key"), content);
        KeyFile(folder)
    }

    fn with(&self, builder: Builder) -> Builder {
        builder.env("WALHOOK_MASK_KEY_FILE", self.0.path().join("key"))
    }
}

fn hash(value: &str) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes()), value.as_bytes());
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

const TABLE: &str = "CREATE TABLE people (id int, tag text, email text, ssn text, card text, note text, plain text, large text, \
                     PRIMARY KEY (id, tag)); ALTER TABLE people ALTER large SET STORAGE EXTERNAL";
const MASK: &str =
    r#"{"tag": "hash", "email": "hash", "ssn": "drop", "card": "last4", "note": "null", "large": "hash"}"#;

fn row(id: i32, length: usize) -> String {
    format!(
        "({id}, '{CANARY} tag {id}', '{CANARY}@{id}', '{CANARY} ssn', '{CANARY} card 4321', '{CANARY} note', 'plain {id}', \
         repeat('{CANARY}', {length}))"
    )
}

/// Webhooks 1 to 5, one for each format, linked to `people` with the mask, and 6, whose events no stream takes.
fn linked(feed: &Feed) {
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql("UPDATE rule_nats_config SET history_payload = 'full'");
    feed.pg.psql(TABLE);
    for (id, format) in (1..).zip(["webhook", "data", "debezium", "cloudevents", "cloudevents_binary", "webhook"]) {
        assert_eq!(feed.webhook(&format!("w{id}")), id);
        feed.pg.psql(&format!(
            "UPDATE rule_webhooks SET payload_format = '{format}', on_error = 'object_store' WHERE webhook_id = {id}; \
             SELECT rule_webhook_link_table({id}, 'people', p_include_old => true, p_mask => '{MASK}', \
                                            p_rename => '{{\"email\": \"mail\", \"plain\": \"p\"}}')"
        ));
    }
    feed.pg.psql("UPDATE rule_webhook_links SET subject_template = 'elsewhere.{id}' WHERE webhook_id = 6");
}

/// The table's changes, of each kind.
fn change(feed: &Feed) {
    feed.pg.psql(&format!("INSERT INTO people VALUES {}, {}", row(1, 10), row(2, 1000)));
    // Large values that stay, a key that changes, all of them anew.
    feed.pg.psql("UPDATE people SET plain = 'changed' WHERE id = 2");
    feed.pg.psql(&format!("UPDATE people SET tag = '{CANARY} new tag' WHERE id = 2"));
    feed.pg.psql("ALTER TABLE people REPLICA IDENTITY FULL");
    feed.pg.psql("UPDATE people SET plain = 'again' WHERE id = 2");
    feed.pg.psql(&format!("UPDATE people SET email = '{CANARY}@other', large = repeat('{CANARY}', 2000) WHERE id = 2"));
    feed.pg.psql("DELETE FROM people WHERE id = 1");
    feed.pg.psql("ALTER TABLE people REPLICA IDENTITY DEFAULT");
    feed.pg.psql("DELETE FROM people");
    feed.pg.psql(&format!("INSERT INTO people VALUES {}", row(3, 20_000)));
}

#[tokio::test]
async fn what_a_mask_keeps_back_is_nowhere_outside_the_table() {
    let feed = Feed::on(Postgres::set_up().await, Nats::builder().config("max_payload: 64KB").start().await);
    let key = KeyFile::new(&format!("{KEY}\n"));
    linked(&feed);
    // Values that are left as they are may be large: a claim check has them.
    feed.pg.psql("ALTER TABLE people ADD COLUMN open text; UPDATE rule_webhook_links SET mask = mask");
    let receiver = Http::ok();
    feed.pg.psql(&format!("UPDATE rule_webhooks SET url = '{}'", receiver.url("/")));
    let mut streamer = http::with_http(key.with(feed.streamer())).args(["--log", "trace"]).start();
    let address = http::address_of(&mut streamer).await;
    feed.confirmed().await;
    feed.pg.psql("SELECT rule_cdc_anchor_create()");
    let from = feed.pg.psql("SELECT pg_current_wal_lsn()");
    change(&feed);
    feed.pg.psql("UPDATE people SET open = repeat('x', 100000)");
    feed.confirmed().await;

    let messages = feed.messages().await;
    let first = messages[0].data();
    let expected = json!({
        "id": 1, "tag": hash("kanari tag 1"), "mail": hash("kanari@1"), "card": "****4321", "note": null, "p": "plain 1",
        "large": hash(&CANARY.repeat(10)), "open": null,
    });
    assert_eq!(*first, expected);
    let of_webhook =
        |id: &str| messages.iter().filter(|message| message.subject == format!("webhooks.w{id}")).collect::<Vec<_>>();
    let webhook = of_webhook("1");
    let op = |at: usize| &webhook[at].payload["event"];
    // A large value that is not in the WAL is named as the message would have named it; the key that changed is masked.
    assert_eq!((&op(2)["op"], &op(2)["unchanged"]), (&json!("update"), &json!(["large"])));
    assert_eq!(op(3)["old"], json!({ "id": 2, "tag": hash("kanari tag 2") }));
    assert_eq!(webhook[3].header("Walhook-Old-Key"), format!("{{\"id\":2,\"tag\":\"{}\"}}", hash("kanari tag 2")));
    // With the whole row before, its values are masked as well, and what has not changed comes from it.
    assert_eq!((&op(4)["old"]["p"], &op(4)["old"]["mail"]), (&json!("changed"), &json!(hash("kanari@2"))));
    assert_eq!(webhook[4].data()["large"], json!(hash(&CANARY.repeat(1000))));
    assert_eq!(webhook[5].data()["mail"], json!(hash("kanari@other")));
    assert_eq!((&op(6)["op"], &webhook[6].data()["mail"]), (&json!("delete"), &json!(hash("kanari@1"))));
    assert_eq!(*webhook[7].data(), json!({ "id": 2, "tag": hash("kanari new tag") }));
    assert!(webhook.iter().any(|message| !message.header("Walhook-Object").is_empty()), "a claim check");
    let debezium = of_webhook("3");
    assert_eq!(debezium[4].payload["before"]["mail"], json!(hash("kanari@2")));
    assert_eq!(debezium[6].payload["before"]["card"], json!("****4321"));
    assert_eq!(of_webhook("2")[0].payload, expected);
    assert_eq!(of_webhook("5")[0].payload, expected);
    assert_eq!(of_webhook("4")[0].payload["data"], expected);

    // Backfill and replay.
    let done = feed.command("backfill").args(["--table", "people", "--webhook", "w1"]).finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    quiet("backfill", &format!("{done:?}"));
    feed.confirmed().await;
    let snapshot = feed.messages().await;
    let snapshot = snapshot.last().unwrap();
    assert_eq!(snapshot.header("Walhook-Op"), "snapshot");
    let done = key
        .with(feed.command("replay"))
        .args(["--create-stream", "REPLAY", "--from", &from, "--via", "wal", "--webhook", "w1", "--log", "trace"])
        .finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    quiet("replay", &format!("{done:?}"));
    let again = feed.messages_of("REPLAY").await;
    assert_eq!(again[0].payload, webhook[0].payload, "the replay has the same");

    // Dead letters, also published again; calls; the worker's log.
    assert_ne!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters WHERE reason LIKE '%elsewhere%'"), "0");
    feed.pg
        .psql("SELECT rule_nats_dead_letter_retry(min(dead_letter_id), 'webhooks.again') FROM rule_nats_dead_letters");
    let mile = LastMile::with(feed, streamer);
    let mut worker = http::with_http(mile.worker()).args(["--log", "trace"]).start();
    let worker_address = http::address_of(&mut worker).await;
    receiver.received(40).await;
    for request in receiver.requests() {
        quiet("a call", &format!("{request:?}"));
    }
    let LastMile { feed, mut streamer, .. } = mile;
    feed.confirmed().await;

    // What walhook shows.
    for (address, path) in [
        (address, "/"),
        (address, "/metrics"),
        (address, "/status"),
        (address, "/readyz"),
        (worker_address, "/"),
        (worker_address, "/metrics"),
        (worker_address, "/webhooks"),
    ] {
        quiet(path, &http::get(address, path).await.body);
    }
    for arguments in [
        &["explain", "people"][..],
        &["explain", "people", "--json"],
        &["tail", "--since", "1h", "-n", "40"],
        &["tail", "--since", "1h", "-n", "40", "--json"],
        &["status"],
        &["status", "--json"],
        &["check", "--json"],
        &["dead-letters", "list"],
        &["dead-letters", "show", "1"],
    ] {
        let done = key.with(feed.command(arguments[0])).args(&arguments[1..]).finish();
        quiet(&format!("{arguments:?}"), &format!("{done:?}"));
        assert!(!done.stdout.is_empty(), "{arguments:?}: {done:?}");
    }
    assert_eq!(worker.terminate(), 0);
    assert_eq!(streamer.terminate(), 0, "{}", streamer.log());
    quiet("the log", &streamer.log());
    quiet("the worker's log", &worker.log());
    assert!(!streamer.log().contains(KEY));
    search_tables(&feed.pg, &[]);
    // Streams, object store, buckets and consumers lie in files of nats-server.
    feed.nats.stop();
    assert!(search(&feed.nats.store_dir()) > 5);
}

/// A table `t` with a mask that needs no key, linked to webhook 1.
async fn simple(mask: &str) -> Feed {
    let feed = Feed::start().await;
    feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, email text, note text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table(1, 't', p_mask => '{mask}')"));
    feed
}

async fn data(feed: &Feed) -> Vec<Value> {
    feed.messages().await.iter().map(|message| message.data().clone()).collect()
}

/// The remedy that the check has for this finding.
fn remedy(pg: &Postgres, name: &str) -> String {
    pg.psql(&format!("SELECT remedy FROM rule_cdc_check() WHERE name = '{name}'"))
}

#[tokio::test]
async fn a_masked_column_that_gets_another_name_does_not_leave_and_the_printed_statement_masks_it_again() {
    let feed = simple(r#"{"email": "null"}"#).await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1, 'kanari', 'a')");
    feed.pg.psql("ALTER TABLE t RENAME email TO mail");
    feed.pg.psql("INSERT INTO t VALUES (2, 'kanari', 'b')");
    // A new column takes the name, as when a table is moved to another layout while it is in use.
    feed.pg.psql("ALTER TABLE t ADD COLUMN email text; UPDATE t SET email = 'kanari'");
    feed.confirmed().await;
    // That it has the name does not make it the column that was masked.
    assert_eq!(data(&feed).await, [json!({ "id": 1, "email": null, "note": "a" })]);
    feed.pg.psql("ALTER TABLE t DROP COLUMN email");
    feed.pg.psql("INSERT INTO t VALUES (3, 'kanari', 'c')");
    feed.confirmed().await;
    let letters = "SELECT string_agg(DISTINCT concat_ws('|', headers ->> 'Walhook-Withheld', convert_from(payload, 'UTF8')::jsonb -> 'data'), ' ') \
                   FROM rule_nats_dead_letters WHERE reason LIKE '%mask names \"email\"%'";
    assert_eq!(feed.pg.psql(letters), "row|{}");
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "4");
    assert_eq!(
        feed.pg.psql("SELECT name, severity, problem FROM rule_cdc_check() WHERE name LIKE 'mask%'"),
        "mask_broken|error|its mask names email, which the table does not have any more: nothing of its rows leaves"
    );
    let refused = feed.pg.try_psql("SELECT rule_nats_dead_letter_retry(1)").unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("its row was kept back"), "{refused:?}");
    assert_eq!(feed.pg.psql("SELECT rule_nats_dead_letters_retry('-infinity')"), "0");
    // Nor does linking again, or saying the same mask again, let it leave.
    for again in ["SELECT rule_webhook_link_table(1, 't')", "UPDATE rule_webhook_links SET mask = mask"] {
        let refused = feed.pg.try_psql(again).unwrap_err();
        assert!(refused.as_db_error().unwrap().message().contains("its mask names \"email\""), "{refused:?}");
    }
    let statement = remedy(&feed.pg, "mask_broken");
    assert_eq!(statement, "UPDATE public.rule_webhook_links SET mask = '{\"mail\": \"null\"}' WHERE link_id = 1;");
    feed.pg.psql(&statement);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_cdc_check() WHERE name LIKE 'mask%'"), "0");
    feed.pg.psql("INSERT INTO t VALUES (4, 'kanari', 'd')");
    feed.confirmed().await;
    assert_eq!(data(&feed).await.last(), Some(&json!({ "id": 4, "mail": null, "note": "d" })));
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    quiet("the log", &walhook.log());
    search_tables(&feed.pg, &[]);
    feed.nats.stop();
    search(&feed.nats.store_dir());
}

#[tokio::test]
async fn columns_that_change_places_are_dropped_or_come_later_do_not_leave_until_somebody_says_so() {
    let feed = simple(r#"{"email": "null"}"#).await;
    let mut walhook = feed.run();
    // Two columns change their names with each other.
    feed.pg.psql("BEGIN; ALTER TABLE t RENAME email TO x; ALTER TABLE t RENAME note TO email; ALTER TABLE t RENAME x TO note; COMMIT");
    feed.pg.psql("INSERT INTO t VALUES (1, 'kanari', 'a')");
    feed.confirmed().await;
    assert!(feed.messages().await.is_empty());
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters WHERE headers ? 'Walhook-Withheld'"), "1");
    assert!(
        feed.pg
            .psql("SELECT problem FROM rule_cdc_check() WHERE name = 'mask_broken'")
            .contains("set for the columns id, email, note")
    );
    feed.pg.psql("UPDATE rule_webhook_links SET mask = '{\"note\": \"null\"}'");
    feed.pg.psql("INSERT INTO t VALUES (2, 'kanari', 'b')");
    // A new column is left out, and named, until the mask is written again.
    feed.pg.psql("ALTER TABLE t ADD COLUMN phone text; INSERT INTO t VALUES (3, 'kanari', 'c', 'kanari')");
    feed.confirmed().await;
    assert_eq!(
        feed.pg.psql("SELECT severity, problem FROM rule_cdc_check() WHERE name = 'mask_new_column'"),
        "warning|the columns phone have come since its mask was set, and are left out"
    );
    let log = walhook.log();
    assert!(log.contains("column \\\"phone\\\"") || log.contains("column \"phone\""), "{log}");
    feed.pg.psql(&remedy(&feed.pg, "mask_new_column"));
    feed.pg.psql("INSERT INTO t VALUES (4, 'kanari', 'd', '+1')");
    // Dropped in the transaction in which the mask changes, no event is set aside.
    feed.pg
        .psql("BEGIN; ALTER TABLE t DROP COLUMN note; SELECT rule_webhook_link_table(1, 't', p_mask => '{}'); COMMIT");
    feed.pg.psql("INSERT INTO t VALUES (5, 'e', '+2')");
    feed.confirmed().await;
    assert_eq!(
        data(&feed).await,
        [
            json!({ "id": 2, "note": null, "email": "b" }),
            json!({ "id": 3, "note": null, "email": "c" }),
            json!({ "id": 4, "note": null, "email": "d", "phone": "+1" }),
            json!({ "id": 5, "email": "e", "phone": "+2" }),
        ]
    );
    assert_eq!(feed.pg.psql("SELECT mask IS NULL, mask_columns IS NULL FROM rule_webhook_links"), "t|t");
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "1");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    search_tables(&feed.pg, &[]);
    feed.nats.stop();
    search(&feed.nats.store_dir());
}

#[tokio::test]
async fn a_mask_holds_from_its_commit_on_also_for_what_was_committed_while_walhook_was_down() {
    let feed = simple(r#"{"email": "drop"}"#).await;
    let insert = |id: i32| feed.pg.psql(&format!("INSERT INTO t VALUES ({id}, 'mail {id}', 'n')"));
    insert(1);
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't', p_mask => '{}')");
    insert(2);
    feed.pg.psql(
        "SELECT rule_webhook_link_table(1, 't', p_mask => '{\"email\": \"null\"}', p_rename => '{\"email\": \"m\"}')",
    );
    insert(3);
    // Linking again for another reason keeps it.
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't', p_columns => '{id,email}')");
    insert(4);
    feed.after(&[]).await;
    let expected = [
        json!({ "id": 1, "note": "n" }),
        json!({ "id": 2, "email": "mail 2", "note": "n" }),
        json!({ "id": 3, "m": null, "note": "n" }),
        json!({ "id": 4, "email": null }),
    ];
    assert_eq!(data(&feed).await, expected);
}

#[tokio::test]
async fn without_its_key_a_link_that_hashes_is_set_aside_alone_and_named() {
    let feed = simple(r#"{"email": "hash"}"#).await;
    feed.webhook("other");
    feed.pg.psql("SELECT rule_webhook_link_table(2, 't', p_mask => '{\"email\": \"drop\"}')");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1, 'kanari', 'a')");
    feed.confirmed().await;
    assert_eq!(data(&feed).await, [json!({ "id": 1, "note": "a" })], "the other link goes on");
    let reason = feed.pg.psql("SELECT reason FROM rule_nats_dead_letters WHERE headers ? 'Walhook-Withheld'");
    assert!(reason.contains("its mask has hash, which needs a key: walhook has no mask_key_file"), "{reason}");
    assert!(walhook.log().contains("mask of the link of public.t has hash, which needs a key"), "{}", walhook.log());
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());

    // Every way in which there is none, and explain shows no more than would leave.
    let key = KeyFile::new(KEY);
    let finding = |builder: Builder| {
        let done = builder.args(["--json"]).finish();
        let found: Value = serde_json::from_str(&done.stdout).unwrap();
        let found = found["findings"].as_array().unwrap().clone();
        found.iter().find(|found| found["code"] == "mask_key").map(|found| found["text"].as_str().unwrap().to_owned())
    };
    assert!(finding(feed.command("check")).unwrap().contains("no mask_key_file"));
    assert_eq!(finding(key.with(feed.command("check"))), None);
    let short = KeyFile::new("short\n");
    assert!(finding(short.with(feed.command("check"))).unwrap().contains("has 5 bytes, fewer than 16"));
    let path = key.0.path().join("key");
    let missing = feed.command("check").env("WALHOOK_MASK_KEY_FILE", key.0.path().join("none"));
    assert!(finding(missing).unwrap().contains("mask_key_file"));
    // The key itself where the path belongs.
    let mistaken = finding(feed.command("check").env("WALHOOK_MASK_KEY_FILE", KEY)).unwrap();
    assert!(!mistaken.contains(KEY), "{mistaken}");
    let done = feed.command("explain").args(["t", "--json"]).finish().stdout;
    let done: Value = serde_json::from_str(&done).unwrap();
    let insert = &done["links"][0]["operations"][0];
    assert!(insert["why"].as_str().unwrap().contains("needs a key"), "{insert}");
    assert_eq!(insert["payload"]["data"], json!({}));
    quiet("explain", &done.to_string());
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(finding(key.with(feed.command("check"))).unwrap().contains("others than its owner may read"));

    // With the key the next events leave, and the rows of the set aside ones by a backfill.
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut walhook: Walhook = key.with(feed.streamer()).start();
    feed.pg.psql("INSERT INTO t VALUES (2, 'kanari', 'b')");
    let done = feed.command("backfill").args(["--table", "t", "--webhook", "w"]).finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    feed.confirmed().await;
    let hashed = json!({ "id": 1, "email": hash("kanari"), "note": "a" });
    assert!(data(&feed).await.contains(&hashed), "{:?}", data(&feed).await);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    search_tables(&feed.pg, &[]);
    feed.nats.stop();
    search(&feed.nats.store_dir());
}

#[tokio::test]
async fn a_masked_table_that_becomes_a_partition_of_a_linked_table_keeps_back_what_it_kept_back() {
    let feed = simple(r#"{"email": "null"}"#).await;
    feed.pg.psql(
        "CREATE TABLE parted (id int PRIMARY KEY, email text, note text) PARTITION BY RANGE (id); \
         CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200)",
    );
    feed.pg.psql("SELECT rule_webhook_link_table(1, 'parted')");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1, 'kanari', 'a'); INSERT INTO parted VALUES (100, 'b@example.com', 'b')");
    let attach = format!("ALTER TABLE parted ATTACH PARTITION t FOR VALUES FROM (1) TO (100); {NOTICED_BY_14}");
    feed.pg.psql(&attach);
    feed.pg.psql(
        "INSERT INTO t VALUES (2, 'kanari', 'c'); INSERT INTO parted VALUES (3, 'kanari', 'd'), (101, 'kanari', 'e')",
    );
    feed.confirmed().await;
    assert_eq!(
        feed.pg.psql("SELECT problem FROM rule_cdc_check() WHERE name = 'partition_linked'"),
        "it is a partition of public.parted, which is linked too: its changes come as those of that table, and this link gets none; what \
         its mask keeps back is left out of the events of that table. If it is to stay there, remove this link by \
         rule_webhook_unlink_table"
    );
    assert!(walhook.log().contains("the mask of its partition public.t (link 1) keeps it back"), "{}", walhook.log());
    // As the code that publishes shows it, and when all rows are sent again.
    let shown = feed.command("explain").args(["parted", "--json"]).finish();
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    quiet("explain", &shown.stdout);
    let sent = feed.command("backfill").args(["--table", "parted"]).finish();
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    feed.confirmed().await;
    // After a restart it is known again before the first row.
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    feed.pg.psql("UPDATE parted SET note = 'f' WHERE id = 2");
    let mut walhook = feed.run();
    feed.confirmed().await;
    // Detached, each table has its own events again.
    feed.pg.psql(&format!("{} {NOTICED_BY_14}", remedy(&feed.pg, "partition_linked")));
    feed.pg.psql("INSERT INTO t VALUES (4, 'kanari', 'g'); INSERT INTO parted VALUES (102, 'h@example.com', 'h')");
    feed.confirmed().await;
    let part = |id: i32, note: &str| json!({ "id": id, "note": note });
    assert_eq!(
        data(&feed).await,
        [
            json!({ "id": 1, "email": null, "note": "a" }),
            json!({ "id": 100, "email": "b@example.com", "note": "b" }),
            part(2, "c"),
            part(3, "d"),
            part(101, "e"),
            part(1, "a"),
            part(2, "c"),
            part(3, "d"),
            part(100, "b"),
            part(101, "e"),
            part(2, "f"),
            json!({ "id": 4, "email": null, "note": "g" }),
            json!({ "id": 102, "email": "h@example.com", "note": "h" }),
        ]
    );
    // A mask of the linked table's own is in force, and without the other link the column leaves.
    feed.pg.psql("UPDATE rule_webhook_links SET mask = '{\"email\": \"last4\"}' WHERE table_name = 'parted'");
    feed.pg.psql(&attach);
    feed.pg.psql("INSERT INTO t VALUES (5, 'i@example.com', 'i')");
    feed.pg.psql("UPDATE rule_webhook_links SET mask = NULL WHERE table_name = 'parted'");
    feed.pg.psql("SELECT rule_webhook_unlink_table(1, 't')");
    feed.pg.psql("INSERT INTO t VALUES (6, 'j@example.com', 'j')");
    feed.confirmed().await;
    assert_eq!(
        data(&feed).await[13..],
        [
            json!({ "id": 5, "email": "****.com", "note": "i" }),
            json!({ "id": 6, "email": "j@example.com", "note": "j" }),
        ]
    );
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    quiet("the log", &walhook.log());
}
