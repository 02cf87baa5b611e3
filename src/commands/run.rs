//! `walhook run`: stream until told to stop.
//!
//! One task holds everything; [`session`] is its one `select!`. Whatever goes wrong with PostgreSQL ends the session
//! (but for its shutdown, in which the rest is still confirmed: [`server_shutdown`]), and the next one starts as the first did: from the
//! slot and the streams' tails. What goes wrong with one stream is
//! its lane's own matter ([`lanes`]). What a webhook halts at ends the process, until an operator amends the rules at that event.

mod checks;
mod consumers;
pub mod faults;
mod history;
mod history_writer;
mod lanes;
mod minutes;
mod read_coalescing;
mod replay_requests;
pub(super) mod rules;
mod server_shutdown;
mod session;
mod shown;
pub(super) mod state_store;
mod webhook_registry;

pub use webhook_registry::WORKERS_CONSUMER;

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{backoff::Backoff, breaks, http::Http, setup, setup_check::Reported, systemd::Notify};
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    postgres::sql,
};
pub(super) use lanes::{Identity, open, open::position_of};
use shown::Shown;

/// How long the end of the process waits for its reason to be noted.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Streams until `shutdown` turns true; with `first_setup` applies the migrations before, as `walhook setup` does.
///
/// # Errors
/// What trying again cannot mend; the error's exit code says who must act.
pub async fn run(config: &Config, first_setup: bool, shutdown: watch::Receiver<bool>) -> Result<()> {
    let notify = Notify::from_environment();
    // Large: on the heap, so that those who hold it stay small.
    notify.feed_during(Box::pin(end(config, first_setup, shutdown, &notify))).await
}

async fn end(config: &Config, first_setup: bool, shutdown: watch::Receiver<bool>, notify: &Notify) -> Result<()> {
    let outcome = Box::pin(stream(config, first_setup, shutdown, notify)).await;
    let outcome = outcome.map_err(breaks::name_of_end);
    match &outcome {
        Ok(()) => notify.stopping("stopped"),
        Err(error) => notify.stopping(&format!("ends with exit code {}: {error}", error.exit_code())),
    }
    // Somebody streams then, and it is not for this run to say otherwise.
    if outcome.as_ref().is_err_and(|error| error.kind() == Kind::Fenced) {
        return outcome;
    }
    // For who asks later why nobody streams. A database that is away, or has no such column yet, is not waited for.
    let noted = timeout(LAST_WORD, state_store::ended(&config.postgres, &config.source, outcome.as_ref().err())).await;
    if let Ok(Err(error)) = noted {
        tracing::debug!("{error}");
    }
    outcome
}

async fn stream(
    config: &Config,
    mut first_setup: bool,
    mut shutdown: watch::Receiver<bool>,
    notify: &Notify,
) -> Result<()> {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        source = config.source,
        slot = config.slot,
        postgres = config.postgres.target(),
        "walhook starts"
    );
    let http = Http::start(config, "run", true, Some(checks::work), &shutdown)?;
    let mut shown = http.as_ref().map(|http| Shown::new(http.shared().clone(), config));
    let mut backoff = Backoff::default();
    let mut last_error: Option<String> = None;
    let reported = Reported::default();
    let mut away_since: Option<Instant> = None;
    notify.status(&format!("connects to PostgreSQL: {}", config.postgres.target()));
    loop {
        let mut streamed = false;
        let watchers = session::Watchers { reported: &reported, shown: &mut shown, notify };
        let attempt = async {
            if first_setup {
                if !set_up(config, &mut shutdown, notify).await? {
                    return Ok(());
                }
                first_setup = false;
            }
            Box::pin(session::session(config, &mut shutdown, &mut streamed, last_error.as_deref(), watchers)).await
        };
        match Box::pin(attempt).await {
            Ok(()) => return Ok(()),
            Err(error) if !error.is_retryable() => return Err(error),
            Err(error) => {
                if streamed {
                    backoff = Backoff::default();
                    away_since = None;
                }
                let wait = backoff.next();
                let away_s = away_since.get_or_insert_with(Instant::now).elapsed().as_secs();
                let name = breaks::of_postgres(&error);
                tracing::warn!(finding = name, retry_in_ms = wait.as_millis(), not_streaming_for_s = away_s, "{error}");
                notify.status(&format!("not streaming, trying again: {error}"));
                // The service manager need not wait: PostgreSQL may be away for long.
                notify.ready();
                last_error = Some(error.to_string());
                if let Some(shown) = &mut shown {
                    shown.disconnected(name, &error.to_string());
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
                }
            }
        }
    }
}

/// What `walhook setup` does, once the server is found to be no standby. `false`: a stop was requested meanwhile; what is done by then stays.
async fn set_up(config: &Config, shutdown: &mut watch::Receiver<bool>, notify: &Notify) -> Result<bool> {
    notify.status("applies the migrations, as walhook setup does");
    let done = async {
        let client = sql::connect(&config.postgres).await?;
        session::refuse_standby(&client).await?;
        state_store::refuse_new_slot(&client, &config.source, &config.slot).await?;
        drop(client);
        setup::setup(config).await
    };
    tokio::select! {
        done = done => done.map(|()| true),
        _ = shutdown.wait_for(|stop| *stop) => Ok(false),
    }
}

/// Our own broken promise, as an error that names it.
fn gone(what: &str) -> Error {
    Error::unavailable(format!("{what}: the connection to PostgreSQL is closed"))
}
