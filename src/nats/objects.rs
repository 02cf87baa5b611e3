//! The object store, as far as claim checks need it: payloads put into a bucket and got back.
//!
//! In: a bucket, a name, the payload. Out: its SHA-256, once every chunk and the object's own entry are acknowledged. The layout is
//! that of every NATS client (ADR-20, "JetStream based object stores"): stream `OBJ_<bucket>`, chunks on `$O.<bucket>.C.<nuid>`, the
//! entry on `$O.<bucket>.M.<name in base64>`. Always holds: an object is whole or not there; putting it again replaces it,
//! and takes away what an attempt that was cut off has left. The payload is never copied.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use bytes::Bytes;
use futures_util::StreamExt;
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use std::time::Duration;

use super::{
    ack::Ack,
    codes::named::{
        MESSAGE_EXCEEDS_MAXIMUM, NO_MESSAGE_FOUND, NOT_ENABLED, NOT_ENABLED_FOR_ACCOUNT, STREAM_NAME_EXIST,
        STREAM_NOT_FOUND, STREAM_SEALED, WRONG_LAST_SEQUENCE,
    },
    control::{ApiError, Control, REQUEST_TIMEOUT, forbidden},
};
use crate::{
    error::{Error, Kind, Result},
    route::digits::push_bytes,
};

/// What an entry's metadata says of who put it.
const DATABASE: &str = "walhook.database";
const EPOCH: &str = "walhook.epoch";

/// What the stream of a bucket says of itself that walhook made.
pub const DESCRIPTION: &str = "walhook: payloads too large for a message (on_error = 'object_store')";

/// As other clients have it.
const CHUNK_BYTES: usize = 128 * 1024;
/// Chunks that are not acknowledged yet.
const IN_FLIGHT_MAX: usize = 16;

/// A bucket, and how it is made where it is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// How many servers keep it.
    pub replicas: i32,
    /// How long its objects stay; zero: for ever.
    pub max_age: Duration,
}

/// Why a name cannot be a bucket's; `None` if it can.
pub fn invalid_bucket(name: &str) -> Option<String> {
    let valid = !name.is_empty()
        && name.len() <= 200
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    (!valid).then(|| format!("{name:?} cannot be the name of a bucket: 1 to 200 of the characters A-Z a-z 0-9 _ -"))
}

/// Who puts an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// The database.
    pub database_id: String,
    /// The count of the run.
    pub epoch: u64,
}

/// Puts `payload` into the bucket, made if it is missing. Returns its SHA-256 in hexadecimal digits.
///
/// # Errors
/// [`crate::error::Kind::Unavailable`] where it may go well later, the bucket being full included; [`crate::error::Kind::Fenced`]
/// where a newer run has put it; another kind where it never will as things are.
pub async fn put(control: &Control, bucket: &Bucket, name: &str, payload: &Bytes, writer: &Writer) -> Result<String> {
    let attempted = format!("put {} bytes into the object store {:?} as {name:?}", payload.len(), bucket.name);
    upload(control, bucket, name, payload, writer).await.map_err(|error| error.context(attempted))
}

async fn upload(control: &Control, bucket: &Bucket, name: &str, payload: &Bytes, writer: &Writer) -> Result<String> {
    if let Some(why) = invalid_bucket(&bucket.name) {
        return Err(Error::config(why).hint("Correct object_bucket of its row in rule_nats_config"));
    }
    let key = URL_SAFE.encode(name);
    let chunks_of_it = format!("$O.{}.C.{key}.*", bucket.name);
    let info = ensure(control, bucket, &chunks_of_it).await?;
    let limit = |key: &str| info["config"][key].as_u64().filter(|limit| *limit > 0);
    if let Some(max_bytes) = limit("max_bytes").filter(|max| *max < payload.len() as u64) {
        return Err(Error::config(format!("the bucket takes {max_bytes} bytes in all (max_bytes)"))
            .hint(format!(
                "Raise max_bytes of the stream OBJ_{}, or choose another bucket: UPDATE rule_nats_config SET object_bucket = …",
                bucket.name
            )));
    }
    let subject = format!("$O.{}.M.{key}", bucket.name);
    // An attempt that was cut off has left chunks, or all of it.
    let before = entry_before(control, bucket, &subject, writer).await?;
    if let Some(Before { digest: Some(digest), nuid, chunks, .. }) = &before {
        let sha256 = ring::digest::digest(&SHA256, payload);
        if *digest == digest_of(sha256.as_ref()) && *chunks == chunks_there(&info, bucket, nuid.as_deref()) {
            let its = format!("$O.{}.C.{}", bucket.name, nuid.as_deref().unwrap_or_default());
            for left in info["state"]["subjects"].as_object().into_iter().flat_map(serde_json::Map::keys) {
                if *left != its {
                    purge(control, bucket, name, &json!({ "filter": left })).await;
                }
            }
            return Ok(hexadecimal(sha256.as_ref()));
        }
    }
    let most = control.client().server_info().max_payload.min(limit("max_msg_size").map_or(usize::MAX, to_usize));
    let nuid = format!("{key}.{:016x}", fastrand::u64(..));
    let chunks = format!("$O.{}.C.{nuid}", bucket.name);
    let sent = send(control, &chunks, payload, CHUNK_BYTES.min(most.max(1))).await?;
    let entry = json!({
        "name": name,
        "description": "walhook: the payload of the event of this name",
        "bucket": bucket.name,
        "nuid": nuid,
        "size": payload.len(),
        "chunks": sent.chunks,
        "digest": digest_of(&sent.digest),
        "mtime": "0001-01-01T00:00:00Z", // readers take the message's own
        "options": { "max_chunk_size": CHUNK_BYTES.min(most.max(1)) },
        "metadata": { DATABASE: writer.database_id, EPOCH: writer.epoch.to_string() },
    });
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Rollup", "sub");
    // Between reading and writing this process may have been frozen, and another one put it.
    if let Some(before) = before {
        headers.insert("Nats-Expected-Last-Subject-Sequence", before.sequence.to_string());
    }
    let outcome = control.publish(&subject, headers, entry.to_string().into()).await?;
    if let Ack::Refused { code: WRONG_LAST_SEQUENCE, .. } = outcome {
        purge(control, bucket, name, &json!({ "filter": chunks })).await;
        // Whose it is now is seen at the next attempt.
        return Err(Error::unavailable("another attempt has put it meanwhile"));
    }
    stored(outcome)?;
    // What earlier attempts have left. Where that is not allowed it goes with its age.
    if info["state"]["subjects"].as_object().is_some_and(|subjects| !subjects.is_empty()) {
        purge(control, bucket, name, &json!({ "filter": chunks_of_it, "seq": sent.first })).await;
    }
    Ok(hexadecimal(&sent.digest))
}

/// As an entry says it.
fn digest_of(sha256: &[u8]) -> String {
    format!("SHA-256={}", URL_SAFE.encode(sha256))
}

async fn purge(control: &Control, bucket: &Bucket, name: &str, request: &Value) {
    match control.api(&format!("STREAM.PURGE.OBJ_{}", bucket.name), request).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!("earlier chunks of {name} stay: {error}"),
        Err(error) => tracing::debug!("earlier chunks of {name} stay: {error}"),
    }
}

/// The entry of an object as it was before.
#[derive(Default)]
struct Before {
    /// Its sequence; 0: there is none.
    sequence: u64,
    digest: Option<String>,
    nuid: Option<String>,
    chunks: u64,
}

/// Reads it; `None` where we may not. An entry of a newer run stays, and so does one of another database.
async fn entry_before(control: &Control, bucket: &Bucket, subject: &str, writer: &Writer) -> Result<Option<Before>> {
    let found = match message(control, &bucket.name, &json!({ "last_by_subj": subject })).await {
        Ok(found) => found,
        Err(error) if error.kind() == Kind::Permission => {
            tracing::debug!("a run that was frozen may replace an object: {error}");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let Some((sequence, entry)) = found else { return Ok(Some(Before::default())) };
    let entry: Value = serde_json::from_slice(&entry).unwrap_or_default();
    let noted = |key: &str| entry["metadata"][key].as_str();
    if let Some(database) = noted(DATABASE).filter(|database| *database != writer.database_id) {
        return Err(Error::config(format!(
            "it is there already, of database {database}; this is database {}",
            writer.database_id
        ))
        .hint("Give this database a bucket of its own: rule_nats_config.object_bucket"));
    }
    if let Some(epoch) = noted(EPOCH).and_then(|epoch| epoch.parse::<u64>().ok()).filter(|epoch| *epoch > writer.epoch)
    {
        return Err(Error::new(
            Kind::Fenced,
            format!("a newer run ({epoch}) has already stored this object; this is run {}", writer.epoch),
        )
        .hint("a newer walhook has taken over; stop this one"));
    }
    let text = |key: &str| entry[key].as_str().map(str::to_owned);
    let is_there = entry["deleted"].as_bool() != Some(true);
    Ok(Some(Before {
        sequence,
        digest: text("digest").filter(|_| is_there),
        nuid: text("nuid"),
        chunks: entry["chunks"].as_u64().unwrap_or(0),
    }))
}

/// How many chunks of this number the bucket has, as its information says.
fn chunks_there(info: &Value, bucket: &Bucket, nuid: Option<&str>) -> u64 {
    let nuid = nuid.unwrap_or_default();
    info["state"]["subjects"][format!("$O.{}.C.{nuid}", bucket.name)].as_u64().unwrap_or(0)
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut digits = Vec::with_capacity(2 * bytes.len());
    push_bytes(bytes, &mut digits);
    String::from_utf8(digits).expect("they are ASCII")
}

/// The bucket's stream, made if it is missing, with how many messages it has on the subjects that `filter` names.
async fn ensure(control: &Control, bucket: &Bucket, filter: &str) -> Result<Value> {
    let stream = format!("OBJ_{}", bucket.name);
    let ask = async || control.api(&format!("STREAM.INFO.{stream}"), &json!({ "subjects_filter": filter })).await;
    match ask().await? {
        Ok(info) => return Ok(info),
        Err(error) if error.err_code == STREAM_NOT_FOUND => {}
        Err(error) => return Err(refused(error.err_code, error.to_string())),
    }
    let config = json!({
        "name": stream,
        "description": DESCRIPTION,
        "subjects": [format!("$O.{}.C.>", bucket.name), format!("$O.{}.M.>", bucket.name)],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "max_age": i64::try_from(bucket.max_age.as_nanos()).unwrap_or(0),
        "num_replicas": bucket.replicas,
        "allow_rollup_hdrs": true,
        "allow_direct": true,
    });
    let made = control
        .api(&format!("STREAM.CREATE.{stream}"), &config)
        .await
        .map_err(|error| error.context(format!("the bucket {:?} does not exist; make it", bucket.name)))?;
    match made {
        Ok(info) => {
            tracing::info!(bucket = bucket.name, "object store made");
            Ok(info)
        }
        // Somebody was faster.
        Err(error) if error.err_code == STREAM_NAME_EXIST => {
            ask().await?.map_err(|error| refused(error.err_code, error.to_string()))
        }
        Err(error @ ApiError { code: 503, .. }) => Err(Error::unavailable("make the bucket").caused_by(error)),
        Err(error) => Err(Error::config("make the bucket").caused_by(error).hint(format!(
            "Give JetStream or the account more room, or make the object store {:?} yourself",
            bucket.name
        ))),
    }
}

/// What was sent.
struct Sent {
    chunks: usize,
    /// The sequence of the first.
    first: u64,
    digest: Vec<u8>,
}

/// Sends a payload in chunks, in order, some ahead of their acks.
async fn send(control: &Control, subject: &str, payload: &Bytes, chunk_bytes: usize) -> Result<Sent> {
    let client = control.client();
    let lost = |error: String| Error::unavailable("send a chunk").caused_by(error);
    let inbox = client.new_inbox();
    let mut refusals = control.refusals();
    let mut acks = client.subscribe(format!("{inbox}.*")).await.map_err(|error| lost(error.to_string()))?;
    let chunks = payload.len().div_ceil(chunk_bytes);
    let mut sequences = vec![0; chunks];
    let mut digest = Context::new(&SHA256);
    let (mut sent, mut acked) = (0, 0);
    while acked < chunks {
        if sent < chunks && sent - acked < IN_FLIGHT_MAX {
            let chunk = payload.slice(sent * chunk_bytes..payload.len().min((sent + 1) * chunk_bytes));
            digest.update(&chunk);
            let reply = format!("{inbox}.{sent}");
            client
                .publish_with_reply(subject.to_owned(), reply, chunk)
                .await
                .map_err(|error| lost(error.to_string()))?;
            sent += 1;
            continue;
        }
        let message = tokio::select! {
            message = acks.next() => message.ok_or_else(|| lost("the connection is closed".to_owned()))?,
            text = forbidden(&mut refusals, subject) => return Err(not_allowed(subject, &text)),
            () = tokio::time::sleep(REQUEST_TIMEOUT) => {
                return Err(lost(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())));
            }
        };
        if control.is_from_another_domain(&message.payload) {
            continue;
        }
        let index = message.subject.rsplit('.').next().and_then(|token| token.parse::<usize>().ok());
        let ack = Ack::parse(message.status.map(|status| status.as_u16()), &message.payload)
            .map_err(|error| Error::protocol("read JetStream's answer to a chunk").caused_by(error))?;
        let sequence = stored(ack)?;
        if let Some(place) = index.and_then(|index| sequences.get_mut(index)) {
            *place = sequence;
            acked += 1;
        }
    }
    // A connection that was lost in between may have lost one and sent the next.
    if !sequences.is_sorted_by(|a, b| a < b) {
        return Err(lost("the chunks are not in their order".to_owned()));
    }
    let first = sequences.first().copied().unwrap_or(0);
    Ok(Sent { chunks, first, digest: digest.finish().as_ref().to_vec() })
}

pub(super) fn not_allowed(subject: &str, text: &str) -> Error {
    Error::permission(format!("publish to {subject}: the NATS server says: {text}"))
        .hint(format!("Allow this user to publish to {subject}"))
}

fn stored(ack: Ack) -> Result<u64> {
    match ack {
        Ack::Stored { sequence, .. } => Ok(sequence),
        Ack::NoResponders => Err(Error::unavailable("no JetStream answers")),
        Ack::Refused { code, description } => Err(refused(code, format!("{description} ({code})"))),
    }
}

/// A refusal, by whether time can mend it: a bucket that is full has room again when objects go.
fn refused(code: u64, text: String) -> Error {
    match code {
        MESSAGE_EXCEEDS_MAXIMUM | STREAM_SEALED => Error::config(text),
        NOT_ENABLED | NOT_ENABLED_FOR_ACCOUNT => {
            Error::config(text).hint("Enable JetStream for this account on the server")
        }
        _ => Error::unavailable(text),
    }
}

/// The object, whole and verified by its own digest; `None` where there is none. One of more than `most` bytes is an error
/// of the kind [`crate::error::Kind::Config`].
///
/// # Errors
/// It cannot be read, is not whole, or too large.
pub async fn get(control: &Control, bucket: &str, name: &str, most: usize) -> Result<Option<Bytes>> {
    let attempted = format!("get {name:?} from the object store {bucket:?}");
    download(control, bucket, name, most).await.map_err(|error| error.context(attempted))
}

async fn download(control: &Control, bucket: &str, name: &str, most: usize) -> Result<Option<Bytes>> {
    if let Some(why) = invalid_bucket(bucket) {
        return Err(Error::config(why));
    }
    let subject = format!("$O.{bucket}.M.{}", URL_SAFE.encode(name));
    let Some((_, entry)) = message(control, bucket, &json!({ "last_by_subj": subject })).await? else {
        return Ok(None);
    };
    let entry: Value =
        serde_json::from_slice(&entry).map_err(|error| Error::protocol("read the object's entry").caused_by(error))?;
    let number = |key: &str| entry[key].as_u64().map_or(0, to_usize);
    if entry["deleted"].as_bool() == Some(true) {
        return Ok(None);
    }
    let (size, chunks) = (number("size"), number("chunks"));
    if size > most {
        return Err(Error::config(format!("it has {size} bytes, more than the {most} that are taken")));
    }
    let chunks_of_it = format!("$O.{bucket}.C.{}", entry["nuid"].as_str().unwrap_or_default());
    let mut payload = Vec::with_capacity(size);
    let mut next = 1;
    for _ in 0..chunks {
        let request = json!({ "seq": next, "next_by_subj": chunks_of_it });
        let Some((sequence, chunk)) = message(control, bucket, &request).await? else { break };
        payload.extend_from_slice(&chunk);
        // Whoever may write into the bucket decides what its entry says: no more is held than that.
        if payload.len() > size {
            break;
        }
        next = sequence + 1;
    }
    let digest = digest_of(ring::digest::digest(&SHA256, &payload).as_ref());
    if payload.len() != size || entry["digest"].as_str().is_some_and(|known| known != digest) {
        return Err(Error::unavailable(
            "the object is incomplete: chunks are missing, or somebody is replacing it at this moment",
        ));
    }
    Ok(Some(payload.into()))
}

/// The objects of a database in a bucket.
pub struct Owned {
    /// Their names.
    pub names: Vec<String>,
    /// There are no others.
    pub are_all: bool,
}

/// Which objects a database has in a bucket that is there. An entry that is deleted belongs to nobody.
///
/// # Errors
/// It cannot be read.
pub async fn owned(control: &Control, bucket: &str, database_id: &str) -> Result<Owned> {
    let attempted = || format!("list the object store {bucket:?}");
    let mut owned = Owned { names: Vec::new(), are_all: true };
    let mut offset = 0;
    loop {
        let request = json!({ "subjects_filter": format!("$O.{bucket}.M.>"), "offset": offset });
        let info = control.api(&format!("STREAM.INFO.OBJ_{bucket}"), &request).await?;
        let info = info.map_err(|error| refused(error.err_code, error.to_string()).context(attempted()))?;
        let subjects: Vec<&String> =
            info["state"]["subjects"].as_object().into_iter().flat_map(|all| all.keys()).collect();
        for subject in &subjects {
            let found = message(control, bucket, &json!({ "last_by_subj": subject })).await;
            let Some((_, entry)) = found.map_err(|error| error.context(attempted()))? else { continue };
            let entry: Value = serde_json::from_slice(&entry).unwrap_or_default();
            if entry["deleted"].as_bool() == Some(true) {
                continue;
            }
            match entry["name"].as_str().filter(|_| entry["metadata"][DATABASE].as_str() == Some(database_id)) {
                Some(name) => owned.names.push(name.to_owned()),
                None => owned.are_all = false,
            }
        }
        offset += subjects.len();
        if subjects.is_empty() || info["total"].as_u64().is_none_or(|total| to_usize(total) <= offset) {
            return Ok(owned);
        }
    }
}

/// Removes an object: its entry, then its chunks.
///
/// # Errors
/// JetStream refuses.
pub async fn remove(control: &Control, bucket: &str, name: &str) -> Result<()> {
    let key = URL_SAFE.encode(name);
    for filter in [format!("$O.{bucket}.M.{key}"), format!("$O.{bucket}.C.{key}.*")] {
        let answer = control.api(&format!("STREAM.PURGE.OBJ_{bucket}"), &json!({ "filter": filter })).await?;
        answer.map_err(|error| refused(error.err_code, error.to_string()))?;
    }
    Ok(())
}

/// A message of the bucket's stream and its sequence. From the stream's leader, for a replica may not have it yet.
async fn message(control: &Control, bucket: &str, request: &Value) -> Result<Option<(u64, Vec<u8>)>> {
    match control.api(&format!("STREAM.MSG.GET.OBJ_{bucket}"), request).await? {
        Ok(answer) => {
            let wrong = || Error::protocol("JetStream's answer has no message");
            let data = answer["message"]["data"].as_str().unwrap_or_default();
            let sequence = answer["message"]["seq"].as_u64().ok_or_else(wrong)?;
            Ok(Some((sequence, STANDARD.decode(data).map_err(|_| wrong())?)))
        }
        Err(error) if error.err_code == NO_MESSAGE_FOUND => Ok(None),
        Err(error) if error.err_code == STREAM_NOT_FOUND => {
            Err(Error::config("there is no such bucket").caused_by(error))
        }
        Err(error) => Err(refused(error.err_code, error.to_string())),
    }
}

/// Whether this is the SHA-256 of `payload`, in hexadecimal digits.
pub fn is_sha256_of(sha256: &str, payload: &[u8]) -> bool {
    hexadecimal(ring::digest::digest(&SHA256, payload).as_ref()).eq_ignore_ascii_case(sha256)
}
