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
            FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
            UNION ALL
            SELECT format('relation %s %s %s %s', relname, relkind, ARRAY(SELECT a::text FROM unnest(relacl) a ORDER BY 1),
                          obj_description(oid, 'pg_class'))
            FROM pg_class WHERE relnamespace = 'public'::regnamespace
            UNION ALL
            SELECT format('column %s.%s %s %s %s %s %s', c.relname, attname, attnum, format_type(atttypid, atttypmod),
                          attnotnull, pg_get_expr(d.adbin, d.adrelid), attacl)
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
            WHERE c.relnamespace = 'public'::regnamespace AND attnum > 0
            UNION ALL
            SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
            UNION ALL
            SELECT format('index %s', indexdef) FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL
            SELECT format('view %s %s', viewname, definition) FROM pg_views WHERE schemaname = 'public'
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
        assert_eq!(recorded, "005 007 008 009 010 011 012 013 014 015", "PostgreSQL {version}");
    }
}

#[tokio::test]
async fn every_object_is_described_pins_its_search_path_and_is_closed_to_the_public() {
    let pg = Postgres::start().await;
    load(&pg.client().await).await;
    let bare = pg.psql(
        "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND (
            obj_description(oid, 'pg_proc') NOT LIKE 'walhook:%' OR obj_description(oid, 'pg_proc') IS NULL
            OR 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(proconfig, '{}'))
            OR has_function_privilege('public', oid, 'EXECUTE'))",
    );
    assert_eq!(bare, "", "functions without description or pin, or open to PUBLIC");
    let bare = pg.psql(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') AND (
            obj_description(oid, 'pg_class') IS NULL OR has_table_privilege('public', oid, 'SELECT'))",
    );
    assert_eq!(bare, "", "tables and views without description, or open to PUBLIC");
}

#[tokio::test]
async fn the_reference_names_every_function_table_and_view() {
    let pg = Postgres::start().await;
    load(&pg.client().await).await;
    let names = pg.psql(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
         UNION SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')",
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
            "stream 'WEBHOOKS' does not take 'webhooks.hook', the subject of webhook 'hook', nor does another stream",
            "stream 'WEBHOOKS' does not take 'audit.*', a subject of the link of public.t to webhook 'hook', nor does another stream",
        ]
    );
    assert_eq!(notices(&pg, "SELECT rule_nats_stream_create('AUDIT', ARRAY['audit.*', 'webhooks.*'])").await, [""; 0]);
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
    assert_eq!(error.message(), "Webhook 1: Invalid publish_mode 'carrier pigeon'");
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
                _ => "SELECT rule_nats_pattern_problem($1) IS NULL",
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
    let (client, mut connection) = tokio_postgres::connect(&pg.conninfo(), NoTls).await.unwrap();
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
    let starts = ["SELECT ", "UPDATE ", "ALTER ", "CREATE ", "GRANT ", "DROP ", "CALL "];
    let mut found = Vec::new();
    let mut rest = hint;
    while let Some(at) = starts.iter().filter_map(|word| rest.find(word)).min() {
        let Some(end) = rest[at..].find(';') else { break };
        found.push(rest[at..at + end].to_owned());
        rest = &rest[at + end..];
    }
    found
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
        ("SELECT rule_webhook_secret_set(99, 'a', 'b')", 1),
        ("SELECT rule_webhook_retry(99)", 1),
        ("SELECT rule_webhook_enable_nats(1, 'a b')", 1),
        ("SELECT rule_webhook_enable_nats(99)", 1),
        ("SELECT rule_webhook_disable_nats(99)", 1),
        ("SELECT rule_webhook_enable_nats(1, NULL, 'nats', 'other')", 1),
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
        ("SELECT rule_webhook_link_table(1, 'bare')", 1),
        ("SELECT rule_webhook_link_table(1, 't', p_when_changed => '{note}')", 1),
        ("SELECT rule_webhook_link_table(1, 't', p_publication => 'second')", 1),
        ("SELECT rule_cdc_slot_create('walhook', true, 'third')", 1),
        ("SELECT rule_cdc_anchor_create()", 1),
        ("SELECT rule_nats_dead_letter_retry(99)", 1),
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
        ("SELECT rule_cdc_backfill_chunk(99)", 1),
        ("SELECT rule_cdc_backfill_start('bare')", 1),
    ];
    for (statement, expected) in cases {
        let hints = hints(&pg, statement).await;
        let named: Vec<String> = hints.iter().flat_map(|hint| statements(hint)).collect();
        assert!(named.len() >= expected, "{statement}: {hints:?}");
        for remedy in named {
            assert!(!remedy.contains("..."), "{statement}: not whole: {remedy}");
            if let Err(error) = pg.try_psql(&remedy) {
                panic!("{statement}: {hints:?}: {remedy}: {:?}", error.as_db_error());
            }
        }
    }
}
