//! Headers: those of a webhook's call, which its payloads show, and those of the message itself.
//!
//! Comes in: JSON objects from configuration rows and events. Goes out: JSON for payloads, and for messages blocks of
//! lines, `\r\nName: value` each, that go into the send buffer as they are. Always holds: a line has one name and one
//! value, and no name that JetStream or walhook reads. Knows nothing of connections.

use serde_json::{Map, Value};

/// Longest block of a webhook's or an event's own headers, in bytes. JetStream takes 64 KiB with all the others.
pub const BLOCK_MAX: usize = 8 * 1024;
/// The same of a dead letter that is published again, whose format's headers are among them.
const AGAIN_MAX: usize = 60 * 1024;
/// What tells a message's place in a stream, in a batch and in a transaction.
const PLACE: [&[u8]; 3] = [b"Nats-Expected-", b"Nats-Batch-", b"Walhook-Transaction"];

/// Whose headers they are, which decides what names they may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// A message whose payload is not a CloudEvent.
    Message,
    /// A CloudEvent, which has headers of its own meaning.
    CloudEvent,
    /// A message that is published again, with all that it had.
    Again,
}

/// The headers that all messages of a webhook have, compiled once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    names: Vec<String>,
    /// Of each name, where its line ends.
    ends: Vec<usize>,
    lines: Vec<u8>,
}

impl Block {
    /// The headers `fixed` of the format, and those of the webhook's own (a JSON object).
    ///
    /// # Errors
    /// Why the webhook's own cannot be headers of a message.
    pub fn compile(fixed: &[(&str, &str)], own: Option<&str>) -> Result<Block, String> {
        let mut block = Block::default();
        for (name, value) in fixed {
            block.push(name, value);
        }
        let Some(own) = own else { return Ok(block) };
        let parsed = serde_json::from_str(own).map_err(|error| format!("nats_headers are not JSON: {error}"))?;
        let own = match parsed {
            Value::Null => return Ok(block),
            Value::Object(own) => own,
            _ => return Err("nats_headers are not a JSON object".to_owned()),
        };
        if let Some(why) = invalid(&own, if fixed.is_empty() { Of::Message } else { Of::CloudEvent }) {
            return Err(format!("nats_headers: {why}"));
        }
        for (name, value) in &own {
            let Value::String(value) = value else {
                return Err(format!("nats_headers: the value of {name:?} is not a string"));
            };
            block.push(name, value);
        }
        Ok(block)
    }

    fn push(&mut self, name: &str, value: &str) {
        push_line(name.as_bytes(), value.as_bytes(), &mut self.lines);
        self.names.push(name.to_owned());
        self.ends.push(self.lines.len());
    }

    /// Appends the lines of the names that are not replaced.
    pub fn write_unless(&self, is_replaced: impl Fn(&str) -> bool, out: &mut Vec<u8>) {
        let mut begin = 0;
        for (name, &end) in self.names.iter().zip(&self.ends) {
            if !is_replaced(name) {
                out.extend_from_slice(&self.lines[begin..end]);
            }
            begin = end;
        }
    }

    /// Whether it has this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Appends all lines; of those that an event's `own` headers name as well only the event's.
    pub fn write(&self, own: Option<&Map<String, Value>>, expose_credentials: bool, out: &mut Vec<u8>) {
        let Some(own) = own else {
            out.extend_from_slice(&self.lines);
            return;
        };
        self.write_unless(|name| own.keys().any(|other| other.eq_ignore_ascii_case(name)), out);
        for (name, value) in own.iter().filter(|(name, value)| expose_credentials || !is_credential(name, value)) {
            match value {
                Value::String(value) => push_line(name.as_bytes(), value.as_bytes(), out),
                other => push_line(name.as_bytes(), other.to_string().as_bytes(), out),
            }
        }
    }
}

/// Of a dead letter: what of its event was kept back, so that it cannot be published again.
pub const WITHHELD: &str = "Walhook-Withheld";

/// The key that an update has changed, as it was before.
pub const OLD_KEY: &str = "Walhook-Old-Key";

/// The version of the schema of a message's row.
pub const SCHEMA: &str = "Walhook-Schema";

/// That the body is sealed, and how.
pub const SEALED: &str = "Walhook-Sealed";

/// In place of [`OLD_KEY`]: the same, sealed, in base64.
pub const SEALED_OLD_KEY: &str = "Walhook-Sealed-Old-Key";

/// Headers of ours that stay with a message's body when it is published again.
const STAYS: [&str; 10] = [
    "Walhook-Headers",
    "Walhook-Message-Id",
    "Walhook-Object",
    "Walhook-Object-SHA256",
    OLD_KEY,
    "Walhook-Retry-Of",
    SCHEMA,
    SEALED,
    SEALED_OLD_KEY,
    "Walhook-Type",
];

/// Appends the headers that an event had when it was published first, without those that are of one publication only. Those
/// that describe the body stay with it.
pub fn write_again(stored: &Map<String, Value>, out: &mut Vec<u8>) {
    write_again_without("", stored, out);
}

/// The same without one of them.
pub fn write_again_without(left_out: &str, stored: &Map<String, Value>, out: &mut Vec<u8>) {
    let is_sent = |name: &str| (!is_reserved(name) || STAYS.contains(&name)) && name != left_out;
    for (name, value) in stored.iter().filter(|(name, _)| is_sent(name)) {
        if let Value::String(value) = value {
            push_line(name.as_bytes(), value.as_bytes(), out);
        }
    }
}

/// Appends `text` as a value in which only printable ASCII stands for itself (CloudEvents, NATS binding, "header
/// values").
pub fn push_encoded(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text {
        if (0x21..0x7F).contains(&byte) && byte != b'"' && byte != b'%' {
            out.push(byte);
        } else {
            out.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// Appends a line.
pub fn push_line(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
}

/// Names that JetStream or walhook reads.
fn is_reserved(name: &str) -> bool {
    let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    begins("nats-") || begins("walhook-")
}

/// Why these cannot be headers of a message, be they a webhook's or an event's own; `None` if they can.
pub fn invalid(headers: &Map<String, Value>, of: Of) -> Option<String> {
    let mut length = 0;
    for (name, value) in headers {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            return Some(format!("{name:?} is not a header name, which is visible ASCII without a colon"));
        }
        let is_attribute = || name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("ce-"));
        let is_taken = match of {
            Of::Message => is_reserved(name),
            Of::CloudEvent => is_reserved(name) || is_attribute() || name.eq_ignore_ascii_case("Content-Type"),
            Of::Again => false,
        };
        if is_taken {
            return Some(format!("the header {name:?} is reserved"));
        }
        let text = value.as_str();
        if text.is_some_and(|text| text.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7F)) {
            return Some(format!("the header {name:?} has a control character in its value"));
        }
        length += name.len() + text.map_or_else(|| value.to_string().len(), str::len);
    }
    let max = if of == Of::Again { AGAIN_MAX } else { BLOCK_MAX };
    (length > max).then(|| format!("they have {length} bytes, more than {max}"))
}

/// The headers of a message as a JSON object, but for those that tell only its place in a stream.
pub fn to_json(block: &[u8]) -> String {
    let mut object = Map::new();
    for line in block.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(colon) = memchr::memchr(b':', line)
            && !PLACE.iter().any(|place| line.starts_with(place))
        {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            object.insert(text(&line[..colon]), Value::String(text(line[colon + 1..].trim_ascii())));
        }
    }
    Value::Object(object).to_string()
}

/// A webhook's headers object as it goes into payloads: every value a string, as the RFC's Go worker wants it, and
/// nothing that looks like a credential unless the webhook says so.
///
/// # Errors
/// Something else than a JSON object.
pub fn parse(headers: Option<&str>, expose_credentials: bool) -> Result<Vec<u8>, String> {
    let Some(headers) = headers else { return Ok(b"{}".to_vec()) };
    let parsed = serde_json::from_str(headers).map_err(|error| format!("headers are not JSON: {error}"))?;
    let object = match parsed {
        Value::Null => return Ok(b"{}".to_vec()),
        Value::Object(object) => object,
        _ => return Err("headers are not a JSON object".to_owned()),
    };
    Ok(visible(object, expose_credentials))
}

/// Writes a headers object, credentials left out unless asked for, every value as a string.
pub fn visible(object: Map<String, Value>, expose_credentials: bool) -> Vec<u8> {
    let visible: Map<_, _> = object
        .into_iter()
        .filter(|(name, value)| expose_credentials || !is_credential(name, value))
        .map(|(name, value)| match value {
            Value::String(_) => (name, value),
            other => (name, other.to_string().into()),
        })
        .collect();
    Value::Object(visible).to_string().into_bytes()
}

/// Whether a header looks like a credential: by its name, or by a value such as `Bearer …`.
pub fn is_credential(name: &str, value: &Value) -> bool {
    let name = name.to_ascii_lowercase();
    let by_name = ["auth", "cookie", "token", "secret", "password", "passwd", "signature", "credential", "session"]
        .iter()
        .any(|word| name.contains(word))
        || name.replace(['-', '_'], "").contains("apikey")
        || name == "key"
        || name.ends_with("-key");
    let by_value = value.as_str().is_some_and(|value| {
        let value = value.trim_start().to_ascii_lowercase();
        ["bearer ", "basic ", "digest ", "negotiate "].iter().any(|scheme| value.starts_with(scheme))
    });
    by_name || by_value
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn credentials_stay_out_of_payloads_unless_the_webhook_says_otherwise() {
        let headers = r#"{"Content-Type":"application/json","Authorization":"x","X-Api-Key":"k","N":1,"V":"Bearer t"}"#;
        let shown = String::from_utf8(parse(Some(headers), false).unwrap()).unwrap();
        assert_eq!(shown, r#"{"Content-Type":"application/json","N":"1"}"#);
        let all = String::from_utf8(parse(Some(headers), true).unwrap()).unwrap();
        assert!(all.contains("Authorization") && all.contains("Bearer t"));
    }

    #[test]
    fn an_events_own_header_takes_the_place_of_its_webhooks() {
        let block = Block::compile(&[], Some(r#"{"X-Team": "a", "X-Kept": "ä"}"#)).unwrap();
        let written = |own: Option<&str>, expose: bool| {
            let mut out = Vec::new();
            block.write(own.map(object).as_ref(), expose, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(None, false), "\r\nX-Kept: ä\r\nX-Team: a");
        let own = Some(r#"{"x-team": "b", "Cookie": "c", "N": 5}"#);
        assert_eq!(written(own, false), "\r\nX-Kept: ä\r\nN: 5\r\nx-team: b");
        assert_eq!(written(own, true), "\r\nX-Kept: ä\r\nCookie: c\r\nN: 5\r\nx-team: b");
    }

    #[test]
    fn what_cannot_be_a_header_is_refused_with_the_reason() {
        let check = |headers: &str, fixed: &[(&str, &str)], reason: &str| {
            let refused = Block::compile(fixed, Some(headers)).unwrap_err();
            assert!(refused.contains(reason), "{headers}: {refused}");
        };
        for name in ["", "a b", "a:b", "ä", "a\\r\\nb", "a\\u007f"] {
            check(&format!("{{\"{name}\": \"x\"}}"), &[], "not a header name");
        }
        for name in ["Nats-Msg-Id", "nats-x", "WALHOOK-Op"] {
            check(&format!("{{\"{name}\": \"x\"}}"), &[], "reserved");
        }
        for name in ["ce-id", "CE-x", "content-type"] {
            check(&format!("{{\"{name}\": \"x\"}}"), &[("Content-Type", "x")], "reserved");
            assert!(Block::compile(&[], Some(&format!("{{\"{name}\": \"x\"}}"))).is_ok());
        }
        check(r#"{"A": "x\r\nNats-Msg-Id: forged"}"#, &[], "control character");
        check(r#"{"A": 1}"#, &[], "not a string");
        check("[]", &[], "not a JSON object");
        check("{", &[], "not JSON");
        check(&format!("{{\"A\": \"{}\"}}", "x".repeat(BLOCK_MAX)), &[], "more than 8192");
        assert_eq!(Block::compile(&[], Some("null")), Ok(Block::default()));
    }

    #[test]
    fn a_block_becomes_json_without_what_tells_only_its_place() {
        let block = b"NATS/1.0\r\nNats-Expected-Last-Sequence: 1\r\nNats-Batch-Id: b\r\nNats-Batch-Commit: 1\r\n\
              Walhook-Transaction: end\r\nNats-Msg-Id: a:b\r\nNats-Expected-Stream: S\r\nE: \r\n\r\n";
        assert_eq!(to_json(block), r#"{"E":"","Nats-Msg-Id":"a:b"}"#);
    }

    #[test]
    fn what_is_published_again_keeps_its_headers_and_none_of_its_first_way() {
        let mut out = Vec::new();
        write_again(&object(r#"{"Nats-Msg-Id": "x", "walhook-op": "update", "Walhook-Id": "y", "X": "1"}"#), &mut out);
        assert_eq!(out, b"\r\nX: 1");
        // The body of a claim check says nothing without them.
        out.clear();
        let claim = object(
            r#"{"Walhook-Epoch": "3", "Walhook-Object": "b/n", "Walhook-Object-SHA256": "ab", "Walhook-Schema": "p.t.1"}"#,
        );
        write_again(&claim, &mut out);
        assert_eq!(out, b"\r\nWalhook-Object: b/n\r\nWalhook-Object-SHA256: ab\r\nWalhook-Schema: p.t.1");
    }

    #[test]
    fn a_cloudevents_value_is_encoded_as_its_binding_says() {
        let mut out = Vec::new();
        push_encoded("Euro € 😀\"%~".as_bytes(), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "Euro%20%E2%82%AC%20%F0%9F%98%80%22%25~");
    }
}
