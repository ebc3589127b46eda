//! Addresses of this host's interfaces.
