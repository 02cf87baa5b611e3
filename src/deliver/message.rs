//! A message of a stream → the parts of a request.
//!
//! In: the message's ids and payload, the webhook whose consumer took it. Out: a [`Call`], or that it is another webhook's,
//! or why nothing can be made of it. Where it goes is the webhook's row to say and never the message's: whoever may publish
//! to the stream must not choose whom we call.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::webhook::{RequestBody, Webhook};
use crate::{
    flow::event_id::EventPosition,
    route::{headers::push_encoded, trace},
};

/// What identifies a message.
#[derive(Debug, Clone, Copy)]
pub struct Ids<'a> {
    /// `Walhook-Id`, which stands there where a caller has an id of their own.
    pub walhook: Option<&'a str>,
    /// `Nats-Msg-Id`.
    pub message: Option<&'a str>,
    /// `Walhook-Retry-Of`: the first event's id, where a dead letter was published again.
    pub retry_of: Option<&'a str>,
    /// The stream and the sequence, for messages without any.
    pub fallback: &'a str,
    /// What its headers tell of the payload's format.
    pub shape: Shape,
    /// The payload is sealed, and nothing can be read of it.
    pub is_sealed: bool,
}

/// What a message's own headers tell of its payload. The webhook's row may have another format by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// Nothing.
    #[default]
    Unknown,
    /// A CloudEvent in JSON.
    CloudEvent,
    /// To be sent as it is.
    Bare,
}

impl Shape {
    /// By a look at its headers.
    pub fn of<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Shape {
        if header("Content-Type") == Some(CLOUDEVENT) {
            Shape::CloudEvent
        } else if header("Walhook-Type").or_else(|| header("ce-specversion")).is_some() {
            Shape::Bare
        } else {
            Shape::Unknown
        }
    }
}

/// The type of a CloudEvent in JSON.
pub const CLOUDEVENT: &str = "application/cloudevents+json";

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call<'a> {
    /// The event's id: what it is recorded by.
    pub event_id: Cow<'a, str>,
    /// The id that the receiver gets. It stays the same when a dead letter is published again, so that a receiver that has had the
    /// event knows it.
    pub webhook_id: Cow<'a, str>,
    /// Where the event stands in the WAL, if it is one of the feed's.
    pub position: Option<EventPosition>,
    /// `public.orders.insert`
    pub kind: Option<Cow<'a, str>>,
    /// `insert`, where the message says so.
    pub op: Option<&'a str>,
    /// The key before an update that has changed it, JSON.
    pub old_key: Option<&'a str>,
    /// What the message adds to the webhook's headers.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: &'a [u8],
    /// Its type, where no header of the webhook says otherwise.
    pub content_type: &'a str,
}

/// What a message is to this webhook's worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<'a> {
    /// To be called.
    Call(Call<'a>),
    /// An event of another webhook on the same subject; which one, where it is one of this feed's.
    Anothers(Option<i32>),
    /// Nothing that can be called, and why. The id is what it can be recorded by.
    Unreadable(Cow<'a, str>, String),
}

/// A CloudEvent in JSON, as far as it matters here.
#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
}

/// The format `webhook`, as far as it matters here. What else the payload holds is the receiver's.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    webhook_id: Option<i32>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// A payload in the format `webhook`; `data` is JSON.
pub fn envelope(id: &str, kind: &str, webhook_id: i32, data: &str) -> String {
    let id = serde_json::Value::from(id);
    format!(r#"{{"id":{id},"type":"{kind}","webhook_id":{webhook_id},"data":{data}}}"#)
}

/// Reads a message of the feed `source`.
pub fn read<'a>(webhook: &Webhook, source: &str, ids: Ids<'a>, payload: &'a [u8]) -> Reading<'a> {
    let ours = [ids.walhook, ids.message].into_iter().flatten().find_map(|id| {
        let position = EventPosition::parse(id, source)?;
        Some((id, position))
    });
    if let Some((_, position)) = ours
        && position.webhook_id != webhook.webhook_id
    {
        return Reading::Anothers(Some(position.webhook_id));
    }
    // Other feeds' events have ids of the same make.
    if ours.is_none() && [ids.walhook, ids.message].into_iter().flatten().any(is_of_some_feed) {
        return Reading::Anothers(None);
    }
    let event_id = || match ours {
        Some((id, _)) => Cow::Borrowed(id),
        // An id of somebody else's choosing is theirs to keep unique, so the place in the stream goes with ours.
        None => Cow::Borrowed(ids.fallback),
    };
    let whole = match serde_json::from_slice::<&RawValue>(payload) {
        _ if ids.is_sealed && ours.is_some() => "null",
        Ok(whole) => whole.get(),
        // The value of a column, which may be anything.
        Err(_) if ids.shape == Shape::Bare && ours.is_some() => "null",
        Err(error) => return Reading::Unreadable(event_id(), format!("the payload is not JSON: {error}")),
    };
    let is_cloudevent = ids.shape == Shape::CloudEvent || ids.shape == Shape::Unknown && webhook.is_cloudevent;
    let is_envelope = |envelope: &Envelope<'_>| match ids.shape {
        // By the row, or because it has the event's id inside, which no bare row has.
        Shape::Unknown => {
            let is_its = |id: &str| envelope.id.as_deref() == Some(id);
            webhook.has_envelope || ours.is_some_and(|(id, _)| is_its(id) || ids.retry_of.is_some_and(is_its))
        }
        Shape::CloudEvent | Shape::Bare => false,
    };
    let envelope = serde_json::from_str::<Envelope<'a>>(whole).ok().filter(is_envelope);
    match (&ours, envelope.as_ref().and_then(|envelope| envelope.webhook_id)) {
        (Some(_), _) => {}
        (None, Some(id)) if id == webhook.webhook_id => {}
        (None, Some(id)) => return Reading::Anothers(Some(id)),
        (None, None) => {
            return Reading::Unreadable(
                event_id(),
                "the message names no webhook: walhook did not publish it".to_owned(),
            );
        }
    }
    let mut call = Call {
        event_id: event_id(),
        // Of a message that the feed published: nobody else's headers may name another event.
        webhook_id: webhook_id(match (&ours, ids.retry_of) {
            (Some(_), Some(first)) => Cow::Borrowed(first),
            _ => event_id(),
        }),
        position: ours.map(|(_, position)| position),
        kind: None,
        op: None,
        old_key: None,
        headers: BTreeMap::new(),
        body: payload,
        content_type: if is_cloudevent { CLOUDEVENT } else { "application/json" },
    };
    if is_cloudevent {
        call.kind = serde_json::from_str::<Typed<'a>>(whole).ok().and_then(|typed| typed.kind);
    }
    if let Some(envelope) = envelope {
        call.kind = envelope.kind;
        call.headers = envelope.headers.map(|headers| own_headers(headers.get())).unwrap_or_default();
        if webhook.request_body == RequestBody::Data
            && envelope.webhook_id.is_some()
            && let Some(data) = envelope.data
        {
            call.body = data.get().as_bytes();
        }
    }
    Reading::Call(call)
}

impl<'a> Call<'a> {
    /// Adds what the message's headers, given by name and value, tell of its body, and of the trace that it belongs to. Returns a
    /// `traceparent` that is none, which is not passed on.
    pub fn describe(&mut self, headers: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Option<String> {
        let is_bare = Shape::of(|wanted| headers.clone().find(|(name, _)| *name == wanted).map(|(_, value)| value))
            == Shape::Bare;
        // Names of headers that are for the receiver too.
        let passed = headers.clone().find(|(name, _)| *name == "Walhook-Headers").map_or("", |(_, names)| names);
        for (name, value) in headers {
            match name {
                _ if [trace::TRACEPARENT, trace::TRACESTATE].iter().any(|ours| name.eq_ignore_ascii_case(ours)) => {
                    // What the payload says of it is the same, under whatever spelling.
                    self.headers.retain(|other, _| !other.eq_ignore_ascii_case(name));
                    self.headers.insert(name.to_ascii_lowercase(), value.to_owned());
                }
                _ if passed.split(' ').any(|passed| passed == name) => {
                    if name.eq_ignore_ascii_case("Content-Type") {
                        self.content_type = value;
                    } else if is_http_name(name) {
                        self.headers.insert(name.to_owned(), visible(value));
                    }
                }
                "Content-Type" if is_bare => self.content_type = value,
                "Walhook-Message-Id" => drop(self.headers.insert(name.to_ascii_lowercase(), visible(value))),
                "Walhook-Op" => self.op = Some(value),
                "Walhook-Old-Key" => self.old_key = Some(value),
                "Walhook-Type" if self.kind.is_none() => self.kind = Some(value.into()),
                // A CloudEvent in binary mode has its attributes in headers here and there.
                _ if name.starts_with("ce-") => {
                    if name == "ce-type" && self.kind.is_none() {
                        self.kind = Some(value.into());
                    }
                    self.headers.insert(name.to_owned(), value.to_owned());
                }
                _ => {}
            }
        }
        // Whoever may publish into the stream may write anything there.
        let is_trace = |name: &str, which: &str| name.eq_ignore_ascii_case(which);
        let parent = self.headers.iter().find(|(name, _)| is_trace(name, trace::TRACEPARENT));
        let wrong = parent.filter(|(_, value)| !trace::is_traceparent(value.as_bytes()))?.1.clone();
        self.headers.retain(|name, _| !is_trace(name, trace::TRACEPARENT) && !is_trace(name, trace::TRACESTATE));
        Some(wrong)
    }
}

/// `<feed>-<16 hex>-<hex>-<number>-<number>`: a feed's name may have dashes too.
fn is_of_some_feed(id: &str) -> bool {
    let mut parts = id.rsplitn(5, '-');
    let mut is = |good: fn(&str) -> bool| parts.next().is_some_and(good);
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let hex = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    is(number)
        && is(number)
        && is(hex)
        && is(|part| part.len() == 16 && part.bytes().all(|b| b.is_ascii_hexdigit()))
        && is(|_| true)
}

fn own_headers(text: &str) -> BTreeMap<String, String> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
    object.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect()
}

/// Whether a header is ours or the connection's to set, so that neither row nor message has a say in it.
pub fn is_reserved(name: &str) -> bool {
    const RESERVED: [&str; 17] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "walhook-old-key",
        "walhook-op",
        "walhook-type",
        "webhook-id",
        "webhook-signature",
        "webhook-timestamp",
    ];
    RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
}

/// Whether HTTP has headers of this name (RFC 9110, section 5.6.2).
fn is_http_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// A value as HTTP takes it: percent-encoded where it is not visible ASCII.
fn visible(value: &str) -> String {
    if value.bytes().all(|byte| (b' '..0x7F).contains(&byte)) {
        return value.to_owned();
    }
    let mut encoded = Vec::new();
    push_encoded(value.as_bytes(), &mut encoded);
    String::from_utf8(encoded).expect("percent-encoding leaves ASCII")
}

/// The id as it stands in `webhook-id`: a full stop would part id, time and body in what is signed.
fn webhook_id(event_id: Cow<'_, str>) -> Cow<'_, str> {
    if event_id.contains('.') { Cow::Owned(event_id.replace('.', "_")) } else { event_id }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::webhook::example as webhook;

    const ID: &str = "shop-00000000016b3748-2c8f0a1b-12-1";

    fn ids(message: &str) -> Ids<'_> {
        Ids {
            walhook: None,
            message: Some(message).filter(|id| !id.is_empty()),
            retry_of: None,
            fallback: "S:7",
            shape: Shape::Unknown,
            is_sealed: false,
        }
    }

    fn body<'a>(webhook: &Webhook, payload: &'a str) -> &'a str {
        match read(webhook, "shop", ids(ID), payload.as_bytes()) {
            Reading::Call(call) => std::str::from_utf8(call.body).expect("it was text"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_data_is_sent_as_it_stands_unless_the_row_wants_the_whole_message() {
        let payload = r#"{"webhook_id":1,"type":"t","headers":{"X-A":"b","n":1},"data":{"price": 9.90, "u":"\u00e9"}}"#;
        assert_eq!(body(&webhook(), payload), r#"{"price": 9.90, "u":"\u00e9"}"#);
        let whole = Webhook { request_body: RequestBody::Message, ..webhook() };
        assert_eq!(body(&whole, payload), payload);
        let bare = Webhook { has_envelope: false, ..webhook() };
        assert_eq!(body(&bare, payload), payload);
        for scalar in ["7", "null", "[1]", "\"x\"", "{}"] {
            assert_eq!(body(&webhook(), scalar), scalar);
        }
        let Reading::Call(call) = read(&webhook(), "shop", ids(ID), payload.as_bytes()) else { panic!() };
        assert_eq!((call.event_id.as_ref(), call.kind.as_deref()), (ID, Some("t")));
        assert_eq!(call.headers, [("X-A".to_owned(), "b".to_owned())].into());
    }

    #[test]
    fn a_message_is_read_by_the_format_that_it_was_published_in_whatever_the_row_says_now() {
        let call = |webhook: &Webhook, shape, payload: &'static str| match read(
            webhook,
            "shop",
            Ids { shape, ..ids(ID) },
            payload.as_bytes(),
        ) {
            Reading::Call(call) => {
                (String::from_utf8_lossy(call.body).into_owned(), call.content_type, call.kind.map(Cow::into_owned))
            }
            other => panic!("{other:?}"),
        };
        let (json, bare) = ("application/json", Webhook { has_envelope: false, ..webhook() });
        let cloudevent = Webhook { is_cloudevent: true, ..bare.clone() };
        let envelope = r#"{"id":"shop-00000000016b3748-2c8f0a1b-12-1","webhook_id":1,"type":"t","data":5}"#;
        for row in [&webhook(), &bare, &cloudevent] {
            let (body, _, kind) = call(row, Shape::Unknown, envelope);
            assert_eq!((body.as_str(), kind.as_deref()), ("5", Some("t")));
            let row_with_such_columns = r#"{"webhook_id":1,"data":5,"type":"x"}"#;
            assert_eq!(call(row, Shape::Bare, row_with_such_columns), (row_with_such_columns.to_owned(), json, None));
            let event = r#"{"specversion":"1.0","type":"t","data":5}"#;
            assert_eq!(call(row, Shape::CloudEvent, event), (event.to_owned(), CLOUDEVENT, Some("t".to_owned())));
        }
        let of = |name: &'static str, value: &'static str| Shape::of(|wanted| (wanted == name).then_some(value));
        assert_eq!(
            [of("Content-Type", CLOUDEVENT), of("ce-specversion", "1.0"), of("Walhook-Type", "t"), of("X", "")],
            [Shape::CloudEvent, Shape::Bare, Shape::Bare, Shape::Unknown]
        );
    }

    #[test]
    fn events_of_other_webhooks_and_other_feeds_are_left_to_their_own() {
        let others =
            [("shop-00000000016b3748-2c8f0a1b-12-2", Some(2)), ("an-other-00000000016b3748-2c8f0a1b-12-1", None)];
        for (id, whose) in others {
            assert_eq!(read(&webhook(), "shop", ids(id), b"{}"), Reading::Anothers(whose), "{id}");
        }
        assert_eq!(read(&webhook(), "shop", ids("mine"), br#"{"webhook_id":2}"#), Reading::Anothers(Some(2)));
        // A caller's own id stands before ours, which tells.
        let ids = Ids { walhook: Some("shop-00000000016b3748-2c8f0a1b-12-2"), ..ids("mine") };
        assert_eq!(read(&webhook(), "shop", ids, br#"{"webhook_id":1}"#), Reading::Anothers(Some(2)));
    }

    #[test]
    fn a_message_that_walhook_did_not_publish_is_called_only_if_it_names_the_webhook() {
        let Reading::Call(call) = read(&webhook(), "shop", ids("mine"), br#"{"webhook_id":1,"data":5}"#) else {
            panic!()
        };
        assert_eq!((call.event_id.as_ref(), call.body, call.position), ("S:7", &b"5"[..], None));
        for (payload, reason) in [("{\"test\": 1}", "names no webhook"), ("no json", "not JSON"), ("", "not JSON")] {
            match read(&webhook(), "shop", ids(""), payload.as_bytes()) {
                Reading::Unreadable(id, why) => assert!(id == "S:7" && why.contains(reason), "{id} {why}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn headers_of_the_connection_and_of_the_signature_are_nobodys_to_set() {
        for name in ["Host", "content-length", "Webhook-Signature", "Transfer-Encoding"] {
            assert!(is_reserved(name), "{name}");
        }
        assert!(!is_reserved("Authorization") && !is_reserved("Content-Type"));
        assert_eq!(webhook_id("my.shop-1".into()), "my_shop-1");
    }

    #[test]
    fn a_dead_letter_that_is_published_again_keeps_the_id_that_receivers_know_and_is_recorded_by_its_own() {
        let again = |message| match read(
            &webhook(),
            "shop",
            Ids { retry_of: Some("the.first"), ..ids(message) },
            b"{\"webhook_id\":1}",
        ) {
            Reading::Call(call) => (call.event_id.into_owned(), call.webhook_id.into_owned()),
            other => panic!("{other:?}"),
        };
        assert_eq!(again(ID), (ID.to_owned(), "the_first".to_owned()));
        assert_eq!(again("foreign"), ("S:7".to_owned(), "S:7".to_owned()), "only the feed names first events");
    }

    #[test]
    fn a_trace_is_passed_on_where_it_is_one_whoever_wrote_the_message() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let describe = |own: &str, headers: &[(&'static str, &'static str)]| {
            let payload = format!(r#"{{"webhook_id":1,"headers":{own},"data":{{}}}}"#);
            let Reading::Call(call) = read(&webhook(), "shop", ids(ID), payload.as_bytes()) else { panic!() };
            let mut call = Call {
                headers: call.headers,
                body: b"",
                event_id: "e".into(),
                webhook_id: "e".into(),
                kind: None,
                ..call
            };
            let wrong = call.describe(headers.iter().copied());
            (wrong, call.headers.into_iter().collect::<Vec<_>>())
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let state = ("tracestate", "a=b");
        assert_eq!(
            describe(r#"{"TraceParent":"x"}"#, &[("Traceparent", good), state]),
            (None, vec![pair("traceparent", good), pair("tracestate", "a=b")])
        );
        let dropped = (Some("forged".to_owned()), vec![pair("X", "1")]);
        assert_eq!(describe(r#"{"X":"1"}"#, &[("traceparent", "forged"), state]), dropped);
        assert_eq!(describe(r#"{"X":"1","Traceparent":"forged","TraceState":"a"}"#, &[]), dropped);
    }
}
