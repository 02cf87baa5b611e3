-- What 019 adds: limits that workers share, the queue's claims, signatures and logins of receivers.
SELECT * FROM no_plan();
SELECT rule_webhook_register('a', 'https://example.com'), rule_webhook_register('b', 'https://example.com');

-- Settings that no worker could use are refused, and say what to write instead.
SELECT throws_like(s, '%valid_%') FROM unnest(ARRAY[
    'UPDATE rule_webhooks SET rate_limit_per_second = 0', 'UPDATE rule_webhooks SET rate_limit_per_second = ''NaN''',
    'UPDATE rule_webhooks SET rate_limit_per_second = -1', 'UPDATE rule_webhooks SET signature_scheme = ''pgp''']) s;
SELECT throws_like('UPDATE rule_webhooks SET signature_scheme = ''template''', '%signature_template_given%');
SELECT throws_like(format('UPDATE rule_webhooks SET signature_template = %L', t), '%webhook ''a'' (webhook_id 1): signature_template: its %' )
FROM unnest(ARRAY['{}', '{"header": "Host"}', '{"header": "X Y"}', '{"header": "X", "content": "{id}"}', '{"header": "X", "value": "v"}',
                  '{"header": "X", "signature": "{md5}"}', '{"header": "X", "separator": "{body}"}', '{"header": 1}',
                  '{"header": "X", "value": "é{signatures}"}']) t;
SELECT throws_like(format('UPDATE rule_webhooks SET signature_template = %L', t), '%signature_template: %' )
FROM unnest(ARRAY['[]', '"x"', '{"header": "X", "algorithm": "md5"}']) t;
UPDATE rule_webhooks SET signature_scheme = 'template', signature_template = '{"header": "X-Sig"}' WHERE webhook_id = 1;

SELECT throws_like(format('SELECT rule_webhook_oauth2_set(1, %L, %L, NULL, NULL, %L, %L)', u, i, c, p), '%webhook ''a'' (webhook_id 1): oauth2: its ' || e)
FROM (VALUES ('ftp://x', 'i', 'basic', '{}', 'token_url is not the url%'), ('https://u:hunter2@x/', 'i', 'basic', '{}', 'token_url has a login in it%'),
             (NULL, 'i', 'basic', '{}', 'token_url is not%'), ('https://x', NULL, 'basic', '{}', 'client_id is missing%'),
             ('https://x', 'i', 'jwt', '{}', 'client_auth is "jwt"%'), ('https://x', 'i', 'basic', '[]', 'parameters are a JSON array%'),
             ('https://x', 'i', 'post', '{"scope": "s"}', 'parameters have%')) t (u, i, c, p, e);
SELECT ok(rule_webhook_oauth2_set(1, 'https://x/token', 'me', 'hunter2', 'a b'), 'set');
SELECT is((SELECT oauth2::text FROM rule_webhooks WHERE webhook_id = 1),
          '{"scope": "a b", "client_id": "me", "token_url": "https://x/token", "client_auth": "basic"}', 'no secret in it');
SELECT is((SELECT secret_value FROM rule_webhook_secrets WHERE secret_name = 'oauth2_client_secret'), 'hunter2');
SELECT throws_like('SELECT rule_webhook_oauth2_set(99, ''https://x'', ''me'')', '%Webhook 99 not found%');

-- A certificate, once wanted, is wanted for good.
SELECT rule_webhook_secret_set(2, 'tls_certificate', 'x');
SELECT ok(rule_webhook_secret_delete(2, 'tls_certificate'), 'deleted');
SELECT is((SELECT array_agg(client_certificate ORDER BY webhook_id) FROM rule_webhooks)::text, '{f,t}');

-- commit
SET ROLE walhook_worker;
-- Starts: evenly spaced, and the next worker begins behind them. Without a limit there is none.
SELECT is((SELECT (first_us, interval_us)::text FROM walhook.rule_webhook_limit_starts(1, 5)), '(0,0)');
RESET ROLE;
UPDATE rule_webhooks SET rate_limit_per_second = 0.5, max_in_flight = 5 WHERE webhook_id = 1;
-- commit
SET ROLE walhook_worker;
SELECT ok((SELECT first_us <= 0 AND interval_us = 2000000 FROM walhook.rule_webhook_limit_starts(1, 3)), 'at once, then each two seconds');
SELECT ok((SELECT first_us BETWEEN 5000000 AND 6000000 FROM walhook.rule_webhook_limit_starts(1, 1)), 'behind the first three');
-- Slots: all to one, shares to several; what somebody still holds is nobody else's until it is let go or its time is over.
SELECT is(walhook.rule_webhook_limit_calls(1, 'w1', 100, 0, 60000), 5);
SELECT is(walhook.rule_webhook_limit_calls(1, 'w2', 100, 0, 60000), 0, 'w1 has them all');
SELECT is(walhook.rule_webhook_limit_calls(1, 'w1', 100, 5, 60000), 3, 'its share from now on, while it still holds five');
SELECT is(walhook.rule_webhook_limit_calls(1, 'w2', 100, 0, 60000), 0);
SELECT is(walhook.rule_webhook_limit_calls(1, 'w1', 100, 3, 60000), 3);
SELECT is(walhook.rule_webhook_limit_calls(1, 'w2', 100, 0, 60000), 2);
SELECT is((SELECT sum(calls) FROM walhook.rule_webhook_limit_holders), 5::bigint);
UPDATE walhook.rule_webhook_limit_holders SET held_until = now() - interval '1 second' WHERE worker = 'w1';
SELECT is(walhook.rule_webhook_limit_calls(1, 'w2', 100, 2, 60000), 5, 'a dead one holds nothing');
SELECT is(walhook.rule_webhook_limit_calls(1, 'w1', 100, 3, 60000), 0, 'and nothing again because it says so');
SELECT is(walhook.rule_webhook_limit_calls(2, 'w1', 100, 0, 60000), NULL, 'no limit');
RESET ROLE;

-- Claims: what is due, of each webhook so many, and not twice; one whose time is over is taken by another.
INSERT INTO rule_webhook_calls (webhook_id, payload) SELECT 1, to_jsonb(n) FROM generate_series(1, 3) n;
INSERT INTO rule_webhook_calls (webhook_id, payload, scheduled_at) VALUES (1, '"later"', now() + interval '1 hour');
INSERT INTO rule_webhook_calls (webhook_id, payload, event_id, status) VALUES (1, '"an event''s"', 'e', 'pending');
INSERT INTO rule_webhook_calls (webhook_id, payload, status) VALUES (1, '"another program''s"', 'processing');
-- commit
SET ROLE walhook_worker;
SELECT is((SELECT array_agg(payload) FROM walhook.rule_webhook_queue_claim('w', '{1,2}', '{2,9}', 60000))::text, '{1,2}');
SELECT is((SELECT array_agg(payload) FROM walhook.rule_webhook_queue_claim('w', '{1,2}', '{9,9}', 60000))::text, '{3}');
SELECT is((SELECT count(*) FROM walhook.rule_webhook_queue_claim('w', '{1,2}', '{9,9}', 60000)), 0::bigint);
UPDATE rule_webhook_calls SET claimed_until = now() - interval '1 second' WHERE payload = '2';
SELECT is((SELECT array_agg(payload || attempt) FROM walhook.rule_webhook_queue_claim('v', '{1}', '{9}', 60000))::text, '{21}');
SELECT is((SELECT array_agg(DISTINCT claimed_by ORDER BY claimed_by) FROM rule_webhook_calls)::text, '{v,w,NULL}');
RESET ROLE;
-- In order: the next one is there when the first one is done.
UPDATE rule_webhooks SET delivery_order = 'strict' WHERE webhook_id = 1;
SELECT is((SELECT count(*) FROM walhook.rule_webhook_queue_claim('w', '{1}', '{9}', 60000)), 0::bigint, 'one is at work');
UPDATE rule_webhook_calls SET status = 'retrying', next_retry_at = now() + interval '1 hour', claimed_until = NULL WHERE payload = '1';
UPDATE rule_webhook_calls SET status = 'pending', claimed_until = NULL WHERE payload IN ('2', '3');
SELECT is((SELECT count(*) FROM walhook.rule_webhook_queue_claim('w', '{1}', '{9}', 60000)), 0::bigint, 'the first one waits for its retry');
UPDATE rule_webhook_calls SET next_retry_at = now() - interval '1 second', retry_count = 1 WHERE payload = '1';
SELECT is((SELECT array_agg(payload || ':' || attempt) FROM walhook.rule_webhook_queue_claim('w', '{1}', '{9}', 60000))::text, '{1:2}');
UPDATE rule_webhooks SET enabled = false;
UPDATE rule_webhook_calls SET status = 'success' WHERE payload = '1';
SELECT is((SELECT count(*) FROM walhook.rule_webhook_queue_claim('w', '{1}', '{9}', 60000)), 0::bigint, 'disabled: they wait');

-- A call that is dead goes into the queue again; all since a time, or of a webhook, at once.
UPDATE rule_webhooks SET enabled = true;
INSERT INTO rule_nats_dead_letters (event_id, webhook_id, webhook_name, payload, reason, origin)
VALUES ('q1', 2, 'b', '{"a": 1}', 'r', 'queue'), ('q2', 2, 'b', '{"a": 2}', 'r', 'queue');
UPDATE rule_nats_dead_letters SET created_at = now() - interval '1 day' WHERE event_id = 'q1';
SELECT is(rule_nats_dead_letters_retry(now() - interval '1 hour', 'b'), 1);
SELECT is((SELECT array_agg(payload::text || retry_of) FROM rule_webhook_calls WHERE webhook_id = 2)::text, '{"{\"a\": 2}q2"}');
SELECT is((SELECT array_agg(status ORDER BY event_id) FROM rule_nats_dead_letters)::text, '{dead,retried}');
SELECT throws_like('SELECT rule_nats_dead_letters_retry(NULL)', '%since when is NULL%');
SELECT throws_like('SELECT rule_nats_dead_letters_retry(now(), ''nobody'')', '%there is no webhook ''nobody''%');
-- These tables cannot be linked.
SELECT throws_like(format('SELECT rule_webhook_link_table(1, %L)', t), '%one of walhook''s own%')
FROM unnest(ARRAY['walhook.rule_webhook_limits', 'walhook.rule_webhook_limit_holders']) t;
SELECT * FROM finish();
