//! How much WAL the slot keeps, and how far it may lag.
//!
//! In: the slot, the rate of WAL and the free space of the disk, as far as they are known. Out: findings, with the limit to set.
//! Always holds: an unlimited slot is reported whatever else is known.

use std::path::Path;

use serde_json::Value;

use super::{Finding, How, Provider, Server, Severity};
use crate::{
    commands::check::amounts::{bytes, duration},
    error::Result,
};

/// The lag that an outage over a night needs.
const HEADROOM_WARNING_HOURS: f64 = 24.0;
/// Below this somebody has to act now.
const HEADROOM_ERROR_HOURS: f64 = 1.0;
/// A rate of WAL below this is no rate to reckon with: bytes a second.
const QUIET: f64 = 1.0;
/// What a limit is at least that this check proposes.
const LIMIT_LEAST: f64 = 1e9;

impl Server<'_> {
    /// `slot_wal_limit`, `slot_wal_status`, `slot_headroom`: `rate` in bytes of WAL a second, `free` bytes on the disk, where known.
    pub async fn headroom(&self, rate: Option<f64>, free: Option<f64>) -> Result<Vec<Finding>> {
        let query = "SELECT (SELECT setting::float8 FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'), \
                            (SELECT pg_catalog.to_jsonb(s)::text FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1), \
                            (SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::float8 \
                             FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1)";
        let row = self.row("read how much WAL the slot keeps", query, &[&self.config.slot]).await?;
        let limit =
            row.get::<_, Option<f64>>(0).filter(|limit| *limit >= 0.0).map(|megabytes| megabytes * 1024.0 * 1024.0);
        let slot: Value =
            row.get::<_, Option<&str>>(1).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let kept = row.get::<_, Option<f64>>(2).unwrap_or(0.0).max(0.0);
        let subject = format!("replication slot {:?}", self.config.slot);
        let mut findings = Vec::new();
        if limit.is_none() {
            // Half of what is free, or a day of WAL.
            let day = rate.unwrap_or(0.0) * 86_400.0;
            let wanted = free.map_or(day.max(10.0 * LIMIT_LEAST), |free| (free + kept) / 2.0).max(LIMIT_LEAST);
            let value = format!("{}MB", (wanted / 1024.0 / 1024.0).round());
            let finding = Finding::new(
                "slot_wal_limit",
                Severity::Warning,
                "max_slot_wal_keep_size",
                "max_slot_wal_keep_size is unlimited: a slot that nobody reads keeps WAL until the disk is full",
            );
            findings.push(self.with_setting(finding, "max_slot_wal_keep_size", &value, false).await?);
        }
        if let Some(status @ ("unreserved" | "extended")) = slot["wal_status"].as_str() {
            let severity = if status == "unreserved" { Severity::Error } else { Severity::Note };
            let text = match status {
                "unreserved" => {
                    format!("{subject} keeps {} of WAL, more than max_slot_wal_keep_size allows", bytes(kept))
                }
                _ => format!("{subject} keeps {} of WAL, more than max_wal_size", bytes(kept)),
            };
            let finding = Finding::new("slot_wal_status", severity, subject.as_str(), text);
            findings.push(match status {
                "unreserved" => {
                    let wanted = format!("{}MB", (kept * 2.0 / 1024.0 / 1024.0).round().max(64.0));
                    self.with_setting(finding, "max_slot_wal_keep_size", &wanted, false).await?
                }
                _ => finding,
            });
        }
        let room = match (limit, free) {
            (Some(limit), Some(free)) => Some((limit - kept).min(free)),
            (Some(limit), None) => Some(limit - kept),
            (None, free) => free,
        };
        match (room, rate) {
            (Some(room), Some(rate)) => {
                findings.push(headroom(&subject, room.max(0.0), rate, limit.is_some(), self.provider))
            }
            (None, _) => findings.push(Finding::unknown(
                "slot_headroom",
                "max_slot_wal_keep_size is unlimited, and the free space of the server's disk cannot be seen from here",
                How::Shell,
                "walhook check --wal-disk-free 100GB",
            )),
            (_, None) => findings.push(Finding::unknown(
                "slot_headroom",
                "the rate of WAL could not be measured",
                How::Advice,
                "Grant the role EXECUTE on pg_current_wal_lsn(), which every role has by default.",
            )),
        }
        Ok(findings)
    }

    /// The position in the WAL in bytes, and the average rate since the statistics were reset, in bytes a second.
    pub async fn wal(&self) -> Result<(f64, Option<f64>)> {
        let query = "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0')::float8";
        let row = self.row("read the position in the WAL", query, &[]).await?;
        let average = "SELECT w.wal_bytes::float8 / greatest(extract(epoch FROM clock_timestamp() - w.stats_reset)::float8, 1) \
                       FROM pg_catalog.pg_stat_wal w WHERE w.stats_reset < clock_timestamp() - interval '10 minutes'";
        let average = self.client.query_opt(average, &[]).await.ok().flatten();
        Ok((row.get(0), average.and_then(|row| row.get(0))))
    }

    /// The free space of the disk with the WAL, in bytes, where the server runs on this machine and its folder can be seen.
    pub async fn free_disk(&self) -> Option<f64> {
        let query = "SELECT pg_catalog.current_setting('data_directory'), pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn())";
        let row = self.client.query_opt(query, &[]).await.ok()??;
        let folder = Path::new(row.get::<_, &str>(0)).join("pg_wal");
        // Another machine, or a container, may have a folder of the same name: only the present segment shows that it is this one.
        folder.join(row.get::<_, &str>(1)).metadata().ok()?;
        let disk = rustix::fs::statvfs(&folder).ok()?;
        Some(disk.f_bavail as f64 * disk.f_frsize as f64)
    }
}

/// The finding about how long the slot may lag.
fn headroom(subject: &str, room: f64, rate: f64, has_limit: bool, provider: Provider) -> Finding {
    let end = if has_limit { "PostgreSQL removes WAL that it needs" } else { "the disk is full" };
    let hours = if rate < QUIET { f64::INFINITY } else { room / rate / 3600.0 };
    let severity = match hours {
        hours if hours < HEADROOM_ERROR_HOURS => Severity::Error,
        hours if hours < HEADROOM_WARNING_HOURS => Severity::Warning,
        _ => Severity::Note,
    };
    let mut text = match hours.is_finite() {
        true => format!(
            "at the present rate of {} of WAL an hour the slot may lag {} before {end}; there is room for {}",
            bytes(rate * 3600.0),
            duration(hours * 3600.0),
            bytes(room)
        ),
        false => format!("hardly any WAL is written now; there is room for {} before {end}", bytes(room)),
    };
    if let Some(advice) = provider.slot_advice() {
        text = format!("{text}. {advice}");
    }
    let finding = Finding::new("slot_headroom", severity, subject, text);
    if severity == Severity::Note {
        return finding;
    }
    let wanted = format!("{}MB", (rate * 48.0 * 3600.0 / 1024.0 / 1024.0).ceil());
    match has_limit {
        true => {
            let (how, remedy) = provider.set("max_slot_wal_keep_size", &wanted, false);
            finding.remedy(how, remedy)
        }
        false => finding
            .remedy(How::Advice, format!("Give the disk with the WAL room for {wanted} more, or write less WAL.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_shown_in_hours_and_is_more_severe_the_fewer_are_left() {
        let found = |room, rate| headroom("slot", room, rate, true, Provider::Own);
        assert_eq!(found(1e12, 1e6).severity, Severity::Note);
        assert_eq!(found(1e10, 1e6).severity, Severity::Warning);
        assert_eq!(found(1e9, 1e6).severity, Severity::Error);
        assert!(found(1e10, 1e6).text.contains("may lag 3 hours") || found(1e10, 1e6).text.contains("hours before"));
        assert!(found(1e10, 0.0).text.contains("Hardly any WAL") && found(1e10, 0.0).severity == Severity::Note);
    }
}
