//! What JavaScript can't reach, for Node: batched file I/O, shared rings, sockets and event descriptors, all waited for
//! together.
//!
//! This file is the face for Node and nothing else; the work is done by [`reactor`]. All `unsafe` code of the host's
//! side is in this crate.

pub mod backend;
pub mod batch;
pub mod blocks;
pub mod buffer;
pub mod error;
pub mod event_fd;
pub mod file;
pub mod files;
pub mod front_end;
pub mod front_ends;
mod hot;
pub mod nbd;
pub mod operations;
pub mod polling;
pub mod pool;
pub mod reactor;
pub mod regions;
pub mod ring;
mod socket;

use std::cell::RefCell;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use napi::bindgen_prelude::{AsyncTask, This, Uint8Array, Uint8ArraySlice};
use napi::{Env, Task};
use napi_derive::napi;

use batch::Layout;
use error::Error;
use file::{Lock, OpenOptions};
use hot::Shared;
use nbd::NbdOptions;
use reactor::{BackendKind, Options, Reactor};

/// A result whose error has an errno's name as its `code`.
type Result<T> = napi::Result<T, String>;

/// Settings of a port.
#[napi(object)]
#[derive(Debug)]
pub struct PortOptions {
    /// What executes I/O; `auto` is `uring` where the kernel has and permits it, otherwise `threads`.
    #[napi(ts_type = "'auto' | 'uring' | 'threads'")]
    pub backend: String,
    /// Entries of the io_uring; more operations than that may be in flight. A quarter of it is the most threads of the
    /// other back end. Default: 128.
    pub depth: Option<u32>,
    /// Size of the buffer pool of NBD connections in bytes. Default: 64 MiB, of which only what is used takes memory.
    pub pool_bytes: Option<u32>,
    /// How long a turn looks for something to do before it sleeps at most, in microseconds. Default: 0.
    pub poll_microseconds: Option<u32>,
}

/// How to open a file.
#[napi(object)]
#[derive(Debug)]
pub struct OpenFileOptions {
    /// For writing as well as for reading.
    pub write: bool,
    /// With direct I/O, where the file system has it.
    pub direct: bool,
    /// The lock that is held on the file: `read` keeps all writers out, `parent` those who write what an image's children
    /// see, `merge` is for writing what children don't see, and `write` keeps everybody out.
    #[napi(ts_type = "'none' | 'read' | 'parent' | 'merge' | 'write'")]
    pub lock: String,
    /// Create the file if there is none.
    pub create: Option<bool>,
    /// With `create`: a file that exists already is an error.
    pub exclusive: Option<bool>,
}

/// An open file.
#[napi(object)]
#[derive(Debug)]
pub struct OpenedFile {
    /// The number that operations name it by.
    pub file: u32,
    /// Bytes.
    pub size: f64,
    /// Whether it is a block device.
    pub block_device: bool,
    /// Bytes to a multiple of which offset, length and memory of operations are best aligned; 1 without direct I/O.
    pub alignment: u32,
}

/// Memory that operations and JavaScript share.
#[napi(object, object_from_js = false)]
pub struct PortBuffer {
    /// The number that operations name it by.
    pub region: u32,
    /// The memory.
    pub bytes: Uint8Array,
}

/// A place for records in WebAssembly memory.
#[napi(object)]
#[derive(Debug)]
pub struct Area {
    /// Where the first record starts, in bytes.
    pub offset: u32,
    /// How many records fit.
    pub capacity: u32,
}

/// The staging area in WebAssembly memory.
#[napi(object)]
#[derive(Debug)]
pub struct StagingArea {
    /// Where it starts, in bytes.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

/// Where everything is in WebAssembly memory.
#[napi(object)]
#[derive(Debug)]
pub struct Areas {
    /// Operations to submit.
    pub operations: Area,
    /// Completions that the port reports.
    pub completions: Area,
    /// Requests that the port reports.
    pub requests: Area,
    /// Responses to push.
    pub responses: Area,
    /// Region 0.
    pub staging: StagingArea,
}

/// What was negotiated with an NBD client.
#[napi(object)]
#[derive(Debug)]
pub struct NbdAttachOptions {
    /// The client asked for structured replies.
    pub structured_replies: bool,
    /// The id of the metadata context `base:allocation`, if the client chose it: block status is served.
    #[napi(ts_type = "number | undefined")]
    pub allocation_context: Option<u32>,
    /// Whatever writes is refused.
    pub read_only: bool,
}

/// The data plane's way to files and front ends. It belongs to the thread that made it.
#[napi]
#[derive(Debug)]
pub struct Port {
    reactor: Shared,
}

#[napi]
impl Port {
    /// Throws when the back end that is asked for can't be had.
    #[napi(constructor)]
    pub fn new(env: &Env, this: This<'_>, options: PortOptions) -> Result<Self> {
        let defaults = Options::default();
        let backend = match options.backend.as_str() {
            "auto" => BackendKind::Auto,
            "uring" => BackendKind::Uring,
            "threads" => BackendKind::Threads,
            other => {
                return Err(
                    Error::new(libc::EINVAL, format!("there is no back end {other:?}")).into(),
                );
            }
        };
        let reactor = Reactor::new(&Options {
            backend,
            depth: options.depth.unwrap_or(defaults.depth),
            pool_bytes: options
                .pool_bytes
                .map_or(defaults.pool_bytes, |bytes| bytes as usize),
            poll: options
                .poll_microseconds
                .map_or(defaults.poll, |time| Duration::from_micros(time.into())),
        })?;
        let reactor = Rc::new(RefCell::new(Some(reactor)));
        hot::install(env, &this.object, &reactor)
            .map_err(|error| Error::new(libc::EIO, error.reason.clone()))?;
        Ok(Self { reactor })
    }

    /// `uring` or `threads`.
    #[napi(getter)]
    pub fn backend(&self) -> Result<&'static str> {
        self.with(|reactor| Ok(reactor.backend()))
    }

    /// The event descriptor for `wake`; the port closes it.
    #[napi(getter)]
    pub fn wake_fd(&self) -> Result<i32> {
        self.with(|reactor| Ok(reactor.wake_fd()))
    }

    /// Opens a file or block device. Errors have the errno's name as `code`, `EBUSY` when somebody holds a lock.
    #[napi]
    pub fn open_file(&self, path: String, options: OpenFileOptions) -> Result<OpenedFile> {
        let lock = match options.lock.as_str() {
            "none" => Lock::None,
            "read" => Lock::Read,
            "parent" => Lock::Parent,
            "merge" => Lock::Merge,
            "write" => Lock::Write,
            other => {
                return Err(Error::new(libc::EINVAL, format!("there is no lock {other:?}")).into());
            }
        };
        let options = OpenOptions {
            write: options.write,
            direct: options.direct,
            lock,
            create: options.create.unwrap_or(false),
            exclusive: options.exclusive.unwrap_or(false),
        };
        self.with(|reactor| {
            let (number, file) = reactor.open_file(&path, options)?;
            Ok(OpenedFile {
                file: number.into(),
                size: file.size() as f64,
                block_device: file.is_block_device(),
                alignment: file.alignment(),
            })
        })
    }

    /// Closes a file as soon as the operations in flight on it are over.
    #[napi]
    pub fn close_file(&self, file: u32) -> Result<()> {
        self.with(|reactor| reactor.close_file(file))
    }

    /// Makes memory of so many bytes that operations can name, zero at first. It stays in use until the port is closed, and
    /// JavaScript may look at it for as long as it likes. Who looks while an operation has it sees anything.
    #[napi]
    pub fn allocate_buffer(&self, bytes: u32) -> Result<PortBuffer> {
        let (region, buffer) = self.with(|reactor| reactor.allocate_buffer(bytes as usize))?;
        let (base, length) = (buffer.base(), buffer.len());
        // SAFETY: the memory stays mapped until its last owner goes, and the finalizer is one of them. What others do with
        // it meanwhile are operations that JavaScript has asked for.
        let bytes =
            unsafe { Uint8Array::with_external_data(base, length, move |_, _| drop(buffer)) };
        Ok(PortBuffer { region, bytes })
    }

    /// Attaches a shared ring: its memory, the descriptor by which the client kicks us, and the one by which we notify
    /// it. Takes the descriptors, also when it fails. Returns the front end's number.
    #[napi]
    pub fn attach_ring(&self, memory: i32, kick: i32, notify: i32) -> Result<u32> {
        let [memory, kick, notify] = [own(memory), own(kick), own(notify)];
        self.with(|reactor| reactor.attach_ring(memory?, kick?, notify?))
    }

    /// Attaches an NBD connection whose handshake is over; `received` is what was read after it. Takes the socket, also
    /// when it fails. Returns the front end's number.
    #[napi]
    pub fn attach_nbd(
        &self,
        socket: i32,
        received: &[u8],
        options: NbdAttachOptions,
    ) -> Result<u32> {
        let socket = own(socket);
        let options = NbdOptions {
            structured_replies: options.structured_replies,
            allocation_context: options.allocation_context,
            read_only: options.read_only,
        };
        self.with(|reactor| reactor.attach_nbd(socket?, received, options))
    }

    /// Has a front end finish what is in flight and close; it reports that with a request of its own.
    #[napi]
    pub fn detach(&self, front_end: u32) -> Result<()> {
        self.with(|reactor| reactor.detach(front_end))
    }

    /// Says where records and staging are in WebAssembly memory.
    #[napi]
    pub fn layout(&self, areas: Areas) -> Result<()> {
        let area = |area: &Area| batch::Area {
            offset: area.offset,
            capacity: area.capacity,
        };
        let layout = Layout {
            operations: area(&areas.operations),
            completions: area(&areas.completions),
            requests: area(&areas.requests),
            responses: area(&areas.responses),
            staging_offset: areas.staging.offset,
            staging_length: areas.staging.length,
        };
        self.with(|reactor| {
            reactor.set_layout(layout);
            Ok(())
        })
    }

    /// Pushes so many responses, submits so many operations, and returns as soon as there are completions or requests,
    /// the port was woken, or the time is up (-1: never; 0: at once). `memory` is all of WebAssembly memory as it is now.
    /// Returns completions | requests << 15 | woken << 30.
    // Every port has a function of this name of its own, which is what is called; see `hot`. This one stands in the
    // declarations, and serves who takes it from the prototype.
    #[napi]
    pub fn turn(
        &self,
        mut memory: Uint8ArraySlice<'_>,
        operations: u32,
        responses: u32,
        timeout_ms: i32,
    ) -> Result<u32> {
        // SAFETY: no JavaScript runs on this thread before the call returns, other threads have no access to this
        // memory since it isn't shared, and asynchronous I/O never uses it.
        let memory = unsafe { memory.as_mut() };
        Ok(hot::turn(
            &self.reactor,
            memory,
            operations,
            responses,
            timeout_ms,
        )?)
    }

    /// Ends all that is in flight and closes everything. Operations that are under way are waited for; nothing is
    /// reported any more.
    #[napi]
    pub fn close(&self) {
        if let Ok(mut reactor) = self.reactor.try_borrow_mut() {
            *reactor = None;
        }
    }

    fn with<T>(&self, call: impl FnOnce(&mut Reactor) -> error::Result<T>) -> Result<T> {
        match self.reactor.try_borrow_mut() {
            Ok(mut reactor) => Ok(call(reactor.as_mut().ok_or_else(hot::closed)?)?),
            Err(_) => Err(Error::new(libc::EBUSY, "the port is in a turn").into()),
        }
    }
}

/// Takes a descriptor that the host gives away.
fn own(fd: RawFd) -> error::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(Error::new(
            libc::EBADF,
            format!("{fd} is not an open descriptor"),
        ));
    }
    // SAFETY: it is open, and the host gives it away.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the running or the next turn of the port with this `wakeFd` return, from any thread.
#[napi]
pub fn wake(fd: i32) -> Result<()> {
    match event_fd::add(fd) {
        // The count is as high as it can be, so that the turn wakes up.
        error if error < 0 && error != -libc::EAGAIN => {
            let error = std::io::Error::from_raw_os_error(-error);
            Err(Error::os(format_args!("descriptor {fd} can't be written to"), &error).into())
        }
        _ => Ok(()),
    }
}

/// Another descriptor of what `fd` stands for, closed on exec. The caller closes it or gives it to a port.
#[napi]
pub fn duplicate_fd(fd: i32) -> Result<i32> {
    // SAFETY: F_DUPFD_CLOEXEC takes no pointer.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Error::os(format_args!("descriptor {fd} can't be duplicated"), &error).into());
    }
    Ok(copy)
}

/// The descriptors of a ring client. The caller closes them or gives them to a port.
#[napi(object)]
#[derive(Debug)]
pub struct RingDescriptors {
    /// The memory of ring and data.
    pub memory: i32,
    /// The client kicks us by it.
    pub kick: i32,
    /// We notify the client by it.
    pub notify: i32,
}

/// Waits for a ring client's greeting on a thread of its own.
#[derive(Debug)]
pub struct ReceiveRing {
    fd: RawFd,
}

/// How long a ring client may take.
const GREETING: Duration = Duration::from_secs(2);

impl Task for ReceiveRing {
    type Output = ring::RingFds;
    type JsValue = RingDescriptors;

    fn compute(&mut self) -> napi::Result<Self::Output> {
        ring::receive_ring(self.fd, GREETING).map_err(|error| {
            napi::Error::from_reason(format!("the ring client's greeting: {error}"))
        })
    }

    fn resolve(&mut self, _: Env, fds: Self::Output) -> napi::Result<Self::JsValue> {
        Ok(RingDescriptors {
            memory: fds.memory.into_raw_fd(),
            kick: fds.kick.into_raw_fd(),
            notify: fds.notify.into_raw_fd(),
        })
    }
}

/// Takes a ring from the client on a connected Unix socket: waits for its greeting at most two seconds, and reads no
/// byte after it.
#[napi(ts_return_type = "Promise<RingDescriptors>")]
#[must_use]
pub fn receive_ring(fd: i32) -> AsyncTask<ReceiveRing> {
    AsyncTask::new(ReceiveRing { fd })
}
