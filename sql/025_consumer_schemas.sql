-- 025: a JSON Schema of each linked table for consumers.
--
-- Comes in: 007 and 009. Goes out: rule_nats_config.publish_schemas. walhook run does the rest: it puts the schemas into a bucket of keys
-- and values, and names the version in a header of each event (docs/json-schemas.md).
-- Always holds: a configuration without publish_schemas costs nothing; core NATS, which has no buckets, never has it. Running this file
-- twice changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '025') THEN
    RETURN;
END IF;

ALTER TABLE public.rule_nats_config ADD COLUMN IF NOT EXISTS publish_schemas BOOLEAN NOT NULL DEFAULT false;
COMMENT ON COLUMN public.rule_nats_config.publish_schemas IS
    'Whether walhook run puts a JSON Schema of each linked table into the bucket schemas_<source>, and names its version in the header '
    'Walhook-Schema of each event of a row';

END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

-- With its owner's rights, as in 023.
CREATE OR REPLACE FUNCTION walhook.rule_nats_schemas_check()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'NATS configuration % (config_id %): publish_schemas needs JetStream, which has the bucket of the schemas, and '
        'jetstream_enabled is false', walhook.rule_cdc_quoted(NEW.config_name), NEW.config_id
        USING ERRCODE = 'check_violation', HINT = format('UPDATE rule_nats_config SET publish_schemas = false WHERE config_id = %s; or SET '
                'jetstream_enabled = true.', NEW.config_id), SCHEMA = 'public',
              TABLE = TG_TABLE_NAME, COLUMN = 'publish_schemas', CONSTRAINT = TG_NAME;
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_schemas_check IS
    'walhook: trigger of rule_nats_config: refuses publish_schemas without JetStream';

CALL walhook.rule_cdc_functions_close();

CALL walhook.rule_cdc_trigger(
    'public.rule_nats_config', 'walhook_schemas_check', 'BEFORE INSERT OR UPDATE OF publish_schemas, jetstream_enabled',
    'NEW.publish_schemas AND NEW.jetstream_enabled IS FALSE',
    'walhook.rule_nats_schemas_check()', 'refuses publish_schemas without JetStream');

CALL walhook.rule_cdc_grant('walhook_operator', 'SELECT (publish_schemas)', ARRAY['rule_nats_config']);
CALL walhook.rule_cdc_grant_functions('walhook_operator', '^rule_nats_schemas_check$');

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('025', 'walhook: JSON Schemas of linked tables for consumers')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
