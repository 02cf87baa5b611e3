//! Databases in encodings with several bytes for each character, some of whose characters have no UTF-8.
//!
//! PostgreSQL cannot convert such a text for a client in UTF-8. What is expected of each character, PostgreSQL says itself.

#![allow(clippy::unwrap_used)]

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{Nats, Postgres, feed::Feed};

async fn postgres(version: &str, encoding: &str) -> Postgres {
    let encoding = format!("--encoding={encoding}");
    Postgres::builder().version(version).initdb(&[&encoding, "--locale=C"]).start().await
}

fn tagged(bytes: &[u8]) -> Value {
    json!({ "$base64": STANDARD.encode(bytes) })
}

/// All characters: a row for those that differ in their last byte only. Beside each, in ASCII: its UTF-8, or `-` and its own bytes.
const CHARACTERS: &str = r"
    CREATE TABLE characters (id serial PRIMARY KEY, v text[], expected text[]);
    SELECT rule_webhook_link_table(1, 'characters', '{insert}');
    DO $$ DECLARE
        e name := getdatabaseencoding(); prefixes bytea[] := '{}'; prefix bytea; one bytea; v text[]; expected text[];
        one_of bytea[] := ARRAY(SELECT set_byte('\x00', 0, i) FROM generate_series(128, 255) i);
    BEGIN
        prefixes := one_of || ARRAY(SELECT '\x8f' || b FROM unnest(one_of) b)
                           || ARRAY(SELECT '\x8e' || a || b FROM unnest(one_of) a, unnest(one_of) b WHERE e = 'EUC_TW');
        FOREACH prefix IN ARRAY prefixes LOOP
            v := '{}'; expected := '{}';
            CONTINUE WHEN e = 'EUC_TW' AND prefix >= '\x8ea8' AND prefix < '\x8f';
            FOREACH one IN ARRAY one_of LOOP
                one := prefix || one;
                BEGIN
                    IF length(one, e) = 1 THEN
                        v := array_append(v, convert_from(one, e));
                        expected := array_append(expected, NULL);
                        expected[cardinality(v)] := encode(convert(one, e, 'UTF8'), 'hex');
                    END IF;
                EXCEPTION WHEN untranslatable_character THEN expected[cardinality(v)] := '-' || encode(one, 'hex');
                WHEN OTHERS THEN NULL;
                END;
            END LOOP;
            IF v <> '{}' THEN INSERT INTO characters (v, expected) VALUES (v, expected); END IF;
        END LOOP;
    END $$";

fn bytes(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test]
async fn every_character_of_every_encoding_arrives_as_postgresql_converts_it_or_tagged() {
    for (version, encoding, least, without) in [
        ("18", "EUC_JP", 17_000, 4_000),
        ("18", "EUC_CN", 8_800, 1_000),
        ("default", "EUC_KR", 8_800, 500),
        ("default", "EUC_JIS_2004", 17_000, 6_000),
        ("14", "EUC_TW", 60_000, 40_000),
    ] {
        let feed = Feed::on(postgres(version, encoding).await, Nats::start().await);
        feed.webhook("w");
        feed.pg.psql(CHARACTERS);
        let mut walhook = feed.run();
        feed.confirmed().await;
        let (mut all, mut undefined) = (0, 0);
        for message in feed.messages().await {
            let data = message.data();
            let (values, expected) = (data["v"].as_array().unwrap(), data["expected"].as_array().unwrap());
            assert_eq!(values.len(), expected.len());
            for (value, expected) in values.iter().zip(expected) {
                all += 1;
                let wanted = match expected.as_str().unwrap().strip_prefix('-') {
                    None => json!(String::from_utf8(bytes(expected.as_str().unwrap())).unwrap()),
                    Some(digits) => {
                        undefined += 1;
                        let own = bytes(digits);
                        tagged(&if own[0] >= 0xC0 { [&[0xFF], own.as_slice()].concat() } else { own })
                    }
                };
                assert_eq!(*value, wanted, "{encoding}: {expected}");
            }
        }
        assert!(all > least && undefined > without, "{encoding}: {all} characters, {undefined} without UTF-8");
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    }
}

/// A text whose first character has no UTF-8, in hexadecimal, and the same as walhook writes it: as bytes, and in a name.
const ODD: [(&str, &str, &str, &[u8], &str); 3] = [
    ("14", "EUC_JP", "a9a1c3a9a4a2", b"\xA9\xA1\xE8\xBE\xBF\xE3\x81\x82", "\u{FFFD}A9\u{FFFD}A1辿あ"),
    ("18", "EUC_JP", "a9a1c3a9a4a2", b"\xA9\xA1\xE8\xBE\xBF\xE3\x81\x82", "\u{FFFD}A9\u{FFFD}A1辿あ"),
    ("18", "WIN1252", "81e9", b"\x81\xC3\xA9", "\u{FFFD}81é"),
];

#[tokio::test]
async fn a_character_without_utf_8_ends_nothing_wherever_it_is() {
    for (version, encoding, digits, bytes, shown) in ODD {
        let feed = Feed::on(postgres(version, encoding).await, Nats::start().await);
        feed.webhook("w");
        let odd = tagged(bytes);
        let json = tagged(&[b"{\"n\": \"", bytes, b"\"}"].concat());
        // Names of a table and a column, values, keys, and a webhook.
        feed.pg.psql(&format!(
            r#"CREATE FUNCTION odd() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT convert_from('\x{digits}', getdatabaseencoding()) $$;
               CREATE TABLE plain (id text PRIMARY KEY, v text, doc jsonb, many text[]);
               SELECT rule_webhook_link_table(1, 'plain');
               CREATE TABLE named (id int PRIMARY KEY);
               DO $$ BEGIN
                   EXECUTE format('ALTER TABLE named ADD COLUMN gone int, ADD COLUMN %I text', 'c' || odd());
                   ALTER TABLE named DROP COLUMN gone;
                   EXECUTE format('CREATE TABLE %I (id int PRIMARY KEY, v text)', 't' || odd());
                   PERFORM rule_webhook_link_table(1, quote_ident('t' || odd())::regclass, '{{insert}}', 'webhooks.odd');
               END $$;
               SELECT rule_webhook_link_table(1, 'named');
               SELECT rule_webhook_register('n' || odd(), 'https://example.com/w'), rule_webhook_enable_nats(2, NULL, 'nats');
               UPDATE rule_webhooks SET description = odd(), headers = jsonb_build_object('X-A', odd()) WHERE webhook_id = 2;
               SELECT rule_webhook_emit_enable()"#
        ));
        // A parallel query may begin no subtransaction.
        let in_parallel = "SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; \
                           SET min_parallel_table_scan_size = 0; SET enable_seqscan = on; \
                           SELECT count(rule_nats_subject_token(n.word)), count(rule_nats_subject_check(n.word)) \
                           FROM (SELECT odd() AS word FROM pg_class) n";
        let counted = feed.pg.psql(in_parallel);
        let (tokens, refused) = counted.split_once('|').unwrap();
        assert!(tokens == refused && tokens != "0", "PostgreSQL {version}: {counted}");
        let mut walhook = feed.run();
        let rows = r#"INSERT INTO plain VALUES ('a', 'x', '1', '{a}'), (odd(), odd(), jsonb_build_object('n', odd()), ARRAY[odd(), 'x']),
                                        ('z', 'after', NULL, NULL);
               DO $$ BEGIN EXECUTE format('INSERT INTO %I VALUES (1, odd())', 't' || odd()); END $$;
               INSERT INTO named VALUES (1, odd());
               SELECT rule_webhook_emit(1, jsonb_build_object('n', odd())), rule_webhook_emit(2, '{"n": 2}');
               SELECT rule_webhook_publish_nats(1, jsonb_build_object('n', odd()));
               INSERT INTO rule_webhook_events (webhook_id, payload, triggered_by, message_id, subject, headers)
               VALUES (1, '{"n": 4}', odd(), NULL, NULL, NULL), (1, '5', NULL, odd(), NULL, NULL),
                      (1, '6', NULL, NULL, 'webhooks.' || odd(), NULL), (1, '7', NULL, NULL, NULL, jsonb_build_object('X-B', odd())),
                      (2, '8', NULL, odd(), NULL, NULL), (2, '{"n": "last"}', NULL, NULL, NULL, NULL)"#;
        let plain = [
            json!({ "id": "a", "v": "x", "doc": 1, "many": ["a"] }),
            json!({ "id": odd, "v": odd, "doc": json, "many": [odd, "x"] }),
            json!({ "id": "z", "v": "after", "doc": null, "many": null }),
        ];
        let wanted = [
            plain[0].clone(),
            plain[1].clone(),
            plain[2].clone(),
            json!({ "id": 1, "v": odd }),
            json!({ "id": 1, format!("c{shown}"): odd }),
            json.clone(),
            json!({ "n": 2 }),
            json,
            json!({ "n": 4 }),
            json!({ "n": "last" }),
        ];
        feed.pg.psql(rows);
        feed.confirmed().await;
        let messages = feed.messages().await;
        let data: Vec<_> = messages.iter().map(|message| message.data().clone()).collect();
        assert_eq!(data, wanted, "{version} {encoding}: {}", walhook.log());
        assert_eq!(messages[3].payload["event"]["table"], format!("public.t{shown}"));
        assert_eq!(messages[8].payload["event"]["triggered_by"], odd);
        // The history has each, and so has the table of dead letters.
        assert_eq!(
            feed.pg.psql("SELECT count(*), count(*) FILTER (WHERE success) FROM rule_nats_publish_history"),
            "14|10"
        );
        assert_eq!(
            feed.pg.psql("SELECT string_agg(DISTINCT reason, '; ') FROM rule_nats_dead_letters"),
            "its message_id is not UTF-8; its own headers are not a JSON object in UTF-8; its subject is invalid: it is not UTF-8"
        );
        // The rules are read again from their versions, and from the tables.
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
        let mut walhook = feed.run();
        feed.pg.psql("TRUNCATE rule_webhook_events; INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (2, '{\"n\": 9}')");
        feed.confirmed().await;
        assert_eq!(feed.messages().await.len(), 11, "{}", walhook.log());
        // A backfill, whose keys are such texts too.
        let finished = feed.command("backfill").args(["--table", "plain", "--chunk-rows", "1"]).finish();
        assert_eq!(finished.code, Some(0), "{finished:?}");
        feed.pg.psql("SELECT rule_cdc_backfill_start('named')");
        assert_eq!(feed.pg.psql("SELECT rule_cdc_backfill_chunk(2)"), "1");
        feed.confirmed().await;
        let messages = feed.messages().await.split_off(11);
        let mut data: Vec<_> = messages.iter().map(|message| message.data().clone()).collect();
        assert_eq!(data.pop().unwrap(), wanted[4]);
        data.sort_by_key(|row| plain.iter().position(|known| known == row));
        assert_eq!(data, plain);
        // The verbs that read rows, names and reasons.
        feed.pg.psql("DELETE FROM plain WHERE id <> odd()");
        for words in [
            &["explain", "plain", "--json"][..],
            &["explain", "named", "--json"],
            &["schema", "named"],
            &["status"],
            &["dead-letters", "list"],
            &["dead-letters", "show", "4"],
        ] {
            let done = feed.command(words[0]).args(words[1..].iter().copied()).finish();
            assert_eq!(done.code, Some(0), "{version} {encoding}, {words:?}: {}", done.stderr);
            let expected = match words {
                ["explain", "plain", ..] => STANDARD.encode(bytes),
                ["explain" | "schema", ..] => format!("c{shown}"),
                _ => continue,
            };
            assert!(done.stdout.contains(&expected), "{version} {encoding}, {words:?}: {}", done.stdout);
        }
        // Messages of SQL's own reach every client.
        assert_eq!(
            feed.pg.psql("SELECT rule_nats_subject_check('a.' || odd())"),
            "it has a character that has no UTF-8"
        );
        let (message, _) = feed.pg.refused("SELECT rule_webhook_register('n' || odd(), 'x')");
        assert!(message.contains("'n?"), "{message}");
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    }
}

#[tokio::test]
async fn without_plpgsql_such_a_character_ends_the_stream_with_the_statement_that_helps() {
    let feed = Feed::on(postgres("default", "EUC_KR").await, Nats::start().await);
    feed.webhook("w");
    feed.pg.psql(
        r"CREATE TABLE t (id int PRIMARY KEY, v text); SELECT rule_webhook_link_table(1, 't');
          REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC;
          INSERT INTO t VALUES (1, 'x'), (2, convert_from('\xfea1', 'EUC_KR')), (3, 'z')",
    );
    let mut walhook = feed.run();
    assert_eq!(walhook.wait(crate::support::DEADLINE), 1, "{}", walhook.log());
    let log = walhook.log();
    assert!(log.contains("GRANT USAGE ON LANGUAGE plpgsql TO that role"), "{log}");
    feed.pg.psql("GRANT USAGE ON LANGUAGE plpgsql TO walhook_streamer");
    let mut walhook = feed.run();
    let messages = feed.stored(3).await;
    assert_eq!(messages[1].data()["v"], tagged(b"\xFF\xFE\xA1"));
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}
