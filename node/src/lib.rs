//! Attests the containers of one host, serves their workload socket, watches for their deaths, and over
//! the volumes that their secrets are in.
//!
//! A node gathers and relays; the broker, its [`upstream`], judges. Field values pass through it
//! sealed to the sidecar, except in the one-shot form.

pub mod attest;
mod backoff;
pub mod config;
pub mod death;
mod lines;
mod refusals;
pub mod remote;
mod run;
mod served;
mod socket;
pub mod upstream;
mod volumes;

pub use config::NodeConfig;
pub use run::{NodeError, run};
pub use socket::PlaceError;
pub use volumes::VolumeError;
