//! `walhook tail`: events as they pass, for a person or as JSON lines.
//!
//! In: the streams of this database, and which events are wanted. Out: those events, until Ctrl-C, until nobody reads any more, or
//! until so many were shown. Always: nobody else notices. A stream is read by an ephemeral ordered consumer, which acknowledges
//! nothing; one whose messages go with their acknowledgement (workqueue, interest) is read message by message without any
//! consumer, for there even a reader would take part.

use std::{collections::HashMap, future::pending, io, os::fd::AsFd as _, path::PathBuf, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::{DeliverPolicy, pull::OrderedConfig},
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::Args;
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::sleep,
};
use tokio_postgres::Client;

use super::{
    names,
    paint::{Paint, paint},
    replay::{Bounds, Feed, Filter, Point, Source, Verdict, control_that_returns, table_of},
    seal_keys,
};
use crate::{
    calendar::POSTGRES_EPOCH_US,
    config::Config,
    error::{Error, Kind, Result},
    files,
    flow::event_id::EventPosition,
    log,
    nats::control::Control,
    postgres::sql,
    route::{
        payload::write_timestamp,
        seal::{self, SealKeys, Unopened},
        subject,
        tables::Tables,
    },
    text,
};

/// Which events, and how they are shown.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only this webhook's events; may be repeated
    #[arg(long, value_name = "NAME")]
    webhook: Vec<String>,
    /// Only this table's events; may be repeated
    #[arg(long, value_name = "TABLE")]
    table: Vec<String>,
    /// Only subjects like this one, in which * stands for a token and > for the rest; may be repeated
    #[arg(long, value_name = "PATTERN")]
    subject: Vec<String>,
    /// Only from this stream; may be repeated
    #[arg(long, value_name = "NAME")]
    stream: Vec<String>,
    /// From here on: an LSN (0/16B3748), a commit time (2026-11-25 10:00+00) or an age (90s, 15m, 2h, 7d); by default from now on
    #[arg(long, value_name = "LSN|TIME")]
    since: Option<String>,
    /// Open sealed payloads with the key in this file, or with those in this folder; may be repeated
    #[arg(long, value_name = "FILE")]
    identity: Vec<PathBuf>,
    /// End after so many events
    #[arg(long, short = 'n', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// A JSON object a line
    #[arg(long)]
    json: bool,
    /// Whole payloads; by default a person sees the beginning
    #[arg(long)]
    full: bool,
}

/// How much of a payload a person sees.
const PAYLOAD_SHOWN: usize = 1000;
/// How often a stream that is read without a consumer is asked for more, and how long a lost connection is left alone.
const LOOK: Duration = Duration::from_millis(250);
/// Messages that wait to be shown, of all streams.
const WAITING_MAX: usize = 64;
/// JetStream's answer where there is no such message (yet).
const NO_MESSAGE: u64 = 10037;

/// A message of a stream.
struct Read {
    stream: String,
    sequence: u64,
    /// When the server stored it, as it writes it.
    stored: String,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

/// Shows events until there is a reason to stop.
///
/// # Errors
/// What is asked for is not there; a server cannot be asked, or refuses; a stream is another database's.
pub async fn tail(config: &Config, arguments: &Arguments, mut shutdown: watch::Receiver<bool>) -> Result<()> {
    let mut stop = shutdown.clone();
    tokio::select! {
        outcome = show(config, arguments, &mut stop) => outcome,
        // At whatever it is, connecting too.
        _ = shutdown.wait_for(|stop| *stop) => Ok(()),
    }
}

async fn show(config: &Config, arguments: &Arguments, shutdown: &mut watch::Receiver<bool>) -> Result<()> {
    for pattern in &arguments.subject {
        if let Some(why) = subject::invalid_pattern(pattern) {
            return Err(Error::config(format!("--subject {pattern:?}: {why}")));
        }
    }
    let (feed, client) = Feed::read(config).await?;
    check_tables(&client, &feed.tables, &arguments.table).await?;
    let filter = Filter::new(&feed.tables, &arguments.webhook, &[], SealKeys::default())?;
    let keys = identities(&arguments.identity)?;
    let since = match &arguments.since {
        Some(since) => Some(Point::parse(&client, "--since", since).await?),
        None => None,
    };
    let (sender, mut messages) = mpsc::channel(WAITING_MAX);
    let sources = sources(&feed, &client, config, arguments).await?;
    let mut controls: HashMap<&str, Control> = HashMap::new();
    for source in sources {
        let from = begin(&source, config, since).await?;
        let config_name = source.name.rsplit_once('/').map_or("", |(name, _)| name);
        let row = feed.tables.configs.values().find(|row| row.config_name == config_name);
        let control = match row.and_then(|row| controls.get(row.config_name.as_str())) {
            Some(control) => control.clone(),
            None => match row {
                Some(row) => {
                    let control = control_that_returns(config, row).await?;
                    controls.insert(&row.config_name, control.clone());
                    control
                }
                None => source.control.clone(),
            },
        };
        let is_taken_by_acks = source.state().await?.retention != "limits";
        let reader = Reader { control, stream: source.stream().to_owned(), next: from, sender: sender.clone() };
        tokio::spawn(async move { if is_taken_by_acks { reader.ask().await } else { reader.follow().await } });
    }
    drop(sender);
    drop(client);
    let bounds = since.map(|from| Bounds { from, to: None });
    let mut left = arguments.limit;
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            () = reader_gone() => return Ok(()),
            _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
        };
        let Some(mut message) = message else { return Ok(()) };
        let seal = open(&mut message, &keys);
        let Some(event) = wanted(&message, config, arguments, &filter, bounds.as_ref()) else { continue };
        let answer = if arguments.json {
            text::json(&format!("{}\n", as_json(&message, &event, &seal, &feed.tables))).into_owned()
        } else {
            pretty(&message, &event, &seal, &feed.tables, arguments.full)
        };
        // A reader who takes nothing for a while must not keep Ctrl-C from ending it.
        let mut writing = spawn_blocking(move || super::offer(answer.as_bytes()));
        let is_read = tokio::select! {
            written = &mut writing => written.map_err(|error| Error::protocol("write to standard output").caused_by(error))??,
            _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
        };
        left = left.map(|left| left - 1);
        if !is_read || left == Some(0) {
            return Ok(());
        }
    }
}

/// The streams that are read.
async fn sources(feed: &Feed, client: &Client, config: &Config, arguments: &Arguments) -> Result<Vec<Source>> {
    let is_chosen = |stream: &str| arguments.stream.is_empty() || arguments.stream.iter().any(|name| name == stream);
    let sources = feed.sources(client, config, |_, stream| is_chosen(stream)).await?;
    for name in &arguments.stream {
        if !sources.iter().any(|source| source.stream() == name) {
            let all = feed.sources(client, config, |_, _| true).await?;
            return Err(Error::config(format!("--stream {name:?}: no configuration of this feed publishes into it"))
                .hint(format!("{}`walhook status` names them", names::nearest(name, all.iter().map(Source::stream)))));
        }
    }
    let (mut there, mut missing) = (Vec::new(), None);
    for source in sources {
        match source.state().await {
            Ok(_) => there.push(source),
            // `walhook run` makes it when it starts.
            Err(error) if error.kind() == Kind::Config => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if there.is_empty() => Err(error),
        Some(error) => {
            log::line(&format!("walhook tail: {}", error.reason()));
            Ok(there)
        }
        None if there.is_empty() => Err(Error::config("show events: no configuration publishes into a stream")
            .hint("walhook tail reads streams only; to see events that go to core NATS: nats subscribe SUBJECT")),
        None => Ok(there),
    }
}

/// Tables that no link names and that are not there are mistyped; those that were linked once may have events still.
async fn check_tables(client: &Client, rows: &Tables, tables: &[String]) -> Result<()> {
    for table in tables {
        let is_linked = rows.links.values().any(|link| {
            *table == format!("{}.{}", link.table_schema, link.table_name)
                || (link.table_schema == "public" && *table == link.table_name)
        });
        if is_linked {
            continue;
        }
        let qualified = if table.contains('.') { table.clone() } else { format!("public.{table}") };
        let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                     WHERE n.nspname || '.' || c.relname = $1)";
        let row = client.query_one(there, &[&qualified]).await;
        if row.map_err(|error| sql::error("look for the table", error))?.get::<_, bool>(0) {
            log::line(&format!(
                "walhook tail: no webhook is linked to {table} now; events of an earlier link are shown"
            ));
            continue;
        }
        let linked: Vec<_> =
            rows.links.values().map(|link| format!("{}.{}", link.table_schema, link.table_name)).collect();
        return Err(Error::config(format!("--table {table:?}: there is no such table, and no link names it")).hint(
            format!(
                "{}SELECT DISTINCT table_schema, table_name FROM rule_webhook_links; names those that are linked",
                names::nearest(table, linked.iter().map(String::as_str))
            ),
        ));
    }
    Ok(())
}

/// From which message on a stream is read.
async fn begin(source: &Source, config: &Config, since: Option<Point>) -> Result<u64> {
    let state = source.state().await?;
    let Some(from) = since else { return Ok(state.last_sequence + 1) };
    match source.begin(&config.source, &Bounds { from, to: None }, &state).await {
        Ok(begin) => Ok(begin.map_or(state.last_sequence + 1, |begin| begin.sequence)),
        // It does not reach back so far: what it has is shown all the same.
        Err(error) if error.kind() == Kind::Config => {
            log::line(&format!("walhook tail: {}", error.reason()));
            Ok(state.first_sequence)
        }
        Err(error) => Err(error),
    }
}

/// Reads a stream for whoever shows it.
struct Reader {
    control: Control,
    stream: String,
    next: u64,
    sender: mpsc::Sender<Read>,
}

impl Reader {
    /// By an ordered consumer, which is made again where it or the connection was lost.
    async fn follow(mut self) {
        let mut said = String::new();
        while !self.sender.is_closed() {
            let Err(error) = self.follow_once().await else { return };
            let what = error.to_string();
            if what != said {
                log::line(&format!("walhook tail: {what}; trying again"));
                said = what;
            }
            sleep(LOOK).await;
        }
    }

    async fn follow_once(&mut self) -> Result<()> {
        let attempted = format!("read stream {:?} from message {} on", self.stream, self.next);
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::unavailable(&*attempted).caused_by(error);
        let context = jetstream::new(self.control.client().clone());
        let stream = context.get_stream(&self.stream).await.map_err(|error| failed(error.into()))?;
        let settings = OrderedConfig {
            description: Some("walhook tail".to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next.max(1) },
            ..OrderedConfig::default()
        };
        let consumer = stream.create_consumer(settings).await.map_err(|error| {
            failed(error.into()).hint(
                "this user must be allowed to create consumers and to read by them: $JS.API.CONSUMER.CREATE.> and \
                 $JS.API.CONSUMER.MSG.NEXT.>",
            )
        })?;
        let mut messages = consumer.messages().await.map_err(|error| failed(error.into()))?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| failed(error.into()))?;
            let info = message.info().map_err(failed)?;
            let (sequence, stored) = (info.stream_sequence, written(info.published.unix_timestamp_nanos()));
            self.next = sequence + 1;
            let read = Read {
                stream: self.stream.clone(),
                sequence,
                stored,
                subject: message.subject.to_string(),
                headers: message.headers.clone().unwrap_or_default(),
                payload: message.payload.clone(),
            };
            if self.sender.send(read).await.is_err() {
                return Ok(());
            }
        }
        Err(Error::unavailable(format!("{attempted}: the consumer is gone")))
    }

    /// By asking for one message after the other: no consumer, and nothing that the stream would notice.
    async fn ask(mut self) {
        let mut said = String::new();
        while !self.sender.is_closed() {
            let request = json!({ "seq": self.next.max(1), "next_by_subj": ">" });
            let error = match self.control.api(&format!("STREAM.MSG.GET.{}", self.stream), &request).await {
                Ok(Ok(answer)) => {
                    match stored(&self.stream, &answer["message"]) {
                        Some(read) => {
                            self.next = read.sequence + 1;
                            if self.sender.send(read).await.is_err() {
                                return;
                            }
                        }
                        None => self.next += 1,
                    }
                    continue;
                }
                Ok(Err(error)) if error.err_code == NO_MESSAGE => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(what) = error.filter(|what| *what != said) {
                log::line(&format!("walhook tail: read stream {:?}: {what}; trying again", self.stream));
                said = what;
            }
            sleep(LOOK).await;
        }
    }
}

/// A message as JetStream's API answers with it.
fn stored(stream: &str, message: &Value) -> Option<Read> {
    let bytes = |key: &str| message[key].as_str().map_or(Some(Vec::new()), |text| STANDARD.decode(text).ok());
    let mut headers = HeaderMap::new();
    let block = bytes("hdrs")?;
    for line in String::from_utf8_lossy(&block).lines().skip(1) {
        if let Some((name, value)) = line.split_once(':')
            && let Ok(name) = name.parse::<async_nats::HeaderName>()
        {
            headers.append(name, value.trim());
        }
    }
    Some(Read {
        stream: stream.to_owned(),
        sequence: message["seq"].as_u64()?,
        stored: message["time"].as_str().unwrap_or_default().to_owned(),
        subject: message["subject"].as_str()?.to_owned(),
        headers,
        payload: bytes("data")?.into(),
    })
}

/// Nanoseconds since 1970 as events write times.
fn written(nanos: i128) -> String {
    let mut time = String::new();
    write_timestamp(i64::try_from(nanos / 1000 - i128::from(POSTGRES_EPOCH_US)).unwrap_or(i64::MAX), &mut time);
    time
}

/// An event, as far as its message tells.
struct Event<'m> {
    position: EventPosition,
    id: &'m str,
    op: &'m str,
    table: Option<String>,
    /// Where its payload is, if it is too large for a message.
    object: Option<&'m str>,
}

impl Read {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }
}

/// Whether a payload was sealed.
enum Seal {
    None,
    /// By this key, and is opened.
    Opened(String),
    /// And cannot be opened.
    Closed(String),
}

/// Opens a payload that is sealed. That of a claim check is elsewhere.
fn open(message: &mut Read, keys: &SealKeys) -> Seal {
    let Some(header) = message.header(seal::HEADER).map(str::to_owned) else { return Seal::None };
    let key = seal::Header::parse(&header).map(|header| header.key.to_owned());
    if message.header("Walhook-Object").is_some() {
        return Seal::Closed(key.map_or_else(|why| why, |key| format!("with the key {key}")));
    }
    match keys.open(&header, &message.payload) {
        Ok(payload) => {
            message.payload = payload.into();
            Seal::Opened(key.unwrap_or_default())
        }
        Err(Unopened::NoKey(_)) => {
            Seal::Closed(key.map_or_else(|why| why, |key| format!("with the key {key}; --identity FILE opens it")))
        }
        Err(Unopened::Invalid(why)) => Seal::Closed(why),
    }
}

/// The keys in files and folders.
fn identities(paths: &[PathBuf]) -> Result<SealKeys> {
    let mut keys = SealKeys::default();
    for path in paths {
        let failed = |why: String| Error::config(format!("read the key of --identity {}: {why}", files::shown(path)));
        if path.is_dir() {
            keys = keys.and(&seal_keys::in_folder("--identity", path).map_err(failed)?);
            continue;
        }
        let content = files::read_private("--identity", path)?;
        keys = keys.with_file(&content).map_err(failed)?;
    }
    Ok(keys)
}

/// The event, if it is one of this feed that is wanted.
fn wanted<'m>(
    message: &'m Read,
    config: &Config,
    arguments: &Arguments,
    filter: &Filter,
    bounds: Option<&Bounds>,
) -> Option<Event<'m>> {
    let id = message.header("Walhook-Id").or_else(|| message.header("Nats-Msg-Id"))?;
    let position = EventPosition::parse(id, &config.source)?;
    let is_like = |pattern: &String| subject::matches(pattern.as_bytes(), message.subject.as_bytes());
    if !arguments.subject.is_empty() && !arguments.subject.iter().any(is_like) {
        return None;
    }
    if bounds.is_some_and(|bounds| !bounds.contain(&position)) {
        return None;
    }
    if !matches!(filter.judge(&position, None, &[]), Verdict::Wanted) {
        return None;
    }
    // Where the payload is the bare row, a header names the table.
    let by_header = message.header("Walhook-Type").and_then(|kind| Some(decoded(kind.rsplit_once('.')?.0)));
    let table =
        by_header.filter(|table| table.contains('.')).or_else(|| table_of(Some(&message.headers), &message.payload));
    let is_its = |wanted: &String| {
        let qualified = if wanted.contains('.') { wanted.clone() } else { format!("public.{wanted}") };
        table.as_ref() == Some(&qualified)
    };
    if !arguments.table.is_empty() && !arguments.table.iter().any(is_its) {
        return None;
    }
    Some(Event {
        position,
        id,
        op: message.header("Walhook-Op").unwrap_or_default(),
        table,
        object: message.header("Walhook-Object"),
    })
}

/// A header's value without its percent signs.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => bytes.extend_from_slice(format!("%{part}").as_bytes()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn webhook_name(rows: &Tables, id: i32) -> Option<&str> {
    rows.webhooks.get(&id).map(|row| row.name.as_str())
}

fn as_json(message: &Read, event: &Event<'_>, seal: &Seal, rows: &Tables) -> Value {
    let headers: Map<String, Value> = message
        .headers
        .iter()
        .filter_map(|(name, values)| Some((name.to_string(), values.first()?.as_str().into())))
        .collect();
    let mut commit_time = String::new();
    write_timestamp(event.position.commit_time, &mut commit_time);
    let mut line = json!({
        "stream": message.stream,
        "sequence": message.sequence,
        "stored_at": message.stored,
        "subject": message.subject,
        "event_id": event.id,
        "op": event.op,
        "table": event.table,
        "webhook_id": event.position.webhook_id,
        "webhook": webhook_name(rows, event.position.webhook_id),
        "commit_lsn": event.position.commit_lsn.to_string(),
        "commit_time": commit_time,
        "headers": headers,
        "object": event.object,
    });
    match seal {
        Seal::None => {}
        Seal::Opened(key) => line["sealed"] = json!({ "key": key, "opened": true }),
        Seal::Closed(why) => line["sealed"] = json!({ "opened": false, "why": why }),
    }
    match serde_json::from_slice::<Value>(&message.payload) {
        Ok(payload) => line["payload"] = payload,
        Err(_) => line["payload_base64"] = STANDARD.encode(&message.payload).into(),
    }
    line
}

fn pretty(message: &Read, event: &Event<'_>, seal: &Seal, rows: &Tables, is_whole: bool) -> String {
    let mut commit_time = String::new();
    write_timestamp(event.position.commit_time, &mut commit_time);
    let id = event.position.webhook_id;
    let webhook =
        webhook_name(rows, id).map_or_else(|| format!("webhook {id}"), |name| text::one_line(name).into_owned());
    let what = match &event.table {
        Some(table) => format!("{} {}", event.op, text::one_line(table)),
        None => event.op.to_owned(),
    };
    let payload = match (event.object, seal) {
        (Some(object), _) => format!("large: the payload is in the object store, as {}", text::one_line(object)),
        (None, Seal::Closed(why)) => format!("sealed: {}", text::one_line(why)),
        (None, _) => {
            let payload = String::from_utf8_lossy(&message.payload);
            let shown = if is_whole { usize::MAX } else { PAYLOAD_SHOWN };
            text::one_line_of(&payload, shown).into_owned()
        }
    };
    let colour = match event.op {
        "insert" => Paint::Good,
        "delete" | "truncate" => Paint::Bad,
        _ => Paint::Doubtful,
    };
    format!(
        "{} {} for {}\n    {}\n    {payload}\n",
        paint(&commit_time, Paint::Faint),
        paint(&text::one_line(&what), colour),
        paint(&webhook, Paint::Strong),
        paint(
            &format!(
                "{} in {} #{}, {}",
                text::one_line(&message.subject),
                message.stream,
                message.sequence,
                event.position.commit_lsn
            ),
            Paint::Faint
        ),
    )
}

/// Ends when nobody reads standard output any more, if that is a pipe or a socket; also while there is nothing to write.
pub async fn reader_gone() {
    let Ok(descriptor) = io::stdout().as_fd().try_clone_to_owned() else { return pending().await };
    // A file cannot be watched, and needs not be. What replaces this is unsafe for descriptors that others may close; nobody else
    // has this one.
    #[allow(deprecated, reason = "its replacement is an unsafe function, and this crate has no unsafe code")]
    let Ok(watched) = AsyncFd::with_interest(descriptor, Interest::ERROR) else { return pending().await };
    if watched.ready(Interest::ERROR).await.is_err() {
        pending().await
    }
}
