//! The bucket by which the streamer tells workers which webhooks there are: its name, its keys, and whose it is.
//!
//! In: the feed, and the buckets that JetStream has. Out: the one of this database. The first database on an account has
//! `walhook_<source>`, another one with the same source has `walhook_<source>_<database id>`. Whose a bucket is stands in its
//! metadata; where walhook may not write there, in the mark of its last run ([`Mark`]). Changes nothing.

use async_nats::jetstream::kv::Operation;
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::identity::{Identity, Mark};
use crate::{
    error::{Error, Kind, Result},
    nats::{
        control::{ApiError, Control, REQUEST_TIMEOUT},
        owner::{self, Claim, Owner, Use},
    },
};

/// Before a webhook's id.
pub const KEY_PREFIX: &str = "webhook.";
/// The mark of the last run.
pub const MARK: &str = "run";

/// JetStream's answers for what is not there.
const NO_STREAM: u64 = 10059;
const NO_MESSAGE: u64 = 10037;

/// A bucket of this database, or what it would be called.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Its stream as JetStream has it; `None` where it is not there.
    pub info: Option<Value>,
    /// Whether its metadata says whose it is.
    pub claim: Claim,
    /// What its last run left.
    pub mark: Option<Mark>,
}

/// The bucket of the feed `source` of the first database. A bucket's name has no dots.
pub(super) fn name(source: &str) -> String {
    format!("walhook_{}", source.replace('.', "_"))
}

/// The names that the bucket of this database may have: as the first database on an account, and as another one.
pub fn names(source: &str, identity: &Identity) -> (String, String) {
    let first = name(source);
    let own = format!("{first}_{}", identity.database_id);
    (first, own)
}

/// The stream behind a bucket.
pub fn stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// The bucket of this database.
///
/// # Errors
/// JetStream cannot be asked, or we may not ask.
pub async fn find(control: &Control, source: &str, identity: &Identity) -> Result<Place> {
    let owner = identity.owner(source);
    let first = name(source);
    let own = format!("{first}_{}", identity.database_id);
    let there = read(control, &first).await?;
    if let Some((info, mark)) = there {
        let claim = owner.check("", &owner::metadata(&info["config"]), Use::Alone, "");
        let is_ours = match (&claim, &mark) {
            (Ok(Claim::Ours), _) => true,
            (Err(_), _) => false,
            (Ok(Claim::Unclaimed), Some(mark)) => mark.database_id == identity.database_id,
            // Made by hand and empty, or by walhook before databases had identities.
            (Ok(Claim::Unclaimed), None) => info["state"]["last_seq"] == 0 || identity.is_upgraded,
        };
        if is_ours {
            let claim = claim.unwrap_or(Claim::Unclaimed);
            return Ok(Place { name: first, info: Some(info), claim, mark });
        }
        let there = read(control, &own).await?;
        let (info, mark) = there.map_or((None, None), |(info, mark)| (Some(info), mark));
        // The name says whose it is.
        return Ok(Place { name: own, info, claim: Claim::Ours, mark });
    }
    match read(control, &own).await {
        Ok(Some((info, mark))) => Ok(Place { name: own, info: Some(info), claim: Claim::Ours, mark }),
        Ok(None) => Ok(Place { name: first, info: None, claim: Claim::Ours, mark: None }),
        // Who may ask for the first one alone has never had another.
        Err(error) if error.kind() == Kind::Permission => {
            Ok(Place { name: first, info: None, claim: Claim::Ours, mark: None })
        }
        Err(error) => Err(error),
    }
}

/// The bucket for a worker that has no database to ask which it is; `None` while there is none. `database_id`: as the settings say.
///
/// # Errors
/// Several databases have one, and the settings do not say which; JetStream cannot be asked.
pub async fn find_by_name(
    control: &Control,
    source: &str,
    names: &[String],
    database_id: Option<&str>,
) -> Result<Option<(String, Option<Owner>)>> {
    let first = stream(&name(source));
    let is_candidate = |name: &&String| {
        let rest = name.strip_prefix(&first);
        rest.is_some_and(|rest| rest.is_empty() || (rest.len() == 17 && rest.starts_with('_')))
    };
    let mut found = Vec::new();
    for stream in names.iter().filter(is_candidate) {
        let bucket = stream.strip_prefix("KV_").unwrap_or(stream);
        let Some((info, mark)) = read(control, bucket).await? else { continue };
        let metadata = owner::metadata(&info["config"]);
        let noted = owner::database_of(&metadata, source).map(str::to_owned);
        let database = noted.or(mark.map(|mark| mark.database_id));
        if database_id.is_none_or(|wanted| database.as_deref().is_none_or(|database| database == wanted)) {
            found.push((bucket.to_owned(), database));
        }
    }
    if let [_, _, ..] = &found[..] {
        let databases: Vec<_> = found
            .iter()
            .map(|(bucket, database)| format!("{} ({bucket})", database.as_deref().unwrap_or("?")))
            .collect();
        return Err(Error::untrusted(format!(
            "follow source {source:?} without a database: several databases have it: {}",
            databases.join(", ")
        ))
        .hint("say which: --database-id, as `walhook status` shows it"));
    }
    let owner = |database: String| Owner { source: source.to_owned(), database_id: database };
    Ok(found.pop().map(|(bucket, database)| (bucket, database.map(owner))))
}

/// A bucket's stream and its mark.
async fn read(control: &Control, bucket: &str) -> Result<Option<(Value, Option<Mark>)>> {
    let subject = format!("$KV.{bucket}.{MARK}");
    let filter = json!({ "subjects_filter": subject });
    let info = match control.api(&format!("STREAM.INFO.{}", stream(bucket)), &filter).await? {
        Ok(info) => info,
        Err(error) if error.err_code == NO_STREAM => return Ok(None),
        Err(error) => return Err(refused(bucket, error)),
    };
    if info["state"]["subjects"].as_object().is_none_or(Map::is_empty) {
        return Ok(Some((info, None)));
    }
    let request = json!({ "last_by_subj": subject });
    let mark = match control.api(&format!("STREAM.MSG.GET.{}", stream(bucket)), &request).await {
        Ok(Ok(answer)) => answer["message"]["data"].as_str().and_then(|data| STANDARD.decode(data).ok()),
        Ok(Err(error)) if error.err_code == NO_MESSAGE => None,
        Ok(Err(error)) => return Err(refused(bucket, error)),
        // Who may follow the bucket may read it all the same.
        Err(error) if error.kind() == Kind::Permission => followed(control, bucket).await?,
        Err(error) => return Err(error),
    };
    let mark = mark.and_then(|data| serde_json::from_slice(&data).ok());
    Ok(Some((info, mark)))
}

/// The mark, by a consumer.
async fn followed(control: &Control, bucket: &str) -> Result<Option<Vec<u8>>> {
    let attempted = || format!("read the mark in the bucket {bucket:?}");
    let store = control.jetstream().get_key_value(bucket).await;
    let store = store.map_err(|error| Error::unavailable(attempted()).caused_by(error))?;
    let entries = store.watch_with_history(MARK).await;
    let mut entries = entries.map_err(|error| Error::unavailable(attempted()).caused_by(error))?;
    match timeout(REQUEST_TIMEOUT, entries.next()).await {
        Ok(Some(Ok(entry))) => Ok(Some(entry.value.to_vec()).filter(|_| entry.operation == Operation::Put)),
        Ok(Some(Err(error))) => Err(Error::unavailable(attempted()).caused_by(error)),
        Ok(None) | Err(_) => Err(Error::unavailable(format!("{}: no answer", attempted()))),
    }
}

fn refused(bucket: &str, error: ApiError) -> Error {
    Error::unavailable(format!("read the bucket {bucket:?}")).caused_by(error)
}
