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
SELECT is(rule_webhook_publish_nats(1, '{}') ->> 'subject', 'webhooks.hook', 'default subject and config');
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
