//! What a client or a network can do wrong, and how sessions end.

use std::io;
use std::time::Duration;

use crate::device::Errno;
use crate::proto::opt;

/// A client broke the protocol so that the stream can't be trusted any more, or where the protocol
/// leaves no way to answer: the connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientFault {
    /// Client flags that were not offered.
    #[error("client flags {flags:#x}: only bits {offered:#x} were offered")]
    UnknownFlags {
        /// As sent.
        flags: u32,
        /// The bits that are allowed.
        offered: u16,
    },
    /// An option did not start with its magic word.
    #[error("an option starts with {found:#018x}, not IHAVEOPT; is this an NBD client?")]
    OptionMagic {
        /// As sent.
        found: u64,
    },
    /// An option's data is longer than anybody has reason to send.
    #[error("{} ({option}) with {len} bytes of data; the limit is {limit}", opt::name(*option))]
    OptionTooLong {
        /// The option's number.
        option: u32,
        /// As announced.
        len: u32,
        /// What is skipped at most.
        limit: u32,
    },
    /// More options than a handshake needs.
    #[error("more than {limit} options in one handshake")]
    TooManyOptions {
        /// How many are answered.
        limit: u32,
    },
    /// Without fixed newstyle there is one option, and this is another.
    #[error("{} without NBD_FLAG_C_FIXED_NEWSTYLE", opt::name(*option))]
    NotFixedNewstyle {
        /// The option's number.
        option: u32,
    },
    /// `NBD_OPT_EXPORT_NAME` can't be refused in words.
    #[error("NBD_OPT_EXPORT_NAME refused: {reason}")]
    ExportName {
        /// What `NBD_OPT_GO` would have been told.
        reason: String,
    },
    /// Bytes after `NBD_OPT_STARTTLS` that are not encrypted: nobody knows who sent them.
    #[error("{len} bytes in clear after NBD_OPT_STARTTLS")]
    ClearAfterStartTls {
        /// How many were there already.
        len: usize,
    },
    /// A request did not start with its magic word.
    #[error(
        "a request starts with {found:#010x}, not {:#010x}",
        crate::proto::REQUEST_MAGIC
    )]
    RequestMagic {
        /// As sent.
        found: u32,
    },
    /// A payload so long that it isn't worth reading to the end.
    #[error("a write of {len} bytes; up to {limit} are refused politely")]
    PayloadTooLong {
        /// As announced.
        len: u32,
        /// What is read and dropped at most.
        limit: u32,
    },
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionEnd {
    /// `NBD_CMD_DISC` or `NBD_OPT_ABORT`.
    #[error("the client said goodbye")]
    Goodbye,
    /// The device is not served at the moment, and this client must not be told: it would take for
    /// good what is so now (see [`Limits::client_resends`](crate::Limits::client_resends)).
    #[error("the device is not served now ({0:?}); the client keeps its requests")]
    Withheld(Errno),
    /// End of the stream between two messages.
    #[error("the client closed the connection")]
    Closed,
    /// End of the stream inside a message.
    #[error("the client closed the connection in the middle of a message")]
    Cut,
    /// The client broke the protocol.
    #[error("the client broke the protocol: {0}")]
    Fault(#[from] ClientFault),
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
    /// TLS could not be set up.
    #[error("no TLS session: {0}")]
    Tls(#[source] io::Error),
    /// The handshake took too long.
    #[error("no export was chosen within {0:?}")]
    NegotiationTimeout(Duration),
    /// The client took no byte of a waiting reply, or stopped in the middle of a payload.
    #[error("the client neither took a reply nor sent the rest of a payload for {0:?}")]
    Stalled(Duration),
    /// The server or the export is being closed.
    #[error("the server closed the connection")]
    Shutdown,
    /// Cut off by its owner.
    #[error("the connection was cut off")]
    Aborted,
    /// There were too many connections already.
    #[error("there are {0} connections already, the most that the configuration allows")]
    TooManyConnections(usize),
}
