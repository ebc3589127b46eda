//! Answers to the control server's ping requests (protocol.md 1.10): HEAD, and `/echo` by c2n.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Method, Request, Uri};
use lowroad_wire::control::PingRequest;

use super::{ControlError, channel::Requests, dial::Server};

pub async fn answer(
    server: &Server,
    requests: &Requests,
    request: &PingRequest,
) -> Result<(), ControlError> {
    let uri: Uri = request
        .url
        .parse()
        .map_err(|_| ControlError::Broken("a ping request without a URL".to_owned()))?;
    let path = uri
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    match request.types.as_str() {
        "" if request.url_is_noise => requests
            .request(Method::HEAD, &path, &[], Bytes::new())
            .await
            .map(drop),
        "" => head(server, &uri, &path).await,
        "c2n" => {
            let payload = STANDARD
                .decode(&request.payload)
                .map_err(|_| ControlError::Broken("a c2n request that is not base64".to_owned()))?;
            requests
                .request(Method::POST, &path, &[], c2n(&payload).into())
                .await
                .map(drop)
        }
        other => Err(ControlError::Broken(format!(
            "pings of type {other:?} cannot be answered yet"
        ))),
    }
}

/// Only the login server itself is asked: whoever speaks for it must not make us a client of other hosts.
async fn head(server: &Server, uri: &Uri, path: &str) -> Result<(), ControlError> {
    let host = uri
        .host()
        .unwrap_or_default()
        .trim_start_matches('[')
        .trim_end_matches(']');
    if !host.eq_ignore_ascii_case(&server.host) {
        return Err(ControlError::Broken(format!(
            "a ping request for another host, {host:?}"
        )));
    }
    let mut sender = server.http1().await?;
    let request = Request::head(path)
        .header("Host", &server.authority)
        .body(Empty::<Bytes>::new())
        .map_err(|error| ControlError::Broken(error.to_string()))?;
    sender
        .send_request(request)
        .await
        .map(drop)
        .map_err(|error| ControlError::Broken(error.to_string()))
}

/// Runs a serialised HTTP/1 request and returns the serialised response.
pub fn c2n(request: &[u8]) -> Vec<u8> {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = end.map_or((request, &[][..]), |end| {
        (&request[..end], &request[end + 4..])
    });
    let path = head.split(|b| *b == b' ').nth(1).unwrap_or_default();
    let path = path.split(|b| *b == b'?').next().unwrap_or_default();
    match path {
        b"/echo" => response("200 OK", body),
        _ => response("400 Bad Request", b"unknown c2n path\n"),
    }
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_returns_the_body_and_other_paths_are_unknown() {
        assert_eq!(
            c2n(b"POST /echo HTTP/1.1\r\nHost: x\r\n\r\nhallo"),
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhallo"
        );
        for bad in [&b"GET /update HTTP/1.1\r\n\r\n"[..], b"", b" ", b"\r\n\r\n"] {
            assert!(c2n(bad).starts_with(b"HTTP/1.1 400"));
        }
    }
}
