-- 020: the publish history in partitions by day, without an index, a foreign key and a payload for each row.
--
-- Comes in: 005, 007, 008, 009. Goes out: what the streamer calls to write rows of the history and to let them go, and the setting
-- history_payload = 'reference'.
-- Always holds: rule_nats_publish_history is the table that it was, with its rows, indexes and views; nothing of it is rewritten. Days are
-- children of it by inheritance: what reads it reads them too, what they inherit is its columns and checks, and an INSERT into it
-- needs none of them. A day is dropped by itself, without a lock on the table or on another day. Running this file twice changes
-- nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007. Rows that are there keep what they say.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '020') THEN
    RETURN;
END IF;

ALTER TABLE public.rule_nats_config
    DROP CONSTRAINT IF EXISTS valid_history_payload,
    ADD CONSTRAINT valid_history_payload CHECK (history_payload = ANY ('{reference,full,hash,none}'::text[]));
ALTER TABLE public.rule_nats_config ALTER COLUMN history_payload SET DEFAULT 'reference';
COMMENT ON COLUMN public.rule_nats_config.history_payload IS
    'How the history keeps payloads. reference: only of what is in no stream (what failed, and core NATS); for the others stream_name and '
    'sequence_number say where it is, and payload is the JSON null. full: all; hash: SHA-256 and length; none';
COMMENT ON TABLE public.rule_nats_publish_history IS
    'One row per event that JetStream acknowledged or that could not be published, written by the streamer into the partition of '
    'the day, rule_nats_publish_history_<yyyymmdd>, which is a child of this table and is dropped when all its rows have expired. Holds '
    'payloads: granted to nobody but the roles of 009. Never published, never linkable';
COMMENT ON COLUMN public.rule_nats_publish_history.expires_at IS
    'When walhook or rule_nats_cleanup_expired may delete it; walhook drops a partition when all its rows have expired';

END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

-- ------------------------------------------------------------------------------------------------------------ partitions

CREATE OR REPLACE FUNCTION public.rule_nats_history_partitions(OUT partition REGCLASS, OUT day TEXT)
RETURNS SETOF RECORD LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.oid::regclass, right(c.relname, 8)
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = to_regclass('public.rule_nats_publish_history')
      AND c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^rule_nats_publish_history_[0-9]{8}$'
    ORDER BY 2
$$;
COMMENT ON FUNCTION public.rule_nats_history_partitions IS
    'walhook: the partitions of rule_nats_publish_history with their days (UTC, yyyymmdd), the oldest first';

-- With its owner's rights: the streamer owns no table.
CREATE OR REPLACE FUNCTION walhook.rule_nats_history_make(p_at TIMESTAMPTZ DEFAULT now(), OUT made TEXT, OUT problem TEXT)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    v_day CONSTANT TEXT := to_char(p_at AT TIME ZONE 'UTC', 'YYYYMMDD');
    v_name CONSTANT TEXT := 'rule_nats_publish_history_' || v_day;
    v_table REGCLASS;
    v_grantee RECORD;
BEGIN
    IF EXISTS (SELECT FROM public.rule_nats_history_partitions() p WHERE p.day = v_day) THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE public.%I () INHERITS (public.rule_nats_publish_history)', v_name);
    v_table := format('public.%I', v_name)::regclass;
    EXECUTE format('COMMENT ON TABLE %s IS %L', v_table,
                   'walhook: rows of rule_nats_publish_history that were written on this day (UTC). Read them there');
    -- By event for what comes again after a restart, by time for those who look. It needs a few bytes for a hundred pages.
    EXECUTE format('CREATE INDEX %I ON %s USING brin (event_id COLLATE "C", published_at, expires_at, publish_id) WITH (autosummarize = on)',
                   v_name || '_range', v_table);
    -- Of these three most rows are in none.
    EXECUTE format('CREATE INDEX %I ON %s (webhook_event_id) WHERE webhook_event_id IS NOT NULL', v_name || '_event', v_table);
    EXECUTE format('CREATE INDEX %I ON %s (message_id) WHERE message_id IS DISTINCT FROM event_id', v_name || '_message', v_table);
    EXECUTE format('CREATE INDEX %I ON %s (published_at) WHERE NOT success', v_name || '_failed', v_table);
    -- It has no key. Where another tool publishes all tables, an UPDATE or DELETE would be refused without this.
    EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', v_table);
    -- Default privileges may have granted it to somebody. It is read by way of its parent, whose rights hold then.
    FOR v_grantee IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS name
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = v_table AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', v_table, v_grantee.name);
    END LOOP;
    -- Rows are copied into it directly, by the roles that may write them into its parent.
    FOR v_grantee IN
        SELECT DISTINCT quote_ident(pg_get_userbyid(a.grantee)) AS name
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'public.rule_nats_publish_history'::regclass AND a.grantee NOT IN (0, c.relowner) AND a.privilege_type = 'INSERT'
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON %s TO %s', v_table, v_grantee.name);
    END LOOP;
    made := v_name;
-- Without a partition rows go into the table itself: nothing waits for it.
EXCEPTION WHEN OTHERS THEN
    made := NULL;
    -- Another streamer was quicker.
    IF NOT EXISTS (SELECT FROM public.rule_nats_history_partitions() p WHERE p.day = v_day) THEN
        problem := format('cannot make the partition %s: %s', v_name, SQLERRM);
    END IF;
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_make IS
    'walhook: the streamer''s: makes the partition of rule_nats_publish_history for a day if it is missing, or says why it cannot';

-- With its owner's rights, as above.
CREATE OR REPLACE FUNCTION public.rule_nats_history_retire(p_now TIMESTAMPTZ DEFAULT now(), OUT partition TEXT, OUT problem TEXT)
RETURNS SETOF RECORD LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_partition RECORD;
    v_alive BOOLEAN;
    v_alive_in CONSTANT TEXT := 'SELECT EXISTS (SELECT FROM ONLY %s h WHERE h.expires_at >= $1) '
                                'OR EXISTS (SELECT FROM ONLY %1$s h WHERE h.expires_at IS NULL)';
BEGIN
    -- Rows may be on their way into that of yesterday.
    FOR v_partition IN
        SELECT p.partition AS name, p.day FROM public.rule_nats_history_partitions() p
        WHERE p.day < to_char(p_now AT TIME ZONE 'UTC' - INTERVAL '1 day', 'YYYYMMDD')
    LOOP
        BEGIN
            EXECUTE format(v_alive_in, v_partition.name) INTO v_alive USING p_now;
            CONTINUE WHEN v_alive;
            EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', v_partition.name);
            EXECUTE format(v_alive_in, v_partition.name) INTO v_alive USING p_now;
            CONTINUE WHEN v_alive;
            EXECUTE format('DROP TABLE %s', v_partition.name);
            partition := 'rule_nats_publish_history_' || v_partition.day;
            problem := NULL;
        EXCEPTION WHEN OTHERS THEN
            -- Somebody reads it, or has an object that depends on it. The next time comes soon.
            partition := NULL;
            problem := format('cannot drop the expired partition rule_nats_publish_history_%s: %s', v_partition.day, SQLERRM);
        END;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION public.rule_nats_history_retire IS
    'walhook: drops the partitions of rule_nats_publish_history that are two days old or older and have no row that has not expired; '
    'waits a second at most for each. Answers with those it has dropped, and why not with another one. The streamer calls it every minute';

CREATE OR REPLACE FUNCTION public.rule_nats_cleanup_expired()
RETURNS BIGINT LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_before BIGINT;
    v_deleted BIGINT;
BEGIN
    SELECT count(*) INTO v_before FROM public.rule_nats_publish_history WHERE expires_at < now();
    PERFORM public.rule_nats_history_retire();
    DELETE FROM public.rule_nats_publish_history WHERE expires_at < now();
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    RETURN greatest(v_before, v_deleted);
END
$$;
COMMENT ON FUNCTION public.rule_nats_cleanup_expired IS
    'walhook: drops partitions of the history that have expired, deletes other rows that have, and returns how many rows there were; '
    'the streamer does so by itself, and lets rows of a partition wait for its last one';

-- What the foreign key of the table does for its own rows.
CREATE OR REPLACE FUNCTION walhook.rule_nats_history_webhook_deleted()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_partition REGCLASS;
    v_webhooks INTEGER[];
BEGIN
    SELECT array_agg(g.webhook_id) INTO v_webhooks FROM gone g;
    IF v_webhooks IS NOT NULL THEN
        FOR v_partition IN SELECT p.partition FROM public.rule_nats_history_partitions() p LOOP
            EXECUTE format('DELETE FROM ONLY %s h WHERE h.webhook_id = ANY ($1)', v_partition) USING v_webhooks;
        END LOOP;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_webhook_deleted IS
    'walhook: trigger of rule_webhooks: deletes the history of webhooks that are deleted from its partitions';

DO $trigger$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger
                   WHERE tgrelid = 'public.rule_webhooks'::regclass AND tgname = 'rule_nats_history_webhook_deleted') THEN
        CREATE TRIGGER rule_nats_history_webhook_deleted AFTER DELETE ON public.rule_webhooks
            REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION walhook.rule_nats_history_webhook_deleted();
    END IF;
END
$trigger$;

-- ------------------------------------------------------------------------------------------------ writing, by the streamer

CREATE OR REPLACE FUNCTION walhook.rule_nats_history_open()
RETURNS VOID LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- As the history has them, but that jsonb comes as its binary form, the version 1 and then the text: so what cannot be a jsonb
    -- can be distinguished from what can.
    CREATE TEMPORARY TABLE IF NOT EXISTS walhook_history (
        published_at TIMESTAMPTZ NOT NULL, -- 2000-01-01 where the ack was not seen
        sequence_number BIGINT,            -- looked up after a restart: -1: removed from the stream since; 0: not found
        latency_ms NUMERIC(10, 2),
        success BOOLEAN NOT NULL,
        webhook_id INTEGER NOT NULL,
        event_id TEXT NOT NULL,
        subject TEXT NOT NULL,
        headers TEXT NOT NULL,
        message_id TEXT NOT NULL,
        triggered_by TEXT,
        rule_execution_id BIGINT,
        webhook_event_id BIGINT,
        stream_name TEXT,
        payload TEXT NOT NULL,
        error_message TEXT
    ) ON COMMIT DELETE ROWS;
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_open IS
    'walhook: the streamer''s: makes the session''s temporary table into which it copies rows of the history';

CREATE OR REPLACE FUNCTION walhook.rule_nats_history_json(p_text TEXT)
RETURNS JSONB LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN p_text::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    -- JSON that jsonb cannot hold, such as a text with \u0000.
    RETURN jsonb_build_object('unstorable', SQLERRM);
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_json IS
    'walhook: the streamer''s: a payload as jsonb, or {"unstorable": why} where it cannot be one';

-- With its owner's rights: a lock on a row asks for more than SELECT.
CREATE OR REPLACE FUNCTION walhook.rule_nats_history_missing(p_webhooks INTEGER[])
RETURNS INTEGER[] LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- As a foreign key does for each row: until the end of the transaction nobody deletes them.
    PERFORM FROM public.rule_webhooks w WHERE w.webhook_id = ANY (p_webhooks) ORDER BY w.webhook_id FOR KEY SHARE;
    RETURN ARRAY(SELECT p.id FROM unnest(p_webhooks) p (id)
                 WHERE NOT EXISTS (SELECT FROM public.rule_webhooks w WHERE w.webhook_id = p.id));
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_missing IS
    'walhook: the streamer''s: keeps these webhooks from being deleted until the end of the transaction; which of them do not exist';

CREATE OR REPLACE FUNCTION walhook.rule_nats_history_target(p_now TIMESTAMPTZ DEFAULT now())
RETURNS REGCLASS LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(
        (SELECT p.partition FROM public.rule_nats_history_partitions() p
         WHERE p.day = to_char(p_now AT TIME ZONE 'UTC', 'YYYYMMDD') AND has_table_privilege(p.partition, 'INSERT')
           AND has_table_privilege(p.partition, 'UPDATE') AND has_table_privilege(p.partition, 'SELECT')),
        'public.rule_nats_publish_history'::regclass)
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_target IS
    'walhook: the streamer''s: the table that rows of the history go into: the partition of the day, or where there is none that '
    'it may write into, rule_nats_publish_history itself';

CREATE OR REPLACE FUNCTION walhook.rule_nats_history_begin(p_webhooks INTEGER[], OUT target TEXT, OUT missing INTEGER[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    target := (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.oid = walhook.rule_nats_history_target());
    -- Before the webhooks: who holds a lock on the table may delete one of them next.
    EXECUTE format('LOCK TABLE ONLY %s IN ROW EXCLUSIVE MODE', target);
    missing := walhook.rule_nats_history_missing(p_webhooks);
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_begin IS
    'walhook: the streamer''s: begins to write rows of the history about these webhooks: into which table, and which webhooks do not exist';

CREATE OR REPLACE FUNCTION walhook.rule_nats_history_written(p_source TEXT, p_slot TEXT)
RETURNS TEXT LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_partition REGCLASS;
    v_in_one TEXT;
    v_last TEXT;
    v_from TEXT;
    v_now CONSTANT TEXT := lpad(to_hex(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint), 16, '0');
BEGIN
    -- The table itself has a unique index for its rows, and is not searched by range.
    IF EXISTS (SELECT FROM ONLY public.rule_nats_publish_history h WHERE h.event_id IS NOT NULL) THEN
        RETURN v_now;
    END IF;
    SELECT lpad(to_hex(pg_wal_lsn_diff(s.confirmed_flush_lsn, '0/0')::bigint), 16, '0') INTO v_from
    FROM pg_replication_slots s WHERE s.slot_name = p_slot;
    FOR v_partition IN SELECT p.partition FROM public.rule_nats_history_partitions() p LOOP
        EXECUTE format(
            'SELECT max(substr(h.event_id, $3, 16)) FROM ONLY %s h '
            'WHERE h.event_id COLLATE "C" >= $1 AND h.event_id COLLATE "C" <= $2 AND substr(h.event_id, $3) ~ ''^[0-9a-f]{16}-[^-]+-[^-]+-[^-]+$''',
            v_partition)
        INTO v_in_one
        USING format('%s-%s', p_source, coalesce(v_from, '')), format('%s-%s-g', p_source, v_now), length(p_source) + 2;
        v_last := greatest(v_last, v_in_one);
    END LOOP;
    RETURN v_last;
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_written IS
    'walhook: the streamer''s: up to which commit (its LSN, 16 hexadecimal digits) events of a source that the slot can bring again '
    'may have a row in the history; NULL where none has';

CREATE OR REPLACE FUNCTION walhook.rule_nats_history_rows(p_first TID, p_last TID, p_careful BOOLEAN)
RETURNS TABLE (webhook_id INTEGER, subject TEXT, payload JSONB, headers JSONB, published_at TIMESTAMPTZ, message_id TEXT,
               sequence_number BIGINT, success BOOLEAN, error_message TEXT, latency_ms NUMERIC, triggered_by TEXT,
               rule_execution_id BIGINT, event_id TEXT, webhook_event_id BIGINT, stream_name TEXT)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT n.webhook_id, n.subject,
           CASE WHEN p_careful THEN walhook.rule_nats_history_json(substr(n.payload, 2)) ELSE substr(n.payload, 2)::jsonb END,
           CASE WHEN p_careful THEN walhook.rule_nats_history_json(substr(n.headers, 2)) ELSE substr(n.headers, 2)::jsonb END,
           CASE WHEN n.published_at = '2000-01-01 00:00:00+00' THEN now() ELSE n.published_at END,
           n.message_id, CASE WHEN n.sequence_number > 0 THEN n.sequence_number END,
           n.success AND d.event_id IS NULL AND CASE WHEN n.sequence_number = 0 THEN
               -- Not stored, because the stream has an event with the same message_id of the caller's: as for one that was acknowledged.
               n.message_id <> n.event_id AND (
                   EXISTS (SELECT FROM public.rule_nats_publish_history o
                           WHERE o.message_id = n.message_id AND o.message_id IS DISTINCT FROM o.event_id
                             AND o.webhook_id = n.webhook_id AND o.stream_name = n.stream_name
                             AND o.success AND o.event_id <> n.event_id)
                   OR EXISTS (SELECT FROM pg_temp.walhook_history o
                              WHERE o.message_id = n.message_id AND o.webhook_id = n.webhook_id
                                AND o.stream_name = n.stream_name AND o.success AND o.sequence_number <> 0))
               ELSE true END,
           coalesce(n.error_message, d.reason),
           n.latency_ms, n.triggered_by, n.rule_execution_id, n.event_id, n.webhook_event_id, n.stream_name
    FROM pg_temp.walhook_history n
    -- What comes again after a restart and is not in its stream, although the stream has what came after it: it was a dead letter,
    -- it has been removed there (expired, purged, acknowledged away), or nobody knows.
    LEFT JOIN public.rule_nats_dead_letters d ON n.success AND n.sequence_number <= 0 AND d.event_id = n.event_id
    WHERE n.ctid >= p_first AND n.ctid <= p_last
      AND EXISTS (SELECT FROM public.rule_webhooks w WHERE w.webhook_id = n.webhook_id);
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_rows IS
    'walhook: the streamer''s: rows of its temporary table as the history has them; carefully means what jsonb cannot hold too';

CREATE OR REPLACE FUNCTION walhook.rule_nats_history_insert(p_first TID, p_last TID, p_careful BOOLEAN)
RETURNS VOID LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_ids TEXT[];
    v_first TEXT;
    v_last TEXT;
    v_part RECORD;
    v_there TEXT[];
    v_known TEXT[] := '{}';
    v_columns CONSTANT TEXT := 'webhook_id, subject, payload, headers, published_at, message_id, sequence_number, success, error_message, '
                               'latency_ms, triggered_by, rule_execution_id, event_id, webhook_event_id, stream_name';
BEGIN
    SELECT array_agg(n.event_id), min(n.event_id COLLATE "C"), max(n.event_id COLLATE "C") INTO v_ids, v_first, v_last
    FROM pg_temp.walhook_history n WHERE n.ctid >= p_first AND n.ctid <= p_last;
    IF cardinality(v_ids) > (SELECT count(DISTINCT i.id) FROM unnest(v_ids) i (id)) THEN
        RAISE EXCEPTION 'an event has two rows' USING ERRCODE = 'cardinality_violation';
    END IF;
    FOR v_part IN
        SELECT 'public.rule_nats_publish_history'::regclass AS name, '' AS within
        UNION ALL
        -- Its index by event is one of ranges.
        SELECT p.partition, ' AND h.event_id COLLATE "C" BETWEEN $2 AND $3' FROM public.rule_nats_history_partitions() p
    LOOP
        EXECUTE format('SELECT array_agg(h.event_id) FROM ONLY %s h WHERE h.event_id IS NOT NULL AND h.event_id = ANY ($1)%s',
                       v_part.name, v_part.within)
        INTO v_there USING v_ids, v_first, v_last;
        CONTINUE WHEN v_there IS NULL;
        v_known := v_known || v_there;
        -- One that failed can succeed later, when the streamer was killed in between and the cause was removed; what was not known can
        -- become known.
        EXECUTE format(
            'UPDATE ONLY %s h SET success = n.success, error_message = n.error_message, sequence_number = n.sequence_number, '
            'latency_ms = n.latency_ms, published_at = n.published_at, stream_name = n.stream_name '
            'FROM walhook.rule_nats_history_rows($4, $5, $6) n '
            'WHERE n.event_id = h.event_id AND h.event_id IS NOT NULL AND h.event_id = ANY ($1)%s AND NOT h.success '
            'AND (n.success AND n.sequence_number IS NOT NULL OR h.error_message IS NULL AND (n.success OR n.error_message IS NOT NULL))',
            v_part.name, v_part.within)
        USING v_there, v_first, v_last, p_first, p_last, p_careful;
    END LOOP;
    EXECUTE format(
        'INSERT INTO %s (%s) SELECT %2$s FROM walhook.rule_nats_history_rows($1, $2, $3) n '
        'WHERE NOT EXISTS (SELECT FROM unnest($4) k (id) WHERE k.id = n.event_id)',
        walhook.rule_nats_history_target(), v_columns)
    USING p_first, p_last, p_careful, v_known;
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_insert IS
    'walhook: the streamer''s: moves rows of its temporary table into the history, each event once; carefully means what jsonb cannot '
    'hold too';

CREATE OR REPLACE FUNCTION walhook.rule_nats_history_write(OUT lost BIGINT, OUT problem TEXT)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_row RECORD;
BEGIN
    SELECT count(*), format('webhook %s does not exist any more', min(n.webhook_id)) INTO lost, problem
    FROM pg_temp.walhook_history n
    WHERE NOT EXISTS (SELECT FROM public.rule_webhooks w WHERE w.webhook_id = n.webhook_id);
    BEGIN
        PERFORM walhook.rule_nats_history_insert('(0,0)', '(4294967295,65535)', false);
    EXCEPTION WHEN OTHERS THEN
        -- The table itself, the server or the moment: no row fares better than another.
        IF SQLSTATE ~ '^(08|25|40|42|53|55|57|58|XX)' THEN
            RAISE;
        END IF;
        FOR v_row IN SELECT n.ctid AS at FROM pg_temp.walhook_history n LOOP
            BEGIN
                PERFORM walhook.rule_nats_history_insert(v_row.at, v_row.at, true);
            EXCEPTION WHEN OTHERS THEN
                IF SQLSTATE ~ '^(08|25|40|42|53|55|57|58|XX)' THEN
                    RAISE;
                END IF;
                problem := CASE WHEN lost = 0 THEN SQLERRM ELSE problem END;
                lost := lost + 1;
            END;
        END LOOP;
    END;
    problem := CASE WHEN lost > 0 THEN problem END;
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_history_write IS
    'walhook: the streamer''s: moves its temporary table into the history; rows that are refused (their webhook was deleted, a '
    'constraint of yours) are left out: how many, and why the first';

CALL walhook.rule_cdc_functions_close();

CALL walhook.rule_cdc_grant_functions('walhook_streamer', '^rule_nats_(cleanup_expired$|history_(?!webhook_deleted$))');
CALL walhook.rule_cdc_grant_functions('walhook_operator', '^rule_nats_(cleanup_expired|history_partitions|history_retire)$');

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('020', 'walhook: the publish history in partitions by day, payloads by reference')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
