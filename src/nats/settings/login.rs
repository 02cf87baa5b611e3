//! Who we are at a NATS server: by the process's own settings, by the row, or by its URLs.
//!
//! In: the settings, the row and what its URLs say. Out: one [`Auth`], and a warning where a secret stands in plain text or goes to
//! servers that the process's settings do not name. Always holds: two answers are an error, never a choice.

use super::{Overrides, reach};
use crate::{
    error::{Error, Result},
    nats::auth::{self, Auth},
    route::tables::ConfigRow,
};

/// Who the process's own settings say we are. Two answers are one too many: which was meant, we cannot know.
pub(super) fn own_auth(overrides: &Overrides) -> Result<Option<Auth>> {
    let user = match (&overrides.user, &overrides.password) {
        (Some(user), Some(password)) => Some(Auth::UserPassword(user.clone(), password.clone())),
        (Some(token), None) => Some(Auth::Token(token.clone())),
        (None, Some(_)) => return Err(Error::config("NATS_PASSWORD is set, NATS_USER is not")),
        (None, None) => None,
    };
    let mut given = [
        overrides.creds.clone().map(Auth::Credentials),
        overrides.nkey.clone().map(Auth::Nkey),
        overrides.token.clone().map(Auth::Token),
        user,
    ]
    .into_iter()
    .flatten();
    match (given.next(), given.next()) {
        (_, Some(_)) => Err(Error::config("more than one of NATS_CREDS, NATS_NKEY, NATS_TOKEN and NATS_USER is set")
            .hint("Set only the one that the server requires")),
        (only, None) => Ok(only),
    }
}

/// Who the row says we are, by its columns or else by its URL.
pub(super) fn row_auth(
    row: &ConfigRow,
    in_url: Auth,
    overrides: &Overrides,
    warnings: &mut Vec<String>,
) -> Result<Auth> {
    let plain = |what: &str| {
        format!(
            "{what} of NATS configuration {:?} stands in plain text in rule_nats_config; prefer a credentials file or the \
             environment (NATS_TOKEN_FILE, NATS_NKEY_FILE, NATS_CREDS)",
            row.config_name
        )
    };
    let filled = |column: &str, value: &Option<String>| {
        value.as_deref().map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned).ok_or_else(|| {
            Error::config(format!(
                "auth_type is {:?}, and {column} is empty",
                row.auth_type.as_deref().unwrap_or_default()
            ))
        })
    };
    match row.auth_type.as_deref().unwrap_or("none") {
        "none" => {
            if overrides.url.is_none() && in_url != Auth::None {
                warnings.push(plain("the URL's secret"));
            }
            Ok(in_url)
        }
        "token" => {
            let token = filled("auth_token", &row.auth_token)?;
            warnings.push(plain("auth_token"));
            Ok(Auth::Token(token))
        }
        "nkey" => {
            let seed = filled("auth_nkey_seed", &row.auth_nkey_seed)?;
            auth::key_pair(&seed).map_err(|error| error.context("auth_nkey_seed"))?;
            warnings.push(plain("auth_nkey_seed"));
            Ok(Auth::Nkey(seed))
        }
        "credentials" => {
            let file = filled("auth_credentials_file", &row.auth_credentials_file)?;
            Ok(Auth::Credentials(reach::row_file("auth_credentials_file", &file, &overrides.allowed_dirs)?))
        }
        _ => Err(Error::config("auth_type is unknown").hint(
            "It is none, token, credentials or nkey; a user and password go into the URL or NATS_USER, NATS_PASSWORD",
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::nats::settings::{
        Settings,
        tests::{refuses, resolve, row},
    };

    #[test]
    fn the_rows_authentication_must_be_complete_and_warns_where_it_is_plain() {
        let with = |kind: &str| ConfigRow { auth_type: Some(kind.into()), ..row("a") };
        let none = Overrides::default();
        refuses(&with("token"), &none, "auth_token is empty");
        refuses(&with("nkey"), &none, "auth_nkey_seed is empty");
        refuses(&with("credentials"), &none, "auth_credentials_file is empty");
        refuses(&with("kerberos"), &none, "auth_type is unknown");
        refuses(&ConfigRow { auth_nkey_seed: Some("SUs3cr3t".into()), ..with("nkey") }, &none, "auth_nkey_seed");
        refuses(&ConfigRow { auth_credentials_file: Some("a.creds".into()), ..with("credentials") }, &none, "absolute");

        let settings = resolve(&ConfigRow { auth_token: Some("s3cr3t".into()), ..with("token") }).unwrap();
        assert_eq!(settings.auth, Auth::Token("s3cr3t".into()));
        let [warning] = &settings.warnings[..] else { panic!("{:?}", settings.warnings) };
        assert!(warning.contains("auth_token") && !warning.contains("s3cr3t"), "{warning}");
        assert!(!format!("{settings:?}").contains("s3cr3t"));
        assert_eq!(resolve(&row("nats://s3cr3t@a")).unwrap().warnings.len(), 1);
        // auth_type none: what else the row holds is not used.
        assert_eq!(resolve(&ConfigRow { auth_token: Some("s3cr3t".into()), ..with("none") }).unwrap().auth, Auth::None);
    }

    #[test]
    fn the_environment_wins_over_the_row() {
        let row = ConfigRow { auth_type: Some("token".into()), auth_token: Some("row".into()), ..row("tls://row") };
        let url = Some(vec!["env1,env2".to_owned(), "nats://u:p@env3".to_owned()]);
        let own = Overrides { url: url.clone(), ..Overrides::default() };
        let settings = Settings::resolve(&row, &own).unwrap();
        assert_eq!(settings.servers.len(), 3);
        assert_eq!(settings.auth, Auth::UserPassword("u".into(), "p".into()));
        assert_eq!(settings.warnings, [""; 0]);

        let own = Overrides { creds: Some("/run/env.creds".into()), url, ..Overrides::default() };
        assert_eq!(Settings::resolve(&row, &own).unwrap().auth, Auth::Credentials("/run/env.creds".into()));
        // As the nats command line has it.
        let own = Overrides { user: Some("t".into()), ..Overrides::default() };
        assert_eq!(Settings::resolve(&row, &own).unwrap().auth, Auth::Token("t".into()));
    }

    #[test]
    fn a_secret_of_the_environment_for_a_rows_server_warns_until_hosts_are_named() {
        let own = Overrides { token: Some("t".into()), ..Overrides::default() };
        assert!(Settings::resolve(&row("a"), &own).unwrap().warnings[0].contains("allowed_hosts"));
        let own = Overrides { allowed_hosts: vec!["a".into()], ..own };
        assert_eq!(Settings::resolve(&row("a"), &own).unwrap().warnings, [""; 0]);
    }
}
