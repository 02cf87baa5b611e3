//! The HTTP server: one address, on a thread of its own.
//!
//! In: requests, and the newest [`Snapshot`]. Out: probes, metrics, the page and its events. Always holds: the number of connections and
//! of event streams is bounded, so are headers; a body is not read; a connection whose reader takes nothing for [`STALLED`] is
//! closed; a port that is taken is tried again and again, and ends nothing.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body as _, Frame, Incoming},
    header::{self, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{metrics, operator, page, settings::Settings, snapshot::Snapshot};
use crate::error::{Error, Result};

/// Connections at a time. Beyond it a new one is closed at once.
const CONNECTIONS_MAX: usize = 64;
/// Readers of `/events` at a time.
const READERS_MAX: usize = 16;
/// How long a connection may take nothing before it is closed.
const STALLED: Duration = Duration::from_secs(10);
/// How long a client may take for its headers, or for its next request.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// The most bytes of a request's headers, and the most headers.
const HEADER_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// How often a taken port is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// How often a reader of `/events` is told how things are, at most.
const EVENTS_EVERY: Duration = Duration::from_secs(1);
/// How long connections may take to end when the process does.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// After so long without a sign of life the process's own loop counts as stuck.
const STUCK: Duration = Duration::from_secs(60);

/// Where the process puts what it shows; anybody may take it from there.
#[derive(Debug, Clone)]
pub struct Shared {
    snapshot: Arc<watch::Sender<Snapshot>>,
    began: Instant,
    /// When the process's loop last gave a sign of life, in ms since it began.
    alive_ms: Arc<AtomicU64>,
}

impl Shared {
    /// With nothing in it but who it is.
    pub fn new(source: &str, verb: &'static str) -> Shared {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let snapshot = Snapshot { source: source.to_owned(), verb, started_at: now.as_secs(), ..Snapshot::default() };
        Shared {
            snapshot: Arc::new(watch::channel(snapshot).0),
            began: Instant::now(),
            alive_ms: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Changes what is shown.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.snapshot.send_modify(change);
    }

    fn latest(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    fn is_alive(&self) {
        self.alive_ms.store(millis(self.began.elapsed()), Ordering::Relaxed);
    }

    /// How long the process's loop has given no sign of life.
    fn silence(&self) -> Duration {
        Duration::from_millis(millis(self.began.elapsed()).saturating_sub(self.alive_ms.load(Ordering::Relaxed)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What the thread of the server does besides serving.
pub type Work = Box<dyn FnOnce() -> Working + Send>;
/// The same, begun.
pub type Working = Pin<Box<dyn Future<Output = Infallible>>>;

/// The running server. Dropping it ends it.
pub struct Server {
    stop: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
    ticker: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Begins to listen; to be called within the process's runtime. `work` is what else the thread does meanwhile.
    ///
    /// # Errors
    /// The system gives no thread or no runtime.
    pub fn start(settings: Settings, shared: Shared, act: Option<operator::Act>, work: Option<Work>) -> Result<Server> {
        let attempted = "start the thread that serves HTTP";
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::unavailable(attempted).caused_by(error))?;
        if !settings.address.ip().is_loopback() && settings.tls.is_none() {
            tracing::warn!(
                address = %settings.address,
                "HTTP without TLS beyond the loopback interface: anybody on the network can read the token; set http.cert and http.key"
            );
        }
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = mpsc::channel();
        let ticker = tokio::spawn({
            let shared = shared.clone();
            async move {
                loop {
                    shared.is_alive();
                    sleep(Duration::from_secs(1)).await;
                }
            }
        });
        let desk = operator::Desk::new(settings.operator_token.as_ref().and(act));
        let site = Arc::new(Site { settings, shared, readers: AtomicUsize::new(0), desk });
        thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let work = async move {
                        match work {
                            Some(work) => work().await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = serve(site, stopped) => {}
                        never = work => match never {},
                    }
                });
                runtime.shutdown_background();
                let _ = end.send(());
            })
            .map_err(|error| Error::unavailable(attempted).caused_by(error))?;
        Ok(Server { stop, ended, ticker })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ticker.abort();
        self.stop.send_replace(true);
        let _ = self.ended.recv_timeout(ENDS_WITHIN * 2);
    }
}

struct Site {
    settings: Settings,
    shared: Shared,
    readers: AtomicUsize,
    desk: operator::Desk,
}

/// Until `stopped` turns true.
async fn stop(stopped: &watch::Receiver<bool>) {
    // A sender that is gone is a process that ends.
    let _ = stopped.clone().wait_for(|stop| *stop).await;
}

async fn serve(site: Arc<Site>, stopped: watch::Receiver<bool>) {
    let Some(listener) = listen(site.settings.address, &stopped).await else { return };
    let tls = site.settings.tls.clone().map(TlsAcceptor::from);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop(&stopped) => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, peer)) = accepted else {
            // Out of file descriptors, for example: others need the processor meanwhile.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let (site, stopped, tls) = (Arc::clone(&site), stopped.clone(), tls.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let socket = Impatient::new(socket);
            match tls {
                None => connection(socket, peer, site, stopped).await,
                Some(tls) => {
                    if let Ok(Ok(socket)) = timeout(HEADERS_WITHIN, tls.accept(socket)).await {
                        connection(socket, peer, site, stopped).await;
                    }
                }
            }
        });
    }
    drop(listener);
    let all = u32::try_from(CONNECTIONS_MAX).expect("a small number");
    let _ = timeout(ENDS_WITHIN, room.acquire_many(all)).await;
}

/// Tries until the port is free; says so once.
async fn listen(address: SocketAddr, stopped: &watch::Receiver<bool>) -> Option<TcpListener> {
    let mut is_told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(address);
                tracing::info!(%address, "HTTP: /healthz, /readyz, /metrics and the status page at /");
                return Some(listener);
            }
            Err(error) if !is_told => {
                is_told = true;
                tracing::warn!(
                    %address,
                    retry_in_s = TRY_AGAIN.as_secs(),
                    "HTTP is not served: {error}; events flow without it. Hint: name another address with --http, or end the \
                     process that listens there"
                );
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop(stopped) => return None,
            () = sleep(TRY_AGAIN) => {}
        }
    }
}

async fn connection(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    site: Arc<Site>,
    stopped: watch::Receiver<bool>,
) {
    let ends = stopped.clone();
    let service = service_fn(move |request| {
        let (site, stopped) = (Arc::clone(&site), stopped.clone());
        async move { Ok::<_, Infallible>(answer(&site, &request, peer, stopped).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(socket), service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // A client that went away, or speaks no HTTP, is its own matter.
        _ = &mut served => {}
        () = stop(&ends) => {
            served.as_mut().graceful_shutdown();
            let _ = timeout(ENDS_WITHIN, served).await;
        }
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn body(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

fn refusal(status: StatusCode, why: &str) -> Answer {
    body(status, TEXT, format!("{why}\n"))
}

/// What a request may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Nothing,
    Reads,
    /// And may retry and drop dead letters.
    Operates,
}

async fn answer(
    site: &Arc<Site>,
    request: &Request<Incoming>,
    peer: SocketAddr,
    stopped: watch::Receiver<bool>,
) -> Answer {
    if let Some(wanted) = operator::wanted(request.method(), request.uri().path()) {
        return operate(site, request, peer, wanted).await;
    }
    let is_head = request.method() == Method::HEAD;
    if !is_head && request.method() != Method::GET {
        let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if !request.body().is_end_stream() {
        return refusal(StatusCode::PAYLOAD_TOO_LARGE, "a request has no body here");
    }
    if let Some(refused) = foreign_host(&site.settings, request.headers()) {
        return refused;
    }
    let access = access(&site.settings, request.headers());
    match (request.uri().path(), access) {
        ("/healthz", _) => alive(&site.shared),
        ("/readyz", _) => ready(&site.shared.latest(), access),
        (_, Access::Nothing) => unauthorized(),
        ("/metrics", _) => exposed(&site.shared, request.headers()),
        ("/", _) => {
            let mut response = body(StatusCode::OK, "text/html; charset=utf-8", page::PAGE);
            let policy = HeaderValue::from_static(page::content_security_policy());
            response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
            response
        }
        ("/webhooks", _) => {
            let query = request.uri().query().unwrap_or_default().as_bytes();
            let text = url::form_urlencoded::parse(query).find(|(name, _)| name == "q").map(|(_, text)| text);
            body(StatusCode::OK, JSON, page::search(site.shared.latest(), &text.unwrap_or_default()).to_string())
        }
        ("/events", _) if is_head => body(StatusCode::OK, "text/event-stream", ""),
        ("/events", _) => events(site, access, stopped),
        _ => refusal(StatusCode::NOT_FOUND, "there are /, /events, /webhooks, /healthz, /readyz and /metrics"),
    }
}

/// What only an operator may do. The order of the checks: what anybody may know comes first, and nothing is done before all are passed.
async fn operate(
    site: &Arc<Site>,
    request: &Request<Incoming>,
    peer: SocketAddr,
    wanted: Option<operator::Wanted>,
) -> Answer {
    let headers = request.headers();
    if !request.body().is_end_stream() {
        return refusal(StatusCode::PAYLOAD_TOO_LARGE, "a request has no body here");
    }
    if let Some(refused) = foreign_host(&site.settings, headers) {
        return refused;
    }
    if let Some(why) = operator::is_foreign(headers) {
        return refusal(StatusCode::FORBIDDEN, why);
    }
    // Never 401: a browser would ask its user for a password, and send it with every request from then on.
    if access(&site.settings, headers) != Access::Operates {
        return refusal(
            StatusCode::FORBIDDEN,
            "the operator's token is needed: Authorization: Bearer TOKEN, with the content of http.operator_token_file",
        );
    }
    // A task of its own: a client that goes away meanwhile leaves nothing half done, and nothing out of the log.
    let (site, attempted) = (Arc::clone(site), "do what the operator wants");
    let served = tokio::spawn(async move {
        let done = site.desk.serve(peer, wanted).await?;
        // Shown at once; the next look at the database comes within seconds.
        site.shared.update(|snapshot| {
            let shown = snapshot.newest_dead_letters.len();
            snapshot.newest_dead_letters.retain(|letter| wanted.is_none_or(|wanted| wanted.id != letter.id));
            let gone = (shown - snapshot.newest_dead_letters.len()) as u64;
            snapshot.dead_letters = snapshot.dead_letters.map(|count| count.saturating_sub(gone));
        });
        Ok(done)
    })
    .await;
    match served.unwrap_or_else(|error| Err(Error::unavailable(attempted).caused_by(error))) {
        Ok(done) => body(StatusCode::OK, TEXT, format!("{done}\n")),
        Err(error) if error.is_retryable() => refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        Err(error) => refusal(StatusCode::CONFLICT, &error.to_string()),
    }
}

/// Without a token, a page of somebody else's in a browser on this machine must not read ours by a name of its own that leads to
/// the loopback interface.
fn foreign_host(settings: &Settings, headers: &HeaderMap) -> Option<Answer> {
    if settings.token.is_some() || settings.wants_client_certificate {
        return None;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok())?;
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_local = name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    (!is_local).then(|| {
        refusal(
            StatusCode::FORBIDDEN,
            "without a token only requests to localhost are answered, and this one names another host: set http.token_file",
        )
    })
}

fn access(settings: &Settings, headers: &HeaderMap) -> Access {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| presented(value.as_bytes()));
    let is_given = |token: &String| given.as_ref().is_some_and(|given| is_same(token.as_bytes(), given));
    if settings.operator_token.as_ref().is_some_and(is_given) {
        return Access::Operates;
    }
    // Without a token: the loopback interface, or a client certificate that was verified.
    if settings.token.as_ref().is_none_or(is_given) { Access::Reads } else { Access::Nothing }
}

/// The token of `Bearer TOKEN`, or of `Basic` with it as the password: what a browser asks its user for.
fn presented(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, value) = authorization.split_at_checked(authorization.iter().position(|&byte| byte == b' ')?)?;
    let value = value.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(value.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let decoded = STANDARD.decode(value).ok()?;
    let colon = decoded.iter().position(|&byte| byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

/// Compares digests: how long that takes says nothing of the token.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let digest = |bytes| ring::digest::digest(&ring::digest::SHA256, bytes);
    digest(one).as_ref() == digest(other).as_ref()
}

fn unauthorized() -> Answer {
    let mut response = refusal(
        StatusCode::UNAUTHORIZED,
        "a token is needed: Authorization: Bearer TOKEN, with the content of http.token_file; a browser takes it as a password",
    );
    for challenge in ["Bearer realm=\"walhook\"", "Basic realm=\"walhook\", charset=\"UTF-8\""] {
        response.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    response
}

fn alive(shared: &Shared) -> Answer {
    match shared.silence() {
        silence if silence < STUCK => body(StatusCode::OK, TEXT, "alive\n"),
        silence => {
            let why = format!("the main loop has given no sign of life for {} s", silence.as_secs());
            refusal(StatusCode::SERVICE_UNAVAILABLE, &why)
        }
    }
}

/// Whoever may not read learns whether, and not why not.
fn ready(snapshot: &Snapshot, access: Access) -> Answer {
    let mut readiness = snapshot.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if access == Access::Nothing {
        readiness.reasons.clear();
    }
    body(status, JSON, serde_json::json!(readiness).to_string() + "\n")
}

fn exposed(shared: &Shared, headers: &HeaderMap) -> Answer {
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepts.contains(metrics::OPENMETRICS) {
        body(StatusCode::OK, metrics::OPENMETRICS_TYPE, metrics::openmetrics(shared.latest()))
    } else {
        body(StatusCode::OK, metrics::PROMETHEUS_TYPE, metrics::prometheus(shared.latest()))
    }
}

/// A place among the readers of `/events`.
struct Reader(Arc<Site>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The snapshot as server-sent events, as often as it changes and at most once a second. A reader gets the newest one and never a
/// backlog: the next is made when it has taken the last.
fn events(site: &Arc<Site>, access: Access, stopped: watch::Receiver<bool>) -> Answer {
    if site.readers.fetch_add(1, Ordering::Relaxed) >= READERS_MAX {
        site.readers.fetch_sub(1, Ordering::Relaxed);
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "too many readers of /events; close another page");
    }
    let reader = Reader(Arc::clone(site));
    let operator = match access {
        _ if !site.desk.is_open() => page::Operator::Nobody,
        Access::Operates => page::Operator::Reader,
        Access::Nothing | Access::Reads => page::Operator::WithToken,
    };
    let changes = site.shared.snapshot.subscribe();
    let frames = stream::unfold((reader, changes, true), move |(reader, mut changes, is_first)| async move {
        if !is_first {
            sleep(EVENTS_EVERY).await;
            // Nothing new for a while: the browser learns that we are there all the same.
            let _ = timeout(EVENTS_EVERY * 10, changes.changed()).await;
        }
        let state = page::state(changes.borrow_and_update().clone(), operator);
        Some((Ok(Frame::data(Bytes::from(format!("data: {state}\n\n")))), (reader, changes, false)))
    });
    let until = async move { stop(&stopped).await };
    let mut response = body(StatusCode::OK, "text/event-stream", "");
    *response.body_mut() = StreamBody::new(frames.take_until(Box::pin(until))).boxed_unsync();
    response
}

/// A socket that is given up when its peer takes nothing for [`STALLED`].
struct Impatient {
    socket: TcpStream,
    /// Since when nothing could be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(socket: TcpStream) -> Impatient {
        Impatient { socket, stalled: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALLED)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Impatient {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, bytes);
        this.watch(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_as_a_bearers_or_as_a_password_and_compared_whole() {
        let basic = format!("Basic {}", STANDARD.encode("anybody:secret:token"));
        for (given, expected) in [
            ("Bearer secret:token", Some("secret:token")),
            ("bearer  secret:token", Some("secret:token")),
            (basic.as_str(), Some("secret:token")),
            ("Basic ???", None),
            ("Digest secret:token", None),
            ("secret:token", None),
        ] {
            assert_eq!(presented(given.as_bytes()).as_deref(), expected.map(str::as_bytes), "{given}");
        }
        assert!(is_same(b"abc", b"abc") && !is_same(b"abc", b"abd") && !is_same(b"abc", b"ab"));
    }
}
