//! The benches of docs/design.md section 11: real processes, a real broker, containers of bare
//! namespaces. docs/benchmarks.md says what each figure means and what it leaves out.
//!
//! | file | figures |
//! |---|---|
//! | `life` | `sidecar_start_to_file`, `death_to_lease_end` |
//! | `overhead` | `shim_overhead` |
//! | `start` | `start_to_app`, and the same by `bao agent` |
//! | `push` | `put_to_file` |
//! | `postgres` | `death_to_role_gone`, `postgres_issue.*`, `postgres_revoke.*` |
//! | `attest` | `attest` |
//! | `sessions` | `sessions`, `sessions.cpu.*` |
//! | `size` | `rss.*`, `binary.*` |
//! | `idle` | `idle.*`, `rss.*_after_rotations` |
//! | `many` | `issue_100`, `issue_100k`, `issue_100k_ratio.*`, `restart_100k`, `rss.broker_100k_leases` |
//! | `beats` | `heartbeat.*` |
//! | `revoke` | `revoke_10k` |
//!
//! `place` is where they are taken, and `linked` where a node has a process of its own; `fleet` stands
//! for workloads by the thousand, `inside` is what runs in the containers, `report` what comes out.

mod attest;
mod beats;
mod fleet;
mod idle;
pub mod inside;
mod life;
mod linked;
mod many;
pub mod overhead;
mod place;
mod postgres;
mod push;
mod report;
mod revoke;
mod sessions;
mod size;
mod start;

use anyhow::{Result, bail};

pub use report::Report;

/// What to measure, and how long.
#[derive(Debug, Default)]
pub struct Options {
    /// Fewer samples: to see whether a change helped, not to be quoted.
    pub quick: bool,
    /// Figures by the beginning of their names; all when empty.
    pub only: Vec<String>,
}

impl Options {
    /// `many` samples, or `few` of them where it should be quick.
    fn samples(&self, many: usize, few: usize) -> usize {
        if self.quick { few } else { many }
    }

    fn wants(&self, figures: &[&str]) -> bool {
        let wanted = |figure: &&str| {
            let mut only = self.only.iter();
            only.any(|only| figure.starts_with(only.as_str()) || only.starts_with(*figure))
        };
        self.only.is_empty() || figures.iter().any(wanted)
    }
}

type Measure = fn(&Options, &mut Report) -> Result<()>;

/// What measures what. Those that need quiet come first.
const MEASURES: [(&[&str], Measure); 14] = [
    (
        &["sidecar_start_to_file", "death_to_lease_end"],
        life::measure,
    ),
    (&["shim_overhead"], overhead::measure),
    (&["start_to_app"], start::measure),
    (&["put_to_file"], push::measure),
    (&["death_to_role_gone"], postgres::measure_death),
    (&["attest"], attest::measure),
    (
        &["postgres_issue", "postgres_revoke"],
        postgres::measure_rates,
    ),
    (&["sessions"], sessions::measure),
    (
        &["rss.broker", "rss.node", "rss.sidecar", "rss.shim"],
        size::measure_memory,
    ),
    (&["binary"], size::measure_files),
    (
        &[
            "idle",
            "rss.sidecar_after_rotations",
            "rss.shim_after_rotations",
        ],
        idle::measure,
    ),
    (&["heartbeat"], beats::measure),
    (&["revoke_10k"], revoke::measure),
    (
        &[
            "issue_100",
            "issue_100k",
            "issue_100k_ratio",
            "restart_100k",
            "rss.broker_100k_leases",
        ],
        many::measure,
    ),
];

/// Takes the wanted figures.
///
/// # Errors
/// When one cannot be taken: that needs root and what `make build` makes.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    for (figures, measure) in MEASURES {
        if options.wants(figures) {
            report.progress(&format!("measuring {}", figures.join(", ")))?;
            measure(options, report)?;
        }
    }
    if report.is_empty() {
        bail!("no figure has a name that begins so: {:?}", options.only);
    }
    Ok(())
}
