//! A relay to test, and clients for it made from the codec.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use lowroad_wire::derp::{ClientInfo, Codec, Frame, ServerInfo, client_info, open_server_info};
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::super::*;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn private(seed: u8) -> NodePrivate {
    NodePrivate::from_random([seed; 32])
}

pub(super) fn public(seed: u8) -> NodePublic {
    private(seed).public()
}

pub(super) fn remote() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1))
}

/// Knows the keys of the seeds 1 to 9.
pub(super) fn server() -> Arc<DerpServer> {
    let known: BTreeSet<NodePublic> = (1..=9).map(public).collect();
    Arc::new(DerpServer::new(private(99), move |key| known.contains(key)))
}

pub(super) struct Client<S> {
    pub(super) framed: Framed<S, Codec>,
}

impl Client<DuplexStream> {
    pub(super) async fn join(server: &Arc<DerpServer>, seed: u8) -> Self {
        Self::join_with_buffer(server, seed, 1 << 20).await
    }

    /// With so many bytes between the server's write and the client's read.
    pub(super) async fn join_with_buffer(
        server: &Arc<DerpServer>,
        seed: u8,
        buffer: usize,
    ) -> Self {
        Self::greet(connect(server, buffer), &private(seed)).await
    }
}

impl Client<TcpStream> {
    pub(super) async fn join_by_tcp(address: SocketAddr, seed: u8) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::greet(stream, &private(seed)).await
    }
}

/// Serves on a port of its own.
pub(super) async fn listen(server: &Arc<DerpServer>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = server.clone();
    tokio::spawn(async move {
        while let Ok((stream, remote)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move { server.serve(stream, remote).await });
        }
    });
    address
}

pub(super) fn connect(server: &Arc<DerpServer>, buffer: usize) -> DuplexStream {
    connect_from(remote(), server, buffer)
}

pub(super) fn connect_from(
    remote: SocketAddr,
    server: &Arc<DerpServer>,
    buffer: usize,
) -> DuplexStream {
    let (near, far) = tokio::io::duplex(buffer);
    let server = server.clone();
    tokio::spawn(async move { server.serve(far, remote).await });
    near
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(super) async fn greet(stream: S, key: &NodePrivate) -> Self {
        let mut framed = Framed::new(stream, Codec::client());
        let Some(Ok(Frame::ServerKey(server))) = framed.next().await else {
            panic!("the server begins with its key");
        };
        let info = client_info(key, &server, [5; 24], &ClientInfo::default());
        framed.send(info).await.unwrap();
        let Some(Ok(Frame::ServerInfo { sealed })) = framed.next().await else {
            panic!("the server answers with its info");
        };
        let info = open_server_info(key, &server, &sealed).unwrap();
        assert_eq!(info, ServerInfo::default());
        Self { framed }
    }

    pub(super) async fn send(&mut self, to: u8, packet: &[u8]) {
        let packet = Bytes::copy_from_slice(packet);
        let frame = Frame::SendPacket {
            to: public(to),
            packet,
        };
        self.framed.send(frame).await.unwrap();
    }

    pub(super) async fn next(&mut self) -> Frame {
        let frame = timeout(PATIENCE, self.framed.next()).await;
        frame.expect("a frame comes").expect("not the end").unwrap()
    }

    pub(super) async fn expect_packet(&mut self, from: u8, packet: &[u8]) {
        let packet = Bytes::copy_from_slice(packet);
        let from = public(from);
        assert_eq!(self.next().await, Frame::RecvPacket { from, packet });
    }

    /// Everything sent so far has been handled when this returns; returns what came before.
    pub(super) async fn settle(&mut self) -> Vec<Frame> {
        self.framed.send(Frame::Ping([7; 8])).await.unwrap();
        let mut before = Vec::new();
        loop {
            match self.next().await {
                Frame::Pong(data) => {
                    assert_eq!(data, [7; 8]);
                    return before;
                }
                frame => before.push(frame),
            }
        }
    }

    pub(super) async fn expect_end(&mut self) {
        let end = async { while let Some(Ok(_)) = self.framed.next().await {} };
        timeout(PATIENCE, end).await.expect("the connection ends");
    }
}
