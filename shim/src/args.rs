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
                       [default: all that policy grants and that can be had]
  --timeout TIME       how long to wait for them, as 500ms, 30s or 2m [default: 30s]
  --env NAME=file:PATH set a variable to what DIR/..data/PATH holds, and wait for it; may be given
                       many times. For applications that read nothing else: whoever may look at the
                       process sees its environment, and all that it starts inherits it
  --sidecar            start mayfly-sidecar too, and keep it running beside the application
  --sidecar-path PATH  the sidecar's program [default: mayfly-sidecar beside this one]
  --sidecar-arg ARG    an argument for the sidecar; may be given many times
  --sidecar-user UID   whom the sidecar runs as; the application reads its files as the group of
                       --user [default: 65529 if --user is given and root starts this, else the
                       application's user; the UID of --user for that one]
  --restart on-rotate  start the application anew, at most once a second, when what is published
                       has changed
  --grace TIME         how long the application may take to end when it is restarted, and the
                       sidecar to wipe its files at the end [default: 5s]; if given, how long after
                       a SIGTERM the application is killed
  --user UID[:GID]     become this user, in numbers; GID is UID if left out
  --drop-caps          give up every capability
  --landlock           the application cannot change what is in DIR, nor signal or trace anyone but
                       itself and what it starts; fails on a kernel before 6.2
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

/// The sidecar's user, if nothing else is said: a number that no distribution gives to anybody
/// (systemd's list of users and groups calls 65520 to 65533 unused; images like 65532).
pub const SIDECAR_USER: u32 = 65_529;
/// More than the bytes of any variable's name and value; execve(2) takes hardly more.
pub const MAX_VARIABLE: usize = 127 * 1024;

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
    pub env: Vec<Variable>,
    pub sidecar: Option<SidecarOptions>,
    pub restart_on_rotate: bool,
    /// `None` is the default, and no limit for who is stopped from outside.
    pub grace: Option<Duration>,
    pub user: Option<Identity>,
    pub drop_caps: bool,
    pub landlock: bool,
    pub program: OsString,
    pub arguments: Vec<OsString>,
}

impl Run {
    /// How long who is asked to end may take.
    pub fn grace(&self) -> Duration {
        self.grace.unwrap_or(Duration::from_secs(5))
    }
}

/// How to start the sidecar.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SidecarOptions {
    /// `None` is the file beside our own.
    pub path: Option<PathBuf>,
    pub arguments: Vec<OsString>,
    /// `None` is the default.
    pub user: Option<u32>,
}

/// A variable of the application's environment.
#[derive(Debug, PartialEq, Eq)]
pub struct Variable {
    pub name: String,
    /// Where its value is, below the current generation.
    pub path: String,
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
        env: Vec::new(),
        sidecar: None,
        restart_on_rotate: false,
        grace: None,
        user: None,
        drop_caps: false,
        landlock: false,
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
            Long("env") => {
                let variable = parser.value()?.parse_with(variable)?;
                run.wait.push(variable.path.clone());
                run.env.push(variable);
            }
            Long("sidecar") => with_sidecar = true,
            Long("sidecar-path") => sidecar.path = Some(parser.value()?.into()),
            // The value may begin with a dash: it is the sidecar's option, not ours.
            Long("sidecar-arg") => sidecar.arguments.push(parser.value()?),
            Long("sidecar-user") => sidecar.user = Some(parser.value()?.parse_with(user)?),
            Long("restart") => run.restart_on_rotate = parser.value()?.parse_with(when)?,
            Long("grace") => run.grace = Some(parser.value()?.parse_with(duration)?),
            Long("user") => run.user = Some(parser.value()?.parse_with(identity)?),
            Long("drop-caps") => run.drop_caps = true,
            Long("landlock") => run.landlock = true,
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
    if sidecar.user.is_some() && run.user.is_none_or(|user| user.uid == 0) {
        return Err(
            "--sidecar-user needs --user with another user than root, who could become \
                    the sidecar's user at any time"
                .into(),
        );
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

/// `NAME=file:PATH`. The name is one that every shell could set, and the path leads down.
fn variable(text: &str) -> Result<Variable, String> {
    let letter = |c: char| c == '_' || c.is_ascii_alphanumeric();
    let parsed = text.split_once("=file:").filter(|(name, path)| {
        name.chars().all(letter)
            && name.starts_with(|c: char| !c.is_ascii_digit())
            && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
    });
    match parsed {
        Some((name, path)) => Ok(Variable {
            name: name.to_owned(),
            path: path.to_owned(),
        }),
        None => Err("expected NAME=file:PATH, the path below DIR/..data".to_owned()),
    }
}

fn when(text: &str) -> Result<bool, String> {
    match text {
        "on-rotate" => Ok(true),
        _ => Err("expected on-rotate".to_owned()),
    }
}

fn user(text: &str) -> Result<u32, String> {
    identity(text).and_then(|id| match text.contains(':') || id.uid == 0 {
        true => Err("expected the number of a user that is not root".to_owned()),
        false => Ok(id.uid),
    })
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
        assert_eq!((run.timeout.as_secs(), run.grace), (30, None));
        assert!(run.env.is_empty() && !run.restart_on_rotate && !run.landlock);
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
            "--landlock",
            "--restart=on-rotate",
            "--sidecar-user=9",
            "--env",
            "DB_PASSWORD=file:orders-db/password",
            "--dir=/d",
            "app",
            "-x",
        ]);
        let expected = Run {
            dir: "/d".into(),
            wait: ["a", "b", "c", "orders-db/password"]
                .map(str::to_owned)
                .into(),
            timeout: Duration::from_millis(1500),
            sidecar: Some(SidecarOptions {
                path: Some("/s".into()),
                arguments: vec!["--socket".into(), "/w".into()],
                user: Some(9),
            }),
            env: vec![Variable {
                name: "DB_PASSWORD".into(),
                path: "orders-db/password".into(),
            }],
            restart_on_rotate: true,
            grace: Some(Duration::from_secs(120)),
            user: Some(Identity { uid: 7, gid: 8 }),
            drop_caps: true,
            landlock: true,
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
            (&["run", "--restart=always", "--", "a"], "on-rotate"),
            (&["run", "--env=A=secret", "--", "a"], "NAME=file:PATH"),
            (&["run", "--env=1A=file:a", "--", "a"], "NAME=file:PATH"),
            (&["run", "--env==file:a", "--", "a"], "NAME=file:PATH"),
            (&["run", "--env=A=file:../a", "--", "a"], "NAME=file:PATH"),
            (&["run", "--env=A=file:/etc/a", "--", "a"], "NAME=file:PATH"),
            (
                &["run", "--sidecar", "--sidecar-user=9", "--", "a"],
                "needs --user",
            ),
            (
                &["run", "--sidecar-user=9", "--user=0", "--", "a"],
                "needs --user",
            ),
            (&["run", "--sidecar-user=0", "--", "a"], "not root"),
            (&["run", "--sidecar-user=9:9", "--", "a"], "not root"),
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
