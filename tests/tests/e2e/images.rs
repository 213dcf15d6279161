//! The images that we give to others.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use mayfly_tests::harness::{Docker, binary, output};
use serde_json::{Value, json};

#[test]
fn the_images_hold_our_static_programs_and_nothing_else() -> Result<()> {
    let docker = Docker::host()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/images/build");
    output(docker.client_of(script).arg("test"))?;
    let images: [(&str, &[&str]); 3] = [
        ("sidecar", &["mayfly-shim", "mayfly-sidecar"]),
        ("broker", &["mayfly", "mayfly-broker"]),
        ("node", &["mayfly-node"]),
    ];
    for (image, programs) in images {
        let tag = format!("localhost/mayfly/{image}:test");
        let config = docker.cli(["image", "inspect", &tag])?;
        let config: Value = serde_json::from_str(&config)?;
        assert_eq!(
            config[0]["Config"]["Entrypoint"],
            json!([format!("/bin/mayfly-{image}")])
        );

        let container = docker.cli(["create", &tag])?;
        let archive = docker.dir().join("client/export.tar");
        docker.cli([
            "export",
            "--output",
            &archive.display().to_string(),
            &container,
        ])?;
        let mut tar = Command::new("tar");
        let files = output(tar.arg("--list").arg("--file").arg(&archive))?;
        let mut found: Vec<&str> = files
            .lines()
            .filter_map(|f| f.strip_prefix("bin/"))
            .collect();
        found.retain(|name| !name.is_empty());
        found.sort_unstable();
        assert_eq!(found, programs);
        // The engine adds its mount points; there is no shell and no library to misuse.
        for file in files.lines() {
            let top = file.split('/').next().unwrap_or_default();
            assert!(
                [".dockerenv", "bin", "dev", "etc", "proc", "sys"].contains(&top),
                "{file}"
            );
        }
        for program in programs {
            let copy = docker.dir().join("client/copy");
            let from = format!("{container}:/bin/{program}");
            docker.cli(["cp", &from, &copy.display().to_string()])?;
            assert!(
                std::fs::read(&copy)? == std::fs::read(binary(program)?)?,
                "{program} differs"
            );
        }
        docker.cli(["rm", &container])?;
    }
    Ok(())
}
