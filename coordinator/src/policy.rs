//! The policy: who may reach whom, written in HuJSON, compiled into packet filters per node.
//!
//! [`Policy::parse`] judges the text by itself; [`compile`] applies it to the users and nodes of
//! the tailnet, and is what a new policy has to pass; [`recompile`] follows changes of users and
//! nodes under a policy in force, and cannot fail. The rules are those of the hosted service,
//! `protocol.md` 10.4. What lowroad cannot enforce yet is refused, never skipped.
//!
//! Everything here is pure: no I/O, no clock.

mod access;
mod acl;
mod addresses;
mod alias;
mod attributes;
mod bits;
mod budget;
mod capability;
mod check;
mod compile;
mod diff;
pub mod edit;
mod error;
mod excerpt;
mod explain;
mod filter;
mod follow;
mod grant;
mod hujson;
mod origin;
mod people;
mod report;
mod routes;
mod sight;
mod ssh;
mod suggest;
mod syntax;
mod table;
mod trials;
mod view;
mod warnings;
mod why;
mod world;

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::Ipv4Net;
use lowroad_wire::control::NodeId;

use error::Errors;

pub use diff::{Diff, DiffEnds, DiffFamily, DiffRow, DiffUsers, diff};
pub use error::{MAX_ERRORS, PolicyError, PolicyErrorKind, PolicyErrors};
pub use explain::{Clause, Explanation};
pub use filter::NodeFilter;
pub use follow::{Followed, NodeChange, Users};
pub(crate) use hujson::decode;
pub use origin::{Origin, PolicyRule};
pub use report::{Diagnostic, Report};
pub use view::{CompiledTailnet, PeerView};
pub use warnings::{MAX_WARNINGS, PolicyWarning, PolicyWarningKind, PolicyWarnings};
pub use why::{Why, WhyEnd, WhyProbe, WhyVerdict};
pub use world::{NodeFacts, TailnetFacts, UserFacts, World};

/// Bytes of a policy file. The largest that we know of have some hundred KiB; parsed, a hostile one takes 84 times its size.
pub const MAX_POLICY: usize = 512 << 10;

/// Whether a policy file is short enough, before anything else is done with it.
pub fn check_length(hujson: impl AsRef<[u8]>) -> Result<(), String> {
    if hujson.as_ref().len() > MAX_POLICY {
        return Err(format!("the policy is longer than {MAX_POLICY} bytes"));
    }
    Ok(())
}

/// A parsed policy. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Policy {
    document: Arc<syntax::Document>,
}

impl Policy {
    /// Parses a policy file and checks all that can be checked without knowing users and nodes.
    ///
    /// # Errors
    /// All that is wrong in the file, with its places; of text that is no HuJSON, where it ceases to be.
    pub fn parse(hujson: &str) -> Result<Self, PolicyErrors> {
        let document = Arc::new(syntax::Document::parse(hujson)?);
        Ok(Self { document })
    }

    /// What holds without a policy file: everybody inside the tailnet may reach everybody.
    pub fn allow_all() -> Self {
        Self {
            document: Arc::default(),
        }
    }

    /// A policy without a single rule.
    pub fn allow_none() -> Self {
        Self::parse(r#"{"acls": []}"#).expect("a policy file as small as they get")
    }

    /// Users and roles that the policy names and the world doesn't have, with their places.
    pub fn unknown_users(&self, world: &World) -> Vec<PolicyError> {
        let people = people::People::new(&self.document, &world.users);
        let mut unknown = people::unknown_users(&self.document, &people);
        unknown.extend(attributes::unknown_roles(
            &self.document.attributes,
            &world.tailnet,
        ));
        unknown
    }

    /// Out of which prefixes a node that joins is to get its IPv4 address (`ipPool`), by its user or its tags; none: out of all.
    pub fn address_pools(
        &self,
        users: &[UserFacts],
        tailnet: &TailnetFacts,
        node: &NodeFacts,
    ) -> Vec<Ipv4Net> {
        let people = people::People::new(&self.document, users);
        attributes::pools_of(&self.document.attributes, &people, tailnet, node)
    }

    /// Those of all nodes.
    pub fn all_address_pools(&self) -> Vec<Ipv4Net> {
        let entries = self.document.attributes.iter();
        let pools = entries.flat_map(|entry| &entry.pools);
        pools.map(|pool| pool.value).collect()
    }
}

/// What [`compile`] does about users that the policy names and the world doesn't have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownUsers {
    /// Refuse the policy.
    Refuse,
    /// Take them for users without nodes, as when a policy is loaded before the first user is
    /// created. [`Policy::unknown_users`] lists them, for a warning. Domains and roles are taken likewise, and
    /// `sshTests` may be about nodes that are yet to come.
    Accept,
    /// Accept them where nobody was asked who there is: what a test says of an address counts only if it is so
    /// whatever node has that address.
    Unasked,
}

/// Compiles a new policy for a tailnet and runs the policy's `tests` and `sshTests`.
///
/// # Errors
/// All unknown users, domains and roles, and failing tests, with their places.
pub fn compile(policy: &Policy, world: &World) -> Result<CompiledTailnet, PolicyErrors> {
    compile_with(policy, world, UnknownUsers::Refuse)
}

/// [`compile`], with a choice about unknown users.
///
/// # Errors
/// All unknown users, domains and roles, if they are refused, and failing tests, with their places.
pub fn compile_with(
    policy: &Policy,
    world: &World,
    unknown: UnknownUsers,
) -> Result<CompiledTailnet, PolicyErrors> {
    let mut errors = Errors::default();
    let document = &policy.document;
    if unknown == UnknownUsers::Refuse {
        errors.extend(policy.unknown_users(world));
        errors.extend(people::unknown_domains(document, &world.tailnet));
    }
    let compiled = recompile(policy, world);
    let budget = budget::Budget::new(document, world.nodes.len());
    check::run_tests(policy, world, unknown, &compiled, &budget, &mut errors);
    check::run_ssh_tests(policy, world, unknown, &compiled, &budget, &mut errors);
    let people = people::People::new(document, &world.users);
    errors.finish(|unknown| match unknown.contains('@') {
        true => people.nearest(unknown),
        false => document.names.nearest(unknown),
    })?;
    Ok(compiled)
}

/// Compiles a policy in force after users or nodes changed: `tests` don't run, and users that
/// are gone name nobody.
pub fn recompile(policy: &Policy, world: &World) -> CompiledTailnet {
    compile::compile(&policy.document, world)
}

/// What is probably not meant in a policy that is good. `compiled` is the policy for the tailnet, `names` are the nodes' there.
pub fn warnings(
    policy: &Policy,
    compiled: &CompiledTailnet,
    names: &HashMap<String, NodeId>,
) -> PolicyWarnings {
    PolicyWarnings::of(&policy.document, compiled, names)
}
