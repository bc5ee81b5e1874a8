//! Requests that no honest guest sends: each must be answered with an error, change nothing, and leave the ring working.

use load::{Failure, Result, during, fail};

use crate::client::{Client, Connect};
use crate::ring::{Bounds, ENTRIES, Request, SECTOR, SEGMENTS, operation, status};

/// Sends them all. Returns their number.
///
/// # Errors
/// When one isn't answered as it must be.
pub fn run(connect: &Connect<'_>) -> Result<usize> {
    let mut client = Client::connect(connect)?;
    if client.disk.sectors < 16 {
        fail!("the disk is too small");
    }
    let before = read_first_sectors(&mut client)?;
    let cases = cases(client.disk.sectors);
    for case in &cases {
        attempt(&mut client, case)
            .map_err(|failure| Failure(format!("{}: {failure}", case.name)))?;
        // A valid request with every id that the malformed one may have used up.
        let after = read_first_sectors(&mut client)?;
        if after != before {
            fail!("{}: the disk's first sectors have changed", case.name);
        }
        println!("{}: status {}", case.name, case.expected);
    }
    id_in_flight(&mut client)?;
    println!("an id in flight: status {}", status::ERROR);
    if !client.disk.read_only {
        client.must("flush", &Request::new(operation::FLUSH, 0, 0, &[]))?;
    }
    Ok(cases.len() + 1)
}

struct Case {
    name: &'static str,
    request: Request,
    /// The number of sectors of a discard.
    sectors: u64,
    expected: i16,
}

fn cases(disk_sectors: u64) -> Vec<Case> {
    let one = [Bounds::PAGE];
    let case = |name, request, expected| Case {
        name,
        request,
        sectors: 0,
        expected,
    };
    let wrong = |name, operation, sector, bounds: &[Bounds]| {
        case(
            name,
            Request::new(operation, 3, sector, bounds),
            status::ERROR,
        )
    };
    let segments = |name, operation, nr_segments| {
        let bounds = [Bounds::PAGE; SEGMENTS];
        case(
            name,
            Request {
                nr_segments,
                ..Request::new(operation, 3, 0, &bounds)
            },
            status::ERROR,
        )
    };
    let with_id = |name, id| {
        case(
            name,
            Request {
                id,
                ..Request::new(operation::READ, 0, 0, &one)
            },
            status::ERROR,
        )
    };
    let discard = |name, sector, sectors, flags, expected| Case {
        name,
        request: Request {
            nr_segments: flags,
            ..Request::new(operation::DISCARD, 3, sector, &[])
        },
        sectors,
        expected,
    };
    let unknown = |name, operation| {
        case(
            name,
            Request::new(operation, 3, 0, &one),
            status::EOPNOTSUPP,
        )
    };
    let bounds = |first, last| [Bounds { first, last }];
    vec![
        segments("a read without segments", operation::READ, 0),
        segments("a write without segments", operation::WRITE, 0),
        segments("a read of 12 segments", operation::READ, 12),
        segments("a write of 12 segments", operation::WRITE, 12),
        segments("a read of 32 segments", operation::READ, 32),
        segments("a read of 255 segments", operation::READ, 255),
        segments("a write of 255 segments", operation::WRITE, 255),
        segments("a flush with segments", operation::FLUSH, 1),
        wrong("a read at the end", operation::READ, disk_sectors, &one),
        wrong("a write at the end", operation::WRITE, disk_sectors, &one),
        wrong(
            "a read across the end",
            operation::READ,
            disk_sectors - 1,
            &one,
        ),
        wrong(
            "a write across the end",
            operation::WRITE,
            disk_sectors - 1,
            &one,
        ),
        wrong(
            "a read at the last sector number",
            operation::READ,
            u64::MAX,
            &one,
        ),
        wrong(
            "a write whose end wraps around",
            operation::WRITE,
            u64::MAX - 7,
            &one,
        ),
        wrong(
            "a read whose byte offset wraps around",
            operation::READ,
            u64::MAX / SECTOR as u64 + 1,
            &one,
        ),
        wrong(
            "a write whose byte offset wraps around",
            operation::WRITE,
            1 << 55,
            &one,
        ),
        wrong(
            "a read with first > last",
            operation::READ,
            0,
            &bounds(5, 4),
        ),
        wrong(
            "a write with first > last",
            operation::WRITE,
            0,
            &bounds(7, 0),
        ),
        wrong("a read with last > 7", operation::READ, 0, &bounds(0, 8)),
        wrong(
            "a write with last > 7",
            operation::WRITE,
            0,
            &bounds(0, 255),
        ),
        wrong(
            "a write with first and last > 7",
            operation::WRITE,
            0,
            &bounds(200, 201),
        ),
        wrong(
            "a write whose last segment is wrong",
            operation::WRITE,
            0,
            &[Bounds::PAGE, Bounds { first: 1, last: 0 }],
        ),
        with_id("an id without data pages", ENTRIES.into()),
        with_id("an id that wraps to 0 in 32 bits", 1 << 32),
        with_id("the largest id", u64::MAX),
        discard("a discard of nothing", 0, 0, 0, status::ERROR),
        discard(
            "a discard across the end",
            disk_sectors - 1,
            2,
            0,
            status::ERROR,
        ),
        discard(
            "a discard whose end wraps around",
            u64::MAX,
            2,
            0,
            status::ERROR,
        ),
        discard(
            "a discard of too many sectors",
            0,
            u64::MAX,
            0,
            status::ERROR,
        ),
        discard("a secure discard", 0, 8, 1, status::EOPNOTSUPP),
        unknown("a write barrier", operation::BARRIER),
        unknown("operation 4", 4),
        unknown("an indirect request", 6),
        unknown("operation 255", 255),
    ]
}

fn attempt(client: &mut Client, case: &Case) -> Result<()> {
    let Request {
        operation,
        nr_segments,
        id,
        sector,
        ..
    } = case.request;
    if operation == operation::DISCARD {
        client
            .ring
            .put_discard(id as u32, sector, case.sectors, nr_segments);
    } else {
        client.ring.put(&case.request);
    }
    let response = client.finish(id, operation)?;
    if response.status != case.expected {
        fail!("status {} instead of {}", response.status, case.expected);
    }
    Ok(())
}

/// Two requests with the same id in one batch: one of them must be refused, since they would share data pages.
fn id_in_flight(client: &mut Client) -> Result<()> {
    let request = Request::new(operation::READ, 9, 0, &[Bounds::PAGE]);
    client.ring.put(&request);
    client.ring.put(&request);
    during("kicking tapdisk", client.ring.publish())?;
    let mut statuses = Vec::new();
    while statuses.len() < 2 {
        match client.ring.take() {
            Some(response) if response.id == 9 => statuses.push(response.status),
            Some(response) => fail!("a response with id {}", response.id),
            None => client.wait(1)?,
        }
    }
    statuses.sort_unstable();
    if statuses != [status::ERROR, status::OKAY] {
        fail!("two requests with the same id in flight: statuses {statuses:?}");
    }
    Ok(())
}

/// Reads them with each of a few ids.
fn read_first_sectors(client: &mut Client) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for id in [0, 3, ENTRIES - 1] {
        client.must(
            "a valid read",
            &Request::new(operation::READ, id, 0, &[Bounds::PAGE, Bounds::PAGE]),
        )?;
        bytes.clear();
        for segment in 0..2 {
            let mut page = [0; crate::ring::PAGE];
            client.ring.read_page(id, segment, 0, &mut page);
            bytes.extend(page);
        }
    }
    Ok(bytes)
}
