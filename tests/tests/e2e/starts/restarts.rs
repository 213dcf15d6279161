//! An application that reads its secrets once, from its environment: started again for each of them.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Result, ensure};
use mayfly_tests::harness::{
    Bare, BareOptions, Needle, Realm, TempDir, binary, scan_memory, wait_until,
};

use super::place::{SOON, broker, put};

const CONFIG: &str =
    "[application]\nprocess = \"parent\"\n[[notify]]\nrestart = true\ndebounce = \"10ms\"\n";
/// With a child that a restart must not leave behind.
const APPLICATION: &str = "sleep 3600 & echo \"life $LEFT\"; wait";

#[test]
fn each_rotation_is_a_fresh_life_with_fresh_variables() -> Result<()> {
    let broker = broker(None, "")?;
    let mut value = put(&broker)?;
    let dir = TempDir::new()?;
    std::fs::write(dir.join("sidecar.toml"), CONFIG)?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    for sidecar_asks in [true, false] {
        let mut options = BareOptions::default().bind(&broker.workload_dir(), "run/mayfly");
        for name in ["mayfly-shim", "mayfly-sidecar", "mayfly-probe"] {
            options = options.bind(&binary(name)?, &format!("opt/{name}"));
        }
        let mut command = vec!["/opt/mayfly-shim", "run", "--sidecar"];
        if sidecar_asks {
            options = options.bind(&dir.join("sidecar.toml"), "etc/mayfly/sidecar.toml");
        } else {
            command.push("--restart=on-rotate");
        }
        command.extend([
            "--env",
            "LEFT=file:pair/left",
            "--",
            "sh",
            "-c",
            APPLICATION,
        ]);
        let bare = Bare::run(Realm::host(), &options, &command)?;
        bare.wait_for_log(&format!("life {value}\n"), SOON)?;
        for _ in 0..3 {
            let before = value;
            value = put(&broker)?;
            bare.wait_for_log(&format!("life {value}\n"), SOON)?;
            // Who passes them on keeps none of them.
            let needles = [&before, &value].map(|text| Needle::new("value", text.as_bytes()));
            wait_until(SOON, "a shim that has forgotten", || {
                let hits = scan_memory(bare.pid(), &needles)?.hits;
                ensure!(hits.is_empty(), "{hits:?}");
                Ok(Some(()))
            })?;
        }
        let logs = bare.logs();
        ensure!(logs.matches("life ").count() == 4, "{logs}");
        // The shim, the sidecar, the shell and its child: no former life.
        let processes = std::fs::read_to_string(bare.cgroup().v2().join("cgroup.procs"))?;
        ensure!(processes.lines().count() == 4, "{processes}");
    }
    Ok(())
}
