//! The durable pull consumers that a group of workers shares: one for each webhook and stream.
//!
//! In: a webhook. Out: a consumer that has all of its events. Always holds: a consumer's subjects only ever grow, for what
//! was published under an old subject must still come; and only that of a webhook that is deleted and has nothing left is
//! removed.

use serde_json::{Value, json};

use super::{lane::Lane, settings::DeliverFrom, worker::Worker};
use crate::{
    deliver::webhook::{Webhook, cover},
    error::{Error, Result},
    nats::control::{ApiError, Control},
};

/// JetStream's answer for a consumer that is not there.
const NO_CONSUMER: u64 = 10014;

/// `<group>-<webhook_id>`
pub fn name(group: &str, webhook_id: i32) -> String {
    format!("{group}-{webhook_id}")
}

/// Whether the consumer has to be brought up to date.
pub fn differs(old: &Webhook, new: &Webhook) -> bool {
    (&old.subjects, old.is_ordered, &old.name) != (&new.subjects, new.is_ordered, &new.name)
}

/// The streams that take any of these subjects.
pub async fn streams(control: &Control, subjects: &[String]) -> Result<Vec<String>> {
    let mut streams = Vec::new();
    for subject in subjects {
        let attempted = || format!("look for the stream of {subject}");
        streams.extend(names(control, "STREAM.NAMES", json!({ "subject": subject }), "streams", attempted).await?);
    }
    streams.sort();
    streams.dedup();
    Ok(streams)
}

/// The group's consumers that are there, each by its webhook and stream, whatever the webhooks' subjects lead to now: one that was
/// moved while no worker ran has left its events in the stream before.
pub async fn of_group(control: &Control, group: &str) -> Result<Vec<(i32, String)>> {
    let mut consumers = Vec::new();
    let attempted = || "list the streams".to_owned();
    for stream in names(control, "STREAM.NAMES", json!({}), "streams", attempted).await? {
        let attempted = || format!("list the consumers of stream {stream:?}");
        for name in names(control, &format!("CONSUMER.NAMES.{stream}"), json!({}), "consumers", attempted).await? {
            let id = name.strip_prefix(group).and_then(|rest| rest.strip_prefix('-')?.parse().ok());
            consumers.extend(id.map(|id: i32| (id, stream.clone())));
        }
    }
    Ok(consumers)
}

/// All names that a request of JetStream's API lists, page by page.
async fn names(
    control: &Control,
    request: &str,
    mut body: Value,
    field: &str,
    attempted: impl Fn() -> String,
) -> Result<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    loop {
        body["offset"] = all.len().into();
        let answer = control.api(request, &body).await?;
        let answer = answer.map_err(|error| refused(attempted(), error))?;
        let page = answer.get(field).and_then(Value::as_array).into_iter().flatten();
        let before = all.len();
        all.extend(page.filter_map(Value::as_str).map(str::to_owned));
        let total = answer.get("total").and_then(Value::as_u64).unwrap_or(0);
        if all.len() == before || all.len() as u64 >= total {
            return Ok(all);
        }
    }
}

/// Makes the consumer, or makes it what it has to be.
pub async fn ensure(worker: &Worker, stream: &str, name: &str, webhook: &Webhook) -> Result<()> {
    let attempted = || format!("consumer {name:?} of stream {stream:?}");
    let settings = &worker.settings;
    let waiting = if webhook.is_ordered { 1 } else { settings.max_waiting };
    let ack_wait = u64::try_from(settings.ack_wait.as_nanos()).unwrap_or(u64::MAX);
    let info = worker.control.api(&format!("CONSUMER.INFO.{stream}.{name}"), &Value::Null).await?;
    let mut config = match info {
        Ok(mut info) => info["config"].take(),
        Err(error) if error.err_code == NO_CONSUMER => json!({
            "durable_name": name,
            "name": name,
            "ack_policy": "explicit",
            "replay_policy": "instant",
            "max_deliver": -1,
            "deliver_policy": match settings.deliver_from {
                DeliverFrom::All => "all",
                DeliverFrom::New => "new",
            },
        }),
        Err(error) => return Err(refused(format!("read {}", attempted()), error)),
    };
    let before = config.clone();
    let mut subjects = webhook.subjects.clone();
    subjects.extend(config["filter_subject"].as_str().filter(|subject| !subject.is_empty()).map(str::to_owned));
    let more = config["filter_subjects"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    subjects.extend(more);
    let mut subjects = cover(subjects);
    let Some(object) = config.as_object_mut() else {
        return Err(Error::protocol(format!("read {}: it has no configuration", attempted())));
    };
    object.remove("filter_subject");
    object.remove("filter_subjects");
    // One subject in the one field, as the server writes it back; several in the other.
    if subjects.len() == 1 {
        object.insert("filter_subject".to_owned(), subjects.remove(0).into());
    } else {
        object.insert("filter_subjects".to_owned(), subjects.into());
    }
    object.insert("description".to_owned(), format!("walhook deliver: webhook {}", webhook.name).into());
    object.insert("ack_wait".to_owned(), ack_wait.into());
    object.insert("max_ack_pending".to_owned(), waiting.into());
    if config == before {
        return Ok(());
    }
    let request = json!({ "stream_name": stream, "config": config });
    let answer = worker.control.api(&format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), &request).await?;
    answer.map_err(|error| refused(format!("make {}", attempted()), error))?;
    tracing::info!(webhook = webhook.name, stream, consumer = name, "consumer ready");
    Ok(())
}

/// Removes the consumer of a webhook that is no more, if nothing is left in it.
pub async fn retire(lane: &Lane) -> Result<bool> {
    let place = format!("{}.{}", lane.stream, lane.consumer);
    let control = &lane.worker.control;
    let info = match control.api(&format!("CONSUMER.INFO.{place}"), &Value::Null).await? {
        Ok(info) => info,
        Err(error) if error.err_code == NO_CONSUMER => return Ok(true),
        Err(error) => return Err(refused(format!("read consumer {:?}", lane.consumer), error)),
    };
    if info["num_pending"] != 0 || info["num_ack_pending"] != 0 {
        return Ok(false);
    }
    match control.api(&format!("CONSUMER.DELETE.{place}"), &Value::Null).await? {
        Err(error) if error.err_code != NO_CONSUMER => {
            Err(refused(format!("delete consumer {:?}", lane.consumer), error))
        }
        _ => {
            tracing::info!(consumer = lane.consumer, "its webhook was deleted and nothing is left: consumer deleted");
            Ok(true)
        }
    }
}

fn refused(attempted: String, error: ApiError) -> Error {
    let is_away = matches!(error.code, 503 | 500 | 408);
    let error = (if is_away { Error::unavailable(attempted) } else { Error::config(attempted) }).caused_by(error);
    if is_away { error } else { error.hint("See the stream's and the consumer's configuration: nats consumer info") }
}
