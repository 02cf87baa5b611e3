//! Links whose message is a column: its value is the body, byte for byte, and other columns have an id and headers.
//!
//! Comes in: a link, its table, and inserted rows. Goes out: the body and the headers of the messages, or why a row can be no
//! message. Always holds: no value reaches a header that could end its line. Knows nothing of the event's id, by which the stream
//! deduplicates: two rows with the same id of their own are two messages.

use std::collections::BTreeMap;

use super::{
    headers::{BLOCK_MAX, push_line},
    rules::{Format, Webhook},
    tables::LinkRow,
    types::TypeCatalog,
    value::write_bytes,
};
use crate::wal::{
    change::Relation,
    pgoutput::{Column, Tuple},
};

/// Longest id of a message that is a user's own, in bytes.
pub const MESSAGE_ID_MAX: usize = 512;

const CONTENT_TYPE: &str = "Content-Type";

/// The columns that make the messages of a link.
#[derive(Debug)]
pub struct MessageColumns {
    payload: Source,
    content_type: &'static str,
    is_bytea: bool,
    id: Option<Source>,
    headers: Vec<(String, Source)>,
    /// The line that names the headers.
    names: Vec<u8>,
}

/// A column by its place and its name.
#[derive(Debug)]
struct Source {
    index: usize,
    name: String,
}

/// The type of a message's content by that of its column, and whether the column is a bytea.
fn content_type(base_type: u32) -> Option<(&'static str, bool)> {
    // As PostgreSQL's pg_type.dat has them.
    match base_type {
        114 | 3802 => Some(("application/json", false)),
        25 | 1043 => Some(("text/plain; charset=utf-8", false)),
        17 => Some(("application/octet-stream", true)),
        _ => None,
    }
}

/// What the link and its webhook say otherwise that does not go with a message from a column.
fn conflicts(link: &LinkRow, webhook: &Webhook) -> impl Iterator<Item = &'static str> {
    let conflicts = [
        (link.operations != ["insert"], "its message is a column, and only inserts are such messages"),
        (webhook.format != Format::Data, "its message is a column, which needs payload_format data"),
        (
            link.columns.is_some() || link.include_old,
            "its message is a column, so columns and include_old have nothing to choose from",
        ),
    ];
    conflicts.into_iter().filter_map(|(is_there, what)| is_there.then_some(what))
}

impl MessageColumns {
    /// Those of `link`, if its message is a column. What hinders its messages goes to `problems`; where their columns are not there it is
    /// no such link, so that its dead letters have the row.
    pub fn new(
        link: &LinkRow,
        relation: &Relation,
        types: &TypeCatalog,
        webhook: &Webhook,
        problems: &mut Vec<String>,
    ) -> Option<MessageColumns> {
        let table = format!("{}.{}", relation.schema, relation.name);
        let before = problems.len();
        let Some(payload) = &link.payload_column else {
            if link.message_id_column.is_some() || link.headers_columns.is_some() {
                problems.push("message_id_column and headers_columns need a payload_column".to_owned());
            }
            return None;
        };
        let named: BTreeMap<String, String> = match link.headers_columns.as_deref().map(serde_json::from_str) {
            None => BTreeMap::new(),
            Some(Ok(named)) => named,
            Some(Err(_)) => {
                problems.push("headers_columns is not a JSON object of headers and columns".to_owned());
                return None;
            }
        };
        let mut source = |what: &str, name: &str| {
            let index = relation.columns.iter().position(|column| column.name == name);
            if index.is_none() {
                problems.push(format!("{what}: {name:?} is not a column of {table}"));
            }
            index.map(|index| Source { index, name: name.to_owned() })
        };
        let payload = source("payload_column", payload);
        let id = link.message_id_column.as_deref().map(|name| source("message_id_column", name));
        let headers = named.into_iter().map(|(name, column)| Some((name, source("headers_columns", &column)?)));
        let headers: Vec<_> = headers.collect::<Option<_>>()?;
        let payload = payload?;
        let id = match id {
            None => None,
            Some(found) => Some(found?),
        };
        let names: serde_json::Map<_, _> = headers.iter().map(|(name, _)| (name.clone(), "".into())).collect();
        if let Some(why) = super::headers::invalid(&names, super::headers::Of::Message) {
            problems.push(format!("headers_columns: {why}"));
            return None;
        }
        let Some((content_type, is_bytea)) = content_type(types.base(relation.columns[payload.index].type_oid)) else {
            problems.push(format!(
                "payload_column: {:?} of {table} is not of type json, jsonb, text, varchar or bytea",
                payload.name
            ));
            return None;
        };
        if problems.len() == before {
            problems.extend(conflicts(link, webhook).map(str::to_owned));
        }
        if link.mask.is_some() || link.rename.is_some() {
            // Body and headers would have the columns as they are.
            problems.push("its message is a column, which no mask and no rename apply to".to_owned());
            return None;
        }
        let mut listed = Vec::new();
        for (name, _) in &headers {
            listed.extend_from_slice(if listed.is_empty() { b"\r\nWalhook-Headers: " } else { b" " });
            listed.extend_from_slice(name.as_bytes());
        }
        Some(MessageColumns { payload, content_type, is_bytea, id, headers, names: listed })
    }

    /// Why the row can be no message.
    pub fn problem(&self, row: Tuple<'_>) -> Option<String> {
        match column(row, &self.payload) {
            Some(Column::Text(_)) => {}
            Some(Column::Null) => return Some(format!("its payload, column {:?}, is NULL", self.payload.name)),
            _ => return Some(format!("its payload, column {:?}, is not in the WAL", self.payload.name)),
        }
        if let Some(id) = &self.id
            && let Some(value) = text(row, id)
            && (value.len() > MESSAGE_ID_MAX || !is_sendable(value))
        {
            return Some(format!(
                "its message id, column {:?}, is longer than {MESSAGE_ID_MAX} bytes, has control characters or is not UTF-8",
                id.name
            ));
        }
        let mut length = 0;
        for (name, source) in &self.headers {
            let Some(value) = text(row, source) else { continue };
            if !is_sendable(value) {
                return Some(format!(
                    "its header {name:?}, column {:?}, has control characters or is not UTF-8",
                    source.name
                ));
            }
            length += name.len() + value.len();
        }
        (length > BLOCK_MAX).then(|| format!("its headers have {length} bytes, more than {BLOCK_MAX}"))
    }

    /// Appends the headers of a row's message, among them those of the webhook that no column of this row has.
    pub fn write_headers(&self, row: Tuple<'_>, webhook: &Webhook, out: &mut Vec<u8>) {
        let value_of = |source: &Source| text(row, source).filter(|value| is_sendable(value));
        let of_row = |name: &str| {
            let mut named = self.headers.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
            named.any(|(_, source)| value_of(source).is_some())
        };
        webhook.message_headers.write_unless(of_row, out);
        if !webhook.message_headers.has(CONTENT_TYPE) && !of_row(CONTENT_TYPE) {
            push_line(CONTENT_TYPE.as_bytes(), self.content_type.as_bytes(), out);
        }
        for (name, source) in &self.headers {
            if let Some(value) = value_of(source) {
                push_line(name.as_bytes(), value, out);
            }
        }
        out.extend_from_slice(&self.names);
        if let Some(id) = self.id.as_ref().and_then(value_of).filter(|id| id.len() <= MESSAGE_ID_MAX) {
            push_line(b"Walhook-Message-Id", id, out);
        }
    }

    /// Appends the body of a row's message; nothing where that is NULL.
    pub fn write_body(&self, row: Tuple<'_>, out: &mut Vec<u8>) {
        match column(row, &self.payload) {
            Some(Column::Text(text)) if self.is_bytea => write_bytes(text, out),
            Some(Column::Text(text)) => out.extend_from_slice(text),
            _ => {}
        }
    }
}

fn column<'a>(row: Tuple<'a>, source: &Source) -> Option<Column<'a>> {
    row.iter().nth(source.index)
}

/// The text of a value; none for NULL and for the empty text.
fn text<'a>(row: Tuple<'a>, source: &Source) -> Option<&'a [u8]> {
    match column(row, source)? {
        Column::Text(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

/// Whether a header can have this value.
fn is_sendable(value: &[u8]) -> bool {
    value.iter().all(|&byte| (byte >= b' ' || byte == b'\t') && byte != 0x7F) && std::str::from_utf8(value).is_ok()
}
