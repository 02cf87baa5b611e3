//! What a running walhook shows by HTTP, against real servers: probes, metrics, who may ask, and readers that behave badly.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::Value;
use support::{
    Nats, Postgres, Walhook, eventually,
    feed::Feed,
    http::{Http, Reply},
    last_mile::LastMile,
    port::Port,
    tls::{Authority, Identity},
    walhook::Builder,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use walhook::http::metrics::METRICS;
use yaml_rust2::YamlLoader;

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Names in lower case.
    pub(super) headers: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Sends bytes and reads the answer to its end; `None` where nobody answers.
pub(super) async fn exchange(address: SocketAddr, request: &str) -> Option<Answer> {
    let mut socket = TcpStream::connect(address).await.ok()?;
    socket.write_all(request.as_bytes()).await.ok()?;
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, headers: head.to_lowercase(), body: body.to_owned() })
}

pub(super) async fn get_with(address: SocketAddr, path: &str, headers: &str) -> Option<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    exchange(address, &request).await
}

pub(super) async fn get(address: SocketAddr, path: &str) -> Answer {
    get_with(address, path, "").await.unwrap_or_else(|| panic!("no answer to GET {path}"))
}

/// On a free port of the loopback interface.
pub(super) fn with_http(builder: Builder) -> Builder {
    builder.args(["--http", "127.0.0.1:0"])
}

/// Where it listens, as its log says.
pub(super) async fn address_of(walhook: &mut Walhook) -> SocketAddr {
    walhook.logged("HTTP: /healthz").await;
    let log = walhook.log();
    let line = log.lines().find(|line| line.contains("HTTP: /healthz")).unwrap();
    let text = line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
    text.trim_matches('"').parse().unwrap()
}

/// The samples of Prometheus's text, by name and labels.
pub(super) fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// Waits until a sample has that value.
pub(super) async fn sample(address: SocketAddr, name: &str, expected: f64) -> BTreeMap<String, f64> {
    let mut last = None;
    eventually(&format!("{name} {expected}"), async || {
        let samples = samples(&get(address, "/metrics").await.body);
        let found = samples.get(name).copied();
        if last != Some(found) {
            eprintln!("{name}: {found:?}");
            last = Some(found);
        }
        (found == Some(expected)).then_some(samples)
    })
    .await
}

pub(super) async fn ready(address: SocketAddr, status: u16, reason: &str) {
    eventually(&format!("/readyz {status} {reason:?}"), async || {
        let answer = get(address, "/readyz").await;
        let reasons = answer.json()["reasons"].to_string();
        (answer.status == status && reasons.contains(reason)).then_some(())
    })
    .await;
}

/// A feed whose table `t` is linked to webhook 1.
pub(super) async fn linked() -> Feed {
    let feed = Feed::start().await;
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    feed
}

#[tokio::test]
async fn probes_tell_an_outage_of_postgresql_and_of_nats_and_its_end_while_the_process_stays_alive() {
    let feed = linked().await;
    feed.nats.stop();
    let mut walhook = with_http(feed.streamer()).start();
    let address = address_of(&mut walhook).await;
    ready(address, 503, "NATS configuration").await;
    sample(address, "walhook_nats_connected{config=\"default\"}", 0.0).await;
    assert_eq!(get(address, "/healthz").await.status, 200);
    feed.nats.restart().await;
    ready(address, 200, "[]").await;
    sample(address, "walhook_nats_connected{config=\"default\"}", 1.0).await;

    feed.pg.stop();
    ready(address, 503, "PostgreSQL: not connected").await;
    let away = sample(address, "walhook_postgres_connected", 0.0).await;
    assert!(!away.contains_key("walhook_replication_lag_bytes"), "an old lag is no lag: {away:?}");
    assert_eq!(get(address, "/healthz").await.status, 200);
    feed.pg.restart().await;
    ready(address, 200, "[]").await;
    sample(address, "walhook_postgres_connected", 1.0).await;

    assert_eq!(walhook.terminate(), 0);
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens after the end");
}

#[tokio::test]
async fn a_second_walhook_says_that_it_waits_for_the_slot() {
    let feed = linked().await;
    let mut first = feed.run();
    first.logged("slot taken").await;
    let mut second = with_http(feed.streamer()).start();
    let address = address_of(&mut second).await;
    ready(address, 503, "waiting to take over").await;
    first.kill9();
    ready(address, 200, "[]").await;
}

#[tokio::test]
async fn counters_tell_events_duplicates_dead_letters_and_refusals_and_outlive_a_session() {
    let nats = Nats::builder().config("max_payload: 64KB").start().await;
    let feed = Feed::on(Postgres::set_up().await, nats);
    feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let mut walhook = with_http(feed.streamer()).start();
    let address = address_of(&mut walhook).await;
    feed.pg.psql("INSERT INTO t SELECT id, 'SECRET-IN-A-ROW' FROM generate_series(1, 5) id");
    feed.pg.psql("UPDATE t SET note = repeat('x', 100000) WHERE id = 1");
    feed.pg.psql("DELETE FROM t WHERE id = 2");
    for _ in 0..2 {
        feed.pg.psql("SELECT rule_webhook_publish_nats(1, '{}', message_id => 'the-same')");
    }
    let stored = sample(address, "walhook_events_published_total{stream=\"WEBHOOKS\"}", 7.0).await;
    assert_eq!(
        stored["walhook_publish_duration_seconds_count{stream=\"WEBHOOKS\"}"],
        stored["walhook_commit_to_ack_seconds_count{stream=\"WEBHOOKS\"}"]
    );
    let all = sample(address, "walhook_publish_duplicates_total{stream=\"WEBHOOKS\"}", 1.0).await;
    assert_eq!(all["walhook_publish_duration_seconds_count{stream=\"WEBHOOKS\"}"], 8.0, "{all:#?}");
    assert_eq!(all["walhook_publish_duration_seconds_bucket{le=\"+Inf\",stream=\"WEBHOOKS\"}"], 8.0);
    assert_eq!(all["walhook_dead_letters_total{reason=\"too_large\"}"], 1.0);
    assert!(all["walhook_changes_total{op=\"insert\"}"] >= 7.0);
    // The rows of the configuration come down the same slot.
    assert!(all["walhook_changes_total{op=\"update\"}"] >= 1.0);
    assert_eq!(all["walhook_changes_total{op=\"delete\"}"], 1.0);
    sample(address, "walhook_dead_letters", 1.0).await;
    let settled = sample(address, "walhook_window_events{stream=\"WEBHOOKS\"}", 0.0).await;
    assert_eq!(settled["walhook_replication_lag_seconds"], 0.0);
    let slot = sample(address, "walhook_slot_wal_status{status=\"reserved\"}", 1.0).await;
    assert_eq!(slot["walhook_slot_wal_status{status=\"lost\"}"], 0.0);
    assert!(slot["walhook_slot_retained_wal_bytes"] > 0.0 && !slot.contains_key("walhook_slot_safe_wal_bytes"));
    sample(address, "walhook_links_broken", 0.0).await;
    feed.pg.psql("ALTER PUBLICATION walhook_changes DROP TABLE t");
    eventually("a broken link", async || {
        let samples = samples(&get(address, "/metrics").await.body);
        samples.get("walhook_links_broken").copied().filter(|broken| *broken > 0.0)
    })
    .await;
    feed.pg.psql("ALTER PUBLICATION walhook_changes ADD TABLE t");
    sample(address, "walhook_links_broken", 0.0).await;

    // A new session counts on where the last one ended.
    let before = samples(&get(address, "/metrics").await.body);
    feed.pg.psql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
    feed.pg.psql("INSERT INTO t VALUES (10, 'SECRET-IN-A-ROW')");
    let after = sample(address, "walhook_events_published_total{stream=\"WEBHOOKS\"}", 8.0).await;
    for (name, value) in before.iter().filter(|(name, _)| name.contains("_total") || name.contains("_bucket")) {
        assert!(after[name] >= *value, "{name} fell from {value} to {}", after[name]);
    }

    // A full stream refuses, and that is counted by its code.
    let jetstream = feed.nats.jetstream().await;
    let mut config = jetstream.get_stream("WEBHOOKS").await.unwrap().cached_info().config.clone();
    (config.max_messages, config.discard) = (8, async_nats::jetstream::stream::DiscardPolicy::New);
    jetstream.update_stream(config).await.unwrap();
    feed.pg.psql("INSERT INTO t VALUES (11, 'SECRET-IN-A-ROW')");
    eventually("a refusal", async || {
        let samples = samples(&get(address, "/metrics").await.body);
        samples.get("walhook_publish_errors_total{code=\"10077\"}").copied()
    })
    .await;
    for path in ["/metrics", "/readyz"] {
        assert!(!get(address, path).await.body.contains("SECRET"), "{path} shows a row");
    }
}

#[tokio::test]
async fn a_workers_metrics_tell_each_webhooks_calls_and_what_became_of_them() {
    let receiver = Http::start(|_, request| Reply::status(if request.path == "/bad" { 500 } else { 204 }));
    let mile = LastMile::start().await;
    let (good, bad) = (mile.webhook("good", &receiver.url("/good")), mile.webhook("bad", &receiver.url("/bad")));
    let off = mile.webhook("off", &receiver.url("/off"));
    mile.sql(&format!("UPDATE rule_webhooks SET max_retries = 1 WHERE webhook_id = {bad}"));
    mile.sql(&format!("UPDATE rule_webhooks SET enabled = false WHERE webhook_id = {off}"));
    let mut worker = with_http(mile.worker()).start();
    let address = address_of(&mut worker).await;
    ready(address, 200, "[]").await;
    mile.publish_many(good, 3);
    mile.publish(bad, "{\"a\": \"SECRET-IN-A-PAYLOAD\"}");
    sample(address, "walhook_deliveries_total{webhook=\"good\",outcome=\"delivered\"}", 3.0).await;
    sample(address, "walhook_deliveries_total{webhook=\"bad\",outcome=\"retried\"}", 1.0).await;
    let all = sample(address, "walhook_deliveries_total{webhook=\"bad\",outcome=\"dead\"}", 1.0).await;
    assert_eq!(all["walhook_delivery_duration_seconds_count{webhook=\"bad\"}"], 2.0);
    assert_eq!(all["walhook_delivery_lag_seconds_count{webhook=\"good\"}"], 3.0);
    assert_eq!(all["walhook_in_flight{webhook=\"good\"}"], 0.0);
    sample(address, "walhook_dead_letters_total{reason=\"undelivered\"}", 1.0).await;
    sample(address, "walhook_webhooks_disabled", 1.0).await;
    sample(address, "walhook_dead_letters", 1.0).await;
    assert!(!get(address, "/metrics").await.body.contains("SECRET"));
    mile.feed.nats.stop();
    ready(address, 503, "NATS configuration").await;
    assert_eq!(get(address, "/healthz").await.status, 200);
    mile.feed.nats.restart().await;
    ready(address, 200, "[]").await;
}

/// `promtool check metrics`, which says nothing about good ones.
fn promtool(text: &str) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && told.is_empty(), "{}\n{text}", String::from_utf8_lossy(&told));
}

#[tokio::test]
async fn promtool_finds_nothing_in_the_metrics_and_each_format_is_sent_as_what_it_is() {
    let receiver = Http::start(|_, _| Reply::status(204));
    let feed = linked().await;
    let mut streamer = with_http(feed.streamer()).start();
    let run = address_of(&mut streamer).await;
    let mile = LastMile::with(feed, streamer);
    mile.webhook("a \"b\" \\ ü", &receiver.url("/"));
    let mut worker = with_http(mile.worker()).start();
    let deliver = address_of(&mut worker).await;
    mile.sql("INSERT INTO t VALUES (1, 'x')");
    sample(run, "walhook_events_published_total{stream=\"WEBHOOKS\"}", 1.0).await;
    ready(deliver, 200, "[]").await;
    for (address, verb) in [(run, "run"), (deliver, "deliver")] {
        let old = get_with(address, "/metrics", "Accept: text/plain;version=0.0.4\r\n").await.unwrap();
        assert!(old.headers.contains("content-type: text/plain; version=0.0.4"), "{}", old.headers);
        let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
        let new = get_with(address, "/metrics", accept).await.unwrap();
        assert!(new.headers.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", new.headers);
        assert!(new.body.ends_with("# EOF\n"));
        for metric in METRICS.iter().filter(|metric| metric.verbs.contains(&verb)) {
            let described = format!("# TYPE {} {}\n", metric.name, metric.kind.as_str());
            assert!(old.body.contains(&described), "{described}{}", old.body);
        }
        let names: Vec<&str> = old.body.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(names.len(), samples(&old.body).len(), "a sample stands twice");
        if Command::new("promtool").arg("--version").output().is_ok() {
            promtool(&old.body);
        } else {
            support::skip("promtool check metrics", "there is no promtool (Debian's package `prometheus`)");
        }
    }
}

#[test]
fn the_page_on_metrics_has_each_with_its_kind_its_labels_and_its_meaning() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let rows: Vec<String> = METRICS
        .iter()
        .map(|metric| {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let unit = ["seconds", "bytes", "ratio"]
                .into_iter()
                .find(|unit| metric.name.strip_suffix("_total").unwrap_or(metric.name).ends_with(&format!("_{unit}")));
            format!(
                "| `{}` | {} | {} | {} | {} | {} |",
                metric.name,
                metric.kind.as_str(),
                unit.unwrap_or("-"),
                labels.join(", "),
                metric.verbs.join(", "),
                metric.help
            )
        })
        .collect();
    let found: Vec<&str> = page.lines().filter(|line| line.starts_with("| `walhook_")).collect();
    assert_eq!(found, rows, "docs/metrics.md must have these rows:\n{}\n", rows.join("\n"));
}

/// As far as no collector is here: the scrape leads to what walhook serves, and each pipeline names parts that there are.
#[test]
fn the_documented_collector_scrapes_what_is_served_and_takes_spans() {
    let page = root("docs/metrics.md");
    let (_, section) = page.split_once("## OpenTelemetry").unwrap();
    let block = section.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let config = &YamlLoader::load_from_str(block).unwrap()[0];
    let scrape = &config["receivers"]["prometheus"]["config"]["scrape_configs"][0];
    assert_eq!(
        (scrape["metrics_path"].as_str(), scrape["authorization"]["type"].as_str()),
        (Some("/metrics"), Some("Bearer"))
    );
    let target = scrape["static_configs"][0]["targets"][0].as_str().unwrap();
    assert!(page.contains(&format!("http://{target}/")), "{target} is not the address of this page");
    for pipeline in ["metrics", "traces"] {
        for (part, kind) in [("receivers", "receivers"), ("exporters", "exporters")] {
            for name in config["service"]["pipelines"][pipeline][part].as_vec().unwrap() {
                assert!(!config[kind][name.as_str().unwrap()].is_badvalue(), "{pipeline}: no {name:?}");
            }
        }
    }
    assert_eq!(config["receivers"]["otlp"]["protocols"]["http"]["endpoint"].as_str(), Some("127.0.0.1:4318"));
}

#[tokio::test]
async fn a_taken_port_is_a_warning_and_is_taken_once_it_is_free() {
    let feed = linked().await;
    let port = Port::take();
    let taken = std::net::TcpListener::bind(("127.0.0.1", port.number())).unwrap();
    let mut walhook = feed.streamer().args(["--http", &port.number().to_string()]).start();
    walhook.logged("HTTP is not served").await;
    feed.pg.psql("INSERT INTO t VALUES (1, 'x')");
    feed.stored(1).await;
    drop(taken);
    let address = address_of(&mut walhook).await;
    assert_eq!((address.port(), get(address, "/healthz").await.status), (port.number(), 200));
    assert_eq!(walhook.log().matches("HTTP is not served").count(), 1, "told once");
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn whoever_asks_from_elsewhere_needs_the_token_and_learns_so() {
    let feed = linked().await;
    let refused = feed.streamer().args(["--http", "0.0.0.0:0"]).finish();
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("beyond the loopback interface") && refused.stderr.contains("token_file"));

    let mut walhook = with_http(feed.streamer()).start();
    let address = address_of(&mut walhook).await;
    let elsewhere = "GET /metrics HTTP/1.1\r\nHost: attacker.example\r\nConnection: close\r\n\r\n";
    let answer = exchange(address, elsewhere).await.unwrap();
    assert!(answer.status == 403 && answer.body.contains("http.token_file"), "{answer:?}");
    drop(walhook);

    let folder = tempfile::tempdir().unwrap();
    let (token, settings) = (folder.path().join("token"), folder.path().join("walhook.toml"));
    std::fs::write(&token, "0123456789abcdef-token\n").unwrap();
    std::fs::write(&settings, format!("[http]\nlisten = '0.0.0.0:0'\ntoken_file = '{}'\n", token.display())).unwrap();
    // The folder itself, a token that is too short: refused, and not shown.
    for (path, text) in [(folder.path().to_owned(), "http.token_file"), (folder.path().join("short"), "16 or more")] {
        std::fs::write(folder.path().join("short"), "CANARY").unwrap();
        let wrong = folder.path().join("wrong.toml");
        std::fs::write(&wrong, format!("[http]\nlisten = '0.0.0.0:0'\ntoken_file = '{}'\n", path.display())).unwrap();
        let refused = feed.streamer().arg("--config").arg(&wrong).finish();
        assert!(refused.code == Some(2) && refused.stderr.contains(text), "{refused:?}");
        assert!(!refused.stderr.contains("CANARY"), "{refused:?}");
    }
    let mut walhook = feed.streamer().arg("--config").arg(&settings).start();
    let everywhere = address_of(&mut walhook).await;
    let address = SocketAddr::from(([127, 0, 0, 1], everywhere.port()));
    ready(address, 200, "[]").await;
    for path in ["/metrics", "/", "/events", "/nonsense"] {
        let answer = get(address, path).await;
        assert!(answer.status == 401 && answer.body.contains("http.token_file"), "{path}: {answer:?}");
        assert!(answer.headers.contains("www-authenticate: bearer"), "{}", answer.headers);
        assert!(!answer.body.contains("walhook_"));
    }
    let wrong = get_with(address, "/metrics", "Authorization: Bearer 0123456789abcdef-tokem\r\n").await.unwrap();
    assert_eq!(wrong.status, 401);
    let right = get_with(address, "/metrics", "Authorization: Bearer 0123456789abcdef-token\r\n").await.unwrap();
    assert!(right.status == 200 && right.body.contains("walhook_build_info"));
    // echo -n any:0123456789abcdef-token | base64
    let basic = "Authorization: Basic YW55OjAxMjM0NTY3ODlhYmNkZWYtdG9rZW4=\r\n";
    assert_eq!(get_with(address, "/metrics", basic).await.unwrap().status, 200);
    // Probes say whether, and not why not.
    assert_eq!(get(address, "/healthz").await.status, 200);
    feed.nats.stop();
    ready(address, 503, "[]").await;
    assert!(!walhook.log().contains("0123456789abcdef"), "the token is in no log");
}

#[tokio::test]
async fn with_an_authority_for_clients_only_their_certificates_are_let_in() {
    let authority = Authority::new("test");
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = authority.server().write(folder.path(), "server");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &authority.certificate).unwrap();
    let settings = folder.path().join("walhook.toml");
    let text = format!(
        "[http]\nlisten = '0.0.0.0:0'\ncert = '{}'\nkey = '{}'\nclient_ca = '{}'\n",
        cert.display(),
        key.display(),
        ca.display()
    );
    std::fs::write(&settings, text).unwrap();
    let feed = linked().await;
    let mut walhook = feed.streamer().arg("--config").arg(&settings).start();
    let port = address_of(&mut walhook).await.port();
    let ask = async |identity: Option<&Identity>| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut socket = connector.connect("localhost".try_into().unwrap(), socket).await.ok()?;
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.ok()?;
        Some(String::from_utf8(answer).unwrap())
    };
    let answered = ask(Some(&authority.client("prometheus"))).await.unwrap();
    assert!(answered.contains("walhook_build_info"), "{answered}");
    assert_eq!(ask(None).await, None, "no certificate");
    assert_eq!(ask(Some(&Authority::new("another").client("prometheus"))).await, None, "another authority's");
}

#[tokio::test]
async fn readers_that_take_nothing_are_dropped_and_hold_up_neither_others_nor_the_stream() {
    let feed = linked().await;
    let mut walhook = with_http(feed.streamer()).start();
    let address = address_of(&mut walhook).await;
    ready(address, 200, "[]").await;
    // More answers than sockets hold, and nobody who reads them: in the end the connection is closed.
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").repeat(10);
    let slow = TcpStream::connect(address).await.unwrap();
    let is_over = async || match slow.try_write(request.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Some(()),
        _ => None,
    };
    assert!(is_over().await.is_none());
    // As many connections as there may be, and some more.
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.extend(TcpStream::connect(address).await);
    }
    feed.pg.psql("INSERT INTO t VALUES (1, 'x')");
    feed.stored(1).await;
    drop(idle);
    eventually("an answer to others", async || get_with(address, "/healthz", "").await.filter(|a| a.status == 200))
        .await;
    eventually("the end of a connection whose reader takes nothing", is_over).await;

    // Readers of the event stream are counted, and their places come back.
    let events = format!("GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut readers = Vec::new();
    for _ in 0..16 {
        let mut reader = TcpStream::connect(address).await.unwrap();
        reader.write_all(events.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        reader.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        readers.push(reader);
    }
    assert_eq!(get(address, "/events").await.status, 503);
    drop(readers);
    eventually("a free place", async || {
        let mut reader = TcpStream::connect(address).await.ok()?;
        reader.write_all(events.as_bytes()).await.ok()?;
        let mut first = [0; 12];
        reader.read_exact(&mut first).await.ok()?;
        (&first == b"HTTP/1.1 200").then_some(())
    })
    .await;
    assert_eq!(walhook.terminate(), 0, "a reader of events does not keep it from ending");
}

#[tokio::test]
async fn requests_that_are_none_are_refused_and_bounded() {
    let feed = linked().await;
    let mut walhook = with_http(feed.streamer()).start();
    let address = address_of(&mut walhook).await;
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc", 405),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc", 413),
        ("GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        ("DELETE / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
        ("nonsense\r\n\r\n", 400),
    ] {
        let answer = exchange(address, request).await.unwrap_or_else(|| panic!("{request}"));
        assert_eq!(answer.status, status, "{request}: {answer:?}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let answer = exchange(address, &long).await;
    assert!(answer.is_none_or(|answer| answer.status == 431), "too many bytes of headers");
    let head =
        exchange(address, "HEAD /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(get(address, "/healthz").await.status, 200);
}

fn root(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The names of metrics in a text, without what histograms add to them.
fn metrics_in(text: &str) -> Vec<&str> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.match_indices("walhook_")
        // walhook_streamer and the like are roles.
        .map(|(at, _)| text[at..].split(|c: char| !is_of_name(c)).next().unwrap())
        .filter(|name| !["walhook_streamer", "walhook_worker", "walhook_operator"].contains(name))
        .collect()
}

fn is_metric(name: &str) -> bool {
    METRICS.iter().any(|metric| {
        name == metric.name
            || metric.kind == walhook::http::metrics::Kind::Histogram
                && ["_bucket", "_sum", "_count"].iter().any(|part| format!("{}{part}", metric.name) == name)
    })
}

#[test]
fn every_metric_that_alerts_dashboard_and_runbook_use_exists_and_every_alert_has_its_page() {
    for file in
        ["ops/prometheus/alerts.yml", "ops/prometheus/alerts_test.yml", "ops/grafana/walhook.json", "docs/runbook.md"]
    {
        let text = root(file);
        let unknown: Vec<_> = metrics_in(&text).into_iter().filter(|name| !is_metric(name)).collect();
        assert!(unknown.is_empty() && !metrics_in(&text).is_empty(), "{file}: {unknown:?}");
    }
    let (alerts, tests, runbook) =
        (root("ops/prometheus/alerts.yml"), root("ops/prometheus/alerts_test.yml"), root("docs/runbook.md"));
    let named: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let pages: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(named, pages, "the runbook has a section for each alert, in their order");
    for (alert, section) in named.iter().zip(runbook.split("\n## ").skip(1)) {
        for part in ["**What you see**", "**Why**", "**What to do**", "**It is over when**"] {
            assert!(section.contains(part), "{alert}: {part}");
        }
        assert!(alerts.contains(&format!("docs/runbook.md#{}\"", alert.to_lowercase())), "{alert}: its link");
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert}: its test");
    }
}

#[tokio::test]
async fn every_statement_of_the_runbook_can_be_run() {
    let feed = linked().await;
    let runbook = root("docs/runbook.md");
    let blocks: Vec<&str> = runbook.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let quoted = runbook.split('`').filter(|text| ["SELECT ", "UPDATE "].iter().any(|word| text.starts_with(word)));
    let statements = blocks.iter().flat_map(|block| block.split(";\n")).chain(quoted);
    let mut count = 0;
    for statement in statements.map(str::trim).filter(|statement| !statement.is_empty()) {
        // Those that are in a paragraph about a missing slot drop it.
        if statement.starts_with("SELECT rule_cdc_slot_drop()") {
            let _ = feed.pg.try_psql("SELECT rule_cdc_slot_create()");
        }
        feed.pg.try_psql(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        count += 1;
    }
    assert!(count > 15, "{count}");
}

/// Whether promtool and prometheus are here; says so where they are not.
pub(super) fn has_prometheus(what: &str) -> bool {
    let is_there = ["promtool", "prometheus"].iter().all(|name| Command::new(name).arg("--version").output().is_ok());
    if !is_there {
        support::skip(what, "there is no promtool and prometheus (Debian's package `prometheus`)");
    }
    is_there
}

#[test]
fn promtool_takes_the_alerts_and_each_fires_when_it_must_and_not_before() {
    if !has_prometheus("promtool check rules, promtool test rules") {
        return;
    }
    for arguments in
        [["check", "rules", "ops/prometheus/alerts.yml"], ["test", "rules", "ops/prometheus/alerts_test.yml"]]
    {
        let output = Command::new("promtool").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}

/// Asks Prometheus; the answer's `data`.
pub(super) async fn prometheus(address: SocketAddr, path: &str, query: &[(&str, &str)]) -> Option<Value> {
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let answer = get_with(address, &format!("/api/v1/{path}?{query}"), "").await?;
    // Prometheus may send it in chunks: JSON begins with the first brace and ends with the last.
    let body = &answer.body[answer.body.find('{')?..=answer.body.rfind('}')?];
    let answer: Value = serde_json::from_str(body).ok()?;
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    Some(answer["data"].clone())
}

#[tokio::test]
async fn a_real_prometheus_scrapes_both_verbs_and_every_query_of_the_dashboard_has_an_answer() {
    if !has_prometheus("the dashboard's queries") {
        return;
    }
    let receiver = Http::start(|_, _| Reply::status(204));
    let nats = Nats::builder().config("max_payload: 64KB").start().await;
    let feed = Feed::on(Postgres::builder().conf("max_slot_wal_keep_size = '1GB'").set_up().start().await, nats);
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("CREATE TABLE t (id serial PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql("UPDATE rule_nats_streams SET discard_policy = 'new'");
    let mut streamer = with_http(feed.streamer()).start();
    let run = address_of(&mut streamer).await;
    let mile = LastMile::with(feed, streamer);
    mile.webhook("called", &receiver.url("/"));
    let mut worker = with_http(mile.worker()).start();
    let deliver = address_of(&mut worker).await;

    let folder = tempfile::tempdir().unwrap();
    let (config, port) = (folder.path().join("prometheus.yml"), Port::take());
    let alerts = concat!(env!("CARGO_MANIFEST_DIR"), "/ops/prometheus/alerts.yml");
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{alerts}]\nscrape_configs:\n- job_name: walhook\n  \
         static_configs: [{{targets: [\"{run}\", \"{deliver}\"]}}]\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = support::process::User::Ourselves.command("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{}", port.number()));
    let server = support::process::Process::start("prometheus", command, &folder.path().join("log"));
    let address = SocketAddr::from(([127, 0, 0, 1], port.number()));

    // Something of everything: events, a dead letter, calls, and a moment without NATS.
    let traffic = async || {
        mile.sql("INSERT INTO t (note) VALUES ('x'), ('y')");
        mile.sql("UPDATE t SET note = repeat('x', 100000) WHERE id = 1");
        mile.sql("SELECT rule_webhook_publish_nats((SELECT webhook_id FROM rule_webhooks WHERE webhook_name = 'called'), '{}')");
    };
    let dashboard: Value = serde_json::from_str(&root("ops/grafana/walhook.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<String> = targets
        .map(|target| {
            let query = target["expr"].as_str().unwrap();
            // As Grafana fills in its variables.
            query.replace("$instance", ".*").replace("$__rate_interval", "10s")
        })
        .collect();
    assert!(queries.len() > 25 && panels.len() > 20);
    for query in &queries {
        eventually(&format!("an answer to {query}"), async || {
            traffic().await;
            let answer = prometheus(address, "query", &[("query", query)]).await?;
            (!answer["result"].as_array().unwrap().is_empty()).then_some(())
        })
        .await;
    }
    // Both scrapes are whole, and every alert is loaded and can be evaluated.
    let targets = prometheus(address, "targets", &[]).await.unwrap();
    for target in targets["activeTargets"].as_array().unwrap() {
        assert!(target["health"] == "up" && target["lastError"] == "", "{target}");
    }
    let rules = prometheus(address, "rules", &[]).await.unwrap();
    let rules = rules["groups"][0]["rules"].as_array().unwrap().clone();
    assert_eq!(rules.len(), root("ops/prometheus/alerts.yml").matches("- alert: ").count(), "{rules:?}");
    eventually("an evaluation of each alert", async || {
        let rules = prometheus(address, "rules", &[]).await?;
        let rules = rules["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] == "ok").then_some(())
    })
    .await;
    drop(server);
}
