-- Configuration rows that walhook cannot use are refused by any statement; a row from before stays, is named, and its other columns change.
SELECT * FROM no_plan();
SELECT rule_cdc_publication_create();
-- commit
SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_enable_nats(1, NULL, 'nats');
CREATE TABLE orders (id int PRIMARY KEY, kind text);
SELECT rule_webhook_link_table(1, 'orders');

CREATE FUNCTION refused(p_statement text, p_why text) RETURNS text LANGUAGE sql AS $$
    SELECT throws_hint(p_statement, p_why, '_%')
$$;
-- What Rust reads of each column, and what it cannot use.
SELECT refused(format('UPDATE rule_webhooks SET %s = %L', c, v), '%"hook" (webhook_id 1): ' || why) FROM (VALUES
    ('nats_subject', 'webhooks.*', '%wildcard%'), ('nats_subject', '', '%empty%'), ('nats_subject', 'a..b', '%empty token%'), ('nats_subject', 'a b', '%white space%'),
    ('nats_subject', '$JS.x', '%belong to the NATS server%'), ('nats_subject', '_INBOX.x', '%replies%'), ('nats_subject', repeat('x', 1025), '%1025 bytes%'),
    ('url', 'ftp://u:hunter2@example.com', '%"ftp://example.com"%'), ('url', '', '%http%'), ('url', 'https://example.com/a b', '%http%'), ('url', E'https://a\nb', '%http%'),
    ('method', 'FETCH', '%method%'), ('headers', '["a"]', '%JSON array%'), ('headers', '{"a": {}}', '%no text%'), ('headers', '{"a b": "x"}', '%"a b"%'),
    ('headers', '{"a": "x\r\ny"}', '%control character%'), ('timeout_ms', '0', '%from 1 to 60000%'), ('timeout_ms', '60001', '%from 1 to 60000%'),
    ('max_retries', '11', '%from 0 to 10%'), ('retry_backoff_multiplier', 'NaN', '%NaN%')) x (c, v, why);
SELECT refused(format('UPDATE rule_webhook_links SET %s = %L', c, v), 'link 1 of webhook_id 1 to public.orders: ' || why) FROM (VALUES
    ('subject_template', 'a.{op', '%brace without its pair%'), ('subject_template', 'a..{op}', '%empty token%'), ('subject_template', '', '%empty%'),
    ('subject_template', '>', '%wildcard%'), ('filter', '[1]', '%JSON array%'), ('filter', '"x"', '%JSON string%'), ('columns', '{}', '%empty list%'),
    ('when_changed', '{NULL}', '%NULL%'), ('payload_column', 'kind', '%only inserts are such messages%'), ('message_id_column', 'kind', '%whose message is a column%'),
    ('headers_columns', '{"A": "kind"}', '%whose message is a column%')) x (c, v, why);
UPDATE rule_webhook_links SET operations = '{insert}', payload_column = 'kind';
SELECT refused(format('UPDATE rule_webhook_links SET %s = %L', c, v), 'link 1 of webhook_id 1 to public.orders: ' || why) FROM (VALUES
    ('operations', '{insert,update}', '%only inserts%{insert,update}'), ('columns', '{id}', '%nothing to choose from'), ('include_old', 'true', '%nothing to choose from'),
    ('headers_columns', '["kind"]', '%JSON array%'), ('headers_columns', '{"Nats-X": "kind"}', '%reserved%'), ('headers_columns', '{"walhook-op": "kind"}', '%reserved%'),
    ('headers_columns', '{"a b": "kind"}', '%not a header name%'), ('headers_columns', '{"A": 1}', '%not a string%'), ('headers_columns', '{"A": null}', '%not a string%'),
    ('headers_columns', '{"A": "kind", "a": "id"}', '%a is named twice%'), ('headers_columns', '{"traceparent": "kind"}', '%p_trace_column%')) x (c, v, why);
UPDATE rule_webhook_links SET message_id_column = 'id', headers_columns = '{"A": "kind", "Content-Type": "kind"}';
UPDATE rule_webhook_links SET operations = '{insert,update,delete}', payload_column = NULL, message_id_column = NULL, headers_columns = NULL;
SELECT refused(format('UPDATE rule_nats_config SET %s = %L', c, v), 'NATS configuration "%" (config_id 1): ' || why) FROM (VALUES
    ('config_name', '', '%empty%'), ('nats_url', '', '%no server%'), ('nats_url', ' , ', '%no server%'), ('nats_url', 'ws://a', '%WebSocket%'),
    ('nats_url', 'http://a', '%scheme%'), ('nats_url', 'nats://a b', '%host:port%'), ('nats_url', 'a:0', '%host:port%'), ('nats_url', 'a:65536', '%host:port%'),
    ('nats_url', 'nats://a/path', '%host:port%'), ('nats_url', 'nats://[::1', '%host:port%'), ('nats_cluster_urls', '{nats://a,wss://b}', '%WebSocket%'),
    ('stream_name', 'a.b', '%cannot name%'), ('stream_name', 'KV_x', '%of a bucket%'), ('subject_prefix', 'a.', '%empty token%'), ('subject_prefix', 'a b', '%white space%'),
    ('max_connections', '0', '%less than 1%'), ('connection_timeout_ms', '0', '%less than 1%'), ('reconnect_delay_ms', '-1', '%less than 0%'),
    ('auth_credentials_file', 'a.creds', '%absolute%'), ('tls_ca_file', 'ca.pem', '%absolute%'), ('tls_cert_file', 'c', '%absolute%'),
    ('tls_key_file', 'k', '%absolute%')) x (c, v, why);
SELECT throws_like('UPDATE rule_nats_config SET nats_url = ''http://u:hunter2@a''', '%(config_id 1): nats_url: its scheme is neither nats:// nor tls://');
SELECT rule_nats_stream_create('S', '{s.>}');
SELECT refused(format('UPDATE rule_nats_streams SET %s = %L WHERE stream_name = ''S''', c, v), 'stream "%" (stream_id %): ' || why) FROM (VALUES
    ('stream_name', 'a b', '%cannot name%'), ('stream_name', 'KV_walhook_walhook', '%of a bucket%'), ('stream_name', 'OBJ_x', '%of a bucket%'), ('subjects', '{}', '%empty%'), ('subjects', '{>}', '%everything%'), ('subjects', '{s.a,NULL}', '%NULL%'),
    ('subjects', '{s.>.a}', '%wildcard%'), ('subjects', '{s.>,s.a}', '%overlap%'), ('replicas', '0', '%replicas%'), ('replicas', '6', '%replicas%'),
    ('max_age_seconds', '60', '%longer than%'), ('max_age_seconds', '9999999999', '%292 years%'), ('duplicate_window_seconds', '604801', '%longer than%'),
    ('consumers', '{a.b}', '%"a.b"%'), ('consumers', '{NULL}', '%NULL%')) x (c, v, why);
SELECT refused($$INSERT INTO rule_webhook_secrets (webhook_id, secret_name, secret_value) VALUES (1, 'signing', 'whsec_hunter2!')$$,
               'secret "signing" of webhook_id 1: %base64');
-- The same by INSERT.
SELECT refused($$INSERT INTO rule_webhooks (webhook_name, url, nats_subject) VALUES ('other', 'https://example.com', 'a.>')$$, '%"other"%wildcard%');
SELECT refused($$INSERT INTO rule_webhook_links (webhook_id, table_schema, table_name, subject_template) VALUES (1, 'public', 'x', 'a.')$$, '%public.x%');
-- What is legal stays legal.
UPDATE rule_webhooks SET nats_subject = 'webhooks.ä', headers = '{"X-A": "b", "X-N": 5}', timeout_ms = NULL, max_retries = NULL;
UPDATE rule_webhooks SET nats_subject = NULL, headers = NULL;
UPDATE rule_webhook_links SET subject_template = 'a.{kind}.{op}', filter = '{"kind": "x"}', columns = '{id}', when_changed = NULL;
UPDATE rule_nats_config SET nats_url = 'NATS://u:p%40@a:1, tls://[::1]:4222,b', nats_cluster_urls = '{c,""}', stream_name = '', subject_prefix = '';
UPDATE rule_nats_streams SET consumers = '{webhook-worker-1,a(b)}', max_age_seconds = 0, duplicate_window_seconds = 999999, replicas = NULL;
SELECT throws_like('SELECT rule_nats_stream_create(''OBJ_objects'', ''{o.>}'')', 'cannot name a stream ''OBJ_objects'': it would be the stream of a bucket');
SELECT rule_nats_stream_create('SHORT', '{short.>}', 'default', 'limits', 60);
SELECT is((SELECT duplicate_window_seconds FROM rule_nats_streams WHERE stream_name = 'SHORT'), 60);
-- Whoever may write a row needs no right to the functions that look at it.
SET ROLE walhook_operator;
UPDATE rule_webhooks SET url = 'https://example.org';
SELECT throws_like('UPDATE rule_webhooks SET url = ''x''', '%not the url%');
RESET ROLE;
SELECT is((SELECT count(*) FROM rule_cdc_check() WHERE name = 'row_invalid'), 0::bigint);

-- A row from before: it stays, its other columns change, it is named with a remedy that works.
SET session_replication_role = replica;
UPDATE rule_webhooks SET nats_subject = 'webhooks.*';
UPDATE rule_webhook_links SET subject_template = 'a..b';
UPDATE rule_webhooks SET url = 'ftp://example.org';
RESET session_replication_role;
UPDATE rule_webhooks SET description = 'x', timeout_ms = 10, nats_subject = nats_subject;
SELECT throws_like('UPDATE rule_webhooks SET nats_subject = ''b.*''', '%wildcard%');
SELECT is(array_agg(object || ' ' || (remedy IS NOT NULL) ORDER BY object, remedy IS NOT NULL),
          ARRAY['link 1 of webhook_id 1 to public.orders true', 'webhook "hook" (webhook_id 1) false', 'webhook "hook" (webhook_id 1) true'])
FROM rule_cdc_check() WHERE name = 'row_invalid' AND severity = 'error';
DO $$
DECLARE
    v_remedy text;
BEGIN
    FOR v_remedy IN SELECT remedy FROM rule_cdc_check() WHERE name = 'row_invalid' AND remedy IS NOT NULL LOOP
        EXECUTE v_remedy;
    END LOOP;
END
$$;
UPDATE rule_webhooks SET url = 'https://example.org';
SELECT is((SELECT count(*) FROM rule_cdc_check() WHERE name = 'row_invalid'), 0::bigint);

-- A replay by the rules of now, asked for in SQL.
SELECT throws_hint('SELECT rule_cdc_replay(''1h'', p_rules => ''then'')', 'cannot replay by the rules of ''then''', 'p_rules is commit%');
SELECT rule_cdc_replay('1h'), rule_cdc_replay('1h', p_rules => 'now');
SELECT is((SELECT array_agg(rules ORDER BY rules) FROM rule_cdc_replays), '{commit,now}');

-- Functions that another file has replaced, or added beside ours, since setup.
SELECT is((SELECT count(*) FROM rule_cdc_check() WHERE name = 'function_replaced'), 0::bigint);
DO $$
BEGIN
    EXECUTE regexp_replace(pg_get_functiondef('rule_webhook_publish_nats'::regproc), '\n SET [^\n]*', '', 'g');
END
$$;
CREATE FUNCTION rule_nats_stats(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
SELECT is(array_agg(object || coalesce(' ' || remedy, '') ORDER BY object),
          ARRAY['function public.rule_nats_stats(text) DROP ROUTINE public.rule_nats_stats(text);',
                'function public.' || 'rule_webhook_publish_nats'::regproc::oid::regprocedure])
FROM rule_cdc_check() WHERE name = 'function_replaced' AND severity = 'error';
DROP ROUTINE public.rule_nats_stats(text);
SELECT * FROM finish();
