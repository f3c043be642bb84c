//! One HTTP request: `GET`, HTTP/1.1, with or without TLS; its status is what counts.
//!
//! No client library: a probe follows nothing, keeps nothing and reads one line.

use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::process::{Failure, Step};

/// Where distributions keep the authorities that the machine trusts.
const AUTHORITIES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// No server's first line is longer, in bytes.
const LINE: u64 = 4096;

/// A URL's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    tls: bool,
    /// As in the URL, with brackets.
    host: String,
    port: u16,
    path: String,
}

impl Url {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text}: write http://HOST[:PORT][/PATH], or https://…");
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(wrong()),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or_default();
        let colon = match authority.rfind(']') {
            Some(bracket) => authority[bracket..].find(':').map(|at| at + bracket),
            None => authority.rfind(':'),
        };
        let (host, port) = match colon {
            Some(at) => (
                &authority[..at],
                authority[at + 1..].parse().map_err(|_| wrong())?,
            ),
            None => (authority, if tls { 443 } else { 80 }),
        };
        let odd = |c: char| c.is_control() || c.is_whitespace() || c == '@';
        if host.is_empty() || host.contains(odd) || path.contains(odd) {
            return Err(wrong());
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
        })
    }

    /// The host without brackets.
    fn name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// Asks once; the answer has to have this status.
///
/// # Errors
/// There is no answer, or one with another status.
pub async fn look(url: &str, status: u16) -> Step {
    let parsed = Url::parse(url)?;
    let found = ask(&parsed)
        .await
        .map_err(|error| format!("{url}: {error}"))?;
    if found == status {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{url}: status {found}, and {status} is expected"
    )))
}

async fn ask(url: &Url) -> io::Result<u16> {
    let stream = TcpStream::connect((url.name(), url.port)).await?;
    if !url.tls {
        return exchange(url, stream).await;
    }
    let mut roots = RootCertStore::empty();
    let file = AUTHORITIES
        .iter()
        .find(|file| std::path::Path::new(file).exists());
    let Some(file) = file else {
        return Err(io::Error::other(
            "this machine has no list of trusted authorities\n  next: install ca-certificates",
        ));
    };
    let certificates = CertificateDer::pem_file_iter(file).map_err(io::Error::other)?;
    roots.add_parsable_certificates(certificates.flatten());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(url.name().to_owned()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    exchange(url, stream).await
}

async fn exchange(url: &Url, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<u16> {
    let usual = if url.tls { 443 } else { 80 };
    let port = if url.port == usual {
        String::new()
    } else {
        format!(":{}", url.port)
    };
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}{port}\r\nUser-Agent: kagami\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        url.path, url.host
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE))
        .read_line(&mut line)
        .await?;
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.trim().parse().ok());
    status.ok_or_else(|| io::Error::other(format!("no HTTP answer: {:?}", line.trim_end())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn urls_are_taken_apart() {
        let parse = |text: &str| Url::parse(text).map(|u| (u.tls, u.host, u.port, u.path));
        let url =
            |tls, host: &str, port, path: &str| Ok((tls, host.to_owned(), port, path.to_owned()));
        assert_eq!(parse("http://a/b?c"), url(false, "a", 80, "/b?c"));
        assert_eq!(parse("https://a"), url(true, "a", 443, "/"));
        assert_eq!(parse("http://a:81?x=1"), url(false, "a", 81, "/?x=1"));
        assert_eq!(parse("http://[::1]:82/#x"), url(false, "[::1]", 82, "/"));
        assert_eq!(parse("http://[fd00::1]/"), url(false, "[fd00::1]", 80, "/"));
        for bad in [
            "a",
            "ftp://a",
            "http://",
            "http://a:x/",
            "http://a/b c",
            "http://u@a/",
            "http://a/\r\nX: y",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_status_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for answer in [
                "HTTP/1.1 200 OK\r\n\r\n",
                "HTTP/1.0 503 No\r\n\r\n",
                "SSH-2.0\r\n",
                "",
            ] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request[..length]).into_owned();
                assert!(
                    text.starts_with("GET /health HTTP/1.1\r\nHost: 127.0.0.1:"),
                    "{text}"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let url = format!("http://127.0.0.1:{port}/health");
        assert_eq!(look(&url, 200).await, Ok(()));
        assert!(look(&url, 200).await.is_err());
        assert!(look(&url, 200).await.is_err());
        assert!(look(&url, 200).await.is_err());
        server.await.unwrap();
        assert!(look(&url, 200).await.is_err(), "nobody listens any more");
    }
}
