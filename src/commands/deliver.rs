//! `walhook deliver`: takes events from JetStream and calls the webhooks, until a shutdown signal.
//!
//! Any number run side by side. [`configuration`] says which webhooks there are, [`worker`] keeps a [`lane`] for each,
//! [`event`] deals with one message, [`call`] with one request, [`call_log`] keeps the record. What is sent and what an answer
//! means is decided in [`crate::deliver`].

mod batch;
pub(super) mod call;
mod call_log;
mod claim_check;
pub(super) mod configuration;
pub(super) mod consumer;
mod event;
mod keyed;
mod lane;
pub(super) mod limits;
mod order;
mod places;
mod queue;
mod queue_log;
pub(super) mod receivers;
mod sealed;
pub mod settings;
mod shown;
pub(super) mod test_event;
mod worker;

use std::sync::{Arc, Mutex, OnceLock};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    backoff::Backoff,
    http::Http,
    identity::{self, Identity},
    notices::Notices,
    presence, rows, seal_keys,
    systemd::Notify,
};
use crate::{
    config::Config,
    error::{Error, Result},
    nats::{
        control::{self, Control},
        settings::Settings as Nats,
    },
    postgres::Settings as Postgres,
    route::tables::ConfigRow,
    text,
};
use call::Caller;
use call_log::CallLog;
use configuration::Whose;
use limits::Limits;
use queue::Queue;
use receivers::Receivers;
use settings::{Options, Settings};
use worker::Worker;

/// Delivers until `shutdown` turns true.
///
/// # Errors
/// Settings that cannot be; a server that refuses us. A server that is away is waited for.
pub async fn deliver(config: &Config, options: &Options, shutdown: watch::Receiver<bool>) -> Result<()> {
    let notify = Notify::from_environment();
    // Large: on the heap, so that those who hold it stay small.
    notify.feed_during(Box::pin(end(config, options, shutdown, &notify))).await
}

async fn end(config: &Config, options: &Options, shutdown: watch::Receiver<bool>, notify: &Notify) -> Result<()> {
    let outcome = work(config, options, shutdown, notify).await;
    match &outcome {
        Ok(()) => notify.stopping("stopped"),
        Err(error) => notify.stopping(&format!("ends with exit code {}: {error}", error.exit_code())),
    }
    outcome
}

async fn work(config: &Config, options: &Options, mut shutdown: watch::Receiver<bool>, notify: &Notify) -> Result<()> {
    let settings = Settings::resolve(options, &config.deliver, &config.source)?;
    let caller = Caller::new(&settings.allowed_networks, settings.ca.as_deref())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        source = config.source,
        group = settings.group,
        database = if settings.has_database { config.postgres.target() } else { "none".to_owned() },
        "walhook delivers"
    );
    let http = Http::start(config, "deliver", settings.has_database, None, &shutdown)?;
    if settings.queue {
        return drain(config, settings, caller, http, shutdown, notify).await;
    }
    notify.status("connects to its servers");
    let attempt = || connect(config, &settings);
    let Some((control, identity)) = until_connected(attempt, http.as_ref(), &mut shutdown, notify).await? else {
        return Ok(());
    };
    let postgres = settings.has_database.then(|| config.postgres.clone());
    let client = control.client().clone();
    let owner = Arc::new(OnceLock::new());
    if let Some(identity) = &identity {
        owner.get_or_init(|| identity.owner(&config.source));
    }
    let whose = Whose {
        source: config.source.clone(),
        shard: config.shard_name(),
        identity,
        database_id: settings.database_id.clone(),
        owner: Arc::clone(&owner),
    };
    let (all, following) = follow(config, &settings, &control, whose, postgres.clone());
    let noticing = postgres.clone().map(|postgres| {
        let (source, config) = (config.source.clone(), config.nats_config.clone());
        tokio::spawn(announce(Notices::start(source, postgres), config, client.clone(), all.clone()))
    });
    let worker = Arc::new(Worker {
        source: config.source.clone(),
        owner,
        shutdown_timeout: config.shutdown_timeout,
        all: all.clone(),
        room: Semaphore::new(settings.max_in_flight),
        object_room: Semaphore::new(settings.max_object_bytes.div_ceil(claim_check::ROOM_UNIT)),
        settings,
        control,
        client,
        receivers: Receivers::new(caller),
        seal_keys: seal_keys::OnDemand::new(config),
        limits: Limits::new(postgres.clone()),
        call_log: postgres.clone().map(CallLog::open),
        nats_config: config.nats_config.clone(),
        counters: Arc::default(),
        holds: Mutex::default(),
        began: Instant::now(),
        counts: Arc::default(),
        log_summary: config.log_summary,
        notify: notify.clone(),
    });
    let view = shown::View {
        chosen: worker.settings.webhooks.clone(),
        all: worker.all.clone(),
        counters: Arc::clone(&worker.counters),
        counts: Arc::clone(&worker.counts),
        nats: Some((worker.nats_config.clone(), worker.control.clone())),
    };
    let showing = http.as_ref().map_or_else(Vec::new, |http| show(http, view, postgres));
    worker::run(worker, all, shutdown).await;
    following.abort();
    noticing.iter().for_each(JoinHandle::abort);
    showing.iter().for_each(JoinHandle::abort);
    tracing::info!("all calls finished");
    Ok(())
}

/// Reads the rows of the webhooks as they change, in a task of its own.
fn follow(
    config: &Config,
    settings: &Settings,
    control: &Control,
    whose: Whose,
    postgres: Option<Postgres>,
) -> (watch::Receiver<Option<configuration::All>>, JoinHandle<()>) {
    let (sender, all) = watch::channel(None);
    let following = tokio::spawn(configuration::follow(
        control.clone(),
        whose,
        config.nats_config.clone(),
        postgres,
        settings.secrets_dir.clone(),
        sender,
    ));
    (all, following)
}

/// Shows by HTTP how the calls go, and what the database says of dead letters, in tasks of their own.
fn show(http: &Http, view: shown::View, postgres: Option<Postgres>) -> Vec<JoinHandle<()>> {
    let mut showing = vec![tokio::spawn(shown::show(view, http.shared().clone()))];
    showing.extend(postgres.map(|postgres| tokio::spawn(shown::ask(postgres, http.shared().clone()))));
    showing
}

/// Announces for the worker's configuration for as long as it has a `notice_subject`.
async fn announce(
    notices: Notices,
    config: String,
    nats: async_nats::Client,
    mut all: watch::Receiver<Option<configuration::All>>,
) {
    let mut has_before = false;
    while all.changed().await.is_ok() {
        let has_subject = all.borrow_and_update().as_ref().is_some_and(|all| all.has_notices);
        if has_subject != has_before {
            notices.follow(has_subject.then(|| (config.clone(), nats.clone())).into_iter().collect());
            has_before = has_subject;
        }
    }
}

/// Tries until an attempt succeeds; `None`: a shutdown began before. A server that is away is waited for, however long.
///
/// # Errors
/// What trying again does not change.
async fn until_connected<T, F: Future<Output = Result<T>>>(
    attempt: impl Fn() -> F,
    http: Option<&Http>,
    shutdown: &mut watch::Receiver<bool>,
    notify: &Notify,
) -> Result<Option<T>> {
    let (mut backoff, began) = (Backoff::default(), Instant::now());
    loop {
        let error = match attempt().await {
            Ok(connected) => {
                if let Some(http) = http {
                    http.shared().update(|snapshot| {
                        snapshot.start_error = None;
                        snapshot.postgres_connected = true;
                    });
                }
                return Ok(Some(connected));
            }
            Err(error) if !error.is_retryable() => return Err(error),
            Err(error) => error,
        };
        let wait = backoff.next();
        let name = super::breaks::of_postgres(&error);
        tracing::warn!(finding = name, retry_in_ms = wait.as_millis(), away_s = began.elapsed().as_secs(), "{error}");
        notify.status(&format!("not delivering, trying again: {error}"));
        // The service manager need not wait: a server may be away for long.
        notify.ready();
        if let Some(http) = http {
            http.shared().update(|snapshot| {
                snapshot.start_error = Some(error.to_string());
                snapshot.start_finding = Some(name);
            });
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = shutdown.wait_for(|stop| *stop) => return Ok(None),
        }
    }
}

/// The queue in PostgreSQL.
async fn drain(
    config: &Config,
    settings: Settings,
    caller: Caller,
    http: Option<Http>,
    mut shutdown: watch::Receiver<bool>,
    notify: &Notify,
) -> Result<()> {
    notify.status("connects to PostgreSQL");
    let attempt = || async {
        let client = super::connect(config).await?;
        // Calls of a copy are the original's to make.
        identity::read(&client).await
    };
    if until_connected(attempt, http.as_ref(), &mut shutdown, notify).await?.is_none() {
        return Ok(());
    }
    let (sender, all) = watch::channel(None);
    let chosen = settings.webhooks.clone();
    let queue = Arc::new(Queue::new(
        settings,
        config.source.clone(),
        config.postgres.clone(),
        Receivers::new(caller),
        sender,
        config.shutdown_timeout,
        notify.clone(),
    ));
    let (counters, counts) = (Arc::clone(&queue.counters), Arc::clone(&queue.counts));
    let view = shown::View { chosen, all, counters, counts, nats: None };
    let showing = http.as_ref().map_or_else(Vec::new, |http| show(http, view, Some(config.postgres.clone())));
    tracing::info!("taking calls from the queue");
    queue::run(queue, shutdown).await;
    showing.iter().for_each(JoinHandle::abort);
    tracing::info!("all calls finished");
    Ok(())
}

/// The NATS of the configuration that is named in the settings, and the database, which is the one that publishes there.
async fn connect(config: &Config, settings: &Settings) -> Result<(Control, Option<Identity>)> {
    let database = if settings.has_database {
        let client = super::connect(config).await?;
        let identity = identity::read(&client).await?;
        let tables = rows::read(&client).await?;
        let row = tables.configs.values().find(|row| row.config_name == config.nats_config).cloned();
        Some((client, identity, row))
    } else {
        None
    };
    let row = database.as_ref().and_then(|(.., row)| row.clone());
    let row = match row {
        Some(row) => ConfigRow::clone(&row),
        None if config.nats.url.is_some() => {
            ConfigRow { config_name: config.nats_config.clone(), ..ConfigRow::default() }
        }
        None => {
            return Err(Error::config(format!("there is no NATS configuration {:?}", config.nats_config)).hint(
                format!(
                    "SELECT rule_nats_configure({}, 'nats://HOST:4222') in the database makes it, or give --nats-url",
                    text::sql_literal(&config.nats_config)
                ),
            ));
        }
    };
    let mut nats = Nats::resolve(&row, &config.nats)?;
    "walhook deliver".clone_into(&mut nats.name);
    // A worker is waited for by nobody: it waits for its server, however long.
    nats.max_reconnects = None;
    for warning in &nats.warnings {
        tracing::warn!("{warning}");
    }
    let control = control::connect(&nats).await.map_err(|error| error.named("nats_connection"))?;
    let Some((client, identity, _)) = database else { return Ok((control, None)) };
    if let Some(mark) = presence::check_runs(&client, &control, &config.source, &identity).await? {
        identity::check_timeline(&client, &mark).await?;
    }
    Ok((control, Some(identity)))
}
