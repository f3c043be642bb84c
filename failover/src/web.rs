//! One HTTP request to a server, with or without TLS: its status is what counts.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use url::{Host, Position, Url};

/// TLS with the machine's authorities alone. Read once for a process: some hundred files, which take long on a slow disk.
static OF_THE_MACHINE: OnceCell<Arc<ClientConfig>> = OnceCell::const_new();

/// Who vouches for servers.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Besides the machine's own authorities.
    pub more: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// TLS as a client: the machine's authorities, and these.
    async fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        if self.more.is_empty() {
            return of_the_machine(&OF_THE_MACHINE, Found::on_this_machine).await;
        }
        built(Found::on_this_machine, self.more.clone()).await
    }
}

/// What there is of a list of authorities.
struct Found {
    certificates: Vec<CertificateDer<'static>>,
    errors: Vec<String>,
}

impl Found {
    fn on_this_machine() -> Self {
        let found = rustls_native_certs::load_native_certs();
        Self {
            certificates: found.certs,
            errors: found.errors.iter().map(ToString::to_string).collect(),
        }
    }
}

/// What is `known`, or is found now; a failure is not remembered.
async fn of_the_machine(
    known: &OnceCell<Arc<ClientConfig>>,
    find: fn() -> Found,
) -> Result<Arc<ClientConfig>, String> {
    let config = known.get_or_try_init(|| built(find, Vec::new()));
    config.await.cloned()
}

/// The disk is waited for elsewhere.
async fn built(
    find: fn() -> Found,
    more: Vec<CertificateDer<'static>>,
) -> Result<Arc<ClientConfig>, String> {
    let built = tokio::task::spawn_blocking(move || client_config(find(), &more));
    built.await.unwrap_or_else(|error| Err(error.to_string()))
}

fn client_config(
    found: Found,
    more: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(found.certificates);
    for certificate in more {
        roots
            .add(certificate.clone())
            .map_err(|error| format!("a certificate is not understood: {error}"))?;
    }
    if roots.is_empty() {
        let mut why = "this machine has no list of trusted authorities".to_owned();
        for error in found.errors {
            why = format!("{why}: {error}");
        }
        return Err(format!("{why}\n  next: install ca-certificates"));
    }
    for error in found.errors {
        tracing::warn!("of the machine's trusted authorities: {error}");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(
        config.with_root_certificates(roots).with_no_client_auth(),
    ))
}

/// A server, and what is asked of it.
#[derive(Clone, Debug)]
pub struct Page {
    url: Url,
    host: String,
    /// Who is believed; `None`: it is asked in clear text.
    trust: Option<Trust>,
}

impl Page {
    /// From a URL of http or https.
    ///
    /// # Errors
    /// What is wrong with it; the path is not told, since it may be a secret.
    pub fn new(text: &str, trust: &Trust) -> Result<Self, String> {
        // What the standard would leave out of a URL, or escape, was not meant.
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the URL has blanks or other signs that must be escaped".to_owned());
        }
        let url = Url::parse(text).map_err(|error| format!("the URL is wrong: {error}"))?;
        let trust = match url.scheme() {
            "http" => None,
            "https" => Some(trust.clone()),
            other => return Err(format!("{other}:// is neither http:// nor https://")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the URL has a user in it, which is not spoken here".to_owned());
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err("the URL has no host".to_owned()),
        };
        Ok(Self { url, host, trust })
    }

    /// Asks for it.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn get(&self) -> Result<u16, String> {
        self.ask(Method::GET, None).await
    }

    /// Posts a JSON document.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post(&self, document: String) -> Result<u16, String> {
        self.ask(Method::POST, Some(document)).await
    }

    async fn ask(&self, method: Method, document: Option<String>) -> Result<u16, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(&self.url[Position::BeforePath..Position::AfterQuery])
            .header(
                header::HOST,
                &self.url[Position::BeforeHost..Position::AfterPort],
            )
            .header(
                header::USER_AGENT,
                concat!("kagami/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::ACCEPT, "*/*")
            .header(header::CONNECTION, "close");
        if document.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(document.unwrap_or_default()));
        let request = request.body(body).map_err(|error| error.to_string())?;
        let port = self.url.port_or_known_default().unwrap_or_default();
        let tls = match &self.trust {
            Some(trust) => Some(trust.tls().await?),
            None => None,
        };
        let words = |error: std::io::Error| error.to_string();
        let stream = TcpStream::connect((self.host.as_str(), port))
            .await
            .map_err(words)?;
        let Some(tls) = tls else {
            return exchange(stream, request).await;
        };
        let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(tls);
        let stream = connector.connect(name, stream).await.map_err(words)?;
        exchange(stream, request).await
    }
}

/// The status of the answer; the rest of it is of no interest.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<u16, String> {
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // The connection carries the answer, and is gone with it: it may end first.
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    let answer = answer.map_err(|error| format!("no HTTP answer: {error}"))?;
    Ok(answer.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Found {
        Found {
            certificates: Vec::new(),
            errors: vec!["/etc/ssl/certs: not there".to_owned()],
        }
    }

    fn one() -> Found {
        let own = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
        Found {
            certificates: vec![own.cert.der().clone()],
            errors: Vec::new(),
        }
    }

    #[tokio::test]
    async fn the_machines_authorities_are_read_once_and_none_is_an_error() {
        let known = OnceCell::new();
        let why = of_the_machine(&known, nothing).await.unwrap_err();
        assert_eq!(
            why,
            "this machine has no list of trusted authorities: /etc/ssl/certs: not there\n  next: install ca-certificates"
        );
        // They were installed meanwhile; and are not read again.
        let first = of_the_machine(&known, one).await.unwrap();
        let second = of_the_machine(&known, nothing).await.unwrap();
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn urls_are_taken_apart() {
        let page = |text: &str| Page::new(text, &Trust::default());
        let told = |text: &str| {
            let page = page(text).unwrap();
            let authority = page.url[Position::BeforeHost..Position::AfterPort].to_owned();
            let path = page.url[Position::BeforePath..Position::AfterQuery].to_owned();
            let port = page.url.port_or_known_default();
            (
                page.trust.is_some(),
                page.host,
                authority,
                port.unwrap(),
                path,
            )
        };
        let wanted = |tls, host: &str, authority: &str, port, path: &str| {
            let [host, authority, path] = [host, authority, path].map(str::to_owned);
            (tls, host, authority, port, path)
        };
        assert_eq!(told("http://a/b?c"), wanted(false, "a", "a", 80, "/b?c"));
        assert_eq!(
            told("https://chat.example.org/hooks/x?y=1#z"),
            wanted(
                true,
                "chat.example.org",
                "chat.example.org",
                443,
                "/hooks/x?y=1"
            )
        );
        assert_eq!(
            told("http://a:81?x=1"),
            wanted(false, "a", "a:81", 81, "/?x=1")
        );
        assert_eq!(
            told("http://[::1]:8080"),
            wanted(false, "::1", "[::1]:8080", 8080, "/")
        );
        assert_eq!(
            told("http://[fd00::1]/"),
            wanted(false, "fd00::1", "[fd00::1]", 80, "/")
        );
        for bad in [
            "h/x",
            "a",
            "ftp://h",
            "http://",
            "http://u:p@h/",
            "http://u@a/",
            "http://h:99999/",
            "http://a:x/",
            "http://h/a b",
            "http://h/\r\nX: y",
            "http://[::1/",
        ] {
            assert!(page(bad).is_err(), "{bad}");
        }
    }
}
