-- Masks and names of what leaves the database: what is refused, with the remedy; for which columns a mask holds; what the check says.
SELECT * FROM no_plan();
SELECT rule_cdc_publication_create();
SELECT rule_nats_stream_create('S', ARRAY['webhooks.>']);
SELECT rule_webhook_register('hook', 'https://example.com');
SELECT rule_webhook_enable_nats(1, NULL, 'nats');
CREATE TABLE t (id int PRIMARY KEY, email text, ssn varchar(11), card numeric, doc jsonb, raw bytea, tags text[], at timestamptz, twice int GENERATED ALWAYS AS (id * 2) STORED);
CREATE FUNCTION link(p_arguments text) RETURNS text LANGUAGE sql AS $$ SELECT 'SELECT rule_webhook_link_table(1, ''t'', ' || p_arguments || ')' $$;
CREATE FUNCTION masked() RETURNS text LANGUAGE sql AS $$ SELECT (mask, mask_columns, rename)::text FROM rule_webhook_links $$;

-- What no table could have.
SELECT throws_hint(link(format('p_mask => %L', m)), 'cannot link public.t to webhook ''hook'': ' || why, 'Write it as an object of columns and words: {"email": "hash", "ssn": "drop", "card": "last4", "note": "null"}.')
FROM (VALUES ('[]', 'its mask is a JSON array'), ('"email"', 'its mask is a JSON string'), ('{"email": "blur"}', 'its mask of the column "email" is "blur", which is none of hash, drop, last4, null'),
             ('{"email": null}', 'its mask of the column "email" is null,%'), ('{"email": {"a": 1}}', '%none of hash, drop, last4, null')) x (m, why);
SELECT throws_hint(link(format('p_rename => %L', m)), 'cannot link public.t to webhook ''hook'': ' || why, 'Write it as an object of columns and names: {"email": "mail"}.')
FROM (VALUES ('[]', 'its rename is a JSON array'), ('{"email": 1}', 'its rename of the column "email" is 1'), ('{"email": ""}', 'its rename of the column "email" is ""'),
             ('{"email": "a", "ssn": "a"}', 'its rename gives the name "a" to more than one column')) x (m, why);
-- What this table has not, or cannot.
SELECT throws_hint(link($$p_mask => '{"mail": "hash"}'$$), '%its mask names "mail", which the table does not have', 'The columns are id, email, ssn, card, doc, raw, tags, at, twice.');
SELECT throws_hint(link($$p_rename => '{"mail": "m"}'$$), '%its rename names "mail", which the table does not have', 'The columns are id, email,%');
SELECT throws_hint(link($$p_rename => '{"email": "ssn"}'$$), '%two of its columns would have the name "ssn" in the message', 'Give each column a name of its own%');
SELECT throws_hint(link(format('p_mask => %L', jsonb_build_object(c, 'last4'))), '%shows the last characters of the column "' || c || '", whose type is%', 'last4 is for texts and numbers; choose hash, drop or null.')
FROM unnest('{doc,raw,tags,at}'::text[]) c;
-- Subjects and headers have values as they are.
SELECT throws_hint(link(a), '%which its mask keeps back', 'Subjects and headers have values as they are: take the column out of them, or out of the mask.')
FROM unnest(ARRAY[$$p_subject_template => 'webhooks.{id}.{email}', p_mask => '{"email": "hash"}', p_operations => '{insert}'$$, $$p_trace_column => 'email', p_mask => '{"email": "null"}'$$]) a;
UPDATE rule_webhooks SET payload_format = 'data';
SELECT throws_hint(link(a), '%its message is the column "doc", to which no mask and no rename apply', 'Leave payload_column NULL,%')
FROM unnest(ARRAY[$$'{insert}', p_payload_column => 'doc', p_mask => '{"email": "hash"}'$$, $$'{insert}', p_payload_column => 'doc', p_rename => '{"email": "m"}'$$]) a;
UPDATE rule_webhooks SET payload_format = 'webhook';
SELECT is((SELECT count(*) FROM rule_webhook_links), 0::bigint);

-- What can be. Names may change places; a mask may name what is generated.
SELECT ok(rule_webhook_link_table('hook', 't', p_rename => '{"email": "ssn", "ssn": "email"}', p_mask => '{"email": "hash", "ssn": "drop", "card": "last4", "doc": "null", "twice": "null"}') > 0, 'linked');
SELECT is(masked(), '("{""doc"": ""null"", ""ssn"": ""drop"", ""card"": ""last4"", ""email"": ""hash"", ""twice"": ""null""}","{id,email,ssn,card,doc,raw,tags,at}","{""ssn"": ""email"", ""email"": ""ssn""}")');
SELECT is((SELECT problems FROM rule_webhook_links_check()), '{}');
-- Linking again keeps the mask, and what it was set for; the names are those that are given.
ALTER TABLE t ADD COLUMN later text;
SELECT rule_webhook_link_table(1, 't', p_include_old => true);
SELECT ok(masked() LIKE '%"{id,email,ssn,card,doc,raw,tags,at}",)', masked());
SELECT is((SELECT problems[cardinality(problems)] FROM rule_webhook_links_check()),
          (SELECT format('the columns later have come since its mask was set, and are left out: UPDATE public.rule_webhook_links SET mask = mask WHERE link_id = %s;', link_id) FROM rule_webhook_links));
SELECT is((SELECT severity FROM rule_cdc_check() WHERE name = 'mask_new_column'), 'warning');
UPDATE rule_webhook_links SET mask = mask;
SELECT ok(masked() LIKE '%at,later}",)', 'a statement that writes the mask lets the columns leave that are there');
-- A mask on another column is refused where a subject has it, also by UPDATE.
SELECT throws_like($$UPDATE rule_webhook_links SET subject_template = 'webhooks.{later}', mask = '{"later": "drop"}'$$, '%its subject template has the column "later", which its mask keeps back');
SELECT throws_like($$UPDATE rule_webhook_links SET mask = '{"nope": "drop"}'$$, '%its mask names "nope", which the table does not have');
SELECT throws_like($$UPDATE rule_webhook_links SET mask = '[]'$$, '%its mask is a JSON array');
SELECT throws_hint($$UPDATE rule_webhook_links SET mask = '{}'$$, '%its mask is empty', 'Leave mask NULL where nothing is masked.');
SELECT throws_like($$UPDATE rule_webhook_links SET rename = '{"a": 1}'$$, '%its rename of the column "a" is 1');
-- A later change of the subject is found by the check; the events are set aside.
UPDATE rule_webhook_links SET subject_template = 'webhooks.{card}', operations = '{insert}';
SELECT is((SELECT name || ': ' || problem FROM rule_cdc_check() WHERE severity = 'error'), 'mask_refused: its subject template has the column "card", which its mask keeps back. Subjects and headers have values as they are: take the column out of them, or out of the mask');
UPDATE rule_webhook_links SET subject_template = NULL;

-- The table changes. What has taken the place of a masked column stays masked by the statement that is printed.
CREATE FUNCTION broken() RETURNS text LANGUAGE sql AS $$ SELECT problem || ' -> ' || remedy FROM rule_cdc_check() WHERE name = 'mask_broken' $$;
CREATE PROCEDURE mend() LANGUAGE plpgsql AS $$ BEGIN EXECUTE (SELECT remedy FROM rule_cdc_check() WHERE name = 'mask_broken'); END $$;
UPDATE rule_webhook_links SET mask = '{"email": "hash", "ssn": "drop"}';
ALTER TABLE t RENAME email TO mail;
SELECT is(broken(), (SELECT format('its mask names email, which the table does not have any more: nothing of its rows leaves -> UPDATE public.rule_webhook_links SET mask = ''{"ssn": "drop", "mail": "hash"}'' WHERE link_id = %s;', link_id) FROM rule_webhook_links));
SELECT throws_like('UPDATE rule_webhook_links SET mask = mask', '%its mask names "email"%');
CALL mend();
SELECT ok(broken() IS NULL, 'it fits again');
ALTER TABLE t DROP COLUMN mail, DROP COLUMN ssn, ADD COLUMN e1 text, ADD COLUMN e2 text;
SELECT ok(broken() LIKE 'its mask names mail, ssn,%SET mask = ''{"e1": "drop", "e2": "drop"}''%', broken());
CALL mend();
ALTER TABLE t DROP COLUMN e1, DROP COLUMN e2;
SELECT ok(broken() LIKE '%SET mask = NULL WHERE%', broken());
CALL mend();
SELECT is(masked(), '(,,)');
-- Two columns change their names with each other.
UPDATE rule_webhook_links SET mask = '{"card": "drop"}';
ALTER TABLE t RENAME card TO x; ALTER TABLE t RENAME later TO card; ALTER TABLE t RENAME x TO later;
SELECT ok(broken() LIKE 'its mask was set for the columns id, card, doc, raw, tags, at, later, and the table has id, later, doc, raw, tags, at, card now%', broken());
UPDATE rule_webhook_links SET mask = '{"later": "drop"}';
-- The link follows a table that gets another name, with the mask set anew; without the column it does not.
ALTER TABLE t RENAME TO t2; ALTER TABLE t2 RENAME later TO card2;
SELECT throws_like($$UPDATE rule_webhook_links SET table_name = 't2'$$, '%its mask names "later"%');
UPDATE rule_webhook_links SET table_name = 't2', mask = '{"card2": "drop"}';
SELECT ok(masked() LIKE '%"{id,card2,%', masked());
-- A name that a later column has.
SELECT rule_webhook_link_table(1, 't2', '{insert}', p_rename => '{"raw": "bytes"}', p_mask => '{}');
ALTER TABLE t2 ADD COLUMN bytes int;
SELECT is((SELECT name FROM rule_cdc_check() WHERE severity = 'error'), 'rename_refused');
ALTER TABLE t2 DROP COLUMN raw;
SELECT is((SELECT name || ' ' || severity FROM rule_cdc_check() WHERE name LIKE 'rename%'), 'rename_missing note');
SELECT * FROM finish();
