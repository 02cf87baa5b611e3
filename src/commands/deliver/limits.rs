//! The limits of a webhook that hold over all workers: how many calls side by side, and how many a second.
//!
//! In: a webhook's `max_in_flight` and `rate_limit_per_second`. Out: a [`Slot`] for each call, and the moment when it may begin. The workers
//! share both by two rows in PostgreSQL ([`Limit::keep`]): each holds a number of slots for a time, and takes starts of calls that no
//! other has. Always holds: a call begins only where it ends within the time for which this worker holds its slot, so that what a
//! killed worker held can be given to others once that time is over; a start that is missed is lost, not made up for. While PostgreSQL
//! cannot be reached, calls of such webhooks wait. A webhook without limits costs a look at two fields.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_postgres::{
    Client,
    types::{ToSql, Type},
};

use crate::{
    commands::{backoff::Backoff, log_once::LogOnce},
    deliver::webhook::Webhook,
    error::{Error, Result},
    postgres::{Settings, sql},
};

/// For how long slots are held beyond the time that a call may take.
const HELD: Duration = Duration::from_secs(10);
/// How much later than its timeout a call ends at most.
const MARGIN: Duration = Duration::from_millis(500);
/// How often the slots' time is prolonged, and the shares of all workers are computed again.
const RENEW: Duration = Duration::from_secs(1);
/// The same while calls wait for a slot.
const ASK: Duration = Duration::from_millis(200);
/// After so long without a slot an event is given back, for others to have.
const STARVED: Duration = Duration::from_secs(2);
/// How long a worker without a slot asks for no events and takes no calls of a webhook.
pub const STARVED_WAIT: Duration = Duration::from_secs(1);
/// How long a webhook has to have no calls until its slots are given back.
const IDLE: Duration = Duration::from_secs(1);
/// How far ahead starts are taken.
const AHEAD: f64 = 0.25;
/// How late a call may begin.
const LATE: Duration = Duration::from_millis(100);
/// How long PostgreSQL may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

const CALLS: &str = "SELECT walhook.rule_webhook_limit_calls($1, $2, $3, $4, $5)";
const STARTS: &str = "SELECT first_us, interval_us FROM walhook.rule_webhook_limit_starts($1, $2)";
const ORDER: &str = "SELECT walhook.rule_webhook_order_take($1, $2, $3, $4)";
const ORDER_RELEASE: &str = "DELETE FROM walhook.rule_webhook_order_holders WHERE worker = $1";
const RELEASE: &str = "DELETE FROM walhook.rule_webhook_limit_holders WHERE webhook_id = $1 AND worker = $2";

/// The limits of all webhooks. Without a database there are none.
pub struct Limits(Option<Arc<Shared>>);

struct Shared {
    settings: Settings,
    /// This worker among all.
    worker: String,
    client: tokio::sync::Mutex<Option<Arc<Client>>>,
    of: Mutex<HashMap<i32, Arc<Limit>>>,
    /// It may hold the order of a webhook.
    has_order: AtomicBool,
}

/// The limits of one webhook.
struct Limit {
    webhook_id: i32,
    state: Mutex<State>,
    /// There are slots or starts, or none will come.
    changed: Notify,
    /// Somebody waits for some.
    wanted: Notify,
}

#[derive(Default)]
struct State {
    /// How long a call may take.
    timeout: Duration,
    max_in_flight: Option<u32>,
    rate: Option<f64>,
    /// Somebody keeps the limit.
    is_kept: bool,
    /// How many calls may run here.
    slots: usize,
    /// Until when.
    held_until: Option<Instant>,
    running: usize,
    waiting: usize,
    /// When the number of slots was learned.
    learned: Option<Instant>,
    starts: VecDeque<Instant>,
    waiting_for_starts: usize,
    /// When something was last wanted or done.
    used: Option<Instant>,
}

impl State {
    fn is_held(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| now + self.timeout + MARGIN <= until)
    }

    fn is_idle(&self) -> bool {
        self.running == 0 && self.waiting == 0 && self.waiting_for_starts == 0
    }
}

/// The right to have one call in flight.
pub struct Slot {
    limit: Arc<Limit>,
    shared: Arc<Shared>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.limit.lock();
        state.running -= 1;
        state.used = Some(Instant::now());
        drop(state);
        self.limit.changed.notify_waiters();
    }
}

impl Slot {
    /// Waits until a call that begins now ends within the time for which the slot is held.
    pub async fn ready(&self) {
        let is_held = |state: &mut State| state.is_held(Instant::now()).then_some(());
        self.limit.until(&self.shared, |state| &mut state.waiting, is_held).await;
    }
}

/// There is no slot, and others have them all.
#[derive(Debug)]
pub struct Starved;

/// The moment when a call may begin.
pub struct Start(Option<Instant>);

impl Start {
    /// Too much time has gone by since: another start has to be taken.
    pub fn is_late(&self) -> bool {
        self.0.is_some_and(|at| Instant::now() > at + LATE)
    }
}

/// Counted for as long as somebody waits.
struct Waiting<'l>(&'l Limit, fn(&mut State) -> &mut usize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *(self.1)(&mut self.0.lock()) -= 1;
    }
}

impl Limits {
    /// Of a worker with a database, or of one without.
    pub fn new(settings: Option<Settings>) -> Limits {
        Limits(settings.map(|settings| {
            Arc::new(Shared {
                settings,
                worker: format!("{}-{:016x}", std::process::id(), fastrand::u64(..)),
                client: tokio::sync::Mutex::default(),
                of: Mutex::default(),
                has_order: AtomicBool::new(false),
            })
        }))
    }

    fn of(&self, webhook: &Webhook) -> Option<(Arc<Limit>, &Arc<Shared>)> {
        let shared = self.0.as_ref()?;
        let limit = {
            let mut of = shared.of.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(of.entry(webhook.webhook_id).or_insert_with(|| {
                Arc::new(Limit {
                    webhook_id: webhook.webhook_id,
                    state: Mutex::default(),
                    changed: Notify::new(),
                    wanted: Notify::new(),
                })
            }))
        };
        let mut state = limit.lock();
        state.timeout = Duration::from_millis(webhook.timeout_ms);
        state.max_in_flight = webhook.max_in_flight.filter(|_| !webhook.is_ordered);
        state.rate = webhook.rate_limit_per_second;
        drop(state);
        Some((limit, shared))
    }

    /// How many events of a webhook are worth having here, by its slots: one at least, which shows that there is work.
    pub fn room(&self, webhook: &Webhook) -> usize {
        match (&self.0, webhook.max_in_flight) {
            (Some(shared), Some(_)) if !webhook.is_ordered => {
                let of = shared.of.lock().unwrap_or_else(PoisonError::into_inner);
                of.get(&webhook.webhook_id).map_or(1, |limit| limit.lock().slots.max(1))
            }
            _ => usize::MAX,
        }
    }

    /// Waits for a slot; `None` where the webhook has no limit.
    ///
    /// # Errors
    /// Other workers have them all, and there are more workers than slots.
    pub async fn slot(&self, webhook: &Webhook) -> std::result::Result<Option<Slot>, Starved> {
        if webhook.max_in_flight.is_none() || webhook.is_ordered {
            return Ok(None);
        }
        let Some((limit, shared)) = self.of(webhook) else { return Ok(None) };
        let since = Instant::now();
        let found = |state: &mut State| {
            let now = Instant::now();
            if state.running < state.slots && state.is_held(now) {
                state.running += 1;
                return Some(Ok(()));
            }
            let is_known = state.learned.is_some_and(|learned| learned >= since);
            (state.slots == 0 && is_known && now >= since + STARVED).then_some(Err(Starved))
        };
        limit.until(shared, |state| &mut state.waiting, found).await?;
        Ok(Some(Slot { limit, shared: Arc::clone(shared) }))
    }

    /// Waits until a call may begin.
    pub async fn start(&self, webhook: &Webhook) -> Start {
        if webhook.rate_limit_per_second.is_none() {
            return Start(None);
        }
        let Some((limit, shared)) = self.of(webhook) else { return Start(None) };
        loop {
            let at = limit.until(shared, |state| &mut state.waiting_for_starts, |state| state.starts.pop_front()).await;
            sleep_until(at).await;
            let start = Start(Some(at));
            if !start.is_late() {
                limit.lock().used = Some(Instant::now());
                return start;
            }
        }
    }

    /// Until when this worker is the one of its group that calls a webhook in the order of its keys; `None`: another one is.
    ///
    /// # Errors
    /// PostgreSQL cannot be asked.
    pub async fn take_order(&self, webhook: &Webhook, group: &str) -> Result<Option<Instant>> {
        let Some(shared) = &self.0 else { return Ok(None) };
        let lease = Limits::longest_call(webhook) + HELD;
        // Counted from before the query: PostgreSQL reads its clock later.
        let began = Instant::now();
        let lease_ms = i32::try_from(lease.as_millis()).unwrap_or(i32::MAX);
        shared.has_order.store(true, Ordering::Relaxed);
        let row = shared
            .ask(
                ORDER,
                &[
                    (&webhook.webhook_id, Type::INT4),
                    (&group, Type::TEXT),
                    (&shared.worker, Type::TEXT),
                    (&lease_ms, Type::INT4),
                ],
            )
            .await?;
        Ok(row.get::<_, bool>(0).then(|| began + lease))
    }

    /// How long a call of this webhook may take.
    pub fn longest_call(webhook: &Webhook) -> Duration {
        Duration::from_millis(webhook.timeout_ms) + MARGIN
    }

    /// Gives all slots back, before the process ends.
    pub async fn release(&self) {
        let Some(shared) = &self.0 else { return };
        if shared.has_order.load(Ordering::Relaxed) {
            // It is another's a few seconds later anyway.
            let (attempted, worker) = ("give back the order of webhooks", &shared.worker);
            let _ = shared.execute(attempted, ORDER_RELEASE, &[(worker, Type::TEXT)]).await;
        }
        let ids: Vec<i32> = {
            let of = shared.of.lock().unwrap_or_else(PoisonError::into_inner);
            of.values().filter(|limit| limit.lock().held_until.is_some()).map(|limit| limit.webhook_id).collect()
        };
        for id in ids {
            // They are free a few seconds later anyway.
            if shared.release(id).await.is_err() {
                return;
            }
        }
    }
}

impl Shared {
    async fn client(&self) -> Result<Arc<Client>> {
        let mut client = self.client.lock().await;
        match &*client {
            Some(there) if !there.is_closed() => Ok(Arc::clone(there)),
            _ => Ok(Arc::clone(client.insert(Arc::new(sql::connect(&self.settings).await?)))),
        }
    }

    /// A row's answer, or nothing after a while.
    async fn ask(&self, query: &str, parameters: &[(&(dyn ToSql + Sync), Type)]) -> Result<tokio_postgres::Row> {
        let attempted = "share the limits of a webhook with other workers";
        let asked = async {
            let client = self.client().await?;
            let rows = client.query_typed(query, parameters).await.map_err(|error| sql::error(attempted, error))?;
            rows.into_iter().next().ok_or_else(|| Error::protocol(format!("{attempted}: no row")))
        };
        match timeout(PATIENCE, asked).await {
            Ok(Ok(row)) => Ok(row),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                // What it answers later is nobody's.
                *self.client.lock().await = None;
                Err(Error::unavailable(format!("{attempted}: no answer within {} s", PATIENCE.as_secs())))
            }
        }
    }

    async fn release(&self, webhook_id: i32) -> Result<()> {
        let attempted = "give back calls of a webhook's max_in_flight";
        self.execute(attempted, RELEASE, &[(&webhook_id, Type::INT4), (&self.worker, Type::TEXT)]).await
    }

    /// Executes this, or gives up after a while, which is no error.
    async fn execute(&self, attempted: &str, query: &str, parameters: &[(&(dyn ToSql + Sync), Type)]) -> Result<()> {
        let executed = async {
            let client = self.client().await?;
            client.execute_typed(query, parameters).await.map_err(|error| sql::error(attempted, error))
        };
        timeout(PATIENCE, executed).await.unwrap_or(Ok(0)).map(drop)
    }
}

impl Limit {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` finds something, with somebody who looks after it.
    async fn until<T>(
        self: &Arc<Limit>,
        shared: &Arc<Shared>,
        counter: fn(&mut State) -> &mut usize,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> T {
        let mut waiting = None;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                state.used = Some(Instant::now());
                if let Some(found) = found(&mut state) {
                    return found;
                }
                if waiting.is_none() {
                    *counter(&mut state) += 1;
                    waiting = Some(Waiting(self, counter));
                }
                if !state.is_kept {
                    state.is_kept = true;
                    tokio::spawn(Arc::clone(self).keep(Arc::clone(shared)));
                }
            }
            self.wanted.notify_one();
            tokio::select! {
                () = &mut changed => {}
                () = sleep(STARVED) => {}
            }
        }
    }

    /// Keeps slots and takes starts for as long as there are calls.
    async fn keep(self: Arc<Limit>, shared: Arc<Shared>) {
        let (mut backoff, mut logged) = (Backoff::default(), LogOnce::default());
        let mut asked: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let (slots_due, starts) = {
                let state = self.lock();
                let is_short = state.waiting > 0 || state.running > state.slots;
                let every = if is_short { ASK } else { RENEW };
                let due = asked.map_or(now, |asked| asked + every);
                (state.max_in_flight.is_some().then_some(due), wanted_starts(&state))
            };
            let outcome = async {
                if slots_due.is_some_and(|due| due <= now) {
                    asked = Some(now);
                    self.take_slots(&shared).await?;
                }
                match starts {
                    Some(count) => self.take_starts(&shared, count).await,
                    None => Ok(()),
                }
            };
            let outcome = outcome.await;
            match outcome {
                Ok(()) => {
                    if logged.forget() {
                        tracing::info!(
                            webhook_id = self.webhook_id,
                            "PostgreSQL can be reached again: the webhook with a limit is called again"
                        );
                    }
                    backoff = Backoff::default();
                }
                Err(error) => {
                    *shared.client.lock().await = None;
                    let text = error.to_string();
                    if logged.is_news(&text) {
                        tracing::warn!(
                            webhook_id = self.webhook_id,
                            "calls wait for their turn, which PostgreSQL gives: {text}"
                        );
                    }
                    sleep(backoff.next()).await;
                    continue;
                }
            }
            if self.is_over(&shared).await {
                return;
            }
            let next = {
                let state = self.lock();
                if wanted_starts(&state).is_some() {
                    continue;
                }
                let every = if state.waiting > 0 || state.running > state.slots { ASK } else { RENEW };
                asked.filter(|_| state.max_in_flight.is_some()).map_or(Instant::now() + IDLE, |asked| asked + every)
            };
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    /// There have been no calls for a while: slots go back, and nobody need keep the limit.
    async fn is_over(&self, shared: &Shared) -> bool {
        {
            let mut state = self.lock();
            if !state.is_idle() || state.used.is_some_and(|used| used.elapsed() < IDLE) {
                return false;
            }
            // From here on none begins without asking.
            (state.slots, state.starts) = (0, VecDeque::new());
            if state.held_until.take().is_none() {
                state.is_kept = false;
                return true;
            }
        }
        // Before anybody may ask again: a row that comes later would go with this one.
        let _ = shared.release(self.webhook_id).await;
        let mut state = self.lock();
        state.is_kept = !state.is_idle();
        !state.is_kept
    }

    async fn take_slots(&self, shared: &Shared) -> Result<()> {
        let (held, lease) = {
            let state = self.lock();
            (state.running.max(state.slots), state.timeout + MARGIN + HELD)
        };
        // Counted from before the query: PostgreSQL reads its clock later.
        let (began, worker) = (Instant::now(), shared.worker.as_str());
        let wanted = i32::MAX;
        let held = i32::try_from(held).unwrap_or(i32::MAX);
        let lease_ms = i32::try_from(lease.as_millis()).unwrap_or(i32::MAX);
        let row = shared
            .ask(
                CALLS,
                &[
                    (&self.webhook_id, Type::INT4),
                    (&worker, Type::TEXT),
                    (&wanted, Type::INT4),
                    (&held, Type::INT4),
                    (&lease_ms, Type::INT4),
                ],
            )
            .await?;
        let slots = match row.get::<_, Option<i32>>(0) {
            Some(slots) => usize::try_from(slots).unwrap_or(0),
            // The row has no limit any more.
            None => usize::MAX,
        };
        let mut state = self.lock();
        (state.slots, state.held_until, state.learned) = (slots, Some(began + lease), Some(Instant::now()));
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn take_starts(&self, shared: &Shared, count: i32) -> Result<()> {
        let row = shared.ask(STARTS, &[(&self.webhook_id, Type::INT4), (&count, Type::INT4)]).await?;
        // Counted from after the answer: PostgreSQL read its clock earlier, so no call begins before its time.
        let (now, first, interval) = (Instant::now(), row.get::<_, f64>(0), row.get::<_, f64>(1));
        let after =
            |micros: f64| Duration::try_from_secs_f64(micros.max(0.0) / 1e6).unwrap_or(Duration::from_secs(86_400));
        let starts = (0..count).map(|index| now + after(first + interval * f64::from(index)));
        self.lock().starts.extend(starts);
        self.changed.notify_waiters();
        Ok(())
    }
}

/// How many starts to take now.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 25,000")]
fn wanted_starts(state: &State) -> Option<i32> {
    let missing = state.waiting_for_starts.saturating_sub(state.starts.len());
    let most = (state.rate.unwrap_or(100_000.0) * AHEAD).ceil().clamp(1.0, 25_000.0) as usize;
    (missing > 0).then(|| i32::try_from(missing.min(most)).unwrap_or(1))
}
