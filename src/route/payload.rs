//! An event's payload, written straight into the send buffer.
//!
//! Comes in: a change, the plan of its table, its webhook. Goes out: bytes of JSON, appended. No tree of values in
//! between, no allocation per column.

use std::{ops::Range, sync::Arc};

use serde_json::{Map, Value};

use super::{
    digits::{push_hex, push_hex_upper, set_hex},
    emitted::Emitted,
    headers::{self, push_line},
    message_columns::MessageColumns,
    plan::{ColumnPlan, EventColumns, Linked, Target},
    row_schema::RowSchema,
    rules::{Format, Keep, Webhook},
    seal::{self, SealKey},
    trace,
    value::{write_bytes, write_json, write_json_str, write_json_string},
};
use crate::{
    calendar::{POSTGRES_EPOCH_US, civil_from_days},
    wal::{
        change::{Change, Op},
        lsn::Lsn,
        pgoutput::{Column, OldTuple, Tuple},
    },
};

mod cloudevents;
mod debezium;

/// What all events of a transaction have in common, rendered once.
#[derive(Debug, Default)]
pub struct TransactionText {
    /// `<source>-<commit_lsn hex16>-<commit_time hex>-`: the beginning of its events' ids.
    pub id_prefix: Vec<u8>,
    /// The commit time, ISO 8601 in UTC.
    pub timestamp: Vec<u8>,
    /// The commit time in µs since 1970.
    pub timestamp_us: i64,
    /// Of the format `webhook`, what is between the type and the webhook's part: `","timestamp":"…"`
    time_member: Vec<u8>,
    /// Of the format `webhook`: where its `event` begins, up to the operation.
    event_head: Vec<u8>,
    /// The same from the table on: the commit time.
    event_time: Vec<u8>,
    /// The database's name, of all its transactions.
    pub database: String,
    /// Where in the WAL the row stands that is being routed.
    pub row_lsn: Lsn,
    commit_lsn: Lsn,
    xid: u32,
}

impl TransactionText {
    /// Renders a transaction; `commit_time` in µs since 2000-01-01.
    pub fn render(&mut self, source: &str, commit_lsn: Lsn, commit_time: i64, xid: u32) {
        let id = &mut self.id_prefix;
        id.clear();
        id.extend_from_slice(source.as_bytes());
        id.extend_from_slice(b"-0000000000000000-");
        let lsn = id.len() - 17..id.len() - 1;
        set_hex(commit_lsn.0, &mut id[lsn]);
        // A time before 2000 is negative, and is written as its bits.
        push_hex(commit_time.cast_unsigned(), id);
        id.push(b'-');
        self.timestamp.clear();
        push_timestamp(commit_time, &mut self.timestamp);
        self.timestamp_us = commit_time.saturating_add(POSTGRES_EPOCH_US);
        self.time_member.clear();
        self.time_member.extend_from_slice(b"\",\"timestamp\":\"");
        self.time_member.extend_from_slice(&self.timestamp);
        self.time_member.push(b'"');
        let head = &mut self.event_head;
        head.clear();
        head.extend_from_slice(b",\"event\":{\"lsn\":\"");
        push_hex_upper(commit_lsn.0 >> 32, head);
        head.push(b'/');
        push_hex_upper(commit_lsn.0 & 0xFFFF_FFFF, head);
        head.extend_from_slice(b"\",\"xid\":");
        write_number(xid.into(), head);
        head.extend_from_slice(b",\"op\":\"");
        self.event_time.clear();
        self.event_time.extend_from_slice(b"\",\"commit_time\":\"");
        self.event_time.extend_from_slice(&self.timestamp);
        self.event_time.push(b'"');
        self.commit_lsn = commit_lsn;
        self.xid = xid;
    }
}

/// Appends a time in µs since 2000-01-01 as `2026-11-23T10:11:12.123456Z`.
pub fn write_timestamp(micros: i64, out: &mut String) {
    let mut text = Vec::new();
    push_timestamp(micros, &mut text);
    out.push_str(std::str::from_utf8(&text).expect("digits are ASCII"));
}

/// The same as bytes.
fn push_timestamp(micros: i64, out: &mut Vec<u8>) {
    const DAY: i64 = 86_400_000_000;
    let (days, micros) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    let (year, month, day) = civil_from_days(days + 10_957);
    let seconds = micros / 1_000_000;
    // PostgreSQL's own times end in the year 294276.
    if (0..=9999).contains(&year) {
        out.extend([two_digits(year / 100), two_digits(year % 100)].as_flattened());
    } else {
        out.extend_from_slice(format!("{year:04}").as_bytes());
    }
    let mut text = *b"-00-00T00:00:00.000000Z";
    let parts = [
        (1, month),
        (4, day),
        (7, seconds / 3600),
        (10, seconds / 60 % 60),
        (13, seconds % 60),
        (16, micros / 10_000 % 100),
        (18, micros / 100 % 100),
        (20, micros % 100),
    ];
    for (place, value) in parts {
        [text[place], text[place + 1]] = two_digits(value);
    }
    out.extend_from_slice(&text);
}

/// Of a number below 100.
fn two_digits(value: i64) -> [u8; 2] {
    [value / 10, value % 10].map(|digit| b'0' + u8::try_from(digit).expect("one digit"))
}

/// What an event is about.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// A change of a linked table.
    Row {
        /// The table.
        table: &'a Linked,
        /// The link.
        target: &'a Target,
        /// The change.
        change: &'a Change<'a>,
    },
    /// A row of `rule_webhook_events`.
    Call {
        /// Where its columns are.
        columns: &'a EventColumns,
        /// The row.
        row: Tuple<'a>,
        /// Its own headers.
        own: Option<&'a Map<String, Value>>,
    },
    /// A message of `rule_webhook_emit`.
    Emitted(&'a Emitted<'a>),
    /// The columns of a linked table have changed.
    Columns {
        /// The table.
        table: &'a TableName,
        /// What its columns are.
        message: &'a Emitted<'a>,
    },
}

/// A table's name, as [`Linked`] has it.
#[derive(Debug)]
pub struct TableName {
    qualified: Vec<u8>,
    unescaped: String,
}

impl TableName {
    /// Of the table that a link names.
    pub fn new(schema: &str, table: &str) -> TableName {
        let unescaped = format!("{schema}.{table}");
        let mut qualified = Vec::new();
        write_json_str(&unescaped, &mut qualified);
        qualified.pop();
        qualified.remove(0);
        TableName { qualified, unescaped }
    }
}

impl<'a> Body<'a> {
    /// The schema of the event's row, if its configuration publishes schemas.
    pub fn schema(self) -> Option<&'a Arc<RowSchema>> {
        match self {
            Body::Row { target, change, .. } if change.op != Op::Truncate => target.schema.as_ref(),
            Body::Row { .. } | Body::Call { .. } | Body::Emitted(_) | Body::Columns { .. } => None,
        }
    }

    /// The event's own headers.
    fn own_headers(self) -> Option<&'a Map<String, Value>> {
        match self {
            Body::Row { .. } | Body::Columns { .. } => None,
            Body::Call { own, .. } => own,
            Body::Emitted(message) => message.call.headers.as_ref(),
        }
    }
}

/// Appends the headers that format, webhook and event add to those of any message, a line break before each.
pub fn write_headers(
    body: Body<'_>,
    webhook: &Webhook,
    source: &str,
    transaction: &TransactionText,
    id: &[u8],
    out: &mut Vec<u8>,
) {
    let own = body.own_headers();
    let key = seal_key(body, webhook);
    if let Some(key) = key {
        key.write_header(sealed_id(body, id), out);
    }
    if again(body).is_some() {
        match (own, key) {
            (None, _) => {}
            (Some(stored), None) => headers::write_again(stored, out),
            // It became a dead letter before its webhook sealed.
            (Some(stored), Some(key)) => {
                headers::write_again_without(headers::OLD_KEY, stored, out);
                if let Some(old) = stored.get(headers::OLD_KEY).and_then(Value::as_str) {
                    key.write_old_key(sealed_id(body, id), old.as_bytes(), out);
                }
            }
        }
        return;
    }
    if let Body::Row { target, change, .. } = body
        && let Some(Ok(parent)) = trace::of_row(target, change)
    {
        // Before the webhook's own, of which one may have the same name: the first one counts.
        out.extend_from_slice(b"\r\ntraceparent: ");
        out.extend_from_slice(parent);
    }
    match message_columns(body) {
        Some((columns, row)) => columns.write_headers(row, webhook, out),
        None => webhook.message_headers.write(own, webhook.expose_credentials, out),
    }
    match webhook.format {
        Format::CloudEventsBinary => cloudevents::write_headers(body, source, transaction, id, out),
        // Whose payload does not say in one place what happened to what.
        Format::Data | Format::Debezium => {
            out.extend_from_slice(b"\r\nWalhook-Type: ");
            write_header_type(body, out);
        }
        Format::Webhook | Format::CloudEvents => {}
    }
    if let Body::Row { target, .. } = body
        && target.is_withheld
    {
        // Only a dead letter has it, and is not published again by it.
        headers::push_line(headers::WITHHELD.as_bytes(), b"row", out);
    }
    if let Body::Row { table, target, change } = body
        && let Some(old) = old_key(table, target, change)
    {
        let start = out.len();
        let mut json = Vec::new();
        write_row(table, target, old, None, true, &mut json);
        push_line(headers::OLD_KEY.as_bytes(), b"", out);
        let value_at = out.len();
        push_ascii(&json, out);
        if out.len() - start > OLD_KEY_MAX {
            out.truncate(start);
        } else if let Some(key) = key {
            let value = out.split_off(value_at);
            out.truncate(start);
            key.write_old_key(sealed_id(body, id), &value, out);
        }
    }
}

/// Longest header with an old key; the payload of format `webhook` has a longer one all the same.
const OLD_KEY_MAX: usize = 4096;

/// The key that an update has changed, as it was before. Under REPLICA IDENTITY FULL the WAL does not tell which columns are the key.
#[inline]
fn old_key<'a>(table: &Linked, target: &Target, change: &Change<'a>) -> Option<Tuple<'a>> {
    match change.old {
        Some(OldTuple::Key(old)) if change.op == Op::Update => changed_key(table, target, old, change.new?),
        _ => None,
    }
}

fn changed_key<'a>(table: &Linked, target: &Target, old: Tuple<'a>, new: Tuple<'_>) -> Option<Tuple<'a>> {
    let mut columns = table.columns.iter().zip(old.iter().zip(new.iter())).enumerate();
    // PostgreSQL sends it also where a part of it is a large value that has not changed.
    columns
        .any(|(index, (plan, (old, new)))| {
            plan.is_key && is_selected(target, index) && !matches!(new, Column::Unchanged) && old != new
        })
        .then_some(old)
}

/// Appends JSON with `\u` for what is not printable ASCII, so that it can be a header.
fn push_ascii(json: &[u8], out: &mut Vec<u8>) {
    for character in String::from_utf8_lossy(json).chars() {
        if matches!(character, ' '..='~') {
            out.push(character as u8);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            out.extend_from_slice(b"\\u0000");
            let end = out.len();
            set_hex((*unit).into(), &mut out[end - 4..]);
        }
    }
}

/// The columns that are the message, and their row.
fn message_columns(body: Body<'_>) -> Option<(&MessageColumns, Tuple<'_>)> {
    match body {
        Body::Row { target, change, .. } => Some((target.message.as_ref()?, change.new?)),
        Body::Call { .. } | Body::Emitted(_) | Body::Columns { .. } => None,
    }
}

/// What the history keeps of the event, for its body need not be JSON.
pub fn keep(body: Body<'_>, webhook: &Webhook) -> Keep {
    let is_any = message_columns(body).is_some() || again(body).is_some() || webhook.seal.is_some();
    if is_any { webhook.keep.of_any_bytes() } else { webhook.keep }
}

/// Whether the event has to be sealed. A dead letter that is published again may be sealed already; that of a claim check has
/// nothing to seal in its body.
fn is_to_be_sealed(body: Body<'_>) -> bool {
    let has = |name: &str| body.own_headers().is_some_and(|own| own.contains_key(name));
    again(body).is_none() || !(has(seal::HEADER) || has("Walhook-Object"))
}

/// The id under which an event is sealed. A dead letter that is published again has a new one each time, but says which event it was.
fn sealed_id<'b>(body: Body<'b>, id: &'b [u8]) -> &'b [u8] {
    let first = again(body).and_then(|_| body.own_headers()?.get("Walhook-Retry-Of")?.as_str());
    let first = first.filter(|first| !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_graphic()));
    first.map_or(id, str::as_bytes)
}

/// The key with which the event is sealed.
#[inline]
fn seal_key<'w>(body: Body<'_>, webhook: &'w Webhook) -> Option<&'w SealKey> {
    let key = webhook.seal.as_ref()?.as_deref().ok();
    key.filter(|_| is_to_be_sealed(body))
}

/// Why the event cannot be sealed although it has to be. Then nothing may be made of it.
#[inline]
pub fn seal_problem<'w>(body: Body<'_>, webhook: &'w Webhook) -> Option<&'w str> {
    let problem = webhook.seal.as_ref()?.as_ref().err();
    problem.filter(|_| is_to_be_sealed(body)).map(String::as_str)
}

/// The message body, in PostgreSQL's text, of a dead letter that is published again.
fn again(body: Body<'_>) -> Option<&[u8]> {
    match body {
        Body::Call { columns, row, .. } => match cell(row, columns.body?) {
            Column::Text(bytes) => Some(bytes),
            _ => None,
        },
        Body::Row { .. } | Body::Emitted(_) | Body::Columns { .. } => None,
    }
}

/// Appends the payload of the event `id` for `webhook`. Returns where in `out` its data is, the row or the caller's payload:
/// what the history keeps of it.
pub fn write(
    body: Body<'_>,
    webhook: &Webhook,
    source: &str,
    transaction: &TransactionText,
    id: &[u8],
    out: &mut Vec<u8>,
) -> Range<usize> {
    let start = out.len();
    if seal_problem(body, webhook).is_some() {
        return start..start;
    }
    let key = seal_key(body, webhook);
    if key.is_some() {
        SealKey::begin(out);
    }
    let data = write_open(body, webhook, source, transaction, id, out);
    match key {
        None => data,
        Some(key) => {
            key.seal(sealed_id(body, id), start, out);
            start..out.len()
        }
    }
}

/// The same, not sealed.
#[inline]
fn write_open(
    body: Body<'_>,
    webhook: &Webhook,
    source: &str,
    transaction: &TransactionText,
    id: &[u8],
    out: &mut Vec<u8>,
) -> Range<usize> {
    let start = out.len();
    if let Some(bytes) = again(body) {
        write_bytes(bytes, out);
        return start..out.len();
    }
    if let Some((columns, row)) = message_columns(body) {
        columns.write_body(row, out);
        return start..out.len();
    }
    match webhook.format {
        Format::Webhook => write_webhook(body, webhook, transaction, id, out),
        Format::Data | Format::CloudEventsBinary => write_data(body, out),
        // Before and after are one thing there.
        Format::Debezium => {
            debezium::write(body, source, transaction, out);
            start..out.len()
        }
        Format::CloudEvents => cloudevents::write(body, source, transaction, id, out),
    }
}

fn write_webhook(
    body: Body<'_>,
    webhook: &Webhook,
    transaction: &TransactionText,
    id: &[u8],
    out: &mut Vec<u8>,
) -> Range<usize> {
    // As few pieces as can be: each costs as much as tens of bytes.
    out.extend_from_slice(b"{\"id\":\"");
    out.extend_from_slice(id);
    write_type_member(body, out);
    out.extend_from_slice(&transaction.time_member);
    if body.own_headers().is_none() {
        out.extend_from_slice(&webhook.middle_of_row);
    } else {
        out.extend_from_slice(&webhook.middle);
        write_shown_headers(body, webhook, out);
        out.extend_from_slice(b",\"data\":");
    }
    let data = write_data(body, out);
    out.extend_from_slice(&transaction.event_head);
    out.extend_from_slice(op(body).as_str().as_bytes());
    write_table_and_time(body, transaction, out);
    match body {
        Body::Row { table, target, change } => write_row_details(table, target, change, out),
        Body::Call { columns, row, .. } => write_call_details(columns, row, out),
        Body::Emitted(message) | Body::Columns { message, .. } => write_emitted_details(message, out),
    }
    out.extend_from_slice(b"}}");
    data
}

/// The type, behind an id that is still open, up to the end of its text.
#[inline]
fn write_type_member(body: Body<'_>, out: &mut Vec<u8>) {
    match body {
        Body::Row { table, change, .. } => {
            out.extend_from_slice(&table.type_member);
            out.extend_from_slice(change.op.as_str().as_bytes());
        }
        Body::Columns { table, .. } => {
            out.extend_from_slice(b"\",\"type\":\"");
            out.extend_from_slice(&table.qualified);
            out.extend_from_slice(b".columns");
        }
        Body::Call { .. } | Body::Emitted(_) => out.extend_from_slice(b"\",\"type\":\"webhook.call"),
    }
}

/// Of `event`, the table and the commit time, behind an operation whose text is still open.
#[inline]
fn write_table_and_time(body: Body<'_>, transaction: &TransactionText, out: &mut Vec<u8>) {
    match body {
        Body::Emitted(_) => {
            out.extend_from_slice(b"\",\"table\":null");
            // Without the quote that ends a table's name.
            out.extend_from_slice(&transaction.event_time[1..]);
        }
        Body::Row { table, .. } => {
            out.extend_from_slice(&table.table_member);
            out.extend_from_slice(&transaction.event_time);
        }
        Body::Call { .. } | Body::Columns { .. } => {
            out.extend_from_slice(b"\",\"table\":\"");
            write_table(body, out);
            out.extend_from_slice(&transaction.event_time);
        }
    }
}

/// Of `event`, what the row or its key was before, and what the WAL does not have of it.
#[inline]
fn write_row_details(table: &Linked, target: &Target, change: &Change<'_>, out: &mut Vec<u8>) {
    if target.include_old
        && change.op == Op::Update
        && let Some(old) = change.old
    {
        out.extend_from_slice(b",\"old\":");
        write_old(table, target, old, out);
    } else if let Some(old) = old_key(table, target, change) {
        out.extend_from_slice(b",\"old_key\":");
        write_row(table, target, old, None, true, out);
    }
    write_unchanged(table, target, change, out);
}

/// Of `event`, which call it was, and who made it.
fn write_call_details(columns: &EventColumns, row: Tuple<'_>, out: &mut Vec<u8>) {
    for (key, index) in
        [(&b",\"event_id\":"[..], Some(columns.event_id)), (b",\"rule_execution_id\":", columns.rule_execution_id)]
    {
        if let Some(Column::Text(text)) = index.map(|index| cell(row, index)) {
            out.extend_from_slice(key);
            out.extend_from_slice(text);
        }
    }
    if let Some(Column::Text(text)) = columns.triggered_by.map(|index| cell(row, index)) {
        out.extend_from_slice(b",\"triggered_by\":");
        write_json_string(text, out);
    }
}

/// Of `event`, where in the WAL the message was emitted, and by whom.
fn write_emitted_details(message: &Emitted<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"emit_lsn\":\"");
    out.extend_from_slice(message.lsn.to_string().as_bytes());
    out.push(b'"');
    if let Some(id) = message.call.rule_execution_id {
        out.extend_from_slice(b",\"rule_execution_id\":");
        write_number(id, out);
    }
    if let Some(user) = &message.call.triggered_by {
        out.extend_from_slice(b",\"triggered_by\":");
        write_json_string(user.as_bytes(), out);
    }
}

/// The webhook's headers; an event's own are added and win.
pub fn write_shown_headers(body: Body<'_>, webhook: &Webhook, out: &mut Vec<u8>) {
    if let Some(own) = body.own_headers()
        && let Ok(mut merged) = serde_json::from_slice::<Map<_, _>>(&webhook.headers)
    {
        merged.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
        out.extend_from_slice(&headers::visible(merged, webhook.expose_credentials));
    } else {
        out.extend_from_slice(&webhook.headers);
    }
}

fn write_data(body: Body<'_>, out: &mut Vec<u8>) -> Range<usize> {
    let start = out.len();
    match body {
        Body::Row { table, target, change } => match (change.new, change.old) {
            (Some(new), old) => write_row(table, target, new, full(old), false, out),
            (None, Some(old)) => write_old(table, target, old, out),
            (None, None) => out.extend_from_slice(b"{}"),
        },
        Body::Call { columns, row, .. } => match cell(row, columns.payload) {
            Column::Text(payload) => write_json(columns.payload_class, payload, out),
            _ => out.extend_from_slice(b"null"),
        },
        Body::Emitted(message) | Body::Columns { message, .. } => {
            write_json(super::types::Class::JSON, message.payload, out);
        }
    }
    start..out.len()
}

fn op(body: Body<'_>) -> Op {
    match body {
        Body::Row { change, .. } => change.op,
        Body::Call { .. } | Body::Emitted(_) => Op::Insert,
        Body::Columns { .. } => Op::Columns,
    }
}

/// What happened: `public.orders.insert`, `public.orders.columns`, or `webhook.call`.
pub fn write_type(body: Body<'_>, out: &mut Vec<u8>) {
    match body {
        Body::Row { table, change, .. } => {
            out.extend_from_slice(&table.qualified);
            out.push(b'.');
            out.extend_from_slice(change.op.as_str().as_bytes());
        }
        Body::Columns { table, .. } => {
            out.extend_from_slice(&table.qualified);
            out.extend_from_slice(b".columns");
        }
        Body::Call { .. } | Body::Emitted(_) => out.extend_from_slice(b"webhook.call"),
    }
}

/// The same as the value of a header.
fn write_header_type(body: Body<'_>, out: &mut Vec<u8>) {
    match body {
        Body::Row { table, change, .. } => {
            headers::push_encoded(table.unescaped.as_bytes(), out);
            out.push(b'.');
            out.extend_from_slice(change.op.as_str().as_bytes());
        }
        Body::Columns { table, .. } => {
            headers::push_encoded(table.unescaped.as_bytes(), out);
            out.extend_from_slice(b".columns");
        }
        Body::Call { .. } | Body::Emitted(_) => write_type(body, out),
    }
}

fn write_table(body: Body<'_>, out: &mut Vec<u8>) {
    match body {
        Body::Row { table, .. } => out.extend_from_slice(&table.qualified),
        Body::Columns { table, .. } => out.extend_from_slice(&table.qualified),
        Body::Call { .. } => out.extend_from_slice(b"public.rule_webhook_events"),
        Body::Emitted(_) => {}
    }
}

fn write_number(number: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn cell(row: Tuple<'_>, index: usize) -> Column<'_> {
    row.iter().nth(index).expect("the assembler checked the number of columns")
}

/// The whole row before, where the WAL has it.
fn full(old: Option<OldTuple<'_>>) -> Option<Tuple<'_>> {
    match old {
        Some(OldTuple::Full(tuple)) => Some(tuple),
        _ => None,
    }
}

fn write_old(table: &Linked, target: &Target, old: OldTuple<'_>, out: &mut Vec<u8>) {
    match old {
        OldTuple::Full(tuple) => write_row(table, target, tuple, None, false, out),
        OldTuple::Key(tuple) => write_row(table, target, tuple, None, true, out),
    }
}

fn is_selected(target: &Target, index: usize) -> bool {
    target.selected.as_ref().is_none_or(|selected| selected[index])
}

/// A row as an object. A large value that the update did not touch is taken from `before` where that is whole, and
/// left out otherwise: it is never null.
fn write_row(
    table: &Linked,
    target: &Target,
    row: Tuple<'_>,
    before: Option<Tuple<'_>>,
    only_key: bool,
    out: &mut Vec<u8>,
) {
    match &target.shape {
        None => write_columns((table, target), row, before, only_key, out, |_, plan, value, out| {
            out.extend_from_slice(&plan.key);
            write_value(plan, value, out);
        }),
        Some(shape) => write_columns((table, target), row, before, only_key, out, |index, plan, value, out| {
            out.extend_from_slice(shape.key(index).unwrap_or(&plan.key));
            if !shape.write_masked(index, plan.class, value, out) {
                write_value(plan, value, out);
            }
        }),
    }
}

/// The same with what writes a column that is in the WAL, key and value.
#[inline]
fn write_columns(
    (table, target): (&Linked, &Target),
    row: Tuple<'_>,
    before: Option<Tuple<'_>>,
    only_key: bool,
    out: &mut Vec<u8>,
    write: impl Fn(usize, &ColumnPlan, Column<'_>, &mut Vec<u8>),
) {
    let mut separator = b'{';
    for (index, (plan, value)) in table.columns.iter().zip(row.iter()).enumerate() {
        if !is_selected(target, index) || (only_key && !plan.is_key) {
            continue;
        }
        let value = match (value, before) {
            (Column::Unchanged, Some(before)) => cell(before, index),
            (value, _) => value,
        };
        if matches!(value, Column::Unchanged) {
            continue;
        }
        out.push(separator);
        separator = b',';
        write(index, plan, value, out);
    }
    if separator == b'{' {
        out.push(b'{');
    }
    out.push(b'}');
}

#[inline]
fn write_value(plan: &ColumnPlan, value: Column<'_>, out: &mut Vec<u8>) {
    match value {
        Column::Text(text) => write_json(plan.class, text, out),
        // Not asked for (`binary` is off), so bytes that are no text are at least kept.
        Column::Binary(bytes) => write_json_string(bytes, out),
        Column::Null | Column::Unchanged => out.extend_from_slice(b"null"),
    }
}

/// `,"unchanged":["doc"]`: the columns that the payload lacks because the WAL does not have them.
fn write_unchanged(table: &Linked, target: &Target, change: &Change<'_>, out: &mut Vec<u8>) {
    let Some(new) = change.new.filter(|new| new.has_unchanged() && full(change.old).is_none()) else { return };
    let mut first = true;
    for (index, (plan, value)) in table.columns.iter().zip(new.iter()).enumerate() {
        if matches!(value, Column::Unchanged) && is_selected(target, index) {
            out.extend_from_slice(if first { b",\"unchanged\":[" } else { b"," });
            first = false;
            let key = target.shape.as_ref().and_then(|shape| shape.key(index)).unwrap_or(&plan.key);
            out.extend_from_slice(&key[..key.len() - 1]);
        }
    }
    if !first {
        out.push(b']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_rendered_once_for_all_its_events() {
        let mut text = TransactionText::default();
        text.render("shop", Lsn(0x16B_3748), 848_743_872_123_456, 731);
        assert_eq!(text.id_prefix, b"shop-00000000016b3748-303ed9500d240-");
        assert_eq!(text.timestamp, b"2026-11-23T10:11:12.123456Z");
        assert_eq!(text.timestamp_us, 1_795_428_672_123_456);
        assert_eq!(text.event_head, b",\"event\":{\"lsn\":\"0/16B3748\",\"xid\":731,\"op\":\"");
        assert_eq!(text.event_time, b"\",\"commit_time\":\"2026-11-23T10:11:12.123456Z\"");
        text.render("shop", Lsn(1), -1, 731);
        assert_eq!(text.id_prefix, b"shop-0000000000000001-ffffffffffffffff-");
    }

    #[test]
    fn times_before_and_after_2000_are_right() {
        let check = |micros: i64, expected: &str| {
            let mut out = String::new();
            write_timestamp(micros, &mut out);
            assert_eq!(out, expected);
        };
        check(0, "2000-01-01T00:00:00.000000Z");
        check(-1, "1999-12-31T23:59:59.999999Z");
        check(5_097_600_000_000, "2000-02-29T00:00:00.000000Z");
        check(252_455_616_000_000_001, "10000-01-01T00:00:00.000001Z");
    }
}
