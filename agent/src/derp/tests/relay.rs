//! A relay for tests: one process's worth of clients, with faults on demand.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use lowroad_wire::{
    control::{DerpNode, RegionId},
    derp::{self, Codec, Frame, GoneReason, ServerInfo},
    disco,
    key::{NodePrivate, NodePublic},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{broadcast, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::codec::{Encoder as _, FramedRead};

pub struct Relay {
    address: SocketAddr,
    certificate: CertificateDer<'static>,
    state: Arc<State>,
}

struct State {
    key: NodePrivate,
    clients: Mutex<HashMap<NodePublic, mpsc::UnboundedSender<Bytes>>>,
    seen: Mutex<Vec<Frame>>,
    /// Greeted so far.
    connections: AtomicUsize,
    refuse: AtomicUsize,
    /// The connections of this moment answer nothing any more.
    mute: Mutex<Arc<AtomicBool>>,
    drop: broadcast::Sender<()>,
}

impl Relay {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (acceptor, certificate) = identity();
        let state = Arc::new(State {
            key: NodePrivate::from_random(rand::random()),
            clients: Mutex::default(),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            refuse: AtomicUsize::new(0),
            mute: Mutex::default(),
            drop: broadcast::channel(4).0,
        });
        let serving = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move { state.accept(stream, acceptor).await });
            }
        });
        Self {
            address,
            certificate,
            state,
        }
    }

    /// As the DERPMap has it: by pin.
    pub fn node(&self, region: RegionId) -> DerpNode {
        pinned("1a", region, self.address, &self.certificate)
    }

    pub fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// How many connections were greeted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    pub fn refuse(&self, attempts: usize) {
        self.state.refuse.store(attempts, Ordering::SeqCst);
    }

    pub fn drop_connections(&self) {
        let _ = self.state.drop.send(());
    }

    /// Connections that are open hear nothing any more; new ones do.
    pub fn mute(&self) {
        std::mem::take(&mut *self.state.mute.lock().unwrap()).store(true, Ordering::SeqCst);
    }

    pub fn say(&self, frame: Frame) {
        let mut out = BytesMut::new();
        Codec::server().encode(frame, &mut out).unwrap();
        self.say_raw(&out);
    }

    pub fn say_raw(&self, bytes: &[u8]) {
        for client in self.state.clients.lock().unwrap().values() {
            let _ = client.send(Bytes::copy_from_slice(bytes));
        }
    }

    /// Until a client has sent such a frame.
    pub async fn saw(&self, fits: impl Fn(&Frame) -> bool) {
        let seen = async {
            while !self.state.seen.lock().unwrap().iter().any(&fits) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(super::PATIENCE, seen)
            .await
            .expect("a client sends the frame");
    }
}

/// A new certificate, and who shows it.
pub fn identity() -> (TlsAcceptor, CertificateDer<'static>) {
    let issued = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    let certificate = issued.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(issued.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), certificate)
}

/// A relay as the DERPMap has it.
pub fn pinned(
    name: &str,
    region: RegionId,
    address: SocketAddr,
    certificate: &CertificateDer<'_>,
) -> DerpNode {
    let pin = hex::encode(Sha256::digest(certificate));
    DerpNode {
        name: name.to_owned(),
        region_id: region,
        host_name: "127.0.0.1".to_owned(),
        cert_name: format!("sha256-raw:{pin}"),
        derp_port: address.port(),
        ..Default::default()
    }
}

/// A port of loopback at which nothing listens.
pub fn unused_port() -> u16 {
    StdListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl State {
    async fn accept(&self, stream: TcpStream, acceptor: TlsAcceptor) {
        let refused = self
            .refuse
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        if refused.is_ok() {
            return;
        }
        let mut dropped = self.drop.subscribe();
        let Ok(mut stream) = acceptor.accept(stream).await else {
            return;
        };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        assert!(head.starts_with(b"GET /derp HTTP/1.1\r\n"));
        let response =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n";
        // In one flight with the greeting, as real servers do.
        let mut out = BytesMut::from(response);
        Codec::server()
            .encode(Frame::ServerKey(self.key.public()), &mut out)
            .unwrap();
        if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        tokio::select! {
            () = self.serve(stream) => {}
            _ = dropped.recv() => {}
        }
    }

    async fn serve(&self, stream: TlsStream<TcpStream>) {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut frames = FramedRead::with_capacity(reader, Codec::server(), 64 << 10);
        let Some(Ok(Frame::ClientInfo { key, sealed })) = frames.next().await else {
            return;
        };
        derp::open_client_info(&self.key, &key, &sealed).unwrap();
        let (sender, mut outgoing) = mpsc::unbounded_channel::<Bytes>();
        let mute = self.mute.lock().unwrap().clone();
        let mut out = BytesMut::new();
        let info = derp::server_info(&self.key, &key, rand::random(), &ServerInfo::default());
        Codec::server().encode(info, &mut out).unwrap();
        let _ = sender.send(out.split().freeze());
        self.clients.lock().unwrap().insert(key, sender.clone());
        self.connections.fetch_add(1, Ordering::SeqCst);
        let write = async {
            let mut batch = Vec::new();
            while outgoing.recv_many(&mut batch, 64).await > 0 {
                for bytes in batch.drain(..) {
                    writer.write_all(&bytes).await?;
                }
                writer.flush().await?;
            }
            std::io::Result::Ok(())
        };
        let read = async {
            while let Some(Ok(frame)) = frames.next().await {
                if !mute.load(Ordering::SeqCst) {
                    self.take(key, frame, &sender);
                }
            }
        };
        tokio::select! {
            _ = write => {}
            () = read => {}
        }
    }

    fn take(&self, from: NodePublic, frame: Frame, sender: &mpsc::UnboundedSender<Bytes>) {
        let mut out = BytesMut::new();
        match frame {
            Frame::SendPacket { to, packet } => {
                let is_disco = disco::looks_like(&packet);
                Codec::server()
                    .encode(Frame::RecvPacket { from, packet }, &mut out)
                    .unwrap();
                if let Some(receiver) = self.clients.lock().unwrap().get(&to) {
                    let _ = receiver.send(out.freeze());
                } else if is_disco {
                    out.clear();
                    let gone = Frame::PeerGone {
                        key: to,
                        reason: GoneReason::NotHere,
                    };
                    Codec::server().encode(gone, &mut out).unwrap();
                    let _ = sender.send(out.freeze());
                }
            }
            Frame::Ping(data) => {
                Codec::server().encode(Frame::Pong(data), &mut out).unwrap();
                let _ = sender.send(out.freeze());
            }
            other => self.seen.lock().unwrap().push(other),
        }
    }
}
