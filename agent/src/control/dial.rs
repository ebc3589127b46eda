//! Reaching the login server: addresses, TCP with the agent's mark, TLS, the server's key.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, Uri, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use lowroad_wire::{
    control::{CAPABILITY_VERSION, OverTlsPublicKey},
    key::MachinePublic,
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream, lookup_host},
    time::{sleep, timeout},
};
use tracing::debug;

use super::ControlError;

/// TCP and TLS together, as the stock client's.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The next address is tried beside a slow one after this time.
const STAGGER: Duration = Duration::from_millis(250);
/// How long the body of an error may take.
const ERROR_TEXT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer of `/key`.
const KEY_LIMIT: usize = 64 << 10;

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A login server and how this host reaches it.
#[derive(Clone)]
pub struct Server {
    pub https: bool,
    pub host: String,
    pub port: u16,
    /// What stands in the Host header, and in messages.
    pub authority: String,
    pub fwmark: u32,
    pub tls: Arc<rustls::ClientConfig>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url())
    }
}

impl Server {
    /// Takes an `http` or `https` URL; its path is ignored, as stock clients do.
    pub fn new(
        url: &str,
        fwmark: u32,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self, ControlError> {
        let bad = || ControlError::Resolve {
            host: url.to_owned(),
            why: "it is not an http or https URL".to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        Ok(Self {
            https,
            host: authority
                .host()
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: authority.port_u16().unwrap_or(if https { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            fwmark,
            tls,
        })
    }

    pub fn url(&self) -> String {
        format!(
            "{}://{}",
            if self.https { "https" } else { "http" },
            self.authority
        )
    }

    /// A connection on which HTTP/1.1 is spoken.
    pub async fn connect(&self) -> Result<Box<dyn Io>, ControlError> {
        let late = |_| ControlError::Connect {
            server: self.url(),
            why: format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        };
        timeout(CONNECT_TIMEOUT, self.connect_patiently())
            .await
            .map_err(late)?
    }

    async fn connect_patiently(&self) -> Result<Box<dyn Io>, ControlError> {
        let tcp = self.tcp().await?;
        if !self.https {
            return Ok(Box::new(tcp));
        }
        let tls_error = |why: String| ControlError::Tls {
            server: self.url(),
            why,
        };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| tls_error(error.to_string()))?;
        match tokio_rustls::TlsConnector::from(self.tls.clone())
            .connect(name, tcp)
            .await
        {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error)
                if error
                    .get_ref()
                    .is_some_and(|inner| inner.is::<rustls::Error>()) =>
            {
                Err(tls_error(error.to_string()))
            }
            Err(error) => Err(ControlError::Connect {
                server: self.url(),
                why: error.to_string(),
            }),
        }
    }

    async fn tcp(&self) -> Result<TcpStream, ControlError> {
        let unresolved = |why: String| ControlError::Resolve {
            host: self.host.clone(),
            why,
        };
        let addresses: Vec<_> = lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(|error| unresolved(error.to_string()))?
            .collect();
        if addresses.is_empty() {
            return Err(unresolved("the name has no address".to_owned()));
        }
        let mut attempts: FuturesUnordered<_> = addresses
            .into_iter()
            .zip(0u32..)
            .map(|(address, turn)| async move {
                sleep(STAGGER * turn).await;
                marked_tcp(address, self.fwmark).await
            })
            .collect();
        let mut last = None;
        while let Some(attempt) = attempts.next().await {
            match attempt {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        let why = last.map_or_else(|| "no address".to_owned(), |error| plain(&error));
        Err(ControlError::Connect {
            server: self.url(),
            why,
        })
    }

    /// `GET /key`: the server's Noise key, which everything else rests on.
    pub async fn fetch_key(&self) -> Result<MachinePublic, ControlError> {
        let foreign = |why: &str| ControlError::NotTailnet {
            server: self.url(),
            why: why.to_owned(),
        };
        let mut sender = self.http1().await?;
        let request = Request::get(format!("/key?v={CAPABILITY_VERSION}"))
            .header("Host", &self.authority)
            .body(Empty::<Bytes>::new())
            .map_err(|error| ControlError::Broken(error.to_string()))?;
        let answer = timeout(CONNECT_TIMEOUT, async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((
                status,
                Limited::new(response.into_body(), KEY_LIMIT)
                    .collect()
                    .await,
            ))
        });
        let (status, body) = match answer.await {
            Err(_) => {
                return Err(ControlError::Connect {
                    server: self.url(),
                    why: "it accepts connections but does not answer".to_owned(),
                });
            }
            Ok(Err(error)) if error.is_parse() => return Err(foreign("it does not speak HTTP")),
            Ok(Err(error)) => {
                return Err(ControlError::Connect {
                    server: self.url(),
                    why: error.to_string(),
                });
            }
            Ok(Ok(answer)) => answer,
        };
        if status.is_server_error() {
            return Err(ControlError::Status {
                request: "/key",
                status,
                text: String::new(),
            });
        }
        if status != StatusCode::OK {
            return Err(foreign(&format!("it answers {status} to /key")));
        }
        let body = body
            .map_err(|_| foreign("its answer to /key is too long"))?
            .to_bytes();
        let keys: OverTlsPublicKey = serde_json::from_slice(&body)
            .map_err(|_| foreign("its answer to /key is something else"))?;
        keys.public_key
            .filter(|key| !key.is_zero())
            .ok_or_else(|| foreign("it has no key for this version of the protocol"))
    }

    /// An HTTP/1.1 connection that can be upgraded.
    pub async fn http1<B>(&self) -> Result<http1::SendRequest<B>, ControlError>
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let io = self.connect().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(io))
            .await
            .map_err(|error| ControlError::Broken(error.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "an HTTP connection to the login server ended");
            }
        });
        Ok(sender)
    }
}

/// The beginning of an error's body, for a message.
pub async fn error_text(body: Incoming) -> String {
    const SHOWN: usize = 200;
    // A body that doesn't end must not hold up what the status alone says.
    let body = timeout(ERROR_TEXT_TIMEOUT, Limited::new(body, 16 << 10).collect()).await;
    let body = match body {
        Ok(Ok(body)) => body.to_bytes(),
        _ => Bytes::new(),
    };
    let text: String = String::from_utf8_lossy(&body)
        .chars()
        .filter(|c| !c.is_control() || *c == ' ')
        .take(SHOWN)
        .collect();
    text.trim().to_owned()
}

/// A TCP connection that carries the agent's mark, so that an exit node's routes don't catch it.
async fn marked_tcp(address: SocketAddr, fwmark: u32) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Err(error) = socket2::SockRef::from(&socket).set_mark(fwmark) {
        debug!(%error, "cannot mark a socket");
    }
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// The system's words without "(os error 111)".
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or(&text)
        .to_ascii_lowercase()
}
