/// The bounds that memory is sized by at start. Every table and pool of the data path is a sum over these;
/// nothing grows afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions (I_T nexuses) on one core, discovery sessions included.
    pub sessions_max: u32,
    /// Commands outstanding on one core, over all its nexuses.
    pub tasks_max: u32,
    /// Commands one nexus may have outstanding (the command window it is granted).
    pub tasks_per_nexus_max: u32,
    /// Logical units on the node.
    pub logical_units_max: u32,
    /// Logical units one target device may map.
    pub luns_per_target_max: u32,
    /// Bytes of one burst: the largest single device I/O and data sequence the engine makes.
    pub burst_length_bytes: u32,
    /// Bursts of one command in flight at a time.
    pub bursts_per_task_max: u32,
    /// Unit attentions queued for one I_T_L nexus.
    pub unit_attentions_max: u32,
    /// How long a task management function waits for its tasks before it fences the logical unit, in
    /// milliseconds.
    pub task_management_deadline_ms: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions_max: 1024,
            tasks_max: 4096,
            tasks_per_nexus_max: 128,
            logical_units_max: 1024,
            luns_per_target_max: 256,
            burst_length_bytes: 256 * 1024,
            bursts_per_task_max: 4,
            unit_attentions_max: 8,
            task_management_deadline_ms: 30_000,
        }
    }
}
