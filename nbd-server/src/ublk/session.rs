//! A device's requests carried to a [`BlockDevice`](crate::BlockDevice), and its answers back.

/// How far a session is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Serve; what was parked is begun again.
    On,
    /// Begin nothing more, answer what is in flight, then end. The queues stay open: what was not answered
    /// is the next daemon's.
    Leave,
    /// End at once; what is in flight is not answered. The queues stay open.
    Cut,
    /// Fail what is parked or in flight, and what comes: the device is taken down.
    Refuse,
    /// After [`Go::Refuse`], when the device was stopped: close the queues, and end.
    Close,
}

/// Why a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// As ordered.
    Ordered,
    /// Another program stopped the device.
    Stopped,
    /// The ring is broken, or the kernel refuses what it may not refuse.
    Broken(std::io::Error),
}
