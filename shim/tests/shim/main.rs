//! The shim as a process: real children, real signals, a real kernel. Needs root.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test may fail so")]

mod alone;
mod asks;
mod env;
mod harden;
mod landlock;
mod life;
mod pid_one;
mod rotate;
mod sidecar;
mod support;
