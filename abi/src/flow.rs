//! State of UDP and SCTP flows, which lets answers in.

/// Flows remembered; beyond, the least recently used go.
pub const FLOW_ENTRIES: usize = 65_536;

/// A UDP or SCTP flow as seen from this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    remote: [u8; 16],
    local: [u8; 16],
    remote_port: [u8; 2],
    local_port: [u8; 2],
    family: u8,
    protocol: u8,
    jailed: u8,
    pad: u8,
    epoch: u32,
}

impl FlowKey {
    /// `epoch` is that of the settings: raising it forgets every flow. Flows with jailed peers are apart, so that one recorded before a peer was jailed is not its way in.
    #[inline(always)]
    pub const fn new(
        family: u8,
        protocol: u8,
        remote: ([u8; 16], [u8; 2]),
        local: ([u8; 16], [u8; 2]),
        epoch: u32,
        jailed: bool,
    ) -> Self {
        Self {
            remote: remote.0,
            local: local.0,
            remote_port: remote.1,
            local_port: local.1,
            family,
            protocol,
            jailed: jailed as u8,
            pad: 0,
            epoch,
        }
    }
}

const _: () = assert!(size_of::<FlowKey>() == 44 && align_of::<FlowKey>() == 4);
