//! `mayfly`: what an operator says to the broker, and `mayfly dev`.

mod args;
mod client;
mod command;
mod config;
mod dev;
mod failure;
mod output;
mod when;

use clap::Parser as _;
use mayfly_kernel::memory::{forbid_core_dumps, forbid_reading_by_others};
use std::process::ExitCode;

/// Secrets pass through this process: what is freed is zeroed.
#[global_allocator]
static HEAP: mayfly_kernel::alloc::Zeroing = mayfly_kernel::alloc::Zeroing::new();

fn main() -> ExitCode {
    // What passes through must not be found in a core dump, nor by another process of the user. An
    // exec ends the second, so what `mayfly dev run` starts is as it would be without.
    if let Err(error) = forbid_core_dumps().and_then(|()| forbid_reading_by_others()) {
        output::note(&format!(
            "mayfly: cannot close this process's memory to others: {error}"
        ));
        return ExitCode::FAILURE;
    }
    let args = args::Args::parse();
    let environment = command::Environment {
        socket: std::env::var_os("MAYFLY_ADMIN_SOCKET").map(Into::into),
        path: std::env::var_os("PATH").unwrap_or_default(),
    };
    match command::run(args, environment) {
        Ok(code) => code,
        Err(failure @ failure::Failure::OutputClosed) => failure.exit_code(),
        Err(failure) => {
            output::note(&format!("mayfly: {failure}"));
            failure.exit_code()
        }
    }
}
