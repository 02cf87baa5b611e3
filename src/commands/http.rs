//! HTTP of `run` and `deliver`: begun with the process, ended with it.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    check::{self, codes},
    dead_letters,
};
use crate::{
    config::Config,
    error::Result,
    http::{
        operator::{Act, Acting},
        server::{Server, Shared, Work, Working},
        settings::Settings,
        snapshot::{Checked, LIVE},
    },
    log,
};

/// How often what the process shows is brought up to date.
pub const EVERY: Duration = Duration::from_secs(1);

/// How often everything is checked as by `walhook check`, at most. What changes at any moment is shown within seconds by other ways.
const CHECK_EVERY: Duration = Duration::from_secs(600);
/// The first time: once it runs.
const CHECK_FIRST: Duration = Duration::from_secs(15);
/// How long one check may take: it has limits of its own for each server.
const CHECK_WITHIN: Duration = Duration::from_secs(600);
/// How many findings are shown, the worst ones.
const FINDINGS_MAX: usize = 100;

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
    pub fn start(
        config: &Config,
        verb: &'static str,
        has_database: bool,
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
        let work = (verb == "run").then(|| {
            let (config, shared) = (config.clone(), shared.clone());
            Box::new(move || Box::pin(check(config, shared)) as Working) as Work
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

/// `walhook check`, on the thread of the server: neither the streamer nor a connection of its takes part.
async fn check(config: Config, shared: Shared) -> Infallible {
    sleep(CHECK_FIRST).await;
    loop {
        let began = Instant::now();
        if let Ok(findings) = timeout(CHECK_WITHIN, check::run(&config, &check::Arguments::default())).await {
            let exit_code = check::finding::exit_code(&findings);
            // Those of the set-up are looked for more often, and so is what is shown as it is now.
            let is_live = |code: &str| LIVE.iter().any(|(live, _)| *live == code);
            let is_other =
                |code: &str| !is_live(code) && codes::of(code).is_none_or(|code| code.side != codes::Side::SetUp);
            let others = findings.iter().filter(|finding| is_other(finding.code));
            let findings = others.take(FINDINGS_MAX).map(|finding| json!(finding)).collect();
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            shared.update(|snapshot| snapshot.checked = Some(Checked { at, exit_code, findings }));
        }
        // Where it takes long, it takes no more than a twentieth of the time.
        sleep(CHECK_EVERY.max(began.elapsed() * 20)).await;
    }
}
