//! The status page in a headless Chromium against real servers: a running flow, outages, ten thousand webhooks, and an operator who
//! retries and drops dead letters.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
};

use super::http::{address_of, exchange, get, get_with, linked, ready, with_http};
use support::{
    Nats, Postgres, eventually,
    feed::Feed,
    http::{Http, Reply},
    last_mile::LastMile,
};

/// A headless Chromium that shows the page, driven by tests/page/browser.js.
struct Browser {
    child: std::process::Child,
    answers: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Browser {
    /// `None`, and said so, where there is none.
    fn open(address: SocketAddr) -> Option<Browser> {
        use std::io::BufRead as _;
        let found = Command::new("sh").args(["-c", "command -v chromium"]).output().unwrap();
        let chromium = String::from_utf8(found.stdout).unwrap().trim().to_owned();
        if chromium.is_empty() || Command::new("node").arg("--version").output().is_err() {
            support::skip("the status page in a browser", "there is no chromium and node (Debian's packages)");
            return None;
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/target/screenshots");
        std::fs::create_dir_all(folder).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page/browser.js");
        let mut command = support::process::User::Ourselves.command("node");
        command.arg(script).arg(support::services::playwright()).args([
            &chromium,
            &format!("http://{address}/"),
            folder,
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let answers = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        Some(Browser { child, answers })
    }

    /// Does it, and panics where that fails.
    fn must(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
        let answer = self.answers.next().expect("the browser is there").unwrap();
        assert_eq!(answer, "ok", "{command}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// The browser is asked by a blocking call, while the servers are processes of their own.
#[tokio::test]
async fn the_page_shows_a_running_flow_an_outage_and_its_end_in_a_browser_without_an_error() {
    let nats = Nats::builder().config("max_payload: 64KB").start().await;
    let feed = Feed::on(Postgres::builder().conf("max_slot_wal_keep_size = '1GB'").set_up().start().await, nats);
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("CREATE TABLE t (id serial PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let mut walhook = with_http(feed.streamer()).start();
    let address = address_of(&mut walhook).await;
    ready(address, 200, "[]").await;
    let page = get(address, "/").await;
    assert!(
        page.status == 200 && page.headers.contains("content-security-policy: default-src 'none'; script-src 'sha256-")
    );
    let Some(mut browser) = Browser::open(address) else { return };
    browser.must("see Events flow.");
    feed.pg.psql("INSERT INTO t (note) SELECT 'SECRET-IN-A-ROW' FROM generate_series(1, 500)");
    feed.pg.psql("UPDATE t SET note = repeat('x', 100000) WHERE id = 1");
    browser.must("see dead-letters retry ID");
    feed.pg.psql("UPDATE rule_nats_dead_letters SET webhook_name = '<img src=x onerror=alert(1)>'");
    browser.must("see <img src=x onerror=alert(1)>");
    browser.must("see nothing is wrong");
    browser.must("see walhook check at");
    browser.must("press #notes summary");
    browser.must("see stream_replicas");
    browser.must("see before the slot is lost");
    browser.must("see last sequence");
    browser.must("shot run-light 1200 light");
    browser.must("shot run-dark 1200 dark");
    browser.must("shot run-phone 360 dark 740");
    feed.nats.stop();
    feed.pg.psql("INSERT INTO t (note) VALUES ('waits')");
    browser.must("see Events do not flow.");
    browser.must("see not connected");
    browser.must("shot nats-away-light 1200 light");
    browser.must("shot nats-away-phone 360 light 740");
    feed.nats.restart().await;
    browser.must("see Events flow.");
    browser.must("console");
    walhook.terminate();
    browser.must("see walhook does not answer");
    browser.must("shot gone-light 1200 light");
}

#[tokio::test]
async fn a_workers_page_stays_usable_with_ten_thousand_webhooks() {
    let receiver = Http::start(|_, request| Reply::status(if request.path == "/bad" { 500 } else { 204 }));
    let feed = Feed::start().await;
    feed.pg.psql(
        "INSERT INTO rule_webhooks (webhook_name, url, nats_enabled, publish_mode, nats_subject) \
         SELECT 'webhook ' || n, 'http://127.0.0.1:1/', true, 'nats', 'webhooks.many' FROM generate_series(1, 10000) n",
    );
    let mile = LastMile::on(feed);
    let good = mile.webhook("good", &receiver.url("/good"));
    let bad = mile.webhook("<b>bad</b> & co", &receiver.url("/bad"));
    // It calls two of them and shows all: of every other it would keep a consumer.
    let mut worker = with_http(mile.worker()).args(["--webhook", "good", "--webhook", "<b>bad</b> & co"]).start();
    let address = address_of(&mut worker).await;
    ready(address, 200, "[]").await;
    mile.publish_many(good, 20);
    mile.publish(bad, "{}");
    eventually("all webhooks", async || {
        let found = get(address, "/webhooks?q=webhook%201234").await.json();
        (found.as_array()?.len() == 1).then_some(())
    })
    .await;
    let bounded = get(address, "/metrics").await.body;
    assert!(bounded.lines().filter(|line| line.starts_with("walhook_in_flight{")).count() <= 201);
    let Some(mut browser) = Browser::open(address) else { return };
    browser.must("see Events flow.");
    browser.must("see <b>bad</b> & co");
    browser.must("shot deliver-light 1200 light");
    browser.must("type webhook 9876");
    browser.must("see 1 of 10,002 shown");
    browser.must("shot deliver-search-phone 360 dark 740");
    browser.must("clear");
    browser.must("see 50 of 10,002 shown");
    browser.must("console");
}

/// Sends a request that changes something, with these headers.
async fn post(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n");
    let answer = exchange(address, &request).await.unwrap();
    (answer.status, answer.body)
}

#[tokio::test]
async fn an_operator_retries_one_dead_letter_and_drops_another_from_the_page_and_nobody_else_can() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let token = file("token", "operators-token-0123456789\n");
    let text = format!("[http]\nlisten = '127.0.0.1:0'\noperator_token_file = '{}'\n", token.display());
    let settings = file("walhook.toml", &text);
    let feed = linked().await;
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't', p_subject_template => 'elsewhere.{op}')");
    let mut walhook = feed.streamer().arg("--config").arg(&settings).start();
    let address = address_of(&mut walhook).await;
    ready(address, 200, "[]").await;
    feed.pg.psql("INSERT INTO t VALUES (1, 'first'), (2, 'second'), (3, 'third')");
    let status =
        |id: i64| feed.pg.psql(&format!("SELECT status FROM rule_nats_dead_letters WHERE dead_letter_id = {id}"));
    let letters = async || {
        let count = feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters WHERE status = 'dead'");
        (count == "3").then_some(())
    };
    eventually("three dead letters", letters).await;

    // A client that lacks the token, the header or the origin changes nothing.
    let bearer = "Authorization: Bearer operators-token-0123456789\r\n";
    let own = "X-Requested-With: walhook\r\n";
    for (headers, wanted) in [
        (String::new(), "X-Requested-With"),
        (bearer.to_owned(), "X-Requested-With"),
        (own.to_owned(), "http.operator_token_file"),
        (format!("{own}Authorization: Bearer operators-token-012345678\r\n"), "http.operator_token_file"),
        (format!("{own}{bearer}Origin: http://attacker.example\r\n"), "Origin"),
        (format!("{own}{bearer}Sec-Fetch-Site: cross-site\r\n"), "Sec-Fetch-Site"),
    ] {
        for path in ["/dead-letters/1/retry", "/dead-letters/1/drop", "/operator"] {
            let (code, why) = post(address, path, &headers).await;
            assert!(code == 403 && why.contains(wanted), "{headers:?}: {code} {why}");
        }
    }
    let (code, why) = post(address, "/dead-letters/99/retry", &format!("{own}{bearer}")).await;
    assert!(code == 409 && why.contains("there is no dead letter 99"), "{code} {why}");
    assert_eq!(get(address, "/dead-letters/1/drop").await.status, 404, "no link changes anything");
    assert_eq!([status(1), status(2), status(3)], ["dead", "dead", "dead"]);

    // Its stream is there now.
    feed.pg.psql("SELECT rule_nats_stream_create('ELSEWHERE', ARRAY['elsewhere.>'])");
    let stored = async |count: usize| {
        eventually("the retried event in its stream", async || {
            feed.nats.jetstream().await.get_stream("ELSEWHERE").await.ok()?;
            let messages = feed.messages_of("ELSEWHERE").await;
            (messages.len() == count).then_some(messages)
        })
        .await
    };
    match Browser::open(address) {
        Some(mut browser) => {
            browser.must("see dead-letters retry ID");
            browser.must("count [data-act] 0");
            browser.must("fill #token operators-token-0123456789");
            browser.must("shot operator-signs-in-phone 360 light 740");
            browser.must("click Sign in");
            browser.must("count [data-act] 6");
            browser.must("shot operator-light 1200 light");
            browser.must("click Retry dead letter 1");
            browser.must("see will be published again as event");
            browser.must("count [data-act] 4");
            browser.must("click Drop dead letter 2");
            browser.must("shot operator-asks-dark 360 dark 740");
            assert_eq!(status(2), "dead", "it asks first");
            browser.must("click Really drop dead letter 2");
            browser.must("see dead letter 2 is dropped");
            browser.must("console");
            // The token is in the page's memory alone.
            browser.must("reload");
            browser.must("see dead-letters retry ID");
            browser.must("count [data-act] 0");
            browser.must("fill #token not-the-operators-token");
            browser.must("click Sign in");
            browser.must("see the operator's token is needed");
        }
        None => {
            for path in ["/dead-letters/1/retry", "/dead-letters/2/drop"] {
                assert_eq!(post(address, path, &format!("{own}{bearer}")).await.0, 200);
            }
        }
    }
    let stored = stored(1).await;
    assert_eq!(stored[0].data()["note"], "first", "{stored:?}");
    assert!(!stored[0].header("Walhook-Retry-Of").is_empty());
    assert_eq!([status(1), status(2), status(3)], ["retried", "dropped", "dead"]);
    let log = walhook.log();
    for done in ["dead letter 1 will be published again", "dead letter 2 is dropped", "there is no dead letter 99"] {
        let line = log.lines().find(|line| line.contains(done)).unwrap_or_else(|| panic!("{done}: {log}"));
        assert!(line.contains("by the operator's token") && line.contains("peer=127.0.0.1:"), "{line}");
    }
    assert!(!log.contains("operators-token"), "the token is in no log");
}

#[tokio::test]
async fn a_reader_may_not_change_anything_and_where_no_token_is_set_for_operators_nobody_may() {
    let folder = tempfile::tempdir().unwrap();
    let (token, other) = (folder.path().join("token"), folder.path().join("other"));
    std::fs::write(&token, "readers-token-0123456789").unwrap();
    std::fs::write(&other, "operators-token-0123456789").unwrap();
    let settings = folder.path().join("walhook.toml");
    let feed = linked().await;
    let own = "X-Requested-With: walhook\r\n";
    let (reader, operator) =
        ("Authorization: Bearer readers-token-0123456789\r\n", "Authorization: Bearer operators-token-0123456789\r\n");
    for (more, is_set) in [(String::new(), false), (format!("operator_token_file = '{}'\n", other.display()), true)] {
        let text = format!("[http]\nlisten = '127.0.0.1:0'\ntoken_file = '{}'\n{more}", token.display());
        std::fs::write(&settings, text).unwrap();
        let mut walhook = feed.streamer().arg("--config").arg(&settings).start();
        let address = address_of(&mut walhook).await;
        let (code, why) = post(address, "/dead-letters/1/retry", &format!("{own}{reader}")).await;
        assert!(code == 403 && why.contains("http.operator_token_file"), "{code} {why}");
        // The operator may read as well.
        let read = get_with(address, "/metrics", operator).await.unwrap().status;
        assert_eq!(read, if is_set { 200 } else { 401 });
        assert_eq!(post(address, "/operator", &format!("{own}{operator}")).await.0, if is_set { 200 } else { 403 });
        assert_eq!(post(address, "/metrics", &format!("{own}{operator}")).await.0, 405);
        assert_eq!(walhook.terminate(), 0);
    }
}

#[tokio::test]
async fn the_page_of_run_shows_ten_thousand_webhooks_those_that_cannot_publish_first_and_a_search_finds_the_others() {
    let feed = Feed::start().await;
    feed.pg.psql(
        "INSERT INTO rule_webhooks (webhook_name, url, nats_enabled, publish_mode, nats_subject) \
         SELECT 'webhook ' || n, 'http://127.0.0.1:1/', true, 'nats', 'webhooks.many' FROM generate_series(1, 10000) n",
    );
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg
        .psql("SELECT rule_webhook_link_table(webhook_id, 't') FROM rule_webhooks WHERE webhook_name = 'webhook 77'");
    let mut walhook = with_http(feed.streamer()).start();
    let address = address_of(&mut walhook).await;
    ready(address, 200, "[]").await;
    feed.pg.psql("INSERT INTO t SELECT id, 'x' FROM generate_series(1, 12) id");
    let of = async |name: &str| {
        let found = get(address, &format!("/webhooks?q={name}")).await.json();
        found.as_array().unwrap().iter().find(|one| one["name"] == name.replace("%20", " ")).cloned()
    };
    let counted = async |events: u64| {
        eventually("the webhook's events", async || of("webhook%2077").await.filter(|one| one["events"] == events))
            .await
    };
    let webhook = counted(12).await;
    assert!(webhook["last_at"].as_f64().unwrap() > 1_700_000_000.0 && webhook["dead"] == 0, "{webhook}");
    // A new session counts on, and so do rules that have changed.
    feed.pg.psql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
    feed.pg.psql("DELETE FROM rule_webhooks WHERE webhook_name = 'webhook 5'");
    feed.pg.psql("INSERT INTO t VALUES (13, 'x')");
    counted(13).await;
    assert!(of("webhook%205").await.is_none());
    // Nothing more than the bound on the wire.
    assert!(get(address, "/webhooks?q=webhook").await.json().as_array().unwrap().len() == 50);
    let Some(mut browser) = Browser::open(address) else { return };
    browser.must("see Events flow.");
    browser.must("see webhook 77");
    browser.must("see 50 of 9,999 shown");
    browser.must("shot run-webhooks-light 1200 light");
    browser.must("type webhook 9876");
    browser.must("see 1 of 9,999 shown");
    browser.must("shot run-webhooks-phone 360 dark 740");
    browser.must("console");
}
