//! Several containers from one compose file.

use std::process::Command;

use anyhow::{Context, Result};

use super::container::Container;
use super::docker::Docker;
use super::temp::TempDir;
use super::wait::{output, random_text};

/// The options of a tmpfs volume as the sidecar wants it, for uid and gid 1000.
const TMPFS: &str = "size=1m,uid=1000,gid=1000,mode=0750,noexec,nosuid,nodev,noswap";

/// A compose project; taken down, with its volumes, on drop.
#[derive(Debug)]
pub struct Compose<'a> {
    docker: &'a Docker,
    dir: TempDir,
    files: Vec<String>,
    project: String,
}

impl<'a> Compose<'a> {
    /// Brings the services of a compose file up. Of the file, only the part below `services:` is
    /// given, indented by two; `volumes` names tmpfs volumes that are declared for it.
    ///
    /// # Errors
    /// When the file is wrong or a service does not start.
    pub fn up(docker: &'a Docker, services: &str, volumes: &[&str]) -> Result<Self> {
        let dir = TempDir::new()?;
        let mut file = format!("version: \"3.7\"\nservices:\n{services}\n");
        if !volumes.is_empty() {
            file.push_str("volumes:\n");
        }
        for volume in volumes {
            file.push_str(&format!(
                "  {volume}:\n    driver_opts: {{type: tmpfs, device: tmpfs, o: \"{TMPFS}\"}}\n"
            ));
        }
        std::fs::write(dir.join("compose.yml"), file)?;
        Self::of(docker, dir, &["compose.yml"])
    }

    /// Brings up what files of a directory say together, the later ones over the earlier.
    ///
    /// # Errors
    /// When a file is wrong or a service does not start.
    pub fn of(docker: &'a Docker, dir: TempDir, files: &[&str]) -> Result<Self> {
        let compose = Self {
            docker,
            dir,
            files: files.iter().map(|file| (*file).to_owned()).collect(),
            project: format!("mayfly{}", random_text(6)?),
        };
        compose.cli(&["up", "-d"])?;
        Ok(compose)
    }

    /// The name of the project, as its label `com.docker.compose.project` has it.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// Runs the compose client for this project.
    ///
    /// # Errors
    /// When it fails.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let mut command = client(self.docker);
        for file in &self.files {
            command.arg("-f").arg(self.dir.join(file));
        }
        command.args(["-p", &self.project]).args(args);
        output(&mut command)
    }

    /// The container of a service (the first, when it is scaled), ended or not.
    ///
    /// # Errors
    /// When there is none.
    pub fn service(&self, name: &str) -> Result<Container<'a>> {
        // From the engine: the older compose client takes half a second for the same answer.
        let project = format!("label=com.docker.compose.project={}", self.project);
        let service = format!("label=com.docker.compose.service={name}");
        let ps = [
            "ps",
            "--all",
            "--quiet",
            "--no-trunc",
            "--filter",
            &project,
            "--filter",
            &service,
        ];
        let id = self.docker.cli(ps)?;
        let id = id
            .lines()
            .next()
            .with_context(|| format!("no container of service {name}"))?;
        Ok(Container::new(self.docker, id.to_string(), false))
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        let _ = self.cli(&["down", "--volumes", "--timeout", "0"]);
    }
}

/// The plugin where the client has it, else the older program of its own.
fn client(docker: &Docker) -> Command {
    let mut plugin = docker.client();
    // The client looks for plugins in its settings' directory too, which is empty here.
    if plugin
        .args(["compose", "version"])
        .output()
        .is_ok_and(|done| done.status.success())
    {
        let mut command = docker.client();
        command.arg("compose");
        return command;
    }
    docker.client_of("docker-compose")
}
