//! `mayfly-sidecar status` and `mayfly-sidecar health`.

use super::{Found, judge, read};
use crate::log::wall_clock;
use crate::publish::dir::Dir;
use crate::publish::tmpfs;
use mayfly_wire::Detail;
use nix::sys::statvfs::fstatvfs;
use serde_json::{Value, json};
use std::path::Path;

/// What a command says, and its exit status.
pub struct Said {
    /// For stdout.
    pub text: String,
    /// 0 if all is well, else 1.
    pub code: u8,
}

impl Said {
    fn bad(text: String) -> Self {
        Self {
            text: text + "\n",
            code: 1,
        }
    }
}

/// Is it well? Says what is not, one fault a line.
#[must_use]
pub fn health(path: &Path, live: bool) -> Said {
    let found = match look(path) {
        Ok((_, found)) => found,
        Err(why) => return Said::bad(why),
    };
    let faults = judge(&found, wall_clock(), live);
    match faults.as_slice() {
        [] => Said {
            text: "ok\n".to_owned(),
            code: 0,
        },
        faults => {
            let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
            Said::bad(lines.join("\n"))
        }
    }
}

/// How does it stand?
#[must_use]
pub fn status(path: &Path, as_json: bool) -> Said {
    let (dir, found) = match look(path) {
        Ok(found) => found,
        Err(why) => return Said::bad(why),
    };
    let now = wall_clock();
    let faults: Vec<_> = judge(&found, now, false)
        .iter()
        .map(ToString::to_string)
        .collect();
    let place = place(&dir);
    let text = match as_json {
        true => {
            let whole = json!({
                "running": found.running,
                "alive_at_ms": found.alive_at_ms,
                "status": found.status,
                "directory": place,
                "faults": faults,
            });
            whole.to_string() + "\n"
        }
        false => in_words(&found, &place, &faults, now),
    };
    Said {
        text,
        code: u8::from(!faults.is_empty()),
    }
}

fn look(path: &Path) -> Result<(Dir, Found), String> {
    let dir = Dir::open(path).map_err(|error| error.to_string())?;
    let found = read(&dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!(
                "{}: no sidecar publishes here (there is no ..status)",
                path.display()
            )
        }
        _ => {
            let why = Detail::from(error.to_string());
            format!("{}/..status cannot be read: {why}", path.display())
        }
    })?;
    Ok((dir, found))
}

/// What the directory is, and how full.
fn place(dir: &Dir) -> Value {
    let facts = tmpfs::gather(dir).ok();
    let space = fstatvfs(dir).ok();
    json!({
        "filesystem": facts.as_ref().map(|facts| facts.kind.clone()),
        "mount_options": facts.as_ref().map(|facts| facts.mount.join(",")),
        "filesystem_options": facts.as_ref().map(|facts| facts.filesystem.join(",")),
        "swap_in_use": facts.as_ref().and_then(|facts| facts.swap),
        "bytes": space.as_ref().map(|space| space.blocks().saturating_mul(space.fragment_size())),
        "bytes_free": space.as_ref().map(|space| space.blocks_available().saturating_mul(space.fragment_size())),
    })
}

fn in_words(found: &Found, place: &Value, faults: &[String], now: u64) -> String {
    let status = &found.status;
    let mut lines = Vec::new();
    let session = match (found.running, status.connected) {
        (false, _) => "not running",
        (true, true) => "running, connected",
        (true, false) => "running, without a session",
    };
    lines.push(format!("sidecar     {session}"));
    let generation = status.generation.as_deref().unwrap_or("none");
    let age = status
        .changed_at_ms
        .map(|at| format!(", changed {} ago", span(now.saturating_sub(at))));
    lines.push(format!(
        "generation  {generation}{}",
        age.unwrap_or_default()
    ));
    if let Some(at) = status.next_renewal_ms {
        let left = at.checked_sub(now).map(|left| format!("in {}", span(left)));
        let left = left.unwrap_or_else(|| "due".to_owned());
        lines.push(format!("renewal     {left}"));
    }
    for item in &status.items {
        let end = match (item.stale, item.expires_at_ms.checked_sub(now)) {
            (true, _) => "stale".to_owned(),
            (false, Some(left)) => format!("expires in {}", span(left)),
            (false, None) => "overdue".to_owned(),
        };
        lines.push(format!("item        {}  {end}", item.path));
    }
    for told in &status.notify {
        let error = told
            .error
            .as_ref()
            .map(|error| format!(": {error}"))
            .unwrap_or_default();
        lines.push(format!("notify      {}  {}{error}", told.what, told.state));
    }
    if status.acknowledging {
        lines.push("acknowledge waiting for the application".to_owned());
    }
    let text = |key: &str| place.get(key).and_then(Value::as_str).unwrap_or("unknown");
    let number = |key: &str| place.get(key).and_then(Value::as_u64).unwrap_or(0);
    lines.push(format!(
        "directory   {} ({}; {}), {} of {} KiB free",
        text("filesystem"),
        text("mount_options"),
        text("filesystem_options"),
        number("bytes_free") / 1024,
        number("bytes") / 1024,
    ));
    if let Some(why) = &status.not_followed {
        lines.push(format!("exit_with   cannot be kept: {why}"));
    }
    if let Some(error) = &status.error {
        lines.push(format!("last error  {error}"));
    }
    for fault in faults {
        lines.push(format!("fault       {fault}"));
    }
    lines.join("\n") + "\n"
}

fn span(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7_199 => format!("{}m", seconds / 60),
        seconds => format!("{}h", seconds / 3600),
    }
}
