//! The list.

mod agent;
mod control;
mod control_client;
mod coordinator;
mod coordinator_state;
mod datagrams;
mod events;
mod filters;
mod netmaps;
mod paths;
mod policies;
mod policy_edit;
mod public;
mod relay;
mod segments;
mod userspace;
mod words;

#[path = "../../../core/tests/support/generate.rs"]
mod generate;
#[path = "../../../core/tests/support/lookup.rs"]
mod lookup;
#[path = "../../../core/tests/support/packets.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod packets;

use std::time::Duration;

use tokio::runtime::Runtime;

use crate::{Limits, Target};

/// On this thread, with sockets and time.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What a decoder of short things may take. Builds without optimisation have to keep the times, too.
const SMALL: Limits = Limits {
    memory: 256 * KIB,
    memory_per_byte: 32,
    time: Duration::from_millis(100),
    time_per_kib: Duration::from_millis(20),
};

const fn target(
    name: &'static str,
    about: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
) -> Target {
    Target {
        name,
        about,
        run,
        seeds,
        limits: SMALL,
        max_len: 4 * KIB,
        mutations: 3000,
        needs_root: false,
    }
}

impl Target {
    const fn limits(
        mut self,
        memory: usize,
        memory_per_byte: usize,
        time_ms: u64,
        time_per_kib_ms: u64,
    ) -> Self {
        self.limits = Limits {
            memory,
            memory_per_byte,
            time: Duration::from_millis(time_ms),
            time_per_kib: Duration::from_millis(time_per_kib_ms),
        };
        self
    }

    const fn mutations(mut self, mutations: usize) -> Self {
        self.mutations = mutations;
        self
    }

    const fn max_len(mut self, max_len: usize) -> Self {
        self.max_len = max_len;
        self
    }

    const fn rooted(mut self) -> Self {
        self.needs_root = true;
        self
    }
}

/// All of them.
pub static TARGETS: &[Target] = &[
    target(
        "control_json",
        "requests and answers of the control protocol",
        control::control_json,
        control::control_json_seeds,
    )
    .limits(MIB, 256, 100, 100),
    target(
        "control_words",
        "c2n requests, Retry-After, pins of relays",
        words::control_words,
        words::control_words_seeds,
    )
    .max_len(512),
    target(
        "netmap",
        "map messages, what they add up to, and the plan for the kernel",
        netmaps::netmap,
        netmaps::netmap_seeds,
    )
    .limits(4 * MIB, 1024, 300, 300)
    .max_len(16 * KIB)
    .mutations(1000),
    target(
        "netmap_cache",
        "the kept netmap's file, and that what is kept is found again",
        netmaps::netmap_cache,
        netmaps::netmap_cache_seeds,
    )
    .limits(4 * MIB, 1024, 300, 300)
    .max_len(16 * KIB)
    .mutations(500),
    target(
        "map_stream",
        "framing of map messages, zstd",
        control::map_stream,
        control::map_stream_seeds,
    )
    .limits(256 * MIB, 32, 2000, 100)
    .mutations(600),
    target(
        "noise_server",
        "initiations, as a server meets them",
        control::noise_server,
        control::noise_seeds,
    )
    .mutations(150),
    target(
        "noise_client",
        "answers to an initiation",
        control::noise_client,
        control::noise_seeds,
    )
    .mutations(150),
    target(
        "noise_records",
        "records of an open channel",
        control::noise_records,
        control::noise_records_seeds,
    )
    .limits(MIB, 4000, 400, 1000)
    .max_len(512)
    .mutations(150),
    target(
        "noise_early",
        "what a server says before HTTP/2",
        control::noise_early,
        control::noise_early_seeds,
    ),
    target(
        "control_client",
        "a control server, by the agent that connects to it",
        control_client::control_client,
        control_client::control_client_seeds,
    )
    .limits(8 * MIB, 1024, 500, 100)
    .max_len(8 * KIB)
    .mutations(150),
    target(
        "derp_frames",
        "DERP frames, as client and as server",
        relay::derp_frames,
        relay::derp_frames_seeds,
    )
    .limits(MIB, 64, 200, 100)
    .max_len(8 * KIB),
    target(
        "derp_relay",
        "a client of the embedded relay",
        relay::derp_relay,
        relay::derp_relay_seeds,
    )
    .limits(2 * MIB, 256, 300, 100)
    .max_len(8 * KIB)
    .mutations(150),
    target(
        "derp_client",
        "a relay, by the agent that connects to it",
        relay::derp_client,
        relay::derp_client_seeds,
    )
    .limits(4 * MIB, 256, 500, 100)
    .max_len(12 * KIB)
    .mutations(150),
    target(
        "raw_datagrams",
        "what raw sockets see: datagrams beside WireGuard's port, and what may answer pings through the tunnel",
        words::raw_datagrams,
        words::raw_datagrams_seeds,
    )
    .max_len(256),
    target(
        "userspace_datagrams",
        "what comes to the userspace device's port, and by relays",
        userspace::userspace_datagrams,
        userspace::userspace_datagrams_seeds,
    )
    .limits(4 * MIB, 256, 200, 100),
    target(
        "disco_message",
        "the inside of disco messages",
        datagrams::disco_message,
        datagrams::disco_message_seeds,
    ),
    target(
        "disco_box",
        "sealed disco messages",
        datagrams::disco_box,
        datagrams::disco_box_seeds,
    )
    .mutations(300),
    target(
        "stun",
        "STUN requests and responses",
        datagrams::stun_message,
        datagrams::stun_seeds,
    ),
    target(
        "geneve_tsmp",
        "Geneve headers and TSMP packets",
        datagrams::geneve_and_tsmp,
        datagrams::geneve_and_tsmp_seeds,
    ),
    target(
        "netcheck",
        "answers of STUN servers, in time",
        datagrams::netcheck,
        datagrams::netcheck_seeds,
    )
    .limits(MIB, 256, 200, 100)
    .mutations(1000),
    target(
        "paths",
        "the path state machine",
        paths::paths,
        paths::paths_seeds,
    )
    .limits(2 * MIB, 256, 500, 1000)
    .max_len(2 * KIB)
    .mutations(400),
    target(
        "first_contact",
        "handshakes of unknown keys",
        paths::first_contact,
        paths::first_contact_seeds,
    )
    .limits(MIB, 64, 300, 2000)
    .max_len(512)
    .mutations(300),
    target(
        "policy",
        "the policy file, compiled for a small tailnet",
        policies::policy,
        policies::policy_seeds,
    )
    .limits(64 * MIB, 0, 100, 100)
    .max_len(16 * KIB)
    .mutations(1500),
    target(
        "policy_edit",
        "the policy file's text, laid out and edited",
        policy_edit::policy_edit,
        policy_edit::policy_edit_seeds,
    )
    .limits(64 * MIB, 0, 300, 300)
    .max_len(16 * KIB)
    .mutations(1000),
    target(
        "coordinator_config",
        "the coordinator's configuration and relay map",
        coordinator::coordinator_config,
        coordinator::coordinator_config_seeds,
    )
    .limits(MIB, 256, 200, 100)
    .mutations(1000),
    target(
        "coordinator_state",
        "the coordinator's database and certificate, as they are found at a start",
        coordinator_state::coordinator_state,
        coordinator_state::coordinator_state_seeds,
    )
    .limits(72 * MIB, 1024, 1000, 500)
    .mutations(150),
    target(
        "coordinator_requests",
        "machines that register, report and poll",
        coordinator::coordinator_requests,
        coordinator::coordinator_requests_seeds,
    )
    .limits(4 * MIB, 1024, 500, 500)
    .max_len(8 * KIB)
    .mutations(300),
    target(
        "coordinator_http",
        "strangers at the coordinator's public port",
        public::coordinator_http,
        public::coordinator_http_seeds,
    )
    .limits(8 * MIB, 1024, 1000, 500)
    .mutations(150),
    target(
        "coordinator_channel",
        "what a machine asks on its channel to the coordinator",
        public::coordinator_channel,
        public::coordinator_channel_seeds,
    )
    .limits(16 * MIB, 1024, 1000, 500)
    .max_len(8 * KIB)
    .mutations(100),
    target(
        "admin_socket",
        "requests on the coordinator's socket",
        coordinator::admin::admin_socket,
        coordinator::admin::admin_socket_seeds,
    )
    .limits(8 * MIB, 1024, 1000, 500)
    .mutations(60),
    target(
        "local_api",
        "requests on the agent's socket",
        agent::local_api,
        agent::local_api_seeds,
    )
    .limits(2 * MIB, 256, 300, 200)
    .mutations(500),
    target("prefs", "preferences", agent::prefs, agent::prefs_seeds).limits(MIB, 256, 100, 50),
    target(
        "state_file",
        "the agent's state file",
        agent::state_file,
        agent::state_file_seeds,
    )
    .limits(MIB, 256, 100, 50),
    target(
        "filter_rules",
        "filter rules, compiled, and what they say of packets",
        filters::filter_rules,
        filters::filter_rules_seeds,
    )
    .limits(32 * MIB, 4096, 500, 500)
    .mutations(500),
    target(
        "packets",
        "packets into the reference of the filter, and what the programs report of packets",
        filters::packets,
        filters::packets_seeds,
    )
    .limits(8 * MIB, 64, 500, 100)
    .mutations(600),
    target(
        "segments",
        "packets put together for the TUN device and taken apart",
        segments::segments,
        segments::segments_seeds,
    )
    .mutations(1500),
    target(
        "ebpf",
        "packets into the programs in the kernel, beside the reference",
        filters::ebpf,
        filters::ebpf_seeds,
    )
    .limits(64 * MIB, 64, 5000, 1000)
    .mutations(50)
    .rooted(),
];
