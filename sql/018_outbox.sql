-- 018: outbox tables: links whose message is a column.
--
-- Comes in: 008, which links tables and has the columns of such links; 016, which checks their rows. Goes out: one call that links an
-- outbox table as Debezium's event router has it.
-- Always holds: running this file twice changes nothing; no BEGIN, COMMIT or psql command in it.

-- In an operator's or another role's schema no function, operator or type may stand in for PostgreSQL's own. Not SET LOCAL:
-- psql without -1 has no transaction for it to last in.
SET search_path = pg_catalog, pg_temp;
SET quote_all_identifiers = off;
SET standard_conforming_strings = on;

CALL walhook.rule_cdc_functions_open(ARRAY[]::text[]);

CREATE OR REPLACE FUNCTION public.rule_webhook_link_outbox(
    p_webhook INTEGER,
    p_table REGCLASS,
    p_subject_template TEXT DEFAULT NULL,
    p_id_column TEXT DEFAULT 'id',
    p_aggregate_type_column TEXT DEFAULT 'aggregatetype',
    p_aggregate_id_column TEXT DEFAULT 'aggregateid',
    p_type_column TEXT DEFAULT 'type',
    p_payload_column TEXT DEFAULT 'payload',
    p_filter JSONB DEFAULT NULL,
    p_publication TEXT DEFAULT 'walhook',
    p_trace_column TEXT DEFAULT NULL
) RETURNS INTEGER LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_webhook RECORD;
    v_other TEXT;
BEGIN
    SELECT w.webhook_name, coalesce(w.payload_format, 'webhook') AS payload_format INTO v_webhook
    FROM public.rule_webhooks w WHERE w.webhook_id = p_webhook;
    IF FOUND AND v_webhook.payload_format <> 'data' THEN
        -- The messages of its other links would change with it.
        SELECT format('%I.%I', l.table_schema, l.table_name) INTO v_other
        FROM public.rule_webhook_links l
        LEFT JOIN pg_namespace n ON n.nspname = l.table_schema
        LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name
        WHERE l.webhook_id = p_webhook AND c.oid IS DISTINCT FROM p_table
        ORDER BY l.link_id LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'cannot link % to webhook % as an outbox: the messages of %, which is linked to it, have payload_format %',
                walhook.rule_cdc_sayable(coalesce(p_table::text, 'NULL')), walhook.rule_cdc_quoted(v_webhook.webhook_name),
                walhook.rule_cdc_sayable(v_other), walhook.rule_cdc_quoted(v_webhook.payload_format)
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = walhook.rule_cdc_sayable(
                    format('UPDATE rule_webhooks SET payload_format = ''data'' WHERE webhook_id = %s; changes those messages too. Or '
                           'register a webhook for the outbox alone.', p_webhook));
        END IF;
        UPDATE public.rule_webhooks SET payload_format = 'data' WHERE webhook_id = p_webhook;
        RAISE NOTICE 'webhook % has payload_format data now, so that a message is the column as it is',
            walhook.rule_cdc_quoted(v_webhook.webhook_name);
    END IF;
    RETURN public.rule_webhook_link_table(
        p_webhook, p_table, '{insert}', coalesce(p_subject_template, 'outbox.event.{' || p_aggregate_type_column || '}'),
        p_filter => p_filter, p_publication => p_publication, p_trace_column => p_trace_column, p_payload_column => p_payload_column,
        p_message_id_column => p_id_column,
        p_headers_columns => nullif(jsonb_strip_nulls(jsonb_build_object(
            'id', p_id_column, 'eventType', p_type_column, 'aggregateType', p_aggregate_type_column,
            'aggregateId', p_aggregate_id_column)), '{}'));
END
$$;
COMMENT ON FUNCTION public.rule_webhook_link_outbox(INTEGER, REGCLASS, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, JSONB, TEXT, TEXT) IS
    'walhook: publishes the rows that are inserted into an outbox table, as Debezium''s outbox event router does: the body is the '
    'column payload byte for byte, the subject outbox.event.<aggregatetype>, the headers id, eventType, aggregateType and aggregateId. '
    'Returns the link''s id. Rows may be deleted at once';

CREATE OR REPLACE FUNCTION public.rule_webhook_link_outbox(
    p_webhook TEXT,
    p_table REGCLASS,
    p_subject_template TEXT DEFAULT NULL,
    p_id_column TEXT DEFAULT 'id',
    p_aggregate_type_column TEXT DEFAULT 'aggregatetype',
    p_aggregate_id_column TEXT DEFAULT 'aggregateid',
    p_type_column TEXT DEFAULT 'type',
    p_payload_column TEXT DEFAULT 'payload',
    p_filter JSONB DEFAULT NULL,
    p_publication TEXT DEFAULT 'walhook',
    p_trace_column TEXT DEFAULT NULL
) RETURNS INTEGER LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT public.rule_webhook_link_outbox(walhook.rule_cdc_webhook_id(p_webhook), p_table, p_subject_template, p_id_column,
                                           p_aggregate_type_column, p_aggregate_id_column, p_type_column, p_payload_column, p_filter,
                                           p_publication, p_trace_column)
$$;
COMMENT ON FUNCTION public.rule_webhook_link_outbox(TEXT, REGCLASS, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, JSONB, TEXT, TEXT) IS
    'walhook: the same, by the webhook''s name';

CALL walhook.rule_cdc_functions_close();

CALL walhook.rule_cdc_grant_functions('walhook_operator', '^rule_webhook_link_outbox$');

INSERT INTO public.rule_cdc_migrations (version, description)
VALUES ('018', 'walhook: outbox tables, whose messages are columns')
ON CONFLICT (version) DO NOTHING;

RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET search_path;
