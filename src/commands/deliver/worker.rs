//! The lanes of a worker: one for each webhook and stream, begun and ended as the configuration says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
    sync::{Arc, Mutex, OnceLock, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    call_log::CallLog,
    configuration::{All, Known},
    consumer,
    event::Counts,
    lane,
    limits::Limits,
    receivers::Receivers,
    settings::Settings,
    shown,
};
use crate::{
    commands::{
        away::{Away, News},
        delaying_interval, log_once,
        seal_keys::OnDemand,
        systemd::Notify,
    },
    nats::{control::Control, owner::Owner},
};

/// How often streams are looked for that were not there, and how often the counts are told.
const LOOK: Duration = Duration::from_secs(15);

/// What all lanes share.
pub struct Worker {
    /// The worker's settings.
    pub settings: Settings,
    /// The name of the feed.
    pub source: String,
    /// To whom streams and consumers have to belong, once that is known.
    pub owner: Arc<OnceLock<Owner>>,
    /// How long a shutdown may wait for calls.
    pub shutdown_timeout: Duration,
    /// All webhooks, as they are now.
    pub all: watch::Receiver<Option<All>>,
    /// For consumers and streams.
    pub control: Control,
    /// For messages.
    pub client: async_nats::Client,
    /// For webhooks.
    pub receivers: Receivers,
    /// For sealed payloads.
    pub seal_keys: OnDemand,
    /// What webhooks allow over all workers.
    pub limits: Limits,
    /// For records; without a database there are none.
    pub call_log: Option<CallLog>,
    /// How many more calls may run.
    pub room: Semaphore,
    /// For how much more of payloads from object stores there is room.
    pub object_room: Semaphore,
    /// Until when webhooks want no calls, by id.
    pub holds: Mutex<HashMap<i32, Instant>>,
    /// When the worker began.
    pub began: Instant,
    /// What has happened.
    pub counts: Arc<Counts>,
    /// How often the log tells what was done; zero: never.
    pub log_summary: Duration,
    /// What has happened to each webhook.
    pub counters: Arc<shown::All>,
    /// The NATS configuration, by its name.
    pub nats_config: String,
    /// The service manager.
    pub notify: Notify,
}

struct Running {
    known: watch::Sender<Arc<Known>>,
    start: Arc<lane::Start>,
}

/// Follows the configuration until shutdown; then waits for what is under way.
pub async fn run(worker: Arc<Worker>, mut all: watch::Receiver<Option<All>>, mut shutdown: watch::Receiver<bool>) {
    let mut lanes: BTreeMap<(i32, String), Running> = BTreeMap::new();
    let mut left: Option<Vec<(i32, String)>> = None;
    let mut finding = pin!(find(&worker));
    let mut tasks = JoinSet::new();
    let mut logged = LoggedSoFar::default();
    let mut look = delaying_interval(LOOK);
    let mut minutes = Minutes::new(&worker);
    let mut minute = delaying_interval(minutes.look);
    let mut alive = delaying_interval(worker.notify.every());
    let in_loop = worker.notify.enter_loop();
    let mut is_configured = false;
    loop {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => break,
            changed = all.changed() => if changed.is_err() { break },
            found = &mut finding, if left.is_none() => left = Some(found),
            _ = alive.tick(), if worker.notify.is_on() => {
                worker.notify.alive();
                if is_configured {
                    report(&worker, &lanes);
                }
                continue;
            }
            _ = minute.tick() => {
                minutes.tell(&worker);
                continue;
            }
            _ = look.tick() => {}
        }
        let Some(now) = all.borrow_and_update().clone() else { continue };
        logged.counts(&worker);
        follow(&worker, &now, left.as_deref().unwrap_or_default(), &mut lanes, &mut tasks, &mut logged, &shutdown)
            .await;
        is_configured = true;
        while tasks.try_join_next().is_some() {}
        // A lane that has ended by itself was a deleted webhook's.
        lanes.retain(|_, running| running.known.receiver_count() > 0);
    }
    tracing::info!(lanes = tasks.len(), "stopping: requesting no more events, waiting for the calls in flight");
    drop(in_loop);
    worker.notify.stopping("stopping: waits for the calls in flight");
    while tasks.join_next().await.is_some() {}
    worker.limits.release().await;
    drop(lanes);
    logged.counts(&worker);
    // What was said last has to leave before the process does.
    if let Err(error) = worker.client.flush().await {
        tracing::warn!(%error, "the last acknowledgements may not have been sent; their events will be delivered again");
    }
}

/// Reports to the service manager. The worker is ready when each consumer has its subscription or has failed to get it.
fn report(worker: &Worker, lanes: &BTreeMap<(i32, String), Running>) {
    let starts = || lanes.values().map(|running| &running.start);
    if starts().all(|start| start.is_tried()) {
        worker.notify.ready();
    }
    worker.notify.status_now_and_then(|| {
        let subscribed = starts().filter(|start| start.is_subscribed()).count();
        let under_way = worker.settings.max_in_flight.saturating_sub(worker.room.available_permits());
        let delivered = worker.counts.delivered.load(Ordering::Relaxed);
        let away = if worker.control.is_connected() { "" } else { "; NATS is away" };
        let all = lanes.len();
        format!("{subscribed} of {all} consumers subscribed, {under_way} calls in flight, {delivered} delivered{away}")
    });
}

/// Begins lanes for new webhooks and streams, and tells the others what has changed.
async fn follow(
    worker: &Arc<Worker>,
    all: &All,
    left: &[(i32, String)],
    lanes: &mut BTreeMap<(i32, String), Running>,
    tasks: &mut JoinSet<()>,
    logged: &mut LoggedSoFar,
    shutdown: &watch::Receiver<bool>,
) {
    for ((id, _), running) in lanes.iter() {
        let now = match all.webhooks.get(id) {
            Some(known) => Arc::clone(known),
            None if all.is_deleted.contains(id) => {
                Arc::new(Known { is_gone: true, ..Known::clone(&running.known.borrow()) })
            }
            // Elsewhere by now: what is in this stream is still to be called.
            None => continue,
        };
        running.known.send_if_modified(|known| {
            let differs = (&known.webhook, known.is_gone) != (&now.webhook, now.is_gone)
                || known.keys.is_ok() != now.keys.is_ok();
            *known = now;
            differs
        });
    }
    for (id, known) in &all.webhooks {
        // Each may wait for an answer of NATS.
        worker.notify.alive();
        let webhook = &known.webhook;
        let wanted = worker.settings.webhooks.is_empty() || worker.settings.webhooks.contains(&webhook.name);
        if !wanted || !webhook.enabled {
            continue;
        }
        if webhook.needs_database() && !worker.settings.has_database {
            logged
                .once(&webhook.name, &format!("{}, so it is left to workers with a database", webhook.why_database()));
            continue;
        }
        let mut streams = match consumer::streams(&worker.control, &webhook.subjects).await {
            Ok(streams) => streams,
            Err(error) => {
                logged.once(&webhook.name, &error.to_string());
                continue;
            }
        };
        if streams.is_empty() && webhook.publishes {
            logged.once(&webhook.name, &format!("no stream takes {} yet", webhook.subjects.join(", ")));
        }
        streams.extend(left.iter().filter(|(webhook, _)| webhook == id).map(|(_, stream)| stream.clone()));
        for stream in streams {
            let key = (*id, stream);
            if lanes.contains_key(&key) || !webhook.publishes && !has_consumer(worker, &key).await {
                continue;
            }
            if let Err(error) = consumer::check_stream(&worker.control, &key.1, worker.owner.get()).await {
                logged.once(&webhook.name, &error.to_string());
                continue;
            }
            let (sender, receiver) = watch::channel(Arc::clone(known));
            tracing::info!(webhook = webhook.name, stream = key.1, "delivering");
            let start = Arc::new(lane::Start::default());
            tasks.spawn(lane::run(Arc::clone(worker), key.1.clone(), receiver, shutdown.clone(), Arc::clone(&start)));
            lanes.insert(key, Running { known: sender, start });
        }
    }
}

/// The consumers that webhooks have, in whatever streams; asked until there is an answer.
async fn find(worker: &Worker) -> Vec<(i32, String)> {
    let mut logged = log_once::LogOnce::default();
    loop {
        match consumer::of_group(&worker.control, &worker.settings.group, worker.owner.get()).await {
            Ok(consumers) => return consumers,
            Err(error) => {
                let text = error.to_string();
                if logged.is_news(&text) {
                    tracing::warn!("cannot look for undelivered events in earlier streams of webhooks: {text}");
                }
            }
        }
        sleep(LOOK).await;
    }
}

/// A webhook that publishes to NATS no more may still have events there, if somebody has begun to deliver them.
async fn has_consumer(worker: &Worker, (id, stream): &(i32, String)) -> bool {
    let name = consumer::name(&worker.settings.group, *id);
    let info = worker.control.api(&format!("CONSUMER.INFO.{stream}.{name}"), &serde_json::Value::Null).await;
    matches!(info, Ok(Ok(_)))
}

/// What the log is told once a minute: that NATS is away, and, where the user asks for it, what was done.
struct Minutes {
    look: Duration,
    away: Away,
    every: Duration,
    last: Instant,
    counts: [u64; 4],
}

impl Minutes {
    fn new(worker: &Worker) -> Minutes {
        let every = worker.log_summary;
        let look = if every.is_zero() { LOOK } else { LOOK.min(every) };
        Minutes { look, away: Away::new(every), every, last: Instant::now(), counts: [0; 4] }
    }

    fn tell(&mut self, worker: &Worker) {
        let under_way = worker.settings.max_in_flight.saturating_sub(worker.room.available_permits());
        let is_away = !worker.control.is_connected();
        for news in self.away.look(is_away.then_some("NATS").into_iter(), Instant::now()) {
            match news {
                News::Still(_, lasts) => tracing::warn!(
                    away_s = lasts.as_secs(),
                    calls_under_way = under_way,
                    "NATS cannot be reached: no events arrive, and calls that end now may be made again"
                ),
                News::Back(_, lasted) => tracing::info!(away_s = lasted.as_secs(), "NATS is back"),
            }
        }
        if self.every.is_zero() || self.last.elapsed() < self.every {
            return;
        }
        let Counts { delivered, failed, dead, bytes, lag_ms, .. } = &*worker.counts;
        let now = [delivered, failed, dead, bytes].map(|counter| counter.load(Ordering::Relaxed));
        let since = std::mem::replace(&mut self.counts, now);
        let [delivered, failed, dead, bytes] = [0, 1, 2, 3].map(|at: usize| now[at] - since[at]);
        tracing::info!(
            seconds = self.last.elapsed().as_secs(),
            calls = delivered + failed + dead,
            delivered,
            failed_attempts = failed,
            dead_letters = dead,
            bytes,
            calls_under_way = under_way,
            last_lag_ms = lag_ms.load(Ordering::Relaxed),
            "summary"
        );
        self.last = Instant::now();
    }
}

/// What the log has been told.
#[derive(Default)]
struct LoggedSoFar {
    notes: BTreeSet<(String, String)>,
    counts: [u64; 4],
}

impl LoggedSoFar {
    fn once(&mut self, webhook: &str, text: &str) {
        if self.notes.insert((webhook.to_owned(), text.to_owned())) {
            tracing::warn!(webhook, "not delivered: {text}");
        }
    }

    fn counts(&mut self, worker: &Worker) {
        let Counts { delivered, failed, dead, unrecorded, .. } = &*worker.counts;
        let now = [delivered, failed, dead, unrecorded].map(|counter| counter.load(Ordering::Relaxed));
        if now != self.counts {
            let [delivered, failed_attempts, dead_letters, unrecorded] = now;
            tracing::info!(delivered, failed_attempts, dead_letters, unrecorded, "so far");
            self.counts = now;
        }
    }
}
