-- 009: who may do what.
--
-- Comes in: 005, 007 and 008. Goes out: three roles with just the rights they need, and nothing of ours for PUBLIC:
--   walhook_streamer     LOGIN REPLICATION: `walhook run` logs in as it. Its password is the DBA's to set.
--   walhook_application  for those who call webhooks: GRANT walhook_application TO my_app;
--   walhook_operator     for those who set webhooks up and look after them: GRANT walhook_operator TO a_person;
-- Always holds: running it twice changes nothing; run it again after columns were added. Where roles cannot be made, it says
-- by NOTICE what a superuser must run, and goes on; so no database is left without the rest.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

DO $roles$
DECLARE
    v_role RECORD;
BEGIN
    FOR v_role IN
        VALUES ('walhook_streamer', 'LOGIN REPLICATION', 'walhook: the role of `walhook run`'),
               ('walhook_application', 'NOLOGIN', 'walhook: may call webhooks'),
               ('walhook_operator', 'NOLOGIN', 'walhook: may set up webhooks, links and streams')
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = v_role.column1) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I %s', v_role.column1, v_role.column2);
                EXECUTE format('COMMENT ON ROLE %I IS %L', v_role.column1, v_role.column3);
            EXCEPTION
                WHEN insufficient_privilege THEN
                    RAISE NOTICE 'the role % is missing and % may not create it', v_role.column1, current_user
                        USING HINT = format('Let a superuser run: CREATE ROLE %I %s; then run this file again.',
                                            v_role.column1, v_role.column2);
                WHEN duplicate_object OR unique_violation THEN
                    NULL; -- somebody else made it just now, in another database
            END;
        END IF;
    END LOOP;
END
$roles$;

-- Functions of others that run with their owner's rights: their search_path is pinned, and PUBLIC cannot call them.
DO $theirs$
DECLARE
    f RECORD;
BEGIN
    FOR f IN
        SELECT p.oid, p.proconfig FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace
          AND (p.proname LIKE 'rule\_webhook\_%' OR p.proname LIKE 'rule\_nats\_%')
          AND p.prosecdef
          AND coalesce(obj_description(p.oid, 'pg_proc'), '') NOT LIKE 'walhook:%'
    LOOP
        IF NOT EXISTS (SELECT FROM unnest(f.proconfig) setting WHERE setting LIKE 'search_path=%') THEN
            EXECUTE format('ALTER ROUTINE %s SET search_path = pg_catalog, public, pg_temp', f.oid::regprocedure);
        END IF;
        EXECUTE format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', f.oid::regprocedure);
    END LOOP;
END
$theirs$;

REVOKE ALL ON
    public.rule_webhooks, public.rule_webhook_secrets, public.rule_webhook_calls, public.rule_webhook_call_history,
    public.rule_nats_config, public.rule_nats_streams, public.rule_nats_publish_history, public.rule_nats_consumer_stats,
    public.rule_webhook_links, public.rule_webhook_events, public.rule_nats_checkpoints, public.rule_nats_dead_letters,
    public.rule_cdc_status, public.rule_cdc_slots, public.webhook_status_summary, public.webhook_recent_failures,
    public.webhook_performance_stats, public.nats_publish_summary, public.nats_recent_failures,
    public.nats_performance_stats
FROM PUBLIC;

-- What walhook 0.1 granted and functions do now.
DO $taken$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'walhook_operator') THEN
        REVOKE DELETE ON public.rule_nats_publish_history, public.rule_webhook_events FROM walhook_operator;
    END IF;
END
$taken$;

DO $grants$
DECLARE
    v_grant RECORD;
BEGIN
    FOR v_grant IN
        -- The streamer reads the configuration (with its secrets: it dials with them), keeps its own books, trims.
        VALUES ('walhook_streamer', 'SELECT', ARRAY['rule_webhooks', 'rule_webhook_links', 'rule_nats_config',
                    'rule_nats_streams', 'rule_cdc_slots', 'rule_cdc_migrations']),
               ('walhook_streamer', 'SELECT, DELETE', ARRAY['rule_webhook_events']),
               ('walhook_streamer', 'SELECT, INSERT, UPDATE', ARRAY['rule_nats_checkpoints', 'rule_nats_dead_letters',
                    'rule_nats_consumer_stats']),
               ('walhook_streamer', 'SELECT, INSERT, UPDATE, DELETE', ARRAY['rule_nats_publish_history', 'rule_cdc_status']),
               ('walhook_operator', 'SELECT', ARRAY['rule_nats_publish_history', 'rule_nats_consumer_stats',
                    'rule_webhook_events', 'rule_nats_checkpoints', 'rule_nats_dead_letters', 'rule_cdc_status',
                    'rule_cdc_slots', 'rule_cdc_migrations', 'webhook_status_summary', 'webhook_recent_failures',
                    'webhook_performance_stats', 'nats_publish_summary', 'nats_recent_failures',
                    'nats_performance_stats', 'rule_webhook_call_history']),
               ('walhook_operator', 'SELECT, INSERT, UPDATE, DELETE', ARRAY['rule_webhooks', 'rule_webhook_links',
                    'rule_nats_streams', 'rule_webhook_calls']),
               ('walhook_operator', 'INSERT, UPDATE, DELETE', ARRAY['rule_nats_config', 'rule_webhook_secrets']),
               ('walhook_operator', 'DELETE', ARRAY['rule_nats_consumer_stats', 'rule_webhook_call_history']),
               -- As the hints of rule_nats_dead_letter_retry say.
               ('walhook_operator', 'UPDATE (status, webhook_id)', ARRAY['rule_nats_dead_letters'])
    LOOP
        CALL walhook.rule_cdc_grant(v_grant.column1, v_grant.column2, v_grant.column3);
    END LOOP;
END
$grants$;

-- An operator sees everything of these two tables but the secrets themselves.
DO $columns$
DECLARE
    v_table TEXT;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'walhook_operator') THEN
        RETURN;
    END IF;
    FOREACH v_table IN ARRAY ARRAY['rule_nats_config', 'rule_webhook_secrets'] LOOP
        EXECUTE format('GRANT SELECT (%s) ON public.%I TO walhook_operator', (
            SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
            FROM pg_attribute
            WHERE attrelid = format('public.%I', v_table)::regclass AND attnum > 0 AND NOT attisdropped
              AND attname NOT IN ('auth_token', 'auth_nkey_seed', 'secret_value')), v_table);
    END LOOP;
END
$columns$;

DO $functions$
DECLARE
    f RECORD;
BEGIN
    FOR f IN
        SELECT p.oid, r.rolname
        FROM pg_proc p
        CROSS JOIN pg_roles r
        WHERE p.pronamespace IN ('public'::regnamespace, 'walhook'::regnamespace)
          AND obj_description(p.oid, 'pg_proc') LIKE 'walhook:%'
          AND CASE r.rolname
              -- They run with their owner's rights, so EXECUTE is all that an application needs.
              WHEN 'walhook_application' THEN p.proname IN (
                  'rule_webhook_publish_nats', 'rule_webhook_call_unified', 'rule_webhook_enqueue', 'rule_webhook_call',
                  'rule_nats_event_status', 'rule_nats_wait', 'rule_nats_subject_check', 'rule_webhook_emit', 'rule_webhook_emit_status',
                  'rule_webhook_emit_wait')
              WHEN 'walhook_streamer' THEN p.proname IN (
                  'rule_cdc_slot_create', 'rule_cdc_publication_problem', 'rule_webhook_events_cleanup',
                  'rule_webhook_links_check', 'rule_cdc_link_problems',
                  'rule_cdc_message_problems', 'rule_cdc_message_shape',
                  'rule_cdc_link_subjects', 'rule_cdc_table_problem', 'rule_cdc_replica_identity', 'rule_nats_stream_for',
                  'rule_nats_streams_of', 'rule_nats_subject_covers',
                  'rule_nats_subject_check', 'rule_nats_subject_token', 'rule_nats_subjects_overlap',
                  'rule_nats_headers_problem', 'rule_nats_report', 'rule_nats_health_check',
                  'rule_nats_dead_letter_retry', 'rule_nats_dead_letter_drop')
              WHEN 'walhook_operator' THEN p.proname NOT IN (
                  'rule_webhook_secret_get', 'rule_webhook_secret_changed', 'rule_cdc_functions_open',
                  'rule_cdc_functions_close', 'rule_cdc_grant', 'rule_cdc_grant_functions', 'rule_cdc_trigger', 'rule_cdc_rules_now', 'rule_cdc_rules_write', 'rule_cdc_rules_prune',
                  'rule_cdc_view', 'rule_cdc_emit_key_make', 'rule_cdc_mask_bind', 'rule_cdc_schema_event', 'rule_cdc_schema_follow',
                  'rule_cdc_columns_send', 'rule_cdc_columns_follow', 'rule_cdc_columns_try', 'rule_cdc_columns_event')
                  AND p.proname !~ '^rule_nats_history_'
              ELSE false END
    LOOP
        EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', f.oid::regprocedure, f.rolname);
    END LOOP;
END
$functions$;

-- Databases where PUBLIC has lost these.
DO $database$
DECLARE
    v_role TEXT;
BEGIN
    FOR v_role IN
        SELECT rolname FROM pg_roles WHERE rolname IN ('walhook_streamer', 'walhook_application', 'walhook_operator')
    LOOP
        IF NOT has_schema_privilege(v_role, 'public', 'USAGE') THEN
            EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', v_role);
        END IF;
        -- Functions that an application may call run with their owner's rights.
        IF v_role <> 'walhook_application' AND NOT has_schema_privilege(v_role, 'walhook', 'USAGE') THEN
            EXECUTE format('GRANT USAGE ON SCHEMA walhook TO %I', v_role);
        END IF;
        IF NOT has_database_privilege(v_role, current_database(), 'CONNECT') THEN
            EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), v_role);
        END IF;
        -- Through a temporary table the history's rows come in.
        IF v_role = 'walhook_streamer' AND NOT has_database_privilege(v_role, current_database(), 'TEMPORARY') THEN
            EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO %I', current_database(), v_role);
        END IF;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'walhook''s roles may not use this database yet: %', SQLERRM
        USING HINT = 'Let its owner run this file again.';
END
$database$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('009', 'walhook: roles and rights')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
