//! What is on record of leases, read as it grows.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Seek as _, SeekFrom};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::Broker;
use mayfly_wire::audit::{Chain, Event};

/// The credential that is a stored value, and has no account anywhere.
pub const VALUE: &str = "plain";

/// How often each lease began and ended, over all restarts of a broker.
#[derive(Default)]
pub struct Record {
    chain: Chain,
    read: u64,
    leases: BTreeMap<String, (u32, u32)>,
    /// Those of the stored value.
    values: BTreeSet<String>,
    /// Why leases ended, how often.
    pub reasons: BTreeMap<String, u32>,
    /// Ends that were tried in vain.
    pub not_ended: u32,
}

impl Record {
    /// Reads on from where it was, and checks that the chain holds.
    pub fn read_on(&mut self, broker: &Broker) -> Result<()> {
        let mut file = std::fs::File::open(broker.state_dir().join("audit.jsonl"))?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += u64::try_from(whole)?;
        for line in text[..whole].lines() {
            let record = self.chain.follow(line);
            match record.with_context(|| format!("the record {line}"))?.event {
                Event::Issued {
                    lease,
                    credential,
                    again: false,
                    ..
                } => {
                    self.of(lease.as_str()).0 += 1;
                    if credential.as_str() == VALUE {
                        self.values.insert(lease.to_string());
                    }
                }
                Event::Ended { lease, reason, .. } => {
                    self.of(lease.as_str()).1 += 1;
                    *self.reasons.entry(reason).or_default() += 1;
                }
                Event::NotEnded { .. } => self.not_ended += 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn of(&mut self, lease: &str) -> &mut (u32, u32) {
        self.leases.entry(lease.to_owned()).or_default()
    }

    /// How many leases began.
    pub fn begun(&self) -> usize {
        self.leases.values().filter(|counts| counts.0 > 0).count()
    }

    /// Each of these began once and has not ended, and each other that began has ended. But the record of
    /// a stored value's lease comes before the lease, which a crash can leave out: such never was.
    pub fn is_of<'a>(&self, live: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut open = self.leases.clone();
        for lease in live {
            let counts = open.remove(lease);
            ensure!(
                counts == Some((1, 0)),
                "{lease} lives, and on record it began and ended so often: {counts:?}"
            );
        }
        let twice = self.leases.iter().find(|(_, counts)| counts.0 > 1);
        ensure!(twice.is_none(), "it began more than once: {twice:?}");
        let never_ended =
            (open.iter()).find(|(lease, counts)| counts.1 == 0 && !self.values.contains(*lease));
        ensure!(
            never_ended.is_none(),
            "it is gone, and on record it began and ended so often: {never_ended:?}"
        );
        Ok(())
    }
}
