//! The agent dies, and another one takes over.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use aya::programs::{SchedClassifier, TcAttachType};
use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{DropReason, Pass, compile};

use crate::{
    device::{
        Arrived, Door, FOE, FRIEND, all_of_the_friend_and_none_of_the_foe, attach, dropped, end,
        nobody_gets_in, options, passed, rules, to, under_load,
    },
    tun::{Tun, eventually, fresh_mounts, fresh_namespace, sh},
};

/// Asks the test below to be an agent: device, index, state id, and `clsact` or `tcx`.
const AGENT: &str = "LOWROAD_TEST_AGENT";

/// Not a test by itself: the process that [`die_after_installing`] starts.
#[test]
fn helper_an_agent_that_installs_a_policy_and_dies() {
    let Ok(text) = std::env::var(AGENT) else {
        return;
    };
    let words: Vec<&str> = text.split(' ').collect();
    let [device, index, state_id, hook] = words[..] else {
        panic!("{text}")
    };
    let options = FilterOptions {
        clsact_only: hook == "clsact",
        ..FilterOptions::new(state_id, 0)
    };
    let mut filter =
        Filter::attach_or_adopt(device, index.parse().expect("index"), &options).expect("attach");
    filter
        .install(&compile(&rules(&[(FRIEND, 1000)])))
        .expect("install");
    // No destructor runs, as after SIGKILL.
    std::process::abort();
}

/// Another process attaches the filter, installs a rule for the friend, and dies.
fn die_after_installing(tun: &Tun, options: &FilterOptions) {
    let hook = if options.clsact_only { "clsact" } else { "tcx" };
    let status = Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "adoption::helper_an_agent_that_installs_a_policy_and_dies",
        ])
        .env(
            AGENT,
            format!("{} {} {} {hook}", tun.name, tun.index, options.state_id),
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("start the agent");
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(
        status.signal(),
        Some(libc::SIGABRT),
        "it died of its own: {status}"
    );
}

/// One agent attaches by the first options, the next by the others.
fn survives(first: &FilterOptions, options: &FilterOptions) {
    let tun = Tun::new("lr0");
    die_after_installing(&tun, first);
    tun.up("10.7.0.1/24");
    let door = Door::new(&tun);
    let friend_gets_in = || door.only_the_friend_gets_in();
    friend_gets_in();

    let mut filter = attach(&tun, options);
    friend_gets_in();
    assert!(filter.is_attached().expect("asking"));
    let counters = filter.counters().expect("counters");
    assert_eq!(passed(&counters, Pass::Rule), 2, "counters go on");
    assert_eq!(dropped(&counters, DropReason::Acl), 2);
    filter
        .install(&compile(&rules(&[(FOE, 3000), (FRIEND, 1000)])))
        .expect("install");
    friend_gets_in();
    let counters = filter.counters().expect("counters");
    assert_eq!(
        counters.rules[1].count.packets, 3,
        "the rule's own counter too"
    );
    end(filter, tun);
}

#[test]
fn the_filter_outlives_its_agent_and_the_next_one_adopts_it() {
    fresh_namespace();
    survives(&options("adopt"), &options("adopt"));
}

#[test]
fn the_filter_outlives_its_agent_and_the_next_one_adopts_it_with_clsact() {
    fresh_namespace();
    let clsact = clsact_only("adopt-clsact");
    survives(&clsact, &clsact);
}

/// With both hooks, what the agent before refuses would be refused for ever.
#[test]
fn a_device_that_an_agent_without_tcx_left_stays_with_its_hook() {
    fresh_namespace();
    survives(&clsact_only("adopt-hook"), &options("adopt-hook"));
}

fn clsact_only(name: &str) -> FilterOptions {
    FilterOptions {
        clsact_only: true,
        ..options(name)
    }
}

/// As after an upgrade: the pinned maps have a layout that this agent does not know. Says where they are.
fn die_with_another_layout(tun: &Tun, options: &FilterOptions) -> PathBuf {
    die_after_installing(tun, options);
    make_another_layout(options)
}

fn make_another_layout(options: &FilterOptions) -> PathBuf {
    let pins = pins(options);
    let ours = pins.join(format!("v{}", lowroad_abi::VERSION));
    let theirs = pins.join("v0");
    std::fs::rename(&ours, &theirs).expect("another version");
    theirs
}

fn survives_another_layout(options: &FilterOptions) {
    let tun = Tun::new("lr0");
    let theirs = die_with_another_layout(&tun, options);
    tun.up("10.7.0.1/24");
    let door = Door::new(&tun);

    let mut filter = attach(&tun, options);
    assert!(filter.is_attached().expect("asking"));
    door.only_the_friend_gets_in();
    let judged = |filter: &Filter| passed(&filter.counters().expect("counters"), Pass::Rule);
    assert_eq!(
        judged(&filter),
        0,
        "the programs before judge by their maps"
    );
    assert!(theirs.exists());
    filter
        .install(&compile(&rules(&[(FRIEND, 1000)])))
        .expect("install");
    door.only_the_friend_gets_in();
    assert_eq!(judged(&filter), 1, "ours judge by ours");
    assert!(!theirs.exists(), "nothing of the other layout is left");
    end(filter, tun);
}

#[test]
fn maps_of_another_layout_stay_in_force_until_ours_have_rules() {
    fresh_namespace();
    survives_another_layout(&options("layout"));
}

#[test]
fn maps_of_another_layout_stay_in_force_until_ours_have_rules_with_clsact() {
    fresh_namespace();
    survives_another_layout(&clsact_only("layout-clsact"));
}

/// The first policy is refused by the kernel before our programs have taken over.
fn closes_another_layout(options: &FilterOptions) {
    let tun = Tun::new("lr0");
    let theirs = die_with_another_layout(&tun, options);
    tun.up("10.7.0.1/24");
    let door = Door::new(&tun);
    let mut filter = attach(&tun, options);
    door.only_the_friend_gets_in();
    filter.close().expect("close");
    nobody_gets_in(&tun, &filter);
    assert!(!theirs.exists(), "nothing of the other layout is left");
    assert!(filter.is_attached().expect("asking"));
    filter
        .install(&compile(&rules(&[(FRIEND, 1000)])))
        .expect("install");
    door.only_the_friend_gets_in();
    end(filter, tun);
}

#[test]
fn closing_drops_what_maps_of_another_layout_admit() {
    fresh_namespace();
    closes_another_layout(&options("layout-closed"));
}

#[test]
fn closing_drops_what_maps_of_another_layout_admit_with_clsact() {
    fresh_namespace();
    closes_another_layout(&clsact_only("layout-closed-clsact"));
}

fn adopts_under_load(options: &FilterOptions, times: usize) {
    let tun = Tun::new("lr0");
    die_after_installing(&tun, options);
    tun.up("10.7.0.1/24");
    let mut last = None;
    let sent = under_load(&tun, || {
        for _ in 0..times {
            last = Some(attach(&tun, options));
        }
    });
    let filter = last.expect("some of them");
    all_of_the_friend_and_none_of_the_foe(&filter, sent);
    end(filter, tun);
}

#[test]
fn adopting_loses_no_packet_and_lets_none_in() {
    fresh_namespace();
    adopts_under_load(&options("adopt-load"), 10);
}

#[test]
fn adopting_loses_no_packet_and_lets_none_in_with_clsact() {
    fresh_namespace();
    adopts_under_load(&clsact_only("adopt-load-clsact"), times());
}

/// An emulated CPU takes seconds for each, and the host has had ten.
fn times() -> usize {
    match std::env::var_os("LOWROAD_EMULATED") {
        Some(_) => 2,
        None => 10,
    }
}

/// Some agents come one after another, each to maps of another layout, while packets are sent. These are counted at the socket: what the programs
/// count is in maps of both layouts.
fn another_layout_under_load(
    options: &FilterOptions,
    mut each: impl FnMut(&Tun, &mut Option<Filter>, &dyn Fn()),
) -> Arrived {
    let tun = Tun::new("lr0");
    die_after_installing(&tun, options);
    tun.up("10.7.0.1/24");
    let mut last = None;
    let arrived = Door::new(&tun).under_load(|more| {
        for _ in 0..times() {
            each(&tun, &mut last, more);
        }
    });
    println!("{} times under {} packets", times(), 2 * arrived.sent);
    end(last.expect("some of them"), tun);
    arrived
}

fn upgrades_under_load(options: &FilterOptions) {
    let arrived = another_layout_under_load(options, |tun, last, more| {
        let theirs = make_another_layout(options);
        // One that dies before it has a policy, and one that has another.
        drop(attach(tun, options));
        more();
        let filter = last.insert(attach(tun, options));
        more();
        assert!(theirs.exists(), "their maps are in force until then");
        filter
            .install(&compile(&rules(&[(FOE, 3000), (FRIEND, 1000)])))
            .expect("install");
        assert!(!theirs.exists());
        more();
    });
    assert_eq!((arrived.foes, &arrived.gaps[..]), (0, &[][..]));
}

#[test]
fn an_upgrade_to_another_layout_loses_no_packet_and_lets_none_in() {
    fresh_namespace();
    upgrades_under_load(&options("layout-load"));
}

#[test]
fn an_upgrade_to_another_layout_loses_no_packet_and_lets_none_in_with_clsact() {
    fresh_namespace();
    upgrades_under_load(&clsact_only("layout-load-clsact"));
}

/// A policy that is refused closes in one step, and the next one opens in one.
fn closes_another_layout_under_load(options: &FilterOptions) {
    let arrived = another_layout_under_load(options, |tun, last, more| {
        make_another_layout(options);
        let filter = last.insert(attach(tun, options));
        more();
        filter.close().expect("close");
        more();
        filter
            .install(&compile(&rules(&[(FRIEND, 1000)])))
            .expect("install");
        more();
    });
    let gaps = &arrived.gaps;
    assert_eq!((arrived.foes, gaps.len()), (0, times()), "{gaps:?}");
}

#[test]
fn closing_another_layout_under_load_is_one_step() {
    fresh_namespace();
    closes_another_layout_under_load(&options("layout-closed-load"));
}

#[test]
fn closing_another_layout_under_load_is_one_step_with_clsact() {
    fresh_namespace();
    closes_another_layout_under_load(&clsact_only("layout-closed-load-clsact"));
}

#[test]
fn pins_of_a_device_that_is_gone_are_discarded_with_their_rules() {
    fresh_namespace();
    let options = options("gone");
    let first = Tun::new("lr0");
    die_after_installing(&first, &options);
    drop(first);
    let _between = Tun::new("lr1");
    let tun = Tun::new("lr0");
    let mut filter = attach(&tun, &options);
    assert!(filter.is_attached().expect("asking"));
    tun.up("10.7.0.1/24");
    nobody_gets_in(&tun, &filter);
    filter
        .install(&compile(&rules(&[(FRIEND, 1000)])))
        .expect("install");
    tun.send(&to(FRIEND, 1000));
    eventually("and then its own", || {
        passed(&filter.counters().expect("counters"), Pass::Rule) == 1
    });
    end(filter, tun);
}

#[test]
fn cleaning_up_without_a_device_removes_pins_and_succeeds_twice() {
    fresh_namespace();
    let options = options("cleanup");
    let tun = Tun::new("lr0");
    die_after_installing(&tun, &options);
    drop(tun);
    for there in [true, false] {
        assert_eq!(Filter::cleanup(&options).expect("cleanup"), there);
    }
    assert!(!pins(&options).exists());
}

/// A pinned link is all that holds its program there.
#[test]
fn cleaning_up_leaves_a_device_that_is_still_there_its_filter_and_names_it() {
    if !has_links() {
        return;
    }
    fresh_namespace();
    let options = options("cleanup-device");
    let tun = Tun::new("lr7");
    die_after_installing(&tun, &options);
    tun.up("10.7.0.1/24");
    let door = Door::new(&tun);
    let refused = Filter::cleanup(&options)
        .expect_err("it is there")
        .to_string();
    assert!(refused.contains("the device lr7:"), "{refused}");
    door.only_the_friend_gets_in();
    let filter = attach(&tun, &options);
    let refused = filter.detach().expect_err("it is there").to_string();
    assert!(refused.contains("the device lr7:"), "{refused}");
    door.only_the_friend_gets_in();
    end(attach(&tun, &options), tun);
}

#[test]
fn cleaning_up_leaves_a_device_that_is_still_there_its_filter_with_clsact() {
    fresh_namespace();
    let options = clsact_only("cleanup-clsact");
    let tun = Tun::new("lr0");
    die_after_installing(&tun, &options);
    tun.up("10.7.0.1/24");
    let door = Door::new(&tun);
    assert!(Filter::cleanup(&options).expect("cleanup"));
    assert!(!pins(&options).exists());
    door.only_the_friend_gets_in();
}

/// All network namespaces share the bpffs, and number their devices alike.
#[test]
fn a_link_on_a_device_of_another_namespace_is_left_alone_and_told_of() {
    if !has_links() {
        return;
    }
    fresh_namespace();
    let options = options("elsewhere");
    let tun = Tun::new("lr0");
    die_after_installing(&tun, &options);
    tun.up("10.7.0.1/24");
    let door = Door::new(&tun);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            fresh_namespace();
            let here = Tun::new("lr0");
            for refused in [
                Filter::attach_or_adopt(&here.name, here.index, &options).map(drop),
                Filter::cleanup(&options).map(drop),
            ] {
                let refused = refused.expect_err("it is there").to_string();
                let device = format!("device number {} of another network namespace", tun.index);
                assert!(refused.contains(&device), "{refused}");
            }
        });
    });
    door.only_the_friend_gets_in();
    end(attach(&tun, &options), tun);
}

/// Else what the policy before refuses would be refused for ever, and nobody could tell why.
#[test]
fn a_device_whose_pins_are_out_of_reach_gets_no_second_policy() {
    if !has_links() {
        return;
    }
    fresh_namespace();
    let options = options("hidden");
    let tun = Tun::new("lr0");
    die_after_installing(&tun, &options);
    let out_of_reach = |options| Filter::is_out_of_reach(tun.index, options).expect("asking");
    assert!(!out_of_reach(&options));

    fresh_mounts();
    let dir = tempfile::tempdir().expect("a directory");
    let private = FilterOptions {
        bpffs: dir.path().to_owned(),
        ..options.clone()
    };
    sh(&format!("mount -t bpf bpf {}", private.bpffs.display()));
    assert!(out_of_reach(&private));
    let refused = Filter::attach_or_adopt(&tun.name, tun.index, &private);
    let refused = refused.expect_err("two policies").to_string();
    assert!(refused.contains("out of reach"), "{refused}");
    tun.up("10.7.0.1/24");
    Door::new(&tun).only_the_friend_gets_in();
    sh(&format!("umount {}", private.bpffs.display()));
    end(attach(&tun, &options), tun);
}

/// Filters of clsact hang on the device itself, and are pinned nowhere.
fn has_links() -> bool {
    let has_tcx = SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok();
    if !has_tcx {
        println!("SKIPPED: this kernel has no TCX, and no links to pin\nskipped 1");
    }
    has_tcx
}

fn pins(options: &FilterOptions) -> PathBuf {
    options.bpffs.join("lowroad").join(&options.state_id)
}

#[test]
fn a_device_of_another_number_is_refused() {
    fresh_namespace();
    let tun = Tun::new("lr0");
    let error = Filter::attach_or_adopt(&tun.name, tun.index + 1, &options("number"));
    assert!(
        error
            .expect_err("the wrong device")
            .to_string()
            .contains("lr0")
    );
}
