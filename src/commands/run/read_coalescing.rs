//! When to read the WAL stream: at once while little comes, late and much under load.
//!
//! The walsender sends every row by itself. A reader that is faster wakes for each one, and wakes nats-server for each
//! one: on shared cores all three then spend more on waking than on work. Letting rows gather for a moment costs a fraction
//! of a millisecond where it does not matter, under load, and nothing where it does, when rows come one by one. The same with
//! acks while the window is full.

use std::time::Duration;

use tokio::time::Instant;

/// Over this span messages are counted. A load lasts for one more: on a busy machine the walsender may not run for some
/// milliseconds, and whoever wakes for its first row then keeps it from running on.
const SPAN: Duration = Duration::from_millis(10);
/// So many messages in a span make a load. A transaction of one row has three. Set well below what a reader that wakes for each
/// row keeps up with on a busy machine: a higher bar is never reached there, and the machine stays busy.
const LOAD: u32 = 150;
/// How long rows gather; longer saves nothing more. Tokio's timer counts in milliseconds, so the one thread itself sleeps: what
/// else it does (acks, status, SQL) can wait that long.
const GATHER: Duration = Duration::from_micros(200);
/// While the window is full, and with so many events or more, …
const MANY: usize = 1000;
/// … acks gather for so long: nats-server sends them few at a time, and room for a quarter of the window is waited for anyway.
const REST: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub struct ReadCoalescing {
    /// When the present span began.
    since: Instant,
    messages: u32,
    /// Those of the span before.
    before: u32,
}

impl ReadCoalescing {
    /// Nothing has come yet.
    pub fn new(now: Instant) -> ReadCoalescing {
        ReadCoalescing { since: now, messages: 0, before: 0 }
    }

    /// So many messages were taken since the last call.
    pub fn count(&mut self, messages: u32, now: Instant) {
        let span = now - self.since;
        if span >= SPAN {
            self.before = if span < 2 * SPAN { self.messages } else { 0 };
            self.messages = 0;
            self.since = now;
        }
        self.messages += messages;
    }

    fn is_loaded(&self) -> bool {
        self.messages.max(self.before) >= LOAD
    }

    /// To be called before reading.
    pub fn gather(&self) {
        if self.is_loaded() {
            std::thread::sleep(GATHER);
        }
    }

    /// To be called before acks are taken while nothing is read, because the window is full; `events` were sent and wait for theirs.
    pub fn rest(events: usize) {
        if events >= MANY {
            std::thread::sleep(REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_run_of_messages_is_a_load_and_it_outlasts_a_short_silence() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut read_coalescing = ReadCoalescing::new(start);
        for millis in 0..40 {
            read_coalescing.count(3, at(millis));
            assert!(!read_coalescing.is_loaded(), "a thousand rows a second are no load");
        }
        read_coalescing.count(LOAD, at(41));
        assert!(read_coalescing.is_loaded(), "at once");
        read_coalescing.count(0, at(52));
        assert!(read_coalescing.is_loaded(), "the walsender may have been kept from running");
        read_coalescing.count(3, at(63));
        assert!(!read_coalescing.is_loaded(), "a silence ends it");
        read_coalescing.count(LOAD, at(70));
        read_coalescing.count(3, at(1000));
        assert!(!read_coalescing.is_loaded(), "also one without a call");
    }
}
