//! Any CopyData payload gives a frame or an error; what is read can be said again in the same bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhook::wal::{
    frame::{Frame, StandbyStatus},
    pgoutput::{Dialect, Message},
};

fuzz_target!(|copy_data: &[u8]| {
    match Frame::parse(copy_data) {
        Ok(Frame::XLogData { data, .. }) => {
            assert_eq!(data.len() + 25, copy_data.len());
            let _ = Message::parse(data, Dialect::V1);
        }
        Ok(Frame::Keepalive { .. }) => assert_eq!(copy_data.len(), 18),
        Err(error) => assert!(error.offset <= copy_data.len() && !error.to_string().is_empty()),
    }
    if let Ok(status) = StandbyStatus::parse(copy_data) {
        let mut again = Vec::new();
        status.write(&mut again);
        assert_eq!(again, copy_data);
    }
});
