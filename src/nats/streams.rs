//! Streams: rows of `rule_nats_streams` become JetStream's, or it is said why not.
//!
//! In: a row, and the stream as JetStream has it. Out: what to create or to change, decided in pure code, and what the
//! stream then is. What always holds: a change keeps all that the row does not speak of; subjects are added and never
//! taken away, for others may publish there; and no limit is lowered so far that stored messages would go at once.

pub mod foresee;
mod info;
mod judge;
mod owned;
mod plan;
mod wanted;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    codes::{
        self,
        named::{STREAM_NAME_EXIST, STREAM_NOT_FOUND, STREAM_SUBJECT_OVERLAP},
    },
    control::{ApiError, Control},
    owner::Owner,
};
use crate::{
    error::{Error, Kind, Result},
    route::tables::StreamRow,
};
use info::{parse_state, unreadable};
use plan::plan;
use wanted::{Wanted, check_name};

pub use info::StreamState;
pub(in crate::nats) use info::unix_ns;
pub use owned::{check_owner, claim, usage};
pub use wanted::is_made_by_us;

/// Makes the stream what the row says, as far as JetStream lets anybody. Whether the row is enabled is the caller's matter.
///
/// [`Kind::Config`] where it does not, with what the stream has, what the row wants and what to do;
/// [`Kind::Permission`] where we may not and what is there does not suit.
pub async fn ensure(control: &Control, row: &StreamRow) -> Result<StreamState> {
    ensure_of(control, row, None).await
}

/// The same for `owner`, whose a new stream is; another database's is refused before anything is asked of it.
pub async fn ensure_of(control: &Control, row: &StreamRow, owner: Option<&Owner>) -> Result<StreamState> {
    let wanted = Wanted::parse(row)?;
    let name = &wanted.name;
    if let Some(info) = info(control, name).await? {
        owned::refuse_anothers(row, &info, owner)?;
        return amend(control, &wanted, &info).await;
    }
    let mut config = wanted.create();
    if let (Some(owner), Some(config)) = (owner, config.as_object_mut()) {
        owner.sign(config);
    }
    match control.api(&format!("STREAM.CREATE.{name}"), &config).await {
        Ok(Ok(answer)) => settle(&answer, &wanted.ordering, Vec::new()),
        // Somebody was faster.
        Ok(Err(error)) if error.err_code == STREAM_NAME_EXIST => match info(control, name).await? {
            Some(info) => {
                owned::refuse_anothers(row, &info, owner)?;
                amend(control, &wanted, &info).await
            }
            None => Err(api_error(format!("create stream {name:?}"), name, error)),
        },
        Ok(Err(error)) => Err(not_accepted(control, &wanted, format!("create stream {name:?}"), error).await),
        Err(error) => Err(error.context(format!("stream {name:?} does not exist; create it"))),
    }
}

async fn amend(control: &Control, wanted: &Wanted, info: &Value) -> Result<StreamState> {
    let explicit;
    let wanted = match is_made_by_us(info) {
        true => wanted,
        // What its owner chose is not undone by what nobody said.
        false => {
            explicit = wanted.without_defaults();
            &explicit
        }
    };
    let plan = plan(wanted, info)?;
    let Some(config) = plan.config else { return settle(info, &wanted.ordering, plan.warnings) };
    let name = &wanted.name;
    let attempted = format!("update {} of stream {name:?}", plan.changed.join(", "));
    match control.api(&format!("STREAM.UPDATE.{name}"), &config).await {
        Ok(Ok(answer)) => settle(&answer, &wanted.ordering, plan.warnings),
        Ok(Err(error)) => Err(not_accepted(control, wanted, attempted, error).await),
        // It will do as it is, unless events have nowhere to go.
        Err(error) if error.kind() == Kind::Permission && !plan.changed.contains(&"subjects") => {
            let mut warnings = plan.warnings;
            warnings.push(format!("{}; the stream stays as it is", error.context(attempted)));
            settle(info, &wanted.ordering, warnings)
        }
        Err(error) => Err(error.context(attempted)),
    }
}

/// The stream as it is, if there is one.
pub async fn find(control: &Control, stream: &str) -> Result<Option<StreamState>> {
    check_name(stream)?;
    info(control, stream).await?.map(|info| parse_state(&info)).transpose()
}

/// The stream as it is. [`Kind::Config`] where there is none.
pub async fn state(control: &Control, stream: &str) -> Result<StreamState> {
    check_name(stream)?;
    match info(control, stream).await? {
        Some(info) => parse_state(&info),
        None => Err(Error::config(format!("stream {stream:?} does not exist")).hint(
            "SELECT rule_nats_stream_create(…) makes its row, and walhook run the stream; or set enabled of its row to true",
        )),
    }
}

/// `STREAM.INFO`, answered by the stream's leader; `None` where there is no such stream.
async fn info(control: &Control, stream: &str) -> Result<Option<Value>> {
    match control.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await? {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.err_code == STREAM_NOT_FOUND => Ok(None),
        Err(error) => Err(api_error(format!("read the state of stream {stream:?}"), stream, error)),
    }
}

/// JetStream's refusal, sorted by who must act.
pub(super) fn api_error(attempted: String, stream: &str, error: ApiError) -> Error {
    let (kind, hint) = codes::asked(error.err_code, error.code);
    let is_named = attempted.contains(&format!("{stream:?}"));
    let attempted = match error.err_code {
        STREAM_NOT_FOUND if !is_named => format!("{attempted} ({stream:?})"),
        _ => attempted,
    };
    Error::new(kind, attempted).caused_by(error).hint(hint)
}

async fn not_accepted(control: &Control, wanted: &Wanted, attempted: String, error: ApiError) -> Error {
    match error.err_code {
        STREAM_SUBJECT_OVERLAP => {
            let others = overlapping(control, wanted).await;
            let whose =
                if others.is_empty() { "another stream".to_owned() } else { format!("stream {}", others.join(", ")) };
            Error::config(format!("{attempted}: {} are taken by {whose}", wanted.subjects.join(", ")))
                .caused_by(error)
                .hint(
                    "A subject goes to one stream: narrow the subjects of one of them, or name that stream in the row",
                )
        }
        _ => api_error(attempted, &wanted.name, error),
    }
}

/// The other streams that take a subject of ours, as far as we may ask.
async fn overlapping(control: &Control, wanted: &Wanted) -> Vec<String> {
    let mut names = BTreeSet::new();
    for subject in &wanted.subjects {
        if let Ok(Ok(answer)) = control.api("STREAM.NAMES", &json!({ "subject": subject })).await {
            let streams = answer["streams"].as_array().into_iter().flatten().filter_map(Value::as_str);
            names.extend(streams.filter(|name| *name != wanted.name).map(|name| format!("{name:?}")));
        }
    }
    names.into_iter().collect()
}

/// The state after all was done, judged.
fn settle(info: &Value, ordering: &str, mut warnings: Vec<String>) -> Result<StreamState> {
    let mut state = parse_state(info)?;
    let config = info["config"].as_object().ok_or_else(|| unreadable("config"))?;
    warnings.extend(judge::judge(config, &state, ordering)?);
    for limit in judge::limits(config, &state) {
        tracing::info!(stream = state.name, "{limit}");
    }
    state.warnings = warnings;
    Ok(state)
}

#[cfg(test)]
mod tests;
