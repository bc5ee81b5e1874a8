//! Bit maps with the most significant bit first: bit n is mask `0x80 >> (n % 8)` of byte n / 8.
//!
//! A block's sector bitmap says which of its sectors are in this file: a clear bit means that the parent shows through,
//! or zeros at the root of a chain.

/// Whether bit `index` is set; bits past the end count as clear.
#[must_use]
pub fn is_set(map: &[u8], index: u32) -> bool {
    map.get(index as usize / 8)
        .is_some_and(|byte| byte & 0x80 >> (index % 8) != 0)
}

/// Sets `count` bits from `first`. Returns true if any of them was clear before.
pub fn set_range(map: &mut [u8], first: u32, count: u32) -> bool {
    let mut changed = false;
    let end = first + count;
    let mut bit = first;
    while bit < end {
        let start_in_byte = bit % 8;
        let bits = (8 - start_in_byte).min(end - bit);
        let mask = ((0xff_u16 >> start_in_byte) & !(0xff_u16 >> (start_in_byte + bits))) as u8;
        if let Some(byte) = map.get_mut(bit as usize / 8) {
            changed |= *byte & mask != mask;
            *byte |= mask;
        }
        bit += bits;
    }
    changed
}

/// The value of bit `first`, and how many bits from there on have it, at most `limit`.
#[must_use]
pub fn run(map: &[u8], first: u32, limit: u32) -> (bool, u32) {
    let value = is_set(map, first);
    let mut length = 0;
    while length < limit {
        let bit = first + length;
        // The bits of `value` become zeros, and those before `bit` go.
        let word = if value {
            !word_at(map, bit)
        } else {
            word_at(map, bit)
        } << (bit % 8);
        let alike = word.leading_zeros().min(64 - bit % 8);
        length += alike;
        if alike < 64 - bit % 8 {
            break;
        }
    }
    (value, length.min(limit))
}

/// The 64 bits from that byte on which bit `index` is in; bits past the end count as clear.
fn word_at(map: &[u8], index: u32) -> u64 {
    let rest = map.get(index as usize / 8..).unwrap_or_default();
    match rest.first_chunk() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let bytes = rest.iter().zip((0..8).rev());
            bytes.fold(0, |word, (byte, place)| {
                word | u64::from(*byte) << (8 * place)
            })
        }
    }
}

/// Whether the first `bits` bits are all set.
#[must_use]
pub fn is_full(map: &[u8], bits: u32) -> bool {
    run(map, 0, bits) == (true, bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn most_significant_bit_comes_first() {
        let mut map = [0; 2];
        assert!(set_range(&mut map, 0, 1));
        assert!(set_range(&mut map, 9, 2));
        assert_eq!(map, [0x80, 0x60]);
        assert!(!set_range(&mut map, 9, 2));
    }

    proptest! {
        #[test]
        fn agrees_with_a_vector_of_bools(ranges in prop::collection::vec((0_u32..128, 0_u32..40), 0..12), from in 0_u32..128) {
            let mut map = [0; 16];
            let mut model = [false; 128];
            for (first, count) in ranges {
                let count = count.min(128 - first);
                let range = &mut model[first as usize..(first + count) as usize];
                let changes = range.iter().any(|bit| !bit);
                range.fill(true);
                prop_assert_eq!(set_range(&mut map, first, count), changes);
            }
            for (index, bit) in model.iter().enumerate() {
                prop_assert_eq!(is_set(&map, index as u32), *bit);
            }
            let (value, length) = run(&map, from, 128 - from);
            let expected = model[from as usize..].iter().take_while(|bit| **bit == model[from as usize]).count();
            prop_assert_eq!((value, length as usize), (model[from as usize], expected));
            prop_assert_eq!(is_full(&map, 128), model.iter().all(|bit| *bit));
        }
    }
}
