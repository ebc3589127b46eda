//! Clients of the coordinator that mean harm.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use lowroad_wire::{key::NodePrivate, noise::Initiator};
use serde_json::to_vec;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Args,
    member::{Member, VERSION, control_key, post, upgraded},
    relay_client::{self, RelayClient},
};

/// Connections that are made at the same time: how many there are is what counts, not how fast they come.
const AT_ONCE: usize = 16;
/// For what the server has to take or close, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn run(args: &Args) -> Result<()> {
    let server: SocketAddr = args.get("server")?;
    let count: usize = args.get("count")?;
    // What the server lets be at once, where that is to be seen; 0 where not.
    let limit = Some(args.get("limit")?).filter(|limit| *limit > 0);
    let key = args.text("key")?;
    let siege = Siege::begin(args)?;
    let crowd = |kind| connections(server, kind, (count, limit), &siege);
    let done = match args.text("attack")? {
        "half-open" => crowd(Kind::Says(b"GET / HT")).await?,
        "silent" => crowd(Kind::Says(b"")).await?,
        "tls-garbage" => crowd(Kind::Says(b"\x16\x03\x01\x40\x00garbage")).await?,
        "relay-greeting" => crowd(Kind::Relay).await?,
        "repeated" => repeated(server, key, (count, limit), &siege).await?,
        "noise-garbage" => noise_garbage(server, &siege).await?,
        "pending" => pending(server, (count, limit), &siege).await?,
        "unread" => unread(server, key, count, &siege).await?,
        "relay-unread" => relay(server, key, false, &siege).await?,
        "relay-flood" => relay(server, key, true, &siege).await?,
        "stun" => stun(server, &siege).await?,
        other => bail!("there is no attack {other}"),
    };
    println!("{done}");
    Ok(())
}

/// How long it goes on: until the lab says so, in a file, and no longer than it said at first.
struct Siege {
    folder: PathBuf,
    over: CancellationToken,
}

impl Siege {
    fn begin(args: &Args) -> Result<Self> {
        let (folder, last) = (PathBuf::from(args.text("dir")?), args.duration()?);
        let over = CancellationToken::new();
        let (told, mode) = (over.clone(), folder.join("mode"));
        tokio::spawn(async move {
            let end = Instant::now() + last;
            while Instant::now() < end && fs::read_to_string(&mode).is_ok_and(|mode| mode != "end")
            {
                sleep(Duration::from_millis(10)).await;
            }
            told.cancel();
        });
        Ok(Self { folder, over })
    }

    /// All that there will be is under way.
    fn is_complete(&self) -> Result<()> {
        fs::write(self.folder.join("complete"), "").context("tell the lab")
    }

    fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    async fn over(&self) {
        self.over.cancelled().await;
    }
}

/// What is behind a connection of a crowd.
#[derive(Clone)]
enum Kind {
    /// It begins like this and says no more.
    Says(&'static [u8]),
    /// It asks for the relay, and does not greet.
    Relay,
    /// It repeats this handshake of a machine, whose key it has not.
    Repeats(Arc<Vec<u8>>),
}

impl Kind {
    async fn open(&self, server: SocketAddr) -> Result<TcpStream> {
        Ok(match self {
            Self::Says(start) => {
                let mut stream = TcpStream::connect(server).await?;
                stream.write_all(start).await?;
                stream
            }
            Self::Relay => relay_client::upgraded(server).await?,
            Self::Repeats(initiation) => upgraded(server, initiation).await?,
        })
    }
}

/// So many connections; one that the server closes is made again after a while. If the server has a limit, no more than that
/// may be open at once, however many there are.
async fn connections(
    server: SocketAddr,
    kind: Kind,
    (count, limit): (usize, Option<usize>),
    siege: &Siege,
) -> Result<String> {
    let crowd = Arc::new(Crowd::new(server, kind));
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (crowd, over) = (crowd.clone(), siege.over.clone());
        tasks.spawn(async move { over.run_until_cancelled(crowd.one()).await });
    }
    let complete = || {
        let (opened, open) = crowd.count();
        opened >= count && open <= limit.unwrap_or(count)
    };
    let began = Instant::now();
    while !complete() && !siege.is_over() {
        ensure!(
            began.elapsed() < PATIENCE,
            "of {count} connections so many were taken, and so many are open: {:?}; the limit is {limit:?}",
            crowd.count()
        );
        sleep(Duration::from_millis(5)).await;
    }
    siege.is_complete()?;
    siege.over().await;
    tasks.shutdown().await;
    let (opened, open) = crowd.count();
    Ok(format!("{opened} connections, {open} open at the end"))
}

struct Crowd {
    server: SocketAddr,
    kind: Kind,
    turns: Semaphore,
    opened: AtomicUsize,
    closed: AtomicUsize,
}

impl Crowd {
    fn new(server: SocketAddr, kind: Kind) -> Self {
        Self {
            server,
            kind,
            turns: Semaphore::new(AT_ONCE),
            opened: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
        }
    }

    /// One connection after another.
    async fn one(&self) {
        loop {
            if let Ok(mut stream) = self.open().await {
                self.opened.fetch_add(1, Ordering::Relaxed);
                // Whatever it says: its end is what matters.
                let mut said = [0; 512];
                while stream.read(&mut said).await.is_ok_and(|length| length > 0) {}
                self.closed.fetch_add(1, Ordering::Relaxed);
            }
            // A flood that keeps a processor busy is another attack.
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn open(&self) -> Result<TcpStream> {
        let _turn = self.turns.acquire().await?;
        let stream = timeout(Duration::from_secs(3), self.kind.open(self.server)).await??;
        // No port waits for what is underway: all together there are more connections than ports.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        Ok(stream)
    }

    /// How many were made, and how many are open.
    fn count(&self) -> (usize, usize) {
        let closed = self.closed.load(Ordering::Relaxed);
        let opened = self.opened.load(Ordering::Relaxed);
        (opened, opened - closed)
    }
}

/// A machine's handshake again and again, while the machine itself polls.
async fn repeated(
    server: SocketAddr,
    key: &str,
    crowd: (usize, Option<usize>),
    siege: &Siege,
) -> Result<String> {
    let mut member = Member::connect(server, [0x41; 32]).await?;
    member.join("repeated", key).await?;
    let mut poll = member.poll("repeated", &[]).await?;
    poll.until(|netmap| netmap.self_node.is_some().then_some(()))
        .await?;
    let kind = Kind::Repeats(Arc::new(member.initiation.clone()));
    tokio::select! {
        done = connections(server, kind, crowd, siege) => done,
        ended = poll.until(|_| None::<()>) => ended.context("the machine's own poll ended").map(|()| String::new()),
    }
}

/// Handshakes of strangers; after half of them come records that open for nobody.
async fn noise_garbage(server: SocketAddr, siege: &Siege) -> Result<String> {
    let key = control_key(server).await?;
    siege.is_complete()?;
    let mut done = 0;
    while !siege.is_over() {
        let machine = lowroad_wire::key::MachinePrivate::from_random(rand::random());
        let (_, initiation) = Initiator::new(VERSION, &machine, &key, rand::random())?;
        let garbage: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
        // A handshake that the server refuses was sent all the same.
        if done % 2 == 0 {
            let mut stream = upgraded(server, &initiation).await?;
            let _ = stream.write_all(&[4, 0x0f, 0xf0]).await;
            let _ = stream.write_all(&garbage).await;
        } else {
            let _ = upgraded(server, &garbage[..101]).await;
        }
        done += 1;
    }
    Ok(format!("{done} handshakes"))
}

/// Machines that ask to be let in, each on a channel of its own that stays open as long as it may.
async fn pending(
    server: SocketAddr,
    (count, limit): (usize, Option<usize>),
    siege: &Siege,
) -> Result<String> {
    let ask = |_| async move {
        let mut member = Member::connect(server, rand::random()).await?;
        let mut request = member.register_request(&"x".repeat(60), None);
        if let Some(hostinfo) = &mut request.hostinfo {
            hostinfo.details.get_or_insert_default().distro = "x".repeat(30_000);
        }
        member.ask("/machine/register", to_vec(&request)?).await?;
        anyhow::Ok(member)
    };
    let asked = stream::iter(0..count).map(ask).buffer_unordered(AT_ONCE);
    let asked: Vec<Member> = asked.try_collect().await?;
    let open = || asked.iter().filter(|member| !member.is_closed()).count();
    let began = Instant::now();
    while open() > limit.unwrap_or(count) {
        ensure!(
            began.elapsed() < PATIENCE,
            "{} channels of strangers are open, {limit:?} may be",
            open()
        );
        sleep(Duration::from_millis(5)).await;
    }
    siege.is_complete()?;
    siege.over().await;
    Ok(format!(
        "{count} registrations, {} channels open at the end",
        open()
    ))
}

/// A member that polls and asks for netmaps, and opens no window for them.
async fn unread(server: SocketAddr, key: &str, count: usize, siege: &Siege) -> Result<String> {
    let mut member = Member::connect(server, [0x21; 32]).await?;
    member.join("unread", key).await?;
    let mut held = Vec::new();
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
            held.push(answer);
        }
    }
    siege.is_complete()?;
    siege.over().await;
    Ok(format!("{} requests", held.len()))
}

/// Two members: one floods the other, who never reads. With `also_reads` he does, and both flood.
async fn relay(server: SocketAddr, key: &str, also_reads: bool, siege: &Siege) -> Result<String> {
    let mut members = Vec::new();
    for seed in [0x31, 0x32] {
        let mut member = Member::connect(server, [seed; 32]).await?;
        member.join("relayed", key).await?;
        members.push(member.node);
    }
    let [a, b]: [NodePrivate; 2] = [members[0].clone(), members[1].clone()];
    let mut sleeper = RelayClient::connect(server, &b).await?;
    let over = siege.over.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let read = async { while also_reads && sleeper.next().await.is_ok() {} };
        over.run_until_cancelled(read).await;
        over.cancelled().await;
        drop(sleeper);
    });
    siege.is_complete()?;
    let (mut sent, mut done) = (0u64, 0u32);
    let packet = vec![0x5a; 1400];
    let mut relay = RelayClient::connect(server, &a).await?;
    // Some 50 Mbit/s, so that the machine has time for others.
    let began = Instant::now();
    while !siege.is_over() {
        match relay.send(&b.public(), &packet).await {
            Ok(()) => sent += 1,
            Err(_) => relay = RelayClient::connect(server, &a).await?,
        }
        done += 1;
        let due = began + Duration::from_secs_f64(f64::from(done) / 5000.0);
        if due > Instant::now() + Duration::from_millis(2) {
            sleep_until(due.into()).await;
        }
    }
    tasks.shutdown().await;
    Ok(format!("{sent} packets"))
}

async fn stun(server: SocketAddr, siege: &Siege) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    let to = SocketAddr::new(server.ip(), 3478);
    let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    request.extend_from_slice(&[7; 12]);
    let mut sent = 0u64;
    siege.is_complete()?;
    while !siege.is_over() {
        for _ in 0..50 {
            request[8] = rand::random();
            let length = if rand::random() {
                request.len()
            } else {
                rand::random_range(0..20)
            };
            sent += u64::from(socket.send_to(&request[..length], to).await.is_ok());
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(format!("{sent} datagrams"))
}
