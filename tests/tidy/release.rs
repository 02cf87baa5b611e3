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
    tidy::{collect, root},
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
    // That of the repository takes no mail: the script asks for the name of somebody who answers for the package.
    let said = all_output(&output);
    assert_eq!(maintainer.ends_with(".example>"), said.contains("set WALHOOK_MAINTAINER="), "{said}");
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

/// build.rs as a program of its own.
fn build_script(folder: &Path) -> PathBuf {
    let program = folder.join("build-script");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut compile = Command::new(rustc);
    compile.args(["--edition", "2024", "-o"]).arg(&program).arg(root().join("build.rs"));
    let output = compile.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    program
}

#[test]
fn a_build_names_its_commit_and_date_wherever_the_source_came_from() {
    if !has("git", "--version", "where a build's commit comes from") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let program = build_script(folder);
    // In: a folder, a profile and more variables. Out: commit and date.
    let built = |source: &Path, profile: &str, variables: &[(&str, &str)]| {
        let mut build = Command::new(&program);
        build.current_dir(source).env("CARGO_MANIFEST_DIR", source).env("PROFILE", profile);
        build.env_remove("SOURCE_DATE_EPOCH").env_remove("WALHOOK_BUILD_COMMIT").envs(variables.iter().copied());
        let output = build.output().unwrap();
        assert!(output.status.success(), "{}", all_output(&output));
        let said = all_output(&output);
        let value = |name: &str| {
            let prefix = format!("cargo::rustc-env={name}=");
            said.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap().to_owned()
        };
        format!("{} {}", value("WALHOOK_BUILD_COMMIT"), value("WALHOOK_BUILD_DATE"))
    };
    let git = |source: &Path, arguments: &[&str]| run("git", arguments, source).trim().to_owned();
    let checkout = folder.join("checkout");
    fs::create_dir(&checkout).unwrap();
    for file in ["Cargo.toml", ".source-commit", ".gitattributes"] {
        fs::copy(root().join(file), checkout.join(file)).unwrap();
    }
    git(&checkout, &["init", "--quiet"]);
    git(&checkout, &["add", "--all"]);
    let mut commit = Command::new("git");
    commit.args([
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.com",
        "-c",
        "commit.gpgsign=false",
        "commit",
        "--quiet",
        "-m",
        "one",
    ]);
    let output = commit.current_dir(&checkout).env("GIT_COMMITTER_DATE", "2026-11-30T23:59:59Z").output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    let expected = format!("{} 2026-11-30", &git(&checkout, &["rev-parse", "HEAD"])[..12]);

    assert_eq!(built(&checkout, "release", &[]), expected);
    // As cargo makes it for `cargo install --git`: a clone of a bare clone.
    git(folder, &["clone", "--quiet", "--bare", "checkout", "database"]);
    git(folder, &["clone", "--quiet", "database", "clone"]);
    assert_eq!(built(&folder.join("clone"), "release", &[]), expected);
    // As an archive without git, wherever it lies; also in somebody else's repository.
    git(&checkout, &["archive", "--output=../source.tar", "--prefix=source/", "HEAD"]);
    run("tar", &["-xf", "source.tar"], folder);
    assert_eq!(built(&folder.join("source"), "release", &[]), expected);
    git(folder, &["init", "--quiet", "others"]);
    let inside = folder.join("others/walhook");
    fs::create_dir(&inside).unwrap();
    fs::copy(checkout.join("Cargo.toml"), inside.join("Cargo.toml")).unwrap();
    assert_eq!(built(&inside, "release", &[]), " ");
    run("tar", &["-xf", "../source.tar", "-C", "."], &folder.join("others"));
    assert_eq!(built(&folder.join("others/source"), "release", &[]), expected);
    // What a packager says goes before; a build for development names nothing, for it is of no commit.
    let said = [("SOURCE_DATE_EPOCH", "0"), ("WALHOOK_BUILD_COMMIT", "abc")];
    assert_eq!(built(&checkout, "release", &said), "abc 1970-01-01");
    assert_eq!(built(&checkout, "debug", &[]), " ");
    assert_eq!(built(&folder.join("source"), "debug", &[]), " ");
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
}

#[test]
fn an_image_of_a_program_for_another_processor_or_with_libraries_is_refused() {
    if !has("id", "-u", "no image") || run("id", &["-u"], &root()).trim() != "0" {
        skipped("what no image is made of", "only root can build one without an engine");
        return;
    }
    // One for a processor of which no images are made: the head of a program for RISC-V.
    let mut head = fs::read(env!("CARGO_BIN_EXE_walhook")).unwrap()[..64].to_vec();
    head[18..20].copy_from_slice(&[0xF3, 0]);
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("walhook");
    fs::write(&foreign, head).unwrap();
    let refused =
        Command::new(root().join("scripts/image")).arg("--binary").arg(&foreign).arg("walhook-test").output().unwrap();
    let said = all_output(&refused);
    assert!(!refused.status.success() && said.contains("a processor of which no images are made"), "{said}");

    let dynamic = Command::new(root().join("scripts/image"))
        .args(["--binary", env!("CARGO_BIN_EXE_walhook"), "walhook-test"])
        .output()
        .unwrap();
    let said = all_output(&dynamic);
    assert!(!dynamic.status.success() && said.contains("is not static") && said.contains("try: "), "{said}");
}

#[test]
fn files_of_a_release_are_named_by_this_version_in_the_documents() {
    let version = env!("CARGO_PKG_VERSION");
    let mut documents = Vec::new();
    collect(&root().join("docs"), &["md"], &mut documents);
    let mut documents: Vec<_> =
        documents.into_iter().map(|file| (file.path.display().to_string(), file.text)).collect();
    documents.push(("README.md".to_owned(), read("README.md")));
    let mut found = 0;
    for (path, text) in documents {
        for (start, name) in ["walhook-", "walhook_", "walhook:"].iter().flat_map(|name| text.match_indices(name)) {
            let rest = &text[start + name.len()..];
            let other: String = rest.chars().take_while(|letter| letter.is_ascii_digit() || *letter == '.').collect();
            if other.matches('.').count() >= 2 {
                found += 1;
                assert_eq!(other.trim_end_matches('.'), version, "{path}: {name}{other}");
            }
        }
    }
    assert!(found >= 5, "{found}");
}

#[test]
fn the_workflows_pass_their_linter() {
    if let Some(actionlint) = tool("actionlint", "-version", "the workflows are not linted") {
        run(actionlint.to_str().unwrap(), &[], &root());
    }
}
