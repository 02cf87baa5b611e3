//! The connections to PostgreSQL, against real servers: who is let in how, who is refused with which words, and a
//! stream that lives as long as it should.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::os::unix::fs::PermissionsExt as _;
use std::{path::Path, time::Duration};

use bytes::BufMut;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use support::{
    Postgres, eventually,
    folder::Folder,
    process::{Process, User},
    tls::{Authority, Identity},
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use walhook::{
    error::{Error, Kind},
    postgres::{
        self, Settings,
        replication::{Connection, Stream},
        sql,
    },
    wal::lsn::Lsn,
};

/// Settings from this text alone: the environment of the test run is not asked.
fn settings(conninfo: &str) -> Settings {
    Settings::parse(conninfo, |_| None).unwrap()
}

const ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// Whether the two kinds of connection get in with TLS (or without), or what each is told.
async fn enter(conninfo: &str) -> Result<bool, [Error; 2]> {
    let settings = settings(conninfo);
    let replication = async {
        let rows = Connection::connect(&settings).await?.query(ENCRYPTED).await?;
        Ok::<bool, Error>(rows[0][0].as_deref() == Some("t"))
    };
    let sql = async {
        let row = sql::connect(&settings).await?.query_one(ENCRYPTED, &[]).await;
        Ok::<bool, Error>(row.map_err(|e| sql::error("ask", e))?.get(0))
    };
    match (replication.await, sql.await) {
        (Ok(replication), Ok(sql)) => {
            assert_eq!(replication, sql, "{conninfo}");
            Ok(sql)
        }
        (Err(replication), Err(sql)) => {
            for error in [&replication, &sql] {
                assert!(!error.to_string().contains("hunter2"), "{conninfo}: {error}");
            }
            assert_eq!(replication.kind(), sql.kind(), "{conninfo}: {replication} / {sql}");
            Err([replication, sql])
        }
        (replication, sql) => panic!("{conninfo}: {replication:?}, but {sql:?}"),
    }
}

async fn enters(conninfo: &str, encrypted: bool) {
    match enter(conninfo).await {
        Ok(was) => assert_eq!(was, encrypted, "{conninfo}"),
        Err(errors) => panic!("{conninfo}: {errors:?}"),
    }
}

/// Both connections are refused by an error of this kind that says each of these words.
async fn refused(conninfo: &str, kind: Kind, words: &[&str]) {
    let errors = enter(conninfo).await.expect_err(conninfo);
    for error in errors {
        assert_eq!(error.kind(), kind, "{conninfo}: {error}");
        for words in words {
            assert!(error.to_string().contains(words), "{conninfo}: {error}");
        }
    }
}

const PLUGIN: [(&str, &str); 2] = [("proto_version", "1"), ("publication_names", "p")];

/// A table, a publication of it, a slot.
fn prepare(pg: &Postgres) {
    pg.psql("CREATE TABLE t (id int PRIMARY KEY, text text)");
    pg.psql("CREATE PUBLICATION p FOR TABLE t");
    pg.psql("SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
}

async fn stream(pg: &Postgres) -> Stream {
    let connection = Connection::connect(&settings(&pg.conninfo())).await.unwrap();
    connection.start_replication("s", Lsn::ZERO, &PLUGIN).await.unwrap()
}

/// The next payload, reading as needed.
async fn next(stream: &mut Stream) -> Result<Vec<u8>, Error> {
    let reading = async {
        loop {
            if let Some(payload) = stream.next_copy_data()? {
                return Ok(payload.to_vec());
            }
            stream.drive(true).await?;
        }
    };
    tokio::time::timeout(support::DEADLINE, reading).await.expect("the server sends something")
}

/// Reads until a payload holds `text`.
async fn read_to(stream: &mut Stream, text: &str) {
    while !holds(&next(stream).await.unwrap(), text) {}
}

fn holds(payload: &[u8], text: &str) -> bool {
    payload.windows(text.len()).any(|bytes| bytes == text.as_bytes())
}

/// A standby status update (manual, section 55.4) that confirms `lsn`.
fn confirm(stream: &mut Stream, lsn: u64) {
    stream.queue_copy_data(|out| {
        out.put_u8(b'r');
        (0..3).for_each(|_| out.put_u64(lsn));
        out.put_i64(0);
        out.put_u8(0);
    });
}

/// Files for sslrootcert and its like.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Files(TempDir::new().unwrap())
    }

    fn root(&self, name: &str, pem: &str) -> String {
        let file = self.0.path().join(name);
        std::fs::write(&file, pem).unwrap();
        format!("sslrootcert={}", file.display())
    }

    fn client(&self, name: &str, identity: &Identity) -> String {
        let (certificate, key) = identity.write(self.0.path(), name);
        format!("sslcert={} sslkey={}", certificate.display(), key.display())
    }
}

/// A certificate that vouches for itself, of the given kind of key and names.
fn self_signed(key: KeyPair, common_name: &str, names: &[&str]) -> Identity {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Identity { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

const ROLES: &str = "
    SET password_encryption = 'scram-sha-256';
    CREATE ROLE trusted LOGIN REPLICATION;
    CREATE ROLE clear LOGIN REPLICATION PASSWORD 'hunter2';
    CREATE ROLE scram LOGIN REPLICATION PASSWORD 'hunter2';
    CREATE ROLE only_tls LOGIN REPLICATION PASSWORD 'hunter2';
    CREATE ROLE only_plain LOGIN REPLICATION PASSWORD 'hunter2';
    CREATE ROLE certified LOGIN REPLICATION;
    CREATE ROLE nobody LOGIN REPLICATION;
    SET password_encryption = 'md5';
    CREATE ROLE md5 LOGIN REPLICATION PASSWORD 'hunter2'";

const HBA: &str = "
    local   all trusted               trust
    local   all clear                 password
    local   all scram                 scram-sha-256
    local   all md5                   md5
    host    all trusted    0.0.0.0/0  trust
    host    all clear      0.0.0.0/0  password
    host    all scram      0.0.0.0/0  scram-sha-256
    host    all md5        0.0.0.0/0  md5
    hostssl all only_tls   0.0.0.0/0  scram-sha-256
    hostnossl all only_plain 0.0.0.0/0 scram-sha-256
    hostssl all certified  0.0.0.0/0  cert";

async fn server(identity: Option<&Identity>, clients: &Authority) -> Postgres {
    let mut builder = Postgres::builder().hba(HBA);
    if let Some(identity) = identity {
        builder = builder.tls(identity).client_ca(&clients.certificate);
    }
    let pg = builder.start().await;
    pg.psql(ROLES);
    pg
}

#[tokio::test]
async fn every_way_of_authentication_works_by_tcp_by_unix_socket_and_by_tls() {
    let authority = Authority::new("authority");
    let pg = server(Some(&authority.server()), &authority).await;
    let unix = format!("host={} port={} dbname=postgres", pg.socket_dir().display(), pg.port());
    let tcp = format!("host=127.0.0.1 port={} dbname=postgres", pg.port());
    for role in ["trusted", "clear", "scram", "md5"] {
        let who = format!("user={role} password=hunter2");
        enters(&format!("{unix} {who} sslmode=require"), false).await; // no TLS there, whatever is asked for
        enters(&format!("{tcp} {who} sslmode=disable"), false).await;
        enters(&format!("{tcp} {who} sslmode=require"), true).await;
        if role == "trusted" {
            enters(&format!("{tcp} user={role} password=wrong"), true).await; // nobody asks
            continue;
        }
        for way in [format!("{unix} "), format!("{tcp} sslmode=disable"), format!("{tcp} sslmode=require")] {
            let words = ["password authentication failed", &format!("\"{role}\""), &format!("{role}@"), "PGPASSWORD"];
            refused(&format!("{way} user={role} password=hunter22"), Kind::Permission, &words).await;
        }
        refused(&format!("{tcp} user={role}"), Kind::Permission, &["asks for a password and none is given"]).await;
    }
}

#[tokio::test]
async fn a_password_comes_from_the_passfile_only_if_it_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let pg = server(None, &Authority::new("authority")).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("pgpass");
    std::fs::write(&file, format!("127.0.0.1:{}:*:scram:hunter2\n", pg.port())).unwrap();
    let conninfo = format!("host=127.0.0.1 port={} user=scram dbname=postgres passfile={}", pg.port(), file.display());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    enters(&conninfo, false).await;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(&conninfo, Kind::Permission, &["none is given"]).await;
}

#[tokio::test]
async fn each_sslmode_trusts_whom_libpq_trusts() {
    let (ours, other) = (Authority::new("authority"), Authority::new("authority"));
    let pg = server(Some(&ours.server()), &ours).await;
    let elsewhere = server(Some(&ours.server_named(&["elsewhere.example"])), &ours).await;
    let without = server(None, &ours).await;
    let files = Files::new();
    let (good, wrong) = (files.root("good.crt", &ours.certificate), files.root("wrong.crt", &other.certificate));
    let missing = "sslrootcert=/nonexistent/root.crt";
    let at = |pg: &Postgres| format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres", pg.port());
    let major = pg.major();
    let (pg, elsewhere, without) = (at(&pg), at(&elsewhere), (at(&without), without));
    let [anybody, tls, plain] = ["user=trusted", "user=only_tls password=hunter2", "user=only_plain password=hunter2"];

    for (role, mode, encrypted) in [
        (anybody, "disable", false),
        (anybody, "allow", false),
        (anybody, "prefer", true),
        (anybody, "require", true),
        (tls, "allow", true), // refused without, so with
        (tls, "prefer", true),
        (tls, "require", true),
        (plain, "disable", false),
        (plain, "allow", false),
        (plain, "prefer", false), // refused with, so without
    ] {
        enters(&format!("{pg} {role} sslmode={mode}"), encrypted).await;
    }
    if major >= 17 {
        enters(&format!("{pg} {anybody} sslmode=require sslnegotiation=direct"), true).await;
    }
    refused(&format!("{pg} {tls} sslmode=disable"), Kind::Permission, &["pg_hba.conf", "no encryption"]).await;
    refused(&format!("{pg} {plain} sslmode=require"), Kind::Permission, &["pg_hba.conf", "SSL encryption"]).await;

    for mode in ["disable", "allow", "prefer"] {
        enters(&format!("{} {anybody} sslmode={mode}", without.0), false).await;
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let words = ["the server has none", "ssl = on"];
        refused(&format!("{} {anybody} {good} sslmode={mode}", without.0), Kind::Config, &words).await;
    }

    for (server, root, mode, expected) in [
        (&pg, &good, "require", Ok(true)),
        (&pg, &good, "verify-ca", Ok(true)),
        (&pg, &good, "verify-full", Ok(true)),
        (&pg, &wrong, "prefer", Ok(false)), // TLS failed, so without
        (&pg, &wrong, "require", Err("cannot verify the server's certificate")),
        (&pg, &wrong, "verify-ca", Err("cannot verify the server's certificate")),
        (&pg, &wrong, "verify-full", Err("cannot verify the server's certificate")),
        (&elsewhere, &good, "require", Ok(true)),
        (&elsewhere, &good, "verify-ca", Ok(true)),
        (&elsewhere, &good, "verify-full", Err("not valid for name")),
        (&pg, &missing.to_owned(), "require", Err("sslrootcert")),
        (&pg, &String::new(), "verify-ca", Err("set sslrootcert")),
        (&pg, &String::new(), "verify-full", Err("set sslrootcert")),
    ] {
        let conninfo = format!("{server} {anybody} {root} sslmode={mode}");
        match expected {
            Ok(encrypted) => enters(&conninfo, encrypted).await,
            Err(words) => refused(&conninfo, Kind::Config, &[words]).await,
        }
    }
}

#[tokio::test]
async fn a_certificate_that_libpq_takes_is_taken() {
    let files = Files::new();
    let p384 = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let file = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let kept = |name: &str| Identity { certificate: file(&format!("{name}.crt")), key: file(&format!("{name}.key")) };
    let (by_the_manual, ed25519) = (kept("version1"), kept("ed25519"));
    let named = self_signed(p384(), "other", &["localhost"]);
    let unnamed = self_signed(p384(), "localhost", &[]);
    for (what, identity, root, can_bind) in [
        ("self-signed and listed as trusted", &named, &named.certificate, true),
        ("its host in the common name only", &unnamed, &unnamed.certificate, true),
        ("X.509 version 1", &by_the_manual, &file("root.crt"), true),
        ("Ed25519, for which no binding is defined", &ed25519, &ed25519.certificate, false),
    ] {
        let pg = server(Some(identity), &Authority::new("clients")).await;
        let root = files.root("root.crt", root);
        let at = format!("hostaddr=127.0.0.1 port={} dbname=postgres user=scram password=hunter2", pg.port());
        enters(&format!("{at} host=localhost sslmode=require"), true).await;
        enters(&format!("{at} host=localhost {root} sslmode=verify-full"), true).await;
        enters(&format!("{at} host=other {root} sslmode=verify-ca"), true).await;
        refused(
            &format!("{at} host=example.org {root} sslmode=verify-full"),
            Kind::Config,
            &["not valid for name", "example.org"],
        )
        .await;
        let bound = enter(&format!("{at} host=localhost sslmode=require channel_binding=require")).await;
        assert_eq!(bound.is_ok(), can_bind, "{what}: {bound:?}");
    }
}

#[tokio::test]
async fn a_client_certificate_opens_where_the_server_knows_its_authority() {
    let (ours, other) = (Authority::new("authority"), Authority::new("authority"));
    let pg = server(Some(&ours.server()), &ours).await;
    let files = Files::new();
    let at = format!("host=127.0.0.1 port={} dbname=postgres user=certified sslmode=require", pg.port());
    let good = files.client("good", &ours.client("certified"));
    enters(&format!("{at} {good}"), true).await;
    refused(&at, Kind::Permission, &["certificate", "set sslcert and sslkey"]).await;
    refused(&format!("{at} {}", files.client("wrong", &other.client("certified"))), Kind::Permission, &["sslcert"])
        .await;
    let named = files.client("named", &ours.client("somebody"));
    refused(&format!("{at} {named}"), Kind::Permission, &["certificate authentication failed"]).await;
    refused(&format!("{at} sslcert=/etc/nonexistent"), Kind::Config, &["sslcert", "/etc/nonexistent"]).await;
    // As libpq has it, a key is nobody's but its owner's.
    let key = files.0.path().join("good.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let hint = format!("chmod 0600 {}", key.display());
    refused(&format!("{at} {}", good), Kind::Config, &["others than its owner may read", &hint]).await;
    assert!(std::process::Command::new("chmod").args(["0600"]).arg(&key).status().unwrap().success());
    enters(&format!("{at} {good}"), true).await;
}

#[tokio::test]
async fn channel_binding_is_used_where_it_must_and_refused_where_it_cannot() {
    let authority = Authority::new("authority");
    let pg = server(Some(&authority.server()), &authority).await;
    let at = format!("host=127.0.0.1 port={} dbname=postgres password=hunter2", pg.port());
    let required = format!("{at} channel_binding=require");
    enters(&format!("{required} user=scram sslmode=require"), true).await;
    enters(&format!("{at} channel_binding=disable user=scram sslmode=require"), true).await;
    for (role, mode) in [("scram", "disable"), ("md5", "require"), ("clear", "require"), ("trusted", "require")] {
        let conninfo = format!("{required} user={role} sslmode={mode}");
        refused(&conninfo, Kind::Config, &["channel_binding=require", "scram-sha-256 in pg_hba.conf"]).await;
    }
}

#[tokio::test]
async fn who_is_refused_reads_why_and_what_to_do() {
    let pg = server(None, &Authority::new("authority")).await;
    pg.psql("CREATE ROLE plain LOGIN PASSWORD 'hunter2'; ALTER ROLE clear NOLOGIN");
    let tcp = format!("host=127.0.0.1 port={}", pg.port());
    let nobody = format!("{tcp} user=nobody dbname=postgres");
    refused(&nobody, Kind::Permission, &["no pg_hba.conf entry", "nobody@127.0.0.1:", "has a line for this user"])
        .await;
    let missing = format!("{tcp} user=trusted dbname=missing");
    refused(&missing, Kind::Config, &["\"missing\" does not exist", "PGDATABASE"]).await;
    refused(&format!("{tcp} user=clear password=hunter2"), Kind::Permission, &["not permitted to log in"]).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let unreachable = format!("host=127.0.0.1 port={closed} user=u dbname=d");
    refused(&unreachable, Kind::Unavailable, &[&format!("u@127.0.0.1:{closed}/d"), "Connection refused"]).await;
    refused("host=/nonexistent user=u", Kind::Unavailable, &["u@/nonexistent:5432/u", "No such file"]).await;
    refused("host=no-such-host.invalid user=u", Kind::Unavailable, &["no-such-host.invalid"]).await;
}

#[tokio::test]
async fn connecting_may_be_left_to_a_task() {
    let pg = Postgres::start().await;
    let settings = settings(&pg.conninfo());
    tokio::spawn(async move {
        Connection::connect(&settings).await.unwrap().query("SELECT 1").await.unwrap();
        sql::connect(&settings).await.unwrap().batch_execute("SELECT 1").await.unwrap();
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_role_without_replication_gets_the_name_of_the_right_it_lacks() {
    let pg = Postgres::start().await;
    pg.psql("CREATE ROLE plain LOGIN");
    let settings = settings(&format!("host=127.0.0.1 port={} user=plain dbname=postgres", pg.port()));
    sql::connect(&settings).await.unwrap();
    let error = Connection::connect(&settings).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Permission, "{error}");
    assert!(error.to_string().contains("ALTER ROLE … REPLICATION"), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_after_the_connect_timeout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("host=127.0.0.1 port={} user=u connect_timeout=1", listener.local_addr().unwrap().port());
    for mode in ["disable", "prefer"] {
        refused(&format!("{at} sslmode={mode}"), Kind::Unavailable, &["no answer within 1s", "connect_timeout"]).await;
    }
}

#[tokio::test]
async fn what_is_not_postgresql_is_named_as_such() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 100]).await;
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    for mode in ["disable", "prefer"] {
        let settings = settings(&format!("host=127.0.0.1 port={port} user=u sslmode={mode}"));
        let error = Connection::connect(&settings).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        assert!(error.to_string().contains("check host and port"), "{error}");
    }
}

/// Before the login nobody knows whose server it is: neither connection holds what it sends without an end.
#[tokio::test]
async fn a_server_that_sends_without_an_end_before_the_login_is_over_is_refused_by_both_connections() {
    let endless = |first: &'static [u8]| async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = socket.read(&mut [0; 1000]).await;
                    let mut sent = socket.write_all(first).await;
                    while sent.is_ok() {
                        sent = socket.write_all(&[b'x'; 65_536]).await;
                    }
                });
            }
        });
        port
    };
    // One message of 2 GB, and behind the authentication parameters without number.
    let parameter: &[u8] = &[&b"S\0\0\xff\xffn\0"[..], &[b'x'; 65_528], b"\0"].concat();
    let parameters: &'static [u8] = [b"R\0\0\0\x08\0\0\0\0", &parameter.repeat(32)[..]].concat().leak();
    for first in [&b"R\x7f\xff\xff\xff"[..], b"E\x7f\xff\xff\xff", parameters] {
        let port = endless(first).await;
        let settings = settings(&format!("host=127.0.0.1 port={port} user=u sslmode=disable connect_timeout=5"));
        let walsender = Connection::connect(&settings).await.unwrap_err();
        let sql = sql::connect(&settings).await.err().unwrap();
        assert_eq!(sql.kind(), Kind::Protocol, "{sql}");
        // It passes over parameters one by one, until the time is over.
        assert!([Kind::Protocol, Kind::Unavailable].contains(&walsender.kind()), "{walsender}");
    }
}

#[tokio::test]
async fn hosts_are_tried_in_order_until_one_is_of_the_wanted_kind() {
    let (pg, read_only) = (Postgres::start().await, Postgres::start().await);
    read_only.psql("ALTER SYSTEM SET default_transaction_read_only = on");
    read_only.psql("SELECT pg_reload_conf()");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ports = format!("port={closed},{},{}", read_only.port(), pg.port());
    let hosts = format!("host=127.0.0.1,127.0.0.1,127.0.0.1 {ports} user=postgres");
    eventually("the setting to be loaded", async || {
        (read_only.psql("SHOW default_transaction_read_only") == "on").then_some(())
    })
    .await;
    for (attributes, wanted) in
        [("any", &read_only), ("read-write", &pg), ("primary", &read_only), ("prefer-standby", &read_only)]
    {
        let settings = settings(&format!("{hosts} target_session_attrs={attributes}"));
        let port = Connection::connect(&settings).await.unwrap().query("SHOW port").await.unwrap();
        assert_eq!(port[0][0], Some(wanted.port().to_string()), "{attributes}");
        let row = sql::connect(&settings).await.unwrap().query_one("SHOW port", &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), wanted.port().to_string(), "{attributes}");
    }
    let words = ["none of 3 addresses", "Connection refused", "target_session_attrs"];
    refused(&format!("{hosts} target_session_attrs=standby"), Kind::Unavailable, &words).await;
}

#[tokio::test]
async fn the_system_is_identified_as_its_control_file_and_settings_say() {
    let pg = Postgres::start().await;
    let mut connection = Connection::connect(&settings(&pg.conninfo())).await.unwrap();
    let before: Lsn = pg.psql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    let system = connection.identify_system().await.unwrap();
    let after: Lsn = pg.psql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    assert_eq!(system.system_id, pg.psql("SELECT system_identifier FROM pg_control_system()"));
    assert_eq!(system.timeline.to_string(), pg.psql("SELECT timeline_id FROM pg_control_checkpoint()"));
    assert!(before <= system.flushed && system.flushed <= after, "{before} {} {after}", system.flushed);
    assert_eq!(system.dbname, "postgres");
    for (value, wanted) in [("7s", Some(Duration::from_secs(7))), ("0", None)] {
        connection.query(&format!("SET wal_sender_timeout = '{value}'")).await.unwrap();
        assert_eq!(connection.wal_sender_timeout().await.unwrap(), wanted);
    }
}

/// Settings of walhook's sessions, each with a value that would harm, as ALTER ROLE and ALTER DATABASE take it, and what it
/// has to be in spite of it.
const HOSTILE: [(&str, &str, &str); 17] = [
    ("client_encoding", "LATIN1", "UTF8"),
    ("search_path", "evil, pg_catalog, public", "pg_catalog, pg_temp"),
    ("standard_conforming_strings", "off", "on"),
    ("row_security", "on", "off"),
    ("synchronous_commit", "remote_apply", "local"),
    ("lock_timeout", "1", "0"),
    ("statement_timeout", "1", "0"),
    ("idle_in_transaction_session_timeout", "1", "0"),
    ("idle_session_timeout", "1", "0"),
    ("default_transaction_isolation", "serializable", "read committed"),
    ("datestyle", "German", "ISO, MDY"),
    ("intervalstyle", "postgres_verbose", "iso_8601"),
    ("timezone", "Asia/Tokyo", "UTC"),
    ("bytea_output", "escape", "hex"),
    ("extra_float_digits", "-15", "3"),
    ("array_nulls", "off", "on"),
    ("quote_all_identifiers", "on", "off"),
];

/// What is deliberately left as role and database have it, for the reasons in src/postgres/session.rs.
const LEFT: [(&str, &str); 2] = [("default_transaction_read_only", "on"), ("session_replication_role", "replica")];

/// What changes how a session reads and answers SQL, or ends it: each is pinned, or left for a reason.
const SETTINGS: [&str; 19] = [
    "search_path",
    "row_security",
    "synchronous_commit",
    "lock_timeout",
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "timezone",
    "bytea_output",
    "extra_float_digits",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "quote_all_identifiers",
    "session_replication_role",
    "standard_conforming_strings",
    "array_nulls",
];

#[test]
fn every_setting_that_matters_is_tried_with_a_hostile_value() {
    for name in SETTINGS {
        let is_tried = HOSTILE.iter().any(|(tried, ..)| *tried == name) || LEFT.iter().any(|(left, _)| *left == name);
        assert!(is_tried, "{name}");
    }
    for (name, hostile, wanted) in HOSTILE {
        assert_ne!(hostile, wanted, "{name}: what is hostile differs from what is pinned");
    }
}

#[tokio::test]
async fn both_sessions_are_what_walhook_relies_on_whatever_role_database_and_options_say() {
    for version in ["14", "18"] {
        let pg = Postgres::builder().version(version).start().await;
        pg.psql("CREATE ROLE walhook LOGIN REPLICATION");
        pg.psql("CREATE DATABASE app");
        let mut options = "-c work_mem=12MB -c client_min_messages=error".to_owned();
        for (name, value, _) in HOSTILE {
            let value = if name == "search_path" { value.to_owned() } else { format!("'{value}'") };
            pg.psql(&format!("ALTER ROLE walhook SET {name} = {value}; ALTER DATABASE app SET {name} = {value}"));
            options.push_str(&format!(" -c {name}={}", value.replace('\'', "").replace(' ', "\\\\ ")));
        }
        for (name, value) in LEFT {
            pg.psql(&format!("ALTER ROLE walhook SET {name} = {value}; ALTER DATABASE app SET {name} = {value}"));
        }
        if version == "18" {
            pg.psql(
                "ALTER ROLE walhook SET transaction_timeout = '9s'; ALTER DATABASE app SET transaction_timeout = '9s'",
            );
        }
        let conninfo = format!("host=127.0.0.1 port={} user=walhook dbname=app application_name='our name'", pg.port());
        let settings = settings(&format!("{conninfo} options='{options}'"));
        let mut connection = Connection::connect(&settings).await.unwrap();
        let client = sql::connect(&settings).await.unwrap();
        let mut wanted = HOSTILE.map(|(name, _, wanted)| (name, wanted)).to_vec();
        // What is the user's remains the user's.
        wanted.extend([("work_mem", "12MB"), ("application_name", "our name")]);
        wanted.extend(LEFT);
        if version == "18" {
            wanted.push(("transaction_timeout", "0"));
        }
        for (name, wanted) in wanted {
            let rows = connection.query(&format!("SHOW {name}")).await.unwrap();
            assert_eq!(rows[0][0].as_deref(), Some(wanted), "{name} of a replication session on {version}");
            let row = client.query_one(&format!("SHOW {name}"), &[]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), wanted, "{name} of an SQL session on {version}");
        }
        let rows = connection.query("SHOW client_min_messages").await.unwrap();
        assert_eq!(rows[0][0].as_deref(), Some("warning"));
        // And RESET goes back to it.
        client.batch_execute("SET lock_timeout = '1s'; RESET lock_timeout").await.unwrap();
        assert_eq!(client.query_one("SHOW lock_timeout", &[]).await.unwrap().get::<_, &str>(0), "0");
    }
}

/// PgBouncer in front of `pg`.
async fn pooler(pg: &Postgres) -> (Process, Folder, u16) {
    let user = User::unprivileged();
    let folder = Folder::new("pgbouncer", user);
    let (file, users) = (folder.path().join("pgbouncer.ini"), folder.path().join("users"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = session\n",
        pg.port(),
        users.display()
    );
    user.write(&users, "\"postgres\" \"\"\n");
    user.write(&file, text);
    let mut command = user.command(support::services::pgbouncer());
    command.arg(&file);
    let process = Process::start("PgBouncer", command, &folder.path().join("log"));
    eventually("PgBouncer to listen", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok().then_some(())
    })
    .await;
    (process, folder, port)
}

#[tokio::test]
async fn a_pooler_that_takes_no_settings_and_no_replication_gets_the_settings_by_statement_and_is_named() {
    let pg = Postgres::start().await;
    pg.psql("ALTER ROLE postgres SET row_security = on; ALTER ROLE postgres SET timezone = 'Asia/Tokyo'");
    let (_pooler, _folder, port) = pooler(&pg).await;
    let settings = settings(&format!("host=127.0.0.1 port={port} user=postgres dbname=postgres"));
    let client = sql::connect(&settings).await.unwrap();
    let shown =
        "SELECT current_setting('row_security') || current_setting('timezone') || current_setting('lock_timeout')";
    assert_eq!(client.query_one(shown, &[]).await.unwrap().get::<_, &str>(0), "offUTC0");
    let error = Connection::connect(&settings).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Config, "{error}");
    assert!(error.to_string().contains("connection pooler"), "{error}");
}

#[tokio::test]
async fn a_query_that_fails_leaves_the_connection_usable() {
    let pg = Postgres::start().await;
    let mut connection = Connection::connect(&settings(&pg.conninfo())).await.unwrap();
    let error = connection.query("SELECT * FROM missing").await.unwrap_err();
    assert_eq!((error.kind(), postgres::sqlstate(&error)), (Kind::Config, Some("42P01")), "{error}");
    let rows = connection.query("SELECT 1, NULL, 'ä' UNION ALL SELECT 2, '', 'b'").await.unwrap();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(rows, [[some("1"), None, some("ä")], [some("2"), some(""), some("b")]]);
    assert_eq!(connection.query("").await.unwrap(), Vec::<Vec<_>>::new());
}

#[tokio::test]
async fn errors_of_statements_are_sorted_by_who_must_act() {
    let pg = Postgres::start().await;
    pg.psql("CREATE ROLE plain LOGIN; CREATE TABLE secrets (a int PRIMARY KEY)");
    let client = sql::connect(&settings(&format!("{} user=plain", pg.conninfo()))).await.unwrap();
    for (statement, kind, code) in [
        ("SELECT * FROM public.secrets", Kind::Permission, "42501"),
        ("SELECT missing()", Kind::Config, "42883"),
        ("SELECT 1 / 0", Kind::Protocol, "22012"),
        ("SET statement_timeout = 1; SELECT pg_sleep(60)", Kind::Unavailable, "57014"),
    ] {
        let error = sql::error("try", client.batch_execute(statement).await.unwrap_err());
        assert_eq!((error.kind(), postgres::sqlstate(&error)), (kind, Some(code)), "{error}");
    }
    pg.kill9();
    eventually("the loss to show", async || client.is_closed().then_some(())).await;
    let error = sql::error("try", client.batch_execute("SELECT 1").await.unwrap_err());
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn a_committed_row_comes_down_the_stream_and_the_goodbye_frees_the_slot() {
    let pg = Postgres::start().await;
    prepare(&pg);
    let mut stream = stream(&pg).await;
    pg.psql("INSERT INTO t VALUES (1, 'a marked text')");
    read_to(&mut stream, "a marked text").await;
    assert_eq!(pg.psql("SELECT active FROM pg_replication_slots"), "t");
    assert_eq!(pg.psql("SELECT application_name FROM pg_stat_replication"), "walhook");
    stream.finish().await.unwrap();
    assert_eq!(pg.psql("SELECT active FROM pg_replication_slots"), "f");
}

#[tokio::test]
async fn a_row_of_many_megabytes_arrives_whole_over_tls() {
    let authority = Authority::new("authority");
    let pg = Postgres::builder().tls(&authority.server()).start().await;
    prepare(&pg);
    let settings = settings(&format!("{} sslmode=require", pg.conninfo()));
    let connection = Connection::connect(&settings).await.unwrap();
    let mut stream = connection.start_replication("s", Lsn::ZERO, &PLUGIN).await.unwrap();
    pg.psql("INSERT INTO t VALUES (1, repeat('0123456789abcdef', 1 << 20)), (2, 'small')");
    let large = loop {
        let payload = next(&mut stream).await.unwrap();
        if payload.len() > 1 << 24 {
            break payload;
        }
    };
    assert_eq!(large.windows(16).filter(|text| text == b"0123456789abcdef").count(), 1 << 20);
    read_to(&mut stream, "small").await;
    stream.finish().await.unwrap();
}

#[tokio::test]
async fn missing_active_and_foreign_slots_are_distinguished() {
    let pg = Postgres::start().await;
    prepare(&pg);
    let start = async |slot: &str| {
        let connection = Connection::connect(&settings(&pg.conninfo())).await.unwrap();
        connection.start_replication(slot, Lsn::ZERO, &PLUGIN).await
    };
    let error = start("nowhere").await.unwrap_err();
    assert_eq!((error.kind(), postgres::sqlstate(&error)), (Kind::Config, Some(postgres::UNDEFINED_OBJECT)));
    assert!(error.to_string().contains("walhook setup"), "{error}");

    let holder = start("s").await.unwrap();
    let error = start("s").await.unwrap_err();
    assert_eq!((error.is_retryable(), postgres::sqlstate(&error)), (true, Some(postgres::OBJECT_IN_USE)), "{error}");
    holder.finish().await.unwrap();
    start("s").await.unwrap().finish().await.unwrap();

    let odd = start("it's \"odd\"").await.unwrap_err();
    assert!(postgres::sqlstate(&odd).is_some(), "{odd}"); // the server understood the name, and refused it
}

#[tokio::test]
async fn a_publication_that_is_missing_stops_the_stream_with_its_name() {
    let pg = Postgres::start().await;
    prepare(&pg);
    let mut stream = stream(&pg).await;
    pg.psql("DROP PUBLICATION p");
    pg.psql("INSERT INTO t VALUES (1, 'x')");
    let error = loop {
        if let Err(e) = next(&mut stream).await {
            break e;
        }
    };
    assert_eq!(error.kind(), Kind::Config, "{error}");
    assert!(error.to_string().contains("publication \"p\""), "{error}");
    assert!(error.to_string().contains("walhook setup"), "{error}");
}

#[tokio::test]
async fn a_server_without_logical_wal_is_an_error_of_the_configuration() {
    let pg = Postgres::builder().conf("wal_level = replica").start().await;
    let connection = Connection::connect(&settings(&pg.conninfo())).await.unwrap();
    let error = connection.start_replication("s", Lsn::ZERO, &PLUGIN).await.unwrap_err();
    assert_eq!((error.kind(), postgres::sqlstate(&error)), (Kind::Config, Some("55000")), "{error}");
    let client = sql::connect(&settings(&pg.conninfo())).await.unwrap();
    let create = "SELECT pg_create_logical_replication_slot('s', 'pgoutput')";
    let error = sql::error("create the slot", client.batch_execute(create).await.unwrap_err());
    assert_eq!((error.kind(), postgres::sqlstate(&error)), (Kind::Config, Some("55000")), "{error}");
    assert!(error.to_string().contains("rule_cdc_check()"), "{error}");
}

#[tokio::test]
async fn a_slot_whose_wal_is_gone_is_refused() {
    let pg = Postgres::builder()
        .conf("max_slot_wal_keep_size = 1MB\nmin_wal_size = 32MB\nmax_wal_size = 32MB")
        .start()
        .await;
    prepare(&pg);
    eventually("the slot to be lost", async || {
        pg.psql("INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t");
        pg.psql("SELECT pg_switch_wal()");
        pg.psql("CHECKPOINT");
        (pg.psql("SELECT wal_status FROM pg_replication_slots") == "lost").then_some(())
    })
    .await;
    let connection = Connection::connect(&settings(&pg.conninfo())).await.unwrap();
    let error = connection.start_replication("s", Lsn::ZERO, &PLUGIN).await.unwrap_err();
    // The code is that of any object which is not as it must be; `walhook run` asks for the slot's state then.
    assert_eq!((error.kind(), postgres::sqlstate(&error)), (Kind::Config, Some("55000")), "{error}");
}

#[tokio::test]
async fn too_many_walsenders_is_an_error_that_passes() {
    let pg = Postgres::builder().conf("max_wal_senders = 1").start().await;
    let _holder = Connection::connect(&settings(&pg.conninfo())).await.unwrap();
    let error = Connection::connect(&settings(&pg.conninfo())).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("raise max_wal_senders"), "{error}");
}

/// Enough that the walsender blocks on a socket nobody reads.
const BACKLOG: &str = "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 30000) i";

#[tokio::test]
async fn status_updates_keep_a_stream_alive_that_is_not_read() {
    let pg = Postgres::builder().conf("wal_sender_timeout = 1s").start().await;
    prepare(&pg);
    pg.psql(BACKLOG);
    pg.psql("INSERT INTO t VALUES (0, 'the last row')");
    let mut stream = stream(&pg).await;
    next(&mut stream).await.unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    for _ in 0..18 {
        tokio::select! {
            driven = stream.drive(false) => panic!("nothing was to be read: {driven:?}"),
            _ = ticks.tick() => confirm(&mut stream, 0),
        }
    }
    while !holds(&next(&mut stream).await.unwrap(), "the last row") {
        confirm(&mut stream, 0);
    }
    stream.finish().await.unwrap();
}

#[tokio::test]
async fn a_stream_without_status_updates_is_closed_by_the_server() {
    let pg = Postgres::builder().conf("wal_sender_timeout = 1s").start().await;
    prepare(&pg);
    let mut stream = stream(&pg).await;
    let error = loop {
        if let Err(e) = next(&mut stream).await {
            break e;
        }
    };
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn what_cannot_be_sent_does_not_pile_up() {
    let pg = Postgres::start().await;
    prepare(&pg);
    let mut stream = stream(&pg).await;
    let taken = (0..10_000).take_while(|_| stream.queue_copy_data(|out| out.put_bytes(0, 34))).count();
    assert!((100..1000).contains(&taken), "{taken}");
}

#[tokio::test]
async fn a_crash_and_a_shutdown_of_the_server_end_the_stream_with_an_error_that_passes() {
    let pg = Postgres::start().await;
    prepare(&pg);
    let mut first = stream(&pg).await;
    pg.kill9();
    let error = loop {
        if let Err(e) = next(&mut first).await {
            break e;
        }
    };
    assert!(error.is_retryable(), "{error}");
    pg.restart().await;

    let mut second = stream(&pg).await;
    let stopping = std::thread::spawn(move || pg.stop());
    // The server waits for its walsenders until they have confirmed all of its WAL.
    let error = loop {
        match next(&mut second).await {
            Ok(payload) if payload[0] == b'k' => {
                let end = u64::from_be_bytes(payload[1..9].try_into().unwrap());
                confirm(&mut second, end);
            }
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert!(error.is_retryable(), "{error}");
    stopping.join().unwrap();
}
