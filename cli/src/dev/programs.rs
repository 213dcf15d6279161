//! Finds the other programs of Mayfly: beside this one, or else in the path.

use crate::failure::Failure;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Where programs are.
pub struct Programs {
    path: OsString,
}

impl Programs {
    /// With what `PATH` says.
    pub fn new(path: OsString) -> Self {
        Self { path }
    }

    /// The program of this name, as an absolute path.
    pub fn find(&self, name: &str) -> Result<PathBuf, Failure> {
        let own = std::env::current_exe().map_err(Failure::doing("cannot find my own file"))?;
        candidates(&own, &self.path, name)
            .find(|file| file.is_file())
            .ok_or_else(|| {
                Failure::Failed(format!(
                    "cannot find {name}: expected it beside {} or in the path",
                    own.display()
                ))
            })
    }
}

/// In the sibling directory that small programs are built into, beside ours, and in the path.
fn candidates(own: &Path, path: &OsStr, name: &str) -> impl Iterator<Item = PathBuf> {
    let built_small = own.parent().filter(|dir| dir.ends_with("release"));
    let built_small = built_small.map(|dir| dir.with_file_name("small").join(name));
    let in_path: Vec<_> = std::env::split_paths(path)
        .map(|dir| dir.join(name))
        .collect();
    let beside = own.with_file_name(name);
    built_small.into_iter().chain([beside]).chain(in_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_with_us_comes_before_what_is_installed() {
        let found: Vec<_> = candidates(
            Path::new("/t/release/mayfly"),
            OsStr::new("/bin:/usr/bin"),
            "x",
        )
        .collect();
        let expected = ["/t/small/x", "/t/release/x", "/bin/x", "/usr/bin/x"];
        assert_eq!(found, expected.map(PathBuf::from));
        let found: Vec<_> = candidates(Path::new("/opt/mayfly"), OsStr::new("/bin"), "x").collect();
        assert_eq!(found, ["/opt/x", "/bin/x"].map(PathBuf::from));
    }
}
