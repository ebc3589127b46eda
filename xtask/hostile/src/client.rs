//! Clients of the coordinator that mean harm.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use lowroad_wire::{key::NodePrivate, noise::Initiator};
use serde_json::to_vec;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UdpSocket},
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use crate::{
    Args,
    member::{Member, VERSION, control_key, post, upgraded},
    relay_client::RelayClient,
};

pub async fn run(args: &Args) -> Result<()> {
    let server: SocketAddr = args.get("server")?;
    let end = Instant::now() + args.duration()?;
    let count: usize = args.get("count")?;
    let done = match args.text("attack")? {
        "half-open" => connections(server, count, b"GET / HT", end).await,
        "silent" => connections(server, count, b"", end).await,
        "tls-garbage" => connections(server, count, b"\x16\x03\x01\x40\x00garbage", end).await,
        "noise-garbage" => noise_garbage(server, count, end).await?,
        "pending" => pending(server, count, end).await?,
        "unread" => unread(server, args.text("key")?, count, end).await?,
        "relay-unread" => relay(server, args.text("key")?, false, end).await?,
        "relay-flood" => relay(server, args.text("key")?, true, end).await?,
        "stun" => stun(server, end).await?,
        other => bail!("there is no attack {other}"),
    };
    println!("{done}");
    Ok(())
}

/// So many connections, each of which begins like this and says no more.
async fn connections(server: SocketAddr, count: usize, start: &'static [u8], end: Instant) -> u64 {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn(async move {
            let connect = timeout(Duration::from_secs(3), TcpStream::connect(server));
            let mut stream = connect.await.ok()?.ok()?;
            stream.write_all(start).await.ok()?;
            sleep_until(end.into()).await;
            Some(())
        });
        if tasks.len() % 64 == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
    let mut done = 0;
    while let Some(ended) = tasks.join_next().await {
        done += u64::from(matches!(ended, Ok(Some(()))));
    }
    done
}

/// Handshakes of strangers; after half of them come records that open for nobody.
async fn noise_garbage(server: SocketAddr, count: usize, end: Instant) -> Result<u64> {
    let key = control_key(server).await?;
    let mut done = 0;
    while done < count as u64 && Instant::now() < end {
        let machine = lowroad_wire::key::MachinePrivate::from_random(rand::random());
        let (_, initiation) = Initiator::new(VERSION, &machine, &key, rand::random())?;
        let garbage: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
        if done % 2 == 0 {
            let mut stream = upgraded(server, &initiation).await?;
            let _ = stream.write_all(&[4, 0x0f, 0xf0]).await;
            let _ = stream.write_all(&garbage).await;
        } else {
            let _ = upgraded(server, &garbage[..101]).await;
        }
        done += 1;
    }
    Ok(done)
}

/// Machines that ask to be let in, each on a channel of its own that stays open.
async fn pending(server: SocketAddr, count: usize, end: Instant) -> Result<u64> {
    let mut open = Vec::new();
    while open.len() < count && Instant::now() < end {
        let member = Member::connect(server, rand::random()).await?;
        let mut request = member.register_request(&"x".repeat(60), None);
        if let Some(hostinfo) = &mut request.hostinfo {
            hostinfo.details.get_or_insert_default().distro = "x".repeat(30_000);
        }
        let http = &mut member.channel(65_535).await?;
        let _ = post(http, "/machine/register", to_vec(&request)?).await?;
        open.push(member);
    }
    sleep_until(end.into()).await;
    Ok(open.len() as u64)
}

/// A member that polls and asks for netmaps, and opens no window for them.
async fn unread(server: SocketAddr, key: &str, count: usize, end: Instant) -> Result<u64> {
    let mut member = Member::connect(server, [0x21; 32]).await?;
    member.join("unread", key).await?;
    let mut held = Vec::new();
    let mut done = 0;
    for channel in 0..count {
        let Ok(mut http) = member.channel(0).await else {
            break;
        };
        for number in 0..30 {
            let mut request = member.map_request("unread", &[]);
            request.stream = (number + channel) % 2 == 0;
            request.keep_alive = true;
            let Ok(answer) = post(&mut http, "/machine/map", to_vec(&request)?).await else {
                break;
            };
            done += 1;
            held.push(answer);
        }
    }
    sleep_until(end.into()).await;
    Ok(done)
}

/// Two members: one floods the other, who never reads. With `also_reads` he does, and both flood.
async fn relay(server: SocketAddr, key: &str, also_reads: bool, end: Instant) -> Result<u64> {
    let mut members = Vec::new();
    for seed in [0x31, 0x32] {
        let mut member = Member::connect(server, [seed; 32]).await?;
        member.join("relayed", key).await?;
        members.push(member.node);
    }
    let [a, b]: [NodePrivate; 2] = [members[0].clone(), members[1].clone()];
    let mut sleeper = RelayClient::connect(server, &b).await?;
    let mut tasks = JoinSet::new();
    if also_reads {
        tasks.spawn(async move {
            while Instant::now() < end {
                if timeout(Duration::from_millis(200), sleeper.next())
                    .await
                    .is_ok_and(|frame| frame.is_err())
                {
                    break;
                }
            }
        });
    } else {
        tasks.spawn(async move {
            sleep_until(end.into()).await;
            drop(sleeper);
        });
    }
    let mut sent = 0;
    let packet = vec![0x5a; 1400];
    let mut relay = RelayClient::connect(server, &a).await?;
    // Some 50 Mbit/s, so that the machine has time for others.
    let began = Instant::now();
    while Instant::now() < end {
        if relay.send(&b.public(), &packet).await.is_err() {
            relay = RelayClient::connect(server, &a).await?;
        }
        sent += 1;
        let due = began + Duration::from_secs_f64(f64::from(u32::try_from(sent)?) / 5000.0);
        if due > Instant::now() + Duration::from_millis(2) {
            sleep_until(due.into()).await;
        }
    }
    tasks.shutdown().await;
    Ok(sent)
}

async fn stun(server: SocketAddr, end: Instant) -> Result<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    let to = SocketAddr::new(server.ip(), 3478);
    let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    request.extend_from_slice(&[7; 12]);
    let mut sent = 0u64;
    while Instant::now() < end {
        for _ in 0..50 {
            request[8] = rand::random();
            let length = if rand::random() {
                request.len()
            } else {
                rand::random_range(0..20)
            };
            let _ = socket.send_to(&request[..length], to).await;
            sent += 1;
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(sent)
}
