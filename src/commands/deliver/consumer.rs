//! The durable pull consumers that a group of workers shares: one for each webhook and stream.
//!
//! In: a webhook. Out: a consumer that has all of its events. Always holds: a consumer's subjects only ever grow, for what
//! was published under an old subject must still come; and only that of a webhook that is deleted and has nothing left is
//! removed.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::{lane::Lane, settings::DeliverFrom, worker::Worker};
use crate::{
    calendar::POSTGRES_EPOCH_US,
    deliver::webhook::{Webhook, cover},
    error::{Error, Kind, Result},
    nats::{
        control::{ApiError, Control},
        handshake::ServerInfo,
        owner::{self, Owner, Use},
    },
    route::{payload::write_timestamp, subject},
};

/// JetStream's answer for a consumer that is not there.
const NO_CONSUMER: u64 = 10014;
/// JetStream's answers where a workqueue stream has a consumer that takes some of the same subjects, or all.
const NOT_UNIQUE: [u64; 2] = [10099, 10100];

const NO_STREAM: u64 = 10059;
/// JetStream lists some hundreds of names on a page; past so many pages a list has no end.
const PAGES_MAX: usize = 10_000;
/// What to do where a stream is another database's.
const ANOTHERS: &str = "Let this database publish into a stream of its own, by a subject prefix of its own; a worker without a database \
                        chooses by --database-id";

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

/// All streams of the account.
pub async fn all_streams(control: &Control) -> Result<Vec<String>> {
    names(control, "STREAM.NAMES", json!({}), "streams", || "list the streams".to_owned()).await
}

/// All consumers of a stream, as JetStream has them.
pub async fn listed(control: &Control, stream: &str) -> Result<Vec<Value>> {
    let attempted = || format!("list the consumers of stream {stream:?}");
    let mut all = Vec::new();
    loop {
        let answer = control.api(&format!("CONSUMER.LIST.{stream}"), &json!({ "offset": all.len() })).await?;
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.err_code == NO_STREAM => return Ok(all),
            Err(error) => return Err(refused(attempted(), error)),
        };
        let total = answer["total"].as_u64().unwrap_or(0);
        let page = answer["consumers"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let is_last = page.is_empty();
        all.extend(page);
        if is_last || all.len() as u64 >= total {
            return Ok(all);
        }
    }
}

/// Whether the stream is ours to take events from. One whose metadata this user may not read passes here: its subscription asks for
/// the same, calls nothing from it, and says in the log which right is missing.
///
/// # Errors
/// It is another database's; JetStream cannot be asked.
pub async fn check_stream(control: &Control, stream: &str, owner: Option<&Owner>) -> Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    let metadata = match control.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await {
        Ok(Ok(info)) => owner::metadata(&info["config"]),
        Ok(Err(error)) if error.err_code == NO_STREAM => return Ok(()),
        Ok(Err(error)) => return Err(refused(format!("read stream {stream:?}"), error)),
        Err(error) if error.kind() == Kind::Permission => return Ok(()),
        Err(error) => return Err(error),
    };
    // Events of several databases are told apart by their sources; where only others' are noted, none of ours are there.
    let usage = if owner::database_of(&metadata, &owner.source).is_some() { Use::Shared } else { Use::Alone };
    owner.check(&format!("stream {stream:?}"), &metadata, usage, ANOTHERS).map(drop)
}

/// The group's consumers that are there, each by its webhook and stream, whatever the webhooks' subjects lead to now: one that was
/// moved while no worker ran has left its events in the stream before. Not those in streams of other databases.
pub async fn of_group(control: &Control, group: &str, owner: Option<&Owner>) -> Result<Vec<(i32, String)>> {
    let mut consumers = Vec::new();
    for stream in all_streams(control).await? {
        match check_stream(control, &stream, owner).await {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::Untrusted => continue,
            Err(error) => return Err(error),
        }
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
    for _ in 0..PAGES_MAX {
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
    Err(Error::protocol(format!("{}: the list does not end after {} names", attempted(), all.len())))
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
    if let Some(owner) = worker.owner.get() {
        let hint = format!("Choose another --group than {:?}", settings.group);
        owner.check(&attempted(), &owner::metadata(&config), Use::Alone, &hint)?;
    }
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
    if let Some(owner) = worker.owner.get() {
        owner.sign(object);
    }
    if config == before {
        return Ok(());
    }
    let request = json!({ "stream_name": stream, "config": config });
    let answer = worker.control.api(&format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), &request).await?;
    match answer {
        Ok(_) => {}
        Err(error) if NOT_UNIQUE.contains(&error.err_code) => return Err(not_unique(worker, stream, webhook).await),
        Err(error) => return Err(refused(format!("make {}", attempted()), error)),
    }
    tracing::info!(webhook = webhook.name, stream, consumer = name, "consumer ready");
    Ok(())
}

/// Whether the stream deletes a message once one consumer has acknowledged it, and the sequence of its last message.
///
/// # Errors
/// JetStream cannot be asked, or does not let us ask: then nothing may be acknowledged for others.
pub async fn look_at(control: &Control, stream: &str) -> Result<(bool, u64)> {
    let request = format!("STREAM.INFO.{stream}");
    let attempted = || format!("read the retention of stream {stream:?}");
    let hint = || format!("a worker publishes on $JS.API.{request}; docs/deliver.md lists what it needs in NATS");
    let answer = control.api(&request, &Value::Null).await.map_err(|error| error.context(attempted()).hint(hint()))?;
    let info = answer.map_err(|error| refused(attempted(), error))?;
    Ok((info["config"]["retention"] == "workqueue", info["state"]["last_seq"].as_u64().unwrap_or(0)))
}

/// Why a workqueue stream refuses a webhook's consumer: who has its subjects, what becomes of its events, what to do.
async fn not_unique(worker: &Worker, stream: &str, webhook: &Webhook) -> Error {
    let attempted = format!(
        "webhook {:?} cannot have a consumer of its own: stream {stream:?} is a workqueue, which allows one consumer for a subject",
        webhook.name
    );
    let (other, subject) = match overlapping(worker, stream, webhook).await {
        Ok(Some(found)) => found,
        Ok(None) => return Error::unavailable(attempted),
        Err(error) => return Error::unavailable(attempted).caused_by(error),
    };
    let own = own_subject(webhook);
    let statement = format!("SELECT rule_webhook_enable_nats({}, '{}')", webhook.webhook_id, own.replace('\'', "''"));
    let id = other.strip_prefix(&worker.settings.group).and_then(|rest| rest.strip_prefix('-')?.parse::<i32>().ok());
    let known = id.and_then(|id| worker.all.borrow().as_ref()?.webhooks.get(&id).cloned());
    let (why, hint) = match known {
        Some(known) => (
            format!(
                "consumer {other:?} of webhook {:?} takes {subject}; the events that come that way are called by its workers, side by \
                 side with its own and only while it is enabled; those on other subjects wait",
                known.webhook.name
            ),
            format!("give it a subject of its own: {statement}, or a p_subject_template for its links"),
        ),
        None => (
            format!("consumer {other:?} takes {subject}; events on it wait"),
            format!(
                "give it a subject of its own: {statement}; or delete consumer {other:?} of stream {stream:?} if nobody needs it"
            ),
        ),
    };
    Error::config(attempted).caused_by(why).hint(hint)
}

/// A subject beside the webhook's first one, with its name in the last place.
fn own_subject(webhook: &Webhook) -> String {
    let first = webhook.subjects.first().map_or("webhooks.x", String::as_str);
    let mut name = Vec::new();
    subject::push_token(webhook.name.as_bytes(), &mut name);
    let name = String::from_utf8_lossy(&name).into_owned();
    let before = first.rsplit_once('.').map_or(first, |(before, _)| before);
    let own = format!("{before}.{name}");
    if webhook.subjects.contains(&own) { format!("{own}-{}", webhook.webhook_id) } else { own }
}

/// Another consumer of the stream that takes one of the webhook's subjects, and its own pattern for it.
async fn overlapping(worker: &Worker, stream: &str, webhook: &Webhook) -> Result<Option<(String, String)>> {
    let attempted = || format!("list the consumers of stream {stream:?}");
    let own = name(&worker.settings.group, webhook.webhook_id);
    let all = names(&worker.control, &format!("CONSUMER.NAMES.{stream}"), json!({}), "consumers", attempted).await?;
    for consumer in all.into_iter().filter(|consumer| *consumer != own) {
        let info = worker.control.api(&format!("CONSUMER.INFO.{stream}.{consumer}"), &Value::Null).await?;
        let Ok(info) = info else { continue };
        let mut patterns: Vec<&str> =
            info["config"]["filter_subjects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        patterns.extend(info["config"]["filter_subject"].as_str().filter(|subject| !subject.is_empty()));
        if patterns.is_empty() {
            patterns.push(">");
        }
        let taken = patterns.iter().find(|pattern| webhook.subjects.iter().any(|own| subject::overlaps(pattern, own)));
        if let Some(pattern) = taken {
            return Ok(Some((consumer, (*pattern).to_owned())));
        }
    }
    Ok(None)
}

/// Holds the consumer back for all workers of the group, until the receiver that has asked for it may be called again. Only
/// nats-server 2.11 and newer can; elsewhere each worker waits by itself, once it has been told.
pub async fn pause(lane: Arc<Lane>, wait: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A wait that another worker has been told, and that ends later, stays.
    let info = format!("CONSUMER.INFO.{}.{}", lane.stream, lane.consumer);
    let remaining = match lane.worker.control.api(&info, &Value::Null).await {
        Ok(Ok(info)) => info["pause_remaining"].as_u64().map_or(Duration::ZERO, Duration::from_nanos),
        _ => Duration::ZERO,
    };
    if remaining < wait {
        let mut until = String::new();
        let micros = i64::try_from((now + wait).as_micros()).unwrap_or(i64::MAX);
        write_timestamp(micros.saturating_sub(POSTGRES_EPOCH_US), &mut until);
        set_pause(&lane, json!({ "pause_until": until })).await;
    }
}

/// Ends that.
pub async fn resume(lane: Arc<Lane>) {
    set_pause(&lane, json!({})).await;
}

async fn set_pause(lane: &Lane, body: Value) {
    let version = lane.worker.client.server_info().version;
    if !(ServerInfo { version, ..ServerInfo::default() }).at_least(2, 11, 0) {
        return;
    }
    let request = format!("CONSUMER.PAUSE.{}.{}", lane.stream, lane.consumer);
    let problem = match lane.worker.control.api(&request, &body).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) if error.err_code == NO_CONSUMER => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    lane.note_once(format!(
        "Retry-After holds back this worker alone, not the others of its group: publish on $JS.API.{request}: {problem}"
    ));
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
    if is_away {
        error
    } else {
        error.hint("compare the output of `nats consumer info` for this consumer with that of `nats stream info` for its stream")
    }
}
