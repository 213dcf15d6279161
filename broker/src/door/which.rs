//! Which leases an operator means.

use crate::store::{Lease, LeaseState};
use mayfly_wire::admin::LeaseFilter;

/// Whether a lease fits everything that a filter says.
pub fn fits(filter: &LeaseFilter, lease: &Lease) -> bool {
    let LeaseFilter {
        lease: id,
        workload,
        credential,
        node,
        stuck,
    } = filter;
    // Short ids may be shortened further, as everywhere.
    let is_named = |asked: &String| {
        !asked.is_empty() && (lease.name == *asked || lease.workload.id().starts_with(asked))
    };
    id.as_ref().is_none_or(|id| *id == lease.id)
        && workload.as_ref().is_none_or(is_named)
        && credential
            .as_ref()
            .is_none_or(|name| *name == lease.credential)
        && node.as_ref().is_none_or(|node| *node == lease.node)
        && (!stuck || is_stuck(lease))
}

/// Whether a lease should have ended, and could not be.
pub fn is_stuck(lease: &Lease) -> bool {
    lease.state == LeaseState::Revoking && (lease.attempts > 0 || !lease.problem.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Source;
    use crate::testing::evidence;
    use mayfly_wire::LeaseId;

    fn lease() -> Lease {
        let evidence = evidence(1);
        Lease {
            id: LeaseId::from_random([1; 16]),
            name: evidence.display_name(),
            workload: evidence.workload,
            credential: "orders-db".parse().unwrap(),
            engine: mayfly_wire::EngineKind::Kv,
            node: evidence.node,
            state: LeaseState::Active,
            issued_at: 0,
            expires_at: 1,
            due_at: 1,
            reason: String::new(),
            attempts: 0,
            problem: String::new(),
            source: Source::Shared { version: 1 },
        }
    }

    #[test]
    fn every_part_of_a_filter_must_fit() {
        let lease = lease();
        let all = LeaseFilter::default();
        assert!(fits(&all, &lease));
        let workload = |asked: &str| LeaseFilter {
            workload: Some(asked.to_owned()),
            ..LeaseFilter::default()
        };
        let id = lease.workload.id();
        for asked in [lease.name.as_str(), &id, &id[..4]] {
            assert!(fits(&workload(asked), &lease), "{asked}");
        }
        for asked in ["", "shop", "zz"] {
            assert!(!fits(&workload(asked), &lease), "{asked}");
        }
        let of = |credential: &str, node: &str| LeaseFilter {
            credential: Some(credential.parse().unwrap()),
            node: Some(node.to_owned()),
            ..LeaseFilter::default()
        };
        assert!(fits(&of("orders-db", "node-1"), &lease));
        assert!(!fits(&of("orders-db", "node-2"), &lease));
        assert!(!fits(&of("billing", "node-1"), &lease));
        let one = |number| LeaseFilter {
            lease: Some(LeaseId::from_random([number; 16])),
            ..LeaseFilter::default()
        };
        assert!(fits(&one(1), &lease) && !fits(&one(2), &lease));
    }

    #[test]
    fn only_what_should_have_ended_is_stuck() {
        let stuck = LeaseFilter {
            stuck: true,
            ..LeaseFilter::default()
        };
        let mut lease = lease();
        lease.attempts = 2;
        assert!(!fits(&stuck, &lease), "it is active");
        lease.state = LeaseState::Revoking;
        assert!(fits(&stuck, &lease));
        lease.attempts = 0;
        assert!(!fits(&stuck, &lease), "it was not tried yet");
        lease.problem = "its target is down".into();
        assert!(fits(&stuck, &lease));
    }
}
