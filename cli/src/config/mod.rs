//! A configuration directory: `.toml` files with connections and credentials, `.cedar` files with policies. Other
//! files in it are not read, so that a README can stand beside them.

mod credentials;
mod places;

use crate::failure::Failure;
use credentials::Connection;
use mayfly_wire::ConnectionConfig;
use mayfly_wire::admin::{Desired, PolicyFile};
pub use places::Places;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Most files of one directory that are read.
const MAX_FILES: usize = 1_000;
/// Most bytes of one file.
const MAX_FILE: u64 = 1024 * 1024;
/// Most bytes of all files, so that the request fits what a broker takes.
const MAX_ALL: usize = 4 * 1024 * 1024;

/// Reads what a directory says, and where.
pub fn read(dir: &Path) -> Result<(Desired, Places), Failure> {
    let (mut desired, mut places) = (Desired::default(), Places::default());
    let mut seen: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (path, text) in files(dir, &["toml", "cedar"])? {
        if path.extension().is_some_and(|ending| ending == "cedar") {
            let name = file_name(&path);
            desired.policies.push(policy_file(name.clone(), text));
            places.add_policies(name, path);
            continue;
        }
        let file = parse(&path, &text)?;
        desired.hardened |= file.hardened;
        let mut once =
            |kind: &str, name: &str| match seen.insert(format!("{kind} {name}"), path.clone()) {
                None => Ok(()),
                Some(other) => Err(Failure::Config(format!(
                    "{}: {kind} {name} stands in {} already; a name is used once",
                    path.display(),
                    other.display()
                ))),
            };
        for connection in file.connections {
            once("connection", connection.config.name.as_str())?;
            desired.connections.push(with_ca(connection, &path)?);
        }
        for credential in file.credentials {
            once("credential", credential.name.as_str())?;
            desired.credentials.push(credential);
        }
        places.add(path, text, file.sections);
    }
    Ok((desired, places))
}

/// Reads the certificates that a connection trusts. Their path is seen from the file that names it.
fn with_ca(connection: Connection, file: &Path) -> Result<ConnectionConfig, Failure> {
    let Connection {
        mut config,
        ca_file,
    } = connection;
    if let Some((path, line)) = ca_file {
        let path = file.parent().unwrap_or(Path::new("")).join(path);
        let pem = read_file(&path)?;
        if !pem.contains("-----BEGIN CERTIFICATE-----") {
            return Err(Failure::Config(format!(
                "{}:{line}: connection {}: ca_file: expected certificates in PEM in {}",
                file.display(),
                config.name,
                path.display()
            )));
        }
        config.ca_pem = Some(pem);
    }
    Ok(config)
}

fn parse(path: &Path, text: &str) -> Result<credentials::File, Failure> {
    credentials::parse(text).map_err(|mistake| {
        let line = mistake.line;
        Failure::Config(format!("{}:{line}: {}", path.display(), mistake.message))
    })
}

/// Reads the policies of a directory, or the one of a file. The names are as the operator gave them.
pub fn read_policies(path: &Path) -> Result<Vec<PolicyFile>, Failure> {
    let found = if path.is_dir() {
        files(path, &["cedar"])?
    } else {
        vec![(path.to_owned(), read_file(path)?)]
    };
    let named = |(path, text): (PathBuf, String)| policy_file(path.display().to_string(), text);
    Ok(found.into_iter().map(named).collect())
}

fn policy_file(file: String, text: String) -> PolicyFile {
    PolicyFile { file, text }
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Every file of the directory with one of these endings, by name.
fn files(dir: &Path, endings: &[&str]) -> Result<Vec<(PathBuf, String)>, Failure> {
    let doing = || Failure::doing(format!("cannot read the directory {}", dir.display()));
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(doing())? {
        let path = entry.map_err(doing())?.path();
        let hidden = file_name(&path).starts_with('.');
        let ending = path.extension().and_then(|ending| ending.to_str());
        if !hidden && ending.is_some_and(|ending| endings.contains(&ending)) {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(Failure::Config(format!(
            "{}: expected files that end in .{}, found none. To remove everything, leave one empty",
            dir.display(),
            endings.join(" or .")
        )));
    }
    if paths.len() > MAX_FILES {
        return Err(Failure::Config(format!(
            "{}: it has {} files; the most is {MAX_FILES}",
            dir.display(),
            paths.len()
        )));
    }
    paths.sort();
    let mut all = 0;
    let mut found = Vec::new();
    for path in paths {
        let text = read_file(&path)?;
        all += text.len();
        if all > MAX_ALL {
            return Err(Failure::Config(format!(
                "{}: its files have more than {MAX_ALL} bytes together",
                dir.display()
            )));
        }
        found.push((path, text));
    }
    Ok(found)
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let doing = || Failure::doing(format!("cannot read {}", path.display()));
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(doing())?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(doing())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Failure::Config(format!(
            "{}: it has more than {MAX_FILE} bytes",
            path.display()
        )));
    }
    String::from_utf8(bytes)
        .map_err(|_| Failure::Config(format!("{}: expected UTF-8 text", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn of(name: &str, files: &[(&str, &str)]) -> Self {
            let dir =
                std::env::temp_dir().join(format!("mayfly-cli-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            for (file, text) in files {
                fs::write(dir.join(file), text).unwrap();
            }
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const ORDERS: &str = "[credential.orders]\nengine = \"kv\"\npath = \"o/db\"\nttl = \"5m\"\n";

    #[test]
    fn a_directory_is_read_in_the_order_of_its_names() {
        let dir = Dir::of(
            "read",
            &[
                ("b.cedar", "permit(principal, action, resource);"),
                ("a.toml", ORDERS),
                ("README.md", "not read"),
                (".hidden.toml", "not read"),
            ],
        );
        let (desired, _) = read(&dir.0).unwrap();
        assert_eq!(desired.credentials.len(), 1);
        assert_eq!(desired.policies[0].file, "b.cedar");
    }

    #[test]
    fn a_name_used_twice_is_refused_with_both_files() {
        let dir = Dir::of("twice", &[("a.toml", ORDERS), ("b.toml", ORDERS)]);
        let text = read(&dir.0).unwrap_err().to_string();
        assert!(text.contains("a.toml") && text.contains("b.toml"), "{text}");
    }

    #[test]
    fn a_mistake_names_file_and_line() {
        let dir = Dir::of(
            "mistake",
            &[(
                "a.toml",
                "\n[credential.x]\nttl = \"1m\"\nengine = \"vault\"\n",
            )],
        );
        let text = read(&dir.0).unwrap_err().to_string();
        assert!(text.contains("a.toml:4: "), "{text}");
    }

    #[test]
    fn an_empty_directory_is_a_mistake_not_a_wish_to_delete_everything() {
        let dir = Dir::of("empty", &[("README.md", "")]);
        assert!(matches!(read(&dir.0), Err(Failure::Config(_))));
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let dir = Dir::of("long", &[("a.toml", &"#".repeat(1024 * 1024 + 1))]);
        assert!(read(&dir.0).unwrap_err().to_string().contains("more than"));
    }
}
