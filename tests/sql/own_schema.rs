//! The schema walhook: what is in it, what stays in public, and the way there from databases in which all was in public.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::{
    setup::{connect, conninfo, file, setup, verb},
    support::{Postgres, Walhook},
};

/// The tables that an upgrade moves, each with a row or more.
const ROWS: [(&str, &str); 12] = [
    ("rule_cdc_anchor_settings", "(slot_name, anchor_name, keep, keep_bytes) VALUES ('s', 's_anchor', '1 day', 1000)"),
    ("rule_cdc_anchor_places", "VALUES ('s', now(), '0/1'), ('s', now() + interval '1 s', '0/2')"),
    (
        "rule_cdc_backfill_jobs",
        "(table_schema, table_name, link_ids, key_columns, rows_estimated) VALUES ('public', 't', '{1}', '{id}', 5)",
    ),
    ("rule_cdc_backfill_ranges", "(backfill_id, range_number, after_key) VALUES (1, 1, '[1]'), (1, 2, NULL)"),
    ("rule_cdc_claims", "(source, config_name, stream_name, stream_created_ns) VALUES ('s', 'default', 'W', 1)"),
    ("rule_cdc_rule_sources", "(source, system_identifier, complete_from) VALUES ('s', '1', '0/1')"),
    (
        "rule_cdc_rule_versions",
        "(source, table_name, row_id, since_lsn, row_data) VALUES ('s', 'rule_webhooks', 1, '0/1', '{\"a\": 1}')",
    ),
    ("rule_cdc_runs", "(source, run_id, epoch, beat) VALUES ('s', 'r', 1, 1)"),
    ("rule_nats_notices", "VALUES (1, 'dead_letters', true, 3, now(), now())"),
    ("rule_webhook_limits", "(webhook_id, rate) VALUES (1, 5)"),
    ("rule_webhook_limit_holders", "VALUES (1, 'w', 1, now())"),
    ("rule_webhook_order_holders", "VALUES (1, 'g', 'w', now())"),
];

/// What is in a schema: functions, tables and views, each kind by name.
fn contents(pg: &Postgres, database: &str, schema: &str) -> BTreeSet<String> {
    let query = format!(
        "SELECT DISTINCT CASE WHEN p.prokind = 'a' THEN 'aggregate ' ELSE 'function ' END || p.proname FROM pg_proc p
         WHERE p.pronamespace = '{schema}'::regnamespace
         UNION SELECT format('%s %s', CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE c.relkind::text END, c.relname)
         FROM pg_class c WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind NOT IN ('i', 't')
           -- A column's own sequence goes with its table.
           AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
                                                     AND d.refobjsubid > 0)
         UNION SELECT format('type %s', t.typname) FROM pg_type t
         WHERE t.typnamespace = '{schema}'::regnamespace AND t.typrelid = 0 AND t.typcategory <> 'A'"
    );
    pg.psql_in(database, &query).lines().map(str::to_owned).collect()
}

/// The names that docs/sql.md promises in public.
fn documented() -> BTreeSet<String> {
    let page = file("docs/sql.md");
    let section = page.split("\n## Schemas\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut names = BTreeSet::new();
    for (kind, head) in [("function", "- Functions"), ("table", "- Tables"), ("view", "- Views")] {
        let head = format!("\n{head} in `public`:");
        let list = section.split(&head).nth(1).unwrap().split(".\n").next().unwrap();
        names.extend(list.split('`').skip(1).step_by(2).map(|name| format!("{kind} {name}")));
    }
    assert!(names.len() > 100, "{names:?}");
    names
}

#[tokio::test]
async fn public_holds_what_the_documentation_promises_and_nothing_else_and_the_rest_is_in_our_schema() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        let mut own = BTreeSet::new();
        for (database, before) in [("fresh", ""), ("from_0_1", "walhook_0_1.sql"), ("from_0_2", "walhook_0_2.sql")] {
            pg.psql(&format!("CREATE DATABASE {database}"));
            if !before.is_empty() {
                pg.psql_in(database, &file(&format!("tests/sql/fixtures/{before}")));
            }
            setup(&pg, database).await;
            let first = contents(&pg, database, "public");
            // Not one name has gone that was there, until the next setup.
            assert!(first.is_superset(&documented()), "PostgreSQL {version}, {database}");
            setup(&pg, database).await;
            assert_eq!(contents(&pg, database, "public"), documented(), "PostgreSQL {version}, {database}");
            assert_eq!(first == documented(), before.is_empty(), "PostgreSQL {version}, {database}");
            let there = contents(&pg, database, "walhook");
            // And rule_cdc_shard_names and rule_cdc_link_columns, which have never been in public.
            assert_eq!(there.iter().filter(|name| name.starts_with("table ")).count(), ROWS.len() + 2, "{there:?}");
            assert!(there.is_disjoint(&documented()), "PostgreSQL {version}, {database}");
            if own.is_empty() {
                own.clone_from(&there);
            }
            assert_eq!(there, own, "PostgreSQL {version}, {database}");
            // No text names one where it is no longer, and nobody else may look into the schema.
            let names = own.iter().map(|name| name.split_once(' ').unwrap().1).collect::<Vec<_>>().join("|");
            let stale = format!(
                "SELECT string_agg(p.oid::regprocedure::text, ' ') FROM pg_proc p
                 WHERE p.pronamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND p.prosrc ~ '\\mpublic\\.({names})\\M'"
            );
            assert_eq!(pg.psql_in(database, &stale), "", "PostgreSQL {version}, {database}");
            let users = "SELECT string_agg(CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END || ' ' || a.privilege_type, ', '
                                           ORDER BY a.grantee::regrole::text)
                         FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'walhook' AND a.grantee <> n.nspowner";
            assert_eq!(
                pg.psql_in(database, users),
                "walhook_operator USAGE, walhook_streamer USAGE, walhook_worker USAGE",
                "PostgreSQL {version}, {database}"
            );
            // None of it is published, whatever is linked; not by whole schemas either.
            pg.psql_in(database, "CREATE TABLE theirs (id int PRIMARY KEY)");
            pg.psql_in(
                database,
                "SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_enable_nats(1)",
            );
            pg.psql_in(database, "SELECT count(*) FROM rule_webhook_link_schema('hook', 'public')");
            let refused = pg.try_psql_in(database, "SELECT * FROM rule_webhook_link_schema('hook', 'walhook')");
            let refused = refused.unwrap_err().as_db_error().unwrap().to_string();
            assert!(refused.contains("it is walhook's own schema"), "{refused}");
            let published = "SELECT count(*), count(*) FILTER (WHERE tablename = 'theirs') FROM pg_publication_tables
                             WHERE schemaname = 'walhook' OR tablename = 'theirs'";
            assert_eq!(pg.psql_in(database, published), "1|1", "PostgreSQL {version}, {database}");
        }
    }
}

#[tokio::test]
async fn an_upgrade_moves_every_row_and_right_and_the_old_names_work_until_the_setup_after_it() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        pg.psql(&file("tests/sql/fixtures/walhook_0_2.sql"));
        pg.psql(
            "CREATE ROLE reporter LOGIN; CREATE TABLE t (id int PRIMARY KEY);
             SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_enable_nats(1);
             SELECT rule_cdc_publication_create();
             SELECT rule_webhook_link_table('hook', 't');
             CREATE SCHEMA shop; SELECT rule_webhook_link_schema('hook', 'shop'); SELECT rule_cdc_schema_trigger();
             GRANT SELECT ON rule_cdc_backfill_jobs TO reporter; GRANT SELECT (source) ON rule_cdc_runs TO reporter;
             GRANT EXECUTE ON FUNCTION rule_cdc_partitions TO reporter; GRANT SELECT ON t TO reporter",
        );
        for (table, values) in ROWS {
            pg.psql(&format!("INSERT INTO {table} {values}"));
        }
        let read = |schema: &str| -> Vec<String> {
            let rows =
                |(table, _): &(&str, &str)| pg.psql(&format!("SELECT t FROM {schema}.{table} t ORDER BY t::text"));
            ROWS.iter().map(rows).collect()
        };
        let kept = "SELECT format('%s %s %s', c.relname, k.conname, k.contype) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
                    WHERE c.relname ~ '^rule_' UNION ALL SELECT format('index %s', indexname) FROM pg_indexes WHERE indexname ~ 'rule_|walhook'
                    UNION ALL SELECT format('%s %s', c.relname, t.tgname) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                    WHERE NOT t.tgisinternal ORDER BY 1";
        let (before, kept_before) = (read("public"), pg.psql(kept));
        // Sessions of before: one of an application, in a transaction, and one of the streamer with a statement that it has prepared.
        let application = pg.client().await;
        application.batch_execute("BEGIN; SELECT rule_webhook_publish_nats(1, '{}')").await.unwrap();
        let streamer = pg.client().await;
        let claim = streamer
            .prepare(
                "INSERT INTO public.rule_cdc_claims (source, config_name, stream_name, stream_created_ns) VALUES ($1, 'default', 'W', 2)
                 ON CONFLICT (source, config_name, stream_name) DO UPDATE SET stream_created_ns = excluded.stream_created_ns
                 WHERE rule_cdc_claims.stream_created_ns <> excluded.stream_created_ns RETURNING stream_created_ns",
            )
            .await
            .unwrap();
        assert_eq!(verb("run", pg.conninfo(), &[]).await.code, Some(2), "the database is the older one");

        let mut upgrade = Walhook::command("setup").env("DATABASE_URL", pg.conninfo()).start();
        // All steps of the version before; the next ones wait for the application's transaction.
        upgrade.logged("024_rule_versions.sql").await;
        assert_eq!(read("walhook"), before, "PostgreSQL {version}");
        assert_eq!(pg.psql(kept), kept_before, "PostgreSQL {version}");
        application.batch_execute("SELECT rule_webhook_publish_nats(1, '{}'); COMMIT").await.unwrap();
        assert_eq!(upgrade.wait(crate::support::DEADLINE), 0, "PostgreSQL {version}: {}", upgrade.log());
        // By the old names rows are read and written, and functions are called, with the rights of before.
        assert_eq!(read("public"), before, "PostgreSQL {version}");
        let claimed = streamer.query_one(&claim, &[&"s"]).await.unwrap();
        assert_eq!(claimed.get::<_, i64>(0), 2, "PostgreSQL {version}");
        assert_eq!(pg.psql("SELECT stream_created_ns FROM walhook.rule_cdc_claims"), "2");
        let reporter = connect(&pg, "reporter", "postgres").await;
        for schema in ["public", "walhook"] {
            let all = format!(
                "SELECT * FROM {schema}.rule_cdc_backfill_jobs; SELECT source FROM {schema}.rule_cdc_runs;
                 SELECT {schema}.rule_cdc_partitions('t')"
            );
            reporter.batch_execute(&all).await.unwrap();
            let more = reporter.batch_execute(&format!("SELECT beat FROM {schema}.rule_cdc_runs")).await;
            assert_eq!(more.unwrap_err().code().unwrap().code(), "42501", "{schema}");
        }
        let called = connect(&pg, "walhook_streamer", "postgres").await;
        called
            .batch_execute(
                "SELECT public.rule_cdc_rules_write('s', '0/2', false, '{rule_webhooks}', '{2}', ARRAY['{}'], '{false}');
                 DELETE FROM public.rule_cdc_runs; UPDATE public.rule_cdc_backfill_jobs SET status = 'done';
                 SELECT * FROM public.rule_cdc_check()",
            )
            .await
            .unwrap();
        assert_eq!(pg.psql("SELECT count(*) FROM walhook.rule_cdc_rule_versions"), "2");
        // New rows have the numbers behind those of before, and go with what they belong to.
        pg.psql(
            "DELETE FROM rule_webhook_links; SELECT rule_webhook_link_table('hook', 't'); INSERT INTO t VALUES (1)",
        );
        pg.psql("INSERT INTO walhook.rule_cdc_backfill_jobs (table_schema, table_name, link_ids, key_columns, rows_estimated) VALUES ('a', 'b', '{}', '{}', 1)");
        assert_eq!(pg.psql("SELECT string_agg(backfill_id::text, ' ') FROM rule_cdc_backfills"), "1 2");
        pg.psql("DELETE FROM walhook.rule_cdc_backfill_jobs; SELECT rule_webhook_delete(1)");
        let left = "SELECT (SELECT count(*) FROM walhook.rule_cdc_backfill_ranges) + (SELECT count(*) FROM walhook.rule_webhook_limits)";
        assert_eq!(pg.psql(left), "0", "PostgreSQL {version}");

        // A table of a linked schema joins by the event trigger of before, whose function has moved.
        assert_eq!(pg.psql("SELECT rule_cdc_schema_trigger()"), "f");
        pg.psql("SELECT rule_webhook_register('second', 'https://example.com'), rule_webhook_enable_nats(2)");
        pg.psql("SELECT rule_webhook_link_schema('second', 'shop'); CREATE TABLE shop.orders (id int PRIMARY KEY)");
        assert_eq!(pg.psql("SELECT table_name FROM rule_webhook_links WHERE webhook_id = 2"), "orders");

        // The next setup removes them, but for what somebody uses.
        pg.psql("CREATE VIEW mine AS SELECT run_id FROM public.rule_cdc_runs");
        let names = "SELECT string_agg(c.relname, ' ') FROM pg_class c
                     WHERE c.relnamespace = 'public'::regnamespace AND obj_description(c.oid, 'pg_class') LIKE 'walhook: the old name%'";
        assert_eq!(pg.psql(names).split(' ').count(), ROWS.len());
        let done = verb("setup", pg.conninfo(), &[]).await;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        assert!(done.stderr.contains("the view public.rule_cdc_runs stays"), "{}", done.stderr);
        assert_eq!(pg.psql(names), "rule_cdc_runs", "PostgreSQL {version}");
        pg.psql("DROP VIEW mine; DROP VIEW public.rule_cdc_runs");
        assert_eq!(
            contents(&pg, "postgres", "public")
                .iter()
                .filter(|name| !name.ends_with(" t"))
                .cloned()
                .collect::<BTreeSet<_>>(),
            documented()
        );
    }
}

#[tokio::test]
async fn uninstall_right_after_an_upgrade_leaves_nothing_in_either_schema() {
    let pg = Postgres::start().await;
    pg.psql(&file("tests/sql/fixtures/walhook_0_2.sql"));
    setup(&pg, "postgres").await;
    let done = verb("uninstall", pg.conninfo(), &["--yes", "--slot", "postgres"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(contents(&pg, "postgres", "public"), BTreeSet::new());
    assert_eq!(pg.psql("SELECT to_regnamespace('walhook') IS NULL"), "t");
    // What depends on an object in it stops it.
    setup(&pg, "postgres").await;
    pg.psql("CREATE VIEW mine AS SELECT run_id FROM walhook.rule_cdc_runs");
    let done = verb("uninstall", pg.conninfo(), &["--yes", "--slot", "postgres"]).await;
    assert!(
        done.code != Some(0) && done.stderr.contains("view public.mine depends on table walhook.rule_cdc_runs"),
        "{}",
        done.stderr
    );
    assert_eq!(pg.psql("SELECT count(*) FROM rule_nats_config"), "1");
}

#[tokio::test]
async fn a_schema_of_that_name_that_walhook_has_not_made_is_refused_with_a_remedy_that_works() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        pg.psql("CREATE ROLE mallory LOGIN");
        for (database, planted) in [
            ("empty", "CREATE SCHEMA walhook"),
            (
                "used",
                "CREATE SCHEMA walhook; CREATE TABLE walhook.orders (id int); INSERT INTO walhook.orders VALUES (7)",
            ),
        ] {
            for from in ["", "walhook_0_1.sql", "walhook_0_2.sql"] {
                let database = format!("{database}_{}", from.trim_end_matches(".sql"));
                pg.psql(&format!("CREATE DATABASE {database}"));
                if !from.is_empty() {
                    pg.psql_in(&database, &file(&format!("tests/sql/fixtures/{from}")));
                }
                pg.psql_in(&database, planted);
                let before = [contents(&pg, &database, "public"), contents(&pg, &database, "walhook")];
                let done = verb("setup", conninfo(&pg, "postgres", &database), &[]).await;
                assert_eq!(done.code, Some(2), "{}", done.stderr);
                assert!(
                    done.stderr.contains("a schema named walhook that walhook has not made, of role postgres"),
                    "{}",
                    done.stderr
                );
                assert_eq!([contents(&pg, &database, "public"), contents(&pg, &database, "walhook")], before);
                let remedy = done.stderr.split("give it another name, also where it is used: ").nth(1).unwrap();
                pg.psql_in(&database, remedy.split(';').next().unwrap());
                setup(&pg, &database).await;
                let theirs = contents(&pg, &database, "walhook_app");
                assert_eq!(theirs.iter().collect::<Vec<_>>(), before[1].iter().collect::<Vec<_>>());
            }
        }
        // One that looks like ours, of a role that nobody trusts, and an object of such a role in ours.
        for (database, planted, kind) in [
            (
                "mimic",
                "CREATE SCHEMA walhook; COMMENT ON SCHEMA walhook IS 'walhook: mine'",
                "schema walhook of role mallory",
            ),
            (
                "mimic_with_table",
                "CREATE SCHEMA walhook; CREATE TABLE walhook.rule_cdc_rule_versions (source text)",
                "schema walhook of role mallory",
            ),
            (
                "ours",
                "CREATE FUNCTION walhook.helper() RETURNS text LANGUAGE sql AS 'SELECT NULL::text'",
                "routine walhook.helper() of role mallory",
            ),
        ] {
            pg.psql(&format!("CREATE DATABASE {database}; "));
            pg.psql(&format!("GRANT CREATE ON DATABASE {database} TO mallory"));
            if database == "ours" {
                setup(&pg, database).await;
                pg.psql_in(database, "GRANT ALL ON SCHEMA walhook TO mallory");
            }
            connect(&pg, "mallory", database).await.batch_execute(planted).await.unwrap();
            let done = verb("setup", conninfo(&pg, "postgres", database), &[]).await;
            assert_eq!(done.code, Some(4), "{database}: {}", done.stderr);
            assert!(
                done.stderr.contains(kind) && done.stderr.contains("OWNER TO postgres"),
                "{database}: {}",
                done.stderr
            );
            assert_eq!(
                pg.psql_in(database, "SELECT to_regclass('rule_webhook_calls') IS NULL"),
                if database == "ours" { "f" } else { "t" }
            );
        }
    }
}

#[tokio::test]
async fn an_owner_who_is_no_superuser_upgrades_and_a_template_gives_databases_with_both_schemas() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        // The roles are there, as those of another database.
        pg.psql(&file("tests/sql/fixtures/walhook_0_2.sql"));
        pg.psql("CREATE ROLE owner LOGIN REPLICATION");
        pg.psql("CREATE DATABASE theirs OWNER owner");
        let owner = connect(&pg, "owner", "theirs").await;
        owner.batch_execute(&file("tests/sql/fixtures/walhook_0_2.sql")).await.unwrap();
        drop(owner);
        for _ in 0..2 {
            let done = verb("setup", conninfo(&pg, "owner", "theirs"), &["--slot", "theirs"]).await;
            assert_eq!(done.code, Some(0), "PostgreSQL {version}: {}", done.stderr);
        }
        assert_eq!(contents(&pg, "theirs", "public"), documented(), "PostgreSQL {version}");
        assert_eq!(
            pg.psql_in("theirs", "SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'walhook'"),
            "owner"
        );
        pg.psql("CREATE DATABASE copied TEMPLATE theirs OWNER owner");
        let done = verb("setup", conninfo(&pg, "owner", "copied"), &["--slot", "copied"]).await;
        assert_eq!(done.code, Some(0), "PostgreSQL {version}: {}", done.stderr);
        for schema in ["public", "walhook"] {
            assert_eq!(contents(&pg, "copied", schema), contents(&pg, "theirs", schema), "PostgreSQL {version}");
        }
    }
}
