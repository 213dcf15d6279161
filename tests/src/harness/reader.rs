//! An application that reads its secrets as docs/sidecar.md says, and is strict about what it finds.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

/// How long a replaced set stays readable, less what it takes to read two files. Who was kept from
/// running for longer than this may find zeros, and tries again.
pub(super) const READABLE: Duration = Duration::from_millis(900);

/// How long so many sets may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Reads the fields `left` and `right` of `pair` in `dir`, through one descriptor of `..data`, again and
/// again for that long, and until it has seen so many sets. They were made with the same value each time,
/// so two values are a torn set. Gives how many sets it saw.
///
/// # Errors
/// When there is no complete set, at the first look or at any other, or one is torn, or there are too few.
pub fn read_sets(dir: &Path, time: Duration, sets: usize) -> Result<usize> {
    let begun = Instant::now();
    let mut seen = BTreeSet::new();
    while seen.len() < sets || begun.elapsed() < time {
        ensure!(begun.elapsed() < time + LIMIT, "only {} sets", seen.len());
        let opened = Instant::now();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let set = open(&dir.join("..data"), flags, Mode::empty()).context("opening the set")?;
        let read = |field: &str| -> Result<String> {
            let path = format!("pair/{field}");
            let file = openat(&set, path.as_str(), OFlag::O_RDONLY, Mode::empty());
            let mut text = String::new();
            File::from(file.with_context(|| path.clone())?).read_to_string(&mut text)?;
            Ok(text)
        };
        let both = read("left").and_then(|left| Ok((left, read("right")?)));
        if opened.elapsed() < READABLE {
            let (left, right) = both?;
            ensure!(
                left == right && left.len() == 24,
                "torn: {left:?} and {right:?}"
            );
            seen.insert(left);
        }
    }
    Ok(seen.len())
}
