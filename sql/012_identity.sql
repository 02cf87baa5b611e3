-- 012: which database this is.
--
-- Comes in: 008 and 009. Goes out: the identity of this database, which streams, buckets, consumers and objects in NATS carry;
-- the runs that this database knows of; and the rows that `walhook adopt` puts aside.
-- Always holds: the first setup makes the identity, and no later one changes it. Only the owner of the table changes it, by
-- `walhook adopt`. Never published, never linkable. Running this file twice changes nothing; no BEGIN, COMMIT or psql command
-- in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

CREATE TABLE IF NOT EXISTS public.rule_cdc_identity (
    is_only BOOLEAN PRIMARY KEY DEFAULT true,
    database_id TEXT NOT NULL,
    system_identifier TEXT NOT NULL,
    database_oid BIGINT,
    database_name TEXT NOT NULL,
    is_upgraded BOOLEAN NOT NULL DEFAULT false,
    previous_ids TEXT[] NOT NULL DEFAULT '{}',
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    adopted_at TIMESTAMPTZ,
    CONSTRAINT one_identity CHECK (is_only),
    CONSTRAINT valid_database_id CHECK (database_id ~ '^[0-9a-f]{16}$')
);
COMMENT ON TABLE public.rule_cdc_identity IS
    'The identity of this database, one row. Streams, buckets, consumers and objects in NATS carry database_id. A copy of the '
    'database has the same row; `walhook adopt` gives the copy an identity of its own. Never published, never linkable';
COMMENT ON COLUMN public.rule_cdc_identity.database_id IS 'Random, made by the first setup';
COMMENT ON COLUMN public.rule_cdc_identity.system_identifier IS
    'Of the PostgreSQL cluster, as pg_control_system() shows it: another one means a restored dump or pg_upgrade';
COMMENT ON COLUMN public.rule_cdc_identity.database_oid IS
    'Of pg_database: another one means CREATE DATABASE with TEMPLATE, or a dump restored beside the original';
COMMENT ON COLUMN public.rule_cdc_identity.is_upgraded IS
    'walhook ran here before databases had identities, so streams, buckets and consumers without one may belong to this database';
COMMENT ON COLUMN public.rule_cdc_identity.previous_ids IS 'The identities that `walhook adopt` replaced, the newest last';

CREATE TABLE IF NOT EXISTS walhook.rule_cdc_runs (
    source TEXT,
    run_id TEXT,
    epoch BIGINT,
    beat BIGINT NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (source, run_id)
);
COMMENT ON TABLE walhook.rule_cdc_runs IS
    'The runs of `walhook run` in this database, and how often each has counted on. The same count goes to the bucket in NATS '
    'afterwards. If the bucket shows a run or a count that this table lacks, this database is a copy, or was set back. Never '
    'published, never linkable';
COMMENT ON COLUMN walhook.rule_cdc_runs.run_id IS 'Random; *: `walhook adopt --same` accepts whatever run the bucket shows, once';

CREATE TABLE IF NOT EXISTS walhook.rule_cdc_claims (
    source TEXT,
    config_name TEXT,
    stream_name TEXT,
    stream_created_ns BIGINT NOT NULL,
    claimed_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (source, config_name, stream_name)
);
COMMENT ON TABLE walhook.rule_cdc_claims IS
    'Streams of this database whose metadata `walhook run` may not change. Never published, never linkable';

CREATE TABLE IF NOT EXISTS public.rule_cdc_put_aside (
    put_aside_id BIGSERIAL PRIMARY KEY,
    database_id TEXT NOT NULL,
    table_name TEXT NOT NULL,
    contents JSONB NOT NULL,
    put_aside_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE public.rule_cdc_put_aside IS
    'Rows of the database that this one was copied from: checkpoints, status, runs, replays. `walhook adopt` moves them here. '
    'Never published, never linkable';

-- Checkpoints of an earlier version name the PostgreSQL that they were written on. If that is another one, this is a copy
-- or came here by pg_upgrade, and `walhook run` says so.
INSERT INTO public.rule_cdc_identity (database_id, system_identifier, database_oid, database_name, is_upgraded)
SELECT left(replace(pg_catalog.gen_random_uuid()::text, '-', ''), 16),
       coalesce((SELECT c.system_identifier FROM public.rule_nats_checkpoints c
                 WHERE c.system_identifier IS NOT NULL ORDER BY c.updated_at DESC LIMIT 1),
                (SELECT s.system_identifier::text FROM pg_catalog.pg_control_system() s)),
       (SELECT d.oid::bigint FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()),
       pg_catalog.current_database(),
       EXISTS (SELECT FROM public.rule_nats_checkpoints)
WHERE NOT EXISTS (SELECT FROM public.rule_cdc_identity)
ON CONFLICT (is_only) DO NOTHING;

REVOKE ALL ON public.rule_cdc_identity, walhook.rule_cdc_runs, walhook.rule_cdc_claims, public.rule_cdc_put_aside
FROM PUBLIC;

DO $grants$
DECLARE
    v_grant RECORD;
BEGIN
    FOR v_grant IN
        VALUES ('walhook_streamer', 'SELECT', ARRAY['rule_cdc_identity']),
               ('walhook_streamer', 'SELECT, INSERT, UPDATE, DELETE', ARRAY['rule_cdc_runs']),
               ('walhook_streamer', 'SELECT, INSERT, UPDATE', ARRAY['rule_cdc_claims']),
               ('walhook_worker', 'SELECT', ARRAY['rule_cdc_identity', 'rule_cdc_runs']),
               ('walhook_operator', 'SELECT', ARRAY['rule_cdc_identity', 'rule_cdc_runs', 'rule_cdc_claims',
                    'rule_cdc_put_aside'])
    LOOP
        CALL walhook.rule_cdc_grant(v_grant.column1, v_grant.column2, v_grant.column3);
    END LOOP;
END
$grants$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('012', 'walhook: the identity of the database')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
