//! Certificates for a test: an authority, a server, and clients, under the names that libnbd and
//! qemu look for in a directory.

use std::path::Path;

use kagami_nbd_server::{Clients, Fingerprint, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Makes `dir` hold `ca-cert.pem`, `server-{cert,key}.pem` and `client-{cert,key}.pem`, and
/// `stranger/` the same client files of another authority; gives the client's fingerprint.
pub fn make(dir: &Path) -> Fingerprint {
    let client = authority(dir, true);
    let stranger = dir.join("stranger");
    std::fs::create_dir(&stranger).expect("a directory");
    authority(&stranger, false);
    // The stranger trusts the server: only the server can refuse.
    std::fs::copy(dir.join("ca-cert.pem"), stranger.join("ca-cert.pem")).expect("a copy");
    client
}

fn authority(dir: &Path, server: bool) -> Fingerprint {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params
        .distinguished_name
        .push(DnType::CommonName, "kagami test authority");
    let ca = params.self_signed(&key).expect("a certificate");
    std::fs::write(dir.join("ca-cert.pem"), ca.pem()).expect("written");
    let issuer = Issuer::new(params, key);
    if server {
        leaf(dir, "server", &issuer);
    }
    leaf(dir, "client", &issuer)
}

fn leaf(dir: &Path, name: &str, issuer: &Issuer<'_, KeyPair>) -> Fingerprint {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("params");
    params
        .subject_alt_names
        .push(SanType::IpAddress([127, 0, 0, 1].into()));
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![if name == "server" {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    }];
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    std::fs::write(dir.join(format!("{name}-cert.pem")), certificate.pem()).expect("written");
    std::fs::write(dir.join(format!("{name}-key.pem")), key.serialize_pem()).expect("written");
    Fingerprint::of(certificate.der())
}

/// The server's files in a directory made by [`make`].
pub fn files(dir: &Path, clients: Clients) -> TlsFiles {
    TlsFiles {
        certificate: dir.join("server-cert.pem"),
        key: dir.join("server-key.pem"),
        clients,
    }
}
