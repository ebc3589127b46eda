//! What one change costs in a large tailnet, followed and compiled anew. Slow, and about numbers:
//! `cargo test -p lowroad-coordinator --test policy_oracle -- --ignored --nocapture scale`, optimized by `CARGO_PROFILE_DEV_OPT_LEVEL=2`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use lowroad_coordinator::policy::{
    CompiledTailnet, NodeChange, NodeFacts, Policy, UserFacts, Users, World, recompile,
};
use lowroad_wire::control::NodeId;

use super::people::{node, user};

const NODES: i64 = 10_000;
const RULES: usize = 1000;
const GROUPS: usize = 100;
const ROUNDS: usize = 11;

#[test]
#[ignore = "a measurement"]
fn a_router_goes_offline() {
    let mut world = world();
    let (first, second) = (router(NODES + 1), router(NODES + 2));
    world.nodes.extend([first, second]);
    let at = world.nodes.len() - 2;
    compare("a router goes offline or comes back", world, |world| {
        let router = &mut world.nodes[at];
        router.online = !router.online;
        (None, vec![(router.id, Some(router.clone()))])
    });
}

#[test]
#[ignore = "a measurement"]
fn a_user_comes_with_a_first_node() {
    compare("a user comes with a first node", world(), |world| {
        let id = world.nodes.len() as i64 + 1;
        let user = world.users.len() as i64 + 1;
        let joining = node(id, Some(user), &[]);
        world.users.push(person(user));
        world.nodes.push(joining.clone());
        let users = Users {
            users: world.users.clone(),
            tailnet: world.tailnet.clone(),
        };
        (Some(users), vec![(joining.id, Some(joining))])
    });
}

/// Changes the world, in turns compiled anew and followed: what that takes in the median, and with what sessions then ask.
fn compare(
    what: &str,
    mut world: World,
    mut change: impl FnMut(&mut World) -> (Option<Users>, Vec<NodeChange>),
) {
    let policy = policy();
    let mut compiled = recompile(&policy, &world);
    tell_all(&compiled, &world);
    let mut times: [Vec<[Duration; 2]>; 2] = Default::default();
    for _ in 0..ROUNDS {
        // Freeing what was compiled anew slows the one after it.
        for is_followed in [false, true, true, true] {
            let (users, changes) = change(&mut world);
            let start = Instant::now();
            let (next, changed) = match is_followed {
                true => follow(&compiled, users.as_ref(), &changes),
                false => (recompile(&policy, &world), Vec::new()),
            };
            let compiled_after = start.elapsed();
            match is_followed {
                true => tell(&next, &world, &changed),
                false => tell_all(&next, &world),
            }
            times[usize::from(is_followed)].push([compiled_after, start.elapsed()]);
            compiled = next;
        }
    }
    for (how, mut times) in ["compiled anew", "followed"].into_iter().zip(times) {
        let median = |part: usize, times: &mut Vec<[Duration; 2]>| {
            times.sort_unstable_by_key(|time| time[part]);
            times[times.len() / 2][part]
        };
        let (alone, told) = (median(0, &mut times), median(1, &mut times));
        println!("{what}, {how}: {alone:.2?}, {told:.2?} with all sessions told");
    }
}

fn follow(
    compiled: &CompiledTailnet,
    users: Option<&Users>,
    changes: &[NodeChange],
) -> (CompiledTailnet, Vec<NodeId>) {
    let followed = compiled.follow_all(users, changes);
    assert!(!followed.is_whole);
    let changed = changes.iter().map(|(id, _)| *id).chain(followed.others);
    let changed = changed.collect();
    (followed.compiled, changed)
}

/// What sessions ask when some nodes changed.
fn tell(compiled: &CompiledTailnet, world: &World, changed: &[NodeId]) {
    for node in &world.nodes {
        black_box(compiled.rules_for(node.id));
        black_box(compiled.ssh_for(node.id));
        for changed in changed {
            black_box(compiled.peer_view(node.id, *changed));
        }
    }
}

fn tell_all(compiled: &CompiledTailnet, world: &World) {
    for node in &world.nodes {
        black_box(compiled.rules_for(node.id));
        black_box(compiled.ssh_for(node.id));
        black_box(compiled.peers_of(node.id));
    }
}

fn router(id: i64) -> NodeFacts {
    let mut router = node(id, None, &["tag:router"]);
    router.announced = vec!["10.1.0.0/16".parse().unwrap()];
    router.admin_approved.clone_from(&router.announced);
    router
}

/// Of ten nodes seven are devices of users, two of each; the others are servers.
fn world() -> World {
    let node = |id: i64| match id % 10 {
        0..7 => node(id, Some(owner(id)), &[]),
        _ => node(id, None, &[&format!("tag:t{}", id as usize % GROUPS)]),
    };
    World {
        users: (1..=owner(NODES)).map(person).collect(),
        nodes: (1..=NODES).map(node).collect(),
        ..World::default()
    }
}

fn owner(id: i64) -> i64 {
    id / 2 + 1
}

fn person(id: i64) -> UserFacts {
    user(id, &format!("u{id}"))
}

/// Members of two groups each reach servers of some tags, and what is behind the routers.
fn policy() -> Policy {
    let mut members = vec![Vec::new(); GROUPS];
    for user in 1..=owner(NODES) as usize {
        for group in [user % GROUPS, (user * 7 + 1) % GROUPS] {
            members[group].push(format!("u{user}@"));
        }
    }
    members.iter_mut().for_each(Vec::dedup);
    let members = members.iter().enumerate();
    let groups = members.map(|(group, list)| format!(r#""group:g{group}": {list:?}"#));
    let groups: Vec<String> = groups.collect();
    let tags = (0..GROUPS).map(|tag| format!(r#""tag:t{tag}": []"#));
    let tags: Vec<String> = tags.collect();
    let rule = |at: usize| {
        let (group, tag) = (at % GROUPS, (at * 3 + at / GROUPS) % GROUPS);
        format!(
            r#"{{"action": "accept", "src": ["group:g{group}"], "dst": ["tag:t{tag}:{}"]}}"#,
            1000 + at
        )
    };
    let rules: Vec<String> = (2..RULES).map(rule).collect();
    let text = format!(
        r#"{{"groups": {{{}}}, "tagOwners": {{"tag:router": [], {}}}, "acls": [{},
            {{"action": "accept", "src": ["autogroup:member"], "dst": ["10.1.0.0/16:*"]}},
            {{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}}]}}"#,
        groups.join(","),
        tags.join(","),
        rules.join(",\n")
    );
    Policy::parse(&text).unwrap()
}
