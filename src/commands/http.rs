//! HTTP of `run` and `deliver`: begun with the process, ended with it.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::dead_letters;
use crate::{
    config::Config,
    error::Result,
    http::{
        operator::{Act, Acting},
        server::{Server, Shared, Work, Working},
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
    /// Begins to serve where an address is set; `None` where none is. `work` is what else its thread does meanwhile.
    ///
    /// # Errors
    /// A setting that cannot be. A port that is taken is none: it is waited for.
    pub fn start(
        config: &Config,
        verb: &'static str,
        has_database: bool,
        work: Option<fn(Config, Shared) -> Working>,
        shutdown: &watch::Receiver<bool>,
    ) -> Result<Option<Http>> {
        let Some(settings) = Settings::resolve(&config.http)? else { return Ok(None) };
        let shared = Shared::new(&config.source, verb);
        let task = tokio::spawn(follow(shared.clone(), shutdown.clone()));
        let act = has_database.then(|| {
            let postgres = Arc::new(config.postgres.clone());
            Arc::new(move |wanted| {
                let postgres = Arc::clone(&postgres);
                Box::pin(async move { dead_letters::act(&postgres, wanted).await }) as Acting
            }) as Act
        });
        let work = work.map(|work| {
            let (config, shared) = (config.clone(), shared.clone());
            Box::new(move || work(config, shared)) as Work
        });
        let server = Server::start(settings, shared.clone(), act, work)?;
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
