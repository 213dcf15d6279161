//! The broker dies right after each single step of a lease's life, one by one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::wait_until;

use super::scene::{SOON, Scene, Times};

/// What makes a lease take its steps.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// A container comes.
    Comes,
    /// A container dies.
    Dies,
    /// An operator rotates everything.
    Rotates,
    /// Time passes: leases are renewed.
    Waits,
}

/// The step after which the broker dies, how often it takes it before, and what makes it.
const FAULTS: [(&str, u32, Act); 21] = [
    ("planned", 0, Act::Comes),
    ("made", 0, Act::Comes),
    ("recorded", 0, Act::Comes),
    ("active", 0, Act::Comes),
    ("active", 1, Act::Comes),
    ("extended", 0, Act::Waits),
    ("renewal_recorded", 0, Act::Waits),
    ("renewed", 0, Act::Waits),
    ("revoking", 0, Act::Dies),
    ("revoked", 0, Act::Dies),
    ("end_recorded", 0, Act::Dies),
    ("gone", 0, Act::Dies),
    ("planned", 1, Act::Rotates),
    ("made", 1, Act::Rotates),
    ("recorded", 1, Act::Rotates),
    ("active", 0, Act::Rotates),
    ("active", 3, Act::Rotates),
    ("revoking", 0, Act::Rotates),
    ("revoked", 1, Act::Rotates),
    ("end_recorded", 0, Act::Rotates),
    ("gone", 1, Act::Rotates),
];

/// How one ends that calls abort(3): 128 and SIGABRT.
const ABORTED: i32 = 128 + 6;

#[test]
fn a_fault_at_each_step_leaves_roles_and_leases_the_same() -> Result<()> {
    let times = Times {
        ttl: "6s",
        grace: "1s",
    };
    let mut scene = Scene::start(times, 2)?;
    for (step, after, act) in FAULTS {
        let fault = || format!("after {step}, where {act:?}");
        one(&mut scene, step, after, act).with_context(fault)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    scene.settled(SOON)?;
    scene.all_get_in()?;
    scene.verified()
}

fn one(scene: &mut Scene, step: &str, after: u32, act: Act) -> Result<()> {
    scene.broker.stop()?;
    let trial = format!("[test]\nabort_at = \"{step}\"\nabort_after = {after}");
    scene.broker.configure_node(&trial)?;
    scene.broker.launch()?;
    let process = format!("/proc/{}", scene.broker.pid()?);
    // What was due may make it die of its fault before it is ready, which is as good.
    wait_until(SOON, "the broker to be up, or dead", || {
        let is_up = std::os::unix::net::UnixStream::connect(scene.broker.workload_socket()).is_ok();
        Ok((is_up || !std::fs::exists(&process)?).then_some(()))
    })?;
    match act {
        Act::Comes => scene.crowd.join().map(drop)?,
        Act::Dies => scene.crowd.kill(0)?,
        // The broker dies in the middle of it.
        Act::Rotates => {
            let _ = scene.broker.cli(&["rotate", "--all"]);
        }
        Act::Waits => {}
    }
    // Of its fault, and of nothing else, such as a step that nobody knows.
    let status = scene.broker.ends(SOON)?;
    ensure!(status == ABORTED, "the broker ended with {status}");
    scene.broker.configure_node("")?;
    scene.broker.restart()?;
    scene.settled(SOON).map(drop)
}
