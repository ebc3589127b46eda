//! `cargo xtask lab [name…]`: whole tailnets in namespaces, one scenario after another.

mod bad_input;
mod bpf;
mod foreign;
mod host;
mod hostile;
mod join;
mod kernel;
mod network;
mod outage;
mod paths;
mod peers;
mod policy;
mod restart;
mod roaming;
mod secrets;
mod survival;
mod traces;
mod underlay;
mod units;

use std::{
    error::Error,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};

use crate::{
    setup, signals,
    tailnet::{self, Coordinator, Node},
    test::Tally,
    topology::{Nat, Net},
    traffic::{Report, Stalls},
    vm::Debian,
    workspace::is_root,
};

/// What a scenario gets.
#[derive(Debug)]
pub struct Lab<'a> {
    pub net: &'a Net,
    /// On an emulated CPU time bounds are printed, not asserted.
    pub emulated: bool,
    /// Outages at full length: `LOWROAD_LONG`.
    pub long: bool,
}

type Scenario = fn(&Lab) -> Result<()>;

/// On the host, whatever its kernel has.
const SCENARIOS: &[(&str, Scenario)] = &[
    ("network-easy-nat", network::an_easy_nat_keeps_one_mapping),
    (
        "network-hard-nat",
        network::a_hard_nat_has_a_mapping_for_every_destination,
    ),
    (
        "network-traffic",
        network::traffic_is_counted_and_cut_networks_heal,
    ),
    ("join", join::two_nodes_join_and_reach_each_other),
    (
        "join-down-up",
        join::down_leaves_the_host_as_it_was_and_up_joins_again,
    ),
    (
        "join-one-lan",
        join::two_nodes_behind_one_router_talk_over_its_lan,
    ),
    ("traces-down", traces::down_leaves_no_trace),
    (
        "traces-refused",
        traces::an_up_that_is_refused_a_step_leaves_no_trace,
    ),
    (
        "traces-killed",
        traces::an_up_that_is_killed_at_a_step_leaves_nothing_that_cleaning_up_does_not_remove,
    ),
    (
        "traces-interrupted-down",
        traces::an_interrupted_down_is_finished_by_the_next,
    ),
    (
        "traces-interrupted-up",
        traces::an_up_whose_command_is_killed_is_taken_back,
    ),
    ("secrets", secrets::no_secret_is_found_where_others_look),
    (
        "secrets-core",
        secrets::a_daemon_that_aborts_leaves_no_core_dump,
    ),
    (
        "rights",
        secrets::only_root_and_the_operator_group_change_things,
    ),
    (
        "deltas",
        join::changes_reach_connected_nodes_without_reconnect,
    ),
    (
        "policy",
        policy::a_refused_connection_is_dropped_and_told_and_a_change_opens_it,
    ),
    ("policy-empty", policy::without_rules_nothing_passes),
    (
        "direct-easy-easy",
        paths::two_easy_nats_are_crossed_within_a_second_without_loss,
    ),
    (
        "direct-hard-public",
        paths::a_node_behind_a_hard_nat_reaches_a_public_one_directly,
    ),
    (
        "relay-udp-blocked",
        paths::with_udp_blocked_everything_goes_over_the_relay,
    ),
    (
        "relay-moved",
        paths::a_relayed_node_that_moves_is_back_within_seconds,
    ),
    ("relay-hard-hard", paths::two_hard_nats_stay_on_the_relay),
    (
        "partition",
        paths::after_a_partition_the_direct_path_comes_back,
    ),
    (
        "underlay-ipv6",
        underlay::without_ipv4_the_upgrade_to_a_direct_path_loses_nothing,
    ),
    (
        "underlay-strict",
        underlay::strict_filters_a_closed_firewall_and_a_small_mtu_change_nothing,
    ),
    (
        "restart-agent",
        restart::a_killed_agent_comes_back_without_up_and_its_peers_find_it,
    ),
    (
        "restart-agent-stopped",
        restart::a_stopped_agent_starts_again_where_it_was,
    ),
    (
        "restart-coordinator",
        restart::without_the_coordinator_direct_traffic_goes_on_and_nobody_registers_again,
    ),
    (
        "restart-without-control",
        restart::an_agent_that_starts_without_control_goes_on_with_what_it_knew,
    ),
    (
        "restart-relay",
        restart::relayed_nodes_find_a_restarted_relay,
    ),
    ("bad-up", bad_input::up_says_what_is_wrong),
    (
        "bad-server-key",
        bad_input::a_server_with_another_key_is_not_trusted,
    ),
    (
        "bad-agent-start",
        bad_input::the_agent_says_why_it_does_not_start,
    ),
    (
        "bad-coordinator",
        bad_input::the_coordinator_says_what_is_wrong,
    ),
    ("hostile-peer", hostile::peer::a_hostile_peer_harms_no_other),
    (
        "hostile-relay",
        hostile::relay::a_hostile_relay_harms_no_path_but_its_own,
    ),
    (
        "hostile-relay-changes",
        hostile::relay::a_relay_that_changes_packets_has_none_of_them_delivered,
    ),
    (
        "hostile-control",
        hostile::control::a_hostile_control_server_stops_nothing_that_works,
    ),
    (
        "hostile-client",
        hostile::client::a_hostile_client_harms_no_other,
    ),
];

/// In the VM, whose kernel has WireGuard: (name, also on Debian 12's kernel, scenario).
const IN_THE_VM: &[(&str, bool, Scenario)] = &[
    (
        "network-easy-nat",
        false,
        network::an_easy_nat_keeps_one_mapping,
    ),
    (
        "kernel",
        true,
        kernel::nodes_join_and_talk_directly_and_over_the_relay,
    ),
    (
        "kernel-survival",
        true,
        kernel::a_killed_agent_loses_no_packet_and_its_filter_stays,
    ),
    (
        "traces",
        true,
        traces::no_trace_is_left_by_the_kernels_wireguard,
    ),
    (
        "secrets",
        false,
        secrets::no_secret_is_found_where_others_look,
    ),
    (
        "secrets-core",
        false,
        secrets::a_daemon_that_aborts_leaves_no_core_dump,
    ),
    (
        "underlay-ipv6",
        false,
        underlay::without_ipv4_the_upgrade_to_a_direct_path_loses_nothing,
    ),
    (
        "underlay-strict",
        true,
        underlay::strict_filters_a_closed_firewall_and_a_small_mtu_change_nothing,
    ),
    (
        "kernel-peers",
        true,
        peers::peers_come_and_go_without_a_word_about_those_that_stay,
    ),
    (
        "kernel-roaming",
        false,
        roaming::an_endpoint_that_a_middlebox_moved_is_put_back,
    ),
    (
        "kernel-late-relay",
        false,
        roaming::what_comes_late_by_the_relay_moves_no_endpoint,
    ),
    (
        "kernel-foreign",
        false,
        foreign::what_others_put_on_the_device_and_into_the_tables_stays,
    ),
    (
        "kernel-tcx",
        false,
        foreign::other_programs_on_the_same_hooks_go_on,
    ),
    (
        "kernel-without-control",
        true,
        restart::an_agent_that_starts_without_control_goes_on_with_what_it_knew,
    ),
    (
        "agents-die",
        true,
        survival::nothing_is_lost_while_agents_die_and_others_take_over,
    ),
    (
        "outage",
        false,
        outage::direct_paths_outlive_control_and_relay_and_all_comes_back_without_a_storm,
    ),
];

/// In the VM with systemd.
const UNITS: &[(&str, Scenario)] = &[(
    "units",
    units::the_units_run_confined_and_what_they_made_in_the_kernel_stays,
)];

/// The policy of most scenarios, which are about other things.
pub const ALLOW_ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub fn main(names: &[&str]) -> Result<ExitCode> {
    signals::catch();
    let mut tally = Tally::default();
    run(names, &mut tally)?;
    Ok(tally.print())
}

/// Runs the scenarios whose name contains one of `names`; without names, all.
pub fn run(names: &[&str], tally: &mut Tally) -> Result<()> {
    if emulated() {
        return run_in_vm(Debian::Trixie, names, tally);
    }
    run_some(SCENARIOS, names, tally)
}

/// The VM's scenarios, on the kernel of this release.
pub fn run_in_vm(debian: Debian, names: &[&str], tally: &mut Tally) -> Result<()> {
    let brief = debian != Debian::Trixie && names.is_empty() && !long();
    if brief {
        tally.skip(
            &format!("lab/{TAKES_MINUTES}"),
            "takes minutes, and ran on Debian 13's kernel: here by its name, or with LOWROAD_LONG=1",
        );
    }
    let all: Vec<(&str, Scenario)> = IN_THE_VM
        .iter()
        .filter(|(_, everywhere, _)| *everywhere || debian == Debian::Trixie || !names.is_empty())
        .filter(|(name, ..)| !(brief && *name == TAKES_MINUTES))
        .map(|(name, _, scenario)| (*name, *scenario))
        .collect();
    run_some(&all, names, tally)
}

/// The tests have 45 minutes.
const TAKES_MINUTES: &str = "agents-die";

fn run_some(all: &[(&str, Scenario)], names: &[&str], tally: &mut Tally) -> Result<()> {
    let chosen: Vec<_> = all
        .iter()
        .filter(|(name, _)| names.is_empty() || names.iter().any(|part| name.contains(part)))
        .collect();
    if chosen.is_empty() {
        let all: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        bail!("no scenario of this name; there are: {}", all.join(", "));
    }
    if !is_root() {
        tally.skip(
            "lab",
            "namespaces need root: run the same command with sudo",
        );
        return Ok(());
    }
    setup::lab()?;
    tailnet::build()?;
    if chosen.iter().any(|(name, _)| name.starts_with("hostile")) {
        hostile::build()?;
    }
    for (name, scenario) in chosen {
        signals::check()?;
        one(name, *scenario, tally)?;
    }
    Ok(())
}

/// Those that want systemd's service units.
pub fn run_units(tally: &mut Tally) -> Result<()> {
    for (name, scenario) in UNITS {
        signals::check()?;
        one(name, *scenario, tally)?;
    }
    Ok(())
}

/// All scenarios, wherever they run.
pub fn names() -> Vec<&'static str> {
    let natively = SCENARIOS.iter().chain(UNITS).map(|(name, _)| *name);
    natively
        .chain(IN_THE_VM.iter().map(|(name, ..)| *name))
        .collect()
}

fn one(name: &str, scenario: Scenario, tally: &mut Tally) -> Result<()> {
    let start = Instant::now();
    eprintln!("   lab/{name}");
    let net = Net::new()?;
    let lab = Lab {
        net: &net,
        emulated: emulated(),
        long: long(),
    };
    tailnet::cleanup_failures();
    let result = catch_unwind(AssertUnwindSafe(|| scenario(&lab)))
        .unwrap_or_else(|_| Err(anyhow!("panicked")));
    let result = with_cleanup(result, &tailnet::cleanup_failures());
    signals::check()?;
    match result {
        Ok(()) => {
            tally.pass(1);
            eprintln!("   lab/{name}: ok, {:.1} s", start.elapsed().as_secs_f32());
        }
        Err(error) if error.is::<NotJudged>() => {
            tally.skip(&format!("lab/{name}"), &error.to_string());
        }
        Err(error) => {
            tailnet::print_logs(net.folder(), 40);
            eprintln!("   lab/{name}: FAILED: {error:#}");
            tally.fail(&format!("lab/{name}"), &format!("{error:#}"));
        }
    }
    Ok(())
}

/// A scenario whose nodes could not be cleaned up has failed, whatever else became of it.
fn with_cleanup(result: Result<()>, failures: &[String]) -> Result<()> {
    match result {
        result if failures.is_empty() => result,
        Ok(()) => Err(anyhow!("{}", failures.join("; "))),
        Err(error) => Err(anyhow!("{error:#}; {}", failures.join("; "))),
    }
}

/// The scenario saw something that says nothing of lowroad: why.
#[derive(Debug)]
struct NotJudged(String);

impl fmt::Display for NotJudged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for NotJudged {}

/// Whether agents and servers stay dead for minutes; else for as long as all timers take.
pub fn long() -> bool {
    std::env::var_os("LOWROAD_LONG").is_some()
}

/// Set by the VM's init.
fn emulated() -> bool {
    std::env::var_os("LOWROAD_EMULATED").is_some()
}

impl Lab<'_> {
    /// Prints what was measured, and on real hardware asserts the bound.
    pub fn within(&self, what: &str, measured: Duration, bound: Duration) -> Result<()> {
        let measured = measured.as_secs_f64();
        let bound = bound.as_secs_f64();
        eprintln!("      {what}: {measured:.2} s (at most {bound:.1} s)");
        if measured > bound && !self.emulated {
            bail!("{what} took {measured:.2} s, more than {bound:.1} s");
        }
        Ok(())
    }

    /// Fails if something was lost, unless it was while the emulated CPU stood still: then queues run over that a running one empties, whoever made them. Each
    /// ping report comes with the number of answers that the kernel could not make; `rest` is what has no time.
    pub fn lost(
        &self,
        pings: &[(&Report, usize)],
        rest: Result<()>,
        stalls: &Stalls,
    ) -> Result<()> {
        self.note(&format!(
            "this machine stood still for {} ms at most",
            stalls.longest().as_millis()
        ));
        for (report, unmade) in pings {
            let ours = report.lost_by_us(stalls);
            if ours > *unmade {
                bail!(
                    "{report}; {unmade} of them had come, {ours} were lost while the machine ran"
                );
            }
        }
        let unanswered = pings.iter().flat_map(|(report, _)| &report.unanswered);
        let queued = unanswered.filter(|one| one.queued());
        let queued = queued.map(|one| one.beside).max();
        let all = pings
            .iter()
            .find(|(report, unmade)| report.lost() > *unmade);
        let lost = all.map(|(report, _)| anyhow!("{report}"));
        let result = rest.and(lost.map_or(Ok(()), Err));
        match result {
            Err(error) if self.emulated && (stalls.any() || queued.is_some()) => {
                Err(NotJudged(format!(
                    "the emulated CPU stood still for {:.1} s at a time and left answers waiting for {:.1} s, this host's being wanted elsewhere: {error:#}",
                    stalls.longest().as_secs_f32(),
                    queued.unwrap_or_default().as_secs_f32(),
                ))
                .into())
            }
            result => result,
        }
    }

    pub fn coordinator(&self, policy: &str) -> Result<Coordinator> {
        Coordinator::start(self.net, policy)
    }

    /// An agent on the public segment, at 203.0.113.`last`.
    pub fn public_node(&self, name: &str, last: u8) -> Result<Node> {
        Node::start(self.net, name, self.net.public(name, last)?)
    }

    /// As [`Self::public_node`], with IPv4 only: there is one path to it, and nothing to choose.
    pub fn single_path_node(&self, name: &str, last: u8) -> Result<Node> {
        let node = self.public_node(name, last)?;
        let address = format!("addr del 2001:db8::{last}/64 dev wan0");
        node.namespace.ip(&address)?;
        Ok(node)
    }

    /// An agent behind a router of its own, which is at 203.0.113.`last`.
    pub fn node_behind(&self, name: &str, last: u8, nat: Nat) -> Result<Node> {
        let router = self.net.router(&format!("router-{name}"), last, nat)?;
        Node::start(self.net, name, self.net.behind(name, &router, 2)?)
    }

    pub fn note(&self, text: &str) {
        eprintln!("      {text}");
    }
}
