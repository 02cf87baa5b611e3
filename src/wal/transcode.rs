//! Texts of the WAL stream in UTF-8, where the database has another encoding of one byte for each character. Pure.
//!
//! In: a table of the bytes 128 to 255, which PostgreSQL has made, and one CopyData payload as the server sends it without any
//! conversion. Out: the same payload with every name and value in UTF-8. A byte that the encoding does not define stays as it is,
//! so its text is not UTF-8 and is treated as in a database in `SQL_ASCII`; PostgreSQL would end the stream there, at every attempt.
//! Always holds: what is no message is returned unchanged, for the parser behind to refuse.

use super::frame::Frame;

/// An encoding of one byte for each character, whose first half is ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// The character of each byte from 128 on; `None`: it has none.
    upper: Vec<Option<char>>,
}

impl Encoding {
    /// From the characters of the bytes 128 to 255, each as text, or empty where there is none; `None` if there are not 128.
    pub fn of(characters: &[&str]) -> Option<Encoding> {
        let character = |text: &&str| {
            let mut characters = text.chars();
            match (characters.next(), characters.next()) {
                (Some(character), None) if !character.is_ascii() => Some(character),
                _ => None,
            }
        };
        (characters.len() == 128).then(|| Encoding { upper: characters.iter().map(character).collect() })
    }

    /// A text in this encoding; `None` if it has a character that the encoding lacks.
    pub fn encode(&self, text: &str) -> Option<Vec<u8>> {
        let byte = |character: char| match u8::try_from(character) {
            Ok(byte) if byte.is_ascii() => Some(byte),
            _ => {
                let place = self.upper.iter().position(|known| *known == Some(character))?;
                u8::try_from(place + 128).ok()
            }
        };
        text.chars().map(byte).collect()
    }

    fn decode(&self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            match byte.checked_sub(128) {
                None => out.push(byte),
                Some(place) => match self.upper[usize::from(place)] {
                    Some(character) => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
                    None => {
                        // A byte that could begin a character must not meet one that could go on with it.
                        if byte >= 0xC0 {
                            out.push(0xFF);
                        }
                        out.push(byte);
                    }
                },
            }
        }
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
        let characters: Vec<&str> = (128..=255)
            .map(|byte| match byte {
                0xE9 => "é",
                0x81 | 0xC3 => "",
                _ => "Ω",
            })
            .collect();
        Encoding::of(&characters).unwrap()
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
    fn a_text_is_encoded_if_it_can_be() {
        assert_eq!(encoding().encode("sé").unwrap(), b"s\xE9");
        assert_eq!(encoding().encode("\u{81}"), None);
        assert_eq!(Encoding::of(&["é"]), None);
    }
}
