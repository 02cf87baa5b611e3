//! An HTTP server that answers as a test wants, also as no server should.
//!
//! In: for each request, a [`Reply`]. Out: all requests as they came. It runs on a thread of its own, so a test that blocks
//! does not stop it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    time::sleep,
};

use super::{
    eventually, runtime,
    tls::{Authority, Identity},
};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// `POST`
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
    /// When it was there.
    pub at: Instant,
}

impl Request {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What the server does.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Answers with this status, after a while, with these headers and body.
    Answer {
        /// The status.
        status: u16,
        /// More headers.
        headers: Vec<(&'static str, String)>,
        /// The body.
        body: Vec<u8>,
        /// How long it takes to think.
        after: Duration,
    },
    /// Says nothing and keeps the connection.
    Hang,
    /// Begins to answer, and sends a byte of the body every 50 ms for ever.
    Drip,
    /// Promises more bytes than it sends, then closes.
    Lie,
    /// Closes without an answer.
    Close,
    /// Says something that is not HTTP.
    Nonsense,
    /// Sends the first, then the second again and again.
    Endless(&'static str, &'static str),
}

impl Reply {
    /// A status and nothing more.
    pub fn status(status: u16) -> Reply {
        Reply::Answer { status, headers: Vec::new(), body: Vec::new(), after: Duration::ZERO }
    }

    /// A status and a header.
    pub fn with(status: u16, name: &'static str, value: &str) -> Reply {
        Reply::Answer { status, headers: vec![(name, value.to_owned())], body: Vec::new(), after: Duration::ZERO }
    }

    /// 200 after a while.
    pub fn slow(after: Duration) -> Reply {
        Reply::Answer { status: 200, headers: Vec::new(), body: Vec::new(), after }
    }

    /// 200 with a body.
    pub fn body(body: impl Into<Vec<u8>>) -> Reply {
        Reply::Answer { status: 200, headers: Vec::new(), body: body.into(), after: Duration::ZERO }
    }
}

type Script = Arc<dyn Fn(usize, &Request) -> Reply + Send + Sync>;

/// A running server; it ends with the test.
pub struct Http {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
}

struct Shared {
    requests: Mutex<Vec<Request>>,
    script: Mutex<Script>,
    /// Requests that are being answered, now and at most.
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Http {
    /// A server on 127.0.0.1 that answers the n-th request, counted from 0, by `script`.
    pub fn start(script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Http {
        Self::serve(script, None)
    }

    /// The same by TLS.
    pub fn start_tls(identity: &Identity, script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Http {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Self::serve(script, Some(tokio_rustls::TlsAcceptor::from(Arc::new(config))))
    }

    /// The same, for clients with a certificate of this authority only.
    pub fn start_mtls(
        identity: &Identity,
        clients: &Authority,
        script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Http {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(clients.certificate.as_bytes()).unwrap()).unwrap();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        Self::serve(script, Some(tokio_rustls::TlsAcceptor::from(Arc::new(config))))
    }

    /// 200 to everything.
    pub fn ok() -> Http {
        Self::start(|_, _| Reply::status(200))
    }

    fn serve(
        script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
        tls: Option<tokio_rustls::TlsAcceptor>,
    ) -> Http {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            script: Mutex::new(Arc::new(script)),
            busy: AtomicUsize::new(0),
            busiest: AtomicUsize::new(0),
        });
        let server = Arc::clone(&shared);
        // It is left behind at the end: the process takes it along.
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    let (shared, tls) = (Arc::clone(&server), tls.clone());
                    tokio::spawn(async move {
                        match tls {
                            None => converse(stream, &shared).await,
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    converse(stream, &shared).await;
                                }
                            }
                        }
                    });
                }
            });
        });
        Http { address, scheme, shared }
    }

    /// Its URL, with this path.
    pub fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.address.port())
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Answers differently from now on.
    pub fn script(&self, script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) {
        *self.shared.script() = Arc::new(script);
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests().clone()
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.shared.requests().len()
    }

    /// How many were being answered at the same time, at most.
    pub fn busiest(&self) -> usize {
        self.shared.busiest.load(Ordering::Relaxed)
    }

    /// Waits for so many requests, and returns them.
    pub async fn received(&self, count: usize) -> Vec<Request> {
        eventually(&format!("{count} requests"), async || (self.count() >= count).then_some(())).await;
        self.requests()
    }
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) {
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut stream, &mut buffer).await {
        let script = Arc::clone(&shared.script());
        let number = {
            let mut requests = shared.requests();
            requests.push(request.clone());
            requests.len() - 1
        };
        let busy = shared.busy.fetch_add(1, Ordering::Relaxed) + 1;
        shared.busiest.fetch_max(busy, Ordering::Relaxed);
        let goes_on = answer(&mut stream, script(number, &request)).await;
        shared.busy.fetch_sub(1, Ordering::Relaxed);
        if goes_on.is_none() {
            return;
        }
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Request> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let mut lines = head.split("\r\n");
            let mut words = lines.next()?.split(' ');
            let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
            let headers: HashMap<String, String> = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
            if buffer.len() >= end + 4 + length {
                let body = buffer[end + 4..end + 4 + length].to_vec();
                buffer.drain(..end + 4 + length);
                return Some(Request { method, path, headers, body, at: Instant::now() });
            }
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// `None`: the connection is over.
async fn answer(stream: &mut (impl AsyncWrite + Unpin), reply: Reply) -> Option<()> {
    match reply {
        Reply::Answer { status, headers, body, after } => {
            if !after.is_zero() {
                sleep(after).await;
            }
            let mut text = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
            for (name, value) in headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            text.push_str("\r\n");
            let mut bytes = text.into_bytes();
            bytes.extend_from_slice(&body);
            stream.write_all(&bytes).await.ok()
        }
        Reply::Hang => std::future::pending().await,
        Reply::Drip => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await.ok()?;
            loop {
                stream.write_all(b"x").await.ok()?;
                sleep(Duration::from_millis(50)).await;
            }
        }
        Reply::Endless(first, rest) => {
            stream.write_all(first.as_bytes()).await.ok()?;
            let rest = rest.repeat(1000);
            loop {
                stream.write_all(rest.as_bytes()).await.ok()?;
            }
        }
        Reply::Lie => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort").await.ok()?;
            let _ = stream.shutdown().await;
            None
        }
        Reply::Close => {
            let _ = stream.shutdown().await;
            None
        }
        Reply::Nonsense => {
            stream.write_all(b"220 mail.example.com ESMTP\r\n").await.ok()?;
            let _ = stream.shutdown().await;
            None
        }
    }
}
