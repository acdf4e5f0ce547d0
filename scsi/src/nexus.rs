//! An I_T nexus (SAM-5 §4.8) on this core, and the sessions that want to be one.

use std::sync::Arc;

use wire::scsi::Lun;

use crate::message::Ticket;
use crate::task::TaskList;
use crate::unit_attention::{AttentionQueue, UnitAttention};
use crate::{LunMap, NexusId, NexusIdentity, NexusToken};

/// An I_T nexus.
#[derive(Debug)]
pub(crate) struct Nexus {
    pub(crate) token: NexusToken,
    pub(crate) claim: Ticket,
    pub(crate) identity: NexusIdentity,
    pub(crate) luns: Arc<LunMap>,
    /// Per mapping of `luns`, in the same order.
    attentions: Vec<AttentionQueue>,
    attentions_pending: usize,
    pub(crate) tasks: TaskList,
    /// Task management functions not yet answered.
    pub(crate) functions: u32,
    /// No new command runs; everything is being aborted.
    pub(crate) closing: bool,
    /// The port was asked to end the session.
    pub(crate) dropped: bool,
    /// The port said `NexusLost`.
    pub(crate) lost: bool,
    /// Nothing of it can touch medium or wire any more.
    pub(crate) drained: bool,
}

/// The position of `lun` in `map`. LUNs are mostly dense from 0, so the number is tried as the index first.
pub(crate) fn find_lun(map: &LunMap, lun: Lun) -> Option<usize> {
    let guess = (lun.0 >> 48) as usize;
    if map.mappings.get(guess).is_some_and(|mapping| mapping.lun == lun) {
        return Some(guess);
    }
    map.mappings.binary_search_by_key(&lun, |mapping| mapping.lun).ok()
}

impl Nexus {
    pub(crate) fn new(token: NexusToken, claim: Ticket, identity: NexusIdentity, luns: Arc<LunMap>) -> Nexus {
        let attentions = vec![AttentionQueue::default(); luns.mappings.len()];
        Nexus {
            token,
            claim,
            identity,
            luns,
            attentions,
            attentions_pending: 0,
            tasks: TaskList::default(),
            functions: 0,
            closing: false,
            dropped: false,
            lost: false,
            drained: false,
        }
    }

    /// True when any LUN has a unit attention: one compare on the hot path.
    pub(crate) fn has_attention(&self) -> bool {
        self.attentions_pending != 0
    }

    /// Establishes `attention` for the LUN at `position`; true when it is new.
    pub(crate) fn establish(&mut self, position: usize, attention: UnitAttention, capacity: usize) -> bool {
        let Some(queue) = self.attentions.get_mut(position) else { return false };
        let before = queue.len();
        let changed = queue.establish(attention, capacity);
        self.attentions_pending = self.attentions_pending + queue.len() - before;
        changed
    }

    /// Takes the oldest unit attention of `lun`.
    pub(crate) fn take_attention(&mut self, lun: Lun) -> Option<UnitAttention> {
        let taken = self.attentions.get_mut(find_lun(&self.luns, lun)?)?.take()?;
        self.attentions_pending -= 1;
        Some(taken)
    }

    /// Takes `attention` from every LUN.
    pub(crate) fn clear_attention(&mut self, attention: UnitAttention) {
        for queue in &mut self.attentions {
            self.attentions_pending -= usize::from(queue.clear(attention));
        }
    }

    /// The oldest unit attention of `lun`.
    pub(crate) fn first_attention(&self, lun: Lun) -> Option<UnitAttention> {
        self.attentions.get(find_lun(&self.luns, lun)?)?.first()
    }

    /// Takes a new map; unit attentions stay with the LUNs that keep their unit.
    pub(crate) fn remap(&mut self, map: Arc<LunMap>) {
        let mut attentions = vec![AttentionQueue::default(); map.mappings.len()];
        for (mapping, queue) in map.mappings.iter().zip(&mut attentions) {
            let Some(old) = find_lun(&self.luns, mapping.lun) else { continue };
            if self.luns.mappings.get(old).is_some_and(|old| old.unit == mapping.unit) {
                *queue = self.attentions.get_mut(old).map(std::mem::take).unwrap_or_default();
            }
        }
        self.attentions_pending = attentions.iter().map(AttentionQueue::len).sum();
        self.attentions = attentions;
        self.luns = map;
    }
}

/// A session in the eyes of the engine.
#[derive(Debug)]
pub(crate) enum Session {
    /// Asked for a nexus; core 0 has not granted it yet.
    Claiming { claim: Ticket, identity: NexusIdentity },
    /// Has it.
    Open(NexusId),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogicalUnitId, LunMapping, TargetDeviceId};
    use base::CoreId;

    fn map(luns: &[u16]) -> Arc<LunMap> {
        let mappings = luns.iter().map(|&n| LunMapping {
            lun: Lun::from_number(n),
            unit: LogicalUnitId(u32::from(n)),
            read_only: false,
        });
        Arc::new(LunMap { mappings: mappings.collect() })
    }

    #[test]
    fn luns_are_found_dense_or_sparse() {
        for luns in [&[0u16, 1, 2, 3][..], &[0, 5, 9, 300], &[]] {
            let map = map(luns);
            for number in 0..400 {
                let expected = luns.iter().position(|&n| n == number);
                assert_eq!(find_lun(&map, Lun::from_number(number)), expected);
            }
        }
    }

    #[test]
    fn attentions_stay_with_their_unit_when_the_map_changes() {
        let identity = NexusIdentity {
            initiator_port: "i,i,0x1".into(),
            initiator: "i".into(),
            target_port: "t,t,0x1".into(),
            target: TargetDeviceId(0),
            relative_target_port: 1,
            protocol: 5,
        };
        let claim = Ticket { core: CoreId(0), sequence: 1 };
        let mut nexus = Nexus::new(NexusToken(1), claim, identity, map(&[0, 5]));
        assert!(nexus.establish(1, UnitAttention::POWER_ON, 4));
        assert!(nexus.establish(0, UnitAttention::POWER_ON, 4));
        nexus.remap(map(&[5, 6]));
        assert!(nexus.has_attention());
        assert_eq!(nexus.take_attention(Lun::from_number(6)), None);
        assert_eq!(nexus.take_attention(Lun::from_number(5)), Some(UnitAttention::POWER_ON));
        assert!(!nexus.has_attention());
    }
}
