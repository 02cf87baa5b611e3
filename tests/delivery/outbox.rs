//! Rows of an outbox table at their receivers: the body as it is, its type, and the headers that come from columns.

#![allow(clippy::unwrap_used)]

use crate::support;

use support::{http::Http, last_mile::LastMile};

#[tokio::test]
async fn a_body_that_is_a_column_is_called_as_it_is_with_its_type_and_its_headers() {
    let mile = LastMile::start().await;
    let http = Http::ok();
    let id = mile.webhook("w", &http.url("/"));
    mile.sql(
        "UPDATE rule_webhooks SET payload_format = 'data', delivery_order = 'strict'; \
         CREATE TABLE bytes (n int PRIMARY KEY, body bytea NOT NULL, kind text, media text); \
         CREATE TABLE texts (n int PRIMARY KEY, body text NOT NULL); \
         CREATE TABLE documents (n int PRIMARY KEY, body json NOT NULL)",
    );
    mile.sql(&format!(
        "SELECT rule_webhook_link_table({id}, 'bytes', '{{insert}}', p_payload_column => 'body', p_message_id_column => 'n', \
             p_headers_columns => '{{\"eventType\": \"kind\", \"Host\": \"kind\", \"not(http)\": \"kind\", \"Content-Type\": \"media\"}}'), \
             rule_webhook_link_table({id}, t, '{{insert}}', p_payload_column => 'body') FROM unnest('{{texts,documents}}'::regclass[]) t"
    ));
    let mut worker = mile.worker().start();
    mile.sql("INSERT INTO bytes VALUES (1, '\\x00ff0a', 'Zahlung ä', NULL), (2, '\\x', 'b', 'image/png')");
    mile.sql("INSERT INTO texts VALUES (3, 'no \"json\"')");
    mile.sql("INSERT INTO documents VALUES (4, '{\"a\" : 1}')");
    let requests = http.received(4).await;
    let shown: Vec<_> = requests
        .iter()
        .map(|request| {
            let names = ["content-type", "walhook-message-id", "eventtype", "walhook-type"];
            (request.body.to_vec(), names.map(|name| request.header(name).to_owned()))
        })
        .collect();
    let expected = [
        (vec![0, 0xFF, 0x0A], ["application/octet-stream", "1", "Zahlung%20%C3%A4", "public.bytes.insert"]),
        (Vec::new(), ["image/png", "2", "b", "public.bytes.insert"]),
        (b"no \"json\"".to_vec(), ["text/plain; charset=utf-8", "", "", "public.texts.insert"]),
        (b"{\"a\" : 1}".to_vec(), ["application/json", "", "", "public.documents.insert"]),
    ];
    assert_eq!(shown, expected.map(|(body, headers)| (body, headers.map(str::to_owned))));
    for request in &requests {
        assert_eq!(request.header("host"), format!("127.0.0.1:{}", http.port()));
    }
    mile.eventually("SELECT count(*) FROM rule_webhook_calls WHERE status = 'success'", "4").await;
    assert_eq!(
        mile.sql("SELECT payload FROM rule_webhook_calls ORDER BY call_id"),
        "{\"$base64\": \"AP8K\"}\n\"\"\n\"no \\\"json\\\"\"\n{\"a\": 1}"
    );
    // What the webhook's row says of the type wins.
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    mile.sql("UPDATE rule_webhooks SET headers = '{\"Content-Type\": \"text/csv\"}'");
    let mut worker = mile.worker().start();
    mile.sql("INSERT INTO texts VALUES (5, 'a,b')");
    let last = http.received(5).await.remove(4);
    assert_eq!((&last.body[..], last.header("content-type")), (&b"a,b"[..], "text/csv"));
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}
