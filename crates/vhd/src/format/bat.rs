//! The block allocation table: for each block of the virtual disk the absolute sector of the file at which its sector
//! bitmap begins (its data follow the bitmap), or [`UNUSED`]. 32-bit big-endian entries.

/// Entry of a block that is not in this file.
pub const UNUSED: u32 = 0xffff_ffff;

/// Entries in one 512-byte sector of the table.
pub const ENTRIES_PER_SECTOR: usize = 128;

/// Appends the entries in `bytes` to `table`; a rest of less than four bytes is ignored.
pub fn decode(bytes: &[u8], table: &mut Vec<u32>) {
    table.extend(
        bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|entry| u32::from_be_bytes(*entry)),
    );
}

/// The bytes of `entries`, padded with [`UNUSED`] entries to a whole number of sectors.
#[must_use]
pub fn encode(entries: &[u32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_be_bytes())
        .collect();
    bytes.resize(bytes.len().next_multiple_of(512), 0xff);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_pads_with_unused() {
        let bytes = encode(&[1, UNUSED, 0x0102_0304]);
        assert_eq!(bytes.len(), 512);
        let mut table = Vec::new();
        decode(&bytes, &mut table);
        assert_eq!(table[..3], [1, UNUSED, 0x0102_0304]);
        assert!(table[3..].iter().all(|entry| *entry == UNUSED));
    }
}
