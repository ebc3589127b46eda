//! `cargo xtask demo`: a whole tailnet on this machine, shown as it happens, checked at every step.

mod report;
mod steps;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{
    setup, signals,
    tailnet::{self, Build},
    topology::Net,
    vm, wait,
    workspace::is_root,
};
use report::Show;
use steps::World;

/// At first: everybody may fetch web pages from `server`; nobody may reach `vault`, which itself may reach `server`.
const POLICY: &str = r#"{
  "tagOwners": { "tag:web": [], "tag:vault": [] }, // given by auth keys
  "acls": [
    { "action": "accept", "src": ["*"],             "dst": ["tag:web:80"] },
    { "action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:*"] },
  ],
}"#;

/// Then: `server` may also reach port 8080 of `vault`.
const OPENED: &str = r#"{
  "tagOwners": { "tag:web": [], "tag:vault": [] }, // given by auth keys
  "acls": [
    { "action": "accept", "src": ["*"],             "dst": ["tag:web:80"] },
    { "action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:*"] },
    { "action": "accept", "src": ["tag:web"],       "dst": ["tag:vault:8080"] },
  ],
}"#;

pub fn main(arguments: &[&str]) -> Result<ExitCode> {
    let (mut keep, mut in_vm) = (false, false);
    for argument in arguments {
        match *argument {
            "--keep" => keep = true,
            "--vm" => in_vm = true,
            other => bail!("the demo knows --keep and --vm, not `{other}`"),
        }
    }
    if !is_root() {
        bail!("the demo makes network namespaces, which needs root: run the same with sudo");
    }
    match (keep, in_vm) {
        (true, true) => bail!("--keep is for a demo on this machine; the VM ends with its demo"),
        (false, true) => vm::demo(),
        (keep, false) => here(keep),
    }
}

fn here(keep: bool) -> Result<ExitCode> {
    signals::catch();
    setup::lab()?;
    tailnet::build(Build::Release)?;
    let net = Net::new()?;
    let mut show = Show::default();
    let result = run(&net, &mut show);
    if signals::interrupted() {
        drop(result);
        drop(net);
        bail!("interrupted; everything is removed");
    }
    let well = show.summary();
    match &result {
        Ok(world) if keep => {
            world.how_to_enter();
            println!("\nCtrl-C ends it and removes everything.");
            wait::for_signal();
        }
        Ok(_) => {}
        Err(error) => {
            tailnet::print_logs(net.folder(), 25);
            println!("the demo stopped: {error:#}");
        }
    }
    Ok(if well && result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run(net: &Net, show: &mut Show) -> Result<World> {
    println!(
        "
Five machines, each a network namespace of its own on this host:

  office   behind a NAT router, 203.0.113.21      user ann
  home     behind another NAT router, .22         user ann
  server   on the public segment, .30             tag:web
  vault    on the public segment, .40             tag:vault, which the policy isolates
  and the coordinator with relay and STUN, .10

The policy:

{POLICY}
"
    );
    let mut world = World::start(net, show, POLICY)?;
    world.join(show)?;
    world.status(show)?;
    world.first_ping(show)?;
    world.fetch(show)?;
    world.refused(show)?;
    world.open(show, OPENED)?;
    world.throughput(show)?;
    world.kill(show)?;
    Ok(world)
}
