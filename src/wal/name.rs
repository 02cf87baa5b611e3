//! Names as the WAL stream has them: UTF-8 everywhere but in databases whose encoding is `SQL_ASCII`, where they are any bytes.
//!
//! In: bytes. Out: text, in which a byte that is no part of UTF-8 is U+FFFD and its two hexadecimal digits (`caf\xE9` is `caf�E9`).
//! Always: different names stay different, and the same name is the same text wherever it is read: in a table's description, in a
//! link's row, in a backfill's chunk. The text means the same inside JSON and array literals, as nothing in it needs an escape.

use std::{borrow::Cow, fmt};

/// A name, borrowed from the message it is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// A name of these bytes.
    pub fn new(bytes: &'a [u8]) -> Name<'a> {
        Name(bytes)
    }

    /// As text.
    pub fn text(self) -> Cow<'a, str> {
        readable(self.0)
    }

    /// Whether it is this text.
    pub fn is(self, text: &str) -> bool {
        self.0 == text.as_bytes()
    }

    /// Whether it has no letter; so pgoutput writes `pg_catalog`.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

impl From<Name<'_>> for String {
    fn from(name: Name<'_>) -> String {
        name.text().into_owned()
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text().fmt(f)
    }
}

/// Bytes as text, each that is no part of UTF-8 as U+FFFD and its digits.
pub fn readable(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\u{FFFD}{byte:02X}"));
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_bytes_stay_different_and_utf_8_is_as_it_is() {
        let names: [(&[u8], &str); 5] = [
            (b"plain", "plain"),
            ("m\u{f6}\u{f6}d".as_bytes(), "m\u{f6}\u{f6}d"),
            (b"caf\xE9", "caf\u{FFFD}E9"),
            (b"caf\xE8", "caf\u{FFFD}E8"),
            (b"\xC3\xC3\xA4{", "\u{FFFD}C3\u{e4}{"),
        ];
        for (bytes, text) in names {
            assert_eq!(Name::new(bytes).text(), text);
            assert_eq!(format!("{:?}", Name::new(bytes)), format!("{text:?}"));
        }
    }
}
