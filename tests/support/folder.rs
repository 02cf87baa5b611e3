//! Temporary folders that the servers' user may enter.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::process::User;

/// The longest path of a unix socket is 107 bytes; this much of it is for `/.s.PGSQL.65535` and what tests add.
const LONGEST: usize = 60;

/// A folder under the system's temporary folder, removed with this value; kept where `WALHOOK_KEEP` is set.
pub struct Folder {
    folder: Option<TempDir>,
    path: PathBuf,
}

impl Folder {
    /// A new empty folder that belongs to `user`, closed to others.
    pub fn new(name: &str, user: User) -> Self {
        let mut parent = std::env::temp_dir();
        if parent.as_os_str().len() > LONGEST {
            parent = PathBuf::from("/tmp"); // a unix socket's path must be short
        }
        let folder = tempfile::Builder::new().prefix(&format!("walhook-{name}-")).tempdir_in(parent).unwrap();
        let path = folder.path().to_owned();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        user.own(&path);
        Folder { folder: Some(folder), path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::env::var_os("WALHOOK_KEEP").is_some()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("kept {}", folder.keep().display());
        }
    }
}

impl User {
    /// Makes `path` theirs.
    pub fn own(self, path: &Path) {
        if let Some(id) = self.id() {
            chown(path, Some(id), Some(id)).unwrap();
        }
    }

    /// Writes a file of theirs that nobody else may read.
    pub fn write(self, path: &Path, content: impl AsRef<[u8]>) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        self.own(path);
    }
}
