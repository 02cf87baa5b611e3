//! A worker in Rust: takes events from JetStream and calls their webhooks. What it promises: ../README.md.

use std::{
    collections::HashMap,
    error::Error,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_nats::{
    HeaderMap,
    jetstream::{
        self, AckKind, Context, Message,
        consumer::{AckPolicy, PullConsumer, pull},
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{StreamExt, future::join_all};
use ring::{aead, hkdf};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Deserialize)]
struct Event<'a> {
    id: String,
    webhook_url: String,
    headers: HashMap<String, String>,
    #[serde(borrow)]
    data: &'a RawValue, // as it is: no number loses a digit
}

struct Worker {
    js: Context,
    agent: ureq::Agent,
    stream: String,
    durable: String,
    max_attempts: u64,
    retry: Duration,
    calls: AtomicU64,
    micros: AtomicU64,
}

fn setting(name: &str, otherwise: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| otherwise.to_owned())
}

fn signature(id: &str, timestamp: u64, body: &str) -> Result<Option<String>, Failure> {
    let Ok(secret) = std::env::var("WEBHOOK_SECRET") else { return Ok(None) };
    let key = STANDARD.decode(secret.trim_start_matches("whsec_"))?;
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let tag = ring::hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes());
    Ok(Some(format!("v1,{}", STANDARD.encode(tag))))
}

/// The body of a message, opened if it is sealed: ../../../docs/sealed-payloads.md.
fn opened(headers: Option<&HeaderMap>, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let Some(seal) = headers.and_then(|headers| headers.get("Walhook-Sealed")) else { return Ok(body.to_vec()) };
    // v1 <key>.<key id> <event id>
    let (["v1", label, _], 44..) = (&seal.as_str().split(' ').collect::<Vec<_>>()[..], body.len()) else {
        return Err(format!("sealed in a way that this worker does not know: {seal}").into());
    };
    if label.contains('/') {
        return Err(format!("{label} is not the name of a key").into());
    }
    let file = Path::new(&setting("SEAL_KEYS_DIR", ".")).join(label);
    let digits = fs::read_to_string(&file).map_err(|error| format!("sealed with the key {label}: {error}"))?;
    let digits = digits.trim();
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let secret: Option<Vec<u8>> = (0..64).step_by(2).map(byte).collect();
    let secret = secret.ok_or_else(|| format!("{} does not hold 64 hexadecimal digits", file.display()))?;
    let (salt, sealed) = body.split_at(16);
    let (nonce, sealed) = sealed.split_at(12);
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&secret);
    let derived = extracted.expand(&[b"walhook sealed v1"], &aead::AES_256_GCM).map_err(|_| "HKDF")?;
    let key = aead::LessSafeKey::new(derived.into());
    let (nonce, mut body) = (aead::Nonce::try_assume_unique_for_key(nonce).map_err(|_| "nonce")?, sealed.to_vec());
    let opened = key.open_in_place(nonce, aead::Aad::from(seal.as_str()), &mut body);
    Ok(opened.map_err(|_| format!("the key {label} does not open it"))?.to_vec())
}

/// Blocks until the webhook has answered.
fn call(agent: &ureq::Agent, headers: Option<&HeaderMap>, payload: &[u8]) -> Result<(), Failure> {
    let payload = opened(headers, payload)?;
    let event: Event = serde_json::from_slice(&payload)?;
    let (id, body) = (event.id.replace('.', "_"), event.data.get());
    let timestamp = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut request = agent.post(setting("WEBHOOK_URL", &event.webhook_url)).header("content-type", "application/json");
    for (name, value) in &event.headers {
        request = request.header(name, value);
    }
    request = request.header("webhook-id", &id).header("webhook-timestamp", timestamp.to_string());
    if let Some(signature) = signature(&id, timestamp, body)? {
        request = request.header("webhook-signature", signature);
    }
    let mut response = request.send(body)?;
    response.body_mut().with_config().limit(1 << 20).read_to_vec()?; // the connection is free for the next call
    if response.status().is_success() { Ok(()) } else { Err(format!("answered {}", response.status()).into()) }
}

impl Worker {
    async fn handle(&self, message: Message) -> Result<(), Failure> {
        let started = Instant::now();
        let (sequence, attempt) = {
            let info = message.info()?;
            (info.stream_sequence, u64::try_from(info.delivered)?)
        };
        let (agent, headers, payload) = (self.agent.clone(), message.headers.clone(), message.payload.clone());
        match tokio::task::spawn_blocking(move || call(&agent, headers.as_ref(), &payload)).await? {
            Ok(()) => message.ack().await?,
            Err(failed) => {
                eprintln!("{} #{sequence}, attempt {attempt}: {failed}", message.subject);
                let doublings = u32::try_from(attempt - 1)?.min(22);
                let wait = AckKind::Nak(Some((self.retry * (1 << doublings)).min(Duration::from_secs(3600))));
                if attempt < self.max_attempts {
                    message.ack_with(wait).await?;
                } else if let Err(problem) = self.give_up(&message, sequence, &failed.to_string()).await {
                    eprintln!("dead letter: {problem}"); // no stream takes it: the event stays
                    message.ack_with(wait).await?;
                }
            }
        }
        self.calls.fetch_add(1, Relaxed);
        self.micros.fetch_add(u64::try_from(started.elapsed().as_micros())?, Relaxed);
        Ok(())
    }

    async fn give_up(&self, message: &Message, sequence: u64, reason: &str) -> Result<(), Failure> {
        let mut letter = HeaderMap::new();
        letter.insert("Nats-Msg-Id", format!("dlq.{}.{}.{sequence}", self.stream, self.durable));
        letter.insert("Walhook-Reason", reason.replace(['\r', '\n'], " "));
        if let Some(seal) = message.headers.as_ref().and_then(|headers| headers.get("Walhook-Sealed")) {
            letter.insert("Walhook-Sealed", seal.clone()); // without it nobody can open the letter
        }
        let subject = format!("dlq.{}", message.subject);
        self.js.publish_with_headers(subject, letter, message.payload.clone()).await?.await?;
        message.ack_with(AckKind::Term).await
    }

    async fn take(&self, consumer: &PullConsumer) -> Result<(), Failure> {
        // batch() waits for a message, fetch() would not.
        let mut messages = consumer.batch().max_messages(1).expires(Duration::from_secs(2)).messages().await?;
        if let Some(message) = messages.next().await {
            self.handle(message?).await?;
        }
        Ok(())
    }

    async fn lane(&self, consumer: PullConsumer, stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            if let Err(error) = self.take(&consumer).await {
                eprintln!("cannot take from {}: {error}", self.stream); // the connection comes back by itself
                sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn report(&self, mut consumer: PullConsumer, database: &str) -> Result<(), Failure> {
        let (client, connection) = tokio_postgres::connect(database, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        let every = Duration::from_millis(setting("STATS_MS", "10000").parse()?);
        loop {
            sleep(every).await;
            let info = consumer.info().await?;
            let counts = [info.delivered.consumer_sequence, info.ack_floor.consumer_sequence, info.num_pending];
            let [delivered, acknowledged, pending] = counts.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
            let pending = pending + i64::try_from(info.num_ack_pending)?;
            let micros = i64::try_from(self.micros.load(Relaxed) / self.calls.load(Relaxed).max(1))?;
            let statement = "SELECT rule_nats_consumer_update_stats($1, $2, $3, $4, $5, $6::bigint / 1000.0)";
            let row: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [&self.stream, &self.durable, &delivered, &acknowledged, &pending, &micros];
            client.execute(statement, &row).await?;
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let url = setting("NATS_URL", "nats://localhost:4222");
    let client = async_nats::connect(&url).await?;
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0) // a redirect is a failure
        .max_redirects_will_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .build();
    let worker = Arc::new(Worker {
        js: jetstream::new(client.clone()),
        agent: agent.into(),
        stream: setting("STREAM", "WEBHOOKS"),
        durable: setting("CONSUMER", "worker-rust"),
        max_attempts: setting("MAX_ATTEMPTS", "5").parse()?,
        retry: Duration::from_millis(setting("RETRY_MS", "1000").parse()?),
        calls: AtomicU64::new(0),
        micros: AtomicU64::new(0),
    });
    let wanted = pull::Config {
        durable_name: Some(worker.durable.clone()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(30), // longer than a call may take
        max_deliver: -1,                   // attempts are counted here, so that none ends without a dead letter
        ..pull::Config::default()
    };
    let consumer = worker.js.get_stream(&worker.stream).await?.create_consumer(wanted).await?;
    if let Ok(database) = std::env::var("DATABASE_URL") {
        let (worker, consumer) = (Arc::clone(&worker), consumer.clone());
        tokio::spawn(async move {
            loop {
                if let Err(error) = worker.report(consumer.clone(), &database).await {
                    eprintln!("statistics: {error}"); // they hold nothing up
                }
                sleep(Duration::from_secs(10)).await;
            }
        });
    }
    println!("{} takes from {} at {url}", worker.durable, worker.stream);
    let (stop, stopped) = watch::channel(false);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        let _ = stop.send(true);
    });
    let lanes = setting("CALLS", "16").parse()?;
    join_all((0..lanes).map(|_| worker.lane(consumer.clone(), stopped.clone()))).await;
    client.flush().await?; // the last acknowledgements are out
    Ok(())
}
