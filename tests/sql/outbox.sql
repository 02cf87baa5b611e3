-- Links whose message is a column: what is refused, with the remedy, and Debezium's outbox table by one call.
SELECT * FROM no_plan();
SELECT rule_cdc_publication_create();
SELECT rule_nats_stream_create('S', ARRAY['webhooks.>', 'outbox.event.>']);
SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_register('plain', 'https://example.com');
SELECT rule_webhook_enable_nats(1, NULL, 'nats'), rule_webhook_enable_nats(2, NULL, 'nats');
CREATE DOMAIN blob AS bytea NOT NULL;
CREATE TABLE t (id int PRIMARY KEY, doc json NOT NULL, docb jsonb NOT NULL, note text NOT NULL, name varchar(9) NOT NULL, raw blob, nullable text,
                at timestamptz NOT NULL, code char(3) NOT NULL, tags text[] NOT NULL, twice int GENERATED ALWAYS AS (id * 2) STORED);
CREATE FUNCTION link(p_arguments text) RETURNS text LANGUAGE sql AS $$ SELECT 'SELECT rule_webhook_link_table(1, ''t'', ' || p_arguments || ')' $$;

-- The format first: no other sends a body as it is.
SELECT throws_hint(link($$'{insert}', p_payload_column => 'doc'$$), '%only payload_format data sends as it is; that of its webhook is webhook',
                   'UPDATE public.rule_webhooks SET payload_format = ''data'' WHERE webhook_id = 1;');
UPDATE rule_webhooks SET payload_format = 'cloudevents_binary' WHERE webhook_id = 1;
SELECT throws_like(link($$'{insert}', p_payload_column => 'doc'$$), '%that of its webhook is cloudevents_binary');
UPDATE rule_webhooks SET payload_format = 'data' WHERE webhook_id = 1;

-- What cannot be, each with what to do.
SELECT throws_hint(link($$p_payload_column => 'doc'$$), '%only inserts are such messages; its operations are {insert,update,delete}', 'Link inserts alone: p_operations => ''{insert}''.');
SELECT throws_hint(link($$'{insert}', p_payload_column => 'doc', p_columns => '{id}'$$), '%nothing to choose from', 'Leave columns NULL and include_old false.');
SELECT throws_like(link($$'{insert}', p_payload_column => 'doc', p_include_old => true$$), '%nothing to choose from');
SELECT throws_hint(link(a), '%are for a link whose message is a column', 'Name that column: p_payload_column => ''payload''.')
FROM unnest(ARRAY[$$'{insert}', p_message_id_column => 'id'$$, $$'{insert}', p_headers_columns => '{"A": "note"}'$$]) a;
SELECT throws_hint(link(format($$'{insert}', p_payload_column => 'doc', p_headers_columns => %L$$, h)), '%cannot link public.t to webhook ''hook''%' || why, 'Write headers_columns as an object of headers and columns: {"eventType": "type"}.')
FROM (VALUES ('["note"]', 'JSON array'), ('"note"', 'JSON string'), ('{"A": 1}', 'the header A is a JSON number, not a string'), ('{"a b": "note"}', '''a b'' is not a header name%'),
             ('{"Walhook-X": "note"}', 'the header Walhook-X is reserved'), ('{"nats-msg-id": "note"}', 'the header nats-msg-id is reserved'),
             ('{"A": "note", "a": "name"}', 'the header a is named twice'), ('{"TraceParent": "note"}', 'the header traceparent is that of p_trace_column')) x (h, why);
SELECT throws_hint(link(a), '%' || why, 'The columns are id, doc, docb, note, name, raw, nullable, at, code, tags.') FROM (VALUES
    ($$'{insert}', p_payload_column => 'gone'$$, 'payload_column names ''gone'', which the table has not'), ($$'{insert}', p_payload_column => ''$$, 'payload_column names '''', which the table has not'),
    ($$'{insert}', p_payload_column => 'doc', p_message_id_column => 'gone'$$, 'message_id_column names ''gone'', which the table has not'),
    ($$'{insert}', p_payload_column => 'doc', p_message_id_column => 'twice'$$, 'message_id_column names ''twice'', which the table generates: it is not sent'),
    ($$'{insert}', p_payload_column => 'doc', p_headers_columns => '{"A": "gone"}'$$, 'headers_columns names ''gone'', which the table has not')) x (a, why);
SELECT throws_hint(link(format($$'{insert}', p_payload_column => %L$$, c)), '%payload_column names ''' || c || ''', whose type is ' || t, 'A message is a column of type json, jsonb, text, varchar or bytea.')
FROM (VALUES ('at', 'timestamp with time zone'), ('id', 'integer'), ('code', 'character'), ('tags', 'text[]')) x (c, t);
SELECT is((SELECT count(*) FROM rule_webhook_links), 0::bigint);

-- What can be: each type, a domain too, and no replica identity is needed.
ALTER TABLE t REPLICA IDENTITY NOTHING;
SELECT ok(rule_webhook_link_table('hook', 't', '{insert}', 'webhooks.{note}', p_filter => '{"note": "x"}', p_trace_column => 'note', p_payload_column => c,
                                  p_message_id_column => 'at', p_headers_columns => '{"A": "note", "Content-Type": "name"}') = 1, c)
FROM unnest('{doc,docb,note,name,raw,nullable}'::text[]) c;
SELECT is((SELECT (payload_column, message_id_column, headers_columns)::text FROM rule_webhook_links), '(nullable,at,"{""A"": ""note"", ""Content-Type"": ""name""}")');
SELECT is((SELECT problems FROM rule_webhook_links_check()),
          ARRAY['note: its message is the column ''nullable'': of a row in which that is NULL the event becomes a dead letter: ALTER TABLE public.t ALTER COLUMN nullable SET NOT NULL;']);
UPDATE t SET note = note; -- the application goes on
SELECT is((SELECT pubname::text FROM pg_publication_tables WHERE tablename = 't'), 'walhook_inserts');
SELECT rule_webhook_link_table(1, 't', '{insert}');
SELECT is((SELECT (payload_column, message_id_column, headers_columns)::text FROM rule_webhook_links), '(,,)', 'linking again without them makes an ordinary link');

-- Debezium's outbox table.
CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb NOT NULL);
CREATE TABLE mine (event_id bigint, topic text, entity text, body bytea NOT NULL);
SELECT ok(rule_webhook_link_outbox('plain', 'outbox') = 8, 'linked') FROM (SELECT setval('rule_webhook_links_link_id_seq', 7)) s;
SELECT is((SELECT payload_format FROM rule_webhooks WHERE webhook_id = 2), 'data');
SELECT is((SELECT (operations, subject_template, payload_column, message_id_column, headers_columns)::text FROM rule_webhook_links WHERE link_id = 8),
          '({insert},outbox.event.{aggregatetype},payload,id,"{""id"": ""id"", ""eventType"": ""type"", ""aggregateId"": ""aggregateid"", ""aggregateType"": ""aggregatetype""}")');
SELECT is((SELECT (subjects, streams, publication, ok, problems)::text FROM rule_webhook_links_check() WHERE link_id = 8), '({outbox.event.*},{S},walhook_inserts,t,{})');
SELECT throws_hint($$SELECT rule_webhook_link_outbox('plain', 'mine')$$, '%subject template names ''aggregatetype''%', 'The columns are event_id, topic, entity, body.');
SELECT ok(rule_webhook_link_outbox(2, 'mine', 'outbox.event.{topic}', 'event_id', NULL, 'entity', NULL, 'body', '{"topic": "a"}') > 8, 'other names');
SELECT is((SELECT headers_columns FROM rule_webhook_links WHERE table_name = 'mine'), '{"id": "event_id", "aggregateId": "entity"}'::jsonb);
-- The format is not changed under another table of the webhook; it is where there is none, and where linking fails.
SELECT rule_webhook_register('third', 'https://example.com'), rule_webhook_enable_nats(3, NULL, 'nats');
SELECT throws_like($$SELECT rule_webhook_link_outbox(3, 'mine')$$, '%aggregatetype%');
SELECT is((SELECT payload_format FROM rule_webhooks WHERE webhook_id = 3), 'webhook');
SELECT rule_webhook_link_table(3, 't', '{insert}');
SELECT throws_hint($$SELECT rule_webhook_link_outbox(3, 'outbox')$$, 'cannot link public.outbox to webhook ''third'' as an outbox: the messages of public.t, which is linked to it, have payload_format ''webhook''',
                   'UPDATE rule_webhooks SET payload_format = ''data'' WHERE webhook_id = 3; changes those messages too.%');
SELECT throws_like($$SELECT rule_webhook_link_outbox(99, 'outbox')$$, 'Webhook 99 not found');
SELECT throws_like($$SELECT rule_webhook_link_outbox('nobody', 'outbox')$$, 'Webhook ''nobody'' not found');
SELECT throws_like($$SELECT rule_webhook_link_outbox(2, NULL)$$, '%there is no table NULL');

-- Later changes of the table are named, each with a remedy.
CREATE FUNCTION problem(p_link int) RETURNS text LANGUAGE sql AS $$ SELECT array_to_string(problems, ' | ') FROM rule_webhook_links_check() WHERE link_id = p_link $$;
ALTER TABLE outbox RENAME type TO kind;
SELECT is(problem(8), 'headers_columns names ''type'', which the table has not. The columns are id, aggregatetype, aggregateid, kind, payload');
ALTER TABLE outbox RENAME kind TO type;
ALTER TABLE outbox ALTER payload TYPE text, ALTER payload DROP NOT NULL;
SELECT ok(problem(8) LIKE 'note: %ALTER TABLE public.outbox ALTER COLUMN payload SET NOT NULL;', problem(8));
ALTER TABLE outbox ALTER payload TYPE int USING 0;
SELECT is(problem(8), 'payload_column names ''payload'', whose type is integer. A message is a column of type json, jsonb, text, varchar or bytea');
ALTER TABLE outbox DROP payload;
SELECT is(problem(8), 'payload_column names ''payload'', which the table has not. The columns are id, aggregatetype, aggregateid, type');
UPDATE rule_webhooks SET payload_format = 'webhook' WHERE webhook_id = 2;
SELECT ok(problem(8) LIKE '%only payload_format data sends as it is; that of its webhook is webhook: UPDATE public.rule_webhooks SET payload_format = ''data'' WHERE webhook_id = 2;%', problem(8));

UPDATE rule_webhooks SET payload_format = 'data' WHERE webhook_id = 2;

-- Rights: an operator links as any table; an application may not.
CREATE TABLE theirs AS TABLE outbox;
SET ROLE walhook_application;
SELECT throws_like('SELECT rule_webhook_link_outbox(2, ''theirs'')', 'permission denied for function rule_webhook_link_outbox');
SET ROLE walhook_operator;
SELECT throws_like('SELECT rule_webhook_link_outbox(2, ''theirs'')', '%payload_column names ''payload''%');
RESET ROLE;
SELECT is((SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE NOT tgisinternal AND relname !~ '^rule_'), 0::bigint,
    'no trigger on a user''s table');
SELECT * FROM finish();
