//! The command line.

use crate::log::Format;
use crate::publish::Access;
use lexopt::prelude::{Long, Short, Value, ValueExt as _};
use mayfly_wire::CredentialName;
use mayfly_wire::session::{MAX_WANTED, SOCKET};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Where secrets are published.
const DIR: &str = "/run/secrets";

/// What `--help` prints.
pub const HELP: &str = "\
mayfly-sidecar: turns what the broker grants to this container into files on a tmpfs

    mayfly-sidecar [--dir /run/secrets] [--want NAMES] [--config FILE] [--once]
    mayfly-sidecar status [--dir /run/secrets] [--output text|json]
    mayfly-sidecar health [--dir /run/secrets] [--live]

  --socket PATH      the node's workload socket (default /run/mayfly/workload.sock)
  --dir PATH         where to publish; must be a tmpfs (default /run/secrets)
  --want NAMES       credentials to ask for, joined by commas (default: all that policy grants)
  --mode MODE        of the files: 0400 or 0440 (default 0400)
  --owner UID[:GID]  owner of the files, or :GID for the group alone (default: the sidecar's own)
  --once             publish once, leave the files, and exit; their expiry is then the shim's watch,
                     or the node's, or nobody's
  --timeout SECONDS  how long --once tries (default 30)
  --config FILE      outputs and notifications (default /etc/mayfly/sidecar.toml, if there is one)
  --log-format text|json
                     form of the log on stderr (default text)
  --shim             mayfly-shim listens on the standard input (it says so itself)
  --awaited NAMES    and starts the application when these are there, joined by commas, or if there
                     are none a complete set (it says so itself)
  --report           tell the broker what is overdue in DIR, and exit (the shim does so when the
                     sidecar is frozen or dead)
  --allow-swap       accept a tmpfs that can be swapped out
  --help, --version

An application reads DIR/NAME, or DIR/NAME/FIELD where a credential has several fields. To read
several as one consistent set, open DIR/..data once and read through that descriptor.

Exit status: 0 done; 64 command line; 69 not reachable in time; 74 files could not be written or
removed; 75 stopped before --once was done; 76 the broker does not understand us; 77 denied;
78 the directory or the configuration will not do. `status` and `health` exit with 0 if all is well,
else with 1, and name each fault; --live asks only whether the sidecar is there and moves.

Example: ask for two credentials, for an application of uid 1000

    mayfly-sidecar --want orders-db,api-token --owner 1000:1000
";

/// What the command line asks for.
pub enum Command {
    /// Say how the sidecar of this directory stands; `true` for JSON.
    Status(PathBuf, bool),
    /// Say whether it is well; `true` for whether it lives at all.
    Health(PathBuf, bool),
    /// Run.
    Run(Options),
    /// Print this and exit.
    Say(&'static str),
}

/// How to run.
pub struct Options {
    /// The workload socket.
    pub socket: PathBuf,
    /// The publishing directory.
    pub dir: PathBuf,
    /// What to ask for; `None` is all that policy grants.
    pub want: Option<Vec<CredentialName>>,
    /// Mode and owner of the files.
    pub access: Access,
    /// The configuration; `None` is the default's path, if a file is there.
    pub config: Option<PathBuf>,
    /// Publish once, within this time.
    pub once: Option<Duration>,
    /// Form of the log.
    pub log: Format,
    /// Accept a tmpfs that can be swapped out.
    pub allow_swap: bool,
    /// The shim that started us listens on the standard input.
    pub shim: bool,
    /// What the shim waits for before it starts the application, if it does: these names, or if there
    /// are none a complete set.
    pub awaited: Option<Vec<String>>,
    /// Only say what is overdue, in the place of a sidecar that is frozen or dead.
    pub report: bool,
}

/// Reads the command line, without the program's name.
///
/// # Errors
/// A sentence that names the option and what was expected.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.next_if(|first| first == "status").is_some() {
        return parse_question(arguments, false);
    }
    if arguments.next_if(|first| first == "health").is_some() {
        return parse_question(arguments, true);
    }
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut options = Options {
        socket: PathBuf::from(SOCKET),
        dir: PathBuf::from(DIR),
        want: None,
        access: Access {
            mode: 0o400,
            uid: None,
            gid: None,
        },
        config: None,
        once: None,
        log: Format::Text,
        allow_swap: false,
        shim: false,
        awaited: None,
        report: false,
    };
    let mut once = false;
    let mut timeout = Duration::from_secs(30);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("socket") => options.socket = parser.value()?.into(),
            Long("dir") => options.dir = parser.value()?.into(),
            Long("want") => options.want = Some(want(&parser.value()?.string()?)?),
            Long("mode") => options.access.mode = mode(&parser.value()?.string()?)?,
            Long("owner") => {
                (options.access.uid, options.access.gid) = owner(&parser.value()?.string()?)?;
            }
            Long("config") => options.config = Some(parser.value()?.into()),
            Long("once") => once = true,
            Long("timeout") => {
                timeout = Duration::from_secs(parser.value()?.parse::<u32>()?.into())
            }
            Long("log-format") => {
                options.log = match parser.value()?.string()?.as_str() {
                    "text" => Format::Text,
                    "json" => Format::Json,
                    other => return Err(bad("--log-format", "text or json", other)),
                }
            }
            Long("shim") => options.shim = true,
            Long("awaited") => {
                let names = parser.value()?.string()?;
                let names = names.split(',').filter(|name| !name.is_empty());
                options.awaited = Some(names.map(str::to_owned).collect());
            }
            Long("report") => options.report = true,
            Long("allow-swap") => options.allow_swap = true,
            Long("help") | Short('h') => return Ok(Command::Say(HELP)),
            Long("version") => {
                let version = concat!("mayfly-sidecar ", env!("CARGO_PKG_VERSION"), "\n");
                return Ok(Command::Say(version));
            }
            Value(_) | Short(_) | Long(_) => return Err(argument.unexpected()),
        }
    }
    options.once = once.then_some(timeout);
    Ok(Command::Run(options))
}

/// The options of `status` and `health`.
fn parse_question(
    arguments: impl Iterator<Item = OsString>,
    health: bool,
) -> Result<Command, lexopt::Error> {
    let mut dir = PathBuf::from(DIR);
    let mut flag = false;
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("dir") => dir = parser.value()?.into(),
            Long("live") if health => flag = true,
            Long("output") if !health => {
                flag = match parser.value()?.string()?.as_str() {
                    "json" => true,
                    "text" => false,
                    other => return Err(bad("--output", "text or json", other)),
                }
            }
            Long("help") | Short('h') => return Ok(Command::Say(HELP)),
            Value(_) | Short(_) | Long(_) => return Err(argument.unexpected()),
        }
    }
    Ok(match health {
        true => Command::Health(dir, flag),
        false => Command::Status(dir, flag),
    })
}

fn bad(option: &str, expected: &str, found: &str) -> lexopt::Error {
    format!("{option}: expected {expected}, found {found:?}").into()
}

fn want(text: &str) -> Result<Vec<CredentialName>, lexopt::Error> {
    let mut names = Vec::new();
    for name in text.split(',') {
        let name: CredentialName = name
            .parse()
            .map_err(|error| lexopt::Error::from(format!("--want: {error}")))?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.len() > MAX_WANTED {
        let most = format!("at most {} names", MAX_WANTED);
        return Err(bad("--want", &most, &names.len().to_string()));
    }
    names.sort();
    Ok(names)
}

fn mode(text: &str) -> Result<u32, lexopt::Error> {
    match text {
        "0400" | "400" => Ok(0o400),
        "0440" | "440" => Ok(0o440),
        other => Err(bad("--mode", "0400 or 0440", other)),
    }
}

fn owner(text: &str) -> Result<(Option<u32>, Option<u32>), lexopt::Error> {
    let error = || bad("--owner", "UID, UID:GID or :GID, as numbers", text);
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    // u32::MAX means "leave as it is" to chown(2).
    let number = |text: &str| match text.parse() {
        Ok(u32::MAX) | Err(_) => Err(error()),
        Ok(id) => Ok(id),
    };
    let uid = match uid {
        "" if gid.is_some() => None,
        uid => Some(number(uid)?),
    };
    Ok((uid, gid.map(number).transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, String> {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(Command::Run(options)) => Ok(options),
            Ok(Command::Say(text)) => Err(text.to_owned()),
            Ok(Command::Status(..) | Command::Health(..)) => Err("a question".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let options = parsed("").unwrap();
        assert_eq!(options.socket, PathBuf::from("/run/mayfly/workload.sock"));
        assert_eq!(options.dir, PathBuf::from("/run/secrets"));
        assert_eq!(options.access.mode, 0o400);
        assert!(options.want.is_none() && options.once.is_none() && !options.allow_swap);
    }

    #[test]
    fn questions_have_options_of_their_own() {
        let asked = |line: &str| parse(line.split_whitespace().map(OsString::from));
        let Ok(Command::Status(dir, true)) = asked("status --output json --dir /d") else {
            panic!("no status")
        };
        assert_eq!(dir, PathBuf::from("/d"));
        assert!(matches!(
            asked("health --live"),
            Ok(Command::Health(_, true))
        ));
        assert!(matches!(asked("health"), Ok(Command::Health(_, false))));
        for line in [
            "health --output json",
            "status --live",
            "status x",
            "health --once",
        ] {
            assert!(asked(line).is_err(), "{line}");
        }
    }

    #[test]
    fn owners_are_numbers() {
        for (text, expected) in [
            ("1000", (Some(1000), None)),
            ("1000:7", (Some(1000), Some(7))),
            (":7", (None, Some(7))),
        ] {
            let access = parsed(&format!("--owner {text}")).unwrap().access;
            assert_eq!((access.uid, access.gid), expected, "{text}");
        }
        for text in ["", ":", "1000:", "app", "-1", "4294967295", "1:2:3"] {
            assert!(owner(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn mistakes_name_the_option() {
        for (line, part) in [
            ("--mode 0644", "--mode: expected 0400 or 0440"),
            ("--want ../x", "--want: credential name"),
            ("--log-format xml", "--log-format: expected text or json"),
            ("--timeout soon", "soon"),
            ("--nonsense", "--nonsense"),
            ("stray", "stray"),
        ] {
            let said = parsed(line).err().unwrap();
            assert!(said.contains(part), "{line}: {said}");
        }
    }

    #[test]
    fn names_are_sorted_and_asked_for_once() {
        let names = parsed("--want b,a,b").unwrap().want.unwrap();
        assert_eq!(
            names.iter().map(CredentialName::as_str).collect::<Vec<_>>(),
            ["a", "b"]
        );
    }
}
