//! Any bytes as the data of any parent locator.
#![no_main]

#[allow(dead_code)]
mod limit;

use libfuzzer_sys::fuzz_target;
use vhd::format::locator::ParentLocator;

fuzz_target!(|input: ([u8; 4], Vec<u8>)| {
    let (platform, data) = input;
    for platform in [platform, *b"W2ru", *b"W2ku", *b"MacX"] {
        let locator = ParentLocator {
            platform,
            ..ParentLocator::default()
        };
        if let Some(path) = locator.path(&data) {
            assert!(!path.is_empty() && !path.contains('\0'));
        }
    }
});
