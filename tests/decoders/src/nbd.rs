//! What an NBD client sends: options of the handshake, requests of the transmission phase.

use kagami_nbd_server::device::{DeviceInfo, Refusal};
use kagami_nbd_server::meta_context::Contexts;
use kagami_nbd_server::negotiate::{
    Catalog, Found, Incoming, Listed, MAX_OPTION_DATA, MAX_OPTION_SKIP, Negotiation, Step, Terms,
    TlsMode,
};
use kagami_nbd_server::option::OPTION_HEADER_LEN;
use kagami_nbd_server::proto::{OPTION_MAGIC, REQUEST_MAGIC, opt};
use kagami_nbd_server::request::{Command, REQUEST_LEN, RequestHeader};

use crate::input::Input;

/// One export that is served, one that is refused, one for TLS only.
struct Shop;

impl Shop {
    fn entry(name: &str) -> Found {
        let info = match name {
            "gone" => Err(Refusal::policy("this node is Secondary")),
            _ => Ok(DeviceInfo::new(1 << 30)),
        };
        Found {
            listed: Listed {
                name: name.to_owned(),
                description: "a mirror".to_owned(),
                tls_only: name == "secret",
            },
            info,
        }
    }
}

impl Catalog for Shop {
    fn list(&self) -> Vec<Listed> {
        ["pg", "gone", "secret"]
            .map(|name| Self::entry(name).listed)
            .into()
    }

    fn find(&self, name: &str) -> Option<Found> {
        match name {
            "" | "pg" => Some(Self::entry("pg")),
            "gone" | "secret" => Some(Self::entry(name)),
            _ => None,
        }
    }
}

/// The magic of a reply to an option.
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// A handshake: options with headers that are right, or any.
pub fn options(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let tls = [TlsMode::Off, TlsMode::Optional, TlsMode::Required][usize::from(input.below(3))];
    let mut negotiation = Negotiation::new(tls, u32::from(input.u8()));
    if negotiation.client_flags(u32::from(input.below(6))).is_err() {
        return;
    }
    let mut encrypted = false;
    let mut out = Vec::new();
    while !input.is_empty() {
        let mut header = [0; OPTION_HEADER_LEN];
        let how = input.u8();
        if how == 0xff {
            negotiation.shut_down();
        }
        let kind = if how & 1 == 0 {
            u32::from(how >> 1 & 15)
        } else {
            input.u32()
        };
        header[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        header[8..12].copy_from_slice(&kind.to_be_bytes());
        let len = if how & 0xe0 == 0xe0 {
            input.u32()
        } else {
            u32::from(input.u16())
        };
        header[12..].copy_from_slice(&len.to_be_bytes());
        if how & 0xf0 == 0xd0 {
            input.patch(&mut header);
        }
        let Ok(incoming) = negotiation.header(&header) else {
            return;
        };
        let before = out.len();
        let step = match incoming {
            Incoming::Take(header) => {
                assert!(header.len <= MAX_OPTION_DATA);
                // A client that hangs up in the middle sends no option at all.
                let data = input.take(header.len as usize);
                match negotiation.option(header.option, data, &Shop, &mut out) {
                    Ok(step) => step,
                    Err(_) => return,
                }
            }
            Incoming::Skip(header) => {
                assert!(header.len <= MAX_OPTION_SKIP);
                negotiation.too_long(header.option, &mut out)
            }
        };
        check_replies(&out[before..]);
        match step {
            Step::Continue => {}
            Step::StartTls => {
                assert!(tls != TlsMode::Off && !encrypted, "TLS twice, or unasked");
                encrypted = true;
                negotiation.tls_started();
            }
            Step::Open(chosen) => {
                assert_ne!(chosen.name, "gone", "a refused export was opened");
                assert!(encrypted || chosen.name != "secret", "TLS only");
                assert!(encrypted || tls != TlsMode::Required, "TLS is required");
                chosen.info.assert_valid();
                if chosen.option == opt::GO {
                    check_replies(&chosen.accepted);
                }
                let refusal = Refusal::policy("it was demoted meanwhile");
                if negotiation.refused(&chosen, &refusal, &mut out).is_err() {
                    return;
                }
            }
            Step::Goodbye => return,
        }
        assert!(
            out.len() < 64 << 20,
            "replies are bounded by what was asked"
        );
    }
}

/// Bytes that a client can take apart again: whole replies.
fn check_replies(mut replies: &[u8]) {
    while let Some((head, rest)) = replies.split_first_chunk::<20>() {
        assert_eq!(head[..8], REPLY_MAGIC.to_be_bytes());
        let len = u32::from_be_bytes([head[16], head[17], head[18], head[19]]) as usize;
        replies = rest.get(len..).expect("a reply is whole");
    }
    assert!(replies.is_empty(), "bytes after the last reply");
}

/// Requests against devices of many shapes: what passes is inside and aligned.
pub fn requests(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let unit = 1u32 << input.below(17);
    let mut info = DeviceInfo::new(0);
    info.min_block = unit;
    info.preferred_block = unit.max(4096);
    info.max_payload = info.preferred_block << input.below(8);
    info.size = input.near(1 << 40) / u64::from(unit) * u64::from(unit);
    let flags = input.u8();
    info.read_only = flags & 1 != 0;
    info.fast_zero = flags & 2 != 0;
    let terms = Terms {
        structured: flags & 4 != 0,
        contexts: Contexts {
            allocation: flags & 8 != 0,
            dirty: flags & 16 != 0,
        },
    };
    info.assert_valid();
    while !input.is_empty() {
        let how = input.u8();
        let mut header = [0; REQUEST_LEN];
        if how & 1 == 0 {
            header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            header[4..6].copy_from_slice(&u16::from(input.u8()).to_be_bytes());
            header[6..8].copy_from_slice(&u16::from(input.below(12)).to_be_bytes());
            let offset = input.near(info.size);
            let len = input.near(u64::from(info.max_payload)) as u32;
            let round = |n: u64| {
                if how & 2 == 0 {
                    n / u64::from(unit) * u64::from(unit)
                } else {
                    n
                }
            };
            header[16..24].copy_from_slice(&round(offset).to_be_bytes());
            header[24..].copy_from_slice(&(round(u64::from(len)) as u32).to_be_bytes());
        } else {
            let given = input.take(REQUEST_LEN);
            header[..given.len()].copy_from_slice(given);
        }
        let Ok(request) = RequestHeader::decode(&header) else {
            return;
        };
        let Ok(command) = request.check(&info, terms) else {
            continue;
        };
        let end = request.offset.checked_add(u64::from(request.len));
        let within = end.is_some_and(|end| end <= info.size);
        match command {
            Command::Disconnect => return,
            Command::Flush => assert_eq!((request.offset, request.len), (0, 0)),
            Command::Read { .. } | Command::Write { .. } => {
                assert!(request.len <= info.max_payload && within && request.len > 0);
            }
            _ => assert!(within && request.len > 0),
        }
        let aligned =
            request.offset.is_multiple_of(u64::from(unit)) && request.len.is_multiple_of(unit);
        assert!(aligned, "{request:?}");
        let writes = matches!(
            command,
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
        );
        assert!(
            !(writes && info.read_only),
            "{command:?} on a read-only export"
        );
    }
}
