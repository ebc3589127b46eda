//! What happens to a tailnet, one node at a time.

use std::{
    mem,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lowroad_coordinator::policy::{CompiledTailnet, NodeChange, NodeFacts, Users, World};

use super::{
    tailnet::{device, person},
    tell,
};

/// Changes of one kind, one after another; the median of their times is one sample.
const TURNS: usize = 9;

#[derive(Clone, Copy, Debug)]
pub enum Change {
    Join,
    Leave,
    Router,
    User,
}

/// How long a change took, and until it was told to everybody.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    pub followed: Duration,
    pub told: Duration,
}

impl Change {
    /// In this order: those leave that joined.
    pub const ALL: [Self; 4] = [Self::Join, Self::Leave, Self::Router, Self::User];

    pub fn name(self) -> &'static str {
        match self {
            Self::Join => "one node joins",
            Self::Leave => "one node leaves",
            Self::Router => "a router goes offline or comes back",
            Self::User => "a user comes with a first node",
        }
    }

    /// The median of some turns, each of which changes the tailnet.
    pub fn measure(self, compiled: &mut CompiledTailnet, world: &mut World) -> Result<Took> {
        let mut turns = Vec::new();
        for turn in 0..TURNS {
            let (users, change) = self.happen(world, turn)?;
            let changes = [change];
            let start = Instant::now();
            let next = compiled.follow_all(users.as_ref(), &changes);
            let followed = start.elapsed();
            ensure!(!next.is_whole, "{}: not followed", self.name());
            // Sessions have the version before until they have looked at this one.
            let before = mem::replace(compiled, next.compiled);
            let [(changed, _)] = changes;
            let changed: Vec<_> = next.others.into_iter().chain([changed]).collect();
            tell(compiled, world, &changed);
            let told = start.elapsed();
            turns.push(Took { followed, told });
            drop(before);
        }
        let median = |part: fn(&Took) -> Duration| {
            let mut times: Vec<Duration> = turns.iter().map(part).collect();
            times.sort_unstable();
            times[TURNS / 2]
        };
        Ok(Took {
            followed: median(|took| took.followed),
            told: median(|took| took.told),
        })
    }

    fn happen(self, world: &mut World, turn: usize) -> Result<(Option<Users>, NodeChange)> {
        let next = world.nodes.len();
        Ok(match self {
            Self::Join => (None, join(world, device(next, turn))),
            Self::Leave => {
                let leaving = world.nodes.pop().context("no node is left")?;
                (None, (leaving.id, None))
            }
            Self::Router => {
                let mut nodes = world.nodes.iter_mut();
                let router = nodes.find(|node| !node.announced.is_empty());
                let router = router.context("there is no router")?;
                router.online = !router.online;
                (None, (router.id, Some(router.clone())))
            }
            Self::User => {
                let user = world.users.len();
                world.users.push(person(user));
                let users = Users {
                    users: world.users.clone(),
                    tailnet: world.tailnet.clone(),
                };
                (Some(users), join(world, device(next, user)))
            }
        })
    }
}

fn join(world: &mut World, node: NodeFacts) -> NodeChange {
    world.nodes.push(node.clone());
    (node.id, Some(node))
}
