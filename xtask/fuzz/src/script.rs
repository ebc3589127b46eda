//! Choices taken from an input, for targets that are fed sequences rather than bytes.

use std::net::{Ipv6Addr, SocketAddr};

use arbitrary::Unstructured;

/// An input as a sequence of choices; when it is used up, every choice is the first.
#[derive(Debug)]
pub struct Script<'a>(Unstructured<'a>);

impl<'a> Script<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Self(Unstructured::new(input))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub fn word(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// Below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    /// At most `most` bytes, as the next byte says.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let length = usize::from(self.byte()).min(most).min(self.0.len());
        self.0.bytes(length).unwrap_or_default()
    }

    pub fn rest(&mut self) -> &'a [u8] {
        self.0.bytes(self.0.len()).unwrap_or_default()
    }

    /// Often one of a few, so that they meet.
    pub fn address(&mut self) -> SocketAddr {
        let port = 40_000 + u16::from(self.byte() & 3);
        match self.byte() {
            kind @ 0..128 => SocketAddr::from(([198, 51, 100, kind & 7], port)),
            128..160 => SocketAddr::from(([192, 168, 0, self.byte()], port)),
            160..190 => {
                let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, self.word() & 3);
                SocketAddr::new(address.into(), port)
            }
            190..220 => {
                let octets: [u8; 4] = self.0.arbitrary().unwrap_or_default();
                SocketAddr::from((octets, self.word()))
            }
            _ => {
                let octets: [u8; 16] = self.0.arbitrary().unwrap_or_default();
                SocketAddr::from((octets, self.word()))
            }
        }
    }

    pub fn addresses(&mut self, most: usize) -> Vec<SocketAddr> {
        let count = self.below(most + 1);
        (0..count).map(|_| self.address()).collect()
    }
}
