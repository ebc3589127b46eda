//! Headscale replaced by a newer one, on its old state, under nodes of both kinds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    Lab,
    member::{Kind, Member},
    policies,
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    tailnet::Client,
    traffic::Pinger,
    wait,
};

const LIMIT: Duration = secs(60);
const PACE: Duration = Duration::from_millis(20);

pub fn of_headscale(lab: &Lab, table: &mut Table) -> Result<()> {
    let old = lab.old.context("--old is missing")?;
    table.area(&format!(
        "Headscale {} upgraded under lowroad and stock",
        super::version(old, "headscale")?
    ));
    let before = Lab {
        programs: old,
        ..*lab
    };
    let mut server = Server::start(&before, server::Kind::Headscale, ALLOW_ALL)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let lowroad = Member::public(lab, Kind::Lowroad, "lowroad", 31)?;
    let stock = Member::public(lab, Kind::Stock, "stock", 32)?;
    for node in [&lowroad, &stock] {
        let joined = table.try_it(&format!("{}: up", node.name()), || {
            Ok(format!("{:.2} s", node.up(&key)?.as_secs_f64()))
        });
        ensure!(joined, "without this there is nothing more to try");
    }
    let ping = Pinger::start(lowroad.namespace(), stock.ip(4)?, PACE)?;
    ping.first_answer(LIMIT)?;
    lowroad.wait_for_direct("stock", LIMIT)?;
    drop(ping);
    let ping = Pinger::start(lowroad.namespace(), stock.ip(4)?, PACE)?;
    ping.first_answer(LIMIT)?;
    let upgraded = table.try_it("upgraded: both are back by themselves", || {
        lab.programs.clone_into(&mut server.programs);
        server.start_again()?;
        let online = || {
            let nodes = server.nodes()?;
            let all = nodes.iter().filter(|node| node["online"] == true);
            Ok((all.count() == 2).then_some(()))
        };
        let (_, time) = wait::wait_for("both online", secs(120), online)?;
        Ok(format!("{:.1} s after its start", time.as_secs_f64()))
    });
    table.try_it("pings by the direct path meanwhile", || {
        let report = ping.stop();
        ensure!(report.lost() == 0, "{report}");
        Ok(report.to_string())
    });
    ensure!(upgraded, "without it there is nothing more to try");
    table.try_it("a node that joins after it is a peer of both", || {
        let key = server.auth_key("ann", KeyOptions::default())?;
        let third = Member::public(lab, Kind::Lowroad, "third", 33)?;
        third.up(&key)?;
        for node in [&lowroad, &stock] {
            node.wait_for_peer("third", LIMIT)?;
            let ping = Pinger::start(node.namespace(), third.ip(4)?, PACE)?;
            ping.first_answer(LIMIT)?;
        }
        Ok(String::new())
    });
    table.try_it("a change of policy is enforced by lowroad", || {
        server.set_policy(&policies::one_way(&lowroad, &stock)?)?;
        let (_, time) = wait::wait_for("silence", LIMIT, || {
            let ping = Pinger::start(stock.namespace(), lowroad.ip(4)?, PACE)?;
            wait::pass(Duration::from_millis(400))?;
            Ok((ping.report().answered == 0).then_some(()))
        })?;
        ensure!(stock.peer("lowroad")?.is_some(), "it is no peer any more");
        Ok(format!("within {:.1} s", time.as_secs_f64()))
    });
    Ok(())
}
