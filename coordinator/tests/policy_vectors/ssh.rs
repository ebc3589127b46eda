//! SSH policies by meaning.

use std::collections::BTreeSet;

use lowroad_wire::control::{SshAction, SshPolicy, SshRule};

/// A login name that no policy names.
const SOMEBODY: &str = "somebody else";

/// The first login that one of the two treats otherwise than the other, described.
///
/// The first rule decides that has the source among its principals and a local user for the name. So it is enough to try each
/// source and each name that either of them has, and a name that neither has.
pub fn difference(ours: &SshPolicy, theirs: &SshPolicy) -> Option<String> {
    let rules = || ours.rules.iter().chain(&theirs.rules);
    let sources: BTreeSet<&str> = rules().flat_map(addresses).collect();
    let names = rules().flat_map(|rule| rule.ssh_users.keys());
    let names: BTreeSet<&str> = names
        .map(String::as_str)
        .filter(|name| *name != "*")
        .chain(["root", SOMEBODY])
        .collect();
    for source in sources {
        for name in &names {
            let (ours, theirs) = (decision(ours, source, name), decision(theirs, source, name));
            if ours != theirs {
                return Some(format!("{name:?} from {source}: {ours:?}, not {theirs:?}"));
            }
        }
    }
    None
}

fn addresses(rule: &SshRule) -> impl Iterator<Item = &str> {
    rule.principals.iter().map(|principal| {
        let by_address = principal.node.0.is_empty() && principal.user_login.is_empty();
        assert!(by_address && !principal.any, "principals are addresses");
        principal.node_ip.as_str()
    })
}

/// The local user, what happens, and the variables that are taken over.
fn decision<'a>(
    policy: &'a SshPolicy,
    source: &str,
    name: &'a str,
) -> Option<(&'a str, &'a SshAction, &'a [String])> {
    policy.rules.iter().find_map(|rule| {
        assert_eq!(rule.rule_expires, None, "rules never expire");
        addresses(rule).find(|address| *address == source)?;
        let user = rule
            .ssh_users
            .get(name)
            .or_else(|| rule.ssh_users.get("*"))?;
        let user = if user == "=" { name } else { user.as_str() };
        (!user.is_empty()).then_some((user, &rule.action, &*rule.accept_env))
    })
}
