//! Is the sidecar well? A pure judgement of what its status says.

use super::Found;

/// For how long a sidecar that is well may do nothing: three pings, or its longest wait between two
/// sessions, and some.
const QUIET_MS: u64 = 90_000;

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No process holds the lock.
    #[error("the sidecar is not running")]
    NotRunning,
    /// It holds the lock and does nothing.
    #[error("the sidecar has done nothing for {0} s")]
    Frozen(u64),
    /// There is no generation yet.
    #[error("nothing is published yet")]
    NothingPublished,
    /// Something that was asked for is not there.
    #[error("missing: {0}")]
    Missing(String),
    /// The last set could not be written.
    #[error("publishing failed: {0}")]
    NotPublished(String),
    /// Something is gone because nobody renewed it.
    #[error("expired: {0}")]
    Expired(String),
    /// Secrets should not be where they are.
    #[error("the directory will not do: {0}")]
    Unfit(String),
    /// An output could not be made.
    #[error("{0}: {1}")]
    Output(String, String),
    /// Something is kept past its end.
    #[error("stale: {0}")]
    Stale(String),
    /// Something is there although its time is over: nobody removed it.
    #[error("overdue: {0}")]
    Overdue(String),
    /// The application could not be told.
    #[error("not told: {0}: {1}")]
    NotTold(String, String),
    /// It was told, and does not say that it uses what it got.
    #[error("not acknowledged")]
    NotAcknowledged,
}

/// Judges. `live` asks only whether the process is there and moves.
#[must_use]
pub fn judge(found: &Found, now_ms: u64, live: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    let quiet = now_ms.saturating_sub(found.alive_at_ms);
    if !found.running {
        faults.push(Fault::NotRunning);
    } else if quiet > QUIET_MS {
        faults.push(Fault::Frozen(quiet / 1000));
    }
    if live {
        return faults;
    }
    let status = &found.status;
    if status.generation.is_none() {
        faults.push(Fault::NothingPublished);
    }
    if !status.missing.is_empty() {
        faults.push(Fault::Missing(status.missing.clone()));
    }
    if let Some(why) = &status.not_published {
        faults.push(Fault::NotPublished(why.clone()));
    }
    if !status.expired.is_empty() {
        faults.push(Fault::Expired(status.expired.join(", ")));
    }
    if let Some(why) = &status.unfit {
        faults.push(Fault::Unfit(why.clone()));
    }
    for failed in &status.failed {
        faults.push(Fault::Output(failed.path.clone(), failed.why.clone()));
    }
    for item in &status.items {
        if item.stale {
            faults.push(Fault::Stale(item.path.clone()));
        } else if item.expires_at_ms.saturating_add(5_000) < now_ms {
            faults.push(Fault::Overdue(item.path.clone()));
        }
    }
    for told in status.notify.iter().filter(|told| told.state == "failed") {
        let why = told.error.clone().unwrap_or_default();
        faults.push(Fault::NotTold(told.what.clone(), why));
    }
    if status.unacknowledged {
        faults.push(Fault::NotAcknowledged);
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::super::{Failed, Published, Status, Told};
    use super::*;

    fn well() -> Found {
        Found {
            status: Status {
                version: 1,
                connected: true,
                generation: Some("..gen-1".to_owned()),
                items: vec![Published {
                    path: "db".to_owned(),
                    expires_at_ms: 1_000_000,
                    stale: false,
                }],
                ..Status::default()
            },
            running: true,
            alive_at_ms: 900_000,
        }
    }

    #[test]
    fn one_that_is_well_has_no_fault() {
        assert!(judge(&well(), 950_000, false).is_empty());
        // A broker that is away is no fault while what is published is good.
        let mut alone = well();
        alone.status.connected = false;
        alone.status.error = Some("no answer".to_owned());
        assert!(judge(&alone, 950_000, false).is_empty());
    }

    #[test]
    fn each_fault_is_named() {
        type Change = fn(&mut Found);
        let cases: [(Change, Fault); 12] = [
            (|found| found.running = false, Fault::NotRunning),
            (|found| found.alive_at_ms = 850_000, Fault::Frozen(100)),
            (
                |found| found.status.generation = None,
                Fault::NothingPublished,
            ),
            (
                |found| found.status.missing = "x: denied".to_owned(),
                Fault::Missing("x: denied".to_owned()),
            ),
            (
                |found| {
                    found.status.failed.push(Failed {
                        path: "a".to_owned(),
                        why: "b".to_owned(),
                    });
                },
                Fault::Output("a".to_owned(), "b".to_owned()),
            ),
            (
                |found| found.status.not_published = Some("full".to_owned()),
                Fault::NotPublished("full".to_owned()),
            ),
            (
                |found| found.status.expired = vec!["a".to_owned(), "b".to_owned()],
                Fault::Expired("a, b".to_owned()),
            ),
            (
                |found| found.status.unfit = Some("swap".to_owned()),
                Fault::Unfit("swap".to_owned()),
            ),
            (
                |found| found.status.items[0].stale = true,
                Fault::Stale("db".to_owned()),
            ),
            (
                |found| found.status.items[0].expires_at_ms = 940_000,
                Fault::Overdue("db".to_owned()),
            ),
            (
                |found| {
                    found.status.notify.push(Told {
                        what: "signal SIGHUP".to_owned(),
                        state: "failed".to_owned(),
                        error: Some("gone".to_owned()),
                    });
                },
                Fault::NotTold("signal SIGHUP".to_owned(), "gone".to_owned()),
            ),
            (
                |found| found.status.unacknowledged = true,
                Fault::NotAcknowledged,
            ),
        ];
        for (number, (change, fault)) in cases.into_iter().enumerate() {
            let mut found = well();
            change(&mut found);
            assert_eq!(judge(&found, 950_000, false), [fault]);
            assert_eq!(judge(&found, 950_000, true).len(), usize::from(number < 2));
        }
    }
}
