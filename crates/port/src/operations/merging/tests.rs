use super::*;

/// Takes notes of calls on files.
#[derive(Default)]
struct Notes(Vec<(Token, FileCall)>);

impl FileBackend for Notes {
    unsafe fn file(&mut self, token: Token, call: FileCall) {
        self.0.push((token, call));
    }
}

/// Bytes `length` at `offset` of file 3, from or to a place in memory that nobody touches.
fn transfer(direction: Direction, memory: usize, length: usize, offset: u64) -> Transfer {
    Transfer {
        fd: 3,
        direction,
        memory: Pieces::One(std::ptr::without_provenance_mut(memory)),
        length,
        offset,
        cached: true,
    }
}

fn read(memory: usize, length: usize, offset: u64) -> FileCall {
    FileCall::Transfer(transfer(Direction::Read, memory, length, offset))
}

fn write(memory: usize, length: usize, offset: u64) -> FileCall {
    FileCall::Transfer(transfer(Direction::Write, memory, length, offset))
}

/// What a call is, in short: kind, place in the file, pieces of memory, bytes.
fn short(call: &FileCall) -> (&'static str, u64, u32, usize) {
    let FileCall::Transfer(transfer) = call else {
        return ("other", 0, 0, 0);
    };
    let (kind, count) = match (transfer.direction, transfer.memory) {
        (Direction::Read, Pieces::One(_)) => ("read", 1),
        (Direction::Write, Pieces::One(_)) => ("write", 1),
        (Direction::Read, Pieces::List(_, count)) => ("readv", count),
        (Direction::Write, Pieces::List(_, count)) => ("writev", count),
    };
    (kind, transfer.offset, count, transfer.length)
}

/// Gives calls with tokens 0, 1, … away in one turn.
fn turn(merging: &mut Merging, calls: &[FileCall]) -> Vec<(Token, FileCall)> {
    let mut notes = Notes::default();
    for (token, call) in calls.iter().enumerate() {
        // SAFETY: nobody executes the calls.
        unsafe { merging.start(token as Token, *call, &mut notes) };
    }
    merging.flush(&mut notes);
    notes.0
}

fn calls(calls: &[FileCall]) -> Vec<(&'static str, u64, u32, usize)> {
    turn(&mut Merging::default(), calls)
        .iter()
        .map(|(_, call)| short(call))
        .collect()
}

#[test]
fn neighbours_become_one_call() {
    let scattered = [
        read(0x1000, 100, 500),
        read(0x9000, 50, 600),
        read(0x5000, 10, 650),
    ];
    assert_eq!(calls(&scattered), [("readv", 500, 3, 160)]);
    let joined = [
        write(0x1000, 0x100, 0),
        write(0x1100, 0x50, 0x100),
        write(0x8000, 1, 0x150),
    ];
    assert_eq!(calls(&joined), [("writev", 0, 2, 0x151)]);
    assert_eq!(calls(&joined[..2]), [("write", 0, 1, 0x150)]);
}

#[test]
fn what_has_no_neighbour_stays_as_it_is() {
    let alone = [read(0x1000, 512, 0), read(0x2000, 512, 4096)];
    let given = turn(&mut Merging::default(), &alone);
    assert_eq!(
        given.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
        [0, 1]
    );
    let given: Vec<_> = given.iter().map(|(_, call)| short(call)).collect();
    assert_eq!(given, [("read", 0, 1, 512), ("read", 4096, 1, 512)]);
}

#[test]
fn only_the_same_kind_on_the_same_descriptor_is_merged() {
    let next = transfer(Direction::Read, 0x2000, 512, 512);
    let others = [
        write(0x2000, 512, 512),
        // Backwards, twice the same, and with a gap.
        read(0x2000, 512, 0),
        read(0x2000, 512, 1024),
        FileCall::Transfer(Transfer { fd: 4, ..next }),
        FileCall::Transfer(Transfer {
            cached: false,
            ..next
        }),
    ];
    for other in others {
        let two = [read(0x1000, 512, 0), other];
        assert_eq!(calls(&two), two.each_ref().map(short));
    }
}

#[test]
fn other_calls_keep_their_place() {
    let sync = FileCall::Sync { fd: 3 };
    let four = [
        write(0x1000, 512, 0),
        write(0x9000, 512, 512),
        sync,
        write(0x5000, 512, 1024),
    ];
    assert_eq!(
        calls(&four),
        [
            ("writev", 0, 2, 1024),
            ("other", 0, 0, 0),
            ("write", 1024, 1, 512)
        ]
    );
}

#[test]
fn turns_are_not_merged() {
    let mut merging = Merging::default();
    for offset in [0, 512, 1024] {
        let given = turn(&mut merging, &[read(0x1000, 512, offset)]);
        assert_eq!(given.len(), 1);
        assert_eq!(short(&given[0].1), ("read", offset, 1, 512));
    }
}

#[test]
fn runs_have_limits() {
    let pieces = |make: fn(usize, usize, u64) -> FileCall, length: usize, count: usize| {
        let all: Vec<_> = (0..count)
            .map(|index| make((index + 1) << 32, length, (index * length) as u64))
            .collect();
        let lengths: Vec<_> = calls(&all).iter().map(|call| call.3).collect();
        lengths
    };
    assert_eq!(pieces(read, 512, 200), [128 * 512, 72 * 512]);
    assert_eq!(pieces(read, 44 << 10, 24), [(23 * 44) << 10, 44 << 10]);
    assert_eq!(pieces(write, 64 << 10, 17), [1 << 20, 64 << 10]);
    // What is too long alone is still one call.
    assert_eq!(pieces(write, 3 << 20, 2), [3 << 20, 3 << 20]);
}

#[test]
fn each_member_gets_its_share() {
    let again = -libc::EAGAIN;
    let cases = [
        (160, [100, 50, 10]),
        (159, [100, 50, 9]),
        (150, [100, 50, again]),
        (101, [100, 1, again]),
        (100, [100, again, again]),
        (99, [99, again, again]),
        (0, [again, again, again]),
        (-libc::EIO, [again, again, again]),
        (-libc::EINTR, [again, again, again]),
    ];
    let mut merging = Merging::default();
    for (result, shares) in cases {
        let given = turn(
            &mut merging,
            &[
                read(0x1000, 100, 0),
                read(0x1064, 50, 100),
                read(0x9000, 10, 150),
            ],
        );
        let [(token, _)] = given[..] else {
            panic!("one call, not {given:?}");
        };
        let run = merging.take(token).expect("it is a run's token");
        let got: Vec<_> = run.shares(result).collect();
        assert_eq!(got, [(0, shares[0]), (1, shares[1]), (2, shares[2])]);
        merging.give(token, run);
    }
    // One after the other, they needed the room of one.
    assert_eq!(merging.runs.len(), 1);
    assert!(merging.take(7).is_none());
}

#[test]
fn runs_in_flight_keep_their_lists() {
    let mut merging = Merging::default();
    let pair = |offset| [read(0x1000, 512, offset), read(0x9000, 512, offset + 512)];
    let first = turn(&mut merging, &pair(0));
    let second = turn(&mut merging, &pair(1 << 20));
    let [one, other] = [&first, &second].map(|given| match given[0].1 {
        FileCall::Transfer(Transfer {
            memory: Pieces::List(vectors, _),
            ..
        }) => vectors,
        call => panic!("{call:?} has no list"),
    });
    assert_ne!(one, other);
    assert_ne!(first[0].0, second[0].0);
    let run = merging.take(first[0].0).expect("it is a run's token");
    assert_eq!(run.vectors.as_ptr(), one);
    assert_eq!(run.vectors.len(), 2);
}
