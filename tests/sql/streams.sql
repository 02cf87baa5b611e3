-- Which stream takes a subject: a configuration's own stream is there without a row, and nothing takes its subjects away
-- in silence; two configurations of one server stay out of each other's way.
SELECT * FROM no_plan();
CREATE FUNCTION streams(p_config text DEFAULT 'default') RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(format('%s %s%s', s.stream_name, array_to_string(s.subjects, ' '), CASE WHEN NOT s.has_row THEN ' (no row)' END), ', ')
    FROM rule_nats_config c, rule_nats_streams_of(c.config_id) s WHERE c.config_name = p_config
$$;
CREATE FUNCTION taken(p_subject text) RETURNS text LANGUAGE sql AS $$
    SELECT array_to_string(walhook.rule_nats_stream_for(c.config_id, p_subject), ' ') FROM rule_nats_config c WHERE c.config_name = 'default'
$$;
SELECT rule_webhook_register(name, 'https://example.com') FROM unnest('{hook,other,third}'::text[]) name;

-- Without a row
SELECT is(streams(), 'WEBHOOKS webhooks.> (no row)');
SELECT is(taken('webhooks.a.b'), 'WEBHOOKS');
SELECT is(taken('events.a'), '');
SELECT is(walhook.rule_nats_stream_for(NULL, 'webhooks.x'), '{WEBHOOKS}', 'no configuration is the default one');
SELECT throws_hint($$SELECT rule_nats_stream_create('A_NAME', ARRAY['webhooks.orders.delete'])$$,
    'stream ''A_NAME'': its subject ''webhooks.orders.delete'' overlaps ''webhooks.>'' of stream ''WEBHOOKS'', which NATS config ''default'' has without a row',
    '%SELECT rule_nats_stream_create(''WEBHOOKS'', ARRAY[''webhooks.>''], ''default'')%');
SELECT throws_like($$SELECT rule_nats_stream_create('A_NAME', ARRAY['webhooks.*'])$$, '%overlaps ''webhooks.>'' of stream ''WEBHOOKS''%');
SELECT is(streams(), 'WEBHOOKS webhooks.> (no row)', 'nothing was displaced');

-- A row of its name speaks for it, also disabled.
SELECT ok(rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.*', 'events.*'], 'default', 'limits', 604800) > 0, 'the RFC''s stream');
SELECT is(streams(), 'WEBHOOKS webhooks.* events.*');
SELECT ok(rule_nats_stream_create('A_NAME', ARRAY['webhooks.orders.delete']) > 0, 'beside it now');
SELECT is(taken('webhooks.orders.delete'), 'A_NAME');
UPDATE rule_nats_streams SET enabled = false WHERE stream_name = 'WEBHOOKS';
SELECT is(streams(), 'A_NAME webhooks.orders.delete');
DELETE FROM rule_nats_streams;
SELECT is(streams(), 'WEBHOOKS webhooks.> (no row)');

-- A row that got in around the function: the configuration's own stream keeps its subjects, and the check says so.
INSERT INTO rule_nats_streams (config_id, stream_name, subjects) VALUES (1, 'AROUND', '{webhooks.hook,audit.>}'), (NULL, 'NOBODYS', '{nobody}');
SELECT is(streams(), 'WEBHOOKS webhooks.> (no row), AROUND webhooks.hook audit.>, NOBODYS nobody');
SELECT is(taken('webhooks.hook'), 'WEBHOOKS AROUND', 'the first has it');
SELECT rule_cdc_publication_create();
CREATE TABLE t (id int PRIMARY KEY);
SELECT rule_webhook_enable_nats(1, NULL, 'nats'), rule_webhook_link_table(1, 't', '{insert}');
SELECT is((SELECT problems[1] FROM rule_webhook_links_check()), 'more than one stream takes webhooks.hook: WEBHOOKS, AROUND. The first one has it; narrow the others');
SELECT rule_webhook_link_table(1, 't', '{insert}', 'audit.{id}');
SELECT is((SELECT (ok, streams)::text FROM rule_webhook_links_check()), '(t,{AROUND})');
UPDATE rule_nats_streams SET subjects = '{audit.1}' WHERE stream_name = 'AROUND';
SELECT is((SELECT (ok, problems[1])::text FROM rule_webhook_links_check()), '(t,"note: AROUND takes only some of audit.*")');
DELETE FROM rule_nats_streams;

-- A stream of another name may take all of it, as long as it has never been; then it is the configuration's own.
SELECT ok(rule_nats_stream_create('MINE', ARRAY['webhooks.>', 'orders.>']) > 0, 'all that WEBHOOKS would take');
SELECT is((SELECT stream_name FROM rule_nats_config WHERE config_name = 'default'), 'MINE');
SELECT is(streams(), 'MINE webhooks.> orders.>');
DELETE FROM rule_nats_streams;
INSERT INTO rule_nats_checkpoints (source, config_name, stream_name, epoch) VALUES ('main', 'default', 'MINE', 1);
SELECT throws_like($$SELECT rule_nats_stream_create('YOURS', ARRAY['webhooks.>'])$$, '%overlaps ''webhooks.>'' of stream ''MINE''%');

-- A subject that no stream takes goes to the configuration's own stream, which gets a row for it, without limits.
SELECT rule_webhook_enable_nats(1, 'events.order.created', 'nats');
SELECT is(streams(), 'MINE webhooks.> events.order.created');
SELECT is((SELECT (max_messages, max_bytes, max_age_seconds)::text FROM rule_nats_streams), '(,,)');
SELECT rule_webhook_enable_nats(2, 'events.order.deleted', 'nats');
SELECT is(streams(), 'MINE webhooks.> events.order.created events.order.deleted');
UPDATE rule_nats_config SET stream_name = NULL;
SELECT ok(rule_webhook_enable_nats(2, 'elsewhere.x', 'nats'), 'enabled, with a notice that no stream takes it');
SELECT is(taken('elsewhere.x'), '');
UPDATE rule_nats_config SET stream_name = 'MINE';

-- What the configuration itself may become
SELECT throws_like($$SELECT rule_nats_configure('default', 'nats://a', p_stream_name => 'a b')$$, '%cannot name a stream ''a b''');
SELECT throws_like($$SELECT rule_nats_configure('default', 'nats://a', p_stream_name => 'NEW')$$,
    '%its stream ''NEW'' would take ''webhooks.>'', and stream ''MINE'' of NATS config ''default'' on the same server takes ''webhooks.>''');
SELECT ok(rule_nats_configure('default', 'nats://a', p_stream_name => 'NEW', p_subject_prefix => 'new'), 'beside it');
SELECT is(streams(), 'NEW new.> (no row), MINE webhooks.> events.order.created events.order.deleted');

-- Several configurations
SELECT is(walhook.rule_nats_servers(url, more), expected, url)
FROM (VALUES ('nats://a', NULL::text[], '{a:4222}'::text[]), ('tls://me:pw@A:1/', '{b,nats://a:1}', '{a:1,b:4222}'), ('[::1]', '{}', '{[::1]:4222}')) v (url, more, expected);
SELECT ok(rule_nats_configure('elsewhere', 'nats://b'), 'on another server');
SELECT is(streams('elsewhere'), 'WEBHOOKS webhooks.> (no row)');
SELECT ok(rule_nats_configure('a.b', 'nats://a:4222'), 'on the same server: a stream and a prefix of its own');
SELECT is(streams('a.b'), 'A_B a_b.> (no row)');
SELECT ok(rule_nats_configure('core', 'nats://a', 'none', false), 'without JetStream there is nothing to share');
SELECT is((SELECT (stream_name, subject_prefix)::text FROM rule_nats_config WHERE config_name = 'core'), '(WEBHOOKS,webhooks)');
SELECT throws_hint($$SELECT rule_nats_stream_create('X', ARRAY['new.*'], 'a.b')$$,
    'stream ''X'': its subject ''new.*'' overlaps ''new.>'' of stream ''NEW'' of NATS config ''default'', which uses the same server', '%use NATS config ''default'', or disable it.');
SELECT throws_like($$SELECT rule_nats_stream_create('NEW', ARRAY['x'], 'a.b')$$, '%of stream ''NEW'' of NATS config ''default'', which uses the same server');
SELECT throws_hint($$SELECT rule_webhook_enable_nats(3, 'new.x', 'nats', 'a.b')$$,
    'webhook ''third'': its subject ''new.x'' belongs to stream ''NEW'' of NATS config ''default'', which uses the same server', 'SELECT rule_webhook_enable_nats(3, ''new.x'', ''nats'', ''default'')%');
SELECT throws_like($$SELECT rule_nats_configure('elsewhere', 'nats://a', p_stream_name => 'NEW')$$, '%its stream ''NEW''%of NATS config ''default'' on the same server%');
SELECT throws_like($$SELECT rule_nats_configure('elsewhere', 'nats://a')$$, '%its stream ''WEBHOOKS'' would take ''webhooks.>''%''MINE'' of NATS config ''default''%');
-- Another user may be another account, with streams of its own.
UPDATE rule_nats_config SET auth_type = 'token', auth_token = 'one' WHERE config_name = 'default';
UPDATE rule_nats_config SET auth_type = 'token', auth_token = 'two' WHERE config_name = 'elsewhere';
SELECT ok(rule_nats_configure('elsewhere', 'nats://a', 'token'), 'as somebody else');
UPDATE rule_nats_config SET enabled = false WHERE config_name = 'default';
SELECT ok(rule_nats_stream_create('X', ARRAY['new.*'], 'a.b') > 0, 'the other one is disabled');
SELECT * FROM finish();
