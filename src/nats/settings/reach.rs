//! What a row may reach: the hosts and folders that the process's own settings allow.
//!
//! In: a server or a file that a row names, and what is allowed. Out: the same, or an error that says which setting forbids it. Always
//! holds: links are followed before a file is compared, and nothing outside the allowed folders is looked up.

use std::path::{Path, PathBuf};

use super::ServerAddr;
use crate::{
    error::{Error, Result},
    files,
};

/// A row's host must match one of the patterns, where there are any.
pub(super) fn check_host(server: &ServerAddr, patterns: &[String]) -> Result<()> {
    if patterns.is_empty() || patterns.iter().any(|pattern| host_matches(server, pattern)) {
        return Ok(());
    }
    Err(Error::config(format!("the server {server} is not among nats.allowed_hosts"))
        .hint("Correct nats_url or nats_cluster_urls, or allow the host in the process's own settings"))
}

fn host_matches(server: &ServerAddr, pattern: &str) -> bool {
    let pattern = pattern.trim().to_ascii_lowercase();
    let (host, port) = match pattern.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        // An IPv6 address without brackets has no room for a port.
        None if pattern.matches(':').count() > 1 => (pattern.as_str(), None),
        None => pattern.split_once(':').map_or((pattern.as_str(), None), |(host, port)| (host, Some(port))),
    };
    let host_fits = match host.strip_prefix('*') {
        Some("") => true,
        Some(end) => end.starts_with('.') && server.host.len() > end.len() && server.host.ends_with(end),
        None => server.host == host,
    };
    host_fits && port.is_none_or(|port| port == "*" || port.parse() == Ok(server.port))
}

/// A row's file must lie in one of the folders, where there are any, with all links followed.
pub(super) fn row_file(column: &str, file: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    let path = Path::new(file);
    if !path.is_absolute() {
        return Err(Error::config(format!("{column} is not an absolute path")).hint("write the path from / on"));
    }
    if folders.is_empty() {
        return Ok(path.to_owned());
    }
    // Before looking the path up: a row must not tell which files exist elsewhere.
    let outside = || {
        Error::config(format!("{column} lies outside nats.allowed_dirs"))
            .hint("Move the file, or allow its folder in the process's own settings")
    };
    let climbs = path.components().any(|part| matches!(part, std::path::Component::ParentDir));
    if climbs || !folders.iter().any(|folder| path.starts_with(folder)) {
        return Err(outside());
    }
    let real = std::fs::canonicalize(path).map_err(|error| {
        Error::config(format!("read the file that {column} names, {}", files::shown(path))).caused_by(error)
    })?;
    let inside = |folder: &PathBuf| std::fs::canonicalize(folder).is_ok_and(|folder| real.starts_with(folder));
    // The name is kept, not what it leads to today: mounted secrets are rotated by turning a link.
    if folders.iter().any(inside) { Ok(path.to_owned()) } else { Err(outside()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        nats::settings::{
            Overrides, Settings,
            tests::{refuses, row},
        },
        route::tables::ConfigRow,
    };

    #[test]
    fn a_row_reaches_allowed_hosts_only() {
        let allows = |pattern: &str, url: &str| {
            let own = Overrides { allowed_hosts: vec!["nowhere".into(), pattern.into()], ..Overrides::default() };
            Settings::resolve(&row(url), &own).is_ok()
        };
        for (pattern, url) in [
            ("nats.example.org", "nats://NATS.example.org:9"),
            ("NATS.example.org:4222", "nats.example.org"),
            ("*.example.org", "a.b.example.org"),
            ("*", "anywhere"),
            ("10.0.0.7:*", "10.0.0.7:1"),
            ("[::1]:4222", "[::1]"),
            ("::1", "[::1]:9"),
        ] {
            assert!(allows(pattern, url), "{pattern} {url}");
        }
        for (pattern, url) in [
            ("nats.example.org", "evil-nats.example.org"),
            ("nats.example.org", "nats.example.org.evil"),
            ("nats.example.org:4222", "nats.example.org:4223"),
            ("*.example.org", "example.org"),
            ("*.example.org", "evilexample.org"),
            ("*.example.org", "a.example.org,evil"),
            ("[::1]:4222", "[::1]:1"),
            ("", "a"),
        ] {
            assert!(!allows(pattern, url), "{pattern} {url}");
        }
        // The environment names whom it likes.
        let own = Overrides { url: Some(vec!["b".into()]), allowed_hosts: vec!["a".into()], ..Overrides::default() };
        assert!(Settings::resolve(&row("c"), &own).is_ok());
    }

    #[test]
    fn a_row_reaches_files_of_allowed_folders_only_and_links_do_not_help() {
        let folder = tempfile::tempdir().unwrap();
        let (allowed, other) = (folder.path().join("allowed"), folder.path().join("allowed-not"));
        for folder in [&allowed, &other] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("ca.crt"), "").unwrap();
        }
        std::os::unix::fs::symlink(other.join("ca.crt"), allowed.join("link.crt")).unwrap();
        std::os::unix::fs::symlink(allowed.join("ca.crt"), allowed.join("inside.crt")).unwrap();
        let own = Overrides { allowed_dirs: vec![allowed.clone()], ..Overrides::default() };
        let with = |path: PathBuf| ConfigRow { tls_ca_file: Some(path.display().to_string()), ..row("a") };
        for good in ["ca.crt", "inside.crt"] {
            assert_eq!(Settings::resolve(&with(allowed.join(good)), &own).unwrap().tls.ca, Some(allowed.join(good)));
        }
        refuses(&with(other.join("ca.crt")), &own, "outside nats.allowed_dirs");
        refuses(&with(allowed.join("link.crt")), &own, "outside nats.allowed_dirs");
        refuses(&with(allowed.join("../allowed-not/ca.crt")), &own, "outside nats.allowed_dirs");
        refuses(&with(allowed.join("absent.crt")), &own, "read the file that tls_ca_file names");
        refuses(&with("ca.crt".into()), &own, "absolute");
        let creds = ConfigRow {
            auth_type: Some("credentials".into()),
            auth_credentials_file: Some(other.join("ca.crt").display().to_string()),
            ..row("a")
        };
        refuses(&creds, &own, "auth_credentials_file");
    }
}
