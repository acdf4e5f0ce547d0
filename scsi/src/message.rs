//! What cores tell each other. Enums, not closures; between two cores they arrive in the order they were sent.

use std::sync::Arc;

use base::CoreId;
use bdev::BlockDevice;

use crate::ordering_table::MediumRange;
use crate::{
    ControlId, DropReason, LogicalUnitId, LunMap, NexusId, NexusIdentity, TargetDeviceId, UnitChange,
    UnitView,
};

/// A device in a message.
#[derive(Clone)]
pub struct DeviceHandle(pub Arc<dyn BlockDevice>);

impl std::fmt::Debug for DeviceHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.product_name())
    }
}

/// The asking core's name for something it asked of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// Who asked.
    pub core: CoreId,
    /// Counted up by that core.
    pub sequence: u64,
}

/// A nexus, on whichever core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NexusReference {
    /// Where it lives.
    pub core: CoreId,
    /// Its name there.
    pub nexus: NexusId,
}

/// Which reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// LOGICAL UNIT RESET.
    LogicalUnit,
    /// TARGET WARM RESET.
    TargetWarm,
    /// TARGET COLD RESET.
    TargetCold,
}

/// What became of a unit's medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediumChange {
    /// A request of the device failed because it is gone. Says nothing when the device came back after the epoch that
    /// the core had then.
    Lost {
        /// The epoch of the core's view.
        epoch: u64,
    },
    /// The control plane says that it is gone.
    Absent,
    /// The control plane says that it is there.
    Present,
}

/// What a home core can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Let an ORDERED task run alone.
    Ordered,
    /// Let an atomic command have its blocks to itself.
    Exclusive(MediumRange),
    /// Change the unit's state.
    Unit(UnitChange),
    /// Ask the device for its geometry again.
    Capacity,
    /// The device went away or came back.
    Medium(MediumChange),
    /// CLEAR TASK SET.
    ClearTaskSet,
    /// A reset.
    Reset(Reset),
    /// The unit goes.
    Remove,
}

impl Change {
    /// True for changes that abort the tasks in their way; the others wait for them. Aborting changes never queue
    /// behind waiting ones: a task that a waiting change waits for must stay abortable.
    #[must_use]
    pub fn aborts(self) -> bool {
        matches!(self, Change::ClearTaskSet | Change::Reset(_) | Change::Remove)
    }

    /// The lane the home core runs it in: 0 waits, 1 aborts.
    pub(crate) fn lane(self) -> usize {
        usize::from(self.aborts())
    }

    /// True when the asker says when it is over.
    pub(crate) fn is_lease(self) -> bool {
        matches!(self, Change::Ordered | Change::Exclusive(_))
    }
}

/// What cores tell each other.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Message {
    /// To the home core: please make this change. Answered by a `Thaw` with the same ticket (after a `Granted` for
    /// leases), or by `ChangeRefused`.
    ChangeRequested { unit: LogicalUnitId, ticket: Ticket, change: Change, origin: Option<NexusReference> },
    /// To the home core: the task that asked is aborted or gone. Answered like a request, unless it comes too late: a
    /// change in force cannot be called back, and a lease on its way is given back instead.
    ChangeWithdrawn { unit: LogicalUnitId, ticket: Ticket },
    /// From the home core: there is no such unit any more, or the request was withdrawn.
    ChangeRefused { unit: LogicalUnitId, ticket: Ticket },
    /// From the home core to every core: begin nothing new in the change's way, drain (or abort) what runs, say `Frozen`.
    Freeze {
        unit: LogicalUnitId,
        ticket: Ticket,
        change: Change,
        origin: Option<NexusReference>,
        home: CoreId,
    },
    /// To the home core. `failed` when a deadline passed: tasks may still be in the device.
    Frozen { unit: LogicalUnitId, ticket: Ticket, failed: bool },
    /// From the home core to the asker of a lease: every core is frozen, go on.
    Granted { unit: LogicalUnitId, ticket: Ticket, home: CoreId },
    /// To the home core: the lease is over.
    Released { unit: LogicalUnitId, ticket: Ticket },
    /// From the home core to every core: the change is made, here is the view.
    Thaw {
        unit: LogicalUnitId,
        ticket: Ticket,
        change: Change,
        origin: Option<NexusReference>,
        view: Arc<UnitView>,
        failed: bool,
    },
    /// To the home core: a deadline passed on a task that the device keeps.
    FenceRequested { unit: LogicalUnitId },
    /// From the home core to every core: a view without a freeze.
    ViewChanged { unit: LogicalUnitId, view: Arc<UnitView> },
    /// From the home core to every core: open a channel.
    UnitAdded { view: Arc<UnitView>, device: DeviceHandle },
    /// To the home core.
    UnitOpened { unit: LogicalUnitId, error: Option<bdev::BlockError> },
    /// To the home core: this core's channel is closed.
    UnitClosed { unit: LogicalUnitId },
    /// To core 0: a session wants to be this nexus.
    NexusClaim { claim: Ticket, identity: NexusIdentity },
    /// From core 0 to the present holder's core: end it, and say `NexusReleased`.
    NexusRevoke { claim: Ticket },
    /// To core 0: this claim's nexus is gone, or the claim is taken back.
    NexusReleased { claim: Ticket },
    /// From core 0: it is yours.
    NexusGranted { claim: Ticket, reinstated: bool },
    /// From core 0: a later session wants it too.
    NexusRefused { claim: Ticket },
    /// From core 0 to every core: the LUNs of a target; `None` ends the target.
    TargetChanged { target: TargetDeviceId, map: Option<Arc<LunMap>>, control: ControlId },
    /// To core 0.
    TargetChangeDone { control: ControlId, failed: bool },
    /// To every core: end all sessions with the target.
    DropNexuses { target: TargetDeviceId, reason: DropReason },
}

const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Message>();
};
