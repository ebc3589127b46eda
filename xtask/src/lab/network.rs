//! The lab's own ground: routers translate as their kind does, traffic is counted, cuts cut.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Lab, ms};
use crate::{
    topology::{Namespace, Nat},
    traffic::{self, Pinger},
    wait,
};

const LIMIT: Duration = Duration::from_secs(10);

pub fn an_easy_nat_keeps_one_mapping(lab: &Lab) -> Result<()> {
    let (first, second) = mappings(lab, Nat::Easy)?;
    ensure!(first == second, "mapped to {first} and to {second}");
    Ok(())
}

pub fn a_hard_nat_has_a_mapping_for_every_destination(lab: &Lab) -> Result<()> {
    let (first, second) = mappings(lab, Nat::Hard)?;
    ensure!(first.ip() == second.ip());
    ensure!(first.port() != second.port(), "both mapped to {first}");
    Ok(())
}

/// How one socket behind `nat` looks from two hosts outside, after an unasked packet came to its port from a third.
fn mappings(lab: &Lab, nat: Nat) -> Result<(SocketAddr, SocketAddr)> {
    let router = lab.net.router("router", 21, nat)?;
    let inside = lab.net.behind("inside", &router, 2)?;
    let outside: Vec<Namespace> = [(30, "x"), (31, "y"), (32, "z")]
        .iter()
        .map(|(last, name)| lab.net.public(name, *last))
        .collect::<Result<_>>()?;
    let sockets: Vec<UdpSocket> = outside.iter().map(udp).collect::<Result<_>>()?;
    let client = udp(&inside)?;
    sockets[2].send_to(b"unasked", "203.0.113.21:5000")?;
    client.send_to(b"first", "203.0.113.30:5000")?;
    client.send_to(b"second", "203.0.113.31:5000")?;
    let seen = |socket: &UdpSocket| {
        let mut buffer = [0; 64];
        let (_, from) = socket.recv_from(&mut buffer).context("nothing came")?;
        Ok::<_, anyhow::Error>(from)
    };
    Ok((seen(&sockets[0])?, seen(&sockets[1])?))
}

fn udp(namespace: &Namespace) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind("0.0.0.0:5000"))??;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

pub fn traffic_is_counted_and_cut_networks_heal(lab: &Lab) -> Result<()> {
    let router = lab.net.router("router", 21, Nat::Easy)?;
    let client = lab.net.behind("client", &router, 2)?;
    let host = lab.net.public("host", 30)?;
    let _server = traffic::Server::start(&host, 80)?;
    let address = SocketAddr::from(([203, 0, 113, 30], 80));
    let fetched = traffic::get(&client, address, 4_000_000, LIMIT)?;
    lab.note(&format!("{:.0} Mbit/s", fetched.megabits_per_second()));

    let ping = Pinger::start(&client, IpAddr::from([203, 0, 113, 30]), ms(20))?;
    ping.first_answer(LIMIT)?;
    lab.net.cut(21)?;
    let lost = |more_than| {
        wait::wait_for("lost packets", LIMIT, || {
            Ok((ping.report().lost() > more_than).then_some(()))
        })
    };
    lost(10)?;
    lab.net.heal(21)?;
    let before = ping.answered();
    wait::wait_for("answers after the cut", LIMIT, || {
        Ok((ping.answered() > before + 5).then_some(()))
    })?;
    let report = ping.stop();
    ensure!(report.lost() >= 10, "{report}");
    ensure!(report.longest_silence >= ms(150), "{report}");

    let second = lab.net.public("second", 31)?;
    let ping = Pinger::start(&second, "2001:db8::30".parse()?, ms(20))?;
    ping.first_answer(LIMIT)?;
    Ok(())
}
