//! Node keys: which one is in use, and which were left with a login that nobody finished. A server may accept a key without this node hearing of it: a person visits
//! the page while the agent is down, an answer is lost. Such a key would be the only way back to the node that it then is.

use lowroad_wire::key::NodePrivate;

use super::State;

/// So many left keys are kept; the oldest goes first, and one that a server is known to have accepted last.
pub const MAX_LEFT: usize = 4;

/// A node key that isn't in use. Its `Debug` shows no key, because the key type's doesn't.
#[derive(Debug, Clone)]
pub struct LeftKey {
    /// URL of the only server that it was sent to.
    pub server: String,
    pub key: NodePrivate,
    /// The server said so. If not, it may have all the same.
    pub accepted: bool,
}

impl State {
    /// `node` is to be registered with a server, in place of `old`. That is something to go back to only if a server has accepted it.
    pub fn begin_key(&mut self, node: NodePrivate, old: Option<NodePrivate>, server: &str) {
        let registered_at = self.registered_at.clone();
        let old = old.filter(|_| registered_at.is_some());
        self.left_node_keys.retain(|left| left.key != node);
        for left in self.take_keys() {
            if left.key != node && Some(&left.key) != old.as_ref() {
                self.leave(left);
            }
        }
        self.registered_at = registered_at.filter(|_| old.is_some());
        self.made_for = Some(server.to_owned());
        self.node_key = Some(node);
        self.old_node_key = old;
    }

    /// The server accepts the node key. The one before it is of no use any more, unless it is another server's.
    pub fn accept_key(&mut self, server: &str) {
        let before = self.registered_at.replace(server.to_owned());
        self.made_for = None;
        if let Some(key) = self.old_node_key.take()
            && let Some(before) = before.filter(|before| before != server)
        {
            self.leave(LeftKey {
                server: before,
                key,
                accepted: true,
            });
        }
    }

    /// Nobody finishes the login any more that was to replace the node key: the one before it is in use again. True if there was such a login.
    pub fn leave_pending_key(&mut self) -> bool {
        if self.old_node_key.is_none() {
            return false;
        }
        let registered_at = self.registered_at.clone();
        let mut keys = self.take_keys();
        if let Some(pending) = keys.pop() {
            self.leave(pending);
        }
        if let Some(old) = keys.pop() {
            self.made_for = registered_at.is_none().then_some(old.server);
            self.registered_at = registered_at;
            self.node_key = Some(old.key);
        }
        true
    }

    /// The same for a first login: a key that no server is known to have accepted is no identity.
    pub fn leave_unaccepted_keys(&mut self) -> bool {
        if self.registered_at.is_some() {
            return self.leave_pending_key();
        }
        let keys = self.take_keys();
        let any = !keys.is_empty();
        keys.into_iter().for_each(|key| self.leave(key));
        any
    }

    /// Puts the key into use that this server knows, or may know, if the one in use is another server's or there is none. True if that changed anything.
    pub fn use_key_of(&mut self, server: &str) -> bool {
        self.use_key(server, |_| true)
    }

    /// The same, but only a key that it has said to know.
    pub fn use_accepted_key_of(&mut self, server: &str) -> bool {
        self.use_key(server, |left| left.accepted)
    }

    fn use_key(&mut self, server: &str, fits: impl Fn(&LeftKey) -> bool) -> bool {
        let used_at = match self.old_node_key {
            Some(_) => self.made_for.as_ref(),
            None => self.registered_at.as_ref().or(self.made_for.as_ref()),
        };
        let mut changed = false;
        if used_at.is_some_and(|used_at| used_at != server) {
            self.leave_pending_key();
            if self.registered_at.as_deref() != Some(server) {
                let keys = self.take_keys();
                keys.into_iter().for_each(|key| self.leave(key));
            }
            changed = true;
        }
        if self.node_key.is_some() {
            return changed;
        }
        let of_server = self.left_node_keys.iter().enumerate();
        let best = of_server
            .filter(|(_, left)| left.server == server && fits(left))
            .max_by_key(|(place, left)| (left.accepted, *place))
            .map(|(place, _)| place);
        let Some(place) = best else {
            return changed;
        };
        let left = self.left_node_keys.remove(place);
        self.node_key = Some(left.key);
        match left.accepted {
            true => self.registered_at = Some(left.server),
            false => self.made_for = Some(left.server),
        }
        true
    }

    /// Whether this server has accepted the node key in use.
    pub fn is_accepted_by(&self, server: &str) -> bool {
        self.node_key.is_some()
            && self.old_node_key.is_none()
            && self.registered_at.as_deref() == Some(server)
    }

    /// Whether this node is known to be this server's, by the key in use or by another.
    pub fn is_of(&self, server: &str) -> bool {
        let of_left = |left: &LeftKey| left.accepted && left.server == server;
        self.registered_at.as_deref() == Some(server) || self.left_node_keys.iter().any(of_left)
    }

    /// Keys that this server may know although they aren't in use, the newest first.
    pub fn left_keys_of(&self, server: &str) -> Vec<NodePrivate> {
        let of_server = self.left_node_keys.iter().rev();
        of_server
            .filter(|left| left.server == server)
            .map(|left| left.key.clone())
            .collect()
    }

    /// Ends all that this node is anywhere: whom to tell so, the one in use first.
    pub fn forget_keys(&mut self) -> Vec<LeftKey> {
        self.leave_pending_key();
        let mut keys = self.take_keys();
        keys.extend(std::mem::take(&mut self.left_node_keys).into_iter().rev());
        keys
    }

    /// The keys in use, the newest last, which are not in use any more then.
    fn take_keys(&mut self) -> Vec<LeftKey> {
        let registered_at = self.registered_at.take();
        // State files of earlier versions don't say it.
        let made_for = self
            .made_for
            .take()
            .or_else(|| registered_at.clone())
            .unwrap_or_else(|| self.prefs.control_url.clone());
        let accepted = |key| match &registered_at {
            Some(server) => LeftKey {
                server: server.clone(),
                key,
                accepted: true,
            },
            None => LeftKey {
                server: made_for.clone(),
                key,
                accepted: false,
            },
        };
        let (old, node) = (self.old_node_key.take(), self.node_key.take());
        let pending = |key| LeftKey {
            server: made_for.clone(),
            key,
            accepted: false,
        };
        let node = match old {
            Some(_) => node.map(pending),
            None => node.map(&accepted),
        };
        old.map(&accepted).into_iter().chain(node).collect()
    }

    fn leave(&mut self, left: LeftKey) {
        self.left_node_keys.retain(|other| other.key != left.key);
        self.left_node_keys.push(left);
        self.keep_newest_left();
    }

    pub(super) fn keep_newest_left(&mut self) {
        while self.left_node_keys.len() > MAX_LEFT {
            let unaccepted = self.left_node_keys.iter().position(|left| !left.accepted);
            self.left_node_keys.remove(unaccepted.unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests;
