use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhd::record::RequestKind;

use super::*;
use crate::backend::threads::Threads;
use crate::nbd::{NbdConnection, NbdOptions};

/// An NBD flush with cookie 1.
const FLUSH: [u8; 28] = {
    let mut bytes = [0; 28];
    [bytes[0], bytes[1], bytes[2], bytes[3]] = 0x2560_9513u32.to_be_bytes();
    bytes[7] = 3;
    bytes[15] = 1;
    bytes
};

/// The owner looked for requests by itself, and then is too busy: it neither looks again nor sleeps.
#[test]
fn a_socket_that_was_looked_at_is_waited_on_afterwards() {
    let mut backend = Threads::new(1).unwrap();
    let mut front_ends = FrontEnds::default();
    let pool = Rc::new(RefCell::new(Pool::new(1).unwrap()));
    front_ends.pool = Some(Rc::clone(&pool));
    let (mut client, server) = UnixStream::pair().unwrap();
    let connection = NbdConnection::new(server.into(), &[], NbdOptions::default(), pool);
    front_ends.set_eager(true);
    let number = front_ends.attach(Box::new(connection), None, &mut backend);
    let number = number.unwrap();
    let mut requests = Vec::new();
    front_ends.service(&mut requests, 8, &mut backend);
    assert!(!front_ends.poll(Instant::now(), &mut backend));

    front_ends.set_eager(false);
    front_ends.service(&mut requests, 8, &mut backend);
    client.write_all(&FLUSH).unwrap();
    let mut events = Vec::new();
    let limit = Some(Duration::from_secs(1));
    backend.wait(limit, &mut events).unwrap();
    for event in events {
        let (number, call) = from_token(event.token).expect("a front end's call");
        front_ends.event(number, call, event.result, &mut backend);
    }
    front_ends.service(&mut requests, 8, &mut backend);
    let kinds: Vec<_> = requests
        .iter()
        .map(|request| (request.front_end, request.operation))
        .collect();
    assert_eq!(kinds, [(number, RequestKind::Flush as u8)]);
}
