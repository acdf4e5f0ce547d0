/// Current values of the changeable mode pages. Plain data, copied into each view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModePages {
    /// Caching page WCE.
    pub write_cache_enabled: bool,
    /// Control page D_SENSE.
    pub descriptor_sense: bool,
    /// Control page SWP.
    pub software_write_protect: bool,
    /// Control page TAS.
    pub task_aborted_status: bool,
}

/// Parameter data a unit can render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterIn {}

/// Parameter lists a unit takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterOut {}

/// A change of a unit's state that its home core makes under a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitChange {
    /// New values of the mode pages; MODE PARAMETERS CHANGED to every other nexus.
    ModePages(ModePages),
    /// START STOP UNIT.
    StartStop {
        /// START bit.
        start: bool,
        /// LOEJ bit.
        load_eject: bool,
    },
    /// PREVENT ALLOW MEDIUM REMOVAL of the asking nexus.
    PreventRemoval(bool),
}
