//! One event: read, called, recorded, and its answer to JetStream (ack, nak or term).
//!
//! In: a message. Out: exactly one of ack, nak with the wait before the next attempt, or term; the last only when the event
//! is durable as a dead letter. Where it is not, it comes again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, Message};
use serde_json::{Value, json};
use tokio::{sync::SemaphorePermit, time::sleep_until};

use super::{
    batch::{self, BatchCalls, Part},
    call::Answer,
    call_log::{DeadLetter, Entry, Kept},
    claim_check,
    configuration::Known,
    consumer,
    lane::{CLOSED_WAIT, Lane},
    limits::{Limits as Shares, STARVED_WAIT, Slot, Starved},
    receivers::Token,
    sealed::{self, Content},
    settings::Record,
    shown::Counters,
    worker::Worker,
};
use crate::{
    deliver::{
        message::{self, CLOUDEVENT, Call, Ids, Reading, Shape},
        order::Keys,
        schedule::{self, Disposition, ReceiverLoad, Verdict, WAIT_MAX},
        webhook::BatchLimits,
    },
    postgres,
    route::{headers::OLD_KEY, value::write_as_json},
};

/// Where a dead letter's stream would take it.
const DEAD_SUBJECT: &str = "dlq.";
/// Nothing that we could do now would help: so long until the event is tried again.
const HOPELESS: Duration = WAIT_MAX;
/// How long an event of another webhook that cannot be called from here waits on a workqueue stream.
const OTHERS_WAIT: Duration = Duration::from_secs(60);
/// How long an event waits that could not be called within the time for which this worker calls its webhook.
const UNTIMELY_WAIT: Duration = Duration::from_millis(200);

/// What has happened since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Events that arrived.
    pub delivered: AtomicU64,
    /// Attempts that failed and are made again.
    pub failed: AtomicU64,
    /// Events given up.
    pub dead: AtomicU64,
    /// Calls whose record is lost.
    pub unrecorded: AtomicU64,
    /// Bytes of bodies sent.
    pub bytes: AtomicU64,
    /// How long after its commit the last event was delivered.
    pub lag_ms: AtomicU64,
}

/// One more.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Where a message stands, as its reply subject says: `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.
/// <stream seq>.<consumer seq>.<time>.<pending>[.<random>]`.
pub struct Delivery<'a> {
    stream: &'a str,
    /// The sequence of the message.
    pub sequence: u64,
    /// How often it was delivered, this time included.
    delivered: u64,
    /// When the message was stored.
    pub stored_at: u64,
}

impl<'a> Delivery<'a> {
    /// Reads it.
    pub fn parse(reply: &'a str) -> Option<Delivery<'a>> {
        let tokens = reply.strip_prefix("$JS.ACK.")?.split('.');
        let from = if tokens.clone().count() >= 9 { 2 } else { 0 };
        let mut tokens = tokens.skip(from);
        let (stream, _consumer) = (tokens.next()?, tokens.next()?);
        let (delivered, sequence) = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        let stored_at = tokens.nth(1)?.parse().ok()?;
        Some(Delivery { stream, sequence, delivered, stored_at })
    }
}

/// See the module. `is_keyed`: the event has a place in the lane's order, and keeps it until it is done.
pub async fn handle(lane: &Arc<Lane>, message: Message, is_keyed: bool) {
    let Some(reply) = message.reply.clone() else { return };
    // Not by this consumer: nobody waits for a word.
    let Some(delivery) = Delivery::parse(&reply) else { return };
    let mut tried = None;
    let word = loop {
        let is_ready = async { !is_keyed || lane.order.is_ready(delivery.sequence).await };
        let is_ready = tokio::select! {
            is_ready = is_ready => is_ready,
            () = lane.stopped(), if is_keyed => false,
        };
        if !is_ready {
            lane.was_not_called(delivery.sequence);
            break Word::Later(Duration::ZERO);
        }
        let word = decide(lane, &message, &delivery, is_keyed, &mut tried).await;
        match word {
            Word::Ack | Word::Never => lane.is_done(delivery.sequence),
            Word::Later(_) if !is_keyed => lane.was_not_called(delivery.sequence),
            Word::Later(_) | Word::Again(_) => {}
        }
        match word {
            Word::Again(wait) | Word::Later(wait) if is_keyed => {
                if let Word::Again(_) = word {
                    tried = tried.map(|tried| tried + 1);
                }
                let goes_on = tokio::select! {
                    goes_on = lane.order.waits(wait) => goes_on,
                    () = lane.stopped() => false,
                };
                if !goes_on {
                    lane.was_not_called(delivery.sequence);
                    break Word::Later(Duration::ZERO);
                }
            }
            word => break word,
        }
    };
    let text = match word {
        Word::Ack => "+ACK".to_owned(),
        Word::Again(Duration::ZERO) | Word::Later(Duration::ZERO) => "-NAK".to_owned(),
        Word::Again(wait) | Word::Later(wait) => {
            format!("-NAK {}", json!({ "delay": u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX) }))
        }
        Word::Never => "+TERM".to_owned(),
    };
    // Where the connection is lost for good, the event comes again after `ack_wait`.
    let _ = lane.worker.client.publish(reply.clone(), text.into()).await;
    if is_keyed && matches!(word, Word::Ack | Word::Never) {
        lane.order.finish(delivery.sequence, delivery.stored_at);
    }
}

/// The keys by which an event of this webhook is ordered.
pub fn keys(worker: &Worker, known: &Known, message: &Message) -> Keys {
    let Some(from) = &known.webhook.order_key else { return Keys::All };
    let header = |name: &str| message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str);
    let old_key = sealed::old_key(worker, message);
    let with_old_key = |name: &str| match &old_key {
        Some(old_key) if name == OLD_KEY => Some(old_key.as_str()),
        _ => header(name),
    };
    from.of(&message.subject, with_old_key, || {
        // A claim check does not say what is in the payload.
        if header("Walhook-Object").is_some() {
            return None;
        }
        let opened = sealed::peek(worker, message);
        let mut value: Value = serde_json::from_slice(opened.as_deref().unwrap_or(&message.payload)).ok()?;
        let is_bare = Shape::of(header) == Shape::Bare;
        for inside in ["data", "after", "before"] {
            if !is_bare && let Some(data) = value.get_mut(inside).filter(|data| data.is_object()) {
                return Some(data.take());
            }
        }
        Some(value)
    })
}

enum Word {
    Ack,
    /// After a call that failed.
    Again(Duration),
    /// Without a call: this delivery is no attempt.
    Later(Duration),
    Never,
}

/// Reads the event, calls its webhook if it may be called now, and says what JetStream is to do with the message. `tried`: which
/// attempt the next call is, if that is known.
async fn decide(
    lane: &Arc<Lane>,
    message: &Message,
    delivery: &Delivery<'_>,
    is_keyed: bool,
    tried: &mut Option<u64>,
) -> Word {
    let own = lane.now();
    let fallback = format!("{}:{}:{}", delivery.stream, delivery.sequence, own.webhook.webhook_id);
    let ids = ids_of(message, &fallback);
    let (known, reading) = match read(lane, own, message, ids) {
        Ok(read) => read,
        Err(word) => return word,
    };
    let webhook_id = known.webhook.webhook_id;
    let mut call = match reading {
        Reading::Anothers(_) => return Word::Later(OTHERS_WAIT),
        Reading::Unreadable(event_id, why) => {
            return give_up(lane, &known, message, &event_id, None, why, None).await;
        }
        Reading::Call(call) => call,
    };
    if let Some(wrong) = call.describe(headers_of(message)) {
        lane.note_untraced(&wrong);
    }
    if is_of_another_history(lane, delivery, &call) {
        return Word::Later(OTHERS_WAIT);
    }
    if known.is_gone {
        let why = "the webhook was deleted before its event was called".to_owned();
        return give_up(lane, &known, message, &call.event_id, commit_lsn_of(&call), why, None).await;
    }
    if let Some(why) = sealed::missing_key(lane, message) {
        lane.counters(webhook_id).waits(&why);
        lane.note_once(why);
        return Word::Later(sealed::KEY_WAIT);
    }
    let attempt = match *tried {
        Some(attempt) => attempt,
        None => *tried.insert(attempt(lane, &call.event_id, delivery).await),
    };
    let _place = match is_keyed {
        true => Some(lane.places.take(|| lane.limit(), lane.stopped()).await),
        false => None,
    };
    let called = match known.webhook.batch.filter(|_| webhook_id == lane.webhook_id()) {
        None => alone(lane, message, ids, &call, webhook_id).await,
        Some(limits) => together(lane, message, ids, &call, limits, (attempt, known.webhook.is_last(attempt))).await,
    };
    match called {
        Ok(called) => conclude(lane, message, delivery, &call, attempt, called).await,
        Err(word) => word,
    }
}

/// What the message's headers say of its event; `fallback` is its id where they have none.
fn ids_of<'m>(message: &'m Message, fallback: &'m str) -> Ids<'m> {
    let header = |name: &str| message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str);
    Ids {
        walhook: header("Walhook-Id"),
        message: header("Nats-Msg-Id"),
        retry_of: header("Walhook-Retry-Of"),
        fallback,
        shape: Shape::of(header),
        is_sealed: sealed::is_sealed(message),
    }
}

/// Reads the message as an event of the lane's `own` webhook, or else of the one whose event it is, if that one is called from here.
fn read<'m>(
    lane: &Lane,
    own: Arc<Known>,
    message: &'m Message,
    ids: Ids<'m>,
) -> Result<(Arc<Known>, Reading<'m>), Word> {
    let read_for = |known: &Known| message::read(&known.webhook, &lane.worker.source, ids, &message.payload);
    let reading = read_for(&own);
    let Reading::Anothers(whose) = reading else { return Ok((own, reading)) };
    // Its own consumer has it, unless the stream is a workqueue, where this one is all that there can be.
    if !lane.is_workqueue() {
        return Err(Word::Ack);
    }
    match others(lane, whose) {
        Ok(other) => {
            let reading = read_for(&other);
            Ok((other, reading))
        }
        Err(why) => {
            lane.note_once(why);
            Err(Word::Later(OTHERS_WAIT))
        }
    }
}

/// Notes what the answer to a call tells of the receiver, records the attempt, and says what becomes of the event.
async fn conclude(
    lane: &Arc<Lane>,
    message: &Message,
    delivery: &Delivery<'_>,
    call: &Call<'_>,
    attempt: u64,
    called: Called<'_>,
) -> Word {
    let Called { known, counters, answer, speaks, place } = called;
    let webhook_id = known.webhook.webhook_id;
    count_called(lane, call);
    let verdict = schedule::judge(&known.webhook, attempt, &answer.outcome, fastrand::f64());
    let committed = call.position.map(|position| position.commit_time);
    counters.called(answer.took, verdict.disposition, verdict.error.as_deref(), committed);
    if speaks {
        learn(lane, webhook_id, verdict.load);
    }
    drop(place);
    let _answered = lane.answered();
    if verdict.disables {
        refuse(lane, webhook_id, &known);
    }
    let entry = entry(lane, &known, call, attempt, &answer, &verdict);
    if let Disposition::Retry(wait) = verdict.disposition {
        log_failure(lane, &known, call, &entry, attempt, wait);
    }
    match verdict.disposition {
        Disposition::Delivered => {
            keep(lane, delivery, entry).await;
            count(&lane.worker.counts.delivered);
            Word::Ack
        }
        Disposition::Retry(wait) => {
            keep(lane, delivery, entry).await;
            count(&lane.worker.counts.failed);
            Word::Again(wait)
        }
        Disposition::GivenUp => {
            let why = schedule::gave_up(attempt, entry.error.as_deref().unwrap_or_default());
            give_up(lane, &known, message, &call.event_id, commit_lsn_of(call), why, Some(entry)).await
        }
    }
}

fn commit_lsn_of(call: &Call<'_>) -> Option<String> {
    call.position.map(|position| position.commit_lsn.to_string())
}

/// Whether the event was committed behind the end of the WAL as it was when the worker began.
fn is_of_another_history(lane: &Lane, delivery: &Delivery<'_>, call: &Call<'_>) -> bool {
    if let Some(position) = call.position
        && let Some(wal_end) = lane.wal_end_before(delivery.sequence, position.commit_lsn)
    {
        lane.note_once(format!(
            "the stream has events from behind {wal_end}, where PostgreSQL's WAL ended when this worker began: the database was restored \
             to an earlier point, or is a copy. They are not delivered; start `walhook run`, whose error says what to do"
        ));
        return true;
    }
    false
}

fn count_called(lane: &Lane, call: &Call<'_>) {
    lane.worker.counts.bytes.fetch_add(call.body.len() as u64, Ordering::Relaxed);
    if let Some(position) = call.position {
        let lag = postgres::now().saturating_sub(position.commit_time) / 1000;
        lane.worker.counts.lag_ms.store(u64::try_from(lag).unwrap_or(0), Ordering::Relaxed);
    }
}

/// How many calls the receiver takes at once, and how long it takes none.
fn learn(lane: &Arc<Lane>, webhook_id: i32, load: ReceiverLoad) {
    lane.learn(webhook_id, load);
    if let ReceiverLoad::Pause(wait) = load
        && webhook_id == lane.webhook_id()
    {
        tokio::spawn(consumer::pause(Arc::clone(lane), wait));
    }
}

fn refuse(lane: &Lane, webhook_id: i32, known: &Known) {
    if webhook_id == lane.webhook_id() {
        lane.refuse();
    }
    tracing::warn!(
        finding = "webhook_not_called",
        webhook = known.webhook.name,
        "the receiver answers 410 (Gone): walhook calls it no more until its row has another url, or is enabled again"
    );
}

fn log_failure(lane: &Lane, known: &Known, call: &Call<'_>, entry: &Entry, attempt: u64, wait: Duration) {
    if lane.logs_failure() {
        tracing::warn!(
            webhook = known.webhook.name,
            event = %call.event_id,
            status = entry.response_status,
            attempt,
            retry_in_ms = wait.as_millis(),
            error = entry.error,
            "call failed"
        );
    }
}

/// A call that is answered.
struct Called<'l> {
    /// The webhook as it was called, or newer.
    known: Arc<Known>,
    counters: Arc<Counters>,
    answer: Arc<Answer>,
    /// True for one event of a call: only it adjusts the concurrency.
    speaks: bool,
    /// Its place among the calls that may run.
    place: Option<(Option<Slot>, SemaphorePermit<'l>)>,
}

/// Calls with one event.
async fn alone<'l>(
    lane: &'l Lane,
    message: &Message,
    ids: Ids<'_>,
    call: &Call<'_>,
    webhook_id: i32,
) -> Result<Called<'l>, Word> {
    let turn = tokio::select! {
        turn = turn(lane, webhook_id) => turn?,
        // Another worker has it at once.
        () = lane.stopped() => return Err(Word::Later(Duration::ZERO)),
    };
    let Turn { token, slot, room } = turn;
    // What waited for its turn is called as the row is by now.
    let Some(known) = lane.webhook(webhook_id).filter(|known| lane.may_call(known)) else {
        return Err(Word::Later(CLOSED_WAIT));
    };
    if known.webhook.order_key.is_some()
        && webhook_id == lane.webhook_id()
        && !lane.order.has_time(Shares::longest_call(&known.webhook))
    {
        // Its time is prolonged every second.
        return Err(Word::Later(UNTIMELY_WAIT));
    }
    let counters = lane.counters(webhook_id);
    let running = counters.begin();
    let (receivers, limits) = (&lane.worker.receivers, &lane.worker.limits);
    let answer = match fetched(lane, message, call).await {
        Ok(None) => receivers.attempt(limits, slot.as_ref(), &known, call, token).await,
        Ok(Some(fetched)) => match whole(lane, &known, message, ids, &fetched) {
            Ok(whole) => receivers.attempt(limits, slot.as_ref(), &known, &whole, token).await,
            Err(why) => Answer::not_sent(why),
        },
        Err(why) => Answer::not_sent(why),
    };
    drop(running);
    Ok(Called { known, counters, answer: Arc::new(answer), speaks: true, place: Some((slot, room)) })
}

/// Calls with several events.
async fn together<'l>(
    lane: &'l Arc<Lane>,
    message: &Message,
    ids: Ids<'_>,
    call: &Call<'_>,
    limits: BatchLimits,
    (attempt, is_last): (u64, bool),
) -> Result<Called<'l>, Word> {
    let known = lane.now();
    let called = |answer, speaks| {
        let counters = lane.counters(known.webhook.webhook_id);
        Called { known: lane.now(), counters, answer, speaks, place: None }
    };
    let not_sent = |why| Ok(called(Arc::new(Answer::not_sent(why)), false));
    // It keeps its share of the memory until it is answered.
    let fetched = match fetched(lane, message, call).await {
        Ok(fetched) => fetched,
        Err(why) => return not_sent(why),
    };
    let whole = match fetched.as_ref().map(|it| whole(lane, &known, message, ids, it)).transpose() {
        Ok(whole) => whole,
        Err(why) => return not_sent(why),
    };
    let sent = whole.as_ref().unwrap_or(call);
    let event = batch::Event {
        id: call.event_id.to_string(),
        kind: call.kind.as_deref().map(str::to_owned),
        body: recorded(sent.body),
        is_cloudevent: sent.content_type == CLOUDEVENT,
        attempt,
        is_last,
    };
    match lane.batches.call(&OwnCalls(lane), limits, event).await {
        Part::Answered(answer, speaks) => Ok(called(answer, speaks)),
        Part::NotCalled(wait) => Err(Word::Later(wait)),
    }
}

/// The calls of a lane's own webhook.
struct OwnCalls<'l>(&'l Lane);

impl<'l> BatchCalls for OwnCalls<'l> {
    type Turn = (Arc<Known>, Turn<'l>);

    fn limit(&self) -> usize {
        self.0.limit()
    }

    async fn turn(&self) -> Result<Self::Turn, Duration> {
        let turn = turn(self.0, self.0.webhook_id()).await.map_err(|word| match word {
            Word::Later(wait) | Word::Again(wait) => wait,
            Word::Ack | Word::Never => Duration::ZERO,
        })?;
        let known = self.0.now();
        if self.0.may_call(&known) && !known.is_gone { Ok((known, turn)) } else { Err(CLOSED_WAIT) }
    }

    async fn make(&self, (known, turn): Self::Turn, call: &Call<'_>) -> Answer {
        let counters = self.0.counters(known.webhook.webhook_id);
        let _running = counters.begin();
        let worker = &self.0.worker;
        worker.receivers.attempt(&worker.limits, turn.slot.as_ref(), &known, call, turn.token).await
    }

    async fn stopped(&self) {
        self.0.stopped().await;
    }
}

/// The object that a message stands for, and its SHA-256.
fn object_of(message: &Message) -> Option<(&str, &str)> {
    let header = |name: &str| message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str);
    Some((header("Walhook-Object")?, header("Walhook-Object-SHA256").unwrap_or_default()))
}

/// What a message of the feed stands for, if it is a claim check or sealed.
async fn fetched<'l>(lane: &'l Lane, message: &Message, call: &Call<'_>) -> Result<Option<Content<'l>>, String> {
    if call.position.is_none() {
        return Ok(None);
    }
    let fetched = match object_of(message) {
        None => None,
        Some((object, sha256)) => {
            let fetched = claim_check::fetch(&lane.worker, object, sha256, &message.payload).await;
            Some(fetched.map_err(|error| error.to_string())?)
        }
    };
    sealed::content(&lane.worker, message, call, fetched)
}

/// The call that a fetched payload makes.
fn whole<'p>(
    lane: &Lane,
    known: &Known,
    message: &'p Message,
    ids: Ids<'p>,
    content: &'p Content<'_>,
) -> Result<Call<'p>, String> {
    let ids = Ids { is_sealed: false, ..ids };
    match message::read(&known.webhook, &lane.worker.source, ids, &content.payload) {
        Reading::Call(mut whole) => {
            let _ = whole.describe(headers_of(message)); // reported before
            whole.old_key = content.old_key.as_deref().or(whole.old_key);
            Ok(whole)
        }
        Reading::Unreadable(_, why) => Err(why),
        Reading::Anothers(_) => Err("the payload is another webhook's".to_owned()),
    }
}

/// What a call needs to begin.
struct Turn<'l> {
    /// Its token, or why there is none.
    token: Result<Option<Token>, String>,
    slot: Option<Slot>,
    room: SemaphorePermit<'l>,
}

/// Waits until a webhook may be called: its receiver wants calls, it has a token, and its limits and the worker's allow one more.
async fn turn(lane: &Lane, webhook_id: i32) -> Result<Turn<'_>, Word> {
    let known = || lane.webhook(webhook_id).ok_or(Word::Later(CLOSED_WAIT));
    let token = loop {
        // Others have their turn while the receiver wants none.
        while let Some(until) = lane.paused_until(webhook_id) {
            sleep_until(until).await;
        }
        let known = known()?;
        // One that may not be called now asks for no token.
        if !lane.may_call(&known) {
            return Err(Word::Later(CLOSED_WAIT));
        }
        match lane.worker.receivers.token(&known).await {
            Ok(token) => break token,
            // No call was made, so none has failed.
            Err(away) => {
                lane.counters(webhook_id).waits(&away.why);
                lane.note_once(format!("calls wait: {}", away.why));
                lane.hold(webhook_id, away.wait);
            }
        }
    };
    let limits = &lane.worker.limits;
    let slot = match limits.slot(&known()?.webhook).await {
        Ok(slot) => slot,
        // Workers that have slots can call it sooner.
        Err(Starved) => {
            lane.hold(webhook_id, STARVED_WAIT);
            return Err(Word::Later(STARVED_WAIT));
        }
    };
    loop {
        let start = limits.start(&known()?.webhook).await;
        let Ok(room) = lane.worker.room.acquire().await else { return Err(Word::Later(Duration::ZERO)) };
        if !start.is_late() {
            return Ok(Turn { token, slot, room });
        }
    }
}

/// A message's headers, each by its name and first value.
fn headers_of(message: &Message) -> impl Iterator<Item = (&str, &str)> + Clone {
    let headers = message.headers.iter().flat_map(HeaderMap::iter);
    headers.filter_map(|(name, values)| Some((name.as_ref(), values.first()?.as_str())))
}

/// Another webhook whose event has come here on a workqueue stream, if it can be called from here; otherwise why not.
fn others(lane: &Lane, whose: Option<i32>) -> Result<Arc<Known>, String> {
    let own = lane.now();
    let remedy = "give each webhook on a workqueue stream a subject of its own (rule_webhook_enable_nats)";
    let wait = |why: &str| format!("events of others wait in this consumer, on a workqueue stream: {why}; {remedy}");
    let Some(id) = whose else { return Err(wait("they were published by another feed")) };
    let Some(known) = lane.webhook(id) else {
        return Err(wait(&format!("webhook {id} is not one that this worker knows")));
    };
    let name = &known.webhook.name;
    let chosen = &lane.worker.settings.webhooks;
    if !chosen.is_empty() && !chosen.contains(name) {
        return Err(wait(&format!("webhook {name:?} is not among those that this worker calls (--webhook)")));
    }
    if known.webhook.is_ordered && !own.webhook.is_ordered {
        return Err(wait(&format!(
            "webhook {name:?} is called one by one (delivery_order = 'strict'), this one is not"
        )));
    }
    if known.webhook.order_key.is_some() {
        return Err(wait(&format!("webhook {name:?} is called in the order of its keys (delivery_order = 'key')")));
    }
    if !lane.may_call(&known) {
        return Err(wait(&format!("webhook {name:?} is disabled, or needs a worker with a database")));
    }
    Ok(known)
}

/// Which attempt of an event its next call is, from 1.
async fn attempt(lane: &Lane, event_id: &str, delivery: &Delivery<'_>) -> u64 {
    if delivery.delivered <= 1 {
        return 1;
    }
    let recorded = match &lane.worker.call_log {
        Some(call_log) if lane.worker.settings.record != Record::Off => call_log.attempts(event_id).await,
        _ => None,
    };
    1 + lane.calls_before(delivery.sequence, delivery.delivered, recorded)
}

fn entry(lane: &Lane, known: &Known, call: &Call<'_>, attempt: u64, answer: &Answer, verdict: &Verdict) -> Entry {
    let is_recorded = match lane.worker.settings.record {
        Record::Full => true,
        Record::Failures => verdict.disposition != Disposition::Delivered || attempt > 1,
        Record::Off => false,
    };
    if !is_recorded && verdict.disposition == Disposition::Delivered {
        return Entry::default();
    }
    Entry {
        webhook_id: known.webhook.webhook_id,
        webhook_name: known.webhook.name.clone(),
        event_id: call.event_id.to_string(),
        status: match verdict.disposition {
            Disposition::Delivered => "success",
            Disposition::Retry(_) => "retrying",
            Disposition::GivenUp => "failed",
        },
        attempt: i32::try_from(attempt).unwrap_or(i32::MAX),
        payload: recorded(call.body),
        started: Some(answer.started),
        took: answer.took,
        response_status: answer.outcome.status().map(i32::from),
        response_headers: answer.headers.clone(),
        response_body: answer.body.clone(),
        error: verdict.error.clone(),
        dead_letter: None,
        disables: verdict.disables.then(|| known.webhook.url.clone()),
        is_recorded,
    }
}

/// A body as its record has it, which is JSON.
fn recorded(body: &[u8]) -> String {
    let mut json = Vec::with_capacity(body.len());
    write_as_json(body, &mut json);
    String::from_utf8_lossy(&json).into_owned()
}

/// Records an attempt. A record that cannot be made costs nothing but itself.
async fn keep(lane: &Lane, delivery: &Delivery<'_>, entry: Entry) {
    let Some(call_log) = lane.worker.call_log.as_ref().filter(|_| entry.is_recorded) else { return };
    if call_log.keep(entry).await == Kept::No {
        count(&lane.worker.counts.unrecorded);
        lane.was_not_recorded(delivery.sequence);
    }
}

/// Makes a dead letter of an event: a row where there is a database, a message where a stream takes it.
async fn give_up(
    lane: &Lane,
    known: &Known,
    message: &Message,
    event_id: &str,
    commit_lsn: Option<String>,
    reason: String,
    attempt: Option<Entry>,
) -> Word {
    let headers = shown(message.headers.as_ref());
    let tried = attempt.as_ref().map_or((None, None), |entry| (entry.response_status, Some(entry.attempt)));
    let mut is_durable = false;
    if let Some(call_log) = &lane.worker.call_log {
        let entry = attempt.unwrap_or_else(|| Entry {
            webhook_id: known.webhook.webhook_id,
            webhook_name: known.webhook.name.clone(),
            event_id: event_id.to_owned(),
            status: "failed",
            payload: recorded(&message.payload),
            error: Some(reason.clone()),
            is_recorded: lane.worker.settings.record != Record::Off,
            ..Entry::default()
        });
        let letter = DeadLetter {
            subject: message.subject.to_string(),
            headers,
            payload: message.payload.to_vec(),
            reason: reason.clone(),
            commit_lsn,
        };
        is_durable = call_log.keep(Entry { dead_letter: Some(letter), ..entry }).await == Kept::Yes;
    }
    is_durable |= publish(lane, message, event_id, &reason).await;
    if is_durable {
        count(&lane.worker.counts.dead);
        lane.counters(known.webhook.webhook_id).gave_up();
        if lane.logs_failure() {
            let (status, attempt) = tried;
            tracing::warn!(
                finding = "dead_letters",
                webhook = known.webhook.name,
                event = event_id,
                status,
                attempt,
                "dead letter: {reason}"
            );
        }
        return Word::Never;
    }
    if lane.logs_failure() {
        tracing::error!(
            event = event_id,
            webhook = known.webhook.name,
            "the event cannot be delivered ({reason}), and its dead letter cannot be saved: there is no database, and no stream takes \
             {DEAD_SUBJECT}{}; walhook tries the event again later",
            message.subject
        );
    }
    Word::Again(if lane.worker.call_log.is_some() { Duration::from_secs(10) } else { HOPELESS })
}

/// Publishes a dead letter, if another stream than its own takes it: a strict stream wants no second writer.
async fn publish(lane: &Lane, message: &Message, event_id: &str, reason: &str) -> bool {
    let subject = format!("{DEAD_SUBJECT}{}", message.subject);
    match consumer::streams(&lane.worker.control, std::slice::from_ref(&subject)).await {
        Ok(streams) if streams.iter().any(|stream| *stream != lane.stream) => {}
        Ok(_) => return false,
        Err(error) => {
            tracing::debug!("{error}");
            return false;
        }
    }
    let mut headers = HeaderMap::new();
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        // Those are orders to the stream that it was published to.
        if let Some(value) = values.first().filter(|_| !name.to_string().to_ascii_lowercase().starts_with("nats-")) {
            headers.insert(name.clone(), value.clone());
        }
    }
    // The id of the event itself may be remembered by a stream that is fed by ours.
    headers.insert("Nats-Msg-Id", format!("{DEAD_SUBJECT}{event_id}"));
    headers.insert("Walhook-Reason", reason.replace(['\r', '\n'], " "));
    let jetstream = lane.worker.control.jetstream();
    let stored = async { jetstream.publish_with_headers(subject, headers, message.payload.clone()).await?.await };
    match stored.await {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(%error, event = event_id, "the dead letter's stream does not take it");
            false
        }
    }
}

fn shown(headers: Option<&HeaderMap>) -> String {
    let pairs = headers.into_iter().flat_map(HeaderMap::iter);
    let object: serde_json::Map<String, Value> = pairs
        .filter_map(|(name, values)| Some((name.to_string(), Value::from(values.first()?.as_str().replace('\0', "")))))
        .collect();
    Value::Object(object).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_read_off_both_forms_of_its_reply_subject() {
        for reply in ["$JS.ACK.S.c.3.17.9.1700000000.4", "$JS.ACK.hub.ACC.S.c.3.17.9.1700000000.4.x"] {
            let delivery = Delivery::parse(reply).unwrap();
            assert_eq!((delivery.stream, delivery.sequence, delivery.delivered), ("S", 17, 3));
        }
        for bad in ["", "_INBOX.x", "$JS.ACK.S.c", "$JS.ACK.S.c.x.17.9.1700000000.4"] {
            assert!(Delivery::parse(bad).is_none(), "{bad}");
        }
    }
}
