//! Telling the broker that nothing can be published, which can be the mark of an attack. It is never
//! waited for longer than a moment: files matter more than a word about them.

use super::Runner;
use crate::log::{Level, Log};
use crate::options::Options;
use crate::session;
use mayfly_wire::{PublishFailure, PublishFault};
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// How long a report may take.
const LIMIT: Duration = Duration::from_secs(5);

impl Runner<'_> {
    /// Reports that the bundle of this generation is not published, while the session goes on: a
    /// withdrawal must not wait for it.
    pub(super) fn report(&self, generation: u64, code: PublishFault, why: &str) {
        let (socket, log) = (self.options.socket.clone(), self.log);
        let failure = PublishFailure {
            generation,
            code,
            detail: why.into(),
        };
        tokio::spawn(async move { send(&socket, log, &failure).await });
    }
}

/// Reports that the directory will not do, from a process that is about to end.
pub fn before_any_session(options: &Options, log: Log, code: PublishFault, why: &str) {
    let failure = PublishFailure {
        generation: 0,
        code,
        detail: why.into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(send(&options.socket, log, &failure)),
        Err(error) => unheard(log, error.to_string()),
    }
}

async fn send(socket: &Path, log: Log, failure: &PublishFailure) {
    match timeout(LIMIT, session::report(socket, failure)).await {
        Ok(Ok(())) => log.event(Level::Info, "reported to the broker", &[]),
        Ok(Err(error)) => unheard(log, error.to_string()),
        Err(_) => unheard(log, "no answer in time".to_owned()),
    }
}

fn unheard(log: Log, why: String) {
    log.event(
        Level::Warn,
        "not reported to the broker",
        &[("why", why.into())],
    );
}
