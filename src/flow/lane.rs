//! A lane: the ordered path of events into one stream.
//!
//! Comes in: events with their positions, answers of the server. Goes out: bytes for the socket, in order. Holds
//! what is not settled, so that one remedy serves every failure: stop, read the stream's tail, drop what the tail
//! shows as stored, send the rest again. Knows neither socket nor clock.
//!
//! How a message is written is in `draft` and [`message`], what goes to the socket in `sending`, what the server answered in
//! `answers`. What goes together into one atomic batch is in `batch`, core NATS in `core`, what is too large for a message in
//! [`claim_check`], what a tail says of the line in `open`, where the stream ends and what it has to keep in `retained`, what of a
//! tail has to be listed in `doubt`, a lane for which others do not wait in `absence`, what a caller's repeated message id costs in
//! `repeats`, which schemas they name in `schemas`, how long messages took in `times`, which message a connection is closed over in
//! `verdict`.

mod absence;
mod answers;
mod batch;
pub mod claim_check;
mod core;
mod doubt;
mod draft;
mod message;
mod mode;
mod open;
mod record;
mod repeats;
mod retained;
mod schemas;
mod sending;
mod times;
#[cfg(feature = "otlp")]
mod traced;
mod verdict;

use std::{collections::VecDeque, ops::Range};

use super::{
    delay::Retained,
    event_id::EventPosition,
    history::History,
    send_buffer::{Place, SendBuffer},
};
use crate::{
    error::Result,
    route::rules::{Keep, KeepPayload},
};

use absence::Absence;
use batch::Batching;
pub use batch::{BATCH_MAX, Batches};
use claim_check::{ClaimCheck, PayloadLimit};
use doubt::Doubts;
pub use doubt::{Doubt, Listing};
pub use draft::Draft;
pub use message::Head;
use message::{CRLF, Layout, Template};
use mode::Modes;
pub use mode::{Mode, Ordering};
use open::SlotOutcome;
use record::{noted, record, text};
use repeats::Repeats;
pub(in crate::flow) use retained::still_in_slot;
use retained::{StreamEnd, later};
use schemas::Schemas;
use sending::Sending;
use times::Tally;
pub use times::Times;
#[cfg(feature = "otlp")]
pub use traced::Traced;

/// What a stream's tail shows, and what it takes.
#[derive(Debug, Clone)]
pub struct Tail {
    /// The stream's last sequence.
    pub last_sequence: u64,
    /// The last event of ours that it has taken, and its sequence. One that a caller gave the id of an older event has that one's
    /// sequence, and one that was removed its former one.
    pub ours: Option<(EventPosition, u64)>,
    /// The last event of ours that is in it.
    pub in_stream: Retained,
    /// What [`Lane::listing`] asked for when the tail was read.
    pub listing: Option<Listing>,
    /// The events of ours that `listing` asks for, in any order.
    pub listed: Vec<EventPosition>,
    /// The subjects that the stream takes.
    pub subjects: Vec<String>,
    /// The server's `max_payload`, headers included, in bytes.
    pub max_payload: usize,
    /// How many messages it takes as one atomic batch; 1 where it takes none.
    pub batch_max: usize,
}

/// Why the server did not store a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Another last sequence than expected (10071): something before it is missing, or stored already.
    WrongSequence,
    /// It never will.
    Never(String),
    /// It never will, for its size.
    TooLarge(String),
    /// Not now.
    NotNow(String),
    /// A message id in the batch is known already (10201), which a batch does not bear: its messages are to go one by one.
    DuplicateInBatch,
}

/// An event that cannot be published, with all that a dead letter needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its number in the window.
    pub number: u64,
    /// Its position.
    pub position: EventPosition,
    /// Its subject.
    pub subject: String,
    /// Its message's headers, as a JSON object.
    pub headers: String,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Why.
    pub reason: String,
    /// What its history begins with, where it has one.
    pub noted: Option<Noted>,
    /// By the rules of its commit walhook stops instead of making a dead letter.
    pub halts: bool,
}

/// What a row of the history is made of, besides what became of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// A [`Note`], written.
    pub note: Vec<u8>,
    /// How the payload is kept.
    pub keep: KeepPayload,
    /// What of the payload is kept.
    pub data: Range<usize>,
}

/// See the module.
#[derive(Debug)]
pub struct Lane {
    stream: String,
    modes: Modes,
    /// Up to and with the last dot.
    reply_prefix: Vec<u8>,
    send_buffer: SendBuffer,
    slots: VecDeque<Slot>,
    /// Given up, and not taken from here yet.
    rejected: Vec<Rejected>,
    /// Events whose payloads are to be stored before they have a place in the line, in their order.
    claim_checks: VecDeque<ClaimCheck>,
    /// The index of `slots[0]`, counted since the lane began.
    base: u64,
    /// While open: the message with this index expects this last sequence.
    anchor: Option<Anchor>,
    stream_end: StreamEnd,
    attempt: u8,
    /// In shared ordering: events in the stream that have not come down the slot yet, in their order.
    known: VecDeque<EventPosition>,
    doubts: Doubts,
    /// The last event that came down the slot.
    last_seen: Option<EventPosition>,
    bytes: usize,
    payload_limit: PayloadLimit,
    absence: Absence,
    sending: Sending,
    /// In core NATS: a PING is under way behind all messages before this index.
    pinged: Option<u64>,
    tally: Tally,
    #[cfg(feature = "otlp")]
    traced: Vec<Traced>,
    /// The notes of the events in line, in their order.
    notes: SendBuffer,
    history: History,
    now: Timestamps,
    batching: Batching,
    repeats: Repeats,
    schemas: Schemas,
    template: Template,
}

/// A moment by two clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timestamps {
    /// The time of day, in µs since 2000-01-01.
    pub wall: i64,
    /// A clock that only goes forward, in µs.
    pub steady: u64,
}

#[derive(Debug, Clone, Copy)]
struct Anchor {
    index: u64,
    last_sequence: u64,
}

#[derive(Debug)]
struct Slot {
    number: u64,
    position: EventPosition,
    place: Place,
    length: usize,
    layout: Layout,
    state: State,
    /// When it was handed to the socket, by the steady clock.
    sent_at: u64,
    /// Its number in its batch, from 1, and how many that has; `(1, 1)` alone.
    part: (u16, u16),
    /// The stream had its id: what is at that sequence may be another event.
    is_duplicate: bool,
    /// It must not be in a batch.
    is_single: bool,
    /// Its transaction shares no batch with others.
    is_ungrouped: bool,
    /// Where its note is; none has no length.
    note: (Place, usize),
    keep: Keep,
    /// If it is too large, its payload may go into the object store.
    may_be_claimed: bool,
    /// See [`Rejected::halts`].
    halts: bool,
    mode: Mode,
    /// Its message id is its caller's.
    has_own_id: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// At this sequence of the stream; 0 where there is no stream.
    Stored(u64),
    /// Another last sequence than expected.
    OutOfOrder,
    /// For the time being.
    NotNow,
}

impl Lane {
    /// A closed lane into `stream`; replies come to `<inbox>.<token>`.
    pub fn new(stream: &str, ordering: Ordering, inbox: &str) -> Lane {
        let mode = Mode { ordering, batches: Batches::None };
        Lane {
            stream: stream.to_owned(),
            modes: Modes { now: mode, next: mode, are_mixed: false },
            reply_prefix: format!("{inbox}.").into_bytes(),
            send_buffer: SendBuffer::default(),
            slots: VecDeque::new(),
            rejected: Vec::new(),
            claim_checks: VecDeque::new(),
            base: 0,
            anchor: None,
            stream_end: StreamEnd::default(),
            attempt: 0,
            known: VecDeque::new(),
            doubts: Doubts::default(),
            last_seen: None,
            bytes: 0,
            payload_limit: PayloadLimit::default(),
            pinged: None,
            absence: Absence::default(),
            sending: Sending::default(),
            tally: Tally::default(),
            #[cfg(feature = "otlp")]
            traced: Vec::new(),
            notes: SendBuffer::default(),
            history: History::new(usize::MAX),
            now: Timestamps::default(),
            batching: Batching::default(),
            repeats: Repeats::default(),
            schemas: Schemas::default(),
            template: Template::default(),
        }
    }

    /// The same, with so much room for rows of the history, in bytes.
    #[must_use]
    pub(in crate::flow) fn with_history_room(mut self, bytes: usize) -> Lane {
        self.history = History::new(bytes);
        self
    }

    /// The stream's name.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// How the messages that may be sent now keep their order.
    pub fn ordering(&self) -> Ordering {
        self.modes.now.ordering
    }

    /// Whether messages may be sent.
    pub fn is_open(&self) -> bool {
        self.anchor.is_some()
    }

    /// Events in line.
    pub fn len(&self) -> usize {
        self.slots.len() + self.claim_checks.len()
    }

    /// Whether nothing is in line, nor given up and not taken from here yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.rejected.is_empty()
    }

    /// Whether nothing is to be done by its connection: what was left out comes again once it is open.
    pub(in crate::flow) fn is_at_rest(&self) -> bool {
        self.is_empty() && !self.leaves_out()
    }

    /// Whether all is settled, the history's rows too.
    pub fn is_settled(&self) -> bool {
        self.oldest().is_none()
    }

    /// Bytes in line.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The position of the oldest event in line.
    pub(in crate::flow) fn front_position(&self) -> Option<EventPosition> {
        self.first_in_line().map(|(_, position, _)| position)
    }

    /// The oldest event in line: its number, its position and its mode.
    fn first_in_line(&self) -> Option<(u64, EventPosition, Mode)> {
        let claim_check =
            self.claim_checks.front().map(|claim_check| (claim_check.number, claim_check.position, claim_check.mode));
        let slot = self.slots.front().map(|slot| (slot.number, slot.position, slot.mode));
        slot.into_iter().chain(claim_check).min_by_key(|(number, _, _)| *number)
    }

    /// The number of the oldest event in line.
    pub fn front(&self) -> Option<u64> {
        let claim_check = self.claim_checks.front().map(|claim_check| claim_check.number);
        self.slots.front().map(|slot| slot.number).into_iter().chain(claim_check).min()
    }

    /// The number of the oldest event that is to be sent yet, in line or left out.
    pub(in crate::flow) fn first_to_send(&self) -> Option<u64> {
        self.front().into_iter().chain(self.absence.left_out).min()
    }

    /// The number of the oldest event that is not settled: not stored yet, given up and not taken from here yet, or with
    /// a row of the history that is not durable.
    pub fn oldest(&self) -> Option<u64> {
        self.front().into_iter().chain(self.oldest_behind_line()).min()
    }

    /// The same without what is in line.
    pub(in crate::flow) fn oldest_behind_line(&self) -> Option<u64> {
        let given_up = self.rejected.iter().map(|rejected| rejected.number);
        given_up.chain(self.history.oldest()).chain(self.absence.left_out).min()
    }

    /// Events that can never be published, given up since the last call. Until they are taken from here nothing is
    /// sent, and they count as not settled: they cannot get lost between the lane and its owner.
    pub(in crate::flow) fn take_rejected(&mut self) -> Vec<Rejected> {
        std::mem::take(&mut self.rejected)
    }

    /// Messages stored since the lane began, and acks that said `duplicate`.
    pub fn counts(&self) -> (u64, u64) {
        (self.tally.stored, self.tally.duplicates)
    }

    /// Whether the stream has this event already, as far as is known. To be asked for every event, in their order.
    ///
    /// # Errors
    /// The stream's tail and this event come from different histories.
    pub fn has(&mut self, position: &EventPosition) -> Result<bool> {
        self.last_seen = Some(*position);
        if let Some((last_stored, _)) = &self.stream_end.last_stored
            && position.contradicts(last_stored)
        {
            return Err(self.rewritten(position, last_stored));
        }
        match self.modes.next.ordering {
            Ordering::Strict => Ok(self.is_covered_by_last_stored(position) && !self.is_undecided(position)),
            // That a later one is there says nothing of those before it; what is there was listed when it was opened like this.
            Ordering::Shared => {
                let mut is_known = false;
                while let Some(known) = self.known.front()
                    && known.is_at_or_before(position)
                {
                    is_known |= known == position;
                    self.known.pop_front();
                }
                Ok(is_known)
            }
            Ordering::Core => Ok(false),
        }
    }

    /// What became of the lane's events, for the publish history.
    pub fn history(&mut self) -> &mut History {
        &mut self.history
    }

    /// Whether the history's rows need not be waited for before more is read.
    pub(in crate::flow) fn history_lets_pass(&self) -> bool {
        self.history.lets_pass()
    }

    /// What time it is, for what happens from here on.
    pub fn set_time(&mut self, now: Timestamps) {
        self.now = now;
    }
}

impl Slot {
    fn sequence(&self) -> Option<u64> {
        match self.state {
            State::Stored(sequence) => Some(sequence),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
