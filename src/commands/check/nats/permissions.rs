//! What the user of a configuration may do, and what it must be allowed.
//!
//! In: what the server says that its user may do. Out: findings, and the block of permissions that `walhook check --permissions` prints.
//! Always holds: both come from the one list in [`super::super::rights`].

use super::{Check, Finding, How, Reached, Severity};
use crate::{
    commands::{
        bucket,
        check::{
            rights::{self, Allowed, Need, Places, Rights},
            schemas,
        },
        identity::Identity,
    },
    config::Config,
    error::Error,
    nats::control::Control,
    route::tables::Tables,
    text,
};

impl Check<'_> {
    /// The names that the bucket for workers may have.
    pub(super) async fn buckets(&self, control: &Control) -> Vec<String> {
        match self.database.identity {
            Some(identity) => bucket_names(control, &self.config.source, identity).await,
            None => Vec::new(),
        }
    }

    /// `nats_permissions`.
    pub(super) async fn rights(&self, control: &Control, buckets: &[String], schemas: &[String]) -> Vec<Finding> {
        let rights = self.needed(buckets, schemas);
        let allowed = match control.user_info().await {
            Ok(answer) => Allowed::parse(&answer),
            Err(error) => return vec![self.rights_unseen(&error)],
        };
        let Some(allowed) = allowed else {
            return vec![self.rights_unseen(&Error::protocol("the server's answer has no permissions"))];
        };
        let (publish, subscribe) = allowed.lacking(&rights);
        let mut findings = Vec::new();
        for need in [Need::Must, Need::Should] {
            let lacking: Vec<_> = publish
                .iter()
                .filter(|right| {
                    right.need == need && ![rights::USER_INFO, rights::ACCOUNT_INFO].contains(&right.subject.as_str())
                })
                .collect();
            let mut purposes: Vec<&str> = lacking.iter().map(|right| right.purpose).collect();
            purposes.dedup();
            let mut subjects: Vec<String> =
                lacking.iter().map(|right| format!("publish on {}", right.subject)).collect();
            for right in subscribe.iter().filter(|right| right.need == need) {
                subjects.push(format!("subscribe to {}", right.subject));
                if !purposes.contains(&right.purpose) {
                    purposes.push(right.purpose);
                }
            }
            if subjects.is_empty() {
                continue;
            }
            let text = format!(
                "the user may not {}; walhook needs this to {}",
                subjects.join(", "),
                purposes.join(", and to ")
            );
            let severity = if need == Need::Must { Severity::Error } else { Severity::Warning };
            let mut finding = Finding::new("nats_permissions", severity, self.subject.as_str(), text);
            if need == Need::Must && self.used <= 1 {
                finding = Finding { severity: Severity::Fatal, ..finding.exits(4) };
            }
            findings.push(finding.remedy(How::Shell, "walhook check --permissions"));
        }
        findings
    }

    fn needed(&self, buckets: &[String], schemas: &[String]) -> Rights {
        let places = Places {
            row: &self.reached.row,
            streams: &self.reached.streams,
            buckets,
            schemas,
            inbox_prefix: &self.reached.settings.inbox_prefix,
            source: &self.config.source,
        };
        rights::of_run(self.config, self.tables, &places)
    }

    fn rights_unseen(&self, error: &Error) -> Finding {
        Finding::unknown(
            "nats_permissions",
            &format!("{} does not say what its user may do: {}", self.subject, error.reason()),
            How::Shell,
            "walhook check --permissions",
        )
    }
}

/// The names that the bucket for workers has or may have. Where nothing can be asked, both.
async fn bucket_names(control: &Control, source: &str, identity: &Identity) -> Vec<String> {
    let (first, own) = bucket::names(source, identity);
    match bucket::find(control, source, identity).await {
        Ok(place) if place.info.is_some() => vec![place.name],
        _ => vec![first, own],
    }
}

/// What `walhook check --permissions` prints: for each configuration the block for its user.
pub fn permissions(
    config: &Config,
    tables: &Tables,
    identity: Option<&Identity>,
    reached: &[Reached],
    is_deliver: bool,
) -> String {
    let mut printed = String::new();
    for reached in reached {
        let buckets = match identity {
            Some(identity) => {
                let (first, own) = bucket::names(&config.source, identity);
                vec![first, own]
            }
            None => Vec::new(),
        };
        let places = Places {
            row: &reached.row,
            streams: &reached.streams,
            buckets: &buckets,
            schemas: &schemas::names(&reached.row, &config.source, identity),
            inbox_prefix: &reached.settings.inbox_prefix,
            source: &config.source,
        };
        let rights =
            if is_deliver { rights::of_deliver(tables, &places) } else { rights::of_run(config, tables, &places) };
        let verb = if is_deliver { "deliver" } else { "run" };
        printed.push_str(&format!(
            "# For the user of walhook {verb} by NATS configuration {}, in nats-server's configuration.\n{}",
            text::one_line(&reached.row.config_name),
            rights.block()
        ));
    }
    printed
}
