//! A request that says that it is a test: the body and the headers of one that no event stands behind.
//!
//! In: a webhook. Out: a call as its events are called, with `walhook-type` and `webhook-id` that no event has.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::json;

use crate::deliver::{
    message::{self, CLOUDEVENT, Call},
    webhook::{RequestBody, Webhook},
};

/// What a test event is called by, and what is in it.
pub struct TestEvent {
    id: String,
    kind: &'static str,
    op: &'static str,
    body: String,
    content_type: &'static str,
}

impl TestEvent {
    /// One with these ids; `data` is what stands in the place of a row, JSON.
    pub fn new(webhook: &Webhook, id: String, kind: &'static str, op: &'static str, data: &str) -> TestEvent {
        let (body, content_type) = if webhook.is_cloudevent {
            let kind = json!(kind);
            let id = json!(id);
            (
                format!(
                    r#"{{"specversion":"1.0","id":{id},"source":"/walhook","type":{kind},"datacontenttype":"application/json","data":{data}}}"#
                ),
                CLOUDEVENT,
            )
        } else {
            let body = match webhook.request_body {
                RequestBody::Message if webhook.has_envelope => message::envelope(&id, kind, webhook.webhook_id, data),
                RequestBody::Data | RequestBody::Message => data.to_owned(),
            };
            (body, "application/json")
        };
        TestEvent { id, kind, op, body, content_type }
    }

    /// The request.
    pub fn call(&self) -> Call<'_> {
        Call {
            event_id: Cow::Borrowed(&self.id),
            webhook_id: Cow::Borrowed(&self.id),
            position: None,
            kind: Some(Cow::Borrowed(self.kind)),
            op: Some(self.op),
            old_key: None,
            headers: BTreeMap::new(),
            body: self.body.as_bytes(),
            content_type: self.content_type,
        }
    }
}
