//! `scripts/release`: what it packs, with the binary that the tests have.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde_json::Value;

use crate::{
    packaging::{all_output, has, read},
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
        let (name, version) = (component["name"].as_str().unwrap(), component["version"].as_str().unwrap());
        assert!(locked[name].contains(&version), "{name} {version} is not in Cargo.lock");
        assert!(component["licenses"].is_array(), "{name} has no licence");
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

#[test]
fn the_workflows_pass_their_linter() {
    if has("actionlint", "-version", "the workflows are not linted") {
        run("actionlint", &[], &root());
    }
}
