//! Receivers that misbehave, rows that make no sense, servers that are away: each is said clearly, bounded and recorded, and
//! the others flow.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;

use support::{
    Nats, Postgres, UNCHECKED, eventually,
    feed::Feed,
    http::{Http, Reply},
    last_mile::LastMile,
    port::Port,
    tls::Authority,
};

/// One attempt, and not long, but longer than a busy machine takes for any answer.
const ONCE: &str = "UPDATE rule_webhooks SET retry_enabled = false, timeout_ms = 10000";

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

fn redirect() -> Reply {
    Reply::with(302, "Location", "http://169.254.169.254/latest/meta-data/")
}

#[tokio::test]
async fn whatever_a_receiver_does_is_recorded_and_the_others_flow() {
    let mile = LastMile::start().await;
    let authority = Authority::new("nobody's");
    let well = Http::ok();
    let misbehaving = |reply: fn() -> Reply| Http::start(move |_, _| reply());
    // Name, server, status, what the error says, whether it counts as arrived.
    let servers = [
        ("hangs", misbehaving(|| Reply::Hang), "", "no answer within 10000 ms"),
        ("drips", misbehaving(|| Reply::Drip), "200", ""),
        ("lies", misbehaving(|| Reply::Lie), "200", ""),
        ("floods", misbehaving(|| Reply::body(vec![b'x'; 50 << 20])), "200", ""),
        ("redirects", misbehaving(redirect), "302", "redirects are not followed"),
        ("closes", misbehaving(|| Reply::Close), "", "connection closed before message completed"),
        ("babbles", misbehaving(|| Reply::Nonsense), "", "invalid HTTP version parsed"),
        ("heads", misbehaving(|| Reply::Endless("HTTP/1.1 200 OK\r\n", "X-A: b\r\n")), "", "message head is too large"),
        ("line", misbehaving(|| Reply::Endless("HTTP/1.1 200 OK\r\nX-A: ", "b")), "", "message head is too large"),
        (
            "hints",
            misbehaving(|| Reply::Endless("", "HTTP/1.1 103 Early Hints\r\n\r\n")),
            "",
            "no answer within 10000 ms",
        ),
        ("trailers", misbehaving(|| Reply::Endless(CHUNKED, "0\r\nX-A: b\r\n")), "200", ""),
        ("extensions", misbehaving(|| Reply::Endless(CHUNKED, "1;a=b")), "200", ""),
        ("teapot", misbehaving(|| Reply::status(418)), "418", "HTTP status 418"),
        ("forger", Http::start_tls(&authority.server(), |_, _| Reply::status(200)), "", "UnknownIssuer"),
    ];
    let port = Port::take();
    let urls = [
        ("closed", format!("http://127.0.0.1:{}/", port.number()), "Connection refused"),
        ("nowhere", "http://nowhere.invalid/".to_owned(), "resolve nowhere.invalid"),
        ("inside", "http://169.254.169.254/latest/meta-data/".to_owned(), "169.254.169.254 is link-local"),
        ("mapped", "http://[::ffff:10.0.0.1]/".to_owned(), "is private"),
        ("loopback6", "http://[::1]:1/".to_owned(), "is loopback"),
    ];
    let mut webhooks = vec![("well", mile.webhook("well", &well.url("/")))];
    webhooks.extend(servers.iter().map(|(name, http, ..)| (*name, mile.webhook(name, &http.url("/")))));
    webhooks.extend(urls.iter().map(|(name, url, _)| (*name, mile.webhook(name, url))));
    mile.sql(ONCE);
    let mut worker = mile.worker().start();
    for (_, id) in &webhooks {
        mile.publish_many(*id, 2);
    }
    let all = (2 * webhooks.len()).to_string();
    mile.eventually("SELECT count(*) FROM rule_webhook_calls", &all).await;
    let call = |name: &str| {
        mile.sql(&format!(
            "SELECT DISTINCT status, response_status, coalesce(error_message, ''), coalesce(length(response_body), 0) <= 65536 \
             FROM rule_webhook_calls JOIN rule_webhooks USING (webhook_id) WHERE webhook_name = '{name}'"
        ))
    };
    for (name, _, status, error) in &servers {
        let row = call(name);
        let outcome = if error.is_empty() { "success" } else { "failed" };
        assert!(row.starts_with(&format!("{outcome}|{status}|")) && row.contains(error), "{name}: {row}");
        assert!(row.ends_with("|t") && !row.contains('\n'), "{name}: {row}");
    }
    for (name, _, error) in &urls {
        let row = call(name);
        assert!(row.starts_with("failed||") && row.contains(error), "{name}: {row}");
    }
    assert_eq!(call("well"), "success|200||t");
    assert_eq!(well.count(), 2);
    let failed = "SELECT count(*) FROM rule_webhook_calls WHERE status = 'failed'";
    assert_eq!(mile.sql("SELECT count(*) FROM rule_nats_dead_letters"), mile.sql(failed));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn this_machine_is_not_called_unless_that_is_allowed() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    let id = mile.webhook("w", &http.url("/").replace("127.0.0.1", "localhost"));
    mile.sql(ONCE);
    mile.publish(id, "{}");
    let mut worker = mile.outsider().start();
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "1").await;
    let error = mile.sql("SELECT error_message FROM rule_webhook_calls");
    assert!(
        error.contains("localhost is not called") && error.contains("loopback") && error.contains("--allow-network"),
        "{error}"
    );
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 0);
    mile.publish(id, "{}");
    let mut worker = mile.worker().args(["--allow-network", "::1"]).start();
    http.received(1).await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn a_certificate_of_an_authority_that_is_trusted_is_taken() {
    let mile = LastMile::start().await;
    let authority = Authority::new("ours");
    let http = Http::start_tls(&authority.server(), |_, _| Reply::status(204));
    let id = mile.webhook("w", &http.url("/"));
    mile.publish(id, "{}");
    let ca = mile.settings(&authority.certificate);
    let settings = mile.settings(&format!("[deliver]\nca = '{ca}'"));
    let mut worker = mile.worker().args(["--config", &settings]).start();
    http.received(1).await;
    mile.eventually("SELECT status, response_status FROM rule_webhook_calls", "success|204").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn rows_that_cannot_be_called_say_why_and_show_no_secret() {
    let mile = LastMile::start().await;
    let (http, well) = (Http::ok(), Http::ok());
    let ids = ["scheme", "header", "unsigned", "badly_signed", "well"].map(|name| mile.webhook(name, &http.url("/")));
    mile.sql(&format!(
        "{UNCHECKED}; UPDATE rule_webhooks SET url = 'ftp://u:hunter2@example.com/' WHERE webhook_name = 'scheme';
         UPDATE rule_webhooks SET headers = '{{\"X-A\": \"a\\nb: hunter2\"}}' WHERE webhook_name = 'header'"
    ));
    mile.sql("UPDATE rule_webhooks SET signed = true WHERE webhook_name = 'unsigned'");
    // Past the function and the trigger, which refuse it.
    mile.sql(&format!(
        "ALTER TABLE rule_webhook_secrets DISABLE TRIGGER walhook_row_check; INSERT INTO rule_webhook_secrets (webhook_id, secret_name, secret_value) VALUES ({}, 'signing', 'whsec_hunter2!')",
        ids[3]
    ));
    mile.sql(&format!("UPDATE rule_webhooks SET url = '{}' WHERE webhook_name = 'well'", well.url("/")));
    mile.sql(ONCE);
    let mut worker = mile.worker().start();
    for id in ids {
        mile.publish(id, "{}");
    }
    mile.eventually("SELECT count(*) FROM rule_webhook_calls", "5").await;
    let check = |name: &str, words: &str| {
        let error = mile.sql(&format!(
            "SELECT error_message FROM rule_webhook_calls JOIN rule_webhooks USING (webhook_id) WHERE webhook_name = '{name}'"
        ));
        assert!(error.contains(words) && !error.contains("hunter2"), "{name}: {error}");
    };
    check("scheme", "\"ftp\"; only http and https");
    check("header", "header \"X-A\" of the webhook has a value that HTTP does not allow");
    check("unsigned", "rule_webhook_secret_set");
    check("badly_signed", "secret \"signing\" cannot sign: what follows whsec_ is not base64");
    assert_eq!((http.count(), well.count()), (0, 1), "nothing goes out unsigned or elsewhere");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert!(!worker.log().contains("hunter2"), "{}", worker.log());
}

#[tokio::test]
async fn messages_that_walhook_did_not_publish_are_called_or_buried_but_never_stuck() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    let id = mile.webhook("w", &http.url("/"));
    mile.publish(id, r#"{"n": 0}"#);
    mile.feed.stored(1).await;
    let jetstream = mile.feed.nats.jetstream().await;
    let foreign = [
        "no json at all".to_owned(),
        String::new(),
        r#"{"test": "message 1"}"#.to_owned(),
        format!(r#"{{"webhook_id": {id}, "webhook_url": "http://evil.example.com", "data": {{"n": 1}}}}"#),
        // What jsonb does not take is recorded as text.
        format!(r#"{{"webhook_id": {id}, "data": {{"n": 2, "nul": "\u0000"}}}}"#),
        format!(r#"{{"webhook_id": {}, "data": {{"n": 3}}}}"#, id + 1),
    ];
    for payload in foreign {
        jetstream.publish("webhooks.w", payload.into()).await.unwrap().await.unwrap();
    }
    let mut worker = mile.worker().start();
    let mut seen: Vec<_> = http.received(3).await.iter().map(|r| r.json()["n"].as_i64().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2]);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "3").await;
    let text = mile.sql(
        "SELECT payload #>> '{}' FROM rule_webhook_calls WHERE jsonb_typeof(payload) = 'string' AND status = 'success'",
    );
    assert_eq!(text, r#"{"n": 2, "nul": "\u0000"}"#);
    mile.eventually("SELECT count(*) FROM rule_nats_dead_letters", "3").await;
    let reasons = mile.sql("SELECT count(*) FILTER (WHERE reason LIKE 'the payload is not JSON%'), \
                            count(*) FILTER (WHERE reason LIKE 'the message names no webhook%') FROM rule_nats_dead_letters");
    assert_eq!(reasons, "2|1");
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 3);
}

#[tokio::test]
async fn a_database_that_is_away_holds_up_no_call_for_long() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    let id = mile.webhook("w", &http.url("/"));
    let mut worker = mile.worker().start();
    mile.publish(id, r#"{"n": 0}"#);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls", "1").await;
    mile.feed.pg.stop();
    let jetstream = mile.feed.nats.jetstream().await;
    for n in 1..=100 {
        let payload = format!(r#"{{"webhook_id": {id}, "data": {{"n": {n}}}}}"#);
        jetstream.publish("webhooks.w", payload.into()).await.unwrap().await.unwrap();
    }
    http.received(101).await;
    worker.logged("calls cannot be written into rule_webhook_calls").await;
    eventually("all to be acknowledged", async || {
        let stream = jetstream.get_stream("WEBHOOKS").await.ok()?;
        let info = stream.consumer_info("walhook-deliver-1").await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    mile.feed.pg.restart().await;
    mile.publish(id, r#"{"n": 101}"#);
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE payload = '{\"n\": 101}'", "1").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert_eq!(http.count(), 102);
}

#[tokio::test]
async fn a_nats_server_that_restarts_is_waited_for_and_no_event_is_lost() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::slow(Duration::from_millis(10)));
    let id = mile.webhook("w", &http.url("/"));
    mile.publish_many(id, 300);
    let quick = mile.settings("[deliver]\nack_wait_ms = 1000\n");
    let mut worker = mile.worker().args(["--config", &quick]).start();
    http.received(50).await;
    mile.feed.nats.kill9();
    mile.feed.nats.restart().await;
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "300").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

#[tokio::test]
async fn the_rights_in_nats_that_the_documentation_lists_are_enough() {
    let rights = "\"$JS.API.STREAM.NAMES\", \"$JS.API.STREAM.INFO.WEBHOOKS\", \"$JS.API.CONSUMER.PAUSE.WEBHOOKS.*\", \"$JS.API.CONSUMER.NAMES.*\", \"$JS.API.CONSUMER.INFO.WEBHOOKS.*\", \
                  \"$JS.API.CONSUMER.DURABLE.CREATE.WEBHOOKS.*\", \"$JS.API.CONSUMER.MSG.NEXT.WEBHOOKS.*\", \
                  \"$JS.API.CONSUMER.DELETE.WEBHOOKS.*\", \"$JS.ACK.WEBHOOKS.>\", \"dlq.>\", \
                  \"$JS.API.STREAM.INFO.KV_walhook_walhook\", \"$JS.API.CONSUMER.CREATE.KV_walhook_walhook\", \
                  \"$JS.API.CONSUMER.INFO.KV_walhook_walhook.*\"";
    let users = format!(
        "authorization {{ users: [ {{user: all, password: a}}, {{user: worker, password: w, permissions: {{ \
         publish: [{rights}], subscribe: [\"_INBOX.>\"] }} }} ] }}"
    );
    let nats = Nats::builder().config(&users).start().await;
    let feed = Feed::on(Postgres::set_up().await, nats);
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = 'nats://all:a@127.0.0.1:{}'", feed.nats.port()));
    let mile = LastMile::on(feed);
    let http = Http::ok();
    let id = mile.webhook("w", &http.url("/"));
    let own = format!("nats://worker:w@127.0.0.1:{}", mile.feed.nats.port());
    mile.publish(id, "{}");
    mile.feed.confirmed().await;
    let mut worker = mile.worker().args(["--nats-url", &own]).start();
    http.received(1).await;
    // By the bucket, which is faster than the next reading of the rows.
    let mut bare = support::Walhook::command("deliver")
        .args(["--no-database", "--group", "other", "--allow-network", "127.0.0.1", "--nats-url", &own])
        .start();
    http.received(2).await;
    for worker in [&mut worker, &mut bare] {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
        assert!(!worker.log().contains("WARN"), "{}", worker.log());
    }
}

#[tokio::test]
async fn without_any_place_for_it_an_event_is_never_dropped() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::status(500));
    let id = mile.webhook("w", &http.url("/"));
    mile.sql(ONCE);
    let mut worker = mile.without_database().start();
    mile.publish(id, "{}");
    worker.logged("its dead letter cannot be saved").await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    let jetstream = mile.feed.nats.jetstream().await;
    let info = jetstream.get_stream("WEBHOOKS").await.unwrap().consumer_info("walhook-deliver-1").await.unwrap();
    assert_eq!(info.num_ack_pending, 1, "it waits for another attempt");
}

#[test]
fn settings_that_cannot_be_end_with_code_2_and_their_name() {
    let check = |arguments: &[&str], words: &str| {
        let done =
            support::Walhook::command("deliver").env("DATABASE_URL", "host=127.0.0.1 user=x").args(arguments).finish();
        assert!(done.code == Some(2) && done.stderr.contains(words), "{done:?}");
    };
    check(
        &["--allow-network", "all"],
        "network 1 (--allow-network, WALHOOK_ALLOW_NETWORK, deliver.allowed_networks) is not a network",
    );
    check(&["--group", "a b"], "the group's name");
    check(&["--no-database"], "--nats-url");
    check(&["--record", "everything"], "use one of full, failures, off");
}

/// Its call would count for nothing, and be made again without an end.
#[tokio::test]
async fn an_answer_in_characters_that_the_database_does_not_have_is_recorded_without_them() {
    let pg = Postgres::builder().initdb(&["--encoding=LATIN1", "--locale=C"]).start().await;
    let mile = LastMile::on(Feed::on(pg, Nats::start().await));
    let http = Http::start(|number, _| Reply::Answer {
        status: if number == 0 { 500 } else { 200 },
        headers: Vec::new(),
        body: "\u{e9}: \u{65e5}\u{672c}".into(),
        after: Duration::ZERO,
    });
    let id = mile.webhook("w", &http.url("/"));
    mile.sql("UPDATE rule_webhooks SET retry_delay_ms = 100");
    let mut workers = [mile.worker().start(), mile.worker().arg("--queue").start()];
    let recorded = "SELECT c.status, c.retry_count, c.response_body, string_agg(h.response_body, ' ' ORDER BY attempt_number) \
                    FROM rule_webhook_calls c JOIN rule_webhook_call_history h USING (call_id) GROUP BY c.call_id ORDER BY c.call_id";
    mile.publish(id, "{}");
    mile.eventually(recorded, "success|1|?: ??|?: ?? ?: ??").await;
    mile.sql(&format!("SELECT rule_webhook_enqueue({id}, '{{}}')"));
    mile.eventually(recorded, "success|1|?: ??|?: ?? ?: ??\nsuccess|0|?: ??|?: ??").await;
    for worker in &mut workers {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
    assert_eq!(http.count(), 3);
}
