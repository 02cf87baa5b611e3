-- 021: messages without a table: rule_webhook_emit writes an event into the WAL and nowhere else.
--
-- Comes in: 005, 007, 008 (which checks a call), 009, 011, 020. Goes out: rule_webhook_emit with the functions that say what became of a
-- message, and the keys by which walhook recognizes messages of that function.
-- Always holds: any role may write a logical message with any content (pg_logical_emit_message), so each message is signed with a key
-- that no caller can read, together with its transaction and its webhook. A key's row is never changed but by being retired, and then
-- retired_lsn lies behind the commit of every transaction that used the key and before that of any later one. Running this file twice
-- changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '021') THEN
    RETURN;
END IF;

CREATE TABLE IF NOT EXISTS public.rule_cdc_emit_keys (
    key_id SERIAL PRIMARY KEY,
    inner_key BYTEA NOT NULL,
    outer_key BYTEA NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    created_by TEXT NOT NULL DEFAULT session_user,
    retired_at TIMESTAMPTZ,
    retired_lsn PG_LSN,
    CONSTRAINT valid_emit_key CHECK (octet_length(inner_key) = 64 AND octet_length(outer_key) = 64)
);
COMMENT ON TABLE public.rule_cdc_emit_keys IS
    'Keys that sign the messages of rule_webhook_emit. Secret: only the owner and `walhook run`, who checks the signatures, read them. '
    'Published to walhook, and cannot be linked';
COMMENT ON COLUMN public.rule_cdc_emit_keys.inner_key IS
    'The two keys of HMAC-SHA-256 (RFC 2104): the secret key, filled up to 64 bytes with zeros, each byte XORed with 0x36';
COMMENT ON COLUMN public.rule_cdc_emit_keys.outer_key IS 'The same with 0x5C';
COMMENT ON COLUMN public.rule_cdc_emit_keys.retired_lsn IS
    'walhook ignores messages of transactions that commit at this position or behind it. NULL: the key is in use, or can be: the newest '
    'one signs';
ALTER TABLE public.rule_cdc_status ADD COLUMN IF NOT EXISTS publishes_messages BOOLEAN;
COMMENT ON COLUMN public.rule_cdc_status.publishes_messages IS
    'true: this walhook publishes messages of rule_webhook_emit; NULL: it is of a version before them';
COMMENT ON COLUMN public.rule_nats_publish_history.webhook_event_id IS
    'The event_id in rule_webhook_events; NULL for an event of a linked table. Of a message of rule_webhook_emit: its LSN as a number, '
    'negative (rule_webhook_emit_status finds it)';

END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

-- ------------------------------------------------------------------------------------------------------------------ keys

CREATE OR REPLACE FUNCTION walhook.rule_cdc_emit_key_make()
RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- 366 bits of chance.
    v_secret CONSTANT BYTEA := sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
    v_inner BYTEA := decode(repeat('36', 64), 'hex');
    v_outer BYTEA := decode(repeat('5c', 64), 'hex');
    v_id INTEGER;
BEGIN
    FOR i IN 0 .. octet_length(v_secret) - 1 LOOP
        v_inner := set_byte(v_inner, i, get_byte(v_inner, i) # get_byte(v_secret, i));
        v_outer := set_byte(v_outer, i, get_byte(v_outer, i) # get_byte(v_secret, i));
    END LOOP;
    INSERT INTO public.rule_cdc_emit_keys (inner_key, outer_key) VALUES (v_inner, v_outer) RETURNING key_id INTO v_id;
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_emit_key_make IS 'walhook: makes a key for the messages of rule_webhook_emit; for the functions beside it';

CREATE OR REPLACE FUNCTION public.rule_webhook_emit_enable()
RETURNS BOOLEAN LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_older RECORD;
BEGIN
    IF EXISTS (SELECT FROM public.rule_cdc_emit_keys k WHERE k.retired_lsn IS NULL) THEN
        RETURN false;
    END IF;
    SELECT s.source, s.host, s.version INTO v_older FROM public.rule_cdc_status s
    WHERE s.publishes_messages IS NOT TRUE AND s.heartbeat_at > clock_timestamp() - make_interval(secs => 3 * s.heartbeat_seconds)
    ORDER BY s.source LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'cannot enable rule_webhook_emit: walhook % for source % on host % is too old and would pass over its messages',
            walhook.rule_cdc_sayable(coalesce(v_older.version, '?')), walhook.rule_cdc_quoted(v_older.source),
            walhook.rule_cdc_quoted(coalesce(v_older.host, '?'))
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Stop it and start the version that has set up this database; then SELECT rule_webhook_emit_enable(); again.';
    END IF;
    PERFORM walhook.rule_cdc_emit_key_make();
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_emit_enable IS
    'walhook: lets rule_webhook_emit be called in this database: makes the first key of its signatures. `walhook run` then reads the '
    'logical messages of the database. Returns false if it was enabled before';

CREATE OR REPLACE FUNCTION public.rule_webhook_emit_rotate_key()
RETURNS INTEGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM public.rule_cdc_emit_keys k WHERE k.retired_lsn IS NULL) THEN
        RAISE EXCEPTION 'cannot rotate the key of rule_webhook_emit: it is not enabled in this database'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'SELECT rule_webhook_emit_enable(); enables it.';
    END IF;
    RETURN walhook.rule_cdc_emit_key_make();
END
$$;
COMMENT ON FUNCTION public.rule_webhook_emit_rotate_key IS
    'walhook: makes a new key for the signatures of rule_webhook_emit, which signs from this commit on. The keys before stay good until '
    'rule_webhook_emit_retire_keys. Returns the new key''s key_id';

-- A transaction that reads a key holds a lock on the table until its end. So this one waits for all that have used a key, and
-- after it none uses an old one: a read in an older snapshot locks the row, and fails.
CREATE OR REPLACE FUNCTION public.rule_webhook_emit_retire_keys()
RETURNS INTEGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    v_retired INTEGER;
    v_others TEXT;
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'cannot retire keys of rule_webhook_emit in a % transaction', current_setting('transaction_isolation')
            USING ERRCODE = 'active_sql_transaction', HINT = 'SELECT rule_webhook_emit_retire_keys(); in a transaction of its own.';
    END IF;
    BEGIN
        LOCK TABLE ONLY public.rule_cdc_emit_keys IN ACCESS EXCLUSIVE MODE;
    EXCEPTION WHEN lock_not_available THEN
        SELECT string_agg(CASE WHEN l.pid IS NULL THEN 'a prepared transaction'
                               ELSE format('process %s of role %s', l.pid, walhook.rule_cdc_quoted(a.usename::text)) END, ', ' ORDER BY l.pid)
        INTO v_others
        FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.relation = 'public.rule_cdc_emit_keys'::regclass AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
        RAISE EXCEPTION 'cannot retire keys of rule_webhook_emit: transactions that have used it are not over: %',
            walhook.rule_cdc_sayable(coalesce(v_others, 'none any more'))
            USING ERRCODE = 'lock_not_available',
            HINT = 'SELECT rule_webhook_emit_retire_keys(); again when they are over; the old keys stay good until then. '
                   'SELECT gid FROM pg_prepared_xacts; lists prepared transactions.';
    END;
    UPDATE public.rule_cdc_emit_keys k SET retired_at = clock_timestamp(), retired_lsn = pg_current_wal_insert_lsn()
    WHERE k.retired_lsn IS NULL AND k.key_id < (SELECT max(n.key_id) FROM public.rule_cdc_emit_keys n WHERE n.retired_lsn IS NULL);
    GET DIAGNOSTICS v_retired = ROW_COUNT;
    RETURN v_retired;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_emit_retire_keys IS
    'walhook: retires all keys of rule_webhook_emit but the newest one: messages that they sign from now on are ignored. Waits up to two '
    'seconds for transactions that have used a key. Returns how many it retired';

-- --------------------------------------------------------------------------------------------------------------- messages

-- A call that says no more than a webhook and a payload is decided by one look at the tables; any other, and each that is refused, by
-- rule_webhook_put, which knows the rules and says why. Each statement, and each expression in one, costs every caller.
CREATE OR REPLACE FUNCTION public.rule_webhook_emit(
    webhook_id INTEGER,
    payload JSONB,
    message_id TEXT DEFAULT NULL,
    headers JSONB DEFAULT NULL,
    rule_execution_id BIGINT DEFAULT NULL,
    triggered_by TEXT DEFAULT NULL,
    subject_tokens TEXT[] DEFAULT NULL
) RETURNS PG_LSN LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_sees_latest CONSTANT BOOLEAN := current_setting('transaction_isolation') IN ('read committed', 'read uncommitted');
    v_key_id INTEGER;
    v_inner BYTEA;
    v_outer BYTEA;
    v_subject TEXT;
    v_call BYTEA;
    v_payload BYTEA;
    v_signed BYTEA;
    v_lsn PG_LSN;
BEGIN
    IF current_setting('transaction_read_only')::boolean OR current_setting('wal_level') <> 'logical' THEN
        IF current_setting('transaction_read_only')::boolean THEN
            RAISE EXCEPTION 'cannot emit a message for webhook % in a read-only transaction', coalesce(webhook_id::text, 'NULL')
                USING ERRCODE = 'read_only_sql_transaction',
                HINT = CASE WHEN pg_is_in_recovery() THEN 'This server is a standby: call rule_webhook_emit on the primary.'
                            ELSE 'A message is a write: begin the transaction with BEGIN READ WRITE.' END;
        END IF;
        RAISE EXCEPTION 'cannot emit a message for webhook %: wal_level is %, and nobody could read it',
            coalesce(webhook_id::text, 'NULL'), current_setting('wal_level')
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'ALTER SYSTEM SET wal_level = logical; then restart PostgreSQL.';
    END IF;
    IF v_sees_latest AND payload IS NOT NULL AND message_id IS NULL AND headers IS NULL AND rule_execution_id IS NULL
       AND subject_tokens IS NULL AND coalesce(current_setting('walhook.traceparent', true), '') = '' THEN
        SELECT w.nats_subject, k.key_id, k.inner_key, k.outer_key INTO v_subject, v_key_id, v_inner, v_outer
        FROM public.rule_webhooks w
        JOIN public.rule_nats_config c ON c.config_id = w.nats_config_id
        CROSS JOIN public.rule_cdc_emit_keys k
        WHERE w.webhook_id = rule_webhook_emit.webhook_id AND w.enabled AND w.nats_enabled AND c.enabled IS NOT FALSE
          AND k.retired_lsn IS NULL
        ORDER BY k.key_id DESC LIMIT 1;
        IF octet_length(v_subject) <= 1024 AND v_subject ~ '^[A-Za-z0-9_%-]+([.][A-Za-z0-9_%-]+)*$' THEN
            v_call := convert_to(
                '{"triggered_by": '
                || to_json(coalesce(triggered_by, nullif(current_setting('role', true), 'none'), session_user))::text || '}', 'UTF8');
        END IF;
    END IF;
    IF v_call IS NULL THEN
        v_call := convert_to(walhook.rule_webhook_put(webhook_id, payload, 'emit', message_id, headers, rule_execution_id, triggered_by,
                                                      subject_tokens)::text, 'UTF8');
        IF v_sees_latest THEN
            SELECT k.key_id, k.inner_key, k.outer_key INTO v_key_id, v_inner, v_outer FROM public.rule_cdc_emit_keys k
            WHERE k.retired_lsn IS NULL ORDER BY k.key_id DESC LIMIT 1;
        ELSE
            -- Its snapshot may be from before the key was retired: then this fails with serialization_failure, and the caller tries
            -- again.
            SELECT k.key_id, k.inner_key, k.outer_key INTO v_key_id, v_inner, v_outer FROM public.rule_cdc_emit_keys k
            WHERE k.retired_lsn IS NULL ORDER BY k.key_id DESC LIMIT 1 FOR SHARE;
        END IF;
        IF v_key_id IS NULL THEN
            RAISE EXCEPTION 'cannot emit a message for webhook %: rule_webhook_emit is not enabled in this database',
                coalesce(webhook_id::text, 'NULL')
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Let an operator run SELECT rule_webhook_emit_enable(); once. rule_webhook_publish_nats needs nothing.';
        END IF;
    END IF;
    IF getdatabaseencoding() IN ('UTF8', 'SQL_ASCII') THEN
        v_payload := convert_to(payload::text, 'UTF8');
    ELSE
        v_payload := walhook.rule_cdc_utf8(payload::text);
    END IF;
    IF octet_length(v_payload) > 1000000000 THEN
        RAISE EXCEPTION 'cannot emit a message for webhook %: its payload has % bytes, at most 1000000000 are allowed',
            coalesce(webhook_id::text, 'NULL'), coalesce(octet_length(v_payload)::text, 'NULL')
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Store the data elsewhere, and emit a reference to it.';
    END IF;
    -- As src/route/emitted.rs reads it; all of it is text, for other readers of logical messages. The WAL has the transaction's id as
    -- well, so nobody can copy the message into another transaction.
    v_signed := convert_to('1 ' || pg_current_xact_id()::text || ' ' || v_key_id || ' ' || webhook_id || ' ' || octet_length(v_call)
                           || ' ', 'UTF8') || v_call || v_payload;
    v_lsn := pg_logical_emit_message(
        true, 'walhook.emit', convert_to(encode(sha256(v_outer || sha256(v_inner || v_signed)), 'base64'), 'UTF8') || v_signed);
    -- For rule_webhook_emit_wait, until the end of the transaction.
    IF coalesce(current_setting('walhook.emitted', true), '') = '' THEN
        PERFORM set_config('walhook.emitted', v_lsn::text, true);
    END IF;
    RETURN v_lsn;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_emit(INTEGER, JSONB, TEXT, JSONB, BIGINT, TEXT, TEXT[]) IS
    'walhook: writes an event for a webhook into the WAL in this transaction, without a row; walhook publishes it after the commit, by the '
    'configuration of the webhook at the commit. subject_tokens are appended to the webhook''s subject. Returns its LSN, for '
    'rule_webhook_emit_status and rule_webhook_emit_wait';

CREATE OR REPLACE FUNCTION public.rule_webhook_emit(
    webhook_name TEXT,
    payload JSONB,
    message_id TEXT DEFAULT NULL,
    headers JSONB DEFAULT NULL,
    rule_execution_id BIGINT DEFAULT NULL,
    triggered_by TEXT DEFAULT NULL,
    subject_tokens TEXT[] DEFAULT NULL
) RETURNS PG_LSN LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    p_name CONSTANT TEXT := webhook_name;
BEGIN
    RETURN public.rule_webhook_emit(
        coalesce((SELECT w.webhook_id FROM public.rule_webhooks w WHERE w.webhook_name = p_name), walhook.rule_cdc_webhook_id(p_name)),
        payload, message_id, headers, rule_execution_id, triggered_by, subject_tokens);
END
$$;
COMMENT ON FUNCTION public.rule_webhook_emit(TEXT, JSONB, TEXT, JSONB, BIGINT, TEXT, TEXT[]) IS
    'walhook: the same, by the webhook''s name';

-- ---------------------------------------------------------------------------------------------------- what became of it

CREATE OR REPLACE FUNCTION public.rule_webhook_emit_status(lsn PG_LSN)
RETURNS JSONB LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_status JSONB := public.rule_nats_event_status(-(lsn - '0/0'::pg_lsn)::bigint);
    v_end CONSTANT PG_LSN := CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END;
    v_message TEXT;
BEGIN
    -- What the history has.
    IF v_status ? 'subject' THEN
        IF (v_status ->> 'duplicate_of')::bigint < 0 THEN
            v_status := v_status || jsonb_build_object('duplicate_of', '0/0'::pg_lsn + -(v_status ->> 'duplicate_of')::numeric);
        END IF;
        RETURN v_status - 'event_id' || jsonb_build_object('lsn', lsn);
    END IF;
    v_message := CASE
        WHEN lsn IS NULL THEN 'the LSN is NULL'
        WHEN lsn > v_end THEN format('the WAL of this database ends at %s: no message has this LSN', v_end)
        -- Every transaction from before it is over, and what committed of it is in the history.
        WHEN lsn < (SELECT min(s.restart_lsn) FROM pg_replication_slots s JOIN public.rule_cdc_slots c ON c.slot_name = s.slot_name)
            THEN 'its transaction was rolled back, or the history has no row of it any more, or keeps none' END;
    IF v_message IS NOT NULL THEN
        RETURN jsonb_build_object('lsn', lsn, 'status', 'unknown', 'message', v_message);
    END IF;
    RETURN jsonb_build_object('lsn', lsn, 'status', 'enqueued', 'message', CASE
        WHEN NOT EXISTS (SELECT FROM public.rule_cdc_status s
                         WHERE s.heartbeat_at > clock_timestamp() - make_interval(secs => 3 * s.heartbeat_seconds))
            THEN 'no walhook is running; if its transaction has committed, the event will be published when one runs'
        ELSE 'not acknowledged yet, or its transaction has not committed' END);
END
$$;
COMMENT ON FUNCTION public.rule_webhook_emit_status IS
    'walhook: what became of a message of rule_webhook_emit, by its LSN: enqueued; published, with stream, sequence and latency_ms; '
    'duplicate, with the LSN that had its message_id first; failed, with error; unknown';

CREATE OR REPLACE PROCEDURE public.rule_webhook_emit_wait(
    lsn PG_LSN,
    timeout INTERVAL DEFAULT '10 seconds',
    INOUT result JSONB DEFAULT NULL
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_deadline CONSTANT TIMESTAMPTZ := clock_timestamp() + coalesce(timeout, '10 seconds');
    v_pause DOUBLE PRECISION := 0.005;
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'cannot wait for message % in a % transaction: it would not see the outcome', coalesce(lsn::text, 'NULL'),
            current_setting('transaction_isolation')
            USING ERRCODE = 'active_sql_transaction', HINT = 'Commit, then CALL rule_webhook_emit_wait outside of a transaction.';
    END IF;
    IF lsn >= nullif(current_setting('walhook.emitted', true), '')::pg_lsn THEN
        RAISE EXCEPTION 'cannot wait for message %: this transaction has emitted, and nothing is published before the commit',
            coalesce(lsn::text, 'NULL')
            USING ERRCODE = 'active_sql_transaction', HINT = 'COMMIT, then CALL rule_webhook_emit_wait.';
    END IF;
    LOOP
        -- In a subtransaction, as in rule_nats_wait.
        BEGIN
            result := public.rule_webhook_emit_status(lsn);
            RAISE EXCEPTION 'asked' USING ERRCODE = 'WH001';
        EXCEPTION WHEN SQLSTATE 'WH001' THEN
            NULL;
        END;
        EXIT WHEN result ->> 'status' <> 'enqueued';
        IF clock_timestamp() >= v_deadline THEN
            result := result || '{"timed_out": true}';
            EXIT;
        END IF;
        PERFORM pg_sleep(v_pause);
        v_pause := least(v_pause * 2, 0.1);
    END LOOP;
END
$$;
COMMENT ON PROCEDURE public.rule_webhook_emit_wait IS
    'walhook: waits until the message of a committed transaction is published or has failed, and returns what '
    'rule_webhook_emit_status returns; after the timeout also "timed_out": true';

CALL walhook.rule_cdc_functions_close();

REVOKE ALL ON public.rule_cdc_emit_keys FROM PUBLIC;
REVOKE ALL ON SEQUENCE public.rule_cdc_emit_keys_key_id_seq FROM PUBLIC;

CALL walhook.rule_cdc_grant('walhook_streamer', 'SELECT', ARRAY['rule_cdc_emit_keys']);
CALL walhook.rule_cdc_grant(
    'walhook_operator', 'SELECT (key_id, created_at, created_by, retired_at, retired_lsn)', ARRAY['rule_cdc_emit_keys']);
CALL walhook.rule_cdc_grant_functions('walhook_application', '^rule_webhook_emit(_status|_wait)?$');
CALL walhook.rule_cdc_grant_functions('walhook_worker', '^rule_cdc_utf8$');
CALL walhook.rule_cdc_grant_functions('walhook_operator', '^rule_webhook_emit');

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('021', 'walhook: messages without a table')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
