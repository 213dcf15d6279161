//! Rules of the source that no compiler holds: docs/design.md section 3, and the size of files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use mayfly_tests::harness::output;
use serde_json::Value;

/// Which crates of ours each may use. One that is not here is not known to the design.
const ARROWS: [(&str, &[&str]); 8] = [
    ("mayfly-wire", &[]),
    ("mayfly-kernel", &[]),
    ("mayfly-node", &["mayfly-wire", "mayfly-kernel"]),
    (
        "mayfly-broker",
        &["mayfly-wire", "mayfly-kernel", "mayfly-node"],
    ),
    ("mayfly-sidecar", &["mayfly-wire", "mayfly-kernel"]),
    ("mayfly-shim", &["mayfly-kernel"]),
    ("mayfly", &["mayfly-wire", "mayfly-kernel"]),
    (
        "mayfly-tests",
        &["mayfly-wire", "mayfly-kernel", "mayfly-node"],
    ),
];

/// The most lines that a file may have.
const LINES: usize = 600;

fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace has no root")
}

fn packages() -> Result<Vec<Value>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version=1", "--no-deps", "--offline"]);
    let metadata: Value = serde_json::from_str(&output(cargo.current_dir(root()?))?)?;
    Ok(metadata["packages"]
        .as_array()
        .context("no packages")?
        .clone())
}

fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![root()?.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    dirs.push(entry.path());
                }
            } else if name.ends_with(".rs") {
                found.push(entry.path());
            }
        }
    }
    assert!(
        found.len() > 20,
        "the sources are not where they were: {found:?}"
    );
    Ok(found)
}

#[test]
fn crates_use_each_other_only_along_the_arrows() -> Result<()> {
    let arrows = BTreeMap::from(ARROWS);
    let packages = packages()?;
    assert_eq!(
        packages.len(),
        arrows.len(),
        "a crate came or went: say so in the design and here"
    );
    for package in &packages {
        let name = package["name"]
            .as_str()
            .context("a package without a name")?;
        let allowed = arrows
            .get(name)
            .with_context(|| format!("{name} is not in the design"))?;
        // Of every kind: what a build script or a test uses is an arrow too.
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            if used.starts_with("mayfly") || dependency["path"].is_string() {
                assert!(allowed.contains(&used), "{name} must not use {used}");
            }
        }
    }
    Ok(())
}

#[test]
fn only_the_kernel_crate_may_be_unsafe() -> Result<()> {
    let manifest = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    };
    let lints = manifest(&root()?.join("Cargo.toml"))?;
    assert!(
        lints.contains("unsafe_code = \"forbid\""),
        "the workspace's lints allow it"
    );
    for package in packages()? {
        if package["name"] != "mayfly-kernel" {
            let path = package["manifest_path"].as_str().context("no path")?;
            let text = manifest(Path::new(path))?;
            assert!(
                text.contains("[lints]\nworkspace = true"),
                "{path} has its own lints"
            );
        }
    }
    let word = concat!("un", "safe");
    for path in sources()?
        .iter()
        .filter(|path| !path.starts_with(root().unwrap().join("kernel")))
    {
        for (number, line) in std::fs::read_to_string(path)?.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            assert!(
                words.into_iter().all(|found| found != word),
                "{}:{}: only kernel/ may say so: {line}",
                path.display(),
                number + 1
            );
        }
    }
    Ok(())
}

/// What passes through a program must not stay in its heap: docs/memory.md.
#[test]
fn every_program_that_touches_secrets_zeroes_its_heap() -> Result<()> {
    for program in ["broker", "node", "sidecar", "shim", "cli"] {
        let main = root()?.join(program).join("src/main.rs");
        let text = std::fs::read_to_string(&main)?;
        let has = text
            .split("#[global_allocator]\n")
            .nth(1)
            .and_then(|rest| rest.lines().next());
        assert!(
            has.is_some_and(|line| line.ends_with("Zeroing::new();")),
            "{}: {has:?}",
            main.display()
        );
    }
    Ok(())
}

#[test]
fn no_file_is_too_long_to_read() -> Result<()> {
    for path in sources()? {
        let lines = std::fs::read_to_string(&path)?.lines().count();
        assert!(
            lines <= LINES,
            "{} has {lines} lines: split it at a seam",
            path.display()
        );
    }
    Ok(())
}
