//! Streams: rows of `rule_nats_streams` become JetStream's, or it is said why not.
//!
//! In: a row, and the stream as JetStream has it. Out: what to create or to change, decided in pure code, and what the
//! stream then is. What always holds: a change keeps all that the row does not speak of; subjects are added and never
//! taken away, for others may publish there; and no limit is lowered so far that stored messages would go at once.

pub mod foresee;
mod judge;
mod owned;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    ack::SEQUENCE_MAX,
    codes::{
        self,
        named::{STREAM_NAME_EXIST, STREAM_NOT_FOUND, STREAM_SUBJECT_OVERLAP},
    },
    control::{ApiError, Control},
    owner::{self, Owner},
};
use crate::{
    error::{Error, Kind, Result},
    route::{subject, tables::StreamRow},
};

pub use owned::{check_owner, claim, usage};

const NANOS_PER_SECOND: i64 = 1_000_000_000;
const DUPLICATE_WINDOW_SECONDS: i64 = 120; // JetStream's own default

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
    /// What is noted of it: see [`super::owner`].
    pub metadata: BTreeMap<String, String>,
    /// What is allowed but unwise, for the log.
    pub warnings: Vec<String>,
}

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

/// What a row wants, checked. `None`: as it is, or the default.
#[derive(Debug)]
struct Wanted {
    name: String,
    subjects: Vec<String>,
    description: Option<String>,
    storage: Option<String>,
    max_msgs: Option<i64>,
    max_bytes: Option<i64>,
    max_age_ns: Option<i64>,
    retention: Option<String>,
    discard: Option<String>,
    replicas: Option<i64>,
    duplicate_window_ns: Option<i64>,
    ordering: String,
    allow_atomic: Option<bool>,
}

/// In the metadata of streams that walhook has made. Its row says what they are; of others only what it says besides its defaults.
const MADE: &str = "walhook.made";

/// Whether walhook made the stream.
pub fn is_made_by_us(info: &Value) -> bool {
    info["config"]["metadata"][MADE].as_str() == Some("true")
}

impl Wanted {
    /// Only what differs from the defaults of `rule_nats_streams` and of `rule_nats_stream_create`.
    fn without_defaults(&self) -> Wanted {
        let text = |value: &Option<String>, default: &str| value.clone().filter(|value| value != default);
        let number = |value: Option<i64>, default: i64| value.filter(|value| *value != default);
        Wanted {
            name: self.name.clone(),
            subjects: self.subjects.clone(),
            description: self.description.clone(),
            storage: text(&self.storage, "file"),
            max_msgs: number(self.max_msgs, 1_000_000),
            max_bytes: number(self.max_bytes, 1 << 30),
            max_age_ns: number(self.max_age_ns, 604_800 * NANOS_PER_SECOND),
            retention: text(&self.retention, "limits"),
            discard: text(&self.discard, "old"),
            replicas: number(self.replicas, 1),
            duplicate_window_ns: number(self.duplicate_window_ns, DUPLICATE_WINDOW_SECONDS * NANOS_PER_SECOND),
            ordering: self.ordering.clone(),
            allow_atomic: self.allow_atomic,
        }
    }

    fn parse(row: &StreamRow) -> Result<Wanted> {
        parse_row(row).map_err(|error| error.context(format!("stream {:?} in rule_nats_streams", row.stream_name)))
    }

    /// The configuration of a new stream.
    fn create(&self) -> Value {
        let max_age = self.max_age_ns.unwrap_or(0);
        let window = self.duplicate_window_ns.unwrap_or_else(|| {
            let default = DUPLICATE_WINDOW_SECONDS * NANOS_PER_SECOND;
            if max_age > 0 { default.min(max_age) } else { default }
        });
        let mut config = json!({
            "name": self.name,
            "subjects": self.subjects,
            "storage": self.storage.as_deref().unwrap_or("file"),
            "max_msgs": self.max_msgs.unwrap_or(-1),
            "max_bytes": self.max_bytes.unwrap_or(-1),
            "max_age": max_age,
            "max_msg_size": -1,
            "max_consumers": -1,
            "max_msgs_per_subject": -1,
            "retention": self.retention.as_deref().unwrap_or("limits"),
            "discard": self.discard.as_deref().unwrap_or("old"),
            "num_replicas": self.replicas.unwrap_or(1),
            "duplicate_window": window,
            "allow_direct": true, // for others' sake: readers may ask any replica. We never do.
            "metadata": { MADE: "true" },
        });
        if let Some(description) = &self.description {
            config["description"] = json!(description);
        }
        if let Some(allow_atomic) = self.allow_atomic {
            config["allow_atomic"] = json!(allow_atomic);
        }
        config
    }
}

fn parse_row(row: &StreamRow) -> Result<Wanted> {
    check_name(&row.stream_name)?;
    if row.subjects.is_empty() {
        return Err(Error::config("subjects is empty").hint("Name the subjects of the stream, as in {webhooks.>}"));
    }
    for subject in &row.subjects {
        check_subject(subject)?;
    }
    for (index, subject) in row.subjects.iter().enumerate() {
        if let Some(other) = row.subjects[..index].iter().find(|other| subject::overlaps(other, subject)) {
            return Err(Error::config(format!("the subjects {other:?} and {subject:?} overlap"))
                .hint("Keep the one that covers the other"));
        }
    }
    let one_of = |column: &str, value: &Option<String>, allowed: &[&str]| match value.as_deref() {
        Some(value) if !allowed.contains(&value) => {
            Err(Error::config(format!("{column} {value:?} is not one of {}", allowed.join(", "))))
        }
        value => Ok(value.map(str::to_owned)),
    };
    // JetStream takes 0 for unlimited, and says -1.
    let limit = |value: Option<i64>| value.map(|value| if value <= 0 { -1 } else { value });
    let seconds = |column: &str, value: Option<i64>| match value {
        None => Ok(None),
        Some(seconds) if seconds <= 0 => Ok(Some(0)),
        Some(seconds) => seconds
            .checked_mul(NANOS_PER_SECOND)
            .map(Some)
            .ok_or_else(|| Error::config(format!("{column} is {seconds}, beyond what JetStream counts (292 years)"))),
    };
    let max_age_ns = seconds("max_age_seconds", row.max_age_seconds)?;
    // 0 would be JetStream's default again.
    let duplicate_window_ns =
        seconds("duplicate_window_seconds", row.duplicate_window_seconds.map(i64::from))?.filter(|window| *window > 0);
    if let (Some(age), Some(window)) = (max_age_ns.filter(|age| *age > 0), duplicate_window_ns)
        && window > age
    {
        return Err(Error::config(format!(
            "duplicate_window_seconds {} is longer than max_age_seconds {}",
            window / NANOS_PER_SECOND,
            age / NANOS_PER_SECOND
        ))
        .hint("JetStream remembers no message id for longer than it keeps the message: shorten the one, or lengthen the other"));
    }
    if let Some(replicas) = row.replicas.filter(|replicas| !(1..=5).contains(replicas)) {
        return Err(
            Error::config(format!("replicas is {replicas}")).hint("JetStream keeps 1 to 5; 3 outlives one server")
        );
    }
    Ok(Wanted {
        name: row.stream_name.clone(),
        subjects: row.subjects.clone(),
        description: row.description.clone().filter(|text| !text.is_empty()),
        storage: one_of("storage_type", &row.storage_type, &["file", "memory"])?,
        max_msgs: limit(row.max_messages),
        max_bytes: limit(row.max_bytes),
        max_age_ns,
        retention: one_of("retention_policy", &row.retention_policy, &["limits", "interest", "workqueue"])?,
        discard: one_of("discard_policy", &row.discard_policy, &["old", "new"])?,
        replicas: row.replicas.map(i64::from),
        duplicate_window_ns,
        ordering: one_of("ordering", &row.ordering, &["strict", "shared"])?.unwrap_or_else(|| "strict".to_owned()),
        // Others may want them too, so they are never forbidden.
        allow_atomic: {
            one_of("transactions", &row.transactions, &["streamed", "atomic"])?;
            one_of("durability", &row.durability, &["default", "fsync"])?;
            row.wants_batches().then_some(true)
        },
    })
}

/// A stream's name stands in subjects and in file names.
fn check_name(name: &str) -> Result<()> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\');
    match name.is_empty() || name.len() > 255 || name.contains(bad) {
        true => Err(Error::config(format!("{name:?} cannot be the name of a stream"))
            .hint("1 to 255 bytes, without spaces and without . * > / \\")),
        false => Ok(()),
    }
}

fn check_subject(subject: &str) -> Result<()> {
    let wrong = |why: &str| Err(Error::config(format!("subject {subject:?} {why}")));
    if subject.is_empty() || subject.split('.').any(str::is_empty) {
        return wrong("has an empty token");
    }
    if subject.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return wrong("has a space or a control character");
    }
    if subject.starts_with('$') {
        return wrong("begins with $, which is NATS's own");
    }
    if subject == ">" {
        return wrong("takes everything, the answers of NATS itself too");
    }
    if subject.split('.').rev().skip(1).any(|token| token == ">") {
        return wrong("has > before its end");
    }
    // Inside a token they are letters to the server, and never what was meant.
    if subject.split('.').any(|token| token.len() > 1 && token.contains(['*', '>'])) {
        return wrong("has * or > as a part of a token");
    }
    Ok(())
}

/// How to make a stream what its row wants.
#[derive(Debug, Default)]
struct Plan {
    /// The whole new configuration; `None` where nothing differs.
    config: Option<Value>,
    /// The row's columns that differ.
    changed: Vec<&'static str>,
    warnings: Vec<String>,
}

fn plan(wanted: &Wanted, info: &Value) -> Result<Plan> {
    let state = parse_info(info)?;
    let has = state.config.as_object().ok_or_else(|| unreadable("config"))?;
    let mut plan = Plan::default();
    let mut config = has.clone();
    refuse_unchangeable(wanted, has)?;
    if let Some(replicas) = wanted.replicas.filter(|replicas| *replicas > 1 && state.cluster().is_none()) {
        // A server alone takes such an update, and keeps one copy all the same.
        return Err(Error::config(format!(
            "stream {:?} cannot have replicas {replicas}: its server is not in a cluster",
            wanted.name
        ))
        .hint("Set replicas to 1, or connect to a cluster"));
    }
    add_subjects(wanted, &mut config, &mut plan);
    set(&mut config, &mut plan, ("description", "description"), wanted.description.as_ref().map(|text| json!(text)));
    set(&mut config, &mut plan, ("retention_policy", "retention"), wanted.retention.as_ref().map(|text| json!(text)));
    set(&mut config, &mut plan, ("discard_policy", "discard"), wanted.discard.as_ref().map(|text| json!(text)));
    set(&mut config, &mut plan, ("replicas", "num_replicas"), wanted.replicas.map(|count| json!(count)));
    set(
        &mut config,
        &mut plan,
        ("transactions or durability", "allow_atomic"),
        wanted.allow_atomic.map(|allowed| json!(allowed)),
    );
    for (column, key, limit, would_delete) in [
        ("max_messages", "max_msgs", wanted.max_msgs, above(state.state.messages, wanted.max_msgs)),
        ("max_bytes", "max_bytes", wanted.max_bytes, above(state.state.bytes, wanted.max_bytes)),
        ("max_age_seconds", "max_age", wanted.max_age_ns, older(&state, wanted.max_age_ns)),
    ] {
        let Some(limit) = limit else { continue };
        let now = number(&config, key, 0);
        if would_delete && now != limit {
            plan.warnings.push(format!(
                "stream {:?}: {column} stays as it is ({key} {now}; the row's is {limit}), for messages stored already would be \
                 deleted at once; if they may go, lower {key} of the stream yourself",
                wanted.name
            ));
        } else {
            set(&mut config, &mut plan, (column, key), Some(json!(limit)));
        }
    }
    fit_window(wanted, &mut config, &mut plan);
    if !plan.changed.is_empty() {
        plan.config = Some(Value::Object(config));
    }
    Ok(plan)
}

/// What JetStream changes for nobody.
fn refuse_unchangeable(wanted: &Wanted, has: &Map<String, Value>) -> Result<()> {
    let refuse = |column: &str, has: &str, wants: &str, remedy: &str| {
        Err(Error::config(format!(
            "stream {:?} has {column} {has}, its row in rule_nats_streams wants {wants}: JetStream cannot change that",
            wanted.name
        ))
        .hint(remedy))
    };
    if let Some(mirrored) = has.get("mirror").and_then(|mirror| mirror.get("name")).and_then(Value::as_str) {
        return Err(Error::config(format!(
            "stream {:?} is a mirror of {mirrored:?} and takes no messages",
            wanted.name
        ))
        .hint("Name the mirrored stream in the row, or another name"));
    }
    let storage = text(has, "storage", "file");
    if let Some(wants) = wanted.storage.as_deref().filter(|wants| *wants != storage) {
        return refuse("storage_type", storage, wants, "Correct the row, or move to a stream of another name");
    }
    let retention = text(has, "retention", "limits");
    if let Some(wants) = wanted.retention.as_deref().filter(|wants| *wants != retention)
        && (wants == "workqueue" || retention == "workqueue")
    {
        return refuse("retention_policy", retention, wants, "Correct the row, or move to a stream of another name");
    }
    Ok(())
}

fn add_subjects(wanted: &Wanted, config: &mut Map<String, Value>, plan: &mut Plan) {
    let mut subjects = strings(config.get("subjects"));
    let lacking: Vec<_> = wanted
        .subjects
        .iter()
        .filter(|subject| !subjects.iter().any(|has| subject::covers(has, subject)))
        .cloned()
        .collect();
    if !lacking.is_empty() {
        // A wider one takes the place of those it covers: overlapping ones are refused.
        subjects.retain(|has| !lacking.iter().any(|new| subject::covers(new, has)));
        subjects.extend(lacking);
        config.insert("subjects".to_owned(), json!(subjects));
        plan.changed.push("subjects");
    }
    let others: Vec<_> =
        subjects.iter().filter(|has| !wanted.subjects.iter().any(|own| subject::covers(own, has))).collect();
    if !others.is_empty() {
        plan.warnings.push(format!(
            "stream {:?} also takes {others:?}, which its row does not name; they are left, for others may publish there",
            wanted.name
        ));
    }
}

/// The window may not outlast the messages.
fn fit_window(wanted: &Wanted, config: &mut Map<String, Value>, plan: &mut Plan) {
    let window = wanted.duplicate_window_ns.unwrap_or_else(|| number(config, "duplicate_window", 0));
    let age = number(config, "max_age", 0);
    let window = if age > 0 { window.min(age) } else { window };
    set(config, plan, ("duplicate_window_seconds", "duplicate_window"), Some(json!(window)));
}

/// Sets `key` where it differs, and remembers the column.
fn set(config: &mut Map<String, Value>, plan: &mut Plan, (column, key): (&'static str, &str), value: Option<Value>) {
    let Some(value) = value else { return };
    // A server leaves out what is 0.
    let same = config.get(key).map_or_else(|| value == json!(0), |has| *has == value);
    if !same {
        config.insert(key.to_owned(), value);
        plan.changed.push(column);
    }
}

fn above(stored: u64, limit: Option<i64>) -> bool {
    limit.and_then(|limit| u64::try_from(limit).ok()).is_some_and(|limit| stored > limit)
}

/// Whether the oldest message is older than `limit`, by the server's own clock.
fn older(info: &Info, limit: Option<i64>) -> bool {
    let Some(limit) = limit.filter(|limit| *limit > 0) else { return false };
    if info.state.messages == 0 {
        return false;
    }
    let times = (info.ts.as_deref().map(unix_ns), unix_ns(&info.state.first_ts));
    let (Some(Ok(now)), Ok(first)) = times else { return true };
    now.saturating_sub(first) > limit
}

/// The parts of `STREAM.INFO` that we read.
#[derive(Deserialize)]
struct Info {
    config: Value,
    created: String,
    state: Stored,
    #[serde(default)]
    cluster: Option<Cluster>,
    #[serde(default)]
    ts: Option<String>,
}

#[derive(Deserialize)]
struct Stored {
    messages: u64,
    bytes: u64,
    first_seq: u64,
    last_seq: u64,
    #[serde(default)]
    first_ts: String,
}

#[derive(Deserialize)]
struct Cluster {
    /// A server alone has no name here, though it calls itself the leader.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    leader: Option<String>,
}

impl Info {
    fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref().filter(|cluster| cluster.name.as_deref().is_some_and(|name| !name.is_empty()))
    }
}

fn parse_info(info: &Value) -> Result<Info> {
    let info = Info::deserialize(info)
        .map_err(|error| Error::protocol("JetStream's answer about a stream").caused_by(error))?;
    if info.state.first_seq.max(info.state.last_seq) > SEQUENCE_MAX {
        return Err(unreadable("sequence"));
    }
    Ok(info)
}

fn unreadable(what: &str) -> Error {
    Error::protocol(format!("JetStream's answer about a stream has no readable {what}"))
}

fn parse_state(info: &Value) -> Result<StreamState> {
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

fn text<'a>(config: &'a Map<String, Value>, key: &str, default: &'a str) -> &'a str {
    config.get(key).and_then(Value::as_str).unwrap_or(default)
}

fn number(config: &Map<String, Value>, key: &str, default: i64) -> i64 {
    config.get(key).and_then(Value::as_i64).unwrap_or(default)
}

fn flag(config: &Map<String, Value>, key: &str) -> bool {
    config.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn strings(value: Option<&Value>) -> Vec<String> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A time of JetStream in nanoseconds since 1970.
pub(super) fn unix_ns(text: &str) -> Result<i64> {
    let wrong = || Error::protocol(format!("JetStream's time {text:?} cannot be read"));
    let time = async_nats::datetime::parse_rfc3339(text).map_err(|_| wrong())?;
    i64::try_from(time.unix_timestamp_nanos()).map_err(|_| wrong())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row() -> StreamRow {
        StreamRow { stream_name: "WEBHOOKS".into(), subjects: vec!["webhooks.>".into()], ..StreamRow::default() }
    }

    /// `STREAM.INFO` of a stream that `row` made, with `changes` to its configuration and `messages` stored.
    fn info(row: &StreamRow, changes: Value, messages: u64) -> Value {
        let mut config = Wanted::parse(row).unwrap().create();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        json!({ "config": config, "created": "2026-11-23T00:00:00Z", "ts": "2026-11-23T01:00:00.5Z",
            "state": { "messages": messages, "bytes": 100 * messages, "first_seq": 1, "last_seq": messages,
                "first_ts": "2026-11-23T00:00:00Z" } })
    }

    /// The columns that a row changes of a stream, the new configuration, and the warnings.
    fn planned(row: &StreamRow, info: &Value) -> (Vec<&'static str>, Value, Vec<String>) {
        let plan = plan(&Wanted::parse(row).unwrap(), info).unwrap();
        assert_eq!(plan.config.is_some(), !plan.changed.is_empty());
        (plan.changed, plan.config.unwrap_or_default(), plan.warnings)
    }

    fn refused(row: &StreamRow, info: &Value) -> String {
        let error = plan(&Wanted::parse(row).unwrap(), info).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        error.to_string()
    }

    #[test]
    fn a_stream_that_is_as_its_row_wants_is_left_alone() {
        let full = StreamRow {
            description: Some("d".into()),
            storage_type: Some("memory".into()),
            max_messages: Some(10),
            max_bytes: Some(0),
            max_age_seconds: Some(60),
            retention_policy: Some("interest".into()),
            discard_policy: Some("new".into()),
            replicas: Some(1),
            duplicate_window_seconds: Some(60),
            ..row()
        };
        for row in [row(), full] {
            let (changed, _, warnings) = planned(&row, &info(&row, json!({}), 5));
            assert!(changed.is_empty() && warnings.is_empty(), "{changed:?} {warnings:?}");
        }
        // NULL columns speak of nothing.
        let (changed, ..) =
            planned(&row(), &info(&row(), json!({ "storage": "memory", "max_age": 7, "duplicate_window": 5 }), 5));
        assert!(changed.is_empty(), "{changed:?}");
    }

    #[test]
    fn an_update_keeps_all_that_the_row_does_not_speak_of() {
        let wants = StreamRow { max_messages: Some(100), ..row() };
        let (changed, config, _) =
            planned(&wants, &info(&row(), json!({ "of_tomorrow": { "a": 1 }, "max_consumers": 7 }), 5));
        assert_eq!(changed, ["max_messages"]);
        assert_eq!(
            (&config["max_msgs"], &config["of_tomorrow"]["a"], &config["max_consumers"]),
            (&json!(100), &json!(1), &json!(7))
        );
    }

    #[test]
    fn subjects_are_added_and_never_taken_away() {
        let has = |subjects: Value| info(&row(), json!({ "subjects": subjects }), 0);
        let (changed, config, warnings) = planned(&row(), &has(json!(["orders.>"])));
        assert_eq!(changed, ["subjects"]);
        assert_eq!(config["subjects"], json!(["orders.>", "webhooks.>"]));
        assert!(warnings[0].contains("orders.>"), "{warnings:?}");
        // A wider one replaces what it covers, and a covered one is there already.
        assert_eq!(planned(&row(), &has(json!(["webhooks.*", "webhooks.a.b"]))).1["subjects"], json!(["webhooks.>"]));
        let narrow = StreamRow { subjects: vec!["webhooks.*".into()], ..row() };
        let (changed, _, warnings) = planned(&narrow, &has(json!(["webhooks.>"])));
        assert!(changed.is_empty() && warnings[0].contains("webhooks.>"), "{warnings:?}");
    }

    #[test]
    fn no_limit_is_lowered_so_far_that_messages_would_go_at_once() {
        for (column, wants) in [
            ("max_messages", StreamRow { max_messages: Some(4), ..row() }),
            ("max_bytes", StreamRow { max_bytes: Some(499), ..row() }),
            (
                "max_age_seconds",
                StreamRow { max_age_seconds: Some(3600), duplicate_window_seconds: Some(120), ..row() },
            ),
        ] {
            let (changed, _, warnings) = planned(&wants, &info(&row(), json!({}), 5));
            assert!(changed.is_empty(), "{changed:?}");
            assert!(warnings[0].contains(column) && warnings[0].contains("deleted at once"), "{warnings:?}");
            assert_eq!(planned(&wants, &info(&row(), json!({}), 0)).0, [column]);
        }
        let fits = StreamRow { max_messages: Some(5), max_bytes: Some(500), max_age_seconds: Some(3601), ..row() };
        assert_eq!(planned(&fits, &info(&row(), json!({}), 5)).0, ["max_messages", "max_bytes", "max_age_seconds"]);
    }

    #[test]
    fn the_window_shrinks_with_the_age() {
        let wants = StreamRow { max_age_seconds: Some(60), ..row() };
        let (changed, config, _) = planned(&wants, &info(&row(), json!({}), 0));
        assert_eq!(changed, ["max_age_seconds", "duplicate_window_seconds"]);
        assert_eq!(config["duplicate_window"], json!(60 * NANOS_PER_SECOND));
        assert_eq!(Wanted::parse(&wants).unwrap().create()["duplicate_window"], json!(60 * NANOS_PER_SECOND));
    }

    #[test]
    fn what_jetstream_cannot_change_is_refused_with_has_and_wants() {
        let with = |storage: &str, retention: &str| StreamRow {
            storage_type: Some(storage.into()),
            retention_policy: Some(retention.into()),
            ..row()
        };
        let text = refused(&with("file", "limits"), &info(&with("memory", "limits"), json!({}), 0));
        assert!(text.contains("\"WEBHOOKS\" has storage_type memory") && text.contains("wants file"), "{text}");
        for (has, wants) in [("limits", "workqueue"), ("workqueue", "limits"), ("interest", "workqueue")] {
            let text = refused(&with("file", wants), &info(&with("file", has), json!({}), 0));
            assert!(
                text.contains(&format!("retention_policy {has}")) && text.contains(&format!("wants {wants}")),
                "{text}"
            );
        }
        assert_eq!(
            planned(&with("file", "interest"), &info(&with("file", "limits"), json!({}), 0)).0,
            ["retention_policy"]
        );
        let three = StreamRow { replicas: Some(3), ..row() };
        let mut has = info(&row(), json!({}), 0);
        has["cluster"] = json!({ "leader": "alone" });
        assert!(refused(&three, &has).contains("cannot have replicas 3"));
        has["cluster"] = json!({ "name": "C", "leader": "n1" });
        assert_eq!(planned(&three, &has).0, ["replicas"]);
        assert_eq!(parse_state(&has).unwrap().leader.as_deref(), Some("n1"));
        let text = refused(&row(), &info(&row(), json!({ "mirror": { "name": "ORDERS" } }), 0));
        assert!(text.contains("mirror of \"ORDERS\""), "{text}");
    }

    #[test]
    fn impossible_rows_are_refused_before_anybody_is_asked() {
        let subjects = |list: &[&str]| StreamRow { subjects: list.iter().map(|&s| s.to_owned()).collect(), ..row() };
        for (wrong, words) in [
            (StreamRow { stream_name: "a.b".into(), ..row() }, "name of a stream"),
            (StreamRow { stream_name: String::new(), ..row() }, "name of a stream"),
            (StreamRow { stream_name: "x".repeat(256), ..row() }, "name of a stream"),
            (subjects(&[]), "subjects is empty"),
            (subjects(&["a..b"]), "empty token"),
            (subjects(&["a b"]), "space"),
            (subjects(&["a.>.b"]), "> before its end"),
            (subjects(&["a.b*"]), "part of a token"),
            (subjects(&["$JS.API.>"]), "NATS's own"),
            (subjects(&[">"]), "everything"),
            (subjects(&["a.*", "a.b"]), "overlap"),
            (StreamRow { storage_type: Some("tape".into()), ..row() }, "storage_type \"tape\""),
            (StreamRow { ordering: Some("loose".into()), ..row() }, "ordering \"loose\""),
            (StreamRow { transactions: Some("maybe".into()), ..row() }, "transactions \"maybe\""),
            (StreamRow { durability: Some("hope".into()), ..row() }, "durability \"hope\""),
            (StreamRow { replicas: Some(0), ..row() }, "replicas is 0"),
            (StreamRow { max_age_seconds: Some(i64::MAX), ..row() }, "292 years"),
            (
                StreamRow { max_age_seconds: Some(60), duplicate_window_seconds: Some(61), ..row() },
                "duplicate_window_seconds 61",
            ),
        ] {
            let error = Wanted::parse(&wrong).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn patterns_overlap_and_cover_token_by_token() {
        for (a, b, overlaps, a_covers_b) in [
            ("a", "a", true, true),
            ("a", "b", false, false),
            ("a.*", "a.b", true, true),
            ("a.b", "a.*", true, false),
            ("a.*", "*.b", true, false),
            ("a.*", "a.b.c", false, false),
            ("a.>", "a", false, false),
            ("a.>", "a.b.c", true, true),
            ("a.*", "a.>", true, false),
            ("a.>", "a.*", true, true),
            ("a.>", "a.>", true, true),
        ] {
            assert_eq!(subject::overlaps(a, b), overlaps, "{a} {b}");
            assert_eq!(subject::overlaps(b, a), overlaps, "{b} {a}");
            assert_eq!(subject::covers(a, b), a_covers_b, "{a} {b}");
        }
    }

    #[test]
    fn answers_that_lack_something_are_errors() {
        for wrong in [json!(null), json!({}), json!({ "config": {}, "created": "soon" })] {
            assert!(parse_state(&wrong).is_err(), "{wrong}");
        }
    }
}
