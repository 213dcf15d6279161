//! `leases`, `revoke` and `rotate`: who holds what, taking it away, and making it anew.

use crate::client::{Client, encode};
use crate::command::progress;
use crate::failure::Failure;
use crate::output::{List, Out, clean};
use crate::when;
use mayfly_wire::admin::{LeaseFilter, LeaseInfo, Revoke, Rotate};
use mayfly_wire::{CredentialName, LeaseId};

/// Which leases are meant: those that fit everything that is given.
#[derive(clap::Args)]
pub struct Which {
    /// Only of this workload: its name, its id, or the beginning of its id
    #[arg(long, value_name = "WORKLOAD")]
    workload: Option<String>,
    /// Only of this credential
    #[arg(long, value_name = "NAME")]
    credential: Option<CredentialName>,
    /// Only of workloads on this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Only those that should have ended and could not be
    #[arg(long)]
    stuck: bool,
}

impl Which {
    fn filter(self, lease: Option<String>) -> LeaseFilter {
        LeaseFilter {
            lease: lease.map(LeaseId::from),
            workload: self.workload,
            credential: self.credential,
            node: self.node,
            stuck: self.stuck,
        }
    }
}

/// Arguments of `leases`.
#[derive(clap::Args)]
pub struct LeasesArgs {
    #[command(flatten)]
    which: Which,
}

/// Arguments of `revoke`.
#[derive(clap::Args)]
pub struct RevokeArgs {
    /// One lease, by its whole id (see `mayfly leases --output json`)
    #[arg(value_name = "LEASE")]
    lease: Option<String>,
    #[command(flatten)]
    which: Which,
    /// Every lease that there is
    #[arg(long, conflicts_with_all = ["lease", "workload", "credential", "node", "stuck"])]
    all: bool,
    /// Forget those that cannot be ended: what they hold at the target stays there. Goes on record
    #[arg(long)]
    forget: bool,
}

/// Arguments of `rotate`.
#[derive(clap::Args)]
pub struct RotateArgs {
    /// The credentials
    #[arg(
        value_name = "CREDENTIAL",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    credentials: Vec<CredentialName>,
    /// Every credential that there is
    #[arg(long)]
    all: bool,
}

/// `mayfly leases`
pub async fn leases(client: &Client, out: Out, args: LeasesArgs) -> Result<(), Failure> {
    let path = format!("/v1/leases{}", query(&args.which.filter(None)));
    let (mut list, now) = (List::new(out, &HEADING, "no leases"), when::now());
    let each = client.each(&path, |lease: LeaseInfo| {
        list.add(&lease, |lease| (row(lease, now), problem(lease)))
    });
    each.await?;
    list.end()
}

const REVOKED: progress::Said = progress::Said {
    done: "revoked",
    otherwise: "yet and are tried again (`mayfly leases --stuck`)",
};
const ROTATED: progress::Said = progress::Said {
    done: "rotated",
    otherwise: "and stay as they were; rotate again when the cause is gone",
};

/// `mayfly revoke`
pub async fn revoke(client: &Client, out: Out, args: RevokeArgs) -> Result<(), Failure> {
    let which = args.which.filter(args.lease);
    if which == LeaseFilter::default() && !args.all {
        return Err(Failure::Usage(
            "expected which leases: a lease's id, --workload, --credential, --node, --stuck, or \
             --all for every one"
                .to_owned(),
        ));
    }
    let revoke = Revoke {
        which,
        all: args.all,
        forget: args.forget,
    };
    progress::follow(client, out, "/v1/revoke", &revoke, REVOKED).await
}

/// `mayfly rotate`
pub async fn rotate(client: &Client, out: Out, args: RotateArgs) -> Result<(), Failure> {
    let rotate = Rotate {
        credentials: args.credentials,
        all: args.all,
    };
    progress::follow(client, out, "/v1/rotate", &rotate, ROTATED).await
}

fn query(filter: &LeaseFilter) -> String {
    let mut pairs = Vec::new();
    let mut add = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            pairs.push(format!("{name}={}", encode(value)));
        }
    };
    add("workload", filter.workload.as_deref());
    add(
        "credential",
        filter.credential.as_ref().map(CredentialName::as_str),
    );
    add("node", filter.node.as_deref());
    add("stuck", filter.stuck.then_some("true"));
    match pairs.as_slice() {
        [] => String::new(),
        pairs => format!("?{}", pairs.join("&")),
    }
}

const HEADING: [&str; 8] = [
    "WORKLOAD",
    "ID",
    "CREDENTIAL",
    "HOLDS",
    "STATE",
    "ISSUED",
    "EXPIRES",
    "LEASE",
];

fn row(lease: &LeaseInfo, now: u64) -> Vec<String> {
    let version = lease.version.map(|version| format!("version {version}"));
    let holds = lease.account.clone().or(version);
    vec![
        lease.name.clone(),
        lease.workload.id(),
        lease.credential.to_string(),
        holds.unwrap_or_else(|| "-".to_owned()),
        state(lease, now),
        when::relative(lease.issued_at, now),
        when::relative(lease.expires_at, now),
        short(lease.lease.as_str()),
    ]
}

/// What keeps it from its end.
fn problem(lease: &LeaseInfo) -> Option<String> {
    let problem = clean(lease.problem.as_ref()?);
    Some(format!("{}: {problem}", short(lease.lease.as_str())))
}

fn state(lease: &LeaseInfo, now: u64) -> String {
    match lease.attempts {
        0 => lease.state.clone(),
        tries => format!(
            "{} ({tries} failed, again {})",
            lease.state,
            when::relative(lease.due_at, now)
        ),
    }
}

/// Enough of a lease's id to tell it from others; `--output json` has all of it.
pub fn short(lease: &str) -> String {
    lease.chars().take(14).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::table;
    use mayfly_wire::{EngineKind, WorkloadKey};

    fn lease() -> LeaseInfo {
        LeaseInfo {
            lease: LeaseId::from_random([7; 16]),
            workload: WorkloadKey {
                boot_id: "b".into(),
                cgroup_id: 1,
                pidns_id: 2,
            },
            name: "orders".into(),
            node: "node-1".into(),
            credential: "orders-db".parse().unwrap(),
            engine: EngineKind::Kv,
            state: "active".into(),
            issued_at: 1_000_000,
            expires_at: 1_900_000,
            version: Some(3),
            account: None,
            attempts: 0,
            problem: None,
            due_at: 1_600_000,
        }
    }

    #[test]
    fn a_lease_is_told_in_relative_times() {
        let text = table(&HEADING, vec![row(&lease(), 1_057_000)], "");
        let line = text.lines().nth(1).unwrap();
        assert!(
            line.contains("57s ago") && line.contains("in 14m 3s"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
    }

    #[test]
    fn a_stuck_lease_is_told_with_what_keeps_it() {
        let mut lease = lease();
        lease.state = "revoking".into();
        lease.attempts = 3;
        lease.problem = Some("shop: connection refused".into());
        let row = row(&lease, 1_590_000);
        assert_eq!(row[4], "revoking (3 failed, again in 10s)");
        let problem = problem(&lease).unwrap();
        assert!(problem.ends_with(": shop: connection refused"), "{problem}");
    }

    #[test]
    fn a_filter_becomes_a_query() {
        assert_eq!(query(&LeaseFilter::default()), "");
        let filter = LeaseFilter {
            workload: Some("a&b".into()),
            stuck: true,
            ..LeaseFilter::default()
        };
        assert_eq!(query(&filter), "?workload=a%26b&stuck=true");
    }
}
