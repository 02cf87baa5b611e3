//! The bytes of a lane's messages, in order: written once by the encoder, sent from where they are, kept until they
//! are acknowledged so that they can be sent again.
//!
//! Memory is a list of segments. A message never lies across two of them, so a segment's end is always a message's
//! end. Segments are recycled, so the steady state allocates nothing.

use std::collections::VecDeque;

/// A segment takes no further message once it holds this many bytes.
const SEGMENT_BYTES: usize = 128 * 1024;
/// How many empty segments are kept for reuse, …
const SPARE_SEGMENTS: usize = 4;
/// … and while others are in use: a full window that is settled is filled again at once, and memory that came back from the system
/// has to be cleared page by page.
const SPARE_SEGMENTS_IN_USE: usize = 24;

/// A place in the send buffer; places rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    segment: u64,
    offset: usize,
}

/// The bytes of messages that are not settled yet.
#[derive(Debug, Default)]
pub struct SendBuffer {
    segments: VecDeque<Vec<u8>>,
    /// The number of `segments[0]`.
    first: u64,
    spare: Vec<Vec<u8>>,
    /// Up to where bytes have been handed to the socket.
    sent: Place,
}

impl SendBuffer {
    /// Where the next message will begin. Opens a segment for it where the last one is full.
    pub fn begin(&mut self) -> Place {
        if self.segments.back().is_none_or(|last| last.len() >= SEGMENT_BYTES) {
            let segment = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(SEGMENT_BYTES + SEGMENT_BYTES / 4));
            self.segments.push_back(segment);
        }
        self.end()
    }

    /// The buffer to append a message to, after [`SendBuffer::begin`].
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.segments.back_mut().expect("begin opened a segment")
    }

    /// The bytes of a message, `length` of them from `place`.
    pub fn message(&self, place: Place, length: usize) -> &[u8] {
        &self.segments[self.index(place.segment)][place.offset..place.offset + length]
    }

    /// What of a message lies behind `from`, a place within it.
    pub fn message_after(&self, place: Place, length: usize, from: Place) -> &[u8] {
        assert_eq!(place.segment, from.segment, "a message lies in one segment");
        &self.message(place, length)[from.offset - place.offset..]
    }

    /// The bytes of a message, to be patched.
    pub fn message_mut(&mut self, place: Place, length: usize) -> &mut [u8] {
        let index = self.index(place.segment);
        &mut self.segments[index][place.offset..place.offset + length]
    }

    /// How many bytes were appended since [`SendBuffer::begin`] returned `place`.
    pub fn length_since(&self, place: Place) -> usize {
        let end = self.end();
        assert_eq!(place.segment, end.segment, "a message lies in one segment");
        end.offset - place.offset
    }

    /// Takes back what was appended since `place`.
    pub fn truncate(&mut self, place: Place) {
        assert_eq!(place.segment, self.end().segment, "only the message being written is taken back");
        self.buffer().truncate(place.offset);
    }

    /// The same, and gives it. A large one leaves nothing behind.
    pub fn take_back(&mut self, place: Place) -> Vec<u8> {
        assert_eq!(place.segment, self.end().segment, "only the message being written is taken back");
        let buffer = self.buffer();
        if place.offset == 0 {
            return std::mem::replace(buffer, Vec::with_capacity(SEGMENT_BYTES + SEGMENT_BYTES / 4));
        }
        // What lies before it is copied, for it may be large itself.
        let mut before = Vec::with_capacity(SEGMENT_BYTES + SEGMENT_BYTES / 4);
        before.extend_from_slice(&buffer[..place.offset]);
        let mut message = std::mem::replace(buffer, before);
        message.drain(..place.offset);
        message
    }

    /// Takes back all messages from `place` on. None of them was sent.
    pub fn cut(&mut self, place: Place) {
        assert!(self.sent <= place, "what was sent stays");
        while self.first + self.segments.len() as u64 > place.segment + 1 {
            let segment = self.segments.pop_back().expect("just counted");
            self.recycle(segment);
        }
        if let Some(last) = self.segments.back_mut() {
            last.truncate(place.offset);
        }
    }

    /// The end of the last message.
    pub fn end(&self) -> Place {
        match self.segments.back() {
            Some(last) => Place { segment: self.first + self.segments.len() as u64 - 1, offset: last.len() },
            None => Place { segment: self.first, offset: 0 },
        }
    }

    /// The next bytes for the socket, none from `limit` on; empty when all is sent.
    pub fn unsent(&mut self, limit: Option<Place>) -> &[u8] {
        loop {
            let end = self.end();
            if self.sent.segment < end.segment && self.sent.offset == self.segments[self.index(self.sent.segment)].len()
            {
                self.sent = Place { segment: self.sent.segment + 1, offset: 0 };
                continue;
            }
            if self.segments.is_empty() {
                return &[];
            }
            let segment = &self.segments[self.index(self.sent.segment)];
            let until = match limit {
                Some(limit) if limit.segment < self.sent.segment => self.sent.offset,
                Some(limit) if limit.segment == self.sent.segment => limit.offset.max(self.sent.offset),
                _ => segment.len(),
            };
            return &segment[self.sent.offset..until];
        }
    }

    /// The socket took the first `count` of the unsent bytes.
    pub fn mark_sent(&mut self, count: usize) {
        self.sent.offset += count;
        assert!(
            self.sent.offset <= self.segments[self.index(self.sent.segment)].len(),
            "no more bytes are sent than there are"
        );
    }

    /// Up to where bytes have been handed to the socket.
    pub fn sent(&self) -> Place {
        self.sent
    }

    /// Whether the bytes sent so far end where a segment ends, and so where a message ends.
    pub fn sent_whole_segment(&self) -> bool {
        self.segments.is_empty() || self.sent.offset == self.segments[self.index(self.sent.segment)].len()
    }

    /// Goes back: everything from `place` on is to be sent again.
    pub fn rewind(&mut self, place: Place) {
        self.sent = place;
    }

    /// Forgets all that lies before `place`.
    pub fn release(&mut self, place: Place) {
        while self.first < place.segment {
            let segment = self.segments.pop_front().expect("a place lies in a segment or at its end");
            self.first += 1;
            self.recycle(segment);
        }
        if self.sent < place {
            self.sent = place;
        }
        // All settled: the one open segment can start afresh, so a quiet lane holds next to nothing.
        if self.segments.len() == 1 && place == self.end() && place.offset > 0 {
            let segment = self.segments.pop_front().expect("just counted");
            self.first += 1;
            self.recycle(segment);
            self.spare.truncate(SPARE_SEGMENTS);
            self.sent = Place { segment: self.first, offset: 0 };
        }
    }

    fn recycle(&mut self, mut segment: Vec<u8>) {
        // A segment that one huge message blew up is given back to the allocator.
        if self.spare.len() < SPARE_SEGMENTS_IN_USE && segment.capacity() <= 2 * SEGMENT_BYTES {
            segment.clear();
            self.spare.push(segment);
        }
    }

    fn index(&self, segment: u64) -> usize {
        usize::try_from(segment - self.first).expect("segments are counted in memory")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn push(send_buffer: &mut SendBuffer, byte: u8, length: usize) -> Place {
        let place = send_buffer.begin();
        let filled = send_buffer.buffer().len() + length;
        send_buffer.buffer().resize(filled, byte);
        place
    }

    fn drain(send_buffer: &mut SendBuffer, limit: Option<Place>) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let count = send_buffer.unsent(limit).len();
            if count == 0 {
                return all;
            }
            all.extend_from_slice(send_buffer.unsent(limit));
            send_buffer.mark_sent(count);
        }
    }

    #[test]
    fn bytes_are_sent_in_order_and_again_after_a_rewind() {
        let mut send_buffer = SendBuffer::default();
        let places: Vec<_> = (0..10u8).map(|byte| push(&mut send_buffer, byte, 50_000)).collect();
        let all = drain(&mut send_buffer, None);
        assert_eq!(all.len(), 500_000);
        assert!(all.is_sorted());
        send_buffer.rewind(places[7]);
        assert_eq!(drain(&mut send_buffer, None), all[350_000..]);
        assert!(drain(&mut send_buffer, None).is_empty());
    }

    #[test]
    fn a_limit_holds_back_what_lies_behind_it() {
        let mut send_buffer = SendBuffer::default();
        let places: Vec<_> = (0..6u8).map(|byte| push(&mut send_buffer, byte, 60_000)).collect();
        assert_eq!(drain(&mut send_buffer, Some(places[4])).len(), 240_000);
        assert_eq!(drain(&mut send_buffer, Some(places[4])).len(), 0);
        assert_eq!(drain(&mut send_buffer, None).len(), 120_000);
    }

    #[test]
    fn settled_messages_give_their_memory_back() {
        let mut send_buffer = SendBuffer::default();
        for round in 0..1000u32 {
            push(&mut send_buffer, 1, 70_000);
            let _ = round;
            drain(&mut send_buffer, None);
            send_buffer.release(send_buffer.end());
            assert!(send_buffer.segments.len() <= 1 && send_buffer.spare.len() <= SPARE_SEGMENTS);
        }
        push(&mut send_buffer, 2, 10_000_000);
        drain(&mut send_buffer, None);
        send_buffer.release(send_buffer.end());
        let held: usize = send_buffer.spare.iter().chain(&send_buffer.segments).map(Vec::capacity).sum();
        assert!(held < 2_000_000, "{held} bytes are held for nothing");
        push(&mut send_buffer, 3, 5);
        assert_eq!(drain(&mut send_buffer, None), [3; 5]);
    }

    #[test]
    fn a_message_taken_back_leaves_no_trace() {
        let mut send_buffer = SendBuffer::default();
        push(&mut send_buffer, 1, 10);
        let place = push(&mut send_buffer, 2, 10);
        send_buffer.truncate(place);
        assert_eq!(drain(&mut send_buffer, None), [1; 10]);
    }
}
