//! The open files by their numbers, and who uses them.

use crate::backend::FileBackend;
use crate::error::{Error, Result};
use crate::file::File;
use crate::operations::parking::Parking;

/// The table of open files.
#[derive(Debug, Default)]
pub struct Files {
    slots: Vec<Option<Entry>>,
}

/// An open file in the table.
#[derive(Debug)]
pub struct Entry {
    /// The file.
    pub file: File,
    /// Operations that use it.
    users: u32,
    /// It is closed as soon as nothing uses it.
    closing: bool,
    /// Its writes, if it is open for direct I/O.
    pub parking: Parking,
}

impl Files {
    /// Gives a number to a file, and makes it known to the back end.
    ///
    /// # Errors
    ///
    /// `EMFILE` when there are no numbers left.
    pub fn insert(&mut self, file: File, backend: &mut dyn FileBackend) -> Result<u16> {
        let free = self
            .slots
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.slots.len());
        let number = u16::try_from(free)
            .map_err(|_| Error::new(libc::EMFILE, "too many open files in this port"))?;
        backend.add_file(file.main());
        let entry = Some(Entry {
            file,
            users: 0,
            closing: false,
            parking: Parking::default(),
        });
        match self.slots.get_mut(free) {
            Some(slot) => *slot = entry,
            None => self.slots.push(entry),
        }
        Ok(number)
    }

    /// Closes a file, as soon as the operations that use it are over. Its number is free again then.
    ///
    /// # Errors
    ///
    /// `EBADF` when no open file has the number.
    pub fn close(&mut self, number: u32, backend: &mut dyn FileBackend) -> Result<()> {
        let slot = self.slots.get_mut(number as usize);
        match slot {
            Some(Some(entry)) if !entry.closing => {
                entry.closing = true;
                self.sweep(number as usize, backend);
                Ok(())
            }
            _ => Err(Error::new(
                libc::EBADF,
                format!("no open file has the number {number}"),
            )),
        }
    }

    /// The file with a number, also if it is closing.
    pub fn entry(&mut self, number: u16) -> Option<&mut Entry> {
        self.slots.get_mut(usize::from(number))?.as_mut()
    }

    /// Notes that an operation uses the file. False if there is none with this number, or it is closing.
    #[must_use]
    pub fn hold(&mut self, number: u16) -> bool {
        match self.entry(number) {
            Some(entry) if !entry.closing => {
                entry.users += 1;
                true
            }
            _ => false,
        }
    }

    /// Notes that an operation no longer uses the file.
    pub fn release(&mut self, number: u16, backend: &mut dyn FileBackend) {
        if let Some(entry) = self.entry(number) {
            entry.users -= 1;
            self.sweep(usize::from(number), backend);
        }
    }

    /// Closes all files. No operation may use them any more.
    pub fn clear(&mut self, backend: &mut dyn FileBackend) {
        for entry in self.slots.drain(..).flatten() {
            backend.remove_file(entry.file.main());
        }
    }

    fn sweep(&mut self, index: usize, backend: &mut dyn FileBackend) {
        if let Some(slot) = self.slots.get_mut(index)
            && let Some(entry) = slot.take_if(|entry| entry.closing && entry.users == 0)
        {
            backend.remove_file(entry.file.main());
        }
    }
}
