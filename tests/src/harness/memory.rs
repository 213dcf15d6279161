//! Searching the whole memory of a process for what must not be there.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// A part of a secret that is as good as the whole, in bytes.
const WINDOW: usize = 16;
/// How much is read at once, in bytes.
const CHUNK: usize = 1 << 20;

/// A byte string to search for, of random bytes: a window of a repetitive one is found everywhere.
#[derive(Debug, Clone)]
pub struct Needle {
    name: String,
    bytes: Vec<u8>,
}

impl Needle {
    /// One needle; `name` is what hits are reported under.
    pub fn new(name: &str, bytes: &[u8]) -> Self {
        Self {
            name: name.to_string(),
            bytes: bytes.to_vec(),
        }
    }

    /// A secret as it is, and as base64 and hexadecimal text.
    pub fn forms(name: &str, secret: &[u8]) -> Vec<Self> {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        vec![
            Self::new(name, secret),
            Self::new(
                &format!("{name} in base64"),
                STANDARD.encode(secret).as_bytes(),
            ),
            Self::new(
                &format!("{name} in URL-safe base64"),
                URL_SAFE.encode(secret).as_bytes(),
            ),
            Self::new(&format!("{name} in hexadecimal"), hex.as_bytes()),
        ]
    }
}

/// One place where a needle, or a window of it, stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The needle's name.
    pub needle: String,
    /// Which byte of the needle the match begins at: 0 with `length` for a whole needle.
    pub offset: usize,
    /// How many bytes match in a row from there.
    pub length: usize,
    /// Where in the process's memory.
    pub address: u64,
    /// The line of `/proc/PID/maps` for that region.
    pub region: String,
}

/// What a search saw.
#[derive(Debug, Default)]
pub struct Scan {
    /// The places, each with its longest match.
    pub hits: Vec<Hit>,
    /// How many bytes were searched. A test that finds nothing asserts that this is large enough.
    pub searched: u64,
    /// Regions that the kernel gives to nobody, such as those of memfd_secret(2).
    pub unreadable: Vec<String>,
}

/// Reads all memory that a process has mapped, also where its own permissions deny reading, and
/// searches it for the needles and for each 16-byte window of them.
///
/// # Errors
/// When the process is gone, may not be read, or a needle is shorter than a window.
pub fn scan_memory(pid: i32, needles: &[Needle]) -> Result<Scan> {
    let index = Index::new(needles)?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .with_context(|| format!("reading the memory map of pid {pid}"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))
        .with_context(|| format!("opening the memory of pid {pid}"))?;
    let mut scan = Scan::default();
    let mut buffer = vec![0; CHUNK + index.longest];
    for region in maps.lines() {
        let (start, end) = bounds(region)?;
        let mut at = start;
        let mut read_any = false;
        while at < end {
            let wanted = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let Ok(got) = memory.read_at(&mut buffer[..wanted], at) else {
                break;
            };
            if got == 0 {
                break;
            }
            read_any = true;
            // What begins in the overlap is found with the next chunk, where it is whole.
            let last = at + got as u64 == end || got < wanted;
            let owned = if last {
                got
            } else {
                got.saturating_sub(index.longest).max(1)
            };
            index.search(&buffer[..got], owned, at, region, &mut scan.hits);
            scan.searched += owned as u64;
            at += owned as u64;
        }
        if !read_any || at < end {
            scan.unreadable.push(region.to_string());
        }
    }
    if scan.searched == 0 {
        bail!("no memory of pid {pid} could be read: it is ending, or protected");
    }
    Ok(scan)
}

/// Searches bytes, such as a file's, for the needles and for each 16-byte window of them; `place` is
/// told as the region.
///
/// # Errors
/// When a needle is shorter than a window.
pub fn scan_bytes(bytes: &[u8], place: &str, needles: &[Needle]) -> Result<Vec<Hit>> {
    let mut hits = Vec::new();
    Index::new(needles)?.search(bytes, bytes.len(), 0, place, &mut hits);
    Ok(hits)
}

fn bounds(region: &str) -> Result<(u64, u64)> {
    let range = region.split(' ').next().unwrap_or_default();
    let parsed = range.split_once('-').and_then(|(start, end)| {
        Some((
            u64::from_str_radix(start, 16).ok()?,
            u64::from_str_radix(end, 16).ok()?,
        ))
    });
    parsed.with_context(|| format!("not a line of a memory map: {region:?}"))
}

/// All windows of all needles, found by their first 8 bytes.
struct Index<'a> {
    needles: &'a [Needle],
    windows: HashMap<[u8; 8], Vec<(usize, usize)>>,
    /// Which pairs of first bytes any window has: rules out nearly every place at once.
    pairs: Vec<bool>,
    longest: usize,
}

impl<'a> Index<'a> {
    fn new(needles: &'a [Needle]) -> Result<Self> {
        let mut windows: HashMap<[u8; 8], Vec<(usize, usize)>> = HashMap::new();
        let mut pairs = vec![false; 1 << 16];
        let mut longest = 0;
        for (number, needle) in needles.iter().enumerate() {
            if needle.bytes.len() < WINDOW {
                bail!(
                    "the needle {:?} is shorter than {WINDOW} bytes",
                    needle.name
                );
            }
            longest = longest.max(needle.bytes.len());
            for (offset, window) in needle.bytes.windows(WINDOW).enumerate() {
                let (first, _) = window.split_first_chunk::<8>().context("a short window")?;
                windows.entry(*first).or_default().push((number, offset));
                pairs[pair(first)] = true;
            }
        }
        Ok(Self {
            needles,
            windows,
            pairs,
            longest,
        })
    }

    /// Reports what begins in the first `owned` bytes of `bytes`, which stand at `address`.
    fn search(&self, bytes: &[u8], owned: usize, address: u64, region: &str, hits: &mut Vec<Hit>) {
        let mut at = 0;
        while at < owned {
            let Some(first) = bytes[at..].first_chunk::<8>() else {
                return;
            };
            let found = self.pairs[pair(first)].then(|| self.longest_at(first, &bytes[at..]));
            let Some((number, offset, length)) = found.flatten() else {
                at += 1;
                continue;
            };
            hits.push(Hit {
                needle: self.needles[number].name.clone(),
                offset,
                length,
                address: address + at as u64,
                region: region.to_string(),
            });
            at += length;
        }
    }

    fn longest_at(&self, first: &[u8; 8], bytes: &[u8]) -> Option<(usize, usize, usize)> {
        let candidates = self.windows.get(first)?.iter().map(|&(number, offset)| {
            let needle = &self.needles[number].bytes[offset..];
            let length = needle.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            (number, offset, length)
        });
        candidates
            .filter(|(.., length)| *length >= WINDOW)
            .max_by_key(|(.., length)| *length)
    }
}

fn pair(bytes: &[u8; 8]) -> usize {
    usize::from(u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(needle: &[u8], memory: &[u8], owned: usize) -> Vec<(usize, usize, u64)> {
        let needles = [Needle::new("it", needle)];
        let mut hits = Vec::new();
        Index::new(&needles)
            .unwrap()
            .search(memory, owned, 0x1000, "region", &mut hits);
        hits.iter()
            .map(|hit| (hit.offset, hit.length, hit.address))
            .collect()
    }

    #[test]
    fn a_whole_needle_is_found_once_and_windows_with_their_offset() {
        let needle = b"correct horse battery staple";
        let memory = [b"xx".as_slice(), needle, b"yy", &needle[5..21], b"zz"].concat();
        assert_eq!(
            find(needle, &memory, memory.len()),
            [(0, 28, 0x1002), (5, 16, 0x1020)]
        );
    }

    #[test]
    fn less_than_a_window_is_no_hit_and_the_edge_of_memory_is_no_panic() {
        let needle = b"correct horse battery staple";
        for cut in 0..WINDOW {
            assert_eq!(find(needle, &needle[..cut], cut), []);
        }
        assert_eq!(
            find(needle, &needle[..WINDOW], WINDOW),
            [(0, WINDOW, 0x1000)]
        );
    }

    #[test]
    fn what_begins_in_the_overlap_is_left_to_the_next_chunk() {
        let needle = b"correct horse battery staple";
        let memory = [b"0123456789".as_slice(), needle].concat();
        assert_eq!(find(needle, &memory, 10), []);
        assert_eq!(find(needle, &memory, 11), [(0, 28, 0x100a)]);
    }

    #[test]
    fn short_needles_are_refused() {
        assert!(scan_memory(1, &[Needle::new("it", b"hunter2")]).is_err());
    }
}
