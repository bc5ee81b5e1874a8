//! What every front end is: something that hands over requests and takes responses, without doing I/O of its own.
//!
//! A front end never blocks and makes no system call; the reactor that owns it waits on its descriptor, moves its bytes
//! and rings its bell. So the same front end runs on io_uring and on the thread-pool back end, and its tests need no kernel.

use std::fmt::Debug;
use std::os::fd::RawFd;

use vhd::record::{FrontEndRequest, Response};

/// A source of requests: a shared ring or an NBD connection.
pub trait FrontEnd: Debug {
    /// Decodes waiting requests into `out` until there are no more or `out` has `limit` entries. The reactor calls it
    /// after each wake-up of the front end, and again in the next turn if it stopped at the limit.
    ///
    /// When its client has gone and nothing is in flight any more, a front end yields one request whose operation is
    /// `FRONT_END_CLOSED`, then nothing; the reactor drops it afterwards.
    fn pull(&mut self, id: u32, out: &mut Vec<FrontEndRequest>, limit: usize);

    /// Whether requests wait that nobody told us of, because they are in memory shared with the client. Cheap: it is asked
    /// over and over before sleeping.
    fn has_requests(&self) -> bool {
        false
    }

    /// Asks the client to ring for its next request. True if requests are there already: then it may not ring. The reactor
    /// calls it before it sleeps.
    fn arm(&mut self) -> bool {
        false
    }

    /// Takes the answer to a pulled request.
    fn push(&mut self, response: &Response);

    /// Publishes everything pushed since the last kick. Returns true if the client wants a notification on
    /// [`Transport::Doorbell`]'s `notify` descriptor.
    fn kick(&mut self) -> bool;

    /// Stops pulling; requests in flight are still answered, then `FRONT_END_CLOSED` follows.
    fn detach(&mut self);

    /// What the reactor waits on.
    fn transport(&mut self) -> Transport<'_>;
}

/// How a front end is connected to its client.
#[derive(Debug)]
pub enum Transport<'a> {
    /// Shared memory with an event descriptor in each direction.
    Doorbell {
        /// Becomes readable when the client has put requests into the ring.
        kick: RawFd,
        /// Written to when responses were put into the ring.
        notify: RawFd,
    },
    /// A byte stream.
    Stream(&'a mut dyn Stream),
}

/// The byte stream of a front end: where received bytes go, and which bytes are to be sent. The memory that it names
/// belongs to the front end, does not move, and stays valid until the matching `received` or `sent`.
pub trait Stream: Debug {
    /// The connected socket.
    fn fd(&self) -> RawFd;

    /// Where the next received bytes go; `None` while the connection may not read on (too many requests in flight, or no
    /// buffer free, or at its end).
    fn receive_into(&mut self) -> Option<(*mut u8, usize)>;

    /// `count` bytes arrived where `receive_into` said; 0 means that the peer closed its side.
    fn received(&mut self, count: usize);

    /// Appends the vectors of everything ready to be sent, in order, at most `limit` of them.
    fn send_from(&mut self, vectors: &mut Vec<libc::iovec>, limit: usize);

    /// The first `count` bytes of what `send_from` last named were sent.
    fn sent(&mut self, count: usize);

    /// The socket failed: nothing more is received or sent.
    fn broken(&mut self);
}
