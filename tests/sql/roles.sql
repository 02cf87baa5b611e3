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
    WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'rule\_%' AND has_function_privilege('public', p.oid, 'EXECUTE')), '{}');
SELECT is(ARRAY(
    SELECT c.relname::text FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'S') AND c.relname <> 'plain'
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
    'SELECT rule_webhook_link_table(1, ''plain'')', 'SELECT rule_nats_configure()', 'SELECT rule_webhook_enable_nats(1)', 'SELECT rule_cdc_slot_drop()', 'SELECT rule_nats_report(''default'')']) s;
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
    'SELECT rule_webhook_secret_get(1, ''k'')', 'INSERT INTO rule_nats_publish_history DEFAULT VALUES', 'UPDATE rule_nats_checkpoints SET epoch = 0']) s;
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
    'SELECT rule_webhook_call_unified(1, ''{}'')', 'SELECT rule_webhook_secret_get(1, ''k'')', 'DELETE FROM rule_nats_dead_letters']) s;
RESET ROLE;
SELECT is((SELECT (rolcanlogin, rolreplication, rolsuper, rolcreatedb, rolcreaterole, rolbypassrls)::text FROM pg_roles WHERE rolname = 'walhook_streamer'), '(t,t,f,f,f,f)');
SELECT * FROM finish();
