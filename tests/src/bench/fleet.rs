//! Workloads by the ten thousand that stand nowhere: the bench speaks as their node, by the node's own
//! library, over the real link. What a node would have to find out about them is made up here, of the
//! size that it has for a compose container; all that the broker does for them is real.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use mayfly_node::remote::{BrokerConfig, RemoteBroker};
use mayfly_node::upstream::Upstream as _;
use mayfly_wire::evidence::{Container, Image, Settings};
use mayfly_wire::link::{NodeEvent, SessionRequest};
use mayfly_wire::posture::UNLIMITED;
use mayfly_wire::sealed::{PublicKey, generate};
use mayfly_wire::session::{Hello, PROTOCOL, ServerMessage};
use mayfly_wire::{Assurance, CredentialName, Evidence, Posture, WorkloadKey};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::linked::NODE;

/// What the engine gives to every container.
const BOUNDING: [&str; 14] = [
    "audit_write",
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "mknod",
    "net_bind_service",
    "net_raw",
    "setfcap",
    "setgid",
    "setpcap",
    "setuid",
    "sys_chroot",
];

/// The process that a workload is watched by, where there is one.
pub struct Init {
    /// Its pid.
    pub pid: u32,
    /// See [`Evidence::init_start_time`].
    pub start_time: u64,
    /// Its cgroup.
    pub cgroup: u64,
    /// Its pid namespace.
    pub namespace: u64,
}

/// A node's end of the link.
pub struct Fleet {
    runtime: Runtime,
    link: Arc<RemoteBroker>,
    boot: String,
    key: PublicKey,
}

impl Fleet {
    pub fn new(broker: BrokerConfig) -> Result<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            // One thread, which keeps the link alive between calls.
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            link: Arc::new(RemoteBroker::new(broker)?),
            boot: boot.trim().to_string(),
            key: generate().1,
        })
    }

    /// A workload that no process stands for.
    pub fn nobody(&self, number: u64) -> Evidence {
        self.evidence(&Init {
            pid: 1,
            start_time: 1,
            // Far above what this boot gives out.
            cgroup: (1 << 40) + number,
            namespace: (1 << 40) + number,
        })
    }

    /// A workload with this first process.
    pub fn evidence(&self, init: &Init) -> Evidence {
        let number = init.namespace;
        let posture = Posture {
            uid: Some(1000),
            gid: Some(1000),
            host_user_namespace: Some(true),
            host_pid_namespace: Some(false),
            host_network_namespace: Some(false),
            host_ipc_namespace: Some(false),
            host_mount_namespace: Some(false),
            host_uts_namespace: Some(false),
            host_cgroup_namespace: Some(false),
            effective_capabilities: Some(Vec::new()),
            permitted_capabilities: Some(Vec::new()),
            bounding_capabilities: Some(BOUNDING.map(str::to_string).into()),
            no_new_privs: Some(true),
            seccomp_mode: Some(2),
            seccomp_filters: Some(1),
            lsm_label: Some("docker-default (enforce)".to_string()),
            read_only_root: Some(true),
            engine_sockets: Some(Vec::new()),
            secrets_filesystem: Some("tmpfs".to_string()),
            memory_limit: Some(256 << 20),
            pids_limit: Some(UNLIMITED),
        };
        let id = format!("{number:064x}");
        let labels = [
            ("com.docker.compose.project", "shop"),
            ("com.docker.compose.service", "orders"),
            ("com.docker.compose.oneoff", "False"),
            ("team", "payments"),
        ];
        let labels = labels.map(|(key, value)| (key.to_string(), value.to_string()));
        Evidence {
            workload: WorkloadKey {
                boot_id: self.boot.clone(),
                cgroup_id: init.cgroup,
                pidns_id: number,
            },
            node: NODE.to_string(),
            assurance: Assurance::Inspected,
            lacking: BTreeSet::new(),
            cgroup_path: Some(format!("/system.slice/docker-{id}.scope")),
            container: Some(Container {
                engine: "docker".to_string(),
                id,
                name: format!("shop-orders-{number}"),
                image: Image {
                    config_digest: format!("sha256:{:064x}", 7),
                    repo_digests: BTreeSet::from([format!("shop/orders@sha256:{:064x}", 8)]),
                    reference: "shop/orders:1.4".to_string(),
                },
                labels: BTreeMap::from(labels),
                compose_project: Some("shop".to_string()),
                compose_service: Some("orders".to_string()),
                settings: Settings {
                    privileged: Some(false),
                    granted_capabilities: Some(Vec::new()),
                    seccomp: Some("default".to_string()),
                    apparmor: Some("default".to_string()),
                    pid_mode: Some("default".to_string()),
                    ipc_mode: Some("default".to_string()),
                    user_mode: Some("default".to_string()),
                    network_mode: Some("default".to_string()),
                    read_only_root: Some(true),
                    devices: Some(Vec::new()),
                },
            }),
            companion: None,
            own_namespaces: Some(true),
            peer: posture.clone(),
            init: posture,
            init_pid: init.pid,
            init_start_time: init.start_time,
        }
    }

    /// Has each of these take a credential, so many at once.
    pub fn take_all(
        &self,
        who: impl Iterator<Item = Evidence>,
        name: &CredentialName,
        at_once: usize,
    ) -> Result<()> {
        self.runtime.block_on(async {
            let mut asking = JoinSet::new();
            for evidence in who {
                if asking.len() >= at_once
                    && let Some(done) = asking.join_next().await
                {
                    done.context("asking for a credential")??;
                }
                let (link, key, name) = (Arc::clone(&self.link), self.key.clone(), name.clone());
                asking.spawn(async move { take(&link, key, evidence, name).await });
            }
            while let Some(done) = asking.join_next().await {
                done.context("asking for a credential")??;
            }
            Ok(())
        })
    }

    /// Has one take a credential, and gives how long that took in microseconds.
    pub fn take(&self, evidence: Evidence, name: &CredentialName) -> Result<f64> {
        let begun = Instant::now();
        let taking = take(&self.link, self.key.clone(), evidence, name.clone());
        self.runtime.block_on(taking)?;
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    }

    /// Reports that one died.
    pub fn died(&self, workload: WorkloadKey) -> Result<()> {
        let told = self.link.event(NodeEvent::Died { workload });
        Ok(self.runtime.block_on(told)?)
    }
}

async fn take(
    link: &RemoteBroker,
    public_key: PublicKey,
    evidence: Evidence,
    name: CredentialName,
) -> Result<()> {
    let request = SessionRequest {
        evidence,
        hello: Hello {
            protocol: PROTOCOL,
            public_key,
            want: Some(vec![name]),
        },
        csr: None,
        once: true,
    };
    let mut session = link.session(request).await?;
    loop {
        match session.down.recv().await {
            Some(ServerMessage::Hello { .. }) => {}
            Some(ServerMessage::Bundle(bundle)) => {
                let missing = &bundle.missing;
                ensure!(missing.is_empty(), "it is not in the bundle: {missing:?}");
                return Ok(());
            }
            other => bail!("expected a bundle, found {other:?}"),
        }
    }
}
