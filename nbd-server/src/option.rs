//! The client's options: bytes in, values out. Pure.
//!
//! A length inside an option's data is checked against the data that is there before it is used;
//! the data as a whole was bounded by [`crate::negotiate`] before it was read.

use crate::proto::{MAX_STRING, OPTION_MAGIC, Reader, opt};

/// Bytes of an option's header.
pub const OPTION_HEADER_LEN: usize = 16;

/// An option's header: magic, number, length of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// The option's number.
    pub option: u32,
    /// Bytes of data that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// The word that stands where the magic should be.
    pub fn decode(bytes: &[u8; OPTION_HEADER_LEN]) -> Result<Self, u64> {
        let mut reader = Reader(bytes);
        let (magic, option, len) = (reader.u64(), reader.u32(), reader.u32());
        match (magic, option, len) {
            (Some(OPTION_MAGIC), Some(option), Some(len)) => Ok(Self { option, len }),
            (magic, ..) => Err(magic.unwrap_or_default()),
        }
    }
}

/// An option with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientOption<'a> {
    /// `NBD_OPT_EXPORT_NAME`.
    ExportName(&'a str),
    /// `NBD_OPT_ABORT`; data is ignored, as the protocol advises.
    Abort,
    /// `NBD_OPT_LIST`.
    List,
    /// `NBD_OPT_STARTTLS`.
    StartTls,
    /// `NBD_OPT_INFO`.
    Info(ExportQuery<'a>),
    /// `NBD_OPT_GO`.
    Go(ExportQuery<'a>),
    /// `NBD_OPT_STRUCTURED_REPLY`.
    StructuredReply,
    /// `NBD_OPT_LIST_META_CONTEXT`.
    ListMetaContext(ContextQuery<'a>),
    /// `NBD_OPT_SET_META_CONTEXT`.
    SetMetaContext(ContextQuery<'a>),
    /// Any other.
    Unknown,
}

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportQuery<'a> {
    /// The export's name; empty means the default one.
    pub name: &'a str,
    /// The information requests, as sent.
    requests: &'a [u8],
}

impl ExportQuery<'_> {
    /// Whether the client asks for this type of information.
    pub fn asks_for(&self, info: u16) -> bool {
        self.requests
            .chunks_exact(2)
            .any(|request| request == info.to_be_bytes())
    }
}

/// Data of the two metadata context options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextQuery<'a> {
    /// The export's name.
    pub name: &'a str,
    /// `namespace:leaf`, in the client's order.
    pub queries: Vec<&'a str>,
}

/// What is wrong with an option's data: the text of an `NBD_REP_ERR_INVALID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionFault {
    /// Data where there must be none.
    #[error("this option takes no data")]
    UnexpectedData,
    /// A length points past the end of the data, or bytes are left over.
    #[error("the lengths inside the option do not add up to its {0} bytes of data")]
    Lengths(usize),
    /// A string of more than 4096 bytes.
    #[error("a string of {0} bytes; the protocol allows 4096")]
    StringTooLong(usize),
    /// A string that is no text.
    #[error("a string that is not UTF-8, or holds a NUL")]
    NotText,
    /// A context query without a namespace.
    #[error("a metadata context query without 'namespace:'")]
    NoNamespace,
}

impl<'a> ClientOption<'a> {
    /// Reads the data of option number `option`.
    ///
    /// # Errors
    /// What is wrong with the data.
    pub fn decode(option: u32, data: &'a [u8]) -> Result<Self, OptionFault> {
        let bare = |decoded| {
            if data.is_empty() {
                Ok(decoded)
            } else {
                Err(OptionFault::UnexpectedData)
            }
        };
        match option {
            opt::EXPORT_NAME => Ok(Self::ExportName(text(data)?)),
            opt::ABORT => Ok(Self::Abort),
            opt::LIST => bare(Self::List),
            opt::STARTTLS => bare(Self::StartTls),
            opt::STRUCTURED_REPLY => bare(Self::StructuredReply),
            opt::INFO => Ok(Self::Info(export_query(data)?)),
            opt::GO => Ok(Self::Go(export_query(data)?)),
            opt::LIST_META_CONTEXT => Ok(Self::ListMetaContext(context_query(data)?)),
            opt::SET_META_CONTEXT => Ok(Self::SetMetaContext(context_query(data)?)),
            _ => Ok(Self::Unknown),
        }
    }
}

fn export_query(data: &[u8]) -> Result<ExportQuery<'_>, OptionFault> {
    let broken = OptionFault::Lengths(data.len());
    let mut reader = Reader(data);
    let name = string(&mut reader, broken)?;
    let count = usize::from(reader.u16().ok_or(broken)?);
    let requests = reader.take(count * 2).ok_or(broken)?;
    if reader.is_empty() {
        Ok(ExportQuery { name, requests })
    } else {
        Err(broken)
    }
}

fn context_query(data: &[u8]) -> Result<ContextQuery<'_>, OptionFault> {
    let broken = OptionFault::Lengths(data.len());
    let mut reader = Reader(data);
    let name = string(&mut reader, broken)?;
    let count = reader.u32().ok_or(broken)? as usize;
    // Each query takes at least its own length: a lie about the count allocates nothing.
    if count > reader.0.len() / 4 {
        return Err(broken);
    }
    let mut queries = Vec::with_capacity(count);
    for _ in 0..count {
        let query = string(&mut reader, broken)?;
        let namespace = query.split_once(':').map_or("", |(namespace, _)| namespace);
        if namespace.is_empty() {
            return Err(OptionFault::NoNamespace);
        }
        queries.push(query);
    }
    if reader.is_empty() {
        Ok(ContextQuery { name, queries })
    } else {
        Err(broken)
    }
}

fn string<'a>(reader: &mut Reader<'a>, broken: OptionFault) -> Result<&'a str, OptionFault> {
    let len = reader.u32().ok_or(broken)? as usize;
    text(reader.take(len).ok_or(broken)?)
}

fn text(bytes: &[u8]) -> Result<&str, OptionFault> {
    if bytes.len() > MAX_STRING {
        return Err(OptionFault::StringTooLong(bytes.len()));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(OptionFault::NotText),
    }
}
