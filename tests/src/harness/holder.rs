//! What runs in a [`Small`](super::Small) container: a sidecar without patience and without files of
//! secrets, that tells a test what it holds.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mayfly_wire::session::{ClientMessage, ServerMessage};

use super::session::Session;

/// How long a broker may take for an answer.
const LIMIT: Duration = Duration::from_secs(30);
/// How long to wait before the next attempt.
const PAUSE: Duration = Duration::from_millis(10);

/// Moves this process into cgroups, and becomes a command: `DIR… -- COMMAND…`.
///
/// # Errors
/// When it cannot.
pub fn enter(args: &[&str]) -> Result<()> {
    let split = args.iter().position(|arg| *arg == "--");
    let (dirs, rest) = args.split_at(split.context("expected -- and a command")?);
    for dir in dirs {
        let procs = Path::new(dir).join("cgroup.procs");
        std::fs::write(&procs, "0").with_context(|| format!("{}", procs.display()))?;
    }
    let [_, program, rest @ ..] = rest else {
        bail!("expected a command after --")
    };
    Err(Command::new(program).args(rest).exec().into())
}

/// Holds whatever it is given, acknowledges at once, and comes again at once when its session ends.
/// What it holds now is in `file`: `held NAME USER PASSWORD` of accounts, `held NAME` of anything
/// else, `missing NAME CODE`. Ends with its standard input.
///
/// # Errors
/// When it cannot begin.
pub fn hold_leases(socket: &Path, file: &Path) -> Result<()> {
    begin()?;
    loop {
        // A broker that is down, or goes down, is why it is here.
        let _ = one_session(socket, file);
        std::thread::sleep(PAUSE);
    }
}

/// Asks for everything so many times, each in a session of its own, and then says in `file` how often it
/// was given something.
///
/// # Errors
/// When it cannot begin, or the file cannot be written.
pub fn ask_often(socket: &Path, count: usize, file: &Path) -> Result<()> {
    begin()?;
    let mut given = 0;
    for _ in 0..count {
        let bundle =
            Session::open(socket, &[], LIMIT).and_then(|mut session| session.bundle(LIMIT));
        match bundle {
            Ok(values) if !values.is_empty() => given += 1,
            _ => std::thread::sleep(PAUSE),
        }
    }
    let next = file.with_extension("next");
    std::fs::write(&next, given.to_string())?;
    std::fs::rename(&next, file)?;
    loop {
        std::thread::park();
    }
}

fn begin() -> Result<()> {
    // The baseline forbids containers without a seccomp filter; the shim would bring this one.
    mayfly_kernel::seccomp::refuse_keyrings().context("loading the shim's seccomp filter")?;
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    Ok(())
}

fn one_session(socket: &Path, file: &Path) -> Result<()> {
    let mut session = Session::open(socket, &[], LIMIT)?;
    while let Some(message) = session.next(Duration::from_secs(3600))? {
        let ServerMessage::Bundle(bundle) = message else {
            continue;
        };
        let mut held: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for value in session.open_bundle(&bundle)? {
            let text = String::from_utf8_lossy(&value.bytes).into_owned();
            let fields = held.entry(value.name.to_string()).or_default();
            fields.insert(value.field.to_string(), text);
        }
        let mut lines = String::new();
        for (name, fields) in held {
            let parts = ["username", "password"].map(|field| fields.get(field));
            let parts: Vec<_> = parts.into_iter().flatten().map(String::as_str).collect();
            lines.push_str(&format!("held {name} {}\n", parts.join(" ")));
        }
        for missing in &bundle.missing {
            let code = serde_json::to_string(&missing.refusal.code)?;
            let code = code.trim_matches('"');
            lines.push_str(&format!("missing {} {code}\n", missing.name));
        }
        let next = file.with_extension("next");
        std::fs::write(&next, lines)?;
        std::fs::rename(&next, file)?;
        session.send(&ClientMessage::Ack {
            generation: bundle.generation,
        })?;
    }
    Ok(())
}
