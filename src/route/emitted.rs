//! Messages of `rule_webhook_emit`: which logical messages are events of ours, and what they say.
//!
//! Comes in: the keys of `rule_cdc_emit_keys`, as a statement read them and as they change in the WAL; the content of a logical
//! message. Goes out: an event, or why it is none. Any role may write a logical message with any content, so only a signature by a
//! key that no caller can read shows that it is one of the function's. What always holds: whether a message is an event depends on
//! its bytes, its transaction and the key's row alone, in every session: a row never goes, its key never changes, and its
//! `retired_lsn` lies behind every commit that the key was used for.

use std::{collections::HashMap, fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::value::write_bytes;
use crate::wal::{
    change::{Change, Relation},
    lsn::Lsn,
    pgoutput::Column,
};

/// The prefix of such messages.
pub const PREFIX: &str = "walhook.emit";
/// What their content begins with behind the signature.
const VERSION: u64 = 1;
/// HMAC-SHA-256, in base64.
const SIGNATURE_BYTES: usize = 44;
/// HMAC's inner key is the key with each byte XORed with this (RFC 2104).
const INNER: u8 = 0x36;

/// A message that the function made.
#[derive(Debug)]
pub struct Emitted<'a> {
    /// Whom it is for.
    pub webhook_id: i32,
    /// What the function returned: where the message ends in the WAL.
    pub lsn: Lsn,
    /// JSON in UTF-8.
    pub payload: &'a [u8],
    /// Everything else.
    pub call: Call,
}

/// What a call says beside its payload.
#[derive(Debug, Default, Deserialize)]
pub struct Call {
    /// What stands behind the webhook's subject, with the dot.
    pub tokens: Option<String>,
    /// The caller's own id.
    pub message_id: Option<String>,
    /// The call's own headers.
    pub headers: Option<Map<String, Value>>,
    /// Who called.
    pub triggered_by: Option<String>,
    /// For the history.
    pub rule_execution_id: Option<i64>,
    /// The link whose table has other columns from here on. No caller can say so.
    pub columns_of: Option<i32>,
}

/// Why a message with the prefix is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its bytes are not as the function writes them.
    Form,
    /// No row has the key that it names.
    UnknownKey(i32),
    /// The key was retired before its transaction committed.
    RetiredKey(i32),
    /// The signature is not of these bytes.
    Signature,
    /// It was signed for another transaction.
    Transaction,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Form => f.write_str("its bytes are not as rule_webhook_emit writes them"),
            Refusal::UnknownKey(id) => write!(f, "rule_cdc_emit_keys has no key {id}"),
            Refusal::RetiredKey(id) => write!(f, "key {id} was retired before it was committed"),
            Refusal::Signature => f.write_str("its signature is wrong"),
            Refusal::Transaction => f.write_str("it was signed for another transaction"),
        }
    }
}

/// The keys, by their ids.
#[derive(Debug, Default)]
pub struct EmitKeys(HashMap<i32, EmitKey>);

#[derive(Debug)]
struct EmitKey {
    key: hmac::Key,
    retired: Option<Lsn>,
}

impl EmitKeys {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A row of `rule_cdc_emit_keys`. `inner`: the column `inner_key`.
    pub fn put(&mut self, id: i32, inner: &[u8], retired: Option<Lsn>) {
        let key: Vec<u8> = inner.iter().map(|byte| byte ^ INNER).collect();
        self.0.insert(id, EmitKey { key: hmac::Key::new(hmac::HMAC_SHA256, &key), retired });
    }

    /// Takes a change of that table. A row that goes stays: what it signed may still come.
    pub fn follow(&mut self, columns: KeyColumns, change: &Change<'_>) {
        let Some(row) = change.new else { return };
        let text = |index: usize| match row.iter().nth(index) {
            Some(Column::Text(text)) => Some(text),
            _ => None,
        };
        let parsed = |index: usize| text(index).and_then(|text| std::str::from_utf8(text).ok());
        let Some(id) = parsed(columns.key_id).and_then(|id| id.parse().ok()) else { return };
        let Some(digits) = text(columns.inner_key) else { return };
        let mut inner = Vec::new();
        write_bytes(digits, &mut inner);
        self.put(id, &inner, parsed(columns.retired_lsn).and_then(|lsn| lsn.parse().ok()));
    }

    /// What a message says that was found in transaction `xid`, which committed at `commit_lsn`.
    ///
    /// # Errors
    /// It is no event.
    pub fn read<'a>(&self, content: &'a [u8], lsn: Lsn, xid: u32, commit_lsn: Lsn) -> Result<Emitted<'a>, Refusal> {
        let (signature, signed) = content.split_at_checked(SIGNATURE_BYTES).ok_or(Refusal::Form)?;
        let signature = STANDARD.decode(signature).map_err(|_| Refusal::Form)?;
        let mut rest = signed;
        let version: u64 = number(&mut rest)?;
        let signed_xid: u64 = number(&mut rest)?;
        let key_id = number(&mut rest)?;
        let webhook_id = number(&mut rest)?;
        let length = number(&mut rest)?;
        let (call, payload) = rest.split_at_checked(length).ok_or(Refusal::Form)?;
        if version != VERSION {
            return Err(Refusal::Form);
        }
        let EmitKey { key, retired } = self.0.get(&key_id).ok_or(Refusal::UnknownKey(key_id))?;
        hmac::verify(key, signed, &signature).map_err(|_| Refusal::Signature)?;
        if retired.is_some_and(|retired| retired <= commit_lsn) {
            return Err(Refusal::RetiredKey(key_id));
        }
        // The WAL has the lower half of a transaction's id.
        if signed_xid & u64::from(u32::MAX) != u64::from(xid) {
            return Err(Refusal::Transaction);
        }
        let call = serde_json::from_slice(call).map_err(|_| Refusal::Form)?;
        Ok(Emitted { webhook_id, lsn, payload, call })
    }
}

/// The number up to the next space, behind which `rest` begins then.
fn number<N: FromStr>(rest: &mut &[u8]) -> Result<N, Refusal> {
    let space = memchr::memchr(b' ', rest).ok_or(Refusal::Form)?;
    let text = std::str::from_utf8(&rest[..space]).map_err(|_| Refusal::Form)?;
    *rest = &rest[space + 1..];
    text.parse().map_err(|_| Refusal::Form)
}

impl Emitted<'_> {
    /// The number under which the history has it, where other events have their `event_id`: these are never negative.
    pub fn event_number(&self) -> i64 {
        -self.lsn.0.cast_signed()
    }
}

/// Where the columns of `rule_cdc_emit_keys` are.
#[derive(Debug, Clone, Copy)]
pub struct KeyColumns {
    key_id: usize,
    inner_key: usize,
    retired_lsn: usize,
}

impl KeyColumns {
    /// `None` where it is another table.
    pub fn find(relation: &Relation) -> Option<KeyColumns> {
        if relation.schema != "public" || relation.name != "rule_cdc_emit_keys" {
            return None;
        }
        let index = |name: &str| relation.columns.iter().position(|column| column.name == name);
        Some(KeyColumns {
            key_id: index("key_id")?,
            inner_key: index("inner_key")?,
            retired_lsn: index("retired_lsn")?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn keys(retired: Option<Lsn>) -> EmitKeys {
        let mut inner = [INNER; 64];
        inner[..32].iter_mut().zip(KEY).for_each(|(byte, key)| *byte ^= key);
        let mut keys = EmitKeys::default();
        keys.put(3, &inner, retired);
        keys
    }

    fn content(version: u64, xid: u64, key_id: i32, call: &str, payload: &str) -> Vec<u8> {
        let signed = format!("{version} {xid} {key_id} 9 {} {call}{payload}", call.len());
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &KEY), signed.as_bytes());
        [STANDARD.encode(signature).as_bytes(), signed.as_bytes()].concat()
    }

    #[test]
    fn what_the_function_wrote_is_read_and_everything_else_is_refused_with_the_reason() {
        let at = Lsn(100);
        let good = content(1, (5 << 32) | 77, 3, r#"{"message_id":"m","headers":{"A":"b"}}"#, "{\"a\":1}");
        let read = |content: &[u8], xid| match keys(None).read(content, Lsn(42), xid, at) {
            Ok(emitted) => Ok((emitted.webhook_id, emitted.payload.to_vec(), emitted.event_number())),
            Err(refusal) => Err(refusal),
        };
        assert_eq!(read(&good, 77), Ok((9, b"{\"a\":1}".to_vec(), -42)));
        assert_eq!(read(&good, 78), Err(Refusal::Transaction));
        for length in 0..good.len() {
            assert!(read(&good[..length], 77).is_err(), "{length}");
        }
        for index in 0..good.len() {
            let mut changed = good.clone();
            changed[index] ^= 1;
            assert!(read(&changed, 77).is_err(), "byte {index} does not matter");
        }
        assert_eq!(read(&content(1, 77, 4, "{}", "1"), 77), Err(Refusal::UnknownKey(4)));
        assert_eq!(read(&content(2, 77, 3, "{}", "1"), 77), Err(Refusal::Form));
        assert_eq!(read(&content(1, 77, 3, "[", "1"), 77), Err(Refusal::Form));
    }

    #[test]
    fn a_retired_key_is_good_for_what_committed_before() {
        let content = content(1, 77, 3, "{}", "1");
        for (commit, is_good) in [(99, true), (100, false), (101, false)] {
            assert_eq!(keys(Some(Lsn(100))).read(&content, Lsn(1), 77, Lsn(commit)).is_ok(), is_good, "{commit}");
        }
    }
}
