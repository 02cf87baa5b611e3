//! An event of a row of `rule_webhook_events`.
//!
//! In: the row and its position. Out: an event for its webhook, or a dead letter. Always holds: a call was accepted in the caller's
//! transaction, so it is published even if its webhook has been switched off since; a dead letter that is published again goes under
//! an id of its own, and says what happened in the first place.

use serde_json::{Map, Value};

use super::{EventEncoder, event_position};
use crate::{
    error::Result,
    flow::streamer::Obstacle,
    route::{
        headers,
        message_columns::MESSAGE_ID_MAX,
        payload::Body,
        plan::EventColumns,
        rules::{Rules, Webhook},
        shard, trace,
    },
    wal::{
        change::{Change, Op, Position},
        pgoutput::{Column, Tuple},
    },
};

/// What a call says of its event besides the webhook and the payload.
struct Details<'r> {
    /// It is a dead letter that is published again.
    is_again: bool,
    subject: Option<&'r [u8]>,
    message_id: Option<&'r [u8]>,
    /// Its own headers as they were given, which may be anything.
    headers_text: Option<&'r [u8]>,
    headers: Option<Map<String, Value>>,
}

impl<'r> Details<'r> {
    fn read(columns: &EventColumns, row: Tuple<'r>) -> Details<'r> {
        let cell = |index| text(row, index);
        let is_again = columns.body.and_then(cell).is_some();
        let headers_text = columns.headers.and_then(cell);
        Details {
            is_again,
            subject: columns.subject.and_then(cell).filter(|subject| !subject.is_empty()),
            // Under its first id JetStream would take a dead letter for the message that it stored then.
            message_id: columns.message_id.and_then(cell).filter(|id| !id.is_empty() && !is_again),
            headers_text,
            headers: headers_text.and_then(|text| serde_json::from_slice(text).ok()),
        }
    }

    /// What happened: a call is an insert, and a dead letter has the operation that it had at first.
    fn op(&self) -> Op {
        let first = || Op::parse(self.headers.as_ref()?.get("Walhook-Op")?.as_str()?);
        self.is_again.then(first).flatten().unwrap_or(Op::Insert)
    }

    /// Why its own message id cannot be one.
    fn problem_of_message_id(&self) -> Option<String> {
        let id = self.message_id?;
        if id.len() > MESSAGE_ID_MAX || id.iter().any(|&byte| byte < b' ' || byte == 0x7F) {
            return Some(format!("its message_id is longer than {MESSAGE_ID_MAX} bytes or has control characters"));
        }
        std::str::from_utf8(id).is_err().then(|| "its message_id is not UTF-8".to_owned())
    }

    /// Why its own headers cannot be those of a message of its webhook.
    fn problem_of_headers(&self, webhook: &Webhook) -> Option<String> {
        let Some(own) = &self.headers else {
            let is_given = self.headers_text.is_some_and(|text| text != b"null");
            return is_given.then(|| "its own headers are not a JSON object in UTF-8".to_owned());
        };
        let of = match webhook.format.is_cloudevent() {
            _ if self.is_again => headers::Of::Again,
            true => headers::Of::CloudEvent,
            false => headers::Of::Message,
        };
        headers::invalid(own, of).map(|why| format!("its own headers cannot be sent: {why}"))
    }
}

/// The text of a column that is neither NULL nor left out.
#[inline]
fn text(row: Tuple<'_>, index: usize) -> Option<&[u8]> {
    match row.iter().nth(index) {
        Some(Column::Text(text)) => Some(text),
        _ => None,
    }
}

impl EventEncoder {
    /// Makes the event.
    pub fn call(&mut self, rules: &Rules, columns: &EventColumns, row: Tuple<'_>, position: Position) -> Result<()> {
        let webhook_id = text(row, columns.webhook_id).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let index = webhook_id.and_then(|id| rules.webhook(id));
        if !rules.is_ours(index, None) {
            return Ok(());
        }
        let mut details = Details::read(columns, row);
        let untraced = details.headers.as_mut().and_then(trace::clean);
        let Some(index) = index else {
            let position = event_position(position, webhook_id.unwrap_or(0));
            let payload = text(row, columns.payload).unwrap_or_default();
            let (op, own) = (details.op(), details.headers.as_ref());
            let rejected = self.without_webhook(position, op, details.message_id, own, payload);
            return self.reject(rules, rejected, Obstacle::Invalid);
        };
        let webhook = &rules.webhooks[index];
        if let Some(wrong) = untraced {
            self.note_untraced(webhook, "a call", &wrong);
        }
        self.write_subject_of_call(webhook, &details);
        let problem = self.problem_of_call(webhook, &details);
        let lane = rules.lane(index, &self.subject);
        let change = Change { position, xid: 0, op: details.op(), relation: 0, new: Some(row), old: None };
        let body = Body::Call { columns, row, own: details.headers.as_ref() };
        self.event(rules, index, body, &change, lane, details.message_id, problem)
    }

    #[inline]
    fn write_subject_of_call(&mut self, webhook: &Webhook, details: &Details<'_>) {
        self.subject.clear();
        match details.subject {
            Some(own) => {
                self.subject.extend_from_slice(webhook.subject_prefix.as_bytes());
                // A dead letter has the subject under which its shard would have published it.
                self.subject.extend_from_slice(if details.is_again { shard::without_prefix(own) } else { own });
            }
            None => self.subject.extend_from_slice(webhook.subject.as_bytes()),
        }
    }

    /// Why the event cannot be published: the first of what is wrong.
    fn problem_of_call(&self, webhook: &Webhook, details: &Details<'_>) -> Option<String> {
        let of_headers = || details.problem_of_headers(webhook);
        let of_message_id = || details.problem_of_message_id();
        self.problem_of_webhook(webhook).or_else(of_message_id).or_else(of_headers)
    }
}
