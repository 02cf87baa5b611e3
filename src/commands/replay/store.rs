//! The book of replays, `rule_cdc_replays`: what was asked for, whose turn it is, and what became of it.
//!
//! In: replays that begin, go on and end; rows that SQL has written with `rule_cdc_replay`. Out: the same in the table. Always:
//! the session with the mark of the source's replay is the only one that replays; so a row that says `running` without it was
//! killed, and is
//! made `requested` again where SQL has asked, for the sidecar goes on with it, and `interrupted` elsewhere.

use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::{Asked, Bounds, Feed, RulesOf, Via, Work, failed};
use crate::{
    commands::marks::{self, Mark},
    config::Config,
    error::{Error, Kind, Result},
};

/// Held only while a session looks for others and sets its mark; nobody else locks the table so, and it stops no writer.
const LOCK: &str = "BEGIN; LOCK TABLE public.rule_cdc_replays IN SHARE UPDATE EXCLUSIVE MODE";
const RUNNING: &str = "SELECT replay_id, started_at::text FROM public.rule_cdc_replays \
    WHERE source = $1 AND status = 'running' ORDER BY replay_id DESC LIMIT 1";
/// The session that has the mark knows that nobody else runs.
const INTERRUPT: &str = "UPDATE public.rule_cdc_replays \
    SET status = CASE WHEN is_requested THEN 'requested' ELSE 'interrupted' END, updated_at = now() \
    WHERE source = $1 AND status = 'running' RETURNING replay_id, is_requested";
const BEGIN: &str = "INSERT INTO public.rule_cdc_replays \
    (source, via, from_point, to_point, webhooks, tables, subject_prefix, create_stream, rate, streams, rules) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING replay_id";
const PLACE: &str = "UPDATE public.rule_cdc_replays \
    SET via = $2, subject_prefix = $3, target_stream = $4, progress = $5::text::jsonb, updated_at = now() WHERE replay_id = $1";
const COUNT: &str = "UPDATE public.rule_cdc_replays SET events_sent = $2, updated_at = now() WHERE replay_id = $1";
const BEFORE: &str = "SELECT from_point, to_point, coalesce(webhooks, '{}'), coalesce(tables, '{}'), coalesce(streams, '{}'), \
    via, subject_prefix, create_stream, rate, status, progress::text, events_sent, rules \
    FROM public.rule_cdc_replays WHERE replay_id = $1 AND source = $2";
const AGAIN: &str = "UPDATE public.rule_cdc_replays SET status = 'running', error = NULL, finished_at = NULL, updated_at = now() \
    WHERE replay_id = $1 AND status NOT IN ('done', 'cancelled')";
/// What was cancelled meanwhile stays so.
const END: &str = "UPDATE public.rule_cdc_replays SET status = $2, error = $3, updated_at = now(), \
    finished_at = CASE WHEN $2 IN ('interrupted', 'requested') THEN NULL ELSE now() END \
    WHERE replay_id = $1 AND status = 'running'";

impl Asked {
    /// What a row asks for, and how far an earlier run got; a rate that is set stays.
    pub async fn before(self, client: &Client, config: &Config, id: i64) -> Result<Asked> {
        let attempted = format!("go on with replay {id}");
        let row = client.query_opt(BEFORE, &[&id, &config.source]).await.map_err(|error| failed(&attempted, error))?;
        let Some(row) = row else {
            return Err(Error::config(format!("{attempted}: source {:?} has none of that number", config.source))
                .hint("SELECT * FROM rule_cdc_replays lists them"));
        };
        if let status @ ("done" | "cancelled") = row.get(9) {
            return Err(Error::config(format!("{attempted}: it is {status}")));
        }
        let via = row.get::<_, Option<&str>>(5).map(|via| clap::ValueEnum::from_str(via, false));
        let progress = serde_json::from_str(row.get(10));
        Ok(Asked {
            from: row.get(0),
            to: row.get(1),
            webhooks: row.get(2),
            tables: row.get(3),
            streams: row.get(4),
            via: via.transpose().map_err(|error| Error::config(format!("{attempted}: {error}")))?,
            prefix: row.get(6),
            create_stream: row.get(7),
            rate: self.rate.or(row.get::<_, Option<i32>>(8).and_then(|rate| u32::try_from(rate).ok())),
            progress: progress.map_err(|error| Error::protocol(attempted).caused_by(error))?,
            sent: u64::try_from(row.get::<_, i64>(11)).unwrap_or(0),
            rules: if row.get::<_, &str>(12) == "now" { RulesOf::Now } else { RulesOf::Commit },
        })
    }
}

/// One replay of a feed at a time: whether it is our turn. The turn ends with the connection.
pub async fn take_turn(client: &Client, config: &Config) -> Result<bool> {
    let attempted = "take turns with other replays";
    client.batch_execute(LOCK).await.map_err(|error| failed(attempted, error))?;
    let is_free = marks::others(client, Mark::Replay(&config.source)).await?.is_empty();
    if is_free {
        marks::set(client, Mark::Replay(&config.source)).await?;
    }
    client.batch_execute("COMMIT").await.map_err(|error| failed(attempted, error))?;
    if !is_free {
        return Ok(false);
    }
    let rows = client.query(INTERRUPT, &[&config.source]).await.map_err(|error| failed(attempted, error))?;
    for row in rows {
        let id: i64 = row.get(0);
        match row.get(1) {
            true => tracing::info!("replay {id} was killed; the running walhook continues it"),
            false => tracing::warn!("replay {id} was killed; to continue it: walhook replay --resume {id}"),
        }
    }
    Ok(true)
}

/// It is another one's turn, as an error that says whose.
pub async fn busy(client: &Client, config: &Config) -> Result<Error> {
    let row = client.query_opt(RUNNING, &[&config.source]).await;
    let which = match row.map_err(|error| failed("take turns with other replays", error))? {
        Some(row) => format!("replay {} since {}", row.get::<_, i64>(0), row.get::<_, &str>(1)),
        None => "another one".to_owned(),
    };
    Ok(Error::config(format!("replay source {:?}: {which} runs already", config.source))
        .hint("wait for it, or stop it by SIGTERM; SELECT * FROM rule_cdc_replays tells how far it is"))
}

/// Notes that a replay begins; returns its number.
pub async fn begin(client: &Client, config: &Config, bounds: &Bounds, asked: &Asked) -> Result<i64> {
    // An age would be another time when the replay is resumed.
    let (from, to) = (bounds.from.to_string(), bounds.to.map(|to| to.to_string()));
    let rate = asked.rate.and_then(|rate| i32::try_from(rate).ok());
    let via = asked.via.map(|via| via.to_string());
    let some = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
    let (webhooks, tables, streams) = (some(&asked.webhooks), some(&asked.tables), some(&asked.streams));
    let row = client
        .query_one(
            BEGIN,
            &[
                &config.source,
                &via,
                &from,
                &to,
                &webhooks,
                &tables,
                &asked.prefix,
                &asked.create_stream,
                &rate,
                &streams,
                &if asked.rules == RulesOf::Now { "now" } else { "commit" },
            ],
        )
        .await
        .map_err(|error| failed("note that a replay begins", error))?;
    Ok(row.get(0))
}

/// Notes that it goes on.
pub async fn again(client: &Client, id: i64) -> Result<()> {
    client.execute(AGAIN, &[&id]).await.map(drop).map_err(|error| failed("note that the replay goes on", error))
}

/// Notes which way it takes, where to, and from where to where.
pub async fn place(
    client: &Client,
    id: i64,
    via: Via,
    prefix: Option<&str>,
    stream: Option<&str>,
    progress: &Map<String, Value>,
) -> Result<()> {
    let progress = Value::Object(progress.clone()).to_string();
    let placed = client.execute(PLACE, &[&id, &via.to_string(), &prefix, &stream, &progress]).await;
    placed.map(drop).map_err(|error| failed("note where the replay goes", error))
}

/// Notes how much was sent.
pub async fn count(client: &Client, id: i64, sent: u64) -> Result<()> {
    let sent = i64::try_from(sent).unwrap_or(i64::MAX);
    client.execute(COUNT, &[&id, &sent]).await.map(drop).map_err(|error| failed("note how far the replay is", error))
}

/// Notes what became of it.
pub async fn end(client: &Client, id: i64, outcome: &Result<bool>) -> Result<()> {
    let (status, error) = match outcome {
        Ok(true) => ("done", None),
        Ok(false) => ("interrupted", None),
        Err(error) => ("failed", Some(error.to_string())),
    };
    finish(client, id, status, error.as_deref()).await
}

async fn finish(client: &Client, id: i64, status: &str, error: Option<&str>) -> Result<()> {
    let ended = client.execute(END, &[&id, &status, &error]).await;
    ended.map(drop).map_err(|error| failed("note how the replay ended", error))
}

/// Carries out the replay that SQL has asked for by this row, or goes on with it. Returns whether it was our turn.
///
/// # Errors
/// A server is away: the row waits until it is tried again. All else is noted in the row.
pub async fn requested(config: &Config, id: i64) -> Result<bool> {
    let (feed, client) = Feed::read(config).await?;
    if !take_turn(&client, config).await? {
        return Ok(false);
    }
    again(&client, id).await?;
    let outcome = async {
        let asked = Asked::default().before(&client, config, id).await?;
        let work = Work { config, feed: &feed, client: &client, asked: &asked, tell: crate::commands::log };
        let plan = work.plan().await?;
        let (_never, shutdown) = watch::channel(false);
        work.carry_out(id, plan, shutdown).await
    };
    match outcome.await {
        Err(error) if error.kind() == Kind::Unavailable => {
            finish(&client, id, "requested", Some(&error.to_string())).await?;
            Err(error.context(format!("replay {id}, as SQL has asked")))
        }
        outcome => {
            end(&client, id, &outcome).await?;
            if let Err(error) = outcome {
                tracing::warn!("replay {id}, as SQL has asked: {error}");
            }
            Ok(true)
        }
    }
}
