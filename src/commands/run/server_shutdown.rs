//! PostgreSQL's shutdown, as a session sees it.
//!
//! A fast shutdown ends the SQL connections first (SQLSTATE 57P01) and the walsender last: it waits until walhook has confirmed all that
//! was written. So a lost SQL connection does not end the session while the server says of itself that it shuts down: events are published
//! and confirmed without SQL until the server ends the stream. What needs SQL before it may be confirmed (rows of the history, dead
//! letters, versions of the rules) stays in the slot.
//!
//! In: errors of the SQL connection, the server's requests for an answer, how far is confirmed. Out: the error that ends the session,
//! where the server is not shutting down, or where confirming has not moved for a while.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

use crate::{
    error::{Error, Kind, Result},
    postgres::{self, ADMIN_SHUTDOWN, CANNOT_CONNECT_NOW, Settings, sql},
    wal::lsn::Lsn,
};

/// While PostgreSQL shuts down it asks again at every answer until all that it sent is confirmed: this often, and at other times
/// never, for we speak before it has to ask.
const INSISTENT: Duration = Duration::from_secs(1);
/// So long nothing more may be confirmed before the server is let go: a stream is away, or confirming is delayed.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a server that shuts down is asked whether it still does.
const AGAIN: Duration = Duration::from_millis(200);
/// So long it has for its answer; one that gives none is not shutting down.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// See the module.
pub struct ServerShutdown {
    /// Of the one server that streams.
    settings: Settings,
    /// When the server last asked for an answer.
    last_asked: Option<Instant>,
    /// How far was confirmed, and when that last moved or there was nothing to confirm.
    moved: (Lsn, Instant),
    without_sql: Option<WithoutSql>,
}

struct WithoutSql {
    /// Why the SQL connection ended; the session ends by it if the server is not shutting down.
    error: Error,
    is_logged: bool,
    asking: Asking,
}

/// Whether the server is shutting down.
type Asking = Pin<Box<dyn Future<Output = bool>>>;

impl ServerShutdown {
    /// None is known of; `settings` lead to the server that streams, and to no other.
    pub fn new(settings: Settings) -> ServerShutdown {
        ServerShutdown { settings, last_asked: None, moved: (Lsn::ZERO, Instant::now()), without_sql: None }
    }

    /// Whether the SQL connection is gone.
    pub fn is_without_sql(&self) -> bool {
        self.without_sql.is_some()
    }

    /// A statement has failed. Where its connection has ended, the server is asked whether it is shutting down.
    ///
    /// # Errors
    /// The same error, where the connection is still there.
    pub fn failed(&mut self, error: Error, client: &Client, confirmed: Lsn) -> Result<()> {
        let has_ended = client.is_closed() || postgres::sqlstate(&error) == Some(ADMIN_SHUTDOWN);
        if !has_ended || error.kind() != Kind::Unavailable {
            return Err(error);
        }
        tracing::debug!("{error}; asking whether the server shuts down");
        self.moved = (confirmed, Instant::now());
        let asking = Box::pin(is_shutting_down(self.settings.clone(), Duration::ZERO));
        self.without_sql = Some(WithoutSql { error, is_logged: false, asking });
        Ok(())
    }

    /// Returns each time the server has said that it is shutting down; waits for ever while there is SQL. Cancel-safe.
    ///
    /// # Errors
    /// The one by which the SQL connection ended: the server is not shutting down, or it is gone.
    pub async fn ask(&mut self) -> Result<()> {
        let Some(without_sql) = &mut self.without_sql else { return std::future::pending().await };
        if without_sql.asking.as_mut().await {
            if !without_sql.is_logged {
                without_sql.is_logged = true;
                tracing::info!(
                    "PostgreSQL is shutting down: publishing and confirming the rest of what it sends ({})",
                    without_sql.error
                );
            }
            without_sql.asking = Box::pin(is_shutting_down(self.settings.clone(), AGAIN));
            return Ok(());
        }
        let WithoutSql { error, .. } = self.without_sql.take().expect("it is there above");
        Err(error)
    }

    /// The server has asked for an answer.
    ///
    /// # Errors
    /// As [`Self::look`], where it has been asking all the time.
    pub fn asked(&mut self, confirmed: Lsn, received: Lsn) -> Result<()> {
        let now = Instant::now();
        let keeps_asking = self.last_asked.is_some_and(|last| now - last < INSISTENT);
        self.last_asked = Some(now);
        if !keeps_asking && self.without_sql.is_none() {
            self.moved = (confirmed, now);
        }
        self.look(confirmed, received)
    }

    /// While the server shuts down: whether it is worth its while to wait for us.
    ///
    /// # Errors
    /// Unavailable: nothing more was confirmed for a while. The slot has what is not confirmed.
    pub fn look(&mut self, confirmed: Lsn, received: Lsn) -> Result<()> {
        let now = Instant::now();
        if confirmed > self.moved.0 || confirmed >= received {
            self.moved = (confirmed, now);
        }
        if now - self.moved.1 < PATIENCE {
            return Ok(());
        }
        Err(Error::unavailable("PostgreSQL is shutting down; unconfirmed events will be sent again when it is back"))
    }
}

/// Whether the server refuses a connection because it is shutting down, asked after a while.
async fn is_shutting_down(settings: Settings, after: Duration) -> bool {
    sleep(after).await;
    match timeout(ANSWERS_WITHIN, sql::connect(&settings)).await {
        Ok(Err(error)) => matches!(postgres::sqlstate(&error), Some(ADMIN_SHUTDOWN | CANNOT_CONNECT_NOW)),
        Ok(Ok(_)) | Err(_) => false,
    }
}
