//! The demo's proof: what triggers counted in the database beside what the stream holds.
//!
//! In: changes that were committed, and messages. Out: how many of them are lost, stored twice, out of order, or committed by nobody.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{calendar::POSTGRES_EPOCH_US, text};

/// A change: transaction, operation, and which row.
pub type Change = (i64, String, String);

/// What was committed, and what is stored.
#[derive(Debug, Default)]
pub struct Count {
    /// By the triggers.
    pub committed: BTreeMap<Change, u64>,
    stored: BTreeMap<Change, u64>,
    ids: BTreeMap<String, u64>,
    /// Events of tables that the user has linked.
    pub others: u64,
    last: Option<(u64, u64, u64)>,
    /// Events that stand behind a later one.
    pub disorder: u64,
}

impl Count {
    /// Takes the next message of the stream.
    pub fn stored(&mut self, event: &Event) {
        *self.ids.entry(event.id.clone()).or_default() += 1;
        let position = event.position();
        self.disorder += u64::from(position.is_none() || position <= self.last);
        self.last = position;
        match event.change() {
            Some(change) => *self.stored.entry(change).or_default() += 1,
            None => self.others += 1,
        }
    }

    /// Rows that were committed.
    pub fn rows(&self) -> u64 {
        self.committed.values().sum()
    }

    /// Events that are stored.
    pub fn events(&self) -> u64 {
        self.stored.values().sum()
    }

    /// Rows without an event.
    pub fn lost(&self) -> u64 {
        missing(&self.committed, &self.stored)
    }

    /// The same change again, or the same id, or one that nobody committed.
    pub fn duplicated(&self) -> u64 {
        missing(&self.stored, &self.committed).max(self.ids.values().map(|times| times - 1).sum())
    }

    /// Events that nobody committed.
    pub fn phantoms(&self) -> u64 {
        self.stored.keys().filter(|&change| !self.committed.contains_key(change)).count().try_into().unwrap_or(u64::MAX)
    }

    /// Whether the stream holds each committed row once and in order, and nothing else.
    pub fn agrees(&self) -> bool {
        self.rows() > 0 && self.lost() == 0 && self.duplicated() == 0 && self.disorder == 0
    }
}

/// How many of `these` are not among `those`.
fn missing(these: &BTreeMap<Change, u64>, those: &BTreeMap<Change, u64>) -> u64 {
    these.iter().map(|(change, times)| times.saturating_sub(those.get(change).copied().unwrap_or(0))).sum()
}

/// A message, read as a consumer would.
#[derive(Debug)]
pub struct Event {
    id: String,
    /// Its subject.
    pub subject: String,
    payload: Value,
}

impl Event {
    /// Of a message.
    pub fn of(message: &async_nats::Message) -> Self {
        let payload: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let id = payload["id"].as_str().unwrap_or_default().to_owned();
        Event { id, subject: message.subject.to_string(), payload }
    }

    /// The operation, or `call`.
    pub fn op(&self) -> &str {
        match self.payload["type"].as_str() {
            Some("webhook.call") => "call",
            _ => self.payload["event"]["op"].as_str().unwrap_or_default(),
        }
    }

    fn change(&self) -> Option<Change> {
        let event = &self.payload["event"];
        let key = match event["table"].as_str()? {
            "public.orders" => &self.payload["data"]["id"],
            "public.rule_webhook_events" => &event["event_id"],
            _ => return None,
        };
        Some((event["xid"].as_i64()?, event["op"].as_str()?.to_owned(), key.to_string()))
    }

    /// Commit LSN, ordinal in the transaction, webhook: the end of the id, which begins with the source's name.
    fn position(&self) -> Option<(u64, u64, u64)> {
        let mut parts = self.id.rsplit('-');
        let (webhook, ordinal, _time, lsn) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some((u64::from_str_radix(lsn, 16).ok()?, ordinal.parse().ok()?, webhook.parse().ok()?))
    }

    /// Commit time in microseconds since 1970; the id has it since 2000.
    pub fn committed_at(&self) -> Option<i64> {
        i64::from_str_radix(self.id.rsplit('-').nth(2)?, 16).ok().map(|micros| micros + POSTGRES_EPOCH_US)
    }

    /// The row or the call in a few words.
    pub fn words(&self) -> String {
        let data = &self.payload["data"];
        let plain = |value: &Value| match value {
            Value::String(text) => text::one_line(text).into_owned(),
            other => other.to_string(),
        };
        match (&data["text"], &data["customer"]) {
            (Value::Null, Value::Null) => format!("#{}", plain(&data["id"])),
            (Value::Null, customer) => {
                let mut words = format!(
                    "#{:<3} {:<9} {:<5} {:>8.2}",
                    plain(&data["id"]),
                    plain(customer),
                    plain(&data["status"]),
                    data["amount"].as_f64().unwrap_or_default()
                );
                if !data["doc"].is_null() {
                    words.push_str("  ");
                    words.push_str(&data["doc"].to_string());
                }
                words
            }
            (text, _) => plain(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(lsn: u64, key: u64, id: &str) -> Event {
        let payload = json!({"data": {"id": key}, "event": {"table": "public.orders", "op": "insert", "xid": 7}});
        Event { id: format!("{id}-{lsn:016x}-0-0-1"), subject: String::new(), payload }
    }

    #[test]
    fn a_lost_a_doubled_and_a_disordered_event_are_counted() {
        let of = |events: &[Event]| {
            let mut count = Count::default();
            for key in ["1", "2"] {
                count.committed.insert((7, "insert".to_owned(), key.to_owned()), 1);
            }
            events.iter().for_each(|event| count.stored(event));
            (count.lost(), count.duplicated(), count.phantoms(), count.disorder, count.agrees())
        };
        assert_eq!(of(&[event(1, 1, "a"), event(2, 2, "a")]), (0, 0, 0, 0, true));
        assert_eq!(of(&[event(1, 1, "a")]), (1, 0, 0, 0, false));
        assert_eq!(of(&[event(1, 1, "a"), event(2, 2, "a"), event(3, 2, "a")]), (0, 1, 0, 0, false));
        assert_eq!(of(&[event(1, 1, "a"), event(2, 2, "a"), event(3, 3, "a")]), (0, 1, 1, 0, false));
        assert_eq!(of(&[event(2, 2, "a"), event(1, 1, "a")]), (0, 0, 0, 1, false));
        assert!(!Count::default().agrees(), "nothing was tested");
    }
}
