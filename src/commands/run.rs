//! `walhook run`: stream until told to stop.
//!
//! One task holds everything; [`session`] is its one `select!`. Whatever goes wrong with PostgreSQL ends the session,
//! and the next one starts as the first did: from the slot and the streams' tails. What goes wrong with one stream is
//! its lane's own matter ([`lanes`]). What a webhook halts at is tried once more by the rules as they are by then, for
//! mending them is what a halt waits for.

mod consumers;
mod history;
mod lanes;
pub(super) mod ledger;
mod office;
mod pace;
mod session;

use std::time::Duration;

use tokio::sync::watch;

use crate::{
    config::Config,
    error::{Error, Result},
    flow::streamer::Halted,
};
pub(super) use lanes::open::position_of;
use session::Routing;

/// First and longest wait between two sessions.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Streams until `shutdown` turns true.
///
/// # Errors
/// What trying again cannot mend; the error's exit code says who must act.
pub async fn run(config: &Config, mut shutdown: watch::Receiver<bool>) -> Result<()> {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        source = config.source,
        slot = config.slot,
        postgres = config.postgres.target(),
        "walhook starts"
    );
    let mut backoff = Backoff::default();
    let mut last_error: Option<String> = None;
    let mut routing = Routing::AsItWas;
    loop {
        let mut streamed = false;
        match session::session(config, &mut shutdown, &mut streamed, routing, last_error.as_deref()).await {
            Ok(()) => return Ok(()),
            Err(error) if error.cause_as::<Halted>().is_some() && routing == Routing::AsItWas => {
                tracing::warn!("{error}; trying once more by the rules as they are now");
                routing = Routing::AsOfNow;
            }
            Err(error) if !error.is_retryable() => return Err(error),
            Err(error) => {
                routing = Routing::AsItWas;
                if streamed {
                    backoff = Backoff::default();
                }
                let wait = backoff.next();
                tracing::warn!(retry_in_ms = wait.as_millis(), "{error}");
                last_error = Some(error.to_string());
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
                }
            }
        }
    }
}

/// Ever longer waits, each somewhere in the upper half of its length so that many processes do not come back at once.
#[derive(Debug)]
struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Backoff {
        let (first, longest) = BACKOFF;
        Backoff { first, longest, failures: 0 }
    }
}

impl Backoff {
    /// Waits that begin with `first`.
    fn from(first: Duration) -> Backoff {
        Backoff { first, longest: first.max(BACKOFF.1), failures: 0 }
    }

    fn next(&mut self) -> Duration {
        let full = self.longest.min(self.first.saturating_mul(2u32.saturating_pow(self.failures)));
        self.failures += 1;
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// Our own broken promise, as an error that names it.
fn gone(what: &str) -> Error {
    Error::unavailable(format!("{what}: the connection to PostgreSQL is closed"))
}
