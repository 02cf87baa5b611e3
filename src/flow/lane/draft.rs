//! How a message is written and gets its place in line.
//!
//! Comes in: an event's head, its headers and its payload, appended to the send buffer. Goes out: a message in line; or the event as
//! one that can never be published, with the line as before. Always holds: a draft that is not committed leaves nothing behind.

use std::ops::Range;

use super::{
    Batches, CRLF, Lane, Mode, Ordering, Rejected, Slot, State,
    message::{self, Front, Head, Layout},
};
use crate::{
    error::Result,
    flow::{
        event_id::EventPosition,
        history::{Note, Outcome},
        send_buffer::Place,
    },
    route::rules::Keep,
};

/// A message that is being written: the head is there, the payload is to be appended to [`Lane::buffer`].
#[derive(Debug)]
pub struct Draft {
    pub(super) place: Place,
    /// Where it begins in the buffer.
    start: usize,
    pub(super) layout: Layout,
    pub(super) note: (Place, usize),
    pub(super) keep: Keep,
    pub(super) may_be_claimed: bool,
    pub(super) halts: bool,
    /// Its message id is its caller's, and whether that was seen before.
    own_id: Option<bool>,
}

impl Draft {
    /// If it is too large, its payload may go into the object store.
    pub fn allow_claim(&mut self) {
        self.may_be_claimed = true;
    }

    /// If its event can never be published, walhook stops.
    pub fn halt_on_error(&mut self) {
        self.halts = true;
    }
}

impl Lane {
    /// Begins a message; `more` appends headers of its own, a line break before each.
    pub fn draft(&mut self, head: Head<'_>, more: impl FnOnce(&mut Vec<u8>)) -> Draft {
        let place = self.send_buffer.begin();
        let index = self.base + self.slots.len() as u64;
        let expected = self.expected(index);
        let own_id = head.message_id.map(|id| self.repeats.remember(id));
        let (attempt, Mode { ordering, batches }) = (self.attempt, self.modes.next);
        let out = self.send_buffer.buffer();
        let start = out.len();
        let stream = (ordering != Ordering::Core).then_some(self.stream.as_str());
        let front = Front {
            reply: (ordering != Ordering::Core).then_some((&self.reply_prefix, attempt, index)),
            expected: (ordering == Ordering::Strict).then_some(expected),
            ..Front::default()
        };
        let layout = message::begin(&head, stream, &front, batches != Batches::None, &mut self.template, more, out);
        let note = (self.notes.end(), 0);
        Draft { place, start, layout, note, keep: Keep::Nothing, may_be_claimed: false, halts: false, own_id }
    }

    /// Says where in [`Lane::buffer`] the draft's data is, and what the history is to keep of the event.
    pub fn note(&mut self, draft: &mut Draft, data: Range<usize>, keep: Keep, note: &Note<'_>) {
        draft.layout.data = (data.start - draft.start, data.end - draft.start);
        if keep == Keep::Nothing || !self.history.takes_notes() {
            return;
        }
        let place = self.notes.begin();
        note.write(Some(&self.stream), self.notes.buffer());
        draft.note = (place, self.notes.length_since(place));
        draft.keep = keep;
    }

    /// The draft's event turns out to be in the stream already: its row goes into the history, nothing is sent.
    pub fn skip(&mut self, draft: Draft, number: u64, position: EventPosition) {
        let Draft { place, layout, note, keep, .. } = draft;
        if let Keep::Everything(payload) = keep {
            let message = self.send_buffer.message(place, self.send_buffer.length_since(place));
            let data = &message[layout.data.0..layout.data.1];
            let outcome = Outcome::Stored { at: None, sequence: None, latency: None };
            self.history.push(number, &position, self.notes.message(note.0, note.1), data, payload, outcome);
        }
        self.send_buffer.truncate(place);
        if note.1 > 0 {
            self.notes.truncate(note.0);
        }
    }

    /// Where the payload of the draft is to be appended.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.send_buffer.buffer()
    }

    /// Completes a message and puts it in line as event `number`.
    ///
    /// # Errors
    /// What of it can never be published, where it is larger than the server takes; the line is as before.
    pub fn commit(&mut self, draft: Draft, number: u64, position: EventPosition) -> Result<(), Box<Rejected>> {
        let length = self.send_buffer.length_since(draft.place);
        let too_large = self.too_large(&draft.layout, length);
        let asks_again = too_large.is_some();
        if let Some(reason) = too_large
            && !self.may_have_grown(&draft, length)
        {
            return self.set_aside(draft, number, position, reason);
        }
        let Draft { place, layout, note, keep, may_be_claimed, halts, own_id, .. } = draft;
        self.send_buffer.buffer().extend_from_slice(CRLF);
        let length = length + CRLF.len();
        layout.finish(self.send_buffer.message_mut(place, length));
        self.bytes += length;
        self.joins(&position, length);
        let (state, sent_at, part) = (State::Waiting, 0, (1, 1));
        self.slots.push_back(Slot {
            number,
            position,
            place,
            length,
            layout,
            state,
            sent_at,
            part,
            is_duplicate: false,
            is_single: false,
            // A batch with a duplicate is refused whole: its transaction shares none with others.
            is_ungrouped: own_id == Some(true),
            note,
            keep,
            may_be_claimed,
            halts,
            mode: self.modes.next,
            has_own_id: own_id.is_some(),
        });
        self.modes.are_mixed |= self.modes.next != self.modes.now;
        self.end_mode();
        if asks_again {
            self.close();
        }
        if let Some(is_repeated) = own_id {
            self.repeats.joins(number, is_repeated);
        }
        Ok(())
    }
}
