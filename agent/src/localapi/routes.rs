//! Paths and methods.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::{Method, Response, StatusCode, body::Frame, header};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};

use super::{Ask, Body, Refusal, Server, UpRequest, Who, full, json_response, watch};
use crate::{
    prefs::{AuthKey, Change},
    status::Progress,
};

/// Lines of progress that may wait for a slow reader.
const PROGRESS_QUEUE: usize = 16;

pub struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    pub query: &'a str,
    pub body: Bytes,
    pub may_write: bool,
}

impl Call<'_> {
    fn parameter(&self, name: &str) -> Option<String> {
        let value = self
            .query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
        Some(unescape(value))
    }

    fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        // serde quotes what it stumbles over, which may be an auth key: only the place is told.
        serde_json::from_slice(&self.body).map_err(|error| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                &format!(
                    "the request body cannot be read at line {}, column {}",
                    error.line(),
                    error.column()
                ),
            )
        })
    }
}

pub async fn dispatch(server: &Server, call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let write = call.may_write;
    match (&call.method, call.path) {
        (&Method::GET, "/localapi/v0/status") => {
            let peers = call.parameter("peers").as_deref() != Some("false");
            Ok(json_response(
                &server
                    .ask(write, |reply| Ask::Status { peers, reply })
                    .await?,
            ))
        }
        (&Method::GET, "/localapi/v0/whois") => whois(server, call).await,
        (&Method::GET, "/localapi/v0/prefs") => Ok(json_response(
            &server.ask(write, |reply| Ask::Prefs { reply }).await?,
        )),
        (&Method::PATCH, "/localapi/v0/prefs") => {
            let change = Change::from_masked_json(&call.json()?)
                .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, &error.to_string()))?;
            set(server, call, change).await
        }
        (&Method::POST, "/localapi/v0/check-prefs") => check(call),
        (&Method::POST, "/lowroad/v0/set") => set(server, call, call.json()?).await,
        (&Method::POST, "/localapi/v0/start") => start(server, call).await,
        (&Method::POST, "/localapi/v0/login-interactive") => {
            done(server.ask(write, |reply| Ask::Login { reply }).await?)
        }
        (&Method::POST, "/localapi/v0/logout") => {
            done(server.ask(write, |reply| Ask::Logout { reply }).await?)
        }
        (&Method::POST, "/lowroad/v0/down") => {
            done(server.ask(write, |reply| Ask::Down { reply }).await?)
        }
        (&Method::POST, "/lowroad/v0/up") => up(server, call).await,
        (&Method::POST, "/localapi/v0/ping") => ping(server, call).await,
        (&Method::GET, "/localapi/v0/derpmap") => Ok(json_response(
            &server.ask(write, |reply| Ask::DerpMap { reply }).await?,
        )),
        // Asked for by the stock client's `status`: nothing is served, here.
        (&Method::GET, "/localapi/v0/serve-config") => Ok(json_response(&json!({}))),
        (&Method::GET, "/localapi/v0/usermetrics") => {
            let mut response = Response::new(full(
                server.ask(write, |reply| Ask::Metrics { reply }).await?,
            ));
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static("text/plain; version=0.0.4"),
            );
            Ok(response)
        }
        (&Method::GET, "/localapi/v0/watch-ipn-bus") => watch_bus(server, call).await,
        (&Method::GET, "/lowroad/v0/netcheck") => Ok(json_response(
            &server.ask(write, |reply| Ask::Netcheck { reply }).await?,
        )),
        (&Method::GET, "/lowroad/v0/counters") => Ok(json_response(
            &server.ask(write, |reply| Ask::Counters { reply }).await?,
        )),
        (&Method::GET, "/lowroad/v0/flows") => flows(server, call).await,
        _ => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            &format!("{} {} does not exist in this agent", call.method, call.path),
        )),
    }
}

async fn whois(server: &Server, call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let text = call.parameter("addr").unwrap_or_default();
    let who = parse_who(&text)
        .ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "invalid 'addr' parameter"))?;
    match server
        .ask(call.may_write, |reply| Ask::WhoIs { who, reply })
        .await?
    {
        Some(found) => Ok(json_response(&found)),
        None => Err(Refusal::new(StatusCode::NOT_FOUND, "no match for IP:port")),
    }
}

fn parse_who(text: &str) -> Option<Who> {
    if let Ok(ip) = text.parse() {
        return Some(Who::Address(ip));
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return Some(Who::Address(address.ip()));
    }
    text.parse().ok().map(Who::Key)
}

async fn set(server: &Server, call: &Call<'_>, change: Change) -> Result<Response<Body>, Refusal> {
    match server
        .ask(call.may_write, |reply| Ask::Set { change, reply })
        .await?
    {
        Ok(prefs) => Ok(json_response(&prefs)),
        Err(why) => Err(Refusal::new(StatusCode::BAD_REQUEST, &why)),
    }
}

/// Stock clients ask whether preferences would do before they set them.
fn check(call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let verdict = Change::from_whole_json(&call.json()?).and_then(|mut change| change.validate());
    Ok(json_response(&match verdict {
        Ok(()) => json!({}),
        Err(why) => json!({ "Error": why.to_string() }),
    }))
}

/// The stock client's `ipn.Options`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartOptions {
    #[serde(deserialize_with = "AuthKey::deserialize_some")]
    auth_key: Option<AuthKey>,
    update_prefs: Option<Value>,
}

async fn start(server: &Server, call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let options: StartOptions = if call.body.is_empty() {
        StartOptions::default()
    } else {
        call.json()?
    };
    let change = match &options.update_prefs {
        Some(prefs) => Change::from_whole_json(prefs)
            .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, &error.to_string()))?,
        None => Change::default(),
    };
    done(
        server
            .ask(call.may_write, |reply| Ask::Start {
                auth_key: options.auth_key,
                change,
                reply,
            })
            .await?,
    )
}

async fn up(server: &Server, call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let request: UpRequest = call.json()?;
    let (progress, steps) = mpsc::channel(PROGRESS_QUEUE);
    server
        .send(
            call.may_write,
            Ask::Up {
                request: Box::new(request),
                progress,
            },
        )
        .await?;
    let stream = stream::unfold(steps, |mut steps| async move {
        let step: Progress = steps.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(line(&step))), steps))
    });
    Ok(Response::new(BodyExt::boxed(StreamBody::new(stream))))
}

async fn ping(server: &Server, call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let bad = |why: &str| Refusal::new(StatusCode::BAD_REQUEST, why);
    let ip = call
        .parameter("ip")
        .and_then(|ip| ip.parse().ok())
        .ok_or_else(|| bad("invalid 'ip' parameter"))?;
    let kind = call
        .parameter("type")
        .ok_or_else(|| bad("missing 'type' parameter"))?
        .parse()
        .map_err(|why: String| bad(&why))?;
    let ask = |reply| Ask::Ping { ip, kind, reply };
    Ok(json_response(&server.ask(call.may_write, ask).await?))
}

fn done(result: Result<(), String>) -> Result<Response<Body>, Refusal> {
    match result {
        Ok(()) => {
            let mut response = Response::new(full(""));
            *response.status_mut() = StatusCode::NO_CONTENT;
            Ok(response)
        }
        Err(why) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, &why)),
    }
}

/// JSON lines: those at hand, then those that come.
fn lines<T: Serialize>(
    first: &[T],
    rest: impl Stream<Item = Bytes> + Send + Sync + 'static,
) -> Response<Body> {
    let first = first.iter().map(line).collect::<Vec<_>>().concat();
    // An empty frame would end the body.
    let first = (!first.is_empty()).then(|| Bytes::from(first));
    let all = stream::iter(first).chain(rest);
    let frames = all.map(|line| Ok::<_, Infallible>(Frame::data(line)));
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}

async fn flows(server: &Server, call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let ask = |reply| Ask::Flows { reply };
    let (recent, rest) = server.ask(call.may_write, ask).await?;
    let follow = call.parameter("follow").as_deref() == Some("true");
    // A reader that is too slow misses some.
    let rest = stream::unfold(follow.then_some(rest), |rest| async move {
        let mut rest = rest?;
        loop {
            match rest.recv().await {
                Ok(flow) => return Some((line(&flow), Some(rest))),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    Ok(lines(&recent, rest))
}

async fn watch_bus(server: &Server, call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let mask = watch::read(call.parameter("mask").as_deref())?;
    let ask = |reply| Ask::Watch { mask, reply };
    let (first, watcher) = server.ask(call.may_write, ask).await?;
    let rest = stream::unfold(watcher, |mut watcher| async move {
        let notification = watcher.next().await?;
        Some((line(&*notification), watcher))
    });
    Ok(lines(&first, rest))
}

fn line(value: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(value)
        .unwrap_or_else(|error| json!({"error": error.to_string()}).to_string().into_bytes());
    text.push(b'\n');
    text.into()
}

/// Percent-encoding.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_unescaped() {
        assert_eq!(unescape("%5Bfd7a%3A%3A1%5D%3A22"), "[fd7a::1]:22");
        assert_eq!(unescape("%zz%"), "%zz%");
    }

    #[test]
    fn whois_takes_addresses_with_and_without_a_port_and_node_keys() {
        assert_eq!(
            parse_who("100.64.0.1"),
            Some(Who::Address("100.64.0.1".parse().unwrap()))
        );
        assert_eq!(
            parse_who("[fd7a::1]:22"),
            Some(Who::Address("fd7a::1".parse().unwrap()))
        );
        assert!(matches!(
            parse_who(&format!("nodekey:{}", "0".repeat(64))),
            Some(Who::Key(_))
        ));
        assert_eq!(parse_who("nobody"), None);
    }
}
