//! Receivers that want to know who calls: client certificates, access tokens, signatures of other kinds.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ring::hmac;

use super::support::{
    Walhook, eventually,
    http::{Http, Reply, Request},
    last_mile::LastMile,
    tls::Authority,
};

/// Nothing that is kept or logged has this text in it.
fn has_leaked(mile: &LastMile, worker: &Walhook, secret: &str) -> bool {
    let kept = "SELECT string_agg(t::text, '') FROM (SELECT h::text FROM rule_webhook_call_history h \
        UNION ALL SELECT c::text FROM rule_webhook_calls c UNION ALL SELECT d::text FROM rule_nats_dead_letters d \
        UNION ALL SELECT convert_from(payload, 'UTF8') FROM rule_nats_dead_letters \
        UNION ALL SELECT w::text FROM rule_webhooks w UNION ALL SELECT p::text FROM rule_nats_publish_history p) t (t)";
    mile.sql(kept).contains(secret) || worker.log().contains(secret) || mile.streamer.log().contains(secret)
}

fn secret(mile: &LastMile, webhook: i32, name: &str, value: &str) {
    mile.sql(&format!("SELECT rule_webhook_secret_set({webhook}, '{name}', '{value}')"));
}

#[tokio::test]
async fn a_receiver_that_wants_a_certificate_gets_the_webhook_s_own_from_the_table_or_from_files() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let mile = LastMile::start().await;
    let http = Http::start_mtls(&servers.server(), &clients, |_, _| Reply::status(200));
    let settings = mile.settings(&format!(
        "[deliver]\nca = '{}'\nsecrets_dir = '{}'\n",
        mile.settings(&servers.certificate),
        mile.folder().display()
    ));
    let (table, file) = (mile.webhook("table", &http.url("/table")), mile.webhook("file", &http.url("/file")));
    let bare = mile.webhook("bare", &http.url("/bare"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 0");
    let client = clients.client("walhook");
    secret(&mile, table, "tls_certificate", &client.certificate);
    secret(&mile, table, "tls_key", &client.key);
    fs::create_dir(mile.folder().join("file")).unwrap();
    let other = clients.client("walhook too");
    for (name, content) in [("tls_certificate", &other.certificate), ("tls_key", &other.key)] {
        fs::write(mile.folder().join("file").join(name), content).unwrap();
    }
    mile.sql(&format!("UPDATE rule_webhooks SET client_certificate = true WHERE webhook_id = {file}"));
    // One with half of it is not called without; one of which nobody has asked for it is refused by the server.
    let half = mile.webhook("half", &http.url("/half"));
    mile.sql(&format!("UPDATE rule_webhooks SET max_retries = 0 WHERE webhook_id = {half}"));
    secret(&mile, half, "tls_certificate", &client.certificate);
    for webhook in [table, file, bare, half] {
        mile.publish(webhook, r#"{"n": 1}"#);
    }
    let mut worker = mile.worker().args(["--config", &settings]).start();
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "2").await;
    let mut paths: Vec<String> = http.received(2).await.into_iter().map(|request| request.path).collect();
    paths.sort();
    assert_eq!(paths, ["/file", "/table"]);
    let reasons = mile.sql("SELECT string_agg(reason, '; ' ORDER BY webhook_name) FROM rule_nats_dead_letters");
    assert!(reasons.contains("CertificateRequired") && reasons.contains("no secret tls_key"), "{reasons}");
    // The rest of it makes the next one right.
    secret(&mile, half, "tls_key", &client.key);
    eventually("the call of half", async || {
        mile.publish(half, r#"{"n": 2}"#);
        http.requests().iter().any(|request| request.path == "/half").then_some(())
    })
    .await;
    let mut outsider = mile.without_database().start();
    outsider.logged("it is called with a client certificate").await;
    for worker in [&mut worker, &mut outsider] {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    let line = client.key.lines().nth(1).unwrap();
    assert!(!has_leaked(&mile, &worker, line) && !has_leaked(&mile, &worker, "PRIVATE KEY"));
}

/// A token endpoint that gives `token-1`, `token-2` and so on, and how many it gave.
fn tokens() -> (Http, Arc<AtomicUsize>) {
    let given = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&given);
    let http = Http::start(move |_, _| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        Reply::body(format!(r#"{{"access_token": "token-{number}", "token_type": "Bearer", "expires_in": 3600}}"#))
    });
    (http, given)
}

/// A receiver of calls with this token.
fn accepts(token: &'static str) -> impl Fn(usize, &Request) -> Reply + Send + Sync {
    move |_, request| {
        Reply::status(if request.header("authorization") == format!("Bearer {token}") { 200 } else { 401 })
    }
}

#[tokio::test]
async fn calls_carry_a_token_that_is_asked_for_once_and_anew_when_it_is_refused() {
    let mile = LastMile::start().await;
    let (endpoint, given) = tokens();
    let http = Http::start(accepts("token-1"));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET headers = '{\"Authorization\": \"Bearer of the row\"}'");
    mile.sql(&format!("SELECT rule_webhook_oauth2_set({id}, '{}', 'me', 'hunter2', 'a b')", endpoint.url("/token")));
    mile.publish_many(id, 50);
    let mut worker = mile.worker().start();
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "50").await;
    assert_eq!((http.count(), given.load(Ordering::SeqCst)), (50, 1));
    let asked = endpoint.requests().remove(0);
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/token"));
    assert_eq!(String::from_utf8_lossy(&asked.body), "grant_type=client_credentials&scope=a+b");
    let login = format!("Basic {}", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, "me:hunter2"));
    assert_eq!(asked.header("authorization"), login);
    // Revoked: one new token for all, and no attempt has failed.
    http.script(accepts("token-2"));
    mile.publish_many(id, 50);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "100").await;
    assert_eq!(given.load(Ordering::SeqCst), 2);
    assert_eq!(mile.sql("SELECT count(*), max(attempt_number) FROM rule_webhook_call_history"), "100|1");
    // One whose new token is refused as well has failed, by the receiver's answer.
    http.script(|_, _| Reply::status(401));
    mile.publish(id, r#"{"n": 0}"#);
    mile.eventually("SELECT reason FROM rule_nats_dead_letters", "4 attempts, then: HTTP status 401").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    for secret in ["hunter2", "token-1", "token-2"] {
        assert!(!has_leaked(&mile, &worker, secret), "{secret}");
    }
}

#[tokio::test]
async fn a_token_endpoint_that_is_away_costs_no_attempt_and_one_that_refuses_does() {
    let mile = LastMile::start().await;
    let endpoint = Http::start(|_, _| Reply::status(503));
    let http = Http::start(accepts("token-1"));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 0");
    mile.sql(&format!("SELECT rule_webhook_oauth2_set({id}, '{}', 'me', 'hunter2')", endpoint.url("/")));
    mile.publish_many(id, 20);
    mile.sql(&format!("SELECT count(rule_webhook_enqueue({id}, '{{}}')) FROM generate_series(1, 20)"));
    let mut workers = [mile.worker().start(), mile.worker().arg("--queue").start()];
    for worker in &mut workers {
        worker.logged("its token endpoint gives no access token: it answers 503").await;
    }
    endpoint.received(4).await;
    assert_eq!(mile.sql("SELECT count(*) FROM rule_webhook_call_history"), "0");
    endpoint.script(|_, _| Reply::body(r#"{"access_token": "token-1"}"#));
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "40").await;
    assert_eq!(mile.sql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    assert_eq!(http.count(), 40);
    // Refused: the reason is in the letter. The secret is another one, so the old token is not used.
    endpoint.script(|_, _| Reply::Answer {
        status: 401,
        headers: Vec::new(),
        body: br#"{"error": "invalid_client", "error_description": "hunter3"}"#.to_vec(),
        after: std::time::Duration::ZERO,
    });
    mile.sql(&format!("SELECT rule_webhook_oauth2_set({id}, '{}', 'me', 'hunter3')", endpoint.url("/")));
    let reasons = "SELECT string_agg(DISTINCT reason, ' ') FROM rule_nats_dead_letters WHERE status = 'dead'";
    let reason = "1 attempt, then: there is no access token: it answers 401, invalid_client";
    eventually(reason, async || {
        mile.publish(id, r#"{"n": 0}"#);
        (mile.sql(reasons) == reason).then_some(())
    })
    .await;
    // An address that no webhook may have is none for a token either.
    let inner = "http://169.254.169.254/token";
    mile.sql("UPDATE rule_nats_dead_letters SET status = 'dropped'");
    mile.sql(&format!("SELECT rule_webhook_oauth2_set({id}, '{inner}', 'me', 'hunter3')"));
    let refused = "there is no access token: 169.254.169.254 is not called: ";
    eventually(refused, async || {
        mile.publish(id, r#"{"n": 0}"#);
        mile.sql(reasons).contains(refused).then_some(())
    })
    .await;
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
        assert!(!has_leaked(&mile, worker, "hunter"), "{}", worker.log());
    }
}

fn hmac_hex(secret: &str, content: &str) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), content.as_bytes());
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_webhook_is_signed_as_its_receiver_wants_it() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    let schemes = [
        ("github", "signature_scheme = 'github'"),
        ("stripe", "signature_scheme = 'stripe'"),
        (
            "other",
            "signature_scheme = 'template', signature_template = \
             '{\"header\": \"X-Sig\", \"content\": \"{id}:{timestamp}:{body}\", \"signature\": \"v0={hex}\"}'",
        ),
        ("standard", "signature_scheme = 'standard'"),
    ];
    for (name, setting) in schemes {
        let id = mile.webhook(name, &http.url(&format!("/{name}")));
        secret(&mile, id, "signing", "hunter2");
        secret(&mile, id, "signing_new", "hunter3");
        mile.sql(&format!("UPDATE rule_webhooks SET {setting} WHERE webhook_id = {id}"));
        mile.publish(id, r#"{"a": "ü"}"#);
        mile.sql(&format!("SELECT rule_webhook_enqueue({id}, '{{\"a\": 1}}')"));
    }
    let mut workers = [mile.worker().start(), mile.worker().arg("--queue").start()];
    let requests = http.received(8).await;
    for request in &requests {
        let (id, timestamp) = (request.header("webhook-id"), request.header("webhook-timestamp"));
        let body = String::from_utf8(request.body.clone()).unwrap();
        let all = ["x-hub-signature-256", "stripe-signature", "x-sig", "webhook-signature"];
        let there: Vec<&str> = all.into_iter().filter(|name| !request.header(name).is_empty()).collect();
        let (header, expected) = match request.path.as_str() {
            "/github" => (all[0], format!("sha256={}", hmac_hex("hunter3", &body))),
            "/stripe" => {
                let [new, old] = ["hunter3", "hunter2"].map(|secret| hmac_hex(secret, &format!("{timestamp}.{body}")));
                (all[1], format!("t={timestamp},v1={new},v1={old}"))
            }
            "/other" => (all[2], format!("v0={}", hmac_hex("hunter3", &format!("{id}:{timestamp}:{body}")))),
            _ => (all[3], request.header(all[3]).to_owned()),
        };
        assert_eq!((there, request.header(header)), (vec![header], expected.as_str()), "{}", request.path);
    }
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
        assert!(!has_leaked(&mile, worker, "hunter"));
    }
}

#[tokio::test]
async fn a_test_event_goes_out_as_every_call_and_shows_no_secret_that_comes_back() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let mile = LastMile::start().await;
    let (endpoint, _) = tokens();
    // Sends back what it got, as many receivers do for a test.
    let echo = |request: &Request| {
        let mut headers: Vec<String> = request.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        headers.sort();
        Reply::body(format!("{}\n{}", headers.join("\n"), String::from_utf8_lossy(&request.body)))
    };
    let http = Http::start_mtls(&servers.server(), &clients, move |_, request| echo(request));
    let settings = mile.settings(&format!("[deliver]\nca = '{}'\n", mile.settings(&servers.certificate)));
    let id = mile.webhook("w", &http.url("/hook?token=hunter5"));
    mile.sql(
        "UPDATE rule_webhooks SET headers = '{\"X-Api-Key\": \"hunter4\", \"X-A\": \"b\"}', max_in_flight = 1, \
              rate_limit_per_second = 5, signature_scheme = 'github', enabled = false",
    );
    let client = clients.client("walhook");
    secret(&mile, id, "tls_certificate", &client.certificate);
    secret(&mile, id, "tls_key", &client.key);
    secret(&mile, id, "signing", "hunter2");
    mile.sql(&format!("SELECT rule_webhook_oauth2_set({id}, '{}', 'me', 'hunter3')", endpoint.url("/token")));
    // The token endpoint speaks plain HTTP; both are on this machine.
    let conninfo = format!("host=127.0.0.1 port={} dbname=postgres user=walhook_worker", mile.feed.pg.port());
    let test = |flags: &[&str]| {
        let command = mile.feed.command("webhook").args(["test", "w", "--config", &settings]).args(flags);
        command.env("DATABASE_URL", conninfo.clone())
    };
    let done = test(&["--allow-network", "127.0.0.1", "--data", r#"{"n": 1}"#]).finish();
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    let request = http.requests().remove(0);
    assert_eq!(
        (request.path.as_str(), String::from_utf8_lossy(&request.body).as_ref()),
        ("/hook?token=hunter5", r#"{"n": 1}"#)
    );
    assert_eq!(
        ["walhook-type", "walhook-op", "authorization", "x-api-key"].map(|name| request.header(name)),
        ["walhook.test", "test", "Bearer token-1", "hunter4"]
    );
    assert_eq!(request.header("x-hub-signature-256"), format!("sha256={}", hmac_hex("hunter2", r#"{"n": 1}"#)));
    for shown in ["status    200 after ", ", disabled", "x-a: b", request.header("webhook-id"), "signed: yes"] {
        assert!(done.stdout.contains(shown), "{shown}: {}", done.stdout);
    }
    for hidden in ["hunter", "token-1", "PRIVATE"] {
        assert!(
            !done.stdout.contains(hidden) && !done.stderr.contains(hidden),
            "{hidden}: {}{}",
            done.stdout,
            done.stderr
        );
    }
    // A receiver that refuses, one that may not be called, one that is none.
    http.script(|_, _| Reply::status(410));
    let done = test(&["--allow-network", "127.0.0.1", "--json"]).finish();
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let shown: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&shown["status"], &shown["webhook"], &shown["enabled"]), (&410.into(), &"w".into(), &false.into()));
    let done = test(&[]).finish();
    assert!(done.code == Some(2) && done.stderr.contains("is not called"), "{:?} {}", done.code, done.stderr);
    let done = mile.feed.command("webhook").args(["test", "none"]).finish();
    assert!(done.code == Some(2) && done.stderr.contains("rule_webhook_list()"), "{}", done.stderr);
    let nothing = "SELECT (SELECT count(*) FROM rule_webhook_calls), (SELECT count(*) FROM rule_nats_dead_letters), \
                   (SELECT count(*) FROM walhook.rule_webhook_limit_holders)";
    assert_eq!(mile.sql(nothing), "0|0|0", "nothing is recorded, nothing held");
}
