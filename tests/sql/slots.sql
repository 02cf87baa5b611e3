-- Publication, then slot, each in a transaction of its own.
SELECT * FROM no_plan();
SELECT throws_hint('SELECT rule_cdc_slot_create()', '%publication walhook_inserts does not exist', '%rule_cdc_publication_create%');
-- commit
BEGIN;
SELECT rule_cdc_publication_create();
SELECT throws_hint('SELECT rule_cdc_slot_create(current_database())', '%in a transaction that has written', 'Call it in a transaction of its own.');
COMMIT;
-- commit
SELECT rule_cdc_slot_create(current_database());
-- commit
SELECT is((SELECT (plugin, active, wal_status, lag_bytes >= 0, retained_bytes >= lag_bytes, slot_name = database)::text FROM rule_cdc_slots),
                    '(pgoutput,f,reserved,t,t,t)');
SELECT is((SELECT failover FROM rule_cdc_slots), CASE WHEN current_setting('server_version_num')::int >= 170000 THEN true END);
SELECT is(rule_cdc_slot_create(current_database()), (SELECT confirmed_flush_lsn FROM rule_cdc_slots), 'the slot that exists');
SELECT is(ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = 'rule_cdc_slots'::regclass ORDER BY attnum),
    '{slot_name,database,plugin,active,active_pid,wal_status,safe_wal_size,retained_bytes,lag_bytes,restart_lsn,confirmed_flush_lsn,failover,invalidation_reason,inactive_since}'::text[]);
-- commit
SELECT pg_create_logical_replication_slot(current_database() || '_x', 'test_decoding');
-- commit
SELECT throws_like('SELECT rule_cdc_slot_create(current_database() || ''_x'')', '%exists and is not walhook''s%test_decoding%');
SELECT throws_like('SELECT rule_cdc_slot_drop(current_database() || ''_x'')', '%is not walhook''s%');
SELECT ok(rule_cdc_slot_drop(current_database()), 'dropped');
SELECT ok(NOT rule_cdc_slot_drop(current_database()), 'nothing to drop');
SELECT pg_drop_replication_slot(current_database() || '_x');
SELECT * FROM finish();
