//! What the history has of an event that leaves the line: its note, and what of its payload is kept.

use super::{Layout, Noted, Slot, Timestamps};
use crate::{
    flow::{
        history::{History, Outcome},
        send_buffer::{Place, SendBuffer},
    },
    route::rules::Keep,
};

/// Puts the row of a stored event into the history, where it has one.
pub(super) fn record(
    history: &mut History,
    notes: &SendBuffer,
    send_buffer: &SendBuffer,
    slot: &Slot,
    sequence: Option<u64>,
    now: Timestamps,
) {
    let Keep::Everything(payload) = slot.keep else { return };
    let data = &send_buffer.message(slot.place, slot.length)[slot.layout.data.0..slot.layout.data.1];
    let latency = Some(now.steady.saturating_sub(slot.sent_at));
    let outcome = Outcome::Stored { at: Some(now.wall), sequence, latency };
    history.push(slot.number, &slot.position, notes.message(slot.note.0, slot.note.1), data, payload, outcome);
}

/// What the history of an event that is given up begins with.
pub(super) fn noted(notes: &SendBuffer, note: (Place, usize), keep: Keep, layout: &Layout) -> Option<Noted> {
    let (Keep::Everything(keep) | Keep::Failures(keep)) = keep else { return None };
    let data = layout.data.0 - layout.body_at..layout.data.1 - layout.body_at;
    Some(Noted { note: notes.message(note.0, note.1).to_vec(), keep, data })
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
