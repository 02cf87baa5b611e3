//! Workers that somebody else has written: our examples in five languages and the RFC's two, each as its own process
//! against the real stream, and a hundred of them on one consumer.
//!
//! What a language needs is fetched by its own tool into the cache, once. Where that cannot be, because the language is not
//! there or its registry is not reached, the test says so on standard error, past the capture of output, and passes. A worker
//! that is there and does not work fails.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::jetstream::{consumer::pull, stream::Stream};
use futures_util::{StreamExt, future::join_all};
use rustix::process::Signal;
use serde_json::Value;
use support::{
    POLL, eventually,
    feed::Feed,
    folder::Folder,
    http::{Http, Reply, Request},
    last_mile::LastMile,
    port::Port,
    process::{Process, User},
    sealed::{self, KeyFolder},
    services, skip,
};
use tokio::sync::Barrier;

/// What each worker has to deliver.
const EVENTS: usize = 1000;
/// The one that is never taken.
const HOPELESS: i64 = 0;
/// How long a worker may take for all of them.
const PATIENCE: Duration = Duration::from_secs(420);
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The command of a worker, or why there is none on this machine.
type Prepared = Result<Command, String>;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a tool to its end; what it said where it failed.
fn tool(program: &str, arguments: &[&str], folder: &Path) -> Result<(), String> {
    let mut command = Command::new("timeout"); // a registry that hangs is one that is not there
    command.args(["600", program]).args(arguments).current_dir(folder).stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("cannot start {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let end: Vec<&str> = said.lines().rev().take(8).collect();
    let end = end.into_iter().rev().collect::<Vec<_>>().join("\n    ");
    Err(format!("{program} {} failed ({}):\n    {end}", arguments.join(" "), output.status))
}

/// Whether this is there and new enough: a program, and with what it says so by its exit code.
fn has(program: &str, arguments: &[&str]) -> Result<(), String> {
    tool(program, arguments, Path::new("/")).map_err(|error| format!("{program} is missing or too old: {error}"))
}

/// A folder in the cache for these files, where `install` has succeeded once.
fn installed(
    name: &str,
    files: &[PathBuf],
    install: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        fs::read(file).unwrap().hash(&mut hasher);
    }
    let folder = services::cache().join(format!("workers/{name}-{:016x}", hasher.finish()));
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join(".lock")).unwrap();
    lock.lock().unwrap(); // until the end of this function: other tests may want the same
    let done = folder.join(".done");
    if !done.exists() {
        for file in files {
            fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
        }
        install(&folder)?;
        File::create(done).unwrap();
    }
    Ok(folder)
}

fn npm(name: &str, from: &str) -> Result<PathBuf, String> {
    has("node", &["-e", "process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)"])?;
    has("npm", &["--version"])?;
    let files = ["package.json", "package-lock.json"].map(|file| root(from).join(file));
    installed(name, &files, |folder| tool("npm", &["ci", "--no-audit", "--no-fund"], folder))
}

/// A Go program, built. That its modules are not to be had skips; that it does not compile fails.
fn go(name: &str, folder: &Path) -> Result<Command, String> {
    has("go", &["version"])?;
    tool("go", &["mod", "download"], folder)?;
    let binary = services::cache().join(format!("workers/{name}"));
    fs::create_dir_all(binary.parent().unwrap()).unwrap();
    if let Err(error) = tool("go", &["build", "-o", binary.to_str().unwrap(), "worker.go"], folder) {
        panic!("{error}");
    }
    Ok(User::Ourselves.command(binary))
}

fn node_worker() -> Prepared {
    let folder = npm("node", "examples/workers/node")?;
    fs::copy(root("examples/workers/node/worker.js"), folder.join("worker.js")).unwrap();
    let mut command = User::Ourselves.command("node");
    command.arg(folder.join("worker.js"));
    Ok(command)
}

fn go_worker() -> Prepared {
    go("go-worker", &root("examples/workers/go"))
}

/// `cargo test` builds examples, too; `cargo test --test` does not, and may find one of before the last change.
fn rust_worker() -> Prepared {
    let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/worker");
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let is_current =
        changed(&binary).is_ok_and(|built| built >= changed(&root("examples/workers/rust/worker.rs")).unwrap());
    if !is_current {
        return Err(format!(
            "{} is missing or older than its source: cargo build --example worker builds it",
            binary.display()
        ));
    }
    Ok(User::Ourselves.command(binary))
}

fn python_worker() -> Prepared {
    has("python3", &["-c", "import sys; sys.exit(sys.version_info < (3, 9))"])?;
    has("python3", &["-m", "pip", "--version"])?;
    let requirements = root("examples/workers/python/requirements.txt");
    let folder = installed("python", &[requirements], |folder| {
        let install = ["-m", "pip", "install", "--quiet", "--target", "packages", "-r", "requirements.txt"];
        tool("python3", &install, folder)
    })?;
    let mut command = User::Ourselves.command("python3");
    command.arg(root("examples/workers/python/worker.py")).env("PYTHONPATH", folder.join("packages"));
    Ok(command)
}

/// The `nats` command line that the worker in shell stands on.
const NATS_CLI: &str = "github.com/nats-io/natscli/nats@v0.5.0";

fn shell_worker() -> Prepared {
    for program in ["bash", "curl", "jq", "openssl"] {
        has(program, &["--version"]).or_else(|_| has(program, &["version"]))?;
    }
    has("go", &["version"])?;
    let folder = services::cache().join(format!("workers/{}", NATS_CLI.replace('/', "_")));
    if !folder.join("nats").exists() {
        fs::create_dir_all(&folder).unwrap();
        tool("env", &[&format!("GOBIN={}", folder.display()), "go", "install", NATS_CLI], &folder)?;
    }
    let psql = services::postgres("default");
    let path = std::env::var("PATH").unwrap();
    let mut command = User::Ourselves.command("bash");
    command.arg(root("examples/workers/shell/worker.sh"));
    command.env("PATH", format!("{}:{}:{path}", folder.display(), psql.display()));
    Ok(command)
}

/// A worker that runs; dropping it kills it.
struct Worker {
    process: Process, // before the folder: fields go in this order
    folder: Folder,
}

impl Worker {
    fn start(command: Command) -> Worker {
        let folder = Folder::new("worker", User::Ourselves);
        Worker { process: Process::start("worker", command, &folder.path().join("log")), folder }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits for it as long as the worker runs.
    async fn until(&mut self, what: &str, mut check: impl AsyncFnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !check().await {
            let ended = self.process.exited();
            assert!(ended.is_none(), "the worker ended ({ended:?}) before {what}; it said:\n{}", self.log());
            assert!(
                tokio::time::Instant::now() < deadline,
                "waited in vain for {what}; the worker said:\n{}",
                self.log()
            );
            tokio::time::sleep(5 * POLL).await;
        }
    }
}

fn number(request: &Request) -> i64 {
    request.json()["n"].as_i64().unwrap()
}

/// A server that fails now and then, and the numbers of the events that it took, in order.
struct Unreliable {
    http: Http,
    taken: Arc<Mutex<Vec<i64>>>,
}

impl Unreliable {
    fn start(fails: impl FnMut(usize, &Request) -> bool + Send + 'static) -> Unreliable {
        let taken = Arc::<Mutex<Vec<i64>>>::default();
        let (fails, takes) = (Mutex::new(fails), Arc::clone(&taken));
        let http = Http::start(move |count, request| {
            if (fails.lock().unwrap())(count, request) {
                return Reply::status(503);
            }
            takes.lock().unwrap().push(number(request));
            Reply::status(200)
        });
        Unreliable { http, taken }
    }

    fn taken(&self) -> Vec<i64> {
        let mut taken = self.taken.lock().unwrap().clone();
        taken.sort_unstable();
        taken
    }
}

/// Waits until all events have arrived; each has then come once.
async fn all_arrive(worker: &mut Worker, server: &Unreliable) {
    worker.until("all events to arrive", async || server.taken.lock().unwrap().len() >= EVENTS).await;
    let expected: Vec<i64> = (1..=i64::try_from(EVENTS).unwrap()).collect();
    assert_eq!(server.taken(), expected, "each once");
}

async fn webhooks(feed: &Feed) -> Stream {
    feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap()
}

/// Whether a consumer has nothing left, neither undelivered nor unacknowledged.
async fn is_settled(stream: &Stream, consumer: &str) -> bool {
    let info = stream.consumer_info(consumer).await.unwrap();
    info.num_pending == 0 && info.num_ack_pending == 0
}

async fn delivers(language: &str, prepared: Prepared) {
    let mut command = match prepared {
        Ok(command) => command,
        Err(why) => return skip(&format!("the worker in {language}"), &why),
    };
    let mile = LastMile::start().await;
    // Judged as they come: signatures are good for five minutes.
    let forged = Arc::<Mutex<Vec<Request>>>::default();
    let forgeries = Arc::clone(&forged);
    let server = Unreliable::start(move |count, request| {
        if !verifies(request) {
            forgeries.lock().unwrap().push(request.clone());
        }
        count % 10 == 9 || number(request) == HOPELESS
    });
    mile.sql("SELECT rule_nats_stream_create('DLQ', ARRAY['dlq.>'])");
    let id = mile.webhook("orders", &server.http.url("/hooks"));
    mile.publish_many(id, EVENTS);
    mile.publish(id, &format!("{{\"n\": {HOPELESS}}}"));
    mile.feed.stored(EVENTS as u64 + 1).await;
    let jetstream = mile.feed.nats.jetstream().await;
    eventually("the stream of dead letters", async || jetstream.get_stream("DLQ").await.ok()).await;

    // The role that the migrations made for workers has all that its statistics need.
    let database = format!("postgres://walhook_worker@127.0.0.1:{}/postgres?sslmode=disable", mile.feed.pg.port());
    command.env_remove("WEBHOOK_URL").env("NATS_URL", mile.feed.nats.url()).env("DATABASE_URL", database);
    command.env("CONSUMER", "example").env("WEBHOOK_SECRET", SECRET);
    command.env("RETRY_MS", "20").env("MAX_ATTEMPTS", "8").env("STATS_MS", "500");
    let mut worker = Worker::start(command);
    all_arrive(&mut worker, &server).await;
    let stream = webhooks(&mile.feed).await;
    worker.until("the consumer to be settled", async || is_settled(&stream, "example").await).await;

    let requests = server.http.requests();
    let attempts = requests.iter().filter(|request| number(request) == HOPELESS).count();
    assert_eq!(attempts, 8, "of the hopeless one");
    assert!(forged.lock().unwrap().is_empty(), "{forged:?}");
    let letters = mile.feed.messages_of("DLQ").await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!((letters[0].subject.as_str(), letters[0].data()["n"].as_i64()), ("dlq.webhooks.orders", Some(HOPELESS)));
    assert!(letters[0].header("Walhook-Reason").contains("503"), "{:?}", letters[0]);
    let reported = "SELECT avg_processing_time_ms > 0 FROM rule_nats_consumer_stats WHERE consumer_name = 'example'";
    worker.until("its statistics", async || mile.sql(reported) == "t").await;

    worker.process.signal(Signal::TERM);
    let status = worker.process.wait(support::DEADLINE);
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{status:?}; it said:\n{}", worker.log());
}

/// Whether somebody else's code takes the signature for good.
fn verifies(request: &Request) -> bool {
    let mut headers = hyper::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, request.header(name).parse().unwrap());
    }
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(&request.body, &headers).is_ok()
}

#[tokio::test]
async fn the_worker_in_node_delivers_all_though_every_tenth_answer_is_a_failure() {
    delivers("Node.js", node_worker()).await;
}

#[tokio::test]
async fn the_worker_in_go_delivers_all_though_every_tenth_answer_is_a_failure() {
    delivers("Go", go_worker()).await;
}

#[tokio::test]
async fn the_worker_in_rust_delivers_all_though_every_tenth_answer_is_a_failure() {
    delivers("Rust", rust_worker()).await;
}

#[tokio::test]
async fn the_worker_in_python_delivers_all_though_every_tenth_answer_is_a_failure() {
    delivers("Python", python_worker()).await;
}

#[tokio::test]
async fn the_worker_in_shell_delivers_all_though_every_tenth_answer_is_a_failure() {
    delivers("shell", shell_worker()).await;
}

/// A worker that finds its keys in a folder opens what is sealed, before and after a rotation, and its dead letters stay sealed.
async fn opens(language: &str, prepared: Prepared) {
    const EVENTS: usize = 100;
    let mut command = match prepared {
        Ok(command) => command,
        Err(why) => return skip(&format!("the worker in {language}"), &why),
    };
    let feed = Feed::start().await;
    let keys = KeyFolder::new(&["orders.1"]);
    let streamer = keys.with(feed.streamer()).start();
    let mile = LastMile::with(feed, streamer);
    let server = Unreliable::start(move |_, request| number(request) == HOPELESS);
    mile.sql("SELECT rule_nats_stream_create('DLQ', ARRAY['dlq.>'])");
    let id = mile.webhook("orders", &server.http.url("/hooks"));
    mile.sql("UPDATE rule_webhooks SET seal_key = 'orders'");
    mile.publish_many(id, EVENTS);
    support::rows::taken(&mile.feed, EVENTS as u64).await;
    keys.add("orders.2");
    eventually("the new key", async || mile.streamer.log().contains("the seal keys have changed").then_some(())).await;
    mile.publish(id, &format!("{{\"n\": {HOPELESS}}}"));
    support::rows::taken(&mile.feed, EVENTS as u64 + 1).await;
    let used: BTreeSet<_> = sealed::messages(&mile.feed).await.iter().map(|it| it.seal()[3..11].to_owned()).collect();
    assert_eq!(used, BTreeSet::from(["orders.1".to_owned(), "orders.2".to_owned()]));

    command.env_remove("WEBHOOK_URL").env("NATS_URL", mile.feed.nats.url()).env("SEAL_KEYS_DIR", keys.path());
    command.env("CONSUMER", "example").env("WEBHOOK_SECRET", SECRET).env("RETRY_MS", "20").env("MAX_ATTEMPTS", "3");
    let mut worker = Worker::start(command);
    let stream = webhooks(&mile.feed).await;
    worker.until("all events to arrive", async || server.taken().len() == EVENTS).await;
    worker.until("the consumer to be settled", async || is_settled(&stream, "example").await).await;
    let numbers: BTreeSet<_> = server.http.requests().iter().map(number).collect();
    assert_eq!(numbers, (0..=i64::try_from(EVENTS).unwrap()).collect(), "{}", worker.log());
    let letters = sealed::messages_of(&mile.feed, "DLQ").await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].open()["data"]["n"], HOPELESS);
    worker.process.signal(Signal::TERM);
    let status = worker.process.wait(support::DEADLINE);
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{status:?}; it said:\n{}", worker.log());
}

#[tokio::test]
async fn the_worker_in_node_opens_what_is_sealed() {
    opens("Node.js", node_worker()).await;
}

#[tokio::test]
async fn the_worker_in_go_opens_what_is_sealed() {
    opens("Go", go_worker()).await;
}

#[tokio::test]
async fn the_worker_in_rust_opens_what_is_sealed() {
    opens("Rust", rust_worker()).await;
}

#[tokio::test]
async fn the_worker_in_python_opens_what_is_sealed() {
    opens("Python", python_worker()).await;
}

/// The receiving side: what walhook signs is taken, what somebody else does is not.
#[tokio::test]
async fn the_receiver_takes_what_is_signed_by_its_secret_and_nothing_else() {
    if let Err(why) = has("python3", &["-c", "import sys; sys.exit(sys.version_info < (3, 9))"]) {
        return skip("the receiver", &why);
    }
    let port = Port::take();
    let mut command = User::Ourselves.command("python3");
    command.arg(root("examples/workers/receiver/receiver.py")).env("WEBHOOK_SECRET", SECRET);
    let mut receiver = Worker::start({
        command.env("PORT", port.number().to_string());
        command
    });
    receiver
        .until("the receiver to listen", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port.number())).await.is_ok()
        })
        .await;
    let mile = LastMile::start().await;
    let url = format!("http://127.0.0.1:{}/", port.number());
    let of = |name: &str| mile.webhook(name, &url);
    let (signed, forged, unsigned) = (of("signed"), of("forged"), of("unsigned"));
    mile.sql("UPDATE rule_webhooks SET max_retries = 0");
    mile.sql(&format!("SELECT rule_webhook_secret_set({signed}, 'signing', '{SECRET}')"));
    let other = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    mile.sql(&format!("SELECT rule_webhook_secret_set({forged}, 'signing', '{other}')"));
    for webhook in [signed, forged, unsigned] {
        mile.publish(webhook, &format!("{{\"n\": {webhook}}}"));
    }
    let mut worker = mile.worker().start();
    let states =
        "SELECT string_agg(webhook_id || ' ' || response_status, ', ' ORDER BY webhook_id) FROM rule_webhook_calls";
    mile.eventually(states, &format!("{signed} 204, {forged} 401, {unsigned} 401")).await;
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    let taken = receiver.log();
    assert_eq!((taken.lines().count(), taken.contains(&format!("{{\"n\": {signed}}}"))), (1, true), "{taken}");
}

/// A worker of the RFC, as printed but for the server's address, delivers what comes on the default subject.
async fn the_rfcs_delivers(language: &str, consumer: &str, prepare: impl FnOnce(&str, &Path) -> Prepared) {
    let mile = LastMile::start().await;
    // Every tenth event fails once. Not every tenth answer: the Go one gives up after three, as printed, into nothing.
    let mut failed = BTreeSet::new();
    let server = Unreliable::start(move |_, request| number(request) % 10 == 0 && failed.insert(number(request)));
    let id = mile.webhook("orders", &server.http.url("/hooks"));
    mile.publish_many(id, EVENTS);
    mile.feed.stored(EVENTS as u64).await;
    let stream = webhooks(&mile.feed).await;
    eventually("the consumer of the RFC's workers", async || stream.consumer_info("webhook-worker-1").await.ok()).await;

    let folder = Folder::new("rfc", User::Ourselves);
    let command = match prepare(&mile.feed.nats.url(), folder.path()) {
        Ok(command) => command,
        Err(why) => return skip(&format!("the RFC's worker in {language}"), &why),
    };
    let mut worker = Worker::start(command);
    all_arrive(&mut worker, &server).await;
    worker.until("the consumer to be settled", async || is_settled(&stream, consumer).await).await;
}

/// The RFC's text with the address of our server.
fn printed(file: &str, url: &str) -> String {
    let text = fs::read_to_string(root("tests/rfc_workers").join(file)).unwrap();
    assert_eq!(text.matches("nats://localhost:4222").count(), 1);
    text.replace("nats://localhost:4222", url)
}

#[tokio::test]
async fn the_rfcs_worker_in_node_works_as_printed() {
    the_rfcs_delivers("Node.js", "webhook-worker-1", |url, folder| {
        let packages = npm("rfc-node", "tests/rfc_workers")?;
        fs::write(folder.join("worker.js"), printed("worker.js", url)).unwrap();
        let mut command = User::Ourselves.command("node");
        command.arg(folder.join("worker.js")).env("NODE_PATH", packages.join("node_modules"));
        Ok(command)
    })
    .await;
}

/// As printed it does not compile: it imports `fmt`, which it does not use, and not `bytes`, which it does.
#[tokio::test]
async fn the_rfcs_worker_in_go_works_as_printed_but_for_one_import() {
    the_rfcs_delivers("Go", "webhook-worker", |url, folder| {
        let text = printed("worker.go.txt", url);
        assert_eq!(text.matches("\"fmt\"").count(), 1);
        fs::write(folder.join("worker.go"), text.replace("\"fmt\"", "\"bytes\"")).unwrap();
        for file in ["go.mod", "go.sum"] {
            fs::copy(root("tests/rfc_workers").join(file), folder.join(file)).unwrap();
        }
        go("rfc-go-worker", folder)
    })
    .await;
}

/// As the guide has it for the upstream's Go worker, which takes no pull consumer: its queue group gets each event once, beside the
/// workers that pull.
#[tokio::test]
async fn a_push_consumer_for_a_queue_group_gets_each_event_once() {
    let mile = LastMile::start().await;
    let id = mile.webhook("orders", "https://example.com/hooks");
    mile.publish_many(id, EVENTS);
    mile.feed.stored(EVENTS as u64).await;
    let client = mile.feed.nats.client().await;
    let mut group = Vec::new();
    for _ in 0..3 {
        group.push(client.queue_subscribe("webhook-push", "webhook-workers".to_owned()).await.unwrap());
    }
    client.flush().await.unwrap();
    let settings = async_nats::jetstream::consumer::push::Config {
        durable_name: Some("webhook-push-1".to_owned()),
        deliver_subject: "webhook-push".to_owned(),
        deliver_group: Some("webhook-workers".to_owned()),
        ..Default::default()
    };
    let stream = webhooks(&mile.feed).await;
    stream.create_consumer(settings).await.unwrap();
    let mut numbers = Vec::new();
    let mut messages = futures_util::stream::select_all(group);
    while numbers.len() < EVENTS {
        let message = tokio::time::timeout(support::DEADLINE, messages.next()).await.unwrap().unwrap();
        let payload: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        numbers.push(payload["data"]["n"].as_u64().unwrap());
        client.publish(message.reply.unwrap(), "+ACK".into()).await.unwrap();
    }
    eventually("the consumer to be settled", async || is_settled(&stream, "webhook-push-1").await.then_some(())).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=EVENTS as u64).collect::<Vec<_>>());
}

/// How many connections PostgreSQL has, the asking one among them.
async fn connections(sql: &tokio_postgres::Client) -> i64 {
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender')";
    sql.query_one(asked, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_hundred_workers_process_each_event_once_and_postgresql_has_no_connection_more() {
    const WORKERS: usize = 100;
    const EVENTS: usize = 3000;
    let mile = LastMile::start().await;
    let id = mile.webhook("orders", "https://example.com/orders");
    mile.publish(id, r#"{"n": 0}"#); // by now the streamer has all the connections that it wants
    mile.feed.stored(1).await;
    mile.feed.confirmed().await;
    let stream = webhooks(&mile.feed).await;
    eventually("the consumer that all share", async || stream.consumer_info("webhook-worker-1").await.ok()).await;

    let sql = mile.feed.pg.client().await;
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test'";
    eventually("the test's other connections to be gone", async || {
        (sql.query_one(ours, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    let before = connections(&sql).await;

    // Each holds its first event until all have one: a hundred are at work at the same time.
    let all = Arc::new(Barrier::new(WORKERS + 1));
    let workers = (0..WORKERS).map(|_| {
        let all = Arc::clone(&all);
        let nats = &mile.feed.nats;
        async move {
            let stream = nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
            let consumer = stream.get_consumer::<pull::Config>("webhook-worker-1").await.unwrap();
            let mut done = Vec::new();
            loop {
                let asked = consumer.batch().max_messages(1).expires(Duration::from_secs(3));
                let Some(message) = asked.messages().await.unwrap().next().await else {
                    if done.is_empty() { continue } else { return done }
                };
                let message = message.unwrap();
                if done.is_empty() {
                    all.wait().await;
                }
                let payload: Value = serde_json::from_slice(&message.payload).unwrap();
                message.double_ack().await.unwrap();
                done.push(payload["data"]["n"].as_i64().unwrap());
            }
        }
    });
    let watched = async {
        let call = "SELECT count(rule_webhook_publish_nats($1, jsonb_build_object('n', n))) FROM generate_series(1, $2::int) n";
        sql.execute(call, &[&id, &i32::try_from(EVENTS).unwrap()]).await.unwrap();
        all.wait().await;
        let mut counts = BTreeSet::new();
        while !is_settled(&stream, "webhook-worker-1").await {
            counts.insert(connections(&sql).await);
        }
        counts.insert(connections(&sql).await);
        counts
    };
    let (done, counts) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(join_all(workers), watched) }).await.unwrap();
    assert_eq!(counts, BTreeSet::from([before]), "connections while they worked");
    let mut numbers: Vec<_> = done.into_iter().flatten().collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..=i64::try_from(EVENTS).unwrap()).collect::<Vec<_>>(), "each once");
}
