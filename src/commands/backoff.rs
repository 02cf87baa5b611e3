//! Ever longer waits between attempts to reach a server, spread by chance.

use std::time::Duration;

use crate::flow::driver::backoff;

/// First and longest wait.
pub const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// [`backoff::Backoff`] with this process's chance.
#[derive(Debug)]
pub struct Backoff(backoff::Backoff);

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::from(BACKOFF.0)
    }
}

impl Backoff {
    /// Waits that begin with `first`.
    pub fn from(first: Duration) -> Backoff {
        Backoff(backoff::Backoff::new(first, BACKOFF.1))
    }

    /// How many attempts have failed in a row.
    pub fn failures(&self) -> u32 {
        self.0.failures
    }

    /// How long to wait now.
    pub fn next(&mut self) -> Duration {
        self.0.next(fastrand::f64())
    }
}
