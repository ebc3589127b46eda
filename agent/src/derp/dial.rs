//! From a region's nodes to a greeted connection.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use lowroad_wire::{
    control::DerpNode,
    derp::{self, ClientInfo, Codec, Frame, ServerInfo},
};
use rustls_pki_types::ServerName;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, lookup_host},
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::codec::{Decoder as _, Encoder as _};
use tracing::debug;

use super::Shared;
use crate::tls::{TlsError, Verification};

/// A server's HTTP response is no longer.
const MAX_HEAD: usize = 8 << 10;
/// What is sent and not acknowledged for so long means a dead connection, whatever TCP hopes.
const USER_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("the region has no relay to connect to")]
    NoNodes,
    #[error("cannot reach relay {host}: {source}")]
    Connect {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "relay {host} is not trusted: {source}; is its issuer among the system's roots or in SSL_CERT_FILE, or its pin in the relay map?"
    )]
    Certificate {
        host: String,
        #[source]
        source: rustls::Error,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("relay {host} does not speak DERP: {why}")]
    Upgrade { host: String, why: String },
    #[error("the relay's greeting failed: {0}")]
    Greeting(#[from] lowroad_wire::Error),
    #[error("no connection within {0:.1?}")]
    Timeout(Duration),
}

/// A greeted connection.
#[derive(Debug)]
pub struct Greeted {
    pub stream: TlsStream<TcpStream>,
    /// What was read beyond the greeting.
    pub leftover: BytesMut,
    pub info: ServerInfo,
}

/// Tries a region's nodes in order until one greets us.
pub async fn connect(shared: &Shared, nodes: &[DerpNode]) -> Result<Greeted, DialError> {
    let limit = shared.timings.connect;
    timeout(limit, connect_any(shared, nodes))
        .await
        .unwrap_or(Err(DialError::Timeout(limit)))
}

async fn connect_any(shared: &Shared, nodes: &[DerpNode]) -> Result<Greeted, DialError> {
    let until = Instant::now() + shared.timings.connect;
    let mut failure = DialError::NoNodes;
    let relays: Vec<&DerpNode> = nodes.iter().filter(|node| !node.stun_only).collect();
    let ideal = relays.first().copied();
    for (at, &node) in relays.iter().enumerate() {
        let ideal = ideal
            .filter(|ideal| ideal.name != node.name)
            .map(|ideal| ideal.name.as_str());
        let connecting = connect_node(shared, node, ideal);
        let connected = if at + 1 == relays.len() {
            connecting.await
        } else {
            // One that is silent leaves half of the time that is left to those after it.
            let patience = until.saturating_duration_since(Instant::now()) / 2;
            let silent = |_| Err(DialError::Timeout(patience));
            timeout(patience, connecting).await.unwrap_or_else(silent)
        };
        match connected {
            Ok(greeted) => return Ok(greeted),
            Err(error) => {
                debug!(node = %node.name, %error, "relay not reached");
                failure = error;
            }
        }
    }
    Err(failure)
}

async fn connect_node(
    shared: &Shared,
    node: &DerpNode,
    ideal: Option<&str>,
) -> Result<Greeted, DialError> {
    let host = node.host_name.as_str();
    let failed = |source| DialError::Connect {
        host: host.to_owned(),
        source,
    };
    let config = shared.tls.client(&Verification::of_relay(node)?)?;
    let name =
        ServerName::try_from(host.to_owned()).map_err(|error| failed(io::Error::other(error)))?;
    let dial = timeout(shared.timings.dial, dial_families(shared, node)).await;
    let transport = dial
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    let mut stream = TlsConnector::from(config)
        .connect(name, transport)
        .await
        .map_err(|error| {
            let tls = error.get_ref().and_then(|error| error.downcast_ref());
            match tls {
                Some(source @ rustls::Error::InvalidCertificate(_)) => DialError::Certificate {
                    host: host.to_owned(),
                    source: source.clone(),
                },
                _ => failed(error),
            }
        })?;
    let mut buffer = BytesMut::with_capacity(MAX_HEAD);
    upgrade(&mut stream, host, ideal, &mut buffer).await?;
    let info = greet(shared, &mut stream, &mut buffer).await?;
    Ok(Greeted {
        stream,
        leftover: buffer,
        info,
    })
}

/// Both families at once; the first that answers wins.
async fn dial_families(shared: &Shared, node: &DerpNode) -> io::Result<TcpStream> {
    let port = node.derp_port();
    let mut attempts = FuturesUnordered::new();
    let [v4, v6] = [(&node.ipv4, true), (&node.ipv6, false)]
        .map(|(text, v4)| Family::of(text, |address| address.is_ipv4() == v4));
    for family in [&v4, &v6] {
        if let Family::Address(address) = family {
            attempts.push(dial(SocketAddr::new(*address, port), shared.fwmark));
        }
    }
    if matches!(v4, Family::Resolve) || matches!(v6, Family::Resolve) {
        let wanted = |address: &SocketAddr| {
            let family = if address.is_ipv4() { &v4 } else { &v6 };
            matches!(family, Family::Resolve)
        };
        match lookup_host((node.host_name.as_str(), port)).await {
            Ok(addresses) => {
                addresses
                    .filter(wanted)
                    .for_each(|address| attempts.push(dial(address, shared.fwmark)));
            }
            // The other family may have an address.
            Err(error) if attempts.is_empty() => return Err(error),
            Err(_) => {}
        }
    }
    let mut failure = io::Error::new(io::ErrorKind::AddrNotAvailable, "it has no address");
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// What a DERPMap says of a node's address of one family.
enum Family {
    Resolve,
    Address(IpAddr),
    Disabled,
}

impl Family {
    fn of(text: &str, fits: impl Fn(&IpAddr) -> bool) -> Self {
        match text.parse() {
            Ok(address) if fits(&address) => Self::Address(address),
            Err(_) if text.is_empty() => Self::Resolve,
            _ => Self::Disabled,
        }
    }
}

async fn dial(address: SocketAddr, fwmark: u32) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // Without the privilege there is no tunnel device either whose routes the mark has to escape.
    if fwmark != 0
        && let Err(error) = SockRef::from(&socket).set_mark(fwmark)
    {
        debug!(%error, "cannot mark the relay's socket");
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(stream)
}

async fn upgrade(
    stream: &mut TlsStream<TcpStream>,
    host: &str,
    ideal: Option<&str>,
    buffer: &mut BytesMut,
) -> Result<(), DialError> {
    let failed = |why: String| DialError::Upgrade {
        host: host.to_owned(),
        why,
    };
    // Names come from the control server: no header may be smuggled in by one.
    let clean = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !clean(host) {
        return Err(failed("its name is malformed".to_owned()));
    }
    let (path, protocol) = (derp::PATH, derp::UPGRADE);
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n"
    );
    if let Some(ideal) = ideal.filter(|ideal| clean(ideal)) {
        request.push_str(&format!("Ideal-Node: {ideal}\r\n"));
    }
    request.push_str("\r\n");
    let broke = |error: io::Error| failed(error.to_string());
    stream.write_all(request.as_bytes()).await.map_err(broke)?;
    stream.flush().await.map_err(broke)?;
    let end = loop {
        if let Some(start) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break start + 4;
        }
        if buffer.len() >= MAX_HEAD {
            return Err(failed("its HTTP response does not end".to_owned()));
        }
        if stream.read_buf(buffer).await.map_err(broke)? == 0 {
            return Err(failed("it closed the connection".to_owned()));
        }
    };
    let status = buffer[..]
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    if status.get(..13) != Some(b"HTTP/1.1 101 ".as_slice()) {
        let status: String = String::from_utf8_lossy(&status[..status.len().min(80)])
            .escape_debug()
            .collect();
        return Err(failed(format!("it answers `{status}`")));
    }
    buffer.advance(end);
    Ok(())
}

async fn greet(
    shared: &Shared,
    stream: &mut TlsStream<TcpStream>,
    buffer: &mut BytesMut,
) -> Result<ServerInfo, DialError> {
    let mut codec = Codec::client();
    let server = loop {
        if let Frame::ServerKey(key) = next_frame(&mut codec, stream, buffer).await? {
            break key;
        }
    };
    let mut hello = BytesMut::new();
    let info = ClientInfo {
        can_ack_pings: true,
        ..Default::default()
    };
    codec.encode(
        derp::client_info(&shared.node, &server, rand::random(), &info),
        &mut hello,
    )?;
    stream
        .write_all(&hello)
        .await
        .map_err(lowroad_wire::Error::Io)?;
    stream.flush().await.map_err(lowroad_wire::Error::Io)?;
    loop {
        if let Frame::ServerInfo { sealed } = next_frame(&mut codec, stream, buffer).await? {
            return Ok(derp::open_server_info(&shared.node, &server, &sealed)?);
        }
    }
}

async fn next_frame(
    codec: &mut Codec,
    stream: &mut TlsStream<TcpStream>,
    buffer: &mut BytesMut,
) -> Result<Frame, lowroad_wire::Error> {
    loop {
        if let Some(frame) = codec.decode(buffer)? {
            return Ok(frame);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}
