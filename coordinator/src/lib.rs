//! The coordination server: control protocol, policy, storage, relay and STUN.
//!
//! `state` is what counts, in memory; `hub` holds it, has `writer` write what changed and publishes snapshots; `control` serves clients,
//! whose sessions send the difference (`delta`) between what they have sent and what the newest snapshot shows (`view`); `admin` serves
//! administrators.

mod account;
pub mod address;
pub mod admin;
pub mod args;
pub mod commands;
pub mod config;
pub mod control;
pub mod delta;
pub mod derp;
mod error;
mod fair;
pub mod hub;
pub mod limits;
pub mod model;
pub mod name;
pub mod policy;
pub mod refused;
pub mod relay_map;
mod replace;
pub mod server;
pub mod state;
pub mod store;
pub mod stun;
pub mod text;
pub mod tls;
pub mod view;
mod writer;

pub use error::Error;
