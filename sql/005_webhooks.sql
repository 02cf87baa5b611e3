-- 005: the webhook base of RFC-0005, for databases that do not have it.
--
-- Comes in: any database of PostgreSQL 14 or newer. Goes out: the tables, views and functions of RFC-0005 in schema public; the schema
-- walhook, and in it the internal objects that an older walhook made in public.
-- Always holds: what is there already stays as it is, table by table, view by view, function by function. Only functions
-- that an earlier run of this file made (their comment begins with "walhook:") are replaced by newer ones.
-- Running it twice changes nothing. It has no BEGIN, no COMMIT and no psql command: `psql -1 -f` and any driver load it.
--
-- All functions pin search_path to pg_catalog, pg_temp and name the schema of everything else, so that nobody who may
-- create objects in public can put his own in the way.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Internal objects are in a schema of their own since version 028. Where they are in public still (walhook 0.1 and 0.2), they move, with
-- their rows, rights and dependents. Under its old name each table leaves a view and each function a copy, which calls the moved ones: a
-- function of before that runs just now, the functions of before that later steps replace, and a walhook of that version that still
-- streams go on by the old names. 028 removes them, in the first setup after the one that was complete.
DO $internals$
DECLARE
    v_tables CONSTANT TEXT[] := ARRAY[
        'rule_cdc_anchor_places', 'rule_cdc_anchor_settings', 'rule_cdc_backfill_jobs', 'rule_cdc_backfill_ranges', 'rule_cdc_claims',
        'rule_cdc_rule_sources', 'rule_cdc_rule_versions', 'rule_cdc_runs', 'rule_nats_notices', 'rule_webhook_limit_holders',
        'rule_webhook_limits', 'rule_webhook_order_holders'];
    v_functions CONSTANT TEXT[] := ARRAY[
        'rule_cdc_backfill_bound', 'rule_cdc_backfill_check', 'rule_cdc_backfill_foreign_code', 'rule_cdc_backfill_key',
        'rule_cdc_backfill_partitions', 'rule_cdc_backfill_routes', 'rule_cdc_check_functions', 'rule_cdc_check_links',
        'rule_cdc_check_publications', 'rule_cdc_check_rows', 'rule_cdc_check_schemas', 'rule_cdc_check_sessions', 'rule_cdc_check_slot',
        'rule_cdc_emit_key_make', 'rule_cdc_functions_close', 'rule_cdc_functions_open', 'rule_cdc_generated_identity', 'rule_cdc_grant',
        'rule_cdc_grant_functions', 'rule_cdc_is_traceparent', 'rule_cdc_link_problems', 'rule_cdc_link_subjects', 'rule_cdc_mask_bind',
        'rule_cdc_mask_columns', 'rule_cdc_mask_problems', 'rule_cdc_mask_shape', 'rule_cdc_message_problems', 'rule_cdc_message_shape',
        'rule_cdc_partitions', 'rule_cdc_publication_problem', 'rule_cdc_quoted', 'rule_cdc_replay_point', 'rule_cdc_replica_identity',
        'rule_cdc_row_check', 'rule_cdc_row_named', 'rule_cdc_row_problems', 'rule_cdc_row_suspect', 'rule_cdc_rules_now',
        'rule_cdc_rules_prune', 'rule_cdc_rules_write', 'rule_cdc_sayable', 'rule_cdc_schema_event', 'rule_cdc_schema_exclude',
        'rule_cdc_schema_follow', 'rule_cdc_schema_link_drop', 'rule_cdc_schema_link_put', 'rule_cdc_schema_right',
        'rule_cdc_schema_unlink_tables', 'rule_cdc_schema_wanted', 'rule_cdc_table_problem', 'rule_cdc_template_problem', 'rule_cdc_view',
        'rule_cdc_webhook_id', 'rule_nats_history_begin', 'rule_nats_history_insert', 'rule_nats_history_json', 'rule_nats_history_make',
        'rule_nats_history_missing', 'rule_nats_history_open', 'rule_nats_history_rows', 'rule_nats_history_target',
        'rule_nats_history_webhook_deleted', 'rule_nats_history_write', 'rule_nats_history_written', 'rule_nats_notice_check',
        'rule_nats_notice_problem', 'rule_nats_notices_take', 'rule_nats_pattern_problem', 'rule_nats_report', 'rule_nats_servers',
        'rule_nats_stream_conflicts', 'rule_nats_stream_for', 'rule_nats_stream_name_problem', 'rule_nats_subject_covers',
        'rule_nats_subjects_overlap', 'rule_nats_take_hint', 'rule_nats_url_problem', 'rule_webhook_certificate_set',
        'rule_webhook_delivery_check', 'rule_webhook_limit_calls', 'rule_webhook_limit_starts', 'rule_webhook_oauth2_problem',
        'rule_webhook_order_take', 'rule_webhook_problem', 'rule_webhook_put', 'rule_webhook_queue_by_key', 'rule_webhook_queue_claim',
        'rule_webhook_receiver_check', 'rule_webhook_secret_changed', 'rule_webhook_signature_problem'];
    v_names CONSTANT TEXT := format('\mpublic\.(%s)\M', array_to_string(v_tables || v_functions, '|'));
    v_comment CONSTANT TEXT := 'walhook: the old name; the next walhook setup removes it. Now ';
    v_bodies CONSTANT TEXT := current_setting('check_function_bodies');
    v_definition TEXT;
    v_moved OID[];
    o RECORD;
    g RECORD;
BEGIN
    IF to_regnamespace('walhook') IS NULL THEN
        CREATE SCHEMA walhook;
    END IF;
    IF obj_description(to_regnamespace('walhook'), 'pg_namespace') IS NULL THEN
        COMMENT ON SCHEMA walhook IS 'walhook: tables and functions that only walhook uses; they may change. What users call is in public';
    END IF;

    FOR o IN
        SELECT c.oid, c.relname, c.relowner, c.relacl FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname = ANY (v_tables)
          AND to_regclass(format('walhook.%I', c.relname)) IS NULL
        ORDER BY c.relname
    LOOP
        EXECUTE format('ALTER TABLE public.%I SET SCHEMA walhook', o.relname);
        EXECUTE format('CREATE VIEW public.%1$I AS SELECT * FROM walhook.%1$I', o.relname);
        EXECUTE format('COMMENT ON VIEW public.%I IS %L', o.relname, v_comment || 'walhook.' || o.relname);
        FOR g IN
            SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee,
                   a.privilege_type || coalesce(' (' || quote_ident(a.attname) || ')', '') AS rights
            FROM (SELECT e.*, NULL::name AS attname FROM aclexplode(o.relacl) e
                  UNION ALL
                  SELECT e.*, t.attname FROM pg_attribute t CROSS JOIN LATERAL aclexplode(t.attacl) e
                  WHERE t.attrelid = o.oid AND NOT t.attisdropped) a
            WHERE a.grantee <> o.relowner
        LOOP
            EXECUTE format('GRANT %s ON public.%I TO %s', g.rights, o.relname, g.grantee);
            IF g.grantee <> 'PUBLIC' THEN
                EXECUTE format('GRANT USAGE ON SCHEMA walhook TO %s', g.grantee);
            END IF;
        END LOOP;
    END LOOP;

    v_moved := ARRAY(
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname = ANY (v_functions)
          AND obj_description(p.oid, 'pg_proc') LIKE 'walhook:%' AND obj_description(p.oid, 'pg_proc') NOT LIKE v_comment || '%'
          AND NOT EXISTS (SELECT FROM pg_proc i WHERE i.pronamespace = 'walhook'::regnamespace AND i.proname = p.proname
                                                  AND i.proargtypes = p.proargtypes));
    -- All names first, then the texts, which name each other.
    FOR o IN SELECT p.oid FROM pg_proc p WHERE p.oid = ANY (v_moved) LOOP
        EXECUTE format('ALTER ROUTINE %s SET SCHEMA walhook', o.oid::regprocedure);
    END LOOP;
    PERFORM set_config('check_function_bodies', 'off', true);
    FOR o IN
        SELECT p.oid, p.proname, p.proowner, p.proacl, oidvectortypes(p.proargtypes) AS args,
               p.prokind = 'f' AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype) AS is_called
        FROM pg_proc p WHERE p.oid = ANY (v_moved)
    LOOP
        v_definition := regexp_replace(pg_get_functiondef(o.oid), v_names, 'walhook.\1', 'g');
        EXECUTE v_definition;
        -- Triggers have their function by its oid, and procedures are for files of sql/.
        CONTINUE WHEN NOT o.is_called;
        EXECUTE regexp_replace(v_definition, '^CREATE OR REPLACE FUNCTION walhook\.', 'CREATE FUNCTION public.');
        EXECUTE format('COMMENT ON FUNCTION public.%I(%s) IS %L', o.proname, o.args, v_comment || 'walhook.' || o.proname);
        EXECUTE format('REVOKE ALL ON FUNCTION public.%I(%s) FROM PUBLIC', o.proname, o.args);
        FOR g IN
            SELECT quote_ident(pg_get_userbyid(a.grantee)) AS grantee FROM aclexplode(o.proacl) a WHERE a.grantee NOT IN (0, o.proowner)
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION public.%I(%s) TO %s', o.proname, o.args, g.grantee);
            EXECUTE format('GRANT USAGE ON SCHEMA walhook TO %s', g.grantee);
        END LOOP;
    END LOOP;
    PERFORM set_config('check_function_bodies', v_bodies, true);
END
$internals$;

DO $tables$
BEGIN
    IF to_regclass('public.rule_cdc_migrations') IS NULL THEN
        CREATE TABLE public.rule_cdc_migrations (
            version TEXT PRIMARY KEY,
            description TEXT NOT NULL,
            applied_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            found JSONB
        );
        -- What there was before walhook came, so that `walhook uninstall` leaves it. Where walhook 0.1 was here, its descriptions tell.
        INSERT INTO public.rule_cdc_migrations (version, description, found)
        SELECT 'found', 'tables and views of RFC-0005 and RFC-0007 that were there before',
               coalesce(jsonb_object_agg(c.relname, jsonb_build_object(
                   'columns', ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
                   'constraints', ARRAY(SELECT k.conname FROM pg_constraint k WHERE k.conrelid = c.oid),
                   'indexes', ARRAY(SELECT o.relname FROM pg_index i JOIN pg_class o ON o.oid = i.indexrelid WHERE i.indrelid = c.oid))), '{}')
        FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v')
          AND c.relname IN ('rule_webhooks', 'rule_webhook_secrets', 'rule_webhook_calls', 'rule_webhook_call_history', 'rule_nats_config',
                            'rule_nats_streams', 'rule_nats_publish_history', 'rule_nats_consumer_stats', 'webhook_status_summary',
                            'webhook_recent_failures', 'webhook_performance_stats', 'nats_publish_summary', 'nats_recent_failures',
                            'nats_performance_stats')
          AND (to_regclass('public.rule_webhook_events') IS NULL OR obj_description(c.oid, 'pg_class') IS NULL);
        COMMENT ON COLUMN public.rule_cdc_migrations.found IS
            'In the row found: of each table or view of these names that was there before walhook its columns, constraints and indexes';
        COMMENT ON TABLE public.rule_cdc_migrations IS
            'Which SQL files of walhook this database has had, and when first. The tables of a file are made once, by its first run; '
            'its functions, views and grants by every run. 0.1/...: by walhook 0.1, whose record was in schema_migrations';
    END IF;

    IF to_regclass('public.rule_webhooks') IS NULL THEN
        CREATE TABLE public.rule_webhooks (
            webhook_id SERIAL PRIMARY KEY,
            webhook_name TEXT NOT NULL UNIQUE,
            description TEXT,
            url TEXT NOT NULL,
            method TEXT DEFAULT 'POST',
            headers JSONB DEFAULT '{}',
            timeout_ms INTEGER DEFAULT 5000,
            retry_enabled BOOLEAN DEFAULT true,
            max_retries INTEGER DEFAULT 3,
            retry_delay_ms INTEGER DEFAULT 1000,
            retry_backoff_multiplier NUMERIC DEFAULT 2.0,
            enabled BOOLEAN DEFAULT true,
            created_at TIMESTAMPTZ DEFAULT now(),
            created_by TEXT DEFAULT CURRENT_USER,
            updated_at TIMESTAMPTZ DEFAULT now(),
            tags TEXT[] DEFAULT '{}',
            CONSTRAINT valid_method CHECK (method IN ('GET', 'POST', 'PUT', 'PATCH', 'DELETE')),
            CONSTRAINT valid_timeout CHECK (timeout_ms > 0 AND timeout_ms <= 60000),
            CONSTRAINT valid_retries CHECK (max_retries >= 0 AND max_retries <= 10),
            CONSTRAINT valid_retry_delay CHECK (retry_delay_ms >= 0),
            CONSTRAINT valid_backoff CHECK (retry_backoff_multiplier >= 1)
        );
        COMMENT ON TABLE public.rule_webhooks IS
            'One row per webhook: where its calls go and how. In the publication: a change takes effect at its own commit.';
        COMMENT ON COLUMN public.rule_webhooks.url IS 'Where a worker sends the call: http:// or https://';
        COMMENT ON COLUMN public.rule_webhooks.headers IS
            'Static HTTP headers, {name: string}. Secrets belong into rule_webhook_secrets';
        COMMENT ON COLUMN public.rule_webhooks.timeout_ms IS 'How long a worker waits for the answer, ms, 1 to 60000';
        COMMENT ON COLUMN public.rule_webhooks.retry_delay_ms IS
            'Wait before the first retry, ms; multiplied by retry_backoff_multiplier for each one after it';
        COMMENT ON COLUMN public.rule_webhooks.enabled IS 'false: calls are refused, linked tables publish nothing for it';
    END IF;

    IF to_regclass('public.rule_webhook_secrets') IS NULL THEN
        CREATE TABLE public.rule_webhook_secrets (
            secret_id SERIAL PRIMARY KEY,
            webhook_id INTEGER REFERENCES public.rule_webhooks (webhook_id) ON DELETE CASCADE,
            secret_name TEXT NOT NULL,
            secret_value TEXT NOT NULL,
            created_at TIMESTAMPTZ DEFAULT now(),
            created_by TEXT DEFAULT CURRENT_USER,
            UNIQUE (webhook_id, secret_name)
        );
        COMMENT ON TABLE public.rule_webhook_secrets IS
            'Secrets of webhooks, in plain text: granted to nobody, never published, never linkable';
    END IF;

    IF to_regclass('public.rule_webhook_calls') IS NULL THEN
        CREATE TABLE public.rule_webhook_calls (
            call_id SERIAL PRIMARY KEY,
            webhook_id INTEGER REFERENCES public.rule_webhooks (webhook_id) ON DELETE CASCADE,
            status TEXT DEFAULT 'pending',
            payload JSONB NOT NULL,
            rule_name TEXT,
            rule_execution_id BIGINT,
            scheduled_at TIMESTAMPTZ DEFAULT now(),
            started_at TIMESTAMPTZ,
            completed_at TIMESTAMPTZ,
            retry_count INTEGER DEFAULT 0,
            next_retry_at TIMESTAMPTZ,
            response_status INTEGER,
            response_body TEXT,
            response_headers JSONB,
            error_message TEXT,
            execution_time_ms NUMERIC,
            created_at TIMESTAMPTZ DEFAULT now(),
            CONSTRAINT valid_status CHECK (status IN ('pending', 'processing', 'success', 'failed', 'retrying'))
        );
        COMMENT ON TABLE public.rule_webhook_calls IS
            'The queue in PostgreSQL: calls that polling workers take (publish_mode queue and both)';
        CREATE INDEX idx_webhook_calls_webhook ON public.rule_webhook_calls (webhook_id);
        CREATE INDEX idx_webhook_calls_due ON public.rule_webhook_calls (status, scheduled_at);
        CREATE INDEX idx_webhook_calls_retry ON public.rule_webhook_calls (next_retry_at) WHERE status = 'retrying';
    END IF;

    IF to_regclass('public.rule_webhook_call_history') IS NULL THEN
        CREATE TABLE public.rule_webhook_call_history (
            history_id SERIAL PRIMARY KEY,
            call_id INTEGER REFERENCES public.rule_webhook_calls (call_id) ON DELETE CASCADE,
            attempt_number INTEGER NOT NULL,
            started_at TIMESTAMPTZ DEFAULT now(),
            completed_at TIMESTAMPTZ,
            response_status INTEGER,
            response_body TEXT,
            error_message TEXT,
            execution_time_ms NUMERIC
        );
        COMMENT ON TABLE public.rule_webhook_call_history IS 'One row per attempt of a queued call, written by its worker';
        CREATE INDEX idx_webhook_call_history_call ON public.rule_webhook_call_history (call_id);
    END IF;

    IF to_regclass('public.webhook_status_summary') IS NULL THEN
        CREATE VIEW public.webhook_status_summary AS
        SELECT w.webhook_id,
               w.webhook_name,
               w.url,
               w.enabled,
               count(c.call_id) AS total_calls,
               count(c.call_id) FILTER (WHERE c.status = 'success') AS successful_calls,
               count(c.call_id) FILTER (WHERE c.status = 'failed') AS failed_calls,
               count(c.call_id) FILTER (WHERE c.status = 'pending') AS pending_calls,
               count(c.call_id) FILTER (WHERE c.status = 'retrying') AS retrying_calls,
               round(avg(c.execution_time_ms), 2) AS avg_execution_time_ms,
               max(c.created_at) AS last_call_at,
               round(100.0 * count(c.call_id) FILTER (WHERE c.status = 'success') / nullif(count(c.call_id), 0), 2)
                   AS success_rate_pct
        FROM public.rule_webhooks w
        LEFT JOIN public.rule_webhook_calls c USING (webhook_id)
        GROUP BY w.webhook_id, w.webhook_name, w.url, w.enabled;
        COMMENT ON VIEW public.webhook_status_summary IS 'Queued calls of each webhook, counted by status';
    END IF;

    IF to_regclass('public.webhook_recent_failures') IS NULL THEN
        CREATE VIEW public.webhook_recent_failures AS
        SELECT c.call_id, w.webhook_name, w.url, c.status, c.retry_count, c.error_message, c.response_status, c.payload,
               c.created_at, c.completed_at
        FROM public.rule_webhook_calls c
        JOIN public.rule_webhooks w USING (webhook_id)
        WHERE c.status IN ('failed', 'retrying')
        ORDER BY c.created_at DESC
        LIMIT 100;
        COMMENT ON VIEW public.webhook_recent_failures IS 'The newest 100 queued calls that failed or wait for a retry';
    END IF;

    IF to_regclass('public.webhook_performance_stats') IS NULL THEN
        CREATE VIEW public.webhook_performance_stats AS
        SELECT w.webhook_id,
               w.webhook_name,
               count(c.call_id) AS total_calls,
               round(avg(c.execution_time_ms), 2) AS avg_time_ms,
               min(c.execution_time_ms) AS min_time_ms,
               max(c.execution_time_ms) AS max_time_ms,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY c.execution_time_ms) AS p50_time_ms,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY c.execution_time_ms) AS p95_time_ms,
               percentile_cont(0.99) WITHIN GROUP (ORDER BY c.execution_time_ms) AS p99_time_ms
        FROM public.rule_webhooks w
        JOIN public.rule_webhook_calls c USING (webhook_id)
        WHERE c.status = 'success'
        GROUP BY w.webhook_id, w.webhook_name;
        COMMENT ON VIEW public.webhook_performance_stats IS 'How long successful queued calls took, per webhook';
    END IF;
END
$tables$;

-- walhook 0.1 kept its record in public.schema_migrations, a name that Rails, golang-migrate, Ecto and dbmate use too. Its rows move into the
-- table above, and where nothing is left of a table that walhook 0.1 made, it goes. A table of another's columns, or of an owner that
-- 004 would not trust, is not touched.
DO $record$
DECLARE
    v_table CONSTANT REGCLASS := to_regclass('public.schema_migrations');
BEGIN
    IF v_table IS NULL
       OR (SELECT c.relkind <> 'r' OR c.relhasrules OR c.relrowsecurity FROM pg_class c WHERE c.oid = v_table)
       OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = v_table)
       OR NOT EXISTS (SELECT FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
                      WHERE c.oid = v_table
                        AND (r.rolsuper OR r.rolname = current_user
                             OR r.oid = (SELECT d.datdba FROM pg_database d WHERE d.datname = current_database())))
       OR NOT (has_table_privilege(v_table, 'SELECT') AND has_table_privilege(v_table, 'DELETE'))
       OR ARRAY['version text', 'description text', 'applied_at timestamp with time zone'] <> ARRAY(
              SELECT a.attname || ' ' || format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
              WHERE a.attrelid = v_table AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
    THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM public.schema_migrations m WHERE m.version IN ('005', '007', '008', '009', '010', '011')) THEN
        WITH ours AS (
            DELETE FROM public.schema_migrations m
            WHERE (m.version, m.description) IN (
                ('005', 'Webhooks of RFC-0005, where absent'), ('007', 'NATS integration of RFC-0007'),
                ('008', 'walhook: events, links, publication and slot, publishing'), ('009', 'walhook: roles and rights'),
                ('010', 'walhook: the last mile, from the stream to the URL'), ('011', 'walhook: replays and backfills'))
            RETURNING m.version, m.description, m.applied_at
        )
        INSERT INTO public.rule_cdc_migrations (version, description, applied_at)
        SELECT '0.1/' || o.version, o.description, coalesce(o.applied_at, now()) FROM ours o
        ON CONFLICT (version) DO NOTHING;
    END IF;
    IF obj_description(v_table, 'pg_class') = 'Which numbered SQL files this database has had, and when first'
       AND NOT EXISTS (SELECT FROM public.schema_migrations)
    THEN
        BEGIN
            DROP TABLE public.schema_migrations;
        EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
            RAISE NOTICE 'the empty table public.schema_migrations of walhook 0.1 stays: %', SQLERRM
                USING HINT = 'DROP TABLE public.schema_migrations;';
        END;
    END IF;
END
$record$;

-- The functions are written into a schema of their own first; the block at the end moves over those that are absent.
CREATE SCHEMA walhook_staging;

CREATE OR REPLACE FUNCTION walhook.rule_webhook_problem(
    p_method TEXT,
    p_headers JSONB,
    p_timeout_ms INTEGER,
    p_max_retries INTEGER
) RETURNS TEXT LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN upper(p_method) NOT IN ('GET', 'POST', 'PUT', 'PATCH', 'DELETE')
            THEN format('its method is %L; it can be GET, POST, PUT, PATCH or DELETE', left(p_method, 100))
        WHEN jsonb_typeof(p_headers) <> 'object'
            THEN format('its headers are a JSON %s; write them as an object: {"Name": "value"}', jsonb_typeof(p_headers))
        WHEN EXISTS (SELECT FROM jsonb_each(CASE jsonb_typeof(p_headers) WHEN 'object' THEN p_headers ELSE '{}' END) h
                     WHERE jsonb_typeof(h.value) NOT IN ('string', 'number', 'boolean'))
            THEN 'the value of one of its headers is no text; write headers as {"Name": "value"}'
        WHEN p_timeout_ms NOT BETWEEN 1 AND 60000 THEN format('its timeout_ms is %s; it can be from 1 to 60000', p_timeout_ms)
        WHEN p_max_retries NOT BETWEEN 0 AND 10 THEN format('its max_retries is %s; it can be from 0 to 10', p_max_retries)
    END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_problem IS 'walhook: why a webhook cannot be so, or NULL where it can';
REVOKE ALL ON FUNCTION walhook.rule_webhook_problem(TEXT, JSONB, INTEGER, INTEGER) FROM PUBLIC;

-- As src/route/shown_url.rs has it. The pattern goes through the parameters that look like credentials by their names.
CREATE FUNCTION walhook_staging.rule_webhook_shown_url(p_url TEXT)
RETURNS TEXT LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_plain CONSTANT TEXT := translate(p_url, E'\t\n\r', '');
    v_shown TEXT;
BEGIN
    v_shown := regexp_replace(v_plain, '^([\x01-\x20]*(?:[a-zA-Z0-9+.-]+:)?[/\\]*)[^/\\?#]*@', '\1');
    v_shown := regexp_replace(
        v_shown,
        '([?&;#](?:[^=?&;#]*(?:auth(?!or(?!i))|token|secret|password|passwd|signature|credential|session|jwt|api[-_.]*key|'
        || 'access[-_.]*key|private[-_.]*key)[^=?&;#]*|key|sig|pass|pwd|pw|code)=)[^?&;#]*', '\1***', 'gi');
    RETURN CASE WHEN v_shown = v_plain THEN p_url ELSE v_shown END;
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_shown_url IS
    'walhook: a webhook''s url without its login, and without the values of query parameters that look like credentials';

CREATE FUNCTION walhook_staging.rule_webhook_register(
    p_name TEXT,
    p_url TEXT,
    p_method TEXT DEFAULT 'POST',
    p_headers JSONB DEFAULT '{}',
    p_description TEXT DEFAULT NULL,
    p_timeout_ms INTEGER DEFAULT 5000,
    p_max_retries INTEGER DEFAULT 3
) RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_webhook_id INTEGER;
    v_problem TEXT;
BEGIN
    IF p_name IS NULL OR p_name = '' THEN
        RAISE EXCEPTION 'cannot register a webhook without a name' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_url IS NULL OR p_url !~* '^https?://.' THEN
        RAISE EXCEPTION 'cannot register webhook %: its url is %, not http:// or https://', walhook.rule_cdc_quoted(p_name),
            coalesce(walhook.rule_cdc_quoted(public.rule_webhook_shown_url(p_url)), 'NULL') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_problem := walhook.rule_webhook_problem(p_method, p_headers, p_timeout_ms, p_max_retries);
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'cannot register webhook %: %', walhook.rule_cdc_quoted(p_name), walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO public.rule_webhooks (webhook_name, url, method, headers, description, timeout_ms, max_retries)
    VALUES (p_name, p_url, upper(p_method), coalesce(p_headers, '{}'), p_description, p_timeout_ms, p_max_retries)
    ON CONFLICT (webhook_name) DO NOTHING
    RETURNING webhook_id INTO v_webhook_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'cannot register webhook %: a webhook of that name exists', walhook.rule_cdc_quoted(p_name)
            USING ERRCODE = 'unique_violation',
            HINT = walhook.rule_cdc_sayable(
                format('SELECT rule_webhook_update(webhook_id, %L) FROM rule_webhooks WHERE webhook_name = %L; changes its url.', p_url, p_name));
    END IF;
    RETURN v_webhook_id;
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_register IS
    'walhook: registers a webhook and returns its id; a name that exists is a unique_violation';

CREATE FUNCTION walhook_staging.rule_webhook_update(
    p_webhook_id INTEGER,
    p_url TEXT DEFAULT NULL,
    p_method TEXT DEFAULT NULL,
    p_headers JSONB DEFAULT NULL,
    p_timeout_ms INTEGER DEFAULT NULL,
    p_enabled BOOLEAN DEFAULT NULL
) RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_problem CONSTANT TEXT := walhook.rule_webhook_problem(p_method, p_headers, p_timeout_ms, NULL);
    v_named CONSTANT TEXT := p_webhook_id || coalesce(
        (SELECT format(' (%s)', left(w.webhook_name, 200)) FROM public.rule_webhooks w WHERE w.webhook_id = p_webhook_id), '');
BEGIN
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'cannot update webhook %: %', walhook.rule_cdc_sayable(v_named), walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_url !~* '^https?://.' THEN
        RAISE EXCEPTION 'cannot update webhook %: its url would be %, not http:// or https://', walhook.rule_cdc_sayable(v_named),
            walhook.rule_cdc_quoted(public.rule_webhook_shown_url(p_url)) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE public.rule_webhooks
    SET url = coalesce(p_url, url),
        method = coalesce(upper(p_method), method),
        headers = coalesce(p_headers, headers),
        timeout_ms = coalesce(p_timeout_ms, timeout_ms),
        enabled = coalesce(p_enabled, enabled),
        updated_at = now()
    WHERE webhook_id = p_webhook_id;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_update IS
    'walhook: changes what is not NULL; false where there is no such webhook';

CREATE FUNCTION walhook_staging.rule_webhook_delete(p_webhook_id INTEGER)
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM public.rule_webhooks WHERE webhook_id = p_webhook_id;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_delete IS
    'walhook: deletes a webhook with its secrets, calls, links and history; false where there is none';

CREATE FUNCTION walhook_staging.rule_webhook_list(p_enabled_only BOOLEAN DEFAULT false)
RETURNS TABLE (webhook_id INTEGER, webhook_name TEXT, url TEXT, method TEXT, enabled BOOLEAN, total_calls BIGINT,
               success_rate NUMERIC, created_at TIMESTAMPTZ)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT w.webhook_id, w.webhook_name, public.rule_webhook_shown_url(w.url), w.method, w.enabled, count(c.call_id),
           round(100.0 * count(c.call_id) FILTER (WHERE c.status = 'success') / nullif(count(c.call_id), 0), 2),
           w.created_at
    FROM public.rule_webhooks w
    LEFT JOIN public.rule_webhook_calls c USING (webhook_id)
    WHERE w.enabled OR NOT coalesce(p_enabled_only, false)
    GROUP BY w.webhook_id
    ORDER BY w.webhook_name;
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_list IS 'walhook: webhooks by name, with their queued calls counted';

CREATE FUNCTION walhook_staging.rule_webhook_get(p_identifier TEXT)
RETURNS JSON LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(
        (SELECT to_json(w) FROM public.rule_webhooks w
         WHERE w.webhook_name = p_identifier OR w.webhook_id::text = p_identifier
         ORDER BY w.webhook_id::text = p_identifier DESC
         LIMIT 1),
        '{"error":"Webhook not found"}')
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_get IS
    'walhook: a webhook by id or name as JSON, or {"error":"Webhook not found"}';

CREATE FUNCTION walhook_staging.rule_webhook_secret_set(p_webhook_id INTEGER, p_secret_name TEXT, p_secret_value TEXT)
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name CONSTANT TEXT := (SELECT left(w.webhook_name, 200) FROM public.rule_webhooks w WHERE w.webhook_id = p_webhook_id);
BEGIN
    IF v_name IS NULL THEN
        RAISE EXCEPTION 'Webhook % not found', coalesce(p_webhook_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_webhook_list(); lists the webhooks.';
    ELSIF p_secret_name IS NULL OR p_secret_name = '' OR p_secret_value IS NULL THEN
        RAISE EXCEPTION 'webhook % (%): a secret needs a name and a value', p_webhook_id, walhook.rule_cdc_sayable(v_name)
            USING ERRCODE = 'null_value_not_allowed';
    ELSIF p_secret_name ~ '^signing([_.-]|$)'
          AND (btrim(p_secret_value, E' \t\r\n') IN ('', 'whsec_')
               -- Whole groups of four, padded at the end.
               OR btrim(p_secret_value, E' \t\r\n') ~ '^whsec_'
                  AND btrim(p_secret_value, E' \t\r\n') !~ '^whsec_([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$') THEN
        RAISE EXCEPTION 'webhook % (%): the secret % cannot sign: it is empty, or what follows whsec_ is not base64', p_webhook_id,
            walhook.rule_cdc_sayable(v_name),
            walhook.rule_cdc_quoted(p_secret_name)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give whsec_ and base64 with its padding (openssl rand -base64 32 makes some), or any text without whsec_.';
    END IF;
    INSERT INTO public.rule_webhook_secrets (webhook_id, secret_name, secret_value)
    VALUES (p_webhook_id, p_secret_name, p_secret_value)
    ON CONFLICT (webhook_id, secret_name) DO UPDATE SET secret_value = p_secret_value;
    RETURN true;
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_secret_set IS 'walhook: stores or replaces a secret of a webhook';

CREATE FUNCTION walhook_staging.rule_webhook_secret_get(p_webhook_id INTEGER, p_secret_name TEXT)
RETURNS TEXT LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT secret_value FROM public.rule_webhook_secrets
    WHERE webhook_id = p_webhook_id AND secret_name = p_secret_name
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_secret_get IS
    'walhook: a secret of a webhook, or NULL. Runs with its owner''s rights: grant it to the workers'' roles only';

CREATE FUNCTION walhook_staging.rule_webhook_secret_delete(p_webhook_id INTEGER, p_secret_name TEXT)
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM public.rule_webhook_secrets WHERE webhook_id = p_webhook_id AND secret_name = p_secret_name;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_secret_delete IS 'walhook: deletes a secret; false where there is none';

-- Runs with its owner's rights, so that an application needs no right on the tables to call a webhook.
CREATE FUNCTION walhook_staging.rule_webhook_enqueue(
    p_webhook_id INTEGER,
    p_payload JSONB,
    p_rule_name TEXT DEFAULT NULL,
    p_scheduled_at TIMESTAMPTZ DEFAULT now()
) RETURNS INTEGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_enabled BOOLEAN;
    v_name TEXT;
    v_call_id INTEGER;
BEGIN
    SELECT enabled, left(webhook_name, 200) INTO v_enabled, v_name FROM public.rule_webhooks WHERE webhook_id = p_webhook_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Webhook % not found', coalesce(p_webhook_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_webhook_list(); lists the webhooks.';
    END IF;
    IF NOT coalesce(v_enabled, false) THEN
        RAISE EXCEPTION 'Webhook % (%) is disabled', p_webhook_id, walhook.rule_cdc_sayable(v_name)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = format('SELECT rule_webhook_update(%s, p_enabled => true); enables it.', p_webhook_id);
    END IF;
    IF p_payload IS NULL THEN
        RAISE EXCEPTION 'Webhook % (%): the payload is NULL', p_webhook_id, walhook.rule_cdc_sayable(v_name)
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Give a JSON value: ''{}'', or ''null'' for JSON''s null.';
    END IF;
    INSERT INTO public.rule_webhook_calls (webhook_id, payload, rule_name, scheduled_at)
    VALUES (p_webhook_id, p_payload, p_rule_name, coalesce(p_scheduled_at, now()))
    RETURNING call_id INTO v_call_id;
    RETURN v_call_id;
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_enqueue IS
    'walhook: puts a pending call into the PostgreSQL queue and returns its id; raises where the webhook is missing or disabled';

CREATE FUNCTION walhook_staging.rule_webhook_call(p_webhook_id INTEGER, p_payload JSONB)
RETURNS JSON LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_webhook RECORD;
BEGIN
    SELECT webhook_name, url, enabled INTO v_webhook FROM public.rule_webhooks WHERE webhook_id = p_webhook_id;
    IF NOT FOUND THEN
        RETURN json_build_object('success', false, 'error', 'Webhook not found');
    END IF;
    IF NOT coalesce(v_webhook.enabled, false) THEN
        RETURN json_build_object('success', false, 'error', 'Webhook is disabled');
    END IF;
    RETURN json_build_object(
        'success', true,
        'call_id', public.rule_webhook_enqueue(p_webhook_id, p_payload),
        'status', 'enqueued',
        'webhook_name', v_webhook.webhook_name,
        'url', public.rule_webhook_shown_url(v_webhook.url),
        'message', 'Webhook call enqueued for a worker');
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_call IS
    'walhook: enqueues a call and says so as JSON; {"success": false, "error"} where the webhook is missing or disabled';

CREATE FUNCTION walhook_staging.rule_webhook_call_with_http(p_webhook_id INTEGER, p_payload JSONB)
RETURNS JSON LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_webhook public.rule_webhooks;
    v_http TEXT := (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
                    WHERE e.extname = 'http');
    v_call_id INTEGER;
    v_started TIMESTAMPTZ := clock_timestamp();
    v_status INTEGER;
    v_body TEXT;
    v_error TEXT;
    v_elapsed_ms NUMERIC;
BEGIN
    SELECT * INTO v_webhook FROM public.rule_webhooks WHERE webhook_id = p_webhook_id;
    IF NOT FOUND THEN
        RETURN json_build_object('success', false, 'error', 'Webhook not found');
    END IF;
    IF NOT coalesce(v_webhook.enabled, false) THEN
        RETURN json_build_object('success', false, 'error', 'Webhook is disabled');
    END IF;
    IF v_http IS NULL THEN
        RETURN json_build_object('success', false, 'error',
            'The extension http is not installed: CREATE EXTENSION http, or use rule_webhook_call_unified');
    END IF;

    INSERT INTO public.rule_webhook_calls (webhook_id, payload, status, started_at)
    VALUES (p_webhook_id, p_payload, 'processing', v_started)
    RETURNING call_id INTO v_call_id;

    BEGIN
        EXECUTE format('SELECT %I.http_set_curlopt(%L, %L)', v_http, 'CURLOPT_TIMEOUT_MS', v_webhook.timeout_ms);
        EXECUTE format(
            'SELECT r.status, r.content FROM %1$I.http(('
            '$1, $2, (SELECT array_agg(%1$I.http_header(key, value)) FROM jsonb_each_text($3)), $4, $5'
            ')::%1$I.http_request) r', v_http)
        INTO v_status, v_body
        USING v_webhook.method, v_webhook.url, v_webhook.headers, 'application/json', p_payload::text;
        IF v_status NOT BETWEEN 200 AND 299 THEN
            v_error := format('HTTP status %s', v_status);
        END IF;
    EXCEPTION WHEN OTHERS THEN
        v_error := SQLERRM;
    END;

    v_elapsed_ms := round(extract(epoch FROM clock_timestamp() - v_started)::numeric * 1000, 2);
    UPDATE public.rule_webhook_calls
    SET status = CASE WHEN v_error IS NULL THEN 'success' ELSE 'failed' END,
        completed_at = clock_timestamp(),
        response_status = v_status,
        response_body = v_body,
        error_message = v_error,
        execution_time_ms = v_elapsed_ms
    WHERE call_id = v_call_id;
    INSERT INTO public.rule_webhook_call_history
        (call_id, attempt_number, started_at, completed_at, response_status, response_body, error_message, execution_time_ms)
    VALUES (v_call_id, 1, v_started, clock_timestamp(), v_status, v_body, v_error, v_elapsed_ms);

    RETURN json_build_object('success', v_error IS NULL, 'call_id', v_call_id, 'response_status', v_status,
                             'response_body', v_body, 'error', v_error, 'execution_time_ms', v_elapsed_ms);
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_call_with_http IS
    'walhook: calls the url inside the transaction; needs the extension http, else {"success": false, "error"}';

CREATE FUNCTION walhook_staging.rule_webhook_retry(p_call_id INTEGER)
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_call RECORD;
BEGIN
    SELECT c.retry_count, w.retry_enabled, w.max_retries, w.retry_delay_ms, w.retry_backoff_multiplier INTO v_call
    FROM public.rule_webhook_calls c
    JOIN public.rule_webhooks w USING (webhook_id)
    WHERE c.call_id = p_call_id
    FOR UPDATE OF c;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Call % not found', coalesce(p_call_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT call_id, status FROM rule_webhook_calls; lists them.';
    END IF;
    IF NOT coalesce(v_call.retry_enabled, true) OR v_call.retry_count >= v_call.max_retries THEN
        UPDATE public.rule_webhook_calls SET status = 'failed', completed_at = now(), next_retry_at = NULL,
            error_message = coalesce(error_message, CASE WHEN v_call.retry_enabled IS FALSE THEN 'Retries are disabled'
                                                         ELSE format('Max retries exceeded: %s of %s', v_call.retry_count, v_call.max_retries) END)
        WHERE call_id = p_call_id;
        RETURN false;
    END IF;
    UPDATE public.rule_webhook_calls
    SET status = 'retrying',
        retry_count = retry_count + 1,
        next_retry_at = now() + make_interval(secs =>
            (v_call.retry_delay_ms * v_call.retry_backoff_multiplier ^ v_call.retry_count / 1000)::double precision)
    WHERE call_id = p_call_id;
    RETURN true;
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_retry IS
    'walhook: plans the next retry after delay * multiplier^count; past max_retries the call has failed, says so in error_message, and it '
    'answers false. A call that does not exist is an error';

CREATE FUNCTION walhook_staging.rule_webhook_cleanup_old_calls(
    p_older_than INTERVAL DEFAULT '30 days',
    p_keep_failed BOOLEAN DEFAULT true
) RETURNS BIGINT LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_deleted BIGINT;
BEGIN
    DELETE FROM public.rule_webhook_calls
    WHERE created_at < now() - p_older_than
      AND (status = 'success' OR status = 'failed' AND NOT p_keep_failed);
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    RETURN v_deleted;
END
$$;
COMMENT ON FUNCTION walhook_staging.rule_webhook_cleanup_old_calls IS
    'walhook: deletes finished calls older than that, failed ones only on request, and returns how many';

DO $install$
DECLARE
    f RECORD;
BEGIN
    FOR f IN
        SELECT p.oid, p.proname, oidvectortypes(p.proargtypes) AS args
        FROM pg_proc p
        WHERE p.pronamespace = 'walhook_staging'::regnamespace
          AND NOT EXISTS (
              SELECT FROM pg_proc theirs
              WHERE theirs.pronamespace = 'public'::regnamespace
                AND theirs.proname = p.proname
                AND coalesce(obj_description(theirs.oid, 'pg_proc'), '') NOT LIKE 'walhook:%')
    LOOP
        EXECUTE regexp_replace(pg_get_functiondef(f.oid), 'walhook_staging\.', 'public.');
        EXECUTE format('COMMENT ON FUNCTION public.%I(%s) IS %L', f.proname, f.args, obj_description(f.oid, 'pg_proc'));
        EXECUTE format('REVOKE ALL ON FUNCTION public.%I(%s) FROM PUBLIC', f.proname, f.args);
    END LOOP;
    FOR f IN SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'walhook_staging'::regnamespace LOOP
        EXECUTE format('DROP FUNCTION %s', f.oid::regprocedure);
    END LOOP;
END
$install$;

DROP SCHEMA walhook_staging;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('005', 'Webhooks of RFC-0005, where absent')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
