//! Opening a lane: what JetStream is asked before anything is published.
//!
//! In: the stream's row, the control connection, what is known of the lane. Out: the stream made what the row says, its
//! tail, and what of it we may trust. Changes nothing of ours; what is found is for the lane to judge.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::Identity;
use crate::{
    commands::{
        bucket::{self, Place},
        identity::{self, Runs},
        presence::{self, Asker},
        run::{
            faults::{self, Point},
            state_store::Checkpoint,
        },
    },
    error::{Error, Kind, Result},
    flow::{
        event_id::{EventPosition, REWRITTEN},
        lane::{BATCH_MAX, Listing, Tail},
        streamer::LaneSettings,
    },
    nats::{
        control::Control,
        owner::{self, Claim, Use},
        streams, tail,
    },
    postgres::sql,
    route::tables::{ConfigRow, ServerAlias, StreamRow, resolve},
    text,
    wal::lsn::Lsn,
};

/// What the stream shows.
pub struct Opened {
    pub tail: Tail,
    pub created_ns: i64,
    pub warnings: Vec<String>,
    pub is_in_memory: bool,
    /// What of `transactions` and `durability` this stream cannot do, and why.
    pub falls_back: Option<String>,
}

/// What is known before.
pub struct Known {
    /// The NATS configuration.
    pub config_name: String,
    /// When the stream was made in which this database saw events of its own.
    pub created_ns: Option<i64>,
    /// No tail of ours is beyond it.
    pub server_wal: Lsn,
    /// See [`crate::flow::lane::Lane::listing`].
    pub listing: Option<Listing>,
    /// Where our last message was last seen, and when its stream was created.
    pub place: Option<(u64, i64)>,
    /// Of the publishing connection, in bytes.
    pub max_payload: usize,
    /// The server's.
    pub version: String,
    /// It has atomic batches that we can use: before 2.12.1 it refuses message ids in them, before 2.12.0 it stores each message
    /// by itself and says nothing.
    pub knows_batches: bool,
    /// It syncs a batch as a whole; before 2.15.0 each of its messages.
    pub shares_syncs: bool,
    /// How many messages it takes as one, as far as it has told.
    pub batch_max: usize,
}

/// Makes the stream what the row says and reads its tail. A stream that no row of now speaks of is left as it is.
pub async fn open(control: Control, settings: LaneSettings, identity: Identity, known: Known) -> Result<Opened> {
    let LaneSettings { stream, is_current, .. } = settings;
    let mut warnings = Vec::new();
    let mut row = stream.clone();
    if !known.knows_batches {
        row.transactions = None;
    }
    if !known.shares_syncs {
        row.durability = None;
    }
    let owner = identity.database.owner(&identity.source);
    if let Err(error) = check_runs(&control, &identity, &mut warnings).await {
        // What the stream itself shows says it more exactly.
        if let Ok(end) = end(&control, &stream, &identity, &known).await {
            judge_end(&end, &stream, &identity, &known)?;
        }
        return Err(error);
    }
    let there = if is_current { None } else { streams::find(&control, &row.stream_name).await? };
    let ensured = match there {
        Some(state) => Ok(state),
        None => streams::ensure_of(&control, &row, Some(&owner)).await,
    };
    let state = match ensured {
        Ok(state) => state,
        // The row wants what JetStream does not allow. Where the stream exists, events flow into it as it is.
        Err(error) if error.kind() == Kind::Config => {
            let Ok(state) = streams::state(&control, &stream.stream_name).await else { return Err(error) };
            warnings.push(error.to_string());
            state
        }
        Err(error) => return Err(error),
    };
    warnings.extend(state.warnings.iter().cloned());
    if streams::check_owner(&row, &state.metadata, &owner)? == Claim::Unclaimed {
        claim(&control, &stream, &identity, &known, state.created_ns, &mut warnings).await?;
    }
    faults::pass(Point::TailUnread).await?;
    let end = end(&control, &stream, &identity, &known).await?;
    let ours = judge_end(&end, &stream, &identity, &known)?;
    let max_payload = known.max_payload.min(state.max_msg_size.unwrap_or(usize::MAX));
    let position = |stored: &tail::Stored| position_of(stored, &identity.source);
    let is_ours = |stored: &tail::Stored| position(stored).is_some();
    let stored = match known.listing {
        None => Vec::new(),
        Some(Listing::Behind(behind)) => {
            let place = known.place.map(|(sequence, _)| sequence);
            tail::ours_behind(&control, &stream.stream_name, behind, end.last_sequence, place, is_ours).await?
        }
        Some(Listing::Since(since)) => {
            let is_before =
                |stored: &tail::Stored| position(stored).is_some_and(|position| position.commit_lsn < since);
            let range = end.first_sequence..=end.last_sequence;
            tail::ours_until(&control, &stream.stream_name, range, is_ours, is_before).await?
        }
    };
    let listed = stored.iter().filter_map(position).collect();
    let is_in_memory = state.storage == "memory";
    let takes_batches = state.allow_atomic && row.wants_batches();
    let batch_max = if takes_batches { known.batch_max } else { 1 };
    let falls_back = falls_back(&stream, &known, takes_batches, is_in_memory);
    let tail = Tail {
        last_sequence: end.last_sequence,
        ours,
        listing: known.listing,
        listed,
        subjects: state.subjects,
        max_payload,
        batch_max,
    };
    faults::pass(Point::TailRead).await?;
    Ok(Opened { tail, created_ns: end.created_ns, warnings, is_in_memory, falls_back })
}

/// The stream's end.
pub async fn end(control: &Control, stream: &StreamRow, identity: &Identity, known: &Known) -> Result<tail::Tail> {
    let is_ours = |stored: &tail::Stored| position_of(stored, &identity.source).is_some();
    let reach = tail::Reach { known: known.place, is_strict: stream.ordering.as_deref() != Some("shared") };
    tail::last_of_ours(control, &stream.stream_name, reach, is_ours).await
}

/// Our last event there, if what it shows can be our own history.
pub fn judge_end(
    end: &tail::Tail,
    stream: &StreamRow,
    identity: &Identity,
    known: &Known,
) -> Result<Option<(EventPosition, u64)>> {
    let ours = end.ours.as_ref().and_then(|stored| Some((position_of(stored, &identity.source)?, stored.sequence)));
    let epoch_of =
        |stored: &tail::Stored| stored.header("Walhook-Epoch").and_then(|epoch| epoch.parse::<u64>().ok()).unwrap_or(0);
    if let (Some(stored), Some((position, sequence)), Some(fork)) = (&end.ours, &ours, identity.fork)
        && position.commit_lsn >= fork.at
        && epoch_of(stored) < fork.first_epoch
    {
        return Err(Error::untrusted(format!(
            "go on in stream {:?}: its message {sequence} is of {}, on a timeline that PostgreSQL left at {}",
            stream.stream_name, position.commit_lsn, fork.at
        ))
        .hint(REWRITTEN));
    }
    if let Some(stored) = &end.ours {
        let epoch = epoch_of(stored);
        if epoch > identity.epoch {
            return Err(Error::new(
                Kind::Fenced,
                format!(
                    "run {} of source {:?} publishes already; this is run {}",
                    epoch, identity.source, identity.epoch
                ),
            )
            .hint("another walhook took over this slot, or a copy of this database runs: stop this one"));
        }
    }
    if let Some((position, sequence)) = &ours
        && position.commit_lsn > known.server_wal
    {
        return Err(Error::untrusted(format!(
            "go on in stream {:?}: its message {sequence} is of {}, beyond PostgreSQL's WAL, which ends at {}",
            stream.stream_name, position.commit_lsn, known.server_wal
        ))
        .hint(REWRITTEN));
    }
    Ok(ours)
}

/// Whether the last run that the bucket shows is known to this database.
async fn check_runs(control: &Control, identity: &Identity, warnings: &mut Vec<String>) -> Result<()> {
    match ask_runs(control, identity).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == Kind::Permission => {
            warnings.push(format!(
                "walhook cannot check whether a copy of this database (a base backup) publishes as well: {error}"
            ));
            Ok(())
        }
        // What else is wrong with JetStream the stream itself shows.
        Err(error) if error.kind() == Kind::Config => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether this database has a bucket there, after a look whether it knows the last run that the bucket shows.
///
/// # Errors
/// [`Kind::Untrusted`]: it does not know that run; or JetStream cannot be asked.
pub async fn ask_runs(control: &Control, identity: &Identity) -> Result<bool> {
    let Identity { source, database, run_id, postgres, .. } = identity;
    let runs = || Runs::read_by(postgres, source);
    presence::refuse_copy(control, source, database, Asker::Starting(run_id), runs).await?;
    let Place { mark, info, .. } = bucket::find(control, &identity.source, &identity.database).await?;
    if let Some(mark) = mark.filter(|mark| mark.run_id != identity.run_id) {
        identity.runs.check(&mark, &identity.database.database_id)?;
    }
    Ok(info.is_some())
}

/// Whether the database knows of a stream in which it saw events of its own, or may have seen some before it had an identity.
pub fn is_known(known: &Known, created_ns: i64, identity: &Identity) -> bool {
    let is_it = |known: i64| known.abs_diff(created_ns) <= tail::CREATED_TOLERANCE_NS;
    known.created_ns.is_some_and(is_it) || identity.database.is_upgraded
}

/// Refuses a stream without an owner that has events of this source, where the database does not know of it by [`is_known`]
/// or by a note of its own.
///
/// # Errors
/// [`Kind::Untrusted`]: those events may be another database's. PostgreSQL cannot be asked.
pub async fn refuse_unnoted(client: &Client, identity: &Identity, noted: &identity::Stream<'_>) -> Result<()> {
    if identity::is_noted(client, &identity.source, noted).await? {
        return Ok(());
    }
    let owner = identity.database.owner(&identity.source);
    Err(Error::untrusted(format!(
        "go on in stream {:?}: it has events of source {:?} that this database ({}) did not publish, and its metadata names no \
         database",
        noted.name, identity.source, owner.database_id
    ))
    .hint(format!(
        "{}; if the stream is this database's all the same: walhook adopt --stream {name}",
        owner::stream_hint(noted.name, Use::Alone, &BTreeMap::new(), &owner),
        name = noted.name
    )))
}

/// Which checkpoint is of the stream that a lane leads to.
pub fn checkpoint_of<'c>(
    checkpoints: &'c [Checkpoint],
    aliases: &[ServerAlias],
    config: &ConfigRow,
    stream: &str,
    servers: &str,
) -> Option<&'c Checkpoint> {
    let of_name =
        || checkpoints.iter().filter(|known| known.config_name == config.config_name && known.stream == stream);
    let leads_here = |known: &&Checkpoint| resolve(aliases, config.config_id, known.servers.clone()) == servers;
    let newest = of_name().filter(leads_here).max_by_key(|known| known.sequence);
    newest.or_else(|| of_name().find(|known| known.servers.is_empty()))
}

/// Makes a stream ours whose metadata says nothing yet: one that was made by hand, or by walhook before databases had identities.
async fn claim(
    control: &Control,
    stream: &StreamRow,
    identity: &Identity,
    known: &Known,
    created_ns: i64,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let owner = identity.database.owner(&identity.source);
    let name = &stream.stream_name;
    let noted = identity::Stream { config_name: &known.config_name, name, created_ns };
    let end = end(control, stream, identity, known).await?;
    let has_ours = judge_end(&end, stream, identity, known)?.is_some();
    if has_ours && !is_known(known, created_ns, identity) {
        let client = sql::connect(&identity.postgres).await?;
        return refuse_unnoted(&client, identity, &noted).await;
    }
    match streams::claim(control, name, &owner).await {
        Ok(Some(_)) => {
            tracing::info!(stream = name, database = owner.database_id, "stream claimed");
            return Ok(());
        }
        Ok(None) => {}
        // As with whatever else JetStream does not allow to change of it.
        Err(error) if error.kind() == Kind::Config => warnings.push(error.to_string()),
        Err(error) => return Err(error),
    }
    let client = sql::connect(&identity.postgres).await?;
    identity::note_stream(&client, &identity.source, &noted).await?;
    warnings.push(format!(
        "the stream's metadata does not say that it belongs to database {}, and this NATS user may not change it: walhook notices \
         another database with the same source only by its events; allow $JS.API.STREAM.UPDATE.{name} for one start, or with \
         a user who may: walhook adopt --stream {name} --nats-url …",
        owner.database_id
    ));
    Ok(())
}

/// What of the row's `transactions` and `durability` is not so, and why.
fn falls_back(row: &StreamRow, known: &Known, takes_batches: bool, is_in_memory: bool) -> Option<String> {
    let Known { version, batch_max, .. } = known;
    let disallowed = "it does not allow atomic batches, and walhook may not change that (allow_atomic)";
    let mut missing = Vec::new();
    if row.transactions.as_deref() == Some("atomic") {
        if !known.knows_batches {
            missing.push(format!(
                "transactions = 'atomic' does not hold, events are published one by one: nats-server {version} has no atomic \
                 batches that walhook can use, 2.12.1 has"
            ));
        } else if !takes_batches {
            missing
                .push(format!("transactions = 'atomic' does not hold, events are published one by one: {disallowed}"));
        } else if *batch_max < BATCH_MAX {
            missing.push(format!(
                "transactions = 'atomic' holds up to {batch_max} events: its server takes no larger batches \
                 (limits.max_batch_size)"
            ));
        }
    }
    if row.durability.as_deref() == Some("fsync") {
        if is_in_memory {
            missing.push("durability = 'fsync' has no effect: the stream is in memory".to_owned());
        } else if !known.shares_syncs {
            missing.push(format!(
                "durability = 'fsync' gains nothing: nats-server {version} syncs each message by itself, 2.15.0 a whole batch"
            ));
        } else if !takes_batches {
            missing.push(format!("durability = 'fsync' falls back to single messages: {disallowed}"));
        }
    }
    (!missing.is_empty()).then(|| format!("stream {:?}: {}", row.stream_name, missing.join("; ")))
}

/// How a stream stands to what was known of it.
pub enum TailTrust {
    /// It has all that it took.
    Whole,
    /// It has lost what it acknowledged last, and the slot has that still.
    SetBack,
}

/// Whether a stream is the one that was known and has kept what it acknowledged, as far as that is not in the slot any more.
/// What was removed from it in an orderly way still counts in its last sequence.
pub fn trusted(source: &str, known: &Checkpoint, created_ns: i64, tail: &Tail) -> Result<TailTrust> {
    let sequence = &known.sequence;
    let what = if known.created_ns.abs_diff(created_ns) > tail::CREATED_TOLERANCE_NS {
        "it was made anew since".to_owned()
    } else if tail.last_sequence >= *sequence {
        return Ok(TailTrust::Whole);
    } else if tail.loses_nothing(known.retained_through) {
        return Ok(TailTrust::SetBack);
    } else {
        format!("it ends at message {} now", tail.last_sequence)
    };
    Err(lost(source, known, &what))
}

/// The error of a stream that does not have what it acknowledged.
pub fn lost(source: &str, known: &Checkpoint, what: &str) -> Error {
    let Checkpoint { config_name, stream, servers, sequence, .. } = known;
    Error::untrusted(format!("go on in stream {stream:?}, which had taken message {sequence}: {what}"))
        .named("stream_lost")
        .hint(format!(
            "acknowledged events are missing from it: bring the old stream back, or accept the loss by DELETE FROM \
             rule_nats_checkpoints WHERE source = {} AND config_name = {} AND stream_name = {} AND servers = {};",
            text::sql_literal(source),
            text::sql_literal(config_name),
            text::sql_literal(stream),
            text::sql_literal(servers)
        ))
}

/// Where a message of ours belongs. One that core NATS brought into the stream is not of its lane: it says nothing of
/// those before it, and is as a stranger's.
pub fn position_of(stored: &tail::Stored, source: &str) -> Option<EventPosition> {
    stored.header("Nats-Expected-Stream")?;
    let id = stored.header("Walhook-Id").or_else(|| stored.header("Nats-Msg-Id"))?;
    EventPosition::parse(id, source)
}
