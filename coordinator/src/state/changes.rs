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
    policy::{CompiledTailnet, NodeChange, Policy, Users, World, recompile},
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
    /// All users, if some are others, and what became of some nodes.
    Changes(Option<Users>, Vec<NodeChange>),
    All(Arc<Policy>, World),
}

/// What became of the compiled policy.
#[derive(Debug)]
pub struct Compiled {
    pub tailnet: Arc<CompiledTailnet>,
    /// Whether all was compiled anew.
    pub is_whole: bool,
    /// If not: nodes that may be seen otherwise though they have not changed.
    pub others: BTreeSet<NodeId>,
}

impl Compiled {
    pub fn whole(tailnet: CompiledTailnet) -> Self {
        Self {
            tailnet: Arc::new(tailnet),
            is_whole: true,
            others: BTreeSet::new(),
        }
    }
}

/// What the policy last compiled does not know of.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// Anything, and why.
    pub(super) all: Option<&'static str>,
    /// Users that came or went.
    pub(super) users: bool,
    /// Nodes that joined, left, or are another for the policy.
    pub(super) nodes: BTreeSet<NodeId>,
}

impl Stale {
    pub(super) fn all(why: &'static str) -> Self {
        Self {
            all: Some(why),
            ..Self::default()
        }
    }
}

impl State {
    /// What the next snapshot is made of.
    pub fn take_changes(&mut self) -> Taken {
        let Stale { all, users, nodes } = std::mem::take(&mut self.stale);
        let change = |id: NodeId| (id, self.node(id).map(|node| facts(node)));
        let compile = if let Some(why) = all {
            tracing::debug!(why, "the whole policy is compiled");
            Compile::All(self.policy.clone(), self.world())
        } else if !users && nodes.is_empty() {
            Compile::Nothing
        } else {
            let users = users.then(|| Users {
                users: self.user_facts(),
                tailnet: self.tailnet(),
            });
            Compile::Changes(users, nodes.into_iter().map(change).collect())
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

    /// Has everything be compiled with the next snapshot, after a compilation that came to nothing. That is another snapshot then,
    /// though nothing else has changed.
    pub fn compile_anew(&mut self) {
        self.stale.all = Some("the compilation before came to nothing");
        self.generation += 1;
    }
}

impl Compile {
    /// The policy as it is after this.
    pub fn apply(&self, last: &Arc<CompiledTailnet>) -> Compiled {
        match self {
            Self::Nothing => Compiled {
                tailnet: last.clone(),
                is_whole: false,
                others: BTreeSet::new(),
            },
            Self::Changes(users, nodes) => {
                let followed = last.follow_all(users.as_ref(), nodes);
                Compiled {
                    tailnet: Arc::new(followed.compiled),
                    is_whole: followed.is_whole,
                    others: followed.others,
                }
            }
            Self::All(policy, world) => Compiled::whole(recompile(policy, world)),
        }
    }
}
