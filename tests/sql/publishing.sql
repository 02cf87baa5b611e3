-- Publishing is an INSERT in the caller's transaction, and refuses what can be known to be wrong.
SELECT * FROM no_plan();
SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>']);
SELECT rule_webhook_register('hook', 'https://example.com');
SELECT throws_hint('SELECT rule_webhook_publish_nats(1, ''{}'')', 'Webhook 1 (hook) is not enabled for NATS', '%rule_webhook_enable_nats(1)%');
SELECT rule_webhook_enable_nats(1);

SELECT is(rule_webhook_publish_nats(1, '{"a": 1}', 'my-id', '{"Trace": "t"}', 42, 'alice'),
    '{"success": true, "status": "enqueued", "event_id": 1, "subject": "webhooks.hook", "message_id": "my-id"}'::jsonb);
SELECT is((SELECT (subject, message_id, headers, triggered_by, rule_execution_id)::text FROM rule_webhook_events),
    '(webhooks.hook,my-id,"{""Trace"": ""t""}",alice,42)');
SELECT is((rule_webhook_publish_nats(1, payload) ->> 'success')::boolean, true)
FROM (VALUES ('null'::jsonb), ('1'), ('"text"'), ('[]'), (to_jsonb(repeat('x', 10 * 1024 * 1024)))) v (payload);
SELECT is((SELECT DISTINCT triggered_by FROM rule_webhook_events WHERE event_id > 1), session_user::text);

-- Answers are made as text: whatever a caller or a webhook's row has in it, they are JSON.
SELECT is(rule_webhook_publish_nats(1, '{}', id) ->> 'message_id', id) FROM unnest(ARRAY['a"b', 'a\b', '\u0000', 'é', '%s']) id;
SELECT rule_webhook_enable_nats(1, 'webhooks."q\', 'both');
SELECT is(rule_webhook_call_unified(1, '{}') #- '{queue,call_id}' #- '{nats,event_id}',
    '{"success": true, "status": "enqueued", "webhook_id": 1, "publish_mode": "both", "queue": {"success": true, "status": "enqueued"},
      "nats": {"success": true, "status": "enqueued", "subject": "webhooks.\"q\\", "message_id": null}}'::jsonb);
SELECT rule_webhook_enable_nats(1, NULL, 'nats');

-- The short way of an ordinary call and the long way of all others (rule_webhook_put) answer alike and write the same row.
CREATE FUNCTION pg_temp.ways(p_mode text, p_subject text, p_message_id text, p_execution_id bigint, p_by text)
RETURNS TABLE (answers jsonb[], events text[]) LANGUAGE plpgsql AS $$
DECLARE
    v_last CONSTANT bigint := max(event_id) FROM rule_webhook_events;
BEGIN
    PERFORM rule_webhook_enable_nats(1, p_subject, p_mode);
    answers := ARRAY[
        rule_webhook_publish_nats(1, '{"n": 1}', p_message_id, NULL, p_execution_id, p_by),
        walhook.rule_webhook_put(1, '{"n": 1}', 'nats', p_message_id, NULL, p_execution_id, p_by),
        rule_webhook_call_unified(1, '{"n": 1}', p_message_id, NULL, p_execution_id, p_by),
        walhook.rule_webhook_put(1, '{"n": 1}', NULL, p_message_id, NULL, p_execution_id, p_by)];
    answers := ARRAY(SELECT a - 'event_id' #- '{queue,call_id}' #- '{nats,event_id}' FROM unnest(answers) WITH ORDINALITY t (a, n) ORDER BY n);
    events := ARRAY(SELECT ((to_jsonb(e) - 'event_id') || jsonb_build_object('of_now', e.created_at = now()))::text
                    FROM rule_webhook_events e WHERE e.event_id > v_last ORDER BY e.event_id);
    RETURN NEXT;
END $$;
SELECT ok(answers[1] = answers[2] AND answers[3] = answers[4] AND cardinality(events) = CASE mode WHEN 'queue' THEN 2 ELSE 4 END
          AND events = array_fill(events[1], ARRAY[cardinality(events)]), format('%s %s %s: %s %s', mode, subject, id, answers, events))
FROM unnest(ARRAY['nats', 'both', 'queue']) mode,
     unnest(ARRAY[NULL, 'webhooks.a_b-c.%20', 'webhooks."q\', 'webhooks.é']) subject,
     (VALUES (NULL, NULL, NULL), ('a.B_c:/-9', 42, 'alice'), (repeat('x', 512), NULL, NULL), ('a b', 1, NULL), ('"', 1, 'é"\')) v (id, execution_id, by),
     pg_temp.ways(mode, subject, id, execution_id, by);
CREATE ROLE caller_of_both_ways;
GRANT EXECUTE ON FUNCTION rule_webhook_publish_nats, rule_webhook_call_unified TO caller_of_both_ways;
SELECT rule_webhook_enable_nats(1, NULL, 'nats');
SET ROLE caller_of_both_ways;
SELECT rule_webhook_publish_nats(1, '{}');
SELECT rule_webhook_call_unified(1, '{}');
RESET ROLE;
DROP OWNED BY caller_of_both_ways; DROP ROLE caller_of_both_ways;
SELECT is(array_agg(triggered_by ORDER BY event_id DESC), '{caller_of_both_ways,caller_of_both_ways}')
FROM (SELECT * FROM rule_webhook_events ORDER BY event_id DESC LIMIT 2) e;
-- And refuse alike.
SELECT throws_like(format('SELECT %s(1, ''{}'', %L)', f, id), '%message id%')
FROM unnest(ARRAY['rule_webhook_publish_nats', 'rule_webhook_call_unified']) f, unnest(ARRAY['', ' a', E'a\x7f', repeat('x', 513)]) id;
UPDATE rule_nats_config SET enabled = false;
SELECT throws_like(format('SELECT %s(1, ''{}'')', f), '%its NATS config ''default'' is disabled')
FROM unnest(ARRAY['rule_webhook_publish_nats', 'rule_webhook_call_unified']) f;
UPDATE rule_nats_config SET enabled = NULL;
SELECT is(rule_webhook_call_unified(1, '{}') ->> 'success', 'true');
UPDATE rule_nats_config SET enabled = true;
UPDATE rule_webhooks SET enabled = NULL;
SELECT throws_like(format('SELECT %s(1, ''{}'')', f), '%is disabled')
FROM unnest(ARRAY['rule_webhook_publish_nats', 'rule_webhook_call_unified']) f;
UPDATE rule_webhooks SET enabled = true, nats_enabled = false;
SELECT throws_like(format('SELECT %s(1, ''{}'')', f), '%is not enabled for NATS')
FROM unnest(ARRAY['rule_webhook_publish_nats', 'rule_webhook_call_unified']) f;
UPDATE rule_webhooks SET nats_enabled = true, nats_config_id = NULL, nats_subject = NULL;
SELECT is(rule_webhook_call_unified(1, '{}') #>> '{nats,subject}', 'webhooks.hook', 'the default configuration, the default subject');
SELECT rule_webhook_enable_nats(1, NULL, 'nats');

-- Without headers the session's trace is passed on, and what is none is left out; a header of the call's own is not replaced.
CREATE FUNCTION pg_temp.traced(p_headers jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_event_id bigint := rule_webhook_publish_nats(1, '{}', NULL, p_headers) ->> 'event_id';
BEGIN
    RETURN (SELECT headers FROM rule_webhook_events WHERE event_id = v_event_id);
END $$;
SELECT is(pg_temp.traced(NULL), NULL);
SELECT is(pg_temp.traced('{"A": "b"}'), '{"A": "b"}');
SET walhook.traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
SELECT is(pg_temp.traced(NULL), jsonb_build_object('traceparent', current_setting('walhook.traceparent')));
SELECT is(pg_temp.traced('{"A": "b"}'), '{"A": "b"}' || jsonb_build_object('traceparent', current_setting('walhook.traceparent')));
SELECT is(pg_temp.traced('{"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"}'),
                         '{"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"}');
SELECT is(pg_temp.traced('{"traceparent": "no", "A": "b"}'), '{"A": "b"}');
SELECT is(pg_temp.traced('{"traceparent": ""}'), NULL);
SET walhook.traceparent = 'no';
SELECT is(pg_temp.traced(NULL), NULL);
SELECT is(pg_temp.traced('{"A": "b"}'), '{"A": "b"}');
RESET walhook.traceparent;

-- An event keeps the subject it was made with.
SELECT rule_webhook_enable_nats(1, 'webhooks.elsewhere', 'nats');
SELECT is((SELECT subject FROM rule_webhook_events WHERE event_id = 1), 'webhooks.hook');

SELECT throws_hint('SELECT rule_webhook_publish_nats(1, NULL)', '%the payload is NULL%', '%''null''::jsonb%');
SELECT throws_like('SELECT rule_webhook_call_unified(1, NULL)', '%the payload is NULL%');
SELECT throws_like('SELECT rule_webhook_publish_nats(NULL, ''{}'')', 'Webhook NULL not found');
SELECT throws_like('SELECT rule_webhook_call_unified(9, ''{}'')', 'Webhook 9 not found');
SELECT throws_like('SELECT rule_webhook_publish_nats(1, ''{}'', '''')', '%message id%');
SELECT throws_like($$SELECT rule_webhook_publish_nats(1, '{}', E'a\nb')$$, '%message id%');
SELECT throws_like($$SELECT rule_webhook_publish_nats(1, '{}', NULL, '{"Nats-Msg-Id": "x"}')$$, '%Nats-Msg-Id is reserved');
SELECT throws_like($$SELECT rule_webhook_publish_nats(1, '{}', NULL, '{"A B": "x"}')$$, '%is not a header name%');
SELECT throws_like($$SELECT rule_webhook_publish_nats(1, '{}', NULL, '{"A": 1}')$$, '%is a JSON number, not a string');
SELECT throws_like($$SELECT rule_webhook_publish_nats(1, '{}', NULL, '{"A": "x\r\ny"}')$$, '%control character%');
SELECT throws_like($$SELECT rule_webhook_publish_nats(1, '{}', NULL, '[]')$$, '%headers are a JSON array%');

-- Bad rows, written past the functions
SET session_replication_role = replica; -- as a row from before columns were checked
UPDATE rule_webhooks SET nats_subject = 'webhooks.*';
RESET session_replication_role;
SELECT throws_like('SELECT rule_webhook_publish_nats(1, ''{}'')', '%''webhooks.*'': it has a wildcard%');
UPDATE rule_webhooks SET nats_subject = NULL, nats_config_id = NULL;
SELECT rule_nats_configure('audit', 'nats://elsewhere.invalid:4222');
UPDATE rule_nats_config SET subject_prefix = 'audit' WHERE config_name = 'audit';
SELECT is(rule_webhook_publish_nats(1, '{}') ->> 'subject', 'webhooks.hook', 'default subject and config');
UPDATE rule_webhooks SET nats_config_id = (SELECT config_id FROM rule_nats_config WHERE config_name = 'audit');
SELECT is(rule_webhook_publish_nats(1, '{}') ->> 'subject', 'audit.hook', 'its own config');
UPDATE rule_webhooks SET nats_config_id = NULL;
SELECT throws_like($$UPDATE rule_webhooks SET publish_mode = 'neither'$$, '%violates check constraint%');
UPDATE rule_webhooks SET publish_mode = NULL;
SELECT is(rule_webhook_call_unified(1, '{}') ->> 'publish_mode', 'queue', 'no mode');
UPDATE rule_nats_config SET enabled = false;
SELECT throws_like('SELECT rule_webhook_publish_nats(1, ''{}'')', '%its NATS config ''default'' is disabled');
UPDATE rule_nats_config SET enabled = true;
UPDATE rule_webhooks SET enabled = false;
SELECT throws_like('SELECT rule_webhook_publish_nats(1, ''{}'')', 'Webhook 1 (hook) is disabled');
UPDATE rule_webhooks SET enabled = true, nats_enabled = true, publish_mode = 'nats';

-- commit
-- A caller's rollback publishes nothing.
CREATE TABLE before AS SELECT count(*) AS events FROM rule_webhook_events;
DO $$
BEGIN
    PERFORM rule_webhook_call_unified(1, '{}');
    RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
    NULL;
END $$;
SELECT is((SELECT count(*) FROM rule_webhook_events), events, 'events after a rollback') FROM before;

-- What became of an event
SELECT is(rule_nats_event_status(1) ->> 'status', 'enqueued');
SELECT ok(rule_nats_event_status(1) ->> 'message' LIKE 'no walhook is running%', 'it says who is missing');
SELECT is(rule_nats_event_status(999) ->> 'status', 'unknown');
SELECT is(rule_nats_event_status(NULL) ->> 'status', 'unknown');
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, error_message, webhook_event_id)
VALUES (1, 's', '{}', false, 'refused', 1);
SELECT is(rule_nats_event_status(1) - 'published_at', '{"event_id": 1, "status": "failed", "success": false, "subject": "s", "message_id": null, "error": "refused"}'::jsonb);
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, message_id, sequence_number, latency_ms, stream_name, webhook_event_id)
VALUES (1, 's', '{}', true, 'my-id', 7, 1.25, 'WEBHOOKS', 1);
SELECT is(rule_nats_event_status(1) - 'published_at', '{"event_id": 1, "status": "published", "success": true, "subject": "s", "message_id": "my-id", "stream": "WEBHOOKS", "sequence": 7, "latency_ms": 1.25}'::jsonb);
-- One message_id twice: the second event is told as what it is, without the first one's sequence
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, message_id, event_id, sequence_number, stream_name, webhook_event_id)
VALUES (1, 's', '{}', true, 'twice', 'e-1', 8, 'WEBHOOKS', 71), (1, 's', '{}', true, 'twice', 'e-2', 8, 'WEBHOOKS', 72),
       (1, 's', '{}', true, 'twice', 'e-3', 9, 'WEBHOOKS', 73);
SELECT is(rule_nats_event_status(71) ->> 'sequence', '8');
SELECT is(rule_nats_event_status(72) - 'published_at', '{"event_id": 72, "status": "duplicate", "success": true, "subject": "s",
    "message_id": "twice", "stream": "WEBHOOKS", "duplicate_of": 71,
    "message": "the stream had a message with this message_id: nothing was stored for this event"}'::jsonb);
SELECT is(rule_nats_event_status(73) ->> 'sequence', '9', 'after the window it is stored again');
CREATE TABLE waited (event_id bigint, status jsonb);
DO $$
DECLARE
    v_status jsonb;
BEGIN
    CALL rule_nats_wait(1, '1 s', v_status);
    INSERT INTO waited VALUES (1, v_status);
    CALL rule_nats_wait(2, '0 s', v_status);
    INSERT INTO waited VALUES (2, v_status);
    PERFORM rule_webhook_publish_nats(1, '{}');
END $$;
SELECT is(status ->> 'status', 'published') FROM waited WHERE event_id = 1;
SELECT is(status ->> 'timed_out', 'true') FROM waited WHERE event_id = 2;
SELECT is(rule_webhook_events_cleanup('1 minute'), '0', 'young events');
UPDATE rule_webhook_events SET created_at = now() - interval '1 hour';
SELECT is(rule_webhook_events_cleanup('1 minute', 2), '2');
SELECT ok(rule_webhook_events_cleanup('1 minute') > 2, 'the rest');
SELECT * FROM finish();
