//! An alert as JSON, posted to a URL: one request an alert, HTTP/1.1, a connection each.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::url::Url;
use super::{Channel, Failed, Trust, back_off};
use crate::config::cluster;
use crate::control::AlertReport;

/// The document's version.
const SCHEMA: u32 = 1;
/// What a server may say before its status is known.
const STATUS_MAX: usize = 8 << 10;

/// Where alerts are posted.
pub struct Webhook {
    name: String,
    cluster: String,
    url: Url,
    tls: Option<Arc<ClientConfig>>,
    retries: u32,
    timeout: Duration,
}

impl Webhook {
    /// From its configuration.
    pub fn new(
        cluster: &str,
        name: &str,
        config: &cluster::Webhook,
        trust: &Trust,
    ) -> Result<Self, String> {
        let url = Url::parse(&config.url)?;
        let tls = if url.tls { Some(trust.tls()?) } else { None };
        Ok(Self {
            name: format!("webhook {name}"),
            cluster: cluster.to_owned(),
            url,
            tls,
            retries: config.retries,
            timeout: Duration::from_millis(config.timeout.0),
        })
    }

    fn request(&self, alert: &AlertReport, lost: u64) -> Vec<u8> {
        let body = json!({
            "schema": SCHEMA,
            "cluster": self.cluster,
            "time_ms": alert.time_ms,
            "node": alert.node,
            "severity": alert.severity,
            "kind": alert.kind,
            "name": alert.name,
            "what": alert.what,
            "cause": alert.cause,
            // What chat programs show.
            "text": format!("[{}] {} {}: {}: {}{}", self.cluster, alert.severity, alert.node, alert.object(), alert.what,
                if alert.cause.is_empty() { String::new() } else { format!(": {}", alert.cause) }),
            "lost": lost,
        })
        .to_string();
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: kagami/{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.url.path,
            self.url.authority(),
            env!("CARGO_PKG_VERSION"),
            body.len()
        );
        [head.into_bytes(), body.into_bytes()].concat()
    }

    async fn post(&self, request: &[u8]) -> Result<u16, String> {
        let words = |error: std::io::Error| error.to_string();
        let stream = TcpStream::connect((self.url.host.as_str(), self.url.port))
            .await
            .map_err(words)?;
        match &self.tls {
            None => exchange(stream, request).await,
            Some(tls) => {
                let name = ServerName::try_from(self.url.host.clone())
                    .map_err(|error| error.to_string())?;
                let connector = TlsConnector::from(Arc::clone(tls));
                let stream = connector.connect(name, stream).await.map_err(words)?;
                exchange(stream, request).await
            }
        }
    }
}

/// Sends the request; the status of the answer. The rest of it is of no interest.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &[u8],
) -> Result<u16, String> {
    stream
        .write_all(request)
        .await
        .map_err(|error| error.to_string())?;
    stream.flush().await.map_err(|error| error.to_string())?;
    let mut said = Vec::new();
    while !said.contains(&b'\n') {
        if said.len() > STATUS_MAX {
            return Err("its answer is no HTTP".to_owned());
        }
        match stream.read_buf(&mut said).await {
            Ok(0) => return Err("it hung up before it answered".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    let line = String::from_utf8_lossy(&said);
    let mut words = line.split_whitespace();
    match (
        words.next(),
        words.next().and_then(|status| status.parse().ok()),
    ) {
        (Some(version), Some(status)) if version.starts_with("HTTP/1.") => Ok(status),
        _ => Err("its answer is no HTTP".to_owned()),
    }
}

impl Channel for Webhook {
    fn name(&self) -> &str {
        &self.name
    }

    fn at_once(&self) -> usize {
        1
    }

    async fn send(&self, alerts: &[AlertReport], lost: u64) -> Result<(), Failed> {
        for alert in alerts {
            let request = self.request(alert, lost);
            let failed = |why, for_good| Failed { why, for_good };
            match tokio::time::timeout(self.timeout, self.post(&request)).await {
                Err(_) => {
                    let why = format!("no answer within {} ms", self.timeout.as_millis());
                    return Err(failed(why, false));
                }
                Ok(Err(why)) => return Err(failed(why, false)),
                Ok(Ok(200..=299)) => {}
                // It does not want this one, however often it is said: but later it may (408, 429).
                Ok(Ok(status)) => {
                    let for_good = (300..=499).contains(&status) && !matches!(status, 408 | 429);
                    return Err(failed(format!("it answers {status}"), for_good));
                }
            }
        }
        Ok(())
    }

    fn again(&self, number: u32) -> Option<Duration> {
        (number <= self.retries)
            .then(|| back_off(number, Duration::from_secs(1), Duration::from_secs(60)))
    }
}
