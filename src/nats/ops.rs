//! What a NATS server says, read off a buffer. Pure.
//!
//! In: the bytes at hand. Out: the first whole operation in them, borrowed, and its length; or that more bytes are needed.
//! Every length is checked and bounded, no bytes are copied, and nothing a server sends makes it panic. It refuses to
//! know sockets and what an operation means to us. (NATS client protocol, "Protocol messages".)

use std::{error::Error as StdError, fmt};

/// The longest line taken. INFO is the long one: it lists a cluster's addresses.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// The largest message taken, headers and payload: what a server can be told to allow at most.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One operation of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// The server about itself, as JSON; first of all, and again when its cluster changes or it is about to leave.
    Info(&'a [u8]),
    /// A message without headers, such as the ack of a publish.
    Msg {
        /// The subject it was published to.
        subject: &'a [u8],
        /// The subscription it answers.
        sid: u64,
        /// Where an answer would go.
        reply: Option<&'a [u8]>,
        /// Its body.
        payload: &'a [u8],
    },
    /// A message with headers, such as "no responders".
    Hmsg {
        /// The subject it was published to.
        subject: &'a [u8],
        /// The subscription it answers.
        sid: u64,
        /// Where an answer would go.
        reply: Option<&'a [u8]>,
        /// The header block with its version line and its empty line; see [`status`].
        headers: &'a [u8],
        /// Its body.
        payload: &'a [u8],
    },
    /// Are you there? To be answered by PONG.
    Ping,
    /// The answer to our PING: all we wrote before it has been taken in.
    Pong,
    /// Only in verbose mode, which we do not ask for.
    Ok,
    /// The server refuses something; see [`super::handshake::refusal`].
    Err(&'a str),
}

/// Bytes that the protocol does not allow.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the NATS server's bytes cannot be read: {}", self.0)
    }
}

impl StdError for Malformed {}

impl From<Malformed> for crate::error::Error {
    fn from(malformed: Malformed) -> Self {
        crate::error::Error::protocol(malformed.to_string()).hint("Is this a NATS client port?")
    }
}

/// The first operation in `buf` and how many bytes it takes; `None` while it is not whole.
pub fn parse(buf: &[u8]) -> Result<Option<(Op<'_>, usize)>, Malformed> {
    parse_within(buf, MESSAGE_BYTES_MAX)
}

/// The same, where no message may have more than `most` bytes, so that a server cannot make us hold more.
pub fn parse_within(buf: &[u8], most: usize) -> Result<Option<(Op<'_>, usize)>, Malformed> {
    let window = &buf[..buf.len().min(LINE_BYTES_MAX)];
    let Some(newline) = memchr::memchr(b'\n', window) else {
        return if window.len() == LINE_BYTES_MAX { Err(Malformed("a line without an end")) } else { Ok(None) };
    };
    let line = window[..newline].strip_suffix(b"\r").unwrap_or(&window[..newline]);
    let after = newline + 1;
    if let Some((subject, sid, total)) = plain_message(line)
        && total <= most
        && let Some((payload, [b'\r', b'\n', ..])) = buf[after..].split_at_checked(total)
    {
        return Ok(Some((Op::Msg { subject, sid, reply: None, payload }, after + total + 2)));
    }
    let (verb, arguments) = match line.iter().position(|byte| matches!(byte, b' ' | b'\t')) {
        Some(space) => (&line[..space], &line[space + 1..]),
        None => (line, &[][..]),
    };
    let op = match verb {
        b"MSG" => return message(arguments, &buf[after..], after, false, most),
        b"HMSG" => return message(arguments, &buf[after..], after, true, most),
        b"PING" => Op::Ping,
        b"PONG" => Op::Pong,
        b"+OK" => Op::Ok,
        b"INFO" => Op::Info(arguments),
        b"-ERR" => Op::Err(text(arguments)),
        _ => return Err(Malformed("an unknown operation")),
    };
    Ok(Some((op, after)))
}

/// `MSG subject sid bytes` with single spaces, as nats-server writes each ack, thousands a second; `None`: it is to be read by
/// [`message`], which takes all that the protocol allows.
#[inline]
fn plain_message(line: &[u8]) -> Option<(&[u8], u64, usize)> {
    let (rest, total) = number_at_end(line.strip_prefix(b"MSG ")?)?;
    let (subject, sid) = number_at_end(rest)?;
    let is_one_word = !subject.is_empty() && memchr::memchr2(b' ', b'\t', subject).is_none();
    is_one_word.then_some((subject, sid, usize::try_from(total).ok()?))
}

/// The number of one to nine digits at the end, and what comes before it and one space.
#[inline]
fn number_at_end(text: &[u8]) -> Option<(&[u8], u64)> {
    let (mut rest, mut number, mut worth) = (text, 0, 1);
    while let [before @ .., last] = rest {
        let digit = last.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        number += u64::from(digit) * worth;
        worth *= 10;
        if worth > 1_000_000_000 {
            return None;
        }
        rest = before;
    }
    (worth > 1).then_some((rest.strip_suffix(b" ")?, number))
}

/// `MSG subject sid [reply] bytes` or `HMSG subject sid [reply] header-bytes total-bytes`, then so many bytes and CRLF.
fn message<'a>(
    arguments: &'a [u8],
    body: &'a [u8],
    before: usize,
    with_headers: bool,
    most: usize,
) -> Result<Option<(Op<'a>, usize)>, Malformed> {
    const WRONG: Malformed = Malformed("a message line with the wrong number of words");
    let mut words = arguments.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    let subject = words.next().ok_or(WRONG)?;
    let sid = words.next().ok_or(WRONG)?;
    let mut rest = [&[][..]; 3];
    let mut count = 0;
    for word in words {
        *rest.get_mut(count).ok_or(WRONG)? = word;
        count += 1;
    }
    let (reply, header_bytes, total_bytes) = match (with_headers, count) {
        (false, 1) => (None, None, rest[0]),
        (false, 2) => (Some(rest[0]), None, rest[1]),
        (true, 2) => (None, Some(rest[0]), rest[1]),
        (true, 3) => (Some(rest[0]), Some(rest[1]), rest[2]),
        _ => return Err(WRONG),
    };
    let sid = number(sid)?;
    let total = length(total_bytes, most)?;
    let header_length = header_bytes.map(|bytes| length(bytes, most)).transpose()?.unwrap_or(0);
    if header_length > total {
        return Err(Malformed("headers longer than their message"));
    }
    let Some(end) = body.get(total..total + 2) else { return Ok(None) };
    if end != b"\r\n" {
        return Err(Malformed("a message that does not end where it should"));
    }
    let (headers, payload) = body[..total].split_at(header_length);
    let op = match with_headers {
        true => Op::Hmsg { subject, sid, reply, headers, payload },
        false => Op::Msg { subject, sid, reply, payload },
    };
    Ok(Some((op, before + total + 2)))
}

fn length(digits: &[u8], most: usize) -> Result<usize, Malformed> {
    usize::try_from(number(digits)?)
        .ok()
        .filter(|length| *length <= most)
        .ok_or(Malformed("a message larger than there can be here"))
}

fn number(digits: &[u8]) -> Result<u64, Malformed> {
    const WRONG: Malformed = Malformed("a number expected");
    if digits.is_empty() {
        return Err(WRONG);
    }
    digits.iter().try_fold(0u64, |sum, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10).ok_or(WRONG)?;
        sum.checked_mul(10).and_then(|sum| sum.checked_add(digit.into())).ok_or(WRONG)
    })
}

/// The words of an -ERR, without their quotes.
fn text(arguments: &[u8]) -> &str {
    std::str::from_utf8(arguments).map_or("(unreadable)", |text| text.trim().trim_matches('\''))
}

/// The status of a header block: 503 when nobody listens on the subject. `None` for plain headers.
pub fn status(headers: &[u8]) -> Option<u16> {
    let digits = headers.strip_prefix(b"NATS/1.0 ")?.get(..3)?;
    number(digits).ok().and_then(|status| u16::try_from(status).ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLES: [&[u8]; 9] = [
        b"INFO {\"server_id\":\"N\"}\r\n",
        b"PING\r\n",
        b"PONG\r\n",
        b"+OK\r\n",
        b"-ERR 'Authorization Violation'\r\n",
        b"MSG _INBOX.a.17 1 33\r\n{\"stream\":\"WEBHOOKS\", \"seq\":1042}\r\n",
        b"MSG a.b 9 reply.to 0\r\n\r\n",
        b"HMSG _INBOX.a.18 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
        b"HMSG a 1 r 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n",
    ];

    fn whole(bytes: &[u8]) -> Op<'_> {
        let (op, length) = parse(bytes).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        op
    }

    #[test]
    fn each_operation_is_read_as_the_server_writes_it() {
        assert_eq!(whole(SAMPLES[0]), Op::Info(b"{\"server_id\":\"N\"}"));
        assert_eq!(whole(SAMPLES[4]), Op::Err("Authorization Violation"));
        assert_eq!(whole(b"MSG s 7 2\r\nhi\r\n"), Op::Msg { subject: b"s", sid: 7, reply: None, payload: b"hi" });
        assert_eq!(whole(SAMPLES[6]), Op::Msg { subject: b"a.b", sid: 9, reply: Some(b"reply.to"), payload: b"" });
        let Op::Hmsg { headers, payload, reply, .. } = whole(SAMPLES[8]) else { panic!() };
        assert_eq!((headers, payload, reply), (&b"NATS/1.0\r\nA: b\r\n\r\n"[..], &b"hi"[..], Some(&b"r"[..])));
        let Op::Hmsg { headers, .. } = whole(SAMPLES[7]) else { panic!() };
        assert_eq!(status(headers), Some(503));
        assert_eq!(status(b"NATS/1.0\r\nA: b\r\n\r\n"), None);
    }

    #[test]
    fn a_part_of_an_operation_asks_for_more() {
        for sample in SAMPLES {
            for end in 0..sample.len() {
                assert_eq!(parse(&sample[..end]), Ok(None), "{:?}", sample[..end].escape_ascii().to_string());
            }
        }
    }

    #[test]
    fn what_the_protocol_does_not_allow_is_refused() {
        for wrong in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"\r\n",
            b"MSG a 1\r\n",
            b"MSG a 1 b 2 c 3\r\n",
            b"MSG a x 1\r\n",
            b"MSG a 1 -1\r\n",
            b"MSG a 1 99999999999999999999999\r\n",
            b"MSG a 1 67108865\r\n",
            b"MSG a 1 1\r\nab\r\n",
            b"HMSG a 1 9 8\r\n12345678\r\n",
        ] {
            assert!(parse(wrong).is_err(), "{}", wrong.escape_ascii());
        }
        assert_eq!(plain_message(b"MSG a.b 12 345"), Some((&b"a.b"[..], 12, 345)));
        for long in
            ["MSG a 1 r 2", "MSG a  1 2", "MSG a\tb 1 2", "MSG a 1 1234567890", "MSG  1 2", "MSG 1 2", "MSG a 1 2 "]
        {
            assert_eq!(plain_message(long.as_bytes()), None, "{long}");
        }
        assert!(parse(&vec![b'I'; LINE_BYTES_MAX]).is_err());
        assert!(parse_within(b"MSG a 1 2\r\n", 1).is_err() && parse_within(b"MSG a 1 1\r\n", 1) == Ok(None));
    }

    proptest! {
        #[test]
        fn mutated_bytes_give_an_operation_or_an_error_and_never_more_than_there_is(
            picks in prop::collection::vec(0..SAMPLES.len(), 1..4),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes: Vec<u8> = picks.iter().flat_map(|pick| SAMPLES[*pick]).copied().collect();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            for line in bytes.split(|byte| *byte == b'\n') {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                let Some((subject, sid, total)) = plain_message(line).filter(|(.., total)| *total < 1000) else { continue };
                let body = [vec![b'.'; total], b"\r\n".to_vec()].concat();
                let op = Op::Msg { subject, sid, reply: None, payload: &body[..total] };
                let by_the_long_way = message(&line[b"MSG ".len()..], &body, 0, false, MESSAGE_BYTES_MAX);
                prop_assert_eq!(by_the_long_way, Ok(Some((op, total + 2))));
            }
            let mut rest = &bytes[..];
            while let Ok(Some((_, length))) = parse(rest) {
                prop_assert!(length > 0 && length <= rest.len());
                rest = &rest[length..];
            }
        }

        #[test]
        fn any_bytes_at_all_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = status(&bytes);
        }
    }
}
