//! Every type a column can have, from a real server's slot to JSON.
//!
//! The text of each value is taken out of the pgoutput messages that the server sends, not from a `::text`, and its JSON
//! compared with what is written here and, where walhook follows the same rule, with PostgreSQL's own `to_json`.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::collections::{BTreeMap, BTreeSet};

use serde::de::IgnoredAny;
use serde_json::json;
use support::{Nats, Postgres, feed::Feed};
use walhook::{
    route::{
        types::{Class, Scalar, TypeCatalog, TypeKind},
        value::write_json,
    },
    wal::pgoutput::{Column, Dialect, Message},
};

/// What walhook's replication connection asks for; `lc_monetary` only so that `money` looks the same everywhere.
const SESSION: &str = "SET datestyle = 'ISO'; SET intervalstyle = 'iso_8601'; SET timezone = 'UTC'; \
    SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'; ";

/// A database with the encoding `SQL_ASCII`.
const RAW: &str = "raw";

/// A value and what must become of it.
pub struct Sample {
    pub type_name: &'static str,
    /// An SQL expression.
    pub value: &'static str,
    expected: Expected,
}

#[derive(Clone, Copy)]
enum Expected {
    /// This, and `to_json` says the same.
    AsToJson(&'static str),
    /// This, which `to_json` says otherwise.
    Ours(&'static str),
    /// What `to_json` says; the value is not the same on every server.
    ToJson,
}

const fn same(type_name: &'static str, value: &'static str, expected: &'static str) -> Sample {
    Sample { type_name, value, expected: Expected::AsToJson(expected) }
}

const fn ours(type_name: &'static str, value: &'static str, expected: &'static str) -> Sample {
    Sample { type_name, value, expected: Expected::Ours(expected) }
}

const fn any(type_name: &'static str, value: &'static str) -> Sample {
    Sample { type_name, value, expected: Expected::ToJson }
}

/// Base types, ranges and multiranges of `pg_type.dat` that cannot get into a user's row: their input functions refuse, and only
/// indexes hold them.
const IMPOSSIBLE: [&str; 3] = ["gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"];

/// Every other one, with its edges.
pub const BUILT_IN: &[Sample] = &[
    same("bool", "true", "true"),
    same("bool", "false", "false"),
    same("int2", "-32768", "-32768"),
    same("int2", "32767", "32767"),
    same("int4", "0", "0"),
    same("int4", "-2147483648", "-2147483648"),
    same("int8", "9007199254740993", "9007199254740993"),
    same("int8", "9223372036854775807", "9223372036854775807"),
    same("int8", "-9223372036854775808", "-9223372036854775808"),
    ours("oid", "4294967295", "4294967295"),
    ours("xid", "'4294967295'", "4294967295"),
    ours("cid", "'7'", "7"),
    ours("xid8", "'18446744073709551615'", "18446744073709551615"),
    same("float4", "1.1", "1.1"),
    same("float4", "1e-45", "1e-45"),
    same("float4", "3.4028235e38", "3.4028235e+38"),
    same("float4", "'NaN'", r#""NaN""#),
    same("float8", "0.1", "0.1"),
    same("float8", "'-0'", "-0"),
    same("float8", "1e20", "1e+20"),
    same("float8", "5e-324", "5e-324"),
    same("float8", "1.7976931348623157e308", "1.7976931348623157e+308"),
    same("float8", "'NaN'", r#""NaN""#),
    same("float8", "'Infinity'", r#""Infinity""#),
    same("float8", "'-Infinity'", r#""-Infinity""#),
    same("numeric", "1.50", "1.50"),
    same("numeric", "-0.000000000000000000001", "-0.000000000000000000001"),
    same("numeric", "123456789012345678901234567890.123456789", "123456789012345678901234567890.123456789"),
    same("numeric", "1e30", "1000000000000000000000000000000"),
    same("numeric", "'NaN'", r#""NaN""#),
    same("numeric", "'Infinity'", r#""Infinity""#),
    same("numeric", "'-Infinity'", r#""-Infinity""#),
    same("numeric(10,3)", "7", "7.000"),
    same(
        "json",
        r#"'{"b" : [1, 2.50, null],  "a": "ä\u00e4\"\\"}'"#,
        r#"{"b" : [1, 2.50, null],  "a": "ä\u00e4\"\\"}"#,
    ),
    same("json", "E'{\\n\\t\"a\": 1\\n}'", "{\n\t\"a\": 1\n}"),
    same("json", r#"'{"a": 1, "a": 2}'"#, r#"{"a": 1, "a": 2}"#),
    same("json", r#"'"\ud800"'"#, r#""\ud800""#),
    same("json", r#"'"\u0000"'"#, r#""\u0000""#),
    same("json", "'-1e999999'", "-1e999999"),
    same("json", "' null '", " null "),
    same(
        "jsonb",
        r#"'{"b": 1.50, "a": {"nested": [true, null, "x\ty"]}}'"#,
        r#"{"a": {"nested": [true, null, "x\ty"]}, "b": 1.50}"#,
    ),
    same("jsonb", "'null'", "null"),
    same("jsonb", r#"'"text"'"#, r#""text""#),
    same("jsonb", "'12345678901234567890.10'", "12345678901234567890.10"),
    same("jsonb", r#"'"\u2028\u0007é😀"'"#, "\"\u{2028}\\u0007é😀\""),
    same("text", "''", r#""""#),
    same("text", r#"E'quote " backslash \\ slash /'"#, r#""quote \" backslash \\ slash /""#),
    same("text", "E'\\b\\f\\n\\r\\t\\x01\\x1f\\x7f'", "\"\\b\\f\\n\\r\\t\\u0001\\u001f\u{7f}\""),
    same("text", "'grüße 😀 \u{2028}'", "\"grüße 😀 \u{2028}\""),
    same("text", "'NULL'", r#""NULL""#),
    same("varchar", "'a'", r#""a""#),
    same("varchar(3)", "'abc'", r#""abc""#),
    same("bpchar", "'a'", r#""a""#),
    same("char(3)", "'a'", r#""a  ""#),
    same("\"char\"", "'x'", r#""x""#),
    same("name", "'pg_class'", r#""pg_class""#),
    ours("bytea", "''", r#""""#),
    ours("bytea", r"'\x00ff10'", r#""AP8Q""#),
    ours("bytea", r"'\xdeadbeef'", r#""3q2+7w==""#),
    same("date", "'2024-02-29'", r#""2024-02-29""#),
    same("date", "'infinity'", r#""infinity""#),
    same("date", "'-infinity'", r#""-infinity""#),
    ours("date", "'0001-12-31 BC'", r#""0000-12-31""#),
    ours("date", "'0044-03-15 BC'", r#""-0043-03-15""#),
    ours("date", "'4714-11-24 BC'", r#""-4713-11-24""#),
    ours("date", "'5874897-12-31'", r#""+5874897-12-31""#),
    same("time", "'03:04:05'", r#""03:04:05""#),
    same("time", "'24:00:00'", r#""24:00:00""#),
    same("time", "'03:04:05.000001'", r#""03:04:05.000001""#),
    ours("timetz", "'03:04:05.1+00'", r#""03:04:05.1+00:00""#),
    same("timetz", "'03:04:05+05:30'", r#""03:04:05+05:30""#),
    same("timetz", "'03:04:05-00:01:15'", r#""03:04:05-00:01:15""#),
    same("timestamp", "'2024-01-02 03:04:05.123456'", r#""2024-01-02T03:04:05.123456""#),
    same("timestamp", "'2024-01-02'", r#""2024-01-02T00:00:00""#),
    same("timestamp", "'infinity'", r#""infinity""#),
    same("timestamp", "'-infinity'", r#""-infinity""#),
    ours("timestamp", "'0044-03-15 12:00 BC'", r#""-0043-03-15T12:00:00""#),
    ours("timestamp", "'294276-12-31 23:59:59.999999'", r#""+294276-12-31T23:59:59.999999""#),
    same("timestamptz", "'2024-01-02 03:04:05.1+02:30'", r#""2024-01-02T00:34:05.1+00:00""#),
    same("timestamptz", "'infinity'", r#""infinity""#),
    ours("timestamptz", "'4714-11-24 00:00:00+00 BC'", r#""-4713-11-24T00:00:00+00:00""#),
    ours("timestamptz", "'10000-01-01 00:00:00+00'", r#""+10000-01-01T00:00:00+00:00""#),
    same("interval", "'1 year 2 mons 3 days 04:05:06.789'", r#""P1Y2M3DT4H5M6.789S""#),
    same("interval", "'0'", r#""PT0S""#),
    same("interval", "'-1 mon +3 days -00:00:01.5'", r#""P-1M3DT-1.5S""#),
    same("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", r#""a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11""#),
    same("inet", "'192.168.0.1/24'", r#""192.168.0.1/24""#),
    same("inet", "'::1'", r#""::1""#),
    same("cidr", "'10.0.0.0/8'", r#""10.0.0.0/8""#),
    same("macaddr", "'08-00-2b-01-02-03'", r#""08:00:2b:01:02:03""#),
    same("macaddr8", "'08:00:2b:01:02:03:04:05'", r#""08:00:2b:01:02:03:04:05""#),
    same("xml", r#"'<a b="c">&amp;</a>'"#, r#""<a b=\"c\">&amp;</a>""#),
    same("bit(3)", "B'101'", r#""101""#),
    same("varbit", "B''", r#""""#),
    same("money", "'-1234.5'", r#""-$1,234.50""#),
    same("tsvector", "'fat:3A cat''s'", r#""'cat''s' 'fat':3A""#),
    same("tsquery", "'fat & !rat:A'", r#""'fat' & !'rat':A""#),
    same("jsonpath", "'$.a[*] ? (@ > 1)'", r#""$.\"a\"[*]?(@ > 1)""#),
    same("pg_lsn", "'16/B374D848'", r#""16/B374D848""#),
    same("tid", "'(1,2)'", r#""(1,2)""#),
    same("pg_snapshot", "'10:20:10,14'", r#""10:20:10,14""#),
    same("txid_snapshot", "'10:20:10,14'", r#""10:20:10,14""#),
    same("refcursor", "'c'", r#""c""#),
    same(
        "aclitem",
        "makeaclitem('postgres'::regrole, 'postgres'::regrole, 'SELECT', false)",
        r#""postgres=r/postgres""#,
    ),
    same("regclass", "'pg_class'", r#""pg_class""#),
    same("regproc", "'array_out'", r#""array_out""#),
    same("regprocedure", "'abs(int4)'", r#""abs(integer)""#),
    same("regoper", "'||/'", r#""||/""#),
    same("regoperator", "'+(int4,int4)'", r#""+(integer,integer)""#),
    same("regtype", "'int4'", r#""integer""#),
    same("regconfig", "'simple'", r#""simple""#),
    same("regdictionary", "'simple'", r#""simple""#),
    same("regnamespace", "'pg_catalog'", r#""pg_catalog""#),
    same("regrole", "'postgres'", r#""postgres""#),
    same("regcollation", "'\"C\"'", r#""\"C\"""#),
    same("point", "'(1.5,-2)'", r#""(1.5,-2)""#),
    same("lseg", "'[(0,0),(1,1)]'", r#""[(0,0),(1,1)]""#),
    same("path", "'((0,0),(1,1))'", r#""((0,0),(1,1))""#),
    same("box", "'(1,1),(0,0)'", r#""(1,1),(0,0)""#),
    same("polygon", "'((0,0),(1,1),(1,0))'", r#""((0,0),(1,1),(1,0))""#),
    same("line", "'{1,2,3}'", r#""{1,2,3}""#),
    same("circle", "'<(0,0),1>'", r#""<(0,0),1>""#),
    same("int4range", "'[1,5]'", r#""[1,6)""#),
    same("int4range", "'empty'", r#""empty""#),
    same("int8range", "'(,5)'", r#""(,5)""#),
    same("numrange", "'[1.50,2)'", r#""[1.50,2)""#),
    same("daterange", "'[2024-01-01,infinity)'", r#""[2024-01-01,infinity)""#),
    same("tsrange", "'[2024-01-01,2024-01-02)'", r#""[\"2024-01-01 00:00:00\",\"2024-01-02 00:00:00\")""#),
    same("tstzrange", "'[2024-01-01 00:00+00,)'", r#""[\"2024-01-01 00:00:00+00\",)""#),
    same("int4multirange", "'{[1,3),[5,8)}'", r#""{[1,3),[5,8)}""#),
    same("int8multirange", "'{}'", r#""{}""#),
    same("nummultirange", "'{[1.5,2]}'", r#""{[1.5,2]}""#),
    same("datemultirange", "'{[2024-01-01,2024-01-03)}'", r#""{[2024-01-01,2024-01-03)}""#),
    same("tsmultirange", "'{}'", r#""{}""#),
    same("tstzmultirange", "'{}'", r#""{}""#),
    any("pg_node_tree", "(SELECT ev_action FROM pg_rewrite ORDER BY ev_class LIMIT 1)"),
    any("pg_ndistinct", "(SELECT stxdndistinct FROM pg_statistic_ext_data)"),
    any("pg_dependencies", "(SELECT stxddependencies FROM pg_statistic_ext_data)"),
    any("pg_mcv_list", "(SELECT stxdmcv FROM pg_statistic_ext_data)"),
    same("int2vector", "'1 2 3'", "[1,2,3]"),
    same("int2vector", "''", "[]"),
    ours("oidvector", "'4294967295 0'", "[4294967295,0]"),
];

/// Arrays, besides the one that is made of every sample above.
pub const ARRAYS: &[Sample] = &[
    same("int4[]", "'{}'", "[]"),
    same("int4[]", "'{1,NULL,3}'", "[1,null,3]"),
    same("int4[]", "'{{1,2},{3,NULL}}'", "[[1,2],[3,null]]"),
    same("int4[]", "'[0:2]={1,2,3}'", "[1,2,3]"),
    same("int4[]", "'[-1:0][2:3]={{1,2},{3,4}}'", "[[1,2],[3,4]]"),
    same("int4[]", "'{{{{{{1}}}}}}'", "[[[[[[1]]]]]]"),
    same(
        "text[]",
        r#"ARRAY['', 'null', 'NULL', NULL, 'a b', ' ', '"', '\', '\\"', '{}', ',', ';', 'ä', E'\n\t', '[1:2]=']"#,
        r#"["","null","NULL",null,"a b"," ","\"","\\","\\\\\"","{}",",",";","ä","\n\t","[1:2]="]"#,
    ),
    same("text[]", r#"ARRAY[ARRAY['a"', 'b'], ARRAY[NULL, '}']]"#, r#"[["a\"","b"],[null,"}"]]"#),
    same("jsonb[]", r#"ARRAY['{"a": "\"\\"}', 'null', NULL, '[]']::jsonb[]"#, r#"[{"a": "\"\\"},null,null,[]]"#),
    same("box[]", "'{(1,1),(0,0);(2,2),(1,1);NULL}'", r#"["(1,1),(0,0)","(2,2),(1,1)",null]"#),
    same("timestamp[]", "'{2024-01-02 03:04:05,infinity}'", r#"["2024-01-02T03:04:05","infinity"]"#),
    same("float8[]", "'{1.5,NaN,-Infinity,1e100}'", r#"[1.5,"NaN","-Infinity",1e+100]"#),
    same("int2vector[]", r#"'{"1 2",NULL,3}'"#, "[[1,2],null,[3]]"),
];

/// What PostgreSQL 17 brought.
const SINCE_17: &[Sample] =
    &[same("interval", "'infinity'", r#""infinity""#), same("interval", "'-infinity'", r#""-infinity""#)];

/// Types of a user's own.
pub const SETUP: &str = r#"
    CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree;
    CREATE TYPE mood AS ENUM ('sad', 'so "so"', 'ok');
    CREATE TYPE pair AS (a int, b text);
    CREATE TYPE floats AS RANGE (subtype = float8);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN really_positive AS positive;
    CREATE DOMAIN moment AS timestamptz;
    CREATE DOMAIN numbers AS int[];
    CREATE DOMAIN boxes AS box[];
    CREATE DOMAIN words AS text[];
    CREATE DOMAIN document AS jsonb;
    CREATE TABLE for_statistics AS SELECT i % 10 AS a, i % 5 AS b FROM generate_series(1, 1000) i;
    CREATE STATISTICS s (ndistinct, dependencies, mcv) ON a, b FROM for_statistics;
    ANALYZE for_statistics;
"#;

pub const USER_TYPES: &[Sample] = &[
    same("mood", "'so \"so\"'", r#""so \"so\"""#),
    same("mood[]", "'{ok,NULL,\"so \\\"so\\\"\"}'", r#"["ok",null,"so \"so\""]"#),
    ours("pair", r#"ROW(1, 'x "y"')"#, r#""(1,\"x \"\"y\"\"\")""#),
    ours("pair[]", "ARRAY[ROW(1, 'x')::pair, NULL]", r#"["(1,x)",null]"#),
    same("floats", "'[1.5,2)'", r#""[1.5,2)""#),
    same("floats[]", "ARRAY['[1.5,2)'::floats]", r#"["[1.5,2)"]"#),
    same("positive", "1", "1"),
    same("really_positive", "2", "2"),
    same("really_positive[]", "'{1,2,NULL}'", "[1,2,null]"),
    same("moment", "'2024-01-02 03:04:05+00'", r#""2024-01-02T03:04:05+00:00""#),
    same("moment[]", "'{2024-01-02 03:04:05+00}'", r#"["2024-01-02T03:04:05+00:00"]"#),
    same("numbers", "'{{1,2},{3,4}}'", "[[1,2],[3,4]]"),
    same("numbers[]", r#"'{"{1,2}","{}",NULL}'"#, "[[1,2],[],null]"),
    same("boxes", "'{(1,1),(0,0);(2,2),(1,1)}'", r#"["(1,1),(0,0)","(2,2),(1,1)"]"#),
    same("boxes[]", "ARRAY['{(1,1),(0,0);(2,2),(1,1)}']::boxes[]", r#"[["(1,1),(0,0)","(2,2),(1,1)"]]"#),
    same("words[]", r#"'{"{\"a\\\"b\",c}"}'"#, r#"[["a\"b","c"]]"#),
    same("document", r#"'{"a": 1}'"#, r#"{"a": 1}"#),
    ours("hstore", "'a=>1, b=>NULL'", r#""\"a\"=>\"1\", \"b\"=>NULL""#),
    same("citext", "'MiXed'", r#""MiXed""#),
    same("citext[]", "'{A,b}'", r#"["A","b"]"#),
    same("ltree", "'a.b.c'", r#""a.b.c""#),
    // PostgreSQL's own, but with OIDs that differ from cluster to cluster.
    same("information_schema.cardinal_number", "5", "5"),
    same("information_schema.sql_identifier", "'x'", r#""x""#),
    ours("pg_catalog.pg_am", "(SELECT a FROM pg_am a WHERE amname = 'btree')", r#""(403,btree,bthandler,i)""#),
];

/// A value on its way: what the slot sent of it, and what the server's `to_json` says.
struct Received {
    class: Class,
    text: Vec<u8>,
    to_json: String,
}

impl Received {
    fn json(&self) -> String {
        let mut out = Vec::new();
        write_json(self.class, &self.text, &mut out);
        let json = String::from_utf8(out).unwrap();
        // A tree of values would refuse half a surrogate pair and what no float can hold; both are JSON.
        assert!(serde_json::from_str::<IgnoredAny>(&json).is_ok(), "not JSON: {json}");
        json
    }
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The types of a database, read as walhook reads them.
fn catalog(pg: &Postgres, database: &str) -> TypeCatalog {
    let mut catalog = TypeCatalog::new();
    for row in pg.psql_in(database, TypeCatalog::QUERY).lines() {
        let [oid, kind, inner_oid, delimiter] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        catalog.insert(oid.parse().unwrap(), TypeKind::from_row(kind, inner_oid.parse().unwrap(), delimiter));
    }
    catalog
}

/// All rows that were inserted into tables of one column since `slot` was made, with the column's type.
fn inserted(pg: &Postgres, database: &str, slot: &str) -> Vec<(u32, Vec<u8>)> {
    // As everywhere but there; a server that had to make UTF-8 of bytes it knows nothing of would give up.
    let encoding = if database == RAW { "SET client_encoding = 'SQL_ASCII';" } else { "" };
    let messages = pg.psql_in(
        database,
        &format!(
            "{SESSION} {encoding} SELECT encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, \
             'proto_version', '1', 'publication_names', 'everything')"
        ),
    );
    let mut types = BTreeMap::new();
    let mut values = Vec::new();
    for message in messages.lines().map(hex) {
        match Message::parse(&message, Dialect::V1).unwrap() {
            Message::Relation(relation) => {
                types.insert(relation.id, relation.columns.iter().next().unwrap().type_oid);
            }
            Message::Insert { relation, new, .. } => match new.iter().next().unwrap() {
                Column::Text(text) => values.push((types[&relation], text.to_vec())),
                _ => panic!("not a text"),
            },
            _ => {}
        }
    }
    values
}

/// Sends `samples` (a type and an SQL expression each) through a slot.
async fn send(pg: &Postgres, samples: &[(String, String)]) -> Vec<Received> {
    pg.psql("CREATE PUBLICATION everything FOR ALL TABLES");
    pg.psql("SELECT pg_create_logical_replication_slot('values', 'pgoutput')");
    let client = pg.client().await;
    client.batch_execute(SESSION).await.unwrap();
    let mut to_json = String::from(SESSION);
    for (number, (type_name, value)) in samples.iter().enumerate() {
        // A statement each, so that an error says which.
        let sql = format!("CREATE TABLE sample_{number} (v {type_name}); INSERT INTO sample_{number} SELECT {value};");
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{:?}: {sql}", error.as_db_error()));
        to_json += &format!("SELECT encode(convert_to(to_json(v)::text, 'UTF8'), 'hex') FROM sample_{number};");
    }
    let to_json = pg.psql(&to_json);
    let catalog = catalog(pg, "postgres");
    let values = inserted(pg, "postgres", "values");
    assert_eq!(values.len(), samples.len());
    assert_eq!(to_json.lines().count(), samples.len());
    values
        .into_iter()
        .zip(to_json.lines())
        .map(|((oid, text), to_json)| Received {
            class: catalog.class(oid).unwrap(),
            text,
            to_json: String::from_utf8(hex(to_json)).unwrap(),
        })
        .collect()
}

/// Whether an SQL expression of the type in `ARRAY[…]` makes an array of it; of an array it makes a further dimension.
pub fn has_array(sample: &Sample) -> bool {
    let type_name = sample.type_name;
    let without = ["pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list", "int2vector", "oidvector"];
    !type_name.ends_with("[]") && !without.contains(&type_name)
}

/// The value as an SQL expression of its type. (`::` would bind closer than a minus.)
pub fn cast(sample: &Sample) -> String {
    format!("CAST({} AS {})", sample.value, sample.type_name)
}

#[tokio::test]
async fn every_type_becomes_the_json_that_the_table_promises() {
    for version in ["14", "15", "18"] {
        every_type_becomes_what_the_table_promises(&Postgres::builder().version(version).start().await).await;
    }
}

async fn every_type_becomes_what_the_table_promises(pg: &Postgres) {
    pg.psql(SETUP);
    let since_17 = if pg.major() >= 17 { SINCE_17 } else { &[] };
    let samples: Vec<&Sample> = [BUILT_IN, ARRAYS, USER_TYPES, since_17].into_iter().flatten().collect();
    let mut sent = Vec::new();
    for sample in &samples {
        sent.push((sample.type_name.to_owned(), cast(sample)));
    }
    // Every value of a built-in type again as an element of an array, beside a NULL.
    let elements: Vec<&Sample> = BUILT_IN.iter().filter(|sample| has_array(sample)).collect();
    for sample in &elements {
        sent.push((format!("{}[]", sample.type_name), format!("ARRAY[{}, NULL]", cast(sample))));
    }

    let received = send(pg, &sent).await;
    let (singles, arrays) = received.split_at(samples.len());
    let mut wrong = Vec::new();
    let mut check = |sample: &Sample, received: &Received, (expected, as_to_json): (String, bool)| {
        let json = received.json();
        let agrees = json == received.to_json;
        if json != expected || agrees != as_to_json {
            let Sample { type_name, value, .. } = sample;
            wrong.push(format!("{type_name} {value}: {json}; expected {expected}; to_json: {}", received.to_json));
        }
    };
    for (sample, received) in samples.iter().zip(singles) {
        check(
            sample,
            received,
            match sample.expected {
                Expected::AsToJson(json) => (json.to_owned(), true),
                Expected::Ours(json) => (json.to_owned(), false),
                Expected::ToJson => (received.to_json.clone(), true),
            },
        );
    }
    for (sample, received) in elements.iter().zip(arrays) {
        check(
            sample,
            received,
            match sample.expected {
                Expected::AsToJson(json) => (format!("[{json},null]"), true),
                Expected::Ours(json) => (format!("[{json},null]"), false),
                Expected::ToJson => (received.to_json.clone(), true),
            },
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn no_built_in_type_is_forgotten() {
    let pg = Postgres::start().await;
    let bare = |name: &str| pg.psql(&format!("SELECT typname FROM pg_type WHERE oid = '{name}'::regtype"));
    let sampled: BTreeSet<String> = BUILT_IN.iter().map(|sample| bare(sample.type_name)).collect();
    let types = pg.psql(
        "SELECT typname FROM pg_type WHERE oid < 10000 AND typtype NOT IN ('p', 'c') AND typoutput <> 'array_out'::regproc",
    );
    let forgotten: Vec<&str> =
        types.lines().filter(|name| !sampled.contains(*name) && !IMPOSSIBLE.contains(name)).collect();
    assert!(forgotten.is_empty(), "no sample of {forgotten:?}");

    // The list of arrays in the code is the server's.
    let catalog = TypeCatalog::new();
    for row in pg
        .psql("SELECT oid, typoutput = 'array_out'::regproc, typelem, typdelim FROM pg_type WHERE oid < 10000")
        .lines()
    {
        let [oid, is_array, element, delimiter] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        let class = catalog.class(oid.parse().unwrap()).unwrap();
        if is_array == "t" {
            let Some(Class::Scalar(element)) = catalog.class(element.parse().unwrap()) else { panic!("{row}") };
            assert_eq!(class, Class::Array { element, delimiter: delimiter.as_bytes()[0], levels: 1 }, "{row}");
        } else {
            assert!(matches!(class, Class::Scalar(_)), "{row}");
        }
    }
}

#[tokio::test]
async fn random_values_agree_with_to_json_on_14_15_and_18() {
    let seed = std::env::var("WALHOOK_TEST_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("WALHOOK_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut samples = Vec::new();
    for _ in 0..30 {
        let mut string = || {
            let alphabet =
                ["a", "NULL", "\"", "\\", "{", "}", ",", ";", " ", "\n", "\u{1}", "ä", "😀", "=", "[1:1]", "null"];
            let string: String = (0..random.usize(..6)).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            if random.u8(..8) == 0 { "NULL".to_owned() } else { format!("$q${string}$q$") }
        };
        let mut list = || format!("ARRAY[{},{},{}]::text[]", string(), string(), string());
        samples.push(("text[]", list()));
        samples.push(("text[]", format!("ARRAY[{},{}]", list(), list())));
        samples.push(("jsonb[]", format!("ARRAY[to_jsonb({}), to_jsonb({}), NULL]", list(), list())));
        let bits = f64::from_bits(random.u64(..));
        samples.push(("float8", format!("'{bits:e}'::float8")));
        samples.push(("float4", format!("'{:e}'::float4", f32::from_bits(random.u32(..)))));
        samples.push(("numeric", format!("{}::numeric / {}", random.i64(..), random.u32(1..))));
        let (days, micros) = (random.u32(..3_600_000), random.u64(..86_400_000_000));
        let timestamp =
            format!("timestamp '0001-01-01' + interval '{days} days' + {micros} * interval '1 microsecond'");
        samples.push(("timestamp", timestamp.clone()));
        samples.push(("timestamptz", format!("({timestamp}) AT TIME ZONE 'Asia/Kolkata'")));
        samples.push(("date", format!("({timestamp})::date")));
        let (days, micros) = (random.i32(..), random.i64(-1_000_000_000_000_000..1_000_000_000_000_000));
        samples.push(("interval", format!("interval '{days} days' + {micros} * interval '1 microsecond'")));
    }
    let samples: Vec<_> = samples.into_iter().map(|(type_name, value)| (type_name.to_owned(), value)).collect();
    for version in ["14", "15", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        for (received, (type_name, value)) in send(&pg, &samples).await.iter().zip(&samples) {
            assert_eq!(received.json(), received.to_json, "PostgreSQL {version}: {type_name} {value}");
        }
    }
}

#[tokio::test]
async fn text_that_is_not_utf_8_is_tagged() {
    let pg = Postgres::start().await;
    pg.psql("CREATE DATABASE raw ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    for statement in [
        "CREATE PUBLICATION everything FOR ALL TABLES",
        "SELECT pg_create_logical_replication_slot('raw', 'pgoutput')",
        r"CREATE TABLE texts (v text); INSERT INTO texts VALUES ('plain'), (E'caf\xe9')",
        r#"CREATE TABLE lists (v text[]); INSERT INTO lists VALUES (ARRAY[E'caf\xe9', 'plain'])"#,
        r#"CREATE TABLE documents (v json); INSERT INTO documents VALUES (E'{"a": "caf\xe9"}')"#,
    ] {
        pg.psql_in(RAW, statement);
    }
    let catalog = catalog(&pg, RAW);
    let json: Vec<String> = inserted(&pg, RAW, "raw")
        .into_iter()
        .map(|(oid, text)| Received { class: catalog.class(oid).unwrap(), text, to_json: String::new() }.json())
        .collect();
    assert_eq!(
        json,
        [
            r#""plain""#,
            r#"{"$base64":"Y2Fm6Q=="}"#,
            r#"[{"$base64":"Y2Fm6Q=="},"plain"]"#,
            r#"{"$base64":"eyJhIjogImNhZukifQ=="}"#,
        ]
    );
}

#[tokio::test]
async fn a_type_made_after_the_catalog_was_read_is_found_by_reading_it_again() {
    let pg = Postgres::start().await;
    let old = catalog(&pg, "postgres");
    pg.psql("CREATE DOMAIN positive AS int");
    let oid: u32 = pg.psql("SELECT 'positive'::regtype::oid").parse().unwrap();
    assert_eq!(old.class(oid), None);
    assert_eq!(catalog(&pg, "postgres").class(oid), Some(Class::Scalar(Scalar::Integer)));
}

/// A feed whose databases have the encoding `SQL_ASCII`, as old clusters with the locale C have.
async fn bytes_feed() -> Feed {
    let pg = Postgres::builder().initdb(&["--encoding=SQL_ASCII", "--locale=C"]).start().await;
    assert_eq!(pg.psql("SHOW server_encoding"), "SQL_ASCII");
    let feed = Feed::on(pg, Nats::start().await);
    feed.webhook("w");
    feed
}

#[tokio::test]
async fn bytes_that_are_no_utf_8_arrive_tagged_and_end_nothing() {
    let feed = bytes_feed().await;
    // Names, configuration rows and values, as writers of Latin 1 leave them.
    feed.pg.psql(
        r"CREATE FUNCTION latin(hex text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT convert_from(decode(hex, 'hex'), 'SQL_ASCII') $$;
          CREATE TABLE plain (id text PRIMARY KEY, words text[], doc json);
          DO $$ BEGIN
              EXECUTE format('CREATE TABLE %I (id int PRIMARY KEY, %I text, %I text)', latin('e9'), latin('e8'), latin('ea'));
              EXECUTE format('INSERT INTO %I VALUES (1, %L, %L)', latin('e9'), 'x', latin('636166e9'));
          END $$;
          INSERT INTO plain VALUES (E'\xe9', '{a}', '1'), (E'\xe8', NULL, NULL);
          SELECT rule_webhook_link_table(1, 'plain');
          SELECT rule_webhook_link_table(1, to_regclass(quote_ident(latin('e9'))), '{insert}', 'webhooks.bytes', ARRAY['id', latin('ea')],
                                         jsonb_build_object(latin('e8'), 'x'))",
    );
    let mut walhook = feed.run();
    walhook.logged("slot taken").await;
    feed.pg.psql(
        r#"INSERT INTO plain VALUES ('u', ARRAY[E'caf\xe9', 'plain'], E'{"a": "caf\xe9"}');
           DO $$ BEGIN EXECUTE format('INSERT INTO %I VALUES (2, %L, %L), (3, %L, NULL)', latin('e9'), 'x', latin('e9'), latin('e9')); END $$"#,
    );
    feed.confirmed().await;
    let tagged = |base64: &str| json!({ "$base64": base64 });
    let messages = feed.messages().await;
    let data: Vec<_> = messages.iter().map(|message| message.data().clone()).collect();
    assert_eq!(
        data,
        [
            json!({ "id": "u", "words": [tagged("Y2Fm6Q=="), "plain"], "doc": tagged("eyJhIjogImNhZukifQ==") }),
            json!({ "id": 2, "\u{FFFD}EA": tagged("6Q==") }),
        ]
    );
    assert_eq!(messages[1].payload["event"]["table"], "public.\u{FFFD}E9");

    // The same by a backfill, whose keys are such bytes too.
    let finished = feed.command("backfill").args(["--table", "plain", "--chunk-rows", "1"]).finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    feed.pg.psql("SELECT rule_cdc_backfill_start(quote_ident(latin('e9')))");
    assert_eq!(feed.pg.psql("SELECT rule_cdc_backfill_chunk(2)"), "3");
    feed.confirmed().await;
    let messages = feed.messages().await.split_off(2);
    let data: Vec<_> = messages.iter().map(|message| message.data().clone()).collect();
    assert_eq!(
        data[0],
        json!({ "id": "u", "words": [tagged("Y2Fm6Q=="), "plain"], "doc": tagged("eyJhIjogImNhZukifQ==") })
    );
    assert_eq!(data[1], json!({ "id": tagged("6A=="), "words": null, "doc": null }));
    assert_eq!(data[2], json!({ "id": tagged("6Q=="), "words": ["a"], "doc": 1 }));
    assert_eq!(
        data[3..],
        [json!({ "id": 1, "\u{FFFD}EA": tagged("Y2Fm6Q==") }), json!({ "id": 2, "\u{FFFD}EA": tagged("6Q==") })]
    );

    // Configuration rows, read live and at a start; calls of every kind. What cannot be said in NATS is set aside alone.
    feed.pg.psql(
        r#"UPDATE rule_webhooks SET webhook_name = E'w\xe9', description = E'\xe9', headers = E'{"X-A": "\xe9"}', tags = ARRAY[E'\xe9'];
           INSERT INTO rule_nats_streams (stream_name, subjects, description, config_id) VALUES ('E', '{e.>}', E'\xe9', 1);
           UPDATE rule_webhooks SET nats_subject = 'webhooks.w'"#,
    );
    let calls = |calls: &[&str]| {
        for call in calls {
            feed.pg.psql(&format!("INSERT INTO rule_webhook_events (webhook_id, payload, subject, message_id, headers, triggered_by) VALUES (1, {call})"));
        }
    };
    for round in ["live", "again"] {
        calls(&[
            &format!(r#"'{{"n": "{round}"}}', NULL, NULL, NULL, NULL"#),
            r#"E'{"n": "\xe9"}', NULL, NULL, NULL, NULL"#,
            r#"'{"n": 1}', E'webhooks.\xe9', NULL, NULL, NULL"#,
            &format!(r#"'{{"n": 2}}', NULL, E'{round}\xe9', NULL, NULL"#),
            r#"'{"n": 3}', NULL, NULL, E'{"X-B": "\xe9"}', NULL"#,
            r#"'{"n": 4}', NULL, NULL, NULL, E'\xe9'"#,
            r#"'{"n": "last"}', NULL, NULL, NULL, NULL"#,
        ]);
        feed.confirmed().await;
        let messages = feed.messages().await;
        assert_eq!(messages.last().unwrap().data(), &json!({ "n": "last" }), "{round}: {}", walhook.log());
        let sent: Vec<_> = messages[messages.len() - 4..].iter().map(|message| message.data().clone()).collect();
        assert_eq!(sent[..3], [json!({ "n": round }), tagged("eyJuIjogIukifQ=="), json!({ "n": 4 })]);
        assert_eq!(messages[messages.len() - 2].payload["event"]["triggered_by"], tagged("6Q=="));
        let reasons = feed.pg.psql("SELECT string_agg(reason, '; ' ORDER BY commit_lsn) FROM (SELECT * FROM rule_nats_dead_letters ORDER BY commit_lsn DESC LIMIT 3) d");
        assert_eq!(
            reasons,
            "its subject is invalid: it is not UTF-8; its message_id is not UTF-8; its own headers are not a JSON object in UTF-8"
        );
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
        walhook = feed.run();
        walhook.logged("slot taken").await;
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn columns_of_types_dropped_since_arrive_as_what_their_names_tell() {
    let feed = Feed::start().await;
    feed.webhook("w");
    let make = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN whole AS int; CREATE DOMAIN flags AS bool[];
                CREATE TYPE span AS RANGE (subtype = int); CREATE DOMAIN note AS jsonb";
    let drop = "DROP TYPE mood, pair, span CASCADE; DROP DOMAIN whole, flags, note CASCADE";
    let table = "CREATE TABLE t (id int PRIMARY KEY, moods mood[], nested mood[], mood mood, pair pair, pairs pair[], whole whole, wholes whole[],
                                 flags flags, span span, spans span[], note note)";
    let insert = |id: u32| {
        format!(
            "INSERT INTO t VALUES ({id}, '{{sad,ok,NULL}}', '{{{{sad}},{{ok}}}}', 'ok', '(1,x)', '{{\"(1,x)\"}}', 7, '{{7,NULL}}', '{{t,f}}', '[1,5)', '{{\"[1,5)\"}}', '[1]')"
        )
    };
    // All of it is over before walhook reads the catalog for the first time.
    feed.pg.psql(&format!("{make}; {table}"));
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't', '{insert}')");
    feed.pg.psql(&insert(1));
    feed.pg.psql(drop);
    let mut walhook = feed.run();
    feed.confirmed().await;
    let first = json!({ "id": 1, "moods": ["sad", "ok", null], "nested": [["sad"], ["ok"]], "mood": "ok", "pair": "(1,x)", "pairs": ["(1,x)"],
                        "whole": 7, "wholes": ["7", null], "flags": [true, false], "span": "[1,5)", "spans": ["[1,5)"], "note": [1] });
    assert_eq!(*feed.messages().await[0].data(), first);
    let log = walhook.log();
    assert!(
        log.contains("the type of column \"moods\" has been dropped since; its values are written as arrays of texts"),
        "{log}"
    );
    // Types that a running walhook knew keep what they were, in one transaction with their end too; new ones are found.
    feed.pg.psql(&format!(
        "DROP TABLE t; {make}; {table}; SELECT rule_webhook_link_table(1, 't', '{{insert}}'); {}",
        insert(2)
    ));
    feed.confirmed().await;
    feed.pg.psql(&format!("BEGIN; {}; {drop}; COMMIT", insert(3)));
    feed.pg.psql("ALTER TABLE t ADD COLUMN added int; INSERT INTO t VALUES (4, 5)");
    feed.confirmed().await;
    let mut known = first.clone();
    known["wholes"] = json!([7, null]);
    let messages = feed.messages().await;
    for (message, id) in messages[1..3].iter().zip([2, 3]) {
        known["id"] = json!(id);
        assert_eq!(*message.data(), known);
    }
    assert_eq!(*messages[3].data(), json!({ "id": 4, "added": 5 }));
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// Encodings of one byte for each character, in whose tables are holes: there PostgreSQL can convert nothing, and would end the stream.
#[tokio::test]
async fn bytes_that_an_encoding_does_not_define_arrive_tagged_and_end_nothing() {
    for (encoding, hole, letter, byte, tagged) in
        [("WIN1252", 0x81, "é", 0xE9, "w6mB"), ("ISO_8859_7", 0xD2, "α", 0xE1, "zrH/0g==")]
    {
        let arguments = [format!("--encoding={encoding}"), "--locale=C".to_owned()];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let pg = Postgres::builder().initdb(&arguments).start().await;
        let feed = Feed::on(pg, Nats::start().await);
        feed.webhook("w");
        feed.pg.psql(&format!(
            "CREATE TABLE \"{letter}\" (id int PRIMARY KEY, \"{letter}{letter}\" text, many text[]); \
             SELECT rule_webhook_link_table(1, '\"{letter}\"', p_columns => ARRAY['id', '{letter}{letter}', 'many'])"
        ));
        let mut walhook = feed.run();
        feed.pg.psql(&format!(
            "INSERT INTO \"{letter}\" VALUES (1, '{letter}', ARRAY['x', '{letter}']), (2, chr({byte}) || chr({hole}), ARRAY['{letter}', chr({byte}) || chr({hole})]), \
                                            (3, 'last', NULL)"
        ));
        let messages = feed.stored(3).await;
        let data: Vec<_> = messages.iter().map(|message| message.data().clone()).collect();
        let column = format!("{letter}{letter}");
        let odd = json!({ "$base64": tagged });
        assert_eq!(
            data,
            [
                json!({ "id": 1, &column: letter, "many": ["x", letter] }),
                json!({ "id": 2, &column: odd, "many": [letter, odd] }),
                json!({ "id": 3, &column: "last", "many": null }),
            ],
            "{encoding}: {}",
            walhook.log()
        );
        assert_eq!(messages[0].payload["event"]["table"], format!("public.{letter}"));
        feed.confirmed().await;
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    }
}
