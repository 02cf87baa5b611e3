-- Headers of the messages themselves: what can be one, and that a bad one is refused wherever it is written.
SELECT * FROM no_plan();
SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>']);
SELECT rule_webhook_register('hook', 'https://example.com');
SELECT rule_webhook_enable_nats(1);

-- The table refuses what the function does, and nobody needs the right to call it.
CREATE FUNCTION refused(p_headers jsonb, p_format text, p_why text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    RETURN NEXT ok(public.rule_nats_headers_problem(p_headers, p_format) LIKE p_why,
                        coalesce(public.rule_nats_headers_problem(p_headers, p_format), left(p_headers::text, 100)));
    RETURN NEXT throws_like(format('UPDATE rule_webhooks SET nats_headers = %L, payload_format = %L', p_headers, p_format),
                          '%violates check constraint "valid_nats_headers"');
END
$$;
SELECT refused(headers::jsonb, 'webhook', why) FROM (VALUES
    ('[1]', '%a JSON array%'), ('"x"', '%a JSON string%'), ('{"": "x"}', '%not a header name%'), ('{"a b": "x"}', '%not a header name%'),
    ('{"a:b": "x"}', '%not a header name%'), ('{"ä": "x"}', '%not a header name%'), ('{"a\r\nb": "x"}', '%not a header name%'),
    ('{"ok": "x", "nats-X": "x"}', '%nats-X is reserved'), ('{"Walhook-Id": "x"}', '%reserved'), ('{"a": 1}', '%a JSON number%'),
    ('{"a": null}', '%a JSON null%'), ('{"a": ["x"]}', '%a JSON array%'), ('{"a": "x\r\ny"}', '%control character%'),
    ('{"a": "\u007f"}', '%control character%')) v (headers, why);
SELECT refused(jsonb_build_object('a', repeat('x', 8192)), 'webhook', '%more than 8192');
SELECT refused(h::jsonb, f, '%reserved: the payload format is cloudevents%')
FROM unnest(ARRAY['{"CE-id": "x"}', '{"content-type": "x"}']) h, unnest(ARRAY['cloudevents', 'cloudevents_binary']) f;
UPDATE rule_webhooks SET nats_headers = '{"ce-id": "x", "Content-Type": "y", "a": "", "b": "ä\tö", "!#~": "x"}', payload_format = 'data';
UPDATE rule_webhooks SET nats_headers = '{}';
SELECT throws_like('UPDATE rule_webhooks SET nats_headers = ''null''', '%valid_nats_headers%');
UPDATE rule_webhooks SET nats_headers = NULL, payload_format = 'cloudevents';
SELECT throws_like($$SELECT rule_webhook_publish_nats(1, '{}', NULL, '{"ce-id": "x"}')$$, '%reserved: the payload format is cloudevents');
UPDATE rule_webhooks SET payload_format = 'webhook';
SELECT * FROM finish();
