-- 027: shards: several processes publish the events of one database, each from a slot and publications of its own.
--
-- Comes in: 005, 007, 008, 013, 014. Goes out: the columns by which an event belongs to one shard, and the functions that make shards, move
-- tables and webhooks between them and remove them.
-- Always holds: by one version of the rules an event belongs to exactly one shard. A table's transactions
-- belong, whole, to the shard before the move or to the one behind it: no transaction that has written into the table is open while it
-- moves. Running this file twice changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '027') THEN
    RETURN;
END IF;

-- In the order in which a call of an application reads them; in the other order each could wait for the other.
LOCK TABLE public.rule_webhooks, public.rule_webhook_links IN ACCESS EXCLUSIVE MODE;

CREATE TABLE IF NOT EXISTS walhook.rule_cdc_shard_names (
    shard TEXT PRIMARY KEY,
    slot_name TEXT NOT NULL UNIQUE,
    publication TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL UNIQUE,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT valid_shard CHECK (shard ~ '^[a-z0-9_]{1,20}$')
);
COMMENT ON TABLE walhook.rule_cdc_shard_names IS
    'The shards of this database; main is walhook run without --shard. Written by rule_cdc_shard_create. Never published, never linkable';

ALTER TABLE public.rule_webhooks ADD COLUMN IF NOT EXISTS shard TEXT;
COMMENT ON COLUMN public.rule_webhooks.shard IS
    'The shard whose process publishes the webhook''s events; NULL: main. rule_cdc_shard_move sets it';
ALTER TABLE public.rule_webhook_links ADD COLUMN IF NOT EXISTS shard TEXT;
COMMENT ON COLUMN public.rule_webhook_links.shard IS
    'The shard whose process publishes the events of this link; NULL: the shard of the webhook. rule_cdc_shard_move sets it';

END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

CREATE OR REPLACE FUNCTION walhook.rule_cdc_shard_of(p_publication TEXT)
RETURNS TEXT LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT n.shard FROM walhook.rule_cdc_shard_names n WHERE n.publication = p_publication), 'main')
$$;
COMMENT ON FUNCTION walhook.rule_cdc_shard_of IS 'walhook: the shard that has these publications; main where none has them';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_shard_publications(p_publication TEXT)
RETURNS JSONB LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- Publications that no shard has are those of a second source, which publishes all links.
    SELECT CASE WHEN count(*) FILTER (WHERE n.publication = p_publication) = 0 THEN jsonb_build_object(p_publication, 'main')
                ELSE jsonb_object_agg(n.publication, n.shard) END
    FROM walhook.rule_cdc_shard_names n
$$;
COMMENT ON FUNCTION walhook.rule_cdc_shard_publications IS
    'walhook: the publications among which tables move together with these ones, each with its shard';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_shard_known(p_shard TEXT)
RETURNS VOID LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM walhook.rule_cdc_shard_names n WHERE n.shard = p_shard) THEN
        RAISE EXCEPTION 'there is no shard %', coalesce(walhook.rule_cdc_quoted(p_shard), 'NULL')
            USING ERRCODE = 'undefined_object',
            HINT = 'SELECT shard FROM rule_cdc_shards; lists the shards. `walhook setup --shard NAME`, or SELECT rule_cdc_shard_create(''NAME'');, makes one.';
    END IF;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_shard_known IS 'walhook: raises an error where there is no such shard';

CREATE OR REPLACE FUNCTION public.rule_cdc_shard_create(
    p_shard TEXT,
    p_slot TEXT DEFAULT 'walhook',
    p_publication TEXT DEFAULT 'walhook',
    p_source TEXT DEFAULT NULL
) RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_source CONSTANT TEXT := coalesce(p_source, p_slot);
    v_slot CONSTANT TEXT := p_slot || '_' || p_shard;
    v_publication CONSTANT TEXT := p_publication || '_' || p_shard;
    v_problem TEXT;
    v_row RECORD;
    v_done BOOLEAN;
BEGIN
    IF p_shard IS NULL OR p_shard !~ '^[a-z0-9_]{1,20}$' OR p_shard = 'main' THEN
        RAISE EXCEPTION 'a shard cannot have the name %', coalesce(walhook.rule_cdc_quoted(p_shard), 'NULL')
            USING ERRCODE = 'invalid_name',
            HINT = 'A shard''s name has 1 to 20 lower-case letters, digits and underscores. main is the shard of walhook run without --shard.';
    END IF;
    IF p_slot IS NULL OR p_publication IS NULL OR v_slot !~ '^[a-z0-9_]{1,63}$' OR octet_length(v_publication) > 54
       OR octet_length(v_source || '_' || p_shard) > 64 THEN
        RAISE EXCEPTION 'shard % cannot have its slot, publications and source: %', walhook.rule_cdc_quoted(p_shard),
            walhook.rule_cdc_sayable(format('%s, %s_inserts, %s_%s', coalesce(v_slot, 'NULL'), coalesce(v_publication, 'NULL'),
                                           coalesce(v_source, 'NULL'), p_shard))
            USING ERRCODE = 'invalid_name',
            HINT = 'A slot''s name has at most 63 lower-case letters, digits and underscores, publications 54 bytes and a source 64 bytes. Give the shard a shorter name.';
    END IF;
    SELECT * INTO v_row FROM walhook.rule_cdc_shard_names n WHERE n.shard = p_shard;
    IF FOUND AND (v_row.slot_name, v_row.publication) IS DISTINCT FROM (v_slot, v_publication) THEN
        RAISE EXCEPTION 'shard % has the slot % and the publications % already', walhook.rule_cdc_quoted(p_shard),
            walhook.rule_cdc_quoted(v_row.slot_name), walhook.rule_cdc_quoted(v_row.publication)
            USING ERRCODE = 'duplicate_object',
            HINT = walhook.rule_cdc_sayable(format('Choose another name, or remove it first: SELECT rule_cdc_shard_drop(%L);', p_shard));
    END IF;
    v_done := NOT FOUND;
    IF current_setting('wal_level') <> 'logical' THEN
        RAISE EXCEPTION 'cannot make shard %: wal_level is %, not logical', walhook.rule_cdc_quoted(p_shard), current_setting('wal_level')
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'ALTER SYSTEM SET wal_level = logical; then restart PostgreSQL.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.slot_name = v_slot)
       AND (SELECT count(*) FROM pg_replication_slots) >= current_setting('max_replication_slots')::integer THEN
        RAISE EXCEPTION 'cannot make shard %: all % replication slots are in use (max_replication_slots)', walhook.rule_cdc_quoted(p_shard),
            current_setting('max_replication_slots')
            USING ERRCODE = 'configuration_limit_exceeded',
            HINT = walhook.rule_cdc_sayable(format('ALTER SYSTEM SET max_replication_slots = %s; then restart PostgreSQL. Or drop a slot that nobody uses: '
                          'SELECT slot_name FROM pg_replication_slots WHERE NOT active;',
                          2 * current_setting('max_replication_slots')::integer + 10));
    END IF;
    v_problem := walhook.rule_cdc_publication_problem(p_publication);
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'cannot make shard %: %', walhook.rule_cdc_quoted(p_shard), walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = walhook.rule_cdc_sayable(format('SELECT rule_cdc_publication_create(%L); or run `walhook setup` without --shard first.', p_publication));
    END IF;
    INSERT INTO walhook.rule_cdc_shard_names AS n (shard, slot_name, publication, source)
    VALUES ('main', p_slot, p_publication, v_source), (p_shard, v_slot, v_publication, v_source || '_' || p_shard)
    ON CONFLICT (shard) DO UPDATE SET slot_name = excluded.slot_name, publication = excluded.publication, source = excluded.source
    WHERE (n.slot_name, n.publication, n.source) IS DISTINCT FROM (excluded.slot_name, excluded.publication, excluded.source);
    RETURN public.rule_cdc_publication_create(v_publication) OR v_done;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_shard_create IS
    'walhook: makes a shard and its publications; p_slot, p_publication, p_source: the names of the main shard, behind which its own have '
    '_<shard>. Returns true if it changed something. Then rule_cdc_slot_create makes the slot; `walhook setup --shard` does both';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_shard_movable(p_from TEXT, p_to TEXT)
RETURNS VOID LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_row RECORD;
    v_run TEXT;
BEGIN
    FOR v_row IN
        SELECT n.*, EXISTS (SELECT FROM pg_replication_slots s WHERE s.slot_name = n.slot_name AND s.database = current_database()) AS has_slot,
               EXISTS (SELECT FROM walhook.rule_cdc_rule_sources r WHERE r.source = n.source AND r.system_identifier <> 'forgotten') AS has_run
        FROM walhook.rule_cdc_shard_names n WHERE n.shard IN (p_from, p_to) ORDER BY n.shard = p_to
    LOOP
        v_run := 'walhook run' || CASE WHEN v_row.shard = 'main' THEN '' ELSE ' --shard ' || v_row.shard END;
        -- Without its slot what comes from here on is in no WAL that the shard reads.
        IF v_row.shard = p_to AND NOT v_row.has_slot THEN
            RAISE EXCEPTION 'cannot move events to shard %: its slot % does not exist', walhook.rule_cdc_quoted(p_to),
                walhook.rule_cdc_quoted(v_row.slot_name)
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = walhook.rule_cdc_sayable(format('In a transaction of its own: SELECT rule_cdc_slot_create(%L, true, %L); then start `%s`.',
                                                       v_row.slot_name, v_row.publication, v_run));
        END IF;
        -- A source begins with the rules as they are at its first start. So it must have begun, or it would not know whose the events
        -- before this move are.
        IF NOT v_row.has_run THEN
            RAISE EXCEPTION 'cannot move events from shard % to shard %: `%` has not run on this database yet',
                walhook.rule_cdc_quoted(p_from), walhook.rule_cdc_quoted(p_to), v_run
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = walhook.rule_cdc_sayable(format('Start `%s`, and call this again. It may go on running.', v_run));
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_shard_movable IS
    'walhook: raises an error where events cannot move from one shard to another, which has no slot, or where one of them has not run yet';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_shard_lock(p_table REGCLASS)
RETURNS VOID LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('LOCK TABLE %s %s IN SHARE ROW EXCLUSIVE MODE',
                   CASE WHEN (SELECT c.relkind FROM pg_class c WHERE c.oid = p_table) = 'p' THEN '' ELSE 'ONLY' END, p_table);
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_shard_lock IS
    'walhook: waits for the sessions that write into a table, and lets them wait: each of its transactions is decoded whole by the '
    'publications from before or from after this commit';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_shard_place(p_table REGCLASS)
RETURNS VOID LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM walhook.rule_cdc_shard_lock(p_table);
    PERFORM public.rule_cdc_publication_place(p_table, (SELECT n.publication FROM walhook.rule_cdc_shard_names n WHERE n.shard = 'main'), true);
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_shard_place IS
    'walhook: for the triggers on rule_webhooks and rule_webhook_links: events of a table belong to another shard from this commit on';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_shard_follow_webhook()
RETURNS TRIGGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_from CONSTANT TEXT := CASE WHEN TG_OP = 'UPDATE' THEN coalesce(OLD.shard, 'main') ELSE 'main' END;
    v_to CONSTANT TEXT := coalesce(NEW.shard, 'main');
    v_table REGCLASS;
BEGIN
    IF v_from = v_to THEN
        RETURN NULL;
    END IF;
    PERFORM walhook.rule_cdc_shard_known(v_to);
    PERFORM walhook.rule_cdc_shard_movable(v_from, v_to);
    FOR v_table IN
        SELECT DISTINCT c.oid::regclass FROM public.rule_webhook_links l
        JOIN pg_namespace n ON n.nspname = l.table_schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name
        WHERE l.webhook_id = NEW.webhook_id AND l.shard IS NULL ORDER BY 1
    LOOP
        PERFORM walhook.rule_cdc_shard_place(v_table);
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_shard_follow_webhook IS
    'walhook: a webhook that moves to another shard takes its tables with it, but for links with a shard of their own';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_shard_follow_link()
RETURNS TRIGGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_from TEXT;
    v_to TEXT;
    v_table CONSTANT REGCLASS := to_regclass(format('%I.%I', NEW.table_schema, NEW.table_name));
BEGIN
    SELECT coalesce(NEW.shard, w.shard, 'main') INTO v_to FROM public.rule_webhooks w WHERE w.webhook_id = NEW.webhook_id;
    IF NEW.shard IS NOT NULL THEN
        PERFORM walhook.rule_cdc_shard_known(NEW.shard);
    END IF;
    IF TG_OP = 'UPDATE' THEN
        SELECT coalesce(OLD.shard, w.shard, 'main') INTO v_from FROM public.rule_webhooks w WHERE w.webhook_id = OLD.webhook_id;
        IF v_from <> v_to THEN
            PERFORM walhook.rule_cdc_shard_movable(v_from, v_to);
            IF v_table IS NOT NULL THEN
                PERFORM walhook.rule_cdc_shard_place(v_table);
            END IF;
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_shard_follow_link IS 'walhook: the table of a link that moves to another shard moves to its publications';

CREATE OR REPLACE FUNCTION public.rule_cdc_shard_move(
    p_shard TEXT,
    p_tables REGCLASS[] DEFAULT '{}',
    p_webhooks TEXT[] DEFAULT '{}',
    p_lock_timeout INTERVAL DEFAULT '2 seconds'
) RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_before CONSTANT TEXT := current_setting('lock_timeout');
    v_webhooks INTEGER[];
    v_table REGCLASS;
    v_moved INTEGER;
    v_links INTEGER;
BEGIN
    PERFORM walhook.rule_cdc_shard_known(p_shard);
    IF coalesce(cardinality(p_tables), 0) + coalesce(cardinality(p_webhooks), 0) = 0
       OR array_position(p_tables, NULL) IS NOT NULL OR array_position(p_webhooks, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'cannot move to shard %: p_tables and p_webhooks name nothing, or have a NULL in them', walhook.rule_cdc_quoted(p_shard)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = walhook.rule_cdc_sayable(format('SELECT rule_cdc_shard_move(%L, p_tables => ARRAY[''orders'']::regclass[], p_webhooks => ARRAY[''name'']);', p_shard));
    END IF;
    IF coalesce(p_lock_timeout, '-1 s') <= interval '0' THEN
        RAISE EXCEPTION 'cannot wait for a lock for %: p_lock_timeout must be more than zero', coalesce(p_lock_timeout::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave p_lock_timeout out, or give how long writers may be kept waiting.';
    END IF;
    v_webhooks := ARRAY(SELECT walhook.rule_cdc_webhook_id(w.name) FROM unnest(p_webhooks) w (name));
    FOREACH v_table IN ARRAY coalesce(p_tables, '{}') LOOP
        IF NOT EXISTS (SELECT FROM public.rule_webhook_links l
                       JOIN pg_namespace n ON n.nspname = l.table_schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name
                       WHERE c.oid = v_table) THEN
            RAISE EXCEPTION 'cannot move % to shard %: no webhook is linked to it', walhook.rule_cdc_sayable(v_table::text),
                walhook.rule_cdc_quoted(p_shard)
                USING ERRCODE = 'undefined_object',
                HINT = walhook.rule_cdc_sayable(format('SELECT rule_webhook_link_table(''webhook'', %L); links it. A partition moves with the table that is linked.', v_table));
        END IF;
    END LOOP;
    -- The tables first and in one order: two moves, or a move and an application that calls a webhook, do not wait for each other.
    PERFORM set_config('lock_timeout', ceil(extract(epoch FROM p_lock_timeout) * 1000)::bigint::text, true);
    BEGIN
        FOR v_table IN
            SELECT DISTINCT c.oid::regclass FROM public.rule_webhook_links l
            JOIN public.rule_webhooks w USING (webhook_id)
            JOIN pg_namespace n ON n.nspname = l.table_schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name
            WHERE (c.oid = ANY (p_tables) OR l.webhook_id = ANY (v_webhooks)) AND coalesce(l.shard, w.shard, 'main') <> p_shard
            ORDER BY 1
        LOOP
            PERFORM walhook.rule_cdc_shard_lock(v_table);
        END LOOP;
        UPDATE public.rule_webhooks w SET shard = nullif(p_shard, 'main')
        WHERE w.webhook_id = ANY (v_webhooks) AND coalesce(w.shard, 'main') <> p_shard;
        GET DIAGNOSTICS v_moved = ROW_COUNT;
        UPDATE public.rule_webhook_links l SET shard = NULL WHERE l.webhook_id = ANY (v_webhooks) AND l.shard IS NOT NULL;
        UPDATE public.rule_webhook_links l SET shard = p_shard
        FROM public.rule_webhooks w, pg_namespace n, pg_class c
        WHERE w.webhook_id = l.webhook_id AND n.nspname = l.table_schema AND c.relnamespace = n.oid AND c.relname = l.table_name
          AND c.oid = ANY (p_tables) AND coalesce(l.shard, w.shard, 'main') <> p_shard;
        GET DIAGNOSTICS v_links = ROW_COUNT;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'cannot move to shard % now: transactions that have written into % or into walhook''s configuration did not end within %',
            walhook.rule_cdc_quoted(p_shard), walhook.rule_cdc_sayable(coalesce(v_table::text, 'the tables')), p_lock_timeout
            USING ERRCODE = 'lock_not_available',
            HINT = walhook.rule_cdc_sayable(format('Nothing has moved. Call this again when they have ended; they are: SELECT DISTINCT a.pid, a.xact_start, '
                          'a.query FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.relation = %L::regclass AND l.granted; With a longer '
                          'p_lock_timeout writers of the table wait longer too.', v_table));
    END;
    PERFORM set_config('lock_timeout', v_before, true);
    IF v_moved + v_links = 0 THEN
        RAISE NOTICE 'everything is in shard % already', walhook.rule_cdc_quoted(p_shard);
    END IF;
    RETURN v_moved + v_links;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_shard_move IS
    'walhook: from this commit on the shard publishes the events of these tables (of all their links) and of these webhooks (calls, messages '
    'and all their links). Waits for transactions that have written into the tables, which others cannot do meanwhile, at most '
    'p_lock_timeout. Returns how many links and webhooks have moved. main: back to walhook run without --shard';

CREATE OR REPLACE FUNCTION public.rule_cdc_shard_drop(p_shard TEXT, p_lose_events BOOLEAN DEFAULT false)
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_shard RECORD;
    v_slot RECORD;
    v_tables REGCLASS[];
    v_webhooks TEXT[];
    v_moved PG_LSN;
BEGIN
    PERFORM walhook.rule_cdc_shard_known(p_shard);
    IF p_shard = 'main' THEN
        RAISE EXCEPTION 'cannot drop the shard main: it is walhook run without --shard'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Drop the other shards. `walhook uninstall` removes walhook.';
    END IF;
    LOCK TABLE public.rule_webhooks, public.rule_webhook_links IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO v_shard FROM walhook.rule_cdc_shard_names n WHERE n.shard = p_shard;
    v_tables := ARRAY(SELECT DISTINCT to_regclass(format('%I.%I', l.table_schema, l.table_name))
                      FROM public.rule_webhook_links l WHERE l.shard = p_shard);
    v_webhooks := ARRAY(SELECT w.webhook_name FROM public.rule_webhooks w WHERE w.shard = p_shard);
    IF cardinality(v_tables) + cardinality(v_webhooks) > 0 THEN
        RAISE EXCEPTION 'cannot drop shard %: it has tables or webhooks', walhook.rule_cdc_quoted(p_shard)
            USING ERRCODE = 'dependent_objects_still_exist',
            HINT = walhook.rule_cdc_sayable(format(
                'Move them to another shard first: SELECT rule_cdc_shard_move(''main'', p_tables => %L::regclass[], p_webhooks => %L::text[]);',
                v_tables::text, v_webhooks::text));
    END IF;
    SELECT s.active_pid, s.confirmed_flush_lsn, s.catalog_xmin INTO v_slot
    FROM pg_replication_slots s WHERE s.slot_name = v_shard.slot_name;
    IF v_slot.active_pid IS NOT NULL THEN
        RAISE EXCEPTION 'cannot drop shard %: process % streams from its slot', walhook.rule_cdc_quoted(p_shard), v_slot.active_pid
            USING ERRCODE = 'object_in_use', HINT = walhook.rule_cdc_sayable(format('Stop `walhook run --shard %s`, and call this again.', p_shard));
    END IF;
    IF NOT coalesce(p_lose_events, false) AND EXISTS (SELECT FROM walhook.rule_cdc_rule_sources r WHERE r.source = v_shard.source) THEN
        -- What the shard itself has read of the moves: the commit of the last one is the last position at which an event was its own.
        SELECT CASE WHEN bool_or(newest.owner = p_shard) THEN 'FFFFFFFF/FFFFFFFF' ELSE max(newest.since_lsn) END INTO v_moved
        FROM (SELECT DISTINCT ON (v.table_name, v.row_id) v.since_lsn, v.row_data ->> 'shard' AS owner
              FROM walhook.rule_cdc_rule_versions v
              WHERE v.source = v_shard.source AND v.table_name IN ('rule_webhooks', 'rule_webhook_links')
              ORDER BY v.table_name, v.row_id, v.since_lsn DESC) newest;
        -- And it must have read the last of them that there were: there is a version from behind it, or PostgreSQL knows that the
        -- transaction was over where the slot is.
        IF v_slot.confirmed_flush_lsn IS NULL OR v_slot.confirmed_flush_lsn <= v_moved
           OR v_slot.confirmed_flush_lsn <= v_shard.left_lsn
           OR v_shard.left_lsn IS NOT NULL AND age(v_slot.catalog_xmin) >= age(v_shard.left_xid::xid) AND NOT EXISTS (
               SELECT FROM walhook.rule_cdc_rule_versions v WHERE v.source = v_shard.source AND v.since_lsn >= v_shard.left_lsn)
        THEN
            RAISE EXCEPTION 'cannot drop shard %: events from before its last move wait in its slot', walhook.rule_cdc_quoted(p_shard)
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = walhook.rule_cdc_sayable(format('Start `walhook run --shard %s` once more and stop it when SELECT lag_bytes FROM rule_cdc_shards WHERE shard = %1$L; is '
                              'small, then call this again. To lose them: SELECT rule_cdc_shard_drop(%1$L, p_lose_events => true);', p_shard));
        END IF;
    END IF;
    DELETE FROM walhook.rule_cdc_shard_names n WHERE n.shard = p_shard;
    -- A shard of this name that is made later begins with the rules as they are then.
    DELETE FROM walhook.rule_cdc_rule_versions v WHERE v.source = v_shard.source;
    DELETE FROM walhook.rule_cdc_rule_sources r WHERE r.source = v_shard.source;
    DELETE FROM public.rule_cdc_status s WHERE s.source = v_shard.source;
    EXECUTE format('DROP PUBLICATION IF EXISTS %I, %I', v_shard.publication || '_inserts', v_shard.publication || '_changes');
    -- At the end: no transaction brings a slot back.
    RETURN public.rule_cdc_slot_drop(v_shard.slot_name);
END
$$;
COMMENT ON FUNCTION public.rule_cdc_shard_drop IS
    'walhook: removes a shard that has no tables and webhooks any more: its slot, its publications and its status. Its streams stay. '
    'Returns whether there was a slot. p_lose_events: also if it has not published everything that was its own';

CREATE OR REPLACE FUNCTION public.rule_cdc_shard_gathering(p_stream TEXT, p_into TEXT)
RETURNS JSONB LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_row RECORD;
BEGIN
    IF p_into IS NULL OR p_into !~ '^[^\s[:cntrl:].*>/\\]{1,255}$' OR p_stream IS NULL OR p_into = p_stream
       OR p_into IN (SELECT p_stream || '_' || n.shard FROM walhook.rule_cdc_shard_names n) THEN
        RAISE EXCEPTION 'cannot gather stream % into %', coalesce(walhook.rule_cdc_quoted(p_stream), 'NULL'), coalesce(walhook.rule_cdc_quoted(p_into), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give a stream''s name and that of another one, which no shard has: SELECT rule_cdc_shard_gathering(''WEBHOOKS'', ''WEBHOOKS_ALL'');';
    END IF;
    SELECT s.* INTO v_row FROM public.rule_nats_streams s WHERE s.stream_name = p_stream;
    IF NOT FOUND AND NOT EXISTS (SELECT FROM public.rule_nats_config c WHERE c.stream_name = p_stream) THEN
        RAISE EXCEPTION 'there is no stream % in the configuration', walhook.rule_cdc_quoted(p_stream)
            USING ERRCODE = 'undefined_object', HINT = 'SELECT stream_name FROM rule_nats_streams; lists the streams.';
    END IF;
    RETURN jsonb_build_object(
        'name', p_into,
        'description', format('walhook: the events of %s and of its shards', p_stream),
        'storage', coalesce(v_row.storage_type, 'file'),
        'retention', 'limits', 'discard', 'old', 'allow_direct', true,
        'num_replicas', coalesce(v_row.replicas, 1),
        'max_msgs', coalesce(v_row.max_messages, -1), 'max_bytes', coalesce(v_row.max_bytes, -1),
        'max_age', coalesce(v_row.max_age_seconds, 0)::bigint * 1000000000,
        'sources', (SELECT jsonb_agg(jsonb_build_object('name', p_stream || CASE WHEN n.shard = 'main' THEN '' ELSE '_' || n.shard END)
                                     || CASE WHEN n.shard = 'main' THEN '{}' ELSE jsonb_build_object('subject_transforms', jsonb_build_array(
                                            jsonb_build_object('src', format('_shard.%s.>', n.shard), 'dest', '>'))) END
                                     ORDER BY n.shard <> 'main', n.shard)
                    FROM (SELECT shard FROM walhook.rule_cdc_shard_names UNION SELECT 'main') n));
END
$$;
COMMENT ON FUNCTION public.rule_cdc_shard_gathering IS
    'walhook: the configuration of a JetStream stream that gathers a stream and the streams of its shards, under the subjects that they '
    'have without shards; for `nats stream add --config FILE`, and after another shard was made for `nats stream edit --config FILE`';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_check_shards(p_publication TEXT DEFAULT 'walhook')
RETURNS TABLE (name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_row RECORD;
BEGIN
    FOR v_row IN
        SELECT n.*, s.slot_name AS slot_there
        FROM walhook.rule_cdc_shard_names n
        LEFT JOIN pg_replication_slots s ON s.slot_name = n.slot_name AND s.database = current_database()
        WHERE n.publication <> p_publication AND (s.slot_name IS NULL OR s.active_pid IS NULL)
          AND EXISTS (SELECT FROM public.rule_webhooks w LEFT JOIN public.rule_webhook_links l USING (webhook_id)
                      WHERE coalesce(l.shard, w.shard, 'main') = n.shard OR coalesce(w.shard, 'main') = n.shard)
        ORDER BY n.shard
    LOOP
        object := format('shard %s', to_json(v_row.shard));
        IF v_row.slot_there IS NULL THEN
            name := 'shard_slot_missing';
            severity := 'error';
            problem := format('the slot %s of shard %s does not exist: the events of its tables and webhooks are lost', to_json(v_row.slot_name),
                              to_json(v_row.shard));
            remedy := format('SELECT public.rule_cdc_slot_create(%L, true, %L);', v_row.slot_name, v_row.publication);
        ELSE
            name := 'shard_idle';
            severity := 'warning';
            problem := format('nobody streams for shard %s: the events of its tables and webhooks wait in slot %s', to_json(v_row.shard),
                              to_json(v_row.slot_name));
            remedy := NULL;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_check_shards IS 'walhook: the part of rule_cdc_check about the other shards of this database';

CALL walhook.rule_cdc_view('rule_cdc_shards',
    'The shards of this database: the names of their slots, publications and sources, what they publish, and how far they are. main is walhook run without --shard',
    $sql$
    SELECT n.shard,
           n.slot_name,
           n.publication,
           n.source,
           ARRAY(SELECT DISTINCT format('%I.%I', l.table_schema, l.table_name)
                 FROM public.rule_webhook_links l JOIN public.rule_webhooks w USING (webhook_id)
                 WHERE coalesce(l.shard, w.shard, 'main') = n.shard ORDER BY 1) AS tables,
           ARRAY(SELECT w.webhook_name FROM public.rule_webhooks w WHERE coalesce(w.shard, 'main') = n.shard ORDER BY 1) AS webhooks,
           s.active,
           s.lag_bytes,
           s.retained_bytes,
           s.confirmed_flush_lsn
    FROM walhook.rule_cdc_shard_names n
    LEFT JOIN public.rule_cdc_slots s ON s.slot_name = n.slot_name$sql$);

CALL walhook.rule_cdc_functions_close();

-- In the order of the tables above.
CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_shard_new', 'AFTER INSERT',
    'NEW.shard IS NOT NULL',
    'walhook.rule_cdc_shard_follow_webhook()', 'tables move to the publications of their shard; refuses a shard that is not there');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_shard', 'AFTER UPDATE OF shard',
    'NEW.shard IS DISTINCT FROM OLD.shard',
    'walhook.rule_cdc_shard_follow_webhook()', 'tables move to the publications of their shard; refuses a shard that is not there');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhook_links', 'walhook_shard_new', 'AFTER INSERT',
    'NEW.shard IS NOT NULL',
    'walhook.rule_cdc_shard_follow_link()', 'tables move to the publications of their shard; refuses a shard that is not there');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhook_links', 'walhook_shard', 'AFTER UPDATE OF shard, webhook_id',
    '(NEW.shard, NEW.webhook_id) IS DISTINCT FROM (OLD.shard, OLD.webhook_id)',
    'walhook.rule_cdc_shard_follow_link()', 'tables move to the publications of their shard; refuses a shard that is not there');

REVOKE ALL ON walhook.rule_cdc_shard_names, public.rule_cdc_shards FROM PUBLIC;

CALL walhook.rule_cdc_grant('walhook_streamer', 'SELECT', ARRAY['rule_cdc_shard_names', 'rule_cdc_shards']);
CALL walhook.rule_cdc_grant('walhook_operator', 'SELECT', ARRAY['rule_cdc_shard_names', 'rule_cdc_shards']);
CALL walhook.rule_cdc_grant_functions('walhook_operator',
    '^rule_cdc_shard_(of|publications|known|create|movable|lock|place|move|drop|gathering|follow_webhook|follow_link)$|^rule_cdc_check_shards$');
CALL walhook.rule_cdc_grant_functions('walhook_streamer', '^rule_cdc_shard_of$|^rule_cdc_check_shards$');

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('027', 'walhook: shards')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
