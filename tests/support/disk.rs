//! A disk of a server's own, small enough to be filled.
//!
//! In: how large. Out: a tmpfs that lives in a mount namespace of its own, held by a process that ends with us, so nothing stays
//! mounted whatever becomes of the test. Who is no root gets one where the kernel lets users have namespaces.

use std::{ffi::OsStr, path::Path, process::Command};

use super::{
    DEADLINE, eventually_blocking,
    folder::Folder,
    process::{Process, User},
};

/// A mounted disk; dropping it takes what is on it.
pub struct Disk {
    holder: Process, // before the folder: fields go in this order
    folder: Folder,
}

impl Disk {
    /// An empty disk, or why there can be none here.
    pub fn of(kib: u32) -> Result<Disk, String> {
        let folder = Folder::new("disk", User::Ourselves);
        let mount = format!("mount -t tmpfs -o size={kib}k tmpfs . && echo mounted && exec sleep infinity");
        let mut command = User::Ourselves.command("unshare");
        command.args(["--map-root-user", "--mount", "--", "setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", &mount]);
        command.current_dir(folder.path());
        let mut holder = Process::start("the disk's holder", command, &folder.path().with_extension("log"));
        let settled = eventually_blocking(DEADLINE, || {
            let is_mounted = holder.log().contains("mounted");
            (is_mounted || holder.exited().is_some()).then_some(is_mounted)
        });
        let said = holder.log();
        let _ = std::fs::remove_file(folder.path().with_extension("log"));
        if settled == Some(true) {
            Ok(Disk { holder, folder })
        } else {
            Err(format!("no tmpfs can be mounted: {}", said.trim()))
        }
    }

    /// Where it is, for those who see it.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A command whose program sees the disk and ends with us.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = User::Ourselves.command("nsenter");
        command.args([&format!("--target={}", self.holder.pid()), "--user", "--mount", "--preserve-credentials", "--"]);
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// Makes it larger, with all that is on it.
    pub fn grow(&self, kib: u32) {
        let mut command = self.command("mount");
        let output = command.arg("-o").arg(format!("remount,size={kib}k")).arg(self.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
