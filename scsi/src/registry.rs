//! The registry of I_T nexuses, at core 0: no two sessions hold one identity, on whichever cores they live
//! (RFC 7143 §6.3.5: session reinstatement).

use std::collections::HashMap;

use crate::NexusIdentity;
use crate::message::Ticket;

/// What the registry wants sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RegistryAction {
    /// The claim holds the identity now.
    Grant { claim: Ticket, reinstated: bool },
    /// The holder must end.
    Revoke { claim: Ticket },
    /// A newer session took this claim's place in the queue.
    Refuse { claim: Ticket },
}

#[derive(Debug)]
struct Entry {
    holder: Ticket,
    waiting: Option<Ticket>,
}

/// Who holds which identity.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: HashMap<NexusIdentity, Entry>,
    claims: HashMap<Ticket, NexusIdentity>,
}

impl Registry {
    /// A session claims an identity. The older holder is revoked first; of several that wait, the newest wins.
    pub(crate) fn claim(&mut self, claim: Ticket, identity: NexusIdentity) -> Option<RegistryAction> {
        self.claims.insert(claim, identity.clone());
        match self.entries.get_mut(&identity) {
            None => {
                self.entries.insert(identity, Entry { holder: claim, waiting: None });
                Some(RegistryAction::Grant { claim, reinstated: false })
            }
            Some(entry) => match entry.waiting.replace(claim) {
                None => Some(RegistryAction::Revoke { claim: entry.holder }),
                Some(older) => {
                    self.claims.remove(&older);
                    Some(RegistryAction::Refuse { claim: older })
                }
            },
        }
    }

    /// A holder is gone, or a waiting claim was taken back.
    pub(crate) fn release(&mut self, claim: Ticket) -> Option<RegistryAction> {
        let identity = self.claims.remove(&claim)?;
        let entry = self.entries.get_mut(&identity)?;
        if entry.waiting == Some(claim) {
            entry.waiting = None;
            return None;
        }
        if entry.holder != claim {
            return None;
        }
        match entry.waiting.take() {
            Some(next) => {
                entry.holder = next;
                Some(RegistryAction::Grant { claim: next, reinstated: true })
            }
            None => {
                self.entries.remove(&identity);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TargetDeviceId;
    use base::CoreId;

    fn identity() -> NexusIdentity {
        NexusIdentity {
            initiator_port: "iqn.i,i,0x1".into(),
            initiator: "iqn.i".into(),
            target_port: "iqn.t,t,0x1".into(),
            target: TargetDeviceId(0),
            relative_target_port: 1,
            protocol: 5,
        }
    }

    fn ticket(sequence: u64) -> Ticket {
        Ticket { core: CoreId(0), sequence }
    }

    #[test]
    fn a_second_claim_waits_until_the_first_is_released() {
        let mut registry = Registry::default();
        let grant = |n, reinstated| Some(RegistryAction::Grant { claim: ticket(n), reinstated });
        assert_eq!(registry.claim(ticket(1), identity()), grant(1, false));
        assert_eq!(registry.claim(ticket(2), identity()), Some(RegistryAction::Revoke { claim: ticket(1) }));
        assert_eq!(registry.claim(ticket(3), identity()), Some(RegistryAction::Refuse { claim: ticket(2) }));
        assert_eq!(registry.release(ticket(2)), None);
        assert_eq!(registry.release(ticket(1)), grant(3, true));
        assert_eq!(registry.release(ticket(3)), None);
        assert_eq!(registry.claim(ticket(4), identity()), grant(4, false));
    }

    #[test]
    fn a_claim_taken_back_grants_nothing() {
        let mut registry = Registry::default();
        let _ = registry.claim(ticket(1), identity());
        let _ = registry.claim(ticket(2), identity());
        assert_eq!(registry.release(ticket(2)), None);
        assert_eq!(registry.release(ticket(1)), None);
        assert!(registry.entries.is_empty() && registry.claims.is_empty());
    }
}
