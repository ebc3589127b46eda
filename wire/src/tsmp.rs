//! In-tunnel control messages: IP protocol 99 between tailnet addresses (protocol.md 3.7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Error, bytes::Reader, checksum, key::DiscoPublic};

/// The IP protocol number.
pub const PROTOCOL: u8 = 99;

const WHAT: &str = "TSMP packet";
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const HOP_LIMIT: u8 = 64;
const MAYBE_BROKEN: u8 = 1;

/// A message with the IP addresses around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub message: Message,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Ping([u8; 8]),
    Pong {
        data: [u8; 8],
        /// 0: none.
        peer_api_port: u16,
    },
    Rejected(Rejected),
    /// The sender's disco key from now on.
    DiscoKey(DiscoPublic),
}

/// The sender's filter refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// IP protocol of the refused flow.
    pub protocol: u8,
    pub reason: Reason,
    /// Of the refused flow, as its opener sees it.
    pub source_port: u16,
    pub destination_port: u16,
    /// The refuser may be misconfigured, rather than meaning it.
    pub maybe_broken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Acl,
    ShieldsUp,
    ForwardingOff,
    HostFirewall,
    UnknownTransit,
    Other(u8),
}

impl From<u8> for Reason {
    fn from(byte: u8) -> Self {
        match byte {
            b'A' => Self::Acl,
            b'S' => Self::ShieldsUp,
            b'F' => Self::ForwardingOff,
            b'W' => Self::HostFirewall,
            b'T' => Self::UnknownTransit,
            other => Self::Other(other),
        }
    }
}

impl From<Reason> for u8 {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Acl => b'A',
            Reason::ShieldsUp => b'S',
            Reason::ForwardingOff => b'F',
            Reason::HostFirewall => b'W',
            Reason::UnknownTransit => b'T',
            Reason::Other(byte) => byte,
        }
    }
}

impl Message {
    /// Reads what follows the IP header.
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new("TSMP message", payload);
        Ok(match reader.u8()? {
            b'p' => Self::Ping(reader.array()?),
            b'o' => Self::Pong {
                data: reader.array()?,
                peer_api_port: reader.u16()?,
            },
            b'!' => Self::Rejected(Rejected {
                protocol: reader.u8()?,
                reason: reader.u8()?.into(),
                source_port: reader.u16()?,
                destination_port: reader.u16()?,
                maybe_broken: reader.u8().is_ok_and(|flags| flags & MAYBE_BROKEN != 0),
            }),
            b'a' => Self::DiscoKey(DiscoPublic::from_bytes(reader.array()?)),
            _ => {
                return Err(Error::Malformed {
                    what: "TSMP message",
                    why: "unknown type",
                });
            }
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ping(data) => {
                out.push(b'p');
                out.extend_from_slice(data);
            }
            Self::Pong {
                data,
                peer_api_port,
            } => {
                out.push(b'o');
                out.extend_from_slice(data);
                out.extend_from_slice(&peer_api_port.to_be_bytes());
            }
            Self::Rejected(rejected) => {
                out.extend_from_slice(&[b'!', rejected.protocol, rejected.reason.into()]);
                out.extend_from_slice(&rejected.source_port.to_be_bytes());
                out.extend_from_slice(&rejected.destination_port.to_be_bytes());
                if rejected.maybe_broken {
                    out.push(MAYBE_BROKEN);
                }
            }
            Self::DiscoKey(key) => {
                out.push(b'a');
                out.extend_from_slice(key.as_bytes());
            }
        }
    }
}

impl Packet {
    /// Reads an IP packet that carries TSMP; fragments and packets with IPv6 extension headers do not.
    pub fn parse(packet: &[u8]) -> Result<Self, Error> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            _ => Err(Error::Malformed {
                what: WHAT,
                why: "no IP packet",
            }),
        }
    }

    fn parse_v4(packet: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(WHAT, packet);
        let header: [u8; V4_HEADER] = reader.array()?;
        let start = usize::from(header[0] & 15) * 4;
        let end = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
        if header[9] != PROTOCOL || fragment != 0 || start < V4_HEADER {
            return Err(Error::Malformed {
                what: WHAT,
                why: "the IPv4 header is of something else",
            });
        }
        let payload = packet.get(start..end).ok_or(Error::Malformed {
            what: WHAT,
            why: "wrong lengths",
        })?;
        let [.., a, b, c, d, e, f, g, h] = header;
        Ok(Self {
            source: Ipv4Addr::new(a, b, c, d).into(),
            destination: Ipv4Addr::new(e, f, g, h).into(),
            message: Message::parse(payload)?,
        })
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(WHAT, packet);
        let header: [u8; 8] = reader.array()?;
        let source = Ipv6Addr::from(reader.array::<16>()?).into();
        let destination = Ipv6Addr::from(reader.array::<16>()?).into();
        if header[6] != PROTOCOL {
            return Err(Error::Malformed {
                what: WHAT,
                why: "the IPv6 header is of something else",
            });
        }
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let payload = reader.rest().get(..length).ok_or(Error::Malformed {
            what: WHAT,
            why: "wrong lengths",
        })?;
        Ok(Self {
            source,
            destination,
            message: Message::parse(payload)?,
        })
    }

    /// The IP packet.
    ///
    /// # Errors
    /// The two addresses are of different families.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(V6_HEADER + 33);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                out.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, HOP_LIMIT, PROTOCOL, 0, 0]);
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&destination.octets());
                self.message.put(&mut out);
                let length = out.len() as u16;
                out[2..4].copy_from_slice(&length.to_be_bytes());
                let checksum = checksum::of(&[&out[..V4_HEADER]]);
                out[10..12].copy_from_slice(&checksum);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                out.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, PROTOCOL, HOP_LIMIT]);
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&destination.octets());
                self.message.put(&mut out);
                let length = (out.len() - V6_HEADER) as u16;
                out[4..6].copy_from_slice(&length.to_be_bytes());
            }
            _ => {
                return Err(Error::Malformed {
                    what: WHAT,
                    why: "addresses of two families",
                });
            }
        }
        Ok(out)
    }

    /// The answer to a ping; none to anything else.
    pub fn answer(&self, peer_api_port: Option<u16>) -> Option<Self> {
        let Message::Ping(data) = self.message else {
            return None;
        };
        let message = Message::Pong {
            data,
            peer_api_port: peer_api_port.unwrap_or(0),
        };
        Some(Self {
            source: self.destination,
            destination: self.source,
            message,
        })
    }
}
