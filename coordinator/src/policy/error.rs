//! Why a policy is refused, and where in the file.

/// A place in the policy file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A value and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<T> {
    pub(crate) place: Place,
    pub(crate) value: T,
}

impl<T> At<T> {
    pub(crate) fn map<U>(self, to: impl FnOnce(T) -> U) -> At<U> {
        At {
            place: self.place,
            value: to(self.value),
        }
    }
}

/// What sort of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyErrorKind {
    /// The text is not HuJSON.
    Syntax,
    /// The text is HuJSON, but not a policy.
    Invalid,
    /// A policy, but it uses something that lowroad cannot enforce yet.
    Unsupported,
    /// A policy whose own `tests` fail.
    Test,
}

/// Why a policy was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy.hujson:{line}:{column}: {message}")]
pub struct PolicyError {
    /// Line, counted from 1.
    pub line: u32,
    /// Column in characters, counted from 1.
    pub column: u32,
    /// What sort of refusal it is.
    pub kind: PolicyErrorKind,
    /// What is wrong, and what to do about it.
    pub message: String,
}

impl PolicyError {
    fn new(place: Place, kind: PolicyErrorKind, message: String) -> Self {
        Self {
            line: place.line,
            column: place.column,
            kind,
            message,
        }
    }

    pub(crate) fn syntax(place: Place, message: impl Into<String>) -> Self {
        Self::new(place, PolicyErrorKind::Syntax, message.into())
    }

    pub(crate) fn invalid(place: Place, message: impl Into<String>) -> Self {
        Self::new(place, PolicyErrorKind::Invalid, message.into())
    }

    pub(crate) fn unsupported(place: Place, what: impl std::fmt::Display) -> Self {
        let message = format!("{what}: not supported yet; take it out of the policy");
        Self::new(place, PolicyErrorKind::Unsupported, message)
    }

    pub(crate) fn test(place: Place, message: impl Into<String>) -> Self {
        Self::new(place, PolicyErrorKind::Test, message.into())
    }
}
