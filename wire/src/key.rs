//! Keys and their text forms: a prefix, a colon, 64 lowercase hex digits (protocol.md 1.1).
//!
//! Private keys are zeroised when dropped and print as `redacted`; only `to_text` and `to_bytes` give them away.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::Error;

const LEN: usize = 32;

/// The prefix that all three private kinds share; only context tells them apart.
const PRIVATE_PREFIX: &str = "privkey:";

fn parse(text: &str, kind: &'static str, prefix: &'static str) -> Result<[u8; LEN], Error> {
    let mut bytes = [0; LEN];
    text.strip_prefix(prefix)
        .and_then(|digits| hex::decode_to_slice(digits, &mut bytes).ok())
        .ok_or(Error::Key { kind, prefix })?;
    Ok(bytes)
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name([u8; LEN]);

        impl $name {
            /// What stands on the wire for "no key".
            pub const ZERO: Self = Self([0; LEN]);

            pub const fn from_bytes(bytes: [u8; LEN]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; LEN] {
                &self.0
            }

            pub fn is_zero(&self) -> bool {
                self.0 == [0; LEN]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                parse(text, $kind, $prefix).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a ", $kind, ", `", $prefix, "` and 64 hex digits"))
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

macro_rules! private_key {
    ($(#[$doc:meta])* $name:ident, $public:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; LEN]);

        impl $name {
            /// A new key out of 32 bytes from a secure random source.
            pub fn from_random(mut random: [u8; LEN]) -> Self {
                random[0] &= 248;
                random[31] = (random[31] & 127) | 64;
                let key = Self(random);
                random.zeroize();
                key
            }

            /// A key that was stored; the bytes are kept as they are.
            pub const fn from_bytes(bytes: [u8; LEN]) -> Self {
                Self(bytes)
            }

            pub const fn to_bytes(&self) -> [u8; LEN] {
                self.0
            }

            pub fn public(&self) -> $public {
                let secret = x25519_dalek::StaticSecret::from(self.0);
                $public(x25519_dalek::PublicKey::from(&secret).to_bytes())
            }

            /// The text form to store in a file that only its owner may read.
            pub fn to_text(&self) -> Zeroizing<String> {
                let mut text = Zeroizing::new(String::with_capacity(PRIVATE_PREFIX.len() + 2 * LEN));
                text.push_str(PRIVATE_PREFIX);
                text.push_str(&Zeroizing::new(hex::encode(self.0)));
                text
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                parse(text, $kind, PRIVATE_PREFIX).map(Self)
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                // By public key: comparing secrets byte by byte would tell their common length.
                self.public() == other.public()
            }
        }

        impl Eq for $name {}
    };
}

public_key!(
    /// Who an installation is at the control server; also the control server's own key.
    MachinePublic, "mkey:", "machine key"
);
public_key!(
    /// The WireGuard public key: DERP address and identity of a node.
    NodePublic, "nodekey:", "node key"
);
public_key!(
    /// Addressee of disco messages; new at every start of a daemon.
    DiscoPublic, "discokey:", "disco key"
);
public_key!(
    /// From the early payload of the control channel; clients make no use of it.
    ChallengePublic, "chalpub:", "challenge key"
);
private_key!(
    /// Authenticates an installation on the control channel.
    MachinePrivate, MachinePublic, "private machine key"
);
private_key!(
    /// The WireGuard private key.
    NodePrivate, NodePublic, "private node key"
);
private_key!(
    /// Never stored.
    DiscoPrivate, DiscoPublic, "private disco key"
);
private_key!(
    /// The control server's side of the early payload's challenge.
    ChallengePrivate, ChallengePublic, "private challenge key"
);

fn short_base64(bytes: &[u8; LEN]) -> String {
    format!("[{}]", &STANDARD.encode(bytes)[..5])
}

impl NodePublic {
    /// The form of the stock client's logs: `[` first five base64 digits `]`.
    pub fn short(&self) -> String {
        short_base64(&self.0)
    }
}

impl MachinePublic {
    /// `[` first five base64 digits `]`.
    pub fn short(&self) -> String {
        short_base64(&self.0)
    }
}

impl DiscoPublic {
    /// `d:` and the first sixteen hex digits.
    pub fn short(&self) -> String {
        format!("d:{}", hex::encode(&self.0[..8]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_survive_a_round_trip() {
        let private = NodePrivate::from_random([7; 32]);
        let again: NodePrivate = private.to_text().parse().unwrap();
        assert_eq!(again, private);
        let public = private.public();
        assert_eq!(public.to_string().parse::<NodePublic>().unwrap(), public);
        let json = serde_json::to_string(&public).unwrap();
        assert_eq!(serde_json::from_str::<NodePublic>(&json).unwrap(), public);
    }

    #[test]
    fn a_private_key_is_never_printed() {
        let key = MachinePrivate::from_random([0xab; 32]);
        assert_eq!(format!("{key:?}"), "MachinePrivate(redacted)");
    }

    #[test]
    fn other_prefixes_and_lengths_are_refused() {
        let digits = "00".repeat(32);
        for text in [
            format!("mkey:{digits}"),
            digits.clone(),
            format!("nodekey:{digits}0"),
            format!("nodekey:{}", "g".repeat(64)),
            String::new(),
        ] {
            assert!(text.parse::<NodePublic>().is_err(), "{text}");
        }
        assert!(
            format!("nodekey:{digits}")
                .parse::<NodePublic>()
                .unwrap()
                .is_zero()
        );
    }

    #[test]
    fn short_forms_are_those_of_the_stock_client() {
        let node = NodePublic::from_bytes([0; 32]);
        assert_eq!(node.short(), "[AAAAA]");
        assert_eq!(
            DiscoPublic::from_bytes([0xab; 32]).short(),
            "d:abababababababab"
        );
    }
}
