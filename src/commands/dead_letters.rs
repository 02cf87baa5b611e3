//! `walhook dead-letters`: what could not be published, listed, shown, published again or dropped.
//!
//! All that changes something is a function in the database, which a DBA without this binary calls as well. Each letter is
//! a transaction of its own, so that one that is refused holds up no other.

use clap::{Args, Subcommand};
use serde_json::Value;
use tokio_postgres::{Client, Row};

use super::{plain, progress::Steps};
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    http::operator::{self, Wanted},
    log,
    postgres::{Settings, sql},
    text,
};

/// What to do with them.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List them, the newest last
    List {
        /// Which of them
        #[command(flatten)]
        filter: Filter,
        /// At most so many, the newest ones
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..))]
        limit: i64,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one with its headers and its payload
    Show {
        /// Its dead_letter_id
        id: i64,
        /// As JSON; a payload that is no text is base64
        #[arg(long, conflicts_with = "payload")]
        json: bool,
        /// The payload alone, byte for byte
        #[arg(long)]
        payload: bool,
    },
    /// Publish them again: body and headers as they were, under a message id of their own
    Retry {
        /// Which of them
        #[command(flatten)]
        which: Which,
        /// To this subject instead of theirs
        #[arg(long)]
        subject: Option<String>,
    },
    /// Mark them as not wanted any more
    Drop {
        /// Which of them
        #[command(flatten)]
        which: Which,
    },
}

/// Which to list.
#[derive(Debug, Args)]
pub struct Filter {
    /// Only this webhook's
    #[arg(long, value_name = "NAME")]
    webhook: Option<String>,
    /// Only those of this status
    #[arg(long, default_value = "dead", value_parser = ["dead", "retried", "dropped", "all"])]
    status: String,
    /// Only those written since: a time (2026-11-25 10:00+00) or an age (90s, 15m, 2h, 7d)
    #[arg(long, value_name = "TIME|AGE")]
    since: Option<String>,
}

/// Which to act on, of those that are dead.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Which {
    /// Their dead_letter_ids
    #[arg(value_name = "ID", conflicts_with_all = ["webhook", "since", "all"])]
    ids: Vec<i64>,
    /// All of this webhook
    #[arg(long, value_name = "NAME")]
    webhook: Option<String>,
    /// All written since: a time (2026-11-25 10:00+00) or an age (90s, 15m, 2h, 7d)
    #[arg(long, value_name = "TIME|AGE")]
    since: Option<String>,
    /// All
    #[arg(long, conflicts_with_all = ["webhook", "since"])]
    all: bool,
}

const LIST: &str = "SELECT {letter} FROM ( \
        SELECT dead_letter_id, created_at, status, webhook_id, webhook_name, subject, event_id, commit_lsn, \
               octet_length(payload) AS payload_bytes, origin, reason, retried_as \
        FROM public.rule_nats_dead_letters \
        WHERE ($1::text IS NULL OR webhook_name = $1) AND ($2 = 'all' OR status = $2) \
          AND ($3::text IS NULL OR created_at >= $3::text::timestamptz) \
          AND ($4::text IS NULL OR created_at >= now() - $4::text::interval) \
        ORDER BY dead_letter_id DESC LIMIT $5) l ORDER BY dead_letter_id";
const SHOW: &str = "SELECT {letter}, (SELECT payload FROM public.rule_nats_dead_letters \
                                                  WHERE dead_letter_id = $1) FROM ( \
        SELECT dead_letter_id, created_at, status, retried_as, retried_call, webhook_id, webhook_name, subject, event_id, commit_lsn, \
               origin, reason, headers FROM public.rule_nats_dead_letters WHERE dead_letter_id = $1) l";
const CHOOSE: &str = "SELECT dead_letter_id FROM public.rule_nats_dead_letters \
    WHERE status = 'dead' AND ($1::text IS NULL OR webhook_name = $1) \
      AND ($2::text IS NULL OR created_at >= $2::text::timestamptz) \
      AND ($3::text IS NULL OR created_at >= now() - $3::text::interval) ORDER BY dead_letter_id";
const RETRY: &str = "SELECT public.rule_nats_dead_letter_retry($1, $2)";
const CALL: &str = "SELECT retried_call FROM public.rule_nats_dead_letters WHERE dead_letter_id = $1";
const DROP: &str = "SELECT public.rule_nats_dead_letter_drop($1)";

/// Does it.
///
/// # Errors
/// PostgreSQL cannot be asked, or refuses; of several letters, after all were tried.
pub async fn dead_letters(config: &Config, action: &Action) -> Result<()> {
    let client = super::connect(config).await?;
    match action {
        Action::List { filter, limit, json } => list(&client, filter, *limit, *json).await,
        Action::Show { id, json, payload } => show(&client, *id, *json, *payload).await,
        Action::Retry { which, subject } => {
            super::identity::read(&client).await?;
            each(&client, which, async |id| retry(&client, id, subject.as_deref()).await).await
        }
        Action::Drop { which } => each(&client, which, async |id| drop_letter(&client, id).await).await,
    }
}

async fn retry(client: &Client, id: i64, subject: Option<&str>) -> std::result::Result<String, tokio_postgres::Error> {
    if let Some(event) = client.query_one(RETRY, &[&id, &subject]).await?.get::<_, Option<i64>>(0) {
        return Ok(format!(
            "dead letter {id} will be published again as event {event}; its outcome: SELECT rule_nats_event_status({event})"
        ));
    }
    let call: i32 = client.query_one(CALL, &[&id]).await?.get(0);
    Ok(format!(
        "dead letter {id} is in the queue again as call {call}; its outcome: SELECT rule_webhook_call_status({call})"
    ))
}

async fn drop_letter(client: &Client, id: i64) -> std::result::Result<String, tokio_postgres::Error> {
    let is_news: bool = client.query_one(DROP, &[&id]).await?.get(0);
    Ok(format!("dead letter {id} {}", if is_news { "is dropped" } else { "was dropped already" }))
}

/// What an operator wants from the status page, on a connection of its own.
///
/// # Errors
/// As [`dead_letters`].
pub async fn act(postgres: &Settings, Wanted { id, action }: Wanted) -> Result<String> {
    let client = sql::connect(postgres).await?;
    let done = match action {
        operator::Action::Retry => {
            super::identity::read(&client).await?;
            retry(&client, id, None).await
        }
        operator::Action::Drop => drop_letter(&client, id).await,
    };
    done.map_err(|error| failed(&format!("dead letter {id}"), error))
}

async fn list(client: &Client, filter: &Filter, limit: i64, as_json: bool) -> Result<()> {
    let (since, age) = Since::split(filter.since.as_deref());
    let attempted = "list the dead letters";
    let rows = client
        .query(&with_letter(LIST), &[&filter.webhook, &filter.status, &since, &age, &limit.saturating_add(1)])
        .await
        .map_err(|error| failed(attempted, error))?;
    let mut letters = rows.iter().map(|row| parse(attempted, row)).collect::<Result<Vec<_>>>()?;
    // One more was asked for than is shown; it is the oldest.
    let is_cut = i64::try_from(letters.len()).is_ok_and(|count| count > limit);
    if is_cut {
        letters.remove(0);
    }
    let cut = format!("there are more: only the newest {limit} are listed; --limit N lists up to N");
    if as_json {
        super::say_json(&letters)?;
        if is_cut {
            log::line(&cut);
        }
        return Ok(());
    }
    if letters.is_empty() {
        return super::say("no such dead letters\n");
    }
    let mut table = format!(
        "{:>8}  {:<20}  {:<8}  {:<20}  {:<8}  {:>9}  REASON\n",
        "ID", "CREATED", "STATUS", "WEBHOOK", "ORIGIN", "BYTES"
    );
    for letter in &letters {
        let created: String = plain(&letter["created_at"]).chars().take(19).collect();
        table.push_str(&format!(
            "{:>8}  {created:<20}  {:<8}  {:<20}  {:<8}  {:>9}  {}\n",
            plain(&letter["dead_letter_id"]),
            plain(&letter["status"]),
            plain(&letter["webhook_name"]),
            plain(&letter["origin"]),
            plain(&letter["payload_bytes"]),
            plain(&letter["reason"]),
        ));
    }
    if is_cut {
        table.push_str(&format!("{cut}\n"));
    }
    super::say(&table)
}

async fn show(client: &Client, id: i64, as_json: bool, only_payload: bool) -> Result<()> {
    let attempted = format!("show dead letter {id}");
    let row = client.query_opt(&with_letter(SHOW), &[&id]).await.map_err(|error| failed(&attempted, error))?;
    let Some(row) = row else {
        return Err(
            Error::config(format!("there is no dead letter {id}")).hint("walhook dead-letters list --status all")
        );
    };
    let payload: Option<&[u8]> = row.get(1);
    if only_payload {
        return super::say_bytes(payload.unwrap_or_default());
    }
    let mut letter = parse(&attempted, &row)?;
    let text = payload.map(std::str::from_utf8);
    if as_json {
        letter["payload"] = match (payload, text) {
            (Some(_), Some(Ok(text))) => text.into(),
            (Some(bytes), _) => base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes).into(),
            (None, _) => Value::Null,
        };
        letter["payload_is_base64"] = text.is_some_and(|text| text.is_err()).into();
        return super::say_json([&letter]);
    }
    let mut lines = String::new();
    for key in [
        "dead_letter_id",
        "created_at",
        "status",
        "retried_as",
        "retried_call",
        "webhook_id",
        "webhook_name",
        "subject",
        "event_id",
        "commit_lsn",
        "origin",
        "reason",
    ] {
        lines.push_str(&format!("{key:<16}{}\n", plain(&letter[key])));
    }
    for (name, value) in letter["headers"].as_object().into_iter().flatten() {
        lines.push_str(&format!("{:<16}{}: {}\n", "header", text::one_line(name), plain(value)));
    }
    lines.push('\n');
    match text {
        Some(Ok(text)) => lines.push_str(text),
        Some(Err(_)) => lines.push_str("(the payload is no text: --payload writes it as it is)"),
        None => lines.push_str("(the payload was not kept)"),
    }
    lines.push('\n');
    super::say(&lines)
}

/// Acts on each of the chosen letters, and says what came of it.
async fn each(
    client: &Client,
    which: &Which,
    act: impl AsyncFn(i64) -> std::result::Result<String, tokio_postgres::Error>,
) -> Result<()> {
    let ids = if which.ids.is_empty() {
        let attempted = "choose the dead letters";
        let (since, age) = Since::split(which.since.as_deref());
        let chosen = client.query(CHOOSE, &[&which.webhook, &since, &age]).await;
        let rows = chosen.map_err(|error| failed(attempted, error))?;
        rows.iter().map(|row| row.get(0)).collect()
    } else {
        which.ids.clone()
    };
    if ids.is_empty() {
        return super::say("no such dead letters\n");
    }
    let mut refused = None;
    let mut steps = Steps::of(ids.len());
    for (done, &id) in (1..).zip(&ids) {
        match act(id).await {
            Ok(done) => super::say(&format!("{done}\n"))?,
            Err(error) => {
                let error = failed(&format!("dead letter {id}"), error);
                if error.is_retryable() {
                    return Err(error);
                }
                if let Some(earlier) = refused.replace(error) {
                    log::line(&format!("walhook: {earlier}"));
                }
            }
        }
        if let Some(steps) = &mut steps {
            steps.done(done, "dead letters");
        }
    }
    refused.map_or(Ok(()), Err)
}

/// A point in time as the user names it.
pub(super) enum Since<'t> {
    Time(&'t str),
    Age(String),
}

impl Since<'_> {
    /// A time, or an age.
    fn split(text: Option<&str>) -> (Option<&str>, Option<String>) {
        match text.map(Since::parse) {
            None => (None, None),
            Some(Since::Time(time)) => (Some(time), None),
            Some(Since::Age(age)) => (None, Some(age)),
        }
    }

    pub(super) fn parse(text: &str) -> Since<'_> {
        let unit = match text.as_bytes().last() {
            Some(b's') => "seconds",
            Some(b'm') => "minutes",
            Some(b'h') => "hours",
            Some(b'd') => "days",
            _ => return Since::Time(text),
        };
        match text[..text.len() - 1].parse::<u32>() {
            Ok(count) => Since::Age(format!("{count} {unit}")),
            Err(_) => Since::Time(text),
        }
    }
}

fn failed(attempted: &str, error: tokio_postgres::Error) -> Error {
    let error = sql::error(attempted, error);
    match crate::postgres::sqlstate(&error) {
        Some("42P01" | "42883" | "42703") => {
            error.of_kind(Kind::Config).hint("run `walhook setup`, which applies the migrations")
        }
        // Refused by the function, or a time that is none: the words are PostgreSQL's.
        Some("P0002" | "55000" | "22023" | "22007" | "22008") => error.of_kind(Kind::Config),
        _ => error,
    }
}

/// A statement with the letter in its place, as bytes of any encoding.
fn with_letter(statement: &str) -> String {
    statement.replace("{letter}", &super::bytes_of("row_to_json(l)::text"))
}

/// The letter, which is the first column.
fn parse(attempted: &str, row: &Row) -> Result<Value> {
    serde_json::from_str(&super::text_of(row, 0).unwrap_or_default())
        .map_err(|error| Error::protocol(attempted).caused_by(error))
}
