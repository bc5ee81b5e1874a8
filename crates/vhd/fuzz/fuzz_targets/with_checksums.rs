//! Right checksums, so that the checks behind them are reached.

/// Puts the checksums of both footers, and of the header that the first one names, right.
pub fn set(file: &mut [u8]) {
    fix(file, 0, 512, 64);
    let header = file
        .get(16..24)
        .map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap_or_default()));
    if let Some(header) = header.and_then(|offset| usize::try_from(offset).ok()) {
        fix(file, header, 1024, 36);
    }
    if let Some(last) = file.len().checked_sub(512) {
        fix(file, last, 512, 64);
    }
}

fn fix(file: &mut [u8], start: usize, length: usize, field: usize) {
    let Some(bytes) = start
        .checked_add(length)
        .and_then(|end| file.get_mut(start..end))
    else {
        return;
    };
    bytes[field..field + 4].fill(0);
    let sum = bytes
        .iter()
        .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}
