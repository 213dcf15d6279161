//! `mayfly-shim`: stands between a container's runtime and its application.
//!
//! It hardens the process, waits for the first bundle of secrets, and starts the application:
//! in its own place if nothing needs supervising, else as a child beside the sidecar.

mod app;
mod args;
mod bundle;
mod exit;
mod harden;
mod sidecar;
mod signals;
mod supervise;

use std::io::Write;
use std::process::ExitCode;

use crate::args::Request;
use crate::exit::Failure;

fn main() -> ExitCode {
    let result = match args::parse(lexopt::Parser::from_env()) {
        Ok(Request::Help) => print(args::HELP),
        Ok(Request::Version) => print(concat!("mayfly-shim ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Request::Run(run)) => supervise::run(&run),
        Err(error) => Err(Failure::new(exit::USAGE, format!("{error}; see --help"))),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            say(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn print(text: &str) -> Result<u8, Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(0),
        Err(error) => Err(Failure::new(
            exit::OS_ERROR,
            format!("cannot write: {error}"),
        )),
    }
}

/// One line on stderr. If nobody reads it, nothing can be done about that.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "mayfly-shim: {line}");
}
