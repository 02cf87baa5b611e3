//! A stream as JetStream describes it.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    nats::{ack::SEQUENCE_MAX, owner},
};

/// A stream as JetStream has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// Its name.
    pub name: String,
    /// The subjects it takes.
    pub subjects: Vec<String>,
    /// When it was created, in nanoseconds since 1970: another time, another stream of the same name.
    pub created_ns: i64,
    /// The first sequence that may still be there.
    pub first_sequence: u64,
    /// The last sequence given.
    pub last_sequence: u64,
    /// How many messages are stored.
    pub messages: u64,
    /// How many bytes they take.
    pub bytes: u64,
    /// The largest message it takes, headers and body, where it is stricter than the server.
    pub max_msg_size: Option<usize>,
    /// `limits`, `interest` or `workqueue`.
    pub retention: String,
    /// `old` or `new`.
    pub discard: String,
    /// `file` or `memory`.
    pub storage: String,
    /// How many servers keep it.
    pub replicas: u64,
    /// For how long a `Nats-Msg-Id` is remembered.
    pub duplicate_window: Duration,
    /// Atomic batches are allowed, by a server that knows them.
    pub allow_atomic: bool,
    /// The server that leads it, in a cluster that has elected one.
    pub leader: Option<String>,
    /// What is noted of it: see [`crate::nats::owner`].
    pub metadata: BTreeMap<String, String>,
    /// What is allowed but unwise, for the log.
    pub warnings: Vec<String>,
}

/// The parts of `STREAM.INFO` that we read.
#[derive(Deserialize)]
pub(super) struct Info {
    pub(super) config: Value,
    pub(super) created: String,
    pub(super) state: Stored,
    #[serde(default)]
    pub(super) cluster: Option<Cluster>,
    #[serde(default)]
    pub(super) ts: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Stored {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    #[serde(default)]
    pub(super) first_ts: String,
}

#[derive(Deserialize)]
pub(super) struct Cluster {
    /// A server alone has no name here, though it calls itself the leader.
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) leader: Option<String>,
}

impl Info {
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref().filter(|cluster| cluster.name.as_deref().is_some_and(|name| !name.is_empty()))
    }
}

pub(super) fn parse_info(info: &Value) -> Result<Info> {
    let info = Info::deserialize(info)
        .map_err(|error| Error::protocol("JetStream's answer about a stream").caused_by(error))?;
    if info.state.first_seq.max(info.state.last_seq) > SEQUENCE_MAX {
        return Err(unreadable("sequence"));
    }
    Ok(info)
}

pub(super) fn unreadable(what: &str) -> Error {
    Error::protocol(format!("JetStream's answer about a stream has no readable {what}"))
}

pub(super) fn parse_state(info: &Value) -> Result<StreamState> {
    let info = parse_info(info)?;
    let config = info.config.as_object().ok_or_else(|| unreadable("config"))?;
    Ok(StreamState {
        name: text(config, "name", "").to_owned(),
        subjects: strings(config.get("subjects")),
        created_ns: unix_ns(&info.created)?,
        first_sequence: info.state.first_seq,
        last_sequence: info.state.last_seq,
        messages: info.state.messages,
        bytes: info.state.bytes,
        max_msg_size: usize::try_from(number(config, "max_msg_size", -1)).ok().filter(|size| *size > 0),
        retention: text(config, "retention", "limits").to_owned(),
        discard: text(config, "discard", "old").to_owned(),
        storage: text(config, "storage", "file").to_owned(),
        replicas: u64::try_from(number(config, "num_replicas", 1)).unwrap_or(1),
        duplicate_window: Duration::from_nanos(u64::try_from(number(config, "duplicate_window", 0)).unwrap_or(0)),
        allow_atomic: flag(config, "allow_atomic"),
        metadata: owner::metadata(&info.config),
        leader: info.cluster().and_then(|cluster| cluster.leader.clone()).filter(|leader| !leader.is_empty()),
        warnings: Vec::new(),
    })
}

pub(super) fn text<'a>(config: &'a Map<String, Value>, key: &str, default: &'a str) -> &'a str {
    config.get(key).and_then(Value::as_str).unwrap_or(default)
}

pub(super) fn number(config: &Map<String, Value>, key: &str, default: i64) -> i64 {
    config.get(key).and_then(Value::as_i64).unwrap_or(default)
}

pub(super) fn flag(config: &Map<String, Value>, key: &str) -> bool {
    config.get(key).and_then(Value::as_bool).unwrap_or(false)
}

pub(super) fn strings(value: Option<&Value>) -> Vec<String> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A time of JetStream in nanoseconds since 1970.
pub(in crate::nats) fn unix_ns(text: &str) -> Result<i64> {
    let wrong = || Error::protocol(format!("JetStream's time {text:?} cannot be read"));
    let time = async_nats::datetime::parse_rfc3339(text).map_err(|_| wrong())?;
    i64::try_from(time.unix_timestamp_nanos()).map_err(|_| wrong())
}
