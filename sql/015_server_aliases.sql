-- 015: aliases of NATS servers. A configuration's address may change to another name of the same server, or from one that never led to
-- a server; events from before the change then go where those from behind it go, in one order.
--
-- Comes in: 013, and the roles of 009. Goes out: the table in which `walhook run` notes such addresses; 013 prunes it.
-- Always holds: an alias is written before any event goes by it, and counts only for transactions that commit before its until_lsn.
-- The table is never published. Running this file twice changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '015') THEN
    RETURN;
END IF;

CREATE TABLE IF NOT EXISTS public.rule_cdc_server_aliases (
    alias_id BIGSERIAL PRIMARY KEY,
    source TEXT NOT NULL,
    system_identifier TEXT NOT NULL,
    config_id INTEGER NOT NULL,
    servers TEXT NOT NULL,
    alias_of TEXT NOT NULL,
    until_lsn PG_LSN NOT NULL,
    found_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE public.rule_cdc_server_aliases IS
    'Servers of a NATS configuration that events go to in place of those that the configuration named at their commit: both '
    'addresses lead to the same server, or walhook never reached the first one. Written by `walhook run`; the rows of a configuration '
    'count in the order of alias_id. Never published, never linkable';
COMMENT ON COLUMN public.rule_cdc_server_aliases.servers IS 'The addresses that the configuration named, without logins';
COMMENT ON COLUMN public.rule_cdc_server_aliases.alias_of IS 'The addresses of the servers that get the events';
-- Rules as they are after rule_cdc_rules_forget may differ from those by which events were published before.
ALTER TABLE walhook.rule_cdc_rule_sources ADD COLUMN IF NOT EXISTS doubted_upto PG_LSN;
COMMENT ON COLUMN walhook.rule_cdc_rule_sources.doubted_upto IS
    'Events up to this position may have been published by other rules, before rule_cdc_rules_forget: walhook looks in the streams for each of them';

COMMENT ON COLUMN public.rule_cdc_server_aliases.until_lsn IS 'It counts for transactions that commit before this position';

END
$schema$;

REVOKE ALL ON public.rule_cdc_server_aliases FROM PUBLIC;
REVOKE ALL ON SEQUENCE public.rule_cdc_server_aliases_alias_id_seq FROM PUBLIC;

CALL walhook.rule_cdc_grant('walhook_streamer', 'SELECT, INSERT, DELETE', ARRAY['rule_cdc_server_aliases']);
CALL walhook.rule_cdc_grant('walhook_operator', 'SELECT', ARRAY['rule_cdc_server_aliases']);

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('015', 'walhook: aliases of NATS servers')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
