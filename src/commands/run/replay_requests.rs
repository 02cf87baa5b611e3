//! Replay requests and the anchor slot: what a run does beside delivery, in a task of its own and on connections of its own, so that delivery never waits for it.
//!
//! In: rows that `rule_cdc_replay` has written, and the anchor slot's settings. Out: the replays, one after the other; the anchor, moved
//! so that it stays as far behind as it is meant to. Always: what goes wrong here is told and tried again, and ends nothing.
//! The task ends with the session; what it was at is gone on with in the next one.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time::sleep};
use tokio_postgres::Client;

use super::shown;
use crate::{
    commands::{
        backoff::Backoff,
        breaks::SHOWS_WITHIN,
        http, identity,
        log_once::LogOnce,
        replay,
        setup_check::{self, Reported},
    },
    config::Config,
    error::{Error, Kind, Result},
    http::server::Shared,
    postgres::{self, sql},
};

/// How often it is looked for replays that are asked for.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is tried whether another replay has ended.
const TURN: Duration = Duration::from_secs(5);
/// How often the anchor is looked after; how often it is moved, its function decides.
const ANCHOR: Duration = Duration::from_secs(5);

/// How often the set-up is checked.
const CHECK: Duration = Duration::from_secs(10);

const _: () = assert!(CHECK.as_secs() + http::EVERY.as_secs() <= SHOWS_WITHIN.as_secs());

const NEXT: &str = "SELECT replay_id FROM public.rule_cdc_replays \
    WHERE source = $1 AND is_requested AND status IN ('requested', 'running') ORDER BY replay_id LIMIT 1";
const MOVE: &str = "SELECT public.rule_cdc_anchor_move($1)::text";
const PROBLEM: &str = "UPDATE walhook.rule_cdc_anchor_settings SET problem = $2 WHERE slot_name = $1";

/// The task; dropping it ends it.
pub struct ReplayRequests(JoinHandle<()>);

impl ReplayRequests {
    /// Begins its work.
    pub fn start(config: &Config, epoch: u64, reported: Reported, shared: Option<Shared>) -> ReplayRequests {
        ReplayRequests(tokio::spawn(work(config.clone(), epoch, reported, shared)))
    }
}

impl Drop for ReplayRequests {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn work(config: Config, epoch: u64, reported: Reported, shared: Option<Shared>) {
    let mut backoff = Backoff::default();
    let mut logged = LogOnce::default();
    loop {
        let Err(error) = Box::pin(session(&config, epoch, &mut backoff, &reported, shared.as_ref())).await;
        let text = error.to_string();
        if logged.is_news(&text) {
            tracing::warn!("{text}");
        }
        sleep(backoff.next()).await;
    }
}

async fn session(
    config: &Config,
    epoch: u64,
    backoff: &mut Backoff,
    reported: &Reported,
    shared: Option<&Shared>,
) -> Result<Infallible> {
    let client = sql::connect(&config.postgres).await?;
    identity::hold(&client, &config.source, epoch).await?;
    tokio::select! {
        outcome = replays(config, &client, backoff) => outcome,
        outcome = anchor(config, &client) => outcome,
        outcome = check(config, &client, reported, shared) => outcome,
        outcome = show(config, &client, shared) => outcome,
    }
}

/// The replays that are asked for, the oldest first.
async fn replays(config: &Config, client: &Client, backoff: &mut Backoff) -> Result<Infallible> {
    loop {
        let next = client.query_opt(NEXT, &[&config.source]).await;
        let Some(row) = next.map_err(|error| failed("look for replays that are asked for", error))? else {
            sleep(LOOK).await;
            continue;
        };
        if replay::requested(config, row.get(0)).await? {
            *backoff = Backoff::default();
        } else {
            sleep(TURN).await;
        }
    }
}

async fn anchor(config: &Config, client: &Client) -> Result<Infallible> {
    let mut logged = LogOnce::default();
    loop {
        // A problem with the slot is none of the connection's, so it holds up no replay.
        match client.query_one(MOVE, &[&config.slot]).await {
            Ok(_) => {
                logged.forget();
            }
            Err(error) if error.is_closed() => return Err(failed("move the anchor slot", error)),
            Err(error) => {
                let text = failed("move the anchor slot", error).to_string();
                if logged.is_news(&text) {
                    tracing::warn!("{text}");
                    let noted = client.execute(PROBLEM, &[&config.slot, &text]).await;
                    noted.map_err(|error| failed("note why the anchor slot is not moved", error))?;
                }
            }
        }
        sleep(ANCHOR).await;
    }
}

/// Whether the set-up is still as it must be: somebody may alter a publication or a linked table at any time.
async fn check(config: &Config, client: &Client, reported: &Reported, shared: Option<&Shared>) -> Result<Infallible> {
    let mut logged = LogOnce::default();
    loop {
        let began = Instant::now();
        match setup_check::read(client, config).await {
            Ok(findings) => {
                logged.forget();
                if let Some(shared) = shared {
                    shown::show_findings(shared, &findings);
                }
                reported.report(findings);
            }
            Err(error) if client.is_closed() => return Err(error),
            Err(error) => {
                let text = error.to_string();
                if logged.is_news(&text) {
                    tracing::warn!("{text}");
                }
            }
        }
        // Where thousands of links make it long, it takes no more than a twentieth of the time.
        sleep(CHECK.max(began.elapsed() * 20)).await;
    }
}

/// What only the database knows, where HTTP is served.
async fn show(config: &Config, client: &Client, shared: Option<&Shared>) -> Result<Infallible> {
    match shared {
        Some(shared) => shown::ask(config, client, shared).await,
        None => std::future::pending().await,
    }
}

fn failed(attempted: &str, error: tokio_postgres::Error) -> Error {
    let error = sql::error(attempted, error);
    match postgres::sqlstate(&error) {
        Some("42P01" | "42883" | "42703") => {
            error.of_kind(Kind::Config).hint("run `walhook setup`, which applies the migrations")
        }
        _ => error,
    }
}
