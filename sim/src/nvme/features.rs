//! Features (Base 2.0 §5.15, §5.27): kept until the next reset, none saveable.

use super::command::{Command, NSID_ALL};
use super::fetch::Outcome;
use super::model::{Config, Model};
use super::status;
use super::transfer::Refusal;
use super::violation::Rule;

const ARBITRATION: u8 = 0x01;
const POWER_MANAGEMENT: u8 = 0x02;
const TEMPERATURE_THRESHOLD: u8 = 0x04;
const ERROR_RECOVERY: u8 = 0x05;
const VOLATILE_WRITE_CACHE: u8 = 0x06;
const NUMBER_OF_QUEUES: u8 = 0x07;
const INTERRUPT_COALESCING: u8 = 0x08;
const INTERRUPT_VECTOR: u8 = 0x09;
const WRITE_ATOMICITY: u8 = 0x0A;
const EVENT_CONFIGURATION: u8 = 0x0B;
const TIMESTAMP: u8 = 0x0E;
const HOST_BEHAVIOR: u8 = 0x16;

/// Features the controller has.
pub const IDENTIFIERS: &[u8] = &[
    ARBITRATION,
    POWER_MANAGEMENT,
    TEMPERATURE_THRESHOLD,
    ERROR_RECOVERY,
    VOLATILE_WRITE_CACHE,
    NUMBER_OF_QUEUES,
    INTERRUPT_COALESCING,
    INTERRUPT_VECTOR,
    WRITE_ATOMICITY,
    EVENT_CONFIGURATION,
    TIMESTAMP,
    HOST_BEHAVIOR,
];

/// The temperature that the controller always has, in kelvins.
const TEMPERATURE: u16 = 311;
/// WCTEMP: where the over-temperature threshold begins.
pub const WARNING_TEMPERATURE: u16 = 343;

/// Current values.
#[derive(Debug, Clone)]
pub(super) struct Features {
    arbitration: u32,
    /// Over and under temperature thresholds of the composite temperature.
    thresholds: [u16; 2],
    pub temperature: u16,
    pub write_cache: bool,
    /// Number of Queues was set: submission and completion queues, not zero-based.
    pub queues: Option<(u16, u16)>,
    coalescing: u32,
    vectors: Vec<bool>,
    write_atomicity: u32,
    pub event_configuration: u32,
    /// Milliseconds, and when they were set.
    timestamp: u64,
    timestamp_set: Option<base::Instant>,
    host_behavior: Vec<u8>,
}

impl Features {
    pub fn new(config: &Config) -> Features {
        Features {
            arbitration: 7,
            thresholds: [WARNING_TEMPERATURE, 0],
            temperature: TEMPERATURE,
            write_cache: config.write_cache,
            queues: None,
            coalescing: 0,
            vectors: vec![false; usize::from(config.vectors)],
            write_atomicity: 0,
            event_configuration: 0,
            timestamp: 0,
            timestamp_set: None,
            host_behavior: vec![0; 512],
        }
    }
}

fn invalid(what: String) -> Refusal {
    Refusal::broken(status::INVALID_FIELD, Rule::Unsupported, what)
}

impl Model {
    pub(super) fn set_features(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let (fid, value) = (command.dword(10) as u8, command.dword(11));
        if !IDENTIFIERS.contains(&fid) {
            return Err(invalid(format!("Set Features {fid:#04x}, which the controller does not have")));
        }
        if command.dword(10) & 1 << 31 != 0 {
            return Err(Refusal::broken(
                status::FEATURE_NOT_SAVEABLE,
                Rule::Unsupported,
                format!("feature {fid:#04x} is not saveable"),
            ));
        }
        let specific = fid == ERROR_RECOVERY;
        if !specific && !matches!(command.nsid(), 0 | NSID_ALL) {
            return Err(Refusal::plain(status::FEATURE_NOT_NAMESPACE_SPECIFIC | status::DNR));
        }
        match fid {
            ARBITRATION => self.features.arbitration = value,
            POWER_MANAGEMENT if value & 0x1F != 0 => {
                return Err(invalid(format!("power state {}", value & 0x1F)));
            }
            POWER_MANAGEMENT => {}
            TEMPERATURE_THRESHOLD => {
                let (sensor, kind) = ((value >> 16) & 15, (value >> 20) & 3);
                if !matches!(sensor, 0 | 15) || kind > 1 {
                    return Err(Refusal::plain(status::INVALID_FIELD | status::DNR));
                }
                self.features.thresholds[kind as usize] = value as u16;
            }
            ERROR_RECOVERY => self.set_error_recovery(command.nsid(), value)?,
            VOLATILE_WRITE_CACHE => {
                if !self.config.write_cache {
                    return Err(invalid("a write cache is switched, and there is none".into()));
                }
                self.features.write_cache = value & 1 != 0;
                if !self.features.write_cache {
                    self.namespaces.iter_mut().flatten().for_each(|namespace| namespace.media.flush());
                }
            }
            NUMBER_OF_QUEUES => return self.set_number_of_queues(value),
            INTERRUPT_COALESCING => self.features.coalescing = value & 0xFFFF,
            INTERRUPT_VECTOR => {
                let Some(slot) = self.features.vectors.get_mut((value & 0xFFFF) as usize) else {
                    return Err(invalid(format!("interrupt vector {}", value & 0xFFFF)));
                };
                *slot = value & 1 << 16 != 0;
            }
            WRITE_ATOMICITY => self.features.write_atomicity = value & 1,
            EVENT_CONFIGURATION => self.features.event_configuration = value,
            TIMESTAMP => {
                let mut bytes = [0; 8];
                self.receive_admin(command, &mut bytes)?;
                self.features.timestamp = u64::from_le_bytes(bytes) & 0xFFFF_FFFF_FFFF;
                self.features.timestamp_set = Some(self.now);
            }
            _ => {
                let mut bytes = [0; 512];
                self.receive_admin(command, &mut bytes)?;
                if bytes[0] > 1 || bytes[1..].iter().any(|&byte| byte != 0) {
                    self.violation(
                        Rule::Reserved,
                        0,
                        "Host Behavior Support has bits that mean nothing here",
                    );
                }
                self.features.host_behavior.copy_from_slice(&bytes);
            }
        }
        Ok(Outcome::Done(0))
    }

    fn set_number_of_queues(&mut self, value: u32) -> Result<Outcome, Refusal> {
        if value & 0xFFFF == 0xFFFF || value >> 16 == 0xFFFF {
            return Err(invalid(format!("Number of Queues {value:#x}")));
        }
        if self.sqs[1..].iter().any(Option::is_some) || self.cqs[1..].iter().any(Option::is_some) {
            return Err(Refusal::broken(
                status::COMMAND_SEQUENCE_ERROR,
                Rule::Sequence,
                "Number of Queues after queues were created",
            ));
        }
        let grant = |asked: u32| (asked as u16 + 1).min(self.config.queue_pairs);
        self.features.queues = Some((grant(value & 0xFFFF), grant(value >> 16)));
        Ok(Outcome::Done(self.queues_value()))
    }

    fn queues_value(&self) -> u64 {
        if let Some((submission, completion)) = self.faults.lies.queues {
            return u64::from(submission) | u64::from(completion) << 16;
        }
        let pairs = self.config.queue_pairs;
        let (submission, completion) = self.features.queues.unwrap_or((pairs, pairs));
        u64::from(submission - 1) | u64::from(completion - 1) << 16
    }

    fn set_error_recovery(&mut self, nsid: u32, value: u32) -> Result<(), Refusal> {
        let mut found = false;
        for (i, namespace) in self.namespaces.iter_mut().enumerate() {
            let Some(namespace) = namespace else { continue };
            if namespace.attached && (nsid == NSID_ALL || nsid as usize == i + 1) {
                namespace.error_recovery_limit = value as u16;
                namespace.report_deallocated = value & 1 << 16 != 0;
                found = true;
            }
        }
        if found { Ok(()) } else { Err(Refusal::plain(status::INVALID_NAMESPACE | status::DNR)) }
    }

    pub(super) fn get_features(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let (fid, select, value) = (command.dword(10) as u8, (command.dword(10) >> 8) & 7, command.dword(11));
        if !IDENTIFIERS.contains(&fid) || select > 3 {
            return Err(invalid(format!("Get Features {fid:#04x}, select {select}")));
        }
        if select == 3 {
            // Changeable; Error Recovery is namespace specific. Nothing is saveable.
            return Ok(Outcome::Done(1 << 2 | u64::from(fid == ERROR_RECOVERY) << 1));
        }
        // With nothing saved, the saved value is the default one.
        let defaults = (select > 0).then(|| Features::new(&self.config));
        let features = defaults.as_ref().unwrap_or(&self.features);
        let result = match fid {
            ARBITRATION => features.arbitration,
            POWER_MANAGEMENT => 0,
            TEMPERATURE_THRESHOLD => {
                let (sensor, kind) = ((value >> 16) & 15, (value >> 20) & 3);
                if sensor != 0 || kind > 1 {
                    return Err(Refusal::plain(status::INVALID_FIELD | status::DNR));
                }
                u32::from(features.thresholds[kind as usize])
            }
            ERROR_RECOVERY => {
                let nsid = command.nsid();
                let Some(namespace) = self.namespace(nsid) else {
                    return Err(Refusal::plain(status::INVALID_NAMESPACE | status::DNR));
                };
                let current =
                    u32::from(namespace.error_recovery_limit) | u32::from(namespace.report_deallocated) << 16;
                if select == 0 { current } else { 0 }
            }
            VOLATILE_WRITE_CACHE if !self.config.write_cache => {
                return Err(invalid("the write cache is asked for, and there is none".into()));
            }
            VOLATILE_WRITE_CACHE => u32::from(features.write_cache),
            NUMBER_OF_QUEUES => self.queues_value() as u32,
            INTERRUPT_COALESCING => features.coalescing,
            INTERRUPT_VECTOR => {
                let Some(&disabled) = features.vectors.get((value & 0xFFFF) as usize) else {
                    return Err(invalid(format!("interrupt vector {}", value & 0xFFFF)));
                };
                value & 0xFFFF | u32::from(disabled) << 16
            }
            WRITE_ATOMICITY => features.write_atomicity,
            EVENT_CONFIGURATION => features.event_configuration,
            TIMESTAMP => {
                let mut bytes = [0; 8];
                let passed = features
                    .timestamp_set
                    .map_or(self.now.as_nanos(), |at| self.now.since(at).as_nanos() as u64);
                bytes.copy_from_slice(&(features.timestamp + passed / 1_000_000).to_le_bytes());
                // Origin: set by the host, or counting from the reset.
                bytes[6] = u8::from(features.timestamp_set.is_some()) << 1;
                bytes[7] = 0;
                self.send_admin(command, 8, &bytes)?;
                0
            }
            _ => {
                let bytes = features.host_behavior.clone();
                self.send_admin(command, 512, &bytes)?;
                0
            }
        };
        Ok(Outcome::Done(u64::from(result)))
    }
}
