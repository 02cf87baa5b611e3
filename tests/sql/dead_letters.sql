-- Dead letters: published again through the event table, or dropped; once, and by whom it is allowed.
SELECT * FROM no_plan();
SELECT rule_webhook_register('hook', 'https://example.com');
SELECT rule_nats_configure('default', 'nats://a:1');
SELECT rule_webhook_enable_nats(1, 'webhooks.hook', 'nats');
INSERT INTO rule_nats_dead_letters (event_id, webhook_id, webhook_name, subject, headers, payload, reason) VALUES
    ('s-1', 1, 'hook', 'webhooks.then', '{"Nats-Msg-Id": "mine", "Walhook-Id": "s-1", "Walhook-Op": "update", "X": "1"}', '\x00ff7b', 'too large'),
    ('s-2', 1, 'hook', '', NULL, '{}', 'its webhook was set aside'),
    ('s-3', 1, 'hook', 'webhooks.', NULL, '{}', 'no value'),
    ('s-4', 9, NULL, '', NULL, '{}', 'no webhook'),
    ('s-5', 1, 'hook', 'webhooks.x', NULL, NULL, 'not kept'),
    ('s-6', 1, 'hook', 'webhooks.x', NULL, '{}', 'unwanted');

-- All of it, as it was, under a message id of its own; the first event's id and the caller's are in headers
SELECT is(rule_nats_dead_letter_retry(1), 1::bigint);
SELECT is((SELECT (webhook_id, payload, subject, message_id, body, triggered_by = session_user)::text FROM rule_webhook_events),
    '(1,null,webhooks.then,,"\\x00ff7b",t)');
SELECT is((SELECT headers FROM rule_webhook_events), '{"X": "1", "Walhook-Op": "update", "Walhook-Id": "s-1", "Nats-Msg-Id": "mine",
    "Walhook-Message-Id": "mine", "Walhook-Retry-Of": "s-1"}'::jsonb);
SELECT is((SELECT (status, retried_as)::text FROM rule_nats_dead_letters WHERE dead_letter_id = 1), '(retried,1)');
SELECT is(rule_nats_event_status(1) ->> 'status', 'enqueued');
SELECT throws_hint('SELECT rule_nats_dead_letter_retry(1)', 'cannot retry dead letter 1: it is retried', '%SET status = ''dead''%');
SELECT throws_hint('SELECT rule_nats_dead_letter_drop(1)', 'cannot drop dead letter 1: it is retried', '%rule_nats_event_status%');
SELECT is((SELECT count(*) FROM rule_webhook_events), 1::bigint);

-- The subject: one that is named, its own, the webhook's
SELECT ok(rule_nats_dead_letter_retry(2) > 1, 'a new event');
SELECT is((SELECT (subject, message_id)::text FROM rule_webhook_events ORDER BY event_id DESC LIMIT 1), '(webhooks.hook,)');
SELECT throws_hint('SELECT rule_nats_dead_letter_retry(3)', 'cannot retry dead letter 3 to the subject ''webhooks.'':%', '%another.subject%');
SELECT throws_like('SELECT rule_nats_dead_letter_retry(3, ''a.*'')', 'cannot retry dead letter 3 to the subject ''a.*'':%');
SELECT ok(rule_nats_dead_letter_retry(3, 'webhooks.named') > 2, 'to a subject that is named');
SELECT is((SELECT subject FROM rule_webhook_events ORDER BY event_id DESC LIMIT 1), 'webhooks.named');

-- What is refused
SELECT throws_hint('SELECT rule_nats_dead_letter_retry(4)', 'cannot retry dead letter 4: its webhook 9 does not exist', 'UPDATE%');
SELECT throws_hint('SELECT rule_nats_dead_letter_retry(5)', '%its payload was not kept', '%rule_nats_dead_letter_drop(5);%');
SELECT throws_like('SELECT rule_nats_dead_letter_retry(77)', 'there is no dead letter 77');
SELECT throws_like('SELECT rule_nats_dead_letter_retry(NULL)', 'there is no dead letter NULL');
SELECT throws_like('SELECT rule_nats_dead_letter_drop(77)', 'there is no dead letter 77');
SELECT ok(rule_nats_dead_letter_drop(6) AND NOT rule_nats_dead_letter_drop(6), 'once');
SELECT throws_like('SELECT rule_nats_dead_letter_retry(6)', 'cannot retry dead letter 6: it is dropped');
SELECT is((SELECT string_agg(status, ' ' ORDER BY dead_letter_id) FROM rule_nats_dead_letters), 'retried retried retried dead dead dropped');

-- Who may
SET ROLE walhook_application;
SELECT throws_like('SELECT rule_nats_dead_letter_retry(4)', 'permission denied%');
SELECT throws_like('SELECT rule_nats_dead_letter_drop(4)', 'permission denied%');
RESET ROLE;
UPDATE rule_nats_dead_letters SET webhook_id = 1 WHERE dead_letter_id = 4;
SET ROLE walhook_operator;
SELECT ok(rule_nats_dead_letter_retry(4) > 0 AND rule_nats_dead_letter_drop(5), 'operators');
RESET ROLE;
SELECT is((SELECT triggered_by FROM rule_webhook_events ORDER BY event_id DESC LIMIT 1), 'walhook_operator');
SELECT * FROM finish();
