//! What comes from outside, read without a server: captured pgoutput, and the fuzz targets.

extern crate self as libfuzzer_sys; // the fuzz targets ask that crate for `fuzz_target!`

mod fuzz_targets;
mod pgoutput;
