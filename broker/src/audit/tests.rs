//! The log against crashes, a full disk, and those who edit it.

use super::*;
use crate::clock::SystemClock;
use crate::testing::TempDir;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{Duration, Instant};

struct Place {
    dir: TempDir,
    key: AuditKey,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: TempDir::new(),
            key: AuditKey::derive(&RootKeys::generate().unwrap()).unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.jsonl")
    }

    fn open_with(&self, known: Option<Head>, accept_loss: bool) -> Result<AuditLog, AuditError> {
        let opening = Opening {
            path: self.path(),
            key: self.key.clone(),
            known,
            accept_loss,
        };
        AuditLog::open(opening, Arc::new(SystemClock))
    }

    fn open(&self, known: &Head) -> AuditLog {
        self.open_with(Some(known.clone()), false).unwrap()
    }

    fn refusal(&self, known: &Head) -> String {
        let opened = self.open_with(Some(known.clone()), false);
        opened.err().expect("it opened").to_string()
    }

    /// A log with `count` records, closed again.
    async fn with_records(count: u64) -> (Self, Head) {
        Self::with_versions(1..=count).await
    }

    /// A log with one record for each version. Records of the same version and millisecond are the
    /// same, so logs that must differ need versions that do.
    async fn with_versions(versions: impl Iterator<Item = u64>) -> (Self, Head) {
        let place = Self::new();
        let log = place.open_with(None, false).unwrap();
        for (version, number) in versions.zip(1..) {
            assert_eq!(log.append(started(version)).await.unwrap(), number);
        }
        let head = log.head().get();
        (place, head)
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn write(&self, lines: &[String]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(self.path(), text).unwrap();
    }

    fn add(&self, bytes: &[u8]) {
        let mut file = OpenOptions::new().append(true).open(self.path()).unwrap();
        file.write_all(bytes).unwrap();
    }
}

fn started(number: u64) -> Event {
    Event::Started {
        version: format!("{number}"),
    }
}

async fn assert_whole(log: &AuditLog, records: u64) {
    let report = log.verify().await.unwrap();
    assert_eq!((report.problem, report.records), (None, records));
}

#[tokio::test]
async fn a_log_goes_on_where_it_ended() {
    let (place, head) = Place::with_records(3).await;
    // The store may know of an older record: it is told with its own commits only.
    for known in [Head::default(), head.clone()] {
        let log = place.open(&known);
        assert_eq!(log.head().get(), head);
        assert_whole(&log, 3).await;
        assert!(
            place.open_with(None, false).is_err(),
            "two brokers, one log"
        );
    }
    let log = place.open(&head);
    let mut lines = log.subscribe();
    assert_eq!(log.append(started(4)).await.unwrap(), 4);
    assert_eq!(*lines.recv().await.unwrap(), *place.lines()[3]);
    assert_eq!(log.tail(2).await.unwrap(), place.lines()[2..]);
    assert_eq!(log.tail(99).await.unwrap(), place.lines());
    assert_eq!(log.tail(0).await.unwrap().len(), 0);
    assert_whole(&log, 4).await;
}

#[tokio::test]
async fn a_torn_record_goes_on_record() {
    let (place, head) = Place::with_records(3).await;
    let line = place.lines()[2].clone();
    for torn in [&line.as_bytes()[..1], &line.as_bytes()[..line.len() - 1]] {
        place.add(torn);
        let log = place.open(&head);
        let last = log.tail(1).await.unwrap().remove(0);
        assert!(last.contains(&format!("\"dropped_bytes\":{}", torn.len())));
        let records = log.head().get().seq;
        assert_whole(&log, records).await;
    }
    // Only the line feed is missing: the record is whole, and stays.
    let bytes = std::fs::read(place.path()).unwrap();
    std::fs::write(place.path(), &bytes[..bytes.len() - 1]).unwrap();
    let log = place.open(&head);
    assert_eq!(std::fs::read(place.path()).unwrap(), bytes);
    assert_eq!(log.append(started(0)).await.unwrap(), 6);
    assert_whole(&log, 6).await;
}

#[tokio::test]
async fn records_missing_at_the_end_are_refused_until_accepted_on_record() {
    let (place, head) = Place::with_records(5).await;
    place.write(&place.lines()[..3]);
    assert!(place.refusal(&head).contains("--accept-audit-loss"));
    let log = place.open_with(Some(head.clone()), true).unwrap();
    let last = log.tail(1).await.unwrap().remove(0);
    assert!(last.contains("records 4 to at least 5 are missing"));
    assert_whole(&log, 4).await;
    drop(log);
    std::fs::remove_file(place.path()).unwrap();
    assert!(matches!(
        place.open_with(Some(head), false),
        Err(AuditError::Lost {
            expected: 5,
            found: 0,
            ..
        })
    ));
}

/// What a store that was put back from an older copy looks like, and a broker that was killed between
/// record and lease.
#[tokio::test]
async fn leases_that_the_store_may_not_have_go_on_record() {
    let (place, head) = Place::with_records(2).await;
    let log = place.open(&head);
    let evidence = crate::testing::evidence(1);
    let issued = |again| Event::Issued {
        who: mayfly_wire::audit::Who {
            workload: evidence.workload.clone(),
            name: evidence.display_name(),
            node: evidence.node.clone(),
            assurance: "kernel".to_owned(),
            lacking: vec![],
        },
        credential: "a".parse().unwrap(),
        lease: mayfly_wire::LeaseId::from_random([1; 16]),
        expires_at: 1,
        policies: vec![],
        again,
    };
    log.append(issued(true)).await.unwrap();
    log.append(issued(false)).await.unwrap();
    let newest = log.head().get();
    drop(log);
    assert_eq!(place.open(&newest).head().get().seq, 4);
    let log = place.open(&head);
    let last = log.tail(1).await.unwrap().remove(0);
    assert!(last.contains("1 leases on record are newer"), "{last}");
    assert_whole(&log, 5).await;
}

#[tokio::test]
async fn edited_removed_and_reordered_records_are_found() {
    let (place, head) = Place::with_records(6).await;
    let log = place.open(&head);
    let lines = place.lines();
    let mut edited = lines.clone();
    edited[2] = edited[2].replace("\"version\":\"3\"", "\"version\":\"9\"");
    let mut removed = lines.clone();
    removed.remove(2);
    let mut reordered = lines.clone();
    reordered.swap(2, 3);
    for (lines, problem) in [
        (edited, "line 3: the record was edited"),
        (removed, "line 3: expected record 3, found 4"),
        (reordered, "line 3: expected record 3, found 4"),
        (lines[..5].to_vec(), "ends with record 5"),
    ] {
        place.write(&lines);
        let report = log.verify().await.unwrap();
        let found = report.problem.unwrap();
        assert!(found.contains(problem), "{found}");
    }
}

/// Whoever has no key can make a chain that holds, but not the MACs in it.
#[tokio::test]
async fn a_chain_made_anew_without_the_key_is_found() {
    let (place, head) = Place::with_records(3).await;
    let (other, other_head) = Place::with_records(3).await;
    std::fs::copy(other.path(), place.path()).unwrap();
    assert!(place.refusal(&Head::default()).contains("MAC is not ours"));
    assert!(place.refusal(&head).contains("line 1"));
    drop(other);
    // With MACs that are right, but not the records that the store knows of.
    let (place, _) = Place::with_versions(11..=13).await;
    assert!(
        place
            .refusal(&other_head)
            .contains("not the one that was written")
    );
}

#[tokio::test]
async fn the_end_of_a_long_log_is_checked_without_reading_all_of_it() {
    let place = Place::new();
    let log = place.open_with(None, false).unwrap();
    let long = "x".repeat(10_000);
    let mut known = Head::default();
    for number in 1..=100 {
        let event = Event::Started {
            version: long.clone(),
        };
        log.append(event).await.unwrap();
        if number == 60 {
            known = log.head().get();
        }
    }
    let tail = log.tail(30).await.unwrap();
    assert_eq!(tail, place.lines()[70..]);
    let head = log.head().get();
    drop(log);
    // The first record is not ours any more: only a full check reads it.
    let mut lines = place.lines();
    lines[0] = lines[0].replace('x', "y");
    place.write(&lines);
    for known in [&head, &known] {
        let log = place.open(known);
        assert_eq!(log.head().get(), head);
        assert!(log.verify().await.unwrap().problem.is_some());
    }
    assert!(place.refusal(&Head::default()).contains("line 1"));
}

#[tokio::test]
async fn a_record_that_is_too_long_is_refused_alone() {
    let (place, head) = Place::with_records(1).await;
    let log = place.open(&head);
    let long = Event::Started {
        version: "x".repeat(MAX_RECORD),
    };
    let (refused, kept) = tokio::join!(log.append(long), log.append(started(2)));
    assert!(matches!(refused, Err(AuditError::TooLong(_))));
    assert_eq!(kept.unwrap(), 2);
    assert_whole(&log, 2).await;
}

/// On a tmpfs of 64 KiB: a full disk refuses, leaves only whole records, and hinders nothing once there is
/// room again.
#[test]
fn a_full_disk_refuses_and_leaves_whole_records() {
    use nix::mount::{MsFlags, mount};
    let on_small_disk = || {
        // The mount is seen by this thread and those that it starts, and goes with them.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("this test needs root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let place = Place::new();
        let options = Some("size=64k");
        mount(
            Some("tmpfs"),
            place.dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let log = place.open_with(None, false).unwrap();
            let filler = place.dir.path().join("filler");
            std::fs::write(&filler, vec![1; 32 * 1024]).unwrap();
            let mut written = 0;
            let error = loop {
                match log.append(started(written)).await {
                    Ok(seq) => written = seq,
                    Err(error) => break error,
                }
                assert!(written < 10_000, "the disk never fills");
            };
            assert!(matches!(error, AuditError::File { .. }), "{error}");
            assert!(log.append(started(0)).await.is_err());
            assert_eq!(place.lines().len() as u64, written);
            assert_whole(&log, written).await;
            std::fs::remove_file(&filler).unwrap();
            assert_eq!(log.append(started(0)).await.unwrap(), written + 1);
            assert_whole(&log, written + 1).await;
        });
        nix::mount::umount(place.dir.path()).unwrap();
    };
    std::thread::spawn(on_small_disk).join().unwrap();
}

/// Prints, for 1, 8 and 64 callers at once, how many records become durable in a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_share_their_sync() {
    let place = Place::new();
    let log = Arc::new(place.open_with(None, false).unwrap());
    // Whatever else the disk does may be in the way of one attempt.
    let mut all = Vec::new();
    while !all.iter().any(|rates: &[u64; 3]| rates[2] > rates[0]) {
        assert!(all.len() < 5, "64 callers must share syncs: {all:?}");
        all.push(rates(&log).await);
    }
    let records = log.head().get().seq;
    assert_whole(&log, records).await;
}

async fn rates(log: &Arc<AuditLog>) -> [u64; 3] {
    let mut rates = [0; 3];
    for (round, callers) in [1, 8, 64].into_iter().enumerate() {
        let until = Instant::now() + Duration::from_millis(400);
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let log = log.clone();
                tokio::spawn(async move {
                    let mut done = 0_u64;
                    while Instant::now() < until {
                        log.append(started(caller)).await.unwrap();
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let mut done = 0;
        for task in tasks {
            done += task.await.unwrap();
        }
        let rate = done * 1000 / 400;
        println!("audit records a second, {callers} callers: {rate}");
        rates[round] = rate;
    }
    rates
}

#[test]
fn the_hash_of_a_value_is_keyed_and_of_its_fields_alone() {
    let keys = RootKeys::generate().unwrap();
    let key = AuditKey::derive(&keys).unwrap();
    let hash = |key: &AuditKey, pairs: &[(&str, &str)]| {
        let field = |(name, value): &(&str, &str)| {
            (name.parse().unwrap(), Secret::from((*value).to_owned()))
        };
        key.value_hmac(&pairs.iter().map(field).collect()).unwrap()
    };
    let one = hash(&key, &[("a", "xy"), ("b", "z")]);
    assert_eq!(one, hash(&key, &[("b", "z"), ("a", "xy")]));
    assert_ne!(one, hash(&key, &[("a", "x"), ("b", "yz")]));
    assert_ne!(one, hash(&key, &[("a", "xy")]));
    let other = AuditKey::derive(&RootKeys::generate().unwrap()).unwrap();
    assert_ne!(one, hash(&other, &[("a", "xy"), ("b", "z")]));
}
