//! Ever longer waits between attempts to reach a server.

use std::time::Duration;

/// First and longest wait.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Ever longer waits, each somewhere in the upper half of its length so that many processes do not come back at once.
#[derive(Debug, Default)]
pub struct Backoff {
    /// Attempts that have failed in a row.
    pub failures: u32,
}

impl Backoff {
    /// How long to wait now.
    pub fn next(&mut self) -> Duration {
        let (first, longest) = BACKOFF;
        let full = longest.min(first * 2u32.saturating_pow(self.failures));
        self.failures += 1;
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}
