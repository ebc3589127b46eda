//! A device that an agent left, or that has another name than the agent thinks: whoever comes next finds it, and it is never up without its filter.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use aya::programs::{SchedClassifier, TcAttachType};
use lowroad_agent::kernel::{
    DataplaneChoice, KernelChange, KernelOptions, Started, cleanup, start,
};
use lowroad_core::desired::Desired;
use lowroad_core::plan::{Step, plan};

use crate::netns::Netns;
use crate::node::{PORT, assert_settled, desired, options, peer, reconcile, up};

fn wants() -> Desired {
    let mut wants = desired(1);
    let peers = [peer(2, Some("192.0.2.2:1".parse().unwrap()))];
    wants.wireguard.peers.extend(peers);
    wants
}

pub fn a_renamed_device_gets_its_name_back_and_keeps_its_peers(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.block_on(async {
        let wants = wants();
        let mut started = up(options(dataplane, "renamed"), &wants).await;
        while started.changes.try_recv().is_ok() {}
        rename(&netns, "lowroad0", "elsewhere0");
        tokio::time::timeout(Duration::from_secs(5), async {
            while started.changes.recv().await != Some(KernelChange::Device) {}
        })
        .await
        .expect("the monitor says that our device changed");
        let observed = started.kernel.observe().await.unwrap();
        let steps = plan(&wants, &observed);
        assert!(
            !steps
                .iter()
                .any(|step| matches!(step, Step::CreateDevice { .. } | Step::AddPeer { .. })),
            "it is the same device: {steps:?}"
        );
        started.kernel.apply_all(&steps).await.unwrap();
        assert_settled(&mut started, &wants).await;
        assert_eq!(guarded(&netns), ["lowroad0"]);

        rename(&netns, "lowroad0", "elsewhere0");
        started.kernel.teardown().await.unwrap();
        assert_eq!(guarded(&netns), [""; 0]);
        assert!(!pins("renamed").exists());
    });
}

pub fn a_device_under_another_name_is_adopted_with_another_port(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.block_on(async {
        let mut wants = wants();
        leave(&options(dataplane, "adopted"), &wants).await;
        let other = KernelOptions {
            device: "lr7".into(),
            port: PORT + 10,
            ..options(dataplane, "adopted")
        };
        wants.device.clone_from(&other.device);
        wants.wireguard.listen_port = other.port;
        let mut started = start(other).await.unwrap();
        assert!(started.adopted);
        let steps = reconcile(&mut started, &wants).await.unwrap();
        assert!(
            !steps
                .iter()
                .any(|step| matches!(step, Step::AddPeer { .. })),
            "{steps:?}"
        );
        assert_settled(&mut started, &wants).await;
        assert_eq!(guarded(&netns), ["lr7"]);
        started.kernel.teardown().await.unwrap();
    });
}

/// The name is not stored: who cleans up may not know it.
pub fn cleaning_up_finds_the_device_by_no_name(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    let before = netns.dump();
    netns.block_on(async {
        let named = KernelOptions {
            device: "lr7".into(),
            ..options(dataplane, "no-name")
        };
        leave(&named, &wants()).await;
        assert_eq!(guarded(&netns), ["lr7"]);
        let removed = cleanup(&options(dataplane, "no-name")).await.unwrap();
        assert!(removed.contains(&"device lr7".to_owned()), "{removed:?}");
        let again = cleanup(&options(dataplane, "no-name")).await.unwrap();
        assert_eq!(again, [""; 0]);
    });
    assert_eq!(netns.dump(), before);
    assert!(!pins("no-name").exists());
}

/// They share the bpffs: an agent in another one must not take the filter off this one's device.
pub fn a_device_of_another_namespace_keeps_its_filter(dataplane: DataplaneChoice) {
    let (netns, other) = (Netns::new(), Netns::new());
    let options = options(dataplane, "namespaces");
    netns.block_on(leave(&options, &wants()));
    other.block_on(async {
        let cleaned = cleanup(&options).await;
        assert_eq!(guarded(&netns), ["lowroad0"]);
        let mut started = start(options.clone()).await.unwrap();
        let reconciled = reconcile(&mut started, &wants()).await;
        assert_eq!(guarded(&netns), ["lowroad0"]);
        let torn_down = started.kernel.teardown().await;
        assert_eq!(guarded(&netns), ["lowroad0"]);
        // Without TCX the device itself holds its filter.
        if has_tcx() {
            let errors = [
                cleaned.map(drop).unwrap_err(),
                reconciled.map(drop).unwrap_err(),
                torn_down.unwrap_err(),
            ];
            for error in errors.map(|error| error.to_string()) {
                assert!(error.contains("of another network namespace"), "{error}");
            }
        }
        assert_eq!(guarded(&other), [""; 0]);
    });
    netns.block_on(cleanup(&options)).unwrap();
    assert_eq!(guarded(&netns), [""; 0]);
    assert!(!pins("namespaces").exists());
}

/// The old policy would be in force beside the new one.
pub fn a_device_whose_pins_are_out_of_reach_is_made_anew(dataplane: DataplaneChoice) {
    if !has_tcx() {
        println!("SKIPPED: this kernel has no TCX, and no links to pin\nskipped 1");
        return;
    }
    let netns = Netns::new();
    netns.block_on(async {
        let options = options(dataplane, "hidden");
        leave(&options, &wants()).await;
        let before = netns.ip("-o link show lowroad0");
        let hidden = pins("hidden-away");
        fs::rename(pins("hidden"), &hidden).unwrap();

        let mut started = start(options).await.unwrap();
        assert!(!started.adopted);
        reconcile(&mut started, &wants()).await.unwrap();
        assert_settled(&mut started, &wants()).await;
        assert_ne!(netns.ip("-o link show lowroad0"), before, "another device");
        assert_eq!(guarded(&netns), ["lowroad0"]);
        started.kernel.teardown().await.unwrap();
        fs::remove_dir_all(hidden).unwrap();
    });
}

/// Everything up, and then the agent is gone.
async fn leave(options: &KernelOptions, wants: &Desired) {
    let wants = Desired {
        device: options.device.clone(),
        ..wants.clone()
    };
    let started: Started = up(options.clone(), &wants).await;
    drop(started);
}

/// Linux before 6.2 renames only what is down.
fn rename(netns: &Netns, from: &str, to: &str) {
    if !netns.can_ip(&format!("link set {from} name {to}")) {
        netns.ip(&format!("link set {from} down"));
        netns.ip(&format!("link set {from} name {to}"));
        netns.ip(&format!("link set {to} up"));
    }
}

fn pins(test: &str) -> PathBuf {
    let id = options(DataplaneChoice::Auto, test).state_id;
    PathBuf::from("/sys/fs/bpf/lowroad").join(id)
}

fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// The lowroads' devices that are up, each of which must have its filter.
fn guarded(netns: &Netns) -> Vec<String> {
    let links = netns.ip("-o link show up");
    let ours = links.lines().filter(|line| line.contains("lowroad:"));
    let names: Vec<String> = ours
        .filter_map(|line| {
            Some(
                line.split([' ', ':', '@'])
                    .find(|word| word.parse::<u32>().is_err() && !word.is_empty())?
                    .to_owned(),
            )
        })
        .collect();
    for name in &names {
        for (hook, side) in [
            (TcAttachType::Ingress, "ingress"),
            (TcAttachType::Egress, "egress"),
        ] {
            let filtered = netns.run(|| {
                let by_tcx = SchedClassifier::query_tcx(name, hook);
                by_tcx.is_ok_and(|(_, programs)| !programs.is_empty()) || by_clsact(name, side)
            });
            assert!(filtered, "{name} is up without a filter on its {side}");
        }
    }
    names
}

fn by_clsact(device: &str, side: &str) -> bool {
    let output = Command::new("tc")
        .args(["filter", "show", "dev", device, side])
        .output()
        .expect("iproute2 is installed");
    String::from_utf8_lossy(&output.stdout).contains("overlay_")
}
