//! Subnets behind stock nodes, as a lowroad node or another stock one uses them.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{
    Lab,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    tailnet::Client,
    topology::{Namespace, Nat},
    traffic::{self, Fetched, Pinger},
    wait,
};

const LIMIT: Duration = secs(90);
const TRY: Duration = secs(1);
/// The server has to notice first that the other is gone.
const TAKEN_OVER: Duration = secs(20);
const PACE: Duration = Duration::from_millis(20);
/// Behind both gateways, each of which has a host of this address there.
pub const SUBNET: &str = "192.168.24.0/24";
pub const INSIDE: &str = "192.168.24.2";
/// Beside it, for the one row that offers it.
const SUBNET_V6: &str = "fd00:24::/64";
const INSIDE_V6: &str = "fd00:24::2";

/// A stock node that routes to [`SUBNET`], and the host there.
pub struct Gateway {
    pub node: Member,
    pub inside: Namespace,
    _web: traffic::Server,
}

/// As a node of this kind uses them.
pub fn of_stock_nodes(lab: &Lab, table: &mut Table, on: server::Kind, user: Kind) -> Result<()> {
    table.area(&format!(
        "subnets behind stock nodes, used by {} on {}",
        user.name(),
        on.name()
    ));
    let server = Server::start(lab, on, ALLOW_ALL)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let user = Member::behind(lab, user, user.name(), 21, Nat::Easy)?;
    user.up(&key)?;
    let gateway = self::gateway(lab, "gateway", 24, &key)?;
    approved(table, &server, &gateway, &user)?;
    table.try_it("an IPv6 subnet beside it", || {
        with_ipv6(&gateway)?;
        beside_it(&server, &gateway, &user)
    });
    let second = self::gateway(lab, "second", 25, &key)?;
    taken_over(table, &server, gateway, &second, &user)
}

/// What a node fetches from port 80 of a host behind a gateway.
fn get(user: &Member, inside: IpAddr, bytes: usize, limit: Duration) -> Result<Fetched> {
    let to = SocketAddr::new(inside, 80);
    traffic::get(user.namespace(), to, bytes, limit)
}

/// Not used before its approval, nor where the user does not accept it.
fn approved(table: &mut Table, server: &Server, gateway: &Gateway, user: &Member) -> Result<()> {
    let inside: IpAddr = INSIDE.parse()?;
    let little = || get(user, inside, 100, TRY);
    table.try_it("not approved: closed", || {
        server.wait_for_offer("gateway", SUBNET, LIMIT)?;
        user.cli(&["set", "--accept-routes"])?;
        user.wait_for_peer("gateway", LIMIT)?;
        stays_closed(little)?;
        Ok(String::new())
    });
    table.try_it("approved: TCP", || {
        server.approve_routes("gateway", SUBNET)?;
        let (_, time) = wait::wait_for("the host behind it", LIMIT, || Ok(little().ok()))?;
        let got = get(user, inside, 20_000_000, secs(60))?;
        Ok(format!(
            "{:.2} s after it, 20 MB byte-exact at {:.0} Mbit/s",
            time.as_secs_f64(),
            got.megabits_per_second()
        ))
    });
    table.try_it("ping", || {
        let ping = Pinger::start(user.namespace(), inside, PACE)?;
        ping.first_answer(LIMIT)?;
        wait::pass(secs(1))?;
        let report = ping.stop();
        ensure!(report.lost() <= 1, "{report}");
        Ok(format!("{} of {} lost", report.lost(), report.sent))
    });
    table.try_it("UDP", || {
        super::peers::datagrams(user.namespace(), &gateway.inside, inside)
    });
    table.try_it("--accept-routes=false: closed", || {
        user.cli(&["set", "--accept-routes=false"])?;
        closes(little)?;
        user.cli(&["set", "--accept-routes"])?;
        wait::wait_for("the host again", LIMIT, || Ok(little().ok()))?;
        Ok(String::new())
    });
    Ok(())
}

/// By a second gateway to the same subnet, as the first ends; then neither is approved any more.
fn taken_over(
    table: &mut Table,
    server: &Server,
    mut first: Gateway,
    second: &Gateway,
    user: &Member,
) -> Result<()> {
    let inside: IpAddr = INSIDE.parse()?;
    let little = || get(user, inside, 100, TRY);
    let name = second.node.name();
    table.try_it("a second gateway takes over", || {
        server.wait_for_offer(name, SUBNET, LIMIT)?;
        server.approve_routes(name, SUBNET)?;
        user.wait_for_peer(name, LIMIT)?;
        ensure!(little().is_ok(), "closed before anything happened");
        first.node.stop();
        let (_, time) = wait::wait_for("the host behind the second", LIMIT, || Ok(little().ok()))?;
        ensure!(time <= TAKEN_OVER, "only after {time:.1?}");
        Ok(format!("{:.1} s after the first ended", time.as_secs_f64()))
    });
    table.try_it("no longer approved: closed", || {
        server.approve_routes(name, "")?;
        server.approve_routes("gateway", "")?;
        let time = closes(little)?;
        Ok(format!(
            "after {:.1} s, an attempt of {} s included",
            time.as_secs_f64(),
            TRY.as_secs()
        ))
    });
    Ok(())
}

fn with_ipv6(gateway: &Gateway) -> Result<()> {
    let router = gateway.node.namespace();
    router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    router.ip("addr add fd00:24::1/64 dev lan0 nodad")?;
    gateway.inside.ip(&format!(
        "addr add {INSIDE_V6}/64 dev eth0 nodad\n\
         route add default via fd00:24::1"
    ))
}

/// Offered, approved, used, and withdrawn.
fn beside_it(server: &Server, gateway: &Gateway, user: &Member) -> Result<String> {
    let name = gateway.node.name();
    let inside: IpAddr = INSIDE_V6.parse()?;
    let little = || get(user, inside, 100, TRY);
    let both = format!("{SUBNET},{SUBNET_V6}");
    let offer = |routes: &str| {
        let flag = format!("--advertise-routes={routes}");
        gateway.node.cli(&["set", &flag]).map(drop)
    };
    offer(&both)?;
    server.wait_for_offer(name, SUBNET_V6, LIMIT)?;
    stays_closed(little)?;
    server.approve_routes(name, &both)?;
    let (_, time) = wait::wait_for("the host behind it", LIMIT, || Ok(little().ok()))?;
    let got = get(user, inside, 20_000_000, secs(60))?;
    let ping = Pinger::start(user.namespace(), inside, PACE)?;
    ping.first_answer(LIMIT)?;
    drop(ping);
    super::peers::datagrams(user.namespace(), &gateway.inside, inside)?;
    server.approve_routes(name, SUBNET)?;
    closes(little)?;
    offer(SUBNET)?;
    Ok(format!(
        "{:.2} s after its approval, 20 MB byte-exact at {:.0} Mbit/s",
        time.as_secs_f64(),
        got.megabits_per_second()
    ))
}

/// Waits until it is closed, and stays so. Returns how long it was open.
fn closes<T>(little: impl Fn() -> Result<T>) -> Result<Duration> {
    let (_, time) = wait::wait_for("the end of it", LIMIT, || {
        Ok(little().is_err().then_some(()))
    })?;
    stays_closed(little)?;
    Ok(time)
}

/// One attempt that fails may be a packet that was lost.
fn stays_closed<T>(little: impl Fn() -> Result<T>) -> Result<()> {
    for _ in 0..3 {
        ensure!(little().is_err(), "it is reached");
    }
    Ok(())
}

pub fn gateway(lab: &Lab, name: &str, last: u8, key: &str) -> Result<Gateway> {
    let router = lab.net.router(name, last, Nat::Easy)?;
    let inside = lab.net.behind(&format!("{name}-host"), &router, 9)?;
    router
        .namespace
        .ip("addr replace 192.168.24.1/24 dev lan0")?;
    inside.ip(&format!("addr add {INSIDE}/24 dev eth0"))?;
    let node = Member::start(lab, Kind::Stock, name, &router.namespace)?;
    node.up_with(key, &[&format!("--advertise-routes={SUBNET}")])?;
    Ok(Gateway {
        node,
        _web: traffic::Server::start(&inside, 80)?,
        inside,
    })
}
