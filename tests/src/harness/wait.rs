//! Waiting with a limit, and other small things that every suite needs.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// Asks again until `probe` has an answer. An error of the probe counts as "not yet", and the last
/// one is part of the failure.
///
/// # Errors
/// When there is no answer within `limit`.
pub fn wait_until<T>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= limit {
            let waited = anyhow!("waited {limit:?} for: {what}");
            return Err(match last {
                Some(error) => error.context(waited),
                None => waited,
            });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a command to its end and gives what it printed, without the final newline.
///
/// # Errors
/// When it cannot be started or fails; its error output is in the message.
pub fn output(command: &mut Command) -> Result<String> {
    output_with_input(command, b"")
}

/// The same, with something on its standard input.
///
/// # Errors
/// As for [`output`].
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading all of it is judged by its status.
        let _ = stdin.write_all(input);
    }
    let done = child
        .wait_with_output()
        .with_context(|| format!("waiting for {command:?}"))?;
    if !done.status.success() {
        bail!(
            "{command:?} ended with {}: {}{}",
            done.status,
            String::from_utf8_lossy(&done.stderr),
            String::from_utf8_lossy(&done.stdout),
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_string())
}

/// A TCP port of loopback for a server that is started soon.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    super::servers::free_port().context("looking for a free port")
}

/// Letters and digits nobody has used before, 5 bits of randomness each.
///
/// # Errors
/// When the kernel gives no randomness.
pub fn random_text(length: usize) -> Result<String> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("no randomness: {error}"))?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(byte % 32)]))
        .collect())
}
