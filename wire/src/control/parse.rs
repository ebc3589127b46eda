//! Reading a [`MapResponse`] so that one malformed piece costs that piece and nothing more.

mod fields;
mod kept;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::value::RawValue;

use self::{
    fields::{Fields, Named},
    kept::entries,
};
use super::{
    CGNAT, FilterRule, MapResponse, Node, NodeId, PeerChange, ULA, census, go, node::is_address,
};
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
/// Bytes of one rule, and of any other field: the addresses of 80,000 nodes fit in, and who of a hundred thousand is online.
const MAX_FIELD: usize = 4 << 20;
/// Bytes of the relay map, of which several copies are kept, and of messages to people. The hosted service's map, the largest known, has some 30 KB.
const MAX_SMALL: usize = 256 << 10;
/// Latencies that peers have measured; those after them are left out, for netmaps keep none (Headscale tells of some for each peer).
const MAX_LATENCIES: usize = 1 << 18;
/// Filters have a name each for what brings them; stock servers know a few.
const MAX_FILTERS: usize = 4096;

impl MapResponse {
    /// Reads one message, and says what of it was skipped.
    ///
    /// A malformed field counts as absent, a malformed element of a list as not in it. A packet filter that is no list
    /// counts as empty: it blocks all.
    ///
    /// # Errors
    /// The bytes are not a JSON object, or it has more elements, members or peers than any tailnet's: then nothing of it is taken.
    pub fn parse(json: &[u8]) -> Result<(Self, Vec<Malformed>), Error> {
        census::check(json)?;
        let fields = serde_json::from_slice(json).map_err(|source| Error::Json {
            what: "map response",
            source,
        })?;
        let mut reader = Reader {
            fields,
            malformed: Vec::new(),
            entries: 0,
            latencies: 0,
            refused: None,
        };
        let response = reader.response();
        match reader.refused {
            Some(error) => Err(error),
            None => Ok((response, reader.malformed)),
        }
    }
}

/// Borrows all that it reads: a hostile message of very many pieces leaves no heap of small ones behind.
struct Reader<'a> {
    fields: Fields<'a>,
    malformed: Vec<Malformed>,
    /// Entries of maps that were kept; each takes many times its text.
    entries: usize,
    latencies: usize,
    /// Why nothing of the message is taken.
    refused: Option<Error>,
}

impl<'a> Reader<'a> {
    fn response(&mut self) -> MapResponse {
        MapResponse {
            map_session_handle: self.field("MapSessionHandle").unwrap_or_default(),
            seq: self.field("Seq").unwrap_or_default(),
            keep_alive: self.field("KeepAlive").unwrap_or_default(),
            ping_request: self.field("PingRequest"),
            pop_browser_url: self.field("PopBrowserURL").unwrap_or_default(),
            node: self.take("Node").and_then(|raw| self.node("Node", raw)),
            derp_map: self.field_within("DERPMap", MAX_SMALL),
            peers: self.nodes("Peers"),
            peers_changed: self.nodes("PeersChanged"),
            peers_removed: self.list("PeersRemoved").unwrap_or_default(),
            peers_changed_patch: self.patches(),
            peer_seen_change: self.field("PeerSeenChange").unwrap_or_default(),
            online_change: self.field("OnlineChange").unwrap_or_default(),
            dns_config: self.field("DNSConfig"),
            domain: self.field("Domain").unwrap_or_default(),
            collect_services: self.field("CollectServices"),
            packet_filter: self
                .take("PacketFilter")
                .map(|raw| self.rules("PacketFilter", raw)),
            packet_filters: self.filters(),
            user_profiles: self.list("UserProfiles").unwrap_or_default(),
            health: self.list("Health"),
            display_messages: self
                .field_within("DisplayMessages", MAX_SMALL)
                .unwrap_or_default(),
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
    fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        self.fields.take(name).filter(|raw| raw.get() != "null")
    }

    /// Takes nothing of the message if there are more than may be.
    fn at_most(&mut self, what: &'static str, got: usize, limit: usize) -> bool {
        match census::at_most(what, got, limit) {
            Ok(()) => true,
            Err(error) => {
                self.refused.get_or_insert(error);
                false
            }
        }
    }

    /// Counts entries of maps with those before them; false if no more may be kept.
    fn keep(&mut self, entries: usize) -> bool {
        self.entries += entries;
        self.at_most(
            "the capabilities of a map response",
            self.entries,
            census::MAX_ELEMENTS,
        )
    }

    fn read<'r, T: Deserialize<'r>>(
        &mut self,
        field: &'static str,
        raw: &'r RawValue,
    ) -> Option<T> {
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
        self.field_within(name, MAX_FIELD)
    }

    fn field_within<T: DeserializeOwned>(&mut self, name: &'static str, limit: usize) -> Option<T> {
        let raw = self.take(name)?;
        self.is_within(name, raw, limit)
            .then(|| self.read(name, raw))?
    }

    fn is_within(&mut self, field: &'static str, raw: &RawValue, limit: usize) -> bool {
        let length = raw.get().len();
        if length > limit {
            let why = format!("{length} bytes, of which there may be {limit}");
            self.report(field, None, why);
        }
        length <= limit
    }

    fn time(&mut self, name: &'static str) -> Option<time::OffsetDateTime> {
        let raw = self.take(name)?;
        go::timestamp::deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
            .inspect_err(|error| self.report(name, None, error.to_string()))
            .ok()
            .flatten()
    }

    fn elements(&mut self, field: &'static str, raw: &'a RawValue) -> Option<Vec<&'a RawValue>> {
        serde_json::from_str(raw.get())
            .inspect_err(|error| self.report(field, None, error.to_string()))
            .ok()
    }

    /// The elements of a list that has one for each node, or for each user, at the most.
    fn bounded(&mut self, name: &'static str) -> Option<Vec<&'a RawValue>> {
        let raw = self.take(name)?;
        let elements = self.elements(name, raw)?;
        let what = match name {
            "Peers" | "PeersChanged" => "the map's list of peers",
            _ => name,
        };
        self.at_most(what, elements.len(), MAX_NODES)
            .then_some(elements)
    }

    fn list<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<Vec<T>> {
        let elements = self.bounded(name)?;
        let read = elements.iter().filter_map(|element| {
            self.is_within(name, element, MAX_ELEMENT)
                .then(|| self.read(name, element))?
        });
        Some(read.collect())
    }

    fn patches(&mut self) -> Vec<PeerChange> {
        const NAME: &str = "PeersChangedPatch";
        let mut patches = Vec::new();
        for element in self.bounded(NAME).unwrap_or_default() {
            if !self.is_within(NAME, element, MAX_ELEMENT) {
                continue;
            }
            let Some(patch) = self.read::<PeerChange>(NAME, element) else {
                continue;
            };
            if !self.keep(patch.cap_map.as_ref().map_or(0, entries)) {
                break;
            }
            patches.push(patch);
        }
        patches
    }

    fn nodes(&mut self, name: &'static str) -> Vec<Arc<Node>> {
        let mut nodes = Vec::new();
        for element in self.bounded(name).unwrap_or_default() {
            let Some(mut node) = self.node(name, element) else {
                continue;
            };
            if let Some(measured) = &node.hostinfo.net_info {
                self.latencies += measured.derp_latency.len();
                if self.latencies > MAX_LATENCIES {
                    node.hostinfo.net_info = None;
                }
            }
            if !self.keep(entries(&node.cap_map)) {
                break;
            }
            // Of ten thousand nodes each has two addresses, for which room for four is made.
            node.addresses.shrink_to_fit();
            node.allowed_ips.iter_mut().for_each(Vec::shrink_to_fit);
            nodes.push(Arc::new(node));
        }
        nodes
    }

    fn node(&mut self, field: &'static str, raw: &RawValue) -> Option<Node> {
        #[derive(serde::Deserialize)]
        struct Id {
            #[serde(rename = "ID")]
            id: NodeId,
        }
        if !self.is_within(field, raw, MAX_ELEMENT) {
            return None;
        }
        let why = match serde_json::from_str::<Node>(raw.get()) {
            Err(error) => error.to_string(),
            Ok(node) if node.id.0 <= 0 => "a node's ID has to be positive".to_owned(),
            Ok(node) if node.key.is_zero() => "the node has no key".to_owned(),
            Ok(node) => return Some(self.with_own_addresses(field, node)),
        };
        let id = serde_json::from_str::<Id>(raw.get()).ok().map(|id| id.id);
        self.report(field, id, why);
        None
    }

    /// A node has no address of anybody else's network: it would be ours, or routed to it, without a question to the user.
    fn with_own_addresses(&mut self, field: &'static str, mut node: Node) -> Node {
        if let Some(other) = node.addresses.iter().find(|net| !is_address(net)) {
            let why = format!("{other} is no address of a node: those are in {CGNAT} or {ULA}");
            self.report(field, Some(node.id), why);
            node.addresses.retain(is_address);
        }
        node
    }

    fn filters(&mut self) -> BTreeMap<String, Option<Vec<FilterRule>>> {
        const NAME: &str = "PacketFilters";
        let Some(Named { pieces, count }) = self.take(NAME).and_then(|raw| self.read(NAME, raw))
        else {
            return BTreeMap::new();
        };
        if !self.at_most("the map's named filters", count, MAX_FILTERS) {
            return BTreeMap::new();
        }
        let mut filters = BTreeMap::new();
        for (name, raw) in pieces {
            filters.insert(name, raw.map(|raw| self.rules(NAME, raw)));
        }
        filters
    }

    /// Rules only ever allow, so leaving one out is safe.
    fn rules(&mut self, field: &'static str, raw: &'a RawValue) -> Vec<FilterRule> {
        let mut rules = Vec::new();
        for element in self.elements(field, raw).unwrap_or_default() {
            let Some(rule) = self.rule(field, element) else {
                continue;
            };
            let grants = rule.cap_grant.iter();
            if !self.keep(grants.map(|grant| entries(&grant.cap_map)).sum()) {
                break;
            }
            rules.push(rule);
        }
        rules
    }

    fn rule(&mut self, field: &'static str, raw: &RawValue) -> Option<FilterRule> {
        /// Fields from before 2021 that narrowed what the others say: reading past them would widen the rule.
        #[derive(serde::Deserialize)]
        struct Obsolete {
            #[serde(rename = "SrcBits")]
            source_bits: Option<IgnoredAny>,
            #[serde(rename = "DstPorts", default)]
            destinations: Option<Vec<ObsoletePort>>,
        }
        #[derive(serde::Deserialize)]
        struct ObsoletePort {
            #[serde(rename = "Bits")]
            bits: Option<IgnoredAny>,
        }
        if !self.is_within(field, raw, MAX_FIELD) {
            return None;
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
