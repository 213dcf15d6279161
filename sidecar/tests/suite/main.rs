//! The sidecar as a process, on a real tmpfs, against a broker's side that the test plays.
//!
//! Needs root, to mount; without, it fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy leaves only functions marked as tests alone, not their helpers"
)]

mod budgets;
mod crashes;
mod expiry;
mod growth;
mod hostile;
mod notify;
mod outputs;
mod publishing;
mod sandbox;
mod secrecy;
mod server;
mod sessions;
mod status;
mod told;
