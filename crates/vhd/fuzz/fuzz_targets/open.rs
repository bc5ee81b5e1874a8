//! Any bytes as an image: they open or are refused, and whatever opens can be read and written. With TAPVHD_SEEDS set, writes
//! the seeds of all targets to that folder instead.
#![no_main]

mod limit;
mod seeds;
#[path = "../../tests/support/mod.rs"]
mod support;
mod with_checksums;

use libfuzzer_sys::fuzz_target;
use support::Host;
use vhd::Driver;
use vhd::record::RequestKind;

// The first byte says how; the rest is the file.
fuzz_target!(init: write_seeds(), |input: &[u8]| {
    let Some((how, file)) = input.split_first() else {
        return;
    };
    let (read_only, mut file) = (how & 1 != 0, file.to_vec());
    if how & 2 != 0 {
        with_checksums::set(&mut file);
    }
    let before = file.clone();
    let mut host = Host::with_cache(vec![file], 64 << 10, 0);
    host.capacity = limit::CAPACITY;
    let Ok(info) = host.open(Driver::Vhd, read_only) else {
        assert!(host.files[0] == before, "a refused file was changed");
        return;
    };
    let step = (info.sectors / 16).max(1);
    for index in 0..16_u64 {
        let sector = index * step;
        if sector < info.sectors {
            let count = (info.sectors - sector).min(128) as u32;
            let kind = [
                RequestKind::Read,
                RequestKind::Write,
                RequestKind::WriteZeroes,
            ][index as usize % 3];
            host.request(kind, sector, count, 0);
        }
    }
    host.request(RequestKind::Flush, 0, 0, 0);
    let _ = host.close();
});

fn write_seeds() {
    if let Some(folder) = std::env::var_os("TAPVHD_SEEDS") {
        seeds::write(folder.as_ref()).expect("the seeds can be written");
        std::process::exit(0);
    }
}
