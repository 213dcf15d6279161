//! A container that asks in a loop: it is held to its pace, another is served, and the audit log does
//! not grow by more than what was granted.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, Realm};

use super::app::{self, App};

/// What the node allows unless it is told otherwise.
const BURST: usize = 100;
const RATE: f64 = 20.0;
const TRIES: usize = 1500;

#[test]
fn a_container_that_loops_is_held_to_its_pace() -> Result<()> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    app::kv_credentials(&broker, &["first".into()], "")?;
    app::put(&broker, "first", b"value")?;
    let looping = App::start(&broker.workload_dir(), "")?;
    let other = App::start(&broker.workload_dir(), "")?;
    let url = "http://m/v1/credentials/first/value";
    let fetch = format!("curl -s --unix-socket /run/mayfly/workload.sock {url}");
    // One curl, many requests.
    let many = format!("{fetch}'?[1-{TRIES}]' -o /dev/null -w '%{{http_code}}\\n'");

    let audit = || -> Result<Vec<String>> {
        let text = std::fs::read_to_string(broker.state_dir().join("audit.jsonl"))?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    let before = audit()?.len();
    let start = Instant::now();
    let (codes, fetches) = std::thread::scope(|scope| {
        let codes = scope.spawn(|| looping.tell(&many));
        let mut fetches = 0;
        while !codes.is_finished() || fetches == 0 {
            let said = other.tell(&fetch)?;
            ensure!(said == "value", "the other container got {said:?}");
            fetches += 1;
            std::thread::sleep(Duration::from_millis(100));
        }
        let codes = codes.join();
        Ok((codes.unwrap_or_else(|_| Ok(String::new()))?, fetches))
    })?;
    let allowed = BURST + (start.elapsed().as_secs_f64() * RATE) as usize + 1;
    let count = |code: &str| codes.lines().filter(|line| *line == code).count();
    let (served, refused) = (count("200"), count("429"));
    println!("{served} served, {refused} refused, {fetches} fetches of another");
    ensure!(served + refused == TRIES, "{codes}");
    ensure!(
        (BURST..=allowed).contains(&served),
        "{served} were served, of {allowed} allowed"
    );

    let grown = audit()?.split_off(before);
    let noted = |line: &&String| line.contains("\"too_many_requests\"");
    ensure!(
        grown.iter().any(|line| noted(&line)),
        "no record of the refusals"
    );
    ensure!(
        grown.len() <= served + fetches + 5,
        "{} records of {served} and {fetches} requests",
        grown.len()
    );
    broker.cli(&["audit", "verify"]).map(drop)
}
