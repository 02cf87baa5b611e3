-- 017: which JetStream a NATS configuration asks: that of its server, of a domain behind a leaf node, or of another account.
--
-- Comes in: 007 and 009. Goes out: two columns of rule_nats_config.
-- Always holds: what these columns say can stand in a subject. Running this file twice changes nothing; no BEGIN, COMMIT or psql
-- command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '017') THEN
    RETURN;
END IF;

ALTER TABLE public.rule_nats_config
    ADD COLUMN IF NOT EXISTS jetstream_domain TEXT,
    ADD COLUMN IF NOT EXISTS api_prefix TEXT;
COMMENT ON COLUMN public.rule_nats_config.jetstream_domain IS
    'The JetStream domain that has the streams, where it is not that of the server that nats_url names (leaf nodes). NULL: the server''s';
COMMENT ON COLUMN public.rule_nats_config.api_prefix IS
    'What requests of JetStream''s API begin with, where an account imports the API of another one under a prefix. NULL: $JS.API';

-- walhook run checks the same (nats/settings.rs).
IF NOT EXISTS (SELECT FROM pg_constraint
               WHERE conrelid = 'public.rule_nats_config'::regclass AND conname = 'valid_jetstream_domain') THEN
    ALTER TABLE public.rule_nats_config
        ADD CONSTRAINT valid_jetstream_domain CHECK (jetstream_domain ~ '^([!-)+\-/-=?-~]{1,64})?$'),
        ADD CONSTRAINT valid_api_prefix CHECK (
            octet_length(api_prefix) <= 200 AND api_prefix ~ '^([!-)+\-/-=?-~]+(\.[!-)+\-/-=?-~]+)*)?$'),
        ADD CONSTRAINT one_jetstream CHECK (jetstream_domain IS NULL OR api_prefix IS NULL OR '' IN (jetstream_domain, api_prefix));
END IF;

END
$schema$;

DO $grants$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'walhook_operator') THEN
        GRANT SELECT (jetstream_domain, api_prefix) ON public.rule_nats_config TO walhook_operator;
    END IF;
END
$grants$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('017', 'walhook: JetStream domains and API prefixes')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
