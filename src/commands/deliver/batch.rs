//! Calls with several events each, for webhooks with `batch_max_events`.
//!
//! In: events that are ready to be called, each with its attempt. Out: for each the answer of a call that it was in. The first event opens a
//! batch and makes its call, when the batch is full or has waited for long enough; the others wait for the answer. Always holds: every
//! event has an answer of its own, or the wait after which it is to come again; an event becomes a dead letter only by a call in
//! which it was alone.

use std::{
    collections::BTreeMap,
    future::Future,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, oneshot},
    time::sleep,
};

use super::{call::Answer, places::Places};
use crate::deliver::{
    batch::{self, Class},
    message::Call,
    webhook::BatchLimits as Limits,
};

/// How the calls of a webhook are made.
pub trait BatchCalls: Sync {
    /// What a call needs to begin.
    type Turn: Send;
    /// How many calls may run.
    fn limit(&self) -> usize;
    /// Waits until a call may be made. Otherwise, after which time its events are to come again.
    fn turn(&self) -> impl Future<Output = Result<Self::Turn, Duration>> + Send;
    /// Makes it.
    fn make(&self, turn: Self::Turn, call: &Call<'_>) -> impl Future<Output = Answer> + Send;
    /// Ends at shutdown.
    fn stopped(&self) -> impl Future<Output = ()> + Send;
}

/// An event that is ready to be called.
pub struct Event {
    /// Its id.
    pub id: String,
    /// `public.orders.insert`
    pub kind: Option<String>,
    /// What would be sent of it alone, JSON.
    pub body: String,
    /// The type of that.
    pub is_cloudevent: bool,
    /// Which attempt of it this is.
    pub attempt: u64,
    /// Whether there is none after it.
    pub is_last: bool,
}

/// What became of it.
pub enum Part {
    /// Its call is answered; and whether this event speaks for the call, as one of its events does.
    Answered(Arc<Answer>, bool),
    /// It was not called: again after this time.
    NotCalled(Duration),
}

struct Item {
    event: Event,
    done: oneshot::Sender<Part>,
}

/// Events that will be in one call.
#[derive(Default)]
struct Group {
    items: Mutex<(Vec<Item>, usize)>,
    full: Notify,
}

/// The batches of one webhook.
#[derive(Default)]
pub struct Batches {
    /// Those that take more events, by class.
    open: Mutex<BTreeMap<Class, Arc<Group>>>,
    places: Places,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Batches {
    /// Has an event called, together with others.
    pub async fn call(&self, calls: &impl BatchCalls, limits: Limits, event: Event) -> Part {
        let (done, part) = oneshot::channel();
        if let Some(group) = self.join(limits, Item { event, done }) {
            tokio::select! {
                () = group.full.notified() => {}
                () = sleep(limits.wait) => {}
                () = calls.stopped() => {}
            }
            let items = self.close(&group);
            let mut running = FuturesUnordered::new();
            running.push(self.one(calls, items));
            while let Some(parts) = running.next().await {
                running.extend(parts.into_iter().map(|items| self.one(calls, items)));
            }
        }
        // The one that makes the call was abandoned at a shutdown.
        part.await.unwrap_or(Part::NotCalled(Duration::ZERO))
    }

    /// Puts an event into a batch; returns the batch if the event has opened it.
    fn join(&self, limits: Limits, item: Item) -> Option<Arc<Group>> {
        let class = Class::of(item.event.attempt, item.event.is_last);
        let bytes = item.event.body.len() + 1;
        let mut open = lock(&self.open);
        if let Some(group) = open.get(&class).cloned() {
            let mut items = lock(&group.items);
            let fits = items.0.len() < limits.events && items.1 + bytes <= limits.bytes;
            if !fits || items.0.len() + 1 >= limits.events {
                open.remove(&class);
                group.full.notify_one();
            }
            if fits {
                items.0.push(item);
                items.1 += bytes;
                return None;
            }
        }
        let group = Arc::new(Group::default());
        *lock(&group.items) = (vec![item], bytes + 1);
        open.insert(class, Arc::clone(&group));
        Some(group)
    }

    /// Nothing is put into this batch any more.
    fn close(&self, group: &Arc<Group>) -> Vec<Item> {
        lock(&self.open).retain(|_, open| !Arc::ptr_eq(open, group));
        mem::take(&mut *lock(&group.items)).0
    }

    /// One call. Returns the events that are to be called again at once, in smaller batches.
    async fn one(&self, calls: &impl BatchCalls, mut items: Vec<Item>) -> Vec<Vec<Item>> {
        let place = self.places.take(|| calls.limit(), calls.stopped()).await;
        let turn = tokio::select! {
            turn = calls.turn() => turn,
            // Another worker has them at once.
            () = calls.stopped() => Err(Duration::ZERO),
        };
        let turn = match turn {
            Ok(turn) => turn,
            Err(wait) => {
                for item in items {
                    let _ = item.done.send(Part::NotCalled(wait));
                }
                return Vec::new();
            }
        };
        let id = batch::id(items.iter().map(|item| item.event.id.as_str()));
        let body = batch::body(items.iter().map(|item| item.event.body.as_str()));
        let first = items.first().and_then(|item| item.event.kind.as_deref());
        let kind = first.filter(|kind| items.iter().all(|item| item.event.kind.as_deref() == Some(kind)));
        let is_cloudevents = items.iter().all(|item| item.event.is_cloudevent);
        let call = Call {
            event_id: id.as_str().into(),
            webhook_id: id.as_str().into(),
            position: None,
            kind: kind.map(Into::into),
            op: None,
            old_key: None,
            headers: [("walhook-batch".to_owned(), items.len().to_string())].into(),
            body: body.as_bytes(),
            content_type: if is_cloudevents { CLOUDEVENT_BATCH } else { "application/json" },
        };
        let answer = Arc::new(calls.make(turn, &call).await);
        drop(place);
        let attempts = items.iter().map(|item| (item.event.attempt, item.event.is_last));
        if batch::splits(&answer.outcome, attempts) {
            let rest = items.split_off(items.len() / 2);
            return vec![items, rest];
        }
        for (index, item) in items.into_iter().enumerate() {
            let _ = item.done.send(Part::Answered(Arc::clone(&answer), index == 0));
        }
        Vec::new()
    }
}

/// The type of several CloudEvents in JSON.
const CLOUDEVENT_BATCH: &str = "application/cloudevents-batch+json";
