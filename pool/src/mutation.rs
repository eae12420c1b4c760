//! Defects that are put in on purpose, to see that a test notices; only with the feature `mutate`.
//!
//! `make mutation-check` builds with the feature, switches one defect on after the other by `THINSNAP_MUTATION=name`,
//! and fails if the test that must notice does not. Without the feature each question is the constant `false`.

#[cfg(all(feature = "mutate", not(debug_assertions)))]
compile_error!("the feature `mutate` puts defects in: it has no place in a release build");

/// A defect. The product asks [`is_on`](Self::is_on) where the defect would be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// Data is not flushed before metadata that points to it.
    SkipDataFlush,
    /// Metadata is not flushed before the superblock.
    SkipMetadataFlush,
    /// The superblock is not flushed.
    SkipLastFlush,
    /// The superblock is written before the data is flushed.
    MetadataBeforeData,
    /// A block freed in a transaction is handed out in the same one.
    ReuseInTransaction,
    /// A change is acknowledged without a record in the intent log.
    SkipIntentLog,
    /// A write is acknowledged early and stands nowhere that outlives the process.
    SkipEarlyFile,
    /// A flush is answered before its commit.
    AnswerFlushEarly,
    /// A flush ahead of its request stands for changes that came after it.
    KeepCover,
    /// A flush ahead of its request stands for changes that were under way.
    CoverUnderWay,
    /// A write is acknowledged before its data is on its way.
    AnswerWriteEarly,
    /// A block that a snapshot sees is written in place.
    KeepSharing,
    /// A new block keeps its last owner's bytes around what is written.
    ShowOldBytes,
    /// Freed blocks are emptied before the commit that frees them.
    PunchBeforeCommit,
    /// The intent log drops what the older superblock lacks before the newer one is durable.
    DropEpochEarly,
    /// A superblock that a dead process wrote is served without being flushed.
    SkipFlushAtOpen,
    /// A device that is being made may be changed before it is durable.
    GiveDeviceEarly,
    /// A record is written before its device is made.
    RecordBeforePool,
    /// Ids are handed out that do not stand in limbo.
    SkipLimbo,
    /// An id leaves limbo before its device is deleted.
    ForgetBeforeDelete,
    /// The store's copy of the transaction id moves before the pool's.
    CopyBeforePool,
}

#[cfg(feature = "mutate")]
impl Mutation {
    /// True if `THINSNAP_MUTATION` names it, as `{:?}` writes it.
    #[must_use]
    pub fn is_on(self) -> bool {
        static NAME: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        let name = NAME.get_or_init(|| std::env::var("THINSNAP_MUTATION").ok().filter(|name| !name.is_empty()));
        name.as_ref().is_some_and(|name| *name == format!("{self:?}"))
    }
}

#[cfg(not(feature = "mutate"))]
impl Mutation {
    /// False: the defects are not in this build.
    #[must_use]
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        false
    }
}
