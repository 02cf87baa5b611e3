//! A publishing connection: whole messages go out as they lie in the send buffer, acks come in on one wildcard
//! subject.
//!
//! Comes in: bytes of `HPUB` commands, in order. Goes out: acks with the last token of their reply subject. Thinner
//! than a client's publish (no future, inbox or lock per message), since on the cores that are shared with PostgreSQL
//! and nats-server every microsecond per event is taken from them. What the messages are is not known here.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::timeout,
};

use super::{
    ack::Ack,
    handshake::{self, Io, ServerInfo},
    ops::{self, Op},
    settings::Settings,
};
use crate::error::{Error, Result};

/// Acks are about 100 bytes, so this holds several hundred.
const READ_BYTES: usize = 64 * 1024;
/// For the subscription's confirmation.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module.
pub struct Publisher {
    io: Io,
    info: ServerInfo,
    target: String,
    /// Zeroed once: `ReadBuf` over initialised memory needs no `unsafe`. The bytes in `unread` are to be parsed.
    read: Vec<u8>,
    unread: std::ops::Range<usize>,
    /// What was written last ended with a whole message.
    is_between: bool,
    /// The server asked; the answer has to wait for the end of a message.
    owes_pong: bool,
    /// What of a PONG is still to be written.
    control: &'static [u8],
}

/// An ack and the last token of the subject it came on.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Tells which message it is about.
    pub token: &'a [u8],
    /// What became of it.
    pub ack: Ack,
}

impl Publisher {
    /// Connects, and subscribes to `<inbox>.*` for the acks.
    ///
    /// # Errors
    /// As [`handshake::open`]; or we may not subscribe there.
    pub async fn open(settings: &Settings, inbox: &str) -> Result<Publisher> {
        let opened = handshake::open(settings).await?;
        let target = opened.server.to_string();
        let mut publisher = Publisher {
            io: opened.io,
            info: opened.info,
            target,
            unread: 0..opened.leftover.len(),
            read: opened.leftover.into(),
            is_between: true,
            owes_pong: false,
            control: b"",
        };
        match timeout(SUBSCRIBE_TIMEOUT, publisher.subscribe(inbox)).await {
            Ok(subscribed) => subscribed.map(|()| publisher),
            Err(_) => Err(Error::unavailable(format!("subscribe to {inbox}.* at {}: no answer", publisher.target))),
        }
    }

    async fn subscribe(&mut self, inbox: &str) -> Result<()> {
        let attempted = format!("subscribe to {inbox}.* at {}", self.target);
        let lost = |error: io::Error| Error::unavailable(&attempted).caused_by(error);
        let command = format!("SUB {inbox}.* 1\r\nPING\r\n");
        self.io.write_all(command.as_bytes()).await.map_err(lost)?;
        self.io.flush().await.map_err(lost)?;
        loop {
            while let Some((op, length)) = ops::parse(&self.read[self.unread.clone()])? {
                let is_confirmed = match op {
                    Op::Pong => true,
                    Op::Err(text) => return Err(handshake::refusal(text).context(attempted)),
                    op => {
                        self.owes_pong |= op == Op::Ping;
                        false
                    }
                };
                self.unread.start += length;
                if is_confirmed {
                    return Ok(());
                }
            }
            poll_fn(|cx| self.poll_read(cx)).await.map_err(|error| error.context(&attempted))?;
        }
    }

    /// What the server said of itself when we connected.
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    /// `host:port`
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Whether a message may begin here: not where an earlier one was cut off, for the server still waits for its rest.
    pub fn is_between(&self) -> bool {
        self.is_between
    }

    /// Says whether what was written so far ends with a whole message.
    pub fn set_between(&mut self, is_between: bool) {
        self.is_between = is_between;
    }

    /// Writes some of `bytes`, the next of the messages. Between two of them an answer to the server's PING comes first.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        ready!(self.poll_control(cx))?;
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes)).map_err(|error| self.lost(error))?;
        if written == 0 {
            return Poll::Ready(Err(self.lost(io::ErrorKind::WriteZero.into())));
        }
        Poll::Ready(Ok(written))
    }

    /// Writes what is owed besides messages, and pushes all out.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_control(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx)).map_err(|error| self.lost(error))?;
        Poll::Ready(Ok(()))
    }

    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.is_between && self.control.is_empty() && std::mem::take(&mut self.owes_pong) {
            self.control = b"PONG\r\n";
        }
        while !self.control.is_empty() {
            let written =
                ready!(Pin::new(&mut self.io).poll_write(cx, self.control)).map_err(|error| self.lost(error))?;
            if written == 0 {
                return Poll::Ready(Err(self.lost(io::ErrorKind::WriteZero.into())));
            }
            self.control = &self.control[written..];
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what the socket has.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        // What is left is the beginning of an answer, so moving it costs next to nothing.
        self.read.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        if self.read.len() - self.unread.end < READ_BYTES / 2 {
            self.read.resize(self.unread.end + READ_BYTES, 0);
        }
        let mut buffer = ReadBuf::new(&mut self.read[self.unread.end..]);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut buffer);
        let count = buffer.filled().len();
        self.unread.end += count;
        match ready!(polled) {
            Ok(()) if count == 0 => Poll::Ready(Err(self.lost(io::ErrorKind::UnexpectedEof.into()))),
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(self.lost(error))),
        }
    }

    /// Gives each answer that was read to `take`.
    ///
    /// # Errors
    /// The server refuses something (`-ERR`), or its bytes cannot be read.
    pub fn answers(&mut self, mut take: impl FnMut(Answer<'_>) -> Result<()>) -> Result<()> {
        let mut at = self.unread.start;
        let outcome = loop {
            let (op, length) = match ops::parse(&self.read[at..self.unread.end]) {
                Ok(Some(parsed)) => parsed,
                Ok(None) => break Ok(()),
                Err(malformed) => break Err(malformed.into()),
            };
            at += length;
            let (subject, headers, payload) = match op {
                Op::Msg { subject, payload, .. } => (subject, None, payload),
                Op::Hmsg { subject, headers, payload, .. } => (subject, Some(headers), payload),
                Op::Ping => {
                    self.owes_pong = true;
                    continue;
                }
                Op::Err(text) => break Err(handshake::refusal(text).context(format!("publish at {}", self.target))),
                Op::Info(_) | Op::Pong | Op::Ok => continue,
            };
            let token = &subject[memchr::memrchr(b'.', subject).map_or(0, |dot| dot + 1)..];
            let taken = Ack::parse(headers.and_then(ops::status), payload)
                .map_err(|error| Error::protocol("read JetStream's answer to a publish").caused_by(error))
                .and_then(|ack| take(Answer { token, ack }));
            if let Err(error) = taken {
                break Err(error);
            }
        };
        self.unread.start = at;
        outcome
    }

    fn lost(&self, error: io::Error) -> Error {
        Error::unavailable(format!("publish at {}: the connection is lost", self.target)).caused_by(error)
    }
}
