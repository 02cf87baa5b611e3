//! Who uses whom, file by file: no circles, verbs apart from each other, and what tests and benches may see of the crate.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::tidy::{File, collect, root};

/// Files of `src/` (with a `/` at the end: folders of files) that use each other in a circle, each set with its reason. A new circle is no place for a new
/// line here: move what both need into a file that uses neither.
const CIRCLES: [(&[&str], &str); 2] = [
    (
        &["commands/schema", "commands/setup"],
        "the schema's version is the number of the last file that setup applies; the list of files belongs into sql/",
    ),
    (
        &["commands/deliver/"],
        "one state, the worker's, in several files: each takes the whole worker instead of the part that it needs",
    ),
];

/// The verbs of the command line. What else is below `src/commands/` they share.
const VERBS: [&str; 15] = [
    "adopt",
    "backfill",
    "check",
    "dead_letters",
    "deliver",
    "demo",
    "explain",
    "replay",
    "run",
    "seek",
    "setup",
    "status",
    "tail",
    "uninstall",
    "webhook",
];
/// Verbs that use another verb, or something shared that uses a verb, each with the reason.
const ACROSS: [(&str, &str, &str); 28] = [
    ("adopt", "replay", "adopt --stream finds the streams of this database as a replay does"),
    ("breaks", "check", "what is met at work has the form and the names of the check's findings"),
    ("check", "deliver", "a webhook is checked by deliver's own settings, rules and connector"),
    ("check", "setup", "the check compares a database with the files that setup applies"),
    ("check", "run", "the check compares streams with what run noted of them"),
    ("config", "deliver", "the file's section for deliver is read with the rest of the file"),
    ("deliver", "run", "a worker of the queue is struck at fault points as a run is"),
    ("explain", "run", "explain reads rules and positions as run stores them"),
    ("http", "dead_letters", "the status page retries and drops dead letters as the verb does"),
    ("replay", "backfill", "a replay of a table's present rows is a backfill"),
    ("replay", "dead_letters", "a replay of dead letters selects them as the verb does"),
    ("replay", "run", "a replay from WAL reads rules and positions as run stores them"),
    ("row_schemas", "explain", "schema finds a table and its columns in the catalog as explain does"),
    ("row_schemas", "replay", "schema reads a bucket over the same connection as a replay"),
    ("row_schemas", "run", "schema reads rules and types as run stores them"),
    ("run", "setup", "run --setup applies the migrations before it streams"),
    ("run", "check", "the status page of run shows what the check finds"),
    ("run", "replay", "run serves the replays that SQL has asked for"),
    ("schema", "setup", "see CIRCLES"),
    ("setup_check", "check", "the names of all findings are one table"),
    ("seek", "replay", "both name a place in a stream by the same options"),
    ("webhook", "deliver", "a webhook is tested by deliver's own settings, secrets and calls"),
    ("status", "check", "the names of all findings are one table"),
    ("status", "tail", "both end when nobody reads their output any more"),
    ("uninstall", "deliver", "uninstall removes the consumers that deliver made"),
    ("uninstall", "replay", "uninstall removes the streams that a replay made, over the same connection"),
    ("uninstall", "run", "uninstall removes the bucket and the consumers that run made"),
    ("tail", "replay", "tail reads a stream as a replay does, by the same options"),
];

/// What each test binary, and each bench, may use of the crate. Whoever judges real processes uses nothing of it, so that a fault of
/// the crate cannot hide itself.
const OUTSIDE: [(&str, &[&str]); 14] = [
    ("tests/support", &[]),
    ("tests/chaos", &[]),
    ("tests/delivery", &[]),
    ("tests/tidy", &[]),
    ("tests/faults", &["commands"]), // the list of fault points
    ("tests/protocol", &["wal"]),
    ("tests/servers", &["commands", "config", "error", "http", "log", "nats", "postgres", "route", "wal"]), // clients that are tested without the binary
    ("tests/simulation", &["error", "flow", "route", "wal"]),
    ("tests/sql", &["error", "nats", "postgres", "route"]), // owners in the metadata of streams; the reference of codes
    ("tests/allocations", &[]),
    ("benches/deliver", &[]),
    ("benches/end_to_end", &["flow", "nats", "route", "wal"]), // the bare publishing connection
    ("benches/stages", &["deliver", "error", "flow", "nats", "postgres", "route", "wal"]),
    ("examples", &[]),
];

/// Files with what they use: names are paths without `.rs`, below the crate's folder.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// `a::{b, c::d}` → `a::b`, `a::c::d`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, group)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap().trim().to_owned()];
    };
    let (mut depth, mut start, mut branches) = (0, 0, Vec::new());
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b',' | b'}' if depth == 0 => {
                branches.push(&group[start..at]);
                start = at + 1;
            }
            b'}' => depth -= 1,
            _ => {}
        }
    }
    let branches = branches.into_iter().filter(|branch| !branch.trim().is_empty());
    branches.flat_map(expand).map(|branch| format!("{}{branch}", prefix.trim())).collect()
}

/// The paths in `use` items, and those in code that begin with one of `heads`.
fn paths(code: &str, heads: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = String::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let item = line.trim_start();
        let item = item.strip_prefix("pub(crate) ").or(item.strip_prefix("pub ")).unwrap_or(item);
        if let Some(tree) = item.strip_prefix("use ") {
            let mut tree = tree.to_owned();
            while !tree.contains(';') {
                let Some(line) = lines.next() else { break };
                tree.push_str(line);
            }
            found.extend(expand(tree.split(';').next().unwrap()));
        } else {
            rest.push_str(line);
            rest.push('\n');
        }
    }
    for head in heads {
        let head = format!("{head}::");
        for (at, _) in rest.match_indices(&head) {
            let before = rest[..at].bytes().next_back();
            if !before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':') {
                found.push(rest[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect());
            }
        }
    }
    found
}

/// The file that `path`, written in `module`, leads to: the longest part of it that is a file.
fn resolve(path: &str, module: &str, files: &BTreeSet<String>) -> Option<String> {
    let mut parts: Vec<&str> = path.split("::").map(str::trim).collect();
    let mut at: Vec<&str> = module.split('/').collect();
    match parts[0] {
        "crate" => at.clear(),
        "super" => {
            while parts.first() == Some(&"super") {
                at.pop();
                parts.remove(0);
            }
            parts.insert(0, "");
        }
        "self" => {}
        _ => parts.insert(0, ""), // a module below this one, or another crate
    }
    at.extend(&parts[1..]);
    (1..=at.len()).rev().map(|length| at[..length].join("/")).find(|name| files.contains(name))
}

/// The files below `folder` and what they use of each other.
fn graph(folder: &str) -> Graph {
    let mut files = Vec::new();
    collect(&root().join(folder), &["rs"], &mut files);
    let name = |file: &File| {
        let name = file.name();
        let name = name.strip_prefix(folder).unwrap().trim_start_matches('/').strip_suffix(".rs").unwrap();
        name.strip_suffix("/mod").unwrap_or(name).to_owned()
    };
    files.retain(|file| !["lib", "main"].contains(&name(file).as_str()));
    let names: BTreeSet<String> = files.iter().map(name).collect();
    let of = |file: &File| {
        let name = name(file);
        let paths = paths(&file.code(), &["crate", "super", "self"]);
        let used = paths.iter().filter_map(|path| resolve(path, &name, &names)).filter(|used| *used != name).collect();
        (name, used)
    };
    files.iter().map(of).collect()
}

/// Whether one is a module of the other: a file and those in its folder are one subject and may use each other.
fn is_family(a: &str, b: &str) -> bool {
    let is_below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
    is_below(a, b) || is_below(b, a)
}

/// Sets of files each of which leads to all others of its set.
fn circles(graph: &Graph) -> Vec<BTreeSet<String>> {
    let reached = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(name) = next.pop() {
            for used in graph[&name].iter().filter(|used| !is_family(&name, used)) {
                if seen.insert(used.clone()) {
                    next.push(used.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = graph.keys().map(|name| (name, reached(name))).collect();
    let circle = |name: &String| {
        reached[name].iter().filter(|other| reached[*other].contains(name)).cloned().collect::<BTreeSet<_>>()
    };
    let all: BTreeSet<_> = graph.keys().map(circle).filter(|circle| circle.len() > 1).collect();
    all.into_iter().collect()
}

#[test]
fn paths_are_found_in_every_form_and_lead_to_their_files() {
    let code = "use crate::{a::{self, B}, c};\npub use super::d::E as F;\n    use g::H;\nfn f(x: &crate::a::b::C) { super::i::j() }";
    let found = paths(code, &["crate", "super"]);
    assert_eq!(
        found,
        ["crate::a::self", "crate::a::B", "crate::c", "super::d::E", "g::H", "crate::a::b::C", "super::i::j"]
    );
    let files: BTreeSet<_> = ["a", "a/b", "x", "x/d", "x/y", "x/y/g"].map(str::to_owned).into();
    let led: Vec<_> = found.iter().filter_map(|path| resolve(path, "x/y", &files)).collect();
    assert_eq!(led, ["a", "a", "x/d", "x/y/g", "a/b", "x"]);
}

#[test]
fn a_circle_is_found_and_a_family_is_none() {
    let graph: Graph = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "d/e"), ("d/e", "d"), ("f", "a")]
        .map(|(from, to)| (from.to_owned(), BTreeSet::from([to.to_owned()])))
        .into();
    assert_eq!(circles(&graph), [BTreeSet::from(["a", "b", "c"].map(str::to_owned))]);
}

#[test]
fn files_use_each_other_in_no_circle() {
    let found = circles(&graph("src"));
    let is_excused = |circle: &BTreeSet<String>, names: &[&str]| {
        circle
            .iter()
            .all(|file| names.iter().any(|name| file == name || (name.ends_with('/') && file.starts_with(name))))
    };
    let wrong: Vec<_> =
        found.iter().filter(|circle| !CIRCLES.iter().any(|(names, _)| is_excused(circle, names))).collect();
    assert!(wrong.is_empty(), "circles between files: {wrong:#?}");
    for (names, reason) in CIRCLES {
        assert!(found.iter().any(|circle| is_excused(circle, names)), "{names:?} is no circle any more: {reason}");
    }
    // The simulation's models and the chaos test's parts hold one world; all others are free of circles too.
    for folder in ["tests/support", "tests/servers", "tests/sql", "tests/delivery", "tests/faults", "benches/stages"] {
        let found = circles(&graph(folder));
        assert!(found.is_empty(), "{folder}: {found:#?}");
    }
}

#[test]
fn a_verb_uses_no_other_verb_but_by_an_exception_with_its_reason() {
    let (mut wrong, mut needed) = (Vec::new(), BTreeSet::new());
    let graph = graph("src");
    for (name, used) in &graph {
        let from = name.strip_prefix("commands/").unwrap_or(name).split('/').next().unwrap();
        for used in used {
            let Some(to) = used.strip_prefix("commands/") else { continue };
            let to = to.split('/').next().unwrap();
            if to == from || !VERBS.contains(&to) {
                continue;
            }
            match ACROSS.iter().position(|(one, other, _)| (*one, *other) == (from, to)) {
                Some(index) => drop(needed.insert(index)),
                None => wrong.push(format!("{name} uses {used}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // A verb that is still to come needs its exception then.
    let is_there = |name: &str| graph.contains_key(&format!("commands/{name}")) || graph.contains_key(name);
    let is_idle = |(index, (one, other, _)): &(usize, &(&str, &str, &str))| {
        is_there(one) && is_there(other) && !needed.contains(index)
    };
    let idle: Vec<_> = ACROSS.iter().enumerate().filter(is_idle).collect();
    assert!(idle.is_empty(), "exceptions that nothing needs any more: {idle:?}");
}

#[test]
fn tests_and_benches_use_of_the_crate_only_what_they_may() {
    let parts: BTreeSet<String> = graph("src").keys().map(|name| name.split('/').next().unwrap().to_owned()).collect();
    let mut wrong = Vec::new();
    let mut files = Vec::new();
    for folder in ["tests", "benches", "examples"] {
        collect(&root().join(folder), &["rs"], &mut files);
    }
    for file in &files {
        let name = file.name();
        let is_place = |place: &str| name.strip_prefix(place).is_some_and(|rest| rest.starts_with(['/', '.']));
        let Some((_, may)) = OUTSIDE.iter().find(|(place, _)| is_place(place)) else {
            wrong.push(format!("{name} has no place in OUTSIDE"));
            continue;
        };
        for path in paths(&file.code(), &["walhook"]) {
            let Some(part) = path.strip_prefix("walhook::").and_then(|rest| rest.split("::").next()) else { continue };
            if parts.contains(part) && !may.contains(&part) {
                wrong.push(format!("{name} uses walhook::{part}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_of_a_test_binary_is_a_module_of_it() {
    let mut wrong = Vec::new();
    for folder in fs::read_dir(root().join("tests")).unwrap().map(|entry| entry.unwrap().path()) {
        let Ok(main) = fs::read_to_string(folder.join("main.rs")) else { continue };
        let mut files = Vec::new();
        collect(&folder, &["rs"], &mut files);
        for file in files.iter().filter(|file| file.path.parent() == Some(folder.as_path())) {
            let stem = file.path.file_stem().unwrap().to_str().unwrap();
            if stem != "main" && !main.lines().any(|line| line == format!("mod {stem};")) {
                wrong.push(file.name());
            }
        }
    }
    assert!(wrong.is_empty(), "their tests never run: {wrong:#?}");
}
