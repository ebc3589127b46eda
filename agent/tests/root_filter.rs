//! The packet filter in the kernel. Needs root: programs are loaded, run on packets, attached to devices in namespaces of their own.

#[path = "../../core/tests/support/generate.rs"]
mod generate;
#[path = "../../core/tests/support/packets.rs"]
mod packets;
#[path = "../../core/tests/support/vectors.rs"]
mod vectors;

#[path = "root_filter/adoption.rs"]
mod adoption;
#[path = "root_filter/attached.rs"]
mod attached;
#[path = "root_filter/counted.rs"]
mod counted;
#[path = "root_filter/device.rs"]
mod device;
#[path = "root_filter/flows.rs"]
mod flows;
#[path = "root_filter/frags.rs"]
mod frags;
#[path = "root_filter/named.rs"]
mod named;
#[path = "root_filter/property.rs"]
mod property;
#[path = "root_filter/refusals.rs"]
mod refusals;
#[path = "root_filter/speed.rs"]
mod speed;
#[path = "root_filter/stock.rs"]
mod stock;
#[path = "root_filter/tables.rs"]
mod tables;
#[path = "root_filter/tun.rs"]
mod tun;
