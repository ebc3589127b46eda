//! Requests on the agent's socket, as any program of the host can make them.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Context, Result, ensure};

use super::super::secs;

/// Sends a request; the answer is still to be read.
pub fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(secs(20)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(stream)
}

/// The code of an answer, whose rest is left unread.
pub fn status_of(stream: UnixStream) -> Result<u16> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let code = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.with_context(|| format!("it answered {line:?}"))
}

/// The whole answer. One without end is read until nothing comes.
pub fn get(socket: &Path, path: &str) -> Result<String> {
    let mut stream = ask(socket, "GET", path, "")?;
    stream.set_read_timeout(Some(secs(3)))?;
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    ensure!(
        text.starts_with("HTTP/1.1 200"),
        "GET {path} was answered by {text:?}"
    );
    Ok(text)
}
