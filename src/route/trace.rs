//! Trace context (W3C): `traceparent` and `tracestate`, passed on from rows and calls into the headers of messages.
//!
//! In: a value from a row's column or from the headers of a call. Out: whether it may be passed on. Always holds: nothing but what
//! the grammar of <https://www.w3.org/TR/trace-context/> allows reaches a header, and what is dropped never fails an event.

use serde_json::{Map, Value};

use super::plan::Target;
use crate::wal::{
    change::{Change, Op},
    pgoutput::{Column, OldTuple},
};

/// Names the trace and the span that an event belongs to.
pub const TRACEPARENT: &str = "traceparent";
/// What tracing systems add to it; meaningless without one.
pub const TRACESTATE: &str = "tracestate";
/// Longest value that is taken; version 00 has 55 bytes, later ones may have more.
const LENGTH_MAX: usize = 256;

/// Whether this is a `traceparent`: version, trace id, parent id and flags, with ids that are not all zero. Later versions may
/// have more behind a dash.
pub fn is_traceparent(value: &[u8]) -> bool {
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &[u8]| part.iter().all(|&byte| byte == b'0');
    let Some((head, rest)) = value.split_at_checked(55) else { return false };
    let (version, trace, parent, flags) = (&head[..2], &head[3..35], &head[36..52], &head[53..]);
    let has_dashes = [2, 35, 52].iter().all(|&at| head[at] == b'-');
    let has_end = match (version, rest) {
        (_, []) => true,
        (b"00", _) => false,
        (_, [b'-', more @ ..]) => value.len() <= LENGTH_MAX && more.iter().all(u8::is_ascii_graphic),
        (_, _) => false,
    };
    has_dashes
        && has_end
        && version != b"ff"
        && [version, trace, parent, flags].into_iter().all(is_hex)
        && !is_zero(trace)
        && !is_zero(parent)
}

/// The value that a row has in the column that its link names, if it has one: `Err` where it is no `traceparent`. The row after the
/// change; of a deleted one what its replica identity shows. The rows of a backfill were written in other traces long ago.
#[inline]
pub fn of_row<'a>(target: &Target, change: &Change<'a>) -> Option<Result<&'a [u8], &'a [u8]>> {
    of_column(target.trace?, change)
}

fn of_column<'a>(index: usize, change: &Change<'a>) -> Option<Result<&'a [u8], &'a [u8]>> {
    if matches!(change.op, Op::Snapshot | Op::Truncate) {
        return None;
    }
    let tuple = change.new.or(match change.old {
        Some(OldTuple::Full(old) | OldTuple::Key(old)) => Some(old),
        None => None,
    })?;
    match tuple.iter().nth(index)? {
        Column::Text(b"") => None,
        Column::Text(text) if is_traceparent(text) => Some(Ok(text)),
        Column::Text(text) => Some(Err(text)),
        Column::Null | Column::Unchanged | Column::Binary(_) => None,
    }
}

/// Takes a `traceparent` that is none out of a call's own headers, with the `tracestate` that means nothing without it. Returns
/// what was taken out.
pub fn clean(headers: &mut Map<String, Value>) -> Option<String> {
    let is_named = |name: &str, wanted: &str| name.eq_ignore_ascii_case(wanted);
    let is_wrong = |value: &Value| !value.as_str().is_some_and(|text| is_traceparent(text.as_bytes()));
    let found = headers.iter().find(|(name, value)| is_named(name, TRACEPARENT) && is_wrong(value));
    let dropped = found.map(|(_, value)| value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
    headers.retain(|name, _| !is_named(name, TRACEPARENT) && !is_named(name, TRACESTATE));
    Some(dropped)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_what_the_grammar_of_w3c_says() {
        for good in [
            GOOD,
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what.the-future-brings",
        ] {
            assert!(is_traceparent(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0\u{e4}",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-a\r\nX: forged",
        ] {
            assert!(!is_traceparent(bad.as_bytes()), "{bad}");
        }
        assert!(!is_traceparent(format!("cc{}-{}", &GOOD[2..], "x".repeat(LENGTH_MAX)).as_bytes()));
    }

    #[test]
    fn an_invalid_one_goes_with_its_state_and_nothing_else() {
        let object = |text: String| serde_json::from_str::<Map<_, _>>(&text).unwrap();
        let mut headers = object(format!(r#"{{"Traceparent": "{GOOD}", "tracestate": "a=b", "X": "1"}}"#));
        assert_eq!((clean(&mut headers), headers.len()), (None, 3));
        let mut headers = object(r#"{"TraceParent": "forged", "TraceState": "a=b", "X": "1"}"#.to_owned());
        assert_eq!(clean(&mut headers).as_deref(), Some("forged"));
        assert_eq!(headers, object(r#"{"X": "1"}"#.to_owned()));
        let mut headers = object(r#"{"traceparent": 7}"#.to_owned());
        assert_eq!((clean(&mut headers).as_deref(), headers.len()), (Some("7"), 0));
    }
}
