//! UUIDs as VHD stores them: 16 bytes whose order differs between writers (Windows stores GUIDs mixed-endian), so they are
//! compared byte by byte and never checked for RFC 4122 version bits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// A 16-byte identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The UUID of nothing; as a parent's UUID, blktap's way to say that the parent is a raw file.
    pub const NIL: Self = Self([0; 16]);
}

impl FromStr for Uuid {
    type Err = &'static str;

    /// Reads 32 hexadecimal digits, with hyphens anywhere between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a UUID is 32 hexadecimal digits with hyphens";
        let mut bytes = [0; 16];
        let mut digits = text.chars().filter(|digit| *digit != '-');
        for byte in &mut bytes {
            let mut digit = || digits.next().and_then(|digit| digit.to_digit(16));
            let (high, low) = (digit().ok_or(WRONG)?, digit().ok_or(WRONG)?);
            *byte = (high << 4 | low) as u8;
        }
        digits.next().map_or(Ok(Self(bytes)), |_| Err(WRONG))
    }
}

impl<'de> Deserialize<'de> for Uuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
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
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
    }

    #[test]
    fn reads_nothing_but_32_digits() {
        for text in [
            "",
            "0",
            "00112233-4455-6677-8899-aabbccddeef",
            "00112233-4455-6677-8899-aabbccddeeff0",
            "g0112233-4455-6677-8899-aabbccddeeff",
        ] {
            assert!(text.parse::<Uuid>().is_err(), "{text}");
        }
    }
}
