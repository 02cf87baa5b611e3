//! `walhook check`: each kind of trouble is made on real servers, found under its code, ended by the remedy that was printed, and gone.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::fs;

use serde_json::Value;
use support::{
    Nats, Postgres, eventually,
    feed::Feed,
    folder::Folder,
    http::{Http, Reply},
    process::{Process, User},
    tls::Authority,
    walhook::{Builder, Finished, Walhook},
};
use tokio_postgres::Client;
use walhook::commands::check::window;

/// However full the disk of this machine is.
pub const ROOM: [&str; 2] = ["--wal-disk-free", "100TB"];

/// What a check answered.
#[derive(Debug)]
pub struct Checked {
    pub finished: Finished,
    pub findings: Vec<Value>,
}

impl Checked {
    pub fn by(builder: Builder) -> Checked {
        let finished = builder.arg("--json").finish();
        let answer: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("no JSON: {finished:?}"));
        assert_eq!(answer["exit_code"].as_i64(), finished.code.map(i64::from), "{finished:?}");
        for finding in answer["findings"].as_array().unwrap() {
            for key in ["code", "severity", "subject", "text", "why"] {
                assert!(finding[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {finding}");
            }
        }
        Checked { findings: answer["findings"].as_array().unwrap().clone(), finished }
    }

    pub fn of(feed: &Feed) -> Checked {
        Checked::by(feed.command("check").args(ROOM))
    }

    pub fn all(&self, code: &str) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["code"] == code).collect()
    }

    pub fn has(&self, code: &str) -> bool {
        !self.all(code).is_empty()
    }

    pub fn one(&self, code: &str) -> &Value {
        match self.all(code)[..] {
            [one] => one,
            _ => panic!("not one finding {code} in {:#?}", self.findings),
        }
    }

    pub fn code(&self) -> i32 {
        self.finished.code.unwrap()
    }

    pub fn text(&self, code: &str) -> &str {
        self.one(code)["text"].as_str().unwrap()
    }

    pub fn remedy(&self, code: &str) -> &str {
        self.one(code)["remedy"].as_str().unwrap_or_else(|| panic!("no remedy in {:#}", self.one(code)))
    }

    /// What says more than that something is worth knowing.
    pub fn troubles(&self) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["severity"] != "note").collect()
    }
}

/// Runs statements as `psql` does: one after the other, on one connection.
async fn run_sql(client: &Client, sql: &str) {
    for statement in walhook_statements(sql) {
        client.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}

/// Statements end at a semicolon outside of quotes.
fn walhook_statements(sql: &str) -> Vec<String> {
    let (mut all, mut statement, mut is_quoted) = (Vec::new(), String::new(), false);
    for c in sql.chars() {
        is_quoted ^= c == '\'';
        statement.push(c);
        if c == ';' && !is_quoted {
            all.push(std::mem::take(&mut statement));
        }
    }
    all.into_iter().map(|statement| statement.trim().to_owned()).collect()
}

/// Runs a remedy where it says that it is to be run, and restarts PostgreSQL where it says so.
pub async fn run_remedy(feed: &Feed, finding: &Value) {
    let remedy = finding["remedy"].as_str().unwrap_or_else(|| panic!("no remedy: {finding:#}"));
    match finding["how"].as_str() {
        Some("sql") => {
            run_sql(&feed.pg.client().await, remedy.split(" -- ").next().unwrap()).await;
            if remedy.contains("restart PostgreSQL") {
                feed.pg.restart().await;
            }
        }
        Some("shell") if remedy == "walhook setup" => {
            let done = feed.command("setup").finish();
            assert_eq!(done.code, Some(0), "{done:?}");
        }
        how => panic!("{how:?} cannot be run: {finding:#}"),
    }
}

/// Trouble that SQL makes and the printed remedy ends.
struct Case {
    code: &'static str,
    /// Run one by one.
    trouble: &'static [&'static str],
    restarts: bool,
    severity: &'static str,
    exit_code: i32,
    /// Who checks.
    user: &'static str,
}

const fn case(code: &'static str, trouble: &'static [&'static str], severity: &'static str, exit_code: i32) -> Case {
    Case { code, trouble, restarts: false, severity, exit_code, user: "postgres" }
}

const CASES: &[Case] = &[
    case("slot_wal_limit", &["ALTER SYSTEM SET max_slot_wal_keep_size = -1", "SELECT pg_reload_conf()"], "warning", 0),
    case("wal_sender_timeout", &["ALTER SYSTEM SET wal_sender_timeout = 0", "SELECT pg_reload_conf()"], "warning", 0),
    case(
        "wal_sender_timeout",
        &["ALTER SYSTEM SET wal_sender_timeout = '1s'", "SELECT pg_reload_conf()"],
        "warning",
        0,
    ),
    case("wal_sender_timeout", &["ALTER ROLE postgres SET wal_sender_timeout = '1h'"], "warning", 0),
    case(
        "wal_sender_timeout",
        &["ALTER ROLE postgres RESET ALL", "ALTER DATABASE postgres SET wal_sender_timeout = 0"],
        "warning",
        0,
    ),
    Case { restarts: true, ..case("slots_left", &["ALTER SYSTEM SET max_replication_slots = 1"], "warning", 0) },
    Case { restarts: true, ..case("senders_left", &["ALTER SYSTEM SET max_wal_senders = 1"], "warning", 0) },
    case(
        "synchronous_standby",
        &["ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (*)'", "SELECT pg_reload_conf()"],
        "error",
        0,
    ),
    case("read_only", &["ALTER DATABASE postgres SET default_transaction_read_only = on"], "error", 1),
    Case {
        user: "low",
        ..case("role_replication", &["CREATE ROLE low LOGIN", "GRANT walhook_streamer TO low"], "fatal", 4)
    },
    Case { user: "lower", ..case("privileges", &["CREATE ROLE lower LOGIN REPLICATION"], "fatal", 4) },
    Case {
        user: "walhook_streamer",
        ..case("privileges", &["REVOKE UPDATE ON rule_nats_checkpoints FROM walhook_streamer"], "fatal", 4)
    },
    Case {
        user: "walhook_streamer",
        ..case("privileges", &["REVOKE USAGE ON SCHEMA walhook FROM walhook_streamer"], "fatal", 4)
    },
    Case {
        user: "walhook_streamer",
        ..case("privileges", &["REVOKE DELETE ON walhook.rule_cdc_runs FROM walhook_streamer"], "fatal", 4)
    },
    case("owners", &["CREATE ROLE other", "ALTER TABLE rule_webhook_links OWNER TO other"], "warning", 0),
    case(
        "functions_replaced",
        &[
            "DO $$ BEGIN EXECUTE replace(pg_get_functiondef('public.rule_cdc_slot_drop'::regproc), 'BEGIN', 'BEGIN NULL;'); END $$",
        ],
        "error",
        0,
    ),
    case("schema_version", &["DELETE FROM rule_cdc_migrations WHERE version = '014'"], "fatal", 2),
    case("identity", &["DELETE FROM rule_cdc_identity"], "fatal", 2),
    case("publication_missing", &["DROP PUBLICATION walhook_changes"], "fatal", 2),
    case("slot_missing", &["SELECT pg_drop_replication_slot('walhook')"], "fatal", 2),
    case("link_disabled", &["UPDATE rule_webhook_links SET enabled = false"], "warning", 0),
    case("identity_missing", &["ALTER TABLE t REPLICA IDENTITY NOTHING"], "error", 0),
];

fn as_user(feed: &Feed, user: &str) -> Builder {
    let conninfo = feed.pg.conninfo().replace("user=postgres", &format!("user={user}"));
    feed.command("check").args(ROOM).env("DATABASE_URL", conninfo)
}

/// A feed in which nothing is wrong.
pub async fn sound(version: &str) -> Feed {
    let pg = Postgres::builder().version(version).conf("max_slot_wal_keep_size = 100TB").set_up().start().await;
    let feed = Feed::on(pg, Nats::start().await);
    feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text); SELECT rule_webhook_link_table(1, 't')");
    feed
}

async fn each_trouble(version: &str) {
    let feed = sound(version).await;
    let checked = Checked::of(&feed);
    assert!(checked.troubles().is_empty() && checked.code() == 0, "at first: {:#?}", checked.findings);
    assert!(checked.text("slot_headroom").contains("there is room for"), "{:#?}", checked.findings);
    for case in CASES {
        let client = feed.pg.client().await;
        for statement in case.trouble {
            client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        drop(client);
        if case.restarts {
            feed.pg.restart().await;
        }
        let checked = eventually(case.code, async || {
            let checked = Checked::by(as_user(&feed, case.user));
            checked.has(case.code).then_some(checked)
        })
        .await;
        let found = checked.one(case.code).clone();
        assert_eq!(found["severity"], case.severity, "{found:#}");
        assert_eq!(checked.code(), case.exit_code, "{}: {checked:#?}", case.code);
        run_remedy(&feed, &found).await;
        eventually(&format!("no {} more", case.code), async || {
            let checked = Checked::by(as_user(&feed, case.user));
            (!checked.has(case.code) && checked.code() == 0).then_some(())
        })
        .await;
    }
    let checked = Checked::of(&feed);
    assert!(checked.troubles().is_empty(), "in the end: {:#?}", checked.findings);
    // And it does start.
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.stored(1).await;
    let checked = Checked::of(&feed);
    assert!(checked.troubles().is_empty(), "while it runs: {:#?}", checked.findings);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn each_trouble_in_postgresql_14_is_found_and_ended_by_its_remedy() {
    each_trouble("14").await;
}

#[tokio::test]
async fn each_trouble_in_postgresql_18_is_found_and_ended_by_its_remedy() {
    each_trouble("18").await;
}

#[tokio::test]
async fn an_idle_timeout_of_slots_is_found_where_postgresql_has_it() {
    let feed = sound("18").await;
    feed.pg.psql("ALTER SYSTEM SET idle_replication_slot_timeout = '1h'");
    feed.pg.psql("SELECT pg_reload_conf()");
    let code = "idle_replication_slot_timeout";
    let checked = eventually(code, async || Some(Checked::of(&feed)).filter(|checked| checked.has(code))).await;
    run_remedy(&feed, checked.one(code)).await;
    eventually("no timeout more", async || (!Checked::of(&feed).has(code)).then_some(())).await;
}

#[tokio::test]
async fn before_setup_the_server_is_checked_all_the_same() {
    let pg = Postgres::builder().conf("wal_level = replica\nmax_slot_wal_keep_size = 100TB").start().await;
    let feed = Feed { pg, nats: Nats::start().await };
    let checked = Checked::of(&feed);
    assert_eq!(checked.code(), 2, "{checked:#?}");
    assert_eq!(checked.one("schema_version")["remedy"], "walhook setup");
    run_remedy(&feed, checked.one("wal_level")).await;
    let checked = Checked::of(&feed);
    assert!(!checked.has("wal_level"), "{checked:#?}");
    run_remedy(&feed, checked.one("schema_version")).await;
    feed.pg.psql("DELETE FROM rule_nats_config");
    let checked = Checked::of(&feed);
    let remedy = checked.remedy("nats_settings").split(" -- ").next().unwrap();
    feed.pg.psql(&remedy.replace("nats://127.0.0.1:4222", &feed.nats.url()));
    let checked = Checked::of(&feed);
    assert!(checked.troubles().is_empty(), "{:#?}", checked.findings);
}

#[tokio::test]
async fn where_a_provider_has_the_superuser_its_own_way_is_named() {
    let feed = sound("default").await;
    feed.pg.psql(
        "CREATE ROLE rds_superuser; CREATE ROLE rds_replication; CREATE ROLE low LOGIN; GRANT walhook_streamer TO low",
    );
    feed.pg.psql("ALTER SYSTEM SET max_slot_wal_keep_size = -1");
    feed.pg.psql("SELECT pg_reload_conf()");
    let checked = eventually("the limit to be gone", async || {
        Some(Checked::by(as_user(&feed, "low"))).filter(|checked| checked.has("slot_wal_limit"))
    })
    .await;
    assert!(checked.remedy("slot_wal_limit").starts_with("aws rds modify-db-parameter-group "), "{checked:#?}");
    assert_eq!(checked.remedy("role_replication"), "GRANT rds_replication TO \"low\";");
    run_remedy(&feed, checked.one("role_replication")).await;
    assert!(!Checked::by(as_user(&feed, "low")).has("role_replication"));
}

#[tokio::test]
async fn what_a_role_may_not_see_is_said_and_hides_nothing_else() {
    let feed = sound("default").await;
    feed.pg.psql(
        "REVOKE SELECT ON pg_stat_replication FROM PUBLIC; REVOKE EXECUTE ON FUNCTION pg_current_wal_lsn() FROM PUBLIC",
    );
    feed.pg.psql("ALTER ROLE walhook_streamer SET wal_sender_timeout = 0");
    let checked = Checked::by(as_user(&feed, "walhook_streamer"));
    let subjects: Vec<_> =
        checked.all("not_checked").iter().map(|finding| finding["subject"].as_str().unwrap()).collect();
    for subject in ["senders_left", "slot_wal_limit, slot_wal_status, slot_headroom", "nats_max_payload"] {
        assert!(subjects.contains(&subject), "{subject}: {checked:#?}");
    }
    assert!(checked.has("wal_sender_timeout"), "{checked:#?}");
    // Its remedy for the rows.
    let rows = checked
        .all("not_checked")
        .into_iter()
        .find(|finding| finding["subject"] == "nats_max_payload")
        .unwrap()
        .clone();
    run_remedy(&feed, &rows).await;
    let checked = Checked::by(as_user(&feed, "walhook_streamer"));
    assert!(checked.all("not_checked").iter().all(|finding| finding["subject"] != "nats_max_payload"), "{checked:#?}");
}

#[tokio::test]
async fn a_pooler_in_between_is_known_by_its_behaviour() {
    let feed = sound("default").await;
    let user = User::unprivileged();
    let folder = Folder::new("pgbouncer", user);
    let (file, users) = (folder.path().join("pgbouncer.ini"), folder.path().join("users"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = session\n",
        feed.pg.port(),
        users.display()
    );
    user.write(&users, "\"postgres\" \"\"\n");
    user.write(&file, text);
    let mut command = user.command(support::services::pgbouncer());
    command.arg(&file);
    let _pooler = Process::start("PgBouncer", command, &folder.path().join("log"));
    eventually("PgBouncer to listen", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok().then_some(())
    })
    .await;
    let conninfo = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    let checked = Checked::by(feed.command("check").env("DATABASE_URL", conninfo));
    assert_eq!(checked.code(), 2, "{checked:#?}");
    assert!(checked.remedy("pooler").contains("PostgreSQL itself"), "{checked:#?}");
    assert!(checked.has("slot_headroom"), "the rest is checked as well: {checked:#?}");
}

#[tokio::test]
async fn a_side_that_is_away_hides_nothing_of_the_other() {
    let feed = sound("default").await;
    feed.pg.psql("UPDATE rule_webhook_links SET enabled = false");
    feed.nats.stop();
    let checked = Checked::of(&feed);
    assert_eq!(checked.code(), 1, "{checked:#?}");
    assert!(checked.has("nats_connection") && checked.has("link_disabled"), "{checked:#?}");
    feed.nats.restart().await;
    feed.pg.stop();
    let checked = Checked::of(&feed);
    assert_eq!(checked.code(), 1, "{checked:#?}");
    assert_eq!(checked.one("not_checked")["subject"], "nats_connection", "without an address: {checked:#?}");
    let remedy = checked.remedy("not_checked").replace("nats://HOST:4222", &feed.nats.url());
    let words: Vec<&str> = remedy.split(' ').skip(2).collect();
    let checked = Checked::by(feed.command("check").args(words));
    assert!(checked.has("postgres_connection") && !checked.has("nats_connection"), "{checked:#?}");
    feed.nats.stop();
    let checked = Checked::by(feed.command("check").args(["--nats-url", &feed.nats.url()]));
    assert!(checked.has("postgres_connection") && checked.has("nats_connection"), "{checked:#?}");
}

/// One user `w` with this block after its password.
fn users(block: &str) -> String {
    format!("authorization {{ users: [ {{ user: admin, password: p }}, {{ user: w, password: p, {block} }} ] }}")
}

#[tokio::test]
async fn the_printed_rights_are_enough_for_run_and_for_check_and_what_is_lacking_is_named() {
    let mut feed = sound("default").await;
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', 'nats://w:p@127.0.0.1:{}')", feed.nats.port()));
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'object_store'");
    feed.pg.psql("UPDATE rule_nats_config SET notice_subject = '_WALHOOK.notices', notice_interval_seconds = 1");
    feed.nats.set_config(&users(
        "permissions: { publish: { allow: [\"$JS.API.STREAM.INFO.WEBHOOKS\", \"$SYS.REQ.USER.INFO\"] }, subscribe: { allow: [\"_INBOX.>\"] } }",
    ));
    feed.nats.restart().await;
    let checked = Checked::of(&feed);
    assert_eq!(checked.code(), 4, "{checked:#?}");
    let [must, should] = checked.all("nats_permissions")[..] else { panic!("{checked:#?}") };
    assert!(must["severity"] == "fatal" && should["severity"] == "warning", "{checked:#?}");
    assert!(must["text"].as_str().unwrap().contains("publish on webhooks.>"), "{must:#}");
    assert_eq!(must["remedy"], "walhook check --permissions");
    // And so it is for run.
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (0, 'not yet')");
    assert_eq!(walhook.wait(support::DEADLINE), 4, "{}", walhook.log());

    // Without the right to ask: not checked, and said so.
    feed.nats.set_config(&users("permissions: { publish: { deny: [\"$SYS.>\"] } }"));
    feed.nats.restart().await;
    let checked = Checked::of(&feed);
    assert!(checked.all("not_checked").iter().any(|found| found["subject"] == "nats_permissions"), "{checked:#?}");
    assert_eq!(checked.code(), 0, "{checked:#?}");

    let printed = feed.command("check").arg("--permissions").finish();
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(!printed.stdout.contains("w:p@"), "{printed:?}");
    let block = printed.stdout.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let deliver = feed.command("check").args(["--permissions", "--deliver"]).finish();
    assert_eq!(deliver.code, Some(0), "{deliver:?}");
    let worker = deliver.stdout.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let both = format!(
        "authorization {{ users: [ {{ user: admin, password: p }}, {{ user: w, password: p,\n{block}\n}}, \
         {{ user: d, password: p,\n{worker}\n}} ] }}"
    );
    feed.nats.set_config(&both);
    feed.nats.restart().await;
    let said = feed.nats.log().len();
    let checked = Checked::of(&feed);
    // That the row has the password is another matter.
    let troubles: Vec<_> = checked.troubles().into_iter().filter(|found| found["code"] != "nats_settings").collect();
    assert!(troubles.is_empty(), "{troubles:#?}");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1, repeat('x', 2000000))");
    feed.pg.psql("INSERT INTO t VALUES (2, 'small')");
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0", "{}", walhook.log());
    let letter = "INSERT INTO rule_nats_dead_letters (event_id, reason) VALUES ('x', 'r')";
    feed.pg.psql(letter);
    walhook.logged("_WALHOOK.notices.walhook.dead_letters").await;
    feed.pg.psql("DELETE FROM rule_nats_dead_letters");
    walhook.logged("_WALHOOK.notices.walhook.dead_letters_cleared").await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let http = Http::ok();
    feed.pg.psql(&format!("UPDATE rule_webhooks SET url = '{}'", http.url("/")));
    let mut delivering = feed
        .command("deliver")
        .env("NATS_USER", "d")
        .env("NATS_PASSWORD", "p")
        .args(["--allow-network", "127.0.0.1"])
        .start();
    eventually("both events to arrive", async || (http.count() >= 2).then_some(())).await;
    feed.pg.psql(letter);
    delivering.logged("_WALHOOK.notices.walhook.dead_letters").await;
    assert_eq!(delivering.terminate(), 0, "{}", delivering.log());
    let violations: Vec<String> =
        feed.nats.log().split_off(said).lines().filter(|line| line.contains("iolation")).map(str::to_owned).collect();
    assert!(violations.is_empty(), "{violations:#?}");
}

/// A new row of rule_nats_streams has limits by default, which would delete events of a stream that had none.
#[tokio::test]
async fn a_remedy_that_makes_a_streams_row_gives_the_stream_no_limits() {
    let feed = sound("default").await;
    let admin = feed.nats.jetstream().await;
    let full = async_nats::jetstream::stream::Config {
        name: "WEBHOOKS".to_owned(),
        subjects: vec!["webhooks.>".to_owned()],
        max_messages: 2,
        ..Default::default()
    };
    let durable =
        async_nats::jetstream::consumer::pull::Config { durable_name: Some("slow".to_owned()), ..Default::default() };
    admin.create_stream(full).await.unwrap().create_consumer(durable).await.unwrap();
    for _ in 0..2 {
        admin.publish("webhooks.x", "{}".into()).await.unwrap().await.unwrap();
    }
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_streams"), "0");
    let checked = Checked::of(&feed);
    run_remedy(&feed, checked.one("stream_unread")).await;
    let row = "SELECT (discard_policy, max_messages, max_bytes, max_age_seconds) FROM rule_nats_streams";
    assert_eq!(feed.pg.psql(row), "(new,,,)");
    assert!(!Checked::of(&feed).has("stream_unread"));
}

#[tokio::test]
async fn callers_ids_are_found_by_the_subjects_of_the_last_calls() {
    let feed = Feed::start().await;
    let client = feed.pg.client().await;
    let found = async || window::subjects_with_own_ids(&client).await.unwrap().into_iter().collect::<Vec<_>>();
    let (plain, own) = (feed.webhook("plain"), feed.webhook("own"));
    feed.pg
        .psql(&format!("SELECT rule_webhook_publish_nats({plain}, '{{}}'), rule_webhook_publish_nats({own}, '{{}}')"));
    assert!(found().await.is_empty());
    feed.pg.psql(&format!("SELECT rule_webhook_call_unified({own}, '{{}}', 'an-id')"));
    assert_eq!(found().await, ["webhooks.own"]);
    // A role that may not read the calls gets an error, and its connection can be used as before.
    feed.pg.psql("CREATE ROLE nobody LOGIN");
    client.batch_execute("SET ROLE nobody").await.unwrap();
    let error = window::subjects_with_own_ids(&client).await.unwrap_err();
    assert!(error.to_string().contains("rule_webhook_events"), "{error}");
    client.batch_execute("RESET ROLE").await.unwrap();
    assert_eq!(found().await, ["webhooks.own"]);
    // A check that is given up while it reads leaves no transaction open for the checks behind it.
    let locker = feed.pg.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE rule_webhook_events").await.unwrap();
    let given_up =
        tokio::time::timeout(std::time::Duration::from_millis(300), window::subjects_with_own_ids(&client)).await;
    assert!(given_up.is_err());
    client.batch_execute("CREATE TABLE written_behind (id int)").await.unwrap();
    locker.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(feed.pg.psql("SELECT count(*) FROM written_behind"), "0");
}

#[tokio::test]
async fn each_trouble_with_streams_is_found_and_ended_by_its_remedy() {
    let feed = sound("default").await;
    let admin = feed.nats.jetstream().await;
    // Another's subjects.
    let config = |name: &str| async_nats::jetstream::stream::Config {
        name: name.to_owned(),
        subjects: vec!["webhooks.>".to_owned()],
        ..Default::default()
    };
    assert!(Checked::of(&feed).has("stream_new"));
    admin.create_stream(config("OTHER")).await.unwrap();
    let checked = Checked::of(&feed);
    assert!(checked.text("stream_subjects_taken").contains("OTHER") && checked.code() == 0, "{checked:#?}");
    admin.delete_stream("OTHER").await.unwrap();

    // Deleted, read or not: of a stream that will be made, and of one that is there.
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    let checked = Checked::of(&feed);
    run_remedy(&feed, checked.one("stream_retention")).await;
    let checked = Checked::of(&feed);
    assert!(!checked.has("stream_retention"), "{checked:#?}");
    feed.pg.psql("UPDATE rule_nats_streams SET discard_policy = 'old', max_messages = 1000000, max_bytes = 1073741824");
    let full = async_nats::jetstream::stream::Config { max_messages: 10, ..config("WEBHOOKS") };
    let stream = admin.create_stream(full).await.unwrap();
    let durable =
        async_nats::jetstream::consumer::pull::Config { durable_name: Some("slow".to_owned()), ..Default::default() };
    stream.create_consumer(durable).await.unwrap();
    for _ in 0..10 {
        admin.publish("webhooks.x", "{}".into()).await.unwrap().await.unwrap();
    }
    let checked = Checked::of(&feed);
    assert!(checked.text("stream_unread").contains("\"slow\""), "{checked:#?}");
    run_remedy(&feed, checked.one("stream_unread")).await;
    let checked = Checked::of(&feed);
    assert!(!checked.has("stream_unread") && checked.has("stream_changes"), "{checked:#?}");

    // A window that is too short for a shared stream.
    feed.pg.psql("UPDATE rule_nats_streams SET ordering = 'shared', duplicate_window_seconds = 10");
    let checked = Checked::of(&feed);
    run_remedy(&feed, checked.one("duplicate_window")).await;
    assert!(!Checked::of(&feed).has("duplicate_window"));

    // Properties and rows that JetStream does not change.
    feed.pg.psql("UPDATE rule_nats_streams SET storage_type = 'memory'");
    assert!(Checked::of(&feed).text("stream_row_impossible").contains("storage_type"));
    feed.pg.psql("UPDATE rule_nats_streams SET storage_type = 'file', ordering = 'strict'");

    // What is lost in a power cut.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("walhook.toml");
    let checked = Checked::of(&feed);
    assert_eq!(checked.one("nats_fsync")["how"], "settings");
    fs::write(&file, checked.remedy("nats_fsync")).unwrap();
    assert!(!Checked::by(feed.command("check").arg("--config").arg(&file)).has("nats_fsync"));

    // Another database's.
    admin.delete_stream("WEBHOOKS").await.unwrap();
    let anothers =
        r#"{"name":"WEBHOOKS","subjects":["webhooks.>"],"metadata":{"walhook.source.walhook":"somebodyelse"}}"#;
    let client = feed.nats.client().await;
    client.request("$JS.API.STREAM.CREATE.WEBHOOKS", anothers.into()).await.unwrap();
    let checked = Checked::of(&feed);
    assert_eq!(checked.code(), 3, "{checked:#?}");
    assert!(checked.text("stream_owner").contains("somebodyelse"), "{checked:#?}");
    admin.delete_stream("WEBHOOKS").await.unwrap();
    assert_eq!(Checked::of(&feed).code(), 0);
}

#[tokio::test]
async fn rows_that_fit_into_no_message_are_seen_before_they_are_published() {
    let pg = Postgres::builder().conf("max_slot_wal_keep_size = 100TB").set_up().start().await;
    let feed = Feed::on(pg, Nats::builder().config("max_payload: 64KB").start().await);
    feed.webhook("w");
    feed.pg.psql(
        "CREATE TABLE \"a b\" (id int PRIMARY KEY, doc jsonb, note text); SELECT rule_webhook_link_table(1, '\"a b\"')",
    );
    feed.pg.psql("INSERT INTO \"a b\" SELECT n, '{}', 'small' FROM generate_series(1, 100) n");
    assert!(!Checked::of(&feed).has("nats_max_payload"));
    feed.pg.psql("INSERT INTO \"a b\" SELECT 200, to_jsonb(repeat('x', 100000)), ''");
    let checked = Checked::of(&feed);
    assert!(checked.text("nats_max_payload").contains("\"a b\" has rows of 98 kB"), "{checked:#?}");
    run_remedy(&feed, checked.one("nats_max_payload")).await;
    assert_eq!(Checked::of(&feed).one("nats_max_payload")["severity"], "note");
}

#[tokio::test]
async fn the_last_mile_is_checked_without_a_call_and_with_ping_by_one_signed_request() {
    let feed = sound("default").await;
    let authority = Authority::new("check");
    let trusted = Http::start_tls(&authority.server(), |_, _| Reply::status(200));
    let broken = Http::start(|_, _| Reply::status(500));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    feed.pg.psql("UPDATE rule_webhooks SET enabled = false");
    let webhook = |name: &str, url: &str| {
        let id = feed.webhook(name);
        feed.pg.psql(&format!("UPDATE rule_webhooks SET url = '{url}' WHERE webhook_id = {id}"));
        id
    };
    webhook("tls", &trusted.url("/hook").replace("http://", "https://"));
    webhook("broken", &broken.url("/hook?token=hunter2"));
    webhook("closed", &format!("http://u:hunter2@127.0.0.1:{closed}/"));
    webhook("nowhere", "https://walhook.invalid/");
    // A row from before the database checked it.
    feed.pg.psql("ALTER TABLE rule_webhooks DISABLE TRIGGER USER");
    webhook("strange", "gopher://127.0.0.1/");
    feed.pg.psql("SELECT rule_webhook_secret_set(webhook_id, 'signing', 'whsec_aHVudGVyMg==') FROM rule_webhooks WHERE webhook_name = 'tls'");
    feed.pg.psql("UPDATE rule_webhooks SET signed = true WHERE webhook_name IN ('tls', 'broken')");
    let folder = tempfile::tempdir().unwrap();
    let (ca, file) = (folder.path().join("ca.pem"), folder.path().join("walhook.toml"));
    fs::write(&ca, &authority.certificate).unwrap();
    fs::write(&file, format!("[deliver]\nca = '{}'\n", ca.display())).unwrap();
    let of = |code: &str, checked: &Checked| {
        let mut subjects: Vec<_> =
            checked.all(code).iter().map(|found| found["subject"].as_str().unwrap().to_owned()).collect();
        subjects.sort();
        subjects.join(", ")
    };

    let inside = Checked::by(feed.command("check").arg("--deliver"));
    assert_eq!(
        of("webhook_network", &inside),
        "webhook \"broken\", webhook \"closed\", webhook \"tls\"",
        "{inside:#?}"
    );
    assert_eq!(of("webhook_dns", &inside), "webhook \"nowhere\"");
    assert_eq!(of("webhook_url", &inside), "webhook \"strange\"");
    let allowed = || feed.command("check").args(["--deliver", "--allow-network", "127.0.0.1"]);
    let checked = Checked::by(allowed());
    assert_eq!(of("webhook_tls", &checked), "webhook \"tls\"", "an authority that nobody trusts: {checked:#?}");
    assert_eq!(of("webhook_connect", &checked), "webhook \"closed\"");
    assert_eq!(of("webhook_signing", &checked), "webhook \"broken\"");
    run_remedy(&feed, checked.one("webhook_signing")).await;
    let checked = Checked::by(allowed().arg("--config").arg(&file));
    assert!(!checked.has("webhook_tls") && !checked.has("webhook_signing"), "{checked:#?}");
    assert_eq!((trusted.count(), broken.count()), (0, 0), "nothing was sent");

    let checked =
        Checked::by(allowed().arg("--config").arg(&file).args(["--ping", "--webhook", "tls", "--webhook", "broken"]));
    assert_eq!(of("webhook_ping", &checked), "webhook \"broken\"", "{checked:#?}");
    assert!(!checked.has("webhook_dns") && !checked.has("webhook_connect"), "{checked:#?}");
    let requests = trusted.requests();
    let [request] = &requests[..] else { panic!("{} requests", requests.len()) };
    assert_eq!(request.header("walhook-type"), "walhook.check");
    assert!(request.header("webhook-signature").starts_with("v1,"), "signed");
    assert_eq!(broken.count(), 1);
    for said in [&checked.finished, &inside.finished] {
        assert!(!format!("{said:?}").contains("hunter2") && !format!("{said:?}").contains("aHVudGVyMg"), "{said:?}");
    }
}

#[tokio::test]
async fn ten_thousand_webhooks_are_reported_in_a_few_lines() {
    let feed = sound("default").await;
    feed.pg.psql(
        "UPDATE rule_webhooks SET enabled = false; \
         INSERT INTO rule_webhooks (webhook_name, url, nats_enabled, publish_mode, nats_subject) \
         SELECT 'many' || n, 'https://walhook.invalid/' || n, true, 'nats', 'elsewhere.' || n FROM generate_series(1, 10000) n; \
         INSERT INTO rule_webhook_links (webhook_id, table_schema, table_name, operations, enabled) \
         SELECT webhook_id, 'public', 't', '{insert}', false FROM rule_webhooks WHERE webhook_name LIKE 'many%'",
    );
    let checked = Checked::by(feed.command("check").arg("--deliver"));
    assert!(checked.findings.len() < 30, "{} findings", checked.findings.len());
    assert_eq!(checked.one("link_disabled")["count"], 10_000);
    assert_eq!(checked.one("webhook_dns")["count"], 10_000);
    // The remedy lists what there is to do.
    let listed = feed.pg.psql(checked.remedy("link_disabled").trim_end_matches(';'));
    assert_eq!(listed.lines().count(), 10_000);
    assert!(listed.lines().all(|line| line.starts_with("UPDATE public.rule_webhook_links SET enabled = true")));
}

#[tokio::test]
async fn a_narrow_terminal_and_a_broken_locale_get_a_table_that_can_be_read_and_shows_no_secret() {
    let feed = sound("default").await;
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', 'nats://w:hunter2@127.0.0.1:{}')", feed.nats.port()));
    feed.pg.psql("ALTER ROLE postgres SET wal_sender_timeout = 0; UPDATE rule_webhooks SET webhook_name = E'gr\\u00fcn\\u202e\\x1b[2J'");
    feed.pg.psql("UPDATE rule_webhook_links SET enabled = false");
    let narrow = feed
        .command("check")
        .env("COLUMNS", "40")
        .env("LC_ALL", "xx_YY.broken")
        .env("NO_COLOR", "1")
        .env("PGPASSWORD", "hunter2")
        .finish();
    assert_eq!(narrow.code, Some(0), "{narrow:?}");
    for line in narrow.stdout.lines() {
        // A word that is longer stays whole, so that it can be copied.
        let fits = line.chars().count() <= 40 || line.trim_start().split(' ').count() == 1;
        assert!(fits || line.contains('"') || line.contains('\''), "{line:?}");
        assert!(!line.contains(['\x1b', '\u{202e}']), "{line:?}");
    }
    let said = narrow.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in ["link_disabled", "wal_sender_timeout", "walhook run would start."] {
        assert!(said.contains(words), "{words}: {}", narrow.stdout);
    }
    let wide = feed.command("check").env("COLUMNS", "120").finish();
    for said in [&narrow, &wide, &Checked::of(&feed).finished] {
        assert!(!format!("{said:?}").contains("hunter2"), "{said:?}");
    }
}

#[tokio::test]
async fn how_long_the_slot_may_lag_is_reported_before_its_wal_is_gone() {
    let feed = sound("default").await;
    let writer = feed.pg.client().await;
    let writing = tokio::spawn(async move {
        loop {
            writer.batch_execute("SELECT pg_logical_emit_message(false, 'x', repeat('y', 1000000))").await.unwrap();
        }
    });
    // Whoever writes more than 12 kB a second fills this within a day.
    let checked = eventually("a rate of WAL", async || {
        let checked = tokio::task::spawn_blocking({
            let builder = feed.command("check").args(["--wal-disk-free", "1GB"]);
            move || Checked::by(builder)
        })
        .await
        .unwrap();
        Some(checked).filter(|checked| checked.one("slot_headroom")["severity"] != "note")
    })
    .await;
    assert!(checked.text("slot_headroom").contains("the slot may lag"), "{checked:#?}");
    // Beyond the limit, and not removed yet.
    eventually("100 MB of WAL", async || {
        let kept = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) > 100000000 FROM pg_replication_slots";
        (feed.pg.psql(kept) == "t").then_some(())
    })
    .await;
    writing.abort();
    feed.pg.psql("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'");
    feed.pg.psql("SELECT pg_reload_conf()");
    let checked = eventually("the slot to be beyond its limit", async || {
        Some(Checked::of(&feed)).filter(|checked| checked.has("slot_wal_status"))
    })
    .await;
    assert_eq!(checked.one("slot_wal_status")["severity"], "error", "{checked:#?}");
    run_remedy(&feed, checked.one("slot_wal_status")).await;
    eventually("the slot to be safe", async || (!Checked::of(&feed).has("slot_wal_status")).then_some(())).await;
    assert_eq!(Checked::of(&feed).code(), 0);
}

#[tokio::test]
async fn a_standby_is_named_as_one() {
    let feed = sound("default").await;
    feed.pg.stop();
    let pg = Postgres::builder()
        .copy_of(&feed.pg.data_dir())
        .conf("primary_conninfo = 'host=127.0.0.1 port=1'")
        .standby()
        .start()
        .await;
    let checked = Checked::by(feed.command("check").env("DATABASE_URL", pg.conninfo()));
    assert!(checked.remedy("standby").contains("target_session_attrs=primary"), "{checked:#?}");
    // `run` waits for its promotion, whatever else is missing there.
    assert_eq!(checked.code(), 1, "{checked:#?}");
}

#[tokio::test]
async fn a_copy_of_the_database_is_found_by_what_another_run_left_in_nats() {
    let feed = sound("default").await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.stored(1).await;
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    assert_eq!(Checked::of(&feed).code(), 0);
    feed.pg.psql("DELETE FROM walhook.rule_cdc_runs");
    let checked = Checked::of(&feed);
    assert_eq!(checked.code(), 3, "{checked:#?}");
    assert!(checked.remedy("database_copy").contains("walhook adopt --same"), "{checked:#?}");
    let adopted = feed.command("adopt").args(["--same", "--yes"]).finish();
    assert_eq!(adopted.code, Some(0), "{adopted:?}");
    assert_eq!(Checked::of(&feed).code(), 0);
}

#[tokio::test]
async fn an_account_without_jetstream_and_one_that_is_nearly_full_are_found() {
    let mut feed = sound("default").await;
    let account =
        |jetstream: &str| format!("accounts {{ A: {{ users: [ {{ user: w, password: p }} ]\n{jetstream}\n}} }}");
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', 'nats://w:p@127.0.0.1:{}')", feed.nats.port()));
    feed.nats.set_config(&account(""));
    feed.nats.restart().await;
    let checked = Checked::of(&feed);
    assert!(checked.has("nats_jetstream") && checked.code() == 1, "{checked:#?}");
    feed.nats.set_config(&account("jetstream: { max_file: 5000000 }"));
    feed.nats.restart().await;
    assert!(!Checked::of(&feed).has("nats_storage"));
    let options = async_nats::ConnectOptions::with_user_and_password("w".to_owned(), "p".to_owned());
    let client = options.connect(feed.nats.url()).await.unwrap();
    let admin = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config {
        name: "FULL".to_owned(),
        subjects: vec!["full".to_owned()],
        ..Default::default()
    };
    admin.create_stream(config).await.unwrap();
    for _ in 0..9 {
        admin.publish("full", vec![b'x'; 500_000].into()).await.unwrap().await.unwrap();
    }
    let checked = Checked::of(&feed);
    assert_eq!(checked.one("nats_storage")["how"], "nats_server", "{checked:#?}");
    feed.nats.set_config(&account(checked.remedy("nats_storage")));
    feed.nats.restart().await;
    let checked = Checked::of(&feed);
    assert!(!checked.has("nats_storage") && checked.code() == 0, "{checked:#?}");
}

#[test]
fn the_documentation_has_every_code() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/check.md")).unwrap();
    let reference = walhook::commands::check::codes::reference();
    assert!(page.contains(reference.trim_end()), "docs/check.md has another reference than the code:\n{reference}");
}

/// Else the check says of a finding of its own that the schema is newer than walhook.
#[test]
fn every_finding_of_the_sql_check_has_a_code() {
    let mut names = Vec::new();
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql")).unwrap().map(|entry| entry.unwrap().path()) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (begin, ends) in [
            ("name := '", "'"),
            ("SELECT '", "', 'warning'"),
            ("SELECT '", "', 'error'"),
            ("SELECT ''", "'', CASE WHEN"),
        ] {
            for (at, _) in text.match_indices(begin) {
                let rest = &text[at + begin.len()..];
                let word = rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap();
                if !word.is_empty() && rest[word.len()..].starts_with(ends) {
                    names.push(word.to_owned());
                }
            }
        }
    }
    names.sort();
    names.dedup();
    assert!(names.len() > 50 && names.iter().any(|name| name == "row_invalid"), "{names:?}");
    names.retain(|name| walhook::commands::check::codes::of_name(name).is_none());
    assert_eq!(names, [""; 0], "add them to src/commands/check/codes.rs");
}

#[tokio::test]
async fn its_own_options_are_refused_where_they_make_no_sense() {
    for words in [&["--ping"][..], &["--permissions", "--json"], &["--wal-disk-free", "much"]] {
        let refused = Walhook::command("check").args(words).finish();
        assert_eq!(refused.code, Some(2), "{words:?}: {refused:?}");
    }
}
