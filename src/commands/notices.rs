//! Announces in NATS that walhook has disabled a webhook, that dead letters pile up, and that either is over.
//!
//! In: the configurations that have a `notice_subject`, each with its connection. Out: messages below that subject. PostgreSQL says what is
//! to be announced (`rule_nats_notices_take`), and says each change to one process only, so any number of these run side by side. A
//! process that ends between PostgreSQL's answer and its message leaves the announcement out: a change is announced at most once.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{Client as Nats, HeaderMap};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{Client, types::Type};

use super::{log_once::LogOnce, rows::missing_table};
use crate::{
    error::{Error, Result},
    postgres::{Settings, sql},
};

/// How often PostgreSQL is asked.
const LOOK: Duration = Duration::from_secs(2);
/// How long PostgreSQL and NATS may take.
const PATIENCE: Duration = Duration::from_secs(10);

const TAKE: &str = "SELECT subject, notice_id, notice FROM walhook.rule_nats_notices_take($1, $2)";

/// The connections of the configurations that have a `notice_subject`, by their names.
pub type Targets = BTreeMap<String, Nats>;

/// Announces, as long as this exists.
pub struct Notices {
    targets: watch::Sender<Targets>,
    task: JoinHandle<()>,
}

impl Notices {
    /// Begins with no configuration.
    pub fn start(source: String, postgres: Settings) -> Notices {
        let (targets, follows) = watch::channel(Targets::new());
        Notices { targets, task: tokio::spawn(announce(source, postgres, follows)) }
    }

    /// Announces for these configurations from here on.
    pub fn follow(&self, targets: Targets) {
        self.targets.send_replace(targets);
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn announce(source: String, postgres: Settings, mut follows: watch::Receiver<Targets>) {
    let mut client: Option<Client> = None;
    let mut logged = LogOnce::default();
    loop {
        let targets = follows.borrow_and_update().clone();
        if targets.is_empty() {
            client = None;
            if follows.changed().await.is_err() {
                return;
            }
            continue;
        }
        let began = Instant::now();
        for (config, nats) in &targets {
            let done = timeout(PATIENCE, round(&source, config, nats, &postgres, &mut client)).await;
            match done.unwrap_or_else(|_| Err(Error::unavailable("announce notices: no answer in time"))) {
                Ok(()) => {}
                Err(error) => {
                    client = None;
                    let text = error.to_string();
                    if logged.is_news(&text) {
                        tracing::warn!(config, "notices about webhooks are not announced; trying again: {text}");
                    }
                }
            }
        }
        // Where there are many dead letters to count, it takes no more than a twentieth of the time.
        let wait = LOOK.max(began.elapsed() * 20);
        tokio::select! {
            () = sleep(wait) => {}
            changed = follows.changed() => if changed.is_err() { return },
        }
    }
}

async fn round(
    source: &str,
    config: &str,
    nats: &Nats,
    postgres: &Settings,
    client: &mut Option<Client>,
) -> Result<()> {
    let client = sql::reconnect(client, postgres).await?;
    // One that cannot be published must not be taken either.
    if nats.connection_state() != async_nats::connection::State::Connected {
        return Ok(());
    }
    let taken = client.query_typed(TAKE, &[(&config, Type::TEXT), (&source, Type::TEXT)]).await;
    let taken = taken.map_err(|error| missing_table(sql::error("ask what is to be announced", error)))?;
    let failed = |error: &dyn std::fmt::Display| Error::unavailable(format!("publish a notice: {error}"));
    for row in &taken {
        let (subject, id, notice): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        tracing::info!(subject, notice, "announced");
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        headers.insert("Content-Type", "application/json");
        nats.publish_with_headers(subject, headers, notice.into()).await.map_err(|error| failed(&error))?;
    }
    if taken.is_empty() {
        return Ok(());
    }
    nats.flush().await.map_err(|error| failed(&error))
}
