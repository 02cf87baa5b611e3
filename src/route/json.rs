//! The grammar of JSON (RFC 8259), as far as it takes to pass a value on without reading it.
//!
//! In: bytes. Out: whether they are a JSON value, a number, where a string has to be escaped. Nothing is built and nothing allocated up
//! to 64 levels. Ours, because every value of type json goes through here: serde_json, which the tests hold it against, takes an
//! allocation for each document and three times the instructions.

/// Eight times the byte.
const fn repeat(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Of the bytes of a word that JSON wants escaped the high bit of the first one, and of some behind it: a borrow can only set bits
/// above the first true one. All of them are below 0x80.
#[inline]
const fn specials(word: u64) -> u64 {
    let control = word.wrapping_sub(repeat(0x20));
    let quote = (word ^ repeat(b'"')).wrapping_sub(repeat(0x01));
    let backslash = (word ^ repeat(b'\\')).wrapping_sub(repeat(0x01));
    (control | quote | backslash) & !word & repeat(0x80)
}

/// Where the first byte is that JSON wants escaped: eight bytes at a time, then one by one.
pub(super) fn find_special(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, chunk) in words.iter().enumerate() {
        let special = specials(u64::from_le_bytes(*chunk));
        if special != 0 {
            return Some(index * 8 + special.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|&byte| is_special(byte)).map(|more| words.len() * 8 + more)
}

fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// JSON's grammar of numbers (RFC 8259, section 6).
pub(super) fn is_number(text: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut rest = text.strip_prefix(b"-").unwrap_or(text);
    let whole = digits(rest);
    if whole == 0 || whole > 1 && rest[0] == b'0' {
        return false;
    }
    rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        match digits(fraction) {
            0 => return false,
            count => rest = &fraction[count..],
        }
    }
    match rest {
        [] => true,
        [b'e' | b'E', b'+' | b'-', exponent @ ..] | [b'e' | b'E', exponent @ ..] => {
            !exponent.is_empty() && digits(exponent) == exponent.len()
        }
        _ => false,
    }
}

/// Whether the text is JSON that can be embedded.
///
/// PostgreSQL has checked it, by the same grammar; checked again, because one broken value would break the event. What
/// the grammar allows goes through, also what many readers choke on: half surrogate pairs (`json` only), numbers beyond
/// any float, deep nesting.
pub(super) fn is_json(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok() && end_of_document(text).is_some()
}

/// The objects and lists that are open around a place; a bit for each, set for an object.
#[derive(Default)]
struct Nesting {
    depth: usize,
    innermost: u64,
    outer: Vec<u64>,
}

impl Nesting {
    const BITS: usize = 64;

    fn open(&mut self, is_object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(Self::BITS) {
            self.outer.push(self.innermost);
        }
        self.innermost = self.innermost << 1 | u64::from(is_object);
        self.depth += 1;
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.innermost >>= 1;
        if self.depth > 0 && self.depth.is_multiple_of(Self::BITS) {
            self.innermost = self.outer.pop().expect("a word for every 64 levels");
        }
    }

    fn is_in_object(&self) -> bool {
        self.innermost & 1 == 1
    }
}

/// The end of the text, if it is one value and nothing else.
fn end_of_document(text: &[u8]) -> Option<usize> {
    let mut nesting = Nesting::default();
    let mut at = behind_space(text, 0);
    loop {
        match text.get(at)? {
            b'{' => {
                nesting.open(true);
                at = behind_space(text, at + 1);
                if text.get(at) != Some(&b'}') {
                    at = behind_key(text, at)?;
                    continue;
                }
            }
            b'[' => {
                nesting.open(false);
                at = behind_space(text, at + 1);
                if text.get(at) != Some(&b']') {
                    continue;
                }
            }
            b'"' => at = behind_string(text, at + 1)?,
            b't' => at = behind_word(text, at, b"true")?,
            b'f' => at = behind_word(text, at, b"false")?,
            b'n' => at = behind_word(text, at, b"null")?,
            _ => at = behind_number(text, at)?,
        }
        // A value has ended, or an empty object or list is about to.
        loop {
            at = behind_space(text, at);
            if nesting.depth == 0 {
                return (at == text.len()).then_some(at);
            }
            match (text.get(at)?, nesting.is_in_object()) {
                (b',', true) => {
                    at = behind_key(text, behind_space(text, at + 1))?;
                    break;
                }
                (b',', false) => {
                    at = behind_space(text, at + 1);
                    break;
                }
                (b'}', true) | (b']', false) => {
                    nesting.close();
                    at += 1;
                }
                _ => return None,
            }
        }
    }
}

fn behind_space(text: &[u8], at: usize) -> usize {
    let mut at = at;
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

/// Behind a key and its colon: where its value begins.
fn behind_key(text: &[u8], at: usize) -> Option<usize> {
    if text.get(at)? != &b'"' {
        return None;
    }
    let at = behind_space(text, behind_string(text, at + 1)?);
    (text.get(at)? == &b':').then(|| behind_space(text, at + 1))
}

/// Behind a string whose opening quote is before `at`.
fn behind_string(text: &[u8], at: usize) -> Option<usize> {
    let mut at = at;
    loop {
        at += find_special(&text[at..])?;
        match (text[at], text.get(at + 1)) {
            (b'"', _) => return Some(at + 1),
            (b'\\', Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't')) => at += 2,
            (b'\\', Some(b'u')) if text.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => at += 6,
            _ => return None,
        }
    }
}

fn behind_word(text: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    text[at..].starts_with(word).then_some(at + word.len())
}

fn behind_number(text: &[u8], at: usize) -> Option<usize> {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    let length = text[at..].iter().take_while(|byte| is_part(byte)).count();
    is_number(&text[at..at + length]).then_some(at + length)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    fn serde_takes(text: &[u8]) -> bool {
        std::str::from_utf8(text).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
    }

    #[test]
    fn nesting_has_no_end_and_closes_as_it_opened() {
        for levels in [1, 63, 64, 65, 128, 129, 100_000] {
            let lists = "[".repeat(levels) + &"]".repeat(levels);
            let mixed = "[{\"a\":".repeat(levels) + "1" + &"}]".repeat(levels);
            assert!(is_json(lists.as_bytes()) && is_json(mixed.as_bytes()), "{levels} levels");
            let crossed = "[{\"a\":".repeat(levels) + "1" + &"}]".repeat(levels - 1) + "]}";
            for wrong in [&lists[1..], &lists[..lists.len() - 1], &mixed[1..], &crossed] {
                assert!(!is_json(wrong.as_bytes()), "{levels} levels");
            }
        }
    }

    /// Pieces that are or are nearly JSON, so that their sequences often are.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        const PIECES: &[&str] = &[
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\"a\"",
            "\"a\":",
            "1",
            "-0",
            "0.5e-7",
            "01",
            "1.",
            "true",
            "null",
            "fals",
            " ",
            "\n",
            "\\",
            "\"\\u00e9\"",
            "\"\\ud800\"",
            "\"\\x\"",
            "\"\u{1}\"",
            "{}",
            "[]",
            "[1]",
            "{\"a\":1}",
            "ü",
            "\"ü\"",
        ];
        proptest::collection::vec(0..PIECES.len(), 0..9)
            .prop_map(|indexes| indexes.into_iter().map(|index| PIECES[index]).collect::<String>().into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn pieces_of_json_are_judged_as_serde_judges_them(text in pieces()) {
            prop_assert_eq!(is_json(&text), serde_takes(&text), "{}", String::from_utf8_lossy(&text));
        }

        #[test]
        fn what_was_json_before_a_byte_was_changed_is_judged_as_serde_judges_it(
            number in any::<f64>(),
            text in ".{0,12}",
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let value = serde_json::json!({ "text": text, "list": [number, [], {}, null, true, {"a": {"b": [text, 1]}}] });
            let mut json = value.to_string().into_bytes();
            prop_assert!(is_json(&json));
            let at = at.index(json.len());
            json[at] = byte;
            prop_assert_eq!(is_json(&json), serde_takes(&json), "{}", String::from_utf8_lossy(&json));
        }
    }
}
