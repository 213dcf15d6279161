//! `[[node.volume]]`: a tmpfs that the node makes, owns and watches over.

use crate::config::BadConfig;
use serde::Deserialize;

/// Most volumes of one node.
const MOST: usize = 1024;

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// Its name, and that of its directory.
    pub name: String,
    /// How much it can hold.
    #[serde(default)]
    pub size: Size,
    /// The uid that its directory belongs to: the sidecar's.
    #[serde(default)]
    pub uid: u32,
    /// The gid likewise.
    #[serde(default)]
    pub gid: u32,
    /// Its directory's mode.
    #[serde(default)]
    pub mode: Mode,
}

/// A number of bytes, written as `512k`, `1m` or `1g`; a whole number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(u64);

impl Size {
    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl Default for Size {
    fn default() -> Self {
        Self(1 << 20)
    }
}

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let read = || {
            let unit = text.len().checked_sub(1)?;
            let shift = match text.as_bytes().get(unit)? {
                b'k' => 10,
                b'm' => 20,
                b'g' => 30,
                _ => return None,
            };
            let digits = text.get(..unit)?;
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            let number: u64 = plain.then(|| digits.parse().ok())??;
            let bytes = number.checked_mul(1 << shift)?;
            // The largest page of Linux's is 64 KiB, and a tmpfs holds whole pages.
            let fits = (64 << 10..=16 << 30).contains(&bytes) && bytes % (64 << 10) == 0;
            fits.then_some(Self(bytes))
        };
        read().ok_or_else(|| {
            format!("expected a multiple of 64k up to 16g, such as 512k or 1m, found {text:?}")
        })
    }
}

/// Permission bits, written in octal: `0750`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mode(u32);

impl Mode {
    /// The bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self(0o750)
    }
}

impl TryFrom<String> for Mode {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let plain = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        let bits = u32::from_str_radix(&text, 8).ok();
        bits.filter(|bits| plain && *bits <= 0o777 && bits & 0o700 == 0o700 && bits & 0o002 == 0)
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "expected a mode in octal with all of the owner's bits and not writable for \
                     others, such as 0750, found {text:?}"
                )
            })
    }
}

/// Checks what the types alone do not hold.
pub(crate) fn check(volumes: &[VolumeConfig]) -> Result<(), BadConfig> {
    let bad = |key, expected: &str, found: &str| {
        let expected = expected.to_owned();
        let found = format!("{found:?}");
        Err(BadConfig {
            key,
            expected,
            found,
        })
    };
    if volumes.len() > MOST {
        return bad(
            "node.volume",
            "at most 1024 volumes",
            &volumes.len().to_string(),
        );
    }
    for (at, volume) in volumes.iter().enumerate() {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let name = &volume.name;
        let fits = (1..=63).contains(&name.len())
            && name.bytes().all(allowed)
            && !name.starts_with(['.', '-']);
        if !fits {
            let expected =
                "1 to 63 of a-z, A-Z, 0-9, '-', '_' and '.', not beginning with '.' or '-'";
            return bad("node.volume.name", expected, name);
        }
        if volumes.iter().take(at).any(|before| before.name == *name) {
            return bad("node.volume.name", "a name that no other volume has", name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_read_with_its_defaults() {
        let read: VolumeConfig = toml::from_str("name = 'orders'").unwrap();
        assert_eq!((read.size.bytes(), read.mode.bits()), (1 << 20, 0o750));
        let read: VolumeConfig =
            toml::from_str("name = 'a'\nsize = '128k'\nuid = 7\ngid = 8\nmode = '0700'").unwrap();
        assert_eq!((read.size.bytes(), read.mode.bits()), (128 << 10, 0o700));
        assert_eq!((read.uid, read.gid), (7, 8));
    }

    #[test]
    fn what_no_volume_can_have_is_refused() {
        for bad in [
            "size = '1'",
            "size = ''",
            "size = 'm'",
            "size = '1k'",
            "size = '+1m'",
            "size = '17g'",
            "size = '65k'",
            "size = '99999999999999999999g'",
            "mode = '0777'",
            "mode = '0999'",
            "mode = '050'",
            "mode = '+750'",
            "mode = '4750'",
            "owner = 1",
        ] {
            let text = format!("name = 'a'\n{bad}");
            assert!(toml::from_str::<VolumeConfig>(&text).is_err(), "{bad}");
        }
        let named = |names: &[&str]| -> Vec<VolumeConfig> {
            let read = |name: &&str| toml::from_str(&format!("name = {name:?}")).unwrap();
            names.iter().map(read).collect()
        };
        for bad in [&["a", "a"][..], &[".."], &["a/b"], &[""], &["-a"]] {
            assert_eq!(check(&named(bad)).unwrap_err().key, "node.volume.name");
        }
        check(&named(&["a", "b.c-d_e"])).unwrap();
    }
}
