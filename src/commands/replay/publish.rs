//! Events published again into another stream.
//!
//! In: events in their order, from a stream or from the WAL. Out: what is wanted of them below the prefix, pipelined, each
//! acknowledged by the stream it is meant for; and every second a note of how far all is stored. A refusal ends it: what follows
//! a hole is not sent.

use std::time::Duration;

use async_nats::{HeaderMap, connection::State, jetstream};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use serde_json::{Map, Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_postgres::Client;

use super::{
    Bounds, failed,
    filter::{Filter, Verdict},
};
use crate::{
    commands::progress,
    error::{Error, Result},
    flow::event_id::EventPosition,
    nats::{
        control::{Control, REQUEST_TIMEOUT},
        owner::Owner,
        schemas::{self, Writer},
    },
    route::row_schema::RowSchema,
    wal::lsn::Lsn,
};

/// Messages in flight: beyond some hundred more bring nothing.
const WINDOW: usize = 512;
/// How often progress is noted.
const NOTE: Duration = Duration::from_secs(1);
/// How long a stream made for replays keeps them.
const KEPT_NS: u64 = 7 * 24 * 3600 * 1_000_000_000;

/// No row: it was cancelled.
const PROGRESS: &str = "UPDATE public.rule_cdc_replays SET events_sent = $2, progress = $3::text::jsonb, updated_at = now(), \
    first_lsn = coalesce(first_lsn, $4::text::pg_lsn), last_lsn = coalesce($5::text::pg_lsn, last_lsn) \
    WHERE replay_id = $1 AND status = 'running'";

/// Where messages go.
pub struct Destination {
    /// The stream's name.
    pub name: String,
    context: jetstream::Context,
    /// The JetStream domain it is in, where the configuration names one.
    domain: Option<String>,
    /// Where the schemas go that events name.
    schemas: Option<(Control, Writer)>,
}

impl Destination {
    /// Stream `name` on the server of `control`.
    pub fn new(control: &Control, name: String) -> Destination {
        let mut context = control.jetstream();
        context.set_timeout(REQUEST_TIMEOUT);
        Destination { name, context, domain: control.domain().map(str::to_owned), schemas: None }
    }

    /// The same; schemas that events name are stored by this connection.
    #[must_use]
    pub fn with_schemas(mut self, control: Control, writer: Writer) -> Destination {
        self.schemas = Some((control, writer));
        self
    }

    /// Stores a schema that events name, where it is not stored yet.
    ///
    /// # Errors
    /// It cannot be stored.
    pub async fn store_schema(&self, schema: &RowSchema) -> Result<()> {
        match &self.schemas {
            Some((control, writer)) => schemas::put(control, schema, writer).await,
            None => Ok(()),
        }
    }

    /// How large a message may be.
    pub fn max_payload(&self) -> usize {
        self.context.client().server_info().max_payload
    }
}

/// An event as it was published first.
pub struct Event<'e> {
    /// Where it stands.
    pub position: EventPosition,
    /// Its id.
    pub id: &'e str,
    /// Its subject.
    pub subject: &'e str,
    /// Its headers.
    pub headers: Option<&'e HeaderMap>,
    /// Its payload.
    pub payload: Bytes,
    /// Once it is stored, what comes before this place need not be read again.
    pub upto: u64,
}

/// What places in the progress are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// Sequences of a stream.
    Messages,
    /// LSNs.
    Wal,
}

/// What a copy is made by.
pub struct Order<'c> {
    /// The database.
    pub client: &'c Client,
    /// The replay's number.
    pub id: i64,
    /// What comes before the subjects.
    pub prefix: &'c str,
    /// Between which points.
    pub bounds: &'c Bounds,
    /// For whom.
    pub filter: &'c Filter,
    /// At most so many a second.
    pub rate: Option<u32>,
    /// What places are.
    pub places: Places,
}

/// See the module.
pub struct Copy<'c> {
    order: Order<'c>,
    /// Between which points.
    pub bounds: &'c Bounds,
    /// Events sent and stored, those of earlier runs included.
    pub sent: u64,
    /// Messages that do not tell their table.
    pub unknown: u64,
    /// Events that no server takes.
    pub impossible: u64,
    /// Events whose NATS configuration is not there any more.
    pub without_server: u64,
    /// How far each part is.
    progress: Map<String, Value>,
    shutdown: watch::Receiver<bool>,
    began: Instant,
    sent_now: u64,
    acks: FuturesOrdered<BoxFuture<'static, Answer>>,
    /// What lies before it and is wanted is stored.
    settled: u64,
    span: (Option<Lsn>, Option<Lsn>),
    noted: Instant,
    part: Part,
}

/// A stream, or the WAL.
struct Part {
    name: String,
    first: u64,
    end: u64,
    began: Instant,
}

type Answer = (u64, Lsn, Result<()>);

/// The stream that takes these subjects.
///
/// # Errors
/// JetStream cannot be asked.
pub async fn stream_for_subject(control: &Control, subjects: &str) -> Result<Option<String>> {
    let attempted = || format!("find the stream for {subjects}");
    match control.api("STREAM.NAMES", &json!({ "subject": subjects })).await? {
        Ok(answer) => Ok(answer["streams"][0].as_str().map(str::to_owned)),
        Err(error) => Err(Error::unavailable(attempted()).caused_by(error)),
    }
}

/// What a stream says of itself that was made for replays.
pub const REPLAY_STREAM: &str = "events that walhook has published again";

/// Makes a stream for replays.
///
/// # Errors
/// JetStream refuses.
pub async fn create(control: &Control, name: &str, subjects: &str, owner: &Owner) -> Result<()> {
    let mut config = json!({
        "name": name, "subjects": [subjects], "retention": "limits", "storage": "file", "max_age": KEPT_NS,
        "duplicate_window": 120_000_000_000_u64, "num_replicas": 1, "discard": "old",
        "description": REPLAY_STREAM
    });
    if let Some(config) = config.as_object_mut() {
        owner.sign(config);
    }
    match control.api(&format!("STREAM.CREATE.{name}"), &config).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::config(format!("create stream {name:?} for {subjects}")).caused_by(error)),
    }
}

impl<'c> Copy<'c> {
    /// Nothing sent yet but what earlier runs have.
    pub fn new(order: Order<'c>, sent: u64, progress: Map<String, Value>, shutdown: watch::Receiver<bool>) -> Copy<'c> {
        let now = Instant::now();
        Copy {
            bounds: order.bounds,
            order,
            sent,
            unknown: 0,
            impossible: 0,
            without_server: 0,
            progress,
            shutdown,
            began: now,
            sent_now: 0,
            acks: FuturesOrdered::new(),
            settled: 0,
            span: (None, None),
            noted: now,
            part: Part { name: String::new(), first: 0, end: 0, began: now },
        }
    }

    /// Turns true when it is to stop.
    pub fn shutdown(&self) -> watch::Receiver<bool> {
        self.shutdown.clone()
    }

    /// Goes on with another stream, from a place to the last one there is.
    pub fn begin(&mut self, name: &str, first: u64, last: u64) {
        self.settled = first;
        self.span = (None, None);
        self.part = Part { name: name.to_owned(), first, end: last.saturating_add(1), began: Instant::now() };
    }

    /// Sends an event if it is wanted.
    ///
    /// # Errors
    /// The connection takes nothing; an earlier one was refused.
    pub async fn offer(&mut self, to: &Destination, event: Event<'_>) -> Result<()> {
        let Event { position, id, subject, headers, payload, upto } = event;
        if !self.bounds.contain(&position) {
            return Ok(());
        }
        match self.order.filter.judge(&position, headers, &payload) {
            Verdict::Unwanted => return Ok(()),
            Verdict::Unknown => {
                self.unknown += 1;
                return Ok(());
            }
            Verdict::Wanted => {}
        }
        if to.context.client().connection_state() != State::Connected {
            return Err(Error::unavailable(format!("publish to stream {:?}: the connection to NATS is lost", to.name)));
        }
        if let Some(rate) = self.order.rate {
            sleep_until(self.began + Duration::from_secs_f64(self.sent_now as f64 / f64::from(rate))).await;
        }
        let subject = format!("{}.{subject}", self.order.prefix);
        let headers = self.headers(headers, id, to);
        let sending = to.context.publish_with_headers(subject.clone(), headers, payload);
        let ack = sending.await.map_err(|error| refused(&subject, &to.name, error))?;
        let (lsn, name, domain) = (position.commit_lsn, to.name.clone(), to.domain.clone());
        let stored = async move {
            let ack = ack.await.map_err(|error| refused(&subject, &name, error))?;
            match domain {
                Some(domain) if !ack.domain.is_empty() && ack.domain != domain => Err(another_domain(&subject, &name)),
                _ => Ok(()),
            }
        };
        self.acks.push_back(async move { (upto, lsn, stored.await) }.boxed());
        self.sent_now += 1;
        Ok(())
    }

    /// To be called between events: waits where too many are in flight, and notes now and then how far it is. All that lies
    /// before `place` was offered.
    ///
    /// # Errors
    /// The stream has refused one; progress cannot be noted; it was cancelled.
    pub async fn breathe(&mut self, place: u64) -> Result<()> {
        while self.acks.len() >= WINDOW {
            self.settle().await?;
        }
        if self.noted.elapsed() >= NOTE {
            self.noted = Instant::now();
            while let Some(done) = self.acks.next().now_or_never().flatten() {
                self.take(done)?;
            }
            if self.acks.is_empty() {
                self.settled = self.settled.max(place);
            }
            self.note().await?;
            self.show(place, false);
        }
        Ok(())
    }

    /// Waits for all that is in flight. `end`: that was all, up to there.
    ///
    /// # Errors
    /// As [`Copy::breathe`].
    pub async fn end(&mut self, end: Option<u64>) -> Result<()> {
        while !self.acks.is_empty() {
            self.settle().await?;
        }
        if let Some(end) = end {
            self.settled = self.settled.max(end);
            self.show(end, true);
        }
        self.note().await
    }

    /// The headers that the copy has: those of the message, but for what names its place in a stream.
    fn headers(&self, stored: Option<&HeaderMap>, id: &str, to: &Destination) -> HeaderMap {
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
        headers.insert("Nats-Msg-Id", format!("replay.{}:{id}", self.order.id));
        headers.insert("Nats-Expected-Stream", to.name.as_str());
        headers.insert("Walhook-Replay", self.order.id.to_string());
        headers.insert("Walhook-Replay-Of", id);
        headers
    }

    async fn settle(&mut self) -> Result<()> {
        match self.acks.next().await {
            Some(done) => self.take(done),
            None => Ok(()),
        }
    }

    fn take(&mut self, (upto, lsn, stored): Answer) -> Result<()> {
        stored?;
        self.sent += 1;
        self.settled = self.settled.max(upto);
        self.span = (self.span.0.or(Some(lsn)), Some(lsn));
        Ok(())
    }

    async fn note(&mut self) -> Result<()> {
        let place = match self.order.places {
            Places::Messages => self.settled.into(),
            Places::Wal => Lsn(self.settled).to_string().into(),
        };
        self.progress.insert(self.part.name.clone(), place);
        let text = Value::Object(self.progress.clone()).to_string();
        let sent = i64::try_from(self.sent).unwrap_or(i64::MAX);
        let (first, last) = (self.span.0.map(|lsn| lsn.to_string()), self.span.1.map(|lsn| lsn.to_string()));
        let id = self.order.id;
        let noted = self.order.client.execute(PROGRESS, &[&id, &sent, &text, &first, &last]).await;
        match noted.map_err(|error| failed("note how far the replay is", error))? {
            0 => {
                Err(Error::config("go on: it was cancelled").hint("SELECT * FROM rule_cdc_replays tells how far it is"))
            }
            _ => Ok(()),
        }
    }

    fn show(&self, place: u64, is_end: bool) {
        if progress::is_watched() {
            let Part { name, first, end, began } = &self.part;
            let (done, all) = (place.saturating_sub(*first), end.saturating_sub(*first));
            let left = progress::left(done, began.elapsed(), all.saturating_sub(done));
            progress::show(&format!("{name} {}  {} events sent{left}", progress::bar(done, all), self.sent), is_end);
        }
    }
}

fn another_domain(subject: &str, stream: &str) -> Error {
    Error::config(format!("publish {subject} to stream {stream:?}: a stream of another JetStream domain has answered"))
        .hint("two domains have a stream that takes this subject: choose another --subject-prefix")
}

fn refused(subject: &str, stream: &str, error: jetstream::context::PublishError) -> Error {
    use jetstream::context::PublishErrorKind as Kind;
    let attempted = format!("publish to {subject} of stream {stream:?}");
    match error.kind() {
        Kind::TimedOut | Kind::BrokenPipe => Error::unavailable(attempted).caused_by(error),
        Kind::StreamNotFound => Error::config(attempted)
            .caused_by(error)
            .hint("the stream takes only some of the subjects below the prefix: it wants <prefix>.>"),
        _ => Error::config(attempted).caused_by(error),
    }
}
