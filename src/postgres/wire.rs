//! The frames of PostgreSQL's protocol on a socket.
//!
//! From the socket come the server's frames: a tag, a length, a body (manual, section 55.7). Lengths are foreign:
//! each is checked, and memory grows only as bytes arrive. What a frame means is not known here.

use std::{
    fmt, io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{
    ServerError,
    dial::{Dialled, Socket},
    tls,
};
use crate::error::{Error, Result};

/// The capacity of the read buffer between large messages: the read system calls of a busy stream are few, and the
/// processor's cache still holds it.
const INBOX_BYTES: usize = 256 * 1024;
/// PostgreSQL cannot make a message larger than its allocation limit of 1 GiB; the rest is for headers.
const FRAME_BYTES_MAX: usize = (1 << 30) + 1024;
/// Until the stream begins: what a server says before it has proved who it is, and its answers to commands, are short.
const EARLY_FRAME_BYTES_MAX: usize = 256 * 1024;
/// Tag and length.
const HEADER_BYTES: usize = 5;

/// Bytes read and not yet consumed, and the frames in them.
pub(super) struct Inbox {
    /// All of it initialized; `start..end` holds what was read.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The largest frame that is taken.
    most: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Inbox { bytes: vec![0; INBOX_BYTES], start: 0, end: 0, most: EARLY_FRAME_BYTES_MAX }
    }

    /// From here on rows come, of any size that PostgreSQL can make.
    pub(super) fn expect_rows(&mut self) {
        self.most = FRAME_BYTES_MAX;
    }

    /// The tag and the place of the body of the next whole frame, consumed; `None`: more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<(u8, Range<usize>)>> {
        let Some(frame_bytes) = self.frame_bytes()? else { return Ok(None) };
        if frame_bytes > self.end - self.start {
            return Ok(None);
        }
        let tag = self.bytes[self.start];
        let body = self.start + HEADER_BYTES..self.start + frame_bytes;
        self.start += frame_bytes;
        Ok(Some((tag, body)))
    }

    /// A body that [`next`](Self::next) has told of; it stays until more is read.
    pub(super) fn body(&self, place: Range<usize>) -> &[u8] {
        &self.bytes[place]
    }

    /// The size of the frame at the front, header included, once its header is here.
    fn frame_bytes(&self) -> Result<Option<usize>> {
        let [tag, a, b, c, d, ..] = self.bytes[self.start..self.end] else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]);
        // The length counts itself but not the tag.
        match usize::try_from(length) {
            Ok(length) if (4..self.most).contains(&length) => Ok(Some(length + 1)),
            _ => Err(Error::protocol(format!("a frame with tag {tag:#04x} claims a length of {length} bytes"))
                .hint("check host and port: this may not be a PostgreSQL server")),
        }
    }

    /// Room to read into; empty only while a whole frame waits to be consumed and the buffer is full.
    fn room(&mut self) -> Result<&mut [u8]> {
        let held = self.end - self.start;
        let frame_bytes = self.frame_bytes()?;
        if held == 0 {
            (self.start, self.end) = (0, 0);
        }
        if self.bytes.len() > INBOX_BYTES && held.max(frame_bytes.unwrap_or(0)) <= INBOX_BYTES / 2 {
            let mut small = vec![0; INBOX_BYTES];
            small[..held].copy_from_slice(&self.bytes[self.start..self.end]);
            (self.bytes, self.start, self.end) = (small, 0, held);
        }
        let fits = frame_bytes.is_some_and(|bytes| self.start + bytes <= self.bytes.len());
        if self.bytes.len() - self.end < self.bytes.len() / 4 && !fits && frame_bytes.is_none_or(|bytes| bytes > held) {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, held);
            // Still tight: one frame fills it. Twice the bytes at hand, whatever length was announced, and never more than that
            // frame and what is read behind it.
            if self.bytes.len() - held < self.bytes.len() / 4 {
                let double = self.bytes.len() * 2;
                let enough = frame_bytes.map_or(double, |bytes| (bytes + INBOX_BYTES / 4).min(double));
                if enough > self.bytes.len() {
                    self.bytes.reserve_exact(enough - self.bytes.len());
                    self.bytes.resize(enough, 0);
                }
            }
        }
        Ok(&mut self.bytes[self.end..])
    }
}

/// Bytes to send that may wait for the socket; above this a status update is dropped, as the next one says the same.
const OUTBOX_BYTES_MAX: usize = 16 * 1024;

/// A socket with its two buffers.
pub(super) struct Wire {
    socket: Socket,
    pub(super) inbox: Inbox,
    pub(super) outbox: BytesMut,
    /// Whether TLS may hold bytes that have left the outbox and not yet the process.
    unflushed: bool,
    target: String,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(dialled: Dialled) -> Self {
        Wire {
            socket: dialled.socket,
            inbox: Inbox::new(),
            outbox: BytesMut::new(),
            unflushed: false,
            target: dialled.target,
        }
    }

    pub(super) fn target(&self) -> &str {
        &self.target
    }

    pub(super) fn end_point_hash(&self) -> Option<Vec<u8>> {
        self.socket.end_point_hash()
    }

    /// Whether so much waits to be sent already that more must not be added.
    pub(super) fn is_clogged(&self) -> bool {
        self.outbox.len() > OUTBOX_BYTES_MAX
    }

    /// Sends what waits, as far as the socket takes it. Ready when nothing is left.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while !self.outbox.is_empty() {
            match Pin::new(&mut self.socket).poll_write(cx, &self.outbox) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.lost("write", io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(sent)) => {
                    self.outbox.advance(sent);
                    self.unflushed = true;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(self.lost("write", e))),
            }
        }
        if !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut self.socket).poll_flush(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                self.unflushed = false;
                self.outbox.clear();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(self.lost("write", e))),
        }
    }

    /// Reads all that the socket has and the buffer takes. Ready when something came, or nothing fits.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut got = false;
        loop {
            let room = match self.inbox.room() {
                Ok([]) => return Poll::Ready(Ok(())),
                Ok(room) => room,
                Err(e) => return Poll::Ready(Err(e)),
            };
            let mut buf = ReadBuf::new(room);
            // After a read that did not fill the buffer tokio knows the socket is empty and asks the system no more.
            match Pin::new(&mut self.socket).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.inbox.end += buf.filled().len();
                    got = true;
                }
                // What came before the end is looked at first: it may be the server's reason.
                Poll::Pending | Poll::Ready(_) if got => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => return Poll::Ready(Err(self.lost("read", io::ErrorKind::UnexpectedEof.into()))),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(self.lost("read", e))),
            }
        }
    }

    fn lost(&self, what: &str, e: io::Error) -> Error {
        if e.kind() == io::ErrorKind::UnexpectedEof {
            return Error::unavailable(format!(
                "{what} from PostgreSQL at {}: the server closed the connection",
                self.target
            ));
        }
        tls::io_error(format!("{what} on the connection to PostgreSQL at {}", self.target), e)
    }

    async fn flush(&mut self) -> Result<()> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Sends what waits and reads what comes; ready when something came. Neither waits for the other.
    pub(super) fn poll_exchange(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self.poll_flush(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            _ => self.poll_fill(cx),
        }
    }

    /// Sends what waits and reads the next frame.
    pub(super) async fn frame(&mut self) -> Result<(u8, Range<usize>)> {
        loop {
            if let Some(frame) = self.inbox.next()? {
                return Ok(frame);
            }
            std::future::poll_fn(|cx| self.poll_exchange(cx)).await?;
        }
    }

    /// The next frame that is an answer: notices, reports of parameters and notifications are passed over.
    pub(super) async fn reply(&mut self) -> Result<(u8, Range<usize>)> {
        loop {
            let (tag, body) = self.frame().await?;
            if !is_aside(tag) {
                return Ok((tag, body));
            }
        }
    }

    /// Says good-bye and closes.
    pub(super) async fn terminate(mut self) -> Result<()> {
        postgres_protocol::message::frontend::terminate(&mut self.outbox);
        self.flush().await?;
        self.socket.shutdown().await.map_err(|e| self.lost("close", e))
    }
}

/// NoticeResponse, ParameterStatus and NotificationResponse may come between any two frames.
pub(super) fn is_aside(tag: u8) -> bool {
    matches!(tag, b'N' | b'S' | b'A')
}

/// A cursor over a frame's body; running out of bytes is the server's mistake.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(body: &'a [u8], message: &'static str) -> Self {
        Fields { rest: body, message }
    }

    pub(super) fn short(&self) -> Error {
        Error::protocol(format!("PostgreSQL's {} message is cut short", self.message))
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?[0])
    }

    pub(super) fn i16(&mut self) -> Result<i16> {
        let bytes = self.bytes(2)?;
        Ok(i16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(super) fn i32(&mut self) -> Result<i32> {
        let bytes = self.bytes(4)?;
        Ok(i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Up to a NUL byte. Before the session's encoding is settled a message may be in any; what is not UTF-8 is
    /// replaced.
    pub(super) fn text(&mut self) -> Result<String> {
        let end = memchr::memchr(0, self.rest).ok_or_else(|| self.short())?;
        let text = String::from_utf8_lossy(&self.rest[..end]).into_owned();
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// An ErrorResponse (manual, section 55.8).
pub(super) fn parse_error(body: &[u8]) -> Result<ServerError> {
    let mut fields = Fields::new(body, "ErrorResponse");
    let mut error = ServerError::default();
    loop {
        match fields.u8()? {
            0 => return Ok(error),
            b'C' => error.sqlstate = fields.text()?,
            b'M' => error.message = fields.text()?,
            b'D' => error.detail = Some(fields.text()?),
            b'H' => error.hint = Some(fields.text()?),
            _ => drop(fields.text()?),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::error::Kind;

    /// What a socket does: fills the room, at most `bytes.len()`.
    /// As it is once the stream has begun.
    fn rows_inbox() -> Inbox {
        let mut inbox = Inbox::new();
        inbox.expect_rows();
        inbox
    }

    #[test]
    fn before_the_stream_begins_no_frame_is_large() {
        let mut inbox = Inbox::new();
        fill(&mut inbox, &framed(b'R', &[0; 2000]));
        assert!(inbox.next().unwrap().is_some());
        fill(&mut inbox, &[b'E', 0x00, 0x10, 0x00, 0x00]);
        let error = inbox.next().unwrap_err();
        assert!(error.to_string().contains("1048576 bytes"), "{error}");
        let mut inbox = rows_inbox();
        fill(&mut inbox, &[b'd', 0x00, 0x10, 0x00, 0x00]);
        assert!(inbox.next().unwrap().is_none());
    }

    #[test]
    fn a_large_frame_takes_hardly_more_room_than_it_has_bytes() {
        let (mut inbox, frame) = (rows_inbox(), framed(b'd', &vec![7; 3 << 20]));
        let mut rest = &frame[..];
        while !rest.is_empty() {
            rest = fill(&mut inbox, rest);
        }
        assert!(inbox.bytes.len() <= frame.len() + INBOX_BYTES, "{}", inbox.bytes.len());
        assert!(inbox.next().unwrap().is_some());
    }

    fn fill<'a>(inbox: &mut Inbox, bytes: &'a [u8]) -> &'a [u8] {
        let room = inbox.room().unwrap();
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        inbox.end += count;
        &bytes[count..]
    }

    fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag], length.to_be_bytes().as_slice(), body].concat()
    }

    fn drain(inbox: &mut Inbox, frames: &mut Vec<(u8, Vec<u8>)>) {
        while let Some((tag, place)) = inbox.next().unwrap() {
            frames.push((tag, inbox.body(place).to_vec()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_come_out_as_they_went_in_however_the_bytes_arrive(
            frames in vec((any::<u8>(), prop_oneof![9 => 0..500usize, 1 => 0..900_000usize]), 1..40),
            chunks in vec(1..400_000usize, 1..20),
        ) {
            let frames: Vec<(u8, Vec<u8>)> =
                frames.into_iter().map(|(tag, length)| (tag, vec![tag.wrapping_add(1); length])).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(|(tag, body)| framed(*tag, body)).collect();
            let (mut inbox, mut out, mut sizes) = (rows_inbox(), Vec::new(), chunks.iter().cycle());
            let mut rest = bytes.as_slice();
            let mut held = 0;
            while !rest.is_empty() {
                let mut chunk;
                (chunk, rest) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                while !chunk.is_empty() {
                    chunk = fill(&mut inbox, chunk);
                    held = held.max(inbox.end - inbox.start);
                    prop_assert!(inbox.bytes.len() <= INBOX_BYTES.max(4 * held), "{} for {held}", inbox.bytes.len());
                    drain(&mut inbox, &mut out);
                }
            }
            prop_assert_eq!(out, frames);
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_waited_for_but_never_a_panic(bytes in vec(any::<u8>(), 0..300)) {
            let mut inbox = rows_inbox();
            fill(&mut inbox, &bytes);
            while let Ok(Some((_, place))) = inbox.next() {
                let _ = parse_error(inbox.body(place));
            }
            let _ = parse_error(&bytes);
        }
    }

    #[test]
    fn a_frame_that_announces_a_gigabyte_gets_no_memory_before_its_bytes_come() {
        let mut inbox = rows_inbox();
        fill(&mut inbox, &[b'd', 0x3F, 0xFF, 0xFF, 0xFF, 1, 2, 3]);
        assert_eq!(inbox.next().unwrap(), None);
        inbox.room().unwrap();
        assert_eq!(inbox.bytes.len(), INBOX_BYTES);
    }

    #[test]
    fn the_buffer_shrinks_after_a_large_frame() {
        let mut inbox = rows_inbox();
        let large = framed(b'd', &vec![7; 8 * INBOX_BYTES]);
        let mut rest = large.as_slice();
        while !rest.is_empty() {
            rest = fill(&mut inbox, rest);
        }
        assert!(inbox.bytes.len() > 8 * INBOX_BYTES);
        drain(&mut inbox, &mut Vec::new());
        inbox.room().unwrap();
        assert_eq!(inbox.bytes.len(), INBOX_BYTES);
    }

    #[test]
    fn a_full_buffer_of_unconsumed_frames_takes_no_more() {
        let mut inbox = rows_inbox();
        let frames = framed(b'd', &[0; 1019]).repeat(300); // 1024 bytes each, 256 fill it
        let rest = fill(&mut inbox, &frames);
        assert_eq!(frames.len() - rest.len(), INBOX_BYTES);
        assert!(inbox.room().unwrap().is_empty());
        drain(&mut inbox, &mut Vec::new());
        assert_eq!(inbox.room().unwrap().len(), INBOX_BYTES);
    }

    #[test]
    fn an_impossible_length_is_an_error() {
        for length in [0u32, 3, 0x4000_0400, 0x8000_0000, u32::MAX] {
            let mut inbox = rows_inbox();
            fill(&mut inbox, &[b"d", length.to_be_bytes().as_slice()].concat());
            let error = inbox.next().unwrap_err();
            assert_eq!(error.kind(), Kind::Protocol, "{length}: {error}");
        }
    }

    #[test]
    fn an_error_message_is_passed_on_whole() {
        let error = parse_error(b"SFATAL\0C28P01\0Mno\xff entry\0Dthe detail\0Htry this\0\0").unwrap();
        assert_eq!(error.to_string(), "no\u{fffd} entry (SQLSTATE 28P01); the detail; try this");
        assert!(parse_error(b"SFATAL\0C28P01\0Mno").is_err());
    }
}
