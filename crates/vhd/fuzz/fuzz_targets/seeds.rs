//! The images with which the fuzzers begin.

use std::path::Path;
use std::{fs, io};

use super::support::images::{self, Parent, Spec, uuid};
use vhd::format::footer::{DiskType, Footer};

const SIZE: u64 = 64 << 10;

fn image(index: usize, block_size: u32, blocks: &[(u32, u64)], parent: Option<Parent>) -> Vec<u8> {
    let spec = Spec {
        uuid: uuid(index),
        size: SIZE,
        block_size,
        parent,
        blocks,
        fill: |sector| sector as u8,
    };
    images::build(&spec, &mut vec![0; SIZE as usize])
}

/// Writes them to folders in `folder`, one for each target that has some.
pub fn write(folder: &Path) -> io::Result<()> {
    let partial = [(3, 0xf0f0), (0, u64::MAX), (1, 0)];
    let mut fixed = vec![7; 8192];
    fixed.extend(Footer::new(DiskType::Fixed, 8192, uuid(0), 7).encode());
    let single = [
        image(0, 4096, &partial, None),
        image(0, 16384, &[], None),
        image(0, 8192, &partial[..2], None),
        fixed,
    ];

    fs::create_dir_all(folder.join("open"))?;
    for (number, file) in single.iter().enumerate() {
        for how in 0..4 {
            fs::write(
                folder.join(format!("open/{number}-{how}")),
                [&[how], file.as_slice()].concat(),
            )?;
        }
    }
    fs::create_dir_all(folder.join("chain"))?;
    for (number, platform) in [*b"W2ru", *b"W2ku", *b"MacX"].into_iter().enumerate() {
        let path = if &platform == b"W2ku" {
            format!("C:{}", images::name(1))
        } else {
            "./base/parent1.vhd".to_owned()
        };
        let child = image(
            0,
            4096,
            &partial,
            Some(Parent {
                uuid: uuid(1),
                locator: (platform, path),
            }),
        );
        let sectors = (child.len() / 512) as u8;
        let parent = image(1, 8192, &[(1, 0xff00), (2, u64::MAX)], None);
        fs::write(
            folder.join(format!("chain/{number}")),
            [&[sectors], child.as_slice(), &parent].concat(),
        )?;
    }
    Ok(())
}
