-- What 023 adds: notices, several events in one request.
SELECT * FROM no_plan();
SELECT rule_webhook_register('a', 'https://example.com'), rule_webhook_register('b', 'https://example.com');

-- Settings that no worker could use are refused, and say what to write instead.
SELECT throws_like(s, '%valid_%') FROM unnest(ARRAY[
    'UPDATE rule_webhooks SET batch_max_events = 1', 'UPDATE rule_webhooks SET batch_max_events = 10001',
    'UPDATE rule_webhooks SET batch_max_bytes = 1000', 'UPDATE rule_webhooks SET batch_max_wait_ms = -1',
    'UPDATE rule_webhooks SET seal_key = ''a b''', 'UPDATE rule_webhooks SET seal_key = ''''',
    'UPDATE rule_webhooks SET seal_key = ''../x''', 'UPDATE rule_nats_config SET notice_dead_letters = 0', 'UPDATE rule_nats_config SET notice_interval_seconds = 0']) s;
SELECT throws_like('UPDATE rule_webhooks SET batch_max_events = 10, delivery_order = ''strict''',
                   '%webhook ''a'' (webhook_id 1): batch_max_events: a webhook with delivery_order ''strict'' is called with one event%');
SELECT throws_like('UPDATE rule_webhooks SET batch_max_events = 10, method = ''GET''', '%batch_max_events: a GET has no body%');
UPDATE rule_webhooks SET batch_max_events = 10 WHERE webhook_id = 1;
SELECT throws_like('UPDATE rule_webhooks SET delivery_order = ''strict'' WHERE webhook_id = 1', '%one event at a time%');

SELECT throws_like(format('UPDATE rule_nats_config SET notice_subject = %L', t), '%NATS configuration ''default'' (config_id 1): notice_subject: it is not a subject%')
FROM unnest(ARRAY['', 'a b', 'a.*', '>', '$SYS', 'a..b', repeat('a', 201)]) t;
SELECT throws_like('UPDATE rule_nats_config SET notice_subject = ''webhooks.notices''', '%notice_subject: stream ''WEBHOOKS'' takes it%');

SELECT throws_like(format('UPDATE rule_webhooks SET delivery_order = ''key'', order_key = %L WHERE webhook_id = 2', k), '%webhook ''b'' (webhook_id 2): order_key: it is%')
FROM unnest(ARRAY[NULL, '', 'id', 'data:', 'data:a,', 'data:a,,b', 'subject:0', 'subject:x', 'header:X Y', 'header:']) k;
UPDATE rule_webhooks SET delivery_order = 'key', order_key = 'data:Tenant, the id' WHERE webhook_id = 2;
UPDATE rule_webhooks SET order_key = 'subject:3' WHERE webhook_id = 2;
UPDATE rule_webhooks SET order_key = 'header:X-Customer' WHERE webhook_id = 2;
SELECT throws_like('UPDATE rule_webhooks SET delivery_order = ''keys'' WHERE webhook_id = 2', '%valid_delivery_order%');

-- Calls of the queue by key: the first of each key, and none past one without a key.
UPDATE rule_webhooks SET order_key = 'data:k' WHERE webhook_id = 2;
INSERT INTO rule_webhook_calls (webhook_id, payload)
SELECT 2, p FROM unnest(ARRAY['{"k": 1, "n": 1}', '{"k": 1, "n": 2}', '{"k": 2, "n": 3}', '{"n": 4}', '{"k": 3, "n": 5}']::jsonb[]) p;
-- commit
SET ROLE walhook_worker;
SELECT is((SELECT array_agg(payload::jsonb -> 'n') FROM walhook.rule_webhook_queue_claim('w', '{2}', '{9}', 60000))::text, '{1,3}');
SELECT is((SELECT count(*) FROM walhook.rule_webhook_queue_claim('w', '{2}', '{9}', 60000)), 0::bigint, 'their keys are at work');
UPDATE rule_webhook_calls SET status = 'success', claimed_until = NULL WHERE payload ->> 'n' IN ('1', '3');
SELECT is((SELECT array_agg(payload::jsonb -> 'n') FROM walhook.rule_webhook_queue_claim('w', '{2}', '{9}', 60000))::text, '{2}');
UPDATE rule_webhook_calls SET status = 'success', claimed_until = NULL WHERE payload ->> 'n' = '2';
SELECT is((SELECT array_agg(payload::jsonb -> 'n') FROM walhook.rule_webhook_queue_claim('w', '{2}', '{9}', 60000))::text, '{4}');
UPDATE rule_webhook_calls SET status = 'success', claimed_until = NULL WHERE payload ->> 'n' = '4';
SELECT is((SELECT array_agg(payload::jsonb -> 'n') FROM walhook.rule_webhook_queue_claim('w', '{2}', '{9}', 60000))::text, '{5}');
-- Who calls by key: one worker of a group, until its time is over.
SELECT ok(walhook.rule_webhook_order_take(2, 'g', 'w1', 60000) AND walhook.rule_webhook_order_take(2, 'g', 'w1', 60000), 'its own');
SELECT ok(NOT walhook.rule_webhook_order_take(2, 'g', 'w2', 60000) AND walhook.rule_webhook_order_take(2, 'h', 'w2', 60000), 'another group''s is another''s');
UPDATE walhook.rule_webhook_order_holders SET held_until = now() - interval '1 second' WHERE worker = 'w1';
SELECT ok(walhook.rule_webhook_order_take(2, 'g', 'w2', 60000) AND NOT walhook.rule_webhook_order_take(2, 'g', 'w1', 60000), 'its time was over');
RESET ROLE;
UPDATE rule_webhooks SET delivery_order = 'any';

-- Nothing without the setting; with it each change once.
UPDATE rule_webhooks SET disabled_at = now(), disabled_reason = 'r' WHERE webhook_id = 1;
SELECT is((SELECT array_agg(name || ' ' || severity) FROM rule_cdc_check() WHERE name = 'webhook_not_called')::text, '{"webhook_not_called warning"}');
UPDATE rule_webhooks SET enabled = false WHERE webhook_id = 2;
INSERT INTO rule_nats_dead_letters (event_id, webhook_id, webhook_name, reason) VALUES ('x', 2, 'b', 'why');
SELECT is((SELECT count(*) FROM walhook.rule_nats_notices_take('default', 's')), 0::bigint);
UPDATE rule_nats_config SET notice_subject = '_WALHOOK.notices' WHERE config_name = 'default';
-- commit
SET ROLE walhook_worker;
SELECT is((SELECT array_agg(subject) FROM walhook.rule_nats_notices_take('default', 's'))::text, '{_WALHOOK.notices.s.dead_letters,_WALHOOK.notices.s.webhook_disabled}');
SELECT is((SELECT count(*) FROM walhook.rule_nats_notices_take('default', 's')), 0::bigint);
SELECT is((SELECT count(*) FROM walhook.rule_nats_notices_take('other', 's')), 0::bigint);
RESET ROLE;
-- Not sooner than the interval says, and not before there are twice as many.
INSERT INTO rule_nats_dead_letters (event_id, webhook_id, webhook_name, reason) VALUES ('y', 2, 'b', 'why too');
UPDATE rule_webhooks SET disabled_at = clock_timestamp() WHERE webhook_id = 1;
SELECT is((SELECT count(*) FROM walhook.rule_nats_notices_take('default', 's')), 0::bigint);
UPDATE walhook.rule_nats_notices SET announced_at = announced_at - interval '5 minutes';
SELECT is((SELECT array_agg((notice::jsonb ->> 'event') || (notice::jsonb ->> 'dead_letters')) FROM walhook.rule_nats_notices_take('default', 's'))::text,
          '{dead_letters2,webhook_disabled0}');
-- Either is over.
-- Other settings leave it as it is; a statement that enables it, or names another URL, ends it.
UPDATE rule_webhooks SET timeout_ms = 4000 WHERE webhook_id = 1;
SELECT ok(disabled_at IS NOT NULL AND disabled_reason = 'r', 'not called') FROM rule_webhooks WHERE webhook_id = 1;
UPDATE rule_webhooks SET enabled = false;
SELECT ok(disabled_at IS NOT NULL, 'nor where it is disabled') FROM rule_webhooks WHERE webhook_id = 1;
UPDATE rule_webhooks SET enabled = true;
SELECT ok(disabled_at IS NULL AND disabled_reason IS NULL, 'called again') FROM rule_webhooks WHERE webhook_id = 1;
UPDATE rule_nats_dead_letters SET status = 'dropped';
SELECT is((SELECT array_agg(notice::jsonb ->> 'event') FROM walhook.rule_nats_notices_take('default', 's'))::text, '{dead_letters_cleared,webhook_enabled}');
SELECT is((SELECT count(*) FROM walhook.rule_nats_notices_take('default', 's')), 0::bigint);
SELECT throws_like(format('SELECT rule_webhook_link_table(1, %L)', t), '%one of walhook''s own%')
FROM unnest(ARRAY['walhook.rule_nats_notices', 'walhook.rule_webhook_order_holders']) t;
SELECT * FROM finish();
