//! The findings of `walhook check` for the status page.
//!
//! In: the settings. Out: findings, in what is served. Always holds: it runs on the thread of the HTTP server, on connections of its
//! own, and at most once in [`CHECK_EVERY`].

use std::{
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    commands::check::{self, codes},
    config::Config,
    http::{
        server::{Shared, Working},
        snapshot::{Checked, LIVE},
    },
};

/// How often everything is checked as by `walhook check`, at most. What changes at any moment is shown within seconds by other ways.
const CHECK_EVERY: Duration = Duration::from_secs(600);
/// The first time: once it runs.
const CHECK_FIRST: Duration = Duration::from_secs(15);
/// How long one check may take: it has limits of its own for each server.
const CHECK_WITHIN: Duration = Duration::from_secs(600);
/// How many findings are shown, the worst ones.
const FINDINGS_MAX: usize = 100;

/// The work for the server's thread.
pub fn work(config: Config, shared: Shared) -> Working {
    Box::pin(check(config, shared))
}

/// `walhook check`, on the thread of the server: neither the streamer nor a connection of its takes part.
async fn check(config: Config, shared: Shared) -> Infallible {
    sleep(CHECK_FIRST).await;
    loop {
        let began = Instant::now();
        if let Ok(findings) = timeout(CHECK_WITHIN, check::run(&config, &check::Arguments::default())).await {
            let exit_code = check::finding::exit_code(&findings);
            // Those of the set-up are looked for more often, and so is what is shown as it is now.
            let is_live = |code: &str| LIVE.iter().any(|(live, _)| *live == code);
            let is_other =
                |code: &str| !is_live(code) && codes::of(code).is_none_or(|code| code.side != codes::Side::SetUp);
            let others = findings.iter().filter(|finding| is_other(finding.code));
            let findings = others.take(FINDINGS_MAX).map(|finding| json!(finding)).collect();
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            shared.update(|snapshot| snapshot.checked = Some(Checked { at, exit_code, findings }));
        }
        // Where it takes long, it takes no more than a twentieth of the time.
        sleep(CHECK_EVERY.max(began.elapsed() * 20)).await;
    }
}
