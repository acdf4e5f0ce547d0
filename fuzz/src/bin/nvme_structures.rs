//! What an NVMe controller says about itself and its namespaces: identify structures, lists, log pages, events.

use std::process::ExitCode;

use fuzz::Target;
use wire::nvme::{
    ActiveNamespaces, AsynchronousEvent, ChangedNamespaces, Completion, ErrorLogEntry, HealthLog,
    IDENTIFY_LENGTH, IdentifyController, IdentifyNamespace, NamespaceIdentifiers, NvmLimits,
};

fn run(data: &[u8]) {
    let Some((&page_shift, data)) = data.split_first() else { return };
    // As the driver reads them: a whole page, of which the controller may have written a part.
    let mut page = data.to_vec();
    page.resize(IDENTIFY_LENGTH, 0);
    for bytes in [data, &page] {
        let controller = IdentifyController::parse(bytes);
        assert_eq!(controller.is_some(), bytes.len() >= IDENTIFY_LENGTH);
        let limits = NvmLimits::parse(bytes);
        let namespace = IdentifyNamespace::parse(bytes);
        if let (Some(controller), Some(limits), Some(namespace)) = (&controller, &limits, &namespace) {
            let _ = (controller.subsystem_name().len(), controller.sgl_alignment());
            nvme_backend::fuzz_namespace(controller, limits, namespace, 12 + u32::from(page_shift % 16));
        }
        let _ = NamespaceIdentifiers::parse(bytes);
        let list: Vec<u32> = ActiveNamespaces::parse(bytes).iter(0).collect();
        assert!(list.len() <= 1024 && list.is_sorted());
        let _ = HealthLog::parse(bytes);
        assert!(ErrorLogEntry::parse_all(bytes).count() <= bytes.len() / ErrorLogEntry::LENGTH);
        let _ = ChangedNamespaces::parse(bytes);
    }
    if let Some((entry, _)) = data.split_first_chunk::<16>() {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| entry[at + byte]));
        let completion = Completion::parse(word(0), word(8));
        assert!(!completion.status.to_string().is_empty());
        let _ = AsynchronousEvent::parse(completion.dword0);
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut controller = vec![0u8; 1 + IDENTIFY_LENGTH];
    let mut set = |at: usize, bytes: &[u8]| controller[1 + at..1 + at + bytes.len()].copy_from_slice(bytes);
    set(4, b"SERIAL");
    set(77, &[5]);
    set(256, &[0x02, 0x01, 3, 3]);
    set(516, &16u32.to_le_bytes());
    set(520, &0x018Du16.to_le_bytes());
    set(525, &[7]);
    set(768, b"nqn.2014-08.org.nvmexpress:example");
    let mut namespace = vec![0u8; 1 + IDENTIFY_LENGTH];
    let mut set = |at: usize, bytes: &[u8]| namespace[1 + at..1 + at + bytes.len()].copy_from_slice(bytes);
    set(0, &4096u64.to_le_bytes());
    set(24, &[0x12, 3, 1]);
    set(33, &[9]);
    set(64, &[7, 0, 7, 0, 7, 0, 7, 0, 31, 0]);
    set(128, &[0, 0, 9, 0, 0, 0, 12, 0, 8, 0, 12, 0]);
    let identifiers = [&[0, 1, 8, 0, 0][..], &[7; 8], &[3, 16, 0, 0], &[9; 16]].concat();
    let list = std::iter::once(0).chain((1..=20u32).flat_map(u32::to_le_bytes)).collect();
    [("controller", controller), ("namespace", namespace), ("identifiers", identifiers), ("list", list)]
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .to_vec()
}

fn main() -> ExitCode {
    fuzz::run(Target { name: "nvme_structures", run, seeds })
}
