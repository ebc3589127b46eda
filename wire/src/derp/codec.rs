use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::{CLIENT_FRAME_LIMIT, Frame, GoneReason, MAX_PACKET, SERVER_FRAME_LIMIT};
use crate::{
    Error,
    bytes::{Reader, put_endpoint},
    key::NodePublic,
};

const WHAT: &str = "DERP frame";
const HEADER_LEN: usize = 5;
const KEY_LEN: usize = 32;
/// "DERP" and a key.
const MAGIC: [u8; 8] = *b"DERP\xf0\x9f\x94\x91";
/// Health is for people to read.
const MAX_HEALTH: usize = 1 << 10;

const SERVER_KEY: u8 = 0x01;
const CLIENT_INFO: u8 = 0x02;
const SERVER_INFO: u8 = 0x03;
const SEND_PACKET: u8 = 0x04;
const RECV_PACKET: u8 = 0x05;
const KEEP_ALIVE: u8 = 0x06;
const NOTE_PREFERRED: u8 = 0x07;
const PEER_GONE: u8 = 0x08;
const PEER_PRESENT: u8 = 0x09;
const FORWARD_PACKET: u8 = 0x0a;
const WATCH_CONNS: u8 = 0x10;
const CLOSE_PEER: u8 = 0x11;
const PING: u8 = 0x12;
const PONG: u8 = 0x13;
const HEALTH: u8 = 0x14;
const RESTARTING: u8 = 0x15;

/// Room made at once for a frame that has only begun: what a header claims costs nothing until it comes.
const READ_AHEAD: usize = 64 * 1024;

/// Frames of both directions, for `tokio_util::codec`.
#[derive(Clone, Debug)]
pub struct Codec {
    limit: usize,
}

impl Codec {
    /// For a client, with what it takes from servers.
    pub fn client() -> Self {
        Self {
            limit: CLIENT_FRAME_LIMIT,
        }
    }

    /// For a server, with what it takes from clients.
    pub fn server() -> Self {
        Self {
            limit: SERVER_FRAME_LIMIT,
        }
    }
}

impl Decoder for Codec {
    type Item = Frame;
    type Error = Error;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Error> {
        let Some(&[kind, a, b, c, d]) = input.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.limit {
            return Err(Error::Long {
                what: WHAT,
                limit: self.limit,
                got: length,
            });
        }
        if input.len() < HEADER_LEN + length {
            let missing = HEADER_LEN + length - input.len();
            input.reserve(missing.min(READ_AHEAD));
            return Ok(None);
        }
        input.advance(HEADER_LEN);
        read(kind, input.split_to(length).freeze()).map(Some)
    }
}

fn read(kind: u8, mut body: Bytes) -> Result<Frame, Error> {
    let shared = body.clone();
    let mut reader = Reader::new(WHAT, &shared);
    Ok(match kind {
        SERVER_KEY => {
            if reader.array()? != MAGIC {
                return Err(Error::Malformed {
                    what: WHAT,
                    why: "the server's greeting has no DERP magic",
                });
            }
            Frame::ServerKey(key(&mut reader)?)
        }
        CLIENT_INFO => Frame::ClientInfo {
            key: take_key(&mut body)?,
            sealed: body,
        },
        SERVER_INFO => Frame::ServerInfo { sealed: body },
        SEND_PACKET => Frame::SendPacket {
            to: take_key(&mut body)?,
            packet: packet(body)?,
        },
        RECV_PACKET => Frame::RecvPacket {
            from: take_key(&mut body)?,
            packet: packet(body)?,
        },
        FORWARD_PACKET => Frame::ForwardPacket {
            from: take_key(&mut body)?,
            to: take_key(&mut body)?,
            packet: packet(body)?,
        },
        KEEP_ALIVE => Frame::KeepAlive,
        NOTE_PREFERRED => Frame::NotePreferred(reader.u8()? != 0),
        PEER_GONE => Frame::PeerGone {
            key: key(&mut reader)?,
            reason: reader
                .u8()
                .map_or(GoneReason::Disconnected, GoneReason::from),
        },
        PEER_PRESENT => Frame::PeerPresent {
            key: key(&mut reader)?,
            address: reader.endpoint().ok(),
            flags: reader.u8().unwrap_or_default(),
        },
        WATCH_CONNS => Frame::WatchConns,
        CLOSE_PEER => Frame::ClosePeer(key(&mut reader)?),
        PING => Frame::Ping(reader.array()?),
        PONG => Frame::Pong(reader.array()?),
        HEALTH => {
            Frame::Health(String::from_utf8_lossy(&body[..body.len().min(MAX_HEALTH)]).into_owned())
        }
        RESTARTING => Frame::Restarting {
            reconnect_in: Duration::from_millis(reader.u32()?.into()),
            try_for: Duration::from_millis(reader.u32()?.into()),
        },
        kind => Frame::Unknown(kind),
    })
}

fn key(reader: &mut Reader<'_>) -> Result<NodePublic, Error> {
    reader.array().map(NodePublic::from_bytes)
}

fn take_key(body: &mut Bytes) -> Result<NodePublic, Error> {
    let key = key(&mut Reader::new(WHAT, body))?;
    body.advance(KEY_LEN);
    Ok(key)
}

fn packet(body: Bytes) -> Result<Bytes, Error> {
    if body.len() > MAX_PACKET {
        return Err(Error::Long {
            what: "packet in a DERP frame",
            limit: MAX_PACKET,
            got: body.len(),
        });
    }
    Ok(body)
}

impl Encoder<Frame> for Codec {
    type Error = Error;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), Error> {
        match frame {
            Frame::ServerKey(key) => put(out, SERVER_KEY, &[&MAGIC, key.as_bytes()]),
            Frame::ClientInfo { key, sealed } => put(out, CLIENT_INFO, &[key.as_bytes(), &sealed]),
            Frame::ServerInfo { sealed } => put(out, SERVER_INFO, &[&sealed]),
            Frame::SendPacket { to, packet } => put_send_packet(out, &to, &packet)?,
            Frame::RecvPacket { from, packet } => put_recv_packet(out, &from, &packet)?,
            Frame::ForwardPacket { from, to, packet } => {
                fits(&packet)?;
                put(
                    out,
                    FORWARD_PACKET,
                    &[from.as_bytes(), to.as_bytes(), &packet],
                );
            }
            Frame::KeepAlive => put(out, KEEP_ALIVE, &[]),
            Frame::NotePreferred(preferred) => put(out, NOTE_PREFERRED, &[&[preferred.into()]]),
            Frame::PeerGone { key, reason } => {
                put(out, PEER_GONE, &[key.as_bytes(), &[reason.into()]])
            }
            Frame::PeerPresent {
                key,
                address,
                flags,
            } => {
                let mut rest = Vec::new();
                if let Some(address) = address {
                    put_endpoint(&mut rest, address);
                    rest.push(flags);
                }
                put(out, PEER_PRESENT, &[key.as_bytes(), &rest]);
            }
            Frame::WatchConns => put(out, WATCH_CONNS, &[]),
            Frame::ClosePeer(key) => put(out, CLOSE_PEER, &[key.as_bytes()]),
            Frame::Ping(data) => put(out, PING, &[&data]),
            Frame::Pong(data) => put(out, PONG, &[&data]),
            Frame::Health(text) => put(out, HEALTH, &[text.as_bytes()]),
            Frame::Restarting {
                reconnect_in,
                try_for,
            } => {
                put(
                    out,
                    RESTARTING,
                    &[&milliseconds(reconnect_in), &milliseconds(try_for)],
                );
            }
            Frame::Unknown(kind) => put(out, kind, &[]),
        }
        Ok(())
    }
}

fn milliseconds(duration: Duration) -> [u8; 4] {
    u32::try_from(duration.as_millis())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
}

fn put(out: &mut BytesMut, kind: u8, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    out.reserve(HEADER_LEN + length);
    out.put_u8(kind);
    out.put_u32(length as u32);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn fits(packet: &[u8]) -> Result<(), Error> {
    if packet.len() > MAX_PACKET {
        return Err(Error::Long {
            what: "packet for a DERP frame",
            limit: MAX_PACKET,
            got: packet.len(),
        });
    }
    Ok(())
}

/// Appends a [`Frame::SendPacket`] without owning the packet.
pub fn put_send_packet(out: &mut BytesMut, to: &NodePublic, packet: &[u8]) -> Result<(), Error> {
    fits(packet)?;
    put(out, SEND_PACKET, &[to.as_bytes(), packet]);
    Ok(())
}

/// Appends a [`Frame::RecvPacket`] without owning the packet.
pub fn put_recv_packet(out: &mut BytesMut, from: &NodePublic, packet: &[u8]) -> Result<(), Error> {
    fits(packet)?;
    put(out, RECV_PACKET, &[from.as_bytes(), packet]);
    Ok(())
}
