//! A node made of the kernel side alone: no control server, endpoints given.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lowroad_agent::kernel::{DataplaneChoice, KernelError, KernelOptions, Started, start};
use lowroad_core::desired::{
    DEFAULT_MARK, Desired, Peer, Route, RouteKind, WireGuard, policy_rules,
};
use lowroad_core::filter::{self, Input};
use lowroad_core::plan::{Step, plan};
use lowroad_wire::control::{FilterRule, NetPortRange, PortRange};
use lowroad_wire::key::{NodePrivate, NodePublic};

pub const PORT: u16 = 41641;

pub fn options(dataplane: DataplaneChoice, test: &str) -> KernelOptions {
    let state_id = format!("test-{}-{test}", std::process::id());
    KernelOptions {
        device: "lowroad0".into(),
        port: PORT,
        dataplane,
        mark: DEFAULT_MARK,
        state_dir: std::env::temp_dir().join(&state_id),
        state_id,
        filter_traces: false,
    }
}

/// What node `n` wants, without peers: addresses 100.64.0.n and fd7a:115c:a1e0::n.
pub fn desired(n: u8) -> Desired {
    Desired {
        device: "lowroad0".into(),
        mtu: 1280,
        addresses: own_addresses(n).into_iter().map(host).collect(),
        wireguard: WireGuard {
            private_key: private(n),
            listen_port: PORT,
            fwmark: DEFAULT_MARK.value,
            peers: BTreeMap::new(),
        },
        routes: ["100.64.0.0/10", "fd7a:115c:a1e0::/48"]
            .map(|prefix| route(prefix, RouteKind::Device))
            .into(),
        rules: policy_rules(DEFAULT_MARK),
    }
}

pub fn route(prefix: &str, kind: RouteKind) -> Route {
    Route {
        prefix: prefix.parse().unwrap(),
        kind,
    }
}

pub fn own_addresses(n: u8) -> [IpAddr; 2] {
    [
        format!("100.64.0.{n}").parse().unwrap(),
        format!("fd7a:115c:a1e0::{n}").parse().unwrap(),
    ]
}

pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

pub fn private(n: u8) -> NodePrivate {
    NodePrivate::from_random([n; 32])
}

pub fn peer(n: u8, endpoint: Option<SocketAddr>) -> (NodePublic, Peer) {
    let allowed_ips = own_addresses(n)
        .into_iter()
        .map(host)
        .collect::<BTreeSet<_>>();
    (
        private(n).public(),
        Peer {
            endpoint,
            allowed_ips,
        },
    )
}

/// Plans and applies once; says which steps it took.
pub async fn reconcile(started: &mut Started, desired: &Desired) -> Result<Vec<Step>, KernelError> {
    let observed = started.kernel.observe().await?;
    let steps = plan(desired, &observed);
    started.kernel.apply_all(&steps).await?;
    Ok(steps)
}

/// Starts, reconciles and lets everything pass the filter.
pub async fn up(options: KernelOptions, desired: &Desired) -> Started {
    let mut started = start(options).await.expect("this machine can run it");
    reconcile(&mut started, desired)
        .await
        .expect("every step succeeds");
    assert_settled(&mut started, desired).await;
    let rule = FilterRule {
        src_ips: vec!["*".into()],
        dst_ports: vec![NetPortRange {
            ip: "*".into(),
            ports: PortRange::ANY,
        }],
        ..FilterRule::default()
    };
    let input = Input {
        rules: vec![rule],
        local: desired.addresses.iter().copied().collect(),
        own_addresses: desired.addresses.iter().map(IpNet::addr).collect(),
        ..Input::default()
    };
    started
        .kernel
        .install_filter(&filter::compile(&input))
        .await
        .expect("the filter is attached");
    started
}

pub async fn assert_settled(started: &mut Started, desired: &Desired) {
    let observed = started.kernel.observe().await.expect("observing works");
    let steps = plan(desired, &observed);
    assert!(
        steps.is_empty(),
        "the plan after the plan has steps: {steps:?}"
    );
}

/// Tries until it gives something, for at most ten seconds.
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what}: not within ten seconds"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
