//! Many peers: what a change of one costs, and what becomes of one too many.

use lowroad_core::plan::Step;
use lowroad_wire::key::NodePublic;

use super::*;

/// An agent that is connected, and its server's map stream.
struct Connected {
    agent: Agent,
    _server: TestServer,
    _dir: TempDir,
    stream: mpsc::Sender<serde_json::Value>,
}

impl Connected {
    async fn among(count: u16) -> Self {
        let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
        let agent = Agent::start(&dir);
        let steps = agent.up(request(&server.url)).await;
        let peers: Vec<_> = (2..count + 2).map(peer).collect();
        let stream = admit_among(&mut server, peers.into()).await;
        assert_eq!(last(steps).await, Progress::Done);
        Self {
            agent,
            _server: server,
            _dir: dir,
            stream,
        }
    }

    /// Tells of a peer that is another one than before; what that takes, and how long.
    async fn change(&self, peer: &serde_json::Value) -> (Vec<Step>, Duration) {
        let kernel = self.agent.kernel();
        let address: std::net::IpAddr = "100.99.0.1".parse().unwrap();
        let comes = peer["Addresses"].as_array().unwrap().len() == 2;
        let is_last = |step: &Step| match step {
            Step::AddRoute(route) => comes && route.prefix.addr() == address,
            Step::RemoveRoute(route) => !comes && route.prefix.addr() == address,
            _ => false,
        };
        kernel.take_steps();
        let begun = Instant::now();
        self.stream
            .send(json!({"PeersChanged": [peer]}))
            .await
            .unwrap();
        let steps = Mutex::new(Vec::new());
        until(|| {
            let mut steps = steps.lock().unwrap();
            steps.extend(kernel.take_steps());
            steps.iter().any(is_last)
        })
        .await;
        (steps.into_inner().unwrap(), begun.elapsed())
    }
}

/// Fewer than those from which on all peers have one route.
const MANY: u16 = 9_000;
const ROUNDS: usize = 15;

#[tokio::test]
async fn a_change_of_one_peer_costs_no_more_among_thousands_than_among_ten() {
    let tailnets = [Connected::among(10).await, Connected::among(MANY).await];
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for second_address in [true, false] {
            let mut changed = peer(7);
            if second_address {
                changed["Addresses"]
                    .as_array_mut()
                    .unwrap()
                    .push("100.99.0.1/32".into());
            }
            for (tailnet, times) in tailnets.iter().zip(&mut times) {
                let (steps, took) = tailnet.change(&changed).await;
                times.push(took);
                // Prefixes and a route come; or the other way round.
                assert!(steps.len() <= 2, "{steps:?}");
            }
        }
    }
    let [few, many] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    println!("a change among 10: {few:?}, among {MANY}: {many:?}");
    assert!(many < few * 3, "among 10: {few:?}, among {MANY}: {many:?}");
    for tailnet in tailnets {
        tailnet.agent.end().await;
    }
}

/// The kernel says no to some steps: the others of its netmap are made up for as soon as it doesn't any more.
#[tokio::test]
async fn what_the_kernel_refuses_is_told_by_health_and_made_up_for() {
    let connected = Connected::among(10).await;
    let (agent, kernel) = (&connected.agent, connected.agent.kernel());
    let refusal = async || {
        let health = agent.status().await.health;
        let mut behind = health
            .into_iter()
            .filter(|line| line.starts_with("the kernel does not hold"));
        behind.next()
    };
    assert_eq!(refusal().await, None);
    let installed = kernel.installed().len();
    let peers = || kernel.observed().device.unwrap().peers.len();
    let refused: NodePublic = serde_json::from_value(peer(15)["Key"].clone()).unwrap();

    kernel.fail_steps(move |step| matches!(step, Step::AddPeer { key, .. } if *key == refused));
    let more: Vec<_> = (12..=20).map(peer).collect();
    let rules =
        json!([{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 80, "Last": 80}}]}]);
    connected
        .stream
        .send(json!({"PeersChanged": more, "PacketFilter": rules}))
        .await
        .unwrap();
    let told = async {
        loop {
            if let Some(told) = refusal().await
                && told.contains("AddPeer")
            {
                break told;
            }
        }
    };
    let told = timeout(PATIENCE, told).await.expect("health tells of it");
    assert!(told.ends_with("it is tried again"), "{told}");
    assert!(peers() < 19);
    assert!(kernel.installed().len() > installed && !kernel.is_closed());
    assert_eq!(agent.status().await.backend_state, BackendState::Running);

    kernel.heal();
    until(|| peers() == 19).await;
    let healed = async { while refusal().await.is_some() {} };
    timeout(PATIENCE, healed)
        .await
        .expect("health is as before");
    connected.agent.end().await;
}

/// Of messages for people there are fewer than of peers.
#[tokio::test]
async fn what_a_difference_has_no_room_for_is_told_by_health_until_there_is_a_new_netmap() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = connected(&dir, &mut server).await;
    let left_out = async || health_line(&agent, "the netmap is too large").await;
    assert_eq!(left_out().await, None);
    let messages = (0..258).map(|n| (n.to_string(), json!({"Title": "x"})));
    let messages: serde_json::Map<_, _> = messages.collect();
    let difference = json!({"DisplayMessages": messages, "Domain": "renamed"});
    stream.send(difference).await.unwrap();
    let told = async {
        loop {
            if let Some(told) = left_out().await {
                break told;
            }
        }
    };
    let told = timeout(PATIENCE, told).await.expect("health tells of it");
    let expected = "the netmap is too large: 2 parts of it were left out";
    assert_eq!(told, expected);
    let tailnet = agent.status().await.current_tailnet.unwrap();
    assert_eq!(tailnet.name, "renamed", "the rest is taken");

    drop(stream);
    let _stream = admit(&mut server).await;
    let healed = async { while left_out().await.is_some() {} };
    timeout(PATIENCE, healed)
        .await
        .expect("health is as before");
    agent.end().await;
}
