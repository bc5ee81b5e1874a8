use super::{Allocation, MAX_ALLOCATION, PAGE, Pool, Share};

/// Small reproducible random numbers (splitmix64).
#[derive(Debug)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// 1 up to `limit`, small numbers more often.
    pub(crate) fn size(&mut self, limit: u64) -> u64 {
        let bits = self.below(u64::from(64 - limit.leading_zeros()) + 1);
        1 + self.below(limit.min(1 << bits))
    }
}

#[test]
fn sizes_and_limits() {
    for (asked, got) in [
        (0, 64),
        (1 << 20, 64),
        (64 << 20, 64),
        (65 << 20, 96),
        (usize::MAX, 4096 - 32),
    ] {
        let pool = Pool::new(asked).unwrap();
        assert_eq!(pool.len(), got << 20);
        assert!(pool.base().addr().is_multiple_of(PAGE as usize));
        assert_eq!(pool.available() as usize, pool.len());
    }
    let mut pool = Pool::new(0).unwrap();
    let mut share = pool.join();
    assert!(pool.allocate(&mut share, MAX_ALLOCATION + 1).is_none());
    let one = pool.allocate(&mut share, 512).unwrap();
    let two = pool.allocate(&mut share, PAGE + 1).unwrap();
    assert_eq!((one.offset(), one.capacity()), (0, PAGE));
    assert_eq!((two.offset(), two.capacity()), (2 * PAGE, 2 * PAGE));
    assert_eq!(
        pool.address(&two).addr() - pool.base().addr(),
        2 * PAGE as usize
    );
    pool.free(&mut share, one);
    let again = pool.allocate(&mut share, 1).unwrap();
    assert_eq!(again.offset(), 0, "the lowest address is used again");
    pool.free(&mut share, again);
    pool.free(&mut share, two);
    assert_eq!(pool.available() as usize, pool.len());
    pool.leave(share);
}

#[test]
#[should_panic(expected = "another pool")]
fn an_allocation_goes_back_to_its_own_pool() {
    let (mut one, mut two) = (Pool::new(0).unwrap(), Pool::new(0).unwrap());
    let (mut share_of_one, mut share_of_two) = (one.join(), two.join());
    let memory = one.allocate(&mut share_of_one, 1).unwrap();
    two.free(&mut share_of_two, memory);
}

/// Random allocations and frees against a map of who has which page.
#[test]
fn allocations_never_overlap() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let mut pool = Pool::new(0).unwrap();
        let mut shares: Vec<Share> = (0..4).map(|_| pool.join()).collect();
        let mut owners = vec![0u32; pool.len() / PAGE as usize];
        let mut held: Vec<(usize, u32, Allocation)> = Vec::new();
        for step in 1..4000 {
            let full = random.below(3) == 0;
            if full && !held.is_empty() {
                let (who, mark, memory) =
                    held.swap_remove(random.below(held.len() as u64) as usize);
                for owner in pages(&mut owners, &memory) {
                    assert_eq!(std::mem::take(owner), mark);
                }
                pool.free(&mut shares[who], memory);
                continue;
            }
            let who = random.below(4) as usize;
            let bytes = random.size(MAX_ALLOCATION.into()) as u32;
            match pool.allocate(&mut shares[who], bytes) {
                Some(memory) => {
                    assert!(memory.capacity() >= bytes && memory.offset().is_multiple_of(PAGE));
                    for owner in pages(&mut owners, &memory) {
                        assert_eq!(
                            std::mem::replace(owner, step),
                            0,
                            "seed {seed}, step {step}"
                        );
                    }
                    held.push((who, step, memory));
                }
                None => pool.give_up(&mut shares[who]),
            }
        }
        for (who, _, memory) in held {
            pool.free(&mut shares[who], memory);
        }
        assert_eq!(pool.available() as usize, pool.len());
        // Everything grew together again.
        let all: Vec<_> = shares
            .iter_mut()
            .map(|share| pool.allocate(share, MAX_ALLOCATION))
            .collect();
        assert!(all[0].is_some() && all[1].is_none());
    }
}

fn pages<'a>(owners: &'a mut [u32], memory: &Allocation) -> impl Iterator<Item = &'a mut u32> {
    let first = (memory.offset() / PAGE) as usize;
    owners[first..first + (memory.capacity() / PAGE) as usize].iter_mut()
}

#[test]
fn a_greedy_connection_leaves_room_for_others() {
    let mut pool = Pool::new(0).unwrap();
    let (mut greedy, mut modest) = (pool.join(), pool.join());
    let mut hoard = Vec::new();
    while let Some(memory) = pool.allocate(&mut greedy, 64 << 10) {
        hoard.push(memory);
    }
    hoard.extend(pool.allocate(&mut greedy, MAX_ALLOCATION));
    assert!(pool.allocate(&mut greedy, MAX_ALLOCATION).is_none());
    let mut got = 0;
    while let Some(memory) = pool.allocate(&mut modest, 1 << 20) {
        got += memory.capacity();
        hoard.push(memory);
    }
    assert!(got >= 5 << 20, "{got}");
    // A hundred more connections still get something each.
    for _ in 0..100 {
        let mut share = pool.join();
        assert!(pool.allocate(&mut share, 64 << 10).is_some());
    }
}

/// Clients that have stalled hold the large arena and a little of every part of the shared one: so another one waits for ever.
#[test]
fn one_that_waits_for_ever_keeps_nobody_else_waiting() {
    let mut pool = Pool::new(0).unwrap();
    let mut shares: Vec<Share> = (0..33).map(|_| pool.join()).collect();
    let mut all = Vec::new();
    all.push(pool.allocate(&mut shares[32], MAX_ALLOCATION).unwrap());
    let mut filled = Vec::new();
    for share in &mut shares[..32] {
        filled.push(pool.allocate(share, 1 << 20).unwrap());
    }
    for (index, memory) in filled.into_iter().enumerate() {
        if memory.offset().is_multiple_of(8 << 20) {
            all.push(memory);
        } else {
            pool.free(&mut shares[index], memory);
        }
    }
    assert_eq!(all.len(), 5);
    let (mut waiting, mut modest) = (pool.join(), pool.join());
    assert!(pool.allocate(&mut waiting, 8 << 20).is_none());
    for _ in 0..10 {
        let memory = pool.allocate(&mut modest, 1 << 20).unwrap();
        pool.free(&mut modest, memory);
    }
    // Whoever holds something already stands behind it.
    let _one = pool.allocate(&mut modest, 1 << 20).unwrap();
    assert!(pool.allocate(&mut modest, PAGE).is_none());
}

#[test]
fn who_leaves_the_line_lets_the_next_one_in() {
    let mut pool = Pool::new(0).unwrap();
    let mut shares: Vec<Share> = (0..3).map(|_| pool.join()).collect();
    let held = pool.allocate(&mut shares[0], MAX_ALLOCATION / 2).unwrap();
    assert!(pool.allocate(&mut shares[1], MAX_ALLOCATION).is_none());
    assert!(
        pool.allocate(&mut shares[2], MAX_ALLOCATION / 2).is_none(),
        "it would fit, but another one was first"
    );
    assert!(!pool.take_wakeup());
    pool.give_up(&mut shares[1]);
    assert!(pool.take_wakeup());
    let next = pool.allocate(&mut shares[2], MAX_ALLOCATION / 2).unwrap();
    pool.free(&mut shares[2], next);
    pool.free(&mut shares[0], held);
    assert!(!pool.take_wakeup(), "nobody waits");
}

/// Many connections want memory of all sizes and are asked again only when the pool says so, or when they freed some
/// themselves; one of them never frees anything. All others come to their end.
#[test]
fn everybody_makes_progress_on_wakeups_alone() {
    struct Connection {
        share: Share,
        wants: Option<u32>,
        held: Vec<Allocation>,
        left: u32,
    }
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut pool = Pool::new(0).unwrap();
        let mut stalled = pool.join();
        let mut connections: Vec<_> = (0..1 + random.below(40))
            .map(|_| Connection {
                share: pool.join(),
                wants: None,
                held: Vec::new(),
                left: 100,
            })
            .collect();
        let mut stuck = Vec::new();
        while let Some(memory) = pool.allocate(&mut stalled, 16 << 10) {
            stuck.push(memory);
        }
        pool.give_up(&mut stalled);
        pool.wake();
        let mut rounds = 0;
        while connections.iter().any(|connection| connection.left > 0) {
            rounds += 1;
            assert!(rounds < 1_000_000, "seed {seed}");
            if pool.take_wakeup() {
                for connection in &mut connections {
                    while connection.left > 0 && connection.held.len() < 16 {
                        let largest = if random.below(10) == 0 {
                            MAX_ALLOCATION
                        } else {
                            1 << 20
                        };
                        let bytes = *connection
                            .wants
                            .get_or_insert_with(|| random.size(largest.into()) as u32);
                        let Some(memory) = pool.allocate(&mut connection.share, bytes) else {
                            break;
                        };
                        connection.held.push(memory);
                        connection.wants = None;
                        connection.left -= 1;
                    }
                    if connection.left == 0 {
                        pool.give_up(&mut connection.share);
                    }
                }
                continue;
            }
            // Somebody finishes something.
            let busy: Vec<_> = (0..connections.len())
                .filter(|&index| !connections[index].held.is_empty())
                .collect();
            assert!(
                !busy.is_empty(),
                "seed {seed}: everybody waits and nobody was woken"
            );
            let connection = &mut connections[busy[random.below(busy.len() as u64) as usize]];
            let index = random.below(connection.held.len() as u64) as usize;
            let memory = connection.held.swap_remove(index);
            pool.free(&mut connection.share, memory);
            if connection.left > 0 {
                pool.wake(); // as the connection does when it is blocked
            }
        }
        for mut connection in connections {
            for memory in connection.held {
                pool.free(&mut connection.share, memory);
            }
            pool.leave(connection.share);
        }
        for memory in stuck {
            pool.free(&mut stalled, memory);
        }
        pool.leave(stalled);
        assert_eq!(pool.available() as usize, pool.len());
    }
}
