//! What is read as an id of ours says the same when it is written and read again; and a stored message's headers are read
//! whatever they hold. The first line is the source.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhook::{flow::event_id::EventPosition, route::headers};

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input)
        && let Some((source, id)) = text.split_once('\n')
        && let Some(position) = EventPosition::parse(id, source)
    {
        assert_eq!(EventPosition::parse(&position.id(source), source), Some(position));
        assert!(!position.contradicts(&position) && position.is_at_or_before(&position));
    }
    let json = headers::to_json(input);
    assert!(serde_json::from_str::<serde_json::Map<_, _>>(&json).is_ok(), "{json}");
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(shown) = headers::parse(Some(text), false)
    {
        let shown: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&shown).expect("JSON");
        assert!(shown.values().all(serde_json::Value::is_string));
    }
});
