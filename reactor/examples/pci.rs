//! Shows a PCI device as a driver sees it, and brings an NVMe controller up far enough to say who it is.
//!
//! ```sh
//! scripts/bind bind 0000:01:00.0
//! cargo run --release -p reactor --example pci -- 0000:01:00.0      # by VFIO
//! cargo run --release -p reactor --example pci -- /run/nvme.sock    # by vfio-user
//! ```
//!
//! `--until-removed PLACE SECONDS` then waits until the device is taken away; `--registers-off ADDRESS` switches the
//! registers off and touches them, which must cost nothing. Register and command layouts are those of the NVM
//! Express Base Specification 2.0, §3.1.3 and §5.17.

use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use base::PoolMemory;
use reactor::devices::CLASS_NVME;
use reactor::{Bar, DmaMemory, HugeMemory, PciAddress, PciDevice, VfioDevice, VfioUserDevice};
use rustix::event::{PollFd, PollFlags, Timespec};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

// Controller registers.
const CAP: u64 = 0x00;
const VS: u64 = 0x08;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1C;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

/// The places in the memory shared with the controller: a page each.
const SUBMISSION: usize = 0;
const COMPLETION: usize = 4096;
const DATA: usize = 8192;

fn open(text: &str) -> Result<Box<dyn PciDevice>> {
    if let Ok(address) = text.parse::<PciAddress>() {
        return Ok(Box::new(VfioDevice::open(address)?));
    }
    Ok(Box::new(VfioUserDevice::connect(Path::new(text))?))
}

/// Waits until a descriptor is readable: true when it became so.
fn readable(descriptor: BorrowedFd<'_>, wait: Duration) -> Result<bool> {
    let mut set = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
    Ok(rustix::event::poll(&mut set, Some(&wait))? > 0)
}

fn wait_ready(bar: &dyn Bar, wanted: u32, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let status = bar.read32(CSTS)?;
        if status == u32::MAX {
            return Err("the controller is gone".into());
        }
        if status & 1 == wanted {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("CSTS.RDY is not {wanted} after {limit:?}: CSTS {status:#x}").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One IDENTIFY by DMA, its end told by an interrupt.
fn identify(device: &dyn PciDevice, bar: &dyn Bar, hugepages: bool) -> Result<()> {
    let cap = bar.read64(CAP)?;
    let limit = Duration::from_millis(500) * ((cap >> 24) as u32 & 0xFF).max(1);
    let memory = DmaMemory::new(4 * 4096, hugepages)?;
    let iova = device.map_dma(&memory.region())?;
    let events: Vec<OwnedFd> = device.enable_interrupts(1)?;
    println!("interrupt    MSI-X vector 0");
    device.set_bus_master(true)?;
    bar.write32(CC, 0)?;
    wait_ready(bar, 0, limit)?;
    // Two entries in each admin queue.
    bar.write32(AQA, 1 << 16 | 1)?;
    bar.write64(ASQ, iova + SUBMISSION as u64)?;
    bar.write64(ACQ, iova + COMPLETION as u64)?;
    // Entries of 64 and 16 bytes, pages of 4 KiB, the NVM command set, enabled.
    bar.write32(CC, 4 << 20 | 6 << 16 | 1)?;
    wait_ready(bar, 1, limit)?;
    // IDENTIFY, command identifier 7, the controller.
    memory.store32(SUBMISSION, 0x06 | 7 << 16);
    memory.store64(SUBMISSION + 24, iova + DATA as u64);
    memory.store32(SUBMISSION + 40, 1);
    bar.write32(DOORBELLS, 1)?;
    if !readable(events[0].as_fd(), Duration::from_secs(10))? {
        return Err("no interrupt within 10 s".into());
    }
    let (identifier, status) =
        (memory.load32(COMPLETION + 12) & 0xFFFF, memory.load32(COMPLETION + 12) >> 16);
    if identifier != 7 || status != 1 {
        return Err(format!("IDENTIFY ended with command {identifier}, status {status:#x}").into());
    }
    let text = |offset: usize, length: usize| {
        let mut bytes = vec![0; length];
        memory.read(DATA + offset, &mut bytes);
        String::from_utf8_lossy(&bytes).trim().to_owned()
    };
    println!("model        {}", text(24, 40));
    println!("serial       {}", text(4, 20));
    let stride = 4u64 << ((cap >> 32) & 0xF);
    bar.write32(DOORBELLS + stride, 1)?;
    bar.write32(CC, 0)?;
    wait_ready(bar, 0, limit)?;
    device.set_bus_master(false)?;
    device.enable_interrupts(0)?;
    device.unmap_dma(iova)?;
    Ok(())
}

/// Maps 8 MiB and takes them back.
fn map(device: &dyn PciDevice, hugepages: bool) -> Result<()> {
    let kind = HugeMemory::shared(8 << 20, hugepages)?;
    let (kind, shortfall) = (kind.kind(), kind.shortfall().map(str::to_owned));
    let memory = DmaMemory::new(8 << 20, hugepages)?;
    let iova = device.map_dma(&memory.region())?;
    let note = if iova == memory.region().address() as u64 { "identity" } else { "allocated" };
    println!("dma          8 MiB of {kind} at {iova:#x} ({note})");
    if let Some(text) = shortfall {
        println!("             {text}");
    }
    device.unmap_dma(iova)?;
    match device.unmap_dma(iova) {
        Err(_) => Ok(()),
        Ok(()) => Err("the same memory was unmapped twice".into()),
    }
}

/// How long handles are kept to a device that is gone, to show that they hinder nobody.
const KEPT: Duration = Duration::from_secs(20);

/// Waits until the system wants the device back, and looks at it for a while longer.
fn until_removed(device: Box<dyn PciDevice>, bar: Box<dyn Bar>, seconds: u64) -> Result<()> {
    device.removal_descriptor().ok_or("the device tells nothing of its removal")?;
    println!("waiting      {seconds} s at most for removal");
    let end = Instant::now() + Duration::from_secs(seconds);
    while device.is_present() {
        if Instant::now() > end {
            return Err(format!("the device was not removed within {seconds} s").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let register = bar.read32(CSTS).map_or_else(|error| error.to_string(), |value| format!("{value:#x}"));
    let write = bar.write32(DOORBELLS, 0).map_or_else(|error| error.to_string(), |()| "taken".to_owned());
    println!("wanted back  CSTS reads {register}, a doorbell is {write}, present: {}", device.is_present());
    std::thread::sleep(KEPT);
    drop(bar);
    drop(device);
    println!("let go");
    Ok(())
}

/// Switches the registers off under their mapping, as a reset or a loss of power does, and touches them.
fn registers_off(place: &str) -> Result<()> {
    const COMMAND: u16 = 4;
    let device = VfioDevice::open(place.parse::<PciAddress>()?)?;
    let bar = device.open_bar(0)?;
    println!("VS           {:#010x}", bar.read32(VS)?);
    let mut command = [0; 2];
    device.read_config(COMMAND, &mut command)?;
    device.write_config(COMMAND, &[command[0] & !2, command[1]])?;
    bar.write32(DOORBELLS, 0)?;
    let (word, long) = (bar.read32(VS)?, bar.read64(CAP)?);
    println!("off          VS {word:#010x}, CAP {long:#018x}, present: {}", device.is_present());
    Ok(())
}

fn show(device: &dyn PciDevice) -> Result<Box<dyn Bar>> {
    let identity = device.identity();
    println!("device       {}", device.name());
    println!("identity     {:04x}:{:04x} class {:06x}", identity.vendor, identity.device, identity.class);
    let bar = device.open_bar(0)?;
    println!("bar 0        {:#x} bytes", bar.length());
    map(device, false)?;
    map(device, true)?;
    if identity.class == CLASS_NVME {
        println!("CAP          {:#018x}", bar.read64(CAP)?);
        println!("VS           {:#010x}", bar.read32(VS)?);
        identify(device, &*bar, true)?;
        identify(device, &*bar, false)?;
        if device.reset().is_ok() {
            identify(device, &*bar, false)?;
            println!("reset        works");
        }
    }
    Ok(bar)
}

fn run() -> Result<()> {
    let (options, arguments): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|word| word.starts_with("--"));
    match (options.first().map(String::as_str), arguments.as_slice()) {
        (Some("--registers-off"), [place]) => registers_off(place),
        (Some("--until-removed"), [place, seconds]) => {
            let device = open(place)?;
            let bar = show(&*device)?;
            until_removed(device, bar, seconds.parse()?)
        }
        (None, [_, ..]) => {
            // All are open before the first is used: devices of one IOMMU group share their address space.
            let devices = arguments.iter().map(|place| open(place)).collect::<Result<Vec<_>>>()?;
            devices.iter().try_for_each(|device| show(&**device).map(drop))
        }
        _ => Err("usage: pci ADDRESS|SOCKET... or pci --until-removed PLACE SECONDS or pci --registers-off ADDRESS".into()),
    }
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pci: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
