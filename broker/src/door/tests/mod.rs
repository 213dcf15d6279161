//! The life of leases over a target that fails and hangs when a test says so.

mod clocks;
mod faults;
mod fuse;
mod lives;
mod operators;
mod target;
mod targets;
mod world;
