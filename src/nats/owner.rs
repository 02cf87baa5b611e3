//! Whose a stream, a bucket or a consumer is: a note in its metadata, `walhook.source.<source>` = the database's identity.
//!
//! In: the metadata as JetStream has it, and who asks. Out: ours, nobody's, or an error that names both databases. Metadata exists
//! since nats-server 2.10. Changes nothing.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What keys of ours begin with.
const KEY: &str = "walhook.source.";

/// A feed of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The name of the feed.
    pub source: String,
    /// The identity of the database.
    pub database_id: String,
}

/// Whose a thing is, if it is not another database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Its metadata names this database and source.
    Ours,
    /// Its metadata does not say.
    Unclaimed,
}

/// Who else may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// One database: a strict stream, a bucket, a consumer.
    Alone,
    /// Other databases by other sources: a shared stream.
    Shared,
}

impl Owner {
    /// The key in the metadata.
    pub fn key(&self) -> String {
        format!("{KEY}{}", self.source)
    }

    /// Notes in `config` (of a stream or a consumer) that it is ours.
    pub fn sign(&self, config: &mut Map<String, Value>) {
        let metadata = config.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if !metadata.is_object() {
            *metadata = Value::Object(Map::new());
        }
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert(self.key(), self.database_id.clone().into());
        }
    }

    /// Whose `what` is by its metadata. `hint`: what to do where it is another database's.
    ///
    /// # Errors
    /// [`crate::error::Kind::Untrusted`] where it is another database's.
    pub fn check(&self, what: &str, metadata: &BTreeMap<String, String>, usage: Use, hint: &str) -> Result<Claim> {
        let key = self.key();
        let is_anothers = |(noted, database): &(&String, &String)| {
            noted.starts_with(KEY) && **database != self.database_id && (usage == Use::Alone || **noted == key)
        };
        if let Some((noted, database)) = metadata.iter().find(is_anothers) {
            let source = &noted[KEY.len()..];
            return Err(Error::untrusted(format!(
                "{what} belongs to database {database} (source {source:?}); this is database {} (source {:?})",
                self.database_id, self.source
            ))
            .hint(hint));
        }
        Ok(if metadata.contains_key(&key) { Claim::Ours } else { Claim::Unclaimed })
    }
}

/// The metadata in a configuration of JetStream's.
pub fn metadata(config: &Value) -> BTreeMap<String, String> {
    let pairs = config["metadata"].as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// The keys by which metadata names databases.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Those that name the database that asks.
    pub ours: Vec<String>,
    /// Those that name another one.
    pub others: Vec<String>,
}

impl Notes {
    /// The database that asks is named, and no other.
    pub fn are_ours_alone(&self) -> bool {
        !self.ours.is_empty() && self.others.is_empty()
    }
}

/// What the metadata notes, as `database_id` sees it.
pub fn notes(metadata: &BTreeMap<String, String>, database_id: &str) -> Notes {
    let mut notes = Notes::default();
    for (key, database) in metadata.iter().filter(|(key, _)| key.starts_with(KEY)) {
        let side = if database == database_id { &mut notes.ours } else { &mut notes.others };
        side.push(key.clone());
    }
    notes
}

/// The databases whose feed `source` is noted there.
pub fn database_of<'m>(metadata: &'m BTreeMap<String, String>, source: &str) -> Option<&'m str> {
    metadata.get(&format!("{KEY}{source}")).map(String::as_str)
}

/// What to do with another database's stream.
pub fn stream_hint(stream: &str, usage: Use, metadata: &BTreeMap<String, String>, owner: &Owner) -> String {
    if usage == Use::Shared && metadata.contains_key(&owner.key()) {
        return format!(
            "Several databases can share a stream only by different sources: start this one with another --source, or give it a \
             stream of its own. If {} is this database before its tables were lost: walhook adopt --stream {stream}",
            metadata[&owner.key()],
        );
    }
    "Give this database a stream and a subject prefix of its own: UPDATE rule_nats_config SET stream_name = …, \
     subject_prefix = …, and rows of their own in rule_nats_streams"
        .to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn owner(source: &str, database_id: &str) -> Owner {
        Owner { source: source.to_owned(), database_id: database_id.to_owned() }
    }

    #[test]
    fn a_stream_is_ours_nobodys_or_anothers() {
        let [a, b] = ["a", "b"].map(|database| owner("walhook", database));
        let mut config = json!({ "name": "S", "metadata": { "team": "x", "_nats.level": "1" } });
        let check = |owner: &Owner, config: &Value, usage| owner.check("stream", &metadata(config), usage, "h");
        assert_eq!(check(&a, &config, Use::Alone).unwrap(), Claim::Unclaimed);
        a.sign(config.as_object_mut().unwrap());
        assert_eq!(config["metadata"]["team"], "x", "what others noted stays");
        for usage in [Use::Alone, Use::Shared] {
            assert_eq!(check(&a, &config, usage).unwrap(), Claim::Ours);
            let text = check(&b, &config, usage).unwrap_err().to_string();
            assert!(text.contains("database a") && text.contains("database b"), "{text}");
        }
        // Another source of another database may write into a shared stream only; another of the same database anywhere.
        let other = owner("other", "b");
        assert_eq!(check(&other, &config, Use::Shared).unwrap(), Claim::Unclaimed);
        assert!(check(&other, &config, Use::Alone).is_err());
        assert_eq!(check(&owner("other", "a"), &config, Use::Alone).unwrap(), Claim::Unclaimed);
        assert!(notes(&metadata(&config), "a").are_ours_alone() && !notes(&metadata(&config), "b").are_ours_alone());
        other.sign(config.as_object_mut().unwrap());
        let shared = Notes { ours: vec![a.key()], others: vec![other.key()] };
        assert_eq!(notes(&metadata(&config), "a"), shared);
        let mut bare = json!({});
        b.sign(bare.as_object_mut().unwrap());
        assert_eq!(database_of(&metadata(&bare), "walhook"), Some("b"));
    }
}
