-- 007: NATS for webhooks, as RFC-0007 shows it to a user.
--
-- Comes in: a database that has 005 (ours or another's), perhaps with another's 007 and data in it. Goes out: the RFC's
-- tables, views and the functions that configure and report; the functions that publish are in 008.
-- Always holds: tables, columns, constraints and indexes that are there stay. Views keep every column they have. The
-- functions named here become ours: another's of the same name are dropped (what was granted on them is granted again, but
-- for PUBLIC), because a second function of the same name would make the RFC's calls ambiguous.
-- Running it twice changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- ---------------------------------------------------------------------------------------------------------------- tables

-- Once: what is there already would wait for locks, and the application behind it.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '007') THEN
    RETURN;
END IF;

CREATE TABLE IF NOT EXISTS public.rule_nats_config (
    config_id SERIAL PRIMARY KEY,
    config_name TEXT NOT NULL UNIQUE DEFAULT 'default',
    nats_url TEXT NOT NULL DEFAULT 'nats://localhost:4222',
    nats_cluster_urls TEXT[],
    auth_type TEXT DEFAULT 'none',
    auth_token TEXT,
    auth_credentials_file TEXT,
    auth_nkey_seed TEXT,
    tls_enabled BOOLEAN DEFAULT false,
    tls_cert_file TEXT,
    tls_key_file TEXT,
    tls_ca_file TEXT,
    max_connections INTEGER DEFAULT 10,
    connection_timeout_ms INTEGER DEFAULT 5000,
    reconnect_delay_ms INTEGER DEFAULT 2000,
    max_reconnect_attempts INTEGER DEFAULT -1,
    jetstream_enabled BOOLEAN DEFAULT true,
    stream_name TEXT DEFAULT 'WEBHOOKS',
    subject_prefix TEXT DEFAULT 'webhooks',
    enabled BOOLEAN DEFAULT true,
    created_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT valid_auth_type CHECK (auth_type IN ('none', 'token', 'credentials', 'nkey'))
);
COMMENT ON TABLE public.rule_nats_config IS
    'One row per NATS server or cluster. In the publication: a change takes effect at its own commit. What the streamer''s '
    'environment says of NATS overrides the row.';
COMMENT ON COLUMN public.rule_nats_config.nats_url IS 'nats:// or tls:// host:port; keep passwords out of it';
COMMENT ON COLUMN public.rule_nats_config.nats_cluster_urls IS 'More servers of the same cluster, tried in turn';
COMMENT ON COLUMN public.rule_nats_config.auth_token IS
    'Plain text: everybody who can read the table or a dump has it. Prefer the environment of `walhook run`, or a file';
COMMENT ON COLUMN public.rule_nats_config.auth_credentials_file IS 'A .creds file, read on the streamer''s machine';
COMMENT ON COLUMN public.rule_nats_config.auth_nkey_seed IS
    'Plain text: everybody who can read the table or a dump has it. Prefer the environment of `walhook run`, or a file';
COMMENT ON COLUMN public.rule_nats_config.connection_timeout_ms IS 'How long one attempt to connect may take, ms';
COMMENT ON COLUMN public.rule_nats_config.reconnect_delay_ms IS
    'First wait between two attempts to connect, ms; it grows to 10 s, or stays where it is more';
COMMENT ON COLUMN public.rule_nats_config.max_reconnect_attempts IS
    'Failed attempts in a row after which the streamer gives this configuration up, until its row is updated. -1: never';
COMMENT ON COLUMN public.rule_nats_config.max_connections IS
    'TCP connections: one for JetStream''s API, the rest for publishing, one at least; more streams than that share them';
COMMENT ON COLUMN public.rule_nats_config.jetstream_enabled IS
    'false: core NATS: messages are neither stored nor acknowledged, and a subscriber that is offline misses them';
COMMENT ON COLUMN public.rule_nats_config.stream_name IS
    'The configuration''s own stream: new subjects of webhooks are added to it. Where no row of rule_nats_streams describes it, it '
    'takes <subject_prefix>.>, without limits. NULL: there is none';
COMMENT ON COLUMN public.rule_nats_config.subject_prefix IS 'A webhook without a subject publishes to <prefix>.<its name>';
COMMENT ON COLUMN public.rule_nats_config.enabled IS 'false: publishing through it is refused';

INSERT INTO public.rule_nats_config (config_name, nats_url)
VALUES ('default', 'nats://localhost:4222')
ON CONFLICT (config_name) DO NOTHING;

CREATE TABLE IF NOT EXISTS public.rule_nats_streams (
    stream_id SERIAL PRIMARY KEY,
    config_id INTEGER REFERENCES public.rule_nats_config (config_id) ON DELETE CASCADE,
    stream_name TEXT NOT NULL,
    subjects TEXT[] NOT NULL,
    description TEXT,
    storage_type TEXT DEFAULT 'file',
    max_messages BIGINT DEFAULT 1000000,
    max_bytes BIGINT DEFAULT 1073741824,
    max_age_seconds BIGINT DEFAULT 604800,
    retention_policy TEXT DEFAULT 'limits',
    discard_policy TEXT DEFAULT 'old',
    replicas INTEGER DEFAULT 1,
    duplicate_window_seconds INTEGER DEFAULT 120,
    enabled BOOLEAN DEFAULT true,
    created_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    UNIQUE (config_id, stream_name),
    CONSTRAINT valid_storage CHECK (storage_type IN ('memory', 'file')),
    CONSTRAINT valid_retention CHECK (retention_policy IN ('limits', 'interest', 'workqueue')),
    CONSTRAINT valid_discard CHECK (discard_policy IN ('old', 'new'))
);
COMMENT ON TABLE public.rule_nats_streams IS
    'JetStream streams that the streamer creates, and updates where JetStream allows. In the publication.';
COMMENT ON COLUMN public.rule_nats_streams.subjects IS
    'What the stream takes: * stands for one token, > at the end for one or more. webhooks.* does not take webhooks.a.b';
COMMENT ON COLUMN public.rule_nats_streams.max_bytes IS 'Bytes, default 1 GiB';
COMMENT ON COLUMN public.rule_nats_streams.max_age_seconds IS 'Seconds, default 7 days';
COMMENT ON COLUMN public.rule_nats_streams.retention_policy IS
    'limits keeps for every consumer; interest stores nothing while nobody consumes; workqueue allows one consumer';
COMMENT ON COLUMN public.rule_nats_streams.duplicate_window_seconds IS
    'How long JetStream remembers message ids, seconds. The ordering strict does not need it: it serves callers that send message ids '
    'of their own. It costs nats-server some 190 bytes of memory for each event that comes within it';

ALTER TABLE public.rule_webhooks
    ADD COLUMN IF NOT EXISTS nats_enabled BOOLEAN DEFAULT false,
    ADD COLUMN IF NOT EXISTS nats_subject TEXT,
    ADD COLUMN IF NOT EXISTS nats_config_id INTEGER REFERENCES public.rule_nats_config (config_id),
    ADD COLUMN IF NOT EXISTS publish_mode TEXT DEFAULT 'queue';
COMMENT ON COLUMN public.rule_webhooks.nats_enabled IS 'Set by rule_webhook_enable_nats';
COMMENT ON COLUMN public.rule_webhooks.nats_subject IS 'NULL: <subject_prefix>.<webhook_name>';
COMMENT ON COLUMN public.rule_webhooks.nats_config_id IS 'NULL: the configuration named default';
COMMENT ON COLUMN public.rule_webhooks.publish_mode IS
    'queue: rule_webhook_calls; nats: JetStream; both: one call each';

-- NOT VALID: a bad row from before stays where it is and is refused when it is called; no new one comes in.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_constraint c
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
        WHERE c.conrelid = 'public.rule_webhooks'::regclass AND c.contype = 'c' AND a.attname = 'publish_mode')
    THEN
        ALTER TABLE public.rule_webhooks ADD CONSTRAINT valid_publish_mode
            CHECK (publish_mode IN ('queue', 'nats', 'both')) NOT VALID;
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS public.rule_nats_publish_history (
    publish_id BIGSERIAL PRIMARY KEY,
    webhook_id INTEGER REFERENCES public.rule_webhooks (webhook_id) ON DELETE CASCADE,
    subject TEXT NOT NULL,
    payload JSONB NOT NULL,
    headers JSONB,
    published_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    message_id TEXT,
    sequence_number BIGINT,
    success BOOLEAN NOT NULL,
    error_message TEXT,
    latency_ms NUMERIC(10, 2),
    triggered_by TEXT,
    rule_execution_id BIGINT,
    expires_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP + INTERVAL '7 days'
);
COMMENT ON TABLE public.rule_nats_publish_history IS
    'One row per event that JetStream acknowledged or that could not be published, written by the streamer. Holds payloads: '
    'granted to nobody but the roles of 009. Never published, never linkable';
COMMENT ON COLUMN public.rule_nats_publish_history.message_id IS 'The caller''s, or the event''s id, <source>-<lsn>-<time>-<ordinal>-<webhook>';
COMMENT ON COLUMN public.rule_nats_publish_history.sequence_number IS
    'Sequence in the stream of the message that carries this event''s id. NULL in core NATS, for what failed, and where the message '
    'was not found after a restart: see success';
COMMENT ON COLUMN public.rule_nats_publish_history.success IS
    'true: stored. With sequence_number NULL, from a stream: looked up after a restart and removed since (purged, expired, deleted, '
    'acknowledged away), or not stored again because the stream had the same message_id of the caller''s. '
    'false with error_message: it never will be. false without: not known, the stream did not have it after a restart';
COMMENT ON COLUMN public.rule_nats_publish_history.latency_ms IS 'From publish to ack, ms';
COMMENT ON COLUMN public.rule_nats_publish_history.triggered_by IS 'The database user who made the event';
COMMENT ON COLUMN public.rule_nats_publish_history.expires_at IS 'When rule_nats_cleanup_expired may delete it';

CREATE INDEX IF NOT EXISTS idx_nats_publish_webhook ON public.rule_nats_publish_history (webhook_id);
CREATE INDEX IF NOT EXISTS idx_nats_publish_time ON public.rule_nats_publish_history (published_at DESC);
CREATE INDEX IF NOT EXISTS idx_nats_publish_subject ON public.rule_nats_publish_history (subject);
CREATE INDEX IF NOT EXISTS idx_nats_publish_expires ON public.rule_nats_publish_history (expires_at);

CREATE TABLE IF NOT EXISTS public.rule_nats_consumer_stats (
    consumer_id SERIAL PRIMARY KEY,
    stream_name TEXT NOT NULL,
    consumer_name TEXT NOT NULL,
    queue_group TEXT,
    ack_policy TEXT,
    max_deliver INTEGER,
    messages_delivered BIGINT DEFAULT 0,
    messages_acknowledged BIGINT DEFAULT 0,
    messages_pending BIGINT DEFAULT 0,
    messages_redelivered BIGINT DEFAULT 0,
    avg_processing_time_ms NUMERIC(10, 2),
    last_active_at TIMESTAMPTZ,
    active BOOLEAN DEFAULT true,
    created_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMPTZ DEFAULT CURRENT_TIMESTAMP,
    UNIQUE (stream_name, consumer_name)
);
COMMENT ON TABLE public.rule_nats_consumer_stats IS
    'JetStream''s durable consumers: what the streamer reads of them on a timer, and what workers report by '
    'rule_nats_consumer_update_stats. For a stream in rule_nats_streams the streamer''s figures replace a worker''s';
COMMENT ON COLUMN public.rule_nats_consumer_stats.stream_name IS
    'By name alone: of two configurations with a stream of this name it is that of "default", or of the older one';
COMMENT ON COLUMN public.rule_nats_consumer_stats.queue_group IS 'JetStream''s deliver_group';
COMMENT ON COLUMN public.rule_nats_consumer_stats.ack_policy IS 'JetStream''s; NULL: only a worker has reported it';
COMMENT ON COLUMN public.rule_nats_consumer_stats.messages_delivered IS 'Deliveries, repeated ones too';
COMMENT ON COLUMN public.rule_nats_consumer_stats.messages_acknowledged IS 'Deliveries up to which all are acknowledged';
COMMENT ON COLUMN public.rule_nats_consumer_stats.messages_pending IS 'Messages not delivered or not acknowledged yet';
COMMENT ON COLUMN public.rule_nats_consumer_stats.messages_redelivered IS
    'Messages delivered more than once and not acknowledged yet';
COMMENT ON COLUMN public.rule_nats_consumer_stats.avg_processing_time_ms IS 'The worker''s own: JetStream does not know it';
COMMENT ON COLUMN public.rule_nats_consumer_stats.last_active_at IS
    'The last delivery, acknowledgement or report of a worker';
COMMENT ON COLUMN public.rule_nats_consumer_stats.active IS 'false: JetStream had it and has it no more';

END
$schema$;

-- -------------------------------------------------------------------------------------------------------------- messages
-- What a message quotes of names and values: each RAISE of a function takes it from here.

-- src/wal/transcode.rs makes the same bytes of the same text.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_utf8(p_text TEXT)
RETURNS BYTEA LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_length CONSTANT INTEGER := length(p_text);
    v_own BYTEA;
BEGIN
    IF getdatabaseencoding() IN ('UTF8', 'SQL_ASCII') THEN
        RETURN convert_to(p_text, getdatabaseencoding());
    ELSIF p_text ~ '^[\x01-\x7f]*$' THEN
        RETURN convert_to(p_text, 'UTF8');
    END IF;
    BEGIN
        RETURN convert_to(p_text, 'UTF8');
    EXCEPTION WHEN untranslatable_character THEN
        NULL;
    END;
    IF v_length > 1 THEN
        RETURN walhook.rule_cdc_utf8(left(p_text, v_length / 2)) || walhook.rule_cdc_utf8(substr(p_text, v_length / 2 + 1));
    END IF;
    v_own := convert_to(p_text, getdatabaseencoding());
    RETURN CASE WHEN get_byte(v_own, 0) >= 192 THEN '\xff'::bytea || v_own ELSE v_own END;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_utf8 IS
    'walhook: a text in UTF-8. The bytes of a character that has no UTF-8 stand as they are, behind 0xFF if the first is 0xC0 or more; so '
    'do all bytes of a text in SQL_ASCII';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_sayable(p_text TEXT)
RETURNS TEXT LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A message with bytes that the client's encoding has not would be an error of its own.
    IF getdatabaseencoding() = 'UTF8' THEN
        RETURN p_text;
    ELSIF getdatabaseencoding() <> 'SQL_ASCII' THEN
        BEGIN
            PERFORM convert_to(p_text, 'UTF8');
            RETURN p_text;
        EXCEPTION WHEN untranslatable_character THEN
            NULL;
        END;
    END IF;
    RETURN regexp_replace(p_text, '[^\x01-\x7f]', '?', 'g');
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_sayable IS
    'walhook: a text for a message: in a database in SQL_ASCII each byte outside ASCII is replaced by ?, and so is each such character of a '
    'text that has no UTF-8, for a client''s encoding may not have it';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_quoted(p_text TEXT)
RETURNS TEXT LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT quote_literal(walhook.rule_cdc_sayable(left(p_text, 200)))
$$;
COMMENT ON FUNCTION walhook.rule_cdc_quoted IS 'walhook: the first 200 characters of a text as a literal, for a message (rule_cdc_sayable)';

-- ----------------------------------------------------------------------------------------------------------------- views
-- A view that is there may have more columns, or the same in another order, and others may depend on it. So ours comes
-- with its columns in their order, then the rest of ours; where even that is refused, theirs stays. One that is so already
-- is left alone: replacing it would wait for everybody who reads it, and they for us.

CREATE OR REPLACE PROCEDURE walhook.rule_cdc_view(p_view TEXT, p_comment TEXT, p_query TEXT)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_there CONSTANT REGCLASS := to_regclass(format('public.%I', p_view));
    v_query TEXT := p_query;
    v_columns TEXT;
    v_other BOOLEAN;
BEGIN
    IF v_there IS NOT NULL THEN
        EXECUTE format('CREATE TEMPORARY VIEW walhook_view AS %s', p_query);
        SELECT string_agg(quote_ident(c.name), ', ' ORDER BY c.theirs, c.ours), bool_or(c.theirs IS NOT NULL AND c.theirs IS DISTINCT FROM c.ours)
        INTO v_columns, v_other
        FROM (
            SELECT coalesce(t.attname, o.attname) AS name, t.attnum AS theirs, o.attnum AS ours
            FROM (SELECT a.attname, a.attnum FROM pg_attribute a WHERE a.attrelid = 'pg_temp.walhook_view'::regclass AND a.attnum > 0) o
            FULL JOIN (SELECT a.attname, a.attnum FROM pg_attribute a WHERE a.attrelid = v_there AND a.attnum > 0) t
                ON t.attname = o.attname
        ) c;
        DROP VIEW pg_temp.walhook_view;
        IF v_other THEN
            v_query := format('SELECT %s FROM (%s) v', v_columns, p_query);
        END IF;
    END IF;
    BEGIN
        EXECUTE format('CREATE TEMPORARY VIEW walhook_view AS %s', v_query);
        IF v_there IS NULL OR pg_get_viewdef('pg_temp.walhook_view'::regclass) IS DISTINCT FROM pg_get_viewdef(v_there) THEN
            EXECUTE format('CREATE OR REPLACE VIEW public.%I AS %s', p_view, v_query);
        END IF;
        DROP VIEW pg_temp.walhook_view;
    EXCEPTION WHEN invalid_table_definition OR undefined_column OR wrong_object_type THEN
        RAISE NOTICE 'the view public.% stays as it is: it has columns that ours has not, or of other types',
            walhook.rule_cdc_sayable(quote_ident(p_view));
    END;
    IF obj_description(to_regclass(format('public.%I', p_view)), 'pg_class') IS DISTINCT FROM p_comment THEN
        EXECUTE format('COMMENT ON VIEW public.%I IS %L', p_view, p_comment);
    END IF;
END
$$;
COMMENT ON PROCEDURE walhook.rule_cdc_view IS
    'walhook: for our migrations: makes a view, or changes one that is there and is not the same yet, keeping its columns and their order';

DO $views$
DECLARE
    v_view TEXT;
    v_ours TEXT;
    v_comment TEXT;
BEGIN
    FOR v_view, v_comment, v_ours IN
        VALUES
        ('nats_publish_summary', 'Events of each webhook on NATS, counted from the history', $view$
            SELECT w.webhook_id,
                   w.webhook_name,
                   w.nats_subject AS subject,
                   w.publish_mode,
                   count(h.publish_id) AS total_published,
                   count(*) FILTER (WHERE h.success) AS successful,
                   count(*) FILTER (WHERE NOT h.success) AS failed,
                   round(100.0 * count(*) FILTER (WHERE h.success) / nullif(count(h.publish_id), 0), 2)
                       AS success_rate_pct,
                   round(avg(h.latency_ms), 2) AS avg_latency_ms,
                   max(h.published_at) AS last_published_at,
                   min(h.latency_ms) AS min_latency_ms,
                   max(h.latency_ms) AS max_latency_ms
            FROM public.rule_webhooks w
            LEFT JOIN public.rule_nats_publish_history h ON h.webhook_id = w.webhook_id
            WHERE w.nats_enabled
            GROUP BY w.webhook_id, w.webhook_name, w.nats_subject, w.publish_mode$view$),
        ('nats_recent_failures', 'The newest 100 events of the last 24 hours that could not be published', $view$
            SELECT h.publish_id,
                   w.webhook_name,
                   h.subject,
                   h.error_message,
                   h.payload,
                   h.published_at,
                   h.latency_ms
            FROM public.rule_nats_publish_history h
            JOIN public.rule_webhooks w ON h.webhook_id = w.webhook_id
            WHERE NOT h.success
              AND h.published_at >= now() - INTERVAL '24 hours'
            ORDER BY h.published_at DESC
            LIMIT 100$view$),
        ('nats_performance_stats', 'Latency from publish to ack over the last 24 hours, per webhook and subject', $view$
            SELECT w.webhook_name,
                   h.subject,
                   count(*) AS message_count,
                   round(avg(h.latency_ms), 2) AS avg_latency_ms,
                   min(h.latency_ms) AS min_latency_ms,
                   max(h.latency_ms) AS max_latency_ms,
                   percentile_cont(0.5) WITHIN GROUP (ORDER BY h.latency_ms) AS p50_latency_ms,
                   percentile_cont(0.95) WITHIN GROUP (ORDER BY h.latency_ms) AS p95_latency_ms,
                   percentile_cont(0.99) WITHIN GROUP (ORDER BY h.latency_ms) AS p99_latency_ms
            FROM public.rule_nats_publish_history h
            JOIN public.rule_webhooks w ON h.webhook_id = w.webhook_id
            WHERE h.success
              AND h.published_at >= now() - INTERVAL '24 hours'
            GROUP BY w.webhook_name, h.subject$view$)
    LOOP
        CALL walhook.rule_cdc_view(v_view, v_comment, v_ours);
    END LOOP;
END
$views$;

-- ------------------------------------------------------------------------------------------------------------- functions
-- Another's functions of the names that become ours make way; what was granted on them is kept and granted again at the
-- end of the file, but for PUBLIC.

CREATE OR REPLACE PROCEDURE walhook.rule_cdc_functions_open(p_names TEXT[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f RECORD;
BEGIN
    CREATE TEMPORARY TABLE walhook_grants (function_name TEXT, grantee TEXT);
    FOR f IN
        SELECT p.oid, p.proname, p.proacl, p.proowner, e.extname
        FROM pg_proc p
        LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
        LEFT JOIN pg_extension e ON e.oid = d.refobjid
        WHERE p.pronamespace = 'public'::regnamespace
          AND p.proname = ANY (p_names)
          AND coalesce(obj_description(p.oid, 'pg_proc'), '') NOT LIKE 'walhook:%'
    LOOP
        INSERT INTO pg_temp.walhook_grants
        SELECT f.proname, pg_get_userbyid(a.grantee)
        FROM aclexplode(f.proacl) a
        WHERE a.grantee NOT IN (0, f.proowner);
        IF f.extname IS NOT NULL THEN
            EXECUTE format('ALTER EXTENSION %I DROP FUNCTION %s', f.extname, f.oid::regprocedure);
        END IF;
        EXECUTE format('DROP FUNCTION %s', f.oid::regprocedure);
    END LOOP;
END
$$;
COMMENT ON PROCEDURE walhook.rule_cdc_functions_open IS
    'walhook: for our migrations: drops functions of these names that are not ours, and remembers what was granted on them';

CREATE OR REPLACE PROCEDURE walhook.rule_cdc_functions_close()
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f RECORD;
BEGIN
    FOR f IN
        SELECT p.oid, strpos(p.prosrc, chr(92)) > 0
                      AND 'standard_conforming_strings=on' <> ALL (coalesce(p.proconfig, '{}')) AS has_backslash
        FROM pg_proc p
        WHERE p.pronamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND obj_description(p.oid, 'pg_proc') LIKE 'walhook:%'
    LOOP
        EXECUTE format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', f.oid::regprocedure);
        -- A function's text is read by the settings of its caller, who may have backslashes mean something else.
        IF f.has_backslash THEN
            EXECUTE format('ALTER ROUTINE %s SET standard_conforming_strings = on', f.oid::regprocedure);
        END IF;
    END LOOP;
    FOR f IN
        SELECT p.oid, g.grantee
        FROM pg_temp.walhook_grants g
        JOIN pg_proc p ON p.proname = g.function_name AND p.pronamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', f.oid::regprocedure, f.grantee);
    END LOOP;
    DROP TABLE pg_temp.walhook_grants;
END
$$;
COMMENT ON PROCEDURE walhook.rule_cdc_functions_close IS
    'walhook: for our migrations: takes our functions from PUBLIC and grants again what rule_cdc_functions_open remembered';

CREATE OR REPLACE PROCEDURE walhook.rule_cdc_grant(p_role TEXT, p_rights TEXT, p_tables TEXT[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name TEXT;
    v_table REGCLASS;
    v_sequence REGCLASS;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = p_role) THEN
        RETURN;
    END IF;
    FOREACH v_name IN ARRAY p_tables LOOP
        -- The first of the two: in public there can be a view of that name (005).
        v_table := coalesce(to_regclass(format('walhook.%I', v_name)), format('public.%I', v_name)::regclass);
        EXECUTE format('GRANT %s ON %s TO %I', p_rights, v_table, p_role);
        -- Sequences belong to their tables: whoever may insert may use them.
        IF p_rights LIKE '%INSERT%' THEN
            FOR v_sequence IN
                SELECT d.objid::regclass FROM pg_depend d
                JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
                WHERE d.refobjid = v_table AND d.deptype IN ('a', 'i')
            LOOP
                EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I', v_sequence, p_role);
            END LOOP;
        END IF;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE walhook.rule_cdc_grant IS
    'walhook: for our migrations: grants rights on tables of ours, and with INSERT on their sequences, to a role if there is one';

CREATE OR REPLACE PROCEDURE walhook.rule_cdc_grant_functions(p_role TEXT, p_names TEXT)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_function REGPROCEDURE;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = p_role) THEN
        RETURN;
    END IF;
    FOR v_function IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND p.proname ~ p_names
          AND obj_description(p.oid, 'pg_proc') LIKE 'walhook:%'
    LOOP
        EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', v_function, p_role);
    END LOOP;
END
$$;
COMMENT ON PROCEDURE walhook.rule_cdc_grant_functions IS
    'walhook: for our migrations: grants the right to call the functions of ours whose names match a regular expression, to a role if '
    'there is one';

CREATE OR REPLACE PROCEDURE walhook.rule_cdc_trigger(
    p_table REGCLASS,
    p_name TEXT,
    p_event TEXT,
    p_when TEXT,
    p_function REGPROCEDURE,
    p_about TEXT
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_trigger t
               WHERE t.tgrelid = p_table AND t.tgname = p_name AND t.tgfoid = p_function AND t.tgenabled <> 'D'
                 -- That of an earlier version looks at fewer columns.
                 AND cardinality(t.tgattr::int2[]) = coalesce(cardinality(string_to_array(substring(p_event FROM ' OF (.*)'), ',')), 0))
    THEN
        RETURN;
    END IF;
    EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', p_name, p_table);
    EXECUTE format('CREATE TRIGGER %I %s ON %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION %s', p_name, p_event, p_table, p_when, p_function);
    EXECUTE format('COMMENT ON TRIGGER %I ON %s IS %L', p_name, p_table, 'walhook: ' || p_about);
END
$$;
COMMENT ON PROCEDURE walhook.rule_cdc_trigger IS
    'walhook: for our migrations: makes a trigger for each row, unless it is there: a trigger waits for those who write into its table';

CALL walhook.rule_cdc_functions_open(ARRAY[
    'rule_nats_configure', 'rule_nats_stream_create', 'rule_webhook_enable_nats', 'rule_webhook_disable_nats',
    'rule_nats_stats', 'rule_nats_config_info', 'rule_nats_webhooks_list', 'rule_nats_cleanup_expired',
    'rule_nats_cleanup_old_history', 'rule_nats_consumer_update_stats']);

CREATE OR REPLACE FUNCTION public.rule_nats_subject_check(p_subject TEXT)
RETURNS TEXT LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_subject ~ '[^\x01-\x7f]' AND getdatabaseencoding() NOT IN ('UTF8', 'SQL_ASCII') THEN
        BEGIN
            PERFORM convert_to(p_subject, 'UTF8');
        EXCEPTION WHEN untranslatable_character THEN
            RETURN 'it has a character that has no UTF-8';
        END;
    END IF;
    RETURN CASE
        WHEN p_subject IS NULL THEN 'it is NULL'
        WHEN p_subject = '' THEN 'it is empty'
        -- Before anything is converted: its bytes may be in no encoding.
        WHEN p_subject ~ '[^\x01-\x7f]' AND getdatabaseencoding() = 'SQL_ASCII'
            THEN 'it has a character outside ASCII, and this database (SQL_ASCII) does not say which'
        WHEN octet_length(convert_to(p_subject, 'UTF8')) > 1024
            THEN format('it has %s bytes, at most 1024 are allowed', octet_length(convert_to(p_subject, 'UTF8')))
        WHEN p_subject ~ '(^|\.)(\.|$)' THEN 'it has an empty token (two dots in a row, or a dot at an end)'
        WHEN p_subject ~ '[*>]' THEN 'it has a wildcard (* or >): a message is published to one subject only'
        WHEN p_subject ~ '[\x01-\x20\x7f]' THEN 'it has white space or a control character'
        -- The others of Unicode by their bytes in UTF-8, which are the same in every encoding of the database.
        WHEN p_subject ~ '[^\x01-\x7f]' AND encode(convert_to(p_subject, 'UTF8'), 'hex')
             ~ '^(..)*(c2[89].|c2a0|e19a80|e2808[0-9a]|e280a[89f]|e2819f|e38080)' THEN 'it has white space or a control character'
        WHEN p_subject LIKE '$%' THEN 'subjects that begin with $ belong to the NATS server'
        WHEN p_subject LIKE '\_INBOX.%' THEN 'subjects below _INBOX are for replies'
    END;
END
$$;
COMMENT ON FUNCTION public.rule_nats_subject_check IS
    'walhook: why this subject cannot be published to, or NULL where it can';

CREATE OR REPLACE FUNCTION walhook.rule_nats_pattern_problem(p_pattern TEXT)
RETURNS TEXT LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    -- A pattern is a subject once its wildcards, each a token of its own and > the last, are put aside.
    SELECT CASE WHEN p_pattern = '>' THEN 'it takes everything, the answers of NATS itself too'
                ELSE public.rule_nats_subject_check(
                    regexp_replace(regexp_replace(p_pattern, '(^|\.)>$', '\1x'), '(^|\.)\*(?=\.|$)', '\1x', 'g')) END
$$;
COMMENT ON FUNCTION walhook.rule_nats_pattern_problem IS 'walhook: why no stream can take this pattern, or NULL where one can';

CREATE OR REPLACE FUNCTION public.rule_nats_subject_token(p_text TEXT)
RETURNS TEXT LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_bytes BYTEA;
BEGIN
    IF p_text ~ '^[A-Za-z0-9_-]*$' THEN
        RETURN p_text;
    ELSIF getdatabaseencoding() IN ('UTF8', 'SQL_ASCII') THEN
        -- Of bytes in an unknown encoding no UTF-8 can be made.
        v_bytes := convert_to(p_text, getdatabaseencoding());
    ELSE
        v_bytes := walhook.rule_cdc_utf8(p_text);
    END IF;
    RETURN (
        SELECT string_agg(
            CASE WHEN byte BETWEEN 48 AND 57 OR byte BETWEEN 65 AND 90 OR byte BETWEEN 97 AND 122 OR byte IN (45, 95) THEN chr(byte)
                 ELSE '%' || upper(lpad(to_hex(byte), 2, '0')) END,
            '' ORDER BY i)
        FROM (SELECT i, get_byte(v_bytes, i) AS byte FROM generate_series(0, octet_length(v_bytes) - 1) i) bytes);
END
$$;
COMMENT ON FUNCTION public.rule_nats_subject_token IS
    'walhook: the text as one subject token: UTF-8 bytes outside [A-Za-z0-9_-] percent-encoded';

CREATE OR REPLACE FUNCTION walhook.rule_nats_subjects_overlap(p_a TEXT, p_b TEXT)
RETURNS BOOLEAN LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_a TEXT[] := string_to_array(p_a, '.');
    v_b TEXT[] := string_to_array(p_b, '.');
BEGIN
    FOR i IN 1 .. least(cardinality(v_a), cardinality(v_b)) LOOP
        IF v_a[i] = '>' OR v_b[i] = '>' THEN
            RETURN true;
        END IF;
        IF v_a[i] <> v_b[i] AND v_a[i] <> '*' AND v_b[i] <> '*' THEN
            RETURN false;
        END IF;
    END LOOP;
    RETURN cardinality(v_a) = cardinality(v_b);
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_subjects_overlap IS
    'walhook: whether some subject matches both patterns (a plain subject is a pattern that matches itself)';

CREATE OR REPLACE FUNCTION walhook.rule_nats_subject_covers(p_wide TEXT, p_narrow TEXT)
RETURNS BOOLEAN LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_wide TEXT[] := string_to_array(p_wide, '.');
    v_narrow TEXT[] := string_to_array(p_narrow, '.');
BEGIN
    FOR i IN 1 .. cardinality(v_wide) LOOP
        IF i > cardinality(v_narrow) THEN
            RETURN false;
        ELSIF v_wide[i] = '>' THEN
            RETURN true;
        ELSIF v_narrow[i] = '>' OR v_wide[i] <> '*' AND v_wide[i] <> v_narrow[i] THEN
            RETURN false;
        END IF;
    END LOOP;
    RETURN cardinality(v_wide) = cardinality(v_narrow);
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_subject_covers IS
    'walhook: whether every subject that matches the second pattern matches the first';

-- The streamer reads the same rows by the same rules (src/route/streams.rs).
CREATE OR REPLACE FUNCTION public.rule_nats_streams_of(p_config_id INTEGER)
RETURNS TABLE (stream_name TEXT, subjects TEXT[], has_row BOOLEAN)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH config AS (
        SELECT c.config_id, c.config_name, c.stream_name,
               coalesce(nullif(c.subject_prefix, ''), 'webhooks') || '.>' AS pattern
        FROM public.rule_nats_config c
        WHERE c.config_id = coalesce(
            p_config_id, (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default'))
    ), described AS (
        SELECT s.stream_id, s.stream_name, s.subjects, s.enabled
        FROM public.rule_nats_streams s
        JOIN config c ON c.config_id = s.config_id OR s.config_id IS NULL AND c.config_name = 'default'
    )
    SELECT stream_name, subjects, has_row
    FROM (
        SELECT d.stream_name, d.subjects, true AS has_row, d.stream_id
        FROM described d
        WHERE d.enabled IS NOT FALSE
        UNION ALL
        SELECT c.stream_name, ARRAY[c.pattern], false, NULL
        FROM config c
        WHERE c.stream_name <> '' AND NOT EXISTS (SELECT FROM described d WHERE d.stream_name = c.stream_name)
    ) streams
    ORDER BY stream_name IS DISTINCT FROM (SELECT c.stream_name FROM config c), stream_id
$$;
COMMENT ON FUNCTION public.rule_nats_streams_of IS
    'walhook: the streams of a configuration (NULL: default), its own first: stream_name of rule_nats_config, which takes '
    '<subject_prefix>.> where no row describes it. What two of them would take goes to the first';

CREATE OR REPLACE FUNCTION walhook.rule_nats_stream_for(p_config_id INTEGER, p_subject TEXT)
RETURNS TEXT[] LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(s.stream_name ORDER BY s.place), '{}')
    FROM public.rule_nats_streams_of(p_config_id) WITH ORDINALITY s (stream_name, subjects, has_row, place)
    WHERE EXISTS (SELECT FROM unnest(s.subjects) pattern WHERE walhook.rule_nats_subjects_overlap(pattern, p_subject))
$$;
COMMENT ON FUNCTION walhook.rule_nats_stream_for IS
    'walhook: the streams of a configuration that take this subject; of more than one, which is a mistake, the first has it';

CREATE OR REPLACE FUNCTION walhook.rule_nats_take_hint(p_config_id INTEGER, p_subject TEXT)
RETURNS TEXT LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(
        (SELECT format('UPDATE rule_nats_streams SET enabled = true, subjects = array_append(subjects, %L) WHERE stream_id = %s; lets the '
                       'stream %L take it.', p_subject, s.stream_id, s.stream_name)
         FROM public.rule_nats_streams s
         WHERE s.config_id = c.config_id OR s.config_id IS NULL AND c.config_name = 'default'
         ORDER BY s.stream_name IS DISTINCT FROM c.stream_name, s.stream_id LIMIT 1),
        format('SELECT rule_nats_stream_create(%L, ARRAY[%L], %L); makes one that does.',
               'EVENTS' || CASE WHEN c.stream_name = 'EVENTS' THEN '_2' ELSE '' END, p_subject, c.config_name))
    FROM public.rule_nats_config c
    WHERE c.config_id = coalesce(p_config_id, (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default'))
$$;
COMMENT ON FUNCTION walhook.rule_nats_take_hint IS 'walhook: the statement after which some stream of a configuration takes this subject';

CREATE OR REPLACE FUNCTION walhook.rule_nats_servers(p_nats_url TEXT, p_cluster_urls TEXT[])
RETURNS TEXT[] LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(DISTINCT CASE WHEN address ~ ':[0-9]+$' THEN address ELSE address || ':4222' END)
    FROM unnest(array_prepend(p_nats_url, p_cluster_urls)) url,
         lower(regexp_replace(url, '^([a-zA-Z]+://)?([^@]*@)?|/*$', '', 'g')) address
    WHERE url IS NOT NULL
$$;
COMMENT ON FUNCTION walhook.rule_nats_servers IS 'walhook: host:port of each server of a configuration';

-- Runs with its owner's rights, for it compares secrets that an operator may not read; it tells none.
CREATE OR REPLACE FUNCTION walhook.rule_nats_stream_conflicts(p_config_id INTEGER, p_stream_name TEXT, p_subjects TEXT[])
RETURNS TABLE (subject TEXT, pattern TEXT, stream_name TEXT, config_name TEXT, has_row BOOLEAN)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT subject, pattern, s.stream_name, c.config_name, s.has_row
    FROM public.rule_nats_config me
    JOIN public.rule_nats_config c
        ON c.config_id = me.config_id
        OR c.enabled IS NOT FALSE AND c.jetstream_enabled IS NOT FALSE
           AND me.enabled IS NOT FALSE AND me.jetstream_enabled IS NOT FALSE
           AND walhook.rule_nats_servers(c.nats_url, c.nats_cluster_urls)
               && walhook.rule_nats_servers(me.nats_url, me.nats_cluster_urls)
           -- Another user may be of another account, which has streams of its own.
           AND (c.auth_type, c.auth_token, c.auth_credentials_file, c.auth_nkey_seed, substring(c.nats_url FROM '//(.*)@'))
               IS NOT DISTINCT FROM
               (me.auth_type, me.auth_token, me.auth_credentials_file, me.auth_nkey_seed,
                substring(me.nats_url FROM '//(.*)@'))
           -- Another JetStream domain or API prefix leads to other streams. The columns come with 017.
           AND (nullif(to_jsonb(c) ->> 'jetstream_domain', ''), nullif(to_jsonb(c) ->> 'api_prefix', ''))
               IS NOT DISTINCT FROM
               (nullif(to_jsonb(me) ->> 'jetstream_domain', ''), nullif(to_jsonb(me) ->> 'api_prefix', ''))
    CROSS JOIN LATERAL public.rule_nats_streams_of(c.config_id) s
    CROSS JOIN unnest(s.subjects) pattern
    CROSS JOIN unnest(p_subjects) subject
    WHERE me.config_id = p_config_id
      AND CASE WHEN s.stream_name = p_stream_name THEN c.config_id <> me.config_id
               ELSE walhook.rule_nats_subjects_overlap(pattern, subject) END
    ORDER BY c.config_id <> me.config_id, s.has_row, s.stream_name
$$;
COMMENT ON FUNCTION walhook.rule_nats_stream_conflicts IS
    'walhook: which streams of the same server stand in the way of such a stream: of the same configuration, or of another '
    'that reaches the server as the same user';

CREATE OR REPLACE FUNCTION walhook.rule_nats_stream_name_problem(p_stream_name TEXT)
RETURNS TEXT LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN coalesce(p_stream_name !~ '^[^[:space:].*>/\\[:cntrl:]]{1,255}$', true)
                THEN format('cannot name a stream %s', coalesce(quote_literal(left(p_stream_name, 300)), 'NULL'))
                -- walhook's own bucket of webhooks is such a stream, and those of applications are.
                WHEN p_stream_name ~ '^(KV|OBJ)_'
                THEN format('cannot name a stream %L: it would be the stream of a bucket', left(p_stream_name, 300)) END
$$;
COMMENT ON FUNCTION walhook.rule_nats_stream_name_problem IS 'walhook: why this cannot be a stream''s name, or NULL where it can';

CREATE OR REPLACE FUNCTION public.rule_nats_configure(
    p_config_name TEXT DEFAULT 'default',
    p_nats_url TEXT DEFAULT 'nats://localhost:4222',
    p_auth_type TEXT DEFAULT 'none',
    p_jetstream_enabled BOOLEAN DEFAULT true,
    p_stream_name TEXT DEFAULT NULL,
    p_subject_prefix TEXT DEFAULT NULL
) RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_config_id INTEGER := (SELECT c.config_id FROM public.rule_nats_config c WHERE c.config_name = p_config_name);
    v_before JSONB := '[]';
    v_stream_name TEXT := coalesce(p_stream_name, 'WEBHOOKS');
    v_subject_prefix TEXT := coalesce(p_subject_prefix, 'webhooks');
    v_own RECORD;
    v_other RECORD;
BEGIN
    IF p_config_name IS NULL OR p_config_name = '' THEN
        RAISE EXCEPTION 'a NATS configuration needs a name' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_nats_url IS NULL OR p_nats_url !~* '^((nats|tls|ws|wss)://)?([^[:space:]/@]*@)?[^[:space:]/@]+/?$' THEN
        RAISE EXCEPTION 'NATS configuration %: cannot use the url %', walhook.rule_cdc_quoted(p_config_name),
            coalesce(walhook.rule_cdc_quoted(regexp_replace(p_nats_url, '//[^@/]*@', '//...@')), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Write it as nats://host:4222 or tls://host:4222.';
    END IF;
    IF p_auth_type IS NULL OR p_auth_type NOT IN ('none', 'token', 'credentials', 'nkey') THEN
        RAISE EXCEPTION 'NATS configuration %: unknown auth_type %', walhook.rule_cdc_quoted(p_config_name),
            coalesce(walhook.rule_cdc_quoted(p_auth_type), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It is none, token, credentials or nkey.';
    END IF;
    IF p_subject_prefix IS NOT NULL AND public.rule_nats_subject_check(p_subject_prefix || '.x') IS NOT NULL THEN
        RAISE EXCEPTION 'NATS configuration %: cannot use the subject prefix %: %', walhook.rule_cdc_quoted(p_config_name),
            walhook.rule_cdc_quoted(p_subject_prefix),
            walhook.rule_cdc_sayable(coalesce(public.rule_nats_subject_check(p_subject_prefix), public.rule_nats_subject_check(p_subject_prefix || '.x')))
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_stream_name IS NOT NULL AND walhook.rule_nats_stream_name_problem(p_stream_name) IS NOT NULL THEN
        RAISE EXCEPTION 'NATS configuration %: %', walhook.rule_cdc_quoted(p_config_name),
            walhook.rule_cdc_sayable(walhook.rule_nats_stream_name_problem(p_stream_name))
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'A stream name has 1 to 255 characters, no space, dot, *, >, / or \ among them, and does not begin with KV_ or OBJ_.';
    END IF;
    IF v_config_id IS NOT NULL THEN
        SELECT coalesce(jsonb_agg(to_jsonb(k)), '[]') INTO v_before
        FROM public.rule_nats_streams_of(v_config_id) own,
             walhook.rule_nats_stream_conflicts(v_config_id, own.stream_name, own.subjects) k;
    ELSIF coalesce(p_jetstream_enabled, true) THEN
        -- A second configuration of a server has a stream and a prefix of its own: two cannot take the same subjects.
        SELECT c.config_name INTO v_other
        FROM public.rule_nats_config c
        WHERE c.jetstream_enabled IS NOT FALSE
          AND walhook.rule_nats_servers(c.nats_url, c.nats_cluster_urls) && walhook.rule_nats_servers(p_nats_url, NULL)
        ORDER BY c.config_id
        LIMIT 1;
        IF FOUND THEN
            v_stream_name := coalesce(p_stream_name, upper(regexp_replace(left(p_config_name, 100), '[^A-Za-z0-9_-]', '_', 'g')));
            v_subject_prefix := coalesce(p_subject_prefix, regexp_replace(left(p_config_name, 100), '[^A-Za-z0-9_-]', '_', 'g'));
            IF p_stream_name IS NULL OR p_subject_prefix IS NULL THEN
                RAISE NOTICE 'NATS config % uses the same server as %: its stream is %, its subjects begin with %.',
                    walhook.rule_cdc_quoted(p_config_name), walhook.rule_cdc_quoted(v_other.config_name),
                        walhook.rule_cdc_quoted(v_stream_name),
                    walhook.rule_cdc_sayable(v_subject_prefix)
                    USING HINT = 'p_stream_name and p_subject_prefix choose others.';
            END IF;
        END IF;
    END IF;
    INSERT INTO public.rule_nats_config AS c
        (config_name, nats_url, auth_type, jetstream_enabled, stream_name, subject_prefix)
    VALUES (p_config_name, p_nats_url, p_auth_type, coalesce(p_jetstream_enabled, true),
            v_stream_name, v_subject_prefix)
    ON CONFLICT (config_name) DO UPDATE SET
        nats_url = excluded.nats_url,
        auth_type = excluded.auth_type,
        jetstream_enabled = excluded.jetstream_enabled,
        stream_name = coalesce(p_stream_name, c.stream_name),
        subject_prefix = coalesce(p_subject_prefix, c.subject_prefix),
        updated_at = now()
    RETURNING c.config_id INTO v_config_id;
    -- What was in each other's way before may stay so; nothing new may come.
    FOR v_own IN SELECT * FROM public.rule_nats_streams_of(v_config_id) LOOP
        SELECT * INTO v_other
        FROM walhook.rule_nats_stream_conflicts(v_config_id, v_own.stream_name, v_own.subjects) k
        WHERE NOT v_before @> jsonb_build_array(to_jsonb(k))
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'NATS configuration %: its stream % would take %, and stream % of NATS config % on the same server takes %',
                walhook.rule_cdc_quoted(p_config_name), walhook.rule_cdc_quoted(v_own.stream_name), walhook.rule_cdc_quoted(v_other.subject),
                walhook.rule_cdc_quoted(v_other.stream_name), walhook.rule_cdc_quoted(v_other.config_name),
                    walhook.rule_cdc_quoted(v_other.pattern)
                USING ERRCODE = 'invalid_parameter_value',
                HINT = 'JetStream lets one stream only take a subject. Choose another p_stream_name and p_subject_prefix, '
                       'or narrow that stream; where it is another configuration''s, use that one, or disable it.';
        END IF;
    END LOOP;
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_nats_configure IS
    'walhook: writes a NATS configuration; secrets, TLS files and limits are columns of rule_nats_config, or the streamer''s environment. '
    'A new one on a server that another uses has a stream and a subject prefix named after itself';

CREATE OR REPLACE FUNCTION public.rule_nats_stream_create(
    p_stream_name TEXT,
    p_subjects TEXT[],
    p_config_name TEXT DEFAULT 'default',
    p_retention_policy TEXT DEFAULT 'limits',
    p_max_age_seconds BIGINT DEFAULT 604800,
    p_description TEXT DEFAULT NULL
) RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_config RECORD;
    v_stream_id INTEGER;
    v_subject TEXT;
    v_other RECORD;
BEGIN
    IF walhook.rule_nats_stream_name_problem(p_stream_name) IS NOT NULL THEN
        RAISE EXCEPTION '%', walhook.rule_cdc_sayable(walhook.rule_nats_stream_name_problem(p_stream_name))
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'A stream name has 1 to 255 characters, no space, dot, *, >, / or \ among them, and does not begin with KV_ or OBJ_.';
    END IF;
    IF coalesce(cardinality(p_subjects), 0) = 0 THEN
        RAISE EXCEPTION 'stream % needs at least one subject', walhook.rule_cdc_quoted(p_stream_name)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'For example ARRAY[''webhooks.>''].';
    END IF;
    FOREACH v_subject IN ARRAY p_subjects LOOP
        IF walhook.rule_nats_pattern_problem(v_subject) IS NOT NULL OR v_subject IS NULL THEN
            RAISE EXCEPTION 'stream %: cannot take the subject %: %', walhook.rule_cdc_quoted(p_stream_name),
                coalesce(walhook.rule_cdc_quoted(v_subject), 'NULL'),
                walhook.rule_cdc_sayable(coalesce(walhook.rule_nats_pattern_problem(v_subject), 'it is NULL'))
                USING ERRCODE = 'invalid_parameter_value',
                HINT = CASE v_subject WHEN '>' THEN 'Say what it begins with: webhooks.>, events.>'
                                      ELSE '* stands for one whole token, > for one or more at the end: orders.*, orders.>' END;
        END IF;
    END LOOP;
    IF p_retention_policy IS NULL OR p_retention_policy NOT IN ('limits', 'interest', 'workqueue') THEN
        RAISE EXCEPTION 'stream %: unknown retention policy %', walhook.rule_cdc_quoted(p_stream_name),
            coalesce(walhook.rule_cdc_quoted(p_retention_policy), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It is limits, interest or workqueue.';
    END IF;
    SELECT a, b INTO v_other
    FROM unnest(p_subjects) WITH ORDINALITY x (a, i), unnest(p_subjects) WITH ORDINALITY y (b, j)
    WHERE i < j AND walhook.rule_nats_subjects_overlap(a, b)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'stream %: its subjects % and % overlap', walhook.rule_cdc_quoted(p_stream_name), walhook.rule_cdc_quoted(v_other.a),
            walhook.rule_cdc_quoted(v_other.b)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Keep the wider of the two.';
    END IF;
    SELECT c.config_id, c.stream_name INTO v_config FROM public.rule_nats_config c WHERE c.config_name = p_config_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'NATS config % not found', walhook.rule_cdc_sayable(coalesce(p_config_name, 'NULL'))
            USING ERRCODE = 'no_data_found', HINT = walhook.rule_cdc_sayable(
                format('SELECT rule_nats_configure(%L, ''nats://host:4222''); makes it.', p_config_name));
    END IF;
    IF EXISTS (SELECT FROM public.rule_nats_streams s
               WHERE s.config_id = v_config.config_id AND s.stream_name = p_stream_name) THEN
        RAISE EXCEPTION 'stream % of NATS config % exists already', walhook.rule_cdc_quoted(p_stream_name),
            walhook.rule_cdc_quoted(p_config_name)
            USING ERRCODE = 'unique_violation',
            HINT = walhook.rule_cdc_sayable(
                format('UPDATE rule_nats_streams SET subjects = %L WHERE config_id = %s AND stream_name = %L; changes it.', p_subjects,
                          v_config.config_id, p_stream_name));
    END IF;
    FOR v_other IN
        SELECT * FROM walhook.rule_nats_stream_conflicts(v_config.config_id, p_stream_name, p_subjects)
    LOOP
        IF v_other.config_name <> p_config_name THEN
            RAISE EXCEPTION 'stream %: its subject % overlaps % of stream % of NATS config %, which uses the same server',
                walhook.rule_cdc_quoted(p_stream_name), walhook.rule_cdc_quoted(v_other.subject), walhook.rule_cdc_quoted(v_other.pattern),
                walhook.rule_cdc_quoted(v_other.stream_name), walhook.rule_cdc_quoted(v_other.config_name)
                USING ERRCODE = 'invalid_parameter_value',
                HINT = walhook.rule_cdc_sayable(
                    format('JetStream lets one stream only take a subject, and one configuration only may publish to a '
                              'stream. Choose another name and other subjects, use NATS config %L, or disable it.',
                              v_other.config_name));
        ELSIF v_other.has_row THEN
            RAISE EXCEPTION 'stream %: its subject % overlaps % of stream %', walhook.rule_cdc_quoted(p_stream_name),
                walhook.rule_cdc_quoted(v_other.subject), walhook.rule_cdc_quoted(v_other.pattern),
                    walhook.rule_cdc_quoted(v_other.stream_name)
                USING ERRCODE = 'invalid_parameter_value',
                HINT = 'JetStream lets one stream only take a subject. Narrow one of the two.';
        ELSIF NOT walhook.rule_nats_subject_covers(v_other.subject, v_other.pattern)
              OR EXISTS (SELECT FROM public.rule_nats_checkpoints k
                         WHERE k.config_name = p_config_name AND k.stream_name = v_other.stream_name)
        THEN
            RAISE EXCEPTION 'stream %: its subject % overlaps % of stream %, which NATS config % has without a row',
                walhook.rule_cdc_quoted(p_stream_name), walhook.rule_cdc_quoted(v_other.subject), walhook.rule_cdc_quoted(v_other.pattern),
                walhook.rule_cdc_quoted(v_other.stream_name), walhook.rule_cdc_quoted(p_config_name)
                USING ERRCODE = 'invalid_parameter_value',
                HINT = walhook.rule_cdc_sayable(format('JetStream lets one stream only take a subject. Say first what %1$s shall keep: '
                              'SELECT rule_nats_stream_create(%1$L, ARRAY[%3$L], %2$L); with subjects of its own. Where it exists in JetStream already, '
                              'narrow it there too: walhook takes no subject away from a stream.',
                              v_other.stream_name, p_config_name, lower(v_other.stream_name) || '.>'));
        ELSE
            -- It takes all that the configuration's own stream would, and that one has never been: so it is that one.
            UPDATE public.rule_nats_config SET stream_name = p_stream_name, updated_at = now()
            WHERE config_id = v_config.config_id;
            RAISE NOTICE 'stream % takes the place of %, the own stream of NATS config % (rule_nats_config.stream_name)',
                walhook.rule_cdc_quoted(p_stream_name), walhook.rule_cdc_quoted(v_other.stream_name), walhook.rule_cdc_quoted(p_config_name);
        END IF;
    END LOOP;

    INSERT INTO public.rule_nats_streams
        (config_id, stream_name, subjects, retention_policy, max_age_seconds, description, duplicate_window_seconds)
    VALUES (v_config.config_id, p_stream_name, p_subjects, p_retention_policy, p_max_age_seconds, p_description,
            -- JetStream remembers no message id for longer than it keeps the message.
            least(120, CASE WHEN p_max_age_seconds > 0 THEN p_max_age_seconds END))
    RETURNING stream_id INTO v_stream_id;

    SELECT concat_ws(', ', CASE WHEN s.max_messages > 0 THEN s.max_messages || ' messages' END,
                     CASE WHEN s.max_bytes > 0 THEN pg_size_pretty(s.max_bytes) END,
                     CASE WHEN s.max_age_seconds > 0 THEN s.max_age_seconds || ' seconds' END) AS limits INTO v_other
    FROM public.rule_nats_streams s WHERE s.stream_id = v_stream_id;
    IF v_other.limits <> '' THEN
        RAISE NOTICE 'stream % deletes its oldest events beyond %, whether consumers have read them or not',
            walhook.rule_cdc_quoted(p_stream_name), walhook.rule_cdc_sayable(v_other.limits)
            USING HINT = format('UPDATE rule_nats_streams SET discard_policy = ''new'', max_age_seconds = 0 WHERE stream_id = %s; makes '
                                'publishing wait instead, and PostgreSQL keeps the WAL.', v_stream_id);
    END IF;

    FOR v_other IN
        SELECT w.webhook_name, w.nats_subject
        FROM public.rule_webhooks w
        WHERE w.nats_enabled
          AND (w.nats_config_id = v_config.config_id OR w.nats_config_id IS NULL AND p_config_name = 'default')
          AND walhook.rule_nats_stream_for(v_config.config_id, w.nats_subject) = '{}'
    LOOP
        RAISE NOTICE 'stream % does not take %, the subject of webhook %, nor does another stream',
            walhook.rule_cdc_quoted(p_stream_name), walhook.rule_cdc_quoted(v_other.nats_subject),
                walhook.rule_cdc_quoted(v_other.webhook_name);
    END LOOP;
    IF to_regclass('public.rule_webhook_links') IS NOT NULL THEN -- made by 008
        FOR v_other IN
            SELECT w.webhook_name, l.table_schema, l.table_name, subject
            FROM public.rule_webhook_links l
            JOIN public.rule_webhooks w USING (webhook_id)
            CROSS JOIN unnest(walhook.rule_cdc_link_subjects(l.webhook_id, l.table_schema, l.table_name, l.operations,
                                                            l.subject_template)) subject
            WHERE w.nats_enabled AND l.enabled AND l.subject_template IS NOT NULL
              AND (w.nats_config_id = v_config.config_id OR w.nats_config_id IS NULL AND p_config_name = 'default')
              AND walhook.rule_nats_stream_for(v_config.config_id, subject) = '{}'
        LOOP
            RAISE NOTICE 'stream % does not take %, a subject of the link of %.% to webhook %, nor does another stream',
                walhook.rule_cdc_quoted(p_stream_name), walhook.rule_cdc_quoted(v_other.subject),
                    walhook.rule_cdc_sayable(quote_ident(v_other.table_schema)),
                walhook.rule_cdc_sayable(quote_ident(v_other.table_name)), walhook.rule_cdc_quoted(v_other.webhook_name);
        END LOOP;
    END IF;
    RETURN v_stream_id;
END
$$;
COMMENT ON FUNCTION public.rule_nats_stream_create IS
    'walhook: describes a stream for the streamer to create and returns its id; widens nothing, and tells by NOTICE which limits '
    'delete events that nobody has read, and which subjects of webhooks and links no stream takes. Refuses what overlaps another stream of the same server';

CREATE OR REPLACE FUNCTION public.rule_webhook_enable_nats(
    p_webhook_id INTEGER,
    p_nats_subject TEXT DEFAULT NULL,
    p_publish_mode TEXT DEFAULT 'both',
    p_config_name TEXT DEFAULT 'default'
) RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_config RECORD;
    v_name TEXT;
    v_subject TEXT;
    v_problem TEXT;
    v_other RECORD;
BEGIN
    IF p_publish_mode IS NULL OR p_publish_mode NOT IN ('queue', 'nats', 'both') THEN
        RAISE EXCEPTION 'Invalid publish_mode %', coalesce(walhook.rule_cdc_quoted(p_publish_mode), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It is queue, nats or both.';
    END IF;
    SELECT config_id, subject_prefix, stream_name, enabled, jetstream_enabled INTO v_config
    FROM public.rule_nats_config WHERE config_name = p_config_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'NATS config % not found', walhook.rule_cdc_sayable(coalesce(p_config_name, 'NULL'))
            USING ERRCODE = 'no_data_found',
            HINT = walhook.rule_cdc_sayable(format('SELECT rule_nats_configure(%L, ''nats://host:4222''); makes it.', p_config_name));
    END IF;
    SELECT webhook_name INTO v_name FROM public.rule_webhooks WHERE webhook_id = p_webhook_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Webhook % not found', coalesce(p_webhook_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_webhook_list(); lists the webhooks.';
    END IF;
    v_subject := coalesce(p_nats_subject,
                          coalesce(v_config.subject_prefix, 'webhooks') || '.' || public.rule_nats_subject_token(v_name));
    v_problem := public.rule_nats_subject_check(v_subject);
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'webhook %: cannot publish to the subject %: %', walhook.rule_cdc_quoted(v_name),
            walhook.rule_cdc_quoted(v_subject), walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = format('For example: SELECT rule_webhook_enable_nats(%s, ''webhooks.%s'');', p_webhook_id, p_webhook_id);
    END IF;

    UPDATE public.rule_webhooks
    SET nats_enabled = true,
        nats_subject = v_subject,
        nats_config_id = v_config.config_id,
        publish_mode = p_publish_mode,
        updated_at = now()
    WHERE webhook_id = p_webhook_id;

    IF NOT coalesce(v_config.enabled, true) THEN
        RAISE NOTICE 'NATS config % is disabled: nothing is published until it is enabled', walhook.rule_cdc_quoted(p_config_name);
    END IF;
    IF NOT coalesce(v_config.jetstream_enabled, true) OR walhook.rule_nats_stream_for(v_config.config_id, v_subject) <> '{}' THEN
        RETURN true;
    END IF;
    -- A subject that no stream takes would be refused by JetStream, one event after the other. The configuration's own
    -- stream is told to take it, and so is the user.
    SELECT * INTO v_other
    FROM walhook.rule_nats_stream_conflicts(v_config.config_id, v_config.stream_name, ARRAY[v_subject]) k
    WHERE k.config_name <> p_config_name AND walhook.rule_nats_subjects_overlap(k.pattern, v_subject)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'webhook %: its subject % belongs to stream % of NATS config %, which uses the same server',
            walhook.rule_cdc_quoted(v_name), walhook.rule_cdc_quoted(v_subject), walhook.rule_cdc_quoted(v_other.stream_name),
            walhook.rule_cdc_quoted(v_other.config_name)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = walhook.rule_cdc_sayable(
                format('SELECT rule_webhook_enable_nats(%s, %L, %L, %L); or choose a subject under %s.', p_webhook_id,
                          v_subject, p_publish_mode, v_other.config_name, coalesce(v_config.subject_prefix, 'webhooks')));
    END IF;
    UPDATE public.rule_nats_streams s SET subjects = s.subjects || v_subject
    WHERE s.config_id = v_config.config_id AND s.stream_name = v_config.stream_name AND s.enabled IS NOT FALSE;
    IF NOT FOUND AND EXISTS (SELECT FROM public.rule_nats_streams_of(v_config.config_id) o WHERE NOT o.has_row) THEN
        -- No limits: the stream stays what it is, or would have been, without a row.
        INSERT INTO public.rule_nats_streams
            (config_id, stream_name, subjects, max_messages, max_bytes, max_age_seconds, duplicate_window_seconds)
        SELECT v_config.config_id, o.stream_name, o.subjects || v_subject, NULL, NULL, NULL, NULL
        FROM public.rule_nats_streams_of(v_config.config_id) o
        WHERE NOT o.has_row;
    END IF;
    IF FOUND THEN
        RAISE NOTICE 'stream % did not take the subject % and now does', walhook.rule_cdc_quoted(v_config.stream_name),
            walhook.rule_cdc_quoted(v_subject)
            USING HINT = 'SELECT subjects FROM rule_nats_streams; shows them all. A pattern with > takes more at once.';
    ELSE
        RAISE NOTICE 'no stream of NATS config % takes the subject % yet', walhook.rule_cdc_quoted(p_config_name),
            walhook.rule_cdc_quoted(v_subject)
            USING HINT = walhook.rule_cdc_sayable(walhook.rule_nats_take_hint(v_config.config_id, v_subject));
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_enable_nats IS
    'walhook: publishes a webhook to NATS (mode nats), or to NATS and the queue (both); without a subject it is <subject_prefix>.<name>';

CREATE OR REPLACE FUNCTION public.rule_webhook_disable_nats(p_webhook_id INTEGER)
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE public.rule_webhooks SET nats_enabled = false, publish_mode = 'queue', updated_at = now()
    WHERE webhook_id = p_webhook_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Webhook % not found', coalesce(p_webhook_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_webhook_list(); lists the webhooks.';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_disable_nats IS 'walhook: back to the PostgreSQL queue alone; links stay, and publish nothing';

CREATE OR REPLACE FUNCTION public.rule_nats_stats(p_webhook_id INTEGER DEFAULT NULL, p_hours INTEGER DEFAULT 24)
RETURNS JSON LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT json_build_object(
        'total_published', count(*),
        'successful', count(*) FILTER (WHERE success),
        'failed', count(*) FILTER (WHERE NOT success),
        'success_rate_pct', round(100.0 * count(*) FILTER (WHERE success) / nullif(count(*), 0), 2),
        'avg_latency_ms', round(avg(latency_ms), 2),
        'min_latency_ms', min(latency_ms),
        'max_latency_ms', max(latency_ms),
        'p50_latency_ms', percentile_cont(0.5) WITHIN GROUP (ORDER BY latency_ms),
        'p95_latency_ms', percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms),
        'p99_latency_ms', percentile_cont(0.99) WITHIN GROUP (ORDER BY latency_ms),
        'unique_subjects', count(DISTINCT subject),
        'time_range_hours', coalesce(p_hours, 24),
        'period_start', min(published_at),
        'period_end', max(published_at))
    FROM public.rule_nats_publish_history
    WHERE (p_webhook_id IS NULL OR webhook_id = p_webhook_id)
      AND published_at >= now() - make_interval(hours => coalesce(p_hours, 24))
$$;
COMMENT ON FUNCTION public.rule_nats_stats IS
    'walhook: counts and latencies from the history, of one webhook or (NULL) all, over the last p_hours hours (NULL: 24)';

CREATE OR REPLACE FUNCTION public.rule_nats_config_info(p_config_name TEXT DEFAULT 'default')
RETURNS JSON LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_info JSON;
BEGIN
    SELECT json_build_object(
        'config_id', config_id,
        'config_name', config_name,
        'nats_url', regexp_replace(nats_url, '//[^@/]*@', '//...@'),
        'auth_type', auth_type,
        'jetstream_enabled', jetstream_enabled,
        'stream_name', stream_name,
        'subject_prefix', subject_prefix,
        'jetstream_domain', jetstream_domain,
        'api_prefix', api_prefix,
        'max_connections', max_connections,
        'connection_timeout_ms', connection_timeout_ms,
        'tls_enabled', tls_enabled,
        'enabled', enabled,
        'created_at', created_at,
        'updated_at', updated_at)
    INTO v_info
    FROM public.rule_nats_config
    WHERE config_name = p_config_name;
    IF v_info IS NULL THEN
        RAISE EXCEPTION 'NATS config % not found', walhook.rule_cdc_sayable(coalesce(p_config_name, 'NULL'))
            USING ERRCODE = 'no_data_found', HINT = 'SELECT config_name FROM rule_nats_config; lists them.';
    END IF;
    RETURN v_info;
END
$$;
COMMENT ON FUNCTION public.rule_nats_config_info IS 'walhook: a NATS configuration as JSON, without its secrets';

CREATE OR REPLACE FUNCTION public.rule_nats_webhooks_list()
RETURNS TABLE (webhook_id INTEGER, webhook_name TEXT, nats_subject TEXT, publish_mode TEXT, config_name TEXT,
               total_published BIGINT, success_rate NUMERIC)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT w.webhook_id, w.webhook_name, w.nats_subject, w.publish_mode, c.config_name, count(h.publish_id),
           round(100.0 * count(*) FILTER (WHERE h.success) / nullif(count(h.publish_id), 0), 2)
    FROM public.rule_webhooks w
    LEFT JOIN public.rule_nats_config c ON c.config_id = w.nats_config_id
    LEFT JOIN public.rule_nats_publish_history h ON h.webhook_id = w.webhook_id
    WHERE w.nats_enabled
    GROUP BY w.webhook_id, w.webhook_name, w.nats_subject, w.publish_mode, c.config_name
    ORDER BY w.webhook_name
$$;
COMMENT ON FUNCTION public.rule_nats_webhooks_list IS 'walhook: webhooks that publish to NATS, with their history counted';

CREATE OR REPLACE FUNCTION public.rule_nats_cleanup_old_history(
    p_older_than INTERVAL DEFAULT '30 days',
    p_keep_failed BOOLEAN DEFAULT true
) RETURNS BIGINT LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_deleted BIGINT;
BEGIN
    DELETE FROM public.rule_nats_publish_history
    WHERE published_at < now() - p_older_than AND (success OR NOT coalesce(p_keep_failed, true));
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    RETURN v_deleted;
END
$$;
COMMENT ON FUNCTION public.rule_nats_cleanup_old_history IS
    'walhook: deletes history older than that, failures only on request, and returns how many rows';

CREATE OR REPLACE FUNCTION public.rule_nats_consumer_update_stats(
    p_stream_name TEXT,
    p_consumer_name TEXT,
    p_messages_delivered BIGINT,
    p_messages_acknowledged BIGINT,
    p_messages_pending BIGINT,
    p_avg_processing_time_ms NUMERIC DEFAULT NULL
) RETURNS BOOLEAN LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_stream_name IS NULL OR p_consumer_name IS NULL THEN
        RAISE EXCEPTION 'cannot note the numbers of a consumer: stream % and consumer % need names',
            coalesce(walhook.rule_cdc_quoted(p_stream_name), 'NULL'), coalesce(walhook.rule_cdc_quoted(p_consumer_name), 'NULL')
            USING ERRCODE = 'null_value_not_allowed', HINT = 'rule_nats_consumer_update_stats(''WEBHOOKS'', ''webhook-worker-1'', 10, 9, 1)';
    END IF;
    INSERT INTO public.rule_nats_consumer_stats AS s
        (stream_name, consumer_name, messages_delivered, messages_acknowledged, messages_pending, avg_processing_time_ms,
         last_active_at, updated_at)
    VALUES (p_stream_name, p_consumer_name, p_messages_delivered, p_messages_acknowledged, p_messages_pending,
            p_avg_processing_time_ms, now(), now())
    ON CONFLICT (stream_name, consumer_name) DO UPDATE SET
        messages_delivered = excluded.messages_delivered,
        messages_acknowledged = excluded.messages_acknowledged,
        messages_pending = excluded.messages_pending,
        avg_processing_time_ms = coalesce(excluded.avg_processing_time_ms, s.avg_processing_time_ms),
        last_active_at = excluded.last_active_at,
        updated_at = excluded.updated_at;
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_nats_consumer_update_stats IS 'walhook: for workers of your own: records the numbers of a consumer';

CALL walhook.rule_cdc_functions_close();

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('007', 'NATS integration of RFC-0007')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
