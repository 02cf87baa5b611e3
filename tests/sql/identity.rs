//! Whose a database, a stream, a bucket and a consumer are: two databases on one account, copies of a database, what 0.1 left, and
//! a run that was frozen while another took over.

#![allow(clippy::unwrap_used)]

mod core_nats;

use crate::support;

use std::{collections::BTreeSet, path::Path, time::Duration};

use async_nats::jetstream;
use bytes::Bytes;
use serde_json::{Value, json};
use support::{
    Nats, NetworkFault, Postgres, Proxy, Walhook, eventually,
    http::Http,
    walhook::{Builder, Finished},
};

/// How long a walhook that has to end by itself may take.
const ENDS: Duration = Duration::from_secs(40);

/// A database with a webhook `w` and a linked table `t`, and the receiver that it calls.
struct Site {
    pg: Postgres,
    database: String,
    source: Option<&'static str>,
    nats_url: String,
    receiver: Http,
}

impl Site {
    /// Set up with all defaults.
    async fn start(nats: &Nats, source: Option<&'static str>) -> Site {
        let site = Site::on(Postgres::start().await, nats, source);
        site.set_up();
        site
    }

    fn on(pg: Postgres, nats: &Nats, source: Option<&'static str>) -> Site {
        Site { pg, database: "postgres".to_owned(), source, nats_url: nats.url(), receiver: Http::ok() }
    }

    fn set_up(&self) {
        let done = self.finish("setup", &[]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        self.sql(&format!("SELECT rule_nats_configure('default', '{}')", self.nats_url));
        self.link();
    }

    /// Whatever stream and prefix the configuration has by then.
    fn link(&self) {
        let url = self.receiver.url("/");
        self.sql(&format!("SELECT rule_webhook_register('w', '{url}')"));
        self.sql("SELECT rule_webhook_enable_nats(1, NULL, 'nats')");
        self.sql("CREATE TABLE t (id int PRIMARY KEY)");
        self.sql("SELECT rule_webhook_link_table(1, 't')");
    }

    /// A stream and a subject prefix of its own.
    fn publish_into(&self, stream: &str) {
        let prefix = stream.to_lowercase();
        self.sql(&format!("UPDATE rule_nats_config SET stream_name = '{stream}', subject_prefix = '{prefix}'"));
        self.sql("SELECT rule_webhook_enable_nats(1, NULL, 'nats')");
        self.sql(&format!("UPDATE rule_webhooks SET nats_subject = '{prefix}.w'"));
    }

    fn sql(&self, text: &str) -> String {
        self.pg.psql_in(&self.database, text)
    }

    fn insert(&self, from: i32, to: i32) {
        self.sql(&format!("INSERT INTO t SELECT generate_series({from}, {to})"));
    }

    fn id(&self) -> String {
        self.sql("SELECT database_id FROM rule_cdc_identity")
    }

    fn command(&self, verb: &str, user: &str) -> Builder {
        let conninfo = format!("host=127.0.0.1 port={} dbname={} user={user}", self.pg.port(), self.database);
        let command = Walhook::command(verb).env("DATABASE_URL", conninfo);
        match self.source {
            Some(source) => command.env("WALHOOK_SOURCE", source),
            None => command,
        }
    }

    fn run(&self) -> Walhook {
        self.command("run", "walhook_streamer").start()
    }

    fn deliver(&self) -> Walhook {
        self.command("deliver", "walhook_worker").args(["--allow-network", "127.0.0.1"]).start()
    }

    fn finish(&self, verb: &str, arguments: &[&str]) -> Finished {
        self.command(verb, "postgres").args(arguments.iter().copied()).finish()
    }

    /// Waits until everything committed so far is confirmed.
    async fn confirmed(&self) {
        let upto = self.sql("SELECT pg_current_wal_lsn()");
        eventually(&format!("the slot to be confirmed up to {upto}"), async || {
            let asked =
                format!("SELECT confirmed_flush_lsn >= '{upto}' FROM pg_replication_slots WHERE slot_name = 'walhook'");
            (self.sql(&asked) == "t").then_some(())
        })
        .await;
    }

    /// The rows that its receiver was called with.
    fn called(&self) -> Vec<i64> {
        let mut ids: Vec<i64> =
            self.receiver.requests().iter().map(|request| request.json()["id"].as_i64().unwrap()).collect();
        ids.sort_unstable();
        ids
    }
}

/// The rows in a stream, in its order, with the source of each.
async fn rows(nats: &Nats, stream: &str) -> Vec<(String, i64)> {
    let Ok(mut stream) = nats.jetstream().await.get_stream(stream).await else { return Vec::new() };
    let state = stream.info().await.unwrap().state.clone();
    let mut rows = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let Ok(message) = stream.get_raw_message(sequence).await else { continue };
        let payload: Value = serde_json::from_slice(&message.payload).unwrap();
        let id = payload["id"].as_str().unwrap().split('-').next().unwrap().to_owned();
        rows.push((id, payload["data"]["id"].as_i64().unwrap()));
    }
    rows
}

async fn metadata(nats: &Nats, stream: &str) -> Value {
    ask(nats, &format!("STREAM.INFO.{stream}"), Value::Null).await["config"]["metadata"].take()
}

/// Asks JetStream's API.
async fn ask(nats: &Nats, request: &str, body: Value) -> Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = nats.client().await.request(format!("$JS.API.{request}"), body.into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{answer}");
    answer
}

fn numbers(rows: &[(String, i64)]) -> Vec<i64> {
    rows.iter().map(|(_, id)| *id).collect()
}

/// Both work side by side: each stream has the rows of its own database, and each receiver is called for those alone.
async fn both_work(nats: &Nats, a: &Site, b: &Site, streams: [&str; 2]) {
    let mut processes = Vec::new();
    for site in [a, b] {
        processes.extend([site.run(), site.deliver()]);
    }
    a.insert(1, 50);
    b.insert(101, 170);
    a.confirmed().await;
    b.confirmed().await;
    a.receiver.received(50).await;
    b.receiver.received(70).await;
    for process in &mut processes {
        assert_eq!(process.terminate(), 0, "{}", process.log());
    }
    assert_eq!(a.called(), (1..=50).collect::<Vec<_>>());
    assert_eq!(b.called(), (101..=170).collect::<Vec<_>>());
    if streams[0] == streams[1] {
        let all = rows(nats, streams[0]).await;
        let of = |site: &Site| -> Vec<i64> {
            all.iter().filter(|(source, _)| source == site.source.unwrap()).map(|(_, id)| *id).collect()
        };
        assert_eq!((of(a), of(b)), ((1..=50).collect(), (101..=170).collect()));
    } else {
        assert_eq!(numbers(&rows(nats, streams[0]).await), (1..=50).collect::<Vec<_>>());
        assert_eq!(numbers(&rows(nats, streams[1]).await), (101..=170).collect::<Vec<_>>());
    }
}

/// The second database is refused by name, by `run` and by `deliver`, and nothing of it is skipped, called or confirmed.
async fn the_second_is_refused(nats: &Nats, a: &Site, b: &Site, stream: &str) {
    let mut first = a.run();
    let mut worker = a.deliver();
    a.insert(1, 50);
    a.confirmed().await;
    a.receiver.received(50).await;
    let before = b.sql("SELECT pg_current_wal_lsn()");
    b.insert(101, 170);
    let mut second = b.run();
    assert_eq!(second.wait(ENDS), 3, "{}", second.log());
    let log = second.log();
    let last = log.lines().last().unwrap();
    let refusal = format!("stream {stream:?} belongs to database {}", a.id());
    for word in [refusal, b.id(), "Hint".to_owned()] {
        assert!(last.contains(&word), "no {word:?} in {last}");
    }
    assert!(!second.log().contains(&format!("stream {stream:?}: stream {stream:?}")), "{}", second.log());
    let mut refused = b.deliver();
    refused.logged("belongs to database").await;
    assert!(refused.log().contains(&b.id()), "{}", refused.log());
    a.insert(51, 60);
    a.receiver.received(60).await;
    for process in [&mut first, &mut worker, &mut refused] {
        assert_eq!(process.terminate(), 0, "{}", process.log());
    }
    assert_eq!(numbers(&rows(nats, stream).await), (1..=60).collect::<Vec<_>>());
    assert_eq!(a.called(), (1..=60).collect::<Vec<_>>());
    assert_eq!(b.receiver.count(), 0);
    let confirmed =
        format!("SELECT confirmed_flush_lsn <= '{before}' FROM pg_replication_slots WHERE slot_name = 'walhook'");
    assert_eq!(b.sql(&confirmed), "t", "none of its rows is confirmed");
    assert_eq!(b.sql("SELECT count(*) FROM rule_nats_publish_history"), "0");
}

#[tokio::test]
async fn two_databases_with_all_defaults_but_their_streams_work_side_by_side() {
    let nats = Nats::start().await;
    let (a, b) = (Site::start(&nats, None).await, Site::start(&nats, None).await);
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    assert_eq!(a.sql(identifier), b.sql(identifier), "not even PostgreSQL can tell them apart");
    b.publish_into("B");
    both_work(&nats, &a, &b, ["WEBHOOKS", "B"]).await;
    // Two buckets, of which a worker without a database has to name the database.
    let names: Vec<_> = futures_util::TryStreamExt::try_collect(nats.jetstream().await.stream_names()).await.unwrap();
    let buckets: BTreeSet<String> = names.into_iter().filter(|name: &String| name.starts_with("KV_")).collect();
    assert_eq!(buckets.len(), 2, "{buckets:?}");
    let without = |id: Option<&str>| {
        let command = Walhook::command("deliver").args(["--no-database", "--allow-network", "127.0.0.1", "--nats-url"]);
        let command = command.arg(nats.url());
        match id {
            Some(id) => command.args(["--database-id", id]).start(),
            None => command.start(),
        }
    };
    let mut unknown = without(None);
    unknown.logged("several databases").await;
    assert!(unknown.log().contains(&a.id()) && unknown.log().contains(&b.id()), "{}", unknown.log());
    let mut of_b = without(Some(&b.id()));
    let mut second = b.run();
    b.insert(171, 172);
    b.receiver.received(72).await;
    for process in [&mut unknown, &mut of_b, &mut second] {
        assert_eq!(process.terminate(), 0, "{}", process.log());
    }
    assert_eq!(a.receiver.count(), 50);
}

#[tokio::test]
async fn two_databases_with_different_sources_and_streams_work_side_by_side() {
    let nats = Nats::start().await;
    let (a, b) = (Site::start(&nats, Some("a")).await, Site::start(&nats, Some("b")).await);
    b.publish_into("B");
    both_work(&nats, &a, &b, ["WEBHOOKS", "B"]).await;
}

#[tokio::test]
async fn a_strict_stream_of_another_database_is_refused() {
    let nats = Nats::start().await;
    let (a, b) = (Site::start(&nats, None).await, Site::start(&nats, None).await);
    the_second_is_refused(&nats, &a, &b, "WEBHOOKS").await;
}

#[tokio::test]
async fn a_strict_stream_of_another_database_is_refused_to_another_source_too() {
    let nats = Nats::start().await;
    let (a, b) = (Site::start(&nats, Some("a")).await, Site::start(&nats, Some("b")).await);
    the_second_is_refused(&nats, &a, &b, "WEBHOOKS").await;
}

fn share(site: &Site) {
    site.sql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    site.sql("UPDATE rule_nats_streams SET ordering = 'shared'");
}

#[tokio::test]
async fn a_shared_stream_takes_one_database_for_each_source() {
    let nats = Nats::start().await;
    let (a, b) = (Site::start(&nats, Some("same")).await, Site::start(&nats, Some("same")).await);
    share(&a);
    share(&b);
    the_second_is_refused(&nats, &a, &b, "WEBHOOKS").await;
    // Unless the second is the first after its tables were lost: the command that is printed says so.
    let mut refused = b.run();
    assert_eq!(refused.wait(ENDS), 3, "{}", refused.log());
    assert!(refused.log().contains("walhook adopt --stream WEBHOOKS"), "{}", refused.log());
    let asked = b.finish("adopt", &["--stream", "WEBHOOKS"]);
    assert!(asked.code == Some(2) && asked.stderr.contains("--yes agrees without being asked"), "{asked:?}");
    assert_eq!(metadata(&nats, "WEBHOOKS").await["walhook.source.same"], a.id());
    for answer in ["from now on", "already"] {
        let done = b.finish("adopt", &["--stream", "WEBHOOKS", "--yes"]);
        assert!(done.code == Some(0) && done.stdout.contains(answer), "{done:?}");
    }
    assert_eq!(metadata(&nats, "WEBHOOKS").await["walhook.source.same"], b.id());
    let mut ousted = a.run();
    assert_eq!(ousted.wait(ENDS), 3, "{}", ousted.log());
    let unknown = b.finish("adopt", &["--stream", "OTHER", "--yes"]);
    assert!(unknown.code == Some(2) && unknown.stderr.contains("no configuration of this database"), "{unknown:?}");
}

#[tokio::test]
async fn a_database_that_has_forgotten_its_stream_takes_it_back_by_the_command_that_is_printed() {
    let nats = Nats::start().await;
    let site = Site::start(&nats, None).await;
    has_run(&site).await;
    forget_owner(&nats, "WEBHOOKS").await;
    site.sql("DELETE FROM rule_nats_checkpoints WHERE stream_name <> ''");
    site.sql("DELETE FROM walhook.rule_cdc_claims");
    let mut refused = site.run();
    assert_eq!(refused.wait(ENDS), 3, "{}", refused.log());
    assert!(refused.log().contains("walhook adopt --stream WEBHOOKS"), "{}", refused.log());
    let done = site.finish("adopt", &["--stream", "WEBHOOKS", "--yes"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let mut run = site.run();
    site.insert(101, 110);
    site.confirmed().await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    assert_eq!(rows(&nats, "WEBHOOKS").await.len(), 40);
}

#[tokio::test]
async fn a_shared_stream_takes_several_databases_by_different_sources() {
    let nats = Nats::start().await;
    let (a, b) = (Site::start(&nats, Some("a")).await, Site::start(&nats, Some("b")).await);
    share(&a);
    share(&b);
    both_work(&nats, &a, &b, ["WEBHOOKS", "WEBHOOKS"]).await;
    let noted = metadata(&nats, "WEBHOOKS").await;
    assert_eq!(
        (noted["walhook.source.a"].as_str(), noted["walhook.source.b"].as_str()),
        (Some(&*a.id()), Some(&*b.id()))
    );
}

/// Every verb that touches NATS, or makes `run` publish, refuses a copy with these words.
async fn every_verb_refuses(copy: &Site, words: &[&str]) {
    let mut finished = Vec::new();
    for (verb, arguments) in [
        ("backfill", &["--table", "t"][..]),
        ("replay", &["--from", "0/1", "--create-stream", "REPLAY"]),
        ("seek", &["--stream", "WEBHOOKS", "--consumer", "worker", "--from", "0/1"]),
        ("dead-letters", &["retry", "--all"]),
    ] {
        let done = copy.finish(verb, arguments);
        finished.push((verb, done.code, done.stderr));
    }
    for (verb, mut process) in [("run", copy.run()), ("deliver", copy.deliver())] {
        finished.push((verb, Some(process.wait(ENDS)), process.log()));
    }
    for (verb, code, text) in finished {
        assert_eq!(code, Some(3), "{verb}: {text}");
        let last = text.lines().last().unwrap();
        for word in words {
            assert!(last.contains(word), "{verb}: no {word:?} in {last}");
        }
    }
}

/// The copy gets an identity and a stream of its own, and publishes its own rows there.
async fn is_adopted(nats: &Nats, copy: &Site, original: &str) {
    let refused = copy.finish("adopt", &[]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    assert_eq!(copy.id(), original, "nothing has changed");
    let adopted = copy.finish("adopt", &["--yes"]);
    assert_eq!(adopted.code, Some(0), "{}", adopted.stderr);
    assert!(adopted.stdout.contains("still leads to nats://"), "{}", adopted.stdout);
    assert_ne!(copy.id(), original);
    assert_eq!(copy.sql("SELECT previous_ids FROM rule_cdc_identity"), format!("{{{original}}}"));
    assert_eq!(copy.sql("SELECT count(*) FROM rule_nats_checkpoints"), "0");
    assert_ne!(copy.sql("SELECT count(*) FROM rule_cdc_put_aside"), "0");
    let done = copy.finish("setup", &[]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    // Into the original's stream it is still not let.
    let mut run = copy.run();
    assert_eq!(run.wait(ENDS), 3, "{}", run.log());
    assert!(run.log().contains(original), "{}", run.log());
    copy.publish_into("STAGING");
    let mut run = copy.run();
    copy.insert(1001, 1020);
    copy.confirmed().await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    let staged = numbers(&rows(nats, "STAGING").await);
    assert_eq!(staged, (1001..=1020).collect::<Vec<_>>());
}

/// The original goes on as if there were no copy.
async fn goes_on(nats: &Nats, original: &Site, rows_before: i32) {
    let mut run = original.run();
    original.insert(rows_before + 1, rows_before + 20);
    original.confirmed().await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    let stored = numbers(&rows(nats, "WEBHOOKS").await);
    assert_eq!(stored, (1..=i64::from(rows_before) + 20).collect::<Vec<_>>());
}

async fn has_run(site: &Site) {
    let mut run = site.run();
    site.insert(1, 30);
    site.confirmed().await;
    eventually("a checkpoint", async || {
        (site.sql("SELECT count(*) FROM rule_nats_checkpoints WHERE stream_name <> ''") == "1").then_some(())
    })
    .await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
}

#[tokio::test]
async fn a_database_made_from_a_template_is_known_as_a_copy() {
    let nats = Nats::start().await;
    let site = Site::start(&nats, None).await;
    // The copy is of a database that nobody is connected to.
    site.sql("CREATE DATABASE shop");
    let original = Site { database: "shop".to_owned(), ..Site::on(site.pg, &nats, None) };
    original.pg.psql("SELECT pg_drop_replication_slot('walhook')");
    original.set_up();
    has_run(&original).await;
    eventually("the connections to be gone", async || {
        original.pg.try_psql("CREATE DATABASE staging TEMPLATE shop").ok().map(drop)
    })
    .await;
    let id = original.id();
    let copy = Site { database: "staging".to_owned(), ..Site::on(original.pg, &nats, None) };
    assert_eq!(copy.id(), id);
    every_verb_refuses(&copy, &[&id, "\"shop\"", "\"staging\"", "walhook adopt"]).await;
    let text = copy.finish("run", &[]).stderr;
    assert!(!text.contains("--same"), "while the original is there, this is a copy: {text}");
    assert_eq!(rows(&nats, "WEBHOOKS").await.len(), 30);
    // A slot's name is the server's.
    copy.pg.psql("SELECT pg_drop_replication_slot('walhook')");
    is_adopted(&nats, &copy, &id).await;
}

#[tokio::test]
async fn a_database_on_another_postgresql_is_a_copy_or_was_moved() {
    let nats = Nats::start().await;
    let original = Site::start(&nats, None).await;
    has_run(&original).await;
    let id = original.id();
    // What a dump brings along.
    let copy = Site::on(Postgres::builder().fresh().start().await, &nats, None);
    copy.set_up();
    for table in ["rule_cdc_identity", "rule_nats_checkpoints", "walhook.rule_cdc_runs"] {
        let rows = original.sql(&format!("SELECT coalesce(json_agg(t), '[]') FROM {table} t"));
        let rows = rows.replace('\'', "''");
        copy.sql(&format!(
            "DELETE FROM {table}; INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, '{rows}')"
        ));
    }
    let system = original.sql("SELECT system_identifier FROM pg_control_system()");
    every_verb_refuses(&copy, &[&id, &system, "walhook adopt`", "walhook adopt --same`", "pg_upgrade"]).await;
    let status: serde_json::Value = serde_json::from_str(&copy.finish("status", &["--json"]).stdout).unwrap();
    let problem = status["identity"]["problem"].as_str().unwrap();
    assert_eq!(problem.matches("walhook adopt").count(), 2, "{problem}");
    is_adopted(&nats, &copy, &id).await;
    goes_on(&nats, &original, 30).await;
}

#[tokio::test]
async fn a_database_that_was_moved_keeps_its_identity_by_one_word() {
    let nats = Nats::start().await;
    let site = Site::start(&nats, None).await;
    has_run(&site).await;
    let id = site.id();
    // As pg_upgrade leaves it: the tables, and positions beyond the old ones; another PostgreSQL.
    site.sql("UPDATE rule_cdc_identity SET system_identifier = '1'");
    site.sql("UPDATE rule_nats_checkpoints SET system_identifier = '1' WHERE stream_name <> ''");
    let mut refused = site.run();
    assert_eq!(refused.wait(ENDS), 3, "{}", refused.log());
    let kept = site.finish("adopt", &["--same", "--yes"]);
    assert_eq!(kept.code, Some(0), "{}", kept.stderr);
    assert_eq!(site.id(), id);
    goes_on(&nats, &site, 30).await;
}

/// A copy of the data folder, as of a stopped server, with its slots.
async fn base_backup(pg: &Postgres) -> Postgres {
    pg.stop();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    copy_folder(&pg.data_dir(), &data);
    let version = std::fs::read_to_string(data.join("PG_VERSION")).unwrap();
    let copy = Postgres::builder().version(version.trim()).copy_of(&data).start().await;
    pg.restart().await;
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[tokio::test]
async fn a_base_backup_that_has_grown_past_the_stream_is_known_as_a_copy() {
    let nats = Nats::start().await;
    let original = Site::start(&nats, None).await;
    has_run(&original).await;
    let copy = Site::on(base_backup(&original.pg).await, &nats, None);
    let mut run = original.run();
    original.insert(31, 40);
    original.confirmed().await;
    let of_original = marked_by(&nats, &original).await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    // Its WAL goes further than the tail of the stream, and its slot, epoch and identity are those of the original.
    copy.insert(2001, 2010);
    copy.sql("SELECT pg_switch_wal()");
    copy.insert(2011, 2020);
    let id = original.id();
    assert_eq!(copy.id(), id);
    for mut refused in [copy.run(), copy.deliver()] {
        assert_eq!(refused.wait(ENDS), 3, "{}", refused.log());
        let log = refused.log();
        let last = log.lines().last().unwrap();
        for word in [id.as_str(), of_original.as_str(), "copy", "walhook adopt"] {
            assert!(last.contains(word), "no {word:?} in {last}");
        }
    }
    for (verb, arguments) in [
        ("replay", &["--from", "0/1", "--create-stream", "REPLAY"][..]),
        ("seek", &["--stream", "WEBHOOKS", "--consumer", "worker", "--from", "0/1"]),
    ] {
        let done = copy.finish(verb, arguments);
        assert_eq!(done.code, Some(3), "{verb}: {}", done.stderr);
        assert!(done.stderr.contains("walhook adopt"), "{verb}: {}", done.stderr);
    }
    is_adopted(&nats, &copy, &id).await;
    goes_on(&nats, &original, 40).await;
}

/// The run whose mark is in the bucket, once it is one of this site's running walhook.
async fn marked_by(nats: &Nats, site: &Site) -> String {
    let newest = "SELECT run_id FROM walhook.rule_cdc_runs ORDER BY epoch DESC LIMIT 1";
    eventually("the mark of the run in the bucket", async || {
        let store = nats.jetstream().await.get_key_value("walhook_walhook").await.ok()?;
        let mark: Value = serde_json::from_slice(&store.get("run").await.ok()??).unwrap();
        let run = mark["run_id"].as_str().unwrap().to_owned();
        (run == site.sql(newest)).then_some(run)
    })
    .await
}

/// Takes from a stream and its consumers what says whose they are.
async fn forget_owner(nats: &Nats, stream: &str) {
    let mut config = ask(nats, &format!("STREAM.INFO.{stream}"), Value::Null).await["config"].take();
    config["metadata"] = json!({});
    ask(nats, &format!("STREAM.UPDATE.{stream}"), config).await;
    let names = ask(nats, &format!("CONSUMER.NAMES.{stream}"), json!({})).await;
    for name in names["consumers"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let mut config = ask(nats, &format!("CONSUMER.INFO.{stream}.{name}"), Value::Null).await["config"].take();
        if config["durable_name"].is_null() {
            continue;
        }
        config["metadata"] = json!({});
        let request = json!({ "stream_name": stream, "config": config });
        ask(nats, &format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), request).await;
    }
}

/// As walhook 0.1 has left it: nothing says whose it is.
async fn as_by_0_1(nats: &Nats, site: &Site) {
    for stream in ["WEBHOOKS", "KV_walhook_walhook"] {
        forget_owner(nats, stream).await;
    }
    nats.jetstream().await.get_key_value("walhook_walhook").await.unwrap().purge("run").await.unwrap();
    site.sql("DROP TABLE rule_cdc_identity, walhook.rule_cdc_runs, walhook.rule_cdc_claims, rule_cdc_put_aside");
    let done = site.finish("setup", &[]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(site.sql("SELECT is_upgraded FROM rule_cdc_identity"), "t");
}

#[tokio::test]
async fn what_0_1_left_is_taken_over_once_and_keeps_its_place() {
    let nats = Nats::start().await;
    let site = Site::start(&nats, None).await;
    let (mut run, mut worker) = (site.run(), site.deliver());
    site.insert(1, 30);
    site.confirmed().await;
    site.receiver.received(30).await;
    eventually("a checkpoint", async || {
        (site.sql("SELECT count(*) FROM rule_nats_checkpoints WHERE stream_name <> ''") == "1").then_some(())
    })
    .await;
    assert_eq!((run.terminate(), worker.terminate()), (0, 0));
    as_by_0_1(&nats, &site).await;
    let (mut run, mut worker) = (site.run(), site.deliver());
    site.insert(31, 50);
    site.receiver.received(50).await;
    site.confirmed().await;
    marked_by(&nats, &site).await;
    assert_eq!((run.terminate(), worker.terminate()), (0, 0), "{}{}", run.log(), worker.log());
    assert_eq!(site.called(), (1..=50).collect::<Vec<_>>(), "the consumer is the same, where it was");
    let id = site.id();
    for stream in ["WEBHOOKS", "KV_walhook_walhook"] {
        assert_eq!(metadata(&nats, stream).await["walhook.source.walhook"], json!(id), "{stream}");
    }
    assert_eq!(run.log().matches("stream claimed").count(), 1, "{}", run.log());
    let mut again = site.run();
    again.logged("stream opened").await;
    assert_eq!(again.terminate(), 0, "{}", again.log());
    assert!(!again.log().contains("stream claimed"), "{}", again.log());
    // Another database is refused from now on.
    let other = Site::start(&nats, None).await;
    other.insert(1, 5);
    let mut refused = other.run();
    assert_eq!(refused.wait(ENDS), 3, "{}", refused.log());
    assert!(refused.log().contains(&id), "{}", refused.log());
}

#[tokio::test]
async fn a_new_database_does_not_take_what_0_1_left_for_its_own() {
    let nats = Nats::start().await;
    let (old, new) = (Site::start(&nats, None).await, Site::start(&nats, None).await);
    has_run(&old).await;
    for stream in ["WEBHOOKS", "KV_walhook_walhook"] {
        forget_owner(&nats, stream).await;
    }
    nats.jetstream().await.get_key_value("walhook_walhook").await.unwrap().purge("run").await.unwrap();
    // Its WAL reaches further than the tail.
    new.sql("SELECT pg_switch_wal()");
    new.insert(101, 110);
    let mut refused = new.run();
    assert_eq!(refused.wait(ENDS), 3, "{}", refused.log());
    let log = refused.log();
    let last = log.lines().last().unwrap();
    for word in ["did not publish", new.id().as_str(), "walhook adopt --stream WEBHOOKS"] {
        assert!(last.contains(word), "no {word:?} in {last}");
    }
    assert_eq!(rows(&nats, "WEBHOOKS").await.len(), 30);
}

#[tokio::test]
async fn a_user_who_may_not_update_streams_publishes_as_before_and_gets_a_warning() {
    let users = "authorization { users: [\n\
        { user: admin, password: p },\n\
        { user: low, password: p, permissions: { publish: [\"webhooks.>\", \"$JS.API.STREAM.INFO.WEBHOOKS\", \
          \"$JS.API.STREAM.MSG.GET.WEBHOOKS\"], subscribe: [\"_INBOX.>\"] } }\n] }";
    let nats = Nats::builder().config(users).start().await;
    let admin = async_nats::ConnectOptions::with_user_and_password("admin".to_owned(), "p".to_owned());
    let jetstream = jetstream::new(admin.connect(nats.url()).await.unwrap());
    let config = |name: &str| jetstream::stream::Config {
        name: name.to_owned(),
        subjects: vec!["webhooks.>".to_owned()],
        ..jetstream::stream::Config::default()
    };
    jetstream.create_stream(config("WEBHOOKS")).await.unwrap();
    let pg = Postgres::start().await;
    let site = Site { nats_url: format!("nats://low:p@127.0.0.1:{}", nats.port()), ..Site::on(pg, &nats, None) };
    site.set_up();
    let mut run = site.run();
    site.insert(1, 10);
    site.confirmed().await;
    assert!(run.log().contains("walhook adopt --stream WEBHOOKS --nats-url"), "{}", run.log());
    // However early it is killed, it goes on.
    for step in 1..4 {
        run.kill9();
        run = site.run();
        site.insert(10 * step + 1, 10 * step + 10);
        site.confirmed().await;
    }
    site.sql("DELETE FROM rule_nats_checkpoints WHERE stream_name <> ''");
    run.kill9();
    let mut run = site.run();
    site.insert(41, 50);
    site.confirmed().await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    let state = jetstream.get_stream("WEBHOOKS").await.unwrap().cached_info().state.clone();
    assert_eq!(state.messages, 50);
    // The command that the warning names, without and with the right.
    let low = site.finish("adopt", &["--stream", "WEBHOOKS", "--yes"]);
    assert!(low.code == Some(4) && low.stderr.contains("$JS.API.STREAM.UPDATE.WEBHOOKS"), "{low:?}");
    let url = format!("nats://admin:p@127.0.0.1:{}", nats.port());
    let admin = site.finish("adopt", &["--stream", "WEBHOOKS", "--yes", "--nats-url", &url]);
    assert_eq!(admin.code, Some(0), "{admin:?}");
    let info: Value = jetstream.request("STREAM.INFO.WEBHOOKS", &json!({})).await.unwrap();
    assert_eq!(info["config"]["metadata"]["walhook.source.walhook"], site.id());
}

#[tokio::test]
async fn an_accounts_last_stream_is_for_events() {
    let nats = Nats::builder()
        .config(
            "accounts { A { jetstream: { max_streams: 1 }, users: [ { user: a, password: p } ] } }\nno_auth_user: a",
        )
        .start()
        .await;
    let site = Site::start(&nats, None).await;
    let mut run = site.run();
    site.insert(1, 10);
    site.confirmed().await;
    run.logged("make the bucket").await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    assert_eq!(numbers(&rows(&nats, "WEBHOOKS").await), (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_run_that_was_frozen_has_no_connection_left_that_could_write() {
    let nats = Nats::start().await;
    let site = Site::on(Postgres::builder().conf("wal_sender_timeout = 2s").start().await, &nats, None);
    site.set_up();
    let mut frozen = site.run();
    site.insert(1, 20);
    site.confirmed().await;
    marked_by(&nats, &site).await;
    // Rows of the history are on their way into a locked table when it freezes.
    let locker = site.pg.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE rule_nats_publish_history IN EXCLUSIVE MODE").await.unwrap();
    site.insert(21, 40);
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'walhook_streamer' AND wait_event_type = 'Lock'";
    eventually("the history to wait", async || (site.sql(waiting) == "1").then_some(())).await;
    let ours =
        "SELECT pid FROM pg_stat_activity WHERE usename = 'walhook_streamer' AND backend_type = 'client backend'";
    let before: BTreeSet<String> = site.sql(ours).lines().map(str::to_owned).collect();
    frozen.pause();
    let mut second = site.run();
    second.logged("slot taken").await;
    let after: BTreeSet<String> = site.sql(ours).lines().map(str::to_owned).collect();
    assert!(before.is_disjoint(&after), "{before:?} {after:?}");
    locker.batch_execute("ROLLBACK").await.unwrap();
    site.insert(41, 60);
    site.confirmed().await;
    let of_second = marked_by(&nats, &site).await;
    frozen.resume();
    let left = eventually("the frozen one to see what happened", async || match frozen.exited() {
        Some(status) => Some(status.code()),
        None => frozen.log().contains("waiting to take over").then_some(None),
    })
    .await;
    assert!(left.is_none_or(|code| code == 5), "{left:?}\n{}", frozen.log());
    site.insert(61, 80);
    site.confirmed().await;
    assert_eq!(numbers(&rows(&nats, "WEBHOOKS").await), (1..=80).collect::<Vec<_>>());
    let history = "SELECT count(*), count(DISTINCT event_id), count(DISTINCT sequence_number) \
                   FROM rule_nats_publish_history WHERE success";
    assert_eq!(site.sql(history), "80|80|80");
    assert_eq!(marked_by(&nats, &site).await, of_second);
    assert_eq!(second.terminate(), 0, "{}", second.log());
}

/// A connection by the library that `run` uses.
async fn control(url: &str) -> walhook::nats::control::Control {
    use walhook::{nats, route::tables::ConfigRow};
    let row = ConfigRow { config_name: "default".to_owned(), nats_url: Some(url.to_owned()), ..ConfigRow::default() };
    let settings = nats::settings::Settings::resolve(&row, &nats::settings::Overrides::default()).unwrap();
    nats::control::connect(&settings).await.unwrap()
}

#[tokio::test]
async fn a_run_that_was_frozen_in_an_upload_does_not_replace_the_object() {
    use walhook::{
        error::Kind,
        nats::objects::{self, Bucket, Writer},
    };
    let nats = Nats::start().await;
    let network = Proxy::before(nats.port());
    let bucket = Bucket { name: "objects".to_owned(), replicas: 1, max_age: Duration::ZERO };
    let writer = |epoch| Writer { database_id: "d".to_owned(), epoch };
    let payload = |letter: u8| Bytes::from(vec![letter; 3_000_000]);
    let (first, second) = (control(&format!("nats://127.0.0.1:{}", network.port())).await, control(&nats.url()).await);
    objects::put(&second, &bucket, "another", &payload(b'z'), &writer(1)).await.unwrap();
    let chunks = async || {
        let stream = nats.jetstream().await.get_stream("OBJ_objects").await.unwrap();
        stream.cached_info().state.messages
    };
    let before = chunks().await;
    network.set(NetworkFault::Sliced(100_000, Duration::from_millis(20)));
    let of_first = payload(b'a');
    let frozen = tokio::spawn({
        let (bucket, writer) = (bucket.clone(), writer(1));
        async move {
            let put = objects::put(&first, &bucket, "event", &of_first, &writer).await;
            (first, put)
        }
    });
    eventually("a part of the upload", async || (chunks().await > before + 2).then_some(())).await;
    network.set(NetworkFault::Held);
    objects::put(&second, &bucket, "event", &payload(b'b'), &writer(2)).await.unwrap();
    network.set(NetworkFault::Fair);
    let (first, put) = frozen.await.unwrap();
    assert_eq!(put.unwrap_err().kind(), Kind::Unavailable);
    // It tries again, and sees who has put it.
    let again = objects::put(&first, &bucket, "event", &payload(b'a'), &writer(1)).await.unwrap_err();
    assert_eq!(again.kind(), Kind::Fenced, "{again}");
    let got = objects::get(&second, "objects", "event", 4_000_000).await.unwrap();
    assert_eq!(got, Some(payload(b'b')), "whole, and the second one's");
    // Who has taken over finds what was put before, and does not send it again.
    let stored = chunks().await;
    objects::put(&second, &bucket, "event", &payload(b'b'), &writer(3)).await.unwrap();
    assert_eq!(chunks().await, stored);
    let other = Writer { database_id: "e".to_owned(), epoch: 9 };
    let refused = objects::put(&second, &bucket, "event", &payload(b'c'), &other).await.unwrap_err();
    assert!(refused.to_string().contains("database d") && refused.to_string().contains("database e"), "{refused}");
}

/// The names of an account's streams.
async fn streams(nats: &Nats) -> BTreeSet<String> {
    let answer = ask(nats, "STREAM.NAMES", Value::Null).await;
    let names = answer["streams"].as_array().into_iter().flatten();
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn uninstall_with_nats_removes_what_this_database_made_there_and_nothing_of_others() {
    let nats = Nats::start().await;
    let (a, b) = (Site::start(&nats, None).await, Site::start(&nats, None).await);
    b.publish_into("OTHER");
    // A stream that somebody else made, which A publishes into as well.
    ask(&nats, "STREAM.CREATE.HAND", json!({ "name": "HAND", "subjects": ["hand.>"], "metadata": { "team": "x" } }))
        .await;
    a.sql("INSERT INTO rule_nats_streams (config_id, stream_name, subjects) VALUES (1, 'HAND', '{hand.>}')");
    let url = a.receiver.url("/");
    a.sql(&format!("SELECT rule_webhook_register('by_hand', '{url}'), rule_webhook_enable_nats(2, 'hand.x', 'nats')"));
    let mut run_a = a.run();
    eventually("A's bucket", async || streams(&nats).await.contains("KV_walhook_walhook").then_some(())).await;
    let mut run_b = b.run();
    let (mut deliver_a, mut deliver_b) = (a.deliver(), b.deliver());
    for site in [&a, &b] {
        site.sql("UPDATE rule_webhooks SET on_error = 'object_store'");
        site.sql("SELECT rule_webhook_publish_nats(1, jsonb_build_object('id', 100, 'large', repeat('x', 2000000)))");
        site.insert(1, 3);
    }
    a.sql("SELECT rule_webhook_publish_nats(2, '{\"id\": 7}')");
    for (site, count) in [(&a, 5), (&b, 4)] {
        site.confirmed().await;
        eventually("all calls", async || (site.called().len() >= count).then_some(())).await;
    }
    // Slots: one of an earlier source, and one that walhook does not know.
    a.sql("SELECT pg_create_logical_replication_slot('earlier', 'pgoutput'), pg_create_logical_replication_slot('stranger', 'pgoutput')");
    a.sql("INSERT INTO rule_cdc_status (source, slot_name) VALUES ('earlier', 'earlier')");
    let before = streams(&nats).await;
    assert_eq!(before.len(), 6, "{before:?}");

    let at_work = a.finish("uninstall", &["--nats", "--yes"]);
    assert_eq!(at_work.code, Some(2), "{}", at_work.stderr);
    assert!(at_work.stderr.contains("streams from slot \"walhook\""), "{}", at_work.stderr);
    assert_eq!(run_a.terminate(), 0, "{}", run_a.log());
    let at_work = a.finish("uninstall", &["--nats", "--yes"]);
    assert_eq!(at_work.code, Some(2), "{}", at_work.stderr);
    assert!(at_work.stderr.contains("stop `walhook deliver` of this database first"), "{}", at_work.stderr);
    assert_eq!(deliver_a.terminate(), 0, "{}", deliver_a.log());

    // What would be done, by name; and nothing is done.
    let printed = eventually("the pulls to end", async || {
        let printed = a.finish("uninstall", &["--nats", "--print"]);
        (printed.code == Some(0)).then_some(printed.stdout)
    })
    .await;
    for part in [
        "stream WEBHOOKS, messages: 4",
        "consumer walhook-deliver-2 of stream HAND",
        "the metadata walhook.source.walhook of stream HAND, which stays",
        "1 objects in the object store walhook_objects: walhook-",
        "stream KV_walhook_walhook, the bucket",
        "roles walhook_application, walhook_operator, walhook_streamer, walhook_worker",
        "publications walhook_changes, walhook_inserts",
        "slots earlier, walhook",
        "slot stranger stays",
        "SELECT pg_drop_replication_slot('earlier');",
    ] {
        assert!(printed.contains(part), "no {part:?} in {}", printed.split("\\set").next().unwrap());
    }
    let asked = a.finish("uninstall", &["--nats"]);
    assert_eq!(asked.code, Some(2), "{}", asked.stderr);
    assert!(asked.stderr.contains("--yes goes on without asking"), "{}", asked.stderr);
    assert_eq!(streams(&nats).await, before);
    assert_eq!(a.sql("SELECT count(*) FROM rule_webhooks"), "2");

    let done = a.finish("uninstall", &["--nats", "--yes"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.contains("removed in NATS default: stream WEBHOOKS"), "{}", done.stdout);
    let left: BTreeSet<String> = ["HAND", "OTHER", "OBJ_walhook_objects"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("KV_walhook_walhook_{}", b.id())])
        .collect();
    assert_eq!(streams(&nats).await, left);
    assert_eq!(metadata(&nats, "HAND").await["team"], "x");
    assert!(metadata(&nats, "HAND").await["walhook.source.walhook"].is_null());
    assert_eq!(rows(&nats, "HAND").await.len(), 1, "its messages stay");
    assert_eq!(ask(&nats, "CONSUMER.NAMES.HAND", Value::Null).await["total"], 0);
    let objects =
        ask(&nats, "STREAM.INFO.OBJ_walhook_objects", json!({ "subjects_filter": "$O.walhook_objects.M.>" })).await;
    assert_eq!(objects["state"]["subjects"].as_object().unwrap().len(), 1, "B's");
    assert_eq!(a.sql("SELECT string_agg(slot_name, ',') FROM pg_replication_slots"), "stranger");
    assert_eq!(a.sql("SELECT to_regclass('rule_webhooks') IS NULL"), "t");
    // B has not noticed.
    b.insert(4, 5);
    b.confirmed().await;
    eventually("B's calls", async || (b.called().len() >= 6).then_some(())).await;
    assert_eq!((run_b.terminate(), deliver_b.terminate()), (0, 0), "{}", run_b.log());

    // The last one takes the object store with it.
    let done = eventually("the pulls to end", async || {
        let done = b.finish("uninstall", &["--nats", "--yes"]);
        (done.code == Some(0)).then_some(done)
    })
    .await;
    assert!(done.stdout.contains("stream OBJ_walhook_objects"), "{}", done.stdout);
    assert_eq!(streams(&nats).await, BTreeSet::from(["HAND".to_owned()]));
}

#[tokio::test]
async fn a_copy_of_a_database_uninstalls_itself_and_touches_nothing_in_nats() {
    let nats = Nats::start().await;
    let original = Site::start(&nats, None).await;
    let mut run = original.run();
    original.insert(1, 3);
    original.confirmed().await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    let before = streams(&nats).await;
    original.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid()",
    );
    original.pg.psql_in("template1", "CREATE DATABASE staging TEMPLATE postgres");
    let staging = |arguments: &[&str]| {
        let conninfo = format!("host=127.0.0.1 port={} dbname=staging user=postgres", original.pg.port());
        Walhook::command("uninstall").args(arguments.iter().copied()).env("DATABASE_URL", conninfo).finish()
    };
    let refused = staging(&["--nats", "--yes"]);
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("walhook adopt"), "{}", refused.stderr);
    assert_eq!(original.pg.psql_in("staging", "SELECT count(*) FROM rule_webhooks"), "1", "nothing is done by halves");
    let done = staging(&["--yes"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(streams(&nats).await, before);
    // A server that is gone for good is left out by its row; the original's slot was not touched.
    original.sql("INSERT INTO rule_nats_config (config_name, nats_url) VALUES ('gone', 'nats://127.0.0.1:1')");
    let unreachable = original.finish("uninstall", &["--nats", "--yes"]);
    assert_eq!(unreachable.code, Some(1), "{}", unreachable.stderr);
    let remedy = unreachable.stderr.split("UPDATE rule_nats_config").nth(1).unwrap().split(';').next().unwrap();
    original.sql(&format!("UPDATE rule_nats_config{remedy}"));
    let done = original.finish("uninstall", &["--nats", "--yes"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(streams(&nats).await, BTreeSet::new());
}

#[tokio::test]
async fn checkpoints_of_another_postgresql_are_put_aside_by_the_command_that_is_printed() {
    let nats = Nats::start().await;
    let site = Site::start(&nats, None).await;
    let mut run = site.run();
    site.insert(1, 3);
    site.confirmed().await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    let epoch = || -> i64 {
        site.sql("SELECT epoch FROM rule_nats_checkpoints WHERE config_name = '' AND stream_name = ''").parse().unwrap()
    };
    let before = epoch();
    site.sql("UPDATE rule_nats_checkpoints SET system_identifier = '1' WHERE stream_name <> ''");
    let mut run = site.run();
    assert_eq!(run.wait(ENDS), 3, "{}", run.log());
    assert!(run.log().contains("its checkpoints are of another PostgreSQL"), "{}", run.log());
    assert!(run.log().contains("`walhook adopt --same`"), "{}", run.log());
    let done = site.finish("adopt", &["--same", "--yes"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(site.sql("SELECT count(*) FROM rule_nats_checkpoints WHERE stream_name <> ''"), "0");
    let mut run = site.run();
    site.insert(4, 5);
    site.confirmed().await;
    assert_eq!(numbers(&rows(&nats, "WEBHOOKS").await), [1, 2, 3, 4, 5]);
    assert!(epoch() > before, "a frozen run of before would not be fenced");
    assert_eq!(run.terminate(), 0, "{}", run.log());
}
