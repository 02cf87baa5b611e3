//! Connection strings, URLs and variables, as libpq reads them.

#![allow(clippy::unwrap_used)]

use super::*;

type Env<'a> = &'a [(&'a str, &'a str)];

fn parse(text: &str, env: Env<'_>) -> Result<Settings> {
    Settings::parse(text, |name| env.iter().find(|(variable, _)| *variable == name).map(|(_, v)| (*v).to_owned()))
}

fn tcp(name: &str, port: u16) -> Host {
    Host { address: Address::Tcp { name: name.to_owned(), ip: None }, port }
}

fn unix(folder: &str, port: u16) -> Host {
    Host { address: Address::Unix(folder.into()), port }
}

/// `text` over `env` is what `user=u host=h` is, but for what `expected` changes.
fn check(text: &str, env: Env<'_>, expected: impl FnOnce(&mut Settings)) {
    let mut wanted = parse("user=u host=h", &[]).unwrap();
    expected(&mut wanted);
    match parse(text, env) {
        Ok(settings) => assert_eq!(settings, wanted, "{text}"),
        Err(e) => panic!("{text}: {e}"),
    }
}

/// `text` over `env` is refused with words that hold `words` and not the secret `hunter2`.
fn refused(text: &str, env: Env<'_>, words: &str) {
    let error = parse(text, env).expect_err(text);
    assert_eq!(error.kind(), crate::error::Kind::Config);
    let said = error.to_string();
    assert!(said.contains(words), "{text}: {said}");
    assert!(!said.contains("hunter2"), "{text}: {said}");
}

#[test]
fn pairs_are_read_as_libpq_reads_them() {
    check("user=u host=h", &[], |_| {});
    check("  host = h   user  =u ", &[], |_| {});
    check("host=h user='a b' dbname='it\\'s \\\\ '", &[], |s| {
        s.user = "a b".into();
        s.dbname = "it's \\ ".into();
    });
    check("host=h user=a\\ b dbname=d", &[], |s| {
        s.user = "a b".into();
        s.dbname = "d".into();
    });
    check("host=h user=u dbname='' port=", &[], |_| {});
    check("host=h host=i user=u", &[], |s| s.hosts = vec![tcp("i", 5432)]);
    check("user=u password='p q' host=h", &[], |s| s.password = Some(Secret::new("p q")));
    check("user=u host=/run/x port=6", &[], |s| s.hosts = vec![unix("/run/x", 6)]);
    check("user=u", &[], |s| s.hosts = vec![unix("/var/run/postgresql", 5432), unix("/tmp", 5432)]);
    check("user=u host=a,b,/s port=1,,3", &[], |s| {
        s.hosts = vec![tcp("a", 1), tcp("b", 5432), unix("/s", 3)];
    });
    check("user=u host=a,b port=7", &[], |s| s.hosts = vec![tcp("a", 7), tcp("b", 7)]);
    check("user=u host=a hostaddr=::1", &[], |s| {
        let ip = Some("::1".parse().unwrap());
        s.hosts = vec![Host { address: Address::Tcp { name: "a".into(), ip }, port: 5432 }];
    });
    check("user=u hostaddr=10.0.0.1", &[], |s| {
        let ip = Some("10.0.0.1".parse().unwrap());
        s.hosts = vec![Host { address: Address::Tcp { name: "10.0.0.1".into(), ip }, port: 5432 }];
    });
}

#[test]
fn settings_of_one_server_leave_out_the_others_and_take_it_as_it_is() {
    let all = parse("user=u dbname=d host=a,/s,b port=1,2,3 target_session_attrs=primary", &[]).unwrap();
    for (target, host) in [("u@a:1/d", tcp("a", 1)), ("u@b:3/d", tcp("b", 3))] {
        let only = all.only(target);
        assert_eq!((only.hosts, only.target_session_attrs), (vec![host], TargetSessionAttrs::Any), "{target}");
    }
    let socket = unix("/s", 2);
    assert_eq!(all.only(&format!("u@{socket}/d")).hosts, [socket]);
    assert_eq!(all.only("another").hosts, all.hosts, "never without any");
}

#[test]
fn urls_are_read_as_libpq_reads_them() {
    check("postgres://u@h", &[], |_| {});
    check("postgresql://u@h/", &[], |_| {});
    check("postgresql://u:p%40ss@h:99/d%2Fb?application_name=a%20b", &[], |s| {
        s.password = Some(Secret::new("p@ss"));
        s.hosts = vec![tcp("h", 99)];
        s.dbname = "d/b".into();
        s.application_name = "a b".into();
    });
    check("postgres://u:a@b:c@h/u", &[], |s| s.password = Some(Secret::new("a@b:c")));
    check("postgres://u@h1:1,h2,[::1]:3/", &[], |s| {
        s.hosts = vec![tcp("h1", 1), tcp("h2", 5432), tcp("::1", 3)];
    });
    check("postgres://u@%2Frun%2Fx:6", &[], |s| s.hosts = vec![unix("/run/x", 6)]);
    check("postgres:///?user=u&host=/run/x&port=6", &[], |s| s.hosts = vec![unix("/run/x", 6)]);
    check("postgres://u@h?ssl=true", &[], |s| s.sslmode = SslMode::Require);
    check("postgres://?host=h", &[("PGUSER", "u")], |_| {});
}

#[test]
fn what_is_written_wins_over_the_environment_and_that_over_defaults() {
    let env = [("PGHOST", "h"), ("PGUSER", "u"), ("PGDATABASE", "d"), ("PGPASSWORD", "p"), ("PGSSLMODE", "require")];
    check("", &env, |s| {
        s.dbname = "d".into();
        s.password = Some(Secret::new("p"));
        s.sslmode = SslMode::Require;
    });
    check("dbname=e sslmode=disable password=q", &env, |s| {
        s.dbname = "e".into();
        s.password = Some(Secret::new("q"));
        s.sslmode = SslMode::Disable;
    });
    check("host=h", &[("USER", "u")], |_| {});
    check("host=h", &[("USER", ""), ("LOGNAME", "u")], |_| {});
    check("host=h user=u", &[("HOME", "/home/u")], |s| {
        s.passfile = Some("/home/u/.pgpass".into());
        s.sslrootcert = RootCert::Default(Some("/home/u/.postgresql/root.crt".into()));
        s.sslcert = Some("/home/u/.postgresql/postgresql.crt".into());
        s.sslkey = Some("/home/u/.postgresql/postgresql.key".into());
    });
}

#[test]
fn each_keyword_has_its_meaning() {
    let text = "user=u host=h sslmode=verify-full sslrootcert=/r sslcert=/c sslkey=/k channel_binding=require \
        application_name=a connect_timeout=3 keepalives_idle=1 keepalives_interval=2 keepalives_count=4 \
        tcp_user_timeout=5 options='-c x=y' target_session_attrs=primary sslnegotiation=direct passfile=/p";
    check(text, &[], |s| {
        s.sslmode = SslMode::VerifyFull;
        s.sslrootcert = RootCert::File("/r".into());
        (s.sslcert, s.sslkey, s.sslcert_named) = (Some("/c".into()), Some("/k".into()), true);
        s.channel_binding = ChannelBinding::Require;
        s.application_name = "a".into();
        s.connect_timeout = Some(Duration::from_secs(3));
        s.keepalive = Some(Keepalive { idle: Duration::from_secs(1), interval: Duration::from_secs(2), count: 4 });
        s.tcp_user_timeout = Some(Duration::from_millis(5));
        s.options = Some("-c x=y".into());
        s.target_session_attrs = TargetSessionAttrs::Primary;
        s.sslnegotiation = SslNegotiation::Direct;
        s.passfile = Some("/p".into());
    });
    check("user=u host=h connect_timeout=0 keepalives=0 tcp_user_timeout=0", &[], |s| {
        (s.connect_timeout, s.keepalive, s.tcp_user_timeout) = (None, None, None);
    });
    check("user=u host=h sslrootcert=system", &[], |s| {
        (s.sslrootcert, s.sslmode) = (RootCert::System, SslMode::VerifyFull);
    });
    check("user=u host=h client_encoding=auto replication=1 gssencmode=prefer", &[], |_| {});
}

#[test]
fn what_cannot_be_is_refused_without_showing_a_secret() {
    refused("host=h", &[], "no user is given");
    refused("hots=h", &[], "the word at character 1 is no keyword. Hint: did you mean host?");
    refused("user", &[], "no \"=\" after the word at character 1");
    refused("password=open hunter2 host=h", &[], "after the word at character 15");
    refused("password=open hunter2=x host=h", &[], "the word at character 15 is no keyword");
    refused("password='hunter2", &[], "no closing quote");
    refused("user=u sslmode=verify_full", &[], "use one of disable, allow, prefer, require, verify-ca, verify-full");
    refused("user=u", &[("PGSSLMODE", "hunter2")], "the value of sslmode is not a choice");
    refused("user=u sslrootcert=system sslmode=require", &[], "use sslmode=verify-full");
    refused("user=u sslnegotiation=direct", &[], "use sslmode=require or stricter");
    refused("user=u gssencmode=require", &[], "GSSAPI");
    refused("user=u sslcrl=/x", &[], "sslcrl");
    refused("user=u", &[("PGSERVICE", "x")], "PGSERVICE");
    refused("user=u port=0", &[], "from 1 to 65535");
    refused("user=u host=a,b port=1,2,3", &[], "3 ports for 2 hosts");
    refused("user=u host=a,b hostaddr=::1", &[], "do not pair");
    refused("user=u hostaddr=hunter2", &[], "use host for a name");
    refused("user=u connect_timeout=hunter2", &[], "whole number");
    refused("postgres://u:hunter2%@h", &[], "the URL's password is not percent-encoded");
    refused("postgres://u:hunter2%00@h", &[], "the URL's password is not percent-encoded");
    refused("postgres://u:hunter2@[::1", &[], "\"]\"");
    refused("postgres://u:hunter2@h?x", &[], "without a \"=\"");
    refused("postgres://u:hunter2@h?x=1", &[], "a parameter of the URL is no keyword");
    refused("postgres://u@h?prot=1", &[], "did you mean port?");
    // What is left of a URL or of a password that is written wrong.
    refused("mysql://u:hunter2@h/d", &[], "neither postgres:// nor postgresql://");
    refused("Postgres://u:hunter2@h/d?sslmode=require", &[], "neither postgres:// nor postgresql://");
    refused("jdbc:postgresql://h/d?user=u&password=hunter2", &[], "neither postgres:// nor postgresql://");
    refused("u:hunter2@h/d", &[], "no \"=\"");
    refused("u:hunter2@h/d?sslmode=require", &[], "is no keyword");
    refused("hunter2", &[], "no \"=\"");
    refused("hunter2==", &[], "is no keyword");
    refused("postgres://u:hunter2", &[("PGUSER", "u")], "a port is not");
    refused("postgres://u:hunter2/x@h/d", &[("PGUSER", "u")], "%2F for /");
    refused("postgres://u:1/hunter2@h/d", &[("PGUSER", "u")], "%2F for /");
    refused("postgres://u:1?hunter2@h/d", &[("PGUSER", "u")], "%3F for ?");
    refused("postgres://u:1?hunter2=x@h/d", &[("PGUSER", "u")], "is no keyword");
    refused("postgres://u@h/d?hunter2%", &[], "without a");
    refused("user=u host=u:hunter2@h", &[], "a host is neither");
    refused("user=u host=postgres://u:hunter2@h/d", &[], "a host is neither");
    refused("user=u port=hunter2", &[], "a port is not");
    refused("user=u", &[("PGPORT", "hunter2")], "a port is not");
}

#[test]
fn no_secret_shows_in_debug_or_target() {
    let settings = parse("postgres://u:hunter2@h:1,[::1]/d", &[]).unwrap();
    assert_eq!(settings.target(), "u@h:1,[::1]:5432/d");
    assert!(!format!("{settings:?}").contains("hunter2"));
    for misplaced in ["user=u:hunter2 host=h", "user=u host=h dbname=postgres://u:hunter2@h/d"] {
        let shown = parse(misplaced, &[]).unwrap().target();
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    assert_eq!(settings.password.unwrap().reveal(), "hunter2");
}
