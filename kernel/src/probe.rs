//! Which facilities this kernel has, by trying each: distributions carry features back to kernels
//! whose version says nothing about them.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crate::ns::{Kind, Namespace};
use crate::pidfd::Pidfd;
use crate::socket::pass_pidfd;

/// Something that a kernel may lack, and for which there is another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Facility {
    /// SO_PEERPIDFD.
    PeerPidfd,
    /// SO_PASSPIDFD and SCM_PIDFD.
    SenderPidfd,
    /// PIDFD_GET_INFO with a cgroup id.
    PidfdInfo,
    /// PIDFD_GET_*_NAMESPACE.
    PidfdNamespace,
    /// NS_GET_ID.
    NamespaceId,
    /// NS_GET_TGID_FROM_PIDNS.
    PidTranslation,
}

impl Facility {
    /// Every facility.
    pub const ALL: [Self; 6] = [
        Self::PeerPidfd,
        Self::SenderPidfd,
        Self::PidfdInfo,
        Self::PidfdNamespace,
        Self::NamespaceId,
        Self::PidTranslation,
    ];

    fn works(self) -> bool {
        let own = || Pidfd::open(std::process::id()).ok();
        let namespace = || {
            let file = std::fs::File::open("/proc/self/ns/pid").ok()?;
            Some(Namespace::from(OwnedFd::from(file)))
        };
        let pair = || UnixStream::pair().ok();
        match self {
            Self::PeerPidfd => pair().is_some_and(|(one, _other)| Pidfd::peer(&one).is_ok()),
            Self::SenderPidfd => pair().is_some_and(|(one, _other)| pass_pidfd(&one).is_ok()),
            Self::PidfdInfo => own().is_some_and(|pidfd| pidfd.info().is_ok()),
            Self::PidfdNamespace => own()
                .is_some_and(|pidfd| Kind::ALL.iter().all(|kind| pidfd.namespace(*kind).is_ok())),
            Self::NamespaceId => namespace().is_some_and(|namespace| namespace.id().is_ok()),
            Self::PidTranslation => {
                namespace().is_some_and(|namespace| namespace.pid_from(std::process::id()).is_ok())
            }
        }
    }
}

/// The facilities that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facilities(u8);

impl Facilities {
    /// Tries each. The process needs `/proc`, and pidfds themselves (Linux 5.3).
    #[must_use]
    pub fn probe() -> Self {
        let found = Facility::ALL
            .into_iter()
            .filter(|facility| facility.works());
        Self(found.fold(0, |set, facility| set | 1 << facility as u8))
    }

    /// The same but without these, so that a test reaches what an older kernel does.
    #[must_use]
    pub fn without(self, forbidden: impl IntoIterator<Item = Facility>) -> Self {
        let forbidden = forbidden.into_iter();
        Self(forbidden.fold(self.0, |set, facility| set & !(1 << facility as u8)))
    }

    /// Whether this one may be used.
    #[must_use]
    pub fn has(self, facility: Facility) -> bool {
        self.0 >> facility as u8 & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidding_takes_away_and_never_gives() {
        let all = Facilities(0b11_1111);
        for forbidden in Facility::ALL {
            let left = all.without([forbidden]);
            for facility in Facility::ALL {
                assert_eq!(left.has(facility), facility != forbidden);
            }
        }
        assert_eq!(Facilities(0).without(Facility::ALL), Facilities(0));
    }

    /// What CI's kernel has; an older kernel than that is covered by forbidding.
    #[test]
    fn probing_agrees_with_trying() {
        let found = Facilities::probe();
        for facility in Facility::ALL {
            assert_eq!(found.has(facility), facility.works());
        }
        assert!(found.has(Facility::PeerPidfd) || !Facility::PeerPidfd.works());
    }
}
