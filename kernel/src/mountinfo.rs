//! Reads `/proc/PID/mountinfo` (proc_pid_mountinfo(5)), which its owner may have filled at will.

use std::borrow::Cow;

/// Most bytes of a mountinfo that is worth reading: some thousand mounts.
pub const MOST_BYTES: usize = 1 << 20;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Its id, as statx(2) tells it of what stands on it.
    pub id: u64,
    /// The id of the mount that it is on, which may not be shown.
    pub parent: u64,
    /// Major and minor number of the filesystem's device: which filesystem it is.
    pub device: &'a [u8],
    /// Which directory (or file) of the filesystem is mounted. The kernel's word: renaming the mount
    /// point does not change it.
    pub root: Cow<'a, [u8]>,
    /// Where, relative to the process's root directory.
    pub point: Cow<'a, [u8]>,
    /// Whether this mount is read-only.
    pub mount_read_only: bool,
    /// Whether the filesystem as a whole is.
    pub filesystem_read_only: bool,
    /// The filesystem's type.
    pub filesystem: &'a [u8],
    /// The filesystem's own options.
    pub filesystem_options: &'a [u8],
}

/// A line that is not as the kernel writes it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {0} of mountinfo is not understood")]
pub struct Malformed(usize);

/// Reads each line, in the order of the mounts: what is mounted later stands later.
pub fn mounts(text: &[u8]) -> impl Iterator<Item = Result<Mount<'_>, Malformed>> {
    text.split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(at, line)| mount(line).ok_or(Malformed(at + 1)))
}

fn mount(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let device = fields.next()?;
    let root = fields.next()?;
    let point = fields.next()?;
    let options = fields.next()?;
    // Then any number of optional fields, ended by a hyphen.
    fields.by_ref().find(|field| *field == b"-")?;
    let filesystem = fields.next()?;
    let filesystem_options = fields.nth(1)?;
    Some(Mount {
        id,
        parent,
        device,
        root: unescape(root),
        point: unescape(point),
        mount_read_only: has(options, b"ro"),
        filesystem_read_only: has(filesystem_options, b"ro"),
        filesystem,
        filesystem_options,
    })
}

/// Whether a list that is joined by commas has this option.
fn has(options: &[u8], wanted: &[u8]) -> bool {
    options
        .split(|byte| *byte == b',')
        .any(|option| option == wanted)
}

/// The kernel writes blanks and backslashes as a backslash and three octal digits.
fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return Cow::Borrowed(text);
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (
                b'\\',
                [
                    a @ b'0'..=b'3',
                    b @ b'0'..=b'7',
                    c @ b'0'..=b'7',
                    after @ ..,
                ],
            ) => ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), after),
            _ => (*first, after),
        };
        plain.push(byte);
        rest = after;
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Result<Vec<Mount<'_>>, Malformed> {
        mounts(text).collect()
    }

    #[test]
    fn lines_are_read_with_and_without_optional_fields() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue\n\
            22 1 0:21 / / ro,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b\n";
        let found = all(text).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].id, found[1].id), (36, 22));
        assert_eq!((found[0].parent, found[1].parent), (35, 1));
        assert_eq!(&*found[0].root, b"/mnt1");
        assert_eq!(&*found[0].point, b"/mnt2");
        assert!(!found[0].mount_read_only);
        assert_eq!(found[0].filesystem, b"ext3");
        assert!(found[1].mount_read_only && !found[1].filesystem_read_only);
        assert_eq!(found[1].filesystem, b"overlay");
    }

    #[test]
    fn escapes_are_read_and_cannot_break_out_of_a_field() {
        // A mount point that spells another mount's line, with a blank, a newline and a backslash.
        let text = br"1 2 0:3 /a\040b /run/x\0121\0402\134 rw - tmpfs tmpfs rw";
        let found = all(text).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(&*found[0].root, b"/a b");
        assert_eq!(&*found[0].point, b"/run/x\n1 2\\");
        // What is no escape stays as it is.
        assert_eq!(&*unescape(br"\9\04"), br"\9\04");
        assert_eq!(&*unescape(br"\777"), br"\777");
    }

    #[test]
    fn what_the_kernel_does_not_write_is_refused() {
        for line in [
            "x",
            "1 2 0:3 / /",
            "1 2 0:3 / / rw shared:1 tmpfs tmpfs rw",
            "1 2 0:3 / / rw -",
            "1 2 0:3 / / rw - tmpfs",
            "1 2 0:3 / / rw - tmpfs tmpfs",
        ] {
            let text = format!("1 2 0:3 / / rw - tmpfs tmpfs rw\n{line}\n");
            assert_eq!(all(text.as_bytes()), Err(Malformed(2)), "{line:?}");
        }
    }

    #[test]
    fn our_own_is_read() {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        let found = all(&text).unwrap();
        assert!(found.iter().any(|mount| &*mount.point == b"/"));
    }
}
