//! Big-endian fields of fixed-size structures, and the checksum that footer and header share.

/// The `N` bytes at `offset`. The callers' structures have constant sizes and offsets, which the tests cover.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    if let Some(field) = bytes.get(offset..offset + N) {
        array.copy_from_slice(field);
    }
    array
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes(array(bytes, offset))
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(array(bytes, offset))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(array(bytes, offset))
}

pub(crate) fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    if let Some(target) = bytes.get_mut(offset..offset + field.len()) {
        target.copy_from_slice(field);
    }
}

/// One's complement of the sum of all bytes, with the four bytes of the checksum field itself counted as zero.
pub(crate) fn checksum(bytes: &[u8], field: usize) -> u32 {
    let sum = bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !(field..field + 4).contains(at))
        .fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    !sum
}
