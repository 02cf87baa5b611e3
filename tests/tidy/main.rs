//! What a machine can check of the structure, the files and the words. Needs no server.

#[path = "../support/test_files.rs"]
mod test_files;

mod chart;
mod decisions;
mod packaging;
mod release;
mod scaling;
mod sizes;
mod structure;
mod tidy;
mod words;
