-- Configurations, streams and subjects: what is refused, and by which words.
SELECT * FROM no_plan();
SELECT throws_like($$SELECT rule_nats_configure('x', 'http://a b')$$, '%cannot use the url%');
SELECT throws_like($$SELECT rule_nats_configure('x', 'nats://user:pass@/')$$, '%//...@%');
SELECT throws_hint($$SELECT rule_nats_configure('x', 'nats://a', 'kerberos')$$, '%unknown auth_type ''kerberos''%', 'It is none, %');
SELECT throws_like($$SELECT rule_nats_configure(NULL)$$, '%needs a name%');
SELECT ok(rule_nats_configure(repeat('Ω', 1000), 'tls://a:4222'), 'any name will do');
SELECT rule_nats_configure('default', 'nats://a:1', p_stream_name => 'S', p_subject_prefix => 'p');
SELECT rule_nats_configure('default', 'nats://b:2');
SELECT is((SELECT (nats_url, stream_name, subject_prefix)::text FROM rule_nats_config WHERE config_name = 'default'), '(nats://b:2,S,p)', 'what is not said stays');
SELECT rule_nats_configure('default', 'nats://me:pw@b:2', p_stream_name => 'WEBHOOKS', p_subject_prefix => 'webhooks');
SELECT is(rule_nats_config_info() ->> 'nats_url', 'nats://...@b:2');
SELECT throws_like($$SELECT rule_nats_config_info('nope')$$, 'NATS config nope not found');

SELECT throws_hint($$SELECT rule_nats_stream_create('A', ARRAY['a'], 'nope')$$, 'NATS config nope not found', '%rule_nats_configure(''nope''%');
SELECT throws_like(format('SELECT rule_nats_stream_create(%L, ARRAY[''a''])', name), 'cannot name a stream%')
FROM unnest(ARRAY['', 'a b', 'a.b', 'a*', '>', E'a\tb', repeat('x', 256)]) name;
SELECT throws_like($$SELECT rule_nats_stream_create('A', '{}')$$, '%at least one subject%');
SELECT throws_like($$SELECT rule_nats_stream_create('A', NULL)$$, '%at least one subject%');
SELECT throws_like($$SELECT rule_nats_stream_create('A', '{NULL}')$$, '%subject NULL%');
SELECT throws_like(format('SELECT rule_nats_stream_create(''A'', ARRAY[%L])', subject), '%cannot take the subject%')
FROM unnest(ARRAY['', 'a..b', '.a', 'a.', 'a b', 'a*', 'a.>.b', '$JS.a', E'a\u0001']) subject;
SELECT throws_like($$SELECT rule_nats_stream_create('A', ARRAY['a'], 'default', 'for ever')$$, '%unknown retention policy%');
SELECT throws_hint($$SELECT rule_nats_stream_create('A', ARRAY['>'])$$, '%it takes everything, the answers of NATS itself too', 'Say what it begins with%');
SELECT throws_hint($$SELECT rule_nats_stream_create('A', ARRAY['a', 'b.*', '*.c'])$$, 'stream ''A'': its subjects ''b.*'' and ''*.c'' overlap', 'Keep the wider%');
SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.*', 'all.>'], 'default', 'limits', 60, 'everything');
SELECT throws_like($$SELECT rule_nats_stream_create('B', ARRAY['*.b'])$$, '%''*.b'' overlaps ''webhooks.*'' of stream ''WEBHOOKS''');
UPDATE rule_nats_streams SET subjects = '{webhooks.*,a.*.c}';
SELECT throws_like($$SELECT rule_nats_stream_create('B', ARRAY['a.>'])$$, '%overlaps%');
SELECT ok(rule_nats_stream_create('B', ARRAY['a.*.d', 'b']) > 0, 'no overlap');
SELECT throws_hint($$SELECT rule_nats_stream_create('B', ARRAY['z'])$$, 'stream ''B'' of NATS config ''default'' exists already', 'UPDATE rule_nats_streams%');

SELECT is(rule_nats_subject_check(s), NULL, s) FROM unnest(ARRAY['a', 'a.b-c_d', 'Ω.💥', 'a$b', repeat('x', 1024)]) s;
SELECT ok(rule_nats_subject_check(s) IS NOT NULL, coalesce(s, 'NULL'))
FROM unnest(ARRAY[NULL, '', '.', 'a.', '.a', 'a..b', 'a b', E'a\tb', E'a\nb', 'a.*', '>', '$SYS.x', E'a\u007f', repeat('x', 1025)]) s;
SELECT is(walhook.rule_nats_subjects_overlap(a, b) AND walhook.rule_nats_subjects_overlap(b, a), expected, a || ' ' || b)
FROM (VALUES ('a', 'a', true), ('a', 'b', false), ('a.*', 'a.b', true), ('a.*', 'a', false), ('a.>', 'a', false), ('a.>', 'a.b.c', true),
             ('*.b', 'a.*', true), ('*.b', 'a.c', false), ('>', 'x', true), ('a.b', 'a.b.c', false)) v (a, b, expected);

-- The default subject: the name made one token.
SELECT rule_webhook_register(name, 'https://example.com')
FROM unnest(ARRAY['plain_Name-1', 'a.b', 'it''s "quoted" *>', 'Ω💥', repeat('n', 1000), repeat('Ω', 1000)]) WITH ORDINALITY v (name, i) ORDER BY i;
SELECT ok(rule_webhook_enable_nats(i), 'enabled') FROM generate_series(1, 5) i;
SELECT is(ARRAY(SELECT nats_subject FROM rule_webhooks WHERE webhook_id <= 4 ORDER BY webhook_id),
    '{webhooks.plain_Name-1,webhooks.a%2Eb,webhooks.it%27s%20%22quoted%22%20%2A%3E,webhooks.%CE%A9%F0%9F%92%A5}'::text[]);
SELECT throws_hint('SELECT rule_webhook_enable_nats(6)', '%at most 1024%', '%rule_webhook_enable_nats(6, ''webhooks.6'')%');
SELECT throws_like($$SELECT rule_webhook_enable_nats(1, 'a.*')$$, '%it has a wildcard%');
SELECT throws_hint($$SELECT rule_webhook_enable_nats(1, 'a', 'sometimes')$$, 'Invalid publish_mode ''sometimes''', 'It is queue, nats or both.');
SELECT throws_like($$SELECT rule_webhook_enable_nats(1, 'a', NULL)$$, 'Invalid publish_mode NULL');
SELECT throws_like($$SELECT rule_webhook_enable_nats(1, 'a', 'nats', 'nope')$$, 'NATS config nope not found');
SELECT throws_like('SELECT rule_webhook_enable_nats(99)', 'Webhook 99 not found');
SELECT throws_like('SELECT rule_webhook_disable_nats(99)', 'Webhook 99 not found');

-- What the streamer reports
SELECT is((rule_nats_health_check('default') ->> 'running')::boolean, false);
SELECT ok(rule_nats_health_check('default') ->> 'message' LIKE 'no walhook has run%', 'nobody ran');
SELECT throws_like($$SELECT rule_nats_init('nope')$$, 'NATS config nope not found');
SELECT is(rule_nats_test_connection('nope') ->> 'success', 'false');
INSERT INTO rule_cdc_status (source, pid, host, version, epoch, nats)
VALUES ('main', 17, 'here', '0.1.0', 3, '{"default": {"server": "nats://b:2", "connected": true}, "other": {"connected": false, "last_error": "refused"}}');
SELECT is((rule_nats_init('default') ->> 'success')::boolean, true);
SELECT is(rule_nats_init('default') ->> 'server', 'nats://b:2');
SELECT rule_nats_configure('other', 'nats://c');
SELECT is(rule_nats_test_connection('other') ->> 'last_error', 'refused');
SELECT is(rule_nats_health_check('other') ->> 'connected', 'false');
UPDATE rule_cdc_status SET heartbeat_at = now() - interval '31 s';
SELECT ok(rule_nats_init('default') ->> 'message' LIKE 'no walhook is running: the last one%', 'heartbeat missed');
SELECT is((rule_nats_init('default') ->> 'success')::boolean, false);

-- History, stats of consumers
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, published_at, expires_at)
VALUES (1, 's', '{}', true, now() - interval '40 days', now() - interval '33 days'), (1, 's', '{}', false, now() - interval '40 days', now() + interval '1 day'),
       (1, 's', '{}', true, now(), now() + interval '1 day');
SELECT is(rule_nats_cleanup_expired(), '1');
SELECT is(rule_nats_cleanup_old_history(), '0', 'failures are kept');
SELECT is(rule_nats_cleanup_old_history('30 days', false), '1');
SELECT ok(rule_nats_consumer_update_stats('S', 'c', 10, 9, 1, 2.5) AND rule_nats_consumer_update_stats('S', 'c', 20, 19, 1), 'reported');
SELECT is((SELECT (messages_delivered, avg_processing_time_ms)::text FROM rule_nats_consumer_stats), '(20,2.50)');
SELECT is((SELECT (total_published, success_rate, config_name)::text FROM rule_nats_webhooks_list() WHERE webhook_id = 1), '(1,100.00,default)');
SELECT is((SELECT success_rate_pct FROM nats_publish_summary WHERE webhook_id = 2), NULL, 'the rate of nothing');
SELECT * FROM finish();
