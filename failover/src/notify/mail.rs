//! Alerts by mail: those that wait go out together, over TLS, which is never left out.

use std::time::Duration;

use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};

use super::{AT_ONCE, Channel, Failed, Trust, back_off};
use crate::config::cluster;
use crate::control::AlertReport;

/// A server has this long for each step.
const PATIENCE: Duration = Duration::from_secs(30);
/// Tried for about four hours.
const TRIES: u32 = 50;

/// Who gets mail.
pub struct Mailer {
    name: String,
    cluster: String,
    from: Mailbox,
    to: Vec<Mailbox>,
    transport: AsyncSmtpTransport<Tokio1Executor>,
}

impl Mailer {
    /// From its configuration. The password is read once, here.
    pub fn new(
        cluster: &str,
        name: &str,
        config: &cluster::Mail,
        trust: &Trust,
    ) -> Result<Self, String> {
        let (host, port) = config
            .server
            .rsplit_once(':')
            .ok_or_else(|| format!("server: {} has no port", config.server))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = port
            .parse()
            .map_err(|_| format!("server: `{port}` is no port"))?;
        let mailbox = |text: &String| {
            text.parse::<Mailbox>()
                .map_err(|error| format!("`{text}` is no mail address: {error}"))
        };
        let mut tls = TlsParameters::builder(host.to_owned());
        for certificate in &trust.more {
            let certificate = Certificate::from_der(certificate.to_vec())
                .map_err(|error| format!("a certificate is not understood: {error}"))?;
            tls = tls.add_root_certificate(certificate);
        }
        let tls = tls.build().map_err(|error| error.to_string())?;
        let tls = match config.tls {
            cluster::Tls::Always => Tls::Wrapper(tls),
            cluster::Tls::Starttls => Tls::Required(tls),
        };
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(port)
            .tls(tls)
            .timeout(Some(PATIENCE));
        if let Some(user) = &config.user {
            let password = match &config.password_file {
                Some(file) => std::fs::read_to_string(file)
                    .map_err(|error| format!("password-file: {}: {error}", file.display()))?,
                None => String::new(),
            };
            let password = password.trim_end_matches(['\r', '\n']).to_owned();
            builder = builder.credentials(Credentials::new(user.clone(), password));
        }
        Ok(Self {
            name: format!("mail {name}"),
            cluster: cluster.to_owned(),
            from: mailbox(&config.from)?,
            to: config.to.iter().map(mailbox).collect::<Result<_, _>>()?,
            transport: builder.build(),
        })
    }

    fn message(&self, alerts: &[AlertReport], lost: u64) -> Result<Message, String> {
        let worst = alerts
            .iter()
            .max_by_key(|alert| alert.severity)
            .ok_or("there is nothing to tell")?;
        let more = match alerts.len() {
            1 => String::new(),
            count => format!(" (+{})", count - 1),
        };
        let plain = |text: &str| text.replace(char::is_control, " ");
        let subject = format!(
            "[{}] {}: {}: {}{more}",
            self.cluster,
            worst.severity,
            plain(&worst.object()),
            plain(&worst.what)
        );
        let mut builder = Message::builder().from(self.from.clone()).subject(subject);
        for to in &self.to {
            builder = builder.to(to.clone());
        }
        builder
            .header(ContentType::TEXT_PLAIN)
            .body(body(&self.cluster, alerts, lost))
            .map_err(|error| error.to_string())
    }
}

fn body(cluster: &str, alerts: &[AlertReport], lost: u64) -> String {
    let mut text = format!("Cluster {cluster}\n\n");
    for alert in alerts {
        let at = i64::try_from(alert.time_ms).ok();
        let at = at.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let at = at.map_or_else(String::new, |at| {
            at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
        });
        let line = format!(
            "{at}  {}  {}  {}: {}",
            alert.node,
            alert.severity,
            alert.object(),
            alert.what
        );
        text.push_str(&line.replace(char::is_control, " "));
        if !alert.cause.is_empty() {
            text.push_str("\n    ");
            text.push_str(&alert.cause.replace(char::is_control, " "));
        }
        text.push('\n');
    }
    if lost > 0 {
        let told = format!("\n{lost} earlier alerts were not sent: `kagami alerts` has them.\n");
        text.push_str(&told);
    }
    text
}

impl Channel for Mailer {
    fn name(&self) -> &str {
        &self.name
    }

    fn at_once(&self) -> usize {
        AT_ONCE
    }

    async fn send(&self, alerts: &[AlertReport], lost: u64) -> Result<(), Failed> {
        let message = self.message(alerts, lost).map_err(|why| Failed {
            why,
            for_good: true,
        })?;
        match self.transport.send(message).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Failed {
                for_good: error.is_permanent(),
                why: error.to_string(),
            }),
        }
    }

    fn again(&self, number: u32) -> Option<Duration> {
        (number < TRIES).then(|| back_off(number, Duration::from_secs(2), Duration::from_secs(300)))
    }
}
