//! `scripts/release`: what it packs, with the binary that the tests have.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    packaging::{all_output, has, read, skipped, tool},
    tidy::root,
};

fn run(program: &str, arguments: &[&str], folder: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", all_output(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_release_has_archive_package_sums_and_an_sbom_of_what_is_linked() {
    if !has("python3", "--version", "no release is packed") || !has("strip", "--version", "no release is packed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    let script = root().join("scripts/release");
    // A checkout without git names the time itself.
    let output = Command::new(script)
        .args(["--binary", env!("CARGO_BIN_EXE_walhook"), "--out"])
        .arg(out)
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    let sums = fs::read_to_string(out.join("SHA256SUMS")).unwrap();
    run("sha256sum", &["--check", "--strict", "SHA256SUMS"], out);
    let ending =
        |ending: &str| sums.lines().find_map(|line| line.split("  ").nth(1).filter(|name| name.ends_with(ending)));

    let archive = ending(".tar.gz").unwrap();
    run("tar", &["-xzf", archive], out);
    let tree = out.join(archive.strip_suffix(".tar.gz").unwrap());
    assert!(run("./walhook", &["version"], &tree).contains(env!("CARGO_PKG_VERSION")));
    for file in [
        "LICENSE",
        "CHANGELOG.md",
        "man/walhook-run.1",
        "completions/_walhook",
        "completions/walhook.bash",
        "config/walhook.service",
    ] {
        assert!(fs::metadata(tree.join(file)).is_ok_and(|file| file.len() > 0), "{file}");
    }
    let licences = fs::read_to_string(tree.join("THIRD-PARTY-LICENSES.txt")).unwrap();

    let sbom: Value =
        serde_json::from_str(&fs::read_to_string(out.join(ending(".cdx.json").unwrap())).unwrap()).unwrap();
    assert_eq!((sbom["bomFormat"].as_str(), sbom["specVersion"].as_str()), (Some("CycloneDX"), Some("1.5")));
    assert_eq!(sbom["metadata"]["component"]["version"], env!("CARGO_PKG_VERSION"));
    let lock: toml::Table = read("Cargo.lock").parse().unwrap();
    let locked: BTreeMap<_, Vec<_>> =
        lock["package"].as_array().unwrap().iter().fold(BTreeMap::new(), |mut all, package| {
            let versions: &mut Vec<_> = all.entry(package["name"].as_str().unwrap()).or_default();
            versions.push(package["version"].as_str().unwrap());
            all
        });
    let components = sbom["components"].as_array().unwrap();
    let names: Vec<_> = components.iter().map(|one| one["name"].as_str().unwrap()).collect();
    for component in components {
        let name = component["name"].as_str().unwrap();
        assert!(component["licenses"].is_array(), "{name} has no licence");
        let Some(version) = component["version"].as_str() else {
            // Rust's standard library, which is no crate of Cargo.lock.
            assert!(name == "rust-std" && licences.contains("\nrust-std: "), "{name} has no version");
            continue;
        };
        assert!(locked[name].contains(&version), "{name} {version} is not in Cargo.lock");
        assert!(licences.contains(&format!("\n{name} {version}: ")), "{name} is not in the licences");
    }
    assert!(names.contains(&"tokio") && names.contains(&"rustls"), "{names:?}");
    for test_only in ["proptest", "rcgen", "ureq", "yaml-rust2"] {
        assert!(!names.contains(&test_only), "{test_only} is for tests");
    }

    if !has("dpkg-deb", "--version", "the Debian package is not looked at") {
        return;
    }
    let package = ending(".deb").unwrap();
    let control = run("dpkg-deb", &["--field", package], out);
    let cargo: toml::Table = read("Cargo.toml").parse().unwrap();
    let maintainer = cargo["package"]["authors"][0].as_str().unwrap();
    assert!(control.contains(&format!("Maintainer: {maintainer}\n")) && maintainer.contains('@'), "{control}");
    assert!(control.contains("Package: walhook\n") && control.contains("Depends: libc6 (>= "), "{control}");
    run("dpkg-deb", &["--extract", package, "installed"], out);
    run("dpkg-deb", &["--control", package, "control"], out);
    assert_eq!(
        fs::read_to_string(out.join("control/conffiles")).unwrap(),
        "/etc/walhook/walhook.toml\n/etc/walhook/deliver.toml\n"
    );
    for script in ["postinst", "prerm", "postrm"] {
        run("sh", &["-n", script], &out.join("control"));
    }
    let installed = out.join("installed");
    assert!(run("usr/bin/walhook", &["version"], &installed).contains(env!("CARGO_PKG_VERSION")));
    for name in ["walhook", "walhook-deliver"] {
        let unit = fs::read_to_string(installed.join(format!("usr/lib/systemd/system/{name}.service"))).unwrap();
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let words: Vec<_> = start.split(' ').collect();
        assert!(installed.join(&words[0][1..]).is_file(), "{start}");
        assert!(installed.join(&words.last().unwrap()[1..]).is_file(), "{start}");
    }
}

#[test]
fn what_cannot_be_released_is_refused_with_what_could_be() {
    for (arguments, expected) in [
        (["--target", "mips-unknown-linux-gnu"], "no releases are made for mips-unknown-linux-gnu"),
        (["--target", "x86_64-pc-windows-msvc"], "no releases are made for x86_64-pc-windows-msvc"),
        (["--binary", "/nowhere/walhook"], "there is no program /nowhere/walhook"),
        (["--wrong", "x"], "unknown argument --wrong"),
    ] {
        let output = Command::new(root().join("scripts/release"))
            .args(arguments)
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output()
            .unwrap();
        let said = all_output(&output);
        assert!(!output.status.success() && said.contains(expected) && said.contains("try: "), "{said}");
    }
}

/// A static binary that `scripts/release` has built here before; the tests build none, for it takes minutes.
fn static_binary(processor: &str) -> Option<PathBuf> {
    let built = root().join(format!("target/{processor}-unknown-linux-musl/release/walhook"));
    if !built.is_file() {
        skipped(
            "a static binary and its image",
            &format!("scripts/release --target {processor}-unknown-linux-musl was not run"),
        );
        return None;
    }
    Some(built)
}

#[test]
fn an_image_of_a_static_binary_is_small_and_runs_as_nobody_special_with_a_read_only_root() {
    let processor = std::env::consts::ARCH;
    let Some(binary) = static_binary(processor) else { return };
    if !has("id", "-u", "no image") || run("id", &["-u"], &root()).trim() != "0" {
        skipped("the image", "only root can build and run it without an engine");
        return;
    }
    // The script itself runs it and refuses what it must not hold.
    let output = Command::new(root().join("scripts/image"))
        .arg("--binary")
        .arg(&binary)
        .arg("walhook-test")
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .output()
        .unwrap();
    let said = all_output(&output);
    assert!(output.status.success() && said.contains("user 65532, runs with a read-only root"), "{said}");

    let dynamic = Command::new(root().join("scripts/image"))
        .args(["--binary", env!("CARGO_BIN_EXE_walhook"), "walhook-test"])
        .output()
        .unwrap();
    let said = all_output(&dynamic);
    assert!(!dynamic.status.success() && said.contains("is not static") && said.contains("try: "), "{said}");
}

#[test]
fn the_workflows_pass_their_linter() {
    if let Some(actionlint) = tool("actionlint", "-version", "the workflows are not linted") {
        run(actionlint.to_str().unwrap(), &[], &root());
    }
}
