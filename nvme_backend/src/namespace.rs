use bdev::{BlockDevice, BlockError, CoreShared, Geometry, IoChannel};

/// How a namespace is told from others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceIdentity {
    /// Namespace identifier on its controller.
    pub nsid: u32,
    /// Namespace Globally Unique Identifier.
    pub nguid: Option<[u8; 16]>,
    /// IEEE Extended Unique Identifier.
    pub eui64: Option<[u8; 8]>,
    /// Namespace UUID.
    pub uuid: Option<[u8; 16]>,
    /// Serial number of the controller it was found on.
    pub serial: String,
    /// Model of the controller.
    pub model: String,
    /// Firmware revision of the controller.
    pub firmware: String,
}

/// A namespace, as a block device. It outlives resets, and removal and return of its controller.
pub struct Namespace {
    identity: NamespaceIdentity,
}

impl Namespace {
    /// Namespace identifier.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.identity.nsid
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> NamespaceIdentity {
        self.identity.clone()
    }

    /// True while the controller has it. A namespace that is not present answers [`BlockError::Gone`].
    #[must_use]
    pub fn is_present(&self) -> bool {
        false
    }

    /// Why it cannot be used, when that is so: its format, for a person.
    #[must_use]
    pub fn unusable(&self) -> Option<String> {
        None
    }

    /// What IDENTIFY said last.
    #[must_use]
    pub fn identify(&self) -> Option<wire::nvme::IdentifyNamespace> {
        None
    }
}

impl BlockDevice for Namespace {
    fn geometry(&self) -> Geometry {
        unimplemented!()
    }

    fn product_name(&self) -> &'static str {
        "NVMe disk"
    }

    fn open_channel(&self, _core: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        Err(BlockError::Gone)
    }
}
