//! What the stock command line shows of lowroad's node, beside what it shows of a stock one.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{LIMIT, Nodes, Run};
use crate::{
    interop::{server, shape, table::Table},
    lab::secs,
    tailnet::Client,
    traffic::Pinger,
    wait,
};

/// What `whois` tells of a node to everybody.
const FACTS: &[&str] = &[
    "/Node/ID",
    "/Node/StableID",
    "/Node/Name",
    "/Node/User",
    "/Node/Key",
    "/Node/Machine",
    "/Node/DiscoKey",
    "/Node/Addresses",
    "/Node/AllowedIPs",
    "/Node/HomeDERP",
    "/Node/Created",
    "/Node/Online",
    "/Node/MachineAuthorized",
    "/Node/ComputedName",
    "/Node/ComputedNameWithHost",
    "/UserProfile",
];
/// Of stock nodes' metrics those of what lowroad doesn't do.
const SERVE: &str = "tailscaled_serve_";

pub fn rows(table: &mut Table, nodes: &Nodes, ok: Run) -> Result<()> {
    for_people(table, nodes, ok)?;
    for_programs(table, nodes, ok)?;
    addresses(table, nodes, ok)?;
    pings(table, nodes, ok)?;
    relays(table, nodes, ok);
    daemon(table, nodes, ok);
    metrics(table, nodes, ok);
    Ok(())
}

fn for_people(table: &mut Table, nodes: &Nodes, ok: Run) -> Result<()> {
    let address = nodes.stock.ip(4)?.to_string();
    let own = nodes.own.ip(4)?.to_string();
    table.try_it("status", || {
        let text = ok(&["status"])?;
        for (ip, name) in [(&own, "lowroad"), (&address, "stock")] {
            let mut lines = text.lines().map(str::split_whitespace);
            let line = lines.find_map(|mut words| (words.next()? == ip).then_some(words));
            let words: Vec<_> = line.with_context(|| text.clone())?.collect();
            let [is_called, _owner, os, ..] = words[..] else {
                bail!("{text}");
            };
            ensure!(is_called == name && os == "linux", "{text}");
        }
        Ok(String::new())
    });
    table.try_it("whois", || {
        let text = ok(&["whois", &address])?;
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Name:"));
        let names: Vec<_> = names.map(str::trim).collect();
        let [machine, user, ..] = names[..] else {
            bail!("{text}");
        };
        ensure!(
            machine == "stock.tail.lab" && user.starts_with("ann"),
            "{text}"
        );
        Ok(format!("{machine} of {user}"))
    });
    Ok(())
}

fn for_programs(table: &mut Table, nodes: &Nodes, ok: Run) -> Result<()> {
    let other = nodes.other.ip(4)?.to_string();
    let theirs = |arguments: &[&str]| nodes.stock.cli(arguments);
    table.try_it("status --json", || {
        let status: Value = serde_json::from_str(&ok(&["status", "--json"])?)?;
        ensure!(status["BackendState"] == "Running", "{status}");
        for (node, name) in [(nodes.stock, "stock"), (nodes.other, "other")] {
            let key = node.node_key()?;
            let key = key.as_str().context("a node without a key")?;
            let shown = &status["Peer"][key];
            ensure!(shown["HostName"] == name, "{name}: {shown}");
        }
        Ok(String::new())
    });
    table.try_it("status and whois as on a stock daemon's socket", || {
        wait::wait_for("the same fields of both", LIMIT, || {
            let found = shape::between_sockets(ok, &theirs, nodes.other)?;
            ensure!(found.is_empty(), "{}", found.join("; "));
            Ok(Some(()))
        })?;
        Ok("the same fields, of the same types, and the peer's own values".to_owned())
    });
    table.try_it("whois --json, as stock has it", || {
        let get = |run: Run| -> Result<Value> {
            Ok(serde_json::from_str(&run(&["whois", "--json", &other])?)?)
        };
        wait::wait_for("the same of both", LIMIT, || {
            let (ours, theirs) = (get(ok)?, get(&theirs)?);
            for fact in FACTS {
                let (ours, theirs) = (ours.pointer(fact), theirs.pointer(fact));
                ensure!(ours == theirs, "{fact}: {ours:?}, and {theirs:?} of stock");
            }
            Ok(Some(()))
        })?;
        Ok(format!("{} values", FACTS.len()))
    });
    table.try_it("whoami --json", || {
        let who: Value = serde_json::from_str(&ok(&["whoami", "--json"])?)?;
        let own = nodes.own.status()?["Self"].clone();
        ensure!(who["Node"]["Name"] == own["DNSName"], "{who}");
        ensure!(who["Node"]["Key"] == own["PublicKey"], "{who}");
        ensure!(who["UserProfile"]["ID"] == own["UserID"], "{who}");
        Ok(own["DNSName"].to_string())
    });
    Ok(())
}

fn addresses(table: &mut Table, nodes: &Nodes, ok: Run) -> Result<()> {
    let (v4, v6) = (nodes.own.ip(4)?, nodes.own.ip(6)?);
    let stock = [nodes.stock.ip(4)?, nodes.stock.ip(6)?];
    for (arguments, wanted) in [
        (&["ip", "-4"][..], &[v4][..]),
        (&["ip", "-6"], &[v6]),
        (&["ip"], &[v4, v6]),
        (&["ip", "stock"], &stock),
    ] {
        table.try_it(&arguments.join(" "), || {
            let text = ok(arguments)?;
            let words = text.split_whitespace().map(str::parse::<IpAddr>);
            let said: Result<BTreeSet<_>, _> = words.collect();
            let wanted: BTreeSet<_> = wanted.iter().copied().collect();
            ensure!(said.as_ref() == Ok(&wanted), "{text}");
            Ok(text)
        });
    }
    Ok(())
}

fn pings(table: &mut Table, nodes: &Nodes, ok: Run) -> Result<()> {
    let begins = format!("pong from stock ({}", nodes.stock.ip(4)?);
    for (flags, via) in [
        (&["-c", "1", "--until-direct=false"][..], " via "),
        (&["--tsmp", "-c", "1"], " via TSMP"),
        (&["--icmp", "-c", "1"], " via ICMP"),
    ] {
        let arguments = [&["ping"][..], flags, &["stock"]].concat();
        table.try_it(&arguments.join(" "), || {
            let text = ok(&arguments)?;
            let pong = text.trim();
            ensure!(pong.starts_with(&begins) && pong.contains(via), "{text}");
            Ok(pong.to_owned())
        });
    }
    Ok(())
}

fn relays(table: &mut Table, nodes: &Nodes, ok: Run) {
    table.try_it("netcheck", || {
        let text = ok(&["netcheck"])?;
        let nearest = text
            .lines()
            .find_map(|line| line.split_once("Nearest DERP: "));
        let (_, name) = nearest.with_context(|| text.clone())?;
        ensure!(name.trim() == "Lab", "{text}");
        Ok(name.to_owned())
    });
    table.try_it("debug derp-map", || {
        let arguments = ["debug", "derp-map"];
        let ours: Value = serde_json::from_str(&ok(&arguments)?)?;
        let theirs: Value = serde_json::from_str(&nodes.stock.cli(&arguments)?)?;
        let regions = &ours["Regions"];
        ensure!(regions["999"]["Nodes"][0].is_object(), "{ours}");
        ensure!(*regions == theirs["Regions"], "{ours}, {theirs} of stock");
        Ok("that of a stock node".to_owned())
    });
}

fn daemon(table: &mut Table, nodes: &Nodes, ok: Run) {
    table.try_it("debug prefs", || {
        let prefs: Value = serde_json::from_str(&ok(&["debug", "prefs"])?)?;
        for (field, wanted) in [
            ("ControlURL", Value::from(server::URL)),
            ("Hostname", "lowroad".into()),
            ("WantRunning", true.into()),
            ("LoggedOut", false.into()),
            ("ShieldsUp", false.into()),
        ] {
            ensure!(prefs[field] == wanted, "{field}: {prefs}");
        }
        Ok(String::new())
    });
    table.try_it("debug watch-ipn --initial --count=1", || {
        let text = ok(&["debug", "watch-ipn", "--initial", "--count=1"])?;
        let told: Value = serde_json::from_str(&text)?;
        // Of one that runs.
        ensure!(told["State"] == 6, "{text}");
        ensure!(told["Prefs"]["Hostname"] == "lowroad", "{text}");
        Ok("state and preferences".to_owned())
    });
    table.try_it("version --daemon", || {
        let text = ok(&["version", "--daemon"])?;
        let version = nodes.own.status()?["Version"].clone();
        let version = version.as_str().context("a status without a version")?;
        let line = format!("Daemon: {version}");
        ensure!(text.lines().any(|said| said == line), "{text}");
        Ok(line)
    });
    table.try_it("wait", || ok(&["wait", "--timeout=20s"]));
    table.try_it("appc-routes", || {
        let text = ok(&["appc-routes"])?;
        ensure!(text.trim() == "not a connector", "{text}");
        Ok(text)
    });
}

fn metrics(table: &mut Table, nodes: &Nodes, ok: Run) {
    let arguments = ["metrics", "print"];
    table.try_it("metrics print: the names", || {
        let (ours, theirs) = (ok(&arguments)?, nodes.stock.cli(&arguments)?);
        let (ours, theirs) = (names(&ours), names(&theirs));
        let missing = theirs.difference(&ours);
        let missing: Vec<_> = missing.filter(|name| !name.starts_with(SERVE)).collect();
        let more: Vec<_> = ours.difference(&theirs).collect();
        ensure!(
            missing.is_empty() && more.is_empty(),
            "missing: {missing:?}; only of lowroad: {more:?}"
        );
        Ok(format!("{} as of a stock node", ours.len()))
    });
    table.try_it("metrics print: bytes of pings", || {
        let count = || -> Result<[u64; 2]> {
            let text = ok(&arguments)?;
            Ok(["in", "out"].map(|way| bytes(&text, way)))
        };
        let before = count()?;
        let pace = Duration::from_millis(20);
        let ping = Pinger::start(nodes.own.namespace(), nodes.stock.ip(4)?, pace)?;
        ping.first_answer(secs(20))?;
        let (after, _) = wait::wait_for("bytes both ways", LIMIT, || {
            let after = count()?;
            let grown = before
                .iter()
                .zip(&after)
                .all(|(before, after)| before < after);
            Ok(grown.then_some(after))
        })?;
        Ok(format!(
            "{} bytes in, {} out",
            after[0] - before[0],
            after[1] - before[1]
        ))
    });
}

/// Each with its type.
fn names(text: &str) -> BTreeSet<&str> {
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    names.collect()
}

/// By all paths.
fn bytes(text: &str, way: &str) -> u64 {
    let name = format!("tailscaled_{way}bound_bytes_total{{");
    let lines = text.lines().filter(|line| line.starts_with(&name));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_told_apart_by_name_and_direction() {
        let text = "# TYPE tailscaled_inbound_bytes_total counter\n# HELP tailscaled_inbound_bytes_total x\n\
            tailscaled_inbound_bytes_total{path=\"derp\"} 3\ntailscaled_inbound_bytes_total{path=\"direct_ipv4\"} 4\n\
            tailscaled_outbound_bytes_total{path=\"derp\"} 5\ntailscaled_inbound_packets_total{path=\"derp\"} 6\n";
        assert_eq!((bytes(text, "in"), bytes(text, "out")), (7, 5));
        let names: Vec<_> = names(text).into_iter().collect();
        assert_eq!(names, ["tailscaled_inbound_bytes_total counter"]);
    }
}
