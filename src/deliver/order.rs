//! The order of events by key: which keys an event has, and which events may be called.
//!
//! In: messages in the order of their stream, and which of them are done. Out: the events that no earlier one with a key in common stands
//! before. Always holds: of two events with a common key the later one is not ready before the earlier one is done; an event whose
//! key cannot be known is ordered with all others.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where the key of a webhook's events stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyFrom {
    /// In these fields of the data, as a primary key's columns.
    Data(Vec<String>),
    /// In the token with this number of the subject, from 1.
    Subject(usize),
    /// In this header of the message.
    Header(String),
    /// The row says something that cannot be read: all events have the same key.
    Unreadable,
}

impl KeyFrom {
    /// As a webhook's row says it: `data:COLUMN[,COLUMN]`, `subject:N`, `header:NAME`.
    pub fn read(text: Option<&str>) -> KeyFrom {
        match text.and_then(|text| text.split_once(':')) {
            Some(("data", columns)) if !columns.is_empty() => {
                KeyFrom::Data(columns.split(',').map(|column| column.trim().to_owned()).collect())
            }
            Some(("subject", number)) => number.parse().map_or(KeyFrom::Unreadable, KeyFrom::Subject),
            Some(("header", name)) if !name.is_empty() => KeyFrom::Header(name.to_owned()),
            _ => KeyFrom::Unreadable,
        }
    }

    /// The keys of an event: one, or two where an update has changed it. `data` is the row; `None`: it is not known.
    pub fn of<'a>(
        &self,
        subject: &str,
        header: impl Fn(&str) -> Option<&'a str>,
        data: impl FnOnce() -> Option<Value>,
    ) -> Keys {
        match self {
            KeyFrom::Unreadable => Keys::All,
            KeyFrom::Subject(number) => {
                let token = number.checked_sub(1).and_then(|index| subject.split('.').nth(index));
                token.map_or(Keys::All, |token| Keys::These(BTreeSet::from([token.to_owned()])))
            }
            KeyFrom::Header(name) => {
                header(name).map_or(Keys::All, |value| Keys::These(BTreeSet::from([value.to_owned()])))
            }
            KeyFrom::Data(columns) => {
                let key = |row: &Value| {
                    let values = columns.iter().map(|column| row.get(column).cloned());
                    values.collect::<Option<Vec<Value>>>().map(|values| Value::Array(values).to_string())
                };
                let Some(now) = data().as_ref().and_then(key) else { return Keys::All };
                let before = header("Walhook-Old-Key").and_then(|old| serde_json::from_str::<Value>(old).ok());
                let before = before.as_ref().and_then(key);
                Keys::These([Some(now), before].into_iter().flatten().collect())
            }
        }
    }
}

/// The keys of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// These.
    These(BTreeSet<String>),
    /// Any: it is ordered with all events.
    All,
}

/// Events that are not done, by the sequences of their messages.
#[derive(Debug, Default)]
pub struct KeyOrder {
    events: BTreeMap<u64, Keys>,
    of_key: BTreeMap<String, BTreeSet<u64>>,
    of_all: BTreeSet<u64>,
}

impl KeyOrder {
    /// One more. Whether it was not there.
    pub fn add(&mut self, sequence: u64, keys: Keys) -> bool {
        if self.events.contains_key(&sequence) {
            return false;
        }
        match &keys {
            Keys::All => drop(self.of_all.insert(sequence)),
            Keys::These(these) => {
                for key in these {
                    self.of_key.entry(key.clone()).or_default().insert(sequence);
                }
            }
        }
        self.events.insert(sequence, keys);
        true
    }

    /// Whether no earlier event stands before it.
    pub fn is_ready(&self, sequence: u64) -> bool {
        let Some(keys) = self.events.get(&sequence) else { return false };
        let is_first = |of: &BTreeSet<u64>| of.first().is_none_or(|first| *first >= sequence);
        match keys {
            Keys::All => self.events.keys().next().is_none_or(|first| *first >= sequence),
            Keys::These(these) => {
                is_first(&self.of_all) && these.iter().all(|key| self.of_key.get(key).is_none_or(is_first))
            }
        }
    }

    /// It is done. Returns those that may be ready now.
    pub fn finish(&mut self, sequence: u64) -> Vec<u64> {
        let keys = match self.events.remove(&sequence) {
            None => return Vec::new(),
            Some(Keys::All) => {
                self.of_all.remove(&sequence);
                // All waited for it, up to the next one of its kind.
                let until = self.of_all.first().copied().unwrap_or(u64::MAX);
                let freed: Vec<u64> = self.events.range(..=until).map(|(next, _)| *next).collect();
                return freed.into_iter().filter(|next| self.is_ready(*next)).collect();
            }
            Some(Keys::These(these)) => these,
        };
        let mut next: BTreeSet<u64> = self.of_all.first().copied().into_iter().collect();
        for key in keys {
            if let Some(of) = self.of_key.get_mut(&key) {
                of.remove(&sequence);
                next.extend(of.first());
                if of.is_empty() {
                    self.of_key.remove(&key);
                }
            }
        }
        next.into_iter().filter(|next| self.is_ready(*next)).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn these(keys: &[&str]) -> Keys {
        Keys::These(keys.iter().map(|&key| key.to_owned()).collect())
    }

    #[test]
    fn an_event_is_ready_when_no_earlier_one_has_a_key_of_its_own() {
        let mut order = KeyOrder::default();
        for (sequence, keys) in [(1, these(&["a"])), (2, these(&["b"])), (3, these(&["a", "b"])), (4, these(&["c"]))] {
            assert!(order.add(sequence, keys));
        }
        assert!(!order.add(2, Keys::All), "it is there");
        let ready = |order: &KeyOrder| (1..=9).filter(|sequence| order.is_ready(*sequence)).collect::<Vec<_>>();
        assert_eq!(ready(&order), [1, 2, 4]);
        assert_eq!(order.finish(1), [0; 0]);
        assert_eq!(ready(&order), [2, 4], "b stands before it");
        assert_eq!(order.finish(2), [3]);
        assert_eq!(ready(&order), [3, 4]);
        // One of which nothing is known waits for all, and all that come later wait for it.
        order.add(5, Keys::All);
        order.add(6, these(&["d"]));
        assert_eq!(ready(&order), [3, 4]);
        order.finish(3);
        assert_eq!(order.finish(4), [5]);
        assert_eq!(ready(&order), [5]);
        assert_eq!(order.finish(5), [6]);
        assert_eq!(ready(&order), [6]);
        order.finish(6);
        assert!(order.events.is_empty() && order.of_key.is_empty() && order.of_all.is_empty());
    }

    #[test]
    fn keys_are_read_from_where_the_row_says() {
        let header = |name: &str| match name {
            "X-Customer" => Some("7"),
            "Walhook-Old-Key" => Some(r#"{"id": 1}"#),
            _ => None,
        };
        let keys = |from: &str, data: Value| KeyFrom::read(Some(from)).of("webhooks.orders.eu", header, || Some(data));
        assert_eq!(keys("subject:3", json!(null)), these(&["eu"]));
        assert_eq!(keys("subject:4", json!(null)), Keys::All);
        assert_eq!(keys("header:X-Customer", json!(null)), these(&["7"]));
        assert_eq!(keys("header:X-Other", json!(null)), Keys::All);
        assert_eq!(keys("data:customer", json!({"customer": null})), these(&["[null]"]));
        assert_eq!(keys("data:customer", json!({"id": 1})), Keys::All, "a delete shows its key only");
        assert_eq!(keys("data:id", json!({"id": 2})), these(&["[2]", "[1]"]), "an update has changed it");
        assert_eq!(keys("data:id,b", json!({"id": 2, "b": "x"})), these(&[r#"[2,"x"]"#]));
        for unreadable in ["", "id", "subject:x", "header:", "data:"] {
            assert_eq!(keys(unreadable, json!({"id": 2})), Keys::All, "{unreadable}");
        }
    }
}
