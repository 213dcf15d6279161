//! `make bench`: takes the figures of docs/design.md section 11, as root.
//!
//! The figures go to standard output and to `target/bench.jsonl`, one JSON object a line; what goes on,
//! and how the figures stand to their budgets, to standard error. docs/benchmarks.md says more.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use mayfly_tests::bench::{self, Options, Report, inside};
use tracing_subscriber::filter::LevelFilter;

const USAGE: &str = "\
Usage: bench [--quick] [--only FIGURE]... [--check]

  --quick        fewer samples
  --only FIGURE  only what measures the figures whose names begin so
  --check        exit with 1 if a budget is not kept

Example: make bench BENCH=\"--quick --only sessions\"
";

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["inside", job @ ..] = &arguments[..] {
        return inside::run(job).map(|()| ExitCode::SUCCESS);
    }
    let mut options = Options::default();
    let mut check = false;
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        match argument {
            "--quick" => options.quick = true,
            "--check" => check = true,
            "--only" => {
                let figure = rest
                    .next()
                    .context("--only: expected the name of a figure")?;
                options.only.push(figure.to_string());
            }
            "--help" | "-h" => {
                std::io::stdout().write_all(USAGE.as_bytes())?;
                return Ok(ExitCode::SUCCESS);
            }
            other => bail!("expected --quick, --only FIGURE or --check, found {other:?}"),
        }
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "containers need root: run `make bench` as root"
    );
    // Why the node's end of a link says no, it says here alone.
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .init();
    // It is in target/HOST/PROFILE.
    let own = std::env::current_exe()?;
    let target = own
        .ancestors()
        .nth(3)
        .context("not in a target directory")?;
    let mut report = Report::new(&target.join("bench.jsonl"))?;
    bench::run(&options, &mut report)?;
    report.table()?;
    if check && !report.holds() {
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
