//! HTTP of `run` and `deliver`: begun with the process, ended with it.

use std::time::Duration;

use tokio::{sync::watch, task::JoinHandle, time::sleep};

use crate::{
    config::Config,
    error::Result,
    http::{
        server::{Server, Shared},
        settings::Settings,
    },
    log,
};

/// How often what the process shows is brought up to date.
pub const EVERY: Duration = Duration::from_secs(1);

/// A running server; dropping it ends it.
pub struct Http {
    shared: Shared,
    task: JoinHandle<()>,
    _server: Server,
}

impl Http {
    /// Begins to serve where an address is set; `None` where none is.
    ///
    /// # Errors
    /// A setting that cannot be. A port that is taken is none: it is waited for.
    pub fn start(config: &Config, verb: &'static str, shutdown: &watch::Receiver<bool>) -> Result<Option<Http>> {
        let Some(settings) = Settings::resolve(&config.http)? else { return Ok(None) };
        let shared = Shared::new(&config.source, verb);
        let task = tokio::spawn(follow(shared.clone(), shutdown.clone()));
        let server = Server::start(settings, shared.clone())?;
        Ok(Some(Http { shared, task, _server: server }))
    }

    /// What it shows.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What both verbs show alike.
async fn follow(shared: Shared, shutdown: watch::Receiver<bool>) {
    loop {
        let is_stopping = *shutdown.borrow();
        shared.update(|snapshot| {
            snapshot.log_records_dropped = log::lost();
            snapshot.is_stopping = is_stopping;
        });
        sleep(EVERY).await;
    }
}
