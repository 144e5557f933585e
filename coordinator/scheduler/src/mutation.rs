//! Known defects that can be switched on, so that the simulation can show that it finds each. Never on outside tests.

/// One defect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mutation {
    #[default]
    None,
    /// A superseded attempt's report completes the task.
    DropFence,
    /// Workers get tasks beyond their slots.
    SkipSlotCheck,
    /// A lost worker's attempts are never tried elsewhere.
    ForgetRequeue,
    /// The tags move as soon as the first required leg is done.
    PublishEarly,
    /// A task that is given to a worker stays in the queue.
    DispatchTwice,
    /// A worker gets tasks although it is cordoned.
    IgnoreCordon,
    /// A retry builds legs again that have their digests.
    RebuildFinishedLegs,
    /// A cancelled build's attempts are not told to stop.
    ForgetCancel,
    /// After a restart a build that was publishing stays so.
    ForgetPublishOnRestore,
    /// `--emulation never` is not honoured.
    EmulateAnyway,
    /// A final report is not acknowledged when it changes nothing.
    ForgetAcknowledge,
    /// Builds with different registry credentials share their legs.
    ShareCredentials,
    /// What comes of an attempt comes of its leader alone.
    ForgetFollowers,
    /// An attempt ends with its leader's build although others follow it.
    ForgetHeirs,
    /// Memory pressure makes no difference.
    IgnorePressure,
    /// A full disk makes no difference.
    IgnoreFullDisk,
    /// `--queue-timeout` is not honoured.
    ForgetQueueTimeout,
    /// Time goes back when the clock does.
    TrustClock,
}

impl Mutation {
    pub const ALL: [Self; 18] = [
        Self::DropFence,
        Self::SkipSlotCheck,
        Self::ForgetRequeue,
        Self::PublishEarly,
        Self::DispatchTwice,
        Self::IgnoreCordon,
        Self::RebuildFinishedLegs,
        Self::ForgetCancel,
        Self::ForgetPublishOnRestore,
        Self::EmulateAnyway,
        Self::ForgetAcknowledge,
        Self::ShareCredentials,
        Self::ForgetFollowers,
        Self::ForgetHeirs,
        Self::IgnorePressure,
        Self::IgnoreFullDisk,
        Self::ForgetQueueTimeout,
        Self::TrustClock,
    ];
}
