//! The numbers of the messages on the wire.

use crate::core::message::Message;

macro_rules! kinds {
    ($($name:ident = $number:literal),+ $(,)?) => {
        /// Which message, by its number on the wire. Numbers are never reused; 0 is the link's own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "each is documented at the Message of its name")]
        pub enum Kind { $($name = $number),+ }

        impl Kind {
            /// Every kind, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The kind with this number.
            pub fn from_wire(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The kind of a message.
            pub fn of(message: &Message) -> Self {
                match message {
                    $(Message::$name { .. } => Self::$name,)+
                }
            }
        }
    };
}

kinds! {
    Hello = 1,
    Marks = 2,
    Ready = 3,
    Ping = 4,
    Pong = 5,
    State = 6,
    Write = 16,
    Zero = 17,
    ResyncBlocks = 18,
    Received = 19,
    Done = 20,
    Flush = 21,
    Flushed = 22,
    Cleared = 23,
    Offer = 32,
    Adopted = 33,
    Settled = 34,
    PromoteAsk = 40,
    PromoteGrant = 41,
    PromoteRefuse = 42,
    Carrying = 43,
    Read = 48,
    ReadReply = 49,
    Compare = 50,
    Compared = 51,
    Progress = 52,
    ArbiterInstance = 56,
    ArbiterRecorded = 57,
    Leave = 60,
    Bye = 61,
    Resolve = 62,
}
