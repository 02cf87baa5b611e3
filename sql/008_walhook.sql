-- 008: what walhook adds: the event table, links, the publication and the slot, checkpoints, dead letters, the status of the
-- running streamer, and the RFC's functions that publish.
--
-- Comes in: 005 and 007. Goes out: everything that `walhook run` reads and writes.
-- Always holds: publishing is an INSERT into rule_webhook_events in the caller's transaction, so that a rollback publishes
-- nothing and a NATS outage fails no application. What holds secrets, history or the streamer's own state is never in the
-- publication (rule_cdc_table_problem). Running this file twice changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- ---------------------------------------------------------------------------------------------------------------- tables

-- Once: what is there already would wait for locks, and the application behind it.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '008') THEN
    RETURN;
END IF;

ALTER TABLE public.rule_webhooks
    ADD COLUMN IF NOT EXISTS payload_format TEXT NOT NULL DEFAULT 'webhook',
    ADD COLUMN IF NOT EXISTS on_error TEXT NOT NULL DEFAULT 'dead_letter',
    ADD COLUMN IF NOT EXISTS expose_credentials BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS nats_headers JSONB;
COMMENT ON COLUMN public.rule_webhooks.payload_format IS
    'The form of the message body. webhook: the form that the workers of RFC-0007 read; data: only the row or the payload; '
    'debezium; cloudevents (structured); cloudevents_binary';
COMMENT ON COLUMN public.rule_webhooks.on_error IS
    'What walhook does with an event that can never be published. halt: walhook stops; dead_letter: it writes the event '
    'into rule_nats_dead_letters; object_store: if the event is only too large, walhook publishes a claim check and puts '
    'the payload into rule_nats_config.object_bucket, otherwise as dead_letter';
COMMENT ON COLUMN public.rule_webhooks.expose_credentials IS
    'true: the payload also contains header values that look like credentials. Everybody who may read the stream can then '
    'read them';
COMMENT ON COLUMN public.rule_webhooks.nats_headers IS
    'Headers of each message of this webhook: {"Name": "value"}. rule_nats_headers_problem says what cannot be a header. '
    'The column headers holds those of the request that a worker sends';

ALTER TABLE public.rule_nats_streams ADD COLUMN IF NOT EXISTS ordering TEXT NOT NULL DEFAULT 'strict';
COMMENT ON COLUMN public.rule_nats_streams.ordering IS
    'strict: walhook is the stream''s only writer, and the stream has the events in commit order without a gap; shared: '
    'other programs write into it as well';

ALTER TABLE public.rule_nats_streams
    ADD COLUMN IF NOT EXISTS transactions TEXT NOT NULL DEFAULT 'streamed',
    ADD COLUMN IF NOT EXISTS durability TEXT NOT NULL DEFAULT 'default';
COMMENT ON COLUMN public.rule_nats_streams.transactions IS
    'streamed: walhook publishes event by event; atomic: the stream stores all events of a transaction or none, up to 1000 '
    'of them (one JetStream batch, nats-server 2.12.1 or newer). walhook publishes a larger transaction in several parts, '
    'between the headers Walhook-Transaction: begin and end';
COMMENT ON COLUMN public.rule_nats_streams.durability IS
    'fsync: the server syncs its disk before each ack (sync_interval: always), and walhook gathers whole transactions into '
    'batches that share one sync (nats-server 2.15 or newer); default: walhook does not wait for a sync';

ALTER TABLE public.rule_nats_config
    ADD COLUMN IF NOT EXISTS history TEXT NOT NULL DEFAULT 'full',
    ADD COLUMN IF NOT EXISTS history_payload TEXT NOT NULL DEFAULT 'reference',
    ADD COLUMN IF NOT EXISTS object_bucket TEXT NOT NULL DEFAULT 'walhook_objects';
COMMENT ON COLUMN public.rule_nats_config.history IS
    'Which events walhook writes into rule_nats_publish_history: full, failures or off. With full and failures it confirms '
    'a commit only after it has written its rows';
COMMENT ON COLUMN public.rule_nats_config.history_payload IS 'What the history keeps of payloads';
COMMENT ON COLUMN public.rule_nats_config.object_bucket IS
    'The object store for payloads that are too large for a message, of webhooks with on_error = ''object_store''. walhook '
    'creates it if it is missing';

DO $checks$
DECLARE
    c RECORD;
BEGIN
    FOR c IN
        VALUES ('rule_webhooks', 'valid_payload_format', 'payload_format', '{webhook,data,debezium,cloudevents,cloudevents_binary}'::text[]),
               ('rule_webhooks', 'valid_on_error', 'on_error', '{halt,dead_letter,object_store}'),
               ('rule_nats_streams', 'valid_ordering', 'ordering', '{strict,shared}'),
               ('rule_nats_streams', 'valid_transactions', 'transactions', '{streamed,atomic}'),
               ('rule_nats_streams', 'valid_durability', 'durability', '{default,fsync}'),
               ('rule_nats_config', 'valid_history', 'history', '{full,failures,off}'),
               ('rule_nats_config', 'valid_history_payload', 'history_payload', '{reference,full,hash,none}')
    LOOP
        -- One of an earlier version, which knows fewer words, gives way.
        IF EXISTS (SELECT FROM pg_constraint
                   WHERE conrelid = format('public.%I', c.column1)::regclass AND conname = c.column2
                     AND EXISTS (SELECT FROM unnest(c.column4) word
                                 WHERE position(word IN pg_get_constraintdef(oid)) = 0)) THEN
            EXECUTE format('ALTER TABLE public.%I DROP CONSTRAINT %I', c.column1, c.column2);
        END IF;
        IF NOT EXISTS (SELECT FROM pg_constraint
                       WHERE conrelid = format('public.%I', c.column1)::regclass AND conname = c.column2) THEN
            EXECUTE format('ALTER TABLE public.%I ADD CONSTRAINT %I CHECK (%I = ANY (%L::text[]))',
                           c.column1, c.column2, c.column3, c.column4);
        END IF;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_constraint
                   WHERE conrelid = 'public.rule_nats_config'::regclass AND conname = 'valid_object_bucket') THEN
        ALTER TABLE public.rule_nats_config ADD CONSTRAINT valid_object_bucket CHECK (object_bucket ~ '^[A-Za-z0-9_-]{1,200}$');
    END IF;
    -- As rule_nats_headers_problem says, but without calling it: whoever writes a webhook may lack the right to.
    IF NOT EXISTS (SELECT FROM pg_constraint
                   WHERE conrelid = 'public.rule_webhooks'::regclass AND conname = 'valid_nats_headers') THEN
        ALTER TABLE public.rule_webhooks ADD CONSTRAINT valid_nats_headers CHECK (
            jsonb_typeof(nats_headers) = 'object' AND octet_length(nats_headers::text) <= 8192
            AND NOT jsonb_path_exists(nats_headers, '$.keyvalue() ? (
                !(@.key like_regex "^[!-9;-~]+$") || @.key like_regex "^(nats|walhook)-" flag "i"
                || @.value.type() != "string" || @.value like_regex "[\u0001-\u0008\u000a-\u001f\u007f]")')
            AND (payload_format NOT LIKE 'cloudevents%'
                 OR NOT jsonb_path_exists(nats_headers, '$.keyvalue() ? (@.key like_regex "^(ce-|content-type$)" flag "i")')));
    END IF;
END
$checks$;

CREATE TABLE IF NOT EXISTS public.rule_webhook_links (
    link_id SERIAL PRIMARY KEY,
    webhook_id INTEGER NOT NULL REFERENCES public.rule_webhooks (webhook_id) ON DELETE CASCADE,
    table_schema TEXT NOT NULL,
    table_name TEXT NOT NULL,
    operations TEXT[] NOT NULL DEFAULT '{insert,update,delete}',
    subject_template TEXT,
    columns TEXT[],
    filter JSONB,
    when_changed TEXT[],
    include_old BOOLEAN NOT NULL DEFAULT false,
    enabled BOOLEAN NOT NULL DEFAULT true,
    created_at TIMESTAMPTZ DEFAULT now(),
    created_by TEXT DEFAULT CURRENT_USER,
    UNIQUE (webhook_id, table_schema, table_name),
    CONSTRAINT valid_operations CHECK (operations <@ '{insert,update,delete,truncate}' AND cardinality(operations) > 0)
);
COMMENT ON TABLE public.rule_webhook_links IS
    'Links: which operations of which table go to which webhook. rule_webhook_link_table writes them. The table is in the '
    'publication, so a change takes effect at its own commit';
COMMENT ON COLUMN public.rule_webhook_links.subject_template IS
    'The subject with the tokens {schema}, {table}, {op} and {column}, percent-encoded; NULL: the webhook''s subject';
COMMENT ON COLUMN public.rule_webhook_links.columns IS 'The columns that the payload contains; NULL: all';
COMMENT ON COLUMN public.rule_webhook_links.filter IS
    'walhook publishes only rows that contain this object, as jsonb @> does; NULL: all rows';
COMMENT ON COLUMN public.rule_webhook_links.when_changed IS
    'walhook publishes only updates that change one of these columns; NULL: all updates';
COMMENT ON COLUMN public.rule_webhook_links.include_old IS
    'true: the payload contains the old row too, as far as the table''s replica identity has it';

CREATE TABLE IF NOT EXISTS public.rule_webhook_events (
    event_id BIGSERIAL PRIMARY KEY,
    webhook_id INTEGER NOT NULL,
    payload JSONB NOT NULL,
    subject TEXT,
    message_id TEXT,
    headers JSONB,
    triggered_by TEXT DEFAULT CURRENT_USER,
    rule_execution_id BIGINT,
    created_at TIMESTAMPTZ DEFAULT now()
);
ALTER TABLE public.rule_webhook_events ADD COLUMN IF NOT EXISTS body BYTEA;
COMMENT ON TABLE public.rule_webhook_events IS
    'Events that SQL functions have made. walhook publishes inserts only, from the WAL: deleting a row publishes nothing '
    'and loses nothing. walhook deletes old rows';
COMMENT ON COLUMN public.rule_webhook_events.webhook_id IS
    'Not a foreign key, because an event stays when its webhook is deleted';
COMMENT ON COLUMN public.rule_webhook_events.subject IS
    'The subject at the time of the call: later changes of the webhook do not change it';
COMMENT ON COLUMN public.rule_webhook_events.message_id IS
    'The caller''s own id, which walhook sends as Nats-Msg-Id <source>:<webhook_id>:<message_id>; NULL: walhook makes one '
    'from the position in the WAL';
COMMENT ON COLUMN public.rule_webhook_events.headers IS
    'The call''s own headers, which are in the message and in the payload. With body: all headers of the message';
COMMENT ON COLUMN public.rule_webhook_events.body IS
    'For a dead letter that is published again: the whole message body, which walhook sends unchanged in place of one made '
    'from payload';

CREATE TABLE IF NOT EXISTS public.rule_nats_checkpoints (
    source TEXT,
    config_name TEXT,
    stream_name TEXT,
    epoch BIGINT NOT NULL,
    system_identifier TEXT,
    timeline INTEGER,
    commit_lsn PG_LSN,
    commit_time BIGINT,
    ordinal BIGINT,
    webhook_id INTEGER,
    sequence BIGINT,
    stream_created TIMESTAMPTZ,
    updated_at TIMESTAMPTZ DEFAULT now(),
    PRIMARY KEY (source, config_name, stream_name)
);
ALTER TABLE public.rule_nats_checkpoints ADD COLUMN IF NOT EXISTS kept_sequence BIGINT;
COMMENT ON TABLE public.rule_nats_checkpoints IS
    'The end of each stream as walhook last saw it, by which it recognizes a stream that was replaced or set back. The row '
    'of the source itself (names empty) has the newest epoch; after a promotion or a restore also where the old timeline '
    'ended (commit_lsn) and the first epoch on the new one (sequence). Never published, and cannot be linked';
COMMENT ON COLUMN public.rule_nats_checkpoints.epoch IS
    'The number of runs that have held the slot so far; only the newest run may publish';
COMMENT ON COLUMN public.rule_nats_checkpoints.commit_time IS 'Microseconds since 2000-01-01 UTC, as in the WAL';
COMMENT ON COLUMN public.rule_nats_checkpoints.sequence IS 'The sequence of the stream''s last message';
COMMENT ON COLUMN public.rule_nats_checkpoints.kept_sequence IS
    'With confirm_delay_seconds: the slot still has all events behind this sequence, so walhook publishes them again if the '
    'stream has lost some. NULL: the stream must have all events up to its end';

CREATE TABLE IF NOT EXISTS public.rule_nats_dead_letters (
    dead_letter_id BIGSERIAL PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    webhook_id INTEGER,
    webhook_name TEXT,
    subject TEXT,
    headers JSONB,
    payload BYTEA,
    reason TEXT NOT NULL,
    commit_lsn PG_LSN,
    created_at TIMESTAMPTZ DEFAULT now(),
    status TEXT NOT NULL DEFAULT 'dead',
    CONSTRAINT valid_dead_letter_status CHECK (status IN ('dead', 'retried', 'dropped'))
);
ALTER TABLE public.rule_nats_dead_letters ADD COLUMN IF NOT EXISTS retried_as BIGINT;
COMMENT ON TABLE public.rule_nats_dead_letters IS
    'Events that can never be published or delivered, whole, with the reason. walhook writes the row before it goes on to '
    'the next event. Never published, and cannot be linked';
COMMENT ON COLUMN public.rule_nats_dead_letters.event_id IS '<source>-<commit lsn>-<commit time>-<ordinal>-<webhook id>';
COMMENT ON COLUMN public.rule_nats_dead_letters.payload IS 'The message body that would have been sent';
COMMENT ON COLUMN public.rule_nats_dead_letters.headers IS
    'The headers that the message would have had, except those that say its place in a stream';
COMMENT ON COLUMN public.rule_nats_dead_letters.status IS
    'dead; retried: published again as the event retried_as; dropped: nobody needs it. rule_nats_dead_letter_retry and '
    'rule_nats_dead_letter_drop set it';
COMMENT ON COLUMN public.rule_nats_dead_letters.retried_as IS
    'The event_id in rule_webhook_events; rule_nats_event_status says what became of that event';

CREATE TABLE IF NOT EXISTS public.rule_cdc_status (
    source TEXT PRIMARY KEY,
    slot_name TEXT,
    publication TEXT,
    pid INTEGER,
    host TEXT,
    version TEXT,
    epoch BIGINT,
    connected_since TIMESTAMPTZ,
    nats JSONB NOT NULL DEFAULT '{}',
    received_lsn PG_LSN,
    confirmed_lsn PG_LSN,
    events_published BIGINT,
    events_failed BIGINT,
    last_error TEXT,
    last_error_at TIMESTAMPTZ,
    heartbeat_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    heartbeat_seconds INTEGER NOT NULL DEFAULT 10
);
ALTER TABLE public.rule_cdc_status ADD COLUMN IF NOT EXISTS history_lost BIGINT;
ALTER TABLE public.rule_cdc_status ADD COLUMN IF NOT EXISTS log_lines_lost BIGINT;
COMMENT ON TABLE public.rule_cdc_status IS
    'What the running walhook last wrote about itself, one row per source. Never published, and cannot be linked';
COMMENT ON COLUMN public.rule_cdc_status.pid IS 'The process id on that host';
COMMENT ON COLUMN public.rule_cdc_status.connected_since IS 'Since when walhook has held the slot';
COMMENT ON COLUMN public.rule_cdc_status.nats IS
    '{"<config_name>": {"server": "nats://host:4222", "connected": true, "connected_since": "...", "last_error": null, '
    '"given_up": false, "holds_slot": false, "unsettled": 0, "falls_back": []}}, without secrets. holds_slot: walhook is '
    'not connected, and the slot waits for its unsettled events; falls_back: which settings of transactions and durability '
    'the streams do not support';
COMMENT ON COLUMN public.rule_cdc_status.history_lost IS
    'How many rows rule_nats_publish_history has refused in this session; walhook published their events all the same';
COMMENT ON COLUMN public.rule_cdc_status.log_lines_lost IS
    'How many lines of the log walhook could not write to standard error (a full disk, a closed pipe, a reader that does '
    'not read) since the process began';
COMMENT ON COLUMN public.rule_cdc_status.heartbeat_seconds IS
    'How often walhook writes heartbeat_at, in seconds. If it has not done so for three times as long, it counts as not '
    'running';

-- The history is the RFC's; these say which event a row is about, and where it went.
ALTER TABLE public.rule_nats_publish_history
    ADD COLUMN IF NOT EXISTS event_id TEXT,
    ADD COLUMN IF NOT EXISTS webhook_event_id BIGINT,
    ADD COLUMN IF NOT EXISTS stream_name TEXT;
COMMENT ON COLUMN public.rule_nats_publish_history.event_id IS
    '<source>-<commit lsn>-<commit time>-<ordinal>-<webhook id>. Each event has one row, also if walhook was killed and '
    'writes it again';
COMMENT ON COLUMN public.rule_nats_publish_history.webhook_event_id IS
    'The event_id in rule_webhook_events; NULL for an event of a linked table';
COMMENT ON COLUMN public.rule_nats_publish_history.stream_name IS 'The stream that acknowledged the event';
CREATE INDEX IF NOT EXISTS idx_nats_publish_event ON public.rule_nats_publish_history (webhook_event_id)
    WHERE webhook_event_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS idx_nats_publish_message_id ON public.rule_nats_publish_history (message_id)
    WHERE message_id IS DISTINCT FROM event_id;
CREATE UNIQUE INDEX IF NOT EXISTS idx_nats_publish_event_id ON public.rule_nats_publish_history (event_id)
    WHERE event_id IS NOT NULL;

END
$schema$;

-- In a database that was set up before as well; who finds the columns waits for no lock.
DO $added$
BEGIN
IF NOT EXISTS (SELECT FROM pg_attribute
               WHERE attrelid = 'public.rule_cdc_status'::regclass AND attname = 'last_exit_code' AND NOT attisdropped) THEN
    ALTER TABLE public.rule_cdc_status
        ADD COLUMN last_exit_code INTEGER, ADD COLUMN last_exit_reason TEXT, ADD COLUMN last_exit_at TIMESTAMPTZ;
    COMMENT ON COLUMN public.rule_cdc_status.last_exit_code IS
    'The exit code of the last `walhook run` that ended; 0: somebody stopped it';
    COMMENT ON COLUMN public.rule_cdc_status.last_exit_reason IS
    'The last error of that `walhook run`, which is in its log too; NULL if somebody stopped it';
END IF;
IF NOT EXISTS (SELECT FROM pg_attribute
               WHERE attrelid = 'public.rule_webhook_links'::regclass AND attname = 'trace_column' AND NOT attisdropped) THEN
    ALTER TABLE public.rule_webhook_links ADD COLUMN trace_column TEXT;
    COMMENT ON COLUMN public.rule_webhook_links.trace_column IS
    'The column with the traceparent (W3C) that goes into the headers of the message and of the webhook''s request';
END IF;
IF NOT EXISTS (SELECT FROM pg_attribute
               WHERE attrelid = 'public.rule_webhook_links'::regclass AND attname = 'payload_column' AND NOT attisdropped) THEN
    ALTER TABLE public.rule_webhook_links
        ADD COLUMN payload_column TEXT, ADD COLUMN message_id_column TEXT, ADD COLUMN headers_columns JSONB;
    COMMENT ON COLUMN public.rule_webhook_links.payload_column IS
        'The column whose value is the body of the message, byte for byte; NULL: the body is made of the row';
    COMMENT ON COLUMN public.rule_webhook_links.message_id_column IS
        'The column that goes into the header Walhook-Message-Id. Nats-Msg-Id stays the event''s id';
    COMMENT ON COLUMN public.rule_webhook_links.headers_columns IS
        'Headers of the message by the columns that have their values: {"eventType": "type"}';
END IF;
IF NOT EXISTS (SELECT FROM pg_attribute
               WHERE attrelid = 'public.rule_webhook_links'::regclass AND attname = 'mask' AND NOT attisdropped) THEN
    ALTER TABLE public.rule_webhook_links ADD COLUMN rename JSONB, ADD COLUMN mask JSONB, ADD COLUMN mask_columns TEXT[];
    COMMENT ON COLUMN public.rule_webhook_links.rename IS
        'Names of columns in the message, where they differ from those in the table: {"email": "mail"}';
    COMMENT ON COLUMN public.rule_webhook_links.mask IS
        'What becomes of values before they leave: {"email": "hash", "ssn": "drop", "card": "last4", "note": "null"}; NULL: nothing is masked';
    COMMENT ON COLUMN public.rule_webhook_links.mask_columns IS
        'The columns of the table when mask was written. Columns that came later do not leave, and if a masked one is missing none does';
END IF;
END
$added$;

-- ----------------------------------------------------------------------------------------------- functions of ours come in

CALL walhook.rule_cdc_functions_open(ARRAY[
    'rule_nats_init', 'rule_webhook_publish_nats', 'rule_webhook_call_unified', 'rule_nats_health_check',
    'rule_nats_test_connection', 'rule_webhook_call_status', 'rule_webhook_process_retries']);

-- rule_webhook_call_unified calls rule_webhook_enqueue. Where that is another's, it looks its tables up in the caller's
-- search_path, and ours has none of them: so it gets one of its own.
DO $pin$
DECLARE
    f RECORD;
BEGIN
    FOR f IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname = 'rule_webhook_enqueue'
          AND NOT EXISTS (SELECT FROM unnest(p.proconfig) setting WHERE setting LIKE 'search_path=%')
    LOOP
        EXECUTE format('ALTER ROUTINE %s SET search_path = pg_catalog, public, pg_temp', f.oid::regprocedure);
    END LOOP;
END
$pin$;

-- ------------------------------------------------------------------------------------------------ publication and slot

CREATE OR REPLACE FUNCTION walhook.rule_cdc_publication_problem(p_name TEXT)
RETURNS TEXT LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name TEXT;
    v_part TEXT;
    v_whole_schema BOOLEAN;
BEGIN
    IF p_name IS NULL THEN
        RETURN 'the name of the publications is NULL';
    END IF;
    FOREACH v_part IN ARRAY ARRAY['_inserts', '_changes'] LOOP
        v_name := p_name || v_part;
        IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = v_name) THEN
            RETURN format('publication %I does not exist', v_name);
        END IF;
        IF EXISTS (SELECT FROM pg_publication WHERE pubname = v_name AND puballtables) THEN
            RETURN format('publication %I is FOR ALL TABLES: it would publish secrets, and the history of its own publishing',
                          v_name);
        END IF;
        IF to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL THEN
            EXECUTE 'SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace n
                     JOIN pg_catalog.pg_publication p ON p.oid = n.pnpubid WHERE p.pubname = $1)'
            INTO v_whole_schema USING v_name;
            IF v_whole_schema THEN
                RETURN format('publication %I publishes a whole schema, and with it tables that nobody linked', v_name);
            END IF;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_publication_problem IS
    'walhook: why walhook cannot use the publications <name>_inserts and <name>_changes; NULL if it can';

CREATE OR REPLACE FUNCTION public.rule_cdc_publication_create(p_name TEXT DEFAULT 'walhook')
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_part RECORD;
    v_name TEXT;
    v_table TEXT;
    v_publication RECORD;
    v_problem TEXT;
    v_done BOOLEAN := false;
BEGIN
    IF p_name IS NULL OR octet_length(p_name) NOT BETWEEN 1 AND 55 THEN
        RAISE EXCEPTION 'cannot use % as the name of the publications', coalesce(walhook.rule_cdc_quoted(p_name), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'The name has 1 to 55 bytes: walhook adds _inserts and _changes to it.';
    END IF;
    FOR v_part IN
        VALUES ('_inserts', 'insert', ARRAY['rule_webhook_events', 'rule_cdc_backfill_rows']),
               ('_changes', 'insert, update, delete, truncate',
                ARRAY['rule_webhooks', 'rule_webhook_links', 'rule_nats_config', 'rule_nats_streams', 'rule_cdc_emit_keys'])
    LOOP
        v_name := p_name || v_part.column1;
        SELECT oid, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot INTO v_publication
        FROM pg_publication WHERE pubname = v_name;
        IF NOT FOUND THEN
            EXECUTE format('CREATE PUBLICATION %I WITH (publish = %L, publish_via_partition_root = true)',
                           v_name, v_part.column2);
            EXECUTE format('COMMENT ON PUBLICATION %I IS %L', v_name,
                           'walhook: ' || CASE v_part.column1
                               WHEN '_inserts' THEN 'tables of which only inserts are linked'
                               ELSE 'tables of which more is linked, and the configuration' END);
            v_done := true;
        ELSIF v_publication.pubupdate <> (v_part.column1 = '_changes')
              OR v_publication.pubdelete <> (v_part.column1 = '_changes')
              OR v_publication.pubtruncate <> (v_part.column1 = '_changes')
              OR NOT v_publication.pubinsert OR NOT v_publication.pubviaroot
        THEN
            EXECUTE format('ALTER PUBLICATION %I SET (publish = %L, publish_via_partition_root = true)',
                           v_name, v_part.column2);
            v_done := true;
        END IF;
        FOREACH v_table IN ARRAY v_part.column3 LOOP
            -- What a later file makes may not be there yet.
            CONTINUE WHEN to_regclass(format('public.%I', v_table)) IS NULL;
            IF NOT EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
                           WHERE p.pubname = v_name AND r.prrelid = format('public.%I', v_table)::regclass)
               AND NOT EXISTS (SELECT FROM pg_publication WHERE pubname = v_name AND puballtables)
            THEN
                EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY public.%I', v_name, v_table);
                v_done := true;
            END IF;
        END LOOP;
    END LOOP;

    v_problem := walhook.rule_cdc_publication_problem(p_name);
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'cannot use publication %: %', walhook.rule_cdc_sayable(quote_ident(p_name)), walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = walhook.rule_cdc_sayable(
                format('DROP PUBLICATION IF EXISTS %I, %I; and call this again, or choose another name: SELECT rule_cdc_publication_create(''other'');',
                          p_name || '_inserts', p_name || '_changes'));
    END IF;
    RETURN v_done;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_publication_create IS
    'walhook: creates or completes the publications <name>_inserts and <name>_changes; returns true if it changed '
    'something. Call it before the slot is created, because a slot cannot decode changes from before its publication';

CREATE OR REPLACE FUNCTION public.rule_cdc_slot_create(
    p_slot TEXT DEFAULT 'walhook',
    p_failover BOOLEAN DEFAULT true,
    p_publication TEXT DEFAULT 'walhook'
) RETURNS PG_LSN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_slot RECORD;
    v_finding RECORD;
    v_problem TEXT := walhook.rule_cdc_publication_problem(p_publication);
    v_failover BOOLEAN;
    v_lsn PG_LSN;
BEGIN
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'cannot create slot % yet: %', walhook.rule_cdc_quoted(p_slot), walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = walhook.rule_cdc_sayable(
                format('SELECT rule_cdc_publication_create(%L); first, in a transaction of its own: a slot cannot decode '
                          'what lies before its publication.', p_publication));
    END IF;
    IF current_setting('wal_level') <> 'logical' THEN
        RAISE EXCEPTION 'cannot create slot %: wal_level is %, not logical', walhook.rule_cdc_quoted(p_slot), current_setting('wal_level')
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'ALTER SYSTEM SET wal_level = logical; then restart PostgreSQL.';
    END IF;
    SELECT s.plugin, s.slot_type, s.database, s.wal_status, s.confirmed_flush_lsn, s.two_phase INTO v_slot
    FROM pg_replication_slots s WHERE s.slot_name = p_slot;
    IF FOUND THEN
        IF v_slot.plugin IS DISTINCT FROM 'pgoutput' OR v_slot.database IS DISTINCT FROM current_database() THEN
            RAISE EXCEPTION 'slot % exists and is not walhook''s: % slot, plugin %, database %', walhook.rule_cdc_quoted(p_slot),
                v_slot.slot_type, walhook.rule_cdc_sayable(coalesce(v_slot.plugin, 'none')),
                    walhook.rule_cdc_sayable(coalesce(v_slot.database, 'none'))
                USING ERRCODE = 'duplicate_object', HINT = 'Choose another name for the slot.';
        ELSIF v_slot.wal_status = 'lost' THEN
            SELECT f.problem INTO v_finding FROM walhook.rule_cdc_check_slot(p_slot) f WHERE f.name = 'slot_lost';
            RAISE EXCEPTION 'cannot use slot %: %', walhook.rule_cdc_quoted(p_slot), walhook.rule_cdc_sayable(v_finding.problem)
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = walhook.rule_cdc_sayable(format('To go on without the changes that are lost: SELECT rule_cdc_slot_drop(%L); then create the slot again.', p_slot));
        END IF;
        IF v_slot.two_phase THEN
            SELECT f.problem, f.remedy INTO v_finding FROM walhook.rule_cdc_check_slot(p_slot) f WHERE f.name = 'slot_two_phase';
            RAISE EXCEPTION 'cannot use slot %: %', walhook.rule_cdc_quoted(p_slot), walhook.rule_cdc_sayable(v_finding.problem)
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = walhook.rule_cdc_sayable(v_finding.remedy);
        END IF;
        RAISE NOTICE 'slot % exists already', walhook.rule_cdc_quoted(p_slot);
        RETURN v_slot.confirmed_flush_lsn;
    END IF;
    IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
        RAISE EXCEPTION 'cannot create slot % in a transaction that has written', walhook.rule_cdc_quoted(p_slot)
            USING ERRCODE = 'active_sql_transaction', HINT = 'Call it in a transaction of its own.';
    END IF;
    -- The failover argument exists from 17 on; the expression of the other branch is never looked at. A standby has no failover
    -- slots of its own. Simple expressions, which PL/pgSQL computes without a query of its own: by EXECUTE or PERFORM, PostgreSQL fails with
    -- "snapshot reference ... is not owned by resource owner" while other sessions make and drop tables.
    IF current_setting('server_version_num')::integer >= 170000 THEN
        v_failover := coalesce(p_failover, false) AND NOT pg_is_in_recovery();
        v_lsn := (pg_create_logical_replication_slot(p_slot, 'pgoutput', false, false, v_failover)).lsn;
    ELSE
        v_lsn := (pg_create_logical_replication_slot(p_slot, 'pgoutput', false)).lsn;
    END IF;
    RETURN v_lsn;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_slot_create IS
    'walhook: creates the logical slot (a failover slot on PostgreSQL 17 and newer) and returns its start. It does not '
    'change a slot of walhook that exists. Needs REPLICATION, and a transaction that has not written anything';

CREATE OR REPLACE FUNCTION public.rule_cdc_slot_drop(p_slot TEXT DEFAULT 'walhook')
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_slot RECORD;
BEGIN
    SELECT s.plugin, s.database, s.active_pid INTO v_slot FROM pg_replication_slots s WHERE s.slot_name = p_slot;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF v_slot.plugin IS DISTINCT FROM 'pgoutput' OR v_slot.database IS DISTINCT FROM current_database() THEN
        RAISE EXCEPTION 'slot % is not walhook''s: plugin %, database %', walhook.rule_cdc_quoted(p_slot),
            walhook.rule_cdc_sayable(coalesce(v_slot.plugin, 'none')),
            walhook.rule_cdc_sayable(coalesce(v_slot.database, 'none'))
            USING ERRCODE = 'wrong_object_type', HINT = 'pg_drop_replication_slot drops any slot.';
    END IF;
    IF v_slot.active_pid IS NOT NULL THEN
        RAISE EXCEPTION 'slot % is in use by process %', walhook.rule_cdc_quoted(p_slot), v_slot.active_pid
            USING ERRCODE = 'object_in_use', HINT = 'Stop the walhook that streams from it first.';
    END IF;
    PERFORM pg_drop_replication_slot(p_slot);
    -- It may be what the slot's changes can still be replayed from, so it is not dropped without being asked.
    IF EXISTS (SELECT 1 FROM pg_replication_slots s WHERE s.slot_name = p_slot || '_anchor') THEN
        RAISE WARNING 'slot % stays and keeps WAL', walhook.rule_cdc_quoted(p_slot || '_anchor')
            USING HINT = walhook.rule_cdc_sayable(format('SELECT rule_cdc_anchor_drop(%L); drops it.', p_slot));
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_slot_drop IS
    'walhook: drops the slot; events that are not published yet are lost. Returns false if there is no such slot. The '
    'slot''s anchor stays';

-- pg_replication_slots differs by version; this view has the same columns on all, NULL where the server does not know.
-- After pg_upgrade run this file again to fill them.
DO $view$
DECLARE
    v_columns TEXT[] := ARRAY(SELECT attname FROM pg_attribute
                              WHERE attrelid = 'pg_catalog.pg_replication_slots'::regclass AND attnum > 0);
BEGIN
    CALL walhook.rule_cdc_view('rule_cdc_slots',
        'The logical slots of this database. retained_bytes: the WAL that they keep on disk; lag_bytes: the WAL that they have not confirmed',
        format($sql$
        SELECT s.slot_name,
               s.database,
               s.plugin,
               s.active,
               s.active_pid,
               s.wal_status,
               s.safe_wal_size,
               pg_wal_lsn_diff(here.lsn, s.restart_lsn)::bigint AS retained_bytes,
               pg_wal_lsn_diff(here.lsn, s.confirmed_flush_lsn)::bigint AS lag_bytes,
               s.restart_lsn,
               s.confirmed_flush_lsn,
               %s AS failover,
               %s AS invalidation_reason,
               %s AS inactive_since
        FROM pg_catalog.pg_replication_slots s,
             (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn) here
        WHERE s.slot_type = 'logical' AND s.database = current_database()$sql$,
        CASE WHEN 'failover' = ANY (v_columns) THEN 's.failover' ELSE 'NULL::boolean' END,
        CASE WHEN 'invalidation_reason' = ANY (v_columns) THEN 's.invalidation_reason' ELSE 'NULL::text' END,
        CASE WHEN 'inactive_since' = ANY (v_columns) THEN 's.inactive_since' ELSE 'NULL::timestamptz' END));
END
$view$;

-- ----------------------------------------------------------------------------------------------------------------- links

CREATE OR REPLACE FUNCTION walhook.rule_cdc_partitions(p_table REGCLASS)
RETURNS TABLE (relid REGCLASS, parent REGCLASS, is_leaf BOOLEAN)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- pg_partition_tree would lock each of them, and so wait behind an ALTER TABLE.
    WITH RECURSIVE below (oid, parent) AS (
        SELECT p_table::oid, NULL::oid
        UNION
        SELECT i.inhrelid, i.inhparent FROM below b
        JOIN pg_class c ON c.oid = b.oid AND c.relkind = 'p'
        JOIN pg_inherits i ON i.inhparent = b.oid
    )
    SELECT b.oid::regclass, b.parent::regclass, c.relkind <> 'p' FROM below b JOIN pg_class c ON c.oid = b.oid
$$;
COMMENT ON FUNCTION walhook.rule_cdc_partitions IS 'walhook: a table and all its partitions; takes no lock on any of them';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_table_problem(p_table REGCLASS)
RETURNS TEXT LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- Rows of a child are rows of its parents too, and a published root brings those of its partitions.
    WITH RECURSIVE above (oid) AS (
        SELECT p_table::oid
        UNION
        SELECT i.inhparent FROM above a JOIN pg_inherits i ON i.inhrelid = a.oid
    ), ours AS (
        SELECT o.oid, o.relname FROM pg_class o
        WHERE o.relnamespace = to_regnamespace('walhook') OR o.relnamespace = 'public'::regnamespace AND o.relname IN (
            'rule_cdc_migrations', 'rule_webhooks', 'rule_webhook_secrets', 'rule_webhook_calls', 'rule_webhook_call_history',
            'rule_webhook_links', 'rule_webhook_events', 'rule_nats_config', 'rule_nats_streams',
            'rule_nats_publish_history', 'rule_nats_consumer_stats', 'rule_nats_checkpoints', 'rule_nats_dead_letters',
            'rule_cdc_status', 'rule_cdc_replays', 'rule_cdc_backfill_rows', 'rule_cdc_rule_amendments', 'rule_cdc_server_aliases',
            'rule_cdc_emit_keys', 'rule_webhook_schema_links', 'rule_cdc_identity', 'rule_cdc_put_aside')
    )
    SELECT CASE
        WHEN EXISTS (SELECT FROM ours WHERE oid = p_table)
            THEN 'it is one of walhook''s own tables: linking it would publish secrets, or feed publishing with itself'
        WHEN EXISTS (SELECT FROM ours WHERE oid IN (SELECT a.oid FROM above a))
            THEN 'it is a child or partition of one of walhook''s own tables: linking it would publish secrets, or feed publishing '
                 'with itself'
        WHEN c.relkind = 'p' AND EXISTS (SELECT FROM ours WHERE oid IN (SELECT t.relid FROM walhook.rule_cdc_partitions(p_table) t))
            THEN 'one of walhook''s own tables is a partition of it: linking it would publish secrets, or feed publishing with itself'
        WHEN n.nspname IN ('pg_catalog', 'information_schema') OR n.nspname LIKE 'pg\_toast%' OR c.oid < 16384
            THEN 'it is a system table'
        WHEN c.relkind IN ('v', 'm') THEN 'it is a view: link the tables it reads'
        WHEN c.relkind = 'f' THEN 'it is a foreign table: its changes are not in this server''s WAL'
        WHEN c.relkind NOT IN ('r', 'p') THEN 'it is not a table'
        WHEN c.relpersistence = 't' THEN 'it is a temporary table: its changes are not in the WAL'
        WHEN c.relpersistence = 'u'
            THEN format('it is unlogged: its changes are not in the WAL. ALTER TABLE %s SET LOGGED changes that', p_table)
    END
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = p_table
$$;
COMMENT ON FUNCTION walhook.rule_cdc_table_problem IS 'walhook: why this table can never be linked; NULL if it can';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_replica_identity(p_table REGCLASS)
RETURNS TEXT[] LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE c.relreplident
        WHEN 'f' THEN ARRAY(SELECT a.attname::text FROM pg_attribute a
                            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
        WHEN 'n' THEN NULL
        ELSE (SELECT array_agg(a.attname::text ORDER BY a.attnum)
              FROM pg_index i
              JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
              WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END)
        END
    FROM pg_class c
    WHERE c.oid = p_table
$$;
COMMENT ON FUNCTION walhook.rule_cdc_replica_identity IS
    'walhook: which columns of the old row the WAL contains for an update or delete; NULL if none';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_generated_identity(p_table REGCLASS, p_publication TEXT)
RETURNS TABLE (columns TEXT[], remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_is_18 CONSTANT BOOLEAN := current_setting('server_version_num')::integer >= 180000;
    v_index RECORD;
    v_publishes BOOLEAN := false;
BEGIN
    IF v_is_18 THEN
        v_publishes := coalesce((SELECT to_jsonb(p) ->> 'pubgencols' = 's' FROM pg_publication p
                                 WHERE p.pubname = p_publication || '_changes'), false);
    END IF;
    columns := ARRAY(SELECT a.attname::text FROM pg_attribute a
                     WHERE a.attrelid = p_table AND a.attgenerated <> '' AND NOT (a.attgenerated = 's' AND v_publishes)
                       AND a.attname = ANY (walhook.rule_cdc_replica_identity(p_table))
                     ORDER BY a.attnum);
    -- Before 18 the whole old row is logged, and the generated column is only left out of it.
    IF columns = '{}' OR NOT v_is_18 AND (SELECT relreplident = 'f' FROM pg_class WHERE oid = p_table) THEN
        RETURN;
    END IF;
    IF NOT v_is_18 THEN
        remedy := format('ALTER TABLE %s REPLICA IDENTITY FULL;', p_table);
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT c.relname, i.indisprimary INTO v_index
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = p_table AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
      AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = p_table AND a.attnum = ANY (i.indkey::int2[])
                                                   AND (a.attgenerated <> '' OR NOT a.attnotnull))
    ORDER BY i.indisprimary DESC, c.relname
    LIMIT 1;
    IF FOUND THEN
        remedy := CASE WHEN v_index.indisprimary THEN format('ALTER TABLE %s REPLICA IDENTITY DEFAULT;', p_table)
                       ELSE format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I;', p_table, v_index.relname) END;
    ELSIF NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = p_table AND a.attgenerated = 'v'
                                                   AND a.attname = ANY (columns)) THEN
        remedy := format('ALTER PUBLICATION %I SET (publish_generated_columns = stored);', p_publication || '_changes');
    ELSE
        remedy := format('ALTER TABLE %1$s ADD COLUMN walhook_key BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE; '
                         'ALTER TABLE %1$s REPLICA IDENTITY USING INDEX %2$I;', p_table,
                         left((SELECT relname FROM pg_class WHERE oid = p_table), 47) || '_walhook_key_key');
    END IF;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_generated_identity IS
    'walhook: generated columns of a table''s replica identity that a publication does not send, and a remedy; no row if '
    'there are none. In PostgreSQL 18 and newer the application''s own UPDATE fails because of them; in older versions a '
    'DELETE arrives without them';

-- One of an earlier version has other columns.
DO $drop$
BEGIN
    IF to_regprocedure('walhook.rule_cdc_link_problems(regclass, text[], text, text[], jsonb, text[], boolean)') IS NOT NULL THEN
        DROP FUNCTION walhook.rule_cdc_link_problems(REGCLASS, TEXT[], TEXT, TEXT[], JSONB, TEXT[], BOOLEAN);
    END IF;
END
$drop$;

CREATE OR REPLACE FUNCTION walhook.rule_cdc_link_problems(
    p_table REGCLASS,
    p_operations TEXT[],
    p_subject_template TEXT,
    p_columns TEXT[],
    p_filter JSONB,
    p_when_changed TEXT[],
    p_include_old BOOLEAN,
    p_publication TEXT DEFAULT 'walhook'
) RETURNS TABLE (name TEXT, is_error BOOLEAN, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_columns TEXT[] := ARRAY(SELECT a.attname::text FROM pg_attribute a
                              WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                              ORDER BY a.attnum);
    v_tokens TEXT[] := ARRAY(SELECT DISTINCT t[1] FROM regexp_matches(p_subject_template, '\{([^{}]*)\}', 'g') t
                             WHERE t[1] NOT IN ('schema', 'table', 'op'));
    v_filter_keys TEXT[] := '{}';
    v_needed TEXT[];
    v_name TEXT;
    v_leaf REGCLASS;
    v_part RECORD;
    v_identity TEXT[];
    v_generated RECORD;
    v_full BOOLEAN;
    -- The tables that hold its rows.
    v_leaves REGCLASS[] := ARRAY[p_table];
BEGIN
    is_error := true;
    problem := walhook.rule_cdc_table_problem(p_table);
    IF problem IS NOT NULL THEN
        name := 'table_unfit';
        remedy := CASE (SELECT relpersistence FROM pg_class WHERE oid = p_table AND relkind IN ('r', 'p'))
                      WHEN 'u' THEN format('ALTER TABLE %s SET LOGGED;', p_table)
                      ELSE 'Link another table.' END;
        RETURN NEXT;
        RETURN;
    END IF;
    IF (SELECT relkind = 'p' FROM pg_class WHERE oid = p_table) THEN
        v_leaves := ARRAY(SELECT t.relid FROM walhook.rule_cdc_partitions(p_table) t JOIN pg_class c ON c.oid = t.relid
                          WHERE t.is_leaf AND c.relkind <> 'f' ORDER BY t.relid);
        IF v_leaves = '{}' AND NOT EXISTS (SELECT FROM walhook.rule_cdc_partitions(p_table) t WHERE t.is_leaf) THEN
            v_leaves := ARRAY[p_table];
        END IF;
        FOR v_part IN
            SELECT t.relid, t.parent, c.relkind FROM walhook.rule_cdc_partitions(p_table) t JOIN pg_class c ON c.oid = t.relid
            WHERE t.relid <> p_table AND t.is_leaf AND (c.relkind = 'f' OR c.relpersistence = 'u') ORDER BY t.relid::text
        LOOP
            IF v_part.relkind = 'f' THEN
                name := 'partition_foreign';
                problem := format('its partition %s is a foreign table: changes of it are not in this server''s WAL', v_part.relid);
                remedy := format('ALTER TABLE %s DETACH PARTITION %s;', v_part.parent, v_part.relid);
            ELSE
                name := 'partition_unlogged';
                problem := format('its partition %s is unlogged: changes of it are not in the WAL', v_part.relid);
                remedy := format('ALTER TABLE %s SET LOGGED;', v_part.relid);
            END IF;
            RETURN NEXT;
        END LOOP;
    END IF;

    IF coalesce(cardinality(p_operations), 0) = 0
       OR NOT p_operations <@ '{insert,update,delete,truncate}' OR array_position(p_operations, NULL) IS NOT NULL
    THEN
        name := 'operations';
        problem := format('its operations are %s', coalesce(quote_literal(p_operations::text), 'NULL'));
        remedy := 'Choose from insert, update, delete, truncate: ARRAY[''insert'', ''update''].';
        RETURN NEXT;
        RETURN;
    END IF;

    IF p_filter IS NOT NULL THEN
        IF jsonb_typeof(p_filter) <> 'object' THEN
            name := 'filter_kind';
            problem := format('its filter is a JSON %s', jsonb_typeof(p_filter));
            remedy := 'Write it as an object of columns and values: {"status": "paid"}.';
            RETURN NEXT;
        ELSE
            v_filter_keys := ARRAY(SELECT jsonb_object_keys(p_filter));
        END IF;
    END IF;
    IF cardinality(p_columns) = 0 THEN
        name := 'columns_empty';
        problem := 'its list of columns is empty';
        remedy := 'Leave it NULL for all columns.';
        RETURN NEXT;
    END IF;
    IF cardinality(p_when_changed) = 0 THEN
        name := 'when_changed_empty';
        problem := 'its when_changed is empty';
        remedy := 'Leave it NULL for all updates.';
        RETURN NEXT;
    END IF;
    FOR name, problem, v_name IN
        SELECT CASE place WHEN 'columns' THEN 'columns_missing' ELSE 'column_missing' END,
               format('%s names %s, which the table %s', place, coalesce(quote_literal(c), 'NULL'),
                      CASE WHEN EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = p_table AND a.attname = c
                                                                     AND a.attgenerated <> '')
                           THEN 'generates, and PostgreSQL does not send it' ELSE 'does not have' END), c
        FROM (SELECT 'columns' AS place, unnest(p_columns) AS c
              UNION ALL SELECT 'filter', unnest(v_filter_keys)
              UNION ALL SELECT 'when_changed', unnest(p_when_changed)
              UNION ALL SELECT 'the subject template', unnest(v_tokens)) named
        WHERE c IS NULL OR c <> ALL (v_columns)
    LOOP
        remedy := format('The columns are %s.', array_to_string(v_columns, ', '));
        RETURN NEXT;
    END LOOP;

    IF p_subject_template IS NOT NULL THEN
        v_name := regexp_replace(p_subject_template, '\{[^{}]*\}', 'x', 'g');
        IF v_name ~ '[{}]' THEN
            name := 'template_braces';
            problem := format('its subject template %L has a brace without its pair', p_subject_template);
            remedy := 'Tokens are {schema} {table} {op} and {a_column}.';
            RETURN NEXT;
        ELSIF public.rule_nats_subject_check(v_name) IS NOT NULL THEN
            name := 'template_subject';
            problem := format('its subject template %L is not a subject: %s', p_subject_template,
                              public.rule_nats_subject_check(v_name));
            remedy := 'For example: orders.{op}.{customer_id}';
            RETURN NEXT;
        END IF;
    END IF;

    IF p_operations = '{insert}' THEN
        RETURN;
    END IF;
    -- A row of a partitioned table is logged with the identity of its leaf.
    FOREACH v_leaf IN ARRAY v_leaves LOOP
        v_identity := walhook.rule_cdc_replica_identity(v_leaf);
        v_full := (SELECT relreplident = 'f' FROM pg_class WHERE oid = v_leaf);
        is_error := true;
        IF v_identity IS NULL THEN
            -- Also for insert and truncate: in the publication of changes, the application's own UPDATE would fail.
            name := 'identity_missing';
            problem := format('%s has no replica identity: once it is published, UPDATE and DELETE on it would fail', v_leaf);
            remedy := CASE
                WHEN EXISTS (SELECT FROM pg_index WHERE indrelid = v_leaf AND indisprimary AND indimmediate)
                    THEN format('ALTER TABLE %s REPLICA IDENTITY DEFAULT;', v_leaf)
                ELSE format('ALTER TABLE %s REPLICA IDENTITY FULL; -- or ADD PRIMARY KEY', v_leaf) END;
            RETURN NEXT;
            CONTINUE;
        END IF;
        SELECT g.columns, g.remedy INTO v_generated FROM walhook.rule_cdc_generated_identity(v_leaf, p_publication) g;
        IF FOUND AND current_setting('server_version_num')::integer >= 180000 THEN
            name := 'identity_generated';
            problem := format('the replica identity of %s has the generated column %s, which is not published: once the table is, '
                              'UPDATE and DELETE on it would fail', v_leaf, array_to_string(v_generated.columns, ', '));
            remedy := v_generated.remedy;
            RETURN NEXT;
            CONTINUE;
        ELSIF FOUND AND p_operations && '{update,delete}' THEN
            name := 'identity_generated';
            problem := format('the replica identity of %s has the generated column %s, which is not published: a DELETE arrives '
                              'without it', v_leaf, array_to_string(v_generated.columns, ', '));
            remedy := v_generated.remedy;
            RETURN NEXT;
            CONTINUE;
        END IF;
        CONTINUE WHEN v_full;
        remedy := format('ALTER TABLE %s REPLICA IDENTITY FULL;', v_leaf);
        IF p_when_changed IS NOT NULL AND 'update' = ANY (p_operations) THEN
            name := 'identity_when_changed';
            problem := format('when_changed compares with the old row, and the WAL has the whole old row of %s only with REPLICA IDENTITY FULL',
                              v_leaf);
            RETURN NEXT;
        END IF;
        IF 'delete' = ANY (p_operations) THEN
            v_needed := ARRAY(SELECT c FROM unnest(v_filter_keys || v_tokens) c
                              WHERE c <> ALL (v_identity) AND c = ANY (v_columns) ORDER BY c);
            IF v_needed <> '{}' THEN
                name := 'identity_filter';
                problem := format('filter or subject need %s, but a DELETE on %s has only %s',
                                  array_to_string(v_needed, ', '), v_leaf, array_to_string(v_identity, ', '));
                remedy := format('ALTER TABLE %s REPLICA IDENTITY FULL; -- or link without delete', v_leaf);
                RETURN NEXT;
                remedy := format('ALTER TABLE %s REPLICA IDENTITY FULL;', v_leaf);
            END IF;
        END IF;
        IF p_include_old AND p_operations && '{update,delete}' THEN
            is_error := false;
            name := 'identity_old';
            problem := format('the payload will have only %2$s of the old row of %1$s', v_leaf, array_to_string(v_identity, ', '));
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_link_problems IS
    'walhook: what is wrong with such a link (is_error), or where it does less than it seems to, each with a remedy';

-- A link whose message is a column: what is wrong with its settings whatever its table, then what is wrong with them for this table.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_message_shape(
    p_operations TEXT[],
    p_columns TEXT[],
    p_include_old BOOLEAN,
    p_payload_column TEXT,
    p_message_id_column TEXT,
    p_headers_columns JSONB,
    OUT problem TEXT,
    OUT advice TEXT
) LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name TEXT;
BEGIN
    IF p_payload_column IS NULL THEN
        IF p_message_id_column IS NOT NULL OR p_headers_columns IS NOT NULL THEN
            problem := 'message_id_column and headers_columns are for a link whose message is a column';
            advice := 'Name that column: p_payload_column => ''payload''.';
        END IF;
    ELSIF p_operations IS DISTINCT FROM '{insert}' THEN
        problem := format('its message is the column %s, and only inserts are such messages; its operations are %s',
                          quote_literal(p_payload_column), coalesce(p_operations::text, 'NULL'));
        advice := 'Link inserts alone: p_operations => ''{insert}''.';
    ELSIF p_columns IS NOT NULL OR p_include_old THEN
        problem := format('its message is the column %s, so columns and include_old have nothing to choose from',
                          quote_literal(p_payload_column));
        advice := 'Leave columns NULL and include_old false.';
    ELSIF p_headers_columns IS NOT NULL THEN
        advice := 'Write headers_columns as an object of headers and columns: {"eventType": "type"}.';
        IF jsonb_typeof(p_headers_columns) <> 'object' THEN
            problem := format('its headers_columns are a JSON %s', jsonb_typeof(p_headers_columns));
            RETURN;
        END IF;
        problem := public.rule_nats_headers_problem(p_headers_columns);
        IF problem IS NULL THEN
            SELECT CASE WHEN n.name IN ('traceparent', 'tracestate')
                        THEN format('the header %s is that of p_trace_column', n.name)
                        ELSE format('the header %s is named twice', n.name) END
            INTO problem
            FROM (SELECT lower(k) AS name, count(*) AS many FROM jsonb_object_keys(p_headers_columns) k GROUP BY 1) n
            WHERE n.many > 1 OR n.name IN ('traceparent', 'tracestate') ORDER BY n.name LIMIT 1;
        END IF;
        problem := 'headers_columns: ' || problem;
    END IF;
    IF problem IS NULL THEN
        advice := NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_message_shape IS
    'walhook: why these cannot be the settings of a link whose message is a column, whatever its table, or NULL where they can';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_message_problems(
    p_webhook_id INTEGER,
    p_table REGCLASS,
    p_operations TEXT[],
    p_columns TEXT[],
    p_include_old BOOLEAN,
    p_payload_column TEXT,
    p_message_id_column TEXT,
    p_headers_columns JSONB
) RETURNS TABLE (name TEXT, is_error BOOLEAN, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_columns TEXT[];
    v_format TEXT;
    v_column RECORD;
BEGIN
    IF p_payload_column IS NULL AND p_message_id_column IS NULL AND p_headers_columns IS NULL THEN
        RETURN;
    END IF;
    is_error := true;
    SELECT s.problem, s.advice INTO problem, remedy
    FROM walhook.rule_cdc_message_shape(p_operations, p_columns, p_include_old, p_payload_column, p_message_id_column, p_headers_columns) s;
    IF problem IS NOT NULL THEN
        name := 'message_settings';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT coalesce(w.payload_format, 'webhook') INTO v_format FROM public.rule_webhooks w WHERE w.webhook_id = p_webhook_id;
    IF v_format <> 'data' THEN
        name := 'message_format';
        problem := format('its message is the column %L, which only payload_format data sends as it is; that of its webhook is %s',
                          p_payload_column, v_format);
        remedy := format('UPDATE public.rule_webhooks SET payload_format = ''data'' WHERE webhook_id = %s;', p_webhook_id);
        RETURN NEXT;
    END IF;
    v_columns := ARRAY(SELECT a.attname::text FROM pg_attribute a
                       WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum);
    FOR problem IN
        SELECT format('%s names %L, which the table %s', named.place, named.c,
                      CASE WHEN EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = p_table AND a.attname = named.c
                                                                     AND a.attgenerated <> '')
                           THEN 'generates: it is not sent' ELSE 'has not' END)
        FROM (SELECT 1 AS nr, 'payload_column' AS place, p_payload_column AS c
              UNION ALL SELECT 2, 'message_id_column', p_message_id_column
              UNION ALL SELECT 3, 'headers_columns', h.value FROM jsonb_each_text(coalesce(p_headers_columns, '{}')) h) named
        WHERE named.c <> ALL (v_columns)
        ORDER BY named.nr, named.c
    LOOP
        name := 'message_column';
        remedy := format('The columns are %s.', array_to_string(v_columns, ', '));
        RETURN NEXT;
    END LOOP;
    -- The type below domains, as walhook run reads it.
    WITH RECURSIVE below (oid) AS (
        SELECT a.atttypid FROM pg_attribute a
        WHERE a.attrelid = p_table AND a.attname = p_payload_column AND a.attnum > 0 AND NOT a.attisdropped
        UNION
        SELECT t.typbasetype FROM below b JOIN pg_type t ON t.oid = b.oid AND t.typtype = 'd'
    )
    SELECT format_type(a.atttypid, NULL) AS type_name,
           EXISTS (SELECT FROM below b WHERE b.oid IN ('json'::regtype, 'jsonb'::regtype, 'text'::regtype, 'varchar'::regtype,
                                                       'bytea'::regtype)) AS fits,
           NOT a.attnotnull AND NOT EXISTS (SELECT FROM below b JOIN pg_type t ON t.oid = b.oid AND t.typnotnull) AS is_nullable
    INTO v_column
    FROM pg_attribute a
    WHERE a.attrelid = p_table AND a.attname = p_payload_column AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '';
    IF NOT FOUND THEN
        RETURN;
    ELSIF NOT v_column.fits THEN
        name := 'message_column';
        problem := format('payload_column names %L, whose type is %s', p_payload_column, v_column.type_name);
        remedy := 'A message is a column of type json, jsonb, text, varchar or bytea.';
        RETURN NEXT;
    ELSIF v_column.is_nullable THEN
        is_error := false;
        name := 'message_nullable';
        problem := format('its message is the column %L: of a row in which that is NULL the event becomes a dead letter', p_payload_column);
        remedy := format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL;', p_table, p_payload_column);
        RETURN NEXT;
    END IF;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_message_problems IS
    'walhook: what is wrong with a link whose message is a column (is_error), or may be, each with what to do about it; no row for '
    'any other link';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_link_subjects(
    p_webhook_id INTEGER,
    p_table_schema TEXT,
    p_table_name TEXT,
    p_operations TEXT[],
    p_subject_template TEXT
) RETURNS TEXT[] LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH template (subject) AS MATERIALIZED (
        SELECT coalesce(p_subject_template, w.nats_subject,
                        coalesce(c.subject_prefix, 'webhooks') || '.' || public.rule_nats_subject_token(w.webhook_name))
        FROM public.rule_webhooks w
        LEFT JOIN public.rule_nats_config c ON c.config_id = coalesce(
            w.nats_config_id, (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default'))
        WHERE w.webhook_id = p_webhook_id
    ), table_named (subject) AS MATERIALIZED (
        SELECT CASE WHEN t.subject LIKE '%{%'
                    THEN replace(replace(t.subject, '{schema}', public.rule_nats_subject_token(p_table_schema)),
                                 '{table}', public.rule_nats_subject_token(p_table_name))
                    ELSE t.subject END
        FROM template t
    )
    SELECT array_agg(DISTINCT regexp_replace(replace(t.subject, '{op}', op), '[^.]*\{[^{}]*\}[^.]*', '*', 'g'))
    FROM table_named t
    CROSS JOIN unnest(p_operations) op
$$;
COMMENT ON FUNCTION walhook.rule_cdc_link_subjects IS
    'walhook: the subjects to which a link publishes, with * for a token that comes from a column';

CREATE OR REPLACE FUNCTION public.rule_cdc_publication_place(p_table REGCLASS, p_publication TEXT, p_must BOOLEAN)
RETURNS VOID LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- Publications, and the shard that publishes from them.
    v_shards JSONB := jsonb_build_object(p_publication, 'main');
    v_statements TEXT[];
    v_statement TEXT;
BEGIN
    IF to_regclass('walhook.rule_cdc_shard_names') IS NOT NULL THEN
        v_shards := walhook.rule_cdc_shard_publications(p_publication); -- made by 027
    END IF;
    -- The columns shard are made by 027 too.
    WITH links AS MATERIALIZED (
        SELECT l.operations, coalesce(to_jsonb(l) ->> 'shard', to_jsonb(w) ->> 'shard', 'main') AS shard
        FROM public.rule_webhook_links l
        JOIN public.rule_webhooks w ON w.webhook_id = l.webhook_id
        JOIN pg_class c ON c.relname = l.table_name
        JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = l.table_schema
        WHERE c.oid = p_table
    ), pairs AS (
        SELECT s.key || part AS name, part,
               (SELECT CASE WHEN count(*) = 0 THEN NULL WHEN bool_and(k.operations = '{insert}') THEN '_inserts' ELSE '_changes' END
                FROM links k WHERE k.shard = s.value) AS wanted
        FROM jsonb_each_text(v_shards) s, unnest('{_inserts,_changes}'::text[]) part
    )
    SELECT array_agg(format('ALTER PUBLICATION %I %s TABLE ONLY %s', pair.name,
                            CASE WHEN pair.part = pair.wanted THEN 'ADD' ELSE 'DROP' END, p_table)
                     ORDER BY coalesce(pair.part = pair.wanted, false) DESC, pair.name)
    INTO v_statements
    FROM pairs pair
    WHERE coalesce(pair.part = pair.wanted, false)
          <> EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
                     WHERE p.pubname = pair.name AND r.prrelid = p_table);

    FOREACH v_statement IN ARRAY coalesce(v_statements, '{}') LOOP
        EXECUTE v_statement;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    IF p_must THEN
        RAISE EXCEPTION 'cannot publish %: %', walhook.rule_cdc_sayable(p_table::text), walhook.rule_cdc_sayable(SQLERRM)
            USING ERRCODE = 'insufficient_privilege',
            HINT = walhook.rule_cdc_sayable(format('Let the owner of table and publication, or a superuser, run: %s; then call this again.',
                          array_to_string(v_statements, '; ')));
    ELSE
        RAISE WARNING 'walhook did not change the publication: %', walhook.rule_cdc_sayable(SQLERRM)
            USING HINT = walhook.rule_cdc_sayable(format('Let the owner of table and publication, or a superuser, run: %s;',
                                array_to_string(v_statements, '; ')));
    END IF;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_publication_place IS
    'walhook: puts a table into the publication that its links need, and removes it from the other one. If the caller may '
    'not do that, the message contains the statements';

CREATE OR REPLACE FUNCTION public.rule_cdc_publication_tidy(p_publication TEXT DEFAULT 'walhook')
RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_table REGCLASS;
    v_tidied INTEGER := 0;
BEGIN
    LOCK TABLE public.rule_webhook_links IN SHARE UPDATE EXCLUSIVE MODE;
    FOR v_table IN
        SELECT DISTINCT r.prrelid FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
        WHERE p.pubname IN (p_publication || '_inserts', p_publication || '_changes')
          AND walhook.rule_cdc_table_problem(r.prrelid) IS NULL
          AND NOT EXISTS (SELECT FROM public.rule_webhook_links l
                          JOIN pg_namespace n ON n.nspname = l.table_schema
                          JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name
                          WHERE c.oid = r.prrelid)
    LOOP
        PERFORM public.rule_cdc_publication_place(v_table, p_publication, false);
        v_tidied := v_tidied + 1;
    END LOOP;
    RETURN v_tidied;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_publication_tidy IS
    'walhook: removes tables without a link from the publications (somebody has deleted their webhook), and returns how '
    'many';

-- Those of an earlier version lack the last parameters: beside these no call could be told which one it means.
DO $drop$
DECLARE
    v_function REGPROCEDURE;
BEGIN
    FOREACH v_function IN ARRAY ARRAY[
        to_regprocedure('public.rule_webhook_link_table(integer, regclass, text[], text, text[], jsonb, text[], boolean, text)'),
        to_regprocedure('public.rule_webhook_link_table(text, regclass, text[], text, text[], jsonb, text[], boolean, text)'),
        to_regprocedure('public.rule_webhook_link_table(integer, regclass, text[], text, text[], jsonb, text[], boolean, text, text)'),
        to_regprocedure('public.rule_webhook_link_table(text, regclass, text[], text, text[], jsonb, text[], boolean, text, text)'),
        to_regprocedure('public.rule_webhook_link_table(integer, regclass, text[], text, text[], jsonb, text[], boolean, text, text, '
                        'text, text, jsonb)'),
        to_regprocedure('public.rule_webhook_link_table(text, regclass, text[], text, text[], jsonb, text[], boolean, text, text, '
                        'text, text, jsonb)')] LOOP
        IF obj_description(v_function, 'pg_proc') LIKE 'walhook:%' THEN
            INSERT INTO pg_temp.walhook_grants
            SELECT p.proname, pg_get_userbyid(a.grantee)
            FROM pg_proc p, aclexplode(p.proacl) a WHERE p.oid = v_function AND a.grantee NOT IN (0, p.proowner);
            EXECUTE format('DROP FUNCTION %s', v_function);
        END IF;
    END LOOP;
END
$drop$;

CREATE OR REPLACE FUNCTION public.rule_webhook_link_table(
    p_webhook INTEGER,
    p_table REGCLASS,
    p_operations TEXT[] DEFAULT '{insert,update,delete}',
    p_subject_template TEXT DEFAULT NULL,
    p_columns TEXT[] DEFAULT NULL,
    p_filter JSONB DEFAULT NULL,
    p_when_changed TEXT[] DEFAULT NULL,
    p_include_old BOOLEAN DEFAULT false,
    p_publication TEXT DEFAULT 'walhook',
    p_trace_column TEXT DEFAULT NULL,
    p_payload_column TEXT DEFAULT NULL,
    p_message_id_column TEXT DEFAULT NULL,
    p_headers_columns JSONB DEFAULT NULL,
    p_rename JSONB DEFAULT NULL,
    p_mask JSONB DEFAULT NULL
) RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_webhook RECORD;
    v_schema TEXT;
    v_table TEXT;
    -- One order and no doubles, so that '{insert}' can be told by comparing.
    v_operations TEXT[] := ARRAY(SELECT o FROM unnest('{insert,update,delete,truncate}'::text[]) o WHERE o = ANY (p_operations));
    v_problem RECORD;
    v_other TEXT;
    v_subject TEXT;
    v_streams TEXT[];
    v_link_id INTEGER;
    v_mask JSONB;
BEGIN
    SELECT w.webhook_id, w.webhook_name, w.enabled, w.nats_enabled, w.nats_config_id, c.config_name, c.jetstream_enabled
    INTO v_webhook
    FROM public.rule_webhooks w
    LEFT JOIN public.rule_nats_config c ON c.config_id = coalesce(
        w.nats_config_id, (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default'))
    WHERE w.webhook_id = p_webhook;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Webhook % not found', coalesce(p_webhook::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_webhook_list(); lists the webhooks.';
    END IF;
    SELECT n.nspname, c.relname INTO v_schema, v_table
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_table;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'cannot link webhook %: there is no table %', walhook.rule_cdc_quoted(v_webhook.webhook_name),
            walhook.rule_cdc_sayable(coalesce(p_table::text, 'NULL')) USING ERRCODE = 'undefined_table';
    END IF;
    -- A mask stays until it is replaced or removed: linking again for another reason must not open what was closed.
    v_mask := coalesce(nullif(p_mask, 'null'), (SELECT l.mask FROM public.rule_webhook_links l
                       WHERE l.webhook_id = p_webhook AND l.table_schema = v_schema AND l.table_name = v_table));

    FOR v_problem IN
        SELECT * FROM walhook.rule_cdc_link_problems(p_table, p_operations, p_subject_template, p_columns, p_filter,
                                                    p_when_changed, coalesce(p_include_old, false), p_publication)
        UNION ALL
        SELECT * FROM walhook.rule_cdc_message_problems(v_webhook.webhook_id, p_table, v_operations, p_columns, coalesce(p_include_old, false),
                                                       p_payload_column, p_message_id_column, p_headers_columns)
        UNION ALL
        SELECT * FROM walhook.rule_cdc_mask_problems(p_table, p_columns, p_subject_template, p_trace_column, p_payload_column, p_rename,
                                                    nullif(v_mask, '{}')) -- made by 022
    LOOP
        IF v_problem.is_error THEN
            RAISE EXCEPTION 'cannot link % to webhook %: %', walhook.rule_cdc_sayable(p_table::text),
                walhook.rule_cdc_quoted(v_webhook.webhook_name), walhook.rule_cdc_sayable(v_problem.problem)
                USING ERRCODE = 'invalid_parameter_value', HINT = walhook.rule_cdc_sayable(v_problem.remedy);
        END IF;
        RAISE WARNING 'link of % to webhook %: %', walhook.rule_cdc_sayable(p_table::text), walhook.rule_cdc_quoted(v_webhook.webhook_name),
            walhook.rule_cdc_sayable(v_problem.problem)
            USING HINT = walhook.rule_cdc_sayable(v_problem.remedy);
    END LOOP;
    IF p_trace_column IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = p_table AND a.attname = p_trace_column AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '')
    THEN
        RAISE EXCEPTION 'cannot link % to webhook %: p_trace_column: it has no column % that is published',
            walhook.rule_cdc_sayable(p_table::text),
            walhook.rule_cdc_quoted(v_webhook.webhook_name), walhook.rule_cdc_quoted(left(p_trace_column, 100))
            USING ERRCODE = 'invalid_parameter_value',
            HINT = walhook.rule_cdc_sayable(
                format('ALTER TABLE %s ADD COLUMN %I text DEFAULT current_setting(''walhook.traceparent'', true); makes one that '
                          'takes the trace of the session.', p_table, left(p_trace_column, 63)));
    END IF;
    IF NOT has_table_privilege(p_table, 'SELECT') THEN
        RAISE EXCEPTION 'cannot link %: % may not read it', walhook.rule_cdc_sayable(p_table::text), walhook.rule_cdc_sayable(current_user)
            USING ERRCODE = 'insufficient_privilege',
            HINT = walhook.rule_cdc_sayable(format('GRANT SELECT ON %s TO %I; or let its owner link it.', p_table, current_user));
    END IF;
    v_other := walhook.rule_cdc_publication_problem(p_publication);
    IF v_other IS NOT NULL THEN
        RAISE EXCEPTION 'cannot link %: %', walhook.rule_cdc_sayable(p_table::text), walhook.rule_cdc_sayable(v_other)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = walhook.rule_cdc_sayable(format('SELECT rule_cdc_publication_create(%L); makes it.', p_publication));
    END IF;

    -- Two links made at once must agree on where the table belongs. Only roles that may write links can take this lock, and it
    -- stops neither readers nor writers.
    LOCK TABLE public.rule_webhook_links IN SHARE UPDATE EXCLUSIVE MODE;

    -- With publish_via_partition_root a published root swallows the changes of its published partitions.
    SELECT l.table_schema || '.' || l.table_name INTO v_other
    FROM (SELECT relid FROM pg_partition_ancestors(p_table) relid UNION SELECT relid FROM pg_partition_tree(p_table)) t
    JOIN pg_class c ON c.oid = t.relid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN public.rule_webhook_links l ON l.table_schema = n.nspname AND l.table_name = c.relname
    WHERE c.oid <> p_table
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'cannot link %: % is linked, and PostgreSQL sends the changes of a partition for one table only',
            walhook.rule_cdc_sayable(p_table::text), walhook.rule_cdc_sayable(v_other)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Link the partitioned table or its partitions, not both.';
    END IF;

    -- Columns and mask change together: the trigger made by 029 must not see the ones without the other.
    IF nullif(p_mask, 'null') IS NOT NULL THEN
        PERFORM set_config('walhook.link_changes', 'mask', true);
    END IF;
    INSERT INTO public.rule_webhook_links AS l
        (webhook_id, table_schema, table_name, operations, subject_template, columns, filter, when_changed, include_old,
         trace_column, payload_column, message_id_column, headers_columns, rename)
    VALUES (v_webhook.webhook_id, v_schema, v_table, v_operations, p_subject_template, p_columns, p_filter, p_when_changed,
            coalesce(p_include_old, false), p_trace_column, p_payload_column, p_message_id_column, p_headers_columns, p_rename)
    ON CONFLICT (webhook_id, table_schema, table_name) DO UPDATE SET
        operations = excluded.operations,
        subject_template = excluded.subject_template,
        columns = excluded.columns,
        filter = excluded.filter,
        when_changed = excluded.when_changed,
        include_old = excluded.include_old,
        trace_column = excluded.trace_column,
        payload_column = excluded.payload_column,
        message_id_column = excluded.message_id_column,
        headers_columns = excluded.headers_columns,
        rename = excluded.rename,
        enabled = true
    RETURNING l.link_id INTO v_link_id;
    -- A statement that writes it sets it for the columns that the table has now, so it is not written where it stays.
    IF nullif(p_mask, 'null') IS NOT NULL THEN
        PERFORM set_config('walhook.link_changes', '', true);
        UPDATE public.rule_webhook_links l SET mask = nullif(p_mask, '{}') WHERE l.link_id = v_link_id;
    END IF;
    PERFORM public.rule_cdc_publication_place(p_table, p_publication, true);

    IF NOT coalesce(v_webhook.nats_enabled, false) THEN
        RAISE NOTICE 'webhook % does not publish to NATS yet', walhook.rule_cdc_quoted(v_webhook.webhook_name)
            USING HINT = format('SELECT rule_webhook_enable_nats(%s); makes it publish there.', v_webhook.webhook_id);
    ELSIF coalesce(v_webhook.jetstream_enabled, true) THEN
        FOREACH v_subject IN ARRAY walhook.rule_cdc_link_subjects(v_webhook.webhook_id, v_schema, v_table, v_operations,
                                                                 p_subject_template)
        LOOP
            v_streams := walhook.rule_nats_stream_for(v_webhook.nats_config_id, v_subject);
            IF v_streams = '{}' THEN
                RAISE NOTICE 'no stream of NATS config % takes the subject % yet', walhook.rule_cdc_quoted(v_webhook.config_name),
                    walhook.rule_cdc_quoted(v_subject)
                    USING HINT = walhook.rule_cdc_sayable(walhook.rule_nats_take_hint(v_webhook.nats_config_id, v_subject));
            END IF;
        END LOOP;
    END IF;
    RETURN v_link_id;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_link_table(INTEGER, REGCLASS, TEXT[], TEXT, TEXT[], JSONB, TEXT[], BOOLEAN, TEXT, TEXT, TEXT,
                                                   TEXT, JSONB, JSONB, JSONB) IS
    'walhook: links a table to a webhook: its changes are published from this commit on. Returns the link''s id. If the '
    'link exists, it is changed; its mask stays unless p_mask is given, and ''{}'' removes it';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_webhook_id(p_webhook TEXT)
RETURNS INTEGER LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_webhook_id INTEGER;
BEGIN
    SELECT webhook_id INTO v_webhook_id FROM public.rule_webhooks WHERE webhook_name = p_webhook;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Webhook % not found', coalesce(walhook.rule_cdc_quoted(p_webhook), 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_webhook_list(); lists the webhooks.';
    END IF;
    RETURN v_webhook_id;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_webhook_id IS
    'walhook: the id of the webhook with this name; raises an error if there is none';

CREATE OR REPLACE FUNCTION public.rule_webhook_link_table(
    p_webhook TEXT,
    p_table REGCLASS,
    p_operations TEXT[] DEFAULT '{insert,update,delete}',
    p_subject_template TEXT DEFAULT NULL,
    p_columns TEXT[] DEFAULT NULL,
    p_filter JSONB DEFAULT NULL,
    p_when_changed TEXT[] DEFAULT NULL,
    p_include_old BOOLEAN DEFAULT false,
    p_publication TEXT DEFAULT 'walhook',
    p_trace_column TEXT DEFAULT NULL,
    p_payload_column TEXT DEFAULT NULL,
    p_message_id_column TEXT DEFAULT NULL,
    p_headers_columns JSONB DEFAULT NULL,
    p_rename JSONB DEFAULT NULL,
    p_mask JSONB DEFAULT NULL
) RETURNS INTEGER LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT public.rule_webhook_link_table(walhook.rule_cdc_webhook_id(p_webhook), p_table, p_operations, p_subject_template,
                                          p_columns, p_filter, p_when_changed, p_include_old, p_publication, p_trace_column,
                                          p_payload_column, p_message_id_column, p_headers_columns, p_rename, p_mask)
$$;
COMMENT ON FUNCTION public.rule_webhook_link_table(TEXT, REGCLASS, TEXT[], TEXT, TEXT[], JSONB, TEXT[], BOOLEAN, TEXT, TEXT, TEXT, TEXT,
                                                   JSONB, JSONB, JSONB) IS
    'walhook: the same, with the webhook''s name';

CREATE OR REPLACE FUNCTION public.rule_webhook_unlink_table(
    p_webhook INTEGER,
    p_table REGCLASS,
    p_publication TEXT DEFAULT 'walhook'
) RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_publication IS NULL THEN
        RAISE EXCEPTION 'cannot unlink %: the name of the publications is NULL', walhook.rule_cdc_sayable(p_table::text)
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Leave p_publication out, or give the name of the publications.';
    END IF;
    LOCK TABLE public.rule_webhook_links IN SHARE UPDATE EXCLUSIVE MODE;
    DELETE FROM public.rule_webhook_links l
    USING pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = p_table AND l.webhook_id = p_webhook AND l.table_schema = n.nspname AND l.table_name = c.relname;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM public.rule_cdc_publication_place(p_table, p_publication, false);
    PERFORM walhook.rule_cdc_schema_exclude(p_webhook, n.nspname, c.relname) -- made by 022
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_table;
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_unlink_table(INTEGER, REGCLASS, TEXT) IS
    'walhook: removes a link at this commit. With its last link the table also leaves the publication. Returns false if '
    'there was no link';

CREATE OR REPLACE FUNCTION public.rule_webhook_unlink_table(
    p_webhook TEXT,
    p_table REGCLASS,
    p_publication TEXT DEFAULT 'walhook'
) RETURNS BOOLEAN LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT public.rule_webhook_unlink_table(walhook.rule_cdc_webhook_id(p_webhook), p_table, p_publication)
$$;
COMMENT ON FUNCTION public.rule_webhook_unlink_table(TEXT, REGCLASS, TEXT) IS 'walhook: the same, with the webhook''s name';

CREATE OR REPLACE FUNCTION public.rule_webhook_links_check(p_publication TEXT DEFAULT 'walhook')
RETURNS TABLE (link_id INTEGER, webhook_id INTEGER, webhook_name TEXT, table_name TEXT, operations TEXT[], subjects TEXT[],
               streams TEXT[], publication TEXT, ok BOOLEAN, problems TEXT[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l RECORD;
    -- What the publications lack concerns every link.
    v_all CONSTANT TEXT[] := ARRAY(
        SELECT f.problem || coalesce(': ' || f.remedy, '') FROM walhook.rule_cdc_check_publications(p_publication) f
        WHERE f.severity IN ('fatal', 'error'));
BEGIN
    FOR l IN
        SELECT k.*, w.webhook_name AS name, w.nats_enabled, w.nats_config_id, w.publish_mode, c.config_name,
               c.enabled AS config_enabled, c.jetstream_enabled
        FROM public.rule_webhook_links k
        JOIN public.rule_webhooks w ON w.webhook_id = k.webhook_id
        LEFT JOIN public.rule_nats_config c ON c.config_id = coalesce(
            w.nats_config_id, (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default'))
        ORDER BY k.link_id
    LOOP
        link_id := l.link_id;
        webhook_id := l.webhook_id;
        webhook_name := l.name;
        table_name := format('%I.%I', l.table_schema, l.table_name);
        operations := l.operations;
        subjects := walhook.rule_cdc_link_subjects(l.webhook_id, l.table_schema, l.table_name, l.operations, l.subject_template);
        streams := '{}';
        IF coalesce(l.nats_enabled, false) AND coalesce(l.publish_mode, 'queue') IN ('nats', 'both') AND l.config_name IS NOT NULL
           AND coalesce(l.config_enabled, true) AND coalesce(l.jetstream_enabled, true)
        THEN
            streams := ARRAY(SELECT DISTINCT s FROM unnest(subjects) subject,
                                    unnest(walhook.rule_nats_stream_for(l.nats_config_id, subject)) s ORDER BY s);
        END IF;
        SELECT string_agg(p.pubname, ', ' ORDER BY p.pubname) INTO publication
        FROM pg_publication p
        JOIN pg_publication_rel r ON r.prpubid = p.oid
        JOIN pg_class c ON c.oid = r.prrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = l.table_schema AND c.relname = l.table_name
          AND p.pubname IN (p_publication || '_inserts', p_publication || '_changes');
        problems := ARRAY(SELECT CASE f.severity WHEN 'note' THEN 'note: ' ELSE '' END || f.problem || coalesce(': ' || f.remedy, '')
                          FROM walhook.rule_cdc_check_links(p_publication, l.link_id) f) || v_all;
        ok := NOT EXISTS (SELECT FROM unnest(problems) p WHERE p NOT LIKE 'note: %');
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_links_check IS
    'walhook: for each link, to which subjects it publishes (* for a token that comes from a column), which streams take '
    'them, and what is wrong';

-- ------------------------------------------------------------------------------------------------------------ publishing

DROP FUNCTION IF EXISTS public.rule_nats_headers_problem(JSONB);
CREATE OR REPLACE FUNCTION public.rule_nats_headers_problem(p_headers JSONB, p_payload_format TEXT DEFAULT NULL)
RETURNS TEXT LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name TEXT;
    v_value JSONB;
BEGIN
    IF p_headers IS NULL OR p_headers = '{}' THEN
        RETURN NULL;
    END IF;
    IF jsonb_typeof(p_headers) <> 'object' THEN
        RETURN format('headers are a JSON %s, not an object of strings', jsonb_typeof(p_headers));
    END IF;
    FOR v_name, v_value IN SELECT key, value FROM jsonb_each(p_headers) LOOP
        IF v_name !~ '^[!-9;-~]+$' THEN
            RETURN format('%L is not a header name, which is visible ASCII without a colon', left(v_name, 200));
        ELSIF v_name ~* '^(nats|walhook)-' THEN
            RETURN format('the header %s is reserved', v_name);
        ELSIF p_payload_format LIKE 'cloudevents%' AND v_name ~* '^(ce-|content-type$)' THEN
            RETURN format('the header %s is reserved: the payload format is %s', v_name, p_payload_format);
        ELSIF jsonb_typeof(v_value) <> 'string' THEN
            RETURN format('the header %s is a JSON %s, not a string', v_name, jsonb_typeof(v_value));
        ELSIF v_value #>> '{}' ~ '[\x01-\x08\x0a-\x1f\x7f]' THEN
            RETURN format('the header %s has a control character in its value', v_name);
        END IF;
    END LOOP;
    IF octet_length(p_headers::text) > 8192 THEN
        RETURN format('headers have %s bytes, more than 8192', octet_length(p_headers::text));
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION public.rule_nats_headers_problem IS 'walhook: why these cannot be the headers of a message; NULL if they can';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_is_traceparent(p_value TEXT)
RETURNS BOOLEAN LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT octet_length(p_value) <= 256
       AND (p_value ~ '^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$'
            OR p_value ~ '^(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}-[!-~]*$')
$$;
COMMENT ON FUNCTION walhook.rule_cdc_is_traceparent IS
    'walhook: whether this text is a traceparent by the grammar of https://www.w3.org/TR/trace-context/; NULL for NULL';

DROP FUNCTION IF EXISTS walhook.rule_webhook_put(INTEGER, JSONB, TEXT, TEXT, JSONB, BIGINT, TEXT);
-- One look at the webhook decides all of a call, so that a change of it in the meantime is seen whole or not at all.
-- Each call of an application pays for this, so: no query where there are no headers; no second look-up of the default
-- configuration (the table has few rows, and a scan of it costs less than an index's); answers from text, for half the price of
-- jsonb_build_object.
CREATE OR REPLACE FUNCTION walhook.rule_webhook_put(
    p_webhook_id INTEGER,
    p_payload JSONB,
    p_mode TEXT,
    p_message_id TEXT,
    p_headers JSONB,
    p_rule_execution_id BIGINT,
    p_triggered_by TEXT,
    p_subject_tokens TEXT[] DEFAULT NULL
) RETURNS JSONB LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_webhook RECORD;
    v_mode TEXT;
    v_subject TEXT;
    v_problem TEXT;
    v_trace TEXT;
    v_tokens TEXT;
    v_count INTEGER;
    v_call_id INTEGER;
    v_event_id BIGINT;
    v_queue TEXT;
    v_nats TEXT;
    v_is_own BOOLEAN := false;
    v_is_trace BOOLEAN;
BEGIN
    SELECT w.webhook_name, w.enabled, w.nats_enabled, w.nats_subject, w.publish_mode, w.payload_format, c.config_name, c.subject_prefix,
           c.enabled AS config_enabled
    INTO v_webhook
    FROM public.rule_webhooks w
    LEFT JOIN public.rule_nats_config c
        ON c.config_id = w.nats_config_id OR w.nats_config_id IS NULL AND c.config_name = 'default'
    WHERE w.webhook_id = p_webhook_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Webhook % not found', coalesce(p_webhook_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_webhook_list(); lists the webhooks.';
    END IF;
    v_mode := CASE p_mode WHEN 'emit' THEN 'nats' ELSE coalesce(p_mode, v_webhook.publish_mode, 'queue') END;
    IF v_mode NOT IN ('queue', 'nats', 'both') THEN
        RAISE EXCEPTION 'Webhook % (%): Invalid publish_mode %', p_webhook_id, walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200)),
            walhook.rule_cdc_quoted(v_mode)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = format('publish_mode must be queue, nats or both: SELECT rule_webhook_enable_nats(%s, NULL, ''nats'');', p_webhook_id);
    END IF;
    IF p_payload IS NULL THEN
        RAISE EXCEPTION 'Webhook % (%): the payload is NULL', p_webhook_id, walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200))
            USING ERRCODE = 'null_value_not_allowed', HINT = 'JSON''s own null is allowed: ''null''::jsonb.';
    END IF;

    IF v_mode <> 'queue' THEN
        IF NOT coalesce(v_webhook.enabled, false) THEN
            RAISE EXCEPTION 'Webhook % (%) is disabled', p_webhook_id, walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200))
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = format('SELECT rule_webhook_update(%s, p_enabled => true); enables it.', p_webhook_id);
        END IF;
        IF NOT coalesce(v_webhook.nats_enabled, false) THEN
            RAISE EXCEPTION 'Webhook % (%) is not enabled for NATS', p_webhook_id,
                walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200))
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = format('SELECT rule_webhook_enable_nats(%s); enables it.', p_webhook_id);
        END IF;
        IF v_webhook.config_name IS NULL THEN
            RAISE EXCEPTION 'Webhook % (%) has no NATS configuration', p_webhook_id,
                walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200))
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'SELECT rule_nats_configure(''default'', ''nats://host:4222''); makes the default one.';
        END IF;
        IF NOT coalesce(v_webhook.config_enabled, true) THEN
            RAISE EXCEPTION 'Webhook % (%): its NATS config % is disabled', p_webhook_id,
                walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200)),
                walhook.rule_cdc_quoted(v_webhook.config_name)
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = walhook.rule_cdc_sayable(
                    format('UPDATE rule_nats_config SET enabled = true WHERE config_name = %L; enables it.', v_webhook.config_name));
        END IF;
        v_subject := v_webhook.nats_subject;
        IF v_subject IS NULL OR v_subject = '' THEN
            v_subject := coalesce(nullif(v_webhook.subject_prefix, ''), 'webhooks') || '.'
                         || public.rule_nats_subject_token(v_webhook.webhook_name);
        END IF;
        -- Most subjects show at a glance that they are ones.
        IF octet_length(v_subject) > 1024 OR v_subject !~ '^[A-Za-z0-9_%-]+(\.[A-Za-z0-9_%-]+)*$' THEN
            v_problem := public.rule_nats_subject_check(v_subject);
        END IF;
        IF v_problem IS NOT NULL THEN
            RAISE EXCEPTION 'Webhook % (%): cannot publish to the subject %: %', p_webhook_id,
                walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200)),
                walhook.rule_cdc_quoted(v_subject), walhook.rule_cdc_sayable(v_problem)
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = format('SELECT rule_webhook_enable_nats(%s, ''a.subject''); sets another.', p_webhook_id);
        END IF;
        IF p_subject_tokens IS NOT NULL THEN
            -- A NULL or empty one is no token, and an array of several dimensions says nothing about their order.
            IF cardinality(p_subject_tokens) = 0 OR array_ndims(p_subject_tokens) > 1 OR p_subject_tokens && ARRAY['']
               OR array_position(p_subject_tokens, NULL) IS NOT NULL THEN
                RAISE EXCEPTION 'Webhook % (%): cannot append the subject tokens %', p_webhook_id,
                    walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200)), walhook.rule_cdc_quoted(left(p_subject_tokens::text, 200))
                    USING ERRCODE = 'invalid_parameter_value',
                    HINT = 'Give texts that are neither NULL nor empty, ARRAY[''created'', ''42''], or NULL for none.';
            END IF;
            SELECT '.' || string_agg(public.rule_nats_subject_token(t.token), '.' ORDER BY t.place) INTO v_tokens
            FROM unnest(p_subject_tokens) WITH ORDINALITY t (token, place);
            v_count := octet_length(v_subject) + octet_length(v_tokens);
            IF v_count > 1024 THEN
                RAISE EXCEPTION 'Webhook % (%): its subject with these tokens has % bytes, at most 1024 are allowed', p_webhook_id,
                    walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200)), v_count
                    USING ERRCODE = 'invalid_parameter_value', HINT = 'Put the data into the payload, and a short name into the subject.';
            END IF;
        END IF;
        IF p_message_id = '' OR octet_length(p_message_id) > 512 OR p_message_id ~ '[\x01-\x1f\x7f]|^ | $' THEN
            RAISE EXCEPTION 'Webhook % (%): cannot use % as message id', p_webhook_id,
                walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200)),
                walhook.rule_cdc_quoted(left(p_message_id, 100))
                USING ERRCODE = 'invalid_parameter_value',
                HINT = 'A message id has 1 to 512 bytes, no control characters, and no space at its ends.';
        END IF;
        -- The trace of the call, or else that of the session: passed on where it is one, and never a reason to refuse a call.
        IF p_headers IS NULL THEN
            v_trace := nullif(current_setting('walhook.traceparent', true), '');
        ELSIF jsonb_typeof(p_headers) = 'object' THEN
            SELECT coalesce(h.value #>> '{}', '') INTO v_trace
            FROM jsonb_each(p_headers) h WHERE lower(h.key) = 'traceparent' ORDER BY 1 LIMIT 1;
            v_is_own := FOUND;
            IF NOT v_is_own THEN
                v_trace := nullif(current_setting('walhook.traceparent', true), '');
            END IF;
        END IF;
        IF v_trace IS NOT NULL THEN
            v_is_trace := walhook.rule_cdc_is_traceparent(v_trace);
            IF v_is_trace AND NOT v_is_own THEN
                p_headers := coalesce(p_headers, '{}') || jsonb_build_object('traceparent', v_trace);
            ELSIF NOT v_is_trace AND v_is_own THEN
                SELECT nullif(coalesce(jsonb_object_agg(h.key, h.value), '{}'), '{}') INTO p_headers
                FROM jsonb_each(p_headers) h WHERE lower(h.key) NOT IN ('traceparent', 'tracestate');
            END IF;
            IF NOT v_is_trace THEN
                RAISE NOTICE 'Webhook % (%): % is not a traceparent, so the event has no trace', p_webhook_id,
                    walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200)), walhook.rule_cdc_quoted(left(v_trace, 100))
                    USING HINT = 'A traceparent is 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, in lower case.';
            END IF;
        END IF;
        IF p_headers IS NOT NULL THEN
            v_problem := public.rule_nats_headers_problem(p_headers, v_webhook.payload_format);
        END IF;
        IF v_problem IS NOT NULL THEN
            RAISE EXCEPTION 'Webhook % (%): %', p_webhook_id, walhook.rule_cdc_sayable(left(v_webhook.webhook_name, 200)),
                walhook.rule_cdc_sayable(v_problem)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Write headers as {"Name": "value"}.';
        END IF;
        IF p_mode = 'emit' THEN
            RETURN jsonb_strip_nulls(jsonb_build_object(
                'tokens', v_tokens, 'message_id', p_message_id, 'headers', p_headers, 'rule_execution_id', p_rule_execution_id,
                'triggered_by', coalesce(p_triggered_by, nullif(current_setting('role', true), 'none'), session_user)));
        END IF;
        INSERT INTO public.rule_webhook_events
            (webhook_id, payload, subject, message_id, headers, rule_execution_id, triggered_by)
        VALUES (p_webhook_id, p_payload, v_subject, p_message_id, p_headers, p_rule_execution_id,
                coalesce(p_triggered_by, nullif(current_setting('role', true), 'none'), session_user))
        RETURNING event_id INTO v_event_id;
        v_nats := '{"success": true, "status": "enqueued", "event_id": ' || v_event_id || ', "subject": ' || to_json(v_subject)
                  || ', "message_id": ' || coalesce(to_json(p_message_id)::text, 'null') || '}';
        IF p_mode IS NOT NULL THEN
            RETURN v_nats::jsonb;
        END IF;
    END IF;
    IF v_mode <> 'nats' THEN
        v_call_id := public.rule_webhook_enqueue(p_webhook_id, p_payload);
        v_queue := '{"success": true, "status": "enqueued", "call_id": ' || coalesce(v_call_id::text, 'null') || '}';
    END IF;
    RETURN ('{"success": true, "status": "enqueued", "webhook_id": ' || p_webhook_id || ', "publish_mode": "' || v_mode || '"'
            || coalesce(', "queue": ' || v_queue, '') || coalesce(', "nats": ' || v_nats, '') || '}')::jsonb;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_put IS
    'walhook: the common part of the functions that call a webhook. In mode nats it makes the event only; in mode emit nothing: it '
    'returns what rule_webhook_emit has to write; in mode NULL it follows the webhook''s publish_mode';

-- These run with their owner's rights, so that an application needs EXECUTE on them and nothing else. The caller is
-- therefore not current_user: it is the role he has SET, else the one he logged in as.
--
-- Ordinary calls (no headers, no trace of the session, a subject and a message id of plain characters, nothing disabled) are answered
-- here, by as few statements as can be: each costs the caller 4 to 8 microseconds, and the call of rule_webhook_put with its
-- search_path as much. All other calls, and all that are refused, go to rule_webhook_put, which knows every rule and says why.

CREATE OR REPLACE FUNCTION public.rule_webhook_publish_nats(
    webhook_id INTEGER,
    payload JSONB,
    message_id TEXT DEFAULT NULL,
    headers JSONB DEFAULT NULL,
    rule_execution_id BIGINT DEFAULT NULL,
    triggered_by TEXT DEFAULT NULL
) RETURNS JSONB LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_caller TEXT;
    v_event_id BIGINT;
    v_subject TEXT;
BEGIN
    IF payload IS NOT NULL AND headers IS NULL AND coalesce(current_setting('walhook.traceparent', true), '') = ''
       AND (message_id IS NULL OR octet_length(message_id) <= 512 AND message_id ~ '^[A-Za-z0-9_.:/-]+$') THEN
        v_caller := coalesce(triggered_by, nullif(current_setting('role', true), 'none'), session_user);
        INSERT INTO public.rule_webhook_events AS e (webhook_id, payload, subject, message_id, rule_execution_id, triggered_by)
        SELECT w.webhook_id, rule_webhook_publish_nats.payload, w.nats_subject, rule_webhook_publish_nats.message_id,
               rule_webhook_publish_nats.rule_execution_id, v_caller
        FROM public.rule_webhooks w JOIN public.rule_nats_config c ON c.config_id = w.nats_config_id
        WHERE w.webhook_id = rule_webhook_publish_nats.webhook_id AND w.enabled AND w.nats_enabled AND c.enabled IS NOT FALSE
          AND octet_length(w.nats_subject) <= 1024 AND w.nats_subject ~ '^[A-Za-z0-9_%-]+([.][A-Za-z0-9_%-]+)*$'
        RETURNING e.event_id, e.subject INTO v_event_id, v_subject;
        IF v_event_id IS NOT NULL THEN
            RETURN ('{"success": true, "status": "enqueued", "event_id": ' || v_event_id || ', "subject": "' || v_subject
                    || '", "message_id": ' || coalesce('"' || message_id || '"', 'null') || '}')::jsonb;
        END IF;
    END IF;
    RETURN walhook.rule_webhook_put(webhook_id, payload, 'nats', message_id, headers, rule_execution_id, triggered_by);
END
$$;
COMMENT ON FUNCTION public.rule_webhook_publish_nats IS
    'walhook: makes an event for NATS in this transaction and returns at once; walhook publishes it after the commit. '
    'rule_nats_event_status says what became of it. If message_id is NULL, walhook makes one from the position in the WAL';

CREATE OR REPLACE FUNCTION public.rule_webhook_call_unified(
    webhook_id INTEGER,
    payload JSONB,
    message_id TEXT DEFAULT NULL,
    headers JSONB DEFAULT NULL,
    rule_execution_id BIGINT DEFAULT NULL,
    triggered_by TEXT DEFAULT NULL
) RETURNS JSONB LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_mode TEXT;
    v_subject TEXT;
    v_is_ready BOOLEAN;
    v_caller TEXT;
    v_event_id BIGINT;
    v_queue TEXT := '';
BEGIN
    IF payload IS NOT NULL AND headers IS NULL AND coalesce(current_setting('walhook.traceparent', true), '') = ''
       AND (message_id IS NULL OR octet_length(message_id) <= 512 AND message_id ~ '^[A-Za-z0-9_.:/-]+$') THEN
        SELECT w.publish_mode, w.nats_subject, w.enabled AND w.nats_enabled AND c.config_id IS NOT NULL AND c.enabled IS NOT FALSE
        INTO v_mode, v_subject, v_is_ready
        FROM public.rule_webhooks w LEFT JOIN public.rule_nats_config c ON c.config_id = w.nats_config_id
        WHERE w.webhook_id = rule_webhook_call_unified.webhook_id;
        IF v_is_ready AND v_mode IN ('nats', 'both') AND octet_length(v_subject) <= 1024
           AND v_subject ~ '^[A-Za-z0-9_%-]+([.][A-Za-z0-9_%-]+)*$' THEN
            v_caller := coalesce(triggered_by, nullif(current_setting('role', true), 'none'), session_user);
            INSERT INTO public.rule_webhook_events AS e (webhook_id, payload, subject, message_id, rule_execution_id, triggered_by)
            VALUES (webhook_id, payload, v_subject, message_id, rule_execution_id, v_caller)
            RETURNING e.event_id INTO v_event_id;
            IF v_mode = 'both' THEN
                v_queue := '"queue": {"success": true, "status": "enqueued", "call_id": '
                         || coalesce(public.rule_webhook_enqueue(webhook_id, payload)::text, 'null') || '}, ';
            END IF;
            RETURN ('{"success": true, "status": "enqueued", "webhook_id": ' || webhook_id || ', "publish_mode": "' || v_mode || '", ' || v_queue
                    || '"nats": {"success": true, "status": "enqueued", "event_id": ' || v_event_id || ', "subject": "' || v_subject
                    || '", "message_id": ' || coalesce('"' || message_id || '"', 'null') || '}}')::jsonb;
        ELSIF v_mode = 'queue' THEN
            RETURN ('{"success": true, "status": "enqueued", "webhook_id": ' || webhook_id || ', "publish_mode": "queue", '
                    || '"queue": {"success": true, "status": "enqueued", "call_id": '
                    || coalesce(public.rule_webhook_enqueue(webhook_id, payload)::text, 'null') || '}}')::jsonb;
        END IF;
    END IF;
    RETURN walhook.rule_webhook_put(webhook_id, payload, NULL, message_id, headers, rule_execution_id, triggered_by);
END
$$;
COMMENT ON FUNCTION public.rule_webhook_call_unified IS
    'walhook: calls a webhook by its publish_mode: through the queue, NATS or both, all in this transaction. Returns '
    '{"success", "status", "queue": {"call_id"}, "nats": {"event_id", "subject", ...}}';

-- Through the event table, and so down the slot: a retry has its own place in the order, in a strict stream too, and comes
-- with the commit that marks it as retried or not at all.
CREATE OR REPLACE FUNCTION public.rule_nats_dead_letter_retry(
    p_dead_letter_id BIGINT,
    p_subject TEXT DEFAULT NULL
) RETURNS BIGINT LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_letter RECORD;
    v_headers JSONB;
    v_subject TEXT;
    v_problem TEXT;
    v_event_id BIGINT;
    v_call_id INTEGER;
BEGIN
    SELECT d.event_id, d.webhook_id, d.status, d.subject, d.headers, d.payload, d.origin INTO v_letter
    FROM public.rule_nats_dead_letters d WHERE d.dead_letter_id = p_dead_letter_id
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no dead letter %', coalesce(p_dead_letter_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT dead_letter_id, reason FROM rule_nats_dead_letters; lists them.';
    ELSIF v_letter.status <> 'dead' THEN
        RAISE EXCEPTION 'cannot retry dead letter %: it is %', p_dead_letter_id, v_letter.status
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = walhook.rule_cdc_sayable(
                format('To publish it once more: UPDATE rule_nats_dead_letters SET status = ''dead'' WHERE dead_letter_id = %s;',
                          p_dead_letter_id));
    ELSIF v_letter.payload IS NULL THEN
        RAISE EXCEPTION 'cannot retry dead letter %: its payload was not kept', p_dead_letter_id
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = format('SELECT rule_nats_dead_letter_drop(%s); puts it aside.', p_dead_letter_id);
    ELSIF v_letter.headers ? 'Walhook-Withheld' THEN
        RAISE EXCEPTION 'cannot retry dead letter %: its row was kept back, because the mask of its link could not be applied', p_dead_letter_id
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = format('Correct the mask (SELECT * FROM rule_cdc_check(); shows how), send the rows by walhook backfill, then: '
                          'SELECT rule_nats_dead_letter_drop(%s);', p_dead_letter_id);
    END IF;
    SELECT coalesce(p_subject, nullif(v_letter.subject, ''), w.nats_subject,
                    coalesce(c.subject_prefix, 'webhooks') || '.' || public.rule_nats_subject_token(w.webhook_name))
    INTO v_subject
    FROM public.rule_webhooks w
    LEFT JOIN public.rule_nats_config c ON c.config_id = coalesce(
        w.nats_config_id, (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default'))
    WHERE w.webhook_id = v_letter.webhook_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'cannot retry dead letter %: its webhook % does not exist', p_dead_letter_id,
            coalesce(v_letter.webhook_id::text, 'NULL')
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = walhook.rule_cdc_sayable(coalesce((SELECT format('UPDATE rule_nats_dead_letters SET webhook_id = %s WHERE dead_letter_id = %s; gives it to webhook %L.',
                                           w.webhook_id, p_dead_letter_id, w.webhook_name)
                             FROM public.rule_webhooks w WHERE w.nats_enabled ORDER BY w.webhook_id DESC LIMIT 1),
                            format('SELECT rule_nats_dead_letter_drop(%s); puts it aside.', p_dead_letter_id)));
    END IF;
    -- A call of the queue goes into the queue again, with the webhook-id that its receiver knows; to NATS where a subject is given.
    IF v_letter.origin = 'queue' AND p_subject IS NULL THEN
        INSERT INTO public.rule_webhook_calls (webhook_id, payload, retry_of)
        VALUES (v_letter.webhook_id, convert_from(v_letter.payload, 'UTF8')::jsonb,
                coalesce(v_letter.headers ->> 'Walhook-Retry-Of', v_letter.event_id))
        RETURNING call_id INTO v_call_id;
        UPDATE public.rule_nats_dead_letters SET status = 'retried', retried_call = v_call_id
        WHERE dead_letter_id = p_dead_letter_id;
        RETURN NULL;
    END IF;
    v_problem := public.rule_nats_subject_check(v_subject);
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'cannot retry dead letter % to the subject %: %', p_dead_letter_id, walhook.rule_cdc_quoted(v_subject),
            walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = format('SELECT rule_nats_dead_letter_retry(%s, ''another.subject'');', p_dead_letter_id);
    END IF;

    -- Under an id of its own: JetStream would drop the first one as a duplicate, for the stream may have the first message. The
    -- header Walhook-Retry-Of keeps the first event's id, Walhook-Message-Id the caller's.
    v_headers := coalesce(v_letter.headers, '{}');
    v_headers := CASE WHEN v_headers ? 'Walhook-Id' AND v_headers ? 'Nats-Msg-Id'
                      THEN jsonb_build_object('Walhook-Message-Id', v_headers -> 'Nats-Msg-Id') ELSE '{}' END
                 || jsonb_build_object('Walhook-Retry-Of', v_letter.event_id) || v_headers;
    INSERT INTO public.rule_webhook_events (webhook_id, payload, subject, headers, body, triggered_by)
    VALUES (v_letter.webhook_id, 'null', v_subject, v_headers, v_letter.payload,
            coalesce(nullif(current_setting('role', true), 'none'), session_user))
    RETURNING event_id INTO v_event_id;
    UPDATE public.rule_nats_dead_letters SET status = 'retried', retried_as = v_event_id
    WHERE dead_letter_id = p_dead_letter_id;
    RETURN v_event_id;
END
$$;
COMMENT ON FUNCTION public.rule_nats_dead_letter_retry IS
    'walhook: publishes a dead letter again after this transaction: the same body and headers, byte for byte, to its '
    'subject or to p_subject, with a message id of its own. The header Walhook-Retry-Of has the id of the first event. '
    'Returns the event_id for rule_nats_event_status. A call of the queue (origin queue) goes into the queue again: then '
    'it returns NULL, and retried_call has the call_id';

CREATE OR REPLACE FUNCTION public.rule_nats_dead_letter_drop(p_dead_letter_id BIGINT)
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_status TEXT;
BEGIN
    UPDATE public.rule_nats_dead_letters SET status = 'dropped' WHERE dead_letter_id = p_dead_letter_id AND status = 'dead';
    IF FOUND THEN
        RETURN true;
    END IF;
    SELECT d.status INTO v_status FROM public.rule_nats_dead_letters d WHERE d.dead_letter_id = p_dead_letter_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no dead letter %', coalesce(p_dead_letter_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT dead_letter_id, reason FROM rule_nats_dead_letters; lists them.';
    ELSIF v_status <> 'dropped' THEN
        RAISE EXCEPTION 'cannot drop dead letter %: it is %', p_dead_letter_id, v_status
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'SELECT rule_nats_event_status(retried_as) FROM rule_nats_dead_letters; tells what became of it.';
    END IF;
    RETURN false;
END
$$;
COMMENT ON FUNCTION public.rule_nats_dead_letter_drop IS
    'walhook: marks a dead letter as dropped: nobody needs it. Returns false if it was dropped before. The row stays';

CREATE OR REPLACE FUNCTION public.rule_nats_event_status(event_id BIGINT)
RETURNS JSONB LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    p_event_id CONSTANT BIGINT := event_id;
    v_row RECORD;
    v_first BIGINT;
BEGIN
    SELECT h.webhook_id, h.success, h.subject, h.message_id, h.stream_name, h.sequence_number, h.latency_ms, h.published_at, h.error_message,
           h.publish_id, h.event_id
    INTO v_row
    FROM public.rule_nats_publish_history h
    WHERE h.webhook_event_id = p_event_id
    ORDER BY h.success DESC, h.publish_id DESC
    LIMIT 1;
    IF FOUND AND v_row.success THEN
        -- JetStream acknowledges a message id that it knows with the sequence of the event that had it first.
        SELECT o.webhook_event_id INTO v_first
        FROM public.rule_nats_publish_history o
        WHERE o.message_id = v_row.message_id AND o.message_id IS DISTINCT FROM o.event_id
          AND o.stream_name = v_row.stream_name AND o.sequence_number = coalesce(v_row.sequence_number, o.sequence_number)
          AND o.webhook_id = v_row.webhook_id AND o.success AND o.event_id <> v_row.event_id AND o.publish_id < v_row.publish_id
        ORDER BY o.publish_id
        LIMIT 1;
        IF FOUND THEN
            RETURN jsonb_build_object(
                'event_id', p_event_id, 'status', 'duplicate', 'success', true, 'subject', v_row.subject,
                'message_id', v_row.message_id, 'stream', v_row.stream_name, 'duplicate_of', v_first,
                'message', 'the stream had a message with this message_id: nothing was stored for this event',
                'published_at', v_row.published_at);
        END IF;
        RETURN jsonb_build_object(
            'event_id', p_event_id, 'status', 'published', 'success', true, 'subject', v_row.subject,
            'message_id', v_row.message_id, 'stream', v_row.stream_name, 'sequence', v_row.sequence_number,
            'latency_ms', v_row.latency_ms, 'published_at', v_row.published_at);
    ELSIF FOUND AND v_row.error_message IS NULL THEN
        RETURN jsonb_build_object(
            'event_id', p_event_id, 'status', 'unknown', 'subject', v_row.subject, 'message_id', v_row.message_id,
            'stream', v_row.stream_name,
            'message', 'after a restart the stream does not have it, there is no record that it ever had it, and it is not a dead letter');
    ELSIF FOUND THEN
        RETURN jsonb_build_object(
            'event_id', p_event_id, 'status', 'failed', 'success', false, 'subject', v_row.subject,
            'message_id', v_row.message_id, 'error', v_row.error_message, 'published_at', v_row.published_at);
    END IF;
    SELECT e.subject, e.message_id, e.created_at, coalesce(c.history, 'full') AS history INTO v_row
    FROM public.rule_webhook_events e
    LEFT JOIN public.rule_webhooks w ON w.webhook_id = e.webhook_id
    LEFT JOIN public.rule_nats_config c ON c.config_id = coalesce(
        w.nats_config_id, (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default'))
    WHERE e.event_id = p_event_id;
    IF NOT FOUND THEN
        RETURN jsonb_build_object('event_id', p_event_id, 'status', 'unknown',
            'message', 'there is no such event, or walhook has deleted it and the history has no row of it');
    END IF;
    RETURN jsonb_build_object(
        'event_id', p_event_id, 'status', 'enqueued', 'subject', v_row.subject, 'message_id', v_row.message_id,
        'created_at', v_row.created_at,
        'message', CASE
            WHEN v_row.history <> 'full' THEN format('history is %s: the database does not record acknowledgements', v_row.history)
            WHEN NOT EXISTS (SELECT FROM public.rule_cdc_status s
                             WHERE s.heartbeat_at > clock_timestamp() - make_interval(secs => 3 * s.heartbeat_seconds))
                THEN 'no walhook is running; the event will be published when one runs'
            ELSE 'not acknowledged yet' END);
END
$$;
COMMENT ON FUNCTION public.rule_nats_event_status IS
    'walhook: what became of an event: enqueued; published, with stream, sequence and latency_ms; duplicate, with the event '
    'that had its message_id first; failed, with error; unknown';

CREATE OR REPLACE PROCEDURE public.rule_nats_wait(
    event_id BIGINT,
    timeout INTERVAL DEFAULT '10 seconds',
    INOUT result JSONB DEFAULT NULL
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    p_event_id CONSTANT BIGINT := event_id;
    v_deadline CONSTANT TIMESTAMPTZ := clock_timestamp() + coalesce(timeout, '10 seconds');
    v_pause DOUBLE PRECISION := 0.005;
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'cannot wait for event % in a % transaction: it would not see the outcome', p_event_id,
            current_setting('transaction_isolation')
            USING ERRCODE = 'active_sql_transaction', HINT = 'Commit, then CALL rule_nats_wait outside of a transaction.';
    END IF;
    IF EXISTS (SELECT FROM public.rule_webhook_events e
               WHERE e.event_id = p_event_id AND e.xmin = (pg_current_xact_id_if_assigned())::xid) THEN
        RAISE EXCEPTION 'cannot wait for event %: this transaction made it, and nothing is published before the commit', p_event_id
            USING ERRCODE = 'active_sql_transaction', HINT = 'COMMIT, then CALL rule_nats_wait.';
    END IF;
    LOOP
        -- In a subtransaction that ends without its locks: a partition of the history that is made meanwhile is seen, and none is
        -- kept from being dropped.
        BEGIN
            result := public.rule_nats_event_status(p_event_id);
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
COMMENT ON PROCEDURE public.rule_nats_wait IS
    'walhook: waits until the event of a committed transaction is published or has failed, and returns what '
    'rule_nats_event_status returns; after the timeout also "timed_out": true';

-- ------------------------------------------------------------------------------------------------------------ trimming

CREATE OR REPLACE FUNCTION public.rule_webhook_events_cleanup(
    p_older_than INTERVAL DEFAULT '24 hours',
    p_limit INTEGER DEFAULT 10000
) RETURNS BIGINT LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_deleted BIGINT;
BEGIN
    IF p_limit < 0 THEN
        RAISE EXCEPTION 'cannot delete a negative number of events: p_limit is %', coalesce(p_limit::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give how many events it may delete at most; NULL: all that are old enough.';
    END IF;
    DELETE FROM public.rule_webhook_events
    WHERE event_id IN (SELECT e.event_id FROM public.rule_webhook_events e
                       WHERE e.created_at < now() - p_older_than
                       ORDER BY e.event_id
                       LIMIT p_limit);
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    RETURN v_deleted;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_events_cleanup IS
    'walhook: deletes events that are older than this, the oldest first and at most p_limit, and returns how many. No event '
    'is lost: events that are not published yet are in the WAL';

-- -------------------------------------------------------------------------------------- what the running streamer reports

CREATE OR REPLACE FUNCTION walhook.rule_nats_report(p_config_name TEXT)
RETURNS JSONB LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_config RECORD;
    v_status RECORD;
    v_nats JSONB;
    v_connected BOOLEAN;
    v_running BOOLEAN;
BEGIN
    SELECT enabled INTO v_config FROM public.rule_nats_config WHERE config_name = p_config_name;
    IF NOT FOUND THEN
        RETURN jsonb_build_object('success', false, 'config', p_config_name, 'connected', false, 'running', false,
                                  'message', format('NATS config %s not found', coalesce(p_config_name, 'NULL')));
    END IF;
    SELECT s.*, s.heartbeat_at > clock_timestamp() - make_interval(secs => 3 * s.heartbeat_seconds) AS running INTO v_status
    FROM public.rule_cdc_status s
    ORDER BY s.heartbeat_at > clock_timestamp() - make_interval(secs => 3 * s.heartbeat_seconds) DESC,
             s.nats ? p_config_name DESC, s.heartbeat_at DESC
    LIMIT 1;
    v_running := coalesce(v_status.running, false);
    v_nats := v_status.nats -> p_config_name;
    v_connected := v_running AND coalesce((v_nats ->> 'connected')::boolean, false);
    RETURN jsonb_build_object(
        'success', v_connected,
        'config', p_config_name,
        'connected', v_connected,
        'running', v_running,
        'message', CASE
            WHEN NOT coalesce(v_config.enabled, true) THEN format('NATS config %s is disabled', p_config_name)
            WHEN v_status.source IS NULL THEN 'no walhook has run on this database yet: start `walhook run`'
            WHEN NOT v_running THEN format('no walhook is running: the last one wrote its status at %s', v_status.heartbeat_at)
            WHEN v_connected THEN 'NATS connection initialized'
            WHEN v_nats IS NULL THEN 'walhook is running and has no connection for this configuration: no enabled webhook uses it'
            WHEN (v_nats ->> 'given_up')::boolean THEN
                'walhook is running and no longer tries to connect for this configuration: see last_error; after an UPDATE of its row it tries again'
            ELSE 'walhook is running and not connected to NATS: see last_error' END
            || CASE WHEN v_running AND (v_nats ->> 'holds_slot')::boolean
                    THEN format('; the slot waits for its %s unsettled events', v_nats ->> 'unsettled') ELSE '' END,
        'server', v_nats ->> 'server',
        'unsettled', (v_nats ->> 'unsettled')::bigint,
        'holds_slot', coalesce((v_nats ->> 'holds_slot')::boolean, false),
        'given_up', coalesce((v_nats ->> 'given_up')::boolean, false),
        'falls_back', coalesce(v_nats -> 'falls_back', '[]'),
        'nats_connected_since', v_nats ->> 'connected_since',
        'last_error', coalesce(v_nats ->> 'last_error', v_status.last_error),
        'source', v_status.source,
        'pid', v_status.pid,
        'host', v_status.host,
        'version', v_status.version,
        'epoch', v_status.epoch,
        'connected_since', v_status.connected_since,
        'confirmed_lsn', v_status.confirmed_lsn,
        'heartbeat_at', v_status.heartbeat_at);
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_report IS
    'walhook: what the running walhook last wrote about the connection of this configuration; the function asks no server';

CREATE OR REPLACE FUNCTION public.rule_nats_init(config_name TEXT DEFAULT 'default')
RETURNS JSONB LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    IF NOT EXISTS (SELECT FROM public.rule_nats_config c WHERE c.config_name = rule_nats_init.config_name) THEN
        RAISE EXCEPTION 'NATS config % not found', walhook.rule_cdc_sayable(coalesce(config_name, 'NULL'))
            USING ERRCODE = 'no_data_found',
            HINT = walhook.rule_cdc_sayable(format('SELECT rule_nats_configure(%L, ''nats://host:4222''); makes it.', config_name));
    ELSIF EXISTS (SELECT FROM public.rule_nats_config c WHERE c.config_name = rule_nats_init.config_name AND c.enabled IS FALSE) THEN
        RAISE EXCEPTION 'NATS config % is disabled', walhook.rule_cdc_sayable(config_name)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = walhook.rule_cdc_sayable(
                format('UPDATE rule_nats_config SET enabled = true WHERE config_name = %L; enables it.', config_name));
    END IF;
    RETURN walhook.rule_nats_report(config_name);
END
$$;
COMMENT ON FUNCTION public.rule_nats_init IS
    'walhook: the server needs no initialization; returns whether the running walhook is connected, and why not';

CREATE OR REPLACE FUNCTION public.rule_nats_health_check(config_name TEXT DEFAULT 'default')
RETURNS JSONB LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT walhook.rule_nats_report($1)
$$;
COMMENT ON FUNCTION public.rule_nats_health_check IS
    'walhook: returns {"success", "config", "connected", "running", "message", ...}; for an unknown configuration success '
    'is false';

CREATE OR REPLACE FUNCTION public.rule_nats_test_connection(p_config_name TEXT DEFAULT 'default')
RETURNS JSON LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT (walhook.rule_nats_report(p_config_name) || coalesce(
        (SELECT jsonb_build_object('config', public.rule_nats_config_info(c.config_name)::jsonb)
         FROM public.rule_nats_config c WHERE c.config_name = p_config_name), '{}'))::json
$$;
COMMENT ON FUNCTION public.rule_nats_test_connection IS
    'walhook: the same as rule_nats_health_check as json, with the configuration itself, without its secrets, as "config"';

-- ---------------------------------------------------------------- two functions of RFC-0005 that were broken as shipped

CREATE OR REPLACE FUNCTION public.rule_webhook_call_status(p_call_id INTEGER)
RETURNS JSON LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(
        (SELECT json_build_object(
            'call_id', c.call_id, 'webhook_id', c.webhook_id, 'webhook_name', w.webhook_name, 'status', c.status,
            'rule_name', c.rule_name, 'retry_count', c.retry_count, 'next_retry_at', c.next_retry_at,
            'scheduled_at', c.scheduled_at, 'started_at', c.started_at, 'completed_at', c.completed_at,
            'response_status', c.response_status, 'error_message', c.error_message,
            'execution_time_ms', c.execution_time_ms, 'created_at', c.created_at,
            'history', coalesce((SELECT json_agg(json_build_object(
                'attempt_number', h.attempt_number, 'started_at', h.started_at, 'completed_at', h.completed_at,
                'response_status', h.response_status, 'error_message', h.error_message,
                'execution_time_ms', h.execution_time_ms) ORDER BY h.attempt_number)
                FROM public.rule_webhook_call_history h WHERE h.call_id = c.call_id), '[]'))
         FROM public.rule_webhook_calls c
         JOIN public.rule_webhooks w USING (webhook_id)
         WHERE c.call_id = p_call_id),
        '{"error":"Call not found"}')
$$;
COMMENT ON FUNCTION public.rule_webhook_call_status IS
    'walhook: a queued call and its attempts as JSON, or {"error":"Call not found"}';

CREATE OR REPLACE FUNCTION public.rule_webhook_process_retries()
RETURNS TABLE (call_id INTEGER, webhook_name TEXT, retry_result JSON)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH due AS (
        SELECT c.call_id, w.webhook_name
        FROM public.rule_webhook_calls c
        JOIN public.rule_webhooks w USING (webhook_id)
        WHERE c.status = 'retrying' AND c.next_retry_at <= now() AND w.enabled
        FOR UPDATE OF c SKIP LOCKED
    ), again AS (
        UPDATE public.rule_webhook_calls c SET status = 'pending', scheduled_at = now(), next_retry_at = NULL
        FROM due
        WHERE c.call_id = due.call_id
        RETURNING c.call_id, due.webhook_name, c.retry_count
    )
    SELECT again.call_id, again.webhook_name,
           json_build_object('success', true, 'call_id', again.call_id, 'status', 'pending', 'retry_count', again.retry_count)
    FROM again
$$;
COMMENT ON FUNCTION public.rule_webhook_process_retries IS
    'walhook: makes calls whose retry is due available to the workers again (status pending), and returns a row for each';

CALL walhook.rule_cdc_functions_close();

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('008', 'walhook: events, links, publication and slot, publishing')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
