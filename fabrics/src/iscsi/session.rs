//! Sessions: the command window (RFC 7143 §4.2.2.1), the identity and the counters of one I_T nexus.

use std::sync::Arc;

use base::Key;
use scsi::NexusId;
use wire::iscsi::serial;

use super::SessionType;

/// Immediate commands and immediate task management requests a session may have under way (RFC 7143 §4.2.2.1:
/// a target may limit them).
pub(super) const IMMEDIATE_MAX: u32 = 16;
/// Task management requests under way for one session.
pub(super) const TASK_MANAGEMENT_MAX: u32 = 32;

/// Whether the session has its I_T nexus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NexusState {
    /// A discovery session has none.
    None,
    /// The engine was asked.
    Requested,
    /// It exists.
    Established(NexusId),
    /// It was reported lost; the engine will say when it is closed.
    Lost,
}

/// Where the CmdSN of a request stands (RFC 7143 §4.2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandOrder {
    /// Take it now.
    InOrder,
    /// Outside the window: ignore it silently.
    Outside,
    /// Inside the window, but one before it is missing. On a single connection without recovery it never comes.
    Gap,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub kind: SessionType,
    pub tsih: u16,
    pub isid: [u8; 6],
    pub initiator: Arc<str>,
    pub target: Option<Arc<str>>,
    pub target_device: Option<scsi::TargetDeviceId>,
    pub portal_group: u16,
    /// Its connection; sessions have one for now.
    pub connection: Key,
    pub nexus: NexusState,
    pub exp_cmd_sn: u32,
    max_cmd_sn: u32,
    /// Commands it may have outstanding.
    pub queue_depth: u32,
    /// Commands that took a place in the window and have no status yet.
    pub outstanding: u32,
    /// Immediate commands without status.
    pub immediate_outstanding: u32,
    /// Task management requests without answer.
    pub task_managements: u32,
    /// The configuration does not admit it any more.
    pub unwanted: bool,
}

/// What a new session is made of.
pub(super) struct NewSession {
    pub kind: SessionType,
    pub tsih: u16,
    pub isid: [u8; 6],
    pub initiator: Arc<str>,
    pub target: Option<Arc<str>>,
    pub target_device: Option<scsi::TargetDeviceId>,
    pub portal_group: u16,
    pub connection: Key,
    pub cmd_sn: u32,
    pub queue_depth: u32,
}

impl Session {
    pub fn new(new: NewSession) -> Session {
        let queue_depth = new.queue_depth.clamp(1, 65_536);
        Session {
            kind: new.kind,
            tsih: new.tsih,
            isid: new.isid,
            initiator: new.initiator,
            target: new.target,
            target_device: new.target_device,
            portal_group: new.portal_group,
            connection: new.connection,
            nexus: NexusState::None,
            exp_cmd_sn: new.cmd_sn,
            max_cmd_sn: new.cmd_sn.wrapping_add(queue_depth - 1),
            queue_depth,
            outstanding: 0,
            immediate_outstanding: 0,
            task_managements: 0,
            unwanted: false,
        }
    }

    /// The nexus, when commands may be delivered to it.
    pub fn established(&self) -> Option<NexusId> {
        match self.nexus {
            NexusState::Established(nexus) => Some(nexus),
            _ => None,
        }
    }

    /// ExpCmdSN and MaxCmdSN for a PDU that is built now. MaxCmdSN never goes back.
    pub fn window(&mut self) -> (u32, u32) {
        let open = self.queue_depth.saturating_sub(self.outstanding);
        let max = self.exp_cmd_sn.wrapping_add(open).wrapping_sub(1);
        if serial::less(self.max_cmd_sn, max) {
            self.max_cmd_sn = max;
        }
        (self.exp_cmd_sn, self.max_cmd_sn)
    }

    /// Where a non-immediate request with `cmd_sn` stands.
    pub fn order(&self, cmd_sn: u32) -> CommandOrder {
        if serial::less(cmd_sn, self.exp_cmd_sn) || serial::less(self.max_cmd_sn, cmd_sn) {
            CommandOrder::Outside
        } else if cmd_sn == self.exp_cmd_sn {
            CommandOrder::InOrder
        } else {
            CommandOrder::Gap
        }
    }

    /// Counts a non-immediate request that was in order.
    pub fn advance(&mut self) {
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Slab;

    fn session(cmd_sn: u32, queue_depth: u32) -> Session {
        let mut keys = Slab::with_capacity(1);
        let connection = keys.insert(()).unwrap();
        Session::new(NewSession {
            kind: SessionType::Normal,
            tsih: 1,
            isid: [0; 6],
            initiator: "iqn.a".into(),
            target: None,
            target_device: None,
            portal_group: 1,
            connection,
            cmd_sn,
            queue_depth,
        })
    }

    #[test]
    fn the_window_wraps_and_never_shrinks() {
        let mut session = session(u32::MAX - 1, 4);
        assert_eq!(session.window(), (u32::MAX - 1, 1));
        assert_eq!(session.order(u32::MAX - 1), CommandOrder::InOrder);
        assert_eq!(session.order(1), CommandOrder::Gap);
        assert_eq!(session.order(2), CommandOrder::Outside);
        assert_eq!(session.order(u32::MAX - 2), CommandOrder::Outside);
        for _ in 0..4 {
            session.advance();
            session.outstanding += 1;
        }
        assert_eq!(session.window(), (2, 1), "a full queue closes the window");
        assert_eq!(session.order(2), CommandOrder::Outside);
        session.outstanding -= 1;
        assert_eq!(session.window(), (2, 2));
        session.queue_depth = 1;
        assert_eq!(session.window(), (2, 2), "MaxCmdSN does not go back");
    }
}
