//! Spans by OTLP over HTTP, received by a small collector of the test's own. Only with the feature `otlp`:
//! `cargo test --features fault-points,otlp --test delivery -- otlp::`.

#![allow(clippy::unwrap_used)]

use serde_json::Value;

use crate::support::{
    eventually,
    feed::Feed,
    http::{Http, Request},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// All spans of these requests.
fn spans(requests: &[Request]) -> Vec<Value> {
    let mut spans = Vec::new();
    for request in requests {
        assert_eq!((request.path.as_str(), request.header("content-type")), ("/v1/traces", "application/json"));
        assert_eq!(request.header("x-token"), "a b");
        let sent = request.json();
        let of_resource = &sent["resourceSpans"][0];
        assert_eq!(of_resource["resource"]["attributes"][0]["value"]["stringValue"], "feed");
        spans.extend(of_resource["scopeSpans"][0]["spans"].as_array().unwrap().iter().cloned());
    }
    spans
}

fn attribute<'s>(span: &'s Value, key: &str) -> &'s Value {
    let all = span["attributes"].as_array().unwrap();
    let value =
        &all.iter().find(|attribute| attribute["key"] == key).unwrap_or_else(|| panic!("no {key}: {span:#}"))["value"];
    value.get("stringValue").or(value.get("intValue")).unwrap()
}

fn time(span: &Value, key: &str) -> u128 {
    span[key].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_event_of_a_sampled_trace_has_a_span_from_commit_to_ack_and_its_request_one_and_others_none() {
    let feed = Feed::start().await;
    let (collector, receiver) = (Http::ok(), Http::ok());
    let webhook = feed.webhook("orders");
    feed.pg.psql(&format!("UPDATE rule_webhooks SET url = '{}'", receiver.url("/hook?token=hunter2")));
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY, trace text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders', p_trace_column => 'trace')"));
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url("")),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-token=a%20b".to_owned()),
        ("OTEL_SERVICE_NAME", "feed".to_owned()),
    ];
    let with = |builder: crate::support::walhook::Builder| {
        settings.iter().fold(builder, |builder, (name, value)| builder.env(*name, value.trim_end_matches('/')))
    };
    let mut running = with(feed.streamer()).start();
    let mut delivering = with(feed.command("deliver").args(["--allow-network", "127.0.0.1"])).start();
    // Sampled, not sampled, of no trace, and one that is none.
    feed.pg.psql(&format!(
        "INSERT INTO orders VALUES (1, '00-{TRACE}-{PARENT}-01'), (2, '00-{TRACE}-{PARENT}-00'), (3, NULL), (4, 'nonsense')"
    ));
    eventually("four calls", async || (receiver.count() >= 4).then_some(())).await;
    let found =
        eventually("two spans", async || Some(spans(&collector.requests())).filter(|spans| spans.len() >= 2)).await;
    assert_eq!(delivering.terminate(), 0, "{}", delivering.log());
    assert_eq!(running.terminate(), 0, "{}", running.log());
    let all = spans(&collector.requests());
    assert_eq!(all.len(), 2, "{all:#?}");
    for span in &all {
        assert_eq!((&span["traceId"], &span["parentSpanId"]), (&TRACE.into(), &PARENT.into()), "{span:#}");
        assert_eq!(span["spanId"].as_str().unwrap().len(), 16);
        assert!(time(span, "startTimeUnixNano") <= time(span, "endTimeUnixNano"), "{span:#}");
        assert_eq!(attribute(span, "walhook.webhook_id"), &webhook.to_string());
    }
    let named = |name: &str| found.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("{found:#?}"));
    let (published, called) = (named("walhook publish"), named("walhook deliver"));
    let stored = feed.messages().await;
    assert_eq!(attribute(published, "messaging.message.id"), stored[0].header("Nats-Msg-Id"));
    assert_eq!(attribute(published, "messaging.destination.name"), &stored[0].subject);
    assert_eq!(attribute(called, "http.response.status_code"), "200");
    assert_eq!(attribute(called, "messaging.message.id"), attribute(published, "messaging.message.id"));
    assert!(!format!("{all:?}").contains("hunter2"), "{all:#?}");
    assert!(time(called, "startTimeUnixNano") >= time(published, "startTimeUnixNano"));
}

#[tokio::test]
async fn a_collector_that_is_away_holds_up_nothing_and_an_endpoint_that_is_none_is_refused() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY, trace text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders', p_trace_column => 'trace')"));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut walhook = feed.streamer().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{closed}")).start();
    feed.pg.psql(&format!("INSERT INTO orders SELECT n, '00-{TRACE}-{PARENT}-01' FROM generate_series(1, 10000) n"));
    feed.stored(10_000).await;
    walhook.logged("send spans to the collector").await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let wrong = feed.command("run").env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://hunter2@c:4318").finish();
    assert!(wrong.code == Some(2) && !wrong.stderr.contains("hunter2"), "{wrong:?}");
}
