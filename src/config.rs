//! The process's own settings: flags over environment over `--config FILE` over defaults.
//!
//! Comes in: the command line and a lookup of the environment. Goes out: a [`Config`] that cannot be wrong. What is
//! published where is not here but in the database.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::{
    commands::deliver::settings as deliver,
    error::{Error, Result},
    files,
    flow::streamer::Limits,
    http, nats,
    postgres::Settings,
    route::shard::MAIN,
};

/// How many bytes of rows for the publish history wait or are under way, for each lane: thousands of rows.
const HISTORY_BYTES: usize = 4 << 20;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The settings that the command line takes; every one of them can stand in the environment too.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Settings file (TOML); config/walhook.toml shows them all
    #[arg(long, value_name = "FILE", env = "WALHOOK_CONFIG", global = true, hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// PostgreSQL: a URL or a libpq connection string; PG* variables fill what it leaves out [env: DATABASE_URL]
    #[arg(
        long,
        short = 'd',
        value_name = "CONNINFO",
        env = "WALHOOK_DATABASE_URL",
        global = true,
        hide_env_values = true
    )]
    pub database_url: Option<String>,
    /// Name of this database's feed: the beginning of every event id [default: the slot's name]
    #[arg(long, value_name = "NAME", env = "WALHOOK_SOURCE", global = true, hide_env_values = true)]
    pub source: Option<String>,
    /// Replication slot [default: walhook]
    #[arg(long, value_name = "NAME", env = "WALHOOK_SLOT", global = true, hide_env_values = true)]
    pub slot: Option<String>,
    /// Publications: <NAME>_inserts and <NAME>_changes [default: walhook]
    #[arg(long, value_name = "NAME", env = "WALHOOK_PUBLICATION", global = true, hide_env_values = true)]
    pub publication: Option<String>,
    /// The shard that this process publishes: its slot, publications, source and streams have _<NAME> behind their names
    #[arg(long, value_name = "NAME", env = "WALHOOK_SHARD", global = true, hide_env_values = true)]
    pub shard: Option<String>,
    /// Confirm events to PostgreSQL so long after NATS has stored them: a NATS server may lose its last ones in a power cut [default: 0]
    #[arg(long, value_name = "SECONDS", env = "WALHOOK_CONFIRM_DELAY_SECONDS", global = true, hide_env_values = true)]
    pub confirm_delay_seconds: Option<u64>,
    /// File with the key of masks that hash: 16 bytes or more, which nobody but walhook may read
    #[arg(long, value_name = "FILE", env = "WALHOOK_MASK_KEY_FILE", global = true, hide_env_values = true)]
    pub mask_key_file: Option<PathBuf>,
    /// Folder with the keys that seal payloads, each in a file NAME.ID which nobody but walhook may read
    #[arg(long, value_name = "DIR", env = "WALHOOK_SEAL_KEYS_DIR", global = true, hide_env_values = true)]
    pub seal_keys_dir: Option<PathBuf>,
    /// NATS servers, in place of those in rule_nats_config [env: NATS_URL]
    #[arg(long, value_name = "URL[,URL]", env = "WALHOOK_NATS_URL", global = true, hide_env_values = true)]
    pub nats_url: Option<String>,
    /// Serve probes, metrics and the status page by HTTP: a port on 127.0.0.1, or IP:PORT (run and deliver) [default: off]
    #[arg(long, value_name = "ADDR", env = "WALHOOK_HTTP", global = true, hide_env_values = true)]
    pub http: Option<String>,
    /// Log as text or json [default: text]
    #[arg(long, value_name = "FORMAT", env = "WALHOOK_LOG_FORMAT", global = true, hide_env_values = true)]
    pub log_format: Option<LogFormat>,
    /// Every so many seconds log what was done and which servers cannot be reached; 0: never [default: 0]
    #[arg(long, value_name = "SECONDS", env = "WALHOOK_LOG_SUMMARY", global = true, hide_env_values = true)]
    pub log_summary: Option<u64>,
    /// Log level: off, error, warn, info, debug, trace; a crate's own level as in info,async_nats=debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "WALHOOK_LOG", global = true, hide_env_values = true)]
    pub log: Option<String>,
}

/// `--config FILE`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    source: Option<String>,
    slot: Option<String>,
    publication: Option<String>,
    shard: Option<String>,
    window_events: Option<usize>,
    window_bytes: Option<usize>,
    ack_timeout_ms: Option<u64>,
    status_interval_ms: Option<u64>,
    confirm_delay_seconds: Option<u64>,
    shutdown_timeout_ms: Option<u64>,
    events_retention_hours: Option<u64>,
    consumer_stats_interval_ms: Option<u64>,
    mask_key_file: Option<PathBuf>,
    seal_keys_dir: Option<PathBuf>,
    nats_config: Option<String>,
    postgres: PostgresFile,
    nats: nats::settings::Overrides,
    deliver: deliver::File,
    http: http::settings::File,
    log: LogFile,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PostgresFile {
    url: Option<String>,
    password_file: Option<PathBuf>,
}

/// A URL may hold a password.
impl std::fmt::Debug for PostgresFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresFile").field("password_file", &self.password_file).finish_non_exhaustive()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LogFile {
    format: Option<LogFormat>,
    level: Option<String>,
    summary_seconds: Option<u64>,
}

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to reach PostgreSQL.
    pub postgres: Settings,
    /// What overrides `rule_nats_config`, and what its rows may name.
    pub nats: nats::settings::Overrides,
    /// The name of this database's feed: `[A-Za-z0-9_.-]`, at most 64 bytes.
    pub source: String,
    /// The replication slot.
    pub slot: String,
    /// The stem of the two publications' names.
    pub publication: String,
    /// The shard of this process; `None`: the main one.
    pub shard: Option<Shard>,
    /// How much may be in flight.
    pub limits: Limits,
    /// How long the oldest message may go without an answer.
    pub ack_timeout: Duration,
    /// How often PostgreSQL is told what is confirmed.
    pub status_interval: Duration,
    /// How much later than it is acknowledged a commit is confirmed; zero: at once.
    pub confirm_delay: Duration,
    /// How long a shutdown may wait for acks.
    pub shutdown_timeout: Duration,
    /// How long rows stay in `rule_webhook_events` after they were written; published they are sooner.
    pub events_retention: Duration,
    /// How often JetStream is asked for the consumers of our streams; zero: never.
    pub consumer_stats_interval: Duration,
    /// The key of masks that hash.
    pub mask_key_file: Option<PathBuf>,
    /// A folder with the keys that seal payloads.
    pub seal_keys_dir: Option<PathBuf>,
    /// The `rule_nats_config` row that `nats` overrides; the others are taken as they are.
    pub nats_config: String,
    /// What the file says of `walhook deliver`.
    pub deliver: deliver::File,
    /// Where and to whom `run` and `deliver` serve HTTP; the files that it names are read when they begin.
    pub http: http::settings::File,
    /// How the log is written.
    pub log_format: LogFormat,
    /// How often the log tells what was done; zero: never.
    pub log_summary: Duration,
    /// Which events are logged, as [`crate::log::targets`] reads it.
    pub log: String,
}

/// A shard's name, and the names that the settings have without it. With it they are `<name>_<shard>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The shard's name.
    pub name: String,
    /// The slot of the main shard.
    pub main_slot: String,
    /// The publications of the main shard.
    pub main_publication: String,
    /// The source of the main shard.
    pub main_source: String,
}

impl Config {
    /// The name of the shard, if it is not the main one.
    pub fn shard_name(&self) -> Option<String> {
        self.shard.as_ref().map(|shard| shard.name.clone())
    }

    /// What the process's own settings say of the NATS configuration of this name.
    pub fn overrides_of(&self, config_name: &str) -> nats::settings::Overrides {
        if config_name == self.nats_config { self.nats.clone() } else { self.nats.for_others() }
    }

    /// Puts flags, environment, file and defaults together.
    ///
    /// # Errors
    /// A file that cannot be read, a setting that cannot be; the message names it and where it was set.
    pub fn load(options: &Options, env: impl Fn(&str) -> Option<String>) -> Result<Config> {
        let file = match &options.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        // An empty variable is as good as none: that is how shells and compose files unset one.
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let postgres = postgres(options, &file, &env)?;
        let slot = options.slot.clone().or(file.slot).unwrap_or_else(|| "walhook".to_owned());
        check_slot(&slot)?;
        let source = options.source.clone().or(file.source).unwrap_or_else(|| slot.clone());
        check_source(&source)?;
        let publication = options.publication.clone().or(file.publication).unwrap_or_else(|| "walhook".to_owned());
        if publication.is_empty() || publication.len() > 54 {
            return Err(Error::config(
                "the publication's name (--publication, WALHOOK_PUBLICATION, publication) cannot be one",
            )
            .hint("a publication's name has 1 to 54 bytes"));
        }
        let main = (slot, source, publication);
        let shard = options.shard.clone().or(file.shard).filter(|name| !name.is_empty());
        let (shard, (slot, source, publication)) = match shard {
            None => (None, main),
            Some(name) => of_shard(name, main)?,
        };
        let window_bytes = in_range("window_bytes", file.window_bytes.unwrap_or(8 << 20), 64 << 10, 1 << 30)?;
        let limits = Limits {
            window_events: in_range("window_events", file.window_events.unwrap_or(4096), 1, 32_768)?,
            window_bytes,
            history_bytes: window_bytes.min(HISTORY_BYTES),
        };
        let millis = |name, value: Option<u64>, default, min, max| {
            in_range(name, value.unwrap_or(default), min, max).map(Duration::from_millis)
        };
        Ok(Config {
            postgres,
            nats: nats(options, file.nats, &env)?,
            source,
            slot,
            publication,
            shard,
            limits,
            ack_timeout: millis("ack_timeout_ms", file.ack_timeout_ms, 10_000, 100, 600_000)?,
            status_interval: millis("status_interval_ms", file.status_interval_ms, 1000, 10, 60_000)?,
            confirm_delay: Duration::from_secs(in_range(
                "confirm_delay_seconds",
                options.confirm_delay_seconds.or(file.confirm_delay_seconds).unwrap_or(0),
                0,
                86_400,
            )?),
            shutdown_timeout: millis("shutdown_timeout_ms", file.shutdown_timeout_ms, 20_000, 0, 600_000)?,
            events_retention: Duration::from_secs(
                3600 * in_range("events_retention_hours", file.events_retention_hours.unwrap_or(24), 0, 87_600)?,
            ),
            consumer_stats_interval: millis(
                "consumer_stats_interval_ms",
                file.consumer_stats_interval_ms,
                30_000,
                0,
                3_600_000,
            )?,
            mask_key_file: options.mask_key_file.clone().or(file.mask_key_file),
            seal_keys_dir: options.seal_keys_dir.clone().or(file.seal_keys_dir),
            nats_config: file.nats_config.unwrap_or_else(|| "default".to_owned()),
            deliver: file.deliver,
            http: file.http.or_listen(options.http.as_ref()),
            log_format: options.log_format.or(file.log.format).unwrap_or_default(),
            log_summary: Duration::from_secs(in_range(
                "log.summary_seconds",
                options.log_summary.or(file.log.summary_seconds).unwrap_or(0),
                0,
                86_400,
            )?),
            log: options.log.clone().or(file.log.level).unwrap_or_else(|| "info".to_owned()),
        })
    }
}

fn read_file(path: &Path) -> Result<File> {
    let text = files::read_text("--config (WALHOOK_CONFIG)", path)?;
    toml::from_str(&text).map_err(|error| {
        // The library's own text quotes the line, which may hold a secret.
        let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
        let line = line.map(|line| format!(", line {line}")).unwrap_or_default();
        Error::config(format!("read the settings file {}{line}: {}", files::shown(path), unquoted(error.message())))
            .hint("config/walhook.toml shows every setting")
    })
}

/// What TOML's reader says, without what it quotes of the file: serde's complaints begin with what they found, in quotes,
/// and end with what was expected.
fn unquoted(message: &str) -> String {
    let complaints = ["invalid type", "invalid value", "invalid length", "unknown field", "unknown variant"];
    let Some(complaint) = complaints.into_iter().find(|complaint| message.starts_with(complaint)) else {
        return message.to_owned();
    };
    match message.rsplit_once(", expected ") {
        Some((_, expected)) => format!("{complaint}, expected {expected}"),
        None => complaint.to_owned(),
    }
}

fn postgres(options: &Options, file: &File, env: &impl Fn(&str) -> Option<String>) -> Result<Settings> {
    let conninfo = match (&options.database_url, secret(env, "WALHOOK_DATABASE_URL")?, secret(env, "DATABASE_URL")?) {
        (Some(url), _, _) => url.clone(),
        (None, Some(url), _) | (None, None, Some(url)) => url,
        (None, None, None) => file.postgres.url.clone().unwrap_or_default(),
    };
    let mut settings = Settings::parse(&conninfo, env)?;
    if let Some(password) = secret_file(env, "PGPASSWORD")? {
        settings.set_password(password);
    } else if settings.password.is_none()
        && let Some(path) = &file.postgres.password_file
    {
        settings.set_password(read_secret("postgres.password_file", path)?);
    }
    Ok(settings)
}

fn nats(
    options: &Options,
    file: nats::settings::Overrides,
    env: &impl Fn(&str) -> Option<String>,
) -> Result<nats::settings::Overrides> {
    let mut overrides = file;
    let path = |name: &str| env(name).map(PathBuf::from);
    if let Some(url) = options.nats_url.clone().or_else(|| env("NATS_URL")) {
        overrides.url = Some(vec![url]);
    }
    overrides.user = env("NATS_USER").or(overrides.user);
    overrides.password = secret(env, "NATS_PASSWORD")?.or(overrides.password);
    overrides.token = secret(env, "NATS_TOKEN")?.or(overrides.token);
    overrides.creds = path("NATS_CREDS").or(overrides.creds);
    overrides.nkey = secret(env, "NATS_NKEY")?.or(overrides.nkey);
    overrides.ca = path("NATS_CA").or(overrides.ca);
    overrides.cert = path("NATS_CERT").or(overrides.cert);
    overrides.key = path("NATS_KEY").or(overrides.key);
    // Whoever names one of the two in the environment means that one, whatever the file says of the other.
    if let Some(domain) = env("NATS_JETSTREAM_DOMAIN") {
        (overrides.jetstream_domain, overrides.api_prefix) = (Some(domain), None);
    }
    if let Some(prefix) = env("NATS_API_PREFIX") {
        overrides.jetstream_domain = env("NATS_JETSTREAM_DOMAIN");
        overrides.api_prefix = Some(prefix);
    }
    Ok(overrides)
}

/// The variable, or the content of the file that `<name>_FILE` names.
fn secret(env: &impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<String>> {
    match (env(name), secret_file(env, name)?) {
        (Some(_), Some(_)) => Err(Error::config(format!("both {name} and {name}_FILE are set")).hint("set one")),
        (direct, from_file) => Ok(direct.or(from_file)),
    }
}

fn secret_file(env: &impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<String>> {
    let name = format!("{name}_FILE");
    env(&name).map(|path| read_secret(&name, &PathBuf::from(path))).transpose()
}

fn read_secret(name: &str, path: &Path) -> Result<String> {
    let text = files::read_text(name, path)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// The longest name of a shard.
const SHARD_MAX: usize = 20;

/// Whether a shard other than the main one can have this name: it is part of the names of a slot, a stream and subjects.
fn is_shard(name: &str) -> bool {
    let is_word = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    is_word && (1..=SHARD_MAX).contains(&name.len()) && name != MAIN
}

type Names = (String, String, String);

/// The names of slot, source and publications of a shard.
fn of_shard(name: String, (slot, source, publication): Names) -> Result<(Option<Shard>, Names)> {
    if !is_shard(&name) {
        return Err(Error::config("the shard's name (--shard, WALHOOK_SHARD, shard) cannot be one").hint(format!(
            "a shard's name has 1 to {} lower-case letters, digits and underscores; {:?} is the shard of a process that names none",
            SHARD_MAX,
            MAIN
        )));
    }
    let names = [&slot, &source, &publication].map(|main| format!("{main}_{name}"));
    let [own_slot, own_source, own_publication] = names;
    for (what, name, most) in
        [("slot", &own_slot, 63), ("source", &own_source, 64), ("publication", &own_publication, 54)]
    {
        if name.len() > most {
            return Err(Error::config(format!("the shard's {what} {name:?} has more than {most} bytes"))
                .hint(format!("give the shard or the {what} a shorter name")));
        }
    }
    let shard = Shard { name, main_slot: slot, main_publication: publication, main_source: source };
    Ok((Some(shard), (own_slot, own_source, own_publication)))
}

/// PostgreSQL's rule for slot names (manual, section 27.2.6.1).
fn check_slot(slot: &str) -> Result<()> {
    let valid = !slot.is_empty()
        && slot.len() <= 63
        && slot.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if valid {
        return Ok(());
    }
    // What stands there may be another setting's, a password's: it is not quoted.
    Err(Error::config("the slot's name (--slot, WALHOOK_SLOT, slot) cannot be one")
        .hint("a slot's name has 1 to 63 lower-case letters, digits and underscores"))
}

/// The source stands in message ids and headers, and is split off ids at a dash.
fn check_source(source: &str) -> Result<()> {
    let valid = !source.is_empty()
        && source.len() <= 64
        && source.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid {
        return Ok(());
    }
    Err(Error::config("the source's name (--source, WALHOOK_SOURCE, source) cannot be one")
        .hint("a source's name has 1 to 64 of the characters A-Z a-z 0-9 _ . -"))
}

fn in_range<T: PartialOrd + std::fmt::Display>(name: &str, value: T, min: T, max: T) -> Result<T> {
    if value < min || value > max {
        return Err(Error::config(format!("{name} = {value} is not between {min} and {max}")));
    }
    Ok(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// An environment in which only the user is known.
    fn none(name: &str) -> Option<String> {
        (name == "PGUSER").then(|| "app".to_owned())
    }

    fn load(file: &str, options: Options, env: impl Fn(&str) -> Option<String>) -> Result<Config> {
        let mut path = tempfile::NamedTempFile::new().unwrap();
        path.write_all(file.as_bytes()).unwrap();
        Config::load(&Options { config: Some(path.path().to_owned()), ..options }, env)
    }

    #[test]
    fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
        let config = Config::load(&Options::default(), none).unwrap();
        assert_eq!(
            (config.slot.as_str(), config.source.as_str(), config.limits.window_events),
            ("walhook", "walhook", 4096)
        );
        let file = "slot = 'a'\nwindow_events = 7\n[nats]\nurl = ['nats://file']\ntoken = 'filetoken'";
        let config = load(file, Options::default(), none).unwrap();
        assert_eq!((config.slot.as_str(), config.source.as_str(), config.limits.window_events), ("a", "a", 7));
        let env = |name: &str| if name == "NATS_URL" { Some("nats://env".to_owned()) } else { none(name) };
        let config = load(file, Options::default(), env).unwrap();
        assert_eq!(config.nats.url.unwrap(), ["nats://env"]);
        let options =
            Options { nats_url: Some("nats://flag".to_owned()), slot: Some("b".to_owned()), ..Options::default() };
        let config = load(file, options, env).unwrap();
        assert_eq!((config.nats.url.unwrap()[0].as_str(), config.slot.as_str()), ("nats://flag", "b"));
    }

    #[test]
    fn a_shard_has_names_of_its_own_behind_those_of_the_main_one() {
        let config = load("slot = 's'\nsource = 'o'\nshard = 'b'", Options::default(), none).unwrap();
        let names = [&config.slot, &config.source, &config.publication].map(String::as_str);
        assert_eq!(names, ["s_b", "o_b", "walhook_b"]);
        let shard = config.shard.unwrap();
        let names = [&shard.name, &shard.main_slot, &shard.main_source, &shard.main_publication].map(String::as_str);
        assert_eq!(names, ["b", "s", "o", "walhook"]);
    }

    #[test]
    fn every_secret_can_come_from_a_file() {
        let mut secret = tempfile::NamedTempFile::new().unwrap();
        secret.write_all(b"s3cret\n").unwrap();
        let path = secret.path().to_str().unwrap().to_owned();
        for name in ["PGPASSWORD", "NATS_PASSWORD", "NATS_TOKEN", "NATS_NKEY"] {
            let variable = format!("{name}_FILE");
            let config =
                Config::load(
                    &Options::default(),
                    |asked| {
                        if asked == variable { Some(path.clone()) } else { none(asked) }
                    },
                )
                .unwrap();
            let Config { postgres, nats, .. } = &config;
            let found = [
                postgres.password.as_ref().map(crate::postgres::Secret::reveal),
                nats.password.as_deref(),
                nats.token.as_deref(),
                nats.nkey.as_deref(),
            ];
            assert_eq!(found.into_iter().flatten().collect::<Vec<_>>(), ["s3cret"], "{name}");
            assert!(!format!("{config:?}").contains("s3cret"), "{name} shows in Debug");
        }
    }

    #[test]
    fn a_setting_that_cannot_be_is_named_with_its_remedy_and_no_secret() {
        let check = |file: &str, expected: &str| {
            let error = load(file, Options::default(), none).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains(expected) && !text.contains("hunter2"), "{text}");
        };
        check("slot = 'Bad hunter2'", "the slot's name");
        check("source = 'hunter2 b'", "the source's name");
        check("shard = 'hunter2 b'", "the shard's name");
        check("shard = 'main'", "the shard's name");
        check(&format!("slot = '{}'\nshard = 'b'", "s".repeat(62)), "has more than 63 bytes");
        check("window_events = 0", "window_events = 0");
        check("confirm_delay_seconds = 86401", "confirm_delay_seconds = 86401");
        check("hunter2 = 1", "unknown field, expected one of `source`, `slot`");
        check("window_events = 'hunter2'", "line 1: invalid type, expected usize");
        check("[nats]\nurl = 'nats://u:hunter2@h'", "line 2: invalid type, expected a sequence");
        check("[log]\nformat = 'hunter2'", "unknown variant, expected `text` or `json`");
        check("[nats]\ntoken = hunter2", "line 2");
        check("[postgres]\npassword = 'hunter2'", "password");
    }

    #[test]
    fn the_annotated_file_is_the_defaults() {
        let text = include_str!("../config/walhook.toml");
        // Every setting stands there behind a #, with its default.
        let enabled: String = text
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .filter(|line| !line.starts_with('#') && !line.starts_with("password_file"))
            .collect::<Vec<_>>()
            .join("\n");
        let shown = load(&enabled, Options::default(), none).unwrap();
        let default = Config::load(&Options::default(), none).unwrap();
        assert_eq!(
            format!(
                "{:?}",
                (
                    &shown.limits,
                    shown.ack_timeout,
                    shown.status_interval,
                    shown.confirm_delay,
                    shown.shutdown_timeout,
                    &shown.slot,
                    &shown.log
                )
            ),
            format!(
                "{:?}",
                (
                    &default.limits,
                    default.ack_timeout,
                    default.status_interval,
                    default.confirm_delay,
                    default.shutdown_timeout,
                    &default.slot,
                    &default.log
                )
            ),
        );
    }
}
