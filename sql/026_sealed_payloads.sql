-- 026: sealed payloads: the bodies of a webhook's messages are encrypted.
--
-- Comes in: 005, 008. Goes out: rule_webhooks.seal_key, the name of a key that walhook has in a file.
-- Always holds: no key is in the database. A webhook without seal_key is as before. Running this file twice changes nothing;
-- no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '026') THEN
    RETURN;
END IF;

ALTER TABLE public.rule_webhooks ADD COLUMN IF NOT EXISTS seal_key TEXT;
COMMENT ON COLUMN public.rule_webhooks.seal_key IS
    'The name of the key with which walhook encrypts the bodies of this webhook''s messages, from a file <seal_key>.<id> in its '
    'seal_keys_dir. Without such a file walhook publishes nothing of the webhook and waits. NULL: bodies are not encrypted';
IF NOT EXISTS (SELECT FROM pg_constraint
               WHERE conrelid = 'public.rule_webhooks'::regclass AND conname = 'valid_seal_key') THEN
    ALTER TABLE public.rule_webhooks ADD CONSTRAINT valid_seal_key CHECK (seal_key ~ '^[A-Za-z0-9_-]{1,63}$');
END IF;

END
$schema$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('026', 'walhook: sealed payloads')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
