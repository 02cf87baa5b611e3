-- 022: what leaves the database of a row: names of columns in the message, and masked values. And links of whole schemas.
--
-- Comes in: 008, whose rule_webhook_links has the columns and whose rule_webhook_link_table writes them; 014 and 016, which check links
-- and rows. Goes out: what is wrong with a mask, and the trigger that notes for which columns a mask was set; the links of schemas, and
-- the event trigger by which tables join them in the transaction that creates them.
-- Always holds: a mask is set for the columns that its table has then, in their order. walhook run applies it to these and to no
-- other, so that a column that is renamed or comes later does not leave. The key of the hashes is not in the database. No statement
-- of a user fails because of the event trigger, and no table joins that who linked its schema could not link. Running this
-- file twice changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

-- Once: a statement that finds nothing to do waits for no lock.
DO $schema$
BEGIN
    IF EXISTS (SELECT FROM public.rule_cdc_migrations m WHERE m.version = '022') THEN
        RETURN;
    END IF;
    CREATE TABLE IF NOT EXISTS public.rule_webhook_schema_links (
        schema_link_id SERIAL PRIMARY KEY,
        webhook_id INTEGER NOT NULL REFERENCES public.rule_webhooks (webhook_id) ON DELETE CASCADE,
        table_schema TEXT NOT NULL,
        table_pattern TEXT NOT NULL DEFAULT '%',
        except_patterns TEXT[] NOT NULL DEFAULT '{}',
        operations TEXT[] NOT NULL DEFAULT '{insert,update,delete}',
        subject_template TEXT,
        include_old BOOLEAN NOT NULL DEFAULT false,
        publication TEXT NOT NULL DEFAULT 'walhook',
        linked_by TEXT NOT NULL DEFAULT CURRENT_USER,
        created_at TIMESTAMPTZ DEFAULT now(),
        last_problem TEXT,
        last_problem_at TIMESTAMPTZ,
        UNIQUE (webhook_id, table_schema),
        CONSTRAINT valid_schema_operations CHECK (operations <@ '{insert,update,delete,truncate}' AND cardinality(operations) > 0)
    );
    COMMENT ON TABLE public.rule_webhook_schema_links IS
        'Links of whole schemas: which tables join by themselves, and how they are linked. rule_webhook_link_schema writes it';
    COMMENT ON COLUMN public.rule_webhook_schema_links.table_pattern IS 'Names of tables that are linked, as LIKE has them';
    COMMENT ON COLUMN public.rule_webhook_schema_links.except_patterns IS 'Names of tables that are not, as LIKE has them';
    COMMENT ON COLUMN public.rule_webhook_schema_links.linked_by IS
        'The role that linked the schema: a table joins only if this role could link it';
    COMMENT ON COLUMN public.rule_webhook_schema_links.last_problem IS
        'The last error of the event trigger, which fails no statement; the tables that it could not link are in rule_cdc_check()';
    ALTER TABLE public.rule_webhook_links ADD COLUMN IF NOT EXISTS schema_link_id INTEGER;
    COMMENT ON COLUMN public.rule_webhook_links.schema_link_id IS
        'The link of a schema by which this one came (rule_webhook_schema_links); NULL: the table was linked by itself';
END
$schema$;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

CREATE OR REPLACE FUNCTION walhook.rule_cdc_mask_shape(
    p_mask JSONB,
    p_rename JSONB,
    p_payload_column TEXT,
    OUT problem TEXT,
    OUT advice TEXT
) LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_mask IS NOT NULL THEN
        advice := 'Write it as an object of columns and words: {"email": "hash", "ssn": "drop", "card": "last4", "note": "null"}.';
        IF jsonb_typeof(p_mask) <> 'object' THEN
            problem := format('its mask is a JSON %s', jsonb_typeof(p_mask));
            RETURN;
        ELSIF p_mask = '{}' THEN
            problem := 'its mask is empty';
            advice := 'Leave mask NULL where nothing is masked.';
            RETURN;
        END IF;
        SELECT format('its mask of the column %s is %s, which is none of hash, drop, last4, null', to_json(left(m.key, 100)),
                      left(m.value::text, 100))
        INTO problem
        FROM jsonb_each(p_mask) m WHERE m.value NOT IN ('"hash"', '"drop"', '"last4"', '"null"') ORDER BY m.key LIMIT 1;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF p_rename IS NOT NULL THEN
        advice := 'Write it as an object of columns and names: {"email": "mail"}.';
        IF jsonb_typeof(p_rename) <> 'object' THEN
            problem := format('its rename is a JSON %s', jsonb_typeof(p_rename));
            RETURN;
        END IF;
        SELECT format('its rename of the column %s is %s', to_json(left(r.key, 100)), left(r.value::text, 100)) INTO problem
        FROM jsonb_each(p_rename) r WHERE jsonb_typeof(r.value) <> 'string' OR r.value = '""' ORDER BY r.key LIMIT 1;
        IF FOUND THEN
            RETURN;
        END IF;
        SELECT format('its rename gives the name %s to more than one column', to_json(left(r.value, 100))) INTO problem
        FROM jsonb_each_text(p_rename) r GROUP BY r.value HAVING count(*) > 1 ORDER BY 1 LIMIT 1;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    advice := NULL;
    IF p_payload_column IS NOT NULL AND (p_mask IS NOT NULL OR p_rename IS NOT NULL) THEN
        problem := format('its message is the column %s, to which no mask and no rename apply', to_json(left(p_payload_column, 100)));
        advice := 'Leave payload_column NULL, or rename and mask (p_mask => ''{}'' removes the mask of a link).';
    END IF;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_mask_shape IS
    'walhook: why these cannot be the mask and the names of a link, whatever its table, or NULL where they can';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_mask_columns(p_table REGCLASS)
RETURNS TEXT[] LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- Without those that are generated: they do not leave, unless the mask names them.
    SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
    WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
$$;
COMMENT ON FUNCTION walhook.rule_cdc_mask_columns IS
    'walhook: the columns of a table for which a mask is set now, in their order';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_mask_problems(
    p_table REGCLASS,
    p_columns TEXT[],
    p_subject_template TEXT,
    p_trace_column TEXT,
    p_payload_column TEXT,
    p_rename JSONB,
    p_mask JSONB,
    p_link_id INTEGER DEFAULT NULL,
    p_mask_columns TEXT[] DEFAULT NULL
) RETURNS TABLE (name TEXT, is_error BOOLEAN, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_columns CONSTANT TEXT[] := coalesce(walhook.rule_cdc_mask_columns(p_table), '{}');
    v_all CONSTANT TEXT[] := ARRAY(SELECT a.attname::text FROM pg_attribute a
                                   WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum);
    v_mask JSONB := coalesce(p_mask, '{}');
    v_known TEXT[];
    v_new TEXT[];
    v_gone TEXT[];
    v_row RECORD;
BEGIN
    IF p_mask IS NULL AND p_rename IS NULL THEN
        RETURN;
    END IF;
    is_error := true;
    SELECT s.problem, s.advice INTO problem, remedy FROM walhook.rule_cdc_mask_shape(p_mask, p_rename, p_payload_column) s;
    IF problem IS NOT NULL THEN
        name := 'mask_refused';
        RETURN NEXT;
        RETURN;
    END IF;

    -- A link that is there: whether its mask still fits.
    IF p_mask IS NOT NULL AND p_link_id IS NOT NULL THEN
        v_known := coalesce(p_mask_columns, '{}');
        v_gone := ARRAY(SELECT k FROM jsonb_object_keys(p_mask) k WHERE k = ANY (v_known) AND k <> ALL (v_all) ORDER BY array_position(v_known, k));
        v_new := ARRAY(SELECT c FROM unnest(v_columns) WITH ORDINALITY u (c, n) WHERE c <> ALL (v_known) AND NOT p_mask ? c ORDER BY n);
        IF v_gone <> '{}' OR v_known = '{}'
           OR ARRAY(SELECT c FROM unnest(v_all) WITH ORDINALITY u (c, n) WHERE c = ANY (v_known) ORDER BY n)
              <> ARRAY(SELECT c FROM unnest(v_known) WITH ORDINALITY u (c, n) WHERE c = ANY (v_all) ORDER BY n)
        THEN
            name := 'mask_broken';
            problem := CASE WHEN v_gone <> '{}'
                THEN format('its mask names %s, which the table does not have any more', array_to_string(v_gone, ', '))
                ELSE format('its mask was set for the columns %s, and the table has %s now', array_to_string(v_known, ', '),
                            array_to_string(v_columns, ', ')) END
                || ': nothing of its rows leaves';
            -- What has taken the place of a masked column stays masked: as that was, if there is one of each; otherwise it is left out.
            remedy := format('UPDATE public.rule_webhook_links SET mask = %L WHERE link_id = %s;', v_mask - v_gone || coalesce((
                SELECT jsonb_object_agg(c, CASE WHEN cardinality(v_new) = 1 AND cardinality(v_gone) = 1 THEN p_mask -> v_gone[1]
                                                ELSE '"drop"' END)
                FROM unnest(v_new) c), '{}'), p_link_id);
            IF v_mask - v_gone = '{}' AND v_new = '{}' THEN
                remedy := format('UPDATE public.rule_webhook_links SET mask = NULL WHERE link_id = %s;', p_link_id);
            END IF;
            RETURN NEXT;
        ELSIF v_new <> '{}' THEN
            is_error := false;
            name := 'mask_new_column';
            problem := format('the columns %s have come since its mask was set, and are left out', array_to_string(v_new, ', '));
            remedy := format('UPDATE public.rule_webhook_links SET mask = mask WHERE link_id = %s;', p_link_id);
            RETURN NEXT;
            is_error := true;
        END IF;
    ELSE
        FOR problem IN
            SELECT format('its mask names %s, which the table does not have', to_json(left(k, 100)))
            FROM jsonb_object_keys(v_mask) k WHERE k <> ALL (v_all) ORDER BY k
        LOOP
            name := 'mask_refused';
            remedy := format('The columns are %s.', array_to_string(v_all, ', '));
            RETURN NEXT;
        END LOOP;
    END IF;

    FOR problem IN
        SELECT format('%s has the column %s, which its mask keeps back', used.place, to_json(left(used.c, 100)))
        FROM (SELECT 'its subject template' AS place, t[1] AS c FROM regexp_matches(p_subject_template, '\{([^{}]*)\}', 'g') t
              WHERE t[1] NOT IN ('schema', 'table', 'op')
              UNION ALL SELECT 'its trace_column', p_trace_column) used
        WHERE v_mask ? used.c ORDER BY 1
    LOOP
        name := 'mask_refused';
        remedy := 'Subjects and headers have values as they are: take the column out of them, or out of the mask.';
        RETURN NEXT;
    END LOOP;
    FOR v_row IN
        SELECT a.attname::text AS column_name, format_type(a.atttypid, NULL) AS type_name
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND v_mask ->> a.attname::text = 'last4'
          -- Of an extension's type nothing is known.
          AND (t.typcategory NOT IN ('S', 'N', 'U') OR t.oid IN ('json'::regtype, 'jsonb'::regtype, 'bytea'::regtype, 'money'::regtype))
        ORDER BY a.attnum
    LOOP
        name := 'mask_refused';
        problem := format('its mask shows the last characters of the column %s, whose type is %s', to_json(v_row.column_name), v_row.type_name);
        remedy := 'last4 is for texts and numbers; choose hash, drop or null.';
        RETURN NEXT;
    END LOOP;

    FOR v_row IN
        SELECT k.key AS column_name FROM jsonb_each_text(coalesce(p_rename, '{}')) k WHERE k.key <> ALL (v_all) ORDER BY 1
    LOOP
        name := 'rename_missing';
        is_error := p_link_id IS NULL;
        problem := format('its rename names %s, which the table does not have', to_json(left(v_row.column_name, 100)));
        remedy := format('The columns are %s.', array_to_string(v_columns, ', '));
        RETURN NEXT;
    END LOOP;
    is_error := true;
    FOR v_row IN
        SELECT n.name AS twice FROM (
            SELECT coalesce(p_rename ->> c, c) AS name FROM unnest(v_columns) c
            WHERE (p_columns IS NULL OR c = ANY (p_columns)) AND v_mask ->> c IS DISTINCT FROM 'drop'
              AND (p_link_id IS NULL OR p_mask IS NULL OR c = ANY (coalesce(p_mask_columns, '{}')))) n
        GROUP BY 1 HAVING count(*) > 1 ORDER BY 1
    LOOP
        name := 'rename_refused';
        problem := format('two of its columns would have the name %s in the message', to_json(left(v_row.twice, 100)));
        remedy := 'Give each column a name of its own in rename, or leave one of them out by columns.';
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_mask_problems IS
    'walhook: what is wrong with the mask and the names of a link (is_error), or deserves only a warning, each with a remedy; '
    'with p_link_id also whether the mask of that link still fits its table';

-- With its owner's rights: a role that may write links need not be allowed to call the functions that look at it.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_mask_bind()
RETURNS TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_table CONSTANT REGCLASS := to_regclass(format('%I.%I', NEW.table_schema, NEW.table_name));
    v_problem RECORD;
BEGIN
    IF NEW.mask IS NULL THEN
        NEW.mask_columns := NULL;
        RETURN NEW;
    END IF;
    -- A row that comes from a dump was bound before, and its table may not be there yet.
    IF v_table IS NULL OR TG_OP = 'INSERT' AND NEW.mask_columns IS NOT NULL THEN
        RETURN NEW;
    END IF;
    FOR v_problem IN
        SELECT p.problem, p.remedy
        FROM walhook.rule_cdc_mask_problems(v_table, NEW.columns, NEW.subject_template, NEW.trace_column, NEW.payload_column,
                                           NEW.rename, NEW.mask) p
        WHERE p.is_error LIMIT 1
    LOOP
        RAISE EXCEPTION 'link of webhook_id % to %: %', coalesce(NEW.webhook_id::text, 'NULL'), walhook.rule_cdc_sayable(v_table::text),
            walhook.rule_cdc_sayable(v_problem.problem)
            USING ERRCODE = 'check_violation', HINT = walhook.rule_cdc_sayable(v_problem.remedy), SCHEMA = 'public',
                  TABLE = TG_TABLE_NAME, COLUMN = 'mask', CONSTRAINT = TG_NAME;
    END LOOP;
    NEW.mask_columns := walhook.rule_cdc_mask_columns(v_table);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_mask_bind IS
    'walhook: trigger of rule_webhook_links: notes for which columns a mask is set, and refuses a mask that does not fit its table';

-- --------------------------------------------------------------------------------------------------------- whole schemas

-- The tables that a link of a schema wants, and which its webhook is not linked to. A partition comes with its root.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_schema_wanted(p_schema_link_id INTEGER DEFAULT NULL, p_tables OID[] DEFAULT NULL)
RETURNS TABLE (schema_link_id INTEGER, relid REGCLASS)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- Thousands of tables may be linked: what is costly is asked of the others only.
    WITH missing AS MATERIALIZED (
        SELECT s.schema_link_id, s.table_schema, s.table_pattern, s.except_patterns, c.oid, c.relname, c.relispartition
        FROM public.rule_webhook_schema_links s
        JOIN pg_namespace n ON n.nspname = s.table_schema
        JOIN pg_class c ON c.relnamespace = n.oid
        WHERE (p_schema_link_id IS NULL OR s.schema_link_id = p_schema_link_id)
          AND (p_tables IS NULL OR c.oid = ANY (p_tables))
          AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
          AND c.relname LIKE s.table_pattern AND NOT c.relname LIKE ANY (s.except_patterns)
          AND NOT EXISTS (SELECT FROM public.rule_webhook_links l
                          WHERE l.webhook_id = s.webhook_id AND l.table_schema = n.nspname AND l.table_name = c.relname)
          AND NOT (n.nspname = 'public' AND c.relname ~ '^rule_(webhook|nats|cdc)_' OR n.nspname ~ '^(pg_|information_schema$|walhook$)')
    )
    SELECT m.schema_link_id, m.oid::regclass
    FROM missing m
    -- Never ours, or one that an extension keeps.
    WHERE coalesce(walhook.rule_cdc_table_problem(m.oid) !~ 'walhook''s own tables', true)
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = m.oid AND d.deptype = 'e')
      AND NOT (m.relispartition AND EXISTS (
          SELECT FROM pg_partition_ancestors(m.oid) a (relid) JOIN pg_class r ON r.oid = a.relid JOIN pg_namespace rn ON rn.oid = r.relnamespace
          WHERE a.relid <> m.oid
            AND (EXISTS (SELECT FROM public.rule_webhook_links l WHERE l.table_schema = rn.nspname AND l.table_name = r.relname)
                 OR rn.nspname = m.table_schema AND r.relname LIKE m.table_pattern AND NOT r.relname LIKE ANY (m.except_patterns))))
    ORDER BY m.schema_link_id, m.relname
$$;
COMMENT ON FUNCTION walhook.rule_cdc_schema_wanted IS
    'walhook: the tables that links of schemas want and that are not linked, of one such link or of all, among these tables or all';

-- With its owner's rights: a role that may call it cannot write the name of another one.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_schema_link_put(
    p_webhook_id INTEGER,
    p_schema TEXT,
    p_pattern TEXT,
    p_except TEXT[],
    p_operations TEXT[],
    p_subject_template TEXT,
    p_include_old BOOLEAN,
    p_publication TEXT
) RETURNS INTEGER LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO public.rule_webhook_schema_links AS s
        (webhook_id, table_schema, table_pattern, except_patterns, operations, subject_template, include_old, publication, linked_by)
    VALUES (p_webhook_id, p_schema, p_pattern, p_except, p_operations, p_subject_template, p_include_old, p_publication,
            coalesce(nullif(current_setting('role', true), 'none'), session_user))
    ON CONFLICT (webhook_id, table_schema) DO UPDATE SET
        table_pattern = excluded.table_pattern, except_patterns = excluded.except_patterns, operations = excluded.operations,
        subject_template = excluded.subject_template, include_old = excluded.include_old, publication = excluded.publication,
        linked_by = excluded.linked_by, last_problem = NULL
    RETURNING s.schema_link_id
$$;
COMMENT ON FUNCTION walhook.rule_cdc_schema_link_put IS
    'walhook: a part of rule_webhook_link_schema: writes the row with the name of who calls it';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_schema_link_drop(p_schema_link_id INTEGER)
RETURNS VOID LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM public.rule_webhook_schema_links WHERE schema_link_id = p_schema_link_id
$$;
COMMENT ON FUNCTION walhook.rule_cdc_schema_link_drop IS 'walhook: a part of rule_webhook_unlink_schema: deletes the row';

-- With its owner's rights, as above.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_schema_exclude(p_webhook_id INTEGER, p_schema TEXT, p_table TEXT)
RETURNS VOID LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE public.rule_webhook_schema_links s
    SET except_patterns = s.except_patterns || regexp_replace(p_table, '([\\%_])', '\\\1', 'g')
    WHERE s.webhook_id = p_webhook_id AND s.table_schema = p_schema AND p_table LIKE s.table_pattern
      AND NOT p_table LIKE ANY (s.except_patterns)
$$;
COMMENT ON FUNCTION walhook.rule_cdc_schema_exclude IS
    'walhook: a part of rule_webhook_unlink_table: a table that is unlinked joins the link of its schema no more';

CREATE OR REPLACE FUNCTION public.rule_cdc_schema_link_tables(p_schema_link_id INTEGER)
RETURNS TABLE (table_name TEXT, link_id INTEGER, problem TEXT, remedy TEXT)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s RECORD;
    v_table REGCLASS;
BEGIN
    SELECT * INTO s FROM public.rule_webhook_schema_links l WHERE l.schema_link_id = p_schema_link_id;
    FOR v_table IN SELECT w.relid FROM walhook.rule_cdc_schema_wanted(p_schema_link_id) w LOOP
        table_name := v_table::text;
        problem := NULL;
        remedy := NULL;
        BEGIN
            link_id := public.rule_webhook_link_table(s.webhook_id, v_table, s.operations, s.subject_template,
                                                      p_include_old => s.include_old, p_publication => s.publication);
            UPDATE public.rule_webhook_links l SET schema_link_id = p_schema_link_id
            WHERE l.link_id = rule_cdc_schema_link_tables.link_id;
        EXCEPTION WHEN OTHERS THEN
            link_id := NULL;
            problem := SQLERRM;
            GET STACKED DIAGNOSTICS remedy = PG_EXCEPTION_HINT;
        END;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_schema_link_tables IS
    'walhook: links the tables that a link of a schema wants and that are not linked, with the rights of its caller. One row for each: '
    'the link, or why there is none and what to do';

CREATE OR REPLACE FUNCTION public.rule_webhook_link_schema(
    p_webhook INTEGER,
    p_schema TEXT,
    p_except TEXT[] DEFAULT '{}',
    p_like TEXT DEFAULT '%',
    p_operations TEXT[] DEFAULT '{insert,update,delete}',
    p_subject_template TEXT DEFAULT NULL,
    p_include_old BOOLEAN DEFAULT false,
    p_publication TEXT DEFAULT 'walhook'
) RETURNS TABLE (table_name TEXT, link_id INTEGER, problem TEXT, remedy TEXT)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_operations TEXT[] := ARRAY(SELECT o FROM unnest('{insert,update,delete,truncate}'::text[]) o WHERE o = ANY (p_operations));
    v_other TEXT;
    v_id INTEGER;
BEGIN
    IF NOT EXISTS (SELECT FROM public.rule_webhooks w WHERE w.webhook_id = p_webhook) THEN
        RAISE EXCEPTION 'Webhook % not found', coalesce(p_webhook::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT * FROM rule_webhook_list(); lists the webhooks.';
    ELSIF p_schema ~ '^(pg_|information_schema$|walhook$)' OR NOT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = p_schema) THEN
        RAISE EXCEPTION 'cannot link the schema %: %', coalesce(walhook.rule_cdc_quoted(p_schema), 'NULL'),
            CASE WHEN p_schema = 'walhook' THEN 'it is walhook''s own schema'
                 WHEN p_schema ~ '^(pg_|information_schema$)' THEN 'it is a system schema' ELSE 'there is none of that name' END
            USING ERRCODE = 'invalid_schema_name', HINT = 'SELECT nspname FROM pg_namespace; lists the schemas.';
    ELSIF coalesce(p_like, '') = '' OR array_position(p_except, NULL) IS NOT NULL OR '' = ANY (p_except) THEN
        RAISE EXCEPTION 'cannot link the schema %: a pattern of tables is NULL or empty', walhook.rule_cdc_quoted(p_schema)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Patterns are those of LIKE: p_like => ''order%'', p_except => ''{audit,tmp%}''.';
    ELSIF v_operations = '{}' OR NOT p_operations <@ '{insert,update,delete,truncate}' OR array_position(p_operations, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'cannot link the schema %: its operations are %', walhook.rule_cdc_quoted(p_schema),
            coalesce(walhook.rule_cdc_quoted(p_operations::text), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Choose from insert, update, delete, truncate: ARRAY[''insert'', ''update''].';
    END IF;
    IF p_subject_template IS NOT NULL AND walhook.rule_cdc_template_problem(p_subject_template) IS NOT NULL THEN
        RAISE EXCEPTION 'cannot link the schema %: its subject template % is not a subject: %', walhook.rule_cdc_quoted(p_schema),
            walhook.rule_cdc_quoted(p_subject_template), walhook.rule_cdc_sayable(walhook.rule_cdc_template_problem(p_subject_template))
            USING ERRCODE = 'invalid_parameter_value', HINT = 'For example: {schema}.{table}.{op}';
    END IF;
    v_other := walhook.rule_cdc_publication_problem(p_publication);
    IF v_other IS NOT NULL THEN
        RAISE EXCEPTION 'cannot link the schema %: %', walhook.rule_cdc_quoted(p_schema), walhook.rule_cdc_sayable(v_other)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = walhook.rule_cdc_sayable(format('SELECT rule_cdc_publication_create(%L); makes it.', p_publication));
    END IF;
    p_include_old := coalesce(p_include_old, false);
    -- Before the row of the schema's link, as rule_webhook_unlink_table takes them.
    LOCK TABLE public.rule_webhook_links IN SHARE UPDATE EXCLUSIVE MODE;
    v_id := walhook.rule_cdc_schema_link_put(p_webhook, p_schema, p_like, coalesce(p_except, '{}'), v_operations, p_subject_template,
                                            p_include_old, p_publication);
    -- What joined by another pattern before, and is not wanted any more.
    PERFORM walhook.rule_cdc_schema_unlink_tables(v_id, true);
    UPDATE public.rule_webhook_links l
    SET operations = v_operations, subject_template = p_subject_template, include_old = p_include_old
    WHERE l.schema_link_id = v_id
      AND (l.operations, l.include_old, l.subject_template) IS DISTINCT FROM (v_operations, p_include_old, p_subject_template);
    IF FOUND THEN
        PERFORM public.rule_cdc_publication_place(c.oid::regclass, p_publication, true)
        FROM public.rule_webhook_links l JOIN pg_namespace n ON n.nspname = l.table_schema
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name
        WHERE l.schema_link_id = v_id;
    END IF;
    RETURN QUERY SELECT * FROM public.rule_cdc_schema_link_tables(v_id);
    IF NOT EXISTS (SELECT FROM pg_event_trigger e WHERE e.evtname = 'walhook_schema_links' AND e.evtenabled IN ('O', 'A')) THEN
        BEGIN
            PERFORM public.rule_cdc_schema_trigger();
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'tables that are created later in % do not join by themselves: only a superuser can create the event trigger for that',
                walhook.rule_cdc_quoted(p_schema)
                USING HINT = 'Let a superuser run: SELECT rule_cdc_schema_trigger(); without it rule_cdc_check() names each table that is '
                             'missing, with the statement that links it.';
        END;
    END IF;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_link_schema(INTEGER, TEXT, TEXT[], TEXT, TEXT[], TEXT, BOOLEAN, TEXT) IS
    'walhook: links the tables of a schema to a webhook, those that are there now and those that come later: from their first row, '
    'where the event trigger is there. p_like and p_except are patterns of names, as LIKE has them. Returns a row for each table that it '
    'has linked now, or could not link, with the reason. Calling it again changes it';

CREATE OR REPLACE FUNCTION public.rule_webhook_link_schema(
    p_webhook TEXT,
    p_schema TEXT,
    p_except TEXT[] DEFAULT '{}',
    p_like TEXT DEFAULT '%',
    p_operations TEXT[] DEFAULT '{insert,update,delete}',
    p_subject_template TEXT DEFAULT NULL,
    p_include_old BOOLEAN DEFAULT false,
    p_publication TEXT DEFAULT 'walhook'
) RETURNS TABLE (table_name TEXT, link_id INTEGER, problem TEXT, remedy TEXT)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM public.rule_webhook_link_schema(walhook.rule_cdc_webhook_id(p_webhook), p_schema, p_except, p_like, p_operations,
                                                  p_subject_template, p_include_old, p_publication)
$$;
COMMENT ON FUNCTION public.rule_webhook_link_schema(TEXT, TEXT, TEXT[], TEXT, TEXT[], TEXT, BOOLEAN, TEXT) IS
    'walhook: the same, with the webhook''s name';

-- Ends the links that came by a link of a schema: all of them, or those of tables that it does not want any more.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_schema_unlink_tables(p_schema_link_id INTEGER, p_unwanted BOOLEAN)
RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s RECORD;
    l RECORD;
    v_count INTEGER := 0;
BEGIN
    SELECT * INTO s FROM public.rule_webhook_schema_links k WHERE k.schema_link_id = p_schema_link_id;
    FOR l IN
        DELETE FROM public.rule_webhook_links k
        WHERE k.schema_link_id = p_schema_link_id
          AND (NOT p_unwanted OR k.table_schema <> s.table_schema OR k.table_name NOT LIKE s.table_pattern
               OR k.table_name LIKE ANY (s.except_patterns))
        RETURNING to_regclass(format('%I.%I', k.table_schema, k.table_name)) AS oid
    LOOP
        IF l.oid IS NOT NULL THEN
            PERFORM public.rule_cdc_publication_place(l.oid::regclass, s.publication, false);
        END IF;
        v_count := v_count + 1;
    END LOOP;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_schema_unlink_tables IS
    'walhook: ends the links of tables that came by a link of a schema, all or those that it does not want any more; returns how many';

CREATE OR REPLACE FUNCTION public.rule_webhook_unlink_schema(p_webhook INTEGER, p_schema TEXT)
RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id INTEGER;
    v_count INTEGER;
BEGIN
    SELECT s.schema_link_id INTO v_id FROM public.rule_webhook_schema_links s
    WHERE s.webhook_id = p_webhook AND s.table_schema = p_schema;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    LOCK TABLE public.rule_webhook_links IN SHARE UPDATE EXCLUSIVE MODE;
    v_count := walhook.rule_cdc_schema_unlink_tables(v_id, false);
    PERFORM walhook.rule_cdc_schema_link_drop(v_id);
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION public.rule_webhook_unlink_schema(INTEGER, TEXT) IS
    'walhook: ends the link of a schema and those of the tables that came by it, at this commit; returns how many tables, or NULL if '
    'there was no such link. A table that was linked by itself stays linked';

CREATE OR REPLACE FUNCTION public.rule_webhook_unlink_schema(p_webhook TEXT, p_schema TEXT)
RETURNS INTEGER LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT public.rule_webhook_unlink_schema(walhook.rule_cdc_webhook_id(p_webhook), p_schema)
$$;
COMMENT ON FUNCTION public.rule_webhook_unlink_schema(TEXT, TEXT) IS 'walhook: the same, with the webhook''s name';

-- Whether who linked the schema could link this table: as rule_webhook_link_table has it, whose caller needs these rights.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_schema_right(p_linker TEXT, p_table REGCLASS, p_publication TEXT, p_webhook_id INTEGER)
RETURNS TEXT LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        -- This may be a renamed table whose link, under the old name, has a mask.
        WHEN EXISTS (SELECT FROM public.rule_webhook_links l WHERE l.webhook_id = p_webhook_id AND l.mask IS NOT NULL)
             AND EXISTS (SELECT FROM pg_publication_rel q JOIN pg_publication p ON p.oid = q.prpubid
                         WHERE q.prrelid = c.oid AND p.pubname IN (p_publication || '_inserts', p_publication || '_changes'))
            THEN 'it is published, perhaps under another name from before, and links of its webhook have masks: if it had one, link it '
                 'with that mask'
        WHEN r.oid IS NULL THEN format('the role %I, which linked the schema, does not exist any more', p_linker)
        WHEN r.rolsuper THEN NULL
        WHEN NOT has_table_privilege(r.oid, c.oid, 'SELECT') THEN format('%I, who linked the schema, may not read it', p_linker)
        WHEN NOT pg_has_role(r.oid, c.relowner, 'USAGE') THEN format('%I, who linked the schema, does not own it', p_linker)
        WHEN EXISTS (SELECT FROM pg_publication p WHERE p.pubname IN (p_publication || '_inserts', p_publication || '_changes')
                                                    AND NOT pg_has_role(r.oid, p.pubowner, 'USAGE'))
            THEN format('%I, who linked the schema, does not own the publications', p_linker)
    END
    FROM pg_class c LEFT JOIN pg_roles r ON r.rolname = p_linker
    WHERE c.oid = p_table
$$;
COMMENT ON FUNCTION walhook.rule_cdc_schema_right IS
    'walhook: why a table cannot join the link of its schema with the rights of who linked that, or NULL where it can';

-- Follows what a statement changed among the tables of linked schemas. p_tables: tables that the statement has locked already; only
-- their place in publications is changed, so this waits for no other session's lock of a table.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_schema_follow(p_tables OID[])
RETURNS VOID LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w RECORD;
    v_table REGCLASS;
    v_publication TEXT;
    v_problem TEXT;
    v_has_removed BOOLEAN := false;
BEGIN
    -- Dropped, renamed, moved to another schema, or a partition of a linked table now.
    FOR v_publication IN
        WITH gone AS (
            DELETE FROM public.rule_webhook_links l
            USING public.rule_webhook_schema_links s
            -- One with a mask stays: its table may be there under another name, and must not leave without the mask.
            WHERE s.schema_link_id = l.schema_link_id AND l.mask IS NULL
              AND (to_regclass(format('%I.%I', l.table_schema, l.table_name)) IS NULL
                   OR EXISTS (
                       SELECT FROM pg_class c
                       CROSS JOIN LATERAL pg_partition_ancestors(c.oid) a (relid)
                       JOIN pg_class r ON r.oid = a.relid JOIN pg_namespace rn ON rn.oid = r.relnamespace
                       JOIN public.rule_webhook_links o ON o.table_schema = rn.nspname AND o.table_name = r.relname
                       WHERE c.oid = to_regclass(format('%I.%I', l.table_schema, l.table_name)) AND c.oid = ANY (p_tables)
                         AND c.relispartition AND r.oid <> c.oid))
            RETURNING s.publication)
        SELECT DISTINCT g.publication FROM gone g
    LOOP
        v_has_removed := true;
        FOR v_table IN
            SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.oid = ANY (p_tables)
              AND NOT EXISTS (SELECT FROM public.rule_webhook_links l WHERE l.table_schema = n.nspname AND l.table_name = c.relname)
              AND EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                          WHERE r.prrelid = c.oid AND p.pubname IN (v_publication || '_inserts', v_publication || '_changes'))
              AND NOT EXISTS (SELECT FROM walhook.rule_cdc_schema_wanted(NULL, ARRAY[c.oid]))
        LOOP
            PERFORM public.rule_cdc_publication_place(v_table, v_publication, false);
        END LOOP;
    END LOOP;
    FOR w IN
        SELECT k.relid, s.* FROM walhook.rule_cdc_schema_wanted(NULL, p_tables) k
        JOIN public.rule_webhook_schema_links s ON s.schema_link_id = k.schema_link_id
    LOOP
        -- One that joined just now may be its root.
        CONTINUE WHEN NOT EXISTS (SELECT FROM walhook.rule_cdc_schema_wanted(w.schema_link_id, ARRAY[w.relid::oid]));
        -- A published one without a link is one whose link somebody has ended, or that has got this name just now.
        CONTINUE WHEN NOT v_has_removed AND EXISTS (
            SELECT FROM pg_publication_rel q JOIN pg_publication p ON p.oid = q.prpubid
            WHERE q.prrelid = w.relid AND p.pubname IN (w.publication || '_inserts', w.publication || '_changes'));
        v_problem := walhook.rule_cdc_schema_right(w.linked_by, w.relid, w.publication, w.webhook_id);
        IF v_problem IS NULL THEN
            SELECT p.problem INTO v_problem
            FROM walhook.rule_cdc_link_problems(w.relid, w.operations, w.subject_template, NULL, NULL, NULL, w.include_old, w.publication) p
            WHERE p.is_error LIMIT 1;
        END IF;
        CONTINUE WHEN v_problem IS NOT NULL;
        INSERT INTO public.rule_webhook_links
            (webhook_id, table_schema, table_name, operations, subject_template, include_old, schema_link_id, created_by)
        SELECT w.webhook_id, n.nspname, c.relname, w.operations, w.subject_template, w.include_old, w.schema_link_id, w.linked_by
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = w.relid;
        PERFORM public.rule_cdc_publication_place(w.relid, w.publication, true);
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_schema_follow IS
    'walhook: a part of the event trigger: tables join the links of their schemas, or leave them';

-- With its owner's rights, for who creates a table need not be allowed to link it. It never fails: what it cannot do is recorded.
CREATE OR REPLACE FUNCTION walhook.rule_cdc_schema_event()
RETURNS EVENT_TRIGGER LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_problem TEXT;
BEGIN
    IF NOT EXISTS (SELECT FROM public.rule_webhook_schema_links) THEN
        RETURN;
    END IF;
    PERFORM walhook.rule_cdc_schema_follow(ARRAY(
        SELECT DISTINCT l.relation FROM pg_locks l
        WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.granted
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
          AND l.mode IN ('AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareUpdateExclusiveLock')));
EXCEPTION WHEN OTHERS THEN
    v_problem := format('%s: %s', SQLSTATE, SQLERRM);
    BEGIN
        UPDATE public.rule_webhook_schema_links SET last_problem = left(v_problem, 2000), last_problem_at = clock_timestamp();
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RAISE WARNING 'walhook could not update the links of schemas: %', walhook.rule_cdc_sayable(v_problem)
        USING HINT = 'The statement itself is not affected. SELECT * FROM rule_cdc_check(); names the tables that are not linked.';
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_schema_event IS
    'walhook: event trigger: tables that are created in a linked schema join its link in the same transaction';

CREATE OR REPLACE FUNCTION public.rule_cdc_schema_trigger()
RETURNS BOOLEAN LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_there RECORD;
BEGIN
    SELECT e.evtenabled, e.evtfoid, obj_description(e.oid, 'pg_event_trigger') AS words INTO v_there
    FROM pg_event_trigger e WHERE e.evtname = 'walhook_schema_links';
    IF FOUND THEN
        IF v_there.evtenabled IN ('O', 'A') AND v_there.evtfoid = 'walhook.rule_cdc_schema_event()'::regprocedure THEN
            RETURN false;
        ELSIF coalesce(v_there.words, '') NOT LIKE 'walhook:%' THEN
            RAISE EXCEPTION 'cannot create the event trigger walhook_schema_links: there is one that walhook has not made'
                USING ERRCODE = 'duplicate_object', HINT = 'DROP EVENT TRIGGER walhook_schema_links; or rename it.';
        END IF;
        DROP EVENT TRIGGER walhook_schema_links;
    END IF;
    CREATE EVENT TRIGGER walhook_schema_links ON ddl_command_end
        WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'DROP TABLE', 'CREATE SCHEMA', 'DROP SCHEMA')
        EXECUTE FUNCTION walhook.rule_cdc_schema_event();
    COMMENT ON EVENT TRIGGER walhook_schema_links IS 'walhook: tables that are created in a linked schema join its link';
    RETURN true;
END
$$;
COMMENT ON FUNCTION public.rule_cdc_schema_trigger IS
    'walhook: creates the event trigger by which tables join the links of their schemas when they are created. PostgreSQL lets only '
    'superusers do that. Returns false if it is there';

CREATE OR REPLACE FUNCTION walhook.rule_cdc_check_schemas()
RETURNS TABLE (name TEXT, severity TEXT, object TEXT, problem TEXT, remedy TEXT)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s RECORD;
    w RECORD;
BEGIN
    IF EXISTS (SELECT FROM public.rule_webhook_schema_links)
       AND NOT EXISTS (SELECT FROM pg_event_trigger e WHERE e.evtname = 'walhook_schema_links' AND e.evtenabled IN ('O', 'A')) THEN
        name := 'schema_trigger_missing';
        severity := 'warning';
        object := 'event trigger walhook_schema_links';
        problem := 'tables that are created in a linked schema do not join its link by themselves: only a superuser can create the event '
                   'trigger for that';
        remedy := 'SELECT public.rule_cdc_schema_trigger();';
        RETURN NEXT;
    END IF;
    FOR s IN
        SELECT k.*, k.table_schema AS schema_name, n.oid AS schema_oid, x.webhook_name FROM public.rule_webhook_schema_links k
        JOIN public.rule_webhooks x ON x.webhook_id = k.webhook_id
        LEFT JOIN pg_namespace n ON n.nspname = k.table_schema
        ORDER BY k.schema_link_id
    LOOP
        object := format('link of schema %I to webhook %s', s.schema_name, to_json(left(s.webhook_name, 200)));
        IF s.schema_oid IS NULL THEN
            name := 'schema_missing';
            severity := 'error';
            problem := format('there is no schema %I (any more)', s.schema_name);
            remedy := format('SELECT public.rule_webhook_unlink_schema(%s, %L);', s.webhook_id, s.schema_name);
            RETURN NEXT;
            CONTINUE;
        END IF;
        FOR w IN
            SELECT k.relid, coalesce(r.why, p.problem) AS why, r.why IS NULL AND p.problem IS NOT NULL AS is_unfit, p.remedy
            FROM walhook.rule_cdc_schema_wanted(s.schema_link_id) k
            CROSS JOIN LATERAL walhook.rule_cdc_schema_right(s.linked_by, k.relid, s.publication, s.webhook_id) r (why)
            LEFT JOIN LATERAL (
                SELECT q.problem, q.remedy FROM walhook.rule_cdc_link_problems(k.relid, s.operations, s.subject_template, NULL, NULL, NULL,
                                                                              s.include_old, s.publication) q
                WHERE q.is_error LIMIT 1) p ON true
        LOOP
            name := 'schema_table_missing';
            severity := 'error';
            problem := format('the table %s is in the linked schema and is not linked: %s', w.relid,
                              coalesce(w.why, 'it was created while the event trigger was not there, or that failed'
                                              || CASE WHEN s.last_problem IS NOT NULL
                                                      THEN format(' (at %s: %s)', s.last_problem_at, s.last_problem) ELSE '' END));
            remedy := concat_ws(' ', CASE WHEN w.is_unfit AND w.remedy LIKE 'ALTER %' THEN split_part(w.remedy, ' --', 1) END,
                                format('SELECT * FROM public.rule_cdc_schema_link_tables(%s);', s.schema_link_id));
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION walhook.rule_cdc_check_schemas IS
    'walhook: the part of rule_cdc_check about links of schemas: tables that are not linked, with the statement that links them, and the '
    'event trigger';

CALL walhook.rule_cdc_functions_close();

-- Each statement that writes mask binds it to the columns of that time, also one that writes what is there.
CALL walhook.rule_cdc_trigger(
    'public.rule_webhook_links', 'walhook_mask_bind', 'BEFORE INSERT OR UPDATE OF mask, table_schema, table_name',
    'NEW.mask IS NOT NULL OR NEW.mask_columns IS NOT NULL',
    'walhook.rule_cdc_mask_bind()', 'notes for which columns of its table a mask is set');

CALL walhook.rule_cdc_grant_functions('walhook_streamer', '^rule_cdc_(mask_shape|mask_columns|mask_problems|check_schemas|schema_wanted|schema_right)$');
CALL walhook.rule_cdc_grant_functions('walhook_operator',
    '^rule_cdc_(mask_shape|mask_columns|mask_problems|check_schemas|schema_wanted|schema_right)$'
    '|^rule_cdc_schema_(link_put|exclude|link_drop|link_tables|unlink_tables|trigger)$|^rule_webhook_(un)?link_schema$');
CALL walhook.rule_cdc_grant('walhook_operator', 'SELECT', ARRAY['rule_webhook_schema_links']);
CALL walhook.rule_cdc_grant('walhook_streamer', 'SELECT', ARRAY['rule_webhook_schema_links']);

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('022', 'walhook: names and masks of what leaves the database; links of whole schemas')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
