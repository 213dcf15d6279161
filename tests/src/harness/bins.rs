//! Where the binaries under test are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Binaries that are built with the profile `small`, because they stand in every container.
const SMALL: [&str; 2] = ["mayfly-sidecar", "mayfly-shim"];

/// The path of a binary of this workspace, as `make build` leaves it.
///
/// # Errors
/// When it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let profile = if SMALL.contains(&name) {
        "small"
    } else {
        "release"
    };
    let path = target_dir()?.join(profile).join(name);
    if !path.is_file() {
        bail!(
            "expected the binary {}: run `make build` first",
            path.display()
        );
    }
    Ok(path)
}

/// The path of an example of the kernel crate, which stands for what only that crate may say.
///
/// # Errors
/// When it has not been built.
pub fn example(name: &str) -> Result<PathBuf> {
    let path = target_dir()?.join("release/examples").join(name);
    if !path.is_file() {
        bail!(
            "expected the example {}: run `make build` first",
            path.display()
        );
    }
    Ok(path)
}

/// A file for the log of one thing that runs; an older one of the same name is replaced.
///
/// # Errors
/// When its directory cannot be made.
pub fn log_path(name: &str) -> Result<PathBuf> {
    let dir = target_dir()?.join("e2e-logs");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir.join(format!("{name}.log")))
}

/// `target/<host>`. A test binary is in `target/<host>/<profile>/deps`, a bench one level up.
fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding the test binary itself")?;
    let mut dir = exe.parent();
    if dir
        .and_then(Path::file_name)
        .is_some_and(|name| name == "deps")
    {
        dir = dir.and_then(Path::parent);
    }
    let target = dir.and_then(Path::parent);
    Ok(target
        .with_context(|| format!("{} is not in a target directory", exe.display()))?
        .into())
}
