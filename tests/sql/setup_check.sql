-- The check of the whole set-up: every finding has its name, and its remedy is SQL that sets it right.
SELECT * FROM no_plan();
SELECT rule_webhook_register('hook', 'https://example.com');
SELECT rule_nats_configure('default', 'nats://127.0.0.1:4222');
SELECT rule_nats_stream_create('ALL', ARRAY['webhooks.>']);
SELECT rule_webhook_enable_nats(1, NULL, 'nats');
CREATE TABLE orders (id int PRIMARY KEY, status text);
CREATE TABLE parted (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
-- Whether the check has this finding, about something like this.
CREATE FUNCTION found(p_name text, p_problem text DEFAULT '%') RETURNS boolean LANGUAGE sql AS $$
    SELECT EXISTS (SELECT FROM rule_cdc_check() WHERE name = p_name AND problem LIKE p_problem) $$;
-- Runs the remedy of a finding, and says whether the finding is gone.
CREATE FUNCTION mended(p_name text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_remedy text;
BEGIN
    FOR v_remedy IN SELECT remedy FROM rule_cdc_check() WHERE name = p_name LOOP
        -- A function is one transaction already.
        EXECUTE replace(replace(v_remedy, 'BEGIN;', ''), 'COMMIT;', '');
    END LOOP;
    RETURN NOT found(p_name);
END $$;

SELECT ok(found('slot_missing') AND found('publication_missing'), 'nothing is there yet');
SELECT ok(mended('publication_missing'), 'made');
-- commit
SELECT rule_webhook_link_table(1, 'orders'), rule_webhook_link_table(1, 'parted');
SELECT is((SELECT string_agg(name, ',') FROM rule_cdc_check()), 'slot_missing');

-- Publications
ALTER PUBLICATION walhook_inserts SET (publish = 'insert, delete');
ALTER PUBLICATION walhook_changes SET (publish_via_partition_root = false);
SELECT is((SELECT count(*) FROM rule_cdc_check() WHERE name = 'publication_options' AND severity = 'fatal'), '2');
SELECT ok(mended('publication_options'), 'options');
ALTER PUBLICATION walhook_changes DROP TABLE rule_webhook_links;
ALTER PUBLICATION walhook_inserts DROP TABLE rule_webhook_events;
SELECT is((SELECT count(*) FROM rule_cdc_check() WHERE name = 'publication_own_table' AND severity = 'fatal'), '2');
SELECT ok(mended('publication_own_table'), 'our own tables');
ALTER PUBLICATION walhook_inserts ADD TABLE rule_webhook_secrets;
SELECT ok(found('publication_denied_table', '%rule_webhook_secrets%'), 'secrets');
SELECT ok(mended('publication_denied_table'), 'no secrets');
CREATE TABLE stray (id int PRIMARY KEY);
ALTER PUBLICATION walhook_changes ADD TABLE stray;
SELECT ok(found('publication_not_linked', '%public.stray%'), 'a table that nobody linked');
SELECT ok(mended('publication_not_linked'), 'and no more');
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 150000 THEN
        EXECUTE 'ALTER PUBLICATION walhook_changes SET TABLE rule_webhooks WHERE (webhook_id > 10), rule_webhook_links, rule_nats_config, '
                'rule_nats_streams, orders WHERE (id > 10), parted (id), TABLES IN SCHEMA pg_temp';
    END IF;
EXCEPTION WHEN OTHERS THEN
    EXECUTE 'CREATE SCHEMA more';
    EXECUTE 'ALTER PUBLICATION walhook_changes SET TABLE rule_webhooks WHERE (webhook_id > 10), rule_webhook_links, rule_nats_config, '
            'rule_nats_streams, orders WHERE (id > 10)';
    EXECUTE 'ALTER PUBLICATION walhook_changes ADD TABLE parted (id)';
END $$;
SELECT ok(current_setting('server_version_num')::int < 150000 OR
          found('publication_row_filter', '%public.rule_webhooks%') AND found('publication_row_filter', '%public.orders%')
          AND found('publication_columns', '%public.parted%'), 'row filters and a list of columns');
SELECT is((SELECT string_agg(severity, ',' ORDER BY severity) FROM rule_cdc_check() WHERE name = 'publication_row_filter'),
          CASE WHEN current_setting('server_version_num')::int >= 150000 THEN 'error,fatal' END);
SELECT ok(current_setting('server_version_num')::int < 150000
          OR (SELECT bool_and(NOT ok) FROM rule_webhook_links_check()), 'every link says so');
SELECT ok(mended('publication_row_filter') AND mended('publication_columns'), 'whole tables again');
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 150000 THEN
        EXECUTE 'CREATE SCHEMA IF NOT EXISTS more';
        EXECUTE 'ALTER PUBLICATION walhook_changes ADD TABLES IN SCHEMA more';
    END IF;
END $$;
SELECT is(found('publication_schema', '%more%'), current_setting('server_version_num')::int >= 150000);
SELECT ok(mended('publication_schema'), 'no whole schema');
DROP PUBLICATION walhook_changes;
CREATE PUBLICATION walhook_changes FOR ALL TABLES;
SELECT ok(found('publication_all_tables'), 'all tables');
SELECT ok(mended('publication_all_tables'), 'those that are linked');
SELECT is((SELECT string_agg(name, ',') FROM rule_cdc_check()), 'slot_missing', 'the links'' tables are in it');

-- Our own tables
ALTER TABLE rule_webhooks ENABLE ROW LEVEL SECURITY;
SELECT is((SELECT severity FROM rule_cdc_check() WHERE name = 'row_security'), 'note', 'a superuser sees all');
SET ROLE walhook_streamer;
SELECT is((SELECT severity FROM rule_cdc_check() WHERE name = 'row_security'), 'fatal', 'the streamer''s role does not');
RESET ROLE;
SELECT ok(mended('row_security'), 'off');
ALTER TABLE rule_nats_streams REPLICA IDENTITY NOTHING;
SELECT ok(found('own_table_identity'), 'no identity');
SELECT ok(mended('own_table_identity'), 'the default again');
ALTER PUBLICATION walhook_inserts DROP TABLE rule_webhook_events;
ALTER TABLE rule_webhook_events SET UNLOGGED;
SELECT ok(found('own_table_unlogged'), 'events that are not in the WAL');
SELECT ok(mended('own_table_unlogged'), 'are again');

-- Tables that change behind their link
ALTER TABLE orders RENAME TO orders_old;
SELECT ok(found('table_missing', '%it may be public.orders_old now%'), 'renamed');
SELECT ok(mended('table_missing'), 'followed');
SELECT ok((SELECT ok FROM rule_webhook_links_check() WHERE link_id = 1), 'and whole again');
CREATE TABLE orders_new (LIKE orders_old INCLUDING ALL);
BEGIN;
ALTER TABLE orders_old RENAME TO orders_older;
ALTER TABLE orders_new RENAME TO orders_old;
COMMIT;
SELECT ok(found('table_not_published') AND found('publication_not_linked', '%orders_older%'), 'swapped');
SELECT ok(mended('table_not_published') AND mended('publication_not_linked'), 'the new one is published, the old one is not');
DROP TABLE orders_old;
CREATE TABLE orders_old (id int PRIMARY KEY);
SELECT ok(found('table_not_published', '%'), 'dropped and made again');
SELECT ok(mended('table_not_published'), 'published');
CREATE UNLOGGED TABLE parted_2 (id int PRIMARY KEY, note text);
ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM (10) TO (20);
SELECT ok(found('partition_unlogged', '%public.parted_2%'), 'an unlogged partition');
SELECT ok(mended('partition_unlogged'), 'logged');
CREATE FOREIGN DATA WRAPPER nobody;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nobody;
CREATE TABLE mixed (id int) PARTITION BY RANGE (id);
CREATE TABLE mixed_1 PARTITION OF mixed (id PRIMARY KEY) FOR VALUES FROM (0) TO (10);
SELECT rule_webhook_link_table(1, 'mixed');
CREATE FOREIGN TABLE mixed_2 PARTITION OF mixed FOR VALUES FROM (20) TO (30) SERVER nowhere;
SELECT ok(found('partition_foreign', '%public.mixed_2%'), 'a foreign partition');
SELECT ok(mended('partition_foreign'), 'detached');
CREATE TABLE mixed_3 (id int);
ALTER TABLE mixed ATTACH PARTITION mixed_3 FOR VALUES FROM (30) TO (40);
SELECT ok(found('identity_missing', '%public.mixed_3%'), 'a leaf without identity, attached later');
SELECT ok(mended('identity_missing'), 'with one');
CREATE TABLE half (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE UNLOGGED TABLE half_1 PARTITION OF half FOR VALUES FROM (0) TO (10);
SELECT throws_hint($$SELECT rule_webhook_link_table(1, 'half', '{insert}')$$, '%its partition public.half_1 is unlogged%', 'ALTER TABLE public.half_1 SET LOGGED;');

-- Generated columns: the application's UPDATE must not fail, and a delete must bring its key
CREATE FUNCTION is_18() RETURNS boolean LANGUAGE sql AS $$ SELECT current_setting('server_version_num')::int >= 180000 $$;
CREATE TABLE gen_full (id int NOT NULL, twice int GENERATED ALWAYS AS (id * 2) STORED);
ALTER TABLE gen_full REPLICA IDENTITY FULL;
CREATE TABLE gen_full_keyed (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
ALTER TABLE gen_full_keyed REPLICA IDENTITY FULL;
CREATE TABLE gen_full_unique (id int NOT NULL UNIQUE, twice int GENERATED ALWAYS AS (id * 2) STORED);
ALTER TABLE gen_full_unique REPLICA IDENTITY FULL;
CREATE TABLE gen_key (id int, twice int GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY);
CREATE FUNCTION link_hint(p_table text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_hint text;
BEGIN
    PERFORM rule_webhook_link_table(1, p_table::regclass);
    RETURN 'linked';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS v_hint = PG_EXCEPTION_HINT;
    RETURN v_hint;
END $$;
-- Links; where that is refused, does what the hint says and links again; then the application changes rows.
CREATE FUNCTION linked_by_hint(p_table text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_hint text := link_hint(p_table);
BEGIN
    IF v_hint <> 'linked' THEN
        EXECUTE v_hint;
        PERFORM rule_webhook_link_table(1, p_table::regclass);
    END IF;
    EXECUTE format('INSERT INTO %I (id) VALUES (1)', p_table);
    EXECUTE format('UPDATE %I SET id = 2', p_table);
    EXECUTE format('DELETE FROM %I', p_table);
    RETURN v_hint;
END $$;
SELECT is(linked_by_hint('gen_full_keyed'), CASE WHEN is_18() THEN 'ALTER TABLE public.gen_full_keyed REPLICA IDENTITY DEFAULT;' ELSE 'linked' END);
SELECT is(linked_by_hint('gen_full_unique'), CASE WHEN is_18() THEN 'ALTER TABLE public.gen_full_unique REPLICA IDENTITY USING INDEX gen_full_unique_id_key;' ELSE 'linked' END);
SELECT is(linked_by_hint('gen_full'), CASE WHEN is_18() THEN 'ALTER PUBLICATION walhook_changes SET (publish_generated_columns = stored);' ELSE 'linked' END);
SELECT is(linked_by_hint('gen_key'), CASE WHEN is_18() THEN 'linked' ELSE 'ALTER TABLE public.gen_key REPLICA IDENTITY FULL;' END);
DO $$
BEGIN
    IF is_18() THEN
        EXECUTE 'ALTER PUBLICATION walhook_changes SET (publish_generated_columns = none)';
        EXECUTE 'CREATE TABLE gen_virtual (id int, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL)';
        EXECUTE 'ALTER TABLE gen_virtual REPLICA IDENTITY FULL';
    ELSE
        EXECUTE 'CREATE TABLE gen_virtual (id int PRIMARY KEY)';
    END IF;
END $$;
SELECT is(found('identity_generated', '%gen_full%'), is_18(), 'found later as well');
SELECT ok(mended('identity_generated'), 'set right');
SELECT ok(linked_by_hint('gen_virtual') LIKE CASE WHEN is_18() THEN 'ALTER TABLE public.gen_virtual ADD COLUMN walhook_key%' ELSE 'linked' END, 'virtual');
SELECT is((SELECT string_agg(name, ',') FROM rule_cdc_check()), 'slot_missing');

-- Webhooks, configurations and streams
UPDATE rule_webhooks SET nats_subject = 'elsewhere.hook';
SELECT ok(found('stream_missing', '%takes elsewhere.hook'), 'no stream');
DELETE FROM rule_webhook_links WHERE link_id > 1;
SELECT ok(mended('stream_missing'), 'a stream');
UPDATE rule_nats_config SET enabled = false;
SELECT ok(found('config_disabled'), 'disabled configuration');
SELECT ok(mended('config_disabled'), 'enabled');
UPDATE rule_webhooks SET enabled = false;
UPDATE rule_webhook_links SET enabled = false;
SELECT ok(found('webhook_disabled') AND found('link_disabled'), 'disabled');
SELECT ok(mended('webhook_disabled') AND mended('link_disabled'), 'enabled');
SELECT rule_webhook_disable_nats(1);
SELECT ok(found('webhook_not_published'), 'queue only');
SELECT ok(mended('webhook_not_published'), 'published');
SELECT * FROM finish();
