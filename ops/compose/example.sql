-- What compose.yaml sets up to try: where NATS is, a stream, passwords, a table and its webhook. It can be repeated.
\set ON_ERROR_STOP on
SELECT rule_nats_configure('default', 'nats://nats:4222');
SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])
    WHERE NOT EXISTS (SELECT FROM rule_nats_streams WHERE stream_name = 'WEBHOOKS');
-- As in ops/compose/secrets/walhook_password.
ALTER ROLE walhook_streamer PASSWORD 'try-out-walhook';
ALTER ROLE walhook_worker PASSWORD 'try-out-walhook';

CREATE TABLE IF NOT EXISTS orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item text NOT NULL);
SELECT rule_webhook_register('orders', 'http://receiver:9000/orders')
    WHERE NOT EXISTS (SELECT FROM rule_webhooks WHERE webhook_name = 'orders');
SELECT rule_webhook_enable_nats(webhook_id, NULL, 'nats'),
       rule_webhook_link_table(webhook_id, 'public.orders', p_subject_template => 'webhooks.{table}.{op}')
    FROM rule_webhooks
    WHERE webhook_name = 'orders' AND NOT EXISTS (SELECT FROM rule_webhook_links WHERE table_name = 'orders');
