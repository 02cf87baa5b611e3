//! The fuzz targets without a fuzzer: each runs its seeds, and mutations of them by chance. `scripts/fuzz` goes further.

#![allow(clippy::unwrap_used, unused_attributes, unused_imports)] // `no_main` and the real macro are for the fuzzer

extern crate self as libfuzzer_sys;

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

#[path = "../fuzz/fuzz_targets/configuration.rs"]
mod configuration;
#[path = "../fuzz/fuzz_targets/event_id.rs"]
mod event_id;
#[path = "../fuzz/fuzz_targets/history.rs"]
mod history;
#[path = "../fuzz/fuzz_targets/nats.rs"]
mod nats;
#[path = "../fuzz/fuzz_targets/subject.rs"]
mod subject;
#[path = "../fuzz/fuzz_targets/value.rs"]
mod value;

use std::fs;

use fastrand::Rng;

/// What takes any bytes.
type Target = fn(&[u8]);

/// Mutations of each seed; a fuzzer makes more of them in a second.
const MUTATIONS: u32 = 1500;

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

#[test]
fn every_seed_and_what_chance_makes_of_it_passes_its_target() {
    let targets: [(&str, Target); 6] = [
        ("configuration", configuration::run),
        ("event_id", event_id::run),
        ("history", history::run),
        ("nats", nats::run),
        ("subject", subject::run),
        ("value", value::run),
    ];
    let mut rng = Rng::with_seed(1);
    for (name, run) in targets {
        let folder = format!("{}/fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        assert!(!seeds.is_empty(), "{folder}");
        for seed in &seeds {
            run(seed);
            for _ in 0..MUTATIONS {
                let bytes = mutate(seed, &seeds, &mut rng);
                let outcome = std::panic::catch_unwind(|| run(&bytes));
                assert!(outcome.is_ok(), "{name}: {}", bytes.escape_ascii());
            }
        }
    }
}
