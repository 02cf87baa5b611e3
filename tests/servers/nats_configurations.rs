//! Every way of a configuration's row, end to end: the real binary, a real nats-server for each, and what happens to the
//! others while one is away.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    time::Duration,
};

use async_nats::jetstream;
use futures_util::StreamExt;
use nkeys::KeyPair;
use serde_json::{Value, json};
use support::{
    Nats, Postgres, Walhook, eventually,
    feed::Feed,
    http::Http,
    last_mile::LastMile,
    login::{Operator, tls_server},
    port::Port,
    rows::{ended_well, insert, linked_on},
    tls::Authority,
};
use tokio::net::TcpListener;
use walhook::{
    nats::{
        control,
        settings::{Overrides, Settings},
    },
    route::tables::ConfigRow,
};

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Makes the configuration `name` with these columns (as SQL), and a webhook of the same name that goes by it; returns
/// the webhook's id.
fn configure(feed: &Feed, name: &str, url: &str, columns: &[(&str, String)]) -> i32 {
    feed.pg.psql(&format!("SELECT rule_nats_configure('{name}', {})", quoted(url)));
    for (column, value) in columns {
        feed.pg.psql(&format!("UPDATE rule_nats_config SET {column} = {value} WHERE config_name = '{name}'"));
    }
    let id = feed.pg.psql(&format!("SELECT rule_webhook_register('{name}', 'https://example.com/{name}')"));
    feed.pg.psql(&format!("SELECT rule_webhook_enable_nats({id}, NULL, 'nats', '{name}')"));
    id.parse().unwrap()
}

fn call(feed: &Feed, webhook: i32, text: &str) {
    feed.pg.psql(&format!("SELECT rule_webhook_call_unified({webhook}, '{{\"text\": \"{text}\"}}')"));
}

/// What walhook last reported of a configuration.
fn reported(feed: &Feed, name: &str) -> Value {
    let nats = feed.pg.psql("SELECT coalesce((SELECT nats FROM rule_cdc_status), '{}')");
    serde_json::from_str::<Value>(&nats).unwrap()[name].clone()
}

async fn reports(feed: &Feed, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{name} to be reported {what}"), async || Some(reported(feed, name)).filter(&is_so)).await
}

/// A feed whose walhook writes its settings' file as given.
fn run_with(feed: &Feed, folder: &std::path::Path, settings: &str) -> Walhook {
    let file = folder.join("walhook.toml");
    std::fs::write(&file, settings).unwrap();
    feed.streamer().arg("--config").arg(file).start()
}

fn text_of(payload: &[u8]) -> String {
    let payload: Value = serde_json::from_slice(payload).unwrap();
    payload["data"]["text"].as_str().unwrap().to_owned()
}

/// Who hears all that is published below `subject` from here on.
async fn listen(nats: &Nats, subject: &'static str) -> async_nats::Subscriber {
    let client = nats.client().await;
    let heard = client.subscribe(subject).await.unwrap();
    client.flush().await.unwrap();
    heard
}

async fn next(heard: &mut async_nats::Subscriber) -> async_nats::Message {
    tokio::time::timeout(support::DEADLINE, heard.next()).await.expect("a message in time").expect("a connection")
}

/// One way to reach a server.
struct Way {
    name: &'static str,
    url: String,
    columns: Vec<(&'static str, String)>,
    /// The same, as a reader takes it.
    row: ConfigRow,
    _nats: Nats,
}

impl Way {
    fn new(name: &'static str, nats: Nats, row: ConfigRow) -> Way {
        let url = row.nats_url.clone().unwrap_or_else(|| nats.url());
        let row = ConfigRow { config_name: name.to_owned(), nats_url: Some(url.clone()), ..row };
        let text = |column, value: &Option<String>| value.as_ref().map(|value| (column, quoted(value)));
        let columns = [
            text("auth_type", &row.auth_type),
            text("auth_token", &row.auth_token),
            text("auth_nkey_seed", &row.auth_nkey_seed),
            text("auth_credentials_file", &row.auth_credentials_file),
            text("tls_ca_file", &row.tls_ca_file),
            text("tls_cert_file", &row.tls_cert_file),
            text("tls_key_file", &row.tls_key_file),
            row.tls_enabled.map(|enabled| ("tls_enabled", enabled.to_string())),
            (!row.nats_cluster_urls.is_empty()).then(|| {
                ("nats_cluster_urls", format!("string_to_array({}, ',')", quoted(&row.nats_cluster_urls.join(","))))
            }),
        ];
        Way { name, url, columns: columns.into_iter().flatten().collect(), row, _nats: nats }
    }
}

#[tokio::test]
async fn every_way_of_a_configurations_row_delivers_a_call() {
    let feed = Feed::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| Some(folder.path().join(name).display().to_string());
    let (authority, operator, user) = (Authority::new("ours"), Operator::new(), KeyPair::new_user());
    operator.write_credentials(&folder.path().join("app.creds"));
    authority.client("walhook").write(folder.path(), "client");
    let of = |config: String| async move { Nats::builder().config(&config).start().await };
    let none = ConfigRow::default;

    let token = of("authorization { token: t0ken }".to_owned()).await;
    let in_url = of("authorization { token: t0ken }".to_owned()).await;
    let password = of("authorization { user: app, password: \"p@ss\" }".to_owned()).await;
    let nkey = of(format!("authorization {{ users: [ {{ nkey: {} }} ] }}", user.public_key())).await;
    let credentials = of(operator.config()).await;
    let tls = tls_server(folder.path(), &authority, &support::services::nats_version(), "").await;
    let mutual = tls_server(folder.path(), &authority, &support::services::nats_version(), "verify: true").await;
    let cluster = Nats::start().await;
    let (token_url, user_url) = (
        format!("nats://t0ken@127.0.0.1:{}", in_url.port()),
        format!("nats://app:p%40ss@127.0.0.1:{}", password.port()),
    );
    let alive = cluster.url();
    let secure = |nats: &Nats| ConfigRow {
        nats_url: Some(format!("nats://localhost:{}", nats.port())),
        tls_enabled: Some(true),
        tls_ca_file: path("ca.crt"),
        ..none()
    };
    let (by_ca, by_both) = (secure(&tls), secure(&mutual));
    let ways = [
        Way::new(
            "token",
            token,
            ConfigRow { auth_type: Some("token".into()), auth_token: Some("t0ken".into()), ..none() },
        ),
        Way::new("token_in_url", in_url, ConfigRow { nats_url: Some(token_url), ..none() }),
        Way::new("user", password, ConfigRow { nats_url: Some(user_url), ..none() }),
        Way::new(
            "nkey",
            nkey,
            ConfigRow { auth_type: Some("nkey".into()), auth_nkey_seed: Some(user.seed().unwrap()), ..none() },
        ),
        Way::new(
            "credentials",
            credentials,
            ConfigRow { auth_type: Some("credentials".into()), auth_credentials_file: path("app.creds"), ..none() },
        ),
        Way::new("tls", tls, by_ca),
        Way::new(
            "mutual_tls",
            mutual,
            ConfigRow { tls_cert_file: path("client.crt"), tls_key_file: path("client.key"), ..by_both },
        ),
        Way::new(
            "cluster",
            cluster,
            ConfigRow {
                nats_url: Some("nats://127.0.0.1:1".into()),
                nats_cluster_urls: vec!["nats://127.0.0.1:2".into(), alive],
                ..none()
            },
        ),
    ];
    let core = Nats::builder().config("jetstream: disabled").start().await;
    let mut heard = listen(&core, "webhooks.>").await;

    let webhooks: Vec<_> = ways.iter().map(|way| configure(&feed, way.name, &way.url, &way.columns)).collect();
    let to_core = configure(&feed, "core", &core.url(), &[("jetstream_enabled", "false".to_owned())]);
    let mut walhook = feed.run();
    for (way, &webhook) in ways.iter().zip(&webhooks) {
        call(&feed, webhook, way.name);
    }
    call(&feed, to_core, "core");
    for way in &ways {
        let settings = Settings::resolve(&way.row, &Overrides::default()).unwrap();
        let stored = eventually(&format!("the message by {}", way.name), async || {
            let control = control::connect(&settings).await.ok()?;
            control.api("STREAM.MSG.GET.WEBHOOKS", &json!({ "seq": 1 })).await.ok()?.ok()
        })
        .await;
        assert_eq!(stored["message"]["subject"], format!("webhooks.{}", way.name));
    }
    let message = next(&mut heard).await;
    assert_eq!((message.subject.as_str(), text_of(&message.payload).as_str()), ("webhooks.core", "core"));
    assert_eq!(message.reply, None);
    let headers = message.headers.unwrap();
    let names: HashSet<String> = headers.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["Nats-Msg-Id", "Walhook-Op", "Walhook-Epoch"].map(str::to_owned).into());
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let report = reported(&feed, "core");
    assert_eq!((&report["unsettled"], &report["holds_slot"]), (&json!(0), &json!(false)));
}

/// A line to a server that can be held (nothing comes back on it) and cut.
struct Wire {
    port: u16,
    holds: tokio::sync::watch::Sender<bool>,
    cut: tokio::sync::broadcast::Sender<()>,
}

impl Wire {
    async fn to(nats: &Nats) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, server) = (listener.local_addr().unwrap().port(), nats.port());
        let (holds, held) = tokio::sync::watch::channel(false);
        let (cut, _) = tokio::sync::broadcast::channel(8);
        let cuts = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", server)).await else { continue };
                let (mut held, mut cuts) = (held.clone(), cuts.subscribe());
                tokio::spawn(async move {
                    let ((mut from, mut to), (mut back, mut into)) = (client.into_split(), server.into_split());
                    let there = tokio::io::copy(&mut from, &mut into);
                    let here = async {
                        let mut buffer = [0; 4096];
                        loop {
                            let count = tokio::io::AsyncReadExt::read(&mut back, &mut buffer).await.unwrap_or(0);
                            if count == 0 || held.wait_for(|holds| !holds).await.is_err() {
                                return;
                            }
                            let _ = tokio::io::AsyncWriteExt::write_all(&mut to, &buffer[..count]).await;
                        }
                    };
                    tokio::select! { biased; _ = cuts.recv() => {} _ = there => {} () = here => {} }
                });
            }
        });
        Wire { port, holds, cut }
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn hold(&self, holds: bool) {
        self.holds.send_replace(holds);
    }

    fn cut(&self) {
        let _ = self.cut.send(());
    }
}

#[tokio::test]
async fn core_nats_is_confirmed_by_a_pong_and_sent_again_when_that_does_not_come() {
    let feed = Feed::start().await;
    let core = Nats::builder().config("jetstream: disabled\nmax_payload: 2000").start().await;
    let wire = Wire::to(&core).await;
    let mut heard = listen(&core, "any.>").await;
    let columns = [("jetstream_enabled", "false".to_owned()), ("reconnect_delay_ms", "20".to_owned())];
    let webhook = configure(&feed, "core", &wire.url(), &columns);
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, text text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 't', p_subject_template => 'any.where.{{op}}')"));
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t SELECT i, i::text FROM generate_series(1, 3000) i");
    for expected in 1..=3000 {
        assert_eq!(text_of(&next(&mut heard).await.payload), expected.to_string());
    }
    feed.confirmed().await;
    // No answer comes back: they have arrived, and nobody knows.
    wire.hold(true);
    feed.pg.psql("INSERT INTO t SELECT i, i::text FROM generate_series(3001, 3010) i");
    let before = feed.pg.psql("SELECT pg_current_wal_lsn()");
    for expected in 3001..=3010 {
        assert_eq!(text_of(&next(&mut heard).await.payload), expected.to_string());
    }
    let confirmed = format!("SELECT confirmed_flush_lsn >= '{before}' FROM pg_replication_slots");
    assert_eq!(feed.pg.psql(&confirmed), "f");
    wire.cut();
    wire.hold(false);
    for expected in 3001..=3010 {
        assert_eq!(text_of(&next(&mut heard).await.payload), expected.to_string(), "again");
    }
    feed.confirmed().await;
    // What the server does not take costs itself alone.
    feed.pg.psql("INSERT INTO t VALUES (4000, repeat('x', 3000)), (4001, 'after')");
    let message = next(&mut heard).await;
    assert_eq!((message.subject.as_str(), text_of(&message.payload).as_str()), ("any.where.insert", "after"));
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT reason LIKE '%max_payload%' FROM rule_nats_dead_letters"), "t");
    // A server that stops answering is noticed, as with a stream.
    walhook.kill9();
    let folder = tempfile::tempdir().unwrap();
    let mut walhook = run_with(&feed, folder.path(), "ack_timeout_ms = 300");
    walhook.logged("core NATS opened").await;
    wire.hold(true);
    feed.pg.psql("INSERT INTO t VALUES (5000, 'late')");
    walhook.logged("for 300 ms").await;
    wire.hold(false);
    feed.confirmed().await;
    loop {
        let text = text_of(&next(&mut heard).await.payload);
        if text == "late" {
            break;
        }
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn jetstream_is_switched_off_and_on_at_the_exact_row() {
    let feed = Feed::start().await;
    feed.webhook("first");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let mut walhook = feed.run();
    walhook.logged("stream opened").await;
    let mut next = 0;
    for enabled in [false, true, false, true] {
        // The stream takes the subject in either case; by the headers it is seen which way a message went.
        feed.pg.psql(&format!(
            "BEGIN; INSERT INTO t SELECT generate_series({next}, {next} + 99); \
             UPDATE rule_nats_config SET jetstream_enabled = {enabled}; \
             INSERT INTO t SELECT generate_series({next} + 100, {next} + 199); COMMIT"
        ));
        next += 200;
    }
    feed.confirmed().await;
    let mut ways: BTreeMap<i64, bool> = BTreeMap::new();
    let messages = feed.messages().await;
    for message in &messages {
        ways.insert(message.data()["id"].as_i64().unwrap(), message.headers.contains_key("Nats-Expected-Stream"));
    }
    let missing: Vec<_> = (0..800).filter(|id| !ways.contains_key(id)).collect();
    assert_eq!((messages.len(), missing), (800, vec![]), "{}", walhook.log());
    for (id, by_jetstream) in ways {
        let expected = [true, false, false, true, true, false, false, true][usize::try_from(id).unwrap() / 100];
        assert_eq!(by_jetstream, expected, "row {id}");
    }
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// What goes by JetStream, as one batch, must not wait for the end of a transaction whose rest waits for its turn.
#[tokio::test]
async fn jetstream_is_switched_off_amid_a_transaction_that_is_larger_than_a_window() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("first");
    feed.pg.psql(
        "CREATE TABLE t (id int PRIMARY KEY); SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>']);
         UPDATE rule_nats_streams SET transactions = 'atomic'",
    );
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 't')"));
    let folder = tempfile::tempdir().unwrap();
    let mut walhook = run_with(&feed, folder.path(), "window_events = 10");
    feed.pg.psql(
        "BEGIN; INSERT INTO t SELECT generate_series(1, 5); UPDATE rule_nats_config SET jetstream_enabled = false;
         INSERT INTO t SELECT generate_series(6, 100); UPDATE rule_nats_config SET jetstream_enabled = true;
         INSERT INTO t SELECT generate_series(101, 200); COMMIT",
    );
    feed.confirmed().await;
    let ids: HashSet<i64> =
        feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (1..=200).collect(), "{}", walhook.log());
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_row_that_names_other_hosts_or_folders_is_refused_also_when_it_is_changed_live() {
    let feed = Feed::start().await;
    let folder = tempfile::tempdir().unwrap();
    let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = stranger.local_addr().unwrap().port();
    std::fs::create_dir(folder.path().join("allowed")).unwrap();
    std::fs::write(folder.path().join("secret"), "s3cr3t").unwrap();
    let settings = format!(
        "[nats]\nallowed_hosts = ['127.0.0.1:{}']\nallowed_dirs = ['{}']",
        feed.nats.port(),
        folder.path().join("allowed").display()
    );
    let first = configure(&feed, "first", &feed.nats.url(), &[]);
    let second = configure(&feed, "second", &format!("nats://127.0.0.1:{port}"), &[]);
    feed.pg.psql("UPDATE rule_nats_config SET stream_name = config_name, subject_prefix = config_name");
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = webhook_name || '.x'");
    let mut walhook = run_with(&feed, folder.path(), &settings);
    call(&feed, first, "a");
    call(&feed, second, "b");
    eventually("the allowed one", async || (feed.last_sequence("first").await == 1).then_some(())).await;
    let why = |report: &Value| report["last_error"].as_str().unwrap_or_default().to_owned();
    let report = reports(&feed, "second", "as not allowed", |report| why(report).contains("allowed_hosts")).await;
    assert_eq!((&report["connected"], &report["holds_slot"]), (&json!(false), &json!(true)));

    // Live: the host, then a file.
    let set = |config: &str, columns: &str| {
        feed.pg.psql(&format!("UPDATE rule_nats_config SET {columns} WHERE config_name = '{config}'"))
    };
    set("first", &format!("nats_url = 'nats://127.0.0.1:{port}'"));
    reports(&feed, "first", "as not allowed", |report| why(report).contains("allowed_hosts")).await;
    let file = folder.path().join("secret");
    let creds = format!("auth_type = 'credentials', auth_credentials_file = '{}'", file.display());
    set("first", &format!("nats_url = '{}', {creds}", feed.nats.url()));
    reports(&feed, "first", "as outside", |report| why(report).contains("allowed_dirs")).await;
    call(&feed, first, "c");
    set("first", "auth_type = 'none'");
    set("second", &format!("nats_url = '{}'", feed.nats.url()));
    for (stream, count) in [("first", 2), ("second", 1)] {
        eventually(stream, async || (feed.last_sequence(stream).await == count).then_some(())).await;
    }
    feed.confirmed().await;
    assert!(!walhook.log().contains("s3cr3t"));
    let dialled = tokio::time::timeout(Duration::from_millis(1), stranger.accept()).await;
    assert!(dialled.is_err(), "nobody was dialled who is not allowed");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn while_one_configuration_is_away_the_others_flow_and_the_status_says_what_the_slot_waits_for() {
    let feed = Feed::start().await;
    let other = Nats::start().await;
    let first = feed.webhook("first");
    let second = configure(&feed, "second", &other.url(), &[("reconnect_delay_ms", "50".to_owned())]);
    let mut walhook = feed.run();
    call(&feed, second, "before");
    feed.confirmed().await;
    other.stop();
    call(&feed, second, "meanwhile");
    let before = feed.pg.psql("SELECT pg_current_wal_lsn()");
    for _ in 0..20 {
        call(&feed, first, "flows");
    }
    feed.stored(20).await;
    reports(&feed, "second", "as what the slot waits for", |report| report["holds_slot"] == true).await;
    let health: Value = serde_json::from_str(&feed.pg.psql("SELECT rule_nats_health_check('second')")).unwrap();
    let message = health["message"].as_str().unwrap();
    assert!(message.contains("the slot waits for its 1 unsettled events"), "{message}");
    assert_eq!((&health["connected"], &health["unsettled"]), (&json!(false), &json!(1)));
    assert_eq!(
        (&reported(&feed, "default")["connected"], &reported(&feed, "default")["holds_slot"]),
        (&json!(true), &json!(false))
    );
    let status = feed.command("status").finish().stdout;
    let line = status.lines().find(|line| line.contains("second: ")).unwrap();
    assert!(line.contains("not connected; the slot waits for its 1 unsettled events"), "{line}");
    assert!(line.contains(&other.port().to_string()), "{line}");
    assert!(status.lines().any(|line| line.contains("default: connected to")), "{status}");
    let confirmed = format!("SELECT confirmed_flush_lsn >= '{before}' FROM pg_replication_slots");
    assert_eq!(feed.pg.psql(&confirmed), "f", "the slot waits for all");
    other.restart().await;
    feed.confirmed().await;
    let Feed { pg, nats } = feed;
    let there = Feed { pg, nats: other };
    let texts: Vec<_> = there.messages().await.iter().map(|message| message.data()["text"].clone()).collect();
    assert_eq!(texts, ["before", "meanwhile"]);
    reports(&there, "second", "as back", |report| report["connected"] == true && report["holds_slot"] == false).await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    drop(nats);
}

#[tokio::test]
async fn an_outage_of_one_configuration_that_outlasts_its_window_stops_no_other_and_loses_nothing() {
    let feed = Feed::start().await;
    let other = Nats::start().await;
    let first = feed.webhook("first");
    let second = configure(&feed, "second", &other.url(), &[("reconnect_delay_ms", "50".to_owned())]);
    let folder = tempfile::tempdir().unwrap();
    let mut walhook = run_with(&feed, folder.path(), "window_events = 20\nack_timeout_ms = 100\n");
    call(&feed, first, "before");
    call(&feed, second, "before");
    feed.confirmed().await;
    other.stop();
    let both = |from: u32, upto: u32| {
        feed.pg.psql(&format!(
            "SELECT rule_webhook_call_unified(w, jsonb_build_object('text', i)) \
             FROM generate_series({from}, {upto} - 1) i, unnest('{{{first},{second}}}'::int[]) w"
        ));
    };
    // Ten times what the window takes.
    both(0, 200);
    feed.stored(201).await;
    both(200, 210);
    feed.stored(211).await;
    other.restart().await;
    feed.confirmed().await;
    walhook.logged("reading them again from").await;
    both(210, 220);
    feed.confirmed().await;
    let history = "SELECT webhook_id, count(*), count(DISTINCT event_id), count(sequence_number), bool_and(success)
                   FROM rule_nats_publish_history GROUP BY 1 ORDER BY 1";
    assert_eq!(feed.pg.psql(history), format!("{first}|221|221|221|t\n{second}|221|221|221|t"));
    let Feed { pg, nats } = feed;
    let there = Feed { pg, nats: other };
    let texts = |messages: Vec<support::feed::Message>| {
        messages.iter().map(|message| message.data()["text"].to_string()).collect::<Vec<_>>()
    };
    let expected: Vec<_> = ["\"before\"".to_owned()].into_iter().chain((0..220).map(|i| i.to_string())).collect();
    assert_eq!(texts(there.messages().await), expected);
    let Feed { pg, nats: other } = there;
    let feed = Feed { pg, nats };
    assert_eq!(texts(feed.messages().await), expected);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    drop(other);
}

#[tokio::test]
async fn a_configuration_that_is_refused_stops_no_other() {
    let feed = Feed::start().await;
    let other = Nats::builder().config("authorization { token: right }").start().await;
    let first = feed.webhook("first");
    let second = configure(&feed, "second", &other.url(), &[("reconnect_delay_ms", "50".to_owned())]);
    let mut walhook = feed.run();
    call(&feed, second, "late");
    call(&feed, first, "flows");
    feed.stored(1).await;
    walhook.logged("Authorization Violation").await;
    feed.pg.psql("UPDATE rule_nats_config SET auth_type = 'token', auth_token = 'right' WHERE config_name = 'second'");
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn two_names_of_one_server_do_not_bring_two_lanes_into_one_stream() {
    let feed = Feed::start().await;
    let first = feed.webhook("first");
    let mut walhook = feed.run();
    call(&feed, first, "one");
    feed.stored(1).await;
    // The stream is the first one's who opens it.
    let url = feed.nats.url().replace("127.0.0.1", "localhost");
    let second = configure(&feed, "second", &url, &[]);
    feed.pg.psql(
        "UPDATE rule_nats_config SET stream_name = 'WEBHOOKS', subject_prefix = 'webhooks' WHERE config_name = 'second'",
    );
    call(&feed, second, "two");
    let told = |report: &Value| {
        report["last_error"]
            .as_str()
            .is_some_and(|error| error.contains("publishes to the same stream of the same server"))
    };
    reports(&feed, "second", "kept out", told).await;
    call(&feed, first, "three");
    let stored = feed.stored(2).await;
    assert_eq!(
        stored.iter().map(|message| text_of(message.payload.to_string().as_bytes())).collect::<Vec<_>>(),
        ["one", "three"]
    );
    walhook.kill9();
}

#[tokio::test]
async fn a_configuration_is_given_up_after_so_many_attempts_until_its_row_is_touched() {
    let feed = Feed::start().await;
    // Who accepts and says nothing: the time for it is the row's.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let accepting = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = silent.accept().await {
            kept.push(socket);
        }
    });
    let columns = |attempts: i32| {
        [
            ("connection_timeout_ms", "100".to_owned()),
            ("reconnect_delay_ms", "20".to_owned()),
            ("max_reconnect_attempts", attempts.to_string()),
        ]
    };
    let dead = format!("nats://127.0.0.1:{port}");
    let webhook = configure(&feed, "second", &dead, &columns(3));
    configure(&feed, "once", &dead, &columns(0));
    let first = feed.webhook("first");
    feed.pg.psql(
        "UPDATE rule_nats_config SET stream_name = 'second', subject_prefix = 'second' WHERE config_name = 'second'",
    );
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'second.x' WHERE webhook_name = 'second'");
    let mut walhook = feed.run();
    call(&feed, webhook, "late");
    reports(&feed, "second", "as given up", |report| report["given_up"] == true).await;
    let once = reports(&feed, "once", "as given up", |report| report["given_up"] == true).await;
    assert!(once["last_error"].as_str().unwrap().contains("after 1 failed attempts"), "{once}");
    let log = walhook.log();
    assert_eq!(log.matches("given up after 3 failed attempts in a row (max_reconnect_attempts)").count(), 1, "{log}");
    let health: Value = serde_json::from_str(&feed.pg.psql("SELECT rule_nats_health_check('second')")).unwrap();
    assert!(
        health["message"].as_str().unwrap().contains("no longer tries to connect for this configuration"),
        "{health}"
    );
    assert!(feed.command("status").finish().stdout.contains("second: given up; the slot waits for its 1 unsettled"));
    call(&feed, first, "flows");
    feed.stored(1).await;
    // Touched while the server is as before: tried again, and given up again.
    feed.pg.psql(
        "SELECT rule_nats_configure('second', (SELECT nats_url FROM rule_nats_config WHERE config_name = 'second'))",
    );
    eventually("to be given up again", async || {
        (walhook.log().matches("given up after 3 failed attempts").count() == 2).then_some(())
    })
    .await;
    // Somebody answers there now, and the row says nothing new but when it was touched.
    accepting.abort();
    let _ = accepting.await;
    let nats = feed.nats.port();
    let listener = eventually("the port", async || TcpListener::bind(("127.0.0.1", port)).await.ok()).await;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = tokio::net::TcpStream::connect(("127.0.0.1", nats)).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
    });
    feed.pg.psql("UPDATE rule_nats_config SET updated_at = now() WHERE config_name = 'second'");
    feed.confirmed().await;
    assert_eq!(feed.messages_of("second").await[0].data()["text"], "late");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// The sockets that a process holds to a local port.
fn connections(pid: u32, port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    let inodes: HashSet<&str> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words[2].ends_with(&remote) && words[3] == "01")
        .map(|words| words[9])
        .collect();
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
    let sockets = links.filter(|link: &PathBuf| {
        let name = link.display().to_string();
        name.strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|inode| inodes.contains(inode))
    });
    sockets.count()
}

#[tokio::test]
async fn three_streams_share_one_publishing_connection_and_one_that_refuses_holds_up_itself_alone() {
    let feed = Feed::on(Postgres::set_up().await, Nats::start().await);
    feed.pg.psql("UPDATE rule_nats_config SET max_connections = 2, stream_name = NULL");
    for name in ["a", "b", "c"] {
        feed.pg.psql(&format!("SELECT rule_nats_stream_create('{name}', ARRAY['{name}.>'])"));
        let id = feed.webhook(name);
        feed.pg.psql(&format!("CREATE TABLE {name} (id int PRIMARY KEY, note text)"));
        feed.pg.psql(&format!("SELECT rule_webhook_link_table({id}, '{name}', p_subject_template => '{name}.{{op}}')"));
    }
    feed.pg.psql("UPDATE rule_nats_streams SET max_messages = 100, discard_policy = 'new' WHERE stream_name = 'b'");
    let mut walhook = feed.run();
    let rows = |from: i32, to: i32, name: &str| {
        // Of all sizes: a message is written in pieces where the socket is full.
        format!("INSERT INTO {name} SELECT i, repeat('x', i * 37 % 9000) FROM generate_series({from}, {to}) i;")
    };
    for from in (1..=600).step_by(60) {
        let statements: String = ["a", "b", "c"].map(|name| rows(from, from + 59, name)).concat();
        feed.pg.psql(&format!("BEGIN; {statements} COMMIT"));
    }
    for name in ["a", "c"] {
        eventually(name, async || (feed.last_sequence(name).await == 600).then_some(())).await;
    }
    walhook.logged("refused a message").await;
    assert_eq!(feed.last_sequence("b").await, 100);
    assert_eq!(connections(walhook.pid(), feed.nats.port()), 2);
    // The connection breaks while that goes on: all are opened anew.
    feed.nats.kill9();
    feed.nats.restart().await;
    feed.pg.psql(&rows(601, 700, "c"));
    eventually("c again", async || (feed.last_sequence("c").await == 700).then_some(())).await;
    feed.pg.psql("UPDATE rule_nats_streams SET max_messages = 1000000 WHERE stream_name = 'b'");
    feed.confirmed().await;
    for (name, count) in [("a", 600), ("b", 600), ("c", 700)] {
        let messages = feed.messages_of(name).await;
        let ids: Vec<_> = messages.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
        assert_eq!(ids, (1..=count).collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(connections(walhook.pid(), feed.nats.port()), 2);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// A server of the domain `hub`, and one of the domain `leaf` that is connected to it as a leaf node.
pub(super) async fn hub_and_leaf() -> (Nats, Nats, Port) {
    let port = Port::take();
    let listen = format!("leafnodes {{ listen: \"127.0.0.1:{}\" }}", port.number());
    let remote = format!("leafnodes {{ remotes: [ {{ url: \"nats://127.0.0.1:{}\" }} ] }}", port.number());
    let hub = Nats::builder().jetstream("domain: hub").config(&listen).start().await;
    let leaf = Nats::builder().jetstream("domain: leaf").config(&remote).start().await;
    let seen = jetstream::with_domain(leaf.client().await, "hub");
    eventually("the leaf to see the hub", async || seen.query_account().await.ok()).await;
    (hub, leaf, port)
}

async fn stream_names(nats: &Nats) -> Vec<String> {
    let jetstream = nats.jetstream().await;
    let mut names: Vec<String> = jetstream.stream_names().map(Result::unwrap).collect().await;
    names.sort();
    names
}

/// The rows of `t` in a stream, in its order.
async fn rows_of(nats: &Nats, stream: &str) -> Vec<i64> {
    let Ok(mut stream) = nats.jetstream().await.get_stream(stream).await else { return Vec::new() };
    let state = stream.info().await.unwrap().state.clone();
    let mut rows = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let payload = stream.get_raw_message(sequence).await.unwrap().payload;
        rows.push(serde_json::from_slice::<Value>(&payload).unwrap()["data"]["id"].as_i64().unwrap_or(-1));
    }
    rows
}

pub(super) async fn holds(nats: &Nats, stream: &str, rows: std::ops::Range<i64>) {
    let rows: Vec<i64> = rows.collect();
    eventually(&format!("rows {rows:?} in {stream}"), async || (rows_of(nats, stream).await == rows).then_some(()))
        .await;
}

fn verb(feed: &Feed, words: &[&str]) -> String {
    let done = feed.command(words[0]).args(&words[1..]).finish();
    assert_eq!(done.code, Some(0), "{words:?}: {}", done.stderr);
    done.stdout
}

#[tokio::test]
async fn a_domain_behind_a_leaf_node_is_asked_by_every_verb_and_the_servers_own_jetstream_by_none() {
    let (hub, leaf, _port) = hub_and_leaf().await;
    let feed = linked_on(Postgres::set_up().await, leaf);
    feed.pg.psql("UPDATE rule_nats_config SET jetstream_domain = 'hub'");
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'object_store'");
    let mut mile = LastMile::on(feed);
    let (http, bare_http) = (Http::ok(), Http::ok());
    mile.sql(&format!("UPDATE rule_webhooks SET url = '{}'", http.url("/")));
    let mut worker = mile.worker().start();
    insert(&mile.feed.pg, 0, 40);
    http.received(40).await;
    holds(&hub, "WEBHOOKS", 0..40).await;
    // A claim check: its payload goes into the object store of that domain, and the worker gets it from there.
    mile.sql("INSERT INTO t SELECT 40, string_agg(md5(i::text), '') FROM generate_series(1, 60000) i");
    http.received(41).await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    // A worker without a database goes by the bucket of that domain.
    mile.sql(&format!("UPDATE rule_webhooks SET url = '{}'", bare_http.url("/")));
    let mut bare = mile.without_database().env("NATS_JETSTREAM_DOMAIN", "hub").args(["--group", "bare"]).start();
    bare_http.received(41).await;
    assert_eq!(bare.terminate(), 0, "{}", bare.log());

    verb(&mile.feed, &["replay", "--from", "0/0", "--via", "stream", "--create-stream", "REPLAY"]);
    eventually("the replay", async || (rows_of(&hub, "REPLAY").await.len() == 41).then_some(())).await;
    verb(&mile.feed, &["seek", "--stream", "WEBHOOKS", "--consumer", "sought", "--from", "0/0"]);
    hub.jetstream().await.get_stream("WEBHOOKS").await.unwrap().consumer_info("sought").await.unwrap();
    verb(&mile.feed, &["backfill", "--table", "t"]);
    eventually("the backfill", async || (rows_of(&hub, "WEBHOOKS").await.len() == 82).then_some(())).await;
    mile.sql("INSERT INTO rule_webhook_events (webhook_id, payload, message_id) VALUES (1, '{}', E'\\t')");
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "1").await;
    verb(&mile.feed, &["dead-letters", "retry", "--all"]);
    assert!(verb(&mile.feed, &["status"]).contains("WEBHOOKS"));
    ended_well(&mut mile.streamer);
    let expected = ["KV_walhook_walhook", "OBJ_walhook_objects", "REPLAY", "WEBHOOKS"];
    assert_eq!(stream_names(&hub).await, expected, "{}", mile.streamer.log());
    assert_eq!(stream_names(&mile.feed.nats).await, [""; 0], "nothing in the domain of the server itself");
}

#[tokio::test]
async fn a_domain_that_changes_is_another_jetstream_and_one_that_was_wrong_is_corrected() {
    let (hub, leaf, _port) = hub_and_leaf().await;
    let feed = linked_on(Postgres::set_up().await, leaf);
    feed.pg.psql("UPDATE rule_nats_config SET jetstream_domain = 'hbu'");
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 20);
    walhook.logged("jetstream_domain and api_prefix").await;
    feed.pg.psql("UPDATE rule_nats_config SET jetstream_domain = 'hub'");
    insert(&feed.pg, 20, 30);
    holds(&hub, "WEBHOOKS", 0..30).await;
    // Events from before a change stay where they are; those after it go to the other JetStream, by the same connection.
    feed.pg.psql(
        "UPDATE rule_nats_config SET jetstream_domain = NULL, subject_prefix = 'mine', stream_name = 'MINE'; \
         UPDATE rule_webhooks SET nats_subject = 'mine.w'",
    );
    insert(&feed.pg, 30, 40);
    holds(&feed.nats, "MINE", 30..40).await;
    feed.confirmed().await;
    holds(&hub, "WEBHOOKS", 0..30).await;
    ended_well(&mut walhook);
    // And a restart finds its place in each.
    feed.pg.psql(
        "UPDATE rule_nats_config SET jetstream_domain = 'hub', subject_prefix = 'webhooks', stream_name = 'WEBHOOKS'; \
         UPDATE rule_webhooks SET nats_subject = 'webhooks.w'",
    );
    insert(&feed.pg, 40, 50);
    let mut walhook = feed.run();
    eventually("the rest", async || (rows_of(&hub, "WEBHOOKS").await.len() == 40).then_some(())).await;
    feed.confirmed().await;
    ended_well(&mut walhook);
    assert_eq!(rows_of(&feed.nats, "MINE").await, (30..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn acks_of_a_stream_in_another_domain_that_takes_the_same_subjects_count_for_nothing() {
    let (hub, leaf, _port) = hub_and_leaf().await;
    let feed = linked_on(Postgres::set_up().await, leaf);
    let decoy = jetstream::stream::Config {
        name: "WEBHOOKS".to_owned(),
        subjects: vec!["webhooks.>".to_owned()],
        ..Default::default()
    };
    feed.nats.jetstream().await.create_stream(decoy).await.unwrap();
    feed.pg.psql("UPDATE rule_nats_config SET jetstream_domain = 'hub'");
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 30);
    holds(&hub, "WEBHOOKS", 0..30).await;
    feed.confirmed().await;
    walhook.logged("a stream of another JetStream domain stores the same subjects").await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn the_jetstream_of_another_account_is_asked_under_the_prefix_of_its_import() {
    let services = ["$JS.ACK.>", "$KV.>", "$O.>", "webhooks.>"];
    let exports: String = services.iter().map(|subject| format!(", {{ service: \"{subject}\" }}")).collect();
    let imports: String = services
        .iter()
        .map(|subject| format!(", {{ service: {{ account: STREAMS, subject: \"{subject}\" }} }}"))
        .collect();
    let accounts = format!(
        "accounts {{ STREAMS {{ jetstream: enabled, users: [ {{ user: s, password: s }} ], \
             exports: [ {{ service: \"$JS.API.>\", response_type: stream }} {exports} ] }}, \
           APP {{ users: [ {{ user: app, password: app }} ], \
             imports: [ {{ service: {{ account: STREAMS, subject: \"$JS.API.>\" }}, to: \"js.streams.>\" }} {imports} ] }} }}"
    );
    let nats = Nats::builder().config(&accounts).start().await;
    let feed = linked_on(Postgres::set_up().await, nats);
    let url = format!("nats://app:app@127.0.0.1:{}", feed.nats.port());
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{url}', api_prefix = 'js.streams'"));
    let mut mile = LastMile::on(feed);
    let http = Http::ok();
    mile.sql(&format!("UPDATE rule_webhooks SET url = '{}'", http.url("/")));
    let mut worker = mile.worker().start();
    insert(&mile.feed.pg, 0, 20);
    http.received(20).await;
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "20").await;
    mile.feed.confirmed().await;
    let own = async_nats::ConnectOptions::with_user_and_password("s".to_owned(), "s".to_owned());
    let of_account = own.connect(mile.feed.nats.url()).await.unwrap();
    let mut stream = jetstream::new(of_account).get_stream("WEBHOOKS").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 20);
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    ended_well(&mut mile.streamer);
}

#[tokio::test]
async fn a_domain_and_a_prefix_that_cannot_be_are_refused_by_the_database() {
    let feed = Feed::start().await;
    for wrong in [
        "jetstream_domain = 'a.b'",
        "jetstream_domain = 'a b'",
        "jetstream_domain = 'a*'",
        "jetstream_domain = '>'",
        "api_prefix = 'a.'",
        "api_prefix = 'a..b'",
        "api_prefix = 'a.>'",
        "api_prefix = E'a\\u00a0b'",
        "jetstream_domain = 'hub', api_prefix = 'a'",
    ] {
        let refused = feed.pg.try_psql(&format!("UPDATE rule_nats_config SET {wrong}"));
        assert!(refused.is_err(), "{wrong}");
    }
    for right in
        ["jetstream_domain = 'hub-1_x'", "jetstream_domain = NULL, api_prefix = '$JS.hub.API'", "api_prefix = ''"]
    {
        feed.pg.psql(&format!("UPDATE rule_nats_config SET {right}"));
    }
    let info: Value = serde_json::from_str(&feed.pg.psql("SELECT rule_nats_config_info('default')")).unwrap();
    assert_eq!((&info["jetstream_domain"], &info["api_prefix"]), (&Value::Null, &json!("")));
}

/// The configuration that stands in a page, with a user who may do everything.
fn configuration_of(page: &str) -> String {
    let text = std::fs::read_to_string(format!("{}/{page}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let block = text.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    block.replacen("users: [", "users: [ { user: all, password: p }", 1)
}

#[tokio::test]
async fn the_permissions_of_the_page_are_enough_for_each_command() {
    let nats = Nats::builder().config(&configuration_of("docs/nats-permissions.md")).start().await;
    let port = nats.port();
    let of = |user: &str| format!("nats://{user}:p@127.0.0.1:{port}");
    let feed = linked_on(Postgres::set_up().await, nats);
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{}'", of("run-all")));
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'object_store'");
    let mut mile = LastMile::on(feed);
    let http = Http::ok();
    mile.sql(&format!("UPDATE rule_webhooks SET url = '{}'", http.url("/")));
    let warnings = |process: &Walhook| {
        let log = process.log();
        log.lines()
            .filter(|line| line.contains("WARN") && !line.contains("plain text"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    insert(&mile.feed.pg, 0, 20);
    mile.feed.confirmed().await;
    let mut worker = mile.worker().args(["--nats-url", &of("deliver")]).start();
    mile.sql("INSERT INTO t SELECT 20, string_agg(md5(i::text), '') FROM generate_series(1, 60000) i");
    http.received(21).await;
    mile.feed.confirmed().await;
    let bare = ["--no-database", "--allow-network", "127.0.0.1", "--group", "bare", "--nats-url", &of("deliver")];
    let mut bare = Walhook::command("deliver").args(bare).start();
    http.received(42).await;
    for process in [&mut worker, &mut bare, &mut mile.streamer] {
        ended_well(process);
        assert_eq!(warnings(process), [""; 0], "{}", process.log());
    }
    // What is there already is enough for one that may make nothing.
    let mut low = mile.feed.streamer().args(["--nats-url", &of("run")]).start();
    insert(&mile.feed.pg, 21, 30);
    mile.feed.confirmed().await;
    ended_well(&mut low);

    // A right that is missing is named at once: "seek" may make no ephemeral consumer.
    let refused = ["--nats-url", &of("seek"), "--from", "0/0", "--via", "stream", "--dry-run"];
    let done = mile.feed.command("replay").args(refused).finish();
    assert_eq!(done.code, Some(4), "{}", done.stderr);
    assert!(done.stderr.contains("Publish to \"$JS.API.CONSUMER.CREATE.WEBHOOKS"), "{}", done.stderr);
    let replay = ["--nats-url", &of("replay"), "--from", "0/0", "--create-stream", "REPLAY"];
    for words in [
        [&["replay", "--via", "stream"], &replay[..]].concat(),
        [&["seek", "--nats-url", &of("seek")], &["--stream", "WEBHOOKS", "--consumer", "w", "--from", "0/0"][..]]
            .concat(),
        // Over one that is there.
        [&["seek", "--nats-url", &of("seek")], &["--stream", "WEBHOOKS", "--consumer", "w", "--from", "0/0"][..]]
            .concat(),
    ] {
        let done = mile.feed.command(words[0]).args(&words[1..]).finish();
        assert_eq!(done.code, Some(0), "{words:?}: {}", done.stderr);
        let warned = done.stderr.lines().filter(|line| line.contains("WARN") && !line.contains("plain text")).count();
        assert_eq!(warned, 0, "{words:?}: {}", done.stderr);
    }
}

/// Both write the bucket of their one account; neither takes the other's webhooks for deleted ones.
#[tokio::test]
async fn two_configurations_of_one_account_share_the_bucket_of_webhooks() {
    let feed = Feed::start().await;
    let first = feed.webhook("first");
    let second = configure(&feed, "second", &feed.nats.url(), &[]);
    let mut walhook = feed.run();
    let jetstream = feed.nats.jetstream().await;
    let bucket = eventually("the bucket", async || jetstream.get_key_value("walhook_walhook").await.ok()).await;
    let entry = async |id: i32| bucket.entry(format!("webhook.{id}")).await.unwrap();
    let url_of = async |id: i32| {
        let entry = entry(id).await.filter(|entry| entry.operation == jetstream::kv::Operation::Put)?;
        Some(serde_json::from_slice::<Value>(&entry.value).unwrap()["url"].as_str().unwrap().to_owned())
    };
    for id in [first, second] {
        eventually("both webhooks in the bucket", async || url_of(id).await).await;
    }
    let before = entry(second).await.unwrap().revision;
    feed.pg.psql(&format!("UPDATE rule_webhooks SET url = 'https://example.com/new' WHERE webhook_id = {first}"));
    let is_new = async || (url_of(first).await.as_deref() == Some("https://example.com/new")).then_some(());
    eventually("the new URL in the bucket", is_new).await;
    ended_well(&mut walhook);
    let run = bucket.entry("run").await.unwrap().unwrap().revision;
    let mut walhook = feed.run();
    eventually("the mark of another run", async || {
        bucket.entry("run").await.unwrap().filter(|mark| mark.revision > run)
    })
    .await;
    call(&feed, first, "a");
    call(&feed, second, "b");
    feed.confirmed().await;
    ended_well(&mut walhook);
    assert_eq!(entry(second).await.unwrap().revision, before, "nobody has touched the other's entry");
    assert!(url_of(first).await.is_some());
}
