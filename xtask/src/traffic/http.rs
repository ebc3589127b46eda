//! A small HTTP server, and a client: enough to move bytes over TCP and to check each of them.

use std::{
    error::Error,
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::pattern;
use crate::{signals, topology::Namespace};

/// Also how long Ctrl-C may have to wait for us.
const MAX_CONNECT: Duration = Duration::from_secs(10);
const CHUNK: usize = 64 * 1024;

/// Serves `/bytes/<n>`: n bytes of the pattern. Ends when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Listens on every address of `namespace`, of both families.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = namespace
            .enter(|| TcpListener::bind(address))?
            .with_context(|| format!("listen on port {port} in {}", namespace.name()))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        // A client that goes away is no news here; it notices itself.
                        thread::spawn(move || serve(&stream));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Ok(Self { stop })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let length = request
        .strip_prefix("GET /bytes/")
        .and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
    let Some(length) = length else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    for place in (0..length).step_by(CHUNK) {
        stream.write_all(&pattern::bytes(place as u64, CHUNK.min(length - place)))?;
    }
    Ok(())
}

/// There is no connection: none of it has come.
#[derive(Debug)]
pub struct NotConnected(pub io::Error);

impl fmt::Display for NotConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connect: {}", self.0)
    }
}

impl Error for NotConnected {}

/// What came, and how long each part took.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    pub bytes: usize,
    pub connect: Duration,
    pub total: Duration,
}

impl Fetched {
    pub fn megabits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / (self.total - self.connect).as_secs_f64()
    }
}

/// Fetches `/bytes/<bytes>` from inside `namespace` and checks every byte.
pub fn get(
    namespace: &Namespace,
    server: SocketAddr,
    bytes: usize,
    limit: Duration,
) -> Result<Fetched> {
    namespace.enter(|| fetch(server, bytes, limit))?
}

/// Status code of `GET <path>`, asked from inside `namespace`.
pub fn status(namespace: &Namespace, server: SocketAddr, path: &str) -> Result<u16> {
    let answer = page(namespace, server, path)?;
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.with_context(|| format!("{server} answered {answer:?}"))
}

/// The whole answer to `GET <path>`, head included, asked from inside `namespace`.
pub fn page(namespace: &Namespace, server: SocketAddr, path: &str) -> Result<String> {
    namespace.enter(|| {
        let limit = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&server, limit)?;
        stream.set_read_timeout(Some(limit))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })?
}

fn fetch(server: SocketAddr, bytes: usize, limit: Duration) -> Result<Fetched> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&server, limit.min(MAX_CONNECT))
        .map_err(NotConnected)
        .with_context(|| format!("fetch from {server}"))?;
    let connect = start.elapsed();
    stream.set_read_timeout(Some(limit.min(MAX_CONNECT)))?;
    write!(stream, "GET /bytes/{bytes} HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    let mut reader = BufReader::with_capacity(CHUNK, &stream);
    let mut status = String::new();
    reader.read_line(&mut status).context("read the status")?;
    ensure!(status.starts_with("HTTP/1.1 200"), "answered {status}");
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    // In slices from here, so that a signal and the limit are noticed.
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        signals::check()?;
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if let Some(place) = pattern::first_wrong(received as u64, &buffer[..count]) {
                    bail!("byte {place} from {server} is another");
                }
                received += count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < limit => {}
            Err(error) => {
                bail!("after {received} of {bytes} bytes from {server}: {error}");
            }
        }
        ensure!(
            start.elapsed() < limit || received == bytes,
            "{received} of {bytes} bytes from {server} in {} s",
            limit.as_secs()
        );
    }
    ensure!(received == bytes, "{received} of {bytes} bytes came");
    Ok(Fetched {
        bytes,
        connect,
        total: start.elapsed(),
    })
}
