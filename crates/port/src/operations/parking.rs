//! Which writes of a file that is open for direct I/O may be in flight together.
//!
//! What isn't aligned for direct I/O goes through the page cache. A buffered write changes whole pages: while it is
//! under way or not yet written back, a direct write to another part of the same page could be lost. So a buffered
//! write on such a file is *exclusive*: no other write to the same pages is in flight with it, and one that would be is
//! parked until it is over. A later direct write makes the kernel write the page back first.
//!
//! A new write waits for those in flight, and for those parked before it, so that nobody is overtaken for ever. One that was
//! in flight already and becomes exclusive, because direct I/O did only a part of it, waits for others in flight alone: those
//! parked may be waiting for it. So as long as any are parked, some write is in flight, and its end lets others go on.

use std::ops::Range;

/// The writes of a file, in flight and parked. It stays empty for files without direct I/O.
#[derive(Debug, Default)]
pub struct Parking {
    /// By the slots of their operations.
    writes: Vec<Option<Write>>,
    exclusive: u32,
    parked: u32,
    next_age: u64,
}

#[derive(Debug)]
struct Write {
    /// Bytes in the file, whole pages.
    pages: Range<u64>,
    exclusive: bool,
    parked: bool,
    /// Who came first has the lowest.
    age: u64,
}

impl Parking {
    /// Whether a write, new or in flight until now, may start its next call, through the page cache if it is `buffered`. If
    /// not it is parked, until [`Parking::resume`] names its slot.
    pub fn admit(&mut self, slot: u32, pages: Range<u64>, buffered: bool) -> bool {
        let index = slot as usize;
        if self.writes.len() <= index {
            self.writes.resize_with(index + 1, || None);
        }
        let (age, was_exclusive, is_new) = match &self.writes[index] {
            Some(write) => (write.age, write.exclusive, false),
            None => {
                self.next_age += 1;
                (self.next_age, false, true)
            }
        };
        let mut write = Write {
            pages,
            exclusive: was_exclusive || buffered,
            parked: false,
            age,
        };
        self.exclusive += u32::from(write.exclusive && !was_exclusive);
        write.parked = self.exclusive > 0 && self.blocks(&write, |other| is_new || !other.parked);
        self.parked += u32::from(write.parked);
        let may_start = !write.parked;
        self.writes[index] = Some(write);
        may_start
    }

    /// Notes that an operation is over. It need not be a write.
    pub fn leave(&mut self, slot: u32) {
        if let Some(write) = self.writes.get_mut(slot as usize).and_then(Option::take) {
            self.exclusive -= u32::from(write.exclusive);
            self.parked -= u32::from(write.parked);
        }
    }

    /// The slot of a parked write that nothing keeps any more, the oldest first; it is in flight then. To be asked, until there
    /// is none, after [`Parking::leave`].
    pub fn resume(&mut self) -> Option<u32> {
        if self.parked == 0 {
            return None;
        }
        let is_free = |write: &Write| {
            write.parked && !self.blocks(write, |other| !other.parked || other.age < write.age)
        };
        let (slot, _) = (self.writes.iter().enumerate())
            .filter_map(|(slot, write)| {
                Some((slot, write.as_ref().filter(|write| is_free(write))?))
            })
            .min_by_key(|(_, write)| write.age)?;
        self.writes[slot].as_mut()?.parked = false;
        self.parked -= 1;
        Some(slot as u32)
    }

    /// Whether another write of those that `counts` is in the way.
    fn blocks(&self, write: &Write, counts: impl Fn(&Write) -> bool) -> bool {
        self.writes.iter().flatten().any(|other| {
            other.age != write.age
                && (other.exclusive || write.exclusive)
                && other.pages.start < write.pages.end
                && write.pages.start < other.pages.end
                && counts(other)
        })
    }
}

#[cfg(test)]
mod tests;
