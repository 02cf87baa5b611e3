//! How a stream becomes what its row wants: what is changed, what is left and why.

use serde_json::{Map, Value, json};

use super::{
    info::{Info, number, parse_info, strings, text, unix_ns, unreadable},
    wanted::Wanted,
};
use crate::{
    error::{Error, Result},
    route::subject,
};

/// How to make a stream what its row wants.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The whole new configuration; `None` where nothing differs.
    pub(super) config: Option<Value>,
    /// The row's columns that differ.
    pub(super) changed: Vec<&'static str>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn plan(wanted: &Wanted, info: &Value) -> Result<Plan> {
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
        .hint("Use the mirrored stream's name, or the name of another stream, in the row of rule_nats_streams"));
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
