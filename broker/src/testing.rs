//! What the broker's own tests share.

use std::path::{Path, PathBuf};

/// A directory that goes when it is dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        let random: [u8; 8] = crate::seal::random().unwrap();
        let name = format!("mayfly-test-{:016x}", u64::from_be_bytes(random));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Evidence about an ordinary compose container.
pub fn evidence(cgroup_id: u64) -> mayfly_wire::Evidence {
    use mayfly_wire::evidence::{Container, Image};
    let labels = [("team", "payments"), ("empty", "")];
    mayfly_wire::Evidence {
        workload: mayfly_wire::WorkloadKey {
            boot_id: "6d0ea4ad-9a1c-4b53-8a4e-7d8f5a1d6f10".to_owned(),
            cgroup_id,
            pidns_id: 4_026_532_001,
        },
        node: "node-1".to_owned(),
        assurance: mayfly_wire::Assurance::Inspected,
        lacking: std::collections::BTreeSet::new(),
        cgroup_path: None,
        container: Some(Container {
            engine: "docker".to_owned(),
            id: "c0ffee".to_owned(),
            name: "shop-orders-1".to_owned(),
            image: Image {
                config_digest: "sha256:abc".to_owned(),
                ..Image::default()
            },
            labels: labels
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            compose_project: Some("shop".to_owned()),
            compose_service: Some("orders".to_owned()),
            ..Container::default()
        }),
        companion: None,
        own_namespaces: Some(true),
        peer: mayfly_wire::Posture::default(),
        init: mayfly_wire::Posture::default(),
        init_pid: 4242,
        init_start_time: 99,
    }
}
