//! What became of the tailnet since the last snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lowroad_wire::{
    control::{NodeId, UserId},
    key::NodePublic,
};

use super::{State, facts};
use crate::{
    model::User,
    policy::{NodeChange, Policy, World},
    view::Published,
};

/// What a snapshot is made of, taken out under the lock.
#[derive(Debug)]
pub struct Taken {
    pub generation: u64,
    pub nodes: BTreeMap<NodeId, Published>,
    pub users: BTreeMap<UserId, Arc<User>>,
    pub changed: BTreeSet<NodeId>,
    pub revoked: BTreeSet<NodePublic>,
    pub compile: Compile,
}

/// What to compile, if the last compilation no longer fits.
#[derive(Debug)]
pub enum Compile {
    Nothing,
    /// What became of some nodes.
    Nodes(Vec<NodeChange>),
    All(Arc<Policy>, World),
}

/// What the policy last compiled does not know of.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// Other users, or another policy.
    pub(super) all: bool,
    /// Nodes that joined, left, or are another for the policy.
    pub(super) nodes: BTreeSet<NodeId>,
}

impl Stale {
    pub(super) fn all() -> Self {
        Self {
            all: true,
            nodes: BTreeSet::new(),
        }
    }
}

impl State {
    /// What the next snapshot is made of.
    pub fn take_changes(&mut self) -> Taken {
        let stale = std::mem::take(&mut self.stale);
        let change = |id: NodeId| (id, self.node(id).map(|node| facts(node)));
        let compile = match stale {
            Stale { all: true, .. } => Compile::All(self.policy.clone(), self.world()),
            Stale { nodes, .. } if nodes.is_empty() => Compile::Nothing,
            Stale { nodes, .. } => Compile::Nodes(nodes.into_iter().map(change).collect()),
        };
        Taken {
            generation: self.generation,
            nodes: self.nodes.clone(),
            users: self.users.clone(),
            changed: std::mem::take(&mut self.changed),
            revoked: std::mem::take(&mut self.revoked),
            compile,
        }
    }

    /// Has everything be compiled with the next change, after a compilation that came to nothing. Not before: what failed might fail again,
    /// and again at once.
    pub fn compile_anew(&mut self) {
        self.stale.all = true;
    }
}
