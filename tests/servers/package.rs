//! The Debian package in a Debian of its own: installed, run as its user with its settings, put over an older one with changed
//! settings, removed and purged.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{
    DEADLINE, eventually,
    feed::Feed,
    process::{Process, User},
    services, skip,
};

/// An account that exists only while the service runs, as `DynamicUser=yes` makes it.
const DYNAMIC_USER: &str = "61184:61184";

fn done(what: &str, output: &Output) -> String {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {said}");
    said
}

fn run(program: &str, arguments: &[&str]) -> String {
    done(&format!("{program} {arguments:?}"), &Command::new(program).args(arguments).output().unwrap())
}

/// The package of the binary under test.
fn package(out: &Path) -> PathBuf {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/release"))
        .args(["--binary", env!("CARGO_BIN_EXE_walhook"), "--out"])
        .arg(out)
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .output()
        .unwrap();
    done("scripts/release", &output);
    let files = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    files.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "deb")).unwrap()
}

/// The same package as an older version had it, with other settings in its files.
fn older(new: &Path, folder: &Path) -> PathBuf {
    let (tree, old) = (folder.join("older"), folder.join("older.deb"));
    let (new, tree_text, old_text) = (new.to_str().unwrap(), tree.to_str().unwrap(), old.to_str().unwrap());
    run("dpkg-deb", &["-R", new, tree_text]);
    let control = fs::read_to_string(tree.join("DEBIAN/control")).unwrap();
    let version = format!("Version: {}", env!("CARGO_PKG_VERSION"));
    fs::write(tree.join("DEBIAN/control"), control.replace(&version, "Version: 0.0.1")).unwrap();
    for name in ["walhook", "deliver"] {
        let path = tree.join(format!("etc/walhook/{name}.toml"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("# as version 0.0.1 had it\n{text}")).unwrap();
    }
    run("dpkg-deb", &["--root-owner-group", "-Zgzip", "-z1", "-b", tree_text, old_text]);
    old
}

/// A Debian that is thrown away.
struct Debian(TempDir);

impl Debian {
    fn copy(of: &Path) -> Debian {
        let folder = tempfile::tempdir().unwrap();
        run("cp", &["-a", &format!("{}/.", of.display()), folder.path().to_str().unwrap()]);
        Debian(folder)
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside.trim_start_matches('/'))
    }

    fn dpkg(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("chroot");
        command.arg(self.0.path()).arg("dpkg").args(arguments);
        // The environment that a login has; nobody is there to answer a question.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        done(&format!("dpkg {arguments:?}"), &command.stdin(std::process::Stdio::null()).output().unwrap())
    }

    fn install(&self, package: &Path) {
        fs::copy(package, self.path("/tmp/walhook.deb")).unwrap();
        self.dpkg(&["--force-confold", "-i", "/tmp/walhook.deb"]);
        fs::remove_file(self.path("/tmp/walhook.deb")).unwrap();
    }

    /// Starts what a unit starts, as its user.
    fn service(&self, unit: &str, url: &str) -> Process {
        let unit = fs::read_to_string(self.path(&format!("/usr/lib/systemd/system/{unit}.service"))).unwrap();
        let line = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!(line("DynamicUser="), "yes");
        let mut command = User::Ourselves.command("chroot");
        command.arg(format!("--userspec={DYNAMIC_USER}")).arg(self.0.path()).args(line("ExecStart=").split(' '));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DATABASE_URL", url);
        Process::start("the packaged walhook", command, &self.path("/tmp/log"))
    }

    /// Files of walhook's.
    fn files(&self) -> Vec<String> {
        let found = run("find", &[self.0.path().to_str().unwrap(), "-xdev", "-name", "*walhook*"]);
        found.lines().map(|line| line.strip_prefix(self.0.path().to_str().unwrap()).unwrap().to_owned()).collect()
    }
}

async fn logged(service: &Process, text: &str) {
    eventually(&format!("{text:?} in the service's log"), async || service.log().contains(text).then_some(())).await;
}

fn terminate(mut service: Process) {
    service.signal(Signal::TERM);
    let status = service.wait(DEADLINE).unwrap();
    assert!(status.success(), "{status}: {}", service.log());
}

#[tokio::test]
async fn the_debian_package_installs_runs_upgrades_with_changed_settings_and_goes() {
    if User::unprivileged() == User::Ourselves || Command::new("dpkg-deb").arg("--version").output().is_err() {
        skip("the Debian package", "only root can install it into a folder, with dpkg");
        return;
    }
    let Some(debian) = services::debian() else {
        skip("the Debian package", "scripts/services debian cannot make a Debian here");
        return;
    };
    let (debian, folder) = (Debian::copy(&debian), tempfile::tempdir().unwrap());
    let before = debian.files();
    let new = package(folder.path());
    let control = run("dpkg-deb", &["--field", new.to_str().unwrap(), "Maintainer"]);
    assert!(control.contains('@') && control.contains('<'), "a maintainer can be written to: {control}");
    debian.install(&older(&new, folder.path()));
    let settings = |name: &str| fs::read_to_string(debian.path(&format!("/etc/walhook/{name}.toml"))).unwrap();
    assert!(settings("walhook").starts_with("# as version 0.0.1"));

    // As it is installed.
    let feed = Feed::start().await;
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY)");
    feed.webhook("orders");
    feed.pg.psql("SELECT rule_webhook_link_table('orders', 'orders')");
    let service = debian.service("walhook", &feed.streamer_conninfo());
    feed.pg.psql("INSERT INTO orders VALUES (1)");
    assert!(feed.stored(1).await[0].header("Nats-Msg-Id").starts_with("walhook-"));
    let worker = feed.streamer_conninfo().replace("walhook_streamer", "walhook_worker");
    let deliver = debian.service("walhook-deliver", &worker);
    logged(&deliver, "walhook delivers").await;
    terminate(deliver);

    // A setting is changed, and a newer package comes: what was changed stays, what was not is renewed.
    let changed = format!("shutdown_timeout_ms = 12345\n{}", settings("walhook"));
    fs::write(debian.path("/etc/walhook/walhook.toml"), &changed).unwrap();
    debian.install(&new);
    assert_eq!(settings("walhook"), changed);
    assert!(!settings("deliver").starts_with("# as version 0.0.1"), "{}", settings("deliver"));
    assert!(debian.path("/etc/walhook/walhook.toml.dpkg-dist").is_file(), "the new settings lie beside");
    // The older one runs until it is restarted; then the new one goes on with the changed file.
    feed.pg.psql("INSERT INTO orders VALUES (2)");
    feed.stored(2).await;
    terminate(service);
    let service = debian.service("walhook", &feed.streamer_conninfo());
    feed.pg.psql("INSERT INTO orders VALUES (3)");
    assert_eq!(feed.stored(3).await.len(), 3);
    terminate(service);

    // Removed, the settings stay; purged, nothing does.
    fs::remove_file(debian.path("/tmp/log")).unwrap();
    debian.dpkg(&["-r", "walhook"]);
    assert!(!debian.path("/usr/bin/walhook").exists());
    assert_eq!(settings("walhook"), changed);
    debian.dpkg(&["-P", "walhook"]);
    assert_eq!(debian.files(), before);
    assert!(!debian.path("/etc/walhook").exists());
}
