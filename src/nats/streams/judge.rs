//! What a stream is worth to us: refused where an ack of it never means that a message is stored, warned of where it may not,
//! and its limits are logged where they will be felt.
//!
//! In: the stream's configuration as JetStream has it, and the ordering that its row wants. Out: an error, warnings, or notes
//! for the log. Of what else a stream may have, nothing matters to a writer: `deny_delete` and `deny_purge` (we delete nothing),
//! `allow_rollup_hdrs` (no message of ours asks for one), `allow_direct` (we never read by it), compression, placement.

use std::time::Duration;

use serde_json::{Map, Value};

use super::info::{StreamState, flag, number, text};
use crate::error::{Error, Result};

/// Whether an ack of this stream means that the message is stored. Errors where it never can be, warnings where it may not.
pub(super) fn judge(config: &Map<String, Value>, state: &StreamState, ordering: &str) -> Result<Vec<String>> {
    let name = &state.name;
    let useless = |what: &str, hint: &str| Err(Error::config(format!("stream {name:?} {what}")).hint(hint.to_owned()));
    if flag(config, "sealed") {
        return useless(
            "is sealed and takes no messages",
            "Use a stream of another name: a sealed stream stays sealed",
        );
    }
    if flag(config, "no_ack") {
        return useless(
            "acknowledges nothing (no_ack)",
            "Set no_ack of the stream to false, or use a stream of another name: walhook needs acknowledgements",
        );
    }
    if config.get("mirror").is_some_and(|mirror| !mirror.is_null()) {
        return useless("is a mirror and takes no messages", "Name the mirrored stream");
    }
    if flag(config, "allow_msg_counter") {
        return useless("counts (allow_msg_counter) and takes no plain messages", "Use another stream");
    }
    let mut warnings = Vec::new();
    let mut warn = |text: &str| warnings.push(format!("stream {name:?} {text}"));
    match state.retention.as_str() {
        "interest" => warn(
            "has interest retention: without a consumer it acknowledges messages and stores none, and stored ones go when \
             all have acknowledged them; prefer limits",
        ),
        "workqueue" => warn(
            "has workqueue retention: messages go when acknowledged, and each subject feeds one consumer; prefer limits",
        ),
        _ => {}
    }
    if text(config, "persist_mode", "default") == "async" {
        warn("writes after it acknowledges (persist_mode async): a crash of the server loses acknowledged messages");
    }
    if state.storage == "memory" {
        warn("lives in memory: it is gone when its servers stop");
    }
    let is_strict = ordering == "strict";
    if is_strict && config.get("sources").and_then(Value::as_array).is_some_and(|all| !all.is_empty()) {
        warn("gathers from other streams, which break into strict ordering; set ordering to shared");
    }
    // The server writes them itself, wherever the last message of a subject has run out.
    if is_strict && number(config, "subject_delete_marker_ttl", 0) > 0 {
        warn(
            "gets delete markers of its server (subject_delete_marker_ttl), which break into strict ordering; turn them off, \
             or set ordering to shared",
        );
    }
    if config.get("subject_transform").is_some_and(|transform| !transform.is_null()) {
        warn(
            "stores messages under other subjects (subject_transform) than links and webhooks name; consumers see those",
        );
    }
    if state.discard == "new" && flag(config, "discard_new_per_subject") {
        warn(
            "refuses more than max_msgs_per_subject (discard_new_per_subject): once one subject is full, all that comes \
             behind its next event waits too",
        );
    }
    Ok(warnings)
}

/// What will be felt of a stream's limits. No warnings: they are what rows have by default.
pub(super) fn limits(config: &Map<String, Value>, state: &StreamState) -> Vec<String> {
    let limited =
        ["max_msgs", "max_bytes", "max_msgs_per_subject"].into_iter().filter(|key| number(config, key, -1) > 0);
    let limited: Vec<_> = limited.map(|key| format!("{key} {}", number(config, key, -1))).collect();
    let mut notes = Vec::new();
    if !limited.is_empty() {
        let limited = limited.join(", ");
        notes.push(match state.discard.as_str() {
            "new" => format!("once it has {limited}, it takes no more (discard new) and publishing waits"),
            _ => format!(
                "it drops its oldest messages beyond {limited}, read or not; discard_policy new holds publishing back instead"
            ),
        });
    }
    if let Ok(age @ 1..) = u64::try_from(number(config, "max_age", 0)) {
        notes.push(format!("its messages go after {:?} (max_age), read or not", Duration::from_nanos(age)));
    }
    if let Some(size) = state.max_msg_size {
        notes.push(format!(
            "it takes messages of at most {size} bytes with their headers (max_msg_size); on_error of the webhook \
             says what becomes of larger ones"
        ));
    }
    notes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{error::Kind, nats::streams::parse_state};

    /// A stream that is as rows make it, with `changes` to its configuration.
    fn stream(changes: &Value) -> (Map<String, Value>, StreamState) {
        let mut info = json!({
            "config": { "name": "WEBHOOKS", "subjects": ["webhooks.>"], "storage": "file", "retention": "limits",
                "discard": "old", "num_replicas": 1 },
            "created": "2026-11-23T00:00:00Z",
            "state": { "messages": 0, "bytes": 0, "first_seq": 1, "last_seq": 0 },
        });
        for (key, value) in changes.as_object().unwrap() {
            info["config"][key] = value.clone();
        }
        (info["config"].as_object().unwrap().clone(), parse_state(&info).unwrap())
    }

    #[test]
    fn a_stream_whose_acks_mean_nothing_is_refused_or_warned_of() {
        let judged = |changes: &Value, ordering: &str| {
            let (config, state) = stream(changes);
            judge(&config, &state, ordering)
        };
        assert_eq!(judged(&json!({}), "strict").unwrap(), [""; 0]);
        for (never, words) in [
            (json!({ "sealed": true }), "sealed"),
            (json!({ "no_ack": true }), "no_ack"),
            (json!({ "mirror": { "name": "A" } }), "mirror"),
            (json!({ "allow_msg_counter": true }), "counts"),
        ] {
            let error = judged(&never, "strict").unwrap_err();
            assert!(error.kind() == Kind::Config && error.to_string().contains(words), "{error}");
        }
        for (unwise, words) in [
            (json!({ "retention": "interest" }), "stores none"),
            (json!({ "retention": "workqueue" }), "one consumer"),
            (json!({ "persist_mode": "async" }), "after it acknowledges"),
            (json!({ "storage": "memory" }), "in memory"),
            (json!({ "sources": [{ "name": "A" }] }), "shared"),
            (json!({ "subject_delete_marker_ttl": 5 }), "delete markers"),
            (json!({ "subject_transform": { "src": "a.>", "dest": "b.>" } }), "under other subjects"),
            (json!({ "discard": "new", "discard_new_per_subject": true }), "one subject is full"),
        ] {
            let warnings = judged(&unwise, "strict").unwrap();
            assert!(warnings.len() == 1 && warnings[0].contains(words), "{words}: {warnings:?}");
        }
        // Who shares a stream minds no other writers; and these are nobody's matter.
        for harmless in [
            json!({ "sources": [{ "name": "A" }], "subject_delete_marker_ttl": 5 }),
            json!({ "deny_delete": true, "deny_purge": true, "allow_rollup_hdrs": true, "allow_direct": true }),
        ] {
            assert_eq!(judged(&harmless, "shared").unwrap(), [""; 0], "{harmless}");
        }
    }

    #[test]
    fn a_stream_tells_what_its_limits_will_do_without_a_warning() {
        let described = |changes: Value| {
            let (config, state) = stream(&changes);
            assert_eq!(judge(&config, &state, "strict").unwrap(), [""; 0]);
            limits(&config, &state).join("; ")
        };
        assert!(
            described(json!({ "max_msgs": 10, "max_bytes": 5 }))
                .contains("beyond max_msgs 10, max_bytes 5, read or not")
        );
        assert!(described(json!({ "max_msgs": 10, "discard": "new" })).contains("publishing waits"));
        assert!(described(json!({ "max_age": 60_000_000_000_u64 })).contains("after 60s"));
        assert!(described(json!({ "max_msg_size": 1000 })).contains("at most 1000 bytes"));
        assert_eq!(described(json!({})), "");
    }
}
