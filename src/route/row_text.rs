//! A configuration row as text, as PostgreSQL writes it.
//!
//! Comes in: the columns of a row from a statement, the WAL, or a version that was kept as JSON. Goes out: the same by name, and as
//! JSON. A start reads two rows for each webhook and link, so a row has three allocations, whatever its columns, and rows of
//! one statement share the names of their columns.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};

/// The text of each column, `None` for NULL.
#[derive(Clone, Default)]
pub struct RowText {
    names: Arc<[String]>,
    values: Vec<Option<Range<usize>>>,
    text: String,
}

impl RowText {
    /// A row of a statement whose columns have these names.
    ///
    /// # Panics
    /// If there are not as many values as names.
    pub fn new<'a>(names: &Arc<[String]>, values: impl Iterator<Item = Option<&'a str>> + Clone) -> RowText {
        let mut text = String::with_capacity(values.clone().flatten().map(str::len).sum());
        let values: Vec<_> = values.map(|value| value.map(|value| put(&mut text, value))).collect();
        assert_eq!(names.len(), values.len(), "a value for each column");
        RowText { names: Arc::clone(names), values, text }
    }

    /// The columns with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>)> + Clone {
        self.names.iter().enumerate().map(|(at, name)| (name.as_str(), self.value(at)))
    }

    fn value(&self, at: usize) -> Option<&str> {
        self.values[at].clone().map(|range| &self.text[range])
    }

    /// The value of a column; the outer `None`: there is no such column.
    pub fn get(&self, column: &str) -> Option<Option<&str>> {
        self.iter().find_map(|(name, value)| (name == column).then_some(value))
    }

    /// Takes over the columns that `newer` has; the others stay.
    pub fn extend(&mut self, newer: RowText) {
        *self = self
            .iter()
            .filter(|(name, _)| newer.get(name).is_none())
            .chain(newer.iter())
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
    }

    /// Whether a JSON object says the same: it has the same values, and those of columns that it lacks are NULL or false, for they
    /// did not exist yet when it was written. `order` is where the columns of the object before were found in its row: those
    /// of one table mostly have the same order.
    pub fn is_json(&self, json: &str, order: &mut Vec<usize>) -> bool {
        struct Same<'r>(&'r RowText, &'r mut Vec<usize>);

        impl<'de> Visitor<'de> for Same<'_> {
            type Value = bool;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
                let Same(row, order) = self;
                let (mut same, mut count) = (true, 0);
                while let Some((Text(column), value)) = map.next_entry::<Text<'_>, Option<Text<'_>>>()? {
                    // The rest is read all the same: a deserializer takes no half of an object.
                    if !same {
                        continue;
                    }
                    let is_it = |at: &usize| row.names.get(*at).is_some_and(|name| *name == column);
                    let expected = order.get(count).copied().filter(is_it);
                    let found = expected.or_else(|| row.names.iter().position(|name| *name == column));
                    let Some(at) = found else {
                        same = false;
                        continue;
                    };
                    match order.get_mut(count) {
                        Some(known) => *known = at,
                        None => order.push(at),
                    }
                    same = row.value(at) == value.as_ref().map(|Text(value)| &**value);
                    count += 1;
                }
                let is_whole = count == row.names.len();
                let is_default = |at: usize| order[..count].contains(&at) || matches!(row.value(at), None | Some("f"));
                Ok(same && (is_whole || (0..row.names.len()).all(is_default)))
            }
        }

        serde_json::Deserializer::from_str(json).deserialize_map(Same(self, order)).unwrap_or(false)
    }
}

/// Appends a value, and says where it is.
fn put(text: &mut String, value: &str) -> Range<usize> {
    let from = text.len();
    text.push_str(value);
    from..text.len()
}

impl<N: Into<String>, V: AsRef<str>> FromIterator<(N, Option<V>)> for RowText {
    fn from_iter<I: IntoIterator<Item = (N, Option<V>)>>(columns: I) -> RowText {
        let mut text = String::new();
        let (names, values): (Vec<String>, _) = columns
            .into_iter()
            .map(|(name, value)| (name.into(), value.map(|value| put(&mut text, value.as_ref()))))
            .unzip();
        RowText { names: names.into(), values, text }
    }
}

/// In whatever order the columns come.
impl PartialEq for RowText {
    fn eq(&self, other: &RowText) -> bool {
        self.names.len() == other.names.len() && self.iter().all(|(name, value)| other.get(name) == Some(value))
    }
}

impl Eq for RowText {}

/// Without the values: rows of `rule_nats_config` hold credentials.
impl fmt::Debug for RowText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names.iter()).finish()
    }
}

impl Serialize for RowText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// A JSON string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for RowText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RowText, D::Error> {
        struct Columns;

        impl<'de> Visitor<'de> for Columns {
            type Value = RowText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RowText, A::Error> {
                let mut columns: Vec<(String, Option<Cow<'de, str>>)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Option<Text<'de>>>()? {
                    columns.push((name, value.map(|Text(value)| value)));
                }
                Ok(columns.into_iter().collect())
            }
        }

        deserializer.deserialize_map(Columns)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(columns: &[(&str, Option<&str>)]) -> RowText {
        columns.iter().copied().collect()
    }

    #[test]
    fn a_row_is_kept_as_json_and_read_back() {
        let kept = row(&[("webhook_id", Some("7")), ("headers", None), ("url", Some("a\"b\\c\nä"))]);
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(text, r#"{"webhook_id":"7","headers":null,"url":"a\"b\\c\nä"}"#);
        assert_eq!(serde_json::from_str::<RowText>(&text).unwrap(), kept);
        assert!(!format!("{kept:?}").contains('7'), "a row may hold a secret");
    }

    #[test]
    fn a_row_is_compared_with_json_in_any_order() {
        let kept = row(&[("a", Some("1")), ("b", None), ("c", Some("x\ny"))]);
        let mut order = Vec::new();
        for (json, same) in [
            (r#"{"a":"1","b":null,"c":"x\ny"}"#, true),
            (r#"{"c":"x\ny","a":"1","b":null}"#, true),
            (r#"{"c":"x\ny","a":"1","b":null}"#, true),
            (r#"{"c":"x\ny","b":null,"a":"1"}"#, true),
            (r#"{"a":"1","b":"","c":"x\ny"}"#, false),
            (r#"{"a":"1","b":null}"#, false),
            (r#"{"c":"x\ny","a":"1"}"#, true),
            (r#"{"a":"1","a":"1","c":"x\ny"}"#, true),
            (r#"{"a":"2","b":null,"c":"x\ny"}"#, false),
            (r#"{"a":"1","b":null,"c":"x\ny","d":null}"#, false),
            (r#"{"a":"1","b":null,"c":"x\ny"}"#, true),
            ("[]", false),
        ] {
            assert_eq!(kept.is_json(json, &mut order), same, "{json}");
        }
    }

    #[test]
    fn a_partial_row_leaves_the_other_columns() {
        let mut whole = row(&[("a", Some("1")), ("b", Some("2"))]);
        whole.extend(row(&[("b", None), ("c", Some("3"))]));
        assert_eq!(whole, row(&[("a", Some("1")), ("b", None), ("c", Some("3"))]));
    }
}
