//! Ending when the application does, so that a job with a companion completes.

use crate::config::Config;
use crate::config::Process;
use crate::notify::target;
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
}

impl Follow {
    /// As the configuration says.
    pub fn new(config: &Config) -> Self {
        let known = config.application.as_ref().filter(|known| known.exit_with);
        Self {
            process: known.map(|known| known.process.clone()),
            held: None,
        }
    }

    /// Returns when the application was there and is gone. Loses nothing if it is dropped before.
    pub async fn ended(&mut self) {
        let Some(process) = &self.process else {
            return std::future::pending().await;
        };
        loop {
            let Some(held) = &self.held else {
                let found = target::find(Some(process), Path::new("/proc")).ok();
                self.held = found.and_then(|found| watch(found).ok());
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
                Ok(false) => return,
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
