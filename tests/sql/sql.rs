//! The SQL surface: what is in sql/ loads everywhere, twice, over what others have left there, and does what docs/sql.md
//! says. The statements themselves are in tests/sql/*.sql.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use futures_util::{StreamExt, future::join_all, stream::poll_fn};
use support::Postgres;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

/// The oldest, the default and the newest.
const VERSIONS: [&str; 3] = ["14", "default", "18"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sql_files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    assert!(!files.is_empty(), "no SQL in {folder}");
    files
}

async fn connect(pg: &Postgres, user: &str, database: &str) -> Client {
    let conninfo = format!("host=127.0.0.1 port={} user={user} dbname={database}", pg.port());
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Runs a file as one transaction, or as many as it has `-- commit` lines and one; answers with what it said.
async fn run(client: &Client, path: &Path) -> Vec<String> {
    said(client, &fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).await
}

/// Every value of every row.
async fn said(client: &Client, sql: &str) -> Vec<String> {
    let mut said = Vec::new();
    for part in sql.split("\n-- commit\n") {
        match client.simple_query(part).await {
            Ok(messages) => said.extend(
                messages
                    .iter()
                    .filter_map(|message| match message {
                        SimpleQueryMessage::Row(row) => {
                            Some((0..row.len()).filter_map(|column| row.get(column)).map(str::to_owned))
                        }
                        _ => None,
                    })
                    .flatten(),
            ),
            Err(error) => panic!("{error}: {:#?}\n{sql}", error.as_db_error()),
        }
    }
    said
}

/// All migrations, each in a transaction.
async fn load(client: &Client) {
    for path in sql_files("sql") {
        run(client, &path).await;
    }
}

/// Everything in schema public and about the roles that a migration could change, as text.
async fn fingerprint(client: &Client) -> String {
    let sql = "
        SELECT string_agg(line, E'\\n' ORDER BY line COLLATE \"C\") FROM (
            SELECT format('function %s %s %s %s %s %s', p.oid::regprocedure, md5(prosrc), proconfig, prosecdef,
                          ARRAY(SELECT a::text FROM unnest(proacl) a ORDER BY 1), obj_description(p.oid, 'pg_proc')) AS line
            FROM pg_proc p WHERE pronamespace IN ('public'::regnamespace, 'walhook'::regnamespace)
            UNION ALL
            SELECT format('relation %s %s %s %s', relname, relkind, ARRAY(SELECT a::text FROM unnest(relacl) a ORDER BY 1),
                          obj_description(oid, 'pg_class'))
            FROM pg_class WHERE relnamespace IN ('public'::regnamespace, 'walhook'::regnamespace)
            UNION ALL
            SELECT format('column %s.%s %s %s %s %s %s', c.relname, attname, attnum, format_type(atttypid, atttypmod),
                          attnotnull, pg_get_expr(d.adbin, d.adrelid), attacl)
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
            WHERE c.relnamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND attnum > 0
            UNION ALL
            SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
            FROM pg_constraint WHERE connamespace IN ('public'::regnamespace, 'walhook'::regnamespace)
            UNION ALL
            SELECT format('index %s', indexdef) FROM pg_indexes WHERE schemaname IN ('public', 'walhook')
            UNION ALL
            SELECT format('view %s %s', viewname, definition) FROM pg_views WHERE schemaname IN ('public', 'walhook')
            UNION ALL
            SELECT format('schema %s', nspname) FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'
            UNION ALL
            SELECT format('role %s %s %s', rolname, rolcanlogin, rolreplication) FROM pg_roles WHERE rolname LIKE 'walhook%'
            UNION ALL
            SELECT format('migration %s %s %s', version, description, applied_at) FROM public.rule_cdc_migrations
            UNION ALL
            SELECT format('config %s', c) FROM public.rule_nats_config c
        ) lines";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn the_migrations_load_on_every_version_and_a_second_time_change_nothing() {
    for version in VERSIONS {
        let pg = Postgres::builder().version(version).start().await;
        let client = pg.client().await;
        load(&client).await;
        let before = fingerprint(&client).await;
        load(&client).await;
        assert_eq!(fingerprint(&client).await, before, "PostgreSQL {version}");
        let recorded = pg
            .psql("SELECT string_agg(version, ' ' ORDER BY version) FROM rule_cdc_migrations WHERE version <> 'found'");
        assert_eq!(
            recorded,
            "005 007 008 009 010 011 012 013 014 015 016 017 018 019 020 021 022 023 024 025 026 027 028 029 030 031 032",
            "PostgreSQL {version}"
        );
    }
}

#[tokio::test]
async fn every_object_is_described_pins_its_search_path_and_is_closed_to_the_public() {
    let pg = Postgres::start().await;
    load(&pg.client().await).await;
    let bare = pg.psql(
        "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace IN ('public'::regnamespace, to_regnamespace('walhook')) AND (
            obj_description(oid, 'pg_proc') NOT LIKE 'walhook:%' OR obj_description(oid, 'pg_proc') IS NULL
            OR 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(proconfig, '{}'))
            OR has_function_privilege('public', oid, 'EXECUTE'))",
    );
    assert_eq!(bare, "", "functions without description or pin, or open to PUBLIC");
    let bare = pg.psql(
        "SELECT relname FROM pg_class WHERE relnamespace IN ('public'::regnamespace, to_regnamespace('walhook')) AND relkind IN ('r', 'v') AND (
            obj_description(oid, 'pg_class') IS NULL OR has_table_privilege('public', oid, 'SELECT'))",
    );
    assert_eq!(bare, "", "tables and views without description, or open to PUBLIC");
}

#[tokio::test]
async fn the_reference_names_every_function_table_and_view() {
    let pg = Postgres::start().await;
    load(&pg.client().await).await;
    let names = pg.psql(
        "SELECT proname FROM pg_proc WHERE pronamespace IN ('public'::regnamespace, to_regnamespace('walhook'))
         UNION SELECT relname FROM pg_class WHERE relnamespace IN ('public'::regnamespace, to_regnamespace('walhook')) AND relkind IN ('r', 'v')",
    );
    let reference = fs::read_to_string(root().join("docs/sql.md")).unwrap();
    let missing: Vec<_> = names.lines().filter(|&name| !reference.contains(&format!("`{name}"))).collect();
    assert_eq!(missing, [""; 0], "not in docs/sql.md");
}

/// Judges what a test file said, in the Test Anything Protocol: every test ok, and as many as planned.
fn judge(path: &Path, said: &[String]) {
    let lines: Vec<_> = said.iter().flat_map(|text| text.lines()).collect();
    let failed = lines.iter().any(|line| line.starts_with("not ok") || line.starts_with("# Looks like"));
    assert!(!failed, "{}:\n{}", path.display(), lines.join("\n"));
    let tests = lines.iter().filter(|line| line.starts_with("ok ")).count();
    let planned = lines.iter().find_map(|line| line.strip_prefix("1.."));
    assert_eq!(planned, Some(tests.to_string().as_str()), "{}: tests planned and run", path.display());
    assert!(tests > 0, "{} tests nothing", path.display());
}

#[tokio::test]
async fn the_sql_surface_does_what_its_test_files_say_on_every_version() {
    for version in VERSIONS {
        let pg = Postgres::builder().version(version).start().await;
        pg.psql("CREATE DATABASE loaded");
        // By connections that are gone afterwards: only a database that nobody uses can be copied.
        for migration in sql_files("sql") {
            pg.psql_in("loaded", &fs::read_to_string(migration).unwrap());
        }
        for path in sql_files("tests/sql") {
            let database = path.file_stem().unwrap().to_str().unwrap();
            pg.psql(&format!("CREATE DATABASE {database} TEMPLATE loaded"));
            let client = connect(&pg, "postgres", database).await;
            run(&client, &root().join("tests/sql/fixtures/tap.sql")).await;
            judge(&path, &run(&client, &path).await);
        }
    }
}

/// psql commits each statement; nothing may depend on being one transaction, nor on not being one. Where the server is
/// Debian's, the test files run on pgTAP itself.
#[tokio::test]
async fn psql_loads_the_migrations_and_runs_the_test_files_as_well() {
    let pg = Postgres::start().await;
    let psql = |database: &str, arguments: &[&str], paths: &[PathBuf]| {
        let output = Command::new("psql")
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres", "-d", database])
            .args(["-p", &pg.port().to_string()])
            .args(arguments)
            .args(paths.iter().flat_map(|path| [PathBuf::from("-f"), path.clone()]))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {}", paths[0].display(), String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    if Command::new("psql").arg("--version").output().is_err() {
        eprintln!("no psql here: nothing tested");
        return;
    }
    pg.psql("CREATE DATABASE loaded");
    for migration in sql_files("sql") {
        psql("loaded", &["-1"], std::slice::from_ref(&migration));
        psql("loaded", &[], &[migration]);
    }
    for path in sql_files("tests/sql") {
        let database = path.file_stem().unwrap().to_str().unwrap();
        pg.psql(&format!("CREATE DATABASE {database} TEMPLATE loaded"));
        judge(&path, &[psql(database, &[], &[root().join("tests/sql/fixtures/tap.sql"), path.clone()])]);
    }
}

/// A broken assertion must be seen, on pgTAP and on what stands in for it.
#[tokio::test]
async fn a_test_file_that_fails_is_seen_to_fail() {
    for version in VERSIONS {
        let pg = Postgres::builder().version(version).start().await;
        let client = pg.client().await;
        run(&client, &root().join("tests/sql/fixtures/tap.sql")).await;
        let said =
            said(&client, "SELECT * FROM no_plan(); SELECT is(1, 2, 'numbers'); SELECT ok(NULL, 'nothing')").await;
        let said = said.join("\n");
        for line in ["not ok 1 - numbers", "have: 1", "want: 2", "not ok 2 - nothing"] {
            assert!(said.contains(line), "PostgreSQL {version}: no {line:?} in\n{said}");
        }
        let raised = "SELECT throws_like('SELECT 1/0', '%by nothing'), throws_like('SELECT 1', '%'), \
             throws_hint('SELECT 1/0', '%zero', 'a hint'), throws_hint('SELECT 1', '%', '%')";
        let said = self::said(&client, raised).await;
        assert!(
            said.len() == 4 && said.iter().all(|test| test.starts_with("not ok")),
            "PostgreSQL {version}: {said:?}"
        );
    }
}

#[tokio::test]
async fn a_database_that_has_the_upstreams_tables_keeps_them_and_its_data() {
    for version in VERSIONS {
        let pg = Postgres::builder().version(version).start().await;
        let client = pg.client().await;
        run(&client, &root().join("tests/sql/fixtures/upstream.sql")).await;
        load(&client).await;
        let before = fingerprint(&client).await;
        load(&client).await;
        assert_eq!(fingerprint(&client).await, before, "PostgreSQL {version}, the second time");

        let check = |sql: &str, expected: &str| assert_eq!(pg.psql(sql), expected, "PostgreSQL {version}: {sql}");
        check(
            "SELECT their_own_column, publish_mode, payload_format FROM rule_webhooks WHERE webhook_id = 1",
            "kept|both|webhook",
        );
        check("SELECT nats_url, auth_token, history FROM rule_nats_config", "nats://theirs:4222|secret|full");
        check("SELECT version, description FROM schema_migrations WHERE version = '005'", "005|theirs");
        check(
            "SELECT conname FROM pg_constraint WHERE conrelid = 'rule_webhooks'::regclass AND conname LIKE '%check' \
             AND pg_get_constraintdef(oid) LIKE '%publish_mode%'",
            "their_check",
        );
        check(
            "SELECT is_nullable FROM information_schema.columns WHERE table_name = 'rule_nats_streams' AND column_name = 'config_id'",
            "NO",
        );
        // Their function of RFC-0005 is called, the broken ones are mended, the SECURITY DEFINER one is closed.
        check("SELECT rule_webhook_call_unified(1, '{}') #>> '{queue,call_id}'", "2");
        check("SELECT rule_name FROM rule_webhook_calls WHERE call_id = 2", "theirs");
        check("SELECT rule_webhook_call_status(1) ->> 'status'", "pending");
        check("SELECT count(*) FROM rule_webhook_process_retries()", "0");
        check(
            "SELECT proconfig, has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc WHERE proname = 'rule_webhook_secret_get'",
            "{\"search_path=pg_catalog, public, pg_temp\"}|f",
        );
        check("SELECT rule_webhook_secret_get(1, 'key')", "hush");
        // Calls of theirs are not ambiguous, and whom they had trusted is still trusted.
        check("SELECT rule_nats_stream_create('RFC', ARRAY['rfc.>'], 'default', 'limits', 604800) > 0", "t");
        check("SELECT rule_webhook_publish_nats(1, '{}', 'id') ->> 'success'", "true");
        check(
            "SELECT bool_and(has_function_privilege('their_admin', oid, 'EXECUTE')) FROM pg_proc WHERE proname = 'rule_nats_stream_create'",
            "t",
        );
        // Views: their columns where they were, ours where they fit, and their dependents.
        check(
            "SELECT total_published, success_rate_pct, min_latency_ms, last_published_at IS NOT NULL FROM nats_publish_summary",
            "2|50.00|1.50|t",
        );
        check(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'nats_publish_summary'::regclass AND attnum = 10",
            "min_latency_ms",
        );
        check("SELECT * FROM their_dashboard", "theirs|1.50");
        check("SELECT theirs FROM nats_recent_failures", "x");
        check(
            "SELECT has_table_privilege('public', 'nats_recent_failures', 'SELECT'), has_table_privilege('public', 'rule_nats_publish_history', 'SELECT')",
            "f|f",
        );
        check("SELECT count(*) FROM rule_nats_publish_history", "2");
    }
}

/// What the server says by NOTICE while it runs this.
async fn notices(pg: &Postgres, sql: &str) -> Vec<String> {
    let (client, mut connection) = tokio_postgres::connect(&pg.conninfo(), NoTls).await.unwrap();
    let messages = poll_fn(move |cx| connection.poll_message(cx));
    let notices = tokio::spawn(
        messages
            .filter_map(async |message| match message.unwrap() {
                AsyncMessage::Notice(notice) => Some(notice.message().to_owned()),
                _ => None,
            })
            .collect(),
    );
    client.batch_execute(sql).await.unwrap();
    drop(client);
    notices.await.unwrap()
}

#[tokio::test]
async fn a_stream_widens_nothing_in_silence_and_says_which_subjects_it_will_not_take() {
    let pg = Postgres::start().await;
    load(&pg.client().await).await;
    pg.psql(
        "SELECT rule_cdc_publication_create();
         CREATE TABLE t (id int PRIMARY KEY);
         SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_enable_nats(1, NULL, 'nats'),
                rule_webhook_register('order', 'https://example.com');
         SELECT rule_webhook_link_table(1, 't', '{insert}', 'audit.{id}')",
    );
    assert_eq!(
        notices(&pg, "SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['events.*'])").await,
        [
            "stream 'WEBHOOKS' deletes its oldest events beyond 1000000 messages, 1024 MB, 604800 seconds, whether consumers have read them or not",
            "stream 'WEBHOOKS' does not take 'webhooks.hook', the subject of webhook 'hook', nor does another stream",
            "stream 'WEBHOOKS' does not take 'audit.*', a subject of the link of public.t to webhook 'hook', nor does another stream",
        ]
    );
    assert_eq!(
        notices(&pg, "SELECT rule_nats_stream_create('AUDIT', ARRAY['audit.*', 'webhooks.*'], p_max_age_seconds => 0)")
            .await,
        [
            "stream 'AUDIT' deletes its oldest events beyond 1000000 messages, 1024 MB, whether consumers have read them or not"
        ]
    );
    assert_eq!(
        notices(&pg, "SELECT rule_webhook_enable_nats(2, 'events.order.created')").await,
        ["stream 'WEBHOOKS' did not take the subject 'events.order.created' and now does"]
    );
    assert_eq!(
        notices(&pg, "SELECT rule_nats_configure('second', 'nats://localhost:4222')").await,
        [
            "NATS config 'second' uses the same server as 'default': its stream is 'SECOND', its subjects begin with second."
        ]
    );
}

#[tokio::test]
async fn a_row_with_an_unknown_publish_mode_from_before_stays_and_is_refused_when_called() {
    let pg = Postgres::start().await;
    let client = pg.client().await;
    let files = sql_files("sql");
    run(&client, files.iter().find(|path| path.ends_with("005_webhooks.sql")).unwrap()).await;
    pg.psql(
        "ALTER TABLE rule_webhooks ADD COLUMN publish_mode TEXT DEFAULT 'queue';
         INSERT INTO rule_webhooks (webhook_name, url, publish_mode) VALUES ('odd', 'https://example.com', 'carrier pigeon')",
    );
    load(&client).await;
    assert_eq!(pg.psql("SELECT publish_mode FROM rule_webhooks"), "carrier pigeon");
    let error = pg.try_psql("SELECT rule_webhook_call_unified(1, '{}')").unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.message(), "Webhook 1 (odd): Invalid publish_mode 'carrier pigeon'");
    assert!(error.hint().unwrap().contains("queue, nats or both"));
    assert_eq!(pg.psql("SELECT rule_webhook_enable_nats(1, NULL, 'nats')"), "t");
}

#[tokio::test]
async fn the_owner_of_a_database_sets_it_up_without_being_superuser() {
    for version in VERSIONS {
        let pg = Postgres::builder().version(version).start().await;
        pg.psql("CREATE ROLE owner LOGIN");
        pg.psql("CREATE DATABASE theirs OWNER owner");
        let client = connect(&pg, "owner", "theirs").await;
        load(&client).await;
        load(&client).await;
        client
            .batch_execute(
                "SELECT rule_cdc_publication_create();
                 SELECT rule_webhook_register('hook', 'https://example.com');
                 CREATE TABLE orders (id int PRIMARY KEY);
                 SELECT rule_webhook_link_table('hook', 'orders')",
            )
            .await
            .unwrap();
        assert_eq!(pg.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'walhook%'"), "0");
        let error = client.batch_execute("SELECT rule_cdc_slot_create()").await.unwrap_err();
        assert!(error.as_db_error().unwrap().message().contains("replication"), "{error:?}");
        // A superuser makes the roles in another database; the owner's next run grants what they need here.
        load(&pg.client().await).await;
        load(&client).await;
        let streamer = connect(&pg, "walhook_streamer", "theirs").await;
        streamer.batch_execute("SELECT rule_cdc_slot_create()").await.unwrap();
        streamer
            .batch_execute("SELECT * FROM rule_nats_config; SELECT * FROM rule_webhook_links_check()")
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn waiting_for_an_event_ends_when_its_acknowledgement_is_in_the_history() {
    let pg = Postgres::start().await;
    let client = pg.client().await;
    load(&client).await;
    pg.psql("SELECT rule_webhook_register('hook', 'https://example.com'); SELECT rule_webhook_enable_nats(1)");
    let event = pg.psql("SELECT rule_webhook_publish_nats(1, '{}') ->> 'event_id'");
    let waiting = format!("CALL rule_nats_wait({event}, '30 seconds')");
    let history = format!(
        "INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, stream_name, sequence_number, webhook_event_id) \
         VALUES (1, 'webhooks.hook', '{{}}', true, 'WEBHOOKS', 41, {event})"
    );
    let (answer, ()) = tokio::join!(client.simple_query(&waiting), async {
        support::eventually("the procedure to be waiting", async || {
            (pg.psql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1").then_some(())
        })
        .await;
        pg.psql(&history);
    });
    let answer = answer.unwrap().into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    let answer = answer.unwrap();
    assert!(answer.contains(r#""sequence": 41"#) && answer.contains(r#""status": "published""#), "{answer}");

    let inside = pg.try_psql("BEGIN; SELECT rule_webhook_publish_nats(1, '{}'); CALL rule_nats_wait(2, '30 seconds')");
    assert!(inside.unwrap_err().as_db_error().unwrap().message().contains("this transaction made it"));
}

#[tokio::test]
async fn links_made_at_once_agree_on_the_publication_of_their_table() {
    let pg = Postgres::start().await;
    load(&pg.client().await).await;
    pg.psql("SELECT rule_cdc_publication_create(); CREATE TABLE orders (id int PRIMARY KEY)");
    pg.psql("SELECT rule_webhook_register('hook' || i, 'https://example.com') FROM generate_series(1, 8) i");
    let clients = join_all((0..8).map(|_| pg.client())).await;
    let statements: Vec<String> = (1..=8)
        .map(|id| {
            format!(
                "SELECT rule_webhook_link_table({id}, 'orders', '{{insert{}}}')",
                if id == 5 { ",update" } else { "" }
            )
        })
        .collect();
    let links = clients.iter().zip(&statements).map(|(client, statement)| client.batch_execute(statement));
    for link in join_all(links).await {
        link.unwrap();
    }
    let publications = "SELECT string_agg(p.pubname, ' ') FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
                        WHERE r.prrelid = 'orders'::regclass";
    assert_eq!(pg.psql(publications), "walhook_changes");
}

/// Rust holds itself against the same table (src/route/subject.rs).
#[tokio::test]
async fn the_grammar_of_subjects_is_that_of_the_table_in_every_encoding() {
    let pg = Postgres::start().await;
    for encoding in ["UTF8", "SQL_ASCII", "LATIN1", "EUC_JP"] {
        let database = encoding.to_lowercase();
        pg.psql(&format!("CREATE DATABASE {database} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"));
        let client = connect(&pg, "postgres", &database).await;
        load(&client).await;
        let mut checked = 0;
        for line in include_str!("../subjects.txt").lines().filter(|line| !line.starts_with('#')) {
            let (what, text) = line.split_once(' ').unwrap();
            let text: String = serde_json::from_str(text).unwrap();
            let (kind, verdict) = what.split_once('-').unwrap();
            let check = match kind {
                "subject" => "SELECT rule_nats_subject_check($1) IS NULL",
                _ => "SELECT walhook.rule_nats_pattern_problem($1) IS NULL",
            };
            let is_good = match client.query_one(check, &[&text]).await {
                Ok(row) => row.get::<_, bool>(0),
                // A character that the database's encoding does not have is refused before anything of ours sees it.
                Err(error) => {
                    assert_eq!(error.code().unwrap().code(), "22P05", "{encoding}: {line}: {error:?}");
                    continue;
                }
            };
            // In SQL_ASCII nothing outside ASCII can be told.
            let expected = verdict == "good" && (encoding != "SQL_ASCII" || text.is_ascii());
            assert_eq!(is_good, expected, "{encoding}: {}", line.get(..80).unwrap_or(line));
            checked += 1;
        }
        assert!(checked > 50, "{encoding}: {checked}");
    }
}

/// What a statement says when it fails or warns: messages and hints.
async fn hints(pg: &Postgres, sql: &str) -> Vec<String> {
    hints_as(&pg.conninfo(), sql).await
}

async fn hints_as(conninfo: &str, sql: &str) -> Vec<String> {
    let (client, mut connection) = tokio_postgres::connect(conninfo, NoTls).await.unwrap();
    let messages = poll_fn(move |cx| connection.poll_message(cx));
    let notices = tokio::spawn(
        messages
            .filter_map(async |message| match message.unwrap() {
                AsyncMessage::Notice(notice) => notice.hint().map(str::to_owned),
                _ => None,
            })
            .collect::<Vec<_>>(),
    );
    let failed = client.batch_execute(sql).await.err();
    drop(client);
    let mut hints = notices.await.unwrap();
    hints.extend(failed.and_then(|error| error.as_db_error().and_then(|error| error.hint().map(str::to_owned))));
    hints
}

/// The statements in a hint: from their first word to the semicolon.
fn statements(hint: &str) -> Vec<String> {
    let starts = ["SELECT ", "UPDATE ", "ALTER ", "CREATE ", "GRANT ", "DROP ", "DELETE FROM ", "CALL "];
    let mut found = Vec::new();
    let mut rest = hint;
    while let Some(at) = starts.iter().filter_map(|word| rest.find(word)).min() {
        let Some(end) = rest[at..].find(';') else { break };
        found.push(rest[at..at + end].to_owned());
        rest = &rest[at + end..];
    }
    found
}

/// The texts of sql/ that name a statement or a command to the user, hints and remedies alike: the file, and what stands between the
/// places that are filled in.
fn templates() -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for path in sql_files("sql").into_iter().chain(sql_files("sql/uninstall")) {
        let (file, text) = (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap());
        for mark in ["HINT =", "remedy :=", "advice :=", "v_again :=", "v_again CONSTANT TEXT :="] {
            for (at, _) in text.match_indices(mark) {
                for literal in literals(&text[at + mark.len()..]) {
                    let is_to_be_run = [
                        "SELECT ",
                        "ALTER ",
                        "UPDATE ",
                        "DELETE FROM",
                        "DROP ",
                        "GRANT ",
                        "CREATE ",
                        "REASSIGN ",
                        "`walhook ",
                        "walhook setup",
                        "walhook uninstall",
                    ];
                    if is_to_be_run.iter().any(|word| literal.contains(word)) {
                        found.push((file.clone(), fragments(&literal)));
                    }
                }
            }
        }
    }
    found
}

/// A part of such a text (… for what is filled in), and the test that has the failure and runs what is named.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "SELECT rule_cdc_column_changes_emit(); emits the event, when the cause is gone",
        "column_changes::a_table_that_is_altered_while_somebody_changes_its_link_is_altered_and_the_event_comes_later",
    ),
    ("Then set publish_column_changes again", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    (
        "SELECT rule_cdc_column_changes_emit(); emits what is missing",
        "sql::the_sql_surface_does_what_its_test_files_say_on_every_version",
    ),
    (
        "DROP EVENT TRIGGER walhook_column_changes; or rename it",
        "sql::the_sql_surface_does_what_its_test_files_say_on_every_version",
    ),
    (
        "Let a superuser run: SELECT rule_cdc_column_changes_trigger(); without it",
        "column_changes::without_the_event_trigger_a_call_in_the_transaction_emits_the_same_event",
    ),
    (
        "and that of another one, which no shard has: SELECT rule_cdc_shard_gathering",
        "shards::mistakes_about_shards_are_named_with_what_to_do",
    ),
    (
        "SELECT stream_name FROM rule_nats_streams; lists the streams",
        "shards::mistakes_about_shards_are_named_with_what_to_do",
    ),
    ("lists the shards. `walhook setup --shard NAME`", "shards::mistakes_about_shards_are_named_with_what_to_do"),
    (
        "Choose another name, or remove it first: SELECT rule_cdc_shard_drop",
        "shards::mistakes_about_shards_are_named_with_what_to_do",
    ),
    ("Or drop a slot that nobody uses: SELECT slot_name", "shards::mistakes_about_shards_are_named_with_what_to_do"),
    ("or run `walhook setup` without --shard first", "shards::mistakes_about_shards_are_named_with_what_to_do"),
    (
        "In a transaction of its own: SELECT rule_cdc_slot_create",
        "shards::a_shard_that_has_not_begun_is_refused_and_a_row_moves_as_well_as_a_function_does",
    ),
    (
        "p_tables => ARRAY['orders']::regclass[], p_webhooks => ARRAY['name']",
        "shards::mistakes_about_shards_are_named_with_what_to_do",
    ),
    (
        "links it. A partition moves with the table that is linked",
        "shards::mistakes_about_shards_are_named_with_what_to_do",
    ),
    (
        "Nothing has moved. Call this again when they have ended",
        "shards::a_move_waits_for_who_has_written_into_the_table_and_moves_nothing_where_they_do_not_end",
    ),
    (
        "Drop the other shards. `walhook uninstall` removes walhook",
        "shards::mistakes_about_shards_are_named_with_what_to_do",
    ),
    ("Move them to another shard first", "shards::a_shard_is_dropped_when_it_has_published_all_that_was_its_own"),
    ("Stop `walhook run --shard", "shards::a_shard_is_dropped_when_it_has_published_all_that_was_its_own"),
    (
        "once more and stop it when SELECT lag_bytes FROM rule_cdc_shards",
        "shards::a_shard_is_dropped_when_it_has_published_all_that_was_its_own",
    ),
    (
        "SELECT rule_cdc_schema_trigger(); without it",
        "schemas::without_the_event_trigger_the_check_names_what_is_missing_and_its_statement_links_it",
    ),
    (
        "SELECT * FROM rule_cdc_check(); names the tables that are not linked",
        "schemas::without_the_event_trigger_the_check_names_what_is_missing_and_its_statement_links_it",
    ),
    (
        "SELECT * FROM public.rule_cdc_schema_link_tables(",
        "schemas::without_the_event_trigger_the_check_names_what_is_missing_and_its_statement_links_it",
    ),
    (
        "text DEFAULT current_setting('walhook.traceparent', true)",
        "deliver::a_trace_goes_from_a_row_a_call_or_the_session_into_the_message_and_the_request",
    ),
    (
        "rule_cdc_rule_versions drops rows",
        "hostile::a_trigger_that_swallows_versions_of_the_rules_ends_walhook_before_it_confirms_anything_behind_them",
    ),
    (
        "again when they are over",
        "emit::keys_change_while_messages_wait_and_a_retired_one_is_good_for_what_came_before",
    ),
    (
        "Stop it and start the version that has set up this database",
        "sql::the_sql_surface_does_what_its_test_files_say_on_every_version",
    ),
    (
        "ALTER SCHEMA walhook RENAME TO",
        "own_schema::a_schema_of_that_name_that_walhook_has_not_made_is_refused_with_a_remedy_that_works",
    ),
    (
        "It is an internal object of an older walhook",
        "own_schema::an_upgrade_moves_every_row_and_right_and_the_old_names_work_until_the_setup_after_it",
    ),
    ("take it over: ", "setup::objects_with_our_names_that_another_role_made_are_refused_before_anything_is_changed"),
    ("DROP TABLE public.schema_migrations", "sql::what_setup_and_uninstall_leave_to_a_superuser_is_named_and_works"),
    ("Let a superuser run: CREATE ROLE", "sql::what_setup_and_uninstall_leave_to_a_superuser_is_named_and_works"),
    ("REASSIGN OWNED BY", "sql::what_setup_and_uninstall_leave_to_a_superuser_is_named_and_works"),
    ("walhook uninstall there removes it", "sql::what_setup_and_uninstall_leave_to_a_superuser_is_named_and_works"),
    ("Let a superuser run: DROP OWNED", "sql::what_setup_and_uninstall_leave_to_a_superuser_is_named_and_works"),
    // Needs another wal_level, and a restart.
    ("ALTER SYSTEM SET wal_level = logical", "setup_check::a_server_without_logical_wal_gets_the_statement_that_helps"),
    (
        "To go on without the changes that are lost",
        "bad_input::a_slot_that_has_lost_its_wal_ends_it_with_the_code_for_distrust",
    ),
    ("GRANT SELECT ON … TO …; or let its owner", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    ("GRANT SELECT, UPDATE ON", "backfill::a_backfill_that_cannot_be_is_refused_with_what_it_wants"),
    ("ALTER ROLE … BYPASSRLS; or start", "backfill::a_table_whose_policy_hides_rows_is_sent_whole_or_refused"),
    (
        "keeps the WAL from then on",
        "replay_wal::an_anchor_that_postgresql_has_left_behind_says_so_and_so_does_one_that_is_gone",
    ),
    ("The id is in the error", "bad_input::an_amendment_wants_the_id_of_an_event_of_this_database"),
    // Findings: setup_check.sql runs the remedy of each, and looks that it is gone.
    ("SELECT public.", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    ("ALTER PUBLICATION", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    ("UPDATE public.", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    ("DELETE FROM public.", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    ("DROP PUBLICATION …; SELECT public.", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    ("REPLICA IDENTITY", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    ("DETACH PARTITION", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    ("DISABLE ROW LEVEL SECURITY", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    ("SELECT * FROM rule_cdc_check(); lists", "sql::the_sql_surface_does_what_its_test_files_say_on_every_version"),
    (
        "pg_copy_logical_replication_slot",
        "setup_check::a_slot_for_two_phases_is_refused_at_the_start_and_by_setup_and_its_remedy_loses_nothing",
    ),
    ("synchronous_standby_names", "setup_check::a_walhook_that_commits_wait_for_says_so_and_stops_no_commit"),
];

/// The string literals of an SQL expression; those that follow each other are one, as SQL has it.
fn literals(expression: &str) -> Vec<String> {
    let (mut found, mut current, mut depth) = (Vec::new(), None::<String>, 0);
    let mut rest = expression.chars().peekable();
    let mut follows = false; // the last literal has nothing but white space behind it
    while let Some(c) = rest.next() {
        if let Some(text) = &mut current {
            match c {
                '\'' if rest.next_if_eq(&'\'').is_some() => text.push('\''),
                '\'' => {
                    found.push(current.take().unwrap());
                    follows = true;
                }
                c => text.push(c),
            }
            continue;
        }
        match c {
            '\'' => current = Some(if follows { found.pop().unwrap() } else { String::new() }),
            '(' => depth += 1,
            ')' => depth -= 1,
            ';' | ',' if depth <= 0 => break,
            _ => {}
        }
        follows &= c.is_whitespace() || c == '\'';
    }
    found
}

/// What stands between the directives of `format`.
fn fragments(template: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut rest = template.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '%' if rest.next_if_eq(&'%').is_some() => found.last_mut().unwrap().push('%'),
            '%' => {
                while rest.next_if(|c| c.is_ascii_digit() || *c == '$').is_some() {}
                rest.next();
                found.push(String::new());
            }
            c => found.last_mut().unwrap().push(c),
        }
    }
    found
}

/// Whether the text is the template filled in, perhaps with more around it.
fn is_made_of(text: &str, fragments: &[String]) -> bool {
    let mut rest = text;
    fragments.iter().all(|fragment| match rest.find(fragment.as_str()) {
        Some(at) => {
            rest = &rest[at + fragment.len()..];
            true
        }
        None => false,
    })
}

#[test]
fn templates_are_found_and_matched() {
    let sql = "format('a %1$L; ' 'b''s %%', p || 'c,d'), 'not it'; 'nor this'";
    assert_eq!(literals(sql), ["a %1$L; b's %", "c,d"].map(|text| text.replace("s %", "s %%")));
    assert!(is_made_of("x a 'y'; b's % z", &fragments("a %1$L; b's %%")));
    assert!(!is_made_of("a 'y' b", &fragments("a %L; b")));
    assert!(templates().len() > 80);
}

#[tokio::test]
async fn every_statement_that_a_hint_names_can_be_run_as_it_stands() {
    let pg = Postgres::start().await;
    load(&pg.client().await).await;
    pg.psql(
        "SELECT rule_cdc_publication_create();
         CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE bare (id int);
         SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_register('off', 'https://example.com');
         SELECT rule_webhook_enable_nats(1, NULL, 'nats')",
    );
    // One after the other: what names a statement, and how many it must name.
    let cases = [
        ("SELECT rule_webhook_register('hook', 'https://example.com/other')", 1),
        ("SELECT rule_webhook_enqueue(99, '{}')", 1),
        ("UPDATE rule_webhooks SET enabled = false WHERE webhook_id = 2; SELECT rule_webhook_enqueue(2, '{}')", 1),
        ("UPDATE rule_webhooks SET enabled = false WHERE webhook_id = 2", 0),
        ("SELECT rule_webhook_publish_nats(2, '{}')", 1),
        ("UPDATE rule_webhooks SET enabled = true WHERE webhook_id = 2", 0),
        ("SELECT rule_webhook_publish_nats(2, '{}')", 1),
        ("SELECT rule_webhook_publish_nats(99, '{}')", 1),
        // Messages: the first hint enables them.
        ("SELECT rule_webhook_emit_rotate_key()", 1),
        ("SELECT rule_webhook_emit(99, '{}')", 1),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT rule_webhook_emit_retire_keys()", 1),
        ("UPDATE rule_cdc_emit_keys SET retired_lsn = '0/1'", 0),
        ("SELECT rule_webhook_emit(1, '{}')", 1),
        ("SELECT rule_webhook_secret_set(99, 'a', 'b')", 1),
        ("SELECT rule_webhook_retry(99)", 1),
        ("SELECT rule_webhook_enable_nats(1, 'a b')", 1),
        ("SELECT rule_webhook_enable_nats(99)", 1),
        ("SELECT rule_webhook_disable_nats(99)", 1),
        ("SELECT rule_webhook_enable_nats(1, NULL, 'nats', 'other')", 1),
        ("SELECT rule_nats_config_info('third')", 1),
        ("SELECT rule_nats_init('third')", 1),
        ("SELECT rule_nats_stream_create('S', ARRAY['s.>'], 'fourth')", 1),
        ("UPDATE rule_nats_config SET enabled = false WHERE config_name = 'third'", 0),
        ("SELECT rule_nats_init('third')", 1),
        ("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])", 0),
        ("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])", 1),
        ("SELECT rule_webhook_enable_nats(1, 'elsewhere.a', 'nats')", 1),
        ("UPDATE rule_nats_streams SET enabled = false", 0),
        ("SELECT rule_webhook_enable_nats(1, 'nowhere.b', 'nats')", 1),
        ("SELECT rule_webhook_link_table(1, 't', '{insert}', 'nobody.takes.{op}')", 1),
        (
            "UPDATE rule_nats_config SET stream_name = NULL WHERE config_name = 'default'; DELETE FROM rule_nats_streams",
            0,
        ),
        ("SELECT rule_webhook_link_table(1, 't', '{insert}', 'nobody.takes.{op}')", 1),
        ("SELECT rule_webhook_link_table(99, 't')", 1),
        ("SELECT rule_webhook_link_table('nobody', 't')", 1),
        (
            "SELECT rule_webhook_link_table(2, 't'); SELECT rule_webhook_disable_nats(2); SELECT rule_webhook_link_table(2, 't')",
            1,
        ),
        // Messages that are columns.
        ("CREATE TABLE outbox (id int PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload json)", 0),
        ("SELECT rule_webhook_link_outbox(1, 'outbox')", 1),
        ("UPDATE rule_webhooks SET payload_format = 'webhook'", 0),
        ("SELECT rule_webhook_link_table(1, 'outbox', '{insert}', p_payload_column => 'payload')", 1),
        ("SELECT rule_webhook_link_table(1, 'outbox', '{insert}', p_payload_column => 'payload')", 1),
        ("SELECT rule_webhook_unlink_table(1, 'outbox'); UPDATE rule_webhooks SET payload_format = 'webhook'", 0),
        ("SELECT rule_webhook_link_table(1, 'bare')", 1),
        ("SELECT rule_webhook_link_table(1, 't', p_when_changed => '{note}')", 1),
        ("SELECT rule_webhook_link_table(1, 't', p_publication => 'second')", 1),
        ("SELECT rule_cdc_slot_create('walhook', true, 'third')", 1),
        ("SELECT rule_cdc_anchor_create()", 1),
        ("SELECT rule_nats_dead_letter_retry(99)", 1),
        ("SELECT rule_nats_dead_letters_retry(NULL)", 1),
        ("SELECT rule_nats_dead_letters_retry(now(), 'nobody')", 1),
        ("SELECT rule_webhook_oauth2_set(99, 'https://x', 'me')", 1),
        ("UPDATE rule_webhooks SET batch_max_events = 10, delivery_order = 'strict' WHERE webhook_id = 1", 1),
        ("UPDATE rule_webhooks SET delivery_order = 'key' WHERE webhook_id = 1", 1),
        ("UPDATE rule_webhooks SET delivery_order = 'any' WHERE webhook_id = 1", 0),
        ("UPDATE rule_nats_config SET notice_subject = 'a b' WHERE config_name = 'default'", 1),
        (
            "UPDATE rule_nats_config SET notice_subject = 'n' WHERE config_name = 'default'; SELECT rule_nats_stream_create('N', ARRAY['n.>'])",
            0,
        ),
        ("SELECT * FROM walhook.rule_nats_notices_take('default', 's')", 1),
        (
            "UPDATE rule_nats_config SET jetstream_enabled = false, publish_schemas = true WHERE config_name = 'default'",
            1,
        ),
        ("DELETE FROM rule_nats_streams WHERE stream_name = 'N'", 0),
        ("SELECT rule_nats_dead_letter_drop(99)", 1),
        (
            "INSERT INTO rule_nats_dead_letters (event_id, webhook_id, payload, reason, status) VALUES ('a', 1, 'x', 'r', 'dropped'), ('b', 99, 'x', 'r', 'dead'), ('c', 1, NULL, 'r', 'dead'), ('d', 1, 'x', 'r', 'retried')",
            0,
        ),
        ("SELECT rule_nats_dead_letter_retry(1)", 1),
        ("SELECT rule_nats_dead_letter_retry(2)", 1),
        ("SELECT rule_nats_dead_letter_retry(1, 'a b')", 1),
        ("SELECT rule_nats_dead_letter_retry(3)", 1),
        ("SELECT rule_nats_dead_letter_drop(4)", 1),
        (
            "INSERT INTO rule_nats_dead_letters (event_id, webhook_id, payload, reason, headers) VALUES ('e', 1, 'x', 'r', '{\"Walhook-Withheld\": \"row\"}')",
            0,
        ),
        ("SELECT rule_nats_dead_letter_retry(5)", 1),
        ("SELECT rule_webhook_link_schema(1, 'nowhere')", 1),
        (
            "CREATE FUNCTION nothing() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$; CREATE EVENT TRIGGER walhook_schema_links ON ddl_command_end EXECUTE FUNCTION nothing()",
            0,
        ),
        ("SELECT rule_cdc_schema_trigger()", 1),
        ("SELECT rule_cdc_backfill_chunk(99)", 1),
        ("SELECT rule_cdc_backfill_start('bare')", 1),
        // Slots and anchors; the slot of a backfill.
        ("SELECT rule_cdc_slot_create('walhook')", 0),
        ("SELECT pg_create_logical_replication_slot('walhook_anchor', 'pgoutput')", 0),
        ("SELECT rule_cdc_anchor_create()", 1),
        ("SELECT rule_cdc_anchor_create()", 0),
        ("SELECT rule_cdc_slot_drop()", 1),
        (
            "INSERT INTO walhook.rule_cdc_anchor_settings (slot_name, anchor_name, keep, keep_bytes) VALUES ('walhook', 'walhook_anchor', '1 s', 1)",
            0,
        ),
        ("SELECT pg_create_logical_replication_slot('walhook_anchor', 'test_decoding')", 0),
        ("SELECT rule_cdc_anchor_move()", 1),
        ("SELECT pg_drop_replication_slot('walhook_anchor')", 0),
        (
            "DO $$ DECLARE p text; BEGIN FOR p IN SELECT pubname FROM pg_publication_tables WHERE tablename = 'rule_cdc_backfill_rows' LOOP EXECUTE format('ALTER PUBLICATION %I DROP TABLE rule_cdc_backfill_rows', p); END LOOP; END $$",
            0,
        ),
        ("SELECT rule_webhook_enable_nats(1, 'webhooks.t', 'nats')", 0),
        ("SELECT rule_webhook_link_table(1, 't')", 0),
        // First its stream is missing, for each of two webhooks; then the table that its rows travel through.
        ("SELECT rule_cdc_backfill_start('t')", 1),
        ("SELECT rule_cdc_backfill_start('t')", 0),
        ("SELECT rule_cdc_backfill_start('t')", 0),
        ("CREATE PUBLICATION bad_inserts FOR ALL TABLES", 0),
        ("SELECT rule_cdc_publication_create('bad')", 2),
        ("SELECT rule_nats_configure('alone', 'nats://127.0.0.9:4222', 'none', true, 'ALONE', 'alone')", 0),
        ("SELECT rule_nats_stream_create('PART', ARRAY['alone.x'], 'alone')", 1),
        // Configurations that share a server.
        ("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])", 0),
        ("SELECT rule_nats_configure('twin', 'nats://127.0.0.1:4222', 'none', true, 'TWIN', 'twin')", 0),
        (
            "UPDATE rule_nats_config SET nats_url = 'nats://127.0.0.1:4222', stream_name = 'WEBHOOKS' WHERE config_name = 'default'",
            0,
        ),
        ("SELECT rule_webhook_enable_nats(1, 'webhooks.q', 'nats', 'twin')", 1),
        // Rows from before columns were checked, and columns that were emptied.
        (
            "SET session_replication_role = replica; UPDATE rule_webhooks SET nats_subject = 'a b' WHERE webhook_id = 1",
            0,
        ),
        ("SELECT rule_webhook_publish_nats(1, '{}')", 1),
        (
            "ALTER TABLE rule_webhooks DROP CONSTRAINT valid_publish_mode; UPDATE rule_webhooks SET publish_mode = 'pigeon' WHERE webhook_id = 1",
            0,
        ),
        ("SELECT rule_webhook_call_unified(1, '{}')", 1),
        (
            "UPDATE rule_webhooks SET nats_config_id = NULL, nats_subject = 'webhooks.x' WHERE webhook_id = 1; UPDATE rule_nats_config SET config_name = 'renamed' WHERE config_name = 'default'",
            0,
        ),
        ("SELECT rule_webhook_publish_nats(1, '{}')", 1),
        // Tables that cannot be linked as they are.
        ("CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY)", 0),
        ("SELECT rule_webhook_link_table(1, 'unlogged')", 1),
        (
            "CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE UNLOGGED TABLE part PARTITION OF parted DEFAULT",
            0,
        ),
        ("SELECT rule_webhook_link_table(1, 'parted')", 1),
        ("CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING", 0),
        ("SELECT rule_webhook_link_table(1, 'nothing')", 1),
    ];
    let mut seen = Vec::new();
    for (statement, expected) in cases {
        let hints = hints(&pg, statement).await;
        seen.extend(hints.iter().cloned());
        let named: Vec<String> = hints.iter().flat_map(|hint| statements(hint)).collect();
        assert!(named.len() >= expected, "{statement}: {hints:?}");
        for remedy in named {
            assert!(!remedy.contains("..."), "{statement}: not whole: {remedy}");
            if let Err(error) = pg.try_psql(&remedy) {
                panic!("{statement}: {hints:?}: {remedy}: {:?}", error.as_db_error());
            }
        }
    }
    // And no text of sql/ names a statement that neither this test nor another one runs.
    let mut missing = Vec::new();
    for (file, fragments) in templates() {
        let is_elsewhere = ELSEWHERE.iter().any(|(part, _)| fragments.join("…").contains(part));
        if !is_elsewhere && !seen.iter().any(|hint| is_made_of(hint, &fragments)) {
            missing.push(format!("{file}: {}", fragments.join("…")));
        }
    }
    assert!(missing.is_empty(), "remedies that no test runs: {missing:#?}");
    for (part, test) in ELSEWHERE {
        assert!(
            templates().iter().any(|(_, fragments)| fragments.join("…").contains(part)),
            "no SQL names {part:?} any more"
        );
        let (file, name) = test.split_once("::").unwrap();
        assert!(support::test_files::has_test(file, name), "{part}: there is no test {test}");
    }
}

#[tokio::test]
async fn what_setup_and_uninstall_leave_to_a_superuser_is_named_and_works() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        pg.psql("CREATE ROLE plain LOGIN; CREATE ROLE other LOGIN");
        pg.psql("CREATE DATABASE mine OWNER plain");
        let plain = format!("host=127.0.0.1 port={} user=plain dbname=mine", pg.port());
        let all = |folder: &str| -> Vec<String> {
            sql_files(folder).iter().map(|path| fs::read_to_string(path).unwrap()).collect()
        };
        // Who may make no roles says which are missing; once a superuser has made them, the files give them their rights.
        let mut named = Vec::new();
        for text in all("sql") {
            for hint in hints_as(&plain, &text).await.into_iter().filter(|hint| hint.contains("CREATE ROLE")) {
                named.extend(statements(&hint));
            }
        }
        assert_eq!(named.len(), 4, "{version}: {named:?}");
        named.iter().for_each(|statement| drop(pg.psql(statement)));
        for text in all("sql") {
            let hints = hints_as(&plain, &text).await;
            assert!(!hints.iter().any(|hint| hint.contains("CREATE ROLE")), "{version}: {hints:?}");
        }
        let granted = "SELECT has_table_privilege('walhook_streamer', 'rule_webhooks', 'SELECT')";
        assert_eq!(pg.psql_in("mine", granted), "t");

        // Nor may he drop them.
        let comments = "SELECT format('COMMENT ON ROLE %I IS %L;', r, 'walhook: ' || r) FROM unnest('{walhook_streamer,walhook_application,walhook_operator,walhook_worker}'::text[]) r";
        pg.psql(&pg.psql(comments));
        let uninstall = all("sql/uninstall").remove(0);
        let hints = hints_as(&plain, &uninstall).await;
        let dropping: Vec<&String> = hints.iter().filter(|hint| hint.contains("DROP OWNED BY")).collect();
        assert_eq!(dropping.len(), 4, "{version}: {hints:?}");
        assert_eq!(pg.psql_in("mine", "SELECT to_regclass('rule_webhooks') IS NULL"), "t");
        // One is used by another database, and another owns something in a third.
        pg.psql("CREATE DATABASE second");
        pg.psql("CREATE DATABASE third");
        for text in all("sql") {
            pg.psql_in("second", &text);
        }
        pg.psql_in("third", "CREATE TABLE theirs (id int); ALTER TABLE theirs OWNER TO walhook_worker");
        pg.psql_in("third", "GRANT SELECT ON theirs TO walhook_operator");
        let second = format!("host=127.0.0.1 port={} user=postgres dbname=second", pg.port());
        let hints = hints_as(&second, &uninstall).await;
        assert!(
            hints.iter().any(|hint| hint.starts_with("walhook uninstall there removes it")),
            "{version}: {hints:?}"
        );
        let reassign = hints.iter().find(|hint| hint.starts_with("REASSIGN OWNED BY")).unwrap();
        for statement in ["REASSIGN OWNED BY walhook_worker TO postgres;", "DROP ROLE walhook_worker;"] {
            assert!(reassign.contains(statement), "{version}: {reassign}");
        }
        pg.psql_in("third", "REASSIGN OWNED BY walhook_worker TO postgres; DROP OWNED BY walhook_operator");
        for statement in dropping.iter().flat_map(|hint| statements(hint)) {
            // What was granted in a database goes there.
            ["mine", "second"].iter().for_each(|database| drop(pg.try_psql_in(database, &statement)));
        }
        pg.psql("DROP ROLE IF EXISTS walhook_worker");
        assert_eq!(pg.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'walhook%'"), "0", "PostgreSQL {version}");

        // The record of walhook 0.1, on which something of the user's depends.
        pg.psql("CREATE DATABASE old");
        pg.psql_in("old", &fs::read_to_string(root().join("tests/sql/fixtures/walhook_0_1.sql")).unwrap());
        pg.psql_in("old", "CREATE VIEW mine AS SELECT version FROM schema_migrations");
        let old = format!("host=127.0.0.1 port={} user=postgres dbname=old", pg.port());
        let hints = hints_as(&old, &fs::read_to_string(root().join("sql/005_webhooks.sql")).unwrap()).await;
        let remedy = hints.iter().find(|hint| hint.starts_with("DROP TABLE")).unwrap();
        pg.psql_in("old", &format!("DROP VIEW mine; {remedy}"));
    }
}
