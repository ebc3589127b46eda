//! Taking fixed-size pieces off the front of bytes from strangers.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::Error;

/// What is left to read of `what`.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    what: &'static str,
    total: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            what,
            total: bytes.len(),
            rest: bytes,
        }
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            let need = self.total - self.rest.len() + N;
            return Err(Error::Short {
                what: self.what,
                need,
                got: self.total,
            });
        };
        self.rest = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, Error> {
        self.array().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_be_bytes)
    }

    /// 16 bytes of IPv6 or IPv4-mapped address, then a port.
    pub fn endpoint(&mut self) -> Result<SocketAddr, Error> {
        let address = Ipv6Addr::from(self.array::<16>()?);
        let address = address
            .to_ipv4_mapped()
            .map_or(IpAddr::V6(address), IpAddr::V4);
        Ok(SocketAddr::new(address, self.u16()?))
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// What [`Reader::endpoint`] reads.
pub fn put_endpoint(out: &mut Vec<u8>, endpoint: SocketAddr) {
    let address = match endpoint.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    out.extend_from_slice(&address.octets());
    out.extend_from_slice(&endpoint.port().to_be_bytes());
}
