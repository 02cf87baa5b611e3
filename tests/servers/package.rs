//! The Debian package and the archive in a bare Debian and a bare Ubuntu: installed, run as its user with its settings, put over an
//! older one with changed settings, removed and purged; and the demo from the archive.
//!
//! What is installed is the binary under test; with WALHOOK_RELEASE_FILES the files that `scripts/release` has made there.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
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

/// What a release consists of.
struct Release {
    folder: PathBuf,
    /// It goes with this value, where it was made for it.
    _made: Option<TempDir>,
}

impl Release {
    fn files() -> Release {
        if let Some(made) = std::env::var_os("WALHOOK_RELEASE_FILES") {
            return Release { folder: made.into(), _made: None };
        }
        let out = tempfile::tempdir().unwrap();
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/release"))
            .args(["--binary", env!("CARGO_BIN_EXE_walhook"), "--out"])
            .arg(out.path())
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output()
            .unwrap();
        done("scripts/release", &output);
        Release { folder: out.path().to_owned(), _made: Some(out) }
    }

    /// The file for this machine's processor with this ending.
    fn file(&self, ending: &str) -> PathBuf {
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            name.ends_with(ending) && [std::env::consts::ARCH, "amd64"].iter().any(|one| name.contains(one))
        };
        fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path()).find(ours).unwrap()
    }
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

/// A Debian or an Ubuntu that is thrown away.
struct Bare(TempDir);

impl Bare {
    /// `None`, and said so, where this machine cannot make one.
    fn new(distribution: &str, package: &str) -> Option<Bare> {
        let what = format!("the package and the archive on a bare {distribution}");
        if User::unprivileged() == User::Ourselves || Command::new("dpkg-deb").arg("--version").output().is_err() {
            skip(&what, "only root can install into a folder, with dpkg");
            return None;
        }
        match services::bare_root(distribution, package) {
            Err(why) => {
                skip(&what, &format!("scripts/services {distribution} cannot make one here: {why}"));
                None
            }
            Ok(made) => {
                let folder = tempfile::tempdir().unwrap();
                run("cp", &["-a", &format!("{}/.", made.display()), folder.path().to_str().unwrap()]);
                Some(Bare(folder))
            }
        }
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside.trim_start_matches('/'))
    }

    /// A program inside, with the environment that a login has.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.0.path()).args(arguments).env_clear();
        // Nobody is there to answer a question.
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        done(&format!("{arguments:?}"), &self.command(arguments).output().unwrap())
    }

    fn install(&self, package: &Path) {
        fs::copy(package, self.path("/tmp/walhook.deb")).unwrap();
        self.run(&["dpkg", "--force-confold", "-i", "/tmp/walhook.deb"]);
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

async fn the_package_installs_runs_upgrades_with_changed_settings_and_goes(distribution: &str) {
    let Some(bare) = Bare::new(distribution, "") else { return };
    let (folder, release) = (tempfile::tempdir().unwrap(), Release::files());
    let before = bare.files();
    let new = release.file(".deb");
    bare.install(&older(&new, folder.path()));
    let settings = |name: &str| fs::read_to_string(bare.path(&format!("/etc/walhook/{name}.toml"))).unwrap();
    assert!(settings("walhook").starts_with("# as version 0.0.1"));

    // As it is installed.
    let feed = Feed::start().await;
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY)");
    feed.webhook("orders");
    feed.pg.psql("SELECT rule_webhook_link_table('orders', 'orders')");
    let service = bare.service("walhook", &feed.streamer_conninfo());
    feed.pg.psql("INSERT INTO orders VALUES (1)");
    assert!(feed.stored(1).await[0].header("Nats-Msg-Id").starts_with("walhook-"));
    let worker = feed.streamer_conninfo().replace("walhook_streamer", "walhook_worker");
    let deliver = bare.service("walhook-deliver", &worker);
    logged(&deliver, "walhook delivers").await;
    terminate(deliver);

    // A setting is changed, and a newer package comes: what was changed stays, what was not is renewed.
    let changed = format!("shutdown_timeout_ms = 12345\n{}", settings("walhook"));
    fs::write(bare.path("/etc/walhook/walhook.toml"), &changed).unwrap();
    bare.install(&new);
    assert_eq!(settings("walhook"), changed);
    assert!(!settings("deliver").starts_with("# as version 0.0.1"), "{}", settings("deliver"));
    assert!(bare.path("/etc/walhook/walhook.toml.dpkg-dist").is_file(), "the new settings lie beside");
    // The older one runs until it is restarted; then the new one goes on with the changed file.
    feed.pg.psql("INSERT INTO orders VALUES (2)");
    feed.stored(2).await;
    terminate(service);
    let service = bare.service("walhook", &feed.streamer_conninfo());
    feed.pg.psql("INSERT INTO orders VALUES (3)");
    assert_eq!(feed.stored(3).await.len(), 3);
    terminate(service);

    // Removed, the settings stay; purged, nothing does.
    fs::remove_file(bare.path("/tmp/log")).unwrap();
    bare.run(&["dpkg", "-r", "walhook"]);
    assert!(!bare.path("/usr/bin/walhook").exists());
    assert_eq!(settings("walhook"), changed);
    bare.run(&["dpkg", "-P", "walhook"]);
    assert_eq!(bare.files(), before);
    assert!(!bare.path("/etc/walhook").exists());
}

#[tokio::test]
async fn on_a_bare_debian_the_package_installs_runs_upgrades_with_changed_settings_and_goes() {
    the_package_installs_runs_upgrades_with_changed_settings_and_goes("debian").await;
}

#[tokio::test]
async fn on_a_bare_ubuntu_the_package_installs_runs_upgrades_with_changed_settings_and_goes() {
    the_package_installs_runs_upgrades_with_changed_settings_and_goes("ubuntu").await;
}

/// What the README's first screen says, from the archive alone: unpack, `./walhook demo`; and `walhook run --setup` on a database.
async fn the_archive_shows_the_demo_and_sets_up_and_runs(distribution: &str) {
    let Some(bare) = Bare::new(distribution, "postgresql") else { return };
    let release = Release::files();
    let archive = release.file(".tar.gz");
    let name = archive.file_name().unwrap().to_str().unwrap();
    fs::copy(&archive, bare.path(&format!("/root/{name}"))).unwrap();
    bare.run(&["tar", "-C", "/root", "-xzf", &format!("/root/{name}")]);
    let program = format!("/root/{}/walhook", name.strip_suffix(".tar.gz").unwrap());
    assert!(bare.run(&[&program, "version"]).starts_with(&format!("walhook {}", env!("CARGO_PKG_VERSION"))));

    // PostgreSQL is the distribution's package; nats-server is not there yet.
    let missing = bare.command(&[&program, "demo", "--seconds", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && said.contains("download nats-server"), "{said}");
    assert!(!said.contains("apt install postgresql"), "{said}");
    fs::copy(services::nats("default"), bare.path("/usr/local/bin/nats-server")).unwrap();
    let mounts = "mount -t tmpfs tmpfs \"$1/dev/shm\" && mount -t proc proc \"$1/proc\" && root=$1 && shift && exec chroot \"$root\" \"$@\"";
    for folder in ["/dev/shm", "/proc"] {
        fs::create_dir_all(bare.path(folder)).unwrap();
    }
    let mut demo = Command::new("unshare");
    demo.args(["--mount", "--propagation", "private", "sh", "-c", mounts, "sh"]).arg(bare.path("/"));
    demo.args([&program, "demo", "--seconds", "3"]);
    demo.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    let said = done("walhook demo", &demo.output().unwrap());
    assert!(said.contains("lost: 0, duplicated: 0"), "{said}");

    let feed = Feed { pg: crate::support::Postgres::start().await, nats: crate::support::Nats::start().await };
    let mut command = User::Ourselves.command("chroot");
    command.arg(bare.path("/")).args([&program, "run", "--setup", "-d", &feed.pg.conninfo()]);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let service = Process::start("walhook run --setup", command, &bare.path("/tmp/log"));
    logged(&service, "slot taken").await;
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', '{}')", feed.nats.url()));
    feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY); SELECT rule_webhook_link_table('orders', 'orders')");
    feed.pg.psql("INSERT INTO orders VALUES (1)");
    assert_eq!(feed.stored(1).await[0].data()["id"], 1);
    terminate(service);
}

#[tokio::test]
async fn on_a_bare_debian_the_archive_shows_the_demo_and_sets_up_and_runs() {
    the_archive_shows_the_demo_and_sets_up_and_runs("debian").await;
}

#[tokio::test]
async fn on_a_bare_ubuntu_the_archive_shows_the_demo_and_sets_up_and_runs() {
    the_archive_shows_the_demo_and_sets_up_and_runs("ubuntu").await;
}
