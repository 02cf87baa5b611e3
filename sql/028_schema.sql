-- 028: internal objects are in schema walhook.
--
-- Comes in: all the files before; 005 has made the schema and moved into it what an older walhook had made in public. Goes out: nothing of
-- ours in public but what users call and read, once the setup before this one was complete as well; until then the old names stay, as views
-- and copies of functions, for functions and for a walhook that still use them.
-- Always holds: what somebody else's object depends on stays, and a NOTICE names it. Running this file twice changes nothing; no BEGIN,
-- COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

DO $before$
DECLARE
    o RECORD;
BEGIN
    IF NOT EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '028') THEN
        RETURN;
    END IF;
    FOR o IN
        SELECT format('VIEW public.%I', v.relname) AS name
        FROM pg_class v
        WHERE v.relnamespace = 'public'::regnamespace AND v.relkind = 'v' AND obj_description(v.oid, 'pg_class') LIKE 'walhook:%'
          AND EXISTS (SELECT FROM pg_class t WHERE t.relnamespace = 'walhook'::regnamespace AND t.relkind = 'r' AND t.relname = v.relname)
        UNION ALL
        SELECT format('FUNCTION %s', p.oid::regprocedure)
        FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.prokind = 'f' AND obj_description(p.oid, 'pg_proc') LIKE 'walhook:%'
          AND EXISTS (SELECT FROM pg_proc i WHERE i.pronamespace = 'walhook'::regnamespace AND i.proname = p.proname)
    LOOP
        BEGIN
            EXECUTE 'DROP ' || o.name;
        EXCEPTION WHEN dependent_objects_still_exist THEN
            RAISE NOTICE 'the % stays: %', lower(o.name), SQLERRM
                USING HINT = walhook.rule_cdc_sayable(format('It is an internal object of an older walhook, and is no longer updated. Remove what '
                                    'depends on it, then run walhook setup again, or: DROP %s;', o.name));
        END;
    END LOOP;
END
$before$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('028', 'walhook: internal objects are in schema walhook')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
