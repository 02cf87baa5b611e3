-- Each role can do its work and nothing else.
SELECT * FROM no_plan();
SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>']);
SELECT rule_webhook_register('hook', 'https://example.com', p_headers => '{"Authorization": "Bearer x"}');
SELECT rule_webhook_enable_nats(1);
SELECT rule_webhook_secret_set(1, 'k', 'v');
UPDATE rule_nats_config SET auth_token = 'hush';
SELECT rule_cdc_publication_create();
CREATE TABLE plain (id int PRIMARY KEY);

-- The helpers of the assertions must be callable by all; nothing of ours may be.
SELECT is(ARRAY(
    SELECT p.oid::regprocedure::text FROM pg_proc p
    WHERE p.pronamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND p.proname LIKE 'rule\_%' AND has_function_privilege('public', p.oid, 'EXECUTE')), '{}');
SELECT is(ARRAY(
    SELECT c.relname::text FROM pg_class c
    WHERE c.relnamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND c.relkind IN ('r', 'v', 'S') AND c.relname <> 'plain'
      AND has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE')), '{}');

-- commit
SET ROLE walhook_application;
SELECT is((rule_webhook_call_unified(1, '{"a": 1}') ->> 'success')::boolean, true);
SELECT is((rule_webhook_publish_nats(1, '{"a": 1}') ->> 'success')::boolean, true);
SELECT is(rule_nats_event_status(1) ->> 'status', 'enqueued');
SELECT ok(rule_webhook_enqueue(1, '{}') > 0, 'enqueued');
SELECT throws_like(s, 'permission denied for %') FROM unnest(ARRAY[
    'SELECT * FROM rule_webhooks', 'SELECT * FROM rule_webhook_events', 'INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (1, ''1'')',
    'SELECT * FROM rule_nats_config', 'SELECT * FROM rule_webhook_secrets', 'SELECT * FROM rule_nats_publish_history', 'SELECT * FROM nats_recent_failures',
    'SELECT * FROM webhook_recent_failures', 'SELECT * FROM rule_cdc_slots', 'SELECT rule_webhook_secret_get(1, ''k'')', 'SELECT rule_nats_config_info()', 'SELECT rule_nats_stats()',
    'SELECT rule_webhook_link_table(1, ''plain'')', 'SELECT rule_nats_configure()', 'SELECT rule_webhook_enable_nats(1)', 'SELECT rule_cdc_slot_drop()', 'SELECT walhook.rule_nats_report(''default'')']) s;
RESET ROLE;
SELECT is((SELECT DISTINCT triggered_by FROM rule_webhook_events), 'walhook_application', 'who made the event');

SET ROLE walhook_operator;
SELECT ok(rule_webhook_register('theirs', 'https://example.com') = 2 AND rule_webhook_enable_nats(2) AND rule_nats_configure('mine', 'nats://mine'), 'set up');
SELECT ok(rule_nats_stream_create('M', ARRAY['m'], 'mine') > 0 AND rule_webhook_secret_set(2, 'k', 'v') AND rule_webhook_secret_set(2, 'k', 'w'), 'set up more');
SELECT ok(rule_webhook_update(2, p_enabled => true) AND rule_webhook_disable_nats(2), 'changed');
SELECT is(rule_nats_config_info() ->> 'auth_type', 'none');
SELECT ok(rule_nats_health_check('default') ->> 'message' IS NOT NULL, 'health');
SELECT rule_nats_stats(), rule_nats_cleanup_expired(), rule_nats_cleanup_old_history(), rule_webhook_events_cleanup(), rule_webhook_cleanup_old_calls();
SELECT count(*) FROM rule_webhook_links_check(), nats_publish_summary, nats_recent_failures, nats_performance_stats, rule_cdc_slots, rule_nats_webhooks_list();
SELECT rule_webhook_retry(1), rule_webhook_call_status(1), rule_webhook_get('hook');
SELECT throws_like(s, 'permission denied for %') FROM unnest(ARRAY[
    'SELECT auth_token FROM rule_nats_config', 'SELECT * FROM rule_nats_config', 'SELECT auth_nkey_seed FROM rule_nats_config', 'SELECT secret_value FROM rule_webhook_secrets',
    'SELECT rule_webhook_secret_get(1, ''k'')', 'INSERT INTO rule_nats_publish_history DEFAULT VALUES', 'DELETE FROM rule_nats_publish_history',
    'UPDATE rule_nats_publish_history SET success = true', 'DELETE FROM rule_webhook_events', 'UPDATE rule_webhook_events SET payload = ''1''',
    'INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (1, ''1'')',
    'UPDATE rule_nats_checkpoints SET epoch = 0', 'INSERT INTO rule_nats_checkpoints (source, config_name, stream_name, epoch) VALUES (''x'', '''', '''', 9)', 'DELETE FROM rule_nats_checkpoints',
    'INSERT INTO rule_cdc_status (source) VALUES (''x'')', 'UPDATE rule_cdc_status SET heartbeat_at = now()', 'DELETE FROM rule_cdc_status',
    'INSERT INTO walhook.rule_cdc_anchor_settings (slot_name, anchor_name, keep, keep_bytes) VALUES (''x'', ''theirs'', ''1 day'', 1)',
    'UPDATE walhook.rule_cdc_anchor_settings SET anchor_name = ''theirs''', 'DELETE FROM walhook.rule_cdc_anchor_settings', 'DELETE FROM walhook.rule_cdc_anchor_places',
    'INSERT INTO walhook.rule_cdc_anchor_places VALUES (''x'', now(), ''0/1'')', 'SELECT rule_cdc_anchor_move()',
    'UPDATE rule_cdc_backfill_rows SET chunk = ''1''', 'INSERT INTO rule_nats_dead_letters (event_id, reason) VALUES (''y'', ''z'')', 'DELETE FROM rule_nats_dead_letters',
    'UPDATE rule_nats_dead_letters SET payload = NULL', 'INSERT INTO rule_cdc_migrations (version, description) VALUES (''999'', ''x'')', 'DELETE FROM rule_cdc_migrations',
    'SELECT walhook.rule_nats_history_open(), walhook.rule_nats_history_write()', 'TRUNCATE rule_webhooks', 'CALL walhook.rule_cdc_view(''x'', '''', ''SELECT 1'')', 'CALL walhook.rule_cdc_grant(''walhook_operator'', ''SELECT'', ''{rule_webhook_secrets}'')',
    'CALL walhook.rule_cdc_grant_functions(''walhook_operator'', ''^rule_'')']) s;
SELECT throws_like('SELECT pg_create_logical_replication_slot(''x'', ''pgoutput'')', '%replication%');
-- A chunk that nothing could read is refused, whoever writes it.
SELECT throws_like(s, '%"valid_chunk"%') FROM unnest(ARRAY[
    'INSERT INTO rule_cdc_backfill_rows (chunk) VALUES (''1'')', 'INSERT INTO rule_cdc_backfill_rows (chunk) VALUES (''{}'')', 'INSERT INTO rule_cdc_backfill_rows DEFAULT VALUES',
    'INSERT INTO rule_cdc_backfill_rows (row_data) VALUES (''x'')', 'INSERT INTO rule_cdc_backfill_rows VALUES (''{"backfill": 1, "schema": "s", "table": 3, "links": [], "columns": []}'', NULL)']) s;
-- Publishing a table asks for its owner; the error says what he must run.
SELECT throws_hint($$SELECT rule_webhook_link_table(1, 'plain')$$, 'cannot link public.plain: walhook_operator may not read it', 'GRANT SELECT ON public.plain TO walhook_operator;%');
RESET ROLE;
GRANT SELECT ON plain TO walhook_operator;
SET ROLE walhook_operator;
SELECT throws_hint($$SELECT rule_webhook_link_table(1, 'plain')$$, 'cannot publish public.plain: must be owner%', '%run: ALTER PUBLICATION walhook_changes ADD TABLE ONLY public.plain; then call this again.');
RESET ROLE;
ALTER PUBLICATION walhook_changes ADD TABLE ONLY public.plain;
SET ROLE walhook_operator;
SELECT ok(rule_webhook_link_table(1, 'plain') > 0, 'linked');
SELECT ok(rule_webhook_unlink_table(1, 'plain'), 'unlinked, with a warning about the publication');
SELECT ok(rule_webhook_delete(2), 'deleted');
-- What docs have an operator write himself.
UPDATE rule_webhooks SET payload_format = 'data', on_error = 'halt', signed = false, expose_credentials = true, nats_headers = '{"X-Team": "billing"}' WHERE webhook_name = 'hook';
UPDATE rule_webhooks SET payload_format = 'webhook', on_error = 'dead_letter' WHERE webhook_name = 'hook';
UPDATE rule_nats_streams SET consumers = '{webhook-worker-1,billing}', transactions = 'atomic', durability = 'fsync', ordering = 'shared' WHERE stream_name = 'WEBHOOKS';
UPDATE rule_nats_config SET enabled = true, object_bucket = 'orders_objects', history = 'failures' WHERE config_name = 'mine';
UPDATE rule_nats_dead_letters SET status = 'dead' WHERE dead_letter_id = 1;
UPDATE rule_nats_dead_letters SET webhook_id = 1 WHERE dead_letter_id = 1;
SELECT rule_cdc_replay('1h'), rule_cdc_replay_cancel(1);
SELECT is((SELECT started_by FROM rule_cdc_replays), 'walhook_operator');
SELECT * FROM rule_cdc_replays, rule_cdc_anchors, rule_cdc_backfills, rule_nats_checkpoints, rule_nats_dead_letters, rule_cdc_status, rule_webhook_links LIMIT 0;
SELECT walhook.rule_cdc_publication_problem('walhook'), walhook.rule_nats_stream_for(NULL, 'a'), rule_nats_event_status(1);
RESET ROLE;
-- The worker reads the configuration and secrets, and keeps the calls.
SET ROLE walhook_worker;
SELECT secret_value FROM rule_webhook_secrets;
SELECT * FROM rule_webhooks, rule_webhook_links, rule_nats_config, rule_nats_streams, rule_cdc_migrations LIMIT 0;
UPDATE rule_webhooks SET enabled = true, updated_at = now() WHERE webhook_id = 1;
INSERT INTO rule_webhook_calls (webhook_id, payload, event_id) VALUES (1, '{}', 'e');
INSERT INTO rule_nats_dead_letters (event_id, reason) VALUES ('w', 'gave up');
SELECT rule_nats_consumer_update_stats('S', 'c', 1, 1, 1);
SELECT throws_like(s, 'permission denied for %') FROM unnest(ARRAY[
    'UPDATE rule_webhooks SET url = ''http://x''', 'DELETE FROM rule_webhook_calls', 'INSERT INTO rule_webhook_secrets (webhook_id, secret_name, secret_value) VALUES (1, ''a'', ''b'')',
    'UPDATE rule_nats_config SET nats_url = ''nats://x''', 'SELECT * FROM rule_nats_publish_history', 'SELECT rule_webhook_call_unified(1, ''{}'')', 'DELETE FROM rule_nats_dead_letters',
    'SELECT rule_webhook_link_table(1, ''plain'')', 'INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (1, ''1'')', 'SELECT * FROM rule_cdc_status',
    'INSERT INTO rule_cdc_backfill_rows (chunk) VALUES (''1'')', 'UPDATE rule_nats_checkpoints SET epoch = 0']) s;
RESET ROLE;

-- The streamer keeps its books and reads the configuration.
SET ROLE walhook_streamer;
SELECT w.webhook_id, c.auth_token FROM rule_webhooks w JOIN rule_nats_config c ON c.config_id = w.nats_config_id;
SELECT * FROM rule_webhook_links, rule_nats_streams, rule_cdc_slots;
INSERT INTO rule_nats_checkpoints (source, config_name, stream_name, epoch) VALUES ('main', '', '', 1)
ON CONFLICT (source, config_name, stream_name, servers) DO UPDATE SET epoch = rule_nats_checkpoints.epoch + 1;
INSERT INTO rule_nats_dead_letters (event_id, reason) VALUES ('x', 'too large');
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success) VALUES (1, 's', '{}', true);
INSERT INTO rule_nats_consumer_stats (stream_name, consumer_name) VALUES ('S', 'c') ON CONFLICT (stream_name, consumer_name) DO UPDATE SET active = true;
INSERT INTO rule_cdc_status (source) VALUES ('main') ON CONFLICT (source) DO UPDATE SET heartbeat_at = now();
DELETE FROM rule_webhook_events WHERE event_id = 1;
SELECT rule_webhook_events_cleanup(), rule_nats_cleanup_expired();
SELECT count(*) FROM rule_webhook_links_check();
SELECT throws_like(s, 'permission denied for %') FROM unnest(ARRAY[
    'SELECT * FROM rule_webhook_secrets', 'UPDATE rule_webhooks SET enabled = false', 'DELETE FROM rule_webhook_links', 'SELECT * FROM plain', 'UPDATE rule_nats_config SET nats_url = ''''',
    'SELECT rule_webhook_call_unified(1, ''{}'')', 'SELECT rule_webhook_secret_get(1, ''k'')', 'DELETE FROM rule_nats_dead_letters',
    'INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (1, ''1'')', 'UPDATE rule_webhook_links SET enabled = false', 'DELETE FROM rule_nats_checkpoints',
    'DELETE FROM walhook.rule_cdc_anchor_settings', 'SELECT * FROM rule_webhook_calls', 'INSERT INTO rule_cdc_migrations (version, description) VALUES (''999'', ''x'')']) s;
RESET ROLE;
-- The tables and functions of 012 to 017: what each role may do with them, and what not.
SET ROLE walhook_operator;
SELECT count(*) FROM rule_cdc_check(), walhook.rule_cdc_check_rows(), walhook.rule_cdc_check_functions(), walhook.rule_cdc_check_sessions();
SELECT * FROM rule_cdc_identity, walhook.rule_cdc_runs, walhook.rule_cdc_claims, rule_cdc_put_aside, walhook.rule_cdc_rule_sources, rule_cdc_server_aliases LIMIT 0;
SELECT amendment_id, source, reason, made_by FROM rule_cdc_rule_amendments;
SELECT source, table_name, row_id, since_lsn FROM walhook.rule_cdc_rule_versions;
UPDATE rule_nats_config SET jetstream_domain = 'hub' WHERE config_name = 'mine';
SELECT is((SELECT (jetstream_domain, api_prefix)::text FROM rule_nats_config WHERE config_name = 'mine'), '(hub,)');
SELECT throws_like('SELECT rule_cdc_rules_amend(''no-such-event'')', '%no-such-event%');
SELECT is(rule_cdc_rules_forget('no such source'), false);
SELECT throws_like(s, 'permission denied for %') FROM unnest(ARRAY[
    'UPDATE rule_cdc_identity SET database_id = ''x''', 'INSERT INTO walhook.rule_cdc_runs DEFAULT VALUES', 'DELETE FROM walhook.rule_cdc_runs', 'DELETE FROM walhook.rule_cdc_claims',
    'INSERT INTO walhook.rule_cdc_claims DEFAULT VALUES', 'DELETE FROM rule_cdc_put_aside', 'UPDATE walhook.rule_cdc_rule_sources SET source = ''x''', 'DELETE FROM walhook.rule_cdc_rule_sources',
    'DELETE FROM walhook.rule_cdc_rule_versions', 'INSERT INTO walhook.rule_cdc_rule_versions DEFAULT VALUES', 'SELECT * FROM walhook.rule_cdc_rule_versions', 'SELECT * FROM rule_cdc_rule_amendments',
    'DELETE FROM rule_cdc_rule_amendments', 'INSERT INTO rule_cdc_rule_amendments DEFAULT VALUES', 'INSERT INTO rule_cdc_server_aliases DEFAULT VALUES',
    'DELETE FROM rule_cdc_server_aliases', 'SELECT walhook.rule_cdc_rules_now()', 'SELECT walhook.rule_cdc_rules_prune(''s'', ''s'', 7)',
    'SELECT walhook.rule_cdc_rules_write(''s'', ''0/1'', true, ''{}'', ''{}'', ''{}'', ''{}'')']) s;
RESET ROLE;
SET ROLE walhook_application;
SELECT throws_like(s, 'permission denied for %') FROM unnest(ARRAY[
    'SELECT * FROM rule_cdc_identity', 'SELECT * FROM walhook.rule_cdc_claims', 'SELECT * FROM walhook.rule_cdc_rule_versions', 'SELECT * FROM rule_cdc_rule_amendments',
    'SELECT * FROM rule_cdc_server_aliases', 'SELECT * FROM rule_cdc_check()', 'SELECT rule_cdc_rules_amend(''x'')', 'SELECT rule_cdc_rules_forget(''x'')',
    'SELECT rule_cdc_replay(''1h'')', 'SELECT rule_cdc_backfill_start(''plain'')', 'SELECT rule_cdc_anchor_create()', 'SELECT rule_nats_dead_letter_retry(1)']) s;
RESET ROLE;
SET ROLE walhook_worker;
SELECT * FROM rule_cdc_identity, walhook.rule_cdc_runs LIMIT 0;
SELECT throws_like(s, 'permission denied for %') FROM unnest(ARRAY[
    'UPDATE rule_cdc_identity SET database_id = ''x''', 'DELETE FROM walhook.rule_cdc_runs', 'SELECT * FROM walhook.rule_cdc_claims', 'SELECT * FROM walhook.rule_cdc_rule_versions',
    'SELECT * FROM rule_cdc_server_aliases', 'SELECT rule_cdc_rules_amend(''x'')', 'SELECT rule_cdc_replay(''1h'')', 'SELECT rule_cdc_backfill_start(''plain'')']) s;
RESET ROLE;
SET ROLE walhook_streamer;
SELECT count(*) FROM rule_cdc_check();
SELECT * FROM rule_cdc_identity, walhook.rule_cdc_claims, walhook.rule_cdc_rule_versions, rule_cdc_rule_amendments, walhook.rule_cdc_rule_sources, rule_cdc_server_aliases LIMIT 0;
SELECT throws_like(s, 'permission denied for %') FROM unnest(ARRAY[
    'UPDATE rule_cdc_identity SET database_id = ''x''', 'DELETE FROM rule_cdc_identity', 'DELETE FROM walhook.rule_cdc_claims', 'INSERT INTO rule_cdc_put_aside DEFAULT VALUES',
    'INSERT INTO rule_cdc_rule_amendments DEFAULT VALUES', 'UPDATE rule_cdc_rule_amendments SET reason = ''x''', 'UPDATE rule_cdc_server_aliases SET alias_id = 1',
    'SELECT rule_cdc_rules_amend(''x'')', 'SELECT rule_cdc_rules_forget(''x'')', 'SELECT walhook.rule_cdc_rules_now()', 'SELECT rule_cdc_anchor_create()', 'SELECT rule_cdc_replay(''1h'')']) s;
RESET ROLE;
-- Links of schemas: an operator makes and ends them, and cannot write another's name into one.
SET ROLE walhook_operator;
SELECT count(*) FROM rule_webhook_link_schema('hook', 'public', p_like => 'none');
SELECT is((SELECT linked_by FROM rule_webhook_schema_links), 'walhook_operator');
SELECT throws_like(s, 'permission denied for %') FROM unnest(ARRAY[
    'INSERT INTO rule_webhook_schema_links (webhook_id, table_schema) VALUES (1, ''x'')', 'UPDATE rule_webhook_schema_links SET linked_by = ''postgres''',
    'DELETE FROM rule_webhook_schema_links', 'SELECT walhook.rule_cdc_schema_follow(''{}'')']) s;
SELECT is(rule_webhook_unlink_schema('hook', 'public'), 0);
RESET ROLE;

-- Each table and function that there is, by what each role may do with it: one that is added has to be decided upon here.
CREATE FUNCTION may(p_role text, p_right text) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(c.oid::regclass::text, ' ' ORDER BY c.relname), '') FROM pg_class c
    WHERE c.relnamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition AND c.relname <> 'plain'
      AND has_table_privilege(p_role, c.oid, p_right)
$$;
CREATE FUNCTION may_call(p_role text, p_may boolean) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(DISTINCT p.proname::text, ' ' ORDER BY p.proname::text), '') FROM pg_proc p
    WHERE p.pronamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND p.proname LIKE 'rule\_%' AND has_function_privilege(p_role, p.oid, 'EXECUTE') = p_may
$$;
SELECT is(may('walhook_application', 'SELECT'), '');
SELECT is(may('walhook_application', 'INSERT'), '');
SELECT is(may('walhook_application', 'UPDATE'), '');
SELECT is(may('walhook_application', 'DELETE'), '');
SELECT is(may('walhook_worker', 'SELECT'),
    'rule_cdc_identity rule_cdc_migrations walhook.rule_cdc_runs rule_nats_config rule_nats_dead_letters rule_nats_streams '
    'rule_webhook_call_history rule_webhook_calls walhook.rule_webhook_limit_holders walhook.rule_webhook_limits rule_webhook_links '
    'walhook.rule_webhook_order_holders rule_webhook_secrets rule_webhooks');
SELECT is(may('walhook_worker', 'INSERT'),
    'rule_nats_dead_letters rule_webhook_call_history rule_webhook_calls walhook.rule_webhook_limit_holders walhook.rule_webhook_limits walhook.rule_webhook_order_holders');
SELECT is(may('walhook_worker', 'UPDATE'),
    'rule_nats_dead_letters rule_webhook_calls walhook.rule_webhook_limit_holders walhook.rule_webhook_limits walhook.rule_webhook_order_holders');
SELECT is(may('walhook_worker', 'DELETE'), 'walhook.rule_webhook_limit_holders walhook.rule_webhook_limits walhook.rule_webhook_order_holders');
SELECT is(may('walhook_streamer', 'INSERT'),
    'walhook.rule_cdc_anchor_places walhook.rule_cdc_backfill_jobs walhook.rule_cdc_backfill_ranges rule_cdc_backfill_rows walhook.rule_cdc_claims rule_cdc_replays '
    'walhook.rule_cdc_rule_sources walhook.rule_cdc_rule_versions walhook.rule_cdc_runs rule_cdc_server_aliases rule_cdc_status rule_nats_checkpoints '
    'rule_nats_consumer_stats rule_nats_dead_letters rule_nats_publish_history');
SELECT is(may('walhook_streamer', 'UPDATE'),
    'walhook.rule_cdc_anchor_settings walhook.rule_cdc_backfill_jobs walhook.rule_cdc_backfill_ranges walhook.rule_cdc_claims rule_cdc_replays walhook.rule_cdc_rule_sources '
    'walhook.rule_cdc_rule_versions walhook.rule_cdc_runs rule_cdc_status rule_nats_checkpoints rule_nats_consumer_stats rule_nats_dead_letters '
    'rule_nats_publish_history');
SELECT is(may('walhook_streamer', 'DELETE'),
    'walhook.rule_cdc_anchor_places rule_cdc_backfill_rows rule_cdc_rule_amendments walhook.rule_cdc_rule_sources walhook.rule_cdc_rule_versions walhook.rule_cdc_runs '
    'rule_cdc_server_aliases rule_cdc_status rule_nats_publish_history rule_webhook_events');
SELECT is(may('walhook_operator', 'INSERT'),
    'walhook.rule_cdc_backfill_jobs walhook.rule_cdc_backfill_ranges rule_cdc_backfill_rows rule_cdc_replays rule_nats_config rule_nats_streams '
    'rule_webhook_calls rule_webhook_links rule_webhook_secrets rule_webhooks');
SELECT is(may('walhook_operator', 'UPDATE'),
    'walhook.rule_cdc_backfill_jobs walhook.rule_cdc_backfill_ranges rule_cdc_replays rule_nats_config rule_nats_streams rule_webhook_calls '
    'rule_webhook_links rule_webhook_secrets rule_webhooks');
SELECT is(may('walhook_operator', 'DELETE'),
    'rule_cdc_backfill_rows rule_nats_config rule_nats_consumer_stats walhook.rule_nats_notices rule_nats_streams rule_webhook_call_history rule_webhook_calls '
    'walhook.rule_webhook_limit_holders walhook.rule_webhook_limits rule_webhook_links walhook.rule_webhook_order_holders rule_webhook_secrets rule_webhooks');
SELECT is(may_call('walhook_application', true),
    'rule_nats_event_status rule_nats_subject_check rule_nats_wait rule_webhook_call rule_webhook_call_unified rule_webhook_emit '
    'rule_webhook_emit_status rule_webhook_emit_wait rule_webhook_enqueue rule_webhook_publish_nats');
SELECT is(may_call('walhook_worker', true),
    'rule_cdc_utf8 rule_nats_consumer_update_stats rule_nats_notices_take rule_webhook_limit_calls rule_webhook_limit_starts rule_webhook_order_take '
    'rule_webhook_queue_by_key rule_webhook_queue_claim');
SELECT is(may_call('walhook_operator', false),
    'rule_cdc_anchor_move rule_cdc_columns_event rule_cdc_columns_follow rule_cdc_columns_send rule_cdc_columns_try rule_cdc_emit_key_make rule_cdc_functions_close rule_cdc_functions_open rule_cdc_grant rule_cdc_grant_functions rule_cdc_mask_bind '
    'rule_cdc_rules_now rule_cdc_rules_prune rule_cdc_rules_write rule_cdc_schema_event rule_cdc_schema_follow rule_cdc_trigger rule_cdc_view '
    'rule_nats_history_begin rule_nats_history_insert rule_nats_history_json '
    'rule_nats_history_make rule_nats_history_missing rule_nats_history_open rule_nats_history_rows rule_nats_history_target '
    'rule_nats_history_webhook_deleted rule_nats_history_write rule_nats_history_written '
    'rule_webhook_secret_changed rule_webhook_secret_get');
SELECT is(count(*), 0::bigint) FROM unnest('{walhook_application,walhook_worker,walhook_streamer,walhook_operator}'::text[]) r, unnest('{TRUNCATE,REFERENCES,TRIGGER}'::text[]) p WHERE may(r, p) <> '';
SELECT is((SELECT (rolcanlogin, rolreplication, rolsuper, rolcreatedb, rolcreaterole, rolbypassrls)::text FROM pg_roles WHERE rolname = 'walhook_streamer'), '(t,t,f,f,f,f)');
SELECT * FROM finish();
