-- 019: the last mile for more receivers: limits of a webhook over all workers, other signatures, client certificates and OAuth2 towards
-- receivers, and workers of walhook for the queue in PostgreSQL.
--
-- Comes in: 005, 007, 008, 010, 016, and the roles of 009. Goes out: the settings of a webhook for all this, two small tables in which
-- workers share a limit, and the functions by which they do so and take calls from the queue.
-- Always holds: a webhook that uses none of this costs nothing: no row in the new tables, no trigger that runs, no index that grows. No
-- secret is in a row of rule_webhooks. Running this file twice changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '019') THEN
    RETURN;
END IF;

ALTER TABLE public.rule_webhooks
    ADD COLUMN IF NOT EXISTS rate_limit_per_second NUMERIC,
    ADD COLUMN IF NOT EXISTS signature_scheme TEXT NOT NULL DEFAULT 'standard',
    ADD COLUMN IF NOT EXISTS signature_template JSONB,
    ADD COLUMN IF NOT EXISTS client_certificate BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS oauth2 JSONB;
COMMENT ON COLUMN public.rule_webhooks.rate_limit_per_second IS
    'walhook deliver: at most so many calls a second, over all workers with a database, retries included; 0.1 is a call in ten seconds. '
    'NULL: no limit';
COMMENT ON COLUMN public.rule_webhooks.max_in_flight IS
    'walhook deliver: calls side by side, over all workers with a database (one without a database counts its own calls only); NULL: the '
    'worker''s own setting, for each worker';
COMMENT ON COLUMN public.rule_webhooks.signature_scheme IS
    'walhook deliver, signed webhooks: standard (Standard Webhooks), github (X-Hub-Signature-256), stripe (Stripe-Signature), or template: '
    'as signature_template says';
COMMENT ON COLUMN public.rule_webhooks.signature_template IS
    'With signature_scheme template: {"header", "content", "value", "signature", "separator"}; docs/deliver.md explains them';
COMMENT ON COLUMN public.rule_webhooks.client_certificate IS
    'walhook deliver: connections to this webhook show the certificate of the secrets tls_certificate and tls_key; without them there is '
    'no call. Set with the first of these secrets';
COMMENT ON COLUMN public.rule_webhooks.oauth2 IS
    'walhook deliver: requests carry an access token from this endpoint (client credentials). Written by rule_webhook_oauth2_set; the '
    'client''s secret is the secret oauth2_client_secret';

ALTER TABLE public.rule_webhook_calls
    ADD COLUMN IF NOT EXISTS claimed_by TEXT,
    ADD COLUMN IF NOT EXISTS claimed_until TIMESTAMPTZ,
    ADD COLUMN IF NOT EXISTS retry_of TEXT;
COMMENT ON COLUMN public.rule_webhook_calls.claimed_by IS
    'The walhook deliver --queue that has taken this call';
COMMENT ON COLUMN public.rule_webhook_calls.claimed_until IS
    'Until when that worker has it; it prolongs this while it lives. Later another worker takes the call';
COMMENT ON COLUMN public.rule_webhook_calls.retry_of IS
    'The webhook-id that receivers know, where this call repeats one that had become a dead letter';
-- Only calls of the queue that are not finished are in these indexes; those that walhook deliver records of events never are.
CREATE INDEX IF NOT EXISTS idx_webhook_calls_queue ON public.rule_webhook_calls
    (webhook_id, coalesce(claimed_until, next_retry_at, scheduled_at, '-infinity'::timestamptz))
    WHERE event_id IS NULL AND status IN ('pending', 'retrying', 'processing');
CREATE INDEX IF NOT EXISTS idx_webhook_calls_queue_order ON public.rule_webhook_calls (webhook_id, call_id)
    WHERE event_id IS NULL AND status IN ('pending', 'retrying', 'processing');

ALTER TABLE public.rule_nats_dead_letters ADD COLUMN IF NOT EXISTS retried_call INTEGER;
ALTER TABLE public.rule_nats_dead_letters
    DROP CONSTRAINT IF EXISTS valid_dead_letter_origin,
    ADD CONSTRAINT valid_dead_letter_origin CHECK (origin IN ('run', 'deliver', 'queue'));
COMMENT ON COLUMN public.rule_nats_dead_letters.origin IS
    'run: the event was not published, no stream has it; deliver: it is in its stream under the same event_id, and its webhook could '
    'not be called; queue: a call of the queue in PostgreSQL. A retry is an event, or a call, of its own with an id of its own';
COMMENT ON COLUMN public.rule_nats_dead_letters.retried_call IS
    'origin queue: call_id in rule_webhook_calls of the retry; rule_webhook_call_status tells what became of it';

CREATE TABLE IF NOT EXISTS walhook.rule_webhook_limits (
    webhook_id INTEGER PRIMARY KEY REFERENCES public.rule_webhooks (webhook_id) ON DELETE CASCADE,
    next_call_at TIMESTAMPTZ NOT NULL DEFAULT '-infinity',
    rate NUMERIC,
    paused_until TIMESTAMPTZ,
    paused_url_hash BIGINT
) WITH (fillfactor = 50);
COMMENT ON TABLE walhook.rule_webhook_limits IS
    'What the workers of a webhook share: a row for each webhook with a limit, a Retry-After of the queue, or calls of the queue in order. '
    'Written by walhook deliver. Never published, never linkable';
COMMENT ON COLUMN walhook.rule_webhook_limits.next_call_at IS
    'rate_limit_per_second: all starts of calls before this moment are taken';
COMMENT ON COLUMN walhook.rule_webhook_limits.rate IS 'The rate_limit_per_second by which next_call_at was computed. If it changes, walhook computes next_call_at again';
COMMENT ON COLUMN walhook.rule_webhook_limits.paused_until IS
    'walhook deliver --queue: the receiver has asked for no calls until then (Retry-After)';
COMMENT ON COLUMN walhook.rule_webhook_limits.paused_url_hash IS 'Of the url that has asked for it: another one is called at once';

CREATE TABLE IF NOT EXISTS walhook.rule_webhook_limit_holders (
    webhook_id INTEGER REFERENCES public.rule_webhooks (webhook_id) ON DELETE CASCADE,
    worker TEXT,
    calls INTEGER NOT NULL,
    held_until TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (webhook_id, worker)
) WITH (fillfactor = 50);
COMMENT ON TABLE walhook.rule_webhook_limit_holders IS
    'How the workers share max_in_flight: each holds so many calls until then, and prolongs this. What a killed worker held is free again '
    'afterwards. Written by walhook deliver. Never published, never linkable';

IF NOT EXISTS (SELECT FROM pg_constraint
               WHERE conrelid = 'public.rule_webhooks'::regclass AND conname = 'valid_rate_limit') THEN
    ALTER TABLE public.rule_webhooks
        ADD CONSTRAINT valid_rate_limit CHECK (rate_limit_per_second BETWEEN 0.001 AND 100000),
        ADD CONSTRAINT valid_signature_scheme CHECK (signature_scheme IN ('standard', 'github', 'stripe', 'template')),
        ADD CONSTRAINT signature_template_given CHECK (signature_scheme <> 'template' OR signature_template IS NOT NULL);
END IF;

END
$schema$;

REVOKE ALL ON walhook.rule_webhook_limits, walhook.rule_webhook_limit_holders FROM PUBLIC;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

-- ------------------------------------------------------------------------------------------------ what a webhook's row may say

CREATE OR REPLACE FUNCTION walhook.rule_webhook_signature_problem(p_template JSONB)
RETURNS TEXT LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_key TEXT;
    v_value JSONB;
    v_places TEXT[];
    v_place TEXT;
BEGIN
    IF p_template IS NULL THEN
        RETURN NULL;
    ELSIF jsonb_typeof(p_template) <> 'object' THEN
        RETURN format('it is a JSON %s, not an object', jsonb_typeof(p_template));
    END IF;
    FOR v_key, v_value IN SELECT t.key, t.value FROM jsonb_each(p_template) t ORDER BY t.key LOOP
        v_places := CASE v_key WHEN 'header' THEN '{}' WHEN 'content' THEN '{id,timestamp,body}'
                               WHEN 'value' THEN '{id,timestamp,signatures}' WHEN 'signature' THEN '{hex,base64}'
                               WHEN 'separator' THEN '{}' END;
        IF v_places IS NULL THEN
            RETURN format('%s is none of its keys: header, content, value, signature, separator', to_json(left(v_key, 100)));
        ELSIF jsonb_typeof(v_value) <> 'string' THEN
            RETURN format('its %s is a JSON %s, not a string', v_key, jsonb_typeof(v_value));
        ELSIF length(v_value #>> '{}') > 500 OR v_value #>> '{}' ~ '[^ -~]' THEN
            RETURN format('its %s has more than 500 characters, or others than printable ASCII', v_key);
        END IF;
        FOR v_place IN SELECT m[1] FROM regexp_matches(v_value #>> '{}', '\{([^{}]*)\}', 'g') m LOOP
            IF v_place <> ALL (v_places) THEN
                RETURN format('its %s has the placeholder {%s}; %s', v_key, left(v_place, 50),
                              CASE WHEN v_places = '{}' THEN 'there can be none'
                                   ELSE format('there are {%s}', array_to_string(v_places, '}, {')) END);
            END IF;
        END LOOP;
    END LOOP;
    IF coalesce(p_template ->> 'header', '') !~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]{1,100}$' THEN
        RETURN 'its header is not the name of a header';
    ELSIF lower(p_template ->> 'header') = ANY (ARRAY['connection', 'content-length', 'content-type', 'authorization', 'expect', 'host',
              'keep-alive', 'proxy-authorization', 'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade', 'user-agent',
              'walhook-old-key', 'walhook-op', 'walhook-type', 'webhook-id', 'webhook-timestamp'])
    THEN
        RETURN format('its header %s has another use', to_json(p_template ->> 'header'));
    ELSIF coalesce(p_template ->> 'content', '{body}') !~ '\{body\}' THEN
        RETURN 'its content does not have {body}, so the signature would say nothing of the body';
    ELSIF coalesce(p_template ->> 'signature', '{hex}') !~ '\{(hex|base64)\}' THEN
        RETURN 'its signature has neither {hex} nor {base64}';
    ELSIF coalesce(p_template ->> 'value', '{signatures}') !~ '\{signatures\}' THEN
        RETURN 'its value does not have {signatures}';
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_signature_problem IS
    'walhook: why this cannot be a webhook''s signature_template, or NULL where it can';

CREATE OR REPLACE FUNCTION walhook.rule_webhook_oauth2_problem(p_oauth2 JSONB)
RETURNS TEXT LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_key TEXT;
    v_value JSONB;
BEGIN
    IF p_oauth2 IS NULL THEN
        RETURN NULL;
    ELSIF jsonb_typeof(p_oauth2) <> 'object' THEN
        RETURN format('it is a JSON %s, not an object', jsonb_typeof(p_oauth2));
    END IF;
    FOR v_key, v_value IN SELECT t.key, t.value FROM jsonb_each(p_oauth2) t ORDER BY t.key LOOP
        IF v_key NOT IN ('token_url', 'client_id', 'scope', 'client_auth', 'parameters') THEN
            RETURN format('%s is none of its keys: token_url, client_id, scope, client_auth, parameters', to_json(left(v_key, 100)));
        ELSIF v_key <> 'parameters' AND jsonb_typeof(v_value) <> 'string' THEN
            RETURN format('its %s is a JSON %s, not a string', v_key, jsonb_typeof(v_value));
        END IF;
    END LOOP;
    -- The url is not shown: it may hold a login by mistake.
    IF coalesce(p_oauth2 ->> 'token_url', '') !~* '^https?://[!-~]+$' THEN
        RETURN 'its token_url is not the url of an http or https server';
    ELSIF p_oauth2 ->> 'token_url' ~ '^[A-Za-z]+://[^/?#]*@' THEN
        RETURN 'its token_url has a login in it; the client''s secret is the secret oauth2_client_secret';
    ELSIF coalesce(p_oauth2 ->> 'client_id', '') = '' THEN
        RETURN 'its client_id is missing';
    ELSIF coalesce(p_oauth2 ->> 'client_auth', 'basic') NOT IN ('basic', 'post') THEN
        RETURN format('its client_auth is %s; it can be basic (the header Authorization) or post (in the form)',
                      to_json(left(p_oauth2 ->> 'client_auth', 100)));
    ELSIF jsonb_typeof(p_oauth2 -> 'parameters') <> 'object' THEN
        RETURN format('its parameters are a JSON %s, not an object', jsonb_typeof(p_oauth2 -> 'parameters'));
    ELSIF EXISTS (SELECT FROM jsonb_each(CASE jsonb_typeof(p_oauth2 -> 'parameters') WHEN 'object' THEN p_oauth2 -> 'parameters'
                                                                                      ELSE '{}' END) p
                  WHERE jsonb_typeof(p.value) <> 'string' OR p.key IN ('grant_type', 'client_id', 'client_secret', 'scope', ''))
    THEN
        RETURN 'its parameters have a value that is no string, or one of grant_type, client_id, client_secret and scope, which have their '
               'places elsewhere';
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_oauth2_problem IS
    'walhook: why this cannot be a webhook''s oauth2, or NULL where it can';

-- With its owner's rights: a role that may write the row need not be allowed to call the functions that look at it.
CREATE OR REPLACE FUNCTION walhook.rule_webhook_receiver_check()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_problem TEXT;
    v_column TEXT := 'signature_template';
    v_hint TEXT := 'For example {"header": "X-Signature", "content": "{timestamp}.{body}", "value": "t={timestamp},{signatures}", '
                   '"signature": "v1={hex}", "separator": ","}.';
BEGIN
    v_problem := walhook.rule_webhook_signature_problem(NEW.signature_template);
    IF v_problem IS NULL THEN
        v_column := 'oauth2';
        v_hint := 'SELECT rule_webhook_oauth2_set(webhook_id, token_url, client_id, client_secret, scope); writes it.';
        v_problem := walhook.rule_webhook_oauth2_problem(NEW.oauth2);
    END IF;
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'webhook % (webhook_id %): %: %', walhook.rule_cdc_quoted(NEW.webhook_name), NEW.webhook_id, v_column,
            walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'check_violation', HINT = v_hint, SCHEMA = 'public', TABLE = TG_TABLE_NAME, COLUMN = v_column,
                  CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_receiver_check IS
    'walhook: trigger of rule_webhooks: refuses a signature_template or an oauth2 that walhook deliver cannot use';

-- With its owner's rights, as rule_webhook_secret_changed.
CREATE OR REPLACE FUNCTION walhook.rule_webhook_certificate_set()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Never back to false: a certificate that is missing must not pass for one that is not wanted.
    UPDATE public.rule_webhooks SET client_certificate = true WHERE webhook_id = NEW.webhook_id AND NOT client_certificate;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_certificate_set IS
    'walhook: trigger of rule_webhook_secrets: notes in the webhook''s row that it is called with a client certificate';

CREATE OR REPLACE FUNCTION public.rule_webhook_oauth2_set(
    p_webhook_id INTEGER,
    p_token_url TEXT,
    p_client_id TEXT,
    p_client_secret TEXT DEFAULT NULL,
    p_scope TEXT DEFAULT NULL,
    p_client_auth TEXT DEFAULT 'basic',
    p_parameters JSONB DEFAULT NULL
) RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE public.rule_webhooks
    SET oauth2 = jsonb_strip_nulls(jsonb_build_object('token_url', p_token_url, 'client_id', p_client_id, 'scope', p_scope,
                                                      'client_auth', p_client_auth, 'parameters', p_parameters)),
        -- By this, workers know to read it again.
        secrets_changed_at = clock_timestamp(),
        updated_at = now()
    WHERE webhook_id = p_webhook_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Webhook % not found', coalesce(p_webhook_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_webhook_list(); lists the webhooks.';
    END IF;
    IF p_client_secret IS NOT NULL THEN
        PERFORM public.rule_webhook_secret_set(p_webhook_id, 'oauth2_client_secret', p_client_secret);
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_oauth2_set IS
    'walhook: lets walhook deliver get an access token from p_token_url (OAuth2, client credentials) for the calls of a webhook. The secret '
    'is kept as the secret oauth2_client_secret; NULL leaves the one that is there, or in the worker''s secrets_dir. '
    'UPDATE rule_webhooks SET oauth2 = NULL ends it';

-- ------------------------------------------------------------------------------------------------ limits that workers share

CREATE OR REPLACE FUNCTION walhook.rule_webhook_limit_starts(p_webhook_id INTEGER, p_calls INTEGER)
RETURNS TABLE (first_us DOUBLE PRECISION, interval_us DOUBLE PRECISION)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_rate NUMERIC;
    v_next TIMESTAMPTZ;
    v_first TIMESTAMPTZ;
BEGIN
    SELECT w.rate_limit_per_second INTO v_rate FROM public.rule_webhooks w WHERE w.webhook_id = p_webhook_id;
    IF v_rate IS NULL THEN
        RETURN QUERY SELECT 0::double precision, 0::double precision;
        RETURN;
    END IF;
    INSERT INTO walhook.rule_webhook_limits (webhook_id) VALUES (p_webhook_id) ON CONFLICT DO NOTHING;
    SELECT CASE WHEN l.rate = v_rate THEN l.next_call_at ELSE '-infinity' END INTO v_next
    FROM walhook.rule_webhook_limits l WHERE l.webhook_id = p_webhook_id FOR UPDATE;
    -- Read behind the lock: a worker that waited for it begins no sooner than now.
    v_first := greatest(v_next, clock_timestamp());
    UPDATE walhook.rule_webhook_limits l
    SET next_call_at = v_first + make_interval(secs => (p_calls / v_rate)::double precision), rate = v_rate
    WHERE l.webhook_id = p_webhook_id;
    RETURN QUERY SELECT (extract(epoch FROM v_first - clock_timestamp()) * 1e6)::double precision, (1e6 / v_rate)::double precision;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_limit_starts IS
    'walhook: for walhook deliver: takes the starts of so many calls by rate_limit_per_second, evenly spaced and no other worker''s: how '
    'long until the first, and from each to the next, in microseconds';

CREATE OR REPLACE FUNCTION walhook.rule_webhook_limit_calls(
    p_webhook_id INTEGER,
    p_worker TEXT,
    p_wanted INTEGER,
    p_held INTEGER,
    p_lease_ms INTEGER
) RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_limit INTEGER;
    v_held INTEGER;
    v_others INTEGER;
    v_workers INTEGER;
    v_before INTEGER;
    v_target INTEGER;
BEGIN
    SELECT w.max_in_flight INTO v_limit FROM public.rule_webhooks w WHERE w.webhook_id = p_webhook_id;
    IF v_limit IS NULL THEN
        DELETE FROM walhook.rule_webhook_limit_holders h WHERE h.webhook_id = p_webhook_id AND h.worker = p_worker;
        RETURN NULL;
    END IF;
    INSERT INTO walhook.rule_webhook_limits (webhook_id) VALUES (p_webhook_id) ON CONFLICT DO NOTHING;
    PERFORM FROM walhook.rule_webhook_limits l WHERE l.webhook_id = p_webhook_id FOR UPDATE;
    DELETE FROM walhook.rule_webhook_limit_holders h WHERE h.webhook_id = p_webhook_id AND h.held_until <= clock_timestamp();
    -- A worker whose time was over holds nothing any more, whatever it says: its calls have ended by then.
    SELECT least(h.calls, p_held) INTO v_held
    FROM walhook.rule_webhook_limit_holders h WHERE h.webhook_id = p_webhook_id AND h.worker = p_worker;
    v_held := coalesce(v_held, 0);
    SELECT coalesce(sum(h.calls), 0), count(*), count(*) FILTER (WHERE h.worker < p_worker) INTO v_others, v_workers, v_before
    FROM walhook.rule_webhook_limit_holders h WHERE h.webhook_id = p_webhook_id AND h.worker <> p_worker;
    -- Each worker its share, of which the first ones have the rest.
    v_target := v_limit / (v_workers + 1) + (v_before < v_limit % (v_workers + 1))::integer;
    v_target := greatest(0, least(v_target, p_wanted, v_limit - v_others));
    INSERT INTO walhook.rule_webhook_limit_holders AS h (webhook_id, worker, calls, held_until)
    VALUES (p_webhook_id, p_worker, greatest(v_held, v_target), clock_timestamp() + make_interval(secs => p_lease_ms / 1000.0))
    ON CONFLICT (webhook_id, worker) DO UPDATE SET calls = excluded.calls, held_until = excluded.held_until;
    RETURN v_target;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_limit_calls IS
    'walhook: for walhook deliver: how many calls of max_in_flight this worker may run from now on, so that all workers together run no '
    'more. p_held: how many it may run or still runs; it holds those until it asks again. NULL: there is no limit';

CREATE OR REPLACE FUNCTION public.rule_nats_dead_letters_retry(p_since TIMESTAMPTZ, p_webhook_name TEXT DEFAULT NULL)
RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_count INTEGER := 0;
    v_id BIGINT;
BEGIN
    IF p_since IS NULL THEN
        RAISE EXCEPTION 'retry dead letters: since when is NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'SELECT rule_nats_dead_letters_retry(now() - interval ''2 hours''); '
                '''-infinity'' means all.';
    ELSIF p_webhook_name IS NOT NULL AND NOT EXISTS (SELECT FROM public.rule_webhooks w WHERE w.webhook_name = p_webhook_name) THEN
        RAISE EXCEPTION 'there is no webhook %', walhook.rule_cdc_quoted(p_webhook_name)
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_webhook_list(); lists the webhooks.';
    END IF;
    FOR v_id IN
        SELECT d.dead_letter_id FROM public.rule_nats_dead_letters d
        WHERE d.status = 'dead' AND d.created_at >= p_since AND (p_webhook_name IS NULL OR d.webhook_name = p_webhook_name)
          -- The payload of these was withheld by a mask: there is nothing to publish.
          AND NOT coalesce(d.headers ? 'Walhook-Withheld', false)
        ORDER BY d.dead_letter_id
    LOOP
        PERFORM public.rule_nats_dead_letter_retry(v_id);
        v_count := v_count + 1;
    END LOOP;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION public.rule_nats_dead_letters_retry IS
    'walhook: retries all dead letters written since then, of one webhook or of all, as rule_nats_dead_letter_retry does, in this transaction: '
    'all or none. Returns how many';

CALL walhook.rule_cdc_functions_close();

CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_receiver_check', 'BEFORE INSERT OR UPDATE OF signature_template, oauth2',
    'NEW.signature_template IS NOT NULL OR NEW.oauth2 IS NOT NULL',
    'walhook.rule_webhook_receiver_check()', 'refuses a signature_template or an oauth2 that walhook deliver cannot use');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhook_secrets', 'walhook_certificate_set', 'AFTER INSERT OR UPDATE',
    'NEW.secret_name IN (''tls_certificate'', ''tls_key'')',
    'walhook.rule_webhook_certificate_set()', 'notes in the webhook''s row that it is called with a client certificate');

DO $grants$
DECLARE
    v_grant RECORD;
BEGIN
    FOR v_grant IN
        VALUES ('walhook_worker', 'SELECT, INSERT, UPDATE, DELETE', ARRAY['rule_webhook_limits', 'rule_webhook_limit_holders']),
               ('walhook_operator', 'SELECT, DELETE', ARRAY['rule_webhook_limits', 'rule_webhook_limit_holders'])
    LOOP
        CALL walhook.rule_cdc_grant(v_grant.column1, v_grant.column2, v_grant.column3);
    END LOOP;
    CALL walhook.rule_cdc_grant_functions('walhook_operator',
        '^rule_webhook_(limit_starts|limit_calls|signature_problem|oauth2_problem|oauth2_set|receiver_check|certificate_set)$'
        '|^rule_nats_dead_letters_retry$');
    CALL walhook.rule_cdc_grant_functions('walhook_worker', '^rule_webhook_(limit_starts|limit_calls)$');
END
$grants$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('019', 'walhook: limits over all workers, receivers'' signatures and logins, workers of the queue')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
