//! Real applications on real containers: what they do while their credentials change.

mod acknowledge;
mod companion;
mod example;
mod load;
mod none;
mod once;
mod overhead;
mod page;
mod rotations;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;
use mayfly_tests::harness::{Broker, Docker, Image, PostgresServer};

/// The examples that are run here.
fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples")
}

/// An image for Debian's own programs, which come with the machine's `/usr`, mounted read-only.
fn debian(docker: &Docker, tag: &str) -> Result<String> {
    let image = Image::with_sidecar()?.busybox()?;
    for name in ["lib", "lib64", "sbin"] {
        symlink(format!("usr/{name}"), image.root().join(name))?;
    }
    // Without the list of libraries, Python asks a compiler where libpq is, which takes seconds.
    std::fs::copy("/etc/ld.so.cache", image.root().join("etc/ld.so.cache"))?;
    image.load(docker, tag)
}

/// A connection of the broker to a server, under the name `shop`.
fn connection(server: &PostgresServer) -> String {
    format!(
        "[connection.shop]\nengine = \"postgres\"\nhost = \"127.0.0.1\"\nport = {}\n\
         username = \"postgres\"\ntls = \"off\"\nscram_iterations = 1\n",
        server.port()
    )
}

/// A credential that is a role of its own.
fn role(name: &str, grace: &str) -> String {
    format!(
        "[credential.{name}]\nengine = \"postgres\"\nconnection = \"shop\"\nttl = \"5m\"\n\
         grace = \"{grace}\"\ncreate = [\"CREATE ROLE {{{{name}}}} LOGIN PASSWORD {{{{password}}}} \
         VALID UNTIL {{{{expiration}}}}\"]\n"
    )
}

/// Applies a configuration that begins with [`connection`], for everybody, and opens the connection.
fn configure(broker: &Broker, access: &str, config: &str) -> Result<()> {
    broker.apply(&[("access.cedar", access), ("shop.toml", config)])?;
    broker
        .cli_with_input(&["connection", "set", "shop"], PostgresServer::PASSWORD)
        .map(drop)
}

/// Whether a role is there.
fn has_role(server: &PostgresServer, role: &str) -> Result<bool> {
    let asked = format!("SELECT count(*) FROM pg_roles WHERE rolname = '{role}'");
    Ok(server.psql(&asked)?.trim() == "1")
}
