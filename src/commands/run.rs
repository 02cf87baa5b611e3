//! `walhook run`: stream until told to stop.
//!
//! One task holds everything; [`session`] is its one `select!`. Whatever goes wrong with PostgreSQL ends the session,
//! and the next one starts as the first did: from the slot and the streams' tails. What goes wrong with one stream is
//! its lane's own matter ([`lanes`]). What a webhook halts at ends the process, until an operator amends the rules at that event.

mod bulletin;
mod clerk;
mod consumers;
pub mod faults;
mod history;
mod lanes;
pub(super) mod ledger;
mod office;
mod pace;
pub(super) mod rules;
mod session;
mod shown;

use tokio::sync::watch;

use super::{backoff::Backoff, http::Http, setup_check::Reported};
use crate::{
    config::Config,
    error::{Error, Result},
};
pub(super) use lanes::open::position_of;
use shown::Shown;

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
    let http = Http::start(config, "run", &shutdown)?;
    let mut shown = http.as_ref().map(|http| Shown::new(http.shared().clone(), config));
    let mut backoff = Backoff::default();
    let mut last_error: Option<String> = None;
    let reported = Reported::default();
    loop {
        let mut streamed = false;
        match session::session(config, &mut shutdown, &mut streamed, last_error.as_deref(), &reported, &mut shown).await
        {
            Ok(()) => return Ok(()),
            Err(error) if !error.is_retryable() => return Err(error),
            Err(error) => {
                if streamed {
                    backoff = Backoff::default();
                }
                let wait = backoff.next();
                tracing::warn!(retry_in_ms = wait.as_millis(), "{error}");
                last_error = Some(error.to_string());
                if let Some(shown) = &mut shown {
                    shown.disconnected(&error.to_string());
                }
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
