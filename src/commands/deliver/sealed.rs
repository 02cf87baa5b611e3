//! A message whose payload is sealed.
//!
//! In: the message, and the keys of this process. Out: what was sealed; or that its key is not here, with which it is not an attempt to
//! call: the event waits. Always holds: what is opened is the event that the message's own ids name.

use std::time::Duration;

use async_nats::Message;

use super::{claim_check::Fetched, lane::Lane, worker::Worker};
use crate::{
    deliver::message::Call,
    route::seal::{self, Header, Unopened},
};

/// How long an event waits whose key is not here.
pub const KEY_WAIT: Duration = Duration::from_secs(5);

/// What a message stands for, where that is not its payload as it is.
pub struct Content<'w> {
    /// As walhook has written it.
    pub payload: bytes::Bytes,
    /// The key before an update that has changed it.
    pub old_key: Option<String>,
    /// Its share of the memory, until it is dropped.
    _fetched: Option<Fetched<'w>>,
}

fn header_of<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
    message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
}

/// Whether the payload is sealed.
pub fn is_sealed(message: &Message) -> bool {
    header_of(message, seal::HEADER).is_some()
}

/// Why the message waits: its key is not here.
pub fn missing_key(lane: &Lane, message: &Message) -> Option<String> {
    let header = Header::parse(header_of(message, seal::HEADER)?).ok()?;
    let keys = &lane.worker.seal_keys;
    let has_it = keys.with(|keys| match keys.has(header.key) {
        true => Ok(()),
        false => Err(keys.missing(header.key)),
    });
    let why = has_it.err()?;
    Some(format!("events of webhook {:?} wait: {why}", lane.now().webhook.name))
}

/// The payload that lies in the message itself, opened, to be looked into.
pub fn peek(worker: &Worker, message: &Message) -> Option<Vec<u8>> {
    let header = header_of(message, seal::HEADER)?;
    worker.seal_keys.with(|keys| keys.open(header, &message.payload)).ok()
}

/// The old key of a message, opened.
pub fn old_key(worker: &Worker, message: &Message) -> Option<String> {
    let (header, old_key) = (header_of(message, seal::HEADER)?, header_of(message, seal::OLD_KEY_HEADER)?);
    let opened = worker.seal_keys.with(|keys| keys.open_old_key(header, old_key)).ok()?;
    String::from_utf8(opened).ok()
}

/// What a message of the feed stands for; `fetched` is its payload, if that was in an object store. `None`: its own payload as it is.
///
/// # Errors
/// It cannot be opened, or is another event's.
pub fn content<'w>(
    worker: &Worker,
    message: &Message,
    call: &Call<'_>,
    fetched: Option<Fetched<'w>>,
) -> Result<Option<Content<'w>>, String> {
    let Some(value) = header_of(message, seal::HEADER) else {
        let content =
            |fetched: Fetched<'w>| Content { payload: fetched.payload.clone(), old_key: None, _fetched: Some(fetched) };
        return Ok(fetched.map(content));
    };
    let header = Header::parse(value)?;
    let ids = [Some(&*call.event_id), header_of(message, "Walhook-Retry-Of"), header_of(message, "Walhook-Replay-Of")];
    if !ids.contains(&Some(header.event_id)) {
        return Err(format!("its payload is sealed for another event, {}", header.event_id));
    }
    let sealed = fetched.as_ref().map_or(&message.payload, |fetched| &fetched.payload);
    let failed = |why: Unopened| format!("open the sealed payload: {why}");
    let payload = worker.seal_keys.with(|keys| keys.open(value, sealed)).map_err(failed)?;
    Ok(Some(Content { payload: payload.into(), old_key: old_key(worker, message), _fetched: fetched }))
}
