//! Tenants (docs/tenants.md): accounts, streams and configurations as the page has them, on a real server. Each tenant gets the events of
//! its own rows, and neither sees nor writes those of others; one that is full holds up itself alone.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{collections::BTreeSet, path::Path, time::Duration};

use async_nats::jetstream::{self, consumer::PullConsumer};
use futures_util::StreamExt;
use nkeys::KeyPair;
use serde_json::{Value, json};
use support::{
    Nats, Postgres, eventually,
    feed::{Feed, last_sequence},
    login::{jwt, write_credentials},
    rows::ended_well,
};

/// The code blocks of the page in this language, in their order.
fn blocks(language: &str) -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tenants.md")).unwrap();
    let begins = format!("```{language}\n");
    page.split(&begins).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

async fn client(nats: &Nats, user: &str, password: &str) -> async_nats::Client {
    let options = async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
    options.connect(nats.url()).await.unwrap()
}

/// What JetStream answers to a request; None if nobody does.
async fn asked(client: &async_nats::Client, subject: &str, request: Value) -> Option<Value> {
    let request =
        async_nats::Request::new().payload(request.to_string().into()).timeout(Some(Duration::from_millis(500)));
    let answer = client.send_request(subject.to_owned(), request).await.ok()?;
    serde_json::from_slice(&answer.payload).ok()
}

/// What the tenant's program reads and acknowledges: tenant and number of each row, up to `count` of them.
async fn read(jetstream: &jetstream::Context, stream: &str, count: usize) -> Vec<(String, i64)> {
    let consumer: PullConsumer =
        jetstream.get_stream_no_info(stream).await.unwrap().get_consumer("reader").await.unwrap();
    let mut rows = Vec::new();
    while rows.len() < count {
        let mut batch = consumer.batch().max_messages(count).expires(Duration::from_secs(5)).messages().await.unwrap();
        while let Some(message) = batch.next().await {
            let message = message.unwrap();
            message.double_ack().await.unwrap();
            let payload: Value = serde_json::from_slice(&message.payload).unwrap();
            let data = &payload["data"];
            rows.push((data["tenant_id"].as_str().unwrap().to_owned(), data["id"].as_i64().unwrap()));
        }
    }
    rows
}

fn rows(tenant: &str, numbers: std::ops::RangeInclusive<i64>) -> Vec<(String, i64)> {
    numbers.map(|id| (tenant.to_owned(), id)).collect()
}

fn insert(feed: &Feed, tenant: &str, from: i64, to: i64) {
    feed.pg.psql(&format!(
        "INSERT INTO orders SELECT '{tenant}', i, repeat('x', 100) FROM generate_series({from}, {to}) i"
    ));
}

/// Settings by which a full window is reached soon, and left soon.
const NARROW: &str = "window_events = 50\nack_timeout_ms = 500\n";

fn run(feed: &Feed, folder: &Path) -> support::Walhook {
    let file = folder.join("walhook.toml");
    std::fs::write(&file, NARROW).unwrap();
    feed.streamer().arg("--config").arg(file).start()
}

#[tokio::test]
async fn a_stream_for_each_tenant_is_read_by_its_account_and_by_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::builder().config(&blocks("text")[0]).start().await;
    let feed = Feed::on(Postgres::set_up().await, nats);
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = 'nats://walhook:w@127.0.0.1:{}'", feed.nats.port()));
    let sql = blocks("sql");
    feed.pg.psql(&sql[0]);
    feed.pg.psql(&sql[1]);
    let mut walhook = run(&feed, folder.path());
    let (acme, globex) = (client(&feed.nats, "acme", "a").await, client(&feed.nats, "globex", "g").await);
    let prefixed = |client: &async_nats::Client| jetstream::with_prefix(client.clone(), "walhook");
    let (acme_reads, globex_reads) = (prefixed(&acme), prefixed(&globex));
    let owner = jetstream::new(client(&feed.nats, "walhook", "w").await);
    let mut heard = acme.subscribe(">").await.unwrap();
    acme.flush().await.unwrap();

    feed.pg.psql(
        "INSERT INTO orders SELECT CASE i % 2 WHEN 0 THEN 'acme' ELSE 'globex' END, i, 'x' FROM generate_series(1, 100) i",
    );
    feed.confirmed().await;
    // A subscriber in the account receives its own messages, and nothing that walhook has published.
    acme.publish("own", "".into()).await.unwrap();
    assert_eq!(heard.next().await.unwrap().subject.as_str(), "own");
    drop(heard);
    let of = |tenant: &str, rest: i64| {
        (1..=100).filter(|i| i % 2 == rest).map(|i| (tenant.to_owned(), i)).collect::<Vec<_>>()
    };
    assert_eq!(read(&acme_reads, "TENANT_acme", 50).await, of("acme", 0));
    assert_eq!(read(&globex_reads, "TENANT_globex", 50).await, of("globex", 1));

    // Nothing else is there for the tenant: neither the other's consumer nor any other request, not even for its own stream.
    let before = (last_sequence(&owner, "TENANT_acme").await, last_sequence(&owner, "TENANT_globex").await);
    assert_eq!(before, (50, 50));
    for request in [
        "CONSUMER.INFO.TENANT_globex.reader",
        "CONSUMER.MSG.NEXT.TENANT_globex.reader",
        "STREAM.INFO.TENANT_globex",
        "STREAM.MSG.GET.TENANT_globex",
        "DIRECT.GET.TENANT_globex",
        "CONSUMER.CREATE.TENANT_globex",
        "STREAM.PURGE.TENANT_globex",
        "STREAM.INFO.TENANT_acme",
        "STREAM.DELETE.TENANT_acme",
        "STREAM.PURGE.TENANT_acme",
        "STREAM.MSG.DELETE.TENANT_acme",
        "CONSUMER.DELETE.TENANT_acme.reader",
    ] {
        let request_of = json!({ "seq": 1, "batch": 1, "no_wait": true });
        assert_eq!(asked(&acme, &format!("walhook.{request}"), request_of.clone()).await, None, "{request}");
        // The server refuses these itself: the account has no JetStream.
        if let Some(answer) = asked(&acme, &format!("$JS.API.{request}"), request_of).await {
            assert!(answer["error"].is_object(), "{request}: {answer}");
        }
    }
    for subject in ["tenants.acme.orders.insert", "tenants.globex.orders.insert"] {
        assert_eq!(asked(&acme, subject, json!({})).await, None, "{subject}");
    }
    let after = (last_sequence(&owner, "TENANT_acme").await, last_sequence(&owner, "TENANT_globex").await);
    assert_eq!(after, before, "nothing was written");
    let mut stream = owner.get_stream("TENANT_acme").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 50, "nothing was deleted");

    // A new tenant, and its first row in the same transaction.
    feed.pg.psql("BEGIN; INSERT INTO tenants VALUES ('initech'); INSERT INTO orders VALUES ('initech', 1); COMMIT");
    feed.pg.psql("DELETE FROM orders WHERE tenant_id = 'initech'");
    feed.confirmed().await;
    let subjects: Vec<_> = {
        let stream = owner.get_stream("TENANT_initech").await.unwrap();
        let subject = async |sequence| stream.get_raw_message(sequence).await.unwrap().subject.to_string();
        vec![subject(1).await, subject(2).await]
    };
    assert_eq!(subjects, ["tenants.initech.orders.insert", "tenants.initech.orders.delete"]);
    assert!(feed.pg.try_psql("INSERT INTO tenants VALUES ('*')").is_err());

    // One that is full: the others go on.
    feed.pg.psql(
        "UPDATE rule_nats_streams SET discard_policy = 'new', max_messages = 60 WHERE stream_name = 'TENANT_acme'",
    );
    feed.confirmed().await;
    insert(&feed, "acme", 1001, 1300);
    insert(&feed, "globex", 1001, 1300);
    eventually("globex to have its rows though acme is full", async || {
        (last_sequence(&owner, "TENANT_globex").await == 350).then_some(())
    })
    .await;
    assert_eq!(last_sequence(&owner, "TENANT_acme").await, 60, "{}", walhook.log());
    assert!(!feed.is_confirmed(), "the slot waits for acme");
    feed.pg.psql("UPDATE rule_nats_streams SET max_messages = 100000 WHERE stream_name = 'TENANT_acme'");
    feed.confirmed().await;
    assert_eq!(read(&acme_reads, "TENANT_acme", 300).await, rows("acme", 1001..=1300));
    assert_eq!(read(&globex_reads, "TENANT_globex", 300).await, rows("globex", 1001..=1300));
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    ended_well(&mut walhook);
}

/// The checks of the second set-up, whatever the accounts were made with: of each tenant the login of walhook and its own.
async fn an_account_each(feed: &Feed, folder: &Path, acme: [async_nats::Client; 2], globex: [async_nats::Client; 2]) {
    let mut walhook = run(feed, folder);
    let [acme_owner, acme] = acme;
    let [globex_owner, globex] = globex;
    let (of_acme, of_globex) = (jetstream::new(acme_owner), jetstream::new(globex_owner));
    let (acme_reads, globex_reads) = (jetstream::new(acme.clone()), jetstream::new(globex));
    feed.pg.psql(
        "INSERT INTO orders SELECT CASE i % 2 WHEN 0 THEN 'acme' ELSE 'globex' END, i, 'x' FROM generate_series(1, 100) i",
    );
    feed.pg.psql("DELETE FROM orders WHERE tenant_id = 'acme' AND id <= 10");
    feed.confirmed().await;
    let even: Vec<i64> = (1..=50).map(|i| 2 * i).chain([2, 4, 6, 8, 10]).collect();
    let expected: Vec<_> = even.into_iter().map(|i| ("acme".to_owned(), i)).collect();
    assert_eq!(read(&acme_reads, "ACME", 55).await, expected);
    let expected: Vec<_> = (0..50).map(|i| ("globex".to_owned(), 2 * i + 1)).collect();
    assert_eq!(read(&globex_reads, "GLOBEX", 50).await, expected);

    // The tenant's login reads its consumer, and that is all.
    for request in [
        "$JS.API.STREAM.INFO.ACME",
        "$JS.API.STREAM.MSG.GET.ACME",
        "$JS.API.STREAM.PURGE.ACME",
        "$JS.API.CONSUMER.DELETE.ACME.reader",
        "$JS.API.STREAM.INFO.GLOBEX",
        "$JS.API.CONSUMER.INFO.GLOBEX.reader",
        "$JS.API.STREAM.INFO.KV_walhook_walhook",
        "acme.orders",
        "globex.orders",
    ] {
        assert_eq!(asked(&acme, request, json!({ "seq": 1 })).await, None, "{request}");
    }
    assert_eq!((last_sequence(&of_acme, "ACME").await, last_sequence(&of_globex, "GLOBEX").await), (55, 50));
    // In the bucket of an account are its own webhooks.
    let bucket = of_acme.get_key_value("walhook_walhook").await.unwrap();
    let keys: BTreeSet<String> = bucket.keys().await.unwrap().map(Result::unwrap).collect().await;
    let webhooks: Vec<_> = keys.iter().filter(|key| key.starts_with("webhook.")).collect();
    assert_eq!(webhooks, ["webhook.1"], "{keys:?}");

    // acme's stream is full: its max_bytes. The rows of globex go on, also those that come after many of acme.
    feed.pg.psql("UPDATE rule_nats_streams SET max_messages = 60 WHERE stream_name = 'ACME'");
    feed.confirmed().await;
    insert(feed, "acme", 1001, 1300);
    insert(feed, "globex", 1001, 1300);
    eventually("globex to have its rows though acme is full", async || {
        (last_sequence(&of_globex, "GLOBEX").await == 350).then_some(())
    })
    .await;
    assert_eq!(last_sequence(&of_acme, "ACME").await, 60, "{}", walhook.log());
    assert!(!feed.is_confirmed(), "the slot waits for acme");
    feed.pg.psql("UPDATE rule_nats_streams SET max_messages = 100000 WHERE stream_name = 'ACME'");
    feed.confirmed().await;
    assert_eq!(read(&acme_reads, "ACME", 300).await, rows("acme", 1001..=1300));
    assert_eq!(read(&globex_reads, "GLOBEX", 300).await, rows("globex", 1001..=1300));
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    ended_well(&mut walhook);
}

/// Servers with the accounts of the page; of each tenant the login of walhook and its own.
async fn by_configuration() -> (Feed, [[async_nats::Client; 2]; 2]) {
    let nats = Nats::builder().config(&blocks("text")[1]).start().await;
    let feed = Feed::on(Postgres::set_up().await, nats);
    let sql = blocks("sql");
    feed.pg.psql(&sql[0]);
    feed.pg.psql(&sql[2]);
    feed.pg.psql("DELETE FROM rule_nats_config");
    let mut logins = Vec::new();
    for (tenant, password) in [("acme", "a"), ("globex", "g")] {
        let url = format!("nats://walhook-{tenant}:w@127.0.0.1:{}", feed.nats.port());
        feed.pg.psql(&format!("SELECT tenant_add('{tenant}', '{url}', NULL)"));
        let owner = client(&feed.nats, &format!("walhook-{tenant}"), "w").await;
        logins.push([owner, client(&feed.nats, tenant, password).await]);
    }
    (feed, logins.try_into().unwrap_or_else(|_| unreachable!()))
}

#[tokio::test]
async fn an_account_for_each_tenant_by_the_servers_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let (feed, [acme, globex]) = by_configuration().await;
    an_account_each(&feed, folder.path(), acme, globex).await;
}

/// An account's limit is reached where its stream has none, and there is room again when messages that are read are purged.
#[tokio::test]
async fn a_tenant_whose_account_is_full_waits_alone_until_what_is_read_is_purged() {
    let folder = tempfile::tempdir().unwrap();
    let (feed, [acme, globex]) = by_configuration().await;
    feed.pg.psql("UPDATE rule_nats_streams SET max_bytes = NULL WHERE stream_name = 'ACME'");
    let mut walhook = run(&feed, folder.path());
    let [[of_acme, acme], [of_globex, globex]] = [acme, globex].map(|logins| logins.map(jetstream::new));
    // Thirty megabytes for an account of twenty.
    feed.pg.psql("INSERT INTO orders SELECT 'acme', i, repeat('x', 100000) FROM generate_series(1, 300) i");
    insert(&feed, "globex", 1, 300);
    eventually("globex to have its rows though acme's account is full", async || {
        (last_sequence(&of_globex, "GLOBEX").await == 300).then_some(())
    })
    .await;
    let stored = last_sequence(&of_acme, "ACME").await;
    assert!((100..210).contains(&stored), "{stored}");
    assert!(!feed.is_confirmed(), "the slot waits for acme");
    assert_eq!(read(&globex, "GLOBEX", 300).await, rows("globex", 1..=300));
    eventually("the state of acme to name the reason", async || {
        let state = feed.pg.psql("SELECT rule_nats_health_check('acme')");
        (state.contains("(10002)") && state.contains("\"holds_slot\": true")).then_some(())
    })
    .await;

    // After a restart the slot begins with acme's events, for which there is no room, and globex had none in this run.
    walhook.kill9();
    let mut walhook = run(&feed, folder.path());
    insert(&feed, "globex", 301, 400);
    eventually("globex to have its rows after a restart", async || {
        (last_sequence(&of_globex, "GLOBEX").await == 400).then_some(())
    })
    .await;
    assert_eq!(last_sequence(&of_acme, "ACME").await, stored);

    let mut seen = read(&acme, "ACME", usize::try_from(stored).unwrap()).await;
    of_acme.get_stream("ACME").await.unwrap().purge().sequence(stored + 1).await.unwrap();
    seen.extend(read(&acme, "ACME", 300 - seen.len()).await);
    assert_eq!(seen, rows("acme", 1..=300));
    assert_eq!(read(&globex, "GLOBEX", 100).await, rows("globex", 301..=400));
    feed.confirmed().await;
    assert_eq!((last_sequence(&of_acme, "ACME").await, last_sequence(&of_globex, "GLOBEX").await), (300, 400));
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    ended_well(&mut walhook);
}

/// A server in operator mode with the accounts, limits and users of the page. The users' credentials are files in `folder`.
fn operator_mode(folder: &Path) -> String {
    let (operator, system) = (KeyPair::new_operator(), KeyPair::new_account());
    let account = |storage: Option<i64>| {
        let mut limits = json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
            "wildcards": true, "conn": -1, "leaf": -1 });
        if let Some(bytes) = storage {
            let jetstream = json!({ "disk_storage": bytes, "mem_storage": 0, "streams": 3, "consumer": 10 });
            limits.as_object_mut().unwrap().extend(jetstream.as_object().unwrap().clone());
        }
        json!({ "limits": limits, "type": "account", "version": 2 })
    };
    let mut accounts = vec![(system.public_key(), jwt(&operator, &system, "sys", account(None)))];
    for tenant in ["acme", "globex"] {
        let (key, stream) = (KeyPair::new_account(), tenant.to_uppercase());
        accounts.push((key.public_key(), jwt(&operator, &key, &stream, account(Some(20 << 20)))));
        let user = |name: String, publish: Value, subscribe: Value| {
            let user = KeyPair::new_user();
            let claims = json!({ "pub": publish, "sub": subscribe, "subs": -1, "data": -1, "payload": -1,
                "type": "user", "version": 2 });
            write_credentials(&folder.join(format!("{name}.creds")), &jwt(&key, &user, &name, claims), &user);
        };
        user(format!("walhook-{tenant}"), json!({}), json!({}));
        let reads = [
            format!("$JS.API.CONSUMER.INFO.{stream}.reader"),
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.reader"),
            format!("$JS.ACK.{stream}.reader.>"),
        ];
        user(tenant.to_owned(), json!({ "allow": reads }), json!({ "allow": ["_INBOX.>"] }));
    }
    let preload: Vec<_> = accounts.iter().map(|(key, jwt)| format!("{key}: {jwt}")).collect();
    format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {} }}",
        jwt(&operator, &operator, "shop", json!({ "type": "operator", "version": 2 })),
        system.public_key(),
        preload.join(", ")
    )
}

#[tokio::test]
async fn an_account_for_each_tenant_by_the_jwts_of_an_operator() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::builder().config(&operator_mode(folder.path())).start().await;
    let feed = Feed::on(Postgres::set_up().await, nats);
    let sql = blocks("sql");
    feed.pg.psql(&sql[0]);
    feed.pg.psql(&sql[2]);
    feed.pg.psql("DELETE FROM rule_nats_config");
    let add = sql[3]
        .replace("nats://localhost:4222", &feed.nats.url())
        .replace("/etc/walhook/", &format!("{}/walhook-", folder.path().display()));
    feed.pg.psql(&add);
    let login = async |name: &str| {
        let file = folder.path().join(format!("{name}.creds"));
        let options = async_nats::ConnectOptions::with_credentials_file(file).await.unwrap();
        options.connect(feed.nats.url()).await.unwrap()
    };
    let acme = [login("walhook-acme").await, login("acme").await];
    let globex = [login("walhook-globex").await, login("globex").await];
    an_account_each(&feed, folder.path(), acme, globex).await;
}
