-- 011: going back. What `walhook replay` and `walhook backfill` write down, and the chunks of a backfill.
--
-- Comes in: 005, 007, 008, and the roles of 009. Goes out: the state of every replay and backfill, and rows of linked tables
-- that travel through the WAL in their place among live changes.
-- Always holds: what is sent of a row by a backfill is the row as of its own commit. Running this file twice changes nothing; no
-- BEGIN, COMMIT or psql command in it.

-- --------------------------------------------------------------------------------------------------------------- replays

CREATE TABLE IF NOT EXISTS public.rule_cdc_replays (
    replay_id BIGSERIAL PRIMARY KEY,
    source TEXT NOT NULL,
    via TEXT NOT NULL,
    from_point TEXT NOT NULL,
    to_point TEXT,
    webhooks TEXT[],
    tables TEXT[],
    subject_prefix TEXT,
    rate INTEGER,
    status TEXT NOT NULL DEFAULT 'running',
    target_stream TEXT,
    events_sent BIGINT NOT NULL DEFAULT 0,
    progress JSONB NOT NULL DEFAULT '{}',
    first_lsn PG_LSN,
    last_lsn PG_LSN,
    error TEXT,
    started_by TEXT DEFAULT CURRENT_USER,
    started_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    finished_at TIMESTAMPTZ,
    CONSTRAINT valid_replay_via CHECK (via IN ('stream')),
    CONSTRAINT valid_replay_status CHECK (status IN ('running', 'done', 'failed', 'interrupted'))
);
COMMENT ON TABLE public.rule_cdc_replays IS
    'Replays, one row each, written by `walhook replay`. Never published, never linkable';
COMMENT ON COLUMN public.rule_cdc_replays.from_point IS 'An LSN or a commit time, as it was asked for';
COMMENT ON COLUMN public.rule_cdc_replays.status IS
    'running, done, failed (see error), interrupted: it was killed, and `walhook replay --resume` goes on with it. A killed one is '
    'running until the next replay of its source looks';
COMMENT ON COLUMN public.rule_cdc_replays.progress IS
    '{"<config>/<stream>": sequence}: how far each stream was read and what was read is stored; where a resumed replay goes on';
COMMENT ON COLUMN public.rule_cdc_replays.first_lsn IS 'Commit LSN of the first event that was sent; last_lsn of the last';

REVOKE ALL ON public.rule_cdc_replays FROM PUBLIC;

-- ---------------------------------------------------------------------------------------------------------------- rights

DO $grants$
DECLARE
    v_grant RECORD;
    v_object TEXT;
    v_sequence REGCLASS;
BEGIN
    FOR v_grant IN
        VALUES ('walhook_streamer', 'SELECT, INSERT, UPDATE', ARRAY['rule_cdc_replays']),
               ('walhook_operator', 'SELECT, INSERT, UPDATE', ARRAY['rule_cdc_replays'])
    LOOP
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_roles WHERE rolname = v_grant.column1);
        FOREACH v_object IN ARRAY v_grant.column3 LOOP
            EXECUTE format('GRANT %s ON public.%I TO %I', v_grant.column2, v_object, v_grant.column1);
            FOR v_sequence IN
                SELECT d.objid::regclass FROM pg_depend d
                JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
                WHERE d.refobjid = format('public.%I', v_object)::regclass AND d.deptype IN ('a', 'i')
            LOOP
                EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I', v_sequence, v_grant.column1);
            END LOOP;
        END LOOP;
    END LOOP;
END
$grants$;

INSERT INTO public.schema_migrations (version, description)
VALUES ('011', 'walhook: replays and backfills')
ON CONFLICT (version) DO NOTHING;
