//! Registering the node key: the client logic of protocol.md 1.6.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{HeaderMap, Method, StatusCode};
use lowroad_wire::{
    control::{CAPABILITY_VERSION, Hostinfo, RegisterAuth, RegisterRequest, RegisterResponse},
    key::{NodePrivate, NodePublic},
};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::{Channel, ControlError, dial::error_text};
use crate::prefs::AuthKey;

/// An answer that doesn't wait for a person.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one wait for a person may take before it is asked again.
const FOLLOWUP_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Largest answer.
const LIMIT: usize = 1 << 20;
/// What Go sends as the time of a logout.
const LOGOUT_TIME: i64 = 123;
/// Wait when a 429 names none, or one beyond an hour.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(5);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// What registering came to.
#[derive(Debug)]
pub enum Registered {
    /// The key is accepted. An administrator may still have to approve the machine.
    Done(Box<RegisterResponse>),
    /// A person has to visit this page; register again with it as followup.
    Visit(String),
    /// The server says that this key has expired: make a new one.
    Expired,
}

/// What goes into one registration.
#[derive(Debug)]
pub struct Attempt<'a> {
    pub node: &'a NodePrivate,
    pub old: Option<&'a NodePrivate>,
    pub auth_key: Option<&'a AuthKey>,
    pub followup: Option<&'a str>,
    pub hostinfo: &'a Hostinfo,
}

pub async fn register(
    channel: &Channel,
    attempt: &Attempt<'_>,
) -> Result<Registered, ControlError> {
    let old = attempt.old.map(NodePrivate::public);
    let request = RegisterRequest {
        version: CAPABILITY_VERSION,
        node_key: Some(attempt.node.public()),
        old_node_key: old,
        auth: attempt.auth_key.map(|key| RegisterAuth {
            auth_key: key.reveal().to_owned(),
        }),
        followup: attempt.followup.unwrap_or_default().to_owned(),
        hostinfo: Some(attempt.hostinfo.clone()),
        ..RegisterRequest::default()
    };
    let wait = if attempt.followup.is_some() {
        FOLLOWUP_TIMEOUT
    } else {
        ANSWER_TIMEOUT
    };
    let response = post(channel, &request, attempt.node.public(), old, wait).await?;
    judge(response)
}

/// The order of the answer's fields matters: an error overrules the rest.
fn judge(response: RegisterResponse) -> Result<Registered, ControlError> {
    if !response.error.is_empty() {
        return Err(ControlError::Refused(response.error));
    }
    if response
        .node_key_signature
        .as_ref()
        .is_some_and(|signature| !signature.is_empty())
    {
        return Err(ControlError::Refused(
            "the tailnet uses tailnet lock, which lowroad does not support".to_owned(),
        ));
    }
    if response.node_key_expired {
        return Ok(Registered::Expired);
    }
    if !response.auth_url.is_empty() {
        return Ok(Registered::Visit(response.auth_url));
    }
    Ok(Registered::Done(Box::new(response)))
}

/// Ends this node's registration: the server lets the key expire.
pub async fn logout(channel: &Channel, node: &NodePrivate) -> Result<(), ControlError> {
    let request = RegisterRequest {
        version: CAPABILITY_VERSION,
        node_key: Some(node.public()),
        expiry: OffsetDateTime::from_unix_timestamp(LOGOUT_TIME).ok(),
        ..RegisterRequest::default()
    };
    let response = post(channel, &request, node.public(), None, ANSWER_TIMEOUT).await?;
    if response.error.is_empty() {
        Ok(())
    } else {
        Err(ControlError::Refused(response.error))
    }
}

async fn post(
    channel: &Channel,
    request: &RegisterRequest,
    node: NodePublic,
    old: Option<NodePublic>,
    wait: Duration,
) -> Result<RegisterResponse, ControlError> {
    const PATH: &str = "/machine/register";
    let body =
        Bytes::from(serde_json::to_vec(request).expect("a register request always serialises"));
    let keys: Vec<_> = [Some(node), old].into_iter().flatten().collect();
    let exchange = async {
        let response = channel.request(Method::POST, PATH, &keys, body).await?;
        let status = response.status();
        if status == StatusCode::OK {
            let body = Limited::new(response.into_body(), LIMIT).collect().await;
            return body
                .map(|body| body.to_bytes())
                .map_err(|error| ControlError::Broken(error.to_string()));
        }
        let retry_after = retry_after(response.headers(), SystemTime::now());
        let text = error_text(response.into_body()).await;
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS => ControlError::RateLimited(retry_after),
            status if status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT => {
                ControlError::Refused(if text.is_empty() {
                    status.to_string()
                } else {
                    text
                })
            }
            status => ControlError::Status {
                request: PATH,
                status,
                text,
            },
        })
    };
    let body = timeout(wait, exchange)
        .await
        .map_err(|_| ControlError::Silent(wait))??;
    serde_json::from_slice(&body).map_err(|source| ControlError::Unreadable {
        request: PATH,
        source: lowroad_wire::Error::Json {
            what: "register response",
            source,
        },
    })
}

/// What a header of an answer says, in seconds or as an HTTP date; an hour at most.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Duration {
    let value = headers
        .get("retry-after")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let parsed = value
        .trim()
        .parse()
        .map(Duration::from_secs)
        .ok()
        .or_else(|| http_date(value)?.duration_since(now).ok());
    parsed
        .filter(|wait| *wait <= RETRY_AFTER_MAX)
        .unwrap_or(RETRY_AFTER_DEFAULT)
}

fn http_date(text: &str) -> Option<SystemTime> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let parsed = time::PrimitiveDateTime::parse(text.trim(), format).ok()?;
    Some(parsed.assume_utc().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_overrules_everything_else_in_the_answer() {
        let response = RegisterResponse {
            error: "no".into(),
            auth_url: "http://x".into(),
            node_key_expired: true,
            ..RegisterResponse::default()
        };
        assert!(matches!(judge(response), Err(ControlError::Refused(text)) if text == "no"));
        let expired = RegisterResponse {
            auth_url: "http://x".into(),
            node_key_expired: true,
            ..RegisterResponse::default()
        };
        assert!(matches!(judge(expired), Ok(Registered::Expired)));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_never_beyond_an_hour() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(wait("7"), Duration::from_secs(7));
        assert_eq!(
            wait("Sun, 06 Nov 1994 08:49:47 GMT"),
            Duration::from_secs(10)
        );
        assert_eq!(wait("86400"), RETRY_AFTER_DEFAULT);
        assert_eq!(wait("soon"), RETRY_AFTER_DEFAULT);
        assert_eq!(retry_after(&HeaderMap::new(), now), RETRY_AFTER_DEFAULT);
    }
}
