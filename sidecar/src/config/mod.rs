//! `sidecar.toml`: in which form credentials are published, what becomes of them at their end, and how
//! the application hears of a change. Without one, everything is published as it is.

mod application;
mod notify;
mod output;
mod span;

pub use application::{Application, Process};
pub use notify::{Action, Notify};
pub use output::{OnExpiry, Output, Template};
pub use span::Span;

use crate::publish::Access;
use crate::publish::item::{End, Item};
use crate::render::template::{MAX_TEMPLATE, Templates};
use mayfly_wire::CredentialName;
use nix::libc::O_PATH;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::geteuid;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is looked for when none is named.
pub const DEFAULT_PATH: &str = "/etc/mayfly/sidecar.toml";
const MAX_FILE: usize = 256 * 1024;
const MAX_OUTPUTS: usize = 256;
const MAX_NOTIFY: usize = 32;

/// Why a configuration was refused. Names the file and the key.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}", path = .path.display())]
pub struct BadConfig {
    path: PathBuf,
    why: String,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    only_outputs: bool,
    on_expiry: OnExpiry,
    max_stale: Option<Span>,
    output: Vec<output::Written>,
    application: Option<Application>,
    notify: Vec<notify::Written>,
    acknowledge: Option<Acknowledge>,
}

/// When the broker is told that the application uses what was published.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acknowledge {
    /// A file in which the application writes the name of the generation that it uses, which is
    /// what `..data` leads to. Without it, the success of all notifications counts.
    pub file: Option<PathBuf>,
    /// After this long it is a fault that there is no word.
    #[serde(default = "Acknowledge::timeout")]
    pub timeout: Span,
}

impl Acknowledge {
    fn timeout() -> Span {
        Span(Duration::from_secs(20))
    }
}

/// The configuration, checked.
#[derive(Default)]
pub struct Config {
    /// What is published in another form.
    pub outputs: Vec<Output>,
    /// Whether nothing else is published.
    pub only_outputs: bool,
    /// What becomes of the rest at its end.
    pub rest: OnExpiry,
    /// For how long the rest is kept stale.
    pub max_stale: Option<Duration>,
    /// The templates of the outputs, by their paths.
    pub templates: Templates,
    /// Which process is the application.
    pub application: Option<Application>,
    /// How it hears of a change.
    pub notify: Vec<Notify>,
    /// How it says that it uses what it got.
    pub acknowledge: Option<Acknowledge>,
}

impl Config {
    /// Reads a file. `access` is what files have that say nothing else.
    ///
    /// # Errors
    /// [`BadConfig`].
    pub fn read(path: &Path, access: Access) -> Result<Self, BadConfig> {
        let bad = |why: String| BadConfig {
            path: path.to_owned(),
            why,
        };
        let text = read_text(path, MAX_FILE).map_err(|error| bad(error.to_string()))?;
        let written: Written = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        Self::check(written, access, folder).map_err(bad)
    }

    fn check(written: Written, access: Access, folder: &Path) -> Result<Self, String> {
        if written.output.len() > MAX_OUTPUTS || written.notify.len() > MAX_NOTIFY {
            return Err(format!(
                "expected at most {MAX_OUTPUTS} outputs and {MAX_NOTIFY} notify tables"
            ));
        }
        stale(written.on_expiry, written.max_stale)?;
        let mut config = Self {
            only_outputs: written.only_outputs,
            rest: written.on_expiry,
            max_stale: written.max_stale.map(|span| span.0),
            application: written.application,
            acknowledge: written.acknowledge,
            ..Self::default()
        };
        for output in written.output {
            let named = match &output.file {
                Some(file) => format!("output {file}"),
                None => "an output".to_owned(),
            };
            let output = output
                .check(access, (config.rest, config.max_stale))
                .map_err(|why| format!("{named}: {why}"))?;
            let mut others = config.outputs.iter();
            if let Some(other) = others.find(|other| other.item.collides(&output.item)) {
                return Err(format!(
                    "output {}: its path collides with that of output {}",
                    output.item, other.item
                ));
            }
            if let Some(template) = &output.template {
                config
                    .add_template(&output.item, template, folder)
                    .map_err(|why| format!("output {}: {why}", output.item))?;
            }
            config.outputs.push(output);
        }
        for (number, notify) in written.notify.into_iter().enumerate() {
            let notify = notify.check();
            let notify = notify.map_err(|why| format!("notify table {}: {why}", number + 1))?;
            let on = config.published_as(&notify.on);
            let on = on.map_err(|why| format!("notify table {}: {why}", number + 1))?;
            config.notify.push(Notify { on, ..notify });
        }
        config.check_application()?;
        Ok(config)
    }

    fn add_template(
        &mut self,
        item: &Item,
        template: &Template,
        folder: &Path,
    ) -> Result<(), String> {
        let source = match template {
            Template::Text(text) => text.clone(),
            Template::File(file) => {
                let path = folder.join(file);
                read_text(&path, MAX_TEMPLATE)
                    .map_err(|error| format!("template_file {}: {error}", path.display()))?
            }
        };
        self.templates.add(item.as_str(), source)
    }

    fn check_application(&self) -> Result<(), String> {
        let stops = self.rest == OnExpiry::StopApplication
            || self.outputs.iter().any(|output| output.stops());
        let signals = self
            .notify
            .iter()
            .any(|notify| notify.action.needs_process());
        if (stops || signals) && self.application.is_none() {
            return Err(
                "`signal`, `restart` and `stop-application` need to know the application: add \
                 [application] with process = \"parent\" under mayfly-shim, \"init\" in a shared PID \
                 namespace, or \"name:PROGRAM\""
                    .to_owned(),
            );
        }
        let with_init = |known: &Application| known.exit_with && known.process == Process::Init;
        if self.application.as_ref().is_some_and(with_init) {
            return Err(
                "application: `exit_with` cannot go with process = \"init\": when process 1 of a PID \
                 namespace ends, the kernel kills every other process of it, the sidecar too"
                    .to_owned(),
            );
        }
        match &self.acknowledge {
            Some(by) if by.file.is_none() && self.notify.is_empty() => Err(
                "acknowledge: expected a `file` that the application writes, or a notify table whose \
                 success counts"
                    .to_owned(),
            ),
            Some(by) if by.file.as_ref().is_some_and(|file| !file.is_absolute()) => {
                Err("acknowledge: expected the absolute path of a file".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Where what is named is published: an output's path, or a credential's outputs, or a credential
    /// that is published as it is.
    fn published_as(&self, named: &[Item]) -> Result<Vec<Item>, String> {
        let mut items = Vec::new();
        for item in named {
            let is_here = |output: &&Output| {
                output.item == *item
                    || output
                        .credentials
                        .iter()
                        .any(|name| Item::from(name) == *item)
            };
            let outputs = self.outputs.iter().filter(is_here);
            let before = items.len();
            items.extend(outputs.map(|output| output.item.clone()));
            if items.len() == before {
                let is_name = item.as_str().parse::<CredentialName>().is_ok();
                if self.only_outputs || !is_name {
                    return Err(format!("nothing is published at {item}"));
                }
                items.push(item.clone());
            }
        }
        Ok(items)
    }

    /// Checks that what is asked for is enough for the outputs.
    ///
    /// # Errors
    /// A sentence.
    pub fn check_want(&self, want: Option<&[CredentialName]>) -> Result<(), String> {
        let Some(want) = want else { return Ok(()) };
        match self.used().into_iter().find(|name| !want.contains(name)) {
            Some(name) => Err(format!(
                "an output is made of {name}, which --want does not name"
            )),
            None => Ok(()),
        }
    }

    /// The credentials that outputs are made of.
    #[must_use]
    pub fn used(&self) -> BTreeSet<&CredentialName> {
        self.outputs
            .iter()
            .flat_map(|output| &output.credentials)
            .collect()
    }

    /// When a credential ends that is published as it is.
    #[must_use]
    pub fn rest_end(&self, expires_at: u64) -> End {
        self.rest.end(expires_at, self.max_stale)
    }

    /// Every mode and owner that files are to have.
    pub fn accesses(&self) -> impl Iterator<Item = Access> {
        self.outputs.iter().map(|output| output.access)
    }
}

fn stale(on_expiry: OnExpiry, max_stale: Option<Span>) -> Result<(), String> {
    match (on_expiry, max_stale) {
        (OnExpiry::Remove | OnExpiry::StopApplication, Some(_)) => {
            Err("`max_stale` goes with on_expiry = \"keep-stale\"".to_owned())
        }
        _ => Ok(()),
    }
}

/// Checks that a program is one that we may run, as the configuration is one that we may read.
///
/// # Errors
/// What is wrong with it.
pub fn expect_program(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // It may be a program that we can run and not read.
    let program = options.read(true).custom_flags(O_PATH).open(path)?;
    expect_ours(&program, "program")
}

/// Nobody who may not give us orders can have written it.
fn expect_ours(file: &File, kind: &str) -> io::Result<()> {
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other(format!("expected a {kind}")));
    }
    let read_only = fstatvfs(file)?.flags().contains(FsFlags::ST_RDONLY);
    match read_only || is_only_ours(&found) {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "expected a {kind} that nobody but root and the sidecar's own user can write, or on a \
             read-only mount",
        ))),
    }
}

/// Reads a text file of bounded size.
fn read_text(path: &Path, most: usize) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    // It names programs to run and who may read secrets.
    expect_ours(&file, "file")?;
    let read = file.take(most as u64 + 1).read_to_string(&mut text)?;
    match read > most {
        true => Err(io::Error::other(format!("expected at most {most} bytes"))),
        false => Ok(text),
    }
}

fn is_only_ours(found: &Metadata) -> bool {
    let owner = found.uid();
    (owner == 0 || owner == geteuid().as_raw()) && found.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests;
