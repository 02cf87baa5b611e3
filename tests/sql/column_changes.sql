-- Events of changed columns: what is refused and why, what is noted of each link, and each finding with its remedy.
SELECT * FROM no_plan();
SELECT rule_nats_configure('default', 'nats://127.0.0.1:4222');
SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>']);
SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_register('other', 'https://example.com');
SELECT rule_webhook_enable_nats(1, NULL, 'nats'), rule_webhook_enable_nats(2, NULL, 'nats');
SELECT rule_cdc_publication_create();
CREATE FUNCTION found(p_name text, p_problem text DEFAULT '%') RETURNS boolean LANGUAGE sql AS $$
    SELECT EXISTS (SELECT FROM rule_cdc_check() WHERE name = p_name AND problem LIKE p_problem) $$;
-- Runs the remedy of a finding, and says whether the finding is gone.
CREATE FUNCTION mended(p_name text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_remedy text;
BEGIN
    FOR v_remedy IN SELECT remedy FROM rule_cdc_check() WHERE name = p_name LOOP
        EXECUTE v_remedy;
    END LOOP;
    RETURN NOT found(p_name);
END $$;
CREATE FUNCTION findings() RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(name, ' ' ORDER BY name) FROM walhook.rule_cdc_check_columns() $$;
-- What the consumers of a webhook's link know: names, and what is said of them.
CREATE FUNCTION known(p_webhook integer) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(concat_ws(':', e.value ->> 'name', e.value ->> 'type', e.value ->> 'mask', CASE WHEN e.value ? 'key' THEN 'key' END), ' ' ORDER BY k.link_id, e.place)
    FROM walhook.rule_cdc_link_columns k JOIN rule_webhook_links l USING (link_id), jsonb_array_elements(k.columns) WITH ORDINALITY e (value, place)
    WHERE l.webhook_id = p_webhook $$;

-- Refused, with what to do
SELECT throws_hint('UPDATE rule_webhooks SET publish_column_changes = true WHERE webhook_id = 1',
    'webhook ''hook'' (webhook_id 1): publish_column_changes needs rule_webhook_emit, which is not enabled in this database', 'SELECT rule_webhook_emit_enable();%');
SELECT rule_webhook_emit_enable();
INSERT INTO rule_cdc_status (source, host, version, heartbeat_at, publishes_messages) VALUES ('main', 'db1', '0.2.0', now(), true);
SELECT throws_hint('UPDATE rule_webhooks SET publish_column_changes = true WHERE webhook_id = 1', '%walhook 0.2.0 for source ''main'' on host ''db1'' is too old%', '%Stop it%');
UPDATE rule_cdc_status SET schema_version = '029';
SELECT is(findings(), NULL::text);

-- An operator asks for them: the event trigger is made with the rights of who has set walhook up.
CREATE TABLE orders (id int PRIMARY KEY, note text, total numeric(10, 2));
CREATE TABLE parted (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
SELECT rule_webhook_link_table(1, 'orders'), rule_webhook_link_table(2, 'parted_1');
SET ROLE walhook_operator;
UPDATE rule_webhooks SET publish_column_changes = true;
SELECT is((SELECT count(*) FROM walhook.rule_cdc_link_columns), 2::bigint, 'an operator sees what is noted');
SELECT throws_like('DELETE FROM walhook.rule_cdc_link_columns', 'permission denied%');
SELECT throws_like('SELECT walhook.rule_cdc_columns_follow(''{1}'')', 'permission denied%');
SELECT throws_like('SELECT walhook.rule_cdc_columns_send(1, 1, ''{}'')', 'permission denied%');
SELECT is(rule_cdc_column_changes_emit(), 0, 'nothing has changed');
SELECT ok((SELECT count(*) FROM rule_cdc_check()) >= 0, 'an operator may ask for the whole check');
SELECT is(findings(), NULL::text);
RESET ROLE;
SET ROLE walhook_streamer;
SELECT is(findings(), NULL::text);
RESET ROLE;
SELECT is((SELECT evtenabled::text FROM pg_event_trigger WHERE evtname = 'walhook_column_changes'), 'O');
SELECT is(known(1), 'id:integer:key note:text total:numeric');

-- What is noted
ALTER TABLE orders ADD tags text[], ADD doubled int GENERATED ALWAYS AS (id * 2) STORED, DROP note, ALTER id TYPE bigint;
SELECT is(known(1), 'id:bigint:key total:numeric tags:text[]', 'without the generated one, which is not sent');
ALTER TABLE orders DROP CONSTRAINT orders_pkey, REPLICA IDENTITY FULL;
SELECT is(known(1), 'id:bigint total:numeric tags:text[]', 'no key');
ALTER TABLE orders ADD PRIMARY KEY (id);
SELECT is(known(1), 'id:bigint:key total:numeric tags:text[]', 'the primary key, under REPLICA IDENTITY FULL too');
ALTER TABLE parted ADD more int;
SELECT is(known(2), 'id:integer:key note:text more:integer', 'a partition has the columns of its parent');
CREATE SCHEMA blue;
CREATE TABLE blue.orders (id int PRIMARY KEY, total numeric, blue text);
ALTER SCHEMA blue RENAME TO green;
SELECT is(known(1), 'id:bigint:key total:numeric tags:text[]', 'another schema');
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id int PRIMARY KEY, total text);
SELECT rule_webhook_link_table(1, 'shop.orders');
ALTER SCHEMA shop RENAME TO shop_old;
ALTER SCHEMA green RENAME TO shop;
SELECT is(known(1), 'id:bigint:key total:numeric tags:text[] id:integer:key total:numeric blue:text', 'a schema takes the name of another one');
SELECT rule_webhook_unlink_table(1, 'shop.orders');
SELECT is(known(1), 'id:bigint:key total:numeric tags:text[]', 'unlinked');
-- The link of a partition masks what the table above it sends.
SELECT rule_webhook_unlink_table(2, 'parted_1');
SELECT rule_webhook_link_table(2, 'parted');
SELECT is(known(2), 'id:integer:key note:text more:integer');
CREATE TABLE apart (id int PRIMARY KEY, note text, more int);
SELECT rule_webhook_link_table(1, 'apart', p_mask => '{"note": "drop"}');
ALTER TABLE parted ATTACH PARTITION apart FOR VALUES FROM (10) TO (20);
SELECT is(known(2), 'id:integer:key more:integer', 'kept back');
UPDATE rule_webhook_links SET mask = '{"more": "null"}' WHERE table_name = 'apart';
SELECT is(known(2), 'id:integer:key note:text');
DELETE FROM rule_webhook_links WHERE table_name = 'apart';
SELECT is(known(2), 'id:integer:key note:text more:integer', 'its link is gone');
SELECT is(findings(), NULL::text);
-- A message that is a column has none, a mask that cannot be applied shows nothing.
UPDATE rule_webhooks SET payload_format = 'data' WHERE webhook_id = 2;
SELECT rule_webhook_link_table(2, 'parted', '{insert}', p_payload_column => 'note');
SELECT is(known(2), NULL::text);
SELECT rule_webhook_link_table(2, 'parted', p_mask => '{"note": "null"}');
ALTER TABLE parted RENAME note TO words;
SELECT is(known(2), 'id:integer:key note:null more:integer', 'what they knew last');
SELECT ok(NOT found('column_change_missed') AND found('mask_broken'), 'its own finding');
SELECT ok(mended('mask_broken'), 'the mask fits again');
SELECT is(known(2), 'id:integer:key words:null more:integer');

-- Types, as their JSON Schema describes them
CREATE DOMAIN amounts AS numeric(10, 2)[];
CREATE TYPE mood AS ENUM ('good');
CREATE DOMAIN humour AS mood;
SELECT is((SELECT string_agg(coalesce(walhook.rule_cdc_column_type(t), '-'), ', ' ORDER BY place) FROM unnest(
    '{int4,text,bpchar,varchar,"\"char\"",timestamptz,int4[],amounts,amounts[],mood,mood[],humour,int2vector,tsrange,regclass,orders}'::regtype[]) WITH ORDINALITY u (t, place)),
    'integer, text, character, character varying, "char", timestamp with time zone, integer[], numeric[], numeric[], -, -, -, int2vector, tsrange, regclass, -');

-- What has become of columns: in one table by their number, in another one by their name.
SELECT is(walhook.rule_cdc_columns_difference('[{"n": 1, "column": "a", "name": "a", "type": "text"}, {"n": 2, "column": "b", "name": "bb"}]',
                                              '[{"n": 1, "column": "x", "name": "x", "type": "integer"}, {"n": 4, "column": "b", "name": "b"}]', true),
    '{"added": ["b"], "removed": ["bb"], "renamed": {"a": "x"}, "changed": {"x": {"type": "text"}}}'::jsonb);
SELECT is(walhook.rule_cdc_columns_difference('[{"n": 1, "column": "a", "name": "a", "type": "text"}, {"n": 2, "column": "b", "name": "bb"}]',
                                              '[{"n": 1, "column": "x", "name": "x", "type": "integer"}, {"n": 4, "column": "b", "name": "b"}]', false),
    '{"added": ["x"], "removed": ["a"], "renamed": {"bb": "b"}, "changed": {}}'::jsonb);

-- Subjects and streams
SELECT is(walhook.rule_cdc_columns_subject(1), 'webhooks.hook.columns');
UPDATE rule_webhook_links SET subject_template = 'events.{schema}.{table}.{op}.{id}' WHERE link_id = 1;
SELECT is(walhook.rule_cdc_columns_subject(1), 'events.public.orders.columns._');
UPDATE rule_webhook_links SET subject_template = NULL;
UPDATE rule_nats_streams SET subjects = '{webhooks.hook,webhooks.other,webhooks.other.columns}';
SELECT ok(found('column_changes_stream_missing', '%no stream of NATS config ''default'' takes webhooks.hook.columns,%'), findings());
SELECT ok(mended('column_changes_stream_missing'), 'the stream of the rows takes it');
SELECT is((SELECT subjects FROM rule_nats_streams), '{webhooks.hook,webhooks.other,webhooks.other.columns,webhooks.hook.columns}');
SELECT rule_nats_stream_create('SECOND', ARRAY['second.>']);
UPDATE rule_nats_streams SET subjects = '{webhooks.hook,webhooks.other,webhooks.other.columns}' WHERE stream_name = 'WEBHOOKS';
UPDATE rule_nats_streams SET subjects = '{webhooks.hook.columns}' WHERE stream_name = 'SECOND';
SELECT ok(found('column_changes_elsewhere', '%go into the stream SECOND, and its rows into WEBHOOKS%'), findings());
DELETE FROM rule_nats_streams WHERE stream_name = 'SECOND';
UPDATE rule_nats_streams SET subjects = '{webhooks.other.>}' WHERE stream_name = 'WEBHOOKS';
SELECT ok(found('column_changes_stream_missing', '%takes webhooks.hook.columns,%'), findings());
SELECT ok(mended('column_changes_stream_missing'), 'a stream of its own, where no stream takes its rows either');
DELETE FROM rule_nats_streams WHERE stream_name <> 'WEBHOOKS';
UPDATE rule_nats_streams SET subjects = '{webhooks.>}';
SELECT is(findings(), NULL::text);

-- commit
-- What cannot be emitted fails no statement, and is emitted later.
UPDATE rule_cdc_emit_keys SET retired_lsn = '0/1', retired_at = now();
ALTER TABLE orders ADD later int;
UPDATE rule_webhook_links SET columns = '{id,later}' WHERE table_name = 'orders';
SELECT is(known(1), 'id:bigint:key total:numeric tags:text[]');
SELECT is(findings(), 'column_change_missed column_changes_not_enabled');
SELECT ok(found('column_change_missed', '%no event has said so (at %: 55000: cannot emit the event of changed columns of link 1: rule_webhook_emit is not enabled%'), 'why');
SELECT throws_hint('SELECT rule_cdc_column_changes_emit()', '%rule_webhook_emit is not enabled in this database', 'SELECT rule_webhook_emit_enable(); enables it.');
SELECT ok(mended('column_changes_not_enabled'), 'a key');
SELECT ok(mended('column_change_missed'), 'the event');
SELECT is(known(1), 'id:bigint:key later:integer');
ALTER TABLE walhook.rule_cdc_link_columns RENAME TO hidden;
ALTER TABLE orders ADD hidden int, ALTER later TYPE bigint;
SELECT ok(EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attname = 'hidden'), 'it is there in spite of it');
ALTER TABLE walhook.hidden RENAME TO rule_cdc_link_columns;
SELECT is(known(1), 'id:bigint:key later:integer');
SELECT ok(found('column_change_missed') AND mended('column_change_missed'), 'emitted');
SELECT is(known(1), 'id:bigint:key later:bigint');
-- Without the event trigger the check says so, and a call makes up for it.
DROP EVENT TRIGGER walhook_column_changes;
SELECT is(findings(), 'column_changes_trigger_missing');
UPDATE rule_webhook_links SET columns = NULL WHERE table_name = 'orders';
ALTER TABLE orders DROP hidden;
SELECT is(findings(), 'column_change_missed column_changes_trigger_missing');
SELECT is(rule_cdc_column_changes_emit('parted'), 0, 'of another table');
SELECT is(rule_cdc_column_changes_emit('orders'), 1);
SELECT is(rule_cdc_column_changes_emit(), 0, 'once');
CREATE ROLE no_superuser;
GRANT USAGE ON SCHEMA walhook TO no_superuser;
GRANT EXECUTE ON FUNCTION rule_cdc_column_changes_trigger() TO no_superuser;
SET ROLE no_superuser;
SELECT throws_like('SELECT rule_cdc_column_changes_trigger()', 'permission denied to create event trigger%');
SELECT throws_like('SELECT rule_cdc_column_changes_emit()', 'permission denied for function%');
RESET ROLE;
DROP OWNED BY no_superuser;
DROP ROLE no_superuser;
CREATE FUNCTION theirs() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER walhook_column_changes ON ddl_command_end EXECUTE FUNCTION theirs();
SELECT throws_hint('SELECT rule_cdc_column_changes_trigger()', '%there is one that walhook has not made', 'DROP EVENT TRIGGER walhook_column_changes;%');
UPDATE rule_webhooks SET publish_column_changes = false;
UPDATE rule_webhooks SET publish_column_changes = true;
DROP EVENT TRIGGER walhook_column_changes;
SELECT ok(mended('column_changes_trigger_missing'), 'made');
SELECT ok(NOT rule_cdc_column_changes_trigger(), 'there');
ALTER EVENT TRIGGER walhook_column_changes DISABLE;
SELECT ok(found('column_changes_trigger_missing') AND mended('column_changes_trigger_missing'), 'switched on');
DELETE FROM walhook.rule_cdc_link_columns WHERE link_id = 1;
SELECT ok(found('column_change_missed', 'walhook has not noted which columns it has'), findings());
SELECT ok(mended('column_change_missed'), 'noted');
-- Links that are truncated are forgotten; a new one with such a number begins anew.
UPDATE rule_webhook_links SET columns = '{id}' WHERE link_id = 1;
CREATE TEMPORARY TABLE kept AS SELECT * FROM rule_webhook_links;
TRUNCATE rule_webhook_links;
UPDATE kept SET columns = NULL WHERE link_id = 1;
INSERT INTO rule_webhook_links SELECT * FROM kept;
SELECT is(known(1), 'id:bigint:key total:numeric tags:text[] later:bigint');
SELECT is(findings(), NULL::text);
-- commit
SELECT throws_hint($$DO 'BEGIN SET LOCAL transaction_read_only = on; PERFORM rule_cdc_column_changes_emit(); END'$$, '%in a read-only transaction', '%BEGIN READ WRITE%');
SELECT is(findings(), NULL::text);
DROP TABLE orders;
SELECT ok(found('table_missing') AND findings() IS NULL, 'a table that is gone has its own finding');
DROP EVENT TRIGGER walhook_column_changes;

-- Nor masks and seals while such a walhook streams: it would publish the rows without them.
UPDATE rule_cdc_status SET schema_version = NULL, heartbeat_at = now();
CREATE TABLE masked (id int PRIMARY KEY, email text);
SELECT throws_hint($$SELECT rule_webhook_link_table(1, 'masked', p_mask => '{"email": "null"}')$$, 'cannot set rule_webhook_links.mask: walhook 0.2.0 for source ''main'' on host ''db1'' is too old%', 'Stop it%');
SELECT throws_hint($$UPDATE rule_webhooks SET seal_key = 'k' WHERE webhook_id = 1$$, 'cannot set rule_webhooks.seal_key: walhook 0.2.0 for source ''main'' on host ''db1'' is too old%', 'Stop it%');
UPDATE rule_cdc_status SET schema_version = '025';
SELECT rule_webhook_link_table(1, 'masked', p_mask => '{"email": "null"}');
SELECT throws_like($$UPDATE rule_webhooks SET seal_key = 'k' WHERE webhook_id = 1$$, '%is too old%');
-- What is set already may be changed otherwise, and taken away.
UPDATE rule_webhook_links SET enabled = true WHERE mask IS NOT NULL;
UPDATE rule_cdc_status SET schema_version = '021';
UPDATE rule_webhook_links SET enabled = true WHERE mask IS NOT NULL;
SELECT ok(rule_webhook_unlink_table(1, 'masked'));
DROP TABLE masked;
SELECT * FROM finish();
