//! Defects that a test can plant: one wrong line each, behind a switch that only a build with
//! `--cfg planted` has (`./do planted`). In any other build [`planted`] is `false` at compile time.
//!
//! `kagami-sim planted` shows which of them the simulator catches, and after how many seeds. The first ones are the wrong
//! rules of docs/protocol.md §12; the others are slips that this code invites.

/// A defect. Its name is what an operator of `kagami-sim` types.
macro_rules! defects {
    ($($name:ident: $what:literal,)*) => {
        /// A defect that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // what each does is its text
        pub enum Defect {
            $($name,)*
        }

        impl Defect {
            /// All of them, in the order in which they are told.
            pub const ALL: &[Defect] = &[$(Defect::$name,)*];

            /// What is wrong.
            pub fn what(self) -> &'static str {
                match self {
                    $(Defect::$name => $what,)*
                }
            }

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Defect::$name => stringify!($name),)*
                }
            }
        }
    };
}

defects! {
    // docs/protocol.md §12
    MintAtLinkLoss: "a Primary mints when the link is lost, before it has permission",
    ClearOnAcknowledgement: "a resynchronised block is cleared when the peer has applied it, not flushed",
    FlushCoversUnderWay: "a flush counts for writes that had not ended when it was sent",
    SkipActivityLog: "a write goes to the disk before the activity log's record is durable",
    EqualNothingToDo: "same generation: nothing is copied, whatever is marked",
    CrashedPrimaryIsSource: "same generation: the former Primary is the source though it lost writes",
    FormerPrimaryNeedNotAsk: "a former Primary that starts again goes on without asking",
    GrantIgnoresCopies: "the register grants whoever knows its generation, named or not",
    InconsistentMayAsk: "an Inconsistent or Outdated copy may be promoted",
    NoWaitForTheLease: "a copy asks for permission before the peer's lease has ended",
    LateAnswerAccepted: "an arbiter's answer to an earlier question counts",
    AttemptSurvivesHandshake: "a question to the arbiter stays open through a handshake",
    OfferWhileAlone: "the source offers its generation while it is alone in it",
    NamedAlreadyNoMint: "a copy that the register names by itself goes on without a new generation",
    AnswerBeforeTheMint: "a copy answers alone before its generation is durable",
    AdoptAtTheStart: "the target takes the source's generation before it has the data",
    BaseClearedAtTheOffer: "the source forgets its base at the offer, not when both have settled",
    PeersIdsIntoHistory: "the source takes the target's generations into its own history",
    EmptyRegisterGrants: "an empty register grants",
    DisklessWithoutMint: "a copy carries a Primary without a disk in the generation both have",
    OnlyTheServerMarks: "a copy that carries the Primary does not mark what it applies",
    BootAtAnyRestart: "a copy counts as unbroken after a crash of its machine",
    SuccessorStartsEarly: "a daemon starts while writes of an earlier one are on their way",
    // the write path
    AnswerBeforeThePeer: "a write of protocol C is answered when the local disk has it",
    AnswerBeforeTheDisk: "a write is answered when the peer has it",
    OverlappingWritesRace: "overlapping writes are under way together",
    UnflushedForgotten: "writes in sync are not remembered until they are flushed",
    UnflushedLostWithTheLink: "what was not flushed on both is not marked when the link is lost",
    SecondExtentUnmarked: "a write over two extents marks the first alone",
    PeerAppliesOutOfOrder: "the peer's flush does not wait for what was sent before it",
    FlushOfOneDisk: "a flush is answered when the local disk has flushed",
    FuaLostOnTheWay: "the peer's write is not FUA",
    FailedFlushTrusted: "a copy whose flush failed goes on",
    AckOverdueIgnored: "what the peer owes for longer than `ack-timeout` does not end the session",
    HangKeepsToken: "a disk that hangs keeps its token, and a flush that fails after the daemon's end is heard by nobody",
    DoubtedCopyCompared: "a copy that may have lost writes to its disk is compared by what it reads",
    BootNamedInSyncAlone: "a copy that is written to after a reboot is known as one of that boot only when it is in sync",
    FullCopyDetached: "a copy whose store is full is detached, though it is the last one",
    FailedWriteAnswered: "a write that the local disk refused is answered",
    EarlyWritesForgotten: "what protocol A or B answered early is not sent again to the copy that carries",
    AheadForgotten: "a Primary without a disk serves from a peer that lacks what was answered",
    FlushWithoutACopy: "a Primary without a disk answers a flush when the link is lost",
    // reads
    BadBlockRefused: "a read of a block that the local disk can't read fails, though the peer has it",
    ReadWithoutLease: "a Primary that needs its peer answers reads without a lease",
    ReadCheckedTooEarly: "whether a read may be answered is not looked at after the disk has read",
    RepairOverNewer: "a block read from the peer is written back over a newer write",
    RepairOutlivesTheRole: "neither a demotion nor a grant waits for a block that is being written back",
    ReadDiesWithTheDisk: "a read that a dying disk fails is refused, though the peer is about to carry",
    RepairOutlivesTheVerification: "what the peer gave a verification is written back after that has ended",
    // metadata
    CoolsUnflushed: "an extent leaves the activity log while blocks of it are not flushed",
    CoolsUnwritten: "an extent leaves the activity log before its page is written",
    PageOfTheFuture: "a page counts as current though marks came after its image was cut",
    NamedWithTheNextPages: "the directory names a page when other pages are written, not once it is there",
    AllMarkedForgottenEarly: "`all_marked` is taken back while the pages are on their way",
    AllMarkedNotWritten: "a full resynchronisation does not record that all is marked",
    HotNotMarked: "hot extents are not marked after a crash",
    OtherStoreTrusted: "another disk under the old metadata is taken for the one that was there",
    SummaryBitDropped: "a mark does not reach the bitmap's summary",
    SlotsTogether: "both slots of the superblock are written at once",
    LogEmptiedEarly: "a clean stop empties the activity log before the pages are written",
    // the handshake
    MarksNotSent: "a side keeps its marks to itself",
    MarksNotJoined: "a side goes on with its own marks, not with the union",
    TargetNotInconsistent: "a target does not record that it is being overwritten",
    HistoryCutShort: "a generation is not looked for among the oldest of the history",
    AlwaysMarks: "a copy that is behind is brought up by marks that do not reach back far enough",
    LoserByMarks: "the loser of a split brain is brought up by marks that it did not count from the fork",
    WordForEver: "a word of `resync --from` is not taken back by what is done after it",
    WordTurnedRound: "a word of `resync --from` for the copy that is behind is carried out as its opposite",
    WordOverAPrimary: "a word of `resync --from` overwrites the copy of a Primary",
    BadAheadWins: "a bad copy with the newer generation is the source",
    // the resynchronisation
    ComparedAsEqual: "a comparison finds every block equal",
    FirstHalfCompared: "blocks count as equal when their first halves are",
    NoFreezeAtTheEnd: "new writes go on while the resynchronisation ends",
    SettledWithoutAdoption: "the source is in sync before the target has adopted",
    ReadErrorSkipped: "a block that can't be read for a resynchronisation counts as sent",
    // roles
    PrimaryGrants: "a Primary grants its peer's promotion",
    BothGrant: "two nodes that ask each other at once both say yes",
    GrantOutlivesItsSession: "a grant counts after its session has ended",
    GrantKeepsWasPrimary: "the one that grants still remembers that it was Primary last",
    LeaveBeforeOutdated: "a copy says that it leaves before that is durable",
    DemotedUnflushed: "a demotion forgets `was_primary` with blocks unflushed",
    NotNamedGoesOn: "a copy that the register does not name any more goes on",
    GuestOutlivesAPrimary: "a target stays Primary although its source was Primary meanwhile",
    GuestWritesUnmarked: "a source does not mark what it writes for its target",
    CarriedOutlivesAPrimary: "a Primary without a disk stays Primary although its carrier was Primary meanwhile",
    CarrierPromotedBesideThePrimary: "the carrier of a Primary without a disk is promoted while that one is Primary still",
    // memory that mirrors share
    SpentAccountHoldsUpOthers: "whoever waits for its own account keeps other mirrors from memory that is free",
    AnswerCountsAsRead: "memory for an answer of the peer takes the place of the one read that each mirror may have",
    FirstWaiterAloneIsWoken: "memory that comes back wakes the first who waits, and no other mirror's",
}

#[cfg(not(planted))]
mod switch {
    /// False: this build has no defects to plant.
    #[inline]
    pub const fn planted(_: super::Defect) -> bool {
        false
    }
}

#[cfg(planted)]
mod switch {
    use std::cell::Cell;

    use super::Defect;

    thread_local! {
        static PLANTED: Cell<Option<Defect>> = const { Cell::new(None) };
    }

    /// True if this defect is planted in this thread.
    pub fn planted(defect: Defect) -> bool {
        PLANTED.get() == Some(defect)
    }

    /// Plants a defect in this thread, or none.
    pub fn plant(defect: Option<Defect>) {
        PLANTED.set(defect);
    }
}

pub use switch::*;
