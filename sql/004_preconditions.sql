-- 004: what has to be so before anything is changed.
--
-- Comes in: any database. Goes out: nothing; it makes no object. `walhook setup` runs it first, and once more at its end.
-- Always holds: it refuses a server that is too old, and objects with names of walhook that belong to a role that the one who runs this
-- has no reason to trust. Whoever may create objects in schema public could otherwise make a function, a table or a trigger of such a name
-- first, and it would run with the rights of whoever sets walhook up (as CVE-2022-2625 was for extensions). Trusted are the role that runs
-- this, superusers, and the owner of the database. It also refuses a schema named walhook that walhook has not made: walhook's internal
-- objects are in a schema of that name.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

DO $preconditions$
DECLARE
    v_found TEXT;
    v_remedies TEXT;
    v_count BIGINT;
BEGIN
    IF current_setting('server_version_num')::integer < 140000 THEN
        RAISE EXCEPTION 'walhook needs PostgreSQL 14 or newer; this server is %', current_setting('server_version')
            USING ERRCODE = 'feature_not_supported';
    END IF;

    SELECT format('a schema named walhook that walhook has not made, of role %I, with %s tables and views and %s functions',
                  pg_get_userbyid(n.nspowner), (SELECT count(*) FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')),
                  (SELECT count(*) FROM pg_proc p WHERE p.pronamespace = n.oid))
    INTO v_found
    FROM pg_namespace n
    WHERE n.nspname = 'walhook' AND coalesce(obj_description(n.oid, 'pg_namespace'), '') NOT LIKE 'walhook:%'
      -- A dump without comments.
      AND to_regclass('walhook.rule_cdc_rule_versions') IS NULL;
    IF FOUND THEN
        RAISE EXCEPTION 'walhook cannot be set up: this database has %', v_found
            USING ERRCODE = 'duplicate_schema',
            HINT = 'walhook keeps its internal objects in a schema of that name. If nobody needs it: DROP SCHEMA walhook CASCADE; if somebody '
                   'does, give it another name, also where it is used: ALTER SCHEMA walhook RENAME TO walhook_app; or set walhook up in a '
                   'database without it.';
    END IF;

    WITH trusted AS (
        SELECT r.oid FROM pg_roles r
        WHERE r.rolsuper OR r.rolname = current_user
           OR r.oid = (SELECT d.datdba FROM pg_database d WHERE d.datname = current_database())
    ), relations AS (
        SELECT c.oid, c.relname, c.relowner, format('%s.%I', c.relnamespace::regnamespace, c.relname) AS name,
               CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE'
                              WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END AS kind
        FROM pg_class c
        WHERE c.relnamespace IN ('public'::regnamespace, to_regnamespace('walhook')) AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c', 'S')
          -- A column's own sequence goes with its table.
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
                                                    AND d.refobjsubid > 0)
          AND (c.relnamespace = to_regnamespace('walhook') OR c.relname ~ '^rule_(webhook|nats|cdc)'
               OR c.relname IN ('webhook_status_summary', 'webhook_recent_failures', 'webhook_performance_stats', 'nats_publish_summary',
                                'nats_recent_failures', 'nats_performance_stats'))
    ), found (kind, name, owner) AS (
        SELECT r.kind, r.name, r.relowner FROM relations r
        UNION ALL
        SELECT 'ROUTINE', p.oid::regprocedure::text, p.proowner FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname ~ '^rule_(webhook|nats|cdc)'
           OR p.pronamespace = to_regnamespace('walhook')
        UNION ALL
        SELECT CASE t.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, format('%s.%I', t.typnamespace::regnamespace, t.typname), t.typowner
        FROM pg_type t
        WHERE (t.typnamespace = 'public'::regnamespace AND t.typname ~ '^rule_(webhook|nats|cdc)' OR t.typnamespace = to_regnamespace('walhook'))
          AND t.typrelid = 0 AND t.typcategory <> 'A'
        UNION ALL
        -- The trigger's function runs with the rights of whoever writes into the table.
        SELECT 'TRIGGER', format('%I ON %s', t.tgname, r.name), p.proowner
        FROM pg_trigger t JOIN relations r ON r.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE NOT t.tgisinternal
        UNION ALL
        SELECT 'SCHEMA', quote_ident(n.nspname), n.nspowner FROM pg_namespace n WHERE n.nspname IN ('walhook_staging', 'walhook')
        UNION ALL
        SELECT 'PUBLICATION', quote_ident(p.pubname), p.pubowner FROM pg_publication p
        WHERE p.pubname IN ('walhook_inserts', 'walhook_changes')
    )
    SELECT count(*),
           string_agg(format('%s %s of role %I', lower(f.kind), f.name, pg_get_userbyid(f.owner)), ', ' ORDER BY f.kind, f.name)
               FILTER (WHERE f.number <= 5),
           string_agg(CASE WHEN f.kind = 'TRIGGER' OR f.name = 'walhook_staging' THEN format('DROP %s %s;', f.kind, f.name)
                           ELSE format('DROP %1$s %2$s; or ALTER %1$s %2$s OWNER TO %3$I;', f.kind, f.name, current_user) END,
                      ' ' ORDER BY f.kind, f.name) FILTER (WHERE f.number <= 5)
    INTO v_count, v_found, v_remedies
    FROM (SELECT u.*, row_number() OVER (ORDER BY u.kind, u.name) AS number
          FROM found u WHERE u.owner NOT IN (SELECT t.oid FROM trusted t)) f;
    IF v_count > 0 THEN
        RAISE EXCEPTION 'walhook cannot be set up: other roles own % with a name of walhook: %',
            CASE v_count WHEN 1 THEN 'an object' ELSE v_count || ' objects' END,
            v_found || CASE WHEN v_count > 5 THEN format(', and %s more', v_count - 5) ELSE '' END
            USING ERRCODE = 'insufficient_privilege',
            HINT = 'Its owner could run code with your rights. Look what it is. If nobody needs it, drop it; if you trust it, or an earlier '
                   'walhook setup has made it, take it over: ' || v_remedies;
    END IF;
END
$preconditions$;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
