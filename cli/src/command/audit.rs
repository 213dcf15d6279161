//! `audit`: read the audit log, and check its chain.

use crate::client::Client;
use crate::command::audit_text;
use crate::failure::Failure;
use crate::output::{Out, count, note};
use mayfly_wire::admin::AuditReport;
use mayfly_wire::audit::Chain;
use serde_json::json;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// Most bytes of one record: a longer line is not one.
const MAX_RECORD: u64 = 1024 * 1024;

/// What to do with the audit log.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Print the last records
    #[command(after_help = "\
Example:
  mayfly audit tail -n 50
  mayfly audit tail --follow
  mayfly audit tail --output json | jq .event.type")]
    Tail {
        /// How many
        #[arg(short = 'n', long = "last", value_name = "N", default_value_t = 20)]
        last: u64,
        /// Then print each new one as it is written
        #[arg(short, long)]
        follow: bool,
    },
    /// Check that no record was edited, removed, added or moved
    #[command(after_help = "\
Example:
  mayfly audit verify
  mayfly audit verify --file /backup/audit.jsonl    # without a broker

Through the broker, each record's MAC is checked too, which needs the broker's key. With --file the
hashes alone are checked: compare the head that is printed with one that you wrote down before.")]
    Verify {
        /// Check this file here instead of asking the broker
        #[arg(long, value_name = "PATH")]
        file: Option<PathBuf>,
    },
}

/// `mayfly audit`
pub async fn run(client: &Client, out: Out, command: Command) -> Result<(), Failure> {
    match command {
        Command::Tail { last, follow } => {
            let follow = if follow { "&follow=true" } else { "" };
            let path = format!("/v1/audit?last={last}{follow}");
            client
                .lines(&path, |line| {
                    if out.is_json() {
                        out.line(line)
                    } else {
                        out.line(&audit_text::line(line))
                    }
                })
                .await
        }
        Command::Verify { file } => {
            let report = match &file {
                Some(path) => verify_file(path)?,
                None => client.post("/v1/audit/verify", &json!({})).await?,
            };
            verdict(out, &report)
        }
    }
}

fn verdict(out: Out, report: &AuditReport) -> Result<(), Failure> {
    if let Some(problem) = &report.problem {
        if out.is_json() {
            out.show(report, |_| String::new())?;
        }
        let held = count(report.records, "record");
        return Err(Failure::Failed(format!(
            "the audit log does not hold: {problem} ({held} before it are whole)"
        )));
    }
    out.show(report, |report| {
        format!(
            "{}, every one whole and in its place\nhead {}",
            count(report.records, "record"),
            report.head
        )
    })
}

/// Follows the chain of a file, record by record.
fn verify_file(path: &Path) -> Result<AuditReport, Failure> {
    let doing = || Failure::doing(format!("cannot read {}", path.display()));
    let mut reader = BufReader::new(File::open(path).map_err(doing())?);
    let mut chain = Chain::default();
    let mut problem = None;
    while problem.is_none() {
        let mut line = Vec::new();
        let read = reader
            .by_ref()
            .take(MAX_RECORD)
            .read_until(b'\n', &mut line)
            .map_err(doing())?;
        if read == 0 {
            break;
        }
        problem = follow(&mut chain, &line).err();
    }
    if problem.is_none() && chain.seq == 0 {
        note("mayfly: note: the file is empty");
    }
    Ok(AuditReport {
        records: chain.seq,
        head: chain.hash,
        problem,
    })
}

fn follow(chain: &mut Chain, line: &[u8]) -> Result<(), String> {
    let number = chain.seq + 1;
    let Some(line) = line.strip_suffix(b"\n") else {
        return Err(format!(
            "line {number}: it has no end: the last record was cut off"
        ));
    };
    let text = std::str::from_utf8(line).map_err(|_| format!("line {number}: it is not text"))?;
    chain
        .follow(text)
        .map(drop)
        .map_err(|broken| broken.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::audit::{Event, GENESIS, Record, to_line};

    fn file_of(lines: &[String], end: &str) -> PathBuf {
        let unique = format!("mayfly-cli-audit-{}-{:p}", std::process::id(), lines);
        let path = std::env::temp_dir().join(unique);
        std::fs::write(&path, lines.join("\n") + end).unwrap();
        path
    }

    fn chain_of(count: u64) -> Vec<String> {
        let mut prev = GENESIS.to_owned();
        let mut lines = Vec::new();
        for seq in 1..=count {
            let event = Event::Started {
                version: seq.to_string(),
            };
            let record = Record {
                seq,
                time: "2026-01-01T00:00:00.000Z".into(),
                prev,
                mac: String::new(),
                event,
            };
            let (line, hash) = to_line(&record).unwrap();
            lines.push(line);
            prev = hash;
        }
        lines
    }

    fn verify(lines: &[String], end: &str) -> AuditReport {
        let path = file_of(lines, end);
        let report = verify_file(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        report
    }

    #[test]
    fn a_whole_file_holds() {
        let report = verify(&chain_of(4), "\n");
        assert_eq!((report.records, report.problem), (4, None));
    }

    #[test]
    fn an_edited_and_a_cut_file_do_not() {
        let mut lines = chain_of(4);
        assert!(verify(&lines, "").problem.unwrap().contains("line 4"));
        lines[1] = lines[1].replace("\"2\"", "\"9\"");
        let report = verify(&lines, "\n");
        assert_eq!(report.records, 1);
        assert!(report.problem.unwrap().contains("line 2"));
    }
}
