//! Any text of any type becomes one JSON value. The first byte chooses the type.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use walhook::route::{
    types::TypeCatalog,
    value::{write_json, write_json_string},
};

/// bool, int2, int8, numeric, float8, text, bytea, date, timestamp, timestamptz, interval, uuid, and arrays of some.
const TYPES: [u32; 20] =
    [16, 21, 20, 1700, 701, 25, 17, 1082, 1114, 1184, 1186, 2950, 1000, 1016, 1231, 1022, 1009, 1001, 1115, 3807];
/// json and jsonb, which PostgreSQL has checked.
const JSON: [u32; 2] = [114, 3802];

fuzz_target!(|input: &[u8]| {
    let Some((choice, text)) = input.split_first() else { return };
    let types = TypeCatalog::new();
    let is_json = serde_json::from_slice::<&RawValue>(text).is_ok();
    let mut chosen = vec![TYPES[usize::from(*choice) % TYPES.len()]];
    if is_json {
        chosen.extend(JSON);
    }
    let mut out = Vec::new();
    for oid in chosen {
        let Some(class) = types.class(oid) else { continue };
        out.clear();
        write_json(class, text, &mut out);
        let told = serde_json::from_slice::<&RawValue>(&out);
        assert!(
            told.is_ok(),
            "type {oid}: {:?} became {:?}",
            text.escape_ascii().to_string(),
            String::from_utf8_lossy(&out)
        );
    }
    out.clear();
    write_json_string(text, &mut out);
    let read: serde_json::Value = serde_json::from_slice(&out).expect("a JSON string");
    assert_eq!(read.as_str().map(str::as_bytes), std::str::from_utf8(text).ok().map(str::as_bytes));
});
