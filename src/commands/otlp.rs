//! Spans of events and of webhooks' requests, sent to an OpenTelemetry collector (feature `otlp`).
//!
//! In: what was acknowledged or called and carries a sampled `traceparent`; the environment variables of OpenTelemetry. Out: OTLP over
//! HTTP, as JSON (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>). What always holds: nobody waits for the collector; at most
//! [`WAITING_MAX`] spans wait, more are left out and counted; nothing is done where no endpoint is named.
//!
//! By hand, on hyper, which is here: opentelemetry-otlp brings some forty crates, with a client of HTTP and a protobuf of its own.

use std::{
    fmt::Write as _,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    calendar::POSTGRES_EPOCH_US,
    deliver::{message::Call, schedule::Outcome, webhook::Webhook},
    error::{Error, Result},
    flow::lane::Traced,
    percent,
    route::shown_url::shown_url,
};

/// Spans that wait for the collector.
const WAITING_MAX: usize = 4096;
/// Spans in one request.
const TOGETHER: usize = 512;
/// How long spans are gathered for one request.
const GATHER: Duration = Duration::from_millis(500);
/// How long one request may take.
const WITHIN: Duration = Duration::from_secs(5);
/// How long the end of the process waits for the last spans.
const AT_THE_END: Duration = Duration::from_secs(2);

static SENDER: OnceLock<mpsc::Sender<Value>> = OnceLock::new();
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Sends spans until it is finished.
pub struct Exporter {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Where to send them.
struct Endpoint {
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
    service: String,
}

/// Begins to send, where `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector.
///
/// # Errors
/// An endpoint that cannot be one.
pub fn start() -> Result<Option<Exporter>> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(endpoint) = Endpoint::of(variable)? else { return Ok(None) };
    let (sender, spans) = mpsc::channel(WAITING_MAX);
    let (stop, stopped) = oneshot::channel();
    SENDER.get_or_init(|| sender);
    tracing::info!(host = endpoint.host, port = endpoint.port, "spans go to an OpenTelemetry collector");
    Ok(Some(Exporter { stop, task: tokio::spawn(export(endpoint, spans, stopped)) }))
}

impl Exporter {
    /// Sends what waits still, but not for long.
    pub async fn finish(self) {
        let _ = self.stop.send(());
        let _ = timeout(AT_THE_END, self.task).await;
    }
}

impl Endpoint {
    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Endpoint>> {
        let whole = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let base = variable("OTEL_EXPORTER_OTLP_ENDPOINT");
        let Some(text) = whole.or_else(|| base.map(|base| format!("{}/v1/traces", base.trim_end_matches('/')))) else {
            return Ok(None);
        };
        // It may hold a secret: it is not quoted.
        let wrong = || {
            Error::config("the endpoint of OpenTelemetry (OTEL_EXPORTER_OTLP_ENDPOINT) cannot be one").hint(
                "name a collector by http://HOST:4318; walhook speaks HTTP without TLS to it: put a collector beside walhook, which \
                 passes spans on by TLS",
            )
        };
        let url = url::Url::parse(&text).map_err(|_| wrong())?;
        let (Some(host), "http") = (url.host_str(), url.scheme()) else { return Err(wrong()) };
        let pairs = variable("OTEL_EXPORTER_OTLP_TRACES_HEADERS").or_else(|| variable("OTEL_EXPORTER_OTLP_HEADERS"));
        let pairs = pairs.unwrap_or_default();
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=')?;
            Some((name.trim().to_owned(), percent::decode(value.trim()).unwrap_or_else(|| value.trim().to_owned())))
        };
        Ok(Some(Endpoint {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port_or_known_default().unwrap_or(4318),
            path: url.path().to_owned(),
            headers: pairs.split(',').filter_map(pair).collect(),
            service: variable("OTEL_SERVICE_NAME").unwrap_or_else(|| "walhook".to_owned()),
        }))
    }

    async fn send(&self, spans: Vec<Value>) -> Result<()> {
        let attempted = || format!("send spans to the collector at {}:{}", self.host, self.port);
        let attribute = |key: &str, value: &str| json!({ "key": key, "value": { "stringValue": value } });
        let resource =
            [attribute("service.name", &self.service), attribute("service.version", env!("CARGO_PKG_VERSION"))];
        let body = json!({ "resourceSpans": [ {
            "resource": { "attributes": resource },
            "scopeSpans": [ { "scope": { "name": "walhook", "version": env!("CARGO_PKG_VERSION") }, "spans": spans } ],
        } ] });
        let failed = |error: hyper::Error| Error::unavailable(attempted()).caused_by(error);
        let exchange = async {
            let socket = TcpStream::connect((self.host.as_str(), self.port)).await;
            let socket = socket.map_err(|error| Error::unavailable(attempted()).caused_by(error))?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(failed)?;
            let connection = tokio::spawn(connection);
            let mut request = Request::post(&self.path)
                .header(header::HOST, format!("{}:{}", self.host, self.port))
                .header(header::CONTENT_TYPE, "application/json");
            for (name, value) in &self.headers {
                request = request.header(name, value);
            }
            let request = request.body(Full::new(Bytes::from(body.to_string())));
            let request = request.map_err(|error| Error::config(attempted()).caused_by(error))?;
            let answer = sender.send_request(request).await.map_err(failed)?;
            let status = answer.status();
            let _ = answer.into_body().collect().await;
            connection.abort();
            match status.is_success() {
                true => Ok(()),
                false => Err(Error::unavailable(format!("{}: it answers {status}", attempted()))),
            }
        };
        timeout(WITHIN, exchange).await.unwrap_or_else(|_| {
            Err(Error::unavailable(format!("{}: no answer within {} s", attempted(), WITHIN.as_secs())))
        })
    }
}

async fn export(endpoint: Endpoint, mut spans: mpsc::Receiver<Value>, mut stopped: oneshot::Receiver<()>) {
    let mut said = String::new();
    loop {
        let mut together = Vec::new();
        let is_end = tokio::select! {
            biased;
            _ = spans.recv_many(&mut together, TOGETHER) => false,
            _ = &mut stopped => true,
        };
        if !is_end {
            tokio::select! {
                () = sleep(GATHER) => {}
                _ = &mut stopped => {}
            }
        }
        while together.len() < TOGETHER
            && let Ok(span) = spans.try_recv()
        {
            together.push(span);
        }
        if !together.is_empty() {
            let outcome = endpoint.send(together).await;
            let left_out = LEFT_OUT.swap(0, Ordering::Relaxed);
            if left_out > 0 {
                tracing::warn!("dropped {left_out} spans: the collector is too slow");
            }
            // Spans that are not taken are lost: they hold up nothing.
            let text = outcome.err().map(|error| error.to_string()).unwrap_or_default();
            if !text.is_empty() && text != said {
                tracing::warn!("{text}");
            }
            said = text;
        }
        if is_end || stopped.is_terminated() {
            while !spans.is_empty() && said.is_empty() {
                let mut rest = Vec::new();
                spans.recv_many(&mut rest, TOGETHER).await;
                if let Err(error) = endpoint.send(rest).await {
                    said = error.to_string();
                }
            }
            return;
        }
    }
}

/// A span below what a `traceparent` names, if that is sampled.
fn span(traceparent: &str, name: &str, kind: u8, times: (i128, i128), attributes: &[(&str, Value)]) -> Option<Value> {
    let (trace, parent, flags) = (traceparent.get(3..35)?, traceparent.get(36..52)?, traceparent.get(53..55)?);
    if u8::from_str_radix(flags, 16).ok()? & 1 == 0 {
        return None;
    }
    let mut id = String::new();
    let _ = write!(id, "{:016x}", fastrand::u64(1..));
    let attributes: Vec<Value> = attributes
        .iter()
        .map(|(key, value)| {
            let value = match value {
                Value::Number(number) => json!({ "intValue": number.to_string() }),
                Value::String(text) => json!({ "stringValue": text }),
                other => json!({ "stringValue": other.to_string() }),
            };
            json!({ "key": key, "value": value })
        })
        .collect();
    Some(json!({
        "traceId": trace, "spanId": id, "parentSpanId": parent, "name": name, "kind": kind,
        "startTimeUnixNano": times.0.to_string(), "endTimeUnixNano": times.1.to_string(), "attributes": attributes,
    }))
}

fn push(span: Value) {
    if SENDER.get().is_some_and(|sender| sender.try_send(span).is_err()) {
        LEFT_OUT.fetch_add(1, Ordering::Relaxed);
    }
}

/// An event that a stream has acknowledged: from its commit to the ack.
pub fn acknowledged(traced: &Traced, source: &str, stream: &str) {
    if SENDER.get().is_none() {
        return;
    }
    let nanos = |micros: i64| i128::from(micros + POSTGRES_EPOCH_US) * 1000;
    let times = (nanos(traced.position.commit_time), nanos(traced.acked));
    let attributes = [
        ("messaging.system", "nats".into()),
        ("messaging.operation.type", "send".into()),
        ("messaging.destination.name", traced.subject.as_str().into()),
        ("messaging.message.id", traced.position.id(source).into()),
        ("walhook.stream", stream.into()),
        ("walhook.webhook_id", traced.position.webhook_id.into()),
        ("walhook.commit_lsn", traced.position.commit_lsn.to_string().into()),
    ];
    // 4: a producer.
    if let Some(span) = span(&traced.traceparent, "walhook publish", 4, times, &attributes) {
        push(span);
    }
}

/// A request of a webhook: from its beginning to the end of the answer.
pub fn called(webhook: &Webhook, call: &Call<'_>, outcome: &Outcome, (started, took): (SystemTime, Duration)) {
    if SENDER.get().is_none() {
        return;
    }
    let is_ours = |name: &&String| name.eq_ignore_ascii_case(crate::route::trace::TRACEPARENT);
    let Some(traceparent) = call.headers.keys().find(is_ours).map(|name| &call.headers[name]) else { return };
    let nanos = |time: SystemTime| {
        i128::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(i128::MAX)
    };
    let times = (nanos(started), nanos(started + took));
    let mut attributes = vec![
        ("http.request.method", Value::from(webhook.method.as_str())),
        ("url.full", shown_url(&webhook.url).into_owned().into()),
        ("messaging.message.id", call.event_id.as_ref().into()),
        ("walhook.webhook_id", webhook.webhook_id.into()),
    ];
    let failure = match outcome {
        Outcome::Answered { status, .. } => {
            attributes.push(("http.response.status_code", (*status).into()));
            (!matches!(status, 200..=299)).then(|| format!("the receiver answers {status}"))
        }
        Outcome::Unanswered(why) | Outcome::NotSent(why) => Some(why.clone()),
    };
    // 3: a client.
    if let Some(mut span) = span(traceparent, "walhook deliver", 3, times, &attributes) {
        if let Some(failure) = failure {
            span["status"] = json!({ "code": 2, "message": failure });
        }
        push(span);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_that_of_opentelemetrys_variables() {
        let endpoint = |pairs: &[(&str, &str)]| {
            let variable =
                |name: &str| pairs.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
            Endpoint::of(variable).map(|endpoint| {
                endpoint.map(|endpoint| (endpoint.host, endpoint.port, endpoint.path, endpoint.headers.len()))
            })
        };
        assert_eq!(endpoint(&[]).unwrap(), None);
        let (base, whole) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let of = |host: &str, port, path: &str, headers| Some((host.to_owned(), port, path.to_owned(), headers));
        assert_eq!(endpoint(&[(base, "http://c:4318/")]).unwrap(), of("c", 4318, "/v1/traces", 0));
        assert_eq!(endpoint(&[(base, "http://c"), (whole, "http://[::1]:9/x")]).unwrap(), of("::1", 9, "/x", 0));
        let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,c=d%20e");
        assert_eq!(endpoint(&[(base, "http://c"), headers]).unwrap(), of("c", 80, "/v1/traces", 2));
        for wrong in ["c:4318", "https://c", "grpc://secret@c", "nothing"] {
            let error = endpoint(&[(base, wrong)]).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn only_a_sampled_trace_gets_a_span() {
        let of = |flags: &str| {
            span(&format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}"), "x", 4, (1, 2), &[])
        };
        assert!(of("00").is_none() && of("02").is_none());
        let span = of("03").unwrap();
        assert_eq!(span["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((&span["parentSpanId"], &span["endTimeUnixNano"]), (&json!("00f067aa0ba902b7"), &json!("2")));
    }
}
