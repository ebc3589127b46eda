//! STUN probes of the relay map's regions.
