//! Percent coding, as URLs have it. Comes in: a part of a URL. Goes out: its text, or nothing where it is wrong.

/// Decodes `%XX`. Stricter than the library, which keeps a `%` that no two hexadecimal digits follow: in a password that is a
/// mistake to report.
pub fn decode(text: &str) -> Option<String> {
    let has_digits = |part: &str| part.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
    if !text.split('%').skip(1).all(has_digits) {
        return None;
    }
    percent_encoding::percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_decoded_and_what_is_no_percent_coding_is_refused() {
        for (text, decoded) in
            [("", ""), ("a+b", "a+b"), ("p%40ss%2fword%25", "p@ss/word%"), ("%C3%a4", "ä"), ("ä%20", "ä ")]
        {
            assert_eq!(decode(text).as_deref(), Some(decoded), "{text}");
        }
        for text in ["%", "a%4", "%zz", "%+f", "100%", "%%41", "%ä", "%ff", "%C3x"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
