//! Gives `walhook version` the commit and the date of the build.
//!
//! In: WALHOOK_BUILD_COMMIT and SOURCE_DATE_EPOCH, where the build sets them; without them, for a release build, the commit and its
//! date: of the git checkout (`cargo install --git`), or of the archive that git made of one (`.source-commit`, which git fills in
//! there). Out: two variables of the compiler, empty where nothing is known. The clock is not asked, so that the same commit gives the
//! same binary.

#[allow(dead_code, reason = "of two items the build needs one")]
#[path = "src/calendar.rs"]
mod calendar;

use std::{env, fs, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/calendar.rs");
    println!("cargo::rerun-if-changed=.source-commit");
    println!("cargo::rerun-if-env-changed=WALHOOK_BUILD_COMMIT");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let given = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    // Others are built after each edit, and would name a commit that they are not.
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let asked = |arguments: &[&str]| if is_release { git(arguments) } else { None };
    if is_release && let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    let (of_archive, time_of_archive) = if is_release { of_archive() } else { None }.unzip();
    let commit = given("WALHOOK_BUILD_COMMIT").or_else(|| asked(&["rev-parse", "--short=12", "HEAD"])).or(of_archive);
    let time =
        given("SOURCE_DATE_EPOCH").or_else(|| asked(&["show", "-s", "--format=%ct", "HEAD"])).or(time_of_archive);
    let date = time.and_then(|time| time.parse().ok()).map(date);
    println!("cargo::rustc-env=WALHOOK_BUILD_COMMIT={}", commit.unwrap_or_default());
    println!("cargo::rustc-env=WALHOOK_BUILD_DATE={}", date.unwrap_or_default());
}

fn folder() -> Option<PathBuf> {
    env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from)
}

/// The commit and its time as `git archive` has put them into `.source-commit`, where in a checkout their names stand.
fn of_archive() -> Option<(String, String)> {
    let text = fs::read_to_string(folder()?.join(".source-commit")).ok()?;
    let (commit, time) = text.trim().split_once(' ')?;
    let is_commit = commit.len() >= 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_commit.then(|| (commit[..12].to_owned(), time.to_owned()))
}

/// What git says of this folder, if it is a checkout of its own and not a folder in somebody else's.
fn git(arguments: &[&str]) -> Option<String> {
    let folder = folder()?;
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
