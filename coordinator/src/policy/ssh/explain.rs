//! Which rule lets whom log in where, for people.

use std::collections::{BTreeMap, BTreeSet};

use lowroad_wire::control::NodeId;

use super::super::explain::Clause;
use super::super::view::CompiledTailnet;
use super::compile::Access;

impl CompiledTailnet {
    /// Who may log in to a node, in the order in which the node looks at the rules: the first that knows a login decides.
    pub(crate) fn logins_here(&self, at: usize) -> Vec<Clause> {
        let mut clauses = Vec::new();
        for access in &self.parts().ssh.rules {
            let mut by_domain: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
            for from in self
                .sources_of_logins(access, at)
                .iter()
                .flat_map(|from| from.iter())
            {
                let domain = self.domain_of(access, from);
                by_domain.entry(domain).or_default().push(from);
            }
            clauses.extend(by_domain.into_iter().filter_map(|(domain, from)| {
                let from = from.into_iter().filter(|from| *from != at);
                clause(access, domain, self.ids(from), self.ids([at].into_iter()))
            }));
        }
        clauses
    }

    /// Where the node's user may log in.
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
                let domain = self.domain_of(access, at);
                let from = self.ids([at].into_iter());
                clause(access, domain, from, self.ids(to.into_iter()))
            })
            .collect()
    }

    /// The first of a rule's `localpart:` domains where the node's user has an address.
    fn domain_of<'a>(&self, access: &'a Access, at: usize) -> Option<&'a str> {
        let parts = self.parts();
        let user = parts.nodes[at].facts.owner()?;
        let mut domains = access.domains.iter().map(String::as_str);
        domains.find(|domain| parts.people.local_part(user, domain).is_some())
    }
}

/// None where no other node is at the other end, or no login is allowed.
fn clause(
    access: &Access,
    domain: Option<&str>,
    from_nodes: Vec<NodeId>,
    to_nodes: Vec<NodeId>,
) -> Option<Clause> {
    let texts = access.texts(domain);
    let says_something = !from_nodes.is_empty() && !to_nodes.is_empty() && !texts.is_empty();
    says_something.then(|| Clause {
        origin: Some(access.origin),
        follows: false,
        from: Vec::new(),
        from_nodes,
        to: Vec::new(),
        to_nodes,
        access: texts,
    })
}
