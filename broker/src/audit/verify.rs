//! Checks records: the chain, and our MAC on each.

use super::{AuditKey, Head, MAX_RECORD};
use mayfly_wire::admin::AuditReport;
use mayfly_wire::audit::{Chain, Record, mac_input};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;

/// Takes the next line, or says what is wrong with it.
pub(super) fn check(chain: &mut Chain, line: &str, key: &AuditKey) -> Result<Record, String> {
    let record = chain.follow(line).map_err(|broken| broken.to_string())?;
    let expected = mac_input(&record)
        .map_err(|error| error.to_string())
        .and_then(|text| key.mac(&text).map_err(|error| error.to_string()))?;
    if record.mac != expected {
        return Err(format!(
            "line {}: the record's MAC is not ours: the record was made without the broker's key, or \
             the file belongs to another store",
            record.seq
        ));
    }
    Ok(record)
}

/// The number of a record and the hash that it follows.
pub(super) fn seq_and_prev(line: &str) -> Option<(u64, String)> {
    let record: Record = serde_json::from_str(line).ok()?;
    Some((record.seq, record.prev))
}

pub(super) fn verify(
    path: &Path,
    end: u64,
    key: &AuditKey,
    head: &Head,
) -> io::Result<AuditReport> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?.take(end));
    let mut chain = Chain::default();
    let mut line = Vec::new();
    let mut problem = None;
    while problem.is_none() {
        line.clear();
        let most = 2 * MAX_RECORD as u64;
        let length = reader.by_ref().take(most).read_until(b'\n', &mut line)?;
        if length == 0 {
            break;
        }
        let text = std::str::from_utf8(&line).map_err(|error| error.to_string());
        let text = text.map(|text| text.strip_suffix('\n').unwrap_or(text));
        problem = text.and_then(|text| check(&mut chain, text, key)).err();
    }
    if problem.is_none() && (chain.seq, &chain.hash) != (head.seq, &head.hash) {
        problem = Some(format!(
            "the file ends with record {}, but record {} was written last: records were removed",
            chain.seq, head.seq
        ));
    }
    Ok(AuditReport {
        records: chain.seq,
        head: chain.hash,
        problem,
    })
}
