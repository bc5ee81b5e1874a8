//! The connection: bytes go out and come in, at once or after waiting, but never after waiting for ever.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use load::{Failure, Result, during, fail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// It looks at the clock so often while it sleeps.
const NAP: Duration = Duration::from_secs(1);

/// Where a server listens: the path of a Unix socket, or `tcp:HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        text.strip_prefix("tcp:").map_or_else(
            || Self::Unix(text.into()),
            |address| Self::Tcp(address.to_owned()),
        )
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(formatter),
            Self::Tcp(address) => write!(formatter, "tcp:{address}"),
        }
    }
}

/// A connected socket, and the time by which all must be over.
pub(crate) struct Socket {
    fd: OwnedFd,
    deadline: Instant,
}

impl Socket {
    pub(crate) fn connect(address: &Address, timeout: Duration) -> Result<Self> {
        let connected = match address {
            Address::Unix(path) => UnixStream::connect(path).map(OwnedFd::from),
            Address::Tcp(address) => TcpStream::connect(address).and_then(|stream| {
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }),
        };
        let at = format!("connecting to {address}");
        let fd = during(&at, connected)?;
        during(
            &at,
            set_socket_timeout(&fd, Timeout::Recv, Some(NAP)).map_err(io::Error::from),
        )?;
        Ok(Self {
            fd,
            deadline: Instant::now() + timeout,
        })
    }

    /// Sends what there is room for. Returns how many bytes that were.
    pub(crate) fn send_now(&self, bytes: &[u8]) -> Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match send(&self.fd, bytes, flags) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            sent => during("sending", sent.map_err(io::Error::from)),
        }
    }

    /// Receives what is there. Returns how many bytes that were; 0: there is nothing yet.
    pub(crate) fn receive_now(&self, buffer: &mut [u8]) -> Result<usize> {
        match recv(&self.fd, buffer, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            received => came(received.map(|(count, _)| count)),
        }
    }

    /// Sleeps until something is there, and receives it.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Err(Errno::AGAIN | Errno::INTR) => self.check_time(Instant::now())?,
                received => return came(received.map(|(count, _)| count)),
            }
        }
    }

    /// Sleeps until something can be sent or received, for a second at most.
    pub(crate) fn wait(&self) -> Result<()> {
        self.check_time(Instant::now())?;
        let nap = Timespec {
            tv_sec: NAP.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let mut polls = [PollFd::new(&self.fd, PollFlags::IN | PollFlags::OUT)];
        match poll(&mut polls, Some(&nap)) {
            Err(Errno::INTR) => Ok(()),
            woken => during("waiting", woken.map_err(io::Error::from)).map(drop),
        }
    }

    /// Sends all of it, however long that takes.
    pub(crate) fn send_all(&self, bytes: &[u8]) -> Result<()> {
        let mut sent = 0;
        while sent < bytes.len() {
            sent += self.send_now(&bytes[sent..])?;
            if sent < bytes.len() {
                self.wait()?;
            }
        }
        Ok(())
    }

    /// Receives exactly so many bytes.
    pub(crate) fn receive_exactly<const COUNT: usize>(&self) -> Result<[u8; COUNT]> {
        let mut bytes = [0; COUNT];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives as many bytes as fit.
    pub(crate) fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.receive(&mut bytes[filled..])?;
        }
        Ok(())
    }

    /// Fails when time is up.
    pub(crate) fn check_time(&self, now: Instant) -> Result<()> {
        if now >= self.deadline {
            fail!("timed out");
        }
        Ok(())
    }
}

fn came(received: rustix::io::Result<usize>) -> Result<usize> {
    match received {
        Ok(0) => Err(Failure("the server closed the connection".to_owned())),
        received => during("receiving", received.map_err(io::Error::from)),
    }
}
