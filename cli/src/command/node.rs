//! `node`: hosts that run `mayfly-node`.

use crate::client::Client;
use crate::failure::Failure;
use crate::output::Out;
use mayfly_wire::admin::NodeCertificate;
use serde_json::json;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// What to do with nodes.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make the certificate and the key with which a node may connect
    #[command(after_help = "\
Example:
  mayfly node add worker-1 --out worker-1/
  # then bring worker-1/ to that host, where mayfly-node reads it")]
    Add {
        /// The node's name: it can only speak for workloads of its own
        name: String,
        /// A directory for node.crt, node.key and ca.crt; no file in it is overwritten
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// `mayfly node`
pub async fn run(client: &Client, out: Out, command: Command) -> Result<(), Failure> {
    let Command::Add { name, out: dir } = command;
    let path = format!("/v1/nodes/{}", crate::client::encode(&name));
    // Before the broker is asked: a key that cannot be written must not be made.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(Failure::doing(format!("cannot make {}", dir.display())))?;
    let paths = ["node.crt", "node.key", "ca.crt"].map(|file| dir.join(file));
    if let Some(there) = paths.iter().find(|path| path.exists()) {
        let there = there.display();
        return Err(Failure::Failed(format!(
            "{there} is there already, and is not overwritten"
        )));
    }
    let mut files = Vec::new();
    for path in &paths {
        files.push(create(path)?);
    }
    let made: Result<NodeCertificate, Failure> = client.post(&path, &json!({})).await;
    let written = made.and_then(|made| {
        let key = made
            .key
            .decode()
            .map_err(|error| Failure::Failed(error.to_owned()))?;
        let contents = [
            made.certificate.as_bytes(),
            key.expose(),
            made.ca.as_bytes(),
        ];
        for ((path, file), content) in files.iter_mut().zip(contents) {
            file.write_all(content)
                .and_then(|()| file.sync_all())
                .map_err(Failure::doing(format!("cannot write {}", path.display())))?;
        }
        Ok(())
    });
    if written.is_err() {
        for (path, _) in &files {
            // What is left is empty or partial; the failure itself is what is told.
            let _ = std::fs::remove_file(path);
        }
    }
    written?;
    let value = json!({ "node": name, "directory": dir });
    out.show(&value, |_| {
        format!(
            "node {name}: wrote node.crt, node.key and ca.crt to {}. node.key is a secret.",
            dir.display()
        )
    })
}

fn create(path: &Path) -> Result<(PathBuf, std::fs::File), Failure> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Failure::doing(format!("cannot create {}", path.display())))?;
    Ok((path.to_owned(), file))
}
