//! The JSON Schema of a table's rows, as a link's messages have them.
//!
//! Comes in: the columns as the WAL names them, their types, and what a link selects, renames and masks. Goes out: a schema as text,
//! and its version: a hash of that text. Always holds: the same columns and the same link give the same text, in every session and
//! every copy of the database; each row that [`super::payload`] writes by this plan is valid by it. Which JSON a type becomes is
//! written in `docs/values.md`, what a schema says in `docs/json-schemas.md`.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};

use super::{
    digits::push_bytes,
    headers,
    mask::{Mask, Shape},
    types::{Class, Scalar, TypeCatalog, sql_name},
    value::write_json_str,
};
use crate::wal::change::{Relation, RelationColumn};

/// So many bytes of the hash are in a version.
const VERSION_BYTES: usize = 8;

/// A year of ISO 8601, month and day.
const DAY: &str = r"([0-9]{4}|\\+[0-9]{5,}|-[0-9]{4,})-[0-9]{2}-[0-9]{2}";
/// Hours, minutes and seconds.
const TIME: &str = r"[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,6})?";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSchema {
    /// `<schema>.<table>.<version>`: its key in the bucket, and the value of the header.
    pub key: String,
    /// The schema, as it is put into the bucket.
    pub text: String,
    /// The header as a line, with the line break before it.
    pub line: Vec<u8>,
}

impl RowSchema {
    /// Of the rows of `relation`: of its `selected` columns, in this `shape`.
    pub fn new(
        relation: &Relation,
        types: &TypeCatalog,
        selected: Option<&[bool]>,
        shape: Option<&Shape>,
    ) -> RowSchema {
        let text = text(relation, types, selected, shape);
        let mut version = Vec::new();
        push_bytes(&digest(&SHA256, text.as_bytes()).as_ref()[..VERSION_BYTES], &mut version);
        let key = format!("{}.{}", table_key(&relation.schema, &relation.name), String::from_utf8_lossy(&version));
        let line = format!("\r\n{}: {key}", headers::SCHEMA).into_bytes();
        RowSchema { key, text, line }
    }

    /// What of the key tells this schema from others of its table.
    pub fn version(&self) -> &str {
        self.key.rsplit_once('.').map_or("", |(_, version)| version)
    }
}

/// What the keys of a table's schemas have in common, up to the dot before the version. A bucket's keys have few characters: others
/// are `=` and their two hexadecimal digits, byte by byte.
pub fn table_key(schema: &str, table: &str) -> String {
    let mut key = String::new();
    for (index, name) in [schema, table].into_iter().enumerate() {
        if index > 0 {
            key.push('.');
        }
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') {
                key.push(byte.into());
            } else {
                key.push_str(&format!("={byte:02X}"));
            }
        }
    }
    key
}

fn text(relation: &Relation, types: &TypeCatalog, selected: Option<&[bool]>, shape: Option<&Shape>) -> String {
    let mut out = b"{\"$schema\":\"https://json-schema.org/draft/2020-12/schema\",\"title\":".to_vec();
    write_json_str(&format!("{}.{}", relation.schema, relation.name), &mut out);
    out.extend_from_slice(b",\"type\":\"object\",\"properties\":{");
    let mut arrays = BTreeMap::new();
    let sent =
        relation.columns.iter().enumerate().filter(|(index, _)| selected.is_none_or(|selected| selected[*index]));
    for (nth, (index, column)) in sent.enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        match shape.and_then(|shape| shape.key(index)) {
            Some(key) => out.extend_from_slice(key),
            None => {
                write_json_str(&column.name, &mut out);
                out.push(b':');
            }
        }
        out.extend_from_slice(
            match shape.map_or(Mask::Plain, |shape| shape.mask(index)) {
                Mask::Plain => property(column, types, &mut arrays),
                Mask::Hash => {
                    r#"{"description":"hash","type":["string","null"],"pattern":"^[0-9a-f]{64}$"}"#.to_owned()
                }
                Mask::Last4 => r#"{"description":"last4","type":["string","null"],"pattern":"^\\*{4}"}"#.to_owned(),
                Mask::Null => r#"{"type":"null"}"#.to_owned(),
            }
            .as_bytes(),
        );
    }
    out.extend_from_slice(b"},\"additionalProperties\":false");
    if !arrays.is_empty() {
        let definition = |(name, element)| {
            format!(
                r##""{name}":{{"type":["array","null"],"items":{{"anyOf":[{element},{{"$ref":"#/$defs/{name}"}}]}}}}"##
            )
        };
        let definitions: Vec<_> = arrays.iter().map(definition).collect();
        out.extend_from_slice(format!(",\"$defs\":{{{}}}", definitions.join(",")).as_bytes());
    }
    out.push(b'}');
    String::from_utf8_lossy(&out).into_owned()
}

/// What a column's values are. An array's elements go into `arrays`, by their name there.
fn property(column: &RelationColumn, types: &TypeCatalog, arrays: &mut BTreeMap<String, String>) -> String {
    let class = types.class(column.type_oid).unwrap_or_else(|| types.declared(column.type_oid));
    let leaf = types.leaf(column.type_oid);
    let name = sql_name(leaf);
    match class {
        Class::Scalar(scalar) => {
            let description = name.map(|name| format!(r#""description":"{}""#, name.replace('"', "\\\"")));
            let keywords = keywords(scalar, leaf, types.has_raw_bytes);
            let all: Vec<_> = description.into_iter().chain(keywords).collect();
            format!("{{{}}}", all.join(","))
        }
        Class::Array { element, .. } => {
            // Elements of one type have one definition. A type without a known name counts by the way its values are written.
            let known = name.map(|name| name.replace('"', "").replace(' ', "_"));
            let of = known.unwrap_or_else(|| format!("{element:?}_values").to_ascii_lowercase());
            let of = format!("array_of_{of}");
            let description =
                name.map_or_else(String::new, |name| format!(r#""description":"{}[]","#, name.replace('"', "\\\"")));
            let property = format!(r##"{{{description}"$ref":"#/$defs/{of}"}}"##);
            let keywords: Vec<_> = keywords(element, leaf, types.has_raw_bytes).into_iter().collect();
            arrays.insert(of, format!("{{{}}}", keywords.join(",")));
            property
        }
    }
}

/// What is said of a value; nothing of one that may be any JSON. `leaf`: the type below domains and arrays.
fn keywords(scalar: Scalar, leaf: u32, has_raw_bytes: bool) -> Option<String> {
    let text = |more: &str| {
        let string = format!(r#""type":["string","null"]{more}"#);
        if has_raw_bytes {
            let tagged = r#"{"type":"object","properties":{"$base64":{"type":"string"}},"required":["$base64"],"additionalProperties":false}"#;
            format!(r#""anyOf":[{{{string}}},{tagged}]"#)
        } else {
            string
        }
    };
    let matching = |pattern: &str| format!(r#""type":["string","null"],"pattern":"{pattern}""#);
    Some(match scalar {
        Scalar::Bool => r#""type":["boolean","null"]"#.to_owned(),
        Scalar::Integer => {
            let bounds = match leaf {
                21 => r#","minimum":-32768,"maximum":32767"#,
                23 => r#","minimum":-2147483648,"maximum":2147483647"#,
                20 => r#","minimum":-9223372036854775808,"maximum":9223372036854775807"#,
                26 | 28 | 29 => r#","minimum":0,"maximum":4294967295"#,
                5069 => r#","minimum":0,"maximum":18446744073709551615"#,
                _ => "",
            };
            format!(r#""type":["integer","null"]{bounds}"#)
        }
        Scalar::Number => r#""type":["number","string","null"],"pattern":"^(NaN|-?Infinity)$""#.to_owned(),
        Scalar::Json | Scalar::Jsonb => return None,
        Scalar::Bytea => r#""type":["string","null"],"contentEncoding":"base64""#.to_owned(),
        Scalar::Date => matching(&format!("^({DAY}|-?infinity)$")),
        Scalar::Timestamp => {
            let offset = match leaf {
                1114 => "",
                1184 => r"\\+00:00",
                _ => r"(\\+00:00)?",
            };
            matching(&format!("^({DAY}T{TIME}{offset}|-?infinity)$"))
        }
        Scalar::TimeTz => matching(&format!("^{TIME}[+-][0-9]{{2}}:[0-9]{{2}}(:[0-9]{{2}})?$")),
        Scalar::Vector => r#""type":["array","null"],"items":{"type":"integer"}"#.to_owned(),
        Scalar::Text if leaf == 2950 => text(r#","format":"uuid""#),
        Scalar::Text => text(""),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{route::types::TypeKind, wal::pgoutput::ReplicaIdentity};

    fn relation(name: &str, columns: &[(&str, u32)]) -> Relation {
        let column = |(name, type_oid): &(&str, u32)| RelationColumn {
            name: (*name).to_owned(),
            type_oid: *type_oid,
            is_key: false,
        };
        Relation {
            id: 1,
            schema: "public".to_owned(),
            name: name.to_owned(),
            identity: ReplicaIdentity::Default,
            columns: columns.iter().map(column).collect(),
        }
    }

    #[test]
    fn a_version_is_the_same_wherever_the_columns_are_and_another_where_they_are_not() {
        let types = TypeCatalog::new();
        let of = |columns: &[(&str, u32)]| RowSchema::new(&relation("orders", columns), &types, None, None);
        let first = of(&[("id", 20), ("total", 1700)]);
        // Known to consumers: it must not change by itself.
        assert_eq!(first.key, "public.orders.cf2e3183b667dcae");
        assert_eq!(
            first.text,
            r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","title":"public.orders","type":"object","properties":{"id":{"description":"bigint","type":["integer","null"],"minimum":-9223372036854775808,"maximum":9223372036854775807},"total":{"description":"numeric","type":["number","string","null"],"pattern":"^(NaN|-?Infinity)$"}},"additionalProperties":false}"#
        );
        assert_eq!(first.line, format!("\r\nWalhook-Schema: {}", first.key).into_bytes());
        // Whether a column is part of a key is not in a backfill as it is in the WAL.
        let mut keyed = relation("orders", &[("id", 20), ("total", 1700)]);
        keyed.columns[0].is_key = true;
        assert_eq!(RowSchema::new(&keyed, &types, None, None), first);
        let all = [
            of(&[("id", 20)]),
            of(&[("total", 1700), ("id", 20)]),
            of(&[("id", 23), ("total", 1700)]),
            of(&[("id", 20), ("sum", 1700)]),
            RowSchema::new(&relation("order", &[("id", 20), ("total", 1700)]), &types, None, None),
            RowSchema::new(&relation("orders", &[("id", 20), ("total", 1700)]), &types, Some(&[true, false]), None),
        ];
        assert!(all.iter().all(|other| other.version() != first.version() && other.version().len() == 16));
    }

    #[test]
    fn whatever_a_table_is_called_its_key_is_one_of_a_bucket() {
        for (schema, table, key) in [
            ("public", "orders", "public.orders"),
            ("a.b", "c", "a=2Eb.c"),
            ("a", "b.c", "a.b=2Ec"),
            ("a=2Eb", "Ä \n*>", "a=3D2Eb.=C3=84=20=0A=2A=3E"),
        ] {
            assert_eq!(table_key(schema, table), key);
        }
        let longest = table_key(&"\u{1}".repeat(63), &"\"".repeat(63));
        assert!(
            longest.len() < 400 && longest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"=.".contains(&byte))
        );
    }

    #[test]
    fn a_schema_is_json_whatever_its_columns_are_called() {
        let mut types = TypeCatalog::new();
        types.insert(20_000, TypeKind::Domain { base: 1007 });
        types.insert(20_001, TypeKind::Array { element: 20_000, delimiter: b',' });
        types.insert(20_002, TypeKind::Scalar(Scalar::Text));
        types.insert(20_003, TypeKind::Array { element: 20_002, delimiter: b',' });
        let columns =
            [("a\"\\\u{1}", 18), ("\u{2028}", 1002), ("", 20_001), ("e", 20_003), ("t", 1009), ("gone", 30_000)];
        let schema = RowSchema::new(&relation("t", &columns), &types, None, None);
        let parsed: serde_json::Value = serde_json::from_str(&schema.text).unwrap();
        assert_eq!(parsed["properties"].as_object().unwrap().len(), columns.len());
        let names: Vec<_> = parsed["$defs"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(names, ["array_of_char", "array_of_integer", "array_of_text", "array_of_text_values"]);
        assert_eq!(parsed["properties"]["gone"]["type"], serde_json::json!(["string", "null"]));
    }

    #[test]
    fn a_table_of_the_most_columns_has_a_schema_of_less_than_a_message() {
        let names: Vec<_> = (0..1600).map(|index| format!("{index:0>10}{}", "\u{1}".repeat(53))).collect();
        let columns: Vec<_> = names.iter().map(|name| (name.as_str(), 1184)).collect();
        let schema = RowSchema::new(&relation("t", &columns), &TypeCatalog::new(), None, None);
        assert!(schema.text.len() < 1_000_000, "{}", schema.text.len());
    }
}
