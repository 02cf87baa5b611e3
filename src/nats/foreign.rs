//! Texts that a NATS server wrote, made fit for errors and logs where they enter. Pure.
//!
//! In: any text. Out: one line of bounded length without control characters. What always holds: no server can move the cursor
//! of a terminal, begin a line of its own in a log, reverse the reading direction, or fill a disk by one message.

use std::fmt::Write;

/// More than any server says of its own accord.
const TEXT_BYTES_MAX: usize = 1024;

/// The text with control characters and marks of direction escaped as in Rust, cut at about 1 KiB.
pub fn foreign(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(TEXT_BYTES_MAX));
    for c in text.chars() {
        if out.len() >= TEXT_BYTES_MAX {
            out.push('…');
            break;
        }
        let is_mark =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || is_mark {
            // Writing into a String cannot fail.
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_what_is_long_is_cut() {
        assert_eq!(foreign("Authorization Violation"), "Authorization Violation");
        assert_eq!(foreign("a\r\n\u{1b}[2J\u{202e}\u{9b}ü"), r"a\r\n\u{1b}[2J\u{202e}\u{9b}ü");
        let long = foreign(&"ü".repeat(100_000));
        assert!(long.len() <= TEXT_BYTES_MAX + 10 && long.ends_with('…'), "{}", long.len());
    }
}
