//! The sums of docs/scaling.md: what the page quotes is what `scripts/scaling` prints.

#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

fn run(arguments: &[&str]) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/scaling");
    let output = Command::new(script).args(arguments).output().unwrap();
    let text = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn what_the_page_about_scaling_quotes_is_what_the_program_prints() {
    let page = include_str!("../../docs/scaling.md");
    let mut quoted = 0;
    for part in page.split("```sh\nscripts/scaling ").skip(1) {
        let (arguments, rest) = part.split_once("\n```\n\n```text\n").unwrap();
        let (expected, _) = rest.split_once("\n```\n").unwrap();
        let (succeeded, printed) = run(&arguments.split(' ').collect::<Vec<_>>());
        assert!(succeeded && printed.trim_end() == expected, "scripts/scaling {arguments} prints:\n{printed}");
        quoted += 1;
    }
    assert_eq!(quoted, 6);
}

#[test]
fn the_sums_add_up_and_what_cannot_be_is_refused() {
    // One event of 10 µs on each part: a core is full at 100,000 of them.
    let costs = ["--decode", "10", "--send", "0", "--walhook", "10", "--store", "10"];
    let rate = |rate: &'static str, more: &[&'static str]| run(&[&["--rate", rate][..], &costs, more].concat()).1;
    assert!(rate("100000", &[]).contains("it holds 100,000 rows/s"));
    let beyond = rate("200000", &[]);
    assert!(beyond.contains("at 100,000 events/s of 100,000 rows/s"), "{beyond}");
    assert!(beyond.contains("1,500,000, 3,000,000, 4,500,000, 6,000,000 events wait"), "{beyond}");
    // Shards share events, and not the decoding.
    let shards = rate("200000", &["--shards", "4"]);
    assert!(
        shards.contains("first full: walsender") && shards.contains("stream of main              0.50"),
        "{shards}"
    );
    for wrong in [
        &["--rate", "0"][..],
        &["--shards", "0"],
        &["--shards", "4", "--largest", "0.1"],
        &["--store", "-1"],
        &["--rate", "x"],
    ] {
        let (succeeded, text) = run(wrong);
        assert!(!succeeded && text.contains("usage"), "{wrong:?}: {text}");
    }
}
