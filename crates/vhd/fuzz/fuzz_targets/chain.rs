//! Any two files as child and parent.
#![no_main]

mod limit;
#[path = "../../tests/support/mod.rs"]
mod support;
mod with_checksums;

use libfuzzer_sys::fuzz_target;
use support::Host;
use vhd::Driver;
use vhd::record::RequestKind;

// The first byte says how many sectors the child has; what follows them is the parent.
fuzz_target!(|input: &[u8]| {
    let Some((sectors, files)) = input.split_first() else {
        return;
    };
    let Some((child, parent)) = files.split_at_checked(usize::from(*sectors) * 512) else {
        return;
    };
    let (mut child, mut parent) = (child.to_vec(), parent.to_vec());
    with_checksums::set(&mut child);
    with_checksums::set(&mut parent);
    let before = parent.clone();
    let mut host = Host::with_cache(vec![child, parent], 64 << 10, 0);
    host.capacity = limit::CAPACITY;
    if let Ok(info) = host.open(Driver::Vhd, false) {
        for sector in [0, info.sectors / 2, info.sectors - 1] {
            let count = (info.sectors - sector).min(64) as u32;
            host.request(RequestKind::Read, sector, count, 0);
            host.request(RequestKind::Write, sector, count, 0);
        }
        let _ = host.close();
    }
    assert!(host.files[1] == before, "a parent was changed");
});
