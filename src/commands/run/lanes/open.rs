//! What JetStream and PostgreSQL are asked before a lane is opened, question by question: the driver asks, and decides what follows.
//!
//! In: a question of the driver, the control connection, who this run is. Out: the answer. Makes a stream what its row says, and
//! claims it, where the question says so; changes nothing else.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::Identity;
use crate::{
    commands::{
        bucket::{self, Place},
        identity::{self, Runs},
        presence::{self, Asker},
        run::faults::{self, Point},
    },
    error::{Error, Kind, Result},
    flow::{
        driver::{
            Question, Reply, StreamFacts,
            trust::{LastOfOurs, Stranger, StreamEnd},
        },
        event_id::EventPosition,
        lane::Listing,
    },
    nats::{
        control::Control,
        owner::{self, Claim, Use},
        streams::{self, StreamState},
        tail,
    },
    postgres::sql,
    route::tables::StreamRow,
};

/// Answers a question of the driver.
pub async fn answer(control: &Control, identity: &Identity, question: Question) -> Result<Reply> {
    match question {
        Question::OtherRuns => ask_runs(control, identity).await.map(|_| Reply::Done),
        Question::Ensure { row, is_current } => {
            let there = if is_current { None } else { streams::find(control, &row.stream_name).await? };
            let owner = identity.database.owner(&identity.source);
            let state = match there {
                Some(state) => state,
                None => streams::ensure_of(control, &row, Some(&owner)).await?,
            };
            facts(state, &row, identity)
        }
        Question::LookUp { row } => facts(streams::state(control, &row.stream_name).await?, &row, identity),
        Question::IsNoted { config_name, stream, created_ns } => {
            let client = sql::connect(&identity.postgres).await?;
            let noted = identity::Stream { config_name: &config_name, name: &stream, created_ns };
            refuse_unnoted(&client, identity, &noted).await.map(|()| Reply::Done)
        }
        Question::Claim { config_name, stream, created_ns } => {
            let noted = identity::Stream { config_name: &config_name, name: &stream, created_ns };
            claim(control, identity, &noted).await.map(Reply::Claimed)
        }
        Question::End { stream, place, is_strict, is_last, lists } => {
            if is_last {
                faults::pass(Point::TailUnread).await?;
            }
            let end = end(control, &stream, place, is_strict, &identity.source).await?;
            if is_last && !lists {
                faults::pass(Point::TailRead).await?;
            }
            Ok(Reply::End(end))
        }
        Question::List { stream, listing, place, range } => {
            let listed = list(control, &stream, listing, place, range, &identity.source).await?;
            faults::pass(Point::TailRead).await?;
            Ok(Reply::Listed(listed))
        }
    }
}

fn facts(state: StreamState, row: &StreamRow, identity: &Identity) -> Result<Reply> {
    let owner = identity.database.owner(&identity.source);
    let is_unclaimed = streams::check_owner(row, &state.metadata, &owner)? == Claim::Unclaimed;
    Ok(Reply::Stream(Box::new(StreamFacts {
        created_ns: state.created_ns,
        subjects: state.subjects,
        max_msg_size: state.max_msg_size,
        is_in_memory: state.storage == "memory",
        allows_batches: state.allow_atomic,
        is_unclaimed,
        warnings: state.warnings,
    })))
}

/// The stream's end. `place`: where our last message was last seen, and when its stream was created.
pub async fn end(
    control: &Control,
    stream: &str,
    place: Option<(u64, i64)>,
    is_strict: bool,
    source: &str,
) -> Result<StreamEnd> {
    let is_ours = |stored: &tail::Stored| position_of(stored, source).is_some();
    let end = tail::last_of_ours(control, stream, tail::Reach { known: place, is_strict }, is_ours).await?;
    let ours = end.ours.as_ref().and_then(|stored| {
        let epoch = stored.header("Walhook-Epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        Some(LastOfOurs { position: position_of(stored, source)?, sequence: stored.sequence, epoch })
    });
    Ok(StreamEnd {
        last_sequence: end.last_sequence,
        first_sequence: end.first_sequence,
        created_ns: end.created_ns,
        ours,
        stranger: end.stranger.map(|stored| event_of(&stored, source).map_or(Stranger::Foreign, Stranger::OfCore)),
    })
}

async fn list(
    control: &Control,
    stream: &str,
    listing: Listing,
    place: Option<u64>,
    (first, last): (u64, u64),
    source: &str,
) -> Result<Vec<EventPosition>> {
    let position = |stored: &tail::Stored| position_of(stored, source);
    let is_ours = |stored: &tail::Stored| position(stored).is_some();
    let stored = match listing {
        Listing::Behind(behind) => tail::ours_behind(control, stream, behind, last, place, is_ours).await?,
        Listing::Since(since) => {
            let is_before =
                |stored: &tail::Stored| position(stored).is_some_and(|position| position.commit_lsn < since);
            tail::ours_until(control, stream, first..=last, is_ours, is_before).await?
        }
    };
    Ok(stored.iter().filter_map(position).collect())
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

/// Refuses a stream without an owner that has events of this source, where the database has no note of it.
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
        "{}; if the stream nevertheless belongs to this database: walhook adopt --stream {name}",
        owner::stream_hint(noted.name, Use::Alone, &BTreeMap::new(), &owner),
        name = noted.name
    )))
}

/// Makes a stream ours whose metadata says nothing yet. Returns what there is to say of it.
async fn claim(control: &Control, identity: &Identity, noted: &identity::Stream<'_>) -> Result<Vec<String>> {
    let (owner, name) = (identity.database.owner(&identity.source), noted.name);
    let mut warnings = Vec::new();
    match streams::claim(control, name, &owner).await {
        Ok(Some(_)) => {
            tracing::info!(stream = name, database = owner.database_id, "stream claimed");
            return Ok(warnings);
        }
        Ok(None) => {}
        // As with whatever else JetStream does not allow to change of it.
        Err(error) if error.kind() == Kind::Config => warnings.push(error.to_string()),
        Err(error) => return Err(error),
    }
    let client = sql::connect(&identity.postgres).await?;
    identity::note_stream(&client, &identity.source, noted).await?;
    warnings.push(format!(
        "the stream's metadata does not say that it belongs to database {}, and this NATS user may not change it: walhook notices \
         another database with the same source only by its events; allow $JS.API.STREAM.UPDATE.{name} for one start, or with \
         a user who may: walhook adopt --stream {name} --nats-url …",
        owner.database_id
    ));
    Ok(warnings)
}

/// Where a message of ours belongs. One that core NATS brought into the stream is not of its lane: it says nothing of
/// those before it, and is as a stranger's.
pub fn position_of(stored: &tail::Stored, source: &str) -> Option<EventPosition> {
    stored.header("Nats-Expected-Stream")?;
    event_of(stored, source)
}

/// The event of this source that a message is, whichever way it came.
fn event_of(stored: &tail::Stored, source: &str) -> Option<EventPosition> {
    let id = stored.header("Walhook-Id").or_else(|| stored.header("Nats-Msg-Id"))?;
    EventPosition::parse(id, source)
}
