//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

/// What `--help` prints.
pub const HELP: &str = "\
Hardens a container's process, waits for its secrets, and starts the application.

Usage: mayfly-shim run [OPTIONS] -- APP [ARGS...]

Options:
  --dir DIR            where the secrets appear [default: /run/secrets]
  --wait NAMES         credentials that must be there, separated by commas
                       [default: whatever the first bundle holds]
  --timeout TIME       how long to wait for them, as 500ms, 30s or 2m [default: 30s]
  --sidecar            start mayfly-sidecar too, and keep it running beside the application
  --sidecar-path PATH  the sidecar's program [default: mayfly-sidecar beside this one]
  --sidecar-arg ARG    an argument for the sidecar; may be given many times
  --grace TIME         how long the sidecar may take to wipe its files at the end [default: 5s]
  --user UID[:GID]     become this user, in numbers; GID is UID if left out
  --drop-caps          give up every capability
  -h, --help           print this
  -V, --version        print the version

Always: a session keyring of its own, no_new_privs, no keyring calls, no core dumps, no inherited
descriptors. All of it holds for the sidecar and the application as well.

The exit status is the application's own, or 128 and the number of the signal that killed it.
Before the application starts: 64 wrong usage, 69 no secrets in time, 71 hardening failed, 78 wrong
set-up, 126 the application cannot be executed, 127 it was not found, 128+N stopped by signal N.

Example, in a Dockerfile:
  ENTRYPOINT [\"/mayfly-shim\", \"run\", \"--sidecar\", \"--wait\", \"orders-db\", \"--\"]
  CMD [\"/app\"]
";

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    Help,
    Version,
    Run(Box<Run>),
}

/// `mayfly-shim run`.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub dir: PathBuf,
    pub wait: Vec<String>,
    pub timeout: Duration,
    pub sidecar: Option<SidecarOptions>,
    pub grace: Duration,
    pub user: Option<Identity>,
    pub drop_caps: bool,
    pub program: OsString,
    pub arguments: Vec<OsString>,
}

/// How to start the sidecar.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SidecarOptions {
    /// `None` is the file beside our own.
    pub path: Option<PathBuf>,
    pub arguments: Vec<OsString>,
}

/// Whom to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
}

/// Parses the arguments after the program's name.
pub fn parse(mut parser: lexopt::Parser) -> Result<Request, lexopt::Error> {
    match parser.next()? {
        Some(Long("help") | Short('h')) => Ok(Request::Help),
        Some(Long("version") | Short('V')) => Ok(Request::Version),
        Some(Value(word)) if word == "run" => parse_run(parser),
        Some(argument) => Err(argument.unexpected()),
        None => Err("expected the command `run`".into()),
    }
}

fn parse_run(mut parser: lexopt::Parser) -> Result<Request, lexopt::Error> {
    let mut run = Run {
        dir: "/run/secrets".into(),
        wait: Vec::new(),
        timeout: Duration::from_secs(30),
        sidecar: None,
        grace: Duration::from_secs(5),
        user: None,
        drop_caps: false,
        program: OsString::new(),
        arguments: Vec::new(),
    };
    let mut with_sidecar = false;
    let mut sidecar = SidecarOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("dir") => run.dir = parser.value()?.into(),
            Long("wait") => run.wait.extend(parser.value()?.parse_with(names)?),
            Long("timeout") => run.timeout = parser.value()?.parse_with(duration)?,
            Long("sidecar") => with_sidecar = true,
            Long("sidecar-path") => sidecar.path = Some(parser.value()?.into()),
            // The value may begin with a dash: it is the sidecar's option, not ours.
            Long("sidecar-arg") => sidecar.arguments.push(parser.value()?),
            Long("grace") => run.grace = parser.value()?.parse_with(duration)?,
            Long("user") => run.user = Some(parser.value()?.parse_with(identity)?),
            Long("drop-caps") => run.drop_caps = true,
            Long("help") | Short('h') => return Ok(Request::Help),
            Value(program) => {
                run.program = program;
                run.arguments = parser.raw_args()?.collect();
                break;
            }
            other => return Err(other.unexpected()),
        }
    }
    if run.program.is_empty() {
        return Err("expected the application after `--`, as in `run -- /app`".into());
    }
    if with_sidecar {
        run.sidecar = Some(sidecar);
    } else if sidecar != SidecarOptions::default() {
        return Err("options for the sidecar were given without --sidecar; add it".into());
    }
    Ok(Request::Run(Box::new(run)))
}

fn names(text: &str) -> Result<Vec<String>, String> {
    let names = text.split(',').map(|name| match name {
        "" | "." | ".." => Err("expected names of credentials separated by commas".to_owned()),
        _ if name.contains('/') => Err(format!("a credential's name has no slash: {name}")),
        _ => Ok(name.to_owned()),
    });
    names.collect()
}

fn duration(text: &str) -> Result<Duration, String> {
    let unit = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        _ => None,
    };
    let product = milliseconds.and_then(|unit| number.parse::<u32>().ok()?.checked_mul(unit));
    match product {
        Some(milliseconds) => Ok(Duration::from_millis(milliseconds.into())),
        None => Err("expected a time such as 500ms, 30s or 2m".to_owned()),
    }
}

fn identity(text: &str) -> Result<Identity, String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    // The kernel reads the largest number as "leave it".
    let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
    match (number(uid), number(gid)) {
        (Some(uid), Some(gid)) => Ok(Identity { uid, gid }),
        _ => Err("expected numbers, as UID or UID:GID (an image may have no /etc/passwd)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Run, String> {
        match parse(lexopt::Parser::from_args(arguments)) {
            Ok(Request::Run(run)) => Ok(*run),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn defaults() {
        let run = run(&["run", "--", "/app", "--dir", "x", "--"]).unwrap();
        assert_eq!(run.dir, PathBuf::from("/run/secrets"));
        assert_eq!((run.timeout.as_secs(), run.grace.as_secs()), (30, 5));
        assert_eq!((run.sidecar, run.user, run.drop_caps), (None, None, false));
        assert!(run.wait.is_empty());
        assert_eq!(run.program, "/app");
        assert_eq!(
            run.arguments,
            ["--dir", "x", "--"],
            "all after the application is its own"
        );
    }

    #[test]
    fn everything() {
        let run = run(&[
            "run",
            "--sidecar",
            "--sidecar-path",
            "/s",
            "--sidecar-arg",
            "--socket",
            "--sidecar-arg=/w",
            "--wait",
            "a,b",
            "--wait=c",
            "--timeout=1500ms",
            "--grace",
            "2m",
            "--user",
            "7:8",
            "--drop-caps",
            "--dir=/d",
            "app",
            "-x",
        ]);
        let expected = Run {
            dir: "/d".into(),
            wait: vec!["a".into(), "b".into(), "c".into()],
            timeout: Duration::from_millis(1500),
            sidecar: Some(SidecarOptions {
                path: Some("/s".into()),
                arguments: vec!["--socket".into(), "/w".into()],
            }),
            grace: Duration::from_secs(120),
            user: Some(Identity { uid: 7, gid: 8 }),
            drop_caps: true,
            program: "app".into(),
            arguments: vec!["-x".into()],
        };
        assert_eq!(run.unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (arguments, said) in [
            (&["run"][..], "after `--`"),
            (&["run", "--"], "after `--`"),
            (&["run", "--sidecar-arg=x", "--", "a"], "without --sidecar"),
            (&["run", "--wait=a,,b", "--", "a"], "separated by commas"),
            (&["run", "--wait=../a", "--", "a"], "no slash"),
            (&["run", "--timeout=30", "--", "a"], "such as 500ms"),
            (&["run", "--timeout=-1s", "--", "a"], "such as 500ms"),
            (&["run", "--timeout=99999999m", "--", "a"], "such as 500ms"),
            (&["run", "--user=root", "--", "a"], "expected numbers"),
            (&["run", "--user=4294967295", "--", "a"], "expected numbers"),
            (&["run", "--bogus", "--", "a"], "--bogus"),
            (&["exec"], "exec"),
            (&[], "command `run`"),
        ] {
            let error = run(arguments).unwrap_err();
            assert!(error.contains(said), "{arguments:?}: {error}");
        }
    }
}
