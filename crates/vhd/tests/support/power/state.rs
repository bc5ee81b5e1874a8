//! What files hold, with a fingerprint of all of it that costs little to keep, and a way back.

const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
struct File {
    bytes: Vec<u8>,
    /// A fingerprint of each sector: 0 for one that holds only zeros.
    sums: Vec<u64>,
}

/// What an undone step restores; the bytes themselves are in [`State::saved`].
#[derive(Clone, Copy, Debug)]
enum Undo {
    Bytes {
        file: usize,
        offset: usize,
        length: usize,
    },
    Size {
        file: usize,
        size: usize,
        /// How many bytes were cut off.
        length: usize,
    },
}

/// The content of all files.
#[derive(Clone, Debug, Default)]
pub struct State {
    files: Vec<File>,
    sum: u64,
    undo: Vec<Undo>,
    saved: Vec<u8>,
}

/// Mixes the bits of a number.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let value = (value ^ value >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    value ^ value >> 32
}

fn sector_sum(file: usize, sector: usize, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let add = |sum: u64, word: u64| (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let sum = words
        .iter()
        .fold(0, |sum, word| add(sum, u64::from_le_bytes(*word)));
    let sum = rest
        .iter()
        .fold(sum, |sum, byte| add(sum, u64::from(*byte)));
    if sum == 0 {
        0
    } else {
        mix(sum ^ mix((file as u64) << 40 | sector as u64))
    }
}

fn size_sum(file: usize, size: usize) -> u64 {
    mix(1 << 63 | (file as u64) << 48 | size as u64)
}

impl State {
    pub fn add_file(&mut self, bytes: &[u8]) {
        let number = self.files.len();
        let sums: Vec<u64> = bytes
            .chunks(SECTOR)
            .enumerate()
            .map(|(sector, bytes)| sector_sum(number, sector, bytes))
            .collect();
        self.sum ^= sums.iter().fold(0, |sum, sector| sum ^ sector) ^ size_sum(number, bytes.len());
        self.files.push(File {
            bytes: bytes.to_vec(),
            sums,
        });
    }

    pub fn files(&self) -> usize {
        self.files.len()
    }

    pub fn bytes(&self, file: usize) -> &[u8] {
        &self.files[file].bytes
    }

    /// The same for the same content only.
    pub fn fingerprint(&self) -> u64 {
        self.sum
    }

    /// Sets a file's size; new bytes are zeros.
    pub fn resize(&mut self, file: usize, size: usize) {
        let old = self.files[file].bytes.len();
        let cut = old.saturating_sub(size);
        self.saved
            .extend_from_slice(&self.files[file].bytes[old - cut..]);
        self.undo.push(Undo::Size {
            file,
            size: old,
            length: cut,
        });
        self.set_size(file, size);
    }

    fn set_size(&mut self, file: usize, size: usize) {
        let old = self.files[file].bytes.len();
        self.sum ^= size_sum(file, old) ^ size_sum(file, size);
        self.files[file].bytes.resize(size, 0);
        let sectors = size.div_ceil(SECTOR);
        for gone in self.files[file]
            .sums
            .drain(sectors.min(old.div_ceil(SECTOR))..)
        {
            self.sum ^= gone;
        }
        self.files[file].sums.resize(sectors, 0);
        // The sector that is there in part now, or was.
        for edge in [old / SECTOR, size / SECTOR] {
            if edge < sectors {
                self.count(file, edge);
            }
        }
    }

    /// Puts bytes where the file has some; they lie in one sector. `None` is zeros.
    pub fn put(&mut self, file: usize, offset: usize, length: usize, bytes: Option<&[u8]>) {
        let target = &mut self.files[file].bytes[offset..offset + length];
        self.saved.extend_from_slice(target);
        match bytes {
            Some(bytes) => target.copy_from_slice(bytes),
            None => target.fill(0),
        }
        self.undo.push(Undo::Bytes {
            file,
            offset,
            length,
        });
        self.count(file, offset / SECTOR);
    }

    /// Brings the fingerprint of a sector up to date.
    fn count(&mut self, file: usize, sector: usize) {
        let File { bytes, sums } = &mut self.files[file];
        let end = bytes.len().min((sector + 1) * SECTOR);
        let sum = sector_sum(file, sector, &bytes[sector * SECTOR..end]);
        self.sum ^= sums[sector] ^ sum;
        sums[sector] = sum;
    }

    /// A point to which [`State::back`] returns.
    pub fn mark(&self) -> usize {
        self.undo.len()
    }

    /// Undoes everything since the mark.
    pub fn back(&mut self, mark: usize) {
        while self.undo.len() > mark
            && let Some(undo) = self.undo.pop()
        {
            match undo {
                Undo::Bytes {
                    file,
                    offset,
                    length,
                } => {
                    let from = self.saved.len() - length;
                    self.files[file].bytes[offset..offset + length]
                        .copy_from_slice(&self.saved[from..]);
                    self.saved.truncate(from);
                    self.count(file, offset / SECTOR);
                }
                Undo::Size { file, size, length } => {
                    self.set_size(file, size);
                    let from = self.saved.len() - length;
                    let start = size - length;
                    self.files[file].bytes[start..].copy_from_slice(&self.saved[from..]);
                    self.saved.truncate(from);
                    for sector in start / SECTOR..size.div_ceil(SECTOR) {
                        self.count(file, sector);
                    }
                }
            }
        }
    }

    /// Makes everything since the beginning final.
    pub fn commit(&mut self) {
        self.undo.clear();
        self.saved.clear();
    }
}
