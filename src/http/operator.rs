//! What an operator may change from the status page: retry a dead letter, or drop one.
//!
//! In: requests that [`super::server`] has let through. Out: the same as `walhook dead-letters retry` and `drop` do, by an
//! [`Act`], and a line of the log for each with where it came from. Always holds: one thing at a time, within [`WITHIN`];
//! a page of another origin can have nothing done, for a request needs a header that no form can send and no foreign script may.

use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use hyper::{HeaderMap, Method, header};
use tokio::{sync::Mutex, time::timeout};

use crate::error::{Error, Result};

/// How long PostgreSQL may take.
pub const WITHIN: Duration = Duration::from_secs(15);
/// The header that a request of the page carries.
const OWN_HEADER: &str = "x-requested-with";

/// What is to become of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Publish it again.
    Retry,
    /// Nobody wants it any more.
    Drop,
}

impl Action {
    /// The word for it, in paths and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Retry => "retry",
            Action::Drop => "drop",
        }
    }
}

/// A dead letter, and what is to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its key.
    pub id: i64,
    /// What to do.
    pub action: Action,
}

/// What came of it, for a person.
pub type Acting = Pin<Box<dyn Future<Output = Result<String>> + Send>>;
/// Who does it.
pub type Act = Arc<dyn Fn(Wanted) -> Acting + Send + Sync>;

/// What a request wants changed: `Some(None)` for one that asks only whether its token is the operator's, `None` for any other.
pub fn wanted(method: &Method, path: &str) -> Option<Option<Wanted>> {
    if method != Method::POST {
        return None;
    }
    if path == "/operator" {
        return Some(None);
    }
    let (id, action) = path.strip_prefix("/dead-letters/")?.split_once('/')?;
    let action = [Action::Retry, Action::Drop].into_iter().find(|known| known.as_str() == action)?;
    Some(Some(Wanted { id: id.parse().ok()?, action }))
}

/// Why a request may be that of a page of another origin in a browser that has the operator's password.
pub fn is_foreign(headers: &HeaderMap) -> Option<&'static str> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if text(OWN_HEADER).is_none() {
        return Some("the header X-Requested-With: walhook is needed, which a page of another origin cannot send");
    }
    // Where a browser says it, that decides: a proxy in between may have changed the host.
    if let Some(site) = text("sec-fetch-site") {
        let why = "only the status page itself may ask for this, and this comes from another page (Sec-Fetch-Site)";
        return (site != "same-origin").then_some(why);
    }
    let host = text(header::HOST.as_str()).unwrap_or_default();
    let is_own = |origin: &str| origin.split_once("://").is_some_and(|(_, name)| name.eq_ignore_ascii_case(host));
    if text(header::ORIGIN.as_str()).is_some_and(|origin| !is_own(origin)) {
        return Some("only the status page itself may ask for this, and this comes from another page (Origin)");
    }
    None
}

/// Does what operators ask for, one request at a time.
pub struct Desk {
    act: Option<Act>,
    turn: Mutex<()>,
}

impl Desk {
    /// `None`: nothing can be changed here.
    pub fn new(act: Option<Act>) -> Desk {
        Desk { act, turn: Mutex::new(()) }
    }

    /// Whether something can be changed here.
    pub fn is_open(&self) -> bool {
        self.act.is_some()
    }

    /// Does it, and says so in the log.
    ///
    /// # Errors
    /// Whatever the database refuses; it is away or slow.
    pub async fn serve(&self, peer: SocketAddr, wanted: Option<Wanted>) -> Result<String> {
        let Some(act) = &self.act else {
            return Err(Error::config("change something from the status page: this process has no database"));
        };
        let Some(Wanted { id, action }) = wanted else { return Ok("the operator's token".to_owned()) };
        let attempted = format!("{} dead letter {id} from the status page", action.as_str());
        let acting = async {
            let _turn = self.turn.lock().await;
            act(Wanted { id, action }).await
        };
        let outcome = timeout(WITHIN, acting).await.unwrap_or_else(|_| {
            Err(Error::unavailable(format!("{attempted}: no answer within {} s", WITHIN.as_secs()))
                .hint("look at the dead letter before you try again: it may have been done meanwhile"))
        });
        match &outcome {
            Ok(done) => {
                tracing::info!(dead_letter = id, action = action.as_str(), %peer, "status page, by the operator's token: {done}");
            }
            Err(error) => {
                tracing::warn!(dead_letter = id, action = action.as_str(), %peer, "status page, by the operator's token: {error}");
            }
        }
        outcome
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_exactly_is_wanted() {
        let post = |path: &str| wanted(&Method::POST, path);
        assert_eq!(post("/dead-letters/7/retry"), Some(Some(Wanted { id: 7, action: Action::Retry })));
        assert_eq!(post("/dead-letters/7/drop"), Some(Some(Wanted { id: 7, action: Action::Drop })));
        assert_eq!(post("/operator"), Some(None));
        for other in ["/", "/metrics", "/dead-letters/x/drop", "/dead-letters/7/delete", "/dead-letters/7/drop/"] {
            assert_eq!(post(other), None, "{other}");
        }
        assert_eq!(wanted(&Method::GET, "/dead-letters/7/drop"), None, "no link and no image changes anything");
    }

    #[test]
    fn a_request_of_another_origin_is_known_by_what_a_browser_says_of_it() {
        let foreign = |given: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            headers.insert("host", "127.0.0.1:9187".parse().unwrap());
            for (name, value) in given {
                headers.insert(*name, value.parse().unwrap());
            }
            is_foreign(&headers).is_some()
        };
        let own = ("x-requested-with", "1");
        assert!(!foreign(&[own]), "curl says nothing more");
        assert!(!foreign(&[own, ("origin", "http://127.0.0.1:9187"), ("sec-fetch-site", "same-origin")]));
        assert!(foreign(&[]), "a form of another page");
        assert!(foreign(&[own, ("sec-fetch-site", "cross-site")]) && foreign(&[own, ("sec-fetch-site", "same-site")]));
        assert!(foreign(&[own, ("origin", "http://127.0.0.1:8080")]) && foreign(&[own, ("origin", "null")]));
    }
}
