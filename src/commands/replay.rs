//! `walhook replay`: publish again what happened since an LSN or a time.
//!
//! In: two points, and which webhooks and tables. Out: from the streams or from the WAL ([`way`]), the same messages below another
//! subject, in their order, with ids that carry the replay's, so that no duplicate window swallows them and nobody takes them
//! for first ones; or the rows that the tables have now, by a backfill; and a row in `rule_cdc_replays` that tells how far it
//! is. Always: one replay of a feed at a time; a killed one goes on where it was. Never into a stream that walhook itself
//! writes in strict order: it would lose its place there.

mod filter;
mod point;
mod publish;
mod read;
mod store;
mod streams;
mod wal;
mod way;

use clap::Args;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::{Tell, seal_keys};
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    nats::{control::Control, owner::Use, schemas, streams::StreamState},
    postgres::sql,
    route::streams::{most_replicas, streams_of_all},
};
pub(super) use filter::{Filter, Verdict, table_of};
pub use point::{Bounds, Point};
pub use publish::REPLAY_STREAM;
use publish::{Copy, Destination, Order, Places};
pub use store::requested;
pub use streams::{Feed, Source, control, control_that_returns};
use way::{Via, Way};

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
    /// From where they come: the streams, the WAL that the anchor slot keeps, or the tables as they are now; by default the first
    /// of them that still has it
    #[arg(long, value_enum)]
    via: Option<Via>,
    /// By which rules changes from the WAL become events: those in force at each commit, or those of now
    #[arg(long, value_enum, default_value_t = RulesOf::Commit)]
    rules: RulesOf,
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
    #[arg(long, value_name = "ID", conflicts_with_all = ["from", "to", "webhook", "table", "stream", "via", "rules", "subject_prefix", "dry_run"])]
    resume: Option<i64>,
}

/// By which rules a replay from the WAL makes events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum RulesOf {
    /// Those in force at each commit: the events are as they were
    #[default]
    Commit,
    /// Those of now: the events are as they would be if they happened now
    Now,
}

/// Replays until done, or until `shutdown` turns true.
///
/// # Errors
/// What was asked for is not there; another replay runs; a server cannot be asked or refuses.
pub async fn replay(config: &Config, arguments: &Arguments, shutdown: watch::Receiver<bool>) -> Result<()> {
    let (feed, client) = Feed::read(config).await?;
    let asked = match arguments.resume {
        None => Asked::of(arguments)?,
        Some(id) => Asked { rate: arguments.rate, ..Asked::default() }.before(&client, config, id).await?,
    };
    let asked = Asked { create_stream: arguments.create_stream.clone().or(asked.create_stream), ..asked };
    let work = Work { config, feed: &feed, client: &client, asked: &asked, tell: super::say };
    let plan = work.plan().await?;
    if arguments.dry_run {
        return plan.tell(&work).await;
    }
    if !store::take_turn(&client, config).await? {
        return Err(store::busy(&client, config).await?);
    }
    let id = match arguments.resume {
        Some(id) => store::again(&client, id).await.map(|()| id)?,
        None => store::begin(&client, config, &plan.bounds, &asked).await?,
    };
    let outcome = work.carry_out(id, plan, shutdown).await;
    store::end(&client, id, &outcome).await?;
    match outcome {
        Ok(true) => Ok(()),
        Ok(false) => super::say(&format!("replay {id} is interrupted; go on: walhook replay --resume {id}\n")),
        Err(error) if error.kind() == Kind::Unavailable => {
            Err(error.context(format!("replay {id}")).hint(format!("go on: walhook replay --resume {id}")))
        }
        Err(error) => Err(error.context(format!("replay {id}"))),
    }
}

/// What was asked for, be it now or before.
#[derive(Default)]
struct Asked {
    from: String,
    to: Option<String>,
    webhooks: Vec<String>,
    tables: Vec<String>,
    streams: Vec<String>,
    via: Option<Via>,
    prefix: Option<String>,
    create_stream: Option<String>,
    rate: Option<u32>,
    rules: RulesOf,
    /// How far each part was sent by an earlier run.
    progress: Map<String, Value>,
    sent: u64,
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
            via: arguments.via,
            prefix: arguments.subject_prefix.clone(),
            rate: arguments.rate,
            rules: arguments.rules,
            ..Asked::default()
        })
    }
}

/// A replay and what it needs.
struct Work<'w> {
    config: &'w Config,
    feed: &'w Feed,
    client: &'w Client,
    asked: &'w Asked,
    /// To whom it says how it goes.
    tell: Tell,
}

/// What is to be done.
struct Plan {
    bounds: Bounds,
    filter: Filter,
    way: Way,
}

impl Work<'_> {
    /// Looks for what was asked for.
    async fn plan(&self) -> Result<Plan> {
        let asked = self.asked;
        let from = Point::parse(self.client, "--from", &asked.from).await?;
        let to = match &asked.to {
            Some(to) => Some(Point::parse(self.client, "--to", to).await?),
            None => None,
        };
        let bounds = Bounds { from, to };
        bounds.check()?;
        let filter = Filter::new(&self.feed.tables, &asked.webhooks, &asked.tables, seal_keys::keys(self.config))?;
        let way = way::choose(self, &bounds).await?;
        Ok(Plan { bounds, filter, way })
    }

    /// Does it. Returns whether it was all, or else it was told to stop.
    async fn carry_out(&self, id: i64, plan: Plan, shutdown: watch::Receiver<bool>) -> Result<bool> {
        let Plan { bounds, filter, way } = &plan;
        let prefix = self.asked.prefix.clone().unwrap_or_else(|| format!("replay.{id}"));
        let via = way.via();
        let progress = way.progress();
        if let Way::Table(jobs) = way {
            store::place(self.client, id, via, None, None, &progress).await?;
            (self.tell)(&format!("replay {id} by the rows that the tables have now, as events of op snapshot\n"))?;
            return self.backfill(id, jobs, shutdown).await;
        }
        store::place(self.client, id, via, Some(&prefix), None, &progress).await?;
        let places = if via == Via::Wal { Places::Wal } else { Places::Messages };
        let order = Order { client: self.client, id, prefix: &prefix, bounds, filter, rate: self.asked.rate, places };
        let mut copy = Copy::new(order, self.asked.sent, progress.clone(), shutdown);
        let begun = async |target: Option<&Destination>| {
            let name = target.map(|target| target.name.as_str());
            store::place(self.client, id, via, Some(&prefix), name, &progress).await?;
            (self.tell)(&format!("replay {id} from {} by the {via} to subjects {prefix}.>\n", bounds.from))
        };
        let is_whole = match way {
            Way::Stream(parts) => {
                let mut targets = Vec::new();
                for part in parts {
                    targets.push(self.target(&part.source.control, &prefix).await?);
                }
                begun(targets.first()).await?;
                let mut is_whole = true;
                for (part, target) in parts.iter().zip(&targets) {
                    let range = (part.first, part.last);
                    is_whole = read::copy(&mut copy, &self.config.source, &part.source, target, range).await?;
                    if !is_whole {
                        break;
                    }
                }
                is_whole
            }
            Way::Wal(start) => {
                let mut targets = Vec::new();
                for row in self.feed.publishing() {
                    let control = streams::control(self.config, &row).await?;
                    let Feed { identity, .. } = self.feed;
                    super::presence::check_runs(self.client, &control, &self.config.source, identity).await?;
                    let (streams, _) = streams_of_all(&self.feed.tables).remove(&row.config_id).unwrap_or_default();
                    let (owner, replicas) = (self.feed.owner(), most_replicas(&streams));
                    let writer = schemas::Writer { owner, replicas, config_id: row.config_id };
                    let target = self.target(&control, &prefix).await?;
                    targets.push((row.config_id, target.with_schemas(control, writer)));
                }
                begun(targets.first().map(|(_, target)| target)).await?;
                wal::copy(&mut copy, self.config, start, id, self.asked.rules, targets).await?
            }
            Way::Table(_) => unreachable!("done above"),
        };
        let Copy { sent, unknown, impossible, without_server, .. } = copy;
        if without_server > 0 {
            tracing::warn!(
                "{without_server} events were left out: by the rules of their commit they go to a NATS configuration that is not \
                 there any more; --rules now (in SQL p_rules => 'now') replays them by the rules as they are now"
            );
        }
        if unknown > 0 {
            tracing::warn!(
                "{unknown} messages do not tell their table (calls in payload_format data, or a subscriber's own) and were left out: \
                 choose by --webhook instead of --table to have them"
            );
        }
        if impossible > 0 {
            tracing::warn!(
                "{impossible} events were left out: they can never be published, and became dead letters the first time"
            );
        }
        if is_whole {
            (self.tell)(&format!("replay {id} is done: {sent} events\n"))?;
        }
        Ok(is_whole)
    }

    /// The rows of each table, for each webhook.
    async fn backfill(&self, id: i64, jobs: &[way::Job], shutdown: watch::Receiver<bool>) -> Result<bool> {
        let mut sent = self.asked.sent;
        for job in jobs {
            let arguments = super::backfill::Arguments::of_table(&job.table, job.webhook.as_deref(), self.asked.rate);
            let done = super::backfill::send(self.config, &arguments, shutdown.clone(), self.tell).await?;
            sent += done.rows;
            store::count(self.client, id, sent).await?;
            if !done.is_whole {
                return Ok(false);
            }
        }
        (self.tell)(&format!("replay {id} is done: {sent} rows\n"))?;
        Ok(true)
    }

    /// The stream that takes the prefix's subjects on this server.
    async fn target(&self, control: &Control, prefix: &str) -> Result<Destination> {
        let subjects = format!("{prefix}.>");
        let found = match (publish::stream_for_subject(control, &subjects).await?, &self.asked.create_stream) {
            (Some(name), _) => name,
            (None, Some(name)) => {
                let root = prefix.split('.').next().unwrap_or(prefix);
                publish::create(control, name, &format!("{root}.>"), &self.feed.owner()).await?;
                name.clone()
            }
            (None, None) => {
                return Err(Error::config(format!("replay to {subjects}: no stream takes these subjects")).hint(
                    "--create-stream REPLAY makes one, or: nats stream add REPLAY --subjects 'replay.>' --defaults; or choose \
                     others by --subject-prefix",
                ));
            }
        };
        if self.feed.strict_streams().contains(&found) {
            return Err(Error::config(format!(
                "replay to {subjects}: stream {found:?} takes them, which walhook itself writes in strict order"
            ))
            .hint(
                "choose subjects of another stream by --subject-prefix; it would lose its place there, and live events with it",
            ));
        }
        let StreamState { name, metadata, .. } = crate::nats::streams::state(control, &found).await?;
        self.feed.owner().check(
            &format!("replay to {subjects}: stream {found:?}, which takes them,"),
            &metadata,
            Use::Alone,
            "choose other subjects by --subject-prefix, and a stream for them by --create-stream",
        )?;
        Ok(Destination::new(control, name))
    }
}

impl Plan {
    /// What would be done.
    async fn tell(&self, work: &Work<'_>) -> Result<()> {
        let mut text = String::new();
        match &self.way {
            Way::Stream(parts) => {
                for part in parts {
                    let found = read::count(&part.source, &work.config.source, (part.first, part.last), self).await?;
                    text.push_str(&format!("stream {}: {found}\n", part.source.name));
                }
            }
            Way::Wal(start) => {
                text = format!("WAL: decoded from {} to {}, what it holds is not counted\n", start.from, start.end);
            }
            Way::Table(jobs) => {
                for job in jobs {
                    let of = job.webhook.as_ref().map(|webhook| format!(", webhook {webhook}")).unwrap_or_default();
                    text.push_str(&format!("table {}{of}: the rows that it has now\n", job.table));
                }
            }
        }
        super::say(&text)
    }
}

fn failed(attempted: &str, error: tokio_postgres::Error) -> Error {
    let error = sql::error(attempted, error);
    match crate::postgres::sqlstate(&error) {
        Some("42P01" | "42883" | "42703") => {
            error.of_kind(Kind::Config).hint("run `walhook setup`, which applies the migrations")
        }
        _ => error,
    }
}
