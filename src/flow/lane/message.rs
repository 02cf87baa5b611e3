//! A message as it lies in the spool: a whole `HPUB` (NATS client protocol), written once.
//!
//! Two places in it depend on the attempt and are therefore of fixed width, to be patched where they lie: the attempt's
//! number in the reply subject, so that an answer to an earlier attempt is told apart, and the stream sequence expected in
//! strict ordering. The lengths are known last and have a fixed width as well.

/// Behind `HPUB `.
pub const SUBJECT_AT: usize = 5;
pub const ATTEMPT_DIGITS: usize = 2;
pub const INDEX_DIGITS: usize = 8;
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
    /// The caller's own message id, which takes its place in deduplication; has no control characters.
    pub message_id: Option<&'a [u8]>,
    /// The word for the operation.
    pub op: &'static str,
    /// The run that publishes it.
    pub epoch: u64,
}

impl Head<'_> {
    /// Appends the headers by which the event is known.
    pub fn write_ids(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\nNats-Msg-Id: ");
        out.extend_from_slice(self.message_id.unwrap_or(self.id));
        if self.message_id.is_some() {
            out.extend_from_slice(b"\r\nWalhook-Id: ");
            out.extend_from_slice(self.id);
        }
    }

    /// Appends the headers that tell where it comes from.
    pub fn write_origin(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\nWalhook-Op: ");
        out.extend_from_slice(self.op.as_bytes());
        out.extend_from_slice(b"\r\nWalhook-Epoch: ");
        out.extend_from_slice(itoa::Buffer::new().format(self.epoch).as_bytes());
    }
}

/// Where a message goes, and what it asks of the stream there.
pub struct Route<'a> {
    /// The stream that must take it; `None` in core NATS.
    pub stream: Option<&'a str>,
    /// Where its answer comes: the subject up to its last dot, the attempt and the message's index. `None`: nowhere.
    pub reply: Option<(&'a [u8], u8, u64)>,
    /// The stream's last sequence before it.
    pub expected: Option<u64>,
}

/// Where things lie in a message, in bytes from its beginning.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub subject_end: usize,
    /// Nobody answers a message of core NATS.
    attempt_at: Option<usize>,
    expected_at: Option<usize>,
    pub header_at: usize,
    pub body_at: usize,
    /// What of the body the history keeps.
    pub data: (usize, usize),
}

/// Appends all of a message before its body; `more` appends headers of its own, a line break before each.
pub fn begin(head: &Head<'_>, route: &Route<'_>, more: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) -> Layout {
    let start = out.len();
    out.extend_from_slice(b"HPUB ");
    out.extend_from_slice(head.subject);
    let subject_end = out.len() - start;
    out.push(b' ');
    let attempt_at = route.reply.map(|(prefix, attempt, index)| {
        out.extend_from_slice(prefix);
        let at = out.len();
        out.resize(at + ATTEMPT_DIGITS + INDEX_DIGITS, b'0');
        set_token(attempt, index, &mut out[at..]);
        out.push(b' ');
        at - start
    });
    out.resize(out.len() + HEADER_LENGTH_DIGITS, b'0');
    out.push(b' ');
    out.resize(out.len() + TOTAL_LENGTH_DIGITS, b'0');
    out.extend_from_slice(CRLF);
    let header_at = out.len() - start;
    out.extend_from_slice(b"NATS/1.0");
    head.write_ids(out);
    if let Some(stream) = route.stream {
        out.extend_from_slice(b"\r\nNats-Expected-Stream: ");
        out.extend_from_slice(stream.as_bytes());
    }
    let expected_at = route.expected.map(|expected| {
        out.extend_from_slice(b"\r\nNats-Expected-Last-Sequence: ");
        let at = out.len();
        out.resize(at + SEQUENCE_DIGITS, b'0');
        set_digits(expected, &mut out[at..]);
        at - start
    });
    head.write_origin(out);
    more(out);
    out.extend_from_slice(b"\r\n\r\n");
    let body_at = out.len() - start;
    Layout { subject_end, attempt_at, header_at, expected_at, body_at, data: (body_at, body_at) }
}

impl Layout {
    /// Writes the lengths into a message that is complete.
    pub fn finish(&self, message: &mut [u8]) {
        let header_length = self.body_at - self.header_at;
        assert!(header_length < 1_000_000, "subject, ids and stream names are short, other headers bounded");
        let total = message.len() - CRLF.len() - self.header_at;
        let total_at = self.header_at - CRLF.len() - TOTAL_LENGTH_DIGITS;
        let header_length_at = total_at - 1 - HEADER_LENGTH_DIGITS;
        set_digits(header_length as u64, &mut message[header_length_at..][..HEADER_LENGTH_DIGITS]);
        set_digits(total as u64, &mut message[total_at..][..TOTAL_LENGTH_DIGITS]);
    }

    /// Says in a message which attempt it is, and its index in the lane.
    pub fn set_attempt(&self, attempt: u8, index: u64, message: &mut [u8]) {
        if let Some(at) = self.attempt_at {
            set_token(attempt, index, &mut message[at..][..ATTEMPT_DIGITS + INDEX_DIGITS]);
        }
    }

    /// Says in a message which last sequence it expects.
    pub fn set_expected(&self, expected: u64, message: &mut [u8]) {
        if let Some(at) = self.expected_at {
            set_digits(expected, &mut message[at..][..SEQUENCE_DIGITS]);
        }
    }
}

fn set_token(attempt: u8, index: u64, out: &mut [u8]) {
    set_hex(attempt.into(), &mut out[..ATTEMPT_DIGITS]);
    set_hex(index, &mut out[ATTEMPT_DIGITS..]);
}

/// Fills `out` with the low digits of a number.
fn set_hex(value: u64, out: &mut [u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut rest = value;
    for digit in out.iter_mut().rev() {
        *digit = HEX[usize::try_from(rest & 15).expect("four bits")];
        rest >>= 4;
    }
}

/// Fills `out` with a number and leading zeros.
fn set_digits(value: u64, out: &mut [u8]) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(value).as_bytes();
    let zeros = out.len() - text.len();
    out[..zeros].fill(b'0');
    out[zeros..].copy_from_slice(text);
}
