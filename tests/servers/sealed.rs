//! Sealed payloads: what a webhook seals is nowhere outside its table in plain, opens by the documented format, comes once and in order
//! under kills, and waits where there is no key.

#![allow(clippy::unwrap_used)]

use crate::{http, support};

use std::fs;

use serde_json::{Value, json};
use support::{
    Nats, Postgres,
    canary::{CANARY, quiet, search, search_tables},
    eventually,
    feed::Feed,
    http::Http,
    last_mile::LastMile,
    sealed::{self, KeyFolder, Sealed},
};
use tokio::io::AsyncReadExt;

fn row(id: i32, length: usize) -> String {
    format!("({id}, '{CANARY} tag {id}', '{CANARY}@{id}', repeat('{CANARY}', {length}))")
}

/// Webhooks 1 to 5, one for each format, and 6, whose events no stream takes; all seal with the key `k` and are linked to `people`.
fn linked(feed: &Feed) {
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql("SELECT rule_webhook_emit_enable(); UPDATE rule_nats_config SET history_payload = 'full'");
    feed.pg.psql("CREATE TABLE people (id int, tag text, email text, large text, PRIMARY KEY (id, tag))");
    feed.pg.psql("ALTER TABLE people ALTER large SET STORAGE EXTERNAL");
    for (id, format) in (1..).zip(["webhook", "data", "debezium", "cloudevents", "cloudevents_binary", "webhook"]) {
        assert_eq!(feed.webhook(&format!("w{id}")), id);
        feed.pg.psql(&format!(
            "UPDATE rule_webhooks SET payload_format = '{format}', on_error = 'object_store', seal_key = 'k' WHERE webhook_id = {id}; \
             SELECT rule_webhook_link_table({id}, 'people', p_include_old => true)"
        ));
    }
    feed.pg.psql("UPDATE rule_webhook_links SET subject_template = 'elsewhere.{id}' WHERE webhook_id = 6");
}

/// The payload that a message stands for, opened.
async fn event(feed: &Feed, message: &Sealed) -> Value {
    let object = message.header("Walhook-Object");
    if object.is_empty() {
        return message.open();
    }
    let (bucket, name) = object.split_once('/').unwrap();
    let store = feed.nats.jetstream().await.get_object_store(bucket).await.unwrap();
    let mut bytes = Vec::new();
    store.get(name).await.unwrap().read_to_end(&mut bytes).await.unwrap();
    let sha256: String =
        ring::digest::digest(&ring::digest::SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(message.header("Walhook-Object-SHA256"), sha256, "of what is stored");
    let claim: Value = serde_json::from_slice(&message.body).unwrap();
    assert_eq!(claim["object"]["bytes"], bytes.len());
    serde_json::from_slice(&sealed::open(message.seal(), &bytes)).unwrap()
}

#[tokio::test]
async fn what_is_sealed_is_nowhere_in_plain_and_opens_by_the_documented_format() {
    let feed = Feed::on(Postgres::set_up().await, Nats::builder().config("max_payload: 64KB").start().await);
    let keys = KeyFolder::new(&["k.2026-11"]);
    linked(&feed);
    let receiver = Http::ok();
    feed.pg.psql(&format!("UPDATE rule_webhooks SET url = '{}'", receiver.url("/")));
    let mut streamer = http::with_http(keys.with(feed.streamer())).args(["--log", "trace"]).start();
    let address = http::address_of(&mut streamer).await;
    feed.confirmed().await;
    feed.pg.psql("SELECT rule_cdc_anchor_create()");
    let from = feed.pg.psql("SELECT pg_current_wal_lsn()");
    feed.pg.psql(&format!("INSERT INTO people VALUES {}, {}", row(1, 10), row(2, 1000)));
    feed.pg.psql(&format!("UPDATE people SET tag = '{CANARY} new tag' WHERE id = 2"));
    feed.pg.psql("DELETE FROM people WHERE id = 1");
    feed.pg.psql(&format!("INSERT INTO people VALUES {}", row(3, 20_000)));
    feed.pg.psql(&format!("SELECT rule_webhook_publish_nats(1, '{{\"call\": \"{CANARY}\"}}')"));
    feed.pg.psql(&format!("SELECT rule_webhook_emit(1, '{{\"emitted\": \"{CANARY}\"}}')"));
    feed.confirmed().await;

    let messages = sealed::messages(&feed).await;
    let of =
        |id: i32| messages.iter().filter(|message| message.subject == format!("webhooks.w{id}")).collect::<Vec<_>>();
    for message in &messages {
        let id = message.header("Walhook-Id");
        let id = if id.is_empty() { message.header("Nats-Msg-Id") } else { id };
        assert_eq!(message.seal(), format!("v1 k.2026-11 {id}"));
        assert_eq!(message.header("Walhook-Old-Key"), "");
    }
    let data = json!({ "id": 1, "tag": "kanari tag 1", "email": "kanari@1", "large": CANARY.repeat(10) });
    let webhook = of(1);
    let first = event(&feed, webhook[0]).await;
    assert_eq!((&first["data"], &first["id"]), (&data, &webhook[0].header("Nats-Msg-Id").into()));
    let ops: Vec<_> = webhook.iter().map(|message| message.header("Walhook-Op")).collect();
    assert_eq!(ops, ["insert", "insert", "update", "delete", "insert", "insert", "insert"]);
    let old = json!({ "id": 2, "tag": "kanari tag 2" });
    assert_eq!(event(&feed, webhook[2]).await["event"]["old"], old);
    let old_key = |message: &Sealed| sealed::open_old_key(message.seal(), message.header("Walhook-Sealed-Old-Key"));
    assert_eq!((old_key(webhook[2]), old_key(of(2)[2])), (old.clone(), old));
    assert!(!webhook[4].header("Walhook-Object").is_empty(), "a claim check");
    assert_eq!(event(&feed, webhook[4]).await["data"]["large"], CANARY.repeat(20_000));
    assert_eq!(event(&feed, webhook[5]).await["data"]["call"], CANARY);
    assert_eq!(event(&feed, webhook[6]).await["data"]["emitted"], CANARY);
    assert_eq!(event(&feed, of(2)[0]).await, data);
    assert_eq!(event(&feed, of(3)[0]).await["after"], data);
    assert_eq!(event(&feed, of(4)[0]).await["data"], data);
    assert_eq!(event(&feed, of(5)[0]).await, data);
    assert_eq!(of(4)[0].header("Content-Type"), "application/cloudevents+json", "that of what is sealed");
    assert_eq!(of(5)[0].header("ce-subject"), "public.people", "headers stay readable");
    // The history has what was published.
    let kept = feed.pg.psql(
        "SELECT payload ->> '$base64' FROM rule_nats_publish_history WHERE webhook_id = 1 ORDER BY publish_id LIMIT 1",
    );
    let kept = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, kept).unwrap();
    assert_eq!(kept, webhook[0].body);

    // Backfill and both kinds of replay.
    let done = feed.command("backfill").args(["--table", "people", "--webhook", "w1"]).finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    feed.confirmed().await;
    assert_eq!(sealed::messages(&feed).await.last().unwrap().header("Walhook-Op"), "snapshot");
    for via in ["wal", "stream"] {
        let stream = format!("REPLAY_{via}");
        let arguments =
            ["--create-stream", &stream, "--subject-prefix", via, "--from", &from, "--via", via, "--webhook", "w1"];
        let done =
            keys.with(feed.command("replay")).args(arguments).args(["--table", "people", "--log", "trace"]).finish();
        assert_eq!(done.code, Some(0), "{done:?}");
        quiet("replay", &format!("{done:?}"));
        let again = sealed::messages_of(&feed, &stream).await;
        assert_eq!((&again[0].body, again[0].seal()), (&webhook[0].body, webhook[0].seal()), "the same bytes");
    }
    let done = feed
        .command("replay")
        .args(["--create-stream", "NONE", "--subject-prefix", "none", "--from", &from, "--via", "wal"])
        .finish();
    assert!(done.code != Some(0) && done.stderr.contains("does not have the seal key \"k\""), "{done:?}");

    // Dead letters, also published again, are sealed for the event that they were first.
    assert_ne!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters WHERE reason LIKE '%elsewhere%'"), "0");
    let letter = feed.pg.psql("SELECT min(dead_letter_id) FROM rule_nats_dead_letters");
    let first = feed.pg.psql(&format!("SELECT event_id FROM rule_nats_dead_letters WHERE dead_letter_id = {letter}"));
    feed.pg.psql(&format!("SELECT rule_nats_dead_letter_retry({letter}, 'webhooks.again')"));
    feed.confirmed().await;
    let again = sealed::messages(&feed).await.pop().unwrap();
    assert_eq!((again.seal(), again.header("Walhook-Retry-Of")), (&*format!("v1 k.2026-11 {first}"), &*first));
    assert_eq!(again.open()["data"], data);

    // Calls, and the worker's log.
    let mile = LastMile::with(feed, streamer);
    let mut worker = http::with_http(keys.with(mile.worker())).args(["--log", "trace"]).start();
    let worker_address = http::address_of(&mut worker).await;
    receiver.received(29).await;
    assert!(receiver.requests().iter().all(|request| String::from_utf8_lossy(&request.body).contains(CANARY)));
    let LastMile { feed, mut streamer, .. } = mile;
    feed.confirmed().await;
    eventually("calls in the log", async || {
        (feed.pg.psql("SELECT count(*) > 20 FROM rule_webhook_calls WHERE status = 'success'") == "t").then_some(())
    })
    .await;

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
        &["tail", "--since", "1h", "-n", "30"][..],
        &["tail", "--since", "1h", "-n", "30", "--json"],
        &["status"],
        &["status", "--json"],
        &["check", "--json"],
        &["dead-letters", "list"],
        &["dead-letters", "show", "1"],
    ] {
        let done = keys.with(feed.command(arguments[0])).args(arguments[1..].iter()).finish();
        quiet(&format!("{arguments:?}"), &format!("{done:?}"));
        assert!(!done.stdout.is_empty(), "{arguments:?}: {done:?}");
    }
    // Who has the key reads on.
    for identity in [keys.file("k.2026-11"), keys.path().to_owned()] {
        let done =
            feed.command("tail").args(["--since", "1h", "-n", "1", "--json", "--identity"]).arg(identity).finish();
        let line: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(
            (&line["sealed"]["opened"], &line["payload"]["data"]["email"]),
            (&json!(true), &json!("kanari@1")),
            "{done:?}"
        );
        assert_eq!(line["table"], "public.people");
    }
    let shown = feed.command("tail").args(["--since", "1h", "-n", "1"]).finish();
    assert!(shown.stdout.contains("sealed: with the key k.2026-11; --identity FILE opens it"), "{shown:?}");
    let explained = keys.with(feed.command("explain")).args(["people", "--json"]).finish();
    let explained: Value = serde_json::from_str(&explained.stdout).unwrap();
    let link = &explained["links"][0];
    assert_eq!(
        (&link["seal_key"], &link["problem"]),
        (&json!("k"), &Value::Null),
        "as it is before it is sealed: {link}"
    );

    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(streamer.terminate(), 0, "{}", streamer.log());
    quiet("the log", &streamer.log());
    quiet("the worker's log", &worker.log());
    let digits = fs::read_to_string(keys.file("k.2026-11")).unwrap();
    assert!(!streamer.log().contains(digits.trim()) && !worker.log().contains(digits.trim()));
    search_tables(&feed.pg, &["rule_webhook_events"]);
    feed.nats.stop();
    assert!(search(&feed.nats.store_dir()) > 5);
}

/// A table `t` linked to webhook 1, which seals with the key `k`.
async fn simple() -> Feed {
    let feed = Feed::start().await;
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't'); UPDATE rule_webhooks SET seal_key = 'k'");
    feed
}

async fn ids(feed: &Feed) -> Vec<i64> {
    sealed::messages(feed).await.iter().map(|message| message.open()["data"]["id"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn without_its_key_an_event_waits_and_goes_on_by_itself_once_the_key_is_there() {
    let feed = simple().await;
    let keys = KeyFolder::new(&[]);
    let mut walhook = keys.with(feed.streamer()).start();
    feed.pg.psql("INSERT INTO t VALUES (1, 'kanari')");
    let waits = "seal event";
    eventually("the streamer to wait", async || walhook.log().contains(waits).then_some(())).await;
    let log = walhook.log();
    assert!(
        log.contains("of webhook 1 \\\"w\\\": walhook does not have the seal key")
            || log.contains("of webhook 1 \"w\": walhook does not have the seal key"),
        "{log}"
    );
    assert!(
        log.contains("has no file k.<id>") && log.contains("put the key into that folder, and it continues by itself"),
        "{log}"
    );
    let found = keys.with(feed.command("check")).arg("--json").finish();
    let code = found.stdout.lines().find(|line| line.contains("\"seal_key\""));
    assert!(code.is_some_and(|line| line.contains("Webhook w seals its payloads")), "{found:?}");
    // A file that others may read, or with something else in it, is no key.
    keys.write("k.1", "short");
    let found = keys.with(feed.command("check")).arg("--json").finish();
    assert!(found.stdout.contains("k.1: it has to hold 64 hexadecimal digits"), "{found:?}");
    let remedy = format!("(umask 077; openssl rand -hex 32 > {}/k.1)", keys.path().display());
    assert!(found.stdout.contains(&remedy), "{found:?}");
    assert!(sealed::messages(&feed).await.is_empty());
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    keys.remove("k.1");
    keys.add("k.2");
    feed.confirmed().await;
    assert_eq!(ids(&feed).await, [1]);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    quiet("the log", &walhook.log());
}

#[tokio::test]
async fn a_wrong_name_of_a_key_is_corrected_by_an_amendment_at_the_event_that_waits() {
    let feed = simple().await;
    let keys = KeyFolder::new(&["k.1"]);
    let mut walhook = keys.with(feed.streamer()).start();
    feed.pg.psql("INSERT INTO t VALUES (1, 'a')");
    feed.confirmed().await;
    feed.pg.psql("UPDATE rule_webhooks SET seal_key = 'mistyped'");
    feed.pg.psql("INSERT INTO t VALUES (2, 'kanari')");
    let remedy = eventually("the streamer to say what to do", async || {
        let log = walhook.log();
        let at = log.find("SELECT rule_cdc_rules_amend('")?;
        Some(log[at..].split_inclusive("')").next()?.to_owned())
    })
    .await;
    feed.pg.psql("UPDATE rule_webhooks SET seal_key = 'k'");
    feed.pg.psql(&remedy);
    feed.confirmed().await;
    assert_eq!(ids(&feed).await, [1, 2]);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn sealing_begins_and_ends_at_the_commit_that_says_so_and_the_newest_key_seals_while_it_runs() {
    let feed = simple().await;
    feed.pg.psql("UPDATE rule_webhooks SET seal_key = NULL");
    let keys = KeyFolder::new(&["k.9"]);
    let mut walhook = keys.with(feed.streamer()).start();
    feed.pg.psql("INSERT INTO t VALUES (1, 'a')");
    feed.pg.psql("BEGIN; INSERT INTO t VALUES (2, 'b'); UPDATE rule_webhooks SET seal_key = 'k'; INSERT INTO t VALUES (3, 'c'); COMMIT");
    feed.confirmed().await;
    keys.add("k.10");
    eventually("the new key to be used", async || walhook.log().contains("the seal keys have changed").then_some(()))
        .await;
    feed.pg.psql("INSERT INTO t VALUES (4, 'd')");
    feed.pg.psql("UPDATE rule_webhooks SET seal_key = NULL");
    feed.pg.psql("INSERT INTO t VALUES (5, 'e')");
    feed.confirmed().await;
    let messages = sealed::messages(&feed).await;
    let key = |message: &Sealed| message.seal().split(' ').nth(1).unwrap_or("none").to_owned();
    let keys_used: Vec<_> = messages.iter().map(key).collect();
    assert_eq!(keys_used, ["none", "none", "k.9", "k.10", "none"]);
    assert_eq!(ids(&feed).await, [1, 2, 3, 4, 5]);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_dead_letter_from_before_its_webhook_sealed_is_sealed_when_it_is_published_again() {
    let feed = simple().await;
    feed.pg
        .psql("UPDATE rule_webhooks SET seal_key = NULL; UPDATE rule_webhook_links SET subject_template = 'elsewhere'");
    let keys = KeyFolder::new(&["k.1"]);
    let mut walhook = keys.with(feed.streamer()).start();
    feed.pg.psql("INSERT INTO t VALUES (1, 'a'); UPDATE t SET id = 2");
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "2");
    feed.pg.psql("UPDATE rule_webhooks SET seal_key = 'k'");
    feed.pg.psql("SELECT rule_nats_dead_letter_retry(dead_letter_id, 'webhooks.again') FROM rule_nats_dead_letters");
    feed.confirmed().await;
    let messages = sealed::messages(&feed).await;
    assert_eq!(ids(&feed).await, [1, 2]);
    for message in &messages {
        assert_eq!(message.seal(), format!("v1 k.1 {}", message.header("Walhook-Retry-Of")));
        assert_eq!(message.header("Walhook-Old-Key"), "");
    }
    let old_key = sealed::open_old_key(messages[1].seal(), messages[1].header("Walhook-Sealed-Old-Key"));
    assert_eq!(old_key, json!({ "id": 1 }));
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn sealed_events_come_once_and_in_order_though_walhook_is_killed_again_and_again() {
    let feed = Feed::on(Postgres::set_up().await, Nats::builder().config("max_payload: 64KB").start().await);
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql(
        "SELECT rule_webhook_link_table(1, 't'); UPDATE rule_webhooks SET seal_key = 'k', on_error = 'object_store'",
    );
    let keys = KeyFolder::new(&["k.1"]);
    let mut walhook = keys.with(feed.streamer()).start();
    for batch in 0..8 {
        // Every fiftieth has a claim check.
        feed.pg.psql(&format!(
            "INSERT INTO t SELECT n, repeat('x', CASE WHEN n % 50 = 0 THEN 100000 ELSE n % 7 END) \
             FROM generate_series({}, {}) n",
            batch * 500 + 1,
            batch * 500 + 500
        ));
        let stored = feed.last_sequence("WEBHOOKS").await;
        eventually("something to be stored", async || (feed.last_sequence("WEBHOOKS").await > stored).then_some(()))
            .await;
        walhook.kill9();
        if batch == 4 {
            keys.add("k.2");
        }
        walhook = keys.with(feed.streamer()).start();
    }
    feed.confirmed().await;
    let messages = sealed::messages(&feed).await;
    assert_eq!(messages.len(), 4000);
    for (message, id) in messages.iter().zip(1..) {
        let event = event(&feed, message).await;
        assert_eq!(event["data"]["id"], id, "#{}", message.sequence);
    }
    assert!(messages.last().unwrap().seal().contains("k.2"));
    assert_eq!(
        feed.pg.psql("SELECT count(*), count(DISTINCT sequence_number) FROM rule_nats_publish_history"),
        "4000|4000"
    );
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}
