//! docs/sidecar.md, run by its own words, beside an application that knows nothing of us.

use anyhow::{Context, Result};
use mayfly_tests::harness::{Broker, Compose, Docker, Image, PostgresServer, TempDir, output};

use super::{configure, connection, examples, role};
use crate::e2e::resilience::app::ALL;

/// What the page shows, and around it what it leaves to its reader. Ends from the top down.
pub struct Page {
    pub compose: Compose<'static>,
    pub broker: Broker,
    pub server: PostgresServer,
}

impl Page {
    /// Starts the services that the page shows after a mark, together with those of `here`, in which
    /// `SOCKET` is the directory of the workload socket. The credential of both is the role `app-db`.
    pub fn start(mark: &str, here: &str) -> Result<Self> {
        let docker = Docker::host()?;
        images(docker)?;
        let server = PostgresServer::start(&["fsync=off"])?;
        let broker = Broker::beside(docker)?;
        let config = [connection(&server), role("app-db", "1m")];
        configure(&broker, ALL, &config.concat())?;
        let dir = TempDir::new()?;
        let socket = broker.workload_dir().display().to_string();
        let services = block(mark, "yaml")?;
        if services.contains("sidecar.toml") {
            std::fs::write(dir.join("sidecar.toml"), block(mark, "toml")?)?;
        }
        std::fs::write(dir.join("compose.yaml"), services)?;
        std::fs::write(dir.join("here.yaml"), here.replace("SOCKET", &socket))?;
        let compose = Compose::of(docker, dir, &["compose.yaml", "here.yaml"])?;
        Ok(Self {
            compose,
            broker,
            server,
        })
    }
}

/// The first block of a language after a mark, in the page.
pub fn block(mark: &str, language: &str) -> Result<String> {
    let page = std::fs::read_to_string(examples().join("../../docs/sidecar.md"))?;
    let after = page.split_once(mark);
    let (_, after) = after.with_context(|| format!("no {mark:?}"))?;
    let begun = after.split_once(&format!("```{language}\n"));
    let (_, begun) = begun.with_context(|| format!("no block after {mark:?}"))?;
    let (block, _) = begun.split_once("```").context("a block without an end")?;
    Ok(block.to_owned())
}

/// The images of `make images`, and one of an application that has nothing of ours in it.
fn images(docker: &Docker) -> Result<()> {
    output(&mut docker.client_of(examples().join("../images/build")))?;
    let image = Image::scratch()?.busybox()?;
    // With its owner, the engine would give it to the volume.
    std::fs::remove_dir(image.root().join("run/secrets"))?;
    image.load(docker, "apps:alone").map(drop)
}
