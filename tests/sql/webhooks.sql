-- RFC-0005, as shipped and mended.
SELECT * FROM no_plan();
SELECT is(rule_webhook_register('a', 'https://example.com/a', p_max_retries => 2), '1');
SELECT throws_like($$SELECT rule_webhook_register('a', 'https://example.com')$$, '%a webhook of that name exists');
SELECT throws_like($$SELECT rule_webhook_register('b', 'ftp://example.com')$$, '%not http:// or https://');
SELECT throws_like($$SELECT rule_webhook_register('b', NULL)$$, '%its url is NULL%');
SELECT ok(rule_webhook_update(1, p_timeout_ms => 100), 'updated');
SELECT ok(NOT rule_webhook_update(99), 'nothing to update');
SELECT is(rule_webhook_get('a') ->> 'timeout_ms', '100');
SELECT is(rule_webhook_get('1') ->> 'webhook_name', 'a');
SELECT is(rule_webhook_get('nobody')::text, '{"error":"Webhook not found"}');
SELECT ok(rule_webhook_secret_set(1, 'k', 'v1') AND rule_webhook_secret_set(1, 'k', 'v2'), 'set twice');
SELECT is(rule_webhook_secret_get(1, 'k'), 'v2');
SELECT ok(rule_webhook_secret_delete(1, 'k') AND NOT rule_webhook_secret_delete(1, 'k'), 'deleted once');
SELECT is(rule_webhook_enqueue(1, '{"n": 1}', 'a rule'), '1');
SELECT is(rule_webhook_call(1, '{"n": 2}')::jsonb - 'message',
    '{"success": true, "call_id": 2, "status": "enqueued", "webhook_name": "a", "url": "https://example.com/a"}'::jsonb);
SELECT is(rule_webhook_call(9, '{}') ->> 'success', 'false');
SELECT throws_hint('SELECT rule_webhook_enqueue(9, ''{}'')', 'Webhook 9 not found', '%rule_webhook_list%');
SELECT is(rule_webhook_call_with_http(1, '{}') ->> 'success', 'false');
SELECT is(rule_webhook_call_status(2) ->> 'status', 'pending');
SELECT is(rule_webhook_call_status(9)::text, '{"error":"Call not found"}');

-- 1 s, then 2 s, then it has failed
BEGIN;
SELECT ok(rule_webhook_retry(1), 'first retry');
SELECT is((SELECT next_retry_at - now() FROM rule_webhook_calls WHERE call_id = 1), '1 s'::interval);
COMMIT;
BEGIN;
SELECT ok(rule_webhook_retry(1), 'second retry');
SELECT is((SELECT next_retry_at - now() FROM rule_webhook_calls WHERE call_id = 1), '2 s'::interval);
COMMIT;
SELECT is((SELECT count(*) FROM rule_webhook_process_retries()), '0', 'due retries');
UPDATE rule_webhook_calls SET next_retry_at = now() WHERE call_id = 1;
SELECT is((SELECT (call_id, webhook_name, retry_result ->> 'status')::text FROM rule_webhook_process_retries()), '(1,a,pending)');
SELECT ok(NOT rule_webhook_retry(1), 'no third retry');
SELECT is(rule_webhook_call_status(1) ->> 'status', 'failed');
SELECT is((SELECT (total_calls, failed_calls, pending_calls, success_rate_pct)::text FROM webhook_status_summary), '(2,1,1,0.00)');
SELECT is((SELECT call_id FROM webhook_recent_failures), '1');
UPDATE rule_webhook_calls SET created_at = now() - interval '31 days';
SELECT is(rule_webhook_cleanup_old_calls(), '0', 'pending and failed ones are kept');
SELECT is(rule_webhook_cleanup_old_calls('30 days', false), '1');

SELECT rule_webhook_update(1, p_enabled => false);
SELECT is((SELECT count(*) FROM rule_webhook_list(true)), '0');
SELECT throws_hint('SELECT rule_webhook_enqueue(1, ''{}'')', 'Webhook 1 (a) is disabled', '%p_enabled => true%');
SELECT throws_like('SELECT rule_webhook_call_unified(1, ''{}'')', 'Webhook 1 (a) is disabled');
SELECT ok(rule_webhook_delete(1) AND NOT rule_webhook_delete(1), 'deleted once');
SELECT * FROM finish();
