//! Where secrets are searched for, and what they are.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, Needle, random_text, scan_bytes, scan_memory};

/// The secrets that must not be found.
pub struct Search {
    secrets: Vec<Needle>,
}

impl Search {
    /// Those of some values, in every form.
    pub fn of(values: &[(String, Vec<u8>)]) -> Self {
        let secrets = values
            .iter()
            .flat_map(|(name, value)| Needle::forms(name, value))
            .collect();
        Self { secrets }
    }

    /// And one more.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        self.secrets.extend(Needle::forms(name, value));
    }

    /// What is searched for.
    pub fn secrets(&self) -> &[Needle] {
        &self.secrets
    }

    /// Searches a process of ours, which must hold `control`, or the search means nothing, and no secret.
    pub fn process(&self, what: &str, pid: i32, control: &str) -> Result<()> {
        let mut needles = self.secrets.clone();
        needles.push(Needle::new("control", control.as_bytes()));
        let scan = scan_memory(pid, &needles)?;
        let (controls, leaks): (Vec<_>, Vec<_>) =
            scan.hits.iter().partition(|hit| hit.needle == "control");
        ensure!(
            controls.iter().any(|hit| hit.length == control.len()),
            "{what}: {control:?} was not found, so the search finds nothing"
        );
        ensure!(leaks.is_empty(), "{what} holds secrets: {leaks:#?}");
        for region in &scan.unreadable {
            ensure!(
                ["[vvar", "[vsyscall]", "secretmem"]
                    .iter()
                    .any(|kept| region.contains(kept)),
                "{what}: unread: {region}"
            );
        }
        for file in ["cmdline", "environ"] {
            self.file(Path::new(&format!("/proc/{pid}/{file}")))?;
        }
        Ok(())
    }

    /// Searches a file.
    pub fn file(&self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let hits = scan_bytes(&bytes, &path.display().to_string(), &self.secrets)?;
        ensure!(
            hits.is_empty(),
            "{} holds secrets: {hits:#?}",
            path.display()
        );
        Ok(())
    }

    /// Searches the broker's files: database, its log, audit, key, and what it logged.
    pub fn state(&self, broker: &Broker) -> Result<()> {
        let files: Vec<PathBuf> = std::fs::read_dir(broker.state_dir())?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        for name in ["store.db", "audit.jsonl"] {
            ensure!(
                files.iter().any(|path| path
                    .file_name()
                    .is_some_and(|f| f.as_bytes() == name.as_bytes())),
                "no {name}: {files:?}"
            );
        }
        for path in files.iter().filter(|path| path.is_file()) {
            self.file(path)?;
        }
        self.log("the broker", &broker.log())
    }

    /// Searches what was logged.
    pub fn log(&self, what: &str, log: &str) -> Result<()> {
        let hits = scan_bytes(log.as_bytes(), what, &self.secrets)?;
        ensure!(hits.is_empty(), "{what} logged secrets: {hits:#?}\n{log}");
        Ok(())
    }
}

/// Values of both kinds: text, and bytes that are no text.
pub fn values(count: usize) -> Result<Vec<(String, Vec<u8>)>> {
    (0..count)
        .map(|number| {
            let value = if number % 2 == 0 {
                random_text(40)?.into_bytes()
            } else {
                random_bytes()?
            };
            Ok((format!("credential-number-{number}"), value))
        })
        .collect()
}

fn random_bytes() -> Result<Vec<u8>> {
    let mut bytes = vec![0; 48];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(bytes)
}
