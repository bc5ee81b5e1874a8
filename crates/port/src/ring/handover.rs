//! How a client hands its ring over: over a Unix stream socket it sends 16 bytes, `TAPRING1`, version u32 = 1, u32 = 0, and with
//! them exactly three descriptors (`SCM_RIGHTS`): the memfd, the eventfd by which it kicks us, the eventfd by which we
//! notify it. The answer, 32 bytes with the disk's size, is the host's to send. The connection then stays open as a sign of
//! life: closing it detaches the ring.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// The greeting of a client.
const GREETING: [u8; 16] = *b"TAPRING1\x01\0\0\0\0\0\0\0";
/// Room for more descriptors than are wanted, so that too many are seen as such.
const ROOM: usize = 8;

/// A client's descriptors: memory that can be a ring's, and two eventfds.
#[derive(Debug)]
pub struct RingFds {
    /// The memory of ring and data.
    pub memory: OwnedFd,
    /// Becomes readable when the client has put requests into the ring.
    pub kick: OwnedFd,
    /// Written to when responses were put into the ring.
    pub notify: OwnedFd,
}

/// Takes a ring from the client on a connected Unix stream socket, and not a byte more. Blocks at most for `timeout`.
///
/// # Errors
/// `TimedOut`, `UnexpectedEof` when the client goes, `InvalidData` when it sends anything but what is described above,
/// `InvalidInput` when the memory can't be a ring's. All descriptors received are closed then.
pub fn receive_ring(fd: RawFd, timeout: Duration) -> io::Result<RingFds> {
    let deadline = Instant::now() + timeout;
    let mut greeting = [0; GREETING.len()];
    let mut filled = 0;
    let mut fds = Vec::new();
    while filled < greeting.len() {
        wait_readable(fd, deadline)?;
        match receive(fd, &mut greeting[filled..], &mut fds) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
    if greeting != GREETING {
        return Err(invalid("not the greeting of a ring client of version 1"));
    }
    let [memory, kick, notify] = <[OwnedFd; 3]>::try_from(fds)
        .map_err(|_| invalid("a ring client sends exactly three descriptors"))?;
    for event in [&kick, &notify] {
        check_event(event)?;
    }
    // Here, not where a data plane would wait: what a client sends may be of a file system that answers late or never.
    super::check_memory(&memory)?;
    Ok(RingFds {
        memory,
        kick,
        notify,
    })
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn wait_readable(fd: RawFd, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // Rounded up: a last wait of less than a millisecond must not spin.
        let milliseconds = left
            .as_micros()
            .div_ceil(1000)
            .try_into()
            .unwrap_or(i32::MAX);
        // SAFETY: `poll` is one valid, writable structure.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            0 => return Err(io::ErrorKind::TimedOut.into()),
            count if count > 0 => return Ok(()),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// One `recvmsg`. Whatever descriptors come are owned by `fds` at once.
fn receive(fd: RawFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    // u64 for the alignment of `cmsghdr`; twice the room is more than CMSG_SPACE adds.
    let mut control = [0u64; ROOM];
    let mut vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: an all-zero `msghdr` is a valid value of that plain structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` names buffers that live through the call, with their true lengths.
    let count = unsafe { libc::recvmsg(fd, &raw mut message, flags) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `message` was filled in by `recvmsg`, and `control` is still there.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: the CMSG_ functions return headers that lie completely within `control`, which is aligned for them.
        let (level, kind, length) = unsafe {
            (
                (*header).cmsg_level,
                (*header).cmsg_type,
                (*header).cmsg_len as usize,
            )
        };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            // SAFETY: asks only for the size of a header.
            let payload = length - unsafe { libc::CMSG_LEN(0) } as usize;
            for index in 0..payload / size_of::<RawFd>() {
                // SAFETY: `length` says that so many descriptors follow; they need not be aligned.
                let fd = unsafe { data.add(index).read_unaligned() };
                // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows of it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(invalid("a ring client sends exactly three descriptors"));
    }
    Ok(count as usize)
}

/// Makes sure that waiting on the descriptor and writing to it does what it does with an eventfd, and doesn't block.
fn check_event(event: &OwnedFd) -> io::Result<()> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", event.as_raw_fd()))?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        return Err(invalid(
            "a ring client's second and third descriptor are eventfds",
        ));
    }
    // SAFETY: this command takes no argument and changes nothing.
    let flags = unsafe { libc::fcntl(event.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the argument is an integer: the flags that were there, and O_NONBLOCK.
    if unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
