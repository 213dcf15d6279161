//! How the sidecar stands, beside its files: `DIR/..status`, which holds names and times and nothing
//! secret, and `DIR/..alive`, which is locked while the sidecar lives and touched when it does
//! something.

pub mod command;
mod health;

pub use health::{Fault, judge};

use crate::publish::dir::Dir;
use mayfly_wire::publish::is_plain;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read as _, Write as _};

/// The status.
pub const STATUS: &str = "..status";
const STATUS_NEW: &str = "..status_new";
/// The lock.
pub const ALIVE: &str = "..alive";
/// Most bytes of a status.
const MAX_STATUS: u64 = 1 << 20;

/// How the sidecar stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of this form: 1.
    pub version: u32,
    /// Whether a session with the broker stands.
    pub connected: bool,
    /// The generation that is current: what `..data` leads to.
    pub generation: Option<String>,
    /// When something last changed in it, in milliseconds since the Unix epoch.
    pub changed_at_ms: Option<u64>,
    /// When the first of its items ends unless it is renewed.
    pub next_expiry_ms: Option<u64>,
    /// When the first of them is to be renewed, as the broker says.
    #[serde(default)]
    pub next_renewal_ms: Option<u64>,
    /// What is published.
    pub items: Vec<Published>,
    /// What was asked for and is not granted or not to be had, and why.
    pub missing: String,
    /// What could not be made, and why.
    pub failed: Vec<Failed>,
    /// Why the last set is not published, if it is not.
    #[serde(default)]
    pub not_published: Option<String>,
    /// What has expired and is gone, and has not come back.
    #[serde(default)]
    pub expired: Vec<String>,
    /// Why secrets should not be where they are, if that came to be since the start.
    #[serde(default)]
    pub unfit: Option<String>,
    /// Why the sidecar will not end with the application, if it is to and cannot.
    #[serde(default)]
    pub not_followed: Option<String>,
    /// How the application is told.
    pub notify: Vec<Told>,
    /// Whether the broker still waits for the application to use what was published.
    pub acknowledging: bool,
    /// Whether the application has had its time to say so.
    #[serde(default)]
    pub unacknowledged: bool,
    /// What last went wrong and has not gone right since.
    pub error: Option<String>,
}

impl Status {
    /// Whoever can write into the directory can have written it, and it goes to a terminal.
    fn clean(&mut self) {
        let items = self.items.iter_mut().map(|item| &mut item.path);
        let failed = self.failed.iter_mut();
        let failed = failed.flat_map(|failed| [&mut failed.path, &mut failed.why]);
        let told = self.notify.iter_mut().flat_map(|told| {
            let words = [&mut told.what, &mut told.state];
            words.into_iter().chain(&mut told.error)
        });
        let single = [
            &mut self.generation,
            &mut self.not_published,
            &mut self.unfit,
            &mut self.not_followed,
            &mut self.error,
        ];
        let all = items.chain(failed).chain(told);
        let all = all.chain(&mut self.expired).chain([&mut self.missing]);
        for text in all.chain(single.into_iter().flatten()) {
            if !text.chars().all(is_plain) {
                let clean = |one| if is_plain(one) { one } else { '?' };
                *text = text.chars().map(clean).collect();
            }
        }
    }
}

/// One item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Its path.
    pub path: String,
    /// When it ends unless it is renewed.
    pub expires_at_ms: u64,
    /// Whether it has ended and is kept.
    pub stale: bool,
}

/// An output that could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Its path.
    pub path: String,
    /// Why.
    pub why: String,
}

/// One way of telling the application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Which.
    pub what: String,
    /// `idle`, `pending` or `failed`.
    pub state: String,
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
}

/// The sidecar's side.
pub struct Board {
    alive: Option<File>,
    last: String,
}

impl Board {
    /// Takes the lock. Without it, somebody else holds it, which the second value says.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn open(dir: &Dir) -> io::Result<(Self, bool)> {
        // Not the one that is there: whoever made it could have opened it, or be holding it.
        let held = is_held(dir).unwrap_or(false);
        if dir.look(ALIVE)?.is_some() {
            dir.unlink(ALIVE)?;
        }
        let alive = dir.create(ALIVE)?;
        // Before anybody else can open it, who could hold a lock against ours.
        fcntl(&alive, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK)))?;
        fchmod(&alive, Mode::from_bits_truncate(0o444))?;
        let board = Self {
            alive: Some(alive),
            last: String::new(),
        };
        Ok((board, held))
    }

    /// A board that shows nothing.
    #[must_use]
    pub fn none() -> Self {
        Self {
            alive: None,
            last: String::new(),
        }
    }

    /// Shows the status, if it is another than before, and that we live.
    pub fn show(&mut self, dir: &Dir, status: &Status) {
        let Some(alive) = &self.alive else { return };
        // That it fails shows: the time stays as it is.
        let _ = futimens(alive, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW);
        let Ok(text) = serde_json::to_string(status) else {
            return;
        };
        if text == self.last {
            return;
        }
        // Rather none than one that is not true any more. And without it there may be room.
        let written = write(dir, &text).or_else(|_| {
            for name in [STATUS, STATUS_NEW] {
                let _ = dir.unlink(name);
            }
            write(dir, &text)
        });
        self.last = written.map(|()| text).unwrap_or_default();
    }

    /// Takes it away.
    pub fn remove(self, dir: &Dir) {
        if self.alive.is_some() {
            for name in [STATUS, STATUS_NEW, ALIVE] {
                let _ = dir.unlink(name);
            }
        }
    }
}

fn write(dir: &Dir, text: &str) -> io::Result<()> {
    if dir.look(STATUS_NEW)?.is_some() {
        dir.unlink(STATUS_NEW)?;
    }
    let mut file = dir.create(STATUS_NEW)?;
    file.write_all(text.as_bytes())?;
    fchmod(&file, Mode::from_bits_truncate(0o444))?;
    dir.rename(STATUS_NEW, STATUS)
}

/// What a reader finds.
pub struct Found {
    /// The status.
    pub status: Status,
    /// Whether a sidecar holds the lock.
    pub running: bool,
    /// When it last did something, in milliseconds since the Unix epoch.
    pub alive_at_ms: u64,
}

/// Reads it back.
///
/// # Errors
/// If there is none, or it is no status.
pub fn read(dir: &Dir) -> io::Result<Found> {
    let mut text = String::new();
    dir.read(STATUS)?
        .take(MAX_STATUS)
        .read_to_string(&mut text)?;
    let mut status: Status = serde_json::from_str(&text)?;
    status.clean();
    let running = is_held(dir).unwrap_or(false);
    let stat = dir.look(ALIVE)?;
    let alive_at_ms = stat.map_or(0, |stat| {
        let ms = stat.st_mtime.saturating_mul(1000);
        let ms = ms.saturating_add(stat.st_mtime_nsec / 1_000_000);
        u64::try_from(ms).unwrap_or(0)
    });
    Ok(Found {
        status,
        running,
        alive_at_ms,
    })
}

/// Whether the sidecar before us told the application of this generation, as far as it was to. What
/// it left is read before ours is written.
#[must_use]
pub fn was_told(dir: &Dir, generation: &str) -> bool {
    read(dir).is_ok_and(|Found { status, .. }| {
        status.generation.as_deref() == Some(generation)
            && !status.acknowledging
            && status.notify.iter().all(|told| told.state == "idle")
    })
}

/// Whether somebody has the lock. Takes none itself.
fn is_held(dir: &Dir) -> io::Result<bool> {
    let file = dir.read(ALIVE)?;
    let mut lock = whole(libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

fn whole(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
