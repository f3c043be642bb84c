//! Carrying out the handshake: moves bytes between the client and [`Negotiation`], starts TLS,
//! opens the device.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::io::AsyncWriteExt;

use crate::connection::{Connection, Filled, Inbox, Socket};
use crate::control::{Control, Mode};
use crate::device::{BlockDevice, DeviceInfo, Refusal, RefusalKind};
use crate::error::{ClientFault, SessionEnd};
use crate::export::{Export, Exports};
use crate::limits::Limits;
use crate::negotiate::{Chosen, Incoming, Negotiation, Step, Terms, TlsMode};
use crate::option::OPTION_HEADER_LEN;
use crate::tls::TlsPolicy;

/// A client that has chosen an export.
pub struct Accepted<D: BlockDevice> {
    pub connection: Connection,
    pub inbox: Inbox,
    pub export: Rc<Export<D>>,
    pub info: DeviceInfo,
    pub terms: Terms,
    pub opening: D::Opening,
}

/// Leads a client from its connection to the transmission phase, within the time that the limits
/// give it.
pub async fn handshake<D: BlockDevice>(
    socket: Socket,
    exports: &Exports<D>,
    tls: &TlsPolicy,
    limits: &Limits,
    control: &Control,
) -> Result<Accepted<D>, SessionEnd> {
    let shutdown = async {
        control.reached(Mode::Draining).await;
        tokio::select! {
            biased;
            () = control.reached(Mode::Aborted) => SessionEnd::Aborted,
            () = tokio::time::sleep(limits.linger) => SessionEnd::Shutdown,
        }
    };
    tokio::select! {
        biased;
        end = shutdown => Err(end),
        result = haggle(socket, exports, tls, limits, control) => result,
        () = tokio::time::sleep(limits.negotiation_timeout) => {
            Err(SessionEnd::NegotiationTimeout(limits.negotiation_timeout))
        }
    }
}

async fn haggle<D: BlockDevice>(
    socket: Socket,
    exports: &Exports<D>,
    tls: &TlsPolicy,
    limits: &Limits,
    control: &Control,
) -> Result<Accepted<D>, SessionEnd> {
    let mut negotiation = Negotiation::new(tls.mode(), limits.max_options);
    let mut inbox = Inbox::default();
    let mut connection = RefCell::new(Connection::Clear(socket));
    send(&mut connection, &Negotiation::greeting()).await?;

    let mut flags = [0; 4];
    full(inbox.array(&connection, &mut flags).await)?;
    negotiation.client_flags(u32::from_be_bytes(flags))?;

    let mut data = Vec::new();
    let mut out = Vec::new();
    loop {
        let mut header = [0; OPTION_HEADER_LEN];
        full(inbox.array(&connection, &mut header).await)?;
        if control.mode() >= Mode::Draining {
            negotiation.shut_down();
        }
        out.clear();
        let step = match negotiation.header(&header)? {
            Incoming::Take(header) => {
                data.resize(header.len as usize, 0);
                cut(inbox.read_into(&connection, &mut data, || ()).await)?;
                negotiation.option(header.option, &data, exports, &mut out)?
            }
            Incoming::Skip(header) => {
                cut(inbox.skip(&connection, header.len as usize, || ()).await)?;
                negotiation.too_long(header.option, &mut out)
            }
        };
        match step {
            Step::Continue => send(&mut connection, &out).await?,
            Step::StartTls => {
                if inbox.len() > 0 {
                    // Acting on them later, as if they had been encrypted, is how an attacker on
                    // the path injects options.
                    return Err(ClientFault::ClearAfterStartTls { len: inbox.len() }.into());
                }
                send(&mut connection, &out).await?;
                connection = RefCell::new(start_tls(connection.into_inner(), tls).await?);
                negotiation.tls_started();
            }
            Step::Goodbye => {
                // The client may be gone already: it is allowed not to wait for this.
                let _ = send(&mut connection, &out).await;
                let _ = connection.get_mut().shutdown().await;
                return Err(SessionEnd::Goodbye);
            }
            Step::Open(chosen) => match open(exports, &chosen) {
                Ok((export, opening)) => {
                    send(&mut connection, &chosen.accepted).await?;
                    let connection = connection.into_inner();
                    control.set_export(&export.name, matches!(connection, Connection::Tls(_)));
                    let Chosen { info, terms, .. } = *chosen;
                    return Ok(Accepted {
                        connection,
                        inbox,
                        export,
                        info,
                        terms,
                        opening,
                    });
                }
                Err(refusal) => {
                    negotiation.refused(&chosen, &refusal, &mut out)?;
                    send(&mut connection, &out).await?;
                }
            },
        }
    }
}

type Opened<D> = (Rc<Export<D>>, <D as BlockDevice>::Opening);

fn open<D: BlockDevice>(exports: &Exports<D>, chosen: &Chosen) -> Result<Opened<D>, Refusal> {
    let Some(export) = exports.get(&chosen.name) else {
        let message = format!("export '{}' was just taken away", chosen.name);
        return Err(Refusal {
            kind: RefusalKind::Unknown,
            message,
        });
    };
    let opening = export.device.open(export.access())?;
    Ok((export, opening))
}

async fn start_tls(connection: Connection, tls: &TlsPolicy) -> Result<Connection, SessionEnd> {
    let Connection::Clear(socket) = connection else {
        unreachable!("negotiation starts TLS once");
    };
    let acceptor = tls
        .acceptor()
        .expect("negotiation starts TLS only where there is a policy");
    let stream = acceptor.accept(socket).await.map_err(SessionEnd::Tls)?;
    Ok(Connection::Tls(Box::new(stream)))
}

async fn send(connection: &mut RefCell<Connection>, bytes: &[u8]) -> Result<(), SessionEnd> {
    let connection = connection.get_mut();
    connection.write_all(bytes).await.map_err(SessionEnd::Io)?;
    connection.flush().await.map_err(SessionEnd::Io)
}

/// A read at the start of a message: the end of the stream is no accident there.
fn full(filled: std::io::Result<Filled>) -> Result<(), SessionEnd> {
    match filled.map_err(SessionEnd::Io)? {
        Filled::Full => Ok(()),
        Filled::End => Err(SessionEnd::Closed),
        Filled::Cut => Err(SessionEnd::Cut),
    }
}

/// A read within a message.
fn cut(filled: std::io::Result<Filled>) -> Result<(), SessionEnd> {
    match filled.map_err(SessionEnd::Io)? {
        Filled::Full => Ok(()),
        Filled::End | Filled::Cut => Err(SessionEnd::Cut),
    }
}

impl TlsPolicy {
    fn mode(&self) -> TlsMode {
        match self {
            Self::Off => TlsMode::Off,
            Self::Optional(_) => TlsMode::Optional,
            Self::Required(_) => TlsMode::Required,
        }
    }
}
