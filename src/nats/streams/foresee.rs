//! What [`super::ensure_of`] would do with a row, without doing it.
//!
//! In: the row, and the stream as JetStream has it. Out: what would be created or changed, what the row cannot have, and what an
//! acknowledgement of the stream is worth. Changes nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::{
    Owner, StreamState, Wanted, check_owner, info,
    info::{flag, number, parse_info, text},
    judge, overlapping, parse_state, plan, unix_ns,
};
use crate::{
    error::Result,
    nats::{control::Control, tail},
    route::tables::StreamRow,
};

/// What is there, and what would become of it.
pub enum Foreseen {
    /// No such stream: it would be created. Other streams that take its subjects already, so that it cannot be.
    New {
        /// Their names, quoted.
        taken_by: Vec<String>,
        /// Its limits, as it would be created.
        limits: Limits,
    },
    /// There it is.
    There(Box<There>),
}

/// A stream that is there.
pub struct There {
    /// As it is, with the configuration that it will have.
    pub state: StreamState,
    /// Its limits.
    pub limits: Limits,
    /// The row's columns that would be changed, or why the row cannot be had.
    pub changes: Result<Vec<&'static str>>,
    /// What it may do to events, or why it is of no use.
    pub problems: Result<Vec<String>>,
    /// Whether it is another database's.
    pub owned: Result<()>,
    /// Messages a second between its first and its last message, where that is a minute at least.
    pub rate: Option<f64>,
    /// Its server is one of a cluster.
    pub is_clustered: bool,
}

/// When a stream deletes or refuses messages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Messages.
    pub messages: Option<f64>,
    /// Bytes.
    pub bytes: Option<f64>,
    /// Seconds.
    pub age: Option<f64>,
    /// Messages of one subject, of which the oldest go.
    pub per_subject: Option<f64>,
    /// The oldest go, and new ones are not refused.
    pub drops_old: bool,
}

/// Whether a row makes sense by itself.
///
/// # Errors
/// It does not.
pub fn check_row(row: &StreamRow) -> Result<()> {
    Wanted::parse(row).map(drop)
}

/// Looks.
///
/// # Errors
/// The row makes no sense; JetStream cannot be asked.
pub async fn foresee(control: &Control, row: &StreamRow, owner: Option<&Owner>) -> Result<Foreseen> {
    let mut wanted = Wanted::parse(row)?;
    let Some(info) = info(control, &wanted.name).await? else {
        let limits = limits(&wanted.create());
        return Ok(Foreseen::New { taken_by: overlapping(control, &wanted).await, limits });
    };
    if !super::is_made_by_us(&info) {
        wanted = wanted.without_defaults();
    }
    let planned = plan(&wanted, &info);
    // As the stream will be once `run` has changed it.
    let mut after = info;
    let changes = planned.map(|plan| {
        if let Some(config) = plan.config {
            after["config"] = config;
        }
        plan.changed
    });
    let state = parse_state(&after)?;
    let config = after["config"].as_object().ok_or_else(|| super::unreadable("config"))?;
    let problems = judge::judge(config, &state, &wanted.ordering);
    let owned = match owner {
        Some(owner) => check_owner(row, &state.metadata, owner).map(drop),
        None => Ok(()),
    };
    Ok(Foreseen::There(Box::new(There {
        limits: limits(&after["config"]),
        changes,
        problems,
        owned,
        rate: rate(&after),
        is_clustered: parse_info(&after)?.cluster().is_some(),
        state,
    })))
}

fn limits(config: &Value) -> Limits {
    let config = config.as_object().cloned().unwrap_or_default();
    let limit = |key: &str| Some(number(&config, key, -1)).filter(|limit| *limit > 0).map(|limit| limit as f64);
    let refuses_new = text(&config, "discard", "old") == "new";
    let refuses_per_subject = refuses_new && flag(&config, "discard_new_per_subject");
    Limits {
        messages: limit("max_msgs"),
        bytes: limit("max_bytes"),
        age: limit("max_age").map(|nanos| nanos / 1e9),
        per_subject: limit("max_msgs_per_subject").filter(|_| !refuses_per_subject),
        drops_old: !refuses_new,
    }
}

fn rate(info: &Value) -> Option<f64> {
    let state = &info["state"];
    let time = |key: &str| state[key].as_str().map(unix_ns)?.ok();
    let seconds = (time("last_ts")?.checked_sub(time("first_ts")?)?) as f64 / 1e9;
    let messages = state["messages"].as_u64()? as f64;
    (seconds >= 60.0 && messages >= 2.0).then(|| messages / seconds)
}

/// A consumer and what it has not read.
#[derive(Debug, Clone, PartialEq)]
pub struct Unread {
    /// Its name.
    pub consumer: String,
    /// How many messages of the stream it has not acknowledged.
    pub messages: u64,
    /// How old the oldest of them is, in seconds, where it was asked for.
    pub oldest_age: Option<f64>,
}

/// Consumers in one answer of JetStream's, and so many answers are read.
const PAGES_MAX: usize = 40;

/// The durable consumers of a stream that have something to read. `ages`: of so many of them, those with the most to read, the age
/// of the oldest unread event is asked for.
///
/// # Errors
/// We may not ask, or nobody answers.
pub async fn unread(control: &Control, stream: &StreamState, ages: usize) -> Result<Vec<Unread>> {
    let mut lagging = Vec::new();
    let mut offset = 0;
    for _ in 0..PAGES_MAX {
        let request = serde_json::json!({ "offset": offset });
        let answer = control.api(&format!("CONSUMER.LIST.{}", stream.name), &request).await?;
        let answer = answer.map_err(|error| {
            super::api_error(format!("list the consumers of stream {:?}", stream.name), &stream.name, error)
        })?;
        let consumers = answer["consumers"].as_array().map_or(&[][..], Vec::as_slice);
        lagging.extend(consumers.iter().filter_map(lags));
        offset += consumers.len();
        if consumers.is_empty() || answer["total"].as_u64().is_none_or(|total| offset as u64 >= total) {
            break;
        }
    }
    lagging.sort_by_key(|(unread, ..)| std::cmp::Reverse(unread.messages));
    for (unread, next, subject) in lagging.iter_mut().take(ages) {
        let oldest = tail::next_message_of(control, &stream.name, *next, subject).await?;
        unread.oldest_age = oldest.map(|oldest| age(oldest.time_ns));
    }
    Ok(lagging.into_iter().map(|(unread, ..)| unread).collect())
}

/// What a consumer has to read, if it has; behind which message that begins, and on which subject.
fn lags(info: &Value) -> Option<(Unread, u64, String)> {
    let name = info["config"]["durable_name"].as_str()?;
    let count = |key: &str| info[key].as_u64().unwrap_or(0);
    let acknowledged = info["ack_floor"]["stream_seq"].as_u64().unwrap_or(0);
    let messages = count("num_pending") + count("num_ack_pending");
    let subject = info["config"]["filter_subject"].as_str().filter(|subject| !subject.is_empty()).unwrap_or(">");
    let unread = Unread { consumer: crate::nats::foreign::foreign(name), messages, oldest_age: None };
    (messages > 0).then(|| (unread, acknowledged + 1, subject.to_owned()))
}

fn age(time_ns: i64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    (now - time_ns as f64 / 1e9).max(0.0)
}

/// The state in JetStream's description of a stream.
///
/// # Errors
/// It is none.
#[cfg(test)]
pub fn state_of(info: &Value) -> Result<StreamState> {
    parse_state(info)
}

/// What an account has stored and may store, in bytes. `None`: as much as there is.
pub type Storage = Option<(f64, f64)>;

/// Asks JetStream for the account.
///
/// # Errors
/// We may not ask; nobody answers, or JetStream is not for this account.
pub async fn account(control: &Control) -> Result<Storage> {
    let answer = control.api("INFO", &Value::Null).await?;
    let answer = answer.map_err(|error| super::api_error("ask JetStream for the account".to_owned(), "", error))?;
    let used = answer["storage"].as_f64().unwrap_or(0.0);
    Ok(answer["limits"]["max_storage"].as_f64().filter(|limit| *limit > 0.0).map(|limit| (used, limit)))
}
