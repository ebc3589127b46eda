//! Address prefixes of both families in one ordered type.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Bits of an address.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
    /// 4 or 6.
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A prefix. In order, a prefix comes before those inside it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    family: Family,
    /// Left-aligned; the bits behind the prefix are zero.
    bits: u128,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits (at most the family's) that holds `address`.
    pub fn new(address: IpAddr, len: u8) -> Self {
        let family = Family::of(address);
        let len = len.min(family.bits());
        Self {
            family,
            bits: left_aligned(address) & mask(len),
            len,
        }
    }
    pub fn host(address: IpAddr) -> Self {
        Self::new(address, 128)
    }
    pub fn everything(family: Family) -> Self {
        Self {
            family,
            bits: 0,
            len: 0,
        }
    }
    pub const fn family(&self) -> Family {
        self.family
    }
    /// Bits that its addresses share.
    pub const fn length(&self) -> u8 {
        self.len
    }
    /// Whether it holds its whole family.
    pub const fn is_everything(&self) -> bool {
        self.len == 0
    }
    pub const fn is_host(&self) -> bool {
        self.len == self.family.bits()
    }
    /// The address as tables hold it: IPv4 in the first four bytes.
    pub const fn bytes(&self) -> [u8; 16] {
        self.bits.to_be_bytes()
    }
    pub fn contains(&self, address: IpAddr) -> bool {
        self.family == Family::of(address)
            && (left_aligned(address) ^ self.bits) & mask(self.len) == 0
    }
    /// Whether `other` lies in this prefix, or is it.
    pub fn covers(&self, other: &Self) -> bool {
        self.family == other.family
            && self.len <= other.len
            && (other.bits ^ self.bits) & mask(self.len) == 0
    }
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
    pub fn address(&self) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::from((self.bits >> 96) as u32).into(),
            Family::V6 => Ipv6Addr::from(self.bits).into(),
        }
    }

    /// The fewest prefixes that make up the addresses from `first` to `last`; none if the families differ or the order is wrong.
    pub fn cover_range(first: IpAddr, last: IpAddr) -> Vec<Self> {
        let family = Family::of(first);
        let shift = 128 - u32::from(family.bits());
        let (mut from, to) = (left_aligned(first) >> shift, left_aligned(last) >> shift);
        let mut out = Vec::new();
        if family != Family::of(last) {
            return out;
        }
        while from <= to {
            // As large as its alignment and what is left allow.
            let aligned = from.trailing_zeros().min(u32::from(family.bits()));
            let fits = match (to - from).checked_add(1) {
                Some(count) => count.ilog2(),
                None => 128,
            };
            let size = aligned.min(fits);
            out.push(Self {
                family,
                bits: from << shift,
                len: family.bits() - size as u8,
            });
            match 1u128.checked_shl(size).and_then(|n| from.checked_add(n)) {
                Some(next) => from = next,
                None => break,
            }
        }
        out
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        Self::new(net.addr(), net.prefix_len())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            write!(f, "{}", self.address())
        } else {
            write!(f, "{}/{}", self.address(), self.len)
        }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn left_aligned(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)) << 96,
        IpAddr::V6(a) => u128::from(a),
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(a: &str, b: &str) -> Vec<String> {
        let parse = |s: &str| s.parse::<IpAddr>().expect("address");
        Prefix::cover_range(parse(a), parse(b))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn ranges_become_the_fewest_prefixes() {
        assert_eq!(range("10.0.0.1", "10.0.0.1"), ["10.0.0.1"]);
        assert_eq!(
            range("10.0.0.3", "10.0.0.8"),
            ["10.0.0.3", "10.0.0.4/30", "10.0.0.8"]
        );
        assert_eq!(range("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
        assert_eq!(
            range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ["::/0"]
        );
        assert_eq!(
            range("255.255.255.254", "255.255.255.255"),
            ["255.255.255.254/31"]
        );
    }

    #[test]
    fn ranges_backwards_or_of_two_families_are_empty() {
        assert!(range("10.0.0.2", "10.0.0.1").is_empty());
        assert!(range("10.0.0.2", "::1").is_empty());
    }

    #[test]
    fn a_prefix_sorts_before_what_lies_in_it() {
        let p = |s: &str| Prefix::from(s.parse::<IpNet>().expect("prefix"));
        let mut all = [
            p("10.1.0.0/16"),
            p("10.0.0.0/8"),
            p("10.0.0.0/32"),
            p("::/0"),
        ];
        all.sort();
        assert_eq!(
            all,
            [
                p("10.0.0.0/8"),
                p("10.0.0.0/32"),
                p("10.1.0.0/16"),
                p("::/0")
            ]
        );
    }
}
