//! How a lease goes from one state to the next. The store refuses every other step, so that no caller can
//! skip one.

use super::{Lease, LeaseState, StoreError};

impl LeaseState {
    /// Its number in the store.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Planned => 0,
            Self::Active => 1,
            Self::Retiring => 2,
            Self::Revoking => 3,
        }
    }

    pub(super) fn numbered(number: u64) -> Option<Self> {
        [Self::Planned, Self::Active, Self::Retiring, Self::Revoking]
            .into_iter()
            .find(|state| state.number() == number)
    }

    /// Whether a lease in this state may be in the other one next.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use LeaseState::{Active, Planned, Retiring, Revoking};
        self == next
            || matches!(
                (self, next),
                (Planned, Active | Revoking) | (Active, Retiring | Revoking) | (Retiring, Revoking)
            )
    }
}

impl Lease {
    /// The state that it begins in.
    #[must_use]
    pub fn first_state(&self) -> LeaseState {
        if self.source.has_target() {
            LeaseState::Planned
        } else {
            LeaseState::Active
        }
    }

    /// Whether it may go from the store: what may exist at a target must be taken back first.
    #[must_use]
    pub fn may_end(&self) -> bool {
        !self.source.has_target() || self.state == LeaseState::Revoking
    }

    /// It must end, for this reason. The one that it has already stays.
    #[must_use]
    pub fn must_end(self, reason: &str, due_at: u64) -> Self {
        let reason = match self.state {
            LeaseState::Revoking => self.reason,
            _ => reason.to_owned(),
        };
        Self {
            state: LeaseState::Revoking,
            reason,
            due_at,
            ..self
        }
    }

    pub(super) fn skips(&self, from: Option<LeaseState>, to: Option<LeaseState>) -> StoreError {
        StoreError::Conflict(format!(
            "{} cannot go from {} to {}",
            self.id,
            from.map_or("nothing", LeaseState::as_str),
            to.map_or("its end", LeaseState::as_str)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LeaseState::{Active, Planned, Retiring, Revoking};

    #[test]
    fn every_state_is_reached_through_the_one_before() {
        let all = [Planned, Active, Retiring, Revoking];
        let steps: Vec<_> = (all.into_iter())
            .flat_map(|from| all.map(|to| (from, to)))
            .filter(|(from, to)| from != to && from.may_become(*to))
            .collect();
        assert_eq!(
            steps,
            [
                (Planned, Active),
                (Planned, Revoking),
                (Active, Retiring),
                (Active, Revoking),
                (Retiring, Revoking),
            ]
        );
        for state in all {
            assert_eq!(LeaseState::numbered(state.number()), Some(state));
            assert!(state.may_become(state));
        }
        assert_eq!(LeaseState::numbered(4), None);
    }
}
