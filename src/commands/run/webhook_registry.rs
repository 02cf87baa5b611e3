//! What the streamer does for workers, off the way of a change: the bucket of webhooks, and the consumers that are to be
//! there.
//!
//! In: the configuration, whenever it has changed at a commit, and the lanes' connections for the JetStream API. Out: in the NATS of every configuration the bucket
//! `walhook_<source>` with an entry for each webhook that publishes there, without secrets, and the mark of this run; and the durable pull
//! consumers that the streams' rows name. Always holds: nobody waits for it, and what goes wrong here is told and tried
//! again later; but a bucket that a newer run or a copy of this database writes ends the session.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, jetstream::kv::Operation};
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::{JoinHandle, yield_now},
    time::{Instant, sleep_until, timeout},
};

use super::lanes::Lanes;
use crate::{
    commands::{
        backoff::Backoff,
        bucket::{self, MARK, Place},
        identity::{Mark, Runs},
        log_once::LogOnce,
        notices::{Notices, Targets},
        presence::{Presence, ThisRun},
    },
    deliver::webhook::{self, Credentials},
    error::{Error, Kind, Result},
    flow::streamer::Streamer,
    nats::{
        ack::Ack,
        codes::named::WRONG_LAST_SEQUENCE,
        control::{self, Control},
        owner::Claim,
        streams,
    },
    route::{
        streams::{most_replicas, streams_of_all},
        tables::{ConfigRow, StreamRow, Tables},
    },
    text,
};

/// The consumer that the RFC's workers expect on the stream of their configuration.
const RFC_CONSUMER: &str = "webhook-worker-1";
/// What a consumer says of itself that is made for workers.
pub const WORKERS_CONSUMER: &str = "walhook: for workers, as rule_nats_streams.consumers says";
/// How long one round may take before it counts as failed.
const ROUND: Duration = Duration::from_secs(60);
/// After so many failures in a row it is tried again only every so often.
const OFTEN: u32 = 8;
const SELDOM: Duration = Duration::from_secs(60);
/// How long a consumer that we make for others waits for a worker's answer, each time longer. The first is JetStream's own.
const BACKOFF: [Duration; 4] =
    [Duration::from_secs(30), Duration::from_secs(60), Duration::from_secs(120), Duration::from_secs(300)];
/// After so many deliveries it passes over a message, which stays in the stream.
const MAX_DELIVER: u32 = 1000;
/// JetStream's answers for what is not there.
const NO_STREAM: u64 = 10059;
const NO_CONSUMER: u64 = 10014;

/// What is to be posted, and by which connections: one for each configuration that has one at present.
struct News {
    tables: Tables,
    controls: HashMap<i32, Control>,
    /// Those of configurations that publish to core NATS, and have a bucket from other times or by another configuration.
    witnesses: HashMap<i32, Control>,
    /// The streams that events go to, by configuration.
    streams: HashMap<i32, Vec<String>>,
}

/// Who posts.
pub struct Poster {
    /// This run, and its database.
    pub run: ThisRun,
    /// The runs that the database knew before this one.
    pub runs: Arc<Runs>,
}

/// The way to the one task that posts.
pub struct WebhookRegistry {
    sender: watch::Sender<Option<Arc<News>>>,
    /// How often the run has counted on, as far as that may be shown.
    beat: watch::Sender<Option<i64>>,
    /// Of the rules and of the connections, as last posted.
    generations: (u64, u64),
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    presence: Presence,
    notices: Notices,
}

/// What the task tells.
#[derive(Default)]
struct Shared {
    /// Every bucket has a mark of this run.
    has_marked: AtomicBool,
    /// What ends the session.
    error: Mutex<Option<Error>>,
}

impl WebhookRegistry {
    /// Begins to post what it will be given.
    pub fn new(poster: Poster) -> WebhookRegistry {
        let (sender, news) = watch::channel(None);
        let (beat, beats) = watch::channel(None);
        let shared = Arc::new(Shared::default());
        let presence = Presence::start(poster.run.clone());
        let notices = Notices::start(poster.run.source.clone(), poster.run.postgres.clone());
        let task = tokio::spawn(post(poster, news, beats, Arc::clone(&shared)));
        WebhookRegistry { sender, beat, generations: (0, 0), shared, task, presence, notices }
    }

    /// Posts the configuration if it has changed since the last time, or if there are other connections.
    ///
    /// # Errors
    /// A newer run, or a copy of this database, has written into a bucket.
    pub fn follow(&mut self, streamer: &Streamer, lanes: &Lanes) -> Result<()> {
        if let Some(error) = self.shared.error.lock().ok().and_then(|mut error| error.take()) {
            return Err(error);
        }
        self.presence.check()?;
        let generations = (streamer.generation(), lanes.driver().connected_times());
        if generations != self.generations {
            self.generations = generations;
            let tables = streamer.tables().clone();
            let (controls, witnesses) = (lanes.controls(), lanes.witnesses());
            self.presence.follow(lanes.answering());
            self.notices.follow(notice_targets(&tables, &controls, &witnesses));
            let news = News { tables, controls, witnesses, streams: lanes.wanted_streams(streamer) };
            self.sender.send_replace(Some(Arc::new(news)));
        }
        Ok(())
    }

    /// Shows that the run has counted on. The database and, where there is one, its standby know of it.
    pub fn count_on(&self, beat: i64) {
        self.beat.send_replace(Some(beat));
    }

    /// Whether every bucket has a mark of this run.
    pub fn has_marked(&self) -> bool {
        self.shared.has_marked.load(Ordering::Relaxed)
    }
}

/// The connections of configurations that have a `notice_subject`.
fn notice_targets(tables: &Tables, controls: &HashMap<i32, Control>, witnesses: &HashMap<i32, Control>) -> Targets {
    let configs = tables.configs.iter().filter(|(_, row)| row.notice_subject.is_some());
    let control = |id: &i32| controls.get(id).or_else(|| witnesses.get(id));
    configs.filter_map(|(id, row)| Some((row.config_name.clone(), control(id)?.client().clone()))).collect()
}

impl Drop for WebhookRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn post(
    poster: Poster,
    mut news: watch::Receiver<Option<Arc<News>>>,
    mut beats: watch::Receiver<Option<i64>>,
    shared: Arc<Shared>,
) {
    let mut backoff = Backoff::default();
    let mut logged = LogOnce::default();
    let mut retry_at: Option<Instant> = None;
    let mut kept: Vec<Retained> = Vec::new();
    loop {
        let again = async {
            match retry_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            changed = beats.changed() => {
                if changed.is_err() {
                    return;
                }
                let beat = *beats.borrow_and_update();
                if kept.is_empty() && retry_at.is_some() {
                    continue;
                }
                if count_on(&poster, &mut kept, beat).await {
                    shared.has_marked.store(retry_at.is_none(), Ordering::Relaxed);
                    continue;
                }
            }
            () = again => {}
        }
        let Some(now) = news.borrow_and_update().clone() else { continue };
        let beat = *beats.borrow_and_update();
        let (done, problem) = round(&poster, &now, beat, &mut kept).await;
        let is_behind = matches!(done, Done::ButForAStream) || problem.is_some();
        retry_at = if is_behind {
            // What has failed for a while, such as a right that is wanting, is not asked for all the time.
            let wait = if backoff.failures() < OFTEN { backoff.next() } else { SELDOM };
            Some(Instant::now() + wait)
        } else {
            backoff = Backoff::default();
            None
        };
        shared.has_marked.store(!is_behind && beat.is_some(), Ordering::Relaxed);
        match problem {
            Some(error) if matches!(error.kind(), Kind::Fenced | Kind::Untrusted) => {
                if let Ok(mut verdict) = shared.error.lock() {
                    *verdict = Some(error);
                }
                // The session ends.
                return;
            }
            Some(error) => {
                let text = error.to_string();
                if logged.is_news(&text) {
                    tracing::warn!("workers' bucket and consumers: {text}");
                }
            }
            None => {
                logged.forget();
            }
        }
    }
}

/// How far a round has come.
enum Done {
    All,
    /// A stream is not there; its lane makes it, sooner or later.
    ButForAStream,
}

/// A bucket that is up to date, and its last sequence by our own writing.
struct Retained {
    control: Control,
    bucket: String,
    sequence: u64,
}

/// Writes the mark alone into all buckets. Whether nobody else has written there since.
async fn count_on(poster: &Poster, kept: &mut [Retained], beat: Option<i64>) -> bool {
    let Some(beat) = beat else { return true };
    for bucket in kept.iter_mut() {
        if timeout(ROUND, bucket.put(MARK, Some(poster.mark(beat)))).await.is_ok_and(|written| written.is_ok()) {
            continue;
        }
        return false;
    }
    !kept.is_empty()
}

/// Configurations that share a bucket, for they lead to one account.
struct Target<'t> {
    control: Control,
    place: Place,
    rows: Vec<&'t ConfigRow>,
    /// They have a stream: the bucket tells workers their webhooks.
    has_workers: bool,
}

impl Target<'_> {
    fn is_of(&self, place: &Place) -> bool {
        let created = |place: &Place| place.info.as_ref().map(|info| info["created"].clone());
        self.place.name == place.name && created(&self.place) == created(place)
    }
}

/// Brings the NATS of all configurations up to date.
async fn round(poster: &Poster, now: &News, beat: Option<i64>, kept: &mut Vec<Retained>) -> (Done, Option<Error>) {
    let mut done = Done::All;
    let mut problem = None;
    let mut targets: Vec<Target<'_>> = Vec::new();
    // Whose bucket is not known in this round: it may be one of those that are.
    let mut unknown: Vec<&ConfigRow> = Vec::new();
    kept.clear();
    let in_time = |error| Error::unavailable("no end within 60 s").caused_by(error);
    for (&id, row) in &now.tables.configs {
        if row.enabled == Some(false) || row.jetstream_enabled == Some(false) {
            continue;
        }
        // Without a connection there is news when its lanes have one.
        let Some(control) = now.controls.get(&id) else {
            unknown.push(row);
            continue;
        };
        let (streams, _) = streams_of_all(&now.tables).remove(&id).unwrap_or_default();
        let wanted = now.streams.get(&id).map_or(&[][..], Vec::as_slice);
        let round = async {
            let place = bucket_of(control, poster, wanted, most_replicas(&streams)).await?;
            Ok((place, keep_consumers(control, &streams, row).await?))
        };
        match timeout(ROUND, round).await.unwrap_or_else(|error| Err(in_time(error))) {
            Ok((place, consumers)) => {
                if place.is_none() || matches!(consumers, Done::ButForAStream) {
                    done = Done::ButForAStream;
                }
                let Some(place) = place else {
                    unknown.push(row);
                    continue;
                };
                match targets.iter_mut().find(|target| target.is_of(&place)) {
                    Some(target) => target.rows.push(row),
                    None => {
                        targets.push(Target { control: control.clone(), place, rows: vec![row], has_workers: true })
                    }
                }
            }
            Err(error) => {
                unknown.push(row);
                problem = Some(error.context(format!("NATS configuration {:?}", row.config_name)));
            }
        }
    }
    // Core NATS has no workers: its bucket is kept for the mark alone, by which a copy of this database is known.
    for (id, control) in &now.witnesses {
        let Some(row) = now.tables.configs.get(id) else { continue };
        match timeout(ROUND, bucket::find(control, &poster.run.source, &poster.run.identity))
            .await
            .unwrap_or_else(|error| Err(in_time(error)))
        {
            Ok(place) => {
                let is_kept = targets.iter().any(|target| target.is_of(&place));
                if place.info.is_some() && !is_kept {
                    targets.push(Target { control: control.clone(), place, rows: Vec::new(), has_workers: false });
                }
            }
            Err(error) => problem = Some(error.context(format!("NATS configuration {:?}", row.config_name))),
        }
    }
    for target in targets {
        let attempted = format!("keep the bucket {:?}", target.place.name);
        let round = keep_bucket(&target, poster, beat, &now.tables, &unknown);
        match timeout(ROUND, round).await.unwrap_or_else(|error| Err(in_time(error))) {
            Ok(sequence) => {
                kept.push(Retained { control: target.control, bucket: target.place.name, sequence });
            }
            Err(error) => problem = Some(error.context(attempted)),
        }
    }
    (done, problem)
}

impl Poster {
    fn mark(&self, beat: i64) -> Bytes {
        json!(self.run.mark(beat)).to_string().into()
    }

    /// Whether the bucket is ours to write: nobody else has, but earlier runs of this database.
    fn check(&self, mark: &Mark) -> Result<()> {
        if mark.run_id == self.run.run_id {
            return Ok(());
        }
        let checked = self.runs.check(mark, &self.run.identity.database_id);
        if checked.is_err() && mark.epoch > self.run.epoch {
            return Err(Error::new(
                Kind::Fenced,
                format!(
                    "run {} of source {:?} keeps it already; this is run {}",
                    mark.epoch, self.run.source, self.run.epoch
                ),
            )
            .hint("a newer walhook has taken over, or a copy of this database runs; stop this one"));
        }
        checked
    }
}

/// The bucket of a configuration, made if it is missing; `None` while streams of events are missing. They come first: an account may
/// have room for few streams.
async fn bucket_of(control: &Control, poster: &Poster, streams: &[String], replicas: i32) -> Result<Option<Place>> {
    let place = bucket::find(control, &poster.run.source, &poster.run.identity).await?;
    let stream = bucket::stream(&place.name);
    let owner = poster.run.identity.owner(&poster.run.source);
    if place.info.is_some() {
        if place.claim == Claim::Unclaimed {
            // Where that is not allowed the mark tells.
            streams::claim(control, &stream, &owner).await?;
        }
        return Ok(Some(place));
    }
    for stream in streams {
        if let Err(error) = control.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await?
            && error.err_code == NO_STREAM
        {
            return Ok(None);
        }
    }
    let mut config = json!({
        "name": stream,
        "description": "walhook: which webhooks there are, for walhook deliver",
        "subjects": [format!("$KV.{}.>", place.name)],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "max_msgs_per_subject": 1,
        "max_age": 0,
        "num_replicas": replicas,
        "allow_rollup_hdrs": true,
        "deny_delete": true,
        "allow_direct": true,
    });
    if let Some(config) = config.as_object_mut() {
        owner.sign(config);
    }
    let attempted = format!("make the bucket {:?}", place.name);
    match control.api(&format!("STREAM.CREATE.{stream}"), &config).await? {
        Ok(info) => Ok(Some(Place { info: Some(info), ..place })),
        Err(error) => Err(Error::unavailable(attempted).caused_by(error)),
    }
}

/// Puts what differs, deletes what is no more; the bucket's last sequence. Every entry expects the one before it, so a run that was
/// frozen in between writes nothing more: the run after it has written a mark.
///
/// Entries of webhooks in an `unknown` configuration stay: it may lead to the same bucket and be connected later than this one.
async fn keep_bucket(
    target: &Target<'_>,
    poster: &Poster,
    beat: Option<i64>,
    tables: &Tables,
    unknown: &[&ConfigRow],
) -> Result<u64> {
    let Target { control, place, rows, has_workers } = target;
    let failed = |error: async_nats::Error| Error::unavailable("read it").caused_by(error);
    let store = control.jetstream().get_key_value(&place.name).await;
    let store = store.map_err(|error| failed(error.into()))?;
    let state = &store.stream.cached_info().state;
    let mut kept = Retained { control: control.clone(), bucket: place.name.clone(), sequence: state.last_sequence };
    // All entries at once: asked for one by one, ten thousand webhooks take seconds, at every start and every change of one.
    let mut there: BTreeMap<String, Bytes> = BTreeMap::new();
    let mut mark = None;
    if state.messages > 0 {
        let mut entries = store.watch_with_history(">").await.map_err(|error| failed(error.into()))?;
        while let Some(entry) = entries.try_next().await.map_err(|error| failed(error.into()))? {
            if entry.operation == Operation::Put && entry.key.starts_with(bucket::KEY_PREFIX) {
                there.insert(entry.key, entry.value);
            } else if entry.operation == Operation::Put && entry.key == MARK {
                mark = Some(entry.value);
            }
            if entry.seen_current {
                break;
            }
        }
    }
    if let Some(mark) = mark.as_ref().and_then(|mark| serde_json::from_slice::<Mark>(mark).ok()) {
        poster.check(&mark)?;
    }
    // While this run may not be shown yet, the mark of the one before is written once more.
    if let Some(mark) = beat.map(|beat| poster.mark(beat)).or(mark) {
        kept.put(MARK, Some(mark)).await?;
    }
    if !has_workers {
        return Ok(kept.sequence);
    }
    for row in rows {
        for webhook in webhook::webhooks(tables, &row.config_name, Credentials::Withheld) {
            let key = format!("{}{}", bucket::KEY_PREFIX, webhook.webhook_id);
            let value = json!(webhook).to_string();
            if there.remove(&key).is_none_or(|known| known != value) {
                kept.put(&key, Some(value.into())).await?;
            }
            yield_now().await; // the way of a change runs on this thread
        }
    }
    for row in unknown {
        for webhook in webhook::webhooks(tables, &row.config_name, Credentials::Withheld) {
            there.remove(&format!("{}{}", bucket::KEY_PREFIX, webhook.webhook_id));
        }
    }
    for key in there.into_keys() {
        kept.put(&key, None).await?;
    }
    Ok(kept.sequence)
}

impl Retained {
    /// Writes an entry, or deletes it, if nobody else has written into the bucket since.
    async fn put(&mut self, key: &str, value: Option<Bytes>) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Sequence", self.sequence.to_string());
        if value.is_none() {
            headers.insert("KV-Operation", "DEL");
        }
        let subject = self.control.entry_subject(&self.bucket, key);
        match self.control.publish(&subject, headers, value.unwrap_or_default()).await? {
            Ack::Stored { sequence, .. } => {
                self.sequence = sequence;
                Ok(())
            }
            Ack::Refused { code: WRONG_LAST_SEQUENCE, .. } => {
                Err(Error::unavailable("somebody else has written into it; it is read anew"))
            }
            Ack::Refused { code, description } => {
                Err(Error::unavailable(format!("write {key:?}: {description} ({code})")))
            }
            Ack::NoResponders => Err(Error::unavailable(format!("write {key:?}: no JetStream answers"))),
        }
    }
}

/// The consumers that the streams' rows name.
async fn keep_consumers(control: &Control, streams: &[StreamRow], row: &ConfigRow) -> Result<Done> {
    let mut done = Done::All;
    for stream in streams {
        for consumer in consumers(stream, row) {
            if let Done::ButForAStream = keep_consumer(control, &stream.stream_name, &consumer).await? {
                done = Done::ButForAStream;
            }
        }
    }
    Ok(done)
}

/// The consumers that the stream's row names, or that of the RFC's workers. Only where a consumer that nobody reads keeps
/// nothing from being forgotten is one made unasked.
fn consumers(stream: &StreamRow, config: &ConfigRow) -> Vec<String> {
    let is_limits = stream.retention_policy.as_deref().is_none_or(|policy| policy == "limits");
    match &stream.consumers {
        Some(consumers) => consumers.clone(),
        None if is_limits && config.stream_name.as_deref() == Some(&stream.stream_name) => {
            vec![RFC_CONSUMER.to_owned()]
        }
        None => Vec::new(),
    }
}

/// Makes the consumer where there is none; one that is there is left as it is.
async fn keep_consumer(control: &Control, stream: &str, consumer: &str) -> Result<Done> {
    let attempted = || format!("make consumer {consumer:?} of stream {stream:?}");
    let valid =
        !consumer.is_empty() && consumer.bytes().all(|byte| byte.is_ascii_graphic() && !b".*>/\\".contains(&byte));
    if !valid {
        return Err(Error::config(format!("{}: a consumer cannot have this name", attempted()))
            .hint(format!(
                "a name has no dots, spaces, slashes or wildcards: UPDATE rule_nats_streams SET consumers = ARRAY['worker'] WHERE \
                 stream_name = {}",
                text::sql_literal(stream)
            )));
    }
    let refused = |error: control::ApiError| match error.err_code {
        NO_STREAM => Ok(Done::ButForAStream),
        _ => Err(Error::unavailable(attempted()).caused_by(error)),
    };
    match control.api(&format!("CONSUMER.INFO.{stream}.{consumer}"), &Value::Null).await? {
        Ok(_) => return Ok(Done::All),
        Err(error) if error.err_code == NO_CONSUMER => {}
        Err(error) => return refused(error),
    }
    let config = json!({
        "durable_name": consumer,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "description": WORKERS_CONSUMER,
        // A worker that says nothing gets the message again later and later; one that refuses it at once, as the RFC's does, not
        // for ever.
        "backoff": BACKOFF.map(|wait| wait.as_nanos()),
        "max_deliver": MAX_DELIVER,
    });
    let request = json!({ "stream_name": stream, "config": config });
    match control.api(&format!("CONSUMER.DURABLE.CREATE.{stream}.{consumer}"), &request).await? {
        Ok(_) => {
            tracing::info!(stream, consumer, "consumer made for workers");
            Ok(Done::All)
        }
        Err(error) => refused(error),
    }
}
