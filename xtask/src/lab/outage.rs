//! Control server, relay or both are gone, and come back: direct paths don't notice, and nobody storms the server.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Lab, ms, secs, survival};
use crate::{
    process,
    shell::find_program,
    tailnet::Coordinator,
    topology::{Namespace, Nat},
    traffic::{self, Pinger, Stream},
    wait,
};

const WEB: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]}"#;
const WEB_AND_90: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80,90"]}]}"#;
const LIMIT: Duration = secs(120);
/// How many seconds both are gone, and for how long one of them doesn't get through: always, and with `LOWROAD_LONG`.
const BOTH: [u32; 2] = [30, 180];
const ONE: [Duration; 2] = [secs(10), secs(60)];
/// In the last seconds of the outage nobody may knock more often than this: for the relay every 2.5 to 5 s, for control after
/// ever longer pauses.
const LAST: u32 = 20;
const KNOCKS_PER_NODE: u64 = 8 + 3;
/// For either, and one each while the server starts.
const KNOCKS_TO_RETURN: u64 = 4;
/// By the first bytes of a segment: records of TLS are the relay's; requests, and records of Noise, are control's.
const RELAY: &str = "@ih,0,16 { 0x1503, 0x1603, 0x1703 } drop";
const CONTROL: &str = "@ih,0,8 { 0x04, 0x47, 0x50 } drop";

pub fn direct_paths_outlive_control_and_relay_and_all_comes_back_without_a_storm(
    lab: &Lab,
) -> Result<()> {
    let mut coordinator = lab.coordinator(WEB)?;
    let key = coordinator.auth_key("ann", "")?;
    let hub = lab.public_node("hub", 30)?;
    let others = [
        lab.public_node("one", 31)?,
        lab.public_node("two", 32)?,
        lab.node_behind("blocked", 33, Nat::UdpBlocked)?,
    ];
    for node in [&hub].into_iter().chain(&others) {
        node.up(&key)?;
    }
    let [one, two, blocked] = &others;
    for node in [one, two] {
        survival::find_direct_path(&hub, node)?;
    }
    let relayed = Pinger::start(&hub.namespace, blocked.ip(4)?, ms(100))?;
    relayed.first_answer(LIMIT)?;
    let mut direct = Vec::new();
    for node in [one, two] {
        let address = node.ip(4)?;
        let to = SocketAddr::new(address, 80);
        let stream = Stream::start(&hub.namespace, &node.namespace, to)?;
        direct.push((
            node.name.clone(),
            Pinger::start(&hub.namespace, address, ms(10))?,
            stream,
        ));
    }

    let (gone, one_of_them) = (BOTH[usize::from(lab.long)], ONE[usize::from(lab.long)]);
    both(lab, &mut coordinator, gone, 4)?;
    comes_back(lab, "the relayed path after both", &relayed)?;

    deafen(&coordinator.namespace, RELAY)?;
    wait::pass(one_of_them)?;
    deafen(&coordinator.namespace, "accept")?;
    comes_back(lab, "the relayed path after the relay", &relayed)?;

    let before = relayed.report();
    deafen(&coordinator.namespace, CONTROL)?;
    wait::pass(one_of_them)?;
    let during = relayed.report();
    deafen(&coordinator.namespace, "accept")?;
    lab.note(&format!(
        "relayed while control was gone: {} pings, {} lost",
        during.sent - before.sent,
        during.lost().saturating_sub(before.lost())
    ));
    let _server = traffic::Server::start(&one.namespace, 90)?;
    let to = SocketAddr::new(one.ip(4)?, 90);
    coordinator.set_policy(WEB_AND_90)?;
    let (_, time) = wait::wait_for("a policy from after the outage", LIMIT, || {
        traffic::get(&hub.namespace, to, 1000, ms(500)).map(Some)
    })?;
    lab.note(&format!(
        "a new policy came through after {:.1} s",
        time.as_secs_f64()
    ));

    for (name, ping, stream) in direct {
        let (report, carried) = (ping.stop(), stream.stop()?);
        lab.note(&format!(
            "direct to {name}: {report}; TCP {:.1} MB byte-exact, {} of {} segments lost",
            carried.bytes as f64 / 1e6,
            carried.lost,
            carried.segments
        ));
        ensure!(
            report.lost() == 0 && carried.lost == 0,
            "{report}; {carried:?}"
        );
    }
    Ok(())
}

/// The coordinator, which is the relay too, is killed for so many seconds.
fn both(lab: &Lab, coordinator: &mut Coordinator, gone: u32, nodes: u64) -> Result<()> {
    let host = coordinator.namespace.clone();
    host.nft(
        "table inet knocks { chain in { type filter hook input priority 0; \
         tcp dport 8080 tcp flags & (syn | ack) == syn counter; }; }",
    )?;
    let knocks = || knocks(&host);
    let mut counts = vec![knocks()?];
    coordinator.kill_9();
    for _ in 0..gone {
        wait::pass(secs(1))?;
        counts.push(knocks()?);
    }
    let returning = knocks()?;
    coordinator.start_again()?;
    let online = || {
        let list = coordinator.cli(&["nodes", "list"])?;
        let nodes = list.as_array().context("not a list")?;
        Ok::<_, anyhow::Error>(nodes.iter().filter(|node| node["online"] == true).count() as u64)
    };
    let back = std::time::Instant::now();
    while online()? < nodes {
        ensure!(back.elapsed() < LIMIT, "not all nodes came back");
        wait::pass(secs(1))?;
        counts.push(knocks()?);
    }
    let returned = knocks()? - returning;
    let seconds: Vec<u64> = counts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    lab.note(&format!(
        "all {nodes} nodes back after {:.1} s by {returned} connections; connections a second: {seconds:?}",
        back.elapsed().as_secs_f64()
    ));
    let last: u64 = seconds[(gone - LAST) as usize..gone as usize].iter().sum();
    ensure!(
        last <= nodes * KNOCKS_PER_NODE,
        "{last} connections of {nodes} nodes in the last {LAST} s"
    );
    ensure!(
        returned <= nodes * KNOCKS_TO_RETURN,
        "{returned} connections of {nodes} nodes to return"
    );
    Ok(())
}

/// How many connections were asked for.
fn knocks(host: &Namespace) -> Result<u64> {
    let nft = find_program("nft").context("there is no nft")?;
    let mut command = host.command(nft);
    command.args(["list", "table", "inet", "knocks"]);
    let text = process::run(&mut command, "", secs(30))?
        .ok("nft list")?
        .stdout;
    let (_, rest) = text.split_once("counter packets ").context("no counter")?;
    let number = rest.split(' ').next().unwrap_or_default();
    Ok(number.parse()?)
}

/// Of what comes to the coordinator's port.
fn deafen(host: &Namespace, action: &str) -> Result<()> {
    host.nft(&format!(
        "table inet deaf {{}}
         delete table inet deaf
         table inet deaf {{ chain in {{ type filter hook input priority 10; tcp dport 8080 {action}; }}; }}
        "
    ))
}

fn comes_back(lab: &Lab, what: &str, ping: &Pinger) -> Result<()> {
    let before = ping.answered();
    let (_, time) = wait::wait_for(what, LIMIT, || {
        Ok((ping.answered() > before + 10).then_some(()))
    })?;
    lab.note(&format!("{what}: back after {:.1} s", time.as_secs_f64()));
    Ok(())
}
