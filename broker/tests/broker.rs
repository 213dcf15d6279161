//! The broker from the door inward, driven with made evidence: everything but its sockets.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, and prints what it measured"
)]

#[path = "broker/connections.rs"]
mod connections;
#[path = "broker/harness.rs"]
mod harness;
#[path = "broker/hostile.rs"]
mod hostile;
#[path = "broker/issue.rs"]
mod issue;
#[path = "broker/issuing.rs"]
mod issuing;
#[path = "broker/lives.rs"]
mod lives;
#[path = "broker/operators.rs"]
mod operators;
#[path = "broker/requests.rs"]
mod requests;
#[path = "broker/revocations.rs"]
mod revocations;
#[path = "broker/ssh.rs"]
mod ssh;
#[path = "broker/x509.rs"]
mod x509;
