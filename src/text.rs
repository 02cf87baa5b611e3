//! Text of others (servers, rows, files), made safe to show on a terminal and in a log line.
//!
//! In: any text. Out: the same without anything that moves a cursor, changes a colour, ends a line or turns the reading
//! direction; such characters are shown as escapes. A long text is cut, and says so.

use std::{borrow::Cow, fmt::Write as _};

/// How many bytes of one text of others a line shows.
pub const SHOWN: usize = 4096;

/// Writes `?` for each character of these texts that is not ASCII: some database has no other in its encoding. Returns whether there
/// was one.
pub fn to_ascii<'t>(texts: impl IntoIterator<Item = Option<&'t mut String>>) -> bool {
    let mut has_others = false;
    for text in texts.into_iter().flatten().filter(|text| !text.is_ascii()) {
        *text = text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect();
        has_others = true;
    }
    has_others
}

/// Whether a terminal, or whoever reads a log line by line, would do something else than show it.
fn acts(c: char) -> bool {
    c.is_control() // C0, DEL and C1, in which single characters begin escape sequences too
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') // bidi
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}') // line ends, annotations
}

fn escape(text: &str, keeps: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_safe = |c: char| !acts(c) || keeps(c);
    if text.chars().all(is_safe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_safe(c) {
            escaped.push(c);
        } else {
            escaped.extend(c.escape_default());
        }
    }
    Cow::Owned(escaped)
}

/// The beginning of a text that is at most `most` bytes long, and how many bytes are left out.
fn cut(text: &str, most: usize) -> (&str, usize) {
    if text.len() <= most {
        return (text, 0);
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    (&text[..end], text.len() - end)
}

/// One line of at most `most` bytes and a remark; control characters and changes of direction are escaped.
pub fn one_line_of(text: &str, most: usize) -> Cow<'_, str> {
    let (shown, left_out) = cut(text, most);
    match left_out {
        0 => escape(shown, |_| false),
        _ => {
            let mut line = escape(shown, |_| false).into_owned();
            let _ = write!(line, " … ({left_out} more bytes)");
            Cow::Owned(line)
        }
    }
}

/// The same with the bound that suits a line, [`SHOWN`].
pub fn one_line(text: &str) -> Cow<'_, str> {
    one_line_of(text, SHOWN)
}

/// Whole, with its line ends and tabs; all else is escaped.
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

/// A literal of SQL, for a statement that is printed to be run.
pub fn sql_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A quoted identifier of SQL, for the same.
pub fn sql_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// JSON as `serde_json` writes it: what JSON allows bare and a terminal does not is written as `\u....`.
pub fn json(text: &str) -> Cow<'_, str> {
    let acts = |c: char| acts(c) && !matches!(c, '\n' | '\t' | '\r'); // between the values, where it is laid out
    if !text.chars().any(acts) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) {
            let _ = write!(escaped, "\\u{:04x}", u32::from(c)); // all of them are in the first plane
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped_and_all_else_stays() {
        assert_eq!(one_line("plain, Größe, 注文, 👩‍🚀"), "plain, Größe, 注文, 👩‍🚀");
        assert_eq!(one_line("a\x1b[2Jb\r\nc\x7f"), r"a\u{1b}[2Jb\r\nc\u{7f}");
        assert_eq!(one_line("\u{9b}31m\u{202e}x\u{2066}\u{2028}"), r"\u{9b}31m\u{202e}x\u{2066}\u{2028}");
        assert_eq!(lines("a\n\tb\x1b"), "a\n\tb\\u{1b}");
        for code in 0..=0x10_ffff_u32 {
            let Some(c) = char::from_u32(code) else { continue };
            let text = one_line(c.encode_utf8(&mut [0; 4])).into_owned();
            assert!(!text.chars().any(char::is_control), "{code:x}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_how_much_is_left_out() {
        assert_eq!(one_line_of("abcdef", 6), "abcdef");
        assert_eq!(one_line_of("abcdef", 4), "abcd … (2 more bytes)");
        assert_eq!(one_line_of("aöb", 2), "a … (3 more bytes)");
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({"a": "\u{9b}\u{202e}\u{7f}\x1b\n ö"});
        let text = value.to_string();
        let shown = json(&text);
        assert!(!shown.contains(['\u{9b}', '\u{202e}', '\u{7f}', '\x1b']), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
