-- 029: events of changed columns: an event of its own when the columns of a linked table change, in its place among the rows.
--
-- Comes in: 021, whose messages carry the events; 022, whose masks and names are a part of what a consumer sees. Goes out:
-- rule_webhooks.publish_column_changes, the event trigger that notices a change, and what the columns of each link were last.
-- Always holds: an event has what its link's consumers see, and no name of a column that the link leaves out or has always left out. The
-- event is in the transaction that makes the change, or there is none of it. No statement of a user fails because of it: what went wrong is
-- recorded, and rule_cdc_check names it. Where no webhook asks for such events, there is no event trigger. Running this file twice changes
-- nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once, as in 007.
DO $schema$
BEGIN
IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '029') THEN
    RETURN;
END IF;

ALTER TABLE public.rule_webhooks ADD COLUMN IF NOT EXISTS publish_column_changes BOOLEAN NOT NULL DEFAULT false;
COMMENT ON COLUMN public.rule_webhooks.publish_column_changes IS
    'Whether an event is published when the columns of a linked table change, or what the link sends of them. Needs rule_webhook_emit_enable()';

CREATE TABLE IF NOT EXISTS walhook.rule_cdc_link_columns (
    -- No foreign key: nobody could TRUNCATE the links any more.
    link_id INTEGER PRIMARY KEY,
    relid OID NOT NULL,
    table_schema TEXT NOT NULL,
    table_name TEXT NOT NULL,
    columns JSONB NOT NULL,
    noted_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_problem TEXT,
    last_problem_at TIMESTAMPTZ
);
CREATE INDEX IF NOT EXISTS idx_cdc_link_columns_table ON walhook.rule_cdc_link_columns (table_schema, table_name);
COMMENT ON TABLE walhook.rule_cdc_link_columns IS
    'What the consumers of a link know of the columns of its table, for links whose webhook has publish_column_changes. Never published, '
    'never linkable';
COMMENT ON COLUMN walhook.rule_cdc_link_columns.relid IS
    'The table: by it columns are the same by their number; in another table, as after a restore of a dump, by their name';
COMMENT ON COLUMN walhook.rule_cdc_link_columns.columns IS
    'In the order of the table: n (its number) and column (its name there); name, type, mask and key as consumers see them';
COMMENT ON COLUMN walhook.rule_cdc_link_columns.last_problem IS
    'The last error of the triggers, which fail no statement; rule_cdc_check() names the links whose event is missing';

END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

-- As src/route/row_schema.rs describes it.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_column_type(p_type OID)
RETURNS TEXT LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE below (oid, next, is_array, depth) AS (
        SELECT t.oid, CASE WHEN t.typtype = 'd' THEN t.typbasetype WHEN e.typarray = t.oid THEN t.typelem END, e.typarray = t.oid, 1
        FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem WHERE t.oid = p_type
        UNION ALL
        SELECT t.oid, CASE WHEN t.typtype = 'd' THEN t.typbasetype WHEN e.typarray = t.oid THEN t.typelem END, e.typarray = t.oid, b.depth + 1
        FROM below b JOIN pg_type t ON t.oid = b.next LEFT JOIN pg_type e ON e.oid = t.typelem
    )
    -- Types of extensions and of users have no name that means something elsewhere.
    SELECT CASE WHEN b.oid < 16384 THEN format_type(b.oid, NULL) || CASE WHEN (SELECT bool_or(o.is_array) FROM below o) THEN '[]' ELSE '' END END
    FROM below b WHERE b.next IS NULL
$$;
COMMENT ON FUNCTION walhook.rule_cdc_column_type IS
    'walhook: what SQL calls the type below domains and arrays, if it is one of PostgreSQL''s own; NULL otherwise';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_view(p_link_id INTEGER, OUT relid OID, OUT columns JSONB)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.oid, (
        SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                   'n', a.attnum, 'column', a.attname, 'name', coalesce(l.rename ->> a.attname::text, a.attname),
                   'type', CASE WHEN m.mask IS NULL THEN walhook.rule_cdc_column_type(a.atttypid) END, 'mask', m.mask,
                   'key', CASE WHEN a.attnum = ANY (i.key) THEN true END)) ORDER BY a.attnum), '[]')
        FROM pg_attribute a
        CROSS JOIN LATERAL (SELECT l.mask ->> a.attname::text AS mask) m
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
          AND (l.columns IS NULL OR a.attname = ANY (l.columns))
          AND CASE WHEN m.mask IS NOT NULL THEN m.mask <> 'drop'
                   ELSE (l.mask IS NULL OR a.attname = ANY (l.mask_columns))
                        -- As the rows: what the mask of a partition's own link keeps back.
                        AND NOT (c.relkind = 'p' AND EXISTS (
                            SELECT FROM pg_partition_tree(c.oid) t JOIN pg_class p ON p.oid = t.relid
                            JOIN pg_namespace pn ON pn.oid = p.relnamespace
                            JOIN public.rule_webhook_links o ON o.table_schema = pn.nspname AND o.table_name = p.relname
                            WHERE p.oid <> c.oid AND o.mask ? a.attname::text)) END)
    FROM public.rule_webhook_links l
    JOIN pg_namespace n ON n.nspname = l.table_schema
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name
    LEFT JOIN LATERAL (SELECT x.indkey::int2[] AS key FROM pg_index x
                       WHERE x.indrelid = c.oid AND CASE c.relreplident WHEN 'i' THEN x.indisreplident ELSE x.indisprimary END LIMIT 1) i ON true
    WHERE l.link_id = p_link_id AND c.relkind IN ('r', 'p') AND l.payload_column IS NULL
      -- Of rows of such a link nothing leaves.
      AND NOT ((l.mask IS NOT NULL OR l.rename IS NOT NULL) AND EXISTS (
          SELECT FROM walhook.rule_cdc_mask_problems(c.oid::regclass, l.columns, l.subject_template, l.trace_column, l.payload_column,
                                                    l.rename, l.mask, l.link_id, l.mask_columns) p WHERE p.is_error))
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_view IS
    'walhook: the columns of a link''s table as its consumers see them now; NULL where they see none: the table is gone, the mask cannot be '
    'applied, the message is a column';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_shown(p_columns JSONB)
RETURNS JSONB LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_agg(e.value - 'n' - 'column' ORDER BY e.place), '[]') FROM jsonb_array_elements(p_columns) WITH ORDINALITY e (value, place)
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_shown IS 'walhook: of the columns of a link that part which its consumers see';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_difference(p_before JSONB, p_now JSONB, p_is_same_table BOOLEAN)
RETURNS JSONB LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH before AS (
        SELECT e.value AS b, CASE WHEN p_is_same_table THEN e.value ->> 'n' ELSE e.value ->> 'column' END AS id, e.place AS b_place
        FROM jsonb_array_elements(p_before) WITH ORDINALITY e (value, place)
    ), now AS (
        SELECT e.value AS a, CASE WHEN p_is_same_table THEN e.value ->> 'n' ELSE e.value ->> 'column' END AS id, e.place AS a_place
        FROM jsonb_array_elements(p_now) WITH ORDINALITY e (value, place)
    )
    SELECT jsonb_build_object(
        'added', coalesce(jsonb_agg(a -> 'name' ORDER BY a_place) FILTER (WHERE b IS NULL), '[]'),
        'removed', coalesce(jsonb_agg(b -> 'name' ORDER BY b_place) FILTER (WHERE a IS NULL), '[]'),
        'renamed', coalesce(jsonb_object_agg(b ->> 'name', a -> 'name') FILTER (WHERE a -> 'name' <> b -> 'name'), '{}'),
        'changed', coalesce(jsonb_object_agg(a ->> 'name', b - '{n,column,name}'::text[])
                            FILTER (WHERE a - '{n,column,name}'::text[] <> b - '{n,column,name}'::text[]), '{}'))
    FROM before FULL JOIN now USING (id)
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_difference IS
    'walhook: what became of the columns of a link: added, removed, renamed (old and new name), changed (how it was before)';

-- As src/route/subject.rs makes it. What it has in the place of a column is no value of one, and behind it is no operation.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_subject(p_link_id INTEGER)
RETURNS TEXT LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT regexp_replace(
               replace(replace(replace(t.subject, '{schema}', public.rule_nats_subject_token(l.table_schema)),
                               '{table}', public.rule_nats_subject_token(l.table_name)), '{op}', 'columns'), '\{[^{}]*\}', '_', 'g')
           || CASE WHEN strpos(t.subject, '{op}') > 0 THEN '' ELSE '.columns' END
    FROM public.rule_webhook_links l
    JOIN public.rule_webhooks w ON w.webhook_id = l.webhook_id
    LEFT JOIN public.rule_nats_config c ON c.config_id = coalesce(
        w.nats_config_id, (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default'))
    CROSS JOIN LATERAL (SELECT coalesce(l.subject_template, nullif(w.nats_subject, ''),
                                        coalesce(nullif(c.subject_prefix, ''), 'webhooks') || '.'
                                        || public.rule_nats_subject_token(w.webhook_name)) AS subject) t
    WHERE l.link_id = p_link_id
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_subject IS
    'walhook: the subject of the events of changed columns of a link: that of its rows, with columns as the operation or behind it';

-- As rule_webhook_emit writes its messages; src/route/emitted.rs reads both. The webhook and its configuration are those of the commit.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_send(p_link_id INTEGER, p_webhook_id INTEGER, p_payload JSONB)
RETURNS PG_LSN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_key RECORD;
    v_call CONSTANT BYTEA := convert_to(format('{"columns_of": %s}', p_link_id), 'UTF8');
    v_signed BYTEA;
BEGIN
    -- Locked: an older snapshot may see a key that is retired.
    SELECT k.key_id, k.inner_key, k.outer_key INTO v_key FROM public.rule_cdc_emit_keys k
    WHERE k.retired_lsn IS NULL ORDER BY k.key_id DESC LIMIT 1 FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'cannot emit the event of changed columns of link %: rule_webhook_emit is not enabled in this database', p_link_id
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'SELECT rule_webhook_emit_enable(); enables it.';
    END IF;
    v_signed := convert_to(concat_ws(' ', '1', pg_current_xact_id(), v_key.key_id, p_webhook_id, octet_length(v_call), ''), 'UTF8')
                || v_call || convert_to(p_payload::text, 'UTF8');
    RETURN pg_logical_emit_message(
        true, 'walhook.emit',
        convert_to(encode(sha256(v_key.outer_key || sha256(v_key.inner_key || v_signed)), 'base64'), 'UTF8') || v_signed);
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_send IS
    'walhook: writes an event of changed columns into the WAL, for the functions beside it';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_follow(p_links INTEGER[], p_emits BOOLEAN DEFAULT true)
RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l RECORD;
    v_known RECORD;
    v_now RECORD;
    v_link INTEGER;
    v_emitted INTEGER := 0;
BEGIN
    FOREACH v_link IN ARRAY p_links LOOP
        -- First the lock, then what is compared: a change of the link and one of the table may meet here.
        SELECT k.* INTO v_known FROM walhook.rule_cdc_link_columns k WHERE k.link_id = v_link FOR UPDATE;
        SELECT k.webhook_id, k.table_schema, k.table_name, w.publish_column_changes AND k.payload_column IS NULL AS asks,
               k.enabled AND coalesce(w.enabled AND w.nats_enabled AND w.publish_mode IN ('nats', 'both'), false) AS sends
        INTO l
        FROM public.rule_webhook_links k JOIN public.rule_webhooks w ON w.webhook_id = k.webhook_id WHERE k.link_id = v_link;
        IF NOT FOUND OR NOT l.asks THEN
            DELETE FROM walhook.rule_cdc_link_columns k WHERE k.link_id = v_link;
            CONTINUE;
        END IF;
        CONTINUE WHEN NOT l.sends;
        SELECT w.relid, w.columns INTO v_now FROM walhook.rule_cdc_columns_view(v_link) w;
        CONTINUE WHEN v_now.columns IS NULL;
        IF v_known.link_id IS NOT NULL AND p_emits
           AND (walhook.rule_cdc_columns_shown(v_known.columns), v_known.table_schema, v_known.table_name)
               <> (walhook.rule_cdc_columns_shown(v_now.columns), l.table_schema, l.table_name)
        THEN
            PERFORM walhook.rule_cdc_columns_send(
                v_link, l.webhook_id,
                jsonb_build_object('schema', l.table_schema, 'table', l.table_name, 'columns', walhook.rule_cdc_columns_shown(v_now.columns))
                || walhook.rule_cdc_columns_difference(v_known.columns, v_now.columns, v_known.relid = v_now.relid)
                || CASE WHEN (v_known.table_schema, v_known.table_name) <> (l.table_schema, l.table_name)
                        THEN jsonb_build_object('previous', jsonb_build_object('schema', v_known.table_schema, 'table', v_known.table_name))
                        ELSE '{}' END);
            v_emitted := v_emitted + 1;
        END IF;
        INSERT INTO walhook.rule_cdc_link_columns AS k (link_id, relid, table_schema, table_name, columns)
        VALUES (v_link, v_now.relid, l.table_schema, l.table_name, v_now.columns)
        ON CONFLICT (link_id) DO UPDATE SET
            relid = excluded.relid, table_schema = excluded.table_schema, table_name = excluded.table_name, columns = excluded.columns,
            noted_at = excluded.noted_at, last_problem = NULL, last_problem_at = NULL
        WHERE (k.relid, k.table_schema, k.table_name, k.columns)
              <> (excluded.relid, excluded.table_schema, excluded.table_name, excluded.columns) OR k.last_problem IS NOT NULL;
    END LOOP;
    RETURN v_emitted;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_follow IS
    'walhook: compares the columns of these links with what their consumers know, emits an event for each that differs, and notes what they '
    'are now. Without p_emits it only notes it. Returns how many events it has emitted';

-- With its owner's rights, for who changes a table or a link need not be allowed to emit. It never fails: what it cannot do is recorded.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_try(p_links INTEGER[])
RETURNS VOID LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    v_problem TEXT;
BEGIN
    -- Otherwise nobody reads messages: it is a copy of a database.
    IF p_links = '{}' OR current_setting('wal_level') <> 'logical' THEN
        RETURN;
    END IF;
    PERFORM walhook.rule_cdc_columns_follow(p_links);
EXCEPTION WHEN OTHERS THEN
    v_problem := format('%s: %s', SQLSTATE, SQLERRM);
    BEGIN
        UPDATE walhook.rule_cdc_link_columns k SET last_problem = left(v_problem, 2000), last_problem_at = clock_timestamp()
        WHERE k.link_id = ANY (p_links);
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RAISE WARNING 'walhook could not emit the event of changed columns: %', walhook.rule_cdc_sayable(v_problem)
        USING HINT = 'The statement itself is not affected. SELECT rule_cdc_column_changes_emit(); emits the event, when the cause is gone.';
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_try IS
    'walhook: a part of the triggers: the same, but what goes wrong is recorded and fails no statement';

-- With its owner's rights, as above.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_event()
RETURNS EVENT_TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM walhook.rule_cdc_link_columns) THEN
        RETURN;
    END IF;
    PERFORM walhook.rule_cdc_columns_try(ARRAY(
        WITH RECURSIVE commands AS MATERIALIZED (
            SELECT d.classid, d.objid FROM pg_event_trigger_ddl_commands() d
        ), altered (relid) AS (
            SELECT d.objid FROM commands d WHERE d.classid = 'pg_class'::regclass
            UNION
            -- Who has inherited a column, or is a partition.
            SELECT i.inhrelid FROM altered a JOIN pg_inherits i ON i.inhparent = a.relid
        )
        SELECT k.link_id
        FROM altered a JOIN pg_class c ON c.oid = a.relid JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN walhook.rule_cdc_link_columns k ON k.table_schema = n.nspname AND k.table_name = c.relname
        UNION
        SELECT k.link_id
        FROM commands d JOIN pg_namespace n ON d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
        JOIN walhook.rule_cdc_link_columns k ON k.table_schema = n.nspname
        ORDER BY 1));
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'walhook could not look for changed columns: %', walhook.rule_cdc_sayable(format('%s: %s', SQLSTATE, SQLERRM))
        USING HINT = 'The statement itself is not affected. SELECT rule_cdc_column_changes_emit(); emits what is missing.';
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_event IS
    'walhook: event trigger: emits an event for each link whose table has other columns now, in the same transaction';

CREATE OR REPLACE FUNCTION public.rule_cdc_column_changes_trigger()
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_there RECORD;
BEGIN
    SELECT e.evtenabled, e.evtfoid, obj_description(e.oid, 'pg_event_trigger') AS words INTO v_there
    FROM pg_event_trigger e WHERE e.evtname = 'walhook_column_changes';
    IF FOUND THEN
        IF v_there.evtenabled IN ('O', 'A') AND v_there.evtfoid = 'walhook.rule_cdc_columns_event()'::regprocedure THEN
            RETURN false;
        ELSIF coalesce(v_there.words, '') NOT LIKE 'walhook:%' THEN
            RAISE EXCEPTION 'cannot create the event trigger walhook_column_changes: there is one that walhook has not made'
                USING ERRCODE = 'duplicate_object', HINT = 'DROP EVENT TRIGGER walhook_column_changes; or rename it.';
        END IF;
        DROP EVENT TRIGGER walhook_column_changes;
    END IF;
    CREATE EVENT TRIGGER walhook_column_changes ON ddl_command_end
        WHEN TAG IN ('ALTER TABLE', 'ALTER SCHEMA')
        EXECUTE FUNCTION walhook.rule_cdc_columns_event();
    COMMENT ON EVENT TRIGGER walhook_column_changes IS 'walhook: emits an event when the columns of a linked table change';
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_column_changes_trigger IS
    'walhook: creates the event trigger that notices when the columns of a linked table change. PostgreSQL lets only superusers do that. '
    'Returns false if it is there';

CREATE OR REPLACE FUNCTION public.rule_cdc_column_changes_emit(p_table REGCLASS DEFAULT NULL)
RETURNS INTEGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_read_only')::boolean THEN
        RAISE EXCEPTION 'cannot emit events of changed columns in a read-only transaction'
            USING ERRCODE = 'read_only_sql_transaction',
            HINT = CASE WHEN pg_is_in_recovery() THEN 'This server is a standby: call rule_cdc_column_changes_emit on the primary.'
                        ELSE 'An event is a write: begin the transaction with BEGIN READ WRITE.' END;
    ELSIF current_setting('wal_level') <> 'logical' THEN
        RAISE EXCEPTION 'cannot emit events of changed columns: wal_level is %, and nobody could read them', current_setting('wal_level')
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'ALTER SYSTEM SET wal_level = logical; then restart PostgreSQL.';
    END IF;
    RETURN walhook.rule_cdc_columns_follow(ARRAY(
        SELECT l.link_id FROM public.rule_webhook_links l JOIN public.rule_webhooks w ON w.webhook_id = l.webhook_id
        WHERE w.publish_column_changes
          AND (p_table IS NULL OR (l.table_schema, l.table_name) IN (
              SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_table))
        ORDER BY l.link_id));
END
$$;
COMMENT ON FUNCTION public.rule_cdc_column_changes_emit IS
    'walhook: emits the events of changed columns, of one table or of all, that the event trigger has not emitted. Without the event trigger, '
    'call it behind the ALTER TABLE in the same transaction. Returns how many events it has emitted';

-- ------------------------------------------------------------------------------------------------- settings that change what is seen

CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_link_changed()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_link public.rule_webhook_links;
BEGIN
    IF TG_OP = 'DELETE' THEN
        v_link := OLD;
    ELSE
        v_link := NEW;
    END IF;
    -- A new link may have the number of one that was truncated.
    IF TG_OP <> 'UPDATE' THEN
        DELETE FROM walhook.rule_cdc_link_columns k WHERE k.link_id = v_link.link_id;
    END IF;
    -- A caller that changes a link by several statements sets it until the last one: in between the link may show more than before and
    -- after them.
    IF coalesce(current_setting('walhook.link_changes', true), '') <> '' THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM public.rule_webhooks w WHERE w.webhook_id = v_link.webhook_id AND w.publish_column_changes)
       OR EXISTS (SELECT FROM walhook.rule_cdc_link_columns) THEN
        PERFORM walhook.rule_cdc_columns_try(ARRAY(
            SELECT v_link.link_id
            UNION
            -- What a partition's mask keeps back is kept back of the table above it.
            SELECT k.link_id
            FROM pg_partition_ancestors(to_regclass(format('%I.%I', v_link.table_schema, v_link.table_name))) a (relid)
            JOIN pg_class c ON c.oid = a.relid JOIN pg_namespace n ON n.oid = c.relnamespace
            JOIN walhook.rule_cdc_link_columns k ON k.table_schema = n.nspname AND k.table_name = c.relname
            ORDER BY 1));
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_link_changed IS
    'walhook: trigger of rule_webhook_links: emits an event when a link sends other columns from this statement on, and forgets those of a '
    'link that is deleted';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_webhook_check()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_older CONSTANT TEXT := walhook.rule_cdc_older_run('029'); -- made by 031
BEGIN
    IF NOT EXISTS (SELECT FROM public.rule_cdc_emit_keys k WHERE k.retired_lsn IS NULL) THEN
        RAISE EXCEPTION 'webhook % (webhook_id %): publish_column_changes needs rule_webhook_emit, which is not enabled in this database',
            walhook.rule_cdc_quoted(NEW.webhook_name), NEW.webhook_id
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'SELECT rule_webhook_emit_enable(); enables it. Then set publish_column_changes again.';
    END IF;
    IF v_older IS NOT NULL THEN
        RAISE EXCEPTION 'webhook % (webhook_id %): publish_column_changes: % is too old and would take its events for messages of '
            'rule_webhook_emit', walhook.rule_cdc_quoted(NEW.webhook_name), NEW.webhook_id,
            walhook.rule_cdc_sayable(v_older)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Stop it and start the version that has set up this database. Then set publish_column_changes again.';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_webhook_check IS
    'walhook: trigger of rule_webhooks: refuses publish_column_changes where its events could not be published';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_columns_webhook_changed()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_links CONSTANT INTEGER[] := ARRAY(SELECT l.link_id FROM public.rule_webhook_links l WHERE l.webhook_id = NEW.webhook_id ORDER BY 1);
BEGIN
    IF OLD.publish_column_changes AND NEW.publish_column_changes THEN
        PERFORM walhook.rule_cdc_columns_try(v_links);
        RETURN NULL;
    END IF;
    DELETE FROM walhook.rule_cdc_link_columns k WHERE k.link_id = ANY (v_links);
    IF NEW.publish_column_changes THEN
        PERFORM walhook.rule_cdc_columns_follow(v_links, false);
        BEGIN
            PERFORM public.rule_cdc_column_changes_trigger();
        EXCEPTION WHEN insufficient_privilege OR duplicate_object THEN
            RAISE WARNING 'walhook does not notice by itself when columns change: %', walhook.rule_cdc_sayable(SQLERRM)
                USING HINT = 'Let a superuser run: SELECT rule_cdc_column_changes_trigger(); without it, SELECT rule_cdc_column_changes_emit(); '
                             'behind each ALTER TABLE, in its transaction.';
        END;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_columns_webhook_changed IS
    'walhook: trigger of rule_webhooks: begins and ends to note the columns of its links, and creates the event trigger';

-- ------------------------------------------------------------------------------------------------------------------------ check

CREATE OR REPLACE FUNCTION walhook.rule_cdc_check_columns()
RETURNS TABLE (name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l RECORD;
    v_now RECORD;
    v_subject TEXT;
    v_takes TEXT[];
    v_rows TEXT[];
    v_stream RECORD;
BEGIN
    IF NOT EXISTS (SELECT FROM public.rule_webhooks w WHERE w.publish_column_changes) THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM public.rule_cdc_emit_keys k WHERE k.retired_lsn IS NULL) THEN
        name := 'column_changes_not_enabled';
        severity := 'error';
        object := 'publish_column_changes';
        problem := 'webhooks have publish_column_changes, and rule_webhook_emit, by which their events are written, is not enabled';
        remedy := 'SELECT public.rule_webhook_emit_enable();';
        RETURN NEXT;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger e WHERE e.evtname = 'walhook_column_changes' AND e.evtenabled IN ('O', 'A')) THEN
        name := 'column_changes_trigger_missing';
        severity := 'warning';
        object := 'event trigger walhook_column_changes';
        problem := 'webhooks have publish_column_changes, and walhook does not notice by itself when columns change: only a superuser can '
                   'create the event trigger for that. Without it, call rule_cdc_column_changes_emit() behind each ALTER TABLE, in its '
                   'transaction';
        remedy := 'SELECT public.rule_cdc_column_changes_trigger();';
        RETURN NEXT;
    END IF;
    FOR l IN
        SELECT k.*, w.webhook_name, c.config_id, c.config_name, c.jetstream_enabled, o.relid AS known_relid, o.columns AS known_columns,
               o.table_schema AS known_schema, o.table_name AS known_name, o.last_problem, o.last_problem_at
        FROM public.rule_webhook_links k
        JOIN public.rule_webhooks w ON w.webhook_id = k.webhook_id
        JOIN public.rule_nats_config c ON c.config_id = coalesce(
            w.nats_config_id, (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default'))
        LEFT JOIN walhook.rule_cdc_link_columns o ON o.link_id = k.link_id
        WHERE w.publish_column_changes AND k.enabled AND w.enabled AND w.nats_enabled AND w.publish_mode IN ('nats', 'both')
          AND c.enabled IS NOT FALSE AND k.payload_column IS NULL
        ORDER BY k.link_id
    LOOP
        object := format('link %s of webhook %s to %I.%I', l.link_id, to_json(left(l.webhook_name, 200)), l.table_schema, l.table_name);
        IF l.jetstream_enabled IS NOT FALSE THEN
            v_subject := walhook.rule_cdc_columns_subject(l.link_id);
            v_takes := walhook.rule_nats_stream_for(l.config_id, v_subject);
            v_rows := ARRAY(SELECT DISTINCT s FROM unnest(walhook.rule_cdc_link_subjects(l.webhook_id, l.table_schema, l.table_name,
                                                                                       l.operations, l.subject_template)) r,
                                                   unnest((walhook.rule_nats_stream_for(l.config_id, r))[1:1]) s);
            IF v_takes = '{}' THEN
                name := 'column_changes_stream_missing';
                severity := 'error';
                problem := format('no stream of NATS config %L takes %s, the subject of its events of changed columns', l.config_name, v_subject);
                SELECT s.stream_id, s.stream_name INTO v_stream FROM public.rule_nats_streams s
                WHERE s.stream_name = ANY (v_rows) AND s.enabled IS NOT FALSE
                  AND (s.config_id = l.config_id OR s.config_id IS NULL AND l.config_name = 'default')
                ORDER BY s.stream_id LIMIT 1;
                remedy := CASE WHEN FOUND
                    THEN format('UPDATE public.rule_nats_streams SET subjects = array_append(subjects, %L) WHERE stream_id = %s;', v_subject,
                                v_stream.stream_id)
                    ELSE format('SELECT public.rule_nats_stream_create(%L, ARRAY[%L], %L);', 'WALHOOK_' || l.webhook_id || '_' || l.link_id,
                                v_subject, l.config_name) END;
                RETURN NEXT;
            ELSIF v_rows <> '{}' AND v_rows <> v_takes[1:1] THEN
                name := 'column_changes_elsewhere';
                severity := 'warning';
                problem := format('its events of changed columns go into the stream %s, and its rows into %s: nothing says their order', v_takes[1],
                                  array_to_string(v_rows, ', '));
                remedy := NULL;
                RETURN NEXT;
            END IF;
        END IF;
        SELECT v.relid, v.columns INTO v_now FROM walhook.rule_cdc_columns_view(l.link_id) v;
        IF v_now.columns IS NOT NULL
           AND (l.known_columns IS NULL OR l.last_problem IS NOT NULL
                OR (walhook.rule_cdc_columns_shown(l.known_columns), l.known_schema, l.known_name)
                   <> (walhook.rule_cdc_columns_shown(v_now.columns), l.table_schema, l.table_name))
        THEN
            name := 'column_change_missed';
            severity := 'warning';
            problem := CASE WHEN l.known_columns IS NULL THEN 'walhook has not noted which columns it has'
                            ELSE 'its columns are not those that its consumers know, and no event has said so' END
                       || CASE WHEN l.last_problem IS NULL THEN '' ELSE format(' (at %s: %s)', l.last_problem_at, l.last_problem) END;
            remedy := 'SELECT public.rule_cdc_column_changes_emit();';
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_check_columns IS
    'walhook: the part of rule_cdc_check about events of changed columns: the event trigger, streams, and changes without an event';

CALL walhook.rule_cdc_functions_close();

CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_columns_check', 'BEFORE INSERT OR UPDATE OF publish_column_changes',
    'NEW.publish_column_changes',
    'walhook.rule_cdc_columns_webhook_check()', 'refuses publish_column_changes where its events could not be published');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhooks', 'walhook_columns', 'AFTER UPDATE OF publish_column_changes, enabled, nats_enabled, publish_mode',
    'NEW.publish_column_changes OR OLD.publish_column_changes',
    'walhook.rule_cdc_columns_webhook_changed()', 'notes the columns of its links, and emits events when they change');
-- Of each update: what a link sends depends on most of its columns, and links seldom change.
CALL walhook.rule_cdc_trigger(
    'public.rule_webhook_links', 'walhook_columns', 'AFTER INSERT OR UPDATE',
    'NEW.link_id IS NOT NULL',
    'walhook.rule_cdc_columns_link_changed()', 'emits an event when the link sends other columns');
CALL walhook.rule_cdc_trigger(
    'public.rule_webhook_links', 'walhook_columns_gone', 'AFTER DELETE',
    'OLD.link_id IS NOT NULL',
    'walhook.rule_cdc_columns_link_changed()', 'forgets what the link has sent');

REVOKE ALL ON walhook.rule_cdc_link_columns FROM PUBLIC;

CALL walhook.rule_cdc_grant('walhook_streamer', 'SELECT', ARRAY['rule_cdc_link_columns']);
CALL walhook.rule_cdc_grant('walhook_operator', 'SELECT', ARRAY['rule_cdc_link_columns']);
CALL walhook.rule_cdc_grant_functions('walhook_streamer', '^rule_cdc_(check_columns|column_type|columns_(view|shown|subject))$');
CALL walhook.rule_cdc_grant_functions('walhook_operator',
    '^rule_cdc_(check_columns|column_type|columns_(view|shown|subject|difference|link_changed|webhook_check|webhook_changed)|column_changes_(trigger|emit))$');

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('029', 'walhook: events of changed columns')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
