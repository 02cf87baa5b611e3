//! A column's value becomes JSON.
//!
//! In: a value in PostgreSQL's text format, as pgoutput sends it under the session settings `datestyle = ISO`,
//! `intervalstyle = iso_8601`, `timezone = UTC`, `extra_float_digits = 3`, `bytea_output = hex`, and the [`Class`] of its
//! type. Out: exactly one valid JSON value at the end of the caller's buffer. The bytes come from outside: what does
//! not look like its class becomes a string of its text, so that nothing in a value can break the document around it. (A `jsonb` by
//! itself always looks like its class: no writer can make its text, for the server prints it.)
//! No tree of values is built; memory is only taken for array elements with backslashes in them. This module knows
//! neither NULL nor unchanged TOAST values: those have no text, and the caller writes them.
//!
//! Which type becomes what: the table in [`types`](super::types).

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{
    json::{find_special, is_json, is_number},
    types::{Class, Scalar},
};

/// Appends `text`, a value of a type of this class, as one JSON value.
pub fn write_json(class: Class, text: &[u8], out: &mut Vec<u8>) {
    match class {
        Class::Scalar(scalar) => write_scalar(scalar, text, out),
        Class::Array { element, delimiter, levels } => {
            or_string(text, out, |out| write_array(element, delimiter, levels, text, out));
        }
    }
}

/// Appends `text` as a JSON string, or as `{"$base64": …}` where it is not UTF-8: text of a database whose encoding is
/// `SQL_ASCII` is whatever its writers thought it was. (Such a database must be read with `client_encoding = SQL_ASCII`:
/// asked for UTF-8, the server ends the stream at the first such value, and again at every attempt.)
pub fn write_json_string(text: &[u8], out: &mut Vec<u8>) {
    if is_utf8(text) {
        write_escaped(text, out);
    } else {
        out.extend_from_slice(b"{\"$base64\":\"");
        write_base64(text, out);
        out.extend_from_slice(b"\"}");
    }
}

/// Appends `text` as a JSON string.
pub fn write_json_str(text: &str, out: &mut Vec<u8>) {
    write_escaped(text.as_bytes(), out);
}

/// Mostly it is ASCII, which is seen many bytes at a time.
fn is_utf8(text: &[u8]) -> bool {
    let (words, rest) = text.as_chunks::<8>();
    let seen = words.iter().fold(0, |seen, word| seen | u64::from_ne_bytes(*word));
    let seen = rest.iter().fold(seen, |seen, &byte| seen | u64::from(byte));
    seen & 0x8080_8080_8080_8080 == 0 || std::str::from_utf8(text).is_ok()
}

fn write_escaped(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = find_special(rest) {
        out.extend_from_slice(&rest[..at]);
        write_escape(rest[at], out);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn write_scalar(scalar: Scalar, text: &[u8], out: &mut Vec<u8>) {
    match scalar {
        Scalar::Bool if text == b"t" => out.extend_from_slice(b"true"),
        Scalar::Bool if text == b"f" => out.extend_from_slice(b"false"),
        Scalar::Integer if is_integer(text) => out.extend_from_slice(text),
        Scalar::Number if is_number(text) => out.extend_from_slice(text),
        Scalar::Json if is_json(text) => out.extend_from_slice(text),
        // PostgreSQL keeps a tree and prints it: brackets, quotes and escapes are the server's own. Reading it again would cost as much
        // as all else that is done for an event. Only its strings' bytes are the writer's, in a database without an encoding.
        Scalar::Jsonb if is_utf8(text) && !text.is_empty() => out.extend_from_slice(text),
        Scalar::Bytea => or_string(text, out, |out| write_bytea(text, out)),
        Scalar::Date => or_string(text, out, |out| write_date(text, out)),
        Scalar::Timestamp => or_string(text, out, |out| write_timestamp(text, out)),
        Scalar::TimeTz => or_string(text, out, |out| write_timetz(text, out)),
        Scalar::Vector => or_string(text, out, |out| write_vector(text, out)),
        Scalar::Bool | Scalar::Integer | Scalar::Number | Scalar::Json | Scalar::Jsonb | Scalar::Text => {
            write_json_string(text, out);
        }
    }
}

/// Runs `write`; where it finds that the text is not what it was said to be, the text is written as a string instead.
fn or_string(text: &[u8], out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Option<()>) {
    let start = out.len();
    if write(out).is_none() {
        out.truncate(start);
        write_json_string(text, out);
    }
}

// Strings

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        0x08 => out.extend_from_slice(b"\\b"),
        0x0C => out.extend_from_slice(b"\\f"),
        _ => {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 0xF)]);
        }
    }
}

// Numbers

fn is_integer(text: &[u8]) -> bool {
    match text.strip_prefix(b"-").unwrap_or(text) {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// `1 2 3` as `[1,2,3]`.
fn write_vector(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.push(b'[');
    if !text.is_empty() {
        for (index, number) in text.split(|&byte| byte == b' ').enumerate() {
            if !is_integer(number) {
                return None;
            }
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(number);
        }
    }
    out.push(b']');
    Some(())
}

// Bytes

/// Appends `bytes` as one JSON value: as they are where they are one, as a string otherwise.
pub fn write_as_json(bytes: &[u8], out: &mut Vec<u8>) {
    if is_json(bytes) { out.extend_from_slice(bytes) } else { write_json_string(bytes, out) }
}

/// Appends the bytes of a `bytea` as they are; what is not one in hexadecimal stays text.
pub fn write_bytes(text: &[u8], out: &mut Vec<u8>) {
    let begin = out.len();
    if let Some((pairs, [])) = text.strip_prefix(b"\\x").map(<[u8]>::as_chunks::<2>) {
        for [high, low] in pairs {
            let (high, low) = (HEX_DIGITS[usize::from(*high)], HEX_DIGITS[usize::from(*low)]);
            if high | low == NOT_HEX {
                out.truncate(begin);
                return out.extend_from_slice(text);
            }
            out.push(high << 4 | low);
        }
    } else {
        out.extend_from_slice(text);
    }
}

/// `\x` and hexadecimal digits as a string of base64.
fn write_bytea(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (pairs, []) = text.strip_prefix(b"\\x")?.as_chunks::<2>() else { return None };
    out.push(b'"');
    // A multiple of three bytes, so that padding stands at the end only.
    let mut bytes = [0; 48];
    for chunk in pairs.chunks(bytes.len()) {
        let mut seen = 0;
        for (byte, [high, low]) in bytes.iter_mut().zip(chunk) {
            let (high, low) = (HEX_DIGITS[usize::from(*high)], HEX_DIGITS[usize::from(*low)]);
            *byte = high << 4 | low;
            seen |= high | low;
        }
        if seen == NOT_HEX {
            return None;
        }
        write_base64(&bytes[..chunk.len()], out);
    }
    out.push(b'"');
    Some(())
}

const NOT_HEX: u8 = 0xFF;

/// What each byte is worth as a hexadecimal digit.
const HEX_DIGITS: [u8; 256] = {
    let mut worth = [NOT_HEX; 256];
    let mut digit = 0;
    while digit < 16 {
        worth[b"0123456789abcdef"[digit as usize] as usize] = digit;
        worth[b"0123456789ABCDEF"[digit as usize] as usize] = digit;
        digit += 1;
    }
    worth
};

fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    BASE64_STANDARD.encode_slice(bytes, &mut out[start..]).expect("base64 takes four bytes for three begun");
}

// Dates and times

/// `2024-01-02`, `infinity`, `0044-03-15 BC`.
fn write_date(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.push(b'"');
    if !write_infinity(text, out) {
        let (text, era) = split_era(text);
        let rest = write_day(text, era, out)?;
        if !rest.is_empty() {
            return None;
        }
    }
    out.push(b'"');
    Some(())
}

/// `2024-01-02 03:04:05.123456+00 BC`, with or without fraction, offset and era.
fn write_timestamp(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.push(b'"');
    if !write_infinity(text, out) {
        let (text, era) = split_era(text);
        let rest = write_day(text, era, out)?.strip_prefix(b" ")?;
        out.push(b'T');
        let rest = write_time(rest, out)?;
        if !rest.is_empty() {
            write_offset(rest, out)?;
        }
    }
    out.push(b'"');
    Some(())
}

/// `03:04:05.123456+05:30`.
fn write_timetz(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.push(b'"');
    let rest = write_time(text, out)?;
    write_offset(rest, out)?;
    out.push(b'"');
    Some(())
}

/// Which way the years count.
#[derive(Clone, Copy)]
enum Era {
    Common,
    Before,
}

fn split_era(text: &[u8]) -> (&[u8], Era) {
    match text.strip_suffix(b" BC") {
        Some(text) => (text, Era::Before),
        None => (text, Era::Common),
    }
}

fn write_infinity(text: &[u8], out: &mut Vec<u8>) -> bool {
    let infinite = matches!(text, b"infinity" | b"-infinity");
    if infinite {
        out.extend_from_slice(text);
    }
    infinite
}

/// Writes year, month and day and returns what follows them.
///
/// ISO 8601 has a year 0, which is 1 BC, and asks for a sign where a year has not four digits or is before it.
fn write_day<'a>(text: &'a [u8], era: Era, out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (year, rest) = text.split_at(digits);
    let ([b'-', m1, m2, b'-', d1, d2], rest) = rest.split_first_chunk::<6>()? else { return None };
    if ![m1, m2, d1, d2].into_iter().all(u8::is_ascii_digit) {
        return None;
    }
    match era {
        Era::Common if digits == 4 => out.extend_from_slice(year),
        // 5,874,897 is the last year of a date.
        Era::Common if (5..10).contains(&digits) => {
            out.push(b'+');
            out.extend_from_slice(year);
        }
        Era::Before if (4..10).contains(&digits) => {
            let year: u32 = std::str::from_utf8(year).ok()?.parse().ok()?;
            let before_zero = year.checked_sub(1)?;
            if before_zero > 0 {
                out.push(b'-');
            }
            let mut number = itoa::Buffer::new();
            let number = number.format(before_zero);
            out.extend_from_slice(&b"0000"[number.len().min(4)..]);
            out.extend_from_slice(number.as_bytes());
        }
        Era::Common | Era::Before => return None,
    }
    out.extend_from_slice(&text[digits..digits + 6]);
    Some(rest)
}

/// Writes `hh:mm:ss` with its fraction and returns what follows.
fn write_time<'a>(text: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let ([h1, h2, b':', m1, m2, b':', s1, s2], rest) = text.split_first_chunk::<8>()? else { return None };
    if ![h1, h2, m1, m2, s1, s2].into_iter().all(u8::is_ascii_digit) {
        return None;
    }
    let fraction = match rest.strip_prefix(b".") {
        None => 0,
        Some(fraction) => match fraction.iter().take_while(|byte| byte.is_ascii_digit()).count() {
            0 => return None,
            digits => digits + 1,
        },
    };
    let (time, rest) = text.split_at(8 + fraction);
    out.extend_from_slice(time);
    Some(rest)
}

/// Writes `+05` as `+05:00`, and `+05:30` and `+05:30:15` as they are: ISO 8601 has no seconds there, but a `timetz`
/// may.
fn write_offset(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let [b'+' | b'-', h1, h2, rest @ ..] = text else { return None };
    if !h1.is_ascii_digit() || !h2.is_ascii_digit() {
        return None;
    }
    let two_digits = |text: &[u8]| matches!(text, [b':', d1, d2] if d1.is_ascii_digit() && d2.is_ascii_digit());
    if !rest.chunks(3).all(two_digits) || rest.len() > 6 {
        return None;
    }
    out.extend_from_slice(text);
    if rest.is_empty() {
        out.extend_from_slice(b":00");
    }
    Some(())
}

// Arrays

/// PostgreSQL allows no more dimensions (`MAXDIM`).
const DIMENSIONS_MAX: usize = 6;

/// An array literal as nested JSON arrays (manual, section 8.15.6).
fn write_array(element: Scalar, delimiter: u8, levels: u8, text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    // What is an element is found by the array's own quotes and backslashes.
    let element = if element == Scalar::Jsonb { Scalar::Json } else { element };
    let element = match levels {
        0 | 1 => Class::Scalar(element),
        _ => Class::Array { element, delimiter, levels: levels - 1 },
    };
    let mut rest = skip_bounds(text)?;
    let mut unescaped = Vec::new();
    let mut depth = 0;
    loop {
        match rest {
            [b'{', inner @ ..] => {
                depth += 1;
                if depth > DIMENSIONS_MAX {
                    return None;
                }
                out.push(b'[');
                rest = inner;
                if rest.first() != Some(&b'}') {
                    continue;
                }
            }
            _ if depth == 0 => return None,
            [b'"', quoted @ ..] => {
                let item;
                (item, rest) = unquote(quoted, &mut unescaped)?;
                write_json(element, item, out);
            }
            _ => {
                let end = rest.iter().position(|&byte| byte == delimiter || byte == b'}')?;
                let item;
                (item, rest) = rest.split_at(end);
                match item {
                    b"NULL" => out.extend_from_slice(b"null"),
                    // These would be quoted.
                    [] => return None,
                    _ if memchr::memchr3(b'{', b'"', b'\\', item).is_some() => return None,
                    _ => write_json(element, item, out),
                }
            }
        }
        // After an element: the ends of some arrays, then the next element or the end of all.
        while let [b'}', outer @ ..] = rest {
            rest = outer;
            out.push(b']');
            depth -= 1;
            if depth == 0 {
                return rest.is_empty().then_some(());
            }
        }
        let (&next, following) = rest.split_first()?;
        if next != delimiter {
            return None;
        }
        rest = following;
        out.push(b',');
    }
}

/// Without `[0:2][1:1]=` in front, which an array has whose lower bounds are not all 1.
fn skip_bounds(text: &[u8]) -> Option<&[u8]> {
    if text.first() != Some(&b'[') {
        return Some(text);
    }
    let (bounds, rest) = text.split_at(memchr::memchr(b'=', text)?);
    let is_bounds = bounds.iter().all(|byte| matches!(byte, b'[' | b']' | b':' | b'-' | b'0'..=b'9'));
    (is_bounds && bounds.ends_with(b"]")).then_some(&rest[1..])
}

/// The element that ends with the next quote, without its backslashes, and what follows.
fn unquote<'a, 'b>(text: &'b [u8], unescaped: &'a mut Vec<u8>) -> Option<(&'a [u8], &'b [u8])>
where
    'b: 'a,
{
    unescaped.clear();
    let mut rest = text;
    loop {
        let at = memchr::memchr2(b'"', b'\\', rest)?;
        if rest[at] == b'"' {
            let following = &rest[at + 1..];
            if unescaped.is_empty() {
                return Some((&rest[..at], following));
            }
            unescaped.extend_from_slice(&rest[..at]);
            return Some((unescaped, following));
        }
        unescaped.extend_from_slice(&rest[..at]);
        unescaped.push(*rest.get(at + 1)?);
        rest = &rest[at + 2..];
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;
    use serde_json::Value;

    use super::*;

    const SCALARS: [Scalar; 11] = [
        Scalar::Bool,
        Scalar::Integer,
        Scalar::Number,
        Scalar::Json,
        Scalar::Jsonb,
        Scalar::Bytea,
        Scalar::Date,
        Scalar::Timestamp,
        Scalar::TimeTz,
        Scalar::Vector,
        Scalar::Text,
    ];

    fn array(element: Scalar) -> Class {
        Class::Array { element, delimiter: b',', levels: 1 }
    }

    fn json(class: Class, text: &[u8]) -> String {
        let mut out = b"before".to_vec();
        write_json(class, text, &mut out);
        String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned()
    }

    #[track_caller]
    fn check(class: Class, text: &str, expected: &str) {
        assert_eq!(json(class, text.as_bytes()), expected, "{text:?}");
    }

    /// A foreign value is a string of its text.
    #[track_caller]
    fn check_foreign(class: Class, text: &str) {
        check(class, text, &serde_json::to_string(text).unwrap());
    }

    #[test]
    fn numbers_keep_every_digit() {
        let [integer, number] = [Scalar::Integer, Scalar::Number].map(Class::Scalar);
        for text in ["0", "-1", "9223372036854775807", "-9223372036854775808"] {
            check(integer, text, text);
            check(number, text, text);
        }
        for text in ["0.00", "-0", "1e+20", "1.5e-07", "123456789012345678901234567890.10", "0.1E5"] {
            check(number, text, text);
        }
        for text in
            ["", "-", "+1", "01", "-01", "1.", ".5", "1e", "1e+", "1.5.2", "NaN", "Infinity", "0x10", "1 ", "1,2"]
        {
            check_foreign(number, text);
            check_foreign(integer, text);
        }
        check_foreign(integer, "1.5");
    }

    #[test]
    fn years_count_as_iso_8601_counts_them() {
        let date = Class::Scalar(Scalar::Date);
        for (text, expected) in [
            ("2024-01-02", r#""2024-01-02""#),
            ("0001-01-01", r#""0001-01-01""#),
            ("0001-12-31 BC", r#""0000-12-31""#),
            ("0044-03-15 BC", r#""-0043-03-15""#),
            ("4714-11-24 BC", r#""-4713-11-24""#),
            ("9999-12-31", r#""9999-12-31""#),
            ("12345-01-01", r#""+12345-01-01""#),
            ("5874897-12-31", r#""+5874897-12-31""#),
            ("infinity", r#""infinity""#),
            ("-infinity", r#""-infinity""#),
        ] {
            check(date, text, expected);
        }
        for text in ["", "2024-01", "24-01-02", "0000-01-01 BC", "2024-01-02 ", "2024-1-2", " BC", "01/02/2024"] {
            check_foreign(date, text);
        }
        check_foreign(date, "99999999999999999999-01-01 BC");
    }

    #[test]
    fn a_time_gets_its_t_and_the_minutes_of_its_offset() {
        let timestamp = Class::Scalar(Scalar::Timestamp);
        for (text, expected) in [
            ("2024-01-02 03:04:05", r#""2024-01-02T03:04:05""#),
            ("2024-01-02 03:04:05.123456", r#""2024-01-02T03:04:05.123456""#),
            ("2024-01-02 03:04:05.1+00", r#""2024-01-02T03:04:05.1+00:00""#),
            ("2024-01-02 03:04:05+05:30", r#""2024-01-02T03:04:05+05:30""#),
            ("2024-01-02 03:04:05-00:01:15", r#""2024-01-02T03:04:05-00:01:15""#),
            ("0044-03-15 12:00:00+00 BC", r#""-0043-03-15T12:00:00+00:00""#),
            ("294276-12-31 23:59:59.999999", r#""+294276-12-31T23:59:59.999999""#),
            ("-infinity", r#""-infinity""#),
        ] {
            check(timestamp, text, expected);
        }
        for text in ["2024-01-02", "2024-01-02 03:04", "2024-01-02 03:04:05.", "2024-01-02 03:04:05 CET", "now"] {
            check_foreign(timestamp, text);
        }
        let timetz = Class::Scalar(Scalar::TimeTz);
        check(timetz, "24:00:00-07", r#""24:00:00-07:00""#);
        check(timetz, "03:04:05.5+05:30", r#""03:04:05.5+05:30""#);
        for text in ["03:04:05", "03:04:05+5", "03:04:05+05:3", "03:04:05+05:30:15:00", "infinity"] {
            check_foreign(timetz, text);
        }
    }

    #[test]
    fn bytes_become_base64_without_padding_in_the_middle() {
        let bytea = Class::Scalar(Scalar::Bytea);
        check(bytea, r"\x", r#""""#);
        check(bytea, r"\x00ff", r#""AP8=""#);
        for length in 0..200_u8 {
            let bytes: Vec<u8> = (0..length).collect();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            check(bytea, &format!("\\x{hex}"), &format!("\"{}\"", BASE64_STANDARD.encode(&bytes)));
        }
        for text in ["", "abc", r"\xabc", r"\xgg", r"\000\377", r"\x00 00"] {
            check_foreign(bytea, text);
        }
    }

    #[test]
    fn json_goes_through_untouched_and_what_is_not_json_becomes_a_string() {
        let class = Class::Scalar(Scalar::Json);
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        for text in [
            "null",
            " {\"a\" :\n[1, 2.50, 1e999999]}\t",
            r#""\ud800""#,
            r#""\u0000""#,
            "\"é\u{2028}\"",
            "{\"a\":1,\"a\":2}",
            &deep,
        ] {
            check(class, text, text);
        }
        for text in
            ["", " ", "{", "}", "{}}", "{},\"x\":{}", "nul", "01", "\"a\nb\"", "'a'", "\u{FEFF}{}", "[1,]", &deep[1..]]
        {
            check_foreign(class, text);
        }
        assert_eq!(json(class, b"\"\xFF\""), r#"{"$base64":"Iv8i"}"#);
    }

    #[test]
    fn jsonb_goes_through_as_the_server_printed_it_if_its_bytes_are_utf_8() {
        let class = Class::Scalar(Scalar::Jsonb);
        for text in ["null", "{}", r#"{"a": [1, 2.50, true, "\u00e9 é \" \\"], "b": {"c": null}}"#] {
            check(class, text, text);
        }
        check(class, "", "\"\"");
        assert_eq!(json(class, b"\"\xFF\""), r#"{"$base64":"Iv8i"}"#);
        // The elements of an array are found by the array's own quotes.
        check(array(Scalar::Jsonb), "{a,\"{}\"}", r#"["a",{}]"#);
    }

    #[test]
    fn arrays_nest_and_lose_their_lower_bounds() {
        for (text, expected) in [
            ("{}", "[]"),
            ("{1}", "[1]"),
            ("{1,NULL,3}", "[1,null,3]"),
            ("{{1,2},{3,4}}", "[[1,2],[3,4]]"),
            ("[0:2]={1,2,3}", "[1,2,3]"),
            ("[-1:0][5:6]={{1,2},{3,4}}", "[[1,2],[3,4]]"),
            ("{{{{{{1}}}}}}", "[[[[[[1]]]]]]"),
            (r#"{"7"}"#, "[7]"),
            ("{x}", r#"["x"]"#),
        ] {
            check(array(Scalar::Integer), text, expected);
        }
        check(
            array(Scalar::Text),
            r#"{a,"NULL",NULL,"","a b","q\"q","b\\b","\\","{}",",","ä"}"#,
            r#"["a","NULL",null,"","a b","q\"q","b\\b","\\","{}",",","ä"]"#,
        );
        check(array(Scalar::Json), r#"{"{\"a\": \"b\\\"c\"}",null,NULL}"#, r#"[{"a": "b\"c"},null,null]"#);
        check(
            Class::Array { element: Scalar::Text, delimiter: b';', levels: 1 },
            "{(1,1),(0,0);(2,2),(1,1)}",
            r#"["(1,1),(0,0)","(2,2),(1,1)"]"#,
        );
        check(
            Class::Array { element: Scalar::Text, delimiter: b',', levels: 2 },
            r#"{"{a,\"b c\"}",NULL,"{}"}"#,
            r#"[["a","b c"],null,[]]"#,
        );
        for text in [
            "",
            "1",
            "{",
            "}",
            "{1",
            "{1}}",
            "{1}x",
            "{,}",
            "{1,}",
            "{,1}",
            r#"{"a}"#,
            r#"{"a\"#,
            r#"{"a"b}"#,
            r#"{a"b"}"#,
            "[0:1={1}",
            "[x]={1}",
            "=",
            "[",
            "{{1}{2}}",
            r"{a\b}",
            "{{{{{{{1}}}}}}}",
        ] {
            check_foreign(array(Scalar::Text), text);
        }
    }

    #[test]
    fn vectors_are_arrays_of_numbers() {
        let vector = Class::Scalar(Scalar::Vector);
        check(vector, "", "[]");
        check(vector, "1 -2 3", "[1,-2,3]");
        check_foreign(vector, "1  2");
        check_foreign(vector, "{1,2}");
    }

    #[test]
    fn every_byte_a_string_may_hold_is_escaped_where_it_must_be() {
        // At every place within a word, and after it.
        for at in 0..20 {
            for byte in 0..=0x7F_u8 {
                let mut text = vec![b'.'; 20];
                text[at] = byte;
                let text = String::from_utf8(text).unwrap();
                check(Class::TEXT, &text, &serde_json::to_string(&text).unwrap());
            }
        }
        // A quote right after what the eight bytes at a time could take for one.
        for text in ["\u{1}\u{2}\"!#[]", "!\"#!\"#!\"", "\\]\\]\\]\\]\\", "\u{80}\"\u{ff}\u{1f}\u{20}\u{7f}"] {
            check(Class::TEXT, text, &serde_json::to_string(text).unwrap());
        }
        assert_eq!(json(Class::TEXT, b"caf\xE9"), r#"{"$base64":"Y2Fm6Q=="}"#);
    }

    /// Any bytes, and bytes that come close to what PostgreSQL writes.
    fn foreign_bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            r#"[{}\[\]",;:=\\ 0-9a-fxNULt.+-]{0,40}"#.prop_map(String::into_bytes),
            r#"\{("([a{},;\\]|\\["\\]){0,6}"|NULL|[a-z0-9]{1,3}|\{\}|\{1,"2"\}|,|;){0,8}\}"#
                .prop_map(String::into_bytes),
            r#"-?[0-9]{0,12}(\.[0-9]{0,4})?([eE][+-]?[0-9]{0,3})?"#.prop_map(String::into_bytes),
            r#"[0-9]{0,7}-[0-9]{1,2}-[0-9]{2}([ T][0-9:.]{8}(\.[0-9]{1,6})?([+-][0-9:]{2,8})?)?( BC)?"#
                .prop_map(String::into_bytes),
            r#"\\x[0-9a-fA-Fg]{0,110}"#.prop_map(String::into_bytes),
        ]
    }

    fn any_class() -> impl Strategy<Value = Class> {
        (0..SCALARS.len(), 0..4_u8, prop_oneof![Just(b','), Just(b';'), any::<u8>()]).prop_map(
            |(scalar, levels, delimiter)| match levels {
                // Nobody but the server makes the text of a jsonb.
                0 if SCALARS[scalar] == Scalar::Jsonb => Class::JSON,
                0 => Class::Scalar(SCALARS[scalar]),
                _ => Class::Array { element: SCALARS[scalar], delimiter, levels },
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn any_bytes_of_any_class_become_one_valid_json_value(class in any_class(), text in foreign_bytes()) {
            let json = json(class, &text);
            // Half surrogate pairs are JSON, but nothing that serde could build a tree of.
            prop_assert!(serde_json::from_str::<IgnoredAny>(&json).is_ok(), "{json}");
        }

        #[test]
        fn a_string_comes_back_as_it_went_in(text in ".{0,80}") {
            let json = json(Class::TEXT, text.as_bytes());
            prop_assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), Value::String(text));
        }

        #[test]
        fn json_comes_back_as_it_went_in_also_from_an_array(text in ".{0,20}", number in any::<f64>()) {
            let value = serde_json::json!({ "text": text, "list": [number, [], {}, null, true] }).to_string();
            let element = format!("{{\"{}\"}}", value.replace('\\', r"\\").replace('"', r#"\""#));
            for scalar in [Scalar::Json, Scalar::Jsonb] {
                prop_assert_eq!(json(Class::Scalar(scalar), value.as_bytes()), value.clone());
                prop_assert_eq!(json(array(scalar), element.as_bytes()), format!("[{value}]"));
            }
        }
    }
}
