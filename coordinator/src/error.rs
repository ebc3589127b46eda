use std::{io, path::PathBuf};

use hyper::StatusCode;

use crate::refused::RefusedPolicy;

/// What can go wrong in the coordinator, worded for the person who has to do something about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A client or an administrator asked for something that cannot be done; `status` is what HTTP says about it.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },

    /// A policy that is refused; shown in many lines.
    #[error("{0}")]
    Policy(Box<RefusedPolicy>),

    #[error("cannot {action}: {source}")]
    Io { action: String, source: io::Error },

    #[error("database {}: {source}", path.display())]
    Database {
        path: PathBuf,
        source: rusqlite::Error,
    },

    #[error("database {}: {source}; was it written by a newer version of lowroad-coordinator?", path.display())]
    Schema {
        path: PathBuf,
        source: rusqlite_migration::Error,
    },

    #[error("database {}: {what}; restore the file from a backup, or move it away to start an empty tailnet", path.display())]
    Corrupt { path: PathBuf, what: String },

    #[error("{}: {what}", path.display())]
    Config { path: PathBuf, what: String },

    #[error("{0}")]
    Setting(String),

    /// Asked for as an exit status; there is nothing to say.
    #[error("the policies differ")]
    Differs,

    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),

    /// The database does not take writes; what was asked for may not survive a restart.
    #[error(
        "the coordinator's database takes no writes at the moment; see its log, then try again"
    )]
    NotSaved,

    /// Nodes have not been told of what is saved.
    #[error(
        "the change is saved, but not in force yet: the coordinator has not finished compiling the policy; see its log"
    )]
    NotPublished,

    #[error(
        "the change is saved, but the policy cannot be compiled, which is a bug in the coordinator (see its log): nodes refuse everything until it can; `policy rollback` may help"
    )]
    PolicyFails,

    #[error(
        "no coordinator answers at {}: {source}; start one with `lowroad-coordinator serve --state-dir …`, or name the right --state-dir",
        socket.display()
    )]
    NotRunning { socket: PathBuf, source: io::Error },

    #[error(
        "the coordinator's answer makes no sense: {0}; are server and command of the same version?"
    )]
    Answer(String),
}

impl From<RefusedPolicy> for Error {
    fn from(refused: RefusedPolicy) -> Self {
        Self::Policy(Box::new(refused))
    }
}

impl Error {
    pub fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self::Refused {
            status,
            message: message.into(),
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::FORBIDDEN, message)
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::UNAUTHORIZED, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::NOT_FOUND, message)
    }

    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// For answers over HTTP.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused { status, .. } => *status,
            Self::Policy(_) => StatusCode::BAD_REQUEST,
            Self::NotSaved | Self::NotPublished | Self::PolicyFails => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}
