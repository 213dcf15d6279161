//! A container that writes its own record, to have the node, who is root, remove or overwrite what is
//! not in its volume.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Container, wait_until};

use super::scene::{SOON, Scene};

/// The attacker, and when it began.
pub struct Attacked {
    container: Container<'static>,
    begun: Instant,
}

/// All that is planted is overdue since 1970. `canary` is honest, and comes last.
const PLANT: &str = r#"
set -e
cd /run/secrets
g=..gen-1
mkdir -p $g/deep
ln -s OUTSIDE $g/dir
ln -s OUTSIDE/file $g/file
ln -s OUTSIDE $g/deep/link
ln -s /etc/passwd $g/passwd
ln -s /proc/1/root/etc $g/root
ln -s ../../../../../../../../etc $g/up
mkfifo $g/pipe
echo x > $g/linked; ln $g/linked linked-too
truncate -s 1000000000000 $g/huge
for i in $(seq 40); do d=$d/d; mkdir -p $g/tree$d; done
ln -s OUTSIDE ..gen-2
ln -s / ..gen-3
echo canary > $g/canary
{
  for p in dir/file file deep/link/file passwd root/passwd up/passwd pipe linked huge tree \
      ../../etc/passwd /etc/passwd ..data .. . dir/../file "" ; do
    echo "$p 1 1 remove"
  done
  echo "canary 1 1 stop extra"
  echo "canary -1 1 stop"
  echo "canary 99999999999999999999999 1 stop"
  i=0; while [ $i -lt 500 ]; do echo "n$i 1 1 remove"; i=$((i+1)); done
  echo "canary 1 1 remove"
} > $g/..expiry
ln -s $g ..data
i=0; while [ $i -lt 300 ]; do mkdir ..gen-x$i; i=$((i+1)); done
sleep 1000
"#;

pub fn plant(scene: &Scene) -> Result<Attacked> {
    let outside = scene.outside();
    fs::create_dir_all(&outside)?;
    for file in ["file", "passwd", "..expiry"] {
        fs::write(outside.join(file), "file 1 1 remove\n")?;
    }
    // As a careless host has it: links are what must hold, not modes.
    fs::set_permissions(&outside, PermissionsExt::from_mode(0o777))?;
    let outside = outside.to_str().context("a path that is no text")?;
    let script = PLANT.replace("OUTSIDE", outside);
    let container = scene.alone("hostile", &script)?;
    let begun = Instant::now();
    Ok(Attacked { container, begun })
}

pub fn check(scene: &Scene, attacked: &Attacked) -> Result<()> {
    let volume = scene.volume("hostile");
    let data = volume.join("..gen-1");
    wait_until(SOON, "the canary to be gone", || {
        let planted = volume.join("..data").is_symlink();
        Ok((planted && !data.join("canary").exists()).then_some(()))
    })
    .with_context(|| attacked.container.logs().unwrap_or_default())?;
    let outside = scene.outside();
    for file in ["file", "passwd", "..expiry"] {
        let found = fs::read_to_string(outside.join(file))?;
        ensure!(
            found == "file 1 1 remove\n",
            "{file} of the host: {found:?}"
        );
    }
    ensure!(
        fs::metadata("/etc/passwd")?.len() > 1,
        "the host's passwd is empty"
    );
    // What is its own is done as asked: the other name of an overdue file has nothing in it.
    let linked = fs::read(volume.join("linked-too"))?;
    ensure!(linked.iter().all(|byte| *byte == 0), "{linked:?}");
    scene.node_did("not_removed", "hostile", "dir/file")?;
    // It runs on, because no line that was whole said that it must end.
    ensure!(attacked.container.pid()? > 0);
    // However many lines it writes, it makes a report an interval, and it has been one or two.
    let text = fs::read_to_string(scene.broker.state_dir().join("audit.jsonl"))?;
    let records = text
        .lines()
        .filter(|line| line.contains("\"volume\":\"hostile\""))
        .count();
    let most = 3 * (attacked.begun.elapsed().as_secs() / 10 + 1);
    ensure!(records as u64 <= most, "{records} records, at most {most}");
    attacked.container.kill()?;
    super::is_empty(scene, "hostile")
}
