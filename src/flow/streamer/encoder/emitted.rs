//! An event of a message of `rule_webhook_emit`, or of changed columns.
//!
//! In: the message and its position. Out: an event for its webhook, or a dead letter. Always holds: subject, stream, headers and
//! format are those of the webhook at the message's commit; a call that was accepted is published even if its webhook has been
//! switched off since. Of changed columns there is an event where there would be one of a row of the link at that place.

use super::{EventEncoder, event_position};
use crate::{
    error::Result,
    flow::streamer::Obstacle,
    route::{
        emitted::{Call, Emitted},
        headers,
        payload::{Body, TableName},
        rules::{Rules, Webhook},
    },
    wal::change::{Change, Op, Position},
};

impl EventEncoder {
    /// Makes the event.
    pub fn emitted(&mut self, rules: &Rules, message: &Emitted<'_>, position: Position) -> Result<()> {
        if let Some(link) = message.call.columns_of {
            return self.columns_changed(rules, link, message, position);
        }
        let message_id = message.call.message_id.as_deref().map(str::as_bytes);
        let change = Change { position, xid: 0, op: Op::Insert, relation: 0, new: None, old: None };
        self.subject.clear();
        let index = rules.webhook(message.webhook_id);
        if !rules.is_ours(index, None) {
            return Ok(());
        }
        let Some(index) = index else {
            let at = event_position(position, message.webhook_id);
            let own = message.call.headers.as_ref();
            let rejected = self.without_webhook(at, Op::Insert, message_id, own, message.payload);
            return self.reject(rules, rejected, Obstacle::Invalid);
        };
        let webhook = &rules.webhooks[index];
        self.subject.extend_from_slice(webhook.subject.as_bytes());
        self.subject.extend_from_slice(message.call.tokens.as_deref().unwrap_or_default().as_bytes());
        let problem = self.problem_of_emitted(webhook, &message.call);
        let lane = rules.lane(index, &self.subject);
        self.event(rules, index, Body::Emitted(message), &change, lane, message_id, problem)
    }

    /// Makes the event of changed columns, into the lane and the shard of the link's rows.
    fn columns_changed(&mut self, rules: &Rules, id: i32, message: &Emitted<'_>, position: Position) -> Result<()> {
        let Some(link) = rules.link(id).filter(|link| link.enabled) else { return Ok(()) };
        let Some(index) = rules.webhook(link.webhook_id).filter(|&index| rules.webhooks[index].publishes) else {
            return Ok(());
        };
        if !rules.is_ours(Some(index), Some(link)) {
            return Ok(());
        }
        let webhook = &rules.webhooks[index];
        self.subject = webhook.columns_subject(link);
        let problem = self.problem_of_webhook(webhook);
        let lane = rules.lane(index, &self.subject);
        let table = TableName::new(&link.table_schema, &link.table_name);
        let change = Change { position, xid: 0, op: Op::Columns, relation: 0, new: None, old: None };
        self.event(rules, index, Body::Columns { table: &table, message }, &change, lane, None, problem)
    }

    /// Why the event cannot be published. The call was checked when it was made; its webhook may have changed since.
    fn problem_of_emitted(&self, webhook: &Webhook, call: &Call) -> Option<String> {
        let of = if webhook.format.is_cloudevent() { headers::Of::CloudEvent } else { headers::Of::Message };
        let of_headers = || {
            let why = headers::invalid(call.headers.as_ref()?, of)?;
            Some(format!("its own headers cannot be sent: {why}"))
        };
        self.problem_of_webhook(webhook).or_else(of_headers)
    }
}
