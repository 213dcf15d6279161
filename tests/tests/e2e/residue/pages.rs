//! The pages of the tmpfs themselves. Where the kernel shows its memory to nobody (no `/proc/kcore`, no
//! `/dev/mem`), a page can be kept from being used again before its file goes: a pipe holds it, by
//! splice(2), without a copy, and shows what stands in it afterwards.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{
    Broker, BrokerOptions, Needle, Realm, TempDir, random_text, scan_bytes, wait_until,
};
use nix::fcntl::{SpliceFFlags, splice};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe};

use super::super::resilience::app::{self, App, SOON};

const NAME: &str = "credential";

/// A file and the page that it begins in.
struct Held {
    secret: Vec<u8>,
    file: File,
    page: OwnedFd,
}

impl Held {
    fn of(path: &Path, secret: &[u8]) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let (page, into) = pipe()?;
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        let moved = splice(&file, Some(&mut 0), &into, None, secret.len(), flags)?;
        ensure!(moved == secret.len(), "{moved} bytes");
        let mut content = vec![0; secret.len()];
        file.read_exact_at(&mut content, 0)?;
        ensure!(content == secret, "{} holds another value", path.display());
        Ok(Self {
            secret: secret.to_vec(),
            file,
            page,
        })
    }

    /// Whether the file, reached by its descriptor, still holds its value.
    fn stands(&self) -> Result<bool> {
        let mut content = vec![0; self.secret.len()];
        let length = self.file.read_at(&mut content, 0)?;
        Ok(content[..length] == self.secret)
    }

    /// What stands in the page, once all that the file was for is over.
    fn page(self) -> Result<Vec<u8>> {
        let mut content = vec![0xFF; self.secret.len()];
        File::from(self.page).read_exact(&mut content)?;
        Ok(content)
    }

    /// Waits until it is overwritten, and looks at the page.
    fn expect_zeros(self, when: &str) -> Result<()> {
        wait_until(SOON, &format!("an overwritten file {when}"), || {
            Ok((!self.stands()?).then_some(()))
        })?;
        let page = self.page()?;
        ensure!(
            page.iter().all(|byte| *byte == 0),
            "{when}, its page holds {:?}",
            String::from_utf8_lossy(&page)
        );
        Ok(())
    }
}

/// How a container ends.
type End = fn(&App) -> Result<()>;
/// How a file goes.
type Removal = fn(&Path) -> std::io::Result<()>;

/// What is only removed, however, stays in its page: else the next test says nothing.
#[test]
fn a_page_outlives_its_file_unless_it_is_overwritten() -> Result<()> {
    let dir = TempDir::new()?;
    let options = Some("size=1m,noswap");
    mount(
        Some("tmpfs"),
        dir.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        options,
    )?;
    let seen = (|| -> Result<()> {
        let (path, secret) = (dir.join("secret"), random_text(40)?.into_bytes());
        let removals: [(&str, Removal); 2] = [
            ("unlinked", |path| std::fs::remove_file(path)),
            ("truncated", |path| File::create(path).map(drop)),
        ];
        for (how, remove) in removals {
            File::create(&path)?.write_all(&secret)?;
            let held = Held::of(&path, &secret)?;
            remove(&path)?;
            ensure!(held.page()? == secret, "{how}: the page was wiped");
        }
        File::create(&path)?.write_all(&secret)?;
        let held = Held::of(&path, &secret)?;
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)?
            .write_all_at(&[0; 40], 0)?;
        held.expect_zeros("with zeros in place")
    })();
    umount2(dir.path(), MntFlags::MNT_DETACH)?;
    seen
}

/// A container with one value published, and what holds its page.
fn published(broker: &Broker, secret: &[u8]) -> Result<(App, Held)> {
    app::put(broker, NAME, secret)?;
    let app = App::start(&broker.workload_dir(), "")?;
    app.wait_for_secret(NAME, secret, SOON)?;
    let held = Held::of(&app.path("run/secrets").join(NAME), secret)?;
    Ok((app, held))
}

#[test]
fn no_page_of_the_tmpfs_keeps_a_value_that_ended() -> Result<()> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    app::kv_credentials(&broker, &[NAME.to_string()], "")?;
    let secret = || -> Result<Vec<u8>> { Ok(random_text(40)?.into_bytes()) };

    let first = secret()?;
    let (app, held) = published(&broker, &first)?;
    let second = secret()?;
    let begun = Instant::now();
    app::put(&broker, NAME, &second)?;
    app.wait_for_secret(NAME, &second, SOON)?;
    // Readers in the middle of the old one have a second. One that was kept from running had it already.
    ensure!(
        held.stands()? || begun.elapsed() > Duration::from_millis(900),
        "a reader lost the old value at once"
    );
    held.expect_zeros("after a rotation")?;

    let held = Held::of(&app.path("run/secrets").join(NAME), &second)?;
    broker.cli(&["kv", "delete", &format!("e2e/{NAME}")])?;
    held.expect_zeros("after a withdrawal")?;
    drop(app);

    // The application ends by itself, is asked to end, is killed.
    let ends: [(&str, End); 3] = [
        ("at the end of the application", |app| {
            let _ = app.tell("exit 0");
            Ok(())
        }),
        ("when the container is stopped", |app| {
            Ok(kill(Pid::from_raw(app.bare().pid()), Signal::SIGTERM)?)
        }),
        ("when the application is killed", |app| {
            let shell = app.pids("bash")?.pop().context("no application")?;
            Ok(kill(Pid::from_raw(shell), Signal::SIGKILL)?)
        }),
    ];
    for (when, end) in ends {
        let (app, held) = published(&broker, &secret()?)?;
        // A value in the middle of its second, too.
        let last = secret()?;
        app::put(&broker, NAME, &last)?;
        app.wait_for_secret(NAME, &last, SOON)?;
        let current = Held::of(&app.path("run/secrets").join(NAME), &last)?;
        std::thread::sleep(Duration::from_millis(50));
        end(&app)?;
        current.expect_zeros(when)?;
        held.expect_zeros(when)?;
    }
    Ok(())
}

/// The same search finds what is there.
#[test]
fn a_published_file_holds_its_value_and_nothing_around_it() -> Result<()> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    app::kv_credentials(&broker, &[NAME.to_string()], "")?;
    let secret = random_text(40)?.into_bytes();
    let (app, held) = published(&broker, &secret)?;
    let page = held.page()?;
    let needle = [Needle::new("value", &secret)];
    ensure!(scan_bytes(&page, "page", &needle)?.len() == 1);
    // The status beside it has none.
    for name in ["..status", "..alive"] {
        let path = app.path("run/secrets").join(name);
        let content = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
        ensure!(scan_bytes(&content, name, &needle)?.is_empty(), "{name}");
    }
    Ok(())
}
