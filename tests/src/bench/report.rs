//! What the benches say: JSON lines on standard output and in a file, a table on standard error.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Write, stderr, stdout};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

/// The bounds of docs/design.md section 11, in the figure's unit.
const BUDGETS: [(&str, f64); 19] = [
    ("sidecar_start_to_file", 10.0),
    ("death_to_lease_end", 10.0),
    ("death_to_role_gone", 50.0),
    ("shim_overhead", 3.0),
    ("put_to_file", 20.0),
    ("attest", 200.0),
    ("sessions", 3000.0),
    // The same of two processors, whatever else runs on them: 2 s / 3,000.
    ("sessions.cpu", 666.0),
    ("rss.sidecar", 3.0 * 1024.0),
    ("rss.sidecar_after_rotations", 3.0 * 1024.0),
    ("idle.sidecar", 1000.0),
    ("idle.shim", 1000.0),
    ("rss.broker_100k_leases", 250.0 * 1024.0),
    ("rss.broker_100k_leases.restarted", 250.0 * 1024.0),
    ("issue_100k_ratio.p50", 1.2),
    ("issue_100k_ratio.p99", 1.2),
    ("restart_100k", 5.0),
    ("binary.mayfly-sidecar", 3_000_000.0),
    ("binary.mayfly-shim", 1_000_000.0),
];

/// Whether more of it is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Times and sizes.
    Less,
    /// Rates.
    More,
}

#[derive(Debug)]
struct Figure {
    name: String,
    median: f64,
    p99: f64,
    unit: &'static str,
    better: Better,
}

/// The figures so far.
#[derive(Debug)]
pub struct Report {
    kept: File,
    figures: Vec<Figure>,
}

impl Report {
    /// Begins one, whose lines are kept in a file that replaces an older one.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(path: &Path) -> Result<Self> {
        let kept = File::create(path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self {
            kept,
            figures: Vec::new(),
        })
    }

    /// Whether there is no figure.
    pub fn is_empty(&self) -> bool {
        self.figures.is_empty()
    }

    /// Says what goes on.
    ///
    /// # Errors
    /// When standard error is closed.
    pub fn progress(&self, text: &str) -> Result<()> {
        Ok(writeln!(stderr(), "bench: {text}")?)
    }

    /// Adds a figure. Of a rate, `p99` is what 99 of 100 samples reach.
    ///
    /// # Errors
    /// When there is no sample, or it cannot be written.
    pub fn add(
        &mut self,
        name: &str,
        mut samples: Vec<f64>,
        unit: &'static str,
        better: Better,
    ) -> Result<()> {
        samples.sort_by(f64::total_cmp);
        if better == Better::More {
            samples.reverse();
        }
        // The nearest rank, so that the figure is a sample.
        let rank = |percent: usize| (samples.len() * percent).div_ceil(100).max(1) - 1;
        let at = |percent| samples.get(rank(percent)).copied();
        let (median, p99) = (at(50), at(99));
        let (median, p99) = median
            .zip(p99)
            .with_context(|| format!("no sample of {name}"))?;
        let line = json!({
            "figure": name, "median": rounded(median), "p99": rounded(p99),
            "n": samples.len(), "unit": unit,
        });
        for out in [&mut stdout().lock() as &mut dyn Write, &mut self.kept] {
            writeln!(out, "{line}")?;
            out.flush()?;
        }
        self.figures.push(Figure {
            name: name.to_string(),
            median,
            p99,
            unit,
            better,
        });
        Ok(())
    }

    /// Whether every figure with a budget keeps it, by its median.
    pub fn holds(&self) -> bool {
        self.figures.iter().all(|figure| {
            budget(&figure.name).is_none_or(|budget| match figure.better {
                Better::Less => figure.median <= budget,
                Better::More => figure.median >= budget,
            })
        })
    }

    /// Says how the figures stand to the budgets.
    ///
    /// # Errors
    /// When standard error is closed.
    pub fn table(&self) -> Result<()> {
        let mut table = format!(
            "\n{:<24}{:>12}{:>12}  {:<6}{:>10}{:>9}\n",
            "figure", "median", "p99", "unit", "budget", "of it"
        );
        for figure in &self.figures {
            let Figure {
                name,
                median,
                p99,
                unit,
                ..
            } = figure;
            write!(
                table,
                "{name:<24}{:>12}{:>12}  {unit:<6}",
                rounded(*median),
                rounded(*p99)
            )?;
            if let Some(budget) = budget(name) {
                write!(table, "{budget:>10}{:>8.0}%", median / budget * 100.0)?;
            }
            table.push('\n');
        }
        Ok(stderr().write_all(table.as_bytes())?)
    }
}

fn budget(name: &str) -> Option<f64> {
    BUDGETS
        .iter()
        .find(|(figure, _)| *figure == name)
        .map(|(_, budget)| *budget)
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_judged_from_below_and_a_time_from_above() -> Result<()> {
        let path = std::env::temp_dir().join(format!("mayfly-report-{}", std::process::id()));
        let mut report = Report::new(&path)?;
        report.add(
            "attest",
            (1..=100).map(f64::from).collect(),
            "us",
            Better::Less,
        )?;
        let rates = (1..=100).map(|n| f64::from(n) * 100.0).collect();
        report.add("sessions", rates, "1/s", Better::More)?;
        assert!(report.holds());
        let lines = std::fs::read_to_string(&path)?;
        std::fs::remove_file(&path)?;
        let lines: Vec<serde_json::Value> = lines
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        assert_eq!(lines[0]["median"], 50.0);
        assert_eq!(lines[0]["p99"], 99.0);
        assert_eq!(lines[1]["median"], 5100.0);
        assert_eq!(lines[1]["p99"], 200.0);
        assert_eq!(lines[1]["n"], 100);
        Ok(())
    }
}
