-- 023: what happens to deliveries is announced in NATS; several events in one request;
-- the order of calls by key.
--
-- Comes in: 005 to 010 and 019. Goes out: the settings of a NATS configuration by which walhook announces that it has disabled a webhook
-- and that dead letters pile up, what it has announced so far, and the function that says what to announce next.
-- Always holds: a configuration without notice_subject costs nothing. Two processes never announce the same change. Running this file
-- twice changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '023') THEN
    RETURN;
END IF;

-- In the order in which a call of an application reads them; in the other order each could wait for the other.
LOCK TABLE public.rule_webhooks, public.rule_nats_config IN ACCESS EXCLUSIVE MODE;

ALTER TABLE public.rule_nats_config
    ADD COLUMN IF NOT EXISTS notice_subject TEXT,
    ADD COLUMN IF NOT EXISTS notice_dead_letters INTEGER NOT NULL DEFAULT 1,
    ADD COLUMN IF NOT EXISTS notice_interval_seconds INTEGER NOT NULL DEFAULT 300;
COMMENT ON COLUMN public.rule_nats_config.notice_subject IS
    'walhook announces below this subject that it has disabled a webhook and that dead letters pile up: '
    '<notice_subject>.<source>.webhook_disabled, and so on. NULL: it announces nothing';
COMMENT ON COLUMN public.rule_nats_config.notice_dead_letters IS
    'How many dead letters of a webhook walhook announces. It announces them again when there are twice as many as in the last announcement';
COMMENT ON COLUMN public.rule_nats_config.notice_interval_seconds IS
    'walhook makes no two announcements of the same kind for the same webhook within this time';

ALTER TABLE public.rule_webhooks
    ADD COLUMN IF NOT EXISTS disabled_at TIMESTAMPTZ,
    ADD COLUMN IF NOT EXISTS disabled_reason TEXT,
    ADD COLUMN IF NOT EXISTS order_key TEXT,
    ADD COLUMN IF NOT EXISTS batch_max_events INTEGER,
    ADD COLUMN IF NOT EXISTS batch_max_bytes INTEGER NOT NULL DEFAULT 1048576,
    ADD COLUMN IF NOT EXISTS batch_max_wait_ms INTEGER NOT NULL DEFAULT 100;
COMMENT ON COLUMN public.rule_webhooks.delivery_order IS
    'For walhook deliver. any: calls run side by side; strict: all workers together make one call at a time, in commit '
    'order, retries included; key: that for the events of each key (order_key), while those of other keys run side by side';
COMMENT ON COLUMN public.rule_webhooks.order_key IS
    'With delivery_order key, what the key of an event is: data:COLUMN[,COLUMN], subject:N (the N-th token of the subject), header:NAME '
    '(of the message)';
COMMENT ON COLUMN public.rule_webhooks.batch_max_events IS
    'walhook deliver: a request has up to so many events, as a JSON array. NULL: one event for each request, and no array';
COMMENT ON COLUMN public.rule_webhooks.batch_max_bytes IS
    'With batch_max_events: the body has at most so many bytes, unless one event alone has more';
COMMENT ON COLUMN public.rule_webhooks.batch_max_wait_ms IS
    'With batch_max_events: how long the first event of a request waits for others';
COMMENT ON COLUMN public.rule_webhooks.disabled_at IS
    'When walhook deliver last disabled the webhook. It stays when somebody enables it again';
COMMENT ON COLUMN public.rule_webhooks.disabled_reason IS 'Why it did';

CREATE TABLE IF NOT EXISTS walhook.rule_webhook_order_holders (
    webhook_id INTEGER REFERENCES public.rule_webhooks (webhook_id) ON DELETE CASCADE,
    group_name TEXT,
    worker TEXT NOT NULL,
    held_until TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (webhook_id, group_name)
) WITH (fillfactor = 50);
COMMENT ON TABLE walhook.rule_webhook_order_holders IS
    'Which worker of a group calls the events of a webhook with delivery_order key; it prolongs held_until. Afterwards another worker does. '
    'Written by walhook deliver. Never published, never linkable';

ALTER TABLE public.rule_webhooks
    DROP CONSTRAINT IF EXISTS valid_delivery_order,
    ADD CONSTRAINT valid_delivery_order CHECK (delivery_order IN ('any', 'strict', 'key'));

CREATE TABLE IF NOT EXISTS walhook.rule_nats_notices (
    webhook_id INTEGER,
    kind TEXT,
    is_open BOOLEAN NOT NULL,
    amount BIGINT NOT NULL,
    changed_at TIMESTAMPTZ,
    announced_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (webhook_id, kind),
    CONSTRAINT valid_notice_kind CHECK (kind IN ('webhook_disabled', 'dead_letters'))
) WITH (fillfactor = 50);
COMMENT ON TABLE walhook.rule_nats_notices IS
    'What walhook has announced below notice_subject: a row for each webhook and kind. Written by walhook run and walhook deliver. Never '
    'published, never linkable';
COMMENT ON COLUMN walhook.rule_nats_notices.webhook_id IS '0: dead letters of no webhook';
COMMENT ON COLUMN walhook.rule_nats_notices.is_open IS
    'The last announcement still holds: the webhook is disabled, there are dead letters';
COMMENT ON COLUMN walhook.rule_nats_notices.amount IS 'How many dead letters it named';
COMMENT ON COLUMN walhook.rule_nats_notices.changed_at IS 'disabled_at of the webhook then';
COMMENT ON COLUMN walhook.rule_nats_notices.announced_at IS 'When that was';

IF NOT EXISTS (SELECT FROM pg_constraint
               WHERE conrelid = 'public.rule_webhooks'::regclass AND conname = 'valid_batch_max_events') THEN
    ALTER TABLE public.rule_webhooks
        ADD CONSTRAINT valid_batch_max_events CHECK (batch_max_events BETWEEN 2 AND 10000),
        ADD CONSTRAINT valid_batch_max_bytes CHECK (batch_max_bytes BETWEEN 1024 AND 67108864),
        ADD CONSTRAINT valid_batch_max_wait CHECK (batch_max_wait_ms BETWEEN 0 AND 30000);
END IF;
IF NOT EXISTS (SELECT FROM pg_constraint
               WHERE conrelid = 'public.rule_nats_config'::regclass AND conname = 'valid_notice_dead_letters') THEN
    ALTER TABLE public.rule_nats_config
        ADD CONSTRAINT valid_notice_dead_letters CHECK (notice_dead_letters BETWEEN 1 AND 1000000000),
        ADD CONSTRAINT valid_notice_interval CHECK (notice_interval_seconds BETWEEN 1 AND 604800);
END IF;

END
$schema$;

REVOKE ALL ON walhook.rule_nats_notices, walhook.rule_webhook_order_holders FROM PUBLIC;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

-- With its owner's rights: a role that may write the row need not be allowed to call the functions that look at it.
CREATE OR REPLACE FUNCTION walhook.rule_webhook_delivery_check()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_problem TEXT;
    v_hint TEXT;
    v_column TEXT := 'batch_max_events';
BEGIN
    IF NEW.delivery_order = 'key' AND coalesce(NEW.order_key, '')
          !~ '^(data:[^,]*[^,\s][^,]*(,[^,]*[^,\s][^,]*)*|subject:[1-9][0-9]{0,2}|header:[!#$%&''*+.^_`|~0-9A-Za-z-]{1,100})$'
    THEN
        v_column := 'order_key';
        v_problem := CASE WHEN coalesce(NEW.order_key, '') = '' THEN 'it is missing, and delivery_order is ''key'''
                          ELSE 'it is none of data:COLUMN[,COLUMN], subject:N and header:NAME' END;
        v_hint := format('UPDATE rule_webhooks SET delivery_order = ''key'', order_key = ''data:id'' WHERE webhook_id = %s; orders its events by '
                         'the column id, for example.', NEW.webhook_id);
    ELSIF NEW.batch_max_events IS NULL THEN
        RETURN NEW;
    ELSIF NEW.delivery_order <> 'any' THEN
        v_problem := format('a webhook with delivery_order %L is called with one event at a time', NEW.delivery_order);
        v_hint := format('UPDATE rule_webhooks SET batch_max_events = NULL WHERE webhook_id = %s; calls it with one event at a time.',
                         NEW.webhook_id);
    ELSIF NEW.method = 'GET' THEN
        v_problem := 'a GET has no body';
        v_hint := format('UPDATE rule_webhooks SET batch_max_events = NULL WHERE webhook_id = %s; calls it with one event at a time.',
                         NEW.webhook_id);
    END IF;
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'webhook % (webhook_id %): %: %', walhook.rule_cdc_quoted(NEW.webhook_name), NEW.webhook_id, v_column,
            walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'check_violation', HINT = v_hint, SCHEMA = 'public', TABLE = TG_TABLE_NAME, COLUMN = v_column,
                  CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_delivery_check IS
    'walhook: trigger of rule_webhooks: refuses an order_key that is not valid, and batch_max_events where a request cannot have several events';

CREATE OR REPLACE FUNCTION walhook.rule_webhook_order_take(p_webhook_id INTEGER, p_group TEXT, p_worker TEXT, p_lease_ms INTEGER)
RETURNS BOOLEAN LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH taken AS (
        INSERT INTO walhook.rule_webhook_order_holders AS h (webhook_id, group_name, worker, held_until)
        SELECT w.webhook_id, p_group, p_worker, clock_timestamp() + make_interval(secs => p_lease_ms / 1000.0)
        FROM public.rule_webhooks w WHERE w.webhook_id = p_webhook_id
        ON CONFLICT (webhook_id, group_name) DO UPDATE SET worker = excluded.worker, held_until = excluded.held_until
        WHERE h.worker = excluded.worker OR h.held_until <= clock_timestamp()
        RETURNING 1
    )
    SELECT EXISTS (SELECT FROM taken)
$$;
COMMENT ON FUNCTION walhook.rule_webhook_order_take IS
    'walhook: for walhook deliver: whether this worker is the one of its group that calls a webhook with delivery_order key, for p_lease_ms '
    'from now on';

CREATE OR REPLACE FUNCTION walhook.rule_webhook_queue_by_key(p_webhook_id INTEGER, p_order_key TEXT, p_room INTEGER, p_now TIMESTAMPTZ)
RETURNS INTEGER[] LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- A queued call has data, and neither a subject nor headers. A call without a key waits for all calls before it, and all later
    -- ones wait for it.
    WITH unfinished AS (
        SELECT c.call_id,
               coalesce(c.claimed_until, c.next_retry_at, c.scheduled_at, '-infinity'::timestamptz) <= p_now AS is_due,
               CASE WHEN p_order_key LIKE 'data:%' AND jsonb_typeof(c.payload) = 'object' THEN
                   (SELECT CASE WHEN bool_and(c.payload ? trim(k.name)) THEN jsonb_agg(c.payload -> trim(k.name) ORDER BY k.place) END
                    FROM unnest(string_to_array(substr(p_order_key, 6), ',')) WITH ORDINALITY k (name, place))
               END AS key
        FROM public.rule_webhook_calls c
        WHERE c.webhook_id = p_webhook_id AND c.event_id IS NULL AND c.status IN ('pending', 'retrying', 'processing')
          AND CASE c.status WHEN 'pending' THEN coalesce(c.scheduled_at <= p_now, true)
                            -- Another program's, which may have left it so for ever.
                            WHEN 'processing' THEN c.claimed_until IS NOT NULL
                            ELSE true END
        ORDER BY c.call_id
        LIMIT 10000
    ), placed AS (
        SELECT u.call_id, u.is_due, u.key,
               min(u.call_id) OVER () AS first,
               min(u.call_id) FILTER (WHERE u.key IS NULL) OVER () AS first_of_all,
               min(u.call_id) OVER (PARTITION BY u.key) AS first_of_key
        FROM unfinished u
    ), ready AS (
        SELECT p.call_id FROM placed p
        WHERE p.is_due
          AND CASE WHEN p.key IS NULL THEN p.call_id = p.first
                   ELSE p.call_id = p.first_of_key AND (p.first_of_all IS NULL OR p.call_id < p.first_of_all) END
        ORDER BY p.call_id
        LIMIT greatest(p_room, 0)
    )
    SELECT coalesce(array_agg(r.call_id), '{}') FROM ready r
$$;
COMMENT ON FUNCTION walhook.rule_webhook_queue_by_key IS
    'walhook: calls of the queue that are due and before which no call with the same key is unfinished';

-- Here and not in 019: while an upgrade is between the two, workers go on with the function that was there before.
CREATE OR REPLACE FUNCTION walhook.rule_webhook_queue_claim(
    p_worker TEXT,
    p_webhook_ids INTEGER[],
    p_rooms INTEGER[],
    p_lease_ms INTEGER
) RETURNS TABLE (call_id INTEGER, webhook_id INTEGER, payload TEXT, attempt INTEGER, created_us BIGINT, retry_of TEXT, row_version TEXT)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_now CONSTANT TIMESTAMPTZ := clock_timestamp();
    v_until CONSTANT TIMESTAMPTZ := v_now + make_interval(secs => p_lease_ms / 1000.0);
    v_id INTEGER;
    v_room INTEGER;
    v_order TEXT;
    v_key TEXT;
    v_call INTEGER;
    v_calls INTEGER[] := '{}';
BEGIN
    -- In order: of each webhook the first call that is not finished, when it is due and nobody has it. Two workers cannot both find it
    -- so: the second one looks behind the first one's commit.
    FOR v_id, v_room, v_order, v_key IN
        SELECT w.webhook_id, g.room, w.delivery_order, w.order_key FROM unnest(p_webhook_ids, p_rooms) AS g (id, room)
        JOIN public.rule_webhooks w ON w.webhook_id = g.id AND w.enabled AND w.disabled_at IS NULL AND w.delivery_order IN ('strict', 'key')
        WHERE g.room > 0
          AND EXISTS (SELECT FROM public.rule_webhook_calls c
                      WHERE c.webhook_id = g.id AND c.event_id IS NULL AND c.status IN ('pending', 'retrying', 'processing')
                        AND coalesce(c.claimed_until, c.next_retry_at, c.scheduled_at, '-infinity'::timestamptz) <= v_now)
        ORDER BY w.webhook_id
    LOOP
        INSERT INTO walhook.rule_webhook_limits (webhook_id) VALUES (v_id) ON CONFLICT DO NOTHING;
        PERFORM FROM walhook.rule_webhook_limits l WHERE l.webhook_id = v_id FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        IF v_order = 'key' THEN
            v_calls := v_calls || walhook.rule_webhook_queue_by_key(v_id, v_key, v_room, v_now);
            CONTINUE;
        END IF;
        SELECT CASE WHEN coalesce(c.claimed_until, c.next_retry_at, c.scheduled_at, '-infinity'::timestamptz) <= v_now THEN c.call_id END
        INTO v_call
        FROM public.rule_webhook_calls c
        WHERE c.webhook_id = v_id AND c.event_id IS NULL AND c.status IN ('pending', 'retrying', 'processing')
          AND CASE c.status WHEN 'pending' THEN coalesce(c.scheduled_at <= v_now, true)
                            -- Another program's, which may have left it so for ever.
                            WHEN 'processing' THEN c.claimed_until IS NOT NULL
                            ELSE true END
        ORDER BY c.call_id
        LIMIT 1;
        v_calls := v_calls || v_call;
    END LOOP;
    RETURN QUERY
    WITH due AS (
        SELECT d.call_id
        FROM unnest(p_webhook_ids, p_rooms) AS g (id, room)
        JOIN public.rule_webhooks w ON w.webhook_id = g.id AND w.enabled AND w.disabled_at IS NULL AND w.delivery_order = 'any'
        LEFT JOIN walhook.rule_webhook_limits l ON l.webhook_id = g.id
        CROSS JOIN LATERAL (
            SELECT c.call_id FROM public.rule_webhook_calls c
            WHERE c.webhook_id = g.id AND c.event_id IS NULL AND c.status IN ('pending', 'retrying', 'processing')
              AND coalesce(c.claimed_until, c.next_retry_at, c.scheduled_at, '-infinity'::timestamptz) <= v_now
              AND (c.status <> 'processing' OR c.claimed_until IS NOT NULL)
            ORDER BY coalesce(c.claimed_until, c.next_retry_at, c.scheduled_at, '-infinity'::timestamptz), c.call_id
            LIMIT greatest(g.room, 0)
            FOR UPDATE OF c SKIP LOCKED) d
        WHERE (l.paused_until > v_now AND l.paused_url_hash = hashtextextended(w.url, 0)) IS NOT TRUE
    ), in_order AS (
        SELECT c.call_id
        FROM public.rule_webhook_calls c
        JOIN public.rule_webhooks w USING (webhook_id)
        LEFT JOIN walhook.rule_webhook_limits l USING (webhook_id)
        WHERE c.call_id = ANY (v_calls) AND c.status IN ('pending', 'retrying', 'processing')
          AND (l.paused_until > v_now AND l.paused_url_hash = hashtextextended(w.url, 0)) IS NOT TRUE
        FOR UPDATE OF c SKIP LOCKED
    ), taken AS (
        UPDATE public.rule_webhook_calls c
        SET status = 'processing', started_at = v_now, claimed_by = p_worker, claimed_until = v_until
        FROM (SELECT due.call_id FROM due UNION ALL SELECT o.call_id FROM in_order o) t
        WHERE c.call_id = t.call_id
        RETURNING c.call_id, c.webhook_id, c.payload, c.retry_count, c.created_at, c.retry_of
    )
    SELECT t.call_id, t.webhook_id, t.payload::text, coalesce(t.retry_count, 0) + 1,
           coalesce((extract(epoch FROM t.created_at) * 1e6)::bigint, 0), t.retry_of, w.xmin::text
    FROM taken t JOIN public.rule_webhooks w USING (webhook_id)
    ORDER BY t.call_id;
END
$$;
COMMENT ON FUNCTION walhook.rule_webhook_queue_claim IS
    'walhook: for walhook deliver --queue: takes due calls of these webhooks, of each so many at most, for p_lease_ms; other workers, also '
    'those that take calls by SKIP LOCKED themselves, pass over them';

CREATE OR REPLACE FUNCTION walhook.rule_nats_notice_problem(p_config_id INTEGER, p_subject TEXT)
RETURNS TEXT LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_stream TEXT;
BEGIN
    IF p_subject IS NULL THEN
        RETURN NULL;
    ELSIF octet_length(p_subject) > 200 OR p_subject !~ '^[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*$' THEN
        RETURN 'it is not a subject of letters, digits, _ and -, with dots between, of at most 200 characters';
    END IF;
    SELECT s.stream_name INTO v_stream
    FROM public.rule_nats_streams_of(p_config_id) s
    CROSS JOIN LATERAL unnest(s.subjects) AS p (pattern)
    WHERE NOT EXISTS (SELECT FROM public.rule_nats_streams r
                      WHERE s.has_row AND r.stream_name = s.stream_name AND r.ordering = 'shared')
      AND walhook.rule_nats_subjects_overlap(p.pattern, p_subject || '.>')
    ORDER BY s.stream_name
    LIMIT 1;
    RETURN CASE WHEN v_stream IS NOT NULL THEN format('stream %s takes it, and in strict ordering walhook run must be the only writer of a stream',
                  walhook.rule_cdc_quoted(v_stream)) END;
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_notice_problem IS
    'walhook: why this cannot be the notice_subject of a configuration, or NULL if it can';

-- With its owner's rights: a role that may write the row need not be allowed to call the functions that look at it.
CREATE OR REPLACE FUNCTION walhook.rule_nats_notice_check()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_problem CONSTANT TEXT := walhook.rule_nats_notice_problem(NEW.config_id, NEW.notice_subject);
BEGIN
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'NATS configuration % (config_id %): notice_subject: %', walhook.rule_cdc_quoted(NEW.config_name), NEW.config_id,
            walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'check_violation', HINT = format('UPDATE rule_nats_config SET notice_subject = ''_WALHOOK.notices'' '
                    'WHERE config_id = %s; for example.', NEW.config_id), SCHEMA = 'public',
                  TABLE = TG_TABLE_NAME, COLUMN = 'notice_subject', CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_notice_check IS
    'walhook: trigger of rule_nats_config: refuses a notice_subject on which walhook cannot publish';

-- With its owner's rights: processes that announce need none on its table.
CREATE OR REPLACE FUNCTION walhook.rule_nats_notices_take(p_config_name TEXT, p_source TEXT)
RETURNS TABLE (subject TEXT, notice_id TEXT, notice TEXT)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_now CONSTANT TIMESTAMPTZ := clock_timestamp();
    v_config_id INTEGER;
    v_default INTEGER;
    v_subject TEXT;
    v_letters INTEGER;
    v_interval INTERVAL;
    v_problem TEXT;
BEGIN
    SELECT c.config_id, c.notice_subject, c.notice_dead_letters, make_interval(secs => c.notice_interval_seconds)
    INTO v_config_id, v_subject, v_letters, v_interval
    FROM public.rule_nats_config c WHERE c.config_name = p_config_name;
    IF v_subject IS NULL THEN
        RETURN;
    END IF;
    -- A stream may have come later.
    v_problem := walhook.rule_nats_notice_problem(v_config_id, v_subject);
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'NATS configuration %: nothing is announced below its notice_subject: %', walhook.rule_cdc_quoted(p_config_name),
            walhook.rule_cdc_sayable(v_problem)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('UPDATE rule_nats_config SET notice_subject = NULL WHERE config_id = %s; ends this. Another subject has to be '
                      'one that no stream in strict ordering takes.', v_config_id);
    END IF;
    SELECT c.config_id INTO v_default FROM public.rule_nats_config c WHERE c.config_name = 'default';
    RETURN QUERY
    WITH letters AS (
        SELECT coalesce(d.webhook_id, 0) AS webhook_id, count(*) AS amount, max(d.dead_letter_id) AS newest
        FROM public.rule_nats_dead_letters d WHERE d.status = 'dead' GROUP BY 1
    ), ours AS (
        SELECT l.* FROM letters l LEFT JOIN public.rule_webhooks w USING (webhook_id)
        WHERE coalesce(w.nats_config_id, v_default) = v_config_id
    ), disabled AS (
        INSERT INTO walhook.rule_nats_notices AS n (webhook_id, kind, is_open, amount, changed_at, announced_at)
        SELECT w.webhook_id, 'webhook_disabled', true, 0, w.disabled_at, v_now
        FROM public.rule_webhooks w
        WHERE w.disabled_at IS NOT NULL AND coalesce(w.nats_config_id, v_default) = v_config_id
        -- Of two processes the second one waits here for the first one's commit, and finds nothing to do.
        ON CONFLICT (webhook_id, kind) DO UPDATE
        SET is_open = true, changed_at = excluded.changed_at, announced_at = excluded.announced_at
        WHERE n.changed_at IS DISTINCT FROM excluded.changed_at AND n.announced_at <= v_now - v_interval
        RETURNING n.webhook_id, 'webhook_disabled' AS event
    ), enabled AS (
        UPDATE walhook.rule_nats_notices n SET is_open = false
        FROM public.rule_webhooks w
        WHERE n.kind = 'webhook_disabled' AND n.is_open AND w.webhook_id = n.webhook_id AND w.disabled_at IS NULL
          AND coalesce(w.nats_config_id, v_default) = v_config_id
        RETURNING n.webhook_id, 'webhook_enabled' AS event
    ), piled AS (
        INSERT INTO walhook.rule_nats_notices AS n (webhook_id, kind, is_open, amount, announced_at)
        SELECT o.webhook_id, 'dead_letters', true, o.amount, v_now FROM ours o WHERE o.amount >= v_letters
        ON CONFLICT (webhook_id, kind) DO UPDATE
        SET is_open = true, amount = excluded.amount, announced_at = excluded.announced_at
        WHERE (NOT n.is_open OR excluded.amount >= 2 * n.amount) AND n.announced_at <= v_now - v_interval
        RETURNING n.webhook_id, 'dead_letters' AS event
    ), cleared AS (
        UPDATE walhook.rule_nats_notices n SET is_open = false, amount = 0
        WHERE n.kind = 'dead_letters' AND n.is_open AND NOT EXISTS (SELECT FROM letters l WHERE l.webhook_id = n.webhook_id)
          AND coalesce((SELECT w.nats_config_id FROM public.rule_webhooks w WHERE w.webhook_id = n.webhook_id), v_default) = v_config_id
        RETURNING n.webhook_id, 'dead_letters_cleared' AS event
    ), events AS (
        SELECT * FROM disabled UNION ALL SELECT * FROM enabled UNION ALL SELECT * FROM piled UNION ALL SELECT * FROM cleared
    )
    SELECT v_subject || '.' || p_source || '.' || e.event,
           format('%s-%s-%s-%s', p_source, e.event, e.webhook_id, (extract(epoch FROM v_now) * 1e6)::bigint),
           jsonb_strip_nulls(jsonb_build_object(
               'event', e.event, 'source', p_source, 'webhook_id', nullif(e.webhook_id, 0),
               'webhook', coalesce(w.webhook_name, d.webhook_name),
               'reason', CASE e.event WHEN 'webhook_disabled' THEN w.disabled_reason WHEN 'dead_letters' THEN d.reason END,
               'dead_letters', coalesce(o.amount, 0), 'newest_dead_letter', o.newest,
               'at', to_char(v_now AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))::text
    FROM events e
    LEFT JOIN public.rule_webhooks w USING (webhook_id)
    LEFT JOIN ours o USING (webhook_id)
    LEFT JOIN public.rule_nats_dead_letters d ON d.dead_letter_id = o.newest
    ORDER BY e.event, e.webhook_id;
END
$$;
COMMENT ON FUNCTION walhook.rule_nats_notices_take IS
    'walhook: for walhook run and walhook deliver: what is to be announced now, of all webhooks of a NATS configuration. Each change is '
    'returned to one caller only, which publishes it';

CALL walhook.rule_cdc_functions_close();

-- In the order of the tables above.
CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_delivery_check', 'BEFORE INSERT OR UPDATE OF batch_max_events, delivery_order, order_key, method',
    'NEW.batch_max_events IS NOT NULL OR NEW.delivery_order = ''key''',
    'walhook.rule_webhook_delivery_check()', 'refuses an order_key that is not valid, and batch_max_events where a request cannot have several events');
CALL walhook.rule_cdc_trigger(
    'public.rule_nats_config', 'walhook_notice_check', 'BEFORE INSERT OR UPDATE OF notice_subject',
    'NEW.notice_subject IS NOT NULL',
    'walhook.rule_nats_notice_check()', 'refuses a notice_subject on which walhook cannot publish');

DO $grants$
DECLARE
    v_grant RECORD;
BEGIN
    FOR v_grant IN
        VALUES ('walhook_worker', 'UPDATE (disabled_at, disabled_reason)', ARRAY['rule_webhooks']),
               ('walhook_worker', 'SELECT, INSERT, UPDATE, DELETE', ARRAY['rule_webhook_order_holders']),
               ('walhook_operator', 'SELECT, DELETE', ARRAY['rule_nats_notices', 'rule_webhook_order_holders']),
               ('walhook_operator', 'SELECT (notice_subject, notice_dead_letters, notice_interval_seconds)', ARRAY['rule_nats_config'])
    LOOP
        CALL walhook.rule_cdc_grant(v_grant.column1, v_grant.column2, v_grant.column3);
    END LOOP;
    CALL walhook.rule_cdc_grant_functions('walhook_operator',
        '^rule_nats_(notices_take|notice_problem|notice_check)$|^rule_webhook_(delivery_check|order_take|queue_by_key|queue_claim)$');
    CALL walhook.rule_cdc_grant_functions('walhook_worker', '^rule_nats_notices_take$|^rule_webhook_(order_take|queue_by_key|queue_claim)$');
    CALL walhook.rule_cdc_grant_functions('walhook_streamer', '^rule_nats_notices_take$');
END
$grants$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('023', 'walhook: announcements about deliveries, several events in one request, order by key')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
