//! How a child names its parent: by UUID, by file name, and by three parent locators that hold the parent's path relative to
//! the child's folder, as blktap writes them.

use crate::format::header::Header;
use crate::format::timestamp;
use crate::format::uuid::Uuid;
use crate::image::Image;
use crate::open::FileSpec;

/// A platform code, and the name behind it in bytes as the platform has them.
pub(crate) type LocatorName = ([u8; 4], Vec<u8>);

/// What a child says of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParentLink {
    /// [`Uuid::NIL`] for a raw parent.
    pub(crate) uuid: Uuid,
    /// When the parent was modified last, VHD time stamp.
    pub(crate) timestamp: u32,
    /// The parent's path from the child's folder: `./a.vhd`, `../b/a.vhd`.
    pub(crate) path: String,
}

impl ParentLink {
    /// How `child` names `parent`, which is the image `image`.
    pub(crate) fn new(child: &FileSpec, parent: &FileSpec, image: &Image) -> Self {
        Self {
            uuid: image.uuid.unwrap_or(Uuid::NIL),
            timestamp: timestamp::from_unix(parent.modified),
            path: relative(&place_of(child), &place_of(parent)),
        }
    }

    /// Puts all but the locators into a header.
    pub(crate) fn name_in(&self, header: &mut Header) {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        header.parent_uuid = self.uuid;
        header.parent_timestamp = self.timestamp;
        header.parent_name = name.encode_utf16().collect();
    }

    /// The locators' names, in blktap's order.
    pub(crate) fn names(&self) -> Vec<LocatorName> {
        let windows: Vec<u8> = self
            .path
            .replace('/', "\\")
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        vec![
            (*b"MacX", format!("file://{}", self.path).into_bytes()),
            (*b"W2ku", windows.clone()),
            (*b"W2ru", windows),
        ]
    }
}

/// The path that counts when one file is named from another's folder: where the file really is. A volume's name is a
/// symbolic link to a device whose number changes: it counts itself, in the form that all volumes have in `/dev/mapper`.
fn place_of(file: &FileSpec) -> String {
    if file.block_device {
        return match file.path.split('/').collect::<Vec<_>>()[..] {
            ["", "dev", group, volume] if group != "mapper" => {
                let [group, volume] = [group, volume].map(|name| name.replace('-', "--"));
                format!("/dev/mapper/{group}-{volume}")
            }
            _ => file.path.clone(),
        };
    }
    if file.real_path.is_empty() {
        file.path.clone()
    } else {
        file.real_path.clone()
    }
}

/// The path to `to` from the folder of `from`. Where they have no folder in common, it is `to` itself.
fn relative(from: &str, to: &str) -> String {
    let parts = |path: &str| -> Vec<String> {
        let parts = path
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".");
        parts.map(str::to_owned).collect()
    };
    let (mut from_parts, to_parts) = (parts(from), parts(to));
    from_parts.pop();
    let ambiguous = from.starts_with('/') != to.starts_with('/')
        || from_parts.iter().chain(&to_parts).any(|part| part == "..");
    if ambiguous {
        return to.to_owned();
    }
    let common = from_parts
        .iter()
        .zip(&to_parts[..to_parts.len().saturating_sub(1)])
        .take_while(|(one, other)| one == other)
        .count();
    let up = from_parts.len() - common;
    let start = if up == 0 {
        "./".to_owned()
    } else {
        "../".repeat(up)
    };
    start + &to_parts[common..].join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::Driver;

    #[test]
    fn paths_lead_from_the_childs_folder() {
        let cases = [
            ("/srv/a.vhd", "/srv/b.vhd", "./b.vhd"),
            ("/srv/x/a.vhd", "/srv/b.vhd", "../b.vhd"),
            ("/srv/x/y/a.vhd", "/srv/z/b.vhd", "../../z/b.vhd"),
            ("/srv/a.vhd", "/srv/x/b.vhd", "./x/b.vhd"),
            ("/a.vhd", "/b.vhd", "./b.vhd"),
            ("a.vhd", "b.vhd", "./b.vhd"),
            ("a.vhd", "./x/b.vhd", "./x/b.vhd"),
            ("a.vhd", "/srv/b.vhd", "/srv/b.vhd"),
            ("a.vhd", "../b.vhd", "../b.vhd"),
            ("/srv/a/b", "/srv/a", "../a"),
        ];
        for (from, to, expected) in cases {
            assert_eq!(relative(from, to), expected, "{from} {to}");
        }
    }

    fn file(path: &str, real_path: &str, block_device: bool) -> FileSpec {
        FileSpec {
            driver: Driver::Vhd,
            path: path.to_owned(),
            file: 0,
            size: 0,
            block_device,
            read_only: true,
            real_path: real_path.to_owned(),
            modified: 0,
        }
    }

    #[test]
    fn volumes_are_named_as_volumes() {
        let volume = file("/dev/VG-1/VHD-2", "/dev/dm-3", true);
        assert_eq!(place_of(&volume), "/dev/mapper/VG--1-VHD--2");
        let mapped = file("/dev/mapper/a-b", "/dev/dm-3", true);
        assert_eq!(place_of(&mapped), "/dev/mapper/a-b");
        assert_eq!(place_of(&file("link", "/srv/a.vhd", false)), "/srv/a.vhd");
    }

    #[test]
    fn locators_are_those_of_the_original() {
        let link = ParentLink {
            uuid: Uuid::NIL,
            timestamp: 0,
            path: "./s1.vhd".to_owned(),
        };
        let names = link.names();
        let lengths: Vec<usize> = names.iter().map(|(_, name)| name.len()).collect();
        assert_eq!(lengths, [15, 16, 16]);
        assert_eq!(names[0], (*b"MacX", b"file://./s1.vhd".to_vec()));
        assert!(names[1].1.starts_with(b".\0\\\0s\0"));
        let mut header = Header::new(1536, 1, 2 << 20);
        link.name_in(&mut header);
        assert_eq!(header.parent_name(), "s1.vhd");
    }
}
