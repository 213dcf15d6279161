//! The Linux system calls that std, nix and tokio lack, behind safe functions.
//!
//! This is the only crate that may say `unsafe`; every block says why it holds and why no safe way
//! serves.

pub mod alloc;
pub mod caps;
pub mod cgroup;
pub mod container;
pub mod dirwatch;
pub mod entry;
pub mod expiry;
pub mod keyring;
pub mod landlock;
pub mod memory;
pub mod mountinfo;
pub mod ns;
pub mod pidfd;
pub mod priority;
pub mod probe;
pub mod procdir;
pub mod process;
pub mod seccomp;
pub mod socket;

#[cfg(test)]
mod test_child;

/// What the programs have, so that the tests of [`memory`] run on it.
#[cfg(test)]
#[global_allocator]
static HEAP: alloc::Zeroing = alloc::Zeroing::new();
