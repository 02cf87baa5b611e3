//! `walhook backfill`: the rows of a linked table as events of op `snapshot`, in their place among live changes.
//!
//! In: a link or a table. Out: calls of `rule_cdc_backfill_chunk` until nothing is left, by several readers side by side, and a
//! line that tells how far it is. Always: a chunk is one transaction, which the running walhook publishes like any other; so of each
//! key the last event seen is its newest state. What is done is in the database, so a killed backfill goes on where it was
//! when the same is asked for again. NATS is not needed here.

use std::time::Duration;

use clap::Args;
use futures_util::future::try_join_all;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_postgres::Client;

use super::{Tell, progress};
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    postgres::{self, sql},
};

/// Which rows, and how fast.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The link whose webhook is to have them: link_id in rule_webhook_links
    #[arg(long, value_name = "ID", required_unless_present = "table", conflicts_with_all = ["table", "webhook"])]
    link: Option<i32>,
    /// The table; for all webhooks that are linked to it
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Only for this webhook
    #[arg(long, value_name = "NAME")]
    webhook: Option<String>,
    /// Rows in a transaction; they are locked against changes while it lasts, some milliseconds
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(i32).range(1..=100_000))]
    chunk_rows: i32,
    /// At most so many rows a second
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Connections that read side by side
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=64))]
    readers: i32,
    /// Wait while the slot has more than this to confirm, in MiB; 0: never
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    max_lag: u32,
    /// End once all rows are sent, without waiting until the slot is confirmed behind them
    #[arg(long)]
    no_wait: bool,
}

/// Ranges for each reader, so that those who are done early have more to do.
const RANGES_PER_READER: i32 = 8;
/// How long a reader waits that has found nothing to do, or only rows that others have locked.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the slot's lag is looked at, and progress shown.
const LOOK: Duration = Duration::from_secs(1);

const LINK: &str = "SELECT format('%I.%I', l.table_schema, l.table_name), w.webhook_name \
    FROM public.rule_webhook_links l JOIN public.rule_webhooks w USING (webhook_id) WHERE l.link_id = $1";
/// Whatever of it is not done yet.
const UNFINISHED: &str = "SELECT j.backfill_id FROM walhook.rule_cdc_backfill_jobs j WHERE j.status = 'running' \
    AND to_regclass(format('%I.%I', j.table_schema, j.table_name)) = coalesce(to_regclass($1), to_regclass('public.' || $1)) \
    AND j.link_ids = (SELECT array_agg(l.link_id ORDER BY l.link_id) FROM public.rule_webhook_links l \
        JOIN public.rule_webhooks w USING (webhook_id) \
        WHERE l.table_schema = j.table_schema AND l.table_name = j.table_name AND l.enabled \
          AND w.enabled AND w.publish_mode IN ('nats', 'both') \
          AND ($2::text IS NULL OR w.webhook_name = $2)) \
    ORDER BY j.backfill_id LIMIT 1";
const START: &str = "SELECT public.rule_cdc_backfill_start($1, $2, $3)";
const CHUNK: &str = "SELECT public.rule_cdc_backfill_chunk($1, $2)";
const PROGRESS: &str = "SELECT rows_sent, rows_waiting, rows_estimated, status, end_lsn::text FROM public.rule_cdc_backfills \
    WHERE backfill_id = $1";
/// What became of its rows: whether the slot is confirmed behind them, whether somebody streams from it, how many are dead letters.
const DELIVERED: &str = "SELECT coalesce(s.confirmed_flush_lsn >= b.end_lsn, false), coalesce(s.active, false), b.events_failed \
    FROM public.rule_cdc_backfills b LEFT JOIN public.rule_cdc_slots s ON s.slot_name = $2 WHERE b.backfill_id = $1";
const LAG: &str = "SELECT lag_bytes FROM public.rule_cdc_slots WHERE slot_name = $1";

impl Arguments {
    /// All rows of a table, for one webhook or all that are linked to it.
    pub fn of_table(table: &str, webhook: Option<&str>, rate: Option<u32>) -> Arguments {
        Arguments {
            link: None,
            table: Some(table.to_owned()),
            webhook: webhook.map(str::to_owned),
            chunk_rows: 1000,
            rate,
            readers: 1,
            max_lag: 1024,
            no_wait: true,
        }
    }
}

/// For how long nobody streams before the backfill does not wait for the delivery of its rows: walhook may begin a new session.
const ABSENCE: Duration = Duration::from_secs(3);

/// What a backfill has achieved.
pub struct Done {
    /// Its number.
    id: i64,
    /// Rows sent, by earlier runs too.
    pub rows: u64,
    /// Whether that is all, or else it was told to stop.
    pub is_whole: bool,
}

/// Sends the rows, and waits until they are delivered where somebody streams.
///
/// # Errors
/// There is no such link, or the table cannot be read in chunks; PostgreSQL cannot be asked or refuses; some rows became
/// dead letters.
pub async fn backfill(config: &Config, arguments: &Arguments, mut shutdown: watch::Receiver<bool>) -> Result<()> {
    let done = send(config, arguments, shutdown.clone(), super::say).await?;
    if !done.is_whole || arguments.no_wait {
        return Ok(());
    }
    tokio::select! {
        outcome = delivered(config, done.id) => outcome,
        _ = shutdown.wait_for(|stop| *stop) => Ok(()),
    }
}

/// Waits until the slot is confirmed behind the rows, as long as somebody streams from it, and says what did not arrive.
async fn delivered(config: &Config, id: i64) -> Result<()> {
    let client = sql::connect(&config.postgres).await?;
    let mut seen = Instant::now();
    loop {
        let row = client.query_one(DELIVERED, &[&id, &config.slot]).await;
        let row = row.map_err(|error| failed("read what became of its rows", error))?;
        let (is_delivered, is_active, dead): (bool, bool, i64) = (row.get(0), row.get(1), row.get(2));
        match (is_delivered, dead) {
            (true, 0) => return super::say(&format!("backfill {id}: all its rows are delivered\n")),
            (true, dead) => {
                return Err(Error::config(format!(
                    "backfill {id}: {dead} events of its rows did not arrive: they are dead letters"
                ))
                .hint("`walhook dead-letters list` tells why; once that is mended `walhook dead-letters retry` sends them"));
            }
            (false, _) if is_active => seen = Instant::now(),
            (false, _) if seen.elapsed() >= ABSENCE => {
                return super::say(&format!(
                    "backfill {id}: nobody streams from slot {:?} now; rule_cdc_backfills.events_failed tells later whether \
                     some did not arrive\n",
                    config.slot
                ));
            }
            (false, _) => {}
        }
        sleep(PAUSE).await;
    }
}

/// The same, which tells `tell` how it goes.
///
/// # Errors
/// As [`backfill`].
pub async fn send(config: &Config, arguments: &Arguments, shutdown: watch::Receiver<bool>, tell: Tell) -> Result<Done> {
    let client = super::connect(config).await?;
    super::identity::read(&client).await?;
    let (table, webhook) = match (arguments.link, &arguments.table) {
        (Some(link), _) => of_link(&client, link).await?,
        (None, Some(table)) => (table.clone(), arguments.webhook.clone()),
        (None, None) => return Err(Error::config("backfill without --link or --table")),
    };
    let unfinished = client.query_opt(UNFINISHED, &[&table, &webhook]).await;
    let id: i64 = match unfinished.map_err(|error| failed("look for a backfill that is not done", error))? {
        Some(row) => {
            let id = row.get(0);
            tell(&format!("backfill {id} of {table} is not done yet: going on with it\n"))?;
            id
        }
        None => {
            let ranges = if arguments.readers == 1 { 1 } else { arguments.readers * RANGES_PER_READER };
            let row = client.query_one(START, &[&table, &webhook, &ranges]).await;
            let id = row.map_err(|error| failed(&format!("backfill {table}"), error))?.get(0);
            tell(&format!("backfill {id} of {table} begins\n"))?;
            id
        }
    };
    let mut readers = Vec::new();
    for _ in 0..arguments.readers {
        readers.push(read(config, arguments, id, shutdown.clone()));
    }
    let watch = watch(&client, id);
    tokio::select! {
        outcome = try_join_all(readers) => { outcome.map_err(|error| error.context(format!("backfill {id} of {table}")))?; }
        outcome = watch => { outcome?; }
    }
    let progress = Progress::read(&client, id).await?;
    tell(&match (progress.status.as_str(), &progress.end_lsn) {
        ("done", Some(end)) => format!(
            "backfill {id} of {table} is done: {} rows; delivered once slot {:?} is confirmed up to {end}\n",
            progress.sent, config.slot
        ),
        ("running", _) => format!(
            "backfill {id} of {table} is interrupted after {} rows; run the same command again to go on with it\n",
            progress.sent
        ),
        (status, _) => format!("backfill {id} of {table} is {status}: {} rows\n", progress.sent),
    })?;
    Ok(Done { id, rows: u64::try_from(progress.sent).unwrap_or(0), is_whole: progress.status != "running" })
}

async fn of_link(client: &Client, link: i32) -> Result<(String, Option<String>)> {
    let row = client.query_opt(LINK, &[&link]).await.map_err(|error| failed("read the link", error))?;
    match row {
        Some(row) => Ok((row.get(0), Some(row.get(1)))),
        None => Err(Error::config(format!("backfill link {link}: there is no such link"))
            .hint("SELECT * FROM rule_webhook_links lists them")),
    }
}

/// One reader: chunk after chunk until nothing is left or it is told to stop.
async fn read(config: &Config, arguments: &Arguments, id: i64, shutdown: watch::Receiver<bool>) -> Result<()> {
    let client = sql::connect(&config.postgres).await?;
    let chunk = client.prepare(CHUNK).await.map_err(|error| failed("prepare to read chunks", error))?;
    let began = Instant::now();
    let (mut rows, mut looked) = (0_u64, None::<Instant>);
    while !*shutdown.borrow() {
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            looked = Some(Instant::now());
            if lags(&client, config, arguments).await? {
                looked = None;
                sleep(LOOK).await;
                continue;
            }
        }
        let row = client.query_one(&chunk, &[&id, &arguments.chunk_rows]).await;
        let sent: Option<i64> = row.map_err(|error| failed("take a chunk", error))?.get(0);
        match sent {
            None => return Ok(()),
            Some(0) => sleep(PAUSE).await,
            Some(sent) => {
                rows += sent.unsigned_abs();
                if let Some(rate) = arguments.rate {
                    let share = f64::from(rate) / f64::from(arguments.readers);
                    sleep_until(began + Duration::from_secs_f64(rows as f64 / share)).await;
                }
            }
        }
    }
    Ok(())
}

/// Whether so much waits for its confirmation that more would only fill the disk.
async fn lags(client: &Client, config: &Config, arguments: &Arguments) -> Result<bool> {
    if arguments.max_lag == 0 {
        return Ok(false);
    }
    let row = client.query_opt(LAG, &[&config.slot]).await.map_err(|error| failed("read the slot's lag", error))?;
    let lag: Option<i64> = row.and_then(|row| row.get(0));
    Ok(lag.is_some_and(|lag| lag > i64::from(arguments.max_lag) << 20))
}

struct Progress {
    sent: i64,
    waiting: i64,
    estimated: i64,
    status: String,
    end_lsn: Option<String>,
}

impl Progress {
    async fn read(client: &Client, id: i64) -> Result<Progress> {
        let row = client.query_one(PROGRESS, &[&id]).await.map_err(|error| failed("read the progress", error))?;
        Ok(Progress {
            sent: row.get(0),
            waiting: row.get(1),
            estimated: row.get(2),
            status: row.get(3),
            end_lsn: row.get(4),
        })
    }
}

/// Shows how far it is, where somebody watches; never ends otherwise than by an error.
async fn watch(client: &Client, id: i64) -> Result<()> {
    if !progress::is_watched() {
        return std::future::pending().await;
    }
    let began = Instant::now();
    let before = Progress::read(client, id).await?.sent;
    loop {
        sleep(LOOK).await;
        let now = Progress::read(client, id).await?;
        let is_end = now.status != "running";
        progress::show(&line(&now, now.sent - before, began.elapsed()), is_end);
        if is_end {
            return std::future::pending().await;
        }
    }
}

/// `[#####.....]  52 %  5200 of about 10000 rows, 1040/s, 5 s left`
fn line(progress: &Progress, sent_now: i64, elapsed: Duration) -> String {
    let count = |rows: i64| u64::try_from(rows).unwrap_or(0);
    let Progress { sent, waiting, estimated, .. } = progress;
    let all = (*estimated).max(*sent).max(1);
    let rate = sent_now as f64 / elapsed.as_secs_f64().max(0.001);
    let left = progress::left(count(sent_now), elapsed, count(all - sent));
    let waits = if *waiting > 0 { format!(", {waiting} locked by others") } else { String::new() };
    format!("{}  {sent} of about {all} rows, {rate:.0}/s{left}{waits}", progress::bar(count(*sent), count(all)))
}

fn failed(attempted: &str, error: tokio_postgres::Error) -> Error {
    let error = sql::error(attempted, error);
    match postgres::sqlstate(&error) {
        Some("42883" | "42703") => {
            error.of_kind(Kind::Config).hint("run `walhook setup`, which applies the migrations")
        }
        // Refused by the function: the words are PostgreSQL's.
        Some("42P01" | "P0002" | "55000" | "22023" | "25000") => error.of_kind(Kind::Config),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_tells_how_much_is_done_and_what_is_left() {
        let progress = Progress { sent: 500, waiting: 2, estimated: 1000, status: "running".into(), end_lsn: None };
        assert_eq!(
            line(&progress, 250, Duration::from_secs(5)),
            "[###############...............]  50 %  500 of about 1000 rows, 50/s, 10 s left, 2 locked by others"
        );
        // An estimate that was too low, and one of nothing.
        let more = Progress { sent: 3000, waiting: 0, ..progress };
        assert!(line(&more, 0, Duration::ZERO).contains("100 %  3000 of about 3000 rows, 0/s"));
        let none = Progress { sent: 0, estimated: 0, ..more };
        assert!(line(&none, 0, Duration::ZERO).contains("  0 %  0 of about 1 rows"));
    }
}
