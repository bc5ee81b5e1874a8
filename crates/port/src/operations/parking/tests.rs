use super::*;

const PAGE: u64 = 4096;

fn pages(first: u64, count: u64) -> Range<u64> {
    first * PAGE..(first + count) * PAGE
}

/// All that may go on.
fn resume(parking: &mut Parking) -> Vec<u32> {
    std::iter::from_fn(|| parking.resume()).collect()
}

#[test]
fn direct_writes_never_wait_for_each_other() {
    let mut parking = Parking::default();
    for slot in 0..10 {
        assert!(parking.admit(slot, pages(0, 2), false));
    }
    assert_eq!(parking.resume(), None);
}

#[test]
fn a_buffered_write_has_its_pages_to_itself() {
    let mut parking = Parking::default();
    assert!(parking.admit(3, pages(1, 2), true));
    assert!(!parking.admit(0, pages(2, 1), false));
    assert!(parking.admit(4, pages(0, 1), false));
    // Waits for 3, and for 4 as well.
    assert!(!parking.admit(1, pages(0, 2), true));
    assert!(parking.admit(2, pages(3, 1), true));
    assert_eq!(resume(&mut parking), []);
    parking.leave(3);
    assert_eq!(resume(&mut parking), [0]);
    parking.leave(4);
    assert_eq!(resume(&mut parking), [1]);
}

#[test]
fn nobody_is_overtaken_by_those_that_come_later() {
    let mut parking = Parking::default();
    assert!(parking.admit(0, pages(0, 1), false));
    assert!(!parking.admit(1, pages(0, 2), true));
    assert!(!parking.admit(2, pages(1, 1), false));
    assert!(!parking.admit(3, pages(1, 2), true));
    parking.leave(0);
    assert_eq!(resume(&mut parking), [1]);
    parking.leave(1);
    assert_eq!(resume(&mut parking), [2]);
    parking.leave(2);
    assert_eq!(resume(&mut parking), [3]);
}

/// Two direct writes that overlap, of which each did a part and goes on through the page cache.
#[test]
fn writes_that_become_buffered_do_not_wait_for_each_other_for_ever() {
    let mut parking = Parking::default();
    assert!(parking.admit(0, pages(0, 2), false));
    assert!(parking.admit(1, pages(1, 2), false));
    assert!(!parking.admit(0, pages(0, 2), true));
    assert!(parking.admit(1, pages(1, 2), true));
    parking.leave(1);
    assert_eq!(resume(&mut parking), [0]);
}

#[test]
fn what_is_not_a_write_is_not_missed() {
    let mut parking = Parking::default();
    parking.leave(7);
    assert!(parking.admit(2, pages(0, 1), true));
    parking.leave(7);
    parking.leave(1);
    assert!(!parking.admit(1, pages(0, 1), false));
    // A parked one that is given up.
    parking.leave(1);
    parking.leave(2);
    assert_eq!(parking.resume(), None);
    assert!(parking.admit(1, pages(0, 1), true));
}

/// Random writes that come, go on in another way, and end: those that are in flight never get in each other's way, and all come
/// to their end.
#[test]
fn everybody_comes_to_an_end() {
    const SLOTS: usize = 12;
    let mut seed = 77u64;
    let mut random = |limit: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % limit
    };
    let (mut waited, mut ended) = (0, 0);
    for _ in 0..300 {
        let mut parking = Parking::default();
        // What is in flight or parked: pages, whether it is buffered, whether it is in flight.
        let mut model: [Option<(Range<u64>, bool, bool)>; SLOTS] = Default::default();
        let steps = random(60);
        for step in 0.. {
            let slot = random(SLOTS as u64) as usize;
            let draining = step > steps;
            match &mut model[slot] {
                None if !draining => {
                    let place = pages(random(6), 1 + random(3));
                    let buffered = random(3) == 0;
                    let runs = parking.admit(slot as u32, place.clone(), buffered);
                    model[slot] = Some((place, buffered, runs));
                }
                Some((place, buffered, runs @ true)) if random(3) == 0 && !draining => {
                    *buffered |= random(2) == 0;
                    *runs = parking.admit(slot as u32, place.clone(), *buffered);
                }
                Some((_, _, true)) => {
                    model[slot] = None;
                    parking.leave(slot as u32);
                    ended += 1;
                    while let Some(resumed) = parking.resume() {
                        let (_, _, runs) = model[resumed as usize].as_mut().expect("it is parked");
                        assert!(!std::mem::replace(runs, true), "it is in flight already");
                        waited += 1;
                    }
                }
                _ => {}
            }
            let writes: Vec<_> = model.iter().flatten().collect();
            let running: Vec<_> = writes.iter().filter(|write| write.2).collect();
            assert!(
                writes.is_empty() || !running.is_empty(),
                "all wait for ever"
            );
            for (index, (place, buffered, _)) in running.iter().enumerate() {
                for (other, other_buffered, _) in &running[index + 1..] {
                    let apart = place.end <= other.start || other.end <= place.start;
                    assert!(apart || !(*buffered || *other_buffered), "{writes:?}");
                }
            }
            if draining && writes.is_empty() {
                break;
            }
        }
    }
    assert!(waited > 500 && ended > 3000, "{waited} of {ended} waited");
}
