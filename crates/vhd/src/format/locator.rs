//! Parent locators: the ways in which a differencing image names its parent, one for each platform.

use super::bytes::{array, put, u32_at, u64_at};

/// Bytes of one entry in the header.
pub const LENGTH: usize = 24;

/// One of the header's eight parent locator entries. An entry whose platform code is zero is unused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParentLocator {
    /// Platform code: `W2ru`, `W2ku` (UTF-16LE paths, relative and absolute) or `MacX` (a UTF-8 file URL).
    pub platform: [u8; 4],
    /// Room for the name. The specification counts sectors, but Windows and blktap write bytes; see
    /// [`ParentLocator::space_bytes`].
    pub data_space: u32,
    /// Bytes of the name.
    pub data_length: u32,
    /// Byte offset of the name in the file.
    pub data_offset: u64,
}

impl ParentLocator {
    /// Whether the entry names anything.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.platform != [0; 4]
    }

    /// Room for the name in bytes: a value below 512 counts sectors, as the specification says; writers that store a
    /// larger one mean bytes.
    #[must_use]
    pub fn space_bytes(&self) -> u64 {
        let space = u64::from(self.data_space);
        if space < 512 { space * 512 } else { space }
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        Self {
            platform: array(bytes, 0),
            data_space: u32_at(bytes, 4),
            data_length: u32_at(bytes, 8),
            data_offset: u64_at(bytes, 16),
        }
    }

    pub(super) fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        put(&mut bytes, 0, &self.platform);
        put(&mut bytes, 4, &self.data_space.to_be_bytes());
        put(&mut bytes, 8, &self.data_length.to_be_bytes());
        put(&mut bytes, 16, &self.data_offset.to_be_bytes());
        bytes
    }
}
