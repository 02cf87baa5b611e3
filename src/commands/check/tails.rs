//! Where the streams end: whether `walhook run` could go on behind the last event there.
//!
//! In: what the database knows of the streams, and each stream's end. Out: findings, by the judgement of `walhook run` itself
//! ([`open`]). Changes nothing: the epoch is foreseen and not raised, a stream without an owner is not claimed.

use std::sync::Arc;

use tokio_postgres::Client;

use super::{
    finding::{Finding, Severity},
    server::Replicated,
};
use crate::{
    commands::{
        identity::{self, Identity, Runs},
        run::{
            self, open, rules,
            state_store::{self, Epoch},
        },
    },
    config::Config,
    error::{Error, Kind, Result},
    flow::{
        driver::trust::{self, Checkpoint},
        lane,
    },
    nats::{
        control::Control,
        owner::Claim,
        streams::{self, foresee::There},
        tail::{self, Stored},
    },
    postgres::sql,
    route::tables::{ConfigRow, ServerAlias, StreamRow},
    wal::lsn::Lsn,
};

/// So many of a strict stream's last messages are looked at for another writer.
const LOOKED_AT: u64 = 32;

/// What the database knows, as the next run would read it.
pub struct History {
    identity: run::Identity,
    checkpoints: Vec<Checkpoint>,
    /// Servers that lead elsewhere than their rows say.
    pub aliases: Vec<ServerAlias>,
}

impl History {
    /// Reads it.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] where the checkpoints are of another PostgreSQL; what `walhook run` would end with; PostgreSQL cannot be
    /// asked.
    pub async fn read(
        client: &Client,
        config: &Config,
        identity: &Identity,
        replicated: &Replicated,
    ) -> Result<History> {
        let Replicated { system, left } = replicated;
        let confirmed = match state_store::confirmed(client, &config.slot).await {
            Ok(confirmed) => confirmed,
            // Its absence is a finding of its own.
            Err(_) => Lsn::ZERO,
        };
        let Epoch { epoch, fork } = state_store::next_epoch(client, &config.source, system.timeline, left).await?;
        let at = rules::At { source: &config.source, system_identifier: &system.system_id, confirmed };
        Ok(History {
            checkpoints: state_store::checkpoints(client, &config.source, &system.system_id).await?,
            aliases: rules::aliases(client, at).await?,
            identity: run::Identity {
                source: config.source.clone(),
                database: identity.clone(),
                run_id: String::new(),
                runs: Arc::new(Runs::read(client, &config.source).await?),
                postgres: config.postgres.clone(),
                epoch,
                fork,
            },
        })
    }
}

/// The finding of an error that ends `walhook run` when it reads the stream's end.
fn ends(subject: &str, error: &Error) -> Finding {
    Finding::of_error(error.name().unwrap_or("stream_tail"), subject, error)
}

/// `stream_lost`: a stream that walhook has published to is not there any more.
pub fn missing(history: &History, (config, servers): (&ConfigRow, &str), row: &StreamRow) -> Option<Finding> {
    let History { identity, checkpoints, aliases } = history;
    let known = trust::checkpoint_of(checkpoints, aliases, config, &row.stream_name, servers)?;
    // Such a stream is gone when its servers stop, which `run` knows.
    let is_in_memory = row.storage_type.as_deref() == Some("memory");
    let error = trust::lost(&identity.source, known, "it does not exist any more");
    (!is_in_memory).then(|| ends(&format!("stream {:?}", row.stream_name), &error))
}

/// `stream_lost`, `stream_tail`, `stream_writers`.
pub async fn check(
    client: &Client,
    control: &Control,
    history: &History,
    (config, servers): (&ConfigRow, &str),
    row: &StreamRow,
    there: &There,
) -> Result<Vec<Finding>> {
    let History { identity, checkpoints, aliases } = history;
    let checkpoint = trust::checkpoint_of(checkpoints, aliases, config, &row.stream_name, servers);
    let (run, name) = (identity.run(), &row.stream_name);
    let known = checkpoint.map(|known| known.created_ns);
    let place = checkpoint.map(|known| (known.sequence, known.created_ns));
    let is_strict = !row.is_shared();
    let subject = format!("stream {name:?}");
    let end = match open::end(control, name, place, is_strict, &identity.source).await {
        Ok(end) => end,
        Err(error) if error.kind() == Kind::Untrusted => return Ok(vec![ends(&subject, &error)]),
        Err(error) => return Err(error),
    };
    // Read afterwards: a run that publishes beside this check is not beyond it.
    let server_wal = flushed(client).await?;
    let ours = match trust::judge_end(&end, name, &run, server_wal) {
        Ok(ours) => ours,
        Err(error) => return Ok(vec![ends(&subject, &error)]),
    };
    let owner = identity.database.owner(&identity.source);
    let claim = streams::check_owner(row, &there.state.metadata, &owner);
    if ours.is_some() && matches!(claim, Ok(Claim::Unclaimed)) && !trust::is_known(&run, known, end.created_ns) {
        let noted = identity::Stream { config_name: &config.config_name, name, created_ns: end.created_ns };
        match open::refuse_unnoted(client, identity, &noted).await {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::Untrusted => return Ok(vec![ends(&subject, &error)]),
            Err(error) => return Err(error),
        }
    }
    let mut findings = Vec::new();
    let stranger = end.stranger;
    let end = lane::Tail {
        last_sequence: end.last_sequence,
        ours,
        in_stream: ours,
        listing: None,
        listed: Vec::new(),
        subjects: Vec::new(),
        max_payload: usize::MAX,
        batch_max: 1,
    };
    if let Some(checkpoint) = checkpoint
        && let Err(error) = trust::trusted(&identity.source, checkpoint, there.state.created_ns, &end, stranger)
    {
        findings.push(match there.state.storage.as_str() {
            // It is gone when its servers stop, which `run` knows.
            "memory" => Finding { severity: Severity::Warning, exit_code: None, ..ends(&subject, &error) },
            _ => ends(&subject, &error),
        });
    }
    if is_strict && end.last_sequence > 0 {
        findings.extend(writers(control, row, &identity.source, end.last_sequence).await?);
    }
    Ok(findings)
}

/// `stream_writers`: messages of others among the last ones.
async fn writers(control: &Control, row: &StreamRow, source: &str, last: u64) -> Result<Option<Finding>> {
    let range = last.saturating_sub(LOOKED_AT - 1).max(1)..=last;
    let there = tail::ours_until(control, &row.stream_name, range, |_| true, |_| false).await?;
    Ok(foreign(row, source, &there))
}

/// The finding, where some of the messages are not of this source's own publishing. The newest comes first.
fn foreign(row: &StreamRow, source: &str, there: &[Stored]) -> Option<Finding> {
    let others: Vec<&Stored> = there.iter().filter(|stored| run::position_of(stored, source).is_none()).collect();
    let newest = *others.first()?;
    let id = newest.header("Walhook-Id").or_else(|| newest.header("Nats-Msg-Id"));
    let who = id.map_or_else(String::new, |id| format!(", with id {id:?}"));
    let text = format!(
        "{} of the last {} messages of stream {:?} are not of this source's publishing; the newest of them is message {} on subject \
         {:?}{who}: the stream has strict ordering, in which walhook must be its only writer",
        others.len(),
        there.len(),
        row.stream_name,
        newest.sequence,
        newest.subject
    );
    Some(Finding::new("stream_writers", Severity::Warning, format!("stream {:?}", row.stream_name), text))
}

async fn flushed(client: &Client) -> Result<Lsn> {
    let attempted = "read the end of the WAL";
    let row = client.query_one("SELECT pg_catalog.pg_current_wal_flush_lsn()::text", &[]).await;
    let row = row.map_err(|error| sql::error(attempted, error))?;
    row.get::<_, &str>(0).parse().map_err(|error| Error::protocol(attempted).caused_by(error))
}
