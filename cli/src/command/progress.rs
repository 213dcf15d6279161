//! Acts that take long: how far they are, as the broker tells it.

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Out, clean};
use mayfly_wire::admin::Progress;
use serde::Serialize;
use std::io::{self, IsTerminal as _, Write as _};

/// How an act is spoken of.
pub struct Said {
    /// What was done: `revoked`.
    pub done: &'static str,
    /// What becomes of what could not be done.
    pub otherwise: &'static str,
}

/// Posts a request and follows its progress: a line that changes on a terminal, one JSON line for each
/// step for programs, and at last what was done.
pub async fn follow(
    client: &Client,
    out: Out,
    path: &str,
    body: &impl Serialize,
    said: Said,
) -> Result<(), Failure> {
    let Said { done, otherwise } = said;
    let live = io::stderr().is_terminal() && !out.is_json();
    let mut last = Progress::default();
    let mut wrong = None;
    client
        .post_lines(path, body, |line| {
            match serde_json::from_str::<Progress>(line) {
                Ok(progress) => last = progress,
                Err(error) => wrong = Some(error.to_string()),
            }
            if out.is_json() {
                return out.line(line);
            }
            if live {
                // Nobody to tell if that fails.
                let _ = write!(
                    io::stderr(),
                    "\r{done} {} of {}{}",
                    last.done,
                    last.total,
                    failed(&last)
                );
            }
            Ok(())
        })
        .await?;
    if live {
        let _ = writeln!(io::stderr());
    }
    if let Some(error) = wrong {
        return Err(Failure::Failed(format!(
            "the broker's answer to {path} is not understood ({error}): are `mayfly` and \
             `mayfly-broker` of one version?"
        )));
    }
    if !last.end {
        return Err(Failure::Unreachable(format!(
            "the broker broke off after {} of {}; it goes on with what it has begun: see \
             `mayfly leases`",
            last.done, last.total
        )));
    }
    if !out.is_json() {
        out.line(&format!(
            "{done} {} of {}{}",
            last.done,
            last.total,
            failed(&last)
        ))?;
    }
    if last.failed == 0 {
        return Ok(());
    }
    let problems: Vec<_> = last.problems.iter().map(|problem| clean(problem)).collect();
    Err(Failure::Failed(format!(
        "{} could not be {done} {otherwise}: {}",
        last.failed,
        problems.join("; ")
    )))
}

fn failed(progress: &Progress) -> String {
    match progress.failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    }
}
