//! The signals that end us, or tell of a child, taken one at a time.

use crate::failure::Failure;
use nix::sys::signal::{SigSet, Signal};

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived(pub Signal);

impl Arrived {
    /// Whether it asks us to end.
    pub fn ends_us(self) -> bool {
        self.0 != Signal::SIGCHLD
    }
}

/// Blocks them, so that none is lost between two waits. Children must unblock them again.
pub fn block() -> Result<SigSet, Failure> {
    let set = SigSet::from_iter([
        Signal::SIGCHLD,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGTERM,
    ]);
    // Under an inherited "ignore" of SIGCHLD nobody would learn how a child ended.
    mayfly_kernel::process::watch_children().map_err(Failure::doing("cannot watch children"))?;
    set.thread_block()?;
    Ok(set)
}

/// Waits for the next one.
pub fn wait(set: &SigSet) -> Result<Arrived, Failure> {
    Ok(Arrived(set.wait()?))
}
