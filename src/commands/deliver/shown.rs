//! What a worker shows by HTTP: how the calls of each webhook went.
//!
//! In: counters that the lanes count in, one set for each webhook, found once when its lane begins. Out: the snapshot that is served,
//! once a second. Always holds: a call costs some additions, no lock and no look-up.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::Client;

use super::{configuration::All as Known, event::Counts};
use crate::{
    commands::http,
    deliver::schedule::Disposition,
    error::{Error, Result},
    flow::histogram::{self, Histogram},
    http::{
        server::Shared,
        snapshot::{DeadLetter, Deliver, Nats, Webhook},
    },
    nats::control::Control,
    postgres::{self, Settings, sql},
    text,
};

/// How often the database is asked.
const ASK: Duration = Duration::from_secs(5);
/// How long it may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(10);

const DEAD_LETTERS: &str = "SELECT count(*) FROM public.rule_nats_dead_letters WHERE status = 'dead'";
const NEWEST: &str = "SELECT dead_letter_id, webhook_name, reason, extract(epoch FROM created_at)::float8 \
    FROM public.rule_nats_dead_letters WHERE status = 'dead' ORDER BY dead_letter_id DESC LIMIT 20";

/// Durations, counted by whoever has a reference.
#[derive(Debug, Default)]
struct Durations {
    counts: [AtomicU64; histogram::BUCKETS],
    sum_us: AtomicU64,
}

impl Durations {
    fn record(&self, micros: u64) {
        self.counts[histogram::bucket(micros)].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
    }

    fn copied(&self) -> Histogram {
        let counts = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        Histogram::of(counts, self.sum_us.load(Ordering::Relaxed))
    }
}

/// The counters of one webhook.
#[derive(Debug, Default)]
pub struct Counters {
    delivered: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
    in_flight: AtomicU64,
    /// In µs since 1970.
    last_at: AtomicU64,
    is_failing: AtomicBool,
    /// Of the last call that failed.
    last_error: Mutex<String>,
    duration: Durations,
    lag: Durations,
}

/// A call that runs.
pub struct Running<'c>(&'c Counters);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Counters {
    /// A call begins.
    pub fn begin(&self) -> Running<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Running(self)
    }

    /// A call has ended, of an event that was committed then (µs since 2000-01-01), if that is known.
    pub fn called(&self, took: Duration, disposition: Disposition, error: Option<&str>, committed: Option<i64>) {
        self.duration.record(micros(took));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_at.store(micros(now), Ordering::Relaxed);
        self.is_failing.store(disposition != Disposition::Delivered, Ordering::Relaxed);
        match disposition {
            Disposition::Delivered => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
                if let Some(committed) = committed {
                    self.lag.record(u64::try_from(postgres::now().saturating_sub(committed)).unwrap_or(0));
                }
            }
            Disposition::Retry(_) => drop(self.retried.fetch_add(1, Ordering::Relaxed)),
            // Counted when its dead letter is durable.
            Disposition::GivenUp => {}
        }
        if let Some(error) = error {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = text::one_line(error).into_owned();
        }
    }

    /// A call waits for something that is away.
    pub fn waits(&self, why: &str) {
        self.is_failing.store(true, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = text::one_line(why).into_owned();
    }

    /// An event has become a dead letter.
    pub fn gave_up(&self) {
        self.dead.fetch_add(1, Ordering::Relaxed);
    }
}

/// The counters of all webhooks, by id.
#[derive(Debug, Default)]
pub struct All(Mutex<BTreeMap<i32, Arc<Counters>>>);

impl All {
    /// Those of one webhook.
    pub fn of(&self, webhook_id: i32) -> Arc<Counters> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(webhook_id).or_default())
    }
}

/// What is shown of a worker.
pub struct View {
    /// The webhooks to be called, by name; empty: all.
    pub chosen: Vec<String>,
    /// All webhooks, as they are now.
    pub all: watch::Receiver<Option<Known>>,
    /// Their counters.
    pub counters: Arc<All>,
    /// Those of the worker.
    pub counts: Arc<Counts>,
    /// The NATS configuration and its connection, where there is one.
    pub nats: Option<(String, Control)>,
}

/// Shows the worker until its task is ended.
pub async fn show(worker: View, shared: Shared) {
    loop {
        let (webhooks, webhooks_disabled) = webhooks(&worker);
        let dead = worker.counts.dead.load(Ordering::Relaxed);
        let nats = worker.nats.iter().map(|(config, control)| Nats {
            config: config.clone(),
            connected: control.is_connected(),
            ..Nats::default()
        });
        let nats = nats.collect();
        shared.update(|snapshot| {
            snapshot.nats = nats;
            snapshot.dead_letters_total = vec![("undelivered", dead)];
            snapshot.deliver = Some(Deliver { webhooks_disabled, webhooks });
        });
        sleep(http::EVERY).await;
    }
}

/// Each webhook, and how many are not called.
fn webhooks(worker: &View) -> (Vec<Webhook>, u64) {
    let all = worker.all.borrow().clone().unwrap_or_default();
    let counters = worker.counters.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let chosen = |name: &String| worker.chosen.is_empty() || worker.chosen.contains(name);
    let mut disabled = 0;
    let mut webhooks = Vec::new();
    for (id, known) in &all.webhooks {
        disabled += u64::from(!known.webhook.enabled && chosen(&known.webhook.name));
        let mut webhook = Webhook {
            id: *id,
            name: known.webhook.name.clone(),
            is_enabled: known.webhook.enabled,
            ..Webhook::default()
        };
        if let Some(counters) = counters.get(id) {
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            webhook.delivered = load(&counters.delivered);
            webhook.retried = load(&counters.retried);
            webhook.dead = load(&counters.dead);
            webhook.in_flight = load(&counters.in_flight);
            #[allow(clippy::cast_precision_loss, reason = "seconds with a few digits")]
            let seconds = |micros: u64| micros as f64 / 1e6;
            webhook.last_at = Some(load(&counters.last_at)).filter(|at| *at > 0).map(seconds);
            webhook.last_error = counters
                .is_failing
                .load(Ordering::Relaxed)
                .then(|| counters.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone());
            webhook.duration = counters.duration.copied();
            webhook.lag = counters.lag.copied();
        }
        webhooks.push(webhook);
    }
    (webhooks, disabled)
}

/// Asks the database for its dead letters, and so learns whether it is there, until the task is ended.
pub async fn ask(settings: Settings, shared: Shared) {
    loop {
        let Err(error) = asked(&settings, &shared).await else { continue };
        shared.update(|snapshot| {
            snapshot.postgres_connected = false;
            snapshot.postgres_error = Some(error.to_string());
            snapshot.dead_letters = None;
        });
        sleep(ASK).await;
    }
}

async fn asked(settings: &Settings, shared: &Shared) -> Result<()> {
    let client = sql::connect(settings).await?;
    loop {
        let late =
            |_| Error::unavailable(format!("read dead letters for HTTP: no answer within {} s", PATIENCE.as_secs()));
        let began = Instant::now();
        let (count, newest) = timeout(PATIENCE, answers(&client)).await.map_err(late)??;
        shared.update(|snapshot| {
            snapshot.postgres_connected = true;
            snapshot.postgres_error = None;
            snapshot.dead_letters = Some(count);
            snapshot.newest_dead_letters = newest;
        });
        // Where there is much to count, it takes no more than a twentieth of the time.
        sleep(ASK.max(began.elapsed() * 20)).await;
    }
}

async fn answers(client: &Client) -> Result<(u64, Vec<DeadLetter>)> {
    let failed = |error| sql::error("read dead letters for HTTP", error);
    let count = client.query_one(DEAD_LETTERS, &[]).await.map_err(failed)?;
    let newest = client.query(NEWEST, &[]).await.map_err(failed)?;
    let newest = newest.iter().map(|row| DeadLetter {
        id: row.get(0),
        webhook: row.get(1),
        reason: text::one_line(row.get(2)).into_owned(),
        at: row.get(3),
    });
    Ok((u64::try_from(count.get::<_, i64>(0)).unwrap_or(0), newest.collect()))
}
