-- Removes what walhook made in this database, but for slots, which no transaction can hold.
--
-- Comes in: a database that walhook setup has set up, and nobody who streams. Goes out: the database without publications, functions,
-- views, tables and roles of walhook. Always holds: tables and views of RFC-0005 and RFC-0007 that were there before setup stay, with
-- their rows and without what setup added to them; what somebody else's object depends on stops it before anything is gone.

SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

DO $uninstall$
DECLARE
    v_found JSONB := '{}';
    v_tables TEXT;
    v_statement TEXT;
    v_statements TEXT[];
    o RECORD;
BEGIN
    IF to_regclass('public.rule_cdc_migrations') IS NOT NULL THEN
        SELECT coalesce(m.found, '{}') INTO v_found FROM public.rule_cdc_migrations m WHERE m.version = 'found';
        v_found := coalesce(v_found, '{}');
    END IF;

    -- First of all: it looks at each table that is dropped below.
    FOR o IN SELECT e.evtname FROM pg_event_trigger e WHERE obj_description(e.oid, 'pg_event_trigger') LIKE 'walhook:%' LOOP
        EXECUTE format('DROP EVENT TRIGGER %I', o.evtname);
    END LOOP;
    FOR o IN SELECT p.pubname FROM pg_publication p WHERE obj_description(p.oid, 'pg_publication') LIKE 'walhook:%' LOOP
        EXECUTE format('DROP PUBLICATION %I', o.pubname);
    END LOOP;
    -- Also on tables that stay.
    FOR o IN
        SELECT t.tgname, t.tgrelid::regclass AS relation FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE NOT t.tgisinternal AND p.pronamespace IN ('public'::regnamespace, to_regnamespace('walhook')) AND obj_description(p.oid, 'pg_proc') LIKE 'walhook:%'
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', o.tgname, o.relation);
    END LOOP;

    SELECT string_agg(format('public.%I', c.relname), ', ') INTO v_tables FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'v' AND NOT v_found ? c.relname
      AND (c.relname ~ '^rule_cdc_'
           -- The old names, under which an upgrade leaves views.
           OR c.relname ~ '^rule_(webhook|nats)_' AND obj_description(c.oid, 'pg_class') LIKE 'walhook:%'
           OR c.relname IN ('webhook_status_summary', 'webhook_recent_failures', 'webhook_performance_stats', 'nats_publish_summary',
                            'nats_recent_failures', 'nats_performance_stats'));
    IF v_tables IS NOT NULL THEN
        EXECUTE 'DROP VIEW ' || v_tables;
    END IF;
    SELECT string_agg(format('%s.%I', c.relnamespace::regnamespace, c.relname), ', ') INTO v_tables FROM pg_class c
    WHERE c.relkind = 'r' AND c.relname ~ '^rule_(webhook|nats|cdc)'
      AND (c.relnamespace = 'public'::regnamespace AND NOT v_found ? c.relname OR c.relnamespace = to_regnamespace('walhook'));
    IF v_tables IS NOT NULL THEN
        EXECUTE 'DROP TABLE ' || v_tables;
    END IF;

    -- What setup has added to tables that were there. All statements first: a query that is open would meet what is gone.
    v_statements := ARRAY(
        SELECT format('ALTER TABLE public.%I DROP CONSTRAINT IF EXISTS %I', t.relname, k.conname)
        FROM pg_class t JOIN pg_constraint k ON k.conrelid = t.oid
        WHERE t.relnamespace = 'public'::regnamespace AND t.relkind = 'r' AND v_found ? t.relname AND k.contype IN ('c', 'f', 'u')
          AND NOT v_found -> t.relname -> 'constraints' ? k.conname::text
        UNION ALL
        SELECT format('DROP INDEX IF EXISTS public.%I', c.relname)
        FROM pg_class t JOIN pg_index i ON i.indrelid = t.oid JOIN pg_class c ON c.oid = i.indexrelid
        WHERE t.relnamespace = 'public'::regnamespace AND t.relkind = 'r' AND v_found ? t.relname
          AND NOT v_found -> t.relname -> 'indexes' ? c.relname::text
          AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)
        UNION ALL
        SELECT format('ALTER TABLE public.%I DROP COLUMN IF EXISTS %I', t.relname, a.attname)
        FROM pg_class t JOIN pg_attribute a ON a.attrelid = t.oid
        WHERE t.relnamespace = 'public'::regnamespace AND t.relkind = 'r' AND v_found ? t.relname AND a.attnum > 0 AND NOT a.attisdropped
          AND NOT v_found -> t.relname -> 'columns' ? a.attname::text);
    FOREACH v_statement IN ARRAY v_statements LOOP
        BEGIN
            EXECUTE v_statement;
        EXCEPTION WHEN dependent_objects_still_exist THEN
            RAISE NOTICE 'left undone: %: %', v_statement, SQLERRM;
        END;
    END LOOP;

    v_statements := ARRAY(
        SELECT format('DROP ROUTINE %s', p.oid::regprocedure) FROM pg_proc p
        WHERE p.pronamespace IN ('public'::regnamespace, to_regnamespace('walhook')) AND p.proname ~ '^rule_(webhook|nats|cdc)'
          AND obj_description(p.oid, 'pg_proc') LIKE 'walhook:%');
    FOREACH v_statement IN ARRAY v_statements LOOP
        EXECUTE v_statement;
    END LOOP;
    -- What is left in it is somebody else's.
    IF obj_description(to_regnamespace('walhook'), 'pg_namespace') LIKE 'walhook:%' THEN
        DROP SCHEMA walhook;
    END IF;

    FOR o IN
        SELECT r.oid, r.rolname,
               EXISTS (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype = 'o') AS owns
        FROM pg_roles r
        WHERE r.rolname IN ('walhook_streamer', 'walhook_application', 'walhook_operator', 'walhook_worker')
          AND shobj_description(r.oid, 'pg_authid') LIKE 'walhook:%'
    LOOP
        IF o.owns THEN
            RAISE NOTICE 'the role % stays: it owns objects', quote_ident(o.rolname)
                USING HINT = format('REASSIGN OWNED BY %1$I TO %2$I; in each database where it does, then DROP ROLE %1$I;', o.rolname, current_user);
            CONTINUE;
        END IF;
        BEGIN
            EXECUTE format('DROP OWNED BY %I', o.rolname); -- what was granted to it here
            EXECUTE format('DROP ROLE %I', o.rolname);
        EXCEPTION
            WHEN dependent_objects_still_exist THEN
                RAISE NOTICE 'the role % stays: another database uses it', quote_ident(o.rolname)
                    USING HINT = 'walhook uninstall there removes it with the last.';
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'the role % stays: % may not drop it', quote_ident(o.rolname), current_user
                    USING HINT = format('Let a superuser run: DROP OWNED BY %1$I; DROP ROLE %1$I;', o.rolname);
        END;
    END LOOP;
END
$uninstall$;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
