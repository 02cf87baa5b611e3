-- 013: the rules by LSN. Every version of a configuration row, with the position from which it holds, so that an event is routed,
-- named, filtered, stored and recorded by the rules in force at its own commit, in whichever session it is published.
--
-- Comes in: 005, 007, 008, 011, and the roles of 009. Goes out: the tables in which `walhook run` keeps versions, and the functions (which also prune the table of 015)
-- by which an operator puts corrected rules in force at an event.
-- Always holds: a version is written before PostgreSQL is told that anything behind its commit is done, and deleted only when no
-- position to which the slot can go back needs it. These tables are never published. Running this file twice changes nothing; no
-- BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '013') THEN
    RETURN;
END IF;

CREATE TABLE IF NOT EXISTS walhook.rule_cdc_rule_sources (
    source TEXT PRIMARY KEY,
    system_identifier TEXT NOT NULL,
    complete_from PG_LSN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE walhook.rule_cdc_rule_sources IS
    'From which position on the versions of a source''s rules are complete. Written by `walhook run`';
COMMENT ON COLUMN walhook.rule_cdc_rule_sources.complete_from IS
    'A session can begin at this position or behind it; versions that only earlier positions need were deleted';

-- A configuration whose servers change leads to other streams, while events from before the change go to those of their own.
ALTER TABLE public.rule_nats_checkpoints ADD COLUMN IF NOT EXISTS servers TEXT NOT NULL DEFAULT '';
COMMENT ON COLUMN public.rule_nats_checkpoints.servers IS
    'The addresses that the configuration named; empty where a setting of the process names them, or version 0.1 wrote the row';
DO $checkpoints$
BEGIN
    IF (SELECT count(*) FROM pg_attribute a JOIN pg_index i ON i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey::int2[])
        WHERE i.indrelid = 'public.rule_nats_checkpoints'::regclass AND i.indisprimary) = 3 THEN
        ALTER TABLE public.rule_nats_checkpoints
            DROP CONSTRAINT rule_nats_checkpoints_pkey, ADD PRIMARY KEY (source, config_name, stream_name, servers);
    END IF;
END
$checkpoints$;

CREATE TABLE IF NOT EXISTS walhook.rule_cdc_rule_versions (
    source TEXT NOT NULL,
    table_name TEXT NOT NULL,
    row_id INTEGER NOT NULL,
    since_lsn PG_LSN NOT NULL,
    row_data JSONB,
    written_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (source, table_name, row_id, since_lsn),
    CONSTRAINT valid_rule_version_table
        CHECK (table_name IN ('rule_webhooks', 'rule_webhook_links', 'rule_nats_config', 'rule_nats_streams'))
);
COMMENT ON TABLE walhook.rule_cdc_rule_versions IS
    'Versions of configuration rows by the position of the commit that wrote them. Holds the credentials of rule_nats_config: only '
    '`walhook run` reads it. Never published, never linkable';
COMMENT ON COLUMN walhook.rule_cdc_rule_versions.since_lsn IS
    'The version holds for all transactions that commit behind this position; 0/0 is the first version';
COMMENT ON COLUMN walhook.rule_cdc_rule_versions.row_data IS 'The row, each column as text; NULL: the row was deleted';

CREATE TABLE IF NOT EXISTS public.rule_cdc_rule_amendments (
    amendment_id BIGSERIAL PRIMARY KEY,
    source TEXT NOT NULL,
    system_identifier TEXT NOT NULL,
    at_lsn PG_LSN NOT NULL,
    at_ordinal BIGINT NOT NULL,
    rules JSONB NOT NULL,
    snapshot TEXT NOT NULL,
    made_at_lsn PG_LSN NOT NULL,
    reason TEXT,
    made_by TEXT NOT NULL DEFAULT session_user,
    made_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE public.rule_cdc_rule_amendments IS
    'Rules that an operator put in force at an event, in place of those of its own commit: rule_cdc_rules_amend. Holds the '
    'credentials of rule_nats_config. Never published, never linkable';
COMMENT ON COLUMN public.rule_cdc_rule_amendments.rules IS 'All configuration rows as they were when the amendment was made';
COMMENT ON COLUMN public.rule_cdc_rule_amendments.snapshot IS
    'Which transactions the amendment saw: their changes of rows are not followed again';

-- Replays go by the rules of each commit too, unless they are asked for with those of now.
DO $replays$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = 'public.rule_cdc_replays'::regclass AND attname = 'rules' AND NOT attisdropped) THEN
        ALTER TABLE public.rule_cdc_replays
            ADD COLUMN rules TEXT NOT NULL DEFAULT 'commit' CONSTRAINT valid_replay_rules CHECK (rules IN ('commit', 'now'));
    END IF;
END
$replays$;
COMMENT ON COLUMN public.rule_cdc_replays.rules IS
    'By which rules a replay from the WAL makes events: commit, those in force at each commit; now, those of now';

END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

CREATE OR REPLACE FUNCTION walhook.rule_cdc_rules_now()
RETURNS JSONB LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_table TEXT;
    v_columns TEXT;
    v_rows JSONB;
    v_all JSONB := '{}';
BEGIN
    FOREACH v_table IN ARRAY ARRAY['rule_webhooks', 'rule_webhook_links', 'rule_nats_config', 'rule_nats_streams'] LOOP
        SELECT string_agg(format('%L, r.%I::text', a.attname, a.attname), ', ' ORDER BY a.attnum) INTO v_columns
        FROM pg_attribute a
        WHERE a.attrelid = format('public.%I', v_table)::regclass AND a.attnum > 0 AND NOT a.attisdropped;
        EXECUTE format('SELECT coalesce(jsonb_agg(jsonb_object(ARRAY[%s])), ''[]'') FROM public.%I r', v_columns, v_table)
            INTO v_rows;
        v_all := v_all || jsonb_build_object(v_table, v_rows);
    END LOOP;
    RETURN v_all;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_rules_now IS
    'walhook: all configuration rows with each column as text, credentials too; for rule_cdc_rules_amend';

CREATE OR REPLACE FUNCTION public.rule_cdc_rules_amend(p_event TEXT, p_reason TEXT DEFAULT NULL)
RETURNS BIGINT LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_parts TEXT[] := regexp_match(p_event, '^(.+)-([0-9a-f]{8})([0-9a-f]{8})-[0-9a-f]{1,16}-([0-9]{1,18})-([0-9]{1,10})$');
    v_id BIGINT;
    v_lsn PG_LSN;
BEGIN
    IF v_parts IS NULL THEN
        RAISE EXCEPTION '% is not the id of an event', coalesce(walhook.rule_cdc_quoted(p_event), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'The id is in the error with which `walhook run` stopped, and in rule_cdc_status.last_error.';
    END IF;
    v_lsn := (v_parts[2] || '/' || v_parts[3])::pg_lsn;
    IF v_lsn > pg_current_wal_insert_lsn() THEN
        RAISE EXCEPTION 'event % is beyond the WAL of this database, which ends at %', p_event, pg_current_wal_insert_lsn()
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Is this the database that walhook streams from?';
    END IF;
    INSERT INTO public.rule_cdc_rule_amendments (source, system_identifier, at_lsn, at_ordinal, rules, snapshot, made_at_lsn, reason)
    SELECT v_parts[1], c.system_identifier::text, v_lsn, v_parts[4]::bigint, walhook.rule_cdc_rules_now(),
           pg_current_snapshot()::text, pg_current_wal_insert_lsn(), p_reason
    FROM pg_control_system() c
    RETURNING amendment_id INTO v_id;
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_rules_amend IS
    'walhook: puts the configuration as it is now in force at this event and all behind it, in place of the rules of its own commit; '
    'takes effect when walhook is started again. For an event at which a webhook with on_error = ''halt'' stopped it';

CREATE OR REPLACE FUNCTION public.rule_cdc_rules_forget(p_source TEXT)
RETURNS BOOLEAN LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM walhook.rule_cdc_rule_versions WHERE source = p_source;
    DELETE FROM public.rule_cdc_rule_amendments WHERE source = p_source;
    DELETE FROM public.rule_cdc_server_aliases WHERE source = p_source;
    -- At its next start walhook finds no versions, and knows that events may have been published by those that there were.
    UPDATE walhook.rule_cdc_rule_sources SET system_identifier = 'forgotten' WHERE source = p_source;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_rules_forget IS
    'walhook: forgets all versions of a source''s rules; at its next start walhook takes the rules as they are then for all that is '
    'not confirmed. What was published already by other rules may be published again';

DROP FUNCTION IF EXISTS walhook.rule_cdc_rules_write(TEXT, PG_LSN, TEXT[], INTEGER[], TEXT[], BOOLEAN[]);
CREATE OR REPLACE FUNCTION walhook.rule_cdc_rules_write(
    p_source TEXT, p_since PG_LSN, p_replaces BOOLEAN, p_tables TEXT[], p_ids INTEGER[], p_rows TEXT[], p_partial BOOLEAN[]
) RETURNS BIGINT LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_rows BIGINT;
BEGIN
    IF p_replaces THEN
        DELETE FROM walhook.rule_cdc_rule_versions v WHERE v.source = p_source AND v.since_lsn >= p_since;
    END IF;
    INSERT INTO walhook.rule_cdc_rule_versions (source, table_name, row_id, since_lsn, row_data)
    SELECT p_source, n.table_name, n.row_id, p_since,
           CASE WHEN n.is_partial THEN (coalesce((
               SELECT v.row_data::jsonb FROM walhook.rule_cdc_rule_versions v
               WHERE v.source = p_source AND v.table_name = n.table_name AND v.row_id = n.row_id AND v.since_lsn < p_since
               ORDER BY v.since_lsn DESC LIMIT 1), '{}') || n.row_data::jsonb)::json
           ELSE n.row_data::json END
    FROM unnest(p_tables, p_ids, p_rows, p_partial) AS n (table_name, row_id, row_data, is_partial)
    ON CONFLICT (source, table_name, row_id, since_lsn) DO NOTHING;
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    -- Compares counts: as NOT EXISTS, PostgreSQL compared each given row with all new versions.
    IF (SELECT count(*) FROM (SELECT DISTINCT n.table_name, n.row_id FROM unnest(p_tables, p_ids) AS n (table_name, row_id)) given)
       > (SELECT count(*) FROM walhook.rule_cdc_rule_versions v
          WHERE v.source = p_source AND v.since_lsn = p_since AND v.table_name = ANY (p_tables)
            AND v.row_id BETWEEN (SELECT min(i.id) FROM unnest(p_ids) i (id)) AND (SELECT max(i.id) FROM unnest(p_ids) i (id))) THEN
        RAISE EXCEPTION 'rows were written into walhook.rule_cdc_rule_versions without an error and are not there'
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'A trigger or a rule on walhook.rule_cdc_rule_versions drops rows; find it and drop it: SELECT tgname FROM pg_trigger WHERE '
                   'tgrelid = ''walhook.rule_cdc_rule_versions''::regclass AND NOT tgisinternal; SELECT rulename FROM pg_rules WHERE '
                   'tablename = ''rule_cdc_rule_versions'';';
    END IF;
    RETURN v_rows;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_rules_write IS
    'walhook: keeps versions of configuration rows; p_replaces: versions for this position and later ones are void, for an amendment '
    'is in their place; p_partial: the row has only the columns that are in the WAL, the others are as in '
    'the version before. For `walhook run`';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_rules_prune(p_source TEXT, p_slot TEXT, p_days INTEGER)
RETURNS BIGINT LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_horizon PG_LSN;
    v_before TIMESTAMPTZ := now() - make_interval(days => p_days);
    v_rows BIGINT;
    v_upto PG_LSN;
BEGIN
    -- A slot never goes back behind its restart_lsn, which is on disk before it is shown; replays begin at an anchor's position.
    SELECT min(s.restart_lsn) INTO v_horizon
    FROM pg_replication_slots s
    WHERE s.slot_name::text = p_slot
       OR s.slot_name::text IN (SELECT a.anchor_name FROM public.rule_cdc_anchors a WHERE a.slot_name::text = p_slot);
    IF v_horizon IS NULL THEN
        RETURN 0;
    END IF;
    WITH later AS (
        SELECT v.source, v.table_name, v.row_id, v.since_lsn,
               lead(v.since_lsn) OVER w AS next_lsn, lead(v.written_at) OVER w AS next_at
        FROM walhook.rule_cdc_rule_versions v
        WHERE v.source = p_source
        WINDOW w AS (PARTITION BY v.table_name, v.row_id ORDER BY v.since_lsn)
    ), gone AS (
        DELETE FROM walhook.rule_cdc_rule_versions d USING later l
        WHERE d.source = l.source AND d.table_name = l.table_name AND d.row_id = l.row_id AND d.since_lsn = l.since_lsn
          AND l.next_lsn < v_horizon AND l.next_at < v_before
        RETURNING l.next_lsn
    )
    SELECT count(*), max(g.next_lsn) INTO v_rows, v_upto FROM gone g;
    -- A row that was deleted, and whose earlier versions are gone, needs no version to say so.
    DELETE FROM walhook.rule_cdc_rule_versions v
    WHERE v.source = p_source AND v.row_data IS NULL AND v.since_lsn < v_horizon AND v.written_at < v_before
      AND NOT EXISTS (SELECT FROM walhook.rule_cdc_rule_versions o
                      WHERE o.source = v.source AND o.table_name = v.table_name AND o.row_id = v.row_id
                        AND o.since_lsn < v.since_lsn);
    DELETE FROM public.rule_cdc_rule_amendments a
    WHERE a.source = p_source AND a.made_at_lsn < v_horizon AND a.made_at < v_before;
    DELETE FROM public.rule_cdc_server_aliases a
    WHERE a.source = p_source AND a.until_lsn < v_horizon AND a.found_at < v_before;
    UPDATE walhook.rule_cdc_rule_sources s SET complete_from = v_upto + 1::numeric
    WHERE s.source = p_source AND v_upto >= s.complete_from;
    RETURN v_rows;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_rules_prune IS
    'walhook: deletes versions of rules that no position needs to which the slot or its anchor can go back, and that were replaced '
    'more than p_days ago; returns how many. For `walhook run`';

CALL walhook.rule_cdc_functions_close();

REVOKE ALL ON walhook.rule_cdc_rule_sources, walhook.rule_cdc_rule_versions, public.rule_cdc_rule_amendments FROM PUBLIC;

DO $grants$
DECLARE
    v_grant RECORD;
BEGIN
    FOR v_grant IN
        VALUES ('walhook_streamer', 'SELECT, INSERT, UPDATE, DELETE', ARRAY['rule_cdc_rule_sources', 'rule_cdc_rule_versions']),
               ('walhook_streamer', 'SELECT, DELETE', ARRAY['rule_cdc_rule_amendments']),
               ('walhook_operator', 'SELECT', ARRAY['rule_cdc_rule_sources'])
    LOOP
        CALL walhook.rule_cdc_grant(v_grant.column1, v_grant.column2, v_grant.column3);
    END LOOP;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'walhook_operator') THEN
        GRANT SELECT (amendment_id, source, at_lsn, at_ordinal, made_at_lsn, reason, made_by, made_at)
            ON public.rule_cdc_rule_amendments TO walhook_operator;
        GRANT SELECT (source, table_name, row_id, since_lsn, written_at) ON walhook.rule_cdc_rule_versions TO walhook_operator;
    END IF;
    CALL walhook.rule_cdc_grant_functions('walhook_operator', '^rule_cdc_rules_(amend|forget)$');
    CALL walhook.rule_cdc_grant_functions('walhook_streamer', '^rule_cdc_rules_(write|prune)$');
END
$grants$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('013', 'walhook: rules by LSN')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
