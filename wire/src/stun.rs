//! STUN as used here (RFC 5389, protocol.md 2.5): one kind of request, one kind of response.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use crate::disco::TxId;
use crate::{Error, bytes::Reader};

const WHAT: &str = "STUN message";
const HEADER_LEN: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_RESPONSE: u16 = 0x0101;

const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// What some servers number it instead.
const XOR_MAPPED_ADDRESS_OLD: u16 = 0x8020;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;

/// Stock servers drop requests by other software.
const NAME: &[u8; 8] = b"tailnode";
const FINGERPRINT_XOR: u32 = 0x5354_554e;

pub(crate) fn looks_like(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LEN
        && datagram[0] & 0xc0 == 0
        && datagram[1] == 0x01
        && datagram[4..8] == COOKIE
}

fn header(kind: u16, length: usize, tx: TxId) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + length);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(length as u16).to_be_bytes());
    out.extend_from_slice(&COOKIE);
    out.extend_from_slice(&tx.0);
    out
}

fn put_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

/// A binding request, 40 bytes.
pub fn request(tx: TxId) -> Vec<u8> {
    let mut out = header(BINDING_REQUEST, 20, tx);
    put_attribute(&mut out, SOFTWARE, NAME);
    let fingerprint = crc32(&out) ^ FINGERPRINT_XOR;
    put_attribute(&mut out, FINGERPRINT, &fingerprint.to_be_bytes());
    out
}

/// The answer to a request that came from `source`.
pub fn response(tx: TxId, source: SocketAddr) -> Vec<u8> {
    let mut value = vec![0, 0];
    value.extend_from_slice(&(source.port() ^ cookie_port()).to_be_bytes());
    match source.ip().to_canonical() {
        IpAddr::V4(address) => {
            value[1] = 1;
            value.extend(
                address
                    .octets()
                    .iter()
                    .zip(COOKIE)
                    .map(|(byte, mask)| byte ^ mask),
            );
        }
        IpAddr::V6(address) => {
            value[1] = 2;
            value.extend(
                address
                    .octets()
                    .iter()
                    .zip(mask(tx))
                    .map(|(byte, mask)| byte ^ mask),
            );
        }
    }
    let mut out = header(BINDING_RESPONSE, 4 + value.len(), tx);
    put_attribute(&mut out, XOR_MAPPED_ADDRESS, &value);
    out
}

fn cookie_port() -> u16 {
    u16::from_be_bytes([COOKIE[0], COOKIE[1]])
}

fn mask(tx: TxId) -> impl Iterator<Item = u8> {
    COOKIE.into_iter().chain(tx.0)
}

fn open(datagram: &[u8], kind: u16) -> Result<(TxId, &[u8]), Error> {
    if !looks_like(datagram) {
        return Err(Error::Malformed {
            what: WHAT,
            why: "no STUN header",
        });
    }
    let mut reader = Reader::new(WHAT, datagram);
    let got = reader.u16()?;
    let length = usize::from(reader.u16()?);
    reader.array::<4>()?;
    let tx = TxId(reader.array()?);
    if got != kind {
        return Err(Error::Malformed {
            what: WHAT,
            why: "not of the kind that was expected",
        });
    }
    let attributes = reader.rest().get(..length);
    attributes
        .map(|attributes| (tx, attributes))
        .ok_or(Error::Malformed {
            what: WHAT,
            why: "cut short",
        })
}

/// Kind and value of each attribute, and how many bytes of `attributes` stand before it.
fn attributes(attributes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8], usize), Error>> {
    let mut rest = attributes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let before = attributes.len() - rest.len();
        let mut reader = Reader::new("STUN attribute", rest);
        let head = reader
            .u16()
            .and_then(|kind| Ok((kind, usize::from(reader.u16()?))));
        let (kind, length) = match head {
            Ok(head) => head,
            Err(error) => {
                rest = &[];
                return Some(Err(error));
            }
        };
        let Some(value) = reader.rest().get(..length) else {
            rest = &[];
            return Some(Err(Error::Malformed {
                what: "STUN attribute",
                why: "cut short",
            }));
        };
        // Attributes are padded to four bytes; the last one's padding may be missing.
        rest = reader
            .rest()
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(Ok((kind, value, before)))
    })
}

/// The transaction of a binding request, as derper takes them: with our name and a right fingerprint at the end.
pub fn parse_request(datagram: &[u8]) -> Result<TxId, Error> {
    let (tx, body) = open(datagram, BINDING_REQUEST)?;
    let mut named = false;
    let mut last = None;
    for attribute in attributes(body) {
        let (kind, value, before) = attribute?;
        named |= kind == SOFTWARE && value == NAME;
        last = Some((kind, value, before));
    }
    let Some((FINGERPRINT, fingerprint, before)) = last.filter(|_| named) else {
        return Err(Error::Malformed {
            what: WHAT,
            why: "a request needs our SOFTWARE and a FINGERPRINT",
        });
    };
    let right = crc32(&datagram[..HEADER_LEN + before]) ^ FINGERPRINT_XOR;
    if fingerprint != right.to_be_bytes() {
        return Err(Error::Malformed {
            what: WHAT,
            why: "wrong fingerprint",
        });
    }
    Ok(tx)
}

/// The transaction that is answered, and our address as the server saw it.
pub fn parse_response(datagram: &[u8]) -> Result<(TxId, SocketAddr), Error> {
    let (tx, body) = open(datagram, BINDING_RESPONSE)?;
    let mut plain = None;
    for attribute in attributes(body) {
        let (kind, value, _) = attribute?;
        match kind {
            XOR_MAPPED_ADDRESS | XOR_MAPPED_ADDRESS_OLD => {
                return Ok((tx, unmask(address(value)?, tx)));
            }
            MAPPED_ADDRESS => plain = address(value).ok().or(plain),
            _ => {}
        }
    }
    let address = plain.ok_or(Error::Malformed {
        what: WHAT,
        why: "the response holds no address",
    })?;
    Ok((tx, address))
}

fn address(value: &[u8]) -> Result<SocketAddr, Error> {
    let mut reader = Reader::new("STUN address", value);
    reader.u8()?;
    let family = reader.u8()?;
    let port = reader.u16()?;
    let address = match family {
        1 => IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?)),
        2 => IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?)),
        _ => {
            return Err(Error::Malformed {
                what: "STUN address",
                why: "unknown family",
            });
        }
    };
    Ok(SocketAddr::new(address, port))
}

fn unmask(address: SocketAddr, tx: TxId) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(
            ip.to_bits() ^ u32::from_be_bytes(COOKIE),
        )),
        IpAddr::V6(ip) => {
            let mut octets = ip.octets();
            octets
                .iter_mut()
                .zip(mask(tx))
                .for_each(|(byte, mask)| *byte ^= mask);
            IpAddr::V6(octets.into())
        }
    };
    SocketAddr::new(ip, address.port() ^ cookie_port())
}

/// CRC-32 of ISO 3309, as in zip.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 {
                    (value >> 1) ^ 0xedb8_8320
                } else {
                    value >> 1
                };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, byte| {
        TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8)
    })
}
