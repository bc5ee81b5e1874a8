//! The connection to `tapdisk`: hands the ring over, and waits for responses without waiting for ever.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use load::{Result, during, fail};

use crate::ring::{Counts, ENTRIES, GuestRing, Request, Response, status};

const MAGIC: &[u8; 8] = b"TAPRING1";
const VERSION: u32 = 1;

/// What `tapdisk` says of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Number of sectors of 512 bytes.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
}

/// Where to connect, and how long everything may take.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    /// The Unix socket of `tapdisk`.
    pub socket: &'a Path,
    /// What the ring's indexes begin with.
    pub start_index: u32,
    /// The whole job must be done within this time.
    pub timeout: Duration,
}

/// A connected ring.
#[derive(Debug)]
pub struct Client {
    /// The ring.
    pub ring: GuestRing,
    /// The disk behind it.
    pub disk: Disk,
    socket: UnixStream,
    deadline: Instant,
    free_ids: u32,
}

impl Client {
    /// Connects, hands over a new ring, and takes the answer.
    ///
    /// # Errors
    /// When nobody listens, or the ring is refused.
    pub fn connect(connect: &Connect<'_>) -> Result<Self> {
        let deadline = Instant::now() + connect.timeout;
        let ring = during("making the ring", GuestRing::new(connect.start_index))?;
        let at = format!("connecting to {}", connect.socket.display());
        let mut socket = during(&at, UnixStream::connect(connect.socket))?;
        during(
            &at,
            socket.set_read_timeout(Some(connect.timeout.max(Duration::from_millis(1)))),
        )?;
        during("handing the ring over", send_ring(&socket, &ring))?;
        let mut answer = [0; 32];
        during(
            "waiting for the answer to the ring",
            socket.read_exact(&mut answer),
        )?;
        let disk = parse_answer(&answer)?;
        Ok(Self {
            ring,
            disk,
            socket,
            deadline,
            free_ids: u32::MAX,
        })
    }

    /// An id that is free, with its data pages.
    pub fn take_id(&mut self) -> Option<u32> {
        let id = self.free_ids.trailing_zeros();
        if id >= ENTRIES || self.ring.room() == 0 {
            return None;
        }
        self.free_ids &= !(1 << id);
        Some(id)
    }

    /// Gives an id back.
    pub fn free_id(&mut self, id: u32) {
        debug_assert_eq!(self.free_ids & 1 << id, 0);
        self.free_ids |= 1 << id;
    }

    /// Waits until a response is there; `wanted` (1 up to what is in flight) may delay it until there are so many.
    ///
    /// # Errors
    /// When time is up, and when `tapdisk` closes the connection.
    pub fn wait(&mut self, wanted: u32) -> Result<()> {
        debug_assert!(wanted >= 1 && wanted <= self.ring.in_flight());
        loop {
            if self.ring.arm(wanted) {
                return Ok(());
            }
            self.ring.counts.sleeps += 1;
            self.sleep()?;
            self.ring.drain_notifications();
            if self.ring.waiting() > 0 {
                return Ok(());
            }
        }
    }

    fn sleep(&self) -> Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let poll = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut polls = [poll(self.ring.notify()), poll(self.socket.as_raw_fd())];
        let milliseconds = left
            .as_micros()
            .div_ceil(1000)
            .try_into()
            .unwrap_or(i32::MAX);
        // SAFETY: `polls` are two valid, writable structures.
        let count = unsafe { libc::poll(polls.as_mut_ptr(), 2, milliseconds) };
        match count {
            0 if self.ring.waiting() > 0 => {
                fail!(
                    "timed out: {} responses are there, but no notification of them came",
                    self.ring.waiting()
                )
            }
            0 => fail!(
                "timed out with {} requests in flight",
                self.ring.in_flight()
            ),
            _ if count < 0 => {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    Ok(())
                } else {
                    fail!("waiting: {error}")
                }
            }
            _ if polls[0].revents == 0 => fail!("tapdisk closed the connection"),
            _ => Ok(()),
        }
    }

    /// Whether time is up.
    #[must_use]
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Sends one request alone and waits for its response, which must be to this request.
    ///
    /// # Errors
    /// As for [`Self::wait`]; when the response is to something else.
    pub fn round_trip(&mut self, request: &Request) -> Result<Response> {
        self.ring.put(request);
        self.finish(request.id, request.operation)
    }

    /// Publishes the one request that was put, and waits for its response.
    ///
    /// # Errors
    /// As for [`Self::wait`]; when the response is to something else.
    pub fn finish(&mut self, id: u64, operation: u8) -> Result<Response> {
        during("kicking tapdisk", self.ring.publish())?;
        let response = loop {
            if let Some(response) = self.ring.take() {
                break response;
            }
            self.wait(1)?;
        };
        if response.id != id || response.operation != operation {
            fail!(
                "a response with id {} and operation {}, but {id} and {operation} were asked",
                response.id,
                response.operation
            );
        }
        Ok(response)
    }

    /// Sends one request alone, which must succeed.
    ///
    /// # Errors
    /// As for [`Self::round_trip`]; when it fails.
    pub fn must(&mut self, what: &str, request: &Request) -> Result<()> {
        let response = self.round_trip(request)?;
        if response.status != status::OKAY {
            fail!(
                "{what}: sector {}: status {}",
                request.sector,
                response.status
            );
        }
        Ok(())
    }

    /// The socket, for tests that misbehave.
    #[must_use]
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }
}

/// One line about who told whom.
#[must_use]
pub fn describe(counts: &Counts) -> String {
    format!(
        "{} requests, {} kicks sent and {} saved; {} responses, {} notifications, {} sleeps",
        counts.requests,
        counts.kicks,
        counts.kicks_saved,
        counts.responses,
        counts.notifications,
        counts.sleeps
    )
}

fn parse_answer(answer: &[u8; 32]) -> Result<Disk> {
    let u32_at = |at: usize| {
        u32::from_le_bytes([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]])
    };
    if &answer[..8] != MAGIC {
        fail!("the answer to the ring doesn't begin with TAPRING1: is this the socket of a ring?");
    }
    let status = u32_at(8);
    if status != 0 {
        fail!(
            "tapdisk refused the ring: {}",
            io::Error::from_raw_os_error(status.cast_signed())
        );
    }
    if u32_at(12) != 512 {
        fail!("the disk's sectors have {} bytes", u32_at(12));
    }
    Ok(Disk {
        sectors: u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32,
        read_only: u32_at(24) & 1 != 0,
    })
}

/// The greeting with its three descriptors.
fn send_ring(socket: &UnixStream, ring: &GuestRing) -> io::Result<()> {
    let mut greeting = [0; 16];
    greeting[..8].copy_from_slice(MAGIC);
    greeting[8..12].copy_from_slice(&VERSION.to_le_bytes());
    send_with_descriptors(socket, &greeting, &ring.descriptors())
}

/// Sends bytes and descriptors in one message.
///
/// # Errors
/// When the message can't be sent as a whole.
pub fn send_with_descriptors(
    socket: &UnixStream,
    bytes: &[u8],
    descriptors: &[i32],
) -> io::Result<()> {
    // u64 for the alignment of `cmsghdr`.
    let mut control = [0u64; 16];
    let payload = u32::try_from(size_of_val(descriptors)).expect("few descriptors");
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: an all-zero `msghdr` is a valid value of that plain structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: computes a size.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as _;
        assert!(
            message.msg_controllen <= size_of_val(&control),
            "too many descriptors"
        );
        // SAFETY: `control` is large enough for one header with these descriptors, and aligned for it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
            let data = libc::CMSG_DATA(header);
            data.copy_from_nonoverlapping(descriptors.as_ptr().cast(), payload as usize);
        }
    }
    // SAFETY: `message` names buffers that live through the call, with their true lengths.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
