//! Files on a bounded pool of threads, event descriptors and sockets on epoll: for kernels that have no io_uring or
//! don't permit it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::patience::Patience;
use super::workers::Workers;
use super::{Backend, Event, FileBackend, FileCall, Source, Token, blocking};
use crate::event_fd;
use crate::socket;

/// Number of the workers' bell among the epoll events.
const BELL: u64 = u64::MAX;

/// Events taken from epoll at a time.
const EVENTS: usize = 64;

/// See the module's comment.
#[derive(Debug)]
pub struct Threads {
    epoll: OwnedFd,
    patience: Patience,
    workers: Workers,
    /// Events of calls that were over at once.
    ready: Vec<Event>,
    /// By number.
    watches: Vec<Option<Watch>>,
    polled: Box<[libc::epoll_event; EVENTS]>,
}

/// A source, and the calls that wait for it.
#[derive(Debug)]
struct Watch {
    source: Source,
    is_socket: bool,
    /// It may have something to receive.
    readable: bool,
    /// epoll reports when it can be written to.
    wants_room: bool,
    count: Option<Token>,
    receive: Option<Receive>,
    send: Option<Send>,
}

#[derive(Clone, Copy, Debug)]
struct Receive {
    token: Token,
    buffer: *mut u8,
    length: usize,
}

#[derive(Clone, Copy, Debug)]
struct Send {
    token: Token,
    message: *const libc::msghdr,
}

impl Threads {
    /// A back end with at most `threads` threads.
    ///
    /// # Errors
    ///
    /// When there are too many descriptors.
    pub fn new(threads: usize) -> io::Result<Self> {
        // SAFETY: no memory is concerned.
        let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor was just made and nobody else has it.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        let workers = Workers::new(threads)?;
        control(
            &epoll,
            libc::EPOLL_CTL_ADD,
            workers.bell(),
            libc::EPOLLIN,
            BELL,
        )?;
        Ok(Self {
            epoll,
            patience: Patience::default(),
            workers,
            ready: Vec::with_capacity(256),
            watches: Vec::new(),
            polled: Box::new([libc::epoll_event { events: 0, u64: 0 }; EVENTS]),
        })
    }

    fn watch(&mut self, source: Source) -> Option<&mut Watch> {
        self.watches.get_mut(source.number as usize)?.as_mut()
    }

    /// Tries the calls that wait for a source.
    fn attempt(&mut self, number: usize) {
        let Some(Some(watch)) = self.watches.get_mut(number) else {
            return;
        };
        watch.attempt_count(&mut self.ready);
        watch.attempt_receive(&mut self.ready);
        watch.attempt_send(&self.epoll, &mut self.ready);
    }
}

impl Watch {
    fn attempt_count(&mut self, ready: &mut Vec<Event>) {
        let Some(token) = self.count else { return };
        let result = event_fd::take(self.source.fd);
        if result != -libc::EAGAIN {
            self.count = None;
            ready.push(Event { token, result });
        }
    }

    fn attempt_receive(&mut self, ready: &mut Vec<Event>) {
        let Some(Receive {
            token,
            buffer,
            length,
        }) = self.receive
        else {
            return;
        };
        // SAFETY: who started the receive vouches for its memory until its event.
        let result = unsafe { socket::receive(self.source.fd, buffer, length) };
        if result == -libc::EAGAIN {
            self.readable = false;
        } else {
            self.receive = None;
            ready.push(Event { token, result });
        }
    }

    fn attempt_send(&mut self, epoll: &OwnedFd, ready: &mut Vec<Event>) {
        let Some(Send { token, message }) = self.send else {
            return;
        };
        // SAFETY: who started the send vouches for the message and what it points to until its event.
        let mut result = unsafe { socket::send(self.source.fd, message) };
        let full = result == -libc::EAGAIN;
        if full != self.wants_room
            && let Err(error) = self.report_room(epoll, full)
        {
            result = -error.raw_os_error().unwrap_or(libc::EIO);
        }
        if result != -libc::EAGAIN {
            self.send = None;
            ready.push(Event { token, result });
        }
    }

    fn report_room(&mut self, epoll: &OwnedFd, wanted: bool) -> io::Result<()> {
        self.wants_room = wanted;
        let events = libc::EPOLLIN | libc::EPOLLET | if wanted { libc::EPOLLOUT } else { 0 };
        control(
            epoll,
            libc::EPOLL_CTL_MOD,
            self.source.fd,
            events,
            u64::from(self.source.number),
        )
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn control(epoll: &OwnedFd, operation: i32, fd: RawFd, events: i32, number: u64) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: events.cast_unsigned(),
        u64: number,
    };
    // SAFETY: epoll_ctl reads the event.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
}

fn is_socket(fd: RawFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: SO_TYPE writes an int, and its length.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut length,
        )
    };
    result == 0
}

impl FileBackend for Threads {
    unsafe fn file(&mut self, token: Token, call: FileCall) {
        // SAFETY: the caller vouches for the memory until the event.
        match unsafe {
            self.patience
                .write(&call)
                .or_else(|| blocking::read_at_once(&call))
        } {
            Some(result) => self.ready.push(Event { token, result }),
            // SAFETY: as above.
            None => unsafe { self.workers.submit(token, call) },
        }
    }
}

impl Backend for Threads {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn add(&mut self, source: Source) -> io::Result<()> {
        let is_socket = is_socket(source.fd);
        // A socket is tried before it is waited for; an event descriptor isn't.
        let events = if is_socket {
            libc::EPOLLIN | libc::EPOLLET
        } else {
            libc::EPOLLIN
        };
        control(
            &self.epoll,
            libc::EPOLL_CTL_ADD,
            source.fd,
            events,
            u64::from(source.number),
        )?;
        let number = source.number as usize;
        if self.watches.len() <= number {
            self.watches.resize_with(number + 1, || None);
        }
        self.watches[number] = Some(Watch {
            source,
            is_socket,
            readable: true,
            wants_room: false,
            count: None,
            receive: None,
            send: None,
        });
        Ok(())
    }

    fn remove(&mut self, source: Source) {
        if let Some(watch) = self.watches.get_mut(source.number as usize) {
            *watch = None;
        }
        // It is gone anyway when its descriptor is closed.
        let _ = control(&self.epoll, libc::EPOLL_CTL_DEL, source.fd, 0, 0);
    }

    fn count(&mut self, token: Token, source: Source) {
        match self.watch(source) {
            Some(watch) => watch.count = Some(token),
            None => self.ready.push(Event {
                token,
                result: -libc::EBADF,
            }),
        }
    }

    unsafe fn receive(&mut self, token: Token, source: Source, buffer: *mut u8, length: usize) {
        let Some(Some(watch)) = self.watches.get_mut(source.number as usize) else {
            return self.ready.push(Event {
                token,
                result: -libc::EBADF,
            });
        };
        watch.receive = Some(Receive {
            token,
            buffer,
            length,
        });
        if watch.readable {
            watch.attempt_receive(&mut self.ready);
        }
    }

    unsafe fn send(&mut self, token: Token, source: Source, message: *const libc::msghdr) {
        let Some(Some(watch)) = self.watches.get_mut(source.number as usize) else {
            return self.ready.push(Event {
                token,
                result: -libc::EBADF,
            });
        };
        watch.send = Some(Send { token, message });
        watch.attempt_send(&self.epoll, &mut self.ready);
    }

    fn cancel(&mut self, token: Token, source: Source) {
        let Some(watch) = self.watch(source) else {
            return;
        };
        let found = watch.count.take_if(|count| *count == token).is_some()
            || watch
                .receive
                .take_if(|receive| receive.token == token)
                .is_some()
            || watch.send.take_if(|send| send.token == token).is_some();
        if found {
            self.ready.push(Event {
                token,
                result: -libc::ECANCELED,
            });
        }
    }

    fn notify(&mut self, fd: RawFd) {
        // When the count is as high as it can be, the other side has enough to wake up for.
        if event_fd::has_room(fd) {
            let _ = event_fd::add(fd);
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.patience.end_batch();
        events.append(&mut self.ready);
        let timeout = match timeout {
            _ if !events.is_empty() => 0,
            None => -1,
            Some(timeout) => i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
        };
        // SAFETY: `polled` has room for EVENTS events.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                self.polled.as_mut_ptr(),
                EVENTS as i32,
                timeout,
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(())
            } else {
                Err(error)
            };
        }
        for index in 0..count as usize {
            let number = self.polled[index].u64;
            if number == BELL {
                event_fd::take(self.workers.bell());
                self.workers.results(events);
                continue;
            }
            if let Some(Some(watch)) = self.watches.get_mut(number as usize) {
                watch.readable |= watch.is_socket;
            }
            self.attempt(number as usize);
        }
        events.append(&mut self.ready);
        Ok(())
    }

    fn is_ready(&mut self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A ring's client has the same descriptor, and so can fill it and make it block.
    #[test]
    fn a_bell_that_blocks_is_not_waited_for() {
        let bell = event_fd::create().unwrap();
        let fd = bell.as_raw_fd();
        let most = u64::MAX - 1;
        // SAFETY: eight bytes of `most` are read, and F_SETFL takes no pointer.
        unsafe {
            assert_eq!(libc::write(fd, (&raw const most).cast(), 8), 8);
            assert_eq!(libc::fcntl(fd, libc::F_SETFL, 0), 0);
        }
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            Threads::new(1).unwrap().notify(fd);
            done.send(()).unwrap();
        });
        let limit = Duration::from_secs(5);
        is_done.recv_timeout(limit).expect("it waits for room");
        drop(bell);
    }
}
