//! An event of a message of `rule_webhook_emit`, or of changed columns.
//!
//! In: the message and its position. Out: an event for its webhook, or a dead letter. Always holds: subject, stream, headers and
//! format are those of the webhook at the message's commit; a call that was accepted is published even if its webhook has been
//! switched off since. Of changed columns there is an event where there would be one of a row of the link at that place.

use super::{EventEncoder, event_position};
use crate::{
    error::Result,
    flow::{
        lane::{Head, Rejected},
        streamer::Obstacle,
    },
    route::{
        emitted::{Call, Emitted},
        headers,
        payload::{Body, TableName},
        rules::{Rules, Webhook},
        subject,
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
            let rejected = self.emitted_for_nobody(message, message_id, position);
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
        let of_subject = || subject::invalid(&self.subject).map(|why| format!("its subject is invalid: {why}"));
        let problem = webhook.problem.clone().or_else(of_subject);
        let lane = rules.lane(index, &self.subject);
        let table = TableName::new(&link.table_schema, &link.table_name);
        let change = Change { position, xid: 0, op: Op::Columns, relation: 0, new: None, old: None };
        self.event(rules, index, Body::Columns { table: &table, message }, &change, lane, None, problem)
    }

    /// Why the event cannot be published. The call was checked when it was made; its webhook may have changed since.
    fn problem_of_emitted(&self, webhook: &Webhook, call: &Call) -> Option<String> {
        let of = if webhook.format.is_cloudevent() { headers::Of::CloudEvent } else { headers::Of::Message };
        let of_subject = || subject::invalid(&self.subject).map(|why| format!("its subject is invalid: {why}"));
        let of_headers = || {
            let why = headers::invalid(call.headers.as_ref()?, of)?;
            Some(format!("its own headers cannot be sent: {why}"))
        };
        webhook.problem.clone().or_else(of_subject).or_else(of_headers)
    }

    /// The event of a message whose webhook has been deleted.
    fn emitted_for_nobody(&mut self, message: &Emitted<'_>, message_id: Option<&[u8]>, at: Position) -> Rejected {
        let position = event_position(at, message.webhook_id);
        let id = position.id(&self.source);
        let op = Op::Insert.as_str();
        let head = Head { subject: b"", id: id.as_bytes(), message_id, op, epoch: self.epoch };
        let mut block = Vec::new();
        head.write_ids(&mut block);
        head.write_origin(&mut block);
        if let Some(own) = &message.call.headers {
            headers::write_again(own, &mut block);
        }
        Rejected {
            number: self.window.count_event(),
            position,
            subject: String::new(),
            headers: headers::to_json(&block),
            payload: message.payload.to_vec(),
            reason: "its webhook does not exist".to_owned(),
            // It has no webhook that a row of the history could name.
            noted: None,
            halts: false,
        }
    }
}
