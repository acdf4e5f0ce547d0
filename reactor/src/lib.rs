//! The machine room: pinned cores, the poll loop, the TSC clock, rings between cores, mailboxes, hugepages.
//!
//! # How a sleeping reactor is woken
//!
//! A reactor that wants to sleep first visits [`Poller::wake_descriptors`]. Whoever owns a queue that another thread
//! fills arms its [`Doorbell`] there. The reactor then polls *once more*, and sleeps only if that found nothing. A
//! sender pushes first and looks at the doorbell afterwards; both sides put a SeqCst fence between their two steps,
//! so either the sender sees the bell armed and writes the eventfd, or the last poll sees the message. While nobody
//! sleeps, nobody makes a system call.

#![deny(unsafe_code)]

mod affinity;
mod core_mask;
pub mod devices;
mod doorbell;
#[allow(unsafe_code)]
mod hugepages;
mod mailbox;
mod mesh;
#[allow(unsafe_code)]
mod poll_fd;
mod poller;
mod reactors;
mod run;
mod statistics;
#[allow(unsafe_code)]
mod tsc;

pub use affinity::{Cpu, Topology};
pub use core_mask::{CoreMask, CoreMaskError};
pub use devices::{
    Bar, CLASS_NVME, DeviceError, DmaMemory, DmaRegion, PciAddress, PciBus, PciDevice, PciIdentity,
    VfioDevice, VfioUserDevice,
};
pub use doorbell::Doorbell;
pub use hugepages::HugeMemory;
pub use mailbox::{MailboxReceiver, MailboxSender, mailbox, reply_queue};
pub use mesh::{MESH_RING_CAPACITY, MeshEndpoint, mesh};
pub use poll_fd::SleepSet;
pub use poller::{Poller, Turn};
pub use reactors::{ReactorConfig, ReactorHandle, ReactorSeat, Reactors, StartError};
pub use statistics::{ReactorMode, ReactorStatistics};
pub use tsc::ReactorClock;
