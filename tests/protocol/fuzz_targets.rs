//! The fuzz targets without a fuzzer: each runs its seeds, and mutations of them by chance. `scripts/fuzz` goes further.

#![allow(clippy::unwrap_used, unused_attributes, unused_imports)] // `no_main` and the real macro are for the fuzzer

/// Stands in for libfuzzer's.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: &str| $body:block) => {
        pub fn run(bytes: &[u8]) {
            let Ok($input) = std::str::from_utf8(bytes) else { return };
            $body
        }
    };
    (|$input:ident: &[u8]| $body:block) => {
        pub fn run($input: &[u8]) $body
    };
}

#[path = "../../fuzz/fuzz_targets/configuration.rs"]
mod configuration;
#[path = "../../fuzz/fuzz_targets/event_id.rs"]
mod event_id;
#[path = "../../fuzz/fuzz_targets/frame.rs"]
mod frame;
#[path = "../../fuzz/fuzz_targets/history.rs"]
mod history;
#[path = "../../fuzz/fuzz_targets/nats.rs"]
mod nats;
#[path = "../../fuzz/fuzz_targets/pgoutput.rs"]
mod pgoutput;
#[path = "../../fuzz/fuzz_targets/subject.rs"]
mod subject;
#[path = "../../fuzz/fuzz_targets/value.rs"]
mod value;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use fastrand::Rng;

/// What takes any bytes.
type Target = fn(&[u8]);

/// Mutations of each seed, or of all where there are many; a fuzzer makes more of them in a second.
const MUTATIONS: usize = 1500;
const MUTATIONS_OF_ALL: usize = 60_000;

/// A byte changed, taken out, doubled or made up, some times over; or the rest of another seed.
fn mutate(seed: &[u8], others: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.u32(1..6) {
        let at = rng.usize(0..=bytes.len());
        match rng.u32(0..6) {
            0 if at < bytes.len() => bytes[at] = rng.u8(..),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.insert(at, *rng.choice(b"\0\n\r\t {}[]\"'\\,.*>-+=?019\xff").unwrap()),
            3 if at < bytes.len() => bytes.insert(at, bytes[at]),
            4 => bytes.truncate(at),
            _ => {
                let other = rng.choice(others).unwrap();
                bytes.truncate(at);
                bytes.extend_from_slice(&other[rng.usize(0..=other.len())..]);
            }
        }
    }
    bytes
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A folder's files, by name.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(root(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The frames of a capture: each behind its length.
fn frames(mut capture: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = capture.split_first_chunk() {
        let (frame, rest) = rest.split_at(usize::try_from(u32::from_be_bytes(*length)).unwrap());
        frames.push(frame.to_vec());
        capture = rest;
    }
    frames
}

/// The messages in frames, each behind the byte by which the target chooses the dialect.
fn messages(frames: Vec<Vec<u8>>, version: u8, is_parallel: bool) -> Vec<Vec<u8>> {
    let mut in_stream = false;
    let mut messages = Vec::new();
    for frame in frames.iter().filter(|frame| frame[0] == b'w') {
        let choice = (version - 1) | u8::from(in_stream) << 2 | u8::from(is_parallel) << 3;
        messages.push([&[choice], &frame[25..]].concat());
        in_stream = (in_stream || frame[25] == b'S') && frame[25] != b'E';
    }
    messages
}

/// What PostgreSQL has sent, as `scripts/fuzz` has it too.
fn captured(target: &str) -> Vec<Vec<u8>> {
    let captures = files("tests/golden").into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "bin"));
    let seeds = captures.flat_map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let version = name.split_once("-v").unwrap().1.as_bytes()[0] - b'0';
        let frames = frames(&fs::read(&path).unwrap());
        if target == "pgoutput" { messages(frames, version, name.contains("-parallel-")) } else { frames }
    });
    seeds.collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn every_seed_and_what_chance_makes_of_it_passes_its_target() {
    let targets: [(&str, Target); 8] = [
        ("configuration", configuration::run),
        ("event_id", event_id::run),
        ("frame", frame::run),
        ("history", history::run),
        ("nats", nats::run),
        ("pgoutput", pgoutput::run),
        ("subject", subject::run),
        ("value", value::run),
    ];
    let there: Vec<_> = files("fuzz/fuzz_targets").iter().map(|path| path.file_stem().unwrap().to_owned()).collect();
    assert_eq!(targets.map(|(name, _)| name), there[..], "every target is among these");
    let mut rng = Rng::with_seed(1);
    for (name, run) in targets {
        let folder = format!("fuzz/seeds/{name}");
        let seeds: Vec<Vec<u8>> = if root(&folder).exists() {
            files(&folder).iter().map(|file| fs::read(file).unwrap()).collect()
        } else {
            captured(name)
        };
        assert!(!seeds.is_empty(), "{folder}");
        for seed in &seeds {
            run(seed);
            for _ in 0..(MUTATIONS_OF_ALL / seeds.len()).clamp(1, MUTATIONS) {
                let bytes = mutate(seed, &seeds, &mut rng);
                let outcome = std::panic::catch_unwind(|| run(&bytes));
                assert!(outcome.is_ok(), "{name}: {}", bytes.escape_ascii());
            }
        }
    }
}

#[test]
fn the_fuzzers_lock_file_knows_what_we_depend_on() {
    let read = |path: &str| fs::read_to_string(root(path)).unwrap().parse::<toml::Table>().unwrap();
    let (manifest, lock) = (read("Cargo.toml"), read("fuzz/Cargo.lock"));
    let ours = lock["package"].as_array().unwrap().iter().find(|package| package["name"].as_str() == Some("walhook"));
    let known = ours.unwrap()["dependencies"].as_array().unwrap();
    // A name that comes in two versions has the version behind it.
    let known: Vec<_> = known.iter().map(|name| name.as_str().unwrap().split(' ').next().unwrap()).collect();
    let wanted: Vec<_> = manifest["dependencies"].as_table().unwrap().keys().map(String::as_str).collect();
    assert_eq!(known, wanted, "`cargo +nightly metadata` in fuzz/ brings it up to date");
}
