-- Messages without a table: what is refused and why, the keys, and what became of a message.
SELECT * FROM no_plan();
SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>']);
SELECT rule_webhook_register('hook', 'https://example.com');
SELECT throws_hint('SELECT rule_webhook_emit(1, ''{}'')', 'Webhook 1 (hook) is not enabled for NATS', '%rule_webhook_enable_nats(1)%');
SELECT rule_webhook_enable_nats(1);
SELECT throws_hint('SELECT rule_webhook_emit(1, ''{}'')', '%rule_webhook_emit is not enabled in this database', '%rule_webhook_emit_enable()%');
SELECT throws_hint('SELECT rule_webhook_emit_rotate_key()', '%it is not enabled in this database', '%rule_webhook_emit_enable()%');
-- A walhook from before messages runs: it would pass over them.
INSERT INTO rule_cdc_status (source, host, version, heartbeat_at) VALUES ('main', 'db1', '0.2.0', now());
SELECT throws_hint('SELECT rule_webhook_emit_enable()', '%walhook 0.2.0 for source ''main'' on host ''db1'' is too old%', '%Stop it%');
UPDATE rule_cdc_status SET publishes_messages = true;
SELECT is(rule_webhook_emit_enable(), true);
SELECT is(rule_webhook_emit_enable(), false);
DELETE FROM rule_cdc_status;

SELECT ok(rule_webhook_emit(1, '{"a": 1}') > '0/0', 'it has an LSN');
SELECT ok(rule_webhook_emit('hook', 'null', 'my-id', '{"Trace": "t"}', 42, 'alice', ARRAY['a b', 'ü', '.']) <= pg_current_wal_insert_lsn(), 'by name, with all there is');
SELECT is((SELECT count(*) FROM rule_webhook_events), 0::bigint, 'no row');
SELECT throws_like('SELECT rule_webhook_emit(1, NULL)', '%the payload is NULL%');
SELECT throws_like('SELECT rule_webhook_emit(NULL::integer, ''{}'')', 'Webhook NULL not found');
SELECT throws_like('SELECT rule_webhook_emit(9, ''{}'')', 'Webhook 9 not found');
SELECT throws_like('SELECT rule_webhook_emit(''none'', ''{}'')', '%none%');
SELECT throws_like('SELECT rule_webhook_emit(1, ''{}'', '''')', '%message id%');
SELECT throws_like($$SELECT rule_webhook_emit(1, '{}', headers => '{"Nats-Msg-Id": "x"}')$$, '%Nats-Msg-Id is reserved');
SELECT throws_hint(format('SELECT rule_webhook_emit(1, ''{}'', subject_tokens => %L)', t), 'Webhook 1 (hook): cannot append the subject tokens %', '%ARRAY%')
FROM (VALUES ('{}'::text[]), ('{""}'), ('{a,NULL}'), ('{{a},{b}}')) v (t);
SELECT throws_like($$SELECT rule_webhook_emit(1, '{}', subject_tokens => ARRAY[repeat('x', 1020)])$$, '%has 1034 bytes, at most 1024%');
UPDATE rule_webhooks SET enabled = false;
SELECT throws_like('SELECT rule_webhook_emit(1, ''{}'')', 'Webhook 1 (hook) is disabled');
UPDATE rule_webhooks SET enabled = true;
UPDATE rule_nats_config SET enabled = false;
SELECT throws_like('SELECT rule_webhook_emit(1, ''{}'')', '%its NATS config ''default'' is disabled');
UPDATE rule_nats_config SET enabled = true;

-- Keys
SELECT is(rule_webhook_emit_retire_keys(), 0, 'the newest one stays');
SELECT is(rule_webhook_emit_rotate_key(), 2);
SELECT is(rule_webhook_emit_retire_keys(), 1);
SELECT is((SELECT string_agg(concat_ws(' ', key_id, retired_lsn < pg_current_wal_insert_lsn(), retired_at <= clock_timestamp()), ', ' ORDER BY key_id) FROM rule_cdc_emit_keys), '1 t t, 2');
SELECT is((SELECT count(DISTINCT (inner_key, outer_key)) FROM rule_cdc_emit_keys), 2::bigint);
SELECT ok(rule_webhook_emit(1, '{}') > '0/0', 'the new key signs');
SELECT ok(walhook.rule_cdc_table_problem('rule_cdc_emit_keys') LIKE 'it is one of walhook''s own tables%', 'it cannot be linked');

-- commit
-- What became of a message
CREATE TABLE emitted AS SELECT rule_webhook_emit(1, '{}') AS lsn, rule_webhook_emit(1, '{}', 'twice') AS first, rule_webhook_emit(1, '{}', 'twice') AS second;
-- commit
SELECT is(rule_webhook_emit_status(lsn) ->> 'status', 'enqueued') FROM emitted;
SELECT ok(rule_webhook_emit_status(lsn) ->> 'message' LIKE 'no walhook is running%', 'it says who is missing') FROM emitted;
SELECT is(rule_webhook_emit_status(NULL), '{"lsn": null, "status": "unknown", "message": "the LSN is NULL"}'::jsonb);
SELECT ok(rule_webhook_emit_status('FFFFFFF/0') ->> 'message' LIKE 'the WAL of this database ends at %', 'no such place');
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, message_id, event_id, sequence_number, latency_ms, stream_name, webhook_event_id)
SELECT 1, 's', '{}', true, 'e-1', 'e-1', 7, 1.25, 'WEBHOOKS', -(lsn - '0/0')::bigint FROM emitted;
SELECT is(rule_webhook_emit_status(lsn) - 'published_at', jsonb_build_object('lsn', lsn, 'status', 'published', 'success', true, 'subject', 's', 'message_id', 'e-1', 'stream', 'WEBHOOKS', 'sequence', 7, 'latency_ms', 1.25)) FROM emitted;
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, message_id, event_id, sequence_number, stream_name, webhook_event_id)
SELECT 1, 's', '{}', true, 'twice', v.event_id, 8, 'WEBHOOKS', -(v.lsn - '0/0')::bigint FROM emitted, LATERAL (VALUES ('e-2', first), ('e-3', second)) v (event_id, lsn);
SELECT is(rule_webhook_emit_status(second) ->> 'duplicate_of', first::text) FROM emitted;
DO $$
DECLARE
    v_status jsonb;
    v_lsn pg_lsn;
BEGIN
    SELECT lsn INTO v_lsn FROM emitted;
    CALL rule_webhook_emit_wait(v_lsn, '1 s', v_status);
    ASSERT v_status ->> 'status' = 'published', v_status;
    v_lsn := '0/0'::pg_lsn + ((v_lsn - '0/0') + 1);
    CALL rule_webhook_emit_wait(v_lsn, '0 s', v_status);
    ASSERT v_status ->> 'timed_out' = 'true', v_status;
    v_lsn := rule_webhook_emit(1, '{}');
    BEGIN
        CALL rule_webhook_emit_wait(v_lsn, '0 s', v_status);
        ASSERT false, 'it waited';
    EXCEPTION WHEN active_sql_transaction THEN
        ASSERT SQLERRM LIKE 'cannot wait for message %: this transaction has emitted%', SQLERRM;
    END;
END $$;
SELECT * FROM finish();
