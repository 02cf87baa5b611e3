//! The events of a webhook with `delivery_order = 'key'` that this worker has in hand.
//!
//! In: messages in the order of their stream, and the time until which this worker is the one of its group that calls the webhook. Out: the
//! moment when each event may be called. Always holds: nothing is called after that time; an event that is neither acknowledged nor
//! a dead letter keeps its place until the worker gives back all that it has.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::deliver::order::{KeyOrder, Keys};

/// Events that are done, of which it is remembered that they were.
const DONE_MAX: usize = 100_000;

/// See the module.
pub struct Order {
    state: Mutex<State>,
    /// Until when this worker calls the webhook.
    until: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct State {
    events: KeyOrder,
    bells: HashMap<u64, Arc<Notify>>,
    /// When the messages were stored: a stream that is made anew counts from 1 again.
    done: HashMap<u64, u64>,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// An event that is now in hand.
    New,
    /// It is in hand already.
    Known,
    /// It was done; its acknowledgement was lost.
    Done,
}

impl Default for Order {
    fn default() -> Order {
        Order { state: Mutex::default(), until: watch::channel(None).0 }
    }
}

impl Order {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This worker calls the webhook until then; `None`: no more.
    pub fn hold(&self, until: Option<Instant>) {
        self.until.send_replace(until);
    }

    /// Whether a call of this length ends in time.
    pub fn has_time(&self, length: Duration) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() + length <= until)
    }

    /// Ends when this worker is no more the one that calls.
    pub async fn is_over(&self) {
        let mut until = self.until.subscribe();
        loop {
            let now = *until.borrow_and_update();
            let Some(at) = now.filter(|at| *at > Instant::now()) else { return };
            tokio::select! {
                () = sleep_until(at) => {}
                changed = until.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Puts a message into its place.
    pub fn add(&self, sequence: u64, stored_at: u64, keys: Keys) -> Added {
        let mut state = self.lock();
        if state.done.get(&sequence) == Some(&stored_at) {
            return Added::Done;
        }
        if !state.events.add(sequence, keys) {
            return Added::Known;
        }
        state.bells.insert(sequence, Arc::default());
        Added::New
    }

    /// Waits until no earlier event with a key of this one is left. False: this worker does not call any more.
    pub async fn is_ready(&self, sequence: u64) -> bool {
        loop {
            let bell = {
                let state = self.lock();
                match state.bells.get(&sequence) {
                    Some(bell) if !state.events.is_ready(sequence) => Arc::clone(bell),
                    Some(_) => return self.has_time(Duration::ZERO),
                    None => return false,
                }
            };
            tokio::select! {
                () = bell.notified() => {}
                () = self.is_over() => return false,
            }
        }
    }

    /// Waits. False: this worker does not call any more.
    pub async fn waits(&self, wait: Duration) -> bool {
        tokio::select! {
            () = sleep(wait) => true,
            () = self.is_over() => false,
        }
    }

    /// An event is acknowledged or a dead letter.
    pub fn finish(&self, sequence: u64, stored_at: u64) {
        let mut state = self.lock();
        if state.done.len() >= DONE_MAX {
            state.done.clear();
        }
        state.done.insert(sequence, stored_at);
        state.bells.remove(&sequence);
        for next in state.events.finish(sequence) {
            if let Some(bell) = state.bells.get(&next) {
                bell.notify_one();
            }
        }
    }

    /// Nothing is in hand any more.
    pub fn clear(&self) {
        let mut state = self.lock();
        (state.events, state.bells) = (KeyOrder::default(), HashMap::new());
    }
}
