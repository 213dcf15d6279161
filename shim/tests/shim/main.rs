//! The shim as a process: real children, real signals, a real kernel. Needs root.

mod harden;
mod life;
mod pid_one;
mod sidecar;
mod support;
