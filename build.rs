//! Gives `walhook version` the commit and the date of the build.
//!
//! In: WALHOOK_BUILD_COMMIT and SOURCE_DATE_EPOCH, where the build sets them; without them, for a release build in a git
//! checkout (`cargo install --git`), the commit and its date. Out: two variables of the compiler, empty where nothing is known. The
//! clock is not asked, so that the same commit gives the same binary.

#[allow(dead_code, reason = "of two items the build needs one")]
#[path = "src/calendar.rs"]
mod calendar;

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/calendar.rs");
    println!("cargo::rerun-if-env-changed=WALHOOK_BUILD_COMMIT");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let given = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    // Others are built after each edit, and would name a commit that they are not.
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let asked = |arguments: &[&str]| if is_release { git(arguments) } else { None };
    if is_release && let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    let commit = given("WALHOOK_BUILD_COMMIT").or_else(|| asked(&["rev-parse", "--short=12", "HEAD"]));
    let time = given("SOURCE_DATE_EPOCH").or_else(|| asked(&["show", "-s", "--format=%ct", "HEAD"]));
    let date = time.and_then(|time| time.parse().ok()).map(date);
    println!("cargo::rustc-env=WALHOOK_BUILD_COMMIT={}", commit.unwrap_or_default());
    println!("cargo::rustc-env=WALHOOK_BUILD_DATE={}", date.unwrap_or_default());
}

/// What git says of this folder, if it is a checkout of its own and not a folder in somebody else's.
fn git(arguments: &[&str]) -> Option<String> {
    let folder = env::var("CARGO_MANIFEST_DIR").ok()?;
    let ask = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&folder).args(arguments).output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && !said.trim().is_empty()).then(|| said.trim().to_owned())
    };
    ask(&["ls-files", "--error-unmatch", "Cargo.toml"])?;
    ask(arguments)
}

/// Seconds since 1970 as a date in UTC.
fn date(seconds: i64) -> String {
    let (year, month, day) = calendar::civil_from_days(seconds.div_euclid(86_400));
    format!("{year:04}-{month:02}-{day:02}")
}
