//! What a worker's own settings say: flags over the file's `[deliver]` over defaults.
//!
//! In: both, as they were written. Out: [`Settings`] that cannot be wrong. Which webhook is called how is not here but in
//! its row.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::{
    deliver::network::Network,
    error::{Error, Result},
};

/// Which calls leave a row in `rule_webhook_calls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// All, with every attempt.
    #[default]
    Full,
    /// Those of which an attempt failed, from that attempt on.
    Failures,
    /// None.
    Off,
}

/// Where a webhook's consumer begins that is not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliverFrom {
    /// With all that the stream still has.
    #[default]
    All,
    /// With what comes from then on.
    New,
}

/// The flags of `walhook deliver`.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Call these webhooks only, by name; may be repeated [default: all]
    #[arg(long = "webhook", value_name = "NAME")]
    pub webhooks: Vec<String>,
    /// Workers of one group share the events; another group gets them all again [default: <source>-deliver]
    #[arg(long, value_name = "NAME", env = "WALHOOK_DELIVER_GROUP", hide_env_values = true)]
    pub group: Option<String>,
    /// Allow calls into this network, which is private, loopback or otherwise inside; may be repeated
    #[arg(
        long = "allow-network",
        value_name = "CIDR",
        env = "WALHOOK_ALLOW_NETWORK",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub allowed_networks: Vec<String>,
    /// Where to begin for a webhook that this group has not called before [default: all]
    #[arg(long, value_name = "all|new")]
    pub deliver_from: Option<DeliverFrom>,
    /// Which calls to record in rule_webhook_calls [default: full]
    #[arg(long, value_name = "full|failures|off")]
    pub record: Option<Record>,
    /// Take calls from the queue in PostgreSQL (rule_webhook_calls) instead of events from JetStream; needs no NATS
    #[arg(long, conflicts_with_all = ["no_database", "deliver_from", "record"])]
    pub queue: bool,
    /// Use no database: nothing is recorded, and webhooks that are signed or have credentials in their headers or URL are left out
    #[arg(long)]
    pub no_database: bool,
    /// With --no-database: of which database, where several with this source use the same NATS account
    #[arg(long, value_name = "ID", env = "WALHOOK_DATABASE_ID", requires = "no_database")]
    pub database_id: Option<String>,
}

/// `[deliver]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    group: Option<String>,
    webhooks: Vec<String>,
    allowed_networks: Vec<String>,
    max_in_flight: Option<usize>,
    max_in_flight_per_webhook: Option<u32>,
    max_waiting: Option<u32>,
    max_object_bytes: Option<usize>,
    ack_wait_ms: Option<u64>,
    deliver_from: Option<DeliverFrom>,
    record: Option<Record>,
    queue_poll_ms: Option<u64>,
    ca: Option<PathBuf>,
    secrets_dir: Option<PathBuf>,
}

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The stem of the consumers' names.
    pub group: String,
    /// The webhooks to be called; empty: all.
    pub webhooks: Vec<String>,
    /// The inner networks that may be called.
    pub allowed_networks: Vec<Network>,
    /// Calls side by side, over all webhooks.
    pub max_in_flight: usize,
    /// Calls side by side to one webhook whose row does not say.
    pub max_in_flight_per_webhook: u32,
    /// Events of one webhook that may be in flight or wait for their retry, over all workers.
    pub max_waiting: u32,
    /// The largest payload that is fetched from an object store, and how much of them is in memory at a time.
    pub max_object_bytes: usize,
    /// After how long without a sign of life another worker takes an event over.
    pub ack_wait: Duration,
    /// Where a new consumer begins.
    pub deliver_from: DeliverFrom,
    /// Which calls are recorded.
    pub record: Record,
    /// How often the queue is looked at while it is empty.
    pub queue_poll: Duration,
    /// Certificates to trust besides the system's.
    pub ca: Option<PathBuf>,
    /// A folder with secrets of webhooks.
    pub secrets_dir: Option<PathBuf>,
    /// Whether calls come from the queue in PostgreSQL.
    pub queue: bool,
    /// Whether there is a database.
    pub has_database: bool,
    /// Which one it would be.
    pub database_id: Option<String>,
}

impl Settings {
    /// Puts flags, file and defaults together.
    ///
    /// # Errors
    /// A setting that cannot be; the message names it.
    pub fn resolve(options: &Options, file: &File, source: &str) -> Result<Settings> {
        let or_file =
            |given: &Vec<String>, file: &Vec<String>| if given.is_empty() { file.clone() } else { given.clone() };
        let group = options.group.clone().or_else(|| file.group.clone());
        let group = group.unwrap_or_else(|| format!("{}-deliver", source.replace('.', "_")));
        // The webhook's number comes behind it; JetStream takes no dots, spaces or wildcards in a consumer's name.
        let valid = !group.is_empty()
            && group.len() <= 100
            && group.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if !valid {
            return Err(Error::config(
                "the group's name (--group, WALHOOK_DELIVER_GROUP, deliver.group) cannot be one",
            )
            .hint("a group's name has 1 to 100 of the characters A-Z a-z 0-9 _ -"));
        }
        let allowed_networks = or_file(&options.allowed_networks, &file.allowed_networks)
            .iter()
            .enumerate()
            .map(|(index, network)| {
                network.parse().map_err(|error: String| {
                    let place = "--allow-network, WALHOOK_ALLOW_NETWORK, deliver.allowed_networks";
                    Error::config(format!("network {} ({place}) {error}", index + 1))
                })
            })
            .collect::<Result<_>>()?;
        Ok(Settings {
            group,
            webhooks: or_file(&options.webhooks, &file.webhooks),
            allowed_networks,
            max_in_flight: between("max_in_flight", file.max_in_flight.unwrap_or(4096), 1, 65_536)?,
            max_in_flight_per_webhook: between(
                "max_in_flight_per_webhook",
                file.max_in_flight_per_webhook.unwrap_or(64),
                1,
                10_000,
            )?,
            max_waiting: between("max_waiting", file.max_waiting.unwrap_or(10_000), 1, 1_000_000)?,
            max_object_bytes: between("max_object_bytes", file.max_object_bytes.unwrap_or(128 << 20), 1024, 1 << 30)?,
            ack_wait: Duration::from_millis(between("ack_wait_ms", file.ack_wait_ms.unwrap_or(30_000), 500, 600_000)?),
            deliver_from: options.deliver_from.or(file.deliver_from).unwrap_or_default(),
            record: if options.no_database { Record::Off } else { options.record.or(file.record).unwrap_or_default() },
            queue_poll: Duration::from_millis(between("queue_poll_ms", file.queue_poll_ms.unwrap_or(250), 10, 60_000)?),
            ca: file.ca.clone(),
            secrets_dir: file.secrets_dir.clone(),
            queue: options.queue,
            has_database: !options.no_database,
            database_id: options.database_id.clone(),
        })
    }
}

fn between<T: PartialOrd + std::fmt::Display>(name: &str, value: T, min: T, max: T) -> Result<T> {
    if value < min || value > max {
        return Err(Error::config(format!("deliver.{name} = {value} is not between {min} and {max}")));
    }
    Ok(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_over_the_defaults() {
        let settings = Settings::resolve(&Options::default(), &File::default(), "my.shop").unwrap();
        assert_eq!(
            (settings.group.as_str(), settings.record, settings.max_in_flight),
            ("my_shop-deliver", Record::Full, 4096)
        );
        let file: File = toml::from_str("group = 'g'\nrecord = 'failures'\nallowed_networks = ['10.0.0.0/8']").unwrap();
        let settings = Settings::resolve(&Options::default(), &file, "s").unwrap();
        assert_eq!(
            (settings.group.as_str(), settings.record, settings.allowed_networks.len()),
            ("g", Record::Failures, 1)
        );
        let options = Options { group: Some("h".to_owned()), no_database: true, ..Options::default() };
        let settings = Settings::resolve(&options, &file, "s").unwrap();
        assert_eq!((settings.group.as_str(), settings.record), ("h", Record::Off));
    }

    #[test]
    fn the_annotated_file_is_the_defaults() {
        let text = include_str!("../../../config/walhook.toml");
        let section = text.split("[deliver]\n").nth(1).unwrap().split("\n[").next().unwrap();
        let enabled: Vec<_> = section
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
            .filter(|line| !line.starts_with("ca =") && !line.starts_with("secrets_dir ="))
            .collect();
        let file: File = toml::from_str(&enabled.join("\n")).unwrap();
        let resolve = |file: &File| Settings::resolve(&Options::default(), file, "walhook").unwrap();
        assert_eq!(format!("{:?}", resolve(&file)), format!("{:?}", resolve(&File::default())));
        assert_eq!(enabled.len(), 11, "every setting but ca and secrets_dir");
    }

    #[test]
    fn a_setting_that_cannot_be_is_named() {
        let check = |file: &str, expected: &str| {
            let error = Settings::resolve(&Options::default(), &toml::from_str(file).unwrap(), "s").unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(expected), "{error}");
        };
        check("group = 'a.b'", "the group's name");
        check("allowed_networks = ['10.0.0.0/8', 'everything']", "network 2");
        check("max_in_flight = 0", "max_in_flight = 0");
        check("ack_wait_ms = 1", "ack_wait_ms = 1");
    }
}
