//! A day's rotations and more, as fast as they can: nothing grows.

use crate::sandbox::{Sandbox, eventually};
use crate::server::{Server, fields, value};
use std::fs;

/// One every minute for a day.
const ROTATIONS: u32 = 1_440;

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn a_day_of_rotations_leaves_nothing_behind() {
    let sandbox = Sandbox::with("size=4m,mode=0755");
    let server = Server::bind(&sandbox.socket());
    let config = sandbox.config(
        r#"
        [[output]]
        credential = "db"
        file = "db.env"
        format = "env"
        [[output]]
        credential = "db"
        file = "db.json"
        format = "json"
        [[output]]
        credential = ["db", "token"]
        file = "conf/app.conf"
        format = "template"
        template = "{{ secrets.db.password | json }} {{ secrets.token.value | url }}"
        [[notify]]
        command = ["/bin/true"]
        debounce = "5ms"
        "#,
    );
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    let mut rotate = |rounds: u32| {
        for round in 0..rounds {
            let text = format!("{round:0>64}");
            let db = fields("db", &[("password", text.as_bytes()), ("username", b"app")]);
            peer.publish(&[db, value("plain", &text), value("token", &text)]);
        }
        eventually("only the last generation is left", || {
            sandbox.generations() == 1
        });
        eventually("the last command has ended", || {
            sandbox.status()["status"]["notify"][0]["state"] == "idle"
        });
    };
    rotate(100);
    let before = (resident(sidecar.pid()), descriptors(sidecar.pid()));
    rotate(ROTATIONS);
    let after = (resident(sidecar.pid()), descriptors(sidecar.pid()));
    println!("resident and descriptors: {before:?}, after {ROTATIONS} rotations {after:?}");
    assert_eq!(after.1, before.1, "descriptors leak");
    assert!(after.0 <= before.0 + 200, "it grows: {before:?} {after:?}");
    assert_eq!(sandbox.ask(&["health"]).1, 0);
}
