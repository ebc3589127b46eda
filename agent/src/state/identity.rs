//! Identity and preferences, and how the state file says them.

use std::{collections::BTreeMap, path::Path};

use lowroad_wire::key::{DiscoPrivate, MachinePrivate, MachinePublic, NodePrivate};
use serde::{Deserialize, Serialize};

use super::{LeftKey, StateError, VERSION};
use crate::prefs::Prefs;

/// Identity and preferences. Its `Debug` shows no key, because the key types' doesn't.
#[derive(Debug, Clone)]
pub struct State {
    /// Names this installation's pinned kernel objects; 16 hex digits.
    pub id: String,
    pub machine_key: MachinePrivate,
    /// Peers know this node's path discovery by it. It outlives the agent, so that a new one is understood also while nobody could tell them another key.
    pub disco_key: DiscoPrivate,
    /// `None` until the first login and after a logout.
    pub node_key: Option<NodePrivate>,
    /// The key in use before a rotation, until the server has accepted the new one.
    pub old_node_key: Option<NodePrivate>,
    /// URL of the server that has accepted the node key.
    pub registered_at: Option<String>,
    /// URL of the server that the node key is being registered with, until that accepts it.
    pub made_for: Option<String>,
    /// Of logins that nobody finished, and of other servers; the newest last.
    pub left_node_keys: Vec<LeftKey>,
    /// Each server's Noise key as first seen, by URL.
    pub server_keys: BTreeMap<String, MachinePublic>,
    pub prefs: Prefs,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    version: u64,
    id: String,
    machine_key: String,
    /// Not in files of the first versions.
    #[serde(default)]
    disco_key: Option<String>,
    #[serde(default)]
    node_key: Option<String>,
    #[serde(default)]
    old_node_key: Option<String>,
    #[serde(default)]
    registered_at: Option<String>,
    #[serde(default)]
    made_for: Option<String>,
    #[serde(default)]
    left_node_keys: Vec<StoredLeftKey>,
    #[serde(default)]
    server_keys: BTreeMap<String, MachinePublic>,
    #[serde(default)]
    prefs: Prefs,
}

#[derive(Serialize, Deserialize)]
struct StoredLeftKey {
    server: String,
    key: String,
    accepted: bool,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: serde_json::Value,
}

impl State {
    pub(super) fn new(random: &mut impl FnMut(&mut [u8])) -> Self {
        let mut id = [0; 8];
        random(&mut id);
        let mut machine = zeroize::Zeroizing::new([0; 32]);
        random(&mut *machine);
        Self {
            id: hex::encode(id),
            machine_key: MachinePrivate::from_random(*machine),
            disco_key: new_disco_key(random),
            node_key: None,
            old_node_key: None,
            registered_at: None,
            made_for: None,
            left_node_keys: Vec::new(),
            server_keys: BTreeMap::new(),
            prefs: Prefs::default(),
        }
    }

    /// What the file says, and whether it said everything. Errors name `path`, and quote nothing of what they found.
    pub fn parse(
        text: &[u8],
        path: &Path,
        random: &mut impl FnMut(&mut [u8]),
    ) -> Result<(Self, bool), StateError> {
        // serde's messages may quote the text they stumble over, which may be a key: say only where.
        let damaged = |why: String| StateError::Damaged {
            path: path.to_owned(),
            why,
        };
        let at = |error: serde_json::Error| {
            damaged(format!("line {}, column {}", error.line(), error.column()))
        };
        let version: VersionOnly = serde_json::from_slice(text).map_err(at)?;
        if version.version != VERSION {
            return Err(StateError::OtherVersion {
                path: path.to_owned(),
                // Anything but a number could be anything, a key as well.
                found: version
                    .version
                    .as_u64()
                    .map_or_else(|| "unknown".to_owned(), |number| number.to_string()),
            });
        }
        let stored: Stored = serde_json::from_slice(text).map_err(at)?;
        let node = |text: Option<String>, name: &str| {
            text.map(|text| zeroize::Zeroizing::new(text).parse::<NodePrivate>())
                .transpose()
                .map_err(|_| damaged(format!("{name} is not a key")))
        };
        let machine_key = zeroize::Zeroizing::new(stored.machine_key)
            .parse()
            .map_err(|_| damaged("machine_key is not a key".into()))?;
        let disco = stored
            .disco_key
            .map(|text| zeroize::Zeroizing::new(text).parse())
            .transpose()
            .map_err(|_| damaged("disco_key is not a key".into()))?;
        let complete = disco.is_some();
        let left_node_keys = stored.left_node_keys.into_iter().map(|left| {
            let StoredLeftKey {
                server,
                key,
                accepted,
            } = left;
            let key = zeroize::Zeroizing::new(key).parse();
            let key = key.map_err(|_| damaged("one of left_node_keys is not a key".into()))?;
            Ok(LeftKey {
                server,
                key,
                accepted,
            })
        });
        let mut state = Self {
            left_node_keys: left_node_keys.collect::<Result<_, StateError>>()?,
            disco_key: disco.unwrap_or_else(|| new_disco_key(random)),
            machine_key,
            node_key: node(stored.node_key, "node_key")?,
            old_node_key: node(stored.old_node_key, "old_node_key")?,
            id: if valid_id(&stored.id) {
                stored.id
            } else {
                return Err(damaged("id is not 16 hex digits".into()));
            },
            registered_at: stored.registered_at,
            made_for: stored.made_for,
            server_keys: stored.server_keys,
            prefs: stored.prefs,
        };
        state.keep_newest_left();
        Ok((state, complete))
    }

    pub(super) fn to_stored(&self) -> Stored {
        Stored {
            version: VERSION,
            id: self.id.clone(),
            machine_key: self.machine_key.to_text().to_string(),
            disco_key: Some(self.disco_key.to_text().to_string()),
            node_key: self.node_key.as_ref().map(|key| key.to_text().to_string()),
            old_node_key: self
                .old_node_key
                .as_ref()
                .map(|key| key.to_text().to_string()),
            registered_at: self.registered_at.clone(),
            made_for: self.made_for.clone(),
            left_node_keys: self.left_node_keys.iter().map(stored_left_key).collect(),
            server_keys: self.server_keys.clone(),
            prefs: self.prefs.clone(),
        }
    }
}

fn stored_left_key(left: &LeftKey) -> StoredLeftKey {
    StoredLeftKey {
        server: left.server.clone(),
        key: left.key.to_text().to_string(),
        accepted: left.accepted,
    }
}

fn new_disco_key(random: &mut impl FnMut(&mut [u8])) -> DiscoPrivate {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    random(&mut *bytes);
    DiscoPrivate::from_random(*bytes)
}

/// It becomes a directory name below the bpffs.
fn valid_id(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit())
}
