//! One HTTP request and its answer.
//!
//! In: a webhook, what its message says, the keys to sign with. Out: an [`Answer`], always, within the webhook's timeout. The
//! status decides; the body is kept for the record only, up to [`BODY_KEPT_MAX`]. Nothing is followed, nothing is tried
//! twice, and the address that was judged is the one that is dialled.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, Uri,
    body::Incoming,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_LOCATION, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
        USER_AGENT,
    },
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    deliver::{
        message::{self, Call},
        network::{self, Network},
        oauth2::{Ask, NoToken},
        schedule::{self, Outcome},
        sign::{self, Key},
        webhook::Webhook,
    },
    error::{Error, Result},
    files, percent,
    route::{
        headers::{is_credential, push_encoded},
        shown_url::shown_url,
    },
};

/// How much of an answer's body is kept.
const BODY_KEPT_MAX: usize = 64 << 10;
/// How much of it is read at all; beyond it the connection is closed, which costs less than to read on.
const BODY_READ_MAX: usize = 1 << 20;
/// How large the head of an answer may be.
const HEAD_MAX: usize = 64 << 10;
/// How long one address of several may take to connect.
const DIAL: Duration = Duration::from_secs(3);
/// How many addresses of a name are tried.
const ADDRESSES_MAX: usize = 4;
/// Shorter than the five seconds after which common servers close an idle connection: a request that meets the close would
/// fail for nothing.
const IDLE: Duration = Duration::from_secs(4);

/// What came of a request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What it means.
    pub outcome: Outcome,
    /// The headers, a JSON object, without what looks like a credential.
    pub headers: Option<String>,
    /// The beginning of the body, as text that PostgreSQL can keep.
    pub body: Option<String>,
    /// When the attempt began.
    pub started: SystemTime,
    /// How long it took.
    pub took: Duration,
}

impl Answer {
    /// Nothing was sent, for that reason.
    pub fn not_sent(why: String) -> Answer {
        let outcome = Outcome::NotSent(why);
        Answer { outcome, headers: None, body: None, started: SystemTime::now(), took: Duration::ZERO }
    }
}

/// Makes calls; holds the connections that servers keep open.
pub struct Caller {
    client: Client<Connector, Full<Bytes>>,
    connector: Connector,
    roots: Arc<RootCertStore>,
    /// Of the URLs that were called last: reading one costs as much as the rest of a request's head.
    targets: Mutex<HashMap<String, Target>>,
}

/// Where to, and who the URL says we are.
type Target = (Uri, Option<HeaderValue>);

/// How many URLs are remembered.
const TARGETS_MAX: usize = 1024;

/// An answer of a token endpoint.
pub type Posted = std::result::Result<(u16, Vec<u8>), NoToken>;

/// How far a connection comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The URL is read.
    Url,
    /// Its host has an address that may be called.
    Network,
    /// Its host is resolved.
    Resolve,
    /// TCP.
    Connect,
    /// TLS.
    Tls,
}

impl Caller {
    /// A caller that dials what is outside, and `allowed` inside. `ca` is trusted besides the system's certificates.
    ///
    /// # Errors
    /// `ca` cannot be read.
    pub fn new(allowed: &[Network], ca: Option<&Path>) -> Result<Caller> {
        let roots = Arc::new(roots(ca)?);
        let config = tls(&roots).map(|builder| builder.with_no_client_auth());
        let config = config.map_err(|error| Error::protocol("prepare TLS towards webhooks").caused_by(error))?;
        Ok(Caller::with(Connector { allowed: allowed.into(), tls: Arc::new(config) }, roots))
    }

    /// The same that shows this certificate (PEM, with those between it and its authority) to servers that ask for one.
    ///
    /// # Errors
    /// Why it cannot be used; neither certificate nor key is shown.
    pub fn certified(&self, certificate: &str, key: &str) -> std::result::Result<Caller, String> {
        let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
        let chain = chain.map_err(|_| "the secret tls_certificate is no certificate in PEM")?;
        if chain.is_empty() {
            return Err("the secret tls_certificate has no certificate in PEM".to_owned());
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| "the secret tls_key is no key in PEM")?;
        let config = tls(&self.roots).and_then(|builder| builder.with_client_auth_cert(chain, key));
        let config =
            config.map_err(|error| format!("the secrets tls_certificate and tls_key cannot be used: {error}"))?;
        Ok(Caller::with(Connector { tls: Arc::new(config), ..self.connector.clone() }, Arc::clone(&self.roots)))
    }

    fn with(connector: Connector, roots: Arc<RootCertStore>) -> Caller {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(HEAD_MAX)
            .build(connector.clone());
        Caller { client, connector, roots, targets: Mutex::default() }
    }

    /// Asks a token endpoint, under the rules that hold for webhooks: the same addresses, certificates and bounds, no redirect.
    pub async fn ask_for_token(&self, url: &str, ask: &Ask, within: Duration) -> Posted {
        let refused = |why: String| NoToken::Refused(why);
        let (uri, _) = target(url).map_err(|why| refused(why.replace("the webhook's url", "its token_url")))?;
        let mut request = Request::new(Full::new(Bytes::from(ask.form.clone())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("walhook/", env!("CARGO_PKG_VERSION"))));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some((id, secret)) = &ask.login {
            let login = format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
            headers.insert(
                AUTHORIZATION,
                sensitive(&login).ok_or_else(|| refused("its login cannot be sent".to_owned()))?,
            );
        }
        let deadline = Instant::now() + within;
        let late = || NoToken::Later(format!("no answer within {} ms", within.as_millis()));
        match timeout_at(deadline, self.client.request(request)).await {
            Err(_) => Err(late()),
            Ok(Err(error)) => Err(match failure(&error) {
                Outcome::NotSent(why) => NoToken::Refused(why),
                Outcome::Unanswered(why) => NoToken::Later(why),
                Outcome::Answered { .. } => late(),
            }),
            Ok(Ok(response)) => {
                let status = response.status().as_u16();
                Ok((status, read_bytes(response, deadline).await))
            }
        }
    }

    /// Connects as a call to this URL does, TLS included, and sends nothing. The server's own certificate (DER), where there is one.
    ///
    /// # Errors
    /// The step at which it ends, and why.
    pub async fn reach(&self, url: &str, within: Duration) -> Result<Option<Vec<u8>>, (Step, String)> {
        let (uri, _) = target(url).map_err(|why| (Step::Url, why))?;
        let socket = match timeout(within, self.connector.clone().connect(uri)).await {
            Err(_) => return Err((Step::Connect, format!("no connection within {} ms", within.as_millis()))),
            Ok(Err(NotDialled::Refused(why))) => return Err((Step::Network, why)),
            Ok(Err(NotDialled::Failed(step, why))) => return Err((step, why)),
            Ok(Ok(socket)) => socket,
        };
        Ok(match &socket.stream {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => {
                let (_, session) = stream.inner().get_ref();
                session.peer_certificates().and_then(|chain| chain.first()).map(|certificate| certificate.to_vec())
            }
        })
    }

    /// What [`target`] makes of a URL.
    fn target(&self, url: &str) -> std::result::Result<Target, String> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = targets.get(url) {
            return Ok(target.clone());
        }
        let target = target(url)?;
        if targets.len() >= TARGETS_MAX {
            targets.clear();
        }
        targets.insert(url.to_owned(), target.clone());
        Ok(target)
    }

    /// Calls, with this `Authorization` where there is one, and answers within the webhook's timeout.
    pub async fn call(
        &self,
        webhook: &Webhook,
        call: &Call<'_>,
        keys: Result<&[Key], String>,
        authorization: Option<&str>,
    ) -> Answer {
        let (started, began) = (SystemTime::now(), Instant::now());
        let deadline = began + Duration::from_millis(webhook.timeout_ms);
        let mut answer = Answer {
            outcome: Outcome::NotSent(String::new()),
            headers: None,
            body: None,
            started,
            took: Duration::ZERO,
        };
        let now = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let request =
            keys.and_then(|keys| request(webhook, self.target(&webhook.url)?, call, keys, now, authorization));
        answer.outcome = match request {
            Err(problem) => Outcome::NotSent(problem),
            Ok(request) => match until_deadline(deadline, self.client.request(request)).await {
                None => Outcome::Unanswered(format!("no answer within {} ms", webhook.timeout_ms)),
                Some(Err(error)) => failure(&error),
                Some(Ok(response)) => {
                    let outcome = Outcome::Answered {
                        status: response.status().as_u16(),
                        retry_after: text(response.headers(), RETRY_AFTER)
                            .and_then(|value| schedule::retry_after(value, now)),
                    };
                    answer.headers = Some(shown(response.headers()));
                    answer.body = Some(read(response, deadline).await);
                    outcome
                }
            },
        };
        answer.took = began.elapsed();
        #[cfg(feature = "otlp")]
        crate::commands::otlp::called(webhook, call, &answer.outcome, (started, answer.took));
        answer
    }
}

/// What comes before the deadline. The deadline is looked at first: a process that stood still beyond it sends no request that it had
/// not sent before, because the call's place may be another worker's by then.
async fn until_deadline<T>(deadline: Instant, answer: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = sleep_until(deadline) => None,
        answer = answer => Some(answer),
    }
}

/// The request, or why there can be none.
fn request(
    webhook: &Webhook,
    (uri, login): Target,
    call: &Call<'_>,
    keys: &[Key],
    now: u64,
    authorization: Option<&str>,
) -> std::result::Result<Request<Full<Bytes>>, String> {
    let method = Method::from_bytes(webhook.method.as_bytes())
        .map_err(|_| format!("method {:?} is not one of HTTP's", webhook.method))?;
    // A GET has no body to speak of: proxies drop it, and servers refuse it.
    let body = if method == Method::GET { Bytes::new() } else { Bytes::copy_from_slice(call.body) };
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("walhook/", env!("CARGO_PKG_VERSION"))));
    let content_type = HeaderValue::from_str(call.content_type);
    headers.insert(CONTENT_TYPE, content_type.unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream")));
    if let Some(login) = login {
        headers.insert(AUTHORIZATION, login);
    }
    for (name, value) in webhook.headers.iter().chain(&call.headers) {
        if message::is_reserved(name) {
            continue;
        }
        let wrong = |what| format!("header {name:?} of the webhook {what}");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong("has a name that HTTP does not allow"))?;
        let value = HeaderValue::from_str(value).map_err(|_| wrong("has a value that HTTP does not allow"))?;
        headers.insert(name, value);
    }
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, sensitive(authorization).ok_or("its access token cannot be in a header")?);
    }
    let id = &call.webhook_id;
    let own = |value: &str| HeaderValue::from_str(value).map_err(|_| "the event's id cannot be in a header".to_owned());
    headers.insert("webhook-id", own(id)?);
    headers.insert("webhook-timestamp", HeaderValue::from(now));
    if let Some(kind) = call.kind.as_deref() {
        let mut encoded = Vec::new();
        // What is encoded already comes from a header.
        match kind.is_ascii() {
            true => encoded.extend_from_slice(kind.as_bytes()),
            false => push_encoded(kind.as_bytes(), &mut encoded),
        }
        if let Ok(kind) = HeaderValue::from_bytes(&encoded) {
            headers.insert("walhook-type", kind);
        }
    }
    for (name, value) in [("walhook-op", call.op), ("walhook-old-key", call.old_key)] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    }
    if !keys.is_empty() {
        let (name, value) = webhook.signature.sign(keys, id, now, &body)?;
        if message::is_reserved(&name) && !name.eq_ignore_ascii_case(sign::HEADER) {
            return Err(format!("the header {name:?} of its signature_template has another use"));
        }
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| "the header of its signature_template has a name that HTTP does not allow".to_owned())?;
        let value = HeaderValue::from_str(&value)
            .map_err(|_| "its signature_template makes a value that HTTP does not allow".to_owned())?;
        headers.insert(name, value);
    }
    *request.body_mut() = Full::new(body);
    Ok(request)
}

/// Reads a URL.
fn target(url: &str) -> std::result::Result<Target, String> {
    // A URL may hold a password: it is not quoted.
    let parsed = url::Url::parse(url).map_err(|error| format!("the webhook's url cannot be read: {error}"))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(format!("the webhook's url has the scheme {:?}; only http and https are called", parsed.scheme()));
    }
    let login = match (parsed.username(), parsed.password()) {
        ("", None) => None,
        (user, password) => {
            let decode =
                |text| percent::decode(text).ok_or("the login in the webhook's url is not percent-encoded text");
            let pair = format!("{}:{}", decode(user)?, decode(password.unwrap_or_default())?);
            let login = sensitive(&format!("Basic {}", STANDARD.encode(pair)));
            Some(login.ok_or("the login in the webhook's url cannot be sent")?)
        }
    };
    let authority = &parsed[url::Position::BeforeHost..url::Position::AfterPort];
    let path = &parsed[url::Position::BeforePath..url::Position::AfterQuery];
    let uri = Uri::builder().scheme(parsed.scheme()).authority(authority).path_and_query(path).build();
    Ok((uri.map_err(|error| format!("the webhook's url cannot be called: {error}"))?, login))
}

/// A header's value that no debug output shows.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Why there was no answer: what lies at the bottom, for hyper's own words say little.
fn failure(error: &hyper_util::client::legacy::Error) -> Outcome {
    let mut causes = Vec::new();
    let mut next: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(this) = next {
        match this.downcast_ref::<NotDialled>() {
            Some(NotDialled::Refused(why)) => return Outcome::NotSent(why.clone()),
            Some(NotDialled::Failed(_, why)) => return Outcome::Unanswered(why.clone()),
            None => causes.push(this.to_string()),
        }
        next = this.source();
    }
    causes.dedup();
    if causes.is_empty() {
        causes.push(error.to_string());
    }
    Outcome::Unanswered(causes.join(": "))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn shown(headers: &HeaderMap) -> String {
    let mut object = serde_json::Map::new();
    for (name, value) in headers {
        let mut text = storable(value.as_bytes());
        // A redirect often goes to the URL that was called, with all that is in it.
        if *name == LOCATION || *name == CONTENT_LOCATION {
            text = shown_url(&text).into_owned();
        }
        let value = serde_json::Value::String(text);
        if !is_credential(name.as_str(), &value) {
            object.insert(name.as_str().to_owned(), value);
        }
    }
    serde_json::Value::Object(object).to_string()
}

/// As much of the body as is kept; the rest is read, so that the connection can be used again, or not at all.
async fn read(response: Response<Incoming>, deadline: Instant) -> String {
    storable(&read_bytes(response, deadline).await)
}

async fn read_bytes(response: Response<Incoming>, deadline: Instant) -> Vec<u8> {
    let mut body = response.into_body();
    let mut kept = Vec::new();
    let mut seen = 0;
    // A body that breaks off, or drips until the deadline, is kept as far as it came: the status was the answer.
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        let Some(data) = frame.data_ref() else { continue };
        seen += data.len();
        kept.extend_from_slice(&data[..data.len().min(BODY_KEPT_MAX - kept.len())]);
        if seen > BODY_READ_MAX {
            break;
        }
    }
    kept
}

/// PostgreSQL's text has no NUL and nothing that is not UTF-8.
fn storable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}")
}

/// Whom servers have their certificates from.
fn roots(ca: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(files::system_certificates()?.0);
    if let Some(file) = ca {
        let unusable = || Error::config(format!("read certificates to trust from {} (deliver.ca)", files::shown(file)));
        let content = files::read("deliver.ca", file)?;
        let certificates = CertificateDer::pem_slice_iter(&content);
        for certificate in certificates {
            let certificate = certificate.map_err(|_| unusable())?; // the cause could quote a key
            roots.add(certificate).map_err(|error| unusable().caused_by(error))?;
        }
    }
    Ok(roots)
}

type TlsBuilder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn tls(roots: &Arc<RootCertStore>) -> std::result::Result<TlsBuilder, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(Arc::clone(roots)))
}

/// Resolves, judges, dials, encrypts.
#[derive(Clone)]
struct Connector {
    allowed: Arc<[Network]>,
    tls: Arc<ClientConfig>,
}

/// Why there is no connection.
#[derive(Debug)]
enum NotDialled {
    /// It may not be dialled.
    Refused(String),
    /// It could not, at this step.
    Failed(Step, String),
}

impl fmt::Display for NotDialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (NotDialled::Refused(why) | NotDialled::Failed(_, why)) = self;
        f.write_str(why)
    }
}

impl StdError for NotDialled {}

impl tower_service::Service<Uri> for Connector {
    type Response = Socket;
    type Error = NotDialled;
    type Future = Pin<Box<dyn Future<Output = Result<Socket, NotDialled>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NotDialled>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

impl Connector {
    async fn connect(self, uri: Uri) -> Result<Socket, NotDialled> {
        let is_https = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let stream = self.dial(host, port).await?;
        // Small messages, each waited for.
        let _ = stream.set_nodelay(true);
        if !is_https {
            return Ok(Socket::over(Stream::Plain(TokioIo::new(stream))));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            NotDialled::Failed(Step::Tls, format!("{host:?} is no name that a certificate could carry"))
        })?;
        let stream = TlsConnector::from(self.tls)
            .connect(name, stream)
            .await
            .map_err(|error| NotDialled::Failed(Step::Tls, format!("TLS with {host}: {error}")))?;
        Ok(Socket::over(Stream::Tls(Box::new(TokioIo::new(stream)))))
    }

    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, NotDialled> {
        let addresses: Vec<IpAddr> = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => lookup_host((host, port))
                .await
                .map_err(|error| NotDialled::Failed(Step::Resolve, format!("resolve {host}: {error}")))?
                .map(|address| address.ip())
                .collect(),
        };
        let (mut refused, mut failed) = (None, None);
        for address in addresses.into_iter().take(ADDRESSES_MAX) {
            if let Some(why) = network::refusal(address, &self.allowed) {
                refused = Some(why);
                continue;
            }
            let address = SocketAddr::new(address, port);
            match timeout(DIAL, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failed = Some(format!("connect to {address}: {error}")),
                Err(_) => failed = Some(format!("connect to {address}: not within {} s", DIAL.as_secs())),
            }
        }
        Err(match (failed, refused) {
            (Some(why), _) => NotDialled::Failed(Step::Connect, why),
            (None, Some(why)) => NotDialled::Refused(format!("{host} is not called: {why}")),
            (None, None) => NotDialled::Failed(Step::Resolve, format!("resolve {host}: it has no address")),
        })
    }
}

/// A connection as hyper wants it. A receiver that sends without an end, however fast, has its turn and no more: all calls share one
/// thread, and hyper reads on as long as there is something.
struct Socket {
    stream: Stream,
    /// Reads in a row that found something.
    reads: u8,
}

/// Reads in a row before others have their turn.
const READS_AT_A_TIME: u8 = 2;

enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Socket {
    fn over(stream: Stream) -> Socket {
        Socket { stream, reads: 0 }
    }
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.reads >= READS_AT_A_TIME {
            this.reads = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        this.reads = if polled.is_ready() { this.reads + 1 } else { 0 };
        polled
    }
}

impl Write for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_http_urls_are_called_and_a_login_is_taken_off_them() {
        let (uri, login) = target("https://us%40er:p%C3%A4ss@Example.com:8443/a b?c=d#e").unwrap();
        assert_eq!(uri.to_string(), "https://example.com:8443/a%20b?c=d");
        assert_eq!(login.unwrap(), format!("Basic {}", STANDARD.encode("us@er:päss")));
        let (uri, login) = target("http://[::1]/").unwrap();
        assert_eq!((uri.host(), login), (Some("[::1]"), None));
        // As browsers read it, so that nothing is judged by another spelling.
        assert_eq!(target("http://0x7f.1/").unwrap().0.host(), Some("127.0.0.1"));
        for (bad, reason) in
            [("ftp://example.com/", "ftp"), ("file:///etc/passwd", "file"), ("hunter2", "cannot be read")]
        {
            let error = target(bad).unwrap_err();
            assert!(error.contains(reason) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_postgresql_cannot_keep_is_replaced() {
        assert_eq!(storable(b"a\0b\xff"), "a\u{fffd}b\u{fffd}");
    }
}
