//! Ending when the application does, so that a job with a companion completes.

use crate::config::Config;
use crate::config::Process;
use crate::notify::target::{self, NotFound};
use mayfly_kernel::pidfd::Pidfd;
use std::path::Path;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::time::sleep;

/// How often it is looked for while it has not started.
const LOOK: Duration = Duration::from_millis(500);

/// Watches the application, if that is wanted.
pub struct Follow {
    process: Option<Process>,
    held: Option<AsyncFd<Pidfd>>,
    /// Why it is not watched, other than that it has not started.
    trouble: Option<String>,
}

/// What came of watching.
pub enum Seen {
    /// The application was there and is gone.
    Ended,
    /// It is watched now, or is just not there; before it could not be.
    Found,
    /// It cannot be watched, and why; said once.
    Lost(String),
}

impl Follow {
    /// As the configuration says.
    pub fn new(config: &Config) -> Self {
        let known = config.application.as_ref().filter(|known| known.exit_with);
        Self {
            process: known.map(|known| known.process.clone()),
            held: None,
            trouble: None,
        }
    }

    /// Why the application is not watched, if it should be and cannot be.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Returns when something is to be said. Loses nothing if it is dropped before.
    pub async fn next(&mut self) -> Seen {
        let Some(process) = &self.process else {
            return std::future::pending().await;
        };
        loop {
            let Some(held) = &self.held else {
                let trouble = match target::find(Some(process), Path::new("/proc")) {
                    Ok(found) => {
                        let watched = watch(found).map(|watched| self.held = Some(watched));
                        watched.err().map(|error| error.to_string())
                    }
                    Err(NotFound::Gone) => None,
                    Err(other) => Some(other.to_string()),
                };
                if trouble != self.trouble {
                    self.trouble.clone_from(&trouble);
                    return trouble.map_or(Seen::Found, Seen::Lost);
                }
                if self.held.is_none() {
                    sleep(LOOK).await;
                }
                continue;
            };
            let Ok(mut ready) = held.readable().await else {
                self.held = None;
                continue;
            };
            match held.get_ref().alive() {
                Ok(false) => return Seen::Ended,
                _ => ready.clear_ready_matching(Ready::READABLE),
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "what replaces it needs a promise that the descriptor never changes; a Pidfd keeps it"
)]
fn watch(process: Pidfd) -> std::io::Result<AsyncFd<Pidfd>> {
    AsyncFd::with_interest(process, Interest::READABLE)
}
