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
    streams TEXT[],
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
    '{"<config>/<stream>": sequence, "<config>/<stream> end": sequence}: up to where what was read is stored, so where a resumed replay '
    'goes on, and where it ends';
COMMENT ON COLUMN public.rule_cdc_replays.first_lsn IS 'Commit LSN of the first event that was sent; last_lsn of the last';

REVOKE ALL ON public.rule_cdc_replays FROM PUBLIC;

-- ------------------------------------------------------------------------------------------------------------- backfills

CREATE TABLE IF NOT EXISTS public.rule_cdc_backfill_jobs (
    backfill_id BIGSERIAL PRIMARY KEY,
    table_schema TEXT NOT NULL,
    table_name TEXT NOT NULL,
    link_ids INTEGER[] NOT NULL,
    key_columns TEXT[] NOT NULL,
    rows_estimated BIGINT NOT NULL,
    status TEXT NOT NULL DEFAULT 'running',
    end_lsn PG_LSN,
    started_by TEXT DEFAULT CURRENT_USER,
    started_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    finished_at TIMESTAMPTZ,
    CONSTRAINT valid_backfill_status CHECK (status IN ('running', 'done', 'cancelled'))
);
COMMENT ON TABLE public.rule_cdc_backfill_jobs IS
    'Backfills; the view rule_cdc_backfills shows them with their progress. Never published, never linkable';
COMMENT ON COLUMN public.rule_cdc_backfill_jobs.key_columns IS 'The primary key, in whose order the rows are taken';
COMMENT ON COLUMN public.rule_cdc_backfill_jobs.end_lsn IS
    'All its rows lie before it in the WAL: they are delivered once the slot is confirmed up to there';

CREATE TABLE IF NOT EXISTS public.rule_cdc_backfill_ranges (
    backfill_id BIGINT NOT NULL REFERENCES public.rule_cdc_backfill_jobs (backfill_id) ON DELETE CASCADE,
    range_number INTEGER NOT NULL,
    after_key JSONB,
    upto_key JSONB,
    later JSONB NOT NULL DEFAULT '[]',
    is_at_end BOOLEAN NOT NULL DEFAULT false,
    is_done BOOLEAN NOT NULL DEFAULT false,
    rows_sent BIGINT NOT NULL DEFAULT 0,
    chunks BIGINT NOT NULL DEFAULT 0,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (backfill_id, range_number)
);
COMMENT ON TABLE public.rule_cdc_backfill_ranges IS
    'Ranges of keys, which several readers take side by side: whoever has locked the row is at it. Never published, never linkable';
COMMENT ON COLUMN public.rule_cdc_backfill_ranges.after_key IS 'How far it is; NULL: nothing yet, and no lower end';
COMMENT ON COLUMN public.rule_cdc_backfill_ranges.upto_key IS 'Its upper end, which belongs to it; NULL: none';
COMMENT ON COLUMN public.rule_cdc_backfill_ranges.later IS
    'Keys of rows that some transaction held a lock on when their turn came; they are tried again';

CREATE TABLE IF NOT EXISTS public.rule_cdc_backfill_rows (
    chunk JSONB,
    row_data BYTEA
);
COMMENT ON TABLE public.rule_cdc_backfill_rows IS
    'Always empty: a chunk of a backfill is inserted here and deleted in the same transaction, so that its rows are in the WAL, at '
    'their place among live changes. Published by inserts only, never linkable';
COMMENT ON COLUMN public.rule_cdc_backfill_rows.chunk IS
    'The first row of a chunk says what the others are: {"backfill", "schema", "table", "links", "columns": [{"name", "type", "key"}]}';
COMMENT ON COLUMN public.rule_cdc_backfill_rows.row_data IS
    'A row as pgoutput writes one: the number of columns, and for each n, or t, its length and its text in UTF-8';

CREATE OR REPLACE VIEW public.rule_cdc_backfills AS
SELECT j.backfill_id, j.table_schema, j.table_name, j.link_ids, j.status, j.rows_estimated,
       coalesce(r.rows_sent, 0)::bigint AS rows_sent,
       coalesce(r.rows_waiting, 0)::bigint AS rows_waiting,
       coalesce(r.chunks, 0)::bigint AS chunks,
       j.end_lsn, j.started_by, j.started_at, coalesce(r.updated_at, j.started_at) AS updated_at, j.finished_at
FROM public.rule_cdc_backfill_jobs j
LEFT JOIN LATERAL (SELECT sum(g.rows_sent) AS rows_sent, sum(jsonb_array_length(g.later)) AS rows_waiting,
                          sum(g.chunks) AS chunks, max(g.updated_at) AS updated_at
                   FROM public.rule_cdc_backfill_ranges g WHERE g.backfill_id = j.backfill_id) r ON true;
COMMENT ON VIEW public.rule_cdc_backfills IS
    'Backfills and how far they are. rows_waiting: some transaction holds a lock on them. One that was killed is running, and goes on '
    'where it was when `walhook backfill` is asked for the same again';

CALL public.rule_cdc_functions_open(ARRAY[]::text[]);

CREATE OR REPLACE FUNCTION public.rule_cdc_backfill_key(p_table REGCLASS, OUT names TEXT[], OUT types TEXT[])
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(a.attname::text ORDER BY k.place), array_agg(format_type(a.atttypid, NULL) ORDER BY k.place)
    FROM pg_index i
    CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = p_table AND i.indisprimary AND k.place <= i.indnkeyatts
$$;
COMMENT ON FUNCTION public.rule_cdc_backfill_key IS 'walhook: the primary key of a table and its types; NULL where it has none';

CREATE OR REPLACE FUNCTION public.rule_cdc_backfill_start(
    p_table TEXT,
    p_webhook TEXT DEFAULT NULL,
    p_ranges INTEGER DEFAULT 1
) RETURNS BIGINT LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_table REGCLASS := coalesce(to_regclass(p_table),
                                 to_regclass(CASE WHEN strpos(p_table, '.') = 0 THEN 'public.' || p_table END));
    v_schema TEXT;
    v_name TEXT;
    v_links INTEGER[];
    v_webhook INTEGER;
    v_key RECORD;
    v_json TEXT;
    v_plan JSON;
    v_rows BIGINT;
    v_after JSONB;
    v_upto JSONB;
    v_number INTEGER := 0;
    v_id BIGINT;
BEGIN
    IF v_table IS NULL THEN
        RAISE EXCEPTION 'cannot backfill %: there is no such table', coalesce(quote_literal(p_table), 'NULL')
            USING ERRCODE = 'undefined_table', HINT = 'Name it with its schema: shop.orders.';
    END IF;
    IF p_ranges IS NULL OR p_ranges NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'cannot backfill % in % ranges', v_table, coalesce(p_ranges::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Choose from 1 to 1000.';
    END IF;
    SELECT n.nspname, c.relname INTO v_schema, v_name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = v_table;
    v_webhook := CASE WHEN p_webhook IS NOT NULL THEN public.rule_cdc_webhook_id(p_webhook) END;
    SELECT array_agg(l.link_id ORDER BY l.link_id) INTO v_links
    FROM public.rule_webhook_links l
    JOIN public.rule_webhooks w ON w.webhook_id = l.webhook_id AND w.enabled AND w.publish_mode IN ('nats', 'both')
    WHERE l.table_schema = v_schema AND l.table_name = v_name AND l.enabled
      AND (v_webhook IS NULL OR l.webhook_id = v_webhook);
    IF v_links IS NULL THEN
        RAISE EXCEPTION 'cannot backfill %: no webhook% is linked to it and publishes to NATS', v_table,
            CASE WHEN p_webhook IS NOT NULL THEN ' ' || quote_literal(p_webhook) ELSE '' END
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = format('SELECT rule_webhook_link_table(…, %L) first, and rule_webhook_enable_nats; rule_webhook_links has what is linked.', v_table::text);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
                   WHERE r.prrelid = 'public.rule_cdc_backfill_rows'::regclass) THEN
        RAISE EXCEPTION 'cannot backfill %: rule_cdc_backfill_rows is in no publication', v_table
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Run `walhook setup`, or SELECT rule_cdc_publication_create(), which completes the publication.';
    END IF;
    v_key := public.rule_cdc_backfill_key(v_table);
    IF v_key.names IS NULL THEN
        RAISE EXCEPTION 'cannot backfill %: it has no primary key, in whose order its rows could be taken', v_table
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = format('ALTER TABLE %s ADD PRIMARY KEY (…);', v_table);
    END IF;
    IF NOT has_table_privilege(v_table, 'SELECT') OR NOT has_any_column_privilege(v_table, 'UPDATE') THEN
        RAISE EXCEPTION 'cannot backfill %: % may not read and lock its rows', v_table, current_user
            USING ERRCODE = 'insufficient_privilege',
            HINT = format('Let its owner run: GRANT SELECT, UPDATE ON %s TO %I; (SELECT FOR SHARE wants both).', v_table, current_user);
    END IF;
    EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM %s', v_table) INTO v_plan;
    v_rows := (v_plan -> 0 -> 'Plan' ->> 'Plan Rows')::numeric::bigint;
    INSERT INTO public.rule_cdc_backfill_jobs (table_schema, table_name, link_ids, key_columns, rows_estimated)
    VALUES (v_schema, v_name, v_links, v_key.names, v_rows)
    RETURNING backfill_id INTO v_id;
    SELECT string_agg(format('format(''%%s'', %I)', c), ', ' ORDER BY n) INTO v_json
    FROM unnest(v_key.names) WITH ORDINALITY AS k (c, n);
    IF p_ranges > 1 THEN
        FOR v_upto IN EXECUTE format(
            'SELECT k FROM (SELECT jsonb_build_array(%1$s) AS k, row_number() OVER (ORDER BY %2$s) AS n FROM %3$s) numbered
             WHERE n %% $1 = 0 ORDER BY n LIMIT $2',
            v_json, (SELECT string_agg(quote_ident(c), ', ' ORDER BY n) FROM unnest(v_key.names) WITH ORDINALITY AS k (c, n)),
            v_table)
            USING greatest(v_rows / p_ranges, 1), p_ranges - 1
        LOOP
            v_number := v_number + 1;
            INSERT INTO public.rule_cdc_backfill_ranges (backfill_id, range_number, after_key, upto_key)
            VALUES (v_id, v_number, v_after, v_upto);
            v_after := v_upto;
        END LOOP;
    END IF;
    INSERT INTO public.rule_cdc_backfill_ranges (backfill_id, range_number, after_key) VALUES (v_id, v_number + 1, v_after);
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_backfill_start IS
    'walhook: begins to send the rows of a linked table as events of op snapshot, for one of its webhooks or all, and returns the '
    'backfill''s number; rule_cdc_backfill_chunk does it, p_ranges at most side by side';

CREATE OR REPLACE FUNCTION public.rule_cdc_backfill_chunk(p_backfill_id BIGINT, p_rows INTEGER DEFAULT 1000)
RETURNS BIGINT LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
-- Values are written as the walsender writes them for the streamer, whose session has the same.
SET DateStyle = 'ISO' SET IntervalStyle = 'iso_8601' SET TimeZone = 'UTC' SET extra_float_digits = 3 SET bytea_output = 'hex'
AS $$
DECLARE
    v_job RECORD;
    v_range RECORD;
    v_table REGCLASS;
    v_key RECORD;
    v_columns JSONB;
    v_list TEXT;
    v_json TEXT;
    v_values TEXT[];
    v_row TEXT;
    v_condition TEXT;
    v_keys JSONB;
    v_later JSONB;
    v_sent JSONB;
    v_upto JSONB;
    v_is_later BOOLEAN;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'cannot take a chunk of backfill % in a transaction that is %', p_backfill_id,
            current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state',
            HINT = 'It has to see each row as it is when it is locked: use READ COMMITTED, a transaction for each chunk.';
    END IF;
    IF p_rows IS NULL OR p_rows NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'cannot take a chunk of % rows', coalesce(p_rows::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Choose from 1 to 100000.';
    END IF;
    SELECT * INTO v_job FROM public.rule_cdc_backfill_jobs j WHERE j.backfill_id = p_backfill_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no backfill %', p_backfill_id
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_cdc_backfills lists them.';
    ELSIF v_job.status <> 'running' THEN
        RETURN NULL;
    END IF;
    -- Of those that nobody is at: first what has not waited yet.
    SELECT * INTO v_range FROM public.rule_cdc_backfill_ranges r
    WHERE r.backfill_id = p_backfill_id AND NOT r.is_done
    ORDER BY r.is_at_end, r.range_number
    LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        IF EXISTS (SELECT FROM public.rule_cdc_backfill_ranges r WHERE r.backfill_id = p_backfill_id AND NOT r.is_done) THEN
            RETURN 0;
        END IF;
        UPDATE public.rule_cdc_backfill_jobs
        SET status = 'done', finished_at = clock_timestamp(), end_lsn = pg_current_wal_insert_lsn()
        WHERE backfill_id = p_backfill_id AND status = 'running';
        RETURN NULL;
    END IF;

    v_table := to_regclass(format('%I.%I', v_job.table_schema, v_job.table_name));
    v_key := CASE WHEN v_table IS NOT NULL THEN public.rule_cdc_backfill_key(v_table) END;
    IF v_key.names IS DISTINCT FROM v_job.key_columns THEN
        RAISE EXCEPTION 'cannot go on with backfill % of %.%: its primary key was (%) and is not any more', p_backfill_id,
            v_job.table_schema, v_job.table_name, array_to_string(v_job.key_columns, ', ')
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Cancel it by rule_cdc_backfill_cancel and start another.';
    ELSIF NOT EXISTS (SELECT FROM public.rule_webhook_links l WHERE l.link_id = ANY (v_job.link_ids)) THEN
        RAISE EXCEPTION 'cannot go on with backfill % of %: its links are gone', p_backfill_id, v_table
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Cancel it by rule_cdc_backfill_cancel and start another.';
    END IF;

    -- Values by their types' output functions, as pgoutput has them; a cast to text may write them otherwise.
    SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'type', a.atttypid::bigint,
                                        'key', a.attname::text = ANY (coalesce(public.rule_cdc_replica_identity(v_table), '{}')))
                     ORDER BY a.attnum),
           array_agg(format('CASE WHEN %1$I IS NOT DISTINCT FROM NULL THEN ''\x6e''::bytea '
                            'ELSE ''\x74''::bytea || int4send(octet_length(convert_to(format(''%%s'', %1$I), ''UTF8''))) '
                            '|| convert_to(format(''%%s'', %1$I), ''UTF8'') END', a.attname) ORDER BY a.attnum)
    INTO v_columns, v_values
    FROM pg_attribute a
    WHERE a.attrelid = v_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '';
    v_row := format('int2send(%s::int2) || %s', cardinality(v_values), array_to_string(v_values, ' || '));
    SELECT string_agg(quote_ident(c), ', ' ORDER BY n), string_agg(format('format(''%%s'', %I)', c), ', ' ORDER BY n)
    INTO v_list, v_json
    FROM unnest(v_key.names) WITH ORDINALITY AS k (c, n);
    v_json := format('jsonb_build_array(%s)', v_json);

    -- What was locked waits for the end of the range: by then it is free, most often.
    v_is_later := v_range.is_at_end;
    IF v_is_later THEN
        SELECT jsonb_agg(k ORDER BY n) INTO v_keys
        FROM (SELECT k, n FROM jsonb_array_elements(v_range.later) WITH ORDINALITY AS l (k, n) ORDER BY n LIMIT p_rows) first;
        v_condition := format('(%s) IN (SELECT %s FROM jsonb_array_elements($1) AS l (k))', v_list, (
            SELECT string_agg(format('CAST(l.k ->> %s AS %s)', n - 1, t), ', ' ORDER BY n)
            FROM unnest(v_key.types) WITH ORDINALITY AS k (t, n)));
        -- Rows that are gone are waited for no more.
        EXECUTE format('SELECT coalesce(jsonb_agg(%s), ''[]'') FROM %s t WHERE %s', v_json, v_table, v_condition)
        INTO v_keys USING v_keys;
        v_upto := v_keys;
    ELSE
        v_condition := concat_ws(' AND ', 'true', CASE WHEN v_range.after_key IS NOT NULL THEN format('(%s) > (%s)', v_list, (
            SELECT string_agg(format('CAST($2 ->> %s AS %s)', n - 1, t), ', ' ORDER BY n)
            FROM unnest(v_key.types) WITH ORDINALITY AS k (t, n))) END);
        EXECUTE format('SELECT coalesce(jsonb_agg(k ORDER BY n), ''[]'') FROM (
                            SELECT k, row_number() OVER () AS n FROM (
                                SELECT %1$s AS k FROM %2$s t WHERE %3$s AND ($1 IS NULL OR (%4$s) <= (%5$s))
                                ORDER BY %4$s LIMIT $3) ordered) numbered',
                       v_json, v_table, v_condition, v_list, (
                           SELECT string_agg(format('CAST($1 ->> %s AS %s)', n - 1, t), ', ' ORDER BY n)
                           FROM unnest(v_key.types) WITH ORDINALITY AS k (t, n)))
        INTO v_keys USING v_range.upto_key, v_range.after_key, p_rows;
        v_upto := v_keys -> -1;
        v_condition := format('%s AND (%s) <= (%s)', v_condition, v_list, (
            SELECT string_agg(format('CAST($1 ->> %s AS %s)', n - 1, t), ', ' ORDER BY n)
            FROM unnest(v_key.types) WITH ORDINALITY AS k (t, n)));
    END IF;

    v_sent := '[]';
    IF jsonb_array_length(v_keys) > 0 THEN
        INSERT INTO public.rule_cdc_backfill_rows (chunk)
        VALUES (jsonb_build_object('backfill', p_backfill_id, 'schema', v_job.table_schema, 'table', v_job.table_name,
                                   'links', to_jsonb(v_job.link_ids), 'columns', v_columns));
        -- A row that is locked cannot change before this commits, so what is sent is its state as of this commit, and each change of
        -- it stands on the right side of it in the WAL. Never waits, so no deadlock takes an application's transaction.
        EXECUTE format('WITH held AS MATERIALIZED (SELECT * FROM %2$s t WHERE %3$s ORDER BY %4$s FOR SHARE OF t SKIP LOCKED),
                             sent AS (INSERT INTO public.rule_cdc_backfill_rows (row_data) SELECT %5$s FROM held)
                        SELECT coalesce(jsonb_agg(%1$s), ''[]'') FROM held',
                       v_json, v_table, v_condition, v_list, v_row)
        INTO v_sent USING v_upto, v_range.after_key;
        DELETE FROM public.rule_cdc_backfill_rows;
    END IF;

    SELECT coalesce(jsonb_agg(k), '[]') INTO v_later
    FROM (SELECT k FROM jsonb_array_elements(v_keys) k EXCEPT ALL SELECT k FROM jsonb_array_elements(v_sent) k) missed;
    IF v_is_later THEN
        SELECT v_later || coalesce(jsonb_agg(k ORDER BY n), '[]') INTO v_later
        FROM jsonb_array_elements(v_range.later) WITH ORDINALITY AS l (k, n) WHERE n > p_rows;
    ELSE
        v_later := v_range.later || v_later;
        v_range.is_at_end := jsonb_array_length(v_keys) < p_rows;
        v_range.after_key := coalesce(v_upto, v_range.after_key);
    END IF;
    UPDATE public.rule_cdc_backfill_ranges r
    SET after_key = v_range.after_key, later = v_later, is_at_end = v_range.is_at_end,
        is_done = v_range.is_at_end AND jsonb_array_length(v_later) = 0,
        rows_sent = r.rows_sent + jsonb_array_length(v_sent), chunks = r.chunks + 1, updated_at = clock_timestamp()
    WHERE r.backfill_id = p_backfill_id AND r.range_number = v_range.range_number;
    RETURN jsonb_array_length(v_sent);
END
$$;
COMMENT ON FUNCTION public.rule_cdc_backfill_chunk IS
    'walhook: sends the next rows of a backfill, p_rows at most, and answers how many; 0: other readers or transactions are at what '
    'is left, NULL: nothing is left. A transaction of its own for each call';

CREATE OR REPLACE FUNCTION public.rule_cdc_backfill_cancel(p_backfill_id BIGINT)
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE public.rule_cdc_backfill_jobs SET status = 'cancelled', finished_at = clock_timestamp()
    WHERE backfill_id = p_backfill_id AND status = 'running';
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_backfill_cancel IS
    'walhook: ends a backfill before its end; what it has sent stays sent. false where it was not running';

CALL public.rule_cdc_functions_close();

REVOKE ALL ON public.rule_cdc_backfill_jobs, public.rule_cdc_backfill_ranges, public.rule_cdc_backfill_rows, public.rule_cdc_backfills
FROM PUBLIC;

-- ---------------------------------------------------------------------------------------------------------------- rights

DO $grants$
DECLARE
    v_grant RECORD;
    v_object TEXT;
    v_sequence REGCLASS;
BEGIN
    FOR v_grant IN
        VALUES ('walhook_streamer', 'SELECT, INSERT, UPDATE', ARRAY['rule_cdc_replays']),
               ('walhook_operator', 'SELECT, INSERT, UPDATE', ARRAY['rule_cdc_replays', 'rule_cdc_backfill_jobs',
                    'rule_cdc_backfill_ranges']),
               ('walhook_operator', 'SELECT, INSERT, DELETE', ARRAY['rule_cdc_backfill_rows']),
               ('walhook_operator', 'SELECT', ARRAY['rule_cdc_backfills'])
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

DO $functions$
DECLARE
    f RECORD;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'walhook_operator') THEN
        RETURN;
    END IF;
    FOR f IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'rule\_cdc\_backfill\_%'
          AND obj_description(p.oid, 'pg_proc') LIKE 'walhook:%'
    LOOP
        EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO walhook_operator', f.oid::regprocedure);
    END LOOP;
END
$functions$;

INSERT INTO public.schema_migrations (version, description)
VALUES ('011', 'walhook: replays and backfills')
ON CONFLICT (version) DO NOTHING;
