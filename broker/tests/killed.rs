//! An audit log whose process is killed again and again. In a test binary of its own: a child that was
//! forked and has not yet replaced its image holds the locks of every log that is open beside it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use mayfly_broker::audit::{AuditKey, AuditLog, Opening};
use mayfly_broker::clock::SystemClock;
use mayfly_broker::seal::RootKeys;
use mayfly_wire::Secret;
use mayfly_wire::audit::Event;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CHILD_PLACE: &str = "MAYFLY_TEST_AUDIT";

fn open(directory: &Path) -> AuditLog {
    let keys = Secret::from(std::fs::read(directory.join("keys")).unwrap());
    let opening = Opening {
        path: directory.join("audit.jsonl"),
        key: AuditKey::derive(&RootKeys::import(&keys).unwrap()).unwrap(),
        known: None,
        accept_loss: false,
    };
    AuditLog::open(opening, Arc::new(SystemClock)).unwrap()
}

/// Not a test by itself: the process that the next one kills. Says each number once it is durable.
#[test]
#[ignore = "the child of a_killed_writer_loses_nothing_that_it_said"]
fn child_that_appends() {
    let log = Arc::new(open(&PathBuf::from(std::env::var_os(CHILD_PLACE).unwrap())));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        for task in 0..8 {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                loop {
                    let started = Event::Started {
                        version: format!("{task}"),
                    };
                    let seq = log.append(started).await.unwrap();
                    let mut out = std::io::stdout();
                    writeln!(out, "durable {seq}").unwrap();
                }
            });
        }
        std::future::pending::<()>().await;
    });
}

#[tokio::test]
async fn a_killed_writer_loses_nothing_that_it_said() {
    let directory = std::env::temp_dir().join(format!("mayfly-killed-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let keys = RootKeys::generate().unwrap().export(None);
    std::fs::write(directory.join("keys"), keys.expose()).unwrap();
    let mut said = 0;
    for round in 1..=10 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("child_that_appends")
            .env(CHILD_PLACE, &directory)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut heard = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let Ok(line) = line else { break };
            let number = line
                .rsplit("durable ")
                .next()
                .and_then(|text| text.parse().ok());
            said = said.max(number.unwrap_or(0));
            heard += 1;
            if heard == 50 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let log = open(&directory);
        let head = log.head().get();
        assert!(head.seq >= said, "said {said}, found {}", head.seq);
        let report = log.verify().await.unwrap();
        assert_eq!((report.problem, report.records), (None, head.seq));
    }
    assert!(said > 100);
    std::fs::remove_dir_all(&directory).unwrap();
}
