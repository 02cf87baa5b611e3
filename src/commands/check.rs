//! `walhook check`: everything that could go wrong, before it does, in one table.
//!
//! In: the settings. Out: findings, each with its code, its severity, what was found, why it matters and its remedy; the worst first.
//! [`run`] is for other parts of walhook too. Always holds: one side that is away hides nothing of the other; what could not be looked
//! at is a finding of its own; nothing is changed, created or published (but for `--ping`).

mod amounts;
pub mod codes;
pub mod finding;
mod masks;
mod nats;
mod provider;
mod rights;
mod schemas;
mod seal_keys;
mod server;
mod show;
mod sizes;
mod tails;
mod webhooks;
pub mod window;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_postgres::Client;

use super::{breaks, deliver, identity, rows, schema, setup_check};
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    http::settings::Settings as HttpSettings,
    postgres::sql,
    route::tables::{ConfigRow, Tables},
    text,
};
use finding::{Finding, How, Severity};
use nats::Database;
use server::Server;
use sizes::Sample;
use window::OwnIds;

/// How long PostgreSQL may take to let us in.
const LOGIN: Duration = Duration::from_secs(15);
/// How long one statement may take: the check of 10,000 links takes half a minute on a busy machine.
const STATEMENT: &str = "SET statement_timeout = '300s'; SET lock_timeout = '5s'";
/// Over how long the rate of WAL is measured, at least.
const RATE: Duration = Duration::from_secs(1);
/// How long one NATS configuration may take.
const NATS: Duration = Duration::from_secs(60);
/// The width where there is no terminal.
const WIDTH: usize = 100;

/// The flags of `walhook check`.
#[derive(Debug, Clone, Default, Args)]
pub struct Arguments {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Print what walhook's users in NATS have to be allowed, for nats-server's configuration, and check nothing; with --deliver, for
    /// walhook deliver
    #[arg(long, conflicts_with_all = ["json", "ping"])]
    pub permissions: bool,
    /// Check the last mile as well: connect to each webhook's server, with TLS, and send nothing
    #[arg(long)]
    pub deliver: bool,
    /// With --deliver: send each webhook a signed test request, of type walhook.check
    #[arg(long, requires = "deliver")]
    pub ping: bool,
    /// With --deliver: these webhooks only, by name; may be repeated
    #[arg(long = "webhook", value_name = "NAME", requires = "deliver")]
    pub webhooks: Vec<String>,
    /// With --deliver: allow calls into this network, as walhook deliver does; may be repeated
    #[arg(
        long = "allow-network",
        value_name = "CIDR",
        env = "WALHOOK_ALLOW_NETWORK",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub allowed_networks: Vec<String>,
    /// How much room the disk with the WAL has, such as 100GB, where PostgreSQL runs on another machine
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub wal_disk_free: Option<f64>,
}

/// `100GB`, by the units of PostgreSQL's settings.
fn size(text: &str) -> Result<f64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1.0,
        "kB" => 1024.0,
        "MB" => 1024.0 * 1024.0,
        "GB" => 1024.0 * 1024.0 * 1024.0,
        "TB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err("is not a size such as 100GB".to_owned()),
    };
    let number: f64 = digits.parse().map_err(|_| "is not a size such as 100GB".to_owned())?;
    if number.is_finite() && number >= 0.0 {
        Ok(number * factor)
    } else {
        Err("is not a size such as 100GB".to_owned())
    }
}

/// Checks, prints, and ends as `walhook run` would.
///
/// # Errors
/// Something that `walhook run` would end with, by its exit code; a server is away (1).
pub async fn check(config: &Config, arguments: &Arguments) -> Result<()> {
    if arguments.permissions {
        return super::say(&permissions(config, arguments.deliver).await?);
    }
    let findings = run(config, arguments).await;
    let code = finding::exit_code(&findings);
    if arguments.json {
        super::say_json([&json!({ "exit_code": code, "findings": findings })])?;
    } else {
        let (width, has_colour) = terminal();
        super::say_bytes(show::table(&findings, code, width, has_colour).as_bytes())?;
    }
    if code == 0 {
        return Ok(());
    }
    let is_it = |finding: &&Finding| finding.exit_code == Some(code);
    let first = findings.iter().find(is_it).map_or_else(String::new, |first| format!("{}: {}", first.code, first.text));
    let kind = match code {
        2 => Kind::Config,
        3 => Kind::Untrusted,
        4 => Kind::Permission,
        5 => Kind::Fenced,
        _ => Kind::Unavailable,
    };
    Err(Error::new(kind, format!("check what walhook run needs: {}", first.trim_end_matches('.'))))
}

/// The width to write for, and whether with colours.
fn terminal() -> (usize, bool) {
    let is_terminal = io::stdout().is_terminal();
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // COLUMNS is for who has no terminal, or wants another width.
    let by_variable = variable("COLUMNS").and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
    let by_terminal = || {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok().filter(|_| is_terminal)?;
        Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
    };
    let has_colour =
        is_terminal && variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term != "dumb");
    (by_variable.or_else(by_terminal).unwrap_or(WIDTH), has_colour)
}

/// All findings, the worst first; of many alike one.
pub async fn run(config: &Config, arguments: &Arguments) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = HttpSettings::resolve(&config.http) {
        findings.push(Finding::of_error("http", "the settings of HTTP", &error));
    }
    let client = match timeout(LOGIN, connect(config)).await {
        Ok(Ok(client)) => Some(client),
        Ok(Err(error)) => {
            findings.push(Finding::of_error("postgres_connection", config.postgres.target(), &error));
            None
        }
        Err(_) => {
            let error = Error::unavailable(format!(
                "log in at {}: no answer within {} s",
                config.postgres.target(),
                LOGIN.as_secs()
            ));
            findings.push(Finding::of_error("postgres_connection", config.postgres.target(), &error));
            None
        }
    };
    match &client {
        Some(client) => with_database(client, config, arguments, &mut findings).await,
        None => without_database(config, &mut findings).await,
    }
    if arguments.deliver {
        let options = deliver::settings::Options {
            webhooks: arguments.webhooks.clone(),
            allowed_networks: arguments.allowed_networks.clone(),
            ..deliver::settings::Options::default()
        };
        match webhooks::check(config, &options, arguments.ping).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::not_checked(&["webhook_connect"], &error)),
        }
    }
    let listing = |code: &str| {
        let is_of_set_up = codes::of(code).is_some_and(|code| code.side == codes::Side::SetUp);
        is_of_set_up.then(|| {
            format!(
                "SELECT remedy FROM public.rule_cdc_check({}, {}) WHERE name = {};",
                text::sql_literal(&config.slot),
                text::sql_literal(&config.publication),
                text::sql_literal(code)
            )
        })
    };
    finding::group(findings, listing)
}

async fn connect(config: &Config) -> Result<Client> {
    let client = sql::connect(&config.postgres).await?;
    client.batch_execute(STATEMENT).await.map_err(|error| sql::error("prepare the session", error))?;
    Ok(client)
}

/// Adds the findings of one check, or that it could not be made.
fn add(findings: &mut Vec<Finding>, codes: &[&'static str], outcome: Result<Vec<Finding>>) {
    match outcome {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::not_checked(codes, &error)),
    }
}

async fn with_database(client: &Client, config: &Config, arguments: &Arguments, findings: &mut Vec<Finding>) {
    let server = Server::of(client, config).await;
    let began = Instant::now();
    let wal = server.wal().await;
    let free = match arguments.wal_disk_free {
        Some(free) => Some(free),
        None => server.free_disk().await,
    };
    // Before a replication connection of our own is one of them.
    let senders = server.senders().await;
    // In the order in which `run` meets them: the first that ends it decides the exit code.
    let identity = set_up(client, config, &server, findings).await;
    add(findings, &["role_replication"], server.role().await);
    let (replicated, found) = server::replication(config, server.provider).await;
    findings.extend(found);
    add(findings, &["publication_newer"], server.publications().await);
    add(findings, &["pooler"], server::pooled_sql(&config.postgres, client, server.provider).await);
    add(findings, &["privileges"], server.privileges().await);
    add(findings, &["standby", "read_only"], server.may_write().await);
    add(findings, &["postgres_minor_version"], server.minor_version().await);
    add(findings, &["slots_left"], server.slots().await);
    add(findings, &["senders_left"], senders);
    add(findings, &["wal_sender_timeout"], server.sender_timeout().await);
    add(findings, &["idle_replication_slot_timeout"], server.idle_timeout().await);
    add(findings, &["synchronous_standby"], server.synchronous_standby().await);
    add(findings, &["owners"], server.owners().await);
    add(findings, &["functions_replaced"], server.functions().await);
    add(findings, &["dead_letters", "slot_held", "history_blocked"], breaks::findings(client, config).await);

    let history = match (&identity, &replicated) {
        (Some(identity), Some(replicated)) => match tails::History::read(client, config, identity, replicated).await {
            Ok(history) => Some(history),
            Err(error) => {
                findings.push(Finding::of_error("checkpoints", "rule_nats_checkpoints", &error));
                None
            }
        },
        _ => None,
    };
    match rows::read(client).await {
        Ok(mut tables) => {
            tables.shard = config.shard_name();
            findings.extend(masks::check(config, &tables));
            findings.extend(seal_keys::check(config, &tables));
            tables.aliases = history.as_ref().map(|history| history.aliases.clone()).unwrap_or_default();
            let own_ids = OwnIds::of(client);
            let database = Database {
                client: Some(client),
                identity: identity.as_ref(),
                history: history.as_ref(),
                own_ids: Some(&own_ids),
            };
            of_nats(config, &tables, client, database, findings).await;
        }
        Err(error) => findings.push(Finding::not_checked(&["nats_connection"], &error)),
    }

    let rate = match wal {
        Ok((before, average)) => {
            sleep_until(began + RATE).await;
            let now = server.wal().await.ok().map(|(now, _)| (now - before) / began.elapsed().as_secs_f64());
            // Whichever is more: a quiet moment proves nothing.
            now.into_iter().chain(average).reduce(f64::max)
        }
        Err(_) => None,
    };
    add(findings, &["slot_wal_limit", "slot_wal_status", "slot_headroom"], server.headroom(rate, free).await);
    if findings.iter().any(|finding| finding.code == "standby") {
        waits_for_promotion(findings);
    }
}

/// `run` waits until a standby is promoted, whatever else is wrong by then.
fn waits_for_promotion(findings: &mut [Finding]) {
    for finding in findings.iter_mut().filter(|finding| finding.code != "standby") {
        finding.severity = finding.severity.min(Severity::Error);
        finding.exit_code = None;
    }
}

/// walhook's own objects: schema, identity, and the one check of the set-up. The identity, where it is this database's.
async fn set_up(
    client: &Client,
    config: &Config,
    server: &Server<'_>,
    findings: &mut Vec<Finding>,
) -> Option<identity::Identity> {
    if let Err(error) = schema::check(client, &config.postgres.target()).await {
        let mut finding = Finding::of_error("schema_version", "walhook's schema", &error);
        if error.kind() == Kind::Config {
            finding = finding.remedy(How::Shell, "walhook setup");
        }
        findings.push(finding);
        add(findings, &["wal_level"], server.wal_level().await);
        return None;
    }
    let identity = match identity::read(client).await {
        Ok(identity) => Some(identity),
        Err(error) => {
            findings.push(match error.kind() {
                Kind::Permission => not_allowed("identity", &error),
                Kind::Config => Finding::of_error("identity", "the identity of the database", &error)
                    .remedy(How::Shell, "walhook setup"),
                _ => Finding::of_error("identity", "the identity of the database", &error),
            });
            None
        }
    };
    match setup_check::read(client, config).await {
        Ok(found) => findings.extend(found.into_iter().map(|found| {
            let is_wal_level = found.name == "wal_level";
            let finding = Finding::from(found);
            // As the provider has it.
            match is_wal_level {
                true => {
                    let (how, remedy) = server.provider.set("wal_level", "logical", true);
                    finding.remedy(how, remedy)
                }
                false => finding,
            }
        })),
        Err(error) if error.kind() == Kind::Permission => findings.push(not_allowed("setup", &error)),
        Err(error) => add(findings, &["setup"], Err(error)),
    }
    identity
}

/// What a role may not read ends `run` as well; `privileges` says which rights are lacking.
fn not_allowed(code: &'static str, error: &Error) -> Finding {
    let finding = Finding::not_checked(&[code], error).exits(error.exit_code());
    Finding { severity: Severity::Fatal, ..finding }
}

async fn of_nats(
    config: &Config,
    tables: &Tables,
    client: &Client,
    database: Database<'_>,
    findings: &mut Vec<Finding>,
) {
    let sample = match sizes::sample(client).await {
        Ok(sample) => sample,
        Err(error) => {
            findings.push(Finding::not_checked(&["nats_max_payload"], &error));
            Sample::default()
        }
    };
    if let (Some(why), [first, rest @ ..]) = (&sample.why, &sample.unseen[..]) {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        let text = format!(
            "walhook could not look at rows of {first}{more}, to see whether they fit into a message: {}",
            why.reason()
        );
        findings.push(
            Finding::new("not_checked", Severity::Note, "nats_max_payload", text)
                .remedy(How::Sql, format!("GRANT SELECT ON {first} TO {};", text::sql_name(&config.postgres.user))),
        );
    }
    let (reached, found) = nats::configurations(config, tables);
    findings.extend(found);
    for reached in &reached {
        let checking = nats::check(config, tables, database, &sample, reached);
        match timeout(NATS, checking).await {
            Ok(found) => findings.extend(found),
            Err(_) => {
                let error = Error::unavailable(format!("ask NATS for more than {} s", NATS.as_secs()));
                findings.push(Finding::not_checked(&["nats_connection"], &error).exits(1));
            }
        }
    }
}

/// What can be said of NATS where the database with its address is away: whether a server that the process's own settings name lets us in.
async fn without_database(config: &Config, findings: &mut Vec<Finding>) {
    if config.nats.url.is_none() {
        let text = "walhook could not check NATS: its address is in the database, which cannot be read";
        let finding = Finding::new("not_checked", Severity::Warning, "nats_connection", text);
        findings.push(finding.remedy(How::Shell, "walhook check --nats-url nats://HOST:4222"));
        return;
    }
    let mut tables = Tables::default();
    let row = ConfigRow { config_id: 1, config_name: config.nats_config.clone(), ..ConfigRow::default() };
    tables.configs.insert(1, row);
    let (reached, found) = nats::configurations(config, &tables);
    findings.extend(found);
    for reached in &reached {
        findings.extend(nats::check(config, &tables, Database::default(), &Sample::default(), reached).await);
    }
}

/// The blocks for nats-server's configuration.
async fn permissions(config: &Config, is_deliver: bool) -> Result<String> {
    let client = connect(config).await?;
    schema::check(&client, &config.postgres.target()).await?;
    let identity = identity::read(&client).await?;
    let mut tables = rows::read(&client).await?;
    tables.shard = config.shard_name();
    let (reached, _) = nats::configurations(config, &tables);
    Ok(nats::permissions(config, &tables, Some(&identity), &reached, is_deliver))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_postgresql() {
        assert_eq!(size("100GB").unwrap(), 107_374_182_400.0);
        assert_eq!((size("1kB").unwrap(), size("7").unwrap()), (1024.0, 7.0));
        for bad in ["", "GB", "1XB", "-1GB", "1 GB", "nan"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
