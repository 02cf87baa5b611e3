-- 030: a receiver that answers 410 ends the calls to it, and nothing else.
--
-- Comes in: 023, whose disabled_at says when `walhook deliver` has ended them. Goes out: disabled_at is what ends them: while it is set,
-- walhook deliver does not call the webhook. It used to set enabled = false, so that a receiver made the application's calls fail, and no
-- events of the webhook's tables came to be, for any consumer.
-- Always holds: a statement that enables the webhook, or gives it another URL, has it called again. Running this file twice changes nothing; no
-- BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '030') THEN
    RETURN;
END IF;
-- It stayed when somebody had enabled the webhook again.
UPDATE public.rule_webhooks SET disabled_at = NULL, disabled_reason = NULL WHERE enabled AND disabled_at IS NOT NULL;
COMMENT ON COLUMN public.rule_webhooks.disabled_at IS
    'Since when walhook deliver does not call the webhook: its receiver has answered 410 (Gone), or somebody has set this. Events are '
    'published and wait in their stream. NULL: it is called. An UPDATE that sets enabled = true, or another url, sets NULL';
COMMENT ON COLUMN public.rule_webhooks.disabled_reason IS 'Why it is not called';
END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

CREATE OR REPLACE FUNCTION walhook.rule_webhook_called_again()
RETURNS TRIGGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.disabled_at := NULL;
    NEW.disabled_reason := NULL;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_called_again IS
    'walhook: trigger of rule_webhooks: walhook deliver calls a webhook again that somebody enables, or gives another URL';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_check_receivers()
RETURNS TABLE (name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'webhook_not_called', 'warning', format('webhook %s', to_json(left(w.webhook_name, 200))),
           format('walhook deliver has not called it since %s: %s. Its events wait in their stream',
                  to_char(w.disabled_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC'),
                  walhook.rule_cdc_sayable(coalesce(w.disabled_reason, 'no reason is given'))),
           format('SELECT public.rule_webhook_update(%s, p_enabled => true); -- p_url => ''...'' for another URL', w.webhook_id)
    FROM public.rule_webhooks w WHERE w.enabled AND w.disabled_at IS NOT NULL ORDER BY w.webhook_id
$$;
COMMENT ON FUNCTION walhook.rule_cdc_check_receivers IS
    'walhook: the part of rule_cdc_check about webhooks that walhook deliver does not call';

CALL walhook.rule_cdc_functions_close();

CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_called_again', 'BEFORE UPDATE OF enabled, url',
    'OLD.disabled_at IS NOT NULL AND NEW.disabled_at IS NOT DISTINCT FROM OLD.disabled_at AND NEW.enabled',
    'walhook.rule_webhook_called_again()', 'walhook deliver calls the webhook again');

CALL walhook.rule_cdc_grant_functions('walhook_operator', '^rule_webhook_called_again$|^rule_cdc_check_receivers$');
CALL walhook.rule_cdc_grant_functions('walhook_streamer', '^rule_cdc_check_receivers$');

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('030', 'walhook: a receiver that answers 410 ends the calls to it, and nothing else')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
