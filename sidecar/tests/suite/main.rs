//! The sidecar as a process, on a real tmpfs, against a broker's side that the test plays.
//!
//! Needs root, to mount; without, it fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy leaves only functions marked as tests alone, not their helpers"
)]

mod acknowledge;
mod budgets;
mod clock;
mod crashes;
mod expiry;
mod growth;
mod hostile;
mod links;
mod notify;
mod outputs;
mod publishing;
mod sandbox;
mod secrecy;
mod server;
mod sessions;
mod shim;
mod shortage;
mod status;
mod told;
