-- What 010 adds: the webhook's row tells of its secrets, the worker's role can do its work and nothing else.
SELECT * FROM no_plan();
SELECT rule_webhook_register('hook', 'https://example.com');
SELECT is((SELECT (signed, secrets_changed_at IS NULL)::text FROM rule_webhooks), '(f,t)');

-- Another secret changes nothing but the time; one that signs makes the webhook signed, for good.
SELECT rule_webhook_secret_set(1, 'api_key', 'k');
SELECT is((SELECT (signed, secrets_changed_at IS NULL)::text FROM rule_webhooks), '(f,f)');
SELECT rule_webhook_secret_set(1, 'signings', 'k');
SELECT is((SELECT signed FROM rule_webhooks), false);
CREATE TEMP TABLE before AS SELECT secrets_changed_at FROM rule_webhooks;
SELECT rule_webhook_secret_set(1, 'signing_2026', 'k');
SELECT is((SELECT signed FROM rule_webhooks), true);
SELECT ok((SELECT w.secrets_changed_at > b.secrets_changed_at FROM rule_webhooks w, before b), 'later');
SELECT ok(rule_webhook_secret_delete(1, 'signing_2026'), 'deleted');
SELECT is((SELECT signed FROM rule_webhooks), true, 'a signature that is missing must not pass for one that is not wanted');

SELECT throws_like(s, '%valid_%') FROM unnest(ARRAY[
    'UPDATE rule_webhooks SET request_body = ''half''', 'UPDATE rule_webhooks SET delivery_order = ''random''',
    'UPDATE rule_webhooks SET max_in_flight = 0']) s;

-- An event's call is there once; calls of the queue know of no event.
INSERT INTO rule_webhook_calls (webhook_id, payload, event_id) VALUES (1, '{}', 'a'), (1, '{}', NULL), (1, '{}', NULL);
SELECT throws_like('INSERT INTO rule_webhook_calls (webhook_id, payload, event_id) VALUES (1, ''{}'', ''a'')', '%idx_webhook_calls_event%');
-- What waits in JetStream for its retry is no business of those who work off the queue.
UPDATE rule_webhook_calls SET status = 'retrying' WHERE event_id = 'a';
SELECT is((SELECT count(*) FROM rule_webhook_process_retries()), 0::bigint);

-- commit
SET ROLE walhook_worker;
SELECT is((SELECT count(*) FROM rule_webhook_secrets), 2::bigint);
UPDATE rule_webhooks SET enabled = false, updated_at = now() WHERE webhook_id = 1;
INSERT INTO rule_webhook_calls (webhook_id, payload, event_id) VALUES (1, '{}', 'b');
INSERT INTO rule_webhook_call_history (call_id, attempt_number) SELECT call_id, 1 FROM rule_webhook_calls WHERE event_id = 'b';
INSERT INTO rule_nats_dead_letters (event_id, reason) VALUES ('b', 'why');
SELECT throws_like(s, 'permission denied for %') FROM unnest(ARRAY[
    'UPDATE rule_webhooks SET url = ''https://evil.example.com''', 'DELETE FROM rule_webhooks', 'DELETE FROM rule_webhook_calls',
    'UPDATE rule_webhook_secrets SET secret_value = ''x''', 'SELECT * FROM rule_webhook_events',
    'SELECT * FROM rule_nats_publish_history', 'UPDATE rule_nats_config SET nats_url = ''nats://evil''',
    'SELECT rule_webhook_secret_get(1, ''k'')', 'SELECT rule_nats_configure()']) s;
RESET ROLE;
SELECT is((SELECT enabled FROM rule_webhooks), false);
SELECT * FROM finish();
