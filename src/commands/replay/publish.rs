//! Messages read from one stream and published again into another.
//!
//! In: an ordered consumer's messages from a sequence on. Out: the same below the prefix, pipelined, each acknowledged by the stream
//! it is meant for; and every second a note of how far all is stored. A refusal ends it: what follows a hole is not sent.

use std::{collections::BTreeSet, fmt, io::Write as _, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::{DeliverPolicy, pull::OrderedConfig},
    },
};
use futures_util::{StreamExt, stream::FuturesOrdered};
use serde_json::{Map, Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_postgres::Client;

use super::{Bounds, Source, failed};
use crate::{
    config::Config,
    error::{Error, Result},
    flow::event_id::EventPosition,
    nats::control::{Control, REQUEST_TIMEOUT},
    route::tables::Tables,
    wal::lsn::Lsn,
};

/// Messages in flight: beyond some hundred more bring nothing.
const WINDOW: usize = 512;
/// How often progress is noted.
const NOTE: Duration = Duration::from_secs(1);
/// Longest silence of a stream that has more.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a stream made for replays keeps them.
const KEPT_NS: u64 = 7 * 24 * 3600 * 1_000_000_000;

const PROGRESS: &str = "UPDATE public.rule_cdc_replays SET events_sent = $2, progress = $3::text::jsonb, updated_at = now(), \
    first_lsn = coalesce(first_lsn, $4::text::pg_lsn), last_lsn = coalesce($5::text::pg_lsn, last_lsn) WHERE replay_id = $1";

/// Which events are wanted.
pub struct Filter {
    /// Webhooks' ids; `None`: all.
    webhooks: Option<BTreeSet<i32>>,
    /// `schema.table`; `None`: all.
    tables: Option<BTreeSet<String>>,
}

enum Verdict {
    Wanted,
    Unwanted,
    /// It does not tell its table.
    Unknown,
}

/// Where messages go.
pub struct Target {
    /// The stream's name.
    pub name: String,
}

/// See the module.
pub struct Copy<'c> {
    pub config: &'c Config,
    pub client: &'c Client,
    pub id: i64,
    pub prefix: &'c str,
    pub bounds: &'c Bounds,
    pub filter: &'c Filter,
    pub rate: Option<u32>,
    /// Events sent and stored, those of earlier runs included.
    pub sent: u64,
    /// In this run.
    pub sent_now: u64,
    pub unknown: u64,
    pub progress: Map<String, Value>,
    pub shutdown: watch::Receiver<bool>,
    pub is_terminal: bool,
}

/// What a stream holds of what is wanted.
#[derive(Default)]
pub struct Found {
    events: u64,
    unknown: u64,
    bytes: u64,
    first: Option<(u64, Lsn)>,
    last: Option<(u64, Lsn)>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some((first, from)), Some((last, to))) = (self.first, self.last) else { return f.write_str("nothing") };
        write!(
            f,
            "{} events, {} bytes, from {from} (message {first}) to {to} (message {last})",
            self.events, self.bytes
        )?;
        if self.unknown > 0 {
            write!(f, "; {} more do not tell their table", self.unknown)?;
        }
        Ok(())
    }
}

impl Filter {
    /// # Errors
    /// There is no such webhook.
    pub fn new(rows: &Tables, webhooks: &[String], tables: &[String]) -> Result<Filter> {
        let mut ids = BTreeSet::new();
        for name in webhooks {
            // A deleted one's events are there still, and only its number is known.
            let known = rows.webhooks.iter().find(|(_, row)| row.name == *name).map(|(&id, _)| id);
            let Some(id) = known.or_else(|| name.parse().ok()) else {
                return Err(Error::config(format!("--webhook {name:?}: there is no webhook of that name"))
                    .hint("of one that was deleted, give its number"));
            };
            ids.insert(id);
        }
        let qualify = |table: &String| if table.contains('.') { table.clone() } else { format!("public.{table}") };
        Ok(Filter {
            webhooks: (!webhooks.is_empty()).then_some(ids),
            tables: (!tables.is_empty()).then(|| tables.iter().map(qualify).collect()),
        })
    }

    fn judge(&self, position: &EventPosition, headers: Option<&HeaderMap>, payload: &[u8]) -> Verdict {
        if self.webhooks.as_ref().is_some_and(|wanted| !wanted.contains(&position.webhook_id)) {
            return Verdict::Unwanted;
        }
        match &self.tables {
            None => Verdict::Wanted,
            Some(wanted) => match table_of(headers, payload) {
                Some(table) if wanted.contains(&table) => Verdict::Wanted,
                Some(_) => Verdict::Unwanted,
                None => Verdict::Unknown,
            },
        }
    }
}

/// The table that a message tells, in whichever format; `None` in `data`, which is the bare row.
fn table_of(headers: Option<&HeaderMap>, payload: &[u8]) -> Option<String> {
    if let Some(subject) = headers.and_then(|headers| headers.get("ce-subject")) {
        return Some(subject.as_str().to_owned());
    }
    let body: Value = serde_json::from_slice(payload).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if body["specversion"].is_string() {
        return text(&body["subject"]);
    }
    if body["source"]["connector"] == "postgresql" {
        return Some(format!("{}.{}", body["source"]["schema"].as_str()?, body["source"]["table"].as_str()?));
    }
    if body["event"]["lsn"].is_string() && body["webhook_id"].is_number() {
        return text(&body["event"]["table"]);
    }
    None
}

fn id_of(headers: Option<&HeaderMap>) -> Option<&str> {
    let headers = headers?;
    headers.get("Walhook-Id").or_else(|| headers.get("Nats-Msg-Id")).map(|id| id.as_str())
}

/// The stream's messages in its order from a sequence on.
async fn read(source: &Source, first: u64) -> Result<jetstream::consumer::pull::Ordered> {
    let attempted = || format!("read stream {:?} from message {first} on", source.stream());
    let context = jetstream::new(source.control.client().clone());
    let stream =
        context.get_stream(source.stream()).await.map_err(|error| Error::unavailable(attempted()).caused_by(error))?;
    let wanted = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: first },
        ..OrderedConfig::default()
    };
    let consumer = stream.create_consumer(wanted).await.map_err(|error| {
        Error::unavailable(attempted())
            .caused_by(error)
            .hint("this user must be allowed to create consumers: $JS.API.CONSUMER.CREATE and .MSG.NEXT")
    })?;
    consumer.messages().await.map_err(|error| Error::unavailable(attempted()).caused_by(error))
}

/// A message that was read, and its sequence; `None` behind `last`.
async fn next(
    messages: &mut jetstream::consumer::pull::Ordered,
    source: &Source,
    last: u64,
) -> Result<Option<(u64, jetstream::Message)>> {
    let attempted = || format!("read stream {:?}", source.stream());
    let message = timeout(PATIENCE, messages.next())
        .await
        .map_err(|_| Error::unavailable(format!("{}: silence for {} s", attempted(), PATIENCE.as_secs())))?;
    let Some(message) = message else { return Ok(None) };
    let message = message.map_err(|error| Error::unavailable(attempted()).caused_by(error))?;
    let sequence = message.info().map_err(|error| Error::protocol(attempted()).caused_by(error))?.stream_sequence;
    Ok((sequence <= last).then_some((sequence, message)))
}

/// Messages may be missing because somebody has deleted them; but not because the stream's limits were faster than we.
async fn check_gap(source: &Source, expected: u64) -> Result<()> {
    let state = source.state().await?;
    if state.first_sequence <= expected {
        return Ok(());
    }
    let gone = state.first_sequence - 1;
    Err(Error::config(format!(
        "read stream {:?}: its limits have removed messages {expected} to {gone} before they could be read",
        source.stream()
    ))
    .hint("raise its limits, or begin a replay --from a later point"))
}

/// Counts what is wanted.
///
/// # Errors
/// The stream cannot be read.
pub async fn count(
    source: &Source,
    feed: &str,
    first: u64,
    last: u64,
    bounds: &Bounds,
    filter: &Filter,
) -> Result<Found> {
    let mut found = Found::default();
    let mut messages = read(source, first).await?;
    while let Some((sequence, message)) = next(&mut messages, source, last).await? {
        let position = id_of(message.headers.as_ref()).and_then(|id| EventPosition::parse(id, feed));
        if let Some(position) = position {
            if bounds.end_before(&position) {
                break;
            }
            if bounds.contain(&position) {
                match filter.judge(&position, message.headers.as_ref(), &message.payload) {
                    Verdict::Unwanted => {}
                    Verdict::Unknown => found.unknown += 1,
                    Verdict::Wanted => {
                        found.events += 1;
                        found.bytes += message.payload.len() as u64;
                        found.last = Some((sequence, position.commit_lsn));
                        found.first = found.first.or(found.last);
                    }
                }
            }
        }
        if sequence == last {
            break;
        }
    }
    Ok(found)
}

/// The stream that takes these subjects.
///
/// # Errors
/// JetStream cannot be asked.
pub async fn taker(control: &Control, subjects: &str) -> Result<Option<String>> {
    let attempted = || format!("find the stream for {subjects}");
    match control.api("STREAM.NAMES", &json!({ "subject": subjects })).await? {
        Ok(answer) => Ok(answer["streams"][0].as_str().map(str::to_owned)),
        Err(error) => Err(Error::unavailable(attempted()).caused_by(error)),
    }
}

/// Makes a stream for replays.
///
/// # Errors
/// JetStream refuses.
pub async fn create(control: &Control, name: &str, subjects: &str) -> Result<()> {
    let config = json!({
        "name": name, "subjects": [subjects], "retention": "limits", "storage": "file", "max_age": KEPT_NS,
        "duplicate_window": 120_000_000_000_u64, "num_replicas": 1, "discard": "old",
        "description": "events that walhook has published again"
    });
    match control.api(&format!("STREAM.CREATE.{name}"), &config).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::config(format!("create stream {name:?} for {subjects}")).caused_by(error)),
    }
}

impl Copy<'_> {
    /// Sends what is wanted of a stream. Returns whether it was all, or else it was told to stop.
    ///
    /// # Errors
    /// The stream cannot be read, the other one refuses, or progress cannot be noted.
    pub async fn stream(&mut self, source: &Source, target: &Target, first: u64, last: u64) -> Result<bool> {
        let mut context = jetstream::new(source.control.client().clone());
        context.set_timeout(REQUEST_TIMEOUT);
        let mut acks = FuturesOrdered::new();
        let mut shutdown = self.shutdown.clone();
        let began = Instant::now();
        let mut noted = began;
        let mut span = (None, None);
        // What was read up to here and is wanted is stored.
        let mut settled = first;
        let mut is_whole = true;
        let mut expected = first;
        if first <= last {
            let mut messages = read(source, first).await?;
            loop {
                let read = tokio::select! {
                    biased;
                    _ = shutdown.wait_for(|stop| *stop) => { is_whole = false; None }
                    read = next(&mut messages, source, last) => read?,
                };
                let Some((sequence, message)) = read else { break };
                if sequence > expected {
                    check_gap(source, expected).await?;
                }
                expected = sequence + 1;
                let headers = message.headers.as_ref();
                let event =
                    id_of(headers).and_then(|id| Some((EventPosition::parse(id, &self.config.source)?, id.to_owned())));
                if let Some((position, id)) = event {
                    if self.bounds.end_before(&position) {
                        break;
                    }
                    let verdict = if self.bounds.contain(&position) {
                        self.filter.judge(&position, headers, &message.payload)
                    } else {
                        Verdict::Unwanted
                    };
                    match verdict {
                        Verdict::Unwanted => {}
                        Verdict::Unknown => self.unknown += 1,
                        Verdict::Wanted => {
                            if let Some(rate) = self.rate {
                                let due = self.sent_now as f64 / f64::from(rate);
                                sleep_until(began + Duration::from_secs_f64(due)).await;
                            }
                            let subject = format!("{}.{}", self.prefix, message.subject);
                            let headers = self.headers(headers, &id, target);
                            let sending =
                                context.publish_with_headers(subject.clone(), headers, message.payload.clone());
                            let ack = sending.await.map_err(|error| refused(&subject, target, error))?;
                            let lsn = position.commit_lsn;
                            acks.push_back(async move { (sequence, lsn, subject, ack.await) });
                            self.sent_now += 1;
                        }
                    }
                }
                while acks.len() >= WINDOW {
                    self.settle(&mut acks, target, &mut settled, &mut span).await?;
                }
                if noted.elapsed() >= NOTE {
                    noted = Instant::now();
                    while let Some(done) = futures_util::FutureExt::now_or_never(acks.next()).flatten() {
                        self.take(done, target, &mut settled, &mut span)?;
                    }
                    if acks.is_empty() {
                        settled = sequence + 1;
                    }
                    self.note(source, settled, &span).await?;
                    self.show(source, first, sequence, last, false);
                }
                if sequence == last {
                    break;
                }
            }
        }
        while !acks.is_empty() {
            self.settle(&mut acks, target, &mut settled, &mut span).await?;
        }
        if is_whole {
            settled = last + 1;
            self.show(source, first, last, last, true);
        }
        self.note(source, settled, &span).await?;
        Ok(is_whole)
    }

    /// The headers that the copy has: those of the message, but for what names its place in a stream.
    fn headers(&self, stored: Option<&HeaderMap>, id: &str, target: &Target) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, values) in stored.into_iter().flat_map(HeaderMap::iter) {
            let word: &str = name.as_ref();
            let is_place = matches!(word, "Walhook-Id" | "Walhook-Epoch" | "Walhook-Transaction");
            if !word.starts_with("Nats-") && !is_place {
                for value in values {
                    headers.append(name.clone(), value.clone());
                }
            }
        }
        // No id of an event has a colon, so nobody reads a position in it.
        headers.insert("Nats-Msg-Id", format!("replay.{}:{id}", self.id));
        headers.insert("Nats-Expected-Stream", target.name.as_str());
        headers.insert("Walhook-Replay", self.id.to_string());
        headers.insert("Walhook-Replay-Of", id);
        headers
    }

    async fn settle<F>(
        &mut self,
        acks: &mut FuturesOrdered<F>,
        target: &Target,
        settled: &mut u64,
        span: &mut (Option<Lsn>, Option<Lsn>),
    ) -> Result<()>
    where
        F: Future<Output = Answer>,
    {
        match acks.next().await {
            Some(done) => self.take(done, target, settled, span),
            None => Ok(()),
        }
    }

    fn take(
        &mut self,
        (sequence, lsn, subject, ack): Answer,
        target: &Target,
        settled: &mut u64,
        span: &mut (Option<Lsn>, Option<Lsn>),
    ) -> Result<()> {
        ack.map_err(|error| refused(&subject, target, error))?;
        self.sent += 1;
        *settled = sequence + 1;
        *span = (span.0.or(Some(lsn)), Some(lsn));
        Ok(())
    }

    async fn note(&mut self, source: &Source, settled: u64, span: &(Option<Lsn>, Option<Lsn>)) -> Result<()> {
        self.progress.insert(source.name.clone(), settled.into());
        let text = Value::Object(self.progress.clone()).to_string();
        let sent = i64::try_from(self.sent).unwrap_or(i64::MAX);
        let (first, last) = (span.0.map(|lsn| lsn.to_string()), span.1.map(|lsn| lsn.to_string()));
        let noted = self.client.execute(PROGRESS, &[&self.id, &sent, &text, &first, &last]).await;
        noted.map(drop).map_err(|error| failed("note how far the replay is", error))
    }

    /// A line that is written over, where somebody watches.
    fn show(&self, source: &Source, first: u64, at: u64, last: u64, is_end: bool) {
        if !self.is_terminal {
            return;
        }
        let (done, all) = (at + 1 - first.min(at), (last + 1).saturating_sub(first).max(1));
        let end = if is_end { "\n" } else { "" };
        let line = format!("\r\x1b[K{}: {:3} %, {} events sent{end}", source.name, done * 100 / all, self.sent);
        // Whether anybody sees it changes nothing.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

type Answer = (u64, Lsn, String, std::result::Result<jetstream::publish::PublishAck, jetstream::context::PublishError>);

fn refused(subject: &str, target: &Target, error: jetstream::context::PublishError) -> Error {
    use jetstream::context::PublishErrorKind as Kind;
    let attempted = format!("publish to {subject} of stream {:?}", target.name);
    match error.kind() {
        Kind::TimedOut | Kind::BrokenPipe => Error::unavailable(attempted).caused_by(error),
        Kind::StreamNotFound => Error::config(attempted)
            .caused_by(error)
            .hint("the stream takes only some of the subjects below the prefix: it wants <prefix>.>"),
        _ => Error::config(attempted).caused_by(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_tells_its_table_in_every_format_that_names_it() {
        let told = |body: &str| table_of(None, body.as_bytes());
        let webhook = r#"{"id":"s-1","webhook_id":1,"data":{},"event":{"lsn":"0/1","table":"public.orders"}}"#;
        assert_eq!(told(webhook).as_deref(), Some("public.orders"));
        let debezium = r#"{"source":{"connector":"postgresql","schema":"shop","table":"orders"}}"#;
        assert_eq!(told(debezium).as_deref(), Some("shop.orders"));
        let cloudevent = r#"{"specversion":"1.0","subject":"public.orders","data":{}}"#;
        assert_eq!(told(cloudevent).as_deref(), Some("public.orders"));
        let mut headers = HeaderMap::new();
        headers.insert("ce-subject", "public.orders");
        assert_eq!(table_of(Some(&headers), b"{}").as_deref(), Some("public.orders"));
        for bare in [r#"{"id":1}"#, r#"{"event":{"table":"x"}}"#, "[]", "no JSON", ""] {
            assert_eq!(told(bare), None, "{bare}");
        }
    }
}
