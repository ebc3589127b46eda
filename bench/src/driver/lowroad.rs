//! lowroad's own drivers: a coordinator and agents.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::{
    process,
    tailnet::{Client as _, Coordinator, Node, PathKind},
    topology::{Nat, Net},
    traffic::Pinger,
    wait,
};

use super::{End, FIRST_HOST, Unusable, World};
use crate::scenario::Topology;

const ALLOW_ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
/// On an emulated CPU everything takes its time.
const PATIENCE: Duration = Duration::from_secs(90);
const PROBE_LIMIT: Duration = Duration::from_secs(10);
const PING: Duration = Duration::from_millis(100);
const PINS: &str = "/sys/fs/bpf/lowroad";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Kernel WireGuard, and the filter on it.
    Kernel,
    /// The same device, its agent stopped and its programs taken off: what is left is what they cost.
    Unfiltered,
    /// The embedded userspace WireGuard.
    Userspace,
}

impl Flavour {
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "lowroad-kernel" => Some(Self::Kernel),
            "lowroad-unfiltered" => Some(Self::Unfiltered),
            "lowroad-userspace" => Some(Self::Userspace),
            _ => None,
        }
    }

    pub fn check(self) -> Result<(), Unusable> {
        if self == Self::Userspace || kernel_has_wireguard() {
            return Ok(());
        }
        Err(Unusable("this kernel has no WireGuard".to_owned()))
    }

    fn dataplane(self) -> &'static str {
        match self {
            Self::Kernel | Self::Unfiltered => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// Making a device loads the module, where it is one that isn't loaded.
fn kernel_has_wireguard() -> bool {
    let name = format!("bprobe{}", std::process::id());
    let ip = |arguments: &[&str]| {
        let finished = process::run(Command::new("ip").args(arguments), "", PROBE_LIMIT);
        finished.is_ok_and(|finished| finished.status.success())
    };
    fs::metadata("/sys/module/wireguard").is_ok()
        || ip(&["link", "add", &name, "type", "wireguard"]) && ip(&["link", "delete", &name])
}

/// Dropped in this order: agents leave before their coordinator.
struct Inside {
    _nodes: Vec<Node>,
    _coordinator: Coordinator,
}

pub fn up(flavour: Flavour, topology: Topology, peers: usize) -> Result<World> {
    let net = Box::new(Net::new()?);
    let coordinator = Coordinator::start(&net, ALLOW_ALL)?;
    let key = coordinator.auth_key("bench", "")?;
    let mut nodes = Vec::new();
    for number in 0..=peers {
        let node = start(&net, number, flavour, topology)?;
        node.up(&key)?;
        let plane = node.dataplane()?;
        ensure!(
            plane == flavour.dataplane(),
            "{}'s data plane is {plane}",
            node.name
        );
        nodes.push(node);
    }
    let (hub, spokes) = nodes.split_first().context("there is a hub")?;
    for spoke in spokes {
        settle(hub, spoke, topology)?;
    }
    let mut ends = Vec::new();
    for node in &nodes {
        ends.push(End {
            namespace: node.namespace.clone(),
            address: node.ip(4)?,
        });
    }
    if flavour == Flavour::Unfiltered {
        for node in &mut nodes {
            take_filter_off(node)?;
        }
    }
    let groups = nodes
        .iter()
        .filter_map(Node::agent_pid)
        .chain([coordinator.pid()])
        .collect();
    let relay = (topology == Topology::Relayed).then(|| coordinator.pid());
    Ok(World {
        ends,
        groups,
        relay,
        _inside: Box::new(Inside {
            _nodes: nodes,
            _coordinator: coordinator,
        }),
        _net: net,
    })
}

fn start(net: &Net, number: usize, flavour: Flavour, topology: Topology) -> Result<Node> {
    let name = format!("n{number}");
    let last = FIRST_HOST + u8::try_from(number).context("too many nodes")?;
    let namespace = match topology {
        Topology::Segment => net.public(&name, last)?,
        Topology::Relayed => {
            let router = net.router(&format!("r{number}"), last, Nat::UdpBlocked)?;
            net.behind(&name, &router, 2)?
        }
    };
    let options = ["--dataplane", flavour.dataplane()];
    Node::start_with(net, &name, namespace, &options)
}

/// Until packets go the way that is to be measured.
fn settle(hub: &Node, spoke: &Node, topology: Topology) -> Result<()> {
    hub.wait_for_peer(&spoke.name, PATIENCE)?;
    let ping = Pinger::start(&hub.namespace, spoke.ip(4)?, PING)?;
    ping.first_answer(PATIENCE)?;
    match topology {
        Topology::Segment => {
            hub.wait_for_direct(&spoke.name, PATIENCE)?;
            spoke.wait_for_direct(&hub.name, PATIENCE)?;
        }
        Topology::Relayed => {
            let what = format!("a relayed path to {}", spoke.name);
            wait::wait_for(&what, PATIENCE, || {
                let path = hub.path_to(&spoke.name)?;
                Ok(matches!(path, PathKind::Relay(_)).then_some(()))
            })?;
        }
    }
    Ok(())
}

/// Stops the agent, which would put it back, and lets go of the links that hold the programs.
fn take_filter_off(node: &mut Node) -> Result<()> {
    node.kill_9();
    let file = node.state_folder().join("state.json");
    let state: Value = serde_json::from_slice(
        &fs::read(&file).with_context(|| format!("read {}", file.display()))?,
    )?;
    let id = state["id"].as_str().context("the state names no id")?;
    let pins = format!("{PINS}/{id}");
    fs::remove_dir_all(&pins).with_context(|| format!("remove the pins in {pins}"))
}
