//! Errors as the host sees them: an errno with its name, and a message that names the place.

use std::fmt::{self, Display};
use std::io;

/// A failed call of the host. Failed operations aren't errors of this kind: they end with a negative errno value in
/// their completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    errno: i32,
    message: String,
}

/// The outcome of a call of the host.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with this (positive) errno value and message.
    pub fn new(errno: i32, message: impl Into<String>) -> Self {
        Self {
            errno,
            message: message.into(),
        }
    }

    /// A failed system call: `what` says what was tried, and on what.
    pub fn os(what: impl Display, cause: &io::Error) -> Self {
        let errno = cause.raw_os_error().unwrap_or(match cause.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => libc::EINVAL,
            io::ErrorKind::TimedOut => libc::ETIMEDOUT,
            io::ErrorKind::UnexpectedEof => libc::ECONNRESET,
            _ => libc::EIO,
        });
        Self {
            errno,
            message: format!("{what}: {cause}"),
        }
    }

    /// The errno value, positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The errno's name, such as `ENOENT`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        name(self.errno)
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for napi::Error<String> {
    fn from(error: Error) -> Self {
        Self::new(error.code().to_owned(), error.message)
    }
}

/// The negative errno value of the system call that just failed on this thread.
#[must_use]
pub(crate) fn last_errno() -> i32 {
    -io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// What a system call returned, or a negative errno value; a signal doesn't end it.
pub(crate) fn retried(mut call: impl FnMut() -> isize) -> i32 {
    loop {
        let result = call();
        if result >= 0 {
            // The kernel transfers less than 2 GiB at a time.
            return i32::try_from(result).unwrap_or(i32::MAX);
        }
        let error = last_errno();
        if error != -libc::EINTR {
            return error;
        }
    }
}

macro_rules! names {
    ($errno:expr; $($name:ident)*) => {
        match $errno {
            $(libc::$name => stringify!($name),)*
            _ => "EUNKNOWN",
        }
    };
}

fn name(errno: i32) -> &'static str {
    names!(errno;
        EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG EBADF EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV ENODEV
        ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE
        ENAMETOOLONG ENOLCK ENOSYS ELOOP EOVERFLOW ENOTSOCK EPROTO EBADMSG EMSGSIZE ENOPROTOOPT EOPNOTSUPP ECONNABORTED
        ECONNRESET ENOBUFS ENOTCONN ETIMEDOUT ECONNREFUSED EALREADY ESTALE EDQUOT EREMOTEIO ENOMEDIUM ECANCELED)
}
