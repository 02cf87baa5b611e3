-- RFC-0007's integration test as it is printed, on a database that has a webhook; there it is one transaction, which nothing
-- can be published from, so the row of the history that the streamer writes after a commit is written here in its place.
-- tests/sql/rfc.rs has the test with the streamer.
SELECT rule_webhook_register('slack_alerts', 'https://hooks.slack.com/services/XXX');

BEGIN;
SELECT plan(5);

-- Test: Create NATS config
SELECT ok(
    rule_nats_configure('test', 'nats://localhost:4222', 'none', true),
    'Should create NATS config'
);

-- Test: Enable NATS for webhook
SELECT ok(
    rule_webhook_enable_nats(1, 'test.subject', 'nats', 'test'),
    'Should enable NATS for webhook'
);

-- Test: Publish to NATS
SELECT ok(
    (rule_webhook_call_unified(1, '{"test": true}'::jsonb)->>'success')::boolean,
    'Should publish to NATS successfully'
);

INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, webhook_event_id)
SELECT webhook_id, subject, payload, true, event_id FROM rule_webhook_events;

-- Test: Verify history
SELECT ok(
    EXISTS(SELECT 1 FROM rule_nats_publish_history WHERE webhook_id = 1),
    'Should record publish in history'
);

-- Test: Get stats
SELECT ok(
    (rule_nats_stats(1, 1)->>'total_published')::int > 0,
    'Should return stats'
);

SELECT * FROM finish();
ROLLBACK;
