//! What a person should look at.

use lowroad_wire::netmap::NetMap;
use time::OffsetDateTime;

use crate::engine::{Engine, cached::Ended, node::Node, session::Session};

/// The preference is kept for the day when there is a DNS server.
const ACCEPT_DNS: &str =
    "--accept-dns changes nothing yet (`lowroad set --accept-dns=false` silences this)";
const EXPIRED: &str = "this node's key has expired: log in again with `lowroad up --force-reauth`";

impl Engine {
    /// Worst first.
    pub(in crate::engine) fn health(&self) -> Vec<String> {
        let mut health: Vec<String> = self.failure.iter().cloned().collect();
        if let Some(session) = &self.session {
            health.extend(of_connections(session));
        }
        if let Some(node) = self.node() {
            health.extend(of_kernel(node));
            health.extend(of_netmap(node));
        }
        if let Some(map) = self.map() {
            health.extend(of_control(map));
        }
        if self.ended != Ended::No {
            health.push(EXPIRED.to_owned());
        }
        if self.session.is_none() && !self.prefs.want_running && self.state.node_key.is_some() {
            health.push("lowroad is stopped.".to_owned());
        }
        // On by default, as with the stock client: one short line, the last one.
        if self.prefs.corp_dns {
            health.push(ACCEPT_DNS.to_owned());
        }
        health
    }
}

fn of_connections(session: &Session) -> Vec<String> {
    let mut health = Vec::new();
    if let Some(trouble) = &session.trouble {
        health.push(format!(
            "no connection to the login server: {}",
            trouble.message
        ));
    }
    if let Some(net) = &session.net {
        health.extend(net.health());
        if let Some(home) = net.home().filter(|home| !net.is_connected(*home)) {
            health.push(format!(
                "no connection to the home relay {}: peers without a direct path cannot be reached",
                session.region_code(home)
            ));
        }
    }
    if let Some(why) = &session.why_userspace {
        health.push(format!("packets pass through userspace: {why}"));
    }
    health
}

/// What is not in force as the netmap says.
fn of_kernel(node: &Node) -> Vec<String> {
    let mut health = Vec::new();
    if let Some(why) = node.closed() {
        health.push(format!(
            "nothing passes: the policy cannot be put in force ({why}); it is tried again"
        ));
    }
    if let Some(saved) = node.cached {
        let age = (OffsetDateTime::now_utc() - saved).whole_minutes();
        health.push(format!(
            "the login server has not answered since this agent started: it runs on the netmap of {age} min ago"
        ));
    }
    if node.map.is_some() && !node.programmed {
        let behind = "the kernel does not hold yet what the netmap wants";
        health.push(match node.failure() {
            Some(why) => format!("{behind} ({why}); it is tried again"),
            None => behind.to_owned(),
        });
    }
    health
}

/// What of the netmap was passed over.
fn of_netmap(node: &Node) -> Vec<String> {
    let mut health = Vec::new();
    if let [first, ..] = node.filter_notes() {
        health.push(format!(
            "{} parts of the policy are not in force, the first: {first} (see the log)",
            node.filter_notes().len()
        ));
    }
    if node.left_out > 0 {
        health.push(format!(
            "the netmap is too large: {} parts of it were left out",
            node.left_out
        ));
    }
    if !node.malformed.is_empty() {
        health.push(format!(
            "{} malformed parts of the netmap were left out (see the log)",
            node.malformed.len()
        ));
    }
    health
}

/// What the login server says, and that the key has expired.
fn of_control(map: &NetMap) -> Vec<String> {
    let mut health = map.health.clone();
    let now = map.control_time(OffsetDateTime::now_utc());
    if map.own_key_has_expired(now) {
        health.push(EXPIRED.to_owned());
    }
    health
}
