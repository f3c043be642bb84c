//! Two builds as a pair: the newest link protocol version and the one before, changing at restarts.
//!
//! Messages are the same in both; the frames that carry them name the version that was agreed on,
//! and a frame of another one is refused.

use kagami_replicator::shell::quic::SUPPORTED;
use kagami_replicator::wire::frame::{Decoded, Decoder, Encoder, OutFrame};
use kagami_replicator::wire::message::Encoded;

use super::super::check::Violation;
use super::super::world::{Checked, World};
use super::Fault;

impl World {
    /// A daemon starts: of another build than the last one's, perhaps.
    pub(in crate::sim) fn draw_version(&mut self, node: usize) {
        // (Of several mirrors the daemon has one version: it was drawn when the one before died.)
        if !self.options.kit.versions || self.member.is_some() {
            return;
        }
        let version = self.fault_rng.pick(SUPPORTED);
        if version != self.nodes[node].version {
            self.nodes[node].version = version;
            self.stats.fault(Fault::VersionChanges);
        }
    }

    /// Carries a message through the frames of its session, where versions change.
    pub(in crate::sim) fn framed(&mut self, session: u64, encoded: Encoded) -> Checked<Encoded> {
        let version = match self.net.session(session) {
            Some(open) if self.options.kit.versions => open.version,
            _ => return Ok(encoded),
        };
        let frame = OutFrame {
            kind: encoded.kind,
            head: encoded.head,
            payload: encoded.payload,
        };
        let mut pieces = Vec::new();
        let mut encoder = Encoder::new(version);
        encoder.encode(&frame, &mut pieces);
        encoder.flush(&mut pieces);
        let mut decoder = Decoder::<Vec<u8>>::new(version);
        let wrong = |what: String| Violation::new("Wire", what);
        for mut piece in pieces {
            loop {
                let decoded = decoder.feed(&mut piece);
                match decoded.map_err(|fault| wrong(format!("a frame is refused: {fault}")))? {
                    Decoded::Hungry => break,
                    Decoded::NeedsBuffer { len } => decoder.supply(vec![0; len]),
                    Decoded::Frame(frame) => {
                        return Ok(Encoded {
                            kind: frame.kind,
                            head: frame.head,
                            payload: frame.payload,
                        });
                    }
                }
            }
        }
        Err(wrong("a frame is not whole when all of it arrived".into()))
    }
}
