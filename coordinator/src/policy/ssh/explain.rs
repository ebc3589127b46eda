//! Which rule lets whom log in where, for people.

use std::collections::BTreeSet;

use super::super::explain::Clause;
use super::super::view::CompiledTailnet;
use super::compile::Access;

impl CompiledTailnet {
    /// Who may log in to a node, in the order in which the node looks at the rules: the first that knows a login decides.
    pub(crate) fn logins_here(&self, at: usize) -> Vec<Clause> {
        let rules = self.parts().ssh.rules.iter();
        rules
            .filter_map(|access| {
                let from = self.sources_of_logins(access, at)?;
                clause(
                    access,
                    self.ids(from.iter().filter(|from| *from != at)),
                    self.ids([at].into_iter()),
                )
            })
            .collect()
    }

    /// Where the node's users may log in.
    pub(crate) fn logins_elsewhere(&self, at: usize) -> Vec<Clause> {
        let rules = self.parts().ssh.rules.iter();
        rules
            .filter(|access| access.sources.contains(at))
            .filter_map(|access| {
                let mut to: BTreeSet<usize> = access.destinations.iter().collect();
                let devices = self.devices_with(at).into_iter().flat_map(|own| own.iter());
                to.extend(devices.filter(|to| {
                    let from = self.sources_of_logins(access, *to);
                    from.is_some_and(|from| from.contains(at))
                }));
                to.remove(&at);
                clause(access, self.ids([at].into_iter()), self.ids(to.into_iter()))
            })
            .collect()
    }
}

/// None where no other node is at the other end.
fn clause(
    access: &Access,
    from_nodes: Vec<lowroad_wire::control::NodeId>,
    to_nodes: Vec<lowroad_wire::control::NodeId>,
) -> Option<Clause> {
    (!from_nodes.is_empty() && !to_nodes.is_empty()).then(|| Clause {
        origin: Some(access.origin),
        follows: false,
        from: Vec::new(),
        from_nodes,
        to: Vec::new(),
        to_nodes,
        access: access.texts(),
    })
}
