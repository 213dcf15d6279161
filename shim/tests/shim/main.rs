//! The shim as a process: real children, real signals, a real kernel. Needs root.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test may fail so")]

mod harden;
mod life;
mod pid_one;
mod sidecar;
mod support;
