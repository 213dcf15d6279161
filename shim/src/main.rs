//! `mayfly-shim`: stands between a container's runtime and its application.
//!
//! It hardens the process, waits for the first bundle of secrets, and starts the application:
//! in its own place if nothing needs supervising, else as a child beside the sidecar.

#![cfg_attr(not(test), no_main)]

mod app;
mod args;
mod bundle;
mod channel;
mod deadman;
mod exit;
mod harden;
mod life;
mod rotation;
mod sidecar;
mod signals;
mod supervise;

use std::io::Write;

use mayfly_kernel::alloc::Zeroing;

use crate::args::Request;
use crate::exit::Failure;

/// Values pass through it on their way to the application's environment.
#[global_allocator]
static HEAP: Zeroing = Zeroing::new();

#[cfg(not(test))]
mayfly_kernel::entry!(run);

#[cfg_attr(
    test,
    allow(dead_code, reason = "the tests have an entry of their own")
)]
fn run() -> u8 {
    let result = match args::parse(lexopt::Parser::from_env()) {
        Ok(Request::Help) => print(args::HELP),
        Ok(Request::Version) => print(concat!("mayfly-shim ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Request::Run(run)) => supervise::run(&run),
        Err(error) => Err(Failure::new(exit::USAGE, format!("{error}; see --help"))),
    };
    result.unwrap_or_else(|failure| {
        say(&failure.message);
        failure.code
    })
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

/// One line on stderr, in one piece: the application may write there too. If nobody reads it, nothing can be done about that.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("mayfly-shim: {line}\n").as_bytes());
}
