//! CHS geometry: derived from the size, shown to old BIOSes, and never the source of the size.

/// Cylinders, heads and sectors per track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Number of cylinders.
    pub cylinders: u16,
    /// Heads per cylinder.
    pub heads: u8,
    /// Sectors per track.
    pub sectors_per_track: u8,
}

impl Geometry {
    /// The geometry for a disk of `sectors` sectors, by the algorithm of the specification's appendix "CHS Calculation".
    #[must_use]
    pub fn for_sectors(sectors: u64) -> Self {
        let total = sectors.min(65535 * 16 * 255);
        let (sectors_per_track, heads, cylinder_times_heads);
        if total >= 65535 * 16 * 63 {
            sectors_per_track = 255;
            heads = 16;
            cylinder_times_heads = total / 255;
        } else {
            let tracks = total / 17;
            let wanted_heads = tracks.div_ceil(1024).max(4);
            if wanted_heads <= 16 && tracks < wanted_heads * 1024 {
                (sectors_per_track, heads, cylinder_times_heads) = (17, wanted_heads, tracks);
            } else if total / 31 < 16 * 1024 {
                (sectors_per_track, heads, cylinder_times_heads) = (31, 16, total / 31);
            } else {
                (sectors_per_track, heads, cylinder_times_heads) = (63, 16, total / 63);
            }
        }
        // The bounds above keep cylinders within 65535 and heads within 16.
        Self {
            cylinders: u16::try_from(cylinder_times_heads / heads).unwrap_or(u16::MAX),
            heads: heads as u8,
            sectors_per_track,
        }
    }

    /// Sectors that the geometry spans.
    #[must_use]
    pub fn sectors(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors_per_track)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chs(sectors: u64) -> (u16, u8, u8) {
        let Geometry {
            cylinders,
            heads,
            sectors_per_track,
        } = Geometry::for_sectors(sectors);
        (cylinders, heads, sectors_per_track)
    }

    #[test]
    fn agrees_with_images_of_other_programs() {
        // qemu-img create -f vpc, 40 MiB and 1 GiB (rounded up by it); vhd-util create -s 100.
        assert_eq!(chs(81_940), (964, 5, 17));
        assert_eq!(chs(2_097_648), (2081, 16, 63));
        assert_eq!(chs(204_800), (1003, 12, 17));
    }

    #[test]
    fn stays_within_its_fields_for_every_size() {
        for shift in 0..63 {
            for delta in [-1_i64, 0, 1] {
                let sectors = (1_u64 << shift).saturating_add_signed(delta);
                assert!(Geometry::for_sectors(sectors).sectors() <= sectors);
            }
        }
        assert_eq!(chs(u64::MAX), (65535, 16, 255));
    }
}
