//! Defects that a test can plant: one wrong line each, behind a switch that only a build with
//! `--cfg planted` has (`./do planted`). In any other build [`planted`] is `false` at compile time.

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
    StartWithoutTheRight: "resources are activated before the right to run is granted",
    AllInTheMargin: "all of a group is activated while the other node may still have its address",
    ReleaseBeforeStopped: "the right to run is given up while resources are active",
    LostRightIgnored: "a group whose right is lost stays as it is",
    NeverFrozen: "the end of a lease does not freeze the group",
    ActBeforeDurable: "an action does not wait until the state that it follows from is durable",
    OperationsForgotten: "what was under way when the manager died is begun anew after its restart",
    NeverBegunCountsAsDone: "what an earlier manager has decided on and not begun counts as done",
    OneRetryMore: "a resource is tried once more than its threshold",
    OneRetryLess: "a resource is given up one try before its threshold",
    NoFailover: "a resource that is given up comes to its final action without the failovers before it",
    NoPause: "a resource is tried again without its pause",
    OneReactivationMore: "a monitor reactivates once more than its threshold",
    FailoverNotCounted: "a failover does not count",
    CountsForgotten: "counters are lost with the manager",
    FinalActionAgain: "the final action of a monitor is carried out again and again",
    NoTakeover: "a lost node's groups are left where they were",
    WordsForEver: "an operator's word about the other node is believed, however long ago it was given",
    HomeWithoutADiskKeeps: "a group whose home has no disk is not given to the other node",
    RefusedOnce: "who was refused the right does not ask again",
    TakeoverTold: "a takeover is told to the other node before the right is granted",
    OrdersNotMerged: "the other node's newer order is not taken over",
    SuspendedActs: "a suspended cluster recovers all the same",
    DependentsLeft: "a resource is deactivated while others that need it are active",
    LeaseFromAnswer: "a lease counts from when the answer came, not from when it was asked for",
    PromiseIgnored: "a node takes the right although what it has promised is not over",
    RenewalIgnored: "a node writes over the other one's record without having seen it unchanged",
    PromiseWhileAsking: "a node promises while it asks for the right itself, and asks on",
    PromiseForgotten: "a manager that starts again does not wait for what it may have promised",
    AskedLengthIgnored: "a promise binds for as long as this node's leases are, not the asker's",
    RecordLengthIgnored: "a record is watched for as long as this node's leases are, not its holder's",
    LengthForgotten: "a manager that starts again counts what it promised by its own leases' length",
    AnyRegister: "a node takes the right by a register that the other one has not agreed on",
    LateMark: "a mark that an earlier manager had under way is written over what the next one has read",
    ExtendForgotten: "a guard is not told that the lease was renewed",
    NotRenewed: "a holder writes its record once and not again",
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
