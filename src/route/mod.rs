//! Changes become events. Pure.

pub mod types;
pub mod value;
