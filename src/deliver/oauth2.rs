//! OAuth2's client credentials (RFC 6749, section 4.4): what a worker asks a token endpoint for, and what its answer means.
//!
//! In: a webhook's `oauth2`, the client's secret, an answer. Out: the form to send, a token with its time, or why there is none.
//! Always holds: neither secret nor token is shown.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Deserialize;

/// How long a token is used whose answer names no time.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(300);
/// The longest time that a token is used without asking again.
const LIFETIME_MAX: Duration = Duration::from_secs(86_400);
/// The longest token that is sent.
const TOKEN_MAX: usize = 16 << 10;

/// Where a webhook's access tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OAuth2 {
    /// From here.
    From(Endpoint),
    /// The row says something that cannot be read.
    Unreadable(String),
}

/// A token endpoint and what it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Its URL.
    pub token_url: String,
    client_id: String,
    #[serde(default)]
    scope: Option<String>,
    #[serde(default)]
    client_auth: ClientAuth,
    #[serde(default)]
    parameters: BTreeMap<String, String>,
}

/// How the client says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ClientAuth {
    /// By the header `Authorization`.
    #[default]
    Basic,
    /// In the form.
    Post,
}

/// A request to the token endpoint.
pub struct Ask {
    /// Basic authorization, id and secret, each percent-encoded as a form is.
    pub login: Option<(String, String)>,
    /// The body, a form.
    pub form: String,
}

/// An access token.
#[derive(Clone)]
pub struct Token {
    /// `Bearer …`
    pub authorization: String,
    /// How long it may be used.
    pub lifetime: Duration,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?})", self.lifetime)
    }
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoToken {
    /// The endpoint is away or overloaded: later there may be one.
    Later(String),
    /// It refuses the client, or says what cannot be used.
    Refused(String),
}

impl OAuth2 {
    /// As a webhook's row says it.
    pub fn read(text: &str) -> OAuth2 {
        match serde_json::from_str(text) {
            Ok(endpoint) => OAuth2::From(endpoint),
            Err(error) => OAuth2::Unreadable(format!("the webhook's oauth2 cannot be read: {error}")),
        }
    }
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

impl Endpoint {
    /// What it is asked.
    pub fn ask(&self, secret: &str) -> Ask {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if let Some(scope) = &self.scope {
            form.append_pair("scope", scope);
        }
        for (name, value) in &self.parameters {
            form.append_pair(name, value);
        }
        let login = match self.client_auth {
            // RFC 6749, section 2.3.1.
            ClientAuth::Basic => Some((encoded(&self.client_id), encoded(secret))),
            ClientAuth::Post => {
                form.append_pair("client_id", &self.client_id).append_pair("client_secret", secret);
                None
            }
        };
        Ask { login, form: form.finish() }
    }
}

/// An answer of the endpoint. What the answer says is the server's, so that no more of it than the code of its error is shown.
///
/// # Errors
/// There is no token in it.
pub fn answer(status: u16, body: &[u8]) -> Result<Token, NoToken> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        token_type: Option<String>,
        expires_in: Option<serde_json::Value>,
    }
    #[derive(Deserialize)]
    struct Problem {
        error: String,
    }
    match status {
        200..=299 => {}
        408 | 429 | 500..=599 => return Err(NoToken::Later(format!("it answers {status}"))),
        _ => {
            let is_code = |code: &String| code.len() <= 60 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let code = serde_json::from_slice::<Problem>(body).ok().map(|problem| problem.error).filter(is_code);
            return Err(NoToken::Refused(match code {
                Some(code) => format!("it answers {status}, {code}"),
                None => format!("it answers {status}"),
            }));
        }
    }
    let unusable = |why: &str| NoToken::Refused(format!("it answers {status} with {why}"));
    let answer: Answer =
        serde_json::from_slice(body).map_err(|_| unusable("something that is no JSON object with an access_token"))?;
    if answer.token_type.as_deref().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err(unusable("a token that is no bearer token"));
    }
    let token = answer.access_token;
    if token.is_empty() || token.len() > TOKEN_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unusable("a token that no header can carry"));
    }
    let seconds = answer.expires_in.and_then(|value| match value {
        serde_json::Value::String(text) => text.parse().ok(),
        other => other.as_f64(),
    });
    let lifetime = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LIFETIME_MAX).min(LIFETIME_MAX),
        None => DEFAULT_LIFETIME,
    };
    // A tenth of its time before its end, a minute at most, it is not begun to be used any more.
    let lifetime = lifetime.saturating_sub((lifetime / 10).min(Duration::from_secs(60)));
    Ok(Token { authorization: format!("Bearer {token}"), lifetime })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        match OAuth2::read(text) {
            OAuth2::From(endpoint) => endpoint,
            OAuth2::Unreadable(why) => panic!("{why}"),
        }
    }

    #[test]
    fn the_secret_goes_into_the_header_or_into_the_form() {
        let basic =
            r#"{"token_url": "https://a/t", "client_id": "my id", "scope": "a b", "parameters": {"audience": "x&y"}}"#;
        let ask = endpoint(basic).ask("p:%");
        assert_eq!(ask.login, Some(("my+id".to_owned(), "p%3A%25".to_owned())));
        assert_eq!(ask.form, "grant_type=client_credentials&scope=a+b&audience=x%26y");
        let ask = endpoint(r#"{"token_url": "https://a/t", "client_id": "i", "client_auth": "post"}"#).ask("s");
        assert_eq!((ask.login, ask.form.as_str()), (None, "grant_type=client_credentials&client_id=i&client_secret=s"));
        assert!(matches!(OAuth2::read(r#"{"client_id": "i"}"#), OAuth2::Unreadable(_)));
    }

    #[test]
    fn an_answer_is_a_token_a_wait_or_a_refusal() {
        let token = answer(200, br#"{"access_token": "abc", "token_type": "Bearer", "expires_in": 3600}"#).unwrap();
        assert_eq!((token.authorization.as_str(), token.lifetime), ("Bearer abc", Duration::from_secs(3540)));
        assert_eq!(answer(200, br#"{"access_token": "a", "expires_in": "10"}"#).unwrap().lifetime.as_secs(), 9);
        assert_eq!(answer(200, br#"{"access_token": "a"}"#).unwrap().lifetime.as_secs(), 270);
        assert!(!format!("{token:?}").contains("abc"));
        for status in [429, 500, 503] {
            assert!(matches!(answer(status, b""), Err(NoToken::Later(_))), "{status}");
        }
        let refused = |status, body: &[u8]| match answer(status, body) {
            Err(NoToken::Refused(why)) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(401, br#"{"error": "invalid_client"}"#), "it answers 401, invalid_client");
        assert_eq!(refused(400, br#"{"error": "hunter2 is wrong"}"#), "it answers 400");
        for bad in [&b"<html>"[..], br#"{"access_token": ""}"#, br#"{"access_token": "a\nb"}"#] {
            refused(200, bad);
        }
        refused(200, br#"{"access_token": "a", "token_type": "mac"}"#);
    }
}
