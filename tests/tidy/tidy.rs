//! What a machine can hold of the style: who may use whom, how long a file may be, what no file may hold.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::test_files;

/// Longest file, in lines. Past it, look for the part that has a name of its own.
const LINES_MAX: usize = 900;
/// Files that are longer, each with the reason.
const LONGER: [(&str, &str); 0] = [];

/// A folder or file below `src/`, and which of its siblings it may use besides itself and `error`.
const MAY_USE: [(&str, &[&str]); 10] = [
    ("wal", &[]),
    ("route", &["wal"]),
    ("flow", &["route", "text", "wal"]),
    ("deliver", &["flow", "route", "wal"]),
    ("postgres", &["files", "wal"]),
    ("nats", &["files", "route"]), // the rows of the configuration tables, nothing else
    ("http", &["files", "flow"]),
    ("error", &["text"]),
    ("text", &[]),
    ("files", &["text"]),
];

/// What every part may use; these use nothing but `text`.
const FOR_ALL: [&str; 3] = ["calendar", "error", "percent"];
/// The parts on top, which the others do not use.
const TOP: [(&str, &[&str]); 3] = [
    ("config", &["commands", "files", "flow", "http", "nats", "postgres", "route"]), // their settings; of commands only deliver's
    ("log", &["commands", "config", "text"]), // of commands only whether a terminal has colours
    ("commands", &["config", "deliver", "files", "flow", "http", "log", "nats", "postgres", "route", "text", "wal"]),
];

/// Folders of pure code …
const PURE: [&str; 4] = ["wal", "route", "flow", "deliver"];
/// … and what makes code impure: clients, sockets, files, the environment, the clock, chance.
const IMPURE: [&str; 15] = [
    "tokio",
    "tokio_postgres",
    "async_nats",
    "futures_util",
    "rustls",
    "socket2",
    "fastrand",
    "std::net",
    "std::fs",
    "std::env",
    "std::thread",
    "std::time::Instant",
    "Instant::now",
    "SystemTime",
    "async",
];

pub struct File {
    pub path: PathBuf,
    pub text: String,
}

impl File {
    pub fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    /// The folder or file directly below `src/` that it belongs to.
    fn part(&self) -> String {
        let below = self.path.strip_prefix(root().join("src")).unwrap();
        let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
        first.trim_end_matches(".rs").to_owned()
    }

    /// Without comments and without its tests.
    pub fn code(&self) -> String {
        let code = self.text.split("#[cfg(test)]").next().unwrap();
        code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
    }

    fn comments(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter_map(|line| line.split_once("//").map(|(_, comment)| comment))
    }
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn collect(folder: &Path, endings: &[&str], files: &mut Vec<File>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, endings, files);
        } else if path.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted)) {
            files.push(File { text: fs::read_to_string(&path).unwrap(), path });
        }
    }
}

fn files(folders: &[&str], endings: &[&str]) -> Vec<File> {
    let mut files = Vec::new();
    for folder in folders {
        collect(&root().join(folder), endings, &mut files);
    }
    assert!(!files.is_empty(), "no files in {folders:?}");
    files
}

fn sources() -> Vec<File> {
    files(&["src"], &["rs"])
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether `word` stands in `code` as a word of its own.
fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].bytes().next_back();
        let after = code[at + word.len()..].bytes().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The parts of the crate that the code names: `crate::wal::…`, `use crate::{wal::…, route}`.
fn used(code: &str) -> BTreeSet<String> {
    let first_word = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let mut parts = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            parts.insert(first_word(rest));
            continue;
        };
        // The words at the beginning of each branch of the group itself, not of the groups inside it.
        let (mut depth, mut start) = (0, 0);
        for (index, byte) in group.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b',' if depth == 0 => {
                    parts.insert(first_word(&group[start..index]));
                    start = index + 1;
                }
                b'}' if depth == 0 => {
                    parts.insert(first_word(&group[start..index]));
                    break;
                }
                b'}' => depth -= 1,
                _ => {}
            }
        }
    }
    parts.remove("");
    parts
}

#[test]
fn the_parts_that_code_uses_are_found_in_every_form() {
    let code = "use crate::{\n  error::{Error, Result},\n  flow::{lane::{Head, Lane}, streamer},\n  wal::lsn::Lsn,\n};\n\
                fn f(x: &crate::route::plan::Plan) {}\nuse crate::config::Config;";
    let found: Vec<_> = used(code).into_iter().collect();
    assert_eq!(found, ["config", "error", "flow", "route", "wal"]);
}

#[test]
fn parts_use_only_those_they_may() {
    let mut wrong = Vec::new();
    for file in sources() {
        let part = file.part();
        let Some((_, allowed)) = MAY_USE.iter().chain(&TOP).find(|(name, _)| *name == part) else { continue };
        for other in used(&file.code()) {
            if other != part && !FOR_ALL.contains(&&*other) && !allowed.contains(&other.as_str()) {
                wrong.push(format!("{} uses crate::{other}", file.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_part_has_its_place_in_the_order() {
    let below: Vec<_> = MAY_USE.iter().chain(&TOP).map(|(name, _)| *name).chain(FOR_ALL).collect();
    let parts: BTreeSet<_> = sources().iter().map(File::part).collect();
    let unplaced: Vec<_> = parts.iter().filter(|part| !below.contains(&part.as_str())).map(String::as_str).collect();
    assert_eq!(unplaced, ["lib", "main"], "a new part has its place in MAY_USE");
}

#[test]
fn pure_code_knows_no_client_no_socket_no_file_and_no_clock() {
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|file| PURE.contains(&file.part().as_str())) {
        let code = file.code();
        wrong.extend(IMPURE.iter().filter(|word| has_word(&code, word)).map(|word| format!("{}: {word}", file.name())));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_left_to_be_done() {
    let marks = ["TODO", "FIXME", "dbg!(", "todo!(", "unimplemented!("];
    let mut wrong = Vec::new();
    for file in files(&["src", "sql", "docs", "config", "scripts", "benches"], &["rs", "sql", "md", "toml", "sh"]) {
        wrong.extend(
            marks.iter().filter(|mark| file.text.contains(**mark)).map(|mark| format!("{}: {mark}", file.name())),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What reads code without its tests reads up to their beginning.
#[test]
fn tests_stand_behind_the_code() {
    for file in sources() {
        let Some((_, tests)) = file.text.split_once("#[cfg(test)]") else { continue };
        let behind = tests.split_once("mod tests;").map_or("", |(_, behind)| behind);
        assert_eq!(behind.trim(), "", "{}: code behind `mod tests;`", file.name());
    }
}

#[test]
fn no_merge_is_left_half_done() {
    // No file is searched that a build or a tool has made.
    let made = ["target", ".cache", ".git"];
    let mut open = vec![root()];
    let mut wrong = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() && !made.contains(&entry.file_name().to_string_lossy().as_ref()) {
                open.push(path);
            } else if kind.is_file()
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                let is_mark = |line: &str| line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ");
                wrong.extend(
                    text.lines().filter(|line| is_mark(line)).map(|line| format!("{}: {line}", path.display())),
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_opens_with_a_paragraph_on_what_it_is() {
    for folder in ["src", "tests", "benches"] {
        let mut files = Vec::new();
        collect(&root().join(folder), &["rs"], &mut files);
        let wrong: Vec<_> = files.iter().filter(|file| !file.text.starts_with("//! ")).map(File::name).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
    let wrong: Vec<_> =
        files(&["sql"], &["sql"]).iter().filter(|file| !file.text.starts_with("-- ")).map(File::name).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_source_file_is_longer_than_one_can_hold_in_mind() {
    for file in sources() {
        let lines = file.text.lines().count();
        let is_excused = LONGER.iter().any(|(name, _reason)| *name == file.name());
        assert!(lines <= LINES_MAX || is_excused, "{} has {lines} lines", file.name());
        assert!(lines > LINES_MAX || !is_excused, "{} needs no excuse any more", file.name());
    }
}

#[test]
fn no_text_cites_a_line_by_its_number() {
    /// `name.rs:17` or `line 17`: true yesterday.
    fn cites(text: &str) -> bool {
        let digit_after = |mark: &str| {
            text.match_indices(mark).any(|(at, _)| text[at + mark.len()..].starts_with(|c: char| c.is_ascii_digit()))
        };
        [".rs:", ".sql:", ".c:", ".h:", ".go:", ".md:", " line ", " lines "].into_iter().any(digit_after)
    }
    let mut wrong = Vec::new();
    for file in files(&["src", "tests"], &["rs"]) {
        wrong.extend(file.comments().filter(|text| cites(text)).map(|text| format!("{}: {text}", file.name())));
    }
    for file in files(&["docs"], &["md"]) {
        wrong.extend(file.text.lines().filter(|text| cites(text)).map(|text| format!("{}: {text}", file.name())));
    }
    wrong.retain(|text| !text.contains("true yesterday"));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let text = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let named: BTreeSet<(&str, &str)> = text
        .split('`')
        .filter_map(|word| word.split_once("::"))
        .filter(|(file, test)| [file, test].iter().all(|part| part.bytes().all(is_word)))
        .collect();
    assert!(named.len() > 30, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|(module, test)| !test_files::has_test(module, test)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
