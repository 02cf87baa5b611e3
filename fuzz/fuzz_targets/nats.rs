//! Any bytes of a NATS server are operations, a wish for more, or an error; any payload is an ack or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhook::nats::{
    ack::Ack,
    ops::{Op, parse, status},
};

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    while let Ok(Some((op, length))) = parse(rest) {
        assert!(length > 0 && length <= rest.len());
        // Not a byte less is enough.
        assert!(!matches!(parse(&rest[..length - 1]), Ok(Some((_, shorter))) if shorter >= length));
        match op {
            Op::Msg { payload, .. } => drop(Ack::parse(None, payload)),
            Op::Hmsg { headers, payload, .. } => drop(Ack::parse(status(headers), payload)),
            _ => {}
        }
        rest = &rest[length..];
    }
    for code in [None, Some(503), Some(429)] {
        match Ack::parse(code, input) {
            Ok(Ack::Stored { sequence, .. }) => assert!(sequence > 0 && code != Some(503)),
            Ok(Ack::Refused { .. } | Ack::NoResponders) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
