//! Relays that mean harm, each in its own way.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    future::pending,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use lowroad_wire::{
    Kind, classify,
    derp::{self, Codec, Frame, ServerInfo},
    key::{NodePrivate, NodePublic},
    stun,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::codec::{Decoder as _, Encoder as _};

use crate::{Args, member::head};

const HEAD: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n";
const STUN_PORT: u16 = 3478;
/// For what never ends, but for the scenario.
const BURST: usize = 64 << 20;

/// Of the relay `changing`: each how many-th packet of WireGuard gets a bit changed (0: none), as the file `mode` says, how many came,
/// and how many were changed, as it says in `changed`.
static CHANGE_EACH: AtomicU64 = AtomicU64::new(0);
static CARRIED: AtomicU64 = AtomicU64::new(0);
static CHANGED: AtomicU64 = AtomicU64::new(0);

/// How many bytes each relay has attacked with, as the file `sent` says, a line each: beyond what any relay says.
static SENT: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

type Clients = Arc<Mutex<HashMap<NodePublic, mpsc::Sender<Bytes>>>>;

/// `modes=A,B,…`: one relay each, on the ports from that of `listen=` on. Writes `pin` into `dir=`, and for each mode
/// `accepted-MODE`, which counts connections.
pub async fn run(args: &Args) -> Result<()> {
    let address: SocketAddr = args.get("listen")?;
    let dir = PathBuf::from(args.text("dir")?);
    let key = rcgen::KeyPair::generate()?;
    let name = address.ip().to_string();
    let certificate = rcgen::CertificateParams::new(vec![name])?.self_signed(&key)?;
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Named, because another crate of the build may bring another.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)?;
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let mut tasks = JoinSet::new();
    for (number, mode) in args.text("modes")?.split(',').enumerate() {
        let port = address.port() + u16::try_from(number)?;
        let listener = TcpListener::bind((address.ip(), port)).await?;
        let counter = dir.join(format!("accepted-{mode}"));
        tasks.spawn(accept(listener, acceptor.clone(), mode.to_owned(), counter));
    }
    tasks.spawn(follow(dir.clone()));
    tasks.spawn(answer_stun(address));
    let digest = Sha256::digest(certificate.der());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    write(&dir.join("pin"), &format!("sha256-raw:{digest}"))?;
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Beside the relays, so that a node finds them near.
async fn answer_stun(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind((address.ip(), STUN_PORT)).await?;
    let mut buffer = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        if let Ok(number) = stun::parse_request(&buffer[..length]) {
            let _ = socket.send_to(&stun::response(number, from), from).await;
        }
    }
}

async fn follow(dir: PathBuf) -> Result<()> {
    loop {
        let mode = fs::read_to_string(dir.join("mode"))?;
        CHANGE_EACH.store(mode.parse().unwrap_or(0), Ordering::Relaxed);
        write(
            &dir.join("changed"),
            &CHANGED.load(Ordering::Relaxed).to_string(),
        )?;
        let sent: String = lock(&SENT)
            .iter()
            .map(|(how, bytes)| format!("{how} {bytes}\n"))
            .collect();
        write(&dir.join("sent"), &sent)?;
        sleep(Duration::from_millis(10)).await;
    }
}

/// One bit of a packet of WireGuard, any but those that say what kind of message it is.
fn change(packet: Bytes) -> Bytes {
    let each = CHANGE_EACH.load(Ordering::Relaxed);
    let number = CARRIED.fetch_add(1, Ordering::Relaxed);
    if each == 0
        || !number.is_multiple_of(each)
        || classify(&packet) != Kind::WireGuard
        || packet.len() < 32
    {
        return packet;
    }
    CHANGED.fetch_add(1, Ordering::Relaxed);
    let mut changed = packet.to_vec();
    let at = rand::random_range(4..changed.len());
    changed[at] ^= 1 << rand::random_range(0..8);
    changed.into()
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    how: String,
    counter: PathBuf,
) -> Result<()> {
    let clients = Clients::default();
    let mut accepted = 0u64;
    loop {
        write(&counter, &accepted.to_string())?;
        let (stream, _) = listener.accept().await?;
        accepted += 1;
        let (acceptor, clients, how) = (acceptor.clone(), clients.clone(), how.clone());
        tokio::spawn(async move {
            // How it ends is the victim's affair.
            let _ = serve(stream, acceptor, &clients, &how).await;
        });
    }
}

fn sent(how: &str, bytes: usize) {
    *lock(&SENT).entry(how.to_owned()).or_default() += bytes as u64;
}

/// In one step: others read it at any time.
fn write(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, path)?)
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    clients: &Clients,
    how: &str,
) -> Result<()> {
    match how {
        "close" => return Ok(()),
        "silent" => return pending().await,
        _ => {}
    }
    let mut stream = acceptor.accept(stream).await?;
    head(&mut stream).await?;
    match how {
        "endless-head" => return endless(&mut stream, how, b"X-Header: x\r\n").await,
        "no-answer" => return pending().await,
        _ => stream.write_all(HEAD).await?,
    }
    match how {
        "garbage" => {
            let noise: Vec<u8> = (0..1 << 20).map(|_| rand::random()).collect();
            endless(&mut stream, how, &noise).await
        }
        "huge-length" => {
            stream.write_all(&[1, 0xff, 0xff, 0xff, 0xff]).await?;
            endless(&mut stream, how, &[0; 4096]).await
        }
        "trickle" => {
            let mut hello = BytesMut::new();
            Codec::server().encode(Frame::ServerKey(server_key().public()), &mut hello)?;
            for byte in hello {
                stream.write_all(&[byte]).await?;
                sent(how, 1);
                sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        }
        _ => greeted(stream, clients, how).await,
    }
}

async fn endless(stream: &mut TlsStream<TcpStream>, how: &str, bytes: &[u8]) -> Result<()> {
    let mut length = 0;
    while length < BURST {
        // A victim that ends the connection at the first of them has got it.
        for piece in bytes.chunks(4096) {
            stream.write_all(piece).await?;
            sent(how, piece.len());
        }
        length += bytes.len();
    }
    Ok(())
}

fn server_key() -> NodePrivate {
    NodePrivate::from_random([0x77; 32])
}

async fn frame(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> Result<Frame> {
    loop {
        if let Some(frame) = Codec::server().decode(buffer)? {
            return Ok(frame);
        }
        if stream.read_buf(buffer).await? == 0 {
            bail!("closed");
        }
    }
}

async fn greeted(mut stream: TlsStream<TcpStream>, clients: &Clients, how: &str) -> Result<()> {
    let (server, mut out, mut buffer) = (server_key(), BytesMut::new(), BytesMut::new());
    Codec::server().encode(Frame::ServerKey(server.public()), &mut out)?;
    stream.write_all(&out).await?;
    let Frame::ClientInfo { key, .. } = frame(&mut stream, &mut buffer).await? else {
        bail!("no client");
    };
    out.clear();
    let info = derp::server_info(&server, &key, rand::random(), &ServerInfo::default());
    Codec::server().encode(info, &mut out)?;
    stream.write_all(&out).await?;
    let (sender, mut packets) = mpsc::channel(256);
    lock(clients).insert(key, sender);
    let (mut reading, mut writing) = tokio::io::split(stream);
    let (others, changes) = (clients.clone(), how == "changing");
    let forward = async move {
        loop {
            if let Frame::SendPacket { to, packet } = frame(&mut reading, &mut buffer).await? {
                let target = lock(&others).get(&to).cloned();
                let packet = if changes { change(packet) } else { packet };
                let mut out = BytesMut::new();
                derp::put_recv_packet(&mut out, &key, &packet)?;
                if let Some(target) = target {
                    let _ = target.try_send(out.freeze());
                }
            }
        }
    };
    let attack = async move {
        loop {
            let Some(bytes) = attack_frame(how) else {
                match packets.recv().await {
                    Some(bytes) => writing.write_all(&bytes).await?,
                    None => return Ok(()),
                }
                continue;
            };
            writing.write_all(&bytes).await?;
            sent(how, bytes.len());
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        ended = forward => ended,
        ended = attack => ended,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of a relay that greets as it should, and then floods. `None`: forwards packets like a good one.
fn attack_frame(how: &str) -> Option<Bytes> {
    let mut out = BytesMut::new();
    let packet: Vec<u8> = (0..rand::random_range(32..1200))
        .map(|_| rand::random())
        .collect();
    match how {
        // Packets of keys that nobody knows; some begin like a first contact.
        "unknown-keys" => {
            for kind in 0..4 {
                let mut packet = packet.clone();
                packet[..4].copy_from_slice(&[kind, 0, 0, 0]);
                packet.resize(if kind == 1 { 148 } else { packet.len() }, 0);
                let from = NodePublic::from_bytes(rand::random());
                derp::put_recv_packet(&mut out, &from, &packet).ok()?;
            }
        }
        "gone" => {
            for _ in 0..20 {
                out.put_slice(&[8, 0, 0, 0, 33]);
                out.put_slice(&rand::random::<[u8; 32]>());
                out.put_u8(1);
            }
        }
        "pings" => {
            for _ in 0..20 {
                out.put_slice(&[0x12, 0, 0, 0, 8]);
                out.put_slice(&rand::random::<[u8; 8]>());
            }
        }
        "health" => {
            let text = "\u{1b}]0;x\u{7}".repeat(1000);
            out.put_u8(0x14);
            out.put_u32(text.len() as u32);
            out.put_slice(text.as_bytes());
        }
        "large-frames" => {
            out.put_u8(0x40);
            out.put_u32(1 << 20);
            out.put_bytes(0, 1 << 20);
        }
        _ => return None,
    }
    Some(out.freeze())
}
