//! VHD time stamps: seconds since 2000-01-01 00:00:00 UTC in 32 bits.

/// Unix time (seconds) of the VHD epoch.
pub const EPOCH: u64 = 946_684_800;

/// The VHD time stamp of a Unix time in seconds; times outside the format's range become its nearest value.
#[must_use]
pub fn from_unix(seconds: u64) -> u32 {
    u32::try_from(seconds.saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}

/// The Unix time (seconds) of a VHD time stamp.
#[must_use]
pub fn to_unix(stamp: u32) -> u64 {
    EPOCH + u64::from(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_both_ways_and_saturates() {
        assert_eq!(from_unix(EPOCH + 5), 5);
        assert_eq!(to_unix(5), EPOCH + 5);
        assert_eq!(from_unix(0), 0);
        assert_eq!(from_unix(u64::MAX), u32::MAX);
    }
}
