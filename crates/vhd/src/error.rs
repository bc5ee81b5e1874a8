//! Errors as values with a place: which file, which structure, which byte offset, what was found, what was expected.

use std::fmt;

/// Errno values (Linux) that the engine gives to requests and jobs.
pub mod errno {
    /// Operation not permitted.
    pub const EPERM: i32 = 1;
    /// No such file or directory.
    pub const ENOENT: i32 = 2;
    /// Input/output error.
    pub const EIO: i32 = 5;
    /// File exists.
    pub const EEXIST: i32 = 17;
    /// Invalid argument.
    pub const EINVAL: i32 = 22;
    /// No space left on device.
    pub const ENOSPC: i32 = 28;
    /// File name too long.
    pub const ENAMETOOLONG: i32 = 36;
    /// Operation not supported.
    pub const EOPNOTSUPP: i32 = 95;
    /// The virtual disk is closed.
    pub const ESHUTDOWN: i32 = 108;
    /// The job was cancelled.
    pub const ECANCELED: i32 = 125;
}

/// Why an operation on a file failed.
pub(crate) fn reason(errno: i32) -> String {
    match errno {
        errno::EIO => "input/output failed".to_owned(),
        errno::ENOSPC => "no space is left".to_owned(),
        other => format!("input/output failed (errno {other})"),
    }
}

/// What went wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The image file, where it is known.
    pub file: Option<Box<str>>,
    /// The structure that was being read or written ("footer", "BAT", …).
    pub structure: &'static str,
    /// Byte offset of the offending field or transfer in the file.
    pub offset: Option<u64>,
    /// What is wrong, in words.
    pub message: Box<str>,
    /// What was found there.
    pub found: Option<Box<str>>,
    /// What should have been there.
    pub expected: Option<Box<str>>,
    /// The errno value (positive) that a program reports for it.
    pub errno: i32,
}

/// Result of an operation on an image.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A structure that can't be accepted; errno `EINVAL`.
    #[must_use]
    pub fn invalid(structure: &'static str, message: impl Into<Box<str>>) -> Self {
        Self {
            file: None,
            structure,
            offset: None,
            message: message.into(),
            found: None,
            expected: None,
            errno: errno::EINVAL,
        }
    }

    /// An I/O operation on a structure that failed with `errno` (positive).
    #[must_use]
    pub fn io(structure: &'static str, offset: u64, errno: i32) -> Self {
        Self {
            offset: Some(offset),
            errno,
            ..Self::invalid(structure, reason(errno))
        }
    }

    /// Something that the host could not do with a file as a whole, with `errno` (positive).
    #[must_use]
    pub fn file(errno: i32, message: &str) -> Self {
        Self {
            errno,
            ..Self::invalid("file", format!("{message} (errno {errno})"))
        }
    }

    /// Adds the byte offset in the file.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Adds what was found and what was expected instead.
    #[must_use]
    pub fn found(mut self, found: impl fmt::Display, expected: impl fmt::Display) -> Self {
        self.found = Some(found.to_string().into());
        self.expected = Some(expected.to_string().into());
        self
    }

    /// Adds the file's name.
    #[must_use]
    pub fn in_file(mut self, file: &str) -> Self {
        self.file.get_or_insert_with(|| file.into());
        self
    }

    /// Makes an offset that counts from the start of a structure one that counts from the start of the file.
    #[must_use]
    pub fn relative_to(mut self, base: u64) -> Self {
        self.offset = self.offset.map(|offset| offset.saturating_add(base));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        write!(f, "{}: {}", self.structure, self.message)?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset} ({offset:#x})")?;
        }
        if let (Some(found), Some(expected)) = (&self.found, &self.expected) {
            write!(f, ": found {found}, expected {expected}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
