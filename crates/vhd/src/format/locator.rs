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
    /// larger one mean bytes. At least as much as the name has.
    #[must_use]
    pub fn space_bytes(&self) -> u64 {
        let space = u64::from(self.data_space);
        let space = if space < 512 { space * 512 } else { space };
        space.max(u64::from(self.data_length))
    }

    /// The parent's path that the locator's data hold, with `/` between folders and without a drive letter; `None` for
    /// platforms whose names can't be used here, and for an empty name.
    #[must_use]
    pub fn path(&self, data: &[u8]) -> Option<String> {
        let name = match &self.platform {
            b"W2ru" | b"W2ku" => {
                let units: Vec<u16> = data
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|unit| u16::from_le_bytes(*unit))
                    .collect();
                String::from_utf16_lossy(&units).replace('\\', "/")
            }
            b"MacX" | b"MACX" => {
                let url = String::from_utf8_lossy(data);
                percent_decoded(url.strip_prefix("file://").unwrap_or(&url))
            }
            _ => return None,
        };
        let name = name.split('\0').next().unwrap_or_default();
        let name = match name.as_bytes() {
            [letter, b':', ..] if letter.is_ascii_alphabetic() => &name[2..],
            _ => name,
        };
        (!name.is_empty()).then(|| name.to_owned())
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

/// Replaces `%XX` in a URL's path by the byte that it stands for.
fn percent_decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = if *first == b'%' {
            tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok())
        } else {
            None
        };
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(platform: &[u8; 4], data: &[u8]) -> Option<String> {
        ParentLocator {
            platform: *platform,
            ..Default::default()
        }
        .path(data)
    }

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn reads_the_names_of_every_writer() {
        assert_eq!(
            path(b"W2ru", &utf16(".\\base.vhd")),
            Some("./base.vhd".to_owned())
        );
        assert_eq!(
            path(b"W2ku", &utf16("C:\\vm s\\ü.vhd\0\0")),
            Some("/vm s/ü.vhd".to_owned())
        );
        assert_eq!(
            path(b"MacX", b"file://./a%20b%.vhd"),
            Some("./a b%.vhd".to_owned())
        );
        assert_eq!(
            path(b"MACX", b"file:///srv/x.vhd\0"),
            Some("/srv/x.vhd".to_owned())
        );
        assert_eq!(path(b"Wi2r", b"x"), None);
        assert_eq!(path(b"MacX", b"\0x"), None);
    }
}
