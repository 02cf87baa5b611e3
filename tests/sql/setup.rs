//! Setting walhook up in databases that others use, or have prepared: other tools' tables, planted objects, locks, encodings,
//! and the schema's version.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::fs;

use support::{Postgres, Walhook, feed::Feed, walhook::Finished};
use tokio_postgres::{Client, NoTls};

pub fn file(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

pub fn conninfo(pg: &Postgres, user: &str, database: &str) -> String {
    format!("host=127.0.0.1 port={} user={user} dbname={database}", pg.port())
}

pub async fn connect(pg: &Postgres, user: &str, database: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(&conninfo(pg, user, database), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Runs a verb to its end, in a thread that may block.
pub async fn verb(verb: &str, conninfo: String, arguments: &[&str]) -> Finished {
    let command = Walhook::command(verb).args(arguments).env("DATABASE_URL", conninfo);
    tokio::task::spawn_blocking(move || command.finish()).await.unwrap()
}

pub async fn setup(pg: &Postgres, database: &str) {
    let done = verb("setup", conninfo(pg, "postgres", database), &["--slot", database]).await;
    assert_eq!(done.code, Some(0), "{database}: {}", done.stderr);
}

#[tokio::test]
async fn other_tools_keep_their_schema_migrations_and_setup_works_beside_them() {
    let pg = Postgres::start().await;
    for (tool, table) in [
        (
            "rails",
            "CREATE TABLE schema_migrations (version varchar NOT NULL PRIMARY KEY); INSERT INTO schema_migrations VALUES ('20250101000000'), ('008')",
        ),
        (
            "golang_migrate",
            "CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL); INSERT INTO schema_migrations VALUES (8, false)",
        ),
        (
            "ecto",
            "CREATE TABLE schema_migrations (version bigint PRIMARY KEY, inserted_at timestamp(0)); INSERT INTO schema_migrations VALUES (11, now())",
        ),
        (
            "dbmate",
            "CREATE TABLE schema_migrations (version varchar(128) PRIMARY KEY); INSERT INTO schema_migrations VALUES ('008')",
        ),
        (
            "a_view",
            "CREATE VIEW schema_migrations AS SELECT '008'::text AS version, NULL::text AS description, now() AS applied_at",
        ),
    ] {
        pg.psql(&format!("CREATE DATABASE {tool}"));
        pg.psql_in(tool, table);
        let contents = "SELECT c.relkind::text, (SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0),
                               (SELECT count(*) FROM schema_migrations), obj_description(c.oid) FROM pg_class c WHERE oid = 'schema_migrations'::regclass";
        let before = pg.psql_in(tool, contents);
        setup(&pg, tool).await;
        setup(&pg, tool).await;
        assert_eq!(pg.psql_in(tool, contents), before, "{tool}");
        assert!(!pg.psql_in(tool, "SELECT version FROM rule_cdc_migrations").contains("0.1"), "{tool}");
    }
}

#[tokio::test]
async fn a_database_of_walhook_0_1_keeps_every_row_and_its_record_moves() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        for (database, others) in
            [("fresh", ""), ("shared", "INSERT INTO schema_migrations VALUES ('20250101', 'theirs')")]
        {
            pg.psql(&format!("CREATE DATABASE {database}"));
            pg.psql_in(database, &file("tests/sql/fixtures/walhook_0_1.sql"));
            pg.psql_in(database, others);
            pg.psql_in(
                database,
                "SELECT rule_cdc_publication_create();
                 CREATE TABLE orders (id int PRIMARY KEY);
                 SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_enable_nats(1, NULL, 'nats'),
                        rule_webhook_secret_set(1, 'signing', 'whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=');
                 SELECT rule_webhook_link_table('hook', 'orders');
                 SELECT rule_webhook_publish_nats(1, '{}'), rule_webhook_enqueue(1, '{}');
                 DELETE FROM rule_nats_config WHERE config_name = 'none';
                 INSERT INTO rule_nats_dead_letters (event_id, reason) VALUES ('x', 'too large');
                 INSERT INTO rule_cdc_replays (source, from_point) VALUES ('walhook', '0/1')",
            );
            // Whole rows, as far as 0.1 knew their columns.
            let tables = pg.psql_in(database, "SELECT c.relname || ' ' || string_agg(quote_ident(a.attname), ',' ORDER BY a.attnum)
                FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname LIKE 'rule%' GROUP BY c.relname ORDER BY 1");
            let rows = |pg: &Postgres| -> Vec<String> {
                tables
                    .lines()
                    .map(|line| {
                        let (table, columns) = line.split_once(' ').unwrap();
                        pg.psql_in(
                            database,
                            &format!("SELECT '{table}', t FROM (SELECT {columns} FROM {table}) t ORDER BY t::text"),
                        )
                    })
                    .collect()
            };
            let before = rows(&pg);
            let run = verb("run", conninfo(&pg, "postgres", database), &["--slot", database]).await;
            assert_eq!(run.code, Some(2), "{}", run.stderr);
            assert!(
                run.stderr.contains("is missing, or of walhook 0.1") && run.stderr.contains("run walhook setup"),
                "{}",
                run.stderr
            );
            setup(&pg, database).await;
            assert_eq!(rows(&pg), before, "PostgreSQL {version}, {database}");
            assert_eq!(
                pg.psql_in(database, "SELECT string_agg(version, ' ' ORDER BY version) FROM rule_cdc_migrations WHERE version LIKE '0.1/%'"),
                "0.1/005 0.1/007 0.1/008 0.1/009 0.1/010 0.1/011"
            );
            let left = "SELECT CASE WHEN to_regclass('schema_migrations') IS NOT NULL THEN query_to_xml('SELECT * FROM schema_migrations', false, true, '')::text END";
            let left = pg.psql_in(database, left);
            assert_eq!(left.contains("theirs"), !others.is_empty(), "{left}");
            assert!(!left.contains("walhook"), "{left}");
        }
    }
}

#[tokio::test]
async fn a_schema_that_is_older_or_newer_than_the_binary_is_refused_with_what_to_do() {
    let pg = Postgres::start().await;
    setup(&pg, "postgres").await;
    let verbs: [(&str, &[&str]); 14] = [
        ("run", &[]),
        ("deliver", &[]),
        ("replay", &["--from", "1h", "--dry-run"]),
        ("backfill", &["--table", "t"]),
        ("seek", &["--stream", "WEBHOOKS", "--consumer", "c", "--from", "1h"]),
        ("status", &[]),
        ("tail", &[]),
        ("explain", &["t"]),
        ("dead-letters", &["list"]),
        ("webhook", &["test", "orders"]),
        ("schema", &["t"]),
        ("adopt", &["--yes"]),
        ("uninstall", &["--yes"]),
        ("setup", &[]),
    ];
    // A verb that is new has its place above.
    let help = Walhook::command("help").finish().stdout;
    let listed = help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    for name in listed
        .lines()
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '))?.split_whitespace().next())
    {
        // The first five need no database of the user's, and `check` has a finding of its own for it.
        let is_exempt = ["help", "version", "completions", "man", "demo", "check"].contains(&name);
        assert!(is_exempt || verbs.iter().any(|(verb, _)| *verb == name), "{name}");
    }
    pg.psql("INSERT INTO rule_cdc_migrations (version, description) VALUES ('999', 'of the future')");
    for (name, arguments) in verbs {
        let done = verb(name, pg.conninfo(), arguments).await;
        assert_eq!(done.code, Some(2), "{name}: {}", done.stderr);
        assert!(
            done.stderr.contains("has version 999") && done.stderr.contains("this walhook is the older one"),
            "{name}: {}",
            done.stderr
        );
    }
    let checked = verb("check", pg.conninfo(), &[]).await;
    assert!(checked.code == Some(2) && checked.stdout.contains("999"), "{checked:?}");
    pg.psql("DELETE FROM rule_cdc_migrations WHERE version IN ('999', '011')");
    for (name, arguments) in verbs.into_iter().filter(|(name, _)| !["setup", "uninstall"].contains(name)) {
        let done = verb(name, pg.conninfo(), arguments).await;
        assert_eq!(done.code, Some(2), "{name}: {}", done.stderr);
        assert!(
            done.stderr.contains("the database is the older one") && done.stderr.contains("run walhook setup"),
            "{name}: {}",
            done.stderr
        );
    }
    setup(&pg, "postgres").await;
    // Whoever wants to be rid of an older one need not set up the newer one first, unless it is to look into NATS.
    pg.psql("DELETE FROM rule_cdc_migrations WHERE version = '011'");
    let done = verb("uninstall", pg.conninfo(), &["--nats", "--yes"]).await;
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("the database is the older one"), "{}", done.stderr);
    let done = verb("uninstall", pg.conninfo(), &["--yes", "--slot", "postgres"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(pg.psql("SELECT to_regclass('rule_webhooks') IS NULL"), "t");
}

#[tokio::test]
async fn versions_of_rules_that_were_jsonb_are_kept_and_continued() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        setup(&pg, "postgres").await;
        pg.psql(
            "ALTER TABLE walhook.rule_cdc_rule_versions ALTER COLUMN row_data TYPE JSONB USING row_data::text::jsonb;
             DELETE FROM rule_cdc_migrations WHERE version = '024'",
        );
        let write = |lsn: &str, row: &str, is_partial: bool| {
            pg.psql(&format!(
                "SELECT walhook.rule_cdc_rules_write('s', '{lsn}', false, '{{rule_webhooks}}', '{{7}}', ARRAY['{row}'], '{{{is_partial}}}')"
            ))
        };
        let versions = || {
            let sql =
                "SELECT string_agg(row_data::jsonb::text, ' ' ORDER BY since_lsn) FROM walhook.rule_cdc_rule_versions";
            pg.psql(sql)
        };
        write("0/1", r#"{"webhook_id":"7","url":"a","headers":"{}"}"#, false);
        write("0/2", r#"{"webhook_id":"7","url":"b"}"#, true);
        let before =
            r#"{"url": "a", "headers": "{}", "webhook_id": "7"} {"url": "b", "headers": "{}", "webhook_id": "7"}"#;
        assert_eq!(versions(), before, "PostgreSQL {version}");
        setup(&pg, "postgres").await;
        assert_eq!(pg.psql("SELECT DISTINCT pg_typeof(row_data) FROM walhook.rule_cdc_rule_versions"), "json");
        assert_eq!(versions(), before, "PostgreSQL {version}");
        write("0/3", r#"{"webhook_id":"7","url":"c"}"#, true);
        let after = format!(r#"{before} {{"url": "c", "headers": "{{}}", "webhook_id": "7"}}"#);
        assert_eq!(versions(), after, "PostgreSQL {version}");
    }
}

#[tokio::test]
async fn objects_with_our_names_that_another_role_made_are_refused_before_anything_is_changed() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        pg.psql("CREATE ROLE mallory LOGIN; CREATE ROLE alice");
        for (database, planted) in [
            (
                "routine",
                "CREATE FUNCTION public.rule_webhook_enqueue(p_webhook_id integer, p_payload jsonb, p_rule_name text DEFAULT NULL, p_scheduled_at timestamptz DEFAULT now()) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            ),
            (
                "internal_routine",
                "CREATE FUNCTION public.rule_cdc_table_problem(regclass) RETURNS text LANGUAGE sql AS 'SELECT NULL::text'",
            ),
            ("secrets", "CREATE TABLE public.rule_webhook_secrets (secret_id serial)"),
            ("view", "CREATE VIEW public.nats_publish_summary AS SELECT 1 AS webhook_id"),
            ("domain", "CREATE DOMAIN public.rule_webhooks AS text"),
            ("enum", "CREATE TYPE public.rule_webhooks AS ENUM ('a')"),
            ("schema", "CREATE SCHEMA walhook_staging"),
            ("publication", "CREATE PUBLICATION walhook_changes"),
        ] {
            pg.psql(&format!("CREATE DATABASE {database}"));
            pg.psql(&format!("GRANT CREATE ON DATABASE {database} TO mallory"));
            pg.psql_in(database, "GRANT CREATE ON SCHEMA public TO mallory");
            connect(&pg, "mallory", database).await.batch_execute(planted).await.unwrap();
            let done = verb("setup", conninfo(&pg, "postgres", database), &[]).await;
            assert_eq!(done.code, Some(4), "{database}: {}", done.stderr);
            for part in ["walhook cannot be set up", "of role mallory", "OWNER TO postgres", "DROP "] {
                let is_schema = database == "schema" && part.starts_with("OWNER");
                assert!(is_schema || done.stderr.contains(part), "{database}: no {part:?} in {}", done.stderr);
            }
            assert_eq!(
                pg.psql_in(
                    database,
                    "SELECT to_regclass('rule_cdc_migrations') IS NULL AND to_regclass('rule_webhook_calls') IS NULL"
                ),
                "t",
                "{database}: nothing was made"
            );
            // The remedy as it is printed, up to its alternative.
            let remedy = done.stderr.split("take it over: ").nth(1).unwrap().split(';').next().unwrap();
            pg.psql_in(database, remedy);
            setup(&pg, database).await;
        }
        // A trigger on a table that is trusted, by one who was granted TRIGGER.
        setup(&pg, "postgres").await;
        pg.psql("GRANT TRIGGER ON rule_webhook_events TO mallory; CREATE SCHEMA mallory AUTHORIZATION mallory; GRANT CREATE ON SCHEMA public TO alice");
        let mallory = connect(&pg, "mallory", "postgres").await;
        mallory
            .batch_execute(
                "CREATE FUNCTION mallory.boom() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
                 CREATE TRIGGER audit BEFORE INSERT ON public.rule_webhook_events FOR EACH ROW EXECUTE FUNCTION mallory.boom()",
            )
            .await
            .unwrap();
        let done = verb("setup", pg.conninfo(), &[]).await;
        assert!(done.stderr.contains("trigger audit ON public.rule_webhook_events of role mallory"), "{}", done.stderr);
        let remedy = done.stderr.split("take it over: ").nth(1).unwrap().split(';').next().unwrap();
        pg.psql(remedy);
        setup(&pg, "postgres").await;
        // What the owner of the database, or the role that runs setup, has made is adopted.
        pg.psql("CREATE ROLE owner LOGIN CREATEROLE");
        pg.psql("CREATE DATABASE theirs OWNER owner");
        let owner = connect(&pg, "owner", "theirs").await;
        owner.batch_execute(&file("tests/sql/fixtures/upstream.sql")).await.unwrap();
        setup(&pg, "theirs").await;
    }
}

#[tokio::test]
async fn a_repeated_setup_waits_for_nobody_and_a_first_one_gives_way() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        setup(&pg, "postgres").await;
        // All of ours read and written by a transaction that stays open, as an application's may.
        let holder = pg.client().await;
        let relations = pg.psql(
            "SELECT format('%s %s', relkind, oid::regclass) FROM pg_class
            WHERE relnamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND relkind IN ('r', 'v') ORDER BY 1",
        );
        holder.batch_execute("BEGIN").await.unwrap();
        for relation in relations.lines() {
            let (kind, name) = relation.split_once(' ').unwrap();
            holder.batch_execute(&format!("SELECT FROM {name} LIMIT 0")).await.unwrap();
            if kind == "r" {
                holder.batch_execute(&format!("LOCK TABLE {name} IN ROW EXCLUSIVE MODE")).await.unwrap();
            }
        }
        let done = verb("setup", pg.conninfo(), &[]).await;
        assert_eq!(done.code, Some(0), "PostgreSQL {version}: {}", done.stderr);
        assert!(!done.stderr.contains("retry_in_ms"), "PostgreSQL {version}: {}", done.stderr);
        // An upgrade that has something to do waits in turns, and says for what; the application passes.
        pg.psql("DELETE FROM rule_cdc_migrations WHERE version = '010'");
        let mut upgrade = Walhook::command("setup").env("DATABASE_URL", pg.conninfo()).start();
        upgrade.logged("retry_in_ms").await;
        pg.psql("SELECT count(*) FROM rule_webhooks");
        holder.batch_execute("COMMIT").await.unwrap();
        assert_eq!(upgrade.wait(support::DEADLINE), 0, "PostgreSQL {version}: {}", upgrade.log());
    }
}

#[tokio::test]
async fn setup_works_in_every_encoding_and_with_settings_that_change_how_sql_is_read() {
    let pg = Postgres::start().await;
    for (number, (encoding, options)) in [
        ("LATIN1", ""),
        ("EUC_JP", ""),
        ("KOI8R", ""),
        ("SQL_ASCII", ""),
        ("UTF8", "quote_all_identifiers = on"),
        ("WIN1252", "standard_conforming_strings = off"),
    ]
    .into_iter()
    .enumerate()
    {
        let database = format!("d{number}");
        pg.psql(&format!("CREATE DATABASE {database} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"));
        if !options.is_empty() {
            pg.psql(&format!("ALTER DATABASE {database} SET {options}"));
        }
        setup(&pg, &database).await;
        setup(&pg, &database).await;
        let client = connect(&pg, "postgres", &database).await;
        client.batch_execute("SELECT rule_webhook_register(E'hook \\'', 'https://example.com'); SELECT rule_webhook_enable_nats(1, NULL, 'nats');
            CREATE TABLE \"Orders\" (id int PRIMARY KEY); SELECT rule_webhook_link_table(1, '\"Orders\"'), rule_webhook_publish_nats(1, '{}')").await.unwrap();
        assert_eq!(
            pg.psql_in(&database, "SELECT ok, problems FROM rule_webhook_links_check()"),
            "t|{}",
            "{encoding} {options}"
        );
        assert_eq!(
            pg.psql_in(&database, "SELECT subject FROM rule_webhook_events"),
            "webhooks.hook%20%27",
            "{encoding} {options}"
        );
        pg.psql_in(&database, &format!("SELECT rule_cdc_slot_drop('{database}')"));
    }
    // A webhook's name outside ASCII, in an encoding that has it.
    pg.psql("CREATE DATABASE greek ENCODING 'ISO_8859_7' LOCALE 'C' TEMPLATE template0");
    setup(&pg, "greek").await;
    assert_eq!(pg.psql_in("greek", "SELECT rule_nats_subject_token(U&'\\03b1b')"), "%CE%B1b");
}

#[tokio::test]
async fn slots_are_made_beside_other_sessions_temporary_tables_twenty_times_of_twenty() {
    for version in ["14", "default", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        setup(&pg, "postgres").await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut others = Vec::new();
        for number in 0..4 {
            let client = pg.client().await;
            let stopped = stopped.clone();
            others.push(tokio::spawn(async move {
                let mut rounds = 0;
                while !*stopped.borrow() {
                    client
                        .batch_execute(&format!(
                            "CREATE TEMPORARY TABLE churn{number} (id int PRIMARY KEY, note text); ALTER TABLE churn{number} ADD COLUMN more int; DROP TABLE churn{number}"
                        ))
                        .await
                        .unwrap();
                    rounds += 1;
                }
                rounds
            }));
        }
        let client = pg.client().await;
        for attempt in 0..20 {
            for statement in
                ["SELECT rule_cdc_slot_create('again')", "SELECT rule_cdc_anchor_create(p_slot => 'again')"]
            {
                let made = client.batch_execute(statement).await;
                assert!(made.is_ok(), "PostgreSQL {version}, {attempt}, {statement}: {made:?}");
            }
            client.batch_execute("SELECT rule_cdc_anchor_drop('again'), rule_cdc_slot_drop('again')").await.unwrap();
        }
        stop.send(true).unwrap();
        for other in others {
            assert!(other.await.unwrap() > 20, "the other sessions had as many rounds");
        }
    }
}

/// In schema evil, first on everybody's search path, and in public: for each function, operator and type of PostgreSQL that our SQL
/// may call by a bare name another one of the same name and arguments, and some that fit literals of unknown type better. Each notes in
/// the server's log that it was run, and fails. None can be made for arguments that only C can take.
const PLANT: &str = r#"
CREATE FUNCTION evil.boom(note pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS
    'BEGIN RAISE LOG ''PLANTED % run by %'', note, current_user; RAISE EXCEPTION ''PLANTED %'', note; END';
DO $plant$
DECLARE
    f RECORD;
    v_schema pg_catalog.text;
    v_args pg_catalog.text;
    v_count pg_catalog.int4 := 0;
BEGIN
    FOREACH v_schema IN ARRAY ARRAY['evil', 'public'] LOOP
        FOR f IN
            SELECT DISTINCT p.proname, p.pronargs, pg_get_function_result(p.oid) AS result, oidvectortypes(p.proargtypes) AS args, p.proretset
            FROM pg_proc p
            WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind IN ('f', 'a') AND position('internal' IN oidvectortypes(p.proargtypes)) = 0
              AND p.proname = ANY (string_to_array(current_setting('test.words'), ' '))
        LOOP
            FOREACH v_args IN ARRAY ARRAY[f.args, concat_ws(', ', VARIADIC array_fill('text'::text, ARRAY[f.pronargs])),
                                          concat_ws(', ', VARIADIC array_fill('name'::text, ARRAY[f.pronargs])),
                                          concat_ws(', ', VARIADIC array_fill('anyelement'::text, ARRAY[f.pronargs]))] LOOP
                BEGIN
                    EXECUTE format('CREATE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', v_schema, f.proname, v_args,
                                   CASE WHEN f.result LIKE 'any%' OR f.result = 'SETOF anyelement' THEN 'text' WHEN f.result LIKE '%record' OR f.result LIKE 'TABLE%' THEN 'text' ELSE f.result END,
                                   format('BEGIN PERFORM evil.boom(%L); RETURN NULL; END', f.proname));
                    v_count := v_count + 1;
                EXCEPTION WHEN OTHERS THEN NULL;
                END;
            END LOOP;
        END LOOP;
        FOR f IN
            SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r, o.oprresult::regtype AS result, o.oid FROM pg_operator o
            WHERE o.oprnamespace = 'pg_catalog'::regnamespace
        LOOP
            BEGIN
                EXECUTE format('CREATE FUNCTION %I.op%s(%s) RETURNS %s LANGUAGE plpgsql AS %L', v_schema, f.oid,
                               concat_ws(', ', nullif(f.l::text, '-'), f.r), f.result, format('BEGIN PERFORM evil.boom(%L); RETURN NULL; END', f.oprname));
                EXECUTE format('CREATE OPERATOR %I.%s (%s RIGHTARG = %s, FUNCTION = %I.op%s)', v_schema, f.oprname,
                               CASE WHEN f.l::text <> '-' THEN format('LEFTARG = %s,', f.l) ELSE '' END, f.r, v_schema, f.oid);
                v_count := v_count + 1;
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
        END LOOP;
        FOR f IN SELECT t.typname FROM pg_type t WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype = 'b' AND t.typname !~ '^_' LOOP
            BEGIN
                EXECUTE format('CREATE DOMAIN %I.%I AS pg_catalog.%2$I CHECK (evil.boom(''type''))', v_schema, f.typname);
                v_count := v_count + 1;
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
        END LOOP;
        FOR f IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind IN ('r', 'v') LOOP
            BEGIN
                EXECUTE format('CREATE VIEW %I.%I AS SELECT c.* FROM pg_catalog.%2$I c WHERE evil.boom(%2$L)', v_schema, f.relname);
                v_count := v_count + 1;
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
        END LOOP;
    END LOOP;
    RAISE LOG 'TRAPS %', v_count;
    GRANT USAGE ON SCHEMA evil TO PUBLIC;
END
$plant$
"#;

/// Every word of our SQL, in sql/ and in the statements of src/.
fn words() -> String {
    fn collect(folder: &std::path::Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, text);
            } else {
                text.push_str(&fs::read_to_string(&path).unwrap().to_lowercase());
            }
        }
    }
    let mut text = String::new();
    for folder in ["sql", "src"] {
        collect(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut text);
    }
    let words: std::collections::BTreeSet<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    words.into_iter().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn nothing_planted_in_a_schema_on_the_search_path_is_ever_run() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        let nats = support::Nats::start().await;
        pg.psql("CREATE ROLE mallory LOGIN; CREATE SCHEMA evil AUTHORIZATION mallory; GRANT CREATE ON SCHEMA public TO mallory");
        let mallory = connect(&pg, "mallory", "postgres").await;
        mallory.batch_execute(&format!("SET search_path = pg_catalog; SET test.words = '{}'", words())).await.unwrap();
        mallory.batch_execute(PLANT).await.unwrap();
        let log = pg.log();
        let traps: usize = log.split("TRAPS ").nth(1).unwrap().split('\n').next().unwrap().trim().parse().unwrap();
        assert!(traps > 3000, "{traps}");
        pg.psql("ALTER DATABASE postgres SET search_path = evil, public, pg_catalog");
        let sprung = mallory_is_first(&pg).await;
        assert!(sprung, "the traps are found by who does not pin his search_path");
        let before = pg.log().matches("PLANTED").count();
        let sprung = |what: &str| {
            let log = pg.log();
            let now = log.matches("PLANTED").count();
            assert_eq!(
                now,
                before,
                "PostgreSQL {version}, {what}: {}",
                log.lines().filter(|line| line.contains("PLANTED")).skip(before).take(5).collect::<Vec<_>>().join("\n")
            );
        };

        for time in ["first", "second"] {
            let done = verb("setup", pg.conninfo(), &[]).await;
            assert_eq!(done.code, Some(0), "{time} setup: {}", done.stderr);
            sprung(time);
        }
        // By psql, in a transaction and without.
        let folder = format!("{}/sql", env!("CARGO_MANIFEST_DIR"));
        let mut files: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
        files.sort();
        for path in files {
            for one in [&["-1"][..], &[]] {
                let psql = std::process::Command::new("psql")
                    .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &conninfo(&pg, "postgres", "postgres")])
                    .args(one)
                    .arg("-f")
                    .arg(&path)
                    .output()
                    .unwrap();
                assert!(psql.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&psql.stderr));
            }
            sprung(&path.display().to_string());
        }

        // Our functions, called by a session whose own names resolve as mallory likes; the calls themselves are qualified.
        let client = pg.client().await;
        client.batch_execute("SET search_path = pg_catalog; CREATE TABLE public.orders (id int PRIMARY KEY, note text); SET search_path = evil, public, pg_catalog").await.unwrap();
        let url = nats.url();
        for call in [
            format!("SELECT public.rule_nats_configure('default', '{url}')"),
            "SELECT public.rule_webhook_register('hook', 'https://example.com')".to_owned(),
            "SELECT public.rule_webhook_enable_nats(1, NULL, 'both')".to_owned(),
            "SELECT public.rule_webhook_update(1, p_timeout_ms => 100)".to_owned(),
            "SELECT public.rule_webhook_list()".to_owned(),
            "SELECT public.rule_webhook_get('hook')".to_owned(),
            "SELECT public.rule_webhook_secret_set(1, 'signing', 'whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=')".to_owned(),
            "SELECT public.rule_webhook_secret_get(1, 'signing')".to_owned(),
            "SELECT public.rule_webhook_secret_delete(1, 'signing')".to_owned(),
            "SELECT public.rule_webhook_enqueue(1, '{}')".to_owned(),
            "SELECT public.rule_webhook_call(1, '{}')".to_owned(),
            "SELECT public.rule_webhook_call_with_http(1, '{}')".to_owned(),
            "SELECT public.rule_webhook_call_unified(1, '{}', NULL, '{\"A\": \"b\"}')".to_owned(),
            "SELECT public.rule_webhook_publish_nats(1, '{}')".to_owned(),
            "SELECT public.rule_webhook_retry(1)".to_owned(),
            "SELECT public.rule_webhook_process_retries()".to_owned(),
            "SELECT public.rule_webhook_call_status(1)".to_owned(),
            "SELECT public.rule_webhook_cleanup_old_calls()".to_owned(),
            "SELECT public.rule_nats_stream_create('OTHER', ARRAY['other.>']::pg_catalog.text[])".to_owned(),
            "SELECT public.rule_webhook_link_table(1, 'public.orders', '{insert,update}', 'webhooks.{op}.{id}', NULL, '{\"note\": \"x\"}', NULL, true)".to_owned(),
            "SELECT public.rule_webhook_link_table('hook', 'public.orders')".to_owned(),
            "SELECT public.rule_webhook_links_check()".to_owned(),
            "SELECT public.rule_cdc_publication_tidy()".to_owned(),
            "SELECT public.rule_nats_stats(), public.rule_nats_config_info(), public.rule_nats_webhooks_list()".to_owned(),
            "SELECT public.rule_nats_init(), public.rule_nats_health_check(), public.rule_nats_test_connection()".to_owned(),
            "SELECT public.rule_nats_event_status(1)".to_owned(),
            "SELECT public.rule_nats_cleanup_expired(), public.rule_nats_cleanup_old_history(), public.rule_webhook_events_cleanup()".to_owned(),
            "SELECT public.rule_nats_consumer_update_stats('S', 'c', 1, 1, 1)".to_owned(),
            "SELECT public.rule_cdc_anchor_create()".to_owned(),
            "SELECT public.rule_cdc_anchor_move()".to_owned(),
            "SELECT public.rule_cdc_slot_create()".to_owned(),
            "SELECT public.rule_cdc_backfill_start('public.orders', NULL, 2)".to_owned(),
            "SELECT public.rule_cdc_backfill_chunk(1)".to_owned(),
            "SELECT public.rule_cdc_backfill_cancel(1)".to_owned(),
            "SELECT public.rule_cdc_replay('1h')".to_owned(),
            "SELECT public.rule_cdc_replay_cancel(1)".to_owned(),
            "TABLE public.webhook_status_summary; TABLE public.webhook_recent_failures; TABLE public.webhook_performance_stats".to_owned(),
            "TABLE public.nats_publish_summary; TABLE public.nats_recent_failures; TABLE public.nats_performance_stats".to_owned(),
            "TABLE public.rule_cdc_slots; TABLE public.rule_cdc_anchors; TABLE public.rule_cdc_backfills".to_owned(),
        ] {
            client.batch_execute(&call).await.unwrap_or_else(|error| panic!("{call}: {error:?}"));
            sprung(&call);
        }

        // Our processes.
        let streamer = conninfo(&pg, "walhook_streamer", "postgres");
        let mut run = Walhook::run().env("DATABASE_URL", &streamer).start();
        client.batch_execute("INSERT INTO public.orders VALUES (1, NULL), (2, NULL)").await.unwrap();
        run.logged("slot taken").await;
        support::eventually("the history to have its rows", async || {
            sprung("run");
            (pg.psql("SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>=) 4 FROM public.rule_nats_publish_history")
                == "t")
                .then_some(())
        })
        .await;
        for (name, arguments) in [
            ("status", &[][..]),
            ("dead-letters", &["list"]),
            ("replay", &["--from", "1h", "--dry-run"]),
            ("backfill", &["--table", "public.orders"]),
        ] {
            let done = verb(name, conninfo(&pg, "postgres", "postgres"), arguments).await;
            sprung(name);
            assert_eq!(done.code, Some(0), "{name}: {}", done.stderr);
        }
        let mut deliver =
            Walhook::command("deliver").env("DATABASE_URL", conninfo(&pg, "walhook_worker", "postgres")).start();
        deliver.logged("walhook delivers").await;
        assert_eq!(deliver.terminate(), 0, "{}", deliver.log());
        assert_eq!(run.terminate(), 0, "{}", run.log());
        sprung("run and deliver");
    }
}

/// Whether a session that pins nothing meets the traps: else the test would test nothing.
async fn mallory_is_first(pg: &Postgres) -> bool {
    let client = pg.client().await;
    client.batch_execute("SELECT has_schema_privilege('postgres', 'public', 'USAGE')").await.is_err()
        && client.batch_execute("SELECT 1 = 1").await.is_err()
        && client.batch_execute("SELECT FROM pg_class").await.is_err()
        && client.batch_execute("SELECT 'a'::text").await.is_err()
}

/// All that a database has, and the roles and slots of its server, as text: names, definitions, owners and rights.
const CATALOGUE: &str = "
    SELECT string_agg(line, E'\\n' ORDER BY line COLLATE \"C\") FROM (
        SELECT format('routine %s %s %s %s', p.oid::regprocedure, p.proowner::regrole, md5(p.prosrc), p.proacl) AS line
        FROM pg_proc p WHERE p.oid >= 16384
        UNION ALL SELECT format('relation %s %s %s %s %s', c.oid::regclass, c.relkind, c.relowner::regrole, c.relacl, obj_description(c.oid, 'pg_class'))
        FROM pg_class c WHERE c.oid >= 16384 AND c.relnamespace IN ('public'::regnamespace, to_regnamespace('walhook'))
        UNION ALL SELECT format('column %s.%s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid))
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace IN ('public'::regnamespace, to_regnamespace('walhook')) AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind <> 'i'
        UNION ALL SELECT format('constraint %s %s %s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid)) FROM pg_constraint k
        WHERE k.connamespace IN ('public'::regnamespace, to_regnamespace('walhook'))
        UNION ALL SELECT format('trigger %s %s', t.tgrelid::regclass, t.tgname) FROM pg_trigger t WHERE NOT t.tgisinternal
        UNION ALL SELECT format('type %s', t.oid::regtype) FROM pg_type t WHERE t.oid >= 16384 AND t.typnamespace IN ('public'::regnamespace, to_regnamespace('walhook'))
        UNION ALL SELECT format('schema %s %s', n.nspname, n.nspacl) FROM pg_namespace n WHERE n.nspname !~ '^pg_(toast_)?temp'
        UNION ALL SELECT format('publication %s', p.pubname) FROM pg_publication p
        UNION ALL SELECT format('event trigger %s', e.evtname) FROM pg_event_trigger e
        UNION ALL SELECT format('database %s %s', d.datname, d.datacl) FROM pg_database d
        UNION ALL SELECT format('role %s', r.rolname) FROM pg_roles r
        UNION ALL SELECT format('slot %s', s.slot_name) FROM pg_replication_slots s
    ) lines";

#[tokio::test]
async fn uninstall_leaves_a_database_as_it_was_before_setup() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        // A stranger's table that is linked later; PUBLIC has lost what setup grants then.
        pg.psql("CREATE TABLE orders (id int PRIMARY KEY, note text); GRANT SELECT ON orders TO postgres; REVOKE CONNECT, TEMPORARY ON DATABASE postgres FROM PUBLIC; REVOKE USAGE ON SCHEMA public FROM PUBLIC");
        let before = pg.psql(CATALOGUE);
        let done = verb("setup", pg.conninfo(), &[]).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let asked = verb("uninstall", pg.conninfo(), &[]).await;
        assert_eq!(asked.code, Some(2), "{}", asked.stderr);
        assert!(asked.stderr.contains("--yes"), "{}", asked.stderr);
        pg.psql(
            "SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_enable_nats(1, NULL, 'nats');
             SELECT rule_webhook_link_table('hook', 'orders', p_mask => '{\"note\": \"drop\"}'); INSERT INTO orders VALUES (1);
             SELECT rule_webhook_link_schema('hook', 'public');
             GRANT SELECT, UPDATE ON orders TO walhook_streamer",
        );
        pg.psql("SELECT rule_cdc_anchor_create()");
        // Nothing is removed under a walhook that streams.
        let mut run = Walhook::run().env("DATABASE_URL", pg.conninfo()).start();
        run.logged("slot taken").await;
        let refused = verb("uninstall", pg.conninfo(), &["--yes"]).await;
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("streams from slot") && refused.stderr.contains("stop that walhook first"),
            "{}",
            refused.stderr
        );
        // Partitions of the history go with it.
        support::eventually("partitions of today and tomorrow", async || {
            (pg.psql("SELECT count(*) FROM rule_nats_history_partitions()") == "2").then_some(())
        })
        .await;
        run.kill9();
        support::eventually("the slot to be free", async || {
            (pg.psql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0").then_some(())
        })
        .await;
        // Nor what somebody's view reads.
        pg.psql("CREATE VIEW dashboard AS SELECT webhook_name FROM rule_webhooks");
        let set_up = pg.psql(CATALOGUE);
        let refused = verb("uninstall", pg.conninfo(), &["--yes"]).await;
        assert!(refused.stderr.contains("view public.dashboard depends on"), "{}", refused.stderr);
        assert_eq!(pg.psql(CATALOGUE), set_up);
        pg.psql("DROP VIEW dashboard");

        let done = verb("uninstall", pg.conninfo(), &["--yes"]).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        assert_eq!(pg.psql(CATALOGUE), before, "PostgreSQL {version}");
        // And it can be set up again, and printed.
        let done = verb("setup", pg.conninfo(), &[]).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let printed = verb("uninstall", pg.conninfo(), &["--print"]).await.stdout;
        pg.psql(printed.split("\\set ON_ERROR_STOP on\n").nth(1).unwrap().split("-- slots").next().unwrap());
        pg.psql("SELECT pg_drop_replication_slot('walhook')");
        assert_eq!(pg.psql(CATALOGUE), before, "PostgreSQL {version}, printed");
    }
}

/// What an application and its administrator may have made before: of each kind of object that setup makes or touches.
const MADE_BEFORE: &str = "
    CREATE ROLE app LOGIN PASSWORD 'x'; ALTER ROLE app SET work_mem = '8MB'; ALTER ROLE app IN DATABASE postgres SET search_path = shop, public;
    CREATE ROLE reader; GRANT reader TO app; COMMENT ON ROLE reader IS 'reads';
    ALTER DATABASE postgres SET statement_timeout = '1h'; GRANT CREATE ON DATABASE postgres TO app; COMMENT ON DATABASE postgres IS 'the shop';
    CREATE SCHEMA shop AUTHORIZATION app; GRANT USAGE ON SCHEMA shop TO reader;
    ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO reader; ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO reader;
    CREATE TABLE shop.orders (id int PRIMARY KEY, note text, amount numeric(10, 2) CHECK (amount > 0));
    ALTER TABLE shop.orders REPLICA IDENTITY FULL; COMMENT ON COLUMN shop.orders.note IS 'of the customer'; GRANT SELECT (id) ON shop.orders TO reader;
    CREATE INDEX ON shop.orders (amount); CREATE VIEW shop.totals AS SELECT sum(amount) FROM shop.orders;
    CREATE TABLE parts (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at); CREATE TABLE parts_2026 PARTITION OF parts DEFAULT;
    ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON shop.orders TO app USING (id > 0);
    CREATE FUNCTION shop.stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER stamp BEFORE INSERT ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.stamp();
    CREATE FUNCTION shop.watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
    CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION shop.watch();
    CREATE PUBLICATION everything FOR ALL TABLES; CREATE PUBLICATION chosen FOR TABLE shop.orders;
    CREATE SEQUENCE numbers START 7; CREATE TYPE mood AS ENUM ('well'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    INSERT INTO shop.orders VALUES (1, 'a', 1), (2, 'b', 2); INSERT INTO parts VALUES (1, '2026-11-30')";

/// All that `pg_dumpall` and `pg_dump` know of a server, and its slots and settings of roles in databases.
fn dumped(pg: &Postgres) -> String {
    let all = [
        pg.tool("pg_dumpall", &["--globals-only"]),
        pg.tool("pg_dump", &["--create", "postgres"]),
        pg.psql("SELECT string_agg(concat_ws(' ', slot_name, plugin, slot_type, database), E'\\n' ORDER BY slot_name) FROM pg_replication_slots"),
        pg.psql("SELECT string_agg(concat_ws(' ', setdatabase, setrole, setconfig::text), E'\\n' ORDER BY setdatabase, setrole) FROM pg_db_role_setting"),
    ];
    // A new key in each dump.
    all.join("\n").lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn uninstall_leaves_what_pg_dump_shows_of_all_that_was_there_before() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).tools().fresh().start().await;
        pg.psql(MADE_BEFORE);
        pg.psql("SELECT pg_create_logical_replication_slot('theirs', 'pgoutput'), pg_create_physical_replication_slot('standby')");
        let before = dumped(&pg);
        for object in [
            "CREATE EVENT TRIGGER watch",
            "CREATE POLICY mine",
            "CREATE ROLE app",
            "theirs pgoutput logical",
            "statement_timeout",
        ] {
            assert!(before.contains(object), "{object}: {before}");
        }
        for (verb_name, arguments) in [("setup", &[][..]), ("setup", &[])] {
            let done = verb(verb_name, pg.conninfo(), arguments).await;
            assert_eq!(done.code, Some(0), "{}", done.stderr);
        }
        pg.psql(
            "SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_enable_nats(1, NULL, 'nats');
             SELECT rule_webhook_link_table('hook', 'shop.orders'), rule_webhook_link_table('hook', 'parts');
             SELECT rule_nats_stream_create('ORDERS', ARRAY['orders.>']); SELECT rule_webhook_publish_nats(1, '{}');
             INSERT INTO shop.orders VALUES (3, 'c', 3); DELETE FROM shop.orders WHERE id = 3;
             GRANT walhook_operator TO app; ALTER ROLE walhook_streamer PASSWORD 'y'; ALTER ROLE walhook_worker SET work_mem = '1MB'",
        );
        pg.psql("SELECT rule_cdc_anchor_create()");
        assert_ne!(dumped(&pg), before);
        let done = verb("uninstall", pg.conninfo(), &["--yes"]).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let after = dumped(&pg);
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        let (old, new) = (lines(&before), lines(&after));
        let changes: Vec<_> = old.symmetric_difference(&new).collect();
        assert!(changes.is_empty(), "PostgreSQL {version}: {changes:#?}");
        assert_eq!(after, before, "PostgreSQL {version}: the same lines in another order");
    }
}

#[tokio::test]
async fn uninstall_leaves_the_upstreams_tables_their_rows_and_what_they_were() {
    let pg = Postgres::start().await;
    pg.psql(&file("tests/sql/fixtures/upstream.sql"));
    let tables = "SELECT string_agg(line, E'\\n' ORDER BY line COLLATE \"C\") FROM (
        SELECT format('column %s.%s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod)) AS line
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace IN ('public'::regnamespace, to_regnamespace('walhook')) AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT format('constraint %s %s', k.conrelid::regclass, k.conname) FROM pg_constraint k WHERE k.connamespace IN ('public'::regnamespace, to_regnamespace('walhook'))
        UNION ALL SELECT format('index %s', i.indexname) FROM pg_indexes i WHERE i.schemaname IN ('public', 'walhook')
        UNION ALL SELECT format('webhook %s', w.webhook_name) FROM rule_webhooks w
        UNION ALL SELECT format('call %s', c.payload) FROM rule_webhook_calls c
        UNION ALL SELECT format('history %s', h.payload) FROM rule_nats_publish_history h
        UNION ALL SELECT format('view %s', v.viewname) FROM pg_views v WHERE v.schemaname IN ('public', 'walhook')
        UNION ALL SELECT format('migration %s', m) FROM schema_migrations m
    ) lines";
    let before = pg.psql(tables);
    setup(&pg, "postgres").await;
    setup(&pg, "postgres").await;
    let done = verb("uninstall", pg.conninfo(), &["--yes", "--slot", "postgres"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(pg.psql(tables), before);
    assert_eq!(pg.psql("SELECT count(*) FROM pg_proc WHERE obj_description(oid, 'pg_proc') LIKE 'walhook:%'"), "0");
    assert_eq!(pg.psql("SELECT rule_webhook_enqueue(1, '{}')"), "2", "their functions of RFC-0005 are there");
}

#[tokio::test]
async fn a_function_that_gets_a_parameter_replaces_the_one_without_it_and_keeps_who_may_call_it() {
    let feed = Feed::start().await;
    let before = "p_webhook int, p_table regclass, p_operations text[] DEFAULT '{insert,update,delete}', \
                  p_subject_template text DEFAULT NULL, p_columns text[] DEFAULT NULL, p_filter jsonb DEFAULT NULL, \
                  p_when_changed text[] DEFAULT NULL, p_include_old boolean DEFAULT false, p_publication text DEFAULT 'walhook'";
    let types = "int, regclass, text[], text, text[], jsonb, text[], boolean, text";
    feed.pg.psql(&format!(
        "CREATE ROLE linker; \
         DROP FUNCTION rule_webhook_link_table(int, regclass, text[], text, text[], jsonb, text[], boolean, text, text, text, text, jsonb, jsonb, jsonb); \
         CREATE FUNCTION rule_webhook_link_table({before}) RETURNS int LANGUAGE sql AS 'SELECT 1'; \
         COMMENT ON FUNCTION rule_webhook_link_table({types}) IS 'walhook: of an earlier version'; \
         GRANT EXECUTE ON FUNCTION rule_webhook_link_table({types}) TO linker; \
         DROP FUNCTION rule_webhook_link_table(text, regclass, text[], text, text[], jsonb, text[], boolean, text, text, text, text, jsonb, jsonb, jsonb); \
         CREATE FUNCTION rule_webhook_link_table(text, regclass, text[], text, text[], jsonb, text[], boolean, text, text, text, text, jsonb DEFAULT NULL) \
             RETURNS int LANGUAGE sql AS 'SELECT 1'; \
         COMMENT ON FUNCTION rule_webhook_link_table(text, regclass, text[], text, text[], jsonb, text[], boolean, text, text, text, text, jsonb) \
             IS 'walhook: of the version before'; \
         DROP TRIGGER walhook_row_check ON rule_webhook_links; DROP TRIGGER walhook_mask_bind ON rule_webhook_links; DROP TRIGGER walhook_older_run ON rule_webhook_links; \
         CREATE TRIGGER walhook_row_check BEFORE INSERT OR UPDATE OF subject_template, filter, columns, when_changed ON rule_webhook_links \
             FOR EACH ROW WHEN (NEW.subject_template IS NOT NULL) EXECUTE FUNCTION walhook.rule_cdc_row_check(); \
         ALTER TABLE rule_webhook_links DROP COLUMN trace_column, DROP COLUMN payload_column, DROP COLUMN message_id_column, \
             DROP COLUMN headers_columns, DROP COLUMN rename, DROP COLUMN mask, DROP COLUMN mask_columns; \
         ALTER TABLE rule_cdc_status DROP COLUMN last_exit_code, DROP COLUMN last_exit_reason, DROP COLUMN last_exit_at"
    ));
    for _ in 0..2 {
        let done = feed.command("setup").finish();
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let functions = "SELECT count(*), bool_and(pronargs = 15), bool_and(has_function_privilege('linker', oid, 'EXECUTE')) \
                         FROM pg_proc WHERE proname = 'rule_webhook_link_table'";
        assert_eq!(feed.pg.psql(functions), "2|t|t");
    }
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY, trace text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders')"));
    feed.pg.psql("SELECT rule_webhook_link_table('orders', 'orders', p_trace_column => 'trace')");
    assert_eq!(feed.pg.psql("SELECT trace_column FROM rule_webhook_links"), "trace");
    // The trigger of the version before knew nothing of the columns that came later.
    let unusable = feed.pg.try_psql("UPDATE rule_webhook_links SET payload_column = 'trace'").unwrap_err();
    assert!(unusable.as_db_error().unwrap().message().contains("only inserts are such messages"), "{unusable:?}");
    feed.pg.psql("UPDATE rule_webhook_links SET trace_column = NULL, mask = '{\"trace\": \"drop\"}'");
    assert_eq!(feed.pg.psql("SELECT mask_columns FROM rule_webhook_links"), "{id,trace}");
}
