//! A web page: `GET`, and the status that the answer has to have. Nothing is followed, and nothing kept.

use crate::process::{Failure, Step};
use crate::web::{Page, Trust};

/// Asks once; the answer has to have this status.
///
/// # Errors
/// There is no answer, or one with another status.
pub async fn look(url: &str, status: u16) -> Step {
    let page = Page::new(url, &Trust::default());
    let page = page.map_err(|error| format!("{url}: {error}"))?;
    let found = page.get().await;
    let found = found.map_err(|error| format!("{url}: {error}"))?;
    if found == status {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{url}: status {found}, and {status} is expected"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

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

    #[tokio::test]
    async fn over_tls_only_who_is_trusted_is_believed() {
        let names = vec!["127.0.0.1".to_owned()];
        let own = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                // Who does not trust it hangs up.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut request = vec![0; 1024];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                stream
                    .write_all(b"HTTP/1.1 204 Nothing\r\n\r\n")
                    .await
                    .unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        let url = format!("https://127.0.0.1:{port}/");
        let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let trusting = |certificate: &rcgen::Certificate| Trust {
            more: vec![certificate.der().clone()],
        };
        let page = Page::new(&url, &trusting(&other.cert)).unwrap();
        let error = page.get().await.unwrap_err();
        assert!(error.contains("certificate"), "{error}");
        let page = Page::new(&url, &trusting(&own.cert)).unwrap();
        assert_eq!(page.get().await, Ok(204));
        server.await.unwrap();
    }
}
