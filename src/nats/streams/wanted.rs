//! What a row of `rule_nats_streams` wants of its stream, checked.

use serde_json::{Value, json};

use crate::{
    error::{Error, Result},
    route::{subject, tables::StreamRow},
};

pub(super) const NANOS_PER_SECOND: i64 = 1_000_000_000;
const DUPLICATE_WINDOW_SECONDS: i64 = 120; // JetStream's own default

/// What a row wants, checked. `None`: as it is, or the default.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) subjects: Vec<String>,
    pub(super) description: Option<String>,
    pub(super) storage: Option<String>,
    pub(super) max_msgs: Option<i64>,
    pub(super) max_bytes: Option<i64>,
    pub(super) max_age_ns: Option<i64>,
    pub(super) retention: Option<String>,
    pub(super) discard: Option<String>,
    pub(super) replicas: Option<i64>,
    pub(super) duplicate_window_ns: Option<i64>,
    pub(super) ordering: String,
    pub(super) allow_atomic: Option<bool>,
}

/// In the metadata of streams that walhook has made. Its row says what they are; of others only what it says besides its defaults.
const MADE: &str = "walhook.made";

/// Whether walhook made the stream.
pub fn is_made_by_us(info: &Value) -> bool {
    info["config"]["metadata"][MADE].as_str() == Some("true")
}

impl Wanted {
    /// Only what differs from the defaults of `rule_nats_streams` and of `rule_nats_stream_create`.
    pub(super) fn without_defaults(&self) -> Wanted {
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

    pub(super) fn parse(row: &StreamRow) -> Result<Wanted> {
        parse_row(row).map_err(|error| error.context(format!("stream {:?} in rule_nats_streams", row.stream_name)))
    }

    /// The configuration of a new stream.
    pub(super) fn create(&self) -> Value {
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
pub(super) fn check_name(name: &str) -> Result<()> {
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
