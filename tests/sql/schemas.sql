-- Links of whole schemas: which tables join, when, with whose rights, and that no statement of others fails because of them.
SELECT * FROM no_plan();
SELECT rule_cdc_publication_create();
SELECT rule_nats_stream_create('S', ARRAY['webhooks.>', 'shop.>']);
SELECT rule_webhook_register('hook', 'https://example.com'), rule_webhook_register('second', 'https://example.com');
SELECT rule_webhook_enable_nats(1, NULL, 'nats'), rule_webhook_enable_nats(2, NULL, 'nats');
CREATE FUNCTION linked() RETURNS text LANGUAGE sql AS $$ SELECT string_agg(table_schema || '.' || table_name, ' ' ORDER BY table_schema, table_name) FROM rule_webhook_links WHERE webhook_id = 1 $$;
CREATE FUNCTION published() RETURNS text LANGUAGE sql AS $$ SELECT string_agg(r.prrelid::regclass::text, ' ' ORDER BY r.prrelid::regclass::text COLLATE "C") FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
    WHERE p.pubname LIKE 'walhook%' AND r.prrelid::regclass::text !~ '^(public\.)?rule_' $$;
CREATE FUNCTION findings() RETURNS text LANGUAGE sql AS $$ SELECT string_agg(name || ': ' || problem, ' | ') FROM rule_cdc_check() WHERE name LIKE 'schema%' $$;

-- What cannot be.
SELECT throws_like($$SELECT rule_webhook_link_schema(1, 'nowhere')$$, 'cannot link the schema ''nowhere'': there is none of that name');
SELECT throws_like(format('SELECT rule_webhook_link_schema(1, %L)', s), '%it is a system schema') FROM unnest('{pg_catalog,pg_toast,information_schema}'::text[]) s;
SELECT throws_like($$SELECT rule_webhook_link_schema(9, 'public')$$, 'Webhook 9 not found');
SELECT throws_like($$SELECT rule_webhook_link_schema('none', 'public')$$, 'Webhook ''none'' not found');
SELECT throws_hint($$SELECT rule_webhook_link_schema(1, 'public', p_like => '')$$, '%a pattern of tables is NULL or empty', 'Patterns are those of LIKE:%');
SELECT throws_like($$SELECT rule_webhook_link_schema(1, 'public', '{a,NULL}')$$, '%a pattern of tables is NULL or empty');
SELECT throws_like($$SELECT rule_webhook_link_schema(1, 'public', p_operations => '{merge}')$$, '%its operations are ''{merge}''');
SELECT throws_like($$SELECT rule_webhook_link_schema(1, 'public', p_subject_template => 'a..b')$$, '%its subject template ''a..b'' is not a subject:%');
SELECT throws_like($$SELECT rule_webhook_link_schema(1, 'public', p_publication => 'none')$$, 'cannot link the schema ''public'': %');
SELECT ok(NOT EXISTS (SELECT FROM rule_webhook_schema_links) AND NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'walhook_schema_links'), 'nothing is made by what is refused');

-- What is there is linked, but for what cannot be, which is returned.
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id int PRIMARY KEY, note text);
CREATE TABLE shop.nokey (id int);
CREATE TABLE shop.audit (id int PRIMARY KEY);
CREATE TABLE shop.tmp_1 (id int PRIMARY KEY);
CREATE UNLOGGED TABLE shop.fast (id int PRIMARY KEY);
CREATE VIEW shop.seen AS SELECT 1;
CREATE TABLE shop.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE shop.parts_1 PARTITION OF shop.parts FOR VALUES FROM (0) TO (10);
SELECT rule_webhook_link_table(1, 'shop.orders', '{insert}', p_columns => '{id}');
SELECT is((SELECT string_agg(concat_ws(' ', table_name, link_id IS NOT NULL, remedy), ', ' ORDER BY table_name) FROM rule_webhook_link_schema('hook', 'shop', '{audit,tmp%}', p_subject_template => 'shop.{table}')),
          'shop.nokey f ALTER TABLE shop.nokey REPLICA IDENTITY FULL; -- or ADD PRIMARY KEY, shop.parts t');
SELECT is(linked(), 'shop.orders shop.parts');
SELECT is((SELECT (operations, columns)::text FROM rule_webhook_links WHERE table_name = 'orders'), '({insert},{id})', 'a link of its own stays as it is');
SELECT is((SELECT (operations, subject_template, schema_link_id)::text FROM rule_webhook_links WHERE table_name = 'parts'), '("{insert,update,delete}",shop.{table},1)');
SELECT is((SELECT (table_schema, table_pattern, except_patterns, linked_by = current_user)::text FROM rule_webhook_schema_links), '(shop,%,"{audit,tmp%}",t)');
SELECT is((SELECT evtenabled::text FROM pg_event_trigger WHERE evtname = 'walhook_schema_links'), 'O', 'a superuser has the event trigger by linking');
SELECT ok(findings() LIKE 'schema_table_missing: the table shop.nokey is in the linked schema and is not linked: %replica identity%', findings());

-- What comes joins in its own transaction; what must not does not.
CREATE TABLE shop.later (id int PRIMARY KEY);
CREATE TABLE shop.tmp_2 (id int PRIMARY KEY);
CREATE TEMPORARY TABLE later (id int PRIMARY KEY);
CREATE UNLOGGED TABLE shop.fast_2 (id int PRIMARY KEY);
CREATE TABLE shop.parts_2 PARTITION OF shop.parts FOR VALUES FROM (10) TO (20);
CREATE TABLE public.elsewhere (id int PRIMARY KEY);
SELECT is(linked(), 'shop.later shop.orders shop.parts');
SELECT is(published(), 'shop.later shop.orders shop.parts');
-- A table gets what it lacked.
CREATE TABLE shop.made AS SELECT 1 AS id;
SELECT is(linked(), 'shop.later shop.orders shop.parts');
ALTER TABLE shop.made ADD PRIMARY KEY (id);
ALTER TABLE shop.nokey REPLICA IDENTITY FULL;
ALTER TABLE shop.fast SET LOGGED;
SELECT is(linked(), 'shop.fast shop.later shop.made shop.nokey shop.orders shop.parts');
-- Moved here, moved away, renamed, renamed to a name that is excepted, dropped and made again.
CREATE SCHEMA archive;
ALTER TABLE public.elsewhere SET SCHEMA shop;
ALTER TABLE shop.fast SET SCHEMA archive;
ALTER TABLE shop.later RENAME TO latest;
ALTER TABLE shop.made RENAME TO tmp_made;
BEGIN;
DROP TABLE shop.nokey; CREATE TABLE shop.nokey (id int PRIMARY KEY);
COMMIT;
SELECT is(linked(), 'shop.elsewhere shop.latest shop.nokey shop.orders shop.parts');
SELECT is(published(), 'shop.elsewhere shop.latest shop.nokey shop.orders shop.parts');
-- Two that change their names with each other stay linked.
ALTER TABLE shop.latest RENAME TO x; ALTER TABLE shop.elsewhere RENAME TO latest; ALTER TABLE shop.x RENAME TO elsewhere;
SELECT is(linked(), 'shop.elsewhere shop.latest shop.nokey shop.orders shop.parts');
-- A table becomes a partition of a linked one, and stops being one.
CREATE TABLE shop.parts_3 (id int PRIMARY KEY);
SELECT is(linked(), 'shop.elsewhere shop.latest shop.nokey shop.orders shop.parts shop.parts_3');
ALTER TABLE shop.parts ATTACH PARTITION shop.parts_3 FOR VALUES FROM (20) TO (30);
SELECT is(linked() || ' ' || published(), 'shop.elsewhere shop.latest shop.nokey shop.orders shop.parts shop.elsewhere shop.latest shop.nokey shop.orders shop.parts');
ALTER TABLE shop.parts DETACH PARTITION shop.parts_3;
SELECT is(linked(), 'shop.elsewhere shop.latest shop.nokey shop.orders shop.parts shop.parts_3');
-- A root of another schema has its partitions; of one that is not linked they join alone.
CREATE TABLE archive.root (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE shop.leaf PARTITION OF archive.root FOR VALUES FROM (0) TO (10);
SELECT ok(linked() LIKE '%shop.leaf%', linked());
-- Several in one statement.
CREATE SCHEMA later CREATE TABLE a (id int PRIMARY KEY) CREATE TABLE b (id int PRIMARY KEY);
SELECT count(*) FROM rule_webhook_link_schema(2, 'later', p_like => 'b%', p_operations => '{insert}');
CREATE TABLE later.bb (id int); CREATE TABLE later.c (id int PRIMARY KEY);
SELECT is((SELECT string_agg(table_name || ' ' || operations::text, ' ' ORDER BY table_name) FROM rule_webhook_links WHERE webhook_id = 2), 'b {insert} bb {insert}');
SELECT is((SELECT string_agg(tablename::text, ' ' ORDER BY tablename) FROM pg_publication_tables WHERE pubname = 'walhook_inserts' AND schemaname = 'later'), 'b bb', 'inserts need no key');
-- Linked anew by other settings: what joined follows them.
SELECT count(*) FROM rule_webhook_link_schema(2, 'later', '{bb}', p_operations => '{insert,delete}');
SELECT is((SELECT string_agg(table_name || ' ' || operations::text, ' ' ORDER BY table_name) FROM rule_webhook_links WHERE webhook_id = 2), 'a {insert,delete} b {insert,delete} c {insert,delete}');
SELECT is((SELECT string_agg(pubname || ' ' || tablename::text, ' ' ORDER BY tablename) FROM pg_publication_tables WHERE schemaname = 'later'), 'walhook_changes a walhook_changes b walhook_changes c');

-- A table with a mask that gets another name, or changes names with another one, does not join without the mask.
CREATE TABLE later.people (id int PRIMARY KEY, email text);
SELECT rule_webhook_link_table(2, 'later.people', p_mask => '{"email": "drop"}') IS NOT NULL;
ALTER TABLE later.people RENAME TO persons;
CREATE FUNCTION second() RETURNS text LANGUAGE sql AS $$ SELECT string_agg(table_name || coalesce(' ' || mask::text, ''), ', ' ORDER BY table_name) FROM rule_webhook_links WHERE webhook_id = 2 AND table_name ~ '^p' $$;
SELECT is(second(), 'people {"email": "drop"}');
SELECT ok(findings() LIKE '%the table later.persons is in the linked schema and is not linked: it is published, perhaps under another name%', findings());
SELECT ok((SELECT remedy LIKE '%SET table_schema = ''later'', table_name = ''persons''%' FROM rule_cdc_check() WHERE name = 'table_missing'), 'the statement moves the link with its mask');
UPDATE rule_webhook_links SET table_name = 'persons' WHERE table_name = 'people';
CREATE TABLE later.pets (id int PRIMARY KEY);
SELECT is(second(), 'persons {"email": "drop"}, pets');
ALTER TABLE later.persons RENAME TO x; ALTER TABLE later.pets RENAME TO persons; ALTER TABLE later.x RENAME TO pets;
SELECT is(second(), 'persons {"email": "drop"}', 'which of the two has the mask is not guessed');
SELECT ok(findings() LIKE '%the table later.pets is in the linked schema and is not linked%', findings());
DROP TABLE later.persons, later.pets;
DELETE FROM rule_webhook_links WHERE mask IS NOT NULL;
-- A table that is unlinked stays so, whatever changes in it.
CREATE TABLE later.left_out (id int PRIMARY KEY);
SELECT ok(rule_webhook_unlink_table(2, 'later.left_out'), 'unlinked');
-- commit
ALTER TABLE later.left_out ADD COLUMN note text;
CREATE TABLE later.leftxout (id int PRIMARY KEY);
SELECT is((SELECT string_agg(table_name, ' ') FROM rule_webhook_links WHERE table_name ~ '^left'), 'leftxout', 'and no other is excluded with it');
SELECT is((SELECT except_patterns[2] FROM rule_webhook_schema_links WHERE table_schema = 'later'), 'left\_out');
DROP TABLE later.left_out, later.leftxout;

-- walhook's own tables never, be they there or made later.
SELECT count(*) FROM rule_webhook_link_schema(2, 'public');
CREATE TABLE public.rule_cdc_of_tomorrow (id int PRIMARY KEY);
CREATE TABLE public.mine (id int PRIMARY KEY);
SELECT is((SELECT string_agg(table_name, ' ') FROM rule_webhook_links WHERE table_schema = 'public'), 'mine');
DROP TABLE public.rule_cdc_of_tomorrow;
SELECT is(rule_webhook_unlink_schema('second', 'public'), 1);
SELECT is(rule_webhook_unlink_schema(2, 'public'), NULL::int);

-- Rights: a table joins only where who linked the schema could link it.
CREATE ROLE linker; CREATE ROLE owner; CREATE SCHEMA theirs;
GRANT ALL ON SCHEMA theirs TO linker, owner; GRANT walhook_operator TO linker;
SET ROLE linker;
SELECT is((SELECT count(*) FROM rule_webhook_link_schema(1, 'theirs')), 0::bigint);
RESET ROLE;
SELECT is((SELECT linked_by FROM rule_webhook_schema_links WHERE table_schema = 'theirs'), 'linker');
SET ROLE owner;
CREATE TABLE theirs.a (id int PRIMARY KEY);
RESET ROLE;
SELECT ok(linked() NOT LIKE '%theirs%', linked());
-- commit
SELECT is((SELECT problem FROM rule_cdc_check() WHERE name = 'schema_table_missing'), 'the table theirs.a is in the linked schema and is not linked: linker, who linked the schema, may not read it');
GRANT SELECT ON theirs.a TO linker;
SELECT ok(findings() LIKE '%linker, who linked the schema, does not own it', findings());
GRANT owner TO linker;
SELECT ok(findings() LIKE '%linker, who linked the schema, does not own the publications', findings());
DO $$ BEGIN EXECUTE format('ALTER PUBLICATION walhook_changes OWNER TO linker'); EXCEPTION WHEN insufficient_privilege THEN EXECUTE format('GRANT CREATE ON DATABASE %I TO linker', current_database()); ALTER PUBLICATION walhook_changes OWNER TO linker; END $$;
ALTER PUBLICATION walhook_inserts OWNER TO linker;
SET ROLE owner;
CREATE TABLE theirs.b (id int PRIMARY KEY);
RESET ROLE;
SELECT ok(linked() LIKE '%theirs.b' AND linked() NOT LIKE '%theirs.a%', linked());
SELECT is((SELECT remedy FROM rule_cdc_check() WHERE name = 'schema_table_missing'), (SELECT format('SELECT * FROM public.rule_cdc_schema_link_tables(%s);', schema_link_id) FROM rule_webhook_schema_links WHERE table_schema = 'theirs'));
SELECT is((SELECT table_name || ' ' || coalesce(problem, '') FROM rule_cdc_schema_link_tables((SELECT schema_link_id FROM rule_webhook_schema_links WHERE table_schema = 'theirs'))), 'theirs.a ');
SELECT is(findings(), NULL::text);
-- A role cannot name another one as the one that links.
SET ROLE linker;
SELECT throws_like($$INSERT INTO rule_webhook_schema_links (webhook_id, table_schema, linked_by) VALUES (1, 'archive', 'postgres')$$, 'permission denied for%');
SELECT throws_like($$UPDATE rule_webhook_schema_links SET linked_by = 'postgres'$$, 'permission denied for%');
SELECT throws_like('SELECT walhook.rule_cdc_schema_follow(''{}'')', 'permission denied for%');
RESET ROLE;

-- Nothing of others fails because of us: whatever is wrong with our tables.
CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no links today'; END $$;
CREATE TRIGGER fails BEFORE INSERT ON rule_webhook_links FOR EACH ROW EXECUTE FUNCTION fails();
CREATE TABLE shop.in_spite (id int PRIMARY KEY);
SELECT ok(to_regclass('shop.in_spite') IS NOT NULL, 'the table is there');
-- commit
SELECT ok(findings() LIKE '%shop.in_spite is in the linked schema and is not linked: it was created while the event trigger was not there, or that failed (at %: P0001: no links today)', findings());
DROP TRIGGER fails ON rule_webhook_links;
ALTER TABLE rule_webhook_schema_links RENAME TO hidden;
CREATE TABLE shop.in_spite_2 (id int PRIMARY KEY);
-- commit
ALTER TABLE hidden RENAME TO rule_webhook_schema_links;
SELECT ok(to_regclass('shop.in_spite_2') IS NOT NULL, 'this one too');
-- Without the event trigger the check names what is missing, and the statement that links it.
DROP EVENT TRIGGER walhook_schema_links;
CREATE TABLE shop.unseen (id int PRIMARY KEY);
SELECT is((SELECT severity || ' ' || remedy FROM rule_cdc_check() WHERE name = 'schema_trigger_missing'), 'warning SELECT public.rule_cdc_schema_trigger();');
SELECT is((SELECT count(*) FROM rule_cdc_check() WHERE name = 'schema_table_missing'), 3::bigint);
SELECT is((SELECT count(*) FROM rule_cdc_schema_link_tables(1) WHERE link_id IS NOT NULL), 3::bigint);
SET ROLE linker;
SELECT throws_like('SELECT rule_cdc_schema_trigger()', 'permission denied to create event trigger%');
SELECT is((SELECT count(*) FROM rule_webhook_link_schema(1, 'theirs')), 0::bigint, 'a role that may not create the event trigger is warned, and its link is made');
RESET ROLE;
SELECT ok(rule_cdc_schema_trigger(), 'made');
SELECT ok(NOT rule_cdc_schema_trigger(), 'there');
-- One that only replicas fire is what the check calls missing.
ALTER EVENT TRIGGER walhook_schema_links ENABLE REPLICA;
SELECT ok((SELECT count(*) FROM rule_cdc_check() WHERE name = 'schema_trigger_missing') = 1 AND rule_cdc_schema_trigger(), 'made again');
SELECT is((SELECT evtenabled::text FROM pg_event_trigger WHERE evtname = 'walhook_schema_links'), 'O');
SELECT is(findings(), NULL::text);
-- The schema goes.
DROP SCHEMA later CASCADE;
SELECT is(findings(), 'schema_missing: there is no schema later (any more)');
SELECT is((SELECT remedy FROM rule_cdc_check() WHERE name = 'schema_missing'), 'SELECT public.rule_webhook_unlink_schema(2, ''later'');');
SELECT is(rule_webhook_unlink_schema(2, 'later'), 0);
-- The end of a link of a schema ends those that came by it.
SELECT ok(rule_webhook_unlink_schema('hook', 'shop') > 5, 'unlinked');
SELECT is(linked(), 'shop.orders theirs.a theirs.b', 'what was linked by itself stays');
CREATE TABLE shop.after (id int PRIMARY KEY);
SELECT is(published(), 'shop.orders theirs.a theirs.b');
DROP EVENT TRIGGER walhook_schema_links;
DROP OWNED BY linker; DROP OWNED BY owner; DROP ROLE linker; DROP ROLE owner;
SELECT * FROM finish();
