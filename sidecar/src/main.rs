//! `mayfly-sidecar`: see [`mayfly_sidecar`].

use mayfly_kernel::alloc::Zeroing;
use mayfly_kernel::memory;
use mayfly_sidecar::config::{Config, DEFAULT_PATH};
use mayfly_sidecar::ending::Ending;
use mayfly_sidecar::log::{Format, Level, Log, wall_clock};
use mayfly_sidecar::options::{self, Command, Options};
use mayfly_sidecar::{run, status};
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;

#[global_allocator]
static HEAP: Zeroing = Zeroing::new();

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(options)) if options.report => {
            run::report::report_ended(&options, Log(options.log), wall_clock());
            return ExitCode::SUCCESS;
        }
        Ok(Command::Run(options)) => options,
        Ok(Command::Say(text)) => return say(text, 0),
        Ok(Command::Status(dir, as_json)) => {
            let said = status::command::status(&dir, as_json);
            return say(&said.text, said.code);
        }
        Ok(Command::Health(dir, live)) => {
            let said = status::command::health(&dir, live);
            return say(&said.text, said.code);
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
        ref unfit @ (Ending::Unfit { .. } | Ending::BadConfig(_)) if log.0 == Format::Text => {
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

fn say(text: &str, code: u8) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::FAILURE,
    }
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
    let locked = memory::lock_what_fits().is_ok();
    let config = match configuration(options) {
        Ok(config) => config,
        Err(ending) => return ending,
    };
    let (publisher, missed) = match run::place::take(options, &config, log) {
        Ok(taken) => taken,
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
    let ended = runtime
        .and_then(|runtime| runtime.block_on(run::run(options, &config, log, publisher, &missed)));
    ended.unwrap_or_else(|error| Ending::Files(format!("cannot start: {error}")))
}

/// The file that is named, or that of the default's path if there is one.
fn configuration(options: &Options) -> Result<Config, Ending> {
    let default = Path::new(DEFAULT_PATH);
    let path = match &options.config {
        Some(path) => path,
        None => match default.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Config::default()),
            // Anything else that is wrong with it, reading it says.
            _ => default,
        },
    };
    let config = Config::read(path, options.access).map_err(Ending::BadConfig)?;
    match config.check_want(options.want.as_deref()) {
        Ok(()) => Ok(config),
        Err(why) => Err(Ending::Usage(format!("{}: {why}", path.display()))),
    }
}
