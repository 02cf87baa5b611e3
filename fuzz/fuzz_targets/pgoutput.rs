//! Any bytes give a message that can be walked to its end, or an error. The first byte chooses the dialect: two bits of
//! version, then in_stream, then parallel.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhook::wal::{
    cursor::Fault,
    pgoutput::{Dialect, Message},
};

fuzz_target!(|input: &[u8]| {
    let Some((choice, data)) = input.split_first() else { return };
    let dialect = Dialect { version: choice % 4 + 1, in_stream: choice & 4 != 0, parallel: choice & 8 != 0 };
    match Message::parse(data, dialect) {
        Ok(message) => {
            // Debug walks every tuple, column and list. A byte more or less is not the same message.
            assert!(!format!("{message:?}").is_empty());
            let longer = [data, b"\0"].concat();
            assert_eq!(Message::parse(&longer, dialect).map_err(|error| error.fault), Err(Fault::Left(1)));
            assert!(Message::parse(&data[..data.len() - 1], dialect).is_err());
        }
        Err(error) => assert!(error.offset <= data.len() && !error.to_string().is_empty()),
    }
});
