//! One webhook's way out of one stream: pull, call, acknowledge.
//!
//! In: messages of a durable pull consumer that all workers of the group share. Out: calls, and for each message one word to
//! JetStream: ack, nak with the wait before its next attempt, or term behind a dead letter. Always holds: no more is
//! asked for than can be called at once, so a slow webhook waits in its own consumer and holds up no other; the attempts of an
//! event are its recorded calls, or where calls are not recorded its deliveries, so the schedule outlives every worker; what is
//! neither acked, nacked nor termed comes again after `ack_wait`.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::{Message, Subscriber};
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, interval_at, sleep, sleep_until, timeout},
};

use super::{
    batch::Batches, configuration::Known, consumer, event, keyed, order::Order, places::Places, shown::Counters,
    worker::Worker,
};
use crate::{
    commands::{backoff::Backoff, log_once::LogOnce},
    deliver::schedule::{ConcurrencyLimit, FailureLog, ReceiverLoad},
    error::{Error, Result},
    wal::lsn::Lsn,
};

/// How long a request for messages stands before it is made anew. Short enough that one which a lost connection has
/// swallowed is missed soon.
pub const PULL: Duration = Duration::from_secs(5);
/// How much later than that a request may end.
const PULL_GRACE: Duration = Duration::from_secs(2);
/// Calls that may wait for their record besides those that run, so that a slow database does not slow the calls down.
const RECORDING_MAX: usize = 1000;
/// Messages asked for at once.
const PULL_MAX: usize = 256;
/// How long an event waits that cannot be called now, such as that of a webhook that was disabled: until no request for messages
/// stands any more, so that it is not delivered again and again.
pub const CLOSED_WAIT: Duration = Duration::from_secs(PULL.as_secs() + PULL_GRACE.as_secs() + 1);
/// Events of which it is remembered that they were delivered and not called.
const TALLIES_MAX: usize = 100_000;
/// Notes about a webhook and stream of which each is logged once.
const NOTED_MAX: usize = 100;

/// What the calls of a lane share.
pub struct Lane {
    /// The process.
    pub worker: Arc<Worker>,
    /// The stream.
    pub stream: String,
    /// The consumer.
    pub consumer: String,
    /// The webhook, as it is now.
    pub known: watch::Receiver<Arc<Known>>,
    /// Ends what waits.
    pub shutdown: watch::Receiver<bool>,
    /// How many calls may run.
    concurrency: Mutex<ConcurrencyLimit>,
    /// The stream is a workqueue: what is acknowledged here is deleted for all.
    is_workqueue: AtomicBool,
    /// Of events, by sequence, what JetStream's and the database's counts do not say.
    tallies: Mutex<HashMap<u64, Tally>>,
    /// Which failed calls are logged.
    failures: Mutex<FailureLog>,
    /// What was logged once.
    noted: Mutex<HashSet<String>>,
    /// Calls that are answered and not recorded yet.
    answered: AtomicUsize,
    /// Wakes the lane: there is room for another call.
    has_room: Notify,
    /// The receiver has said 410 to this configuration.
    is_refused: AtomicBool,
    /// Where stream and WAL ended when the lane began.
    ends: Mutex<Option<Ends>>,
    /// Events that are to be called together.
    pub batches: Batches,
    /// Events in the order of their keys.
    pub order: Order,
    /// Calls of those.
    pub places: Places,
    /// What has happened to its webhook.
    counters: Arc<Counters>,
}

/// Where a stream ended, and where the WAL ended afterwards. No event of this database is in the stream before that and in the WAL
/// behind that.
#[derive(Debug, Clone, Copy)]
struct Ends {
    sequence: u64,
    wal: Lsn,
}

/// What is known of an event beyond its counts.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    /// Deliveries to this worker without a call.
    uncalled: u64,
    /// Calls whose record was lost.
    unrecorded: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Lane {
    /// The webhook, as it is now.
    pub fn now(&self) -> Arc<Known> {
        Arc::clone(&self.known.borrow())
    }

    /// The id of its webhook.
    pub fn webhook_id(&self) -> i32 {
        self.known.borrow().webhook.webhook_id
    }

    /// Any webhook, as it is now; `None` where there is none that this worker knows.
    pub fn webhook(&self, webhook_id: i32) -> Option<Arc<Known>> {
        let own = self.now();
        if own.webhook.webhook_id == webhook_id {
            return Some(own);
        }
        let all = self.worker.all.borrow();
        let all = all.as_ref()?;
        if let Some(known) = all.webhooks.get(&webhook_id) {
            return Some(Arc::clone(known));
        }
        all.is_deleted.contains(&webhook_id).then(|| {
            let mut gone = Known { is_gone: true, ..Known::clone(&own) };
            gone.webhook.webhook_id = webhook_id;
            gone.webhook.name = format!("webhook {webhook_id}");
            Arc::new(gone)
        })
    }

    /// The counters of a webhook: nearly always those of its own.
    pub fn counters(&self, webhook_id: i32) -> Arc<Counters> {
        match webhook_id == self.webhook_id() {
            true => Arc::clone(&self.counters),
            false => self.worker.counters.of(webhook_id),
        }
    }

    /// Whether what is acknowledged here is deleted for all.
    pub fn is_workqueue(&self) -> bool {
        self.is_workqueue.load(Ordering::Relaxed)
    }

    /// Reads where the WAL ends, once the stream was seen to end at `last_sequence`. Where that cannot be read any more, the ends
    /// of before still tell.
    ///
    /// # Errors
    /// It cannot be read, and never was.
    async fn compare(&self, last_sequence: u64) -> Result<()> {
        let Some(call_log) = &self.worker.call_log else { return Ok(()) };
        match call_log.wal_end().await {
            Ok(wal) => *lock(&self.ends) = Some(Ends { sequence: last_sequence, wal }),
            Err(error) if lock(&self.ends).is_none() => return Err(error),
            Err(error) => tracing::debug!("{error}"),
        }
        Ok(())
    }

    /// Where the WAL ended when the stream had an event already that was committed behind that. `None`: the database can have
    /// committed it.
    pub fn wal_end_before(&self, sequence: u64, commit_lsn: Lsn) -> Option<Lsn> {
        let ends = *lock(&self.ends);
        ends.filter(|ends| sequence <= ends.sequence && commit_lsn > ends.wal).map(|ends| ends.wal)
    }

    /// Learns how the receiver bears the calls.
    pub fn learn(&self, webhook_id: i32, load: ReceiverLoad) {
        lock(&self.concurrency).learn(load);
        if let ReceiverLoad::Pause(wait) = load {
            self.hold(webhook_id, wait);
        }
    }

    /// Calls a webhook no more for so long, and asks for no events of it.
    pub fn hold(&self, webhook_id: i32, wait: Duration) {
        let until = Instant::now() + wait;
        let mut holds = lock(&self.worker.holds);
        let held = holds.entry(webhook_id).or_insert(until);
        *held = until.max(*held);
    }

    /// Until when a webhook's receiver wants no calls.
    pub fn paused_until(&self, webhook_id: i32) -> Option<Instant> {
        lock(&self.worker.holds).get(&webhook_id).copied().filter(|until| *until > Instant::now())
    }

    /// The webhook is called at another URL now, which has asked for no pause.
    fn release(&self) {
        lock(&self.worker.holds).remove(&self.webhook_id());
    }

    fn tally(&self, sequence: u64, change: impl FnOnce(&mut Tally)) {
        let mut tallies = lock(&self.tallies);
        if tallies.len() >= TALLIES_MAX {
            tallies.clear();
        }
        change(tallies.entry(sequence).or_default());
    }

    /// The message was delivered here and not called.
    pub fn was_not_called(&self, sequence: u64) {
        self.tally(sequence, |tally| tally.uncalled += 1);
    }

    /// A call whose record is lost.
    pub fn was_not_recorded(&self, sequence: u64) {
        self.tally(sequence, |tally| tally.unrecorded += 1);
    }

    /// The message does not come again.
    pub fn is_done(&self, sequence: u64) {
        lock(&self.tallies).remove(&sequence);
    }

    /// Calls that were made of an event before this delivery of it: those that are recorded, and otherwise its deliveries, but
    /// for those of which this worker knows that there was no call.
    pub fn calls_before(&self, sequence: u64, delivered: u64, recorded: Option<u64>) -> u64 {
        let tally = lock(&self.tallies).get(&sequence).copied().unwrap_or_default();
        let deliveries_before = delivered.saturating_sub(1);
        match recorded {
            Some(recorded) => recorded + tally.unrecorded,
            None => deliveries_before.saturating_sub(tally.uncalled),
        }
        .min(deliveries_before)
    }

    /// Whether a failed call is logged; before it, how many were not.
    pub fn logs_failure(&self) -> bool {
        let (left_out, is_logged) = lock(&self.failures).take(self.worker.began.elapsed());
        if left_out > 0 {
            tracing::warn!(
                webhook = self.now().webhook.name,
                left_out,
                "more calls have failed; rule_webhook_call_history has each, unless --record is off"
            );
        }
        is_logged
    }

    /// Reports, once, that a message's trace context cannot be passed on.
    pub fn note_untraced(&self, wrong: &str) {
        if lock(&self.noted).insert("traceparent".to_owned()) {
            let wrong: String = wrong.chars().take(80).collect();
            tracing::warn!(
                webhook = self.now().webhook.name,
                stream = self.stream,
                "a message has the traceparent {wrong:?}, which is not valid (W3C Trace Context): its webhook is called without a trace; \
                 further ones are not logged"
            );
        }
    }

    /// Logs what concerns the lane as a whole, once.
    pub fn note_once(&self, text: String) {
        let mut noted = lock(&self.noted);
        // A server's words may be others each time.
        if noted.len() >= NOTED_MAX {
            noted.clear();
        }
        if noted.insert(text.clone()) {
            tracing::warn!(webhook = self.now().webhook.name, stream = self.stream, "{text}");
        }
    }

    /// A call is answered: while its record is on the way another one may be made.
    pub fn answered(&self) -> Answered<'_> {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.has_room.notify_one();
        Answered(self)
    }

    /// How many more calls may be begun.
    fn room(&self, calls: usize) -> usize {
        let known = self.now();
        if known.webhook.order_key.is_some() {
            // Events that wait for others of their key are in hand, too.
            return usize::try_from(self.worker.settings.max_waiting).unwrap_or(usize::MAX).saturating_sub(calls);
        }
        let per_call = known.webhook.batch.map_or(1, |batch| batch.events);
        let limit = self.limit_of(&known).saturating_mul(per_call);
        let running = calls.saturating_sub(self.answered.load(Ordering::Relaxed));
        limit.saturating_sub(running).min(limit.saturating_add(RECORDING_MAX).saturating_sub(calls))
    }

    /// The row has changed.
    pub fn reopen(&self) {
        self.is_refused.store(false, Ordering::Relaxed);
    }

    /// No more calls until the row changes.
    pub fn refuse(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
    }

    /// Whether events are to be asked for and called.
    pub fn is_open(&self) -> bool {
        self.may_call(&self.now())
    }

    /// Whether this worker may call this webhook now.
    pub fn may_call(&self, known: &Known) -> bool {
        let is_own = known.webhook.webhook_id == self.webhook_id();
        let knows_enough = self.worker.settings.has_database || !known.webhook.needs_database();
        let is_refused = is_own && self.is_refused.load(Ordering::Relaxed);
        known.is_gone || known.webhook.enabled && knows_enough && !is_refused
    }

    /// How many calls may run now.
    pub fn limit(&self) -> usize {
        self.limit_of(&self.now())
    }

    fn limit_of(&self, known: &Known) -> usize {
        let max = match known.webhook.is_ordered {
            true => 1,
            false => known.webhook.max_in_flight.unwrap_or(self.worker.settings.max_in_flight_per_webhook),
        };
        let mut concurrency = lock(&self.concurrency);
        concurrency.bound(max);
        concurrency.limit().min(self.worker.limits.room(&known.webhook))
    }

    /// Ends at shutdown.
    pub async fn stopped(&self) {
        let mut shutdown = self.shutdown.clone();
        // A sender that is gone is a process that ends.
        let _ = shutdown.wait_for(|stop| *stop).await;
    }
}

/// A call between its receiver's answer and its answer to JetStream (ack, nak or term).
pub struct Answered<'l>(&'l Lane);

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        self.0.answered.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How far a lane has come, for the service manager.
#[derive(Debug, Default)]
pub struct Start {
    is_tried: AtomicBool,
    is_subscribed: AtomicBool,
}

impl Start {
    /// Whether the consumer has its subscription, or an attempt to get it has failed.
    pub fn is_tried(&self) -> bool {
        self.is_tried.load(Ordering::Relaxed)
    }

    /// Whether the consumer has its subscription now.
    pub fn is_subscribed(&self) -> bool {
        self.is_subscribed.load(Ordering::Relaxed)
    }

    fn is_now(&self, subscribed: bool) {
        self.is_subscribed.store(subscribed, Ordering::Relaxed);
        self.is_tried.store(true, Ordering::Relaxed);
    }
}

pub type Calls = FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// Runs until shutdown, or until the webhook is no more and nothing of it is left.
pub async fn run(
    worker: Arc<Worker>,
    stream: String,
    mut known: watch::Receiver<Arc<Known>>,
    shutdown: watch::Receiver<bool>,
    start: Arc<Start>,
) {
    let webhook = known.borrow().webhook.clone();
    let consumer = consumer::name(&worker.settings.group, webhook.webhook_id);
    let counters = worker.counters.of(webhook.webhook_id);
    let lane = Arc::new(Lane {
        counters,
        worker,
        stream,
        consumer,
        known: known.clone(),
        shutdown,
        concurrency: Mutex::new(ConcurrencyLimit::new(1)),
        is_workqueue: AtomicBool::new(false),
        tallies: Mutex::default(),
        failures: Mutex::default(),
        noted: Mutex::default(),
        answered: AtomicUsize::new(0),
        has_room: Notify::new(),
        is_refused: AtomicBool::new(false),
        ends: Mutex::new(None),
        batches: Batches::default(),
        order: Order::default(),
        places: Places::default(),
    });
    let mut calls = Calls::new();
    let mut backoff = Backoff::default();
    let mut logged = LogOnce::default();
    while let Err(error) = session(&lane, &mut known, &mut calls, &mut backoff, &start).await {
        start.is_now(false);
        let text = error.to_string();
        if logged.is_news(&text) {
            tracing::warn!(webhook = webhook.name, stream = lane.stream, "{text}");
        }
        let retry = sleep(backoff.next());
        tokio::pin!(retry);
        loop {
            tokio::select! {
                () = lane.stopped() => break,
                () = &mut retry => break,
                // What is under way goes on meanwhile.
                Some(()) = calls.next(), if !calls.is_empty() => {}
            }
        }
        if *lane.shutdown.borrow() {
            break;
        }
    }
    // Each ends by itself: its answer comes, or the time that a shutdown has is over.
    while calls.next().await.is_some() {}
}

/// A request for messages.
pub struct Pull {
    missing: usize,
    ends: Instant,
}

impl Pull {
    /// The request once one more of its messages has come; `None` behind the last.
    fn after_one(self) -> Option<Pull> {
        let missing = self.missing.saturating_sub(1);
        (missing > 0).then_some(Pull { missing, ..self })
    }
}

/// Pulls and calls until shutdown, or until something is wrong with the consumer or the connection.
async fn session(
    lane: &Arc<Lane>,
    known: &mut watch::Receiver<Arc<Known>>,
    calls: &mut Calls,
    backoff: &mut Backoff,
    start: &Start,
) -> Result<()> {
    let configured = Arc::clone(&known.borrow_and_update());
    prepare(lane, &configured).await?;
    let inbox = lane.worker.client.new_inbox();
    let mut messages = subscribe(lane, inbox.clone()).await?;
    start.is_now(true);
    // However that ends, another worker may take what is left at once.
    let outcome = pull_and_call(lane, known, configured, calls, backoff, &inbox, &mut messages).await;
    lane.order.hold(None);
    give_back(lane, messages).await;
    outcome
}

/// The loop of a session, whose messages come to `inbox`.
async fn pull_and_call(
    lane: &Arc<Lane>,
    known: &mut watch::Receiver<Arc<Known>>,
    mut configured: Arc<Known>,
    calls: &mut Calls,
    backoff: &mut Backoff,
    inbox: &str,
    messages: &mut Subscriber,
) -> Result<()> {
    let is_keyed = configured.webhook.order_key.is_some();
    if is_keyed && !keyed::begin(lane, known, calls, inbox, messages).await? {
        return Ok(());
    }
    let mut pull: Option<Pull> = None;
    // One for all turns of the loop.
    let stopped = lane.stopped();
    tokio::pin!(stopped);
    loop {
        if is_keyed && !lane.is_open() {
            return Err(Error::unavailable("the webhook is not called at present: its events are given back"));
        }
        let room = lane.room(calls.len());
        let paused = lane.paused_until(configured.webhook.webhook_id);
        if pull.is_none() && room > 0 && paused.is_none() && lane.is_open() {
            pull = Some(ask(lane, inbox, room.min(PULL_MAX)).await?);
        }
        tokio::select! {
            biased;
            () = &mut stopped => return Ok(()),
            () = lane.order.is_over(), if is_keyed => {
                return Err(Error::unavailable(keyed::OTHERS_ORDER));
            }
            changed = known.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                lane.reopen();
                let now = Arc::clone(&known.borrow_and_update());
                adapt(lane, &configured, &now).await?;
                configured = now;
            }
            Some(()) = calls.next(), if !calls.is_empty() => {}
            () = lane.has_room.notified() => {}
            message = messages.next() => {
                let Some(message) = message else { return Err(Error::unavailable("the connection to NATS is closed")) };
                match word(&message) {
                    Word::Event => {
                        *backoff = Backoff::default();
                        pull = pull.and_then(Pull::after_one);
                        take(lane, calls, message, is_keyed).await;
                    }
                    Word::Nothing => {}
                    Word::Over => {
                        pull = None;
                        if configured.is_gone && calls.is_empty() && consumer::retire(lane).await? {
                            return Ok(());
                        }
                    }
                    Word::Trouble(why) => {
                        return Err(Error::unavailable(format!("pull from consumer {:?}: {why}", lane.consumer)));
                    }
                }
            }
            () = until(pull.as_ref().map(|pull| pull.ends)) => pull = None,
            () = until(paused) => {}
        }
    }
}

/// Looks at the stream, and makes the webhook's consumer there, or brings it up to date.
async fn prepare(lane: &Lane, configured: &Known) -> Result<()> {
    let (is_workqueue, last_sequence) = consumer::look_at(&lane.worker.control, &lane.stream).await?;
    lane.is_workqueue.store(is_workqueue, Ordering::Relaxed);
    lane.compare(last_sequence).await?;
    if !configured.is_gone {
        consumer::ensure(&lane.worker, &lane.stream, &lane.consumer, &configured.webhook).await?;
    }
    Ok(())
}

async fn subscribe(lane: &Lane, inbox: String) -> Result<Subscriber> {
    let subscribed = lane.worker.client.subscribe(inbox).await;
    subscribed.map_err(|error| Error::unavailable("subscribe to an inbox").caused_by(error))
}

/// Begins the call of an event: at once, or in the order of its key.
async fn take(lane: &Arc<Lane>, calls: &mut Calls, message: Message, is_keyed: bool) {
    match is_keyed {
        false => calls.push(Box::pin(alive(Arc::clone(lane), message, false))),
        true => keyed::take(lane, calls, message).await,
    }
}

/// Adapts the lane and its consumer to the webhook's row, which has changed.
///
/// # Errors
/// The consumer cannot be changed; or the events are to come in another order now, which takes a new session.
async fn adapt(lane: &Arc<Lane>, before: &Known, now: &Known) -> Result<()> {
    if (&now.webhook.url, &now.webhook.oauth2) != (&before.webhook.url, &before.webhook.oauth2) {
        lane.release();
        tokio::spawn(consumer::resume(Arc::clone(lane)));
    }
    if !now.is_gone && consumer::differs(&before.webhook, &now.webhook) {
        consumer::ensure(&lane.worker, &lane.stream, &lane.consumer, &now.webhook).await?;
    }
    if now.webhook.order_key != before.webhook.order_key {
        return Err(Error::unavailable(keyed::ORDER_CHANGED));
    }
    Ok(())
}

pub async fn ask(lane: &Lane, inbox: &str, count: usize) -> Result<Pull> {
    let subject = lane.worker.control.api_subject(&format!("CONSUMER.MSG.NEXT.{}.{}", lane.stream, lane.consumer));
    let body = json!({ "batch": count, "expires": PULL.as_nanos() }).to_string();
    lane.worker
        .client
        .publish_with_reply(subject, inbox.to_owned(), body.into())
        .await
        .map_err(|error| Error::unavailable("ask for messages").caused_by(error))?;
    Ok(Pull { missing: count, ends: Instant::now() + PULL + PULL_GRACE })
}

/// What came on the inbox.
pub enum Word {
    Event,
    Nothing,
    /// The request has run out.
    Over,
    Trouble(String),
}

pub fn word(message: &Message) -> Word {
    let Some(status) = message.status else { return Word::Event };
    let description = message.description.as_deref().unwrap_or_default();
    match status.as_u16() {
        100 => Word::Nothing,
        404 | 408 => Word::Over,
        // "Exceeded MaxWaiting", "Leadership Change", "Server Shutdown" pass; "Consumer Deleted" wants it made again.
        409 if description.starts_with("Leadership") => Word::Over,
        503 => Word::Trouble("there is no such consumer".to_owned()),
        status => Word::Trouble(format!("{description} ({status})")),
    }
}

/// An event's call, and a sign of life to JetStream for as long as it takes.
pub async fn alive(lane: Arc<Lane>, message: Message, is_keyed: bool) {
    let Some(reply) = message.reply.clone() else { return };
    let client = &lane.worker.client;
    let beat = lane.worker.settings.ack_wait / 3;
    let mut beats = interval_at(Instant::now() + beat, beat);
    let call = event::handle(&lane, message, is_keyed);
    let abandoned = async {
        lane.stopped().await;
        sleep(lane.worker.shutdown_timeout).await;
    };
    tokio::pin!(call, abandoned);
    loop {
        tokio::select! {
            biased;
            () = &mut call => return,
            () = &mut abandoned => {
                let _ = client.publish(reply, "-NAK".into()).await;
                return;
            }
            // A beat that is lost costs a second delivery, which is at-least-once's own price.
            _ = beats.tick() => drop(client.publish(reply.clone(), "+WPI".into()).await),
        }
    }
}

/// Ends the subscription; what comes before the server knows is given back.
async fn give_back(lane: &Lane, mut messages: Subscriber) {
    let _ = messages.drain().await;
    let rest = async {
        while let Some(message) = messages.next().await {
            if matches!(word(&message), Word::Event)
                && let Some(reply) = message.reply
            {
                let _ = lane.worker.client.publish(reply, "-NAK".into()).await;
            }
        }
    };
    let _ = timeout(PULL_GRACE, rest).await;
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
