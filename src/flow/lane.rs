//! A lane: the ordered path of events into one stream.
//!
//! Comes in: events with their positions, answers of the server. Goes out: bytes for the socket, in order. Holds
//! what is not settled, so that one remedy serves every failure: stop, read the stream's tail, drop what the tail
//! shows as stored, send the rest again. Knows neither socket nor clock.
//!
//! What a message looks like is in [`message`], what goes together into one atomic batch in `batch`, core NATS in `core`, what is
//! too large for a message in [`claim_check`], what a tail says of the line in `open`, what a stream has to keep in `retained`, what
//! of a tail has to be listed in `doubt`, what a caller's repeated message id costs in `repeats`, which schemas they
//! name in `schemas`, how long messages took in `times`, which message a connection is closed over in `verdict`.

mod batch;
pub mod claim_check;
mod core;
mod doubt;
mod message;
mod mode;
mod open;
mod record;
mod repeats;
mod retained;
mod schemas;
mod times;
#[cfg(feature = "otlp")]
mod traced;
mod verdict;

use std::{collections::VecDeque, ops::Range};

use super::{
    delay::Retained,
    event_id::{EventPosition, REWRITTEN},
    history::{History, Note, Outcome},
    send_buffer::{Place, SendBuffer},
};
use crate::{
    error::{Error, Result},
    route::rules::{Keep, KeepPayload},
    wal::lsn::Lsn,
};

use batch::Batching;
pub use batch::{BATCH_MAX, Batches};
use claim_check::ClaimCheck;
pub use doubt::{Doubt, Listing};
pub use message::Head;
use message::{CRLF, Front, Layout, Template};
pub use mode::{Mode, Ordering};
use open::SlotOutcome;
use record::{noted, record, text};
use repeats::Repeats;
use retained::later;
use schemas::Schemas;
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
    /// Of the messages that may be sent now.
    mode: Mode,
    /// Of the events that come from here on.
    next_mode: Mode,
    /// Some message in line is in another mode than those that may be sent.
    is_mixed: bool,
    /// The stream's last sequence when it was last opened in shared ordering: up to there its events are known.
    listed_upto: u64,
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
    attempt: u8,
    /// The stream's last sequence when the lane was opened: what is not settled was not stored up to there.
    opened_behind: u64,
    /// The highest sequence that the stream is known to have reached.
    reached: u64,
    /// The last event of ours known to be in the stream, and its sequence there.
    last_stored: Option<(EventPosition, u64)>,
    /// The event with the highest sequence of those that were settled.
    last_settled: Retained,
    /// Where confirming is delayed: the sequence behind which the slot still has all events.
    retained_through: Option<u64>,
    /// In shared ordering: events in the stream that have not come down the slot yet, in their order.
    known: VecDeque<EventPosition>,
    /// See [`Doubt`].
    doubts: Vec<Doubt>,
    /// Where the slot is confirmed: what was committed before does not come again.
    doubted_since: Lsn,
    /// The events in the stream when it was last opened, in their order, if that was in strict ordering with doubts.
    listed: Option<Vec<EventPosition>>,
    /// The last event that came down the slot.
    last_seen: Option<EventPosition>,
    bytes: usize,
    max_payload: usize,
    /// When the lane was last opened, and that limit read: µs of the steady clock.
    opened_at: u64,
    /// The server's own limit, in bytes; 0 where it is not known.
    server_limit: usize,
    limit: Option<u64>,
    /// The first event that may have to wait for an earlier one in another lane.
    turn_limit: Option<u64>,
    /// What a closed lane still owes the socket: the end of the message that it was in the midst of.
    rest: Vec<u8>,
    /// Strict and just opened: one message goes alone, and its ack shows that the tail was the tail. Something may have been
    /// on its way into the stream when it was read (by an older connection, or by core NATS, which tells nobody when it is
    /// there). Of many messages the first would be refused and one behind them be taken, where as many came before it.
    is_probing: bool,
    /// One message goes at a time, whatever the ordering: the server closes the connection over one of them.
    is_careful: bool,
    /// Nothing of it has been settled for long: others need not wait.
    is_away: bool,
    /// The first event that it had no room for while it was away.
    left_out: Option<u64>,
    /// In core NATS: a PING is under way behind all messages before this index.
    pinged: Option<u64>,
    stored: u64,
    duplicates: u64,
    times: Times,
    #[cfg(feature = "otlp")]
    traced: Vec<Traced>,
    /// The notes of the events in line, in their order.
    notes: SendBuffer,
    history: History,
    now: Timestamps,
    /// The index of the first message that was not handed to the socket since the lane was opened.
    sent_upto: u64,
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

/// A message that is being written: the head is there, the payload is to be appended to [`Lane::buffer`].
#[derive(Debug)]
pub struct Draft {
    place: Place,
    /// Where it begins in the buffer.
    start: usize,
    layout: Layout,
    note: (Place, usize),
    keep: Keep,
    may_be_claimed: bool,
    halts: bool,
    /// Its message id is its caller's, and whether that was seen before.
    own_id: Option<bool>,
}

/// The most that a server can be told to take; what this one takes is known when the lane opens.
const MAX_PAYLOAD_MAX: usize = 64 * 1024 * 1024;
/// The most that JetStream takes of headers, in bytes.
const HEADER_MAX: usize = 65_535;

impl Lane {
    /// A closed lane into `stream`; replies come to `<inbox>.<token>`.
    pub fn new(stream: &str, ordering: Ordering, inbox: &str) -> Lane {
        let mode = Mode { ordering, batches: Batches::None };
        Lane {
            stream: stream.to_owned(),
            mode,
            next_mode: mode,
            is_mixed: false,
            listed_upto: 0,
            reply_prefix: format!("{inbox}.").into_bytes(),
            send_buffer: SendBuffer::default(),
            slots: VecDeque::new(),
            rejected: Vec::new(),
            claim_checks: VecDeque::new(),
            base: 0,
            anchor: None,
            attempt: 0,
            opened_behind: 0,
            reached: 0,
            last_stored: None,
            last_settled: None,
            retained_through: None,
            known: VecDeque::new(),
            doubts: Vec::new(),
            doubted_since: Lsn::ZERO,
            listed: None,
            last_seen: None,
            bytes: 0,
            max_payload: MAX_PAYLOAD_MAX,
            opened_at: 0,
            server_limit: 0,
            limit: None,
            turn_limit: None,
            rest: Vec::new(),
            pinged: None,
            is_probing: false,
            is_careful: false,
            is_away: false,
            left_out: None,
            stored: 0,
            duplicates: 0,
            times: Times::default(),
            #[cfg(feature = "otlp")]
            traced: Vec::new(),
            notes: SendBuffer::default(),
            history: History::new(usize::MAX),
            now: Timestamps::default(),
            sent_upto: 0,
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
        self.mode.ordering
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
        self.front().into_iter().chain(self.left_out).min()
    }

    /// The number of the oldest event that is not settled: not stored yet, given up and not taken from here yet, or with
    /// a row of the history that is not durable.
    pub fn oldest(&self) -> Option<u64> {
        self.front().into_iter().chain(self.oldest_behind_line()).min()
    }

    /// The same without what is in line.
    pub(in crate::flow) fn oldest_behind_line(&self) -> Option<u64> {
        let given_up = self.rejected.iter().map(|rejected| rejected.number);
        given_up.chain(self.history.oldest()).chain(self.left_out).min()
    }

    /// Says whether nothing of it has been settled for long.
    pub fn set_away(&mut self, is_away: bool) {
        self.is_away = is_away;
    }

    /// Whether nothing of it has been settled for long.
    pub(in crate::flow) fn is_away(&self) -> bool {
        self.is_away
    }

    /// Whether there is room within these bounds. What waits for the rest of its transaction is not waited for.
    pub fn has_room(&self, events: usize, bytes: usize) -> bool {
        (self.len() < events && self.bytes < bytes) || self.waits_for_more()
    }

    /// Event `number` is not taken, nor any after it: the slot has to be read again from before it.
    pub fn leave_out(&mut self, number: u64) {
        self.left_out.get_or_insert(number);
    }

    /// Whether events are left out.
    pub(in crate::flow) fn leaves_out(&self) -> bool {
        self.left_out.is_some()
    }

    /// Events that can never be published, given up since the last call. Until they are taken from here nothing is
    /// sent, and they count as not settled: they cannot get lost between the lane and its owner.
    pub(in crate::flow) fn take_rejected(&mut self) -> Vec<Rejected> {
        std::mem::take(&mut self.rejected)
    }

    /// The last event of ours known to be stored, with its stream sequence.
    pub fn last_stored(&self) -> Option<(EventPosition, u64)> {
        self.last_stored
    }

    /// The stream is another one from here on: what the old one holds says nothing of it.
    pub(in crate::flow) fn forget_last_stored(&mut self) {
        self.last_stored = None;
        self.last_settled = None;
        self.retained_through = None;
        self.reached = 0;
        self.opened_behind = 0;
        self.listed_upto = 0;
    }

    /// Messages stored since the lane began, and acks that said `duplicate`.
    pub fn counts(&self) -> (u64, u64) {
        (self.stored, self.duplicates)
    }

    /// Whether something was sent that has no answer yet, and can have one: a batch has its answer when all of it was sent.
    pub(in crate::flow) fn awaits_answers(&self) -> bool {
        let sent = self.send_buffer.sent();
        let mut begun = self.slots.iter().take_while(|slot| slot.place < sent);
        let Some(index) = begun.position(|slot| slot.state == State::Waiting) else { return false };
        let (nth, of) = self.slots[index].part;
        self.slots.get(index + usize::from(of - nth)).is_some_and(|last| last.place < sent)
    }

    /// How many events in line were handed to the socket, whole or in part.
    pub fn under_way(&self) -> usize {
        let sent = self.send_buffer.sent();
        self.slots.partition_point(|slot| slot.place < sent)
    }

    /// Whether the stream has this event already, as far as is known. To be asked for every event, in their order.
    ///
    /// # Errors
    /// The stream's tail and this event come from different histories.
    pub fn has(&mut self, position: &EventPosition) -> Result<bool> {
        self.last_seen = Some(*position);
        if let Some((last_stored, _)) = &self.last_stored
            && position.contradicts(last_stored)
        {
            return Err(self.rewritten(position, last_stored));
        }
        match self.next_mode.ordering {
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

    /// Begins a message; `more` appends headers of its own, a line break before each.
    pub fn draft(&mut self, head: Head<'_>, more: impl FnOnce(&mut Vec<u8>)) -> Draft {
        let place = self.send_buffer.begin();
        let index = self.base + self.slots.len() as u64;
        let expected = self.expected(index);
        let own_id = head.message_id.map(|id| self.repeats.remember(id));
        let (attempt, Mode { ordering, batches }) = (self.attempt, self.next_mode);
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
            mode: self.next_mode,
            has_own_id: own_id.is_some(),
        });
        self.is_mixed |= self.next_mode != self.mode;
        self.end_mode();
        if asks_again {
            self.close();
        }
        if let Some(is_repeated) = own_id {
            self.repeats.joins(number, is_repeated);
        }
        Ok(())
    }

    /// Messages numbered from `limit` on are held back: a dead letter before them is not durable yet.
    pub fn hold_from(&mut self, limit: Option<u64>) {
        self.limit = limit;
    }

    /// Messages numbered from `limit` on are held back: another lane has an earlier event, and may lead into the same stream.
    pub(in crate::flow) fn set_turn_limit(&mut self, limit: Option<u64>) {
        self.turn_limit = limit;
    }

    /// The next bytes for the socket.
    pub fn unsent(&mut self) -> &[u8] {
        if !self.rest.is_empty() {
            return &self.rest;
        }
        if self.anchor.is_none() || !self.rejected.is_empty() {
            return &[];
        }
        let claim_check = self.claim_checks.front();
        let claim_check =
            claim_check.map(|claim_check| self.first_with(claim_check.number, claim_check.position.commit_lsn));
        let schema = self.first_without_schema();
        let repeat = self.first_behind_repeat();
        let other = self.first_in_other_mode();
        let limit = self
            .limit
            .into_iter()
            .chain(self.turn_limit)
            .chain(claim_check)
            .chain(schema)
            .chain(repeat)
            .chain(other)
            .min();
        let held = limit.map_or(self.slots.len(), |limit| self.slots.partition_point(|slot| slot.number < limit));
        let held = if self.batching.is_wanted() { self.cut(held).min(held) } else { held };
        let alone = self.slots.front().map_or(1, |first| usize::from(first.part.1));
        let held = if self.is_probing || self.is_careful { held.min(alone) } else { held };
        self.freshen(held);
        let limit = self.slots.get(held).map(|slot| slot.place);
        self.send_buffer.unsent(limit)
    }

    /// The socket took `count` of the unsent bytes.
    pub fn mark_sent(&mut self, count: usize) {
        if !self.rest.is_empty() {
            self.rest.drain(..count);
            return;
        }
        self.send_buffer.mark_sent(count);
        let sent = self.send_buffer.sent();
        self.sent_upto = self.sent_upto.max(self.base);
        let from = usize::try_from(self.sent_upto - self.base).expect("within the line");
        for slot in self.slots.range_mut(from..).take_while(|slot| slot.place < sent) {
            slot.sent_at = self.now.steady;
            self.sent_upto += 1;
        }
    }

    /// Whether the bytes sent so far end with a whole message, so that another command may follow.
    pub fn is_between_messages(&self) -> bool {
        if self.anchor.is_none() {
            return self.rest.is_empty();
        }
        let sent = self.send_buffer.sent();
        self.send_buffer.sent_whole_segment() || self.slots.binary_search_by_key(&sent, |slot| slot.place).is_ok()
    }

    /// Stops sending, but for the end of a message that is under way: others may share the connection. Answers are
    /// still taken. [`Lane::open`] is the way on.
    pub fn close(&mut self) {
        if self.anchor.is_some() && !self.is_between_messages() {
            let sent = self.send_buffer.sent();
            let begun = self.slots.partition_point(|slot| slot.place < sent);
            if let Some(slot) = begun.checked_sub(1).map(|last| &self.slots[last]) {
                self.rest.extend_from_slice(self.send_buffer.message_after(slot.place, slot.length, sent));
            }
        }
        self.anchor = None;
    }

    /// The server stored the message whose reply token this is, or had it.
    ///
    /// # Errors
    /// [`Refusal::WrongSequence`] where it was stored elsewhere than in its place: the lane has to be reopened.
    pub fn acked(&mut self, token: &[u8], sequence: u64, duplicate: bool) -> Result<(), Refusal> {
        let Some(index) = self.slot_of(token) else { return Ok(()) };
        self.reached = self.reached.max(sequence);
        // The answer to a batch is for its last message, and good for all of it.
        let first = index + 1 - usize::from(self.slots[index].part.1);
        for (at, back) in (first..=index).rev().zip(0..) {
            let slot = &mut self.slots[at];
            if matches!(slot.state, State::Stored(_)) {
                continue;
            }
            slot.state = State::Stored(sequence.saturating_sub(back));
            slot.is_duplicate = duplicate;
            self.times.record(slot, self.now);
            #[cfg(feature = "otlp")]
            traced::note(&mut self.traced, &self.send_buffer, slot, self.now);
            if duplicate {
                self.duplicates += 1;
            } else {
                self.stored += 1;
            }
        }
        let has_own_id = self.slots[index].has_own_id;
        // Of ours, and the tail did not show it: the stream had it, and somebody has removed it since.
        let was_removed = duplicate && self.is_probing && !has_own_id;
        let is_repeat = duplicate && (has_own_id || was_removed);
        let in_place = self.mode.ordering == Ordering::Shared
            || duplicate
            || self.anchor.is_none()
            || sequence == self.expected(self.base + index as u64) + 1;
        let passed_over = is_repeat && self.passes_over(index, sequence);
        if !duplicate && has_own_id {
            self.was_new();
        }
        // A duplicate of something older says nothing of where the stream ends.
        self.is_probing &= !in_place || passed_over;
        if first == 0 {
            self.let_go();
        }
        if passed_over && self.batching.is_wanted() {
            self.recount(self.batching.max());
        }
        if in_place { Ok(()) } else { Err(Refusal::WrongSequence) }
    }

    /// What is stored leaves at the front.
    fn let_go(&mut self) {
        while let Some(slot) = self.slots.front()
            && let State::Stored(sequence) = slot.state
        {
            self.last_stored = Some((slot.position, sequence));
            if !slot.is_duplicate {
                self.last_settled = later(self.last_settled, Some((slot.position, sequence)));
            }
            record(&mut self.history, &self.notes, &self.send_buffer, slot, Some(sequence), self.now);
            self.bytes -= slot.length;
            self.base += 1;
            self.slots.pop_front();
        }
        let first = self.slots.front().map_or_else(|| self.send_buffer.end(), |slot| slot.place);
        self.send_buffer.release(first);
        self.release_notes();
        self.end_mode();
    }

    /// The server did not store the message whose reply token this is. Returns whether that is news; then the lane
    /// has to be closed and reopened. A message that is never stored is given up ([`Lane::take_rejected`]).
    pub fn refused(&mut self, token: &[u8], refusal: &Refusal) -> bool {
        let Some(index) = self.slot_of(token) else { return false };
        let of = usize::from(self.slots[index].part.1);
        if let (Refusal::Never(reason), 1) = (refusal, of) {
            self.take_out(vec![(index, SlotOutcome::Rejected(reason.clone()))]);
            return true;
        }
        if let (Refusal::TooLarge(reason), 1) = (refusal, of) {
            let slot_outcome = self.outcome_of_large(&self.slots[index], reason.clone(), self.max_payload);
            self.take_out(vec![(index, slot_outcome)]);
            return true;
        }
        let is_duplicate = *refusal == Refusal::DuplicateInBatch;
        let ends = [index + 1 - of, index].map(|end| self.slots[end].position.commit_lsn);
        let is_group = ends[0] != ends[1];
        for slot in self.slots.range_mut(index + 1 - of..=index) {
            // Which of several transactions it is shows when each goes by itself.
            slot.is_ungrouped |= is_duplicate && is_group;
            slot.is_single |= is_duplicate && !is_group;
            // Which message of a batch can never be stored shows when the lane is opened and the stream's limits are known anew.
            slot.state = if *refusal == Refusal::WrongSequence { State::OutOfOrder } else { State::NotNow };
        }
        true
    }

    /// Finds the slot of a reply token; `None` for answers to earlier attempts and to what is settled.
    fn slot_of(&self, token: &[u8]) -> Option<usize> {
        let (attempt, low) = message::token(token)?;
        if attempt != self.attempt {
            return None;
        }
        // The low half of the index is enough: far fewer than 2^32 are in flight.
        let base_low = u32::try_from(self.base & 0xFFFF_FFFF).expect("masked");
        let index = usize::try_from(low.wrapping_sub(base_low)).expect("at least 32 bits");
        (index < self.slots.len()).then_some(index)
    }

    /// Forgets the notes of events that are no longer in line.
    fn release_notes(&mut self) {
        let first = self.slots.front().map_or_else(|| self.notes.end(), |slot| slot.note.0);
        self.notes.release(first);
    }

    fn expected(&self, index: u64) -> u64 {
        self.anchor.map_or(0, |anchor| anchor.last_sequence + (index - anchor.index))
    }

    fn rewritten(&self, ours: &EventPosition, stored: &EventPosition) -> Error {
        Error::untrusted(format!(
            "go on in stream {}: its last event of ours is of a transaction at {} committed at {}, but PostgreSQL has \
             another one there, committed at {} (µs since 2000-01-01)",
            self.stream, stored.commit_lsn, stored.commit_time, ours.commit_time
        ))
        .hint(REWRITTEN)
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
