//! What stands at our names in the publishing directory, and whether it is ours.

use super::PublishError;
use super::dir::{Dir, kind, kind_in_words};
use super::generation::PREFIX;
use mayfly_wire::PublishFault;
use nix::sys::stat::SFlag;
use nix::unistd::geteuid;

/// Where the symlink of a credential leads.
pub fn link_target(name: &str) -> String {
    format!("{}/{name}", super::DATA)
}

/// Whether `name` is free for the symlink of a credential (`false`) or is that symlink (`true`).
///
/// # Errors
/// [`PublishError::Foreign`] for anything else.
pub fn has_link(dir: &Dir, name: &str) -> Result<bool, PublishError> {
    match target(dir, name, "the symlink to `..data`, or nothing,")? {
        None => Ok(false),
        Some(target) if target == link_target(name) => Ok(true),
        Some(target) => Err(foreign_link(
            name,
            "the symlink to `..data`, or nothing,",
            &target,
        )),
    }
}

/// Which generation `..data` or its successor leads to, if it is there.
///
/// # Errors
/// [`PublishError::Foreign`] unless it is a symlink to a generation's name.
pub fn pointed(dir: &Dir, name: &str) -> Result<Option<String>, PublishError> {
    let expected = "a symlink to a generation";
    match target(dir, name, expected)? {
        Some(target) if !is_generation_name(&target) => Err(foreign_link(name, expected, &target)),
        target => Ok(target),
    }
}

/// Checks that what has a generation's name is a directory that our own uid made.
///
/// # Errors
/// [`PublishError::Foreign`].
pub fn expect_generation(dir: &Dir, name: &str) -> Result<(), PublishError> {
    let looked = dir.look(name);
    let Some(stat) = looked.map_err(|error| PublishError::io("look at", name, error))? else {
        return Ok(());
    };
    if kind(&stat) == SFlag::S_IFDIR && stat.st_uid == geteuid().as_raw() {
        return Ok(());
    }
    let fault = match kind(&stat) {
        SFlag::S_IFLNK => PublishFault::Symlink,
        SFlag::S_IFDIR => PublishFault::ForeignOwner,
        _ => PublishFault::Foreign,
    };
    Err(PublishError::Foreign {
        fault,
        name: name.to_owned(),
        expected: "a directory of the sidecar's own uid",
        found: format!("{} of uid {}", kind_in_words(&stat), stat.st_uid),
    })
}

fn is_generation_name(text: &str) -> bool {
    text.strip_prefix(PREFIX)
        .is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
}

fn target(dir: &Dir, name: &str, expected: &'static str) -> Result<Option<String>, PublishError> {
    let io = |error| PublishError::io("look at", name, error);
    match dir.look(name).map_err(io)? {
        None => Ok(None),
        Some(stat) if kind(&stat) == SFlag::S_IFLNK => dir.target(name).map(Some).map_err(io),
        Some(stat) => Err(PublishError::Foreign {
            fault: PublishFault::Foreign,
            name: name.to_owned(),
            expected,
            found: kind_in_words(&stat).to_owned(),
        }),
    }
}

fn foreign_link(name: &str, expected: &'static str, target: &str) -> PublishError {
    let target: String = target.chars().take(80).collect();
    PublishError::Foreign {
        fault: PublishFault::Symlink,
        name: name.to_owned(),
        expected,
        found: format!("a symlink to {target:?}"),
    }
}
