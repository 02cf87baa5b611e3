//! Texts of the WAL stream in UTF-8, where the database has neither UTF-8 nor `SQL_ASCII`. Pure.
//!
//! In: a table of the encoding's characters, which PostgreSQL has made, and one CopyData payload as the server sends it without any
//! conversion. Out: the same payload with every name and value in UTF-8. A character that has no UTF-8 stays as it is,
//! so its text is not UTF-8 and is treated as in a database in `SQL_ASCII`; PostgreSQL would end the stream there, at every attempt.
//! Always holds: what is no message is returned unchanged, for the parser behind to refuse. `walhook.rule_cdc_utf8` (sql/007) makes
//! the same bytes of the same text.

use super::frame::Frame;

/// An encoding whose first half is ASCII, with one to four bytes for each other character.
#[derive(Clone, PartialEq, Eq)]
pub struct Encoding {
    /// How many bytes the character has that begins with each byte from 128 on; 0: none begins with it.
    lengths: [u8; HALF],
    /// Characters that differ in their last byte only, sorted by what stands before it.
    rows: Vec<Row>,
}

/// So many bytes are ASCII, and as many are not.
const HALF: usize = 128;

/// The characters that begin with the same bytes, by their last byte from 128 on.
#[derive(Clone, PartialEq, Eq)]
struct Row {
    /// The bytes before the last, the first one in the highest place; 0 for characters of one byte.
    prefix: u32,
    characters: Box<[Character; HALF]>,
}

/// A character in UTF-8: one code point, in `EUC_JIS_2004` up to two. Of length 0 where there is none.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Character {
    length: u8,
    utf8: [u8; 7],
}

impl Character {
    fn of(utf8: &[u8]) -> Option<Character> {
        let mut character = Character { length: u8::try_from(utf8.len()).ok()?, ..Character::default() };
        character.utf8.get_mut(..utf8.len())?.copy_from_slice(utf8);
        let text = std::str::from_utf8(utf8).ok()?;
        (!text.contains(|letter: char| letter.is_ascii())).then_some(character)
    }

    fn utf8(&self) -> Option<&[u8]> {
        (self.length > 0).then(|| &self.utf8[..usize::from(self.length)])
    }
}

impl std::fmt::Debug for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoding").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

impl Encoding {
    /// From lines of hexadecimal digits, one for all characters that differ in their last byte only: the bytes before it, `:`, the
    /// first last byte, `:`, and the characters in UTF-8 in the order of their last bytes, each behind a comma, empty where there is none.
    /// `None` if it is no such table.
    pub fn parse(table: &str) -> Option<Encoding> {
        let mut encoding = Encoding { lengths: [0; HALF], rows: Vec::new() };
        for line in table.lines() {
            let mut parts = line.splitn(3, ':');
            let (prefix, first, characters) = (bytes(parts.next()?)?, bytes(parts.next()?)?, parts.next()?);
            let &[first] = first.as_slice() else { return None };
            let mut row = Row { prefix: number(&prefix), characters: Box::new([Character::default(); HALF]) };
            for (utf8, byte) in characters.strip_prefix(',')?.split(',').zip(usize::from(first)..) {
                *row.characters.get_mut(byte.checked_sub(HALF)?)? = Character::of(&bytes(utf8)?)?;
            }
            let length = u8::try_from(prefix.len() + 1).ok().filter(|length| *length <= 4)?;
            match prefix.first() {
                Some(&lead) => *encoding.lengths.get_mut(usize::from(lead).checked_sub(HALF)?)? = length,
                None => encoding.lengths = [1; HALF],
            }
            encoding.rows.push(row);
        }
        encoding.rows.sort_unstable_by_key(|row| row.prefix);
        (!encoding.rows.is_empty()).then_some(encoding)
    }

    /// The character at the beginning of a text that does not begin with ASCII, and how many bytes it has. A byte that begins no
    /// character stands for itself.
    fn character(&self, text: &[u8]) -> (Option<&[u8]>, usize) {
        let length = usize::from(self.lengths[usize::from(text[0]) - HALF]);
        let Some((&last, prefix)) = text.get(..length).and_then(<[u8]>::split_last) else { return (None, 1) };
        if text[..length].iter().any(u8::is_ascii) {
            return (None, 1);
        }
        let prefix = number(prefix);
        let row = self.rows.binary_search_by_key(&prefix, |row| row.prefix).ok();
        (row.and_then(|row| self.rows[row].characters[usize::from(last) - HALF].utf8()), length)
    }

    fn decode(&self, mut text: &[u8], out: &mut Vec<u8>) {
        while let Some(at) = text.iter().position(|byte| !byte.is_ascii()) {
            out.extend_from_slice(&text[..at]);
            text = &text[at..];
            let (character, length) = self.character(text);
            if let Some(utf8) = character {
                out.extend_from_slice(utf8);
            } else {
                // A byte that could begin a character must not meet one that could go on with it.
                if text[0] >= 0xC0 {
                    out.push(0xFF);
                }
                out.extend_from_slice(&text[..length]);
            }
            text = &text[length..];
        }
        out.extend_from_slice(text);
    }

    /// Writes the payload of one CopyData message into `out`, in UTF-8.
    pub fn convert(&self, copy_data: &[u8], out: &mut Vec<u8>) {
        out.clear();
        if let Ok(Frame::XLogData { data, .. }) = Frame::parse(copy_data) {
            out.extend_from_slice(&copy_data[..copy_data.len() - data.len()]);
            let mut message = Message { encoding: self, rest: data, out };
            if message.convert().is_some() && message.rest.is_empty() {
                return;
            }
            out.clear();
        }
        out.extend_from_slice(copy_data);
    }
}

/// The bytes that hexadecimal digits stand for.
pub fn bytes(digits: &str) -> Option<Vec<u8>> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}

/// Up to three bytes as a number.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// A message of pgoutput that is converted (manual, section 55.9).
struct Message<'m> {
    encoding: &'m Encoding,
    rest: &'m [u8],
    out: &'m mut Vec<u8>,
}

impl<'m> Message<'m> {
    fn convert(&mut self) -> Option<()> {
        match self.byte()? {
            b'R' => {
                self.bytes(4)?;
                self.name()?;
                self.name()?;
                self.byte()?;
                for _ in 0..self.count()? {
                    self.byte()?;
                    self.name()?;
                    self.bytes(8)?;
                }
                Some(())
            }
            b'Y' => {
                self.bytes(4)?;
                self.name()?;
                self.name()
            }
            b'O' => {
                self.bytes(8)?;
                self.name()
            }
            b'I' | b'U' | b'D' => {
                self.bytes(4)?;
                while !self.rest.is_empty() {
                    self.byte()?;
                    self.tuple()?;
                }
                Some(())
            }
            // Begin, commit and truncate have no text, and content of messages is bytes.
            _ => self.bytes(self.rest.len()).map(drop),
        }
    }

    fn tuple(&mut self) -> Option<()> {
        for _ in 0..self.count()? {
            match self.byte()? {
                b'n' | b'u' => {}
                b't' => {
                    let text = self.value()?;
                    let at = self.out.len();
                    self.out.extend_from_slice(&[0; 4]);
                    self.encoding.decode(text, self.out);
                    let length = u32::try_from(self.out.len() - at - 4).ok()?;
                    self.out[at..at + 4].copy_from_slice(&length.to_be_bytes());
                }
                b'b' => {
                    let value = self.value()?;
                    self.out.extend_from_slice(&u32::try_from(value.len()).ok()?.to_be_bytes());
                    self.out.extend_from_slice(value);
                }
                _ => return None,
            }
        }
        Some(())
    }

    /// Some bytes as they are.
    fn bytes(&mut self, count: usize) -> Option<&'m [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        self.out.extend_from_slice(bytes);
        Some(bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    fn count(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }

    /// A length and so many bytes, of which nothing is written.
    fn value(&mut self) -> Option<&'m [u8]> {
        let (length, rest) = self.rest.split_at_checked(4)?;
        let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
        let (value, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some(value)
    }

    /// A name up to its NUL.
    fn name(&mut self) -> Option<()> {
        let end = self.rest.iter().position(|byte| *byte == 0)?;
        let (name, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        self.encoding.decode(name, self.out);
        self.bytes(1).map(drop)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// 0xE9 is é, 0x81 and 0xC3 are nothing, all else is Ω.
    fn encoding() -> Encoding {
        let characters = (128..=255).map(|byte| match byte {
            0xE9 => ",c3a9",
            0x81 | 0xC3 => ",",
            _ => ",cea9",
        });
        Encoding::parse(&format!(":80:{}", characters.collect::<String>())).unwrap()
    }

    /// Characters of two, three and four bytes; E1 E1 is one of two code points.
    fn long() -> Encoding {
        Encoding::parse("8ea2a1:a1:,f0a0808c\nc3:a1:,,e38182\ne1:e1:,e3818be3829a\n8fb0:a1:,e4b882,\n").unwrap()
    }

    fn payload(message: &[u8]) -> Vec<u8> {
        [b"w".as_slice(), &[0x81; 24], message].concat()
    }

    fn converted(message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encoding().convert(&payload(message), &mut out);
        out[..25].iter().zip(payload(b"")).for_each(|(a, b)| assert_eq!(*a, b));
        out[25..].to_vec()
    }

    #[test]
    fn names_and_values_become_utf_8_and_all_else_stays() {
        let relation =
            b"R\0\0\x81\0s\xE9\0t\xE9\0d\0\x02\x01a\xE9\0\0\0\0\x19\xFF\xFF\xFF\xFF\0b\0\0\0\0\x17\0\0\0\x04";
        let wanted = "R\0\0\u{81}\0s\u{E9}\0t\u{E9}\0d";
        let got = converted(relation);
        assert_eq!(
            &got[5..],
            &[
                "sé\0té\0d".as_bytes(),
                b"\0\x02\x01",
                "aé\0".as_bytes(),
                b"\0\0\0\x19\xFF\xFF\xFF\xFF\0b\0\0\0\0\x17\0\0\0\x04"
            ]
            .concat(),
            "{wanted}"
        );
        let update = b"U\0\0\0\x81K\0\x01t\0\0\0\x01\xE9N\0\x03t\0\0\0\x03x\xE9ynu";
        assert!(
            converted(update).starts_with(b"U\0\0\0\x81K\0\x01t\0\0\0\x02\xC3\xA9N\0\x03t"),
            "{:?}",
            converted(update)
        );
        for unchanged in [&b"B\x81\x81\x81\x81\x81\x81\x81\x81"[..], b"T\0\0\0\x01\0\0\0\x81\xE9", b"C\0\xE9"] {
            assert_eq!(converted(unchanged), unchanged);
        }
        // What is no message, or has too much, goes on as it came.
        for broken in [
            &b""[..],
            b"I\0\0\0\x01N\0\x01t\0\0\0\x09\xE9",
            b"I\0\0\0\x01N\0\x01x",
            b"R\0\0\0\x01\xE9",
            b"Y\0\0\0\x01\xE9\0\xE9\0\xE9",
        ] {
            assert_eq!(converted(broken), broken);
        }
        let mut out = vec![1];
        encoding().convert(b"k\x81", &mut out);
        assert_eq!(out, b"k\x81");
    }

    #[test]
    fn a_text_with_a_byte_that_means_nothing_is_never_utf_8() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let text: Vec<u8> = (0..random.usize(1..6))
                .map(|_| *random.choice(b"a\xE9\x81\xC3\xA9").as_ref().unwrap())
                .copied()
                .collect();
            let mut out = Vec::new();
            encoding().decode(&text, &mut out);
            let has_none = text.iter().any(|byte| [0x81, 0xC3].contains(byte));
            assert_eq!(std::str::from_utf8(&out).is_err(), has_none, "{text:x?} {out:x?}");
        }
    }

    #[test]
    fn characters_of_several_bytes_become_utf_8_and_what_has_none_stays() {
        let decoded = |text: &[u8]| {
            let mut out = Vec::new();
            long().decode(text, &mut out);
            out
        };
        let text = b"a\xC3\xA2\xE1\xE1b\x8F\xB0\xA1\x8E\xA2\xA1\xA1";
        assert_eq!(decoded(text), "aあか\u{309A}b丂\u{2000C}".as_bytes());
        for (text, wanted) in [
            // Characters that are not in the table, each as a whole.
            (&b"\xC3\xA9"[..], &b"\xFF\xC3\xA9"[..]),
            (b"\x8F\xC3\xA9z", b"\x8F\xC3\xA9z"),
            (b"\x8F\xB0\xA2", b"\x8F\xB0\xA2"),
            // What is no character: byte by byte.
            (b"\x8F\xC3", b"\x8F\xFF\xC3"),
            (b"\xC3z\xC3\xA2", b"\xFF\xC3z\xE3\x81\x82"),
            (b"\xFE\xC3\xA2", b"\xFF\xFE\xE3\x81\x82"),
        ] {
            assert_eq!(decoded(text), wanted, "{text:x?}");
            assert!(std::str::from_utf8(wanted).is_err(), "{text:x?}");
        }
    }

    #[test]
    fn what_is_no_table_is_refused() {
        for table in ["", ":80:", "x", "e1:a1,e38182", "e1:a1:,e3", "41:a1:,c3a9", "8ea2a1a1:a1:,c3a9", ":e9:,41"] {
            assert_eq!(Encoding::parse(table), None, "{table}");
        }
        // More characters than last bytes.
        assert_eq!(Encoding::parse(":ff:,c3a9,c3a9"), None);
    }
}
