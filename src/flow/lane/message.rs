//! A message as it lies in the send buffer: a whole `HPUB` (NATS client protocol), written once.
//!
//! Its front (command, reply, lengths, and the headers that JetStream's checks go by) depends on the attempt and on the
//! message's part in a batch, which is known late. So it is written anew where it lies, as often as need be; what it is shorter
//! than its room is spaces behind `HPUB`, of which the protocol allows any number. Behind the front nothing changes.

use std::ops::Range;

use crate::route::digits::{count_up, parse_hex, set_digits, set_hex};

const HPUB: &[u8] = b"HPUB ";
const ATTEMPT_DIGITS: usize = 2;
const INDEX_DIGITS: usize = 8;
/// Digits of the largest u64.
const SEQUENCE_DIGITS: usize = 20;
const HEADER_LENGTH_DIGITS: usize = 6;
pub const CRLF: &[u8] = b"\r\n";
/// nats-server reads at most nine.
const TOTAL_LENGTH_DIGITS: usize = 9;

/// The parts of a message's head.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The subject; valid.
    pub subject: &'a [u8],
    /// The event's id.
    pub id: &'a [u8],
    /// The caller's own message id, by which JetStream deduplicates; has no control characters.
    pub message_id: Option<&'a [u8]>,
    /// The word for the operation.
    pub op: &'static str,
    /// The run that publishes it.
    pub epoch: u64,
}

impl Head<'_> {
    /// Appends the headers by which the event is known. JetStream's duplicate window is that of a stream, so a caller's id is
    /// sent as `<source>:<webhook id>:<id>`: the same id for another webhook, or in another database, is no duplicate.
    pub fn write_ids(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\nNats-Msg-Id: ");
        let Some(message_id) = self.message_id else {
            out.extend_from_slice(self.id);
            return;
        };
        let (source, webhook_id) = source_and_webhook(self.id);
        for part in [source, b":", webhook_id, b":", message_id, b"\r\nWalhook-Id: ", self.id] {
            out.extend_from_slice(part);
        }
        out.extend_from_slice(b"\r\nWalhook-Message-Id: ");
        out.extend_from_slice(message_id);
    }

    /// Appends the headers that tell where it comes from.
    pub fn write_origin(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\nWalhook-Op: ");
        out.extend_from_slice(self.op.as_bytes());
        out.extend_from_slice(b"\r\nWalhook-Epoch: ");
        out.extend_from_slice(itoa::Buffer::new().format(self.epoch).as_bytes());
    }
}

/// The two ends of an event's id, `<source>-<lsn>-<time>-<ordinal>-<webhook id>`.
fn source_and_webhook(id: &[u8]) -> (&[u8], &[u8]) {
    let mut dashes = memchr::memrchr_iter(b'-', id);
    let webhook_at = dashes.next().map_or(0, |dash| dash + 1);
    let source_end = dashes.nth(2).unwrap_or(0);
    (&id[..source_end], &id[webhook_at..])
}

/// What a message asks of the stream, at this attempt.
#[derive(Debug, Clone, Copy, Default)]
pub struct Front<'a> {
    /// Where its answer comes: the subject up to its last dot, the attempt and the message's index. `None`: nowhere.
    pub reply: Option<(&'a [u8], u8, u64)>,
    /// The stream's last sequence before it.
    pub expected: Option<u64>,
    /// The atomic batch that it belongs to.
    pub part: Option<Part<'a>>,
    /// It begins or ends a transaction that is not one batch.
    pub mark: Option<Mark>,
}

/// A message's part in an atomic batch (ADR-50, "JetStream Batch Publishing").
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// By which the batch is known while it is gathered: the last two tokens of this reply subject, and its number. Other attempts and
    /// other runs have others.
    pub id: (&'a [u8], u8, u64),
    /// Counted from 1.
    pub nth: u16,
    /// With it the batch is whole.
    pub is_last: bool,
}

/// See [`Front::mark`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Begin,
    End,
}

/// Where things lie in a message, in bytes from its beginning.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    pub subject: Range<usize>,
    pub header_at: usize,
    /// Where the front ends.
    front_end: usize,
    /// The longest that the front's headers may become.
    control_max: usize,
    pub body_at: usize,
    /// What of the body the history keeps.
    pub data: (usize, usize),
    /// There is room for what a batch needs.
    pub may_be_batched: bool,
}

const VERSION: &[u8] = b"NATS/1.0";
const EXPECTED: &[u8] = b"\r\nNats-Expected-Last-Sequence: ";
const BATCH_ID: &[u8] = b"\r\nNats-Batch-Id: ";
const BATCH_SEQUENCE: &[u8] = b"\r\nNats-Batch-Sequence: ";
const BATCH_SEQUENCE_DIGITS: usize = 4;
const BATCH_COMMIT: &[u8] = b"\r\nNats-Batch-Commit: 1";
const BEGIN: &[u8] = b"\r\nWalhook-Transaction: begin";
const END: &[u8] = b"\r\nWalhook-Transaction: end";

impl Front<'_> {
    /// Of its headers, from the version line on.
    fn headers_length(&self) -> usize {
        let part = self.part.map_or(0, |part| {
            let id = batch_prefix(part.id.0).len() + ATTEMPT_DIGITS + INDEX_DIGITS;
            let commit = if part.is_last { BATCH_COMMIT.len() } else { 0 };
            BATCH_ID.len() + id + BATCH_SEQUENCE.len() + BATCH_SEQUENCE_DIGITS + commit
        });
        let expected = self.expected.map_or(0, |_| EXPECTED.len() + SEQUENCE_DIGITS);
        VERSION.len() + expected + part + self.mark.map_or(0, |mark| mark.line().len())
    }

    fn length(&self, subject: usize) -> usize {
        let reply = self.reply.map_or(0, |(prefix, ..)| prefix.len() + ATTEMPT_DIGITS + INDEX_DIGITS + 1);
        let lengths = HEADER_LENGTH_DIGITS + 1 + TOTAL_LENGTH_DIGITS + CRLF.len();
        HPUB.len() + subject + 1 + reply + lengths + self.headers_length()
    }

    /// The longest that this one may become as a part of a batch: as its first or as its last message, with a mark.
    fn in_batches(&self) -> [Front<'_>; 2] {
        let part = |is_last| self.reply.map(|id| Part { id, nth: 1, is_last });
        let mark = Some(Mark::Begin);
        [
            Front { reply: None, part: part(false), mark, ..*self },
            Front { expected: None, part: part(true), mark, ..*self },
        ]
    }
}

impl Mark {
    fn line(self) -> &'static [u8] {
        match self {
            Mark::Begin => BEGIN,
            Mark::End => END,
        }
    }
}

/// Of a reply subject, up to its last dot, the last two tokens: the run's own part of it. A batch's id has 64 bytes at most.
fn batch_prefix(reply: &[u8]) -> &[u8] {
    let mut dots = memchr::memrchr_iter(b'.', reply);
    dots.nth(2).map_or(reply, |dot| &reply[dot + 1..])
}

/// How the last message of a lane that may not be in a batch began: most of those behind it differ in a few digits and in their
/// ids.
#[derive(Debug, Default)]
pub struct Template {
    /// Of the messages that it is good for.
    op: &'static str,
    epoch: u64,
    attempt: u8,
    /// The sequence that stands in `front`.
    expected: Option<u64>,
    /// Up to the line of the id; nothing where there is no template.
    front: Vec<u8>,
    /// From the id to what the event adds.
    behind_id: Vec<u8>,
    layout: Layout,
    /// Where the digits of the index and of the expected sequence are.
    index_at: usize,
    expected_at: usize,
}

impl Template {
    /// Notes what was written of a message: its front, and where its id ends.
    fn note(&mut self, head: &Head<'_>, front: &Front<'_>, layout: &Layout, written: &[u8], id_end: usize) {
        self.front.clear();
        let is_usual = front.mark.is_none() && front.part.is_none() && !layout.may_be_batched;
        let (Some((prefix, attempt, _)), None, true) = (front.reply, head.message_id, is_usual) else { return };
        (self.op, self.epoch, self.attempt) = (head.op, head.epoch, attempt);
        self.expected = front.expected;
        self.front.extend_from_slice(&written[..layout.front_end]);
        self.behind_id.clear();
        self.behind_id.extend_from_slice(&written[id_end..]);
        self.layout = layout.clone();
        self.index_at = layout.subject.end + b" ".len() + prefix.len() + ATTEMPT_DIGITS;
        self.expected_at = layout.header_at + VERSION.len() + EXPECTED.len();
    }

    /// Appends a message of that kind up to what the event adds; `None`: it is of another kind.
    #[inline]
    fn write(&mut self, head: &Head<'_>, front: &Front<'_>, may_be_batched: bool, out: &mut Vec<u8>) -> Option<Layout> {
        let (_, attempt, index) = front.reply?;
        let is_its = !self.front.is_empty()
            && !may_be_batched
            && head.message_id.is_none()
            && front.mark.is_none()
            && front.part.is_none()
            && (attempt, head.epoch, front.expected.is_some()) == (self.attempt, self.epoch, self.expected.is_some())
            && head.op == self.op
            && self.front[self.layout.subject.clone()] == *head.subject;
        if !is_its {
            return None;
        }
        set_hex(index, &mut self.front[self.index_at..][..INDEX_DIGITS]);
        if let (Some(expected), Some(before)) = (front.expected, self.expected) {
            let digits = &mut self.front[self.expected_at..][..SEQUENCE_DIGITS];
            if expected.checked_sub(1) == Some(before) {
                count_up(digits);
            } else {
                set_digits(expected, digits);
            }
            self.expected = Some(expected);
        }
        out.extend_from_slice(&self.front);
        head.write_ids(out);
        out.extend_from_slice(&self.behind_id);
        Some(self.layout.clone())
    }
}

/// Appends all of a message before its body, to go alone; `may_be_batched` makes room for what it may become. `stream` must
/// take it, where there is one; `more` appends headers of its own, a line break before each. Stream, reply subject and `template` are
/// those of its lane.
pub fn begin(
    head: &Head<'_>,
    stream: Option<&str>,
    front: &Front<'_>,
    may_be_batched: bool,
    template: &mut Template,
    more: impl FnOnce(&mut Vec<u8>),
    out: &mut Vec<u8>,
) -> Layout {
    let start = out.len();
    let mut layout = template.write(head, front, may_be_batched, out).unwrap_or_else(|| {
        let (layout, id_end) = begin_without_template(head, stream, front, may_be_batched, out);
        template.note(head, front, &layout, &out[start..], id_end);
        layout
    });
    more(out);
    out.extend_from_slice(b"\r\n\r\n");
    layout.body_at = out.len() - start;
    layout.data = (layout.body_at, layout.body_at);
    layout
}

/// Appends a message up to what the event adds. Returns also where its id ends.
fn begin_without_template(
    head: &Head<'_>,
    stream: Option<&str>,
    front: &Front<'_>,
    may_be_batched: bool,
    out: &mut Vec<u8>,
) -> (Layout, usize) {
    let start = out.len();
    let (mut room, mut control_max) = (front.length(head.subject.len()), front.headers_length());
    if may_be_batched {
        for batched in front.in_batches() {
            room = room.max(batched.length(head.subject.len()));
            control_max = control_max.max(batched.headers_length());
        }
    }
    out.extend_from_slice(HPUB);
    out.extend_from_slice(head.subject);
    out.resize(start + room, b' ');
    head.write_ids(out);
    let id_end = out.len() - start;
    if let Some(stream) = stream {
        out.extend_from_slice(b"\r\nNats-Expected-Stream: ");
        out.extend_from_slice(stream.as_bytes());
    }
    head.write_origin(out);
    let subject = HPUB.len()..HPUB.len() + head.subject.len();
    let mut layout =
        Layout { subject, header_at: 0, front_end: room, control_max, body_at: 0, data: (0, 0), may_be_batched };
    layout.set_front(front, &mut out[start..]);
    (layout, id_end)
}

impl Layout {
    /// Writes the front. The lengths are left to [`Layout::finish`].
    pub fn set_front(&mut self, front: &Front<'_>, message: &mut [u8]) {
        let at = self.front_end - front.length(self.subject.len()) + HPUB.len();
        message.copy_within(self.subject.clone(), at);
        self.subject = at..at + self.subject.len();
        message[HPUB.len()..at].fill(b' ');
        let mut out = &mut message[self.subject.end..self.front_end];
        put(&mut out, b" ");
        if let Some((prefix, attempt, index)) = front.reply {
            put(&mut out, prefix);
            put_token(&mut out, attempt, index);
            put(&mut out, b" ");
        }
        take(&mut out, HEADER_LENGTH_DIGITS + 1 + TOTAL_LENGTH_DIGITS).fill(b'0');
        put(&mut out, CRLF);
        self.header_at = self.front_end - out.len();
        put(&mut out, VERSION);
        if let Some(expected) = front.expected {
            put(&mut out, EXPECTED);
            set_digits(expected, take(&mut out, SEQUENCE_DIGITS));
        }
        if let Some(part) = front.part {
            let (prefix, attempt, index) = part.id;
            put(&mut out, BATCH_ID);
            put(&mut out, batch_prefix(prefix));
            put_token(&mut out, attempt, index);
            put(&mut out, BATCH_SEQUENCE);
            set_digits(part.nth.into(), take(&mut out, BATCH_SEQUENCE_DIGITS));
            if part.is_last {
                put(&mut out, BATCH_COMMIT);
            }
        }
        if let Some(mark) = front.mark {
            put(&mut out, mark.line());
        }
    }

    /// Writes the lengths into a message that is complete.
    pub fn finish(&self, message: &mut [u8]) {
        let header_length = self.body_at - self.header_at;
        assert!(header_length < 1_000_000, "subject, ids and stream names are short, other headers bounded");
        let total = message.len() - CRLF.len() - self.header_at;
        let total_at = self.header_at - CRLF.len() - TOTAL_LENGTH_DIGITS;
        let header_length_at = total_at - 1 - HEADER_LENGTH_DIGITS;
        set_digits(header_length as u64, &mut message[header_length_at..][..HEADER_LENGTH_DIGITS]);
        message[total_at - 1] = b' ';
        set_digits(total as u64, &mut message[total_at..][..TOTAL_LENGTH_DIGITS]);
    }

    /// The most that headers and body may come to, of a message that has `length` bytes up to the end of its body.
    pub fn total_max(&self, length: usize) -> usize {
        self.control_max + length - self.front_end
    }

    /// The same of the headers alone.
    pub fn header_max(&self) -> usize {
        self.control_max + self.body_at - self.front_end
    }
}

fn take<'m>(out: &mut &'m mut [u8], count: usize) -> &'m mut [u8] {
    let (taken, rest) = std::mem::take(out).split_at_mut(count);
    *out = rest;
    taken
}

fn put(out: &mut &mut [u8], bytes: &[u8]) {
    take(out, bytes.len()).copy_from_slice(bytes);
}

fn put_token(out: &mut &mut [u8], attempt: u8, index: u64) {
    set_token(attempt, index, take(out, ATTEMPT_DIGITS + INDEX_DIGITS));
}

/// Attempt and the low half of the index, as a reply's token has them.
pub fn token(token: &[u8]) -> Option<(u8, u32)> {
    let (attempt, index) = token.split_at_checked(ATTEMPT_DIGITS).filter(|(_, index)| index.len() == INDEX_DIGITS)?;
    Some((u8::try_from(parse_hex(attempt)?).ok()?, u32::try_from(parse_hex(index)?).ok()?))
}

fn set_token(attempt: u8, index: u64, out: &mut [u8]) {
    set_hex(attempt.into(), &mut out[..ATTEMPT_DIGITS]);
    set_hex(index, &mut out[ATTEMPT_DIGITS..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever came before it, a message begins as if it were the first.
    #[test]
    fn a_message_begins_the_same_with_the_template_of_the_one_before_and_without() {
        let kinds = |number: usize| {
            let pick = |shift: u32, count: usize| (number >> shift) % count;
            let head = Head {
                subject: [&b"s.a"[..], b"s.longer", b"s.b"][pick(0, 3)],
                id: [&b"src-00-9-0-1"[..], b"src-00-9-12-1"][pick(1, 2)],
                message_id: [None, None, None, Some(&b"mine"[..])][pick(2, 4)],
                op: ["insert", "update"][pick(4, 2)],
                epoch: [3, 3, 3, 44][pick(5, 4)],
            };
            let index = [0, 7, 0xFFFF_FFFF, 0x1_0000_0001][pick(3, 4)];
            let front = Front {
                reply: [Some((&b"_INBOX.i.0."[..], [0, 0, 7][pick(6, 3)], index)), None][pick(7, 5) / 4],
                // Some follow each other.
                expected: [Some(0), Some(u64::MAX), Some(12), Some(9), Some(10), Some(11), None][pick(8, 7)],
                part: None,
                mark: [None, None, Some(Mark::Begin)][pick(9, 3)],
            };
            (head, front, pick(10, 5) == 4, [&b""[..], b"\r\nX: 1"][pick(3, 2)])
        };
        let mut template = Template::default();
        let (mut written, mut by_template) = (Vec::new(), 0);
        for step in 0..40_000_usize {
            // Runs of one kind, and changes of each part of it.
            let number = (step / 3).wrapping_mul(0x9E37_79B9) >> 4;
            let (head, front, may_be_batched, more) =
                kinds(if step % 3 == 2 { number ^ 1 << (step % 11) } else { number });
            // As `set_front` has no room for a mark that was not foreseen.
            let front = Front { mark: front.mark.filter(|_| !may_be_batched), ..front };
            let mut fresh = Vec::from(&b"before"[..]);
            let stream = front.reply.map(|_| "S");
            let write = |template: &mut Template, out: &mut Vec<u8>| {
                let start = out.len();
                let layout =
                    begin(&head, stream, &front, may_be_batched, template, |out| out.extend_from_slice(more), out);
                out.extend_from_slice(b"{}\r\n");
                layout.finish(&mut out[start..]);
                format!("{layout:?}")
            };
            let layout = write(&mut Template::default(), &mut fresh);
            written.clear();
            written.extend_from_slice(b"before");
            by_template += usize::from(template.write(&head, &front, may_be_batched, &mut Vec::new()).is_some());
            assert_eq!(write(&mut template, &mut written), layout);
            assert_eq!(written, fresh, "{}", fresh.escape_ascii());
        }
        assert!(by_template > 1_000, "{by_template} messages were written by the template");
    }
}
