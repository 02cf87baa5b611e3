-- 031: what an older `walhook run` would publish otherwise than it is meant, is not switched on while one streams.
--
-- Comes in: 008, whose status has a row of each `walhook run`; 022 and 026, whose masks and seals an older one does not know. Goes out:
-- rule_cdc_status.schema_version, by which a run says what it knows, and triggers that ask for it.
-- Always holds: while a run streams that does not know masks or sealed payloads, none can be set, for it would publish the rows as they
-- are. Running this file twice changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '031') THEN
    RETURN;
END IF;
ALTER TABLE public.rule_cdc_status ADD COLUMN IF NOT EXISTS schema_version TEXT;
COMMENT ON COLUMN public.rule_cdc_status.schema_version IS
    'The newest step of the schema (rule_cdc_migrations.version) that this walhook knows; NULL: it is of a version that does not say';
END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

CREATE OR REPLACE FUNCTION walhook.rule_cdc_older_run(p_step TEXT)
RETURNS TEXT LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('walhook %s for source %s on host %s', walhook.rule_cdc_sayable(coalesce(s.version, '?')), walhook.rule_cdc_quoted(s.source),
                  walhook.rule_cdc_quoted(coalesce(s.host, '?')))
    FROM public.rule_cdc_status s
    WHERE coalesce(s.schema_version, '') < p_step COLLATE "C"
      AND s.heartbeat_at > clock_timestamp() - make_interval(secs => 3 * s.heartbeat_seconds)
    ORDER BY s.source LIMIT 1
$$;
COMMENT ON FUNCTION walhook.rule_cdc_older_run IS
    'walhook: a `walhook run` that streams and does not know this step of the schema; NULL where there is none';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_older_run_check()
RETURNS TRIGGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_column CONSTANT TEXT := CASE TG_TABLE_NAME WHEN 'rule_webhooks' THEN 'seal_key' ELSE 'mask' END;
    v_older CONSTANT TEXT := walhook.rule_cdc_older_run(CASE v_column WHEN 'seal_key' THEN '026' ELSE '022' END);
BEGIN
    IF v_older IS NOT NULL THEN
        RAISE EXCEPTION 'cannot set %.%: % is too old and would publish the rows without it', walhook.rule_cdc_sayable(TG_TABLE_NAME), v_column,
            walhook.rule_cdc_sayable(v_older)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Stop it and start the version that has set up this database. Then set it again.';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_older_run_check IS
    'walhook: trigger of rule_webhooks and rule_webhook_links: refuses what an older walhook that streams would not apply';

CALL walhook.rule_cdc_functions_close();

CALL walhook.rule_cdc_trigger(
    'public.rule_webhook_links', 'walhook_older_run', 'BEFORE INSERT OR UPDATE OF mask',
    'NEW.mask IS NOT NULL',
    'walhook.rule_cdc_older_run_check()', 'refuses a mask that an older walhook would not apply');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_older_run', 'BEFORE INSERT OR UPDATE OF seal_key',
    'NEW.seal_key IS NOT NULL',
    'walhook.rule_cdc_older_run_check()', 'refuses a seal that an older walhook would not apply');

CALL walhook.rule_cdc_grant_functions('walhook_operator', '^rule_cdc_older_run(_check)?$');

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('031', 'walhook: no masks, seals or events of columns while an older walhook streams')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
