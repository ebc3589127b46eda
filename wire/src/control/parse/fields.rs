//! The members of an object as they stand in its text, without a copy.

use std::{collections::BTreeMap, fmt};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::MAX_FILTERS;

/// What is read of a map response.
const KNOWN: &[&str] = &[
    "MapSessionHandle",
    "Seq",
    "KeepAlive",
    "PingRequest",
    "PopBrowserURL",
    "Node",
    "DERPMap",
    "Peers",
    "PeersChanged",
    "PeersRemoved",
    "PeersChangedPatch",
    "PeerSeenChange",
    "OnlineChange",
    "DNSConfig",
    "Domain",
    "CollectServices",
    "PacketFilter",
    "PacketFilters",
    "UserProfiles",
    "Health",
    "DisplayMessages",
    "SSHPolicy",
    "ControlTime",
    "TKAInfo",
    "DomainDataPlaneAuditLogID",
    "Debug",
    "ControlDialPlan",
    "ClientVersion",
    "DefaultAutoUpdate",
];

/// The fields of a map response that are [`KNOWN`]; of one that comes twice, the later one. The others leave nothing behind, however many there are.
pub struct Fields<'a>(BTreeMap<&'static str, &'a RawValue>);

impl<'a> Fields<'a> {
    /// The field of this name, once.
    pub fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        debug_assert!(KNOWN.contains(&name), "{name} is not read");
        self.0.remove(name)
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some(KnownName(name)) = map.next_key()? {
                    match name {
                        Some(name) => drop(fields.insert(name, map.next_value()?)),
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

struct KnownName(Option<&'static str>);

impl<'de> Deserialize<'de> for KnownName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = KnownName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                let known = KNOWN.iter().find(|name| **name == text);
                Ok(KnownName(known.copied()))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// The members of an object with free names, without those after the most that there may be. `None`: null.
pub struct Named<'a> {
    pub pieces: BTreeMap<String, Option<&'a RawValue>>,
    /// How many there are.
    pub count: usize,
}

impl<'de> Deserialize<'de> for Named<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Named<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut named = Named {
                    pieces: BTreeMap::new(),
                    count: 0,
                };
                while named.count < MAX_FILTERS {
                    let Some((name, raw)) = map.next_entry::<String, &RawValue>()? else {
                        return Ok(named);
                    };
                    let raw = Some(raw).filter(|raw| raw.get() != "null");
                    named.pieces.insert(name, raw);
                    named.count += 1;
                }
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    named.count += 1;
                }
                Ok(named)
            }
        }
        deserializer.deserialize_map(Object)
    }
}
