//! A socket to PostgreSQL: TCP, unix or TLS, tried host by host as libpq does, on which somebody then logs in.
//!
//! In come settings and a login. Out comes the session of the first host that accepts it and is of the wanted kind. What is said on
//! the socket is not known here.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    passfile,
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
