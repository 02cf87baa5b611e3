//! A dialled socket, and the frames on it.
//!
//! In come settings; out comes a socket (TCP, unix, TLS) that somebody logs in on, tried host by host as libpq does.
//! From the socket come the server's frames: a tag, a length, a body (manual, section 55.7). Lengths are foreign:
//! each is checked, and memory grows only as bytes arrive. What a frame means is not known here.

use std::{
    fmt, io,
    net::SocketAddr,
    ops::Range,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    ServerError, passfile,
    settings::{Address, Host, Secret, Settings, SslMode, SslNegotiation, TargetSessionAttrs},
    tls,
};
use crate::{
    error::{Error, Kind, Result},
    files,
};

/// A connection's byte stream.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// What binds SCRAM to this channel; `None` without TLS.
    pub(super) fn end_point_hash(&self) -> Option<Vec<u8>> {
        let Socket::Tls(stream) = self else { return None };
        stream.get_ref().1.peer_certificates()?.first().and_then(tls::end_point_hash)
    }

    fn is_tls(&self) -> bool {
        matches!(self, Socket::Tls(_))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A socket on which nobody has logged in yet.
pub(super) struct Dialled {
    pub(super) socket: Socket,
    /// The settings' password, or the passfile's for this host.
    pub(super) password: Option<Secret>,
    /// `user@host:port/db`.
    pub(super) target: String,
}

/// What a login brought.
pub(super) struct LoggedIn<T> {
    pub(super) session: T,
    pub(super) attributes: Attributes,
}

/// What kind of session it is, by the parameters the server reports since version 14.
#[derive(Default)]
pub(super) struct Attributes {
    pub(super) in_hot_standby: bool,
    pub(super) read_only: bool,
}

impl Attributes {
    fn are(&self, wanted: TargetSessionAttrs) -> bool {
        match wanted {
            TargetSessionAttrs::Any => true,
            TargetSessionAttrs::ReadWrite => !self.in_hot_standby && !self.read_only,
            TargetSessionAttrs::ReadOnly => self.in_hot_standby || self.read_only,
            TargetSessionAttrs::Primary => !self.in_hot_standby,
            TargetSessionAttrs::Standby | TargetSessionAttrs::PreferStandby => self.in_hot_standby,
        }
    }
}

/// Dials the settings' hosts in order until one lets us in by `log_in` and is of the wanted kind.
///
/// # Errors
/// The first that trying elsewhere would not cure (a refused password, say), or one that tells of every attempt.
pub(super) async fn connect<T, F, L>(settings: &Settings, log_in: F) -> Result<T>
where
    F: Fn(Dialled) -> L,
    L: Future<Output = Result<LoggedIn<T>>>,
{
    let passes: &[TargetSessionAttrs] = match settings.target_session_attrs {
        TargetSessionAttrs::PreferStandby => &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any],
        _ => std::slice::from_ref(&settings.target_session_attrs),
    };
    let needs_tls = settings.sslmode != SslMode::Disable
        && settings.hosts.iter().any(|host| matches!(host.address, Address::Tcp { .. }));
    let tls = if needs_tls { Some(tls::client_config(settings)?) } else { None };
    let mut failures = Vec::new();
    for wanted in passes {
        failures.clear();
        for host in &settings.hosts {
            let addresses = match within(settings.connect_timeout, addresses(host)).await {
                Ok(addresses) => addresses,
                Err(e) => {
                    failures.push(e.context(doing(settings, host)));
                    continue;
                }
            };
            for address in addresses {
                let attempt = Attempt { settings, host, address, tls: tls.as_ref() };
                match within(settings.connect_timeout, attempt.run(&log_in)).await {
                    Ok(logged_in) if logged_in.attributes.are(*wanted) => return Ok(logged_in.session),
                    Ok(_) => failures.push(Error::unavailable(format!(
                        "{}: its sessions are not what target_session_attrs asks for ({})",
                        doing(settings, host),
                        wanted.keyword()
                    ))),
                    Err(e) if e.is_retryable() => failures.push(e.context(doing(settings, host))),
                    Err(e) => return Err(e.context(doing(settings, host))),
                }
            }
        }
    }
    let one = failures.pop().expect("there is a host, and it has failed");
    if failures.is_empty() {
        return Err(one);
    }
    failures.push(one);
    let (reasons, remedy) = Error::all(&failures);
    let error = Error::unavailable(format!("none of {} addresses accepted the connection: {reasons}", failures.len()));
    Err(match remedy {
        Some(remedy) => error.hint(remedy),
        None => error,
    })
}

fn doing(settings: &Settings, host: &Host) -> String {
    format!("connect to PostgreSQL at {}", settings.target_at(std::slice::from_ref(host)))
}

async fn within<T>(limit: Option<Duration>, attempt: impl Future<Output = Result<T>>) -> Result<T> {
    // Boxed: a login is large beside the loop that awaits it.
    let attempt = Box::pin(attempt);
    match limit {
        None => attempt.await,
        Some(limit) => timeout(limit, attempt).await.unwrap_or_else(|_| {
            Err(Error::unavailable(format!("no answer within {limit:?}"))
                .hint("check host, port and firewall, or raise connect_timeout (seconds)"))
        }),
    }
}

#[derive(Debug, Clone)]
enum Dial {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

async fn addresses(host: &Host) -> Result<Vec<Dial>> {
    match &host.address {
        Address::Unix(folder) => Ok(vec![Dial::Unix(folder.join(format!(".s.PGSQL.{}", host.port)))]),
        Address::Tcp { ip: Some(ip), .. } => Ok(vec![Dial::Tcp(SocketAddr::new(*ip, host.port))]),
        Address::Tcp { name, ip: None } => {
            let found = tokio::net::lookup_host((name.as_str(), host.port)).await.map_err(|e| {
                Error::unavailable(format!("find the address of {name:?}")).caused_by(e).hint("check the host's name")
            })?;
            let found: Vec<Dial> = found.map(Dial::Tcp).collect();
            if found.is_empty() {
                return Err(Error::unavailable(format!("find the address of {name:?}: it has none")));
            }
            Ok(found)
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Never,
    IfOffered,
    Always,
}

/// One attempt at one address.
struct Attempt<'a> {
    settings: &'a Settings,
    host: &'a Host,
    address: Dial,
    tls: Option<&'a Arc<ClientConfig>>,
}

impl Attempt<'_> {
    /// Tries with and without TLS as the mode says (manual, table 34.1, and libpq where that is silent).
    async fn run<T, F, L>(&self, log_in: &F) -> Result<LoggedIn<T>>
    where
        F: Fn(Dialled) -> L,
        L: Future<Output = Result<LoggedIn<T>>>,
    {
        let unix = matches!(self.address, Dial::Unix(_));
        let (first, second) = match self.settings.sslmode {
            _ if unix => (Encryption::Never, None),
            SslMode::Disable => (Encryption::Never, None),
            SslMode::Allow => (Encryption::Never, Some(Encryption::Always)),
            SslMode::Prefer => (Encryption::IfOffered, Some(Encryption::Never)),
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Encryption::Always, None),
        };
        let (error, refused, was_tls) = match self.once(first, log_in).await {
            Ok(logged_in) => return Ok(logged_in),
            Err(Failed { error, refused, was_tls }) => (error, refused, was_tls),
        };
        // Only what the other kind of connection may cure: TLS that failed, or a server that turned us away on this
        // kind.
        let second = second.filter(|second| refused && was_tls != (*second == Encryption::Always));
        let Some(second) = second else { return Err(error) };
        match self.once(second, log_in).await {
            Ok(logged_in) => Ok(logged_in),
            Err(again) if again.error.to_string() == error.to_string() => Err(error),
            Err(again) => {
                let (this, other) = if was_tls { ("with", "without") } else { ("without", "with") };
                Err(error.context(format!("{other} TLS ({}); {this} TLS", again.error.reason())))
            }
        }
    }

    async fn once<T, F, L>(&self, encryption: Encryption, log_in: &F) -> Result<LoggedIn<T>, Failed>
    where
        F: Fn(Dialled) -> L,
        L: Future<Output = Result<LoggedIn<T>>>,
    {
        let plain = self.dial().await.map_err(|error| Failed { error, refused: false, was_tls: false })?;
        let socket =
            self.protect(plain, encryption).await.map_err(|error| Failed { error, refused: true, was_tls: true })?;
        let was_tls = socket.is_tls();
        let dialled = Dialled { socket, password: self.password(), target: self.target() };
        log_in(dialled).await.map_err(|error| Failed { refused: error.kind() == Kind::Permission, error, was_tls })
    }

    fn target(&self) -> String {
        format!("{}@{}/{}", self.settings.user, self.host, self.settings.dbname)
    }

    async fn dial(&self) -> Result<Socket> {
        let failed = |e: io::Error| {
            let hint = match e.kind() {
                io::ErrorKind::PermissionDenied => "walhook's user must be allowed to reach the socket's folder",
                _ => "check that the server runs, and host and port",
            };
            Error::unavailable("dial").caused_by(e).hint(hint)
        };
        match &self.address {
            Dial::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await.map_err(failed)?)),
            Dial::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(failed)?;
                self.tune(&stream).map_err(failed)?;
                Ok(Socket::Tcp(stream))
            }
        }
    }

    fn tune(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?; // status updates are small and waited for
        let socket = socket2::SockRef::from(stream);
        if let Some(keepalive) = self.settings.keepalive {
            socket.set_tcp_keepalive(
                &socket2::TcpKeepalive::new()
                    .with_time(keepalive.idle)
                    .with_interval(keepalive.interval)
                    .with_retries(keepalive.count),
            )?;
        }
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(self.settings.tcp_user_timeout)?;
        Ok(())
    }

    /// Asks for TLS and shakes hands (manual, section 55.2.11).
    async fn protect(&self, socket: Socket, encryption: Encryption) -> Result<Socket> {
        if encryption == Encryption::Never {
            return Ok(socket);
        }
        let (Socket::Tcp(mut tcp), Address::Tcp { name, .. }, Some(config)) = (socket, &self.host.address, self.tls)
        else {
            panic!("TLS is tried by TCP only, and then there is a configuration for it");
        };
        if self.settings.sslnegotiation == SslNegotiation::Postgres {
            let mut request = BytesMut::new();
            postgres_protocol::message::frontend::ssl_request(&mut request);
            let asked = "ask for TLS";
            tcp.write_all(&request).await.map_err(|e| tls::io_error(asked, e))?;
            // Exactly one byte is read: what an attacker slips in after it ends up in the handshake, and fails there.
            match tcp.read_u8().await.map_err(|e| tls::io_error(asked, e))? {
                b'S' => {}
                b'N' if encryption == Encryption::IfOffered => return Ok(Socket::Tcp(tcp)),
                b'N' => {
                    return Err(Error::config("ask for TLS: the server has none")
                        .hint("set ssl = on on the server, or, where the network is safe, sslmode=disable here"));
                }
                // An error so early is not authenticated by anything: its text is not shown.
                b'E' => return Err(Error::unavailable("ask for TLS: the server answered with an error")),
                other => {
                    return Err(Error::protocol(format!("ask for TLS: the answer {other:#04x} is not PostgreSQL's"))
                        .hint("check host and port: another program may listen there"));
                }
            }
        }
        let peer = tcp.peer_addr().map_err(|e| tls::io_error("shake hands for TLS", e))?;
        let stream = TlsConnector::from(config.clone())
            .connect(tls::server_name(name, peer.ip()), tcp)
            .await
            .map_err(|e| tls::io_error("shake hands for TLS", e))?;
        Ok(Socket::Tls(Box::new(stream)))
    }

    fn password(&self) -> Option<Secret> {
        let settings = self.settings;
        if settings.password.is_some() {
            return settings.password.clone();
        }
        let file = settings.passfile.as_ref()?;
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(file).ok()?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(file = files::shown(file), "ignoring the password file: others may read it (chmod 0600)");
            return None;
        }
        let text = match files::read_text("passfile (PGPASSFILE)", file) {
            Ok(text) => text,
            Err(error) => {
                tracing::warn!("ignoring the password file: {error}");
                return None;
            }
        };
        let host = match &self.host.address {
            Address::Tcp { name, .. } => name.clone(),
            Address::Unix(folder) if super::settings::is_default_socket_folder(folder) => "localhost".to_owned(),
            Address::Unix(folder) => folder.display().to_string(),
        };
        passfile::lookup(&text, &host, self.host.port, &settings.dbname, &settings.user)
    }
}

struct Failed {
    error: Error,
    /// By the server or by TLS, so that the other kind of connection may fare better.
    refused: bool,
    was_tls: bool,
}

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
