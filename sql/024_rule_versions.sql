-- 024: the versions of the rules as text.
--
-- Comes in: 013. Goes out: rule_cdc_rule_versions.row_data as json in place of jsonb. A start of walhook reads a version of each webhook and
-- each link: with 10,000 of each PostgreSQL wrote 13 MB of jsonb as text in 130 ms, and sends the same as json in 27 ms.
-- Always holds: no version is changed; the functions of 013 work before and after this step. Running this file twice changes nothing;
-- no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '024') THEN
    RETURN;
END IF;

ALTER TABLE walhook.rule_cdc_rule_versions ALTER COLUMN row_data TYPE JSON USING row_data::text::json;

END
$schema$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('024', 'walhook: versions of the rules are kept as json')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
