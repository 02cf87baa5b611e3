//! Which JSON a PostgreSQL type becomes.
//!
//! In: a column's type OID, as pgoutput's Relation message names it, and what `pg_type` says of the types that are not
//! the same in every cluster. Out: a [`Class`], small enough to keep beside each column. A class says how
//! [`write_json`](super::value::write_json) reads the value's text; this module never sees a value.
//!
//! | PostgreSQL type | JSON |
//! |---|---|
//! | `boolean` | `true`, `false` |
//! | `smallint`, `integer`, `bigint` | number, all digits (a `bigint` may be beyond 2^53) |
//! | `oid`, `xid`, `xid8`, `cid` | number, likewise |
//! | `real`, `double precision` | number as PostgreSQL prints it (`1e+20`, `-0`); NaN and ±infinity: `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | `numeric` | number with every digit, trailing zeros too (`1.50`); NaN and ±infinity as above |
//! | `json`, `jsonb` | embedded byte for byte |
//! | `bytea` | string, base64 with padding |
//! | `date` | string, ISO 8601: `"2024-01-02"` |
//! | `timestamp` | `"2024-01-02T03:04:05.123456"`, no zone; the fraction only where there is one |
//! | `timestamptz` | `"2024-01-02T03:04:05.123456+00:00"`, always UTC |
//! | `time`, `timetz` | `"03:04:05.123456"`, `"03:04:05.123456+05:30"` |
//! | `date`, `timestamp`, `timestamptz` before year 1 or after 9999 | astronomical years with a sign: 1 BC is `"0000-…"`, 44 BC `"-0043-…"`; `"+12345-01-01"` |
//! | `date`, `timestamp`, `timestamptz` of ±infinity | `"infinity"`, `"-infinity"` |
//! | `interval` | string, ISO 8601 as PostgreSQL writes it: `"P1Y2M3DT4H5M6.7S"`; ±infinity as above |
//! | arrays of all these | arrays, nested one level per dimension, `null` for NULL; lower bounds are dropped |
//! | `int2vector`, `oidvector` | array of numbers |
//! | domains | as the type below them |
//! | `text`, `varchar`, `char(n)`, `"char"`, `name`, `uuid`, `xml`, `inet`, `cidr`, `macaddr`, `macaddr8`, `bit`, `varbit`, `money`, `tsvector`, `tsquery`, `jsonpath`, `pg_lsn`, `tid`, `pg_snapshot`, `regclass` and the other `reg…`, `point` and the other shapes, ranges, multiranges, enums, composites, and what extensions bring (`hstore`, `citext`, `ltree`, …) | string: PostgreSQL's text of the value |
//! | text that is not valid UTF-8 (databases with the encoding `SQL_ASCII`, characters without UTF-8 in others) | `{"$base64": "…"}` |
//!
//! `char(n)` keeps its padding. Whatever does not look like its type becomes a string of its text. The same table, with
//! what a consumer should know, is `docs/values.md`.

use std::collections::BTreeMap;

/// How the text of a column's values becomes JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// One JSON value, without an array literal around it.
    Scalar(Scalar),
    /// PostgreSQL's array literal, `{…}`, of any number of dimensions.
    Array {
        /// What the innermost elements are.
        element: Scalar,
        /// What stands between two elements: `,`, but `;` for `box`.
        delimiter: u8,
        /// 1 for an array. An array of a domain over an array has elements that are array literals themselves, and 2.
        levels: u8,
    },
}

impl Class {
    /// A string of PostgreSQL's text: right for any type, if not the best for each.
    pub const TEXT: Class = Class::Scalar(Scalar::Text);
    /// A JSON value as it stands.
    pub const JSON: Class = Class::Scalar(Scalar::Json);
    /// The same as the server has just printed it.
    pub const JSONB: Class = Class::Scalar(Scalar::Jsonb);
}

/// How one value that is not an array becomes JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// `t` or `f`.
    Bool,
    /// Digits, perhaps with a minus.
    Integer,
    /// What may have a fraction, an exponent, or be no number at all.
    Number,
    /// JSON already, as its writer put it: `json`.
    Json,
    /// JSON that the server has just written itself: `jsonb`.
    Jsonb,
    /// Bytes in hexadecimal.
    Bytea,
    /// `2024-01-02`, perhaps with ` BC`.
    Date,
    /// A date, a space, a time, perhaps an offset, perhaps ` BC`: `timestamp` and `timestamptz`.
    Timestamp,
    /// A time of day with its offset.
    TimeTz,
    /// Integers with spaces between them: `int2vector`, `oidvector`.
    Vector,
    /// All else.
    Text,
}

/// What a type is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TypeKind {
    /// One value. Enums, composites, ranges and extension types are [`Scalar::Text`].
    Scalar(Scalar),
    /// A domain.
    Domain {
        /// OID of the type below.
        base: u32,
    },
    /// A type that prints array literals.
    Array {
        /// OID of the element's type.
        element: u32,
        /// What stands between two elements.
        delimiter: u8,
    },
}

impl TypeKind {
    /// From a row of [`TypeCatalog::QUERY`] without its `oid`.
    pub fn from_row(kind: &str, inner_oid: u32, delimiter: &str) -> TypeKind {
        match kind {
            "domain" => TypeKind::Domain { base: inner_oid },
            "array" => {
                TypeKind::Array { element: inner_oid, delimiter: *delimiter.as_bytes().first().unwrap_or(&b',') }
            }
            _ => TypeKind::Scalar(Scalar::Text),
        }
    }
}

/// The types of one database, as its `pg_type` has them.
///
/// A type never changes what it is made of (`ALTER DOMAIN` cannot change the base), so an entry is good for as long as
/// the type lives; a new type is missing until the catalog is read again.
#[derive(Clone, Debug, Default)]
pub struct TypeCatalog {
    types: BTreeMap<u32, TypeKind>,
    /// As far as the WAL stream tells of types, which it does by the names they had: what is left of a type that was dropped.
    declared: BTreeMap<u32, Class>,
    /// Texts may have bytes or characters that have no UTF-8: the database's encoding is another.
    pub has_raw_bytes: bool,
}

/// OIDs below are assigned by hand in PostgreSQL's source and mean the same in every cluster; from here on `initdb` and
/// users hand them out (`FirstGenbkiObjectId`). pgoutput draws the same line for its Type messages.
const FIRST_ASSIGNED_OID: u32 = 10_000;

/// jsonb.
pub const JSONB: u32 = 3802;

/// Domains over arrays of domains over …: further down nobody looks, and it is text.
const HOPS_MAX: u8 = 32;

impl TypeCatalog {
    /// Reads what [`insert`](Self::insert) wants: `oid oid, kind text, inner_oid oid, delimiter text`.
    ///
    /// An array is known by the function that prints it: that, and not the category, decides the text.
    pub const QUERY: &str = "SELECT oid, \
        CASE WHEN typtype = 'd' THEN 'domain' WHEN typoutput = 'pg_catalog.array_out'::pg_catalog.regproc THEN 'array' \
        ELSE 'other' END AS kind, \
        CASE WHEN typtype = 'd' THEN typbasetype ELSE typelem END AS inner_oid, \
        typdelim::pg_catalog.text AS delimiter \
        FROM pg_catalog.pg_type WHERE oid >= 10000";

    /// A catalog that knows PostgreSQL's own types only.
    pub fn new() -> TypeCatalog {
        TypeCatalog::default()
    }

    /// Adds a type, or puts it in the place of an older one that had its OID.
    pub fn insert(&mut self, oid: u32, kind: TypeKind) {
        self.types.insert(oid, kind);
    }

    /// The WAL stream has told what a type was called, or the type below a domain.
    pub fn declare(&mut self, oid: u32, is_built_in: bool, name: &str) {
        // The type of an array is called like its element's, behind an underscore, and nobody can give it another name.
        let (name, is_array) = name.strip_prefix('_').map_or((name, false), |element| (element, true));
        let element = if is_built_in { built_in_scalar(name) } else { Scalar::Text };
        let delimiter = if is_built_in && name == "box" { b';' } else { b',' };
        let class = if is_array { Class::Array { element, delimiter, levels: 1 } } else { Class::Scalar(element) };
        self.declared.insert(oid, class);
    }

    /// Takes over what an older catalog knew of types that have been dropped since.
    pub fn remember(&mut self, older: TypeCatalog) {
        for (oid, kind) in older.types {
            self.types.entry(oid).or_insert(kind);
        }
        self.declared.extend(older.declared);
    }

    /// Reads [`has_raw_bytes`](Self::has_raw_bytes).
    pub const QUERY_ENCODING: &str =
        "SELECT pg_catalog.getdatabaseencoding() OPERATOR(pg_catalog.<>) 'UTF8'::pg_catalog.name";

    /// How values of a type become JSON that no catalog knows, by what the WAL stream calls it. What does not look like it becomes
    /// a string of its text, as always.
    pub fn declared(&self, oid: u32) -> Class {
        self.declared.get(&oid).copied().unwrap_or(Class::TEXT)
    }

    /// The type below a domain; a type that is none is its own.
    pub fn base(&self, oid: u32) -> u32 {
        let mut oid = oid;
        for _ in 0..HOPS_MAX {
            match self.types.get(&oid) {
                Some(TypeKind::Domain { base }) => oid = *base,
                _ => break,
            }
        }
        oid
    }

    /// The type below domains and arrays, however deep; 0 where it is not known.
    pub fn leaf(&self, oid: u32) -> u32 {
        let mut oid = oid;
        for _ in 0..HOPS_MAX {
            let kind = if oid < FIRST_ASSIGNED_OID { Some(built_in(oid)) } else { self.types.get(&oid).copied() };
            match kind {
                Some(TypeKind::Scalar(_)) => return oid,
                Some(TypeKind::Domain { base: inner } | TypeKind::Array { element: inner, .. }) => oid = inner,
                None => break,
            }
        }
        0
    }

    /// How values of the type become JSON. `None`: a type newer than this catalog, which is to be read again; if it is
    /// still unknown then, the type has been dropped since, and [`declared`](Self::declared) says what is left of it.
    pub fn class(&self, oid: u32) -> Option<Class> {
        let mut oid = oid;
        let mut levels = 0;
        // An array, a domain over it and an array of that domain all have the innermost element's delimiter.
        let mut separator = b',';
        for _ in 0..HOPS_MAX {
            let kind = if oid < FIRST_ASSIGNED_OID { built_in(oid) } else { *self.types.get(&oid)? };
            match kind {
                TypeKind::Scalar(scalar) if levels == 0 => return Some(Class::Scalar(scalar)),
                TypeKind::Scalar(element) => return Some(Class::Array { element, delimiter: separator, levels }),
                TypeKind::Domain { base } => oid = base,
                TypeKind::Array { element, delimiter } => {
                    levels += 1;
                    separator = delimiter;
                    oid = element;
                }
            }
        }
        Some(Class::TEXT)
    }
}

/// The types of `pg_type.dat`. One that is missing here, from a server newer than this list, is text.
fn built_in(oid: u32) -> TypeKind {
    if let Ok(at) = ELEMENTS.binary_search_by_key(&oid, |(array, _)| *array) {
        let element = ELEMENTS[at].1;
        return TypeKind::Array { element, delimiter: if element == 603 { b';' } else { b',' } };
    }
    TypeKind::Scalar(match oid {
        16 => Scalar::Bool,
        20 | 21 | 23 => Scalar::Integer,        // int8, int2, int4
        26 | 28 | 29 | 5069 => Scalar::Integer, // oid, xid, cid, xid8
        700 | 701 | 1700 => Scalar::Number,     // float4, float8, numeric
        114 => Scalar::Json,
        JSONB => Scalar::Jsonb,
        17 => Scalar::Bytea,
        1082 => Scalar::Date,
        1114 | 1184 => Scalar::Timestamp, // timestamp, timestamptz
        1266 => Scalar::TimeTz,
        22 | 30 => Scalar::Vector, // int2vector, oidvector
        _ => Scalar::Text,
    })
}

/// The same by the names, for what is not text.
fn built_in_scalar(name: &str) -> Scalar {
    match name {
        "bool" => Scalar::Bool,
        "int2" | "int4" | "int8" | "oid" | "xid" | "cid" | "xid8" => Scalar::Integer,
        "float4" | "float8" | "numeric" => Scalar::Number,
        "json" | "jsonb" => Scalar::Json,
        "bytea" => Scalar::Bytea,
        "date" => Scalar::Date,
        "timestamp" | "timestamptz" => Scalar::Timestamp,
        "timetz" => Scalar::TimeTz,
        "int2vector" | "oidvector" => Scalar::Vector,
        _ => Scalar::Text,
    }
}

/// What SQL calls a type of PostgreSQL's own, of those that a table is likely to have.
pub fn sql_name(oid: u32) -> Option<&'static str> {
    Some(match oid {
        16 => "boolean",
        17 => "bytea",
        18 => "\"char\"",
        19 => "name",
        20 => "bigint",
        21 => "smallint",
        22 => "int2vector",
        23 => "integer",
        25 => "text",
        26 => "oid",
        27 => "tid",
        28 => "xid",
        29 => "cid",
        30 => "oidvector",
        114 => "json",
        142 => "xml",
        600 => "point",
        601 => "lseg",
        602 => "path",
        603 => "box",
        604 => "polygon",
        628 => "line",
        650 => "cidr",
        700 => "real",
        701 => "double precision",
        718 => "circle",
        774 => "macaddr8",
        790 => "money",
        829 => "macaddr",
        869 => "inet",
        1042 => "character",
        1043 => "character varying",
        1082 => "date",
        1083 => "time without time zone",
        1114 => "timestamp without time zone",
        1184 => "timestamp with time zone",
        1186 => "interval",
        1266 => "time with time zone",
        1560 => "bit",
        1562 => "bit varying",
        1700 => "numeric",
        2950 => "uuid",
        3220 => "pg_lsn",
        3614 => "tsvector",
        3615 => "tsquery",
        JSONB => "jsonb",
        3904 => "int4range",
        3906 => "numrange",
        3908 => "tsrange",
        3910 => "tstzrange",
        3912 => "daterange",
        3926 => "int8range",
        4072 => "jsonpath",
        4451 => "int4multirange",
        4532 => "nummultirange",
        4533 => "tsmultirange",
        4534 => "tstzmultirange",
        4535 => "datemultirange",
        4536 => "int8multirange",
        5069 => "xid8",
        _ => return None,
    })
}

/// The built-in types of arrays, in the order of their OIDs, each with the type of its elements.
const ELEMENTS: [(u32, u32); 82] = [
    (143, 142),   // xml
    (199, 114),   // json
    (210, 71),    // pg_type
    (270, 75),    // pg_attribute
    (271, 5069),  // xid8
    (272, 81),    // pg_proc
    (273, 83),    // pg_class
    (629, 628),   // line
    (651, 650),   // cidr
    (719, 718),   // circle
    (775, 774),   // macaddr8
    (791, 790),   // money
    (1000, 16),   // bool
    (1001, 17),   // bytea
    (1002, 18),   // char
    (1003, 19),   // name
    (1005, 21),   // int2
    (1006, 22),   // int2vector
    (1007, 23),   // int4
    (1008, 24),   // regproc
    (1009, 25),   // text
    (1010, 27),   // tid
    (1011, 28),   // xid
    (1012, 29),   // cid
    (1013, 30),   // oidvector
    (1014, 1042), // bpchar
    (1015, 1043), // varchar
    (1016, 20),   // int8
    (1017, 600),  // point
    (1018, 601),  // lseg
    (1019, 602),  // path
    (1020, 603),  // box
    (1021, 700),  // float4
    (1022, 701),  // float8
    (1027, 604),  // polygon
    (1028, 26),   // oid
    (1034, 1033), // aclitem
    (1040, 829),  // macaddr
    (1041, 869),  // inet
    (1115, 1114), // timestamp
    (1182, 1082), // date
    (1183, 1083), // time
    (1185, 1184), // timestamptz
    (1187, 1186), // interval
    (1231, 1700), // numeric
    (1263, 2275), // cstring
    (1270, 1266), // timetz
    (1561, 1560), // bit
    (1563, 1562), // varbit
    (2201, 1790), // refcursor
    (2207, 2202), // regprocedure
    (2208, 2203), // regoper
    (2209, 2204), // regoperator
    (2210, 2205), // regclass
    (2211, 2206), // regtype
    (2287, 2249), // record
    (2949, 2970), // txid_snapshot
    (2951, 2950), // uuid
    (3221, 3220), // pg_lsn
    (3643, 3614), // tsvector
    (3644, 3642), // gtsvector
    (3645, 3615), // tsquery
    (3735, 3734), // regconfig
    (3770, 3769), // regdictionary
    (3807, 3802), // jsonb
    (3905, 3904), // int4range
    (3907, 3906), // numrange
    (3909, 3908), // tsrange
    (3911, 3910), // tstzrange
    (3913, 3912), // daterange
    (3927, 3926), // int8range
    (4073, 4072), // jsonpath
    (4090, 4089), // regnamespace
    (4097, 4096), // regrole
    (4192, 4191), // regcollation
    (5039, 5038), // pg_snapshot
    (6150, 4451), // int4multirange
    (6151, 4532), // nummultirange
    (6152, 4533), // tsmultirange
    (6153, 4534), // tstzmultirange
    (6155, 4535), // datemultirange
    (6157, 4536), // int8multirange
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ARRAY_OF_INTEGERS: Class = Class::Array { element: Scalar::Integer, delimiter: b',', levels: 1 };

    #[test]
    fn a_class_is_small() {
        assert!(size_of::<Class>() <= 4);
    }

    #[test]
    fn a_domain_is_what_it_is_made_of_however_deep() {
        let mut catalog = TypeCatalog::new();
        catalog.insert(20_000, TypeKind::Domain { base: 23 });
        catalog.insert(20_001, TypeKind::Array { element: 20_000, delimiter: b',' });
        catalog.insert(20_002, TypeKind::Domain { base: 20_001 });
        catalog.insert(20_003, TypeKind::Array { element: 20_002, delimiter: b',' });
        catalog.insert(20_004, TypeKind::Domain { base: 1020 });
        assert_eq!(catalog.class(20_000), Some(Class::Scalar(Scalar::Integer)));
        assert_eq!(catalog.class(20_001), Some(ARRAY_OF_INTEGERS));
        assert_eq!(catalog.class(20_002), Some(ARRAY_OF_INTEGERS));
        assert_eq!(catalog.class(20_003), Some(Class::Array { element: Scalar::Integer, delimiter: b',', levels: 2 }));
        assert_eq!(catalog.class(20_004), Some(Class::Array { element: Scalar::Text, delimiter: b';', levels: 1 }));
    }

    #[test]
    fn a_type_the_catalog_has_not_seen_asks_for_a_new_reading() {
        let mut catalog = TypeCatalog::new();
        assert_eq!(catalog.class(20_000), None);
        catalog.insert(20_001, TypeKind::Array { element: 20_000, delimiter: b',' });
        assert_eq!(catalog.class(20_001), None, "an array of it, too");
        catalog.insert(20_000, TypeKind::from_row("other", 0, ","));
        assert_eq!(catalog.class(20_000), Some(Class::TEXT));
        assert_eq!(catalog.class(9_999), Some(Class::TEXT), "PostgreSQL's own, from a newer server");
    }

    #[test]
    fn a_catalog_that_goes_in_circles_ends_as_text() {
        let mut catalog = TypeCatalog::new();
        catalog.insert(20_000, TypeKind::Domain { base: 20_000 });
        assert_eq!(catalog.class(20_000), Some(Class::TEXT));
    }
}
