//! A small tailnet, for tests of policies.

use lowroad_coordinator::policy::World;

use super::people::{node, user};

/// Alice with nodes 1 and 2, Bob with node 3.
pub fn alice_and_bob() -> World {
    World {
        users: vec![user(1, "alice@example.com"), user(2, "bob")],
        nodes: vec![
            node(1, Some(1), &[]),
            node(2, Some(1), &[]),
            node(3, Some(2), &[]),
        ],
        ..World::default()
    }
}
