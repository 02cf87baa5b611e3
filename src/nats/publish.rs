//! A publishing connection: whole messages go out as they lie in the send buffer, acks come in on one wildcard
//! subject for each lane.
//!
//! Comes in: bytes of `HPUB` commands, in order. Goes out: acks with their subscription and the last token of their reply
//! subject; and that the server has taken in all there was before a PING. Thinner
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
    ack::{self, Ack, Usual},
    codes::{self, Wire},
    foreign::foreign,
    handshake::{self, Io, ServerInfo},
    ops::{self, Op},
    settings::Settings,
};
use crate::error::{Error, Result};

/// Acks are about 100 bytes, so this holds several hundred.
const READ_BYTES: usize = 64 * 1024;
/// An ack has some hundred bytes at most; what claims to be larger is none.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// For the subscription's confirmation.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

const PING: &[u8] = b"PING\r\n";
const PONG: &[u8] = b"PONG\r\n";

/// See the module.
pub struct Publisher {
    io: Io,
    said: Said,
    target: String,
    /// Zeroed once: `ReadBuf` over initialised memory needs no `unsafe`. The bytes in `unread` are to be parsed.
    read: Vec<u8>,
    unread: std::ops::Range<usize>,
    /// What was written last ended with a whole message.
    is_between: bool,
    /// Commands besides the messages, to be written at the end of one, and how much of them is written.
    commands: Vec<u8>,
    commands_written: usize,
    /// A PING of ours was answered since that was asked.
    ponged: bool,
    inbox_prefix: String,
    /// The JetStream domain whose answers count; `None`: all do.
    domain: Option<String>,
    /// An answer of another one has come.
    has_stranger: bool,
    /// How the last answer began.
    usual: Usual,
}

/// What the server has said of itself and of us, besides its answers to messages.
struct Said {
    /// Of itself, as it was last.
    info: ServerInfo,
    /// What we may not do, as the server said it last; the connection goes on.
    forbidden: Option<String>,
    /// The server has said since that was asked that it takes larger or only smaller messages.
    limit_changed: bool,
    /// What the server closes the connection over: a message was larger than it takes.
    violation: Option<Violation>,
}

impl Said {
    /// Takes what the server refuses (`-ERR`).
    ///
    /// # Errors
    /// The connection does not go on after it.
    fn take_error(&mut self, text: &str, target: &str) -> Result<()> {
        let error = handshake::refusal(text).context(format!("publish at {target}"));
        let wire = codes::wire(text).0;
        match wire {
            // The server keeps the connection; the others on it go on.
            Wire::Subject => {
                self.forbidden = Some(foreign(text));
                return Ok(());
            }
            // What proved who we are may have been renewed: whether it is still believed a new connection shows.
            Wire::Login => {
                let text = format!("publish at {target}: the server has ended this login: {}", foreign(text));
                return Err(Error::unavailable(text).hint("walhook reads the credentials again and logs in again"));
            }
            Wire::Payload | Wire::ControlLine => {
                let is_size = wire == Wire::Payload;
                self.violation = Some(Violation { is_size, text: foreign(text) });
            }
            Wire::Other(_) => {}
        }
        Err(error)
    }

    /// Takes what the server says of itself (`INFO`) after its greeting.
    ///
    /// # Errors
    /// It cannot be read.
    fn take_info(&mut self, json: &[u8]) -> Result<()> {
        let mut info = ServerInfo::parse(json)?;
        if info.max_payload == 0 {
            info.max_payload = self.info.max_payload;
        }
        self.limit_changed |= info.max_payload != self.info.max_payload;
        self.info = info;
        Ok(())
    }
}

/// A message that the server does not bear; it does not say which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// By its size, and not by its subject.
    pub is_size: bool,
    /// The server's words.
    pub text: String,
}

/// Where acks come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbox {
    /// The subscription's number, which its answers carry.
    pub id: u64,
    /// Acks come to `<subject>.<token>`.
    pub subject: String,
}

/// An ack and the last token of the subject it came on.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The subscription.
    pub inbox: u64,
    /// Tells which message it is about.
    pub token: &'a [u8],
    /// What became of it.
    pub ack: Ack,
}

impl Publisher {
    /// Connects, and subscribes to each inbox for the acks.
    ///
    /// # Errors
    /// As [`handshake::open`]; or we may not subscribe there.
    pub async fn open(settings: &Settings, inboxes: &[Inbox]) -> Result<Publisher> {
        let opened = handshake::open(settings).await?;
        let target = opened.server.to_string();
        let mut publisher = Publisher {
            io: opened.io,
            said: Said { info: opened.info, forbidden: None, limit_changed: false, violation: None },
            target,
            unread: 0..opened.leftover.len(),
            read: opened.leftover.into(),
            is_between: true,
            commands: Vec::new(),
            commands_written: 0,
            ponged: false,
            inbox_prefix: settings.inbox_prefix.clone(),
            domain: settings.api.domain().map(str::to_owned),
            has_stranger: false,
            usual: Usual::default(),
        };
        match timeout(SUBSCRIBE_TIMEOUT, publisher.subscribe_first(inboxes)).await {
            Ok(subscribed) => subscribed.map(|()| publisher),
            Err(_) => Err(Error::unavailable(format!("{}: no answer", publisher.subscribing(inboxes)))),
        }
    }

    fn subscribing(&self, inboxes: &[Inbox]) -> String {
        let subjects: Vec<_> = inboxes.iter().map(|inbox| format!("{}.*", inbox.subject)).collect();
        format!("subscribe to {} at {}", subjects.join(", "), self.target)
    }

    async fn subscribe_first(&mut self, inboxes: &[Inbox]) -> Result<()> {
        let attempted = self.subscribing(inboxes);
        let lost = |error: io::Error| Error::unavailable(&attempted).caused_by(error);
        let mut command: Vec<u8> = inboxes.iter().flat_map(subscription).collect();
        command.extend_from_slice(PING);
        self.io.write_all(&command).await.map_err(lost)?;
        self.io.flush().await.map_err(lost)?;
        loop {
            while let Some((op, length)) = ops::parse_within(&self.read[self.unread.clone()], ANSWER_BYTES_MAX)? {
                let is_confirmed = match op {
                    Op::Pong => true,
                    Op::Err(text) => {
                        let error = handshake::refusal(text).context(attempted);
                        return Err(match codes::wire(text).0 {
                            Wire::Subject => error.hint(format!(
                                "Allow this user to subscribe to {0}.>, or name what it may subscribe to: nats.inbox_prefix, which is {0:?} now",
                                self.inbox_prefix
                            )),
                            _ => error,
                        });
                    }
                    // Limits of the account come behind the greeting.
                    Op::Info(json) => {
                        self.said.take_info(json)?;
                        // At the beginning of a connection no limit has changed.
                        self.said.limit_changed = false;
                        false
                    }
                    Op::Ping => {
                        self.commands.extend_from_slice(PONG);
                        false
                    }
                    Op::Msg { .. } | Op::Hmsg { .. } | Op::Ok => false,
                };
                self.unread.start += length;
                if is_confirmed {
                    return Ok(());
                }
            }
            poll_fn(|cx| self.poll_read(cx)).await.map_err(|error| error.context(&attempted))?;
        }
    }

    /// What the server said of itself last.
    pub fn info(&self) -> &ServerInfo {
        &self.said.info
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

    /// Subscribes to one more inbox. What is published after it is answered there.
    pub fn subscribe(&mut self, inbox: &Inbox) {
        self.commands.extend(subscription(inbox));
    }

    /// Asks the server to say when it has taken in what was written so far; see [`Publisher::take_pong`].
    pub fn ping(&mut self) {
        self.commands.extend_from_slice(PING);
    }

    /// Whether it has said so, since that was last asked.
    pub fn take_pong(&mut self) -> bool {
        std::mem::take(&mut self.ponged)
    }

    /// What the server said we may not do, once. The message it is about gets no answer.
    pub fn take_forbidden(&mut self) -> Option<String> {
        self.said.forbidden.take()
    }

    /// Whether the server has said that it takes larger or only smaller messages, since that was last asked.
    pub fn take_limit_changed(&mut self) -> bool {
        std::mem::take(&mut self.said.limit_changed)
    }

    /// What the server has closed the connection over, if it was a message that it does not bear.
    pub fn violation(&self) -> Option<&Violation> {
        self.said.violation.as_ref()
    }

    /// What the server had to say before it closed the connection, on which `error` has come up: its reason says more.
    pub fn last_words(&mut self, cx: &mut Context<'_>, error: Error) -> Error {
        while let Poll::Ready(Ok(())) = self.poll_read(cx) {
            if let Err(refusal) = self.answers(|_| Ok(())) {
                return refusal;
            }
        }
        error
    }

    /// Writes some of `bytes`, the next of the messages. Between two of them commands come first.
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
        // A command that is begun is ended first: then no message has.
        while self.is_between && self.commands_written < self.commands.len() {
            let rest = &self.commands[self.commands_written..];
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, rest)).map_err(|error| self.lost(error))?;
            if written == 0 {
                return Poll::Ready(Err(self.lost(io::ErrorKind::WriteZero.into())));
            }
            self.commands_written += written;
            if self.commands_written == self.commands.len() {
                self.commands.clear();
                self.commands_written = 0;
            }
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
            let (op, length) = match ops::parse_within(&self.read[at..self.unread.end], ANSWER_BYTES_MAX) {
                Ok(Some(parsed)) => parsed,
                Ok(None) => break Ok(()),
                Err(malformed) => break Err(malformed.into()),
            };
            at += length;
            let (inbox, subject, headers, payload) = match op {
                Op::Msg { subject, sid, payload, .. } => (sid, subject, None, payload),
                Op::Hmsg { subject, sid, headers, payload, .. } => (sid, subject, Some(headers), payload),
                Op::Ping => {
                    self.commands.extend_from_slice(PONG);
                    continue;
                }
                Op::Pong => {
                    self.ponged = true;
                    continue;
                }
                Op::Err(text) => match self.said.take_error(text, &self.target) {
                    Ok(()) => continue,
                    Err(error) => break Err(error),
                },
                Op::Info(json) => match self.said.take_info(json) {
                    Ok(()) => continue,
                    Err(error) => break Err(error),
                },
                Op::Ok => continue,
            };
            let token = &subject[memchr::memrchr(b'.', subject).map_or(0, |dot| dot + 1)..];
            if headers.is_none()
                && let Some(sequence) = self.usual.sequence(payload)
            {
                match take(Answer { inbox, token, ack: Ack::Stored { sequence, duplicate: false } }) {
                    Ok(()) => continue,
                    Err(error) => break Err(error),
                }
            }
            if let Some(domain) = self.domain.as_deref().filter(|domain| ack::is_from_another_domain(domain, payload)) {
                if !std::mem::replace(&mut self.has_stranger, true) {
                    tracing::warn!(
                        server = self.target,
                        domain,
                        "a stream of another JetStream domain stores the same subjects as well; its acks are ignored. Narrow the \
                         subjects of one of the two streams"
                    );
                }
                continue;
            }
            self.usual.note(payload);
            let taken = Ack::parse(headers.and_then(ops::status), payload)
                .map_err(|error| Error::protocol("read JetStream's answer to a publish").caused_by(error))
                .and_then(|ack| take(Answer { inbox, token, ack }));
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

fn subscription(inbox: &Inbox) -> Vec<u8> {
    format!("SUB {}.* {}\r\n", inbox.subject, inbox.id).into_bytes()
}
