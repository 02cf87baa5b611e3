//! When to read the WAL stream: at once while little comes, late and much under load.
//!
//! The walsender sends every row by itself. A reader that is faster wakes for each one, and wakes nats-server for each
//! one: on shared cores all three then spend more on waking than on work. Letting rows gather for a moment costs a
//! tenth of a millisecond where it does not matter, under load, and nothing where it does, when rows come one by one.

use std::time::Duration;

use tokio::time::Instant;

/// How long rows gather. Tokio's timer counts in milliseconds, so the one thread itself sleeps; what else it does
/// (acks, status, SQL) can wait that long.
const GATHER: Duration = Duration::from_micros(200);
/// Over this span messages are counted …
const SPAN: Duration = Duration::from_millis(1);
/// … and this many in it make a load. A transaction of one row has three.
const LOAD: u32 = 48;

/// See the module.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
    messages: u32,
    is_loaded: bool,
}

impl Pace {
    /// Nothing has come yet.
    pub fn new(now: Instant) -> Pace {
        Pace { since: now, messages: 0, is_loaded: false }
    }

    /// So many messages were taken since the last call.
    pub fn count(&mut self, messages: u32, now: Instant) {
        self.messages += messages;
        if now - self.since >= SPAN {
            self.is_loaded = self.messages >= LOAD;
            self.messages = 0;
            self.since = now;
        }
    }

    /// To be called before reading.
    pub fn gather(&self) {
        if self.is_loaded {
            std::thread::sleep(GATHER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_steady_run_of_messages_is_a_load() {
        let start = Instant::now();
        let at = |micros: u64| start + Duration::from_micros(micros);
        let mut pace = Pace::new(start);
        pace.count(3, at(500));
        pace.count(3, at(1500));
        assert!(!pace.is_loaded, "a few rows a millisecond are no load");
        pace.count(60, at(2600));
        assert!(pace.is_loaded);
        pace.count(0, at(3700));
        assert!(!pace.is_loaded, "a silence ends it");
    }
}
