//! Packages: the systemd units, compose.yaml, the Helm chart and the release, as far as they can be checked without a server.
//!
//! A check that needs a program which the machine lacks says on standard error that it was skipped.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use yaml_rust2::{Yaml, YamlLoader};

use crate::tidy::root;

const BINARY: &str = env!("CARGO_BIN_EXE_walhook");
const UNITS: [&str; 2] = ["walhook.service", "walhook-deliver.service"];

/// Not by a macro, whose output cargo holds back.
pub fn skipped(what: &str, why: &str) {
    std::io::stderr().write_all(format!("\nSKIPPED, nothing was tested: {what}: {why}\n").as_bytes()).unwrap();
}

/// Whether the machine has this program; says so where it has not.
pub fn has(program: &str, argument: &str, what: &str) -> bool {
    let has = Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success());
    if !has {
        skipped(what, &format!("this machine has no {program}"));
    }
    has
}

/// A tool that `scripts/services` builds where the machine has none of its own; says so where it cannot be had.
pub fn tool(name: &str, argument: &str, what: &str) -> Option<PathBuf> {
    if Command::new(name).arg(argument).output().is_ok_and(|output| output.status.success()) {
        return Some(name.into());
    }
    let output = Command::new(root().join("scripts/services")).arg(name).output().ok()?;
    if !output.status.success() {
        skipped(what, &format!("{name} cannot be had: {}", all_output(&output)));
        return None;
    }
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end()))
}

pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn yaml(text: &str) -> Yaml {
    YamlLoader::load_from_str(text).unwrap().remove(0)
}

pub fn all_output(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The help of a verb.
fn help(verb: &str) -> String {
    let output = Command::new(BINARY).args([verb, "--help"]).output().unwrap();
    assert!(output.status.success(), "walhook {verb} --help: {}", all_output(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The variables that walhook reads, by what the README, the settings file and the help say.
pub fn is_known_variable(name: &str) -> bool {
    let name = name.strip_suffix("_FILE").unwrap_or(name);
    let texts = [read("README.md"), read("config/walhook.toml"), help("run"), help("deliver"), read("src/config.rs")];
    texts.iter().any(|text| text.contains(name))
}

/// A command of walhook's that compose or the chart has: its verb exists, and its options in the verb's help.
pub fn assert_command(words: &[String], place: &str) {
    let help = help(&words[0]);
    for option in words.iter().filter(|word| word.starts_with("--")) {
        let name = option.split('=').next().unwrap();
        assert!(help.split([' ', '\n']).any(|word| word == name), "{place}: walhook {} has no {name}", words[0]);
    }
}

pub fn strings(list: &Yaml) -> Vec<String> {
    list.as_vec().map(|all| all.iter().map(|one| one.as_str().unwrap().to_owned()).collect()).unwrap_or_default()
}

pub fn keys(map: &Yaml) -> Vec<String> {
    map.as_hash().map(|all| all.keys().map(|key| key.as_str().unwrap().to_owned()).collect()).unwrap_or_default()
}

// systemd

#[test]
fn units_wait_for_readiness_and_have_a_watchdog() {
    for name in UNITS {
        let unit = read(&format!("config/{name}"));
        for line in ["Type=notify", "WatchdogSec=60", "TimeoutStartSec=60", "Restart=on-failure"] {
            assert!(unit.lines().any(|found| found == line), "{name}: {line}");
        }
    }
}

#[test]
fn units_pass_what_systemd_checks_and_are_as_hardened_as_it_can_see() {
    if !has("systemd-analyze", "--version", "units are not verified") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in UNITS {
        let unit = read(&format!("config/{name}")).replace("/usr/local/bin/walhook", BINARY);
        let path = folder.path().join(name);
        fs::write(&path, unit).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
        let said = all_output(&output);
        assert!(output.status.success() && !said.contains(name), "{name}: {said}");
        let arguments = ["security", "--offline=true", "--threshold=15", "--no-pager"];
        let output = Command::new("systemd-analyze").args(arguments).arg(&path).output().unwrap();
        assert!(output.status.success(), "{name} is exposed by more than 1.5: {}", all_output(&output));
    }
}

// compose.yaml

/// Where compose finds what a path of its names.
fn mounted(path: &str) -> PathBuf {
    root().join(path.strip_prefix("./").unwrap_or_else(|| panic!("{path} is not in this folder")))
}

#[test]
fn compose_names_only_files_services_options_and_variables_that_exist() {
    let compose = yaml(&read("compose.yaml"));
    let services = keys(&compose["services"]);
    let secrets = keys(&compose["secrets"]);
    for name in ["postgres", "nats", "setup", "run", "deliver", "prometheus", "grafana"] {
        assert!(services.iter().any(|service| service == name), "no service {name}");
    }
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    for name in &services {
        let service = &compose["services"][name.as_str()];
        for volume in strings(&service["volumes"]) {
            let source = volume.split(':').next().unwrap();
            if source.starts_with('.') {
                files.insert(mounted(source));
            } else {
                assert!(keys(&compose["volumes"]).iter().any(|known| known == source), "{name}: volume {source}");
            }
        }
        for secret in strings(&service["secrets"]) {
            assert!(secrets.contains(&secret), "{name}: secret {secret}");
        }
        let after = &service["depends_on"];
        for other in keys(after).into_iter().chain(strings(after)) {
            assert!(services.contains(&other), "{name} depends on {other}");
            if after[other.as_str()]["condition"].as_str() == Some("service_healthy") {
                let test = &compose["services"][other.as_str()]["healthcheck"]["test"];
                assert!(test.as_vec().is_some(), "{other} is waited for and has no healthcheck");
            }
        }
        for port in strings(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name} listens beyond this machine: {port}");
        }
        // `<<` is merged by YAML, as compose does; the reader here leaves it.
        if service["<<"]["image"].as_str() == Some("walhook") {
            assert_command(&strings(&service["command"]), &format!("compose.yaml: {name}"));
            let environment = &service["environment"];
            for variable in keys(environment).into_iter().chain(keys(&environment["<<"])) {
                assert!(variable == "<<" || is_known_variable(&variable), "{name}: walhook reads no {variable}");
            }
        }
    }
    for name in ["run", "deliver"] {
        let check = strings(&compose["services"][name]["healthcheck"]["test"]);
        assert_command(&check[2..], &format!("compose.yaml: healthcheck of {name}"));
    }
    for secret in &secrets {
        files.insert(mounted(compose["secrets"][secret.as_str()]["file"].as_str().unwrap()));
    }
    assert!(files.len() > 8, "{files:?}");
    for file in files {
        assert!(file.is_file(), "compose.yaml mounts {}, which is not there", file.display());
    }
    let walhook = &compose["x-walhook"];
    assert_eq!(walhook["read_only"].as_bool(), Some(true));
    assert_eq!(walhook["stop_grace_period"].as_str(), Some("30s"));
}

/// A compose file as Compose's own library reads it, or its refusal; `None` where the library cannot be had.
fn loaded(text: &str) -> Option<Result<Yaml, String>> {
    if !has("go", "version", "compose.yaml is not checked by the schema of Compose") {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("compose.yaml");
    fs::write(&file, text).unwrap();
    let mut command = Command::new("go");
    command.current_dir(root().join("tests/compose")).args(["run", "."]).arg(&file);
    let output = command.output().unwrap();
    if output.status.success() {
        return Some(Ok(yaml(&String::from_utf8(output.stdout).unwrap())));
    }
    let said = all_output(&output);
    if said.contains("dial tcp") || said.contains("proxy.golang.org") {
        skipped(
            "compose.yaml is not checked by the schema of Compose",
            &format!("Go cannot fetch its library: {said}"),
        );
        return None;
    }
    Some(Err(said))
}

#[test]
fn compose_is_understood_by_composes_own_library_and_mistakes_are_refused() {
    let text = read("compose.yaml");
    let Some(project) = loaded(&text) else { return };
    let project = project.unwrap();
    for name in ["setup", "run", "deliver"] {
        let service = &project["services"][name];
        assert_eq!(service["read_only"].as_bool(), Some(true), "{name}");
        assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name}");
    }
    for name in ["run", "deliver"] {
        assert_eq!(strings(&project["services"][name]["healthcheck"]["test"])[..2], ["CMD", "/usr/local/bin/walhook"]);
    }
    for (right, wrong) in [
        ("read_only: true", "read_onyl: true"),
        ("restart: unless-stopped", "restart: [unless-stopped]"),
        ("nats: {condition: service_healthy}", "natz: {condition: service_healthy}"),
        ("interval: 10s", "interval: ten"),
    ] {
        let refused = loaded(&text.replace(right, wrong)).unwrap();
        assert!(refused.is_err(), "{wrong} is taken");
    }
}

#[test]
fn prometheus_of_compose_reads_the_alerts_and_asks_both_walhooks() {
    let compose = yaml(&read("compose.yaml"));
    let prometheus = yaml(&read("ops/compose/prometheus.yml"));
    let mounts = strings(&compose["services"]["prometheus"]["volumes"]);
    for file in strings(&prometheus["rule_files"]) {
        assert!(mounts.iter().any(|mount| mount.split(':').nth(1) == Some(&file)), "{file} is not mounted");
    }
    let job = &prometheus["scrape_configs"][0];
    let token = job["authorization"]["credentials_file"].as_str().unwrap().strip_prefix("/run/secrets/").unwrap();
    assert!(strings(&compose["services"]["prometheus"]["secrets"]).iter().any(|secret| secret == token));
    let listen = read("ops/compose/walhook.toml").parse::<toml::Table>().unwrap()["http"]["listen"].to_string();
    for target in strings(&job["static_configs"][0]["targets"]) {
        let (service, port) = target.split_once(':').unwrap();
        assert!(!compose["services"][service].is_badvalue(), "{target}");
        assert!(listen.contains(&format!(":{port}")), "{target}, but walhook listens on {listen}");
    }
    if has("promtool", "--version", "ops/compose/prometheus.yml is not checked by Prometheus") {
        let file = root().join("ops/compose/prometheus.yml");
        let output = Command::new("promtool").args(["check", "config", "--syntax-only"]).arg(file).output().unwrap();
        assert!(output.status.success(), "{}", all_output(&output));
    }
}

#[test]
fn published_passwords_of_compose_are_the_same_everywhere() {
    let password = read("ops/compose/secrets/walhook_password");
    let sql = read("ops/compose/example.sql");
    assert_eq!(sql.matches(&format!("PASSWORD '{}'", password.trim())).count(), 2, "{sql}");
    assert!(read("ops/compose/secrets/http_token").trim().len() >= 16);
    assert!(Path::new(&root().join("docs/compose.md")).is_file());
}
