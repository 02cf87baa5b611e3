//! Files that settings and rows name: regular files up to a size, or refused at once.
//!
//! In: a path and the name of the setting it came from. Out: the content. A directory, a device, a FIFO or a socket is
//! refused before it is opened: reading one may never end, and opening some has an effect. A path is quoted only where it
//! leads somewhere: a setting that names a file is where a secret itself is put by mistake.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Component, Path},
};

use rustls::pki_types::CertificateDer;

use crate::{
    error::{Error, Result},
    text,
};

/// The largest file that is read: a bundle of every public authority has a quarter of it.
const MOST: u64 = 1 << 20;

/// The path where it can be no secret: something is there, or it lies in a folder that is there (other than `/`).
pub fn shown(path: &Path) -> String {
    let lies_in_a_folder = || {
        path.components().filter(|part| matches!(part, Component::Normal(_))).count() > 1
            && path.parent().is_some_and(Path::is_dir)
    };
    match path.exists() || lies_in_a_folder() {
        true => text::one_line(&path.to_string_lossy()).into_owned(),
        false => "(a path that leads nowhere, and is not shown: it may be the secret itself)".to_owned(),
    }
}

fn attempted(setting: &str, path: &Path) -> String {
    format!("read the file of {setting}, {}", shown(path))
}

fn refused(setting: &str, path: &Path, why: &str) -> Error {
    Error::config(format!("{}: {why}", attempted(setting, path)))
        .hint(format!("{setting} must name a regular file of at most {} KiB", MOST >> 10))
}

fn check(setting: &str, path: &Path, about: &Metadata) -> Result<()> {
    if !about.is_file() {
        let what = if about.is_dir() { "it is a directory" } else { "it is a device, a FIFO or a socket" };
        return Err(refused(setting, path, what));
    }
    match about.len() {
        0..=MOST => Ok(()),
        size => Err(refused(setting, path, &format!("it has {size} bytes"))),
    }
}

fn open(setting: &str, path: &Path) -> Result<(File, Metadata)> {
    let failed = |error| Error::config(attempted(setting, path)).caused_by(error);
    check(setting, path, &std::fs::metadata(path).map_err(failed)?)?;
    // Without O_NONBLOCK a FIFO that has taken the file's place since would hold the thread.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    check(setting, path, &about)?;
    Ok((file, about))
}

fn content(setting: &str, path: &Path, file: File) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = file.take(MOST + 1).read_to_end(&mut content);
    read.map_err(|error| Error::config(attempted(setting, path)).caused_by(error))?;
    match content.len() as u64 > MOST {
        true => Err(refused(setting, path, "it grows while it is read")),
        false => Ok(content),
    }
}

/// The file's content.
///
/// # Errors
/// It cannot be read, is no regular file, or is too large.
pub fn read(setting: &str, path: &Path) -> Result<Vec<u8>> {
    let (file, _) = open(setting, path)?;
    content(setting, path, file)
}

/// The same as text.
///
/// # Errors
/// As [`read`], and a content that is not UTF-8.
pub fn read_text(setting: &str, path: &Path) -> Result<String> {
    String::from_utf8(read(setting, path)?).map_err(|_| refused(setting, path, "it is not UTF-8"))
}

/// The content of a file that libpq calls private: nobody but its owner may read it, or, where it is root's, its group.
///
/// # Errors
/// As [`read`], and a file that others may read.
pub fn read_private(setting: &str, path: &Path) -> Result<Vec<u8>> {
    let (file, about) = open(setting, path)?;
    let forbidden = if about.uid() == 0 { 0o037 } else { 0o077 };
    if about.mode() & forbidden != 0 {
        return Err(Error::config(format!(
            "{}: others than its owner may read or change it",
            attempted(setting, path)
        ))
        .hint(format!("chmod 0600 {} (0640 will do where root owns it)", shown(path))));
    }
    content(setting, path, file)
}

/// The operating system's root certificates; `SSL_CERT_FILE` may name others.
///
/// # Errors
/// `SSL_CERT_FILE` names what cannot be read.
pub fn system_certificates() -> Result<(Vec<CertificateDer<'static>>, Option<rustls_native_certs::Error>)> {
    if let Some(path) = std::env::var_os("SSL_CERT_FILE") {
        open("SSL_CERT_FILE", Path::new(&path))?;
    }
    let found = rustls_native_certs::load_native_certs();
    Ok((found.certs, found.errors.into_iter().next()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _};

    #[test]
    fn only_a_regular_file_of_some_size_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "x").unwrap();
        assert_eq!(read_text("PGPASSWORD_FILE", &path).unwrap(), "x");
        fs::write(&path, [0xff]).unwrap();
        assert!(read_text("PGPASSWORD_FILE", &path).unwrap_err().to_string().contains("not UTF-8"));
        fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for path in [path.as_path(), &fifo, folder.path(), Path::new("/dev/zero"), Path::new("/dev/stdin")] {
            let error = read("NATS_CREDS", path).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("must name a regular file"), "{error}");
        }
    }

    #[test]
    fn a_path_that_may_be_a_secret_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert!(shown(&missing).ends_with("/missing") && shown(folder.path()).starts_with('/'));
        for secret in
            ["hunter2", "/hunter2", "hunter2/hunter2", "-----BEGIN PRIVATE KEY-----\nhunter2/x\n", "a\0hunter2"]
        {
            let error = read("PGPASSWORD_FILE", Path::new(secret)).unwrap_err().to_string();
            assert!(error.contains("PGPASSWORD_FILE") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_private_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "x").unwrap();
        let is_root = fs::metadata(&path).unwrap().uid() == 0;
        for (mode, is_taken) in
            [(0o600, true), (0o400, true), (0o640, is_root), (0o660, false), (0o644, false), (0o604, false)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_private("sslkey", &path).is_ok(), is_taken, "{mode:o}");
        }
    }
}
