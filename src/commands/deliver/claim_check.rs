//! A message that is a claim check: its payload is in an object store.
//!
//! In: the message's headers and body. Out: the payload, verified, with its share of the memory that payloads may take at a time.

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::SemaphorePermit;

use super::worker::Worker;
use crate::{
    error::{Error, Result},
    nats::objects,
};

/// What the room for payloads is counted in, in bytes.
pub const ROOM_UNIT: usize = 1024;

/// A payload, and its share of the room until it is dropped.
pub struct Fetched<'w> {
    /// What was published, had it not been too large.
    pub payload: Bytes,
    _room: SemaphorePermit<'w>,
}

/// The body of a claim check, as far as it matters here.
#[derive(Deserialize)]
struct Body {
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    bytes: usize,
}

/// Fetches `object` (`bucket/name`), of this SHA-256, for the message with this body.
///
/// # Errors
/// It is too large, not there (any more), or not what was put there.
pub async fn fetch<'w>(worker: &'w Worker, object: &str, sha256: &str, body: &[u8]) -> Result<Fetched<'w>> {
    let most = worker.settings.max_object_bytes;
    let fetching = || format!("fetch the payload {object:?} that the message stands for");
    let bytes = serde_json::from_slice::<Body>(body).map(|body| body.object.bytes).unwrap_or(most);
    if bytes > most {
        return Err(Error::config(format!("{}: it has {bytes} bytes, deliver.max_object_bytes is {most}", fetching())));
    }
    let (bucket, name) =
        object.split_once('/').ok_or_else(|| Error::config(format!("{}: no bucket/name", fetching())))?;
    let units = u32::try_from(bytes.div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
    let room = worker.object_room.acquire_many(units).await;
    let room = room.map_err(|_| Error::unavailable(fetching()))?;
    let payload =
        objects::get(&worker.control, bucket, name, bytes).await.map_err(|error| error.context(fetching()))?;
    let payload = payload.ok_or_else(|| {
        Error::unavailable(format!("{}: it is not there", fetching()))
            .hint("its bucket keeps objects for a while only (max_age), or somebody has deleted it")
    })?;
    if !objects::is_sha256_of(sha256, &payload) {
        return Err(Error::unavailable(format!("{}: its SHA-256 is another one than {sha256}", fetching())));
    }
    Ok(Fetched { payload, _room: room })
}
