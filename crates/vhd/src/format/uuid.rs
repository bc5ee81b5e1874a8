//! UUIDs as VHD stores them: 16 bytes whose order differs between writers (Windows stores GUIDs mixed-endian), so they are
//! compared byte by byte and never checked for RFC 4122 version bits.

use std::fmt;

/// A 16-byte identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The UUID of nothing; as a parent's UUID, blktap's way to say that the parent is a raw file.
    pub const NIL: Self = Self([0; 16]);
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_in_groups() {
        let uuid = Uuid(std::array::from_fn(|index| index as u8 * 17));
        assert_eq!(uuid.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    }
}
