-- RFC-0007, Examples 1 to 5, word for word as far as SQL goes, and its integration test in its spirit.
SELECT * FROM no_plan();

-- Example 1
SELECT rule_nats_configure('default', 'nats://nats-server:4222', 'none', true);
SELECT is((SELECT nats_url FROM rule_nats_config WHERE config_name = 'default'), 'nats://nats-server:4222');
SELECT is(rule_nats_init('default') ->> 'config', 'default');
SELECT is(rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.*', 'events.*'], 'default', 'limits', 604800), '1');
SELECT is(rule_webhook_register('slack_alerts', 'https://hooks.slack.com/services/XXX', 'POST',
                                          '{"Content-Type": "application/json"}'::JSONB), '1');
SELECT ok(rule_webhook_enable_nats(1, 'webhooks.slack', 'nats', 'default'), 'enabled');
SELECT is(rule_webhook_call_unified(1, '{"text": "Alert: System error detected!"}'::JSONB),
    '{"success": true, "status": "enqueued", "webhook_id": 1, "publish_mode": "nats", "nats": {"success": true,
      "status": "enqueued", "event_id": 1, "subject": "webhooks.slack", "message_id": null}}'::jsonb);
SELECT is((SELECT subjects FROM rule_nats_streams), '{webhooks.*,events.*}'::text[], 'nothing was widened');

-- Example 2: no pattern of the stream takes three tokens; the stream is told to, by NOTICE and for this subject alone.
SELECT rule_webhook_enable_nats(1, 'events.order.created', 'nats');
SELECT is((SELECT subjects FROM rule_nats_streams), '{webhooks.*,events.*,events.order.created}'::text[]);
SELECT is(rule_webhook_call_unified(1, '{"order_id": 12345, "customer_id": 678, "amount": 999.99}'::JSONB)
                    #>> '{nats,subject}', 'events.order.created');
SELECT is((SELECT payload FROM rule_webhook_events ORDER BY event_id DESC LIMIT 1),
                    '{"order_id": 12345, "customer_id": 678, "amount": 999.99}');

-- Example 3
DO $$
BEGIN
    FOR i IN 1..100 LOOP
        PERFORM rule_webhook_call_unified(1, jsonb_build_object('order_id', i, 'amount', i * 10));
    END LOOP;
END $$;
SELECT is((SELECT count(*) FROM rule_webhook_events), '102');

-- Example 4
SELECT rule_webhook_enable_nats(1, 'webhooks.critical', 'both');
CREATE TABLE answer AS
SELECT rule_webhook_call_unified(1, '{"critical": true, "message": "Payment failed"}'::JSONB) AS result;
SELECT is(result ->> 'success', 'true') FROM answer;
SELECT is(result #>> '{queue,call_id}', '1') FROM answer;
SELECT is(result #>> '{nats,subject}', 'webhooks.critical') FROM answer;
SELECT is((SELECT payload FROM rule_webhook_calls WHERE status = 'pending'),
          (SELECT payload FROM rule_webhook_events ORDER BY event_id DESC LIMIT 1), 'the queue and NATS get the same');

-- Example 5, with the history that the streamer writes
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, error_message, latency_ms, published_at)
SELECT 1, 'webhooks.critical', '{}', i > 1, CASE i WHEN 1 THEN 'no stream' END, i, now() FROM generate_series(1, 4) i;
SELECT is((SELECT (total_published, successful, failed, success_rate_pct, avg_latency_ms)::text
                     FROM nats_publish_summary), '(4,3,1,75.00,2.50)');
SELECT is((SELECT error_message FROM nats_recent_failures), 'no stream');
SELECT is((SELECT (webhook_name, subject, message_count, avg_latency_ms, p50_latency_ms)::text
                     FROM nats_performance_stats), '(slack_alerts,webhooks.critical,3,3.00,3)');
SELECT is((rule_nats_stats(1, 24) ->> 'total_published')::int, '4');
SELECT is((rule_nats_stats(NULL, 168) ->> 'success_rate_pct')::numeric, '75.00');
SELECT is((rule_nats_stats(2, 24) ->> 'total_published')::int, '0');
SELECT is(ARRAY(SELECT json_object_keys(rule_nats_stats()) LIMIT 12),
    '{total_published,successful,failed,success_rate_pct,avg_latency_ms,min_latency_ms,max_latency_ms,p50_latency_ms,p95_latency_ms,p99_latency_ms,unique_subjects,time_range_hours}'::text[]);
-- The RFC's columns come first, in the RFC's order.
SELECT is(ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = 'nats_publish_summary'::regclass AND attnum BETWEEN 1 AND 10 ORDER BY attnum),
    '{webhook_id,webhook_name,subject,publish_mode,total_published,successful,failed,success_rate_pct,avg_latency_ms,last_published_at}'::text[]);

-- The integration test
SELECT ok(rule_nats_configure('test', 'nats://localhost:4222', 'none', true), 'Should create NATS config');
SELECT ok(rule_webhook_enable_nats(1, 'test.subject', 'nats', 'test'), 'Should enable NATS for webhook');
SELECT ok((rule_webhook_call_unified(1, '{"test": true}'::jsonb) ->> 'success')::boolean, 'Should publish');

-- The migration path
UPDATE rule_webhooks SET publish_mode = 'nats' WHERE nats_enabled = true AND publish_mode = 'both';
SELECT rule_webhook_enable_nats(1, NULL, 'both');
SELECT is((SELECT nats_subject FROM rule_webhooks), 'webhooks.slack_alerts');
SELECT ok(rule_webhook_disable_nats(1), 'disabled');
SELECT is(rule_webhook_call_unified(1, '{}') - 'status',
    '{"success": true, "webhook_id": 1, "publish_mode": "queue", "queue": {"success": true, "status": "enqueued", "call_id": 2}}'::jsonb);
SELECT * FROM finish();
