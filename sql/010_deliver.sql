-- 010: the last mile. What `walhook deliver` reads and keeps.
--
-- Comes in: 005 to 009. Goes out: the columns by which a webhook says how its URL is called, the event of each recorded call,
-- and the role walhook_worker with just the rights a worker needs.
-- Always holds: running it twice changes nothing. Secrets stay where they are: a webhook's row tells that one has
-- changed, and never which.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once: what is there already would wait for locks, and the application behind it.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '010') THEN
    RETURN;
END IF;

ALTER TABLE public.rule_webhooks
    ADD COLUMN IF NOT EXISTS signed BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS secrets_changed_at TIMESTAMPTZ,
    ADD COLUMN IF NOT EXISTS request_body TEXT NOT NULL DEFAULT 'data',
    ADD COLUMN IF NOT EXISTS delivery_order TEXT NOT NULL DEFAULT 'any',
    ADD COLUMN IF NOT EXISTS max_in_flight INTEGER;
COMMENT ON COLUMN public.rule_webhooks.signed IS
    'For walhook deliver: true: it signs every request (Standard Webhooks), and sends none without a secret. Becomes true '
    'with the first secret named signing';
COMMENT ON COLUMN public.rule_webhooks.secrets_changed_at IS
    'When a secret of this webhook was last set or deleted. Workers read the secrets again when it changes';
COMMENT ON COLUMN public.rule_webhooks.request_body IS
    'For walhook deliver with payload_format webhook. data: the request contains only the row or the caller''s payload; '
    'message: the whole message';
COMMENT ON COLUMN public.rule_webhooks.delivery_order IS
    'For walhook deliver. any: calls run side by side; strict: all workers together make one call at a time, in commit '
    'order, retries included';
COMMENT ON COLUMN public.rule_webhooks.max_in_flight IS
    'For walhook deliver: how many calls each worker makes side by side; NULL: as the worker''s own setting says';

ALTER TABLE public.rule_webhook_calls ADD COLUMN IF NOT EXISTS event_id TEXT;
COMMENT ON COLUMN public.rule_webhook_calls.event_id IS
    'The event that walhook deliver called the webhook for; NULL for calls of the queue in PostgreSQL, which walhook '
    'deliver does not make';
CREATE UNIQUE INDEX IF NOT EXISTS idx_webhook_calls_event
    ON public.rule_webhook_calls (event_id) WHERE event_id IS NOT NULL;

ALTER TABLE public.rule_nats_streams ADD COLUMN IF NOT EXISTS consumers TEXT[];
COMMENT ON COLUMN public.rule_nats_streams.consumers IS
    'Durable pull consumers that walhook run creates for workers of your own. NULL: webhook-worker-1 on the stream that its '
    'configuration names, and none on other streams';

DO $checks$
DECLARE
    c RECORD;
BEGIN
    FOR c IN
        VALUES ('rule_webhooks', 'valid_request_body', 'request_body IN (''data'', ''message'')'),
               ('rule_webhooks', 'valid_delivery_order', 'delivery_order IN (''any'', ''strict'')'),
               ('rule_webhooks', 'valid_max_in_flight', 'max_in_flight BETWEEN 1 AND 10000')
    LOOP
        IF NOT EXISTS (SELECT FROM pg_constraint
                       WHERE conrelid = format('public.%I', c.column1)::regclass AND conname = c.column2) THEN
            EXECUTE format('ALTER TABLE public.%I ADD CONSTRAINT %I CHECK (%s)', c.column1, c.column2, c.column3);
        END IF;
    END LOOP;
END
$checks$;

END
$schema$;

-- The secret stays in its table; the webhook's row, which workers hear of at the commit, tells that there is another one.
-- With its owner's rights: whoever may set a secret need not be allowed to change webhooks.
CREATE OR REPLACE FUNCTION walhook.rule_webhook_secret_changed()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        UPDATE public.rule_webhooks SET secrets_changed_at = clock_timestamp() WHERE webhook_id = OLD.webhook_id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        UPDATE public.rule_webhooks
        SET secrets_changed_at = clock_timestamp(),
            -- Never back to false: a signature that is missing must not pass for one that is not wanted.
            signed = signed OR NEW.secret_name ~ '^signing([_.-]|$)'
        WHERE webhook_id = NEW.webhook_id;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_secret_changed IS
    'walhook: the function of the trigger on rule_webhook_secrets: writes into the webhook''s row that its secrets have '
    'changed';
REVOKE ALL ON FUNCTION walhook.rule_webhook_secret_changed() FROM PUBLIC;

-- Once: a trigger waits for those who write into its table.
DO $trigger$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger t
                   WHERE t.tgrelid = 'public.rule_webhook_secrets'::regclass AND t.tgname = 'walhook_secret_changed'
                     AND t.tgfoid = 'walhook.rule_webhook_secret_changed()'::regprocedure AND t.tgenabled <> 'D')
    THEN
        DROP TRIGGER IF EXISTS walhook_secret_changed ON public.rule_webhook_secrets;
        CREATE TRIGGER walhook_secret_changed AFTER INSERT OR UPDATE OR DELETE ON public.rule_webhook_secrets
            FOR EACH ROW EXECUTE FUNCTION walhook.rule_webhook_secret_changed();
        COMMENT ON TRIGGER walhook_secret_changed ON public.rule_webhook_secrets IS
    'walhook: writes into the webhook''s row that its secrets have changed, so that workers read them again';
        -- Secrets that were there before.
        UPDATE public.rule_webhooks w
        SET secrets_changed_at = clock_timestamp(), signed = true
        WHERE w.secrets_changed_at IS NULL
          AND EXISTS (SELECT FROM public.rule_webhook_secrets s
                      WHERE s.webhook_id = w.webhook_id AND s.secret_name ~ '^signing([_.-]|$)');
    END IF;
END
$trigger$;

DO $role$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'walhook_worker') THEN
        BEGIN
            CREATE ROLE walhook_worker LOGIN;
            COMMENT ON ROLE walhook_worker IS 'walhook: the role of `walhook deliver`';
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'the role walhook_worker is missing and % may not create it', current_user
                    USING HINT = 'Let a superuser run: CREATE ROLE walhook_worker LOGIN; then run this file again.';
            WHEN duplicate_object OR unique_violation THEN
                NULL; -- somebody else made it just now, in another database
        END;
    END IF;
END
$role$;

DO $grants$
DECLARE
    v_grant RECORD;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'walhook_worker') THEN
        RETURN;
    END IF;
    FOR v_grant IN
        -- It reads the configuration and the secrets it signs with, keeps the calls, and notes that a receiver is gone. A worker of 0.2
        -- does that by enabled = false.
        VALUES ('SELECT', ARRAY['rule_webhooks', 'rule_webhook_links', 'rule_webhook_secrets', 'rule_nats_config',
                    'rule_nats_streams', 'rule_cdc_migrations']),
               ('UPDATE (enabled, updated_at)', ARRAY['rule_webhooks']),
               ('SELECT, INSERT, UPDATE', ARRAY['rule_webhook_calls', 'rule_nats_dead_letters']),
               ('SELECT, INSERT', ARRAY['rule_webhook_call_history'])
    LOOP
        CALL walhook.rule_cdc_grant('walhook_worker', v_grant.column1, v_grant.column2);
    END LOOP;
    -- Workers of one's own may log in as it, too, and report how long their events take.
    GRANT EXECUTE ON FUNCTION public.rule_nats_consumer_update_stats TO walhook_worker;
    IF NOT has_schema_privilege('walhook_worker', 'public', 'USAGE') THEN
        GRANT USAGE ON SCHEMA public TO walhook_worker;
    END IF;
    IF NOT has_schema_privilege('walhook_worker', 'walhook', 'USAGE') THEN
        GRANT USAGE ON SCHEMA walhook TO walhook_worker;
    END IF;
    IF NOT has_database_privilege('walhook_worker', current_database(), 'CONNECT') THEN
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO walhook_worker', current_database());
    END IF;
END
$grants$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('010', 'walhook: the last mile, from the stream to the URL')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
