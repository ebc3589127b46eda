//! Which scenarios there are, in the order in which they run.

use anyhow::Result;

use super::{
    Lab, absent, bad_input, foreign, hostile, join, kernel, neighbour, network, outage, paths,
    peers, policy, restart, roaming, secrets, spoof, survival, traces, underlay,
};
use crate::vm::Debian;

pub type Scenario = fn(&Lab) -> Result<()>;

/// On the host, whatever its kernel has.
pub const SCENARIOS: &[(&str, Scenario)] = &[
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
    (
        "relay-silent",
        roaming::a_handshake_that_the_relay_swallowed_goes_by_the_direct_path,
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

/// On which kernels a scenario of the VM runs by itself. By its name (`cargo xtask vm … vm-suite KERNEL NAME`) it runs on any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Both,
    Only(Debian),
    /// On the other kernel with `LOWROAD_LONG`: there it shows little that is new, and the tests have 45 minutes.
    OnlyUnlessLong(Debian),
    /// With `LOWROAD_LONG` on this one: on the host it runs by itself, with the userspace device.
    OnlyLong(Debian),
}

impl On {
    pub fn includes(self, debian: Debian, long: bool) -> bool {
        match self {
            Self::Both => true,
            Self::Only(one) => debian == one,
            Self::OnlyUnlessLong(one) => debian == one || long,
            Self::OnlyLong(one) => debian == one && long,
        }
    }

    /// Where else it runs, if `LOWROAD_LONG` would make a difference there.
    pub fn left_out(self, debian: Debian, long: bool) -> Option<&'static str> {
        let left_out = self.includes(debian, true) && !self.includes(debian, long);
        left_out.then_some(match self {
            Self::OnlyLong(_) => "on the host",
            _ => "on the other kernel",
        })
    }
}

/// In the VM, whose kernel has WireGuard.
pub const IN_THE_VM: &[(&str, On, Scenario)] = &[
    (
        "network-easy-nat",
        On::Only(Debian::Trixie),
        network::an_easy_nat_keeps_one_mapping,
    ),
    (
        "kernel",
        On::Both,
        kernel::nodes_join_and_talk_directly_and_over_the_relay,
    ),
    (
        "kernel-neighbour",
        On::OnlyUnlessLong(Debian::Trixie),
        neighbour::anothers_end_is_not_noticed,
    ),
    // On Debian 13's kernel `agents-die` shows the same and more; on Debian 12's that one, which takes minutes, does not run by itself.
    (
        "kernel-survival",
        On::Only(Debian::Bookworm),
        survival::nothing_is_lost_while_an_agent_is_dead_and_another_takes_over,
    ),
    (
        "traces",
        On::Both,
        traces::no_trace_is_left_by_the_kernels_wireguard,
    ),
    (
        "secrets",
        On::Only(Debian::Trixie),
        secrets::no_secret_is_found_where_others_look,
    ),
    (
        "secrets-core",
        On::Only(Debian::Trixie),
        secrets::a_daemon_that_aborts_leaves_no_core_dump,
    ),
    (
        "underlay-ipv6",
        On::Both,
        underlay::without_ipv4_the_upgrade_to_a_direct_path_loses_nothing,
    ),
    (
        "underlay-strict",
        On::Both,
        underlay::strict_filters_a_closed_firewall_and_a_small_mtu_change_nothing,
    ),
    (
        "kernel-peers",
        On::Both,
        peers::peers_come_and_go_without_a_word_about_those_that_stay,
    ),
    (
        "kernel-absent",
        On::OnlyUnlessLong(Debian::Trixie),
        absent::what_changed_meanwhile_is_all_that_the_next_agent_changes,
    ),
    (
        "kernel-spoof",
        On::Both,
        spoof::a_peer_sends_from_its_own_addresses_only,
    ),
    (
        "kernel-roaming",
        On::Both,
        roaming::an_endpoint_that_a_middlebox_moved_is_put_back,
    ),
    (
        "kernel-late-relay",
        On::Both,
        roaming::what_comes_late_by_the_relay_moves_no_endpoint,
    ),
    (
        "kernel-foreign",
        On::Both,
        foreign::what_others_put_on_the_device_and_into_the_tables_stays,
    ),
    (
        "kernel-tcx",
        On::Only(Debian::Trixie),
        foreign::other_programs_on_the_same_hooks_go_on,
    ),
    (
        "kernel-without-control",
        On::Both,
        restart::an_agent_that_starts_without_control_goes_on_with_what_it_knew,
    ),
    (
        "agents-die",
        On::OnlyUnlessLong(Debian::Trixie),
        survival::nothing_is_lost_while_agents_die_and_others_take_over,
    ),
    (
        "hostile-peer",
        On::OnlyUnlessLong(Debian::Trixie),
        hostile::peer::a_hostile_peer_harms_no_other,
    ),
    (
        "hostile-relay",
        On::OnlyLong(Debian::Trixie),
        hostile::relay::a_hostile_relay_harms_no_path_but_its_own,
    ),
    (
        "outage",
        On::Only(Debian::Trixie),
        outage::direct_paths_outlive_control_and_relay_and_all_comes_back_without_a_storm,
    ),
];
