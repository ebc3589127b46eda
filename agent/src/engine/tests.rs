//! The whole engine on the fake kernel, against a control server made of `wire`; without relays, which need privileges.

use std::sync::Mutex;

use lowroad_core::desired::{DEFAULT_MARK, Observed};
use rustls::RootCertStore;
use serde_json::json;
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use super::*;
use crate::{
    control::tests::server::{Call, Reply, TestServer},
    kernel::{
        Dataplane, DataplaneChoice,
        fake::{self, FakeHandle},
    },
    localapi::UpRequest,
    prefs::{AuthKey, Change},
    status::{BackendState, Progress, Status},
};

mod bus;
mod cached;
mod fair;
mod forced;
mod keys;
mod logins;
mod metrics;
mod policy;
mod scale;
mod settings;

const PATIENCE: Duration = Duration::from_secs(20);

/// Kernels that the engine has started, in order.
type Kernels = Arc<Mutex<Vec<FakeHandle>>>;

struct Agent {
    asks: mpsc::Sender<Ask>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    kernels: Kernels,
}

impl Agent {
    fn start(dir: &TempDir) -> Self {
        Self::start_on(dir, Observed::default())
    }

    /// On a kernel that holds something already.
    fn start_on(dir: &TempDir, found: Observed) -> Self {
        Self::start_with(dir, move |kernel| {
            kernel.change(|observed| *observed = found.clone());
        })
    }

    /// On kernels that are prepared so.
    fn start_with(dir: &TempDir, prepare: impl Fn(&FakeHandle) + Send + Sync + 'static) -> Self {
        let mut n = 0;
        let state_dir = dir.path().to_owned();
        let (dir, state) = StateDir::open(dir.path(), |bytes| {
            n += 1;
            bytes.fill(n);
        })
        .unwrap();
        let kernels = Kernels::default();
        let (seen, prepare) = (kernels.clone(), Arc::new(prepare));
        let options = EngineOptions {
            kernel: KernelOptions {
                device: "lowroad0".into(),
                port: 41641,
                dataplane: DataplaneChoice::Auto,
                mark: DEFAULT_MARK,
                state_id: state.id.clone(),
                state_dir,
                filter_traces: false,
            },
            start_kernel: Box::new(move |_| {
                let (seen, prepare) = (seen.clone(), prepare.clone());
                Box::pin(async move {
                    let (started, handle) = fake::start(Dataplane::Kernel)
                        .await
                        .expect("loopback sockets work");
                    prepare(&handle);
                    seen.lock().unwrap().push(handle);
                    Ok(started)
                })
            }),
            tls: TlsConfig::with_roots(RootCertStore::empty()).unwrap(),
            traversal: false,
            uptime: Duration::ZERO,
            age: Duration::ZERO,
            operator: Arc::default(),
        };
        let (asks, receiver) = mpsc::channel(16);
        let (stop, order) = watch::channel(false);
        let engine = Engine::new(options, dir, state, receiver, order);
        Self {
            asks,
            stop,
            task: tokio::spawn(engine.run()),
            kernels,
        }
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> T {
        let (reply, answer) = oneshot::channel();
        self.asks.send(make(reply)).await.unwrap();
        timeout(PATIENCE, answer)
            .await
            .expect("the engine answers")
            .unwrap()
    }

    async fn status(&self) -> Status {
        self.ask(|reply| Ask::Status { peers: true, reply }).await
    }

    async fn up(&self, request: UpRequest) -> mpsc::Receiver<Progress> {
        let (progress, steps) = mpsc::channel(32);
        self.asks
            .send(Ask::Up {
                request: Box::new(request),
                progress,
            })
            .await
            .unwrap();
        steps
    }

    fn kernel(&self) -> FakeHandle {
        self.kernels
            .lock()
            .unwrap()
            .last()
            .cloned()
            .expect("the engine has started a kernel")
    }

    async fn end(self) {
        self.stop.send_replace(true);
        timeout(PATIENCE, self.task)
            .await
            .expect("the engine ends")
            .unwrap();
    }
}

async fn last(mut steps: mpsc::Receiver<Progress>) -> Progress {
    loop {
        match timeout(PATIENCE, steps.recv())
            .await
            .expect("up goes on")
            .expect("up ends with an outcome")
        {
            Progress::Waiting(_) | Progress::AuthUrl(_) => {}
            outcome => return outcome,
        }
    }
}

fn request(url: &str) -> UpRequest {
    let change = Change {
        control_url: Some(url.to_owned()),
        hostname: Some("gate".into()),
        ..Change::default()
    };
    UpRequest {
        change,
        auth_key: Some(AuthKey::new("key".into())),
        ..UpRequest::default()
    }
}

/// A node that is connected, and the server's end of its map stream.
async fn connected(
    dir: &TempDir,
    server: &mut TestServer,
) -> (Agent, mpsc::Sender<serde_json::Value>) {
    let agent = Agent::start(dir);
    let steps = agent.up(request(&server.url)).await;
    let stream = admit(server).await;
    assert_eq!(last(steps).await, Progress::Done);
    (agent, stream)
}

/// The line of health that begins so.
async fn health_line(agent: &Agent, begins: &str) -> Option<String> {
    let mut health = agent.status().await.health.into_iter();
    health.find(|line| line.starts_with(begins))
}

/// Plays the server until this node is connected; returns the end of its map stream.
async fn admit(server: &mut TestServer) -> mpsc::Sender<serde_json::Value> {
    admit_among(server, json!([peer(2)])).await
}

async fn admit_among(
    server: &mut TestServer,
    peers: serde_json::Value,
) -> mpsc::Sender<serde_json::Value> {
    let mut stream = None;
    let mut reported = false;
    while stream.is_none() || !reported {
        let call = server.call().await;
        match (call.path.as_str(), call.body["Stream"] == true) {
            ("/machine/register", _) => {
                call.json(json!({"MachineAuthorized": true, "User": {"ID": 1}}))
            }
            (_, true) => stream = Some(open_map(call, &peers).await),
            (_, false) => {
                reported = true;
                call.json(json!({}));
            }
        }
    }
    stream.unwrap()
}

async fn open_map(call: Call, peers: &serde_json::Value) -> mpsc::Sender<serde_json::Value> {
    let key = call.body["NodeKey"].clone();
    let stream = call.stream();
    let node = json!({"ID": 1, "StableID": "n1", "Name": "gate.tail.lab.", "Key": key, "Addresses": ["100.64.0.1/32"], "MachineAuthorized": true});
    stream
        .send(json!({"Node": node, "Peers": peers, "PacketFilter": [], "Domain": "lab"}))
        .await
        .unwrap();
    stream
}

/// The peer with this number, and its address.
fn peer(n: u16) -> serde_json::Value {
    let [high, low] = n.to_be_bytes();
    let key = |kind: &str, from: u64| format!("{kind}key:{:064x}", from + u64::from(n));
    json!({"ID": n, "Name": format!("p{n}.tail.lab."), "Key": key("node", 1 << 32), "DiscoKey": key("disco", 1 << 33), "HomeDERP": 1, "Addresses": [format!("100.64.{high}.{low}/32")]})
}

#[tokio::test]
async fn up_returns_when_the_kernel_is_programmed_and_the_report_acknowledged() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    assert_eq!(agent.status().await.backend_state, BackendState::NeedsLogin);
    let steps = agent.up(request(&server.url)).await;
    let _stream = admit(&mut server).await;
    assert_eq!(last(steps).await, Progress::Done);
    let status = agent.status().await;
    assert_eq!(status.backend_state, BackendState::Running);
    assert_eq!(status.tailscale_ips.unwrap()[0].to_string(), "100.64.0.1");
    assert_eq!(
        (
            status.lowroad.dataplane.as_str(),
            status.peer.unwrap().len()
        ),
        ("kernel", 1)
    );
    let device = agent.kernel().observed().device.unwrap();
    assert!(device.up && device.filter_attached && device.peers.len() == 1);
    agent.end().await;
}

#[tokio::test]
async fn a_failed_up_leaves_the_host_as_it_was_and_says_why() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    let steps = agent.up(request(&server.url)).await;
    server
        .expect("/machine/register")
        .await
        .answer(Reply::Status(
            hyper::StatusCode::UNAUTHORIZED,
            "authkey not found",
        ));
    let Progress::Failed(why) = last(steps).await else {
        panic!("it failed")
    };
    assert!(why.contains("authkey not found"), "{why}");
    assert!(agent.kernel().is_torn_down());
    assert_eq!(agent.status().await.backend_state, BackendState::NeedsLogin);
    let prefs = agent.ask(|reply| Ask::Prefs { reply }).await;
    assert_eq!(
        (&prefs["WantRunning"], &prefs["Hostname"]),
        (&json!(false), &json!(""))
    );
    agent.end().await;
}

#[tokio::test]
async fn up_gives_up_after_its_timeout_and_says_what_it_waited_for() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    let steps = agent
        .up(UpRequest {
            timeout_ms: 300,
            ..request(&server.url)
        })
        .await;
    let _unanswered = server.expect("/machine/register").await;
    let Progress::Failed(why) = last(steps).await else {
        panic!("it failed")
    };
    assert!(why.contains("not connected within 0.3 s"), "{why}");
    agent.end().await;
}

#[tokio::test]
async fn an_interrupted_up_is_taken_back() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    let steps = agent.up(request(&server.url)).await;
    let _unanswered = server.expect("/machine/register").await;
    drop(steps);
    until(|| agent.kernel().is_torn_down()).await;
    agent.end().await;
}

#[tokio::test]
async fn an_interrupted_up_does_not_end_another() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    let interrupted = agent.up(request(&server.url)).await;
    let _unanswered = server.expect("/machine/register").await;
    drop(interrupted);
    let steps = agent.up(request(&server.url)).await;
    let _stream = admit(&mut server).await;
    assert_eq!(last(steps).await, Progress::Done);
    agent.end().await;
}

#[tokio::test]
async fn a_restarted_agent_that_wants_to_run_connects_by_itself_with_the_same_key() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let key = agent.status().await.self_node.unwrap().public_key;
    let kernel = agent.kernel();
    agent.end().await;
    assert!(!kernel.is_torn_down(), "what the kernel holds stays");

    let again = Agent::start(&dir);
    let register = server.expect("/machine/register").await;
    assert_eq!(register.body["NodeKey"], key);
    register.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    while again.status().await.backend_state != BackendState::Running {
        tokio::task::yield_now().await;
    }
    again.end().await;
}

#[tokio::test]
async fn down_removes_everything_and_a_restarted_agent_stays_down() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    agent.ask(|reply| Ask::Down { reply }).await.unwrap();
    assert!(agent.kernel().is_torn_down());
    assert_eq!(agent.status().await.backend_state, BackendState::Stopped);
    agent.end().await;
    let again = Agent::start(&dir);
    assert_eq!(again.status().await.backend_state, BackendState::Stopped);
    assert!(again.kernels.lock().unwrap().is_empty());
    again.end().await;
}

#[tokio::test]
async fn a_node_that_the_server_wants_to_log_in_again_loses_its_peers() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = connected(&dir, &mut server).await;
    drop(stream);
    expect_register_anew(&mut server)
        .await
        .json(json!({"AuthURL": "http://page/1"}));
    let kernel = agent.kernel();
    until(|| {
        kernel
            .observed()
            .device
            .is_some_and(|device| device.peers.is_empty())
    })
    .await;
    let status = agent.status().await;
    assert_eq!(
        (status.backend_state, status.auth_url.as_str()),
        (BackendState::NeedsLogin, "http://page/1")
    );
    agent.end().await;
}

#[tokio::test]
async fn a_forced_login_that_is_refused_leaves_the_old_identity_in_force() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let key = agent.status().await.self_node.unwrap().public_key;
    let forced = UpRequest {
        force_reauth: true,
        ..request(&server.url)
    };
    let steps = agent.up(forced).await;
    let refused = expect_register(&mut server).await;
    assert_ne!(refused.body["NodeKey"], key);
    refused.answer(Reply::Status(
        hyper::StatusCode::UNAUTHORIZED,
        "no such authkey",
    ));
    assert!(matches!(last(steps).await, Progress::Failed(_)));
    let again = expect_register(&mut server).await;
    assert_eq!(again.body["NodeKey"], key);
    again.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    until_running(&agent).await;
    assert_eq!(agent.kernel().observed().device.unwrap().peers.len(), 1);
    assert!(!agent.kernel().is_torn_down());
    agent.end().await;
}

#[tokio::test]
async fn a_restarted_agent_that_has_to_log_in_again_loses_the_peers_it_found() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let left = agent.kernel().observed();
    agent.end().await;

    let again = Agent::start_on(&dir, left);
    let register = expect_register(&mut server).await;
    assert_eq!(again.kernel().observed().device.unwrap().peers.len(), 1);
    register.json(json!({"AuthURL": "http://page/1"}));
    until(|| {
        let device = again.kernel().observed().device;
        device.is_some_and(|device| device.peers.is_empty())
    })
    .await;
    again.end().await;
}

#[tokio::test]
async fn a_new_node_key_that_the_kernel_does_not_take_is_tried_again() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = connected(&dir, &mut server).await;
    agent.kernel().fail_observe(true);
    drop(stream);
    expect_register_anew(&mut server)
        .await
        .json(json!({"NodeKeyExpired": true}));
    // The session that failed is admitted, and so is the one after it.
    let mut streams = Vec::new();
    let admitting = async {
        loop {
            streams.push(admit(&mut server).await);
        }
    };
    let started_again = async {
        until(|| agent.kernels.lock().unwrap().len() == 2).await;
        until_running(&agent).await;
    };
    tokio::select! {
        () = started_again => {}
        () = admitting => {}
    }
    agent.end().await;
}

async fn until_running(agent: &Agent) {
    let running = async {
        while agent.status().await.backend_state != BackendState::Running {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, running).await.expect("it runs");
}

/// Answers reports until the node registers.
async fn expect_register(server: &mut TestServer) -> Call {
    loop {
        let call = server.call().await;
        if call.path == "/machine/register" {
            return call;
        }
        call.json(json!({}));
    }
}

/// Refuses polls until the node registers, as a server that has forgotten it.
async fn expect_register_anew(server: &mut TestServer) -> Call {
    loop {
        let call = server.call().await;
        if call.path == "/machine/register" {
            return call;
        }
        call.answer(Reply::Status(hyper::StatusCode::NOT_FOUND, "gone"));
    }
}

/// Waits for a condition that the engine brings about by itself.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it comes about");
}
