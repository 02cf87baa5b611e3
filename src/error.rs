//! Errors, sorted by who must act.
//!
//! One opaque type: a kind (who acts), what was attempted on what, the cause, and what to try. Errors are
//! returned, never logged where they arise; the loop logs them once.

use std::{error::Error as StdError, fmt};

use crate::text;

/// The most bytes of a cause, which is often a server's text: what to try comes behind it.
const CAUSE: usize = 2048;

/// `std::result::Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who must act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The operator's settings or the rows in the database are wrong. Exit code 2.
    Config,
    /// A slot or a stream is not what it must be; going on could lose or double events. Exit code 3.
    Untrusted,
    /// A server refuses us for want of a privilege, or does not believe who we are. Exit code 4.
    Permission,
    /// A newer run has taken over. Exit code 5.
    Fenced,
    /// A server or the network is away for now; trying again is the remedy. Exit code 1 where retries end.
    Unavailable,
    /// Bytes from outside that the protocol does not allow, or a case nobody thought of. Exit code 1.
    Protocol,
}

/// What went wrong: what was attempted, on what, why, and what to try.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    /// What was attempted, on what: "start replication from slot \"walhook\"".
    attempted: String,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    hint: Option<String>,
    /// Of the table in `commands/check/codes.rs`.
    name: Option<&'static str>,
}

impl Error {
    /// An error of `kind`; `attempted` says what was attempted, on what, and what came of it.
    pub fn new(kind: Kind, attempted: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, attempted: attempted.into(), cause: None, hint: None, name: None }))
    }

    /// [`Kind::Config`].
    pub fn config(attempted: impl Into<String>) -> Self {
        Self::new(Kind::Config, attempted)
    }

    /// [`Kind::Untrusted`].
    pub fn untrusted(attempted: impl Into<String>) -> Self {
        Self::new(Kind::Untrusted, attempted)
    }

    /// [`Kind::Permission`].
    pub fn permission(attempted: impl Into<String>) -> Self {
        Self::new(Kind::Permission, attempted)
    }

    /// [`Kind::Unavailable`].
    pub fn unavailable(attempted: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, attempted)
    }

    /// [`Kind::Protocol`].
    pub fn protocol(attempted: impl Into<String>) -> Self {
        Self::new(Kind::Protocol, attempted)
    }

    /// The same with its cause, which must hold no secret.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// The same with what to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same under the name by which `walhook check`, the metrics and the status page know what is wrong: a code of the table in
    /// `commands/check/codes.rs`.
    #[must_use]
    pub fn named(mut self, name: impl Into<Option<&'static str>>) -> Self {
        self.0.name = name.into().or(self.0.name);
        self
    }

    /// See [`Error::named`].
    pub fn name(&self) -> Option<&'static str> {
        self.0.name
    }

    /// The same, with what the caller was about put before it, unless the text names that already.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        let doing = doing.to_string();
        if !names(&self.0.attempted, &doing) {
            self.0.attempted = format!("{doing}: {}", self.0.attempted);
        }
        self
    }

    /// The same for somebody else to act on; what to try was for the other one and is left out.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self.0.hint = None;
        self
    }

    /// Without what to try: to stand within another error, which has a hint of its own.
    pub fn reason(&self) -> String {
        let mut text = self.0.attempted.clone();
        let mut cause = self.0.cause.as_deref().map(|cause| cause as &dyn StdError);
        while let Some(this) = cause {
            let said = this.to_string();
            // Some errors tell their own cause, and name it as their source as well.
            if !text.ends_with(&said) && !text.contains(&format!(": {said}: ")) {
                text.push_str(": ");
                text.push_str(&text::one_line_of(&said, CAUSE));
            }
            cause = this.source();
        }
        text
    }

    /// What to try.
    pub fn remedy(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Several errors as one text: their reasons, then what to try, each once.
    pub fn all<'e>(errors: impl IntoIterator<Item = &'e Error>) -> (String, Option<String>) {
        let (mut reasons, mut remedies) = (Vec::new(), Vec::<&str>::new());
        for error in errors {
            reasons.push(error.reason());
            remedies.extend(error.remedy().filter(|remedy| !remedies.contains(remedy)));
        }
        (reasons.join("; "), (!remedies.is_empty()).then(|| remedies.join("; ")))
    }

    /// Who must act.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The direct cause, if it is a `T`: for callers that handle one case apart.
    pub fn cause_as<T: StdError + 'static>(&self) -> Option<&T> {
        self.0.cause.as_deref().and_then(|cause| cause.downcast_ref())
    }

    /// Whether the same attempt may succeed later without anybody acting.
    pub fn is_retryable(&self) -> bool {
        self.0.kind == Kind::Unavailable
    }

    /// The exit code of a process that ends by this error.
    pub fn exit_code(&self) -> u8 {
        match self.0.kind {
            Kind::Config => 2,
            Kind::Untrusted => 3,
            Kind::Permission => 4,
            Kind::Fenced => 5,
            Kind::Unavailable | Kind::Protocol => 1,
        }
    }
}

/// Whether `phrase` stands in the text, as words of their own.
fn names(text: &str, phrase: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    !phrase.is_empty()
        && text.match_indices(phrase).any(|(at, _)| {
            let (before, after) = (&text[..at], &text[at + phrase.len()..]);
            !before.chars().next_back().is_some_and(is_word) && !after.chars().next().is_some_and(is_word)
        })
}

/// One line: what was attempted, its causes, what to try.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason();
        match &self.0.hint {
            // PostgreSQL's details end with a full stop of their own.
            Some(hint) => write!(f, "{}. Hint: {hint}", reason.trim_end_matches(['.', ' '])),
            None => f.write_str(&reason),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

/// `source` is left out: the text above already tells the causes.
impl StdError for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Told(Option<Box<Told>>);

    impl fmt::Display for Told {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match &self.0 {
                Some(cause) => write!(f, "outer: {cause}"),
                None => f.write_str("inner."),
            }
        }
    }

    impl StdError for Told {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            self.0.as_deref().map(|cause| cause as &dyn StdError)
        }
    }

    #[test]
    fn what_a_text_names_already_is_not_put_before_it_again() {
        let refused = || Error::untrusted("stream \"S\" belongs to database a");
        assert_eq!(refused().context("stream \"S\"").to_string(), "stream \"S\" belongs to database a");
        let other = refused().context("stream \"S2\"").context("NATS configuration \"default\"");
        assert_eq!(
            other.context("NATS configuration \"default\"").to_string(),
            "NATS configuration \"default\": stream \"S2\": stream \"S\" belongs to database a"
        );
        assert_eq!(Error::config("replay 12: no").context("replay 1").to_string(), "replay 1: replay 12: no");
    }

    #[test]
    fn a_cause_a_hint_and_a_full_stop_are_there_once() {
        let error = Error::config("read it").caused_by(Told(Some(Box::new(Told(None)))));
        assert_eq!(error.to_string(), "read it: outer: inner.");
        let error = error.hint("try a");
        assert_eq!(error.to_string(), "read it: outer: inner. Hint: try a");
        assert_eq!(error.of_kind(Kind::Permission).hint("try b").to_string(), "read it: outer: inner. Hint: try b");
        let both = [Error::config("a").hint("try it"), Error::config("b").hint("try it"), Error::config("c")];
        assert_eq!(Error::all(&both), ("a; b; c".to_owned(), Some("try it".to_owned())));
    }
}
