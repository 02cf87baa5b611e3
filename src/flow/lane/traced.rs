//! Acknowledged events that belong to a trace, from which spans are made (feature `otlp`).
//!
//! In: a message that was acknowledged. Out: what its span says, where its headers have a `traceparent`. Always holds: at most
//! [`MOST`] of them wait to be taken.

use super::{Lane, Slot, Timestamps, text};
use crate::{
    flow::{event_id::EventPosition, send_buffer::SendBuffer},
    route::trace::{TRACEPARENT, is_traceparent},
};

/// So many wait; more are left out.
const MOST: usize = 1024;

/// An acknowledged event of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// As the message has it.
    pub traceparent: String,
    /// Which event it is.
    pub position: EventPosition,
    /// Its subject.
    pub subject: String,
    /// When it was acknowledged, in µs since 2000-01-01.
    pub acked: i64,
}

/// Notes it, if it belongs to a trace.
pub(super) fn note(traced: &mut Vec<Traced>, send_buffer: &SendBuffer, slot: &Slot, now: Timestamps) {
    let message = send_buffer.message(slot.place, slot.length);
    let headers = &message[slot.layout.header_at..slot.layout.body_at];
    // Of both spellings the same: most messages have none.
    if traced.len() >= MOST || memchr::memmem::find(headers, &TRACEPARENT.as_bytes()[1..]).is_none() {
        return;
    }
    let value = headers.split(|&byte| byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(TRACEPARENT.len())?;
        let value = value.strip_prefix(b":")?.trim_ascii();
        (name.eq_ignore_ascii_case(TRACEPARENT.as_bytes()) && is_traceparent(value)).then_some(value)
    });
    if let Some(value) = value {
        traced.push(Traced {
            traceparent: text(value),
            position: slot.position,
            subject: text(&message[slot.layout.subject.clone()]),
            acked: now.wall,
        });
    }
}

impl Lane {
    /// Those that were acknowledged since this was asked last.
    pub fn take_traced(&mut self) -> Vec<Traced> {
        std::mem::take(&mut self.traced)
    }
}
