//! What a device server answers: connecting to it and driving its device ends with a result, whatever it says.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use fuzz::Target;
use reactor::{DeviceError, DmaMemory, PciDevice, VfioUserDevice};

/// Everything the server will ever say is in the socket before it is asked, so nothing is worth waiting for.
const NO_WAIT: Duration = Duration::ZERO;

fn connect(data: &[u8]) -> Option<(Result<VfioUserDevice, DeviceError>, UnixStream)> {
    let (client, mut server) = UnixStream::pair().ok()?;
    server.set_nonblocking(true).ok()?;
    server.write_all(data).ok()?;
    // The other end stays open: its end would be noticed by another thread, at a time of its own.
    Some((VfioUserDevice::from_stream("fuzz".to_owned(), client, NO_WAIT), server))
}

fn run(data: &[u8]) {
    let Some((device, _server)) = connect(data) else { return };
    let device = match device {
        Ok(device) => device,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_ne!(device.identity().vendor, 0xFFFF);
    assert!(device.vectors_max() <= 2048);
    if let Ok(bar) = device.open_bar(0) {
        let length = bar.length();
        assert!(length > 0);
        let outside = DeviceError::OutOfBar { offset: length, length };
        if length % 4 == 0 {
            assert_eq!(bar.read32(length), Err(outside));
        }
        let _ = (bar.read32(0), bar.write32(4096, 1), bar.read64(8));
    }
    if let Ok(memory) = DmaMemory::new(4096, false)
        && let Ok(address) = device.map_dma(&memory.region())
    {
        assert_eq!(address, memory.region().address() as u64);
        let _ = device.unmap_dma(address);
    }
    if let Ok(events) = device.enable_interrupts(device.vectors_max().min(3)) {
        assert!(events.len() <= 3);
    }
    let _ = device.reset();
    if !device.is_present() {
        assert_eq!(device.set_bus_master(true), Err(DeviceError::Gone));
    }
}

/// The answers of an honest server, in the order of the questions.
struct Answers {
    bytes: Vec<u8>,
    number: u16,
}

impl Answers {
    fn add(&mut self, command: u16, body: &[u8]) {
        self.bytes.extend(self.number.to_le_bytes());
        self.bytes.extend(command.to_le_bytes());
        for word in [16 + body.len() as u32, 1, 0] {
            self.bytes.extend(word.to_le_bytes());
        }
        self.bytes.extend(body);
        self.number = self.number.wrapping_add(1);
    }

    fn read(&mut self, region: u32, offset: u64, data: &[u8]) {
        let mut body = offset.to_le_bytes().to_vec();
        body.extend(words(&[region, data.len() as u32]));
        body.extend(data);
        self.add(9, &body);
    }
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn honest(mapped: bool) -> Vec<u8> {
    let mut answers = Answers { bytes: Vec::new(), number: 0 };
    answers.add(1, b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":2,\"max_data_xfer_size\":1048576}}\0");
    answers.add(4, &words(&[16, 3, 9, 5]));
    for at in (0..64u64).step_by(4) {
        let word: [u8; 4] = match at {
            0 => [0x36, 0x1B, 0x10, 0],
            8 => [2, 2, 8, 1],
            _ => [0; 4],
        };
        answers.read(7, at, &word);
    }
    answers.add(7, &words(&[16, 1, 2, 3]));
    answers.read(7, 4, &[0, 0]);
    // The command register is written.
    answers.add(10, &words(&[4, 0, 7, 2]));
    let mut region = words(&[64, if mapped { 15 } else { 3 }, 0, 32, 16384, 0, 0, 0]);
    if mapped {
        region.extend(words(&[1 | 1 << 16, 0, 1, 0, 4096, 0, 4096, 0]));
    }
    answers.add(5, &region);
    answers.read(0, 0, &[1, 2, 3, 4]);
    // A write that wants no answer.
    answers.number += 1;
    answers.read(0, 8, &[1, 2, 3, 4]);
    answers.read(0, 12, &[1, 2, 3, 4]);
    answers.add(2, &[]);
    answers.add(3, &[0; 24]);
    answers.add(8, &[]);
    answers.add(8, &[]);
    answers.add(13, &[]);
    answers.bytes
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let plain = honest(false);
    // A server that asks for memory between two answers, and one that refuses the version.
    let mut asking = words(&[11 << 16 | 77, 32, 0, 0, 0, 0, 64, 0]);
    asking.extend(&plain);
    let refusing = words(&[1 << 16, 16, 1 | 1 << 5, 22]);
    vec![
        ("plain".to_string(), plain),
        ("mapped".to_string(), honest(true)),
        ("asking".to_string(), asking),
        ("refusing".to_string(), refusing),
    ]
}

fn main() -> ExitCode {
    fuzz::run(Target { name: "vfio_user", run, seeds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_honest_seeds_are_devices_that_answer_to_the_end() {
        for (name, bytes) in seeds() {
            let (device, _server) = connect(&bytes).unwrap();
            if name == "refusing" {
                assert!(device.unwrap_err().to_string().contains("refuses version 0.1"));
                continue;
            }
            let device = device.unwrap_or_else(|error| panic!("{name}: {error}"));
            let bar = device.open_bar(0).unwrap();
            assert_eq!(bar.read32(0), Ok(0x0403_0201), "{name}");
            bar.write32(4096, 1).unwrap();
            assert_eq!(bar.read64(8), Ok(0x0403_0201_0403_0201), "{name}");
            let memory = DmaMemory::new(4096, false).unwrap();
            let address = device.map_dma(&memory.region()).unwrap();
            device.unmap_dma(address).unwrap();
            assert_eq!(device.enable_interrupts(3).unwrap().len(), 3, "{name}");
            device.reset().unwrap();
            assert!(device.is_present(), "{name}");
        }
        seeds().iter().for_each(|(_, bytes)| run(bytes));
    }
}
