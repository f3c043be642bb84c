//! Mistakes that can be planted: each lifts one condition of one rule, and `kagami-model bugs`
//! shows that the search finds a trace to a broken promise, and the shortest one.

macro_rules! mistakes {
    ($($name:ident: $what:literal, $($bounds:literal)|+;)*) => {
        /// A planted mistake; what it does is its text.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub enum Mistake {
            /// The protocol as it is.
            #[default]
            None,
            $($name,)*
        }

        impl Mistake {
            /// All of them, in the order in which they are told.
            pub const ALL: &[Mistake] = &[Mistake::None, $(Mistake::$name,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    Mistake::None => "none",
                    $(Mistake::$name => stringify!($name),)*
                }
            }

            /// What is wrong.
            pub fn what(self) -> &'static str {
                match self {
                    Mistake::None => "the protocol as it is",
                    $(Mistake::$name => $what,)*
                }
            }

            /// Bounds in which it shows, the smallest first.
            pub fn bounds(self) -> &'static [&'static str] {
                match self {
                    Mistake::None => &[],
                    $(Mistake::$name => &[$($bounds),+],)*
                }
            }
        }
    };
}

mistakes! {
    MintAtLoss: "a Primary mints when the link is lost", "drops=2" | "drops=2 attempts=2";
    ClearOnReceipt: "a mark is cleared when the peer has the write, not when both have flushed it", "drops=2";
    FormerPrimaryNeedNotAsk: "a former Primary goes on without asking", "drops=2" | "drops=2 attempts=2";
    PeerIdsIntoHistory: "the peer's generations enter one's own history", "mode=always writes=2 drops=2 handshakes=3";
    GrantToCopyBehind: "the register grants whoever asks", "attempts=2 drops=2" | "writes=2 attempts=2 drops=2";
    ActivityLogSkip: "a write goes to the disk before its mark is durable", "drops=2";
    ReadsAfterGrant: "a copy asks before the peer's lease has ended", "drops=2" | "writes=2 attempts=2 drops=2";
    AnswerBeforeTheMint: "a copy answers alone before its generation is durable", "drops=2" | "writes=2 attempts=2 drops=2" | "writes=2 crashes=2 drops=2 handshakes=3 attempts=2";
    LateAnswerAccepted: "an arbiter's answer to an earlier question counts", "attempts=2 drops=2" | "writes=2 attempts=2 drops=2" | "writes=2 attempts=3 drops=3 handshakes=3";
    OfferWhileAlone: "the source offers its generation while it is alone in it", "drops=2" | "writes=2 attempts=2 drops=2";
    AdoptAtStart: "the target takes the generation before it has the data", "drops=2" | "attempts=2 drops=2";
    NoTargetFlush: "a flush does not reach the peer's disk", "drops=2";
    NoSourceFlush: "a flush does not reach the own disk", "drops=2";
    EmptyRegisterGrants: "an empty register grants", "attempts=2 wipes=1 drops=2";
    NothingDespiteMarks: "same generation: nothing is copied, whatever is marked", "drops=2";
    CrashedPrimaryWins: "the former Primary is the source though it lost writes", "drops=2" | "writes=2 attempts=2 drops=2";
    GenerationOfBoth: "a copy that the register names already goes on without a new generation", "attempts=2 drops=2" | "writes=2 attempts=2 drops=2";
    FlushOvertakesWrite: "a flush covers what is under way", "drops=2";
    InconsistentMayAsk: "an Inconsistent copy may ask for permission", "drops=2" | "attempts=2 drops=2";
    TargetNotInconsistent: "a target takes blocks before it is Inconsistent", "drops=2" | "attempts=2 drops=2";
    BaseClearedAtOffer: "the source forgets its base at the offer", "drops=2" | "attempts=2 drops=2";
    SwapWithoutSeq: "a swap lands whatever the register holds", "attempts=2 drops=2" | "writes=2 attempts=2 drops=2";
    AttemptSurvivesHandshake: "a question to the arbiter stays open through a handshake", "drops=2" | "attempts=2 drops=2";
    DisklessWithoutMint: "a copy carries a diskless Primary in the generation both have", "disk_failures=1";
    CarrierBesideThePrimary: "the carrier of a diskless Primary is promoted while that one is Primary still", "disk_failures=1";
    BootRefreshedAtRestart: "`boot` is written at every start", "";
    DiskFailureKeepsBoot: "a failed disk does not end `unbroken`", "crashes=0 deaths=1 disk_failures=1";
    HelloBeforeLateWrite: "a hello is sent while an older write is on its way to the disk", "fine=1 crashes=0 deaths=1" | "crashes=0 late=1 drops=2";
    StartBeforeLateWrite: "a daemon starts while its predecessor's write is on its way", "fine=1 writes=2 crashes=0 deaths=1";
    // A target that is Primary.
    TargetServesOn: "a Primary that is a target goes on when the link is gone", "served_target=1 writes=2 attempts=2 drops=2";
    SourceDoesNotWait: "the source is promoted before the serving target's lease has ended", "served_target=1 writes=3 attempts=2 drops=2";
    TargetReadsItself: "a serving target reads marked blocks from its own disk", "served_target=1 attempts=1 drops=2";
    TargetTakesOldBlock: "a serving target lets a resync block overwrite what it wrote since", "served_target=1 writes=2 attempts=1 drops=2";
    TargetAnswersFirst: "a serving target answers before the source has the write", "served_target=1 writes=2 attempts=2 drops=2";
    TargetForgetsMarks: "adopting clears the marks of writes that are not flushed on both", "served_target=1 writes=2 attempts=1 drops=2";
    HandBackBeforeCleared: "a serving target hands back before its word on cleared marks arrived", "served_target=1 writes=3 attempts=1 drops=2 crashes=0";
    TargetTrustsMeeting: "a target that is promoted goes by the marks of the meeting", "messages=1 served_target=1 crashes=0 promotions=3";
    WriteOvertakesBlock: "the source writes to a block that is under way to the target", "writes=2 drops=2";
    // A target that is Primary, and that its source answers for.
    GuestOutlivesAPrimary: "a guest stays Primary though its source was Primary meanwhile", "guest=1 drops=2 deaths=1 crashes=0";
    GuestForgetsTheBoot: "a guest stays Primary though its source lost unflushed writes", "guest=1 writes=2 drops=2";
    GuestTrustsUnflushed: "a guest takes what its source answered before for flushed", "guest=1 writes=2 drops=2" | "guest=1 writes=2 drops=2 deaths=1";
    GuestWritesUnmarked: "a source does not mark what it writes for its guest", "guest=1 writes=2 drops=2";
    // Meeting and promotion as messages.
    BothGrant: "both grant when both ask", "messages=1 first=zeroed attempts=0 crashes=0" | "messages=1 attempts=0 crashes=0";
    GrantOutlivesSession: "a grant counts after its session", "messages=1 writes=2 attempts=1 crashes=0 drops=2";
    AsksWhileMeeting: "a node asks the arbiter after its hello", "messages=1 attempts=2 drops=2 crashes=0";
    MarksNotJoined: "each goes on with its own marks", "messages=1 drops=2";
    ReadyBeforeInconsistent: "a target says ready before it is durably Inconsistent", "messages=1 drops=2 attempts=2";
    // First synchronisation, replacement.
    FirstMintedAlone: "the first generation counts as alone", "first=zeroed";
    BothMintFirst: "both mint at the first meeting", "first=zeroed";
    ReplacedWithoutMint: "a copy gets another peer in its old generation", "mode=never replace_node=1 crashes=0";
    ReplacedWithoutWord: "a copy gets another peer without the arbiter's word", "replace_node=1 drops=2 attempts=2";
    CreatedApart: "a register found empty is created by a copy that is not in sync", "replace_arbiter=1 attempts=3 crashes=0 handshakes=1";
    // Not caught, and why: docs/model.md.
    RestartKeepsPermission: "a copy that is marked alone goes on after a restart", "attempts=2 drops=2";
    TrustForced: "a forced bad copy is an ordinary newer one", "force=1";
    LateAcknowledgementAnswers: "an acknowledgement counts after the lease", "drops=2";
    DisklessMarksNotHanded: "a carrier does not take the marks of the failed copy", "disk_failures=1";
    RejoinWhileAlone: "`both` is asked of the arbiter while alone", "attempts=2 drops=1";
    GrantKeepsWasPrimary: "who grants a promotion keeps `was_primary`", "drops=2";
}

impl Mistake {
    /// The model does not catch it, and docs/model.md says why.
    pub fn is_known_to_pass(self) -> bool {
        matches!(
            self,
            Mistake::RestartKeepsPermission
                | Mistake::LateAcknowledgementAnswers
                | Mistake::DisklessMarksNotHanded
                | Mistake::RejoinWhileAlone
                | Mistake::GrantKeepsWasPrimary
        )
    }
}
