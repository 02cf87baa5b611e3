-- 032: a shard is dropped only when it has published all that was its own, also what became its own while it stood still.
--
-- Comes in: 027, whose rule_cdc_shard_drop asks for it. Goes out: rule_cdc_shard_names.left_lsn and left_xid, the last change of what is a
-- shard's own.
-- Always holds: the commit of that change is behind left_lsn. Running this file twice changes nothing; no BEGIN, COMMIT or psql command in
-- it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '032') THEN
    RETURN;
END IF;
ALTER TABLE walhook.rule_cdc_shard_names ADD COLUMN IF NOT EXISTS left_lsn PG_LSN, ADD COLUMN IF NOT EXISTS left_xid XID8;
COMMENT ON COLUMN walhook.rule_cdc_shard_names.left_lsn IS
    'A position before the commit by which tables or webhooks last came to the shard or left it. Until the shard has read that commit, its '
    'slot may have events that are its own';
COMMENT ON COLUMN walhook.rule_cdc_shard_names.left_xid IS 'The transaction that did it';
END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

CREATE OR REPLACE FUNCTION walhook.rule_cdc_shard_left()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- OLD is NULL of a row that is inserted, NEW of one that is deleted.
    v_shards TEXT[] := ARRAY[OLD.shard, NEW.shard];
BEGIN
    IF TG_TABLE_NAME = 'rule_webhook_links' THEN
        v_shards := v_shards || ARRAY(SELECT w.shard FROM public.rule_webhooks w WHERE w.webhook_id IN (OLD.webhook_id, NEW.webhook_id));
    END IF;
    UPDATE walhook.rule_cdc_shard_names n SET left_lsn = pg_current_wal_insert_lsn(), left_xid = pg_current_xact_id()
    WHERE n.shard = ANY (v_shards) AND n.left_xid IS DISTINCT FROM pg_current_xact_id();
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_shard_left IS
    'walhook: trigger of rule_webhooks and rule_webhook_links: notes when something came to a shard or left it';

CALL walhook.rule_cdc_functions_close();

CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_shard_left_new', 'AFTER INSERT',
    'NEW.shard IS NOT NULL',
    'walhook.rule_cdc_shard_left()', 'notes when something came to a shard or left it');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_shard_left', 'AFTER UPDATE OF shard',
    'NEW.shard IS DISTINCT FROM OLD.shard',
    'walhook.rule_cdc_shard_left()', 'notes when something came to a shard or left it');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_shard_left_gone', 'AFTER DELETE',
    'OLD.shard IS NOT NULL',
    'walhook.rule_cdc_shard_left()', 'notes when something came to a shard or left it');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhook_links', 'walhook_shard_left_new', 'AFTER INSERT',
    'NEW.link_id IS NOT NULL',
    'walhook.rule_cdc_shard_left()', 'notes when something came to a shard or left it');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhook_links', 'walhook_shard_left', 'AFTER UPDATE OF shard, webhook_id',
    '(NEW.shard, NEW.webhook_id) IS DISTINCT FROM (OLD.shard, OLD.webhook_id)',
    'walhook.rule_cdc_shard_left()', 'notes when something came to a shard or left it');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhook_links', 'walhook_shard_left_gone', 'AFTER DELETE',
    'OLD.link_id IS NOT NULL',
    'walhook.rule_cdc_shard_left()', 'notes when something came to a shard or left it');

CALL walhook.rule_cdc_grant_functions('walhook_operator', '^rule_cdc_shard_left$');

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('032', 'walhook: a shard is dropped only when it has published all that was its own')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
