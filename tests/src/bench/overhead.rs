//! What the shim adds to the exec of a program whose secrets are ready: a trivial static program,
//! started and waited for, through the shim and without, in turn.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::report::Better;
use super::{Options, Report};
use crate::harness::{TempDir, binary, output};

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let samples = sample(options.samples(300, 50))?;
    report.add("shim_overhead", samples, "ms", Better::Less)
}

/// So many samples, in milliseconds: what one start took through the shim more than the one before it.
///
/// # Errors
/// When the shim is not built, or the program fails.
pub fn sample(count: usize) -> Result<Vec<f64>> {
    let dir = TempDir::new()?;
    std::fs::create_dir(dir.join("..gen-1"))?;
    std::fs::write(dir.join("..gen-1/bench"), "a value")?;
    symlink("..gen-1", dir.join("..data"))?;
    let (shim, busybox) = (binary("mayfly-shim")?, busybox()?);
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let alone = time(Command::new(&busybox).arg("true"))?;
        let mut through = Command::new(&shim);
        through.args(["run", "--wait", "bench", "--dir"]);
        through.arg(dir.path()).arg("--").arg(&busybox).arg("true");
        samples.push(time(&mut through)? - alone);
    }
    Ok(samples)
}

/// From before it is spawned until it has ended, in milliseconds.
fn time(command: &mut Command) -> Result<f64> {
    command.stdin(Stdio::null());
    let begun = Instant::now();
    let status = command.status().context("starting a program")?;
    let took = begun.elapsed();
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(took.as_secs_f64() * 1000.0)
}

/// The static busybox that `tests/setup` installs.
pub(super) fn busybox() -> Result<String> {
    let found = output(Command::new("sh").args(["-c", "command -v busybox"]))?;
    ensure!(
        Path::new(&found).is_absolute(),
        "no busybox: run tests/setup"
    );
    Ok(found)
}

/// The middle one.
///
/// # Errors
/// When there is none.
pub fn median(mut samples: Vec<f64>) -> Result<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().context("no sample")
}
