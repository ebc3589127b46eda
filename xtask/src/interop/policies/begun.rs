//! What was begun before a policy that closes it, with a lowroad and with a stock node: TCP goes on, a flow that the node began is answered, and nothing new begins.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{CLOSED, LIMIT, exactly, through};
use crate::{
    interop::{member::Member, server::Server},
    lab::{ALLOW_ALL, secs},
    tailnet::Client,
    traffic::Stream,
    wait,
};

const TCP: u16 = 82;
/// Both nodes may reach it whatever the policy.
const ASKED: u16 = 9;
/// Of answers, and for one.
const PACE: Duration = Duration::from_millis(20);
/// What goes on does so at its pace, of 2 kB in 20 ms, and not for what was under way.
const GOES_ON: u64 = 100_000;

/// With `from`, who may reach both nodes at first.
pub fn goes_on(server: &Server, from: &Member, nodes: [&Member; 2]) -> Result<String> {
    server.set_policy(ALLOW_ALL)?;
    let mut begun = Vec::new();
    for family in [4, 6] {
        let answerer = bind(from, family, ASKED)?;
        for to in nodes {
            begun.push(Begun::between(from, to, family, &answerer)?);
        }
    }
    server.set_policy(CLOSED)?;
    for to in nodes {
        exactly(from, to, "")?;
    }
    let mut said = Vec::new();
    for one in begun {
        let what = one.what.clone();
        said.push(one.goes_on().context(what)?);
    }
    Ok(said.join("; "))
}

struct Begun {
    what: String,
    stream: Stream,
    flow: Flow,
}

impl Begun {
    fn between(from: &Member, to: &Member, family: u8, answerer: &UdpSocket) -> Result<Self> {
        let what = format!("{} to {} over IPv{family}", from.name(), to.name());
        wait::wait_for(&what, LIMIT, || {
            Ok(through(from, to, family, "80")?.then_some(()))
        })?;
        let address = SocketAddr::new(to.ip(family)?, TCP);
        let stream = Stream::start(from.namespace(), to.namespace(), address)?;
        let flow = Flow::begin(bind(to, family, 0)?, answerer.try_clone()?)?;
        flow.answers().with_context(|| what.clone())?;
        Ok(Self { what, stream, flow })
    }

    fn goes_on(self) -> Result<String> {
        self.flow.answers()?;
        let before = self.stream.progress();
        wait::wait_for("more of the TCP stream, both ways", LIMIT, || {
            Ok((self.stream.progress() >= before + GOES_ON).then_some(()))
        })?;
        let carried = self.stream.stop()?;
        Ok(format!(
            "{}: {:.1} MB by TCP, byte-exact, silent for {:.2} s, and answers by UDP",
            self.what,
            carried.bytes as f64 / 1e6,
            carried.longest_silence.as_secs_f64()
        ))
    }
}

/// One question by UDP, and any number of answers: nothing else keeps the flow.
struct Flow {
    asker: UdpSocket,
    answerer: UdpSocket,
}

impl Flow {
    fn begin(asker: UdpSocket, answerer: UdpSocket) -> Result<Self> {
        let mut buffer = [0; 16];
        wait::wait_for("the question", LIMIT, || {
            asker.send_to(b"question", answerer.local_addr()?)?;
            let (_, by) = answerer.recv_from(&mut buffer)?;
            Ok((by == asker.local_addr()?).then_some(()))
        })?;
        Ok(Self { asker, answerer })
    }

    /// Waits for one that was not under way before.
    fn answers(&self) -> Result<()> {
        let mut buffer = [0; 16];
        while self.asker.recv(&mut buffer).is_ok() {}
        wait::wait_for("an answer by UDP", secs(2), || {
            let asker = self.asker.local_addr()?;
            self.answerer.send_to(b"answer", asker)?;
            Ok(Some(self.asker.recv(&mut buffer)?))
        })
        .map(drop)
    }
}

/// At the node's own address.
fn bind(member: &Member, family: u8, port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::new(member.ip(family)?, port);
    let socket = member.namespace().enter(|| UdpSocket::bind(address))?;
    let socket = socket.with_context(|| format!("bind {address} at {}", member.name()))?;
    socket.set_read_timeout(Some(PACE))?;
    Ok(socket)
}
