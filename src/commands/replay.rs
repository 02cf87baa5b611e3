//! `walhook replay`: publish again what the streams hold since an LSN or a time.
//!
//! In: two points, and which webhooks and tables. Out: the same messages below another subject, in the order of each stream, with
//! ids that carry the replay's, so that no duplicate window swallows them and nobody takes them for first ones; and a row in
//! `rule_cdc_replays` that tells how far it is. Always: one replay of a feed at a time; a killed one goes on where it was
//! ([`Arguments::resume`]). Never into a stream that walhook itself writes in strict order: it would lose its place there.

mod point;
mod publish;
mod streams;

use std::io::IsTerminal;

use clap::Args;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_postgres::Client;

use crate::{
    config::Config,
    error::{Error, Kind, Result},
    nats::streams::StreamState,
    postgres::sql,
};
pub use point::{Bounds, Point};
use publish::{Copy, Filter, Target};
pub use streams::{Feed, Source};

/// What to replay, and where to.
#[derive(Debug, Args)]
pub struct Arguments {
    /// From here on: an LSN (0/16B3748), a commit time (2026-11-25 10:00+00) or an age (90s, 15m, 2h, 7d)
    #[arg(long, value_name = "LSN|TIME", required_unless_present = "resume")]
    from: Option<String>,
    /// Up to here, this included; without it: all there is at the start
    #[arg(long, value_name = "LSN|TIME")]
    to: Option<String>,
    /// Only this webhook's events; may be repeated
    #[arg(long, value_name = "NAME")]
    webhook: Vec<String>,
    /// Only this table's events; may be repeated
    #[arg(long, value_name = "TABLE")]
    table: Vec<String>,
    /// Only from this stream; may be repeated
    #[arg(long, value_name = "NAME")]
    stream: Vec<String>,
    /// From where they come
    #[arg(long, default_value = "stream", value_parser = ["stream"])]
    via: String,
    /// What comes before the subjects; by default replay.<its number>
    #[arg(long, value_name = "SUBJECT")]
    subject_prefix: Option<String>,
    /// Make a stream of this name for the prefix, if none takes it: file storage, 7 days
    #[arg(long, value_name = "NAME")]
    create_stream: Option<String>,
    /// Tell what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// At most so many events a second
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Go on with a replay that was interrupted or has failed
    #[arg(long, value_name = "ID", conflicts_with_all = ["from", "to", "webhook", "table", "stream", "subject_prefix", "dry_run"])]
    resume: Option<i64>,
}

const LOCK: &str = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('walhook: replay ' || $1, 0))";
const RUNNING: &str = "SELECT replay_id, started_at::text FROM public.rule_cdc_replays \
    WHERE source = $1 AND status = 'running' ORDER BY replay_id DESC LIMIT 1";
/// Whoever has the lock knows that nobody else runs.
const INTERRUPT: &str = "UPDATE public.rule_cdc_replays SET status = 'interrupted', updated_at = now() \
    WHERE source = $1 AND status = 'running' RETURNING replay_id";
const BEGIN: &str = "INSERT INTO public.rule_cdc_replays \
    (source, via, from_point, to_point, webhooks, tables, subject_prefix, rate, streams) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING replay_id";
const PLACE: &str = "UPDATE public.rule_cdc_replays SET subject_prefix = $2, target_stream = $3, progress = $4::text::jsonb \
    WHERE replay_id = $1";
const RESUME: &str = "SELECT from_point, to_point, coalesce(webhooks, '{}'), coalesce(tables, '{}'), subject_prefix, rate, status, \
    progress::text, events_sent, coalesce(streams, '{}') FROM public.rule_cdc_replays WHERE replay_id = $1 AND source = $2";
const AGAIN: &str = "UPDATE public.rule_cdc_replays SET status = 'running', error = NULL, finished_at = NULL, updated_at = now() \
    WHERE replay_id = $1";
const END: &str = "UPDATE public.rule_cdc_replays SET status = $2, error = $3, updated_at = now(), \
    finished_at = CASE WHEN $2 = 'interrupted' THEN NULL ELSE now() END WHERE replay_id = $1";

/// What was asked for, be it now or before.
struct Asked {
    from: String,
    to: Option<String>,
    webhooks: Vec<String>,
    tables: Vec<String>,
    streams: Vec<String>,
    prefix: Option<String>,
    rate: Option<u32>,
    /// How far each stream was read by an earlier run.
    progress: Map<String, Value>,
    sent: u64,
}

/// A stream with what of it is to be sent.
struct Part {
    source: Source,
    /// Where it begins; `None`: nothing of it is.
    first: Option<u64>,
    /// What comes behind it came after the replay began.
    last_sequence: u64,
}

/// Replays until done, or until `shutdown` turns true.
///
/// # Errors
/// What was asked for is not there; another replay runs; a server cannot be asked or refuses.
pub async fn replay(config: &Config, arguments: &Arguments, shutdown: watch::Receiver<bool>) -> Result<()> {
    let (feed, client) = Feed::read(config).await?;
    let asked = match arguments.resume {
        None => Asked::of(arguments)?,
        Some(id) => Asked::before(&client, config, id, arguments.rate).await?,
    };
    let from = Point::parse(&client, "--from", &asked.from).await?;
    let to = match &asked.to {
        Some(to) => Some(Point::parse(&client, "--to", to).await?),
        None => None,
    };
    let bounds = Bounds { from, to };
    bounds.check()?;
    let filter = Filter::new(&feed.tables, &asked.webhooks, &asked.tables)?;
    let parts = look(config, &feed, &bounds, &asked).await?;
    if arguments.dry_run {
        return dry_run(config, &bounds, &filter, &parts).await;
    }
    take_turn(&client, config).await?;
    let id = match arguments.resume {
        Some(id) => {
            client.execute(AGAIN, &[&id]).await.map_err(|error| failed("note that the replay goes on", error))?;
            id
        }
        None => begin(&client, config, &arguments.via, &bounds, &asked).await?,
    };
    let outcome =
        run(config, &client, arguments, (id, &asked), (&bounds, &filter), (parts, &feed.strict_streams()), shutdown)
            .await;
    let (status, text) = match &outcome {
        Ok(true) => ("done", None),
        Ok(false) => ("interrupted", None),
        Err(error) => ("failed", Some(error.to_string())),
    };
    client.execute(END, &[&id, &status, &text]).await.map_err(|error| failed("note how the replay ended", error))?;
    match outcome {
        Ok(true) => Ok(()),
        Ok(false) => super::say(&format!("replay {id} is interrupted; go on: walhook replay --resume {id}\n")),
        Err(error) => Err(error.context(format!("replay {id}"))),
    }
}

impl Asked {
    fn of(arguments: &Arguments) -> Result<Asked> {
        let Some(from) = arguments.from.clone() else {
            return Err(Error::config("replay without --from"));
        };
        if let Some(prefix) = &arguments.subject_prefix
            && let Some(why) = crate::route::subject::invalid(prefix.as_bytes())
        {
            return Err(Error::config(format!("--subject-prefix {prefix:?}: {why}")));
        }
        Ok(Asked {
            from,
            to: arguments.to.clone(),
            webhooks: arguments.webhook.clone(),
            tables: arguments.table.clone(),
            streams: arguments.stream.clone(),
            prefix: arguments.subject_prefix.clone(),
            rate: arguments.rate,
            progress: Map::new(),
            sent: 0,
        })
    }

    /// What an earlier run was asked for, and how far it got.
    async fn before(client: &Client, config: &Config, id: i64, rate: Option<u32>) -> Result<Asked> {
        let attempted = format!("go on with replay {id}");
        let row = client.query_opt(RESUME, &[&id, &config.source]).await.map_err(|error| failed(&attempted, error))?;
        let Some(row) = row else {
            return Err(Error::config(format!("{attempted}: source {:?} has none of that number", config.source))
                .hint("SELECT * FROM rule_cdc_replays lists them"));
        };
        if row.get::<_, &str>(6) == "done" {
            return Err(Error::config(format!("{attempted}: it is done")));
        }
        let progress = serde_json::from_str(row.get(7));
        Ok(Asked {
            from: row.get(0),
            to: row.get(1),
            webhooks: row.get(2),
            tables: row.get(3),
            streams: row.get(9),
            prefix: row.get(4),
            rate: rate.or(row.get::<_, Option<i32>>(5).and_then(|rate| u32::try_from(rate).ok())),
            progress: progress.map_err(|error| Error::protocol(attempted).caused_by(error))?,
            sent: u64::try_from(row.get::<_, i64>(8)).unwrap_or(0),
        })
    }
}

/// Finds the beginning in every stream; of a replay that is resumed it is known, and so is the end.
async fn look(config: &Config, feed: &Feed, bounds: &Bounds, asked: &Asked) -> Result<Vec<Part>> {
    let wants = |name: &str| asked.streams.is_empty() || asked.streams.iter().any(|stream| stream == name);
    let mut parts = Vec::new();
    for source in feed.sources(config, |_, name| wants(name)).await? {
        let state = match source.state().await {
            Ok(state) => state,
            // Not made yet, so nothing was published into it.
            Err(error) if error.kind() == Kind::Config => continue,
            Err(error) => return Err(error),
        };
        if !asked.progress.is_empty() {
            let known = |key: &str| asked.progress.get(key).and_then(Value::as_u64);
            let (first, last) = (known(&source.name), known(&end_of(&source)));
            parts.push(Part { source, first, last_sequence: last.unwrap_or(0) });
            continue;
        }
        let begin = source.begin(&config.source, bounds, &state).await?;
        let begin = begin.filter(|begin| !bounds.end_before(&begin.position));
        parts.push(Part { source, first: begin.map(|begin| begin.sequence), last_sequence: state.last_sequence });
    }
    if parts.is_empty() {
        return Err(Error::config("replay from the streams: no such stream of this feed is there")
            .hint("has `walhook run` published anything yet?"));
    }
    Ok(parts)
}

/// Under which key of the progress a stream's end stands.
fn end_of(source: &Source) -> String {
    format!("{} end", source.name)
}

/// One replay of a feed at a time. The lock goes with the connection.
async fn take_turn(client: &Client, config: &Config) -> Result<()> {
    let attempted = "take turns with other replays";
    let row = client.query_one(LOCK, &[&config.source]).await.map_err(|error| failed(attempted, error))?;
    if !row.get::<_, bool>(0) {
        let row = client.query_opt(RUNNING, &[&config.source]).await.map_err(|error| failed(attempted, error))?;
        let which = match row {
            Some(row) => format!("replay {} since {}", row.get::<_, i64>(0), row.get::<_, &str>(1)),
            None => "another one".to_owned(),
        };
        return Err(Error::config(format!("replay source {:?}: {which} runs already", config.source))
            .hint("wait for it, or stop it by SIGTERM; SELECT * FROM rule_cdc_replays tells how far it is"));
    }
    let rows = client.query(INTERRUPT, &[&config.source]).await.map_err(|error| failed(attempted, error))?;
    for row in rows {
        let id: i64 = row.get(0);
        tracing::warn!("replay {id} was killed; `walhook replay --resume {id}` goes on with it");
    }
    Ok(())
}

async fn begin(client: &Client, config: &Config, via: &str, bounds: &Bounds, asked: &Asked) -> Result<i64> {
    // An age would be another time when the replay is resumed.
    let (from, to) = (bounds.from.to_string(), bounds.to.map(|to| to.to_string()));
    let rate = asked.rate.and_then(|rate| i32::try_from(rate).ok());
    let some = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
    let (webhooks, tables, streams) = (some(&asked.webhooks), some(&asked.tables), some(&asked.streams));
    let row = client
        .query_one(BEGIN, &[&config.source, &via, &from, &to, &webhooks, &tables, &asked.prefix, &rate, &streams])
        .await
        .map_err(|error| failed("note that a replay begins", error))?;
    Ok(row.get(0))
}

/// Tells what would be sent.
async fn dry_run(config: &Config, bounds: &Bounds, filter: &Filter, parts: &[Part]) -> Result<()> {
    let mut text = String::new();
    for Part { source, first, last_sequence } in parts {
        let Some(first) = first else {
            text.push_str(&format!("stream {}: nothing\n", source.name));
            continue;
        };
        let found = publish::count(source, &config.source, *first, *last_sequence, bounds, filter).await?;
        text.push_str(&format!("stream {}: {found}\n", source.name));
    }
    super::say(&text)
}

/// Whether it was done, or else told to stop.
async fn run(
    config: &Config,
    client: &Client,
    arguments: &Arguments,
    (id, asked): (i64, &Asked),
    (bounds, filter): (&Bounds, &Filter),
    (parts, strict): (Vec<Part>, &[String]),
    shutdown: watch::Receiver<bool>,
) -> Result<bool> {
    let prefix = asked.prefix.clone().unwrap_or_else(|| format!("replay.{id}"));
    let parts: Vec<_> =
        parts.into_iter().filter_map(|part| Some((part.first?, part.last_sequence, part.source))).collect();
    let mut progress = Map::new();
    for (sequence, last, source) in &parts {
        progress.insert(source.name.clone(), (*sequence).into());
        progress.insert(end_of(source), (*last).into());
    }
    let mut targets = Vec::new();
    for (_, _, source) in &parts {
        targets.push(target(source, &prefix, strict, arguments.create_stream.as_deref()).await?);
    }
    let names = targets.first().map(|target| target.name.clone());
    client
        .execute(PLACE, &[&id, &prefix, &names, &Value::Object(progress.clone()).to_string()])
        .await
        .map_err(|error| failed("note where the replay goes", error))?;
    super::say(&format!("replay {id} from {} to subjects {prefix}.>\n", bounds.from))?;
    let mut copy = Copy {
        config,
        client,
        id,
        prefix: &prefix,
        bounds,
        filter,
        rate: asked.rate,
        sent: asked.sent,
        sent_now: 0,
        unknown: 0,
        progress,
        shutdown,
        is_terminal: std::io::stderr().is_terminal(),
    };
    for ((first, last, source), target) in parts.iter().zip(&targets) {
        if !copy.stream(source, target, *first, *last).await? {
            return Ok(false);
        }
    }
    let (sent, unknown) = (copy.sent, copy.unknown);
    if unknown > 0 {
        tracing::warn!(
            "{unknown} messages do not tell their table (payload_format data, or a subscriber's own) and were left out: choose \
             by --webhook instead of --table to have them"
        );
    }
    super::say(&format!("replay {id} is done: {sent} events\n"))?;
    Ok(true)
}

/// The stream that takes the prefix's subjects.
async fn target(source: &Source, prefix: &str, strict: &[String], create: Option<&str>) -> Result<Target> {
    let subjects = format!("{prefix}.>");
    let found = match (publish::taker(&source.control, &subjects).await?, create) {
        (Some(name), _) => name,
        (None, Some(name)) => {
            let root = prefix.split('.').next().unwrap_or(prefix);
            publish::create(&source.control, name, &format!("{root}.>")).await?;
            name.to_owned()
        }
        (None, None) => {
            return Err(Error::config(format!("replay to {subjects}: no stream takes these subjects")).hint(
                "--create-stream REPLAY makes one, or: nats stream add REPLAY --subjects 'replay.>' --defaults; or choose others by \
                 --subject-prefix",
            ));
        }
    };
    if strict.contains(&found) {
        return Err(Error::config(format!(
            "replay to {subjects}: stream {found:?} takes them, which walhook itself writes in strict order"
        ))
        .hint("choose subjects of another stream by --subject-prefix; it would lose its place there, and live events with it"));
    }
    let StreamState { name, .. } = crate::nats::streams::state(&source.control, &found).await?;
    Ok(Target { name })
}

fn failed(attempted: &str, error: tokio_postgres::Error) -> Error {
    let error = sql::error(attempted, error);
    match crate::postgres::sqlstate(&error) {
        Some("42P01" | "42883" | "42703") => {
            Error::config(error.to_string()).hint("run `walhook setup`, which applies the migrations")
        }
        _ => error,
    }
}
