//! Finds the source of a test by the name of its module, for what names tests as `module::test`.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

/// The source of test module `name`: `tests/name.rs`, `tests/name/main.rs` or `tests/*/name.rs`. A binary's name stands for the
/// tests in its `main.rs`.
pub fn source(name: &str) -> Option<String> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let folders = fs::read_dir(&tests).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let files = [tests.join(format!("{name}.rs")), tests.join(name).join("main.rs")].into_iter().chain(
        folders.filter(|folder| folder.join("main.rs").exists()).map(|folder| folder.join(format!("{name}.rs"))),
    );
    // `sql` is a binary and a module of it.
    let texts: Vec<String> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    (!texts.is_empty()).then(|| texts.concat())
}

/// Whether `module::test` names a test function.
pub fn has_test(module: &str, test: &str) -> bool {
    source(module).is_some_and(|text| text.contains(&format!("fn {test}()")))
}
