//! From a dialled socket to a session: start-up and authentication (manual, sections 55.2.1 and 55.3).
//!
//! In come settings and a password; out goes a connection that is ready for its first query. A password is sent only
//! in the way the server asked for, and never shows in an error.

use postgres_protocol::{
    authentication::{md5_hash, sasl},
    message::frontend,
};

use super::{
    dial::{Attributes, Dialled, LoggedIn},
    login_error, session,
    settings::{ChannelBinding, Secret, Settings},
    wire::{Fields, Wire, parse_error},
};
use crate::error::{Error, Result};

/// What the start-up message asks for besides user and database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Startup {
    /// Replication, with all settings of [`session`].
    Whole,
    /// Replication alone: a pooler in between may take no settings.
    Replication,
    /// A plain session, to see whether replication is what is refused.
    Plain,
}

/// Logs in for replication in the settings' database.
pub(super) async fn log_in(dialled: Dialled, settings: &Settings, startup: Startup) -> Result<LoggedIn<Wire>> {
    let password = dialled.password.clone();
    let mut wire = Wire::new(dialled);
    start_up(&mut wire, settings, startup)?;
    authenticate(&mut wire, settings, password.as_ref()).await?;
    let attributes = settle(&mut wire).await?;
    Ok(LoggedIn { session: wire, attributes })
}

fn start_up(wire: &mut Wire, settings: &Settings, startup: Startup) -> Result<()> {
    let who = [
        ("user", settings.user.as_str()),
        ("database", &settings.dbname),
        ("application_name", &settings.application_name),
    ];
    let replication = (startup != Startup::Plain).then_some(("replication", "database"));
    let options = settings.options.as_deref().map(|options| ("options", options));
    let pinned = session::parameters().filter(|_| startup == Startup::Whole);
    let parameters = who.into_iter().chain(replication).chain(options).chain(pinned);
    frontend::startup_message(parameters, &mut wire.outbox).map_err(|e| Error::config("start the session").caused_by(e))
}

async fn authenticate(wire: &mut Wire, settings: &Settings, password: Option<&Secret>) -> Result<()> {
    let needed = || password.map(Secret::reveal).ok_or_else(no_password);
    let mut bound = false;
    loop {
        let request = authentication_request(wire).await?;
        // Everything but SCRAM-SHA-256-PLUS leaves the channel unbound.
        if settings.channel_binding == ChannelBinding::Require && !bound && !matches!(request, Request::Sasl(_)) {
            return Err(unbound());
        }
        match request {
            Request::Ok => return Ok(()),
            Request::Cleartext => send_password(wire, needed()?.as_bytes())?,
            Request::Md5(salt) => {
                let hash = md5_hash(settings.user.as_bytes(), needed()?.as_bytes(), salt);
                send_password(wire, hash.as_bytes())?;
            }
            Request::Sasl(mechanisms) => {
                bound = scram(wire, &mechanisms, settings.channel_binding, needed()?).await?;
            }
            Request::SaslContinue(_) | Request::SaslFinal(_) => return Err(unexpected("an answer to no question")),
        }
    }
}

enum Request {
    Ok,
    Cleartext,
    Md5([u8; 4]),
    Sasl(Vec<String>),
    SaslContinue(Vec<u8>),
    SaslFinal(Vec<u8>),
}

async fn authentication_request(wire: &mut Wire) -> Result<Request> {
    let (tag, body) = wire.reply().await?;
    let body = wire.inbox.body(body);
    match tag {
        b'R' => {}
        b'E' => return Err(login_error("authenticate", parse_error(body)?)),
        // Every server still supported knows protocol 3.0 and our plain parameters.
        tag => return Err(unexpected(format!("a frame with tag {tag:#04x}"))),
    }
    let mut fields = Fields::new(body, "Authentication");
    match fields.i32()? {
        0 => Ok(Request::Ok),
        3 => Ok(Request::Cleartext),
        5 => {
            let salt = fields.bytes(4)?;
            Ok(Request::Md5([salt[0], salt[1], salt[2], salt[3]]))
        }
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                let mechanism = fields.text()?;
                if mechanism.is_empty() {
                    return Ok(Request::Sasl(mechanisms));
                }
                mechanisms.push(mechanism);
            }
        }
        11 => Ok(Request::SaslContinue(fields.rest().to_vec())),
        12 => Ok(Request::SaslFinal(fields.rest().to_vec())),
        other => {
            Err(Error::config(format!("authenticate: the server asks for method {other}, which walhook cannot do"))
                .hint("use scram-sha-256, md5, password, cert, peer or trust in pg_hba.conf"))
        }
    }
}

fn unexpected(what: impl std::fmt::Display) -> Error {
    Error::protocol(format!("authenticate: the server sent {what}"))
        .hint("check host and port: this may not be a PostgreSQL server")
}

pub(super) fn no_password() -> Error {
    Error::permission("authenticate: the server asks for a password and none is given")
        .hint("set PGPASSWORD, a password file, or a line in ~/.pgpass")
}

pub(super) fn unbound() -> Error {
    Error::config("authenticate: channel_binding=require, and the server does not bind the channel")
        .hint("it needs TLS (sslmode=require or stricter), a SCRAM password and scram-sha-256 in pg_hba.conf")
}

fn send_password(wire: &mut Wire, password: &[u8]) -> Result<()> {
    frontend::password_message(password, &mut wire.outbox).map_err(|_| unsendable())
}

fn unsendable() -> Error {
    Error::config("authenticate: the password cannot be sent").hint("it holds a NUL byte")
}

/// SCRAM-SHA-256 (RFC 7677), bound to the TLS channel where both sides can. Says whether it was.
async fn scram(wire: &mut Wire, mechanisms: &[String], binding: ChannelBinding, password: &str) -> Result<bool> {
    let offers = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
    let hash = wire.end_point_hash().filter(|_| binding != ChannelBinding::Disable);
    let (mechanism, gs2, bound) = match hash {
        Some(hash) if offers(sasl::SCRAM_SHA_256_PLUS) => {
            (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash), true)
        }
        _ if binding == ChannelBinding::Require => return Err(unbound()),
        _ if !offers(sasl::SCRAM_SHA_256) => {
            return Err(Error::config(format!("authenticate: the server offers only {}", mechanisms.join(", ")))
                .hint("walhook can do SCRAM-SHA-256 and, over TLS, SCRAM-SHA-256-PLUS"));
        }
        // Tells the server that we could have: if somebody between us took PLUS out of its offer, it notices.
        Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested(), false),
        None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported(), false),
    };
    let unproven = |e: std::io::Error| {
        Error::permission("authenticate: the server could not prove that it knows the password")
            .caused_by(e)
            .hint("check that this is the right server, and the password")
    };
    let mut scram = sasl::ScramSha256::new(password.as_bytes(), gs2);
    frontend::sasl_initial_response(mechanism, scram.message(), &mut wire.outbox).map_err(|_| unsendable())?;
    match authentication_request(wire).await? {
        Request::SaslContinue(challenge) => scram.update(&challenge).map_err(unproven)?,
        _ => return Err(unexpected("no challenge")),
    }
    frontend::sasl_response(scram.message(), &mut wire.outbox).map_err(|_| unsendable())?;
    match authentication_request(wire).await? {
        Request::SaslFinal(proof) => scram.finish(&proof).map_err(unproven)?,
        _ => return Err(unexpected("no proof of its own")),
    }
    Ok(bound)
}

/// Reads up to the first ReadyForQuery, keeping what the server reports of itself.
async fn settle(wire: &mut Wire) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    loop {
        let (tag, body) = wire.frame().await?;
        let body = wire.inbox.body(body);
        match tag {
            b'Z' => return Ok(attributes),
            b'E' => return Err(login_error("start the session", parse_error(body)?)),
            b'S' => {
                let mut fields = Fields::new(body, "ParameterStatus");
                let (name, value) = (fields.text()?, fields.text()?);
                match name.as_str() {
                    "in_hot_standby" => attributes.in_hot_standby = value == "on",
                    "default_transaction_read_only" => attributes.read_only = value == "on",
                    _ => {}
                }
            }
            // BackendKeyData serves to cancel queries, which a walsender has none of; notices change nothing.
            b'K' | b'N' | b'v' => {}
            tag => return Err(unexpected(format!("a frame with tag {tag:#04x} at the start of the session"))),
        }
    }
}
