//! Credentials for qemu's quorum, made for one run and gone with it.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::error::BenchError;

/// Objects of qemu's for both ends, each with the id `tls`.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// For `--object` at the server.
    pub server: String,
    /// For `--object` at the client.
    pub client: String,
}

/// A key that both ends know, in a new folder.
///
/// # Errors
/// The folder can't be written.
pub fn pre_shared_key(folder: &Path) -> Result<Credentials, BenchError> {
    let fault = || BenchError::io(folder.display().to_string());
    fs::create_dir_all(folder).map_err(fault())?;
    let mut key = [0; 32];
    let mut source = fs::File::open("/dev/urandom").map_err(fault())?;
    source.read_exact(&mut key).map_err(fault())?;
    let hex = key.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    fs::write(folder.join("keys.psk"), format!("bench:{hex}\n")).map_err(fault())?;
    let object = |end: &str| {
        format!(
            "tls-creds-psk,id=tls,dir={},endpoint={end}",
            folder.display()
        )
    };
    Ok(Credentials {
        server: object("server"),
        client: object("client") + ",username=bench",
    })
}

/// An authority, and certificates of a server at `address` and of a client, in a new folder; each end
/// demands the other's.
///
/// # Errors
/// The folder can't be written.
pub fn certificates(folder: &Path, address: &str) -> Result<Credentials, BenchError> {
    let fault = || BenchError::io(folder.display().to_string());
    let part = || BenchError::part::<rcgen::Error>("a certificate");
    fs::create_dir_all(folder).map_err(fault())?;
    let write = |name: &str, text: String| fs::write(folder.join(name), text).map_err(fault());

    let mut params = named("bench authority")?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(part())?;
    let authority = CertifiedIssuer::self_signed(params, key).map_err(part())?;
    write("ca-cert.pem", authority.pem())?;
    for (end, purpose) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut params = named(end)?;
        params.subject_alt_names = CertificateParams::new(vec![address.to_owned()])
            .map_err(part())?
            .subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().map_err(part())?;
        let certificate = params.signed_by(&key, &authority).map_err(part())?;
        write(&format!("{end}-cert.pem"), certificate.pem())?;
        write(&format!("{end}-key.pem"), key.serialize_pem())?;
    }
    let object = |end: &str| {
        format!(
            "tls-creds-x509,id=tls,dir={},endpoint={end},verify-peer=yes",
            folder.display()
        )
    };
    Ok(Credentials {
        server: object("server"),
        client: object("client"),
    })
}

fn named(name: &str) -> Result<CertificateParams, BenchError> {
    let mut params =
        CertificateParams::new(Vec::new()).map_err(BenchError::part("a certificate"))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
