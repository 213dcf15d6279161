//! The audit file at start: is its end what the broker wrote last?

use super::{AuditError, AuditKey, Head, Opening, file_error, verify};
use crate::unseal::sync_parent;
use mayfly_wire::audit::{Chain, Event, Record};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// First step of a search backwards.
const STEP: u64 = 64 * 1024;

pub(super) struct Opened {
    pub(super) file: File,
    /// Where the next record goes.
    pub(super) end: u64,
    pub(super) head: Head,
    /// What was done to the end of the file, to be put on record.
    pub(super) repaired: Option<Event>,
}

pub(super) fn open(opening: Opening) -> Result<Opened, AuditError> {
    let path = &opening.path;
    let at = |error| file_error(path, error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(at)?;
    file.try_lock().map_err(|error| at(error.into()))?;
    let metadata = file.metadata().map_err(at)?;
    if !metadata.is_file() || metadata.mode() & 0o022 != 0 {
        return Err(AuditError::Broken {
            path: path.clone(),
            problem: "expected a regular file that its owner alone can write (chmod 600)".into(),
        });
    }
    sync_parent(path).map_err(at)?;
    let end = mend(&file, metadata.len()).map_err(at)?;
    let dropped = metadata.len().saturating_sub(end.whole);
    let known = opening.known.clone().unwrap_or_default();
    let last = last_of(&file, end.whole, &known, &opening.key).map_err(|error| match error {
        Unfit::File(error) => at(error),
        Unfit::Broken(problem) => AuditError::Broken {
            path: path.clone(),
            problem,
        },
    })?;
    let head = last.head;
    let mut details = Vec::new();
    if dropped > 0 {
        details.push("a record that a crash cut short, and nobody was answered for".to_owned());
    }
    if last.issued > 0 {
        details.push(format!(
            "{} leases on record are newer than what the store holds: the broker was stopped between \
             record and lease, or the store was put back from an older copy",
            last.issued
        ));
    }
    if head.seq < known.seq {
        if !opening.accept_loss {
            return Err(AuditError::Lost {
                path: path.clone(),
                expected: known.seq,
                found: head.seq,
            });
        }
        details.push(format!(
            "records {} to at least {} are missing; the operator accepted that",
            head.seq + 1,
            known.seq
        ));
    }
    if dropped > 0 {
        file.set_len(end.whole).map_err(at)?;
    }
    if end.add_line_feed {
        file.write_all_at(b"\n", end.whole).map_err(at)?;
    }
    let repaired = (!details.is_empty()).then(|| Event::Repaired {
        dropped_bytes: dropped,
        detail: details.join("; "),
    });
    Ok(Opened {
        file,
        end: end.whole + u64::from(end.add_line_feed),
        head,
        repaired,
    })
}

struct End {
    /// Bytes of whole records.
    whole: u64,
    /// The last record is whole but for its line feed.
    add_line_feed: bool,
}

/// Where the whole records end.
fn mend(file: &File, length: u64) -> io::Result<End> {
    let mut span = STEP;
    let tail = loop {
        let tail = read_back(file, length, span)?;
        if tail.contains(&b'\n') || span >= length {
            break tail;
        }
        span = span.saturating_mul(2);
    };
    let torn = tail.iter().rev().take_while(|byte| **byte != b'\n').count();
    let line = &tail[tail.len() - torn..];
    let is_whole = serde_json::from_slice::<Record>(line).is_ok();
    Ok(End {
        whole: length - if is_whole { 0 } else { torn as u64 },
        add_line_feed: is_whole,
    })
}

fn read_back(file: &File, end: u64, most: u64) -> io::Result<Vec<u8>> {
    let start = end.saturating_sub(most);
    let mut bytes = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

struct Last {
    head: Head,
    /// New leases recorded after the record that the store knows of. A lease is stored together with a
    /// record no older than its own, so the store does not have these.
    issued: u64,
}

enum Unfit {
    File(io::Error),
    Broken(String),
}

/// Follows the chain from the record that the store knows of (or from one before it) to the end.
fn last_of(file: &File, end: u64, known: &Head, key: &AuditKey) -> Result<Last, Unfit> {
    let mut span = STEP;
    loop {
        let bytes = read_back(file, end, span).map_err(Unfit::File)?;
        let is_all = span >= end;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        if !is_all {
            // Its first part may be missing.
            lines.next();
        }
        let mut lines = lines.peekable();
        let first = lines.peek().and_then(|line| verify::seq_and_prev(line));
        // The line of the known record must be among them, unless the file ends before it.
        let reaches = first.as_ref().is_some_and(|(seq, _)| *seq <= known.seq);
        if !is_all && !reaches {
            span = span.saturating_mul(2);
            continue;
        }
        let mut chain = match first {
            Some((seq, prev)) if !is_all => Chain {
                seq: seq.saturating_sub(1),
                hash: prev,
            },
            _ => Chain::default(),
        };
        let mut issued = 0;
        for line in lines {
            let record = verify::check(&mut chain, line, key).map_err(Unfit::Broken)?;
            let is_new = matches!(record.event, Event::Issued { again: false, .. });
            issued += u64::from(is_new && record.seq > known.seq);
            if chain.seq == known.seq && chain.hash != known.hash {
                return Err(Unfit::Broken(format!(
                    "record {} is not the one that was written: the file was put together anew, or \
                     it belongs to another store",
                    chain.seq
                )));
            }
        }
        let (seq, hash) = (chain.seq, chain.hash);
        return Ok(Last {
            head: Head { seq, hash },
            issued,
        });
    }
}

/// The last `count` lines before `end`.
pub(super) fn tail(path: &Path, end: u64, count: usize) -> io::Result<Vec<String>> {
    let file = File::open(path)?;
    let mut span = STEP;
    loop {
        let bytes = read_back(&file, end, span)?;
        let feeds = bytes.iter().filter(|byte| **byte == b'\n').count();
        if feeds > count || span >= end {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(count);
            return Ok(lines[from..]
                .iter()
                .map(|line| (*line).to_owned())
                .collect());
        }
        span = span.saturating_mul(2);
    }
}
