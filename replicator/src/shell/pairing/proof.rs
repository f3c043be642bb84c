//! The proofs that both sides know the token's secret, worth nothing to anybody in between.
//!
//! HMAC-SHA-256 with the secret over: a label that says who proves, both keys' fingerprints, and bytes
//! exported from the TLS session (RFC 8446 §7.5). Who relays the conversation has a TLS session of its own
//! with each side, and so other exported bytes and another fingerprint on one of them.

use quinn::Connection;
use ring::hmac;

use super::token::SECRET_LEN;
use crate::shell::identity::Fingerprint;

/// Bytes of a proof.
pub(super) const PROOF_LEN: usize = 32;

const EXPORT_LABEL: &[u8] = b"EXPORTER-kagami-pair-1";

/// Who proves: so that a proof can't be sent back to its maker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Offering,
    Joining,
}

/// What the proofs of one conversation are made over.
pub(super) struct Transcript {
    key: hmac::Key,
    offering: Fingerprint,
    joining: Fingerprint,
    exported: [u8; 32],
}

impl Transcript {
    pub(super) fn new(
        secret: &[u8; SECRET_LEN],
        offering: Fingerprint,
        joining: Fingerprint,
        exported: [u8; 32],
    ) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
            offering,
            joining,
            exported,
        }
    }

    fn message(&self, side: Side) -> Vec<u8> {
        let label: &[u8] = match side {
            Side::Offering => b"kagami-pair/1 offering",
            Side::Joining => b"kagami-pair/1 joining",
        };
        // Each part but the label has a fixed length, and no label begins another.
        [
            label,
            self.offering.as_bytes(),
            self.joining.as_bytes(),
            &self.exported,
        ]
        .concat()
    }

    /// The proof of `side`.
    pub(super) fn prove(&self, side: Side) -> [u8; PROOF_LEN] {
        let tag = hmac::sign(&self.key, &self.message(side));
        let mut proof = [0; PROOF_LEN];
        proof.copy_from_slice(tag.as_ref());
        proof
    }

    /// Whether `proof` is the proof of `side`; takes the same time however wrong it is.
    pub(super) fn holds(&self, side: Side, proof: &[u8]) -> bool {
        hmac::verify(&self.key, &self.message(side), proof).is_ok()
    }
}

/// The bytes that both ends of this TLS session, and nobody else, can derive.
pub(super) fn exported(connection: &Connection) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    connection
        .export_keying_material(&mut bytes, EXPORT_LABEL, b"")
        .ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Fingerprint {
        Fingerprint::from_bytes([byte; 32])
    }

    #[test]
    fn a_proof_holds_for_one_secret_side_pair_of_keys_and_session() {
        let transcript = Transcript::new(&[1; SECRET_LEN], key(1), key(2), [3; 32]);
        let proof = transcript.prove(Side::Joining);
        assert!(transcript.holds(Side::Joining, &proof));
        assert!(!transcript.holds(Side::Offering, &proof), "reflected");
        assert!(!transcript.holds(Side::Joining, &proof[..31]));
        assert!(!transcript.holds(Side::Joining, &[]));
        for other in [
            Transcript::new(&[9; SECRET_LEN], key(1), key(2), [3; 32]),
            Transcript::new(&[1; SECRET_LEN], key(9), key(2), [3; 32]),
            Transcript::new(&[1; SECRET_LEN], key(1), key(9), [3; 32]),
            Transcript::new(&[1; SECRET_LEN], key(1), key(2), [9; 32]),
        ] {
            assert!(!other.holds(Side::Joining, &proof));
        }
    }
}
