//! Reading a [`MapResponse`] so that one malformed piece costs that piece and nothing more.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{FilterRule, MapResponse, Node, NodeId, census, go};
use crate::{Error, netmap::MAX_NODES};

/// A piece of a netmap that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The field of the MapResponse.
    pub field: &'static str,
    /// Which node, as far as that much could be read.
    pub node: Option<NodeId>,
    pub why: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped a malformed part of the netmap, {}", self.field)?;
        if let Some(node) = self.node {
            write!(f, " node {node}")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// At most this many are reported of one message: a hostile one must not fill the log.
const MAX_REPORTED: usize = 32;
/// Bytes of one node, of one change of a node, of one user. Netmaps keep very many of them; host infos, their largest part, are below 32 KiB.
const MAX_ELEMENT: usize = 64 << 10;

impl MapResponse {
    /// Reads one message, and says what of it was skipped.
    ///
    /// A malformed field counts as absent, a malformed element of a list as not in it. A packet filter that is no list
    /// counts as empty: it blocks all.
    ///
    /// # Errors
    /// The bytes are not a JSON object, or its lists have more elements than any tailnet's: then nothing of it is taken.
    pub fn parse(json: &[u8]) -> Result<(Self, Vec<Malformed>), Error> {
        census::check(json)?;
        let fields: BTreeMap<String, Box<RawValue>> =
            serde_json::from_slice(json).map_err(|source| Error::Json {
                what: "map response",
                source,
            })?;
        let mut reader = Reader {
            fields,
            malformed: Vec::new(),
            too_many: None,
        };
        let response = reader.response();
        if let Some(got) = reader.too_many {
            return Err(Error::Many {
                what: "the map's list of peers",
                limit: MAX_NODES,
                got,
            });
        }
        Ok((response, reader.malformed))
    }
}

struct Reader {
    fields: BTreeMap<String, Box<RawValue>>,
    malformed: Vec<Malformed>,
    /// The length of a list of nodes that is longer than may be.
    too_many: Option<usize>,
}

impl Reader {
    fn response(&mut self) -> MapResponse {
        MapResponse {
            map_session_handle: self.field("MapSessionHandle").unwrap_or_default(),
            seq: self.field("Seq").unwrap_or_default(),
            keep_alive: self.field("KeepAlive").unwrap_or_default(),
            ping_request: self.field("PingRequest"),
            pop_browser_url: self.field("PopBrowserURL").unwrap_or_default(),
            node: self.take("Node").and_then(|raw| self.node("Node", &raw)),
            derp_map: self.field("DERPMap"),
            peers: self.nodes("Peers"),
            peers_changed: self.nodes("PeersChanged"),
            peers_removed: self.list("PeersRemoved").unwrap_or_default(),
            peers_changed_patch: self.list("PeersChangedPatch").unwrap_or_default(),
            peer_seen_change: self.field("PeerSeenChange").unwrap_or_default(),
            online_change: self.field("OnlineChange").unwrap_or_default(),
            dns_config: self.field("DNSConfig"),
            domain: self.field("Domain").unwrap_or_default(),
            collect_services: self.field("CollectServices"),
            packet_filter: self
                .take("PacketFilter")
                .map(|raw| self.rules("PacketFilter", &raw)),
            packet_filters: self.filters(),
            user_profiles: self.list("UserProfiles").unwrap_or_default(),
            health: self.list("Health"),
            display_messages: self.field("DisplayMessages").unwrap_or_default(),
            ssh_policy: self.field("SSHPolicy"),
            control_time: self.time("ControlTime"),
            tka_info: self.field("TKAInfo"),
            domain_data_plane_audit_log_id: self
                .field("DomainDataPlaneAuditLogID")
                .unwrap_or_default(),
            debug: self.field("Debug"),
            control_dial_plan: self.field("ControlDialPlan"),
            client_version: self.field("ClientVersion"),
            default_auto_update: self.field("DefaultAutoUpdate"),
        }
    }

    /// The raw field, unless absent or null.
    fn take(&mut self, name: &str) -> Option<Box<RawValue>> {
        self.fields.remove(name).filter(|raw| raw.get() != "null")
    }

    fn read<T: DeserializeOwned>(&mut self, field: &'static str, raw: &RawValue) -> Option<T> {
        match serde_json::from_str(raw.get()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.report(field, None, error.to_string());
                None
            }
        }
    }

    fn report(&mut self, field: &'static str, node: Option<NodeId>, why: String) {
        if self.malformed.len() < MAX_REPORTED {
            self.malformed.push(Malformed { field, node, why });
        }
    }

    fn field<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        let raw = self.take(name)?;
        self.read(name, &raw)
    }

    fn time(&mut self, name: &'static str) -> Option<time::OffsetDateTime> {
        let raw = self.take(name)?;
        go::timestamp::deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
            .inspect_err(|error| self.report(name, None, error.to_string()))
            .ok()
            .flatten()
    }

    /// Borrowed: a hostile list of very many elements leaves no heap of small pieces behind.
    fn elements<'a>(
        &mut self,
        field: &'static str,
        raw: &'a RawValue,
    ) -> Option<Vec<&'a RawValue>> {
        serde_json::from_str(raw.get())
            .inspect_err(|error| self.report(field, None, error.to_string()))
            .ok()
    }

    fn list<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<Vec<T>> {
        let raw = self.take(name)?;
        let elements = self.elements(name, &raw)?;
        Some(
            elements
                .iter()
                .filter_map(|element| match too_long(element) {
                    Some(why) => {
                        self.report(name, None, why);
                        None
                    }
                    None => self.read(name, element),
                })
                .collect(),
        )
    }

    fn nodes(&mut self, name: &'static str) -> Vec<Arc<Node>> {
        let raw = self.take(name);
        let elements = raw.as_deref().and_then(|raw| self.elements(name, raw));
        let elements = elements.unwrap_or_default();
        if elements.len() > MAX_NODES {
            self.too_many = Some(elements.len());
            return Vec::new();
        }
        elements
            .iter()
            .filter_map(|element| self.node(name, element).map(Arc::new))
            .collect()
    }

    fn node(&mut self, field: &'static str, raw: &RawValue) -> Option<Node> {
        #[derive(serde::Deserialize)]
        struct Id {
            #[serde(rename = "ID")]
            id: NodeId,
        }
        if let Some(why) = too_long(raw) {
            self.report(field, None, why);
            return None;
        }
        let why = match serde_json::from_str::<Node>(raw.get()) {
            Err(error) => error.to_string(),
            Ok(node) if node.id.0 <= 0 => "a node's ID has to be positive".to_owned(),
            Ok(node) if node.key.is_zero() => "the node has no key".to_owned(),
            Ok(node) => return Some(node),
        };
        let id = serde_json::from_str::<Id>(raw.get()).ok().map(|id| id.id);
        self.report(field, id, why);
        None
    }

    fn filters(&mut self) -> BTreeMap<String, Option<Vec<FilterRule>>> {
        const NAME: &str = "PacketFilters";
        let filters: BTreeMap<String, Option<Box<RawValue>>> = self.field(NAME).unwrap_or_default();
        filters
            .into_iter()
            .map(|(name, raw)| {
                (
                    name,
                    raw.filter(|raw| raw.get() != "null")
                        .map(|raw| self.rules(NAME, &raw)),
                )
            })
            .collect()
    }

    /// Rules only ever allow, so leaving one out is safe.
    fn rules(&mut self, field: &'static str, raw: &RawValue) -> Vec<FilterRule> {
        let elements = self.elements(field, raw).unwrap_or_default();
        elements
            .iter()
            .filter_map(|element| self.rule(field, element))
            .collect()
    }

    fn rule(&mut self, field: &'static str, raw: &RawValue) -> Option<FilterRule> {
        /// Fields from before 2021 that narrowed what the others say: reading past them would widen the rule.
        #[derive(serde::Deserialize)]
        struct Obsolete {
            #[serde(rename = "SrcBits")]
            source_bits: Option<serde_json::Value>,
            #[serde(rename = "DstPorts", default)]
            destinations: Option<Vec<ObsoletePort>>,
        }
        #[derive(serde::Deserialize)]
        struct ObsoletePort {
            #[serde(rename = "Bits")]
            bits: Option<serde_json::Value>,
        }
        let old: Obsolete = self.read(field, raw)?;
        if old.source_bits.is_some()
            || old
                .destinations
                .is_some_and(|ports| ports.iter().any(|port| port.bits.is_some()))
        {
            self.report(
                field,
                None,
                "the rule uses the obsolete SrcBits or Bits".to_owned(),
            );
            return None;
        }
        self.read(field, raw)
    }
}

fn too_long(element: &RawValue) -> Option<String> {
    let length = element.get().len();
    (length > MAX_ELEMENT).then(|| format!("{length} bytes, of which there may be {MAX_ELEMENT}"))
}
