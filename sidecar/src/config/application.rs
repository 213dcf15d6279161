//! `[application]`: which process the application is.

use nix::unistd::getppid;
use serde::Deserialize;

/// Where the application is found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// Which process.
    pub process: Process,
    /// Whether the sidecar ends when it does.
    #[serde(default)]
    pub exit_with: bool,
}

/// Which process; looked for each time, held by a pidfd, and checked through it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Process {
    /// The sidecar's own parent when it started: the shim, which passes signals on. Whoever adopts us
    /// after its death is another.
    Parent(i32),
    /// Process 1 of the PID namespace, which the sidecar must have joined.
    Init,
    /// The one process tree in the PID namespace whose program has this name.
    Named(String),
}

impl TryFrom<String> for Process {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "parent" => Ok(Self::Parent(getppid().as_raw())),
            "init" => Ok(Self::Init),
            // The kernel keeps 15 bytes of a name (proc_pid_comm(5)).
            other => match other.strip_prefix("name:") {
                Some(name) if (1..=15).contains(&name.len()) && !name.contains('/') => {
                    Ok(Self::Named(name.to_owned()))
                }
                _ => Err(format!(
                    "expected \"parent\", \"init\" or \"name:PROGRAM\" with at most 15 bytes of the \
                     program's name, found {text:?}"
                )),
            },
        }
    }
}
