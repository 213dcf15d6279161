//! What a test runs inside a container, where there may be no shell: static, one job a call.
//!
//! - `mayfly-probe http SOCKET METHOD PATH [BODY]` prints the status, a newline, and the body.
//! - `mayfly-probe session SOCKET [NAME…]` opens a session, and prints `workload ID`, then each value
//!   of each bundle as `bundle GENERATION NAME/FIELD=VALUE`, what is missing as
//!   `missing NAME CODE`, a refusal as `refused CODE`, and each withdrawal as `withdrawn NAME`, until
//!   the server closes.
//! - `mayfly-probe hold COUNT` reads that many bytes from standard input, says `held`, and keeps
//!   them in its memory until standard input ends.
//! - `mayfly-probe guard LOG` starts a process under a guard, prints its pid, and waits to be killed.
//! - `mayfly-probe logins SOCKET PORT DIR STOP` logs in to PostgreSQL: see `harness/logins.rs`.
//! - `mayfly-probe enter DIR… -- COMMAND…`, `mayfly-probe holder SOCKET FILE` and
//!   `mayfly-probe asks SOCKET COUNT FILE` make and are small containers: see `harness/holder.rs`.
//! - `mayfly-probe reads DIR MILLISECONDS SETS FILE` reads its secrets for that long, and until it has seen
//!   so many sets; writes how many to FILE: see `harness/reader.rs`.
//! - `mayfly-probe obey TOKEN` does what standard input says: see `harness/obey.rs`. The token makes
//!   it easy to find.
//! - `mayfly-probe say TEXT…` prints it, and then waits to be killed.

use std::io::{Read, Write, stdin, stdout};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mayfly_tests::harness::{
    Guard, Http, Opened, Session, ask_often, enter, hold_leases, logins, obey, read_sets,
};
use mayfly_wire::Code;
use mayfly_wire::session::{ClientMessage, ServerMessage};
use nix::sys::signal::Signal;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["http", socket, method, path] => http(socket, method, path, ""),
        ["http", socket, method, path, body] => http(socket, method, path, body),
        ["session", socket, ref names @ ..] => session(Path::new(socket), names),
        ["hold", count] => hold(count.parse().context("COUNT is a number of bytes")?),
        ["guard", log] => guard(Path::new(log)),
        ["logins", socket, port, dir, stop] => {
            logins(socket, port.parse()?, Path::new(dir), Path::new(stop))
        }
        ["enter", ref args @ ..] => enter(args),
        ["holder", socket, file] => hold_leases(Path::new(socket), Path::new(file)),
        ["asks", socket, count, file] => {
            let count = count.parse().context("COUNT is a number")?;
            ask_often(Path::new(socket), count, Path::new(file))
        }
        ["reads", dir, time, sets, file] => {
            let time = Duration::from_millis(time.parse().context("MILLISECONDS is a number")?);
            let sets = sets.parse().context("SETS is a number")?;
            let sets = read_sets(Path::new(dir), time, sets)?;
            Ok(std::fs::write(file, sets.to_string())?)
        }
        ["obey", _] => obey(),
        ["say", ref words @ ..] => print_line(&words.join(" ")).map(|()| wait_to_be_killed()),
        _ => bail!(
            "expected http, session, hold, guard, logins, enter, holder, asks, reads, obey or say: see \
             the head of mayfly-probe.rs"
        ),
    }
}

fn http(socket: &str, method: &str, path: &str, body: &str) -> Result<()> {
    let headers = [("content-type", "application/json")];
    let headers = if body.is_empty() {
        &headers[..0]
    } else {
        &headers[..]
    };
    let reply = Http::new(socket).request(method, path, headers, body.to_string())?;
    print(reply.status.as_str().as_bytes())?;
    print(&reply.body)
}

fn session(socket: &Path, names: &[&str]) -> Result<()> {
    const LONG: Duration = Duration::from_secs(3600);
    let code = |code: Code| serde_json::to_string(&code).map(|text| text.replace('"', ""));
    let stream = UnixStream::connect(socket).context("connecting")?;
    let mut session = match Session::attempt(stream, names, Duration::from_secs(30))? {
        Opened::Session(session) => session,
        Opened::Refused(refusal) => return print_line(&format!("refused {}", code(refusal.code)?)),
    };
    print_line(&format!("workload {}", session.workload().id()))?;
    while let Some(message) = session.next(LONG)? {
        match message {
            ServerMessage::Bundle(bundle) => {
                let generation = bundle.generation;
                for value in session.open_bundle(&bundle)? {
                    let text = String::from_utf8_lossy(&value.bytes);
                    let (name, field) = (&value.name, &value.field);
                    print_line(&format!("bundle {generation} {name}/{field}={text}"))?;
                }
                for missing in bundle.missing {
                    let code = code(missing.refusal.code)?;
                    print_line(&format!("missing {} {code}", missing.name))?;
                }
                session.send(&ClientMessage::Ack { generation })?;
            }
            ServerMessage::Withdraw { names } => {
                for name in names {
                    print_line(&format!("withdrawn {name}"))?;
                }
            }
            ServerMessage::Refused(refusal) => {
                print_line(&format!("refused {}", code(refusal.code)?))?;
            }
            ServerMessage::Hello { .. } | ServerMessage::Ping {} => {}
        }
    }
    Ok(())
}

fn hold(count: usize) -> Result<()> {
    let mut held = vec![0; count];
    stdin()
        .read_exact(&mut held)
        .context("reading what to hold")?;
    print(b"held")?;
    stdin().read_to_end(&mut Vec::new())?;
    // Used once more, so that it is kept until here.
    std::hint::black_box(held);
    Ok(())
}

fn guard(log: &Path) -> Result<()> {
    let mut command = Command::new("sh");
    // One that does not listen to a kind word.
    command.args(["-c", "trap '' TERM; while :; do sleep 1; done"]);
    let guard = Guard::spawn(&command, log, Signal::SIGTERM, 1)?;
    print_line(&guard.pid().to_string())?;
    wait_to_be_killed();
    Ok(())
}

fn wait_to_be_killed() {
    loop {
        std::thread::park();
    }
}

fn print_line(line: &str) -> Result<()> {
    print(line.as_bytes())
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(bytes)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
