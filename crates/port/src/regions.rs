//! The memory that operations may name: region number to address and length.

use vhd::record::REGION_STAGING;

/// Region numbers and what they stand for. Region 0 is the engine's staging area, which is never accessed through
/// this table.
#[derive(Debug, Default)]
pub struct Regions {
    slots: Vec<Option<Region>>,
}

#[derive(Debug)]
struct Region {
    base: *mut u8,
    length: usize,
    users: u32,
}

impl Regions {
    /// Gives a number to `length` bytes at `base`. The caller keeps the memory mapped until [`Regions::remove`].
    ///
    /// # Safety
    ///
    /// The memory must be readable and writable for as long as the number is in the table.
    pub unsafe fn add(&mut self, base: *mut u8, length: usize) -> u32 {
        let region = Some(Region {
            base,
            length,
            users: 0,
        });
        if let Some(free) = self.slots.iter().position(Option::is_none) {
            self.slots[free] = region;
            return number(free);
        }
        self.slots.push(region);
        number(self.slots.len() - 1)
    }

    /// Takes a number away. Nothing may use the region any more.
    pub fn remove(&mut self, region: u32) {
        if let Some(slot) = self.slot(region) {
            debug_assert!(slot.as_ref().is_none_or(|region| region.users == 0));
            *slot = None;
        }
    }

    /// The address of `length` bytes at `offset` in a region, if they lie in it.
    #[must_use]
    pub fn resolve(&self, region: u32, offset: u32, length: u64) -> Option<*mut u8> {
        let region = self.slots.get(index(region)?)?.as_ref()?;
        let end = u64::from(offset).checked_add(length)?;
        // SAFETY: the offset is at most the region's length, and `add` was promised that the region is one piece of
        // memory.
        (end <= region.length as u64).then(|| unsafe { region.base.add(offset as usize) })
    }

    /// Notes that an operation uses the region.
    pub fn hold(&mut self, region: u32) {
        if let Some(Some(region)) = self.slot(region) {
            region.users += 1;
        }
    }

    /// Notes that an operation no longer uses the region.
    pub fn release(&mut self, region: u32) {
        if let Some(Some(region)) = self.slot(region) {
            region.users -= 1;
        }
    }

    /// Whether an operation still uses the region.
    #[must_use]
    pub fn in_use(&self, region: u32) -> bool {
        index(region)
            .and_then(|index| self.slots.get(index)?.as_ref())
            .is_some_and(|region| region.users > 0)
    }

    fn slot(&mut self, region: u32) -> Option<&mut Option<Region>> {
        self.slots.get_mut(index(region)?)
    }
}

fn index(region: u32) -> Option<usize> {
    (region as usize).checked_sub(REGION_STAGING as usize + 1)
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 regions") + REGION_STAGING + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_without_overflow() {
        let mut memory = [0u8; 100];
        let mut regions = Regions::default();
        // SAFETY: `memory` outlives the table.
        let region = unsafe { regions.add(memory.as_mut_ptr(), memory.len()) };
        assert_eq!(region, 1);
        assert_eq!(
            regions.resolve(region, 40, 60),
            Some(memory.as_mut_ptr().wrapping_add(40))
        );
        assert!(regions.resolve(region, 100, 0).is_some());
        assert_eq!(regions.resolve(region, 40, 61), None);
        assert_eq!(regions.resolve(region, u32::MAX, u64::MAX), None);
        assert_eq!(regions.resolve(0, 0, 1), None);
        assert_eq!(regions.resolve(2, 0, 1), None);
        assert_eq!(regions.resolve(u32::MAX, 0, 1), None);
    }

    #[test]
    fn numbers_are_reused_when_free() {
        let mut memory = [0u8; 1];
        let mut regions = Regions::default();
        // SAFETY: `memory` outlives the table.
        let (first, second) = unsafe {
            (
                regions.add(memory.as_mut_ptr(), 1),
                regions.add(memory.as_mut_ptr(), 1),
            )
        };
        regions.hold(first);
        assert!(regions.in_use(first) && !regions.in_use(second));
        regions.release(first);
        regions.remove(first);
        // SAFETY: as above.
        assert_eq!(unsafe { regions.add(memory.as_mut_ptr(), 1) }, first);
        regions.remove(77);
    }
}
