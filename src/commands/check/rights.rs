//! What walhook's user in NATS must be allowed to do, for the configuration that the rows are.
//!
//! In: the streams, the buckets, the inbox. Out: the subjects, which are printed as a block for nats-server's configuration and held
//! against what the server says that the user may do. Asks nobody.

use crate::{
    commands::presence,
    config::Config,
    deliver::webhook::{self, Credentials},
    route::{
        subject,
        tables::{ConfigRow, StreamRow, Tables},
    },
};

/// The bucket for large events where the configuration names none.
const OBJECT_BUCKET: &str = "walhook_objects";

/// Whether walhook does its work without a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// It goes on with less.
    Should,
    /// Nothing is published.
    Must,
}

/// A subject on which walhook publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// The subject, with wildcards.
    pub subject: String,
    /// How necessary it is.
    pub need: Need,
    /// What it is for.
    pub purpose: &'static str,
}

/// All that a user needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// Subjects to publish on.
    pub publish: Vec<Right>,
    /// Subjects to subscribe to.
    pub subscribe: Vec<Right>,
}

/// Where the parts of a configuration are.
pub struct Places<'a> {
    /// Its row.
    pub row: &'a ConfigRow,
    /// Its streams.
    pub streams: &'a [StreamRow],
    /// The bucket by which `run` tells workers of webhooks, and the names that it may have.
    pub buckets: &'a [String],
    /// The bucket of schemas, and the names that it may have.
    pub schemas: &'a [String],
    /// Below which subject answers come.
    pub inbox_prefix: &'a str,
    /// The name of the feed.
    pub source: &'a str,
}

impl Rights {
    fn new(inbox_prefix: &str) -> Rights {
        let inbox = Right { subject: format!("{inbox_prefix}.>"), need: Need::Must, purpose: "receive answers" };
        Rights { publish: Vec::new(), subscribe: vec![inbox] }
    }

    /// To ask whether a run streams, and for a run to answer ([`presence`]).
    fn recognize_copies(&mut self, source: &str) {
        let purpose = "recognize a copy of the database while the original runs";
        let subject = presence::subject(source, "*");
        for subject in [format!("{subject}.*"), subject] {
            self.subscribe.push(Right { subject: subject.clone(), need: Need::Should, purpose });
            self.add(Need::Should, purpose, subject);
        }
    }

    /// To announce what happens to deliveries.
    fn announce(&mut self, row: &ConfigRow) {
        if let Some(subject) = &row.notice_subject {
            self.add(Need::Should, "announce disabled webhooks and dead letters", format!("{subject}.>"));
        }
    }

    fn add(&mut self, need: Need, purpose: &'static str, subject: impl Into<String>) {
        let subject = subject.into();
        if !self.publish.iter().any(|right| right.subject == subject) {
            self.publish.push(Right { subject, need, purpose });
        }
    }

    /// For nats-server's configuration: what stands in a user, after its name and password.
    pub fn block(&self) -> String {
        let list = |subjects: &mut dyn Iterator<Item = &str>| {
            subjects.map(|subject| format!("      {}\n", quoted(subject))).collect::<String>()
        };
        format!(
            "permissions: {{\n  publish: {{\n    allow: [\n{}    ]\n  }}\n  subscribe: {{\n    allow: [\n{}    ]\n  }}\n}}\n",
            list(&mut self.publish.iter().map(|right| right.subject.as_str())),
            list(&mut self.subscribe.iter().map(|right| right.subject.as_str())),
        )
    }
}

fn quoted(subject: &str) -> String {
    format!("\"{}\"", subject.replace('\\', "\\\\").replace('"', "\\\""))
}

/// What `walhook run` needs.
pub fn of_run(config: &Config, tables: &Tables, places: &Places<'_>) -> Rights {
    use Need::{Must, Should};
    let mut rights = Rights::new(places.inbox_prefix);
    rights.recognize_copies(places.source);
    rights.announce(places.row);
    if places.row.jetstream_enabled == Some(false) {
        for webhook in webhook::webhooks(tables, &places.row.config_name, Credentials::Withheld) {
            for subject in &webhook.subjects {
                rights.add(Must, "publish events", subject);
            }
        }
        rights.add(Should, "let walhook check see its own rights", USER_INFO);
        return rights;
    }
    for stream in places.streams {
        for subject in &stream.subjects {
            rights.add(Must, "publish events", subject);
        }
        let name = &stream.stream_name;
        rights.add(Must, "read the stream's state", format!("$JS.API.STREAM.INFO.{name}"));
        rights.add(Must, "read the stream's last events", format!("$JS.API.STREAM.MSG.GET.{name}"));
        rights.add(Should, "create the stream", format!("$JS.API.STREAM.CREATE.{name}"));
        rights.add(
            Should,
            "change the stream as its row says, and note whose it is",
            format!("$JS.API.STREAM.UPDATE.{name}"),
        );
        if !config.consumer_stats_interval.is_zero() {
            rights.add(Should, "keep rule_nats_consumer_stats", format!("$JS.API.CONSUMER.LIST.{name}"));
        }
        rights.add(Should, "make the consumers of the row", format!("$JS.API.CONSUMER.INFO.{name}.*"));
        rights.add(Should, "make the consumers of the row", format!("$JS.API.CONSUMER.DURABLE.CREATE.{name}.*"));
    }
    rights.add(Should, "name the stream that takes a subject already", "$JS.API.STREAM.NAMES");
    for bucket in places.buckets {
        let purpose = "tell workers of the webhooks, and recognize copies of the database";
        for what in ["STREAM.INFO", "STREAM.CREATE", "STREAM.UPDATE", "STREAM.MSG.GET", "CONSUMER.CREATE"] {
            rights.add(Should, purpose, format!("$JS.API.{what}.KV_{bucket}"));
        }
        // By the name of the consumer where the client puts it into the subject.
        rights.add(Should, purpose, format!("$JS.API.CONSUMER.CREATE.KV_{bucket}.>"));
        rights.add(Should, purpose, format!("$JS.API.CONSUMER.INFO.KV_{bucket}.*"));
        rights.add(Should, purpose, format!("$JS.API.CONSUMER.DELETE.KV_{bucket}.*"));
        rights.add(Should, purpose, format!("$KV.{bucket}.>"));
    }
    if tables.webhooks.values().any(|webhook| webhook.on_error.as_deref() == Some("object_store")) {
        let bucket = places.row.object_bucket.as_deref().filter(|bucket| !bucket.is_empty()).unwrap_or(OBJECT_BUCKET);
        let purpose = "put large events into the object store";
        rights.add(Should, purpose, format!("$O.{bucket}.>"));
        for what in ["INFO", "CREATE", "PURGE", "MSG.GET"] {
            rights.add(Should, purpose, format!("$JS.API.STREAM.{what}.OBJ_{bucket}"));
        }
    }
    for bucket in places.schemas {
        let purpose = "put schemas into their bucket";
        rights.add(Must, purpose, format!("$KV.{bucket}.>"));
        for what in ["INFO", "MSG.GET"] {
            rights.add(Must, purpose, format!("$JS.API.STREAM.{what}.KV_{bucket}"));
        }
        rights.add(Should, "make the bucket of schemas", format!("$JS.API.STREAM.CREATE.KV_{bucket}"));
    }
    rights.add(Should, "let walhook check see its own rights", USER_INFO);
    rights.add(Should, "let walhook check see the account's storage", ACCOUNT_INFO);
    rights
}

/// What `walhook deliver` needs.
pub fn of_deliver(tables: &Tables, places: &Places<'_>) -> Rights {
    use Need::{Must, Should};
    let mut rights = Rights::new(places.inbox_prefix);
    rights.recognize_copies(places.source);
    rights.announce(places.row);
    rights.add(Must, "find the streams", "$JS.API.STREAM.NAMES");
    rights.add(Must, "find the consumers", "$JS.API.CONSUMER.NAMES.*");
    for stream in places.streams {
        let name = &stream.stream_name;
        rights.add(Must, "see whose the stream is", format!("$JS.API.STREAM.INFO.{name}"));
        for what in ["INFO", "DURABLE.CREATE", "MSG.NEXT", "DELETE"] {
            rights.add(Must, "take events", format!("$JS.API.CONSUMER.{what}.{name}.*"));
        }
        rights.add(Should, "pause a webhook for all workers", format!("$JS.API.CONSUMER.PAUSE.{name}.*"));
        rights.add(Must, "acknowledge events", format!("$JS.ACK.{name}.>"));
    }
    rights.add(Must, "publish events that cannot be delivered", "dlq.>");
    for bucket in places.buckets {
        let purpose = "follow the webhooks";
        for what in ["STREAM.INFO", "STREAM.MSG.GET", "CONSUMER.CREATE"] {
            rights.add(Should, purpose, format!("$JS.API.{what}.KV_{bucket}"));
        }
        rights.add(Should, purpose, format!("$JS.API.CONSUMER.CREATE.KV_{bucket}.>"));
        rights.add(Should, purpose, format!("$JS.API.CONSUMER.INFO.KV_{bucket}.*"));
        rights.add(Should, purpose, format!("$JS.API.CONSUMER.DELETE.KV_{bucket}.*"));
    }
    if tables.webhooks.values().any(|webhook| webhook.on_error.as_deref() == Some("object_store")) {
        let bucket = places.row.object_bucket.as_deref().filter(|bucket| !bucket.is_empty()).unwrap_or(OBJECT_BUCKET);
        for what in ["INFO", "MSG.GET"] {
            rights.add(Should, "fetch large events", format!("$JS.API.STREAM.{what}.OBJ_{bucket}"));
        }
    }
    rights
}

/// By which the server tells a user what it may do.
pub const USER_INFO: &str = "$SYS.REQ.USER.INFO";

/// By which JetStream tells what the account has stored.
pub const ACCOUNT_INFO: &str = "$JS.API.INFO";

/// What the server says that the user may do. `None`: everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    publish: Option<Vec<String>>,
    publish_denied: Vec<String>,
    subscribe: Option<Vec<String>>,
    subscribe_denied: Vec<String>,
}

impl Allowed {
    /// The answer to [`USER_INFO`].
    pub fn parse(answer: &serde_json::Value) -> Option<Allowed> {
        let data = answer.get("data")?;
        let list = |kind: &str, which: &str| {
            let subjects = data["permissions"][kind][which].as_array()?;
            // A queue group may follow a space.
            let subject = |value: &serde_json::Value| Some(value.as_str()?.split(' ').next()?.to_owned());
            Some(subjects.iter().filter_map(subject).collect::<Vec<_>>())
        };
        Some(Allowed {
            publish: list("publish", "allow"),
            publish_denied: list("publish", "deny").unwrap_or_default(),
            subscribe: list("subscribe", "allow"),
            subscribe_denied: list("subscribe", "deny").unwrap_or_default(),
        })
    }

    /// What of `rights` is not allowed.
    pub fn lacking<'r>(&self, rights: &'r Rights) -> (Vec<&'r Right>, Vec<&'r Right>) {
        let publish =
            rights.publish.iter().filter(|right| !may(&right.subject, self.publish.as_deref(), &self.publish_denied));
        let subscribe = rights
            .subscribe
            .iter()
            .filter(|right| !may(&right.subject, self.subscribe.as_deref(), &self.subscribe_denied));
        (publish.collect(), subscribe.collect())
    }
}

fn may(subject: &str, allowed: Option<&[String]>, denied: &[String]) -> bool {
    allowed.is_none_or(|allowed| allowed.iter().any(|pattern| subject::covers(pattern, subject)))
        && !denied.iter().any(|pattern| subject::overlaps(pattern, subject))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_says_is_held_against_what_is_needed() {
        let mut rights = Rights::new("_INBOX");
        rights.add(Need::Must, "events", "webhooks.>");
        rights.add(Need::Should, "bucket", "$KV.b.>");
        let lacking = |answer: serde_json::Value| {
            let allowed = Allowed::parse(&answer).unwrap();
            let (publish, subscribe) = allowed.lacking(&rights);
            let publish: Vec<_> = publish.iter().map(|right| right.subject.clone()).collect();
            let subscribe: Vec<_> = subscribe.iter().map(|right| right.subject.as_str()).collect();
            (publish.join(" "), subscribe.join(" "))
        };
        let none = (String::new(), String::new());
        assert_eq!(lacking(json!({ "data": { "user": "u" } })), none);
        let all = json!({ "publish": { "allow": [">"] }, "subscribe": { "allow": [">"] } });
        assert_eq!(lacking(json!({ "data": { "permissions": all } })), none);
        let some =
            json!({ "publish": { "allow": ["webhooks.*", "$KV.b.>"] }, "subscribe": { "allow": ["_INBOX.a.>"] } });
        assert_eq!(
            lacking(json!({ "data": { "permissions": some } })),
            ("webhooks.>".to_owned(), "_INBOX.>".to_owned())
        );
        let denied = json!({ "publish": { "deny": ["webhooks.secret"] }, "subscribe": { "deny": ["x.>"] } });
        assert_eq!(lacking(json!({ "data": { "permissions": denied } })), ("webhooks.>".to_owned(), String::new()));
        assert!(Allowed::parse(&json!({ "error": "no" })).is_none());
        assert!(rights.block().contains("      \"$KV.b.>\"\n"), "{}", rights.block());
    }
}
