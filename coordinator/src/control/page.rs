//! The few pages for browsers and probes.

use hyper::{HeaderMap, Response, StatusCode, header};

use super::body::{Body, respond};
use crate::state::Waiting;

const HTML: &str = "text/html; charset=utf-8";

pub fn front() -> Response<Body> {
    respond(
        StatusCode::OK,
        "text/plain; charset=utf-8",
        "This is a lowroad coordination server. Join with: lowroad up --login-server=<this URL>\n",
    )
}

/// The page behind an AuthURL. `id` comes from the URL, so it is shown only if it is one of ours.
pub fn register(id: &str, waiting: Option<&Waiting>) -> Response<Body> {
    let Some(waiting) = waiting else {
        let text = "<p>Nobody waits here. The page may have expired, or the machine may be in already. Run <code>up</code> on the machine again for a new one.</p>";
        return html(StatusCode::NOT_FOUND, text);
    };
    let (hostname, os) = (escaped(&waiting.hostname), escaped(&waiting.os));
    let remote = waiting.remote;
    let text = format!(
        "<p>A machine waits to join this tailnet. It asks from {remote}, and says that it is called <b>{hostname}</b> and runs {os}. To let it in, an administrator runs on the server:</p>\n\
         <pre>lowroad-coordinator nodes approve {id} --user NAME</pre>\n\
         <p>If the machine isn't yours, do nothing.</p>"
    );
    html(StatusCode::OK, &text)
}

/// What a stranger calls himself, as text and not too long.
fn escaped(text: &str) -> String {
    const LONGEST: usize = 64;
    let mut out = String::new();
    for c in text.chars().take(LONGEST) {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ' => out.push(c),
            // Such as those that turn the direction of what follows.
            _ => out.push('?'),
        }
    }
    if out.is_empty() {
        out.push_str("(nothing)");
    }
    out
}

fn html(status: StatusCode, content: &str) -> Response<Body> {
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>lowroad</title>\
         <meta name=\"viewport\" content=\"width=device-width\"></head>\n\
         <body style=\"font-family: sans-serif; max-width: 40em; margin: 3em auto; padding: 0 1em\">\n<h1>lowroad</h1>\n{content}\n</body></html>\n"
    );
    let mut response = respond(status, HTML, page);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        header::HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    response
}

/// HTTPS latency probe of clients that cannot use UDP.
pub fn probe() -> Response<Body> {
    let mut response = respond(StatusCode::OK, "text/plain; charset=utf-8", "");
    response.headers_mut().insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        header::HeaderValue::from_static("*"),
    );
    response
}

/// Captive portal check (protocol.md 2.1): the challenge comes back, which a portal would not do.
pub fn no_content(headers: &HeaderMap) -> Response<Body> {
    let mut response = Response::builder()
        .status(StatusCode::NO_CONTENT)
        .body(Body::default())
        .expect("all parts are valid");
    let out = response.headers_mut();
    out.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static(
            "no-cache, no-store, must-revalidate, no-transform, max-age=0",
        ),
    );
    let challenge = headers
        .get("X-Tailscale-Challenge")
        .and_then(|value| value.to_str().ok());
    let is_plain = |text: &&str| {
        text.len() <= 64
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b".-_:".contains(&b))
    };
    if let Some(challenge) = challenge.filter(is_plain)
        && let Ok(value) = header::HeaderValue::from_str(&format!("response {challenge}"))
    {
        out.insert("X-Tailscale-Response", value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_cannot_be_markup() {
        assert_eq!(
            escaped("<script>alert('x')&\"\u{202e}\n"),
            "&lt;script&gt;alert(&#39;x&#39;)&amp;&quot;??"
        );
        assert_eq!(escaped(""), "(nothing)");
        assert_eq!(escaped(&"x".repeat(1000)).len(), 64);
    }
}
