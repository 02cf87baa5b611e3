//! Which way a replay takes: the streams, the WAL, or the tables.
//!
//! In: what was asked for. Out: the way that serves it, with where it begins. Where none was named they are tried in that order, for the
//! streams have what was really sent, the WAL the same anew, and the tables only what is there now. Which one it is, and why
//! those before it could not serve, is always named.

use std::fmt;

use clap::ValueEnum;
use serde_json::{Map, Value};

use super::{Bounds, Source, Work, failed, wal};
use crate::error::{Error, Kind, Result};

/// From where events come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// What the streams still hold
    Stream,
    /// What the anchor slot keeps of the WAL
    Wal,
    /// The rows that the tables have now, as events of op snapshot
    Table,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Via::Stream => "stream",
            Via::Wal => "wal",
            Via::Table => "table",
        })
    }
}

/// A way, with where it begins.
pub enum Way {
    /// Parts of streams.
    Stream(Vec<Part>),
    /// A part of the WAL.
    Wal(wal::Start),
    /// Tables, one after the other.
    Table(Vec<Job>),
}

/// Messages of a stream.
pub struct Part {
    /// The stream.
    pub source: Source,
    /// The first one.
    pub first: u64,
    /// The last one: what comes behind it came after the replay began.
    pub last: u64,
}

/// The rows of a table.
pub struct Job {
    /// Its name.
    pub table: String,
    /// For whom; `None`: for all that are linked to it.
    pub webhook: Option<String>,
}

const LINKED: &str = "SELECT DISTINCT format('%I.%I', l.table_schema, l.table_name) FROM public.rule_webhook_links l \
    JOIN public.rule_webhooks w USING (webhook_id) WHERE l.enabled AND w.enabled AND w.publish_mode IN ('nats', 'both') \
    AND ($1::text IS NULL OR w.webhook_name = $1) ORDER BY 1";

impl Way {
    /// Which one.
    pub fn via(&self) -> Via {
        match self {
            Way::Stream(_) => Via::Stream,
            Way::Wal(_) => Via::Wal,
            Way::Table(_) => Via::Table,
        }
    }

    /// Where it begins and ends, as the book notes it.
    pub fn progress(&self) -> Map<String, Value> {
        let mut progress = Map::new();
        match self {
            Way::Stream(parts) => {
                for Part { source, first, last } in parts {
                    progress.insert(source.name.clone(), (*first).into());
                    progress.insert(end_of(&source.name), (*last).into());
                }
            }
            Way::Wal(start) => {
                progress.insert(wal::PART.to_owned(), start.from.to_string().into());
                progress.insert(end_of(wal::PART), start.end.to_string().into());
            }
            Way::Table(_) => {}
        }
        progress
    }
}

/// Under which key of the progress the end of a part stands.
fn end_of(name: &str) -> String {
    format!("{name} end")
}

/// The way that was asked for, or the first that serves.
///
/// # Errors
/// None does: with what each of them keeps.
pub async fn choose(work: &Work<'_>, bounds: &Bounds) -> Result<Way> {
    if let Some(via) = work.asked.via {
        return open(work, bounds, via).await;
    }
    let mut failures: Vec<Error> = Vec::new();
    for via in [Via::Stream, Via::Wal, Via::Table] {
        match open(work, bounds, via).await {
            Ok(way) => {
                if !failures.is_empty() {
                    let (reasons, _) = Error::all(&failures);
                    tracing::warn!("replay via {via}: no earlier source has the requested range: {reasons}");
                }
                return Ok(way);
            }
            Err(error) if error.kind() == Kind::Config => failures.push(error.context(format!("via {via}"))),
            Err(error) => return Err(error),
        }
    }
    let (reasons, remedy) = Error::all(&failures);
    let error = Error::config(format!("replay from {}: no source has the requested range: {reasons}", bounds.from));
    Err(match remedy {
        Some(remedy) => error.hint(remedy),
        None => error,
    })
}

async fn open(work: &Work<'_>, bounds: &Bounds, via: Via) -> Result<Way> {
    match via {
        Via::Stream => streams(work, bounds).await.map(Way::Stream),
        Via::Wal => wal_start(work, bounds).await.map(Way::Wal),
        Via::Table => tables(work).await.map(Way::Table),
    }
}

/// Finds the beginning in every stream; of a replay that is resumed it is known, and so is the end.
async fn streams(work: &Work<'_>, bounds: &Bounds) -> Result<Vec<Part>> {
    let (asked, config) = (work.asked, work.config);
    let wants = |name: &str| asked.streams.is_empty() || asked.streams.iter().any(|stream| stream == name);
    let mut parts = Vec::new();
    let mut is_none = true;
    for source in work.feed.sources(work.client, config, |_, name| wants(name)).await? {
        let state = match source.state().await {
            Ok(state) => state,
            // Not made yet, so nothing was published into it.
            Err(error) if error.kind() == Kind::Config => continue,
            Err(error) => return Err(error),
        };
        is_none = false;
        if !asked.progress.is_empty() {
            let known = |key: &str| asked.progress.get(key).and_then(Value::as_u64);
            if let (Some(first), Some(last)) = (known(&source.name), known(&end_of(&source.name))) {
                parts.push(Part { source, first, last });
            }
            continue;
        }
        let begin = source.begin(&config.source, bounds, &state).await?;
        let first = begin.filter(|begin| !bounds.end_before(&begin.position)).map(|begin| begin.sequence);
        // Nothing of it: an empty part, which a dry run tells of.
        parts.push(Part { source, first: first.unwrap_or(state.last_sequence + 1), last: state.last_sequence });
    }
    if is_none {
        return Err(Error::config("replay from the streams: no such stream of this feed is there")
            .hint("has `walhook run` published anything yet?"));
    }
    Ok(parts)
}

async fn wal_start(work: &Work<'_>, bounds: &Bounds) -> Result<wal::Start> {
    if !work.asked.streams.is_empty() {
        return Err(Error::config("replay a stream from the WAL: --stream chooses among the streams only")
            .hint("choose by --webhook or --table"));
    }
    let known = |key: &str| work.asked.progress.get(key).and_then(Value::as_str).and_then(|lsn| lsn.parse().ok());
    match (known(wal::PART), known(&end_of(wal::PART))) {
        (Some(from), Some(end)) => {
            let bounds = Bounds { from: super::Point::Lsn(from), to: bounds.to };
            Ok(wal::Start::find(work.client, &work.config.slot, &bounds).await?.ending_at(end))
        }
        _ => wal::Start::find(work.client, &work.config.slot, bounds).await,
    }
}

/// Which tables' rows: those that were named; only who asks for this way gets all that are linked.
async fn tables(work: &Work<'_>) -> Result<Vec<Job>> {
    let asked = work.asked;
    let attempted = "replay the rows that tables have now";
    if asked.to.is_some() || asked.prefix.is_some() || asked.create_stream.is_some() || !asked.streams.is_empty() {
        return Err(Error::config(format!(
            "{attempted}: there is no --to, no --stream and no --subject-prefix or --create-stream for them"
        ))
        .hint("they come on their webhooks' own subjects, in their place among live events"));
    }
    if asked.via.is_none() && asked.tables.is_empty() {
        return Err(Error::config(format!("{attempted}: no --table is named"))
            .hint("name one, or say --via table for all that are linked"));
    }
    let for_whom: Vec<Option<String>> = match asked.webhooks.is_empty() {
        true => vec![None],
        false => asked.webhooks.iter().cloned().map(Some).collect(),
    };
    let mut jobs = Vec::new();
    for webhook in for_whom {
        let tables = match asked.tables.is_empty() {
            false => asked.tables.clone(),
            true => {
                let rows = work.client.query(LINKED, &[&webhook]).await.map_err(|error| failed(attempted, error))?;
                rows.iter().map(|row| row.get(0)).collect()
            }
        };
        jobs.extend(tables.into_iter().map(|table| Job { table, webhook: webhook.clone() }));
    }
    if jobs.is_empty() {
        return Err(Error::config(format!("{attempted}: no table is linked"))
            .hint("SELECT * FROM rule_webhook_links lists those that are"));
    }
    Ok(jobs)
}
