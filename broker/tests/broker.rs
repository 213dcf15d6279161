//! The broker from the door inward, driven with made evidence: everything but its sockets.

#[path = "broker/harness.rs"]
mod harness;
#[path = "broker/issue.rs"]
mod issue;
#[path = "broker/lives.rs"]
mod lives;
#[path = "broker/operators.rs"]
mod operators;
