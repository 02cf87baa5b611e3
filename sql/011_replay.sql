-- 011: going back. What `walhook replay` and `walhook backfill` write down, replays asked for in SQL, the anchor slot that keeps WAL
-- for them, and the chunks of a backfill.
--
-- Comes in: 005, 007, 008, and the roles of 009. Goes out: the state of every replay and backfill, and rows of linked tables
-- that travel through the WAL in their place among live changes.
-- Always holds: an anchor is off until somebody makes it, and never ahead of its slot; what is sent of a row by a backfill is the row as of its own commit. Running this file twice changes nothing; no
-- BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- --------------------------------------------------------------------------------------------------------------- replays

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '011') THEN
    RETURN;
END IF;

CREATE TABLE IF NOT EXISTS public.rule_cdc_replays (
    replay_id BIGSERIAL PRIMARY KEY,
    source TEXT NOT NULL,
    via TEXT,
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
    finished_at TIMESTAMPTZ
);
-- A first version knew one way and no requests.
ALTER TABLE public.rule_cdc_replays
    ALTER COLUMN via DROP NOT NULL,
    ADD COLUMN IF NOT EXISTS create_stream TEXT,
    ADD COLUMN IF NOT EXISTS is_requested BOOLEAN NOT NULL DEFAULT false;
DO $checks$
DECLARE
    c RECORD;
BEGIN
    FOR c IN
        VALUES ('valid_replay_via', 'table', 'via IN (''stream'', ''wal'', ''table'')'),
               ('valid_replay_status', 'requested',
                'status IN (''requested'', ''running'', ''done'', ''failed'', ''interrupted'', ''cancelled'')')
    LOOP
        IF NOT EXISTS (SELECT FROM pg_constraint
                       WHERE conrelid = 'public.rule_cdc_replays'::regclass AND conname = c.column1
                         AND strpos(pg_get_constraintdef(oid), quote_literal(c.column2)) > 0) THEN
            EXECUTE format('ALTER TABLE public.rule_cdc_replays DROP CONSTRAINT IF EXISTS %1$I, ADD CONSTRAINT %1$I CHECK (%2$s)',
                           c.column1, c.column3);
        END IF;
    END LOOP;
END
$checks$;
CREATE INDEX IF NOT EXISTS idx_cdc_replays_open
    ON public.rule_cdc_replays (source, replay_id) WHERE status IN ('requested', 'running');
COMMENT ON TABLE public.rule_cdc_replays IS
    'Replays, one row each. `walhook replay` and rule_cdc_replay write them. Never published, and cannot be linked';
COMMENT ON COLUMN public.rule_cdc_replays.via IS
    'Where the events come from: stream, wal or table; NULL: the running walhook has not chosen yet';
COMMENT ON COLUMN public.rule_cdc_replays.is_requested IS
    'true: somebody asked for it by SQL, so the running walhook carries it out, and continues it after a restart';
COMMENT ON COLUMN public.rule_cdc_replays.create_stream IS 'The stream that walhook creates if no stream takes the subjects';
COMMENT ON COLUMN public.rule_cdc_replays.from_point IS 'An LSN or a commit time, as given';
COMMENT ON COLUMN public.rule_cdc_replays.status IS
    'requested, running, done, failed (see error), cancelled, interrupted: it was killed, and `walhook replay --resume` '
    'continues it. A killed replay stays running until the next replay of its source begins; if somebody asked for it by '
    'SQL, it then is requested again';
COMMENT ON COLUMN public.rule_cdc_replays.progress IS
    '{"<config>/<stream>": sequence, "<config>/<stream> end": sequence}, or "wal" and LSNs: up to where the events are '
    'stored, which is where a resumed replay continues, and where the replay ends';
COMMENT ON COLUMN public.rule_cdc_replays.first_lsn IS
    'The commit LSN of the first event that was sent; last_lsn: of the last one';

END
$schema$;

REVOKE ALL ON public.rule_cdc_replays FROM PUBLIC;

-- --------------------------------------------------------------------------------------------------------------- anchors

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '011') THEN
    RETURN;
END IF;

CREATE TABLE IF NOT EXISTS walhook.rule_cdc_anchor_settings (
    slot_name TEXT PRIMARY KEY,
    anchor_name TEXT NOT NULL,
    keep INTERVAL NOT NULL,
    keep_bytes BIGINT NOT NULL,
    moved_at TIMESTAMPTZ,
    problem TEXT,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT valid_anchor_keep CHECK (keep > interval '0' AND keep_bytes > 0)
);
COMMENT ON TABLE walhook.rule_cdc_anchor_settings IS
    'How far behind its slot each anchor slot stays. rule_cdc_anchor_create writes it. Never published, and cannot be '
    'linked';
COMMENT ON COLUMN walhook.rule_cdc_anchor_settings.keep IS 'For how long after a commit its WAL is kept';
COMMENT ON COLUMN walhook.rule_cdc_anchor_settings.keep_bytes IS 'The most WAL that is kept, however young it is';
COMMENT ON COLUMN walhook.rule_cdc_anchor_settings.problem IS 'Why walhook could not move the anchor the last time';

-- Only a slot of our own making is ever moved. A row that names another is none of ours.
DELETE FROM walhook.rule_cdc_anchor_settings WHERE anchor_name IS DISTINCT FROM slot_name || '_anchor';
DO $checks$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_constraint
                   WHERE conrelid = 'walhook.rule_cdc_anchor_settings'::regclass AND conname = 'valid_anchor_name') THEN
        ALTER TABLE walhook.rule_cdc_anchor_settings ADD CONSTRAINT valid_anchor_name CHECK (anchor_name = slot_name || '_anchor');
    END IF;
END
$checks$;

CREATE TABLE IF NOT EXISTS walhook.rule_cdc_anchor_places (
    slot_name TEXT NOT NULL REFERENCES walhook.rule_cdc_anchor_settings (slot_name) ON DELETE CASCADE,
    seen_at TIMESTAMPTZ NOT NULL,
    lsn PG_LSN NOT NULL,
    PRIMARY KEY (slot_name, seen_at)
);
COMMENT ON TABLE walhook.rule_cdc_anchor_places IS
    'Confirmed positions of the slot, each with its time, at most about a thousand. walhook moves the anchor to one of '
    'them. Never published, and cannot be linked';

END
$schema$;

CALL walhook.rule_cdc_view('rule_cdc_anchors',
    'Anchor slots. `walhook replay --via wal` can go back to reaches_lsn, or to reaches_time; retained_bytes: the WAL that they keep', $view$
SELECT a.slot_name, a.anchor_name, a.keep, a.keep_bytes,
       s.confirmed_flush_lsn AS reaches_lsn,
       (SELECT min(p.seen_at) FROM walhook.rule_cdc_anchor_places p
        WHERE p.slot_name = a.slot_name AND p.lsn >= s.confirmed_flush_lsn) AS reaches_time,
       pg_wal_lsn_diff(here.lsn, s.restart_lsn)::bigint AS retained_bytes,
       s.wal_status, a.moved_at, a.problem, a.created_at
FROM walhook.rule_cdc_anchor_settings a
CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn) here
LEFT JOIN pg_replication_slots s ON s.slot_name = a.anchor_name$view$);

REVOKE ALL ON walhook.rule_cdc_anchor_settings, walhook.rule_cdc_anchor_places, public.rule_cdc_anchors FROM PUBLIC;

-- ------------------------------------------------------------------------------------------------------------- backfills

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '011') THEN
    RETURN;
END IF;

CREATE TABLE IF NOT EXISTS walhook.rule_cdc_backfill_jobs (
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
-- A first version did not note where it began.
ALTER TABLE walhook.rule_cdc_backfill_jobs ADD COLUMN IF NOT EXISTS begin_lsn PG_LSN;
COMMENT ON TABLE walhook.rule_cdc_backfill_jobs IS
    'Backfills; the view rule_cdc_backfills shows them with their progress. Never published, and cannot be linked';
COMMENT ON COLUMN walhook.rule_cdc_backfill_jobs.key_columns IS 'The primary key, by which the rows are ordered';
COMMENT ON COLUMN walhook.rule_cdc_backfill_jobs.begin_lsn IS 'All rows of the backfill are behind this position in the WAL';
COMMENT ON COLUMN walhook.rule_cdc_backfill_jobs.end_lsn IS
    'All rows of the backfill are before this position in the WAL: once the slot is confirmed up to here, they are '
    'delivered';

CREATE TABLE IF NOT EXISTS walhook.rule_cdc_backfill_ranges (
    backfill_id BIGINT NOT NULL REFERENCES walhook.rule_cdc_backfill_jobs (backfill_id) ON DELETE CASCADE,
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
COMMENT ON TABLE walhook.rule_cdc_backfill_ranges IS
    'Ranges of keys, which several readers send side by side; each reader locks the row of its range. Never published, and '
    'cannot be linked';
COMMENT ON COLUMN walhook.rule_cdc_backfill_ranges.after_key IS
    'Rows up to this key are sent; NULL: none yet, and the range has no lower end';
COMMENT ON COLUMN walhook.rule_cdc_backfill_ranges.upto_key IS 'The last key of the range; NULL: it has no upper end';
COMMENT ON COLUMN walhook.rule_cdc_backfill_ranges.later IS
    'Keys of rows that another transaction had locked; the reader tries them again';

CREATE TABLE IF NOT EXISTS public.rule_cdc_backfill_rows (
    chunk JSONB,
    row_data BYTEA
);
-- Whoever may run rule_cdc_backfill_chunk may write here.
ALTER TABLE public.rule_cdc_backfill_rows
    DROP CONSTRAINT IF EXISTS valid_chunk,
    ADD CONSTRAINT valid_chunk CHECK (
        CASE WHEN chunk IS NULL THEN coalesce(octet_length(row_data) >= 2, false)
             ELSE row_data IS NULL AND jsonb_typeof(chunk) = 'object'
                  AND coalesce(jsonb_typeof(chunk -> 'backfill') = 'number' AND jsonb_typeof(chunk -> 'schema') = 'string'
                               AND jsonb_typeof(chunk -> 'table') = 'string' AND jsonb_typeof(chunk -> 'links') = 'array'
                               AND jsonb_typeof(chunk -> 'columns') = 'array', false) END);
COMMENT ON TABLE public.rule_cdc_backfill_rows IS
    'Always empty: a backfill inserts a chunk here and deletes it in the same transaction, so that its rows are in the WAL '
    'among the live changes. Published by inserts only, and cannot be linked';
COMMENT ON COLUMN public.rule_cdc_backfill_rows.chunk IS
    'The first row of a chunk describes the other rows: {"backfill", "schema", "table", "links", "columns": [{"name", '
    '"type", "key"}]}';
COMMENT ON COLUMN public.rule_cdc_backfill_rows.row_data IS
    'A row in the form of pgoutput: the number of columns, and for each n, or t, its length and its text in UTF-8';

END
$schema$;

CALL walhook.rule_cdc_view('rule_cdc_backfills',
    'Backfills and their progress. rows_waiting: rows that another transaction has locked. events_failed: snapshot events of its '
    'webhooks between begin_lsn and end_lsn that are in rule_nats_dead_letters; final once the slot is confirmed up to end_lsn. '
    'A backfill whose process was killed stays running; the same `walhook backfill` command continues it', $view$
SELECT j.backfill_id, j.table_schema, j.table_name, j.link_ids, j.status, j.rows_estimated,
       coalesce(r.rows_sent, 0)::bigint AS rows_sent,
       coalesce(r.rows_waiting, 0)::bigint AS rows_waiting,
       coalesce(r.chunks, 0)::bigint AS chunks,
       j.end_lsn, j.started_by, j.started_at, coalesce(r.updated_at, j.started_at) AS updated_at, j.finished_at,
       j.begin_lsn,
       (SELECT count(*) FROM public.rule_nats_dead_letters d
        WHERE d.commit_lsn >= j.begin_lsn AND (j.end_lsn IS NULL OR d.commit_lsn < j.end_lsn)
          AND d.headers ->> 'Walhook-Op' = 'snapshot'
          AND d.webhook_id IN (SELECT l.webhook_id FROM public.rule_webhook_links l WHERE l.link_id = ANY (j.link_ids))
       ) AS events_failed
FROM walhook.rule_cdc_backfill_jobs j
LEFT JOIN LATERAL (SELECT sum(g.rows_sent) AS rows_sent, sum(jsonb_array_length(g.later)) AS rows_waiting,
                          sum(g.chunks) AS chunks, max(g.updated_at) AS updated_at
                   FROM walhook.rule_cdc_backfill_ranges g WHERE g.backfill_id = j.backfill_id) r ON true$view$);

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

-- A first version answered names and types only.
DROP FUNCTION IF EXISTS walhook.rule_cdc_backfill_key(REGCLASS);
CREATE OR REPLACE FUNCTION walhook.rule_cdc_backfill_key(
    p_table REGCLASS,
    OUT names TEXT[],
    OUT types TEXT[],
    OUT lt TEXT[],
    OUT le TEXT[],
    OUT eq TEXT[],
    OUT ge TEXT[],
    OUT gt TEXT[]
) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- The type below a domain, whose CHECK is the table owner's code. With type modifier -1, for without one char(n) is char(1).
    SELECT array_agg(a.attname::text ORDER BY k.place), array_agg(format_type(b.base, -1) ORDER BY k.place),
           array_agg(o.named[1] ORDER BY k.place), array_agg(o.named[2] ORDER BY k.place), array_agg(o.named[3] ORDER BY k.place),
           array_agg(o.named[4] ORDER BY k.place), array_agg(o.named[5] ORDER BY k.place)
    FROM pg_index i
    CROSS JOIN unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY AS k (attnum, opclass, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    CROSS JOIN LATERAL (
        WITH RECURSIVE down (oid, below, kind) AS (
            SELECT t.oid, t.typbasetype, t.typtype FROM pg_type t WHERE t.oid = a.atttypid
            UNION ALL
            SELECT t.oid, t.typbasetype, t.typtype FROM down d JOIN pg_type t ON t.oid = d.below
        )
        SELECT d.oid AS base, d.kind FROM down d WHERE d.below = 0
    ) b
    -- The operators by which ORDER BY sorts, wherever an extension has put them. A key WITHOUT OVERLAPS has another kind of index.
    CROSS JOIN LATERAL (
        SELECT c.opcfamily, c.opcintype FROM pg_opclass c JOIN pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
        WHERE c.oid = k.opclass
           OR c.opcdefault AND c.opcintype IN (b.base, CASE b.kind WHEN 'r' THEN 'anyrange'::regtype WHEN 'm' THEN 'anymultirange'::regtype
                                                                   WHEN 'e' THEN 'anyenum'::regtype END)
        ORDER BY c.oid = k.opclass DESC, c.opcintype = b.base DESC
        LIMIT 1
    ) c
    CROSS JOIN LATERAL (
        SELECT array_agg(format('OPERATOR(%I.%s)', n.nspname, r.oprname) ORDER BY s.amopstrategy) AS named
        FROM pg_amop s JOIN pg_operator r ON r.oid = s.amopopr JOIN pg_namespace n ON n.oid = r.oprnamespace
        WHERE s.amopfamily = c.opcfamily AND s.amoplefttype = c.opcintype AND s.amoprighttype = c.opcintype AND s.amoppurpose = 's'
    ) o
    WHERE i.indrelid = p_table AND i.indisprimary AND k.place <= i.indnkeyatts
$$;
COMMENT ON FUNCTION walhook.rule_cdc_backfill_key IS
    'walhook: the primary key of a table, the types of its columns without domains, and the operators that compare them '
    '(lt, le, eq, ge, gt); NULL if it has none';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_backfill_bound(
    p_names TEXT[],
    p_types TEXT[],
    p_key JSONB,
    p_last TEXT[],
    p_at TEXT[],
    p_beyond TEXT[]
) RETURNS TEXT LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- Literals, which are read by their types' input functions; a cast from text may be the table owner's code.
    v_values TEXT[] := ARRAY(SELECT format('CAST(%L AS %s)', p_key ->> (t.n - 1)::int, t.name)
                             FROM unnest(p_types) WITH ORDINALITY AS t (name, n) ORDER BY t.n);
    v_count INTEGER := cardinality(p_names);
    v_condition TEXT;
BEGIN
    IF p_last = array_fill(p_last[1], ARRAY[v_count]) THEN
        RETURN format('(%s) %s (%s)',
                      (SELECT string_agg(format('t.%I', c.name), ', ' ORDER BY c.n) FROM unnest(p_names) WITH ORDINALITY AS c (name, n)),
                      p_last[1], array_to_string(v_values, ', '));
    END IF;
    -- Columns whose operators are not of one schema cannot be compared as a row.
    v_condition := format('t.%I %s %s', p_names[v_count], p_last[v_count], v_values[v_count]);
    FOR i IN REVERSE v_count - 1 .. 1 LOOP
        v_condition := format('t.%1$I %2$s %3$s AND (t.%1$I %4$s %3$s OR (%5$s))', p_names[i], p_at[i], v_values[i], p_beyond[i],
                              v_condition);
    END LOOP;
    RETURN '(' || v_condition || ')';
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_backfill_bound IS 'walhook: the condition that the key of table t is on one side of p_key';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_backfill_foreign_code(p_table REGCLASS)
RETURNS TABLE (problem TEXT, remedy TEXT) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- PostgreSQL simplifies the expressions of a table's indexes and statistics when it plans a query, and runs what is constant
    -- in them, with the rights of whoever queries. What superusers and the caller made themselves may run.
    WITH RECURSIVE relations (oid) AS (
        SELECT p_table::oid UNION SELECT t.relid FROM pg_partition_tree(p_table) t
    ), parts (classid, objid, what) AS (
        SELECT 'pg_class'::regclass, i.indexrelid, format('index %s', i.indexrelid::regclass)
        FROM relations r JOIN pg_index i ON i.indrelid = r.oid
        UNION ALL
        SELECT 'pg_statistic_ext'::regclass, s.oid, format('statistics object %I.%I', s.stxnamespace::regnamespace, s.stxname)
        FROM relations r JOIN pg_statistic_ext s ON s.stxrelid = r.oid
    ), used (what, classid, objid) AS (
        SELECT p.what, d.refclassid, d.refobjid FROM parts p JOIN pg_depend d ON d.classid = p.classid AND d.objid = p.objid
        UNION
        SELECT u.what, 'pg_proc'::regclass, o.oprcode FROM used u JOIN pg_operator o ON u.classid = 'pg_operator'::regclass AND o.oid = u.objid
    ), key_types (what, oid) AS (
        SELECT format('primary key column %I', a.attname), a.atttypid
        FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])
        WHERE i.indrelid = p_table AND i.indisprimary
        UNION
        -- Below a domain its own check is passed by; within another type it is not.
        SELECT k.what, inner_type.oid
        FROM key_types k
        JOIN pg_type t ON t.oid = k.oid
        CROSS JOIN LATERAL (
            SELECT t.typbasetype AS oid WHERE t.typtype = 'd'
            UNION ALL SELECT t.typelem WHERE t.typelem <> 0
            UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
        ) inner_type
    ), owned (what, object, owner, fix) AS (
        SELECT u.what, format('function %s', p.oid::regprocedure), p.proowner, format('ALTER ROUTINE %s', p.oid::regprocedure)
        FROM used u JOIN pg_proc p ON u.classid = 'pg_proc'::regclass AND p.oid = u.objid
        UNION ALL
        SELECT u.what, format('type %s', t.oid::regtype), t.typowner,
               format(CASE t.typtype WHEN 'd' THEN 'ALTER DOMAIN %s' ELSE 'ALTER TYPE %s' END, t.oid::regtype)
        FROM used u JOIN pg_type t ON u.classid = 'pg_type'::regclass AND t.oid = u.objid AND t.typtype <> 'e'
        UNION ALL
        SELECT k.what, format('domain %s', t.oid::regtype), t.typowner, format('ALTER DOMAIN %s', t.oid::regtype)
        FROM key_types k JOIN pg_type t ON t.oid = k.oid AND t.typtype = 'd'
        -- The domains of the column itself are passed by.
        WHERE NOT EXISTS (
            WITH RECURSIVE own (oid) AS (
                SELECT a.atttypid FROM pg_attribute a
                WHERE a.attrelid = p_table AND k.what = format('primary key column %I', a.attname)
                UNION SELECT d.typbasetype FROM own JOIN pg_type d ON d.oid = own.oid AND d.typtype = 'd'
            ) SELECT FROM own WHERE own.oid = t.oid)
    )
    SELECT DISTINCT format('its %s uses %s of role %I', o.what, o.object, r.rolname),
           format('%s OWNER TO %I;', o.fix, (SELECT s.rolname FROM pg_roles s WHERE s.rolsuper ORDER BY s.oid LIMIT 1))
    FROM owned o JOIN pg_roles r ON r.oid = o.owner
    WHERE NOT r.rolsuper AND r.rolname <> current_user
$$;
COMMENT ON FUNCTION walhook.rule_cdc_backfill_foreign_code IS
    'walhook: code of other roles that a query of this table would run with the caller''s rights, and the statement that '
    'makes a superuser its owner';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_backfill_check(p_table REGCLASS)
RETURNS VOID LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_owner RECORD;
    v_code RECORD;
BEGIN
    SELECT r.rolname, r.rolsuper INTO v_owner FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.oid = p_table;
    IF NOT has_table_privilege(p_table, 'SELECT') OR NOT has_any_column_privilege(p_table, 'UPDATE') THEN
        RAISE EXCEPTION 'cannot backfill %: % may not read and lock its rows', walhook.rule_cdc_sayable(p_table::text),
            walhook.rule_cdc_sayable(current_user)
            USING ERRCODE = 'insufficient_privilege',
            HINT = walhook.rule_cdc_sayable(
                format('Let its owner run: GRANT SELECT, UPDATE ON %s TO %I; (SELECT FOR SHARE needs both).', p_table, current_user));
    END IF;
    IF row_security_active(p_table) THEN
        RAISE EXCEPTION 'cannot backfill %: its row-level security would hide rows from %', walhook.rule_cdc_sayable(p_table::text),
            walhook.rule_cdc_sayable(current_user)
            USING ERRCODE = 'insufficient_privilege',
            HINT = walhook.rule_cdc_sayable(
                format('Let a superuser run: ALTER ROLE %I BYPASSRLS; or start the backfill as a role that has it.', current_user));
    END IF;
    -- No index is made between here and the query.
    IF NOT v_owner.rolsuper AND v_owner.rolname <> current_user AND has_table_privilege(p_table, 'UPDATE') THEN
        EXECUTE format('LOCK TABLE %s IN ROW EXCLUSIVE MODE', p_table);
    END IF;
    SELECT * INTO v_code FROM walhook.rule_cdc_backfill_foreign_code(p_table) f ORDER BY f.problem LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'cannot backfill % as %: %, which would run with the rights of %', walhook.rule_cdc_sayable(p_table::text),
            walhook.rule_cdc_sayable(current_user), walhook.rule_cdc_sayable(v_code.problem),
            walhook.rule_cdc_sayable(current_user)
            USING ERRCODE = 'insufficient_privilege',
            HINT = walhook.rule_cdc_sayable(format('Read that code; if it is harmless, let a superuser run: %s', v_code.remedy));
    END IF;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_backfill_check IS
    'walhook: refuses a table if the caller cannot read all its rows, or cannot read them without running code of another '
    'role';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_backfill_routes(p_links INTEGER[])
RETURNS TABLE (problem TEXT, remedy TEXT) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH links AS (
        SELECT l.*, w.webhook_name, w.nats_enabled, w.nats_config_id, c.config_id, c.config_name, c.enabled AS config_enabled,
               coalesce(c.jetstream_enabled, true) AS has_streams
        FROM public.rule_webhook_links l
        JOIN public.rule_webhooks w ON w.webhook_id = l.webhook_id
        LEFT JOIN public.rule_nats_config c ON c.config_id = coalesce(
            w.nats_config_id, (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default'))
        WHERE l.link_id = ANY (p_links)
    )
    SELECT format('webhook %L has no NATS configuration', l.webhook_name), 'SELECT rule_nats_configure(''default'', ''nats://...'');'
    FROM links l WHERE l.config_id IS NULL
    UNION ALL
    SELECT format('NATS config %L of webhook %L is disabled', l.config_name, l.webhook_name),
           format('UPDATE rule_nats_config SET enabled = true WHERE config_id = %s;', l.config_id)
    FROM links l WHERE l.config_enabled IS FALSE
    UNION ALL
    SELECT format('webhook %L is not enabled for NATS', l.webhook_name), format('SELECT rule_webhook_enable_nats(%s);', l.webhook_id)
    FROM links l WHERE l.nats_enabled IS NOT TRUE
    UNION ALL
    SELECT format('no stream of NATS config %L takes %s, the subject of its rows for webhook %L', l.config_name, subject, l.webhook_name),
           coalesce((SELECT format('UPDATE rule_nats_streams SET subjects = array_append(subjects, %L) WHERE stream_id = %s;', subject, n.stream_id)
                     FROM public.rule_nats_streams n
                     WHERE n.enabled IS NOT FALSE AND (n.config_id = l.config_id OR n.config_id IS NULL AND l.config_name = 'default')
                     ORDER BY n.stream_id LIMIT 1),
                    format('SELECT rule_nats_stream_create(%L, ARRAY[%L], %L);', coalesce(s.stream_name, 'BACKFILL'), subject, l.config_name))
    FROM links l
    CROSS JOIN unnest(walhook.rule_cdc_link_subjects(l.webhook_id, l.table_schema, l.table_name, '{snapshot}', l.subject_template)) subject
    LEFT JOIN LATERAL (SELECT o.stream_name || '_SNAPSHOTS' AS stream_name FROM public.rule_nats_streams_of(l.config_id) o LIMIT 1) s ON true
    WHERE l.config_id IS NOT NULL AND l.has_streams AND walhook.rule_nats_stream_for(l.config_id, subject) = '{}'
    UNION ALL
    SELECT format('link %s: %s', l.link_id, p.problem), p.remedy
    FROM links l
    CROSS JOIN LATERAL walhook.rule_cdc_link_problems(to_regclass(format('%I.%I', l.table_schema, l.table_name)), '{insert}', l.subject_template,
                                                     l.columns, l.filter, l.when_changed, l.include_old) p
    WHERE p.is_error AND p.name <> 'columns_missing'
    UNION ALL
    SELECT format('link %s: %s', l.link_id, p.problem), p.remedy
    FROM links l
    CROSS JOIN LATERAL walhook.rule_cdc_message_problems(l.webhook_id, to_regclass(format('%I.%I', l.table_schema, l.table_name)), l.operations,
                                                        l.columns, l.include_old, l.payload_column, l.message_id_column,
                                                        l.headers_columns) p
    WHERE p.is_error
$$;
COMMENT ON FUNCTION walhook.rule_cdc_backfill_routes IS
    'walhook: why rows of a backfill for these links would become dead letters, each with a remedy';

CREATE OR REPLACE FUNCTION public.rule_cdc_backfill_start(
    p_table TEXT,
    p_webhook TEXT DEFAULT NULL,
    p_ranges INTEGER DEFAULT 1
) RETURNS BIGINT LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
-- Keys are written as rule_cdc_backfill_chunk reads them. All rows or none: no policy, and no constraint, of the table's owner is run.
SET DateStyle = 'ISO' SET IntervalStyle = 'iso_8601' SET TimeZone = 'UTC' SET extra_float_digits = 3 SET bytea_output = 'hex'
SET row_security = off SET constraint_exclusion = off
AS $$
DECLARE
    v_table REGCLASS;
    v_schema TEXT;
    v_name TEXT;
    v_links INTEGER[];
    v_webhook INTEGER;
    v_key RECORD;
    v_route RECORD;
    v_from TEXT;
    v_json TEXT;
    v_list TEXT;
    v_plan JSON;
    v_rows BIGINT;
    v_after JSONB;
    v_upto JSONB;
    v_number INTEGER := 0;
    v_id BIGINT;
BEGIN
    BEGIN
        v_table := coalesce(to_regclass(p_table), to_regclass(CASE WHEN strpos(p_table, '.') = 0 THEN 'public.' || p_table END));
    EXCEPTION WHEN invalid_name OR syntax_error OR undefined_table OR invalid_schema_name OR feature_not_supported THEN
        -- What can be no name of a table is none.
        v_table := NULL;
    END;
    IF v_table IS NULL THEN
        RAISE EXCEPTION 'cannot backfill %: there is no such table', coalesce(walhook.rule_cdc_quoted(p_table), 'NULL')
            USING ERRCODE = 'undefined_table', HINT = 'Name it with its schema: shop.orders.';
    END IF;
    IF p_ranges IS NULL OR p_ranges NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'cannot backfill % in % ranges', walhook.rule_cdc_sayable(v_table::text), coalesce(p_ranges::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Choose from 1 to 1000.';
    END IF;
    SELECT n.nspname, c.relname INTO v_schema, v_name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = v_table;
    v_webhook := CASE WHEN p_webhook IS NOT NULL THEN walhook.rule_cdc_webhook_id(p_webhook) END;
    SELECT array_agg(l.link_id ORDER BY l.link_id) INTO v_links
    FROM public.rule_webhook_links l
    JOIN public.rule_webhooks w ON w.webhook_id = l.webhook_id AND w.enabled AND w.publish_mode IN ('nats', 'both')
    WHERE l.table_schema = v_schema AND l.table_name = v_name AND l.enabled
      AND (v_webhook IS NULL OR l.webhook_id = v_webhook);
    IF v_links IS NULL THEN
        RAISE EXCEPTION 'cannot backfill %: no webhook% is linked to it and publishes to NATS', walhook.rule_cdc_sayable(v_table::text),
            walhook.rule_cdc_sayable(CASE WHEN p_webhook IS NOT NULL THEN ' ' || quote_literal(p_webhook) ELSE '' END)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = walhook.rule_cdc_sayable(
                format('SELECT webhook_id, table_schema, table_name FROM rule_webhook_links; has what is linked. Link it by rule_webhook_link_table, and let the '
                          'webhook publish by rule_webhook_enable_nats.'));
    END IF;
    IF NOT EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
                   WHERE r.prrelid = 'public.rule_cdc_backfill_rows'::regclass) THEN
        RAISE EXCEPTION 'cannot backfill %: rule_cdc_backfill_rows is in no publication', walhook.rule_cdc_sayable(v_table::text)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Run `walhook setup`, or SELECT rule_cdc_publication_create(); which completes the publication.';
    END IF;
    v_key := walhook.rule_cdc_backfill_key(v_table);
    IF v_key.names IS NULL THEN
        RAISE EXCEPTION 'cannot backfill %: it has no primary key, and a backfill reads rows in the order of that key',
            walhook.rule_cdc_sayable(v_table::text)
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = walhook.rule_cdc_sayable(format('Give %s a primary key.', v_table));
    END IF;
    SELECT * INTO v_route FROM walhook.rule_cdc_backfill_routes(v_links) r LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'cannot backfill %: its events would become dead letters: %', walhook.rule_cdc_sayable(v_table::text),
            walhook.rule_cdc_sayable(v_route.problem)
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = walhook.rule_cdc_sayable(v_route.remedy);
    END IF;
    PERFORM walhook.rule_cdc_backfill_check(v_table);
    v_from := CASE WHEN (SELECT c.relkind FROM pg_class c WHERE c.oid = v_table) = 'p' THEN '' ELSE 'ONLY ' END || v_table;
    EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM %s', v_from) INTO v_plan;
    v_rows := (v_plan -> 0 -> 'Plan' ->> 'Plan Rows')::numeric::bigint;
    INSERT INTO walhook.rule_cdc_backfill_jobs AS j (table_schema, table_name, link_ids, key_columns, rows_estimated, begin_lsn)
    VALUES (v_schema, v_name, v_links, v_key.names, v_rows, pg_current_wal_insert_lsn())
    RETURNING j.backfill_id INTO v_id;
    SELECT string_agg(format('format(''%%s'', t.%I)', c), ', ' ORDER BY n), string_agg(format('t.%I', c), ', ' ORDER BY n)
    INTO v_json, v_list
    FROM unnest(v_key.names) WITH ORDINALITY AS k (c, n);
    IF p_ranges > 1 THEN
        FOR v_upto IN EXECUTE format(
            'SELECT o.k FROM (SELECT jsonb_build_array(%1$s) AS k, row_number() OVER (ORDER BY %2$s) AS n FROM %3$s t) o
             WHERE o.n %% $1 = 0 ORDER BY o.n LIMIT $2',
            v_json, v_list, v_from)
            USING greatest(v_rows / p_ranges, 1), p_ranges - 1
        LOOP
            v_number := v_number + 1;
            INSERT INTO walhook.rule_cdc_backfill_ranges (backfill_id, range_number, after_key, upto_key)
            VALUES (v_id, v_number, v_after, v_upto);
            v_after := v_upto;
        END LOOP;
    END IF;
    INSERT INTO walhook.rule_cdc_backfill_ranges (backfill_id, range_number, after_key) VALUES (v_id, v_number + 1, v_after);
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_backfill_start IS
    'walhook: begins a backfill, which sends the rows of a linked table as events with op snapshot, to one of its webhooks '
    'or to all; returns the backfill''s number. rule_cdc_backfill_chunk sends the rows; at most p_ranges sessions can do so '
    'side by side';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_backfill_partitions(p_table REGCLASS)
RETURNS JSONB LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_array(n.nspname, c.relname)), '[]')
    FROM public.rule_webhook_links l
    JOIN pg_namespace n ON n.nspname = l.table_schema
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name AND c.relispartition
    WHERE c.oid <> p_table AND EXISTS (SELECT FROM pg_partition_ancestors(c.oid) a (relid) WHERE a.relid = p_table)
$$;
COMMENT ON FUNCTION walhook.rule_cdc_backfill_partitions IS
    'walhook: the partitions of a table, on all levels, that have links of their own: [["schema", "table"]]';

CREATE OR REPLACE FUNCTION public.rule_cdc_backfill_chunk(p_backfill_id BIGINT, p_rows INTEGER DEFAULT 1000)
RETURNS BIGINT LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
-- Values are written as the walsender writes them for the streamer, whose session has the same.
SET DateStyle = 'ISO' SET IntervalStyle = 'iso_8601' SET TimeZone = 'UTC' SET extra_float_digits = 3 SET bytea_output = 'hex'
SET row_security = off SET constraint_exclusion = off
AS $$
DECLARE
    v_job RECORD;
    v_range RECORD;
    v_table REGCLASS;
    v_from TEXT;
    v_key RECORD;
    v_columns JSONB;
    v_list TEXT;
    v_json TEXT;
    v_all TEXT;
    v_values TEXT[];
    v_row TEXT;
    v_condition TEXT;
    v_keys JSONB;
    v_later JSONB;
    v_sent JSONB;
    v_upto JSONB;
    v_is_later BOOLEAN;
    v_partitions JSONB := '[]';
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'cannot take a chunk of backfill % in a transaction that is %', p_backfill_id,
            current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state',
            HINT = 'It has to see each row as it is when it locks it: use READ COMMITTED, and one transaction for each chunk.';
    END IF;
    IF p_rows IS NULL OR p_rows NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'cannot take a chunk of % rows', coalesce(p_rows::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Choose from 1 to 100000.';
    END IF;
    SELECT * INTO v_job FROM walhook.rule_cdc_backfill_jobs j WHERE j.backfill_id = p_backfill_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no backfill %', p_backfill_id
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_cdc_backfills; lists them.';
    ELSIF v_job.status <> 'running' THEN
        RETURN NULL;
    END IF;
    -- Of those that nobody is at: first what has not waited yet.
    SELECT * INTO v_range FROM walhook.rule_cdc_backfill_ranges r
    WHERE r.backfill_id = p_backfill_id AND NOT r.is_done
    ORDER BY r.is_at_end, r.range_number
    LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        IF EXISTS (SELECT FROM walhook.rule_cdc_backfill_ranges r WHERE r.backfill_id = p_backfill_id AND NOT r.is_done) THEN
            RETURN 0;
        END IF;
        UPDATE walhook.rule_cdc_backfill_jobs
        SET status = 'done', finished_at = clock_timestamp(), end_lsn = pg_current_wal_insert_lsn()
        WHERE backfill_id = p_backfill_id AND status = 'running';
        RETURN NULL;
    END IF;

    v_table := to_regclass(format('%I.%I', v_job.table_schema, v_job.table_name));
    v_key := CASE WHEN v_table IS NOT NULL THEN walhook.rule_cdc_backfill_key(v_table) END;
    IF v_key.names IS DISTINCT FROM v_job.key_columns THEN
        RAISE EXCEPTION 'cannot go on with backfill % of %.%: its primary key was (%) and has changed', p_backfill_id,
            walhook.rule_cdc_sayable(v_job.table_schema), walhook.rule_cdc_sayable(v_job.table_name),
                walhook.rule_cdc_sayable(array_to_string(v_job.key_columns, ', '))
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Cancel it by rule_cdc_backfill_cancel and start another.';
    ELSIF NOT EXISTS (SELECT FROM public.rule_webhook_links l WHERE l.link_id = ANY (v_job.link_ids)) THEN
        RAISE EXCEPTION 'cannot go on with backfill % of %: its links are gone', p_backfill_id, walhook.rule_cdc_sayable(v_table::text)
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Cancel it by rule_cdc_backfill_cancel and start another.';
    END IF;
    PERFORM walhook.rule_cdc_backfill_check(v_table);
    -- Rows of children are changes of their own tables, but for partitions.
    v_from := CASE WHEN (SELECT c.relkind FROM pg_class c WHERE c.oid = v_table) = 'p' THEN '' ELSE 'ONLY ' END || v_table;

    -- Each name of the table's own stands behind its alias t, so it can be no other name in the statement. Values by their types' output functions, as pgoutput has them; a cast to text may write them otherwise.
    SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'type', a.atttypid::bigint,
                                        'key', a.attname::text = ANY (coalesce(walhook.rule_cdc_replica_identity(v_table), '{}')))
                     ORDER BY a.attnum),
           array_agg(format('CASE WHEN t.%1$I IS NOT DISTINCT FROM NULL THEN ''\x6e''::bytea '
                            'ELSE ''\x74''::bytea || int4send(octet_length(%2$s)) || %2$s END', a.attname,
                            -- Of bytes in an unknown encoding no UTF-8 can be made; of others all of a text may have none.
                            format(CASE WHEN getdatabaseencoding() IN ('UTF8', 'SQL_ASCII')
                                        THEN 'convert_to(format(''%%s'', t.%1$I), %2$L)'
                                        ELSE 'walhook.rule_cdc_utf8(format(''%%s'', t.%1$I))' END,
                                   a.attname, getdatabaseencoding())) ORDER BY a.attnum)
    INTO v_columns, v_values
    FROM pg_attribute a
    WHERE a.attrelid = v_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '';
    v_row := format('int2send(%s::int2) || %s', cardinality(v_values), array_to_string(v_values, ' || '));
    -- Not those that would be computed here, by an expression of the table's owner.
    SELECT string_agg(format('t.%I', a.attname), ', ' ORDER BY a.attnum) INTO v_all
    FROM pg_attribute a
    WHERE a.attrelid = v_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated IN ('', 's');
    SELECT string_agg(format('t.%I', c), ', ' ORDER BY n), string_agg(format('format(''%%s'', t.%I)', c), ', ' ORDER BY n)
    INTO v_list, v_json
    FROM unnest(v_key.names) WITH ORDINALITY AS k (c, n);
    v_json := format('jsonb_build_array(%s)', v_json);

    -- What was locked waits for the end of the range: by then it is free, most often.
    v_is_later := v_range.is_at_end;
    IF v_is_later THEN
        SELECT format('EXISTS (SELECT FROM (VALUES %s) AS l (%s) WHERE %s)',
                      string_agg((SELECT format('(%s)', string_agg(format('CAST(%L AS %s)', later.k ->> (y.n - 1)::int, y.name), ', ' ORDER BY y.n))
                                  FROM unnest(v_key.types) WITH ORDINALITY AS y (name, n)), ', ' ORDER BY later.n),
                      (SELECT string_agg(format('k%s', c.n), ', ' ORDER BY c.n) FROM unnest(v_key.names) WITH ORDINALITY AS c (name, n)),
                      (SELECT string_agg(format('t.%I %s l.k%s', c.name, v_key.eq[c.n], c.n), ' AND ' ORDER BY c.n)
                       FROM unnest(v_key.names) WITH ORDINALITY AS c (name, n)))
        INTO v_condition
        FROM (SELECT l.k, l.n FROM jsonb_array_elements(v_range.later) WITH ORDINALITY AS l (k, n) ORDER BY l.n LIMIT p_rows) later;
        -- Rows that are gone are waited for no more.
        EXECUTE format('SELECT coalesce(jsonb_agg(%s), ''[]'') FROM %s t WHERE %s', v_json, v_from, v_condition) INTO v_keys;
    ELSE
        v_condition := concat_ws(' AND ', 'true',
            CASE WHEN v_range.after_key IS NOT NULL
                 THEN walhook.rule_cdc_backfill_bound(v_key.names, v_key.types, v_range.after_key, v_key.gt, v_key.ge, v_key.gt) END,
            CASE WHEN v_range.upto_key IS NOT NULL
                 THEN walhook.rule_cdc_backfill_bound(v_key.names, v_key.types, v_range.upto_key, v_key.le, v_key.le, v_key.lt) END);
        EXECUTE format('SELECT coalesce(jsonb_agg(o.k ORDER BY o.n), ''[]'') FROM (
                            SELECT f.k, row_number() OVER () AS n FROM (
                                SELECT %1$s AS k FROM %2$s t WHERE %3$s ORDER BY %4$s LIMIT $1) f) o',
                       v_json, v_from, v_condition, v_list)
        INTO v_keys USING p_rows;
        v_upto := v_keys -> -1;
        IF v_upto IS NOT NULL THEN
            v_condition := concat_ws(' AND ', v_condition,
                walhook.rule_cdc_backfill_bound(v_key.names, v_key.types, v_upto, v_key.le, v_key.le, v_key.lt));
        END IF;
    END IF;

    v_sent := '[]';
    IF jsonb_array_length(v_keys) > 0 THEN
        -- What the masks of their links keep back does not leave as a row of this table either.
        v_partitions := walhook.rule_cdc_backfill_partitions(v_table);
        INSERT INTO public.rule_cdc_backfill_rows (chunk)
        VALUES (jsonb_build_object('backfill', p_backfill_id, 'schema', v_job.table_schema, 'table', v_job.table_name,
                                   'links', to_jsonb(v_job.link_ids), 'columns', v_columns, 'partitions', v_partitions));
        -- A row that is locked cannot change before this commits, so what is sent is its state as of this commit, and each change of
        -- it stands on the right side of it in the WAL. Never waits, so no deadlock takes an application's transaction.
        EXECUTE format('WITH held AS MATERIALIZED (SELECT %6$s FROM %2$s t WHERE %3$s ORDER BY %4$s FOR SHARE OF t SKIP LOCKED),
                             sent AS (INSERT INTO public.rule_cdc_backfill_rows (row_data) SELECT %5$s FROM held t)
                        SELECT coalesce(jsonb_agg(%1$s), ''[]'') FROM held t',
                       v_json, v_from, v_condition, v_list, v_row, v_all)
        INTO v_sent;
        DELETE FROM public.rule_cdc_backfill_rows;
        IF NOT v_partitions @> walhook.rule_cdc_backfill_partitions(v_table) THEN
            RAISE EXCEPTION 'cannot send a chunk of backfill % of %: a linked table was attached to it meanwhile', p_backfill_id,
                walhook.rule_cdc_sayable(v_table::text)
                USING ERRCODE = 'serialization_failure', HINT = 'Take the chunk again.';
        END IF;
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
    UPDATE walhook.rule_cdc_backfill_ranges r
    SET after_key = v_range.after_key, later = v_later, is_at_end = v_range.is_at_end,
        is_done = v_range.is_at_end AND jsonb_array_length(v_later) = 0,
        rows_sent = r.rows_sent + jsonb_array_length(v_sent), chunks = r.chunks + 1, updated_at = clock_timestamp()
    WHERE r.backfill_id = p_backfill_id AND r.range_number = v_range.range_number;
    RETURN jsonb_array_length(v_sent);
END
$$;
COMMENT ON FUNCTION public.rule_cdc_backfill_chunk IS
    'walhook: sends the next rows of a backfill, at most p_rows, and returns how many. 0: other readers or transactions '
    'have locked the rows that are left; NULL: no rows are left. Each call needs a transaction of its own';

CREATE OR REPLACE FUNCTION public.rule_cdc_backfill_cancel(p_backfill_id BIGINT)
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE walhook.rule_cdc_backfill_jobs SET status = 'cancelled', finished_at = clock_timestamp()
    WHERE backfill_id = p_backfill_id AND status = 'running';
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_backfill_cancel IS
    'walhook: ends a backfill early; rows that were sent stay sent. Returns false if it was not running';

CREATE OR REPLACE FUNCTION public.rule_cdc_anchor_create(
    p_keep INTERVAL DEFAULT '24 hours',
    p_keep_bytes BIGINT DEFAULT 4294967296,
    p_slot TEXT DEFAULT 'walhook'
) RETURNS PG_LSN LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_anchor TEXT := p_slot || '_anchor';
    v_slot RECORD;
    v_lsn PG_LSN;
BEGIN
    IF p_keep IS NULL OR p_keep <= interval '0' OR p_keep_bytes IS NULL OR p_keep_bytes <= 0 THEN
        RAISE EXCEPTION 'cannot keep WAL of slot % for % and % bytes', walhook.rule_cdc_quoted(p_slot), coalesce(p_keep::text, 'NULL'),
            coalesce(p_keep_bytes::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give both limits: rule_cdc_anchor_create(''24 hours'', 4294967296).';
    END IF;
    SELECT s.plugin, s.database, s.wal_status INTO v_slot FROM pg_replication_slots s WHERE s.slot_name = p_slot;
    IF NOT FOUND OR v_slot.plugin IS DISTINCT FROM 'pgoutput' OR v_slot.database IS DISTINCT FROM current_database() THEN
        RAISE EXCEPTION 'cannot anchor slot %: this database has no slot of that name with the plugin pgoutput', walhook.rule_cdc_quoted(p_slot)
            USING ERRCODE = 'undefined_object', HINT = 'Run `walhook setup`, or SELECT rule_cdc_publication_create(); and SELECT rule_cdc_slot_create(); first.';
    END IF;
    SELECT s.confirmed_flush_lsn, s.plugin, s.database, s.wal_status INTO v_slot
    FROM pg_replication_slots s WHERE s.slot_name = v_anchor;
    IF FOUND THEN
        IF v_slot.plugin IS DISTINCT FROM 'pgoutput' OR v_slot.database IS DISTINCT FROM current_database() THEN
            RAISE EXCEPTION 'slot % exists and is not walhook''s: plugin %, database %', walhook.rule_cdc_quoted(v_anchor),
                walhook.rule_cdc_sayable(coalesce(v_slot.plugin, 'none')), walhook.rule_cdc_sayable(coalesce(v_slot.database, 'none'))
                USING ERRCODE = 'duplicate_object', HINT = 'Choose another slot, whose anchor has another name.';
        ELSIF NOT EXISTS (SELECT FROM walhook.rule_cdc_anchor_settings a WHERE a.slot_name = p_slot AND a.anchor_name = v_anchor) THEN
            RAISE EXCEPTION 'slot % exists, and walhook has not made it', walhook.rule_cdc_quoted(v_anchor)
                USING ERRCODE = 'duplicate_object',
                HINT = walhook.rule_cdc_sayable(
                    format('If no other application uses it: SELECT pg_drop_replication_slot(%L); then call this again.', v_anchor));
        END IF;
        v_lsn := v_slot.confirmed_flush_lsn;
    ELSE
        IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
            RAISE EXCEPTION 'cannot create slot % in a transaction that has written', walhook.rule_cdc_quoted(v_anchor)
                USING ERRCODE = 'active_sql_transaction', HINT = 'Call it in a transaction of its own.';
        END IF;
        -- A simple expression, as in rule_cdc_slot_create.
        v_lsn := (pg_copy_logical_replication_slot(p_slot, v_anchor)).lsn;
        SELECT s.confirmed_flush_lsn INTO v_lsn FROM pg_replication_slots s WHERE s.slot_name = v_anchor;
    END IF;
    INSERT INTO walhook.rule_cdc_anchor_settings (slot_name, anchor_name, keep, keep_bytes)
    VALUES (p_slot, v_anchor, p_keep, p_keep_bytes)
    ON CONFLICT (slot_name) DO UPDATE SET keep = excluded.keep, keep_bytes = excluded.keep_bytes;
    INSERT INTO walhook.rule_cdc_anchor_places (slot_name, seen_at, lsn)
    SELECT p_slot, clock_timestamp(), v_lsn
    WHERE NOT EXISTS (SELECT FROM walhook.rule_cdc_anchor_places p WHERE p.slot_name = p_slot);
    RETURN v_lsn;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_anchor_create IS
    'walhook: creates a slot that stays behind p_slot and keeps WAL for replays: of commits within p_keep, but at most '
    'p_keep_bytes. The running walhook moves it. A second call changes the limits. Returns the position that it reaches '
    'back to. Runs with its owner''s rights, who needs REPLICATION, in a transaction that has not written anything';

CREATE OR REPLACE FUNCTION public.rule_cdc_anchor_drop(p_slot TEXT DEFAULT 'walhook')
RETURNS BOOLEAN LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_anchor TEXT;
BEGIN
    SELECT a.anchor_name INTO v_anchor FROM walhook.rule_cdc_anchor_settings a WHERE a.slot_name = p_slot;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_drop_replication_slot(s.slot_name) FROM pg_replication_slots s
    WHERE s.slot_name = v_anchor AND v_anchor = p_slot || '_anchor' AND s.plugin = 'pgoutput' AND s.database = current_database();
    DELETE FROM walhook.rule_cdc_anchor_settings WHERE slot_name = p_slot;
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_anchor_drop IS
    'walhook: drops the anchor of a slot, so that PostgreSQL can remove its WAL; returns false if there is none. Runs with '
    'its owner''s rights';

CREATE OR REPLACE FUNCTION public.rule_cdc_anchor_move(p_slot TEXT DEFAULT 'walhook')
RETURNS PG_LSN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_anchor RECORD;
    v_confirmed PG_LSN;
    v_last RECORD;
    v_bytes NUMERIC;
    v_target PG_LSN;
    v_reached PG_LSN;
BEGIN
    SELECT a.anchor_name, a.keep, a.keep_bytes, a.problem, s.confirmed_flush_lsn, s.wal_status, s.active, s.plugin, s.database INTO v_anchor
    FROM walhook.rule_cdc_anchor_settings a LEFT JOIN pg_replication_slots s ON s.slot_name = a.anchor_name
    WHERE a.slot_name = p_slot;
    IF NOT FOUND OR v_anchor.active OR pg_is_in_recovery() THEN
        RETURN NULL;
    ELSIF v_anchor.wal_status IS NULL OR v_anchor.wal_status = 'lost' THEN
        RAISE EXCEPTION 'cannot move anchor slot %: %', walhook.rule_cdc_quoted(v_anchor.anchor_name),
            CASE WHEN v_anchor.wal_status = 'lost' THEN 'PostgreSQL has removed WAL that it needed' ELSE 'it is gone' END
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'SELECT rule_cdc_anchor_drop(); then SELECT rule_cdc_anchor_create(); keeps the WAL from then on.';
    END IF;
    IF v_anchor.anchor_name IS DISTINCT FROM p_slot || '_anchor' OR v_anchor.plugin IS DISTINCT FROM 'pgoutput'
       OR v_anchor.database IS DISTINCT FROM current_database() THEN
        RAISE EXCEPTION 'cannot move anchor slot %: walhook did not create it (plugin %, database %)',
            walhook.rule_cdc_quoted(v_anchor.anchor_name),
            walhook.rule_cdc_sayable(coalesce(v_anchor.plugin, 'none')), walhook.rule_cdc_sayable(coalesce(v_anchor.database, 'none'))
            USING ERRCODE = 'wrong_object_type',
            HINT = walhook.rule_cdc_sayable(
                format('DELETE FROM walhook.rule_cdc_anchor_settings WHERE slot_name = %L; then SELECT rule_cdc_anchor_create() makes one.', p_slot));
    END IF;
    SELECT s.confirmed_flush_lsn INTO v_confirmed FROM pg_replication_slots s WHERE s.slot_name = p_slot;
    -- Well below max_slot_wal_keep_size, beyond which PostgreSQL would take the slot's WAL away.
    SELECT least(v_anchor.keep_bytes, CASE WHEN g.setting::bigint >= 0 THEN g.setting::bigint * 1048576 * 0.7 END) INTO v_bytes
    FROM pg_settings g WHERE g.name = 'max_slot_wal_keep_size';
    -- A place a minute at most, for a long time fewer, for much WAL more: it goes by them in small steps.
    SELECT p.seen_at, p.lsn INTO v_last FROM walhook.rule_cdc_anchor_places p
    WHERE p.slot_name = p_slot ORDER BY p.seen_at DESC LIMIT 1;
    IF v_confirmed IS NOT NULL AND (v_last IS NULL OR v_confirmed > v_last.lsn AND (
            v_last.seen_at < clock_timestamp() - greatest(interval '1 minute', v_anchor.keep / 1000)
            OR pg_wal_lsn_diff(v_confirmed, v_last.lsn) > v_bytes / 50)) THEN
        INSERT INTO walhook.rule_cdc_anchor_places (slot_name, seen_at, lsn) VALUES (p_slot, clock_timestamp(), v_confirmed);
    END IF;
    -- The last place that is old enough, or the first one that is not too far behind: time is kept whole, WAL never exceeded.
    SELECT greatest(max(p.lsn) FILTER (WHERE p.seen_at < clock_timestamp() - v_anchor.keep),
                    min(p.lsn) FILTER (WHERE pg_wal_lsn_diff(pg_current_wal_lsn(), p.lsn) <= v_bytes)) INTO v_target
    FROM walhook.rule_cdc_anchor_places p WHERE p.slot_name = p_slot AND p.lsn <= v_confirmed;
    IF v_target > v_anchor.confirmed_flush_lsn THEN
        BEGIN
            v_reached := (pg_replication_slot_advance(v_anchor.anchor_name, v_target)).end_lsn; -- a simple expression, as in rule_cdc_slot_create
            UPDATE walhook.rule_cdc_anchor_settings SET moved_at = clock_timestamp() WHERE slot_name = p_slot;
        -- Only what comes before the session has the slot may be caught: what comes behind would leave it with it.
        EXCEPTION WHEN object_in_use THEN
            RETURN v_anchor.confirmed_flush_lsn; -- a replay is copying it: the next time
        END;
    END IF;
    DELETE FROM walhook.rule_cdc_anchor_places p
    USING pg_replication_slots s
    WHERE s.slot_name = v_anchor.anchor_name AND p.slot_name = p_slot AND p.lsn < s.confirmed_flush_lsn;
    IF v_anchor.problem IS NOT NULL THEN
        UPDATE walhook.rule_cdc_anchor_settings SET problem = NULL WHERE slot_name = p_slot;
    END IF;
    RETURN greatest(v_target, v_anchor.confirmed_flush_lsn);
END
$$;
COMMENT ON FUNCTION public.rule_cdc_anchor_move IS
    'walhook: records the position of p_slot, and moves its anchor as far as rule_cdc_anchor_create allows; the running '
    'walhook calls it every few seconds. Returns the anchor''s position; NULL if there is none';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_replay_point(p_name TEXT, p_point TEXT)
RETURNS TEXT LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_end PG_LSN := CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END;
    v_time TIMESTAMPTZ;
BEGIN
    IF p_point ~ '^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$' THEN
        IF p_point::pg_lsn > v_end THEN
            RAISE EXCEPTION '% %: it is in the future; the WAL ends at %', p_name, walhook.rule_cdc_quoted(p_point), v_end
                USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Check whether it is an LSN of another server, or of one that was restored to an earlier point.';
        END IF;
        RETURN p_point;
    END IF;
    v_time := CASE WHEN p_point ~ '^\d+[smhd]$' THEN now() - replace(p_point, 'm', ' minutes')::interval
                   ELSE p_point::timestamptz END;
    IF v_time > clock_timestamp() THEN
        RAISE EXCEPTION '% %: it is in the future; the time is %', p_name, walhook.rule_cdc_quoted(p_point), clock_timestamp()
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN to_char(v_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
EXCEPTION WHEN invalid_datetime_format OR datetime_field_overflow THEN
    RAISE EXCEPTION '% %: it is neither an LSN nor a time', p_name, walhook.rule_cdc_quoted(p_point)
        USING ERRCODE = 'invalid_parameter_value',
        HINT = 'Give an LSN (0/16B3748), a time (2026-11-25 10:00+00) or an age (90s, 15m, 2h, 7d).';
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_replay_point IS
    'walhook: an LSN unchanged; a time or an age as a time; refuses what is in the future';

-- An earlier version had no p_rules; beside it calls would be ambiguous.
DROP FUNCTION IF EXISTS public.rule_cdc_replay(TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, INTEGER, TEXT);
CREATE OR REPLACE FUNCTION public.rule_cdc_replay(
    p_from TEXT,
    p_to TEXT DEFAULT NULL,
    p_webhook TEXT DEFAULT NULL,
    p_via TEXT DEFAULT NULL,
    p_table TEXT DEFAULT NULL,
    p_subject_prefix TEXT DEFAULT NULL,
    p_create_stream TEXT DEFAULT NULL,
    p_rate INTEGER DEFAULT NULL,
    p_source TEXT DEFAULT NULL,
    p_rules TEXT DEFAULT 'commit'
) RETURNS BIGINT LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_from TEXT;
    v_to TEXT;
    v_webhook TEXT;
    v_source TEXT := p_source;
    v_sources TEXT[];
    v_problem TEXT;
    v_id BIGINT;
BEGIN
    IF p_from IS NULL THEN
        RAISE EXCEPTION 'cannot replay: p_from is NULL' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give an LSN (0/16B3748), a time (2026-11-25 10:00+00) or an age (90s, 15m, 2h, 7d).';
    END IF;
    v_from := walhook.rule_cdc_replay_point('p_from', p_from);
    v_to := walhook.rule_cdc_replay_point('p_to', p_to);
    IF strpos(v_from, '/') > 0 AND strpos(v_to, '/') > 0 AND v_to::pg_lsn < v_from::pg_lsn
       OR strpos(v_from, '/') = 0 AND strpos(v_to, '/') = 0 AND v_to::timestamptz < v_from::timestamptz THEN
        RAISE EXCEPTION 'cannot replay: p_to % lies before p_from %', v_to, v_from USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_via NOT IN ('stream', 'wal', 'table') THEN
        RAISE EXCEPTION 'cannot replay via %', walhook.rule_cdc_quoted(p_via)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'p_via is stream, wal or table; NULL: the first of these that still has the events.';
    END IF;
    IF p_rules IS NULL OR p_rules NOT IN ('commit', 'now') THEN
        RAISE EXCEPTION 'cannot replay by the rules of %', coalesce(walhook.rule_cdc_quoted(p_rules), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'p_rules is commit (the rules in force at each commit) or now (the rules of today).';
    END IF;
    IF p_rate <= 0 THEN
        RAISE EXCEPTION 'cannot replay % events a second', p_rate USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_subject_prefix IS NOT NULL THEN
        v_problem := public.rule_nats_subject_check(p_subject_prefix || '.x');
        IF v_problem IS NOT NULL THEN
            RAISE EXCEPTION 'cannot replay below subject %: %', walhook.rule_cdc_quoted(p_subject_prefix), walhook.rule_cdc_sayable(v_problem)
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END IF;
    IF p_webhook IS NOT NULL THEN
        SELECT w.webhook_name INTO v_webhook FROM public.rule_webhooks w WHERE w.webhook_name = p_webhook;
        -- A deleted one's events are there still, and only its number is known.
        v_webhook := coalesce(v_webhook, substring(p_webhook FROM '^\d{1,9}$'));
        IF v_webhook IS NULL THEN
            RAISE EXCEPTION 'cannot replay for webhook %: there is none of that name', walhook.rule_cdc_quoted(p_webhook)
                USING ERRCODE = 'no_data_found', HINT = 'If the webhook was deleted, give its id.';
        END IF;
    END IF;
    IF v_source IS NULL THEN
        SELECT array_agg(s.source ORDER BY s.source) INTO v_sources FROM public.rule_cdc_status s;
        IF cardinality(v_sources) > 1 THEN
            RAISE EXCEPTION 'cannot replay: there are several sources: %', walhook.rule_cdc_sayable(array_to_string(v_sources, ', '))
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Name one by p_source.';
        END IF;
        v_source := coalesce(v_sources[1], 'walhook');
    END IF;
    IF NOT EXISTS (SELECT FROM public.rule_cdc_status s WHERE s.source = v_source
                   AND s.heartbeat_at > clock_timestamp() - make_interval(secs => 3 * s.heartbeat_seconds)) THEN
        RAISE NOTICE 'no walhook of source % is running: the replay waits for one', walhook.rule_cdc_quoted(v_source);
    END IF;
    INSERT INTO public.rule_cdc_replays
        (source, via, from_point, to_point, webhooks, tables, subject_prefix, create_stream, rate, status, is_requested, rules)
    VALUES (v_source, p_via, v_from, v_to, CASE WHEN v_webhook IS NOT NULL THEN ARRAY[v_webhook] END,
            CASE WHEN p_table IS NOT NULL THEN ARRAY[p_table] END, p_subject_prefix, p_create_stream, p_rate, 'requested', true, p_rules)
    RETURNING replay_id INTO v_id;
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_replay IS
    'walhook: asks the running walhook to publish the events from p_from to p_to again: LSNs, times or ages (2h). p_via: '
    'stream, wal or table; NULL: the first of these that still has the events. p_rules, for a replay from the WAL: commit, '
    'the rules in force at each commit, or now, the rules of today. Returns the number of its row in rule_cdc_replays; '
    'walhook carries out one replay after the other';

CREATE OR REPLACE FUNCTION public.rule_cdc_replay_cancel(p_replay_id BIGINT)
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE public.rule_cdc_replays SET status = 'cancelled', finished_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE replay_id = p_replay_id AND status IN ('requested', 'running', 'interrupted');
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_replay_cancel IS
    'walhook: ends a replay, or removes one that waits; events that it has published stay. Returns false if there was none '
    'to end';

CALL walhook.rule_cdc_functions_close();

REVOKE ALL ON walhook.rule_cdc_backfill_jobs, walhook.rule_cdc_backfill_ranges, public.rule_cdc_backfill_rows, public.rule_cdc_backfills
FROM PUBLIC;

-- ---------------------------------------------------------------------------------------------------------------- rights

-- What walhook 0.1 granted and functions do now.
DO $taken$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'walhook_operator') THEN
        REVOKE INSERT, UPDATE, DELETE ON walhook.rule_cdc_anchor_settings, walhook.rule_cdc_anchor_places FROM walhook_operator;
        REVOKE EXECUTE ON FUNCTION public.rule_cdc_anchor_move(TEXT) FROM walhook_operator;
    END IF;
END
$taken$;

DO $grants$
DECLARE
    v_grant RECORD;
BEGIN
    FOR v_grant IN
        -- For replays that SQL has asked for; of the tables themselves its owner grants SELECT, UPDATE.
        VALUES ('walhook_streamer', 'SELECT, INSERT, UPDATE', ARRAY['rule_cdc_replays', 'rule_cdc_backfill_jobs',
                    'rule_cdc_backfill_ranges']),
               ('walhook_streamer', 'SELECT, INSERT, DELETE', ARRAY['rule_cdc_backfill_rows', 'rule_cdc_anchor_places']),
               ('walhook_streamer', 'SELECT, UPDATE', ARRAY['rule_cdc_anchor_settings']),
               ('walhook_streamer', 'SELECT', ARRAY['rule_cdc_backfills', 'rule_cdc_anchors']),
               ('walhook_operator', 'SELECT', ARRAY['rule_cdc_anchors']),
               ('walhook_operator', 'SELECT', ARRAY['rule_cdc_anchor_settings', 'rule_cdc_anchor_places']),
               ('walhook_operator', 'SELECT, INSERT, UPDATE', ARRAY['rule_cdc_replays', 'rule_cdc_backfill_jobs',
                    'rule_cdc_backfill_ranges']),
               ('walhook_operator', 'SELECT, INSERT, DELETE', ARRAY['rule_cdc_backfill_rows']),
               ('walhook_operator', 'SELECT', ARRAY['rule_cdc_backfills'])
    LOOP
        CALL walhook.rule_cdc_grant(v_grant.column1, v_grant.column2, v_grant.column3);
    END LOOP;
END
$grants$;

CALL walhook.rule_cdc_grant_functions('walhook_operator', '^rule_cdc_(backfill|replay|anchor(?!_move$))');
CALL walhook.rule_cdc_grant_functions('walhook_streamer', '^rule_cdc_(backfill|anchor_move|webhook_id$)');

-- Only a slot of our own making is ever moved. A row that names another is none of ours.
DELETE FROM walhook.rule_cdc_anchor_settings WHERE anchor_name IS DISTINCT FROM slot_name || '_anchor';

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('011', 'walhook: replays and backfills')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
