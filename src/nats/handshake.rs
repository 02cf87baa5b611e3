//! Opening a publishing connection: everything up to the point where frames may be written.
//!
//! In: [`Settings`]. Out: a socket past INFO, TLS, CONNECT and the first PONG, what the server said of itself, and the bytes
//! read beyond. What always holds: no secret leaves before TLS is up where TLS is required, and nothing read in plain
//! text is believed after it. It refuses to know JetStream. (NATS client protocol, "INFO", "CONNECT".)

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Buf, BytesMut};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    codes::{self, Wire},
    foreign::foreign,
    ops::{self, Op},
    settings::{ServerAddr, Settings},
    tls,
};
use crate::error::{Error, Kind, Result};

/// How long a silent connection lives before the kernel asks whether the other side is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A connection on which frames may be written.
pub struct Opened {
    /// The socket.
    pub io: Io,
    /// What the server said of itself.
    pub info: ServerInfo,
    /// Which of the servers it is.
    pub server: ServerAddr,
    /// Bytes already read beyond the greeting; the first operations for [`ops::parse`].
    pub leftover: BytesMut,
}

/// What a server says of itself. Unknown keys are ignored, absent ones are empty.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Unique per run of a server.
    pub server_id: String,
    /// Its name in its cluster.
    pub server_name: String,
    /// Such as `2.15.1`; see [`ServerInfo::at_least`].
    pub version: String,
    /// The largest message it takes, headers and body, in bytes.
    pub max_payload: usize,
    /// Whether it takes headers.
    pub headers: bool,
    /// Whether JetStream runs on this very server; it may run elsewhere in its cluster.
    pub jetstream: bool,
    /// The name of its cluster.
    pub cluster: Option<String>,
    /// The JetStream domain.
    pub domain: Option<String>,
    /// TLS or nothing.
    pub tls_required: bool,
    /// TLS if we like.
    pub tls_available: bool,
    /// Whether it wants to know who we are.
    pub auth_required: bool,
    /// What it wants signed.
    pub nonce: Option<String>,
    /// Our number in its list of connections.
    pub client_id: u64,
    /// It is about to leave: lame duck mode.
    pub ldm: bool,
    /// The addresses of its cluster. We dial only what the settings name.
    pub connect_urls: Vec<String>,
}

impl ServerInfo {
    /// The JSON of an INFO.
    pub fn parse(json: &[u8]) -> Result<ServerInfo> {
        let mut info: ServerInfo = serde_json::from_slice(json)
            .map_err(|error| Error::protocol("the NATS server's INFO cannot be read").caused_by(error))?;
        for text in [&mut info.server_id, &mut info.server_name, &mut info.version] {
            *text = foreign(text);
        }
        info.domain = info.domain.as_deref().map(foreign);
        info.cluster = info.cluster.as_deref().map(foreign);
        Ok(info)
    }

    /// Whether the server's version is at least `major.minor.patch`. A version we cannot read is taken for old.
    pub fn at_least(&self, major: u32, minor: u32, patch: u32) -> bool {
        let core = self.version.split(['-', '+']).next().unwrap_or_default();
        let mut parts = core.split('.').map(|part| part.parse::<u32>().ok());
        let mut next = || parts.next().flatten();
        match (next(), next(), next()) {
            (Some(a), Some(b), Some(c)) => (a, b, c) >= (major, minor, patch),
            _ => false,
        }
    }
}

/// A socket, plain or encrypted.
pub enum Io {
    /// Plain.
    Tcp(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Io::Tls(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Io::Tls(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Io::Tls(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Io::Tcp(socket) => socket.is_write_vectored(),
            Io::Tls(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Io::Tls(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Io::Tls(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

/// Opens a connection to the first of the servers that takes us.
///
/// Where none does, the error is the one somebody must act on ([`Kind::Permission`], [`Kind::Config`]) before the one
/// that time may heal ([`Kind::Unavailable`]).
pub async fn open(settings: &Settings) -> Result<Opened> {
    let mut worst: Option<Error> = None;
    for server in &settings.servers {
        match open_one(settings, server).await {
            Ok(opened) => return Ok(opened),
            Err(error) if worst.as_ref().is_none_or(Error::is_retryable) => worst = Some(error),
            Err(_) => {}
        }
    }
    let error = worst.unwrap_or_else(|| Error::config("no NATS server to connect to"));
    Err(error.context(format!("NATS configuration {:?}", settings.config_name)))
}

async fn open_one(settings: &Settings, server: &ServerAddr) -> Result<Opened> {
    match tokio::time::timeout(settings.connect_timeout, Box::pin(greet(settings, server))).await {
        Ok(result) => result,
        Err(_) => {
            if begins_with_tls(settings, server).await {
                return Err(waits_for_tls(server));
            }
            let waited = settings.connect_timeout.as_millis();
            let error = Error::unavailable(format!("connect to {server}: no greeting within {waited} ms"));
            Err(error.hint(format!("Check firewalls, connection_timeout_ms, and {}", settings.address_source)))
        }
    }
}

/// How long a server that greeted nobody may take to answer in TLS.
const TLS_PROBE: Duration = Duration::from_secs(2);

/// Whether a server that has greeted nobody waits for TLS from the first byte. Nothing is told to it, so who it is does not matter.
pub(super) async fn begins_with_tls(settings: &Settings, server: &ServerAddr) -> bool {
    if settings.tls.first {
        return false;
    }
    let attempt = async {
        let tcp = TcpStream::connect((server.host.as_str(), server.port)).await.ok()?;
        match encrypt(settings, server, tcp).await {
            Ok(_) => Some(()),
            Err(error) => match error.cause_as::<rustls::Error>()? {
                rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_) => Some(()),
                _ => None,
            },
        }
    };
    tokio::time::timeout(TLS_PROBE, attempt).await.is_ok_and(|answer| answer.is_some())
}

/// Whether a server begins as NATS does, read within the bounds that the connections of async-nats do not have. A server that
/// cannot be reached is left to them, and so is one with TLS from the first byte, whose certificate they check before they read.
///
/// # Errors
/// It sends something else, or a line without an end.
pub(super) async fn begins_as_nats(settings: &Settings, server: &ServerAddr) -> Result<()> {
    if settings.tls.first {
        return Ok(());
    }
    let attempt = async {
        let Ok(tcp) = TcpStream::connect((server.host.as_str(), server.port)).await else { return Ok(()) };
        match first_info(&mut Io::Tcp(tcp), server, &mut BytesMut::with_capacity(8 * 1024)).await {
            Err(error) if error.kind() == Kind::Protocol => Err(error),
            _ => Ok(()),
        }
    };
    tokio::time::timeout(settings.connect_timeout, attempt).await.unwrap_or(Ok(()))
}

/// What there is to say of such a server.
pub(super) fn waits_for_tls(server: &ServerAddr) -> Error {
    Error::config(format!("connect to {server}: it expects TLS from the first byte (handshake_first)"))
        .hint("Set tls_first = true under [nats] in the configuration file")
}

async fn greet(settings: &Settings, server: &ServerAddr) -> Result<Opened> {
    let tcp = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(|error| {
        let error = Error::unavailable(format!("connect to {server}")).caused_by(error);
        error.hint(format!("Check that it runs, firewalls, and {}", settings.address_source))
    })?;
    prepare(&tcp).map_err(|error| Error::unavailable(format!("set up the socket to {server}")).caused_by(error))?;

    let tls_required = settings.tls.required || server.tls;
    let mut buffer = BytesMut::with_capacity(8 * 1024);
    let mut io = if settings.tls.first { encrypt(settings, server, tcp).await? } else { Io::Tcp(tcp) };
    let mut info = first_info(&mut io, server, &mut buffer).await?;
    if let Io::Tcp(tcp) = io {
        if tls_required && !info.tls_required && !info.tls_available {
            return Err(Error::config(format!("{server} offers no TLS, and TLS is required"))
                .hint("Enable TLS on the server, or set tls_enabled to false and use a nats:// URL"));
        }
        if !buffer.is_empty() && (tls_required || info.tls_required) {
            return Err(Error::protocol(format!("{server} sent plain text where TLS should begin")));
        }
        io = if tls_required || info.tls_required { encrypt(settings, server, tcp).await? } else { Io::Tcp(tcp) };
    }
    if !info.headers {
        return Err(Error::config(format!("{server} takes no headers"))
            .hint("Message ids travel in headers; use nats-server 2.10 or newer, with headers"));
    }

    let frame = connect_frame(settings, &info, matches!(io, Io::Tls(_))).await?;
    let lost = |error: io::Error| {
        tls::refusal(server, &error).unwrap_or_else(|| Error::unavailable(format!("greet {server}")).caused_by(error))
    };
    // A server that refuses us may close before it has read everything; its reason is still there to be read.
    let written = write(&mut io, &frame).await;
    loop {
        // Nobody sends a message before we have subscribed.
        let (step, length) = match ops::parse_within(&buffer, 0)? {
            None => {
                if read_more(&mut io, &mut buffer).await.map_err(lost)? == 0 {
                    written.map_err(lost)?;
                    return Err(Error::unavailable(format!("{server} closed the connection during the greeting"))
                        .hint("See the server's log"));
                }
                continue;
            }
            Some((op, length)) => (step(op, server)?, length),
        };
        buffer.advance(length);
        match step {
            // With such a limit every event would be too large, and a dead letter.
            Step::Taken if info.max_payload == 0 => {
                return Err(Error::protocol(format!("{server} does not say how large a message may be (max_payload)"))
                    .hint("Is this a NATS client port?"));
            }
            Step::Taken => return Ok(Opened { io, info, server: server.clone(), leftover: buffer }),
            Step::Info(newer) => info = *newer,
            Step::Ping => write(&mut io, b"PONG\r\n").await.map_err(lost)?,
            Step::Other => {}
        }
    }
}

async fn write(io: &mut Io, bytes: &[u8]) -> io::Result<()> {
    io.write_all(bytes).await?;
    io.flush().await
}

/// What an operation means while we wait for the first PONG.
enum Step {
    Taken,
    Info(Box<ServerInfo>),
    Ping,
    Other,
}

fn step(op: Op<'_>, server: &ServerAddr) -> Result<Step> {
    Ok(match op {
        Op::Pong => Step::Taken,
        Op::Info(json) => Step::Info(Box::new(ServerInfo::parse(json)?)),
        Op::Ping => Step::Ping,
        Op::Err(text) => return Err(refusal(text).context(format!("connect to {server}"))),
        Op::Ok | Op::Msg { .. } | Op::Hmsg { .. } => Step::Other,
    })
}

/// An `-ERR` of the server, sorted by who must act.
pub fn refusal(text: &str) -> Error {
    let (wire, hint) = codes::wire(text);
    let kind = match wire {
        Wire::Subject | Wire::Login => Kind::Permission,
        Wire::Payload | Wire::ControlLine => Kind::Config,
        Wire::Other(kind) => kind,
    };
    let error = Error::new(kind, format!("the NATS server refuses: {}", foreign(text)));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    socket2::SockRef::from(tcp)
        .set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3))
}

async fn encrypt(settings: &Settings, server: &ServerAddr, tcp: TcpStream) -> Result<Io> {
    let name = ServerName::try_from(server.host.clone())
        .map_err(|error| Error::config(format!("{server} has no name that TLS could check")).caused_by(error))?;
    let config = Arc::new(tls::client_config(&settings.tls).await?);
    let stream = TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
        tls::refusal(server, &error).unwrap_or_else(|| {
            Error::unavailable(format!("TLS with {server}"))
                .caused_by(error)
                .hint("Does the server speak TLS on this port?")
        })
    })?;
    Ok(Io::Tls(Box::new(stream)))
}

/// Reads on; 0 at the end of the stream.
async fn read_more(io: &mut Io, buffer: &mut BytesMut) -> io::Result<usize> {
    buffer.reserve(4 * 1024);
    io.read_buf(buffer).await
}

async fn first_info(io: &mut Io, server: &ServerAddr, buffer: &mut BytesMut) -> Result<ServerInfo> {
    loop {
        if let Some((op, length)) = ops::parse_within(buffer, 0).map_err(|error| Error::from(error).context(server))? {
            let info = match op {
                Op::Info(json) => ServerInfo::parse(json)?,
                Op::Err(text) => return Err(refusal(text).context(format!("connect to {server}"))),
                _ => {
                    return Err(Error::protocol(format!(
                        "{server} is not a NATS server for clients: it does not send INFO first"
                    )));
                }
            };
            buffer.advance(length);
            return Ok(info);
        }
        let read = read_more(io, buffer).await.map_err(|error| {
            tls::refusal(server, &error)
                .unwrap_or_else(|| Error::unavailable(format!("read the greeting of {server}")).caused_by(error))
        })?;
        if read == 0 {
            return Err(Error::unavailable(format!("{server} closed the connection without a greeting")));
        }
    }
}

/// CONNECT's JSON. `protocol` 1: tell us of changes in the cluster.
#[derive(Serialize)]
struct Connect<'a> {
    verbose: bool,
    pedantic: bool,
    tls_required: bool,
    name: &'a str,
    lang: &'a str,
    version: &'a str,
    protocol: u8,
    echo: bool,
    headers: bool,
    no_responders: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sig: Option<String>,
}

async fn connect_frame(settings: &Settings, info: &ServerInfo, encrypted: bool) -> Result<Vec<u8>> {
    let proof = settings.auth.prove(info.nonce.as_deref()).await?;
    let connect = Connect {
        verbose: false,
        pedantic: false,
        tls_required: encrypted,
        name: &settings.name,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: 1,
        echo: false, // what we publish is not ours to read
        headers: true,
        no_responders: true,
        user: proof.user,
        pass: proof.password,
        auth_token: proof.token,
        jwt: proof.jwt,
        nkey: proof.nkey,
        sig: proof.signature.map(|signature| URL_SAFE_NO_PAD.encode(signature)),
    };
    let mut frame = b"CONNECT ".to_vec();
    serde_json::to_writer(&mut frame, &connect).map_err(|error| Error::protocol("write CONNECT").caused_by(error))?;
    frame.extend_from_slice(b"\r\nPING\r\n");
    Ok(frame)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_words_cannot_write_a_line_of_their_own() {
        let error = refusal("Authorization Violation\r\nERROR all is lost\u{1b}[2J");
        assert_eq!(error.kind(), Kind::Permission);
        assert!(!error.to_string().contains(char::is_control), "{error}");
        let info = ServerInfo::parse(br#"{"version":"2.15.1\u001b[2J","server_name":"a\nb"}"#).unwrap();
        assert_eq!((info.version.as_str(), info.server_name.as_str()), (r"2.15.1\u{1b}[2J", r"a\nb"));
    }

    #[test]
    fn versions_are_compared_by_number_and_what_is_none_is_old() {
        let version = |version: &str| ServerInfo { version: version.to_owned(), ..ServerInfo::default() };
        assert!(version("2.10.26").at_least(2, 9, 30));
        assert!(version("2.12.1").at_least(2, 12, 1));
        assert!(version("2.15.0-RC.1").at_least(2, 14, 9));
        assert!(!version("2.9.30").at_least(2, 10, 0));
        for none in ["", "2", "next", "2.x.1"] {
            assert!(!version(none).at_least(0, 0, 0), "{none}");
        }
    }
}
