//! `walhook deliver --queue`: takes calls from the queue in PostgreSQL and makes them, until it is stopped.
//!
//! In: rows of `rule_webhook_calls` that are due, of webhooks that are enabled, whatever their `publish_mode`. Out: calls, and what came
//! of each in its row. Any number of workers run side by side, also beside those that take calls by SKIP LOCKED themselves. Always
//! holds: a call belongs to one worker for a time, which the worker prolongs; one that is killed leaves its calls to the others, so
//! each is made at least once, and without kills once.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_postgres::{
    Client,
    types::{ToSql, Type},
};

use super::{
    batch::{self, BatchCalls, Batches, Part},
    call::Answer,
    configuration::{self, All, Known, Rows},
    event::{Counts, count},
    limits::{Limits, STARVED_WAIT, Slot, Starved},
    queue_log::{Entry, Letter, QueueLog, State},
    receivers::{Receivers, Token},
    settings::Settings,
    shown,
};
use crate::{
    commands::{
        backoff::Backoff,
        delaying_interval,
        log_once::LogOnce,
        run::faults::{self, Point},
        systemd::Notify as Manager,
    },
    deliver::{
        message::{self, Call},
        schedule::{self, ConcurrencyLimit, Disposition, FailureLog, ReceiverLoad, Verdict},
        webhook::{RequestBody, Webhook},
    },
    error::{Error, Result},
    postgres::{Settings as Postgres, sql},
};

/// How often the webhooks' rows are read. A call that was taken by a newer row reads it at once.
const REFRESH: Duration = Duration::from_secs(5);
/// How long an attempt to claim may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two claims, while there are more calls than room.
const BREATH: Duration = Duration::from_millis(10);

const CLAIM: &str = "SELECT call_id, webhook_id, payload, attempt, created_us, retry_of, row_version \
    FROM walhook.rule_webhook_queue_claim($1, $2, $3, $4)";
const PROLONG: &str = "UPDATE public.rule_webhook_calls \
    SET claimed_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3) \
    WHERE call_id = ANY ($2) AND claimed_by = $1 AND status = 'processing'";

/// What all calls share.
pub struct Queue {
    pub(super) settings: Settings,
    pub(super) source: String,
    pub(super) postgres: Postgres,
    pub(super) receivers: Receivers,
    pub(super) limits: Limits,
    pub(super) counts: Arc<Counts>,
    pub(super) counters: Arc<shown::All>,
    pub(super) shutdown_timeout: Duration,
    pub(super) notify: Manager,
    /// Who takes the calls.
    worker: String,
    log: QueueLog,
    room: Semaphore,
    all: watch::Sender<Option<All>>,
    /// Asks for the rows to be read again.
    stale: Notify,
    of: Mutex<HashMap<i32, CallState>>,
    /// The calls that this worker has.
    taken: Mutex<HashSet<i32>>,
    began: Instant,
}

/// How fast a webhook is called.
struct CallState {
    batches: Arc<Batches>,
    concurrency: ConcurrencyLimit,
    taken: usize,
    hold: Option<(Instant, String)>,
    failures: FailureLog,
    is_refused: Option<String>,
}

/// A call of the queue.
struct Claimed {
    call_id: i32,
    webhook_id: i32,
    payload: String,
    attempt: i32,
    created_us: i64,
    retry_of: Option<String>,
    version: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// One that has taken nothing yet.
    #[allow(clippy::too_many_arguments, reason = "each is another part of the worker")]
    pub fn new(
        settings: Settings,
        source: String,
        postgres: Postgres,
        receivers: Receivers,
        all: watch::Sender<Option<All>>,
        shutdown_timeout: Duration,
        notify: Manager,
    ) -> Queue {
        let worker = format!("{}-{:016x}", std::process::id(), fastrand::u64(..));
        Queue {
            log: QueueLog::open(postgres.clone(), worker.clone()),
            limits: Limits::new(Some(postgres.clone())),
            room: Semaphore::new(settings.max_in_flight),
            settings,
            source,
            postgres,
            receivers,
            counts: Arc::default(),
            counters: Arc::default(),
            shutdown_timeout,
            notify,
            worker,
            all,
            stale: Notify::new(),
            of: Mutex::default(),
            taken: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// A webhook, as it is now.
    fn known(&self, webhook_id: i32) -> Option<Arc<Known>> {
        self.all.borrow().as_ref()?.webhooks.get(&webhook_id).cloned()
    }

    fn is_chosen(&self, known: &Known) -> bool {
        self.settings.webhooks.is_empty() || self.settings.webhooks.contains(&known.webhook.name)
    }

    fn with_state<T>(&self, webhook_id: i32, change: impl FnOnce(&mut CallState) -> T) -> T {
        change(lock(&self.of).entry(webhook_id).or_insert_with(|| CallState {
            batches: Arc::default(),
            concurrency: ConcurrencyLimit::new(1),
            taken: 0,
            hold: None,
            failures: FailureLog::default(),
            is_refused: None,
        }))
    }

    /// How many more calls of a webhook are worth having.
    fn room_of(&self, known: &Known) -> usize {
        let webhook = &known.webhook;
        if !webhook.enabled || !self.is_chosen(known) {
            return 0;
        }
        let most = self.limits.room(webhook);
        self.with_state(webhook.webhook_id, |state| {
            state.concurrency.bound(match webhook.is_ordered {
                true => 1,
                false => webhook.max_in_flight.unwrap_or(self.settings.max_in_flight_per_webhook),
            });
            if state.held(&webhook.url).is_some() || state.is_refused.as_ref() == Some(&webhook.url) {
                return 0;
            }
            let calls = state.concurrency.limit().min(most);
            calls.saturating_mul(webhook.batch.map_or(1, |batch| batch.events)).saturating_sub(state.taken)
        })
    }

    fn hold(&self, known: &Known, wait: Duration) {
        let until = Instant::now() + wait;
        self.with_state(known.webhook.webhook_id, |state| {
            let longer = state.held(&known.webhook.url).is_none_or(|held| until > held);
            if longer {
                state.hold = Some((until, known.webhook.url.clone()));
            }
        });
    }

    /// Whether a failed call is logged.
    fn logs_failure(&self, known: &Known) -> bool {
        let (left_out, is_logged) =
            self.with_state(known.webhook.webhook_id, |state| state.failures.take(self.began.elapsed()));
        if left_out > 0 {
            tracing::warn!(
                webhook = known.webhook.name,
                left_out,
                "more calls have failed; rule_webhook_call_history has each"
            );
        }
        is_logged
    }
}

impl CallState {
    /// Until when a receiver at this URL wants no calls.
    fn held(&self, url: &str) -> Option<Instant> {
        let (until, held) = self.hold.as_ref()?;
        (*until > Instant::now() && held == url).then_some(*until)
    }
}

type Calls = FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// Takes and makes calls until shutdown; then waits for what is under way, and gives back the rest.
pub async fn run(queue: Arc<Queue>, mut shutdown: watch::Receiver<bool>) {
    let following = tokio::spawn(follow(Arc::clone(&queue)));
    let prolonging = tokio::spawn(prolong(Arc::clone(&queue)));
    let mut calls = Calls::new();
    let mut client = None;
    let (mut backoff, mut logged) = (Backoff::default(), LogOnce::default());
    let mut next = Instant::now();
    let mut last = Instant::now();
    let mut has_more = false;
    let mut all = queue.all.subscribe();
    let mut alive = delaying_interval(queue.notify.every());
    let in_loop = queue.notify.enter_loop();
    loop {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => break,
            _ = alive.tick(), if queue.notify.is_on() => {
                queue.notify.alive();
                let (count, delivered) = (calls.len(), queue.counts.delivered.load(Ordering::Relaxed));
                queue.notify.status_now_and_then(|| format!("{count} calls of the queue taken, {delivered} delivered"));
                continue;
            }
            changed = all.changed() => {
                if changed.is_err() {
                    break;
                }
                next = Instant::now();
            }
            Some(()) = calls.next(), if !calls.is_empty() => {
                if has_more {
                    next = next.min(last + BREATH);
                }
            }
            () = sleep_until(next) => {}
        }
        if Instant::now() < next {
            continue;
        }
        let wanted = all.borrow_and_update().as_ref().map_or_else(BTreeMap::new, |all| rooms(&queue, all));
        last = Instant::now();
        if wanted.is_empty() {
            next = last + queue.settings.queue_poll;
            continue;
        }
        match claim(&queue, &mut client, &wanted).await {
            Ok(claimed) => {
                if logged.forget() {
                    tracing::info!("calls are taken from the queue again");
                }
                backoff = Backoff::default();
                queue.notify.ready();
                has_more = fills_a_room(&claimed, &wanted);
                next = last + queue.settings.queue_poll;
                begin(&queue, &calls, claimed, &shutdown);
            }
            Err(error) => {
                client = None;
                let text = error.to_string();
                if logged.is_news(&text) {
                    tracing::warn!("calls cannot be taken from the queue; trying again: {text}");
                }
                next = Instant::now() + backoff.next();
                // The service manager need not wait: PostgreSQL may be away for long.
                queue.notify.ready();
            }
        }
    }
    tracing::info!(calls = calls.len(), "stopping: taking no more calls, waiting for those in flight");
    drop(in_loop);
    queue.notify.stopping("stopping: waits for the calls in flight");
    // Each ends by itself: its answer comes, or the time that a shutdown has is over.
    while calls.next().await.is_some() {}
    queue.limits.release().await;
    following.abort();
    prolonging.abort();
}

/// Begins the calls that were claimed.
fn begin(queue: &Arc<Queue>, calls: &Calls, claimed: Vec<Claimed>, shutdown: &watch::Receiver<bool>) {
    for claimed in claimed {
        // A call whose time was over but which this worker still makes is not made twice.
        if lock(&queue.taken).insert(claimed.call_id) {
            queue.with_state(claimed.webhook_id, |state| state.taken += 1);
            calls.push(Box::pin(one(Arc::clone(queue), claimed, shutdown.clone())));
        }
    }
}

/// How many calls of each webhook may be taken.
fn rooms(queue: &Queue, all: &All) -> BTreeMap<i32, usize> {
    let rooms = all.webhooks.values().map(|known| (known.webhook.webhook_id, queue.room_of(known)));
    rooms.filter(|(_, room)| *room > 0).collect()
}

/// Whether some webhook got as many calls as there was room for: there may be more.
fn fills_a_room(claimed: &[Claimed], wanted: &BTreeMap<i32, usize>) -> bool {
    let mut counts: BTreeMap<i32, usize> = BTreeMap::new();
    for claimed in claimed {
        *counts.entry(claimed.webhook_id).or_default() += 1;
    }
    counts.iter().any(|(id, count)| wanted.get(id).is_some_and(|room| count >= room))
}

/// Reads the webhooks' rows, now and then and when a call shows that they have changed.
async fn follow(queue: Arc<Queue>) {
    let rows = Rows {
        postgres: queue.postgres.clone(),
        config_name: None,
        secrets_dir: queue.settings.secrets_dir.clone(),
        // The queue is not sharded: each call is its own row.
        shard: None,
    };
    let mut client = None;
    let mut logged = LogOnce::default();
    loop {
        match configuration::read_rows(&rows, &mut client).await {
            Ok(configuration::Read { webhooks, .. }) => {
                logged.forget();
                queue.all.send_replace(Some(All { webhooks, ..All::default() }));
            }
            Err(error) => {
                client = None;
                let text = error.to_string();
                if logged.is_news(&text) {
                    tracing::warn!("the webhooks cannot be read; calls go on with those that were read before: {text}");
                }
            }
        }
        let wait = if client.is_none() { Duration::from_secs(1) } else { REFRESH };
        tokio::select! {
            () = sleep(wait) => {}
            () = queue.stale.notified() => {}
        }
    }
}

/// Prolongs the time for which this worker has its calls.
async fn prolong(queue: Arc<Queue>) {
    let mut client: Option<Client> = None;
    loop {
        sleep(queue.settings.ack_wait / 3).await;
        let ids: Vec<i32> = lock(&queue.taken).iter().copied().collect();
        if ids.is_empty() {
            continue;
        }
        let prolonged = async {
            let client = sql::reconnect(&mut client, &queue.postgres).await?;
            let seconds = queue.settings.ack_wait.as_secs_f64();
            let done = client
                .execute_typed(
                    PROLONG,
                    &[(&queue.worker, Type::TEXT), (&ids, Type::INT4_ARRAY), (&seconds, Type::FLOAT8)],
                )
                .await;
            done.map_err(|error| sql::error("prolong the time of calls of the queue", error))
        };
        // While PostgreSQL is away nobody else can take them either.
        if !matches!(timeout(PATIENCE, prolonged).await, Ok(Ok(_))) {
            client = None;
        }
    }
}

async fn claim(queue: &Queue, client: &mut Option<Client>, wanted: &BTreeMap<i32, usize>) -> Result<Vec<Claimed>> {
    let attempted = "take calls from the queue (rule_webhook_calls)";
    let client = sql::reconnect(client, &queue.postgres).await?;
    let ids: Vec<i32> = wanted.keys().copied().collect();
    let rooms: Vec<i32> = wanted.values().map(|room| i32::try_from(*room).unwrap_or(i32::MAX)).collect();
    let lease_ms = i32::try_from(queue.settings.ack_wait.as_millis()).unwrap_or(i32::MAX);
    let parameters: [(&(dyn ToSql + Sync), Type); 4] =
        [(&queue.worker, Type::TEXT), (&ids, Type::INT4_ARRAY), (&rooms, Type::INT4_ARRAY), (&lease_ms, Type::INT4)];
    let rows = timeout(PATIENCE, client.query_typed(CLAIM, &parameters));
    let late = |_| Error::unavailable(format!("{attempted}: no answer within {} s", PATIENCE.as_secs()));
    let rows = rows.await.map_err(late)?.map_err(|error| sql::error(attempted, error))?;
    if !rows.is_empty() {
        faults::pass(Point::QueueTaken).await?;
    }
    Ok(rows
        .iter()
        .map(|row| Claimed {
            call_id: row.get(0),
            webhook_id: row.get(1),
            payload: row.get(2),
            attempt: row.get(3),
            created_us: row.get(4),
            retry_of: row.get(5),
            version: row.get(6),
        })
        .collect())
}

/// A call, from its claim to its record, or back into the queue where there is no time left for it.
async fn one(queue: Arc<Queue>, claimed: Claimed, shutdown: watch::Receiver<bool>) {
    let abandoned = async {
        let _ = shutdown.clone().wait_for(|stop| *stop).await;
        sleep(queue.shutdown_timeout).await;
    };
    let entry = tokio::select! {
        biased;
        entry = handle(&queue, &claimed, shutdown.clone()) => entry,
        () = abandoned => Entry::given_back(claimed.call_id),
    };
    // The call is this worker's until that is written, or another's once its time is over.
    let patience = async {
        let _ = shutdown.clone().wait_for(|stop| *stop).await;
        sleep(queue.shutdown_timeout.max(Duration::from_secs(1))).await;
    };
    let state = entry.state;
    tokio::select! {
        biased;
        () = queue.log.keep(entry) => {
            match state {
                State::Success => count(&queue.counts.delivered),
                State::Retrying(_) => count(&queue.counts.failed),
                State::Failed => {
                    count(&queue.counts.dead);
                    queue.counters.of(claimed.webhook_id).gave_up();
                }
                State::GivenBack => {}
            }
        }
        () = patience => count(&queue.counts.unrecorded),
    }
    lock(&queue.taken).remove(&claimed.call_id);
    queue.with_state(claimed.webhook_id, |state| state.taken -= 1);
}

/// What a call needs to begin.
struct Turn<'q> {
    known: Arc<Known>,
    token: std::result::Result<Option<Token>, String>,
    slot: Option<Slot>,
    room: SemaphorePermit<'q>,
}

/// The webhook of a call, as its row was when the call was taken, or newer.
async fn fresh(queue: &Queue, claimed: &Claimed) -> Option<Arc<Known>> {
    let mut all = queue.all.subscribe();
    // A reading that was under way already may be older; the one after it is not.
    for _ in 0..2 {
        if queue.known(claimed.webhook_id).is_some_and(|known| known.version == claimed.version) {
            break;
        }
        queue.stale.notify_one();
        all.changed().await.ok()?;
    }
    queue.known(claimed.webhook_id)
}

/// Waits until the call may be made. `None`: it goes back into the queue.
async fn turn<'q>(queue: &'q Queue, claimed: &Claimed) -> Option<Turn<'q>> {
    let id = claimed.webhook_id;
    let may_call = |known: &Arc<Known>| known.webhook.enabled && queue.is_chosen(known);
    let mut all = queue.all.subscribe();
    let token = loop {
        let known = queue.known(id).filter(may_call)?;
        if let Some(until) = queue.with_state(id, |state| state.held(&known.webhook.url)) {
            tokio::select! {
                () = sleep_until(until) => {}
                changed = all.changed() => changed.ok()?,
            }
            continue;
        }
        match queue.receivers.token(&known).await {
            Ok(token) => break token,
            // No call was made, so none has failed.
            Err(away) => {
                queue.counters.of(id).waits(&away.why);
                if queue.logs_failure(&known) {
                    tracing::warn!(webhook = known.webhook.name, "calls wait: {}", away.why);
                }
                queue.hold(&known, away.wait);
            }
        }
    };
    let known = queue.known(id).filter(may_call)?;
    let slot = match queue.limits.slot(&known.webhook).await {
        Ok(slot) => slot,
        Err(Starved) => {
            queue.hold(&known, STARVED_WAIT);
            return None;
        }
    };
    loop {
        let start = queue.limits.start(&known.webhook).await;
        let room = queue.room.acquire().await.ok()?;
        if !start.is_late() {
            // What waited for its turn is called as the row is by now.
            let known = queue.known(id).filter(may_call)?;
            return Some(Turn { known, token, slot, room });
        }
    }
}

/// The calls of the webhook of one that was taken.
struct QueueCalls<'q> {
    queue: &'q Queue,
    claimed: &'q Claimed,
    counters: Arc<shown::Counters>,
    shutdown: watch::Receiver<bool>,
}

impl<'q> BatchCalls for QueueCalls<'q> {
    type Turn = Turn<'q>;

    fn limit(&self) -> usize {
        self.queue.with_state(self.claimed.webhook_id, |state| state.concurrency.limit())
    }

    async fn turn(&self) -> std::result::Result<Turn<'q>, Duration> {
        let turn = turn(self.queue, self.claimed).await.ok_or(Duration::ZERO)?;
        faults::pass(Point::QueueUncalled).await.map_err(|_| Duration::ZERO)?;
        Ok(turn)
    }

    async fn make(&self, turn: Turn<'q>, call: &Call<'_>) -> Answer {
        let Turn { known, token, slot, room } = turn;
        let _running = self.counters.begin();
        let answer = self.queue.receivers.attempt(&self.queue.limits, slot.as_ref(), &known, call, token).await;
        drop(room);
        answer
    }

    async fn stopped(&self) {
        // A sender that is gone is a process that ends.
        let _ = self.shutdown.clone().wait_for(|stop| *stop).await;
    }
}

/// Makes the call, alone or with others; whether its answer is to be learnt from. `None`: it was not made.
async fn call_it(
    calls: &QueueCalls<'_>,
    webhook: &Webhook,
    call: &Call<'_>,
    body: &str,
    attempt: u64,
) -> Option<(Arc<Answer>, bool)> {
    match webhook.batch {
        None => {
            let turn = tokio::select! {
                turn = calls.turn() => turn.ok(),
                () = calls.stopped() => None,
            };
            match turn {
                None => None,
                Some(turn) => Some((Arc::new(calls.make(turn, call).await), true)),
            }
        }
        Some(limits) => {
            let event = batch::Event {
                id: call.webhook_id.to_string(),
                kind: Some("webhook.call".to_owned()),
                body: body.to_owned(),
                is_cloudevent: false,
                attempt,
                is_last: webhook.is_last(attempt),
            };
            let batches = calls.queue.with_state(webhook.webhook_id, |state| Arc::clone(&state.batches));
            match batches.call(calls, limits, event).await {
                Part::Answered(answer, speaks) => Some((answer, speaks)),
                Part::NotCalled(_) => None,
            }
        }
    }
}

fn log_failure(queue: &Queue, claimed: &Claimed, known: &Known, verdict: &Verdict, status: Option<i32>, attempt: u64) {
    let error = verdict.error.as_deref().unwrap_or_default();
    match verdict.disposition {
        Disposition::Delivered => {}
        _ if !queue.logs_failure(known) => {}
        Disposition::Retry(wait) => tracing::warn!(
            webhook = known.webhook.name,
            call = claimed.call_id,
            status,
            attempt,
            retry_in_ms = wait.as_millis(),
            error,
            "call failed"
        ),
        Disposition::GivenUp => tracing::warn!(
            finding = "dead_letters",
            webhook = known.webhook.name,
            call = claimed.call_id,
            status,
            attempt,
            "dead letter: {error}"
        ),
    }
}

/// Makes the call if its webhook may be called, and says what its row is to have of it.
async fn handle(queue: &Queue, claimed: &Claimed, shutdown: watch::Receiver<bool>) -> Entry {
    let Some(known) = fresh(queue, claimed).await else { return Entry::given_back(claimed.call_id) };
    let webhook = &known.webhook;
    let own_id = format!("{}-call-{:x}-{}", queue.source, claimed.created_us, claimed.call_id);
    let webhook_id = claimed.retry_of.as_deref().unwrap_or(&own_id).replace('.', "_");
    let body = match webhook.request_body {
        RequestBody::Data => Cow::Borrowed(&*claimed.payload),
        RequestBody::Message => {
            message::envelope(&webhook_id, "webhook.call", webhook.webhook_id, &claimed.payload).into()
        }
    };
    let call = Call {
        event_id: own_id.as_str().into(),
        webhook_id: webhook_id.as_str().into(),
        position: None,
        kind: Some("webhook.call".into()),
        op: Some("insert"),
        old_key: None,
        headers: BTreeMap::new(),
        body: body.as_bytes(),
        content_type: "application/json",
    };
    let attempt = u64::try_from(claimed.attempt).unwrap_or(1);
    let counters = queue.counters.of(claimed.webhook_id);
    let calls = QueueCalls { queue, claimed, counters, shutdown };
    let Some((answer, speaks)) = call_it(&calls, webhook, &call, &body, attempt).await else {
        return Entry::given_back(claimed.call_id);
    };
    // As it was called, or newer.
    let known = queue.known(claimed.webhook_id).unwrap_or(known);
    let webhook = &known.webhook;
    if faults::pass(Point::QueueCalled).await.is_err() {
        return Entry::given_back(claimed.call_id);
    }
    queue.counts.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
    let verdict = schedule::judge(webhook, attempt, &answer.outcome, fastrand::f64());
    calls.counters.called(answer.took, verdict.disposition, verdict.error.as_deref(), None);
    if speaks {
        queue.with_state(webhook.webhook_id, |state| state.concurrency.learn(verdict.load));
    }
    stop_calls_if_asked(queue, &known, &verdict);
    let status = answer.outcome.status().map(i32::from);
    let letter = (verdict.disposition == Disposition::GivenUp).then(|| Letter {
        event_id: own_id.clone(),
        webhook_id: webhook.webhook_id,
        webhook_name: webhook.name.clone(),
        retry_of: claimed.retry_of.clone(),
        reason: schedule::gave_up(attempt, verdict.error.as_deref().unwrap_or_default()),
    });
    log_failure(queue, claimed, &known, &verdict, status, attempt);
    let Answer { headers, body, started, took, .. } = Arc::unwrap_or_clone(answer);
    Entry {
        call_id: claimed.call_id,
        state: match verdict.disposition {
            Disposition::Delivered => State::Success,
            Disposition::Retry(wait) => State::Retrying(wait),
            Disposition::GivenUp => State::Failed,
        },
        attempt: claimed.attempt,
        started: Some(started),
        took,
        response_status: status,
        response_headers: headers,
        response_body: body,
        error: verdict.error,
        letter,
        disables: verdict.disables.then(|| (webhook.webhook_id, webhook.url.clone())),
        pause: match verdict.load {
            ReceiverLoad::Pause(wait) => Some((webhook.webhook_id, wait, webhook.url.clone())),
            _ => None,
        },
    }
}

/// Stops the calls of a webhook whose receiver has asked for it: for a time, or until its row changes.
fn stop_calls_if_asked(queue: &Queue, known: &Known, verdict: &Verdict) {
    let webhook = &known.webhook;
    if let ReceiverLoad::Pause(wait) = verdict.load {
        queue.hold(known, wait);
    }
    if verdict.disables {
        queue.with_state(webhook.webhook_id, |state| state.is_refused = Some(webhook.url.clone()));
        tracing::warn!(
            finding = "webhook_not_called",
            webhook = webhook.name,
            "the receiver answers 410 (Gone): walhook calls it no more until its row has another url, or is enabled again"
        );
    }
}
