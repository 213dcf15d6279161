//! Images made here, without a registry and without a build step.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::bins::binary;
use super::docker::Docker;
use super::temp::TempDir;
use super::wait::output;

/// The files and settings of an image in the making: one layer, from scratch.
#[derive(Debug)]
pub struct Image {
    root: TempDir,
    settings: Vec<String>,
}

impl Image {
    /// One that holds nothing but directories: `/bin`, `/etc` with two users (root, and `app` with
    /// id 1000), `/tmp`, `/run/secrets`, `/run/mayfly`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn scratch() -> Result<Self> {
        let image = Self {
            root: TempDir::new()?,
            settings: Vec::new(),
        };
        for dir in [
            "bin",
            "etc",
            "tmp",
            "proc",
            "sys",
            "dev",
            "run/secrets",
            "run/mayfly",
        ] {
            std::fs::create_dir_all(image.root.join(dir))?;
        }
        std::fs::set_permissions(image.root.join("tmp"), PermissionsExt::from_mode(0o1777))?;
        image
            .text(
                "etc/passwd",
                "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n",
            )?
            .text("etc/group", "root:x:0:\napp:x:1000:\n")
    }

    /// The empty image with our two static programs and the probe, and no shell.
    ///
    /// # Errors
    /// When a binary has not been built.
    pub fn with_sidecar() -> Result<Self> {
        let image = Self::scratch()?;
        ["mayfly-sidecar", "mayfly-shim", "mayfly-probe"]
            .into_iter()
            .try_fold(image, |image, name| image.program(&binary(name)?, name))
    }

    /// Adds a static busybox with all of its commands.
    ///
    /// # Errors
    /// When there is no busybox: `tests/setup` installs it.
    pub fn busybox(self) -> Result<Self> {
        let path = output(Command::new("sh").args(["-c", "command -v busybox"]))
            .context("no busybox: run tests/setup")?;
        let image = self.program(Path::new(&path), "busybox")?;
        for command in output(Command::new(&path).arg("--list"))?.lines() {
            if command != "busybox" {
                symlink("busybox", image.root.join("bin").join(command))?;
            }
        }
        Ok(image)
    }

    /// Adds a program as `/bin/NAME`.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn program(self, from: &Path, name: &str) -> Result<Self> {
        let to = self.root.join("bin").join(name);
        std::fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755))?;
        Ok(self)
    }

    /// Adds a file, its path relative to the image's root.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn text(self, path: &str, content: &str) -> Result<Self> {
        let path = self.root.join(path);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(path, content)?;
        Ok(self)
    }

    /// Adds a setting in the words of a Dockerfile, such as `ENTRYPOINT ["/bin/app"]`,
    /// `USER 1000:1000` or `LABEL a=b`.
    pub fn setting(mut self, line: &str) -> Self {
        self.settings.push(line.to_string());
        self
    }

    /// Where its files are, for what the methods above do not cover.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Gives it to an engine under a tag. The answer is its config digest, `sha256:…`.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub fn load(&self, docker: &Docker, tag: &str) -> Result<String> {
        let archive = docker.dir().join("client/image.tar");
        output(
            Command::new("tar")
                .args([
                    "--create",
                    "--numeric-owner",
                    "--owner=0",
                    "--group=0",
                    "--sort=name",
                ])
                .arg("--directory")
                .arg(self.root.path())
                .arg("--file")
                .arg(&archive)
                .arg("."),
        )?;
        let mut import = docker.client();
        import.arg("import");
        for line in &self.settings {
            import.args(["--change", line]);
        }
        let id = output(import.arg(&archive).arg(tag))?;
        let _ = std::fs::remove_file(&archive);
        Ok(id)
    }
}
