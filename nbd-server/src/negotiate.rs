//! The handshake as a state machine: options in, reply bytes and a next step out. Pure.
//!
//! It decides what each option is answered with in each state (before and after TLS, with and
//! without structured replies, while shutting down) and keeps what was negotiated. Moving bytes,
//! the TLS handshake and opening the device are left to [`crate::handshake`].

use bytes::BufMut;

use crate::device::{DeviceInfo, Refusal, RefusalKind};
use crate::error::ClientFault;
use crate::meta_context::{Contexts, Purpose};
use crate::option::{ClientOption, ContextQuery, ExportQuery, OPTION_HEADER_LEN, OptionHeader};
use crate::option_reply::{
    block_size_info, export_info, refuse, reply, text_info, too_big, unsupported,
};
use crate::proto::{
    self, INIT_MAGIC, OPTION_MAGIC, handshake_flag, info, opt, rep, transmission_flag,
};

/// Handshake flags of this server.
pub const OFFERED: u16 = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;

/// Longest option data that is looked at. 64 KiB hold any name and a thousand context queries.
pub const MAX_OPTION_DATA: u32 = 64 << 10;
/// Longest option data that is skipped and answered with an error; beyond, the client is cut off.
pub const MAX_OPTION_SKIP: u32 = 1 << 20;

/// Whether clients may or must use TLS ("Server-side requirements").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// NOTLS.
    #[default]
    Off,
    /// SELECTIVETLS: at the client's option, except for exports that are TLS only.
    Optional,
    /// FORCEDTLS.
    Required,
}

/// The exports, as far as the handshake needs them.
pub trait Catalog {
    /// All exports, in the order of a listing.
    fn list(&self) -> Vec<Listed>;

    /// The export called `name`; the empty name means the default export.
    fn find(&self, name: &str) -> Option<Found>;
}

/// An export in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What clients ask for.
    pub name: String,
    /// What people read, perhaps empty.
    pub description: String,
    /// Hidden from clients without TLS.
    pub tls_only: bool,
}

/// An export that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its canonical entry.
    pub listed: Listed,
    /// What it is now, or why it is not served.
    pub info: Result<DeviceInfo, Refusal>,
}

/// What follows an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next option.
    Continue,
    /// Send the replies, then do the TLS handshake, then call [`Negotiation::tls_started`].
    StartTls,
    /// Open the device. If it opens, send `accepted` and begin transmission; if not, answer with
    /// [`Negotiation::refused`].
    Open(Box<Chosen>),
    /// Send the replies and close: the client wants to leave.
    Goodbye,
}

/// The export that the client chose, and how it will be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Canonical name.
    pub name: String,
    /// The option that chose it: [`opt::GO`] or [`opt::EXPORT_NAME`].
    pub option: u32,
    /// What the client was told.
    pub info: DeviceInfo,
    /// What the transmission phase must know.
    pub terms: Terms,
    /// The bytes that tell the client of its success.
    pub accepted: Vec<u8>,
}

/// What was negotiated for the transmission phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Structured replies.
    pub structured: bool,
    /// The contexts of `NBD_CMD_BLOCK_STATUS`.
    pub contexts: Contexts,
}

/// How an option's data is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Read so many bytes and hand them to [`Negotiation::option`].
    Take(OptionHeader),
    /// Skip so many bytes and call [`Negotiation::too_long`].
    Skip(OptionHeader),
}

/// One client's handshake.
// What was negotiated is yes or no, each by itself.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug)]
pub struct Negotiation {
    tls_mode: TlsMode,
    tls_active: bool,
    fixed: bool,
    no_zeroes: bool,
    options: u32,
    max_options: u32,
    structured: bool,
    contexts: Option<(String, Contexts)>,
    shutting_down: bool,
}

impl Negotiation {
    /// A handshake at its beginning.
    pub fn new(tls_mode: TlsMode, max_options: u32) -> Self {
        Self {
            tls_mode,
            tls_active: false,
            fixed: false,
            no_zeroes: false,
            options: 0,
            max_options,
            structured: false,
            contexts: None,
            shutting_down: false,
        }
    }

    /// What the server says first.
    pub fn greeting() -> [u8; 18] {
        let mut greeting = [0; 18];
        let mut out = &mut greeting[..];
        out.put_u64(INIT_MAGIC);
        out.put_u64(OPTION_MAGIC);
        out.put_u16(OFFERED);
        greeting
    }

    /// The client's answer to the greeting.
    ///
    /// # Errors
    /// Flags that were not offered ("the server MUST drop the TCP connection").
    pub fn client_flags(&mut self, flags: u32) -> Result<(), ClientFault> {
        if flags & !u32::from(OFFERED) != 0 {
            return Err(ClientFault::UnknownFlags {
                flags,
                offered: OFFERED,
            });
        }
        self.fixed = flags & u32::from(handshake_flag::FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        Ok(())
    }

    /// From now on options are answered with `NBD_REP_ERR_SHUTDOWN`.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Takes an option's header: says how much data is worth reading.
    ///
    /// # Errors
    /// A header that is none, too many options, or data that is too long to skip.
    pub fn header(&mut self, bytes: &[u8; OPTION_HEADER_LEN]) -> Result<Incoming, ClientFault> {
        let header =
            OptionHeader::decode(bytes).map_err(|found| ClientFault::OptionMagic { found })?;
        let OptionHeader { option, len } = header;
        self.options += 1;
        if self.options > self.max_options {
            return Err(ClientFault::TooManyOptions {
                limit: self.max_options,
            });
        }
        if !self.fixed && option != opt::EXPORT_NAME {
            return Err(ClientFault::NotFixedNewstyle { option });
        }
        if len > MAX_OPTION_SKIP || (option == opt::EXPORT_NAME && len > MAX_OPTION_DATA) {
            let limit = if option == opt::EXPORT_NAME {
                MAX_OPTION_DATA
            } else {
                MAX_OPTION_SKIP
            };
            return Err(ClientFault::OptionTooLong { option, len, limit });
        }
        let take = len <= MAX_OPTION_DATA;
        Ok(if take {
            Incoming::Take(header)
        } else {
            Incoming::Skip(header)
        })
    }

    /// Answers an option whose data was skipped, appending to `out`.
    pub fn too_long(&mut self, option: u32, out: &mut Vec<u8>) -> Step {
        if let Some(step) = self.barred(option, out) {
            return step;
        }
        match option {
            opt::ABORT => return goodbye(out),
            opt::LIST | opt::STARTTLS | opt::STRUCTURED_REPLY => {
                refuse(out, option, rep::ERR_INVALID, "this option takes no data");
            }
            opt::INFO | opt::GO | opt::LIST_META_CONTEXT => too_big(out, option),
            opt::SET_META_CONTEXT => {
                self.contexts = None;
                too_big(out, option);
            }
            _ => unsupported(out, option),
        }
        Step::Continue
    }

    /// Answers an option with its data, appending to `out`.
    ///
    /// # Errors
    /// An `NBD_OPT_EXPORT_NAME` that can't be granted: there is no way to answer it.
    pub fn option(
        &mut self,
        option: u32,
        data: &[u8],
        catalog: &dyn Catalog,
        out: &mut Vec<u8>,
    ) -> Result<Step, ClientFault> {
        if option == opt::EXPORT_NAME {
            return self.on_export_name(data, catalog);
        }
        if let Some(step) = self.barred(option, out) {
            return Ok(step);
        }
        let decoded = match ClientOption::decode(option, data) {
            Ok(decoded) => decoded,
            Err(fault) => {
                if option == opt::SET_META_CONTEXT {
                    // "replaces all previously-set metadata contexts (including when it fails)"
                    self.contexts = None;
                }
                refuse(out, option, rep::ERR_INVALID, &fault.to_string());
                return Ok(Step::Continue);
            }
        };
        Ok(match decoded {
            ClientOption::Abort => goodbye(out),
            ClientOption::List => {
                self.on_list(catalog, out);
                Step::Continue
            }
            ClientOption::StartTls => self.on_start_tls(out),
            ClientOption::StructuredReply => {
                self.structured = true;
                reply(out, option, rep::ACK, &[]);
                Step::Continue
            }
            ClientOption::Info(query) | ClientOption::Go(query) => {
                self.on_go_or_info(option, query, catalog, out)
            }
            ClientOption::ListMetaContext(query) => {
                self.on_context_query(option, &query, Purpose::List, catalog, out);
                Step::Continue
            }
            ClientOption::SetMetaContext(query) => {
                self.on_context_query(option, &query, Purpose::Select, catalog, out);
                Step::Continue
            }
            ClientOption::Unknown | ClientOption::ExportName(_) => {
                unsupported(out, option);
                Step::Continue
            }
        })
    }

    /// The connection is encrypted now; what was negotiated in clear is forgotten.
    pub fn tls_started(&mut self) {
        assert!(
            self.tls_mode != TlsMode::Off && !self.tls_active,
            "TLS started twice"
        );
        self.tls_active = true;
        self.structured = false;
        self.contexts = None;
    }

    /// The device refused to open after all: answers the option that asked for it.
    ///
    /// # Errors
    /// If that was `NBD_OPT_EXPORT_NAME`, which can't be answered.
    pub fn refused(
        &self,
        chosen: &Chosen,
        refusal: &Refusal,
        out: &mut Vec<u8>,
    ) -> Result<(), ClientFault> {
        if chosen.option == opt::EXPORT_NAME {
            return Err(ClientFault::ExportName {
                reason: refusal.message.clone(),
            });
        }
        refuse(out, chosen.option, refusal_code(refusal), &refusal.message);
        Ok(())
    }

    /// What keeps every option from being answered: shutdown, or TLS that is not there yet.
    fn barred(&self, option: u32, out: &mut Vec<u8>) -> Option<Step> {
        if option == opt::ABORT {
            return None;
        }
        if self.tls_mode == TlsMode::Required && !self.tls_active && option != opt::STARTTLS {
            let text = "this server talks over TLS only: send NBD_OPT_STARTTLS first";
            refuse(out, option, rep::ERR_TLS_REQD, text);
            return Some(Step::Continue);
        }
        if self.shutting_down {
            refuse(out, option, rep::ERR_SHUTDOWN, SHUTTING_DOWN);
            return Some(Step::Continue);
        }
        None
    }

    fn on_export_name(&mut self, data: &[u8], catalog: &dyn Catalog) -> Result<Step, ClientFault> {
        let refused = |reason: String| ClientFault::ExportName { reason };
        if self.tls_mode == TlsMode::Required && !self.tls_active {
            return Err(refused("this server talks over TLS only".to_owned()));
        }
        if self.shutting_down {
            return Err(refused(SHUTTING_DOWN.to_owned()));
        }
        let name = match ClientOption::decode(opt::EXPORT_NAME, data) {
            Ok(ClientOption::ExportName(name)) => name,
            Ok(_) => unreachable!("decoded as another option"),
            Err(fault) => return Err(refused(fault.to_string())),
        };
        let (found, info) = self
            .look_up(name, catalog)
            .map_err(|(_, reason)| refused(reason))?;
        if info.min_block > 512 {
            return Err(refused(block_size_text(&info)));
        }
        let mut accepted = Vec::with_capacity(134);
        accepted.put_u64(info.size);
        accepted.put_u16(transmission_flags(&info, self.structured));
        if !self.no_zeroes {
            accepted.put_bytes(0, 124);
        }
        Ok(self.open(opt::EXPORT_NAME, found, info, accepted))
    }

    fn on_list(&self, catalog: &dyn Catalog, out: &mut Vec<u8>) {
        for listed in catalog.list() {
            if listed.tls_only && !self.tls_active {
                continue;
            }
            let mut data = Vec::with_capacity(4 + listed.name.len() + listed.description.len());
            data.put_u32(listed.name.len() as u32);
            data.put_slice(listed.name.as_bytes());
            data.put_slice(proto::clip(&listed.description).as_bytes());
            reply(out, opt::LIST, rep::SERVER, &data);
        }
        reply(out, opt::LIST, rep::ACK, &[]);
    }

    fn on_start_tls(&self, out: &mut Vec<u8>) -> Step {
        if self.tls_active {
            refuse(
                out,
                opt::STARTTLS,
                rep::ERR_INVALID,
                "TLS is active already",
            );
            return Step::Continue;
        }
        if self.tls_mode == TlsMode::Off {
            let text = "this server is configured without TLS";
            refuse(out, opt::STARTTLS, rep::ERR_POLICY, text);
            return Step::Continue;
        }
        reply(out, opt::STARTTLS, rep::ACK, &[]);
        Step::StartTls
    }

    fn on_go_or_info(
        &mut self,
        option: u32,
        query: ExportQuery<'_>,
        catalog: &dyn Catalog,
        out: &mut Vec<u8>,
    ) -> Step {
        let (found, info) = match self.look_up(query.name, catalog) {
            Ok(found) => found,
            Err((code, text)) => {
                refuse(out, option, code, &text);
                return Step::Continue;
            }
        };
        let mut infos = Vec::new();
        let flags = transmission_flags(&info, self.structured);
        export_info(&mut infos, option, info.size, flags);
        if query.asks_for(info::NAME) {
            text_info(&mut infos, option, info::NAME, &found.listed.name);
        }
        if query.asks_for(info::DESCRIPTION) && !found.listed.description.is_empty() {
            let description = proto::clip(&found.listed.description);
            text_info(&mut infos, option, info::DESCRIPTION, description);
        }
        // Sectors over 512 bytes break clients that assume 512: they must have asked.
        let asked = query.asks_for(info::BLOCK_SIZE);
        let unasked = !asked && info.min_block > 512;
        if asked || unasked {
            block_size_info(&mut infos, option, &info);
        }
        if unasked {
            out.append(&mut infos);
            refuse(
                out,
                option,
                rep::ERR_BLOCK_SIZE_REQD,
                &block_size_text(&info),
            );
            return Step::Continue;
        }
        reply(&mut infos, option, rep::ACK, &[]);
        if option == opt::INFO {
            out.append(&mut infos);
            return Step::Continue;
        }
        self.open(option, found, info, infos)
    }

    fn on_context_query(
        &mut self,
        option: u32,
        query: &ContextQuery<'_>,
        purpose: Purpose,
        catalog: &dyn Catalog,
        out: &mut Vec<u8>,
    ) {
        if purpose == Purpose::Select {
            self.contexts = None;
        }
        if !self.structured {
            let text = "metadata contexts need NBD_OPT_STRUCTURED_REPLY first";
            return refuse(out, option, rep::ERR_INVALID, text);
        }
        let (found, info) = match self.look_up(query.name, catalog) {
            Ok(found) => found,
            // SELECTIVETLS knows NBD_REP_ERR_TLS_REQD for INFO and GO alone.
            Err((rep::ERR_TLS_REQD, _)) => {
                let text = self.unknown_text(query.name, catalog);
                return refuse(out, option, rep::ERR_UNKNOWN, &text);
            }
            Err((code, text)) => return refuse(out, option, code, &text),
        };
        let offered = Contexts {
            allocation: true,
            dirty: info.dirty,
        };
        let mut contexts = Contexts::default();
        if purpose == Purpose::List && query.queries.is_empty() {
            contexts = offered;
        }
        for text in &query.queries {
            contexts.add(text, offered, purpose);
        }
        for (id, name) in contexts.iter() {
            let mut data = Vec::with_capacity(4 + name.len());
            data.put_u32(if purpose == Purpose::List { 0 } else { id });
            data.put_slice(name.as_bytes());
            reply(out, option, rep::META_CONTEXT, &data);
        }
        reply(out, option, rep::ACK, &[]);
        if purpose == Purpose::Select {
            self.contexts = Some((found.listed.name, contexts));
        }
    }

    fn open(&self, option: u32, found: Found, info: DeviceInfo, accepted: Vec<u8>) -> Step {
        let name = found.listed.name;
        // Contexts selected for another export don't count.
        let contexts = match &self.contexts {
            Some((selected_for, contexts)) if *selected_for == name => *contexts,
            _ => Contexts::default(),
        };
        let terms = Terms {
            structured: self.structured,
            contexts,
        };
        Step::Open(Box::new(Chosen {
            name,
            option,
            info,
            terms,
            accepted,
        }))
    }

    /// Finds an export that this client may see, or the reply that says why not.
    fn look_up(
        &self,
        name: &str,
        catalog: &dyn Catalog,
    ) -> Result<(Found, DeviceInfo), (u32, String)> {
        let Some(found) = catalog.find(name) else {
            return Err((rep::ERR_UNKNOWN, self.unknown_text(name, catalog)));
        };
        if found.listed.tls_only && !self.tls_active {
            // NOTLS must not say NBD_REP_ERR_TLS_REQD.
            return Err(if self.tls_mode == TlsMode::Off {
                let text = format!("export '{name}' is served over TLS only, not at this address");
                (rep::ERR_POLICY, text)
            } else {
                let text =
                    format!("export '{name}' is served over TLS only: send NBD_OPT_STARTTLS");
                (rep::ERR_TLS_REQD, text)
            });
        }
        match found.info.clone() {
            Ok(info) => {
                info.assert_valid();
                Ok((found, info))
            }
            Err(refusal) => Err((refusal_code(&refusal), refusal.message)),
        }
    }

    fn unknown_text(&self, name: &str, catalog: &dyn Catalog) -> String {
        let mut visible = catalog.list();
        visible.retain(|listed| self.tls_active || !listed.tls_only);
        let names: Vec<&str> = visible.iter().map(|listed| listed.name.as_str()).collect();
        let there_are = match names[..] {
            [] => "there are none".to_owned(),
            _ => format!("there are: {}", names.join(", ")),
        };
        if name.is_empty() {
            format!("no default export, name one; {there_are}")
        } else {
            format!("no export '{name}'; {there_are}")
        }
    }
}

const SHUTTING_DOWN: &str = "the server is being shut down";

/// The transmission flags of a device.
pub fn transmission_flags(info: &DeviceInfo, structured: bool) -> u16 {
    use transmission_flag as flag;
    let writable = !info.read_only;
    [
        (true, flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA),
        (info.read_only, flag::READ_ONLY),
        (info.rotational, flag::ROTATIONAL),
        (info.trim && writable, flag::SEND_TRIM),
        (writable, flag::SEND_WRITE_ZEROES),
        (info.fast_zero && writable, flag::SEND_FAST_ZERO),
        (structured, flag::SEND_DF),
        (info.multi_conn, flag::CAN_MULTI_CONN),
        (info.cache, flag::SEND_CACHE),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(0, |flags, (_, flag)| flags | flag)
}

fn refusal_code(refusal: &Refusal) -> u32 {
    match refusal.kind {
        RefusalKind::Policy => rep::ERR_POLICY,
        RefusalKind::Unknown => rep::ERR_UNKNOWN,
        RefusalKind::Shutdown => rep::ERR_SHUTDOWN,
    }
}

fn block_size_text(info: &DeviceInfo) -> String {
    format!(
        "sectors of {} bytes: a client must ask for block sizes (NBD_INFO_BLOCK_SIZE) and keep them",
        info.min_block
    )
}

fn goodbye(out: &mut Vec<u8>) -> Step {
    reply(out, opt::ABORT, rep::ACK, &[]);
    Step::Goodbye
}
