//! The bucket of schemas for consumers: an entry for each version of a table's rows.
//!
//! In: a schema, and whose bucket it is. Out: nothing, once the entry is durable; or the entries of a table. The first database on an
//! account has the bucket `schemas_<source>`, another one with the same source has `schemas_<source>_<database id>`. Whose a bucket
//! is stands in its metadata; in one that somebody else made for walhook, in its entry `walhook`. Always holds: an entry is written
//! once and never changed, for its key has the hash of what it says; nothing is written into a bucket that loses entries by itself,
//! or that is not ours.

use async_nats::HeaderMap;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    ack::Ack,
    codes::named::{NO_MESSAGE_FOUND, STREAM_NAME_EXIST, STREAM_NOT_FOUND, WRONG_LAST_SEQUENCE},
    control::{ApiError, Control},
    owner::{self, Owner},
};
use crate::{
    error::{Error, Result},
    route::row_schema::RowSchema,
};

/// What the stream of a bucket says of itself that walhook made.
pub const DESCRIPTION: &str = "walhook: JSON Schemas of tables, by the header Walhook-Schema";
/// The entry that says whose a bucket is that walhook did not make.
const MARK: &str = "walhook";
/// So much a message needs besides its payload.
const OVERHEAD: usize = 1024;

/// Who stores a schema.
#[derive(Debug, Clone)]
pub struct Writer {
    /// The feed.
    pub owner: Owner,
    /// How many servers keep the bucket.
    pub replicas: i32,
    /// Its row in `rule_nats_config`, for what there is to try.
    pub config_id: i32,
}

/// A bucket of this database, or what it would be called.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// It is there.
    pub exists: bool,
    /// It is nobody's yet: the first entry says whose it is.
    is_unmarked: bool,
}

/// An entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its key, the value of the header.
    pub key: String,
    /// When it was written, as the server says it.
    pub created: String,
    /// Its place among all entries.
    pub revision: u64,
    /// The schema.
    pub text: String,
}

/// The name of the bucket of a source. A bucket's name has no dots.
pub fn bucket_name(source: &str) -> String {
    format!("schemas_{}", source.replace('.', "_"))
}

/// The names that the bucket of this database may have: as the first database on an account, and as another one.
pub fn names(owner: &Owner) -> [String; 2] {
    let first = bucket_name(&owner.source);
    let own = format!("{first}_{}", owner.database_id);
    [first, own]
}

/// The stream behind a bucket.
pub fn stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// Puts a schema into the bucket, which is made if it is missing. What is there stays.
///
/// # Errors
/// It cannot be stored, now or as things are: with what to do about it.
pub async fn put(control: &Control, schema: &RowSchema, writer: &Writer) -> Result<()> {
    let outcome = async {
        let mut bucket = find(control, &writer.owner).await?;
        if !bucket.exists {
            bucket = make(control, bucket, writer).await?;
        }
        if bucket.is_unmarked {
            create(control, &bucket.name, MARK, &mark(&writer.owner)).await?;
        }
        create(control, &bucket.name, &schema.key, &schema.text).await
    };
    outcome.await.map_err(|error| {
        let error = error.context(format!("put the schema {} into a bucket", schema.key));
        let without = format!(
            "to publish without schemas: UPDATE rule_nats_config SET publish_schemas = false WHERE config_id = {}",
            writer.config_id
        );
        let hint = error.remedy().map_or_else(|| without.clone(), |remedy| format!("{remedy}; or {without}"));
        error.hint(hint)
    })
}

/// The bucket of this database.
///
/// # Errors
/// JetStream cannot be asked, or we may not ask; the bucket is not fit for schemas, or is somebody else's.
pub async fn find(control: &Control, owner: &Owner) -> Result<Bucket> {
    for name in names(owner) {
        let Some(info) = info(control, &name, &Value::Null).await? else {
            return Ok(Bucket { name, exists: false, is_unmarked: false });
        };
        let notes = owner::notes(&owner::metadata(&info["config"]), &owner.database_id);
        if notes.ours.is_empty() && !notes.others.is_empty() {
            continue;
        }
        if let Some(why) = unfit(&info["config"], &name) {
            return Err(Error::config(format!("the bucket {name:?} cannot keep schemas: {why}")).hint(format!(
                "correct or remove the stream {}; walhook makes the bucket if it is missing",
                stream(&name)
            )));
        }
        let bucket = Bucket { name, exists: true, is_unmarked: false };
        if !notes.ours.is_empty() {
            return Ok(bucket);
        }
        match entry(control, &bucket.name, MARK).await? {
            Some(entry) if database_of(&entry).is_some_and(|database| database == owner.database_id) => {
                return Ok(bucket);
            }
            Some(entry) if database_of(&entry).is_some() => {}
            None if info["state"]["last_seq"] == 0 => return Ok(Bucket { is_unmarked: true, ..bucket }),
            _ => {
                return Err(Error::config(format!(
                    "the bucket {:?} is there, has entries, and nothing in it says that it is walhook's",
                    bucket.name
                ))
                .hint(format!(
                    "if something else uses it, run walhook with another --source; if not, remove it: nats kv del {}",
                    bucket.name
                )));
            }
        }
    }
    let [first, own] = names(owner);
    Err(Error::config(format!("the buckets {first:?} and {own:?} belong to other databases"))
        .hint("run walhook with another --source"))
}

/// The entries that a table's schemas have, the oldest first.
///
/// # Errors
/// They cannot be read.
pub async fn versions(control: &Control, bucket: &str, table: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut offset = 0;
    loop {
        let request = json!({ "subjects_filter": format!("$KV.{bucket}.{table}.*"), "offset": offset });
        let Some(info) = info(control, bucket, &request).await? else { break };
        let subjects: Vec<_> =
            info["state"]["subjects"].as_object().into_iter().flat_map(|all| all.keys().cloned()).collect();
        for subject in &subjects {
            let key = subject.strip_prefix(&format!("$KV.{bucket}.")).unwrap_or(subject);
            entries.extend(entry(control, bucket, key).await?);
        }
        offset += subjects.len();
        let total = info["total"].as_u64().and_then(|total| usize::try_from(total).ok()).unwrap_or(0);
        if subjects.is_empty() || total <= offset {
            break;
        }
    }
    entries.sort_by_key(|entry| entry.revision);
    Ok(entries)
}

/// The entry with this key; `None` where there is none, or it was deleted.
///
/// # Errors
/// It cannot be read.
pub async fn entry(control: &Control, bucket: &str, key: &str) -> Result<Option<Entry>> {
    Ok(last(control, bucket, key).await?.and_then(|(_, entry)| entry))
}

fn mark(owner: &Owner) -> String {
    json!({ "database_id": owner.database_id, "source": owner.source }).to_string()
}

fn database_of(entry: &Entry) -> Option<String> {
    let mark: Value = serde_json::from_str(&entry.text).ok()?;
    mark["database_id"].as_str().map(str::to_owned)
}

/// The sequence of what was written last with this key, and the entry, unless it was deleted.
async fn last(control: &Control, bucket: &str, key: &str) -> Result<Option<(u64, Option<Entry>)>> {
    let request = json!({ "last_by_subj": format!("$KV.{bucket}.{key}") });
    let answer = match control.api(&format!("STREAM.MSG.GET.{}", stream(bucket)), &request).await? {
        Ok(answer) => answer,
        Err(error) if [NO_MESSAGE_FOUND, STREAM_NOT_FOUND].contains(&error.err_code) => return Ok(None),
        Err(error) => return Err(refused(format!("read the bucket {bucket:?}"), error)),
    };
    let message = &answer["message"];
    let wrong = || Error::protocol(format!("read the bucket {bucket:?}: the answer has no message"));
    let revision = message["seq"].as_u64().ok_or_else(wrong)?;
    let decoded = |field: &str| STANDARD.decode(message[field].as_str().unwrap_or_default()).map_err(|_| wrong());
    // A client that deletes an entry writes this in its place.
    let is_deleted = decoded("hdrs")?.windows(13).any(|header| header.eq_ignore_ascii_case(b"KV-Operation:"));
    let text = String::from_utf8_lossy(&decoded("data")?).into_owned();
    let created = message["time"].as_str().unwrap_or_default().to_owned();
    let entry = Entry { key: key.to_owned(), created, revision, text };
    Ok(Some((revision, Some(entry).filter(|_| !is_deleted))))
}

/// Writes an entry that is not there yet.
async fn create(control: &Control, bucket: &str, key: &str, text: &str) -> Result<()> {
    // Twice, for another process may write it in between.
    for _ in 0..2 {
        let sequence = match last(control, bucket, key).await? {
            Some((_, Some(entry))) if entry.text == text => return Ok(()),
            Some((_, Some(_))) => {
                return Err(Error::config(format!(
                    "entry {key:?} of bucket {bucket:?} has other content: somebody has changed it"
                ))
                .hint(format!("nats kv del {bucket} {key}  removes it, and walhook writes it again")));
            }
            Some((sequence, None)) => sequence,
            None => 0,
        };
        let most = control.client().server_info().max_payload;
        if text.len() + OVERHEAD > most {
            return Err(Error::config(format!(
                "the schema has {} bytes, and the server takes messages of {most} (max_payload)",
                text.len()
            ))
            .hint("raise max_payload of the server, or link fewer columns (p_columns)"));
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", stream(bucket));
        headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.to_string());
        let subject = control.entry_subject(bucket, key);
        match control.publish(&subject, headers, text.to_owned().into()).await? {
            Ack::Stored { .. } => {
                tracing::info!(bucket, key, "a schema is in the bucket");
                return Ok(());
            }
            Ack::NoResponders => return Err(Error::unavailable("no JetStream answers")),
            Ack::Refused { code: WRONG_LAST_SEQUENCE, .. } => {}
            Ack::Refused { code, description } => {
                return Err(Error::config(format!("the bucket {bucket:?} refuses it: {description} ({code})"))
                    .hint(format!("raise max_bytes and max_msg_size of the stream {}", stream(bucket))));
            }
        }
    }
    Err(Error::unavailable(format!("somebody else writes the entry {key:?} of the bucket {bucket:?} as well")))
}

/// The bucket's stream; `None` where it is not there.
async fn info(control: &Control, bucket: &str, request: &Value) -> Result<Option<Value>> {
    match control.api(&format!("STREAM.INFO.{}", stream(bucket)), request).await? {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.err_code == STREAM_NOT_FOUND => Ok(None),
        Err(error) => Err(refused(format!("read the bucket {bucket:?}"), error)),
    }
}

async fn make(control: &Control, bucket: Bucket, writer: &Writer) -> Result<Bucket> {
    let Bucket { name, .. } = bucket;
    let mut config = json!({
        "name": stream(&name),
        "description": DESCRIPTION,
        "subjects": [format!("$KV.{name}.>")],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "max_consumers": -1,
        "num_replicas": writer.replicas,
        "allow_rollup_hdrs": true,
        "deny_delete": true,
        "allow_direct": true,
    });
    if let Some(config) = config.as_object_mut() {
        writer.owner.sign(config);
    }
    let made = control.api(&format!("STREAM.CREATE.{}", stream(&name)), &config).await;
    let made = made.map_err(|error| error.context(format!("the bucket {name:?} does not exist; make it")))?;
    match made {
        Ok(_) => tracing::info!(bucket = name, "the bucket of schemas is made"),
        // Somebody was faster, or something else has the name.
        Err(error) if error.err_code == STREAM_NAME_EXIST => return find(control, &writer.owner).await,
        Err(error @ ApiError { code: 503, .. }) => {
            return Err(Error::unavailable(format!("make the bucket {name:?}")).caused_by(error));
        }
        Err(error) => {
            return Err(Error::config(format!("make the bucket {name:?}"))
                .caused_by(error)
                .hint(format!("give JetStream or the account more room, or make it yourself: nats kv add {name}")));
        }
    }
    Ok(Bucket { name, exists: true, is_unmarked: false })
}

/// Why a stream is no bucket that keeps all its entries.
fn unfit(config: &Value, bucket: &str) -> Option<String> {
    let is_set = |key: &str| match &config[key] {
        Value::Null => false,
        Value::Number(number) => number.as_i64().is_some_and(|number| number > 0),
        Value::Bool(set) => *set,
        Value::Array(all) => !all.is_empty(),
        _ => true,
    };
    let subjects: Vec<_> = config["subjects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let is_bucket = subjects == [format!("$KV.{bucket}.>")];
    let drops = config["discard"] != "new" && (is_set("max_msgs") || is_set("max_bytes"));
    if is_set("mirror") {
        Some("it is a mirror of another stream".to_owned())
    } else if !is_bucket {
        Some(format!("its stream is no bucket: it takes {subjects:?}"))
    } else if is_set("max_age") {
        Some("its entries expire (max_age, --ttl)".to_owned())
    } else if is_set("sealed") {
        Some("its stream is sealed".to_owned())
    } else if config["retention"] != "limits" {
        Some(format!("its stream has retention {}", config["retention"]))
    } else {
        drops.then(|| "it drops its oldest entries when it is full (discard old)".to_owned())
    }
}

fn refused(attempted: String, error: ApiError) -> Error {
    Error::unavailable(attempted).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_loses_entries_is_no_bucket_for_schemas() {
        let fit = json!({ "subjects": ["$KV.schemas_s.>"], "retention": "limits", "discard": "new", "max_age": 0,
            "max_msgs": -1, "max_bytes": 1000 });
        assert_eq!(unfit(&fit, "schemas_s"), None);
        for (key, value, reason) in [
            ("subjects", json!(["a.>"]), "no bucket"),
            ("subjects", json!(["$KV.schemas_s.>", "a"]), "no bucket"),
            ("mirror", json!({ "name": "KV_x" }), "mirror"),
            ("max_age", json!(1_000_000_000), "expire"),
            ("sealed", json!(true), "sealed"),
            ("retention", json!("workqueue"), "retention"),
            ("discard", json!("old"), "drops its oldest"),
        ] {
            let mut config = fit.clone();
            config[key] = value;
            let why = unfit(&config, "schemas_s").unwrap_or_default();
            assert!(why.contains(reason), "{key}: {why}");
        }
        let unlimited = json!({ "subjects": ["$KV.b.>"], "retention": "limits", "discard": "old", "max_bytes": -1 });
        assert_eq!(unfit(&unlimited, "b"), None);
    }
}
