//! The Geneve header in front of what goes through a peer relay (RFC 8926, protocol.md 4).

use crate::Error;

pub const HEADER_LEN: usize = 8;
/// Virtual network identifiers have 24 bits.
pub const MAX_VNI: u32 = (1 << 24) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Disco,
    WireGuard,
}

impl Protocol {
    const fn number(self) -> u16 {
        match self {
            Self::Disco => 0x7a11,
            Self::WireGuard => 0x7a12,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    pub protocol: Protocol,
    /// Set only on the handshake between a client and the relay.
    pub control: bool,
    /// 24 bits.
    pub vni: u32,
}

impl Header {
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let [high, low] = self.protocol.number().to_be_bytes();
        let [_, a, b, c] = (self.vni & MAX_VNI).to_be_bytes();
        [0, u8::from(self.control) << 7, high, low, a, b, c, 0]
    }

    /// The header and what it carries.
    pub fn parse(datagram: &[u8]) -> Result<(Self, &[u8]), Error> {
        const WHAT: &str = "Geneve header";
        let Some((&[first, flags, high, low, a, b, c, reserved], rest)) =
            datagram.split_first_chunk()
        else {
            return Err(Error::Short {
                what: WHAT,
                need: HEADER_LEN,
                got: datagram.len(),
            });
        };
        let protocol = match u16::from_be_bytes([high, low]) {
            0x7a11 => Protocol::Disco,
            0x7a12 => Protocol::WireGuard,
            _ => {
                return Err(Error::Malformed {
                    what: WHAT,
                    why: "unknown protocol",
                });
            }
        };
        if first != 0 || flags & 0x3f != 0 || reserved != 0 {
            return Err(Error::Malformed {
                what: WHAT,
                why: "version, options or reserved bits are set",
            });
        }
        let header = Self {
            protocol,
            control: flags & 0x80 != 0,
            vni: u32::from_be_bytes([0, a, b, c]),
        };
        Ok((header, rest))
    }
}

pub(crate) fn looks_like(datagram: &[u8]) -> bool {
    Header::parse(datagram).is_ok()
}
