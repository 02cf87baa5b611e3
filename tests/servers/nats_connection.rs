//! Both connections to NATS, against real servers: who we are, TLS, several servers, and what a refusal says.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{path::Path, time::Duration};

use nkeys::KeyPair;
use serde_json::{Value, json};
use support::{
    Nats,
    login::{Operator, tls_server},
    tls::Authority,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use walhook::{
    error::{Error, Kind},
    nats::{
        control,
        handshake::{self, Opened},
        ops::{self, Op},
        publish::{Inbox, Publisher},
        settings::{Overrides, Settings},
    },
    route::tables::ConfigRow,
};

const VERSIONS: [&str; 2] = ["2.10", "2.15"];

fn row(url: impl Into<String>) -> ConfigRow {
    ConfigRow { config_name: "default".into(), nats_url: Some(url.into()), ..ConfigRow::default() }
}

/// Opens both connections and hears the server on each.
async fn connect(row: &ConfigRow, overrides: &Overrides) -> [Result<(), Error>; 2] {
    let settings = match Settings::resolve(row, overrides) {
        Ok(settings) => settings,
        Err(error) => panic!("{error}"),
    };
    let publishing = async {
        let mut opened = handshake::open(&settings).await?;
        opened.io.write_all(b"PING\r\n").await.unwrap();
        next(&mut opened, |op| matches!(op, Op::Pong).then_some(())).await;
        Ok(())
    };
    let control = async {
        let control = control::connect(&settings).await?;
        control.client().flush().await.unwrap();
        Ok(())
    };
    [publishing.await, control.await]
}

async fn connects(row: &ConfigRow, overrides: &Overrides) {
    for (result, which) in connect(row, overrides).await.into_iter().zip(["publishing", "control"]) {
        assert!(result.is_ok(), "{which}: {}", result.unwrap_err());
    }
}

/// Both refuse, with this kind and with these words.
async fn refused(row: &ConfigRow, overrides: &Overrides, kind: Kind, words: &str) {
    for (result, which) in connect(row, overrides).await.into_iter().zip(["publishing", "control"]) {
        let error = result.expect_err(which);
        assert_eq!(error.kind(), kind, "{which}: {error}");
        assert!(error.to_string().contains(words), "{which}: {error}");
        assert!(!error.to_string().contains("s3cr3t"), "{which}: {error}");
    }
}

/// Reads operations until `pick` takes one.
async fn next<T>(opened: &mut Opened, mut pick: impl FnMut(&Op<'_>) -> Option<T>) -> T {
    let reading = async {
        loop {
            while let Some((op, length)) = ops::parse(&opened.leftover).unwrap() {
                let picked = pick(&op);
                let _ = opened.leftover.split_to(length);
                if let Some(picked) = picked {
                    return picked;
                }
            }
            assert_ne!(opened.io.read_buf(&mut opened.leftover).await.unwrap(), 0, "the server closed the connection");
        }
    };
    tokio::time::timeout(support::DEADLINE, reading).await.expect("the operation we wait for")
}

#[tokio::test]
async fn a_server_without_authentication_takes_anybody() {
    for version in VERSIONS {
        let nats = Nats::builder().version(version).start().await;
        connects(&row(nats.url()), &Overrides::default()).await;

        let settings = Settings::resolve(&row(nats.url()), &Overrides::default()).unwrap();
        let info = handshake::open(&settings).await.unwrap().info;
        assert!(info.version.starts_with(version) && info.headers && info.jetstream, "{info:?}");
        assert_eq!(info.max_payload, 1024 * 1024);
        assert!(info.at_least(2, 10, 0) && !info.at_least(3, 0, 0));
        assert_eq!(info.at_least(2, 12, 1), version == "2.15");
    }
}

#[tokio::test]
async fn a_token_comes_from_the_row_the_url_or_the_environment() {
    let nats = Nats::builder().config("authorization { token: s3cr3t }").start().await;
    let none = Overrides::default();
    let with =
        |token: &str| ConfigRow { auth_type: Some("token".into()), auth_token: Some(token.into()), ..row(nats.url()) };
    connects(&with("s3cr3t"), &none).await;
    connects(&row(format!("nats://s3cr3t@127.0.0.1:{}", nats.port())), &none).await;
    // The environment wins over the row.
    connects(&with("wrong"), &Overrides { token: Some("s3cr3t".into()), ..none.clone() }).await;

    refused(&with("wrong"), &none, Kind::Permission, "Authorization Violation").await;
    refused(&row(nats.url()), &none, Kind::Permission, "auth_type").await;
}

#[tokio::test]
async fn user_and_password_come_from_the_url_or_the_environment() {
    let nats = Nats::builder().config("authorization { user: walhook, password: \"s3cr3t@/:\" }").start().await;
    let none = Overrides::default();
    connects(&row(format!("nats://walhook:s3cr3t%40%2F%3a@127.0.0.1:{}", nats.port())), &none).await;
    let own = Overrides { user: Some("walhook".into()), password: Some("s3cr3t@/:".into()), ..none.clone() };
    connects(&row(nats.url()), &own).await;
    let wrong = row(format!("nats://walhook:s3cr3tly@127.0.0.1:{}", nats.port()));
    refused(&wrong, &none, Kind::Permission, "Authorization Violation").await;
}

#[tokio::test]
async fn an_nkey_signs_the_servers_nonce() {
    let (ours, other) = (KeyPair::new_user(), KeyPair::new_user());
    for version in VERSIONS {
        let config = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", ours.public_key());
        let nats = Nats::builder().version(version).config(&config).start().await;
        let with = |pair: &KeyPair| ConfigRow {
            auth_type: Some("nkey".into()),
            auth_nkey_seed: Some(pair.seed().unwrap()),
            ..row(nats.url())
        };
        connects(&with(&ours), &Overrides::default()).await;
        let own = Overrides { nkey: Some(ours.seed().unwrap()), ..Overrides::default() };
        connects(&row(nats.url()), &own).await;
        refused(&with(&other), &Overrides::default(), Kind::Permission, "Authorization Violation").await;
    }
    let open = Nats::start().await;
    let own = Overrides { nkey: Some(ours.seed().unwrap()), ..Overrides::default() };
    refused(&row(open.url()), &own, Kind::Config, "no nonce").await;
}

#[tokio::test]
async fn credentials_of_an_operators_account_are_read_anew_for_each_connection() {
    let operator = Operator::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("app.creds");
    for version in VERSIONS {
        let nats = Nats::builder().version(version).config(&operator.config()).start().await;
        let with = ConfigRow {
            auth_type: Some("credentials".into()),
            auth_credentials_file: Some(file.display().to_string()),
            ..row(nats.url())
        };
        Operator::new().write_credentials(&file);
        refused(&with, &Overrides::default(), Kind::Permission, "Authorization Violation").await;

        operator.write_credentials(&file);
        connects(&with, &Overrides::default()).await;
        connects(&row(nats.url()), &Overrides { creds: Some(file.clone()), ..Overrides::default() }).await;

        // JetStream answers the account.
        let settings = Settings::resolve(&with, &Overrides::default()).unwrap();
        let answer = control::connect(&settings).await.unwrap().api("INFO", &Value::Null).await.unwrap();
        assert!(answer.is_ok(), "{answer:?}");

        std::fs::write(&file, "s3cr3t, and not a credentials file").unwrap();
        refused(&with, &Overrides::default(), Kind::Config, "app.creds").await;
        std::fs::remove_file(&file).unwrap();
        refused(&with, &Overrides::default(), Kind::Config, "app.creds").await;
    }
}

fn trusting(folder: &Path, url: String) -> ConfigRow {
    ConfigRow { tls_enabled: Some(true), tls_ca_file: Some(folder.join("ca.crt").display().to_string()), ..row(url) }
}

#[tokio::test]
async fn tls_is_checked_against_the_named_authority_and_the_servers_name() {
    let authority = Authority::new("ours");
    for version in VERSIONS {
        let folder = tempfile::tempdir().unwrap();
        let nats = tls_server(folder.path(), &authority, version, "").await;
        let port = nats.port();
        let none = Overrides::default();
        connects(&trusting(folder.path(), nats.url()), &none).await;
        connects(&trusting(folder.path(), format!("tls://localhost:{port}")), &none).await;
        // The server asks for TLS: nobody need demand it here.
        connects(&ConfigRow { tls_enabled: None, ..trusting(folder.path(), nats.url()) }, &none).await;

        refused(&row(nats.url()), &none, Kind::Config, "NATS_CA").await;
        refused(&trusting(folder.path(), format!("nats://127.0.0.2:{port}")), &none, Kind::Unavailable, "127.0.0.2")
            .await;
        let other = folder.path().join("other.crt");
        std::fs::write(&other, Authority::new("theirs").certificate).unwrap();
        let own = Overrides { ca: Some(other), ..none.clone() };
        refused(&trusting(folder.path(), nats.url()), &own, Kind::Config, "NATS_CA").await;
        let own = Overrides { ca: Some(folder.path().join("server.key")), ..none.clone() };
        refused(&row(nats.url()), &own, Kind::Config, "server.key").await;
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new("ours");
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = authority.server_named(&["nats.example.org"]).write(folder.path(), "server");
    std::fs::write(folder.path().join("ca.crt"), &authority.certificate).unwrap();
    let config = format!("tls {{ cert_file: \"{}\", key_file: \"{}\" }}", cert.display(), key.display());
    let nats = Nats::builder().config(&config).start().await;
    refused(&trusting(folder.path(), nats.url()), &Overrides::default(), Kind::Config, "by a name").await;
}

#[tokio::test]
async fn a_server_that_verifies_clients_wants_our_certificate() {
    let authority = Authority::new("ours");
    for version in VERSIONS {
        let folder = tempfile::tempdir().unwrap();
        let nats = tls_server(folder.path(), &authority, version, "verify: true").await;
        let with = |name: &str| {
            let file = |end: &str| Some(folder.path().join(format!("{name}.{end}")).display().to_string());
            ConfigRow { tls_cert_file: file("crt"), tls_key_file: file("key"), ..trusting(folder.path(), nats.url()) }
        };
        authority.client("walhook").write(folder.path(), "client");
        Authority::new("theirs").client("walhook").write(folder.path(), "stranger");
        let none = Overrides::default();
        connects(&with("client"), &none).await;
        refused(&trusting(folder.path(), nats.url()), &none, Kind::Permission, "NATS_CERT").await;
        refused(&with("stranger"), &none, Kind::Permission, "NATS_CERT").await;
        refused(&with("absent"), &none, Kind::Config, "absent.crt").await;
    }
}

#[tokio::test]
async fn tls_first_meets_servers_that_greet_nobody_in_plain_text() {
    let authority = Authority::new("ours");
    for version in VERSIONS {
        let folder = tempfile::tempdir().unwrap();
        let nats = tls_server(folder.path(), &authority, version, "handshake_first: true").await;
        let first = Overrides { tls_first: true, ..Overrides::default() };
        connects(&trusting(folder.path(), nats.url()), &first).await;

        // Who greets in plain text is told so, with and without the authority's certificate.
        let none = Overrides::default();
        let late = ConfigRow { connection_timeout_ms: Some(1000), ..trusting(folder.path(), nats.url()) };
        refused(&late, &none, Kind::Config, "Set tls_first = true").await;
        let untrusting = ConfigRow { connection_timeout_ms: Some(1000), ..row(nats.url()) };
        refused(&untrusting, &none, Kind::Config, "handshake_first").await;
    }
    let plain = Nats::start().await;
    let first = Overrides { tls_first: true, ..Overrides::default() };
    refused(&row(plain.url()), &first, Kind::Config, "tls_first").await;
}

#[tokio::test]
async fn a_server_without_tls_gets_no_secret_where_tls_is_demanded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://walhook:s3cr3t@127.0.0.1:{}", listener.local_addr().unwrap().port());
    let demanding = ConfigRow { tls_enabled: Some(true), connection_timeout_ms: Some(500), ..row(url) };
    let settings = Settings::resolve(&demanding, &Overrides::default()).unwrap();
    let listening = tokio::spawn(async move {
        let mut heard = Vec::new();
        for _ in 0..2 {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(b"INFO {\"headers\":true,\"auth_required\":true}\r\n").await.unwrap();
            let _ = socket.read_to_end(&mut heard).await;
        }
        heard
    });
    let error = handshake::open(&settings).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Config, "{error}");
    assert!(error.to_string().contains("offers no TLS"), "{error}");
    assert!(control::connect(&settings).await.is_err());
    let heard = String::from_utf8_lossy(&listening.await.unwrap()).into_owned();
    assert!(!heard.contains("CONNECT") && !heard.contains("s3cr3t"), "{heard}");
}

#[tokio::test]
async fn a_dead_server_is_passed_over() {
    let nats = Nats::start().await;
    let several = ConfigRow { nats_cluster_urls: vec![nats.url()], ..row("nats://127.0.0.1:1") };
    connects(&several, &Overrides::default()).await;
    connects(&row(format!("127.0.0.1:1, 127.0.0.1:{}", nats.port())), &Overrides::default()).await;
    refused(&row("nats://127.0.0.1:1"), &Overrides::default(), Kind::Unavailable, "nats://127.0.0.1:1").await;
    refused(&row("nats://127.0.0.1:1"), &Overrides::default(), Kind::Unavailable, "its row in rule_nats_config").await;
    let own = Overrides { url: Some(vec!["nats://127.0.0.1:1".into()]), ..Overrides::default() };
    refused(&row(nats.url()), &own, Kind::Unavailable, "not the row's: --nats-url, NATS_URL").await;
}

#[tokio::test]
async fn errors_that_need_somebody_are_reported_before_those_that_may_pass() {
    let nats = Nats::builder().config("authorization { token: s3cr3t }").start().await;
    let several = row(format!("127.0.0.1:1, 127.0.0.1:{}, localhost:1", nats.port()));
    let settings = Settings::resolve(&several, &Overrides::default()).unwrap();
    let error = handshake::open(&settings).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Permission, "{error}");
}

/// Somebody who says `greeting` to each who connects, and then keeps silent.
async fn impostor(greeting: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            socket.write_all(greeting).await.unwrap();
            kept.push(socket);
        }
    });
    port
}

#[tokio::test]
async fn a_server_that_is_not_nats_is_reported_as_such() {
    for (greeting, kind, words) in [
        (&b""[..], Kind::Unavailable, "no greeting within 200 ms"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Kind::Protocol, "NATS client port"),
        (b"PONG\r\n", Kind::Protocol, "does not send INFO first"),
        (b"INFO {nonsense}\r\n", Kind::Protocol, "INFO"),
        (b"INFO {\"headers\":true,\"tls_required\":true}\r\nPONG\r\n", Kind::Protocol, "plain text"),
        (b"INFO {\"headers\":false}\r\n", Kind::Config, "headers"),
        (
            b"INFO {\"headers\":true}\r\n-ERR 'maximum connections exceeded'\r\n",
            Kind::Unavailable,
            "maximum connections",
        ),
        (b"INFO {\"headers\":true}\r\n", Kind::Unavailable, "no greeting within 200 ms"),
        (b"INFO {\"headers\":true}\r\nPONG\r\n", Kind::Protocol, "how large a message may be"),
        // What it would have us hold before it has proved who it is.
        (b"INFO {\"headers\":true}\r\nMSG a 1 60000000\r\n", Kind::Protocol, "larger than there can be here"),
        (
            b"INFO {\"headers\":true}\r\n-ERR 'all is \x1b[2Jwell'\r\n",
            Kind::Protocol,
            r"the NATS server refuses: all is \u{1b}[2Jwell",
        ),
    ] {
        let url = format!("nats://127.0.0.1:{}", impostor(greeting).await);
        let settings = ConfigRow { connection_timeout_ms: Some(200), ..row(url) };
        let settings = Settings::resolve(&settings, &Overrides::default()).unwrap();
        let error = handshake::open(&settings).await.err().unwrap();
        assert_eq!(error.kind(), kind, "{}: {error}", greeting.escape_ascii());
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn acks_and_no_responders_come_back_on_one_inbox() {
    for version in VERSIONS {
        let nats = Nats::builder().version(version).start().await;
        let jetstream = nats.jetstream().await;
        let config = async_nats::jetstream::stream::Config {
            name: "WEBHOOKS".into(),
            subjects: vec!["webhooks.>".into()],
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();

        let settings = Settings::resolve(&row(nats.url()), &Overrides::default()).unwrap();
        let mut opened = handshake::open(&settings).await.unwrap();
        let frames = "SUB _INBOX.walhook.* 1\r\n\
            HPUB webhooks.a _INBOX.walhook.1 30 32\r\nNATS/1.0\r\nNats-Msg-Id: a-1\r\n\r\n{}\r\n\
            HPUB elsewhere _INBOX.walhook.2 30 32\r\nNATS/1.0\r\nNats-Msg-Id: a-2\r\n\r\n{}\r\n";
        opened.io.write_all(frames.as_bytes()).await.unwrap();
        let (mut ack, mut nobody) = (None, None);
        next(&mut opened, |op| {
            match op {
                Op::Msg { subject: b"_INBOX.walhook.1", payload, .. } => ack = serde_json::from_slice(payload).ok(),
                Op::Hmsg { subject: b"_INBOX.walhook.2", headers, .. } => nobody = ops::status(headers),
                _ => {}
            }
            (ack.is_some() && nobody.is_some()).then_some(())
        })
        .await;
        let ack: Value = ack.unwrap();
        assert_eq!((&ack["stream"], &ack["seq"]), (&json!("WEBHOOKS"), &json!(1)));
        assert_eq!(nobody, Some(503));
    }
}

#[tokio::test]
async fn a_refusal_while_publishing_says_who_must_act() {
    for version in VERSIONS {
        let config = "max_payload: 1024\nauthorization { users: [ { user: u, password: p, permissions: { publish: \"a.>\" } } ] }";
        let nats = Nats::builder().version(version).config(config).start().await;
        let url = format!("nats://u:p@127.0.0.1:{}", nats.port());
        let settings = Settings::resolve(&row(url), &Overrides::default()).unwrap();
        for (frame, kind, words) in [
            ("PUB b 0\r\n\r\n".to_owned(), Kind::Permission, "Permissions Violation"),
            (format!("PUB a.b 2000\r\n{}\r\n", "x".repeat(2000)), Kind::Config, "max_payload"),
            ("NONSENSE\r\n".to_owned(), Kind::Protocol, "Unknown Protocol"),
        ] {
            let mut opened = handshake::open(&settings).await.unwrap();
            opened.io.write_all(frame.as_bytes()).await.unwrap();
            let refusal = |op: &Op<'_>| if let Op::Err(text) = op { Some(handshake::refusal(text)) } else { None };
            let error = next(&mut opened, refusal).await;
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}

#[tokio::test]
async fn a_forbidden_request_is_reported_at_once_with_its_subject() {
    let config =
        "authorization { users: [ { user: u, password: p, permissions: { publish: { deny: \"$JS.API.>\" } } } ] }";
    let nats = Nats::builder().config(config).start().await;
    let url = format!("nats://u:p@127.0.0.1:{}", nats.port());
    let settings = Settings::resolve(&row(url), &Overrides::default()).unwrap();
    let control = control::connect(&settings).await.unwrap();
    let asking = control.api("STREAM.INFO.WEBHOOKS", &Value::Null);
    let error = tokio::time::timeout(control::REQUEST_TIMEOUT / 2, asking).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Permission, "{error}");
    assert!(error.to_string().contains("Allow this user to publish to $JS.API.STREAM.INFO.WEBHOOKS"), "{error}");
}

#[tokio::test]
async fn an_own_inbox_prefix_is_enough_to_be_answered() {
    let config = "authorization { users: [ { user: u, password: p, permissions: { subscribe: \"_WALHOOK.>\" } } ] }";
    let nats = Nats::builder().config(config).start().await;
    let url = format!("nats://u:p@127.0.0.1:{}", nats.port());
    let own = Overrides { inbox_prefix: Some("_WALHOOK".into()), ..Overrides::default() };
    let settings = Settings::resolve(&row(url.clone()), &own).unwrap();
    let control = control::connect(&settings).await.unwrap();
    assert!(control.api("INFO", &Value::Null).await.unwrap().is_ok());
    let inbox = Inbox { id: 1, subject: own.publish_inbox() };
    assert!(Publisher::open(&settings, &[inbox]).await.is_ok());

    // Without it both connections say what to allow or to set.
    let (own, settings) = (Overrides::default(), Settings::resolve(&row(url), &Overrides::default()).unwrap());
    let inbox = Inbox { id: 1, subject: own.publish_inbox() };
    let publishing = Publisher::open(&settings, &[inbox]).await.err().unwrap();
    let asking = control::connect(&settings).await.unwrap().api("INFO", &Value::Null).await.unwrap_err();
    for error in [publishing, asking] {
        assert_eq!(error.kind(), Kind::Permission, "{error}");
        let text = error.to_string();
        assert!(text.contains("subscribe to _INBOX") && text.contains("nats.inbox_prefix"), "{text}");
    }
}

#[tokio::test]
async fn a_server_without_jetstream_is_recognized_by_its_first_request() {
    let listener = Nats::builder().config("jetstream: disabled").start().await;
    let settings = Settings::resolve(&row(listener.url()), &Overrides::default()).unwrap();
    let control = control::connect(&settings).await.unwrap();
    let error = control.api("INFO", &Value::Null).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Config, "{error}");
    assert!(error.to_string().contains("Enable JetStream"), "{error}");
}

#[tokio::test]
async fn a_lost_server_ends_a_request_by_its_deadline_and_the_control_connection_comes_back() {
    let nats = Nats::start().await;
    let quick = ConfigRow { reconnect_delay_ms: Some(20), ..row(nats.url()) };
    let control = control::connect(&Settings::resolve(&quick, &Overrides::default()).unwrap()).await.unwrap();
    nats.kill9();
    support::eventually("the connection to be lost", async || {
        (control.client().connection_state() != async_nats::connection::State::Connected).then_some(())
    })
    .await;
    nats.restart().await;
    let asked = tokio::time::timeout(Duration::from_secs(20), control.api("INFO", &Value::Null)).await.unwrap();
    assert!(asked.is_ok_and(|answer| answer.is_ok()));
}

#[tokio::test]
async fn a_server_that_sends_without_an_end_before_the_login_is_refused_by_both_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&sent);
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let counted = std::sync::Arc::clone(&counted);
            tokio::spawn(async move {
                let chunk = [b'I'; 64 * 1024];
                while socket.write_all(&chunk).await.is_ok() {
                    counted.fetch_add(chunk.len(), std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    let settings = Settings::resolve(&row(format!("nats://{address}")), &Overrides::default()).unwrap();
    let control = control::connect(&settings).await.map(drop).unwrap_err().to_string();
    let publisher = Publisher::open(&settings, &[]).await.map(drop).unwrap_err().to_string();
    for error in [control, publisher] {
        assert!(error.contains("a line without an end"), "{error}");
    }
    let sent = sent.load(std::sync::atomic::Ordering::Relaxed);
    assert!(sent < 64 * 1024 * 1024, "{sent} bytes were taken");
}
