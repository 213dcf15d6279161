//! The dead man's hand on published files: removes what has expired when the sidecar that published
//! it is frozen or dead.
//!
//! `DIR/..data` is a symlink to the current generation, a directory `DIR/..gen-…`, in which
//! `..expiry` says when each of its items must go, one a line:
//!
//! ```text
//! PATH GONE EXPIRES remove|stop        times in milliseconds since 1970
//! ```
//!
//! Whoever calls this may be root, and the directory may belong to an attacker. So every step goes
//! from a descriptor to one single name below it (openat2(2): beneath, no symlinks, no other mount),
//! nothing but a regular file of that very filesystem is ever written to, and what is read has a
//! limit. All that an attacker can have removed is what it could have removed by itself.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{
    AtFlags, FallocateFlags, OFlag, OpenHow, ResolveFlag, fallocate, openat, openat2, readlinkat,
};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, Whence, lseek, unlinkat};

/// Most bytes of a record.
pub const MOST_RECORD: usize = 256 * 1024;
/// Most items that a record is read for.
pub const MOST_ITEMS: usize = 1024;
/// Most generations beside the current one. A sidecar keeps at most 64.
const MOST_GENERATIONS: usize = 128;
/// Most files of one item.
const MOST_FILES: usize = 1024;
/// Most names of a directory that are looked at. Who goes on renaming while it is read could show
/// names for ever.
const MOST_NAMES: usize = 64 * 1024;
/// What a generation's name begins with.
const GENERATION: &[u8] = b"..gen-";
const RECORD: &CStr = c"..expiry";

/// One line of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Where the item is in its generation: at most three names, joined by slashes. Never leads out.
    pub path: &'a str,
    /// When it must go, in milliseconds since 1970.
    pub gone_at: u64,
    /// When what it holds stops being valid, likewise.
    pub expires_at: u64,
    /// Whether the application must end with it.
    pub stop: bool,
}

/// The lines of a record. What is no line is left out.
pub fn lines(record: &[u8]) -> impl Iterator<Item = Line<'_>> + Clone {
    let lines = record.split(|byte| *byte == b'\n');
    lines.filter_map(line).take(MOST_ITEMS)
}

/// The paths of what need not go yet, sorted: whoever writes a record may be an attacker, and to look for
/// each line of one in all lines of another would be his way to keep us busy.
fn still_good(record: &[u8], until: u64) -> Vec<&str> {
    let good = lines(record).filter(|line| line.gone_at > until);
    let mut paths: Vec<_> = good.map(|line| line.path).collect();
    paths.sort_unstable();
    paths
}

fn line(line: &[u8]) -> Option<Line<'_>> {
    let mut words = str::from_utf8(line).ok()?.split(' ');
    let path = words.next().filter(|path| is_path(path))?;
    let mut time = || -> Option<u64> {
        let digits = words.next()?;
        // `parse` would take a sign, too.
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok())?
    };
    let (gone_at, expires_at) = (time()?, time()?);
    let stop = match words.next()? {
        "stop" => true,
        "remove" => false,
        _ => return None,
    };
    words.next().is_none().then_some(Line {
        path,
        gone_at,
        expires_at,
        stop,
    })
}

fn is_path(path: &str) -> bool {
    let is_name = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        (1..=63).contains(&name.len())
            && name.bytes().all(allowed)
            && name != "."
            && !name.starts_with("..")
            && !name.starts_with('-')
    };
    path.split('/').count() <= 3 && path.split('/').all(is_name)
}

/// A directory that a sidecar publishes to.
#[derive(Debug)]
pub struct Area {
    root: OwnedFd,
    device: u64,
}

/// What [`Area::sweep`] did.
#[derive(Debug, Default)]
pub struct Sweep {
    /// The paths of what was overdue and there, and is gone.
    pub removed: Vec<String>,
    /// The paths of what was not overwritten or not removed as it should be, and why.
    pub failed: Vec<(String, Errno)>,
    /// When the last of those items had to go with which the application must end, whether they are
    /// still there or not; in milliseconds since 1970.
    pub stop: Option<u64>,
    /// When the last of those items expired that are kept although they did, likewise.
    pub stale: Option<u64>,
    /// When the next item expires or must go, likewise.
    pub next: Option<u64>,
}

impl Area {
    /// Takes hold of a directory. The last component of its path is not followed if it is a symlink.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(nix::fcntl::open(path, DIRECTORY, Mode::empty())?)
    }

    /// The same, of a directory that is open already, for reading.
    ///
    /// # Errors
    ///
    /// Those of fstat(2).
    pub fn new(root: OwnedFd) -> io::Result<Self> {
        let device = fstat(&root)?.st_dev;
        Ok(Self { root, device })
    }

    /// The number of the filesystem that it is on.
    #[must_use]
    pub fn device(&self) -> u64 {
        self.device
    }

    /// The record of the current generation; empty if there is none.
    #[must_use]
    pub fn record(&self) -> Vec<u8> {
        self.current()
            .map(|(_, generation)| self.record_of(&generation))
            .unwrap_or_default()
    }

    /// Removes what had to go at `until` or before, in milliseconds since 1970: overwritten, from
    /// every generation. What the current generation still holds rightly is not overwritten by what
    /// an older one says of it, and what a newer one holds that is not the current one yet stays.
    ///
    /// The sidecar, if it lives, does so itself at the very moment. So call this with a time that is
    /// some seconds ago.
    pub fn sweep(&self, until: u64) -> Sweep {
        let mut sweep = Sweep::default();
        let Some((current, generation)) = self.current() else {
            return sweep;
        };
        let record = self.record_of(&generation);
        for line in lines(&record) {
            if line.gone_at > until {
                let next = if line.expires_at > until {
                    line.expires_at.min(line.gone_at)
                } else {
                    sweep.stale = sweep.stale.max(Some(line.expires_at));
                    line.gone_at
                };
                sweep.next = Some(sweep.next.map_or(next, |before| before.min(next)));
                continue;
            }
            if line.stop {
                sweep.stop = sweep.stop.max(Some(line.gone_at));
            }
            self.remove(&generation, line.path, false, &mut sweep);
        }
        let overdue = |line: &Line<'_>| line.gone_at <= until;
        let good = still_good(&record, until);
        for other in self.generations() {
            if other == current {
                continue;
            }
            let Ok(other) = self.child(self.root.as_fd(), &other) else {
                continue;
            };
            let own_record = self.record_of(&other);
            // It is being written, and can hold newer than what the current record tells of. What is
            // left of one whose writer was killed, the next writer removes.
            if own_record.is_empty() {
                continue;
            }
            let own_good = still_good(&own_record, until);
            for line in lines(&record).filter(overdue) {
                // It is complete and about to be the current one.
                if own_good.binary_search(&line.path).is_err() {
                    self.remove(&other, line.path, false, &mut sweep);
                }
            }
            for line in lines(&own_record).filter(overdue) {
                let shared = good.binary_search(&line.path).is_ok();
                self.remove(&other, line.path, shared, &mut sweep);
            }
        }
        sweep
    }

    /// The name and the directory of the current generation.
    fn current(&self) -> Option<(CString, OwnedFd)> {
        let target = readlinkat(&self.root, c"..data").ok()?;
        let name = CString::new(target.into_encoded_bytes()).ok()?;
        if !is_generation(&name) {
            return None;
        }
        let generation = self.child(self.root.as_fd(), &name).ok()?;
        Some((name, generation))
    }

    fn generations(&self) -> Vec<CString> {
        self.names(self.root.as_fd(), MOST_GENERATIONS, is_generation)
    }

    fn record_of(&self, generation: &OwnedFd) -> Vec<u8> {
        let mut text = Vec::new();
        let read = self.file(generation.as_fd(), RECORD, OFlag::O_RDONLY);
        if let Ok((file, _)) = read {
            // What was read before an error is what there is.
            let _ = file.take(MOST_RECORD as u64).read_to_end(&mut text);
        }
        text
    }

    /// Removes an item of a generation: a file, or a directory of files.
    fn remove(&self, generation: &OwnedFd, path: &str, shared: bool, sweep: &mut Sweep) {
        match self.remove_item(generation, path, shared) {
            Ok(false) => {}
            Ok(true) => {
                if !sweep.removed.iter().any(|before| before == path) {
                    sweep.removed.push(path.to_owned());
                }
            }
            Err(errno) => sweep.failed.push((path.to_owned(), errno)),
        }
    }

    fn remove_item(&self, generation: &OwnedFd, path: &str, shared: bool) -> nix::Result<bool> {
        let mut parts = path.split('/');
        let last = parts.next_back().unwrap_or_default();
        let mut held = None;
        for part in parts {
            let above: &OwnedFd = held.as_ref().unwrap_or(generation);
            match self.child(above.as_fd(), &name(part)?) {
                Err(Errno::ENOENT) => return Ok(false),
                child => held = Some(child?),
            }
        }
        let above = held.as_ref().unwrap_or(generation).as_fd();
        let last = name(last)?;
        match look(above, &last) {
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
            Ok(found) if kind(&found) == SFlag::S_IFDIR => {
                let directory = self.child(above, &last)?;
                let mut outcome = Ok(());
                for inner in self.names(directory.as_fd(), MOST_FILES, |_| true) {
                    outcome = outcome.and(self.wipe(directory.as_fd(), &inner, shared));
                }
                let removed = unlinkat(above, last.as_c_str(), UnlinkatFlags::RemoveDir);
                outcome.and(removed).map(|()| true)
            }
            Ok(_) => self.wipe(above, &last, shared).map(|()| true),
        }
    }

    /// Overwrites a file with zeros, in place, and takes its name away. Its pages go too, so that who
    /// gave it a thousand names has it overwritten once. A `shared` one is overwritten only if it has
    /// no other name. What is no file only loses its name. One that cannot be
    /// overwritten loses its name all the same.
    ///
    /// # Errors
    ///
    /// The first failure.
    pub fn wipe(&self, directory: BorrowedFd<'_>, name: &CStr, shared: bool) -> nix::Result<()> {
        let found = look(directory, name)?;
        let overwritten = match kind(&found) {
            SFlag::S_IFREG if !(shared && found.st_nlink > 1) => self.overwrite(directory, name),
            _ => Ok(()),
        };
        let unlinked = unlinkat(directory, name, UnlinkatFlags::NoRemoveDir);
        overwritten.and(unlinked)
    }

    fn overwrite(&self, directory: BorrowedFd<'_>, name: &CStr) -> nix::Result<()> {
        let (file, found) = match self.file(directory, name, OFlag::O_WRONLY) {
            // Mode 0400 and no CAP_DAC_OVERRIDE: its owner can still make it writable.
            Err(Errno::EACCES) => {
                let (file, _) = self.file(directory, name, OFlag::O_RDONLY)?;
                fchmod(&file, Mode::S_IRUSR | Mode::S_IWUSR)?;
                self.file(directory, name, OFlag::O_WRONLY)?
            }
            opened => opened?,
        };
        // Holes have no pages. A file can claim to be as large as it likes, but not to have more.
        let mut most = found.st_blocks.saturating_mul(512);
        let zeros = [0; 4096];
        let mut at = 0;
        loop {
            at = match lseek(&file, at, Whence::SeekData) {
                Err(Errno::ENXIO) => break,
                at => at?,
            };
            let end = lseek(&file, at, Whence::SeekHole)?;
            while at < end {
                if most <= 0 {
                    // It grows while it is overwritten.
                    return Err(Errno::EBUSY);
                }
                let left = usize::try_from(end - at).unwrap_or(usize::MAX);
                let part = zeros.get(..left).unwrap_or(&zeros);
                let written = file.write_at(part, at.unsigned_abs());
                let written = written.map_err(|error| errno_of(&error))?;
                if written == 0 {
                    return Err(Errno::EIO);
                }
                at += written as i64;
                most -= written as i64;
            }
        }
        // Not truncated: who has it mapped would get SIGBUS. A filesystem that cannot keeps its pages.
        if at > 0 {
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&file, hole, 0, at);
        }
        Ok(())
    }

    /// Opens a directory below another one.
    ///
    /// # Errors
    ///
    /// ENOTDIR or ELOOP for anything else; EXDEV for one of another filesystem.
    pub fn child(&self, above: BorrowedFd<'_>, name: &CStr) -> nix::Result<OwnedFd> {
        let opened = open_beneath(above, name, DIRECTORY)?;
        self.is_here(&fstat(&opened)?)?;
        Ok(opened)
    }

    /// Opens a regular file below a directory, and never waits for one that is something else.
    fn file(
        &self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        how: OFlag,
    ) -> nix::Result<(File, FileStat)> {
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = open_beneath(directory, name, how | flags)?;
        let found = fstat(&opened)?;
        self.is_here(&found)?;
        match kind(&found) {
            SFlag::S_IFREG => Ok((File::from(opened), found)),
            _ => Err(Errno::EINVAL),
        }
    }

    fn is_here(&self, found: &FileStat) -> nix::Result<()> {
        match found.st_dev == self.device {
            true => Ok(()),
            false => Err(Errno::EXDEV),
        }
    }

    /// Names in a directory, no more than `most` of those that are `wanted`.
    pub fn names(
        &self,
        directory: BorrowedFd<'_>,
        most: usize,
        wanted: impl Fn(&CStr) -> bool,
    ) -> Vec<CString> {
        let mut names = Vec::new();
        let Ok(mut list) = Dir::openat(directory, c".", DIRECTORY, Mode::empty()) else {
            return names;
        };
        for entry in list.iter().take(MOST_NAMES).flatten() {
            let name = entry.file_name();
            if name != c"." && name != c".." && wanted(name) {
                if names.len() == most {
                    break;
                }
                names.push(name.to_owned());
            }
        }
        names
    }
}

impl AsFd for Area {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Opens a single name. Where openat2(2) is missing (before Linux 5.6, or behind a seccomp filter
/// that does not know it), O_NOFOLLOW and the caller's look at the device hold the same: a single
/// name has nothing else to resolve.
fn open_beneath(above: BorrowedFd<'_>, name: &CStr, flags: OFlag) -> nix::Result<OwnedFd> {
    if name.to_bytes().contains(&b'/') || name == c".." {
        return Err(Errno::EINVAL);
    }
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    match openat2(above, name, how) {
        Err(Errno::ENOSYS | Errno::EPERM) => openat(above, name, flags, Mode::empty()),
        opened => opened,
    }
}

fn is_generation(name: &CStr) -> bool {
    let name = name.to_bytes();
    name.starts_with(GENERATION) && name.len() > GENERATION.len() && !name.contains(&b'/')
}

fn name(text: &str) -> nix::Result<CString> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

fn look(directory: BorrowedFd<'_>, name: &CStr) -> nix::Result<FileStat> {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests;
