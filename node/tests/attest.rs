//! Attestation on a real kernel: containers of bare namespaces and cgroups, and what they try. Needs
//! root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    reason = "a test's helpers fail the test"
)]

mod attest {
    pub mod bench;
    pub mod engine;
    pub mod forbidden;
    pub mod found;
    pub mod harness;
    pub mod many;
    pub mod senders;
    pub mod shared;
    pub mod stand_in;
    pub mod watched;
}
