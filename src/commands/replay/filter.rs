//! Which events a replay is for, judged by what their messages tell, whichever way they come.
//!
//! In: names of webhooks and tables, and a message's position, headers and body. Out: whether it is wanted. A bare body
//! (`payload_format` `data`) may be anything, also what looks like another table's event: of such a message the header counts.

use std::{borrow::Cow, collections::BTreeSet};

use async_nats::HeaderMap;
use serde_json::Value;

use crate::{
    commands::names,
    error::{Error, Result},
    flow::event_id::EventPosition,
    percent,
    route::{
        seal::{self, SealKeys},
        tables::Tables,
    },
};

/// Which events are wanted.
pub struct Filter {
    /// Webhooks' ids; `None`: all.
    webhooks: Option<BTreeSet<i32>>,
    /// `schema.table`; `None`: all.
    tables: Option<BTreeSet<String>>,
    /// The keys by which sealed payloads are read.
    keys: SealKeys,
}

/// What is to become of a message.
pub enum Verdict {
    /// It is sent.
    Wanted,
    /// It is passed over.
    Unwanted,
    /// It does not tell its table.
    Unknown,
}

impl Filter {
    /// # Errors
    /// There is no such webhook.
    pub fn new(rows: &Tables, webhooks: &[String], tables: &[String], keys: SealKeys) -> Result<Filter> {
        let mut ids = BTreeSet::new();
        for name in webhooks {
            // A deleted one's events are there still, and only its number is known.
            let known = rows.webhooks.iter().find(|(_, row)| row.name == *name).map(|(&id, _)| id);
            let Some(id) = known.or_else(|| name.parse().ok()) else {
                let near = names::nearest(name, rows.webhooks.values().map(|row| row.name.as_str()));
                return Err(Error::config(format!("--webhook {name:?}: there is no webhook of that name"))
                    .hint(format!("{near}of one that was deleted, give its number")));
            };
            ids.insert(id);
        }
        let qualify = |table: &String| if table.contains('.') { table.clone() } else { format!("public.{table}") };
        Ok(Filter {
            webhooks: (!webhooks.is_empty()).then_some(ids),
            tables: (!tables.is_empty()).then(|| tables.iter().map(qualify).collect()),
            keys,
        })
    }

    /// What is to become of this message.
    pub fn judge(&self, position: &EventPosition, headers: Option<&HeaderMap>, payload: &[u8]) -> Verdict {
        if self.webhooks.as_ref().is_some_and(|wanted| !wanted.contains(&position.webhook_id)) {
            return Verdict::Unwanted;
        }
        match &self.tables {
            None => Verdict::Wanted,
            Some(wanted) => match table_of(headers, &self.opened(headers, payload)) {
                Some(table) if wanted.contains(&table) => Verdict::Wanted,
                Some(_) => Verdict::Unwanted,
                None => Verdict::Unknown,
            },
        }
    }
}

impl Filter {
    /// The payload, opened if it is sealed and there is the key.
    fn opened<'p>(&self, headers: Option<&HeaderMap>, payload: &'p [u8]) -> Cow<'p, [u8]> {
        let header = headers.and_then(|headers| headers.get(seal::HEADER));
        let opened = header.and_then(|header| self.keys.open(header.as_str(), payload).ok());
        opened.map_or(Cow::Borrowed(payload), Cow::Owned)
    }
}

/// The table that a message names, in whichever format; `None` for a call in `data`, which is the bare payload.
pub fn table_of(headers: Option<&HeaderMap>, payload: &[u8]) -> Option<String> {
    if let Some(subject) = headers.and_then(|headers| headers.get("ce-subject")) {
        return Some(subject.as_str().to_owned());
    }
    let by_header =
        headers.and_then(|headers| headers.get("Walhook-Type")).and_then(|kind| kind.as_str().rsplit_once('.'));
    if let Some((table, _)) = by_header.filter(|(table, _)| table.contains('.')) {
        return percent::decode(table);
    }
    let body: Value = serde_json::from_slice(payload).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if body["specversion"].is_string() {
        return text(&body["subject"]);
    }
    if body["source"]["connector"] == "postgresql" {
        return Some(format!("{}.{}", body["source"]["schema"].as_str()?, body["source"]["table"].as_str()?));
    }
    if body["event"]["lsn"].is_string() && body["webhook_id"].is_number() {
        return text(&body["event"]["table"]);
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_tells_its_table_in_every_format_that_names_it() {
        let table = |body: &str| table_of(None, body.as_bytes());
        let webhook = r#"{"id":"s-1","webhook_id":1,"data":{},"event":{"lsn":"0/1","table":"public.orders"}}"#;
        assert_eq!(table(webhook).as_deref(), Some("public.orders"));
        let debezium = r#"{"source":{"connector":"postgresql","schema":"shop","table":"orders"}}"#;
        assert_eq!(table(debezium).as_deref(), Some("shop.orders"));
        let cloudevent = r#"{"specversion":"1.0","subject":"public.orders","data":{}}"#;
        assert_eq!(table(cloudevent).as_deref(), Some("public.orders"));
        let mut headers = HeaderMap::new();
        headers.insert("ce-subject", "public.orders");
        assert_eq!(table_of(Some(&headers), b"{}").as_deref(), Some("public.orders"));
        let mut headers = HeaderMap::new();
        headers.insert("Walhook-Type", "public.%C3%A4.insert");
        for body in [webhook, debezium, cloudevent, "no JSON"] {
            assert_eq!(table_of(Some(&headers), body.as_bytes()).as_deref(), Some("public.ä"));
        }
        headers.insert("Walhook-Type", "webhook.call");
        assert_eq!(table_of(Some(&headers), b"{}"), None);
        for bare in [r#"{"id":1}"#, r#"{"event":{"table":"x"}}"#, "[]", "no JSON", ""] {
            assert_eq!(table(bare), None, "{bare}");
        }
    }
}
