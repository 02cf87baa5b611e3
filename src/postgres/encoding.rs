//! The characters of a database's encoding, as PostgreSQL converts them to UTF-8.
//!
//! In: a database whose encoding is neither UTF-8 nor `SQL_ASCII`. Out: a statement that makes the table of its characters, and the
//! table, which a process reads once for each database: the 6,000 to 16,000 conversions of an encoding with two or three bytes for
//! each character take the server some 0.1 s, those of `EUC_TW` with four bytes one to three seconds.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::wal::transcode::Encoding;

/// One row where texts are read without a conversion and converted here: what the table depends on.
pub(super) const WHICH: &str = "SELECT pg_catalog.concat_ws(' ', pg_catalog.getdatabaseencoding(), \
        pg_catalog.current_setting('server_version_num'), pg_catalog.current_database()) \
    WHERE pg_catalog.getdatabaseencoding() OPERATOR(pg_catalog.<>) ALL ('{UTF8,SQL_ASCII}'::pg_catalog.name[])";

/// The table of an encoding's characters as [`Encoding::parse`] takes it. PostgreSQL makes the table, so it is exactly how
/// PostgreSQL converts. PL/pgSQL, because only there an error of a conversion ends no statement, and leaves no line in the server's
/// log. Characters of several bytes: 94 differ in their last byte only, and where all of them have UTF-8 they are converted at once.
pub(super) const TABLE: &str = r"DO $walhook$ DECLARE
        v_encoding CONSTANT pg_catalog.name := pg_catalog.getdatabaseencoding();
        v_length pg_catalog.int4; v_first pg_catalog.int4; v_trails pg_catalog.bytea[] := '{}';
        v_lead pg_catalog.bytea; v_prefix pg_catalog.bytea; v_prefixes pg_catalog.bytea[];
        v_row pg_catalog.text; v_rows pg_catalog.text[] := '{}';
    BEGIN
        v_first := CASE pg_catalog.pg_encoding_max_length(pg_catalog.pg_char_to_encoding(v_encoding)) WHEN 1 THEN 128 ELSE 161 END;
        FOR v_byte IN v_first .. CASE v_first WHEN 128 THEN 255 ELSE 254 END LOOP
            v_trails := pg_catalog.array_append(v_trails, pg_catalog.set_byte('\x00'::pg_catalog.bytea, 0, v_byte));
        END LOOP;
        FOR v_byte IN CASE v_first WHEN 128 THEN 0 ELSE 128 END .. CASE v_first WHEN 128 THEN 0 ELSE 255 END LOOP
            IF v_first OPERATOR(pg_catalog.=) 128 THEN
                v_prefixes := ARRAY[''::pg_catalog.bytea];
            ELSE
                v_lead := pg_catalog.set_byte('\x00'::pg_catalog.bytea, 0, v_byte);
                FOR v_more IN 1..4 LOOP
                    v_length := v_more;
                    BEGIN
                        EXIT WHEN pg_catalog.length(v_lead OPERATOR(pg_catalog.||)
                                      pg_catalog.substring('\xa1a1a1'::pg_catalog.bytea, 1, v_more), v_encoding) OPERATOR(pg_catalog.=) 1;
                    EXCEPTION WHEN OTHERS THEN NULL;
                    END;
                END LOOP;
                CONTINUE WHEN v_length OPERATOR(pg_catalog.=) 4;
                v_prefixes := ARRAY[v_lead];
                FOR v_more IN 2..v_length LOOP
                    v_prefixes := ARRAY(SELECT p OPERATOR(pg_catalog.||) t
                                        FROM pg_catalog.unnest(v_prefixes) p, pg_catalog.unnest(v_trails) t);
                END LOOP;
            END IF;
            FOREACH v_prefix IN ARRAY v_prefixes LOOP
                v_row := '';
                BEGIN
                    v_row := pg_catalog.encode(pg_catalog.convert(
                        (SELECT pg_catalog.string_agg('\x2c'::pg_catalog.bytea OPERATOR(pg_catalog.||) v_prefix OPERATOR(pg_catalog.||) t, ''
                                                      ORDER BY t USING OPERATOR(pg_catalog.<)) FROM pg_catalog.unnest(v_trails) t),
                        v_encoding, 'UTF8'), 'hex');
                    v_row := pg_catalog.replace(v_row, '2c', ',');
                EXCEPTION WHEN OTHERS THEN
                    FOR v_trail IN 1 .. pg_catalog.cardinality(v_trails) LOOP
                        BEGIN
                            v_row := pg_catalog.concat(v_row, ',', pg_catalog.encode(pg_catalog.convert(
                                v_prefix OPERATOR(pg_catalog.||) v_trails[v_trail], v_encoding, 'UTF8'), 'hex'));
                        EXCEPTION WHEN character_not_in_repertoire THEN
                            -- No text has this prefix, or this character of it.
                            EXIT WHEN v_trail OPERATOR(pg_catalog.=) 1;
                            v_row := pg_catalog.concat(v_row, ',');
                        WHEN OTHERS THEN
                            v_row := pg_catalog.concat(v_row, ',');
                        END;
                    END LOOP;
                END;
                IF v_row OPERATOR(pg_catalog.<>) '' THEN
                    v_rows := pg_catalog.array_append(v_rows, pg_catalog.concat(pg_catalog.encode(v_prefix, 'hex'), ':',
                        CASE v_first WHEN 128 THEN '80' ELSE 'a1' END, ':', v_row));
                END IF;
            END LOOP;
        END LOOP;
        PERFORM pg_catalog.set_config('walhook.characters', pg_catalog.array_to_string(v_rows, pg_catalog.chr(10)), false);
    END $walhook$;
    SELECT pg_catalog.current_setting('walhook.characters');
    SELECT WHERE pg_catalog.set_config('walhook.characters', '', false) IS NULL";

/// Tables that this process has read, by server and by what [`WHICH`] answers.
static READ: Mutex<BTreeMap<String, Arc<Encoding>>> = Mutex::new(BTreeMap::new());

/// The table of the database at `target`, if this process has read it.
pub(super) fn known(target: &str, which: &str) -> Option<Arc<Encoding>> {
    READ.lock().unwrap_or_else(PoisonError::into_inner).get(&format!("{target} {which}")).cloned()
}

/// Keeps a table.
pub(super) fn remember(target: &str, which: &str, encoding: &Arc<Encoding>) {
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    read.insert(format!("{target} {which}"), Arc::clone(encoding));
}
