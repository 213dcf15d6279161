//! End-to-end suites over real containers and real servers.
//!
//! [`harness`] is what they stand on; the suites themselves are the modules of `tests/e2e.rs`, and
//! [`bench`] measures.

pub mod bench;
pub mod harness;
