//! What is between us and the server: whether it takes a replication connection, and whether a pooler is in between.
//!
//! In: the settings of the connection. Out: what a replication connection says of the server, or findings. Always holds: nothing is
//! taken from a slot.

use tokio_postgres::Client;

use super::{Finding, How, Provider, Severity};
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    postgres::{self, Settings, replication::SystemIdentity, sql},
    wal::lsn::Lsn,
};

/// What a replication connection says of the server.
pub struct Replicated {
    /// Which PostgreSQL it is.
    pub system: SystemIdentity,
    /// Where earlier timelines were left.
    pub left: Vec<(u32, Lsn)>,
}

/// Opens a connection for replication, as `walhook run` does; what it says, or what its failure means.
pub async fn replication(config: &Config, provider: Provider) -> (Option<Replicated>, Vec<Finding>) {
    let attempt = async {
        let mut connection = postgres::replication::Connection::connect(&config.postgres).await?;
        let system = connection.identify_system().await?;
        let left = connection.timelines_left(system.timeline).await?;
        Ok(Replicated { system, left })
    };
    match tokio::time::timeout(std::time::Duration::from_secs(15), attempt).await {
        Ok(Ok(replicated)) => (Some(replicated), Vec::new()),
        Ok(Err(error)) => (None, not_replicated(config, provider, &error)),
        Err(_) => {
            let error = Error::unavailable("open a replication connection: no answer within 15 s");
            (None, not_replicated(config, provider, &error))
        }
    }
}

fn not_replicated(config: &Config, provider: Provider, error: &Error) -> Vec<Finding> {
    if is_refused_by_pooler(error) {
        let text = format!("a connection pooler is in between, which does not pass replication on: {}", error.reason());
        return vec![
            Finding::new("pooler", Severity::Fatal, config.postgres.target(), text)
                .exits(2)
                .remedy(How::Advice, provider.direct_connection()),
        ];
    }
    vec![Finding::of_error("replication_connection", config.postgres.target(), error)]
}

/// By its behaviour: an ordinary login has succeeded, and one with the parameter `replication` is answered with a violation of the
/// protocol, or with no code of PostgreSQL's at all.
fn is_refused_by_pooler(error: &Error) -> bool {
    matches!(error.kind(), Kind::Config | Kind::Protocol)
        && postgres::sqlstate(error).is_none_or(|code| code == postgres::PROTOCOL_VIOLATION)
}

/// A pooler that does pass replication on, or lets SQL through while something else refuses: the process that serves us is another one
/// from statement to statement, or a setting of the session is gone.
pub async fn pooled_sql(settings: &Settings, client: &Client, provider: Provider) -> Result<Vec<Finding>> {
    let failed = |error| sql::error("ask which process serves this connection", error);
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes
            .push(client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await.map_err(failed)?.get::<_, i32>(0));
    }
    processes.dedup();
    if processes.len() == 1 {
        return Ok(Vec::new());
    }
    Ok(vec![
        Finding::new(
            "pooler",
            Severity::Fatal,
            settings.target(),
            "a connection pooler in transaction mode is in between: one connection is served by several processes of PostgreSQL",
        )
        .exits(2)
        .remedy(How::Advice, provider.direct_connection()),
    ])
}
