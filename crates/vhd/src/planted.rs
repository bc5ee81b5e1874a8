//! Bugs that tests can plant, one for each rule about the order of writes: so it is seen that the tests would notice.
//!
//! Without the feature `planted-bugs` none can be planted and nothing of this is left in the program. The crate's own tests
//! have the feature; no build of anything else does. A new rule gets a bug here, and `tests/planted.rs` a line for it.

/// Declares the bugs, and the list of all of them.
macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A rule that is broken on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $doc])+ $name,)+
        }

        #[cfg(feature = "planted-bugs")]
        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

bugs! {
    /// A commit writes bits before a sync has made the data that they show durable.
    NoBarrierForBits,
    /// A commit writes BAT entries before a sync has made the extents of the blocks durable.
    NoBarrierForEntries,
    /// A commit ends without its last sync.
    NoLastSync,
    /// A flush that comes while a commit is running ends with that one.
    FlushJoinsRunningCommit,
    /// A write with FUA is acknowledged when its data are written.
    FuaWithoutCommit,
    /// A bit is set in memory when its data are on their way.
    BitBeforeData,
    /// A bitmap with bits that are not on disk is evicted from the cache.
    DirtyBitmapEvicted,
    /// A bitmap that a write in flight will mark is evicted from the cache.
    PinnedBitmapEvicted,
    /// A sync counts for extents that were made while it ran.
    SyncCountsTooMuch,
    /// The footer at the end moves while the copy at offset 0 is bad.
    FooterMovesWithoutBackup,
    /// The footer at the end moves before the mended copy at offset 0 is durable.
    BackupNotSynced,
    /// What lies behind the last block at opening is used for new blocks as it is.
    StaleTailKept,
    /// When what lies behind the last block is cut off, the file ends with a guest's sector for a moment.
    CutAtGuestData,
    /// The same when the disk is closed.
    CloseCutsAtGuestData,
    /// Closing does not commit.
    CloseWithoutCommit,
    /// A released place is used again before the BAT on disk no longer names it.
    ReuseBeforeCommit,
    /// A released place is used again while older requests may still move data there.
    ReuseUnderRequests,
    /// A place is used again with what the block before it had there.
    ReuseUnpunched,
    /// A BAT entry names a place that is used again before a sync has made it as good as new.
    ReuseWithoutSync,
    /// After a failed sync, extents that it may have lost are not written again.
    NoRewriteAfterFailedSync,
    /// A flush after a failed sync is not told of that.
    FailedSyncUntold,
    /// A write that was in flight when a sync failed succeeds.
    WritesTrustedAfterFailedSync,
    /// Bits and BAT entries of a failed commit count as written.
    FailedCommitForgotten,
    /// A new image is reported before it is durable.
    CreateNotSynced,
    /// A batmap that calls a released block full is left as it is.
    ReleasedBlockStaysFull,
    /// The BAT entry of a block that the batmap calls full goes to disk before the batmap is empty there.
    NoBarrierForBatmap,
    /// A new block on a block device counts as full, though anything may be there.
    BornFullOnDevice,
    /// Orphaned space is used as it is.
    OrphansUsedAsTheyAre,
    /// A header is replaced where it is, without a copy that covers for it meanwhile.
    HeaderWithoutCopy,
    /// A BAT entry names the new place of a block before the block is there.
    MovedBeforeCopied,
    /// The footers say a larger size before what hides a larger parent there is durable.
    GrownBeforeCommit,
    /// A commit that fails ends while writes of it are in flight.
    FailedCommitLeavesWrites,
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<super::Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug in all engines of this thread, or none.
    pub fn plant(bug: Option<super::Bug>) {
        PLANTED.set(bug);
    }

    pub(crate) fn is(bug: super::Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub(crate) use switch::is;
#[cfg(feature = "planted-bugs")]
pub use switch::plant;

/// Whether this bug is planted.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) const fn is(_: Bug) -> bool {
    false
}

#[cfg(all(feature = "planted-bugs", target_family = "wasm"))]
compile_error!("bugs are planted in the engine's own tests only");
