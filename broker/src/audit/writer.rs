//! The thread that writes: all that waits goes out in one write and one fdatasync.

use super::{Append, AuditError, AuditKey, Head, HeadCell, MAX_RECORD, file_error};
use crate::clock::Clock;
use mayfly_wire::audit::{Event, Record, mac_input, to_line};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tokio::sync::{broadcast, mpsc};

/// Most records of one write.
const BATCH: usize = 1024;
const TIME: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Whether something has failed that must be set right first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    No,
    /// Part of a record may stand beyond `end`.
    Write,
    /// A sync failed. The kernel may have dropped the pages and will not say so again (fsync(2)), so
    /// nothing here can tell what is on the disk.
    Sync,
}

pub(super) struct Writer {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Where the next record goes.
    pub(super) end: u64,
    pub(super) head: Head,
    pub(super) key: AuditKey,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) durable: HeadCell,
    pub(super) lines: broadcast::Sender<Arc<str>>,
    pub(super) failed: Failed,
}

impl Writer {
    pub(super) fn run(mut self, mut waiting: mpsc::Receiver<Append>) {
        let mut batch = Vec::new();
        while waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
            let (events, answers): (Vec<_>, Vec<_>) = batch
                .drain(..)
                .map(|append| (append.event, append.done))
                .unzip();
            for (result, answer) in self.append_all(events).into_iter().zip(answers) {
                // Who asked may have gone; the record stands all the same.
                let _ = answer.send(result);
            }
        }
    }

    /// Writes the events and gives, for each, its number or why it is not in the log.
    pub(super) fn append_all(&mut self, events: Vec<Event>) -> Vec<Result<u64, AuditError>> {
        let time = self.time();
        let mut head = self.head.clone();
        let mut buffer = String::new();
        let mut lines = Vec::with_capacity(events.len());
        let mut results: Vec<Result<u64, AuditError>> = Vec::with_capacity(events.len());
        for event in events {
            let made = self.line(&head, &time, event);
            results.push(made.map(|(line, next)| {
                buffer.push_str(&line);
                buffer.push('\n');
                lines.push(line);
                head = next;
                head.seq
            }));
        }
        if lines.is_empty() {
            return results;
        }
        if let Err(error) = self.write(buffer.as_bytes()) {
            let refuse = |result: Result<u64, _>| result.and_then(|_| Err(error.clone()));
            return results.into_iter().map(refuse).collect();
        }
        self.end += buffer.len() as u64;
        self.head = head;
        self.durable.set(self.head.clone(), self.end);
        for line in lines {
            // Nobody may be listening.
            let _ = self.lines.send(line.into());
        }
        results
    }

    fn line(&self, after: &Head, time: &str, event: Event) -> Result<(String, Head), AuditError> {
        let unmade = |error: &dyn std::fmt::Display| AuditError::Unmade(error.to_string());
        let mut record = Record {
            seq: after.seq + 1,
            time: time.to_owned(),
            prev: after.hash.clone(),
            mac: String::new(),
            event,
        };
        let text = mac_input(&record).map_err(|error| unmade(&error))?;
        record.mac = self.key.mac(&text).map_err(|error| unmade(&error))?;
        let (line, hash) = to_line(&record).map_err(|error| unmade(&error))?;
        if line.len() >= MAX_RECORD {
            return Err(AuditError::TooLong(line.len()));
        }
        let seq = record.seq;
        Ok((line, Head { seq, hash }))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), AuditError> {
        match self.failed {
            Failed::No => {}
            Failed::Write => self.cut()?,
            Failed::Sync => return Err(AuditError::Unsynced(self.path.clone())),
        }
        if let Err(error) = self.file.write_all_at(bytes, self.end) {
            self.failed = Failed::Write;
            // If this fails too, the next append tries again before it writes.
            let _ = self.cut();
            tracing::error!(path = %self.path.display(), %error, "audit records cannot be written");
            return Err(file_error(&self.path, error));
        }
        if let Err(error) = self.file.sync_data() {
            self.failed = Failed::Sync;
            tracing::error!(path = %self.path.display(), %error, "audit records cannot be synced");
            return Err(AuditError::Unsynced(self.path.clone()));
        }
        Ok(())
    }

    /// Takes away what a failed write left of its records.
    fn cut(&mut self) -> Result<(), AuditError> {
        let cut = self.file.set_len(self.end);
        cut.map_err(|error: io::Error| file_error(&self.path, error))?;
        self.failed = Failed::No;
        Ok(())
    }

    /// RFC 3339, UTC, milliseconds.
    fn time(&self) -> String {
        let nanoseconds = i128::from(self.clock.now_ms()) * 1_000_000;
        OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
            .ok()
            .and_then(|time| time.format(TIME).ok())
            .unwrap_or_default()
    }
}
