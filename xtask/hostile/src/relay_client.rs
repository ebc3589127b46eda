//! A client of the coordinator's relay, over plain HTTP.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use bytes::BytesMut;
use lowroad_wire::{
    derp::{self, ClientInfo, Codec, Frame},
    key::{NodePrivate, NodePublic},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::codec::{Decoder as _, Encoder as _};

use crate::member::head;

pub struct RelayClient {
    stream: TcpStream,
    codec: Codec,
    buffer: BytesMut,
}

/// The connection after the relay has answered the upgrade.
pub async fn upgraded(server: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let request = "GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let head = head(&mut stream).await?;
    ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
    Ok(stream)
}

impl RelayClient {
    pub async fn connect(server: SocketAddr, node: &NodePrivate) -> Result<Self> {
        let mut client = Self {
            stream: upgraded(server).await?,
            codec: Codec::client(),
            buffer: BytesMut::new(),
        };
        let Frame::ServerKey(key) = client.next().await? else {
            bail!("the relay does not begin with its key");
        };
        let info = ClientInfo::default();
        let hello = derp::client_info(node, &key, rand::random(), &info);
        let mut out = BytesMut::new();
        client.codec.encode(hello, &mut out)?;
        client.write(&out).await?;
        loop {
            if let Frame::ServerInfo { .. } = client.next().await? {
                return Ok(client);
            }
        }
    }

    pub async fn next(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.codec.decode(&mut self.buffer)? {
                return Ok(frame);
            }
            ensure!(
                self.stream.read_buf(&mut self.buffer).await? > 0,
                "the relay closed the connection"
            );
        }
    }

    pub async fn send(&mut self, to: &NodePublic, packet: &[u8]) -> Result<()> {
        let mut out = BytesMut::new();
        derp::put_send_packet(&mut out, to, packet)?;
        self.write(&out).await
    }

    pub async fn send_header(&mut self, kind: u8, length: u32) -> Result<()> {
        let mut header = vec![kind];
        header.extend_from_slice(&length.to_be_bytes());
        self.write(&header).await
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }
}
