//! JetStream's answer to a publish. Pure.
//!
//! Comes in: headers and payload of a message on the reply subject. Goes out: whether it is stored, and where, or why
//! not (ADR-1, "JetStream JSON API design"; `server/jetstream_api.go`, `JSPubAckResponse`).

use serde::Deserialize;

use super::foreign::foreign;

/// No stream reaches it; behind it sums would overflow, and the database could not keep it.
pub const SEQUENCE_MAX: u64 = u64::MAX / 4;

/// Whether a message is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ack {
    /// It is, at this sequence; `duplicate`: it was before.
    Stored {
        /// Of the stream.
        sequence: u64,
        /// By its message id.
        duplicate: bool,
    },
    /// It is not.
    Refused {
        /// JetStream's `err_code`; 0 where there is none.
        code: u64,
        /// The server's words.
        description: String,
    },
    /// Nobody listens on the subject: no stream takes it, or JetStream is not there (status 503).
    NoResponders,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl Ack {
    /// Reads an answer. `status` is the one in its headers, if it has any.
    ///
    /// # Errors
    /// It is neither an acknowledgement nor a refusal.
    pub fn parse(status: Option<u16>, payload: &[u8]) -> Result<Ack, serde_json::Error> {
        match status {
            Some(503) => return Ok(Ack::NoResponders),
            Some(status) if payload.is_empty() => {
                return Ok(Ack::Refused { code: 0, description: format!("status {status}") });
            }
            _ => {}
        }
        if let Some((sequence, _)) = plain(payload) {
            return Ok(Ack::Stored { sequence, duplicate: false });
        }
        let answer: Answer = serde_json::from_slice(payload)?;
        Ok(match answer.error {
            Some(Refusal { err_code, description }) => {
                Ack::Refused { code: err_code, description: foreign(&description) }
            }
            None if answer.seq == 0 || answer.seq > SEQUENCE_MAX => {
                Ack::Refused { code: 0, description: "an answer without a possible sequence".to_owned() }
            }
            None => Ack::Stored { sequence: answer.seq, duplicate: answer.duplicate },
        })
    }
}

/// Whether the answer names a JetStream domain, and another one than `domain`: streams of two domains take the same subject.
pub fn is_from_another_domain(domain: &str, payload: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct From {
        domain: Option<String>,
    }
    let from = serde_json::from_slice::<From>(payload).ok().and_then(|from| from.domain);
    from.is_some_and(|from| from != domain)
}

/// The answers of one connection, of which nearly all differ from the one before in their sequence alone.
#[derive(Debug, Default)]
pub struct Usual {
    /// All that the last answer of the usual form had before its sequence.
    before: Vec<u8>,
}

impl Usual {
    /// The sequence of an answer without headers that is as the one that was noted, but for its sequence. It is of the same stream of
    /// the same domain, and [`Ack::parse`] says the same of it.
    #[inline]
    pub fn sequence(&self, payload: &[u8]) -> Option<u64> {
        let rest = payload.strip_prefix(self.before.as_slice()).filter(|_| !self.before.is_empty())?;
        sequence(rest)
    }

    /// Notes an answer that was taken for one of ours.
    pub fn note(&mut self, payload: &[u8]) {
        self.before.clear();
        if let Some((_, at)) = plain(payload) {
            self.before.extend_from_slice(&payload[..at]);
        }
    }
}

/// The sequence of an answer of the usual form, `{"stream":"NAME", "seq":123}`, which is nearly all of them, and where it begins.
fn plain(payload: &[u8]) -> Option<(u64, usize)> {
    let rest = payload.strip_prefix(b"{\"stream\":\"")?;
    let name_end = memchr::memchr2(b'"', b'\\', rest)?;
    let rest = rest[name_end..].strip_prefix(b"\",")?;
    let mut rest = rest.strip_prefix(b" ").unwrap_or(rest);
    if let Some(domain) = rest.strip_prefix(b"\"domain\":\"") {
        let domain_end = memchr::memchr2(b'"', b'\\', domain)?;
        rest = domain[domain_end..].strip_prefix(b"\",")?;
        rest = rest.strip_prefix(b" ").unwrap_or(rest);
    }
    let rest = rest.strip_prefix(b"\"seq\":")?;
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    Some((sequence(rest)?, payload.len() - rest.len()))
}

/// A sequence and the brace behind it.
fn sequence(text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"}")?;
    // 18 digits cannot overflow.
    if digits.is_empty() || digits.len() > 18 || digits == b"0" {
        return None;
    }
    let mut number = 0;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + u64::from(digit);
    }
    Some(number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_answer_is_understood() {
        let check = |payload: &str, expected: Ack| {
            assert_eq!(Ack::parse(None, payload.as_bytes()).unwrap(), expected, "{payload}");
        };
        let stored = |sequence, duplicate| Ack::Stored { sequence, duplicate };
        check(r#"{"stream":"WEBHOOKS", "seq":1}"#, stored(1, false));
        let impossible = |seq| Ack::parse(None, format!(r#"{{"stream":"WEBHOOKS","seq":{seq}}}"#).as_bytes()).unwrap();
        assert!(matches!(impossible(u64::MAX), Ack::Refused { code: 0, .. }));
        assert!(matches!(impossible(0), Ack::Refused { code: 0, .. }));
        check(r#"{"stream":"A", "seq":12,"duplicate": true}"#, stored(12, true));
        check(r#"{"stream":"A","domain":"hub", "seq":7}"#, stored(7, false));
        check(r#"{"stream":"A", "domain":"hub", "seq":7}"#, stored(7, false));
        check(r#"{"stream":"A", "domain":"a\"b", "seq":7}"#, stored(7, false));
        check(r#"{"stream":"A", "seq":7,"batch":"b","count":3}"#, stored(7, false));
        check(
            r#"{"type":"x","error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"}}"#,
            Ack::Refused { code: 10071, description: "wrong last sequence: 5".to_owned() },
        );
        assert!(matches!(Ack::parse(None, b"{}").unwrap(), Ack::Refused { .. }));
        assert_eq!(Ack::parse(Some(503), b"").unwrap(), Ack::NoResponders);
        let is_anothers = |payload: &str| is_from_another_domain("hub", payload.as_bytes());
        assert!(is_anothers(r#"{"stream":"A", "domain":"leaf", "seq":7}"#));
        assert!(!is_anothers(r#"{"stream":"A", "domain":"hub", "seq":7}"#));
        assert!(!is_anothers(r#"{"stream":"A", "seq":7}"#) && !is_anothers(""));
        assert_eq!(Usual::default().sequence(br#"{"stream":"A", "seq":7}"#), None);
        for bad in ["", "[", "+OK", "{\"seq\":\"x\"}"] {
            assert!(Ack::parse(None, bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_as_the_answer_before_is_read_as_the_whole_answer_is() {
        let answers = [
            r#"{"stream":"A", "seq":7}"#,
            r#"{"stream":"A","seq":7}"#,
            r#"{"stream":"A", "seq":123456789012345678}"#,
            r#"{"stream":"A", "seq":1234567890123456789}"#,
            r#"{"stream":"A", "seq":0}"#,
            r#"{"stream":"A", "seq":}"#,
            r#"{"stream":"A", "seq":7,"duplicate": true}"#,
            r#"{"stream":"A", "seq":7 }"#,
            r#"{"stream":"A", "seq":-7}"#,
            r#"{"stream":"B", "seq":7}"#,
            r#"{"stream":"A","domain":"hub", "seq":7}"#,
            r#"{"stream":"A","domain":"leaf", "seq":7}"#,
            r#"{"error":{"err_code":10071,"description":"wrong last sequence: 5"}}"#,
            "",
        ];
        for first in answers {
            let mut usual = Usual::default();
            usual.note(first.as_bytes());
            for next in answers {
                let Some(sequence) = usual.sequence(next.as_bytes()) else { continue };
                assert_eq!(Ack::parse(None, next.as_bytes()).unwrap(), Ack::Stored { sequence, duplicate: false });
                let before = |answer: &str| answer.split("\"seq\"").next().unwrap().to_owned();
                assert_eq!(before(first), before(next), "of the same stream and the same domain");
            }
        }
        let mut usual = Usual::default();
        usual.note(answers[0].as_bytes());
        assert_eq!(usual.sequence(answers[2].as_bytes()), Some(123_456_789_012_345_678));
    }
}
