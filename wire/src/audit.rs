//! The audit record, and the chain that holds the records together.
//!
//! One record is one line of JSON that ends in `,"hash":"…"}`. The hash is the SHA-256 of all of the
//! line before `,"hash":"`, and that text holds, as `prev`, the hash of the record before. So the chain
//! is checked over the very bytes on disk, with no canonical form to agree on. The first record's
//! `prev` is 64 zeros.

use crate::link::{NodeRefusal, Overdue};
use crate::name::{CredentialName, KvPath};
use crate::publish::PublishFailure;
use crate::workload::{LeaseId, WorkloadKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// `prev` of the first record.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const TAIL: &str = ",\"hash\":\"";

/// One audit record, without its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts up from 1 without a gap.
    pub seq: u64,
    /// RFC 3339, UTC, milliseconds.
    pub time: String,
    /// Hash of the record before, in hexadecimal.
    pub prev: String,
    /// HMAC-SHA-256 of `seq`, `time`, `prev` and the event under the broker's audit key, in
    /// hexadecimal: without the key nobody can make a chain anew.
    pub mac: String,
    /// What happened.
    pub event: Event,
}

/// Who a record is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The workload's key.
    pub workload: WorkloadKey,
    /// What people call it.
    pub name: String,
    /// The node that attested it.
    pub node: String,
    /// `kernel`, `inspected` or `registered`.
    pub assurance: String,
    /// What the node's kernel lacked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<String>,
}

/// What happened. Secret values appear at most as keyed hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The broker is up.
    Started {
        /// Its version.
        version: String,
    },
    /// The log itself was set right when the broker started.
    Repaired {
        /// Bytes of a record that a crash cut short, which were removed.
        dropped_bytes: u64,
        /// What was found, and who accepted it.
        detail: String,
    },
    /// A credential is about to leave under this lease.
    Issued {
        /// To whom.
        who: Who,
        /// Which.
        credential: CredentialName,
        /// Under which lease.
        lease: LeaseId,
        /// Milliseconds since the Unix epoch.
        expires_at: u64,
        /// The policies that permitted it.
        policies: Vec<String>,
        /// Whether the lease existed already (a sidecar that restarted).
        again: bool,
    },
    /// A lease was extended, or its content replaced by a newer version.
    Renewed {
        /// Whose.
        workload: WorkloadKey,
        /// Which.
        credential: CredentialName,
        /// The lease.
        lease: LeaseId,
        /// Milliseconds since the Unix epoch.
        expires_at: u64,
    },
    /// Policy refused.
    Denied {
        /// Whom.
        who: Who,
        /// What; absent when all was asked for and nothing granted.
        credential: Option<CredentialName>,
        /// The policies that forbade it; empty when none permitted it.
        policies: Vec<String>,
    },
    /// An engine could not make what policy granted.
    Failed {
        /// For whom.
        who: Who,
        /// What.
        credential: CredentialName,
        /// Why, for the operator.
        reason: String,
    },
    /// The sidecar published a bundle.
    Acknowledged {
        /// Whose.
        workload: WorkloadKey,
        /// The bundle's generation.
        generation: u64,
    },
    /// A sidecar says that it cannot publish, which can be the mark of an attack, or that what it
    /// published has ended without being renewed.
    PublishFailed {
        /// Whose.
        who: Who,
        /// What it says.
        failure: PublishFailure,
    },
    /// A node found files in a volume of its own that had outlived what they hold.
    Overdue {
        /// Which node.
        node: String,
        /// What it did.
        report: Box<Overdue>,
    },
    /// A node refused someone before policy was asked.
    NodeRefused {
        /// Which node.
        node: String,
        /// What it knows.
        refusal: Box<NodeRefusal>,
    },
    /// A workload died.
    Died {
        /// Which.
        workload: WorkloadKey,
    },
    /// A lease ended.
    Ended {
        /// Whose.
        workload: WorkloadKey,
        /// Which credential.
        credential: CredentialName,
        /// The lease.
        lease: LeaseId,
        /// `died`, `expired`, `withdrawn`, `replaced`, `revoked`, `never issued` or `forgotten`.
        reason: String,
    },
    /// An engine could not end a lease when it had to. It is tried again until it can.
    NotEnded {
        /// Whose.
        workload: WorkloadKey,
        /// Which credential.
        credential: CredentialName,
        /// The lease.
        lease: LeaseId,
        /// Why it must end, as above.
        reason: String,
        /// Why it could not be, for the operator.
        problem: String,
    },
    /// An operator did something.
    Operator {
        /// `uid:0`.
        operator: String,
        /// `apply`, `kv.put`, `kv.get`, `kv.delete`, `node.add`, …
        action: String,
        /// What it was done to.
        resource: String,
        /// Whether policy let them.
        allowed: bool,
        /// The version that was made or read, where there are versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
        /// HMAC-SHA-256 of the value under the audit key, in hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value_hmac: Option<String>,
    },
    /// A value in the kv engine reached its holders.
    Pushed {
        /// Where it stands.
        path: KvPath,
        /// Its version.
        version: u64,
        /// How many sessions got it.
        sessions: u64,
    },
}

/// The text of `record` that its MAC covers.
///
/// # Errors
/// When the record cannot be written as JSON.
pub fn mac_input(record: &Record) -> Result<String, serde_json::Error> {
    serde_json::to_string(&(record.seq, &record.time, &record.prev, &record.event))
}

/// Writes a record as its line, without the line feed, and gives its hash.
///
/// # Errors
/// When the record cannot be written as JSON.
pub fn to_line(record: &Record) -> Result<(String, String), serde_json::Error> {
    let mut line = serde_json::to_string(record)?;
    line.pop();
    let hash = hex(&Sha256::digest(&line));
    line.push_str(TAIL);
    line.push_str(&hash);
    line.push_str("\"}");
    Ok((line, hash))
}

/// Why a chain does not hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Broken {
    /// The line is not a record at all.
    #[error("line {line}: not an audit record: {reason}")]
    NotARecord {
        /// Counts from 1.
        line: u64,
        /// Why.
        reason: String,
    },
    /// The line's own hash does not fit its text.
    #[error("line {line}: the record was edited: its hash does not fit its text")]
    Edited {
        /// Counts from 1.
        line: u64,
    },
    /// The record does not follow the one before.
    #[error(
        "line {line}: expected record {expected}, found {found}, which does not follow the one \
         before: a record was removed, added or moved"
    )]
    OutOfOrder {
        /// Counts from 1.
        line: u64,
        /// The sequence number that should stand here.
        expected: u64,
        /// The one that does.
        found: u64,
    },
}

/// Follows a chain, line by line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Sequence number of the last record; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            seq: 0,
            hash: GENESIS.to_owned(),
        }
    }
}

impl Chain {
    /// Takes the next line (without its line feed) and gives its record.
    ///
    /// # Errors
    /// [`Broken`], which says what is wrong with this line. The chain then stays where it was.
    pub fn follow(&mut self, text: &str) -> Result<Record, Broken> {
        let line = self.seq + 1;
        let not_a_record = |reason: String| Broken::NotARecord { line, reason };
        let record: Record =
            serde_json::from_str(text).map_err(|error| not_a_record(error.to_string()))?;
        let (body, tail) = text
            .rsplit_once(TAIL)
            .ok_or_else(|| not_a_record("it does not end in its hash".to_owned()))?;
        let hash = hex(&Sha256::digest(body));
        if tail.strip_suffix("\"}") != Some(&hash) {
            return Err(Broken::Edited { line });
        }
        if record.seq != line || record.prev != self.hash {
            return Err(Broken::OutOfOrder {
                line,
                expected: line,
                found: record.seq,
            });
        }
        self.seq = record.seq;
        self.hash = hash;
        Ok(record)
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain_of(count: u64) -> Vec<String> {
        let mut prev = GENESIS.to_owned();
        (1..=count)
            .map(|seq| {
                let event = Event::Started {
                    version: format!("{seq}"),
                };
                let record = Record {
                    seq,
                    time: "t".into(),
                    prev: prev.clone(),
                    mac: String::new(),
                    event,
                };
                let (line, hash) = to_line(&record).unwrap();
                prev = hash;
                line
            })
            .collect()
    }

    fn follow(lines: &[String]) -> Result<u64, Broken> {
        let mut chain = Chain::default();
        for line in lines {
            chain.follow(line)?;
        }
        Ok(chain.seq)
    }

    #[test]
    fn an_untouched_chain_holds() {
        assert_eq!(follow(&chain_of(5)), Ok(5));
    }

    #[test]
    fn an_edited_record_is_found() {
        let mut lines = chain_of(5);
        lines[2] = lines[2].replace("\"version\":\"3\"", "\"version\":\"4\"");
        assert_eq!(follow(&lines), Err(Broken::Edited { line: 3 }));
    }

    #[test]
    fn a_removed_record_is_found() {
        let mut lines = chain_of(5);
        lines.remove(2);
        assert_eq!(
            follow(&lines),
            Err(Broken::OutOfOrder {
                line: 3,
                expected: 3,
                found: 4
            })
        );
    }

    #[test]
    fn a_reordered_record_is_found() {
        let mut lines = chain_of(5);
        lines.swap(1, 2);
        assert!(matches!(
            follow(&lines),
            Err(Broken::OutOfOrder { line: 2, .. })
        ));
    }

    #[test]
    fn something_else_is_found() {
        assert!(matches!(
            follow(&["{}".to_owned()]),
            Err(Broken::NotARecord { line: 1, .. })
        ));
    }
}
