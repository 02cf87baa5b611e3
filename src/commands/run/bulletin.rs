//! What the streamer does for workers, off the way of a change: the bucket of webhooks, and the consumers that are to be
//! there.
//!
//! In: the configuration, whenever it has changed at a commit, and the lanes' connections for the JetStream API. Out: in the NATS of every configuration the bucket
//! `walhook_<source>` with an entry for each webhook that publishes there, without secrets, and the durable pull
//! consumers that the streams' rows name. Always holds: nobody waits for it, and what goes wrong here is told and tried
//! again later.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream::{self, kv::Operation};
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::{JoinHandle, yield_now},
    time::timeout,
};

use super::lanes::Lanes;
use crate::{
    commands::{backoff::Backoff, bucket, told::Told},
    config::Config,
    deliver::webhook::{self, Credentials},
    error::{Error, Result},
    flow::streamer::Streamer,
    nats::control::{self, Control},
    route::{
        streams::{most_replicas, streams_of_all},
        tables::{ConfigRow, StreamRow, Tables},
    },
    text,
};

/// The consumer that the RFC's workers expect on the stream of their configuration.
const RFC_CONSUMER: &str = "webhook-worker-1";
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
}

/// The way to the one task that posts.
pub struct Bulletin {
    sender: watch::Sender<Option<Arc<News>>>,
    /// Of the rules and of the connections, as last posted.
    generations: (u64, u64),
    task: JoinHandle<()>,
}

impl Bulletin {
    /// Begins to post what it will be given.
    pub fn new(config: &Config) -> Bulletin {
        let (sender, receiver) = watch::channel(None);
        let task = tokio::spawn(post(config.source.clone(), receiver));
        Bulletin { sender, generations: (0, 0), task }
    }

    /// Posts the configuration if it has changed since the last time, or if there are other connections.
    pub fn follow(&mut self, streamer: &Streamer, lanes: &Lanes) {
        let generations = (streamer.generation(), lanes.connected_times());
        if generations != self.generations {
            self.generations = generations;
            let news = News { tables: streamer.tables().clone(), controls: lanes.controls() };
            self.sender.send_replace(Some(Arc::new(news)));
        }
    }
}

impl Drop for Bulletin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn post(source: String, mut news: watch::Receiver<Option<Arc<News>>>) {
    let mut backoff = Backoff::default();
    let mut told = Told::default();
    let mut is_behind = false;
    loop {
        if is_behind {
            // What has failed for a while, such as a right that is wanting, is not asked for all the time.
            let wait = if backoff.failures < OFTEN { backoff.next() } else { SELDOM };
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        } else if news.changed().await.is_err() {
            return;
        }
        let Some(now) = news.borrow_and_update().clone() else { continue };
        is_behind = false;
        let mut problem = None;
        for (&id, row) in &now.tables.configs {
            if row.enabled == Some(false) || row.jetstream_enabled == Some(false) {
                continue;
            }
            // Without a connection there is news when its lanes have one.
            let Some(control) = now.controls.get(&id) else { continue };
            let round = one(control, &source, id, row, &now.tables);
            match timeout(ROUND, round).await.unwrap_or_else(|_| Err(Error::unavailable("it took more than 60 s"))) {
                Ok(Done::All) => {}
                Ok(Done::ButForAStream) => is_behind = true,
                Err(error) => {
                    problem = Some(error.context(format!("NATS configuration {:?}", row.config_name)).to_string());
                }
            }
        }
        if problem.is_none() && !is_behind {
            backoff = Backoff::default();
        }
        is_behind |= problem.is_some();
        match problem {
            Some(text) if told.is_news(&text) => tracing::warn!("workers' bucket and consumers: {text}"),
            Some(_) => {}
            None => {
                told.forget();
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

/// Brings one configuration's NATS up to date.
async fn one(control: &Control, source: &str, id: i32, row: &ConfigRow, tables: &Tables) -> Result<Done> {
    let (streams, _) = streams_of_all(tables).remove(&id).unwrap_or_default();
    let replicas = most_replicas(&streams);
    keep_bucket(control, source, row, tables, replicas).await?;
    let mut done = Done::All;
    for stream in &streams {
        for consumer in consumers(stream, row) {
            if let Done::ButForAStream = keep_consumer(control, &stream.stream_name, &consumer).await? {
                done = Done::ButForAStream;
            }
        }
    }
    Ok(done)
}

/// Puts what differs, deletes what is no more.
async fn keep_bucket(control: &Control, source: &str, row: &ConfigRow, tables: &Tables, replicas: i32) -> Result<()> {
    let name = bucket::name(source);
    let attempted = format!("keep the bucket {name:?}");
    let failed = |error: async_nats::Error| Error::unavailable(attempted.clone()).caused_by(error);
    let jetstream = jetstream::new(control.client().clone());
    let store = match jetstream.get_key_value(&name).await {
        Ok(store) => store,
        Err(_) => {
            let config = jetstream::kv::Config {
                bucket: name.clone(),
                description: "walhook: which webhooks there are, for walhook deliver".to_owned(),
                history: 1,
                num_replicas: usize::try_from(replicas).unwrap_or(1),
                ..jetstream::kv::Config::default()
            };
            jetstream.create_key_value(config).await.map_err(|error| failed(error.into()))?
        }
    };
    // All entries at once: asked for one by one, ten thousand webhooks take seconds, at every start and every change of one.
    let mut there: BTreeMap<String, Bytes> = BTreeMap::new();
    if store.stream.cached_info().state.messages > 0 {
        let mut entries = store.watch_with_history(">").await.map_err(|error| failed(error.into()))?;
        while let Some(entry) = entries.try_next().await.map_err(|error| failed(error.into()))? {
            if entry.operation == Operation::Put && entry.key.starts_with(bucket::KEY_PREFIX) {
                there.insert(entry.key, entry.value);
            }
            if entry.seen_current {
                break;
            }
        }
    }
    for webhook in webhook::webhooks(tables, &row.config_name, Credentials::Withheld) {
        let key = format!("{}{}", bucket::KEY_PREFIX, webhook.webhook_id);
        let value = json!(webhook).to_string();
        if there.remove(&key).is_none_or(|known| known != value) {
            store.put(&key, value.into()).await.map_err(|error| failed(error.into()))?;
        }
        yield_now().await; // the way of a change runs on this thread
    }
    for key in there.into_keys() {
        store.delete(&key).await.map_err(|error| failed(error.into()))?;
    }
    Ok(())
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
        "description": "walhook: for workers, as rule_nats_streams.consumers says",
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
