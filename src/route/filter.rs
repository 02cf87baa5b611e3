//! A link's filter: containment, as jsonb's `@>`, of a JSON object in the row.
//!
//! A top-level key names a column. Its value is compared with the column as it stands in the payload: numbers by
//! value, strings exactly, objects and arrays by containment. A column that the WAL does not show (an untouched
//! large value, a non-key column of a deleted row) decides nothing: the change passes, for what is not known must
//! not be lost.

use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use super::{
    types::Class,
    value::{write_json, write_json_str},
};
use crate::wal::change::Relation;

/// A compiled filter, fitted to one table.
#[derive(Debug, Clone)]
pub struct Filter {
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone)]
struct Condition {
    column: usize,
    expected: Expected,
}

#[derive(Debug, Clone)]
enum Expected {
    Null,
    /// The value's JSON, to be compared byte by byte: strings and booleans.
    Exactly(Vec<u8>),
    Number(String),
    Contains(Value),
}

/// What a change shows of a column.
#[derive(Debug, Clone, Copy)]
pub enum Seen<'a> {
    /// SQL NULL.
    Null,
    /// Its text.
    Text(&'a [u8]),
    /// The WAL does not tell.
    Unknown,
}

impl Filter {
    /// Reads a filter and fits it to `relation`.
    ///
    /// # Errors
    /// A text that says what is wrong: not a JSON object, or a key that is no column.
    pub fn parse(filter: &str, relation: &Relation) -> Result<Filter, String> {
        let keys: BTreeMap<String, &RawValue> =
            serde_json::from_str(filter).map_err(|error| format!("filter is not a JSON object: {error}"))?;
        let conditions = keys.into_iter().map(|(key, raw)| {
            let column =
                relation.columns.iter().position(|column| column.name == key).ok_or_else(|| {
                    format!("filter: {key:?} is not a column of {}.{}", relation.schema, relation.name)
                })?;
            Ok(Condition { column, expected: Expected::read(raw)? })
        });
        Ok(Filter { conditions: conditions.collect::<Result<_, String>>()? })
    }

    /// Whether a row passes. `seen` tells a column's value, `class` its type; `scratch` is working space.
    pub fn passes<'a>(
        &self,
        seen: impl Fn(usize) -> Seen<'a>,
        class: impl Fn(usize) -> Class,
        scratch: &mut Vec<u8>,
    ) -> bool {
        self.conditions.iter().all(|condition| match (seen(condition.column), &condition.expected) {
            (Seen::Unknown, _) => true,
            (Seen::Null, expected) => matches!(expected, Expected::Null),
            (Seen::Text(_), Expected::Null) => false,
            (Seen::Text(text), expected) => {
                scratch.clear();
                write_json(class(condition.column), text, scratch);
                expected.holds(scratch)
            }
        })
    }
}

impl Expected {
    fn read(raw: &RawValue) -> Result<Expected, String> {
        let text = raw.get().trim();
        let value: Value = serde_json::from_str(text).map_err(|error| format!("filter: {error}"))?;
        Ok(match value {
            Value::Null => Expected::Null,
            Value::Bool(_) => Expected::Exactly(text.as_bytes().to_vec()),
            Value::Number(_) => Expected::Number(text.to_owned()),
            Value::String(string) => {
                let mut json = Vec::new();
                write_json_str(&string, &mut json);
                Expected::Exactly(json)
            }
            nested @ (Value::Array(_) | Value::Object(_)) => Expected::Contains(nested),
        })
    }

    fn holds(&self, json: &[u8]) -> bool {
        let json = json.trim_ascii();
        match self {
            // SQL NULL was answered before; this is the JSON null inside a json column.
            Expected::Null => json == b"null",
            Expected::Exactly(expected) => json == expected,
            Expected::Number(expected) => std::str::from_utf8(json).is_ok_and(|json| same_number(json, expected)),
            Expected::Contains(expected) => {
                serde_json::from_slice::<Value>(json).is_ok_and(|actual| contains(&actual, expected))
            }
        }
    }
}

/// jsonb's containment (manual, section 8.14.3), without its top-level exception for scalars in arrays.
fn contains(actual: &Value, expected: &Value) -> bool {
    match (actual, expected) {
        (Value::Object(actual), Value::Object(expected)) => {
            expected.iter().all(|(key, expected)| actual.get(key).is_some_and(|actual| contains(actual, expected)))
        }
        (Value::Array(actual), Value::Array(expected)) => {
            expected.iter().all(|expected| actual.iter().any(|actual| contains(actual, expected)))
        }
        (Value::Number(actual), Value::Number(expected)) => same_number(&actual.to_string(), &expected.to_string()),
        (actual, expected) => actual == expected,
    }
}

/// Whether two JSON numbers have the same value: `1`, `1.0` and `10e-1` do. Exact for any number of digits.
fn same_number(a: &str, b: &str) -> bool {
    match (Decimal::read(a), Decimal::read(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// A decimal number as sign, significant digits and the power of ten of the last one.
#[derive(PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i64,
}

impl Decimal {
    fn read(text: &str) -> Option<Decimal> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse().ok()?),
            None => (text, 0i64),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).skip_while(|&byte| byte == b'0').collect();
        let mut exponent = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?;
        while digits.last() == Some(&b'0') {
            digits.pop();
            exponent += 1;
        }
        if digits.is_empty() {
            return Some(Decimal { negative: false, digits, exponent: 0 });
        }
        Some(Decimal { negative, digits, exponent })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::route::types::TypeCatalog;
    use crate::wal::{change::RelationColumn, pgoutput::ReplicaIdentity};

    /// Columns: `status text`, `amount numeric`, `paid bool`, `doc jsonb`.
    fn check(filter: &str, row: [Option<&str>; 4], expected: bool) {
        let types = [("status", 25), ("amount", 1700), ("paid", 16), ("doc", 3802)];
        let relation = Relation {
            id: 1,
            schema: "public".to_owned(),
            name: "orders".to_owned(),
            identity: ReplicaIdentity::Default,
            columns: types
                .iter()
                .map(|&(name, type_oid)| RelationColumn { name: name.to_owned(), type_oid, is_key: false })
                .collect(),
        };
        let catalog = TypeCatalog::default();
        let compiled = Filter::parse(filter, &relation).unwrap();
        let passes = compiled.passes(
            |column| row[column].map_or(Seen::Null, |text| Seen::Text(text.as_bytes())),
            |column| catalog.class(types[column].1).unwrap(),
            &mut Vec::new(),
        );
        assert_eq!(passes, expected, "{filter} on {row:?}");
    }

    #[test]
    fn a_row_passes_when_it_contains_the_filter() {
        let row = [Some("paid \"x\""), Some("10.50"), Some("t"), Some(r#"{"a":{"b":1.0,"c":2},"tags":["x","y"]}"#)];
        check("{}", row, true);
        check(r#"{"status":"paid \"x\""}"#, row, true);
        check(r#"{"status":"paid"}"#, row, false);
        check(r#"{"amount":10.5}"#, row, true);
        check(r#"{"amount":1.05e1,"paid":true}"#, row, true);
        check(r#"{"amount":10.51}"#, row, false);
        check(r#"{"paid":false}"#, row, false);
        check(r#"{"doc":{"a":{"b":1}}}"#, row, true);
        check(r#"{"doc":{"tags":["y"]}}"#, row, true);
        check(r#"{"doc":{"tags":["z"]}}"#, row, false);
        check(r#"{"status":null}"#, row, false);
        check(r#"{"status":null}"#, [None, None, None, None], true);
        check(r#"{"status":"x"}"#, [None, None, None, None], false);
    }

    #[test]
    fn what_the_wal_does_not_show_does_not_lose_a_change() {
        let relation = Relation {
            id: 1,
            schema: "public".to_owned(),
            name: "t".to_owned(),
            identity: ReplicaIdentity::Default,
            columns: vec![RelationColumn { name: "a".to_owned(), type_oid: 25, is_key: false }],
        };
        let filter = Filter::parse(r#"{"a":"x"}"#, &relation).unwrap();
        let class = TypeCatalog::default().class(25).unwrap();
        assert!(filter.passes(|_| Seen::Unknown, |_| class, &mut Vec::new()));
        assert!(Filter::parse("[1]", &relation).unwrap_err().contains("JSON object"));
        assert!(Filter::parse(r#"{"b":1}"#, &relation).unwrap_err().contains("\"b\" is not a column"));
    }
}
