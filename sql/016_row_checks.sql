-- 016: configuration rows that walhook cannot use are refused, whoever writes them and by whichever statement; and a dead letter says who
-- gave its event up.
--
-- Comes in: 005, 007, 008, 010, 014. Goes out: one function that says what is wrong with a row, a trigger on each of the four configuration
-- tables that refuses it, and the part of rule_cdc_check that lists the rows that were there before.
-- Always holds: a row that was there before stays, and columns of it that are not wrong can be changed. Only what walhook can never use is
-- refused; what may come right later (a table, a file, a stream) is not. Running this file twice changes nothing; no BEGIN, COMMIT or psql
-- command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
    IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '016') THEN
        RETURN;
    END IF;
    ALTER TABLE public.rule_nats_dead_letters
        ADD COLUMN IF NOT EXISTS origin TEXT NOT NULL DEFAULT 'run'
            CONSTRAINT valid_dead_letter_origin CHECK (origin IN ('run', 'deliver'));
    COMMENT ON COLUMN public.rule_nats_dead_letters.origin IS
        'run: the event was not published, no stream has it; deliver: it is in its stream under the same event_id, and its webhook could '
        'not be called. A retry is an event of its own with an id of its own';
    -- Whoever called a webhook has recorded it.
    UPDATE public.rule_nats_dead_letters d SET origin = 'deliver'
    WHERE EXISTS (SELECT FROM public.rule_webhook_calls c WHERE c.event_id = d.event_id);
END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

CREATE OR REPLACE FUNCTION walhook.rule_cdc_template_problem(p_template TEXT)
RETURNS TEXT LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN named.subject ~ '[{}]' THEN 'it has a brace without its pair' ELSE public.rule_nats_subject_check(named.subject) END
    FROM (SELECT regexp_replace(p_template, '\{[^{}]*\}', 'x', 'g') AS subject) named
$$;
COMMENT ON FUNCTION walhook.rule_cdc_template_problem IS
    'walhook: why this cannot be the subject template of a link, whatever its table, or NULL where it can';

CREATE OR REPLACE FUNCTION walhook.rule_nats_url_problem(p_url TEXT)
RETURNS TEXT LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    -- As src/nats/settings.rs reads it: one server or several with commas. The url is not shown, for it may hold a secret.
    SELECT CASE
        WHEN coalesce(bool_and(server = ''), true) THEN 'it names no server'
        WHEN bool_or(server ~* '^wss?://') THEN 'NATS over WebSocket (ws://, wss://) is not supported'
        WHEN bool_or(server ~ '://' AND server !~* '^(nats|tls)://') THEN 'its scheme is neither nats:// nor tls://'
        WHEN bool_or(server <> '' AND (
                 server !~* '^((nats|tls)://)?(.*@)?(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?/?$'
                 OR (regexp_match(server, ':([0-9]{1,5})/?$'))[1]::integer NOT BETWEEN 1 AND 65535))
            THEN 'its server is not host or host:port'
    END
    FROM (SELECT btrim(part) AS server FROM unnest(string_to_array(p_url, ',')) part) servers
$$;
COMMENT ON FUNCTION walhook.rule_nats_url_problem IS 'walhook: why this cannot be the url of a NATS server, or NULL where it can';

-- With its owner's rights, for the functions it calls: it sees nothing but the row that it is given.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_row_problems(p_table TEXT, p_row JSONB)
RETURNS TABLE (columns TEXT[], problem TEXT, advice TEXT, remedy TEXT)
LANGUAGE plpgsql IMMUTABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_text TEXT;
    v_column TEXT;
    v_subjects TEXT[];
BEGIN
    IF p_table = 'rule_webhooks' THEN
        columns := '{nats_subject}';
        v_text := p_row ->> 'nats_subject';
        problem := CASE WHEN v_text IS NOT NULL THEN public.rule_nats_subject_check(v_text) END;
        IF problem IS NOT NULL THEN
            problem := format('nats_subject %s: %s', to_json(left(v_text, 200)), problem);
            advice := 'A subject is tokens with a dot between them, such as webhooks.orders; NULL is <subject_prefix>.<name of the webhook>.';
            remedy := format('UPDATE public.rule_webhooks SET nats_subject = NULL WHERE webhook_id = %s;', p_row ->> 'webhook_id');
            RETURN NEXT;
        END IF;
        remedy := NULL;
        columns := '{url}';
        v_text := p_row ->> 'url';
        IF v_text !~* '^https?://.' OR v_text ~ '[\x01-\x20\x7f]' THEN
            problem := format('url %s: it is not the url of an http or https server', to_json(left(public.rule_webhook_shown_url(v_text), 200)));
            advice := 'Write it as https://example.com/hooks, with spaces as %20.';
            RETURN NEXT;
        END IF;
        FOREACH v_column IN ARRAY ARRAY['method', 'headers', 'timeout_ms', 'max_retries'] LOOP
            columns := ARRAY[v_column];
            problem := walhook.rule_webhook_problem(
                CASE v_column WHEN 'method' THEN p_row ->> 'method' END,
                CASE v_column WHEN 'headers' THEN nullif(p_row -> 'headers', 'null') END,
                CASE v_column WHEN 'timeout_ms' THEN (p_row ->> 'timeout_ms')::integer END,
                CASE v_column WHEN 'max_retries' THEN (p_row ->> 'max_retries')::integer END);
            IF problem IS NULL AND v_column = 'headers' AND jsonb_typeof(p_row -> 'headers') = 'object' THEN
                SELECT format('its header %s cannot be sent: %s', to_json(left(h.key, 100)),
                              CASE WHEN h.key ~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]+$' THEN 'its value has a line break or another control character'
                                   ELSE 'a name has letters, digits and hyphens' END)
                INTO problem
                FROM jsonb_each_text(p_row -> 'headers') h
                WHERE h.key !~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]+$' OR h.value ~ '[\x01-\x08\x0a-\x1f\x7f]'
                LIMIT 1;
            END IF;
            IF problem IS NOT NULL THEN
                advice := 'rule_webhook_update(webhook_id, ...) changes it.';
                RETURN NEXT;
            END IF;
        END LOOP;
        columns := '{retry_backoff_multiplier}';
        IF (p_row ->> 'retry_backoff_multiplier') IN ('NaN', 'Infinity', '-Infinity') THEN
            problem := format('its retry_backoff_multiplier is %s', p_row ->> 'retry_backoff_multiplier');
            advice := 'It is a number from 1 on; 2 doubles the wait before each retry.';
            RETURN NEXT;
        END IF;

    ELSIF p_table = 'rule_webhook_links' THEN
        columns := '{subject_template}';
        v_text := p_row ->> 'subject_template';
        problem := CASE WHEN v_text IS NOT NULL THEN walhook.rule_cdc_template_problem(v_text) END;
        IF problem IS NOT NULL THEN
            problem := format('subject_template %s: %s', to_json(left(v_text, 200)), problem);
            advice := 'For example orders.{op}.{customer_id}; its tokens are {schema}, {table}, {op} and {a_column}. NULL is the subject of '
                      'the webhook.';
            remedy := format('UPDATE public.rule_webhook_links SET subject_template = NULL WHERE link_id = %s;', p_row ->> 'link_id');
            RETURN NEXT;
        END IF;
        remedy := NULL;
        columns := '{filter}';
        IF jsonb_typeof(p_row -> 'filter') NOT IN ('object', 'null') THEN
            problem := format('its filter is a JSON %s', jsonb_typeof(p_row -> 'filter'));
            advice := 'Write it as an object of columns and values: {"status": "paid"}.';
            RETURN NEXT;
        END IF;
        FOREACH v_column IN ARRAY ARRAY['columns', 'when_changed'] LOOP
            columns := ARRAY[v_column];
            IF jsonb_typeof(p_row -> v_column) = 'array' AND (p_row -> v_column = '[]' OR p_row -> v_column @> '[null]') THEN
                problem := format('its %s is an empty list, or has a NULL in it', v_column);
                advice := format('Leave %s NULL for all columns.', v_column);
                RETURN NEXT;
            END IF;
        END LOOP;
        columns := '{payload_column,message_id_column,headers_columns,operations,columns,include_old}';
        SELECT m.problem, m.advice INTO problem, advice
        FROM walhook.rule_cdc_message_shape(
            ARRAY(SELECT jsonb_array_elements_text(CASE jsonb_typeof(p_row -> 'operations') WHEN 'array' THEN p_row -> 'operations' ELSE '[]' END)),
            CASE jsonb_typeof(p_row -> 'columns')
                WHEN 'array' THEN ARRAY(SELECT jsonb_array_elements_text(p_row -> 'columns')) END,
            (p_row ->> 'include_old')::boolean, p_row ->> 'payload_column', p_row ->> 'message_id_column',
            nullif(p_row -> 'headers_columns', 'null')) m;
        IF problem IS NOT NULL THEN
            RETURN NEXT;
        END IF;
        IF coalesce(nullif(p_row -> 'mask', 'null'), nullif(p_row -> 'rename', 'null')) IS NOT NULL THEN
            columns := '{mask,rename,payload_column}';
            SELECT m.problem, m.advice INTO problem, advice
            FROM walhook.rule_cdc_mask_shape(nullif(p_row -> 'mask', 'null'), nullif(p_row -> 'rename', 'null'), -- made by 022
                                            p_row ->> 'payload_column') m;
            IF problem IS NOT NULL THEN
                RETURN NEXT;
            END IF;
        END IF;

    ELSIF p_table = 'rule_nats_config' THEN
        columns := '{config_name}';
        IF p_row ->> 'config_name' = '' THEN
            problem := 'its name is empty';
            advice := 'Webhooks name it by rule_webhook_enable_nats(webhook_id, subject, mode, config_name).';
            RETURN NEXT;
        END IF;
        FOR v_column, problem IN
            SELECT 'nats_url', walhook.rule_nats_url_problem(p_row ->> 'nats_url')
            UNION ALL
            SELECT 'nats_cluster_urls', walhook.rule_nats_url_problem(u.url)
            FROM jsonb_array_elements_text(CASE jsonb_typeof(p_row -> 'nats_cluster_urls') WHEN 'array' THEN p_row -> 'nats_cluster_urls'
                                                                                          ELSE '[]' END) u (url)
            WHERE u.url <> ''
        LOOP
            CONTINUE WHEN problem IS NULL;
            columns := ARRAY[v_column];
            problem := format('%s: %s', v_column, problem);
            advice := 'Write it as nats://host:4222 or tls://host:4222; characters such as / or @ in a password are percent-encoded.';
            RETURN NEXT;
        END LOOP;
        columns := '{stream_name}';
        v_text := nullif(p_row ->> 'stream_name', '');
        IF v_text IS NOT NULL AND walhook.rule_nats_stream_name_problem(v_text) IS NOT NULL THEN
            problem := walhook.rule_nats_stream_name_problem(v_text);
            advice := 'A stream name has 1 to 255 characters, no space, dot, *, >, / or \ among them, and does not begin with KV_ or OBJ_.';
            RETURN NEXT;
        END IF;
        columns := '{subject_prefix}';
        v_text := nullif(p_row ->> 'subject_prefix', '');
        IF v_text IS NOT NULL AND public.rule_nats_subject_check(v_text || '.x') IS NOT NULL THEN
            problem := format('subject_prefix %s: %s', to_json(left(v_text, 200)), public.rule_nats_subject_check(v_text || '.x'));
            advice := 'A prefix is tokens with a dot between them, such as webhooks, and no dot at its end.';
            RETURN NEXT;
        END IF;
        FOR v_column, v_text IN
            VALUES ('max_connections', '1'), ('connection_timeout_ms', '1'), ('reconnect_delay_ms', '0')
        LOOP
            IF (p_row ->> v_column)::bigint < v_text::bigint THEN
                columns := ARRAY[v_column];
                problem := format('its %s is %s, less than %s', v_column, p_row ->> v_column, v_text);
                advice := format('NULL is the default of %s.', v_column);
                RETURN NEXT;
            END IF;
        END LOOP;
        FOREACH v_column IN ARRAY ARRAY['auth_credentials_file', 'tls_ca_file', 'tls_cert_file', 'tls_key_file'] LOOP
            IF p_row ->> v_column <> '' AND p_row ->> v_column NOT LIKE '/%' THEN
                columns := ARRAY[v_column];
                problem := format('its %s is not an absolute path', v_column);
                advice := 'It is a file on the machine of walhook run; write its path from / on.';
                RETURN NEXT;
            END IF;
        END LOOP;

    ELSIF p_table = 'rule_nats_streams' THEN
        columns := '{stream_name}';
        problem := walhook.rule_nats_stream_name_problem(p_row ->> 'stream_name');
        IF problem IS NOT NULL THEN
            advice := 'A stream name has 1 to 255 characters, no space, dot, *, >, / or \ among them, and does not begin with KV_ or OBJ_.';
            RETURN NEXT;
        END IF;
        columns := '{subjects}';
        v_subjects := ARRAY(SELECT s.subject FROM jsonb_array_elements_text(p_row -> 'subjects') WITH ORDINALITY s (subject, place)
                            ORDER BY s.place);
        IF v_subjects = '{}' THEN
            problem := 'its subjects are empty';
            advice := 'Name what the stream takes, as in {webhooks.>}.';
            RETURN NEXT;
        END IF;
        SELECT format('its subject %s: %s', coalesce(to_json(left(s.subject, 200))::text, 'NULL'), walhook.rule_nats_pattern_problem(s.subject))
        INTO problem
        FROM unnest(v_subjects) s (subject) WHERE walhook.rule_nats_pattern_problem(s.subject) IS NOT NULL LIMIT 1;
        IF NOT FOUND THEN
            SELECT format('its subjects %s and %s overlap', to_json(a.subject), to_json(b.subject)) INTO problem
            FROM unnest(v_subjects) WITH ORDINALITY a (subject, place)
            JOIN unnest(v_subjects) WITH ORDINALITY b (subject, place) ON a.place < b.place
            WHERE walhook.rule_nats_subjects_overlap(a.subject, b.subject) LIMIT 1;
        END IF;
        IF problem IS NOT NULL THEN
            advice := 'In a pattern * stands for one token, and > at the end for one or more; of two that overlap keep the wider one.';
            RETURN NEXT;
        END IF;
        columns := '{replicas}';
        IF (p_row ->> 'replicas')::bigint NOT BETWEEN 1 AND 5 THEN
            problem := format('its replicas are %s', p_row ->> 'replicas');
            advice := 'JetStream keeps 1 to 5; 3 outlives one server.';
            RETURN NEXT;
        END IF;
        columns := '{max_age_seconds}';
        IF (p_row ->> 'max_age_seconds')::bigint > 9223372036 THEN
            problem := format('its max_age_seconds is %s, beyond what JetStream counts (292 years)', p_row ->> 'max_age_seconds');
            advice := '0 or NULL keeps messages whatever their age.';
            RETURN NEXT;
        END IF;
        columns := '{max_age_seconds,duplicate_window_seconds}';
        IF (p_row ->> 'max_age_seconds')::bigint > 0
           AND (p_row ->> 'duplicate_window_seconds')::bigint > (p_row ->> 'max_age_seconds')::bigint THEN
            problem := format('its duplicate_window_seconds %s is longer than its max_age_seconds %s', p_row ->> 'duplicate_window_seconds',
                              p_row ->> 'max_age_seconds');
            advice := 'JetStream remembers no message id for longer than it keeps the message: shorten the one, or lengthen the other.';
            RETURN NEXT;
        END IF;
        columns := '{consumers}';
        SELECT format('its consumer %s cannot have this name', coalesce(to_json(left(c.name, 200))::text, 'NULL')) INTO problem
        FROM jsonb_array_elements_text(CASE jsonb_typeof(p_row -> 'consumers') WHEN 'array' THEN p_row -> 'consumers' ELSE '[]' END) c (name)
        WHERE coalesce(c.name !~ '^[!-~]+$' OR c.name ~ '[.*>/\\]', true) LIMIT 1;
        IF FOUND THEN
            advice := 'A name has no dots, spaces, slashes or wildcards, as in {worker}.';
            RETURN NEXT;
        END IF;

    ELSIF p_table = 'rule_webhook_secrets' THEN
        -- As rule_webhook_secret_set. The secret is not shown.
        columns := '{secret_value}';
        v_text := btrim(p_row ->> 'secret_value', E' \t\r\n');
        IF p_row ->> 'secret_name' ~ '^signing([_.-]|$)'
           AND (v_text IN ('', 'whsec_')
                OR v_text ~ '^whsec_' AND v_text !~ '^whsec_([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$') THEN
            problem := 'it cannot sign: it is empty, or what follows whsec_ is not base64';
            advice := 'Give whsec_ and base64 with its padding (openssl rand -base64 32 makes some), or any text without whsec_.';
            RETURN NEXT;
        END IF;
    END IF;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_row_problems IS
    'walhook: what is wrong with a row of a configuration table, whatever else there is: the columns, what to write instead, and where there '
    'is one the statement that sets it right';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_row_suspect(p_table TEXT)
RETURNS TEXT LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    -- Ten thousand rows may be written at once, and are looked at every few seconds: nearly all show at a glance that they are good.
    SELECT format('(%s) IS NOT TRUE', CASE p_table
        WHEN 'rule_webhooks' THEN $when$
            (NEW.nats_subject IS NULL OR octet_length(NEW.nats_subject) <= 1024
                AND NEW.nats_subject ~ '^[A-Za-z0-9%-][A-Za-z0-9_%-]*(\.[A-Za-z0-9_%-]+)*$')
            AND NEW.url ~ '^https?://[!-~]+$'
            AND (NEW.method IS NULL OR NEW.method IN ('GET', 'POST', 'PUT', 'PATCH', 'DELETE'))
            AND (NEW.headers IS NULL OR NEW.headers = '{}')
            AND (NEW.timeout_ms IS NULL OR NEW.timeout_ms BETWEEN 1 AND 60000)
            AND (NEW.max_retries IS NULL OR NEW.max_retries BETWEEN 0 AND 10)
            AND (NEW.retry_backoff_multiplier IS NULL OR NEW.retry_backoff_multiplier BETWEEN 1 AND 1000000)$when$
        WHEN 'rule_webhook_links' THEN $when$
            (NEW.subject_template IS NULL OR octet_length(NEW.subject_template) <= 1024
                AND NEW.subject_template ~ '^(?!_)([A-Za-z0-9_-]|\{[A-Za-z0-9_]+\})+(\.([A-Za-z0-9_-]|\{[A-Za-z0-9_]+\})+)*$')
            AND (NEW.filter IS NULL OR jsonb_typeof(NEW.filter) = 'object')
            AND (NEW.columns IS NULL OR cardinality(NEW.columns) > 0 AND array_position(NEW.columns, NULL) IS NULL)
            AND (NEW.when_changed IS NULL OR cardinality(NEW.when_changed) > 0 AND array_position(NEW.when_changed, NULL) IS NULL)
            AND NEW.payload_column IS NULL AND NEW.message_id_column IS NULL AND NEW.headers_columns IS NULL
            AND NEW.mask IS NULL AND NEW.rename IS NULL$when$
        ELSE 'false' END)
$$;
COMMENT ON FUNCTION walhook.rule_cdc_row_suspect IS
    'walhook: the condition, as a trigger has it, that a row has to be looked at by rule_cdc_row_problems';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_row_named(p_table TEXT, p_row JSONB)
RETURNS TEXT LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE p_table
        WHEN 'rule_webhooks' THEN format('webhook %s (webhook_id %s)', to_json(left(p_row ->> 'webhook_name', 200)), p_row ->> 'webhook_id')
        WHEN 'rule_webhook_links' THEN format('link %s of webhook_id %s to %I.%I', p_row ->> 'link_id', p_row ->> 'webhook_id',
                                              p_row ->> 'table_schema', p_row ->> 'table_name')
        WHEN 'rule_nats_config' THEN format('NATS configuration %s (config_id %s)', to_json(left(p_row ->> 'config_name', 200)),
                                            p_row ->> 'config_id')
        WHEN 'rule_webhook_secrets' THEN format('secret %s of webhook_id %s', to_json(left(p_row ->> 'secret_name', 200)),
                                                p_row ->> 'webhook_id')
        ELSE format('stream %s (stream_id %s)', to_json(left(p_row ->> 'stream_name', 200)), p_row ->> 'stream_id') END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_row_named IS 'walhook: a row of a configuration table by name and id, for messages';

-- With its owner's rights: whoever may write the row need not be allowed to call the functions that look at it.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_row_check()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_new CONSTANT JSONB := to_jsonb(NEW);
    v_old CONSTANT JSONB := CASE TG_OP WHEN 'UPDATE' THEN to_jsonb(OLD) ELSE '{}' END;
    p RECORD;
BEGIN
    FOR p IN SELECT * FROM walhook.rule_cdc_row_problems(TG_TABLE_NAME, v_new) LOOP
        -- What was wrong before hinders no change of another column.
        CONTINUE WHEN TG_OP = 'UPDATE' AND NOT EXISTS (SELECT FROM unnest(p.columns) c WHERE v_new -> c IS DISTINCT FROM v_old -> c);
        RAISE EXCEPTION '%: %', walhook.rule_cdc_sayable(walhook.rule_cdc_row_named(TG_TABLE_NAME, v_new)),
            walhook.rule_cdc_sayable(p.problem)
            USING ERRCODE = 'check_violation', HINT = p.advice, SCHEMA = 'public', TABLE = TG_TABLE_NAME, COLUMN = p.columns[1],
                  CONSTRAINT = TG_NAME;
    END LOOP;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_row_check IS
    'walhook: trigger of the configuration tables: refuses a row that walhook cannot use';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_check_rows()
RETURNS TABLE (name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_table TEXT;
    v_row TEXT;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['rule_webhooks', 'rule_webhook_links', 'rule_nats_config', 'rule_nats_streams'] LOOP
        -- An operator may not read the credentials, in which nothing is looked for.
        SELECT CASE WHEN bool_and(has_column_privilege(a.attrelid, a.attnum, 'SELECT')) THEN 'to_jsonb(r)'
                    ELSE format('(SELECT to_jsonb(c) FROM (SELECT %s) c)', string_agg(format('r.%I', a.attname), ', ' ORDER BY a.attnum)
                                FILTER (WHERE has_column_privilege(a.attrelid, a.attnum, 'SELECT'))) END
        INTO v_row
        FROM pg_attribute a WHERE a.attrelid = format('public.%I', v_table)::regclass AND a.attnum > 0 AND NOT a.attisdropped;
        RETURN QUERY EXECUTE format(
            'SELECT ''row_invalid'', CASE WHEN r.enabled IS FALSE THEN ''note'' ELSE ''error'' END, walhook.rule_cdc_row_named(%1$L, %3$s),
                    p.problem || coalesce(''. '' || rtrim(p.advice, ''.''), ''''), p.remedy
             FROM public.%1$I r, walhook.rule_cdc_row_problems(%1$L, %3$s) p WHERE %2$s ORDER BY 3',
            v_table, replace(walhook.rule_cdc_row_suspect(v_table), 'NEW.', 'r.'), v_row);
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_check_rows IS
    'walhook: the part of rule_cdc_check about configuration rows that walhook cannot use: rows from before their columns were checked, or '
    'that were written with triggers off';

-- Each function of walhook names its search_path. One that was replaced by a later file of somebody else keeps the comment, and loses that.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_check_functions()
RETURNS TABLE (name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'function_replaced', 'error', format('function %s', f.signature),
           CASE WHEN f.is_ours
                THEN 'another SQL file has replaced this function of walhook; run walhook setup again, which puts walhook''s in its place'
                ELSE 'another SQL file has added this function beside walhook''s of the same name, so that calls may be ambiguous'
           END, CASE WHEN NOT f.is_ours THEN format('DROP ROUTINE %s;', f.signature) END
    FROM (
        SELECT p.oid::regprocedure::text AS signature, p.proname, p.pronamespace, p.proconfig, k.is_ours
        FROM pg_proc p
        CROSS JOIN LATERAL (SELECT coalesce(obj_description(p.oid, 'pg_proc'), '') LIKE 'walhook:%' AS is_ours) k
        WHERE p.pronamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND p.proname ~ '^rule_(webhook|nats|cdc)'
    ) f
    WHERE f.is_ours AND NOT EXISTS (SELECT FROM unnest(f.proconfig) setting WHERE setting LIKE 'search_path=%')
       OR NOT f.is_ours AND EXISTS (SELECT FROM pg_proc o WHERE o.proname = f.proname AND o.pronamespace = f.pronamespace
                                                            AND obj_description(o.oid, 'pg_proc') LIKE 'walhook:%')
    ORDER BY 3
$$;
COMMENT ON FUNCTION walhook.rule_cdc_check_functions IS
    'walhook: the part of rule_cdc_check about functions that another SQL file has replaced or added since setup';

CALL walhook.rule_cdc_functions_close();

-- Once: a trigger waits for those who write into its table.
DO $triggers$
DECLARE
    v_table TEXT;
    v_columns TEXT;
BEGIN
    FOR v_table, v_columns IN
        VALUES ('rule_webhooks', 'nats_subject, url, method, headers, timeout_ms, max_retries, retry_backoff_multiplier'),
               ('rule_webhook_links', 'subject_template, filter, columns, when_changed, operations, include_old, payload_column, '
                                      'message_id_column, headers_columns, mask, rename'),
               ('rule_nats_config', 'config_name, nats_url, nats_cluster_urls, stream_name, subject_prefix, max_connections, '
                                    'connection_timeout_ms, reconnect_delay_ms, auth_credentials_file, tls_ca_file, tls_cert_file, '
                                    'tls_key_file'),
               ('rule_webhook_secrets', 'secret_name, secret_value'),
               ('rule_nats_streams', 'stream_name, subjects, replicas, max_age_seconds, duplicate_window_seconds, consumers')
    LOOP
        CALL walhook.rule_cdc_trigger(
            format('public.%I', v_table)::regclass, 'walhook_row_check', 'BEFORE INSERT OR UPDATE OF ' || v_columns,
            walhook.rule_cdc_row_suspect(v_table), 'walhook.rule_cdc_row_check()', 'refuses rows that walhook cannot use');
    END LOOP;
END
$triggers$;

CALL walhook.rule_cdc_grant_functions('walhook_operator', '^(rule_cdc_check_(rows|functions)|rule_cdc_row_(problems|named|suspect|check)|rule_cdc_(sayable|quoted|template_problem|utf8)|rule_nats_url_problem)$');
CALL walhook.rule_cdc_grant_functions('walhook_streamer', '^rule_cdc_(check_(rows|functions)|row_(problems|named|suspect)|sayable|quoted|utf8)$');

-- Rows from before stay; walhook sets their events aside, and this says why.
DO $before$
DECLARE
    f RECORD;
BEGIN
    FOR f IN SELECT * FROM walhook.rule_cdc_check_rows() c LIMIT 20 LOOP
        RAISE WARNING '%: %', walhook.rule_cdc_sayable(f.object), walhook.rule_cdc_sayable(f.problem)
            USING HINT = coalesce(f.remedy, 'SELECT * FROM rule_cdc_check(); lists all such rows.');
    END LOOP;
END
$before$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('016', 'walhook: configuration rows are checked whoever writes them; the origin of dead letters')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
