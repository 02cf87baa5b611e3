//! The connection for the JetStream API: streams, tails, and whatever else is asked and answered.
//!
//! In: [`Settings`]. Out: a client of async-nats that dials, authenticates and encrypts as the publishing connections do,
//! and [`Control::api`], which asks in JSON and answers in JSON. JSON because an update must send back all that a stream's
//! configuration holds, also what this version of a client library has no field for.
//!
//! What always holds: every request ends, by its answer, by the server's refusal or by [`REQUEST_TIMEOUT`]; and
//! [`connect`] ends at the first refusal of who we are. A connection that is lost later dials again by itself, and does not
//! tell why it is refused then; the publishing connection, which meets the same refusal, does.

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    AuthError, Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, Request, RequestErrorKind,
    ServerError, connection::State as ConnectionState, jetstream,
};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::broadcast;

use super::{
    ack::{self, Ack},
    foreign::foreign,
    handshake,
    settings::{Api, ServerAddr, Settings},
    tls,
};
use crate::error::{Error, Result};

/// How long an answer may take: electing a stream's new leader takes a cluster some six seconds.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Refusals kept for requests that are waiting; far more than there are requests at a time.
const REFUSALS_KEPT: usize = 64;

/// The connection for the JetStream API.
#[derive(Clone)]
pub struct Control {
    client: Client,
    /// Every `-ERR` of the server: a forbidden subject gets no answer but this.
    refusals: broadcast::Sender<String>,
    api: Arc<Api>,
}

/// JetStream's answer where it is not what was asked for (manual, "JetStream API errors").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// As in HTTP: 404, 503, …
    pub code: u64,
    /// What exactly: 10059 no such stream, 10037 no such message, …
    pub err_code: u64,
    /// The server's words.
    pub description: String,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.description, self.err_code)
    }
}

impl StdError for ApiError {}

/// The cause of an error where a request reached nobody: no JetStream, or none for now, or none of that domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoJetStream;

impl std::fmt::Display for NoJetStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no JetStream answers")
    }
}

impl StdError for NoJetStream {}

/// Connects; bounded: each server is tried once.
pub async fn connect(settings: &Settings) -> Result<Control> {
    let (refusals, _) = broadcast::channel(REFUSALS_KEPT);
    let options = options(settings, refusals.clone(), |delay| delay).await?;
    open(settings, options, refusals).await
}

/// The same for work that ends with its connection: once lost, it stays so. What arrived is then a beginning of what was sent; on a
/// connection that comes back messages would arrive behind others that were lost with the first.
///
/// # Errors
/// As [`connect`].
pub async fn connect_once(settings: &Settings) -> Result<Control> {
    const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
    let (refusals, _) = broadcast::channel(REFUSALS_KEPT);
    let is_up = Arc::new(AtomicBool::new(false));
    let was_up = Arc::clone(&is_up);
    let options =
        options(settings, refusals.clone(), move |delay| if was_up.load(Ordering::Relaxed) { NEVER } else { delay });
    let control = open(settings, options.await?, refusals).await?;
    is_up.store(true, Ordering::Relaxed);
    Ok(control)
}

async fn open(settings: &Settings, options: ConnectOptions, refusals: broadcast::Sender<String>) -> Result<Control> {
    // What async-nats reads has no bound, so each server shows first how it begins.
    let looked = join_all(settings.servers.iter().map(|server| handshake::begins_as_nats(settings, server))).await;
    let (mut servers, mut strange) = (Vec::new(), None);
    for (server, looked) in settings.servers.iter().zip(looked) {
        match looked {
            Ok(()) => servers.push(address(server)?),
            Err(error) => strange = Some(error),
        }
    }
    if let (true, Some(error)) = (servers.is_empty(), strange) {
        return Err(error.context(format!("NATS configuration {:?}", settings.config_name)));
    }
    let error = match Box::pin(options.connect(servers)).await {
        Ok(client) => return Ok(Control { client, refusals, api: Arc::new(settings.api.clone()) }),
        Err(error) => error,
    };
    if error.kind() == ConnectErrorKind::TimedOut {
        for server in &settings.servers {
            if handshake::begins_with_tls(settings, server).await {
                return Err(
                    handshake::waits_for_tls(server).context(format!("NATS configuration {:?}", settings.config_name))
                );
            }
        }
    }
    Err(refused(settings, error))
}

/// `wait`: what becomes of the wait before another attempt.
async fn options(
    settings: &Settings,
    refusals: broadcast::Sender<String>,
    wait: impl Fn(Duration) -> Duration + Send + Sync + 'static,
) -> Result<ConnectOptions> {
    let auth = settings.auth.clone();
    // Asked for every new connection, so a rotated credentials file is taken up.
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        let auth = auth.clone();
        async move {
            let nonce = String::from_utf8(nonce).map_err(|_| AuthError::new("the server's nonce is not text"))?;
            let proof = auth.prove(Some(nonce.as_str()).filter(|nonce| !nonce.is_empty())).await;
            let proof = proof.map_err(AuthError::new)?;
            let mut answer = async_nats::Auth::new();
            answer.username = proof.user;
            answer.password = proof.password;
            answer.token = proof.token;
            answer.jwt = proof.jwt;
            answer.nkey = proof.nkey;
            answer.signature = proof.signature;
            Ok(answer)
        }
    });
    let servers = settings.servers.len();
    let delay = settings.reconnect_delay;
    options = options
        .name(&settings.name)
        .custom_inbox_prefix(&settings.inbox_prefix)
        .connection_timeout(settings.connect_timeout)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .retain_servers_order()
        .ignore_discovered_servers() // the allow-list speaks of the settings' servers
        // Counted by server, and 0 would mean for ever.
        .max_reconnects(settings.max_reconnects.map(|attempts| (attempts as usize).max(1) * servers))
        .reconnect_delay_callback(move |attempt| wait(if attempt <= servers { Duration::ZERO } else { delay }))
        .event_callback(move |event| {
            let refusals = refusals.clone();
            async move { heard(&event, &refusals) }
        })
        .require_tls(settings.tls.required)
        .tls_client_config(tls::client_config(&settings.tls).await?);
    Ok(if settings.tls.first { options.tls_first() } else { options })
}

fn address(server: &ServerAddr) -> Result<async_nats::ServerAddr> {
    server.to_string().parse().map_err(|_| Error::config(format!("{server} is not the address of a NATS server")))
}

fn heard(event: &Event, refusals: &broadcast::Sender<String>) {
    match event {
        Event::ServerError(ServerError::Other(text)) => {
            let text = foreign(text);
            tracing::debug!(text, "NATS refuses");
            // Nobody waiting is fine.
            let _ = refusals.send(text);
        }
        event => tracing::debug!("NATS control connection: {}", foreign(&event.to_string())),
    }
}

fn refused(settings: &Settings, error: async_nats::ConnectError) -> Error {
    let servers = settings.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let attempted = format!("NATS configuration {:?}: connect to {servers}", settings.config_name);
    if let [server] = &settings.servers[..]
        && let Some(error) = tls::refusal(server, &error)
    {
        return error.context(format!("NATS configuration {:?}", settings.config_name));
    }
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => handshake::refusal("Authorization Violation").context(attempted),
        // Our own answer to the nonce failed: a file is missing or a seed is wrong.
        ConnectErrorKind::Authentication | ConnectErrorKind::ServerParse => {
            Error::config(attempted).caused_by(foreign(&innermost(&error)))
        }
        ConnectErrorKind::Tls => Error::config(attempted).caused_by(error),
        _ => match error.source().and_then(|source| source.downcast_ref::<ServerError>()) {
            Some(ServerError::Other(text)) => handshake::refusal(text).context(attempted),
            _ => {
                let hint = format!("Check that it runs, its log, firewalls, and {}", settings.address_source);
                Error::unavailable(attempted).caused_by(error).hint(hint)
            }
        },
    }
}

fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut this = error;
    while let Some(source) = this.source() {
        this = source;
    }
    this.to_string()
}

impl Control {
    /// The client itself, for what the API is not.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether it stands, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == ConnectionState::Connected
    }

    /// JetStream by the functions of async-nats, under the same API prefix.
    pub fn jetstream(&self) -> jetstream::Context {
        jetstream::with_prefix(self.client.clone(), &self.api.prefix())
    }

    /// The subject of a request of JetStream's API: `$JS.API.<request>`, or under the prefix of the configuration.
    pub fn api_subject(&self, request: &str) -> String {
        format!("{}.{request}", self.api.prefix())
    }

    /// The subject on which an entry is put into a bucket of keys and values.
    pub fn entry_subject(&self, bucket: &str, key: &str) -> String {
        format!("{}$KV.{bucket}.{key}", self.api.entry_prefix())
    }

    /// The JetStream domain of the configuration, where it names one.
    pub fn domain(&self) -> Option<&str> {
        self.api.domain()
    }

    /// Whether a JetStream of another domain has answered than that of the configuration.
    pub(super) fn is_from_another_domain(&self, answer: &[u8]) -> bool {
        self.api.domain().is_some_and(|domain| ack::is_from_another_domain(domain, answer))
    }

    /// Asks `$JS.API.<request>` with `body`. The outer error: nobody answered, or we may not ask. The inner one: JetStream
    /// answered and says no.
    pub async fn api(&self, request: &str, body: &Value) -> Result<Result<Value, ApiError>> {
        let subject = self.api_subject(request);
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let message = self.ask(&subject, Request::new().payload(body.into())).await?;
        let mut value: Value = serde_json::from_slice(&message.payload)
            .map_err(|error| Error::protocol(format!("ask {subject}: the answer is not JSON")).caused_by(error))?;
        match value.get_mut("error").map(Value::take) {
            Some(error) if !error.is_null() => {
                let number = |key: &str| error.get(key).and_then(Value::as_u64).unwrap_or(0);
                let description = error.get("description").and_then(Value::as_str).unwrap_or("no description");
                Ok(Err(ApiError {
                    code: number("code"),
                    err_code: number("err_code"),
                    description: foreign(description),
                }))
            }
            _ => Ok(Ok(value)),
        }
    }

    /// What the server says of this user: its account, and what it may do.
    ///
    /// # Errors
    /// We may not ask, or the server does not answer.
    pub async fn user_info(&self) -> Result<Value> {
        let subject = "$SYS.REQ.USER.INFO";
        let message = self.ask(subject, Request::new().payload(Bytes::new())).await?;
        serde_json::from_slice(&message.payload)
            .map_err(|error| Error::protocol(format!("ask {subject}: the answer is not JSON")).caused_by(error))
    }

    /// Publishes one message into a stream, and returns its answer. Errors as in [`Control::api`].
    pub async fn publish(&self, subject: &str, headers: HeaderMap, payload: Bytes) -> Result<Ack> {
        let message = self.ask(subject, Request::new().headers(headers).payload(payload)).await?;
        if self.is_from_another_domain(&message.payload) {
            return Err(Error::config(format!("ask {subject}: a stream of another JetStream domain has answered"))
                .hint(format!("Two domains have a stream that takes {subject}: rename one, or narrow its subjects")));
        }
        Ack::parse(message.status.map(|status| status.as_u16()), &message.payload)
            .map_err(|error| Error::protocol(format!("ask {subject}: the answer is unreadable")).caused_by(error))
    }

    /// Requests that async-nats makes by itself: where the server forbids one, the error says which, in place of a time-out.
    ///
    /// # Errors
    /// The server forbids one.
    pub async fn permitted<T>(&self, attempted: impl Fn() -> String, work: impl Future<Output = T>) -> Result<T> {
        let mut refusals = self.refusals();
        let begins = format!("Publish to \"{}.", self.api.prefix());
        tokio::select! {
            done = work => Ok(done),
            text = refused_with(&mut refusals, |text| text.contains(&begins)) => {
                Err(Error::permission(format!("{}: the NATS server says: {text}", attempted()))
                    .hint("Allow this user to publish to that subject; docs/nats-permissions.md lists what each command needs"))
            }
        }
    }

    /// Ends when the server refuses, from now on, that this user publishes to `subject` or subscribes to it, with the server's words.
    pub fn refusal(&self, subject: &str) -> impl Future<Output = String> + use<> {
        let (mut refusals, subject) = (self.refusals(), subject.to_owned());
        async move { forbidden(&mut refusals, &subject).await }
    }

    /// Every refusal of the server from now on, for [`forbidden`].
    pub(super) fn refusals(&self) -> broadcast::Receiver<String> {
        self.refusals.subscribe()
    }

    async fn ask(&self, subject: &str, request: Request) -> Result<Message> {
        let attempted = || format!("ask {subject}");
        // Before sending, so that no refusal is missed.
        let (mut refusals, mut inbox_refusals) = (self.refusals(), self.refusals());
        let inbox = self.inbox_prefix();
        let answer = tokio::select! {
            answer = self.client.send_request(subject.to_owned(), request) => answer,
            text = forbidden(&mut refusals, subject) => {
                return Err(Error::permission(format!("{}: the NATS server says: {text}", attempted()))
                    .hint(format!("Allow this user to publish to {subject}")));
            }
            text = forbidden_inbox(&mut inbox_refusals, &inbox) => {
                return Err(Error::permission(format!("{}: the NATS server says: {text}", attempted())).hint(format!(
                    "Allow this user to subscribe to {inbox}>, or name what it may subscribe to: nats.inbox_prefix"
                )));
            }
        };
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => self.nobody(attempted()),
            RequestErrorKind::TimedOut if self.client.connection_state() != ConnectionState::Connected => {
                Error::unavailable(format!("{}: the connection to NATS is lost", attempted()))
            }
            RequestErrorKind::TimedOut => {
                Error::unavailable(format!("{}: no answer within {} s", attempted(), REQUEST_TIMEOUT.as_secs())).hint(
                    format!(
                        "Check JetStream's health, and that this user may subscribe to {}> (nats.inbox_prefix)",
                        self.inbox_prefix()
                    ),
                )
            }
            RequestErrorKind::InvalidSubject => Error::config(attempted()).caused_by(error),
            _ => Error::unavailable(attempted()).caused_by(error),
        })
    }

    /// 503: no JetStream, or none for now.
    fn nobody(&self, attempted: String) -> Error {
        if !self.api.is_default() {
            return Error::unavailable(attempted).caused_by(NoJetStream).hint(format!(
                "Check that JetStream and the leaf node connection to it run, and {} (jetstream_domain and api_prefix of the row \
                 in rule_nats_config, or of [nats] in the configuration file)",
                self.api
            ));
        }
        match self.client.server_info().jetstream {
            true => Error::unavailable(attempted)
                .caused_by(NoJetStream)
                .hint("The server may still be starting; else check its JetStream settings"),
            false => Error::config(attempted).caused_by(NoJetStream).hint(
                "Enable JetStream on the server (jetstream { store_dir: … }), or connect to one that has it. If it runs in another \
                 domain (behind a leaf node) or under another API prefix, set jetstream_domain or api_prefix of the row in \
                 rule_nats_config",
            ),
        }
    }

    /// Below which subject answers come, up to its last dot.
    fn inbox_prefix(&self) -> String {
        let inbox = self.client.new_inbox();
        inbox.rsplit_once('.').map_or_else(|| inbox.clone(), |(prefix, _)| format!("{prefix}."))
    }
}

/// Ends when the server refuses `subject`; otherwise never.
pub(super) async fn forbidden(refusals: &mut broadcast::Receiver<String>, subject: &str) -> String {
    let quoted = format!("\"{subject}\"");
    refused_with(refusals, |text| text.contains(&quoted)).await
}

/// Ends when the server refuses the subscription below `inbox`; otherwise never.
async fn forbidden_inbox(refusals: &mut broadcast::Receiver<String>, inbox: &str) -> String {
    let begins = format!("Subscription to \"{inbox}");
    refused_with(refusals, |text| text.contains(&begins)).await
}

async fn refused_with(refusals: &mut broadcast::Receiver<String>, is_it: impl Fn(&str) -> bool) -> String {
    loop {
        match refusals.recv().await {
            Ok(text) if is_it(&text) => return text,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
