//! `mayfly-sidecar`: see [`mayfly_sidecar`].

use mayfly_kernel::alloc::Zeroing;
use mayfly_kernel::memory;
use mayfly_sidecar::ending::Ending;
use mayfly_sidecar::log::{Format, Level, Log};
use mayfly_sidecar::options::{self, Command, Options};
use mayfly_sidecar::run;
use std::io::Write as _;
use std::process::ExitCode;

#[global_allocator]
static HEAP: Zeroing = Zeroing::new();

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(options)) => options,
        Ok(Command::Say(text)) => {
            let said = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::from(u8::from(said.is_err()));
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}", Ending::Usage(error.to_string()));
            return ExitCode::from(64);
        }
    };
    let (ending, log) = (start(&options), Log(options.log));
    match ending {
        Ending::Done => log.event(Level::Info, "ended", &[]),
        // For a person, with lines to copy.
        ref unfit @ Ending::Unfit { .. } if log.0 == Format::Text => {
            let _ = writeln!(std::io::stderr(), "error: {unfit}");
        }
        ref other => {
            let fields = [("why", other.to_string().into())];
            log.event(Level::Error, "ended", &fields);
        }
    }
    if let Ending::Unfit { fault, why } = &ending {
        run::report::before_any_session(&options, log, *fault, why);
    }
    ExitCode::from(ending)
}

fn start(options: &Options) -> Ending {
    let log = Log(options.log);
    let hidden = memory::forbid_core_dumps().and_then(|()| memory::forbid_reading_by_others());
    if let Err(error) = hidden {
        return Ending::Files(format!(
            "cannot close this process's memory to others: {error}"
        ));
    }
    // Where the limit does not allow it, no secret stays in memory long enough to be swapped out.
    let locked = memory::lock_all().is_ok();
    let publisher = match run::place::take(options, log) {
        Ok(publisher) => publisher,
        Err(ending) => return ending,
    };
    let fields = [
        ("dir", options.dir.to_string_lossy().into()),
        ("memory_locked", locked.into()),
    ];
    log.event(Level::Info, "started", &fields);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = runtime.and_then(|runtime| runtime.block_on(run::run(options, log, publisher)));
    ended.unwrap_or_else(|error| Ending::Files(format!("cannot start: {error}")))
}
