//! Rows for `rule_nats_publish_history`, from the event's making until they are durable.
//!
//! Comes in: a [`Note`] of what is known when the event is made, later what became of it. Goes out: [`Batch`]es of rows in
//! PostgreSQL's binary COPY format, ready for the wire. Always holds: an event that is noted counts as unrecorded
//! ([`History::oldest`]) until its batch is recorded, so nothing is confirmed whose row could be lost. Where rows cannot be
//! written for long they are not kept either: [`History::unwritten`] remembers from which event on, and the slot, which still has
//! them all, is read again from there. Knows no clock and no database.

use super::event_id::EventPosition;
use crate::{
    route::{
        digits::push_bytes,
        payload::{self, Body},
        rules::{KeepPayload, Webhook},
        value::write_as_json,
    },
    wal::{lsn::Lsn, pgoutput::Column},
};

/// Bytes that an empty batch keeps for the next rows.
const SPARE_BYTES_MAX: usize = 2 << 20;

/// The columns of a row, in their order, as `rule_nats_publish_history` has them.
pub const COLUMNS: [&str; COLUMN_COUNT as usize] = [
    "published_at",
    "sequence_number",
    "latency_ms",
    "success",
    "webhook_id",
    "event_id",
    "subject",
    "headers",
    "message_id",
    "triggered_by",
    "rule_execution_id",
    "webhook_event_id",
    "stream_name",
    "payload",
    "error_message",
];
/// As a row begins with it.
const COLUMN_COUNT: i16 = 15;
/// Where the sequence's eight bytes are: behind the count of columns, a time with its length, and its own length.
const SEQUENCE_AT: usize = 2 + 12 + 4;
/// Which column the subject is.
const SUBJECT: usize = 6;
/// A length of -1 stands for NULL.
const NULL: [u8; 4] = (-1i32).to_be_bytes();
/// What stands before the text of a jsonb in binary form (`jsonb_recv` in PostgreSQL's jsonb.c).
const JSONB_VERSION: u8 = 1;
/// The largest value of a `numeric(10, 2)`, in hundredths.
const LATENCY_MAX: u64 = 9_999_999_999;

/// What is known of an event when it is made; the columns that are not settled by what becomes of it.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the row's columns; sql/ explains them")]
pub struct Note<'a> {
    pub webhook_id: i32,
    pub event_id: &'a [u8],
    pub subject: &'a [u8],
    pub headers: &'a [u8],
    pub message_id: &'a [u8],
    pub triggered_by: Option<&'a [u8]>,
    pub rule_execution_id: Option<i64>,
    pub webhook_event_id: Option<i64>,
}

impl Note<'_> {
    /// Appends the columns from `webhook_id` to `stream_name`: the stream it goes to, if one takes it.
    pub fn write(&self, stream: Option<&str>, out: &mut Vec<u8>) {
        field(Some(&self.webhook_id.to_be_bytes()), out);
        field(Some(self.event_id), out);
        field(Some(self.subject), out);
        jsonb(self.headers, out);
        field(Some(self.message_id), out);
        field(self.triggered_by, out);
        field(self.rule_execution_id.map(i64::to_be_bytes).as_ref().map(|bytes| &bytes[..]), out);
        field(self.webhook_event_id.map(i64::to_be_bytes).as_ref().map(|bytes| &bytes[..]), out);
        field(stream.map(str::as_bytes), out);
    }
}

/// Where the words of a [`Note`] are put together; kept from event to event.
#[derive(Debug, Default)]
pub struct Origin {
    headers: Vec<u8>,
    /// What made the event, where no user did.
    trigger: Vec<u8>,
}

impl Origin {
    /// Takes what has to be written for an event.
    pub fn fill(&mut self, body: Body<'_>, webhook: &Webhook) {
        self.headers.clear();
        payload::write_shown_headers(body, webhook, &mut self.headers);
        self.trigger.clear();
        payload::write_type(body, &mut self.trigger);
    }

    /// The note of the event that was taken last.
    pub fn note<'a>(
        &'a self,
        body: Body<'a>,
        webhook: &Webhook,
        id: &'a [u8],
        subject: &'a [u8],
        message_id: Option<&'a [u8]>,
    ) -> Note<'a> {
        let (user, execution, event) = match body {
            Body::Row { .. } => (None, None, None),
            Body::Call { columns, row, .. } => {
                let cell = |index: Option<usize>| match row.iter().nth(index?) {
                    Some(Column::Text(text)) => Some(text),
                    _ => None,
                };
                let number = |index| std::str::from_utf8(cell(index)?).ok()?.parse().ok();
                (cell(columns.triggered_by), number(columns.rule_execution_id), number(Some(columns.event_id)))
            }
            Body::Emitted(message) | Body::Columns { message, .. } => {
                let call = &message.call;
                let user = call.triggered_by.as_deref().map(str::as_bytes);
                (user, call.rule_execution_id, Some(message.event_number()))
            }
        };
        Note {
            webhook_id: webhook.id,
            event_id: id,
            subject,
            headers: &self.headers,
            message_id: message_id.unwrap_or(id),
            triggered_by: user.or(Some(&self.trigger)),
            rule_execution_id: execution,
            webhook_event_id: event,
        }
    }
}

/// What became of an event.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// Stored.
    Stored {
        /// When the ack came, in µs since 2000-01-01; `None` where it was not seen.
        at: Option<i64>,
        /// Its sequence, 0 in what has none (core NATS); `None` where it has to be looked up.
        sequence: Option<u64>,
        /// From publish to ack, in µs.
        latency: Option<u64>,
    },
    /// It never will be.
    Failed {
        /// Why.
        reason: &'a str,
    },
}

/// Where a stored event's message is, as looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At this sequence.
    At(u64),
    /// Not in the stream any more: where it would be, messages have been removed.
    Removed,
    /// Not found: nothing says that it was stored.
    Unknown,
}

impl Place {
    /// As the streamer's temporary table has it (`walhook_history` in sql/008).
    fn written(self) -> i64 {
        match self {
            // No server counts beyond an i64.
            Place::At(sequence) => i64::try_from(sequence).unwrap_or(0),
            Place::Removed => -1,
            Place::Unknown => 0,
        }
    }
}

/// Rows that are complete.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    rows: usize,
    /// How many of them `rule_nats_publish_history` cannot take as they are.
    unusual: usize,
    /// The oldest event of them.
    oldest: Option<u64>,
    /// Of their events the first commit.
    first_commit: Option<Lsn>,
    /// Whose events they are, each once.
    webhooks: Vec<i32>,
    /// Rows whose sequence has to be looked up, by where they begin in `bytes`; from [`History::take`] on in the order
    /// of their positions.
    unlocated: Vec<(usize, EventPosition)>,
}

impl Batch {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The rows in binary COPY format, without its header and trailer (manual, "COPY", File Formats).
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether `rule_nats_publish_history` can take the rows as they are. Otherwise of some the time or the sequence is not known, and
    /// stands as 0: what failed, or was stored before a restart.
    pub fn is_plain(&self) -> bool {
        self.unusual == 0
    }

    /// The first commit of their events.
    pub fn first_commit(&self) -> Option<Lsn> {
        self.first_commit
    }

    /// The webhooks of their events, each once.
    pub fn webhooks(&self) -> &[i32] {
        &self.webhooks
    }

    /// The events that are stored at a sequence not known yet with the subject of each, in the order of their positions.
    pub fn unlocated(&self) -> impl ExactSizeIterator<Item = (&EventPosition, &str)> {
        self.unlocated.iter().map(|(row, position)| (position, self.subject(*row)))
    }

    /// The subject in the row that begins there.
    fn subject(&self, row: usize) -> &str {
        let mut at = row + 2;
        let mut value = &self.bytes[at..at];
        for _ in 0..=SUBJECT {
            let (length, rest) = self.bytes[at..].split_first_chunk().expect("a row has its columns");
            // NULL has no bytes.
            let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
            value = &rest[..length];
            at += 4 + length;
        }
        std::str::from_utf8(value).unwrap_or_default()
    }

    /// Fills in where the first of [`Batch::unlocated`] are.
    pub fn locate(&mut self, places: &[Place]) {
        for ((row, _), place) in self.unlocated.drain(..places.len()).zip(places) {
            let at = row + SEQUENCE_AT;
            self.bytes[at..at + 8].copy_from_slice(&place.written().to_be_bytes());
        }
    }

    fn push(
        &mut self,
        number: u64,
        position: &EventPosition,
        note: &[u8],
        payload: &[u8],
        kept: KeepPayload,
        outcome: Outcome<'_>,
    ) {
        let out = &mut self.bytes;
        let (time, sequence, latency, reason) = match outcome {
            Outcome::Stored { at, sequence, latency } => (at, sequence, latency, None),
            Outcome::Failed { reason } => (None, Some(0), None, Some(reason)),
        };
        self.unusual += usize::from(time.is_none() || sequence.is_none());
        out.extend_from_slice(&COLUMN_COUNT.to_be_bytes());
        field(Some(&time.unwrap_or(0).to_be_bytes()), out);
        match sequence {
            Some(0) => field(None, out),
            known => field(Some(&known.unwrap_or(0).to_be_bytes()), out),
        }
        field(latency.map(milliseconds).as_ref().map(|bytes| &bytes[..]), out);
        field(Some(&[u8::from(reason.is_none())]), out);
        out.extend_from_slice(note);
        match (kept, sequence) {
            // The stream has it, at this sequence.
            (KeepPayload::Reference, Some(1..)) | (KeepPayload::None, _) => jsonb(b"null", out),
            (KeepPayload::Full, _) => jsonb(payload, out),
            (KeepPayload::Reference | KeepPayload::AnyBytes, _) => {
                let start = out.len();
                jsonb(&[], out);
                write_as_json(payload, out);
                let length = i32::try_from(out.len() - start - 4).expect("an event's parts are small");
                out[start..start + 4].copy_from_slice(&length.to_be_bytes());
            }
            (KeepPayload::Hash, _) => jsonb(&digest(payload), out),
        }
        field(reason.map(str::as_bytes), out);
        self.rows += 1;
        self.oldest = Some(self.oldest.map_or(number, |oldest| oldest.min(number)));
        let commit = position.commit_lsn;
        self.first_commit = Some(self.first_commit.map_or(commit, |first| first.min(commit)));
        // Rows of one webhook mostly follow each other.
        if self.webhooks.last() != Some(&position.webhook_id) && !self.webhooks.contains(&position.webhook_id) {
            self.webhooks.push(position.webhook_id);
        }
    }

    /// Empty again, with its memory kept unless a burst has blown it up.
    fn clear(&mut self) {
        self.bytes.clear();
        self.rows = 0;
        self.unusual = 0;
        self.oldest = None;
        self.first_commit = None;
        self.webhooks.clear();
        self.unlocated.clear();
        if self.bytes.capacity() > SPARE_BYTES_MAX {
            self.bytes.shrink_to(SPARE_BYTES_MAX);
        }
    }
}

fn field(value: Option<&[u8]>, out: &mut Vec<u8>) {
    match value {
        Some(value) => {
            // PostgreSQL takes no field of more than 1 GB, and no event is larger than 64 MiB.
            out.extend_from_slice(&i32::try_from(value.len()).expect("an event's parts are small").to_be_bytes());
            out.extend_from_slice(value);
        }
        None => out.extend_from_slice(&NULL),
    }
}

fn jsonb(text: &[u8], out: &mut Vec<u8>) {
    let length = i32::try_from(text.len() + 1).expect("an event's parts are small");
    out.extend_from_slice(&length.to_be_bytes());
    out.push(JSONB_VERSION);
    out.extend_from_slice(text);
}

/// So many µs as a `numeric` of ms with two decimals: three digits to the base of 10,000, the last behind the point
/// (`numeric_recv` in PostgreSQL's numeric.c, which drops leading zeros).
fn milliseconds(micros: u64) -> [u8; 14] {
    let hundredths = (micros.saturating_add(5) / 10).min(LATENCY_MAX);
    let (whole, fraction) = (hundredths / 100, hundredths % 100);
    let (digits, weight, sign, scale) = ([whole / 10_000, whole % 10_000, fraction * 100], 1, 0, 2);
    let words = [digits.len() as u64, weight, sign, scale, digits[0], digits[1], digits[2]];
    let mut bytes = [0; 14];
    for (to, word) in bytes.chunks_exact_mut(2).zip(words) {
        to.copy_from_slice(&u16::try_from(word).expect("digits are below 10,000").to_be_bytes());
    }
    bytes
}

fn digest(payload: &[u8]) -> Vec<u8> {
    let digest = ring::digest::digest(&ring::digest::SHA256, payload);
    let mut text = b"{\"sha256\":\"".to_vec();
    push_bytes(digest.as_ref(), &mut text);
    text.extend_from_slice(format!("\",\"bytes\":{}}}", payload.len()).as_bytes());
    text
}

/// Where rows of the history come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistorySource {
    /// The events of a lane.
    Lane(usize),
    /// The dead letters.
    DeadLetters,
}

/// The rows of one lane, or of the dead letters.
#[derive(Debug)]
pub struct History {
    /// How many bytes of rows may wait or be under way before reading stops.
    room: usize,
    waiting: Batch,
    /// The oldest event of the batch that is being written, and its bytes.
    writing: Option<(u64, usize)>,
    /// An empty batch whose memory is kept.
    spare: Batch,
    unwritten: Option<u64>,
    is_stuck: bool,
}

impl History {
    /// Nothing happened yet; `room` in bytes.
    pub fn new(room: usize) -> History {
        History {
            room,
            waiting: Batch::default(),
            writing: None,
            spare: Batch::default(),
            unwritten: None,
            is_stuck: false,
        }
    }

    /// Takes the row of event `number`.
    pub fn push(
        &mut self,
        number: u64,
        position: &EventPosition,
        note: &[u8],
        payload: &[u8],
        kept: KeepPayload,
        outcome: Outcome<'_>,
    ) {
        if self.unwritten.is_some() || (self.is_stuck && !self.has_room()) {
            self.leave_out(number);
            return;
        }
        if matches!(outcome, Outcome::Stored { sequence: None, .. }) {
            self.waiting.unlocated.push((self.waiting.bytes.len(), *position));
        }
        self.waiting.push(number, position, note, payload, kept, outcome);
    }

    /// The row of event `number` is not kept: the slot has to be read again from before it.
    pub fn leave_out(&mut self, number: u64) {
        self.unwritten = Some(self.unwritten.map_or(number, |unwritten| unwritten.min(number)));
    }

    /// Says whether rows cannot be written at present.
    pub fn set_stuck(&mut self, is_stuck: bool) {
        self.is_stuck = is_stuck;
    }

    /// Whether more rows may wait.
    pub fn has_room(&self) -> bool {
        self.waiting.bytes.len() + self.writing.map_or(0, |(_, bytes)| bytes) < self.room
    }

    /// Whether reading need not stop for it: there is room, or nothing can be waited for.
    pub fn lets_pass(&self) -> bool {
        self.is_stuck || self.has_room()
    }

    /// Whether notes are worth taking: not while rows are left out.
    pub fn takes_notes(&self) -> bool {
        self.unwritten.is_none()
    }

    /// The oldest event whose row is not durable.
    pub fn oldest(&self) -> Option<u64> {
        self.writing.map(|(oldest, _)| oldest).into_iter().chain(self.waiting.oldest).chain(self.unwritten).min()
    }

    /// Whether among the rows that wait are some whose sequence has to be looked up.
    pub fn asks(&self) -> bool {
        !self.waiting.unlocated.is_empty()
    }

    /// Takes the rows that wait, to be written; nothing while a batch is under way.
    pub fn take(&mut self) -> Option<Batch> {
        if self.writing.is_some() || self.waiting.is_empty() {
            return None;
        }
        let mut batch = std::mem::replace(&mut self.waiting, std::mem::take(&mut self.spare));
        self.writing = batch.oldest.map(|oldest| (oldest, batch.bytes.len()));
        batch.unlocated.sort_unstable_by_key(|(_, position)| position.rank());
        Some(batch)
    }

    /// The batch is durable.
    pub fn recorded(&mut self, mut batch: Batch) {
        assert!(self.writing.take().is_some(), "a batch was taken before it was recorded");
        batch.clear();
        self.spare = batch;
    }

    /// From which event on rows were left out, once all others are durable and more could be written.
    pub fn unwritten(&self) -> Option<u64> {
        self.unwritten.filter(|_| !self.is_stuck && self.writing.is_none() && self.waiting.is_empty())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ROOM: usize = 1000;
    const STORED: Outcome<'_> = Outcome::Stored { at: Some(7), sequence: Some(9), latency: Some(1500) };

    fn position(ordinal: u64) -> EventPosition {
        EventPosition { commit_lsn: Lsn(5), commit_time: 6, ordinal, webhook_id: 1 }
    }

    fn note() -> Vec<u8> {
        let mut note = Vec::new();
        Note {
            webhook_id: 1,
            event_id: b"src-1",
            subject: b"s",
            headers: b"{}",
            message_id: b"m",
            triggered_by: Some(b"me"),
            rule_execution_id: None,
            webhook_event_id: Some(17),
        }
        .write(Some("S"), &mut note);
        note
    }

    /// The fields of the rows, as PostgreSQL reads them.
    fn rows(batch: &Batch) -> Vec<Vec<Option<Vec<u8>>>> {
        let mut rest = batch.bytes();
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at(count);
            rest = left;
            taken.to_vec()
        };
        let mut rows = Vec::new();
        for _ in 0..batch.len() {
            let count = i16::from_be_bytes(take(2).try_into().unwrap());
            let fields = (0..count).map(|_| {
                let length = i32::from_be_bytes(take(4).try_into().unwrap());
                usize::try_from(length).ok().map(&mut take)
            });
            rows.push(fields.collect());
        }
        assert!(rest.is_empty(), "{} bytes too many", rest.len());
        rows
    }

    #[test]
    fn a_row_has_every_column_in_its_place() {
        let mut history = History::new(ROOM);
        history.push(1, &position(0), &note(), b"{\"a\":1}", KeepPayload::Full, STORED);
        history.push(2, &position(1), &note(), b"{}", KeepPayload::None, Outcome::Failed { reason: "too large" });
        history.push(3, &position(2), &note(), b"abc", KeepPayload::Hash, STORED);
        let batch = history.take().unwrap();
        let rows = rows(&batch);
        let text = |row: usize, column: usize| rows[row][column].as_deref().map(String::from_utf8_lossy);
        assert_eq!(rows[0].len(), COLUMNS.len());
        let numeric = [0, 3, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 19, 136]; // 1.50
        let known = [7i64.to_be_bytes().to_vec(), 9i64.to_be_bytes().to_vec(), numeric.to_vec(), vec![1]];
        assert_eq!(rows[0][..4], known.map(Some));
        assert_eq!(
            (text(0, 5).unwrap(), text(0, 10), text(0, 13).unwrap()),
            ("src-1".into(), None, "\u{1}{\"a\":1}".into())
        );
        assert_eq!(
            (rows[1][3].as_deref(), text(1, 13).unwrap(), text(1, 14).unwrap()),
            (Some(&[0u8][..]), "\u{1}null".into(), "too large".into())
        );
        let sha = "\u{1}{\"sha256\":\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\",\"bytes\":3}";
        assert_eq!(text(2, 13).unwrap(), sha);
    }

    #[test]
    fn a_body_of_any_bytes_is_one_json_value() {
        let mut history = History::new(ROOM);
        for body in [&b" {\"a\": 1}"[..], b"no json \"", b"\xFF\0", b""] {
            history.push(1, &position(0), &note(), body, KeepPayload::AnyBytes, STORED);
        }
        let batch = history.take().unwrap();
        let kept: Vec<_> =
            rows(&batch).iter().map(|row| String::from_utf8(row[13].clone().unwrap()).unwrap()).collect();
        let expected = [" {\"a\": 1}", "\"no json \\\"\"", "{\"$base64\":\"/wA=\"}", "\"\""];
        assert_eq!(kept, expected.map(|json| format!("\u{1}{json}")));
    }

    #[test]
    fn by_reference_only_what_is_in_no_stream_has_its_payload() {
        let mut history = History::new(ROOM);
        let core = Outcome::Stored { at: Some(7), sequence: Some(0), latency: None };
        let unknown = Outcome::Stored { at: None, sequence: None, latency: None };
        for (number, outcome) in (1..).zip([STORED, core, unknown, Outcome::Failed { reason: "too large" }]) {
            history.push(number, &position(0), &note(), b"[1]", KeepPayload::Reference, outcome);
        }
        let kept: Vec<_> = rows(&history.take().unwrap()).iter().map(|row| row[13].clone().unwrap()).collect();
        assert_eq!(kept, [&b"\x01null"[..], b"\x01[1]", b"\x01[1]", b"\x01[1]"]);
    }

    #[test]
    fn a_batch_knows_its_webhooks_and_its_first_commit() {
        let mut history = History::new(ROOM);
        for (lsn, webhook_id) in [(7, 1), (5, 2), (9, 1)] {
            let position = EventPosition { commit_lsn: Lsn(lsn), commit_time: 6, ordinal: 0, webhook_id };
            history.push(1, &position, &note(), b"1", KeepPayload::Full, STORED);
        }
        let batch = history.take().unwrap();
        assert_eq!((batch.first_commit(), batch.webhooks()), (Some(Lsn(5)), &[1, 2][..]));
        history.recorded(batch);
        history.push(2, &position(0), &note(), b"1", KeepPayload::Full, STORED);
        history.take().unwrap();
        history.push(2, &position(0), &note(), b"1", KeepPayload::Full, STORED);
        assert_eq!(history.waiting.webhooks(), [1]);
    }

    #[test]
    fn a_latency_is_a_numeric_of_two_decimals_within_what_its_column_holds() {
        let words = |micros| -> Vec<u16> {
            milliseconds(micros).chunks(2).map(|pair| u16::from_be_bytes(pair.try_into().unwrap())).collect()
        };
        assert_eq!(words(0), [3, 1, 0, 2, 0, 0, 0]);
        assert_eq!(words(1_234_567), [3, 1, 0, 2, 0, 1234, 5700], "1234.57 ms");
        assert_eq!(words(70_001_014_999), [3, 1, 0, 2, 7000, 1015, 0], "70001015.00 ms");
        assert_eq!(words(u64::MAX), [3, 1, 0, 2, 9999, 9999, 9900], "99999999.99 ms");
    }

    #[test]
    fn rows_are_plain_only_where_all_is_known_of_them() {
        let plain = |outcomes: &[Outcome<'_>]| {
            let mut history = History::new(ROOM);
            for outcome in outcomes {
                history.push(1, &position(0), &note(), b"1", KeepPayload::Full, *outcome);
            }
            history.take().unwrap().is_plain()
        };
        assert!(plain(&[STORED, STORED]));
        assert!(!plain(&[STORED, Outcome::Failed { reason: "too large" }]));
        assert!(!plain(&[Outcome::Stored { at: None, sequence: None, latency: None }, STORED]));
    }

    #[test]
    fn an_event_is_unrecorded_until_its_batch_is_durable() {
        let mut history = History::new(ROOM);
        assert_eq!(history.oldest(), None);
        history.push(3, &position(0), &note(), b"1", KeepPayload::Full, STORED);
        let batch = history.take().unwrap();
        history.push(5, &position(1), &note(), b"1", KeepPayload::Full, STORED);
        assert!(history.take().is_none(), "one batch at a time");
        assert_eq!(history.oldest(), Some(3));
        history.recorded(batch);
        assert_eq!(history.oldest(), Some(5));
        let batch = history.take().unwrap();
        history.recorded(batch);
        assert_eq!(history.oldest(), None);
    }

    #[test]
    fn sequences_are_filled_in_where_they_were_not_known() {
        let mut history = History::new(ROOM);
        let unknown = Outcome::Stored { at: None, sequence: None, latency: None };
        history.push(1, &position(0), &note(), b"1", KeepPayload::Full, STORED);
        history.push(3, &position(2), &note(), b"1", KeepPayload::Full, unknown);
        history.push(2, &position(1), &note(), b"1", KeepPayload::Full, unknown);
        let mut batch = history.take().unwrap();
        assert_eq!(
            batch.unlocated().collect::<Vec<_>>(),
            [(&position(1), "s"), (&position(2), "s")],
            "as they lie in the stream"
        );
        batch.locate(&[Place::At(44)]);
        assert_eq!(
            batch.unlocated().collect::<Vec<_>>(),
            [(&position(2), "s")],
            "what is located is not asked for again"
        );
        batch.locate(&[Place::Removed]);
        let sequence = |row: &Vec<Option<Vec<u8>>>| i64::from_be_bytes(row[1].clone().unwrap().try_into().unwrap());
        let sequences: Vec<_> = rows(&batch).iter().map(sequence).collect();
        assert_eq!((sequences, batch.unlocated().len()), (vec![9, -1, 44], 0));
    }

    #[test]
    fn what_cannot_be_written_for_long_is_left_out_and_holds_the_confirmation() {
        let mut history = History::new(ROOM);
        let payload = vec![b' '; ROOM];
        history.push(1, &position(0), &note(), &payload, KeepPayload::Full, STORED);
        assert!(!history.lets_pass());
        history.push(2, &position(1), &note(), b"1", KeepPayload::Full, STORED);
        assert!(history.takes_notes(), "in flight when it was full: kept, so that nothing is read twice");
        history.set_stuck(true);
        assert!(history.lets_pass(), "delivery goes on");
        history.push(3, &position(2), &note(), b"1", KeepPayload::Full, STORED);
        assert!(!history.takes_notes());
        let batch = history.take().unwrap();
        assert_eq!((batch.len(), history.unwritten()), (2, None));
        history.set_stuck(false);
        history.push(4, &position(3), &note(), b"1", KeepPayload::Full, STORED);
        history.recorded(batch);
        assert_eq!((history.oldest(), history.unwritten()), (Some(3), Some(3)), "the slot is read again from there");
    }
}
