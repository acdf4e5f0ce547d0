//! The command table: every command this target serves, once. Dispatch, the refusal of reserved bits, REPORT
//! SUPPORTED OPERATION CODES and `docs/commands.md` are all read from it, so they cannot disagree.

use wire::scsi::{Cdb, Lun, Sense, SenseKey};

use crate::{Environment, Plan, UnitState, sbc, spc};

/// What a pending unit attention condition does to a command (SAM-5 §5.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitAttentionRule {
    /// The command ends with CHECK CONDITION, UNIT ATTENTION, and the condition is cleared.
    Report,
    /// The command runs and the condition stays pending (INQUIRY, REPORT LUNS).
    Keep,
    /// The command runs and reports the condition in its parameter data, which clears it (REQUEST SENSE).
    Consume,
}

/// What a command does to the blocks and the state of its unit; the ordering table compares these classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderingClass {
    /// Touches neither blocks nor changeable state.
    Independent,
    /// Reads blocks of one range.
    Read,
    /// Writes blocks of one range.
    Write,
    /// Reads and writes one range as a whole that no other writer may enter (COMPARE AND WRITE, ORWRITE, WRITE ATOMIC).
    Exclusive,
    /// Changes or asks the mapping of blocks that are named later, in a parameter list (UNMAP).
    Unmap,
    /// Makes what was written durable.
    Synchronize,
    /// Changes state of the whole unit (MODE SELECT, START STOP UNIT).
    Change,
}

/// How ready a unit must be for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Any state, and LUNs without a unit: INQUIRY, REQUEST SENSE, REPORT LUNS.
    Always,
    /// Any state but fenced.
    Unit,
    /// A medium must be there; it may be stopped.
    Medium,
    /// The unit must be ready.
    Ready,
}

/// What a command needs of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// It can discard (UNMAP).
    Discard,
    /// It promises atomic writes (WRITE ATOMIC).
    Atomic,
}

/// One command.
#[derive(Clone, Copy)]
pub struct CommandEntry {
    /// OPERATION CODE.
    pub operation_code: u8,
    /// SERVICE ACTION, for operation codes that have one (all of ours: byte 1, bits 4 to 0).
    pub service_action: Option<u16>,
    /// The standard's name.
    pub name: &'static str,
    /// Bytes of the CDB.
    pub cdb_length: u8,
    /// CDB usage data (SPC-5 §6.29.3): the operation code, the service action, and a one for every bit looked at.
    pub usage: &'static [u8],
    /// Bits of byte 1 that only exist where the device can discard (UNMAP bit of WRITE SAME).
    discard_bits: u8,
    /// What the device must be able to do for the command to exist.
    needs: Needs,
    /// Ordering class.
    pub ordering: OrderingClass,
    /// Runs as if it had the HEAD OF QUEUE attribute (SAM-5 §8.7).
    pub implicit_head_of_queue: bool,
    /// What a unit attention does to it.
    pub unit_attention: UnitAttentionRule,
    /// Moves, verifies or fetches blocks.
    pub medium_access: bool,
    /// Changes blocks: refused with DATA PROTECT when writes are.
    pub writes: bool,
    /// How ready the unit must be.
    pub readiness: Readiness,
    plan: fn(&Cdb, &Environment<'_>) -> Result<Plan, Sense>,
}

impl std::fmt::Debug for CommandEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

type PlanFn = fn(&Cdb, &Environment<'_>) -> Result<Plan, Sense>;

const fn entry(name: &'static str, usage: &'static [u8], plan: PlanFn) -> CommandEntry {
    CommandEntry {
        operation_code: usage[0],
        service_action: None,
        name,
        cdb_length: usage.len() as u8,
        usage,
        discard_bits: 0,
        needs: Needs::Nothing,
        ordering: OrderingClass::Independent,
        implicit_head_of_queue: false,
        unit_attention: UnitAttentionRule::Report,
        medium_access: false,
        writes: false,
        readiness: Readiness::Unit,
        plan,
    }
}

impl CommandEntry {
    /// The service action in byte 1 of the usage data.
    const fn action(mut self) -> CommandEntry {
        self.service_action = Some((self.usage[1] & 0x1F) as u16);
        self
    }

    /// Works whatever the state of the unit, and without one.
    const fn always(mut self, rule: UnitAttentionRule) -> CommandEntry {
        self.readiness = Readiness::Always;
        self.unit_attention = rule;
        self.implicit_head_of_queue = true;
        self
    }

    const fn needs(mut self, readiness: Readiness) -> CommandEntry {
        self.readiness = readiness;
        self
    }

    const fn blocks(mut self, ordering: OrderingClass, writes: bool) -> CommandEntry {
        self.ordering = ordering;
        self.medium_access = true;
        self.writes = writes;
        self.readiness = Readiness::Ready;
        self
    }

    const fn reads(self) -> CommandEntry {
        self.blocks(OrderingClass::Read, false)
    }

    const fn writes(self) -> CommandEntry {
        self.blocks(OrderingClass::Write, true)
    }

    const fn changes(mut self) -> CommandEntry {
        self.ordering = OrderingClass::Change;
        self
    }

    const fn discard_bits(mut self, bits: u8) -> CommandEntry {
        self.discard_bits = bits;
        self
    }

    const fn of_device(mut self, needs: Needs) -> CommandEntry {
        self.needs = needs;
        self
    }

    /// Whether the unit addressed has this command at all. What is not available is refused like an unknown
    /// operation code and is not reported.
    #[must_use]
    pub fn available(&self, environment: &Environment<'_>) -> bool {
        match self.needs {
            Needs::Nothing => true,
            Needs::Discard => discards(environment),
            Needs::Atomic => environment.unit.is_some_and(|unit| {
                sbc::atomic_limits(unit, environment.limits.burst_length_bytes).is_some()
            }),
        }
    }

    /// CDB usage data of byte `index` for the unit addressed.
    #[must_use]
    pub fn usage_at(&self, index: usize, environment: &Environment<'_>) -> u8 {
        let byte = self.usage.get(index).copied().unwrap_or(0);
        if index == 1 && !discards(environment) { byte & !self.discard_bits } else { byte }
    }

    /// Refuses a CDB that is too short, or that sets a bit this command does not look at (SPC-5 §4.2.5.1):
    /// reserved and obsolete bits, protection information (no unit has any), NACA (NormACA is zero).
    fn check_usage(&self, cdb: &Cdb, environment: &Environment<'_>) -> Result<(), Sense> {
        let length = usize::from(self.cdb_length);
        if cdb.length() < length {
            return Err(Sense::invalid_field_in_cdb(u16::try_from(cdb.length()).unwrap_or(0), None));
        }
        for (index, byte) in cdb.bytes().iter().enumerate().take(length).skip(1) {
            let mut allowed = self.usage_at(index, environment);
            if index == 1 && self.service_action.is_some() {
                allowed |= 0x1F;
            }
            let outside = byte & !allowed;
            if outside != 0 {
                let bit = 7 - outside.leading_zeros() as u8;
                return Err(Sense::invalid_field_in_cdb(index as u16, Some(bit)));
            }
        }
        Ok(())
    }

    /// Refuses the command when the unit's state or a write protection forbids it.
    fn check_state(&self, environment: &Environment<'_>) -> Result<(), Sense> {
        let Some(unit) = environment.unit else { return Ok(()) };
        if self.readiness == Readiness::Always {
            return Ok(());
        }
        match unit.state {
            // INTERNAL TARGET FAILURE: a fenced unit answers nothing but errors.
            UnitState::Fenced => return Err(Sense::new(SenseKey::HardwareError, 0x44, 0x00)),
            // MEDIUM NOT PRESENT.
            UnitState::MediumNotPresent if self.readiness != Readiness::Unit => {
                return Err(Sense::new(SenseKey::NotReady, 0x3A, 0x00));
            }
            // LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED.
            UnitState::Stopped if self.readiness == Readiness::Ready => {
                return Err(Sense::new(SenseKey::NotReady, 0x04, 0x02));
            }
            _ => {}
        }
        if self.writes {
            if unit.geometry.read_only || environment.mapping_read_only {
                // WRITE PROTECTED.
                return Err(Sense::new(SenseKey::DataProtect, 0x27, 0x00));
            }
            if unit.mode.software_write_protect {
                // LOGICAL UNIT SOFTWARE WRITE PROTECTED.
                return Err(Sense::new(SenseKey::DataProtect, 0x27, 0x02));
            }
        }
        Ok(())
    }

    /// Checks the unit's state, write protection and every field of the CDB, and says what is to be done.
    ///
    /// # Errors
    /// The sense data to end the command with: NOT READY, HARDWARE ERROR, DATA PROTECT, or ILLEGAL REQUEST with a
    /// field pointer.
    pub fn plan(&self, cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
        self.check_state(environment)?;
        (self.plan)(cdb, environment)
    }
}

fn discards(environment: &Environment<'_>) -> bool {
    environment.unit.is_some_and(|unit| unit.geometry.provisioning.discard)
}

/// INVALID COMMAND OPERATION CODE.
const INVALID_OPERATION_CODE: Sense = Sense::new(SenseKey::IllegalRequest, 0x20, 0x00);

/// Finds the command of `cdb` and checks that no bit is set which it does not look at.
///
/// # Errors
/// INVALID COMMAND OPERATION CODE; INVALID FIELD IN CDB with a field pointer, for an unknown service action or a
/// stray bit; LOGICAL UNIT NOT SUPPORTED for a LUN that is not there.
pub fn lookup(cdb: &Cdb, environment: &Environment<'_>) -> Result<&'static CommandEntry, Sense> {
    let found = find(cdb.operation_code(), u16::from(cdb.u8_at(1) & 0x1F));
    if environment.unit.is_none() {
        match found {
            Found::Entry(entry) if entry.readiness == Readiness::Always => {}
            // The REPORT LUNS well-known logical unit is there and always ready (SPC-5 §8.2).
            Found::Entry(entry) if environment.lun == Lun::REPORT_LUNS && entry.operation_code == 0x00 => {}
            _ if environment.lun == Lun::REPORT_LUNS => return Err(INVALID_OPERATION_CODE),
            // LOGICAL UNIT NOT SUPPORTED.
            _ => return Err(Sense::new(SenseKey::IllegalRequest, 0x25, 0x00)),
        }
    }
    match found {
        Found::Entry(entry) if entry.available(environment) => {
            entry.check_usage(cdb, environment)?;
            Ok(entry)
        }
        Found::ServiceAction => Err(Sense::invalid_field_in_cdb(1, Some(4))),
        _ => Err(INVALID_OPERATION_CODE),
    }
}

/// The answer to a look-up by number.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found {
    Entry(&'static CommandEntry),
    /// The operation code has service actions, but not this one.
    ServiceAction,
    Nothing,
}

/// The command with this operation code and, where it has service actions, this service action.
pub(crate) fn find(operation_code: u8, service_action: u16) -> Found {
    let (first, count) = INDEX[usize::from(operation_code)];
    let entries = COMMANDS.iter().skip(usize::from(first)).take(usize::from(count));
    let mut found = Found::Nothing;
    for entry in entries {
        match entry.service_action {
            None => return Found::Entry(entry),
            Some(action) if action == service_action => return Found::Entry(entry),
            Some(_) => found = Found::ServiceAction,
        }
    }
    found
}

/// Every command, in order of operation code and service action.
#[must_use]
pub fn commands() -> &'static [CommandEntry] {
    &COMMANDS
}

/// First entry and number of entries of each operation code.
static INDEX: [(u8, u8); 256] = index();

const fn index() -> [(u8, u8); 256] {
    let mut index = [(0_u8, 0_u8); 256];
    let mut at = 0;
    while at < COMMANDS.len() {
        let code = COMMANDS[at].operation_code as usize;
        if index[code].1 == 0 {
            index[code].0 = at as u8;
        }
        index[code].1 += 1;
        // Entries of one operation code must stand together.
        assert!(index[code].0 as usize + index[code].1 as usize == at + 1);
        at += 1;
    }
    index
}

use OrderingClass as Order;
use UnitAttentionRule as Attention;

/// GROUP NUMBER: taken and ignored, as SBC-4 §4.22 asks of units without grouping.
const G: u8 = 0x3F;

/// Usage data of a 12-byte block command: LBA in bytes 2 to 5, length in 6 to 9, GROUP NUMBER in 10.
macro_rules! usage_12 {
    ($code:literal, $flags:literal) => {
        &[$code, $flags, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, G, 0]
    };
}

/// Usage data of a 16-byte block command: LBA in bytes 2 to 9, length in 10 to 13, GROUP NUMBER in 14.
macro_rules! usage_16 {
    ($code:literal, $flags:literal) => {
        &[$code, $flags, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, G, 0]
    };
}

static COMMANDS: [CommandEntry; 43] = [
    entry("TEST UNIT READY", &[0x00, 0, 0, 0, 0, 0], spc::test_unit_ready).needs(Readiness::Ready),
    entry("REQUEST SENSE", &[0x03, 0x01, 0, 0, 0xFF, 0], spc::request_sense).always(Attention::Consume),
    entry("READ(6)", &[0x08, 0x1F, 0xFF, 0xFF, 0xFF, 0], sbc::read_6).reads(),
    entry("WRITE(6)", &[0x0A, 0x1F, 0xFF, 0xFF, 0xFF, 0], sbc::write_6).writes(),
    entry("INQUIRY", &[0x12, 0x01, 0xFF, 0xFF, 0xFF, 0], spc::inquiry).always(Attention::Keep),
    entry("MODE SELECT(6)", &[0x15, 0x10, 0, 0, 0xFF, 0], spc::mode_select_6).changes(),
    entry("MODE SENSE(6)", &[0x1A, 0x08, 0xFF, 0xFF, 0xFF, 0], spc::mode_sense_6),
    entry("START STOP UNIT", &[0x1B, 0x01, 0, 0, 0x07, 0], sbc::start_stop_unit).changes(),
    entry("SEND DIAGNOSTIC", &[0x1D, 0x17, 0, 0, 0, 0], spc::send_diagnostic),
    entry("PREVENT ALLOW MEDIUM REMOVAL", &[0x1E, 0, 0, 0, 0x01, 0], sbc::prevent_allow).changes(),
    entry("READ CAPACITY(10)", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], sbc::read_capacity_10)
        .needs(Readiness::Medium),
    entry("READ(10)", &[0x28, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, G, 0xFF, 0xFF, 0], sbc::read_10).reads(),
    entry("WRITE(10)", &[0x2A, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, G, 0xFF, 0xFF, 0], sbc::write_10).writes(),
    entry(
        "WRITE AND VERIFY(10)",
        &[0x2E, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, G, 0xFF, 0xFF, 0],
        sbc::write_and_verify_10,
    )
    .writes(),
    entry("VERIFY(10)", &[0x2F, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, G, 0xFF, 0xFF, 0], sbc::verify_10).reads(),
    entry("PRE-FETCH(10)", &[0x34, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, G, 0xFF, 0xFF, 0], sbc::pre_fetch_10)
        .reads(),
    entry(
        "SYNCHRONIZE CACHE(10)",
        &[0x35, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, G, 0xFF, 0xFF, 0],
        sbc::synchronize_cache_10,
    )
    .blocks(Order::Synchronize, false),
    entry("READ DEFECT DATA(10)", &[0x37, 0, 0x1F, 0, 0, 0, 0, 0xFF, 0xFF, 0], sbc::read_defect_data_10)
        .needs(Readiness::Medium),
    entry("WRITE SAME(10)", &[0x41, 0x08, 0xFF, 0xFF, 0xFF, 0xFF, G, 0xFF, 0xFF, 0], sbc::write_same_10)
        .writes()
        .discard_bits(0x08),
    entry("UNMAP", &[0x42, 0, 0, 0, 0, 0, G, 0xFF, 0xFF, 0], sbc::unmap)
        .blocks(Order::Unmap, true)
        .of_device(Needs::Discard),
    entry("LOG SENSE", &[0x4D, 0, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0], spc::log_sense),
    entry("MODE SELECT(10)", &[0x55, 0x10, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0], spc::mode_select_10).changes(),
    entry("MODE SENSE(10)", &[0x5A, 0x18, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0], spc::mode_sense_10),
    entry("READ(16)", usage_16!(0x88, 0x18), sbc::read_16).reads(),
    entry(
        "COMPARE AND WRITE",
        &[0x89, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0xFF, G, 0],
        sbc::compare_and_write,
    )
    .blocks(Order::Exclusive, true),
    entry("WRITE(16)", usage_16!(0x8A, 0x18), sbc::write_16).writes(),
    entry("ORWRITE(16)", usage_16!(0x8B, 0x18), sbc::orwrite_16).blocks(Order::Exclusive, true),
    entry("WRITE AND VERIFY(16)", usage_16!(0x8E, 0x12), sbc::write_and_verify_16).writes(),
    entry("VERIFY(16)", usage_16!(0x8F, 0x16), sbc::verify_16).reads(),
    entry("PRE-FETCH(16)", usage_16!(0x90, 0x02), sbc::pre_fetch_16).reads(),
    entry("SYNCHRONIZE CACHE(16)", usage_16!(0x91, 0x02), sbc::synchronize_cache_16)
        .blocks(Order::Synchronize, false),
    entry("WRITE SAME(16)", usage_16!(0x93, 0x09), sbc::write_same_16).writes().discard_bits(0x08),
    entry(
        "WRITE ATOMIC(16)",
        &[0x9C, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, G, 0],
        sbc::write_atomic_16,
    )
    .blocks(Order::Exclusive, true)
    .of_device(Needs::Atomic),
    entry(
        "READ CAPACITY(16)",
        &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0],
        sbc::read_capacity_16,
    )
    .action()
    .needs(Readiness::Medium),
    entry(
        "GET LBA STATUS(16)",
        &[0x9E, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0],
        sbc::get_lba_status_16,
    )
    .action()
    .reads(),
    entry("REPORT LUNS", &[0xA0, 0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], spc::report_luns)
        .always(Attention::Keep),
    entry(
        "REPORT SUPPORTED OPERATION CODES",
        &[0xA3, 0x0C, 0x87, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0],
        spc::report_supported_operation_codes,
    )
    .action(),
    entry(
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        &[0xA3, 0x0D, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0],
        spc::report_supported_task_management_functions,
    )
    .action(),
    entry("READ(12)", usage_12!(0xA8, 0x18), sbc::read_12).reads(),
    entry("WRITE(12)", usage_12!(0xAA, 0x18), sbc::write_12).writes(),
    entry("WRITE AND VERIFY(12)", usage_12!(0xAE, 0x12), sbc::write_and_verify_12).writes(),
    entry("VERIFY(12)", usage_12!(0xAF, 0x16), sbc::verify_12).reads(),
    entry(
        "READ DEFECT DATA(12)",
        &[0xB7, 0x1F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0],
        sbc::read_defect_data_12,
    )
    .needs(Readiness::Medium),
];

/// The table as a Markdown document: `docs/commands.md`.
#[must_use]
pub fn markdown() -> String {
    use std::fmt::Write;
    let mut text = String::from(
        "# Commands\n\n\
         Every SCSI command the target serves, generated from `scsi/src/command_table.rs` (a test keeps this file\n\
         and the table equal; `POLLUX_REGENERATE=1 cargo test -p scsi commands_document` writes it anew).\n\n\
         Usage is the CDB usage data that REPORT SUPPORTED OPERATION CODES returns: a bit that is zero there must\n\
         be zero in a CDB, or the command is refused with INVALID FIELD IN CDB and a field pointer.\n\n\
         | Code | Action | Command | Needs | Ordering | Writes | Unit attention | CDB usage data |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for entry in commands() {
        let action = entry.service_action.map_or_else(String::new, |action| format!("{action:02X}h"));
        let usage: Vec<String> = entry.usage.iter().map(|byte| format!("{byte:02X}")).collect();
        let needs = match (entry.readiness, entry.needs) {
            (_, Needs::Discard) => "ready, discard",
            (_, Needs::Atomic) => "ready, atomic",
            (Readiness::Always, _) => "nothing",
            (Readiness::Unit, _) => "unit",
            (Readiness::Medium, _) => "medium",
            (Readiness::Ready, _) => "ready",
        };
        let writes = if entry.writes { "yes" } else { "" };
        let _ = writeln!(
            text,
            "| {:02X}h | {action} | {} | {needs} | {:?} | {writes} | {:?} | `{}` |",
            entry.operation_code,
            entry.name,
            entry.ordering,
            entry.unit_attention,
            usage.join(" "),
        );
    }
    text.push_str(
        "\nAny other operation code ends with INVALID COMMAND OPERATION CODE, any other service action of a code in\n\
         the table with INVALID FIELD IN CDB. A LUN without a logical unit takes only what needs nothing.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::World;

    /// The entry's CDB with every field zero, but for the service action and PF of MODE SELECT.
    fn plain(entry: &CommandEntry) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0] = entry.operation_code;
        bytes[1] = entry.service_action.unwrap_or(0) as u8;
        if entry.name.starts_with("MODE SELECT") {
            bytes[1] = 0x10;
        }
        bytes
    }

    fn refused(cdb: &[u8], world: &World) -> Option<Sense> {
        let (cdb, environment) = (Cdb::new(cdb), world.environment());
        lookup(&cdb, &environment).and_then(|entry| entry.plan(&cdb, &environment)).err()
    }

    #[test]
    fn every_bit_outside_the_usage_is_refused_with_its_place() {
        let world = World::new();
        for entry in commands() {
            for byte in 1..usize::from(entry.cdb_length) {
                for bit in 0..8_u8 {
                    let mut cdb = plain(entry);
                    let used = entry.usage[byte] & (1 << bit) != 0;
                    let action = byte == 1 && entry.service_action.is_some() && bit < 5;
                    if used || action {
                        continue;
                    }
                    cdb[byte] |= 1 << bit;
                    let expected = Sense::invalid_field_in_cdb(byte as u16, Some(bit));
                    assert_eq!(refused(&cdb, &world), Some(expected), "{} byte {byte} bit {bit}", entry.name);
                }
            }
        }
    }

    #[test]
    fn every_command_is_found_by_its_own_numbers_and_no_other() {
        let world = World::new();
        let environment = world.environment();
        for entry in commands() {
            let found = lookup(&Cdb::new(&plain(entry)), &environment);
            assert_eq!(found.map(|entry| entry.name), Ok(entry.name));
            assert_eq!(entry.usage.len(), usize::from(entry.cdb_length));
            // The operation code's group gives the length (SPC-5 §4.2.5.1).
            let expected = [6, 10, 10, 0, 16, 12, 0, 0][usize::from(entry.operation_code >> 5)];
            assert_eq!(entry.cdb_length, expected, "{}", entry.name);
        }
        for code in 0..=255_u8 {
            for action in 0..32_u8 {
                let known = commands().iter().any(|entry| {
                    entry.operation_code == code
                        && entry.service_action.is_none_or(|known| known == u16::from(action))
                });
                let has_actions = commands()
                    .iter()
                    .any(|entry| entry.operation_code == code && entry.service_action.is_some());
                let mut cdb = [0; 16];
                cdb[0] = code;
                cdb[1] = action;
                match lookup(&Cdb::new(&cdb), &environment) {
                    Err(sense) if sense == INVALID_OPERATION_CODE => assert!(!known && !has_actions),
                    Err(sense) if !known => assert_eq!(sense, Sense::invalid_field_in_cdb(1, Some(4))),
                    _ => assert!(known),
                }
            }
        }
    }

    #[test]
    fn a_lun_without_a_unit_takes_three_commands() {
        let mut world = World::new();
        world.unit = None;
        world.lun = Lun::from_number(9);
        let not_supported = Sense::new(SenseKey::IllegalRequest, 0x25, 0x00);
        for entry in commands() {
            let refusal = refused(&plain(entry), &world);
            let expected = (!matches!(entry.operation_code, 0x03 | 0x12 | 0xA0)).then_some(not_supported);
            assert_eq!(refusal, expected, "{}", entry.name);
        }
        assert_eq!(refused(&[0xC1, 0, 0, 0, 0, 0], &world), Some(not_supported));
        world.lun = Lun::REPORT_LUNS;
        assert_eq!(refused(&[0; 6], &world), None);
        assert_eq!(refused(&[0x28; 10], &world), Some(INVALID_OPERATION_CODE));
    }

    #[test]
    fn states_and_write_protection() {
        let set = |change: fn(&mut crate::UnitView)| {
            let mut world = World::new();
            change(world.unit.as_mut().expect("a unit"));
            world
        };
        let (ready, read, write) = ([0; 6], [0x08, 0, 0, 0, 1, 0], [0x0A, 0, 0, 0, 1, 0]);
        let check = |world: &World, cdb: &[u8], expected: Option<(SenseKey, u8, u8)>| {
            let refusal = refused(cdb, world).map(|sense| (sense.key, sense.asc, sense.ascq));
            assert_eq!(refusal, expected);
        };
        let stopped = set(|unit| unit.state = UnitState::Stopped);
        check(&stopped, &ready, Some((SenseKey::NotReady, 0x04, 0x02)));
        check(&stopped, &read, Some((SenseKey::NotReady, 0x04, 0x02)));
        check(&stopped, &[0x1B, 0, 0, 0, 1, 0], None);
        check(&stopped, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], None);
        let gone = set(|unit| unit.state = UnitState::MediumNotPresent);
        check(&gone, &ready, Some((SenseKey::NotReady, 0x3A, 0x00)));
        check(&gone, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some((SenseKey::NotReady, 0x3A, 0x00)));
        check(&gone, &[0x1B, 0, 0, 0, 1, 0], Some((SenseKey::NotReady, 0x3A, 0x00)));
        let fenced = set(|unit| unit.state = UnitState::Fenced);
        check(&fenced, &ready, Some((SenseKey::HardwareError, 0x44, 0x00)));
        check(&fenced, &[0x12, 0, 0, 0, 36, 0], None);
        for protect in
            [set(|unit| unit.geometry.read_only = true), World { mapping_read_only: true, ..World::new() }]
        {
            check(&protect, &write, Some((SenseKey::DataProtect, 0x27, 0x00)));
            check(&protect, &read, None);
        }
        let software = set(|unit| unit.mode.software_write_protect = true);
        check(&software, &write, Some((SenseKey::DataProtect, 0x27, 0x02)));
        check(&software, &read, None);
    }

    #[test]
    fn without_discard_there_is_no_unmap() {
        let mut world = World::new();
        let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
        let write_same = [0x41, 0x08, 0, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(refused(&unmap, &world), None);
        assert_eq!(refused(&write_same, &world), None);
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.provisioning.discard = false;
        }
        assert_eq!(refused(&unmap, &world), Some(INVALID_OPERATION_CODE));
        assert_eq!(refused(&write_same, &world), Some(Sense::invalid_field_in_cdb(1, Some(3))));
    }

    #[test]
    fn a_short_cdb_is_refused() {
        let world = World::new();
        assert_eq!(refused(&[0x28, 0, 0, 0, 0, 0], &world), Some(Sense::invalid_field_in_cdb(6, None)));
        assert_eq!(refused(&[], &world), Some(Sense::invalid_field_in_cdb(0, None)));
    }

    #[test]
    fn commands_document_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/commands.md");
        if std::env::var_os("POLLUX_REGENERATE").is_some() {
            std::fs::write(path, markdown()).expect("docs/commands.md can be written");
        }
        let document = std::fs::read_to_string(path).expect("docs/commands.md is there");
        assert!(document == markdown(), "run with POLLUX_REGENERATE=1 to write docs/commands.md anew");
    }
}
