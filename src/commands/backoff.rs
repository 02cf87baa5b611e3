//! Ever longer waits between attempts to reach a server.

use std::time::Duration;

/// First and longest wait.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Ever longer waits, each somewhere in the upper half of its length so that many processes do not come back at once.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    /// Attempts that have failed in a row.
    pub failures: u32,
}

impl Default for Backoff {
    fn default() -> Backoff {
        let (first, longest) = BACKOFF;
        Backoff { first, longest, failures: 0 }
    }
}

impl Backoff {
    /// Waits that begin with `first`.
    pub fn from(first: Duration) -> Backoff {
        Backoff { first, longest: first.max(BACKOFF.1), failures: 0 }
    }

    /// How long to wait now.
    pub fn next(&mut self) -> Duration {
        let full = self.longest.min(self.first.saturating_mul(2u32.saturating_pow(self.failures)));
        self.failures += 1;
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}
