//! `walhook run`: stream until told to stop.
//!
//! One task holds everything; [`session`] is its one `select!`. Whatever goes wrong with PostgreSQL ends the session,
//! and the next one starts as the first did: from the slot and the streams' tails. What goes wrong with one stream is
//! its lane's own matter ([`lanes`]). What a webhook halts at is tried once more by the rules as they are by then, for
//! mending them is what a halt waits for.

mod bulletin;
mod clerk;
mod consumers;
pub mod faults;
mod history;
mod lanes;
pub(super) mod ledger;
mod office;
mod pace;
mod session;

use tokio::sync::watch;

use super::backoff::Backoff;
use crate::{
    config::Config,
    error::{Error, Result},
    flow::streamer::Halted,
};
pub(super) use lanes::open::position_of;
use session::Routing;

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

/// Our own broken promise, as an error that names it.
fn gone(what: &str) -> Error {
    Error::unavailable(format!("{what}: the connection to PostgreSQL is closed"))
}
