//! I_T nexuses: their births through the registry at core 0, unit attentions, and their deaths.

use std::sync::Arc;

use base::CoreId;

use crate::message::{Change, Message, NexusReference, Ticket};
use crate::nexus::{Nexus, Session};
use crate::registry::RegistryAction;
use crate::target::TicketHolder;
use crate::task::Abort;
use crate::task_management::Purpose;
use crate::unit_attention::UnitAttention;
use crate::{
    DropReason, Effect, LogicalUnitId, NexusId, NexusIdentity, NexusToken, Target, TargetDeviceId, UnitChange,
};

/// Where the registry lives.
const REGISTRY: CoreId = CoreId(0);

impl Target {
    pub(crate) fn nexus_requested(&mut self, token: NexusToken, identity: NexusIdentity) {
        let is_free = !self.sessions.contains_key(&token) && !self.nexuses.is_full() && !self.quiescing;
        if !is_free || !self.targets.contains_key(&identity.target) {
            return self.effects.push_back(Effect::NexusRefused { token });
        }
        self.sequence += 1;
        let claim = Ticket { core: self.core, sequence: self.sequence };
        self.claims.insert(claim, token);
        self.sessions.insert(token, Session::Claiming { claim, identity: identity.clone() });
        self.send(REGISTRY, Message::NexusClaim { claim, identity });
    }

    pub(crate) fn nexus_lost(&mut self, token: NexusToken) {
        match self.sessions.get(&token) {
            None => self.effects.push_back(Effect::NexusClosed { token }),
            Some(&Session::Claiming { claim, .. }) => {
                self.sessions.remove(&token);
                self.claims.remove(&claim);
                self.send(REGISTRY, Message::NexusReleased { claim });
                self.effects.push_back(Effect::NexusClosed { token });
            }
            Some(&Session::Open(id)) => {
                if let Some(nexus) = self.nexuses.get_mut(id.0) {
                    nexus.lost = true;
                    nexus.dropped = true;
                }
                self.close_nexus(id);
                self.forget_nexus(id);
            }
        }
    }

    /// Aborts everything of a nexus and lets nothing new begin.
    fn close_nexus(&mut self, id: NexusId) {
        let Some(nexus) = self.nexuses.get_mut(id.0) else { return };
        if std::mem::replace(&mut nexus.closing, true) {
            return;
        }
        let tasks = self.tasks_of(id, |_| true);
        self.abort_all(Purpose::CloseNexus { nexus: id }, tasks, |_| Abort::Silent);
        self.forget_preventions(id);
    }

    /// A nexus that was lost or reset prevents nothing any more, whatever the unit.
    pub(crate) fn forget_preventions(&mut self, id: NexusId) {
        let Some(luns) = self.nexuses.get(id.0).map(|nexus| Arc::clone(&nexus.luns)) else { return };
        for mapping in &luns.mappings {
            self.forget_prevention(mapping.unit, id);
        }
    }

    /// A nexus that goes prevents nothing any more (SPC-5 §6.15).
    pub(crate) fn forget_prevention(&mut self, unit: LogicalUnitId, nexus: NexusId) {
        let Some(home) =
            self.unit(unit).filter(|unit| unit.view.removal_prevented).map(|unit| unit.home_core)
        else {
            return;
        };
        let ticket = self.ticket(TicketHolder::Nobody);
        let origin = Some(NexusReference { core: self.core, nexus });
        let change = Change::Unit(UnitChange::PreventRemoval(false));
        self.send(home, Message::ChangeRequested { unit, ticket, change, origin });
    }

    /// Nothing of the nexus can touch medium or wire any more.
    pub(crate) fn nexus_drained(&mut self, id: NexusId) {
        let Some(nexus) = self.nexuses.get_mut(id.0) else { return };
        if std::mem::replace(&mut nexus.drained, true) {
            return;
        }
        let claim = nexus.claim;
        self.claims.remove(&claim);
        self.send(REGISTRY, Message::NexusReleased { claim });
        self.forget_nexus(id);
    }

    /// Forgets a nexus that is drained and whose session the port has given up.
    fn forget_nexus(&mut self, id: NexusId) {
        let Some(nexus) = self.nexuses.get(id.0) else { return };
        if !nexus.lost || !nexus.drained {
            return;
        }
        let token = nexus.token;
        self.nexuses.remove(id.0);
        self.sessions.remove(&token);
        self.effects.push_back(Effect::NexusClosed { token });
    }

    /// Asks the port to end the session, once, and drains it without waiting for the port.
    pub(crate) fn drop_nexus(&mut self, id: NexusId, reason: DropReason) {
        let Some(nexus) = self.nexuses.get_mut(id.0) else { return };
        if !std::mem::replace(&mut nexus.dropped, true) {
            let token = nexus.token;
            self.effects.push_back(Effect::DropNexus { token, reason });
        }
        self.close_nexus(id);
    }

    pub(crate) fn drop_nexuses(&mut self, target: TargetDeviceId, reason: DropReason) {
        let all = self.nexuses_of(target);
        for id in all {
            self.drop_nexus(id, reason);
        }
    }

    pub(crate) fn nexuses_of(&self, target: TargetDeviceId) -> Vec<NexusId> {
        let of_target = self.nexuses.iter().filter(|(_, nexus)| nexus.identity.target == target);
        of_target.map(|(key, _)| NexusId(key)).collect()
    }

    pub(crate) fn nexus_claimed(&mut self, claim: Ticket, identity: NexusIdentity) {
        let action = self.registry.claim(claim, identity);
        self.registry_says(action);
    }

    pub(crate) fn nexus_released(&mut self, claim: Ticket) {
        let action = self.registry.release(claim);
        self.registry_says(action);
    }

    fn registry_says(&mut self, action: Option<RegistryAction>) {
        match action {
            None => {}
            Some(RegistryAction::Grant { claim, reinstated }) => {
                self.send(claim.core, Message::NexusGranted { claim, reinstated });
            }
            Some(RegistryAction::Revoke { claim }) => self.send(claim.core, Message::NexusRevoke { claim }),
            Some(RegistryAction::Refuse { claim }) => self.send(claim.core, Message::NexusRefused { claim }),
        }
    }

    pub(crate) fn nexus_revoked(&mut self, claim: Ticket) {
        // A claim that is unknown here was released already; core 0 has that message on its way.
        let Some(token) = self.claims.get(&claim) else { return };
        if let Some(&Session::Open(id)) = self.sessions.get(token) {
            self.drop_nexus(id, DropReason::Reinstated);
        }
    }

    pub(crate) fn nexus_granted(&mut self, claim: Ticket, reinstated: bool) {
        // A session that went in the meantime has sent its release already.
        let Some(&token) = self.claims.get(&claim) else { return };
        let Some(Session::Claiming { identity, .. }) = self.sessions.remove(&token) else { return };
        let luns = self.targets.get(&identity.target).filter(|_| !self.quiescing);
        let Some(luns) = luns.filter(|_| !self.nexuses.is_full()).map(Arc::clone) else {
            return self.refuse_claim(claim, token, true);
        };
        let Ok(key) = self.nexuses.insert(Nexus::new(token, claim, identity, luns)) else { return };
        let id = NexusId(key);
        self.sessions.insert(token, Session::Open(id));
        self.effects.push_back(Effect::NexusEstablished { token, nexus: id });
        let attention = if reinstated { UnitAttention::NEXUS_LOSS } else { UnitAttention::POWER_ON };
        self.attention_for_nexus(id, attention);
    }

    pub(crate) fn nexus_claim_refused(&mut self, claim: Ticket) {
        if let Some(&token) = self.claims.get(&claim) {
            self.refuse_claim(claim, token, false);
        }
    }

    fn refuse_claim(&mut self, claim: Ticket, token: NexusToken, release: bool) {
        self.claims.remove(&claim);
        self.sessions.remove(&token);
        if release {
            self.send(REGISTRY, Message::NexusReleased { claim });
        }
        self.effects.push_back(Effect::NexusRefused { token });
    }

    /// Establishes `attention` for every LUN of a nexus.
    pub(crate) fn attention_for_nexus(&mut self, id: NexusId, attention: UnitAttention) {
        let capacity = self.limits.unit_attentions_max as usize;
        let Some(nexus) = self.nexuses.get_mut(id.0) else { return };
        for position in 0..nexus.luns.mappings.len() {
            nexus.establish(position, attention, capacity);
        }
    }

    /// Establishes `attention` for every I_T_L nexus of a unit but those of `spared`. With `is_event` the initiator is
    /// told at once where the transport can.
    pub(crate) fn attention_for_unit(
        &mut self,
        unit: LogicalUnitId,
        attention: UnitAttention,
        spared: Option<NexusId>,
        is_event: bool,
    ) {
        let capacity = self.limits.unit_attentions_max as usize;
        for (key, nexus) in self.nexuses.iter_mut() {
            if spared == Some(NexusId(key)) || nexus.closing {
                continue;
            }
            let luns = Arc::clone(&nexus.luns);
            for (position, mapping) in
                luns.mappings.iter().enumerate().filter(|(_, mapping)| mapping.unit == unit)
            {
                if nexus.establish(position, attention, capacity) && is_event {
                    let (token, lun, sense) = (nexus.token, mapping.lun, attention.sense());
                    self.effects.push_back(Effect::AsynchronousEvent { token, lun, sense });
                }
            }
        }
    }
}
