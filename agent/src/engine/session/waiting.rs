//! What a session still waits for.

use time::OffsetDateTime;

use super::Session;

impl Session {
    /// True if our own key has expired by the netmap in use.
    pub fn is_expired(&self) -> bool {
        let map = self.node.as_ref().and_then(|node| node.map.as_ref());
        map.is_some_and(|map| map.own_key_has_expired(map.control_time(OffsetDateTime::now_utc())))
    }

    /// What is missing until `up` may return (design.md, First contact); `None` when connected.
    pub fn waiting_for(&self) -> Option<String> {
        if self.registered.is_none() && !self.auth_url.is_empty() {
            return Some(format!("somebody to visit {}", self.auth_url));
        }
        let Some((node, map)) = self
            .node
            .as_ref()
            .and_then(|node| Some((node, node.map.as_ref()?)))
            // One without this node is void.
            .filter(|(_, map)| map.self_node.is_some())
        else {
            return Some(match &self.trouble {
                Some(trouble) => format!("the login server ({})", trouble.message),
                None if self.registered.is_none() => {
                    "the login server to accept this node".to_owned()
                }
                None => "the netmap".to_owned(),
            });
        };
        if node.cached.is_some() {
            return Some(match &self.trouble {
                Some(trouble) => format!("the login server ({})", trouble.message),
                None => "the login server".to_owned(),
            });
        }
        if map
            .self_node
            .as_ref()
            .is_some_and(|node| !node.machine_authorized)
        {
            return Some("an administrator to approve this machine".to_owned());
        }
        if self.is_expired() {
            return Some("this node's key to be renewed".to_owned());
        }
        if !node.programmed {
            return Some("the kernel to be programmed".to_owned());
        }
        if let Some(net) = &self.net {
            if !net.is_settled() {
                return Some("the nearest relay to be found".to_owned());
            }
            if let Some(home) = net.home().filter(|home| !net.is_connected(*home)) {
                return Some(format!("the home relay {}", self.region_code(home)));
            }
        }
        (self.acknowledged < self.facts.generation)
            .then(|| "the login server to take note of this node's addresses".to_owned())
    }
}
