//! How a worker makes itself known to receivers: client certificates and access tokens.
//!
//! In: a webhook and its secrets. Out: the connections that its calls go over, and the token that they carry. Always holds: a token
//! is asked for once, however many calls wait for it; a webhook whose certificate or token is missing is not called without.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};

use super::{
    call::{Answer, Caller},
    configuration::{Access, Known},
    limits::{Limits, Slot},
};
use crate::deliver::{
    message::Call,
    oauth2::{self, NoToken, OAuth2},
    schedule::Outcome,
};

/// The waits while a token endpoint is away: the first, and the longest.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a refusal of a token endpoint holds for those who ask next.
const REFUSED: Duration = Duration::from_secs(5);

/// See the module.
pub struct Receivers {
    plain: Arc<Caller>,
    certified: SyncMutex<HashMap<i32, Certified>>,
    tokens: SyncMutex<HashMap<i32, Arc<Mutex<Held>>>>,
}

/// Connections with the certificate of these secrets.
struct Certified {
    access: Access,
    caller: Result<Arc<Caller>, String>,
}

/// What is known of a webhook's token.
#[derive(Default)]
struct Held {
    /// By which settings.
    by: Option<(OAuth2, Access)>,
    token: Option<Token>,
    problem: Option<(NoToken, Instant)>,
    /// Failures in a row.
    failures: u32,
    count: u64,
}

/// A token that calls carry.
#[derive(Clone)]
pub struct Token {
    authorization: String,
    ends: Instant,
    number: u64,
}

impl Token {
    /// The header's value.
    pub fn authorization(&self) -> &str {
        &self.authorization
    }
}

/// Why a webhook's calls have to wait.
pub struct Away {
    /// Until then.
    pub wait: Duration,
    /// And why.
    pub why: String,
}

fn lock<T>(mutex: &SyncMutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receivers {
    /// With these connections for all that need no certificate.
    pub fn new(plain: Caller) -> Receivers {
        Receivers { plain: Arc::new(plain), certified: SyncMutex::default(), tokens: SyncMutex::default() }
    }

    /// The connections for a webhook.
    ///
    /// # Errors
    /// It needs a certificate, and there is none that can be used.
    pub fn caller(&self, known: &Known) -> Result<Arc<Caller>, String> {
        if !known.webhook.client_certificate {
            return Ok(Arc::clone(&self.plain));
        }
        let mut certified = lock(&self.certified);
        if let Some(there) = certified.get(&known.webhook.webhook_id).filter(|there| there.access == known.access) {
            return there.caller.clone();
        }
        let missing = |name: &str| {
            format!(
                "it is called with a client certificate and has no secret {name}: SELECT rule_webhook_secret_set({}, '{name}', '…')",
                known.webhook.webhook_id
            )
        };
        let caller = match (&known.access.certificate, &known.access.key) {
            (None, _) => Err(missing("tls_certificate")),
            (_, None) => Err(missing("tls_key")),
            (Some(certificate), Some(key)) => self.plain.certified(certificate.reveal(), key.reveal()).map(Arc::new),
        };
        let there = Certified { access: known.access.clone(), caller: caller.clone() };
        certified.insert(known.webhook.webhook_id, there);
        caller
    }

    /// The token for a webhook's next call, if it needs one: the one that is there, or a new one.
    ///
    /// # Errors
    /// Its endpoint is away: the call has to wait. That it refuses is an answer to the call: `Ok(Err(why))`.
    pub async fn token(&self, known: &Known) -> Result<Result<Option<Token>, String>, Away> {
        let Some(oauth2) = &known.webhook.oauth2 else { return Ok(Ok(None)) };
        let held = Arc::clone(lock(&self.tokens).entry(known.webhook.webhook_id).or_default());
        // The first one asks; the others wait for the lock and find the answer.
        let mut held = held.lock().await;
        let by = (oauth2.clone(), known.access.clone());
        if held.by.as_ref() != Some(&by) {
            *held = Held { by: Some(by), count: held.count, ..Held::default() };
        }
        let now = Instant::now();
        if let Some(token) = held.token.as_ref().filter(|token| token.ends > now) {
            return Ok(Ok(Some(token.clone())));
        }
        if let Some((problem, until)) = held.problem.clone().filter(|(_, until)| *until > now) {
            return answer_of(problem, until - now);
        }
        match self.ask(known, oauth2).await {
            Ok(token) => {
                held.count += 1;
                let token = Token {
                    authorization: token.authorization,
                    ends: Instant::now() + token.lifetime,
                    number: held.count,
                };
                (held.token, held.problem, held.failures) = (Some(token.clone()), None, 0);
                Ok(Ok(Some(token)))
            }
            Err(problem) => {
                let wait = match problem {
                    NoToken::Later(_) => AWAY.1.min(AWAY.0.saturating_mul(2u32.saturating_pow(held.failures))),
                    NoToken::Refused(_) => REFUSED,
                };
                held.failures += 1;
                held.problem = Some((problem.clone(), Instant::now() + wait));
                answer_of(problem, wait)
            }
        }
    }

    async fn ask(&self, known: &Known, oauth2: &OAuth2) -> Result<oauth2::Token, NoToken> {
        let endpoint = match oauth2 {
            OAuth2::From(endpoint) => endpoint,
            OAuth2::Unreadable(why) => return Err(NoToken::Refused(why.clone())),
        };
        let secret = known.access.client_secret.as_ref().ok_or_else(|| {
            NoToken::Refused(format!(
                "there is no secret oauth2_client_secret: SELECT rule_webhook_secret_set({}, 'oauth2_client_secret', '…')",
                known.webhook.webhook_id
            ))
        })?;
        let caller = self.caller(known).map_err(NoToken::Refused)?;
        let within = Duration::from_millis(known.webhook.timeout_ms);
        let (status, body) =
            caller.ask_for_token(&endpoint.token_url, &endpoint.ask(secret.reveal().trim()), within).await?;
        oauth2::answer(status, &body)
    }

    /// The receiver does not accept this token any more.
    async fn forget(&self, known: &Known, token: &Token) {
        let held = Arc::clone(lock(&self.tokens).entry(known.webhook.webhook_id).or_default());
        let mut held = held.lock().await;
        if held.token.as_ref().is_some_and(|there| there.number == token.number) {
            held.token = None;
        }
    }

    /// One attempt: a call, and where the receiver answers 401 to its token, one more with a new token. Without a token that it
    /// needs, nothing is sent.
    pub async fn attempt(
        &self,
        limits: &Limits,
        slot: Option<&Slot>,
        known: &Known,
        call: &Call<'_>,
        token: Result<Option<Token>, String>,
    ) -> Answer {
        let mut token = match token {
            Ok(token) => token,
            Err(why) => return Answer::not_sent(why),
        };
        let caller = match self.caller(known) {
            Ok(caller) => caller,
            Err(why) => return Answer::not_sent(why),
        };
        let mut is_first = true;
        loop {
            let keys = known.keys.as_deref().map_err(Clone::clone);
            let authorization = token.as_ref().map(Token::authorization);
            let answer = caller.call(&known.webhook, call, keys, authorization).await;
            match (&answer.outcome, token.take()) {
                (Outcome::Answered { status: 401, .. }, Some(old)) if is_first => {
                    is_first = false;
                    self.forget(known, &old).await;
                    let Ok(Ok(new)) = self.token(known).await else { return answer };
                    token = new;
                    if let Some(slot) = slot {
                        slot.ready().await;
                    }
                    limits.start(&known.webhook).await;
                }
                _ => return answer,
            }
        }
    }
}

fn answer_of(problem: NoToken, wait: Duration) -> Result<Result<Option<Token>, String>, Away> {
    match problem {
        NoToken::Later(why) => Err(Away { wait, why: format!("its token endpoint gives no access token: {why}") }),
        NoToken::Refused(why) => Ok(Err(format!("there is no access token: {why}"))),
    }
}
