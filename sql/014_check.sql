-- 014: one check of the whole set-up: the slot, both publications, every link down to each partition.
--
-- Comes in: 005 to 011. Goes out: rule_cdc_check, which `walhook run` asks at its start and every few seconds while it runs,
-- `walhook status` once, and rule_webhook_links_check for the part about links.
-- Always holds: it reads catalogs and configuration only, and takes no lock on a user's table. Each finding has a name that
-- stays the same in later versions, and a remedy: SQL that can be run as it is, or NULL where the choice is the user's. Running this file twice changes nothing.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

CREATE OR REPLACE FUNCTION walhook.rule_cdc_check_slot(p_slot TEXT DEFAULT 'walhook')
RETURNS TABLE (name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_slot JSONB;
    v_again CONSTANT TEXT := format('SELECT public.rule_cdc_slot_drop(%1$L); SELECT public.rule_cdc_slot_create(%1$L);', p_slot);
    v_reason TEXT;
BEGIN
    severity := 'fatal';
    IF current_setting('wal_level') <> 'logical' THEN
        name := 'wal_level';
        object := 'wal_level';
        problem := format('wal_level is %s: the WAL has no changes that a slot can decode', to_json(current_setting('wal_level')));
        remedy := 'ALTER SYSTEM SET wal_level = logical; -- then restart PostgreSQL';
        RETURN NEXT;
    END IF;
    object := format('replication slot %s', to_json(p_slot));
    -- Its columns differ by version.
    SELECT to_jsonb(s) INTO v_slot FROM pg_replication_slots s WHERE s.slot_name = p_slot;
    IF NOT FOUND THEN
        name := 'slot_missing';
        problem := format('%s does not exist: changes from before it is made are not published', object);
        remedy := format('SELECT public.rule_cdc_slot_create(%L);', p_slot);
        RETURN NEXT;
        RETURN;
    END IF;
    IF v_slot ->> 'slot_type' <> 'logical' OR v_slot ->> 'plugin' IS DISTINCT FROM 'pgoutput'
       OR v_slot ->> 'database' IS DISTINCT FROM current_database()
    THEN
        name := 'slot_not_ours';
        problem := format('%s is a %s slot with plugin %s in database %s; walhook needs a logical one with pgoutput in %s: name '
                          'another slot with --slot', object, v_slot ->> 'slot_type', coalesce(v_slot ->> 'plugin', 'none'),
                          coalesce(v_slot ->> 'database', 'none'), current_database());
        remedy := format('SELECT public.rule_cdc_slot_create(%L);', left(p_slot, 55) || '_walhook');
        RETURN NEXT;
        RETURN;
    END IF;
    IF v_slot ->> 'wal_status' = 'lost' OR (v_slot ->> 'invalidation_reason') IS NOT NULL THEN
        name := 'slot_lost';
        v_reason := v_slot ->> 'invalidation_reason';
        problem := format('%s is lost: %s. What was committed after %s cannot be published from it any more; walhook backfill sends '
                          'the rows that a table has now', object,
                          CASE v_reason
                              WHEN 'idle_timeout' THEN format('nobody streamed for longer than idle_replication_slot_timeout (%s) '
                                  'allows', current_setting('idle_replication_slot_timeout', true))
                              WHEN 'rows_removed' THEN 'rows of the catalogs that it needs are removed'
                              WHEN 'wal_level_insufficient' THEN 'wal_level was too low on the primary'
                              ELSE format('PostgreSQL has removed WAL that it needed (max_slot_wal_keep_size is %s)',
                                          current_setting('max_slot_wal_keep_size')) END,
                          coalesce(v_slot ->> 'confirmed_flush_lsn', '0/0'));
        remedy := v_again;
        RETURN NEXT;
    END IF;
    IF (v_slot ->> 'two_phase')::boolean THEN
        name := 'slot_two_phase';
        problem := format('%s decodes prepared transactions (two_phase), which walhook publishes only once they are committed', object);
        remedy := format('SELECT pg_copy_logical_replication_slot(%1$L, %2$L); SELECT pg_drop_replication_slot(%1$L); '
                         'SELECT pg_copy_logical_replication_slot(%2$L, %1$L); SELECT pg_drop_replication_slot(%2$L);',
                         p_slot, left(p_slot, 59) || '_tmp');
        RETURN NEXT;
    END IF;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_check_slot IS 'walhook: the part of rule_cdc_check about the slot';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_check_publications(p_publication TEXT DEFAULT 'walhook')
RETURNS TABLE (name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_own CONSTANT JSONB := '{"_inserts": ["rule_webhook_events", "rule_cdc_backfill_rows"],
                              "_changes": ["rule_webhooks", "rule_webhook_links", "rule_nats_config", "rule_nats_streams",
                                           "rule_cdc_emit_keys"]}';
    v_part TEXT;
    v_publication RECORD;
    v_name TEXT;
    v_row RECORD;
    v_again TEXT;
    v_why TEXT;
    -- What puts the linked tables into a publication that is made anew.
    v_place CONSTANT TEXT := coalesce((
        SELECT string_agg(DISTINCT format('SELECT public.rule_cdc_publication_place(%L, %L, true);', c.oid::regclass, p_publication), ' ')
        FROM public.rule_webhook_links l
        JOIN pg_namespace n ON n.nspname = l.table_schema
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name), '');
BEGIN
    FOREACH v_part IN ARRAY ARRAY['_inserts', '_changes'] LOOP
        v_name := p_publication || v_part;
        object := format('publication %s', to_json(v_name));
        severity := 'fatal';
        SELECT p.*, to_jsonb(p) ->> 'puballtables' AS everything INTO v_publication FROM pg_publication p WHERE p.pubname = v_name;
        IF NOT FOUND THEN
            name := 'publication_missing';
            problem := format('%s does not exist in database %s', object, to_json(current_database()));
            remedy := rtrim(format('SELECT public.rule_cdc_publication_create(%L); %s', p_publication, v_place));
            RETURN NEXT;
            CONTINUE;
        END IF;
        -- In one transaction, or changes from between could not be decoded.
        v_again := format('BEGIN; DROP PUBLICATION %I; SELECT public.rule_cdc_publication_create(%L); %s COMMIT;', v_name,
                          p_publication, v_place);
        IF v_publication.everything::boolean THEN
            name := 'publication_all_tables';
            problem := format('%s is FOR ALL TABLES: it would publish secrets, and the history of its own publishing', object);
            remedy := v_again;
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL THEN
            FOR v_row IN EXECUTE 'SELECT n.nspname FROM pg_catalog.pg_publication_namespace pn
                JOIN pg_catalog.pg_namespace n ON n.oid = pn.pnnspid WHERE pn.pnpubid = $1 ORDER BY 1' USING v_publication.oid
            LOOP
                name := 'publication_schema';
                problem := format('%s publishes the whole schema %s: it takes in tables that nobody linked', object,
                                  to_json(v_row.nspname));
                remedy := format('ALTER PUBLICATION %I DROP TABLES IN SCHEMA %I;', v_name, v_row.nspname);
                RETURN NEXT;
            END LOOP;
        END IF;
        IF NOT v_publication.pubinsert OR NOT v_publication.pubviaroot OR v_publication.pubupdate <> (v_part = '_changes')
           OR v_publication.pubdelete <> (v_part = '_changes') OR v_publication.pubtruncate <> (v_part = '_changes')
        THEN
            name := 'publication_options';
            problem := format('%s has other options than walhook gave it: events would be missing, or come of a partition in place of '
                              'its table', object);
            remedy := format('ALTER PUBLICATION %I SET (publish = %L, publish_via_partition_root = true);', v_name,
                             CASE v_part WHEN '_inserts' THEN 'insert' ELSE 'insert, update, delete, truncate' END);
            RETURN NEXT;
        END IF;
        -- Our own tables that must be in it.
        FOR v_row IN
            SELECT c.oid::regclass AS oid, c.relname, c.relpersistence, c.relreplident FROM jsonb_array_elements_text(v_own -> v_part) t
            JOIN pg_class c ON c.relnamespace = 'public'::regnamespace AND c.relname = t.value ORDER BY c.relname
        LOOP
            IF v_row.relpersistence = 'u' THEN
                name := 'own_table_unlogged';
                problem := format('table public.%s is unlogged: nothing that is written into it reaches walhook', v_row.relname);
                remedy := format('ALTER TABLE %s SET LOGGED; ALTER PUBLICATION %I ADD TABLE ONLY %1$s;', v_row.oid, v_name);
                RETURN NEXT;
            ELSIF NOT EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = v_publication.oid AND r.prrelid = v_row.oid) THEN
                name := 'publication_own_table';
                problem := format('%s lacks walhook''s own table public.%s: what is written into it would not take effect', object,
                                  v_row.relname);
                remedy := format('ALTER PUBLICATION %I ADD TABLE ONLY %s;', v_name, v_row.oid);
                RETURN NEXT;
            ELSIF v_part = '_changes' AND walhook.rule_cdc_replica_identity(v_row.oid) IS NULL THEN
                name := 'own_table_identity';
                problem := format('walhook''s own table public.%s has no replica identity: UPDATE and DELETE on it fail', v_row.relname);
                remedy := format('ALTER TABLE %s REPLICA IDENTITY DEFAULT;', v_row.oid);
                RETURN NEXT;
            END IF;
        END LOOP;
        FOR v_row IN
            SELECT r.prrelid::regclass AS oid, (to_jsonb(r) ->> 'prqual') IS NOT NULL AS is_filtered,
                   (to_jsonb(r) ->> 'prattrs') IS NOT NULL AS is_cut,
                   n.nspname = 'public' AND v_own -> v_part ? c.relname AS is_own,
                   EXISTS (SELECT FROM public.rule_webhook_links l WHERE l.table_schema = n.nspname AND l.table_name = c.relname)
                       AS is_linked,
                   -- Of most tables this tells that they can be linked, without a call for each of thousands.
                   c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384
                       AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND c.relname NOT LIKE 'rule\_%'
                       AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
                       AS is_plain
            FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE r.prpubid = v_publication.oid ORDER BY n.nspname, c.relname
        LOOP
            -- Of our own tables everything depends on it; another table costs no other.
            severity := CASE WHEN v_row.is_own THEN 'fatal' ELSE 'error' END;
            v_again := format('BEGIN; ALTER PUBLICATION %I DROP TABLE ONLY %s; ALTER PUBLICATION %1$I ADD TABLE ONLY %2$s; COMMIT;',
                              v_name, v_row.oid);
            v_why := CASE WHEN NOT v_row.is_own AND NOT v_row.is_plain THEN walhook.rule_cdc_table_problem(v_row.oid) END;
            IF v_why IS NOT NULL THEN
                name := 'publication_denied_table';
                severity := 'fatal';
                problem := format('%s has table %s in it: %s', object, v_row.oid, v_why);
                remedy := format('ALTER PUBLICATION %I DROP TABLE ONLY %s;', v_name, v_row.oid);
                RETURN NEXT;
                CONTINUE;
            END IF;
            IF v_row.is_filtered THEN
                name := 'publication_row_filter';
                problem := format('%s has a row filter on table %s: rows outside it are not published', object, v_row.oid);
                remedy := v_again;
                RETURN NEXT;
            END IF;
            IF v_row.is_cut THEN
                name := 'publication_columns';
                problem := format('%s has a list of columns for table %s: the others are not published', object, v_row.oid);
                remedy := v_again;
                RETURN NEXT;
            END IF;
            IF NOT v_row.is_own AND NOT v_row.is_linked THEN
                name := 'publication_not_linked';
                severity := 'note';
                problem := format('%s has table %s in it, which no link names', object, v_row.oid);
                remedy := format('ALTER PUBLICATION %I DROP TABLE ONLY %s;', v_name, v_row.oid);
                RETURN NEXT;
            END IF;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_check_publications IS 'walhook: the part of rule_cdc_check about the two publications';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_check_links(p_publication TEXT DEFAULT 'walhook', p_link_id INTEGER DEFAULT NULL)
RETURNS TABLE (link_id INTEGER, name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l RECORD;
    v_problem RECORD;
    v_written TEXT;
    v_wanted TEXT;
    v_subject TEXT;
    v_taken TEXT[];
    v_other RECORD;
    -- The streams of each configuration: a list of names and patterns, in their order.
    v_streams CONSTANT JSONB := coalesce((
        SELECT jsonb_object_agg(c.config_id, (
            SELECT coalesce(jsonb_agg(jsonb_build_object('name', s.stream_name, 'pattern', p) ORDER BY s.place), '[]')
            FROM public.rule_nats_streams_of(c.config_id) WITH ORDINALITY s (stream_name, subjects, has_row, place), unnest(s.subjects) p))
        FROM public.rule_nats_config c), '{}');
    v_default CONSTANT INTEGER := (SELECT d.config_id FROM public.rule_nats_config d WHERE d.config_name = 'default');
    v_shard CONSTANT TEXT := walhook.rule_cdc_shard_of(p_publication); -- made by 027
BEGIN
    FOR l IN
        -- Thousands of links may name the same table in the same way: that is looked at once.
        WITH linked AS MATERIALIZED (
            SELECT k.*, t.oid AS table_oid,
                   md5(ROW(t.oid, k.operations, k.subject_template, k.columns, k.filter, k.when_changed, k.include_old)::text) AS kind
            FROM public.rule_webhook_links k
            LEFT JOIN (SELECT c.oid, c.relname, n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace) t
                ON t.nspname = k.table_schema AND t.relname = k.table_name
            WHERE p_link_id IS NULL OR k.link_id = p_link_id
        ), kinds AS MATERIALIZED (
            SELECT DISTINCT ON (i.kind) i.* FROM linked i WHERE i.table_oid IS NOT NULL
        ), found AS MATERIALIZED (
            SELECT i.kind, jsonb_agg(to_jsonb(p) ORDER BY p.place) AS problems
            FROM kinds i
            CROSS JOIN LATERAL walhook.rule_cdc_link_problems(i.table_oid::regclass, i.operations, i.subject_template, i.columns,
                                                             i.filter, i.when_changed, i.include_old, p_publication)
                WITH ORDINALITY p (name, is_error, problem, remedy, place)
            GROUP BY i.kind
        ), published AS MATERIALIZED (
            SELECT r.prrelid, array_agg(p.pubname::text) AS publications
            FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
            WHERE p.pubname IN (p_publication || '_inserts', p_publication || '_changes')
            GROUP BY r.prrelid
        )
        SELECT i.*, f.problems, coalesce(b.publications, '{}') AS publications, w.webhook_name, w.enabled AS webhook_enabled,
               coalesce(i.shard, w.shard, 'main') AS owner,
               w.nats_enabled, w.publish_mode, c.config_id, c.config_name, c.enabled AS config_enabled, c.jetstream_enabled
        FROM linked i
        JOIN public.rule_webhooks w ON w.webhook_id = i.webhook_id
        LEFT JOIN public.rule_nats_config c ON c.config_id = coalesce(w.nats_config_id, v_default)
        LEFT JOIN published b ON b.prrelid = i.table_oid
        LEFT JOIN found f ON f.kind = i.kind
        ORDER BY i.link_id
    LOOP
        link_id := l.link_id;
        v_written := format('%I.%I', l.table_schema, l.table_name);
        object := format('link %s of webhook %s to %s', l.link_id, to_json(left(l.webhook_name, 200)), v_written);
        severity := 'warning';
        IF NOT l.enabled THEN
            name := 'link_disabled';
            problem := 'the link is disabled';
            remedy := format('UPDATE public.rule_webhook_links SET enabled = true WHERE link_id = %s;', l.link_id);
            RETURN NEXT;
        END IF;
        IF NOT coalesce(l.webhook_enabled, false) THEN
            name := 'webhook_disabled';
            problem := 'the webhook is disabled';
            remedy := format('SELECT public.rule_webhook_update(%s, p_enabled => true);', l.webhook_id);
            RETURN NEXT;
        END IF;
        IF NOT coalesce(l.nats_enabled, false) OR coalesce(l.publish_mode, 'queue') NOT IN ('nats', 'both') THEN
            name := 'webhook_not_published';
            problem := 'the webhook does not publish to NATS';
            remedy := format('SELECT public.rule_webhook_enable_nats(%s);', l.webhook_id);
            RETURN NEXT;
        ELSIF l.config_name IS NULL THEN
            severity := 'error';
            name := 'config_missing';
            problem := 'the webhook has no NATS configuration';
            remedy := 'SELECT public.rule_nats_configure(''default'', ''nats://127.0.0.1:4222''); -- with your server''s address';
            RETURN NEXT;
        ELSIF NOT coalesce(l.config_enabled, true) THEN
            name := 'config_disabled';
            problem := format('NATS config %L is disabled', l.config_name);
            remedy := format('UPDATE public.rule_nats_config SET enabled = true WHERE config_name = %L;', l.config_name);
            RETURN NEXT;
        ELSIF coalesce(l.jetstream_enabled, true) THEN
            FOREACH v_subject IN ARRAY coalesce(walhook.rule_cdc_link_subjects(l.webhook_id, l.table_schema, l.table_name,
                                                                              l.operations, l.subject_template), '{}')
            LOOP
                v_taken := ARRAY(
                    SELECT s.stream ->> 'name' FROM jsonb_array_elements(v_streams -> l.config_id::text) WITH ORDINALITY s (stream, place)
                    WHERE walhook.rule_nats_subjects_overlap(s.stream ->> 'pattern', v_subject)
                    GROUP BY 1 ORDER BY min(s.place));
                IF v_taken = '{}' THEN
                    severity := 'error';
                    name := 'stream_missing';
                    problem := format('no stream of NATS config %L takes %s', l.config_name, v_subject);
                    remedy := format('SELECT public.rule_nats_stream_create(%L, ARRAY[%L], %L);',
                                     'WALHOOK_' || l.webhook_id || '_' || l.link_id, v_subject, l.config_name);
                    RETURN NEXT;
                ELSIF cardinality(v_taken) > 1 AND v_subject !~ '\*' THEN
                    severity := 'warning';
                    name := 'stream_ambiguous';
                    problem := format('more than one stream takes %s: %s. The first one has it; narrow the others',
                                      v_subject, array_to_string(v_taken, ', '));
                    remedy := NULL;
                    RETURN NEXT;
                ELSIF NOT EXISTS (SELECT FROM jsonb_array_elements(v_streams -> l.config_id::text) s
                                  WHERE walhook.rule_nats_subject_covers(s ->> 'pattern', v_subject)) THEN
                    severity := 'note';
                    name := 'stream_partial';
                    problem := format('%s takes only some of %s', array_to_string(v_taken, ', '), v_subject);
                    remedy := NULL;
                    RETURN NEXT;
                END IF;
            END LOOP;
        END IF;

        severity := 'error';
        IF l.table_oid IS NULL THEN
            name := 'table_missing';
            problem := format('there is no table %s (any more)', v_written);
            remedy := format('DELETE FROM public.rule_webhook_links WHERE link_id = %s;', l.link_id);
            -- Renamed, if it is the one table in our publications that no link names.
            SELECT count(*) AS many, min(n.nspname) AS nspname, min(c.relname) AS relname INTO v_other
            FROM pg_publication_rel r
            JOIN pg_publication p ON p.oid = r.prpubid AND p.pubname IN (p_publication || '_inserts', p_publication || '_changes')
            JOIN pg_class c ON c.oid = r.prrelid
            JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE walhook.rule_cdc_table_problem(c.oid) IS NULL
              AND NOT EXISTS (SELECT FROM public.rule_webhook_links k WHERE k.table_schema = n.nspname AND k.table_name = c.relname);
            IF v_other.many = 1 THEN
                problem := problem || format(': it may be %I.%I now, which is published and which no link names', v_other.nspname,
                                             v_other.relname);
                remedy := format('UPDATE public.rule_webhook_links SET table_schema = %L, table_name = %L WHERE link_id = %s;',
                                 v_other.nspname, v_other.relname, l.link_id);
            END IF;
            RETURN NEXT;
            CONTINUE;
        END IF;
        FOR v_problem IN
            SELECT p.*, e.place FROM jsonb_array_elements(coalesce(l.problems, '[]')) WITH ORDINALITY e (problem, place)
            CROSS JOIN LATERAL jsonb_to_record(e.problem) AS p (name TEXT, is_error BOOLEAN, problem TEXT, remedy TEXT)
            UNION ALL
            SELECT m.name, m.is_error, m.problem, m.remedy, 1000 + m.place
            FROM walhook.rule_cdc_message_problems(
                l.webhook_id, l.table_oid::regclass, l.operations, l.columns, l.include_old, l.payload_column, l.message_id_column,
                l.headers_columns) WITH ORDINALITY m (name, is_error, problem, remedy, place)
            -- Of links that are not such it is not called: there may be thousands.
            WHERE (l.payload_column IS NOT NULL OR l.message_id_column IS NOT NULL OR l.headers_columns IS NOT NULL)
              AND NOT coalesce(l.problems @> '[{"name": "table_unfit"}]', false)
            UNION ALL
            SELECT m.name, m.is_error, m.problem, m.remedy, 2000 + m.place
            FROM walhook.rule_cdc_mask_problems(
                l.table_oid::regclass, l.columns, l.subject_template, l.trace_column, l.payload_column, l.rename, l.mask, l.link_id,
                l.mask_columns) WITH ORDINALITY m (name, is_error, problem, remedy, place) -- made by 022
            WHERE (l.mask IS NOT NULL OR l.rename IS NOT NULL) AND NOT coalesce(l.problems @> '[{"name": "table_unfit"}]', false)
            UNION ALL
            -- rule_webhook_link_table refuses it; the partition was attached later.
            SELECT 'partition_linked', true,
                   format('it is a partition of %s, which is linked too: its changes come as those of that table, and this link gets '
                          'none%s. If it is to stay there, remove this link by rule_webhook_unlink_table', a.relid::regclass,
                          CASE WHEN l.mask IS NOT NULL THEN '; what its mask keeps back is left out of the events of that table' END),
                   format('ALTER TABLE %s DETACH PARTITION %s;', i.inhparent::regclass, l.table_oid::regclass), 3000
            FROM pg_inherits i
            JOIN pg_class child ON child.oid = i.inhrelid AND child.relispartition
            CROSS JOIN LATERAL pg_partition_ancestors(l.table_oid) a (relid)
            JOIN pg_class r ON r.oid = a.relid
            JOIN pg_namespace rn ON rn.oid = r.relnamespace
            WHERE i.inhrelid = l.table_oid AND a.relid <> l.table_oid
              AND EXISTS (SELECT FROM public.rule_webhook_links k WHERE k.table_schema = rn.nspname AND k.table_name = r.relname)
            ORDER BY 5
        LOOP
            name := v_problem.name;
            problem := v_problem.problem;
            remedy := v_problem.remedy;
            IF remedy NOT LIKE 'ALTER %' AND remedy NOT LIKE 'UPDATE %' THEN
                -- Advice, where the choice is the user's.
                problem := problem || '. ' || rtrim(remedy, '.');
                remedy := NULL;
            END IF;
            severity := CASE WHEN v_problem.is_error THEN 'error' WHEN name = 'mask_new_column' THEN 'warning' ELSE 'note' END;
            IF name = 'columns_missing' THEN
                -- A column that is gone from the list is refused when linking, and later costs nothing but itself.
                severity := 'note';
                problem := problem || '; events go on without it';
            END IF;
            RETURN NEXT;
        END LOOP;
        -- The check of its own shard looks at the publications.
        CONTINUE WHEN l.owner <> v_shard;
        severity := 'error';
        v_wanted := p_publication || CASE WHEN l.operations = '{insert}' THEN '_inserts' ELSE '_changes' END;
        -- Of a table that can never be linked, the problems above say so.
        IF NOT v_wanted = ANY (l.publications) AND NOT p_publication || '_changes' = ANY (l.publications)
           AND EXISTS (SELECT FROM pg_publication p WHERE p.pubname = v_wanted)
           AND NOT coalesce(l.problems @> '[{"name": "table_unfit"}]', false)
        THEN
            name := 'table_not_published';
            problem := format('the table is not in publication %I', v_wanted);
            remedy := format('ALTER PUBLICATION %I ADD TABLE ONLY %s;', v_wanted, l.table_oid::regclass);
            RETURN NEXT;
        ELSIF cardinality(l.publications) > 1 THEN
            severity := 'warning';
            name := 'table_published_twice';
            problem := 'the table is in both publications';
            remedy := format('SELECT public.rule_cdc_publication_place(%L, %L, true);', l.table_oid::regclass, p_publication);
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_check_links IS
    'walhook: the part of rule_cdc_check about links, of one or of all: the table, each of its partitions, replica identities, '
    'publication, subjects and streams';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_check_sessions(p_slot TEXT DEFAULT 'walhook')
RETURNS TABLE (name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_row RECORD;
    v_standbys TEXT[];
    -- Who streams; where nobody does, who asks.
    v_role CONSTANT OID := coalesce(
        (SELECT a.usesysid FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = p_slot),
        (SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user));
BEGIN
    FOR v_row IN
        SELECT c.oid::regclass AS oid, r.rolname,
               NOT (r.rolsuper OR r.rolbypassrls OR pg_has_role(r.oid, c.relowner, 'USAGE') AND NOT c.relforcerowsecurity) AS hides
        FROM pg_class c JOIN pg_roles r ON r.oid = v_role
        WHERE c.relnamespace IN ('public'::regnamespace, 'walhook'::regnamespace) AND c.relkind IN ('r', 'p') AND c.relrowsecurity
          AND walhook.rule_cdc_table_problem(c.oid) LIKE 'it is one of walhook''s own%'
        ORDER BY c.relname
    LOOP
        name := 'row_security';
        severity := CASE WHEN v_row.hides THEN 'fatal' ELSE 'note' END;
        object := format('table %s', v_row.oid);
        problem := format('row-level security is on for walhook''s own table %s, and %s role %s', v_row.oid,
                          CASE WHEN v_row.hides THEN 'hides rows from' ELSE 'does not apply to' END, to_json(v_row.rolname))
                   || CASE WHEN v_row.hides THEN '; ALTER ROLE ... BYPASSRLS lets it stay on' ELSE '' END;
        remedy := format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY;', v_row.oid);
        RETURN NEXT;
    END LOOP;

    -- The state is NULL for whom pg_read_all_stats is not granted to, such as walhook_streamer; then the names tell.
    FOR v_row IN
        SELECT r.sync_state,
               EXISTS (SELECT FROM regexp_matches(regexp_replace(current_setting('synchronous_standby_names'),
                                                                 '^\s*((first|any)\s+)?\d+\s*\(', '', 'i'),
                                                  '"((?:[^"]|"")*)"|([^\s,()"]+)', 'g') t
                       WHERE coalesce(replace(t[1], '""', '"'), t[2]) = '*'
                          OR lower(coalesce(replace(t[1], '""', '"'), t[2])) = lower(a.application_name)) AS is_named
        FROM pg_replication_slots s
        JOIN pg_stat_activity a ON a.pid = s.active_pid
        LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
        WHERE s.slot_name = p_slot
    LOOP
        CONTINUE WHEN coalesce(v_row.sync_state = 'async', NOT coalesce(v_row.is_named, false));
        name := 'walsender_sync';
        severity := CASE v_row.sync_state WHEN 'potential' THEN 'warning' ELSE 'error' END;
        object := format('walsender of replication slot %s', to_json(p_slot));
        problem := format('synchronous_standby_names = %s takes walhook for a standby (%s): every commit of this server waits until '
                          'walhook has its events stored', to_json(current_setting('synchronous_standby_names')),
                          coalesce(v_row.sync_state, 'by its name'));
        IF v_row.sync_state IS NULL THEN
            -- Nor are other standbys' names to be seen.
            problem := problem || '. Name the real standbys there; rule_cdc_check as a superuser has the statement';
            remedy := NULL;
            RETURN NEXT;
            CONTINUE;
        END IF;
        v_standbys := ARRAY(SELECT DISTINCT quote_ident(o.application_name) FROM pg_stat_replication o
                            WHERE o.application_name <> ''
                              AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = o.pid AND s.slot_type = 'logical')
                            ORDER BY 1);
        remedy := format('ALTER SYSTEM SET synchronous_standby_names = %L; SELECT pg_reload_conf();',
                         CASE WHEN v_standbys = '{}' THEN '' ELSE format('ANY 1 (%s)', array_to_string(v_standbys, ', ')) END);
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_check_sessions IS
    'walhook: the part of rule_cdc_check about who streams: row-level security, and whether commits wait for it';

-- It had two parameters; with a third beside it a call with two would fit both.
DROP FUNCTION IF EXISTS public.rule_cdc_check(TEXT, TEXT);
CREATE OR REPLACE FUNCTION public.rule_cdc_check(
    p_slot TEXT DEFAULT 'walhook', p_publication TEXT DEFAULT 'walhook', p_links BOOLEAN DEFAULT true
) RETURNS TABLE (name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_hides_rows BOOLEAN := false;
BEGIN
    RETURN QUERY SELECT f.* FROM walhook.rule_cdc_check_slot(p_slot) f;
    FOR name, severity, object, problem, remedy IN SELECT f.* FROM walhook.rule_cdc_check_sessions(p_slot) f LOOP
        v_hides_rows := v_hides_rows OR (name = 'row_security' AND severity = 'fatal');
        RETURN NEXT;
    END LOOP;
    -- What follows reads walhook's own tables.
    IF v_hides_rows THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT f.* FROM walhook.rule_cdc_check_publications(p_publication) f;
    IF p_links THEN
        RETURN QUERY SELECT l.name, l.severity, l.object, l.problem, l.remedy FROM walhook.rule_cdc_check_links(p_publication) l;
        RETURN QUERY SELECT f.* FROM walhook.rule_cdc_check_schemas() f; -- made by 022
        RETURN QUERY SELECT f.* FROM walhook.rule_cdc_check_rows() f; -- made by 016
        RETURN QUERY SELECT f.* FROM walhook.rule_cdc_check_functions() f;
        RETURN QUERY SELECT f.* FROM walhook.rule_cdc_check_receivers() f; -- made by 030
        RETURN QUERY SELECT f.* FROM walhook.rule_cdc_check_shards(p_publication) f; -- made by 027
        RETURN QUERY SELECT f.* FROM walhook.rule_cdc_check_columns() f; -- made by 029
    END IF;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_check IS
    'walhook: what is wrong with the set-up, each with SQL that sets it right. severity: fatal (walhook run does not start), error '
    '(something is not published), warning, note. p_links: also look at each link, none of which keeps walhook run from starting';

DO $grants$
DECLARE
    v_role TEXT;
    f RECORD;
BEGIN
    FOR f IN
        SELECT p.oid FROM pg_proc p WHERE p.pronamespace IN ('public'::regnamespace, 'walhook'::regnamespace)
          AND (p.proname LIKE 'rule\_cdc\_check%' OR p.proname IN ('rule_cdc_partitions', 'rule_cdc_generated_identity'))
    LOOP
        EXECUTE format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', f.oid::regprocedure);
        FOR v_role IN SELECT rolname FROM pg_roles WHERE rolname IN ('walhook_streamer', 'walhook_operator') LOOP
            EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', f.oid::regprocedure, v_role);
        END LOOP;
    END LOOP;
END
$grants$;

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('014', 'walhook: the check of the whole set-up')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
