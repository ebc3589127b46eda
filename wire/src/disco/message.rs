use std::{net::SocketAddr, time::Duration};

use super::TxId;
use crate::{
    Error,
    bytes::{Reader, put_endpoint},
    key::{DiscoPublic, NodePublic},
};

/// No more endpoints than this are taken from one message.
pub const MAX_ENDPOINTS: usize = 256;

const WHAT: &str = "disco message";
const ENDPOINT_LEN: usize = 18;
const VERSION: u8 = 0;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Ping(Ping),
    Pong {
        tx: TxId,
        /// Where the ping came from, as the answerer saw it.
        source: SocketAddr,
    },
    /// Only by DERP: ping me at these, I am pinging you.
    CallMeMaybe {
        endpoints: Vec<SocketAddr>,
    },
    BindRelay(Bind),
    BindRelayChallenge(Bind),
    BindRelayAnswer(Bind),
    /// Only by DERP.
    CallMeMaybeVia(RelayEndpoint),
    /// Only by DERP.
    AllocateRelay(AllocateRelay),
    /// Only by DERP.
    RelayAllocated {
        generation: u32,
        endpoint: RelayEndpoint,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    pub tx: TxId,
    /// Absent in very old clients; to be trusted only together with the netmap.
    pub node: Option<NodePublic>,
    /// Zeros after the message, to probe the path's MTU.
    pub padding: usize,
}

/// The common body of the three messages that bind a client to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    pub vni: u32,
    pub generation: u32,
    /// The client at the other end.
    pub remote: DiscoPublic,
    pub challenge: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocateRelay {
    /// In byte order; compare as an unordered pair.
    pub clients: [DiscoPublic; 2],
    pub generation: u32,
}

/// What a relay has set aside for two clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayEndpoint {
    pub server: DiscoPublic,
    pub clients: [DiscoPublic; 2],
    pub lamport_id: u64,
    pub vni: u32,
    pub bind_lifetime: Duration,
    pub steady_lifetime: Duration,
    pub addresses: Vec<SocketAddr>,
}

impl Message {
    const fn kind(&self) -> u8 {
        match self {
            Self::Ping(_) => 1,
            Self::Pong { .. } => 2,
            Self::CallMeMaybe { .. } => 3,
            Self::BindRelay(_) => 4,
            Self::BindRelayChallenge(_) => 5,
            Self::BindRelayAnswer(_) => 6,
            Self::CallMeMaybeVia(_) => 7,
            Self::AllocateRelay(_) => 8,
            Self::RelayAllocated { .. } => 9,
        }
    }

    /// The plaintext to seal.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.kind(), VERSION];
        match self {
            Self::Ping(ping) => {
                out.extend_from_slice(&ping.tx.0);
                match ping.node {
                    Some(node) => out.extend_from_slice(node.as_bytes()),
                    None if ping.padding > 0 => out.extend_from_slice(NodePublic::ZERO.as_bytes()),
                    None => {}
                }
                out.resize(out.len() + ping.padding, 0);
            }
            Self::Pong { tx, source } => {
                out.extend_from_slice(&tx.0);
                put_endpoint(&mut out, *source);
            }
            Self::CallMeMaybe { endpoints } => {
                endpoints
                    .iter()
                    .for_each(|endpoint| put_endpoint(&mut out, *endpoint));
            }
            Self::BindRelay(bind)
            | Self::BindRelayChallenge(bind)
            | Self::BindRelayAnswer(bind) => bind.put(&mut out),
            Self::CallMeMaybeVia(endpoint) => endpoint.put(&mut out),
            Self::AllocateRelay(request) => {
                request
                    .clients
                    .iter()
                    .for_each(|client| out.extend_from_slice(client.as_bytes()));
                out.extend_from_slice(&request.generation.to_be_bytes());
            }
            Self::RelayAllocated {
                generation,
                endpoint,
            } => {
                out.extend_from_slice(&generation.to_be_bytes());
                endpoint.put(&mut out);
            }
        }
        out
    }

    /// What [`Self::encode`] wrote. Bytes after what is known are ignored; unknown types are errors, to be ignored too.
    pub fn parse(plain: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(WHAT, plain);
        let kind = reader.u8()?;
        // The version: what a later one adds stands at the end.
        reader.u8()?;
        Ok(match kind {
            1 => Self::Ping(Ping::read(&mut reader)?),
            2 => Self::Pong {
                tx: TxId(reader.array()?),
                source: reader.endpoint()?,
            },
            3 => Self::CallMeMaybe {
                endpoints: endpoints(&mut reader)?,
            },
            4 => Self::BindRelay(Bind::read(&mut reader)?),
            5 => Self::BindRelayChallenge(Bind::read(&mut reader)?),
            6 => Self::BindRelayAnswer(Bind::read(&mut reader)?),
            7 => Self::CallMeMaybeVia(RelayEndpoint::read(&mut reader)?),
            8 => Self::AllocateRelay(AllocateRelay {
                clients: [disco_key(&mut reader)?, disco_key(&mut reader)?],
                generation: reader.u32()?,
            }),
            9 => Self::RelayAllocated {
                generation: reader.u32()?,
                endpoint: RelayEndpoint::read(&mut reader)?,
            },
            _ => {
                return Err(Error::Malformed {
                    what: WHAT,
                    why: "unknown type",
                });
            }
        })
    }
}

fn disco_key(reader: &mut Reader<'_>) -> Result<DiscoPublic, Error> {
    reader.array().map(DiscoPublic::from_bytes)
}

/// A list whose length fits no whole number of endpoints counts as empty.
fn endpoints(reader: &mut Reader<'_>) -> Result<Vec<SocketAddr>, Error> {
    if !reader.rest().len().is_multiple_of(ENDPOINT_LEN) {
        return Ok(Vec::new());
    }
    let mut endpoints = Vec::new();
    while !reader.is_empty() && endpoints.len() < MAX_ENDPOINTS {
        endpoints.push(reader.endpoint()?);
    }
    Ok(endpoints)
}

impl Ping {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let tx = TxId(reader.array()?);
        let node = reader
            .array()
            .ok()
            .map(NodePublic::from_bytes)
            .filter(|key| !key.is_zero());
        Ok(Self {
            tx,
            node,
            padding: reader.rest().len(),
        })
    }
}

impl Bind {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            vni: reader.u32()?,
            generation: reader.u32()?,
            remote: disco_key(reader)?,
            challenge: reader.array()?,
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.vni.to_be_bytes());
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(self.remote.as_bytes());
        out.extend_from_slice(&self.challenge);
    }
}

impl RelayEndpoint {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            server: disco_key(reader)?,
            clients: [disco_key(reader)?, disco_key(reader)?],
            lamport_id: reader.u64()?,
            vni: reader.u32()?,
            bind_lifetime: Duration::from_nanos(reader.u64()?),
            steady_lifetime: Duration::from_nanos(reader.u64()?),
            addresses: endpoints(reader)?,
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.server.as_bytes());
        self.clients
            .iter()
            .for_each(|client| out.extend_from_slice(client.as_bytes()));
        out.extend_from_slice(&self.lamport_id.to_be_bytes());
        out.extend_from_slice(&self.vni.to_be_bytes());
        out.extend_from_slice(&nanoseconds(self.bind_lifetime));
        out.extend_from_slice(&nanoseconds(self.steady_lifetime));
        self.addresses
            .iter()
            .for_each(|address| put_endpoint(out, *address));
    }
}

fn nanoseconds(duration: Duration) -> [u8; 8] {
    u64::try_from(duration.as_nanos())
        .unwrap_or(u64::MAX)
        .to_be_bytes()
}
