//! Any template, fitted to a table, is refused or makes subjects that NATS takes, whatever the columns hold. The first line is
//! the template, the second a filter, the third a pattern of a stream; what follows are the columns' values, by tabs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhook::{
    route::{
        filter::Filter,
        subject::{Template, invalid, invalid_pattern, matches, push_token},
    },
    wal::{
        change::{Relation, RelationColumn},
        pgoutput::ReplicaIdentity,
    },
};

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(4, |&byte| byte == b'\n');
    let mut line = || parts.next().unwrap_or_default();
    let (template, filter, pattern, values) = (line(), line(), line(), line());
    let mut columns = values.split(|&byte| byte == b'\t');
    let name = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let relation = Relation {
        id: 1,
        schema: name(columns.next()),
        name: name(columns.next()),
        identity: ReplicaIdentity::Default,
        columns: [("id", 20), ("note", 25), ("doc", 3802), ("tags", 1009)]
            .map(|(name, type_oid)| RelationColumn { name: name.to_owned(), type_oid, is_key: name == "id" })
            .into(),
    };
    let mut token = Vec::new();
    push_token(values, &mut token);
    assert!(token.is_empty() || invalid(&token).is_none(), "{}", String::from_utf8_lossy(&token));
    if let Ok(text) = std::str::from_utf8(template)
        && let Ok(template) = Template::parse(text, &relation)
        && let Some(subject) = template.as_literal()
    {
        assert_eq!(invalid(subject), None, "{text:?}");
        assert!(matches(b">", subject) && matches(subject, subject) || subject.contains(&b'*'));
    }
    if let Ok(filter) = std::str::from_utf8(filter)
        && let Err(why) = Filter::parse(filter, &relation)
    {
        assert!(!why.is_empty());
    }
    if let Ok(pattern) = std::str::from_utf8(pattern)
        && invalid_pattern(pattern).is_none()
    {
        let _ = matches(pattern.as_bytes(), template);
    }
});
