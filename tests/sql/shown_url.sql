-- A webhook's URL as others may see it. src/route/shown_url.rs reads this table too: one row a line.
SELECT * FROM no_plan();
CREATE TABLE urls (url text, shown text);
INSERT INTO urls VALUES
    (E'https://example.com/hooks/orders', E'https://example.com/hooks/orders'),
    (E'https://user:canary@example.com/a?b=c#d', E'https://example.com/a?b=c#d'),
    (E'https://canary@example.com', E'https://example.com'),
    (E'https://us@er:can@ary@example.com:8443/', E'https://example.com:8443/'),
    (E'HTTP://user:canary@[::1]:80/', E'HTTP://[::1]:80/'),
    (E'https:/user:canary@example.com/', E'https:/example.com/'),
    (E'https:user:canary@example.com/', E'https:example.com/'),
    (E'https:\\\\user:canary@example.com\\x@y', E'https:\\\\example.com\\x@y'),
    (E'  https://user:canary@example.com/', E'  https://example.com/'),
    (E'ht\ntps://us\ter:canary@example.com/', E'https://example.com/'),
    (E'//user:canary@example.com/', E'//example.com/'),
    (E'canary@example.com/x', E'example.com/x'),
    (E'ftp://user:canary@example.com/', E'ftp://example.com/'),
    (E'https://example.com/@someone/x@y', E'https://example.com/@someone/x@y'),
    (E'https://example.com?a@b=c', E'https://example.com?a@b=c'),
    (E'https://example.com/?token=canary', E'https://example.com/?token=***'),
    (E'https://example.com/?a=1&access_token=canary&b=2', E'https://example.com/?a=1&access_token=***&b=2'),
    (E'https://example.com/?a=1;X-Amz-Signature=canary#top', E'https://example.com/?a=1;X-Amz-Signature=***#top'),
    (E'https://example.com/?api_key=canary&API-KEY=canary&apikey=canary', E'https://example.com/?api_key=***&API-KEY=***&apikey=***'),
    (E'https://example.com/?code=canary&key=canary&sig=canary&pwd=canary', E'https://example.com/?code=***&key=***&sig=***&pwd=***'),
    (E'https://example.com/?auth=canary&authorization=canary', E'https://example.com/?auth=***&authorization=***'),
    (E'https://example.com/?client_secret=canary=canary', E'https://example.com/?client_secret=***'),
    (E'https://example.com/#jwt=canary', E'https://example.com/#jwt=***'),
    (E'https://example.com/?author=a&design=b&zipcode=c&monkey=d', E'https://example.com/?author=a&design=b&zipcode=c&monkey=d'),
    (E'https://example.com/?token', E'https://example.com/?token'),
    (E'https://example.com/token=a', E'https://example.com/token=a'),
    (E'', E''),
    (E'no url at all', E'no url at all');
SELECT is(rule_webhook_shown_url(url), shown, url) FROM urls;
SELECT is(rule_webhook_shown_url(NULL), NULL);

-- Whoever may only call is not told them; an operator's list does not show them either, nor does a refusal.
SELECT rule_webhook_register('hook', 'https://user:canary@example.com/?token=canary');
SELECT throws_like($$SELECT rule_webhook_register('x', 'htps://user:canary@example.com/')$$, '%''htps://example.com/''%');
SELECT throws_like($$SELECT rule_webhook_update(1, 'htps://user:canary@example.com/')$$, '%''htps://example.com/''%');
SELECT is((SELECT url FROM rule_webhook_list()), 'https://example.com/?token=***');
SET ROLE walhook_application;
SELECT is(rule_webhook_call(1, '{}') ->> 'url', 'https://example.com/?token=***');
SELECT ok(rule_webhook_call_unified(1, '{}')::text NOT LIKE '%canary%', 'nor here');
RESET ROLE;
SELECT * FROM finish();
