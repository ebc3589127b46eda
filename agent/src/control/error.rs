//! What can go wrong with the coordination server, and whether trying again can help.

use std::time::Duration;

use hyper::StatusCode;
use lowroad_wire::key::MachinePublic;

/// One line for the user: what was attempted, what happened, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(
        "cannot find the address of the login server {host}: {why}: check --login-server and this host's DNS"
    )]
    Resolve { host: String, why: String },
    #[error(
        "cannot connect to the login server {server}: {why}: check --login-server, and that the server runs and is reachable from here"
    )]
    Connect { server: String, why: String },
    #[error(
        "cannot talk TLS with the login server {server}: {why}: its certificate must be valid for that name and signed by an authority this host trusts (the system's, or those in SSL_CERT_FILE)"
    )]
    Tls { server: String, why: String },
    #[error("{server} is not a tailnet coordination server ({why}): check --login-server")]
    NotTailnet { server: String, why: String },
    #[error(
        "the key of the login server {server} has changed: it was {known} and is {found}. If the server was set up anew, run `lowroad up --accept-server-key` with your other flags; \
         if not, somebody may be posing as it"
    )]
    KeyChanged {
        server: String,
        known: MachinePublic,
        found: MachinePublic,
    },
    #[error("the login server refused the encrypted channel: {0}")]
    Channel(String),
    #[error("the login server refused this node: {0}{hint}", hint = auth_hint(.0))]
    Refused(String),
    #[error(
        "this node's key has expired and the login server refuses a new one: log in again with `lowroad up --force-reauth` or an --auth-key"
    )]
    KeyExpired,
    #[error("the login server asks to wait {} s before registering", .0.as_secs())]
    RateLimited(Duration),
    #[error("the login server answered {status} to {request}: {text}")]
    Status {
        request: &'static str,
        status: StatusCode,
        text: String,
    },
    #[error("the login server's answer to {request} cannot be read: {source}")]
    Unreadable {
        request: &'static str,
        source: lowroad_wire::Error,
    },
    #[error("the connection to the login server broke: {0}")]
    Broken(String),
    #[error("the login server was silent for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the login server closed the connection")]
    Closed,
}

fn auth_hint(text: &str) -> &'static str {
    let lower = text.to_ascii_lowercase();
    if ["authkey", "auth key", "auth-key", "pre-auth", "preauth"]
        .iter()
        .any(|word| lower.contains(word))
    {
        ": check --auth-key (wrong, expired or used up?)"
    } else {
        ""
    }
}

impl ControlError {
    /// True if trying again without the user's help is pointless.
    pub fn needs_user(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::KeyExpired)
    }

    /// True if the server's answer shows that it is the wrong one, so that a waiting `up` need not wait for it to recover.
    pub fn ends_up(&self) -> bool {
        self.needs_user()
            || matches!(
                self,
                Self::NotTailnet { .. }
                    | Self::KeyChanged { .. }
                    | Self::Tls { .. }
                    | Self::Channel(_)
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_auth_key_says_what_to_check() {
        let text = ControlError::Refused("authkey expired".into()).to_string();
        assert!(
            text.ends_with("check --auth-key (wrong, expired or used up?)"),
            "{text}"
        );
        assert_eq!(
            ControlError::Refused("no".into()).to_string(),
            "the login server refused this node: no"
        );
    }
}
