//! What a throwaway broker begins with.

use crate::client::Client;
use crate::command::{block_on, plan, secret_input};
use crate::config;
use crate::dev::StartArgs;
use crate::dev::cgroup;
use crate::dev::place::Place;
use crate::failure::Failure;
use mayfly_wire::admin::{
    CredentialConfig, Desired, EngineConfig, KvPut, KvVersion, PolicyFile, SecretText,
};
use mayfly_wire::{CredentialName, FieldName, KvPath};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Most credentials that a folder can make.
const MOST: usize = 256;
/// How long each lasts unless renewed, in seconds.
const TTL: u64 = 900;

/// One credential of a folder: its name, and a file for each of its fields.
struct Found {
    name: CredentialName,
    fields: BTreeMap<FieldName, PathBuf>,
}

/// Stores and applies what the arguments say, and tells it in a sentence.
pub fn seed(place: &Place, args: &StartArgs) -> Result<String, Failure> {
    if args.bare {
        return Ok("Nothing is configured: see `mayfly apply`.".into());
    }
    if let Some(dir) = &args.secrets {
        let doing = || Failure::doing(format!("cannot find {}", dir.display()));
        let dir = fs::canonicalize(dir).map_err(doing())?;
        symlink(dir, place.secrets_link()).map_err(doing())?;
    }
    let found = args
        .secrets
        .as_deref()
        .map(look)
        .transpose()?
        .unwrap_or_default();
    let (mut desired, places) = match &args.config {
        Some(dir) => config::read(dir)?,
        None => (everything_to_ours(), config::Places::default()),
    };
    for one in &found {
        if desired
            .credentials
            .iter()
            .any(|known| known.name == one.name)
        {
            return Err(Failure::Config(format!(
                "credential {} stands in --config and in --secrets",
                one.name
            )));
        }
        desired.credentials.push(CredentialConfig {
            name: one.name.clone(),
            ttl_seconds: TTL,
            max_ttl_seconds: None,
            grace_seconds: None,
            engine: EngineConfig::Kv {
                path: path_of(&one.name)?,
            },
        });
    }
    let names: Vec<_> = desired
        .credentials
        .iter()
        .map(|one| one.name.to_string())
        .collect();
    let client = Client::new(place.admin_socket());
    block_on(async {
        for one in found {
            store(&client, &one).await?;
        }
        plan::make_so(&client, desired, &places, None).await
    })?;
    Ok(match (names.len(), &args.config) {
        (0, None) => "It has no credentials yet: --secrets DIR makes one of each file.".into(),
        (_, None) => format!("Every `dev run` container gets: {}.", names.join(", ")),
        (_, Some(dir)) => format!(
            "{} is applied; credentials: {}.",
            dir.display(),
            names.join(", ")
        ),
    })
}

/// One policy: whatever `mayfly dev run` starts gets whatever there is.
fn everything_to_ours() -> Desired {
    let text = format!(
        "@id(\"dev\")\n\
         @reason(\"mayfly dev grants everything to the containers that mayfly dev run starts\")\n\
         permit (principal is Mayfly::Workload, action == Mayfly::Action::\"issue\", resource)\n\
         when {{ principal has cgroup_path && principal.cgroup_path like \"/{}/*\" }};\n",
        cgroup::PARENT
    );
    Desired {
        policies: vec![PolicyFile {
            file: "dev.cedar".into(),
            text,
        }],
        ..Desired::default()
    }
}

fn path_of(name: &CredentialName) -> Result<KvPath, Failure> {
    let path = format!("dev/{name}").parse();
    path.map_err(|error| Failure::Usage(format!("--secrets: {error}")))
}

async fn store(client: &Client, found: &Found) -> Result<(), Failure> {
    let mut fields = BTreeMap::new();
    for (name, file) in &found.fields {
        let value = secret_input::read(Some(file), false)?;
        fields.insert(name.clone(), SecretText::encode(&value));
    }
    let body = KvPut {
        fields,
        if_version: None,
    };
    let _: KvVersion = client
        .put(&format!("/v1/kv/{}", path_of(&found.name)?), &body)
        .await?;
    Ok(())
}

/// Finds the credentials of a folder. Each file is one; a directory is one of several fields.
fn look(dir: &Path) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    for path in entries(dir)? {
        let name = named(&path)?;
        let mut fields = BTreeMap::new();
        if path.is_dir() {
            for file in entries(&path)? {
                fields.insert(named(&file)?, file);
            }
        } else {
            let only = "value".parse();
            fields.insert(
                only.map_err(|error| Failure::Failed(format!("{error}")))?,
                path,
            );
        }
        found.push(Found { name, fields });
    }
    Ok(found)
}

/// What stands in a directory, by name; hidden files are left out.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let doing = || Failure::doing(format!("cannot read the directory {}", dir.display()));
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(doing())? {
        let entry = entry.map_err(doing())?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    if paths.is_empty() || paths.len() > MOST {
        return Err(Failure::Usage(format!(
            "{}: expected 1 to {MOST} files, found {}",
            dir.display(),
            paths.len()
        )));
    }
    paths.sort();
    Ok(paths)
}

fn named<T: std::str::FromStr<Err = mayfly_wire::name::BadName>>(
    path: &Path,
) -> Result<T, Failure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let parsed = name.parse();
    parsed.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_becomes_credentials() {
        let dir = std::env::temp_dir().join(format!("mayfly-cli-seed-{}", std::process::id()));
        fs::create_dir_all(dir.join("db")).unwrap();
        fs::write(dir.join("token"), "t").unwrap();
        fs::write(dir.join("db/username"), "u").unwrap();
        fs::write(dir.join("db/password"), "p").unwrap();
        fs::write(dir.join(".hidden"), "x").unwrap();
        let found = look(&dir).unwrap();
        let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["db", "token"]);
        let fields: Vec<_> = found[0].fields.keys().map(FieldName::as_str).collect();
        assert_eq!(fields, ["password", "username"]);
        assert_eq!(found[1].fields.keys().next().unwrap().as_str(), "value");
        fs::write(dir.join("Not A Name"), "x").unwrap();
        assert!(look(&dir).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
