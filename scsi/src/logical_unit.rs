//! A logical unit as one core sees it (SAM-5 §4.6.19): its view, this core's part of its task set, its freezes.

use std::sync::Arc;

use base::CoreId;

use crate::home::Home;
use crate::message::{Change, Ticket};
use crate::task_set::TaskSet;
use crate::{UnitState, UnitView};

/// This core's channel to the unit's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Being opened.
    Opening,
    /// Usable.
    Open,
    /// Could not be opened.
    Failed,
}

/// A freeze that this core obeys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ActiveFreeze {
    pub(crate) ticket: Ticket,
    pub(crate) change: Change,
}

/// A logical unit on this core.
pub(crate) struct LogicalUnit {
    pub(crate) view: Arc<UnitView>,
    pub(crate) home_core: CoreId,
    pub(crate) channel: Channel,
    pub(crate) set: TaskSet,
    /// One for each lane: waiting changes and aborting changes.
    pub(crate) freezes: [Option<ActiveFreeze>; 2],
    /// A deadline passed here; the view will follow.
    pub(crate) fenced: bool,
    /// A request failed because the device is gone, and the home core was told.
    pub(crate) lost: bool,
    /// In the queue of task sets to look at.
    pub(crate) kicked: bool,
    /// At the home core only.
    pub(crate) home: Option<Box<Home>>,
}

impl LogicalUnit {
    pub(crate) fn new(view: Arc<UnitView>) -> LogicalUnit {
        LogicalUnit {
            home_core: view.home,
            view,
            channel: Channel::Opening,
            set: TaskSet::default(),
            freezes: [None; 2],
            fenced: false,
            lost: false,
            kicked: false,
            home: None,
        }
    }

    /// A deadline passed: commands are refused.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced || self.view.state == UnitState::Fenced
    }

    /// Nothing is in the way of a SIMPLE task: the hot path's only question.
    pub(crate) fn is_free_for_simple(&self) -> bool {
        self.set.is_plain() && self.freezes[0].is_none() && self.freezes[1].is_none()
    }
}
