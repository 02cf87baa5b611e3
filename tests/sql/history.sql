-- The history in partitions by day: made ahead, written by the streamer, read through the table, dropped whole.
SELECT * FROM no_plan();
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC;
SELECT rule_webhook_register('one', 'https://example.com'), rule_webhook_register('two', 'https://example.com');

-- Midnight
SET ROLE walhook_streamer;
SELECT is((SELECT m.made FROM walhook.rule_nats_history_make('2026-03-01 23:59:59.999+00') m), 'rule_nats_publish_history_20260301');
SELECT is((SELECT m.made FROM walhook.rule_nats_history_make('2026-03-02 00:00:00+00') m), 'rule_nats_publish_history_20260302');
SELECT is((SELECT m::text FROM walhook.rule_nats_history_make('2026-03-02 12:00:00+00') m), '(,)', 'it is there');
SELECT is(walhook.rule_nats_history_target('2026-03-01 23:59:59.999+00')::text, 'rule_nats_publish_history_20260301');
SELECT is(walhook.rule_nats_history_target('2026-03-02 00:00:00+00')::text, 'rule_nats_publish_history_20260302');
SELECT is(walhook.rule_nats_history_target('2026-03-03 00:00:00+00')::text, 'rule_nats_publish_history', 'a row is never without a table');

-- Rights: read through the table alone, and nobody writes but the streamer
INSERT INTO rule_nats_publish_history_20260301 (webhook_id, subject, payload, success, published_at, expires_at, event_id)
VALUES (1, 's', '{}', true, '2026-03-01', '2026-03-08', 'src-0000000000001000-1-0-1'), (2, 's', '{}', true, '2026-03-01', '2026-03-08', 'src-0000000000000fff-1-0-2');
INSERT INTO rule_nats_publish_history_20260302 (webhook_id, subject, payload, success, published_at, expires_at, event_id)
VALUES (1, 's', '{}', true, '2026-03-02', '2026-03-09', 'src-b-0000000000002000-1-0-1'), (1, 's', '{}', true, '2026-03-02', '2026-03-20', 'src-ffffffffffffffff-1-0-1');
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, published_at) VALUES (1, 'own', '{}', true, '1999-01-01');
SELECT throws_like('DELETE FROM rule_nats_publish_history_20260301', 'permission denied for %');
SELECT throws_like('DROP TABLE rule_nats_publish_history_20260301', 'must be owner of %');
RESET ROLE;
SELECT is((SELECT string_agg(h.tableoid::regclass::text, ' ') FROM rule_nats_publish_history h WHERE h.subject = 'own'), 'rule_nats_publish_history');
SET ROLE walhook_operator;
SELECT is((SELECT count(*) FROM rule_nats_publish_history), '5');
SELECT throws_like('SELECT * FROM rule_nats_publish_history_20260301', 'permission denied for %');
SELECT throws_like('INSERT INTO rule_nats_publish_history_20260301 DEFAULT VALUES', 'permission denied for %');
SELECT throws_like('SELECT walhook.rule_nats_history_make()', 'permission denied for %');
SET ROLE walhook_application;
SELECT throws_like('SELECT * FROM rule_nats_publish_history_20260301', 'permission denied for %');
RESET ROLE;
SELECT is(has_table_privilege('public', 'rule_nats_publish_history_20260301', 'SELECT'), false, 'default privileges do not open it');
SELECT ok(walhook.rule_cdc_table_problem('rule_nats_publish_history_20260301') LIKE '%partition of one of walhook''s own%', 'never linkable');

-- Up to which commit a source has rows; another source's name may begin like it, and WAL that is not written yet is of another cluster
SELECT is(walhook.rule_nats_history_written('src', 'no slot'), '0000000000001000');
SELECT is(walhook.rule_nats_history_written('src-b', 'no slot'), '0000000000002000');
SELECT is(walhook.rule_nats_history_written('other', 'no slot'), NULL);
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, event_id) VALUES (1, 'own', '{}', true, 'src-0000000000000001-1-0-1');
SELECT ok(walhook.rule_nats_history_written('src', 'no slot') > '0000000000001000', 'all that there can be, while the table itself has rows of events');
DELETE FROM ONLY rule_nats_publish_history;

-- A webhook that is deleted takes its history along, as by the foreign key of the table itself
SELECT is(rule_webhook_delete(2), true);
SELECT is((SELECT string_agg(DISTINCT h.webhook_id::text, ' ') FROM rule_nats_publish_history h), '1');
SELECT is((SELECT count(*) FROM rule_nats_publish_history), '3');

-- Retention: partitions go, not rows
SELECT is((SELECT string_agg(r::text, ' ') FROM rule_nats_history_retire('2026-03-07 23:59:00+00') r), NULL, 'nothing has expired');
SELECT is((SELECT string_agg(r::text, ' ') FROM rule_nats_history_retire('2026-03-10 00:00:00+00') r), '(rule_nats_publish_history_20260301,)');
SELECT is((SELECT count(*) FROM rule_nats_publish_history), '2', 'one that has expired waits for the other one of its day');
CREATE VIEW mine AS SELECT * FROM rule_nats_publish_history_20260302;
SELECT ok((SELECT r.problem LIKE 'cannot drop the expired partition %_20260302: %' FROM rule_nats_history_retire('2026-03-21 00:00:00+00') r), 'somebody needs it');
DROP VIEW mine;
SELECT is((SELECT string_agg(r::text, ' ') FROM rule_nats_history_retire('2026-03-21 00:00:00+00') r), '(rule_nats_publish_history_20260302,)');
SELECT is((SELECT m.made FROM walhook.rule_nats_history_make('2026-03-20 00:00:00+00') m), 'rule_nats_publish_history_20260320');
SELECT is((SELECT count(*) FROM rule_nats_history_retire('2026-03-21 23:59:59+00')), '0', 'rows may be on their way into that of yesterday');
SELECT is((SELECT r.partition FROM rule_nats_history_retire('2026-03-22 00:00:00+00') r), 'rule_nats_publish_history_20260320', 'an empty one');

-- A table of somebody else with that name is left alone
CREATE TABLE rule_nats_publish_history_20260401 (mine int);
SELECT ok((SELECT m.made IS NULL AND m.problem LIKE 'cannot make the partition rule_nats_publish_history_20260401: %already exists' FROM walhook.rule_nats_history_make('2026-04-01 00:00:00+00') m), 'the name is taken');
SELECT is(walhook.rule_nats_history_target('2026-04-01 00:00:00+00')::text, 'rule_nats_publish_history');
SELECT is((SELECT count(*) FROM rule_nats_history_retire('2026-05-01 00:00:00+00')), '0');

-- What comes again has no second row, wherever the first one is; a failure can become a success, and not the other way round
SELECT is((SELECT count(m.made) FROM walhook.rule_nats_history_make(now()) m), '1');
CREATE FUNCTION written(p_success boolean, p_error text, p_sequence bigint, p_ids text[]) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    PERFORM walhook.rule_nats_history_open();
    DELETE FROM walhook_history;
    INSERT INTO walhook_history (published_at, sequence_number, success, webhook_id, event_id, subject, headers, message_id, payload, error_message)
    SELECT '2000-01-01', p_sequence, p_success, 1, i, 's', '1{}', i, '1{"a": 1}', p_error FROM unnest(p_ids) i;
    RETURN (SELECT w.lost FROM walhook.rule_nats_history_write() w);
END $$;
INSERT INTO rule_nats_publish_history (webhook_id, subject, payload, success, error_message, event_id) VALUES (1, 's', '{}', false, 'away', 'e-1');
GRANT EXECUTE ON FUNCTION written TO walhook_streamer;
SET ROLE walhook_streamer;
SELECT is(written(false, 'away', NULL, '{e-1,e-2}'), '0');
SELECT is(written(false, 'away', NULL, '{e-1,e-2,e-3}'), '0');
RESET ROLE;
SELECT is((SELECT string_agg(h.event_id || CASE WHEN h.tableoid = 'rule_nats_publish_history'::regclass THEN ' own' ELSE '' END, ', ' ORDER BY h.event_id)
           FROM rule_nats_publish_history h WHERE NOT h.success), 'e-1 own, e-2, e-3');
SET ROLE walhook_streamer;
SELECT is(written(true, NULL, 7, '{e-1,e-2}'), '0');
SELECT is(written(false, 'away', NULL, '{e-1,e-2}'), '0');
SELECT is(written(true, NULL, 8, '{e-4,e-4}'), '0', 'one by one');
RESET ROLE;
SELECT is((SELECT string_agg(format('%s %s %s', h.event_id, h.success, h.sequence_number), ', ' ORDER BY h.event_id) FROM rule_nats_publish_history h
           WHERE h.event_id LIKE 'e-%'), 'e-1 t 7, e-2 t 7, e-3 f , e-4 t 8');
SELECT is((SELECT count(*) FROM nats_recent_failures), '1');
SELECT is((SELECT total_published FROM rule_nats_webhooks_list() WHERE webhook_id = 1), NULL, 'it is not on NATS');
SELECT is((SELECT s ->> 'total_published' FROM rule_nats_stats() s), '4');

-- By the functions of the RFC
UPDATE rule_nats_publish_history SET expires_at = now() - interval '1 second' WHERE event_id IN ('e-1', 'e-2');
SELECT is(rule_nats_cleanup_expired(), '2');
SELECT is((SELECT count(*) FROM rule_nats_publish_history), '2');

-- By the default payloads are where their events are
SELECT rule_nats_configure('fresh', 'nats://f');
SELECT is((SELECT history || ' ' || history_payload FROM rule_nats_config WHERE config_name = 'fresh'), 'full reference');
SELECT throws_like('UPDATE rule_nats_config SET history_payload = ''half''', '%history_payload%');
SELECT * FROM finish();
